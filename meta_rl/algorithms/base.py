"""What an algorithm may look at, and how it reads it.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl.types import Array, Episodes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Critic:
  """What a value head said of the traces before the update.

  Attributes:
    values: f32[B,T], of the state before each token.
    mask: bool[B,T], the actions, those of the rollout.
  """

  values: Array
  mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
  """What an algorithm may look at.

  Attributes:
    rewards: f32[B], r, the outcome of each trace's own answer.
    success: f32[B,K+1], J at every boundary; past count it repeats.
    episodes: the boundaries.
    stop_index: i32[B], column of the token that ended thinking (the answer
      marker); the token count where there is none.
    answered: bool[B], an answer followed the end of thinking.
    critic: the values of an algorithm that has some, else None.
    continues: bool[B], of rollouts that branch off a prefix: this one thinks
      on, the others answer at once. None: the rollouts are no branches.
    prefix_success: f32[B], J at the end of the prefix; None likewise.
    prover_tokens: i32[B], tokens fed to the prover (meta_rl/costs.py); None
      where nothing was proved.
  """

  rewards: Array
  success: Array
  episodes: Episodes
  stop_index: Array
  answered: Array
  critic: Critic | None = None
  continues: Array | None = None
  prefix_success: Array | None = None
  prover_tokens: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selected:
  """What an algorithm returns that trains on some of the traces alone.

  Attributes:
    advantages: f32[B,T].
    keep: bool[B], traces to train on; the others are out of every mean.
  """

  advantages: Array
  keep: Array


def at(values: Array, index: Array) -> Array:
  """Returns values[b, index[b]], [B,N] and i32[B] -> [B]."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
