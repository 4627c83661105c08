"""The tables of a study as text: Markdown, and the cells of the page's."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from meta_rl import headline, study_results
from meta_rl import study_statistics as stats
from meta_rl.headline import NONE, fixed
from meta_rl.plots import compact
from meta_rl.statistics import Interval
from meta_rl.study_results import FIGURES, Results

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the cost, or the time, in the tables


def interval_text(value: Interval | None, digits: int) -> str:
  """Returns '0.326 [0.309, 0.344]', – without a value."""
  if value is None or math.isnan(value.mean):
    return NONE
  text = fixed(value.mean, digits)
  if math.isinf(value.low) or math.isinf(value.high):
    return f'{text} [not resolved]'
  if math.isnan(value.low):
    return text
  return f'{text} [{fixed(value.low, digits)}, {fixed(value.high, digits)}]'


def seeds_text(seeds: Sequence[int]) -> str:
  """Returns '5 seeds', '1 seed'."""
  return f'{len(seeds)} seed' + 's' * (len(seeds) != 1)


def reach_text(found: stats.Reach | None, digits: int = 1) -> str:
  """Returns the tokens to a level, and how many seeds get there at all."""
  if found is None:
    return NONE
  if not found.reached:
    return f'not reached (0 of {found.of})'
  text = interval_text(found.needed, digits)
  if found.reached < found.of:
    text += f' ({found.reached} of {found.of} seeds)'
  return text


def main_row(results: Results, dose: str, method: str) -> dict[str, str]:
  """Returns the cells of a dose's table by column, as text."""
  study = results.study
  cells = results.of(dose, method)
  reference = results.of(dose, study.reference)
  base = results.of(dose, study.base)
  name = study.methods[study.reference].label
  show = lambda figure: interval_text(
    study_results.over(cells, figure), FIGURES[figure].digits
  )
  change = ratio = NONE
  if method != study.reference:
    found = study_results.difference(cells, reference, 'regret')
    change = interval_text(found and found.difference, 4)
    if method != study.base:
      ratio = interval_text(
        study_results.gain_ratio(cells, base, reference, 'regret'), 2
      )
  row = {
    'method': study.methods[method].label,
    'seeds': str(len(cells)),
    'regret': show('regret'),
    f'minus {name}': change,
    'gain ratio': ratio,
    FIGURES['accuracy'].title: show('accuracy'),
    f"tokens to {name}'s accuracy": reach_text(
      study_results.tokens_to(cells, reference)
    ),
    FIGURES['tokens'].title: show('tokens'),
  }
  return row


def more_row(results: Results, dose: str, method: str) -> dict[str, str]:
  """Returns a further table of a dose: stopping, provers, cost."""
  study = results.study
  cells = results.of(dose, method)
  show = lambda figure: interval_text(
    study_results.over(cells, figure), FIGURES[figure].digits
  )
  row = {
    'method': study.methods[method].label,
    **{FIGURES[n].title: show(n) for n in ('stop_solved', 'stop_unsolved')},
    FIGURES['regret_normalized'].title: show('regret_normalized'),
    FIGURES['regret_base_prover'].title: show('regret_base_prover'),
  }
  trained = next(iter(cells.values()))['train']

  def mean(get, digits):
    value = float(np.mean([get(cell) for cell in cells.values()]))
    return fixed(value, digits) if trained else NONE

  row['cost, thousands'] = mean(lambda c: c['cost'] / 1000, 0)
  row['steps'] = mean(lambda c: c['steps'], 0)
  row['minutes'] = mean(lambda c: c['seconds']['train'] / 60, 1)
  return row


def kept_row(
  results: Results, dose: str, method: str, figure: str
) -> dict[str, str]:
  """Returns a figure with thinking kept to multiples of the training budget.

  Args:
    results: what lies in the study's folder.
    dose, method: which.
    figure: a key of `study_results.KEPT`.
  """
  study = results.study
  cells = results.of(dose, method)
  reference = results.of(dose, study.reference)
  digits = study_results.KEPT[figure][2]
  factors = (1, *study.doses[dose].get('extrapolate', ()))
  row = {'method': study.methods[method].label}
  for factor in factors:
    get = study_results.kept(figure, factor)
    row[f'at\xa0{factor}×'] = interval_text(
      study_results.over(cells, get), digits
    )
  for factor in factors:
    get = study_results.kept(figure, factor)
    found = None
    if method != study.reference:
      found = study_results.difference(cells, reference, get)
    row[f'minus {study.methods[study.reference].label} at\xa0{factor}×'] = (
      interval_text(found and found.difference, digits)
    )
  return row


