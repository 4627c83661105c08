r"""RL^2 on Countdown: which episodes of a trace count.

RL^2 (Duan et al. 2016, arXiv 1611.02779) rewards every episode of a trial,
E-RL^2 (Stadie et al. 2018, arXiv 1803.01118) the last one alone, so that the
others are free to explore. An episode's reward is its J, the chance of
answering right behind it. Everything else is that of the MRT config.

    python -m meta_rl.train --config=configs/rl2_countdown.py \
      --workdir=runs/rl2

`all` (default) or `last` as argument; `hard` and `tiny` as in MRT; two are
joined by a comma.
"""

import ml_collections

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'all' or 'last' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'all', 'last')
  if len(own) > 1:
    raise ValueError(f'{arg!r}: give one of all and last.')
  config = mrt_countdown.get_config(scale)
  counted = (own or ['all'])[0]
  config.name = 'RL^2' if counted == 'all' else 'E-RL^2'
  config.algorithm = {
    'name': 'rl2',
    'counted': counted,
    'baseline': 'prover',
  }
  return config
