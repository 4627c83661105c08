"""Probes: short continuations of many prefixes of one trace, on one KV cache.

The probes of one trace stand side by side in the query axis, each in slots of
its own behind the trace, and a mask lets each see the trace up to its boundary
and itself:

    slots    z0 z1 z2 z3 | s a b | s a b
    probe 1   1  1  0  0 | 1 1 1 | 0 0 0     (boundary at z1, last token)
    probe 2   1  1  1  1 | 0 0 0 | 1 1 1     (boundary at z3)

What the provers share (meta_rl/prover.py and prover_gradient.py).

Axes: B traces, T tokens, K episodes, R traces of a block, C probes, L cache
slots.
"""

import jax
import jax.numpy as jnp

from meta_rl import checks
from meta_rl.scoring import log_softmax_at, positions_of
from meta_rl.types import Array, TraceCache


def pack(real: Array, block_pairs: int) -> tuple[Array, Array, Array]:
  """Returns how to visit the pairs that exist, bool[B,N], and no others.

      real   0 1 0 1      order  1 3 0 2     count  2
             1 0 0 0             0 1 2 3            1

  order i32[B,N'] lists each row's real pairs first (N' is N rounded up to whole
  chunks), count i32[B] says how many are real, and the third value lists the
  rows, fullest first.
  """
  padded = jnp.pad(real, ((0, 0), (0, -real.shape[1] % block_pairs)))
  count = real.sum(1)
  return jnp.argsort(~padded, axis=1, stable=True), count, jnp.argsort(-count)


def probe_mask(end: Array, query: int, used: Array, slots: int) -> Array:
  """Returns bool[R,C*query,slots]: the trace up to `end`, and one's own past.

  Probe c of a row owns the slots used + c * query + (0 ... query - 1).

  Args:
    end: i32[R,C], last column of each probe's prefix, -1 for none.
    query: tokens of a probe.
    used: i32[], slots that hold the trace.
    slots: length of the cache.
  """
  slot = jnp.arange(slots)
  mine = (slot - used) // query == jnp.arange(end.shape[1])[:, None]
  past = (slot - used) % query <= jnp.arange(query)[:, None]
  own = mine[:, None] & past  # floor division keeps the trace's slots out
  mask = (slot <= end[..., None])[:, :, None] | own
  return mask.reshape(end.shape[0], -1, slots)


def forced_answer(stop, answer, scored, wanted, start) -> tuple[Array, Array]:
  """Returns the tokens of probes i32[R,C,m+A-1] and their positions, -1: none.

  A probe is fed the m stop tokens and its answer but for the last token, which
  is predicted only.

  Args:
    stop: i32[m], stop tokens.
    answer: i32[R,C,A].
    scored: bool[R,C,A], True on an answer and its EOS.
    wanted: bool[R,C], False for probes that fill a chunk up.
    start: i32[R,C], position of the first stop token.
  """
  stops = jnp.broadcast_to(stop, (*wanted.shape, len(stop)))
  given = jnp.concatenate([stops, answer[..., :-1]], -1)
  valid = jnp.concatenate(
    [jnp.broadcast_to(wanted[..., None], stops.shape), scored[..., 1:]], -1
  )
  place = start[..., None] + jnp.arange(given.shape[-1])
  return given, jnp.where(valid, place, -1)


def branch_keys(key: Array, row: Array, branches: int) -> Array:
  """Returns key[N]: fold_in(fold_in(key, row), branch)."""
  row_key = jax.random.fold_in(key, row)
  return jax.vmap(lambda n: jax.random.fold_in(row_key, n))(
    jnp.arange(branches)
  )


