"""Tests of meta_rl.algorithms.brpo: credit at token budgets, by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl.algorithms import (
  Measured,
  Summaries,
  brpo,
  summary_advantages,
)
from meta_rl.algorithms.brpo import budget_prior
from meta_rl.types import Episodes

LENGTH = 14


def measure(rewards, scores, lengths, budgets, answered=True):
  """What the prove step finds: thought from column 2 on, J at 0 is 0.9."""
  lengths, budgets = np.asarray(lengths), np.asarray(budgets)
  ends = 1 + np.minimum(np.r_[0, budgets], lengths[:, None])
  count = (np.r_[0, budgets[:-1]] < lengths[:, None]).sum(1)
  rows = len(lengths)
  return Measured(
    rewards=jnp.asarray(rewards, jnp.float32),
    success=jnp.asarray(np.c_[[0.9] * rows, scores], jnp.float32),
    episodes=Episodes(jnp.asarray(ends), jnp.asarray(count)),
    stop_index=jnp.asarray(lengths + 2),
    answered=jnp.full(rows, answered),
    inside=jnp.asarray((lengths > 0) & ~np.isin(lengths, budgets)),
  )


def row(*spans):
  """f64[LENGTH] from (first, last, value) spans; the rest is not looked at."""
  values = np.full(LENGTH, np.nan)
  for first, last, value in spans:
    values[first : last + 1] = value
  return values


def check(found, rows):
  wanted = np.stack(rows)
  seen = ~np.isnan(wanted)
  np.testing.assert_allclose(np.asarray(found)[seen], wanted[seen], atol=1e-6)


GOLDEN = [[0, 0.25, 0.5, 1], [0, 0, 0.25, 0.5]]


@pytest.mark.parametrize(
  'budgets, prior, credit',
  [
    (
      (2, 4, 6, 8),
      'uniform',
      [
        [0.125, 0.203125, 0.192708, 0.136161],
        [-0.125, -0.046875, 0.046875, 0.051339],
      ],
    ),
    # p = (.1, .2, .3, .4)
    (
      (2, 4, 6, 8),
      'linear',
      [
        [0.1625, 0.271875, 0.285417, 0.217857],
        [-0.1625, -0.053125, 0.06875, 0.082143],
      ],
    ),
    # R_s = (1, .5) throughout, V2 = .75. V1 is the past score: 0; .25·2/3 +
    # 0/3 = 1/6 with 0, .25; (0 + 2·.25 + 4·.5)/7 = 5/14 | 0; 0; (4·.25)/7.
    # A_s = R - (s·V1 + (4 - s)·.75)/4.
    (
      (2, 4, 6, 8),
      'base',
      [
        [0.25, 0.4375, 1 - (1 / 3 + 1.5) / 4, 1 - (15 / 14 + 0.75) / 4],
        [-0.25, -0.0625, 0.125, 0.5 - (3 / 7 + 0.75) / 4],
      ],
    ),
  ],
)
def test_the_whole_algorithm_on_golden_scores(budgets, prior, credit):
  # Row 0 thinks to the budget of 8 and is right; row 1 stops after 7 thoughts,
  # under the last budget, and is wrong.
  traces = measure([1, 0], GOLDEN, [8, 7], budgets)
  found = brpo(traces, LENGTH, group_size=2, budgets=budgets, prior=prior)
  a, b = credit
  thought = lambda x: (
    (2, 3, x[0]),
    (4, 5, x[1]),
    (6, 7, x[2]),
    (8, 8, x[3]),
  )
  check(
    found,
    [
      # The answer: 1 - J = 1 - 1.
      row(*thought(a), (9, 9, a[3]), (11, 13, 0.0)),
      # The marker at 9 falls under budget 8; the answer: 0 - .5.
      row(*thought(b), (9, 9, b[3]), (10, 13, -0.5)),
    ],
  )


def test_where_a_trace_stops_by_hand():
  # Budgets 2 and 4, p = 1/2 each, two groups of two.
  # Group 0, scores (.2, .6) and (.4, .4): R = (.4, .3), (.4, .2); V2 = .4, .25;
  # V1 = .1, .2. A = (0, .125), (0, -.025).
  # Group 1, scores (.2, .2) and (0, 0): R = (.2, .1), (0, 0); V2 = .1, .05;
  # V1 = .1, 0. A = (.1, .1 - .075), (-.1, -.025).
  traces = measure(
    [1, 1, 0, 1],
    [[0.2, 0.6], [0.4, 0.4], [0.2, 0.2], [0, 0]],
    [3, 2, 1, 0],
    (2, 4),
  )
  found = brpo(traces, LENGTH, group_size=2, budgets=(2, 4))
  check(
    found,
    [
      # Three thoughts: the marker, the fourth token, is under budget 4.
      row((2, 3, 0), (4, 4, 0.125), (5, 5, 0.125), (6, 13, 0.4)),
      # Two: the third token is under budget 4 too.
      row((2, 3, 0), (4, 4, -0.025), (5, 13, 0.6)),
      # One: the second token is under budget 2.
      row((2, 2, 0.1), (3, 3, 0.1), (4, 13, -0.2)),
      # None: the first token is under budget 2.
      row((2, 2, -0.1), (3, 13, 1.0)),
    ],
  )
  # Without an answer the end forgoes it: r - J on top.
  unanswered = dataclasses.replace(traces, answered=jnp.zeros(4, bool))
  cut = brpo(unanswered, LENGTH, group_size=2, budgets=(2, 4))
  check(cut - found, [row((5, 5, 0.4)), row((4, 4, 0.6)), row(), row()])


def test_the_groups_mean_as_baseline_of_answers():
  traces = measure([1, 0], GOLDEN, [8, 7], (2, 4, 6, 8))
  found = brpo(
    traces,
    LENGTH,
    group_size=2,
    budgets=(2, 4, 6, 8),
    summary_baseline='group',
  )
  # (1 + .5)/2 at the last budget.
  np.testing.assert_allclose(found[:, 12], [0.25, -0.75], atol=1e-6)


def test_summary_advantages_by_hand():
  traces = measure([1, 0], [[0.25, 0.5], [0.75, 1.0]], [4, 4], (2, 4))
  shape = (2, 2, 3)
  traces = dataclasses.replace(
    traces,
    summaries=Summaries(
      budget=jnp.array([[1, 2], [2, 2]]),
      tokens=jnp.zeros(shape, jnp.int32),
      mask=jnp.ones(shape, bool),
      log_probs=jnp.zeros(shape),
      rewards=jnp.array([[1.0, 0.0], [1.0, 0.0]]),
    ),
  )
  found = summary_advantages(traces, group_size=2)
  np.testing.assert_allclose(found, [[0.75, -0.5], [0.0, -1.0]], atol=1e-6)
  # Means of the group: .5 and .75.
  found = summary_advantages(traces, group_size=2, summary_baseline='group')
  np.testing.assert_allclose(found, [[0.5, -0.75], [0.25, -0.75]], atol=1e-6)


def test_priors():
  budgets = (10, 20, 30, 40)
  np.testing.assert_allclose(budget_prior('uniform', budgets), [0.25] * 4)
  np.testing.assert_allclose(
    budget_prior('linear', budgets), [0.1, 0.2, 0.3, 0.4], rtol=1e-6
  )
  np.testing.assert_allclose(budget_prior('base', budgets), [0, 0, 0, 1])


def test_one_budget_is_the_groups_mean_as_baseline():
  """Whatever the prior: outcome reward with J for r."""
  traces = measure([1, 0], [[0.7], [0.1]], [3, 4], (4,))
  for prior in ('uniform', 'linear', 'base'):
    found = brpo(traces, LENGTH, group_size=2, budgets=(4,), prior=prior)
    np.testing.assert_allclose(found[:, 2], [0.3, -0.3], atol=1e-6)


@pytest.mark.parametrize(
  'changes, options, message',
  [
    ({}, {'prior': 'peak'}, 'prior must be one of'),
    ({}, {'summary_baseline': 'all'}, 'summary_baseline must be one of'),
    ({}, {'budgets': (4, 8)}, '2 budgets are given and J was measured at 4'),
    ({}, {'group_size': 1}, 'at least 2'),
    ({'inside': None}, {}, 'needs measured.inside'),
  ],
)
def test_bad_input_is_refused(changes, options, message):
  traces = measure([1, 0], GOLDEN, [8, 7], (2, 4, 6, 8))
  settings = {'group_size': 2, 'budgets': (2, 4, 6, 8)} | options
  with pytest.raises(ValueError, match=message):
    brpo(dataclasses.replace(traces, **changes), LENGTH, **settings)
