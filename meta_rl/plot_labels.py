"""What names the lines of a chart: at their ends, at a level, in a key.

A `panel` here is a `plots.Panel`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from meta_rl.plot_style import LIGHT, MUTED

BOTTOM, _ROW = 0.48, 0.17  # inches: below an axis; of a row of a key there
_MOST_INSIDE = 4  # entries of a key within the axes


def label_level(ax: Axes, panel) -> None:
  """Writes what the level is at an end of its line."""
  right, below = _free_corner(ax, panel)
  ax.annotate(
    plain(panel.level_label)[:40],
    (1 if right else 0, panel.level),
    xycoords=('axes fraction', 'data'),
    xytext=(-5 if right else 5, -3 if below else 3),
    textcoords='offset points',
    ha='right' if right else 'left',
    va='top' if below else 'bottom',
    color=MUTED,
    fontsize=8,
  )


def _free_corner(ax, panel):
  """Returns (right, below): where the level's label meets the fewest curves."""
  low, high = ax.get_ylim()
  start, end = ax.get_xlim()

  def met(corner):
    right, below = corner
    x_low, x_high = (0.55, 1.0) if right else (0.0, 0.45)
    y_low, y_high = (-0.08, 0.0) if below else (0.0, 0.08)
    inside = 0
    for line in panel.lines:
      x = (np.asarray(line.x, float) - start) / (end - start)
      y = (np.asarray(line.y, float) - panel.level) / (high - low)
      inside += (
        (x >= x_low) & (x <= x_high) & (y > y_low) & (y < y_high)
      ).sum()
    # Outside of the panel nothing is read at all.
    edge = low if below else high
    room = abs(edge - panel.level) / (high - low)
    return (room < 0.08, inside)

  corners = [(False, False), (True, True), (True, False), (False, True)]
  return min(corners, key=met)


def keyed(panel):
  """Returns the lines that have an entry in the key."""
  lines = [line for line in panel.lines if line.marker]
  if not panel.hollow_label:
    return lines
  filled = {(line.marker, line.color) for line in lines if not line.hollow}
  return [
    line
    for line in lines
    if not line.hollow or (line.marker, line.color) not in filled
  ]


def key_height(panel):
  """Returns the inches of a key below the axes; inside they are 0."""
  entries = len(keyed(panel)) + bool(panel.hollow_label)
  if entries <= _MOST_INSIDE:
    return 0.0
  return _ROW * (-(-entries // 2)) + 0.1


def draw_key(ax, panel):
  """Draws the key: in the lower right corner, or in two columns below."""
  kept = {plain(line.label)[:28] for line in keyed(panel)}
  found = zip(*ax.get_legend_handles_labels())
  entries = [(handle, text) for handle, text in found if text in kept]
  if panel.hollow_label and any(line.hollow for line in panel.lines):
    hollow = {'marker': 'o', 'markersize': 4.2, 'markerfacecolor': 'none'}
    sample = Line2D([], [], color=MUTED, linewidth=0.9, **hollow)
    entries.append((sample, plain(panel.hollow_label)[:28]))
  if not entries:  # names that matplotlib takes for hidden
    return
  place = {'loc': 'lower right'}
  if key_height(panel):
    drawing = ax.get_figure()
    inches = ax.get_position().height * drawing.get_figheight()
    corner = (0, -BOTTOM / inches)
    place = {'loc': 'upper left', 'bbox_to_anchor': corner, 'ncols': 2}
  ax.legend(
    *zip(*entries),
    **place,
    fontsize=8,
    frameon=False,
    labelcolor=MUTED,
    handlelength=1.6,
    borderpad=0,
    labelspacing=0.3,
  )


def label_ends(ax, panel):
  """Writes each name at its line's end, pushed apart where they collide."""
  lines = [line for line in panel.lines if len(line.y) and not line.marker]
  if not lines:
    ax.text(
      0.5,
      0.5,
      'no data',
      transform=ax.transAxes,
      ha='center',
      va='center',
      color=MUTED,
    )
    return
  bottom, top = ax.get_ylim()
  ends = []
  for line in lines:
    y = np.asarray(line.y, float)
    if panel.smooth and len(y) >= 8:
      y = running_mean(y, max(3, len(y) // 10))
    ends.append((y[-1] - bottom) / (top - bottom))
  size = ax.get_position().height * ax.figure.get_figheight() * 72
  places = spread(ends, 11.5 / size)
  for line, place in zip(lines, places, strict=True):
    name = plain(line.label)
    name = name if len(name) <= 9 else name[:8] + '…'
    ax.annotate(
      name,
      (1, place),
      xycoords='axes fraction',
      xytext=(5, 0),
      textcoords='offset points',
      color=LIGHT[line.color % len(LIGHT)],
      fontweight='bold',
      fontsize=9,
      va='center',
      annotation_clip=False,
    )


def spread(places: Sequence[float], gap: float) -> list[float]:
  """Returns the places moved as little as an even push needs to be `gap` apart.

  Neighbours that are too close form a block centred on their mean, blocks that
  then touch are joined; order is kept.

  Args:
    places: positions, any order.
    gap: the smallest distance wanted, >= 0.

  Returns:
    New positions, in the order given.
  """
  order = np.argsort(places, kind='stable')
  blocks = []  # (mean of the wanted places, how many)
  for i in order:
    blocks.append((float(places[i]), 1))
    while len(blocks) > 1:
      (low, m), (high, n) = blocks[-2:]
      if high - low >= gap * (m + n) / 2:
        break
      blocks[-2:] = [((low * m + high * n) / (m + n), m + n)]
  moved = []
  for centre, n in blocks:
    moved += [centre + gap * (i - (n - 1) / 2) for i in range(n)]
  result = [0.0] * len(moved)
  for i, place in zip(order, moved, strict=True):
    result[i] = place
  return result


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
  """Returns the centred mean over `window` values, shorter at the edges."""
  values = np.asarray(values, np.float64)
  before, after = (window - 1) // 2, window // 2
  sums = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  low = np.maximum(index - before, 0)
  high = np.minimum(index + after + 1, len(values))
  return (sums[high] - sums[low]) / (high - low)


def plain(text: str) -> str:
  """Returns a name with `?` for what cannot be printed."""
  return ''.join(c if c.isprintable() else '?' for c in text)
