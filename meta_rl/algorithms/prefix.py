"""MRT-RL, the offline form: what thinking on from a given prefix was worth.

Axes: P prompts, G group, B = P * G traces, T tokens.
"""

import jax.numpy as jnp

from meta_rl import advantages, checks
from meta_rl.algorithms.base import Measured
from meta_rl.types import Array

FORMS = ('grouped', 'difference')


def prefix(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  alpha: float = 1.0,
  form: str = 'grouped',
) -> Array:
  """Returns one advantage a trace, of rollouts that share a prefix.

  The G = 2m rollouts of a prompt start from one prefix c, a stale trace that
  was stopped after some of its episodes: m think on (Continue), m answer at
  once (Direct). With J = J(c), the chance of answering right from c,

    r' = r + alpha (r - J) on Continue, r on Direct

    grouped     A = (r' - mean r') / (std r' + eps), over all G
    difference  A = r' - J: (1 + alpha) (r - J) on Continue, r - J on Direct

  r - J is the progress of everything behind the prefix, in one scalar. J does
  not depend on the rollout (measured by Direct rollouts, it is the mean of the
  others), so 'difference' is unbiased as it stands; with alpha = 0 its Continue
  rows are the published A = R - R_termination, and its Direct rows learn to
  answer, against the same baseline. alpha weighs
  thinking on against answering in both forms.

  The trap: where all rollouts of a group continue, J is a constant of the group
  and 'grouped' gives the same advantages for every alpha. It takes both kinds.

  Only what was sampled is trained: the rollout's `mask` leaves the prefix out.

  Args:
    measured: rewards, `continues` and `prefix_success` of each row.
    length: T.
    group_size: G = 2m rollouts of each prefix, one after the other.
    alpha: weight of the progress, >= 0.
    form: 'grouped' or 'difference'.

  Returns:
    f32[B,T].

  Raises:
    ValueError: an unknown form, alpha < 0, or rollouts that are no branches.

  Source: Qu et al. 2025, arXiv 2503.07572, section 6, and its public code
    (`A = R - R_termination`), which says nothing of Direct rollouts.
  """
  checks.check_choice('form', form, FORMS)
  checks.check_range('alpha', alpha, low=0)
  if measured.continues is None or measured.prefix_success is None:
    raise ValueError(
      'prefix: measured.continues and prefix_success are None: the rollouts '
      'must branch off a prefix, as those of steps.make_branches do.'
    )
  rewards = measured.rewards
  bonus = alpha * (rewards - measured.prefix_success)
  total = rewards + jnp.where(measured.continues, bonus, 0.0)
  if form == 'grouped':
    grouped = advantages.group_normalize(total.reshape(-1, group_size))
    advantage = grouped.reshape(-1)
  else:
    advantage = total - measured.prefix_success
  return jnp.broadcast_to(advantage[:, None], (advantage.shape[0], length))
