"""The parts of a given response: thought, answer, and what ended it.

    thought   up to the answer marker, or to the stop tokens that were put there
    answer    what comes behind, up to its end
    end       in the thought a token of `Task.end_ids`; in the answer one of
              these too, or the token that completes a stop string

They are those that sampling finds (meta_rl/decode.py), so that a trace of a
file is cut as one of the policy is.
"""

import dataclasses

import numpy as np

from meta_rl.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Parts:
  """Where the parts of a response of N tokens are.

  Attributes:
    thought: tokens of the thought.
    forced: it was cut short by the task's stop tokens.
    answer: index of the answer's first token, N where there is none.
    end: index of the token that ends the trace; None: nothing ended it.
  """

  thought: int
  forced: bool
  answer: int
  end: int | None


def parts_of(response: np.ndarray, mask: np.ndarray, task: Task) -> Parts:
  """Returns the parts of a response.

  Args:
    response: i32[N], N >= 1.
    mask: bool[N], drawn by the sampler. Stop tokens count as put there only
      where all of them are False.
    task: marker, stop tokens and ends.
  """
  size, stop = len(response), list(task.stop_ids)
  closes = np.isin(response, (task.think_end_id, *task.end_ids))
  thought = int(np.argmax(closes)) if closes.any() else size
  for i in np.flatnonzero((response == stop[0]) & ~mask).tolist():
    part = slice(i, i + len(stop))
    if i > thought:
      break
    if response[part].tolist() == stop and not mask[part].any():
      answer = i + len(stop)
      return Parts(i, True, answer, _end_of(response, answer, task))
  if thought < size and response[thought] != task.think_end_id:
    return Parts(thought, False, size, thought)
  answer = min(thought + 1, size)
  return Parts(thought, False, answer, _end_of(response, answer, task))


def _end_of(response, start: int, task: Task) -> int | None:
  """Returns the index of the token that ends the answer from `start` on."""
  ends = np.flatnonzero(np.isin(response[start:], task.end_ids))
  first = start + int(ends[0]) if len(ends) else None
  table = task.stop_table
  if table is None:
    return first
  state = 0
  for i, token in enumerate(response[start:first].tolist(), start):
    if token < len(table.class_of):  # others have no text
      state = table.next_state[state, table.class_of[token]]
    if state == table.complete:
      return i
  return first
