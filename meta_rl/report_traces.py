"""Sample traces of the report: a viewer of all, and some side by side.

The cards side by side need no script; the viewer is of `meta_rl.report_viewer`.
"""

from collections.abc import Sequence

from meta_rl.report_parts import escape, note, section
from meta_rl.report_viewer import steps, viewer
from meta_rl.report_views import (
  View,
  horizon_of,
  traces_of,
  view,
)
from meta_rl.runs import Run

MAX_PROMPTS = 6
MAX_POLICIES = 3

_READING = (
  'Each strip is one episode, coloured by its progress: how much it changed J,'
  ' the chance that answering right after it is right. The small chart draws J'
  " over thinking tokens; the filled area above it is the trace's regret."
)


def traces_section(runs: Sequence[Run]) -> str:
  """Returns the section of sample traces.

  Side by side stand the policies' traces of a prompt. Prompts that most
  policies share come first. A policy's k-th trace of a prompt stands beside the
  others' k-th.

  Args:
    runs: evaluated runs.

  Returns:
    HTML.
  """
  groups = _groups(runs)
  if not groups:
    return section('Sample traces', note('No evaluation holds traces.'))
  parts = [note(_READING), _legend(), viewer(runs)]
  parts.append('<h3>Policies side by side</h3>\n')
  for prompt, traces in groups:
    horizon = max(horizon_of(run, trace) for run, trace in traces)
    cards = ''.join(
      _card(run, view(trace, horizon=horizon)) for run, trace in traces
    )
    parts.append(
      f'<h4 class="prompt">Problem <span class="mono">{escape(prompt)}</span>'
      f'</h4>\n<div class="traces">{cards}</div>\n'
    )
  return section('Sample traces', ''.join(parts))


def _legend():
  labels = ('n4', '−.6'), ('n3', '−.3'), ('n2', '−.1'), ('n1', '−.02')
  labels += (('z', '0'),)
  labels += ('p1', '+.02'), ('p2', '+.1'), ('p3', '+.3'), ('p4', '+.6')
  shades = ''.join(
    f'<span class="{name}">{text}</span>' for name, text in labels
  )
  return (
    '<p class="legend"><span>lost</span><span class="scale" role="img"'
    ' aria-label="Colour scale of progress, from orange for a loss of 0.6 or'
    f' more to blue for a gain of 0.6 or more">{shades}</span>'
    '<span>gained, in probability</span></p>\n'
  )


def _groups(runs):
  """Returns [(prompt, [(run, trace), …]), …], at most MAX_PROMPTS."""
  groups = {}
  for run in _chosen(runs):
    seen = {}
    for trace in traces_of(run):
      prompt = str(trace.get('prompt', ''))
      seen[prompt] = seen.get(prompt, 0) + 1
      groups.setdefault((prompt, seen[prompt]), []).append((run, trace))
  listed = sorted(groups.items(), key=lambda item: -len(item[1]))
  return [(prompt, traces) for (prompt, _), traces in listed[:MAX_PROMPTS]]


def _chosen(runs):
  """Returns the base, MRT and then others, MAX_POLICIES, in the runs' order."""
  having = [run for run in runs if run.eval.get('traces')]
  first = [run for run in having if run.color in (0, 2)]
  first += [run for run in having if run not in first]
  return [run for run in having if run in first[:MAX_POLICIES]]


def _card(run: Run, shown: View) -> str:
  stops = dict(shown.stops)
  rows = [
    '<li class="plain"><span>no thinking yet</span>'
    f'<span class="values">J {shown.start}</span></li>',
    *_stop(stops, 0),
  ]
  for j, row in enumerate(shown.rows, 1):
    text = escape(row.text)
    if row.left_out:
      text += f'… <em>({row.left_out} more characters)</em>'
    rows.append(
      f'<li class="{row.shade}"><span class="text">{text}</span>'
      f'<span class="values"><b>{row.progress}</b> J {row.success}</span></li>'
    )
    rows += _stop(stops, j)
  if shown.left_out:
    rows.append(
      f'<li class="plain"><span>… and {shown.left_out} more episodes</span>'
      '</li>'
    )
  answer = ''
  if shown.answer is not None:
    answer = (
      f'<p class="answer">Answer <span class="mono">{escape(shown.answer)}'
      f'</span> <strong>{escape(shown.verdict)}</strong></p>\n'
    )
  return (
    f'<article class="trace t{run.color}">\n<h5><span class="name">'
    f'{escape(run.name)}</span><span class="stop">{shown.stopped}</span></h5>\n'
    + (steps(shown.chart, run.color) if shown.chart else '')
    + '<ol class="episodes">\n'
    + '\n'.join(rows)
    + f'\n</ol>\n{answer}</article>\n'
  )


def _stop(stops, boundary):
  if boundary not in stops:
    return []
  return [f'<li class="rule">{escape(stops[boundary])}</li>']
