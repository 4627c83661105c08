"""The heap of the C library on CPUs: memory kept between calls, in one piece.

On CPUs XLA allocates the temporary memory of a program at each call and gives
it back after. Where malloc returns that to the system, the first touch of every
page is a trip into the kernel at each call again: a third of a small model's
update. Where malloc keeps it, another thing costs: what compiling leaves in the
heap, 15,000 free pieces of all sizes between blocks that live on. A program
allocates thousands of times a call, mostly some 100 KB for a matrix product,
and each time malloc looks through a list of pieces for the one that fits best:
another third, for as long as the process lives. Commands therefore call
`keep_memory` when they start.
"""

import ctypes
import os
import pathlib
import platform
import re
import threading

# Of glibc's malloc.h: options of mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*', 'kfd')  # in /dev
_COMPILED = '/jax/core/compile/backend_compile_duration'
_COMPILED_S = 1.0  # of compiling, after which the heap is cleared
# Bytes of a piece that is in the way: smaller ones have a list for each size,
# larger ones are few, and among them is what programs give back.
_PIECES = (1 << 10, 1 << 20)
_ROW = re.compile(r'<size from="(\d+)" to="(\d+)" total="\d+" count="(\d+)"/>')


def keep_memory() -> bool:
  """Returns whether this process now keeps the memory that it has freed.

  Memory is touched once, the peak stays what it was, and the process stays at
  it. After each second of compiling, `set_aside` clears the heap of what that
  has left.

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


def set_aside() -> int:
  """Returns how many free pieces of the heap are out of malloc's way now.

  Their whole pages go back to the system, and the pieces are taken and never
  used: what is lost is addresses, and the memory of pages that a block which
  lives on shares with them. For glibc's malloc with one arena.
  """
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.malloc_trim.argtypes = [ctypes.c_size_t]
  libc.malloc_trim(0)
  taken = 0
  for _ in range(3):  # what is left of a piece that was too large is a piece
    for smallest, _, count in reversed(free_pieces()):
      for _ in range(count):
        libc.malloc(smallest - 8)  # of which 8 bytes are malloc's own
      taken += count
  return taken


def free_pieces() -> list[tuple[int, int, int]]:
  """Returns the free pieces of 1 KB to 1 MB: smallest, largest, how many.

  A row is a list that malloc looks through, sizes in bytes, smallest first.
  """
  libc = ctypes.CDLL(None)
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
  first_arena = said.partition('</sizes>')[0]
  # The last 4 bits of a size are flags.
  rows = [[int(n) for n in row] for row in _ROW.findall(first_arena)]
  rows = [(low & ~15, high & ~15, count) for low, high, count in rows]
  return [r for r in rows if r[0] >= _PIECES[0] and r[1] <= _PIECES[1]]


class _Listener:
  """Sets pieces aside after each second of compiling; jax tells it."""

  def __init__(self):
    import jax

    self._seconds, self._lock = 0.0, threading.Lock()
    jax.monitoring.register_event_duration_secs_listener(self._compiled)

  def _compiled(self, name, seconds, **_):
    if name != _COMPILED:
      return
    with self._lock:
      self._seconds += seconds
      if self._seconds >= _COMPILED_S:
        self._seconds = 0.0
        set_aside()


_LISTENERS: list[_Listener] = []  # jax takes none back
