"""Losses to minimise, each as (WeightedSum, metrics of WeightedSums).

Nothing is divided here: micro-batches and devices add their sums, and the
update divides once, so that a loss does not depend on how a batch was cut.

Axes: B traces, T tokens; all arguments are [B,T] and `mask` says which tokens
are actions. Masked positions may hold NaN or infinities: they are replaced
before any arithmetic, so that neither values nor gradients see them.
"""

import jax
import jax.numpy as jnp

from meta_rl import checks, masked
from meta_rl.types import WeightedSum

Array = jax.Array
Metrics = dict[str, WeightedSum]

SURROGATES = ('clip', 'cispo')
RATIOS = ('token', 'sequence')
AGGREGATES = ('sequence_mean', 'token_mean', 'constant')
LEVELS = ('token', 'sequence')

# Of KL(π‖ref) on tokens drawn from π, with d = log ref - log π.
KL_ESTIMATORS = {
  'k1': lambda d: -d,
  'k2': lambda d: d**2 / 2,
  'k3': lambda d: jnp.expm1(d) - d,
}


def aggregate_tokens(
  per_token: Array,
  mask: Array,
  *,
  aggregate: str = 'sequence_mean',
  constant: int | float | Array | None = None,
) -> WeightedSum:
  """Returns the sum of a value of tokens and the weight to divide it by.

    sequence_mean: Σ_rows mean of the row's tokens / rows that have a token
    token_mean:    Σ tokens / number of tokens
    constant:      Σ tokens / (B·constant)

  'sequence_mean' gives every trace one vote, 'token_mean' every token (DAPO),
  and 'constant' also one vote a token, with a weight that does not depend on
  lengths, so that long traces are neither diluted nor favoured (Dr. GRPO).

  Args:
    per_token: f32[B,T], may hold anything where the mask is False.
    mask: bool[B,T].
    aggregate: one of the three.
    constant: tokens a sequence, e.g. max_new_tokens, > 0; for 'constant' only.

  Returns:
    WeightedSum; total 0 and weight 0 (B·constant for 'constant') on an empty
    mask.

  Raises:
    ValueError: wrong shape or dtype, unknown aggregate, constant missing or
      <= 0.

  Example:
    >>> from meta_rl import losses
    >>> given = (
    ...   [[1.0, 2.0, 3.0], [5.0, 0.0, 0.0]],
    ...   [[True, True, True], [True, False, False]],
    ... )
    >>> float(losses.aggregate_tokens(*given).value)  # (2 + 5) / 2
    3.5
    >>> float(losses.aggregate_tokens(*given, aggregate='token_mean').value)
    2.75
    >>> float(
    ...   losses.aggregate_tokens(
    ...     *given, aggregate='constant', constant=4
    ...   ).value
    ... )  # 11 / (2·4)
    1.375

  Source: DAPO (arXiv 2503.14476); Dr. GRPO (arXiv 2503.20783).
  """
  dims = {}
  per_token = checks.as_array('per_token', per_token, 'float[B,T]', dims)
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  _check_aggregate(aggregate, constant)
  if aggregate == 'sequence_mean':
    total = jnp.sum(masked.masked_mean(per_token, mask, axis=1))
    weight = jnp.sum(jnp.any(mask, axis=1), dtype=per_token.dtype)
    return WeightedSum(total, weight)
  total = masked.masked_sum(per_token, mask)
  if aggregate == 'token_mean':
    return WeightedSum(total, jnp.sum(mask, dtype=per_token.dtype))
  return WeightedSum(total, jnp.asarray(dims['B'] * constant, per_token.dtype))


