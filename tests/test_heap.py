"""The C library's heap: what is freed stays, and what compiling leaves is gone.

Each test needs a process of its own: malloc takes its settings once.
"""

import os
import subprocess
import sys

import pytest

from meta_rl import heap


def in_a_process(code):
  """What a process prints whose malloc nobody has spoken of."""
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
  if not done.stdout.startswith('True'):
    pytest.skip('another C library than glibc, or an accelerator')
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


def test_a_second_of_compiling_clears_the_heap():
  tell = 'jax.monitoring.record_event_duration_secs(heap._COMPILED, {})'
  clear = 'import jax\n' + '\n'.join(tell.format(s) for s in (0.4, 0.7))
  before, after = in_a_process(PIECES.format(clear=clear))
  assert int(before) > 2500
  assert int(after) < 100


def test_less_than_a_second_of_it_does_not():
  tell = 'jax.monitoring.record_event_duration_secs(heap._COMPILED, {})'
  other = "jax.monitoring.record_event_duration_secs('/jax/other', 9.0)"
  clear = 'import jax\n' + '\n'.join([tell.format(0.9), other])
  before, after = in_a_process(PIECES.format(clear=clear))
  assert int(after) > int(before) / 2


def test_jax_tells_of_compiling_under_the_name_that_is_listened_for():
  import jax

  heard = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: heard.append(name)
  )
  jax.jit(lambda x: x * 2 + 1)(3.0)
  assert heap._COMPILED in heard


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
  assert int(plain) >= 16384
  assert int(kept) < 100


@pytest.mark.parametrize(
  'name', ['GLIBC_TUNABLES', 'MALLOC_ARENA_MAX', 'LD_PRELOAD']
)
def test_an_environment_that_speaks_of_malloc_is_left_alone(monkeypatch, name):
  monkeypatch.setenv(name, '1')
  assert not heap.keep_memory()


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(heap.platform, 'libc_ver', lambda: ('', ''))
  assert not heap.keep_memory()
