"""Masked sums, 'first True' without argmax, and the checks of every argument.

Masked positions may hold anything, NaN and infinities included. The rule that
keeps them out of values and gradients: replace them *before* the arithmetic
(`select`), and mask the result again. Masking the result alone leaves
0 * inf = NaN in the backward pass.

The checks look at names, shapes and dtypes only, never at traced values, so
they cost nothing under `jax.jit` and hold under `vmap`, `grad` and `shard_map`.
"""

import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# What numpy and the shuffles of the data take, for `check_range`.
SEEDS = {'low': 0, 'high': 2**32 - 1}

_KINDS = {
  'float': (jnp.floating,),
  'int': (jnp.integer,),
  'bool': (jnp.bool_,),
  'number': (jnp.floating, jnp.integer),
}


def check_dtype(name: str, x: Any, kind: str) -> None:
  """Raises ValueError unless `x` is of `kind`.

  Args:
    name: what the caller calls the argument.
    x: anything with a dtype.
    kind: 'float', 'int', 'bool' or 'number' (float or int).
  """
  if not any(jnp.issubdtype(x.dtype, base) for base in _KINDS[kind]):
    raise ValueError(
      f'{name} must hold {kind} values, got dtype {x.dtype}: '
      f'convert it with .astype() if that is what you mean'
    )


def check_shape(
  name: str,
  x: Any,
  spec: str | Sequence[str | int | None],
  dims: dict[str, int] | None = None,
) -> dict[str, int]:
  """Raises ValueError unless the shape of `x` fits `spec`; returns the sizes.

  Args:
    name: what the caller calls the argument.
    x: anything with a shape.
    spec: axes, 'B,K+1' or ('B', 'K+1'). A letter takes any size the first time
      and that size from then on, a number is exact, None is free, and a leading
      '...' stands for any number of axes.
    dims: sizes of letters already met. It is written to, so that one dict
      passed to several calls ties the arguments of a function together.

  Returns:
    `dims`.
  """
  dims = {} if dims is None else dims
  axes = spec.split(',') if isinstance(spec, str) else list(spec)
  axes = [a.strip() if isinstance(a, str) else a for a in axes if a != '']
  shape = tuple(x.shape)
  if axes and axes[0] == '...':
    axes = axes[1:]
    shape = shape[max(len(shape) - len(axes), 0) :]
  fits = len(shape) == len(axes)
  found = dict(dims)
  for axis, size in zip(axes, shape, strict=False):
    fits = fits and _fit(axis, size, found)
  if not fits:
    known = ', '.join(f'{k}={v}' for k, v in dims.items())
    wanted = spec if isinstance(spec, str) else ','.join(map(str, spec))
    raise ValueError(
      f'{name} must have shape [{wanted}]'
      + (f' with {known}' if known else '')
      + f', got {list(x.shape)}'
    )
  dims.update(found)
  return dims


def _fit(axis: str | int | None, size: int, found: dict[str, int]) -> bool:
  """True if `size` fits one axis of a spec; binds a letter met first."""
  if axis is None:
    return True
  if isinstance(axis, int) or axis.isdigit():
    return size == int(axis)
  letter, _, extra = axis.partition('+')
  size -= int(extra or 0)
  return size >= 0 and found.setdefault(letter, size) == size


def as_array(
  name: str, x: Any, spec: str, dims: dict[str, int] | None = None
) -> Array:
  """Returns `x` as an array after checking its dtype and shape.

  Args:
    name: what the caller calls the argument.
    x: array or nested sequence.
    spec: 'float[B,K+1]', a kind of `check_dtype` and the axes of `check_shape`.
    dims: as in `check_shape`.

  Returns:
    The array; bf16 and f16 values come back as f32, since the differences and
    exponentials downstream need its mantissa.
  """
  kind, axes = re.fullmatch(r'(\w+)\[(.*)\]', spec).groups()
  x = jnp.asarray(x)
  check_dtype(name, x, kind)
  check_shape(name, x, axes, dims)
  if kind == 'float':
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return x


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
  """Raises ValueError unless `value` is one of `allowed`."""
  allowed = list(allowed)
  if value not in allowed:
    raise ValueError(f'{name} must be one of {allowed}, got {value!r}')


def check_range(
  name: str,
  value: Any,
  *,
  above: float | None = None,
  low: float | None = None,
  high: float | None = None,
) -> None:
  """Raises ValueError if a Python number is outside its range.

  Arrays pass unseen: looking at their values would stop the device or break a
  trace.

  Args:
    name: what the caller calls the argument.
    value: the number.
    above: it must be greater than this.
    low: it must be at least this.
    high: it must be at most this.
  """
  if not isinstance(value, numbers.Real):
    return
  asked = [
    (above, '>', lambda bound: value > bound),
    (low, '>=', lambda bound: value >= bound),
    (high, '<=', lambda bound: value <= bound),
  ]
  asked = [(b, sign, holds) for b, sign, holds in asked if b is not None]
  if not all(holds(bound) for bound, _, holds in asked):
    rule = ' and '.join(f'{sign} {bound}' for bound, sign, _ in asked)
    raise ValueError(f'{name} must be {rule}, got {value}')


def check_count(name: str, value: Any, *, low: int = 1) -> None:
  """Raises ValueError unless `value` is a whole Python number >= `low`."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < low:
    raise ValueError(f'{name} must be a whole number >= {low}, got {value!r}')


def check_scalar(name: str, value: Any, **bounds: float) -> None:
  """Raises ValueError unless `value` is one number, traced or not.

  Args:
    name: what the caller calls the argument.
    value: a Python number, or an array of shape [].
    **bounds: of `check_range`.
  """
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not number and getattr(value, 'shape', None) != ():
    got = list(value.shape) if hasattr(value, 'shape') else repr(value)
    raise ValueError(f'{name} must be one number, got {got}')
  check_range(name, value, **bounds)


def check_ids(name: str, ids: Any) -> None:
  """Raises ValueError unless `ids` are one or more whole numbers >= 0."""
  given = isinstance(ids, Sequence | Array) and not isinstance(ids, str)
  if not given or getattr(ids, 'ndim', 1) != 1 or not len(ids):
    raise ValueError(f'{name} must be a tuple of token ids, got {ids!r}')
  if isinstance(ids, Array):
    check_dtype(name, ids, 'int')
    return
  for token in ids:
    check_count(f'{name}: a token id', token, low=0)


def check_key(name: str, key: Any) -> None:
  """Raises ValueError unless `key` is one PRNG key, typed or of raw uint32."""
  shape, dtype = getattr(key, 'shape', None), getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  raw = dtype == jnp.uint32 and shape is not None and len(shape) == 1
  if not raw and not (typed and shape == ()):
    raise ValueError(
      f'{name} must be one key, such as jax.random.key(0), got {key!r}'
    )


def check_model(model: Any) -> None:
  """Raises ValueError if `model` is a bare function, or no model at all."""
  if not hasattr(model, 'apply_fn') and not hasattr(model, 'features_fn'):
    raise ValueError(
      'model must be a meta_rl Model, got '
      f'{getattr(model, "__name__", type(model).__name__)!r}: '
      'meta_rl.models.from_apply_fn wraps a bare function'
    )


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
