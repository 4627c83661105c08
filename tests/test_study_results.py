"""Tests of meta_rl.study_results: differences of seeds, worked by hand."""

import json
import math
import types

import numpy as np
import pytest
import study_made

from meta_rl import study_cells, study_files, study_results
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key
from meta_rl.study_statistics import Paired


def make(
  regret,
  *,
  accuracy=0.5,
  curve=(0.0, 0.4, 0.8),
  held_out=((), (), ()),
  train=True,
  problems=1,
  kept=None,
):
  """A cell with the figures that a test is about.

  `held_out` is (cost, accuracy, regret); seconds are a tenth of the cost.
  """
  cost, reached, of_regret = map(list, held_out)
  cell = {
    'train': train,
    'problems': problems,
    'horizon': 20,
    'scalars': {
      'regret_token_weighted': {'mean': regret},
      'accuracy': {'mean': accuracy},
      'regret_normalized': {'mean': regret + 0.1},
      'tokens_mean': 30.0,
    },
    'stopping': {'solved': {'rate': 0.8}, 'unsolved': {'rate': None}},
    'budgets': [0, 10, 20],
    'accuracy_at_budget': list(curve),
    'learning': {
      'held_out': {
        'cost': cost,
        'seconds': [c / 10 for c in cost],
        'accuracy': reached,
        'regret': of_regret,
      }
    },
  }
  if kept is not None:
    means = lambda values: [{'mean': value} for value in values]
    cell['extrapolation'] = {
      'factors': [1, 2],
      'regret_token_weighted': means(kept),
      'regret_normalized': means([k + 0.1 for k in kept]),
      'accuracy': means([1 - k for k in kept]),
    }
  return cell


GRPO = {0: make(0.50), 1: make(0.40), 2: make(0.60)}
MRT = {0: make(0.45), 1: make(0.36), 2: make(0.54), 9: make(0.0)}
BASE = {0: make(0.70, train=False)}


# ---- differences


def test_a_difference_is_paired_by_seed():
  # -.05, -.04, -.06: mean -.05, deviation .01, over sqrt(3), t(2) = 4.3027.
  found = study_results.difference(MRT, GRPO, 'regret')
  assert found.seeds == (0, 1, 2)
  half = 4.302653 * 0.01 / math.sqrt(3)
  assert found.difference == pytest.approx((-0.05, -0.05 - half, -0.05 + half))
  # Unpaired, the spread between seeds (.1) would hide it.
  back = study_results.difference(GRPO, MRT, 'regret')
  assert back.difference.mean == pytest.approx(0.05)


def test_the_base_s_one_cell_stands_for_every_seed():
  # .50, .40, .60 below .70: -.2, -.3, -.1.
  found = study_results.difference(GRPO, BASE, 'regret')
  assert found.seeds == (0, 1, 2)
  assert found.difference.mean == pytest.approx(-0.2)
  assert study_results.difference(BASE, GRPO, 'regret').difference.mean == (
    pytest.approx(0.2)
  )
  alone = study_results.difference(BASE, BASE, 'regret')
  assert alone.difference.mean == 0.0
  # One trained cell does not: it is a seed like any other.
  one = {5: make(0.3)}
  assert study_results.difference(one, GRPO, 'regret') is None


@pytest.mark.parametrize('change', [{'problems': 2}, {'horizon': 30}])
def test_other_problems_are_not_paired(change):
  other = {**MRT, 1: {**MRT[1], **change}}
  assert study_results.difference(other, GRPO, 'regret').seeds == (0, 2)
  base = {0: {**BASE[0], **change}}
  assert study_results.difference(GRPO, base, 'regret') is None


def test_nothing_to_compare():
  assert study_results.difference({}, GRPO, 'regret') is None
  assert study_results.difference(GRPO, {}, 'regret') is None
  assert study_results.difference({}, {}, 'regret') is None
  assert study_results.difference(BASE, {}, 'regret') is None
  # No cell was measured at a longer budget, or under the base prover.
  for figure in ('regret_longest', 'regret_base_prover'):
    assert study_results.difference(MRT, GRPO, figure) is None
    assert study_results.over(MRT, figure) is None
  # There was no chance to stop unsolved.
  assert study_results.over(MRT, 'stop_unsolved') is None
  assert study_results.over(MRT, 'stop_solved').mean == pytest.approx(0.8)


def test_a_mean_over_seeds():
  # .5, .4, .6: deviation .1.
  found = study_results.over(GRPO, 'regret')
  half = 4.302653 * 0.1 / math.sqrt(3)
  assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))
  alone = study_results.over(BASE, 'regret')
  assert alone.mean == 0.7
  assert math.isnan(alone.low)


# ---- gain ratio


