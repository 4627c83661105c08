"""The trace viewer of the report: all kept traces, one at a time.

The page holds the traces as JSON and an empty viewer, which stays hidden until
the script of `meta_rl.report_script` fills it.
"""

from collections import Counter
from collections.abc import Sequence

from meta_rl import waste
from meta_rl.report_parts import (
  escape,
  json_block,
  note,
  readable,
)
from meta_rl.report_views import HEIGHT, WIDTH, horizon_of, traces_of, view
from meta_rl.runs import Run

_READING = (
  'Wasted: thought on after its first success. Given up: stopped by itself with'
  ' J at most 0.5. Solved late: first success in the last third of the budget.'
  ' The arrow keys left and right turn to the previous and the next trace.'
)


def viewer(runs: Sequence[Run]) -> str:
  """Returns the viewer of all traces of all policies, '' without traces."""
  policies, traces = [], []
  for run in runs:
    kept = traces_of(run)
    if not kept:
      continue
    horizon = max(horizon_of(run, trace) for trace in kept)
    for trace in kept:
      shown = view(trace, horizon=horizon)._asdict()
      shown['rows'] = [row._asdict() for row in shown['rows']]
      shown['chart'] = shown['chart'] and shown['chart']._asdict()
      traces.append(shown | {'policy': len(policies)})
    policies.append(run)
  if not traces:
    return ''
  data = {
    'policies': [
      {'name': readable(run.name), 'color': run.color} for run in policies
    ],
    'traces': traces,
    'width': WIDTH,
    'height': HEIGHT,
  }
  count = Counter(name for trace in traces for name in trace['classes'])
  count['all'] = len(traces)
  kinds = ''.join(
    _button('kind', name, name, name == 'all', count[name])
    for name in ('all', *waste.CLASSES)
  )
  names = ''
  if len(policies) > 1:
    names = _button('policy', '', 'all policies', True) + ''.join(
      _button('policy', i, run.name, False) for i, run in enumerate(policies)
    )
    names = (
      f'<div class="buttons" role="group" aria-label="Policy">{names}</div>'
    )
  return (
    '<noscript><p class="note">This browser does not run the script of the'
    ' viewer: a selection of the traces is below.</p></noscript>\n'
    '<div id="viewer" class="viewer" role="region" aria-label="Trace viewer"'
    ' hidden>\n'
    '<div class="buttons" role="group" aria-label="Class of trace">'
    f'{kinds}</div>\n{names}\n'
    '<div class="buttons turn" role="group" aria-label="Turn to a trace">'
    '<button type="button" data-turn="-1" aria-keyshortcuts="ArrowLeft">'
    '← previous</button>'
    '<span class="position" role="status"></span>'
    '<button type="button" data-turn="1" aria-keyshortcuts="ArrowRight">'
    'next →</button></div>\n'
    '<div class="shown" tabindex="0" role="group" aria-label="The trace">'
    f'</div>\n{note(_READING, "small")}</div>\n'
    + json_block('viewer-data', data)
  )


def _button(group, value, label, pressed, count=None):
  number = '' if count is None else f' <span class="number">{count}</span>'
  return (
    f'<button type="button" data-{group}="{value}"'
    f' aria-pressed="{str(pressed).lower()}">{escape(label)}{number}</button>'
  )
