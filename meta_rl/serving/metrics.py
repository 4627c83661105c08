"""Counts and times of a server, as Prometheus reads them (host).

Text exposition format 0.0.4: https://prometheus.io/docs/instrumenting/
exposition_formats/
"""

import bisect
import collections
from collections.abc import Mapping

PREFIX = 'meta_rl_'
# Seconds, upper bounds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TIMES = {
  'request_seconds': 'Whole requests.',
  'first_token_seconds': 'From a request to its first tokens.',
  'between_tokens_seconds': 'Between two deliveries of tokens of a response.',
}
GAUGES = {
  'requests_active': 'Requests in rows.',
  'requests_queued': 'Requests that wait.',
  'rows': 'Requests that can be under way at once.',
}
ENGINE = {
  'programs_compiled_total': 'Programs that the engine compiled.',
  'engine_rounds_total': 'Rounds of decode steps that were begun.',
  'engine_errors_total': 'Rounds that failed, or had rows that did.',
  'engine_cancelled_total': 'Requests that were given up.',
  'engine_undelivered_total': 'Pieces that their receivers did not take.',
}
COUNTS = {
  'requests_total': 'Requests by path and status.',
  'tokens_total': 'Tokens by kind.',
  'stops_total': 'Thoughts by what ended them.',
}


class Metrics:
  """What was counted since the start; of one thread."""

  def __init__(self):
    """Begins at 0."""
    self._counts = {name: collections.Counter() for name in COUNTS}
    self._times = {
      name: {'buckets': [0] * len(BOUNDS), 'count': 0, 'sum': 0.0}
      for name in TIMES
    }

  def count(self, metric: str, number: int = 1, /, **labels: str):
    """Adds to a count."""
    self._counts[metric][tuple(sorted(labels.items()))] += number

  def observe(self, metric: str, seconds: float):
    """Adds a time."""
    time = self._times[metric]
    time['count'] += 1
    time['sum'] += seconds
    place = bisect.bisect_left(BOUNDS, seconds)
    if place < len(BOUNDS):
      time['buckets'][place] += 1

  def text(
    self, gauges: Mapping[str, int], counters: Mapping[str, int] | None = None
  ) -> str:
    """Returns all of it.

    Args:
      gauges: name (of GAUGES) -> what it is now.
      counters: name (of ENGINE) -> what was counted elsewhere.
    """
    lines = []
    for kind, says, values in (
      ('gauge', GAUGES, gauges),
      ('counter', ENGINE, counters or {}),
    ):
      for name, value in values.items():
        lines += _head(name, says[name], kind)
        lines.append(f'{PREFIX}{name} {value}')
    for name, counts in self._counts.items():
      lines += _head(name, COUNTS[name], 'counter')
      lines += [
        f'{PREFIX}{name}{_labels(labels)} {value}'
        for labels, value in sorted(counts.items())
      ]
    for name, time in self._times.items():
      lines += _head(name, TIMES[name], 'histogram')
      total = 0
      for bound, number in zip(BOUNDS, time['buckets']):
        total += number
        lines.append(f'{PREFIX}{name}_bucket{{le="{bound:g}"}} {total}')
      lines.append(f'{PREFIX}{name}_bucket{{le="+Inf"}} {time["count"]}')
      lines.append(f'{PREFIX}{name}_sum {time["sum"]:.6f}')
      lines.append(f'{PREFIX}{name}_count {time["count"]}')
    return '\n'.join(lines) + '\n'


def _head(name, says, kind):
  return [f'# HELP {PREFIX}{name} {says}', f'# TYPE {PREFIX}{name} {kind}']


def _labels(labels) -> str:
  inner = ','.join(f'{name}="{value}"' for name, value in labels)
  return f'{{{inner}}}' if inner else ''
