r"""VinePPO on Countdown: Monte Carlo values by free continuation.

Kazemnejad et al. 2024, arXiv 2410.01679: the advantage of a segment is the
change of the policy's own value over it, V(after) - V(before), and each value
is the mean reward of a few continuations of that prefix, on which the policy
thinks, stops and answers as it likes. No critic, no group. The rest is that of
the MRT config.

    python -m meta_rl.train --config=configs/vineppo_countdown.py \
      --workdir=runs/vineppo

A segment is three attempts here (a budget of 27 tokens): every boundary costs
as many rollouts again as there are branches. `hard` and `tiny` as in MRT.

Departs from the paper: segments are of a fixed number of tokens where its own
are reasoning steps; 4 continuations a value where it has 9; the choice to stop
and the answer are segments of their own, with values of their own; no KL term
to the policy that the run starts from (--config.loss.kl_coef); and the loss is
a mean over all tokens of two mini-batches, each used once, where PPO goes over
a rollout several times.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = mrt_countdown.get_config(arg)
  config.name = 'VinePPO'
  config.prover.update({'kind': 'continued', 'num_branches': 4})
  config.prover.boundaries = 'budgets'
  config.prover.budgets = (27, 54, 81, 108)
  config.algorithm = {
    'name': 'segment',
    'transform': 'identity',  # or 'best_of'
    'tries': config_dict.placeholder(int),  # K of 'best_of'
    'alpha': 1.0,  # of the change of value
    'outcome_coef': 0.0,  # of the trace's outcome advantage
    'outcome_baseline': config_dict.placeholder(str),
  }
  if 'hard' in arg:
    config.prover.budgets = (18, 36, 54, 72, 90)
  if 'tiny' in arg:
    config.prover.budgets = (9, 18, 27)
    config.prover.num_branches = 2
  return config
