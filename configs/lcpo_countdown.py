r"""LCPO on Countdown: outcome reward that is also held to a length.

Length-controlled policy optimisation (L1, Aggarwal and Welleck 2025, arXiv
2503.04697): GRPO on 1[right] - α·|n_gold - n| ('exact', the default), or on
1[right]·(clip(α(n_max - n), -1, 1) + 1)/2 as its authors run it ('max').
Everything else is that of the GRPO config.

    python -m meta_rl.train --config=configs/lcpo_countdown.py \
      --workdir=runs/lcpo

`exact` or `max` as argument, `hard` and `tiny` as in MRT, joined by commas.

Lengths are thinking tokens, at most 108 here. The length to hold is half of
the thinking budget: six episodes, between the 30 tokens at which the base
policy stops by itself and the end. α is 0.01: the published 0.0003 costs 1.2
over the 4,000 tokens for which it is meant, and 0.01 costs 1.08 over 108; an
episode of 9 tokens costs 0.09. With 'max' a token then costs 0.005, and the
reward of a right answer falls from 0.77 to 0.23: never as low as a wrong one's,
so that finding one always pays (the authors' α = 1/500 is a ramp of ±500 tokens
around n_max, flat elsewhere).

Departs from L1: the length is one for all prompts and not written in them.
"""

import ml_collections

from meta_rl.configs import grpo_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'exact' or 'max' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, one_of=('exact', 'max'))
  config = grpo_countdown.get_config(scale)
  length = config.rollout.thinking_budget // 2
  if 'max' in own:
    config.name = 'LCPO-max'
    config.algorithm.update({'shaping': 'lcpo_max', 'max_length': length})
  else:
    config.name = 'LCPO-exact'
    config.algorithm.update({'shaping': 'lcpo_exact', 'target_length': length})
  config.algorithm.alpha = 0.01
  return config
