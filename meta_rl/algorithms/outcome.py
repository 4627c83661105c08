"""Outcome-reward reinforcement: one advantage a trace, on all of its tokens.

Axes: P prompts, G group, B = P * G traces, T tokens.
"""

import functools

import jax.numpy as jnp

from meta_rl import advantages, masked
from meta_rl.algorithms.base import Measured, grouped
from meta_rl.types import Array


def outcome(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  baseline: str = 'mean_std',
) -> Array:
  """Returns one advantage a trace, on all of its tokens: outcome-reward RL.

    mean_std       (r - mean) / (std + eps), GRPO (arXiv 2402.03300)
    mean           r - mean, Dr. GRPO (arXiv 2503.20783)
    leave_one_out  r - mean of the others, RLOO (arXiv 2402.14740)

  Args:
    measured: rewards f32[B], and valid, are all that is used.
    length: T.
    group_size: G traces of each prompt, one after the other.
    baseline: 'mean_std', 'mean' or 'leave_one_out'.

  Returns:
    f32[B,T]; 0 for traces that are not valid.
  """
  rewards = grouped(measured.rewards, group_size)
  valid = grouped(measured.valid, group_size)
  masked.check_choice('baseline', baseline, _OUTCOME_BASELINES)
  advantage = _OUTCOME_BASELINES[baseline](rewards, valid=valid).reshape(-1)
  return jnp.broadcast_to(advantage[:, None], (advantage.shape[0], length))


_OUTCOME_BASELINES = {
  'mean_std': functools.partial(advantages.group_normalize, scale='std'),
  'mean': functools.partial(advantages.group_normalize, scale='none'),
  'leave_one_out': advantages.leave_one_out,
}
