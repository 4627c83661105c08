"""Any single-turn task of reasoning-gym by its name: problems and a verifier.

    source = make_source('gcd', size=1000, split='train')
    record = source[0]          # {'question', 'answer', 'metadata', ...}
    source.score('6', record)   # 1.0 or 0.0

reasoning-gym (Apache-2.0) generates problems without end and brings a verifier
for each of its hundred tasks: `pip install 'meta-rl[tasks]'`. This module gives
text problems and their verification, and no training: the loop of `train` runs
token tasks.

What a user of these tasks runs into, and what is done about it:

  partial scores  A verifier may give 0.01 or 0.05 to a wrong answer: what is
                  below 1 is 0 here.
  code            Some verifiers evaluate the answer as Python, others hand it
                  to sympy, which does: a model's text would be run. Here it
                  never is: such answers are compared, or must be plain
                  expressions before sympy sees them.
  open doors      puzzle24's verifier takes any four numbers (6*4*1*1 solves
                  all problems), complex_arithmetic's takes nan, and that of
                  game_of_life_halting any text. Policies find such doors; here
                  these are shut.
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
writes the answers, call `score` in a process that can be killed.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from meta_rl.files import one_line
from meta_rl.tasks.base import SPLITS, split_of_key

MAX_CHARS = 8192  # the longest answer of the tasks themselves has 4063

# Shares of the problems, in percent, by the hash of the question.
_SPLIT_PERCENT = {'train': 60, 'validation': 20, 'test': 20}

# Draws for each problem that is asked for, before a task counts as used up.
_DRAWS = 25

# Verifiers that run eval() on an answer which is not the right one already, and
# one that takes any answer at all.
_EXACT = (
  'binary_matrix',
  'game_of_life_halting',
  'n_queens',
  'spiral_matrix',
  'string_insertion',
)
# Verifiers that give the answer to sympy.
_ARITHMETIC = ('countdown', 'puzzle24')
_ALGEBRA = (
  'intermediate_integration',
  'polynomial_multiplication',
  'simple_integration',
)
_FUNCTIONS = frozenset(
  'Abs acos asin atan cos cosh cot csc exp log ln pi sec sin sinh sqrt tan '
  'tanh'.split()
)

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
  dataset = _dataset(name, size=limit, seed=seed, **config)
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
  return sorted(_registry())


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
  where the task has none), 'metadata'}.

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
    if not isinstance(answer, str) or len(answer) > MAX_CHARS:
      return 0.0
    name = self.name
    if name == 'composite':  # its verifier hands on to that of the part
      name = record['metadata'].get('source_dataset')
    if name in _EXACT:
      return float(answer.strip() in _accepted(record))
    if name in _ARITHMETIC and not _is_arithmetic(answer):
      return 0.0
    if name in _ALGEBRA and not _is_algebra(answer):
      return 0.0
    if name == 'complex_arithmetic' and 'nan' in answer.casefold():
      return 0.0
    if name == 'puzzle24' and not _uses_given_numbers(answer, record):
      return 0.0
    try:
      return float(self.dataset.score_answer(answer, dict(record)) == 1.0)
    except Exception as error:  # verifiers raise all sorts of things
      self.failures[type(error).__name__] += 1
      return 0.0


def _registry() -> Mapping[str, Any]:
  try:
    import reasoning_gym  # noqa: F401 (it registers the tasks)
    from reasoning_gym import factory
  except ImportError as error:
    raise ValueError(
      f'reasoning-gym cannot be imported ({error}): run pip install '
      "'meta-rl[tasks]'"
    ) from error
  return factory.DATASETS


def _dataset(name: str, **config):
  registry = _registry()
  if name not in registry:
    near = difflib.get_close_matches(str(name), registry, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}?' if near else 'see task_names()'
    raise ValueError(f'no reasoning-gym task {name!r}: {hint}')
  from reasoning_gym import factory

  try:
    return factory.create_dataset(name, **config)
  except Exception as error:  # TypeError, AssertionError, ...
    options = {k: v for k, v in config.items() if k not in ('size', 'seed')}
    raise ValueError(
      f'task {name!r} cannot be made with options {options} '
      f'({type(error).__name__}: {one_line(error)})'
    ) from error


def _accepted(record: Record) -> set[str]:
  """Returns the texts that are right, without white space around them."""
  others = record['metadata'].get('valid_answers') or ()
  texts = (record['answer'], *others)
  return {text.strip() for text in texts if isinstance(text, str)}


def _is_arithmetic(text: str) -> bool:
  """Whether a text is of numbers, + - * / and brackets: no power, no names."""
  plain = re.fullmatch(r'[\d\s+\-*/()]{1,500}', text, re.ASCII)
  return bool(plain) and '**' not in text and '//' not in text


def _is_algebra(text: str) -> bool:
  """Whether a text is an expression of variables, functions and powers.

  No attribute, string, keyword or other name, so that there is nothing to run,
  and no power of a bare number or with an exponent of three digits, so that
  there is no number too large to hold.
  """
  if not re.fullmatch(r'[\w\s+\-*/^().]{1,500}', text, re.ASCII):
    return False
  names = re.findall(r'[A-Za-z_]\w*', text, re.ASCII)
  if any(len(name) > 1 and name not in _FUNCTIONS for name in names):
    return False
  huge = r'\.\s*[A-Za-z_]|\d\s*\*\*|\*\*[\s(\-]*\d{3}|(\)\s*\*\*.*){3}|\d{40}'
  number_group = r'\([\d\s+\-*/().]*\)\s*\*\*'
  return not re.search(f'{huge}|{number_group}', text, re.ASCII | re.DOTALL)


def _uses_given_numbers(text: str, record: Record) -> bool:
  used = sorted(int(number) for number in re.findall(r'\d+', text))
  return used == sorted(record['metadata']['numbers'])
