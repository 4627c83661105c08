"""Where tokens go, in the report: regrets, difficulty, votes.

Read from 'regrets', 'difficulty' and 'votes' of an `eval.json`, each where it
is there (`meta_rl.evaluation`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import plots
from meta_rl.headline import (
  fixed,
  interval_of,
  interval_text,
  mapping,
  number,
  numbers,
)
from meta_rl.report_parts import (
  charts,
  escape,
  note,
  policy_row,
  section,
  table,
)
from meta_rl.runs import Run

_COMPARATORS = {
  'one': 'Against an oracle that is right at once',
  'optimum': 'Against the best that the task allows',
  'best': 'Against the best of the policies compared',
}
# Form, column, digits.
_FORMS = (
  ('token_weighted', 'token-weighted', 3),
  ('normalized', 'normalized', 3),
  ('cumulative', 'cumulative, in episodes', 2),
)
_FIGURES = (
  ('accuracy', 'accuracy', 3),
  ('regret_token_weighted', 'regret', 3),
  ('tokens', 'thinking tokens', 1),
)
_MARKERS = 'os^DvP'
_MAX_LABEL = 60


def regrets_section(runs: Sequence[Run]) -> str:
  """Returns the regret in all forms, a table a comparator; '' without any."""
  parts = []
  for name, title in _COMPARATORS.items():
    rows = []
    for run in runs:
      found = mapping(mapping(run.eval.get('regrets')).get(name))
      cells = [
        _cell(label, found.get(form), digits) for form, label, digits in _FORMS
      ]
      if any(math.isfinite(interval_of(found.get(f)).mean) for f, *_ in _FORMS):
        rows.append(policy_row(run.name, run.color, cells, detail=_of(found)))
    if rows:
      header = ['policy', *(label for _, label, _ in _FORMS)]
      parts += [f'<h3>{title}</h3>\n', table(header, rows)]
  if not parts:
    return ''
  text = (
    'Regret is the area between J of a comparator and J of the policy.'
    ' Token-weighted: over the thinking budget, J held from one boundary to the'
    ' next. Normalized: the same by straight lines from (0, 0) on. Cumulative:'
    ' summed over episodes, however long they are. The best policy is chosen'
    ' anew at each point, on these very problems, which flatters it a little;'
    ' below 0 is possible for a policy that is ahead of it on average. Lower is'
    ' better; square brackets: 95% intervals over problems.'
  )
  return section('Regret against each comparator', note(text) + ''.join(parts))


def difficulty_section(runs: Sequence[Run]) -> str:
  """Returns figures by how hard a problem is, policies side by side, or ''."""
  found: dict[str, dict[str, list]] = {}
  for run in runs:
    told = mapping(run.eval.get('difficulty'))
    for entry in _entries(told.get('bins')):
      by = found.setdefault(_short(told.get('label'), 'difficulty'), {})
      by.setdefault(_short(entry.get('label'), 'bin'), []).append((run, entry))
  parts = []
  for label, bins in found.items():
    rows = [
      _bin_row(name, run, entry)
      for name, listed in bins.items()
      for run, entry in listed
    ]
    header = ['bin and policy', *(column for _, column, _ in _FIGURES)]
    parts += [f'<h3>By {escape(label)}</h3>\n', table(header, rows)]
  if not parts:
    return ''
  text = (
    'Problems are put into bins by what is known of them without the policy'
    ' that is measured, so that no bin is made of its luck. Accuracy and tokens'
    ' are those at its own stop, regret is token-weighted; square brackets: 95%'
    ' intervals over the problems of a bin, which are wide where it has few.'
  )
  return section('By difficulty', note(text) + ''.join(parts))


def votes_section(runs: Sequence[Run]) -> str:
  """Returns votes beside thinking on: a chart and rows a policy, or ''."""
  panels, rows, header = [], [], ()
  for run in runs:
    found = _votes(run)
    lines = _vote_lines(run, found)
    if lines:
      panels.append(
        plots.Panel(run.name, 'tokens, all answers counted', 'accuracy', lines)
      )
    own = [_vote_row(run, p, entry) for p, entry in found.items() if p > 1]
    header = header or next((labels for labels, _ in own), ())
    rows += [row for _, row in own]
  if not panels:
    return ''
  text = (
    'Tokens buy several answers to one thought, of which the vote counts'
    ' (maj@p), or more thought and one answer. The curves run from no episode'
    ' of thought to all: the strong line is one answer, a thin one p of them,'
    ' at the tokens of the thought, once, and of all p answers. The table sets'
    ' each vote against the same traces thinking on, one by one, for as many'
    ' tokens; a trace that has stopped has no use for more. Above 0 voting is'
    ' the better use; square brackets: 95% intervals over problems.'
    + _votes_text(runs)
  )
  drawn = f'<div class="charts">{charts("votes", panels)}</div>\n'
  shown = table(['policy and votes', *header], rows) if rows else ''
  return section('Votes or more thinking', note(text) + drawn + shown)


def _cell(label, value, digits):
  """Returns (label, mean, interval in brackets) of a column."""
  found = interval_of(value)
  text = interval_text(found, digits)
  return label, fixed(found.mean, digits), f'[{text}]' if text else ''


def _entries(value) -> list[dict[str, Any]]:
  listed = value if isinstance(value, list) else []
  return [entry for entry in listed if mapping(entry)]


def _short(value, other) -> str:
  return value[:_MAX_LABEL] if isinstance(value, str) and value else other


def _of(found: Mapping[str, Any]) -> str:
  """Returns which policies the best was chosen of, '' where it is not said."""
  names = found.get('policies')
  listed = names if isinstance(names, list) else []
  shown = [_short(name, '') for name in listed]
  return f'of {", ".join(shown)}' if any(shown) else ''


def _bin_row(name, run, entry):
  cells = [
    _cell(label, entry.get(key), digits) for key, label, digits in _FIGURES
  ]
  count = number(entry.get('problems'))
  detail = f'{count:,.0f} problems' if math.isfinite(count) else ''
  return policy_row(f'{name}: {run.name}', run.color, cells, detail=detail)


def _votes(run: Run) -> dict[int, dict[str, Any]]:
  """Returns p -> its figures as arrays [K+1], of those that are whole.

  The keys are 'accuracy', 'tokens', 'thinking_on', and 'gain', a list of
  intervals.
  """
  told, found = mapping(run.eval.get('votes')), {}
  for p in numbers(told.get('sizes')):
    if not math.isfinite(p) or p < 1 or p != int(p):
      continue
    own = mapping(told.get(str(int(p))))
    gain = own.get('gain') if isinstance(own.get('gain'), list) else []
    entry = {
      key: numbers(own.get(key))
      for key in ('accuracy', 'tokens', 'thinking_on')
    }
    whole = {len(values) for values in entry.values()} == {len(gain)} != {0}
    if whole and np.isfinite(list(entry.values())).all():
      found[int(p)] = entry | {'gain': [interval_of(each) for each in gain]}
  return found


def _vote_lines(run, found) -> list[plots.Line]:
  """Returns the curve of one answer and, thin, of each vote; [] without it."""
  if 1 not in found:
    return []
  lines = [plots.Line(run.name, run.color, *_points(found[1]))]
  several = [p for p in found if p > 1]
  for i, p in enumerate(several):
    marker = _MARKERS[i % len(_MARKERS)]
    x, y = _points(found[p])
    lines.append(plots.Line(f'maj@{p}', run.color, x, y, marker=marker))
  return lines


def _points(entry):
  order = np.argsort(entry['tokens'], kind='stable')
  return entry['tokens'][order], entry['accuracy'][order]


def _vote_row(run, p, entry):
  """Returns the labels of the columns, and the row: three boundaries."""
  last = len(entry['gain']) - 1
  cells = []
  for j in sorted({0, last // 2, last}):
    label = f'after {j} episode{"s" * (j != 1)}'
    gain = entry['gain'][j]
    sign = '+' if gain.mean > 0 and float(f'{gain.mean:.3f}') else ''
    text = interval_text(gain, 3)
    vote, on = (fixed(entry[k][j], 3) for k in ('accuracy', 'thinking_on'))
    tokens = fixed(entry['tokens'][j], 1)
    detail = f'[{text}]\n' if text else ''
    detail += f'{vote} against {on}\nat {tokens} tokens'
    cells.append((label, sign + fixed(gain.mean, 3), detail))
  row = policy_row(f'{run.name}: maj@{p}', run.color, cells)
  return [label for label, *_ in cells], row


def _votes_text(runs) -> str:
  """Returns on how many problems votes were measured, and how they weigh."""
  told = [mapping(run.eval.get('votes')) for run in runs]
  sizes = {number(each.get('problems')) for each in told if each}
  text = ''
  if len(sizes) == 1 and math.isfinite(size := sizes.pop()):
    text += f' On {size:,.0f} problems.'
  if any(each.get('weighted') is True for each in told):
    text += (
      " A vote weighs 2 to the mean log-probability of its answer's tokens."
    )
  return text
