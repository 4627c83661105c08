"""The tables of a study as text: Markdown, and the cells of the page's."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from meta_rl import study_results
from meta_rl import study_statistics as stats
from meta_rl.headline import NONE, fixed
from meta_rl.statistics import Interval
from meta_rl.study_results import FIGURES, Results


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
  """Returns the second table of a dose: stopping, longer budgets, cost."""
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
  found = study_results.extrapolation(cells)
  for factor in (1, *study.doses[dose].get('extrapolate', ())):
    row[f'regret at {factor}×, kept thinking'] = interval_text(
      found.get(str(factor)), 4
    )
  mean = lambda get: float(np.mean([get(cell) for cell in cells.values()]))
  trained = next(iter(cells.values()))['train']
  row['steps'] = fixed(mean(lambda c: c['steps']), 0) if trained else NONE
  row['minutes'] = (
    fixed(mean(lambda c: c['seconds']['train']) / 60, 1) if trained else NONE
  )
  return row


def markdown(results: Results) -> str:
  """Returns one Markdown table a dose, for RESULTS.md."""
  study, parts = results.study, []
  for dose in sorted(study.doses):
    rows = [
      main_row(results, dose, method)
      for method in (*study.core, *study.rest)
      if results.of(dose, method)
    ]
    entry = study.doses[dose]
    if rows:
      parts.append(
        f'{entry.label}; {entry.total_cost:,.0f} forward tokens a cell\n\n'
        + markdown_table(rows)
      )
  if not parts:
    return 'No cell is done.'
  counts = f'{len(results.cells)} cells are done'
  left = len(results.failures) + len(results.missing)
  if left:
    counts += f', {left} are not'
  parts.append(
    "Square brackets: 95% intervals, Student's t over training seeds; "
    'differences are paired by seed; gain ratio: (method - base) / '
    f'({study.methods[study.reference].label} - base) in regret, bootstrap '
    f'over seeds. {counts}.'
  )
  return '\n\n'.join(parts)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
  """Returns rows with equal columns as a Markdown table."""
  lines = [list(rows[0]), *(list(row.values()) for row in rows)]
  # A name cannot break the table.
  lines = [[' '.join(c.replace('|', '/').split()) for c in l] for l in lines]
  widths = [max(map(len, column)) for column in zip(*lines)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    '| ' + ' | '.join(c.ljust(w) for c, w in zip(line, widths)) + ' |'
    for line in lines
  )
