"""A worker: one engine in a process of its own, asked by JSON lines.

A request is one line on stdin, an answer one line on stdout:

    {"do": "run", "seed": 3}    ->    {"seconds": 1.25, "tokens": 1024}

What an engine prints itself goes to stderr. Nothing of meta_rl is imported
here: peers run this in environments that do not have it.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
import time
import traceback

_PR_SET_PDEATHSIG = 1


def serve(engine):
  """Answers requests with the engine's method of that name, to the last."""
  _die_with_parent()
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # whatever a library prints is no answer
  for line in sys.stdin:
    request = json.loads(line)
    name = request.pop('do')
    try:
      answer = getattr(engine, name)(**request)
    except Exception as error:  # the one who asked has to know
      traceback.print_exc()
      first = str(error).partition('\n')[0]
      answer = {'error': f'{type(error).__name__}: {first}'}
    answers.write(json.dumps({} if answer is None else answer) + '\n')
    answers.flush()


def _die_with_parent():
  """Has this process killed with its parent; stopped, it would stay."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def clock():
  """Gives a list that holds the wall-clock seconds when the block is left."""
  spent = []
  began = time.perf_counter()
  yield spent
  spent.append(time.perf_counter() - began)


def waves(rows: int, batch: int) -> list[slice]:
  """Returns the rows of each batch, in order."""
  return [slice(i, min(i + batch, rows)) for i in range(0, rows, batch)]


def resident_mb() -> float:
  """Returns what this process holds in memory now, MB of 2^20 bytes."""
  return _status('VmRSS')


def reset_peak():
  """Makes `peak_mb` count from now on; without /proc it never does."""
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def peak_mb() -> float:
  """Returns the most that this process held since `reset_peak`, MB."""
  return _status('VmHWM')


def _status(name: str) -> float:
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    key, _, value = line.partition(':')
    if key == name:
      return int(value.split()[0]) / 1024
  raise OSError(f'/proc/self/status does not say {name}')
