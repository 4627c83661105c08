"""The canonical grammar: enumeration against brute force, device verifier."""

import functools
import itertools

import jax
import numpy as np
import pytest

from meta_rl import tokenizer
from meta_rl.tasks import expressions

SIGNS = {index: sign for sign, index in tokenizer.OPERATORS.items()}
ROWS = 20000
verify = jax.jit(
  expressions.verify_tokens, static_argnames=('ops', 'max_value')
)


def score(answers, numbers, target, *, mask=None, ops='+-*/'):
  """Scores any number of answers to three numbers, all in one shape."""
  answers = np.atleast_2d(np.asarray(answers, np.int32))
  mask = np.ones(answers.shape, bool) if mask is None else np.atleast_2d(mask)
  size = len(answers)
  room = [(0, ROWS - size), (0, 8 - answers.shape[1])]
  scores = verify(
    np.pad(answers, room),
    np.pad(mask, room),
    np.asarray(numbers, np.int32),
    np.int32(target),
    ops=ops,
  )
  return np.asarray(scores)[:size]


def canonical_value(postfix, numbers, ops, max_value=99):
  """The value of a canonical postfix string or None, by a plain stack."""
  stack, left = [], list(numbers)
  for token in postfix:
    if token - 16 in left:
      left.remove(token - 16)
      stack.append(token - 16)
      continue
    if SIGNS.get(token, '?') not in ops or len(stack) < 2:
      return None
    b, a = stack.pop(), stack.pop()
    if a < b or (token == tokenizer.DIVIDE and (b == 0 or a % b)):
      return None
    value = {9: a + b, 10: a - b, 11: a * b}.get(token)
    value = a // b if value is None else value
    if not 0 <= value <= max_value:
      return None
    stack.append(value)
  return stack[0] if len(stack) == 1 and not left else None


@functools.cache
def all_strings(words, length):
  return list(itertools.product(words, repeat=length))


def ids(text):
  return tokenizer.encode(text)


@pytest.mark.parametrize('numbers', [(3, 5, 7), (2, 2, 4), (0, 1, 3), (6,) * 3])
@pytest.mark.parametrize('ops', ['+-', '+-*/'])
def test_enumeration_and_verifier_equal_brute_force(numbers, ops):
  words = (*sorted({16 + n for n in numbers}), 9, 10, 11, 12)
  strings = all_strings(words, 5)
  values = [canonical_value(s, numbers, ops) for s in strings]
  expected = {s: v for s, v in zip(strings, values) if v is not None}
  listed = expressions.enumerate_expressions(numbers, ops)
  assert len(listed) == len(expected)
  assert {plain: value for plain, _, value in listed} == expected
  # The verifier says the same of every string, right or wrong.
  answers = [(*string, tokenizer.EOS) for string in strings]
  for target in (0, 2, 9):
    right = [value == target for value in values]
    scores = score(answers, numbers, target, ops=ops)
    np.testing.assert_array_equal(scores, right)


def test_enumeration_by_hand():
  # 2 and 3 with + - * /: 2 + 3 only in the order 3 2, since 3 >= 2; 3 - 2 = 1;
  # 3 * 2 = 6; 3 / 2 is not exact.
  listed = expressions.enumerate_expressions((2, 3), '+-*/')
  expected = {('3 2 +', 5), ('3 2 -', 1), ('3 2 *', 6)}
  assert {(tokenizer.decode(p), v) for p, _, v in listed} == expected
  annotated = {tokenizer.decode(a) for _, a, _ in listed}
  assert annotated == {'3 2 + 5', '3 2 - 1', '3 2 * 6'}


def test_composite_second_operand_and_ties():
  listed = [
    tokenizer.decode(plain)
    for plain, _, _ in expressions.enumerate_expressions((3, 5, 7), '+-')
  ]
  assert '7 5 3 - +' in listed
  assert '5 3 - 7 +' not in listed  # 2 < 7
  tied = [
    tokenizer.decode(plain)
    for plain, _, _ in expressions.enumerate_expressions((2, 3, 5), '+-')
  ]
  assert '5 3 2 + -' in tied
  assert '3 2 + 5 -' in tied
  assert tied.count('3 2 + 5 -') == 1


def test_max_value_bounds_every_step():
  # 9 * 9 = 81 > 80 is not allowed on the way either: 81 - 9 = 72 is lost.
  free = expressions.enumerate_expressions((9, 9, 9), '-*')
  bound = expressions.enumerate_expressions((9, 9, 9), '-*', 80)
  assert ('9 9 * 9 -', 72) in {(tokenizer.decode(p), v) for p, _, v in free}
  assert 72 not in {value for _, _, value in bound}


def test_four_numbers_against_the_stack():
  numbers = (1, 3, 4, 6)
  listed = expressions.enumerate_expressions(numbers, '+-*/')
  assert len({plain for plain, _, _ in listed}) == len(listed)
  for plain, annotated, value in listed:
    assert canonical_value(plain, numbers, '+-*/') == value
    assert annotated[-1] == 16 + value
    assert (len(plain), len(annotated)) == (7, 10)
  answers = np.asarray([(*plain, 2) for plain, _, _ in listed], np.int32)
  values = np.asarray([value for _, _, value in listed], np.int32)
  scores = verify(
    answers, np.ones(answers.shape, bool), np.asarray(numbers), values
  )
  assert np.asarray(scores).all()
  assert 24 not in values  # 6 / (1 - 3 / 4) = 24 leaves the integers