def policy_gradient(
  log_probs: Array,
  behavior_log_probs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  surrogate: str = 'clip',
  ratio: str = 'token',
  aggregate: str = 'sequence_mean',
  constant: int | float | Array | None = None,
  weights: Array | None = None,
) -> tuple[WeightedSum, Metrics]:
  """Returns the policy-gradient loss of recorded tokens.

    clip:  -min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A)
    cispo: -sg(clip(r, 1 - clip_low, 1 + clip_high))·A·log π

    token:    r_t = exp(log π_t - log b_t)
    sequence: r_t = sg(s)·π_t/sg(π_t), s = exp(mean_t (log π_t - log b_t))

  On the tokens' own policy (π = b) both surrogates have the gradient
  -A·∇log π. The sequence ratio is GSPO-token: its value is one number a trace,
  its gradient one number a token, so per-token credit survives.

  Args:
    log_probs: f32[B,T], nats, log π, being trained.
    behavior_log_probs: f32[B,T], nats, log b, recorded when sampled.
    advantages: f32[B,T], a constant: no gradient flows into it.
    mask: bool[B,T], actions.
    clip_low: the ratio may fall this far below 1, in [0, 1].
    clip_high: the ratio may rise this far above 1, >= 0.
    surrogate: 'clip' (PPO) or 'cispo'.
    ratio: 'token' or 'sequence'.
    aggregate: as in `aggregate_tokens`.
    constant: as in `aggregate_tokens`.
    weights: f32[B,T], a factor on each token's loss and no part of the ratio,
      as of `truncated_importance_weights`; a constant. None: 1.

  Returns:
    The loss, and over the tokens of the mask: `ratio_mean` (of the ratio used),
    `clip_fraction` (tokens whose gradient was cut by the clip; for 'cispo',
    whose weight was), `approx_kl` (nats a token, k3 of KL(b‖π), tokens drawn
    from b; always of the token ratio).

  Raises:
    ValueError: wrong shape or dtype, unknown option, a number outside its
      range, constant missing.

  Example:
    >>> import math
    >>> from meta_rl import losses
    >>> loss, metrics = losses.policy_gradient(
    ...   [[math.log(2), 0.0]],  # ratios 2, which is clipped, and 1
    ...   [[0.0, 0.0]],
    ...   [[1.0, 1.0]],
    ...   [[True, True]],
    ... )
    >>> round(float(loss.value), 4)  # -(1.2 + 1) / 2
    -1.1
    >>> float(metrics['clip_fraction'].value)
    0.5

  Source: PPO (arXiv 1707.06347); CISPO (arXiv 2506.13585); GSPO (arXiv
  2507.18071).
  """
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  log_probs = _tokens('log_probs', log_probs, mask, dims)
  behavior = _tokens('behavior_log_probs', behavior_log_probs, mask, dims)
  advantages = _tokens('advantages', advantages, mask, dims)
  checks.check_choice('surrogate', surrogate, SURROGATES)
  checks.check_choice('ratio', ratio, RATIOS)
  checks.check_scalar('clip_low', clip_low, low=0, high=1)
  checks.check_scalar('clip_high', clip_high, low=0)

  advantages = jax.lax.stop_gradient(advantages)
  log_ratio = log_probs - behavior
  r = _ratio(log_probs, log_ratio, mask, ratio)
  low, high = r < 1 - clip_low, r > 1 + clip_high
  clipped = jnp.clip(r, 1 - clip_low, 1 + clip_high)
  if surrogate == 'clip':
    per_token = -jnp.minimum(r * advantages, clipped * advantages)
    cut = jnp.where(advantages > 0, high, low & (advantages < 0))
  else:
    per_token = -jax.lax.stop_gradient(clipped) * advantages * log_probs
    cut = low | high
  if weights is not None:
    weights = _tokens('weights', weights, mask, dims)
    per_token *= jax.lax.stop_gradient(weights)
  loss = aggregate_tokens(
    per_token, mask, aggregate=aggregate, constant=constant
  )
  return loss, {
    'ratio_mean': _metric(r, mask),
    'clip_fraction': _metric(cut.astype(r.dtype), mask),
    'approx_kl': _metric(KL_ESTIMATORS['k3'](log_ratio), mask),
  }


