"""Line charts in one style: PNG files, and SVG that follows the page's theme.

A policy keeps one colour and one dash in every chart. Colours are told apart
under the common colour-vision deficiencies and in grey print (the dashes), and
each has a contrast of at least 4.5:1 on its background, since the labels at the
line ends are written in them. Nothing here touches matplotlib's global state.
"""

import io
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from meta_rl import plot_labels as labels
from meta_rl.plot_style import (
  DASHES,
  INK,
  LIGHT,
  LOST,
  MUTED,
  PANEL,
  RC,
  RULE,
)


class Line(NamedTuple):
  """One policy's curve.

  Attributes:
    label: name written at the line's end.
    color: index into the palette, as `assign_colors` gives it.
    x: f[M], increasing.
    y: f[M].
    low: f[M], lower edge of the band, or None.
    high: f[M], upper edge of the band, or None.
    dots: (x, y) of points drawn as markers, such as held-out scores, or None.
    mark: (x, y) of one point to circle, or None.
    marker: draws the points, thin, under a name in the chart's key instead of
      one at the line's end: a matplotlib marker, '' for none.
    hollow: whether the markers are.
  """

  label: str
  color: int
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  dots: tuple[Sequence[float], Sequence[float]] | None = None
  mark: tuple[float, float] | None = None
  marker: str = ''
  hollow: bool = False


class Panel(NamedTuple):
  """One chart.

  Attributes:
    title: headline of the chart.
    x_label: quantity and unit on x.
    y_label: quantity and unit on y.
    lines: the curves.
    smooth: draw a running mean over the faint raw curve (noisy training logs).
    level: y of a horizontal reference line, or None.
    level_label: what is written on that line.
    comparator: y up to which the area above each line without markers is
      filled, its regret, darker where several overlap; or None.
    comparator_label: what is written at that y.
    hollow_label: what hollow markers are, in the key; a line of them then has
      no entry of its own where one of filled markers of its kind has.
  """

  title: str
  x_label: str
  y_label: str
  lines: Sequence[Line]
  smooth: bool = False
  level: float | None = None
  level_label: str = ''
  comparator: float | None = None
  comparator_label: str = ''
  hollow_label: str = ''


def assign_colors(algorithms: Sequence[str]) -> list[int]:
  """Returns a palette index for each run, one colour a policy.

  The base policy is grey, GRPO-like baselines orange, MRT blue, whichever runs
  are present; what remains takes the free colours in order, and beyond six runs
  the palette starts again.

  Args:
    algorithms: name of each run's algorithm, in any case.

  Returns:
    Palette indices, as many as algorithms.
  """
  colors = [-1] * len(algorithms)
  names = [algorithm.lower() for algorithm in algorithms]
  # A plain 'grpo' owns its colour even where 'drgrpo' comes first.
  for exact in (True, False):
    for i, name in enumerate(names):
      for own, color in (('base', 0), ('grpo', 1), ('mrt', 2)):
        match = name == own if exact else own in name
        if match and colors[i] < 0 and color not in colors:
          colors[i] = color
  free = [i for i in (3, 4, 5, 1, 2, 0) if i not in colors]
  for i, color in enumerate(colors):
    if color < 0:
      colors[i] = free.pop(0) if free else i % len(LIGHT)
  return colors


def figure(
  panels: Sequence[Panel],
  *,
  columns: int = 1,
  size: tuple[float, float] = PANEL,
) -> Figure:
  """Returns the panels on one figure, `columns` side by side.

  Args:
    panels: at least one.
    columns: panels in a row.
    size: of one panel, inches; the text keeps its size.

  Returns:
    A figure for `save_png` or `to_svg`.

  Raises:
    ValueError: no panels.
  """
  if not panels:
    raise ValueError('There is no panel to draw: give at least one.')
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  below = max(labels.key_height(panel) for panel in panels)
  with matplotlib.rc_context(RC):
    width, height = size[0] * columns, (size[1] + below) * rows
    drawing = Figure(figsize=(width, height), facecolor='none')
    drawing.subplots_adjust(
      left=0.56 / width,
      right=1 - 0.72 / width,
      bottom=(labels.BOTTOM + below) / height,
      top=1 - 0.36 / height,
      wspace=1.28 / (width / columns - 1.28),
      hspace=(0.84 + below) / (size[1] - 0.84),
    )
    axes = drawing.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
      ax.remove()
    for ax, panel in zip(axes, panels, strict=False):
      _draw(ax, panel)
  return drawing


def save_png(
  drawing: Figure, path: str | pathlib.Path | io.BytesIO, *, dpi: int = 200
) -> None:
  """Writes the figure as a PNG on white, `dpi` dots an inch."""
  with matplotlib.rc_context(RC), warnings.catch_warnings():
    # A name in a script that the font lacks is drawn as boxes: no failure.
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    drawing.savefig(
      path, format='png', dpi=dpi, facecolor='white', metadata={'Software': ''}
    )


