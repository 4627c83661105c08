r"""MRT-RL on Countdown: the offline form of `mrt_countdown.py`.

Meta reinforcement fine-tuning (Qu et al. 2025, arXiv 2503.07572, section 6): a
trace of the base policy is stopped after a random number of episodes, half of
the rollouts of a prompt think on from there and half answer at once, and those
that think on get one scalar at their end, r + alpha (r - J), with J the chance
of answering right from the prefix. Everything else is that of the MRT config,
which credits each episode instead.

    python -m meta_rl.train --config=configs/mrt_rl_countdown.py \
      --workdir=runs/mrt_rl

`difference` as argument drops the normalisation: A = r + alpha (r - J) - J;
`hard` and `tiny` as in MRT; several are joined by commas.

Departs from the paper: its prefixes come of the previous policy, that of the
iteration before. Here they come of the policy that the run started from, which
is never refreshed (`prefix_policy='reference'`), or of the current one, which
is not stale ('current'). J is the exact prover's where the paper samples it;
what it clips and its KL term are not published: here 0.2 and none.

The prefixes are sampled besides (a trace a prompt) and are not trained on;
`rollout/tokens_sum` counts them too. Half of the rollouts answer at once: the
regret of training rollouts says little here, compare `eval/`.
"""

import ml_collections

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'difference' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'difference')
  config = mrt_countdown.get_config(scale)
  config.name = 'MRT-RL'
  config.algorithm = {
    'name': 'prefix',
    'form': 'grouped',  # or 'difference'
    'alpha': 1.0,
    'prefix_policy': 'reference',  # what the run starts from, or 'current'
    'prefix_success': 'exact',  # or 'sampled', 'direct': how J is measured
  }
  if 'difference' in own:
    config.name = 'MRT-RL (difference)'
    config.algorithm.form = 'difference'
  return config
