r"""Grades of forced answers: what is boxed, whether it is right, what it votes.

Two answers are the same if their texts or numbers are (70 and 070, 0.5 and
\frac{1}{2}); where that does not decide, math-verify does, in worker processes,
if it is installed.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from meta_rl.protocol.rows import Answer, Point, Row
from meta_rl.verifiers import extract, integers, pool
from meta_rl.verifiers import math as latex

VERIFIERS = ('math', 'exact')
_NUMBER = re.compile(r'[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})', re.ASCII)
_FRACTION = re.compile(
  rf'([+-]?)\\[dt]?frac\{{({_NUMBER.pattern})\}}\{{({_NUMBER.pattern})\}}'
)
_SHORT = re.compile(r'\\([dt]?frac)(\d)(\d)(?!\d)', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Graded:
  """The answers at one point, graded.

  Attributes:
    tokens: before the answer.
    waits: as in `Point`.
    right: bool[n].
    votes: what each votes for: 'right', another text, or None.
    answer_tokens: i64[n].
    log_probs: f64[n], mean nats a token, NaN without.
  """

  tokens: int
  waits: int
  right: np.ndarray
  votes: tuple[Any, ...]
  answer_tokens: np.ndarray
  log_probs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trace:
  """A graded row.

  Attributes:
    problem: its id.
    points: as in `Row`.
  """

  problem: str
  points: tuple[Graded, ...]


def grade_rows(
  rows: Sequence[Row],
  *,
  faults: Collection[str] = (),
  verifier: str | None = None,
  timeout_s: float = 5.0,
) -> tuple[list[Trace], int]:
  """Returns the rows graded, and how many answers could not be.

  Those count as wrong: the verifier ran out of time or memory over them, which
  may differ from machine to machine.

  Args:
    rows: of `read_rows`.
    faults: 'thought_boxes' and 'brace_pattern' count (`protocol.FAULTS`).
    verifier: 'math': equal as mathematics, by math-verify; 'exact': the same
      text or number; None: 'math' where math-verify is installed.
    timeout_s: for one answer.

  Raises:
    ValueError: another verifier, or a text that a fault needs is missing.
    VerifierError: 'math' without math-verify.
  """
  verifier = verifier or default_verifier()
  if verifier not in VERIFIERS:
    raise ValueError(f'verifier={verifier!r}: one of {VERIFIERS} is allowed.')
  boxes = [
    [
      [_box(row, point, a, faults) for a in point.answers]
      for point in row.points
    ]
    for row in rows
  ]
  pairs = {
    (row.gold, box): None
    for row, own in zip(rows, boxes)
    for point, found in zip(row.points, own)
    for answer, box in zip(point.answers, found)
    if box is not None and answer.correct is None
  }
  equal, failed = _compare(list(pairs), verifier, timeout_s)
  traces = []
  for row, own in zip(rows, boxes):
    points = []
    for point, found in zip(row.points, own):
      right = [
        equal.get((row.gold, box), False) if a.correct is None else a.correct
        for a, box in zip(point.answers, found)
      ]
      points.append(
        Graded(
          point.tokens,
          point.waits,
          np.asarray(right),
          tuple('right' if r else _vote(b) for r, b in zip(right, found)),
          np.asarray([a.tokens for a in point.answers]),
          np.asarray([a.log_prob for a in point.answers]),
        )
      )
    traces.append(Trace(row.problem, tuple(points)))
  return traces, failed


def default_verifier() -> str:
  """Returns 'math' where math-verify is installed, else 'exact'."""
  return 'math' if importlib.util.find_spec('math_verify') else 'exact'


def _box(row: Row, point: Point, answer: Answer, faults) -> str | None:
  """Returns what the box of an answer holds, None without one."""
  redone = {'thought_boxes', 'brace_pattern'} & set(faults)
  if redone and (answer.text is None or answer.correct is not None):
    raise ValueError(
      f'line {row.line}: compat={sorted(redone)[0]!r} grades the texts again, '
      'and there is an "answer" or a "correct" in place of one.'
    )
  if answer.text is None:
    return answer.answer
  text = extract.after(answer.text, point.stop)
  if 'thought_boxes' in faults:
    if point.text is None:
      raise ValueError(
        f"line {row.line}: compat='thought_boxes' grades what stands before "
        'the answers too: give each point its "text".'
      )
    text = point.text + answer.text
  if text is None:
    return None
  if 'brace_pattern' in faults:
    return last_match(text)
  return extract.extract_boxed(text)


def last_match(text: str) -> str | None:
  r"""Returns the box that the official pattern finds, with its faults.

  It looks for 'boxed{', no backslash needed, and ends at the first brace that
  closes, groups apart; a group ends at its first closing brace, so that braces
  inside a group cut the box short: of `\boxed{\frac{1}{\sqrt{2}}}` it gives
  `\frac{1}{\sqrt{2}`. A box that is not closed is passed over for the last one
  that is.
  """
  found, at = None, 0
  while (start := text.find('boxed{', at)) >= 0:
    start = end = start + len('boxed{')
    while 0 <= end < len(text) and text[end] != '}':
      # -1, no closing brace behind: the box is open.
      end = text.find('}', end) + 1 or -1 if text[end] == '{' else end + 1
    closed = 0 <= end < len(text)
    found = text[start:end] if closed else found
    at = end + 1 if closed else start
  return found


def _vote(box: str | None) -> str | None:
  """Returns the normal form of a wrong answer, None for an empty box."""
  if box is None or not box.strip():
    return None
  # Without matching braces, of `last_match` alone, there is no normal form.
  return latex.vote(rf'\boxed{{{box}}}') or box


def _compare(pairs, verifier, timeout_s) -> tuple[dict, int]:
  """Returns whether each (gold, box) is equal, and how many have no grade."""
  equal = {pair: _is_same(*pair) for pair in pairs}
  left = [pair for pair, same in equal.items() if same is None]
  if verifier == 'exact':
    return {pair: bool(same) for pair, same in equal.items()}, 0
  if not left:
    return equal, 0
  with pool.Pool('math', timeout_s=timeout_s) as verifiers:
    grades = verifiers.grade(
      [rf'\boxed{{{box}}}' for _, box in left],
      [{'answer': gold} for gold, _ in left],
    )
  equal.update(zip(left, (score == 1.0 for score in grades.scores())))
  return equal, sum(status != 'ok' for status in grades.statuses)


def _is_same(gold: str, box: str) -> bool | None:
  """Returns whether two texts are the same text or number, None: who knows."""
  plain = [' '.join(text.replace('$', ' ').split()) for text in (gold, box)]
  if plain[0] == plain[1]:
    return True
  if not plain[1]:
    return False
  whole = [integers.normalize(text) for text in plain]
  if None not in whole:
    return whole[0] == whole[1]
  value = [_number(text) for text in plain]
  return value[0] == value[1] if None not in value else None


def _number(text: str) -> Fraction | None:
  r"""Returns the value of 7, 0.5, 1/2, \frac12 or \frac{1}{2}, else None."""
  whole = integers.normalize(text)
  if whole is not None and len(whole) <= 40:
    return Fraction(whole)
  text = _SHORT.sub(r'\\\1{\2}{\3}', text.replace(' ', ''))
  sign, top, bottom = '', *(text.split('/', 1) + ['1'])[:2]
  if match := _FRACTION.fullmatch(text):
    sign, top, bottom = match.groups()
  if not _NUMBER.fullmatch(top) or not _NUMBER.fullmatch(bottom):
    return None
  below = Fraction(bottom)
  return Fraction(top) / below * (-1 if sign == '-' else 1) if below else None
