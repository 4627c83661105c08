"""From logits to a token, its log-probability and the keys that draw it.

One order everywhere, in sampling and scoring alike: temperature, then top-k,
then top-p on what is left. `truncate` gives the logits of exactly the
distribution that is sampled, so `token_log_probs(truncate(…), tokens)` are the
behavior log-probs; scoring the full softmax of truncated samples would make the
sampled and the trained policy differ.

Axes: B rows, V vocabulary.
"""

import math
import numbers

import jax
import jax.numpy as jnp

from meta_rl import checks, masked

Array = jax.Array

_TEMPERATURE = {'low': 0, 'below': math.inf}
_TOP_P = {'above': 0, 'high': 1}


def apply_temperature(logits: Array, temperature: float | Array) -> Array:
  """Returns logits / temperature; the greedy distribution at temperature 0.

  Greedy is 0 at the first of the largest logits and -inf elsewhere: sampling
  from it takes the argmax, whose log-probability under it is 0.

  Args:
    logits: f32[...,V].
    temperature: >= 0; a Python number costs one branch only, an array (scalar
      or broadcastable to logits) both.

  Returns:
    f32[...,V].

  Raises:
    ValueError: wrong shape or dtype, or a temperature that is none.

  Example:
    >>> from meta_rl import sampling
    >>> sampling.apply_temperature([[2.0, 0.0]], 2.0).tolist()
    [[1.0, 0.0]]
  """
  logits = _logits(logits)
  checks.check_spread('temperature', temperature, logits.shape, **_TEMPERATURE)
  if isinstance(temperature, numbers.Real):
    return logits / temperature if temperature else _greedy(logits)
  warm = temperature != 0
  return jnp.where(
    warm, logits / jnp.where(warm, temperature, 1), _greedy(logits)
  )


def top_k_mask(logits: Array, top_k: int) -> Array:
  """Returns True on the k largest logits; ties with the k-th are all kept.

  Args:
    logits: f32[...,V].
    top_k: at least 1, static; V or more keeps everything.

  Returns:
    bool[...,V].

  Raises:
    ValueError: wrong shape or dtype, or top_k < 1.

  Example:
    >>> from meta_rl import sampling
    >>> sampling.top_k_mask([[3.0, 1.0, 2.0]], 2).tolist()
    [[True, False, True]]
  """
  logits = _logits(logits)
  top_k = checks.check_count('top_k', top_k)
  if top_k >= logits.shape[-1]:
    return jnp.ones(logits.shape, bool)
  return logits >= jax.lax.top_k(logits, top_k)[0][..., -1:]


def top_p_mask(logits: Array, top_p: float | Array) -> Array:
  """Returns True on the smallest set of tokens with probability >= p.

  A token is kept if the tokens more likely than it hold less than p, so the
  likeliest one is always kept; ties with the last one kept are kept too, which
  makes the set independent of the order of the vocabulary.

  Args:
    logits: f32[...,V], -inf for tokens outside the support.
    top_p: in (0, 1].

  Returns:
    bool[...,V].

  Raises:
    ValueError: wrong shape or dtype, or top_p outside (0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import sampling
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> sampling.top_p_mask(logits, 0.6).tolist()
    [[True, True, False]]
  """
  logits = _logits(logits)
  checks.check_spread('top_p', top_p, logits.shape, **_TOP_P)
  probs = jax.nn.softmax(logits)
  ordered = -jnp.sort(-probs, axis=-1)
  kept = masked.exclusive_cumsum(ordered) < top_p
  kept = kept.at[..., 0].set(True)  # below 1e-38, p may be rounded to 0
  threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True)
  return probs >= threshold


def truncate(
  logits: Array,
  *,
  temperature: float | Array = 1.0,
  top_k: int | None = None,
  top_p: float | Array | None = None,
) -> Array:
  """Returns the logits of the distribution that is sampled.

  Args:
    logits: f32[...,V], as the model gives them.
    temperature: >= 0, 0 is greedy.
    top_k: None for all.
    top_p: None for all.

  Returns:
    f32[...,V], -inf outside the support; not normalised.

  Raises:
    ValueError: wrong dtype, or a number outside its range.

  Example:
    >>> from meta_rl import sampling
    >>> sampling.truncate([[3.0, 1.0, 2.0]], temperature=2.0, top_k=2).tolist()
    [[1.5, -inf, 1.0]]
  """
  logits = apply_temperature(logits, temperature)
  if top_k is not None:
    logits = jnp.where(top_k_mask(logits, top_k), logits, -jnp.inf)
  if top_p is not None:
    logits = jnp.where(top_p_mask(logits, top_p), logits, -jnp.inf)
  return logits


