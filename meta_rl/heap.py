"""The heap of the C library on CPUs: what is freed is kept, and quick to find.

On CPUs XLA allocates the temporary memory of a program at each call and gives
it back after. Where malloc returns that to the system, the first touch of every
page is a trip into the kernel at each call again: up to a third of a small
model's update. Where malloc keeps it, another thing costs: what compiling
leaves in the heap, 15,000 free pieces of all sizes between blocks that live on.
A program allocates thousands of times a call, mostly some 100 KB for a matrix
product, and each time malloc looks through a list of pieces for the one that
fits best: a quarter of such an update, for as long as the process lives.
Commands therefore call `keep_memory` when they start.
"""

import ctypes
import os
import pathlib
import platform
import re
import threading
import time

import jax

from meta_rl import compiled

# Of glibc's malloc.h: options of mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*', 'kfd')  # in /dev
# The heap is cleared after so many seconds of compiling and so many without.
_COMPILED_S, _PAUSE_S = 1.0, 0.5
# Bytes of a piece that is in the way: smaller ones have a list for each size,
# larger ones are few.
_PIECES = (1 << 10, 1 << 20)
_FEW = 500  # pieces, which are not worth the pages of their neighbours
_ROW = re.compile(r'<size from="(\d+)" to="(\d+)" total="\d+" count="(\d+)"/>')


def keep_memory() -> bool:
  """Returns whether this process now keeps the memory that it has freed.

  Memory is touched once, or once more after compiling; the peak stays what it
  was, and the process stays near it. When a second of compiling is over and
  half a second has passed without, `set_aside` clears the heap of what is left.

  Call it before jax starts its threads. It does nothing where there is an
  accelerator, whose hosts have other uses for many malloc arenas; on another C
  library; and where the environment says how malloc should work
  (GLIBC_TUNABLES, MALLOC_*, LD_PRELOAD).
  """
  said = [
    name
    for name in os.environ
    if name in ('GLIBC_TUNABLES', 'LD_PRELOAD') or name.startswith('MALLOC_')
  ]
  devices = pathlib.Path('/dev')
  if said or any(any(devices.glob(name)) for name in _ACCELERATORS):
    return False
  if platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # One arena: others are of 64 MB each, and map what is larger all the same.
  options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
  kept = all(mallopt(name, value) == 1 for name, value in options.items())
  if kept and not _LISTENERS:
    _LISTENERS.append(_Listener())
  return kept


_ASIDE: list[int] = []  # addresses of the pieces


def set_aside() -> int:
  """Returns how many free pieces of the heap are out of malloc's way now.

  They are taken and not used, behind their whole pages have gone back to the
  system; what it costs is addresses, and the memory of pages that a piece
  shares with a block which lives on. Those of the last time are freed first,
  and are one with what has become free beside them since. It does nothing where
  pieces are few, or malloc has several arenas.
  """
  libc = ctypes.PyDLL(None)  # another thread may not step in at each call
  libc.malloc.restype = ctypes.c_void_p
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  while _ASIDE:
    libc.free(_ASIDE.pop())
  if sum(count for *_, count in free_pieces()) < _FEW:
    return 0
  libc.malloc_trim(ctypes.c_size_t(0))
  for _ in range(3):  # what is left of a piece that was too large is a piece
    for smallest, _, count in reversed(free_pieces()):
      blocks = [libc.malloc(smallest - 8) for _ in range(count)]  # 8: malloc's
      _ASIDE.extend(block for block in blocks if block)
  return len(_ASIDE)


def free_pieces() -> list[tuple[int, int, int]]:
  """Returns the free pieces of 1 KB to 1 MB: smallest, largest, how many.

  A row is a list that malloc looks through, sizes in bytes, smallest first;
  none if malloc has several arenas.
  """
  libc = ctypes.PyDLL(None)
  libc.open_memstream.restype = ctypes.c_void_p
  libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.fclose.argtypes = libc.free.argtypes = [ctypes.c_void_p]
  text, length = ctypes.c_void_p(), ctypes.c_size_t()
  stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(length))
  if not stream:
    return []
  libc.malloc_info(0, stream)
  libc.fclose(stream)
  said = ctypes.string_at(text, length.value).decode('ascii')
  libc.free(text)
  if said.count('<heap nr=') != 1:
    return []
  # Sizes are multiples of 16; the bits below are flags.
  rows = [[int(n) for n in row] for row in _ROW.findall(said)]
  rows = [(low & ~15, high & ~15, count) for low, high, count in rows]
  return [r for r in rows if r[0] >= _PIECES[0] and r[1] <= _PIECES[1]]


class _Listener:
  """Clears the heap once compiling has paused; jax tells it of both ends.

  Not behind every program: the next one's compiling uses the pieces again.
  """

  def __init__(self):
    self._lock, self._timer = threading.Lock(), None
    self._seconds, self._running, self._ended = 0.0, 0, 0.0
    jax.monitoring.register_scalar_listener(self._begins)
    jax.monitoring.register_event_duration_secs_listener(self._ends)

  def _begins(self, name, _, **__):
    if name == compiled.COMPILED:
      with self._lock:
        self._running += 1

  def _ends(self, name, seconds, **_):
    if name != compiled.COMPILED:
      return
    with self._lock:
      self._running -= 1
      self._seconds += seconds
      self._ended = time.monotonic()
      if self._seconds >= _COMPILED_S and self._timer is None:
        self._wait(_PAUSE_S)

  def _wait(self, seconds):
    self._timer = threading.Timer(seconds, self._clear)
    self._timer.daemon = True
    self._timer.start()

  def _clear(self):
    with self._lock:
      left = self._ended + _PAUSE_S - time.monotonic()
      if self._running > 0 or left > 0:
        self._wait(max(left, _PAUSE_S / 2))
        return
      self._seconds, self._timer = 0.0, None
    set_aside()


_LISTENERS: list[_Listener] = []  # one a process
