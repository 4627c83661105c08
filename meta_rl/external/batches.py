"""Batches of a file of rollouts: groups of a prompt, shapes, a resumable order.

The rows of one prompt make groups of `group_size`, in the order of the file;
they need not be neighbours.

Axes: P prompts, G group, B = P * G traces, T tokens.
"""

import dataclasses
import functools
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from meta_rl.external.rows import Row, read_rows
from meta_rl.tasks.base import Task

# Names of a batch's arrays that are traces and not problems start with it.
PREFIX = 'rollout/'

Batch = dict[str, np.ndarray]
ProblemFn = Callable[[Sequence[int], str | None], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Group:
  """G traces of one prompt and the arrays of their problem."""

  rows: tuple[Row, ...]
  problem: Mapping[str, np.ndarray]


def group_rows(
  path: str | os.PathLike,
  rows: Sequence[Row],
  group_size: int,
  problem_fn: ProblemFn | None = None,
) -> list[Group]:
  """Returns the groups of a file, in the order of their first rows.

  Args:
    path: for the messages.
    rows: of `read_rows`.
    group_size: G.
    problem_fn: (prompt ids, the rows' question or None) -> the arrays of the
      problem, without a batch axis; None: a prompt is all there is.

  Raises:
    ValueError: a prompt whose rows don't make whole groups, differ in their
      question, or that `problem_fn` can't read; file and line are named.
  """
  of_prompt = {}
  for row in rows:
    of_prompt.setdefault(row.prompt, []).append(row)
  groups = []
  for prompt, own in of_prompt.items():
    if len(own) % group_size:
      raise ValueError(
        f'{path}, line {own[0].line}: its prompt has {len(own)} rows in the '
        f'file; groups of group_size={group_size} need a multiple of it'
      )
    try:
      problem = {}
      if problem_fn is not None:
        problem = dict(problem_fn(prompt, _question_of(own)))
    except ValueError as error:
      raise ValueError(f'{path}, line {own[0].line}: {error}') from error
    for i in range(0, len(own), group_size):
      groups.append(Group(tuple(own[i : i + group_size]), problem))
  return groups


def _question_of(rows: Sequence[Row]) -> str | None:
  """Returns the question of the rows of a prompt, None where none has one."""
  asked = [row for row in rows if row.question is not None]
  for row in asked:
    if row.question != asked[0].question:
      raise ValueError(
        'the "question" of its prompt is another one in line '
        f'{row.line}: rows of one prompt are of one problem'
      )
  return asked[0].question if asked else None


def collate(
  groups: Sequence[Group],
  *,
  task: Task,
  prompt_length: int,
  lengths: Sequence[int],
) -> Batch:
  """Returns one batch of P groups: their problems and their traces.

  Args:
    groups: P of them, of one size.
    task: its padding.
    prompt_length: Tp; prompts are padded on their left.
    lengths: buckets of response columns, rising: the first that holds the
      longest response of the batch is taken, so that few shapes are compiled.

  Returns:
    prompts i32[P,Tp], prompt_mask bool[P,Tp], the problems' arrays [P,...], and
    under `rollout/` the fields of `Rollout` with the group as an axis of its
    own, [P,G,T] and [P,G], and rewards f32[P,G].
  """
  longest = max(len(row.response) for group in groups for row in group.rows)
  length = next(n for n in lengths if n >= longest)
  traces = [
    [_trace(row, task, prompt_length, length) for row in group.rows]
    for group in groups
  ]
  stack = lambda name: np.asarray([[t[name] for t in g] for g in traces])
  batch = {f'{PREFIX}{name}': stack(name) for name in traces[0][0]}
  for name in groups[0].problem:
    batch[name] = np.stack([group.problem[name] for group in groups])
  for name in ('tokens', 'token_mask'):
    prompts = batch[f'{PREFIX}{name}'][:, 0, :prompt_length]
    batch['prompts' if name == 'tokens' else 'prompt_mask'] = prompts
  return batch


def _trace(row: Row, task: Task, prompt_length: int, length: int) -> dict:
  """Returns the fields of `Rollout` of one row, T = prompt_length + length."""
  size = len(row.response)

  def place(values, fill, start=prompt_length):
    out = np.full(prompt_length + length, fill, np.asarray(values).dtype)
    out[start : start + len(values)] = values
    return out

  start = prompt_length - len(row.prompt)
  tokens = np.concatenate([np.asarray(row.prompt, np.int32), row.response])
  return {
    'tokens': place(tokens, task.pad_id, start),
    'token_mask': place(np.ones(len(tokens), bool), False, start),
    'mask': place(row.mask, False),
    'thinking_mask': place(np.arange(size) < row.parts.thought, False),
    'behavior_log_probs': place(row.log_probs, 0),
    'truncated': row.parts.end is None,
    'forced': row.parts.forced,
    'rewards': np.float32(row.reward),
  }


def _warn_of_answers(path, rows: Sequence[Row], answer_length: int):
  """Logs how many answers are longer than what is graded of them."""
  sizes = [len(row.response) - row.parts.answer for row in rows]
  longer = [i for i, size in enumerate(sizes) if size > answer_length]
  if longer:
    logging.warning(
      '%s: %d of %d answers have more than task.answer_length=%d tokens (line '
      '%d: %d), of which the first are graded, as of what the policy samples: '
      'raise it if these answers count',
      path,
      len(longer),
      len(rows),
      answer_length,
      rows[longer[0]].line,
      sizes[longer[0]],
    )


def _warn_of_thoughts(path, rows: Sequence[Row], budget: int):
  """Logs how many thoughts go on beyond the thinking budget."""
  longer = [row for row in rows if row.parts.thought > budget]
  if longer:
    logging.warning(
      '%s: %d of %d thoughts have more than rollout.thinking_budget=%d tokens '
      '(line %d: %d): what lies beyond belongs to no episode and has no weight '
      'in regret; raise the budget, or end thoughts there when you sample',
      path,
      len(longer),
      len(rows),
      budget,
      longer[0].line,
      longer[0].parts.thought,
    )


class RolloutBatches(Iterator[Batch]):
  """Endless batches of the groups of a file; every epoch is a new shuffle.

  Args:
    path: of the file.
    num_prompts: P, groups a batch.
    group_size: G.
    seed: of the shuffles.
    task: marker, stop tokens, ends and padding.
    vocab_size: of the model.
    encode: of the task's `TaskKit`, for rows of text.
    problem_fn: as in `group_rows`; rows are then graded by the task, and a
      warning says which answers are longer than it grades.
    thinking_budget: a warning says which thoughts are longer; None: none does.
    buckets: response columns, rising; () is one bucket, of the longest.
    needs_reward: every row must have a reward of its own.
    own: which of the groups of each batch to give, of `process_slice`.

  Attributes:
    groups: of the file.

  Raises:
    ValueError: as in `read_rows` and `group_rows`; a response beyond the last
      bucket; a row without a reward; fewer groups than a batch.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    num_prompts: int,
    group_size: int,
    seed: int,
    task: Task,
    vocab_size: int,
    encode: Callable[..., Sequence[int]],
    problem_fn: ProblemFn | None = None,
    thinking_budget: int | None = None,
    buckets: Sequence[int] = (),
    needs_reward: bool = False,
    own: slice = slice(None),
  ):
    self._own = own
    rows = read_rows(path, vocab_size=vocab_size, task=task, encode=encode)
    if problem_fn is not None:
      _warn_of_answers(path, rows, task.answer_length)
    if thinking_budget is not None:
      _warn_of_thoughts(path, rows, thinking_budget)
    self.groups = group_rows(path, rows, group_size, problem_fn)
    longest = max(rows, key=lambda row: len(row.response))
    lengths = tuple(buckets) or (len(longest.response),)
    if len(longest.response) > lengths[-1]:
      raise ValueError(
        f'{path}, line {longest.line}: the response has '
        f'{len(longest.response)} tokens and the last bucket holds '
        f'{lengths[-1]}: add a bucket or leave the row out'
      )
    bare = [row.line for row in rows if math.isnan(row.reward)]
    if needs_reward and bare:
      raise ValueError(
        f'{path}, line {bare[0]}: no "reward", and rewards are those of the '
        'rows: give one, or grade by the task'
      )
    if len(self.groups) < num_prompts:
      raise ValueError(
        f'{path} has {len(self.groups)} groups of {group_size} rows and a '
        f'batch takes {num_prompts}: lower num_prompts or add rows'
      )
    self._path = path
    self._crc32 = zlib.crc32(pathlib.Path(path).read_bytes())
    dataset = grain.MapDataset.source(self.groups).shuffle(seed=seed)
    dataset = dataset.repeat().batch(
      num_prompts,
      drop_remainder=True,
      batch_fn=functools.partial(
        collate,
        task=task,
        prompt_length=max(len(row.prompt) for row in rows),
        lengths=lengths,
      ),
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    self._batches = iter(dataset.to_iter_dataset(options))

  def __next__(self) -> Batch:
    # Cut when it is whole: its columns are those of its longest response.
    return {k: v[self._own] for k, v in next(self._batches).items()}

  def get_state(self) -> dict[str, Any]:
    """Returns JSON values, to be given to `set_state`."""
    return {'batches': self._batches.get_state(), 'crc32': self._crc32}

  def set_state(self, state: Mapping[str, Any]):
    """Goes on from where `state` was taken.

    Raises:
      ValueError: the file is another one than then.
    """
    if state.get('crc32') != self._crc32:
      raise ValueError(
        f'{self._path} has changed since the checkpoint: put the old file '
        'back, or start in another workdir with init_from'
      )
    self._batches.set_state(state['batches'])
