"""Tests of meta_rl.algorithms: credit by hand, on three traces."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import LENGTH, row

from meta_rl import advantages
from meta_rl.algorithms import CREDITS, Measured, mrt, outcome
from meta_rl.algorithms.base import spread
from meta_rl.types import Episodes

HORIZON = 10


def measure(rewards, success, ends, count, stop_index, answered):
  return Measured(
    rewards=jnp.asarray(rewards, jnp.float32),
    success=jnp.asarray(success, jnp.float32),
    episodes=Episodes(jnp.asarray(ends), jnp.asarray(count)),
    stop_index=jnp.asarray(stop_index),
    answered=jnp.asarray(answered),
  )


# Row 0: two episodes (columns 2-4, 5-6), marker at 7, a right answer.
# Row 1: one episode (2-5), marker at 6, a wrong answer.
# Row 2: EOS at column 2 at once: no episode, no answer.
TRACES = measure(
  rewards=[1, 0, 0],
  success=[[0.2, 0.5, 0.9], [0.2, 0.1, 0.1], [0.2, 0.2, 0.2]],
  ends=[[1, 4, 6], [1, 5, 5], [1, 1, 1]],
  count=[2, 1, 0],
  stop_index=[7, 6, 2],
  answered=[True, True, False],
)


def check(found, rows):
  assert found.shape == (3, LENGTH)
  np.testing.assert_allclose(found, np.stack(rows), atol=1e-6)


def run(traces=TRACES, **options):
  settings = {'group_size': 3, 'horizon': HORIZON}
  return mrt(traces, LENGTH, **settings | options)


def test_token_weighted_by_hand():
  # Progress: (.3, .4), (-.1), none. Weights .7·(1 - e/10) + .3 at e = 3, 5:
  # .79, .65; at e = 4: .72. Price .5: .05 a token.
  # Gains: .3·.79 - .15 = .087, .4·.65 - .10 = .16; -.1·.72 - .20 = -.272.
  # Returns: (.247, .16, 0), (-.272, 0), (0).
  # Baselines, the mean of the other rows that reach the boundary:
  # at 0: -.136, .1235, -.0125; at 1: 0, .16; at 2: row 0 is alone, 0.
  # alpha = 2. Answers get r - J_k: .1, -.1, -.2.
  found = run(alpha=2.0, outcome_mass=0.3, price=0.5)
  check(
    found,
    [
      row(0.1, (2, 4, 2 * (0.247 + 0.136)), (5, 6, 2 * 0.16), (7, 7, 0.0)),
      row(-0.1, (2, 5, 2 * (-0.272 - 0.1235)), (6, 6, -2 * 0.16)),
      # Stopping at boundary 0 earns -b_0, and without an answer r - J_0 too.
      row(-0.2, (2, 2, 2 * 0.0125 - 0.2)),
    ],
  )


def test_return_to_go_by_hand():
  # Returns J_k - J_j: (.7, .4, 0), (-.1, 0), (0); no weights.
  # Baselines at 0: -.05, .35, .3; at 1: 0, .4. Scale 1 + alpha = 1.5.
  found = run(credit='return_to_go', alpha=0.5)
  check(
    found,
    [
      row(0.1, (2, 4, 1.5 * 0.75), (5, 6, 1.5 * 0.4), (7, 7, 0.0)),
      row(-0.1, (2, 5, 1.5 * -0.45), (6, 6, 1.5 * -0.4)),
      row(-0.2, (2, 2, 1.5 * -0.3 - 0.2)),
    ],
  )


def test_decay_judges_an_episode_by_where_it_led():
  # The returns and baselines of test_return_to_go_by_hand, scale 1: row 0 has
  # b = -.05, 0, 0: .7 - .4 + 0 + .05 = .35, then .4 - 0 + 0 - 0 = .4. Row 1 has
  # b = .35, .4: -.1 - 0 + .4 - .35 = -.05, and -.4 for stopping. Row 2: -.3.
  found = run(credit='return_to_go', alpha=0.0, decay=0.0)
  check(
    found,
    [
      row(0.1, (2, 4, 0.35), (5, 6, 0.4), (7, 7, 0.0)),
      row(-0.1, (2, 5, -0.05), (6, 6, -0.4)),
      row(-0.2, (2, 2, -0.3 - 0.2)),
    ],
  )


@pytest.mark.parametrize(
  'options',
  [{'credit': 'immediate'}, {'baseline': 'none'}, {'baseline': 'continuing'}],
)
def test_decay_without_a_critic_is_refused(options):
  with pytest.raises(ValueError, match=r'decay=0\.5 needs'):
    run(decay=0.5, **options)


def test_immediate_by_hand():
  # Leave-one-out outcomes 1, -.5, -.5 on all tokens, plus alpha·progress.
  found = run(credit='immediate', alpha=0.5)
  check(
    found,
    [
      row(1.0, (2, 4, 1.15), (5, 6, 1.2)),
      row(-0.5, (2, 5, -0.55)),
      row(-0.5),
    ],
  )


def test_without_a_baseline():
  # The returns themselves; stopping returns 0.
  found = run(baseline='none', alpha=1.0, outcome_mass=1.0)
  check(
    found,
    [
      row(0.1, (2, 4, 0.7), (5, 6, 0.4), (7, 7, 0.0)),
      row(-0.1, (2, 5, -0.1), (6, 6, 0.0)),
      row(-0.2, (2, 2, -0.2)),
    ],
  )


def test_a_marker_without_an_answer_behind_it_is_the_last_act():
  # As row 1, its response cut right after the marker: r - J_k lands there.
  cut = measure(
    [1, 0, 0],
    TRACES.success,
    TRACES.episodes.ends,
    TRACES.episodes.count,
    TRACES.stop_index,
    [True, False, False],
  )
  found = run(cut, baseline='none')
  assert found[1, 6] == pytest.approx(-0.1)
  # A thought that fills the response has no stop token: nothing lands.
  endless = measure(
    [1, 0, 0],
    TRACES.success,
    TRACES.episodes.ends,
    TRACES.episodes.count,
    [7, LENGTH, 2],
    [True, False, False],
  )
  found = run(endless, baseline='none')
  np.testing.assert_allclose(found[1, 6:], -0.1, rtol=1e-5)


# ---- traces without a reward, and rewards beyond the outcome

SEVEN = measure(
  rewards=[1, 0, 0, 1, 0, 1, 0],
  success=np.random.default_rng(0).random((7, 3)),
  ends=[[1, 4, 6], [1, 5, 5], [1, 1, 1], [1, 3, 8], [1, 2, 2], [1, 4, 7]]
  + [[1, 2, 3]],
  count=[2, 1, 0, 2, 1, 2, 2],
  stop_index=[7, 6, 2, 9, 3, 8, 4],
  answered=[True, True, False, True, True, True, False],
)


def change(traces, **fields):
  return dataclasses.replace(traces, **fields)


@pytest.mark.parametrize('credit', CREDITS)
def test_a_trace_without_a_reward_is_as_good_as_not_there(credit):
  """Of seven traces of one prompt two have none: the other five see a group
  of five."""
  keep = np.array([True, False, True, True, True, False, True])
  extra = jnp.asarray([0.3, jnp.nan, -0.2, 0.1, 0.9, jnp.nan, 0.4])
  rewards = jnp.where(keep, SEVEN.rewards + extra, 1e30)
  holes = change(SEVEN, rewards=rewards, valid=jnp.asarray(keep), extra=extra)
  small = jax.tree.map(
    lambda x: x[keep], change(SEVEN, rewards=rewards, extra=extra)
  )
  got = jax.jit(lambda x: run(x, credit=credit, group_size=7))(holes)
  want = jax.jit(lambda x: run(x, credit=credit, group_size=5))(small)
  np.testing.assert_allclose(got[keep], want, atol=1e-5)


@pytest.mark.parametrize('baseline', ['mean_std', 'mean', 'leave_one_out'])
def test_group_baselines_leave_a_trace_without_a_reward_out(baseline):
  options = {'group_size': 4, 'baseline': baseline}
  traces = outcome_traces([1, 0, 0, jnp.nan, 1, 1, jnp.nan, 0])
  valid = jnp.asarray([True] * 3 + [False] + [True, True, False, True])
  found = outcome(change(traces, valid=valid), 2, **options)
  options['group_size'] = 3
  want = outcome(outcome_traces([1, 0, 0, 1, 1, 0]), 2, **options)
  np.testing.assert_allclose(found[valid], want, rtol=1e-5)
  np.testing.assert_array_equal(found[~valid], 0)


@pytest.mark.parametrize('axis_name', [None, 'rows'])
def test_the_batch_mean_leaves_a_trace_without_a_reward_out(axis_name):
  """Over all devices: two of three rows here, one of three there."""
  rewards = jnp.asarray([1, jnp.nan, 0, jnp.nan, jnp.nan, 1])
  valid = jnp.isfinite(rewards)
  call = lambda traces: outcome(
    traces, 2, group_size=3, baseline='batch_mean', axis_name=axis_name
  )
  traces = change(outcome_traces(rewards), valid=valid)
  if axis_name is None:
    found = call(traces)
  else:
    halves = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), traces)
    found = jax.vmap(call, axis_name=axis_name)(halves).reshape(6, 2)
  # The mean is (1 + 0 + 1) / 3.
  want = [1 / 3, 0, -2 / 3, 0, 0, 1 / 3]
  np.testing.assert_allclose(found, np.tile(want, (2, 1)).T, atol=1e-6)


def test_a_batch_without_a_reward_has_no_advantage():
  traces = change(outcome_traces([jnp.nan] * 4), valid=jnp.zeros(4, bool))
  for baseline in ('none', 'batch_mean', 'mean_std', 'leave_one_out'):
    found = outcome(traces, 2, group_size=2, baseline=baseline)
    np.testing.assert_array_equal(found, 0)


def test_a_reward_beyond_the_outcome_by_hand():
  # Extra rewards 1, 0, .5 of one group: leave-one-out .75, -.75, 0 on all
  # tokens, above what the outcome alone gives.
  extra = jnp.asarray([1.0, 0.0, 0.5])
  own = np.array([0.75, -0.75, 0.0])[:, None]
  for credit in ('token_weighted', 'return_to_go'):
    found = run(
      change(TRACES, rewards=TRACES.rewards + extra, extra=extra),
      credit=credit,
    )
    np.testing.assert_allclose(found, run(credit=credit) + own, atol=1e-6)
  # 'immediate' has the whole reward in its own leave-one-out already.
  found = run(
    change(TRACES, rewards=TRACES.rewards + extra, extra=extra),
    credit='immediate',
  )
  np.testing.assert_allclose(found, run(credit='immediate') + own, atol=1e-6)


@pytest.mark.parametrize('credit', CREDITS)
def test_alpha_is_not_a_no_op(credit):
  # Optimizers such as Adam hide a common factor: the ratio of the advantages
  # of thought and answer must move, not their size alone.
  ratio = []
  for alpha in (0.5, 2.0):
    found = run(credit=credit, alpha=alpha)
    ratio.append(found[0, 2] / found[0, 9])
  assert abs(ratio[0] - ratio[1]) > 0.1


def test_immediate_progress_telescopes():
  # What the episodes get beyond the outcome adds up to alpha·(J_k - J_0).
  alpha = 0.7
  found = run(credit='immediate', alpha=alpha)
  own = found[:, 0]
  extra = (found[0, 3] - own[0]) + (found[0, 6] - own[0])
  assert extra == pytest.approx(alpha * (0.9 - 0.2), abs=1e-6)
  assert found[1, 3] - own[1] == pytest.approx(alpha * -0.1, abs=1e-6)


@pytest.mark.parametrize('credit', ['return_to_go', 'immediate'])
def test_a_price_without_weights_is_refused(credit):
  with pytest.raises(ValueError, match='price=0.5 is of credit='):
    run(credit=credit, price=0.5)


def test_weighted_with_all_mass_on_the_outcome_is_return_to_go():
  weighted = run(credit='token_weighted', alpha=1.5, outcome_mass=1.0)
  to_go = run(credit='return_to_go', alpha=0.5)
  np.testing.assert_allclose(weighted, to_go, atol=1e-6)


def test_stopping_early_is_learned():
  # 8 traces of one prompt at boundary 0, policy 'go on' with chance 1/2: four
  # go on and gain R = .3, four stop. The gradient in the logit of going on is
  # Σ_on (1 - 1/2)·A + Σ_stop (-1/2)·A_stop.
  # The mean of the others is 3R/7 for one who went on, 4R/7 for one who
  # stopped: 4·(R - 3R/7)/2 + 4·(4R/7)/2 = 16R/7.
  gain = 0.3
  on = np.array([True] * 4 + [False] * 4)
  count = on.astype(np.int32)
  ends = np.stack([np.full(8, 1), 1 + 2 * count], 1)
  success = np.stack([np.full(8, 0.2), 0.2 + gain * count], 1)
  traces = measure([0] * 8, success, ends, count, ends[:, 1] + 1, [True] * 8)
  found = mrt(
    traces, LENGTH, group_size=8, horizon=10, alpha=1.0, outcome_mass=1.0
  )
  first = np.asarray(found[:, 2])  # the token that goes on, or the marker
  gradient = 0.5 * first[on].sum() - 0.5 * first[~on].sum()
  assert gradient == pytest.approx(16 * gain / 7, rel=1e-5)
  # A baseline fitted on and subtracted from those alone who went on: nothing
  # is left to learn from, and stopping gets exactly 0.
  found = mrt(
    traces,
    LENGTH,
    group_size=8,
    horizon=10,
    outcome_mass=1.0,
    baseline='continuing',
  )
  first = np.asarray(found[:, 2])
  np.testing.assert_array_equal(first[~on], 0)
  assert 0.5 * first[on].sum() == pytest.approx(0, abs=1e-6)


# The toy: TRIED traces stand at boundary 0, each goes on with chance GO, gains
# GAIN by it and is done. d/d logit of E[Σ gains] = d/d logit TRIED·GO·GAIN:
# 6·.3·.7·.5 = .63.
TRIED, GO, GAIN = 6, 0.3, 0.5


def expected_gradient(advantage_fn):
  """Returns E[Σ_i A_i·d log π(a_i)], of all 2^6 patterns of going on.

  `advantage_fn(on bool[6]) -> f32[6]`, of what each trace did; d log π is 1 - p
  for going on and -p for stopping.
  """
  total = 0.0
  for pattern in itertools.product([False, True], repeat=TRIED):
    on = np.array(pattern)
    advantage = np.asarray(advantage_fn(jnp.asarray(on)), np.float64)
    chance = np.where(on, GO, 1 - GO).prod()
    total += chance * (advantage * np.where(on, 1 - GO, -GO)).sum()
  return total


@pytest.mark.parametrize(
  'baseline, expected',
  [
    ('prover', 0.63),  # the mean of the others
    ('none', 0.63),
    # One who went on in company gets R - R = 0 and one who stopped 0: what is
    # left is one who went on alone: 6·(.3·.7^5)·.7·.5 = .105884.
    ('continuing', 0.105884),
  ],
)
def test_the_gradient_of_stopping_is_the_true_one(baseline, expected):
  @jax.jit
  def advantage(on):
    count = on.astype(jnp.int32)
    ends = jnp.stack([jnp.ones(TRIED, int), 1 + 2 * count], 1)
    success = jnp.stack([jnp.full(TRIED, 0.2), 0.2 + GAIN * count], 1)
    known = jnp.ones(TRIED, bool)
    rewards = jnp.zeros(TRIED)
    traces = measure(rewards, success, ends, count, ends[:, 1] + 1, known)
    found = mrt(
      traces,
      LENGTH,
      group_size=TRIED,
      horizon=10,
      outcome_mass=1.0,
      baseline=baseline,
    )
    return found[:, 2]  # the token that goes on, or the marker

  assert expected_gradient(advantage) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_the_true_one_with_a_slope_too():
  # J_0 differs from trace to trace, and 1 row is enough for a fit.
  success = jnp.linspace(0.1, 0.9, TRIED)

  @functools.partial(jax.jit, static_argnames='min_rows')
  def advantage(on, min_rows=1):
    returns = jnp.stack([GAIN * on, jnp.zeros(TRIED)], 1)
    return (
      returns
      - advantages.prover_baseline(
        returns,
        jnp.stack([success, success], 1),
        on.astype(jnp.int32),
        min_rows=min_rows,
      )
    )[:, 0]

  assert expected_gradient(advantage) == pytest.approx(0.63, rel=1e-5)
  # The slope is at work: the mean of the others is another baseline.
  on = jnp.arange(TRIED) < 3
  assert np.abs(advantage(on) - advantage(on, min_rows=16)).max() > 0.1


def test_spread_by_hand():
  # Row 0 stops at a boundary, row 1 inside its only episode, row 2 inside it
  # and with an EOS in place of an answer, row 3 two thoughts past the last
  # boundary. Credits .1, .2 of the episodes, stop -1, answer 5.
  ends = [[1, 3, 5], [1, 4, 4], [1, 4, 4], [1, 3, 5]]
  traces = measure(
    [0] * 4,
    np.zeros((4, 3)),
    ends,
    [2, 1, 1, 2],
    [6, 5, 5, 8],
    [True, True, False, True],
  )
  inside = jnp.asarray([False, True, True, False])
  values = lambda x: jnp.full(4, x)
  found = spread(
    dataclasses.replace(traces, inside=inside),
    LENGTH,
    jnp.tile(jnp.array([0.1, 0.2]), (4, 1)),
    stop=values(-1.0),
    answer=values(5.0),
  )
  thought = ((2, 3, 0.1), (4, 5, 0.2))
  rows = [
    row(5, *thought, (6, 6, -1)),
    row(5, (2, 4, 0.1), (5, 5, 0.1)),
    row(5, (2, 4, 0.1), (5, 5, 5.1)),
    row(5, *thought),
  ]
  np.testing.assert_allclose(found, np.stack(rows), atol=1e-6)


def test_a_stop_inside_an_episode_gets_that_episodes_credit():
  traces = dataclasses.replace(TRACES, inside=jnp.array([False, True, False]))
  settings = {'alpha': 2.0, 'outcome_mass': 0.3, 'price': 0.5}
  found, before = run(traces, **settings), run(**settings)
  # Row 1 of the first test: its marker at 6, in place of -b_1.
  assert found[1, 6] == pytest.approx(2 * (-0.272 - 0.1235), abs=1e-6)
  changed = np.asarray(found != before)
  assert changed.sum() == 1
  # What follows a stop is known: nothing is bootstrapped.
  found = run(traces, decay=0.5, **settings)
  assert found[1, 6] == pytest.approx(2 * (-0.272 - 0.1235), abs=1e-6)
  # Immediate credit: the outcome's -.5 and alpha times its progress, -.1.
  found = run(traces, credit='immediate', alpha=0.5)
  assert found[1, 6] == pytest.approx(-0.5 - 0.05, abs=1e-6)


@pytest.mark.parametrize('decay', [0.0, 0.5, 1.0])
def test_a_stop_inside_an_episode_is_no_stop_at_its_end(decay):
  # Rows 0-2 think two episodes (2-3, 4-5) with J 0, 0, 1; rows 3-5 stop inside
  # the first. rho = 1: returns are (1, 1, 0) and (0, 0). At boundary 0 the
  # others' mean is 2/5 and 3/5. Who is at boundary 1 returns 1: nothing is left
  # to credit there, while a fit with rows 3-5 would have it 2/5.
  traces = measure(
    rewards=[1, 1, 1, 0, 0, 0],
    success=[[0, 0, 1]] * 3 + [[0, 0, 0]] * 3,
    ends=[[1, 3, 5]] * 3 + [[1, 3, 3]] * 3,
    count=[2] * 3 + [1] * 3,
    stop_index=[6] * 3 + [4] * 3,
    answered=[True] * 6,
  )
  traces = dataclasses.replace(
    traces, inside=jnp.array([False] * 3 + [True] * 3)
  )
  found = run(traces, outcome_mass=1.0, decay=decay)
  np.testing.assert_allclose(found[0], row(0, (2, 3, 0.6)), atol=1e-6)
  np.testing.assert_allclose(found[3], row(0, (2, 4, -0.6)), atol=1e-6)


def test_grpo_by_hand():
  # mean .5, std √(1/3) = .577350: .5 / (.577350 + 1e-4) = .865876.
  traces = outcome_traces([1, 0, 0, 1, 1, 1, 1, 1])
  found = outcome(traces, 3, group_size=4)
  expected = [0.865876, -0.865876, -0.865876, 0.865876, 0, 0, 0, 0]
  np.testing.assert_allclose(found, np.tile(expected, (3, 1)).T, rtol=1e-5)


@pytest.mark.parametrize(
  'baseline, expected',
  [
    ('mean', [0.75, -0.25, -0.25, -0.25]),  # Dr. GRPO
    ('leave_one_out', [1, -1 / 3, -1 / 3, -1 / 3]),  # RLOO
  ],
)
def test_other_group_baselines_by_hand(baseline, expected):
  traces = outcome_traces([1, 0, 0, 0])
  found = outcome(traces, 2, group_size=4, baseline=baseline)
  np.testing.assert_allclose(found, np.tile(expected, (2, 1)).T, rtol=1e-6)


def test_reinforce_by_hand():
  # Groups do not matter: the mean of all four is .5, whoever they belong to.
  traces = outcome_traces([1, 1, 0, 0])
  for size in (1, 2, 4):
    found = outcome(traces, 2, group_size=size, baseline='none')
    np.testing.assert_array_equal(found[:, 0], [1, 1, 0, 0])
    found = outcome(traces, 2, group_size=size, baseline='batch_mean')
    np.testing.assert_allclose(found[:, 1], [0.5, 0.5, -0.5, -0.5], rtol=1e-6)


def test_the_mean_of_the_batch_is_over_a_mapped_axis():
  # Two devices of two rows, means 1 and 0 each: .5 of all four.
  traces = outcome_traces([1, 1, 0, 0])
  parts = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), traces)
  call = functools.partial(outcome, length=2, group_size=2)
  mapped = jax.vmap(
    functools.partial(call, baseline='batch_mean', axis_name='rows'),
    axis_name='rows',
  )(parts)
  np.testing.assert_allclose(
    mapped[..., 0], [[0.5, 0.5], [-0.5, -0.5]], rtol=1e-6
  )


def test_shaping_comes_before_the_baseline():
  # Thinking tokens, stop_index - 1 - ends[0]: 3, 5, 0, 0; less |4 - n|/10 each:
  # .9, -.1, -.4, -.4, whose mean is 0.
  traces = outcome_traces([1, 0, 0, 0], lengths=[3, 5, 0, 0])
  options = {'shaping': 'lcpo_exact', 'target_length': 4, 'alpha': 0.1}
  found = outcome(traces, 2, group_size=4, baseline='mean', **options)
  np.testing.assert_allclose(found[:, 0], [0.9, -0.1, -0.4, -0.4], atol=1e-6)
  # A group of wrong answers alone still learns its length: mean -.275.
  traces = outcome_traces([0, 0, 0, 0], lengths=[3, 5, 0, 5])
  found = outcome(traces, 2, group_size=4, baseline='mean', **options)
  np.testing.assert_allclose(
    found[:, 0], [0.075, 0.075, -0.225, 0.075], atol=1e-6
  )


@pytest.mark.parametrize('past', [0, 2])
def test_lengths_are_all_thinking_tokens(past):
  # Of TRACES: 5, 4 and 0 thinking tokens, prompt, marker and answer left out,
  # and of row 0 those that it thinks past its last boundary.
  stop = TRACES.stop_index + jnp.array([past, 0, 0])
  found = outcome(
    change(TRACES, stop_index=stop),
    LENGTH,
    group_size=1,
    baseline='none',
    shaping='lcpo_exact',
    target_length=0,
    alpha=1.0,
  )
  check(found, [row(1 - (5 + past)), row(0 - 4), row(0)])


def outcome_traces(rewards, lengths=None):
  rows = len(rewards)
  zeros = np.zeros((rows, 2), np.int32)
  ends = zeros if lengths is None else zeros + 7
  if lengths is not None:
    ends[:, 1] += np.asarray(lengths, np.int32)
  return measure(
    rewards, zeros, ends, zeros[:, 0], ends[:, 1] + 1, zeros[:, 0] > 0
  )


def test_under_jit_and_over_a_mapped_axis():
  # Rows spread over a mapped axis share one baseline.
  whole = run()
  split = lambda x: x.reshape(3, 1, *x.shape[1:])
  parts = jax.tree.map(split, TRACES)
  found = jax.jit(
    jax.vmap(functools.partial(run, axis_name='rows'), axis_name='rows')
  )(parts)
  # A part of one row has itself left out by its own sums alone.
  np.testing.assert_allclose(found[:, 0], whole, atol=1e-6)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: run(credit='eventual'), 'credit'),
    (lambda: run(baseline='mean'), 'baseline'),
    (lambda: outcome(TRACES, 3, group_size=3, baseline='median'), 'baseline'),
    (lambda: outcome(TRACES, 3, group_size=1), 'at least 2'),
    (lambda: outcome(TRACES, 3, group_size=3, shaping='x'), 'shaping'),
    (
      lambda: outcome(TRACES, 3, group_size=3, alpha=0.1),
      "alpha=0.1 does nothing with shaping='none'",
    ),
  ],
)
def test_unknown_choices_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
