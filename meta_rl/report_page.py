"""The sections of the report as HTML text.

Every string that comes from a run passes through `escape`
(meta_rl/report_parts.py).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from meta_rl import plots
from meta_rl.files import one_line
from meta_rl.headline import (
  NONE,
  Headline,
  cells,
  fixed,
  interval_of,
  interval_text,
  is_base,
  mapping,
  number,
  percent,
  reference_index,
)
from meta_rl.report_parts import charts as _charts
from meta_rl.report_parts import details as _details
from meta_rl.report_parts import escape
from meta_rl.report_parts import note as _note
from meta_rl.report_parts import policy_row as _policy_row
from meta_rl.report_parts import pre as _pre
from meta_rl.report_parts import pretty as _json
from meta_rl.report_parts import section as _section
from meta_rl.report_parts import table as _table
from meta_rl.runs import Run
from meta_rl.statistics import Interval

_WORDS = ('One', 'Two', 'Three', 'Four', 'Five', 'Six')


class Comparison(NamedTuple):
  """Two runs compared on the same problems.

  Attributes:
    a: name of the one.
    b: name of the other.
    difference: regret of a minus regret of b.
    relative: the same over the regret of b, or None.
  """

  a: str
  b: str
  difference: Interval
  relative: Interval | None


def top(title: str, runs: Sequence[Run], rows: Sequence[Headline]) -> str:
  """Returns the page's head: title, what you see, the figures to remember."""
  tiles = ''.join(
    f'<div class="tile t{color}"><dt>{escape(name)}</dt>'
    f'<dd class="figure">{escape(figure)}</dd>'
    f'<dd class="detail">{escape(detail)}</dd></div>\n'
    for name, figure, detail, color in _tiles(runs, rows)
  )
  tiles = f'<dl class="tiles">\n{tiles}</dl>\n' if tiles else ''
  return (
    '<header class="top">\n<p class="kicker">meta_rl · evaluation</p>\n'
    f'<h1>{escape(title)}</h1>\n'
    f'<p class="lead">{escape(_summary(runs, rows))}</p>\n{tiles}</header>\n'
  )


def headline_section(runs: Sequence[Run], rows: Sequence[Headline]) -> str:
  """Returns the headline table."""
  if not rows:
    return _section(
      'Results', _note('No run holds an eval.json: evaluate the runs first.')
    )
  table = [cells(row) for row in rows]
  reference = runs[reference_index([run.eval for run in runs])]
  header = [column for column, _, _ in table[0]]
  if not is_base(reference.eval):
    header = [h.replace('the base', reference.name) for h in header]
  lines = [
    _policy_row(
      run.name,
      run.color,
      [(label, *cell[1:]) for label, cell in zip(header[1:], row[1:])],
    )
    for run, row in zip(runs, table)
  ]
  note = (
    'Square brackets: 95% intervals over problems, from a bootstrap that is'
    ' paired where two policies are compared. Regret is token-weighted: lower'
    ' is better'
  )
  note += f'; its change is against {reference.name}.' if len(runs) > 1 else '.'
  notes = [_note(note, 'small')]
  if said := provers_text(runs):
    notes.append(_note(said, 'small'))
  return _section('Results', _table(header, lines) + ''.join(notes))


def provers_text(runs):
  """Returns which prover measured, and how far it is from the other one."""
  told = [(run, mapping(run.eval.get('prover'))) for run in runs]
  told = [(run, prover) for run, prover in told if prover.get('kind')]
  if not told:
    return ''
  kinds = sorted({str(prover['kind']) for _, prover in told})
  text = (
    f'J, the chance of a right answer, is by the {" and ".join(kinds)} prover'
  )
  if kinds == ['exact']:
    text += (
      ', which sums the likelihood of the accepted answers that are listed'
    )
  text += '.'
  for run, prover in told:
    gap = mapping(prover.get('gap'))
    found = interval_of(gap.get('difference'))
    if not math.isfinite(found.mean):
      continue
    side = 'above' if found.mean > 0 else 'below'
    text += (
      f' On {number(gap.get("problems")):,.0f} problems of {run.name} it is'
      f' {fixed(abs(found.mean), 4)} {side} the share of right answers among'
      f' {number(prover.get("branches")):,.0f} that were sampled and verified'
      f' at each boundary; 95% interval of the difference'
      f' {interval_text(found, 4) or NONE}'
    )
    text += ', which holds 0.' if found.low <= 0 <= found.high else '.'
  return text


