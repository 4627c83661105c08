"""Tests of meta_rl.prover_gradient: J as a function of the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import models, prover, prover_gradient
from meta_rl.scoring import score

EOS, STOP = 2, (4, 9)
CONFIG = tiny(num_layers=1, scan_layers=True)
MODEL = models.make_model(CONFIG)
RNG = np.random.default_rng(5)

# Three traces of 10 columns, left and right padded; boundaries that repeat past
# the last one and in the middle, and one before the first column.
TOKENS = RNG.integers(10, 32, (3, 10)).astype(np.int32)
REAL = np.array([[1] * 10, [0, 0] + [1] * 8, [1] * 7 + [0] * 3], bool)
ENDS = np.array([[2, 4, 7, 9], [2, 5, 5, 8], [-1, 3, 6, 6]])
ANSWERS = RNG.integers(10, 32, (3, 3, 4)).astype(np.int32)
LENGTHS = np.array([[1, 2, 4], [3, 4, 0], [2, 0, 0]])
GIVEN = np.arange(4) < LENGTHS[..., None]
ANSWERS[GIVEN & (np.arange(4) == LENGTHS[..., None] - 1)] = EOS
WEIGHTS = np.array(
  [[0.1, 0.0, 0.5, 0.4], [0.3, 0.3, 0.2, 0.2], [0.25] * 4], np.float32
)
INPUTS = (TOKENS, REAL, ENDS, ANSWERS, GIVEN)


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


def weighted(params, weights=WEIGHTS, **options):
  return prover_gradient.differentiable(
    MODEL, params, *INPUTS, stop_ids=STOP, boundary_weights=weights, **options
  )


@functools.cache
def with_gradient(**options):
  """Σ_b c_b Σ_j w_j J_bj with its gradient, and the rows' own values."""

  def total(params):
    rows = weighted(params, **options)
    return (jnp.array([1.0, 2.0, 3.0]) * rows).sum(), rows

  return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.full
def test_the_value_is_that_of_the_exact_prover(params):
  exact = jax.jit(
    functools.partial(prover.exact, MODEL, stop_ids=STOP, temperature=0.8)
  )
  success = np.asarray(exact(params, *INPUTS))
  assert success.std() > 1e-6
  (_, rows), _ = with_gradient(temperature=0.8)(params)
  np.testing.assert_allclose(rows, (WEIGHTS * success).sum(1), rtol=1e-4)


def brute(params, temperature):
  """The same, each pair a sequence of its own: [prefix, stop, answer]."""
  sequences, owners, factors = [], [], []
  for b, j, s in np.ndindex(*ENDS.shape, ANSWERS.shape[1]):
    prefix = TOKENS[b, : ENDS[b, j] + 1][REAL[b, : ENDS[b, j] + 1]]
    answer = ANSWERS[b, s][GIVEN[b, s]]
    if len(answer):
      sequences.append([*prefix, *STOP, *answer])
      owners.append(len(answer))
      factors.append((b + 1) * WEIGHTS[b, j])
  width = max(map(len, sequences))
  padded = np.array([s + [0] * (width - len(s)) for s in sequences], np.int32)
  sizes = np.array([len(s) for s in sequences])[:, None]
  columns = np.arange(width)
  scored = (columns < sizes) & (columns >= sizes - np.array(owners)[:, None])
  log_probs, _ = score(
    MODEL, params, padded, columns < sizes, temperature=temperature
  )
  chance = jnp.exp(jnp.where(scored, log_probs, 0.0).sum(1))
  return (jnp.asarray(factors) * chance).sum()


def test_the_gradient_is_that_of_every_sequence_by_itself(params):
  want, want_grad = jax.jit(
    jax.value_and_grad(functools.partial(brute, temperature=0.8))
  )(params)
  (found, _), grad = with_gradient(temperature=0.8)(params)
  assert float(found) == pytest.approx(float(want), rel=1e-4)
  for got, wanted in zip(jax.tree.leaves(grad), jax.tree.leaves(want_grad)):
    scale = np.abs(wanted).max()
    assert scale > 0  # the trace's own keys and values move J, too
    np.testing.assert_allclose(got, wanted, atol=1e-3 * scale)


def test_the_gradient_is_a_finite_difference(params):
  run = with_gradient(temperature=0.8)
  (_, _), grad = run(params)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  way = tree.unflatten(
    [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  )
  size = 1e-3
  at = lambda t: jax.tree.map(lambda x, d: x + t * size * d, params, way)
  slope = (run(at(1))[0][0] - run(at(-1))[0][0]) / (2 * size)
  along = sum(
    (g * d).sum() for g, d in zip(jax.tree.leaves(grad), jax.tree.leaves(way))
  )
  assert float(slope) == pytest.approx(float(along), rel=2e-2)


def test_chunks_change_nothing(params):
  (whole, _), grad = with_gradient(temperature=0.8)(params)
  # 12 pairs a row at most, of which 3, 4 and 3 boundaries have 9, 6 and 3.
  (parts, _), parts_grad = with_gradient(temperature=0.8, block_pairs=5)(params)
  assert float(parts) == pytest.approx(float(whole), rel=1e-5)
  for a, b in zip(jax.tree.leaves(parts_grad), jax.tree.leaves(grad)):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_no_weight_is_no_value(params):
  rows = jax.jit(weighted)(params, np.zeros_like(WEIGHTS))
  np.testing.assert_array_equal(rows, 0)


def test_weights_of_boundaries_that_repeat():
  weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]], np.float32)
  found = prover_gradient.on_first(
    weights, jnp.array([[2, 5, 5, 7], [2, 5, 5, 5]])
  )
  np.testing.assert_allclose(
    found, [[0.1, 0.5, 0, 0.4], [0.1, 0.9, 0, 0]], rtol=1e-6
  )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'weights': WEIGHTS[:, 1:]}, 'boundary_weights must have shape'),
    ({'weights': np.ones((3, 4), int)}, 'must hold float values'),
    ({'temperature': 0.0}, 'temperature must be > 0'),
    ({'block_pairs': 0}, 'block_pairs must be a whole number >= 1'),
  ],
)
def test_bad_input_is_refused(options, message, params):
  with pytest.raises(ValueError, match=message):
    weighted(params, **options)
