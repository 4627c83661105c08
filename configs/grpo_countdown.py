r"""GRPO on Countdown: the outcome-reward control of `mrt_countdown.py`.

Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): one
advantage a trace, (r - mean) / std within the group, and the loss a mean within
each trace first, as published. Everything else is that of the MRT config.

    python -m meta_rl.train --config=configs/grpo_countdown.py \
      --workdir=runs/grpo

`dr` as argument gives Dr. GRPO (arXiv 2503.20783: no std, constant length
denominator), `rloo` RLOO (arXiv 2402.14740); `hard` and `tiny` as in MRT;
several are joined by commas.
"""

import ml_collections

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'dr' or 'rloo' and 'hard' or 'tiny'."""
  args = [a for a in arg.split(',') if a]
  scale = [a for a in args if a in ('hard', 'tiny')]
  config = mrt_countdown.get_config(','.join(scale))
  config.name = 'GRPO'
  config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
  config.loss.aggregate = 'sequence_mean'
  if 'dr' in args:
    config.name = 'Dr. GRPO'
    config.algorithm.baseline = 'mean'
    config.loss.aggregate = 'constant'
  if 'rloo' in args:
    config.name = 'RLOO'
    config.algorithm.baseline = 'leave_one_out'
  if unknown := set(args) - {'dr', 'rloo', 'hard', 'tiny'}:
    raise ValueError(
      f'unknown argument {sorted(unknown)}: allowed are dr, rloo, hard, tiny.'
    )
  return config
