"""Tests of meta_rl.algorithms.star: which traces are imitated, and how."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import losses, models, regret, steps
from meta_rl.algorithms import Measured, star
from meta_rl.types import Episodes, Rollout

HORIZON = 10
# Two prompts, four traces each, K = 2 episodes that end 2 and 4 tokens in (one
# long one of 8 in row 2). J_0 = .2 everywhere.
#   row  r  J_1 J_2   token-weighted regret (widths .2 .2 .6; row 2: .8 0 .2)
#    0   1  .9  .9    .8·.2 + .1·.2 + .1·.6 = .24
#    1   0  1.  1.    wrong, though of the least regret
#    2   1  .9  .9    .8·.8 + .1·.2 = .66
#    3   1  .2  .9    .8·.4 + .1·.6 = .38
#    4   0            no right trace at all
#    5   0
#    6   0
#    7   0
REWARDS = np.array([1, 0, 1, 1, 0, 0, 0, 0], np.float32)
SUCCESS = np.array(
  [[0.2, 0.9, 0.9], [0.2, 1, 1], [0.2, 0.9, 0.9], [0.2, 0.2, 0.9]]
  + [[0.2, 0.5, 0.5]] * 4,
  np.float32,
)
ENDS = np.array([[1, 3, 5], [1, 3, 5], [1, 9, 9], [1, 3, 5]] + [[1, 3, 5]] * 4)
COUNT = np.array([2, 2, 1, 2, 2, 2, 2, 2])
MEASURED = Measured(
  rewards=jnp.asarray(REWARDS),
  success=jnp.asarray(SUCCESS),
  episodes=Episodes(jnp.asarray(ENDS), jnp.asarray(COUNT)),
  stop_index=jnp.asarray(ENDS[:, -1] + 1),
  answered=jnp.ones(8, bool),
)


def kept(measured=MEASURED, group_size=4, **options):
  """The rows that are kept, as a list."""
  found = star(measured, 3, group_size=group_size, horizon=HORIZON, **options)
  assert found.keep.dtype == bool
  # Weight 1 on every column of a kept row, 0 on those of the others.
  np.testing.assert_array_equal(
    found.advantages, np.repeat(np.asarray(found.keep)[:, None], 3, 1)
  )
  return np.flatnonzero(found.keep).tolist()


def test_star_keeps_every_right_trace():
  assert kept() == [0, 2, 3]


def test_progress_keeps_the_least_regret_of_the_right_ones():
  by_hand = regret.token_weighted(
    MEASURED.success, MEASURED.episodes.ends, horizon=HORIZON
  )
  np.testing.assert_allclose(by_hand[:4], [0.24, 0.16, 0.66, 0.38], atol=1e-6)
  progress = functools.partial(kept, select='progress')
  assert progress(max_kept=1) == [0]
  assert progress(max_kept=2) == [0, 3]
  assert progress(keep_share=0.5) == [0, 3]  # ceil(1.5)
  assert progress(keep_share=0.3) == [0]  # ceil(.9)
  assert progress(keep_share=0.5, max_kept=1) == [0]


def test_the_ranking_is_that_of_token_weighted_progress():
  """w_i = max(0, 1 - e_i/H): Σ w_i p_i = 1 - J_0 - regret."""
  spent = (ENDS[:, 1:] - ENDS[:, :1]) / HORIZON
  progress = (np.maximum(0, 1 - spent) * np.diff(SUCCESS, axis=1)).sum(1)
  regrets = regret.token_weighted(
    MEASURED.success, MEASURED.episodes.ends, horizon=HORIZON
  )
  np.testing.assert_allclose(progress, 1 - 0.2 - regrets, atol=1e-6)


def test_any_keeps_the_first_right_ones():
  assert kept(max_kept=1) == [0]
  assert kept(keep_share=0.5) == [0, 2]
  # Not by progress: row 2 has the largest regret of the three.


def test_ties_go_to_the_first():
  alike = Measured(
    jnp.ones(4),
    jnp.full((4, 3), 0.5),
    Episodes(jnp.asarray(ENDS[4:]), jnp.asarray(COUNT[4:])),
    None,
    None,
  )
  assert kept(alike, select='progress', max_kept=2) == [0, 1]


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_share_is_rounded_up_exactly(share):
  # .1·10 = 1.0000000149 in float32: rounding that up would keep two.
  for right in range(11):
    rewards = jnp.asarray(np.arange(10) < right, jnp.float32)
    group = Measured(rewards, None, None, None, None)
    found = kept(group, group_size=10, keep_share=share)
    assert len(found) == -(-right * round(share * 10) // 10)


def oracle(rng):
  """A random group by numpy sorting: (measured, kept rows of max_kept=2)."""
  rewards = rng.integers(0, 2, 12).astype(np.float32)
  success = rng.random((12, 3)).astype(np.float32)
  ends = np.cumsum(rng.integers(1, 5, (12, 3)), axis=1)
  rows = []
  for group in np.arange(12).reshape(3, 4):
    right = [i for i in group if rewards[i]]
    width = lambda i: np.diff(np.minimum([*(ends[i] - ends[i][0]), 10], 10))
    right.sort(key=lambda i: ((1 - success[i]) * width(i) / 10).sum())
    rows += right[:2]
  measured = Measured(
    jnp.asarray(rewards),
    jnp.asarray(success),
    Episodes(jnp.asarray(ends), jnp.full(12, 2)),
    None,
    None,
  )
  return measured, sorted(rows)


def test_against_numpy():
  rng = np.random.default_rng(3)
  call = jax.jit(
    lambda m: star(
      m, 1, group_size=4, horizon=10, select='progress', max_kept=2
    )
  )
  for _ in range(20):
    measured, wanted = oracle(rng)
    assert np.flatnonzero(call(measured).keep).tolist() == wanted


# --- the loss of what is kept

BIGRAM = models.from_apply_fn(lambda p, t, *_: (p[t], None))
RNG = np.random.default_rng(0)
TRACES = Rollout(
  tokens=jnp.asarray(RNG.integers(0, 5, (8, 6)), jnp.int32),
  token_mask=jnp.ones((8, 6), bool),
  mask=jnp.asarray(RNG.random((8, 6)) < 0.6).at[:, 0].set(False),
  thinking_mask=None,
  # Of another policy, far from the one that is trained.
  behavior_log_probs=jnp.asarray(-3 * RNG.random((8, 6)), jnp.float32),
  raw_log_probs=None,
  truncated=None,
  forced=None,
)
TABLE = jnp.asarray(RNG.standard_normal((5, 5)), jnp.float32)


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_the_loss_is_the_likelihood_of_the_kept_traces(aggregate):
  """cispo with clip_low = clip_high = 0 has weight exactly 1."""
  batch = steps.training_batch(
    TRACES, MEASURED, functools.partial(star, group_size=4, horizon=HORIZON)
  )
  shared = {'aggregate': aggregate, 'constant': 6}
  loss_fn = steps.make_loss(
    BIGRAM, surrogate='cispo', clip_low=0.0, clip_high=0.0, **shared
  )
  value = lambda table: loss_fn(table, batch)[0].value
  rows = np.array([0, 2, 3])
  tokens, mask = np.asarray(TRACES.tokens)[rows], np.asarray(TRACES.mask)[rows]

  def likelihood(table):
    """Minus the mean log-likelihood, of the three kept rows alone."""
    log_probs = jax.nn.log_softmax(table)[tokens[:, :-1], tokens[:, 1:]]
    each = -jnp.where(mask[:, 1:], log_probs, 0.0)
    size = mask.sum(1)
    if aggregate == 'token_mean':
      return each.sum() / size.sum()
    if aggregate == 'sequence_mean':
      return (each.sum(1) / size).mean()
    return each.sum() / (8 * 6)  # 'constant' divides by all rows

  want, want_grad = jax.value_and_grad(likelihood)(TABLE)
  found, found_grad = jax.value_and_grad(value)(TABLE)
  assert float(found) == pytest.approx(float(want), rel=1e-5)
  np.testing.assert_allclose(found_grad, want_grad, atol=1e-6)
  assert np.abs(want_grad).max() > 0.01
  # With the usual clip the weight is the ratio, and far from 1 here.
  other = steps.make_loss(BIGRAM, surrogate='cispo', **shared)
  wrong = jax.grad(lambda table: other(table, batch)[0].value)(TABLE)
  assert np.abs(wrong - want_grad).max() > 1e-2


def test_the_share_that_is_kept_is_a_metric():
  credit = functools.partial(star, group_size=4, horizon=HORIZON)
  batch = steps.training_batch(TRACES, MEASURED, credit)
  _, found = steps.make_loss(BIGRAM)(TABLE, batch)
  assert found['policy/kept_share'].value == 3 / 8
  # An algorithm that trains on all traces has no such metric.
  ones = lambda measured, length: jnp.ones((8, length))
  batch = steps.training_batch(TRACES, MEASURED, ones)
  np.testing.assert_array_equal(batch['mask'], TRACES.mask)
  assert 'policy/kept_share' not in steps.make_loss(BIGRAM)(TABLE, batch)[1]


def test_nothing_right_is_a_loss_of_nothing():
  none = Measured(jnp.zeros(8), None, None, None, None)
  credit = functools.partial(star, group_size=4, horizon=HORIZON)
  batch = steps.training_batch(TRACES, none, credit)
  loss, _ = steps.make_loss(BIGRAM, aggregate='token_mean')(TABLE, batch)
  assert (loss.total, loss.weight) == (0, 0)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'select': 'best'}, 'select must be one of'),
    ({'keep_share': 0.0}, 'keep_share must be > 0 and <= 1'),
    ({'keep_share': 1.5}, 'keep_share must be > 0 and <= 1'),
    ({'max_kept': 0}, 'max_kept must be >= 1'),
    ({'select': 'progress'}, 'keeps every right trace of 4'),
    ({'select': 'progress', 'max_kept': 4}, 'keeps every right trace of 4'),
    ({'select': 'progress', 'keep_share': 0.9}, 'keeps every right trace of 4'),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    kept(**options)
