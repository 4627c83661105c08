"""Building blocks of the HTML pages: text that is safe, sections, charts.

Every string that comes from a run passes through `escape`; what is written here
by hand is the only markup of the page.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence

from meta_rl import plot_style, plots
from meta_rl.headline import fixed
from meta_rl.report_style import style_sheet

PAPER = 'https://arxiv.org/abs/2503.07572'

# Nothing may be loaded, whatever a trace holds, and nothing may run but the one
# script whose hash is added.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')


def escape(value: object) -> str:
  """Returns any value as text that is safe in HTML and in attributes."""
  return html.escape(readable(str(value)), quote=True)


def document(
  title: str,
  body: str,
  *,
  command: str = 'python -m meta_rl.report',
  script: str = '',
) -> str:
  """Returns the whole page.

  Args:
    title: of the window.
    body: HTML.
    command: that the footer names as its writer.
    script: JavaScript, run at the end of the body; '' for a page without.
  """
  policy = _POLICY
  if script:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    policy += f"; script-src 'sha256-{digest.decode()}'"
    body += f'<script>{script}</script>\n'
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f'<title>{escape(title)}</title>\n<style>\n{style_sheet()}</style>\n'
    f'</head>\n<body>\n<main>\n{body}</main>\n'
    f'<footer>\nWritten by <code>{escape(command)}</code>. Progress,'
    ' regret and the meta-prover are those of Qu, Yang, Setlur, Tunstall,'
    ' Beeching, Salakhutdinov and Kumar,'
    f' <a href="{PAPER}">Optimizing Test-Time Compute via Meta Reinforcement'
    ' Fine-Tuning</a> (2025).\n</footer>\n</body>\n</html>\n'
  )


def charts(
  name: str, panels: Sequence[plots.Panel], *, small: bool = False
) -> str:
  """Returns each panel as a figure; `name`, of its ids, is the page's alone."""
  figures = []
  size = plot_style.SMALL_PANEL if small else plot_style.PANEL
  for i, panel in enumerate(panels):
    ends = ', '.join(
      f'{line.label} ends at {fixed(float(line.y[-1]), 3)}'
      for line in panel.lines
    )
    svg = plots.to_svg(
      plots.figure([panel], size=size),
      prefix=f'{name}{i}',
      description=readable(
        f'{panel.title}: {panel.y_label} over {panel.x_label}; {ends}'
      ),
    )
    figures.append(f'<figure>{svg}</figure>\n')
  return ''.join(figures)


def section(title: str, content: str) -> str:
  """Returns a section with its headline; the content is HTML."""
  return f'<section>\n<h2>{escape(title)}</h2>\n{content}</section>\n'


def note(text: str, kind: str = '') -> str:
  """Returns a paragraph of plain text."""
  return f'<p class="note {kind}">{escape(text)}</p>\n'


def table(header: Sequence[str], lines: Sequence[str]) -> str:
  """Returns a table; each line is the HTML of one row."""
  head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in header)
  return (
    f'<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
    + ''.join(lines)
    + '</tbody>\n</table>\n'
  )


def policy_row(
  name: str,
  color: int | None,
  columns: Sequence[tuple[str, str, str]],
  *,
  detail: str = '',
) -> str:
  """Returns one row of a table, about a policy.

  Args:
    name: of the policy.
    color: palette index of its key, None: without one.
    columns: (label, figure, detail) of each; the label is shown on a phone,
      where there is no header, and the lines of the detail below the figure.
    detail: below the name.
  """
  key = '' if color is None else line_key(color)
  cells = [
    f'<th scope="row"><span class="policy">{key}<span>{escape(name)}'
    f'{_lines(detail)}</span></span></th>'
  ]
  for label, figure, more in columns:
    cells.append(
      f'<td data-label="{escape(label)}"><span><span class="figure">'
      f'{escape(figure)}</span>{_lines(more)}</span></td>'
    )
  return '<tr>' + ''.join(cells) + '</tr>\n'


def _lines(detail):
  return ''.join(
    f'<span class="detail">{escape(line)}</span>'
    for line in detail.splitlines()
  )


def line_key(color: int) -> str:
  """Returns a sample of a policy's line: a table with it is a legend."""
  dashes = plot_style.DASHES[color % len(plot_style.DASHES)]
  dashes = ' '.join(str(2 * d) for d in dashes) if dashes else 'none'
  return (
    '<svg class="key" viewBox="0 0 26 8" aria-hidden="true"><line x1="1" y1="4"'
    f' x2="25" y2="4" stroke="var(--s{color})" stroke-width="3"'
    f' stroke-dasharray="{dashes}"/></svg>'
  )


def details(summary: str, content: str) -> str:
  """Returns content, HTML, that opens on a click."""
  return f'<details><summary>{escape(summary)}</summary>\n{content}</details>\n'


def pre(text: str) -> str:
  """Returns plain text as it is."""
  return f'<pre tabindex="0">{escape(text)}</pre>\n'


def json_block(name: str, value: object) -> str:
  """Returns a value as JSON that a script reads by its id, `name`.

  It holds no '<', '>' or '&', nor anything beyond ASCII: no text in it can end
  the block or begin a comment.
  """
  text = json.dumps(value, separators=(',', ':'))
  for sign in '<>&':
    text = text.replace(sign, f'\\u{ord(sign):04x}')
  return f'<script type="application/json" id="{name}">{text}</script>\n'


def readable(text: str) -> str:
  """Returns text with signs that no page may show replaced."""
  return _CONTROL.sub('\ufffd', text)


def pretty(value: object) -> str:
  """Returns a value as indented JSON."""
  return json.dumps(value, indent=2, ensure_ascii=False, default=str)
