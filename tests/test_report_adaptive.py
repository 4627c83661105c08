"""Adaptive rules in the report: curves, charts, the table."""

import copy
import re

import numpy as np
import pytest
from report_runs import HORIZON, anytime_of

from meta_rl import headline, report_adaptive, report_charts, runs


def run_of(name='MRT', color=2, **changes):
  found = {
    'horizon': HORIZON,
    'budgets': [0, 48, HORIZON],
    'accuracy_at_budget': [0.1, 0.5, 0.75],
    'anytime': anytime_of(0.75) | changes,
  }
  return runs.Run(path='', name=name, algorithm='', color=color, eval=found)


def text_of(html):
  """The text of a page's part, tags as spaces."""
  return ' '.join(re.sub('<[^>]*>', ' ', html).split())


def test_curves_are_in_order_of_tokens():
  progress, agreement, own = report_adaptive.lines(run_of())
  assert progress.x.tolist() == [20, 35, 50]
  assert progress.y.tolist() == [0.4, 0.6, 0.7]
  assert (progress.label, progress.marker, progress.hollow) == (
    *('progress', 'o', False),
  )
  assert (agreement.marker, agreement.hollow) == ('^', True)
  assert (own.label, own.x, own.y, own.marker) == (
    *('its own stop', [52], [0.75], '*'),
  )
  assert {line.color for line in (progress, agreement, own)} == {2}


def test_the_own_stop_stands_at_its_j():
  """Curves are J, and so is their star, where both it and accuracy are told."""
  full = {'accuracy': 0.75, 'tokens_mean': 52.0}
  for success, y in (({'mean': 0.625}, 0.625), ('x', 0.75)):
    *_, own = report_adaptive.lines(run_of(full=full | {'success': success}))
    assert own.y == [y]


def test_a_label_that_says_it_is_enough():
  rule = anytime_of(0.75)['rules'][1]
  rule |= {'label': 'agreement, past the own stop (calibrated)'}
  html = report_adaptive.adaptive_section([run_of(rules=[rule])], [])
  assert 'past its own stop' not in text_of(html)
  assert 'set for a risk of at most 0.05' in text_of(html)
  html = report_adaptive.adaptive_section(
    [run_of(rules=[rule | {'calibrated': False}])], []
  )
  assert 'set for a risk of at most' not in text_of(html)


def test_one_policy_has_its_rules_in_the_main_chart():
  run = run_of()
  row = headline.headlines([run.eval])
  (panel,) = report_charts.accuracy_panel([run], row)
  assert [line.label for line in panel.lines] == [
    *('MRT', 'progress', 'agreement', 'its own stop')
  ]
  assert panel.comparator == 1
  assert panel.x_label == 'tokens, probes counted'
  del run.eval['anytime']
  (panel,) = report_charts.accuracy_panel([run], row)
  assert panel.x_label == 'thinking tokens'
  run = run_of()
  assert report_charts.adaptive_panels([run]) == []


def test_of_several_policies_each_has_a_chart_of_its_own():
  base = run_of('base', 0)
  del base.eval['anytime']
  listed = [base, run_of(), run_of('GRPO', 1)]
  rows = headline.headlines([run.eval for run in listed])
  (main,) = report_charts.accuracy_panel(listed, rows)
  assert [line.label for line in main.lines] == ['base', 'MRT', 'GRPO']
  mrt, grpo = report_charts.adaptive_panels(listed)
  assert (mrt.title, grpo.title) == ('MRT', 'GRPO')
  assert [line.label for line in mrt.lines] == [
    *('MRT', 'progress', 'agreement', 'its own stop')
  ]
  # The axes of the main chart, but for what counts as a token.
  assert main.x_label == 'thinking tokens'
  own = {'lines': [], 'title': '', 'x_label': '', 'hollow_label': ''}
  for panel in (mrt, grpo):
    assert panel.x_label == 'tokens, probes counted'
    assert panel._replace(**own) == main._replace(
      **own, level=None, level_label=''
    )


def test_table():
  html = report_adaptive.adaptive_section([run_of()], [])
  text = text_of(html)
  assert 'MRT: its own stop 0.750 [0.650 to 0.850] 52.0 – – 52.0 tokens' in text
  assert (
    'MRT: progress at 0.125 0.750 [0.650 to 0.850] 31.2 7.8 +25.0% 39.0 tokens'
    in text
  )
  assert (
    'MRT: agreement past its own stop, set for a risk of at most 0.05, risk'
    ' here 0.0375 0.750'
    ' [0.650 to 0.850] 31.2 7.8 −50.0% 39.0 tokens' in text
  )
  assert '<svg class="key"' in html


def test_nothing_without_rules():
  none = runs.Run(path='', name='', algorithm='', eval={})
  assert report_adaptive.adaptive_section([none], []) == ''
  assert report_adaptive.lines(none) == []
  # The own stop alone is no adaptive rule.
  bare = run_of(rules=[], curves=[])
  assert report_adaptive.adaptive_section([bare], []) == ''
  assert report_adaptive.lines(bare) == []


@pytest.mark.parametrize(
  'value', [None, [], {}, 'x', -1, True, [None, 'x', {}], float('nan')]
)
def test_any_json_in_any_place(value):
  whole = anytime_of(0.75)
  damaged = [{key: value} for key in whole]
  for part in ('rules', 'curves'):
    for key in whole[part][0]:
      entries = copy.deepcopy(whole[part])
      entries[0][key] = value
      damaged.append({part: entries})
  damaged += [{'full': whole['full'] | {key: value}} for key in whole['full']]
  for changes in damaged:
    run = run_of(**changes)
    for line in report_adaptive.lines(run):
      assert np.isfinite([line.x, line.y]).all()
    html = report_adaptive.adaptive_section([run], [])
    assert 'nan' not in text_of(html)


def test_a_label_is_text():
  rule = anytime_of(0.5)['rules'][0] | {'label': '<i>"'}
  html = report_adaptive.adaptive_section([run_of(rules=[rule])], [])
  assert '<i>' not in html
  assert 'MRT: &lt;i&gt;&quot;' in html
