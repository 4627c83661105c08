"""Outcome-reward reinforcement: one advantage a trace, on all of its tokens.

Axes: P prompts, G group, B = P * G traces, T tokens.
"""

import functools

import jax
import jax.numpy as jnp

from meta_rl import advantages, checks, masked
from meta_rl import shaping as shapings
from meta_rl.algorithms.base import Measured, grouped
from meta_rl.types import Array

# These compare no trace with its group: one trace a prompt is enough for them.
UNGROUPED = ('none', 'batch_mean')


def outcome(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  baseline: str = 'mean_std',
  shaping: str = 'none',
  alpha: float | None = None,
  target_length: int | None = None,
  max_length: int | None = None,
  cache_length: int | None = None,
  axis_name: str | None = None,
) -> Array:
  """Returns one advantage a trace, on all of its tokens: outcome-reward RL.

    none           r, REINFORCE (Williams 1992)
    batch_mean     r - mean of the batch, REINFORCE with a baseline
    mean_std       (r - mean) / (std + eps), GRPO (arXiv 2402.03300)
    mean           r - mean, Dr. GRPO (arXiv 2503.20783)
    leave_one_out  r - mean of the others, RLOO (arXiv 2402.14740)

  The last three are means over the group. `shaping` (meta_rl/shaping.py) turns
  the outcome into the r of these lines first, by the thinking tokens spent.

  'batch_mean' holds the trace's own reward, as 'mean' does: in expectation that
  scales the gradient by 1 - 1/B and does not turn it.

  Args:
    measured: rewards f32[B], where thinking began and stopped for the lengths,
      and `valid`: traces without a reward are in no mean.
    length: T.
    group_size: G traces of each prompt, one after the other.
    baseline: one of the five.
    shaping: 'none', 'lcpo_exact', 'lcpo_max', 'length_penalty' or 'overlong'.
    alpha: of the first three shapings.
    target_length: of 'lcpo_exact', tokens.
    max_length: of 'lcpo_max' and 'overlong', tokens.
    cache_length: of 'overlong', tokens.
    axis_name: of a mapped data axis; the batch's mean is then that of all rows.

  Returns:
    f32[B,T]; 0 for traces that are not valid.

  Raises:
    ValueError: an unknown baseline or shaping, an option that the shaping has
      no use for or lacks, or a group of one where the baseline is the group's.
  """
  checks.check_choice('baseline', baseline, [*UNGROUPED, *_GROUP_BASELINES])
  ends = measured.episodes.ends
  valid = grouped(measured.valid, group_size)
  rewards = shapings.shape(
    grouped(measured.rewards, group_size),
    # All thinking: given traces may go on past the last budget.
    grouped(measured.stop_index - 1 - ends[:, 0], group_size),
    kind=shaping,
    alpha=alpha,
    target_length=target_length,
    max_length=max_length,
    cache_length=cache_length,
  )
  if baseline in _GROUP_BASELINES:
    rewards = _GROUP_BASELINES[baseline](rewards, valid=valid)
  elif baseline == 'batch_mean':
    rewards = rewards - _batch_mean(rewards, valid, axis_name)
  if valid is not None:
    rewards = masked.select(valid, rewards)
  advantage = rewards.reshape(-1)
  return jnp.broadcast_to(advantage[:, None], (advantage.shape[0], length))


def _batch_mean(
  rewards: Array, valid: Array | None, axis_name: str | None
) -> Array:
  """Returns f32[], the mean over all valid rows of all devices."""
  if valid is None:
    valid = jnp.ones(rewards.shape, bool)
  total = masked.masked_sum(rewards, valid)
  size = jnp.sum(valid, dtype=rewards.dtype)
  if axis_name is not None:
    total, size = jax.lax.psum((total, size), axis_name)
  return masked.safe_divide(total, size)


_GROUP_BASELINES = {
  'mean_std': functools.partial(advantages.group_normalize, scale='std'),
  'mean': functools.partial(advantages.group_normalize, scale='none'),
  'leave_one_out': advantages.leave_one_out,
}
