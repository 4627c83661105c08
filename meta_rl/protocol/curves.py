"""Curves and regret by the official notebooks' protocol, faults included.

A trace's curve is pass@1 of the forced answers against tokens, a point a
prefix; its budget-forced points follow. The normalized regret at a horizon is
one minus the mean height of that curve from 0 to there (comparator 1).

The public notebooks (github.com/CMU-AIRe/MRT, analysis/) hold faults. They are
put right here, and each can be had back under its name: `compat=True` for all
of them, `compat=('origin',)` for one.

Not had back, for it is no matter of these files: the script that forces the
answers names the problems of another data set than that of the thoughts; the
notebook of budget forcing leaves the answers' tokens out of its axis; that of
appendix E counts 5 episodes a point where 10 were merged.

Pure numpy on the host. Axes: T traces, P problems, F horizons, N points.

Source: MRT, section 8 and appendix (arXiv 2503.07572), and these notebooks.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from meta_rl import checks, statistics, token_curves
from meta_rl.protocol.grades import Trace

# What the official evaluation draws (DeepScaleR-1.5B on AIME25).
PROBLEMS, TRACES, ANSWERS = 15, 16, 8
BUDGET, ANSWER_TOKENS = 16384, 4096
WAIT_TOKENS, WAITS = 2048, 8

FAULTS = {
  'sixteenths': 'an answer counts a sixteenth of the tokens of all answers of '
  'its prefix, of which there are 8',
  'thought_boxes': 'a box in the thought or the problem counts as an answer',
  'brace_pattern': 'braces two deep cut a box short, and an open last box '
  'leaves the word to the one before',
  'origin': 'the curve begins at (0, 0), although the accuracy without a '
  'thought is measured',
  'backwards': 'tokens that run backwards along a trace are taken as they come',
  'overrun': 'beyond the budget, points past the horizon are integrated too',
  'rerun': 'points of budget forcing are added again each time that the cell '
  'runs (cell_runs)',
}


@dataclasses.dataclass(frozen=True)
class Curve:
  """Accuracy against tokens along one trace.

  Attributes:
    problem: its id.
    tokens: f64[N], of the prefix and one answer.
    accuracy: f64[N], share of the answers that are right.
    waits: i64[N], 0 at the prefixes of the trace, which come first.
  """

  problem: str
  tokens: np.ndarray
  accuracy: np.ndarray
  waits: np.ndarray


def faults_of(compat: bool | Collection[str]) -> frozenset[str]:
  """Returns the names of the faults to be had back.

  Args:
    compat: True: all; False: none; or some names of FAULTS.

  Raises:
    ValueError: a name that is none of them.
  """
  if isinstance(compat, bool):
    return frozenset(FAULTS if compat else ())
  names = [compat] if isinstance(compat, str) else list(compat)
  for name in names:
    checks.check_choice('compat', name, FAULTS)
  return frozenset(names)


def curve_of(trace: Trace, *, compat: bool | Collection[str] = False) -> Curve:
  """Returns the curve of a trace: tokens of a point are

    tokens before the answer + mean tokens of its answers

  Args:
    trace: graded.
    compat: 'sixteenths' counts: a sixteenth of their sum where there are no
      waits.
  """
  sixteenths = 'sixteenths' in faults_of(compat)
  cost = lambda point: (
    point.answer_tokens.sum()
    / (16 if sixteenths and not point.waits else len(point.answer_tokens))
  )
  return Curve(
    trace.problem,
    np.asarray([point.tokens + cost(point) for point in trace.points]),
    np.asarray([point.right.mean() for point in trace.points]),
    np.asarray([point.waits for point in trace.points]),
  )


def points_until(
  curve: Curve,
  horizon: float,
  *,
  budget: float = BUDGET,
  wait_tokens: float = WAIT_TOKENS,
  compat: bool | Collection[str] = False,
  cell_runs: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the curve (tokens, accuracy) that a horizon is judged by.

  Up to the budget these are the trace's own prefixes; beyond it the points
  join whose waits the horizon pays for:

    waits <= (horizon - budget) / wait_tokens

  In front stands what the empty prefix gives, at 0 tokens; tokens are lifted to
  the largest before them.

  Args:
    curve: of a trace.
    horizon: tokens, > 0.
    budget: tokens that a trace may think of its own.
    wait_tokens: tokens that each wait adds at most.
    compat: 'origin', 'backwards' and 'rerun' count.
    cell_runs: how often the notebook's cell ran, under 'rerun': what earlier
      runs had added is there already.
  """
  faults = faults_of(compat)
  checks.check_count('cell_runs', cell_runs)
  own, forced = curve.waits == 0, curve.waits > 0
  paid = max(0.0, (horizon - budget) / wait_tokens)
  chosen = [own, forced & (curve.waits <= paid)]
  if 'rerun' in faults:
    chosen[1:1] = [forced] * (cell_runs - 1)
  index = np.concatenate([np.flatnonzero(each) for each in chosen])
  x, y = curve.tokens[index], curve.accuracy[index]
  if 'backwards' not in faults:
    x = statistics.monotone(x)
  return token_curves.with_origin(x, y, 0.0 if 'origin' in faults else y[0])


