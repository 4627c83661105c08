"""Statistics of an evaluation, on the host: intervals and token curves.

Pure numpy, float64 inside. N problems (or traces), B traces, K episodes, M
token budgets, S bootstrap samples. A bootstrap resamples problems, never
tokens: what a reader asks is how the figure would move on other problems.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Entries of one block of resampled indices: bounds memory at about 100 MB.
_BLOCK = 1 << 22


class Interval(NamedTuple):
  """An estimate and its bootstrap percentile interval.

  Attributes:
    mean: the statistic on the sample itself, not the mean of the resamples.
    low: lower end.
    high: upper end.
  """

  mean: float
  low: float
  high: float


def bootstrap_mean(
  values: np.ndarray,
  *,
  num_samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
  clusters: np.ndarray | None = None,
) -> Interval:
  """Returns the mean of `values` with its bootstrap interval.

  Args:
    values: f64[N], one figure a problem.
    num_samples: number of resamples, at least 1.
    seed: of numpy's default generator; the same seed gives the same interval.
    level: coverage of the interval, in (0, 1).
    clusters: i[N], rows with the same id are drawn together (several traces of
      one problem are not independent). None: every row for itself.

  Returns:
    The mean and its percentile interval.

  Raises:
    ValueError: a wrong shape, an empty or non-finite input, a bad setting.

  Example:
    >>> from meta_rl import statistics
    >>> statistics.bootstrap_mean([1.0, 0.0, 1.0, 1.0])
    Interval(mean=0.75, low=0.25, high=1.0)

  Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
  """
  mean, low, high = bootstrap_curve(
    _column(values, 'values')[:, None],
    num_samples=num_samples,
    seed=seed,
    level=level,
    clusters=clusters,
  )
  return Interval(float(mean[0]), float(low[0]), float(high[0]))


def bootstrap_curve(
  values: np.ndarray,
  *,
  num_samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
  clusters: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the mean curve of N curves and its pointwise bootstrap band.

  Whole curves are resampled, so the band respects their correlation.

  Args:
    values: f64[N,M], one curve a problem.
    num_samples: number of resamples, at least 1.
    seed: of numpy's default generator.
    level: coverage of the band at each point, in (0, 1).
    clusters: i[N], as in `bootstrap_mean`.

  Returns:
    mean, low, high: f64[M] each.

  Raises:
    ValueError: a wrong shape, an empty or non-finite input, a bad setting.

  Example:
    >>> from meta_rl import statistics
    >>> curves = [[0.0, 1.0]] * 3 + [[0.0, 0.0]]
    >>> mean, low, high = statistics.bootstrap_curve(curves)
    >>> mean.tolist(), low.tolist(), high.tolist()
    ([0.0, 0.75], [0.0, 0.25], [0.0, 1.0])
  """
  values = _finite(values, 'values')
  if values.ndim != 2:
    raise ValueError(
      f'values has shape {values.shape}: one curve a row is needed, [N, M].'
    )
  means = _resampled_means(values, clusters, num_samples, seed)
  low, high = np.quantile(means, _tails(level), axis=0)
  return values.mean(0), low, high