def truncated_importance_weights(
  trainer_log_probs: Array,
  behavior_log_probs: Array,
  mask: Array,
  *,
  cap: float = 2.0,
  level: str = 'token',
) -> Array:
  """Returns the weights that put a sampler's tokens under the trainer's policy.

    token:    w_t = min(exp(log π_t - log b_t), cap)
    sequence: w   = min(exp(Σ_t (log π_t - log b_t)), cap), one number a trace

  π is the policy before the update as the trainer scores it, b the one that
  sampled: another engine, dtype or an older policy. As `weights` of
  `policy_gradient`, whose `behavior_log_probs` are then π's, E_b[w·loss] is
  E_π[loss] but for what the cap takes away: it trades the variance of few huge
  ratios for a bias towards 0. 'sequence' is the exact ratio of a trace;
  'token' leaves out how likely its prefix was, at far less variance.

  Args:
    trainer_log_probs: f32[B,T], nats, log π.
    behavior_log_probs: f32[B,T], nats, log b, recorded when sampled.
    mask: bool[B,T], actions.
    cap: the largest weight, > 0.
    level: 'token' or 'sequence'.

  Returns:
    f32[B,T] in [0, cap], a constant; 1 where the mask is False.

  Raises:
    ValueError: wrong shape or dtype, unknown level, cap <= 0.

  Example:
    >>> import math
    >>> import numpy as np
    >>> from meta_rl import losses
    >>> weights = losses.truncated_importance_weights(
    ...   [[math.log(3), math.log(0.5)]], [[0.0, 0.0]], [[True, True]]
    ... )
    >>> print(np.asarray(weights).round(4))
    [[2.  0.5]]

  Source: Yao et al. 2025, 'Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training'; truncation: Ionides 2008, 'Truncated Importance
    Sampling'.
  """
  _, log_ratio, mask = _mismatch(trainer_log_probs, behavior_log_probs, mask)
  log_weights, _ = _log_weights(log_ratio, mask, level)
  checks.check_scalar('cap', cap, above=0)
  # The smaller exponent, not the smaller power: exp never overflows.
  weights = jnp.exp(jnp.minimum(log_weights, jnp.log(cap)))
  return jax.lax.stop_gradient(jnp.where(mask, weights, 1.0))


def importance_metrics(
  trainer_log_probs: Array,
  behavior_log_probs: Array,
  mask: Array,
  *,
  cap: float = 2.0,
  level: str = 'token',
) -> dict[str, Array]:
  """Returns how far a sampler was from the trainer, f32[] each.

    mismatch_mean, mismatch_max: of |log π_t - log b_t|, nats a token
    capped_share: of the weights, those that the cap cut
    ess: (Σ w)² / (n Σ w²) of the weights before the cap, in (0, 1]: the share
      of the n weights that are as good as that many fresh samples

  Weights are one a token, or one a trace for level 'sequence'. Args and raises
  as in `truncated_importance_weights`; all are 0 on an empty mask, ess is 1.

  Example:
    >>> import math
    >>> from meta_rl import losses
    >>> found = losses.importance_metrics(
    ...   [[math.log(3), 0.0]], [[0.0, 0.0]], [[True, True]]
    ... )
    >>> round(float(found['ess']), 4)  # (3 + 1)² / (2·(9 + 1))
    0.8
    >>> float(found['capped_share'])
    0.5
  """
  gap, log_ratio, mask = _mismatch(trainer_log_probs, behavior_log_probs, mask)
  log_weights, counts = _log_weights(log_ratio, mask, level)
  checks.check_scalar('cap', cap, above=0)
  share = lambda x: masked.masked_mean(x.astype(gap.dtype), counts)
  # ess does not change if all weights are scaled: by their largest, so that
  # none overflows.
  top = jnp.max(log_weights, where=counts, initial=-jnp.inf)
  scaled = jnp.where(counts, jnp.exp(log_weights - top), 0.0)
  size = jnp.maximum(jnp.sum(counts), 1)
  ess = masked.safe_divide(
    jnp.sum(scaled) ** 2, size * jnp.sum(scaled**2), fill=1.0
  )
  return {
    'mismatch_mean': masked.masked_mean(gap, mask),
    'mismatch_max': jnp.max(gap, where=mask, initial=0.0),
    'capped_share': share(log_weights > jnp.log(cap)),
    'ess': jnp.minimum(ess, 1.0),  # which rounding may pass
  }


