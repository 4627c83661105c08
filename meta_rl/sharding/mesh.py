"""The mesh, and the one table from what a dimension means to mesh axes.

mesh axis  splits
data       prompts; weights and optimizer state are whole on each
fsdp       prompts, and weights and optimizer state by their width
tensor     weights by heads, feed-forward columns and vocabulary
context    the time axis of traces in the update, and of a KV cache
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from meta_rl import places
from meta_rl.update import TrainState

MESH_AXES = ('data', 'fsdp', 'tensor', 'context')

# The one table: what a dimension means -> the mesh axes that split it.
LOGICAL_AXES = {
  'batch': ('data', 'fsdp'),
  'length': ('context',),
  'layers': (),
  'embed': ('fsdp',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'ffn': ('tensor',),
}

# What the dimensions of an array mean, by the end of its path in a tree.
# Scanned layers put 'layers' in front; what is not listed (norms) is whole on
# every device.
ARRAY_AXES = {
  'embedding': ('vocab', 'embed'),
  'head': ('embed', 'vocab'),
  'q/kernel': ('embed', 'heads'),
  'k/kernel': ('embed', 'kv_heads'),
  'v/kernel': ('embed', 'kv_heads'),
  'o/kernel': ('heads', 'embed'),
  'q/bias': ('heads',),
  'k/bias': ('kv_heads',),
  'v/bias': ('kv_heads',),
  'gate/bias': ('ffn',),
  'up/bias': ('ffn',),
  'gate/kernel': ('embed', 'ffn'),
  'up/kernel': ('embed', 'ffn'),
  'down/kernel': ('ffn', 'embed'),
  'k': ('batch', 'kv_heads', 'length', 'head_dim'),  # of a KV cache
  'v': ('batch', 'kv_heads', 'length', 'head_dim'),
  'valid': ('batch', 'length'),
  'positions': ('batch', 'length'),
}


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  context: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh with the axes (data, fsdp, tensor, context).

  Args:
    data, fsdp, tensor, context: devices along each axis, >= 1; one of them may
      be -1: all that the others leave.
    devices: default all devices of all processes.

  Raises:
    ValueError: a size below 1, more than one -1, or sizes whose product is not
      the number of devices.
  """
  sizes = [data, fsdp, tensor, context]
  shown = ', '.join(f'{a}={n}' for a, n in zip(MESH_AXES, sizes))
  count = jax.device_count() if devices is None else len(devices)
  if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
    raise ValueError(
      f'mesh {shown}: every size must be at least 1; one of them may be -1, '
      'for the devices that the others leave.'
    )
  known = math.prod(n for n in sizes if n != -1)
  if -1 in sizes and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if math.prod(sizes) != count:
    raise ValueError(
      f'mesh {shown} does not fit {count} devices: make the product of the '
      f'sizes {count}, or pass as many devices.'
    )
  types = (AxisType.Auto,) * 4
  if any(_is_second_core(device) for device in devices or ()):
    # jax.make_mesh takes a v4 chip for one device, which it is when it runs; a
    # plan compiles for both of its cores.
    grid = np.reshape(np.asarray(devices, object), sizes)
    return Mesh(grid, MESH_AXES, axis_types=types)
  return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)


def _is_second_core(device) -> bool:
  return device.device_kind == 'TPU v4' and device.core_on_chip > 0


