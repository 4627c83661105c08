"""Forking, growing, picking and moving rows of any model's cache.

A cache is whatever pytree `model.init_cache(batch, length)` gives. Which axis
of a leaf is the batch and which is the length is read off the shapes that
`init_cache` would give for other sizes, so a foreign model needs no convention:
scanned layers (layer axis first) and token buffers work alike.
"""

import jax
import jax.numpy as jnp

from meta_rl.types import Array, Cache, Model


def _axes(model: Model, first: tuple[int, int], second: tuple[int, int]):
  """Returns, for every leaf, the axes on which two caches' shapes differ."""
  shapes = [
    jax.eval_shape(lambda s=size: model.init_cache(*s))
    for size in (first, second)
  ]
  differ = lambda a, b: tuple(
    i for i, (x, y) in enumerate(zip(a.shape, b.shape)) if x != y
  )
  return jax.tree.map(differ, *shapes)


def _map(fn, cache: Cache, axes) -> Cache:
  """Applies `fn(leaf, axis)` along each of a leaf's axes."""
  leaves, tree = jax.tree.flatten(cache)
  out = []
  for leaf, leaf_axes in zip(leaves, tree.flatten_up_to(axes)):
    for axis in leaf_axes:
      leaf = fn(leaf, axis)
    out.append(leaf)
  return tree.unflatten(out)


def fork(model: Model, cache: Cache, copies: int) -> Cache:
  """Returns a cache in which each row stands `copies` times in succession."""
  axes = _axes(model, (2, 4), (3, 4))
  return _map(lambda x, i: jnp.repeat(x, copies, axis=i), cache, axes)


def take(model: Model, cache: Cache, rows: Array) -> Cache:
  """Returns the cache of the given rows i32[R]."""
  axes = _axes(model, (2, 4), (3, 4))
  return _map(lambda x, i: jnp.take(x, rows, axis=i), cache, axes)


def grow(model: Model, cache: Cache, slots: int) -> Cache:
  """Returns a cache with `slots` more empty slots at its end."""

  def pad(leaf, axis):
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, slots)
    return jnp.pad(leaf, widths)

  return _map(pad, cache, _axes(model, (2, 4), (2, 5)))


def behind(
  model: Model, cache: Cache, rows: Array, length: int, slots: int
) -> Cache:
  """Returns rows i32[R] of a cache behind `slots` empty ones, next to fill.

      cache    a b c d . .      length 3, slots 2:    . . a b c

  What is written next comes before what is there: the mask that the model is
  given has to say what a query sees.
  """
  first, last = _axes(model, (2, 4), (3, 4)), _axes(model, (2, 4), (2, 5))

  def cut(leaf, axis):
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (slots, 0)
    return jnp.pad(jax.lax.slice_in_dim(leaf, 0, length, axis=axis), widths)

  filled = _map(cut, take(model, cache, rows), last)
  fresh = model.init_cache(len(rows), slots + length)
  old, tree = jax.tree.flatten(filled)
  # What is of neither a row nor a slot says how many are filled: none.
  kept = [
    new if not (b or s) else x
    for x, new, b, s in zip(
      old,
      tree.flatten_up_to(fresh),
      tree.flatten_up_to(first),
      tree.flatten_up_to(last),
    )
  ]
  return tree.unflatten(kept)


def put_row(
  model: Model, cache: Cache, row: Array, source: Cache, source_row: Array
) -> Cache:
  """Returns a cache whose row i32[] is one of another, shorter cache.

  The slots behind those of `source` are empty. What has no row, such as the
  index of the next slot, stays.
  """
  batch = _axes(model, (2, 4), (3, 4))
  length = _axes(model, (2, 4), (2, 5))

  def put(leaf, given, axis, long):
    if not axis:
      return leaf
    (axis,) = axis
    own = jax.lax.dynamic_slice_in_dim(given, source_row, 1, axis)
    widths = [(0, 0)] * leaf.ndim
    for i in long:
      widths[i] = (0, leaf.shape[i] - given.shape[i])
    own = jnp.pad(own, widths)
    return jax.lax.dynamic_update_slice_in_dim(leaf, own, row, axis)

  return _over(put, cache, source, batch, length)


def put_unrolled(
  model: Model,
  cache: Cache,
  row: Array,
  source: Cache,
  source_row: Array,
  *,
  fixed: int,
  begin: Array,
) -> Cache:
  """Returns a cache whose row i32[] is one of another that is partly a ring.

    fixed 2, begin 1      source  a b | 5 1 2 3 4      cache  a b 1 2 3 4 5

  Args:
    model: whose caches they are.
    cache: in which a row is put; of at most as many slots as `source`.
    row: i32[], which.
    source: the first `fixed` slots stand, those behind them are a ring.
    source_row: i32[].
    fixed: slots.
    begin: i32[], where in its ring the row begins.
  """
  batch = _axes(model, (2, 4), (3, 4))
  length = _axes(model, (2, 4), (2, 5))

  def put(leaf, given, axis, long):
    if not axis:
      return leaf
    (axis,) = axis
    own = jax.lax.dynamic_slice_in_dim(given, source_row, 1, axis)
    for i in long:
      head, ring = jnp.split(own, [fixed], axis=i)
      twice = jnp.concatenate([ring, ring], axis=i)
      ring = jax.lax.dynamic_slice_in_dim(twice, begin, ring.shape[i], i)
      own = jnp.concatenate([head, ring], axis=i)
      own = jax.lax.slice_in_dim(own, 0, leaf.shape[i], axis=i)
    return jax.lax.dynamic_update_slice_in_dim(leaf, own, row, axis)

  return _over(put, cache, source, batch, length)


def _over(put, cache, source, batch, length) -> Cache:
  """Returns `put(leaf, leaf of source, its batch axes, its length axes)`."""
  leaves, tree = jax.tree.flatten(cache)
  others = map(tree.flatten_up_to, (source, batch, length))
  return tree.unflatten([put(*each) for each in zip(leaves, *others)])
