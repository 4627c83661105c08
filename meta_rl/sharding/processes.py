"""Several processes, one per host, that run the same program.

jax's own multi-controller runtime: `initialize` joins them, every process then
sees all devices, and a global array lies in parts on all of them.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from meta_rl.sharding.mesh import batch_sharding, data_shards


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout_s: int = 300,
) -> None:
  """Joins this process with the others; nothing happens if it is the only one.

  To be called before anything asks jax for devices.

  Args:
    coordinator: 'host:port' of process 0, or 'auto' on TPU pods, Slurm and Open
      MPI, where jax finds all three values out.
    num_processes: how many there are.
    process_id: which one this is, 0 ... num_processes - 1.
    timeout_s: how long to wait for the others.

  Raises:
    ValueError: values that don't fit together.
    RuntimeError: called too late.
  """
  if coordinator == 'auto':
    return jax.distributed.initialize(initialization_timeout=timeout_s)
  if coordinator is None and num_processes in (None, 1) and not process_id:
    return None
  given = (
    f'initialize(coordinator={coordinator!r}, num_processes={num_processes}, '
    f'process_id={process_id})'
  )
  if coordinator is None or not coordinator.rpartition(':')[2].isdigit():
    raise ValueError(
      f"{given}: coordinator must be the 'host:port' of process 0, or 'auto'."
    )
  if num_processes is None or process_id is None:
    raise ValueError(f'{given}: give both num_processes and process_id.')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'{given}: process_id must be in 0..num_processes-1 and num_processes at '
      'least 1.'
    )
  if num_processes == 1:
    return None
  return jax.distributed.initialize(
    coordinator, num_processes, process_id, initialization_timeout=timeout_s
  )


def initialize_from_environment() -> None:
  """Joins the processes that a launcher of launch/ started.

  It says how in META_RL_COORDINATOR ('auto' on TPU pods, GKE and Slurm, else
  'host:port'), META_RL_NUM_PROCESSES and META_RL_PROCESS_ID. Without them
  nothing happens. Prints 'process I of N', by which launchers count who joined.

  Raises:
    ValueError: values that don't fit together.
    RuntimeError: called too late, or the others did not come.
  """
  coordinator = os.environ.get('META_RL_COORDINATOR')
  if not coordinator:
    return
  numbers = {}
  for name in ('META_RL_NUM_PROCESSES', 'META_RL_PROCESS_ID'):
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
      raise ValueError(f"{name}='{text}': give a whole number, 0 or more.")
    numbers[name] = None if text is None else int(text)
  initialize(coordinator, *numbers.values())
  print(
    f'process {jax.process_index()} of {jax.process_count()} '
    f'({jax.local_device_count()} of {jax.device_count()} devices)',
    flush=True,
  )


def is_main() -> bool:
  """Returns whether this process writes metrics and reports."""
  return jax.process_index() == 0


def process_slice(batch_size: int, mesh: Mesh | None = None) -> slice:
  """Returns which rows of a global batch this process reads.

  Args:
    batch_size: P, prompts of all processes together.
    mesh: the rows are those that it puts on this process's devices; None: equal
      runs in the order of the processes, which is the same unless the mesh
      orders devices otherwise.

  Raises:
    ValueError: a batch that cannot be cut evenly, or rows of this process that
      do not follow each other.
  """
  index, count = jax.process_index(), jax.process_count()
  parts = count if mesh is None else data_shards(mesh)
  if batch_size % parts:
    raise ValueError(
      f'a batch of {batch_size} rows cannot be cut into {parts} equal parts: '
      f'give a multiple of {parts}.'
    )
  if mesh is None:
    each = batch_size // count
    return slice(index * each, (index + 1) * each)
  local = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  bounds = sorted({rows[0].indices(batch_size)[:2] for rows in local.values()})
  if any(a[1] != b[0] for a, b in zip(bounds, bounds[1:])):
    raise ValueError(
      f'the mesh puts rows {bounds} of the batch on process {index}: order its '
      'devices by process, so that they follow each other.'
    )
  return slice(bounds[0][0], bounds[-1][1])


def global_batch(mesh: Mesh, local_arrays: Any) -> Any:
  """Returns global arrays, split by rows, of the rows each process holds.

  Args:
    mesh: of `make_mesh`.
    local_arrays: pytree of arrays [P/n,...] on n processes: the rows of
      `process_slice`.
  """
  sharding = batch_sharding(mesh)
  place = lambda x: jax.make_array_from_process_local_data(
    sharding, np.asarray(x)
  )
  return jax.tree.map(place, local_arrays)


def gather_to_host(tree: Any) -> Any:
  """Returns the whole values of a pytree on every process, as numpy arrays.

  All processes must call it together. Typed PRNG keys stay as they are.
  """

  def fetch(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(fetch, tree)
