"""One program, spread over a mesh, and how values get to it.

sharded_update   jit and NamedSharding: one program of all devices; where only
                 data is split, shard_map
rows_call        shard_map: each device runs it on its own rows, and stops
                 alone
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from meta_rl import places
from meta_rl.sharding.mesh import (
  LOGICAL_AXES,
  batch_sharding,
  data_shards,
  model_places,
  replicated,
  state_shardings,
)
from meta_rl.update import LossFn

DATA = 'data'  # the mesh axis that splits nothing but rows


def sharded_update(
  mesh: Mesh, make_update: Callable, *, mini_batches: int = 1
) -> Callable:
  """Returns `update(state, *batch)` as one program that is spread over a mesh.

  Args:
    mesh: of `make_mesh`.
    make_update: `(axis_name, spread) -> update(state, *batch) -> (state,
      metrics)`, where `axis_name` is that of `update.update` and
      `spread(loss_fn)` the loss to train on.
    mini_batches: those of `update.update`.
  """
  if 1 < mesh.size == mesh.shape[DATA]:
    return _data_update(mesh, make_update, mini_batches)
  update = make_update(None, lambda loss_fn: _spread(loss_fn, mesh))

  def sharded(state, *batch):
    # Cutting rows that lie on devices in order would put a mini-batch on a few
    # of them. Every device takes all rows instead (a few bytes a token), and
    # `_spread` lets it keep its share of each micro-batch.
    batch = jax.lax.with_sharding_constraint(batch, replicated(mesh))
    with places.use(model_places(mesh)):
      state, metrics = update(state, *batch)
    # Out as it came in: the donated memory is reused, nothing is retraced.
    state = jax.lax.with_sharding_constraint(
      state, state_shardings(state, mesh)
    )
    return state, jax.lax.with_sharding_constraint(metrics, replicated(mesh))

  return sharded


def _data_update(mesh, make_update, mini_batches):
  """Returns the update of whole weights on every device, by shard_map.

  The compiler would sum the gradient over devices in every micro-batch; here
  each device adds up its own, and they are summed once an optimizer step.
  """
  update = make_update(DATA, lambda loss_fn: loss_fn)
  shards, rows, whole = mesh.size, PartitionSpec(DATA), PartitionSpec()

  def own_rows(x):
    return deal(x, mini_batches, shards).reshape(x.shape)

  def sharded(state, *batch):
    count = jax.tree.leaves(batch)[0].shape[0]
    if count % (mini_batches * shards):
      raise ValueError(
        f'{count} rows in {mini_batches} mini-batches cannot be spread over '
        f'{shards} data shards: give a multiple of {mini_batches * shards}.'
      )
    batch = jax.lax.with_sharding_constraint(batch, replicated(mesh))
    return jax.shard_map(
      update,
      mesh=mesh,
      in_specs=(whole, *[rows] * len(batch)),
      out_specs=whole,
      check_vma=False,  # which Pallas kernels say nothing for
    )(state, *jax.tree.map(own_rows, batch))

  return sharded


def deal(x, parts: int, devices: int):
  """Returns rows [B,...] as [devices,B/devices,...]: of each part its share."""
  x = x.reshape(parts, devices, -1, *x.shape[1:]).swapaxes(0, 1)
  return x.reshape(devices, -1, *x.shape[3:])


def put_state(mesh: Mesh, state):
  """Returns a copy of a `TrainState` where `sharded_update` wants it."""
  return place_copy(state, state_shardings(state, mesh))


def rows_call(
  mesh: Mesh, fn: Callable, kinds: str, *, gives_cache: bool = False
) -> Callable:
  """Returns `fn`, called by each device of a mesh on its own rows (shard_map).

  Args:
    mesh: of `make_mesh`.
    fn: gives arrays with one row a trace.
    kinds: what each of its arguments is, a letter each: 'w', whole on every
      device; 'r', rows, of which each has its own; 'c', a cache that such a
      call gave.
    gives_cache: `fn` gives (arrays, cache).
  """
  rows = batch_sharding(mesh).spec
  others = tuple(
    axis
    for axis in mesh.axis_names
    if axis not in LOGICAL_AXES['batch'] and mesh.shape[axis] > 1
  )

  def own(*args):
    args = [
      jax.tree.map(lambda x: x[0], arg) if kind == 'c' else arg
      for kind, arg in zip(kinds, args, strict=True)
    ]
    with places.replicas(others):
      found = fn(*args)
    if not gives_cache:
      return found
    found, cache = found
    return found, jax.tree.map(lambda x: x[None], cache)

  return jax.shard_map(
    own,
    mesh=mesh,
    in_specs=tuple(PartitionSpec() if k == 'w' else rows for k in kinds),
    out_specs=rows,
    check_vma=False,
  )


def first_row(mesh: Mesh, batch, rows_per_prompt: int = 1):
  """Returns i32[], the global index of a device's first trace in a `rows_call`.

  Args:
    mesh: of the call.
    batch: the device's own problems.
    rows_per_prompt: G.
  """
  return row_offset(batch, rows_per_prompt, batch_sharding(mesh).spec[0])


def row_offset(batch, rows_per_prompt, axes):
  """Returns i32[], the global index of a device's first trace."""
  prompts = jax.tree.leaves(batch)[0].shape[0]
  return jax.lax.axis_index(axes) * (prompts * rows_per_prompt)


def _spread(loss_fn: LossFn, mesh: Mesh) -> LossFn:
  """Returns the loss with the rows of its batch spread over all data shards."""

  def spread_loss(params, batch):
    rows, shards = jax.tree.leaves(batch)[0].shape[0], data_shards(mesh)
    if rows % shards:
      raise ValueError(
        f'a micro-batch of {rows} traces cannot be spread over {shards} data '
        'shards: lower micro_batches or raise the number of prompts.'
      )
    batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
    return loss_fn(params, batch)

  return spread_loss


def check_batch(mesh, mini_batches, batch):
  """Raises unless every device gets as many prompts of every mini-batch."""
  local = {x.shape[0] for x in jax.tree.leaves(batch)}
  if len(local) != 1:
    raise ValueError(
      f'a batch holds arrays of {sorted(local)} rows: give all of them one row '
      'a prompt.'
    )
  shards = data_shards(mesh)
  here = batch_sharding(mesh).addressable_devices_indices_map((shards,))
  own = {rows[0].indices(shards)[0] for rows in here.values()}
  prompts = local.pop() * shards // len(own)
  if prompts % (shards * mini_batches):
    sizes = ' x '.join(f'{a}={mesh.shape[a]}' for a in LOGICAL_AXES['batch'])
    raise ValueError(
      f'a batch of {prompts} prompts cannot be spread over {shards} data '
      f'shards ({sizes}) in {mini_batches} mini-batches: give a multiple of '
      f'{shards * mini_batches} prompts.'
    )


def place_copy(tree, shardings):
  """Returns a copy of the tree, placed.

  Placing alone may share the memory of the caller's array (on its own device,
  whatever `may_alias` says), and donating the one would delete the other.
  """
  if jax.process_count() == 1:
    return jax.device_put(jax.tree.map(jnp.copy, tree), shardings)
  return jax.tree.map(_own_global, tree, shardings)


def _own_global(x, sharding):
  """Returns a copy on devices of all processes, of x or of their equal x."""
  if not x.is_fully_addressable:
    return jax.jit(jnp.copy, out_shardings=sharding)(x)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _own_global(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  host = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: host[i])
