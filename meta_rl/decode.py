"""One step of decoding: the token of a column, and all that follows from it.

What may be written, the first that applies: a token of the given prefix; a stop
token, where the thinking budget is spent; what the environment says; a wait
token, where thinking may not end yet; a sample. Only the last is an action.

Axes: B traces, N new tokens, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import sampling
from meta_rl.scoring import log_softmax_at, positions_of
from meta_rl.types import Array, Cache, TraceCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """The carry of the decode loop, before the token of step `step` is drawn.

  Attributes:
    step: i32[], response tokens written so far (>= 1 inside the loop); where
      rows come and go (meta_rl/refill.py), steps so far.
    cache: holds everything but the last token written.
    last: i32[B], the last token drawn, observed or forced, the prompt's last
      one at step 0; arbitrary in rows that are done.
    position: i32[B], position of `last`.
    thinking: bool[B], the answer marker has not come yet.
    thoughts: i32[B], thinking tokens so far.
    to_force: i32[B], index of the next stop token to force, -1 for none.
    to_wait: i32[B], the same of `wait_ids`.
    stop_state: i32[B], how much of a stop string the answer ends with.
    forced, done: bool[B].
    out: the response columns of `Rollout`, each [B,N].
    begun: i32[B], the step of each row's first token, where rows come and go:
      the columns of `out` are then a ring; None: all begin at step 0.
  """

  step: Array
  cache: Cache
  last: Array
  position: Array
  thinking: Array
  thoughts: Array
  to_force: Array
  to_wait: Array
  stop_state: Array
  forced: Array
  done: Array
  out: dict[str, Array]
  begun: Array | None = None


def initial(cache, last, position, max_new_tokens) -> State:
  """Returns the state before the first response token."""
  rows = len(last)
  shape = (rows, max_new_tokens)
  flags = lambda value: jnp.full(rows, value)
  return State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    last=last,
    position=position,
    thinking=flags(True),
    thoughts=jnp.zeros(rows, jnp.int32),
    to_force=jnp.full(rows, -1, jnp.int32),
    to_wait=jnp.full(rows, -1, jnp.int32),
    stop_state=jnp.zeros(rows, jnp.int32),
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


def sample(keys, logits, left_out=None, *, temperature, top_k, top_p):
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


def emit(
  s: State,
  logits: Array,
  *,
  key,
  rows,
  temperature,
  top_k,
  top_p,
  budget,
  stop,
  eos_id,
  think_end_id,
  pad_id=0,
  observe=None,
  least=None,
  wait=(),
  ends=(),
  prefix=None,
  prefix_length=None,
  stop_table=None,
) -> State:
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

  With a stop string that (c, d) spells, where m ends thinking:
    samples   c d m c d
  Out:
    tokens    c d m c d     mask     1 1 1 1 1     thinking 1 1 0 0 0, done

  `ends`, the tokens that end thinking or a trace, are read with `least` alone.
  Stop tokens of which the last is EOS leave no answer: the trace ends there.
  """
  think_end_id = -1 if think_end_id is None else think_end_id
  at = s.step if s.begun is None else s.step - s.begun
  keys = sampling.row_keys(key, rows, at)
  early = None if least is None else s.thinking & (s.thoughts < least)
  left_out = None
  if early is not None and not wait:
    is_end = (jnp.arange(logits.shape[-1])[:, None] == jnp.asarray(ends)).any(1)
    left_out = early[:, None] & is_end
  sampled, behavior, raw = sample(
    keys, logits, left_out, temperature=temperature, top_k=top_k, top_p=top_p
  )
  alive = ~s.done
  free = alive  # to sample or to be forced
  if prefix is not None:
    place = jnp.minimum(at, prefix.shape[1] - 1)
    place = jnp.broadcast_to(place, prefix_length.shape)
    given = jnp.take_along_axis(prefix, place[:, None], axis=1)[:, 0]
    free &= at >= prefix_length
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
  if stop and stop[-1] == eos_id:
    ended |= forcing & (to_force == len(stop) - 1)
  if stop_table is not None and stop_table.end_ids:
    others = jnp.asarray(stop_table.end_ids, jnp.int32)
    ended |= own & (token[:, None] == others).any(1)
  thought = own & s.thinking & ~marker & ~ended
  stop_state = s.stop_state
  if stop_table is not None:
    # Where nothing ends thinking, all of a response is its answer.
    answering = own & (~s.thinking | (think_end_id < 0))
    stop_state = jnp.where(
      answering, stop_table.step(stop_state, token), stop_state
    )
    ended |= answering & (stop_state == stop_table.complete)
  last_forced = forcing & (to_force == len(stop) - 1)
  column = {
    'tokens': jnp.where(alive, token, pad_id),
    'token_mask': alive,
    'mask': action,
    'thinking_mask': thought,
    'behavior_log_probs': jnp.where(action, behavior, 0.0),
    'raw_log_probs': jnp.where(action, raw, 0.0),
  }
  column_of = s.step if s.begun is None else s.step % s.out['tokens'].shape[1]
  write = lambda buffer, x: jax.lax.dynamic_update_slice(
    buffer, x.astype(buffer.dtype)[:, None], (0, column_of)
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
    stop_state=stop_state,
    forced=s.forced | forcing,
    done=s.done | ended,
    out={k: write(s.out[k], x) for k, x in column.items()},
  )