def charts_section(title, note, groups, missing) -> str:
  """Returns a section of charts, side by side where there is room.

  Args:
    title: headline.
    note: how to read the charts.
    groups: (id, panels) pairs; every panel becomes one svg.
    missing: said in place of the charts if there is no panel.

  Returns:
    HTML.
  """
  charts = ''.join(_charts(name, panels) for name, panels in groups)
  if not charts:
    return _section(title, _note(missing))
  return _section(title, _note(note) + f'<div class="charts">{charts}</div>\n')


def comparisons_section(
  pairs: Sequence[Comparison], runs: Sequence[Run]
) -> str:
  """Returns the paired comparisons, with those that the evaluations bring."""
  if len(runs) < 2:
    return ''
  lines = []
  for pair in pairs:
    lines.append(
      _comparison(
        f'regret of {pair.a} − regret of {pair.b}',
        pair.difference,
        pair.relative,
        better=pair.a,
        worse=pair.b,
      )
    )
  for run in runs:
    listed = run.eval.get('comparisons')
    for given in listed if isinstance(listed, list) else ():
      given = mapping(given)
      interval = interval_of(given)
      if math.isfinite(interval.mean):
        lines.append(_comparison(given.get('name', ''), interval, None))
  if not lines:
    return _section(
      'Paired comparisons',
      _note(
        'The evaluations do not hold the same problems (per_problem), so no'
        ' two policies are compared problem by problem.'
      ),
    )
  header = ['difference', 'mean', '95% interval', 'relative', 'reading']
  note = (
    'Both policies of a pair are resampled on the same problems. A difference'
    ' whose interval holds 0 is not resolved by this evaluation.'
  )
  return _section('Paired comparisons', _table(header, lines) + _note(note))


def learning_section(panels: dict[str, Sequence[plots.Panel]]) -> str:
  """Returns the learning curves against tokens generated and steps."""
  title = 'Learning curves'
  if not any(panels.values()):
    return _section(
      title, _note('No run holds a metrics.jsonl with training scalars.')
    )
  parts = [
    _note(
      'Faint: every logged step; strong: running mean; dots: held-out'
      ' problems. Equal tokens generated is the fair axis, since a policy that'
      ' thinks longer costs more a step.'
    )
  ]
  for name, label in (
    ('tokens', 'Against tokens generated'),
    ('step', 'Against training steps'),
  ):
    parts.append(f'<h3>{label}</h3>\n')
    if panels[name]:
      charts = _charts(f'learn{name}', panels[name], small=True)
      parts.append(f'<div class="charts three">{charts}</div>\n')
    else:
      parts.append(
        _note(
          'Tokens generated are not known: rollout/tokens_sum is not logged.'
        )
      )
  return _section(title, ''.join(parts))


def notes_of(runs: Sequence[Run]) -> list[str]:
  """Returns what was missing in run folders, a line each."""
  return [one_line(f'{run.name}: {note}') for run in runs for note in run.notes]


def details_section(runs: Sequence[Run], command: str) -> str:
  """Returns what is missing, and each run's machine, scores and settings."""
  notes = notes_of(runs)
  parts = []
  if notes:
    items = ''.join(f'<li>{escape(note)}</li>\n' for note in notes)
    parts.append(
      f'<p class="note">What was missing:</p>\n<ul class="notes">{items}</ul>\n'
    )
  if command:
    parts.append(_details('Command', _pre(command)))
  for run in runs:
    facts = {
      name: run.eval[name]
      for name in ('machine', 'num_problems', 'horizon', 'command', 'scalars')
      if name in run.eval
    }
    text = _pre(_json(facts)) if facts else ''
    text += _pre(_json(run.config)) if run.config else ''
    if text:
      parts.append(_details(f'{run.name}: machine, scores, settings', text))
  if not parts:
    return ''
  return _section('How this was made', ''.join(parts))


def _tiles(runs, rows):
  """Returns (name, figure, detail, colour) of up to three figures."""
  reference, hero = _hero(runs)
  if hero is None or hero == reference:
    if not rows:
      return []
    row, color = rows[0], runs[0].color
    return [
      (f'Regret of {row.name}', *_figure(row.regret), color),
      (f'Accuracy of {row.name}', *_figure(row.accuracy), color),
      ('Tokens at its own stop', fixed(row.tokens, 1), '', color),
    ]
  row, base, color = rows[hero], rows[reference], runs[hero].color
  tiles = []
  if math.isfinite(row.change.mean):
    tiles.append(
      (
        f'Regret of {row.name} against {base.name}',
        percent(row.change.mean),
        _interval_95(row.change, 1, share=True),
        color,
      )
    )
  if math.isfinite(row.efficiency):
    tiles.append(
      (
        f"Budget to 95% of {base.name}'s gain",
        f'{row.efficiency:.2f}× fewer'
        if row.efficiency >= 1
        else f'{1 / row.efficiency:.2f}× more',
        f'{fixed(row.tokens_to_base, 1)} against'
        f' {fixed(base.tokens_to_base, 1)}',
        color,
      )
    )
  if math.isfinite(row.accuracy.mean):
    tiles.append(
      (
        f'Accuracy of {row.name} at the full budget',
        fixed(row.accuracy.mean, 3),
        f'{base.name}: {fixed(base.accuracy.mean, 3)}',
        color,
      )
    )
  return tiles


