"""What the charts of the report show: curves of evaluations and of training.

Values that are not there, or do not fit, are left out.
"""

import math
from collections.abc import Sequence

import numpy as np

from meta_rl import plots, report_adaptive
from meta_rl.headline import (
  Headline,
  curve,
  level_of,
  reference_index,
)
from meta_rl.runs import Run, series

# Title, unit, training scalars (first that was logged), held-out scalar.
_LEARNING = (
  ('Reward', 'mean reward', ('reward/mean', 'rollout/reward_mean'),
   'eval/accuracy'),
  ('Regret', 'token-weighted regret', ('regret/token_weighted',),
   'eval/regret_token_weighted'),
  ('Length', 'tokens a trace', ('rollout/tokens_mean',), 'eval/tokens_mean'),
)  # fmt: skip


def accuracy_panel(
  runs: Sequence[Run], rows: Sequence[Headline]
) -> list[plots.Panel]:
  """Returns the chart of accuracy against tokens, [] without data.

  If it is of one policy, the curves of its adaptive rules are in it.
  """
  lines = []
  reference = _reference(runs)
  _, base = curve(reference.eval, 'accuracy_at_budget') if runs else ((), ())
  level = level_of(base) if len(runs) > 1 else math.nan
  level = level if math.isfinite(level) else None
  for run, row in zip(runs, rows):
    for line in _accuracy_line(run):
      reached = level is not None and math.isfinite(row.tokens_to_base)
      mark = (row.tokens_to_base, max(level, line.y[0])) if reached else None
      lines.append(line._replace(mark=mark))
  if not lines:
    return []
  rules = report_adaptive.lines(runs[0]) if len(runs) == 1 else []
  panel = _against_tokens('Accuracy when stopped at a budget', lines, rules)
  if level is not None:
    label = f'95% of the gain of {reference.name}'
    panel = panel._replace(level=level, level_label=label)
  return [panel]


def adaptive_panels(runs: Sequence[Run]) -> list[plots.Panel]:
  """Returns a chart of each policy's adaptive rules beside its budget curve.

  The axes are those of `accuracy_panel`, but that tokens of probes are counted
  as well. One policy alone has none: its rules are there.
  """
  if len(runs) < 2:
    return []
  found = ((run, report_adaptive.lines(run)) for run in runs)
  return [
    _against_tokens(run.name, _accuracy_line(run), rules)
    for run, rules in found
    if rules
  ]


def _accuracy_line(run):
  """Returns the curve of accuracy at each budget, in a list, [] without it."""
  x, y = curve(run.eval, 'accuracy_at_budget')
  if not len(x):
    return []
  low, high = (
    curve(run.eval, name)[1] for name in ('accuracy_low', 'accuracy_high')
  )
  band = {'low': low, 'high': high} if len(low) == len(high) == len(x) else {}
  return [plots.Line(run.name, run.color, x, y, **band)]


def _against_tokens(title, lines, rules):
  """Returns the chart of budget curves, and of adaptive rules if there are."""
  return plots.Panel(
    title,
    'tokens, probes counted' if rules else 'thinking tokens',
    'success probability J',
    [*lines, *rules],
    comparator=1.0,
    comparator_label='comparator: right at once',
    hollow_label='hollow: past the own stop' if rules else '',
  )


def regret_panel(runs: Sequence[Run]) -> list[plots.Panel]:
  """Returns the chart of cumulative regret against tokens, [] without data."""
  lines = []
  for run in runs:
    x, y = curve(run.eval, 'regret_at_budget')
    if len(x):
      lines.append(plots.Line(run.name, run.color, x, y))
  if not lines:
    return []
  return [
    plots.Panel(
      'Regret accumulated so far',
      'thinking tokens',
      'regret, share of the budget',
      lines,
    )
  ]


def learning_panels(runs: Sequence[Run], x: str) -> list[plots.Panel]:
  """Returns the charts of training against 'step' or 'tokens' generated."""
  panels = []
  for title, unit, keys, held_out in _LEARNING:
    lines = []
    for run in runs:
      xs, ys = next(
        (s for s in (series(run, key, x=x) for key in keys) if len(s[0])),
        (np.zeros(0), np.zeros(0)),
      )
      if len(xs):
        dots = series(run, held_out, x=x)
        lines.append(plots.Line(run.name, run.color, xs, ys, dots=dots))
    if lines:
      label = 'training step' if x == 'step' else 'tokens generated'
      panels.append(plots.Panel(title, label, unit, lines, smooth=True))
  return panels


def _reference(runs):
  return runs[reference_index([run.eval for run in runs])] if runs else None
