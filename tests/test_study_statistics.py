"""Tests of meta_rl.study_statistics: by hand, and against scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from meta_rl import study_statistics as stats
from meta_rl.statistics import Interval


@pytest.mark.parametrize(
  # Any printed table of Student's t, two-sided 95%.
  'df, value',
  [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622)],
)
def test_t_quantile_of_the_tables(df, value):
  assert stats.t_quantile(df) == pytest.approx(value, abs=1e-4)


def test_t_quantile_against_scipy():
  for df in (1, 2, 3, 4, 5, 8, 29, 30, 200):
    for level in (0.5, 0.9, 0.95, 0.999):
      wanted = scipy.stats.t.ppf((1 + level) / 2, df)
      assert stats.t_quantile(df, level) == pytest.approx(wanted, rel=1e-9)


def test_mean_interval_by_hand():
  # Mean 3, variance ((1)^2 + 0 + (1)^2) / 2 = 1, so 3 -+ 4.3027 / sqrt(3).
  found = stats.mean_interval([2.0, 3.0, 4.0])
  assert found == pytest.approx((3.0, 3 - 2.48414, 3 + 2.48414), abs=1e-5)
  # Equal seeds: an interval of no width.
  assert stats.mean_interval([0.5] * 4) == Interval(0.5, 0.5, 0.5)
  one = stats.mean_interval([0.25])
  assert one.mean == 0.25
  assert math.isnan(one.low)
  assert math.isnan(one.high)


def test_coverage():
  """95% of intervals over 5 seeds hold the truth; a normal's would not."""
  draws = np.random.default_rng(0).normal(size=(4000, 5))
  held = [
    found.low <= 0 <= found.high for found in map(stats.mean_interval, draws)
  ]
  # The standard error of a share of 0.95 of 4000 is 0.0034.
  assert np.mean(held) == pytest.approx(0.95, abs=4 * 0.0034)


def test_paired_takes_the_seeds_of_both():
  # Differences .1, .1, .4: mean .2, deviation sqrt(.06 / 2), over sqrt(3) .1.
  a = {0: 0.6, 1: 0.7, 2: 1.0, 5: 99.0}
  b = {0: 0.5, 1: 0.6, 2: 0.6, 7: -99.0}
  found = stats.paired(a, b)
  assert found.seeds == (0, 1, 2)
  half = 4.30265 * 0.1
  assert found.difference == pytest.approx((0.2, 0.2 - half, 0.2 + half), 1e-4)
  # What the seed moves in both is gone.
  luck = {0: 3.0, 1: -2.0, 2: 8.0}
  moved = stats.paired(
    {s: a[s] + luck[s] for s in luck}, {s: b[s] + luck[s] for s in luck}
  )
  assert moved.difference == pytest.approx(found.difference)
  assert stats.paired({0: 1.0}, {1: 1.0}) is None


def test_gain_ratio_by_hand():
  base = [0.5, 0.5, 0.5]
  reference = [0.59, 0.60, 0.61]  # gains of .09, .10, .11
  method = [0.68, 0.70, 0.72]  # twice as much each
  found = stats.gain_ratio(method, base, reference)
  # Numerator and denominator move together.
  assert found == pytest.approx((2.0, 2.0, 2.0))
  # Regret falls: both gains are negative, the ratio keeps its sense.
  down = [[1 - x for x in xs] for xs in (method, base, reference)]
  assert stats.gain_ratio(*down).mean == pytest.approx(2.0)
  spread = stats.gain_ratio([0.6, 0.7, 0.8], base, reference)
  assert spread.mean == pytest.approx(2.0)
  # The ends are where the t interval of d - r g begins or ends at 0.
  for end in (spread.low, spread.high):
    rest = stats.mean_interval(
      np.subtract([0.1, 0.2, 0.3], end * np.array([0.09, 0.10, 0.11]))
    )
    assert min(abs(rest.low), abs(rest.high)) == pytest.approx(0, abs=1e-9)
  assert spread.low < 2 < spread.high
  # By hand: d .1, .2, .3 and g .09, .10, .11 have variances .01, .0001 and
  # covariance .001; weight 4.30265^2 / 3 = 6.17095. So a = .01 - .000617
  # = .009383, b = .02 - .006171 = .013829, c = .04 - .061710 = -.021710 and
  # (b -+ sqrt(b^2 - a c)) / a = (.013829 -+ .019873) / .009383.
  assert spread == pytest.approx((2.0, -0.64415, 3.59187), abs=2e-4)
  # Exactly as wide as the t interval of the gain where the reference's is sure.
  sure = stats.gain_ratio([0.6, 0.7, 0.8], base, [0.6, 0.6, 0.6])
  alone = stats.mean_interval([1.0, 2.0, 3.0])
  assert sure == pytest.approx(alone)


