"""Adaptive stopping in the report: when to stop is chosen trace by trace.

Read from 'anytime' of an `eval.json`, where it is there: a rule looks at a
trace as it grows, stops it early or has it go on, and pays for its probes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from meta_rl import plots
from meta_rl.headline import (
  fixed,
  interval_of,
  interval_text,
  mapping,
  number,
  numbers,
  percent,
)
from meta_rl.report_parts import charts, note, policy_row, section, table
from meta_rl.runs import Run

_MARKERS = {
  'progress': 'o',
  'confidence': 's',
  'agreement': '^',
  'episodes': 'D',
}
HEADER = (
  'policy and rule',
  'accuracy',
  'thinking tokens',
  'probe tokens',
  'saved',
)


def lines(run: Run) -> list[plots.Line]:
  """Returns the run's curves of J over tokens, a line a rule.

  One point a threshold, in order of tokens; last, the policy's own stop, at its
  J, or at the accuracy of its answers where J is not known.
  """
  found = []
  for entry in _entries(run, 'curves'):
    points = numbers(entry.get('tokens')), numbers(entry.get('accuracy'))
    if points[0].shape != points[1].shape or not np.isfinite(points).all():
      continue
    if not len(points[0]):
      continue
    order = np.argsort(points[0], kind='stable')
    found.append(
      plots.Line(
        _name(entry),
        run.color,
        *(values[order] for values in points),
        marker=_MARKERS.get(str(entry.get('rule')), 'v'),
        hollow=entry.get('forced') is True,
      )
    )
  full = mapping(mapping(run.eval.get('anytime')).get('full'))
  at = number(full.get('tokens_mean'))
  accuracy = interval_of(full.get('success')).mean
  if math.isnan(accuracy):
    accuracy = interval_of(full.get('accuracy')).mean
  if found and math.isfinite(at + accuracy):
    found.append(
      plots.Line('its own stop', run.color, [at], [accuracy], marker='*')
    )
  return found


def adaptive_section(runs: Sequence[Run], panels: Sequence[plots.Panel]) -> str:
  """Returns charts and the table of adaptive rules, '' without any."""
  rows = []
  for run in runs:
    entries = _entries(run, 'rules')
    full = mapping(mapping(run.eval.get('anytime')).get('full'))
    if entries and full:
      # There are no probes: all its tokens are thinking.
      own = full | {'thinking_tokens': full.get('tokens_mean')}
      rows.append(_row(run, own, 'its own stop'))
    rows += [_row(run, entry, _name(entry)) for entry in entries]
  if not rows and not panels:
    return ''
  text = (
    'A rule looks at J, or at what stands for it, at the boundaries of a trace'
    ' and stops it there. What it asks the policy for that, its probes, costs'
    ' tokens too: saved is the share of tokens, both kinds, that it spends less'
    " than the policy's own stop. Square brackets: 95% intervals over problems."
    ' A rule that goes past the own stop has the policy think on after it. The'
    ' risk is the share of traces whose own stop is right and which the rule'
    ' gets wrong; a threshold that is set for one was chosen on other problems.'
    ' Curves are J, along the thresholds of a rule; hollow markers are rules'
    ' that go past the own stop. The table is of greedy answers, so its'
    ' accuracy need not lie on them.'
  )
  drawn = f'<div class="charts">{charts("adaptive", panels)}</div>\n'
  return section(
    'Adaptive stopping',
    note(text)
    + (drawn if panels else '')
    + (table(HEADER, rows) if rows else ''),
  )


def _entries(run: Run, key: str) -> list[dict[str, Any]]:
  listed = mapping(run.eval.get('anytime')).get(key)
  if not isinstance(listed, list):
    return []
  return [entry for entry in listed if mapping(entry)]


def _name(entry):
  named = (entry.get('label'), entry.get('rule'), 'rule')
  return next(name for name in named if isinstance(name, str) and name)


def _row(run, entry, name):
  accuracy = interval_of(entry.get('accuracy'))
  interval = interval_text(accuracy, 3)
  threshold, risk = number(entry.get('threshold')), number(entry.get('risk'))
  details = [f'at {threshold:.4g}'] if math.isfinite(threshold) else []
  if entry.get('forced') is True and 'past the own stop' not in name:
    details.append('past its own stop')
  alpha = number(mapping(run.eval.get('anytime')).get('alpha'))
  if entry.get('calibrated') is True and math.isfinite(alpha):
    details.append(f'set for a risk of at most {alpha:.3g}')
  if math.isfinite(risk):
    details.append(f'risk here {risk:.3g}')
  thinking, probes, both = (
    fixed(number(entry.get(key)), 1)
    for key in ('thinking_tokens', 'probe_tokens', 'tokens_mean')
  )
  columns = (
    (fixed(accuracy.mean, 3), f'[{interval}]' if interval else ''),
    (thinking, ''),
    (probes, ''),
    (percent(number(entry.get('saved'))), f'{both} tokens'),
  )
  return policy_row(
    f'{run.name}: {name}',
    run.color,
    [(label, *column) for label, column in zip(HEADER[1:], columns)],
    detail=', '.join(details),
  )