def all_at_once(
  model,
  params,
  prompts,
  prompt_mask,
  emit,
  *,
  rooms,
  group_size,
  check_every,
  keep_cache,
  feed_last,
):
  """Returns the traces, decoded together until the last one has ended.

  Args:
    model, params, prompts, prompt_mask, group_size, check_every: as in
      `rollout.generate`.
    emit: `(State, logits f32[B,V]) -> State`.
    rooms: of `rollout.cache_rooms`; the last is N.
    keep_cache: whether to return the KV cache.
    feed_last: whether that is to hold the last column too.

  Returns:
    The response columns of `Rollout`, each [B,N]; truncated and forced bool[B];
    a `TraceCache` or None.
  """
  logits, state = prefill(
    model, params, prompts, prompt_mask, rooms[-1], group_size, rooms[0]
  )
  state = emit(state, logits)
  some = functools.partial(
    decode_some, model, params, emit=emit, most=check_every
  )
  begin = 0
  for room in rooms:
    if begin:
      cache = caches.grow(model, state.cache, room - begin)
      state = dataclasses.replace(state, cache=cache)
    state = _decode_until(room, begin, state, some)
    begin = room
  cache, used = state.cache, prompts.shape[1] + state.step - 1
  if keep_cache and feed_last:
    cache, used = feed(model, params, state)[1], used + 1
  cache = TraceCache(cache, used) if keep_cache else None
  return state.out, ~state.done, state.forced, cache


def _decode_until(room: int, begin: int, state, some):
  """Returns the state when the cache is full, or all rows are done.

  The steps are counted from the beginning of the bucket: the loop's bound is
  then how often it can run, which is what a plan reads (meta_rl/aot/hlo.py).
  """

  def advance(carry):
    count, old = carry
    new = some(old, until=room)
    return count + new.step - old.step, new

  _, state = jax.lax.while_loop(
    lambda carry: (carry[0] < room - begin) & ~carry[1].done.all(),
    advance,
    (state.step - begin, state),
  )
  return state


def prefill(
  model, params, prompts, prompt_mask, max_new_tokens, group_size, room=None
):
  """Returns the logits f32[B,V] after each prompt, and the first state.

  room: of how many new tokens the cache has slots; None: of all.
  """
  num_prompts, prompt_length = prompts.shape
  cache = model.init_cache(num_prompts, prompt_length)
  positions = positions_of(prompt_mask)
  logits, cache = last_logits(model, params, prompts, positions, cache)
  cache = caches.grow(model, cache, room or max_new_tokens)
  cache = caches.fork(model, cache, group_size)
  fork = lambda x: jnp.repeat(x, group_size, axis=0)
  last = fork(prompts[:, -1]).astype(jnp.int32), fork(positions[:, -1])
  return fork(logits), initial(cache, *last, max_new_tokens)


def feed(model, params, state, mask=None):
  """Returns the logits f32[B,1,V] after the last token, and the cache.

  mask: bool[B,1,L], as in `Model.apply_fn`.
  """
  return model.apply_fn(
    params,
    state.last[:, None],
    jnp.where(state.done, -1, state.position)[:, None],
    state.cache,
    mask,
  )


def decode_some(model, params, state, *, emit, most, until=None):
  """Returns the state after `most` more steps, or as many as are left.

  until: the step at which none is left, for which the cache has room; None: the
    last column.
  """

  def advance(_, s):
    logits, cache = feed(model, params, s)
    return emit(dataclasses.replace(s, cache=cache), logits[:, 0])

  left = (until or state.out['tokens'].shape[1]) - state.step
  return jax.lax.fori_loop(0, jnp.minimum(most, left), advance, state)


def last_logits(model, params, prompts, positions, cache):
  """Returns the logits f32[P,V] after each prompt; [P,Tp,V] is not built."""
  if model.features_fn is None:
    logits, cache = model.apply_fn(params, prompts, positions, cache)
    return logits[:, -1], cache
  features, cache = model.features_fn(params, prompts, positions, cache)
  return model.unembed_fn(params, features[:, -1]), cache
