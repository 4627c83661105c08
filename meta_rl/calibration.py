"""Thresholds of stop rules with a finite-sample guarantee: Learn then Test.

A rule that stops early may spoil an answer that the full budget would have got
right. Its risk is the chance of that,

  R(t) = P(right at the full budget, wrong where threshold t stops),

and a threshold is wanted with R(t) <= alpha, from n calibration traces and not
by luck. The thresholds are tested in a fixed order, from one that hardly stops
to one that stops at once; each test asks whether the losses that were seen
would be likely if R(t) were above alpha, and the first that fails ends the
search. All thresholds before it have their risk controlled at once, with
probability at least 1 - delta over the calibration traces: the one that stops
earliest is free to be taken.

(Angelopoulos, Bates, Candes, Jordan, Lei 2021, Learn then Test, arXiv
2110.01052: fixed-sequence testing, section 3.2, and the Hoeffding-Bentkus
p-value, proposition 1 after Bates et al. 2021, arXiv 2101.02703.)

Pure numpy on the host. Axes: N traces, K episodes, M thresholds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meta_rl import checks

ALPHA, DELTA = 0.01, 0.1
MIN_TRACES = 4000


class Choice(NamedTuple):
  """What `fixed_sequence` found.

  Attributes:
    threshold: the last one that passed; None: not even the first did.
    risk: mean loss there, on the calibration traces; None without a threshold.
    p_value: of the null hypothesis that its risk is above alpha, or None.
    tested: thresholds that were tested.
  """

  threshold: float | None
  risk: float | None
  p_value: float | None
  tested: int


def hoeffding_bentkus(risk: float, n: int, alpha: float) -> float:
  """Returns a p-value of 'the expected loss is above alpha'.

    p = min(exp(-n h(min(r, alpha), alpha)), e P(Bin(n, alpha) <= ceil(n r)))
    h(a, b) = a log(a / b) + (1 - a) log((1 - a) / (1 - b))

  Under the null hypothesis P(p <= u) <= u for every u, for independent losses
  in [0, 1].

  Args:
    risk: r, mean of the losses seen, in [0, 1].
    n: how many, >= 1.
    alpha: in (0, 1).

  Source: Angelopoulos et al. 2021, arXiv 2110.01052, proposition 1.
  """
  checks.check_range('risk', risk, low=0, high=1)
  checks.check_range('n', n, low=1)
  checks.check_range('alpha', alpha, above=0, below=1)
  a = min(risk, alpha)
  part = lambda x, y: x * math.log(x / y) if x else 0.0
  hoeffding = math.exp(-n * (part(a, alpha) + part(1 - a, 1 - alpha)))
  # Losses of 0 and 1 have whole sums, which rounding must not lift.
  bentkus = math.e * binomial_cdf(math.ceil(n * risk - 1e-9), n, alpha)
  return min(1.0, hoeffding, bentkus)


def binomial_cdf(k: int, n: int, p: float) -> float:
  """Returns P(Bin(n, p) <= k), summed term by term."""
  if k < 0:
    return 0.0
  i = np.arange(min(k, n) + 1)
  log_choose = np.asarray(
    [
      math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)
      for j in i
    ]
  )
  logs = log_choose + i * math.log(p) + (n - i) * math.log1p(-p)
  top = logs.max()
  return min(1.0, float(np.exp(top) * np.exp(logs - top).sum()))


def fixed_sequence(
  losses: np.ndarray,
  thresholds: Sequence[float],
  *,
  alpha: float = ALPHA,
  delta: float = DELTA,
) -> Choice:
  """Returns the last threshold of a sequence whose risk is shown to be low.

  Args:
    losses: f[N,M], in [0, 1], of each trace at each threshold.
    thresholds: M of them, in an order fixed without a look at the losses, those
      that hardly stop first.
    alpha: risk that is allowed.
    delta: chance that it is exceeded all the same.
  """
  losses = np.asarray(losses, float)
  if losses.ndim != 2 or losses.shape[1] != len(thresholds) or not len(losses):
    raise ValueError(
      f'losses {losses.shape} must be [N,M] with N >= 1 and M='
      f'{len(thresholds)} thresholds.'
    )
  if not ((losses >= 0) & (losses <= 1)).all():
    raise ValueError(
      f'losses lie in {losses.min():g} ... {losses.max():g}; allowed is 0 to 1.'
    )
  checks.check_range('delta', delta, above=0, below=1)
  best = Choice(None, None, None, 0)
  for tested, (column, threshold) in enumerate(zip(losses.T, thresholds), 1):
    risk = float(column.mean())
    p_value = hoeffding_bentkus(risk, len(column), alpha)
    if p_value > delta:
      return best._replace(tested=tested)
    best = Choice(float(threshold), risk, p_value, tested)
  return best


def from_safest(thresholds: Sequence[float], losses: np.ndarray) -> np.ndarray:
  """Returns the thresholds to test: from the one of least risk on.

  Where a rule may think past the model's own stop, hardly stopping is not the
  safest: a thought that goes on for too long spoils its answer. The start is
  chosen by other traces than those of the test, which keeps the order fixed.

  Args:
    thresholds: M of them, those that hardly stop first.
    losses: f[N,M], of traces that the test does not see.
  """
  return np.asarray(thresholds)[int(np.asarray(losses).mean(0).argmin()) :]


def first_stop(stopping: np.ndarray, count: np.ndarray) -> np.ndarray:
  """Returns the boundary at which each trace stops, i[...,N].

      stopping  0 0 1 0 1   count 3   ->  2
      stopping  0 0 0 0 1   count 3   ->  3, where it stops by itself

  Args:
    stopping: bool[...,N,K+1], whether the rule would stop at a boundary.
    count: i[N], episodes of each trace.
  """
  boundary = np.arange(stopping.shape[-1])
  stopping = stopping | (boundary >= np.asarray(count)[:, None])
  return stopping.argmax(-1)


def threshold_stops(
  kind: str, scores: np.ndarray, count: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
  """Returns where each trace stops under each threshold, i[M,N].

  Args:
    kind: of `stopping.KINDS`.
    scores: f[N,K+1], as the kind reads them; NaN where it does not look.
    count: i[N], episodes of each trace.
    thresholds: M of them.
  """
  scores = np.asarray(scores)
  return np.stack(
    [first_stop(fires(kind, scores, t), count) for t in thresholds]
  )


def fires(
  kind: str, scores: np.ndarray, threshold: float | np.ndarray
) -> np.ndarray:
  """Returns bool[...], `stopping.stops` on the host; NaN never stops."""
  return scores <= threshold if kind == 'progress' else scores >= threshold


def grid(kind: str, scores: np.ndarray, *, size: int = 200) -> np.ndarray:
  """Returns thresholds to test, one that never stops first.

  They are quantiles of scores: take them from other traces than those that
  the losses are of, so that the order is fixed without a look at these.

  Args:
    kind: of `stopping.KINDS`.
    scores: f[...], of boundaries; other than finite ones are left out.
    size: of quantiles, at most.

  Raises:
    ValueError: no finite score.
  """
  scores = np.asarray(scores, float)
  scores = scores[np.isfinite(scores)]
  if not len(scores):
    raise ValueError(f'no boundary has a score of the rule {kind!r}.')
  if kind in ('episodes', 'agreement'):
    least = 0 if kind == 'episodes' else 1
    return np.arange(int(scores.max()) + 1, least - 1, -1).astype(float)
  levels = np.unique(np.quantile(scores, np.linspace(0, 1, size)))
  if kind == 'progress':
    # J changes by less than 1, and a horizon has a token at least.
    return np.concatenate([[-1.0], levels])
  return np.concatenate([[2.0], levels[::-1]])  # no probability
