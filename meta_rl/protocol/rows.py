r"""Forced answers along traces, as JSONL: read, checked and graded.

One JSON object a line is one trace of a problem:

    {"problem": "aime25-1", "trace": 0, "gold": "70", "points": [
      {"tokens": 214, "answers": [
        {"text": "... \\boxed{70}", "tokens": 312, "log_prob": -0.41}, ...]},
      {"tokens": 2655, "answers": [...]},
      {"tokens": 18902, "waits": 2, "stop": "</think>", "answers": [...]}]}

problem: a text or number; rows with the same are traces of one problem.
trace (optional): which of them, a text or number, once a problem.
gold: the right answer, LaTeX without a box, or a number.
points: where the trace was made to answer, in order. Point j is the prefix of
  j episodes, the first one the empty prefix and the last one the whole trace;
  those of budget forcing follow, with how many `waits` had been appended.
  tokens: of all that stands before the answer. The official protocol counts the
    problem and the stop string with the thought.
  text (optional): the same as text; needed to reproduce the fault
    'thought_boxes' alone.
  stop (optional): what an answer must still write before anything counts, such
    as '</think>' where it begins within the thought.
  answers: one or more. The box is looked for in `text`, or in what `ids` decode
    to, behind `stop`; or `answer` gives what it would hold, null without one.
    tokens: of the answer; without it `ids` are counted, or the tokens of `text`
      by the tokenizer.
    log_prob (optional): mean over its tokens, nats; or `log_probs`, one a token
      (null: not drawn).
    correct (optional): true or false, for grades made elsewhere.

Other keys are left alone.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meta_rl.files import one_line, read_jsonl


@dataclasses.dataclass(frozen=True)
class Answer:
  """One forced answer of a file.

  Attributes:
    text: what was written, None where the file gives `answer`.
    answer: what its box holds, where the file says so; None: no box.
    correct: the file's own grade, None without one.
    tokens: of it.
    log_prob: mean, nats a token; NaN without.
  """

  text: str | None
  answer: str | None
  correct: bool | None
  tokens: int
  log_prob: float


@dataclasses.dataclass(frozen=True)
class Point:
  """Where a trace was made to answer.

  Attributes:
    tokens: before the answer.
    waits: times that the thought was made to go on.
    text: before the answer, None without.
    stop: what an answer writes before it counts.
    answers: one or more.
  """

  tokens: int
  waits: int
  text: str | None
  stop: str
  answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One trace of a file.

  Attributes:
    line: of the file, from 1.
    problem: its id.
    gold: the right answer.
    points: those without waits first.
  """

  line: int
  problem: str
  gold: str
  points: tuple[Point, ...]


def read_rows(
  path: str | os.PathLike,
  *,
  encode: Callable[[str], Sequence[int]] | None = None,
  decode: Callable[[Sequence[int]], str] | None = None,
) -> list[Row]:
  """Returns the traces of a file, each of them checked.

  Args:
    path: JSONL, UTF-8; blank lines are passed over.
    encode: text -> ids, for answers without a number of tokens.
    decode: ids -> text, for answers of ids.

  Raises:
    ValueError: one line with the file and the line: not JSON, a key that is
      missing or of another type, points out of order, a problem with two right
      answers, a trace that comes twice; or a file without a row.
  """
  golds, seen = {}, {}

  def parse(number, record):
    row = _row(number, record, encode, decode)
    gold, line = golds.setdefault(row.problem, (row.gold, number))
    if gold != row.gold:
      raise ValueError(
        f'problem {row.problem!r} has gold {_short(row.gold)} here and '
        f'{_short(gold)} in line {line}: give each problem one id'
      )
    trace = record.get('trace')
    if trace is not None:
      first = seen.setdefault((row.problem, _id(record, 'trace')), number)
      if first != number:
        raise ValueError(
          f'trace {_short(trace)} of problem {row.problem!r} was given in line '
          f'{first}: take one of them out'
        )
    return row

  rows = read_jsonl(path, parse)
  if not rows:
    raise ValueError(f'{path} has no row: give one JSON object a line')
  return rows


