"""Where the problems of a text task come from, by name.

A record is a dict: `question`, `accepted` (texts that are right, for the exact
prover), `key` (equal for one and the same problem), and `gold`, JSON values
that the verifier is given.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meta_rl.tasks import (
  countdown,
  reasoning_gym,
  text_countdown,
  text_data,
  text_host,
)

# Problems of a split of reasoning-gym where its options give no `size`.
_SIZE = {'train': 1000, 'validation': 200, 'test': 500}
# Problems whose own answer is graded when they are loaded.
_CHECKED = 3


@dataclasses.dataclass(frozen=True)
class Source:
  """A kind of problems.

  Attributes:
    load: `(data_dir, split, **options) -> Sequence[record]`.
    sample_trace: `(record, rng, **options) -> (thought, answer)` for a warm
      start; None: the source shows none.
    difficulty: `record -> (label, value) | None`, as `TaskKit.difficulty`;
      None: nothing is known of any.
  """

  load: Callable[..., Sequence[Mapping[str, Any]]]
  sample_trace: Callable[..., tuple[str, str]] | None = None
  difficulty: Callable[..., tuple[str, float | str] | None] | None = None


class Records(Sequence):
  """The records of a source, each made when it is asked for."""

  def __init__(self, source: Sequence, make: Callable[[Any], dict]):
    self._source, self._make = source, make

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self._make(self._source[int(index)])


def load_files(data_dir, split: str, *, preset: str = '', **options):
  """Returns the problems of files with questions and answers.

  Args:
    data_dir, split: as in `text_data.load_source`.
    preset: a key of `text_data.DATASETS`; a `path` replaces its hub name.
    **options: of `text_data.TextConfig`.
  """
  own = dict(text_data.DATASETS[preset]) if preset else {}
  if options.get('path'):
    own = {k: v for k, v in own.items() if k not in ('hub', 'subset')}
  source = text_data.load_source(data_dir, split, **{**own, **options})

  def make(record):
    text = text_data.record_text(record)
    return {
      'question': text['question'],
      'accepted': (text['answer'],),
      'key': text['key'],
      'gold': {'answer': text['answer']},
      'level': text['level'],
    }

  return Records(source, make)


def level_of(record: Mapping[str, Any]) -> tuple[str, float | str] | None:
  """Returns the level that a file gives a problem, None where it gives none."""
  level = record['level']
  if not level:
    return None
  try:
    value = float(level)
  except ValueError:
    value = math.nan
  return 'level', value if math.isfinite(value) else level


def load_reasoning_gym(
  data_dir, split: str, *, task: str = '', size: int | None = None, **options
):
  """Returns problems of a task of reasoning-gym.

  Args:
    data_dir: not used: they are made anew each time.
    split: 'train', 'validation' or 'test'.
    task: its name there.
    size: problems of each split; None: 1,000, 200 and 500.
    **options: of the task; `seed` too.

  Raises:
    ValueError: as `reasoning_gym.make_source`; no task, or one whose verifier
      would not take its own answers, once its problems were sent to it as JSON.
  """
  del data_dir
  if not isinstance(task, str) or not task:
    raise ValueError(
      f'task.data.task={task!r} is given; allowed is the name of a task of '
      'reasoning-gym: set one, such as gcd'
    )
  source = reasoning_gym.make_source(
    task, size=size or _SIZE[split], split=split, **options
  )
  shown = [r for r in source if isinstance(r['answer'], str)]
  for record in shown[:_CHECKED]:
    sent = text_host.from_json(text_host.to_json(dict(record)))
    own = source.score(record['answer'], record)
    if source.score(sent['answer'], sent) != own:
      raise ValueError(
        f'reasoning-gym task {task!r}: its verifier scores its own answer '
        f'{record["answer"][:40]!r} otherwise once the problem was sent to it '
        'as JSON; take another task'
      )

  def make(record):
    answer = record['answer']
    return {
      'question': record['question'],
      'accepted': () if answer is None else (str(answer),),
      'key': reasoning_gym.normalize(record['question']),
      'gold': dict(record),
    }

  return Records(source, make)


def load_countdown(data_dir, split: str, **options):
  """Returns Countdown in words (meta_rl/tasks/text_countdown.py)."""
  source, make = text_countdown.load_source(data_dir, split, **options)
  return Records(source, make)


SOURCES = {
  'files': Source(load_files, difficulty=level_of),
  **{
    name: Source(
      functools.partial(load_files, preset=name), difficulty=level_of
    )
    for name in text_data.DATASETS
  },
  'reasoning_gym': Source(load_reasoning_gym),
  'countdown': Source(
    load_countdown,
    sample_trace=text_countdown.sample_trace,
    difficulty=lambda record: countdown.difficulty(record['problem']),
  ),
}
