"""Host verifier of Countdown answers written as text.

The grammar is unsigned ASCII integers as given, + - * / and parentheses, with
spaces between them, and nothing else. An answer is parsed, never evaluated as
code, in exact rational arithmetic; what doesn't parse scores 0. The check of
the numbers comes before any arithmetic and the text is short, so that hostile
input costs no more than honest input.

Unlike the token grammar of `countdown`, values on the way may be negative or
fractions: whatever the token verifier accepts is accepted here.
"""

import fractions
from collections.abc import Iterable, Sequence

from meta_rl import tokenizer

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
  tokens = _tokenize(answer)
  if tokens is None:
    return 0.0
  used = sorted(token for token in tokens if token[0] in _DIGITS)
  if used != sorted(str(number) for number in numbers):
    return 0.0
  return float(_value(tokens) == target)


def _tokenize(text: str) -> list[str] | None:
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


def _value(tokens: Sequence[str]) -> fractions.Fraction | None:
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


def postfix_value(postfix: Iterable[int]) -> fractions.Fraction | None:
  """Returns the exact value of a postfix answer, None if it has none.

  Args:
    postfix: token ids of one answer; a final EOS may be there or not.
  """
  try:
    tokens = _tokenize(render_infix(postfix))
  except ValueError:
    return None
  return _value(tokens) if tokens else None


def render_infix(postfix: Iterable[int]) -> str:
  """Returns the infix text of a plain postfix answer, fully parenthesised.

  `7 5 + 3 -` gives '(7 + 5) - 3': only the outermost brackets are left out.

  Args:
    postfix: token ids of one answer; a final EOS may be there or not.

  Raises:
    ValueError: the tokens are not one postfix expression.
  """
  ids = [int(index) for index in postfix]
  if ids and ids[-1] == tokenizer.EOS:
    ids.pop()
  signs = {index: sign for sign, index in tokenizer.OPERATORS.items()}
  stack = []
  for index in ids:
    number = index - tokenizer.FIRST_INTEGER
    if 0 <= number <= tokenizer.MAX_INTEGER:
      stack.append(str(number))
    elif index in signs and len(stack) >= 2:
      right, left = stack.pop(), stack.pop()
      stack.append(f'({left} {signs[index]} {right})')
    else:
      stack.clear()
      break
  if len(stack) != 1:
    raise ValueError(
      f'{tokenizer.decode(ids)[:80]!r} is not one postfix expression of '
      'integers and + - * /'
    )
  return stack[0].removeprefix('(').removesuffix(')')
