r"""Any single-turn task of reasoning-gym by its name: problems and a verifier.

    source = make_source('gcd', size=1000, split='train')
    record = source[0]          # {'question', 'answer', 'metadata', ...}
    source.score('6', record)   # 1.0 or 0.0

reasoning-gym (Apache-2.0) generates problems without end and brings a verifier
for each of its hundred tasks: `pip install 'meta-rl[tasks]'`. This module gives
text problems and their verification; a language model trains on them by
`task.source='reasoning_gym'` of a text task (meta_rl/tasks/text_sources.py):

    python -m meta_rl.train --config=mrt_smollm2_135m:gym \
      --config.task.data.task=gcd --workdir=runs/gcd

What a user of these tasks runs into, and what is done about it:

  verifiers       Partial scores of wrong answers, text that is run as code,
                  checks that pass whatever they are given: see
                  meta_rl/verifiers/reasoning_gym.py.
  seeds           Item i of seed s is item i + 1 of seed s - 1, so different
                  seeds share problems. Here the split of a problem is a
                  function of its text alone.
  no answer       boxnet, graph_color, propositional_logic, rubiks_cube and
                  rush_hour have no answer of their own (None): they can be
                  verified, and not be shown.
  hash seeds      isomorphic_strings, polynomial_multiplication, ransom_note and
                  word_ladder give other problems under another PYTHONHASHSEED:
                  set it where a run is to be resumed.

The symbolic verifiers (simple_integration, intermediate_integration,
polynomial_multiplication) can take long on an odd expression: where a model
writes the answers, grade them with `verifiers.pool.Pool('reasoning_gym')`, in
processes that can be killed.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meta_rl.files import one_line
from meta_rl.tasks.base import SPLITS, split_of_key
from meta_rl.verifiers import reasoning_gym as scoring

# Shares of the problems, in percent, by the hash of the question.
_SPLIT_PERCENT = {'train': 60, 'validation': 20, 'test': 20}

# Draws for each problem that is asked for, before a task counts as used up.
_DRAWS = 25

Record = Mapping[str, Any]


def make_source(
  name: str,
  *,
  size: int,
  split: str = 'train',
  seed: int = 0,
  **config: Any,
) -> 'Source':
  """Returns `size` different problems of a task.

  Problems are drawn one after the other; one that belongs to another split, or
  whose question came before, is passed over. The split is blake2s(question,
  normalised) mod 100, so that a problem held out of one source is held out of
  all, whatever their seeds, sizes and options.

  Args:
    name: of a task, as reasoning-gym registers it.
    size: problems, >= 1.
    split: 'train', 'validation' or 'test'.
    seed: of the draws.
    **config: options of the task.

  Raises:
    ValueError: reasoning-gym is missing, an unknown task (the nearest names are
      given), option or split, or a task with too few different problems.
  """
  if split not in SPLITS:
    raise ValueError(f'split {split!r} must be one of {SPLITS}')
  if size < 1:
    raise ValueError(f'size={size} is given; allowed is >= 1')
  limit = _DRAWS * size + 100
  dataset = scoring.make_dataset(name, size=limit, seed=seed, **config)
  records, seen = [], set()
  for index in range(limit):
    try:
      item = dataset[index]
    except Exception as error:  # a generator may fail in its own way
      raise ValueError(
        f'task {name!r} failed to make problem {index} '
        f'({type(error).__name__}: {one_line(error)}): change its options'
      ) from error
    text = normalize(item['question'])
    if split_of(text) != split or text in seen:
      continue
    seen.add(text)
    records.append(
      {
        'task': name,
        'index': index,
        'question': item['question'],
        'answer': item['answer'],
        'metadata': item.get('metadata', {}),
        'options': config,
      }
    )
    if len(records) == size:
      return Source(name, split, tuple(records), dataset)
  raise ValueError(
    f'task {name!r} gave {len(records)} different {split} problems in {limit} '
    f'draws and size={size} is asked for: lower size or widen its options'
  )


def task_names() -> list[str]:
  """Returns the names of all tasks, in order.

  Raises:
    ValueError: reasoning-gym is missing.
  """
  return sorted(scoring.registry())


def normalize(question: str) -> str:
  """Returns a question without differences of case and white space."""
  return ' '.join(question.split()).casefold()


def split_of(question: str) -> str:
  """Returns the split that owns a question."""
  return split_of_key(normalize(question), _SPLIT_PERCENT)


@dataclasses.dataclass(frozen=True)
class Source(Sequence):
  """Different problems of one task and split, and their verifier.

  A record is {'task', 'index' of the draw, 'question', 'answer' (a str, or None
  where the task has none), 'metadata', 'options' of the task}: all that the
  verifier 'reasoning_gym' of meta_rl/verifiers needs.

  Attributes:
    name: of the task.
    split: of the problems.
    records: the problems.
    dataset: reasoning-gym's own.
    failures: how often the verifier raised, by the name of the exception; it
      scored 0 then. A verifier that always fails looks like a policy that never
      learns: watch it.
  """

  name: str
  split: str
  records: tuple[Record, ...]
  dataset: Any
  failures: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]

  def score(self, answer: str, record: Record) -> float:
    """Returns 1.0 if an answer is right, 0.0 otherwise; it never raises.

    Args:
      answer: any text, whoever wrote it; only the answer, without what was
        thought before it.
      record: of this source.
    """
    try:
      return scoring.score(self.name, self.dataset, answer, record)
    except Exception as error:  # verifiers raise all sorts of things
      self.failures[type(error).__name__] += 1
      return 0.0
