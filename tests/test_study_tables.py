"""Tests of meta_rl.study_tables: what stands in the cells of the tables."""

import math

import pytest
from test_study_results import BASE, GRPO, MRT, make

from meta_rl import study_results, study_tables
from meta_rl.configs import study_countdown
from meta_rl.statistics import Interval
from meta_rl.study_cells import Key
from meta_rl.study_statistics import Reach

NAN = math.nan


@pytest.mark.parametrize(
  'value, text',
  [
    (Interval(0.3264, 0.3091, 0.3436), '0.326 [0.309, 0.344]'),
    (Interval(-0.05, -0.1, 0.0), '−0.050 [−0.100, 0.000]'),
    (Interval(0.5, NAN, NAN), '0.500'),
    (Interval(2.0, -math.inf, math.inf), '2.000 [not resolved]'),
    (Interval(NAN, NAN, NAN), '–'),
    (None, '–'),
  ],
)
def test_an_interval_as_text(value, text):
  assert study_tables.interval_text(value, 3) == text


@pytest.mark.parametrize(
  'found, text',
  [
    (None, '–'),
    (Reach(Interval(12.5, 10, 15), 2, 2), '12.5 [10.0, 15.0]'),
    (Reach(Interval(12.5, NAN, NAN), 1, 2), '12.5 (1 of 2 seeds)'),
    (Reach(Interval(NAN, NAN, NAN), 0, 2), 'not reached (0 of 2)'),
  ],
)
def test_what_it_takes_as_text(found, text):
  assert study_tables.reach_text(found) == text


def test_seeds_as_text():
  assert study_tables.seeds_text([3]) == '1 seed'
  assert study_tables.seeds_text([0, 1]) == '2 seeds'


def results_of(**methods):
  """Results of the dose 'tiny' by method; MRT is mrt_exact."""
  study = study_countdown.get_config('tiny')
  names = {'mrt': 'mrt_exact'}
  cells = {
    Key('tiny', names.get(method, method), seed): cell
    for method, found in methods.items()
    for seed, cell in found.items()
  }
  for cell in cells.values():
    cell |= {'steps': 10, 'cost': 5600.0, 'seconds': {'train': 90.0}}
  return study_results.Results(study, cells, {}, [], {})


def test_the_main_row():
  results = results_of(base=BASE, grpo=GRPO, mrt=MRT)
  row = study_tables.main_row(results, 'tiny', 'mrt_exact')
  # As in test_study_results: -.05 -+ 4.3027 * .01 / sqrt(3).
  assert row['minus GRPO'] == '−0.0500 [−0.0748, −0.0252]'
  assert row['gain ratio'] == '1.25 [not resolved]'
  assert row['method'] == 'MRT, exact'
  assert row['seeds'] == '4'
  # Level 0.8 at 20 tokens, of each seed that GRPO has.
  assert row["tokens to GRPO's accuracy"] == '20.0 [20.0, 20.0]'
  row = study_tables.main_row(results, 'tiny', 'grpo')
  assert row['minus GRPO'] == row['gain ratio'] == '–'
  assert row['regret'] == '0.5000 [0.2516, 0.7484]'
  row = study_tables.main_row(results, 'tiny', 'base')
  # .7 - (.5, .4, .6)
  assert row['minus GRPO'] == '0.2000 [−0.0484, 0.4484]'
  assert row['gain ratio'] == '–'
  assert row['regret'] == '0.7000'
  # Without the reference there is nothing to compare with.
  row = study_tables.main_row(results_of(mrt=MRT), 'tiny', 'mrt_exact')
  assert row['minus GRPO'] == row['gain ratio'] == '–'
  assert row["tokens to GRPO's accuracy"] == '–'


def test_the_further_row():
  results = results_of(base=BASE, grpo=GRPO)
  row = study_tables.more_row(results, 'tiny', 'grpo')
  assert row['P(stop | solved)'] == '0.800 [0.800, 0.800]'
  assert row['P(stop | unsolved)'] == '–'
  assert row['regret, normalised'] == '0.6000 [0.3516, 0.8484]'
  assert (row['cost, thousands'], row['steps'], row['minutes']) == (
    '6', '10', '1.5',
  )  # fmt: skip
  row = study_tables.more_row(results, 'tiny', 'base')
  assert {row[name] for name in ('cost, thousands', 'steps', 'minutes')} == {
    '–'
  }


