"""One worker process of a pool, seen from the process that started it."""

import collections
import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time

from meta_rl.verifiers import worker

# Workers are many and small: no threads of their own, no accelerator.
_ENVIRONMENT = {
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
  'JAX_PLATFORMS': 'cpu',
}


class Worker:
  """A worker process and its pipes; nothing here waits for it to answer.

  Attributes:
    rows: (index, pickled row) that were sent and not answered, in order.
    ready: it has imported its verifier.
    retired: it has said that it ends.
    untouched: no byte of the rows that it was sent last has left.
    deadline: when what it does now must be done, on the monotonic clock; None
      while it waits.
  """

  def __init__(self, options: dict, selector: selectors.BaseSelector):
    read_fd, self._write = os.pipe()
    self._read, write_fd = os.pipe()
    life_fd, self._life = os.pipe()
    theirs = (read_fd, write_fd, life_fd)
    names = dict(zip(('read_fd', 'write_fd', 'life_fd'), theirs))
    arguments = options | names | {'path': [str(p) for p in sys.path]}
    try:
      self._process = subprocess.Popen(
        [sys.executable, '-c', worker.BOOT, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=theirs,
        env=os.environ | _ENVIRONMENT,
        # A Ctrl-C is not for it, and whatever it starts is killed with it.
        start_new_session=True,
      )
    except BaseException:
      for fd in (self._read, self._write, self._life):
        os.close(fd)
      raise
    finally:
      for fd in theirs:
        os.close(fd)
    os.set_blocking(self._write, False)
    os.set_blocking(self._read, False)
    self._selector = selector
    selector.register(self._read, selectors.EVENT_READ, self)
    self._out, self._in = memoryview(b''), bytearray()
    self._sent = (0, 0.0)
    self.rows: collections.deque[tuple[int, bytes]] = collections.deque()
    self.ready = self.retired = self.untouched = False
    self.deadline: float | None = None

  def send(self, rows: list[tuple[int, bytes]], timeout_s: float):
    """Sends rows; they are this worker's until it has answered them."""
    self.rows.extend(rows)
    body = pickle.dumps([row for _, row in rows], pickle.HIGHEST_PROTOCOL)
    self._out = memoryview(worker.FRAME.pack(len(body)) + body)
    now = time.monotonic()
    self._sent, self.deadline = (len(rows), now), now + timeout_s
    self.untouched = True
    self._selector.register(self._write, selectors.EVENT_WRITE, self)
    self.flush()

  def flush(self):
    """Writes as much as the pipe takes."""
    try:
      while self._out:
        self._out = self._out[os.write(self._write, self._out) :]
        self.untouched = False
    except BlockingIOError:
      return
    except OSError:  # it died: the end of its replies says so too
      self._out = memoryview(b'')
    with contextlib.suppress(KeyError):
      self._selector.unregister(self._write)

  def receive(self) -> tuple[list[tuple[int, int, float, str]], bool]:
    """Returns the replies that are there, and whether the worker has ended."""
    ended = False
    try:
      while part := os.read(self._read, 1 << 16):
        self._in += part
      ended = True
    except BlockingIOError:
      pass
    replies, start = [], 0
    while len(self._in) - start >= worker.REPLY.size:
      *reply, size = worker.REPLY.unpack_from(self._in, start)
      begin = start + worker.REPLY.size
      if len(self._in) < begin + size:
        break
      detail = bytes(self._in[begin : begin + size]).decode('utf-8', 'replace')
      replies.append((*reply, detail))
      start = begin + size
    del self._in[:start]
    return replies, ended

  def rate(self) -> float:
    """Returns rows a second of the last message."""
    rows, began = self._sent
    return rows / max(time.monotonic() - began, 1e-6)

  def exit(self) -> str:
    """Returns how the process ended, in words."""
    try:
      code = self._process.wait(1.0)
    except subprocess.TimeoutExpired:
      return 'its pipe closed'
    # What it has started goes too, at once: later the number of its group may
    # be another's.
    self._kill_group()
    if code >= 0:
      return f'exit code {code}'
    try:
      return f'signal {signal.Signals(-code).name}'
    except ValueError:  # a real-time signal has no name
      return f'signal {-code}'

  def end(self):
    """Kills the process and all that it started; again is no error."""
    # The group has its number as long as the process is not reaped.
    if self._process.returncode is None:
      self._kill_group()
    self._process.wait()
    for fd in (self._read, self._write):
      with contextlib.suppress(KeyError, ValueError):
        self._selector.unregister(fd)
    for fd in (self._read, self._write, self._life):
      with contextlib.suppress(OSError):
        os.close(fd)

  def _kill_group(self):
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
