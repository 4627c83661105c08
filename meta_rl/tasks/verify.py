"""Countdown's answers as text: their values, and how they are written."""

import fractions
from collections.abc import Iterable

from meta_rl import tokenizer
from meta_rl.verifiers import expression
from meta_rl.verifiers.expression import verify_text

__all__ = ['postfix_value', 'render_compact', 'render_infix', 'verify_text']

_PRECEDENCE = {'+': 1, '-': 1, '*': 2, '/': 2}


def postfix_value(postfix: Iterable[int]) -> fractions.Fraction | None:
  """Returns the exact value of a postfix answer, None if it has none.

  Args:
    postfix: token ids of one answer; a final EOS may be there or not.
  """
  try:
    tokens = expression.tokenize(render_infix(postfix))
  except ValueError:
    return None
  return expression.value(tokens) if tokens else None


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


def render_compact(postfix: Iterable[int]) -> str:
  """Returns the infix text of a plain postfix answer, no bracket too many.

  `7 5 + 3 -` gives '7+5-3', `7 5 3 + -` gives '7-(5+3)'.

  Args:
    postfix: token ids of one answer, without EOS.

  Raises:
    ValueError: the tokens are not one postfix expression.
  """
  signs = {index: sign for sign, index in tokenizer.OPERATORS.items()}
  stack = []  # of (text, precedence)
  for index in map(int, postfix):
    if index not in signs:
      stack.append((str(index - tokenizer.FIRST_INTEGER), 3))
    elif len(stack) >= 2:
      own = _PRECEDENCE[signs[index]]
      (right, second), (left, first) = stack.pop(), stack.pop()
      left = f'({left})' if first < own else left
      right = f'({right})' if second <= own else right
      stack.append((f'{left}{signs[index]}{right}', own))
    else:
      stack.clear()
      break
  if len(stack) != 1:
    raise ValueError(
      f'{tokenizer.decode(postfix)[:80]!r} is not one postfix expression'
    )
  return stack[0][0]
