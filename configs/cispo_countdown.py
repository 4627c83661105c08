r"""CISPO on Countdown: a clipped weight in place of a clipped objective.

Clipped importance-sampling policy optimisation (MiniMax-M1 2025, arXiv
2506.13585): every token keeps its gradient, -w·A·∇log π, and only its weight w,
the ratio to the policy that sampled, is bounded: from above alone. Every token
counts alike. Everything else is that of the GRPO config.

    python -m meta_rl.train --config=configs/cispo_countdown.py \
      --workdir=runs/cispo

`hard` and `tiny` as in MRT.

The paper does not publish its bound; w <= 5 is in the range of 4 to 8 in which
ScaleRL (arXiv 2510.13786) finds no difference. With two optimizer steps a
rollout it guards against outliers only.
"""

import ml_collections

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = mrt_countdown.get_config(arg)
  config.name = 'CISPO'
  config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
  config.loss.update(
    {
      'surrogate': 'cispo',
      'clip_low': 1.0,  # a ratio is never below 0: no lower bound
      'clip_high': 4.0,
      'aggregate': 'token_mean',
    }
  )
  return config
