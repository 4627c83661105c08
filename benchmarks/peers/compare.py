"""Times of several engines, side by side.

Seconds are of the same work. A rate is its tokens by the median of them; a
ratio is how often faster ours is, as the ratio of the medians, with the
quartiles of the ratios of single pairs for its spread.
"""

import statistics
import sys
from collections.abc import Callable, Iterable

from peers import engines


def quartiles(values: Iterable[float]) -> list[float]:
  """Returns the first and the third quartile, between the values.

  Example:
    >>> quartiles([4, 1, 3, 2, 5])
    [2.0, 4.0]
  """
  values = list(values)
  if len(values) == 1:
    return [float(values[0])] * 2
  first, _, third = statistics.quantiles(values, n=4, method='inclusive')
  return [first, third]


def rate(seconds: list[float], tokens: int) -> dict:
  """Returns tokens/s: of the median of the seconds, and quartiles.

  Example:
    >>> rate([2.0, 1.0, 4.0], 8)
    {'tokens_per_s': 4.0, 'quartiles': [3.0, 6.0]}
  """
  return {
    'tokens_per_s': tokens / statistics.median(seconds),
    'quartiles': quartiles(tokens / s for s in seconds),
  }


def ratio(ours: list[float], theirs: list[float]) -> dict:
  """Returns how often faster the first is, of seconds taken in turn.

  Example:
    >>> ratio([1.0, 2.0, 1.0], [3.0, 3.0, 4.0])
    {'ratio': 3.0, 'quartiles': [2.25, 3.5], 'pairs': 3}
  """
  pairs = list(zip(ours, theirs, strict=True))
  return {
    'ratio': statistics.median(theirs) / statistics.median(ours),
    'quartiles': quartiles(b / a for a, b in pairs),
    'pairs': len(pairs),
  }


def best_mode(modes: list[dict], run: Callable[[dict], float]) -> tuple:
  """Returns the mode that took least, and the seconds of each by its name.

  A mode that fails is left out; its one line stands in place of seconds.

  Args:
    modes: each with a `name`.
    run: the seconds of a mode; raises EngineError where it cannot do it.

  Raises:
    EngineError: every mode fails; the line of the last.
  """
  tried, best = {}, None
  for mode in modes:
    try:
      tried[mode['name']] = run(mode)
    except engines.EngineError as error:
      tried[mode['name']] = str(error)
      continue
    if best is None or tried[mode['name']] < tried[best['name']]:
      best = mode
  if best is None:
    raise engines.EngineError(tried[modes[-1]['name']])
  return best, tried


def tell(line: str):
  """Says at once, on stderr, what a run of minutes has found so far."""
  print(line, file=sys.stderr, flush=True)


def alternate(calls: dict[str, Callable], rounds: int) -> dict[str, list]:
  """Returns what each call gives, A B C A B C."""
  found = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      found[name].append(call())
  return found


def side_by_side(found: dict[str, list[dict]]) -> dict[str, dict]:
  """Returns the seconds of each engine, and those of ours in the same rounds.

  Args:
    found: answers with `seconds` and `tokens` of each engine, in turn.
  """
  seconds = {k: [x['seconds'] for x in v] for k, v in found.items()}
  rows = {}
  for name, spent in seconds.items():
    rows[name] = {'tokens': found[name][0]['tokens'], 'seconds': spent}
    if name != engines.OURS:
      rows[name]['ours_seconds'] = seconds[engines.OURS]
  return rows


def joined(rows: dict[str, dict], before: dict[str, dict]) -> dict[str, dict]:
  """Returns rows with the rounds of earlier ones that did the same.

  Engines that were not measured now are as they were. One that went another
  way, or did other work, begins anew, and all do where ours did; a line on
  stderr says so.

  Args:
    rows: of `side_by_side`, with the `way` of each engine.
    before: the same of an earlier run.
  """
  did = lambda row: (row['way'], row['tokens'])
  ours = engines.OURS
  if ours in before and ours in rows and did(before[ours]) != did(rows[ours]):
    _dropped('all', before[ours], rows[ours])
    before = {}
  found = {name: before[name] for name in before if name not in rows}
  for name, row in rows.items():
    old = before.get(name)
    if old and did(old) != did(row):
      _dropped(name, old, row)
    elif old:
      row = row | {
        key: old[key] + row[key]
        for key in ('seconds', 'ours_seconds')
        if key in row
      }
    found[name] = row
  return found


def _dropped(whose, old, new):
  tell(
    f'--add: the rounds of {whose} in the file are dropped: they were with '
    f'{old["way"]!r}, {old["tokens"]} tokens, not {new["way"]!r}, '
    f'{new["tokens"]}'
  )


def with_rates(rows: dict[str, dict]) -> dict[str, dict]:
  """Returns rows with the rate of each, and how often faster ours is."""
  found = {}
  for name, row in rows.items():
    found[name] = row | rate(row['seconds'], row['tokens'])
    if 'ours_seconds' in row:
      faster = ratio(row['ours_seconds'], row['seconds'])
      found[name]['ours_faster'] = faster
  return found


def table(rows: Iterable[tuple], words: int) -> str:
  """Returns lines of columns, the first `words` to the left, others right.

  Example:
    >>> print(table([('size', 'tokens/s'), ('0.5M', 9)], words=1))
    size  tokens/s
    0.5M         9
  """
  rows = [[str(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    ]
    lines.append('  '.join(cells).rstrip())
  return '\n'.join(lines)


def spread(value: float, quartiles_: list[float], digits: int = 0) -> str:
  """Returns a figure with its quartiles.

  Example:
    >>> spread(3100.4, [3000, 3200])
    '3,100 (3,000-3,200)'
  """
  low, high = quartiles_
  return f'{value:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})'