def test_random_strings_of_every_token():
  rng = np.random.default_rng(0)
  strings = rng.integers(0, 128, (ROWS, 6))
  near = rng.choice([2, 9, 10, 18, 19, 21], (ROWS, 6))
  for some in (strings, near):
    expected = [
      s[-1] == 2 and canonical_value(s[:-1], (2, 3, 5), '+-') == 6
      for s in some.tolist()
    ]
    scores = score(some, (2, 3, 5), 6, ops='+-')
    np.testing.assert_array_equal(scores, expected)
  assert sum(expected) > 0


@pytest.mark.parametrize(
  'text, kept, expected',
  [
    ('7 5 + 3 - <eos> <pad> <pad>', 6, 1.0),
    ('7 5 + 3 - <eos> <pad> <pad>', 7, 0.0),  # a token after EOS
    ('7 5 + 3 - <eos> <eos> <pad>', 7, 0.0),
    ('7 5 + 3 - <eos> <pad> <pad>', 5, 0.0),  # EOS is not in the mask
    ('<eos> 7 5 + 3 - <eos> <pad>', 7, 0.0),  # EOS first
    ('7 5 + 3 - <pad> <pad> <pad>', 8, 0.0),  # no EOS
    ('7 5 + <eos> <pad> <pad> <pad> <pad>', 4, 0.0),  # 3 is not used
    ('7 5 3 <eos> <pad> <pad> <pad> <pad>', 4, 0.0),  # three values left
    ('+ 7 5 3 - <eos> <pad> <pad>', 6, 0.0),  # nothing to add
    ('7 7 + 3 - <eos> <pad> <pad>', 6, 0.0),  # 7 twice, 5 never
    ('7 5 + 3 - </think> <eos> <pad>', 7, 0.0),
    ('<eos> <pad> <pad> <pad> <pad> <pad> <pad> <pad>', 1, 0.0),
    ('<pad> <pad> <pad> <pad> <pad> <pad> <pad> <pad>', 0, 0.0),  # empty mask
  ],
)
def test_verifier_edges(text, kept, expected):
  mask = np.arange(8) < kept
  assert score(ids(text), (3, 5, 7), 9, mask=mask) == expected


def test_verifier_skips_what_is_masked():
  answer = ids('<pad> 7 5 + 3 - <eos> 3')
  mask = np.asarray([0, 1, 1, 1, 1, 1, 1, 0], bool)
  assert score(answer, (3, 5, 7), 9, mask=mask) == 1


def test_verifier_broadcasts_and_maps():
  answer = np.asarray(ids('3 2 - <eos>'), np.int32)
  mask = np.ones(4, bool)
  numbers = np.asarray([[2, 3], [3, 2], [2, 4]], np.int32)
  target = np.asarray([[1], [2]], np.int32)

  @jax.jit
  def both(*inputs):
    over_numbers = jax.vmap(expressions.verify_tokens, (None, None, 0, None))
    over_both = jax.vmap(over_numbers, (None, None, None, 0))
    *rest, target = inputs
    return expressions.verify_tokens(*inputs), over_both(*rest, target[:, 0])

  broadcast, mapped = both(answer, mask, numbers, target)
  np.testing.assert_array_equal(broadcast, [[1, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(mapped, broadcast)


def test_verifier_takes_padded_numbers_and_its_own_operators():
  answer = ids('3 2 * <eos>')
  assert score(answer, (2, 3, -1), 6) == 1
  assert score(answer, (2, 3, -1), 6, ops='+-') == 0


def test_verifier_wants_every_number():
  answer = ids('7 5 + <eos>')
  assert score(answer, (5, 7, -1), 12) == 1
  assert score(answer, (3, 5, 7), 12) == 0


def test_verifier_bounds_values():
  product = np.asarray(ids('3 2 * <eos>'), np.int32)
  verdict = [
    float(verify(product, product > 0, np.int32([2, 3]), 6, max_value=bound))
    for bound in (6, 5)
  ]
  assert verdict == [1, 0]


def test_verifier_rejects_wrong_inputs():
  answer, mask = np.zeros((2, 6), np.int32), np.ones((2, 6), bool)
  numbers, target = np.zeros((2, 3), np.int32), np.zeros(2, np.int32)
  with pytest.raises(ValueError, match='share a shape'):
    expressions.verify_tokens(answer, mask[:, :5], numbers, target)
  with pytest.raises(TypeError, match='mask has dtype int32'):
    expressions.verify_tokens(answer, mask.astype(np.int32), numbers, target)
  with pytest.raises(TypeError, match='answer has dtype float32'):
    expressions.verify_tokens(answer * np.float32(1), mask, numbers, target)


@pytest.mark.parametrize(
  'numbers, ops, max_value, message',
  [
    ((1, 2), '', 99, 'distinct characters'),
    ((1, 2), '++', 99, 'distinct characters'),
    ((1, 2), '+%', 99, 'distinct characters'),
    ((1, 2), '+', 100, 'max_value 100'),
    ((1, 60), '+', 50, 'must be in 0..50'),
    ((), '+', 99, '0 numbers given'),
    ((1,) * 7, '+', 99, '7 numbers given'),
  ],
)
def test_enumeration_rejects(numbers, ops, max_value, message):
  with pytest.raises(ValueError, match=message):
    expressions.expression_table(numbers, ops, max_value)
