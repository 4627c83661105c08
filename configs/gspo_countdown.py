r"""GSPO on Countdown: the importance ratio of a whole sequence.

Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071): the
ratio is exp(mean log-ratio) of a trace, clipped to 1 - 3e-4 ... 1 + 4e-4, and
the loss a mean within each trace. Here it is their GSPO-token, the same where
all tokens of a trace have one advantage. Everything else is that of the GRPO
config.

    python -m meta_rl.train --config=configs/gspo_countdown.py \
      --workdir=runs/gspo

`hard` and `tiny` as in MRT.

The clip is the published one, for traces of thousands of tokens. The mean
log-ratio of 40 tokens spreads further: on the base policy 27% of the tokens of
a step are clipped (the first of its two optimizer steps clips none), where the
paper reports 15%.
"""

import ml_collections

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = mrt_countdown.get_config(arg)
  config.name = 'GSPO'
  config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
  config.loss.update(
    {
      'ratio': 'sequence',
      'clip_low': 3e-4,
      'clip_high': 4e-4,
      'aggregate': 'sequence_mean',
    }
  )
  return config
