"""Tests of meta_rl.scoring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import models
from meta_rl.scoring import log_softmax_at, positions_of, score

CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
TOKENS = np.random.default_rng(3).integers(0, 32, (3, 7), np.int32)
MASK = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1] * 7], bool)
# A bigram model: logits[v] after token u are TABLE[u, v].
TABLE = np.array([[0.0, 1.0, 2.0], [0.5, 0.0, 0.0], [3.0, 0.0, 1.0]])
BIGRAM = models.from_apply_fn(lambda p, t, *_: (p[t], None))


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


@functools.cache
def jitted(**options):
  """Values and the gradient of a sum of them, one program for each option."""
  options = dict(options)

  def total(params, tokens, token_mask, weights):
    out = score(MODEL, params, tokens, token_mask, **options)
    return sum((w * x).sum() for w, x in zip(weights, out)), out

  return jax.jit(jax.value_and_grad(total, has_aux=True))


WEIGHTS = np.random.default_rng(4).standard_normal((2, 3, 7)).astype('float32')


def run(params, **options):
  (_, out), grads = jitted(**options)(params, TOKENS, MASK, WEIGHTS)
  return out, grads


def test_positions_of():
  np.testing.assert_array_equal(
    positions_of(jnp.array([[False, True, True, False, True]])),
    [[-1, 0, 1, -1, 2]],
  )


def test_log_softmax_at_by_hand():
  # softmax(0, ln 2, ln 5) = (1, 2, 5)/8; entropy
  # = -(1/8 ln 1/8 + 2/8 ln 2/8 + 5/8 ln 5/8) = 0.259930 + 0.346574 + 0.293752.
  logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]] * 3)) + 40
  log_probs, entropy = log_softmax_at(logits, jnp.arange(3))
  np.testing.assert_allclose(log_probs, np.log([0.125, 0.25, 0.625]), rtol=1e-4)
  np.testing.assert_allclose(entropy, 0.900256, rtol=1e-4)


def test_a_token_that_cannot_be():
  # softmax(0, 0, -inf): entropy ln 2, the third token has log-prob -inf, and
  # nothing is NaN, gradients included.
  logits = jnp.array([0.0, 0.0, -jnp.inf])
  log_probs, entropy = log_softmax_at(jnp.tile(logits, (3, 1)), jnp.arange(3))
  np.testing.assert_allclose(log_probs, [-np.log(2), -np.log(2), -np.inf])
  np.testing.assert_allclose(entropy, np.log(2), rtol=1e-6)
  total = lambda x: sum(log_softmax_at(x, jnp.array(0)))
  gradient = jax.grad(total)(logits)
  # d/dx log p_0 = (1/2, -1/2, 0); the entropy is at its maximum.
  np.testing.assert_allclose(gradient, [0.5, -0.5, 0], atol=1e-6)


def test_score_is_the_log_softmax_of_the_token_before():
  log_probs, entropy = score(
    BIGRAM,
    jnp.asarray(TABLE, jnp.float32),
    jnp.array([[0, 2, 1, 1], [0, 1, 0, 0]]),
    jnp.array([[True] * 4, [False, True, True, False]]),
  )
  norm = np.log(np.exp(TABLE).sum(1))
  probs = np.exp(TABLE - norm[:, None])
  expected = [
    [0, TABLE[0, 2] - norm[0], TABLE[2, 1] - norm[2], TABLE[1, 1] - norm[1]],
    [0, 0, TABLE[1, 0] - norm[1], 0],  # padding, first token, token, padding
  ]
  np.testing.assert_allclose(log_probs, expected, rtol=1e-5)
  spread = -(probs * np.log(probs)).sum(1)
  expected = [[0, *spread[[0, 2, 1]]], [0, 0, spread[1], 0]]
  np.testing.assert_allclose(entropy, expected, rtol=1e-5)


def test_temperature_divides_the_logits():
  log_probs, _ = score(
    BIGRAM,
    jnp.asarray(TABLE, jnp.float32),
    jnp.array([[0, 2]]),
    jnp.ones((1, 2), bool),
    temperature=0.5,
  )
  # Logits 0, 2, 4 after token 0: log p_2 = 4 - ln(1 + e^2 + e^4) = -0.142932.
  np.testing.assert_allclose(log_probs, [[0, -0.142932]], rtol=1e-5)


def test_transformer_against_its_own_logits(params):
  (log_probs, _), _ = run(params, temperature=0.7)
  positions = positions_of(MASK)
  logits, _ = jax.jit(MODEL.apply_fn)(params, TOKENS, positions, None)
  every = np.asarray(jax.nn.log_softmax(logits / 0.7))
  expected = np.zeros(MASK.shape)
  for b, t in zip(*np.nonzero(MASK)):
    if positions[b, t] > 0:
      expected[b, t] = every[b, t - 1, TOKENS[b, t]]
  np.testing.assert_allclose(log_probs, expected, atol=1e-4)


@pytest.mark.parametrize('chunk', [2, 7])
def test_chunks_change_no_number(params, chunk):
  # 7 positions in chunks of 2 leave a ragged last one.
  whole, whole_grads = run(params, temperature=0.7)
  parts, grads = run(params, temperature=0.7, chunk=chunk)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, parts, whole)
  jax.tree.map(close, grads, whole_grads)


def test_chunks_survive_a_token_that_cannot_be():
  # The padded part of a vocabulary may come with logits of -inf.
  def unembed(params, features):
    return jnp.where(jnp.arange(4) < 3, params[features[..., 0]], -jnp.inf)

  model = models.Model(
    apply_fn=None,
    init_cache=None,
    features_fn=lambda p, t, *_: (t[..., None], None),
    unembed_fn=unembed,
  )

  def total(table):
    log_probs, entropy = score(
      model,
      table,
      jnp.zeros((1, 4), jnp.int32),
      jnp.ones((1, 4), bool),
      chunk=2,
    )
    return log_probs.sum() + jax.lax.stop_gradient(entropy).sum()

  value, gradient = jax.value_and_grad(total)(jnp.zeros((4, 4)))
  # Three tokens, each -ln 3 + ln 3.
  assert value == pytest.approx(0, abs=1e-5)
  # 3 times (1 - 1/3, -1/3, -1/3) in the row of token 0.
  np.testing.assert_allclose(gradient[0], [2, -1, -1, 0], atol=1e-5)


def test_packed_rows_equal_separate_rows(params):
  (separate, _), _ = run(params, temperature=0.7)
  rows = [TOKENS[0][MASK[0]], TOKENS[1][MASK[1]], TOKENS[2]]
  owner = np.repeat([0, 1, 2], [5, 5, 7])
  log_probs, _ = score(
    MODEL,
    params,
    jnp.asarray(np.concatenate(rows))[None],
    jnp.ones((1, 17), bool),
    positions=jnp.asarray([[*range(5), *range(5), *range(7)]]),
    mask=jnp.asarray(np.tril(owner[:, None] == owner))[None],
    temperature=0.7,
  )
  expected = np.concatenate(
    [np.asarray(separate)[i][MASK[i]] for i in range(3)]
  )
  np.testing.assert_allclose(log_probs[0], expected, atol=1e-4)
  assert not log_probs[0, [0, 5, 10]].any()  # the first token of each row


def test_bad_input_is_refused(params):
  with pytest.raises(ValueError, match=r'token_mask must have shape \[B,T\]'):
    score(MODEL, params, TOKENS, MASK[:, :6])
  with pytest.raises(ValueError, match='temperature must be > 0'):
    score(MODEL, params, TOKENS, MASK, temperature=0.0)
