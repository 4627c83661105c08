"""Signals of a launcher: an exception at first, patience while it cleans up."""

import contextlib
import signal
import sys


class Interrupted(BaseException):
  """A signal: like KeyboardInterrupt, and for SIGTERM too."""

  def __init__(self, number):
    super().__init__(signal.Signals(number).name)
    self.code = 128 + number


def raise_interrupted(number, frame):
  """Handles a signal by raising `Interrupted`."""
  del frame
  raise Interrupted(number)


@contextlib.contextmanager
def uninterrupted():
  """Says at a first signal that it is cleaning up; a second one ends that."""
  signals, seen = (signal.SIGINT, signal.SIGTERM), []

  def handle(number, frame):
    if seen:
      raise Interrupted(number)
    seen.append(number)
    print(
      '\ntpu_vm.py: cleaning up; once more to leave at once', file=sys.stderr
    )

  old = {number: signal.signal(number, handle) for number in signals}
  try:
    yield
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
