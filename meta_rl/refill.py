"""Slots: rows of the decode loop that take the next trace when theirs ends.

B traces wait and S < B of them decode at a time. A row whose trace has ended
hands it over and takes the next one, all inside one `lax.while_loop`:

    without  a a a a a a a a      with 2 slots  a a a a a a a a
             b b . . . . . .                    b b c c c d . .
             c c c . . . . .
             d . . . . . . .

All prompts go through the network first. A trace that begins gets a copy of its
prompt's keys and values, but for those of the last token: the next step feeds
that one, as it feeds the last token of all the others. Behind the prompt a
row's slots of the cache are a ring (compare meta_rl/serving/slots.py): each
step writes one token a row into the same slot for all rows, wherever in its
trace a row is, and a row sees what it has written itself. So nothing is
scattered, and the columns of what is recorded are a ring in the same way.

    R = 5, step 6         ring slot  0 1 2 3 4        recorded
    row 0, begun at 4                . ^ . a b        trace 2: a b
    row 1, begun at 2                d ^ a b c        trace 1: a b c d

When no trace waits any more, rows run dry: the loop then goes on with half of
them, and half of these, where that is worth another compiled loop.

Axes: B traces, S slots, N new tokens, R slots of the ring, Tp prompt columns.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import decode
from meta_rl.scoring import positions_of
from meta_rl.types import Array, Cache, Model, Params, TraceCache

# Into how few rows the loop goes on, and how often it halves them at most: a
# third time would bring 3% of the time at best, and each is compiled.
_FEWEST, _HALVINGS = 8, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """The carry of the loop, between two blocks of steps.

  Attributes:
    state: of the S rows.
    trace: i32[S], which one a row decodes; -1: none.
    full: bool[S], the trace has used up its columns without an end.
    next: i32[], the first trace that waits.
    out: the response columns of `Rollout`, [B,N], of traces that have ended.
    truncated, forced: bool[B], of these.
    kept: the KV cache of these, or None.
  """

  state: decode.State
  trace: Array
  full: Array
  next: Array
  out: dict[str, Array]
  truncated: Array
  forced: Array
  kept: Cache | None


def check_cache(model: Model) -> None:
  """Raises ValueError unless rows can come and go in a model's cache."""
  cache = jax.eval_shape(lambda: model.init_cache(1, 2))
  if not isinstance(cache, dict) or 'index' not in cache:
    raise ValueError(
      'generate: slots need a model whose cache is a dict with the slot that '
      'comes next under "index", as those of meta_rl.models have; leave slots '
      'out for this one.'
    )


