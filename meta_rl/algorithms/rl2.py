"""Which episodes count: all of them (RL^2), or the last alone (E-RL^2).

Axes: B traces, T tokens, K episodes.
"""

import jax.numpy as jnp

from meta_rl import advantages, checks, regret
from meta_rl.algorithms.base import Measured, at, spread
from meta_rl.types import Array

COUNTED = ('all', 'last')


def rl2(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  counted: str = 'all',
  baseline: str = 'prover',
  axis_name: str | None = None,
) -> Array:
  """Returns the advantages of a trial of K episodes, each rewarded with its J.

  The reward of episode i is J_{i+1}, the success of answering right behind it.
  What a trial is worth from boundary j on, as a gain over stopping there:

    all    R_j = (1/K) sum_{i>=j} (J_{i+1} - J_j)
    last   R_j = J_K - J_j

  A trial has K episodes in both sources: an agent cannot cut it short. One that
  stops thinking has its answer in every episode that is left, so J_k holds from
  there to the end, and stopping returns 0 gain. (Were the rest worth nothing
  instead, never stopping would be best of all.) Sums are means over the trial,
  so that both forms are on one scale.

  By progress p_i = J_{i+1} - J_i this is R_j = sum_{i>=j} w_i p_i with
  w_i = (K - i) / K or 1: 'all' is MRT's token-weighted return with episodes in
  place of tokens, 'last' its return to go.

  As in `mrt`, episode j gets R_j - b_j, the token that stops at boundary k gets
  0 - b_k, and the answer its own r - J_k.

  Args:
    measured: rewards, J and boundaries; K is the number of its columns.
    length: T.
    group_size: G; not used: the prover is the baseline.
    counted: 'all' or 'last'.
    baseline: 'prover' (`advantages.prover_baseline`) or 'none'.
    axis_name: of a mapped data axis; the baseline is then fitted on all rows.

  Returns:
    f32[B,T].

  Raises:
    ValueError: an unknown choice.

  Source: RL^2, Duan et al. 2016, arXiv 1611.02779, section 2.2 (the reward of a
  trial is the sum over its episodes); E-RL^2, Stadie et al. 2018, arXiv
  1803.01118 (rewards of exploratory episodes are set to 0). Departs from both
  in that an episode's reward is the prover's J and not one sampled outcome, and
  in the baseline.
  """
  del group_size
  checks.check_choice('counted', counted, COUNTED)
  checks.check_choice('baseline', baseline, ('prover', 'none'))
  success, count = measured.success, measured.episodes.count
  num = success.shape[1] - 1
  progress = regret.progress(success, count)
  left = (num - jnp.arange(num)) / num if counted == 'all' else jnp.ones(num)
  returns = advantages.returns(
    progress,
    jnp.broadcast_to(left, progress.shape),
    jnp.zeros(progress.shape, jnp.int32),  # an episode has no price
    count,
    horizon=1,
  )
  base = jnp.zeros_like(returns)
  if baseline == 'prover':
    base = advantages.prover_baseline(
      returns,
      success,
      count,
      axis_name=axis_name,
      valid=measured.valid,
      inside=measured.inside,
    )
  gain = returns - base
  return spread(
    measured,
    length,
    gain[:, :-1],
    stop=at(gain, count),
    answer=measured.rewards - at(success, count),
  )
