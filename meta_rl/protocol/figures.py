"""The figures of one model's traces: regret, the curve, votes, waits."""

from collections.abc import Collection, Sequence

import numpy as np

from meta_rl import statistics, token_curves, votes
from meta_rl.eval_figures import interval
from meta_rl.protocol import curves
from meta_rl.protocol.grades import Trace

POINTS = 64  # of the curve, besides the horizons


def default_horizons(
  traces: Sequence[Trace], *, budget: float, wait_tokens: float
) -> list[float]:
  """Returns quarters of the budget, and what the waits that there are pay for.

  Args:
    traces: graded.
    budget, wait_tokens: of `curves.points_until`.
  """
  waits = {point.waits for trace in traces for point in trace.points} - {0}
  return [
    *(budget * i / 4 for i in range(1, 5)),
    *(budget + w * wait_tokens for w in sorted(waits)),
  ]


def evaluate_traces(
  traces: Sequence[Trace],
  *,
  name: str = '',
  horizons: Sequence[float] | None = None,
  budget: float = curves.BUDGET,
  wait_tokens: float = curves.WAIT_TOKENS,
  comparator: float | tuple[Sequence[float], Sequence[float]] = 1.0,
  sizes: Sequence[int] | None = None,
  compat: bool | Collection[str] = False,
  cell_runs: int = 1,
) -> dict:
  """Returns the figures of one model's traces.

  Args:
    traces: of `grade_rows`.
    name: of the model.
    horizons: tokens, rising; None: `default_horizons`.
    budget, wait_tokens, comparator, cell_runs: of `normalized_regret`.
    sizes: p of the votes; None: 1, 2, 4 ... up to the answers of a prefix.
    compat: faults to be had back; those of grading take effect in `grade_rows`.

  Returns:
    'name', 'compat' and 'departures' (lines: where the numbers of the official
    protocol are other ones); 'problems' (ids), 'num_traces', 'unboxed' (share
    of the answers without one), 'horizons'; 'regret_normalized' and
    'regret_step' (mean, low, high at each horizon), 'per_problem' (these
    regrets, F lists of P); 'budgets', 'accuracy_at_budget', 'accuracy_low' and
    'accuracy_high'; 'votes' as `votes.compare_votes`, and 'weighted'; 'waits'
    (a dict for each number of them).

  Raises:
    ValueError: no traces, or numbers out of their range.
  """
  if not traces:
    raise ValueError('There are no traces: give one or more.')
  faults = curves.faults_of(compat)
  drawn = [curves.curve_of(trace, compat=faults) for trace in traces]
  problems = [trace.problem for trace in traces]
  given = {'budget': budget, 'wait_tokens': wait_tokens}
  if horizons is None:
    horizons = default_horizons(traces, **given)
  found = {
    'name': name,
    'compat': sorted(faults),
    'departures': departures(traces, budget),
    'num_traces': len(traces),
    'unboxed': _unboxed(traces),
    'horizons': [float(h) for h in horizons],
  }
  for key, form in zip(
    ('regret_normalized', 'regret_step'), token_curves.FORMS
  ):
    values = curves.regrets(
      drawn,
      horizons,
      comparator=comparator,
      form=form,
      compat=faults,
      cell_runs=cell_runs,
      **given,
    )
    found['problems'], means = curves.by_problem(values, problems)
    found[key] = [interval(column) for column in means.T]
    found.setdefault('per_problem', {})[key] = means.T.tolist()
  step = max(horizons) / POINTS
  grid = sorted({*(step * i for i in range(1, POINTS + 1)), *horizons})
  _, means = curves.by_problem(
    curves.accuracy_at(drawn, grid, compat=faults, **given), problems
  )
  mean, low, high = statistics.bootstrap_curve(means)
  return found | {
    'budgets': grid,
    'accuracy_at_budget': mean.tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'votes': _votes(traces, sizes),
    'waits': _waits(drawn, problems),
  }


