r"""MRT on Countdown from rollouts that were made elsewhere.

Another engine (vLLM, SGLang, an older policy) samples, this one trains: a JSONL
file of traces, with the log-probs of the sampler where it knows them, takes the
place of sampling. The trainer scores each batch under the policy as it is, and
truncated importance sampling (Yao et al. 2025, 'Your Efficient RL Framework
Secretly Brings You Off-Policy RL Training') weighs what the two differ by.

What a row holds is said in meta_rl/external/rows.py. A file to try it with:

    python -m meta_rl.generate --config=configs/external_countdown.py \
      --num_prompts=480 --group_size=8 --out=rollouts.jsonl
    python -m meta_rl.train --config=configs/external_countdown.py \
      --config.rollout.source=jsonl:rollouts.jsonl --workdir=runs/external

A fixed file is used up: it is for a few passes, while the policy is still near
the one that sampled. `row` takes the rewards of the rows, with GRPO; `grpo`
grades by the task; `hard` and `tiny` as in MRT; several are joined by commas.

For a language model: the argument `external` of its config, such as
`mrt_qwen3_0p6b:external`.
"""

import ml_collections

from meta_rl.configs import (
  grpo_countdown,
  mrt_countdown,
  split_argument,
  take_rollouts,
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'grpo' or 'row' and 'hard' or 'tiny'."""
  own, scale = split_argument(arg, 'grpo', 'row')
  base = grpo_countdown if own else mrt_countdown
  config = base.get_config(scale)
  take_rollouts(config)
  config.total_steps = 20  # of 24 groups: one pass over 480
  if 'row' in own:
    config.name += ' and rewards'
    config.external.reward = 'row'
    config.prover.kind = 'none'
  if scale == 'tiny':
    config.total_steps = 4
  return config
