"""What an algorithm may look at, and how it reads it.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl.types import Array, Episodes


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
    prover_tokens: i32[B], tokens fed to the prover (meta_rl/costs.py); None
      where nothing was proved.
  """

  rewards: Array
  success: Array
  episodes: Episodes
  stop_index: Array
  answered: Array
  prover_tokens: Array | None = None


def at(values: Array, index: Array) -> Array:
  """Returns values[b, index[b]], [B,N] and i32[B] -> [B]."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