def test_the_row_of_longer_budgets():
  grpo = {0: make(0, kept=(0.5, 0.4)), 1: make(0, kept=(0.6, 0.5))}
  mrt = {0: make(0, kept=(0.4, 0.2)), 1: make(0, kept=(0.5, 0.3))}
  results = results_of(base=BASE, grpo=grpo, mrt=mrt)
  row = study_tables.kept_row(results, 'tiny', 'mrt_exact', 'regret')
  # .2, .3: .25 -+ 12.7062 * .05; both .2 below.
  assert row == {
    'method': 'MRT, exact',
    'at\xa01×': '0.4500 [−0.1853, 1.0853]',
    'at\xa02×': '0.2500 [−0.3853, 0.8853]',
    'minus GRPO at\xa01×': '−0.1000 [−0.1000, −0.1000]',
    'minus GRPO at\xa02×': '−0.2000 [−0.2000, −0.2000]',
  }
  row = study_tables.kept_row(results, 'tiny', 'mrt_exact', 'accuracy')
  assert row['minus GRPO at\xa02×'] == '0.200 [0.200, 0.200]'
  row = study_tables.kept_row(results, 'tiny', 'grpo', 'regret_normalized')
  assert row['at\xa02×'].startswith('0.5500 [')
  assert row['minus GRPO at\xa02×'] == '–'
  # The base was not measured there.
  row = study_tables.kept_row(results, 'tiny', 'base', 'regret')
  assert set(row.values()) == {'base', '–'}


def test_rows_at_equal_cost_and_at_equal_time():
  grpo = {0: make(0, held_out=([100e3, 200e3], [0.5, 0.6], [0.5, 0.4]))}
  mrt = {0: make(0, held_out=([50e3, 400e3], [0.5, 0.85], [0.6, 0.25]))}
  results = results_of(base=BASE, grpo=grpo, mrt=mrt)
  rows = study_tables.learning_rows(results, 'tiny', 'cost')
  assert list(rows) == ['grpo', 'mrt_exact']
  # Until 200k, where GRPO ended. MRT falls by .35 over 350k: .55 at 100k.
  assert rows['mrt_exact'] == {
    'method': 'MRT, exact',
    '50k forward tokens': '0.6000',
    '100k forward tokens': '0.5500',
    '150k forward tokens': '0.5000',
    '200k forward tokens': '0.4500',
    'minus GRPO, at the end': '0.0500',
    # 0.6 is .1 / .35 of the way from 50k to 400k.
    "thousands to GRPO's held-out accuracy": '150',
  }
  assert rows['grpo']['50k forward tokens'] == '–'
  rows = study_tables.learning_rows(results, 'tiny', 'seconds')
  assert rows['mrt_exact']['10k seconds'] == '0.5500'
  assert rows['mrt_exact']["seconds to GRPO's held-out accuracy"] == '15000'
  assert study_tables.learning_rows(results_of(base=BASE), 'tiny', 'cost') == {}


def test_markdown():
  results = results_of(base=BASE, grpo=GRPO, mrt=MRT)
  text = study_tables.markdown(results)
  lines = text.splitlines()
  assert lines[0] == 'tiny: + −, 3 episodes; 5,500 forward tokens a cell'
  table = lines[2:7]
  assert lines[7] == ''
  assert len({len(line) for line in table}) == 1
  assert [line.split('|')[1].strip() for line in table[2:]] == [
    'base', 'GRPO', 'MRT, exact',
  ]  # fmt: skip
  assert 'Cells that are done: 8.' in text
  left = results._replace(missing=[Key('tiny', 'grpo', 9)])
  assert 'are done: 8; that are not: 1.' in study_tables.markdown(left)
  empty = results._replace(cells={})
  assert study_tables.markdown(empty) == 'No cell is done.'


def test_all_tables_of_the_page_are_in_the_markdown():
  held_out = [100, 200], [0.5, 0.6], [0.5, 0.4]
  results = results_of(grpo={0: make(0, held_out=held_out, kept=[0.5, 0.6])})
  lines = study_tables.markdown(results).splitlines()
  header = {
    lines[i - 2]: lines[i]
    for i in range(2, len(lines))
    if lines[i].startswith('| method') or lines[i].startswith('| prediction')
  }
  tiny = 'tiny: + −, 3 episodes'
  for title, column in (
    (f'{tiny}; 5,500 forward tokens a cell', 'gain ratio'),
    (f'{tiny}: stopping, the base prover, cost', 'P(stop | unsolved)'),
    (f'{tiny}: stopping, the base prover, cost', 'regret, normalised'),
    (f'{tiny}: regret, kept thinking beyond the training budget', '2×'),
    (f'{tiny}: accuracy, kept thinking beyond the training budget', '2×'),
    (
      f'{tiny}: held-out regret at equal training cost',
      "GRPO's held-out accuracy",
    ),
    (
      f'{tiny}: held-out regret at equal seconds of training steps',
      "seconds to GRPO's held-out accuracy",
    ),
    ('predictions', 'outcome'),
  ):
    # A bar in a title is no column's end.
    assert column.replace('|', '/') in header[title]


def test_a_name_cannot_break_the_table():
  text = study_tables.markdown_table([{'a|b': 'x\ny', 'c': '|'}])
  assert text == '| a/b | c |\n| --- | - |\n| x y | / |'
