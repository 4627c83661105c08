"""Colours, labels and files of meta_rl.plots."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from meta_rl import plot_labels, plot_style, plots, report_style


def _panel(**options):
  x = np.arange(20.0)
  lines = [
    plots.Line('base', 0, x, x / 40, low=x / 50, high=x / 30),
    plots.Line('MRT', 2, x, x / 20, dots=([3.0], [0.2]), mark=(5.0, 0.25)),
  ]
  return plots.Panel('Title', 'tokens', 'J', lines, **options)


@pytest.mark.parametrize(
  ('algorithms', 'colors'),
  [
    (['base', 'grpo', 'mrt'], [0, 1, 2]),
    (['MRT'], [2]),
    (['mrt', 'base'], [2, 0]),
    (['drgrpo', 'grpo'], [3, 1]),
    (['mrt_online', 'mrt'], [3, 2]),
    (['mrt', 'mrt', 'mrt'], [2, 3, 4]),
    (['star', 'base'], [3, 0]),
  ],
)
def test_assign_colors(algorithms, colors):
  assert plots.assign_colors(algorithms) == colors


def test_assign_colors_never_runs_out():
  colors = plots.assign_colors(['x'] * 9)
  assert len(set(colors[:6])) == 6
  assert all(0 <= color < 6 for color in colors)


def _luminance(color):
  parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
  ]
  return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def _contrast(a, b):
  low, high = sorted([_luminance(a), _luminance(b)])
  return (high + 0.05) / (low + 0.05)


def test_colors_are_readable_on_their_pages():
  style = report_style
  assert _contrast('#ffffff', '#000000') == pytest.approx(21)
  for color in (*plot_style.LIGHT, plot_style.MUTED):
    assert _contrast(color, style.PAGE_LIGHT) >= 4.5, color
  # Labels stand on the area of regret too.
  assert _contrast(plot_style.MUTED, plot_style.LOST) >= 4.5
  themes = report_style.style_sheet()
  (muted,) = set(re.findall('--muted: (#......)', themes)) - {plot_style.MUTED}
  (lost,) = set(re.findall('--lost: (#......)', themes)) - {plot_style.LOST}
  assert _contrast(muted, lost) >= 4.5
  for color in plot_style.DARK:
    assert _contrast(color, style.PAGE_DARK) >= 4.5, color
  for shade in style.SHADES_LIGHT.values():
    assert _contrast(shade, style.INK_LIGHT) >= 4.5, shade
  for shade in style.SHADES_DARK.values():
    assert _contrast(shade, style.INK_DARK) >= 4.5, shade


def test_png(tmp_path):
  path = tmp_path / 'a.png'
  plots.save_png(plots.figure([_panel()] * 3, columns=2), path)
  assert path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
  again = tmp_path / 'b.png'
  plots.save_png(plots.figure([_panel()] * 3, columns=2), again)
  assert path.read_bytes() == again.read_bytes()


def test_svg_follows_the_theme_and_stays_in_the_page():
  panel = _panel(level=0.4, level_label='level')
  text = plots.to_svg(
    plots.figure([panel]), prefix='p', description='a "chart" <b>'
  )
  ElementTree.fromstring(text)
  assert 'aria-label="a &quot;chart&quot; &lt;b&gt;"' in text
  for name in ('--s0', '--s2', '--ink', '--muted', '--rule', '--font'):
    assert f'var({name})' in text
  assert 'http' not in text
  assert not [c for c in plot_style.LIGHT if c in text]
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert len(ids) == len(set(ids))
  assert all(i.startswith('p-') for i in ids)
  for used in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
    assert used in ids


def test_hostile_labels_and_dollars_are_text():
  line = plots.Line('<b>$x$\x00字', 1, [0, 1], [0, 1])
  panel = plots.Panel('A < B $\\frac$', 'x $', 'y', [line])
  text = plots.to_svg(plots.figure([panel]), prefix='p', description='d')
  ElementTree.fromstring(text)
  assert '&lt;b&gt;$x$?字' in text
  assert '<b>' not in text


def test_charts_of_little_data():
  for lines in (
    [],
    [plots.Line('a', 0, [], [])],
    [plots.Line('a', 0, [1.0], [0.5])],
    [plots.Line('a', 0, [0, 1], [0.5, 0.5])],
  ):
    panel = plots.Panel('t', 'x', 'y', lines)
    text = plots.to_svg(plots.figure([panel]), prefix='p', description='d')
    assert ('no data' in text) == (not lines or not len(lines[0].x))
  with pytest.raises(ValueError, match='no panel'):
    plots.figure([])


def test_running_mean():
  # Windows of 3, shorter at the edges: (1+4)/2, (1+4+1)/3, (4+1)/2.
  np.testing.assert_allclose(
    plot_labels.running_mean([1, 4, 1], 3), [2.5, 2, 2.5]
  )
  np.testing.assert_allclose(plot_labels.running_mean([1, 4, 1], 1), [1, 4, 1])


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0, '0'),
    (0.25, '0.25'),
    (-2, '−2'),
    (9000, '9000'),
    (20_000, '20k'),
    (1.5e6, '1.5M'),
    (3e9, '3B'),
  ],
)
def test_compact(value, text):
  assert plots.compact(value) == text


def test_spread():
  assert plot_labels.spread([0.1, 0.9], 0.2) == [0.1, 0.9]
  # 0.5 and 0.6 want 0.2 between them: centred on 0.55.
  np.testing.assert_allclose(plot_labels.spread([0.6, 0.5], 0.2), [0.65, 0.45])
  # The pushed pair touches 0.3 and takes it along: centred on 0.4666….
  np.testing.assert_allclose(
    plot_labels.spread([0.3, 0.5, 0.6], 0.2), np.array([0.8, 1.4, 2.0]) / 3
  )
  assert plot_labels.spread([], 0.2) == []
  crowd = plot_labels.spread([0.5] * 6, 0.1)
  np.testing.assert_allclose(np.diff(crowd), 0.1)
  assert np.mean(crowd) == pytest.approx(0.5)


def test_the_label_of_a_level_keeps_clear_of_the_curves():
  # A curve that crosses the level at the left leaves the right, below it.
  x = np.linspace(0, 100, 101)
  rising = plots.Line('a', 1, x, np.minimum(x / 30, 1.05))
  panel = plots.Panel('t', 'x', 'y', [rising], level=1.0, level_label='here')
  figure = plots.figure([panel])
  (label,) = [t for t in figure.axes[0].texts if t.get_text() == 'here']
  assert (label.get_ha(), label.get_va()) == ('right', 'top')
  # Those that stay away leave it where it is read first.
  flat = [plots.Line('a', i, x, np.full(101, float(i))) for i in (0, 1)]
  panel = plots.Panel('t', 'x', 'y', flat, level=0.5, level_label='here')
  (label,) = [
    t for t in plots.figure([panel]).axes[0].texts if t.get_text() == 'here'
  ]
  assert label.get_ha() == 'left'


def test_regret_is_the_area_up_to_the_comparator():
  x = [0.0, 10.0, 20.0]
  panel = plots.Panel(
    'Title',
    'tokens',
    'J',
    [
      plots.Line('a', 0, x, [0.25, 0.5, 1.5]),
      plots.Line('b', 2, x, [0.5, 0.5, 0.5]),
      plots.Line('rule', 2, [5.0], [0.4], marker='o', hollow=True),
    ],
    comparator=1.0,
    comparator_label='right at once',
  )
  drawing = plots.figure([panel])
  (axes,) = drawing.axes
  # One area a curve, none for the rule; never beyond the comparator.
  first, second = (area.get_paths()[0].vertices for area in axes.collections)
  corners = lambda area: {(float(a), float(b)) for a, b in area}
  assert corners(first) == {(0, 0.25), (10, 0.5), (20, 1), (10, 1), (0, 1)}
  assert corners(second) == {(a, b) for a in x for b in (0.5, 1)}
  # Both together are as dark as one alone: (1 - .85) is left of the page.
  alphas = [area.get_facecolor()[0, 3] for area in axes.collections]
  assert np.prod(1 - np.array(alphas)) == pytest.approx(0.15)
  text = plots.to_svg(drawing, prefix='x', description='d')
  assert text.count('fill: var(--lost)') == 2
  assert 'right at once' in text
  assert plot_style.LOST not in text


def test_lines_with_markers_stand_in_the_key():
  panel = _panel()
  marked = plots.Line('rule <1>', 2, [5.0], [0.4], marker='s', hollow=True)
  drawing = plots.figure([panel._replace(lines=[*panel.lines, marked])])
  (axes,) = drawing.axes
  entries = axes.get_legend().get_texts()
  assert [entry.get_text() for entry in entries] == ['rule <1>']
  (line,) = [line for line in axes.lines if line.get_marker() == 's']
  assert line.get_markerfacecolor() == 'none'
  # The others have their names at their ends, and there is no key for them.
  assert [t.get_text() for t in axes.texts] == ['base', 'MRT']
  (plain,) = plots.figure([panel]).axes
  assert plain.get_legend() is None


def _keyed(labels, **options):
  """The texts of the key of a chart, and the chart's height in inches."""
  lines = [
    plots.Line(label, 2, [0, 1], [0, i], marker=marker, hollow=hollow)
    for i, (label, marker, hollow) in enumerate(labels)
  ]
  drawing = plots.figure([plots.Panel('', 'x', 'y', lines, **options)])
  legend = drawing.axes[0].get_legend()
  texts = [text.get_text() for text in legend.get_texts()] if legend else []
  return texts, drawing.get_figheight()


def test_a_long_key_is_below_the_axes():
  labels = [(f'p = {i}', 'os^Dv'[i], False) for i in range(5)]
  assert _keyed(labels[:4]) == ([f'p = {i}' for i in range(4)], 3.0)
  texts, height = _keyed(labels)
  assert len(texts) == 5
  assert height == pytest.approx(3.0 + 3 * 0.17 + 0.1)  # three rows of two


def test_hollow_markers_are_explained_once():
  labels = [('a', 'o', False), ('a on', 'o', True), ('b on', 's', True)]
  assert _keyed(labels)[0] == ['a', 'a on', 'b on']
  texts, _ = _keyed(labels, hollow_label='hollow: on')
  assert texts == ['a', 'b on', 'hollow: on']
  assert _keyed(labels[:1], hollow_label='hollow: on')[0] == ['a']
  assert _keyed([('_hidden', 'o', False)])[0] == []
