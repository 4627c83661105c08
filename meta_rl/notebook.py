"""What a notebook shows: a run under its cell, pictures, traces in colour.

    notebook.train(config, 'runs/mrt')
    notebook.accuracy(base, mrt)                # of `evaluation.evaluate`
    notebook.table(base, mrt)
    notebook.traces({'MRT': mrt['traces'][:3]})
    notebook.picture(panel, text='What it shows.')

Jupyter and Colab show what these return; each holds the same as text, for who
cannot see it and for a plain Python. No dependency of Jupyter's is imported.
"""

import contextlib
import io
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from meta_rl import plots, report
from meta_rl import train as training
from meta_rl.command_line import printable
from meta_rl.headline import fixed, headline_table, headlines
from meta_rl.report_parts import escape
from meta_rl.report_style import INK_LIGHT, SHADES_LIGHT
from meta_rl.report_views import shade
from meta_rl.runs import Run

# An inch of a figure: pixels of the page, and of the image, half as many again
# for dense screens. Those of the report would make a notebook twice as large.
_INCH, _DOTS = 100, 150

# Inline: a style sheet of an output would restyle the whole notebook, and most
# viewers take one out. Chips bring both colours, so that they can be read on a
# dark page too.
_MONO = 'font-family:ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap'
_CHIP = (
  'display:inline-block;margin:2px 4px 2px 0;padding:1px 7px;border-radius:6px;'
  f'white-space:pre-wrap;color:{INK_LIGHT};background:'
)


class Shown:
  """Something that a notebook shows, and the same as text.

  Args:
    text: plain text.
    data: other forms of it by MIME type; an image as bytes.
    width: of an image, pixels of the page; None: its own.
  """

  def __init__(
    self, text: str, data: Mapping[str, Any], *, width: int | None = None
  ):
    self.text, self.data, self.width = text, dict(data), width

  def _repr_mimebundle_(self, include=None, exclude=None):
    del include, exclude  # a notebook takes of it what it can show
    about = {'alt': self.text}
    if self.width is not None:
      about['width'] = self.width
    metadata = {kind: about for kind in self.data if kind.startswith('image/')}
    return self.data | {'text/plain': self.text}, metadata

  def __repr__(self) -> str:
    return self.text


def train(config, folder: str | pathlib.Path) -> None:
  """Trains as `python -m meta_rl.train` does, and says how it goes.

  A folder that holds a run goes on from its last checkpoint. Interrupting the
  cell saves first.

  Args:
    config: of configs/; it is locked here.
    folder: of the run.

  Raises:
    RuntimeError: the run ended early; the line printed last says why.
  """
  # A notebook takes what is written to stderr for an error.
  with contextlib.redirect_stderr(sys.stdout):
    code = training.run(config, str(folder))
  if code:
    raise RuntimeError(
      f'the run in {folder} ended early, with exit code {code}: the line above '
      'says why'
    )


def picture(*panels: plots.Panel, text: str) -> Shown:
  """Returns charts side by side.

  Args:
    *panels: at least one.
    text: what they show, for who cannot see them.

  Raises:
    ValueError: no panel, or no text.
  """
  if not text.strip():
    raise ValueError(
      "text='' is given: say what the picture shows, for who cannot see it."
    )
  drawing = plots.figure(panels, columns=len(panels))
  file = io.BytesIO()
  plots.save_png(drawing, file, dpi=_DOTS)
  return Shown(
    text,
    {'image/png': file.getvalue()},
    width=round(_INCH * drawing.get_figwidth()),
  )


def accuracy(*evals: Mapping[str, Any]) -> Shown:
  """Returns the chart of accuracy against tokens.

  Args:
    *evals: of `evaluation.evaluate`, or contents of eval.json, with names of
      their own.

  Raises:
    ValueError: none of them holds a curve.
  """
  colors = plots.assign_colors([e['algorithm'] for e in evals])
  runs = [
    Run(pathlib.Path(e['name']), e['name'], e['algorithm'], color, dict(e))
    for e, color in zip(evals, colors)
  ]
  panels = report.accuracy_panel(runs, headlines(evals))
  ends = [
    f'{line.label} from {fixed(line.y[0], 2)} with no thinking to '
    f'{fixed(line.y[-1], 2)} with {line.x[-1]:g} tokens of it'
    for panel in panels
    for line in panel.lines
  ]
  return picture(*panels, text=f'Accuracy against tokens: {"; ".join(ends)}.')


def table(*evals: Mapping[str, Any]) -> Shown:
  """Returns the headline figures, a row a policy; `evals` as in `accuracy`."""
  text = headline_table(evals)
  return Shown(text, {'text/markdown': text})


def traces(named: Mapping[str, Sequence[Mapping[str, Any]]]) -> Shown:
  """Returns traces with every episode in the colour of its progress.

  Blue is a gain, orange a loss, grey neither, in the shades of the report. The
  k-th traces of all policies stand together: give those of the same prompts.

  Args:
    named: policy -> traces of `trace_text.describe`, as in an evaluation's
      'traces'.
  """
  count = max(map(len, named.values()), default=0)
  blocks, lines = [], []
  for k in range(count):
    own = [
      (name, listed[k]) for name, listed in named.items() if k < len(listed)
    ]
    prompt = printable(own[0][1]['prompt'])
    lines += [prompt] + [
      line for name, trace in own for line in _said(name, trace)
    ]
    rows = ''.join(_row(name, trace) for name, trace in own)
    blocks.append(
      f'<div style="margin:0 0 14px"><div><b style="{_MONO}">{escape(prompt)}'
      f'</b></div>{rows}</div>'
    )
  body = ''.join(blocks)
  return Shown(
    '\n'.join(lines) or 'no traces',
    {'text/html': f'<div style="line-height:1.6">{body}</div>'},
  )


def _parts(trace):
  """Returns (start J, [(text, progress)], answer, verdict) of a trace."""
  right = {1.0: '✓ right', 0.0: '✗ wrong', None: ''}
  reward = trace.get('reward')
  verdict = right.get(reward, f'reward {reward}')
  episodes = [(printable(e['text']), e['progress']) for e in trace['episodes']]
  return trace['success_start'], episodes, printable(trace['answer']), verdict


def _signed(progress):
  text = fixed(progress, 2)
  return f'+{text}' if progress > 0 and float(text) else text


def _said(name, trace):
  """Returns the lines of a trace as plain text."""
  start, episodes, answer, verdict = _parts(trace)
  lines = [f'  {name}: J {fixed(start, 2)} with no thinking']
  lines += [f'    {_signed(gain):>5}  {text}' for text, gain in episodes]
  return [*lines, f'    answer {answer}  {verdict}'.rstrip()]


def _row(name, trace):
  """Returns a trace as HTML."""
  start, episodes, answer, verdict = _parts(trace)
  chips = [
    f'<span style="{_CHIP}{SHADES_LIGHT["z"]}">J {fixed(start, 2)}</span>'
  ]
  for text, gain in episodes:
    color = SHADES_LIGHT[shade(gain)]
    said = f'{escape(text)} <b>{_signed(gain)}</b>'
    chips.append(f'<span style="{_CHIP}{color}">{said}</span>')
  return (
    f'<div><b>{escape(name)}</b> <span style="{_MONO}">{"".join(chips)}'
    f'{escape(answer)}</span> <span style="white-space:nowrap">'
    f'{escape(verdict)}</span></div>'
  )
