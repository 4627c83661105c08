"""Regrets, difficulty and votes in the report: figures, charts, text."""

import copy
import re

import numpy as np
import pytest
from report_runs import budgets_of

from meta_rl import report_budgets, runs

SECTIONS = (
  report_budgets.regrets_section,
  report_budgets.difficulty_section,
  report_budgets.votes_section,
)


def run_of(name='MRT', color=2, **changes):
  found = budgets_of(0.75) | changes
  return runs.Run(path='', name=name, algorithm='', color=color, eval=found)


def text_of(html):
  """The text of a page's part, tags as spaces."""
  return ' '.join(re.sub('<[^>]*>', ' ', html).split())


def test_regrets_against_each_comparator():
  one = {
    'token_weighted': {'mean': 0.4125, 'low': 0.36, 'high': 0.45},
    'normalized': {'mean': -0.0625, 'low': -0.125, 'high': 0.0},
    'cumulative': {'mean': 4.955, 'low': 4.39, 'high': 5.5},
  }
  html = report_budgets.regrets_section(
    [run_of(regrets={'one': one, 'best': one | {'policies': ['base', 'MRT']}})]
  )
  text = text_of(html)
  figures = (
    '0.412 [0.360 to 0.450] −0.062 [−0.125 to 0.000] 4.96 [4.39 to 5.50]'
  )
  header = 'policy token-weighted normalized cumulative, in episodes'
  assert (
    f'Against an oracle that is right at once {header} MRT {figures}' in text
  )
  assert (
    f'Against the best of the policies compared {header} MRT of base, MRT'
    f' {figures}' in text
  )
  # Nothing is said of what is not known.
  assert 'the best that the task allows' not in text


def test_regrets_of_several_policies_stand_together():
  base = run_of('base', 0)
  del base.eval['regrets']['best']
  text = text_of(report_budgets.regrets_section([base, run_of()]))
  one, rest = text.split('Against the best that the task allows')
  optimum, best = rest.split('Against the best of the policies compared')
  for part, names in ((one, 2), (optimum, 2), (best, 1)):
    assert part.count('[0.65 to 0.85]') == names  # cumulative


def test_bins_of_difficulty_side_by_side():
  html = report_budgets.difficulty_section([run_of('base', 0), run_of()])
  text = text_of(html)
  assert text.count('By numbers') == 1
  figures = '0.750 [0.650 to 0.850] 0.750 [0.650 to 0.850] 31.2 [27.5 to 35.8]'
  rows = [
    f'{name}: {policy} {count} problems {figures}'
    for name, count in (('3', '5'), ('4 to 6', '1,111'))
    for policy in ('base', 'MRT')
  ]
  assert ' '.join(rows) in text
  assert 'bin and policy accuracy regret thinking tokens 3: base' in text
  # Another notion of difficulty is a table of its own.
  other = run_of()
  other.eval['difficulty'] = other.eval['difficulty'] | {'label': 'rate'}
  text = text_of(report_budgets.difficulty_section([run_of('base', 0), other]))
  assert text.index('By numbers') < text.index('By rate')
  assert text.count('4 to 6: MRT') == text.count('4 to 6: base') == 1


def test_votes_have_a_chart_and_rows():
  html = report_budgets.votes_section([run_of()])
  text = text_of(html)
  # One answer is no vote.
  assert 'maj@1' not in text
  assert 'after 0 episodes after 1 episode after 2 episodes MRT: maj@2' in text
  assert (
    'MRT: maj@2'
    ' −0.125 [−0.188 to −0.062] 0.250 against 0.375 at 7.0 tokens'
    ' +0.031 [−0.031 to 0.094] 0.500 against 0.469 at 16.0 tokens'
    ' 0.000 [−0.062 to 0.062] 0.625 against 0.625 at 23.8 tokens' in text
  )
  assert 'On 16 problems.' in text
  assert 'weighs' not in text
  (label,) = re.findall('role="img" aria-label="([^"]*)"', html)
  assert label == (
    'MRT: accuracy over tokens, all answers counted; MRT ends at 0.625, maj@2'
    ' ends at 0.625'
  )
  weighted = run_of()
  weighted.eval['votes']['weighted'] = True
  assert 'weighs 2 to the mean' in text_of(
    report_budgets.votes_section([weighted])
  )


def test_lines_of_votes():
  run = run_of()
  single, double = report_budgets._vote_lines(run, report_budgets._votes(run))
  assert (single.label, single.marker, single.color) == ('MRT', '', 2)
  assert single.x.tolist() == [3.5, 12.5, 20.25]
  assert (double.label, double.marker) == ('maj@2', 'o')
  assert double.x.tolist() == [7.0, 16.0, 23.75]
  assert double.y.tolist() == [0.25, 0.5, 0.625]


def test_nothing_of_evaluations_of_older_versions():
  old = runs.Run(path='', name='old', algorithm='', eval={'scalars': {}})
  for section in SECTIONS:
    assert section([]) == section([old]) == ''
    assert 'old' not in text_of(section([old, run_of()]))


@pytest.mark.parametrize(
  'value',
  [None, [], {}, 'x', -1, True, [None, 'x', {}], float('nan'), 10**400, ['x']],
)
def test_any_json_in_any_place(value):
  def places(node, path=()):
    """Every place in a section, however deep."""
    yield path
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, list) else items
    for key, inner in items:
      yield from places(inner, (*path, key))

  whole = budgets_of(0.75)
  for *path, last in (p for p in places(whole) if p):
    damaged = copy.deepcopy(whole)
    node = damaged
    for key in path:
      node = node[key]
    node[last] = value
    run = run_of(**damaged)
    for line in report_budgets._vote_lines(run, report_budgets._votes(run)):
      assert np.isfinite([line.x, line.y]).all()
    for section in SECTIONS[:2]:
      assert 'nan' not in text_of(section([run]))
  damaged = whole['votes'] | {'2': value}
  assert 'nan' not in text_of(
    report_budgets.votes_section([run_of(votes=damaged)])
  )


def test_names_and_labels_are_text():
  attack = '"><b>$x^'
  found = budgets_of(0.75)
  found['regrets']['best']['policies'] = [attack, 3]
  found['difficulty']['label'] = attack
  found['difficulty']['bins'][0]['label'] = attack
  run = run_of(attack, **found)
  for section in SECTIONS:
    html = section([run])
    assert '<b>' not in html
    assert '&quot;&gt;&lt;b&gt;$x^' in html
