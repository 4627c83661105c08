"""Golden values, oracles and edges of meta_rl.statistics."""

import numpy as np
import pytest

from meta_rl import statistics as stats


def test_bootstrap_mean_matches_a_loop():
  values = np.array([0.0, 1.0, 4.0, 2.0, 2.0])
  rng = np.random.default_rng(3)
  drawn = [values[row].mean() for row in rng.integers(5, size=(400, 5))]
  low, high = np.quantile(drawn, [0.05, 0.95])
  got = stats.bootstrap_mean(values, num_samples=400, seed=3, level=0.9)
  np.testing.assert_allclose(got, (1.8, low, high))


def test_bootstrap_mean_has_the_width_of_the_normal_theory():
  values = np.random.default_rng(0).normal(2.0, 3.0, 900)
  got = stats.bootstrap_mean(values)
  half = 1.96 * values.std() / 30
  assert got.high - got.low == pytest.approx(2 * half, rel=0.06)
  assert got.mean == pytest.approx(values.mean())


def test_paired_bootstrap_golden():
  # a = b + 0.5 on every problem: no spread is left in the difference.
  b = np.array([1.0, 2.0, 6.0])
  got = stats.paired_bootstrap(b + 0.5, b)
  np.testing.assert_allclose(got, (0.5, 0.5, 0.5))
  # a = 0.75 b: relative change -25% in every resample.
  got = stats.paired_bootstrap(0.75 * b, b, statistic='relative')
  np.testing.assert_allclose(got, (-0.25, -0.25, -0.25))


def test_pairing_beats_two_separate_intervals():
  rng = np.random.default_rng(1)
  b = rng.normal(0, 1, 300)
  a = b - 0.1 + rng.normal(0, 0.1, 300)
  paired = stats.paired_bootstrap(a, b)
  assert paired.high < 0
  shuffled = stats.paired_bootstrap(a, rng.permutation(b))
  assert width(shuffled) > 5 * width(paired)


def width(interval):
  return interval.high - interval.low


def test_clusters_are_drawn_together():
  # Each problem eight times: the copies add nothing, so the interval must be
  # that of the problems and not sqrt(8) narrower.
  values = np.random.default_rng(2).normal(size=50)
  copies = np.repeat(values, 8)
  clusters = np.repeat(np.arange(50)[::-1] * 7, 8)
  alone = stats.bootstrap_mean(values, seed=5, num_samples=1500)
  together = stats.bootstrap_mean(
    copies, seed=5, num_samples=1500, clusters=clusters
  )
  naive = stats.bootstrap_mean(copies, seed=5, num_samples=1500)
  assert width(together) == pytest.approx(width(alone), rel=0.12)
  assert width(naive) == pytest.approx(width(alone) / np.sqrt(8), rel=0.15)


def test_clusters_of_different_sizes_weigh_by_rows():
  # Clusters {1, 1, 1} and {5}: the resamples are 1, 2 and 5.
  got = stats.bootstrap_mean(
    [1.0, 1.0, 1.0, 5.0], clusters=[0, 0, 0, 9], level=0.99
  )
  np.testing.assert_allclose(got, (2.0, 1.0, 5.0))


def test_blocks_do_not_change_the_draws(monkeypatch):
  values = np.random.default_rng(0).normal(size=(20, 3))
  whole = stats.bootstrap_curve(values, num_samples=50)
  monkeypatch.setattr(stats, '_BLOCK', 70)
  for a, b in zip(
    whole, stats.bootstrap_curve(values, num_samples=50), strict=True
  ):
    np.testing.assert_allclose(a, b)


def test_bootstrap_curve_is_bootstrap_mean_at_each_point():
  values = np.random.default_rng(4).uniform(size=(30, 4))
  mean, low, high = stats.bootstrap_curve(values, num_samples=200)
  for i in range(4):
    np.testing.assert_allclose(
      stats.bootstrap_mean(values[:, i], num_samples=200),
      (mean[i], low[i], high[i]),
    )