def kl_penalty(
  log_probs: Array,
  ref_log_probs: Array,
  mask: Array,
  *,
  estimator: str = 'k1',
  aggregate: str = 'sequence_mean',
  constant: int | float | Array | None = None,
) -> tuple[WeightedSum, Metrics]:
  """Returns an estimate of KL(π‖ref) from tokens that were drawn from π.

    d = log ref - log π;   k1 = -d,   k2 = d²/2,   k3 = e^d - 1 - d

  k1 and k3 are unbiased values, k2 is not; as losses on-policy E∇k1 = 0, so k1
  is a metric or a part of the reward only, E∇k2 = ∇KL(π‖ref), and k3 (GRPO's
  term) has the gradient of KL(ref‖π).

  Args:
    log_probs: f32[B,T], nats, being trained.
    ref_log_probs: f32[B,T], nats, of the same tokens under the reference.
    mask: bool[B,T].
    estimator: 'k1', 'k2' or 'k3'.
    aggregate: as in `aggregate_tokens`.
    constant: as in `aggregate_tokens`.

  Returns:
    The penalty, nats, before its coefficient, and `ref_kl_k1`, `ref_kl_k2`,
    `ref_kl_k3` over the tokens of the mask.

  Raises:
    ValueError: wrong shape or dtype, unknown option, a number outside its
      range, constant missing.

  Example:
    >>> import math
    >>> from meta_rl import losses
    >>> _, found = losses.kl_penalty(
    ...   [[0.0]], [[math.log(2)]], [[True]]
    ... )  # d = 0.6931
    >>> {k: round(float(x.value), 4) for k, x in found.items()}
    {'ref_kl_k1': -0.6931, 'ref_kl_k2': 0.2402, 'ref_kl_k3': 0.3069}

  Source: Schulman, 'Approximating KL divergence' (2020); GRPO (arXiv
  2402.03300).
  """
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  log_probs = _tokens('log_probs', log_probs, mask, dims)
  reference = _tokens('ref_log_probs', ref_log_probs, mask, dims)
  checks.check_choice('estimator', estimator, KL_ESTIMATORS)
  values = {k: f(reference - log_probs) for k, f in KL_ESTIMATORS.items()}
  penalty = aggregate_tokens(
    values[estimator], mask, aggregate=aggregate, constant=constant
  )
  return penalty, {f'ref_kl_{k}': _metric(v, mask) for k, v in values.items()}


def value_loss(
  values: Array,
  targets: Array,
  mask: Array,
  *,
  old_values: Array | None = None,
  clip: float | None = None,
  weights: Array | None = None,
  aggregate: str = 'sequence_mean',
  constant: int | float | Array | None = None,
) -> tuple[WeightedSum, Metrics]:
  """Returns half the squared error of a value, the loss of a critic.

    ½·w·(V - R)²,   or with a clip c

    ½·w·max((V - R)², (V_old + clip(V - V_old, -c, c) - R)²)

  Clipped, a value that has moved by more than c towards its target has no
  gradient any more; one that has moved away from it keeps its own.

  Args:
    values: f32[B,T], V, being trained.
    targets: f32[B,T], R, a constant: no gradient flows into it.
    mask: bool[B,T], the tokens that the loss is a mean over.
    old_values: f32[B,T], V before the update, a constant; with `clip` alone.
    clip: c > 0, in units of the value; None: no clip.
    weights: f32[B,T], w; 0 leaves an error out, but not its token from what the
      sum is divided by: terms of one mask may be added. None: 1.
    aggregate: as in `aggregate_tokens`.
    constant: as in `aggregate_tokens`.

  Returns:
    The loss, and over the tokens of the mask: `error` (mean w·(V - R)²) and,
    with a clip, `clip_fraction` (tokens whose gradient was cut).

  Raises:
    ValueError: wrong shape or dtype, unknown option, constant missing, clip <=
      0, a clip without old_values, or they without a clip.

  Example:
    >>> from meta_rl import losses
    >>> loss, _ = losses.value_loss([[0.5]], [[1.0]], [[True]])
    >>> float(loss.value)
    0.125

  Source: PPO (arXiv 1707.06347), section 5; the clip is that of its published
  code.
  """
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  values = _tokens('values', values, mask, dims)
  targets = jax.lax.stop_gradient(_tokens('targets', targets, mask, dims))
  square = (values - targets) ** 2
  error, metrics = square, {}
  if clip is None and old_values is not None:
    raise ValueError(
      'old_values must be None without a clip, which alone looks at them, got '
      f'{checks.show(old_values)}'
    )
  if clip is not None:
    checks.check_scalar('clip', clip, above=0)
    if old_values is None:
      raise ValueError('clip needs old_values, the values before the update')
    old = jax.lax.stop_gradient(_tokens('old_values', old_values, mask, dims))
    limited = old + jnp.clip(values - old, -clip, clip)
    error = jnp.maximum(square, (limited - targets) ** 2)
    # Cut: the limit decides, and there the value itself has no say.
    cut = (error > square) & (jnp.abs(values - old) > clip)
    metrics['clip_fraction'] = _metric(cut.astype(values.dtype), mask)
  if weights is not None:
    weights = jax.lax.stop_gradient(_tokens('weights', weights, mask, dims))
    error, square = weights * error, weights * square
  loss = aggregate_tokens(
    error / 2, mask, aggregate=aggregate, constant=constant
  )
  return loss, {'error': _metric(square, mask)} | metrics


