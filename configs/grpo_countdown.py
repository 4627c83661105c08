r"""GRPO on Countdown: the outcome-reward control of `mrt_countdown.py`.

Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): one
advantage a trace, (r - mean) / std within the group, and the loss a mean within
each trace first, as published. Everything else is that of the MRT config.

    python -m meta_rl.train --config=configs/grpo_countdown.py \
      --workdir=runs/grpo

It learns better at half the rate (--config.optimizer.learning_rate=5e-5), which
is how the quickstart runs it; the study holds the rate of all methods equal,
and says what that costs GRPO (RESULTS.md).

`dr` as argument gives Dr. GRPO (arXiv 2503.20783: no std, constant length
denominator), `rloo` RLOO (arXiv 2402.14740: each trace against the mean of the
others, the loss a sum over its tokens, here divided by the same constant);
`hard` and `tiny` as in MRT; several are joined by commas.

Departs from the papers: no KL term, where GRPO has one of coefficient 0.04 and
RLOO one in its reward (--config.loss.kl_coef=0.04; it is 'k2' here and k3 in
GRPO); a rollout gives two optimizer steps, the second of which is off-policy by
one and clipped, where GRPO takes one and RLOO has no ratio to clip; and groups
of 8 where GRPO has 64.
"""

import ml_collections

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'dr' or 'rloo' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, one_of=('dr', 'rloo'))
  config = mrt_countdown.get_config(scale)
  config.name = 'GRPO'
  config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
  config.loss.aggregate = 'sequence_mean'
  if 'dr' in own:
    config.name = 'Dr. GRPO'
    config.algorithm.baseline = 'mean'
    config.loss.aggregate = 'constant'
  if 'rloo' in own:
    config.name = 'RLOO'
    config.algorithm.baseline = 'leave_one_out'
    config.loss.aggregate = 'constant'
  return config
