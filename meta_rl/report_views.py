"""Sample traces as the report shows them: what its cards and its viewer draw.

Everything that is decided about a trace is decided here: its classes, the
shade of each episode, the step chart. Texts are plain: who writes them into a
page escapes them.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from meta_rl import waste
from meta_rl.headline import fixed, mapping, number
from meta_rl.report_parts import readable
from meta_rl.runs import Run

MAX_EPISODES = 40
MAX_CHARACTERS = 600
MAX_LABEL = 60

# Lower edges of the shades of a gain; a loss mirrors them.
EDGES = (waste.FLAT, 0.1, 0.3, 0.6)
WIDTH, HEIGHT = 300, 46  # of the step chart


class Row(NamedTuple):
  """One episode.

  Attributes:
    shade: class of its progress.
    text: at most MAX_CHARACTERS of it.
    left_out: how many characters more there are.
    progress: as text.
    success: J after it, as text.
    notes: 'after success', 'repeat', where they hold.
  """

  shade: str
  text: str
  left_out: int
  progress: str
  success: str
  notes: list[str]


class Chart(NamedTuple):
  """J over tokens as a step line, WIDTH wide, from 2 (J = 1) to 2 + HEIGHT.

  Attributes:
    points: of the line, 'x,y x,y …'.
    stop: x of the trace's own stop.
    marks: x of each stop of a rule.
    label: what it shows, in words.
  """

  points: str
  stop: str
  marks: list[str]
  label: str


class View(NamedTuple):
  """One trace.

  Attributes:
    prompt: of its problem.
    classes: those of `waste.CLASSES` that it is in.
    stopped: by whom, after how many tokens.
    start: J before the first episode, as text.
    rows: of its first MAX_EPISODES episodes.
    left_out: how many episodes more there are.
    stops: (boundary, text) of where rules would stop it, ascending.
    chart: None where its values do not draw one.
    answer: at most MAX_CHARACTERS of it; None where there is nothing to say.
    verdict: on the answer.
  """

  prompt: str
  classes: list[str]
  stopped: str
  start: str
  rows: list[Row]
  left_out: int
  stops: list[tuple[int, str]]
  chart: Chart | None
  answer: str | None
  verdict: str


def shade(progress: float) -> str:
  """Returns the class of a progress: n4 … n1 a loss, z none, p1 … p4 a gain."""
  if not math.isfinite(progress):
    return 'z'
  level = sum(abs(progress) >= edge for edge in EDGES)
  if not level:
    return 'z'
  return ('p' if progress > 0 else 'n') + str(level)


def traces_of(run: Run) -> list[dict[str, Any]]:
  """Returns the traces of an evaluation that hold episodes."""
  traces = run.eval.get('traces')
  listed = [mapping(t) for t in traces] if isinstance(traces, list) else []
  return [trace for trace in listed if isinstance(trace.get('episodes'), list)]


def horizon_of(run: Run, trace: Mapping[str, Any]) -> float:
  """Returns the thinking budget, and never less than the trace's tokens."""
  stated = number(run.eval.get('horizon'))
  spent = [number(mapping(e).get('tokens')) for e in trace['episodes']]
  tokens = sum(t for t in spent if math.isfinite(t))
  return max(stated if math.isfinite(stated) else 0, tokens, 1)


