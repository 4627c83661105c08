"""Tests of meta_rl.losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from meta_rl import losses

MASK = np.array(
  [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]], bool
)
OPTIONS = [
  {'surrogate': s, 'ratio': r, 'aggregate': a, 'constant': 5}
  for s in losses.SURROGATES
  for r in losses.RATIOS
  for a in losses.AGGREGATES
]


def _batch(seed=0, spread=0.3):
  rng = np.random.default_rng(seed)
  log_probs = -rng.random(MASK.shape) - 0.1
  behavior = log_probs + spread * rng.standard_normal(MASK.shape)
  advantages = rng.standard_normal(MASK.shape)
  return [x.astype(np.float32) for x in (log_probs, behavior, advantages)]


def _aggregate(values, mask, aggregate, constant):
  """(total, weight) in numpy."""
  if aggregate == 'token_mean':
    return values[mask].sum(), mask.sum()
  if aggregate == 'constant':
    return values[mask].sum(), len(values) * constant
  rows = [v[m].mean() for v, m in zip(values, mask, strict=True) if m.any()]
  return sum(rows), len(rows)


def _oracle(log_probs, behavior, advantages, mask, option):
  """Value, and gradient in log_probs, of the loss total, token by token."""
  values, slopes = np.zeros(mask.shape), np.zeros(mask.shape)
  for b, t in zip(*np.nonzero(mask), strict=True):
    log_ratio = (log_probs - behavior)[b]
    if option['ratio'] == 'token':
      r = np.exp(log_ratio[t])
    else:
      r = np.exp(log_ratio[mask[b]].mean())
    adv = advantages[b, t]
    clipped = np.clip(r, 0.8, 1.2)
    if option['surrogate'] == 'cispo':
      values[b, t] = -clipped * adv * log_probs[b, t]
      slopes[b, t] = -clipped * adv
    else:
      values[b, t] = -min(r * adv, clipped * adv)
      slopes[b, t] = -r * adv if r * adv <= clipped * adv else 0
  if option['aggregate'] == 'sequence_mean':
    slopes /= np.maximum(mask.sum(axis=1, keepdims=True), 1)
  pair = _aggregate(values, mask, option['aggregate'], option['constant'])
  return *pair, slopes


@functools.cache
def _compiled(index):
  """The loss under OPTIONS[index], with gradients in all three arrays."""

  def total(log_probs, behavior, advantages, mask):
    loss, metrics = losses.policy_gradient(
      log_probs, behavior, advantages, mask, **OPTIONS[index]
    )
    return loss.total, (loss, metrics)

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


EACH_OPTION = pytest.mark.parametrize(
  'index',
  range(len(OPTIONS)),
  ids=['-'.join(map(str, o.values())) for o in OPTIONS],
)


@EACH_OPTION
def test_policy_gradient_against_numpy(index):
  batch = _batch()
  (_, (loss, _)), grads = _compiled(index)(*batch, MASK)
  total, weight, slopes = _oracle(*batch, MASK, OPTIONS[index])
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)
  np.testing.assert_allclose(loss.weight, weight)
  np.testing.assert_allclose(grads[0], slopes, atol=1e-6)


@EACH_OPTION
def test_masked_positions_may_hold_anything(index):
  clean = _batch()
  rng = np.random.default_rng(1)
  poison = rng.choice([np.nan, np.inf, -np.inf, 1e30], (3, *MASK.shape))
  dirty = [
    np.where(MASK, x, p).astype(np.float32)
    for x, p in zip(clean, poison, strict=True)
  ]
  want = _compiled(index)(*clean, MASK)
  got = _compiled(index)(*dirty, MASK)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  for grad in got[1]:
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[~MASK], 0)
  np.testing.assert_array_equal(got[1][2], 0)  # advantages are constants


@EACH_OPTION
def test_on_policy_the_gradient_is_reinforce(index):
  log_probs, _, advantages = _batch()
  _, grads = _compiled(index)(log_probs, log_probs, advantages, MASK)
  weights = MASK.astype(np.float32)
  if OPTIONS[index]['aggregate'] == 'sequence_mean':
    weights = weights / np.maximum(MASK.sum(axis=1, keepdims=True), 1)
  np.testing.assert_allclose(grads[0], -advantages * weights, atol=1e-6)


def test_clip_by_hand():
  # Ratios 1.5 1.5 .5 .5 1.1 with A = 1 −1 1 −1 2 and clips .2/.28:
  #   −min(1.5, 1.28) = −1.28   cut
  #   −min(−1.5, −1.28) = 1.5
  #   −min(.5, .8) = −.5
  #   −min(−.5, −.8) = .8       cut
  #   −2.2
  ratio = np.array([[1.5, 1.5, 0.5, 0.5, 1.1]], np.float32)
  advantages = np.array([[1, -1, 1, -1, 2]], np.float32)
  behavior = np.full((1, 5), -2.0, np.float32)

  def total(log_probs):
    loss, metrics = losses.policy_gradient(
      log_probs,
      behavior,
      advantages,
      np.ones((1, 5), bool),
      clip_high=0.28,
      aggregate='token_mean',
    )
    return loss.total, (loss, metrics)

  grad, (loss, metrics) = jax.grad(total, has_aux=True)(
    behavior + np.log(ratio)
  )
  np.testing.assert_allclose(loss.total, -1.28 + 1.5 - 0.5 + 0.8 - 2.2, 1e-5)
  np.testing.assert_allclose(loss.weight, 5)
  np.testing.assert_allclose(grad, [[0, 1.5, -0.5, 0, -2.2]], rtol=1e-5)
  np.testing.assert_allclose(metrics['ratio_mean'].value, 5.1 / 5, rtol=1e-5)
  np.testing.assert_allclose(metrics['clip_fraction'].value, 0.4, rtol=1e-6)
  # k3 = r − 1 − log r, summed: 5.1 − 5 − log(1.5²·.5²·1.1).
  want = (0.1 - np.log(0.5625 * 1.1)) / 5
  np.testing.assert_allclose(metrics['approx_kl'].value, want, rtol=1e-5)


def test_aggregates_by_hand():
  values = np.array([[1, 2, 6], [5, 9, 9], [9, 9, 9]], np.float32)
  mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
  pairs = {
    'sequence_mean': (3 + 5, 2),
    'token_mean': (9 + 5, 4),
    'constant': (14, 3 * 10),
  }
  for aggregate, (total, weight) in pairs.items():
    got = losses.aggregate_tokens(
      values, mask, aggregate=aggregate, constant=10
    )
    assert (got.total, got.weight) == (total, weight)
    empty = losses.aggregate_tokens(
      values, np.zeros_like(mask), aggregate=aggregate, constant=10
    )
    assert empty.value == 0


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_micro_batches_add_up(aggregate):
  call = functools.partial(
    losses.policy_gradient, aggregate=aggregate, constant=5
  )
  batch = (*_batch(), MASK)
  whole, whole_metrics = call(*batch)
  # Cut unevenly: a mean of means would differ.
  cuts = [call(*[x[part] for x in batch]) for part in (slice(1), slice(1, 4))]
  (first, metrics), (second, more) = cuts
  np.testing.assert_allclose((first + second).value, whole.value, rtol=1e-5)
  for name, value in whole_metrics.items():
    got = (metrics[name] + more[name]).value
    np.testing.assert_allclose(got, value.value, rtol=1e-5)


def test_sequence_ratio_is_one_number_a_row_and_keeps_token_credit():
  # Log-ratios .1 and .3: s = e^.2 on both tokens, each with its own advantage.
  log_probs = np.array([[-1.0, -2.0]], np.float32)
  behavior = log_probs - np.array([[0.1, 0.3]], np.float32)
  advantages = np.array([[1.0, -3.0]], np.float32)

  def total(x):
    loss, metrics = losses.policy_gradient(
      x,
      behavior,
      advantages,
      np.ones((1, 2), bool),
      clip_low=0.5,
      clip_high=0.5,
      ratio='sequence',
      aggregate='token_mean',
    )
    return loss.total, metrics

  grad, metrics = jax.grad(total, has_aux=True)(log_probs)
  np.testing.assert_allclose(grad, np.exp(0.2) * -advantages, rtol=1e-5)
  np.testing.assert_allclose(metrics['ratio_mean'].value, np.exp(0.2), 1e-5)


# ---- importance weights

# π/b of two traces: .5 1.5 4 (and a masked token), and .5 .5.
RATIOS = np.array([[0.5, 1.5, 4.0, np.nan], [0.5, 0.5, 9.0, 9.0]], np.float32)
DRAWN = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
SAMPLER = np.full((2, 4), -1.5, np.float32)
TRAINER = SAMPLER + np.log(RATIOS)


def test_truncated_importance_weights_by_hand():
  weights = losses.truncated_importance_weights(TRAINER, SAMPLER, DRAWN)
  want = [[0.5, 1.5, 2, 1], [0.5, 0.5, 1, 1]]
  np.testing.assert_allclose(weights, want, rtol=1e-6)
  # Traces: .5·1.5·4 = 3, above the cap of 2, and .5·.5.
  weights = losses.truncated_importance_weights(
    TRAINER, SAMPLER, DRAWN, level='sequence'
  )
  want = [[2, 2, 2, 1], [0.25, 0.25, 1, 1]]
  np.testing.assert_allclose(weights, want, rtol=1e-6)
  weights = losses.truncated_importance_weights(
    TRAINER, SAMPLER, DRAWN, level='sequence', cap=10.0
  )
  np.testing.assert_allclose(weights[0, 0], 3, rtol=1e-6)


def test_importance_metrics_by_hand():
  got = losses.importance_metrics(TRAINER, SAMPLER, DRAWN)
  # |log| of .5 1.5 4 .5 .5: (3·log 2 + log 1.5 + log 4)/5. One of five above 2.
  # ess (.5 + 1.5 + 4 + .5 + .5)²/(5·(.25 + 2.25 + 16 + .25 + .25)) = 49/95.
  want = {
    'mismatch_mean': (5 * np.log(2) + np.log(1.5)) / 5,
    'mismatch_max': np.log(4),
    'capped_share': 0.2,
    'ess': 49 / 95,
  }
  assert set(got) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
  got = losses.importance_metrics(TRAINER, SAMPLER, DRAWN, level='sequence')
  # Weights 3 and .25: (3.25)²/(2·(9 + .0625)); one of two is above 2.
  np.testing.assert_allclose(got['ess'], 3.25**2 / (2 * 9.0625), rtol=1e-5)
  assert got['capped_share'] == 0.5
  empty = losses.importance_metrics(TRAINER, SAMPLER, np.zeros_like(DRAWN))
  assert {k: float(v) for k, v in empty.items()} == {
    'mismatch_mean': 0,
    'mismatch_max': 0,
    'capped_share': 0,
    'ess': 1,
  }


@pytest.mark.parametrize('level', losses.LEVELS)
def test_log_ratios_that_would_overflow(level):
  """exp(200) is infinite in f32; the weight is the cap, and ess a number."""
  far = SAMPLER + np.float32(200) * DRAWN
  args = far, SAMPLER, DRAWN
  weights = losses.truncated_importance_weights(*args, level=level)
  np.testing.assert_allclose(weights[DRAWN], 2.0, rtol=1e-6)
  weights = losses.truncated_importance_weights(
    SAMPLER, far, DRAWN, level=level
  )
  np.testing.assert_array_equal(weights[DRAWN], 0)
  found = losses.importance_metrics(*args, level=level)
  assert all(np.isfinite(value) for value in found.values())
  assert 0 < found['ess'] <= 1


def test_the_weighted_gradient_is_that_of_the_policy():
  """E_b[w ∇loss] = E_π[∇loss], summed over all tokens of one step; a cap gives
  the share of it that is under the cap."""
  rng = np.random.default_rng(2)
  policy, sampler = jax.nn.log_softmax(rng.standard_normal((2, 6)))
  advantages = rng.standard_normal(6).astype(np.float32)
  column = lambda x: jnp.asarray(x, jnp.float32)[:, None]
  mask = jnp.ones((6, 1), bool)

  def gradient(chances, **options):
    """Of each token's loss, weighed with its chance to be drawn."""

    def total(log_probs):
      loss, _ = losses.policy_gradient(
        log_probs,
        column(policy),
        column(advantages * chances),
        mask,
        **options,
      )
      return loss.total

    return jax.grad(total)(column(policy))[:, 0]

  wanted = gradient(np.exp(policy))
  weights = losses.truncated_importance_weights(
    column(policy), column(sampler), mask, cap=100.0
  )
  got = gradient(np.exp(sampler), weights=weights)
  np.testing.assert_allclose(got, wanted, rtol=1e-4)
  assert not np.allclose(gradient(np.exp(sampler)), wanted, rtol=0.1)
  capped = losses.truncated_importance_weights(
    column(policy), column(sampler), mask, cap=1.0
  )
  got = gradient(np.exp(sampler), weights=capped)
  share = np.minimum(1, np.exp(sampler - policy))
  np.testing.assert_allclose(got, wanted * share, rtol=1e-4)


