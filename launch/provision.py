"""Getting a TPU, seeing how it stands, and deleting it."""

import contextlib
import dataclasses
import itertools
import shlex
import time
from collections.abc import Callable

import gcloud

EXIT_ERROR = 1
EXIT_AGAIN = 75  # as of meta_rl/signals.py: the same command goes on


class Failed(Exception):
  """Nothing more to try: a line that says why, and the exit code."""

  def __init__(self, line: str, code: int = EXIT_ERROR):
    super().__init__(line)
    self.code = code


class Lost(Exception):
  """The TPU or the run on it went away: worth another attempt."""

  def __init__(self, line: str, crash: int = 0):
    super().__init__(line)
    self.crash = crash  # exit code of a run that crashed on a TPU in order


@dataclasses.dataclass
class Tpu:
  """A TPU by its name, there or not.

  Attributes:
    target: what it is to be.
    runner: of commands.
    say: shows a line.
    poll_s: seconds between two looks.
    wait_s: seconds to wait for it to be ready; None for ever.
    keep: whether it is left in the end.
    used: whether there may be one that is this launcher's to delete.
  """

  target: gcloud.Target
  runner: gcloud.Runner
  say: Callable[[str], None]
  poll_s: float
  wait_s: float | None
  keep: bool
  used: bool = False

  @property
  def name(self) -> str:
    """Its name."""
    return self.target.name

  def get(self) -> int:
    """Makes it, or takes the one that is there; returns how many hosts it has.

    Raises:
      Lost: it is not to be had, or goes away again.
      Failed: it can't be had.
    """
    state = self.look()
    if state.name == gcloud.ABSENT:
      state = self._create()
    elif state.name in gcloud.STOPPED:
      raise Failed(
        f'{self.name} is {state.name}: start it, or delete it: '
        f'{shlex.join(self.target.delete())}'
      )
    elif state.name in (*gcloud.READY, *gcloud.COMING):
      self._take(state)
    else:
      self.say(f'{self.name} is {state.name}: deleting it')
      self.used = True
      deleted = self.runner.run(self.target.delete())
      if deleted.code and not deleted.not_found:  # it may be on its way out
        raise Lost(f'{self.name} is not deleted: {deleted.error}')
      state = self._create()
    state = self._wait(state)
    self.say(f'{self.name} is ready: {state.hosts} workers')
    return state.hosts

  def _create(self) -> gcloud.State:
    kind = 'spot ' if self.target.spot else ''
    self.say(
      f'creating {self.name}: {kind}{self.target.accelerator_type} in '
      f'{self.target.zone}'
    )
    self.used = True
    result = self.runner.run(self.target.create())
    if result.passing:
      raise Lost(f'no TPU: {result.error}')
    if result.code:
      raise Failed(f'creating {self.name} failed: {result.error}')
    return self.look()

  def _take(self, state):
    """Takes the one that is there."""
    if state.accelerator_type not in ('', self.target.accelerator_type):
      raise Failed(
        f'{self.name} is there and is a {state.accelerator_type}; '
        f'{self.target.accelerator_type} is asked for: give another --name, or '
        f'delete it: {shlex.join(self.target.delete())}'
      )
    if not self.used:
      end = '' if self.keep else '; it is deleted at the end (--keep)'
      self.say(f'{self.name} is there: using it{end}')
    self.used = True

  def _wait(self, state) -> gcloud.State:
    began, shown = time.monotonic(), ''
    while state.name not in gcloud.READY:
      if state.name not in gcloud.COMING:
        reason = f' ({state.reason})' if state.reason else ''
        gone = Failed if 'quota' in reason.lower() else Lost
        raise gone(f'{self.name} is {state.name}{reason}')
      waited = time.monotonic() - began
      if self.wait_s is not None and waited > self.wait_s:
        raise Failed(
          f'{self.name} is {state.name} after {waited / 60:.0f} minutes '
          '(--wait_minutes). Run the same command again to go on',
          EXIT_AGAIN,
        )
      if state.name != shown:
        self.say(f'{self.name} is {state.name}: waiting')
        shown = state.name
      time.sleep(self.poll_s)
      state = self.look()
    return state

  def look(self, *, patient: bool = False) -> gcloud.State:
    """Returns the state: of the request, and once that is met of the VM.

    Args:
      patient: ask until there is an answer. While a run is going on, a network
        that is down here is no reason to end it there.

    Raises:
      Failed: there is no answer.
    """
    if self.target.queued:
      request = self._describe(patient, request=True)
      if request.name != 'ACTIVE':
        return request
    return self._describe(patient)

  def _describe(self, patient, *, request=False) -> gcloud.State:
    argv = self.target.describe(request=request)
    for i in itertools.count() if patient else range(5):
      result = self.runner.run(argv)
      if result.not_found:
        return gcloud.State(gcloud.ABSENT)
      if result.code == 0:
        with contextlib.suppress(ValueError):
          return gcloud.State.of(result.out)
        result = gcloud.Result(1, err=f'not JSON: {result.out[:80]!r}')
      if result.refused:
        break
      time.sleep(self.poll_s * 2 ** min(i, 3))
    raise Failed(f'the state of {self.name} is unknown: {result.error}')

  def delete(self) -> str:
    """Deletes it; returns '', or why it may still be there."""
    for i in range(4):
      if i:
        time.sleep(self.poll_s)
      result = self.runner.run(self.target.delete())
      if result.code == 0 or result.not_found:
        return ''
    return result.error
