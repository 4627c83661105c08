"""Where tokens are wasted: the section of the report.

Read from 'waste' of an `eval.json`, as `meta_rl.waste.summary` made it.
"""

import math
from collections.abc import Sequence

from meta_rl import waste
from meta_rl.headline import (
  fixed,
  interval_of,
  interval_text,
  mapping,
  number,
)
from meta_rl.report_parts import escape, note, policy_row, section, table
from meta_rl.runs import Run

TITLE = 'Where tokens are wasted'

# Name of a category, column, words of the bar's key, shade of the bar's part.
_CATEGORIES = (
  ('after_success', 'after the first success', 'n4'),
  ('repeated', 'repeats', 'n3'),
  ('negative_progress', 'negative progress', 'n2'),
  ('no_progress', 'no progress', 'n1'),
)
_ANY = ('any', 'any of these')
_REST = ('rest', 'the rest: progress before the success', 'p2')
_ROOM = 0.07  # of a bar: room for a percentage


def waste_section(runs: Sequence[Run]) -> str:
  """Returns the section: a bar and a row a policy, and shares of traces."""
  told = [run for run in runs if mapping(run.eval.get('waste'))]
  if not told:
    return section(
      TITLE,
      note('No evaluation says what its tokens went into: evaluate again.'),
    )
  found = told[0].eval['waste']
  solved, flat, late = (
    number(found.get(key))
    for key in ('solved_above', 'flat_below', 'late_above')
  )
  solved, flat = fixed(solved, 2), fixed(flat, 2)
  text = (
    f'A trace has succeeded at the first boundary with J above {solved}. What'
    ' it thinks from there on is after the first success, even where J falls'
    ' again. A repeat has the very tokens of an earlier episode of its trace.'
    f' An episode makes no progress if it moves J by less than {flat}, and'
    f' negative progress if it lowers J by {flat} or more; before the success'
    ' that is how a search goes, and a waste only in hindsight.'
  )
  bars = ''.join(_bar(run) for run in told)
  header = ['policy', *(column for _, column, _ in _CATEGORIES), _ANY[1]]
  header.append('thinking tokens')
  parts = [
    note(text),
    f'<h3>Thinking tokens, each counted once</h3>\n{_key()}'
    f'<div class="bars">\n{bars}</div>\n',
    '<h3>Share of thinking tokens, kind by kind</h3>\n',
    table(header, [_tokens_row(run) for run in told]),
    note(
      'The kinds overlap: a repeat after the success is in both. The bars'
      ' count an episode under the first kind that it is in, from the left.'
      ' Square brackets: 95% bootstrap intervals over problems; below them,'
      ' tokens a trace.',
      'small',
    ),
    '<h3>Share of traces</h3>\n',
    table(['policy', *waste.CLASSES], [_classes_row(run) for run in told]),
    note(
      'Wasted: thought on after its first success. Given up: stopped by itself'
      f' with J at most {solved}. Solved late: first success after more than'
      f' {_share(late, 0)} of the budget. A trace may be in several.',
      'small',
    ),
  ]
  return section(TITLE, ''.join(parts))


def _bar(run):
  split = mapping(run.eval['waste'].get('split'))
  parts, words = [], []
  for name, label, shade in (*_CATEGORIES, _REST):
    share = number(split.get(name))
    if not 0 < share <= 1:
      continue
    words.append(f'{_share(share)} {label}')
    shown = f'{100 * share:.0f}%' if share >= _ROOM else ''
    parts.append(
      f'<span class="{shade}" style="flex-grow:{share:.4f}">{shown}</span>'
    )
  if not parts:
    return ''
  label = escape(f'Thinking tokens of {run.name}: {", ".join(words)}')
  return (
    f'<div class="bar t{run.color}"><span class="name">{escape(run.name)}'
    f'</span><span class="parts" role="img" aria-label="{label}">'
    f'{"".join(parts)}</span></div>\n'
  )


def _key():
  items = ''.join(
    f'<li><span class="chip {shade}" aria-hidden="true"></span>{escape(label)}'
    '</li>\n'
    for _, label, shade in (*_CATEGORIES, _REST)
  )
  return f'<ul class="chips">\n{items}</ul>\n'


def _tokens_row(run):
  found = run.eval['waste']
  columns = []
  for name, label, *_ in (*_CATEGORIES, _ANY):
    entry = mapping(mapping(found.get('categories')).get(name))
    share = interval_of(entry.get('share'))
    tokens = interval_of(entry.get('tokens')).mean
    lines = [_interval(share)]
    lines += [f'{fixed(tokens, 1)} tokens'] if math.isfinite(tokens) else []
    columns.append((label, _share(share.mean), '\n'.join(lines).lstrip()))
  tokens = interval_of(found.get('tokens'))
  text = interval_text(tokens, 1)
  columns.append(
    ('thinking tokens', fixed(tokens.mean, 1), f'[{text}]' if text else '')
  )
  return policy_row(run.name, run.color, columns)


def _classes_row(run):
  classes = mapping(run.eval['waste'].get('classes'))
  columns = []
  for name in waste.CLASSES:
    share = interval_of(classes.get(name))
    columns.append((name, _share(share.mean), _interval(share)))
  return policy_row(run.name, run.color, columns)


def _share(value, digits=1):
  return fixed(100 * value, digits) + ('%' if math.isfinite(value) else '')


def _interval(share):
  if not (math.isfinite(share.low) and math.isfinite(share.high)):
    return ''
  return f'[{_share(share.low)} to {_share(share.high)}]'