@EACH_OPTION
def test_weights_scale_the_loss_of_their_token_alone(index):
  option = OPTIONS[index]
  batch = _batch()
  weights = np.random.default_rng(5).random(MASK.shape).astype(np.float32)
  call = functools.partial(losses.policy_gradient, *batch, MASK, **option)
  loss, metrics = call(weights=np.where(MASK, weights, np.nan))
  plain, plain_metrics = call()
  # -min(rA, clip(r)A)·w is the same with A·w in the place of A, for w > 0.
  moved = [*batch[:2], batch[2] * weights]
  want, _ = losses.policy_gradient(*moved, MASK, **option)
  np.testing.assert_allclose(loss.total, want.total, rtol=1e-4, atol=1e-5)
  assert loss.weight == plain.weight
  # Ratio, clip and KL are about the trainer's own move.
  jax.tree.map(np.testing.assert_array_equal, metrics, plain_metrics)
  ones, _ = call(weights=np.ones(MASK.shape, np.float32))
  jax.tree.map(np.testing.assert_array_equal, ones, plain)


def test_importance_weights_are_constants():
  def total(trainer):
    return losses.truncated_importance_weights(
      trainer, SAMPLER, DRAWN, cap=9.0
    ).sum()

  grad = jax.grad(total)(np.where(DRAWN, TRAINER, 0).astype(np.float32))
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'level': 'row'}, r"level must be one of \['token', 'sequence'\]"),
    ({'cap': 0.0}, 'cap must be > 0'),
    ({'mask': DRAWN[:1]}, 'must have shape'),
    ({'behavior_log_probs': DRAWN}, 'behavior_log_probs must hold float'),
  ],
)
def test_rejects_wrong_importance_options(changes, message):
  given = {'behavior_log_probs': SAMPLER, 'mask': DRAWN} | changes
  for call in (losses.truncated_importance_weights, losses.importance_metrics):
    with pytest.raises(ValueError, match=message):
      call(TRAINER, **given)