def partition(
  axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
  """Returns how an array whose dimensions mean `axes` lies on the mesh.

  A dimension without a name (None) is whole.

  A dimension that its mesh axes do not divide stays whole: memory is lost, the
  numbers are the same.
  """
  parts = []
  for axis, size in zip(axes, shape, strict=True):
    # Axes of size 1 are left out, so that equal layouts compare equal.
    named = () if axis is None else LOGICAL_AXES[axis]
    names = tuple(a for a in named if mesh.shape[a] > 1)
    fits = size % math.prod(mesh.shape[a] for a in names) == 0
    parts.append(names if names and fits else None)
  while parts and parts[-1] is None:
    parts.pop()
  return PartitionSpec(*parts)


def array_sharding(path, leaf, mesh: Mesh) -> NamedSharding:
  """Returns the sharding of one leaf, by its path and rank in `ARRAY_AXES`."""
  names = [jax.tree_util.keystr((key,), simple=True) for key in path]
  axes = ARRAY_AXES.get('/'.join(names[-2:])) or ARRAY_AXES.get(
    names[-1] if names else ''
  )
  if axes is not None and len(leaf.shape) == len(axes) + 1:
    axes = ('layers', *axes)
  if axes is None or len(leaf.shape) != len(axes):
    return replicated(mesh)
  return NamedSharding(mesh, partition(axes, leaf.shape, mesh))


def model_places(mesh: Mesh) -> places.Places:
  """Returns where the values of a model's forward and backward pass lie.

  Rows stay with their batch. A weight is gathered over fsdp where it is used,
  forward and again backward, and its gradient goes back as the sum's own part
  (reduce-scatter): the least that fsdp can move.
  """

  def put(x, axes):
    spec = partition(axes, x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  def gather(w, path):
    axes = ARRAY_AXES.get(path)
    if axes is None:
      return w
    return put(w, [None if axis == 'embed' else axis for axis in axes])

  own = lambda x, y: jnp.matmul(x.T, y, preferred_element_type=jnp.float32)

  def reduce_scatter(fn, args, path, shape):
    """The sum over shards of what `fn` makes of each one's part of the args."""
    axes = ARRAY_AXES.get(path)
    if data_shards(mesh) == 1:
      # XLA refuses a sum over axes of one device beside others.
      found = fn(*args)
      return found if axes is None else put(found, axes)
    spec = PartitionSpec(*(_fsdp(axes or (), shape, mesh)))
    cut = [i for i, name in enumerate(spec) if name]

    def of_shard(*parts):
      total = fn(*parts)
      if cut:
        total = jax.lax.psum_scatter(
          total, 'fsdp', scatter_dimension=cut[0], tiled=True
        )
      left = ('data',) if cut else LOGICAL_AXES['batch']
      return jax.lax.psum(total, left)

    # The tensor axis is the compiler's, within the weight.
    found = jax.shard_map(
      of_shard,
      mesh=mesh,
      in_specs=PartitionSpec(LOGICAL_AXES['batch']),
      out_specs=spec,
      axis_names=set(LOGICAL_AXES['batch']),
      check_vma=False,
    )(*args)
    return found if axes is None else put(found, axes)

  def outer(x, y, path):
    shape = x.shape[1], y.shape[1]
    if x.shape[0] % data_shards(mesh):
      return put(own(x, y), ARRAY_AXES.get(path, (None, None)))
    return reduce_scatter(own, (x, y), path, shape)

  def reduce(parts, path):
    return reduce_scatter(lambda x: x[0], (parts,), path, parts.shape[1:])

  def local(fn, args, axes, out):
    specs = jax.tree.map(
      lambda x, names: partition(names, x.shape, mesh), args, axes
    )
    shape = jax.eval_shape(fn, *args).shape
    return jax.shard_map(
      fn,
      mesh=mesh,
      in_specs=specs,
      out_specs=partition(out, shape, mesh),
      check_vma=False,
    )(*args)

  def parts(axis):
    return math.prod(mesh.shape[name] for name in LOGICAL_AXES[axis])

  return places.Places(put, gather, outer, reduce, parts, local)


def _fsdp(axes, shape, mesh):
  """Returns 'fsdp' for the dimension that fsdp cuts, None for the others."""
  cuts = [
    axis == 'embed' and mesh.shape['fsdp'] > 1 and not n % mesh.shape['fsdp']
    for axis, n in zip(axes, shape)
  ]
  return ['fsdp' if cut else None for cut in cuts]


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every parameter; unknown names are replicated.

  Args:
    params: nested dict of arrays, or of their `jax.ShapeDtypeStruct`s.
    mesh: of `make_mesh`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: array_sharding(path, leaf, mesh), params
  )


def cache_shardings(cache: Any, mesh: Mesh) -> Any:
  """Returns the sharding of a transformer's KV cache under sharded `jit`.

  Decoding under `parallelize` doesn't use it (each device holds the whole cache
  of its own traces); one decode over tensor or context axes does.
  """
  return param_shardings(cache, mesh)


def optimizer_shardings(opt_state: Any, params: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every leaf of an optax state.

  A leaf lies like the parameter whose path its own ends in, if the shapes are
  equal (moments, momentum); counts and factored moments are replicated.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  known = {path: leaf.shape for path, leaf in flat}

  def place(path, leaf):
    ends = (path[start:] for start in range(len(path)))
    if any(known.get(end) == leaf.shape for end in ends):
      return array_sharding(path, leaf, mesh)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, opt_state)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
  """Returns the sharding of every leaf of a training state."""
  return TrainState(
    params=param_shardings(state.params, mesh),
    opt_state=optimizer_shardings(state.opt_state, state.params, mesh),
    step=replicated(mesh),
    key=replicated(mesh),
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays with one row a prompt or a trace."""
  return NamedSharding(mesh, PartitionSpec(LOGICAL_AXES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def data_shards(mesh: Mesh) -> int:
  """Returns D, into how many parts a batch is cut."""
  return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES['batch'])