def test_gain_ratios_cover():
  """95% of intervals over 4 seeds hold the truth, 1.5."""
  draws = np.random.default_rng(0).normal(size=(1000, 2, 4))
  held = 0
  for own, gain in draws:
    reference = 1.0 + 0.1 * gain
    found = stats.gain_ratio(
      1.5 + 0.15 * gain + 0.1 * own, [0.0] * 4, reference
    )
    held += found.low <= 1.5 <= found.high
  # The standard error of a share of 0.95 of 1000 is 0.0069.
  assert held / 1000 == pytest.approx(0.95, abs=4 * 0.0069)


def test_a_gain_that_may_be_0_gives_no_ratio():
  base = [0.5, 0.5, 0.5]
  # Gains .01, .10, .19: .1 -+ 4.3 * .09 / sqrt(3) = .1 -+ .22 holds 0, though
  # no resample of three positive gains does.
  found = stats.gain_ratio([0.6, 0.7, 0.8], base, [0.51, 0.60, 0.69])
  assert found == pytest.approx((2.0, -math.inf, math.inf))
  found = stats.gain_ratio([0.6], [0.5], [0.55])
  assert found.mean == pytest.approx(2.0)
  assert math.isnan(found.low)
  nothing = stats.gain_ratio([0.6, 0.7], [0.5, 0.5], [0.5, 0.5])
  assert math.isnan(nothing.mean)
  assert (nothing.low, nothing.high) == (-math.inf, math.inf)


def test_reach_by_hand():
  x = [0, 10, 20]
  curves = {0: (x, [0.2, 0.4, 0.6]), 1: (x, [0.2, 0.6, 0.6]), 2: (x, [0.1] * 3)}
  # Seed 0 is at .5 after 15 tokens, seed 1 at .4 after 5; seed 2 never is.
  found = stats.reach(curves, {0: 0.5, 1: 0.4, 2: 0.5, 3: 0.1})
  assert (found.reached, found.of) == (2, 3)
  # Mean 10, deviation sqrt(50), over sqrt(2): 5; t of one degree 12.7062.
  assert found.needed == pytest.approx((10, 10 - 63.531, 10 + 63.531), 1e-4)
  never = stats.reach({2: curves[2]}, {2: 0.5})
  assert (never.reached, never.of) == (0, 1)
  assert math.isnan(never.needed.mean)
  assert stats.reach({}, {0: 1.0}) is None


def test_mean_curve_by_hand():
  one, two = ([0, 10], [0.0, 1.0]), ([5, 20], [0.5, 0.5])
  mean, low, high = stats.mean_curve([one, two], [0, 5, 8, 10, 20])
  # Both have values from 5 to 10 alone: (.5 + .5)/2, (.8 + .5)/2, (1 + .5)/2.
  np.testing.assert_allclose(mean, [np.nan, 0.5, 0.65, 0.75, np.nan])
  # At 8 the deviation is .3 / sqrt(2), over sqrt(2): .15.
  assert high[2] - mean[2] == pytest.approx(12.7062 * 0.15, abs=1e-4)
  assert mean[2] - low[2] == pytest.approx(12.7062 * 0.15, abs=1e-4)
  assert high[1] == mean[1]
  mean, low, _ = stats.mean_curve([one], [0, 5])
  np.testing.assert_allclose(mean, [0.0, 0.5])
  assert np.isnan(low).all()


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: stats.t_quantile(0), 'df=0'),
    (lambda: stats.t_quantile(2.5), 'df=2.5'),
    (lambda: stats.t_quantile(2, 1.0), 'level=1.0'),
    (lambda: stats.mean_interval([]), 'one figure a seed'),
    (lambda: stats.mean_interval([[1.0]]), 'one figure a seed'),
    (lambda: stats.mean_interval([1.0, math.nan]), 'values holds NaN'),
    (lambda: stats.gain_ratio([1.0], [1.0, 2.0], [1.0]), 'the same seeds'),
    (lambda: stats.mean_curve([], [0]), 'There is no curve'),
  ],
)
def test_what_cannot_be_summed_up_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