@pytest.mark.parametrize('estimator', losses.KL_ESTIMATORS)
@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_kl_penalty_against_numpy(estimator, aggregate):
  log_probs, ref, _ = _batch()
  d = (ref - log_probs).astype(np.float64)
  values = {'k1': -d, 'k2': d**2 / 2, 'k3': np.exp(d) - 1 - d}
  dirty = np.where(MASK, ref, np.nan)

  def value(log_probs):
    return losses.kl_penalty(
      log_probs,
      dirty,
      MASK,
      estimator=estimator,
      aggregate=aggregate,
      constant=5,
    )

  got, metrics = value(log_probs)
  total, weight = _aggregate(values[estimator], MASK, aggregate, 5)
  np.testing.assert_allclose(got.total, total, rtol=1e-4)
  np.testing.assert_allclose(got.weight, weight)
  for name, v in values.items():
    np.testing.assert_allclose(
      metrics[f'ref_kl_{name}'].value, v[MASK].mean(), rtol=1e-4
    )
  grad = np.asarray(jax.grad(lambda x: value(x)[0].total)(log_probs))
  slopes = {'k1': 1 + 0 * d, 'k2': -d, 'k3': 1 - np.exp(d)}[estimator]
  if aggregate == 'sequence_mean':
    slopes = slopes / np.maximum(MASK.sum(1, keepdims=True), 1)
  np.testing.assert_allclose(grad, np.where(MASK, slopes, 0), atol=1e-5)


