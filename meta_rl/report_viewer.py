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
from meta_rl.report_views import (
  HEIGHT,
  WIDTH,
  Chart,
  horizon_of,
  traces_of,
  view,
)
from meta_rl.runs import Run

_READING = (
  'Wasted: thought on after its first success. Given up: stopped by itself with'
  ' J at most 0.5. Solved late: first success in the last third of the budget.'
  ' The arrow keys left and right turn to the previous and the next trace.'
)


def viewer(runs: Sequence[Run]) -> str:
  """Returns the viewer of all traces of all policies, '' without traces."""
  policies = [run for run in runs if traces_of(run)]
  traces = [t for i, run in enumerate(policies) for t in _views(run, i)]
  if not traces:
    return ''
  data = {
    'policies': [
      {'name': readable(run.name), 'color': run.color} for run in policies
    ],
    'traces': traces,
    'width': WIDTH,
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
    f'</div>\n{note(_READING, "small")}'
    f'<template>{steps(Chart("", "0", [], "J over tokens"), 0)}</template>'
    '</div>\n' + json_block('viewer-data', data)
  )


def _views(run, policy):
  """Returns the views of a policy's traces as JSON, on one axis of tokens."""
  kept = traces_of(run)
  horizon = max(horizon_of(run, trace) for trace in kept)
  found = []
  for trace in kept:
    shown = view(trace, horizon=horizon)._asdict()
    shown['rows'] = [row._asdict() for row in shown['rows']]
    shown['chart'] = shown['chart'] and shown['chart']._asdict()
    found.append(shown | {'policy': policy})
  return found


def steps(chart: Chart, color: int) -> str:
  """Returns J over tokens as a small step chart, the regret filled."""
  bottom = 2 + HEIGHT
  upright = ' vector-effect="non-scaling-stroke"/>'
  marks = ''.join(
    f'<line x1="{x}" x2="{x}" y1="2" y2="{bottom}" stroke="var(--ink)"{upright}'
    for x in chart.marks
  )
  return (
    f'<svg class="steps" viewBox="0 0 {WIDTH} {bottom + 4}"'
    ' preserveAspectRatio="none"'
    f' role="img" aria-label="{escape(chart.label)}">'
    f'<polygon fill="var(--lost)" points="0,2 {chart.points} {WIDTH},2"/>'
    f'<line class="stop" x1="{chart.stop}" x2="{chart.stop}" y1="2"'
    f' y2="{bottom}" stroke="var(--muted)" stroke-dasharray="2 3"{upright}'
    f'{marks}<polyline fill="none" stroke="var(--s{color})" stroke-width="2"'
    f' points="{chart.points}"{upright}'
    f'<line x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"'
    f' stroke="var(--rule)"{upright}</svg>\n'
  )


def _button(group, value, label, pressed, count=None):
  number = '' if count is None else f' <span class="number">{count}</span>'
  return (
    f'<button type="button" data-{group}="{value}"'
    f' aria-pressed="{str(pressed).lower()}">{escape(label)}{number}</button>'
  )
