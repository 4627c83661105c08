"""From a config to the devices that are here: the mesh, and what each holds."""

import math

import jax
import ml_collections

from meta_rl import setup_steps, sharding


def parallel_of(config: ml_collections.ConfigDict):
  """Returns (kind, mesh) of `config.parallel` on the devices that are here.

  'auto' takes one device as it is and many as a mesh. Of one process with more
  devices than a batch can be cut for, it takes as many as it can; many
  processes take part with all of theirs.

  Raises:
    ValueError: the mesh doesn't fit the devices.
  """
  kind, sizes = config.parallel.kind, config.parallel.mesh.to_dict()
  if kind == 'none' or (kind == 'auto' and jax.device_count() == 1):
    return 'none', None
  devices = None
  others = [n for axis, n in sizes.items() if axis != 'data']
  given = sizes['data'] == -1 and min(others) >= 1
  if kind == 'auto' and jax.process_count() == 1 and given:
    others = math.prod(others)
    most = max(1, jax.device_count() // others)
    sizes['data'] = max(
      n
      for n in range(1, most + 1)
      if _rows_to_cut(config) % (n * sizes['fsdp']) == 0 or n == 1
    )
    devices = jax.devices()[: others * sizes['data']]
  return 'pmap' if kind == 'pmap' else 'jit', sharding.make_mesh(
    **sizes, devices=devices
  )


def _rows_to_cut(config):
  """Returns of how many rows every device must get as many."""
  batching = config.batching
  prompts, rows = _mini_batch(config)
  if batching.rows_per_device is None:
    rows //= batching.micro_batches
  return math.gcd(prompts, rows)


def _mini_batch(config):
  """Returns how many prompts and how many rows a mini-batch has."""
  parts, rollout = config.batching.mini_batches, config.rollout
  if config.algorithm.name == 'sft':
    # Several sizes of batches are cut alike.
    rows = math.gcd(*_batch_sizes(config)) // parts
    return rows, rows
  group = rollout.group_size * (1 + setup_steps.summaries_of(config))
  rows = rollout.num_prompts * group
  return rollout.num_prompts // parts, rows // parts


def _batch_sizes(config):
  """Returns the rows of the batches of imitation that the pattern names."""
  data = config.data
  return [data.buckets[name].batch_size for name in set(data.pattern)]


def batching_of(config: ml_collections.ConfigDict, mesh=None) -> dict:
  """Returns `config.batching`, options of `update.update`.

  With `rows_per_device` the micro-batches follow from the devices: a batch
  stays the same on few of them, which take it in more parts.

  Args:
    config: of a run.
    mesh: of its devices, None for one.
  """
  options = config.batching.to_dict()
  most = options.pop('rows_per_device')
  if most is None:
    return options
  rows, largest = _mini_batch(config)[1], 1
  if config.algorithm.name == 'sft':  # the fullest rows count
    largest = max(_batch_sizes(config)) // options['mini_batches'] // rows
  shards = 1 if mesh is None else sharding.data_shards(mesh)
  each = max(1, rows // shards)
  fits = (
    n
    for n in range(1, each + 1)
    if each % n == 0 and largest * each // n <= most
  )
  return options | {'micro_batches': next(fits, each)}


def check(config: ml_collections.ConfigDict, mesh):
  """Raises ValueError, in one line, unless a batch can be cut for a mesh."""
  shards, batching = sharding.data_shards(mesh), config.batching
  prompts, rows = _mini_batch(config)
  if config.algorithm.name != 'sft' and prompts % shards:
    raise ValueError(
      f'rollout.num_prompts={config.rollout.num_prompts} cannot be spread over '
      f'{shards} devices in batching.mini_batches={batching.mini_batches}: '
      f'give a multiple of {shards * batching.mini_batches}.'
    )
  micro = batching_of(config, mesh)['micro_batches']
  if mesh.shape['context'] > 1 and rows > micro * shards:
    raise ValueError(
      f'parallel.mesh.context={mesh.shape["context"]} cuts one trace a device '
      f'and there are {rows // (micro * shards)}: set '
      'batching.rows_per_device=1.'
    )
  if rows % (micro * shards):
    raise ValueError(
      f'a micro-batch of {rows // micro} rows cannot be spread over {shards} '
      f'devices: {rows} rows of a mini-batch are cut by '
      f'batching.micro_batches={micro}; give rows and parts that {shards} '
      'divides, or batching.rows_per_device.'
    )


def note_on_unused(mesh) -> str:
  """Returns a line if devices are left over, else ''."""
  if mesh.size == jax.device_count():
    return ''
  return (
    f'note: {mesh.size} of {jax.device_count()} devices are used, as many as '
    'the batch can be cut for evenly: more prompts, or fewer mini- or '
    'micro-batches, can use all.'
  )
