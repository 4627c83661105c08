"""A training state as a table of named arrays, for what goes to disk.

Storage sees nested dicts of plain arrays only, so that a checkpoint reads the
same whatever classes the optimizer's state is made of. A typed PRNG key is
stored as its raw words, with the name of its implementation beside it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Leaves = dict[tuple[str, ...], Any]


def is_key(leaf) -> bool:
  """Returns whether a leaf is an array of typed PRNG keys."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def flatten(state) -> Leaves:
  """Returns {('params', 'w'): leaf}; NamedTuples and dataclasses by field.

  Raises:
    TypeError: a leaf that is no array, or two leaves of one name.
  """
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    if not hasattr(leaf, 'dtype') or not hasattr(leaf, 'shape'):
      raise TypeError(
        f'state leaf {"/".join(names)} is a {type(leaf).__name__}; allowed are '
        'arrays: wrap it in jnp.asarray'
      )
    if names in flat:
      raise TypeError(f'two state leaves are named {"/".join(names)}')
    flat[names] = leaf
  return flat


def nest(flat: Leaves) -> dict:
  """Returns nested dicts of the leaves."""
  tree = {}
  for names, leaf in flat.items():
    node = tree
    for name in names[:-1]:
      node = node.setdefault(name, {})
    node[names[-1]] = leaf
  return tree


def describe(flat: Leaves) -> dict[str, list]:
  """Returns the table of leaves: 'params/w' -> [shape, dtype], as JSON."""
  return {
    '/'.join(names): [list(leaf.shape), str(leaf.dtype)]
    for names, leaf in flat.items()
  }


def key_impls(flat: Leaves) -> dict[str, str]:
  """Returns the implementation of each PRNG key, e.g. 'threefry2x32'."""
  return {
    '/'.join(names): str(jax.random.key_impl(leaf))
    for names, leaf in flat.items()
    if is_key(leaf)
  }


def first_difference(saved: Mapping, wanted: Mapping) -> str | None:
  """Returns what differs first between two tables, None if they are equal."""

  def show(entry):
    return 'nothing' if entry is None else f'{entry[1]}{entry[0]}'

  for name in [*wanted, *saved]:
    if saved.get(name) != wanted.get(name):
      return (
        f'leaf {name} is {show(saved.get(name))} in the checkpoint and '
        f'{show(wanted.get(name))} in this run'
      )
  return None


def to_save(leaf):
  """Returns the array to store, free of the caller's buffers."""
  data = jax.random.key_data(leaf) if is_key(leaf) else leaf
  # On CPU a background write would read the very buffer that the next,
  # donating step overwrites; elsewhere Orbax copies to the host first.
  if isinstance(data, jax.Array):
    on_cpu = next(iter(data.sharding.device_set)).platform == 'cpu'
    return jnp.copy(data) if on_cpu else data
  return np.array(data)


def stored(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """Returns what is stored of a leaf: of a typed key, its raw words."""
  if not is_key(leaf):
    return leaf
  data = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def from_stored(data, impl: str | None) -> jax.Array:
  """Returns the leaf of a stored array; inverse of `to_save`.

  numpy becomes an array that is not committed to a device, as those of a fresh
  run are: a committed one would make every jitted call compile anew.
  """
  leaf = jnp.asarray(data)
  return leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)


def named_sharding(leaf) -> jax.sharding.NamedSharding | None:
  """Returns where a leaf must go, None if anywhere will do."""
  sharding = getattr(leaf, 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    return sharding
  return None


def place(abstract_state, shardings=None) -> Leaves:
  """Returns the leaves as `jax.ShapeDtypeStruct`s with their shardings.

  Args:
    abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`s.
    shardings: pytree like it or one sharding for all; None takes the leaves'
      own `NamedSharding`s.
  """
  flat = flatten(abstract_state)
  if shardings is None:
    placed = [named_sharding(leaf) for leaf in flat.values()]
  elif isinstance(shardings, jax.sharding.Sharding):
    placed = [shardings] * len(flat)
  else:
    treedef = jax.tree_util.tree_structure(abstract_state)
    placed = treedef.flatten_up_to(shardings)
  return {
    names: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    for (names, leaf), sharding in zip(flat.items(), placed, strict=True)
  }
