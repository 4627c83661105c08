"""Regret of a thinking trace: how far its success lags behind a comparator.

Axes: B traces, K episodes. `success` is J, f32[B,K+1] in [0, 1]: J_j is the
chance that the answer given after j episodes is right, and past `count` it
repeats J_count. A comparator is a scalar (1: an oracle that answers right at
once) or a curve of J's shape.

Source: MRT (Qu, Yang, Setlur, Tunstall, Beeching, Salakhutdinov, Kumar 2025,
arXiv 2503.07572), Definitions 4.1 and 6.1.
"""

import jax
import jax.numpy as jnp

from meta_rl import checks, masked

Array = jax.Array

FORMS = ('trapezoid', 'step')

# Equal shares of the horizon after which logs and reports look at the accuracy,
# for the normalized regret.
NORMALIZED_POINTS = 16


def progress(success: Array, count: Array) -> Array:
  """Returns what each episode added to the chance of success.

    r_j = J_{j+1} - J_j for j < count, 0 from there on

  It telescopes: Σ_j r_j = J_count - J_0.

  Args:
    success: f32[B,K+1], probability.
    count: i32[B], number of episodes, 0..K.

  Returns:
    f32[B,K] in [-1, 1].

  Raises:
    ValueError: wrong shape or dtype.

  Example:
    >>> from meta_rl import regret
    >>> regret.progress([[0.25, 0.5, 1.0, 1.0]], [2]).tolist()
    [[0.25, 0.5, 0.0]]

  Source: arXiv 2503.07572, Definition 6.1.
  """
  success, count = _check(success, count)
  inside = jnp.arange(success.shape[1] - 1) < count[:, None]
  after = masked.select(inside, success[:, 1:])
  return after - masked.select(inside, success[:, :-1])


def cumulative(
  success: Array, comparator: float | Array, count: Array
) -> Array:
  """Returns the cumulative regret over the episodes of each trace.

    Δ = Σ_{j < count} (J*_j - J_j)

  Args:
    success: f32[B,K+1], probability.
    comparator: scalar or f32[B,K+1], J*, probability.
    count: i32[B], number of episodes, 0..K.

  Returns:
    f32[B], episodes.

  Raises:
    ValueError: wrong shape or dtype, or a comparator that is no number.

  Example:
    >>> from meta_rl import regret
    >>> regret.cumulative([[0.25, 0.5, 1.0]], 1.0, [2]).tolist()
    [1.25]

  Source: arXiv 2503.07572, Definition 4.1.
  """
  success, count = _check(success, count)
  gap = _comparator(comparator, success) - success
  inside = jnp.arange(success.shape[1]) < count[:, None]
  return masked.masked_sum(gap, inside, axis=1)


def token_weighted(
  success: Array,
  ends: Array,
  *,
  horizon: int | float | Array,
  comparator: float | Array = 1.0,
) -> Array:
  """Returns the regret per token of a budget of `horizon` tokens.

    (1/H) ∫_0^H (J*(t) - J(t)) dt,   J(t) = J_j for e_j <= t < e_{j+1}

  with e_j = ends[j] - ends[0], the last value held to the horizon, and
  boundaries past the horizon clipped to it. This is the headline regret: one
  minus it (comparator 1) is the expected success at a budget drawn uniformly
  from the horizon.

  Args:
    success: f32[B,K+1], probability; past count it repeats J_count.
    ends: i32[B,K+1], tokens, nondecreasing along K.
    horizon: H, tokens, > 0.
    comparator: scalar or f32[B,K+1], which holds as J does.

  Returns:
    f32[B] in [0, 1] for a comparator of 1.

  Raises:
    ValueError: wrong shape or dtype, or horizon <= 0.

  Example:
    >>> from meta_rl import regret
    >>> regret.token_weighted(
    ...   [[0.25, 0.5, 1.0]], [[3, 5, 9]], horizon=8
    ... ).tolist()  # (2·0.75 + 4·0.5 + 2·0) / 8
    [0.4375]
  """
  dims = {}
  success = checks.as_array('success', success, 'float[B,K+1]', dims)
  ends = checks.as_array('ends', ends, 'int[B,K+1]', dims)

  gap = _comparator(comparator, success) - success
  return jnp.sum(shares(ends, horizon=horizon) * gap, axis=1)


def shares(ends: Array, *, horizon: int | float | Array) -> Array:
  """Returns the share of the horizon for which the J of a boundary holds.

    s_j = (min(e_{j+1}, H) - min(e_j, H)) / H,   e_j = ends[j] - ends[0]

  the last one until the horizon. They add up to 1; boundaries past the horizon
  have none, nor have those that repeat, but for the very last.

  Args:
    ends: i32[B,K+1], tokens, nondecreasing along K.
    horizon: H, tokens, > 0.

  Returns:
    f32[B,K+1].

  Raises:
    ValueError: wrong shape or dtype, or horizon <= 0.

  Example:
    >>> from meta_rl import regret
    >>> regret.shares([[3, 5, 9]], horizon=8).tolist()
    [[0.25, 0.5, 0.25]]
  """
  ends = checks.as_array('ends', ends, 'int[B,K+1]')
  checks.check_scalar('horizon', horizon, above=0)
  elapsed = jnp.minimum((ends - ends[:, :1]) / horizon, 1.0)
  horizon_end = jnp.ones_like(elapsed[:, :1])
  return jnp.diff(jnp.concatenate([elapsed, horizon_end], axis=1), axis=1)


