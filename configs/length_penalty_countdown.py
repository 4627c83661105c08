r"""A length penalty on Countdown: right answers earn less the longer they took.

Arora and Zanette 2025 (arXiv 2502.04463): 1[right]·(1 - α·σ((n - mean)/std)),
mean and std over the right traces of a group, with their leave-one-out
baseline. Everything else is that of the GRPO config.

    python -m meta_rl.train --config=configs/length_penalty_countdown.py \
      --workdir=runs/length_penalty

`hard` and `tiny` as in MRT.

Lengths are standardised within the group, so the published range of α, 0.05 to
0.4, holds for thoughts of 108 tokens as for those of 10,000. It is 0.2 here: a
right answer keeps 0.8 to 1, and a standard deviation of length from the mean is
worth 0.05.
"""

import ml_collections

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = mrt_countdown.get_config(arg)
  config.name = 'Length penalty'
  config.algorithm = {
    'name': 'outcome',
    'baseline': 'leave_one_out',
    'shaping': 'length_penalty',
    'alpha': 0.2,
  }
  config.loss.aggregate = 'sequence_mean'
  return config
