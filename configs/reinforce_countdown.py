r"""REINFORCE on Countdown: outcome reward, and at most the batch's mean.

The policy gradient itself (Williams 1992), as a control of every group
baseline: a trace's advantage is its reward less the mean reward of the whole
batch, on all of its tokens. The loss is the sum over a trace's tokens, divided
by a constant: dividing by its own length would be another gradient. Everything
else is that of the MRT config.

    python -m meta_rl.train --config=configs/reinforce_countdown.py \
      --workdir=runs/reinforce

`plain` as argument leaves the baseline out; `hard` and `tiny` as in MRT;
several are joined by commas.

Departs from the textbook: a rollout gives two optimizer steps, and the second
one's ratio to the policy that sampled is clipped, as everywhere here; and
prompts come in groups of 8, so that problems and traces are those of the
others.
"""

import ml_collections

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'plain' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'plain')
  config = mrt_countdown.get_config(scale)
  config.name = 'REINFORCE'
  config.algorithm = {'name': 'outcome', 'baseline': 'batch_mean'}
  config.loss.aggregate = 'constant'
  if 'plain' in own:
    config.name = 'REINFORCE without baseline'
    config.algorithm.baseline = 'none'
  return config
