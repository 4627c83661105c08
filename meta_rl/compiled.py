"""What is compiled: how often a call was traced, and what the cache had.

A recompile in the middle of a run costs minutes on a large model and is silent
otherwise: the counts go into the metrics, and tests assert them.
"""

from collections.abc import Callable

import jax

COMPILED = '/jax/core/compile/backend_compile_duration'
_HIT = '/jax/compilation_cache/cache_hits'


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


class _Compiled:
  """What this process has compiled; jax tells each of its listeners.

  Attributes:
    programs: executables that were asked for.
    hits: those of them that the persistent cache had.
    seconds: spent on all of them, reading the cache included.
  """

  def __init__(self):
    self.programs, self.hits, self.seconds = 0, 0, 0.0
    jax.monitoring.register_event_listener(self._event)
    jax.monitoring.register_event_duration_secs_listener(self._duration)

  def _event(self, name, **_):
    self.hits += name == _HIT

  def _duration(self, name, seconds, **_):
    if name == COMPILED:
      self.programs += 1
      self.seconds += seconds


_SEEN: list[_Compiled] = []


class CompileWatch:
  """Counts what is compiled from here on, by whatever part of the process."""

  def __init__(self):
    if not _SEEN:  # one listener a process: jax takes none back
      _SEEN.append(_Compiled())
    self._all = _SEEN[0]
    self._start = self._now()

  def _now(self):
    return self._all.programs, self._all.hits, self._all.seconds

  def metrics(self) -> dict[str, float]:
    """Returns what was compiled so far, as metrics of a run.

    compile/cache_misses: programs that had to be compiled, since the
    persistent cache (`env.enable_compile_cache`) did not have them: 0 on the
    second start of a run. compile/cache_hits: those that it had.
    compile/backend_s: seconds that both took; tracing is not among them.
    """
    programs, hits, seconds = (
      now - then for now, then in zip(self._now(), self._start, strict=True)
    )
    return {
      'compile/cache_misses': float(programs - hits),
      'compile/cache_hits': float(hits),
      'compile/backend_s': seconds,
    }
