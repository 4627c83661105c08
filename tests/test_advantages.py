"""Tests of meta_rl.advantages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from meta_rl import advantages, regret

RNG = np.random.default_rng(0)


def test_group_normalize_by_hand():
  # Row 0: mean 2, deviations −1 0 1, sample std 1. Row 1: mean 1/3,
  # population std √2/3, sample std 1/√3.
  rewards = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
  got = advantages.group_normalize(rewards)
  third = 1 / np.sqrt(3)
  np.testing.assert_allclose(
    got,
    [
      [-1 / 1.0001, 0, 1 / 1.0001],
      [2 / 3 / (third + 1e-4), *[-1 / 3 / (third + 1e-4)] * 2],
    ],
    atol=1e-6,
  )
  got = advantages.group_normalize(rewards, ddof=0, eps=0.0)
  np.testing.assert_allclose(
    got[1], np.array([2, -1, -1]) / np.sqrt(2), atol=1e-6
  )
  got = advantages.group_normalize(rewards, scale='none')
  np.testing.assert_allclose(
    got, [[-1, 0, 1], [2 / 3, -1 / 3, -1 / 3]], atol=1e-6
  )


@pytest.mark.parametrize('value', [0.1, 0.3, 1 / 3, 1e6])
def test_a_constant_group_gives_exactly_zero(value):
  # The mean of seven 0.1 is not 0.1 in fp32; the rest must not be scaled up.
  rewards = jnp.full((1, 7), value)
  for scale in advantages.SCALES:
    got = advantages.group_normalize(rewards, scale=scale)
    np.testing.assert_array_equal(got, 0)
  np.testing.assert_array_equal(advantages.leave_one_out(rewards), 0)


# Continue r = 1 0 1 1, Direct r = 0 1 0 0, J = .25; the bonus α(r − J) goes to
# Continue only, and the group is all eight.
CONTINUE = np.array([1, 0, 1, 1], np.float32)
DIRECT = np.array([0, 1, 0, 0], np.float32)


@pytest.mark.parametrize(
  ('alpha', 'want'),
  [
    # Rewards 1.75 −.25 1.75 1.75 | 0 1 0 0: mean .75, squares
    # 3·1 + 1 + 3·.5625 + .0625 = 5.75, std √(5.75/7) = .90633.
    (
      1.0,
      [1.1032, -1.1032, 1.1032, 1.1032, -0.8274, 0.2758, -0.8274, -0.8274],
    ),
    # Four of eight right: ±.5/(√(2/7) + 1e-4) = ±.9352.
    (0.0, np.array([1, -1, 1, 1, -1, 1, -1, -1]) * 0.9352),
  ],
)
def test_alpha_is_not_a_no_op(alpha, want):
  bonus = alpha * (CONTINUE - 0.25)
  rewards = np.concatenate([CONTINUE + bonus, DIRECT])[None]
  got = advantages.group_normalize(rewards)
  np.testing.assert_allclose(got[0], want, atol=5e-5)


def test_the_no_op_trap():
  """A bonus for all of a group that shares one prefix changes nothing."""
  plain = advantages.group_normalize(CONTINUE[None], eps=0.0)
  bonus = CONTINUE + 3.0 * (CONTINUE - 0.25)
  trap = advantages.group_normalize(bonus[None], eps=0.0)
  np.testing.assert_allclose(trap, plain, atol=1e-6)


def test_progress_against_termination():
  """Form (ii): reward minus the prefix's J, not normalised."""
  success = jnp.stack([jnp.full(4, 0.25), jnp.asarray(CONTINUE)], axis=1)
  gain = regret.progress(success, jnp.ones(4, jnp.int32))
  got = advantages.episode_credit(gain, jnp.ones_like(gain))
  np.testing.assert_array_equal(got[:, 0], [0.75, -0.25, 0.75, 0.75])