def row_keys(key: Array, rows: Array, step: int | Array) -> Array:
  """Returns one key a row: fold_in(fold_in(key, row), step).

  A row's key depends on its global index and the step alone, so its samples do
  not depend on sharding, slot, batch or process.

  Args:
    key: a PRNG key.
    rows: i32[B], global indices of the rows.
    step: i32[], index of the token, or i32[B] where rows are at others.

  Returns:
    key[B].

  Raises:
    ValueError: no key, wrong shape or dtype.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from meta_rl import sampling
    >>> key, fold_in = jax.random.key(0), jax.random.fold_in
    >>> found = sampling.row_keys(key, jnp.array([7]), 3)
    >>> bool(found[0] == fold_in(fold_in(key, 7), 3))
    True
  """
  checks.check_key('key', key)
  rows = checks.as_array('rows', rows, 'int[B]')
  step = jnp.broadcast_to(
    checks.check_counts('step', step, len(rows)), rows.shape
  )
  fold_in = jax.random.fold_in
  return jax.vmap(lambda row, t: fold_in(fold_in(key, row), t))(rows, step)


def sample(key_per_row: Array, logits: Array) -> Array:
  """Returns one token a row, drawn from softmax(logits) with the row's own key.

  Args:
    key_per_row: key[B], as from `row_keys`.
    logits: f32[B,V], as from `truncate`.

  Returns:
    i32[B].

  Raises:
    ValueError: wrong shape or dtype, or not one key a row.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from meta_rl import sampling
    >>> keys = sampling.row_keys(jax.random.key(0), jnp.arange(2), 0)
    >>> sampling.sample(keys, [[0.0, 9e9], [9e9, 0.0]]).tolist()
    [1, 0]
  """
  dims = {}
  logits = checks.as_array('logits', logits, 'float[B,V]', dims)
  checks.check_filled('logits', logits)
  shape = getattr(key_per_row, 'shape', ())
  if shape[:1] != logits.shape[:1] or not _are_keys(key_per_row):
    raise ValueError(
      f'key_per_row must hold one key for each of the B={dims["B"]} rows of '
      f'logits, got {checks.show(key_per_row)}: use row_keys'
    )
  return argmax(logits + _gumbel(key_per_row, logits))


def argmax(x: Array) -> Array:
  """Returns the index of the first largest element of each row.

  `jnp.argmax` reduces values and indices in pairs, which XLA does one element
  after the other on CPUs: in sampling it would take most of the time. These are
  two plain reductions.

  Args:
    x: f32[...,V]; of a row that holds NaN the last index is given.

  Returns:
    i32[...].

  Raises:
    ValueError: wrong shape or dtype.

  Example:
    >>> from meta_rl import sampling
    >>> sampling.argmax([[1.0, 3.0, 3.0]]).tolist()
    [1]
  """
  x = _logits(x)
  ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  last = x.shape[-1] - 1
  best = x == x.max(axis=-1, keepdims=True)
  if last >= 2**24:  # more than float32 can count
    return jnp.min(jnp.where(best, ids, last), axis=-1)
  # Of floats, the reduction that there are vectors for.
  back = jnp.max(jnp.where(best, last - ids, 0).astype(jnp.float32), axis=-1)
  return last - back.astype(jnp.int32)


