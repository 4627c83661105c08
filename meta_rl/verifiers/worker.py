"""The worker process of a pool: reads rows, grades them, writes what it found.

Started as a program of its own (`BOOT` under `python -c`), so that it inherits
no thread of jax, and never imports the `__main__` of whoever started it: a
notebook, `python -c` or a script without a guard will do.

Rows come pickled, each by itself, from the process that started this one.
Replies are plain numbers and text, since what runs here has read what a model
wrote. A reply is written as soon as its row is graded: when a worker is killed,
the first row without a reply is the one that it hung in.
"""

import fcntl
import math
import os
import pickle
import resource
import select
import signal
import struct
from collections.abc import Callable

from meta_rl import verifiers

STATUSES = ('ok', 'timeout', 'crash', 'error', 'too_long')
READY, FAILED = 254, 255

FRAME = struct.Struct('<I')  # bytes of the pickled rows that follow
REPLY = struct.Struct('<BBdH')  # status, last reply, value, bytes of detail

MAX_DETAIL = 300

BOOT = """
import json, os, struct, sys
options = json.loads(sys.argv[1])
sys.path[:] = options.pop('path')
try:
  from meta_rl.verifiers import worker
except BaseException as error:
  line = ' '.join(f'{type(error).__name__}: {error}'.split()).encode()[:300]
  reply = struct.pack('<BBdH', 255, 1, 0.0, len(line)) + line
  os.write(options['write_fd'], reply)
  os._exit(1)
worker.main(**options)
"""


def main(
  *,
  read_fd: int,
  write_fd: int,
  life_fd: int,
  verifier: str,
  memory_mb: int | None,
):
  """Serves until the pipe of rows is closed; doesn't return.

  Args:
    read_fd, write_fd: pipes of rows and of replies.
    life_fd: a pipe into which nothing is written; its end is the parent's.
    verifier: as in `verifiers.path_of`.
    memory_mb: of address space, MiB; None: no limit.
  """
  code = 1
  try:
    _die_with(life_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
      grade = verifiers.resolve(verifier)
      _limit_memory(memory_mb)
    except BaseException as error:
      _reply(write_fd, FAILED, True, 0.0, str(error))
    else:
      _reply(write_fd, READY, False, 0.0, '')
      _serve(read_fd, write_fd, grade, _is_filling(memory_mb))
      code = 0
  finally:
    os._exit(code)  # whatever a verifier has left running


def _die_with(life_fd: int):
  """Makes the system end this process when the parent's end of a pipe closes.

  By a signal of the pipe (SIGIO, which ends a process that does not handle it):
  it comes however the parent ended, and even to a worker that hangs in C with
  the interpreter's lock held, where a thread that watches the pipe could not
  run. PR_SET_PDEATHSIG would not do: it fires when the thread that made the
  worker ends.
  """
  signal.signal(signal.SIGIO, signal.SIG_DFL)
  fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
  flags = fcntl.fcntl(life_fd, fcntl.F_GETFL)
  fcntl.fcntl(life_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
  if select.select([life_fd], [], [], 0)[0]:  # it ended before that
    os._exit(1)


def _limit_memory(memory_mb: int | None):
  if memory_mb is not None:
    size = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _is_filling(memory_mb: int | None) -> Callable[[], bool]:
  """Returns a function that says when half of the room for memory is taken.

  The caches of sympy grow: a worker goes before that would cost a row. Where
  the system does not tell the size of a process (macOS), it never does. The
  largest size so far, which getrusage tells everywhere, would not do: it starts
  with that of the parent, which may be a training run of many GB.
  """
  if memory_mb is None or not os.path.exists('/proc/self/statm'):
    return lambda: False
  statm = os.open('/proc/self/statm', os.O_RDONLY)
  page = resource.getpagesize()
  size = lambda: int(os.pread(statm, 64, 0).split()[0]) * page
  most = (size() + (memory_mb << 20)) // 2
  return lambda: size() > most


def _serve(read_fd, write_fd, grade, is_filling):
  while (frame := _read_frame(read_fd)) is not None:
    for row in frame:
      status, value, detail, last = _grade_row(grade, row)
      last |= is_filling()
      _reply(write_fd, status, last, value, detail)
      if last:
        return


def _grade_row(grade, row: bytes) -> tuple[int, float, str, bool]:
  """Returns (status, value, detail, whether the worker is to be replaced)."""
  try:
    answer, record = pickle.loads(row)
    value = grade(answer, record)
    value = float(value)
    if value not in (0.0, 1.0):
      raise ValueError(f'the verifier returned {value}: 0.0 or 1.0 is allowed')
    return STATUSES.index('ok'), value, '', False
  except verifiers.TooLong as error:
    return STATUSES.index('too_long'), math.nan, str(error), False
  except BaseException as error:  # SystemExit and the like too
    detail = f'{type(error).__name__}: {error}'
    # Out of memory, or of stack: what else is damaged, nobody knows.
    last = isinstance(error, MemoryError | RecursionError)
    return STATUSES.index('error'), math.nan, detail, last


def _reply(write_fd, status: int, last: bool, value: float, detail: str):
  line = ' '.join(detail[: 2 * MAX_DETAIL].split())
  line = line.encode('utf-8', 'replace')[:MAX_DETAIL]
  # Below the size up to which the system writes to a pipe all or nothing.
  os.write(write_fd, REPLY.pack(status, last, value, len(line)) + line)


def _read_frame(read_fd) -> list[bytes] | None:
  header = _read(read_fd, FRAME.size)
  if header is None:
    return None
  body = _read(read_fd, *FRAME.unpack(header))
  return None if body is None else pickle.loads(body)


def _read(fd, size: int) -> bytes | None:
  """Returns exactly `size` bytes, None at the end of the pipe."""
  parts = []
  while size:
    part = os.read(fd, min(size, 1 << 20))
    if not part:
      return None
    parts.append(part)
    size -= len(part)
  return b''.join(parts)
