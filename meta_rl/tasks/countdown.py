"""Countdown: reach a target using every given number exactly once.

Answers are plain postfix token strings in the canonical grammar of
`expressions`; because it can be enumerated, every problem carries all of its
accepted answers, which is what the exact prover needs.

Axes: N problems, n given numbers, S accepted answers, A = 2n answer tokens
(2n - 1 of postfix and EOS), Tp = n + 4 prompt tokens.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from meta_rl import checks, tokenizer
from meta_rl.tasks import expressions
from meta_rl.tasks.base import SPLITS, split_of_key
from meta_rl.tasks.expressions import (
  Tokens,
  enumerate_expressions,
  expression_table,
  verify_tokens,
)

__all__ = [
  'SPLITS',
  'Problem',
  'answers_for',
  'cluster_key',
  'difficulty',
  'enumerate_expressions',
  'expression_table',
  'hit_rate',
  'make_problem',
  'parse_prompt',
  'problem_arrays',
  'problem_set',
  'prompt_orders',
  'prompt_tokens',
  'record_arrays',
  'split_of',
  'verify_tokens',
]

# Shares of the problems, in percent, by the hash of (numbers, target).
_SPLIT_PERCENT = {'train': 50, 'validation': 8, 'test': 42}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One Countdown problem.

  Attributes:
    numbers: the given numbers, in the order in which the prompt shows them.
    target: the value to reach.
    answers: every accepted answer, plain postfix tokens without EOS, distinct.
    ops: the allowed operators, a subset of '+-*/'.
    max_value: the largest value allowed anywhere in an expression.
  """

  numbers: Tokens
  target: int
  answers: tuple[Tokens, ...]
  ops: str = '+-*/'
  max_value: int = tokenizer.MAX_INTEGER


def answers_for(
  numbers: Sequence[int],
  target: int,
  ops: str,
  max_value: int = tokenizer.MAX_INTEGER,
) -> tuple[Tokens, ...]:
  """Returns every accepted answer, plain postfix tokens without EOS."""
  table = expression_table(numbers, ops, max_value)
  return tuple(map(tuple, table.plain[table.values == target].tolist()))


def make_problem(
  numbers: Sequence[int],
  target: int,
  ops: str,
  max_value: int = tokenizer.MAX_INTEGER,
) -> Problem:
  """Returns the problem with its accepted answers enumerated."""
  shown = tuple(int(number) for number in numbers)
  answers = answers_for(shown, target, ops, max_value)
  return Problem(shown, int(target), answers, ops, max_value)


def hit_rate(problem: Problem) -> float:
  """Returns q, the chance that a uniformly drawn canonical attempt is right."""
  table = expression_table(problem.numbers, problem.ops, problem.max_value)
  return len(problem.answers) / max(len(table.values), 1)


def difficulty(problem: Problem) -> tuple[str, float]:
  """Returns a label and `hit_rate`, as `TaskKit.difficulty`."""
  return 'chance that a random attempt is right', hit_rate(problem)


def split_of(numbers: Sequence[int], target: int) -> str:
  """Returns the split that owns every prompt of (multiset, target).

  The bucket is blake2s(sorted numbers, target) mod 100. Neither the operators
  nor the order of the numbers enter, so that a problem held out of one config
  is held out of every other.
  """
  shown = ' '.join(str(int(number)) for number in sorted(numbers))
  return split_of_key(f'{shown}|{int(target)}', _SPLIT_PERCENT)