def paired_bootstrap(
  a: np.ndarray,
  b: np.ndarray,
  *,
  statistic: str = 'difference',
  num_samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
  clusters: np.ndarray | None = None,
) -> Interval:
  """Returns how far `a` is from `b` on the same problems.

    difference: mean(a) − mean(b)        relative: (mean(a) − mean(b)) / mean(b)

  Both sides are resampled with the same problems, so a problem's difficulty,
  which they share, cancels: far narrower than two separate intervals.

  Args:
    a: f64[N], the method, one figure a problem.
    b: f64[N], what it is compared with; row i is the same problem as a[i].
    statistic: 'difference' or 'relative'.
    num_samples: number of resamples, at least 1.
    seed: of numpy's default generator.
    level: coverage of the interval, in (0, 1).
    clusters: i[N], rows with the same id are drawn together.

  Returns:
    The statistic and its percentile interval. 'relative' is (−inf, inf) where
    mean(b) is not told apart from 0 at this level.

  Raises:
    ValueError: shapes that differ, an unknown statistic, non-finite input,
      'relative' to a mean of 0.

  Example:
    >>> from meta_rl import statistics
    >>> a, b = [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    >>> statistics.paired_bootstrap(a, b)
    Interval(mean=0.5, low=0.0, high=1.0)
  """
  if statistic not in ('difference', 'relative'):
    raise ValueError(
      f"statistic={statistic!r}: it must be 'difference' or 'relative'."
    )
  pair = _stack(a=a, b=b)
  means = _resampled_means(pair, clusters, num_samples, seed)
  whole = pair.mean(0)
  if statistic == 'difference':
    low, high = np.quantile(means[:, 0] - means[:, 1], _tails(level))
    return Interval(float(whole[0] - whole[1]), float(low), float(high))
  return _ratio(
    whole[0] - whole[1], whole[1], means[:, 0] - means[:, 1], means[:, 1], level
  )


def gain_ratio(
  method: np.ndarray,
  base: np.ndarray,
  reference: np.ndarray,
  *,
  num_samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
  clusters: np.ndarray | None = None,
) -> Interval:
  """Returns the method's gain over the base as a multiple of the reference's.

    (mean(method) − mean(base)) / (mean(reference) − mean(base))

  This is the sense of '2-3x the gain of outcome-reward RL'. A reference whose
  gain cannot be told from 0 gives no finite interval: (−inf, inf).

  Args:
    method: f64[N], one figure a problem, for example accuracy under MRT.
    base: f64[N], the same problems under the base policy.
    reference: f64[N], the same problems under, for example, GRPO.
    num_samples: number of resamples, at least 1.
    seed: of numpy's default generator.
    level: coverage of the interval, in (0, 1).
    clusters: i[N], rows with the same id are drawn together.

  Returns:
    The ratio and its percentile interval.

  Raises:
    ValueError: shapes that differ, non-finite input, a reference gain of 0.

  Example:
    >>> from meta_rl import statistics
    >>> statistics.gain_ratio([1.0, 1.0], [0.0, 0.0], [0.5, 0.5])
    Interval(mean=2.0, low=2.0, high=2.0)

  Source: Qu et al. 2025, section 7, arXiv 2503.07572.
  """
  three = _stack(method=method, base=base, reference=reference)
  means = _resampled_means(three, clusters, num_samples, seed)
  whole = three.mean(0)
  return _ratio(
    whole[0] - whole[1],
    whole[2] - whole[1],
    means[:, 0] - means[:, 1],
    means[:, 2] - means[:, 1],
    level,
  )


def success_at_budgets(
  success: np.ndarray,
  ends: np.ndarray,
  count: np.ndarray,
  *,
  budgets: Sequence[float],
) -> np.ndarray:
  """Returns J of every trace when it is stopped at each token budget.

    J(b) = J_j,  j = max { j <= count : e_j <= b },
    e_j = ends[:, j] − ends[:, 0]

  A value holds from its own boundary until the next: an episode that is cut
  short has given nothing yet. The last value is held flat.

  Args:
    success: f32[B,K+1], J at every boundary, probability.
    ends: i32[B,K+1], last token of each episode, non-decreasing in a row.
    count: i32[B], number of episodes, 0..K.
    budgets: f[M], thinking tokens, >= 0.

  Returns:
    f64[B,M], probability.

  Raises:
    ValueError: shapes that do not fit, boundaries that go back, bad budgets.

  Example:
    >>> from meta_rl import statistics
    >>> trace = [[0.25, 0.5, 1.0]], [[3, 5, 9]], [2]  # e is 0, 2, 6
    >>> statistics.success_at_budgets(*trace, budgets=[0, 2, 5, 6]).tolist()
    [[0.25, 0.5, 0.5, 1.0]]
  """
  success, elapsed, count = _traces(success, ends, count)
  budgets = _budgets(budgets, increasing=False)
  passed = (elapsed[:, :, None] <= budgets).sum(1) - 1  # [B, M]
  index = np.minimum(passed, count[:, None])
  return np.take_along_axis(success, index, axis=1)


