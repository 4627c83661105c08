"""Learning-rate schedules and the optimizer."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# The share of the peak learning rate left at progress t in [0, 1], t being
# counted from the end of the warm-up.
_DECAYS = {
  'constant': lambda t: jnp.ones_like(t),
  'linear': lambda t: 1.0 - t,
  'cosine': lambda t: 0.5 * (1.0 + jnp.cos(math.pi * t)),
}

# Parameters that are no matrices whatever their rank: layers that are scanned
# stack the D entries of a norm or bias to [layers, D].
_NEVER_DECAYED = ('scale', 'bias')


def _check(condition: bool, given: str, allowed: str):
  if not condition:
    raise ValueError(f'{given} is given; allowed is {allowed}')


def make_schedule(
  *,
  learning_rate: float,
  schedule: str = 'constant',
  warmup_steps: int = 0,
  total_steps: int | None = None,
  final_fraction: float = 0.0,
) -> Callable[[jax.Array], jax.Array]:
  """Returns `schedule_fn(step) -> f32[]`, the learning rate of update `step`.

  With i the 0-based update, W the warm-up, N the total and f the final
  fraction: lr * (i + 1) / W while i < W, then
  lr * (f + (1 - f) * decay((i - W) / (N - W))). Warm-up counts from i + 1, so
  that the first update is not thrown away on a learning rate of 0.

  Args:
    learning_rate: the peak, > 0.
    schedule: 'constant', 'cosine' or 'linear' (down to `final_fraction`).
    warmup_steps: updates of linear warm-up, >= 0.
    total_steps: updates in all; needed by 'cosine' and 'linear'.
    final_fraction: share of the peak that remains at the end, in [0, 1].

  Raises:
    ValueError: a value outside its range.
  """
  _check(
    math.isfinite(learning_rate) and learning_rate > 0,
    f'learning_rate={learning_rate}',
    'a finite number > 0',
  )
  _check(schedule in _DECAYS, f'schedule={schedule!r}', f'{sorted(_DECAYS)}')
  _check(warmup_steps >= 0, f'warmup_steps={warmup_steps}', '>= 0')
  _check(0 <= final_fraction <= 1, f'final_fraction={final_fraction}', '0 to 1')
  if schedule == 'constant':
    span = 1
  else:
    _check(
      total_steps is not None and total_steps > warmup_steps,
      f'total_steps={total_steps} with schedule={schedule!r}',
      f'a number of updates > warmup_steps={warmup_steps}',
    )
    span = total_steps - warmup_steps

  def schedule_fn(step):
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
    progress = jnp.clip((step - warmup_steps) / span, 0.0, 1.0)
    decay = _DECAYS[schedule](progress)
    return (
      learning_rate * warm * (final_fraction + (1 - final_fraction) * decay)
    )

  return schedule_fn


def decay_mask(params) -> dict:
  """Returns a pytree of bools: True where weight decay applies.

  Matrices decay (ndim >= 2); norm scales and biases do not, not even when
  scanned layers stack them to rank 2.
  """

  def is_matrix(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True) if path else ''
    return leaf.ndim >= 2 and name not in _NEVER_DECAYED

  return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_optimizer(
  *,
  learning_rate: float,
  schedule: str = 'constant',
  warmup_steps: int = 0,
  total_steps: int | None = None,
  final_fraction: float = 0.0,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  max_grad_norm: float | None = 1.0,
) -> tuple[optax.GradientTransformation, Callable]:
  """Returns `(optimizer, schedule_fn)`: clip by the global norm, then AdamW.

  g <- g * min(1, max_grad_norm / ||g||), with ||g|| over all parameters: the
  direction of the update stays, unlike with clipping element by element. Then
  AdamW with decoupled decay on matrices only (`decay_mask`).

  Args:
    learning_rate: the peak, > 0.
    schedule: 'constant', 'cosine' or 'linear'.
    warmup_steps: updates of linear warm-up, >= 0.
    total_steps: updates in all; needed by 'cosine' and 'linear'.
    final_fraction: share of the peak that remains at the end, in [0, 1].
    weight_decay: >= 0, multiplied by the learning rate.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the root of the second moment, > 0.
    max_grad_norm: > 0, or None for no clipping.

  Raises:
    ValueError: a value outside its range.

  Source: Loshchilov and Hutter 2019, 'Decoupled weight decay regularization',
  arXiv 1711.05101.
  """
  schedule_fn = make_schedule(
    learning_rate=learning_rate,
    schedule=schedule,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
    final_fraction=final_fraction,
  )
  _check(
    math.isfinite(weight_decay) and weight_decay >= 0,
    f'weight_decay={weight_decay}',
    'a finite number >= 0',
  )
  _check(0 <= b1 < 1, f'b1={b1}', '0 <= b1 < 1')
  _check(0 <= b2 < 1, f'b2={b2}', '0 <= b2 < 1')
  _check(eps > 0, f'eps={eps}', '> 0')
  _check(
    max_grad_norm is None or max_grad_norm > 0,
    f'max_grad_norm={max_grad_norm}',
    '> 0, or None for no clipping',
  )
  adamw = optax.adamw(
    schedule_fn,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=decay_mask,
  )
  clip = (
    optax.identity()
    if max_grad_norm is None
    else optax.clip_by_global_norm(max_grad_norm)
  )
  return optax.chain(clip, adamw), schedule_fn
