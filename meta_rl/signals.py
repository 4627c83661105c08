"""Leaving a run in order: signals and the exit codes of every command.

| code | meaning |
|---|---|
| 0 | done |
| 1 | an error or a wrong flag, said in one line |
| 2 | wrong flags of `meta_rl.report` (argparse's own) |
| 3 | a NaN or infinite loss stopped the run |
| 75 | a signal stopped the run after it saved: the same command goes on |

75 is EX_TEMPFAIL of BSD's sysexits.h, 'try again later', so that a scheduler or
a shell loop can tell 'start me again' from 'look at me'.
"""

import contextlib
import os
import signal
import sys
import threading

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_NON_FINITE = 3
EXIT_INTERRUPTED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def as_interrupt():
  """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does: for a start-up.

  The loop has `GracefulExit`, which saves. Outside the main thread, where
  Python allows no handlers, nothing changes.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  old = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if old is None else old)


def leave(code: int):
  """Ends the process with an exit code.

  After a signal it ends at once, everything being saved: the interpreter would
  first take down threads that may still be compiling, which can crash.
  """
  if code == EXIT_INTERRUPTED:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def say_caught(name: str):
  """Says, within a signal's handler, that the run will save and leave."""
  # os.write, since print is not re-entrant and may be interrupted midway.
  os.write(
    sys.__stderr__.fileno() if sys.__stderr__ else 2,
    f'\n{name}: finishing this step and saving; once more to leave at '
    'once\n'.encode(),
  )


class GracefulExit:
  """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps.

      with GracefulExit() as stop:
        for step in steps:
          ...
          if stop.reached(step):
            checkpointer.save(step, ..., wait=True)
            sys.exit(EXIT_INTERRUPTED)

  The handler does nothing but set the flag: saving inside a signal handler
  could interrupt a save that is under way. A second signal means that nobody
  wants to wait, so it leaves at once with 128 + its number; checkpoints are
  written to a temporary name first, so those already there stay whole.

  The old handlers come back at the end. Outside the main thread Python allows
  no handlers: the flag then just stays unset, unless `request` sets it.

  Attributes:
    signal_name: 'SIGTERM', 'SIGINT', the reason given to `request`, or ''.
  """

  def __init__(self):
    self.signal_name = ''
    self._requested = False
    self._old_handlers = {}

  def __bool__(self) -> bool:
    return self._requested

  def reached(self, step: int) -> bool:
    """Returns whether to leave once `step` is saved."""
    del step
    return bool(self)

  def request(self, reason: str = 'request'):
    """Sets the flag from inside the program, e.g. on a preemption notice."""
    self.signal_name = reason
    self._requested = True

  def message(self, step: int, command: str = 'the same command') -> str:
    """Returns the line to print once step `step` is saved."""
    return (
      f'stopped by {self.signal_name} after step {step}, which is saved: run '
      f'{command} again to go on (exit code {EXIT_INTERRUPTED})'
    )

  def _handle(self, number: int, frame):
    del frame
    if self._requested:
      # os._exit, since sys.exit would run atexit hooks that wait for the
      # asynchronous save which the user has just refused to wait for.
      os._exit(128 + number)
    self.request(signal.Signals(number).name)
    say_caught(self.signal_name)

  def __enter__(self) -> 'GracefulExit':
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        self._old_handlers[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc_info):
    for number, handler in self._old_handlers.items():
      # None marks a handler that C code had installed: it cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._old_handlers.clear()
