"""Sampling traces on the device: prefill once, fork for the group, decode.

    prompts [P,Tp] --prefill--> cache [P] --fork--> cache [B] --decode--> traces

The decode loop is a `lax.while_loop` that never leaves the device: it samples a
token, takes the environment's if that speaks next, or forces one when the
thinking budget is spent, writes it behind the prompt, and every few steps asks
whether all rows are done. With `slots` so many traces decode at a time, and a
row that is done takes the next one (meta_rl/refill.py).

Axes: P prompts, G group, B = P * G traces, Tp prompt columns, N new tokens,
T = Tp + N, V vocabulary.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, decode, refill, sampling
from meta_rl.stops import StopTable
from meta_rl.types import Array, Model, Params, Rollout, TraceCache


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
  stop_table: StopTable | None = None,
  pad_id: int = 0,
  row_offset: int | Array = 0,
  check_every: int | None = None,
  cache_buckets: Sequence[int] = (),
  slots: int | None = None,
  return_cache: bool = False,
) -> Rollout | tuple[Rollout, TraceCache]:
  """Returns `group_size` traces of every prompt.

  Row b at response step t draws from
  `fold_in(fold_in(key, row_offset + b), t)`: samples do not depend on sharding,
  slot, batch or process.

  Forced termination: a row whose thinking has used up `thinking_budget` tokens
  gets `stop_ids`, one a step, in place of samples, and answers from there. The
  forced tokens are no actions: their `mask` is False and their log-probs 0.
  Stop tokens that end in `eos_id` end the trace: with a budget for each row,
  and no marker, that is a length for each row.

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

  Stop strings: the token that completes one of `stop_table` in the answer ends
  the trace as EOS does: it belongs to the mask, and may hold some text behind
  the stop string. Stop strings in the thought, or that begin before the answer,
  end nothing. Without a marker all of a response is looked at.

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
    stop_table: of the stop strings, and of tokens that end a trace as EOS does,
      in its thought too (meta_rl/stops.py); None: EOS alone ends one.
    pad_id: fills the columns after the end of a trace.
    row_offset: global index of the first trace, under `shard_map` and `pmap`.
    check_every: decode steps between two tests whether all rows are done, or
      with `slots` whether one is. None: 8, with slots 2.
    cache_buckets: response tokens, increasing, for which the cache has room
      one after the other: a step attends to the slots of its bucket alone, and
      at its end the cache is copied into the next one, so that for a moment
      both are held. Of those from `max_new_tokens` on only the first counts,
      and as `max_new_tokens`. (): room for all from the beginning.
    slots: traces that decode at a time, on each device under `shard_map`: a row
      whose trace has ended takes the next one. It pays where lengths differ:
      the loop is as long as the tokens of all traces take, not as the longest
      trace. Samples are the same. Not with `cache_buckets`. None: all traces.
    return_cache: also return the KV cache of the traces, for the prover. It
      holds every column that a prefix of a thinking trace can end at.

  Returns:
    A `Rollout`; with `return_cache`, also a `TraceCache`.

  Raises:
    ValueError: shapes, or numbers outside their ranges.
  """
  checks.check_model(model)
  checks.check_key('generate: key', key)
  checks.check_flag('generate: return_cache', return_cache)
  dims = {}
  prompts = checks.as_array('generate: prompts', prompts, 'int[P,Tp]', dims)
  checks.check_filled('generate: prompts', prompts)
  prompt_mask = checks.as_array(
    'generate: prompt_mask', prompt_mask, 'bool[P,Tp]', dims
  )
  check_slots(slots, cache_buckets)
  if check_every is None:
    check_every = 8 if slots is None else 2
  check(
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    eos_id=eos_id,
    think_end_id=think_end_id,
    stop_ids=stop_ids,
    wait_ids=wait_ids,
    pad_id=pad_id,
    observe_fn=observe_fn,
    max_new_tokens=max_new_tokens,
    group_size=group_size,
    check_every=check_every,
  )
  max_new_tokens, group_size = int(max_new_tokens), int(group_size)
  eos_id, pad_id = int(eos_id), int(pad_id)
  think_end_id = None if think_end_id is None else int(think_end_id)
  num_prompts, prompt_length = prompts.shape
  rows = num_prompts * group_size
  of_rows = lambda name, value: (
    None if value is None else checks.check_counts(name, value, rows)
  )
  thinking_budget = of_rows('generate: thinking_budget', thinking_budget)
  min_thinking = of_rows('generate: min_thinking', min_thinking)
  row_offset = of_rows('generate: row_offset', row_offset)
  prefix, prefix_length = _check_prefix(
    prefix, prefix_length, rows, max_new_tokens
  )
  stop = stop_tokens(think_end_id, thinking_budget, stop_ids, max_new_tokens)
  rooms = cache_rooms(cache_buckets, max_new_tokens)
  ends = tuple(i for i in (think_end_id, eos_id) if i is not None)
  ends += () if stop_table is None else stop_table.end_ids
  check_waiting(min_thinking, wait_ids, ends, thinking_budget, max_new_tokens)
  every = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (rows,))
  budget = max_new_tokens if thinking_budget is None else thinking_budget
  of_traces = {
    'rows': row_offset + jnp.arange(rows),
    'budget': every(budget),
    'least': None if min_thinking is None else every(min_thinking),
    'prefix': prefix,
    'prefix_length': prefix_length,
  }

  special = {
    'eos_id': eos_id,
    'think_end_id': think_end_id,
    'stop_ids': stop,
    'wait_ids': wait_ids,
    'pad_id': pad_id,
  }

  def make_emit(traces=None):
    """Returns `decode.emit` for the rows of these traces, None for all."""
    own, indices = of_traces, jnp.arange(rows)
    if traces is not None:
      own = {k: None if x is None else x[traces] for k, x in own.items()}
      indices = traces
    emit = functools.partial(
      decode.emit,
      key=key,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      stop=stop,
      observe=_observer(observe_fn, indices),
      wait=tuple(wait_ids),
      ends=ends,
      eos_id=eos_id,
      think_end_id=think_end_id,
      pad_id=pad_id,
      stop_table=stop_table,
      **own,
    )

    def checked(state, logits):
      for name, ids in special.items():
        checks.check_vocabulary(f'generate: {name}', ids, logits.shape[-1])
      return emit(state, logits)

    return checked

  given = 0 if prefix is None else prefix.shape[1]
  decoded = {
    'group_size': group_size,
    'check_every': check_every,
    'keep_cache': return_cache,
    # Where a budget leaves room for an answer, the last column is no thought,
    # unless it is of a prefix.
    'feed_last': not isinstance(thinking_budget, int)
    or given >= max_new_tokens,
  }
  prompted = model, params, prompts, prompt_mask
  if slots is None:
    out, truncated, forced, cache = decode.all_at_once(
      *prompted, make_emit(), rooms=rooms, **decoded
    )
  else:
    refill.check_cache(model)
    out, truncated, forced, cache = refill.in_slots(
      *prompted,
      make_emit,
      slots=min(int(slots), rows),
      max_new_tokens=max_new_tokens,
      pad_id=pad_id,
      **decoded,
    )
  fork = lambda x: jnp.repeat(x, group_size, axis=0)
  before = lambda x: jnp.zeros((rows, prompt_length), x.dtype)
  out = {k: jnp.concatenate([before(x), x], 1) for k, x in out.items()}
  out['tokens'] = out['tokens'].at[:, :prompt_length].set(fork(prompts))
  out['token_mask'] = (
    out['token_mask'].at[:, :prompt_length].set(fork(prompt_mask))
  )
  rollout = Rollout(truncated=truncated, forced=forced, **out)
  return (rollout, cache) if return_cache else rollout


def cache_rooms(
  buckets: Sequence[int],
  max_new_tokens: int,
  *,
  name: str = 'generate: cache_buckets',
) -> tuple[int, ...]:
  """Returns for how many response tokens the cache has room, in turn.

    cache_rooms((4, 8, 16, 32), 12)     (4, 8, 12)

  Raises:
    ValueError: buckets that are no increasing whole numbers above 0.
  """
  whole = lambda size: isinstance(size, int) and not isinstance(size, bool)
  sizes = tuple(buckets) if isinstance(buckets, Sequence) else None
  if (
    sizes is None
    or not all(map(whole, sizes))
    or any(b <= a for a, b in itertools.pairwise((0, *sizes)))
  ):
    raise ValueError(
      f'{name}={checks.show(buckets)} is given; allowed are whole numbers of '
      'tokens, each >= 1 and above the one before.'
    )
  return (*(n for n in sizes if n < max_new_tokens), max_new_tokens)


def check_slots(slots, cache_buckets, *, prefix: str = 'generate: '):
  """Raises ValueError unless so many traces can decode at a time.

  Args:
    slots: None, or a whole number.
    cache_buckets: of the same rollout.
    prefix: of the names of both.
  """
  if slots is None:
    return
  checks.check_count(f'{prefix}slots', slots)
  if cache_buckets:
    raise ValueError(
      f'{prefix}slots={slots} and cache_buckets={tuple(cache_buckets)}: with '
      'slots rows begin at any time, and the cache has room for all from the '
      'beginning; give one of the two.'
    )


def answers_of(
  traces: Rollout, stop_index: Array, length: int
) -> tuple[Array, Array]:
  """Returns what follows column `stop_index`, i32[B,A], and its mask bool[B,A].

  That is the last token of the stop: only what comes after it is graded, and an
  answer inside the thought does not count.

  Raises:
    ValueError: no traces, wrong shape or dtype, or length < 1.
  """
  if not isinstance(traces, Rollout):
    raise ValueError(f'traces must be a Rollout, got {checks.show(traces)}')
  dims = {'B': traces.tokens.shape[0]}
  stop_index = checks.as_array('stop_index', stop_index, 'int[B]', dims)
  length = checks.check_count('length', length)
  columns = stop_index[:, None] + 1 + jnp.arange(length)
  inside = columns < traces.tokens.shape[1]
  columns = jnp.minimum(columns, traces.tokens.shape[1] - 1)
  take = lambda x: jnp.take_along_axis(x, columns, axis=1)
  return take(traces.tokens), take(traces.token_mask) & inside


def check(
  *,
  temperature,
  top_k,
  top_p,
  eos_id,
  think_end_id,
  stop_ids,
  wait_ids=(),
  pad_id=0,
  observe_fn=None,
  **at_least_one,
):
  """Raises ValueError unless these arguments of `generate` can be used."""
  sampling.check_truncation('generate: ', temperature, top_k, top_p)
  if isinstance(temperature, jax.core.Tracer):
    raise ValueError(
      'generate: temperature must be a number that is known when compiling, '
      f'got {checks.show(temperature)}'
    )
  checks.check_count('generate: eos_id', eos_id, low=0)
  checks.check_count('generate: pad_id', pad_id, low=0)
  if think_end_id is not None:
    checks.check_count('generate: think_end_id', think_end_id, low=0)
  if stop_ids is not None:
    checks.check_ids('generate: stop_ids', stop_ids)
  checks.check_ids('generate: wait_ids', wait_ids, empty=True)
  checks.check_callable('generate: observe_fn', observe_fn, optional=True)
  for name, value in at_least_one.items():
    checks.check_count(f'generate: {name}', value)


def _check_prefix(prefix, prefix_length, rows, max_new_tokens):
  """Returns both as arrays; raises ValueError unless they fit each other."""
  if prefix is None and prefix_length is None:
    return None, None
  if prefix is None or prefix_length is None:
    raise ValueError(
      'generate: prefix and prefix_length are given together, or neither.'
    )
  dims = {'B': rows}
  prefix = checks.as_array('generate: prefix', prefix, 'int[B,N]', dims)
  if not 1 <= dims['N'] <= max_new_tokens:
    raise ValueError(
      f'generate: prefix holds {dims["N"]} columns; allowed are 1..'
      f'max_new_tokens={max_new_tokens}.'
    )
  return prefix, checks.as_array(
    'generate: prefix_length', prefix_length, 'int[B]', dims
  )


def _observer(observe_fn, indices):
  """Returns `(last, thinking) -> i32[B]`, checked; None where there is none.

  indices: i32[B], of the traces in the call.
  """
  if observe_fn is None:
    return None
  rows = len(indices)

  def observe(last, thinking):
    token = observe_fn(last, thinking, indices)
    token = checks.to_array('generate: what observe_fn returned', token)
    if token.shape != (rows,) or not jnp.issubdtype(token.dtype, jnp.integer):
      raise ValueError(
        f'generate: observe_fn returned {token.dtype}{list(token.shape)}, '
        f'expected int32[{rows}]: one token a trace, -1 for none.'
      )
    return token.astype(jnp.int32)

  return observe


def stop_tokens(think_end_id, thinking_budget, stop_ids, max_new_tokens):
  """Returns the tuple of tokens to force at the budget, empty for none."""
  if thinking_budget is None:
    return ()
  if stop_ids is None and think_end_id is None:
    raise ValueError(
      'generate: a thinking_budget needs stop_ids or think_end_id to end '
      'thinking with.'
    )
  stop = (think_end_id,) if stop_ids is None else tuple(stop_ids)
  full = isinstance(thinking_budget, int) and (
    thinking_budget + len(stop) >= max_new_tokens
  )
  if full:
    raise ValueError(
      f'generate: thinking_budget={thinking_budget} and {len(stop)} stop '
      f'tokens leave no room for an answer in max_new_tokens='
      f'{max_new_tokens}: raise max_new_tokens, which counts the thought too.'
    )
  return stop


def check_waiting(least, wait_ids, ends, thinking_budget, max_new_tokens):
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
  most = thinking_budget if isinstance(thinking_budget, int) else max_new_tokens
  if least > most:
    raise ValueError(
      f'generate: min_thinking={least} is above the {most} tokens after which '
      'thinking is ended: lower it, or raise thinking_budget.'
    )
