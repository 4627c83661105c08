"""Tests of meta_rl.gradient_variance: toys whose split is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import gradient_variance as gv


def split_of(gradients):
  """The split of gradients [N,M,D]."""
  found = gv.VarianceSplit()
  for batch in gradients:
    found.add([{'w': g} for g in batch])
  return found.result()


def test_by_hand():
  # Two batches x two draws x two parameters. Batch means: (1, 0) and (5, 2).
  # Within: batch 0 has deviations (1, 0) twice: 2 / 1 = 2; batch 1 has (0, 1)
  # twice: 2. Mean 2. Of the means: deviations (2, 1) twice: 10 / 1 = 10, less
  # 2 / 2 draws: 9. Total 11; the mean (3, 1) has norm sqrt(10).
  found = split_of(
    np.array([[[0.0, 0.0], [2.0, 0.0]], [[5.0, 1.0], [5.0, 3.0]]])
  )
  assert found == pytest.approx((9.0, 2.0, 11.0, np.sqrt(10)))


def test_a_prover_without_luck_has_no_part():
  found = split_of(np.array([[[1.0]], [[3.0]], [[5.0]]]))
  # Variance of 1, 3, 5: (4 + 0 + 4) / 2.
  assert found == pytest.approx((4.0, 0.0, 4.0, 3.0))


def test_unbiased_on_a_toy_of_known_parts():
  """g = a(t) + b(w): variances 2 and 3 in each of 4 parameters."""
  rng = np.random.default_rng(0)
  found = []
  for _ in range(400):
    traces = np.sqrt(2.0) * rng.normal(size=(5, 1, 4))
    luck = np.sqrt(3.0) * rng.normal(size=(5, 3, 4))
    found.append(split_of(traces + luck)[:3])
  mean = np.mean(found, axis=0)
  error = np.std(found, axis=0) / np.sqrt(len(found))
  assert (np.abs(mean - [8.0, 12.0, 20.0]) < 4 * error).all(), (mean, error)
  # The check is sharp: without the correction it would be 8 + 12 / 3.
  assert (error < 0.4).all()


def test_against_numpy_and_in_any_shape():
  rng = np.random.default_rng(1)
  gradients = rng.normal(size=(6, 4, 10)) + 100.0
  found = split_of(gradients)
  means = gradients.mean(1)
  within = gradients.var(1, ddof=1).sum(-1).mean()
  between = means.var(0, ddof=1).sum() - within / 4
  assert found[:3] == pytest.approx((between, within, between + within))
  tree = gv.VarianceSplit()
  for batch in gradients:
    tree.add([{'a': g[:6].reshape(2, 3), 'b': [g[6:]]} for g in batch])
  assert tree.result() == pytest.approx(found)


def test_more_branches_take_the_prover_s_part_away():
  """A policy gradient: J is the mean of m coins, and the traces' part is the
  same for every m and for the exact J."""
  key = jax.random.key(0)

  def sample(n, key):
    del n
    return jax.random.uniform(key, (8,))  # each trace's chance of success

  def draw(chances, key):
    coins = jax.random.uniform(key, (4, 8)) < chances
    return {'1': coins[0] * 1.0, '4': coins.mean(0)}

  found = gv.measure(
    sample,
    jax.jit(draw),
    lambda chances: {'exact': chances},
    lambda chances, success: {'w': np.asarray(success).mean(keepdims=True)},
    batches=300,
    draws=4,
    key=key,
  )
  # A chance p is uniform: a coin has E p(1 - p) = 1/6, the mean of 8 with m
  # coins each 1 / (6 * 8 * m); p itself has variance 1/12, the mean of 8 1/96.
  for name, m in (('1', 1), ('4', 4)):
    assert found[name].within == pytest.approx(1 / (48 * m), rel=0.15)
    assert found[name].between == pytest.approx(1 / 96, rel=0.35)
  assert found['exact'].within == 0
  assert found['exact'].between == pytest.approx(1 / 96, rel=0.25)
  # The same traces for all: their parts differ by the noise of the coins alone.
  assert found['4'].between == pytest.approx(found['exact'].between, rel=0.2)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: gv.VarianceSplit().add([]), '0 gradients of a batch'),
    (lambda: split_of(np.zeros((1, 2, 3))), '1 batches of traces'),
    (
      lambda: gv.measure(*[None] * 4, batches=1, draws=2, key=None),
      'batches=1 and draws=2',
    ),
    (
      lambda: gv.measure(*[None] * 4, batches=2, draws=1, key=None),
      'batches=2 and draws=1',
    ),
  ],
)
def test_too_little_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_draws_must_be_equal():
  split = gv.VarianceSplit()
  split.add([jnp.zeros(2), jnp.ones(2)])
  with pytest.raises(ValueError, match=r'1 gradients of a batch.*\(2\)'):
    split.add([jnp.zeros(2)])