def accuracy_curve(
  success: np.ndarray,
  ends: np.ndarray,
  count: np.ndarray,
  *,
  budgets: Sequence[float],
) -> np.ndarray:
  """Returns the mean J that is available at each token budget.

  The mean over traces of `success_at_budgets`, where the arguments are told.

  Returns:
    f32[M], probability.

  Example:
    >>> from meta_rl import statistics
    >>> trace = [[0.25, 0.5, 1.0]], [[3, 5, 9]], [2]  # e is 0, 2, 6
    >>> statistics.accuracy_curve(*trace, budgets=[0, 6]).tolist()
    [0.25, 1.0]
  """
  values = success_at_budgets(success, ends, count, budgets=budgets)
  return values.mean(0).astype(np.float32)


def regret_at_budgets(
  success: np.ndarray,
  ends: np.ndarray,
  count: np.ndarray,
  *,
  budgets: Sequence[float],
  horizon: float,
  comparator: float | np.ndarray = 1.0,
) -> np.ndarray:
  """Returns the token-weighted regret accumulated up to each token budget.

    R(b) = (1/H) · ∫_0^b (comparator − J(t)) dt

  At b = H this is `meta_rl.regret.token_weighted`, the headline figure.

  Args:
    success: f32[B,K+1], J at every boundary, probability.
    ends: i32[B,K+1], last token of each episode, non-decreasing in a row.
    count: i32[B], number of episodes, 0..K.
    budgets: f[M], thinking tokens, >= 0.
    horizon: H, tokens, > 0.
    comparator: scalar or f32[B,K+1], the best reachable J.

  Returns:
    f64[B,M], in units of one horizon at zero success.

  Raises:
    ValueError: shapes that do not fit, bad budgets, a horizon of 0 or less.

  Example:
    >>> from meta_rl import statistics
    >>> trace = [[0.25, 0.5, 1.0]], [[3, 5, 9]], [2]  # e is 0, 2, 6
    >>> statistics.regret_at_budgets(
    ...   *trace, budgets=[2, 8], horizon=8
    ... ).tolist()  # 2·0.75 / 8, and 4·0.5 / 8 more
    [[0.1875, 0.4375]]
  """
  success, elapsed, count = _traces(success, ends, count)
  budgets = _budgets(budgets, increasing=False)
  if not horizon > 0:
    raise ValueError(f'horizon={horizon}: it must be above 0 tokens.')
  gap = np.broadcast_to(np.asarray(comparator, np.float64), success.shape)
  gap = gap - success
  # Past `count` no boundary exists: push them beyond every budget.
  column = np.arange(elapsed.shape[1])
  beyond = np.where(column <= count[:, None], elapsed, np.inf)
  starts = np.minimum(beyond[:, :, None], budgets)  # [B, K+1, M]
  last = np.broadcast_to(budgets, (len(count), 1, len(budgets)))
  held = np.diff(np.concatenate([starts, last], axis=1), axis=1)
  return np.einsum('bkm,bk->bm', held, gap) / horizon


