"""The meta-prover: the chance J_j of answering right if thinking stopped now.

At boundary j of a trace the prover stops thinking (the stop tokens are forced)
and answers from the prefix c_j. Its success probability J_j is found in two
ways, both from the trace's own KV cache, so that no prefix is computed again:

  exact    J_j = sum_s mu(a_s | c_j): every accepted answer a_s is scored by
           teacher forcing. No sampling noise; a lower bound where answers
           beyond the listed ones would be accepted too.
  sampled  J_j = mean over M branches of verify(answer): unbiased, variance
           J (1 - J) / M.

(MRT: Qu et al. 2025, arXiv 2503.07572, section 6; the exact form is ours.)

Axes: B traces, T tokens, K episodes, S accepted answers, A answer tokens, m
stop tokens, M branches, L cache slots.

How probes share a trace's cache: the probes of one trace stand side by side in
the query axis, each in slots of its own behind the trace, and a mask lets each
see the trace up to its boundary and itself:

    slots    z0 z1 z2 z3 | s a b | s a b
    probe 1   1  1  0  0 | 1 1 1 | 0 0 0     (boundary at z1, last token)
    probe 2   1  1  1  1 | 0 0 0 | 1 1 1     (boundary at z3)
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import sampling
from meta_rl.scoring import log_softmax_at, positions_of
from meta_rl.types import Array, Model, Params, TraceCache


def exact(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  answers: Array,
  answer_mask: Array,
  *,
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  cache: TraceCache | None = None,
  block_rows: int = 16,
  block_pairs: int = 16,
) -> Array:
  """Returns J f32[B,K+1]: the probability of the accepted answers, summed.

  J_j = sum_s prod_i mu(a_s,i | c_j, stop, a_s,<i)

  Only the (boundary, answer) pairs that exist are computed. The pairs of a
  trace are packed to the front, traces are sorted by how many they have, and
  blocks of `block_rows` traces x `block_pairs` pairs are run until the block's
  longest trace is done.

  Args:
    model: the network.
    params: the prover's parameters.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding. The prefix of boundary j is
      tokens[:, :ends[:, j] + 1].
    ends: i32[B,K+1], boundaries; past the last one it repeats, and so does J.
    answers: i32[B,S,A], distinct accepted answers, each ending in EOS, so that
      J <= 1.
    answer_mask: bool[B,S,A], True on an answer and its EOS; an all-False row
      adds 0.
    stop_ids: m tokens, forced after the prefix and not scored.
    temperature: > 0, at which the prover answers.
    cache: the traces' KV cache, as `generate(return_cache=True)` gives it;
      None: the traces are prefilled once here.
    block_rows, block_pairs: size of a block; they change speed and memory only.

  Raises:
    ValueError: shapes or dtypes.
  """
  tokens, token_mask, ends, answers, answer_mask = map(
    jnp.asarray, (tokens, token_mask, ends, answers, answer_mask)
  )
  _check(tokens, token_mask, ends, stop_ids)
  _check_answers(tokens, answers, answer_mask)
  if not temperature > 0:
    raise ValueError(f'prover: temperature={temperature}, must be > 0.')
  rows, width = ends.shape
  num_answers, length = answers.shape[1:]
  stop = jnp.asarray(tuple(stop_ids), jnp.int32)
  query = len(stop) + length - 1  # the last answer token is predicted only
  block_rows = min(block_rows, rows)
  if cache is None:
    cache = _prefill(model, params, tokens, token_mask)
  trace = caches.grow(model, cache.cache, block_pairs * query)
  slots = tokens.shape[1] + block_pairs * query
  before = jnp.cumsum(token_mask, axis=1)
  real = _is_boundary(ends)[:, :, None] & answer_mask.any(-1)[:, None, :]
  real = real.reshape(rows, width * num_answers)
  order, count, by_count = _pack(real, block_pairs)

  def probe(own, row, chunk):
    """Returns the probabilities f32[R,C] of one chunk of a block's pairs."""
    first = chunk * block_pairs
    pair = jax.lax.dynamic_slice_in_dim(order[row], first, block_pairs, 1)
    wanted = first + jnp.arange(block_pairs) < count[row][:, None]
    boundary, choice = pair // num_answers, pair % num_answers
    end = jnp.take_along_axis(ends[row], boundary, 1)
    answer = jnp.take_along_axis(answers[row], choice[..., None], 1)
    scored = jnp.take_along_axis(answer_mask[row], choice[..., None], 1)
    scored &= wanted[..., None]
    stops = jnp.broadcast_to(stop, (*pair.shape, len(stop)))
    given = jnp.concatenate([stops, answer[..., :-1]], -1)
    valid = jnp.concatenate(
      [jnp.broadcast_to(wanted[..., None], stops.shape), scored[..., 1:]], -1
    )
    place = _tokens_until(before[row], end)[..., None] + jnp.arange(query)
    flat = lambda x: x.reshape(block_rows, block_pairs * query)
    features, _ = _features(
      model,
      params,
      flat(given),
      flat(jnp.where(valid, place, -1)),
      own,
      probe_mask(end, query, cache.used, slots),
    )
    features = features.reshape(*pair.shape, query, -1)[:, :, len(stop) - 1 :]
    logits = _unembed(model, params, features) / temperature
    log_probs, _ = log_softmax_at(logits, answer)
    total = jnp.where(scored, log_probs, 0.0).sum(-1)
    return jnp.where(wanted, jnp.exp(total), 0.0)

  def run_block(index, found):
    start = jnp.minimum(index * block_rows, rows - block_rows)
    row = jax.lax.dynamic_slice_in_dim(by_count, start, block_rows)
    own = caches.take(model, trace, row)
    most = count[row].max()

    def run_chunk(carry):
      chunk, values = carry
      at = (0, chunk * block_pairs)
      new = probe(own, row, chunk)
      return chunk + 1, jax.lax.dynamic_update_slice(values, new, at)

    values = jnp.zeros((block_rows, order.shape[1]), jnp.float32)
    more = lambda carry: carry[0] * block_pairs < most
    _, values = jax.lax.while_loop(more, run_chunk, (0, values))
    return found.at[row].set(values)

  found = jnp.zeros(order.shape, jnp.float32)
  found = jax.lax.fori_loop(0, -(-rows // block_rows), run_block, found)
  unpacked = jnp.take_along_axis(found, jnp.argsort(order, axis=1), axis=1)
  success = unpacked[:, : real.shape[1]].reshape(rows, width, num_answers)
  return repeat_past_count(success.sum(-1), ends)


def _pack(real: Array, block_pairs: int) -> tuple[Array, Array, Array]:
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


def sampled(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  verify_fn: Callable[[Array, Array], Array],
  key: Array,
  *,
  num_branches: int,
  max_answer_len: int,
  stop_ids: Sequence[int],
  eos_id: int,
  temperature: float = 1.0,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 16,
) -> Array:
  """Returns J f32[B,K+1]: the share of `num_branches` sampled answers right.

  J_j = (1/M) sum_m verify(a_m), a_m ~ mu(. | c_j); unbiased, with variance
  J_j (1 - J_j) / M.

  Args:
    verify_fn: `(answers i32[B,K+1,M,A], mask bool[B,K+1,M,A]) -> f32[B,K+1,M]`,
      traceable; rewards in [0, 1].
    key: PRNG key, consumed here.
    Others: as in `sample_answers`.
  """
  found, mask = sample_answers(
    model,
    params,
    tokens,
    token_mask,
    ends,
    key,
    num_branches=num_branches,
    max_answer_len=max_answer_len,
    stop_ids=stop_ids,
    eos_id=eos_id,
    temperature=temperature,
    cache=cache,
    row_offset=row_offset,
    block_rows=block_rows,
  )
  rewards = verify_fn(found, mask)
  if rewards.shape != found.shape[:3]:
    raise ValueError(
      f'verify_fn returned shape {rewards.shape}, expected [B,K+1,M] = '
      f'{found.shape[:3]}.'
    )
  return repeat_past_count(rewards.astype(jnp.float32).mean(-1), ends)


def sample_answers(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  key: Array,
  *,
  num_branches: int,
  max_answer_len: int,
  stop_ids: Sequence[int],
  eos_id: int,
  temperature: float = 1.0,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 16,
) -> tuple[Array, Array]:
  """Returns forced answers i32[B,K+1,M,A] and their mask bool[B,K+1,M,A].

  All branches of a trace decode side by side in the query axis and read the
  trace's keys in place; nothing is copied. Branch n of row b at answer token t
  draws from fold_in(fold_in(fold_in(key, row_offset + b), n), t), where
  n = j * M + m.

  Args:
    model, params: the prover.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding.
    ends: i32[B,K+1], boundaries; past the last real one nothing is sampled and
      the mask is False.
    key: PRNG key, consumed here.
    num_branches: M >= 1 answers a boundary.
    max_answer_len: A >= 1, tokens, EOS included.
    stop_ids: m tokens forced after the prefix.
    eos_id: ends an answer and belongs to the mask.
    temperature: >= 0.
    cache: KV cache that holds the traces; None: prefilled once here.
    row_offset: global index of the first trace.
    block_rows: traces at a time; bounds memory, changes no number.
  """
  tokens, token_mask, ends = map(jnp.asarray, (tokens, token_mask, ends))
  _check(tokens, token_mask, ends, stop_ids)
  for name, value in (
    ('num_branches', num_branches),
    ('max_answer_len', max_answer_len),
  ):
    if value < 1:
      raise ValueError(f'prover: {name}={value}, must be at least 1.')
  rows, width = ends.shape
  branches = width * num_branches
  stop = tuple(stop_ids)
  block_rows = min(block_rows, rows)
  if cache is None:
    cache = _prefill(model, params, tokens, token_mask)
  room = branches * (len(stop) + max_answer_len - 1)
  trace = caches.grow(model, cache.cache, room)
  before = jnp.cumsum(token_mask, axis=1)
  real = jnp.repeat(_is_boundary(ends), num_branches, axis=1)
  decode = functools.partial(
    _decode_branches,
    model,
    params,
    stop=stop,
    used=cache.used,
    slots=tokens.shape[1] + room,
    max_answer_len=max_answer_len,
    eos_id=eos_id,
    temperature=temperature,
  )

  def run_block(index, found):
    start = jnp.minimum(index * block_rows, rows - block_rows)
    row = start + jnp.arange(block_rows)
    end = jnp.repeat(ends[row], num_branches, axis=1)
    new = decode(
      caches.take(model, trace, row),
      end=end,
      start=_tokens_until(before[row], end),
      real=real[row],
      keys=jax.vmap(lambda r: _branch_keys(key, r, branches))(row_offset + row),
    )
    write = lambda x, y: jax.lax.dynamic_update_slice(x, y, (start, 0, 0))
    return jax.tree.map(write, found, new)

  shape = (rows, branches, max_answer_len)
  found = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
  found = jax.lax.fori_loop(0, -(-rows // block_rows), run_block, found)
  split = lambda x: x.reshape(rows, width, num_branches, max_answer_len)
  return jax.tree.map(split, found)


def _branch_keys(key, row, branches):
  """Returns key[N]: fold_in(fold_in(key, row), branch)."""
  row_key = jax.random.fold_in(key, row)
  return jax.vmap(lambda n: jax.random.fold_in(row_key, n))(
    jnp.arange(branches)
  )


def _decode_branches(
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
  temperature,
):
  """Returns answers i32[R,N,A] and mask of N branches that share R traces.

  The m stop tokens of branch n take the slots used + n * m ..., and its answer
  token t the slot used + N * m + t * N + n.
  """
  rows, branches = end.shape
  at = lambda t: jnp.where(real, start + t, -1)
  stops = jnp.tile(jnp.asarray(stop, jnp.int32), (rows, branches))
  places = jnp.stack([at(i) for i in range(len(stop))], -1)
  features, cache = _features(
    model,
    params,
    stops,
    places.reshape(rows, -1),
    cache,
    probe_mask(end, len(stop), used, slots),
  )
  features = features.reshape(rows, branches, len(stop), -1)[:, :, -1]

  def draw(t, features):
    logits = _unembed(model, params, features)
    logits = sampling.truncate(logits, temperature=temperature)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    tokens = jax.vmap(jax.vmap(jax.random.categorical))(fold(keys, t), logits)
    return tokens.astype(jnp.int32)

  slot = jnp.arange(slots) - used
  behind = slot - branches * len(stop)
  branch = jnp.arange(branches)[:, None]
  is_stop = (behind < 0) & (slot // len(stop) == branch)
  is_answer = (behind >= 0) & (behind % branches == branch)
  seen = (jnp.arange(slots) <= end[..., None]) | is_stop

  def step(t, carry):
    cache, token, done, answers, mask = carry
    features, cache = _features(
      model,
      params,
      token,
      jnp.where(done, -1, at(len(stop) + t - 1)),
      cache,
      seen | (is_answer & (behind // branches < t)),
    )
    token = draw(t, features)
    answers = answers.at[:, :, t].set(jnp.where(done, 0, token))
    mask = mask.at[:, :, t].set(~done)
    return cache, token, done | (token == eos_id), answers, mask

  token = draw(0, features)
  answers = jnp.zeros((rows, branches, max_answer_len), jnp.int32)
  answers = answers.at[:, :, 0].set(jnp.where(real, token, 0))
  mask = jnp.zeros(answers.shape, bool).at[:, :, 0].set(real)
  carry = cache, token, ~real | (token == eos_id), answers, mask
  carry = jax.lax.fori_loop(1, max_answer_len, step, carry)
  return carry[-2:]


def repeat_past_count(success: Array, ends: Array) -> Array:
  """Returns success f32[B,K+1], each boundary that repeats with its value."""
  own = jnp.where(_is_boundary(ends), jnp.arange(ends.shape[1]), 0)
  index = jax.lax.cummax(own, axis=1)
  return jnp.take_along_axis(success, index, axis=1)


def _is_boundary(ends):
  """Returns bool[B,K+1]: the first, and every one beyond the one before."""
  grows = ends[:, 1:] > ends[:, :-1]
  return jnp.pad(grows, ((0, 0), (1, 0)), constant_values=True)


def _tokens_until(before, end):
  """Returns i32[R,C], tokens up to and including column `end` (-1: none)."""
  counted = jnp.take_along_axis(before, jnp.maximum(end, 0), axis=1)
  return jnp.where(end < 0, 0, counted)


def _prefill(model, params, tokens, token_mask) -> TraceCache:
  """Returns the KV cache of whole traces, one forward pass."""
  rows, length = tokens.shape
  cache = model.init_cache(rows, length)
  positions = positions_of(token_mask)
  _, cache = _features(model, params, tokens, positions, cache, None)
  return TraceCache(cache, jnp.asarray(length, jnp.int32))


def _features(model, params, tokens, positions, cache, mask):
  """Returns (features, cache); the logits where a model has no features."""
  forward = model.features_fn or model.apply_fn
  return forward(params, tokens, positions, cache, mask)


def _unembed(model, params, features):
  if model.features_fn is None:
    return features
  return model.unembed_fn(params, features)


def _check(tokens, token_mask, ends, stop_ids):
  if tokens.ndim != 2 or token_mask.shape != tokens.shape:
    raise ValueError(
      f'prover: tokens {tokens.shape} and token_mask {token_mask.shape} must '
      'have one shape [B,T].'
    )
  if ends.ndim != 2 or ends.shape[0] != tokens.shape[0]:
    raise ValueError(
      f'prover: ends has shape {ends.shape}, expected [B,K+1] with B = '
      f'{tokens.shape[0]}.'
    )
  for name, x, kind in (
    ('tokens', tokens, jnp.integer),
    ('ends', ends, jnp.integer),
    ('token_mask', token_mask, jnp.bool_),
  ):
    if not jnp.issubdtype(x.dtype, kind):
      raise ValueError(
        f'prover: {name} is {x.dtype}, expected {kind.__name__}.'
      )
  if not len(stop_ids):
    raise ValueError('prover: stop_ids is empty; give at least one token.')


def _check_answers(tokens, answers, answer_mask):
  if answers.ndim != 3 or answers.shape[0] != tokens.shape[0]:
    raise ValueError(
      f'prover: answers has shape {answers.shape}, expected [B,S,A] with B = '
      f'{tokens.shape[0]}.'
    )
  if answer_mask.shape != answers.shape or answer_mask.dtype != jnp.bool_:
    raise ValueError(
      f'prover: answer_mask is {answer_mask.dtype}{answer_mask.shape}, '
      f'expected bool{answers.shape}.'
    )