def test_kl_estimators_in_expectation():
  """Summed over a whole distribution: values, and what their gradients are."""
  rng = np.random.default_rng(0)
  logits, ref = rng.standard_normal((2, 6)).astype(np.float32)
  ref = jax.nn.log_softmax(ref)
  probs = jax.nn.softmax(logits)
  exact = jnp.sum(probs * (jnp.log(probs) - ref))

  def expectation(logits, estimator):
    log_probs = jax.nn.log_softmax(logits)[:, None]
    each = jax.vmap(
      lambda p, r: (
        losses.kl_penalty(
          p[None], r[None], jnp.ones((1, 1), bool), estimator=estimator
        )[0].value
      )
    )(log_probs, ref[:, None])
    return jnp.sum(probs * each)

  def kl(logits):
    log_probs = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - ref))

  def reverse_kl(logits):
    return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits)))

  for estimator in ('k1', 'k3'):
    np.testing.assert_allclose(expectation(logits, estimator), exact, 1e-5)
  wants = {
    'k1': np.zeros(6),
    'k2': jax.grad(kl)(logits),
    'k3': jax.grad(reverse_kl)(logits),
  }
  for estimator, want in wants.items():
    got = jax.grad(expectation)(logits, estimator)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_entropy_bonus():
  entropy = np.array([[1, 3, np.nan], [2, np.inf, np.nan]], np.float32)
  mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
  loss, metrics = losses.entropy_bonus(entropy, mask)
  assert (loss.total, loss.weight) == (-4, 2)  # −(2 + 2), two rows
  assert metrics['entropy'].value == 2  # (1 + 3 + 2)/3
  grad = jax.grad(lambda e: losses.entropy_bonus(e, mask)[0].total)(entropy)
  np.testing.assert_array_equal(grad, [[-0.5, -0.5, 0], [-1, 0, 0]])


