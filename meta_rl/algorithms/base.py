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
    rewards: f32[B], r, the outcome of each trace's own answer, plus `extra`.
    success: f32[B,K+1], J at every boundary; past count it repeats.
    episodes: the boundaries.
    stop_index: i32[B], column of the token that ended thinking (the answer
      marker); the token count where there is none.
    answered: bool[B], an answer followed the end of thinking.
    valid: bool[B], the trace has a reward; None: all have. The others are in no
      baseline and in no update.
    extra: f32[B], the part of `rewards` that the task's own outcome, of which J
      is the chance, does not account for; None: nothing.
  """

  rewards: Array
  success: Array
  episodes: Episodes
  stop_index: Array
  answered: Array
  valid: Array | None = None
  extra: Array | None = None


def at(values: Array, index: Array) -> Array:
  """Returns values[b, index[b]], [B,N] and i32[B] -> [B]."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def grouped(values: Array | None, group_size: int) -> Array | None:
  """Returns values [B] with one group a row, [P,G]; None stays None."""
  return None if values is None else values.reshape(-1, group_size)