def normalized_regret(
  curve: Curve,
  horizon: float,
  *,
  comparator: float | tuple[Sequence[float], Sequence[float]] = 1.0,
  form: str = 'trapezoid',
  budget: float = BUDGET,
  wait_tokens: float = WAIT_TOKENS,
  compat: bool | Collection[str] = False,
  cell_runs: int = 1,
) -> float:
  """Returns the normalized regret of one trace at a horizon H.

    R(H) = (1/H) ∫_0^H (comparator - accuracy(t)) dt

  Args:
    curve: of a trace.
    horizon: H, tokens, > 0.
    comparator: a number, or a curve of its own (tokens, accuracy), which is
      read as the trace's is and holds its first value before its first point.
    form: 'trapezoid', the published figure, or 'step': a value holds from its
      point until the next.
    budget, wait_tokens, cell_runs: as in `points_until`.
    compat: 'overrun' counts, and those of `points_until`.

  Returns:
    A number in [0, 1] for comparator 1, unless faults are asked for.

  Raises:
    ValueError: a number out of its range, or an unknown form or fault.

  Source: arXiv 2503.07572, section 8.
  """
  checks.check_choice('form', form, token_curves.FORMS)
  for name, value in (
    ('horizon', horizon),
    ('budget', budget),
    ('wait_tokens', wait_tokens),
  ):
    checks.check_range(name, value, above=0, below=np.inf)
  faults = faults_of(compat)
  points = points_until(
    curve,
    horizon,
    budget=budget,
    wait_tokens=wait_tokens,
    compat=faults,
    cell_runs=cell_runs,
  )
  cut = horizon <= budget or 'overrun' not in faults
  reached = token_curves.area(*points, horizon, form=form, cut=cut)
  if isinstance(comparator, tuple | list):
    x, y = token_curves.as_curve(*comparator)
    best = token_curves.with_origin(statistics.monotone(x), y, y[0])
    return token_curves.area(*best, horizon, form=form) - reached
  checks.check_range('comparator', comparator)
  return float(comparator - reached)


def regrets(
  curves: Sequence[Curve], horizons: Sequence[float], **options
) -> np.ndarray:
  """Returns f64[T,F], `normalized_regret` of each curve at each horizon.

  Args:
    curves: T of them.
    horizons: F, tokens.
    **options: of `normalized_regret`.
  """
  return np.asarray(
    [[normalized_regret(c, h, **options) for h in horizons] for c in curves]
  )


def accuracy_at(
  curves: Sequence[Curve],
  budgets: Sequence[float],
  *,
  form: str = 'trapezoid',
  compat: bool | Collection[str] = False,
  **options,
) -> np.ndarray:
  """Returns f64[T,M], the accuracy of each curve at each number of tokens.

  Args:
    curves: T of them.
    budgets: M, tokens > 0: each is read off the points of its own horizon.
    form: of `normalized_regret`.
    compat: 'origin' counts. Tokens that run backwards are lifted whatever it
      says, for a curve can only be read forwards.
    **options: budget and wait_tokens of `points_until`.
  """
  checks.check_choice('form', form, token_curves.FORMS)
  faults = faults_of(compat) & {'origin'}
  return np.asarray(
    [
      [
        float(
          token_curves.at_tokens(
            *points_until(curve, b, compat=faults, **options), b, form=form
          )
        )
        for b in budgets
      ]
      for curve in curves
    ]
  )


def by_problem(
  values: np.ndarray, problems: Sequence[str]
) -> tuple[list[str], np.ndarray]:
  """Returns the ids of the problems, in order, and the mean of each, f64[P,…].

  Problems count alike, however many traces each of them has.

  Args:
    values: f64[T,…], a row a trace.
    problems: T ids.
  """
  ids = list(dict.fromkeys(problems))
  index = np.asarray([ids.index(each) for each in problems])
  return ids, np.stack([values[index == i].mean(0) for i in range(len(ids))])
