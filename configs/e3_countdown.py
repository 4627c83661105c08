r"""e3 on Countdown: the thinking budget of training grows with the policy.

Setlur et al. 2025, arXiv 2506.09026: traces are cut at the smallest budget B
with J(2B) <= kappa J(B), where twice the tokens would bring little more. Every
25 steps J is measured on held-out problems at a few budgets, and one of them is
chosen. Everything else is that of the GRPO config (outcome reward, negative
gradients included).

Departs from e3 in that problems are not ordered by difficulty, and in a fixed
set of budgets, each compiled once.

    python -m meta_rl.train --config=configs/e3_countdown.py --workdir=runs/e3

`mrt` as argument takes MRT's credit in place of GRPO's; `hard` and `tiny` as in
MRT; two are joined by a comma. The horizon of credit is the budget of the step,
and so is that of `regret/` in the metrics: compare `eval/`, which is at the
full budget. What choosing costs is `cost/curriculum`, part of `cost/total`.
"""

import ml_collections

from meta_rl.configs import grpo_countdown, mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'mrt' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'mrt')
  base = mrt_countdown if own else grpo_countdown
  config = base.get_config(scale)
  config.name = 'e3, MRT credit' if own else 'e3'
  total = config.rollout.thinking_budget
  config.curriculum.budgets = (total // 4, total // 2, total)
  if 'tiny' in scale:
    # Not below an episode, which is longer where search backtracks.
    config.curriculum.budgets = (13 if 'backtrack' in scale else 9, total)
  return config