def test_leave_one_out_by_hand_and_oracle():
  # 1 − (2 + 6)/2 = −3; 2 − 3.5 = −1.5; 6 − 1.5 = 4.5.
  got = advantages.leave_one_out(jnp.array([[1.0, 2.0, 6.0]]))
  np.testing.assert_allclose(got, [[-3, -1.5, 4.5]], atol=1e-6)
  rewards = RNG.random((5, 4)).astype(np.float32)
  got = advantages.leave_one_out(rewards)
  for p in range(5):
    for g in range(4):
      rest = np.delete(rewards[p], g).mean()
      np.testing.assert_allclose(got[p, g], rewards[p, g] - rest, atol=1e-6)


NAN, INF = float('nan'), float('inf')
# Row 0 is [1, 2, 3] with a trace that has no reward, row 1 [2, 6] with two, row
# 2 has one reward and row 3 none; what stands there instead may be anything.
HOLES = jnp.array(
  [[1, NAN, 2, 3], [INF, 2, 1e30, 6], [NAN, NAN, 5, NAN], [1, 2, 3, 4]],
  jnp.float32,
)
VALID = np.array([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)


def test_traces_without_a_reward_by_hand():
  # Row 0: mean 2, std 1. Row 1: mean 4, sample std √8 = 2.828427.
  one, two = 1 / 1.0001, 2 / 2.828527
  got = advantages.group_normalize(HOLES, valid=VALID)
  want = [[-one, 0, 0, one], [0, -two, 0, two], [0] * 4, [0] * 4]
  np.testing.assert_allclose(got, want, atol=1e-6)
  got = advantages.group_normalize(HOLES, valid=VALID, ddof=0, eps=0.0)
  np.testing.assert_allclose(got[1], [0, -1, 0, 1], atol=1e-6)
  got = advantages.group_normalize(HOLES, valid=VALID, scale='none')
  want = [[-1, 0, 0, 1], [0, -2, 0, 2], [0] * 4, [0] * 4]
  np.testing.assert_allclose(got, want, atol=1e-6)
  # 1 - 2.5, 2 - 2, 3 - 1.5; 2 - 6, 6 - 2.
  got = advantages.leave_one_out(HOLES, valid=VALID)
  want = [[-1.5, 0, 0, 1.5], [0, -4, 0, 4], [0] * 4, [0] * 4]
  np.testing.assert_allclose(got, want, atol=1e-6)


BASELINES = [
  *(
    functools.partial(advantages.group_normalize, scale=s, ddof=d)
    for s, d in (('std', 1), ('std', 0), ('none', 1))
  ),
  advantages.leave_one_out,
]


def _baseline_oracle(rewards, index):
  """The advantages of one group, numpy."""
  if index == 3:
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others
  std = (rewards.std(ddof=1) + 1e-4, rewards.std() + 1e-4, 1)[index]
  return (rewards - rewards.mean()) / std


@pytest.mark.parametrize('index', range(len(BASELINES)))
def test_a_group_with_holes_is_the_group_without_them(index):
  baseline = jax.jit(BASELINES[index])
  rng = np.random.default_rng(index)
  rewards = rng.random((12, 5)).astype(np.float32)
  valid = rng.random((12, 5)) < 0.6
  valid[:, :2] |= valid.sum(1, keepdims=True) < 2
  holes = np.where(valid, rewards, np.nan).astype(np.float32)
  got = baseline(holes, valid=valid)
  for row, keep, found in zip(rewards, valid, got, strict=True):
    want = _baseline_oracle(row[keep].astype(np.float64), index)
    np.testing.assert_allclose(found[keep], want, atol=1e-5)
    np.testing.assert_array_equal(found[~keep], 0)
  # All valid is what it is without saying so.
  every = np.ones((12, 5), bool)
  np.testing.assert_allclose(
    baseline(rewards, valid=every), baseline(rewards), atol=1e-6
  )
  # Constant among the valid is exactly 0, whatever the others hold.
  constant = np.where(valid, np.float32(0.1), holes)
  np.testing.assert_array_equal(baseline(constant, valid=valid), 0)


@pytest.mark.parametrize(
  'valid', [np.ones((4, 3), bool), np.ones((4, 4), np.float32)]
)
def test_valid_of_another_shape_or_kind_is_refused(valid):
  for baseline in BASELINES:
    with pytest.raises(ValueError, match='valid must'):
      baseline(HOLES, valid=valid)


BRPO_SCORES = jnp.array([[[0, 0.25, 0.5, 1], [0, 0, 0.25, 0.5]]])


@pytest.mark.parametrize(
  ('prior', 'want'),
  [
    # Uniform, s = 1 of row 0: R = (.25 + .5 + 1)/4 = .4375, V1 = 0,
    # V2 = (.4375 + .1875)/2 = .3125; A = .4375 − 3·.3125/4 = .203125.
    (
      [0.25, 0.25, 0.25, 0.25],
      [
        [0.125, 0.203125, 0.192708, 0.136161],
        [-0.125, -0.046875, 0.046875, 0.051339],
      ],
    ),
    (
      [0.1, 0.2, 0.3, 0.4],
      [
        [0.1625, 0.271875, 0.285417, 0.217857],
        [-0.1625, -0.053125, 0.06875, 0.082143],
      ],
    ),
  ],
)
def test_brpo_golden(prior, want):
  got = advantages.brpo(BRPO_SCORES, jnp.array(prior))
  np.testing.assert_allclose(got[0], want, atol=1e-6)


def _brpo_oracle(scores, prior):
  result = np.zeros_like(scores)
  num = len(prior)
  for group, out in zip(scores, result, strict=True):
    gain = [[(prior * row)[s:].sum() for s in range(num)] for row in group]
    for g, row in enumerate(group):
      for s in range(num):
        past = 2.0 ** np.arange(s)
        own = (past * row[:s]).sum() / past.sum() if s else 0
        own *= prior[s:].sum()
        mean = np.mean([r[s] for r in gain])
        out[g, s] = gain[g][s] - (s * own + (num - s) * mean) / num
  return result


@pytest.mark.parametrize('num', [1, 5, 40])
def test_brpo_against_loops(num):
  scores = RNG.random((2, 3, num))
  prior = RNG.dirichlet(np.ones(num))
  got = advantages.brpo(scores.astype('f4'), prior.astype('f4'))
  np.testing.assert_allclose(got, _brpo_oracle(scores, prior), atol=1e-5)


ENDS = jnp.array([[3, 5, 9, 15], [3, 3, 3, 3]], jnp.int32)


def test_episode_weights_by_hand():
  # e = 2 6 12 with H = 10: .8 .4 0; a repeated end counts from the start.
  got = advantages.episode_weights(ENDS, horizon=10)
  np.testing.assert_allclose(got, [[0.8, 0.4, 0], [1, 1, 1]], atol=1e-6)
  got = advantages.episode_weights(ENDS, horizon=10, outcome_mass=0.5)
  np.testing.assert_allclose(got, [[0.9, 0.7, 0.5], [1, 1, 1]], atol=1e-6)
  got = advantages.episode_weights(ENDS, horizon=10, outcome_mass=1.0)
  np.testing.assert_array_equal(got, 1)


def test_weighted_progress_is_the_area():
  """Σ w_j r_j + J_0 = 1 − token-weighted regret, within the horizon or not."""
  ends = np.cumsum(RNG.integers(1, 9, (6, 5)), axis=1).astype(np.int32)
  success = RNG.random((6, 5)).astype(np.float32)
  gain = regret.progress(success, np.full(6, 4, np.int32))
  for horizon in (5, 15, 60):
    weights = advantages.episode_weights(ends, horizon=horizon)
    area = (gain * weights).sum(axis=1) + success[:, 0]
    lost = regret.token_weighted(success, ends, horizon=horizon)
    np.testing.assert_allclose(area, 1 - lost, atol=1e-5)


def test_episode_credit():
  gain = jnp.array([[0.5, -0.25, 0.25]])
  weights = jnp.array([[1.0, 0.5, 0.25]])
  got = advantages.episode_credit(gain, weights)
  np.testing.assert_allclose(got, [[0.5, -0.125, 0.0625]])
  got = advantages.episode_credit(gain, weights, kind='return_to_go')
  np.testing.assert_allclose(got, [[0.4375, -0.0625, 0.0625]])


def test_unweighted_return_to_go_telescopes():
  success = jnp.array([[0.1, 0.4, 0.3, 0.9]])
  gain = regret.progress(success, jnp.array([3]))
  got = advantages.episode_credit(gain, jnp.ones((1, 3)), kind='return_to_go')
  np.testing.assert_allclose(got, success[:, -1:] - success[:, :-1], atol=1e-6)


def test_returns_by_hand():
  # Row 0, λ/H = .1/10 = .01 a token: .5 − .02 = .48, −.125 − .04 = −.165,
  # .0625 − .06 = .0025. Row 1 stops after one episode: .2 − .01.
  gain = jnp.array([[0.5, -0.25, 0.25], [0.2, jnp.nan, 9.0]])
  weights = jnp.array([[1.0, 0.5, 0.25], [1.0, 1.0, 1.0]])
  lengths = jnp.array([[2, 4, 6], [1, 7, 7]], jnp.int32)
  count = jnp.array([3, 1], jnp.int32)
  got = advantages.returns(gain, weights, lengths, count, price=0.1, horizon=10)
  want = [[0.3175, -0.1625, 0.0025, 0], [0.19, 0, 0, 0]]
  np.testing.assert_allclose(got, want, atol=1e-6)
  free = advantages.returns(gain, weights, lengths, count, horizon=10)
  credit = advantages.episode_credit(gain[:1], weights[:1], kind='return_to_go')
  np.testing.assert_allclose(free[:1, :-1], credit, atol=1e-7)


# Options are traced, so that one compilation serves all of them.
_baseline = jax.jit(advantages.prover_baseline, static_argnames=['axis_name'])


def _batch(rows=40, num=4, seed=3):
  rng = np.random.default_rng(seed)
  count = rng.integers(0, num + 1, rows).astype(np.int32)
  success = rng.random((rows, num + 1)).astype(np.float32)
  returns = 0.6 * (1 - success) + 0.3 * rng.standard_normal(success.shape)
  returns[np.arange(num + 1) >= count[:, None]] = 0
  return returns.astype(np.float32), success, count


def _refit(returns, success, count, ridge, min_rows):
  """Refits without row i, by the normal equations in float64."""
  out = np.zeros(returns.shape)
  for j in range(returns.shape[1]):
    reach = np.flatnonzero(count >= j)
    for i in reach:
      rest = reach[reach != i]
      if not len(rest):
        continue
      y = returns[rest, j].astype(np.float64)
      if len(reach) < min_rows:
        out[i, j] = y.mean()
        continue
      x = np.stack([np.ones(len(rest)), 1.0 - success[rest, j]], axis=1)
      fit = np.linalg.solve(x.T @ x + np.diag([0, ridge]), x.T @ y)
      out[i, j] = fit @ [1, 1.0 - success[i, j]]
  return out


@pytest.mark.parametrize(
  ('ridge', 'min_rows'), [(1e-3, 16), (1.0, 16), (1e-3, 1), (1e-3, 100)]
)
def test_prover_baseline_equals_a_refit_without_the_row(ridge, min_rows):
  batch = _batch()
  got = _baseline(*batch, ridge=ridge, min_rows=min_rows)
  want = _refit(*batch, ridge, min_rows)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('min_rows', [1, 100])
def test_prover_baseline_without_some_rows_is_that_of_the_others(min_rows):
  batch = _batch()
  valid = np.arange(40) % 3 > 0
  options = {'ridge': 1e-3, 'min_rows': min_rows}
  got = np.asarray(_baseline(*batch, **options, valid=valid))
  want = _refit(*(x[valid] for x in batch), 1e-3, min_rows)
  np.testing.assert_allclose(got[valid], want, atol=2e-5)
  np.testing.assert_array_equal(got[~valid], 0)
  np.testing.assert_allclose(
    _baseline(*batch, **options, valid=np.ones(40, bool)),
    _baseline(*batch, **options),
    atol=1e-6,
  )


def test_prover_baseline_is_the_leave_one_out_residual():
  """b = y − e/(1 − h) with the hat matrix of the full fit."""
  y, success, _ = _batch()
  count = np.full(len(y), y.shape[1] - 1, np.int32)
  got = _baseline(y, success, count)
  for j in range(y.shape[1]):
    x = np.stack([np.ones(len(y)), 1.0 - success[:, j]], axis=1)
    hat = x @ np.linalg.solve(x.T @ x + np.diag([0, 1e-3]), x.T)
    e = y[:, j] - hat @ y[:, j]
    want = y[:, j] - e / (1 - np.diag(hat))
    np.testing.assert_allclose(got[:, j], want, atol=2e-5)


def test_prover_baseline_ignores_the_row_itself_and_what_is_past_count():
  returns, success, count = _batch()
  count[0] = 2
  base = np.asarray(_baseline(returns, success, count))
  other = returns.copy()
  other[0, 1] += 5.0
  moved = np.asarray(_baseline(other, success, count))
  np.testing.assert_allclose(moved[0], base[0], atol=1e-5)
  assert np.abs(moved[1:, 1] - base[1:, 1]).max() > 1e-2

  past = np.arange(returns.shape[1]) > count[:, None]
  poisoned = _baseline(
    np.where(past, np.nan, returns), np.where(past, np.inf, success), count
  )
  np.testing.assert_array_equal(poisoned, base)
  np.testing.assert_array_equal(base[past], 0)


def test_prover_baseline_counts_the_rows_that_stop():
  # 20 rows with one J: 10 go on and return 1, 10 stop there and return 0.
  # A row that went on sees 9 of 19, a row that stopped 10 of 19.
  returns = np.zeros((20, 2), np.float32)
  returns[:10, 0] = 1
  count = np.array([1] * 10 + [0] * 10, np.int32)
  success = np.full((20, 2), 0.5, np.float32)
  got = _baseline(returns, success, count)
  want = [9 / 19] * 10 + [10 / 19] * 10
  np.testing.assert_allclose(got[:, 0], want, atol=1e-6)


def test_prover_baseline_is_stable_at_extreme_leverage():
  # One row alone holds another J: without it all x are equal, slope 0.
  success = np.full((32, 1), 0.9, np.float32)
  success[0] = 0.0
  returns = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
  count = np.zeros(32, np.int32)
  got = _baseline(returns, success, count)
  np.testing.assert_allclose(got[0, 0], returns[1:].mean(), atol=2e-3)
  assert np.isfinite(got).all()


def test_prover_baseline_of_few_rows():
  # Boundary 0: three rows, mean of the other two. Boundary 1: one row, alone.
  returns = jnp.array([[1.0, 7.0], [2.0, 0.0], [6.0, 0.0]])
  count = jnp.array([1, 0, 0], jnp.int32)
  got = advantages.prover_baseline(returns, jnp.full((3, 2), 0.5), count)
  np.testing.assert_allclose(got, [[4, 0], [3.5, 0], [1.5, 0]], atol=1e-6)


def test_prover_baseline_of_continuing_rows():
  # Boundary 0: rows 0 and 1 go on, each has the other's return; row 2 stops.
  # Boundary 1: row 0 alone goes on.
  returns = jnp.array([[1.0, 7.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
  count = jnp.array([2, 1, 0], jnp.int32)
  got = advantages.prover_baseline(
    returns, jnp.full((3, 3), 0.5), count, rows='continuing'
  )
  np.testing.assert_allclose(got, [[2, 0, 0], [1, 0, 0], [0, 0, 0]], atol=1e-6)
  with pytest.raises(ValueError, match='rows must be one of'):
    advantages.prover_baseline(returns, returns, count, rows='all')


def test_prover_baseline_over_devices_is_the_whole_batch():
  batch = _batch()
  whole = _baseline(*batch)
  parts = [x.reshape(4, 10, *x.shape[1:]) for x in batch]
  spread = jax.vmap(
    functools.partial(_baseline, axis_name='data'),
    axis_name='data',
  )(*parts)
  np.testing.assert_allclose(spread.reshape(whole.shape), whole, atol=1e-5)
  spec = PartitionSpec('data')
  sharded = jax.shard_map(
    functools.partial(_baseline, axis_name='data'),
    mesh=Mesh(np.array(jax.devices()), ('data',)),
    in_specs=(spec,) * 3,
    out_specs=spec,
  )(*batch)
  np.testing.assert_allclose(sharded, whole, atol=1e-5)


def test_prover_baseline_carries_no_gradient():
  returns, success, count = _batch()
  grad = jax.grad(
    lambda s: advantages.prover_baseline(returns, s, count).sum()
  )(success)
  np.testing.assert_array_equal(grad, 0)


def test_to_tokens():
  credit = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  ids = jnp.array([[-1, 0, 0, 1, -1, -1], [0, 1, 1, -1, -1, -1]], jnp.int32)
  rest = jnp.array([9.0, 8.0])
  got = advantages.to_tokens(credit, ids, rest=rest)
  np.testing.assert_array_equal(got, [[9, 1, 1, 2, 9, 9], [3, 4, 4, 8, 8, 8]])
  # Row 1 never stopped: index −1 marks no token.
  stop, stop_index = jnp.array([-5.0, -6.0]), jnp.array([4, -1], jnp.int32)
  got = advantages.to_tokens(
    credit, ids, rest=rest, stop=stop, stop_index=stop_index
  )
  np.testing.assert_array_equal(got, [[9, 1, 1, 2, -5, 9], [3, 4, 4, 8, 8, 8]])
  got = advantages.to_tokens(credit, ids, rest=rest, stop_index=stop_index)
  np.testing.assert_array_equal(got[0], [9, 1, 1, 2, 9, 9])


def test_jit_and_vmap_agree():
  rewards = RNG.random((3, 2, 4)).astype(np.float32)
  for f in (advantages.group_normalize, advantages.leave_one_out):
    mapped = jax.jit(jax.vmap(f))(rewards)
    for one, got in zip(rewards, mapped, strict=True):
      np.testing.assert_allclose(got, f(one), atol=1e-6)


@pytest.mark.parametrize(
  'baseline', [advantages.group_normalize, advantages.leave_one_out]
)
def test_group_baselines_reject(baseline):
  with pytest.raises(ValueError, match='group size 1.*at least 2'):
    baseline(jnp.ones((4, 1)))
  with pytest.raises(ValueError, match=r'rewards must have shape \[P,G\]'):
    baseline(jnp.ones(4))
  with pytest.raises(ValueError, match='rewards must hold float'):
    baseline(jnp.ones((4, 2), jnp.int32))


def test_rejects_wrong_arguments():
  with pytest.raises(ValueError, match=r"scale must be one of \['std', 'none'"):
    advantages.group_normalize(jnp.ones((2, 2)), scale='max')
  with pytest.raises(
    ValueError, match='ddof must be a whole number >= 0 and <= 1'
  ):
    advantages.group_normalize(jnp.ones((2, 2)), ddof=2)
  with pytest.raises(ValueError, match='prior must have shape'):
    advantages.brpo(BRPO_SCORES, jnp.ones(3))
  with pytest.raises(ValueError, match='group size 1'):
    advantages.brpo(BRPO_SCORES[:, :1], jnp.ones(4))
  with pytest.raises(ValueError, match='horizon must be > 0'):
    advantages.episode_weights(ENDS, horizon=0)
  with pytest.raises(ValueError, match='outcome_mass must be >= 0 and <= 1'):
    advantages.episode_weights(ENDS, horizon=1, outcome_mass=1.1)
  with pytest.raises(ValueError, match='ends must hold int'):
    advantages.episode_weights(ENDS.astype(jnp.float32), horizon=1)
  gain = jnp.ones((2, 3))
  with pytest.raises(ValueError, match=r"kind must be one of \['immediate'"):
    advantages.episode_credit(gain, gain, kind='to_go')
  with pytest.raises(ValueError, match='weights must have shape'):
    advantages.episode_credit(gain, gain[:, :-1])
  ints = jnp.ones((2, 3), jnp.int32)
  with pytest.raises(ValueError, match='price must be >= 0'):
    advantages.returns(gain, gain, ints, ints[:, 0], price=-1, horizon=1)
  with pytest.raises(ValueError, match='ridge must be > 0'):
    advantages.prover_baseline(gain, gain, ints[:, 0], ridge=0)
  with pytest.raises(ValueError, match='success must have shape'):
    advantages.prover_baseline(gain, gain[:, :-1], ints[:, 0])
  with pytest.raises(ValueError, match='episode_ids must hold int'):
    advantages.to_tokens(gain, gain, rest=gain[:, 0])
  with pytest.raises(ValueError, match='rest must have shape'):
    advantages.to_tokens(gain, ints, rest=gain[0])
  with pytest.raises(ValueError, match='stop needs stop_index'):
    advantages.to_tokens(gain, ints, rest=gain[:, 0], stop=gain[:, 0])


# --- bootstrapped ---

RETURNS = jnp.array([[0.5, 0.2, 0.0], [0.0, 0.0, 0.0]])
VALUES = jnp.array([[0.3, 0.1, 0.05], [0.4, 0.0, 0.0]])
COUNT = jnp.array([2, 0])


@pytest.mark.parametrize(
  'decay, first',
  [
    # d = .5 - .2 + .1 - .3 = .1, .2 - 0 + .05 - .1 = .15, and -.05 for stopping
    (0.0, [0.1, 0.15, -0.05]),
    # .15 + .5·-.05 = .125; .1 + .5·.125 = .1625
    (0.5, [0.1625, 0.125, -0.05]),
    # R - b
    (1.0, [0.2, 0.1, -0.05]),
  ],
)
def test_bootstrapped_by_hand(decay, first):
  found = advantages.bootstrapped(RETURNS, VALUES, COUNT, decay=decay)
  # The second trace stopped at once: 0 - .4, and nothing behind it.
  np.testing.assert_allclose(found, [first, [-0.4, 0, 0]], atol=1e-6)


def test_bootstrapped_against_loops():
  rng = np.random.default_rng(0)
  count = rng.integers(0, 6, 7)
  at = np.arange(6)
  returns = np.where(at < count[:, None], rng.normal(size=(7, 6)), 0)
  base = rng.normal(size=(7, 6))  # behind count it must not matter
  expected = np.zeros((7, 6))
  for b, k in enumerate(count):
    later = 0.0
    for j in range(k, -1, -1):
      delta = -base[b, j]
      if j < k:
        delta += returns[b, j] - returns[b, j + 1] + base[b, j + 1]
      later = delta + 0.7 * later
      expected[b, j] = later
  found = jax.jit(functools.partial(advantages.bootstrapped, decay=0.7))(
    jnp.float32(returns), jnp.float32(base), jnp.int32(count)
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bootstrapped_with_a_perfect_critic_has_no_noise_of_the_future():
  # A coin is flipped twice; heads pays 1 each. Values before: 1, .5, 0. Judged
  # by where it led, the first flip gets ±.5 whatever the second one does.
  flips = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
  returns = np.concatenate([flips[:, ::-1].cumsum(1)[:, ::-1], [[0]] * 4], 1)
  base = np.tile([1.0, 0.5, 0.0], (4, 1))
  arguments = jnp.float32(returns), jnp.float32(base), jnp.full(4, 2)
  found = advantages.bootstrapped(*arguments, decay=0.0)
  np.testing.assert_allclose(found[:, :2], flips - 0.5, atol=1e-6)
  unbiased = advantages.bootstrapped(*arguments, decay=1.0)
  np.testing.assert_allclose(unbiased[:, 0], [-1, 0, 0, 1], atol=1e-6)


@pytest.mark.parametrize('decay', [-0.1, 1.1])
def test_bootstrapped_refuses_a_decay_out_of_range(decay):
  with pytest.raises(ValueError, match='decay'):
    advantages.bootstrapped(RETURNS, VALUES, COUNT, decay=decay)
