"""The C library's heap: what is freed stays, and what compiling leaves is gone.

Each test needs a process of its own: malloc takes its settings once.
"""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from meta_rl import compiled, heap


def in_a_process(code):
  """What a process prints whose malloc nobody has spoken of."""
  devices = [any(pathlib.Path('/dev').glob(n)) for n in heap._ACCELERATORS]
  if platform.libc_ver()[0] != 'glibc' or any(devices):
    pytest.skip('another C library than glibc, or an accelerator')
  quiet = {
    k: v
    for k, v in os.environ.items()
    if k not in ('GLIBC_TUNABLES', 'LD_PRELOAD') and not k.startswith('MALLOC_')
  }
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    env=quiet,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('True')
  return done.stdout.split()[1:]


PIECES = """
import ctypes
from meta_rl import heap
print(heap.keep_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
sizes = [2048 + 97 * (n * 7919 % 1000) for n in range(6000)]
blocks = [libc.malloc(size) for size in sizes]
kept = blocks[1::2]
for n, block in enumerate(kept):
  ctypes.memset(block, n % 251, sizes[2 * n + 1])
for block in blocks[::2]:  # no two of them beside each other
  libc.free(block)
count = lambda: sum(row[2] for row in heap.free_pieces())
print(count())
{clear}
print(count())
for n, block in enumerate(kept):
  whole = bytes([n % 251]) * sizes[2 * n + 1]
  assert ctypes.string_at(block, sizes[2 * n + 1]) == whole, n
new = [libc.malloc(80_000) for _ in range(100)]
for block in new:
  ctypes.memset(block, 255, 80_000)
for n, block in enumerate(kept):
  assert ctypes.string_at(block, 1) == bytes([n % 251])
"""


def test_pieces_between_blocks_are_set_aside_and_blocks_stay():
  before, after = in_a_process(PIECES.format(clear='heap.set_aside()'))
  assert int(before) > 2500
  assert int(after) < 100


def test_pieces_are_given_back_and_are_one_with_what_is_free_by_then():
  clear = """
first = heap.set_aside()
for block in kept[100:]:
  libc.free(block)
kept = kept[:100]
print(first, heap.set_aside())
"""
  _, first, second, after = in_a_process(PIECES.format(clear=clear))
  assert int(first) > 2500
  assert int(second) < 600
  assert int(after) < 500


def test_few_pieces_stay():
  assert in_a_process("""
from meta_rl import heap
print(heap.keep_memory(), heap.set_aside(), len(heap._ASIDE))
""") == ['0', '0']


def test_several_arenas_are_left_alone():
  code = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.mallopt(-8, 4)
done = threading.Event()
threading.Thread(target=lambda: (libc.malloc(100), done.wait())).start()
from meta_rl import heap
print(heap.keep_memory(), heap.free_pieces())
done.set()
"""
  assert in_a_process(code) == ['[]']


def test_other_threads_of_python_do_not_hold_it_up():
  clear = """
import threading, time
def busy():
  while True:
    pass
threading.Thread(target=busy, daemon=True).start()
began = time.perf_counter()
heap.set_aside()
print(time.perf_counter() - began)
sys.stdout.flush()
os._exit(0)
"""
  code = 'import os, sys\n' + PIECES.format(clear=clear)
  _, seconds = in_a_process(code)
  assert float(seconds) < 1


COMPILING = """
import time
import jax
from meta_rl import compiled
def compile(seconds, name=compiled.COMPILED):
  jax.monitoring.record_scalar(name, 0.0)
  jax.monitoring.record_event_duration_secs(name, seconds)
"""


@pytest.mark.parametrize(
  'calls, cleared',
  [
    ('compile(0.4); compile(0.7); time.sleep(0.9)', True),
    ('compile(0.4); compile(0.7); time.sleep(0.2)', False),
    ('compile(0.9); compile(9.0, "/jax/other"); time.sleep(0.9)', False),
    (
      'compile(2.0); jax.monitoring.record_scalar(compiled.COMPILED, 0.0); '
      'time.sleep(1.2)',
      False,  # the next one is being compiled
    ),
  ],
)
def test_the_heap_is_cleared_once_compiling_has_paused(calls, cleared):
  before, after = in_a_process(PIECES.format(clear=COMPILING + calls))
  assert int(before) > 2500
  assert (int(after) < 100) == cleared


def test_jax_tells_when_compiling_begins_and_ends():
  heard = []
  begins = lambda name, value, **_: heard.append(('begins', name))
  ends = lambda name, seconds, **_: heard.append(('ends', name))
  jax.monitoring.register_scalar_listener(begins)
  jax.monitoring.register_event_duration_secs_listener(ends)
  jax.jit(lambda x: x * 2 + 1)(3.0)
  jax.monitoring.unregister_scalar_listener(begins)
  jax.monitoring.unregister_event_duration_listener(ends)
  heard = [what for what, name in heard if name == compiled.COMPILED]
  assert heard == ['begins', 'ends'] * (len(heard) // 2)
  assert heard


FAULTS = """
import resource
import jax, jax.numpy as jnp
from meta_rl import heap
kept = {keep} and heap.keep_memory()
x, w = jnp.ones((1 << 18, 64)), jnp.ones((64, 64))  # 64 MB, 16384 pages
turned = jax.jit(lambda x: (x.T.reshape(x.shape) @ w).sum())  # as much again
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(20):  # a block may still find another place in the first calls
  before = faults()
  turned(x).block_until_ready()
  counts.append(faults() - before)
print(kept or not {keep}, sorted(counts)[10])
"""


@pytest.mark.full
def test_memory_that_is_kept_is_not_touched_anew():
  (kept,) = in_a_process(FAULTS.format(keep=True))
  (plain,) = in_a_process(FAULTS.format(keep=False))
  if int(plain) < 1000:
    pytest.skip('huge pages, or large ones')
  assert int(kept) < int(plain) / 10


@pytest.mark.parametrize(
  'name', ['GLIBC_TUNABLES', 'MALLOC_ARENA_MAX', 'LD_PRELOAD']
)
def test_an_environment_that_speaks_of_malloc_is_left_alone(monkeypatch, name):
  monkeypatch.setenv(name, '1')
  assert not heap.keep_memory()


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(heap.platform, 'libc_ver', lambda: ('', ''))
  assert not heap.keep_memory()
