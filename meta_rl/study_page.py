"""The page of a study: one self-contained HTML file in the report's style."""

import math
from collections.abc import Mapping

from meta_rl import plots, study_charts, study_results, study_tables
from meta_rl.headline import NONE, fixed
from meta_rl.report_parts import (
  charts,
  details,
  document,
  escape,
  note,
  policy_row,
  pre,
  pretty,
  section,
  table,
)
from meta_rl.study_results import Results


def page(results: Results, summary: Mapping, command: str) -> str:
  """Returns the whole page.

  Args:
    results: what lies in the study's folder.
    summary: of `study_report.summarize`.
    command: what the reader types to go on; '' for none.
  """
  study = results.study
  body = [
    top(results),
    predictions_section(results),
    doses_section(results),
    *(dose_section(results, dose) for dose in sorted(study.doses)),
    variance_section(results),
    missing_section(results),
    made_section(results, summary, command),
  ]
  return document(study.name, ''.join(body), command='python -m meta_rl.study')


def top(results: Results) -> str:
  """Returns the page's head: what was asked, and the answer dose by dose."""
  study = results.study
  hero, reference = (
    study.methods[name].label for name in (study.hero, study.reference)
  )
  tiles = []
  for dose in sorted(study.doses):
    found = study_results.difference(
      results.of(dose, study.hero), results.of(dose, study.reference), 'regret'
    )
    if found is None:
      continue
    interval = found.difference
    detail = study_tables.seeds_text(found.seeds)
    if math.isfinite(interval.low):
      detail = (
        f'95% interval {fixed(interval.low, 4)} to {fixed(interval.high, 4)}, '
        f'{detail}'
      )
    tiles.append(
      f'<div class="tile t2"><dt>{escape(study.doses[dose].label)}</dt>'
      f'<dd class="figure">{escape(fixed(interval.mean, 4))}</dd>'
      f'<dd class="detail">{escape(detail)}</dd></div>\n'
    )
  total = len(results.cells) + len(results.failures) + len(results.missing)
  lead = (
    f'{len(results.cells)} of {total} cells are done. A cell is one training '
    'run and its evaluation; all methods of a dose may spend the same cost in '
    'training. Regret is how far the chance of a right answer stays below 1, '
    'averaged over the thinking budget. '
  )
  lead += (
    f'Below: regret of {hero} minus regret of {reference}, paired by seed; '
    f'below 0, {hero} is better.'
    if tiles
    else f'{hero} and {reference} were not run with equal seeds yet.'
  )
  tiles = f'<dl class="tiles">\n{"".join(tiles)}</dl>\n' if tiles else ''
  return (
    '<header class="top">\n<p class="kicker">meta_rl · study</p>\n'
    f'<h1>{escape(study.name)}</h1>\n'
    f'<p class="lead">{escape(lead)}</p>\n{tiles}</header>\n'
  )


def predictions_section(results: Results) -> str:
  """Returns what was predicted before the seeds were run, and what came."""
  rows = [
    study_tables.prediction_row(results, entry)
    for entry in results.study.predictions.values()
  ]
  if not rows:
    return ''
  text = note(
    'Written down before any seed of the method was run at that dose, unless'
    ' a prediction says otherwise; what it is compared with may have been. A'
    ' prediction of no difference comes true if the interval holds 0, which few'
    ' seeds make easy: look at its width.'
  )
  lines = [_row(row) for row in rows]
  # Words, not figures: to the left.
  words = f'<div class="words">{table(list(rows[0]), lines)}</div>\n'
  return section('Predictions', text + words)


