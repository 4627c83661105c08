"""Tests of meta_rl.algorithms.prefix: MRT-RL's scalar, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl.algorithms import FORMS, Measured, prefix

# Two groups of eight: Continue x 4, Direct x 4. The second is the first with
# its rewards turned round and another J.
REWARDS = np.array([1, 0, 1, 1, 0, 1, 0, 0] + [0, 1, 0, 0, 1, 0, 1, 1], float)
CONTINUES = np.array(([True] * 4 + [False] * 4) * 2)
SUCCESS = np.array([0.25] * 8 + [0.5] * 8)


def branches(rewards=REWARDS, continues=CONTINUES, success=SUCCESS):
  return Measured(
    rewards=jnp.asarray(rewards, jnp.float32),
    success=None,
    episodes=None,
    stop_index=None,
    answered=None,
    continues=continues if continues is None else jnp.asarray(continues),
    prefix_success=success
    if success is None
    else jnp.asarray(success, jnp.float32),
  )


def run(measured=None, **options):
  measured = branches() if measured is None else measured
  found = prefix(measured, 3, group_size=8, **options)
  assert found.shape == (len(measured.rewards), 3)
  # One scalar a trace, on all of its tokens.
  np.testing.assert_array_equal(found, np.repeat(found[:, :1], 3, axis=1))
  return np.asarray(found[:, 0])


def test_grouped_by_hand():
  # r' = r + (r - 1/4) on Continue: 1.75, -.25, 1.75, 1.75; Direct 0, 1, 0, 0.
  # Mean 6/8 = .75; deviations 1, -1, 1, 1, -.75, .25, -.75, -.75; their squares
  # add up to 4 + 3·.5625 + .0625 = 5.75; std √(5.75/7) = .906327.
  # 1/.906427 = 1.1032, .25/.906427 = .2758, .75/.906427 = .8274.
  found = run(alpha=1.0)
  np.testing.assert_allclose(
    found[:8],
    [1.1032, -1.1032, 1.1032, 1.1032, -0.8274, 0.2758, -0.8274, -0.8274],
    atol=5e-5,
  )


def test_grouped_without_a_bonus_is_grpo():
  # Four of eight right: ±.5 / (√(8·.25/7) + 1e-4) = ±.5/.534622 = ±.9352.
  found = run(alpha=0.0)
  np.testing.assert_allclose(found, (2 * REWARDS - 1) * 0.9352, atol=5e-5)


def test_difference_by_hand():
  # The published A = R - R_termination on Continue, R the outcome; Direct rows
  # against the same baseline.
  found = run(alpha=0.0, form='difference')
  np.testing.assert_allclose(found[:4], [0.75, -0.25, 0.75, 0.75], atol=1e-6)
  np.testing.assert_allclose(found[4:8], [-0.25, 0.75, -0.25, -0.25], atol=1e-6)
  # r + (r - J) - J is twice that, on Continue alone.
  found = run(alpha=1.0, form='difference')
  np.testing.assert_allclose(found[:4], [1.5, -0.5, 1.5, 1.5], atol=1e-6)
  np.testing.assert_allclose(found[4:8], [-0.25, 0.75, -0.25, -0.25], atol=1e-6)


def oracle(alpha, form):
  """f64[B], group by group in numpy."""
  out = []
  for rows in np.arange(len(REWARDS)).reshape(-1, 8):
    r, j = REWARDS[rows], SUCCESS[rows]
    total = np.where(CONTINUES[rows], r + alpha * (r - j), r)
    if form == 'grouped':
      out.append((total - total.mean()) / (total.std(ddof=1) + 1e-4))
    else:
      out.append(total - j)
  return np.concatenate(out)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('alpha', [0.3, 2.0])
def test_against_numpy(form, alpha):
  found = run(alpha=alpha, form=form)
  np.testing.assert_allclose(found, oracle(alpha, form), atol=1e-5)


def thinking_against_answering(found):
  """The ratio of a right Continue row's advantage to a right Direct row's."""
  return found[0] / found[5]


@pytest.mark.parametrize('form', FORMS)
def test_alpha_is_not_a_no_op(form):
  # An optimizer such as Adam hides a common factor: the ratio must move.
  ratio = [
    thinking_against_answering(run(alpha=a, form=form)) for a in (0.0, 1.0)
  ]
  assert abs(ratio[0] - ratio[1]) > 0.5


def test_the_trap_where_alpha_is_a_no_op():
  """All rollouts continue from one prefix: J is a constant of the group."""
  alike = branches(continues=np.ones(16, bool))
  plain, bonus = run(alike, alpha=0.0), run(alike, alpha=3.0)
  np.testing.assert_allclose(bonus, plain, atol=5e-4)  # the eps alone
  assert np.abs(plain).min() > 0.5
  # The very same rewards with Direct rows among them are told apart.
  assert np.abs(run(alpha=3.0) - run(alpha=0.0)).max() > 0.1


def test_difference_is_zero_on_average_where_nothing_is_gained():
  """E[r] = J: the baseline takes out what the prefix was worth."""
  rng = np.random.default_rng(0)
  success = np.repeat(rng.random(4000), 8)
  rewards = (rng.random(32000) < success).astype(float)
  rows = branches(rewards, np.tile(CONTINUES[:8], 4000), success)
  found = run(rows, alpha=1.0, form='difference')
  # Standard deviation of the mean: 2·√(1/6)/√16000 = .0065 on Continue.
  for kind in (np.arange(32000) % 8 < 4, np.arange(32000) % 8 >= 4):
    assert abs(found[kind].mean()) < 4 * 0.0065


@pytest.mark.parametrize('alpha', [0.0, 1.0])
def test_a_prefix_that_is_solved_gives_exactly_zero(alpha):
  solved = branches(np.ones(8), CONTINUES[:8], np.ones(8))
  for form in FORMS:
    np.testing.assert_array_equal(run(solved, alpha=alpha, form=form), 0)


def test_under_jit():
  call = jax.jit(lambda m: prefix(m, 3, group_size=8))
  np.testing.assert_allclose(call(branches())[:, 0], run(), atol=1e-6)


@pytest.mark.parametrize(
  'measured, options, message',
  [
    (branches(), {'form': 'ratio'}, 'form must be one of'),
    (branches(), {'alpha': -1.0}, 'alpha must be >= 0'),
    (branches(continues=None), {}, 'must branch off a prefix'),
    (branches(success=None), {}, 'must branch off a prefix'),
  ],
)
def test_bad_input_is_refused(measured, options, message):
  with pytest.raises(ValueError, match=message):
    prefix(measured, 3, group_size=8, **options)
