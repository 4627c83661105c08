"""jax.jit that counts how often it was traced.

A recompile in the middle of a run costs minutes on a large model and is silent
otherwise: the count goes into the metrics, and tests assert it.
"""

from collections.abc import Callable

import jax


class CountedJit:
  """`jax.jit(fn, **options)` with the number of its traces.

  Attributes:
    traces: how often `fn` was traced: once for every shape bucket.
  """

  def __init__(self, fn: Callable, **options):
    self.traces = 0

    def traced(*args):
      self.traces += 1
      return fn(*args)

    self._call = jax.jit(traced, **options)

  def __call__(self, *args):
    return self._call(*args)

  def lower(self, *args):
    """Returns the lowered program, for ahead-of-time compilation."""
    return self._call.lower(*args)
