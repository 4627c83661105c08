"""Tests of meta_rl.algorithms.rl2: which episodes count."""

import jax.numpy as jnp
import numpy as np
import pytest
from toys import LENGTH, row

from meta_rl import check_config
from meta_rl.algorithms import Measured, mrt, rl2
from meta_rl.types import Episodes

pytest_plugins = ['small_runs']

# Trials of 3 episodes. Row 0: two (columns 2-4, 5-6), then it stops at 7,
# right. Row 1: one (2-5), stops at 6, wrong. Row 2: all three, EOS at 8.
TRACES = Measured(
  rewards=jnp.array([1.0, 0.0, 0.0]),
  success=jnp.array(
    [[0.2, 0.5, 0.9, 0.9], [0.2, 0.1, 0.1, 0.1], [0.2, 0.2, 0.8, 0.5]]
  ),
  episodes=Episodes(
    jnp.array([[1, 4, 6, 6], [1, 5, 5, 5], [1, 3, 5, 7]]), jnp.array([2, 1, 3])
  ),
  stop_index=jnp.array([7, 6, 8]),
  answered=jnp.array([True, True, False]),
)


def run(**options):
  return rl2(TRACES, LENGTH, group_size=3, **options)


def check(found, rows):
  np.testing.assert_allclose(found, np.stack(rows), atol=1e-6)


def test_all_episodes_by_hand():
  # Gains over stopping, a third of the sum over the episodes that are left, a
  # stopped trace keeping its J:
  # row 0: at 0 (.3 + .7 + .7)/3, at 1 (.4 + .4)/3, at 2 0.
  # row 1: at 0 3·(-.1)/3, at 1 0.  row 2: at 0 (0 + .6 + .3)/3, at 1
  # (.6 + .3)/3, at 2 -.3/3, at 3 0.
  check(
    run(counted='all', baseline='none'),
    [
      row(0.1, (2, 4, 1.7 / 3), (5, 6, 0.8 / 3), (7, 7, 0)),
      row(-0.1, (2, 5, -0.1), (6, 6, 0)),
      row(-0.5, (2, 3, 0.3), (4, 5, 0.3), (6, 7, -0.1)),
    ],
  )


def test_the_last_episode_by_hand():
  # J_K - J_j: .7, .4; -.1; .3, .3, -.3. Baselines, the mean of the others that
  # reach the boundary: at 0 (-.1 + .3)/2 = .1, .5, .3; at 1 (0 + .3)/2 = .15,
  # .35, .2; at 2 -.3 of row 2 for row 0, 0 the other way; at 3 row 2 is alone.
  check(
    run(counted='last'),
    [
      row(0.1, (2, 4, 0.6), (5, 6, 0.25), (7, 7, 0.3)),
      row(-0.1, (2, 5, -0.6), (6, 6, -0.35)),
      # Its EOS forgoes an answer worth J = .5.
      row(-0.5, (2, 3, 0.0), (4, 5, 0.1), (6, 7, -0.3), (8, 8, -0.5)),
    ],
  )


def test_the_last_episode_alone_is_return_to_go():
  expected = mrt(
    TRACES, LENGTH, group_size=3, horizon=9, credit='return_to_go', alpha=0.0
  )
  np.testing.assert_allclose(run(counted='last'), expected, atol=1e-6)


def test_all_episodes_are_tokens_of_one_length():
  """Episodes of 2 tokens; a token earlier they count for their own too.

  w_i = 1 - i/3 is 1 - e/H with e, the tokens up to episode i's beginning.
  """
  ends = jnp.array([[1, 3, 5, 5], [1, 3, 3, 3], [1, 3, 5, 7]])
  traces = Measured(
    rewards=TRACES.rewards,
    success=TRACES.success,
    episodes=Episodes(ends, TRACES.episodes.count),
    stop_index=ends[:, -1] + 1,
    answered=jnp.ones(3, bool),
  )
  found = rl2(traces, LENGTH, group_size=3)
  progress = np.array([[0.3, 0.4, 0], [-0.1, 0, 0], [0, 0.6, -0.3]])
  weights = np.array([1, 2 / 3, 1 / 3])
  returns = np.cumsum((progress * weights)[:, ::-1], 1)[:, ::-1]
  # The first boundary, all three rows reach it.
  others = (returns[:, 0].sum() - returns[:, 0]) / 2
  np.testing.assert_allclose(found[:, 2], returns[:, 0] - others, atol=1e-6)


def test_exploring_is_free_where_the_last_episode_counts():
  """A step down that a later step up makes good: worth 0 or less than 0."""
  traces = Measured(
    rewards=jnp.array([1.0]),
    success=jnp.array([[0.5, 0.1, 0.5]]),
    episodes=Episodes(jnp.array([[0, 1, 2]]), jnp.array([2])),
    stop_index=jnp.array([3]),
    answered=jnp.array([True]),
  )
  run = lambda counted: rl2(
    traces, 5, group_size=1, counted=counted, baseline='none'
  )
  assert run('last')[0, 1] == pytest.approx(0.0, abs=1e-6)
  assert run('all')[0, 1] == pytest.approx(-0.2, abs=1e-6)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'counted': 'first'}, 'counted must be one of'),
    ({'baseline': 'mean'}, 'baseline must be one of'),
  ],
)
def test_unknown_choices_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)


def test_what_no_run_can_use(small):
  for changes, message in (
    ({'algorithm__counted': 'first'}, 'algorithm.counted must be one of'),
    ({'prover__kind': 'none'}, "algorithm.name='rl2' needs a prover"),
  ):
    with pytest.raises(ValueError, match=message):
      check_config.check(small.config('rl2', **changes))