def view(trace: Mapping[str, Any], *, horizon: float) -> View:
  """Returns one trace of an eval.json as it is shown.

  Args:
    trace: an entry of `traces_of`.
    horizon: of `horizon_of`; the largest of those that stand side by side.
  """
  start = number(trace.get('success_start'))
  episodes, before = [], start
  for episode in map(mapping, trace['episodes']):
    after, progress = (number(episode.get(k)) for k in ('success', 'progress'))
    if math.isnan(progress):
      progress = after - before
    text = str(episode.get('text', ''))
    episodes.append((text, progress, after, number(episode.get('tokens'))))
    before = after
  levels = np.array([start, *(after for _, _, after, _ in episodes)])
  tokens = np.array([tokens for *_, tokens in episodes], np.float64)
  spent = np.concatenate([[0.0], np.cumsum(np.nan_to_num(tokens))])
  forced = {'policy': False, 'budget': True}.get(str(trace.get('stopped')))
  rows = _rows(episodes, levels)
  stops = _stops(trace, len(episodes))
  chart = None
  if (tokens >= 0).all() and ((levels >= 0) & (levels <= 1)).all():
    chart = _chart(levels, spent, stops, horizon)
  answer, verdict = _answer(trace)
  return View(
    prompt=readable(str(trace.get('prompt', ''))),
    classes=_classes(trace, levels, spent, forced, horizon),
    stopped={False: 'stopped by itself, ', True: 'stopped by the budget, '}.get(
      forced, ''
    )
    + f'{spent[-1]:.0f} tokens',
    start=fixed(start, 2),
    rows=rows[:MAX_EPISODES],
    left_out=max(0, len(rows) - MAX_EPISODES),
    stops=[(at, f'{" · ".join(names)} stops here') for at, names in stops],
    chart=chart,
    answer=answer,
    verdict=verdict,
  )


def _rows(episodes, levels):
  first = waste.first_success(levels[None], np.array([len(episodes)]))[0]
  repeated = waste.repeats([text for text, *_ in episodes])
  rows = []
  for j, (text, progress, after, _) in enumerate(episodes):
    sign = '+' if progress > 0 and float(f'{progress:.2f}') else ''
    notes = ['after success'] if 0 <= first <= j else []
    notes += ['repeat'] if repeated[j] else []
    rows.append(
      Row(
        shade=shade(progress),
        text=readable(text[:MAX_CHARACTERS]),
        left_out=max(0, len(text) - MAX_CHARACTERS),
        progress=sign + fixed(progress, 2),
        success=fixed(after, 2),
        notes=notes,
      )
    )
  return rows


def _classes(trace, levels, spent, forced, horizon):
  """Returns the classes that the evaluation states, else those that follow."""
  stated = trace.get('classes')
  if isinstance(stated, list):
    return [name for name in waste.CLASSES if name in stated]
  if not np.isfinite(levels).all():
    return []
  # Who does not say what ended the trace is not said to have given up.
  (found,) = waste.trace_classes(
    levels[None],
    spent[None],
    np.array([len(spent) - 1]),
    np.array([forced is not False]),
    horizon=horizon,
  )
  return found


def _stops(trace, count):
  """Returns [(boundary, names of the rules that stop there), …]."""
  found = {}
  for name, at in mapping(trace.get('stops')).items():
    at = number(at)
    if at in range(count + 1):
      label = readable(str(name)[:MAX_LABEL])
      found.setdefault(int(at), []).append(label)
  return sorted(found.items())


def _chart(levels, spent, stops, horizon):
  at = [WIDTH * token / horizon for token in spent]
  heights = [2 + HEIGHT * (1 - level) for level in levels]
  path = [f'{at[0]:.1f},{heights[0]:.1f}']
  for x, last, y in zip(at[1:], heights, heights[1:]):
    path += [f'{x:.1f},{last:.1f}', f'{x:.1f},{y:.1f}']
  path.append(f'{WIDTH},{heights[-1]:.1f}')
  moves = 'falls' if levels[-1] < levels[0] else 'rises'
  return Chart(
    points=' '.join(path),
    stop=f'{at[-1]:.1f}',
    marks=[f'{at[boundary]:.1f}' for boundary, _ in stops],
    label=f'J {moves} from {fixed(levels[0], 2)} to {fixed(levels[-1], 2)} over'
    f' {spent[-1]:.0f} of {horizon:.0f} tokens',
  )


def _answer(trace):
  reward, answer = number(trace.get('reward')), trace.get('answer')
  if answer is None and math.isnan(reward):
    return None, ''
  verdict = '' if math.isnan(reward) else f'reward {reward:g}'
  if reward in (0.0, 1.0):
    verdict = '✓ right' if reward else '✗ wrong'
  text = 'none' if answer is None else str(answer)
  more = len(text) - MAX_CHARACTERS
  if more > 0:
    text = f'{text[:MAX_CHARACTERS]}… ({more} more characters)'
  return readable(text), verdict
