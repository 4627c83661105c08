"""Statistics over training seeds: what would another run of training give?

An interval over problems says how a figure would move on other problems; it
says nothing about the spread between training runs, which at this size is as
large as the effects. Here the seed is the unit: a figure is one number a seed,
its interval is Student's t over seeds, and two methods are paired by seed,
since equal seeds see the same training problems and the same test problems.

Pure numpy and the standard library. S seeds, M points of a curve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from meta_rl import statistics
from meta_rl.statistics import Interval


class Paired(NamedTuple):
  """A difference between two methods over the seeds that both have.

  Attributes:
    difference: mean of a - b with its t interval.
    seeds: the seeds that were paired.
  """

  difference: Interval
  seeds: tuple[int, ...]


class Reach(NamedTuple):
  """How many tokens, or how much cost, it takes to reach a level.

  Attributes:
    needed: over the seeds that reach it, with its t interval; nan if none.
    reached: how many seeds reach it. Where some do not, `needed` is of the
      quicker ones alone and too low.
    of: how many seeds there are.
  """

  needed: Interval
  reached: int
  of: int


def t_quantile(df: int, level: float = 0.95) -> float:
  """Returns t with P(|T| <= t) = level for Student's T of `df` degrees.

  P is a finite sum for whole degrees of freedom; it is inverted by bisection.

  Args:
    df: degrees of freedom, >= 1.
    level: in (0, 1).

  Returns:
    t > 0, such as 12.706, 4.303, 2.776 for 1, 2, 4 degrees at 0.95.

  Example:
    >>> from meta_rl import study_statistics
    >>> [round(study_statistics.t_quantile(df), 3) for df in (1, 2, 4)]
    [12.706, 4.303, 2.776]

  Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
  """
  if df < 1 or df != int(df):
    raise ValueError(f'df={df}: degrees of freedom are whole and at least 1.')
  if not 0 < level < 1:
    raise ValueError(f'level={level}: it must lie between 0 and 1.')
  low, high = 0.0, math.pi / 2
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (
      (middle, high) if _t_probability(middle, df) < level else (low, middle)
    )
  return math.sqrt(df) * math.tan((low + high) / 2)


def _t_probability(angle: float, df: int) -> float:
  """Returns P(|T| <= sqrt(df) * tan(angle))."""
  sin, cos = math.sin(angle), math.cos(angle)
  odd = df % 2
  term, total = (cos if odd else 1.0), 0.0
  # Powers cos^1, cos^3 ... for odd degrees, cos^0, cos^2 ... for even ones.
  for power in range(odd, df - 1, 2):
    total += term
    term *= cos * cos * (power + 1) / (power + 2)
  return 2 / math.pi * (angle + sin * total) if odd else sin * total


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
  """Returns the mean over seeds with its Student t interval.

    mean -+ t_{S-1} * sd / sqrt(S),  sd with S - 1 in its denominator

  One seed has no interval: its ends are nan, and nothing is guessed.

  Args:
    values: f[S], one figure a seed, finite.
    level: coverage, in (0, 1).

  Raises:
    ValueError: no value, or one that is not finite.

  Example:
    >>> from meta_rl import study_statistics
    >>> found = study_statistics.mean_interval([1.0, 2.0, 3.0])
    >>> [round(x, 3) for x in found]  # 2 -+ 4.303 / √3
    [2.0, -0.484, 4.484]
  """
  values = _seeds(values, 'values')
  mean = float(values.mean())
  if len(values) == 1:
    return Interval(mean, math.nan, math.nan)
  half = t_quantile(len(values) - 1, level) * values.std(ddof=1)
  half = float(half / math.sqrt(len(values)))
  return Interval(mean, mean - half, mean + half)


def paired(
  a: Mapping[int, float], b: Mapping[int, float], *, level: float = 0.95
) -> Paired | None:
  """Returns a - b, paired by seed; None if no seed has both.

  What the two share through the seed (the order of the training problems, luck
  in sampling them) cancels in the difference.

  Args:
    a: seed -> figure of the method.
    b: seed -> figure of what it is compared with.
    level: coverage, in (0, 1).
  """
  seeds = tuple(sorted(a.keys() & b.keys()))
  if not seeds:
    return None
  return Paired(
    mean_interval([a[seed] - b[seed] for seed in seeds], level=level), seeds
  )


def gain_ratio(
  method: Sequence[float],
  base: Sequence[float],
  reference: Sequence[float],
  *,
  level: float = 0.95,
) -> Interval:
  """Returns the method's gain over the base as a multiple of the reference's.

    r = mean(d) / mean(g),  d = method - base, g = reference - base
    interval: all r with |mean(d - r g)| <= t_{S-1} * sd(d - r g) / sqrt(S)

  The interval is Fieller's, of Student's t like all others here: a bootstrap
  over a handful of seeds is too narrow. A ratio to a gain that may be 0 means
  nothing: where the t interval of the reference's gain holds 0, Fieller's has
  no end, and -inf and inf are returned. The ratio has the same sense for
  accuracy and for regret, where both gains are negative.

  Args:
    method, base, reference: f[S], entry i is of the same seed in all; a base
      that was not trained repeats its one figure.
    level: coverage, in (0, 1).

  Returns:
    The ratio (nan if the reference's gain is exactly 0) and its interval; ends
    of nan with one seed.

  Source: Fieller 1954, Some Problems in Interval Estimation, J. R. Stat. Soc. B
  16, 175-185.
  """
  method, base, reference = (
    _seeds(values, name)
    for values, name in (
      (method, 'method'),
      (base, 'base'),
      (reference, 'reference'),
    )
  )
  if not len(method) == len(base) == len(reference):
    raise ValueError(
      f'method has {len(method)} seeds, base {len(base)} and reference '
      f'{len(reference)}: give the same seeds of all three.'
    )
  gains, own = reference - base, method - base
  gain = mean_interval(gains, level=level)
  if gain.mean == 0:
    return Interval(math.nan, -math.inf, math.inf)
  ratio = float(own.mean() / gain.mean)
  count = len(gains)
  if count == 1:
    return Interval(ratio, math.nan, math.nan)
  if gain.low <= 0 <= gain.high:
    return Interval(ratio, -math.inf, math.inf)
  # Squared, the condition is a r^2 - 2 b r + c <= 0, and a > 0.
  weight = t_quantile(count - 1, level) ** 2 / count
  ((own_var, both), (_, gain_var)) = np.cov(own, gains)
  a = gain.mean**2 - weight * gain_var
  b = own.mean() * gain.mean - weight * both
  c = own.mean() ** 2 - weight * own_var
  # The ratio itself fulfils it: below 0 the root is rounding.
  root = math.sqrt(max(b * b - a * c, 0.0))
  return Interval(ratio, float((b - root) / a), float((b + root) / a))


def reach(
  curves: Mapping[int, tuple[Sequence[float], Sequence[float]]],
  levels: Mapping[int, float],
  *,
  level: float = 0.95,
) -> Reach | None:
  """Returns what it takes to reach each seed's level, such as GRPO's accuracy.

  Args:
    curves: seed -> (x, accuracy), x strictly increasing: tokens or cost.
    levels: seed -> the accuracy to reach.
    level: coverage of the interval, in (0, 1).

  Returns:
    None if no seed has both.
  """
  seeds = sorted(curves.keys() & levels.keys())
  if not seeds:
    return None
  found = [
    statistics.tokens_to_accuracy(*curves[seed], levels[seed]) for seed in seeds
  ]
  there = [value for value in found if not math.isnan(value)]
  needed = Interval(math.nan, math.nan, math.nan)
  if there:
    needed = mean_interval(there, level=level)
  return Reach(needed, len(there), len(seeds))


def mean_curve(
  curves: Sequence[tuple[Sequence[float], Sequence[float]]],
  grid: Sequence[float],
  *,
  level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the mean over seeds of some curves on a common grid, with a band.

  A run is read off by straight lines between its points, and not beyond them:
  where one of the runs has no value, there is no mean of all of them.

  Args:
    curves: (x, y) of each seed, x strictly increasing.
    grid: f[M], where to take them.
    level: coverage of the pointwise t band, in (0, 1).

  Returns:
    mean, low, high: f64[M], nan where some run does not reach; low and high are
    nan everywhere with one seed.
  """
  if not curves:
    raise ValueError('There is no curve: give one a seed.')
  grid = np.asarray(grid, np.float64)
  rows = np.stack(
    [np.interp(grid, *curve, left=np.nan, right=np.nan) for curve in curves]
  )
  mean, count = rows.mean(0), len(rows)
  if count == 1:
    return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
  half = t_quantile(count - 1, level) * rows.std(0, ddof=1) / math.sqrt(count)
  return mean, mean - half, mean + half


def _seeds(values, name):
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(
      f'{name} has shape {values.shape}: one figure a seed is needed, [S].'
    )
  if not np.isfinite(values).all():
    raise ValueError(f'{name} holds NaN or infinite values: drop them first.')
  return values
