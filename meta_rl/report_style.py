"""The style sheet of the report: light and dark, paper and phone."""

from meta_rl.plot_style import DARK, LIGHT, LOST

# Progress from a loss (n4) over nothing (z) to a gain (p4), orange to blue.
# Every shade keeps at least 4.5:1 under the text that stands on it.
SHADES_LIGHT = {
  'n4': '#ee9a4d', 'n3': '#f6ba81', 'n2': '#fad6b3', 'n1': '#fdecdb',
  'z': '#eef0f3',
  'p1': '#e2eefc', 'p2': '#bfdcf9', 'p3': '#92c1f3', 'p4': '#66a5ea',
}  # fmt: skip
SHADES_DARK = {
  'n4': '#a3560f', 'n3': '#7d4413', 'n2': '#593516', 'n1': '#3c2a1b',
  'z': '#252c35',
  'p1': '#1b2f47', 'p2': '#1d4068', 'p3': '#1f558f', 'p4': '#236cb8',
}  # fmt: skip
INK_LIGHT, INK_DARK = '#17202b', '#eef2f6'
PAGE_LIGHT, PAGE_DARK = '#ffffff', '#11161d'

_THEMES = {
  'light': {
    'page': PAGE_LIGHT, 'card': '#f7f8fa', 'ink': INK_LIGHT,
    'muted': '#5a6573', 'rule': '#dde2e9', 'lost': LOST,
  },
  'dark': {
    'page': PAGE_DARK, 'card': '#19202a', 'ink': INK_DARK,
    'muted': '#a3afbd', 'rule': '#313b47', 'lost': '#4a3423',
  },
}  # fmt: skip

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 var(--font);
}
main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header.top { padding: 56px 0 8px; }
.kicker {
  margin: 0 0 6px; color: var(--muted); font-size: 13px; font-weight: 600;
  letter-spacing: .08em; text-transform: uppercase;
}
h1 {
  margin: 0 0 16px; font-size: clamp(28px, 4.6vw, 44px); line-height: 1.12;
  letter-spacing: -.02em; text-wrap: balance;
}
h2 { margin: 56px 0 6px; font-size: 23px; letter-spacing: -.01em; }
h3 { margin: 28px 0 10px; font-size: 16px; }
.lead { max-width: 76ch; margin: 0; font-size: 18px; text-wrap: pretty; }
.note { max-width: 82ch; margin: 6px 0 14px; color: var(--muted); }
.small { font-size: 14px; }
a { color: var(--s2); text-underline-offset: .15em; }
code, pre, .mono { font-family: var(--mono); }
.mono, .name, .rule { unicode-bidi: isolate; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr));
  gap: 14px; margin: 28px 0 0; padding: 0;
}
.tile {
  padding: 18px 20px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px;
}
.tile dt { color: var(--muted); font-size: 14px; }
.tile dd { margin: 0; }
.tile .figure {
  font-size: 34px; font-weight: 700; line-height: 1.25;
  letter-spacing: -.02em; color: var(--tone, var(--ink));
}
.tile .detail { color: var(--muted); font-size: 14px; }
table { width: 100%; border-collapse: collapse; margin: 10px 0; }
th, td {
  padding: 10px 14px 10px 0; border-bottom: 1px solid var(--rule);
  text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums;
}
th:first-child, td:first-child { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
thead th {
  color: var(--muted); font-size: 13px; font-weight: 600; line-height: 1.3;
  vertical-align: bottom;
}
tbody th { font-weight: 650; overflow-wrap: anywhere; }
.policy { display: flex; align-items: baseline; gap: 9px; min-width: 6.8em; }
:is(td, th) .detail {
  display: block; color: var(--muted); font-size: 13px; font-weight: 400;
}
td .detail { white-space: nowrap; }
td .figure { white-space: nowrap; }
.words :is(th, td) { text-align: left; }
.words tbody th { font-weight: 400; }
.words td .figure { white-space: normal; }
.key {
  flex: none; width: 26px; height: 8px; margin-top: .55em; align-self: start;
}
.charts {
  display: grid; gap: 26px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
}
.charts.three {
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr));
}
figure { margin: 0; min-width: 0; break-inside: avoid; }
.charts > figure:only-child { max-width: 620px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { margin-top: 6px; color: var(--muted); font-size: 14px; }
.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px;
  margin: 0 0 18px; color: var(--muted); font-size: 14px;
}
.scale { display: flex; flex: 0 1 38em; }
.scale span {
  flex: 1 1 0; padding: 3px 0; text-align: center; color: var(--ink);
  font: 12px/1.5 var(--mono);
}
.prompt { margin: 26px 0 10px; font-size: 16px; overflow-wrap: anywhere; }
.prompt .mono { font-weight: 650; }
.traces {
  display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr));
}
.trace {
  min-width: 0; padding: 14px 16px; background: var(--card);
  border: 1px solid var(--rule); border-top: 3px solid var(--tone);
  border-radius: 4px 4px 12px 12px;
}
.trace h5 {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px;
  margin: 0 0 8px; font-size: 15px;
}
.trace h5 .name { color: var(--tone); overflow-wrap: anywhere; }
.trace h5 .stop { color: var(--muted); font-weight: 400; font-size: 13px; }
.steps { display: block; width: 100%; height: 52px; margin: 0 0 10px; }
.episodes { margin: 0; padding: 0; list-style: none; }
.episodes li {
  display: flex; justify-content: space-between; gap: 10px;
  margin: 3px 0; padding: 4px 9px; border-radius: 6px; font-size: 14px;
  break-inside: avoid;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.episodes .text {
  min-width: 0; font-family: var(--mono); font-size: 13px; line-height: 1.6;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
}
.episodes .values { flex: none; font: 12px/1.75 var(--mono); }
.episodes .values b { font-weight: 700; }
.episodes li.plain { padding-block: 0; color: var(--muted); }
.episodes .rule {
  display: block; margin: 5px 0; padding: 0 9px; border-radius: 0;
  border-left: 3px solid var(--ink); font-size: 13px; font-weight: 600;
  overflow-wrap: anywhere;
}
.badge {
  display: inline-block; padding: 0 7px; border: 1px solid currentColor;
  border-radius: 9px; font: 500 12px/1.5 var(--font); white-space: nowrap;
}
.answer {
  margin: 10px 0 0; padding-top: 9px; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; font-size: 14px;
}
.answer .mono {
  margin: 0 6px; padding: 2px 7px; background: var(--page); font-size: 13px;
  border: 1px solid var(--rule); border-radius: 6px; unicode-bidi: isolate;
}
.viewer {
  padding: 14px 16px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px;
}
.viewer[hidden] { display: none; }
.buttons { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 10px; }
.buttons button {
  min-height: 40px; max-width: 100%; padding: 0 14px; overflow: hidden;
  border: 1px solid var(--rule); border-radius: 20px; background: var(--page);
  color: var(--ink); font: 500 14px/1.2 var(--font); text-overflow: ellipsis;
  cursor: pointer;
}
.buttons [aria-pressed='true'] {
  border-color: var(--ink); background: var(--ink); color: var(--page);
}
.buttons .number, .position { font-variant-numeric: tabular-nums; }
.buttons .number { display: inline-block; min-width: 3ch; text-align: right; }
.turn { align-items: center; justify-content: space-between; }
.position { color: var(--muted); font-size: 14px; }
/* Of one height, so that nothing below moves when the trace changes. */
.shown {
  height: 500px; padding: 4px 10px; overflow-y: auto; background: var(--page);
  border: 1px solid var(--rule); border-radius: 8px;
  overscroll-behavior: contain;
}
.shown h3 {
  display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 12px;
  margin: 8px 0 4px; color: var(--tone);
}
.shown h3 .name { overflow-wrap: anywhere; }
.shown h3 :not(.name) {
  color: var(--muted); font-weight: 400; font-size: 13px;
}
.shown .problem { margin: 0 0 8px; overflow-wrap: anywhere; }
.shown .steps { height: 84px; }
.chips {
  display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; padding: 0;
  color: var(--muted); font-size: 14px; list-style: none;
}
.chip {
  display: inline-block; width: 14px; height: 14px; margin-right: 7px;
  border-radius: 3px; vertical-align: -2px;
}
.bar { display: flex; align-items: center; gap: 12px; margin: 8px 0; }
.bar .name {
  flex: none; width: 7em; color: var(--tone); font-weight: 650;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.bar .parts {
  display: flex; flex: 1; gap: 2px; min-width: 0; border-radius: 6px;
  overflow: hidden;
}
.bar .parts span {
  flex: 0 1 0; height: 30px; min-width: 0; overflow: hidden;
  text-align: center; font: 13px/30px var(--font);
  font-variant-numeric: tabular-nums;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.notes { margin: 8px 0; padding-left: 20px; color: var(--muted); }
details { margin: 10px 0; border: 1px solid var(--rule); border-radius: 10px; }
summary { padding: 10px 16px; cursor: pointer; font-weight: 600; }
details > :not(summary) { margin-inline: 16px; }
pre {
  margin: 0 0 14px; padding: 12px 14px; overflow-x: auto;
  background: var(--card); border-radius: 8px; font-size: 13px;
}
footer { padding-block: 40px 60px; color: var(--muted); font-size: 14px; }
:focus-visible { outline: 2px solid var(--s2); outline-offset: 2px; }
@media screen and (max-width: 760px) {
  main, footer { padding-inline: 16px; }
  header.top { padding-top: 32px; }
  .lead { font-size: 17px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 12px 14px; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tile .figure { font-size: 22px; white-space: nowrap; }
  .viewer { padding: 10px; }
  .shown { height: 70svh; min-height: 380px; }
  .bar { display: block; }
  .bar .name { width: auto; }
}
@media screen and (max-width: 940px) {
  table, tbody, tr, tbody th, td { display: block; width: 100%; }
  thead {
    position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%);
  }
  tbody tr { margin: 0 0 14px; padding: 0 0 4px; }
  tbody th { padding: 8px 0; border-bottom: 2px solid var(--ink); }
  td {
    display: flex; justify-content: space-between; gap: 16px; padding: 6px 0;
  }
  td::before {
    content: attr(data-label); color: var(--muted); text-align: left;
  }
  td > span { text-align: right; }
}
@media print {
  .viewer { display: none; }
  body { font-size: 9.5pt; }
  .lead { font-size: 11pt; }
  h2 { margin-top: 26pt; font-size: 15pt; }
  .tiles, .charts.three, .traces { grid-template-columns: repeat(3, 1fr); }
  .tile .figure { font-size: 17pt; }
  .charts { grid-template-columns: 1fr 1fr; gap: 10pt; }
  .traces { gap: 8pt; }
  .trace { padding: 8pt; }
  th, td { padding-right: 8pt; }
  thead th, td .detail, .small { font-size: 8pt; }
  .episodes li { padding: 2pt 5pt; }
  .episodes .text, .episodes .values { font-size: 7.5pt; }
  main, footer { max-width: none; padding: 0; }
  header.top { padding-top: 0; }
  h2, h3, .prompt { break-after: avoid; }
  .tile, .trace, tr { break-inside: avoid; }
}
"""


def style_sheet() -> str:
  """Returns the report's CSS; dark colours apply to screens that ask."""
  light = _variables(LIGHT, SHADES_LIGHT, _THEMES['light'])
  dark = _variables(DARK, SHADES_DARK, _THEMES['dark'])
  fonts = (
    "--font: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue',"
    ' Arial, sans-serif;'
    " --mono: ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas,"
    " 'DejaVu Sans Mono', monospace;"
  )
  shades = ''.join(
    f'.{name} {{ background: var(--{name}); }}\n' for name in SHADES_LIGHT
  )
  tones = ''.join(
    f'.t{i} {{ --tone: var(--s{i}); }}\n' for i in range(len(LIGHT))
  )
  return (
    f':root {{ color-scheme: light dark; {light} {fonts} }}\n'
    f'@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}'
    f'{_RULES}{shades}{tones}'
  )


def _variables(palette, shades, theme):
  values = {f's{i}': color for i, color in enumerate(palette)}
  values |= shades | theme
  return ' '.join(f'--{name}: {color};' for name, color in values.items())