def test_an_empty_mask_costs_nothing():
  log_probs, behavior, advantages = _batch()
  empty = np.zeros_like(MASK)

  def value(x):
    return losses.policy_gradient(x, behavior, advantages, empty)[0].value

  got, grad = jax.value_and_grad(value)(log_probs)
  assert got == 0
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_under_shard_map(aggregate):
  spec = PartitionSpec('data')

  def total(*batch):
    loss, _ = losses.policy_gradient(*batch, aggregate=aggregate, constant=5)
    return jax.lax.psum(loss, 'data')

  batch = (*_batch(), MASK)
  sharded = jax.jit(
    jax.shard_map(
      total,
      mesh=Mesh(np.array(jax.devices()), ('data',)),
      in_specs=(spec,) * 4,
      out_specs=PartitionSpec(),
    )
  )(*batch)
  plain, _ = losses.policy_gradient(*batch, aggregate=aggregate, constant=5)
  np.testing.assert_allclose(sharded.value, plain.value, rtol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'surrogate': 'ppo'}, r"surrogate must be one of \['clip', 'cispo'\]"),
    ({'ratio': 'row'}, r"ratio must be one of \['token', 'sequence'\]"),
    ({'aggregate': 'mean'}, r"aggregate must be one of \['sequence_mean'"),
    ({'aggregate': 'constant'}, "'constant' needs constant"),
    ({'aggregate': 'constant', 'constant': 0}, 'constant must be > 0'),
    ({'clip_low': -0.1}, 'clip_low must be >= 0'),
    ({'clip_high': -0.1}, 'clip_high must be >= 0'),
  ],
)
def test_rejects_wrong_options(changes, message):
  with pytest.raises(ValueError, match=message):
    losses.policy_gradient(*_batch(), MASK, **changes)


def test_rejects_wrong_arrays():
  log_probs, behavior, advantages = _batch()
  call = losses.policy_gradient
  with pytest.raises(ValueError, match='mask must hold bool'):
    call(log_probs, behavior, advantages, MASK.astype(np.float32))
  with pytest.raises(ValueError, match='behavior_log_probs must have shape'):
    call(log_probs, behavior[:, 1:], advantages, MASK)
  with pytest.raises(ValueError, match='advantages must have shape'):
    call(log_probs, behavior, advantages[:, 0], MASK)
  with pytest.raises(ValueError, match='weights must have shape'):
    call(log_probs, behavior, advantages, MASK, weights=advantages[:1])
  with pytest.raises(ValueError, match='log_probs must hold float'):
    call(MASK.astype(np.int32), behavior, advantages, MASK)
  with pytest.raises(ValueError, match=r"estimator must be one of \['k1', 'k2"):
    losses.kl_penalty(log_probs, behavior, MASK, estimator='k4')
  with pytest.raises(ValueError, match='ref_log_probs must have shape'):
    losses.kl_penalty(log_probs, behavior[:2], MASK)
  with pytest.raises(ValueError, match='entropy must have shape'):
    losses.entropy_bonus(log_probs[0], MASK)