def token_log_probs(logits: Array, tokens: Array) -> Array:
  """Returns log softmax(logits) at the tokens.

    log π(t) = logits[t] - logsumexp(logits)

  The gather comes first: [...,V] log-probabilities are never written out.

  Args:
    logits: f32[...,V].
    tokens: i32[...].

  Returns:
    f32[...], nats, <= 0; -inf outside the support.

  Raises:
    ValueError: wrong shape or dtype.

  Example:
    >>> import numpy as np
    >>> from meta_rl import sampling
    >>> found = sampling.token_log_probs([[0.0, 0.0]], [1])
    >>> print(np.asarray(found).round(4))  # log 1/2
    [-0.6931]
  """
  logits = _logits(logits)
  tokens = checks.as_array('tokens', tokens, 'int[...]')
  checks.check_shape('tokens', tokens, logits.shape[:-1])
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: Array) -> Array:
  """Returns the entropy of softmax(logits), tokens outside the support as 0.

    H = -Σ_v p_v·log p_v

  Args:
    logits: f32[...,V], -inf allowed, but not everywhere.

  Returns:
    f32[...], nats, in [0, log V].

  Raises:
    ValueError: wrong shape or dtype.

  Example:
    >>> import numpy as np
    >>> from meta_rl import sampling
    >>> print(np.asarray(sampling.entropy([[0.0, 0.0]])).round(4))  # log 2
    [0.6931]
  """
  logits = _logits(logits)
  log_probs = jax.nn.log_softmax(logits)
  inside = log_probs > -jnp.inf
  return -jnp.sum(
    jnp.exp(log_probs) * masked.select(inside, log_probs), axis=-1
  )


def check_truncation(
  prefix: str,
  temperature: float | Array,
  top_k: int | None,
  top_p: float | Array | None,
  *,
  greedy: bool = True,
) -> None:
  """Raises ValueError unless one temperature, top-k and top-p are of use.

  Args:
    prefix: of the names of the three.
    temperature: one number.
    top_k, top_p: as in `truncate`.
    greedy: whether the temperature may be 0.
  """
  bounds = _TEMPERATURE if greedy else {'above': 0, 'below': math.inf}
  checks.check_scalar(f'{prefix}temperature', temperature, **bounds)
  if top_k is not None:
    checks.check_count(f'{prefix}top_k', top_k)
  if top_p is not None:
    checks.check_scalar(f'{prefix}top_p', top_p, **_TOP_P)


def _logits(logits: Array) -> Array:
  """Returns f32[...,V], checked."""
  logits = checks.as_array('logits', logits, 'float[...,V]')
  if not logits.shape[-1]:
    checks.check_filled('logits', logits)
  return logits


def _are_keys(keys: Array) -> bool:
  typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) and keys.ndim == 1
  return typed or (keys.dtype == jnp.uint32 and keys.ndim == 2)


def _gumbel(keys: Array, logits: Array) -> Array:
  """Returns Gumbel noise, f32[B,V], bit for bit that of `jax.random.gumbel`.

  So tokens are those of `jax.random.categorical`. On CPUs jax's own threefry
  is a loop of five rounds over arrays of [B,V]; written out, all of it is one
  pass, which takes half of the time where the vocabulary is large.
  """
  shape = logits.shape
  known = (
    (str(jax.random.key_impl(keys)) == 'threefry2x32')
    and jax.config.jax_threefry_partitionable
    and not getattr(jax.config, 'jax_high_dynamic_range_gumbel', False)
    and logits.dtype == jnp.float32
  )
  if not known:
    draw = lambda key: jax.random.gumbel(key, shape[1:], logits.dtype)
    return jax.vmap(draw)(keys)
  data = jax.random.key_data(keys)
  counts = jax.lax.broadcasted_iota(jnp.uint32, (1, shape[1]), 1)
  bits = _threefry(data[:, :1], data[:, 1:], jnp.zeros_like(counts), counts)
  # Uniform in [1, 2) by the bits of the mantissa, then in [tiny, 1).
  bits = (bits[0] ^ bits[1]) >> 9 | jnp.uint32(0x3F800000)
  tiny = jnp.finfo(jnp.float32).tiny
  uniform = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1
  uniform = jnp.maximum(tiny, uniform * (1 - tiny) + tiny)
  return -jnp.log(-jnp.log(uniform))


def _threefry(key0, key1, x0, x1):
  """Returns two u32, Threefry-2x32 of 20 rounds of two u32 (Salmon et al. 2011,

  "Parallel random numbers: as easy as 1, 2, 3", SC'11), as in jax.random.
  """
  keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for i in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
      x0 += x1
      x1 = x0 ^ (x1 << turn | x1 >> (32 - turn))
    x0 += keys[(i + 1) % 3]
    x1 += keys[(i + 2) % 3] + jnp.uint32(i + 1)
  return x0, x1


def _greedy(logits: Array) -> Array:
  """Returns f32[...,V], 0 at the first largest logit and -inf elsewhere."""
  best = argmax(logits)[..., None]
  return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
