"""Figures of stop rules from scored traces: tokens, accuracy, risk.

What each rule would have done with each trace follows from its scores
(`stop_traces.gather`); here it becomes numbers. Pure numpy on the host.

Axes: N traces, K episodes, M thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meta_rl import calibration, stopping
from meta_rl.calibration import fires
from meta_rl.eval_figures import interval

LABELS = {
  'episodes': 'fixed number of episodes',
  'confidence': 'confidence',
  'agreement': 'agreement',
  'progress': 'predicted progress',
}
# How a threshold was chosen on calibration traces.
POINTS = {
  'calibrated': 'calibrated',
  'equal_accuracy': 'at most alpha less accurate',
  'equal_tokens': 'at no more tokens',
}


class Outcome(NamedTuple):
  """What a rule did with N traces, at M thresholds.

  Attributes:
    stop: i[M,N], boundary at which thinking ended.
    right: bool[M,N], whether the answer there is.
    thinking: i[M,N], thinking tokens.
    probing: i[M,N], tokens of probes whose answers were not used.
  """

  stop: np.ndarray
  right: np.ndarray
  thinking: np.ndarray
  probing: np.ndarray

  @property
  def tokens(self) -> np.ndarray:
    """i[M,N], thinking and probing."""
    return self.thinking + self.probing


def outcome(
  kind: str, found: dict[str, np.ndarray], thresholds: Sequence[float]
) -> Outcome:
  """Returns what a rule does with scored traces.

  A probing rule pays for a probe at every boundary up to its stop, but for the
  one whose answer it gives.

  Args:
    kind: of `stopping.KINDS`.
    found: of `stop_traces.gather`, with a score of this kind.
    thresholds: M of them.
  """
  count, rows = found['count'], np.arange(len(found['count']))
  own = scores(kind, found)
  stop = calibration.threshold_stops(kind, own, count, thresholds)
  probing = np.zeros_like(stop)
  if kind in stopping.PROBING:
    spent = np.cumsum(found['probe_tokens'], axis=1)
    probing = spent[rows, stop]
    used = fires(kind, own[rows, stop], np.asarray(thresholds)[:, None])
    probing = probing - np.where(used, found['probe_tokens'][rows, stop], 0)
  return Outcome(
    stop,
    found['right'][rows, stop],
    found['thought'][rows, stop],
    probing,
  )


def scores(kind: str, found: dict[str, np.ndarray]) -> np.ndarray:
  """Returns f[N,K+1], what a rule reads at each boundary, NaN at no look."""
  if kind != 'episodes':
    return found[kind]
  return np.where(found['looked'], np.arange(found['looked'].shape[1]), np.nan)


def run_out(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (right bool[N], tokens i[N]) of traces run to their own stop."""
  rows, count = np.arange(len(found['count'])), found['count']
  return found['right'][rows, count], found['thought'][rows, count]


def spoiled(full_right: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Returns the losses f[M,N]: the full budget is right, the rule wrong."""
  return (np.asarray(full_right, bool) & ~np.asarray(right, bool)).astype(float)


def cheapest(
  result: Outcome, full_right: np.ndarray, *, drop: float
) -> int | None:
  """Returns the threshold of fewest tokens that keeps the accuracy, or None.

    mean right >= mean full_right - drop

  No guarantee goes with it, other than with `calibration.fixed_sequence`: it is
  the operating point of two rules that are compared at equal accuracy.

  Args:
    result: on calibration traces.
    full_right: bool[N], of the same traces at the full budget.
    drop: of accuracy that is allowed.
  """
  kept = result.right.mean(1) >= np.mean(full_right) - drop
  if not kept.any():
    return None
  tokens = np.where(kept, result.tokens.mean(1), np.inf)
  return int(tokens.argmin())


def most_accurate(result: Outcome, full_tokens: np.ndarray) -> int | None:
  """Returns the threshold of highest accuracy at no more tokens, or None.

    mean tokens <= mean full_tokens

  Args:
    result: on calibration traces.
    full_tokens: i[N], of the same traces at the full budget.
  """
  kept = result.tokens.mean(1) <= np.mean(full_tokens)
  if not kept.any():
    return None
  return int(np.where(kept, result.right.mean(1), -1).argmax())


def row(
  kind: str,
  result: Outcome,
  at: int,
  *,
  threshold: float,
  forced: bool,
  point: str,
  full_right: np.ndarray,
  full_tokens: np.ndarray,
  clusters: np.ndarray,
) -> dict:
  """Returns the line of one rule in a table, as `eval.json` holds it.

  Args:
    kind: of `stopping.KINDS`.
    result: on test traces.
    at: which of its thresholds.
    threshold: that one.
    forced: whether it may go past the model's own stop.
    point: how the threshold was chosen, one of POINTS.
    full_right, full_tokens: bool[N] and i[N], at the model's own stop.
    clusters: i[N], one id a problem.
  """
  right, tokens = result.right[at], result.tokens[at]
  difference = interval(right.astype(float) - full_right, clusters)
  return {
    'rule': kind,
    'label': label(kind, forced, point),
    'point': point,
    'threshold': float(threshold),
    'forced': forced,
    'calibrated': point == 'calibrated',
    'accuracy': interval(right.astype(float), clusters),
    'gain': difference,
    'thinking_tokens': float(result.thinking[at].mean()),
    'probe_tokens': float(result.probing[at].mean()),
    'tokens_mean': float(tokens.mean()),
    'saved': float(1 - tokens.mean() / full_tokens.mean()),
    'risk': float(spoiled(full_right, right).mean()),
  }


def label(kind: str, forced: bool, point: str = '') -> str:
  """Returns what a rule is called in tables and charts."""
  text = LABELS[kind] + (', past the own stop' if forced else '')
  return f'{text} ({POINTS[point]})' if point else text


def frontier(
  result: Outcome, success: np.ndarray, *, points: int = 40
) -> dict[str, list[float]]:
  """Returns J against tokens, one point a threshold, in order of tokens.

  J, so that it stands on the axes of accuracy at token budgets.

  Args:
    result: of a rule on test traces.
    success: f[N,K+1], J of these.
    points: at most so many, evenly spread over the thresholds.
  """
  keep = np.unique(np.linspace(0, len(result.stop) - 1, points).astype(int))
  tokens = result.tokens.mean(1)[keep]
  rows = np.arange(len(success))
  accuracy = np.asarray(success)[rows, result.stop[keep]].mean(1, np.float64)
  order = np.argsort(tokens, kind='stable')
  return {
    'tokens': tokens[order].tolist(),
    'accuracy': accuracy[order].tolist(),
  }