def doses_section(results: Results) -> str:
  """Returns the differences to the reference against the dose."""
  study, panels = results.study, []
  name = study.methods[study.reference].label
  for figure, y_label in (('regret', 'regret'), ('accuracy', 'accuracy')):
    lines = study_charts.dose_lines(results, figure)
    if lines:
      panels.append(
        plots.Panel(
          f'{y_label.capitalize()} minus that of {name}',
          'u, successes expected within the budget',
          f'difference of {y_label}',
          lines,
          level=0.0,
          level_label=name,
        )
      )
  if not panels:
    return ''
  text = note(
    f'At equal training cost: below 0 a method has less regret than {name}, '
    'above 0 more accuracy at the full budget. Bands: 95% intervals of the '
    "paired difference, Student's t over seeds, where there are two seeds."
  )
  return section(
    'Against the dose', text + _charts_div(charts('doses', panels))
  )


def dose_section(results: Results, dose: str) -> str:
  """Returns the tables and curves of one dose."""
  study = results.study
  entry = study.doses[dose]
  methods = study_charts.shown(results, dose, (*study.core, *study.rest))
  if not methods:
    return section(entry.label, note('No cell of this dose is done.'))
  palette = study_charts.colors(study)
  cells = [cell for m in methods for cell in results.of(dose, m).values()]
  problems = max(cell['num_problems'] for cell in cells)

  def rows(make):
    made = [make(results, dose, method) for method in methods]
    lines = [_row(row, palette[m]) for row, m in zip(made, methods)]
    return table(list(made[0]), lines)

  parts = [
    note(
      f'{entry.total_cost:,.0f} forward tokens of training a cell '
      f'({problems:,} test problems, the same in all). Square brackets: 95% '
      'intervals over seeds. The step that reaches the cost is the last one: a '
      'cell spends a little more.'
    ),
    rows(study_tables.main_row),
  ]
  place, drawn = sorted(study.doses).index(dose), []
  for g, group in enumerate(study_charts.groups(study)):
    some = study_charts.shown(results, dose, group)
    # A group of others is drawn if it holds more than what they stand beside.
    if not g or not set(some) <= {study.reference, study.hero}:
      panels = study_charts.dose_panels(results, dose, some)
      drawn.append(_charts_div(charts(f'd{place}g{g}p', panels)))
  parts += [
    drawn[0],
    '<h3>Stopping, the base prover, cost</h3>\n',
    rows(study_tables.more_row),
    kept_tables(results, dose, methods, palette),
    learning_tables(results, dose, palette),
  ]
  if drawn[1:]:
    parts.append(details('Curves of the other methods', ''.join(drawn[1:])))
  return section(entry.label, ''.join(parts))


def learning_tables(results: Results, dose: str, palette) -> str:
  """Returns held-out regret at equal cost, and at equal time, as two tables."""
  parts = []
  for x, title in (
    ('cost', 'Held-out regret at equal training cost'),
    ('seconds', 'Held-out regret at equal time'),
  ):
    rows = study_tables.learning_rows(results, dose, x)
    if rows:
      header = list(next(iter(rows.values())))
      lines = [_row(row, palette[method]) for method, row in rows.items()]
      parts.append(f'<h3>{escape(title)}</h3>\n{table(header, lines)}')
  if not parts:
    return ''
  text = (
    'Measured on validation problems during training, read off between '
    'measurements by straight lines, up to where every run of this dose got; – '
    'where no seed was measured so early. Seconds are those of training steps '
    'alone, without compiling.'
  )
  cells = [cell for key, cell in results.cells.items() if key.dose == dose]
  machines = {cell['machine'] for cell in cells if cell['train']}
  if len(machines) > 1:
    text += (
      f' They come from {len(machines)} different machines, named below, and do'
      ' not compare.'
    )
  return ''.join(parts) + note(text, 'small')


def kept_tables(results: Results, dose: str, methods, palette) -> str:
  """Returns what comes of thinking kept going beyond the training budget."""
  cells = [c for m in methods for c in results.of(dose, m).values()]
  cells = [cell for cell in cells if cell.get('extrapolation')]
  if not cells:
    return ''
  sizes = sorted({cell['extrapolation']['num_problems'] for cell in cells})
  parts = [
    '<h3>Kept thinking beyond the training budget</h3>\n',
    note(
      'Budget forcing: the end of thinking is suppressed up to the multiple of '
      'the budget, 1× included, over which regret is averaged. '
      f'{", ".join(f"{n:,}" for n in sizes)} test problems.',
      'small',
    ),
  ]
  for figure, (_, title, _) in study_results.KEPT.items():
    rows = {
      method: study_tables.kept_row(results, dose, method, figure)
      for method in methods
    }
    lines = [_row(row, palette[method]) for method, row in rows.items()]
    header = list(next(iter(rows.values())))
    title = escape(title.capitalize())
    parts.append(f'<h4>{title}</h4>\n{table(header, lines)}')
  return ''.join(parts)


