"""Leaving a run of several processes: all of them after the same step.

A scheduler tells one machine of many that it will be taken away. jax's
preemption service catches that SIGTERM and tells the other processes; all then
agree on the next step that none has passed, save it together and leave.
"""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from meta_rl import signals


def graceful_exit() -> signals.GracefulExit:
  """Returns what tells the loop when to save and leave, of one or all."""
  if jax.process_count() == 1:
    return signals.GracefulExit()
  return AgreedExit()


def as_interrupt():
  """Makes SIGTERM end a start-up; of several processes, at their first step."""
  if jax.process_count() == 1:
    return signals.as_interrupt()
  return AgreedExit()


class AgreedExit(signals.GracefulExit):
  """A `GracefulExit` of several processes.

  SIGTERM stays with jax, and Ctrl-C becomes one. A second Ctrl-C leaves at
  once.
  """

  _calls = 0

  def reached(self, step: int) -> bool:
    """Returns whether all processes leave once `step` is saved.

    Args:
      step: unused; all processes call this together, once a step.
    """
    del step
    # jax agrees on the number behind the largest that any process has given:
    # 1 if none has, whatever step a resumed run begins with.
    self._calls += 1
    if multihost_utils.reached_preemption_sync_point(self._calls):
      self.request(self.signal_name or 'SIGTERM')
    return bool(self)

  def _pass_on(self, number: int, frame):
    del frame
    if self.signal_name:
      os._exit(128 + number)
    self.signal_name = signal.Signals(number).name
    signals.say_caught(self.signal_name)
    os.kill(os.getpid(), signal.SIGTERM)

  def __enter__(self) -> 'AgreedExit':
    if threading.current_thread() is threading.main_thread():
      number = signal.SIGINT
      self._old_handlers[number] = signal.signal(number, self._pass_on)
    return self
