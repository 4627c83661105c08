"""Tests of meta_rl.sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import sampling

# Probabilities .5 .25 .125 .125, shuffled.
PROBS = np.array([0.125, 0.5, 0.125, 0.25], np.float32)
LOGITS = jnp.log(PROBS) + 3.0
INF = np.inf


def test_temperature():
  np.testing.assert_allclose(
    sampling.apply_temperature(LOGITS, 0.5), LOGITS * 2, rtol=1e-6
  )
  np.testing.assert_array_equal(sampling.truncate(LOGITS), LOGITS)
  traced = jax.jit(sampling.apply_temperature)
  np.testing.assert_allclose(traced(LOGITS, 0.5), LOGITS * 2, rtol=1e-6)


@pytest.mark.parametrize('jit', [False, True])
def test_greedy_is_certain_and_takes_the_first_of_ties(jit):
  call = (
    jax.jit(sampling.apply_temperature) if jit else (sampling.apply_temperature)
  )
  logits = jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, -INF]])
  got = call(logits, 0.0)
  np.testing.assert_array_equal(got, [[-INF, 0, -INF], [0, -INF, -INF]])
  tokens = jnp.array([1, 0], jnp.int32)
  np.testing.assert_array_equal(sampling.token_log_probs(got, tokens), 0)
  np.testing.assert_array_equal(sampling.entropy(got), 0)
  keys = sampling.row_keys(jax.random.key(0), jnp.arange(2), 0)
  np.testing.assert_array_equal(sampling.sample(keys, got), tokens)


@pytest.mark.parametrize(
  ('k', 'want'),
  [
    (1, [0, 1, 0, 0]),
    (2, [0, 1, 0, 1]),
    (3, [1, 1, 1, 1]),  # the third and fourth tie
    (4, [1, 1, 1, 1]),
    (9, [1, 1, 1, 1]),
  ],
)
def test_top_k(k, want):
  np.testing.assert_array_equal(sampling.top_k_mask(LOGITS, k), want)


@pytest.mark.parametrize(
  ('p', 'want'),
  [
    (1e-40, [0, 1, 0, 0]),  # no normal number of f32
    (0.01, [0, 1, 0, 0]),
    (0.5, [0, 1, 0, 0]),  # .5 alone is enough
    (0.51, [0, 1, 0, 1]),
    (0.75, [0, 1, 0, 1]),
    (0.76, [1, 1, 1, 1]),  # the last two tie
    (1.0, [1, 1, 1, 1]),
  ],
)
def test_top_p(p, want):
  # Powers of two: the cumulative sums are exact.
  logits = jnp.log2(PROBS) * np.log(2.0).astype(np.float32)
  np.testing.assert_array_equal(sampling.top_p_mask(logits, p), want)


@pytest.mark.parametrize('p', [1e-40, 1e-7])
def test_a_tiny_top_p_keeps_the_likeliest_token_of_each_row(p):
  rows = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
  each = jnp.full((3, 1), p, jnp.float32)
  kept = jax.jit(sampling.top_p_mask)(rows, each)
  np.testing.assert_array_equal(kept.sum(1), 1)
  np.testing.assert_array_equal(kept.argmax(1), rows.argmax(1))


def _truncate_oracle(logits, temperature, top_k, top_p):
  """Walks the tokens from the likeliest down; no ties assumed."""
  logits = logits.astype(np.float64) / temperature
  order = np.argsort(-logits)[: top_k or len(logits)]
  probs = np.exp(logits[order] - logits.max())
  probs /= probs.sum()
  kept, mass = [], 0.0
  for token, p in zip(order, probs, strict=True):
    if top_p is not None and mass >= top_p:
      break
    kept.append(token)
    mass += p
  out = np.full(len(logits), -INF)
  out[kept] = logits[kept]
  return out


@pytest.mark.parametrize(
  ('top_k', 'top_p'), [(None, None), (5, None), (None, 0.7), (5, 0.7)]
)
def test_truncate_against_a_walk(top_k, top_p):
  logits = 2 * np.random.default_rng(0).standard_normal((6, 11))
  logits = logits.astype(np.float32)
  got = jax.jit(
    lambda x: sampling.truncate(x, temperature=0.9, top_k=top_k, top_p=top_p)
  )(logits)
  want = [_truncate_oracle(row, 0.9, top_k, top_p) for row in logits]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_top_p_renormalises_after_top_k():
  # Of .5 .25 alone the first holds 2/3, so p = .6 keeps it alone; of all four
  # it would hold .5 and the second would stay.
  got = sampling.truncate(LOGITS, top_k=2, top_p=0.6)
  np.testing.assert_array_equal(np.isfinite(got), [0, 1, 0, 0])
  got = sampling.truncate(LOGITS, top_p=0.6)
  np.testing.assert_array_equal(np.isfinite(got), [0, 1, 0, 1])


def test_token_log_probs_and_entropy():
  tokens = jnp.arange(4, dtype=jnp.int32)
  got = sampling.token_log_probs(jnp.tile(LOGITS, (4, 1)), tokens)
  np.testing.assert_allclose(got, np.log(PROBS), rtol=1e-5)
  # .5·1 + .25·2 + 2·.125·3 = 1.75 bits.
  np.testing.assert_allclose(
    sampling.entropy(LOGITS), 1.75 * np.log(2), rtol=1e-5
  )
  # Top-2 leaves 2/3 and 1/3; a token outside has no probability at all.
  inside = sampling.truncate(LOGITS, top_k=2)
  got = sampling.token_log_probs(jnp.tile(inside, (4, 1)), tokens)
  np.testing.assert_allclose(
    got, [-INF, np.log(2 / 3), -INF, np.log(1 / 3)], rtol=1e-5
  )


def test_gradients_stay_finite_outside_the_support():
  logits = sampling.truncate(LOGITS, top_k=2)
  grad = jax.grad(sampling.entropy)(logits)
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[jnp.array([0, 2])], 0)
  grad = jax.grad(sampling.token_log_probs)(logits, jnp.int32(1))
  np.testing.assert_allclose(grad, [0, 1 / 3, 0, -1 / 3], atol=1e-6)


def test_large_logits_do_not_overflow():
  logits = jnp.array([1e4, 0.0, -1e4])
  assert sampling.entropy(logits) == 0
  np.testing.assert_array_equal(
    sampling.token_log_probs(jnp.tile(logits, (3, 1)), jnp.arange(3)),
    [0, -1e4, -2e4],
  )


def test_row_keys_depend_on_row_and_step_alone():
  key = jax.random.key(7)
  keys = sampling.row_keys(key, jnp.arange(6), 3)
  some = sampling.row_keys(key, jnp.array([4, 1]), 3)
  data = jax.random.key_data
  np.testing.assert_array_equal(data(some), data(keys)[jnp.array([4, 1])])
  by_hand = jax.random.fold_in(jax.random.fold_in(key, 4), 3)
  np.testing.assert_array_equal(data(some[0]), data(by_hand))
  later = sampling.row_keys(key, jnp.arange(6), 4)
  every = np.concatenate([data(keys), data(later)])
  assert len(np.unique(every, axis=0)) == 12


def test_samples_do_not_depend_on_the_batch():
  key = jax.random.key(1)
  logits = jax.random.normal(jax.random.key(2), (8, 5))
  rows = jnp.arange(8)

  @jax.jit
  def draw(rows, logits):
    return sampling.sample(sampling.row_keys(key, rows, 0), logits)

  whole = draw(rows, logits)
  assert whole.dtype == jnp.int32
  parts = [draw(rows[i : i + 4], logits[i : i + 4]) for i in (0, 4)]
  np.testing.assert_array_equal(jnp.concatenate(parts), whole)


def test_sample_frequencies():
  rows = jnp.arange(4000)
  keys = sampling.row_keys(jax.random.key(0), rows, 0)
  logits = jnp.tile(sampling.truncate(LOGITS, top_k=2), (4000, 1))
  tokens = sampling.sample(keys, logits)
  share = np.bincount(tokens, minlength=4) / 4000
  # Standard error √(2/9/4000) = .0075; four of them.
  np.testing.assert_allclose(share, [0, 2 / 3, 0, 1 / 3], atol=0.03)


def test_rejects_wrong_arguments():
  with pytest.raises(ValueError, match='temperature must be >= 0'):
    sampling.truncate(LOGITS, temperature=-1.0)
  with pytest.raises(ValueError, match='top_k must be a whole number >= 1'):
    sampling.truncate(LOGITS, top_k=0)
  for top_p in (0.0, 1.5):
    with pytest.raises(ValueError, match='top_p must be > 0 and <= 1'):
      sampling.truncate(LOGITS, top_p=top_p)
  with pytest.raises(ValueError, match='logits must hold float'):
    sampling.truncate(jnp.arange(4))
  with pytest.raises(ValueError, match='tokens must have shape'):
    sampling.token_log_probs(jnp.zeros((2, 4)), jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match='tokens must hold int'):
    sampling.token_log_probs(jnp.zeros((2, 4)), jnp.zeros(2))
  keys = jax.random.split(jax.random.key(0), 3)
  with pytest.raises(ValueError, match='one key for each of the B=2 rows'):
    sampling.sample(keys, jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match='rows must hold int'):
    sampling.row_keys(keys[0], jnp.zeros(3), 0)


# --- the draw itself is jax's, bit for bit ---


@pytest.mark.parametrize('size', [1, 7, 2048])
def test_the_noise_and_the_token_are_those_of_jax(size):
  keys = sampling.row_keys(jax.random.key(5), jnp.arange(40), 3)
  logits = 3 * jax.random.normal(jax.random.key(1), (40, size))
  noise = jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys)
  tokens = jax.vmap(jax.random.categorical)(keys, logits)
  for own in (keys, jax.random.key_data(keys)):
    np.testing.assert_array_equal(sampling._gumbel(own, logits), noise)
    np.testing.assert_array_equal(sampling.sample(own, logits), tokens)


def test_other_generators_draw_as_jax_does():
  logits = jnp.zeros((4, 9))
  keys = jax.random.split(jax.random.key(0, impl='rbg'), 4)
  tokens = jax.vmap(jax.random.categorical)(keys, logits)
  np.testing.assert_array_equal(sampling.sample(keys, logits), tokens)
  with jax.threefry_partitionable(False):
    keys = sampling.row_keys(jax.random.key(5), jnp.arange(4), 3)
    tokens = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal(sampling.sample(keys, logits), tokens)


def test_noise_of_a_high_dynamic_range_is_jax_s():
  keys = sampling.row_keys(jax.random.key(5), jnp.arange(4), 3)
  logits = jnp.zeros((4, 9))
  before = sampling._gumbel(keys, logits)
  jax.config.update('jax_high_dynamic_range_gumbel', True)
  try:
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (9,)))(keys)
    found = sampling._gumbel(keys, logits)
  finally:
    jax.config.update('jax_high_dynamic_range_gumbel', False)
  assert (noise != before).any()
  np.testing.assert_array_equal(found, noise)


def test_a_row_of_its_own_step():
  rows, steps = jnp.array([3, 3, 9]), jnp.array([0, 4, 4])
  keys = sampling.row_keys(jax.random.key(5), rows, steps)
  for i, (row, step) in enumerate(zip(rows, steps)):
    one = sampling.row_keys(jax.random.key(5), row[None], step)
    assert keys[i] == one[0]


def test_argmax_is_the_first_largest():
  x = np.array([[1, 3, 3], [-np.inf] * 3, [np.inf, 0, np.inf], [0, -1, -2]])
  found = sampling.argmax(jnp.asarray(x, jnp.float32))
  np.testing.assert_array_equal(found, [1, 0, 0, 0])
  assert found.dtype == jnp.int32
  # Indices that float32 could not tell from their neighbours are not needed.
  wide = jnp.zeros((2, 50_000)).at[0, 49_999].set(1).at[1, 49_998].set(1)
  np.testing.assert_array_equal(sampling.argmax(wide), [49_999, 49_998])
