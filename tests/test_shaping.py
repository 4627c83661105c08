"""Tests of meta_rl.shaping: each reward by hand, and against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import shaping

# One group of four: right, wrong, right, right.
REWARDS = np.array([[1, 0, 1, 1]], np.float32)
LENGTHS = np.array([[40, 70, 60, 100]], np.int32)

OPTIONS = {
  'none': {},
  'lcpo_exact': {'target_length': 50, 'alpha': 0.01},
  'lcpo_max': {'max_length': 50, 'alpha': 0.02},
  'length_penalty': {'alpha': 0.4},
  'overlong': {'max_length': 90, 'cache_length': 40},
}
EACH = pytest.mark.parametrize('kind', OPTIONS)


def run(kind, rewards=REWARDS, lengths=LENGTHS, **changes):
  options = OPTIONS[kind] | changes
  return np.asarray(shaping.shape(rewards, lengths, kind=kind, **options))


def test_the_options_here_are_of_all_shapings():
  assert set(OPTIONS) == set(shaping.SHAPINGS)


def test_none_by_hand():
  np.testing.assert_array_equal(run('none'), REWARDS)


def test_lcpo_exact_by_hand():
  # Distances from 50: 10, 20, 10, 50, at .01 a token.
  np.testing.assert_allclose(run('lcpo_exact'), [[0.9, -0.2, 0.9, 0.5]], 1e-6)
  # As published: 1 - .0003·1000 = .7 and 0 - .3.
  found = shaping.lcpo_exact(
    np.float32([[1, 0]]), np.array([[3000, 1000]]), target_length=2000
  )
  np.testing.assert_allclose(found, [[0.7, -0.3]], rtol=1e-6)


def test_lcpo_max_by_hand():
  # .02·(50 - n) = .2, (wrong), -.2, -1 exactly at the edge of the clip.
  np.testing.assert_allclose(run('lcpo_max'), [[0.6, 0, 0.4, 0]], atol=1e-6)
  # 1/α = 50 tokens on either side it is flat: 0 -> 1 (not 1.2), 101 -> 0.
  ones, lengths = np.ones((1, 4), np.float32), np.array([[0, 1, 50, 150]])
  found = run('lcpo_max', ones, lengths)
  np.testing.assert_allclose(found, [[1, 0.99, 0.5, 0]], atol=1e-6)
  # The paper's form, at half the α and with δ = 1/2.
  paper = ones * np.clip(0.01 * (50 - lengths) + 0.5, 0, 1)
  np.testing.assert_allclose(found, paper, atol=1e-6)


def test_length_penalty_by_hand():
  # Right ones 40, 60, 100: mean 66.667, variance (26.667² + 6.667² + 33.333²)/3
  # = 622.22, std 24.944. z = -1.06904, -.26726, 1.33631;
  # σ = .255586, .433580, .791882; 1 - .4σ = .897766, .826568, .683247.
  np.testing.assert_allclose(
    run('length_penalty'), [[0.897766, 0, 0.826568, 0.683247]], atol=2e-6
  )


@pytest.mark.parametrize(
  'rewards, lengths, expected',
  [
    # One right answer is at its own mean: σ(0) = 1/2, 1 - .4/2.
    ([0, 1, 0], [3, 700, 9], [0, 0.8, 0]),
    ([0, 0, 0], [3, 7, 9], [0, 0, 0]),
    # Equal lengths have no spread: all at their mean.
    ([1] * 7, [37] * 7, [0.8] * 7),
    # The wrong one's length does not count.
    ([1, 1, 0], [5, 5, 10**6], [0.8, 0.8, 0]),
  ],
)
def test_length_penalty_without_a_spread(rewards, lengths, expected):
  found = run('length_penalty', np.float32([rewards]), np.array([lengths]))
  np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_a_long_right_answer_beats_a_wrong_one():
  lengths = np.array([[1, 1, 1, 10**6, 5]])
  rewards = np.float32([[1, 1, 1, 1, 0]])
  found = run('length_penalty', rewards, lengths, alpha=1.0)
  assert (found[0, :4] > 0).all()
  assert found[0, 4] == 0


def test_overlong_by_hand():
  # Free up to 90 - 40 = 50; 70 is half of the way, 60 a quarter; 100 > 90.
  np.testing.assert_allclose(run('overlong'), [[1, -0.5, 0.75, 0]], atol=1e-6)
  # Where the pieces meet: 50 -> 0, 51 -> -1/40, 90 -> -1, 91 -> -1.
  found = run('overlong', np.zeros((1, 4), np.float32), [[50, 51, 90, 91]])
  np.testing.assert_allclose(found, [[0, -1 / 40, -1, -1]], atol=1e-6)


def oracle(kind, rewards, lengths):
  """The shaping, one trace after the other, in plain Python."""
  option = OPTIONS[kind]
  shaped = np.zeros(rewards.shape)
  for p, g in np.ndindex(rewards.shape):
    r, n = float(rewards[p, g]), int(lengths[p, g])
    if kind == 'lcpo_exact':
      r -= option['alpha'] * abs(option['target_length'] - n)
    elif kind == 'lcpo_max':
      score = option['alpha'] * (option['max_length'] - n)
      r *= (max(-1, min(1, score)) + 1) / 2
    elif kind == 'length_penalty' and r:
      right = [int(m) for m, ok in zip(lengths[p], rewards[p]) if ok]
      std = np.std(right)
      z = (n - np.mean(right)) / std if len(set(right)) > 1 else 0.0
      r *= 1 - option['alpha'] / (1 + np.exp(-z))
    elif kind == 'overlong':
      longest, cache = option['max_length'], option['cache_length']
      if n > longest:
        r -= 1
      elif n > longest - cache:
        r += ((longest - cache) - n) / cache
    shaped[p, g] = r
  return shaped


@EACH
def test_against_python(kind):
  rng = np.random.default_rng(0)
  rewards = (rng.random((64, 6)) < 0.5).astype(np.float32)
  lengths = 9 * rng.integers(0, 13, (64, 6))
  found = jax.jit(functools.partial(shaping.shape, kind=kind, **OPTIONS[kind]))(
    rewards, lengths
  )
  np.testing.assert_allclose(found, oracle(kind, rewards, lengths), atol=1e-5)


@EACH
def test_groups_do_not_touch(kind):
  rewards = np.concatenate([REWARDS, 1 - REWARDS])
  lengths = np.concatenate([LENGTHS, LENGTHS[:, ::-1]])
  both = run(kind, rewards, lengths)
  np.testing.assert_array_equal(both[:1], run(kind))
  np.testing.assert_array_equal(both[1:], run(kind, rewards[1:], lengths[1:]))


@pytest.mark.parametrize('kind', ['lcpo_max', 'length_penalty', 'overlong'])
def test_longer_is_never_better(kind):
  lengths = np.arange(0, 130)[None]
  found = run(kind, np.ones(lengths.shape, np.float32), lengths)
  assert (np.diff(found) <= 1e-6).all()
  assert found[0, -1] < found[0, 0]


def test_a_target_a_prompt():
  targets = jnp.array([[40], [100]])
  found = shaping.lcpo_exact(
    np.repeat(REWARDS, 2, 0),
    np.repeat(LENGTHS, 2, 0),
    target_length=targets,
    alpha=0.01,
  )
  np.testing.assert_allclose(
    found, [[1, -0.3, 0.8, 0.4], [0.4, -0.3, 0.6, 1]], atol=1e-6
  )


@pytest.mark.parametrize(
  'kind, options, message',
  [
    ('shorter', {}, r"shaping must be one of \['none', 'lcpo_exact'"),
    ('none', {'alpha': 0.1}, "alpha=0.1 does nothing with shaping='none'"),
    ('lcpo_exact', {'max_length': 9}, 'max_length=9 does nothing with'),
    ('lcpo_exact', {}, "shaping='lcpo_exact' needs target_length"),
    ('length_penalty', {}, 'needs alpha'),
    ('overlong', {}, 'needs max_length, cache_length'),
    ('overlong', {'max_length': 9, 'cache_length': 0}, 'cache_length must be'),
    ('overlong', {'max_length': 9, 'cache_length': 10}, 'max_length must be'),
    ('lcpo_exact', {'target_length': -1}, 'target_length must be >= 0'),
    ('lcpo_max', {'max_length': 9, 'alpha': -1.0}, 'alpha must be >= 0'),
    ('length_penalty', {'alpha': 1.5}, 'alpha must be >= 0 and <= 1'),
  ],
)
def test_options_that_cannot_work(kind, options, message):
  with pytest.raises(ValueError, match=message):
    shaping.shape(REWARDS, LENGTHS, kind=kind, **options)


def test_an_option_of_none_is_not_given():
  found = shaping.shape(REWARDS, LENGTHS, alpha=None, max_length=None)
  np.testing.assert_array_equal(found, REWARDS)


@EACH
def test_wrong_arrays(kind):
  with pytest.raises(ValueError, match='rewards must have shape'):
    run(kind, REWARDS[0], LENGTHS)
  with pytest.raises(ValueError, match='lengths must have shape'):
    run(kind, REWARDS, LENGTHS[:, 1:])
  with pytest.raises(ValueError, match='lengths must hold int'):
    run(kind, REWARDS, LENGTHS.astype(np.float32))