def normalized(
  accuracy: Array,
  tokens: Array,
  *,
  horizon: int | float | Array,
  comparator: float | Array = 1.0,
  form: str = 'trapezoid',
) -> Array:
  """Returns the normalized regret of a curve of accuracy against tokens.

    R(H) = (1/H) ∫_0^H (comparator - accuracy(t)) dt

  'trapezoid' joins (0, 0), (t_0, a_0), (t_1, a_1), … by straight lines, read
  off at H and flat after the last point; this is the published figure. A point
  measured at t = 0 takes the place of the origin. 'step' holds a value from its
  own point until the next (0 before the first), which is what a policy that can
  only answer at measured points gets, and what `token_weighted` computes.
  Tokens that run backwards are lifted to the largest one before them.

  Args:
    accuracy: f32[...,N], fraction right.
    tokens: f32[...,N] or i32, tokens at which it was measured; leading axes may
      broadcast against `accuracy`.
    horizon: H, tokens, > 0.
    comparator: scalar, or f32[...,N] at the same tokens and of the same form,
      held at its first value before the first point.
    form: 'trapezoid' or 'step'.

  Returns:
    f32[...].

  Raises:
    ValueError: wrong shape or dtype, horizon <= 0, or an unknown form.

  Example:
    >>> from meta_rl import regret
    >>> curve = [0.0, 0.5], [2, 4]  # right at 2 and at 4 tokens
    >>> regret.normalized(*curve, horizon=8).tolist()  # 1 - (0.5 + 2) / 8
    0.6875
    >>> regret.normalized(*curve, horizon=8, form='step').tolist()
    0.75

  Source: arXiv 2503.07572, section 8 and its public notebooks.
  """
  dims = {}
  accuracy = checks.as_array('accuracy', accuracy, 'float[...,N]', dims)
  tokens = checks.as_array('tokens', tokens, 'number[...,N]', dims)
  checks.check_scalar('horizon', horizon, above=0)
  checks.check_choice('form', form, FORMS)
  if dims['N'] == 0:
    raise ValueError('accuracy must hold at least one point, got none')

  curve = _is_curve(comparator)
  if curve:
    comparator = checks.as_array('comparator', comparator, 'float[...,N]', dims)
    checks.check_together('comparator', comparator, 'tokens', tokens)
  checks.check_together('tokens', tokens, 'accuracy', accuracy)

  times = jnp.maximum(tokens / horizon, 0.0)
  times = jax.lax.cummax(times, axis=times.ndim - 1)
  area = _area(times, accuracy, jnp.zeros_like(accuracy[..., :1]), form)
  if curve:
    return _area(times, comparator, comparator[..., :1], form) - area
  return comparator - area


def _area(times: Array, values: Array, origin: Array, form: str) -> Array:
  """Returns ∫_0^1 of the curve through (0, origin), (times, values), flat on.

  Args:
    times: f32[...,N], nondecreasing, in horizons.
    values: f32[...,N].
    origin: f32[...,1], the value at time 0.
    form: 'trapezoid' or 'step'.
  """
  shape = jnp.broadcast_shapes(times.shape, values.shape)
  times = jnp.broadcast_to(times, shape)
  values = jnp.broadcast_to(values, shape)
  origin = jnp.broadcast_to(origin, (*shape[:-1], 1))
  left_time = jnp.concatenate([jnp.zeros_like(origin), times[..., :-1]], -1)
  left = jnp.concatenate([origin, values[..., :-1]], -1)
  width = jnp.minimum(times, 1.0) - jnp.minimum(left_time, 1.0)
  if form == 'step':
    height = left
  else:
    slope = masked.safe_divide(values - left, times - left_time)
    height = left + slope * width / 2
  tail = values[..., -1] * (1.0 - jnp.minimum(times[..., -1], 1.0))
  return jnp.sum(width * height, axis=-1) + tail


def _check(success: Array, count: Array) -> tuple[Array, Array]:
  dims = {}
  success = checks.as_array('success', success, 'float[B,K+1]', dims)
  return success, checks.as_array('count', count, 'int[B]', dims)


def _comparator(comparator: float | Array, success: Array) -> Array:
  """Returns the comparator, a scalar or an array of the shape of `success`."""
  if not _is_curve(comparator):
    return jnp.asarray(comparator)
  comparator = checks.as_array('comparator', comparator, 'float[...]')
  checks.check_shape('comparator', comparator, success.shape)
  return comparator


def _is_curve(comparator: float | Array) -> bool:
  """Returns whether there is a comparator for each point, or one number."""
  if isinstance(comparator, list | tuple) or getattr(comparator, 'ndim', 0):
    return True
  checks.check_scalar('comparator', comparator)
  return False
