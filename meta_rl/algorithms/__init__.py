"""From what was measured on a batch of traces to an advantage for every token.

Each algorithm is one function over the same few pure pieces and one row of
`ALGORITHMS`. They differ in credit alone; rollout, loss and update are shared,
so that a comparison compares what it says.

    algorithm(measured, T, *, group_size, ...) -> advantages f32[B,T]
"""

from meta_rl.algorithms.base import Measured, Summaries
from meta_rl.algorithms.brpo import (
  PRIORS,
  SUMMARIES,
  SUMMARY_BASELINES,
  brpo,
  summary_advantages,
)
from meta_rl.algorithms.mrt import BASELINES, CREDITS, mrt
from meta_rl.algorithms.outcome import outcome

__all__ = [
  'ALGORITHMS',
  'BASELINES',
  'CREDITS',
  'Measured',
  'PRIORS',
  'SUMMARIES',
  'SUMMARY_BASELINES',
  'Summaries',
  'brpo',
  'mrt',
  'outcome',
  'summary_advantages',
]

ALGORITHMS = {'outcome': outcome, 'mrt': mrt, 'brpo': brpo}