def problem_set(
  split: str | None = None,
  *,
  n: int = 3,
  low: int = 1,
  high: int = 10,
  ops: str = '+-',
  max_answers: int = 8,
  min_target: int = 1,
  max_target: int = tokenizer.MAX_INTEGER,
  max_value: int = tokenizer.MAX_INTEGER,
  max_multisets: int = 5000,
  seed: int = 0,
) -> list[Problem]:
  """Returns the distinct problems of a split, numbers in ascending order.

  A problem is a (sorted multiset, target) with 1..max_answers accepted answers.
  All multisets are enumerated; where there are more than `max_multisets`, as
  many are drawn at random without repeats instead.

  Args:
    split: 'train', 'validation' or 'test'; None gives all problems.
    n: how many numbers are given, 2..5.
    low, high: range of the given numbers, inclusive.
    ops: allowed operators out of '+-*/'.
    max_answers: problems with more accepted answers are left out.
    min_target, max_target: range of the target, inclusive.
    max_value: largest value allowed anywhere in an expression.
    max_multisets: at most as many multisets of numbers are looked at.
    seed: of the draw of multisets.
  """
  if split is not None and split not in SPLITS:
    raise ValueError(f'split {split!r} must be one of {SPLITS} or None')
  check_options(
    n=n,
    low=low,
    high=high,
    ops=ops,
    max_answers=max_answers,
    min_target=min_target,
    max_target=max_target,
    max_value=max_value,
    max_multisets=max_multisets,
  )
  problems = []
  for numbers in _multisets(n, low, high, max_multisets, seed):
    values = expression_table(numbers, ops, max_value).values
    targets, counts = np.unique(values, return_counts=True)
    for target in targets[counts <= max_answers].tolist():
      inside = min_target <= target <= max_target
      if inside and split in (None, split_of(numbers, target)):
        problems.append(make_problem(numbers, target, ops, max_value))
  return problems


def check_options(
  *,
  n: int,
  low: int,
  high: int,
  ops: str,
  max_answers: int,
  min_target: int,
  max_target: int,
  max_value: int,
  max_multisets: int,
  orders: int = 1,
):
  """Raises ValueError, naming the option, for what no problem is made of."""
  most = tokenizer.MAX_INTEGER
  checks.check_range('n', n, low=2, high=5)
  checks.check_range('max_value', max_value, low=1, high=most)
  checks.check_range('low', low, low=0, high=max_value)
  checks.check_range('high', high, low=low, high=max_value)
  expressions.check_ops(ops)
  checks.check_range('max_target', max_target, low=min_target)
  for name, value in (
    ('max_answers', max_answers),
    ('max_multisets', max_multisets),
    ('orders', orders),
  ):
    checks.check_range(name, value, low=1)


def _multisets(n, low, high, limit, seed) -> Iterable[Tokens]:
  values = range(low, high + 1)
  if math.comb(len(values) + n - 1, n) <= limit:
    return itertools.combinations_with_replacement(values, n)
  rng = np.random.default_rng(seed)
  drawn = set()
  while len(drawn) < limit:
    drawn.add(tuple(sorted(rng.integers(low, high + 1, n).tolist())))
  return sorted(drawn)


def prompt_orders(
  problems: Sequence[Problem], *, orders: int = 1, seed: int = 0
) -> list[Problem]:
  """Returns each problem with its numbers in `orders` random orders.

  Orders of one problem are distinct, so a problem with repeated numbers may
  give fewer. The first order of every problem comes first, in random sequence,
  then the second of every problem, and so on: any slice from the front is a
  fair sample with as many distinct problems as it can hold.

  Args:
    problems: distinct problems, e.g. of `problem_set`.
    orders: at most as many orders a problem, at least 1.
    seed: of the sequence and of the orders shown.
  """
  if orders < 1:
    raise ValueError(f'orders {orders} must be at least 1')
  rounds = [[] for _ in range(orders)]
  sequence = np.random.default_rng(seed).permutation(len(problems))
  for problem in (problems[index] for index in sequence):
    numbers = sorted(problem.numbers)
    rng = np.random.default_rng([seed, problem.target, *numbers])
    shown = sorted(set(itertools.permutations(numbers)))
    for place, index in enumerate(rng.permutation(len(shown))[:orders]):
      rounds[place].append(dataclasses.replace(problem, numbers=shown[index]))
  return [problem for chosen in rounds for problem in chosen]


def prompt_tokens(numbers: Sequence[int], target: int) -> list[int]:
  """Returns the prompt `<bos> n1 ... nn = target <think>`, n + 4 ids."""
  shown = [tokenizer.integer(number) for number in numbers]
  tail = [tokenizer.EQUALS, tokenizer.integer(target), tokenizer.THINK]
  return [tokenizer.BOS, *shown, *tail]