def tokens_to_accuracy(
  budgets: Sequence[float], curve: Sequence[float], level: float
) -> float:
  """Returns the first token budget at which the curve reaches `level`.

  Linear between the points; the first crossing counts where a curve falls
  again later (pass `monotone(curve)` to rule that out).

  Args:
    budgets: f[M], tokens, strictly increasing.
    curve: f[M], accuracy at each.
    level: the accuracy to reach.

  Returns:
    Tokens; nan if the curve never gets there.

  Raises:
    ValueError: lengths that differ, budgets that do not increase.

  Example:
    >>> from meta_rl import statistics
    >>> statistics.tokens_to_accuracy([10, 20, 40], [0.25, 0.5, 0.75], 0.625)
    30.0
  """
  budgets = _budgets(budgets, increasing=True)
  curve = _finite(curve, 'curve')
  if curve.shape != budgets.shape:
    raise ValueError(
      f'curve has shape {curve.shape} and budgets {budgets.shape}: one accuracy'
      ' a budget is needed.'
    )
  reached = np.flatnonzero(curve >= level)
  if not reached.size:
    return float('nan')
  i = int(reached[0])
  if i == 0:
    return float(budgets[0])
  share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
  return float(budgets[i - 1] + share * (budgets[i] - budgets[i - 1]))


def relative_token_efficiency(
  budgets: Sequence[float],
  curve: Sequence[float],
  base_budgets: Sequence[float],
  base_curve: Sequence[float],
  *,
  level: float | None = None,
) -> float:
  """Returns how many times fewer tokens the method needs at equal accuracy.

    tokens_to_accuracy(base, level) / tokens_to_accuracy(method, level)

  Args:
    budgets: f[M], tokens of the method's curve, strictly increasing.
    curve: f[M], the method's accuracy.
    base_budgets: f[L], tokens of the curve that it is compared with.
    base_curve: f[L], that curve's accuracy.
    level: the accuracy; None: the highest that the base curve reaches, each
      side charged from where it first gets there.

  Returns:
    A ratio, above 1 if the method is cheaper; nan if either side never gets
    there, inf if the method is there with 0 tokens and the base is not.

  Raises:
    ValueError: as in `tokens_to_accuracy`.

  Example:
    >>> from meta_rl import statistics
    >>> statistics.relative_token_efficiency(
    ...   [10, 20], [0.25, 0.75], [10, 20, 40], [0.25, 0.5, 0.75]
    ... )  # 40 tokens against 20
    2.0
  """
  if level is None:
    level = float(_finite(base_curve, 'base_curve').max())
  base = tokens_to_accuracy(base_budgets, base_curve, level)
  method = tokens_to_accuracy(budgets, curve, level)
  if method == 0:
    return 1.0 if base == 0 else float('inf' if base > 0 else 'nan')
  return base / method


def monotone(values: np.ndarray, axis: int = -1) -> np.ndarray:
  """Returns the running maximum of `values` along `axis`.

  Example:
    >>> from meta_rl import statistics
    >>> statistics.monotone([0.25, 0.5, 0.4]).tolist()
    [0.25, 0.5, 0.5]
  """
  return np.maximum.accumulate(np.asarray(values), axis=axis)


def held(values: np.ndarray, count: np.ndarray) -> np.ndarray:
  """Returns traces that stand still from their last boundary on.

  Args:
    values: [N,K+1,...], of each boundary.
    count: i[N], 0..K, episodes of each trace: its last boundary.

  Example:
    >>> import numpy as np
    >>> from meta_rl import statistics
    >>> statistics.held(np.array([[1, 2, 9]]), np.array([1])).tolist()
    [[1, 2, 2]]
  """
  values, count = np.asarray(values), np.asarray(count)
  index = np.minimum(np.arange(values.shape[1]), count[:, None])
  return values[np.arange(len(values))[:, None], index]


