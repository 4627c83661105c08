"""Tracing a span of training steps with JAX's profiler."""

import contextlib
import sys

import jax


class Profiler(contextlib.AbstractContextManager):
  """Traces the steps 'first:last' with JAX's profiler."""

  def __init__(self, folder: str, span: str):
    self._folder, self._on = f'{folder}/profile', False
    self._span, self._first, self._last = span, -1, -1
    if span:
      first, colon, last = span.partition(':')
      numbers = colon and first.isdigit() and last.isdigit()
      if not (numbers and 1 <= int(first) <= int(last)):
        raise ValueError(
          f'profile_steps={span!r}: give first:last, such as 10:13.'
        )
      self._first, self._last = int(first), int(last)

  def before(self, step: int):
    """Starts the trace at its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._on, self._span = True, ''

  def after(self, step: int):
    """Ends the trace behind its last step."""
    if self._on and step >= self._last:
      self._stop()

  def _stop(self):
    jax.profiler.stop_trace()
    self._on = False
    print(f'profile written to {self._folder}', file=sys.stderr)

  def __exit__(self, *exc_info):
    if self._on:
      self._stop()
    if self._span:
      print(
        f'profile_steps={self._span}: step {self._first} was not run, so '
        'nothing was profiled',
        file=sys.stderr,
      )
