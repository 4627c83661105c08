"""The report: one self-contained HTML file about some runs, and its PNGs.

    python -m meta_rl.report DIR [DIR…] --out=report.html

A DIR is a run folder (`eval.json`, `metrics.jsonl`, `config.json`) or a folder
of run folders. The page loads nothing from anywhere and shows every text that
comes from a run escaped. One script of its own works its trace viewer, and no
other can run; without it the page lacks the viewer alone. Missing pieces are
named in it.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from meta_rl import files, plot_style, plots
from meta_rl import report_page as page
from meta_rl.headline import compare, headline_table, headlines
from meta_rl.report_adaptive import adaptive_section
from meta_rl.report_budgets import (
  difficulty_section,
  regrets_section,
  votes_section,
)
from meta_rl.report_charts import (
  accuracy_panel,
  adaptive_panels,
  learning_panels,
  regret_panel,
)
from meta_rl.report_parts import document
from meta_rl.report_script import SCRIPT
from meta_rl.report_traces import traces_section
from meta_rl.report_views import traces_of
from meta_rl.report_waste import waste_section
from meta_rl.runs import Run, read_runs

__all__ = ['Report', 'build_report', 'headline_table', 'main']

TITLE = 'What each token of thinking buys'


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
    out: the HTML file; accuracy_vs_tokens.png, regret_curves.png,
      adaptive_stopping.png and learning_curves.png go beside it, as far as
      there is data for them. The pictures of 'other.html' are
      other_accuracy_vs_tokens.png and so on, so that two reports in a folder
      keep theirs.
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
  adaptive = adaptive_panels(evaluated)
  learning = {x: learning_panels(runs, x) for x in ('tokens', 'step')}

  images = []
  for name, panels, columns in (
    ('accuracy_vs_tokens.png', accuracy, 1),
    ('regret_curves.png', regret, 1),
    ('adaptive_stopping.png', adaptive, 2),
    (
      'learning_curves.png',
      learning['tokens'] + learning['step'],
      max(1, len(learning['step'])),
    ),
  ):
    if panels:
      own = '' if out.stem == 'report' else f'{out.stem}_'
      images.append(out.parent / f'{own}{name}')
      size = plot_style.SMALL_PANEL if panels[0].smooth else plot_style.PANEL
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
      ' that it is compared with gains by thinking. Regret is the filled area,'
      ' between a J curve and a comparator that is right at once, as a share of'
      ' the full budget; the second chart draws how it accumulates.',
      [('accuracy', accuracy), ('regret', regret)],
      'No run holds accuracy_at_budget: evaluate the runs first.',
    ),
    regrets_section(evaluated),
    difficulty_section(evaluated),
    votes_section(evaluated),
    adaptive_section(evaluated, adaptive),
    waste_section(evaluated),
    page.comparisons_section(comparisons(evaluated), evaluated),
    page.learning_section(learning),
    traces_section(evaluated),
    page.details_section(runs, command),
  ]
  viewed = any(traces_of(run) for run in evaluated)
  text = document(title, ''.join(body), script=SCRIPT if viewed else '')
  out.write_text(text, encoding='utf-8', errors='replace')
  return Report(out, images, headline_table(evals), page.notes_of(runs))


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
