"""What the cells of a study hold, figure by figure, over seeds.

Everything is made anew from the files of the cells that are done, so that a
half-finished study says what it can. The unit of every interval is the seed
(meta_rl/study_statistics.py), and methods are paired by seed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from meta_rl import checks, study_cells, study_files
from meta_rl import study_statistics as stats
from meta_rl.statistics import Interval
from meta_rl.study_cells import Key

Cell = Mapping[str, Any]


class Figure(NamedTuple):
  """One number of a cell.

  Attributes:
    title: what a table calls it.
    get: `(cell) -> float`, None where the cell has none.
    digits: decimals shown.
  """

  title: str
  get: Callable[[Cell], float | None]
  digits: int


def _scalar(name):
  def get(cell):
    value = cell['scalars'].get(name)
    return value['mean'] if isinstance(value, Mapping) else value

  return get


def _at_longest(cell):
  return cell['extrapolation']['regret_token_weighted'][-1]['mean']


def _under_base(cell):
  return cell['base_prover']['regret_token_weighted']['mean']


# What predictions and comparisons may be about.
FIGURES = {
  'accuracy': Figure('accuracy at full budget', _scalar('accuracy'), 3),
  'regret': Figure('regret', _scalar('regret_token_weighted'), 4),
  'regret_normalized': Figure(
    'regret, normalised', _scalar('regret_normalized'), 4
  ),
  'regret_longest': Figure('regret at the longest budget', _at_longest, 4),
  'regret_base_prover': Figure('regret, base prover', _under_base, 4),
  'tokens': Figure('tokens at own stop', _scalar('tokens_mean'), 1),
  'stop_solved': Figure(
    'P(stop | solved)', lambda c: c['stopping']['solved']['rate'], 3
  ),
  'stop_unsolved': Figure(
    'P(stop | unsolved)', lambda c: c['stopping']['unsolved']['rate'], 3
  ),
}


# What is measured beyond the training budget, at each factor of it: as in the
# cell, title, decimals.
KEPT = {
  'regret': ('regret_token_weighted', 'regret', 4),
  'regret_normalized': ('regret_normalized', 'regret, normalised', 4),
  'accuracy': ('accuracy', 'accuracy', 3),
}


def check_figures(study):
  """Raises ValueError if a prediction is about no figure of a cell."""
  for name, entry in study.predictions.items():
    checks.check_choice(f'predictions.{name}.figure', entry.figure, FIGURES)


class Results(NamedTuple):
  """The files of a study's folder.

  Attributes:
    study: the config.
    cells: those that are done.
    failures: key -> what is known of cells that failed and are not done.
    missing: keys of cells that are neither.
    variance: dose -> gradient variance.
  """

  study: Any
  cells: dict[Key, Cell]
  failures: dict[Key, dict]
  missing: list[Key]
  variance: dict[str, dict]

  def of(self, dose: str, method: str) -> dict[int, Cell]:
    """Returns the cells of a dose and a method by seed."""
    return {
      key.seed: cell
      for key, cell in self.cells.items()
      if (key.dose, key.method) == (dose, method)
    }


def collect(study, folder) -> Results:
  """Returns what lies in a study's folder.

  Raises:
    ValueError: a file that is damaged.
  """
  cells, failures, missing = {}, {}, []
  for key in study_cells.keys(study):
    cell = study_files.read(folder, key)
    failure = study_files.read(folder, key, study_files.FAILED)
    if cell is not None:
      cells[key] = cell
    elif failure is not None:
      failures[key] = failure
    else:
      missing.append(key)
  variance = {}
  for dose in sorted(study.doses):
    found = study_files.read_variance(folder, dose)
    if found is not None:
      variance[dose] = found
  return Results(study, cells, failures, missing, variance)


def kept(figure: str, factor: int) -> Callable[[Cell], float | None]:
  """Returns the figure of KEPT with thinking kept to a multiple of the budget.

  Args:
    figure: a key of KEPT.
    factor: 1, or one of the dose's.
  """

  def get(cell):
    more = cell['extrapolation']
    if factor not in more['factors']:
      return None
    return more[KEPT[figure][0]][more['factors'].index(factor)]['mean']

  return get


def held_out_at(x: str, y: str, at: float) -> Callable[[Cell], float]:
  """Returns a held-out figure in training, read off where x is `at`.

  Args:
    x: 'cost' or 'seconds'.
    y: 'regret' or 'accuracy'.
    at: x; the figure is nan where a cell was not measured so early or late.
  """

  def get(cell):
    points = _held_out(cell, x, y)
    if not points[0]:
      return math.nan
    return float(np.interp(at, *points, left=math.nan, right=math.nan))

  return get


def values(
  cells: Mapping[int, Cell], figure: str | Callable
) -> dict[int, float]:
  """Returns seed -> a figure, of the cells that have it.

  Args:
    cells: by seed.
    figure: a key of FIGURES, or `(cell) -> float or None`.
  """
  get = FIGURES[figure].get if isinstance(figure, str) else figure
  found = {}
  for seed, cell in cells.items():
    try:
      value = get(cell)
    except KeyError:  # it was not measured
      continue
    if value is not None and math.isfinite(value):
      found[seed] = float(value)
  return found


def over(cells: Mapping[int, Cell], figure: str | Callable) -> Interval | None:
  """Returns the mean of a figure over seeds with its t interval."""
  found = list(values(cells, figure).values())
  return stats.mean_interval(found) if found else None


def _pair(a, b):
  """Returns two methods' cells on the same seeds and problems.

  A method that is not trained has one cell, which stands for every seed.
  """
  for one, other in ((a, b), (b, a)):
    if len(one) == 1 and not next(iter(one.values()))['train']:
      alone = next(iter(one.values()))
      spread = dict.fromkeys(other, alone)
      a, b = (spread, other) if one is a else (other, spread)
      break
  same = lambda x, y: all(x[k] == y[k] for k in ('problems', 'horizon'))
  seeds = [s for s in a if s in b and same(a[s], b[s])]
  return {s: a[s] for s in seeds}, {s: b[s] for s in seeds}


def difference(a, b, figure: str | Callable) -> stats.Paired | None:
  """Returns a figure of a minus that of b, paired by seed.

  Args:
    a, b: cells by seed. Seeds whose test problems differ are left out.
    figure: as of `values`.
  """
  a, b = _pair(a, b)
  return stats.paired(values(a, figure), values(b, figure))


def gain_ratio(method, base, reference, figure: str) -> Interval | None:
  """Returns (method - base) / (reference - base) with Fieller's interval.

  None without a seed that all three have, or where two of them are one.
  """
  method, reference = _pair(method, reference)
  method, base = _pair(method, base)
  columns = [values(cells, figure) for cells in (method, base, reference)]
  seeds = sorted(set.intersection(*(set(column) for column in columns)))
  if not seeds:
    return None
  return stats.gain_ratio(*([c[s] for s in seeds] for c in columns))


def tokens_to(method, reference) -> stats.Reach | None:
  """Returns the thinking tokens at which a method is as accurate as another.

  Each seed's level is the reference's final accuracy with that seed.
  """
  method, reference = _pair(method, reference)
  curves = {
    s: (cell['budgets'], cell['accuracy_at_budget'])
    for s, cell in method.items()
  }
  return stats.reach(
    curves,
    {s: cell['accuracy_at_budget'][-1] for s, cell in reference.items()},
  )


def training_to(method, reference, x: str) -> stats.Reach | None:
  """Returns the 'cost' or 'seconds' at which held-out accuracy reaches that of
  the reference at its end."""
  method, reference = _pair(method, reference)
  curves = {s: _held_out(cell, x, 'accuracy') for s, cell in method.items()}
  ends = {
    s: _held_out(cell, x, 'accuracy')[1][-1]
    for s, cell in reference.items()
    if _held_out(cell, x, 'accuracy')[1]
  }
  return stats.reach({s: c for s, c in curves.items() if c[0]}, ends)


def _held_out(cell, x, y):
  points = cell['learning']['held_out']
  return points[x], points[y]


def learning_curve(cells, x: str, y: str, grid) -> list[np.ndarray] | None:
  """Returns mean, low, high of a held-out figure on a grid, None without."""
  curves = [_held_out(cell, x, y) for cell in cells.values()]
  curves = [curve for curve in curves if curve[0]]
  return list(stats.mean_curve(curves, grid)) if curves else None


def shared_end(results: Results, dose: str, x: str) -> float:
  """Returns the last x that every trained cell of a dose has reached."""
  ends = [
    cell['learning']['held_out'][x][-1]
    for key, cell in results.cells.items()
    if key.dose == dose and cell['learning']['held_out'][x]
  ]
  return min(ends, default=math.nan)


def outcome(results: Results, prediction) -> stats.Paired | None:
  """Returns the difference that a prediction is about, None if not run.

  With `than_dose` it is how much more it is at `dose` than there, seed by seed.
  """
  found = _outcome(results, prediction, prediction.dose)
  if 'than_dose' not in prediction:
    return stats.paired(found, dict.fromkeys(found, 0.0))
  return stats.paired(
    found, _outcome(results, prediction, prediction.than_dose)
  )


def _outcome(results, prediction, dose):
  a, b = _pair(
    results.of(dose, prediction.method), results.of(dose, prediction.against)
  )
  a, b = values(a, prediction.figure), values(b, prediction.figure)
  return {seed: a[seed] - b[seed] for seed in a if seed in b}


def reading(found: stats.Paired | None, expect: str) -> str:
  """Returns a prediction's fate in words.

  'none' predicts that the interval holds 0: of few seeds that is a weak claim,
  which is why the interval stands beside it.
  """
  if found is None:
    return 'not run'
  low, high = found.difference.low, found.difference.high
  if math.isnan(low):
    return 'one seed: no interval'
  side = 'lower' if high < 0 else 'higher' if low > 0 else 'none'
  if side == expect:
    return 'as predicted'
  return 'not resolved' if side == 'none' else f'contrary: {side}'
