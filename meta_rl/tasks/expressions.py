"""The canonical postfix grammar of Countdown: enumeration and verifier.

At every operator the left operand's value is at least the right one's, every
value on the way is an integer in 0..max_value, a division is exact, and every
given number is used exactly once. Values are exact integers throughout. The
grammar is small enough to be enumerated and regular enough to be checked by a
stack machine inside a jitted program; both describe the same set of strings.

Axes: n given numbers, M canonical expressions, A answer tokens.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import tokenizer

Array = jax.Array
Tokens = tuple[int, ...]

_MAX_NUMBERS = 6


@dataclasses.dataclass(frozen=True)
class Expressions:
  """All canonical expressions over one multiset of numbers.

  Attributes:
    plain: u8[M,2n-1], postfix tokens, rows distinct.
    annotated: u8[M,3n-2], the same with each operator followed by its value.
    values: u8[M], the value of each expression, 0..max_value.
  """

  plain: np.ndarray
  annotated: np.ndarray
  values: np.ndarray


def check_ops(ops: str) -> str:
  """Returns `ops` if it is a non-empty string of distinct operators."""
  if not ops or len(set(ops)) != len(ops) or set(ops) - set('+-*/'):
    raise ValueError(
      f'ops {ops!r} must be distinct characters out of "+-*/", such as "+-"'
    )
  return ops


def check_range(numbers: Sequence[int], max_value: int):
  """Raises ValueError unless `numbers` and `max_value` have tokens."""
  if not 1 <= max_value <= tokenizer.MAX_INTEGER:
    raise ValueError(
      f'max_value {max_value} must be in 1..{tokenizer.MAX_INTEGER}, the '
      'integers that have a token'
    )
  if not 1 <= len(numbers) <= _MAX_NUMBERS:
    raise ValueError(
      f'{len(numbers)} numbers given: a problem has 1 to {_MAX_NUMBERS}'
    )
  if min(numbers) < 0 or max(numbers) > max_value:
    raise ValueError(f'numbers {tuple(numbers)} must be in 0..{max_value}')


def expression_table(
  numbers: Sequence[int], ops: str, max_value: int = tokenizer.MAX_INTEGER
) -> Expressions:
  """Returns all canonical expressions over `numbers`, cached per multiset.

    E(X) = union over ordered splits X = L + R (as multisets) and operators o of
           {l r o : l in E(L), r in E(R), v(l) >= v(r), 0 <= v(l o r) <= max}

  A postfix string determines its last operator and both operands, and the
  splits are distinct as multisets, so no string arises twice.

  Args:
    numbers: the multiset, in any order, each in 0..max_value.
    ops: allowed operators out of '+-*/'.
    max_value: largest allowed value, 1..99.
  """
  check_range(numbers, max_value)
  key = tuple(sorted(int(number) for number in numbers))
  return _expressions(key, ''.join(sorted(check_ops(ops))), max_value)


@functools.lru_cache(maxsize=1 << 14)
def _expressions(numbers: Tokens, ops: str, max_value: int) -> Expressions:
  if len(numbers) == 1:
    leaf = np.asarray([[tokenizer.integer(numbers[0])]], np.uint8)
    return Expressions(leaf, leaf, np.asarray(numbers, np.uint8))
  rows = []
  for left_numbers, right_numbers in _splits(numbers):
    left = _expressions(left_numbers, ops, max_value)
    right = _expressions(right_numbers, ops, max_value)
    for op in ops:
      rows.append(_combine(left, right, op, max_value))
  merged = (np.concatenate(parts) for parts in zip(*rows, strict=True))
  return Expressions(*merged)


def _splits(numbers: Tokens) -> list[tuple[Tokens, Tokens]]:
  """Returns the distinct ordered splits into two non-empty multisets."""
  splits = set()
  for size in range(1, len(numbers)):
    for chosen in itertools.combinations(range(len(numbers)), size):
      left = tuple(numbers[i] for i in chosen)
      rest = (i for i in range(len(numbers)) if i not in chosen)
      splits.add((left, tuple(numbers[i] for i in rest)))
  return sorted(splits)


def _combine(left: Expressions, right: Expressions, op: str, max_value: int):
  """Returns (plain, annotated, values) of all canonical `left right op`."""
  i, j = np.nonzero(left.values[:, None] >= right.values[None, :])
  a, b = left.values[i].astype(np.int32), right.values[j].astype(np.int32)
  if op == '/':
    exact = (b > 0) & (a % np.maximum(b, 1) == 0)
    value = np.where(exact, a // np.maximum(b, 1), -1)
  else:
    value = {'+': a + b, '-': a - b, '*': a * b}[op]
  keep = (value >= 0) & (value <= max_value)
  i, j, value = i[keep], j[keep], value[keep]
  sign = np.full((len(i), 1), tokenizer.OPERATORS[op], np.uint8)
  shown = (value[:, None] + tokenizer.FIRST_INTEGER).astype(np.uint8)
  plain = np.hstack([left.plain[i], right.plain[j], sign])
  annotated = np.hstack([left.annotated[i], right.annotated[j], sign, shown])
  return plain, annotated, value.astype(np.uint8)


def enumerate_expressions(
  numbers: Sequence[int], ops: str, max_value: int = tokenizer.MAX_INTEGER
) -> list[tuple[Tokens, Tokens, int]]:
  """Returns (plain postfix, annotated postfix, value) of every expression.

  The readable form of `expression_table`; token strings are distinct.
  """
  table = expression_table(numbers, ops, max_value)
  return [
    (tuple(plain), tuple(annotated), value)
    for plain, annotated, value in zip(
      table.plain.tolist(),
      table.annotated.tolist(),
      table.values.tolist(),
      strict=True,
    )
  ]


def verify_tokens(
  answer: Array,
  mask: Array,
  numbers: Array,
  target: Array,
  *,
  ops: str = '+-*/',
  max_value: int = tokenizer.MAX_INTEGER,
) -> Array:
  """Returns 1.0 where `answer` is canonical, right and ends in EOS, else 0.0.

  A stack machine in exact int32, unrolled over A tokens and n stack slots: a
  number token takes one unused given number, an operator pops two values. It
  equals membership in `answers_for`. Traceable; leading axes broadcast.

  Args:
    answer: i32[...,A], the tokens after the answer marker.
    mask: bool[...,A], True on the tokens that count, EOS included; others are
      skipped.
    numbers: i32[...,n], the given numbers; -1 is padding.
    target: i32[...].
    ops: allowed operators out of '+-*/' (static).
    max_value: largest allowed value (static).

  Returns:
    f32[...], 0.0 or 1.0.

  Raises:
    ValueError: answer and mask differ in shape, or a rank is too small.
    TypeError: answer, numbers or target are not integers, or mask not bool.
  """
  answer, mask, numbers, target = map(
    jnp.asarray, (answer, mask, numbers, target)
  )
  _check_verify_inputs(answer, mask, numbers, target)
  shape = jnp.broadcast_shapes(
    answer.shape[:-1], numbers.shape[:-1], target.shape
  )
  slots = numbers.shape[-1]
  numbers = jnp.broadcast_to(numbers, (*shape, slots)).astype(jnp.int32)
  state = (
    jnp.zeros((*shape, slots), jnp.int32),  # the stack
    jnp.zeros(shape, jnp.int32),  # its depth
    numbers < 0,  # which numbers are used up
    jnp.ones(shape, bool),  # canonical so far
    jnp.zeros(shape, bool),  # EOS was read
  )
  for t in range(answer.shape[-1]):
    token = jnp.broadcast_to(answer[..., t], shape).astype(jnp.int32)
    counts = jnp.broadcast_to(mask[..., t], shape)
    state = _stack_step(state, token, counts, numbers, ops, max_value)
  stack, depth, used, good, done = state
  right = (depth == 1) & used.all(-1) & (stack[..., 0] == target)
  return (good & done & right).astype(jnp.float32)


def _check_verify_inputs(answer, mask, numbers, target):
  if answer.ndim < 1 or answer.shape != mask.shape or numbers.ndim < 1:
    raise ValueError(
      f'answer {answer.shape} and mask {mask.shape} must share a shape [...,A] '
      f'and numbers {numbers.shape} be [...,n]'
    )
  named = {'answer': answer, 'numbers': numbers, 'target': target}
  for name, value in named.items():
    if not jnp.issubdtype(value.dtype, jnp.integer):
      raise TypeError(f'{name} has dtype {value.dtype}: give int32')
  if mask.dtype != jnp.bool_:
    raise TypeError(f'mask has dtype {mask.dtype}: give bool')


def _stack_step(state, token, counts, numbers, ops, max_value):
  """Returns the state after one token; a bad token clears `good` for good."""
  stack, depth, used, good, done = state
  slot = jnp.arange(stack.shape[-1])
  number = token - tokenizer.FIRST_INTEGER
  is_number = (number >= 0) & (number <= tokenizer.MAX_INTEGER)
  fits = (numbers == number[..., None]) & ~used
  taken = fits & (jnp.cumsum(fits, -1) == 1)  # one use, not every equal number

  top = jnp.sum(jnp.where(slot == depth[..., None] - 1, stack, 0), -1)
  under = jnp.sum(jnp.where(slot == depth[..., None] - 2, stack, 0), -1)
  is_op, value, allowed = _apply(token, under, top, ops)
  allowed &= (depth >= 2) & (under >= top) & (value >= 0) & (value <= max_value)

  is_eos = token == tokenizer.EOS
  legal = (is_number & fits.any(-1)) | (is_op & allowed) | is_eos
  good &= jnp.where(counts, legal & ~done, True)
  move = counts & good
  push, pop = move & is_number, move & is_op
  place = jnp.where(push, depth, depth - 2)[..., None]
  written = jnp.where(push, number, value)[..., None]
  stack = jnp.where((push | pop)[..., None] & (slot == place), written, stack)
  depth = depth + push - pop
  used = used | (push[..., None] & taken)
  return stack, depth, used, good, done | (move & is_eos)


def _apply(token, a, b, ops):
  """Returns (is_op, a op b, whether the division is exact) for one token."""
  divisor = jnp.where(b > 0, b, 1)
  results = {'+': a + b, '-': a - b, '*': a * b, '/': a // divisor}
  is_op = jnp.zeros(token.shape, bool)
  value = jnp.zeros_like(a)
  for op in check_ops(ops):
    chosen = token == tokenizer.OPERATORS[op]
    is_op |= chosen
    value = jnp.where(chosen, results[op], value)
  exact = (b > 0) & (a % divisor == 0)
  return is_op, value, (token != tokenizer.DIVIDE) | exact
