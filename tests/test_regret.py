"""Tests of meta_rl.regret."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import episodes, regret

# Rows of 3, 1 and 0 episodes; past count J repeats.
SUCCESS = jnp.array([[0.1, 0.4, 0.3, 0.9], [0.5, 0.75, 0.75, 0.75], [0.2] * 4])
COUNT = jnp.array([3, 1, 0], jnp.int32)
ENDS = jnp.array([[4, 6, 9, 12], [4, 14, 14, 14], [4] * 4], jnp.int32)


def test_progress_by_hand_and_telescoping():
  got = regret.progress(SUCCESS, COUNT)
  want = [[0.3, -0.1, 0.6], [0.25, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(got, want, atol=1e-7)
  np.testing.assert_allclose(
    got.sum(axis=1), SUCCESS[:, -1] - SUCCESS[:, 0], atol=1e-7
  )


@pytest.mark.parametrize(
  'hits, kept',
  [(0.25, 0.99), (1, 0.92), (2, 0.72), (3, 0.50), (4, 0.30), (5, 0.17)],
)
def test_what_the_outcome_keeps_of_what_progress_says(hits, kept):
  """Fisher information about the hit rate q, of K tries, u = q K = `hits`.

  Where the first hit ends a search, 1 - (1 - q)^t of the traces have hit after
  t tries. Progress says at which try, the outcome only whether; with
  p = 1 - e^-u for large K:

    all       p / q^2
    outcome   (dp/dq)^2 / (p (1 - p)) = K^2 e^-u / (1 - e^-u)
    share     u^2 / ((e^u - 1)(1 - e^-u)) = ((u/2) / sinh(u/2))^2
  """
  tries = 4000
  rate = hits / tries
  # Every trace there can be: a hit at try t, or none. J is 0 before it.
  hit = np.arange(tries + 1)
  boundary = np.arange(0, tries + 1, 100)  # an episode is 100 tries
  success = (hit[:, None] < boundary).astype(np.float32)
  chance = np.append(rate * (1 - rate) ** hit[:-1], (1 - rate) ** tries)
  # d log chance / dq
  score = np.append(1 / rate - hit[:-1] / (1 - rate), -tries / (1 - rate))

  def information(seen):
    """E[E[score | seen]^2], of what each trace shows."""
    _, group = np.unique(seen, axis=0, return_inverse=True)
    mass = np.bincount(group.ravel(), chance)
    return (np.bincount(group.ravel(), chance * score) ** 2 / mass).sum()

  count = np.full(tries + 1, len(boundary) - 1)
  said = regret.progress(success, count)
  whole = information(said)
  assert whole == pytest.approx((1 - np.exp(-hits)) / rate**2, rel=2e-3)
  outcome = information(said.sum(1))
  assert outcome / whole == pytest.approx(
    (hits / 2 / np.sinh(hits / 2)) ** 2, rel=3e-3
  )
  assert outcome / whole == pytest.approx(kept, abs=0.006)
  # The area above the curve knows when, too; up to a horizon beyond the last
  # try, or else that one earns nothing.
  ends = np.tile(boundary, (tries + 1, 1))
  area = regret.token_weighted(success, ends, horizon=2 * tries)
  assert information(np.round(area, 5)) == pytest.approx(whole, rel=1e-6)


def test_past_count_is_never_read():
  past = np.arange(4) > np.asarray(COUNT)[:, None]
  poisoned = jnp.where(past, jnp.nan, SUCCESS)
  np.testing.assert_array_equal(
    regret.progress(poisoned, COUNT), regret.progress(SUCCESS, COUNT)
  )
  grad = jax.grad(lambda s: (regret.progress(s, COUNT) ** 2).sum())(poisoned)
  assert np.isfinite(grad).all()
  grad = jax.grad(lambda s: (regret.cumulative(s, 1.0, COUNT) ** 2).sum())(
    poisoned
  )
  assert np.isfinite(grad).all()


def test_cumulative_by_hand():
  # 0.9 + 0.6 + 0.7 = 2.2; 0.5; an empty sum.
  got = regret.cumulative(SUCCESS, 1.0, COUNT)
  np.testing.assert_allclose(got, [2.2, 0.5, 0], atol=1e-6)
  # 0.9·3 − 0.8 = 1.9; 0.9 − 0.5 = 0.4.
  curve = jnp.full_like(SUCCESS, 0.9)
  got = regret.cumulative(SUCCESS, curve, COUNT)
  np.testing.assert_allclose(got, [1.9, 0.4, 0], atol=1e-6)
  np.testing.assert_allclose(
    regret.cumulative(SUCCESS, SUCCESS, COUNT), 0, atol=1e-7
  )


def test_token_weighted_by_hand():
  # Row 0, H = 10: J is .1 for 2 tokens, .4 for 3, .3 for 3 and .9 for 2:
  #   1 − (.2 + 1.2 + .9 + 1.8)/10 = .59
  # Row 1: .5 for 10 tokens, no room for the rest. Row 2: .2 throughout.
  got = regret.token_weighted(SUCCESS, ENDS, horizon=10)
  np.testing.assert_allclose(got, [0.59, 0.5, 0.8], atol=1e-6)
  # H = 4 clips: row 0 is .1·2 + .4·2 = 1 of 4.
  got = regret.token_weighted(SUCCESS, ENDS, horizon=4)
  np.testing.assert_allclose(got, [0.75, 0.5, 0.8], atol=1e-6)
  # H = 20: row 0 holds .9 for 12 tokens, row 1 .75 for 10.
  got = regret.token_weighted(SUCCESS, ENDS, horizon=20)
  np.testing.assert_allclose(got, [1 - 13.1 / 20, 0.375, 0.8], atol=1e-6)


def _integrate(values, ends, horizon):
  """Counts token by token: token t earns the last J measured at or before t."""
  rows = []
  for row, end in zip(values, ends - ends[:, :1], strict=True):
    held = [row[np.flatnonzero(end <= t)[-1]] for t in range(horizon)]
    rows.append(np.mean(held))
  return np.array(rows)


@pytest.mark.parametrize('horizon', [1, 7, 30, 100])
def test_token_weighted_against_a_token_walk(horizon):
  rng = np.random.default_rng(0)
  success = rng.random((8, 6)).astype(np.float32)
  curve = rng.random((8, 6)).astype(np.float32)
  ends = np.cumsum(rng.integers(1, 8, (8, 6)), axis=1).astype(np.int32)
  np.testing.assert_allclose(
    jax.jit(regret.token_weighted)(success, ends, horizon=horizon),
    1 - _integrate(success, ends, horizon),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    regret.token_weighted(success, ends, horizon=horizon, comparator=curve),
    _integrate(curve - success, ends, horizon),
    atol=1e-5,
  )


def test_token_weighted_does_not_depend_on_the_prompt():
  here = regret.token_weighted(SUCCESS, ENDS, horizon=10)
  there = regret.token_weighted(SUCCESS, ENDS + 17, horizon=10)
  np.testing.assert_array_equal(here, there)


def test_token_weighted_over_budgets():
  # Five tokens, budgets 2 and 4: J_0 for 2, J_1 for 2, J_2 for the rest of 8.
  cut = episodes.from_budgets(jnp.ones((1, 5), bool), budgets=(2, 4))
  success = jnp.array([[0.0, 0.5, 1.0]])
  got = regret.token_weighted(success, cut.ends, horizon=8)
  np.testing.assert_allclose(got, [1 - (0 + 1 + 4) / 8], atol=1e-7)


ACCURACY = jnp.array([0, 0.25, 0.5, 0.5])
TOKENS = jnp.array([1000, 4000, 8000, 12000])


@pytest.mark.parametrize(
  ('horizon', 'want'),
  [
    # (0,0) (1000,0) (4000,.25): 375, then 96·(.25 + .256)/2 = 24.288;
    # 1 − 399.288/4096
    (4096, 0.902518),
    # 375 + 1500 + 192·.5 = 1971; 1 − 1971/8192
    (8192, 0.759399),
    # 375 + 1500 + 2000 + 288·.5 (flat) = 4019; 1 − 4019/12288
    (12288, 0.672933),
    (500, 1.0),
  ],
)
def test_normalized_golden(horizon, want):
  got = regret.normalized(ACCURACY, TOKENS, horizon=horizon)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_normalized_step_by_hand():
  # 0 to 4000, .25 to 8000, .5 for 192 more: (1000 + 96)/8192.
  got = regret.normalized(ACCURACY, TOKENS, horizon=8192, form='step')
  np.testing.assert_allclose(got, 1 - 1096 / 8192, atol=1e-6)


def test_normalized_step_is_token_weighted():
  tokens = ENDS - ENDS[:, :1]
  for horizon in (4, 10, 20):
    np.testing.assert_allclose(
      regret.normalized(SUCCESS, tokens, horizon=horizon, form='step'),
      regret.token_weighted(SUCCESS, ENDS, horizon=horizon),
      atol=1e-6,
    )


@pytest.mark.parametrize('horizon', [3.0, 11.0, 40.0])
def test_normalized_against_dense_interpolation(horizon):
  rng = np.random.default_rng(1)
  accuracy = rng.random((3, 5))
  tokens = np.cumsum(rng.integers(1, 8, (3, 5)), axis=1)
  curve = rng.random((3, 5))
  fine = (np.arange(200_000) + 0.5) * horizon / 200_000
  area, area_curve = [
    np.array(
      [
        np.interp(fine, np.r_[0, t], np.r_[origin(y), y]).mean()
        for t, y in zip(tokens, values, strict=True)
      ]
    )
    for values, origin in ((accuracy, lambda y: 0), (curve, lambda y: y[0]))
  ]
  accuracy, curve = accuracy.astype('f4'), curve.astype('f4')
  got = regret.normalized(accuracy, tokens, horizon=horizon)
  np.testing.assert_allclose(got, 1 - area, atol=1e-5)
  got = regret.normalized(accuracy, tokens, horizon=horizon, comparator=curve)
  np.testing.assert_allclose(got, area_curve - area, atol=1e-5)


@pytest.mark.parametrize('form', regret.FORMS)
def test_a_flat_comparator_curve_equals_the_scalar(form):
  kwargs = {'horizon': 9000, 'form': form}
  curve = regret.normalized(
    ACCURACY, TOKENS, comparator=jnp.full(4, 0.8), **kwargs
  )
  scalar = regret.normalized(ACCURACY, TOKENS, comparator=0.8, **kwargs)
  np.testing.assert_allclose(curve, scalar, atol=1e-6)


def test_a_point_at_zero_takes_the_place_of_the_origin():
  # From (0, .5) to (10, 1): mean .75. Through (0, 0) it would be .5.
  got = regret.normalized(jnp.array([0.5, 1.0]), jnp.array([0, 10]), horizon=10)
  np.testing.assert_allclose(got, 0.25, atol=1e-7)


def test_tokens_running_backwards_are_lifted():
  accuracy = jnp.array([0.2, 0.4, 0.6])
  lifted = regret.normalized(accuracy, jnp.array([10, 10, 30]), horizon=40)
  got = regret.normalized(accuracy, jnp.array([10, 5, 30]), horizon=40)
  np.testing.assert_array_equal(got, lifted)


def test_normalized_broadcasts_and_maps():
  batch = jnp.stack([ACCURACY, ACCURACY / 2])
  got = regret.normalized(batch, TOKENS, horizon=8192)
  np.testing.assert_allclose(got, [1 - 1971 / 8192, 1 - 985.5 / 8192], 1e-6)
  mapped = jax.vmap(lambda a: regret.normalized(a, TOKENS, horizon=8192))(batch)
  np.testing.assert_allclose(mapped, got, atol=1e-7)


def test_rejects_wrong_arguments():
  with pytest.raises(ValueError, match='count must have shape'):
    regret.progress(SUCCESS, COUNT[:2])
  with pytest.raises(ValueError, match='count must hold int'):
    regret.progress(SUCCESS, COUNT.astype(jnp.float32))
  with pytest.raises(ValueError, match='success must hold float'):
    regret.cumulative(SUCCESS.astype(jnp.int32), 1.0, COUNT)
  with pytest.raises(ValueError, match='success must have shape'):
    regret.progress(SUCCESS[0], COUNT)
  with pytest.raises(ValueError, match='comparator must have shape'):
    regret.cumulative(SUCCESS, SUCCESS[:, :-1], COUNT)
  with pytest.raises(ValueError, match='ends must hold int'):
    regret.token_weighted(SUCCESS, ENDS.astype(jnp.float32), horizon=4)
  with pytest.raises(ValueError, match='ends must have shape'):
    regret.token_weighted(SUCCESS, ENDS[:, :-1], horizon=4)
  for horizon in (0, -1):
    with pytest.raises(ValueError, match='horizon must be > 0'):
      regret.token_weighted(SUCCESS, ENDS, horizon=horizon)
    with pytest.raises(ValueError, match='horizon must be > 0'):
      regret.normalized(ACCURACY, TOKENS, horizon=horizon)
  with pytest.raises(ValueError, match=r"form must be one of \['trapezoid'"):
    regret.normalized(ACCURACY, TOKENS, horizon=4, form='left')
  with pytest.raises(ValueError, match='tokens must have shape'):
    regret.normalized(ACCURACY, TOKENS[:-1], horizon=4)
  with pytest.raises(ValueError, match='at least one point'):
    regret.normalized(ACCURACY[:0], TOKENS[:0], horizon=4)