def test_gain_ratio():
  base = np.array([0.2, 0.4, 0.6])
  got = stats.gain_ratio(base + 0.3, base, base + 0.1)
  np.testing.assert_allclose(got, (3.0, 3.0, 3.0))
  # The reference's gain is +1, -1, +0.1: its sign is not resolved.
  got = stats.gain_ratio(base + 0.3, base, base + [1.0, -1.0, 0.1])
  assert got.mean == pytest.approx(0.3 / (0.1 / 3))
  assert (got.low, got.high) == (-np.inf, np.inf)
  with pytest.raises(ValueError, match='relative to is 0'):
    stats.gain_ratio(base + 0.3, base, base)


_SUCCESS = np.array([[0.1, 0.5, 0.9, 0.9], [0.3, 0.2, 0.2, 0.2]], np.float32)
_ENDS = np.array([[4, 13, 22, 22], [6, 10, 10, 10]], np.int32)
_COUNT = np.array([2, 1], np.int32)


def test_accuracy_curve_golden():
  # Elapsed: row 0 has boundaries at 0, 9, 18; row 1 at 0, 4.
  #   b       0    3    4    9    17   18   99
  #   row 0   .1   .1   .1   .5   .5   .9   .9
  #   row 1   .3   .3   .2   .2   .2   .2   .2
  budgets = [0, 3, 4, 9, 17, 18, 99]
  curve = stats.accuracy_curve(_SUCCESS, _ENDS, _COUNT, budgets=budgets)
  assert curve.dtype == np.float32
  np.testing.assert_allclose(
    curve, [0.2, 0.2, 0.15, 0.35, 0.35, 0.55, 0.55], rtol=1e-6
  )


def test_accuracy_curve_ignores_what_lies_past_count():
  success = _SUCCESS.copy()
  success[0, 3], success[1, 2:] = 7.0, 7.0
  np.testing.assert_array_equal(
    stats.accuracy_curve(success, _ENDS, _COUNT, budgets=[50]),
    stats.accuracy_curve(_SUCCESS, _ENDS, _COUNT, budgets=[50]),
  )


def test_regret_at_budgets_golden():
  # Row 0, H = 20: 9 tokens at gap .9, 9 at .5, then .1.
  #   R(9) = 8.1/20, R(20) = (8.1 + 4.5 + 0.2)/20 = 0.64
  # Row 1: 4 tokens at gap .7, then .8: R(9) = (2.8 + 4)/20,
  #   R(20) = (2.8 + 12.8)/20 = 0.78
  got = stats.regret_at_budgets(
    _SUCCESS, _ENDS, _COUNT, budgets=[0, 9, 20], horizon=20
  )
  np.testing.assert_allclose(
    got, [[0, 0.405, 0.64], [0, 0.34, 0.78]], rtol=1e-6
  )


def test_regret_at_budgets_is_the_integral_of_the_accuracy_curve():
  rng = np.random.default_rng(0)
  ends = np.cumsum(rng.integers(0, 6, (5, 8)), 1).astype(np.int32)
  count = rng.integers(0, 8, 5)
  success = rng.uniform(size=(5, 8))
  tokens = np.arange(60)
  curve = stats.success_at_budgets(success, ends, count, budgets=tokens)
  got = stats.regret_at_budgets(
    success, ends, count, budgets=[7, 60], horizon=30, comparator=0.8
  )
  for column, budget in enumerate((7, 60)):
    np.testing.assert_allclose(
      got[:, column], (0.8 - curve[:, :budget]).sum(1) / 30
    )


def test_tokens_to_accuracy():
  budgets, curve = [0, 10, 20, 40], [0.1, 0.3, 0.2, 0.6]
  assert stats.tokens_to_accuracy(budgets, curve, 0.2) == pytest.approx(5)
  assert stats.tokens_to_accuracy(budgets, curve, 0.5) == pytest.approx(35)
  assert stats.tokens_to_accuracy(budgets, curve, 0.6) == 40
  assert stats.tokens_to_accuracy(budgets, curve, 0.05) == 0
  assert np.isnan(stats.tokens_to_accuracy(budgets, curve, 0.7))
  assert stats.tokens_to_accuracy([5], [0.5], 0.5) == 5