def decode_branches(
  model,
  params,
  cache,
  *,
  end,
  start,
  real,
  keys,
  stop,
  used,
  slots,
  max_answer_len,
  eos_id,
  truncate,
  stop_table=None,
  scored=None,
):
  """Returns answers i32[R,N,A], mask, log-probs, done bool[R,N] of N branches.

  The m stop tokens of branch n take the slots used + n * m ..., and its answer
  token t the slot used + N * m + t * N + n. The log-probs are those under what
  `truncate` makes of the logits, which tokens are drawn from, or under what
  `scored` makes of them. Not done: the answer was cut at A tokens.
  """
  rows, branches = end.shape
  at = lambda t: jnp.where(real, start + t, -1)
  stops = jnp.tile(jnp.asarray(stop, jnp.int32), (rows, branches))
  places = jnp.stack([at(i) for i in range(len(stop))], -1)
  features, cache = features_of(
    model,
    params,
    stops,
    places.reshape(rows, -1),
    cache,
    probe_mask(end, len(stop), used, slots),
  )
  features = features.reshape(rows, branches, len(stop), -1)[:, :, -1]

  def draw(t, features):
    logits = unembed(model, params, features)
    for name, ids in (('stop_ids', stop), ('eos_id', eos_id)):
      checks.check_vocabulary(f'prover: {name}', ids, logits.shape[-1])
    support = truncate(logits)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    tokens = jax.vmap(jax.vmap(jax.random.categorical))(fold(keys, t), support)
    of = support if scored is None else scored(logits)
    return tokens.astype(jnp.int32), log_softmax_at(of, tokens)[0]

  slot = jnp.arange(slots) - used
  behind = slot - branches * len(stop)
  branch = jnp.arange(branches)[:, None]
  is_stop = (behind < 0) & (slot // len(stop) == branch)
  is_answer = (behind >= 0) & (behind % branches == branch)
  seen = (jnp.arange(slots) <= end[..., None]) | is_stop

  def step(t, carry):
    cache, token, done, stop_state, answers, mask, log_probs = carry
    features, cache = features_of(
      model,
      params,
      token,
      jnp.where(done, -1, at(len(stop) + t - 1)),
      cache,
      seen | (is_answer & (behind // branches < t)),
    )
    token, log_prob = draw(t, features)
    out = write(t, ~done, token, log_prob, answers, mask, log_probs)
    done, stop_state = ended(token, done, stop_state)
    return cache, token, done, stop_state, *out

  def ended(token, done, stop_state):
    done |= token == eos_id
    if stop_table is not None:
      stop_state = stop_table.step(stop_state, token)
      done |= stop_state == stop_table.complete
    return done, stop_state

  def write(t, alive, token, log_prob, answers, mask, log_probs):
    return (
      answers.at[:, :, t].set(jnp.where(alive, token, 0)),
      mask.at[:, :, t].set(alive),
      log_probs.at[:, :, t].set(jnp.where(alive, log_prob, 0.0)),
    )

  shape = (rows, branches, max_answer_len)
  empty = (jnp.zeros(shape, t) for t in (jnp.int32, bool, jnp.float32))
  token, log_prob = draw(0, features)
  out = write(0, real, token, log_prob, *empty)
  carry = cache, token, *ended(token, ~real, jnp.zeros_like(token)), *out
  carry = jax.lax.fori_loop(1, max_answer_len, step, carry)
  return *carry[-3:], carry[2]


def repeat_past_count(success: Array, ends: Array) -> Array:
  """Returns success f32[B,K+1], each boundary that repeats with its value."""
  own = jnp.where(is_boundary(ends), jnp.arange(ends.shape[1]), 0)
  index = jax.lax.cummax(own, axis=1)
  return jnp.take_along_axis(success, index, axis=1)


def is_boundary(ends: Array) -> Array:
  """Returns bool[B,K+1]: the first, and every one beyond the one before."""
  grows = ends[:, 1:] > ends[:, :-1]
  return jnp.pad(grows, ((0, 0), (1, 0)), constant_values=True)


def same_first(head, tokens, token_mask, ends, answers, answer_mask) -> Array:
  """Returns bool[B], whether the first boundary is that of another trace.

  head: i32[B], which trace; its own first boundary is no other's.
  """
  end = ends[:, 0]
  inside = jnp.arange(tokens.shape[1]) <= end[:, None]
  same = lambda x: x == x[head]
  prefix = same(token_mask) & (same(tokens) | ~token_mask)
  listed = same(answer_mask) & (same(answers) | ~answer_mask)
  found = (prefix | ~inside).all(1) & listed.all((1, 2)) & same(end)
  return found & (head != jnp.arange(len(head)))


def tokens_until(before: Array, end: Array) -> Array:
  """Returns i32[R,C], tokens up to and including column `end` (-1: none)."""
  counted = jnp.take_along_axis(before, jnp.maximum(end, 0), axis=1)
  return jnp.where(end < 0, 0, counted)


def prefill(model, params, tokens, token_mask) -> TraceCache:
  """Returns the KV cache of whole traces, one forward pass."""
  rows, length = tokens.shape
  cache = model.init_cache(rows, length)
  positions = positions_of(token_mask)
  _, cache = features_of(model, params, tokens, positions, cache, None)
  return TraceCache(cache, jnp.asarray(length, jnp.int32))


def features_of(model, params, tokens, positions, cache, mask):
  """Returns (features, cache); the logits where a model has no features."""
  forward = model.features_fn or model.apply_fn
  return forward(params, tokens, positions, cache, mask)


def unembed(model, params, features):
  """Returns the logits of what `features_of` gave."""
  if model.features_fn is None:
    return features
  return model.unembed_fn(params, features)


def traces_of(tokens, token_mask, ends, stop_ids):
  """Returns tokens i32[B,T], their mask and ends i32[B,K+1], all checked."""
  dims = {}
  tokens = checks.as_array('prover: tokens', tokens, 'int[B,T]', dims)
  checks.check_filled('prover: tokens', tokens)
  token_mask = checks.as_array(
    'prover: token_mask', token_mask, 'bool[B,T]', dims
  )
  ends = checks.as_array('prover: ends', ends, 'int[B,K+1]', dims)
  checks.check_ids('prover: stop_ids', stop_ids)
  return tokens, token_mask, ends


def listed_of(model, tokens, token_mask, ends, answers, answer_mask, stop_ids):
  """Returns what `traces_of` does, accepted answers i32[B,S,A] and their mask.

  All checked, and the model too.
  """
  checks.check_model(model)
  traces = traces_of(tokens, token_mask, ends, stop_ids)
  dims = {'B': len(traces[0])}
  answers = checks.as_array('prover: answers', answers, 'int[B,S,A]', dims)
  checks.check_filled('prover: answers', answers)
  answer_mask = checks.as_array(
    'prover: answer_mask', answer_mask, 'bool[B,S,A]', dims
  )
  return *traces, answers, answer_mask


def cache_of(cache, model, params, tokens, token_mask) -> TraceCache:
  """Returns the KV cache of the traces, checked; prefilled where it is None."""
  if cache is None:
    return prefill(model, params, tokens, token_mask)
  if not isinstance(cache, TraceCache):
    raise ValueError(
      'prover: cache must be a TraceCache, as generate(return_cache=True) '
      f'gives it, or None, got {checks.show(cache)}'
    )
  wanted = jax.eval_shape(lambda: model.init_cache(*tokens.shape))
  shapes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]
  if shapes(cache.cache) != shapes(wanted):
    raise ValueError(
      'prover: cache must hold these traces of this model, '
      f'{list(tokens.shape)}, got shapes {checks.show(shapes(cache.cache))}'
    )
  return cache


def rewards_of(verify_fn, answers, mask) -> Array:
  """Returns f32[B,K+1,M], what a verifier says of answers, checked."""
  rewards = checks.to_array('what verify_fn returned', verify_fn(answers, mask))
  if rewards.shape != answers.shape[:3]:
    raise ValueError(
      f'verify_fn returned shape {rewards.shape}, expected [B,K+1,M] = '
      f'{answers.shape[:3]}.'
    )
  return rewards.astype(jnp.float32)
