"""Where the values of a forward pass lie on a mesh: a seam to `sharding`.

Weights and a batch that lie on many devices do not say where everything between
them should: under fsdp a compiler may as well cut activations by their width,
and sum them over the devices, which moves many times the bytes of the weights.
So the model says what the dimensions of its values mean, and whoever spreads it
over a mesh says what follows. Without one nothing does.
"""

import contextlib
import contextvars
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_rl.types import Array


class Places(NamedTuple):
  """What is done to the values of a forward and backward pass.

  Attributes:
    activation: `(x, axes) -> x`, put where its dimensions belong; `axes` are
      names of the table in meta_rl/sharding/mesh.py, None for a whole one.
    gather: `(w, path) -> w`, a weight made whole but for its tensor axes.
    outer: `(x [N,D], y [N,F], path) -> f32[D,F]`, x^T y, the gradient of a
      weight, summed over all rows and cut as the weight is.
    reduce: `(parts f32[shards,D,F], path) -> f32[D,F]`, the same of sums that
      each shard has made of its own rows.
    parts: `(axis) -> int`, into how many parts a dimension of that name is cut.
    local: `(fn, args, axes, out) -> y`, `fn` called on each device's part of
      the args, which are arrays or trees of them; axes are those of each array,
      `out` those of y.
  """

  activation: Callable[[Array, tuple], Array]
  gather: Callable[[Array, str], Array]
  outer: Callable[[Array, Array, str], Array]
  reduce: Callable[[Array, str], Array]
  parts: Callable[[str], int]
  local: Callable[[Callable, tuple, tuple, tuple], Array]


_here: contextvars.ContextVar[Places | None] = contextvars.ContextVar(
  'meta_rl_places', default=None
)


# Mesh axes along which devices do the same: see `once`.
_replicas: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
  'meta_rl_replicas', default=()
)


@contextlib.contextmanager
def replicas(axes: tuple[str, ...]):
  """Says of what is traced inside that devices along `axes` do the same."""
  token = _replicas.set(axes)
  try:
    yield
  finally:
    _replicas.reset(token)


def once(fn: Callable, *args: Array) -> Array:
  """Returns fn(*args), called by one of the devices that do the same.

  For what may differ when it is asked twice: a grader on the host.

  Args:
    fn: gives an array of numbers.
    args: the same on all of them.
  """
  axes = _replicas.get()
  if not axes:
    return fn(*args)
  out = jax.eval_shape(fn, *args)
  mine = jax.lax.axis_index(axes) == 0
  nothing = lambda *_: jnp.zeros(out.shape, out.dtype)
  return jax.lax.psum(jax.lax.cond(mine, fn, nothing, *args), axes)


@contextlib.contextmanager
def use(places: Places | None):
  """Applies `places` to what is traced inside, forward and backward."""
  token = _here.set(places)
  try:
    yield
  finally:
    _here.reset(token)


def activation(x: Array, *axes: str | None) -> Array:
  """Returns x, its dimensions named by `axes`."""
  places = _here.get()
  return x if places is None else places.activation(x, axes)


def gather(w: Array, path: str) -> Array:
  """Returns a weight, ready to be multiplied by."""
  places = _here.get()
  return w if places is None else places.gather(w, path)


def outer(x: Array, y: Array, path: str) -> Array:
  """Returns x^T y in float32, the gradient of a weight over all rows."""
  places = _here.get()
  if places is None:
    return jax.lax.platform_dependent(x, y, cpu=_outer_on_cpu, default=_outer)
  return places.outer(x, y, path)


def _outer(x, y):
  return jnp.matmul(x.T, y, preferred_element_type=jnp.float32)


def _outer_on_cpu(x, y):
  """x^T y, the narrower one turned: turning the wider one takes twice as long.

  The barrier keeps XLA from doing that all the same, to save the second turn.
  """
  if x.shape[1] > y.shape[1]:
    return jax.lax.optimization_barrier(_outer(y, x)).T
  return jax.lax.optimization_barrier(_outer(x, y))


def reduce(parts: Array, path: str) -> Array:
  """Returns the sum over shards, the gradient of a weight over all rows."""
  places = _here.get()
  return parts.sum(0) if places is None else places.reduce(parts, path)


def parts(axis: str) -> int:
  """Returns into how many parts a dimension is cut, 1 without a mesh."""
  places = _here.get()
  return 1 if places is None else places.parts(axis)


def local(fn: Callable, args: tuple, axes: tuple, out: tuple) -> Array:
  """Returns fn(*args), whose parts do not depend on each other."""
  places = _here.get()
  return fn(*args) if places is None else places.local(fn, args, axes, out)
