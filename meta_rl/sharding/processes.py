"""Several processes, one per host, that run the same program.

jax's own multi-controller runtime: `initialize` joins them, every process then
sees all devices, and a global array lies in parts on all of them.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from meta_rl.sharding.mesh import batch_sharding, data_shards

# After so long without a sign of life of a process jax ends all others.
_HEARTBEAT_S = 60
_FAILED = 'meta_rl/failed'
_at_end: list[Callable[[], None]] = []
_LINE_BYTES = 4096


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
    return _join(timeout_s)
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
  return _join(timeout_s, coordinator, num_processes, process_id)


def _join(timeout_s, *given):
  jax.distributed.initialize(
    *given,
    initialization_timeout=timeout_s,
    heartbeat_timeout_seconds=heartbeat_s(),
  )
  over = threading.Event()
  watcher = threading.Thread(
    target=_leave_with_others, args=(over,), daemon=True
  )
  watcher.start()

  def stop_watching():
    over.set()
    watcher.join(5)

  # A thread that is within jax when the interpreter ends would crash it.
  atexit.register(stop_watching)


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


def heartbeat_s() -> int:
  """Returns after how many seconds of silence a process counts as lost.

  That is $META_RL_HEARTBEAT_S, or 60.

  Raises:
    ValueError: no whole number above 0.
  """
  text = os.environ.get('META_RL_HEARTBEAT_S') or str(_HEARTBEAT_S)
  if not text.isdecimal() or not int(text):
    raise ValueError(
      f"META_RL_HEARTBEAT_S='{text}': give whole seconds, 1 or more."
    )
  return int(text)


def is_main() -> bool:
  """Returns whether this process writes metrics and reports."""
  return jax.process_index() == 0


def by_main(fn: Callable[[], Any]) -> Any:
  """Returns what `fn()` gives in process 0, which alone calls it; else None.

  All processes must call it together: none goes on before process 0 is done.

  Raises:
    ValueError: in every process, with the line of the ValueError or OSError
      that process 0 met.
  """
  if jax.process_count() == 1:
    return fn()
  found, caught = None, None
  if is_main():
    try:
      found = fn()
    except (ValueError, OSError) as error:
      caught = error
  problem = _tell('' if caught is None else f'{caught}' or 'it failed')
  if problem:
    raise caught or ValueError(problem)
  return found


def check_shared(folder):
  """Raises ValueError, in one line, in a process that sees another folder.

  All processes must call it together.
  """
  if jax.process_count() == 1:
    return
  path = epath.Path(folder) / '.processes'
  mark = _tell(f'{time.time_ns()}')
  by_main(lambda: path.write_text(mark))
  found = path.read_text() if path.exists() else None
  multihost_utils.sync_global_devices('check_shared')
  if is_main():
    path.unlink()
  if found != mark:
    raise ValueError(
      f'workdir {folder} of this process is not that of process 0: name a '
      'folder that all machines share, such as gs://BUCKET/RUN.'
    )


def _tell(line: str) -> str:
  """Returns process 0's line, in every process."""
  data = np.zeros(_LINE_BYTES, np.uint8)
  raw = line.encode()[:_LINE_BYTES]
  data[: len(raw)] = np.frombuffer(raw, np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(data))
  return bytes(told).rstrip(b'\0').decode(errors='ignore')


def leave_all(code: int, line: str):
  """Ends this process, and soon all others, which say why.

  A process that ended in the usual way would first wait for the others, which
  wait for it in the middle of a step. Of one process nothing happens.

  Args:
    code: exit code of all.
    line: what happened.
  """
  if jax.process_count() == 1:
    return
  # If this follows from the failure of another process, its word comes first.
  time.sleep(2)
  me = f'process {jax.process_index()} of {jax.process_count()}'
  with contextlib.suppress(Exception):  # the first to fail is who is named
    _client().key_value_set(_FAILED, f'{code} {me} ended: {line}')
  sys.stdout.flush()
  sys.stderr.flush()
  if is_main():
    time.sleep(2)  # it keeps what the others are told with
  os._exit(code)