def test_relative_token_efficiency():
  budgets = [0, 10, 20]
  base, method = [0.0, 0.2, 0.4], [0.0, 0.4, 0.8]
  # 0.4 costs the base 20 tokens and the method 10.
  efficiency = stats.relative_token_efficiency
  assert efficiency(budgets, method, budgets, base) == pytest.approx(2)
  assert efficiency(budgets, base, budgets, base) == 1
  assert np.isnan(efficiency(budgets, base, budgets, method))
  assert efficiency(budgets, method, budgets, base, level=0.1) == (
    pytest.approx(2)
  )
  assert efficiency(budgets, [0.5] * 3, budgets, base) == np.inf
  assert efficiency(budgets, [0.5] * 3, budgets, [0.5] * 3) == 1


def test_held():
  values = np.arange(12.0).reshape(2, 3, 2)
  found = stats.held(values, [1, 0])
  assert found.tolist() == [
    [[0, 1], [2, 3], [2, 3]],
    [[6, 7], [6, 7], [6, 7]],
  ]
  assert stats.held([[1, 2, 3]], [2]).tolist() == [[1, 2, 3]]


def test_monotone():
  np.testing.assert_array_equal(
    stats.monotone([[1, 3, 2], [0, -1, 5]]), [[1, 3, 3], [0, 0, 5]]
  )


@pytest.mark.parametrize(
  ('call', 'line'),
  [
    (lambda: stats.bootstrap_mean([]), 'empty'),
    (lambda: stats.bootstrap_mean([1.0, np.nan]), 'NaN or infinite'),
    (lambda: stats.bootstrap_mean([[1.0]]), r'shape \(1, 1\)'),
    (lambda: stats.bootstrap_mean([1.0], level=95), 'level=95'),
    (lambda: stats.bootstrap_mean([1.0], num_samples=0), 'num_samples=0'),
    (lambda: stats.bootstrap_mean([1.0], clusters=[1, 2]), r'\(2,\)'),
    (lambda: stats.bootstrap_curve([1.0]), r'\[N, M\]'),
    (lambda: stats.paired_bootstrap([1.0], [1.0, 2.0]), 'a 1, b 2'),
    (
      lambda: stats.paired_bootstrap([1.0], [1.0], statistic='ratio'),
      "'difference' or 'relative'",
    ),
    (
      lambda: stats.paired_bootstrap([1.0], [0.0], statistic='relative'),
      'relative to is 0',
    ),
    (lambda: stats.tokens_to_accuracy([0, 0], [0, 1], 1), 'increasing'),
    (lambda: stats.tokens_to_accuracy([0, 1], [0], 1), 'one accuracy'),
    (
      lambda: stats.accuracy_curve(_SUCCESS, _ENDS, _COUNT, budgets=[-1]),
      'negative',
    ),
    (
      lambda: stats.accuracy_curve(_SUCCESS, _ENDS[:1], _COUNT, budgets=[1]),
      r'\[B, K\+1\]',
    ),
    (
      lambda: stats.accuracy_curve(
        _SUCCESS, _ENDS[:, ::-1], _COUNT, budgets=[1]
      ),
      'goes back',
    ),
    (
      lambda: stats.accuracy_curve(_SUCCESS, _ENDS, _COUNT + 2, budgets=[1]),
      r'0\.\.3',
    ),
    (
      lambda: stats.accuracy_curve(_SUCCESS, _ENDS, _COUNT[:1], budgets=[1]),
      'one a trace',
    ),
    (
      lambda: stats.regret_at_budgets(
        _SUCCESS, _ENDS, _COUNT, budgets=[1], horizon=0
      ),
      'horizon=0',
    ),
  ],
)
def test_refusals(call, line):
  with pytest.raises(ValueError, match=line):
    call()


def test_wrong_dtype():
  with pytest.raises(TypeError, match='ends has dtype float64'):
    stats.accuracy_curve(_SUCCESS, _ENDS * 1.0, _COUNT, budgets=[1])
