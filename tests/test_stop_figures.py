"""Figures of stop rules, by hand: two traces, three boundaries."""

import numpy as np
import pytest

from meta_rl import stop_evaluation, stop_figures, stop_rules


def found(**changes):
  """Trace 0 is solved at boundary 1 and spoilt at 2; trace 1 never solved."""
  arrays = {
    'count': np.array([2, 1]),
    'thought': np.array([[0, 9, 18], [0, 9, 9]]),
    'looked': np.array([[True, True, True], [True, True, False]]),
    'success': np.array([[0.2, 0.9, 0.4], [0.3, 0.1, 0.1]]),
    'right': np.array([[False, True, False], [True, False, False]]),
    'confidence': np.array([[0.3, 0.8, 0.5], [0.6, 0.2, 0.2]]),
    'agreement': np.array([[1, 1, 2], [1, 2, 2]]),
    'progress': np.array([[0.05, 0.001, 0.002], [0.03, 0.02, 0.02]]),
    'probe_tokens': np.array([[6, 4, 5], [3, 6, 0]]),
  }
  return arrays | changes


def test_a_rule_that_needs_no_probe():
  # price .01: trace 0 stops at 1, trace 1 never; price .1: both at once
  result = stop_figures.outcome('progress', found(), [0.01, 0.1])
  assert result.stop.tolist() == [[1, 1], [0, 0]]
  assert result.right.tolist() == [[True, False], [False, True]]
  assert result.thinking.tolist() == [[9, 9], [0, 0]]
  assert result.probing.tolist() == [[0, 0], [0, 0]]


def test_probes_are_paid_up_to_the_stop():
  result = stop_figures.outcome('confidence', found(), [0.7, 0.9, 0.3])
  # .7: trace 0 stops at 1, whose probe is its answer: it pays for 0, 6 tokens;
  #   trace 1 never stops and pays for 0 and 1, 9 tokens
  # .9: neither stops: 6 + 4 + 5 and 3 + 6; .3: both at once, for nothing
  assert result.stop.tolist() == [[1, 1], [2, 1], [0, 0]]
  assert result.probing.tolist() == [[6, 9], [15, 9], [0, 0]]
  assert result.tokens.tolist() == [[15, 18], [33, 18], [0, 0]]
  agreed = stop_figures.outcome('agreement', found(), [2])
  assert agreed.stop.tolist() == [[2, 1]]
  assert agreed.probing.tolist() == [[10, 3]]


def test_a_number_of_episodes():
  result = stop_figures.outcome('episodes', found(), [0, 1, 2])
  assert result.stop.tolist() == [[0, 0], [1, 1], [2, 1]]
  assert result.probing.sum() == 0


def test_what_is_no_look_costs_nothing_and_stops_nothing():
  looked = np.array([[True, True, False], [True, True, False]])
  arrays = found(looked=looked)
  for name in ('confidence', 'agreement', 'progress'):
    arrays[name] = np.where(looked, arrays[name], np.nan)
  arrays['probe_tokens'] = np.where(looked, arrays['probe_tokens'], 0)
  result = stop_figures.outcome('agreement', arrays, [2])
  # trace 0 would have agreed at its end, which is its own stop all the same
  assert result.stop.tolist() == [[2, 1]]
  assert result.probing.tolist() == [[10, 3]]
  episodes = stop_figures.scores('episodes', arrays)
  np.testing.assert_array_equal(episodes, [[0, 1, np.nan], [0, 1, np.nan]])


def test_run_out_and_spoiled():
  right, tokens = stop_figures.run_out(found())
  assert right.tolist() == [False, False]
  assert tokens.tolist() == [18, 9]
  spoiled = stop_figures.spoiled(
    np.array([True, True, False]), np.array([[True, False, False]])
  )
  assert spoiled.tolist() == [[0, 1, 0]]


def outcome(tokens, right):
  """An outcome of so many thresholds, with the means that are given."""
  tokens, right = np.asarray(tokens), np.asarray(right)
  return stop_figures.Outcome(tokens * 0, right, tokens, tokens * 0)


