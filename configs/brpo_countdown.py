r"""BRPO on Countdown: anytime reasoning at sampled token budgets.

AnytimeReasoner (Qi et al. 2025, arXiv 2505.13438): thinking is cut at a few
budgets, the policy answers there several times, and thought is credited with
what the answers at later budgets score, weighed by a prior over budgets; the
answers themselves are trained beside it, one row each. Everything else is that
of the MRT config.

    python -m meta_rl.train --config=configs/brpo_countdown.py \
      --workdir=runs/brpo

`uniform` (default), `linear` or `base` as argument chooses the prior; `hard`
and `tiny` as in MRT; two are joined by a comma.
"""

import ml_collections

from meta_rl.configs import mrt_countdown, split_argument

PRIORS = ('uniform', 'linear', 'base')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins a prior and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, one_of=PRIORS)
  config = mrt_countdown.get_config(scale)
  prior = (own or ['uniform'])[-1]
  config.name = 'BRPO' if prior == 'uniform' else f'BRPO, {prior} prior'
  config.prover.update({'kind': 'sampled', 'num_branches': 4})
  config.prover.boundaries = 'budgets'
  config.prover.budgets = (27, 54, 81, 108)
  config.algorithm = {
    'name': 'brpo',
    'prior': prior,
    'summary': 'rows',  # or 'own': the trace's own answer alone is trained
    'summary_baseline': 'prefix',  # or 'group'
    # Of the 16 answers of a trace (4 at each budget), how many are rows. All
    # would make the update nine times as long.
    'summaries_per_trace': 4,
  }
  config.batching.micro_batches = 30  # 16 rows each, as in MRT
  if 'hard' in scale:
    config.prover.budgets = (18, 36, 54, 72, 90)
  if 'tiny' in scale:
    config.prover.budgets = (9, 18, 27)
    config.prover.num_branches = 2
    config.algorithm.summaries_per_trace = 2
    config.batching.micro_batches = 1
  return config
