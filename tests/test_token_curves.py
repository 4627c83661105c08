"""Reading and integrating a curve, by hand and against meta_rl.regret."""

import numpy as np
import pytest

from meta_rl import regret, token_curves
from meta_rl.token_curves import area, as_curve, at_tokens, with_origin

X = np.array([0.0, 100, 300])
Y = np.array([0.2, 0.2, 0.6])


@pytest.mark.parametrize(
  'form, horizon, expected',
  [
    # 100 · .2 + 200 · (.2 + .6)/2 + 100 · .6 = 160 of 400.
    ('trapezoid', 400, 160 / 400),
    # At 200 the line is at .4: 20 + 100 · .3 = 50.
    ('trapezoid', 200, 50 / 200),
    # A horizon at a point reads that point: 20 + 80.
    ('trapezoid', 300, 100 / 300),
    # 300 · .2 + 100 · .6 = 120.
    ('step', 400, 120 / 400),
    ('step', 200, 0.2),
    ('step', 300, 0.2),
  ],
)
def test_area_by_hand(form, horizon, expected):
  assert area(X, Y, horizon, form=form) == pytest.approx(expected)


def test_beyond_the_horizon_without_a_cut():
  # Up to 300 it is 100, and 100 tokens back to 200 at .6 take 60 away.
  assert area(X, Y, 200, cut=False) == pytest.approx((100 - 60) / 200)
  assert area(X, Y, 400, cut=False) == pytest.approx(160 / 400)


@pytest.mark.parametrize('form', token_curves.FORMS)
def test_area_is_that_of_regret(form):
  rng = np.random.default_rng(0)
  size = 5  # one shape, one program
  for _ in range(50):
    x = np.sort(rng.integers(0, 900, size)).astype(float)
    y = rng.uniform(size=size)
    x, y = with_origin(x, y, y[0])
    horizon = float(rng.integers(1, 1200))
    expected = 1 - regret.normalized(
      y.astype(np.float32), x.astype(np.float32), horizon=horizon, form=form
    )
    assert area(x, y, horizon, form=form) == pytest.approx(
      float(expected), abs=2e-6
    )


def test_reading_by_hand():
  at = [0, 50, 100, 150, 300, 999]
  np.testing.assert_allclose(
    at_tokens(X, Y, at), [0.2, 0.2, 0.2, 0.3, 0.6, 0.6]
  )
  np.testing.assert_allclose(
    at_tokens(X, Y, at, form='step'), [0.2, 0.2, 0.2, 0.2, 0.6, 0.6]
  )
  # Before the first point its value; of two at 100 tokens the later one.
  x, y = np.array([100.0, 100, 200]), np.array([0.1, 0.5, 0.7])
  np.testing.assert_allclose(at_tokens(x, y, [0, 99, 100, 150]),
                             [0.1, 0.1, 0.5, 0.6])  # fmt: skip
  assert at_tokens(x, y, 100, form='step') == 0.5
  assert at_tokens(x[:1], y[:1], 500) == 0.1


@pytest.mark.parametrize(
  'tokens, accuracy, line',
  [
    ([], [], 'one accuracy a number of tokens'),
    ([1, 2], [0.5], r'tokens has shape \(2,\) and accuracy \(1,\)'),
    ([[1]], [[1]], r'shape \(1, 1\)'),
    ([-1], [0.5], 'finite and >= 0'),
    ([1], [float('nan')], 'accuracy finite'),
  ],
)
def test_no_curve(tokens, accuracy, line):
  with pytest.raises(ValueError, match=line):
    as_curve(tokens, accuracy)
