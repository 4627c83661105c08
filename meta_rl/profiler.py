"""Tracing a span of training steps with JAX's profiler."""

import contextlib
import sys

import jax


def parse_span(span: str) -> tuple[int, int]:
  """Returns the first and the last step of 'first:last', (-1, -1) of ''.

  Raises:
    ValueError: another form, or a last step before the first.
  """
  if not span:
    return -1, -1
  first, _, last = span.partition(':')
  whole = first.isdecimal() and last.isdecimal()
  if not (whole and 1 <= int(first) <= int(last)):
    raise ValueError(
      f'profile_steps={span!r} is given; allowed is first:last with 1 <= first '
      '<= last, such as 10:13.'
    )
  return int(first), int(last)


class Profiler(contextlib.AbstractContextManager):
  """Traces the steps 'first:last' with JAX's profiler."""

  def __init__(self, folder: str, span: str):
    self._folder, self._on = f'{folder}/profile', False
    self._span = span
    self._first, self._last = parse_span(span)

  def before(self, step: int, last: int | None = None):
    """Starts the trace at its first step.

    Args:
      step: the step that is about to be taken.
      last: of several that are dispatched at once, the last.
    """
    due = step <= self._first <= (last or step)
    if due and not jax.process_index():
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
    if self._span and not jax.process_index():
      print(
        f'profile_steps={self._span}: step {self._first} was not run, so '
        'nothing was profiled',
        file=sys.stderr,
      )