def variance_section(results: Results) -> str:
  """Returns the variance of the gradient by number of branches."""
  if not results.variance:
    return ''
  parts = [
    note(
      'On the base policy and on one batch of traces a draw, the variance of '
      'the policy gradient, summed over all parameters: the part between '
      'batches of traces, and the part that the prover adds on given traces '
      '(law of total variance). At equal cost: times the cost of one batch, '
      'relative to the exact prover; what many cheap batches would average to.'
    )
  ]
  for dose, found in results.variance.items():
    rows = []
    exact = next(r for r in found['rows'] if r['prover'] == 'exact')
    for row in found['rows']:
      rows.append(
        _row(
          {
            'prover': row['prover'],
            'between traces': f'{row["between"]:.3g}',
            'of the prover': f'{row["within"]:.3g}',
            'total': f'{row["total"]:.3g}',
            'share of the prover': _ratio(row['within'], row['total']),
            'cost of a batch': fixed(row['cost'], 0),
            'total at equal cost': _ratio(
              row['total'] * row['cost'], exact['total'] * exact['cost']
            ),
          }
        )
      )
    header = [
      'prover', 'between traces', 'of the prover', 'total',
      'share of the prover', 'cost of a batch', 'total at equal cost',
    ]  # fmt: skip
    label = results.study.doses[dose].label
    sizes = f'{found["batches"]} batches of traces, {found["draws"]} draws each'
    parts.append(
      f'<h3>{escape(label)}</h3>\n{table(header, rows)}' + note(sizes, 'small')
    )
  return section('Variance of the gradient', ''.join(parts))


def _ratio(top, bottom):
  """Returns a ratio as text; – to a variance whose estimate is not above 0."""
  return fixed(top / bottom, 2) if bottom > 0 else NONE


def missing_section(results: Results) -> str:
  """Returns the cells that failed or were not run, by name."""
  items = [
    f'{key.path} failed: {failure["error"]}'
    for key, failure in results.failures.items()
  ]
  groups = {}
  for key in results.missing:
    groups.setdefault((key.dose, key.method), []).append(str(key.seed))
  items += [
    f'{dose}/{method} was not run with seed {", ".join(seeds)}'
    for (dose, method), seeds in groups.items()
  ]
  if not items:
    return section('What was not run', note('Nothing: every cell is done.'))
  listed = ''.join(f'<li>{escape(item)}</li>\n' for item in items)
  return section('What was not run', f'<ul class="notes">{listed}</ul>\n')


def made_section(results: Results, summary: Mapping, command: str) -> str:
  """Returns how the page was made: command, machines, settings."""
  parts = []
  if command:
    parts.append(details('Command', pre(command)))
  machines = '\n'.join(summary['machines']) or 'no cell is done'
  parts.append(details('Machines', pre(machines)))
  parts.append(details('The study', pre(pretty(results.study.to_dict()))))
  return section('How this was made', ''.join(parts))


def _row(columns: Mapping[str, str], color: int | None = None) -> str:
  """Returns one row of a table; the first column is its name.

  '0.3 [0.2, 0.4]' becomes a figure with its interval below.
  """
  (_, name), *rest = columns.items()
  split = ((label, *text.partition(' [')) for label, text in rest)
  return policy_row(
    name,
    color,
    [
      (label, figure, space[1:] + detail)
      for label, figure, space, detail in split
    ],
  )


def _charts_div(text):
  return f'<div class="charts">{text}</div>\n' if text else ''
