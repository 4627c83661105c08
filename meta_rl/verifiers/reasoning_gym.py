"""The verifiers of reasoning-gym, made safe for text that a model wrote.

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

The problems are made in meta_rl/tasks/reasoning_gym.py.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from meta_rl.verifiers import Record, VerifierError

MAX_CHARS = 8192  # the longest answer of the tasks themselves has 4063

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


# Of the tasks that were graded here, by their names and options.
_DATASETS: dict[tuple[str, str], Any] = {}


def check_installed():
  """Raises VerifierError if reasoning-gym is missing."""
  registry()


def grade(answer: str, record: Record) -> float:
  """Returns 1.0 if an answer is right, 0.0 otherwise.

  Args:
    answer: what comes after the thought, and nothing else.
    record: of a `tasks.reasoning_gym.Source`.

  Raises:
    Exception: what the verifier raises.
  """
  key = record['task'], repr(record.get('options', {}))
  if key not in _DATASETS:
    options = record.get('options', {})
    _DATASETS[key] = make_dataset(key[0], **{'size': 1, 'seed': 0, **options})
  return score(key[0], _DATASETS[key], answer, record)


def vote(answer: str) -> str | None:
  """Returns an answer, which is all of the text, its white space made alike.

  Args:
    answer: what comes after the thought.
  """
  return ' '.join(answer.split()) or None


def score(name: str, dataset: Any, answer: str, record: Record) -> float:
  """Returns 1.0 if an answer is right by a task's own verifier, else 0.0.

  Args:
    name: of the task.
    dataset: reasoning-gym's own.
    answer: any text, whoever wrote it.
    record: the problem.

  Raises:
    Exception: what the verifier raises.
  """
  if not isinstance(answer, str) or len(answer) > MAX_CHARS:
    return 0.0
  if name == 'composite':  # its verifier hands on to that of the part
    name = record['metadata'].get('source_dataset')
  if name in _EXACT:
    return float(answer.strip() in _accepted(record))
  if name in _ARITHMETIC and not is_arithmetic(answer):
    return 0.0
  if name in _ALGEBRA and not is_algebra(answer):
    return 0.0
  if name == 'complex_arithmetic' and 'nan' in answer.casefold():
    return 0.0
  if name == 'puzzle24' and not _uses_given_numbers(answer, record):
    return 0.0
  return float(dataset.score_answer(answer, dict(record)) == 1.0)


def registry() -> Mapping[str, Any]:
  """Returns reasoning-gym's own table of tasks.

  Raises:
    VerifierError: it is missing.
  """
  try:
    import reasoning_gym  # noqa: F401 (it registers the tasks)
    from reasoning_gym import factory
  except ImportError as error:
    raise VerifierError(
      f'reasoning-gym cannot be imported ({error}): run pip install '
      "'meta-rl[tasks]'"
    ) from error
  return factory.DATASETS


def make_dataset(name: str, **config) -> Any:
  """Returns reasoning-gym's data set of a task.

  Args:
    name: of the task.
    **config: its options.

  Raises:
    ValueError: no such task (the nearest names are given) or option.
  """
  tasks = registry()
  if name not in tasks:
    near = difflib.get_close_matches(str(name), tasks, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}?' if near else 'see task_names()'
    raise ValueError(f'no reasoning-gym task {name!r}: {hint}')
  from reasoning_gym import factory

  try:
    return factory.create_dataset(name, **config)
  except Exception as error:  # TypeError, AssertionError, ...
    from meta_rl.files import one_line  # not for workers: it costs 0.1 s

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


def is_arithmetic(text: str) -> bool:
  """Whether a text is of numbers, + - * / and brackets: no power, no names."""
  plain = re.fullmatch(r'[\d\s+\-*/()]{1,500}', text, re.ASCII)
  return bool(plain) and '**' not in text and '//' not in text


def is_algebra(text: str) -> bool:
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