def departures(traces: Sequence[Trace], budget: float) -> list[str]:
  """Returns a line for each number that is not the official protocol's."""
  problems = [trace.problem for trace in traces]
  points = [point for trace in traces for point in trace.points]
  longest = max(int(point.answer_tokens.max()) for point in points)
  asked = [
    ('problems', {len(set(problems))}, curves.PROBLEMS),
    ('traces a problem', {problems.count(p) for p in problems}, curves.TRACES),
    ('answers a prefix', {len(p.right) for p in points}, curves.ANSWERS),
    ('tokens of thinking', {budget}, curves.BUDGET),
  ]
  lines = [
    f'{_span(got)} {what}, {official} in the official protocol'
    for what, got, official in asked
    if got != {official}
  ]
  if longest > curves.ANSWER_TOKENS:
    lines.append(
      f'answers of up to {longest} tokens, {curves.ANSWER_TOKENS} in the '
      'official protocol'
    )
  return lines


def _span(values: set) -> str:
  low, high = min(values), max(values)
  return f'{low:g}' if low == high else f'{low:g} to {high:g}'


def _unboxed(traces: Sequence[Trace]) -> float:
  cast = [v for t in traces for point in t.points for v in point.votes]
  return cast.count(None) / len(cast)


def _votes(traces, sizes) -> dict:
  """Returns [maj@p]_j at the prefixes; past its end a trace holds its last."""
  own = [[p for p in trace.points if not p.waits] for trace in traces]
  number = max(len(points) for points in own)
  held = [points + points[-1:] * (number - len(points)) for points in own]
  fewest = min(len(p.right) for points in own for p in points)
  sizes = votes.doubling(fewest) if sizes is None else sizes
  log_probs = np.concatenate([p.log_probs for points in own for p in points])
  weighted = bool(np.isfinite(log_probs).all())
  if not weighted and np.isfinite(log_probs).any():
    raise ValueError(
      'some answers have a log_prob and others have none: give one to all, for '
      'weighted votes, or to none.'
    )
  each = lambda fn: np.asarray([[fn(p) for p in points] for points in held])

  def elected(p):
    # Prefixes may have other numbers of answers: each on its own.
    def win(point):
      weights = [[votes.vote_weights(point.log_probs)]] if weighted else None
      return votes.maj_at_p([[point.votes]], 'right', p=p, weights=weights)[
        0, 0
      ]

    once = {id(q): win(q) for points in own for q in points}
    return each(lambda q: once[id(q)])

  problems = [trace.problem for trace in traces]
  found = votes.compare_votes(
    {p: elected(p) for p in sizes},
    each(lambda p: p.right.mean()),
    prefix_tokens=each(lambda p: float(p.tokens)),
    answer_tokens=each(lambda p: p.answer_tokens.mean()),
    clusters=np.unique(problems, return_inverse=True)[1],
  )
  return found | {'weighted': weighted}


def _waits(drawn, problems) -> list[dict]:
  """Returns accuracy and tokens after each number of waits, 0 the trace's own.

  Of the traces that have a point of so many.
  """
  numbers = sorted({int(w) for curve in drawn for w in curve.waits})
  found = []
  for number in numbers if len(numbers) > 1 else []:
    # Of no waits the last point is the whole trace.
    last = [
      (curve.accuracy[i[-1]], curve.tokens[i[-1]], problem)
      for curve, problem in zip(drawn, problems)
      if len(i := np.flatnonzero(curve.waits == number))
    ]
    accuracy, tokens, ids = zip(*last)
    _, means = curves.by_problem(np.asarray([accuracy, tokens]).T, ids)
    found.append(
      {
        'waits': number,
        'traces': len(last),
        'tokens': float(means[:, 1].mean()),
        'accuracy': interval(means[:, 0]),
      }
    )
  return found


def compare(found: dict, reference: dict) -> dict:
  """Returns how far a model's regret is from another's on shared problems.

  Args:
    found, reference: of `evaluate_traces`, at the same horizons.

  Returns:
    'to' (name), 'problems' shared, and 'regret_normalized' and 'regret_step',
    {mean, low, high} of the paired difference at each horizon; below 0 `found`
    is better. Without a shared problem both are [].
  """
  ids = [reference['problems'], found['problems']]
  shared = [each for each in ids[0] if each in ids[1]]
  result = {'to': reference['name'], 'problems': len(shared)}
  for key in ('regret_normalized', 'regret_step'):
    pairs = zip(found['per_problem'][key], reference['per_problem'][key])
    result[key] = [
      statistics.paired_bootstrap(
        [a[ids[1].index(each)] for each in shared],
        [b[ids[0].index(each)] for each in shared],
      )._asdict()
      for a, b in pairs
      if shared
    ]
  return result
