"""Sample traces of the report: episodes coloured by the progress they made."""

import math
from collections.abc import Sequence

from meta_rl.headline import fixed, mapping, number
from meta_rl.report_page import escape
from meta_rl.runs import Run

MAX_PROMPTS = 6
MAX_POLICIES = 3
MAX_EPISODES = 40
MAX_CHARACTERS = 600

# Lower edges of the shades of a gain; a loss mirrors them.
EDGES = (0.02, 0.1, 0.3, 0.6)


def shade(progress: float) -> str:
  """Returns the class of a progress: n4 … n1 a loss, z none, p1 … p4 a gain."""
  if not math.isfinite(progress):
    return 'z'
  level = sum(abs(progress) >= edge for edge in EDGES)
  if not level:
    return 'z'
  return ('p' if progress > 0 else 'n') + str(level)


def traces_section(runs: Sequence[Run]) -> str:
  """Returns the section of sample traces, policies side by side on a prompt.

  Prompts that most policies share come first. A policy's k-th trace of a prompt
  stands beside the others' k-th.

  Args:
    runs: evaluated runs.

  Returns:
    HTML.
  """
  title = '<section>\n<h2>Sample traces</h2>\n'
  groups = _groups(runs)
  if not groups:
    return (
      f'{title}<p class="note">No evaluation holds traces.</p>\n</section>\n'
    )
  parts = [
    title,
    '<p class="note">Each strip is one episode, coloured by its progress: how'
    ' much it changed J, the chance that answering right after it is right. The'
    ' small chart draws J over thinking tokens; the filled area above it is the'
    " trace's regret.</p>\n",
    _legend(),
  ]
  for prompt, traces in groups:
    horizon = max(_horizon(run, trace) for run, trace in traces)
    cards = ''.join(_card(run, trace, horizon) for run, trace in traces)
    parts.append(
      f'<h3 class="prompt">Problem <span class="mono">{escape(prompt)}</span>'
      f'</h3>\n<div class="traces">{cards}</div>\n'
    )
  return ''.join(parts) + '</section>\n'


def _groups(runs):
  """Returns [(prompt, [(run, trace), …]), …], at most MAX_PROMPTS."""
  groups = {}
  for run in _chosen(runs):
    seen = {}
    traces = run.eval.get('traces')
    for trace in traces if isinstance(traces, list) else ():
      trace = mapping(trace)
      prompt = str(trace.get('prompt', ''))
      if not isinstance(trace.get('episodes'), list):
        continue
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


def _episodes(trace):
  """Returns (start J, [(text, progress, J after, tokens), …])."""
  before = start = number(trace.get('success_start'))
  listed = []
  for episode in trace['episodes']:
    episode = mapping(episode)
    after = number(episode.get('success'))
    progress = number(episode.get('progress'))
    if math.isnan(progress):
      progress = after - before
    tokens = number(episode.get('tokens'))
    listed.append((str(episode.get('text', '')), progress, after, tokens))
    before = after
  return start, listed


def _horizon(run, trace):
  stated = number(run.eval.get('horizon'))
  tokens = sum(t for *_, t in _episodes(trace)[1] if math.isfinite(t))
  return max(stated if math.isfinite(stated) else 0, tokens, 1)


def _card(run, trace, horizon):
  start, episodes = _episodes(trace)
  tokens = sum(t for *_, t in episodes if math.isfinite(t))
  stopped = {
    'policy': f'stopped by itself, {tokens:.0f} tokens',
    'budget': f'stopped by the budget, {tokens:.0f} tokens',
  }.get(str(trace.get('stopped')), f'{tokens:.0f} tokens')
  rows = [
    f'<li class="plain"><span>no thinking yet</span>{_values(start)}</li>'
  ]
  for text, progress, after, _ in episodes[:MAX_EPISODES]:
    rows.append(
      f'<li class="{shade(progress)}"><span class="text">{_cut(text)}</span>'
      f'{_values(after, progress)}</li>'
    )
  if len(episodes) > MAX_EPISODES:
    more = len(episodes) - MAX_EPISODES
    rows.append(
      f'<li class="plain"><span>… and {more} more episodes</span></li>'
    )
  return (
    f'<article class="trace t{run.color}">\n<h4><span class="name">'
    f'{escape(run.name)}</span><span class="stop">{stopped}</span></h4>\n'
    + _steps(run, start, episodes, horizon)
    + '<ol class="episodes">\n'
    + '\n'.join(rows)
    + f'\n</ol>\n{_answer(trace)}</article>\n'
  )


def _values(success, progress=None):
  shown = ''
  if progress is not None:
    sign = '+' if progress > 0 and float(f'{progress:.2f}') else ''
    shown = f'<b>{sign}{fixed(progress, 2)}</b> '
  return f'<span class="values">{shown}J {fixed(success, 2)}</span>'


def _answer(trace):
  reward = number(trace.get('reward'))
  answer = trace.get('answer')
  if answer is None and math.isnan(reward):
    return ''
  verdict = '' if math.isnan(reward) else f'reward {reward:g}'
  if reward in (0.0, 1.0):
    verdict = '✓ right' if reward else '✗ wrong'
  shown = 'none' if answer is None else _cut(str(answer))
  return (
    f'<p class="answer">Answer <span class="mono">{shown}</span>'
    f' <strong>{verdict}</strong></p>\n'
  )


def _steps(run, start, episodes, horizon):
  """Returns J over tokens as a small step chart, the regret filled."""
  points, at = [(0.0, start)], 0.0
  for _, _, after, tokens in episodes:
    if not math.isfinite(tokens):
      return ''
    at += tokens
    points.append((at, after))
  if not all(0 <= value <= 1 for _, value in points):
    return ''
  path, last = [], None
  for token, value in points:
    x, y = 300 * token / horizon, 2 + 46 * (1 - value)
    if last is not None:
      path.append(f'{x:.1f},{last:.1f}')
    path.append(f'{x:.1f},{y:.1f}')
    last = y
  path.append(f'300,{last:.1f}')
  text = f'J rises from {fixed(start, 2)} to {fixed(points[-1][1], 2)}'
  if points[-1][1] < start:
    text = text.replace('rises', 'falls')
  stop = 300 * at / horizon
  return (
    '<svg class="steps" viewBox="0 0 300 52" preserveAspectRatio="none"'
    f' role="img" aria-label="{text} over {at:.0f} of {horizon:.0f} tokens">'
    f'<polygon fill="var(--lost)" points="0,2 {" ".join(path)} 300,2"/>'
    f'<line x1="{stop:.1f}" x2="{stop:.1f}" y1="2" y2="48"'
    ' stroke="var(--muted)" stroke-dasharray="2 3"'
    ' vector-effect="non-scaling-stroke"/>'
    f'<polyline fill="none" stroke="var(--s{run.color})" stroke-width="2"'
    f' vector-effect="non-scaling-stroke" points="{" ".join(path)}"/>'
    '<line x1="0" x2="300" y1="48" y2="48" stroke="var(--rule)"'
    ' vector-effect="non-scaling-stroke"/></svg>\n'
  )


def _cut(text):
  if len(text) <= MAX_CHARACTERS:
    return escape(text)
  more = len(text) - MAX_CHARACTERS
  return f'{escape(text[:MAX_CHARACTERS])}… <em>({more} more characters)</em>'