def learning_rows(
  results: Results, dose: str, x: str
) -> dict[str, dict[str, str]]:
  """Returns held-out regret at equal training cost, or at equal time.

  Args:
    results: what lies in the study's folder.
    dose: which.
    x: 'cost' or 'seconds'.

  Returns:
    method -> the cells of its row, of the methods that were trained.
  """
  study, rows = results.study, {}
  end = study_results.shared_end(results, dose, x)
  if not math.isfinite(end):
    return rows
  name = study.methods[study.reference].label
  unit = {'cost': 'forward tokens', 'seconds': 'seconds'}[x]
  reference = results.of(dose, study.reference)
  for method in (*study.core, *study.rest):
    cells = results.of(dose, method)
    if not any(cell['train'] for cell in cells.values()):
      continue
    row = {'method': study.methods[method].label}
    for share in SHARES:
      get = study_results.held_out_at(x, 'regret', share * end)
      at = compact(float(f'{share * end:.3g}'))
      row[f'{at} {unit}'] = interval_text(study_results.over(cells, get), 4)
    found = None
    if method != study.reference:
      found = study_results.difference(
        cells, reference, study_results.held_out_at(x, 'regret', end)
      )
    row[f'minus {name}, at the end'] = interval_text(
      found and found.difference, 4
    )
    found = study_results.training_to(cells, reference, x)
    if found and x == 'cost':
      needed = Interval(*(value / 1000 for value in found.needed))
      found = found._replace(needed=needed)
    what = {'cost': 'thousands', 'seconds': 'seconds'}[x]
    row[f"{what} to {name}'s held-out accuracy"] = reach_text(
      found, _digits(found)
    )
    rows[method] = row
  return rows


def _digits(found):
  big = found is not None and found.reached and abs(found.needed.mean) >= 100
  return 0 if big else 1


def prediction_row(results: Results, entry) -> dict[str, str]:
  """Returns a prediction, and what came of it."""
  study, figure = results.study, FIGURES[entry.figure]
  found = study_results.outcome(results, entry)
  a, b = (study.methods[m].label for m in (entry.method, entry.against))
  than, measured = '', NONE
  if 'than_dose' in entry:
    than = f', less the same at {study.doses[entry.than_dose].label}'
  if found is not None:
    measured = (
      interval_text(found.difference, figure.digits)
      + f', {seeds_text(found.seeds)}'
    )
  return {
    'prediction': entry.text,
    'compared': f'{figure.title}: {a} − {b}{than}',
    'predicted': {'none': 'no difference'}.get(entry.expect, entry.expect),
    'measured': measured,
    'outcome': study_results.reading(found, entry.expect),
  }


def _dose_tables(results: Results, dose: str) -> dict[str, list[dict]]:
  """Returns title -> rows of a dose; those of no method are left out."""
  study = results.study
  done = [m for m in (*study.core, *study.rest) if results.of(dose, m)]
  kept = [
    m
    for m in done
    if any(c.get('extrapolation') for c in results.of(dose, m).values())
  ]
  rows = lambda make, methods: [make(results, dose, m) for m in methods]
  tables = {
    '': rows(main_row, done),
    'stopping, the base prover, cost': rows(more_row, done),
    **{
      f'{title}, kept thinking beyond the training budget': rows(
        functools.partial(kept_row, figure=figure), kept
      )
      for figure, (_, title, _) in study_results.KEPT.items()
    },
    **{
      f'held-out regret at equal {what}': list(
        learning_rows(results, dose, x).values()
      )
      for x, what in (
        ('cost', 'training cost'),
        ('seconds', 'seconds of training steps'),
      )
    },
  }
  return {title: found for title, found in tables.items() if found}


def markdown(results: Results) -> str:
  """Returns the tables of `study.html` in Markdown."""
  study, parts = results.study, []
  for dose in sorted(study.doses):
    entry = study.doses[dose]
    head = f'{entry.label}; {entry.total_cost:,.0f} forward tokens a cell'
    for title, rows in _dose_tables(results, dose).items():
      title = f'{entry.label}: {title}' if title else head
      parts.append(f'{title}\n\n{markdown_table(rows)}')
  if not parts:
    return 'No cell is done.'
  if study.predictions:
    predicted = [prediction_row(results, p) for p in study.predictions.values()]
    parts.append(f'predictions\n\n{markdown_table(predicted)}')
  counts = f'Cells that are done: {len(results.cells)}'
  left = len(results.failures) + len(results.missing)
  if left:
    counts += f'; that are not: {left}'
  parts.append(
    "Square brackets: 95% intervals, Student's t over training seeds; "
    'differences are paired by seed; gain ratio: (method - base) / '
    f'({study.methods[study.reference].label} - base) in regret, with '
    f"Fieller's interval. {counts}."
  )
  return '\n\n'.join(parts)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
  """Returns rows with equal columns as a Markdown table."""
  lines = [list(rows[0]), *(list(row.values()) for row in rows)]
  return headline.markdown(lines)
