r"""PPO with a value head on Countdown: the control that learns its own critic.

Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) with
generalised advantage estimates (arXiv 1506.02438) over the action tokens, the
outcome as terminal reward. Its critic, a linear read-out of the policy's
features, is regressed on the returns and, which is ours, on the prover's J at
the episode boundaries. An advantage for every token, as in MRT, from a learned
value in place of a measured one; everything else is that of the MRT config.

    python -m meta_rl.train --config=configs/ppo_countdown.py \
      --workdir=runs/ppo

2 cores: about 4 minutes. `plain` as argument leaves J out of the critic (the
usual PPO); `hard` and `tiny` as in MRT; several are joined by commas.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'plain' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'plain')
  config = mrt_countdown.get_config(scale)
  config.name = 'PPO'
  config.algorithm = {'name': 'ppo', 'discount': 1.0, 'decay': 0.95}
  config.critic = {
    'value_coef': 0.5,
    # Of the squared error to J where a boundary has one; 0 leaves J out.
    'value_j_coef': 0.5,
    # How far one update may move a value; None: as far as it likes.
    'value_clip': config_dict.placeholder(float),
  }
  if 'plain' in own:
    config.name = 'PPO without J'
    config.critic.value_j_coef = 0.0
  return config
