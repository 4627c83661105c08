"""The report: one self-contained HTML file about some runs, and its PNGs.

    python -m meta_rl.report DIR [DIR…] --out=report.html

A DIR is a run folder (`eval.json`, `metrics.jsonl`, `config.json`) or a folder
of run folders. The page loads nothing from anywhere, runs no script, and shows
every text that comes from a run escaped. Missing pieces are named in it.
"""

import argparse
import itertools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meta_rl import files, plots
from meta_rl import report_page as page
from meta_rl.headline import (
  Headline,
  compare,
  curve,
  headline_table,
  headlines,
  level_of,
  reference_index,
)
from meta_rl.report_parts import document
from meta_rl.report_traces import traces_section
from meta_rl.runs import Run, read_runs, series

__all__ = ['Report', 'build_report', 'headline_table', 'main']

TITLE = 'What each token of thinking buys'

# Title, unit, training scalars (first that was logged), held-out scalar.
_LEARNING = (
  ('Reward', 'mean reward', ('reward/mean', 'rollout/reward_mean'),
   'eval/accuracy'),
  ('Regret', 'token-weighted regret', ('regret/token_weighted',),
   'eval/regret_token_weighted'),
  ('Length', 'tokens a trace', ('rollout/tokens_mean',), 'eval/tokens_mean'),
)  # fmt: skip


class Report(NamedTuple):
  """What `build_report` wrote.

  Attributes:
    html: the page.
    images: the PNGs beside it.
    table: the headline table, Markdown.
    notes: what was missing in the run folders, a line each.
  """

  html: pathlib.Path
  images: list[pathlib.Path]
  table: str
  notes: list[str]


def build_report(
  folders: Sequence[str | pathlib.Path],
  out: str | pathlib.Path,
  *,
  title: str = TITLE,
  command: str = '',
) -> Report:
  """Returns a report, written, about the runs in some folders.

  Args:
    folders: run folders, or folders of run folders.
    out: the HTML file; accuracy_vs_tokens.png, regret_curves.png and
      learning_curves.png go beside it, as far as there is data for them. The
      pictures of 'other.html' are other_accuracy_vs_tokens.png and so on, so
      that two reports in a folder keep theirs.
    title: headline of the page.
    command: what the reader types to make the report again.

  Returns:
    The paths and the headline table.

  Raises:
    ValueError: a folder that holds no run, a damaged file, or no place to
      write to.
  """
  runs = read_runs(folders)
  out = pathlib.Path(out)
  files.check_output('--out', out)
  evaluated = [run for run in runs if run.eval]
  evals = [run.eval | {'name': run.name} for run in evaluated]
  rows = headlines(evals)
  accuracy, regret = accuracy_panel(evaluated, rows), regret_panel(evaluated)
  learning = {x: learning_panels(runs, x) for x in ('tokens', 'step')}

  images = []
  for name, panels, columns in (
    ('accuracy_vs_tokens.png', accuracy, 1),
    ('regret_curves.png', regret, 1),
    ('learning_curves.png', learning['tokens'] + learning['step'], 3),
  ):
    if panels:
      own = '' if out.stem == 'report' else f'{out.stem}_'
      images.append(out.parent / f'{own}{name}')
      columns = min(columns, len(learning['step']) or 1)
      size = plots.SMALL_PANEL if panels[0].smooth else plots.PANEL
      drawing = plots.figure(panels, columns=columns, size=size)
      plots.save_png(drawing, images[-1])

  body = [
    page.top(title, evaluated, rows),
    page.headline_section(evaluated, rows),
    page.charts_section(
      'Accuracy and regret against tokens',
      'J is the probability that the answer would be right if thinking stopped'
      ' at that token, averaged over held-out problems; bands are 95% bootstrap'
      ' intervals. A circle marks where a policy reaches 95% of what the one'
      ' that it is compared with gains by thinking. Regret is the area above'
      ' the J curve so far, as a share of the full budget.',
      [('accuracy', accuracy), ('regret', regret)],
      'No run holds accuracy_at_budget: evaluate the runs first.',
    ),
    page.comparisons_section(comparisons(evaluated), evaluated),
    page.learning_section(learning),
    traces_section(evaluated),
    page.details_section(runs, command),
  ]
  text = document(title, ''.join(body))
  out.write_text(text, encoding='utf-8', errors='replace')
  return Report(out, images, headline_table(evals), page.notes_of(runs))


def accuracy_panel(
  runs: Sequence[Run], rows: Sequence[Headline]
) -> list[plots.Panel]:
  """Returns the chart of accuracy against tokens, [] without data."""
  lines = []
  reference = _reference(runs)
  _, base = curve(reference.eval, 'accuracy_at_budget') if runs else ((), ())
  level = level_of(base) if len(runs) > 1 else math.nan
  level = level if math.isfinite(level) else None
  for run, row in zip(runs, rows):
    x, y = curve(run.eval, 'accuracy_at_budget')
    if not len(x):
      continue
    low, high = (
      curve(run.eval, name)[1] for name in ('accuracy_low', 'accuracy_high')
    )
    band = len(low) == len(high) == len(x)
    reached = level is not None and math.isfinite(row.tokens_to_base)
    lines.append(
      plots.Line(
        run.name,
        run.color,
        x,
        y,
        low=low if band else None,
        high=high if band else None,
        mark=(row.tokens_to_base, max(level, y[0])) if reached else None,
      )
    )
  if not lines:
    return []
  return [
    plots.Panel(
      'Accuracy when stopped at a budget',
      'thinking tokens',
      'success probability J',
      lines,
      level=level,
      level_label=f'95% of the gain of {reference.name}',
    )
  ]


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


def comparisons(runs: Sequence[Run]) -> list[page.Comparison]:
  """Returns every pair of runs that were evaluated on the same problems.

  The difference of token-weighted regret, paired by problem; below 0 the first
  run of the pair is better. The base is always the second.
  """
  listed = []
  for b, a in itertools.combinations(runs, 2):
    interval = compare(a.eval, b.eval, 'regret_token_weighted')
    if interval is not None:
      relative = compare(
        a.eval, b.eval, 'regret_token_weighted', statistic='relative'
      )
      listed.append(page.Comparison(a.name, b.name, interval, relative))
  return listed


def _reference(runs):
  return runs[reference_index([run.eval for run in runs])] if runs else None


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command: 0, or 1 after one line of error."""
  parser = argparse.ArgumentParser(
    prog='python -m meta_rl.report',
    description='Write an HTML report about evaluated runs.',
  )
  parser.add_argument('folders', nargs='+', metavar='DIR', help='run folder')
  parser.add_argument('--out', default='report.html', help='the HTML file')
  parser.add_argument('--title', default=TITLE, help='headline of the page')
  options = parser.parse_args(arguments)
  command = ['python -m meta_rl.report', *options.folders]
  try:
    report = build_report(
      options.folders,
      options.out,
      title=options.title,
      command=' '.join([*command, f'--out={options.out}']),
    )
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  for note in report.notes:
    print(f'note: {note}', file=sys.stderr)
  print(report.table)
  written = [report.html, *report.images]
  print('\nWrote ' + ', '.join(str(path) for path in written))
  return 0


if __name__ == '__main__':
  sys.exit(main())
