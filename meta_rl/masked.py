"""Masked sums, and 'first True' without argmax.

Masked positions may hold anything, NaN and infinities included. The rule that
keeps them out of values and gradients: replace them *before* the arithmetic
(`select`), and mask the result again. Masking the result alone leaves
0 * inf = NaN in the backward pass.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def select(mask: Array, x: Array, fill: float = 0) -> Array:
  """Returns x where the mask is True, `fill` elsewhere, without NaN leaks.

  Applied to the inputs of an expression it keeps both its value and its
  gradient finite: the cotangent of an unselected element is exactly 0.

  Args:
    mask: bool[...], broadcastable to x.
    x: [...], may hold NaN or infinities where the mask is False.
    fill: a value at which the expression that follows is finite.
  """
  return jnp.where(mask, x, jnp.asarray(fill, x.dtype))


def masked_sum(x: Array, mask: Array, axis=None) -> Array:
  """Returns the sum of x over the True positions of the mask."""
  return jnp.sum(select(mask, x), axis=axis)


def masked_mean(x: Array, mask: Array, axis=None) -> Array:
  """Returns the mean of x over the True positions; 0 where there is none."""
  size = jnp.sum(jnp.broadcast_to(mask, x.shape), axis=axis, dtype=x.dtype)
  return masked_sum(x, mask, axis) / jnp.maximum(size, 1)


def safe_divide(x: Array, y: Array, fill: float = 0.0) -> Array:
  """Returns x / y, and `fill` where y is 0, with finite gradients."""
  empty = y == 0
  return jnp.where(empty, fill, x / jnp.where(empty, 1, y))


def exclusive_cumsum(x: Array, axis: int = -1) -> Array:
  """Returns the sum of what lies before each position.

  In:  [0, 1, 0, 1, 0]
  Out: [0, 0, 1, 1, 2]

  Args:
    x: [...], numbers, or bool, which is counted in int32.
    axis: the axis to run along.
  """
  x = x.astype(jnp.int32) if x.dtype == jnp.bool_ else x
  return jnp.cumsum(x, axis=axis, dtype=x.dtype) - x


def reverse_cumsum(x: Array, axis: int = -1) -> Array:
  """Returns the sum of each position and all that follow it.

  In:  [1, 2, 4]
  Out: [7, 6, 4]

  Args:
    x: [...], numbers.
    axis: the axis to run along.
  """
  return jax.lax.cumsum(x, axis=axis % x.ndim, reverse=True)


def before_first(mask: Array, axis: int = -1) -> Array:
  """Returns True up to and including the first True; everywhere without one.

  In:  [F, F, T, F, T]   [T, F, F, F, F]   [F, F, F, F, F]
  Out: [T, T, T, F, F]   [T, F, F, F, F]   [T, T, T, T, T]

  `argmax(mask)` is 0 in the last two cases alike; counting the Trues before a
  position tells them apart.

  Args:
    mask: bool[...].
    axis: the axis to run along.
  """
  return exclusive_cumsum(mask, axis) == 0


def first_true_index(mask: Array, axis: int = -1) -> Array:
  """Returns i32, the index of the first True along the axis; -1 without one."""
  index = jnp.sum(before_first(mask, axis), axis=axis, dtype=jnp.int32) - 1
  return jnp.where(jnp.any(mask, axis=axis), index, -1)


def last_true_index(mask: Array, axis: int = -1) -> Array:
  """Returns i32, the index of the last True along the axis; -1 without one."""
  reverse = first_true_index(jnp.flip(mask, axis), axis)
  return jnp.where(reverse < 0, -1, mask.shape[axis] - 1 - reverse)
