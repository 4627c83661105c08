"""PPO with a value head: GAE on tokens, and what the value is trained on.

Axes: B traces, T tokens, K episodes.
"""

import jax.numpy as jnp

from meta_rl import advantages, checks, masked
from meta_rl.algorithms.base import Measured, at
from meta_rl.types import Array


def ppo(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  discount: float = 1.0,
  decay: float = 0.95,
) -> Array:
  """Returns generalised advantage estimates from the critic's values.

    δ_i = r_i + γ·V_{i+1} - V_i,   A_i = δ_i + γλ·A_{i+1}

  with the outcome r at the last action and 0 before it. Every trace is its own
  estimate: a group of one works.

  Departs from published PPO for language models: advantages are not whitened
  over the batch (its share of hard problems would scale the step), and a KL
  term, where there is one, is part of the loss and not of the reward.

  Args:
    measured: rewards and critic.
    length: T.
    group_size: not used: nothing is compared within a group.
    discount: γ in [0, 1].
    decay: λ in [0, 1].

  Returns:
    f32[B,T], 0 where no action is.

  Raises:
    ValueError: no critic, or one of another length.

  Source: PPO (arXiv 1707.06347); GAE (arXiv 1506.02438).
  """
  del group_size
  critic = measured.critic
  if critic is None:
    raise ValueError(
      "algorithm 'ppo' needs the critic's values: put what steps.make_value "
      'gives into measured.critic.'
    )
  checks.check_shape('critic.values', critic.values, f'B,{length}')
  return advantages.gae(
    advantages.terminal_rewards(measured.rewards, critic.mask),
    critic.values,
    critic.mask,
    discount=discount,
    decay=decay,
  )


def value_targets(measured: Measured, advantage: Array) -> dict[str, Array]:
  """Returns what the value is regressed on.

  The λ-return A + V of every action, and the prover's J where it speaks of the
  very state whose value is asked for:

    at boundary j, the state before the token behind c_j: J_j
    before the first token of the answer: J_k

  The prover as the teacher of the critic is ours. J_k before the answer is the
  value itself, without the noise of one sampled answer. J_j at a boundary is
  the value of stopping there, a lower bound of the best that can be done from
  c_j: the critic is drawn towards it by as much as it is weighed. The policy
  gradient stays unbiased at λ = 1, whatever V is.

  Args:
    measured: J, boundaries and critic.
    advantage: f32[B,T], of `ppo`.

  Returns:
    old_values, value_targets, j_targets f32[B,T] and j_mask bool[B,T], True on
    the actions that have a J.
  """
  critic = measured.critic
  rows, length = critic.mask.shape
  ends, count = measured.episodes.ends, measured.episodes.count
  columns = jnp.arange(length)
  behind = critic.mask & (columns > measured.stop_index[:, None])
  answer = masked.first_true_index(behind, axis=1)
  answer = jnp.where(measured.answered & (answer >= 0), answer, length)
  # Past count a boundary repeats, and so does its J: written twice, the same.
  where = jnp.concatenate([ends + 1, answer[:, None]], axis=1)
  final = at(measured.success, count)[:, None]
  what = jnp.concatenate([measured.success, final], axis=1)
  row = jnp.arange(rows)[:, None]
  # A column of its own behind the last takes what has no place.
  where = jnp.minimum(where, length)
  spread = jnp.zeros((rows, length + 1)).at[row, where].set(what)
  known = jnp.zeros((rows, length + 1), bool).at[row, where].set(True)
  return {
    'old_values': critic.values,
    'value_targets': advantage + critic.values,
    'j_targets': spread[:, :length],
    'j_mask': known[:, :length] & critic.mask,
  }