def in_slots(
  model: Model,
  params: Params,
  prompts: Array,
  prompt_mask: Array,
  make_emit: Callable,
  *,
  slots: int,
  max_new_tokens: int,
  pad_id: int,
  group_size: int,
  check_every: int,
  keep_cache: bool,
  feed_last: bool,
) -> tuple[dict[str, Array], Array, Array, TraceCache | None]:
  """Returns what `decode.all_at_once` returns, with S traces at a time.

  Args:
    model, params, prompts, prompt_mask: as in `rollout.generate`.
    make_emit: `trace i32[S] -> emit`, `decode.emit` for the rows of these
      traces.
    slots: S <= B.
    max_new_tokens, pad_id, group_size, check_every: as there.
    keep_cache, feed_last: as in `decode.all_at_once`.
  """
  total, fixed = len(prompts) * group_size, prompts.shape[1] - 1
  # A row that is done goes on, void, to the end of its block: it must not come
  # round to its own first column.
  ring = max_new_tokens + max(check_every - 1, 1)
  before = _prefill(model, params, prompts[:, :-1], prompt_mask[:, :-1])
  last = prompts[:, -1].astype(jnp.int32)
  position = positions_of(prompt_mask)[:, -1]
  cache = model.init_cache(slots, fixed + ring)
  state = decode.initial(
    cache, jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.int32), ring
  )
  ones = jnp.ones(slots, bool)
  state = dataclasses.replace(
    state, begun=jnp.zeros(slots, jnp.int32), done=ones
  )
  length = fixed + 1 + max_new_tokens
  carry = Slots(
    state=state,
    trace=jnp.full(slots, -1, jnp.int32),
    full=~ones,
    next=jnp.zeros((), jnp.int32),
    out={
      name: jnp.full(
        (total, max_new_tokens), pad_id if name == 'tokens' else 0, x.dtype
      )
      for name, x in state.out.items()
    },
    truncated=jnp.zeros(total, bool),
    forced=jnp.zeros(total, bool),
    kept=model.init_cache(total, length) if keep_cache else None,
  )
  turn = lambda c: _hand_on(
    model,
    c,
    before,
    last,
    position,
    group_size=group_size,
    total=total,
    fixed=fixed,
    pad_id=pad_id,
  )

  def advance(c):
    emit = make_emit(jnp.maximum(c.trace, 0))
    one = lambda _, carry: _step(
      model, params, *carry, emit, fixed=fixed, most=max_new_tokens
    )
    state, full = jax.lax.fori_loop(0, check_every, one, (c.state, c.full))
    return turn(dataclasses.replace(c, state=state, full=full))

  carry = turn(carry)
  # In as many blocks as the longest trace needs, each row is done with one: so
  # S more traces have ended, whichever took how long.
  most_blocks = -(-total // slots) * -(-max_new_tokens // check_every)
  sizes = [slots]
  while sizes[-1] // 2 >= _FEWEST and len(sizes) <= _HALVINGS:
    sizes.append(sizes[-1] // 2)
  for size, less in zip(sizes, [*sizes[1:], 0]):
    if size < slots:
      carry = _fewer(model, carry, size)
    goes_on = lambda c, less=less: (
      (c.next < total) | ((c.trace >= 0).sum() > less)
    )

    def one_more(carry, goes_on=goes_on):
      nth, _, c = carry
      c = advance(c)
      return nth + 1, goes_on(c), c

    # A plan takes the largest constant here for how often a loop runs, and one
    # without for once (meta_rl/aot/hlo.py). That all blocks are of S rows is
    # the worst case: the blocks of fewer rows have no bound of their own.
    more = lambda carry: carry[1]
    if size == slots:
      more = lambda carry: carry[1] & (carry[0] < most_blocks)
    first = jnp.zeros((), jnp.int32), goes_on(carry), carry
    _, _, carry = jax.lax.while_loop(more, one_more, first)
  found = carry.out, carry.truncated, carry.forced
  if not keep_cache:
    return *found, None
  used = jnp.asarray(length - 1, jnp.int32)
  cache = carry.kept | {'index': used}
  if feed_last:
    fork = lambda x: jnp.repeat(x, group_size, axis=0)
    ended = dataclasses.replace(
      carry.state,
      cache=cache,
      last=carry.out['tokens'][:, -1],
      position=fork(position) + max_new_tokens,
      done=~carry.truncated,
    )
    cache, used = decode.feed(model, params, ended)[1], used + 1
  return *found, TraceCache(cache, used)


def _prefill(model, params, tokens, mask) -> Cache:
  """Returns the cache of the prompts but for their last tokens."""
  cache = model.init_cache(*tokens.shape)
  if not tokens.shape[1]:
    return cache
  fn = model.features_fn or model.apply_fn
  return fn(params, tokens, positions_of(mask), cache)[1]


def _step(model, params, s: decode.State, full, emit, *, fixed, most):
  """Returns the state with one more token in each row, and who is full."""
  rows, ring = s.out['tokens'].shape
  cache = s.cache | {'index': fixed + s.step % ring}
  s = dataclasses.replace(s, cache=cache)
  mask = jnp.ones((rows, 1, fixed + ring), bool)
  logits, cache = decode.feed(model, params, s, mask)
  s = emit(dataclasses.replace(s, cache=cache), logits[:, 0])
  now = (s.step - s.begun >= most) & ~s.done
  return dataclasses.replace(s, done=s.done | now), full | now


def _hand_on(
  model, c: Slots, before, last, position, *, group_size, total, fixed, pad_id
) -> Slots:
  """Returns the slots with traces that have ended put away, and new ones."""
  s = c.state
  rows = jnp.arange(len(c.trace), dtype=jnp.int32)
  free = s.done & ((c.trace >= 0) | (c.next < total))
  rank = jnp.cumsum(free, dtype=jnp.int32) - 1
  waiting = c.next + rank
  trace = jnp.where(free, jnp.where(waiting < total, waiting, -1), c.trace)
  prompt = jnp.maximum(trace, 0) // group_size
  cut = dict(pad_id=pad_id, fixed=fixed, model=model)

  def one(i, carry):
    out, ended, kept, cache = carry
    row = jnp.max(jnp.where(free & (rank == i), rows, -1))
    # A row that had no trace has nothing to put away: it writes over the
    # columns of the trace that it gets, which come later.
    to = jnp.where(c.trace[row] >= 0, c.trace[row], jnp.maximum(trace[row], 0))
    out, ended, kept = _put_away(c, (out, ended, kept), cache, row, to, **cut)
    cache = caches.put_row(model, cache, row, before, prompt[row])
    return out, ended, kept, cache

  carry = c.out, (c.truncated, c.forced), c.kept, s.cache
  carry = jax.lax.fori_loop(0, free.sum(), one, carry)
  out, (truncated, forced), kept, cache = carry
  new = lambda fresh, old: jnp.where(free, fresh, old)
  state = dataclasses.replace(
    s,
    cache=cache,
    last=new(last[prompt], s.last),
    position=new(position[prompt], s.position),
    thinking=free | s.thinking,
    thoughts=new(0, s.thoughts),
    to_force=new(-1, s.to_force),
    to_wait=new(-1, s.to_wait),
    stop_state=new(0, s.stop_state),
    forced=~free & s.forced,
    done=new(trace < 0, s.done),
    begun=new(s.step, s.begun),
  )
  return Slots(
    state=state,
    trace=trace,
    full=~free & c.full,
    next=jnp.minimum(c.next + free.sum(dtype=jnp.int32), total),
    out=out,
    truncated=truncated,
    forced=forced,
    kept=kept,
  )


def _put_away(c: Slots, carry, cache, row, to, *, model, fixed, pad_id):
  """Returns what is recorded of traces, with that of a row as trace `to`."""
  out, (truncated, forced), kept = carry
  s = c.state
  ring, most = s.out['tokens'].shape[1], out['tokens'].shape[1]
  begin = s.begun[row] % ring
  written = jnp.arange(most)[None] < s.step - s.begun[row]
  put = jax.lax.dynamic_update_slice_in_dim

  def unroll(name, x):
    own = jax.lax.dynamic_slice_in_dim(x, row, 1, 0)
    twice = jnp.concatenate([own, own], axis=1)
    own = jax.lax.dynamic_slice_in_dim(twice, begin, most, 1)
    empty = pad_id if name == 'tokens' else 0
    return put(out[name], jnp.where(written, own, empty).astype(x.dtype), to, 0)

  out = {name: unroll(name, x) for name, x in s.out.items()}
  truncated = put(truncated, c.full[row][None], to, 0)
  forced = put(forced, s.forced[row][None], to, 0)
  if kept is not None:
    kept = caches.put_unrolled(
      model, kept, to, cache, row, fixed=fixed, begin=begin
    )
  return out, (truncated, forced), kept


def _fewer(model, c: Slots, size: int) -> Slots:
  """Returns the slots with `size` rows, among them all that have a trace."""
  rows = jnp.argsort(c.trace < 0, stable=True)[:size]
  s = c.state
  own = {
    f.name: jax.tree.map(lambda x: x[rows], getattr(s, f.name))
    for f in dataclasses.fields(s)
    if f.name not in ('step', 'cache')
  }
  cache = caches.take(model, s.cache, rows)
  state = dataclasses.replace(s, cache=cache, **own)
  return dataclasses.replace(
    c, state=state, trace=c.trace[rows], full=c.full[rows]
  )