def to_svg(drawing: Figure, *, prefix: str, description: str) -> str:
  """Returns the figure as an `<svg>` element to be set into an HTML page.

  Palette colours become CSS variables (`--s0` … `--s5`, `--ink`, `--muted`,
  `--rule`), so that the chart follows the page's light or dark theme; ids get a
  prefix, so that several charts live in one document; no link leaves the page.

  Args:
    drawing: from `figure`.
    prefix: of the ids, unique in the page, letters and digits.
    description: what a screen reader says, plain text.

  Returns:
    Text of one svg element.
  """
  buffer = io.StringIO()
  with matplotlib.rc_context(RC), warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    drawing.savefig(
      buffer,
      format='svg',
      transparent=True,
      metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None},
    )
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', '', text)
  text = text.replace('xlink:href', 'href')
  text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
  text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
  text = re.sub(r'url\(#([^)]+)\)', rf'url(#{prefix}-\1)', text)
  variables = {color: f'var(--s{i})' for i, color in enumerate(LIGHT)}
  variables |= {
    INK: 'var(--ink)',
    MUTED: 'var(--muted)',
    RULE: 'var(--rule)',
    LOST: 'var(--lost)',
  }
  for color, variable in variables.items():
    text = text.replace(color, variable)
  # The page's font rules; matplotlib's family list would beat it.
  text = re.sub(r'font-family: [^;"]*', 'font-family: var(--font)', text)
  label = _attribute(description)
  box = re.search(r'viewBox="[^"]*"', text).group(0)
  body = text[text.index('>') + 1 :]
  return f'<svg {box} role="img" aria-label="{label}">{body}'


def compact(value: float, _=None) -> str:
  """Returns a number as an axis shows it: 0.25, 12, 3.4k, 12M."""
  for size, suffix in ((1e9, 'B'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= size:
      scale = 1e3 if suffix == 'k' else size
      return f'{value / scale:.3g}{suffix}'
  return f'{value:.10g}'.replace('-', '−')


def _draw(ax: Axes, panel: Panel) -> None:
  ax.set_title(panel.title)
  ax.set_xlabel(panel.x_label)
  ax.set_ylabel(panel.y_label)
  ax.margins(x=0.0, y=0.06)
  ax.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
  ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
  ax.xaxis.set_major_formatter(FuncFormatter(compact))
  ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
  if panel.comparator is not None:
    _fill_regret(ax, panel)
  # The base first: MRT is drawn on top of it.
  for line in sorted(panel.lines, key=lambda line: line.color != 0):
    _draw_line(ax, line, panel.smooth)
  if panel.level is not None:
    ax.axhline(panel.level, color=MUTED, linewidth=0.8, dashes=(1, 2))
    labels.label_level(ax, panel)
  labels.label_ends(ax, panel)
  if labels.keyed(panel):
    labels.draw_key(ax, panel)


def _fill_regret(ax, panel):
  """Fills the area between each curve and the comparator, and names it."""
  curves = [line for line in panel.lines if not line.marker]
  # All of them together are as dark as one alone would be.
  alpha = 1 - 0.15 ** (1 / max(1, len(curves)))
  for line in curves:
    y = np.minimum(np.asarray(line.y, float), panel.comparator)
    ax.fill_between(line.x, y, panel.comparator, color=LOST, alpha=alpha, lw=0)
  ax.axhline(panel.comparator, color=MUTED, linewidth=0.8)
  ax.annotate(
    labels.plain(panel.comparator_label)[:60],
    (0, panel.comparator),
    xycoords=('axes fraction', 'data'),
    xytext=(5, -3),
    textcoords='offset points',
    va='top',
    color=MUTED,
    fontsize=8,
  )


def _draw_line(ax, line, smooth):
  color = LIGHT[line.color % len(LIGHT)]
  x, y = np.asarray(line.x, float), np.asarray(line.y, float)
  if line.marker:
    ax.plot(
      x,
      y,
      color=color,
      linewidth=0.9,
      marker=line.marker,
      markevery=max(1, len(x) // 12),
      clip_on=False,
      markersize=7 if line.marker == '*' else 4.2,
      markerfacecolor='none' if line.hollow else color,
      markeredgewidth=1.1,
      label=labels.plain(line.label)[:28],
    )
    return
  if line.low is not None and line.high is not None:
    ax.fill_between(x, line.low, line.high, color=color, alpha=0.16, lw=0)
  if smooth and len(y) >= 8:
    ax.plot(x, y, color=color, alpha=0.25, linewidth=0.7)
    y = labels.running_mean(y, max(3, len(y) // 10))
  # Dashes would drown in a noisy curve.
  dashes = None if smooth else DASHES[line.color % len(DASHES)]
  (artist,) = ax.plot(x, y, color=color, linewidth=1.9)
  if dashes:
    artist.set_dashes(dashes)
  if len(x) == 1:
    ax.plot(x, y, color=color, marker='o', markersize=4)
  if line.dots is not None and len(line.dots[0]):
    ax.plot(
      *line.dots,
      color=color,
      linestyle='none',
      marker='o',
      markersize=3.6,
      clip_on=False,
    )
  if line.mark is not None:
    ax.plot(
      [line.mark[0]],
      [line.mark[1]],
      color=color,
      linestyle='none',
      marker='o',
      markersize=6.5,
      markerfacecolor='none',
      markeredgewidth=1.8,
      clip_on=False,
    )


def _attribute(text):
  return (
    text.replace('&', '&amp;')
    .replace('<', '&lt;')
    .replace('>', '&gt;')
    .replace('"', '&quot;')
  )
