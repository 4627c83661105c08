"""Figures of an evaluation by how hard its problems are, on the host.

Problems go into bins by a value that is known of them before any policy is
asked, or by how often another policy solved them. Bins made of the measured
policy's own outcomes would favour and damn it by its own luck: nothing here
makes such.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from meta_rl.eval_figures import interval

BINS = 4  # of values of which there are many
_FEW = 5  # so many different values are a bin each
_FIGURES = ('accuracy', 'tokens', 'regret_token_weighted')


def by_difficulty(
  known: Sequence[tuple[str, float | str] | None],
  per_problem: Mapping[str, Sequence[float]],
) -> dict | None:
  """Returns what was measured in each bin of problems.

  Args:
    known: (label, value) of each problem, as `TaskKit.difficulty`; None of
      those of which nothing is known, which are in no bin. Texts, and up to 5
      different numbers, are a bin each; of more numbers there are 4 bins of
      about equal size, and equal ones are in one bin.
    per_problem: of an eval.json: accuracy, tokens, regret_token_weighted and
      cluster, one a problem.

  Returns:
    'label' and 'bins', from the lowest value: each with its 'label', 'problems'
    (how many), and mean, low and high of the three figures, of a 95% bootstrap
    over the problems in the bin. None where nothing is known of any problem.

  Raises:
    ValueError: not one entry for each problem.
  """
  if len(known) != len(per_problem['cluster']):
    raise ValueError(
      f'the difficulty of {len(known)} problems is given for '
      f'{len(per_problem["cluster"])}: give one for each, or None.'
    )
  rows = [i for i, each in enumerate(known) if each is not None]
  if not rows:
    return None
  values = [known[i][1] for i in rows]
  if any(isinstance(value, str) for value in values):
    values = [_text(value) for value in values]
  clusters = np.asarray(per_problem['cluster'])[rows]
  figures = {name: np.asarray(per_problem[name])[rows] for name in _FIGURES}
  found = []
  for name, inside in _bins(values):
    part = {
      figure: interval(column[inside], clusters[inside])
      for figure, column in figures.items()
    }
    found.append({'label': name, 'problems': int(inside.sum())} | part)
  return {'label': known[rows[0]][0], 'bins': found}


def _bins(values) -> list[tuple[str, np.ndarray]]:
  """Returns (label, bool[N]) of each bin, from the lowest value."""
  values = np.asarray(values)
  distinct = np.unique(values)
  if values.dtype.kind in 'US' or len(distinct) <= _FEW:
    return [(_text(value), values == value) for value in distinct.tolist()]
  shares = np.arange(1, BINS) / BINS
  # Of values that occur: a bin's upper edge belongs to it.
  edges = np.unique(np.quantile(values, shares, method='lower'))
  place = np.searchsorted(edges, values)
  found = []
  for number in np.unique(place):
    inside = place == number
    low, high = values[inside].min(), values[inside].max()
    name = _text(low) if low == high else f'{_text(low)} to {_text(high)}'
    found.append((name, inside))
  return found


def _text(value) -> str:
  return value if isinstance(value, str) else f'{value:.3g}'
