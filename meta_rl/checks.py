"""The checks of every argument: one line that names it, or silence.

They look at names, shapes and dtypes only, never at traced values, so they cost
nothing under `jax.jit` and hold under `vmap`, `grad` and `shard_map`.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# What numpy and the shuffles of the data take, for `check_range`.
SEEDS = {'low': 0, 'high': 2**32 - 1}
_ARRAYS = (np.ndarray, np.generic, Array)
_INT32_MAX = 2**31 - 1

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


def show(value: Any) -> str:
  """Returns what was given in one short line: of arrays dtype and shape."""
  array = isinstance(value, _ARRAYS)
  if array and (value.shape or isinstance(value, jax.core.Tracer)):
    return f'{value.dtype}{list(value.shape)}'
  text = ' '.join((str if array else repr)(value).split())
  return text if len(text) <= 100 else f'{text[:97]}...'


def to_array(name: str, x: Any, convert: Callable = jnp.asarray) -> Any:
  """Returns `x` as an array of whatever dtype; raises ValueError if it is none.

  Args:
    name: what the caller calls the argument.
    x: array or nested sequence.
    convert: `jnp.asarray`, or `np.asarray` on the host.
  """
  leaves = [] if isinstance(x, _ARRAYS) else jax.tree.leaves(x)
  # jax takes some texts for the names of dtypes.
  text = any(isinstance(leaf, str | bytes) for leaf in leaves)
  try:
    array = None if text else convert(x)
  except (TypeError, ValueError, OverflowError):
    array = None
  if array is None or array.dtype == object:
    raise ValueError(f'{name} must be an array of numbers, got {show(x)}')
  return array


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
  x = to_array(name, x)
  check_dtype(name, x, kind)
  check_shape(name, x, axes, dims)
  if kind == 'float':
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return x


def check_filled(name: str, x: Any) -> None:
  """Raises ValueError if an axis of `x` has size 0."""
  if 0 in x.shape:
    raise ValueError(
      f'{name} must hold at least one value, got shape {list(x.shape)}'
    )


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
  """Raises ValueError unless `value` is one of `allowed`."""
  allowed = list(allowed)
  if not isinstance(value, str | None) or value not in allowed:
    raise ValueError(f'{name} must be one of {allowed}, got {show(value)}')


def check_range(
  name: str,
  value: Any,
  *,
  above: float | None = None,
  low: float | None = None,
  high: float | None = None,
  below: float | None = None,
) -> None:
  """Raises ValueError unless `value` is a number in its range.

  The values of arrays pass unseen: looking at them would stop the device or
  break a trace.

  Args:
    name: what the caller calls the argument.
    value: a Python or numpy number, or an array of numbers.
    above: it must be greater than this.
    low: it must be at least this.
    high: it must be at most this.
    below: it must be less than this; infinity: finite.
  """
  asked = [
    (above, '>', lambda bound: value > bound),
    (low, '>=', lambda bound: value >= bound),
    (high, '<=', lambda bound: value <= bound),
    (below, '<', lambda bound: value < bound),
  ]
  asked = [(b, sign, holds) for b, sign, holds in asked if b is not None]
  rule = ' and '.join(f'{sign} {bound}' for bound, sign, _ in asked)
  if isinstance(value, np.ndarray | np.generic) and value.shape == ():
    value = value.item()
  if isinstance(value, int | float) and not isinstance(value, bool):
    # NaN is in no range.
    fits = value == value and all(holds(bound) for bound, _, holds in asked)
  else:
    fits = isinstance(value, _ARRAYS) and any(
      jnp.issubdtype(value.dtype, base) for base in _KINDS['number']
    )
    rule = f'a number {rule}'
  if not fits:
    rule = rule.strip() or 'a number'
    raise ValueError(f'{name} must be {rule}, got {show(value)}')


def check_scalar(name: str, value: Any, **bounds: float) -> None:
  """Raises ValueError unless `value` is one number, traced or not.

  Args:
    name: what the caller calls the argument.
    value: a Python number, or an array of shape [].
    **bounds: of `check_range`.
  """
  if isinstance(value, _ARRAYS) and value.shape:
    raise ValueError(f'{name} must be one number, got {show(value)}')
  check_range(name, value, **bounds)


def check_spread(
  name: str, value: Any, shape: Sequence[int], **bounds: float
) -> None:
  """Raises ValueError unless `value` is a number, or one for each of an array.

  Args:
    name: what the caller calls the argument.
    value: a Python number, or an array that broadcasts to `shape`.
    shape: of the array that it is used with.
    **bounds: of `check_range`.
  """
  check_range(name, value, **bounds)
  own = value.shape if isinstance(value, _ARRAYS) else ()
  fit = zip(reversed(own), reversed(shape))
  if len(own) > len(shape) or any(n not in (1, size) for n, size in fit):
    raise ValueError(
      f'{name} must be one number or broadcast to {list(shape)}, got '
      f'{show(value)}'
    )


def check_together(name: str, x: Array, other: str, y: Array) -> None:
  """Raises ValueError unless two arrays can be broadcast against each other."""
  fit = zip(reversed(x.shape), reversed(y.shape))
  if any(a != b and 1 not in (a, b) for a, b in fit):
    raise ValueError(
      f'{name} must broadcast against {other} {list(y.shape)}, got shape '
      f'{list(x.shape)}'
    )


def check_count(
  name: str, value: Any, *, low: int = 1, high: int = _INT32_MAX
) -> int:
  """Returns a whole number as an int; raises ValueError outside low..high.

  It is one that is known when compiling, such as a size: a traced value is
  refused.
  """
  try:
    whole = None if isinstance(value, bool) else operator.index(value)
  except TypeError:
    whole = None
  if whole is None or not low <= whole <= high:
    tell = high != _INT32_MAX or (whole or 0) > high
    bound = f' and <= {high}' if tell else ''
    raise ValueError(
      f'{name} must be a whole number >= {low}{bound}, got {show(value)}'
    )
  return whole


def check_counts(
  name: str,
  value: Any,
  rows: int | None = None,
  *,
  low: int = 0,
  high: int = _INT32_MAX,
) -> int | Array:
  """Returns one whole number, or one a row; else raises ValueError.

  Args:
    name: what the caller calls the argument.
    value: a Python number, or an array, traced or not, of shape [] or [rows].
    rows: None: only shape [].
    low, high: where it must be, if it is a Python number.
  """
  if not isinstance(value, np.ndarray | Array | list | tuple):
    return check_count(name, value, low=low, high=high)
  value = as_array(name, value, 'int[...]')
  if value.shape != () and value.shape != (rows,):
    rule = '' if rows is None else f', or one for each of {rows} rows'
    raise ValueError(
      f'{name} must be one whole number{rule}, got {show(value)}'
    )
  return value


def check_ids(name: str, ids: Any, *, empty: bool = False) -> None:
  """Raises ValueError unless `ids` are whole numbers >= 0.

  Args:
    name: what the caller calls the argument.
    ids: a sequence of Python numbers, or an array int[N].
    empty: whether there may be none; else one or more.
  """
  array = isinstance(ids, np.ndarray | Array)
  given = array or (isinstance(ids, Sequence) and not isinstance(ids, str))
  if not given or getattr(ids, 'ndim', 1) != 1 or not (empty or len(ids)):
    raise ValueError(f'{name} must be a tuple of token ids, got {show(ids)}')
  if array and (len(ids) or not empty):
    check_dtype(name, ids, 'int')
  if isinstance(ids, Array):
    return
  for token in ids:
    check_count(f'{name}: a token id', token, low=0)


def check_vocabulary(name: str, ids: Any, size: int) -> None:
  """Raises ValueError for a token id that a model of `size` tokens lacks.

  Args:
    name: what the caller calls the argument.
    ids: a token id, or a sequence of them; arrays and None pass unseen.
    size: of the vocabulary.
  """
  if ids is None or isinstance(ids, Array):
    return
  one = not isinstance(ids, Sequence) and getattr(ids, 'ndim', 0) == 0
  for index, token in enumerate([ids] if one else ids):
    if not isinstance(token, Array) and not 0 <= token < size:
      raise ValueError(
        f'{name}{"" if one else f"[{index}]"}={token}; the vocabulary of the '
        f'model is 0..{size - 1}.'
      )


def check_texts(name: str, texts: Any) -> None:
  """Raises ValueError unless `texts` is a sequence of str, and not one str."""
  given = isinstance(texts, Sequence) and not isinstance(texts, str)
  if not given or not all(isinstance(text, str) for text in texts):
    raise ValueError(f'{name} must be a list of texts, got {show(texts)}')


def check_dict(name: str, tree: Any) -> None:
  """Raises ValueError unless `tree` is a dict, such as of parameters."""
  if not isinstance(tree, Mapping):
    raise ValueError(f'{name} must be a dict of arrays, got {show(tree)}')


def check_flag(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is True or False."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f'{name} must be True or False, got {show(value)}')


def check_callable(name: str, fn: Any, *, optional: bool = False) -> None:
  """Raises ValueError unless `fn` can be called; None passes if `optional`."""
  if not callable(fn) and not (optional and fn is None):
    raise ValueError(f'{name} must be a function, got {show(fn)}')


def check_axis(name: str, axis_name: Any) -> None:
  """Raises ValueError unless `axis_name` is None or a mapped axis around."""
  if axis_name is None:
    return
  try:
    jax.lax.axis_size(axis_name)
  except (NameError, TypeError, ValueError):
    raise ValueError(
      f'{name} must be the name of a mapped axis (shard_map, pmap, vmap) that '
      f'this is called under, or None, got {show(axis_name)}'
    ) from None


def check_key(name: str, key: Any) -> None:
  """Raises ValueError unless `key` is one PRNG key, typed or of raw uint32."""
  shape, dtype = getattr(key, 'shape', None), getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  raw = dtype == jnp.uint32
  raw = raw and shape == jax.eval_shape(jax.random.PRNGKey, 0).shape
  if not raw and not (typed and shape == ()):
    raise ValueError(
      f'{name} must be one key, such as jax.random.key(0), got {show(key)}'
    )


def check_model(model: Any) -> None:
  """Raises ValueError if `model` is a bare function, or no model at all."""
  names = ('apply_fn', 'features_fn')
  if not any(callable(getattr(model, name, None)) for name in names):
    raise ValueError(
      'model must be a meta_rl Model, got '
      f'{getattr(model, "__name__", type(model).__name__)!r}: '
      'meta_rl.models.from_apply_fn wraps a bare function'
    )
  given = [getattr(model, f'{n}_fn', None) for n in ('features', 'unembed')]
  if (given[0] is None) != (given[1] is None):
    raise ValueError(
      'model must have both features_fn and unembed_fn, or neither, got '
      f'{"unembed" if given[0] is None else "features"}_fn alone'
    )
