"""Arithmetic expressions as text: parsed, never evaluated as code (host).

The grammar is unsigned ASCII integers as given, + - * / and parentheses, with
spaces between them, and nothing else. An answer is parsed, never evaluated as
code, in exact rational arithmetic; what doesn't parse scores 0. The check of
the numbers comes before any arithmetic and the text is short, so that hostile
input costs no more than honest input.

Unlike the token grammar of `meta_rl.tasks.countdown`, values on the way may be
negative or fractions: whatever the token verifier accepts is accepted here.
"""

import fractions
from collections.abc import Sequence

from meta_rl.verifiers import Record, extract

MAX_LENGTH = 1000
MAX_DEPTH = 100
_PRECEDENCE = {'+': 1, '-': 1, '*': 2, '/': 2}
_DIGITS = frozenset('0123456789')


def verify_text(answer: str, numbers: Sequence[int], target: int) -> float:
  """Returns 1.0 if `answer` equals `target` and uses each number exactly once.

    expression := term (('+' | '-') term)*       left-associative
    term       := factor (('*' | '/') factor)*   left-associative
    factor     := integer | '(' expression ')'

  Args:
    answer: the expression alone, e.g. '(7 + 5) - 3'; surrounding spaces are
      allowed, any other text is not. Longer than 1000 characters scores 0.
    numbers: the given numbers, non-negative, in any order.
    target: the value to reach.

  Returns:
    1.0 or 0.0. Refused with 0.0: anything outside the grammar (`//`, `%`,
    `**`, `!`, signs, '07', '1_0', Unicode digits), other numbers than the
    given ones, a division by zero.

  Raises:
    TypeError: `answer` is not a str.
  """
  if not isinstance(answer, str):
    raise TypeError(f'answer has type {type(answer).__name__}: give a str')
  if len(answer) > MAX_LENGTH:
    return 0.0
  tokens = tokenize(answer)
  if tokens is None:
    return 0.0
  used = sorted(token for token in tokens if token[0] in _DIGITS)
  if used != sorted(str(number) for number in numbers):
    return 0.0
  return float(value(tokens) == target)


def tokenize(text: str) -> list[str] | None:
  """Returns the integers, operators and brackets, or None outside of them."""
  tokens = []
  index = 0
  while index < len(text):
    start = index
    while index < len(text) and text[index] in _DIGITS:
      index += 1
    if index > start:
      tokens.append(text[start:index])
      continue
    if text[index] in '+-*/()':
      tokens.append(text[index])
    elif text[index] != ' ':
      return None
    index += 1
  return tokens


def value(tokens: Sequence[str]) -> fractions.Fraction | None:
  """Returns the exact value by operator precedence, or None if malformed.

  Two explicit stacks rather than recursion: nesting can't exhaust Python's.
  """
  values, pending = [], []
  operand_next = True
  depth = 0
  for token in tokens:
    if operand_next and token[0] in _DIGITS:
      values.append(fractions.Fraction(int(token)))
      operand_next = False
    elif operand_next and token == '(' and depth < MAX_DEPTH:
      pending.append(token)
      depth += 1
    elif not operand_next and token in _PRECEDENCE:
      if not _reduce(values, pending, _PRECEDENCE[token]):
        return None
      pending.append(token)
      operand_next = True
    elif not operand_next and token == ')' and depth > 0:
      if not _reduce(values, pending, 1):
        return None
      pending.pop()
      depth -= 1
    else:
      return None
  if operand_next or depth or not _reduce(values, pending, 1):
    return None
  return values[0]


def _reduce(values: list, pending: list[str], precedence: int) -> bool:
  """Applies pending operators down to `precedence`; False on division by 0."""
  while pending and _PRECEDENCE.get(pending[-1], 0) >= precedence:
    op = pending.pop()
    b, a = values.pop(), values.pop()
    if op == '/' and b == 0:
      return False
    if op == '/':
      values.append(a / b)
    else:
      values.append({'+': a + b, '-': a - b, '*': a * b}[op])
  return True


def vote(answer: str) -> fractions.Fraction | None:
  """Returns the value of an answer, None for what has none.

  Args:
    answer: what comes after the thought.
  """
  found = (extract.final_answer(answer) or '').strip()
  tokens = tokenize(found) if len(found) <= MAX_LENGTH else None
  return value(tokens) if tokens else None


def grade(answer: str, record: Record) -> float:
  """Returns 1.0 if an answer reaches the record's target, else 0.0.

  Args:
    answer: what comes after the thought.
    record: 'numbers', each to be used once, and 'target'.
  """
  found = extract.final_answer(answer)
  if found is None:
    return 0.0
  return verify_text(found.strip(), record['numbers'], record['target'])
