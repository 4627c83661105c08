"""Learn then Test: p-values, the fixed sequence, and what it guarantees."""

import math

import numpy as np
import pytest
import scipy.stats

from meta_rl import calibration


def test_p_value_by_hand():
  # no loss in 100: h(0, .1) = log(1/.9), so p = .9^100, below e .9^100
  assert calibration.hoeffding_bentkus(0.0, 100, 0.1) == pytest.approx(0.9**100)
  # as bad as alpha: exp(0) = 1
  assert calibration.hoeffding_bentkus(0.1, 100, 0.1) == 1
  assert calibration.hoeffding_bentkus(0.7, 100, 0.1) == 1


def test_p_value_equals_its_definition():
  for n, risk, alpha in (
    (4000, 0.005, 0.01),
    (50, 0.13, 0.3),
    (900, 0.0, 0.01),
  ):
    a = min(risk, alpha)
    h = (1 - a) * math.log((1 - a) / (1 - alpha))
    h += a * math.log(a / alpha) if a else 0
    count = math.ceil(n * risk - 1e-9)
    expected = min(
      math.exp(-n * h), math.e * scipy.stats.binom.cdf(count, n, alpha)
    )
    found = calibration.hoeffding_bentkus(risk, n, alpha)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_mean_of_whole_losses_is_not_rounded_up():
  # 3 of 7 losses: 7 * (3 / 7) is 3 whatever rounding makes of it
  risks = [calibration.hoeffding_bentkus(k / 7, 7, 0.9) for k in range(7)]
  bentkus = [math.e * scipy.stats.binom.cdf(k, 7, 0.9) for k in range(7)]
  assert all(r <= b + 1e-12 for r, b in zip(risks, bentkus))


@pytest.mark.parametrize('n, alpha', [(200, 0.05), (4000, 0.01)])
def test_p_value_is_valid(n, alpha):
  """At a risk of alpha, P(p <= u) <= u: summed over all outcomes."""
  counts = np.arange(0, min(n, 400) + 1)
  chance = scipy.stats.binom.pmf(counts, n, alpha)
  p = np.array([calibration.hoeffding_bentkus(k / n, n, alpha) for k in counts])
  for u in (0.01, 0.05, 0.1, 0.3):
    assert chance[p <= u].sum() <= u
  assert chance[p <= 0.1].sum() > 0.005  # and it is of use


def test_binomial_cdf():
  for k, n, p in ((-1, 5, 0.3), (0, 5, 0.3), (3, 5, 0.3), (9, 5, 0.3)):
    expected = scipy.stats.binom.cdf(k, n, p)
    assert calibration.binomial_cdf(k, n, p) == pytest.approx(expected)


def losses_of(*counts, n=1000):
  """Losses of n traces with so many ones in each column."""
  return (np.arange(n)[:, None] < np.asarray(counts)).astype(float)


def test_fixed_sequence_ends_at_the_first_failure():
  # alpha .05 of 1000: 0, 10 and 20 pass; 60 fails; 0 behind it is not reached
  found = calibration.fixed_sequence(
    losses_of(0, 10, 20, 60, 0), [5, 4, 3, 2, 1], alpha=0.05, delta=0.1
  )
  assert found.threshold == 3
  assert found.risk == 0.02
  assert found.tested == 4
  assert found.p_value == calibration.hoeffding_bentkus(0.02, 1000, 0.05)


def test_no_threshold_passes():
  found = calibration.fixed_sequence(losses_of(60, 0), [2, 1], alpha=0.05)
  assert found == (None, None, None, 1)


def test_few_traces_show_nothing():
  # .99^200 = .13 > delta: without one loss, 200 traces are too few
  few = calibration.fixed_sequence(losses_of(0, n=200), [1.0])
  assert few.threshold is None
  assert calibration.fixed_sequence(losses_of(0, n=300), [1.0]).threshold == 1


def test_the_guarantee():
  """Risks that grow along the sequence: the choice exceeds alpha rarely."""
  rng = np.random.default_rng(0)
  risks = np.linspace(0, 0.2, 41)
  over = chosen = 0
  for _ in range(300):
    losses = rng.random((500, 1)) < risks
    found = calibration.fixed_sequence(losses, risks, alpha=0.1, delta=0.1)
    over += found.threshold is not None and found.threshold > 0.1
    chosen += found.threshold or 0
  assert over <= 300 * 0.1 + 3 * math.sqrt(300 * 0.1 * 0.9)
  assert chosen / 300 > 0.05  # not by choosing nothing


def test_first_stop():
  stopping = np.array([[0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(
    calibration.first_stop(stopping, np.array([3, 3, 0])), [2, 3, 0]
  )


def test_threshold_stops():
  scores = np.array([[0.9, 0.4, 0.1, 0.1], [0.2, 0.3, 0.8, 0.8]])
  count = np.array([2, 2])
  episodes = np.tile([0, 1, 2, np.nan], (2, 1))
  stops = lambda kind, *t: calibration.threshold_stops(
    kind, episodes if kind == 'episodes' else scores, count, t
  ).tolist()
  # stop where the score is high enough, or small enough
  assert stops('confidence', 0.5, 1.0) == [[0, 2], [2, 2]]
  assert stops('progress', 0.5, 0.0) == [[1, 0], [2, 2]]
  assert stops('episodes', 0, 1, 7) == [[0, 0], [1, 1], [2, 2]]


def test_from_safest():
  losses = losses_of(40, 5, 0, 0, 30)
  found = calibration.from_safest([5, 4, 3, 2, 1], losses)
  assert found.tolist() == [3, 2, 1]


def test_grid_begins_with_what_hardly_stops():
  scores = np.array([0.1, 0.5, np.nan, 0.9, np.inf])
  # Before all quantiles comes a threshold that no score reaches.
  low_first = calibration.grid('progress', scores, size=3)
  assert low_first.tolist() == [-1, 0.1, 0.5, 0.9]
  high_first = calibration.grid('confidence', scores, size=3)
  assert high_first.tolist() == [2, 0.9, 0.5, 0.1]
  streaks = np.array([1.0, 2.0, 3.0])
  # 4 equal answers were never seen: the rule that does not stop
  assert calibration.grid('agreement', streaks).tolist() == [4, 3, 2, 1]
  assert calibration.grid('episodes', streaks).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
  'call, said',
  [
    (
      lambda: calibration.hoeffding_bentkus(1.5, 10, 0.1),
      'risk must be >= 0 and <= 1',
    ),
    (lambda: calibration.hoeffding_bentkus(0.1, 0, 0.1), 'n must be >= 1'),
    (lambda: calibration.hoeffding_bentkus(0.1, 10, 0), 'alpha must be > 0'),
    (
      lambda: calibration.fixed_sequence(np.zeros((0, 1)), [1.0]),
      r'must be \[N,M\]',
    ),
    (
      lambda: calibration.fixed_sequence(np.array([[2.0], [-2.0]] * 99), [1.0]),
      'losses lie in -2 ... 2',
    ),
    (
      lambda: calibration.grid('progress', np.array([np.nan])),
      'no finite|no b',
    ),
    (
      lambda: calibration.fixed_sequence(np.zeros((9, 2)), [1.0]),
      'M=1 thresholds',
    ),
    (
      lambda: calibration.fixed_sequence(np.zeros((9, 1)), [1.0], delta=1),
      'delta must be > 0',
    ),
  ],
)
def test_bad_input(call, said):
  with pytest.raises(ValueError, match=said):
    call()