def parse_prompt(tokens: Sequence[int]) -> tuple[Tokens, int]:
  """Returns (numbers, target) of a prompt; `prompt_tokens` inverts it.

  Raises:
    ValueError: the tokens are no prompt of Countdown.
  """
  ids = [int(token) for token in tokens]
  values = [
    token - tokenizer.FIRST_INTEGER for token in (*ids[1:-3], *ids[-2:-1])
  ]
  inside = all(0 <= value <= tokenizer.MAX_INTEGER for value in values)
  numbers, target = tuple(values[:-1]), values[-1] if values else 0
  if not numbers or not inside or prompt_tokens(numbers, target) != ids:
    raise ValueError(
      f'the prompt {tokenizer.decode(ids)[:80]!r} is none of Countdown: give '
      '"<bos> n1 ... nn = target <think>"'
    )
  return numbers, target


def problem_arrays(
  problems: Sequence[Problem],
  *,
  max_answers: int | None = None,
  num_numbers: int | None = None,
) -> dict[str, np.ndarray]:
  """Returns the arrays of `problems` that the jitted step takes.

  Args:
    problems: at least one, each with its answers.
    max_answers: S; None takes the largest number of answers present. Fix it to
      keep one shape over many batches.
    num_numbers: n; None takes the largest n present.

  Returns:
    prompts i32[N,Tp], left-padded; prompt_mask bool[N,Tp], False on padding;
    numbers i32[N,n], padded with -1; target i32[N]; answers i32[N,S,A], each
    ending in EOS, then padding; answer_mask bool[N,S,A], True on an answer and
    its EOS, all False in a row without an answer.

  Raises:
    ValueError: no problem, or a problem that does not fit the fixed shape.
  """
  if not problems:
    raise ValueError('no problems given: at least one is needed')
  n = num_numbers or max(len(problem.numbers) for problem in problems)
  size = max_answers or max(1, *(len(p.answers) for p in problems))
  count, width = len(problems), 2 * n
  prompts = np.full((count, n + 4), tokenizer.PAD, np.int32)
  numbers = np.full((count, n), -1, np.int32)
  answers = np.full((count, size, width), tokenizer.PAD, np.int32)
  answer_mask = np.zeros((count, size, width), bool)
  for row, problem in enumerate(problems):
    given = len(problem.numbers)
    if given > n or len(problem.answers) > size:
      raise ValueError(
        f'problem {row} has {given} numbers and {len(problem.answers)} '
        f'answers: the arrays hold {n} and {size}; raise num_numbers or '
        'max_answers'
      )
    prompts[row, n - given :] = prompt_tokens(problem.numbers, problem.target)
    numbers[row, :given] = problem.numbers
    for slot, answer in enumerate(problem.answers):
      answers[row, slot, : len(answer) + 1] = [*answer, tokenizer.EOS]
      answer_mask[row, slot, : len(answer) + 1] = True
  return {
    'prompts': prompts,
    'prompt_mask': prompts != tokenizer.PAD,
    'numbers': numbers,
    'target': np.asarray([p.target for p in problems], np.int32),
    'answers': answers,
    'answer_mask': answer_mask,
  }


def record_arrays(record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays of one record, `problem_arrays` without N."""
  numbers = np.asarray(record['numbers'], np.int32)
  shown = np.asarray(record['answers'], np.int32)
  width = shown.shape[-1] + 1
  mask = np.arange(len(shown)) < int(record['num_answers'])
  eos = np.full((len(shown), 1), tokenizer.EOS, np.int32)
  prompt = prompt_tokens(numbers.tolist(), int(record['target']))
  return {
    'prompts': np.asarray(prompt, np.int32),
    'prompt_mask': np.ones(len(prompt), bool),
    'numbers': numbers,
    'target': np.asarray(record['target'], np.int32),
    'answers': np.where(mask[:, None], np.hstack([shown, eos]), tokenizer.PAD),
    'answer_mask': np.broadcast_to(mask[:, None], (len(shown), width)),
  }


def cluster_key(record: Mapping[str, np.ndarray]) -> str:
  """Returns one string for all prompts of the same numbers and target."""
  numbers = sorted(np.asarray(record['numbers']).tolist())
  return f'{numbers} = {int(record["target"])}'
