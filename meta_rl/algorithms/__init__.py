"""From what was measured on a batch of traces to an advantage for every token.

Each algorithm is one function over the same few pure pieces and one row of
`ALGORITHMS`. They differ in credit alone; rollout, loss and update are shared,
so that a comparison compares what it says.

    algorithm(measured, T, *, group_size, ...) -> advantages f32[B,T]

or, from one that trains on some of the traces alone, `Selected`.
"""

from meta_rl.algorithms.base import Critic, Measured, Selected, Summaries
from meta_rl.algorithms.brpo import (
  PRIORS,
  SUMMARIES,
  SUMMARY_BASELINES,
  brpo,
  summary_advantages,
)
from meta_rl.algorithms.mrt import BASELINES, CREDITS, mrt
from meta_rl.algorithms.outcome import UNGROUPED, outcome
from meta_rl.algorithms.ppo import ppo, value_targets
from meta_rl.algorithms.prefix import FORMS, prefix
from meta_rl.algorithms.star import SELECTS, star

__all__ = [
  'ALGORITHMS',
  'BASELINES',
  'CREDITS',
  'FORMS',
  'PRIORS',
  'SELECTS',
  'SUMMARIES',
  'SUMMARY_BASELINES',
  'UNGROUPED',
  'Critic',
  'Measured',
  'Selected',
  'Summaries',
  'brpo',
  'mrt',
  'outcome',
  'ppo',
  'prefix',
  'star',
  'summary_advantages',
  'value_targets',
]

ALGORITHMS = {
  'outcome': outcome,
  'mrt': mrt,
  'ppo': ppo,
  'prefix': prefix,
  'star': star,
  'brpo': brpo,
}