def _resampled_means(columns, clusters, num_samples, seed):
  """Returns the column means of S resamples of the rows, f64[S,C]."""
  if num_samples < 1:
    raise ValueError(f'num_samples={num_samples}: at least 1 is needed.')
  n = len(columns)
  if clusters is None:
    sizes, sums = np.ones(n), columns
  else:
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
      raise ValueError(
        f'clusters has shape {clusters.shape}: one id a row is needed, ({n},).'
      )
    _, group = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    sums = np.zeros((len(sizes), columns.shape[1]))
    np.add.at(sums, group, columns)
  units = len(sizes)
  rng = np.random.default_rng(seed)
  step = max(1, _BLOCK // units)
  means = []
  for start in range(0, num_samples, step):
    rows = min(step, num_samples - start)
    drawn = rng.integers(units, size=(rows, units))
    drawn += np.arange(rows)[:, None] * units
    # How often each unit was drawn turns the whole resample into a matmul.
    times = np.bincount(drawn.ravel(), minlength=rows * units)
    times = times.reshape(rows, units).astype(np.float64)
    means.append((times @ sums) / (times @ sizes)[:, None])
  return np.concatenate(means)


def _ratio(top, bottom, tops, bottoms, level):
  """Returns top / bottom with its interval, honest about a bottom near 0."""
  if bottom == 0:
    raise ValueError(
      'The mean that this ratio is relative to is 0: report the difference.'
    )
  tails = _tails(level)
  flipped = np.mean(np.sign(bottoms) != np.sign(bottom))
  if flipped > tails[0]:
    return Interval(float(top / bottom), float('-inf'), float('inf'))
  kept = np.sign(bottoms) == np.sign(bottom)
  low, high = np.quantile(tops[kept] / bottoms[kept], tails)
  return Interval(float(top / bottom), float(low), float(high))


def _tails(level):
  if not 0 < level < 1:
    raise ValueError(f'level={level}: it must lie between 0 and 1.')
  return (1 - level) / 2, (1 + level) / 2


def _finite(values, name):
  values = np.asarray(values, np.float64)
  if not values.size:
    raise ValueError(f'{name} is empty: at least one value is needed.')
  if not np.isfinite(values).all():
    raise ValueError(f'{name} holds NaN or infinite values: drop them first.')
  return values


def _column(values, name):
  values = _finite(values, name)
  if values.ndim != 1:
    raise ValueError(
      f'{name} has shape {values.shape}: one figure a problem is needed, [N].'
    )
  return values


def _stack(**columns):
  columns = {name: _column(v, name) for name, v in columns.items()}
  if len({len(v) for v in columns.values()}) > 1:
    lengths = ', '.join(f'{n} {len(v)}' for n, v in columns.items())
    raise ValueError(
      f'The sides have different lengths ({lengths}): a paired comparison needs'
      ' the same problems in the same order.'
    )
  return np.stack(list(columns.values()), axis=1)


def _budgets(budgets, *, increasing):
  budgets = _column(budgets, 'budgets')
  if (budgets < 0).any():
    raise ValueError('budgets holds a negative value: tokens are >= 0.')
  if increasing and (np.diff(budgets) <= 0).any():
    raise ValueError('budgets must be strictly increasing: sort them first.')
  return budgets


def _traces(success, ends, count):
  success = _finite(success, 'success')
  ends, count = np.asarray(ends), np.asarray(count)
  if success.ndim != 2 or ends.shape != success.shape:
    raise ValueError(
      f'success has shape {success.shape} and ends {ends.shape}: both must be'
      ' [B, K+1].'
    )
  if count.shape != success.shape[:1]:
    raise ValueError(
      f'count has shape {count.shape}: one a trace is needed,'
      f' ({success.shape[0]},).'
    )
  for name, values in (('ends', ends), ('count', count)):
    if not np.issubdtype(values.dtype, np.integer):
      raise TypeError(f'{name} has dtype {values.dtype}: integers are needed.')
  if (count < 0).any() or (count >= success.shape[1]).any():
    raise ValueError(
      f'count lies in {count.min()}..{count.max()}: 0..{success.shape[1] - 1}'
      ' is allowed.'
    )
  elapsed = ends.astype(np.int64) - ends[:, :1]
  if (np.diff(elapsed, axis=1) < 0).any():
    raise ValueError('ends goes back: episodes end in non-decreasing order.')
  return success, elapsed, count
