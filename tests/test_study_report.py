"""Tests of the report of a study: page, JSON and table of made-up cells."""

import json
import math
import re

import pytest
import study_made
from test_report import _check as check

from meta_rl import (
  plot_style,
  study_cells,
  study_charts,
  study_files,
  study_page,
  study_report,
  study_results,
)
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key

HOSTILE = '"><img src=x onerror=alert(1)></table><script>1</script> $x^2$ \x1b'


def small_study():
  """The tiny study with a second dose, and a method beside the core."""
  study = study_countdown.get_config('tiny')
  whole = study_countdown.get_config()
  study.doses.u4 = whole.doses.u4
  del study.doses.u4.of_methods
  study.methods.return_to_go = whole.methods.return_to_go
  study.rest = ('return_to_go',)
  study.predictions.p4 = {**whole.predictions.p4, 'dose': 'u4'}
  study.predictions.p4b = {**whole.predictions.p4b, 'than_dose': 'tiny'}
  study_cells.check(study)
  return study


def write_failure(folder, key, error):
  path = study_files.path_of(folder, key, study_files.FAILED)
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps({**key._asdict(), 'error': error}))


def write_variance(folder, dose, content):
  path = folder / study_files.VARIANCE / f'{dose}.json'
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Folder of a study of which every cell is done, and its checked page."""
  folder, study = tmp_path_factory.mktemp('study'), small_study()
  study_made.write_cells(study, folder, study_cells.keys(study))
  write_variance(folder, 'u4', study_made.make_variance())
  study_report.write(study, folder, command='the command')
  return folder, check(folder / 'study.html')


def test_the_page_of_a_whole_study(whole):
  folder, page = whole
  assert page.tags.count('h1') == 1
  assert '12 of 12 cells are done' in page.text
  for words in (
    'Predictions',
    'Against the dose',
    'tiny: + −, 3 episodes',
    'u = 4: + −, 15 episodes',
    'tokens to GRPO',
    'Kept thinking beyond the training budget',
    'minus GRPO at\xa03×',
    'Held-out regret at equal training cost',
    'Held-out regret at equal time',
    'Variance of the gradient',
    'Nothing: every cell is done.',
    'the command',
    '2 cores of a made-up machine',
    'Written by python -m meta_rl.study',
  ):
    assert words in page.text, words
  text = (folder / 'study.html').read_text()
  # Two of the doses; a dose's four curves, of the core and of the others.
  assert text.count('role="img"') == 2 + 2 * 2 * 4
  for word in ('nan', 'inf', 'None'):
    assert not re.search(rf'>[^<]*\b{word}\b[^<]*</(td|span|dd)', text), word


def test_a_dose_that_is_apart_is_in_no_line(tmp_path):
  study = small_study()
  study_made.write_cells(study, tmp_path, study_cells.keys(study))
  drawn = lambda: study_charts.dose_lines(
    study_results.collect(study, tmp_path), 'regret'
  )
  assert [line.x.tolist() for line in drawn()] == [[0.8, 4.0]]
  study.doses.u4.apart = True
  study_cells.check(study)
  assert [line.x.tolist() for line in drawn()] == [[0.8]]


def test_each_row_names_its_columns(whole):
  """On a phone the header is not there: each cell repeats its column."""
  text = (whole[0] / 'study.html').read_text()
  for table in re.findall(r'<table>.*?</table>', text, re.DOTALL):
    header = re.findall('<th scope="col">(.*?)</th>', table)
    for row in re.findall('<tr><th scope="row">.*?</tr>', table):
      assert re.findall('data-label="(.*?)"', row) == header[1:]


def test_the_variance_of_the_gradient_by_hand(whole):
  text = (whole[0] / 'study.html').read_text()
  table = text[text.index('Variance of the gradient') :]
  rows = re.findall('<tr><th scope="row">.*?</tr>', table)[:3]
  found = [re.findall('class="figure">(.*?)</span>', row) for row in rows]
  # 1 branch: 9 of 14 are the prover's; 14 * 51 over 5 * 55 of the exact one.
  assert found[0] == ['5', '9', '14', '0.64', '51000', '2.60']
  # 4 branches: 2 of 7, and 7 * 54 / 275.
  assert found[1] == ['5', '2', '7', '0.29', '54000', '1.37']
  assert found[2] == ['5', '0', '5', '0.00', '55000', '1.00']


def test_a_gradient_of_zero_has_no_shares(tmp_path):
  study = small_study()
  rows = ((1, 0.0), (None, 0.0))
  write_variance(tmp_path, 'u4', study_made.make_variance(rows, between=0.0))
  study_report.write(study, tmp_path)
  page = check(tmp_path / 'study.html')
  assert 'Variance of the gradient' in page.text


def test_study_json_of_a_whole_study(whole):
  folder, _ = whole
  text = (folder / 'study.json').read_text()
  assert not re.search(r'\b(NaN|Infinity)\b', text)
  found = json.loads(text)
  assert found['cells'] == {'done': 12, 'failed': 0, 'not_run': 0}
  assert (found['not_run'], found['failed']) == ([], {})
  u4 = found['doses']['u4']
  mrt = u4['methods']['mrt_exact']
  assert mrt['seeds'] == [0, 1]
  study = small_study()
  results = study_results.collect(study, folder)
  a, b = (results.of('u4', name) for name in ('mrt_exact', 'grpo'))
  wanted = study_results.difference(a, b, 'regret')
  against = mrt['against_reference']['regret']
  assert against['seeds'] == [0, 1]
  assert against['difference']['mean'] == pytest.approx(
    wanted.difference.mean, abs=1e-6
  )
  # At 1x, 2x and 3x of the budget: both regrets and the accuracy.
  assert set(mrt['kept']) == {'regret', 'regret_normalized', 'accuracy'}
  for name, factors in mrt['kept'].items():
    assert list(factors) == ['1', '2', '3', '4']
    for at in factors.values():
      assert at['value']['low'] < at['value']['mean'] < at['value']['high']
      assert at['against_reference']['seeds'] == [0, 1], name
  assert mrt['tokens_to_reference']['reached'] == 2
  assert mrt['cost_to_reference']['needed']['mean'] < u4['total_cost']
  assert mrt['seconds_to_reference']['needed']['mean'] < 300
  for name, end in (
    ('at_equal_cost', u4['total_cost']),
    ('at_equal_seconds', 300),
  ):
    equal = u4[name]
    assert equal['at'] == [end / 4, end / 2, end * 3 / 4, end]
    assert list(equal['methods']) == ['grpo', 'mrt_exact', 'return_to_go']
    row = equal['methods']['mrt_exact']['regret']
    assert len(row['values']) == len(row['against_reference']) == 4
    assert row['against_reference'][-1]['difference']['mean'] < 0
  # One cell has no interval, and the reference no difference to itself.
  base = u4['methods']['base']['figures']['regret']
  assert base['mean'] is not None
  assert base['low'] is None
  assert u4['methods']['grpo']['against_reference']['regret'] is None
  assert found['predictions']['p4']['reading'] == 'as predicted'
  assert found['predictions']['p4b']['than_dose'] == 'tiny'
  assert found['variance']['u4']['rows'][0]['within'] == 9.0


def test_study_md_of_a_whole_study(whole):
  folder, _ = whole
  lines = (folder / 'study.md').read_text().splitlines()
  tables = [line for line in lines if line.startswith('| method')]
  # Of two doses: the main one, stopping, 3 of kept thinking, 2 of learning.
  assert len(tables) == 14
  assert '| gain ratio ' in tables[0]
  assert "seconds to GRPO's held-out accuracy" in tables[6]
  assert sum(line.startswith('| MRT, exact ') for line in lines) == 14


# ---- what is there in part


def test_no_cell_is_done(tmp_path):
  report = study_report.write(small_study(), tmp_path)
  assert report.table == 'No cell is done.'
  page = check(tmp_path / 'study.html')
  assert '0 of 12 cells are done' in page.text
  assert page.text.count('No cell of this dose is done.') == 2
  assert 'tiny/mrt_exact was not run with seed 0, 1' in page.text
  assert page.text.count('not run') >= 3
  assert 'Against the dose' not in page.text
  found = json.loads((tmp_path / 'study.json').read_text())
  assert len(found['not_run']) == 12
  assert {p['reading'] for p in found['predictions'].values()} == {'not run'}
  assert found['doses']['u4']['at_equal_seconds'] == {'at': [], 'methods': {}}


def test_one_seed_has_no_interval(tmp_path):
  study = small_study()
  # Not the first one: it failed.
  keys = [k for k in study_cells.keys(study) if k.seed == 1]
  keys = [k for k in keys if k.dose == 'u4']
  study_made.write_cells(study, tmp_path, keys)
  write_failure(tmp_path, Key('u4', 'grpo', 0), 'error: no space left')
  report = study_report.write(study, tmp_path)
  page = check(tmp_path / 'study.html')
  assert '1 seed' in page.text
  assert '1 seeds' not in page.text
  assert 'one seed: no interval' in page.text
  assert 'u4/grpo/0 failed: error: no space left' in page.text
  assert '[' not in report.table.split('\n\n')[1]
  found = json.loads((tmp_path / 'study.json').read_text())
  assert found['cells'] == {'done': 2, 'failed': 1, 'not_run': 9}
  assert found['failed'] == {'u4/grpo/0': 'error: no space left'}
  figure = found['doses']['u4']['methods']['mrt_exact']['figures']['regret']
  assert figure['mean'] is not None
  assert figure['low'] is figure['high'] is None


def test_the_base_alone(tmp_path):
  study = small_study()
  study_made.write_cells(study, tmp_path, [Key('u4', 'base', 0)])
  study_report.write(study, tmp_path)
  page = check(tmp_path / 'study.html')
  assert 'were not run with equal seeds yet' in page.text
  assert 'at equal time' not in page.text


def test_a_study_without_predictions_or_longer_budgets(tmp_path):
  study = small_study()
  study.predictions = {}
  for dose in study.doses.values():
    del dose.extrapolate
  keys = [k for k in study_cells.keys(study) if k.dose == 'tiny']
  study_made.write_cells(study, tmp_path, keys)
  for key in keys:
    path = study_files.path_of(tmp_path, key)
    cell = json.loads(path.read_text())
    del cell['extrapolation'], cell['base_prover']
    path.write_text(json.dumps(cell))
  study_report.write(study, tmp_path)
  page = check(tmp_path / 'study.html')
  assert 'Predictions' not in page.text
  assert 'Kept thinking' not in page.text


def test_different_machines_are_said(tmp_path):
  study = small_study()
  keys = [Key('tiny', 'grpo', 0), Key('tiny', 'mrt_exact', 0)]
  study_made.write_cells(study, tmp_path, keys)
  palette = study_charts.colors(study)

  def tables():
    results = study_results.collect(study, tmp_path)
    return study_page.learning_tables(results, 'tiny', palette)

  assert 'different machines' not in tables()
  path = study_files.path_of(tmp_path, keys[1])
  cell = json.loads(path.read_text()) | {'machine': 'a faster one'}
  path.write_text(json.dumps(cell))
  assert 'from 2 different machines' in tables()


# ---- what is hostile


def test_every_text_is_escaped(tmp_path):
  """`check` finds whatever a text could open, load or run."""
  study = small_study()
  study.name = HOSTILE
  for entry in (*study.doses.values(), *study.methods.values()):
    entry.label = HOSTILE
  study.methods.grpo.short = HOSTILE
  study.predictions.p1.text = HOSTILE
  keys = study_cells.keys(study)
  study_made.write_cells(study, tmp_path, keys[1:])
  for key in keys[1:]:
    path = study_files.path_of(tmp_path, key)
    cell = json.loads(path.read_text()) | {'machine': HOSTILE}
    path.write_text(json.dumps(cell))
  write_failure(tmp_path, keys[0], HOSTILE)
  variance = study_made.make_variance()
  variance['rows'][0]['prover'] = HOSTILE
  write_variance(tmp_path, 'u4', variance)
  report = study_report.write(study, tmp_path, command=HOSTILE)
  page = check(tmp_path / 'study.html')
  assert 'img' not in page.tags
  assert page.text.count('<script>1</script>') > 20
  lines = [x for x in report.table.splitlines() if x.startswith('|')]
  assert all(line.endswith('|') for line in lines)
  json.loads((tmp_path / 'study.json').read_text())


# ---- colours


def test_methods_that_are_drawn_together_have_different_colours():
  study = study_countdown.get_config()
  palette = study_charts.colors(study)
  assert [palette[m] for m in ('base', 'grpo', 'mrt_exact')] == [0, 1, 2]
  groups = study_charts.groups(study)
  assert groups[0] == tuple(study.core)
  for group in groups:
    assert len(group) <= len(plot_style.LIGHT)
    assert len({palette[m] for m in group}) == len(group)
  assert {m for group in groups for m in group} == set(study.methods)


def test_plain_json():
  value = study_results.Interval(math.nan, -math.inf, 0.123456789)
  assert study_report._plain((value, None, 3)) == [
    {'mean': None, 'low': None, 'high': 0.123457}, None, 3,
  ]  # fmt: skip