def test_operating_points():
  full = np.array([True, True, False, False])
  result = outcome(
    [[9, 9, 9, 9], [5, 5, 5, 5], [2, 2, 2, 2]],
    [[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]],
  )
  # .5 is wanted: the second has it in 5 tokens; a drop of .25 lets the third in
  assert stop_figures.cheapest(result, full, drop=0.0) == 1
  assert stop_figures.cheapest(result, full, drop=0.25) == 2
  assert stop_figures.cheapest(result, full | True, drop=0.0) is None
  assert stop_figures.most_accurate(result, np.full(4, 9)) == 0
  assert stop_figures.most_accurate(result, np.full(4, 8)) == 1
  assert stop_figures.most_accurate(result, np.full(4, 1)) is None


def test_row():
  result = stop_figures.outcome('confidence', found(), [0.7])
  line = stop_figures.row(
    'confidence',
    result,
    0,
    threshold=0.7,
    forced=False,
    point='calibrated',
    full_right=np.array([False, False]),
    full_tokens=np.array([18, 9]),
    clusters=np.array([0, 1]),
  )
  assert line['accuracy']['mean'] == 0.5
  assert line['gain']['mean'] == 0.5
  assert line['thinking_tokens'] == 9
  assert line['probe_tokens'] == 7.5
  assert line['tokens_mean'] == 16.5
  assert line['saved'] == pytest.approx(1 - 16.5 / 13.5)
  assert line['risk'] == 0
  assert line['calibrated']
  assert line['label'] == 'confidence (calibrated)'


def test_frontier_is_of_j_in_order_of_tokens():
  arrays = found()
  result = stop_figures.outcome('episodes', arrays, [2, 0, 1])
  curve = stop_figures.frontier(result, arrays['success'])
  assert curve['tokens'] == [0, 9, 13.5]
  np.testing.assert_allclose(curve['accuracy'], [0.25, 0.5, 0.25])
  few = stop_figures.frontier(result, arrays['success'], points=2)
  assert few['tokens'] == [9, 13.5]


def rules(**about):
  choice = {
    'risk': 0.0,
    'p_value': 0.0,
    'tested': 1,
    'equal_accuracy': None,
    'equal_tokens': None,
  }
  return stop_rules.StopRules(
    {},
    [
      choice | {'rule': 'progress', 'mode': 'own', 'threshold': 0.01},
      choice | {'rule': 'confidence', 'mode': 'own', 'threshold': None},
      choice
      | {
        'rule': 'progress',
        'mode': 'forced',
        'threshold': None,
        'equal_tokens': 0.1,
      },
    ],
    {'alpha': 0.01, 'delta': 0.1, 'budget': 18} | about,
  )


def test_section_of_an_evaluation():
  both = {'own': found(), 'forced': found(count=np.array([2, 2]))}
  clusters = np.array([0, 1])
  section = stop_evaluation.section(rules(), both, clusters)
  assert section['full']['tokens_mean'] == 13.5
  assert section['full']['accuracy']['mean'] == 0
  assert section['full']['success']['mean'] == pytest.approx(0.25)
  assert [line['label'] for line in section['rules']] == [
    'predicted progress (calibrated)',
    'predicted progress, past the own stop (at no more tokens)',
  ]
  assert [(c['rule'], c['forced']) for c in section['curves']] == [
    ('progress', False),
    ('confidence', False),
    ('progress', True),
  ]
  stops = stop_evaluation.stops(rules(), both['own'])
  # Trace 1 ends by itself: the rule does not fire there.
  assert {k: v.tolist() for k, v in stops.items()} == {
    'predicted progress': [1, -1]
  }


def test_rules_of_another_budget_are_refused():
  class Config:
    class rollout:
      thinking_budget = 27

  with pytest.raises(ValueError, match='budget of 18 thinking tokens.* 27'):
    stop_evaluation.evaluate(Config, None, None, None, rules(), None, None)