@contextlib.contextmanager
def at_end(hook: Callable[[], None]):
  """Has `hook` called if the failure of another process ends this one within.

  In process 0 alone; what ends in the usual way does not call it.
  """
  _at_end.append(hook)
  try:
    yield
  finally:
    _at_end.remove(hook)


def wait_for_verdict(line: str):
  """Waits until jax says which other process was lost, and ends this one.

  It does so once nothing was heard of it for `heartbeat_s`.

  Args:
    line: what to say if no process was lost after all.
  """
  time.sleep(2 * heartbeat_s())
  leave_all(1, line)


def _leave_with_others(over: threading.Event):
  """Asks for the word that a process has failed, and ends this one then.

  In a thread: the main one may be waiting for the lost process within a step.

  Args:
    over: set when the run is.
  """
  while not over.wait(1.0):
    try:
      found = _client().key_value_try_get(_FAILED)
    except Exception as error:
      if 'NOT_FOUND' in str(error):
        continue
      return  # jax has parted, or ends it
    code, _, line = found.partition(' ')
    if not line.startswith(f'process {jax.process_index()} '):
      print(f'error: {line}', file=sys.stderr, flush=True)
      if is_main():
        # The others are told by it, and its main thread may be on its way out.
        time.sleep(3)
        for hook in _at_end[::-1]:
          with contextlib.suppress(Exception):
            hook()
      os._exit(int(code))
    return


def _client():
  # jax has no public way to its key-value store.
  from jax._src import distributed

  return distributed.global_state.client


def quiet_others():
  """Lets process 0 alone speak to the terminal; errors are all processes'."""
  if not is_main():
    sys.stdout = open(os.devnull, 'w')
    warnings.simplefilter('ignore')


def part():
  """Takes leave of the other processes, all of which are done."""
  if jax.process_count() > 1:
    jax.distributed.shutdown()


def process_slice(
  batch_size: int, mesh: Mesh | None = None
) -> slice | np.ndarray:
  """Returns which rows of a global batch this process reads, in their order.

  Args:
    batch_size: P, prompts of all processes together.
    mesh: the rows are those that it puts on this process's devices, a slice or,
      where rows of others lie between them (a TPU's ring of chips), their
      numbers; None: equal runs in the order of the processes.

  Raises:
    ValueError: a batch that cannot be cut evenly.
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
  if all(a[1] == b[0] for a, b in zip(bounds, bounds[1:])):
    return slice(bounds[0][0], bounds[-1][1])
  return np.concatenate([np.arange(*each) for each in bounds])


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


def gather_columns(x: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
  """Returns f64[R,size] of the columns that all processes have, bit for bit.

  All processes must call it together.

  Args:
    x: f64[R,C], of this one.
    columns: i32[C], which they are; as many in every process.
    size: how many there are in all.
  """
  if jax.process_count() == 1:
    return x
  bits = np.ascontiguousarray(x, np.float64).view(np.uint32)
  places, parts = multihost_utils.process_allgather((columns, bits))
  found = np.full((len(x), size), np.nan)
  for place, part in zip(np.asarray(places), np.asarray(parts)):
    found[:, place] = np.ascontiguousarray(part).view(np.float64)
  return found


def add_up(x: np.ndarray) -> np.ndarray:
  """Returns f64[K], the sum over all processes, which must call it together."""
  columns = np.arange(len(x)) + jax.process_index() * len(x)
  size = len(x) * jax.process_count()
  return gather_columns(x[None], columns, size).reshape(-1, len(x)).sum(0)


def gather_to_host(tree: Any) -> Any:
  """Returns the whole values of a pytree on every process, as numpy arrays.

  All processes must call it together. Typed PRNG keys stay as they are.
  """

  def fetch(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(fetch, tree)
