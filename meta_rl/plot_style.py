"""Colours, dashes and sizes of all charts."""

# Index 0 is the base policy, 1 outcome reward, 2 MRT; the rest in order.
LIGHT = ('#5c6672', '#b34a00', '#0a5fc2', '#8a3aa0', '#00735a', '#a8174f')
DARK = ('#aab4c0', '#ff9f5a', '#6cb4ff', '#d9a0ec', '#4fd3ac', '#ff8fb0')
INK, MUTED, RULE = '#17202b', '#5a6573', '#dde2e9'
LOST = '#f6e2d2'  # regret, as an area
DASHES = ((4, 2), (5, 1.5, 1, 1.5), None, (1, 1), (7, 1.5), (3, 1, 1, 1, 1, 1))
PANEL, SMALL_PANEL = (4.6, 3.0), (3.6, 2.6)  # inches

RC = {
  'font.family': ['sans-serif'],
  'font.size': 9.5,
  'axes.edgecolor': RULE,
  'axes.labelcolor': MUTED,
  'axes.labelsize': 9.0,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlecolor': INK,
  'axes.titlelocation': 'left',
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.titlepad': 10.0,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'grid.color': RULE,
  'grid.linewidth': 0.7,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.major.size': 3.0,
  'ytick.major.size': 0.0,
  'lines.solid_capstyle': 'round',
  # A name is text, whatever dollars it holds.
  'text.parse_math': False,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'meta_rl',
}
