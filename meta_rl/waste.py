"""Where the tokens of thinking are wasted: on what, how many, how sure.

What happened is measured elsewhere (`held_out.measure`); here every episode is
put into the categories below. Pure numpy on the host.

    after_success  it began at or after the first success of its trace, the
                   first boundary with J above `eval_figures.SOLVED_ABOVE`, even
                   if J falls below that again
    repeated       its tokens are those of an earlier episode of its trace, one
                   by one. A repeat in other words is not seen, nor one that the
                   budget cut short: a lower bound
    no_progress    it moved J by less than `FLAT` up or down
    negative_progress  it lowered J by `FLAT` or more
    any            one or more of these

They overlap, but for the two of progress: an idle repeat after the success
stands in three. `any` and the split, which counts every episode once, under the
first of `CATEGORIES` that it is in, do not. Before the first success an attempt
that fails is how a search goes: no progress is a waste only in hindsight.

Axes: N traces, K episodes, T tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from meta_rl import eval_figures, statistics

CATEGORIES = ('after_success', 'repeated', 'negative_progress', 'no_progress')
# The report colours a change of J from here on.
FLAT = 0.02
# Thought on after success; stopped by itself without one; first success in the
# last third of the budget.
CLASSES = ('wasted', 'given up', 'solved late')
LATE = 2 / 3  # of the budget


def first_success(success: np.ndarray, count: np.ndarray) -> np.ndarray:
  """Returns the first boundary with J above `eval_figures.SOLVED_ABOVE`.

  Args:
    success: f32[N,K+1], J.
    count: i32[N], episodes of each trace.

  Returns:
    i64[N] in 0 ... count; -1 for a trace without a success.

  Raises:
    ValueError: shapes that do not fit.
  """
  success, count = np.asarray(success), np.asarray(count)
  if success.ndim != 2 or count.shape != success.shape[:1]:
    raise ValueError(
      f'success {success.shape} and count {count.shape} must be [N,K+1] and '
      '[N].'
    )
  real = np.arange(success.shape[1]) <= count[:, None]
  solved = real & (success > eval_figures.SOLVED_ABOVE)
  return np.where(solved.any(1), solved.argmax(1), -1)


def episode_categories(found: Mapping[str, np.ndarray]) -> dict:
  """Returns bool[N,K] of each of `CATEGORIES`; False past a trace's count.

  Args:
    found: tokens i32[N,T], success f32[N,K+1], ends i32[N,K+1] and count
      i32[N] of `held_out.measure`.

  Raises:
    ValueError: shapes that do not fit.
  """
  success = np.asarray(found['success'], np.float64)
  ends, count = np.asarray(found['ends']), np.asarray(found['count'])
  first = first_success(success, count)
  if ends.shape != success.shape:
    raise ValueError(
      f'ends {ends.shape} must be of the shape of success, {success.shape}.'
    )
  episode = np.arange(success.shape[1] - 1)
  real = episode < count[:, None]
  progress = np.diff(success, axis=1)
  solved = (first >= 0)[:, None] & (episode >= first[:, None])
  repeated = np.zeros(real.shape, bool)
  for i, tokens in enumerate(np.asarray(found['tokens'])):
    bounds = zip(ends[i, : count[i]], ends[i, 1:])
    texts = [tuple(tokens[a + 1 : b + 1].tolist()) for a, b in bounds]
    repeated[i, : count[i]] = repeats(texts)
  return {
    'after_success': real & solved,
    'repeated': real & repeated,
    'negative_progress': real & (progress <= -FLAT),
    'no_progress': real & (np.abs(progress) < FLAT),
  }


def repeats(episodes: Sequence) -> list[bool]:
  """Returns whether each episode is equal to an earlier one, and not empty.

  Args:
    episodes: of one trace, in order: token tuples or strings.
  """
  seen, found = set(), []
  for episode in episodes:
    found.append(bool(episode) and episode in seen)
    seen.add(episode)
  return found


def trace_classes(
  success: np.ndarray,
  ends: np.ndarray,
  count: np.ndarray,
  forced: np.ndarray,
  *,
  horizon: float,
) -> list[list[str]]:
  """Returns which of `CLASSES` each trace is in: none, one or several.

    wasted       it has a token after its first success
    given up     it stopped by itself, and J there is at most
                 `eval_figures.SOLVED_ABOVE`
    solved late  its first success came after more than `LATE` of the horizon

  A trace that succeeded, went on and lost its success again is both of the
  first two.

  Args:
    success: f32[N,K+1], J.
    ends: i32[N,K+1], last token of each episode.
    count: i32[N], episodes of each trace.
    forced: bool[N], thinking was ended by the budget.
    horizon: tokens of the budget, > 0.

  Raises:
    ValueError: shapes that do not fit, or a horizon of 0 or less.
  """
  if not horizon > 0:
    raise ValueError(f'horizon={horizon}: it must be above 0 tokens.')
  success, ends = np.asarray(success), np.asarray(ends)
  count, forced = np.asarray(count), np.asarray(forced, bool)
  first = first_success(success, count)
  if ends.shape != success.shape or forced.shape != count.shape:
    raise ValueError(
      f'ends {ends.shape} and forced {forced.shape} must be of the shapes of '
      f'success, {success.shape}, and count, {count.shape}.'
    )
  rows, solved = np.arange(len(count)), first >= 0
  spent = ends - ends[:, :1]
  at_first = spent[rows, np.maximum(first, 0)]
  last = success[rows, count]
  columns = (
    solved & (spent[rows, count] > at_first),
    ~forced & (last <= eval_figures.SOLVED_ABOVE),
    solved & (at_first > LATE * horizon),
  )
  return [
    [name for name, column in zip(CLASSES, columns) if column[i]] for i in rows
  ]


def chosen(
  classes: Sequence[Sequence[str]], *, limit: int = 48, first: int = 12
) -> list[int]:
  """Returns the traces to show: the first ones, then some of each class.

  Behind the first, which no class decides on and other policies have too, the
  classes and the traces in none take turns, each with its next trace: a class
  that occurs is there.

  Args:
    classes: of `trace_classes`, N entries.
    limit: traces at most, at least `first` and one for each class.
    first: how many of the first ones are taken as they come.

  Returns:
    Rows in ascending order, min(N, limit) of them.

  Raises:
    ValueError: a limit that is too small.
  """
  if limit < first + len(CLASSES):
    raise ValueError(
      f'limit={limit}: at least first + {len(CLASSES)} = '
      f'{first + len(CLASSES)} is needed, one trace for each class.'
    )
  rows = range(len(classes))
  taken = list(rows[:first])
  queues = [[i for i in rows[first:] if name in classes[i]] for name in CLASSES]
  queues.append([i for i in rows[first:] if not classes[i]])
  while any(queues) and len(taken) < limit:
    for queue in queues:
      while queue and queue[0] in taken:
        queue.pop(0)
      if queue and len(taken) < limit:
        taken.append(queue.pop(0))
  return sorted(taken)


def summary(
  found: Mapping[str, np.ndarray], *, horizon: float, clusters: np.ndarray
) -> dict:
  """Returns how many tokens of thinking went where, with their intervals.

    share of a category = Σ_i its tokens / Σ_i thinking tokens

  a ratio of sums, so that a long trace weighs as much as it costs. Intervals
  are 95% bootstraps over problems.

  Args:
    found: tokens, success, ends, count and forced of `held_out.measure`.
    horizon: tokens of the budget, > 0.
    clusters: i[N], problem of each trace.

  Returns:
    'solved_above', 'flat_below' and 'late_above', the limits used; 'tokens', of
    thinking a trace (mean, low, high); 'categories', by name: 'tokens' a trace
    and 'share' (mean, low, high each) and 'episodes', their mean number a
    trace; 'split', the share of each of `CATEGORIES` when an episode counts
    once, and that of the 'rest': they add up to 1; 'classes', by name: the
    share of traces in it (mean, low, high). A share of no thinking is None, and
    so are the ends of an interval that the problems do not settle.

  Raises:
    ValueError: shapes that do not fit, or a horizon of 0 or less.
  """
  columns = episode_categories(found)
  columns['any'] = np.any(list(columns.values()), axis=0)
  each = np.diff(np.asarray(found['ends'], np.int64), axis=1)
  tokens = each.sum(1, dtype=np.float64)  # past count the ends repeat
  spent = {name: (each * inside).sum(1) for name, inside in columns.items()}
  classes = trace_classes(
    *(found[name] for name in ('success', 'ends', 'count', 'forced')),
    horizon=horizon,
  )
  return {
    'solved_above': eval_figures.SOLVED_ABOVE,
    'flat_below': FLAT,
    'late_above': LATE,
    'tokens': eval_figures.interval(tokens, clusters),
    'categories': {
      name: {
        'tokens': eval_figures.interval(own, clusters),
        'share': _share(own, tokens, clusters),
        'episodes': float(columns[name].sum(1).mean()),
      }
      for name, own in spent.items()
    },
    'split': _split(columns, each, tokens.sum()),
    'classes': {
      name: eval_figures.interval(
        np.asarray([name in own for own in classes], np.float64), clusters
      )
      for name in CLASSES
    },
  }


def _share(own, tokens, clusters):
  """Returns Σ own / Σ tokens with its interval, None without a token."""
  if not tokens.sum():
    return None
  # The gain over nothing as a multiple of that of all tokens: a ratio of means.
  ratio = statistics.gain_ratio(
    own, np.zeros_like(tokens), tokens, clusters=clusters
  )
  return {k: v if np.isfinite(v) else None for k, v in ratio._asdict().items()}


def _split(columns, each, total):
  """Returns shares that add up to 1; each is None without a token."""
  left = np.ones(each.shape, bool)
  parts = {}
  for name in CATEGORIES:
    parts[name] = (each * (left & columns[name])).sum()
    left &= ~columns[name]
  parts['rest'] = (each * left).sum()
  return {
    name: float(part / total) if total else None for name, part in parts.items()
  }
