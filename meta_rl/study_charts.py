"""The charts of a study: which lines, in which colours.

Everything is a `plots.Panel`; the page draws them (meta_rl/study_page.py).
"""

from collections.abc import Sequence

import numpy as np

from meta_rl import plot_style, plots, study_results
from meta_rl import study_statistics as stats
from meta_rl.study_results import Results

POINTS = 60  # of a curve's grid
# Colours of methods outside the core, which stand beside reference and hero.
_FREE = (3, 4, 5, 0)


def colors(study) -> dict[str, int]:
  """Returns each method's palette index: base, reference, hero, the others."""
  first = [study.base, study.reference, study.hero]
  first += [m for m in study.core if m not in first]
  found = {m: i % len(plot_style.LIGHT) for i, m in enumerate(first)}
  rest = [m for m in study.rest if m not in found]
  return found | {m: _FREE[i % len(_FREE)] for i, m in enumerate(rest)}


def groups(study) -> list[tuple[str, ...]]:
  """Returns the methods that are drawn together, no colour twice.

  The core, and the others in fours beside what they are compared with.
  """
  beside = study.reference, study.hero
  rest = [m for m in study.rest if m not in (study.base, *beside)]
  size = len(_FREE)
  return [
    tuple(study.core),
    *((*beside, *rest[i : i + size]) for i in range(0, len(rest), size)),
  ]


def short(study, method: str) -> str:
  """Returns a method's name for the end of a line."""
  return study.methods[method].get('short', study.methods[method].label)


def shown(results: Results, dose: str, methods: Sequence[str]) -> list[str]:
  """Returns the methods that a dose has results of."""
  return [method for method in methods if results.of(dose, method)]


def dose_lines(results: Results, figure: str) -> list[plots.Line]:
  """Returns a figure minus the reference's against the dose, of the core.

  A dose that is `apart` is of another series, and in no line.
  """
  study, lines = results.study, []
  palette = colors(study)
  for method in study.core:
    if method in (study.base, study.reference):
      continue
    points = []
    for dose in sorted(study.doses):
      if study.doses[dose].get('apart', False):
        continue
      found = study_results.difference(
        results.of(dose, method), results.of(dose, study.reference), figure
      )
      if found is not None:
        points.append((study.doses[dose].u, *found.difference))
    if points:
      x, mean, low, high = np.array(sorted(points)).T
      band = np.isfinite(low).any()
      lines.append(
        plots.Line(
          short(study, method),
          palette[method],
          x,
          mean,
          low=low if band else None,
          high=high if band else None,
        )
      )
  return lines


def dose_panels(results, dose, methods) -> list[plots.Panel]:
  """Returns the charts of a dose for some methods."""
  panels = [
    (
      'Accuracy when stopped at a budget',
      'thinking tokens',
      'success probability J',
      lambda cells: _accuracy(cells, 'budgets', lambda c: c),
    ),
    (
      'Kept thinking beyond the budget',
      'thinking tokens',
      'success probability J',
      lambda cells: _accuracy(
        cells, 'budgets', lambda c: c.get('extrapolation')
      ),
    ),
    (
      'Held-out regret against training cost',
      'forward tokens',
      'regret',
      lambda cells: _learning(cells, 'cost'),
    ),
    (
      'Held-out regret against training time',
      'seconds of training steps',
      'regret',
      lambda cells: _learning(cells, 'seconds'),
    ),
  ]
  drawn = []
  for title, x_label, y_label, make in panels:
    lines = _lines(results, dose, methods, make)
    if lines:
      drawn.append(plots.Panel(title, x_label, y_label, lines))
  return drawn


def _lines(results, dose, methods, make):
  study, lines = results.study, []
  palette = colors(study)
  for method in methods:
    found = make(results.of(dose, method))
    if found is None:
      continue
    grid, mean, low, high = (np.asarray(x, float) for x in found)
    keep = np.isfinite(mean)
    if not keep.any():
      continue
    band = np.isfinite(low[keep]).all()
    lines.append(
      plots.Line(
        short(study, method),
        palette[method],
        grid[keep],
        mean[keep],
        low=low[keep] if band else None,
        high=high[keep] if band else None,
      )
    )
  return lines


def _accuracy(cells, x, part):
  curves = [
    (found[x], found['accuracy_at_budget'])
    for found in map(part, cells.values())
    if found
  ]
  if not curves:
    return None
  grid = curves[0][0]
  return grid, *stats.mean_curve(curves, grid)


def _learning(cells, x):
  points = [cell['learning']['held_out'][x] for cell in cells.values()]
  points = [p for p in points if p]
  if not points:
    return None
  low, high = max(p[0] for p in points), min(p[-1] for p in points)
  if low > high:
    return None
  grid = np.linspace(low, high, POINTS)
  return grid, *study_results.learning_curve(cells, x, 'regret', grid)
