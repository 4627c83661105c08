"""From what was measured on a batch of traces to an advantage for every token.

Each algorithm is one function over the same few pure pieces and one row of
`ALGORITHMS`. They differ in credit alone; rollout, loss and update are shared,
so that a comparison compares what it says.

    algorithm(measured, T, *, group_size, ...) -> advantages f32[B,T]

or, from one that trains on some of the traces alone, `Selected`.
"""

from meta_rl.algorithms.base import Measured, Selected
from meta_rl.algorithms.mrt import BASELINES, CREDITS, mrt
from meta_rl.algorithms.outcome import outcome
from meta_rl.algorithms.prefix import FORMS, prefix
from meta_rl.algorithms.star import SELECTS, star

__all__ = [
  'ALGORITHMS',
  'BASELINES',
  'CREDITS',
  'FORMS',
  'SELECTS',
  'Measured',
  'Selected',
  'mrt',
  'outcome',
  'prefix',
  'star',
]

ALGORITHMS = {'outcome': outcome, 'mrt': mrt, 'prefix': prefix, 'star': star}
