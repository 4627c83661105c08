r"""PAV on Countdown: progress under a prover that may try K times.

Setlur et al. 2024, arXiv 2410.08146: the effective reward of a step is the
outcome plus alpha times its advantage under a prover. A prover equal to the
policy adds nothing to outcome reward but a smaller variance, so it is the best
of K = 4 of the policy's own continuations: 1 - (1 - V)^4. Values are sampled
anew, with no verifier trained to predict them; their means of 4 make the
transformed value a little too small. The rest is that of `vineppo_countdown`.

    python -m meta_rl.train --config=configs/pav_countdown.py \
      --workdir=runs/pav

`hard` and `tiny` as in MRT.
"""

import ml_collections

from meta_rl.configs import vineppo_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is '', 'hard' or 'tiny'."""
  config = vineppo_countdown.get_config(arg)
  config.name = 'PAV'
  config.algorithm.update(
    {
      'transform': 'best_of',
      'tries': 4,
      'outcome_coef': 1.0,
      'outcome_baseline': 'leave_one_out',
    }
  )
  return config
