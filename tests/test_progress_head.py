"""The head that predicts progress, fitted to traces with a known J."""

import jax
import numpy as np
import pytest

from meta_rl import progress_head, stopping


def traces(rng, number=400, width=4):
  """Searches that find an answer with chance 1/4 an episode of 9 tokens.

  One feature says whether it was found, the others are noise.
  """
  found = np.cumsum(rng.random((number, width)) < 0.25, axis=1) > 0
  found = np.pad(found, ((0, 0), (1, 0)))
  success = np.where(found, 0.95, 0.2)
  noise = rng.normal(size=(number, width + 1, 3))
  features = np.concatenate([5.0 + 2 * found[..., None], noise], -1)
  thought = np.broadcast_to(9 * np.arange(width + 1), success.shape)
  return features, thought, success, found


def test_later_success_by_hand():
  success = np.array([[0.1, 0.4, 0.9, 0.9]])
  thought = np.array([[0, 9, 18, 18]])
  found = progress_head.later_success(success, thought, [8, 9, 100])
  # after 8 tokens nothing has changed, after 9 the next boundary is reached
  np.testing.assert_array_equal(found[0, :, 0], [0.1, 0.4, 0.9, 0.9])
  np.testing.assert_array_equal(found[0, :, 1], [0.4, 0.9, 0.9, 0.9])
  np.testing.assert_array_equal(found[0, :, 2], [0.9, 0.9, 0.9, 0.9])


def test_a_head_learns_when_to_stop():
  features, thought, success, found = traces(np.random.default_rng(0))
  real = np.ones(success.shape, bool)
  fit = progress_head.fit(
    features,
    thought,
    success,
    real,
    jax.random.key(0),
    budget=36,
    horizons=(9.0,),
    steps=600,
  )
  assert fit.explained > 0.95
  assert abs(fit.bias) < 0.05
  assert fit.traces == 360
  index = stopping.progress_index(fit.head, features[360:], thought[360:])
  inside = np.arange(5) < 4  # at the last boundary no gain is left to see
  solved = np.asarray(index)[found[360:] & inside]
  # 1/4 of (0.95 - 0.2) in 9 tokens is 0.0208 a token
  searching = np.asarray(index)[~found[360:] & inside]
  assert abs(searching.mean() - 0.0208) < 0.006
  assert np.abs(solved).max() < 0.006


def test_boundaries_that_are_none_do_not_count():
  features, thought, success, _ = traces(np.random.default_rng(1), number=60)
  real = np.arange(5) < 3
  real = np.broadcast_to(real, success.shape)
  given = lambda x: (
    progress_head.fit(
      x,
      thought,
      success,
      real,
      jax.random.key(0),
      budget=36,
      horizons=(9.0,),
      steps=20,
    ).head
  )
  spoiled = np.where(real[..., None], features, 1e9)
  same = jax.tree.map(np.array_equal, given(features), given(spoiled))
  assert all(jax.tree.leaves(same))


def test_the_horizons_are_shares_of_the_budget():
  features, thought, success, _ = traces(np.random.default_rng(1), number=20)
  real = np.ones(success.shape, bool)
  fit = progress_head.fit(
    features, thought, success, real, jax.random.key(0), budget=144, steps=2
  )
  assert fit.head.horizons.tolist() == [9, 18, 36, 72]


def test_bad_input():
  features, thought, success, _ = traces(np.random.default_rng(0), number=9)
  real = np.ones(success.shape, bool)
  call = lambda *x: progress_head.fit(*x, jax.random.key(0), budget=36)
  with pytest.raises(ValueError, match='at least 10'):
    call(features, thought, success, real)
  with pytest.raises(ValueError, match='success'):
    call(features, thought, success[:, 1:], real)
