r"""DAPO on Countdown: GRPO with a wider clip and groups that all differ.

Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476): the clip
is wider upwards (0.2 / 0.28), every token counts alike, there is no KL term,
prompts are drawn until each of their groups differs, and traces that near the
longest length are punished softly. Everything else is that of the GRPO config.

    python -m meta_rl.train --config=configs/dapo_countdown.py \
      --workdir=runs/dapo

`hard` and `tiny` as in MRT.

Groups whose rewards are all equal, a sixth of them on the base policy, are
replaced by those of further prompts, in at most 4 rounds a step; two are the
rule, and so are twice the tokens of GRPO (`rollout/tokens_sum` counts them).

The punishment grows over the last two episodes (18 tokens) of the thinking
budget: 17% of 108 tokens, and 20% of 90 with `hard`, where the paper has 4,096
of 20,480. Departs from the paper: lengths are thinking tokens, and a trace that
has used up its budget is forced to answer, not cut, so a right answer can still
come to 1 - 1 = 0; the outcome is 0 or 1 and not -1 or 1.
"""

import ml_collections

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = mrt_countdown.get_config(arg)
  config.name = 'DAPO'
  config.algorithm = {
    'name': 'outcome',
    'baseline': 'mean_std',
    'shaping': 'overlong',
    'max_length': config.rollout.thinking_budget,
    'cache_length': 18,
  }
  config.rollout.dynamic_sampling.max_rounds = 4
  config.loss.update({'clip_high': 0.28, 'aggregate': 'token_mean'})
  return config