def entropy_bonus(
  entropy: Array,
  mask: Array,
  *,
  aggregate: str = 'sequence_mean',
  constant: int | float | Array | None = None,
) -> tuple[WeightedSum, Metrics]:
  """Returns minus the entropy: added to a loss, it is a bonus for exploring.

  Args:
    entropy: f32[B,T], nats, of the policy at each token.
    mask: bool[B,T].
    aggregate: as in `aggregate_tokens`.
    constant: as in `aggregate_tokens`.

  Returns:
    The loss -entropy, before its coefficient, and `entropy` (nats a token).

  Raises:
    ValueError: wrong shape or dtype, unknown option, a number outside its
      range, constant missing.

  Example:
    >>> from meta_rl import losses
    >>> loss, _ = losses.entropy_bonus([[0.5, 1.5]], [[True, True]])
    >>> float(loss.value)
    -1.0
  """
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  entropy = _tokens('entropy', entropy, mask, dims)
  loss = aggregate_tokens(
    -entropy, mask, aggregate=aggregate, constant=constant
  )
  return loss, {'entropy': _metric(entropy, mask)}


def _mismatch(trainer, behavior, mask) -> tuple[Array, Array, Array]:
  """Returns |log ratio|, the log ratio, 0 where masked, and the mask."""
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  trainer = _tokens('trainer_log_probs', trainer, mask, dims)
  behavior = _tokens('behavior_log_probs', behavior, mask, dims)
  log_ratio = jax.lax.stop_gradient(trainer - behavior)
  return jnp.abs(log_ratio), log_ratio, mask


def _log_weights(log_ratio, mask, level) -> tuple[Array, Array]:
  """Returns the log weights, [B,T] or [B,1], and which of them exist."""
  checks.check_choice('level', level, LEVELS)
  if level == 'token':
    return log_ratio, mask
  total = jnp.sum(log_ratio, axis=1, keepdims=True)
  return total, jnp.any(mask, axis=1, keepdims=True)


def _ratio(log_probs: Array, log_ratio: Array, mask: Array, kind: str) -> Array:
  """Returns f32[B,T], the importance ratio of each token; 1 where masked."""
  if kind == 'token':
    return jnp.exp(log_ratio)
  mean = masked.masked_mean(log_ratio, mask, axis=1)[:, None]
  sequence = jax.lax.stop_gradient(jnp.exp(mean))
  return sequence * jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))


def _tokens(name: str, x: Array, mask: Array, dims: dict[str, int]) -> Array:
  """Returns x, checked, with 0 where the mask is False."""
  return masked.select(mask, checks.as_array(name, x, 'float[B,T]', dims))


def _metric(x: Array, mask: Array) -> WeightedSum:
  return aggregate_tokens(
    jax.lax.stop_gradient(x), mask, aggregate='token_mean'
  )


def _check_aggregate(
  aggregate: str, constant: int | float | Array | None
) -> None:
  checks.check_choice('aggregate', aggregate, AGGREGATES)
  if constant is not None:
    checks.check_scalar('constant', constant, above=0)
  elif aggregate == 'constant':
    raise ValueError(
      "aggregate 'constant' needs constant, the tokens a sequence is divided "
      'by, e.g. constant=max_new_tokens'
    )
