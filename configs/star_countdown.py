r"""STaR on Countdown: fine-tuning on one's own right traces.

Self-taught reasoner (Zelikman et al. 2022, arXiv 2203.14465), which without its
rationalisation is rejection fine-tuning (RFT, arXiv 2308.01825): sample with
the current policy, keep the traces that end right, and raise their likelihood
for some epochs; that is one step, and the next samples anew. STaR starts each
iteration from the base policy again; here training goes on from the current
one. Everything else is that of the MRT config.

    python -m meta_rl.train --config=configs/star_countdown.py \
      --workdir=runs/star

`mrt` as argument gives MRT-STaR (Qu et al. 2025, arXiv 2503.07572, section 6):
of a prompt's right traces, the half of least token-weighted regret; `hard` and
`tiny` as in MRT; several are joined by commas.

`loss/total` is nats a token of what was kept, `policy/kept_share` its share of
the traces. The weight of every token is clipped to 1, which makes the loss a
likelihood and `policy/clip_fraction` meaningless.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'mrt' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'mrt')
  config = mrt_countdown.get_config(scale)
  config.name = 'STaR'
  config.algorithm = {
    'name': 'star',
    'select': 'any',  # of a prompt's right traces, or 'progress'
    'keep_share': 1.0,  # of these, rounded up
    'max_kept': config_dict.placeholder(int),  # at most so many a prompt
  }
  # Weight 1 on every token: -log p, whatever policy the trace was drawn from.
  config.loss.update({'surrogate': 'cispo', 'clip_low': 0.0, 'clip_high': 0.0})
  config.batching.epochs = 2
  if 'mrt' in own:
    config.name = 'MRT-STaR'
    config.algorithm.update({'select': 'progress', 'keep_share': 0.5})
  return config
