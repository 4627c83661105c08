"""Figures by how hard problems are."""

import numpy as np
import pytest

from meta_rl.eval_difficulty import by_difficulty


def problems(accuracy, clusters=None):
  """What an eval.json holds of some problems."""
  size = len(accuracy)
  return {
    'accuracy': accuracy,
    'tokens': list(range(10, 10 + size)),
    'regret_token_weighted': [1 - a for a in accuracy],
    'cluster': list(range(size)) if clusters is None else clusters,
  }


def bins(values, own, label='level'):
  found = by_difficulty([(label, v) for v in values], own)
  assert found['label'] == label
  return [(each['label'], each['problems']) for each in found['bins']]


def test_two_levels_by_hand():
  own = problems([1.0, 0.5, 0.25, 0.75])
  found = by_difficulty(
    [('level', x) for x in ('hard', 'easy', 'hard', 'easy')], own
  )
  easy, hard = found['bins']
  assert (easy['label'], hard['label']) == ('easy', 'hard')
  assert easy['accuracy']['mean'] == (0.5 + 0.75) / 2
  assert hard['accuracy']['mean'] == (1 + 0.25) / 2
  assert easy['tokens']['mean'] == (11 + 13) / 2
  assert hard['regret_token_weighted']['mean'] == (0 + 0.75) / 2
  # Resampling two problems gives one of them twice at the ends.
  assert (hard['accuracy']['low'], hard['accuracy']['high']) == (0.25, 1)


def test_few_numbers_are_a_bin_each_in_their_order():
  own = problems([0.5] * 6)
  assert bins([10, 2, 2, 0.125, 10, 10], own) == [
    ('0.125', 1),
    ('2', 2),
    ('10', 3),
  ]


def test_many_numbers_are_in_four_bins_of_equal_size():
  values = np.random.default_rng(0).permutation(40) / 40
  own = problems([0.5] * 40)
  assert bins(values.tolist(), own) == [
    ('0 to 0.225', 10),
    ('0.25 to 0.475', 10),
    ('0.5 to 0.725', 10),
    ('0.75 to 0.975', 10),
  ]


def test_equal_numbers_are_in_one_bin():
  values = [0.0] * 30 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] * 2
  found = bins(values, problems([0.5] * 42))
  assert found[0] == ('0', 30)
  assert sum(number for _, number in found) == 42


def test_problems_of_which_nothing_is_known_are_in_no_bin():
  own = problems([1.0, 0.5, 0.25])
  found = by_difficulty([None, ('level', 'a'), None], own)
  assert [b['problems'] for b in found['bins']] == [1]
  assert found['bins'][0]['accuracy']['mean'] == 0.5
  assert by_difficulty([None] * 3, own) is None


def test_texts_and_numbers_are_texts():
  found = bins(['Level ?', 3.0, 3.0], problems([0.5] * 3))
  assert found == [('3', 2), ('Level ?', 1)]


def test_prompts_of_one_problem_are_drawn_together():
  """Four prompts of one problem have no interval; of four they do."""
  own = [0.0, 1.0, 0.0, 1.0]
  alone = by_difficulty([('x', 1)] * 4, problems(own, clusters=[7] * 4))
  accuracy = alone['bins'][0]['accuracy']
  assert accuracy['low'] == accuracy['mean'] == accuracy['high'] == 0.5
  apart = by_difficulty([('x', 1)] * 4, problems(own))['bins'][0]['accuracy']
  assert apart['low'] < 0.5 < apart['high']


def test_one_entry_for_each_problem():
  with pytest.raises(ValueError, match='difficulty of 2 problems is given for'):
    by_difficulty([('x', 1)] * 2, problems([0.5] * 3))