def _figure(interval):
  return fixed(interval.mean, 3), _interval_95(interval, 3)


def _interval_95(interval, digits, *, share=False):
  text = interval_text(interval, digits, share=share)
  return f'95% interval {text}' if text else ''


def _hero(runs):
  """Returns the indices of the reference and of the run that is told about."""
  if not runs:
    return None, None
  reference = reference_index([run.eval for run in runs])
  others = [i for i in range(len(runs)) if i != reference]
  mrt = [i for i in others if 'mrt' in runs[i].algorithm.lower()]
  return reference, (mrt or others[-1:] or [reference])[0]


def _summary(runs, rows):
  if not rows:
    return 'These runs are trained and not evaluated yet.'
  problems = number(runs[0].eval.get('num_problems'))
  horizon = number(runs[0].eval.get('horizon'))
  number_word = dict(enumerate(_WORDS, 1)).get(len(runs), str(len(runs)))
  verb = 'policy answers' if len(runs) == 1 else 'policies answer'
  said = [f'{number_word} {verb}']
  distinct = number(runs[0].eval.get('num_clusters'))
  sizes = {number(run.eval.get('num_problems')) for run in runs}
  if len(sizes) > 1 and all(map(math.isfinite, sizes)):
    fewest, most = min(sizes), max(sizes)
    said.append(f'{fewest:,.0f} to {most:,.0f} held-out prompts each,')
  elif not math.isfinite(problems):
    said.append('held-out problems')
  elif math.isfinite(distinct) and distinct != problems:
    # Several prompts may show one problem, its numbers in another order.
    said.append(f'{problems:,.0f} prompts of {distinct:,.0f} held-out problems')
  else:
    said.append(f'{problems:,.0f} held-out problems')
  if math.isfinite(horizon):
    said.append(f'with up to {horizon:,.0f} tokens of thinking')
  text = ' '.join(said) + (
    '. Regret is how far the chance of a right answer stays below 1, averaged'
    ' over that budget: 0 means right from the first token, 1 never right.'
  )
  reference, hero = _hero(runs)
  row, base = rows[hero], rows[reference]
  if hero == reference or not math.isfinite(row.change.mean):
    if math.isfinite(row.regret.mean):
      text += f' The regret of {row.name} is {fixed(row.regret.mean, 3)}.'
    return text
  named = 'the base policy' if is_base(runs[reference].eval) else base.name
  change = row.change
  side = 'below' if change.mean < 0 else 'above'
  text += (
    f' The regret of {row.name} is {fixed(row.regret.mean, 3)},'
    f' {fixed(100 * abs(change.mean), 1)}% {side} that of {named}'
  )
  if change.low <= 0 <= change.high:
    text += ', a difference that this evaluation does not resolve'
  text += '.'
  if row.efficiency > 1:
    text += (
      f' 95% of what {named} gains by thinking takes it a budget of'
      f' {fixed(row.tokens_to_base, 1)} tokens instead of'
      f' {fixed(base.tokens_to_base, 1)}.'
    )
  return text


def _comparison(name, interval, relative, *, better='', worse=''):
  if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
    reading = NONE
  elif interval.low <= 0 <= interval.high:
    reading = 'not resolved'
  elif better:
    reading = f'{better if interval.mean < 0 else worse} is better'
  else:
    reading = 'below 0' if interval.mean < 0 else 'above 0'
  share = percent(relative.mean) if relative else NONE
  columns = (
    ('mean', fixed(interval.mean, 4)),
    ('95% interval', interval_text(interval, 4) or NONE),
    ('relative', share),
    ('reading', reading),
  )
  return (
    f'<tr><th scope="row">{escape(name)}</th>'
    + ''.join(
      f'<td data-label="{label}"><span>{escape(text)}</span></td>'
      for label, text in columns
    )
    + '</tr>\n'
  )
