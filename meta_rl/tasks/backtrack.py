"""Backtracking search: an episode goes back to a step of the attempt before.

    7 5 + 12 3 + 15 no ; back 1 3 - 9 yes ; </think> 7 5 + 3 - <eos>

An annotated attempt (`expressions.Expressions`) over n numbers is n - 1 steps:
a step is the numbers that are read, an operator, and its value, so that step i
ends with the i-th value. `7 5 + 12 | 3 - 9` has the steps `7 5 + 12` and
`3 - 9`; `7 5 3 - 2 + 9` has `7 5 3 - 2` and `+ 9`.

The first episode is a whole attempt. Each later one begins with the backtrack
word and an integer N in 0 … n - 2: it keeps the first N steps of the attempt
before, whose values it need not compute again, and writes the others anew. The
attempt that comes of it is canonical too, and another than the one before;
earlier ones may come back. N = 0 keeps nothing.

Source: backtracking search of MRT (arXiv 2503.07572, section 6): an attempt,
'backtrack to step N', an attempt that goes on from there, and so on. There the
attempts are solutions in prose; here they are expressions, and N counts the
steps that are kept.

Axes: M canonical attempts, N steps kept, n given numbers.
"""

import dataclasses
import functools

import numpy as np

from meta_rl import tokenizer
from meta_rl.tasks import expressions

_OPERATORS = tuple(tokenizer.OPERATORS.values())


def longest_episode(n: int) -> int:
  """Returns the tokens of the longest episode over n numbers.

  The backtrack word, 0, a whole attempt of 3n - 2, verdict and delimiter.
  """
  return 2 + (3 * n - 2) + 2


def shortest_episode() -> int:
  """Returns the tokens of the shortest: the last step anew, without numbers.

  The backtrack word, N, an operator and its value, verdict and delimiter.
  """
  return 2 + 2 + 2


def step_ends(annotated: np.ndarray) -> np.ndarray:
  """Returns how many tokens of each attempt its first 0 … n-1 steps are.

    In:  7 5 + 12 3 - 9     Out: 0 4 7
         7 5 3 - 2 + 9           0 5 7

  Args:
    annotated: [M,3n-2], annotated postfix.

  Returns:
    i64[M,n].
  """
  rows, place = np.nonzero(np.isin(annotated, _OPERATORS))
  ends = place.reshape(len(annotated), -1) + 2
  assert np.array_equal(rows, np.repeat(np.arange(len(ends)), ends.shape[1]))
  return np.pad(ends, ((0, 0), (1, 0)))


@dataclasses.dataclass(frozen=True)
class _Neighbours:
  """Which attempts share steps, of one multiset; M attempts, N < n - 1.

  Attempts that share N steps are one run of order[N].

  Attributes:
    ends: i64[M,n], of `step_ends`.
    order: i32[n-1,M], attempts.
    place: i32[n-1,M], where each attempt is in order[N].
    first, size: i32[n-1,M], where its run starts, and how long it is.
    legal: i32[M,n-1], in front the N that another attempt shares.
    choices: i32[M], how many these are.
  """

  ends: np.ndarray
  order: np.ndarray
  place: np.ndarray
  first: np.ndarray
  size: np.ndarray
  legal: np.ndarray
  choices: np.ndarray


@functools.lru_cache(maxsize=1 << 12)
def _neighbours(numbers, ops, max_value) -> _Neighbours:
  """Returns the neighbours of all attempts, cached per multiset."""
  table = expressions.expression_table(numbers, ops, max_value)
  ends = step_ends(table.annotated)
  columns = np.arange(table.annotated.shape[1])
  found = []
  for kept in range(ends.shape[1] - 1):
    prefix = np.where(columns < ends[:, kept, None], table.annotated, 0)
    _, group, sizes = np.unique(
      prefix, axis=0, return_inverse=True, return_counts=True
    )
    group = group.reshape(-1)
    order = np.argsort(group, kind='stable')
    place = np.argsort(order)
    starts = np.cumsum(sizes) - sizes
    found.append((order, place, starts[group], sizes[group]))
  runs = [np.stack(part).astype(np.int32) for part in zip(*found, strict=True)]
  alone = runs[-1].T == 1
  legal = np.argsort(alone, axis=1, kind='stable').astype(np.int32)
  return _Neighbours(ends, *runs, legal, (~alone).sum(1))


def chain(
  numbers: tuple[int, ...],
  ops: str,
  max_value: int,
  rng: np.random.Generator,
  length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (attempts i64[E], kept i64[E]) of a random backtracking search.

  The first attempt is uniform. Then N is uniform over the numbers of steps that
  some other attempt shares with the last one, and the next attempt uniform over
  those others; it may share more than N steps by chance.

  Args:
    numbers: the multiset, ascending.
    ops, max_value: of the problem.
    rng: consumed.
    length: E; 1 is all there is where a problem has a single attempt.

  Returns:
    Rows of the expression table, and the steps kept at each, 0 at the first.
  """
  if length == 0:
    return np.zeros(0, int), np.zeros(0, int)
  near = _neighbours(numbers, ops, max_value)
  last = int(rng.integers(len(near.choices)))
  attempts, kept = [last], [0]
  # Numbers drawn at once and `item` instead of indexing: ten times as fast, and
  # a batch holds thousands of episodes.
  for which, whither in rng.random((length - 1, 2)).tolist():
    choices = near.choices.item(last)
    if not choices:
      break
    steps = near.legal.item(last, int(which * choices))
    # One of the run's others: those behind the last attempt move up by one.
    other = int(whither * (near.size.item(steps, last) - 1))
    other += near.first.item(steps, last)
    other += other >= near.place.item(steps, last)
    last = near.order.item(steps, other)
    attempts.append(last)
    kept.append(steps)
  return np.asarray(attempts, int), np.asarray(kept, int)


def episode_tokens(
  numbers: tuple[int, ...],
  ops: str,
  max_value: int,
  attempts: np.ndarray,
  kept: np.ndarray,
  right: np.ndarray,
) -> list[int]:
  """Returns the thinking tokens of a chain.

  Args:
    numbers, ops, max_value: of the problem.
    attempts, kept: of `chain`.
    right: bool[E], whether each attempt reaches the target.
  """
  table = expressions.expression_table(numbers, ops, max_value)
  ends = _neighbours(numbers, ops, max_value).ends
  tokens = []
  for episode, (row, steps, hit) in enumerate(zip(attempts, kept, right)):
    if episode:
      tokens += [tokenizer.BACKTRACK, tokenizer.integer(steps)]
    tokens += table.annotated[row, ends[row, steps] :].tolist()
    tokens += [
      tokenizer.YES if hit else tokenizer.NO,
      tokenizer.DELIMITER,
    ]
  return tokens
