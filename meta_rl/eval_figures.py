"""Figures of an evaluation beyond its headline: stopping, extrapolation.

What happened is measured elsewhere (`held_out.measure`); here it becomes
numbers of an `eval.json`. Pure numpy on the host.

Axes: N traces, K episodes, F horizons, M budgets.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from meta_rl import eval_regrets, statistics

# A prefix counts as solved if stopping there is more likely right than wrong.
SOLVED_ABOVE = 0.5

LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))


def stop_rates(
  success: np.ndarray,
  count: np.ndarray,
  forced: np.ndarray,
  *,
  solved_above: float = SOLVED_ABOVE,
) -> dict:
  """Returns how often a policy stops at each boundary, solved or not.

    P(stop at j | solved) = #(stops at j, J_j > s) / #(may stop at j, J_j > s)

  A trace may stop at the boundaries 0 ... count. Where the budget ended it, its
  last boundary was no choice and counts nowhere. 'Solved' stands for 'the trace
  already holds a success': the chance J_j that the answer given there is right
  is above `solved_above`.

  Args:
    success: f32[N,K+1], J.
    count: i32[N], episodes of each trace.
    forced: bool[N], thinking was ended by the budget.
    solved_above: s in [0, 1).

  Returns:
    'solved_above'; 'solved' and 'unsolved', each with 'stops' and 'chances',
    i[K+1], and 'rate', over all boundaries together, None without a chance.

  Raises:
    ValueError: shapes that do not fit.
  """
  success, count = np.asarray(success), np.asarray(count)
  forced = np.asarray(forced, bool)
  if success.ndim != 2 or not count.shape == forced.shape == success.shape[:1]:
    raise ValueError(
      f'success {success.shape}, count {count.shape} and forced {forced.shape} '
      'must be [N,K+1], [N] and [N].'
    )
  boundary = np.arange(success.shape[1])
  stops = (boundary == count[:, None]) & ~forced[:, None]
  chances = (boundary < count[:, None]) | stops
  solved = success > solved_above
  return {
    'solved_above': solved_above,
    'solved': _rate(stops & solved, chances & solved),
    'unsolved': _rate(stops & ~solved, chances & ~solved),
  }


def _rate(stops, chances):
  return {
    'stops': stops.sum(0).tolist(),
    'chances': chances.sum(0).tolist(),
    'rate': float(stops.sum() / chances.sum()) if chances.any() else None,
  }


def extrapolation(
  found: Mapping[str, np.ndarray],
  *,
  horizon: int,
  factors: Sequence[int],
  clusters: np.ndarray,
  points: int = 48,
) -> dict:
  """Returns accuracy and regret up to several times the training budget.

  The traces were kept thinking to the largest horizon, so that what they had
  thought at any smaller one is a prefix of theirs: one set of traces gives all
  horizons, the training budget (factor 1) included. These are figures of
  budget forcing; those of a policy that may stop are elsewhere.

  Args:
    found: success f32[N,K+1], ends i32[N,K+1], count i32[N] of
      `held_out.measure`.
    horizon: tokens of the training budget.
    factors: multiples of it, integers > 1.
    clusters: i[N], one id a problem.
    points: of the curve, at most.

  Returns:
    'num_problems', 'factors' and 'horizons' (1 first), 'budgets' and
    'accuracy_at_budget' (M each), and one value a horizon: 'accuracy',
    'regret_token_weighted' and 'regret_normalized' (mean, low, high), and
    'per_problem' (token-weighted regret, F lists of N).
  """
  factors = [1, *sorted(set(factors) - {1})]
  horizons = [factor * horizon for factor in factors]
  args = found['success'], found['ends'], found['count']
  longest = horizons[-1]
  step = max(1, -(-longest // points))
  grid = sorted({*range(0, longest + 1, step), *horizons})
  curve = statistics.success_at_budgets(*args, budgets=grid).mean(0)
  at_end = statistics.success_at_budgets(*args, budgets=horizons)
  weighted = [
    statistics.regret_at_budgets(*args, budgets=[h], horizon=h)[:, 0]
    for h in horizons
  ]
  whole = statistics.success_at_budgets(*args, budgets=range(longest + 1))
  return {
    'num_problems': len(found['count']),
    'factors': factors,
    'horizons': horizons,
    'budgets': grid,
    'accuracy_at_budget': curve.tolist(),
    'accuracy': [interval(values, clusters) for values in at_end.T],
    'regret_token_weighted': [
      interval(values, clusters) for values in weighted
    ],
    'regret_normalized': [
      normalized(whole[:, : h + 1], clusters) for h in horizons
    ],
    'per_problem': [values.tolist() for values in weighted],
  }


def base_prover(
  success: np.ndarray,
  ends: np.ndarray,
  count: np.ndarray,
  *,
  horizon: int,
  clusters: np.ndarray,
  budgets: Sequence[int],
) -> dict:
  """Returns the figures of the same traces under the frozen base prover.

  A policy can raise its own J by answering better from the same thoughts, or by
  thoughts that say more: under a prover that did not learn, the second alone
  counts. A gain that is absent here was learnt by the answer, not the search.

  Args:
    success: f32[N,K+1], J of the base prover.
    ends, count: i32[N,K+1] and i32[N], of the traces.
    horizon: tokens.
    clusters: i[N], one id a problem.
    budgets: tokens at which the curve is taken.

  Returns:
    'accuracy' and 'regret_token_weighted' (mean, low, high) and
    'accuracy_at_budget'.
  """
  curves = statistics.success_at_budgets(success, ends, count, budgets=budgets)
  total = statistics.regret_at_budgets(
    success, ends, count, budgets=[horizon], horizon=horizon
  )[:, 0]
  last = np.asarray(success)[np.arange(len(count)), count]
  return {
    'accuracy': interval(last, clusters),
    'regret_token_weighted': interval(total, clusters),
    'accuracy_at_budget': curves.mean(0).tolist(),
  }


def prover_gap(
  exact: np.ndarray,
  sampled: np.ndarray,
  count: np.ndarray,
  *,
  clusters: np.ndarray,
) -> dict:
  """Returns how far the exact prover's J is from that of sampled answers.

    d_i = mean over j = 0 ... count_i of J_ij exact - J_ij sampled

  The exact prover sums the listed answers alone, and the sampled one is
  unbiased: where other answers are accepted too, or a verifier refuses a
  listed one, the mean of d is below or above 0.

  Args:
    exact, sampled: f32[N,K+1], J by either prover.
    count: i32[N], episodes of each trace.
    clusters: i[N], one id a problem.

  Returns:
    'problems', N; 'exact', 'sampled' and 'difference' (mean, low, high).

  Raises:
    ValueError: shapes that do not fit.
  """
  exact, sampled = np.asarray(exact), np.asarray(sampled)
  count = np.asarray(count)
  if exact.shape != sampled.shape or count.shape != exact.shape[:1]:
    raise ValueError(
      f'exact {exact.shape}, sampled {sampled.shape} and count {count.shape} '
      'must be [N,K+1], [N,K+1] and [N].'
    )
  real = np.arange(exact.shape[1]) <= count[:, None]
  mean = lambda x: np.where(real, x, 0).sum(1, np.float64) / real.sum(1)
  return {
    'problems': len(count),
    'exact': interval(mean(exact), clusters),
    'sampled': interval(mean(sampled), clusters),
    'difference': interval(mean(exact) - mean(sampled), clusters),
  }


def tokens_to_levels(
  budgets: Sequence[float], curve: Sequence[float]
) -> dict[str, float | None]:
  """Returns the tokens at which a curve reaches 0.1, 0.2 ... 0.9, or None."""
  found = {
    str(level): statistics.tokens_to_accuracy(budgets, curve, level)
    for level in LEVELS
  }
  return {k: None if np.isnan(v) else v for k, v in found.items()}


def interval(
  values: np.ndarray, clusters: np.ndarray | None = None
) -> dict[str, float]:
  """Returns mean, low and high of a 95% bootstrap over problems.

  Args:
    values: f[N], one a trace.
    clusters: i[N], problem of each trace; None: a problem each.
  """
  return statistics.bootstrap_mean(values, clusters=clusters)._asdict()


def normalized(curves: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
  """Returns the normalised regret, with a bootstrap interval over problems.

  Args:
    curves: f[N,H+1], each trace's J at 0 ... H tokens; H is the horizon.
    clusters: i[N], problem of each trace.
  """
  return interval(1 - eval_regrets.normalized_area(curves), clusters)