def _row(number: int, record: dict, encode, decode) -> Row:
  gold = record.get('gold')
  if isinstance(gold, bool) or not isinstance(gold, str | int | float):
    raise ValueError(f'"gold" is {_short(gold)}: give the right answer')
  if not str(gold).strip():
    raise ValueError('"gold" is empty: give the right answer')
  points = record.get('points')
  if not isinstance(points, list) or not points:
    raise ValueError(
      f'"points" is {_short(points)}: give a list of one object a prefix'
    )
  found = []
  for index, point in enumerate(points):
    try:
      found.append(_point(point, encode, decode))
    except ValueError as error:
      raise ValueError(f'point {index}: {error}') from error
  waits = [point.waits for point in found]
  if waits[0]:
    raise ValueError('point 0 has "waits": begin with the empty prefix')
  if any(b < a or b == a > 0 for a, b in zip(waits, waits[1:])):
    raise ValueError(
      f'the points have {waits} waits: first the prefixes, without any, then '
      'those of budget forcing, rising'
    )
  return Row(number, _id(record, 'problem'), str(gold), tuple(found))


def _id(record: dict, name: str) -> str:
  value = record.get(name)
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole and not (isinstance(value, str) and value):
    raise ValueError(f'"{name}" is {_short(value)}: give a text or a number')
  return str(value)


def _point(point: Any, encode, decode) -> Point:
  _check_object(point)
  for name in ('text', 'stop'):
    if not isinstance(point.get(name, ''), str):
      raise ValueError(f'"{name}" is {_short(point[name])}: give a text')
  answers = point.get('answers')
  if not isinstance(answers, list) or not answers:
    raise ValueError(
      f'"answers" is {_short(answers)}: give a list of one or more objects'
    )
  found = []
  for index, answer in enumerate(answers):
    try:
      found.append(_answer(answer, encode, decode))
    except ValueError as error:
      raise ValueError(f'answer {index}: {error}') from error
  return Point(
    tokens=_count(point, 'tokens'),
    waits=_count(point, 'waits') if 'waits' in point else 0,
    text=point.get('text'),
    stop=point.get('stop', ''),
    answers=tuple(found),
  )


def _answer(answer: Any, encode, decode) -> Answer:
  _check_object(answer)
  text, ids = answer.get('text'), answer.get('ids')
  if ids is not None:
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0
    if not isinstance(ids, list) or not all(map(whole, ids)):
      raise ValueError('"ids" must be a list of token ids')
    if text is None and 'answer' not in answer:
      if decode is None:
        raise ValueError('"ids" without "text": name a tokenizer')
      text = decode(ids)
  if text is None and 'answer' not in answer:
    raise ValueError(
      f'keys {_short(sorted(answer))}: give "text", "ids" or "answer"'
    )
  if text is not None and not isinstance(text, str):
    raise ValueError(f'"text" is {_short(text)}: give a text')
  said = answer.get('answer')
  if said is not None and not isinstance(said, str):
    raise ValueError(f'"answer" is {_short(said)}: give a text, or null')
  correct = answer.get('correct')
  if correct is not None and not isinstance(correct, bool):
    raise ValueError(f'"correct" is {_short(correct)}: give true or false')
  if 'tokens' in answer:
    tokens = _count(answer, 'tokens')
  elif ids is not None:
    tokens = len(ids)
  elif text is not None and encode is not None:
    tokens = len(encode(text))
  else:
    raise ValueError('it has no "tokens": give their number, or a tokenizer')
  if 'answer' in answer:
    text = None
  return Answer(text, said, correct, tokens, _log_prob(answer))


def _log_prob(answer: dict) -> float:
  """Returns the mean log-prob of an answer's tokens, NaN without one."""
  given = answer.get('log_probs')
  if given is None:
    value = answer.get('log_prob')
    if value is None:
      return math.nan
    if not _is_log_prob(value):
      raise ValueError(
        f'"log_prob" is {_short(value)}: give nats a token, at most 0'
      )
    return float(value)
  drawn = [x for x in given if x is not None] if isinstance(given, list) else []
  if not drawn or not all(map(_is_log_prob, drawn)):
    raise ValueError(
      '"log_probs" must be a list of nats, at most 0, one a token, with null '
      'where none was drawn, and not all of them'
    )
  return float(np.mean(drawn))


def _is_log_prob(value: Any) -> bool:
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and -math.inf < value <= 0


def _count(record: dict, name: str) -> int:
  value = record.get(name)
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or not 0 <= value < 2**31:
    raise ValueError(f'"{name}" is {_short(value)}: give a whole number >= 0')
  return value


def _check_object(value: Any):
  if not isinstance(value, dict):
    raise ValueError(f'it is {_short(value)}: give an object')


def _short(value: Any) -> str:
  return one_line(repr(value), 60)
