"""Sampling traces on the device: prefill once, fork for the group, decode.

    prompts [P,Tp] --prefill--> cache [P] --fork--> cache [B] --decode--> traces

The decode loop is a `lax.while_loop` that never leaves the device: it samples a
token, takes the environment's if that speaks next, or forces one when the
thinking budget is spent, writes it behind the prompt, and every few steps asks
whether all rows are done.

Axes: P prompts, G group, B = P * G traces, Tp prompt columns, N new tokens,
T = Tp + N, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import sampling
from meta_rl.scoring import log_softmax_at, positions_of
from meta_rl.types import Array, Cache, Model, Params, Rollout, TraceCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """The carry of the decode loop, before the token of step `step` is drawn.

  Attributes:
    step: i32[], response tokens written so far (>= 1 inside the loop).
    cache: holds everything but the last token written.
    last: i32[B], the last token drawn, observed or forced, the prompt's last
      one at step 0; arbitrary in rows that are done.
    position: i32[B], position of `last`.
    thinking: bool[B], the answer marker has not come yet.
    thoughts: i32[B], thinking tokens so far.
    to_force: i32[B], index of the next stop token to force, -1 for none.
    to_wait: i32[B], the same of `wait_ids`.
    forced, done: bool[B].
    out: the response columns of `Rollout`, each [B,N].
  """

  step: Array
  cache: Cache
  last: Array
  position: Array
  thinking: Array
  thoughts: Array
  to_force: Array
  to_wait: Array
  forced: Array
  done: Array
  out: dict[str, Array]


def generate(
  model: Model,
  params: Params,
  prompts: Array,
  prompt_mask: Array,
  key: Array,
  *,
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
  group_size: int = 1,
  top_p: float | None = None,
  top_k: int | None = None,
  think_end_id: int | None = None,
  thinking_budget: int | Array | None = None,
  stop_ids: Sequence[int] | None = None,
  prefix: Array | None = None,
  prefix_length: Array | None = None,
  observe_fn: Callable[[Array, Array, Array], Array] | None = None,
  min_thinking: int | Array | None = None,
  wait_ids: Sequence[int] = (),
  pad_id: int = 0,
  row_offset: int | Array = 0,
  check_every: int = 8,
  return_cache: bool = False,
) -> Rollout | tuple[Rollout, TraceCache]:
  """Returns `group_size` traces of every prompt.

  Row b at response step t draws from
  `fold_in(fold_in(key, row_offset + b), t)`: samples do not depend on sharding,
  slot, batch or process.

  Forced termination: a row whose thinking has used up `thinking_budget` tokens
  gets `stop_ids`, one a step, in place of samples, and answers from there. The
  forced tokens are no actions: their `mask` is False and their log-probs 0.

  Forced prefix: the first `prefix_length[b]` response tokens of row b are
  `prefix[b]` in place of samples. They are no actions either, and in all else
  are read as if the policy had sampled them: they are thinking up to a marker,
  they use up the budget, and every later token keeps its position, its cache
  slot and its random draw. A row whose budget is not above its prefix's length
  answers right behind it. The prefix goes through the decode loop, a token a
  step: where it is long and the model large, put it into `prompts` instead,
  which takes it in at once (it is then prompt, not thinking).

  Observations: where `observe_fn` gives a token, the environment speaks, and
  that token is written in place of a sample. It is no action either. While
  thinking it is a thinking token and counts towards the budget; an observed
  marker ends thinking, an observed EOS the trace. The budget comes first: it
  bounds what a trace costs, so at the budget a verdict that is still due is not
  given, and nothing is observed before the last stop token.

  Budget forcing, the other way round (arXiv 2501.19393, section 3): a row that
  has thought fewer than `min_thinking` tokens cannot stop. Without `wait_ids`
  the answer marker and EOS are left out of the support that is sampled from
  (behavior log-probs are those of what is left, raw ones those of the full
  softmax); with them, a marker or EOS that was drawn is replaced by these
  tokens, one a step. They are thoughts, but no actions.

  Args:
    model: the network.
    params: its parameters.
    prompts: i32[P,Tp], left-padded: every row ends in its last prompt token.
    prompt_mask: bool[P,Tp], True on prompt tokens.
    key: PRNG key, consumed here.
    max_new_tokens: response columns N, >= 1.
    eos_id: ends a trace; belongs to the mask.
    temperature: >= 0; 0 is greedy.
    group_size: traces a prompt, G.
    top_p, top_k: truncate the support that is sampled from; None for all.
    think_end_id: the answer marker; None: a response has no thinking part that
      ends, and all of it before EOS counts as thinking.
    thinking_budget: tokens, int or i32[B]; None: no forced termination.
    stop_ids: the tokens forced at the budget, default `(think_end_id,)`.
    prefix: i32[B,N'], N' <= max_new_tokens, given response tokens; None: none,
      at no cost.
    prefix_length: i32[B] in 0..N', how many of them row b is given. The columns
      must hold them, the stop tokens and an answer: this is not checked.
    observe_fn: `(last i32[B], thinking bool[B], rows i32[B]) -> i32[B]`,
      traceable: the token that the environment puts behind `last`, -1 where it
      is the policy's turn. `rows` are the indices of the traces in this call
      (p * G + g), for looking up what the environment knows of each; rows that
      are done get an answer too, which is dropped.
    min_thinking: tokens before thinking may end, int or i32[B], at most the
      budget; None: no budget forcing.
    wait_ids: the tokens that replace an early end, such as those of 'Wait'.
    pad_id: fills the columns after EOS.
    row_offset: global index of the first trace, under `shard_map` and `pmap`.
    check_every: decode steps between two tests whether all rows are done.
    return_cache: also return the KV cache of the traces, for the prover. It
      holds every column that a prefix of a thinking trace can end at.

  Returns:
    A `Rollout`; with `return_cache`, also a `TraceCache`.

  Raises:
    ValueError: shapes, or numbers outside their ranges.
  """
  _check(
    prompts,
    prompt_mask,
    temperature,
    max_new_tokens=max_new_tokens,
    group_size=group_size,
    check_every=check_every,
  )
  stop = _stop_tokens(think_end_id, thinking_budget, stop_ids, max_new_tokens)
  ends = tuple(i for i in (think_end_id, eos_id) if i is not None)
  _check_waiting(min_thinking, wait_ids, ends, thinking_budget, max_new_tokens)
  num_prompts, prompt_length = prompts.shape
  rows = num_prompts * group_size
  _check_prefix(prefix, prefix_length, rows, max_new_tokens)
  budget = max_new_tokens if thinking_budget is None else thinking_budget
  step = functools.partial(
    _emit,
    key=key,
    rows=row_offset + jnp.arange(rows),
    sample=functools.partial(
      _sample, temperature=temperature, top_k=top_k, top_p=top_p
    ),
    budget=jnp.broadcast_to(jnp.asarray(budget, jnp.int32), (rows,)),
    stop=stop,
    observe=_observer(observe_fn, rows),
    least=min_thinking,
    wait=tuple(wait_ids),
    ends=ends,
    eos_id=eos_id,
    think_end_id=-1 if think_end_id is None else think_end_id,
    pad_id=pad_id,
    prefix=prefix,
    prefix_length=prefix_length,
  )

  cache = model.init_cache(num_prompts, prompt_length)
  positions = positions_of(prompt_mask)
  logits, cache = _last_logits(model, params, prompts, positions, cache)
  cache = caches.grow(model, cache, max_new_tokens)
  cache = caches.fork(model, cache, group_size)
  fork = lambda x: jnp.repeat(x, group_size, axis=0)
  last = fork(prompts[:, -1]).astype(jnp.int32), fork(positions[:, -1])
  state = step(_initial(cache, *last, max_new_tokens), fork(logits))

  def feed(state):
    """Returns the logits f32[B,1,V] after the last token, and the cache."""
    return model.apply_fn(
      params,
      state.last[:, None],
      jnp.where(state.done, -1, state.position)[:, None],
      state.cache,
    )

  def decode(_, state):
    logits, cache = feed(state)
    return step(dataclasses.replace(state, cache=cache), logits[:, 0])

  def decode_some(state):
    some = jnp.minimum(check_every, max_new_tokens - state.step)
    return jax.lax.fori_loop(0, some, decode, state)

  unfinished = lambda s: (s.step < max_new_tokens) & ~s.done.all()
  state = jax.lax.while_loop(unfinished, decode_some, state)

  before = lambda x: jnp.zeros((rows, prompt_length), x.dtype)
  out = {k: jnp.concatenate([before(x), x], 1) for k, x in state.out.items()}
  out['tokens'] = out['tokens'].at[:, :prompt_length].set(fork(prompts))
  out['token_mask'] = (
    out['token_mask'].at[:, :prompt_length].set(fork(prompt_mask))
  )
  rollout = Rollout(truncated=~state.done, forced=state.forced, **out)
  if not return_cache:
    return rollout
  used = prompt_length + state.step - 1
  given = 0 if prefix is None else prefix.shape[1]
  if isinstance(thinking_budget, int) and given < max_new_tokens:
    # The last column is no thought: the budget left room for an answer.
    return rollout, TraceCache(state.cache, used)
  return rollout, TraceCache(feed(state)[1], used + 1)


def _last_logits(model, params, prompts, positions, cache):
  """Returns the logits f32[P,V] after each prompt; [P,Tp,V] is not built."""
  if model.features_fn is None:
    logits, cache = model.apply_fn(params, prompts, positions, cache)
    return logits[:, -1], cache
  features, cache = model.features_fn(params, prompts, positions, cache)
  return model.unembed_fn(params, features[:, -1]), cache


def _initial(cache, last, position, max_new_tokens) -> _State:
  """Returns the state before the first response token."""
  rows = len(last)
  shape = (rows, max_new_tokens)
  flags = lambda value: jnp.full(rows, value)
  return _State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    last=last,
    position=position,
    thinking=flags(True),
    thoughts=jnp.zeros(rows, jnp.int32),
    to_force=jnp.full(rows, -1, jnp.int32),
    to_wait=jnp.full(rows, -1, jnp.int32),
    forced=flags(False),
    done=flags(False),
    out={
      'tokens': jnp.zeros(shape, jnp.int32),
      'token_mask': jnp.zeros(shape, bool),
      'mask': jnp.zeros(shape, bool),
      'thinking_mask': jnp.zeros(shape, bool),
      'behavior_log_probs': jnp.zeros(shape, jnp.float32),
      'raw_log_probs': jnp.zeros(shape, jnp.float32),
    },
  )


def _sample(keys, logits, left_out=None, *, temperature, top_k, top_p):
  """Returns tokens i32[B], and their log-probs sampled-from and raw f32[B].

  left_out: bool[B,V], tokens that cannot be drawn; None for none.
  """
  # Before top-k and top-p, which then choose among what may be drawn.
  allowed = logits
  if left_out is not None:
    allowed = jnp.where(left_out, -jnp.inf, logits)
  support = sampling.truncate(
    allowed, temperature=temperature, top_k=top_k, top_p=top_p
  )
  tokens = sampling.sample(keys, support)
  behavior, _ = log_softmax_at(support, tokens)
  whole = top_k is None and top_p is None and left_out is None
  if not temperature or whole:
    return tokens, behavior, behavior
  raw, _ = log_softmax_at(logits / temperature, tokens)
  return tokens, behavior, raw


def _emit(
  s: _State,
  logits: Array,
  *,
  key,
  rows,
  sample,
  budget,
  stop,
  observe,
  least,
  wait,
  ends,
  eos_id,
  think_end_id,
  pad_id,
  prefix=None,
  prefix_length=None,
) -> _State:
  """Writes the token of response step `s.step`: sampled, observed or forced.

  In, one row with a budget of 2 and stop tokens (x, y):
    samples   a b c d e     forcing starts where the budget is spent
  Out:
    tokens    a b x y e     mask     1 1 0 0 1     thinking 1 1 0 0 0

  With a prefix of one token p besides:
    tokens    p b x y e     mask     0 1 0 0 1     thinking 1 1 0 0 0

  The same, with an environment that says o after each a:
    samples   a b c d e
  Out:
    tokens    a o x y e     mask     1 0 0 0 1     thinking 1 1 0 0 0

  With at least 3 thinking tokens, wait tokens (u, v) and no budget, where m
  ends thinking:
    samples   a m b m e
  Out:
    tokens    a u v m e     mask     1 0 0 1 1     thinking 1 1 1 0 0
  """
  keys = sampling.row_keys(key, rows, s.step)
  early = None if least is None else s.thinking & (s.thoughts < least)
  left_out = None
  if early is not None and not wait:
    is_end = (jnp.arange(logits.shape[-1])[:, None] == jnp.asarray(ends)).any(1)
    left_out = early[:, None] & is_end
  sampled, behavior, raw = sample(keys, logits, left_out)
  alive = ~s.done
  free = alive  # to sample or to be forced
  if prefix is not None:
    place = jnp.minimum(s.step, prefix.shape[1] - 1)
    given = jax.lax.dynamic_index_in_dim(prefix, place, 1, keepdims=False)
    free &= s.step >= prefix_length
    sampled = jnp.where(free, sampled, given)
  begins = s.thinking & (s.to_force < 0) & (s.thoughts >= budget) & free
  to_force = jnp.where(begins, 0, s.to_force) if stop else s.to_force
  forcing = (to_force >= 0) & alive
  if stop:
    stop_tokens = jnp.asarray(stop, jnp.int32)
    token = jnp.where(forcing, stop_tokens[to_force], sampled)
  else:
    token = sampled
  own = alive & ~forcing  # the policy's, or of what stands in for it
  action = free & ~forcing
  if observe is not None:
    observed = observe(s.last, s.thinking)
    speaks = action & (observed >= 0)
    action &= ~speaks
    token = jnp.where(speaks, observed, token)
  to_wait = s.to_wait
  if wait:
    gives_up = early & action & (token[:, None] == jnp.asarray(ends)).any(1)
    to_wait = jnp.where(gives_up & (to_wait < 0), 0, to_wait)
    # A budget that is spent cuts the wait tokens short.
    waiting = (to_wait >= 0) & own
    action &= ~waiting
    token = jnp.where(waiting, jnp.asarray(wait, jnp.int32)[to_wait], token)
    goes_on = waiting & (to_wait < len(wait) - 1)
    to_wait = jnp.where(goes_on, to_wait + 1, -1)
  marker = own & s.thinking & (token == think_end_id)
  ended = own & (token == eos_id)
  thought = own & s.thinking & ~marker & ~ended
  last_forced = forcing & (to_force == len(stop) - 1)
  column = {
    'tokens': jnp.where(alive, token, pad_id),
    'token_mask': alive,
    'mask': action,
    'thinking_mask': thought,
    'behavior_log_probs': jnp.where(action, behavior, 0.0),
    'raw_log_probs': jnp.where(action, raw, 0.0),
  }
  write = lambda buffer, x: jax.lax.dynamic_update_slice(
    buffer, x.astype(buffer.dtype)[:, None], (0, s.step)
  )
  return dataclasses.replace(
    s,
    step=s.step + 1,
    last=token,
    position=s.position + 1,
    thinking=s.thinking & ~marker & ~forcing,
    thoughts=s.thoughts + thought,
    to_force=jnp.where(last_forced, -1, jnp.where(forcing, to_force + 1, -1)),
    to_wait=to_wait,
    forced=s.forced | forcing,
    done=s.done | ended,
    out={k: write(s.out[k], x) for k, x in column.items()},
  )


def _check(prompts, prompt_mask, temperature, **at_least_one):
  if prompts.ndim != 2 or prompt_mask.shape != prompts.shape:
    raise ValueError(
      f'generate: prompts {prompts.shape} and prompt_mask {prompt_mask.shape} '
      'must have one shape [P,Tp].'
    )
  if not jnp.issubdtype(prompts.dtype, jnp.integer):
    raise ValueError(f'generate: prompts are {prompts.dtype}, expected int32.')
  if prompt_mask.dtype != jnp.bool_:
    raise ValueError(
      f'generate: prompt_mask is {prompt_mask.dtype}, expected bool.'
    )
  for name, value in at_least_one.items():
    if value < 1:
      raise ValueError(f'generate: {name}={value}, must be at least 1.')
  if temperature < 0:
    raise ValueError(f'generate: temperature={temperature}, must be >= 0.')


def _check_prefix(prefix, prefix_length, rows, max_new_tokens):
  """Raises ValueError unless prefix and prefix_length fit each other."""
  if prefix is None and prefix_length is None:
    return
  if prefix is None or prefix_length is None:
    raise ValueError(
      'generate: prefix and prefix_length are given together, or neither.'
    )
  shape, lengths = prefix.shape, prefix_length.shape
  if len(shape) != 2 or shape[0] != rows or lengths != (rows,):
    raise ValueError(
      f'generate: prefix {shape} and prefix_length {lengths} must have shapes '
      f"[B,N'] and [B] with B = {rows} traces."
    )
  if not 1 <= shape[1] <= max_new_tokens:
    raise ValueError(
      f'generate: prefix holds {shape[1]} columns; allowed are 1..'
      f'max_new_tokens={max_new_tokens}.'
    )
  for name, x in (('prefix', prefix), ('prefix_length', prefix_length)):
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise ValueError(f'generate: {name} is {x.dtype}, expected int32.')


def _observer(observe_fn, rows):
  """Returns `(last, thinking) -> i32[B]`, checked; None where there is none."""
  if observe_fn is None:
    return None

  def observe(last, thinking):
    token = jnp.asarray(observe_fn(last, thinking, jnp.arange(rows)))
    if token.shape != (rows,) or not jnp.issubdtype(token.dtype, jnp.integer):
      raise ValueError(
        f'generate: observe_fn returned {token.dtype}{list(token.shape)}, '
        f'expected int32[{rows}]: one token a trace, -1 for none.'
      )
    return token.astype(jnp.int32)

  return observe


def _stop_tokens(think_end_id, thinking_budget, stop_ids, max_new_tokens):
  """Returns the tuple of tokens to force at the budget, empty for none."""
  if thinking_budget is None:
    return ()
  if stop_ids is None and think_end_id is None:
    raise ValueError(
      'generate: a thinking_budget needs stop_ids or think_end_id to end '
      'thinking with.'
    )
  stop = (think_end_id,) if stop_ids is None else tuple(stop_ids)
  if not stop:
    raise ValueError('generate: stop_ids is empty; give at least one token.')
  if isinstance(thinking_budget, int):
    if thinking_budget < 0:
      raise ValueError(
        f'generate: thinking_budget={thinking_budget}, must be >= 0.'
      )
    if thinking_budget + len(stop) >= max_new_tokens:
      raise ValueError(
        f'generate: thinking_budget={thinking_budget} and {len(stop)} stop '
        f'tokens leave no room for an answer in max_new_tokens='
        f'{max_new_tokens}.'
      )
  return stop


def _check_waiting(least, wait_ids, ends, thinking_budget, max_new_tokens):
  """Raises ValueError unless budget forcing can be done."""
  if least is None:
    if len(wait_ids):
      raise ValueError(
        f'generate: wait_ids={tuple(wait_ids)} are forced below min_thinking '
        'tokens alone: give min_thinking, or no wait_ids.'
      )
    return
  if both := set(wait_ids) & set(ends):
    raise ValueError(
      f'generate: wait_ids hold {sorted(both)}, which end thinking: give '
      'tokens that go on with it.'
    )
  if not isinstance(least, int):
    return
  if least < 0:
    raise ValueError(f'generate: min_thinking={least}, must be >= 0.')
  most = thinking_budget if isinstance(thinking_budget, int) else max_new_tokens
  if least > most:
    raise ValueError(
      f'generate: min_thinking={least} is above the {most} tokens after which '
      'thinking is ended: lower it, or raise thinking_budget.'
    )