def test_gain_ratio_by_hand():
  # Gains of MRT -.25, -.34, -.16 (mean -.25) over those of GRPO, mean -.2.
  found = study_results.gain_ratio(MRT, BASE, GRPO, 'regret')
  assert found.mean == pytest.approx(1.25)
  # GRPO's gain of -.2 with t interval -.2 -+ .248 holds 0.
  assert (found.low, found.high) == (-math.inf, math.inf)
  sure = {s: make(0.5 + 0.01 * s) for s in range(4)}
  twice = {s: make(0.3 + 0.02 * s) for s in range(4)}
  # Gains of .2 - .01 s, and twice as much of each.
  found = study_results.gain_ratio(twice, BASE, sure, 'regret')
  assert found == pytest.approx((2.0, 2.0, 2.0))


def test_gain_ratio_without_one_of_the_three():
  for args in (({}, BASE, GRPO), (MRT, {}, GRPO), (MRT, BASE, {})):
    assert study_results.gain_ratio(*args, 'regret') is None
  one = study_results.gain_ratio({1: MRT[1]}, BASE, GRPO, 'regret')
  assert one.mean == pytest.approx(0.34 / 0.3)
  assert math.isnan(one.low)


# ---- tokens and cost to a level


def test_tokens_to_the_reference_s_accuracy():
  """Each seed's level is what the reference reaches with that seed."""
  grpo = {0: make(0, curve=(0, 0.3, 0.6)), 1: make(0, curve=(0, 0.1, 0.5))}
  mrt = {0: make(0, curve=(0, 0.6, 0.9)), 1: make(0, curve=(0, 0.4, 0.6))}
  # Seed 0 has 0.6 at 10. Seed 1 has 0.5 half the way from .4 to .6: 15.
  found = study_results.tokens_to(mrt, grpo)
  assert (found.reached, found.of) == (2, 2)
  assert found.needed.mean == pytest.approx(12.5)
  # The reference itself needs all of its tokens.
  assert study_results.tokens_to(grpo, grpo).needed.mean == 20
  low = {0: make(0, curve=(0, 0.1, 0.2)), 1: mrt[1]}
  found = study_results.tokens_to(low, grpo)
  assert (found.reached, found.of) == (1, 2)
  assert found.needed.mean == pytest.approx(15)
  never = study_results.tokens_to({0: low[0]}, grpo)
  assert (never.reached, never.of) == (0, 1)
  assert math.isnan(never.needed.mean)
  assert study_results.tokens_to({7: mrt[0]}, grpo) is None


def test_cost_and_seconds_to_the_reference_s_end():
  grpo = {0: make(0, held_out=([10, 20], [0.5, 0.6], [0.5, 0.4]))}
  mrt = {0: make(0, held_out=([10, 30], [0.5, 0.7], [0.5, 0.3]))}
  # 0.6 is half the way from 10 to 30.
  assert study_results.training_to(mrt, grpo, 'cost').needed.mean == (
    pytest.approx(20)
  )
  assert study_results.training_to(mrt, grpo, 'seconds').needed.mean == (
    pytest.approx(2)
  )
  assert study_results.training_to(grpo, mrt, 'cost').reached == 0
  # The base was never measured in training.
  assert study_results.training_to(BASE, grpo, 'cost') is None
  assert study_results.training_to(grpo, BASE, 'cost') is None


def test_held_out_regret_at_equal_cost():
  cells = {
    0: make(0, held_out=([10, 30], [0.5, 0.7], [0.5, 0.3])),
    1: make(0, held_out=([10, 20], [0.5, 0.6], [0.6, 0.4])),
  }
  at = lambda x, value: study_results.values(
    cells, study_results.held_out_at(x, 'regret', value)
  )
  assert at('cost', 20) == pytest.approx({0: 0.4, 1: 0.4})
  assert at('seconds', 1.5) == pytest.approx({0: 0.45, 1: 0.5})
  assert at('cost', 25) == pytest.approx({0: 0.35})  # seed 1 ended before
  assert at('cost', 9) == {}  # before the first measurement
  assert study_results.values(
    BASE, study_results.held_out_at('cost', 'regret', 20)
  ) == {}  # fmt: skip


def test_the_shared_end_is_that_of_the_shortest_run():
  results = study_results.Results(
    None,
    {
      Key('u4', 'a', 0): make(0, held_out=([10, 30], [0, 0], [0, 0])),
      Key('u4', 'b', 0): make(0, held_out=([10, 25], [0, 0], [0, 0])),
      Key('u4', 'base', 0): BASE[0],
      Key('u1', 'b', 0): make(0, held_out=([3], [0], [0])),
    },
    {},
    [],
    {},
  )
  assert study_results.shared_end(results, 'u4', 'cost') == 25
  assert study_results.shared_end(results, 'u4', 'seconds') == 2.5
  assert math.isnan(study_results.shared_end(results, 'u2', 'cost'))


def test_a_learning_curve_is_the_mean_where_all_seeds_are():
  cells = {
    0: make(0, held_out=([10, 30], [0, 0], [0.5, 0.3])),
    1: make(0, held_out=([10, 20], [0, 0], [0.6, 0.4])),
  }
  mean, _, _ = study_results.learning_curve(
    cells, 'cost', 'regret', [10, 20, 30]
  )
  np.testing.assert_allclose(mean, [0.55, 0.4, np.nan])
  assert study_results.learning_curve(BASE, 'cost', 'regret', [10]) is None


