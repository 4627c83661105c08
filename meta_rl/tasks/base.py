"""What the training step needs to know of a token task."""

import dataclasses
from collections.abc import Callable

from meta_rl.types import Array


@dataclasses.dataclass(frozen=True)
class Task:
  """A task whose answers are verified on the device; static and hashable.

  Attributes:
    name: of the task.
    vocab_size: token ids are below it.
    pad_id, eos_id: padding and end of a trace.
    think_end_id: the answer marker.
    stop_ids: tokens that forced termination puts after a prefix.
    delimiter_ids: tokens that end an episode.
    episode_length: tokens of one attempt.
    answer_length: A, tokens of the longest answer, EOS included.
    verify: `(answers i32[...,A], mask bool[...,A], batch) -> f32[...]`, the
      reward; `batch` holds the arrays of the problems, whose leading axes
      broadcast against those of the answers.
    observe: `(last i32[B], thinking bool[B], batch) -> i32[B]`, the token that
      the environment puts behind `last`, -1 where it is the policy's turn;
      `batch` holds the arrays of the problems, one row a trace. None: nothing
      is ever observed.
  """

  name: str
  vocab_size: int
  pad_id: int
  eos_id: int
  think_end_id: int
  stop_ids: tuple[int, ...]
  delimiter_ids: tuple[int, ...]
  episode_length: int
  answer_length: int
  verify: Callable[[Array, Array, dict[str, Array]], Array]
  observe: Callable[[Array, Array, dict[str, Array]], Array] | None = None