# ---- beyond the budget


def test_thinking_kept_beyond_the_budget():
  cells = {0: make(0, kept=(0.5, 0.3)), 1: make(0, kept=(0.4, 0.1))}
  mean = lambda figure, factor: (
    study_results.over(cells, study_results.kept(figure, factor)).mean
  )
  assert mean('regret', 1) == pytest.approx(0.45)
  assert mean('regret', 2) == pytest.approx(0.2)
  assert mean('regret_normalized', 2) == pytest.approx(0.3)
  assert mean('accuracy', 2) == pytest.approx(0.8)
  # A factor that was not measured, and a cell that measured none.
  assert study_results.over(cells, study_results.kept('regret', 4)) is None
  assert study_results.over(GRPO, study_results.kept('regret', 2)) is None
  assert study_results.over(cells, 'regret_longest').mean == pytest.approx(0.2)


# ---- predictions


@pytest.mark.parametrize(
  'low, high, expect, reading',
  [
    (-0.3, -0.1, 'lower', 'as predicted'),
    (-0.3, -0.1, 'higher', 'contrary: lower'),
    (-0.3, -0.1, 'none', 'contrary: lower'),
    (0.1, 0.3, 'higher', 'as predicted'),
    (0.1, 0.3, 'lower', 'contrary: higher'),
    (-0.1, 0.3, 'lower', 'not resolved'),
    (-0.1, 0.3, 'none', 'as predicted'),
    (0.0, 0.3, 'higher', 'not resolved'),
    (math.nan, math.nan, 'none', 'one seed: no interval'),
  ],
)
def test_what_became_of_a_prediction(low, high, expect, reading):
  interval = study_results.Interval(0.1, low, high)
  assert study_results.reading(Paired(interval, (0, 1)), expect) == reading


def test_a_prediction_that_was_not_run():
  assert study_results.reading(None, 'lower') == 'not run'


class Entry(types.SimpleNamespace):
  """A prediction, as the config holds it."""

  def __contains__(self, name):
    return hasattr(self, name)


def test_a_prediction_of_more_at_one_dose_than_at_another():
  keys = lambda dose, method, cells: {
    Key(dose, method, seed): cell for seed, cell in cells.items()
  }
  results = study_results.Results(
    None,
    {
      **keys('u4', 'mrt', MRT),
      **keys('u4', 'grpo', GRPO),
      **keys('u2', 'mrt', {0: make(0.49), 1: make(0.40)}),
      **keys('u2', 'grpo', {0: make(0.50), 1: make(0.40), 2: make(0.1)}),
    },
    {},
    [],
    {},
  )
  entry = Entry(dose='u4', method='mrt', against='grpo', figure='regret')
  assert study_results.outcome(results, entry) == study_results.difference(
    MRT, GRPO, 'regret'
  )
  entry.than_dose = 'u2'
  found = study_results.outcome(results, entry)
  # -.05 - -.01 and -.04 - 0.
  assert found.seeds == (0, 1)
  assert found.difference == pytest.approx((-0.04, -0.04, -0.04))
  entry.than_dose = 'u1'
  assert study_results.outcome(results, entry) is None


def test_figures_of_predictions_are_known():
  study = study_countdown.get_config()
  study_results.check_figures(study)
  study.predictions.p1.figure = 'speed'
  with pytest.raises(ValueError, match=r'predictions\.p1\.figure'):
    study_results.check_figures(study)


# ---- what lies in the folder


def test_collect(tmp_path):
  study = study_countdown.get_config('tiny')
  keys = study_cells.keys(study)
  found = study_results.collect(study, tmp_path / 'nothing')
  assert found.cells == found.failures == found.variance == {}
  assert found.missing == keys
  study_made.write_cells(study, tmp_path, keys[:2])
  for key in keys[1:3]:  # the first of them was run again, and is done
    path = study_files.path_of(tmp_path, key, study_files.FAILED)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**key._asdict(), 'error': 'error: no'}))
  (tmp_path / 'variance').mkdir()
  (tmp_path / 'variance' / 'tiny.json').write_text('{"rows": []}')
  # Of an earlier study, with more seeds.
  (tmp_path / 'cells' / 'tiny_grpo_9.json').write_text('{}')
  found = study_results.collect(study, tmp_path)
  assert list(found.cells) == keys[:2]
  assert list(found.failures) == keys[2:3]
  assert found.missing == keys[3:]
  assert found.variance == {'tiny': {'rows': []}}
  assert list(found.of('tiny', 'grpo')) == [0]
  (tmp_path / 'cells' / 'tiny_base_0.json').write_text('{')
  with pytest.raises(ValueError, match='tiny_base_0.json is damaged'):
    study_results.collect(study, tmp_path)
