"""The host verifier: its grammar, what it refuses, whom it agrees with."""

import fractions
import time

import jax
import numpy as np
import pytest

from meta_rl import tokenizer
from meta_rl.tasks import countdown, verify
from meta_rl.verifiers import expression

NUMBERS = (3, 5, 7)


@pytest.mark.parametrize(
  'answer, numbers, target',
  [
    ('(7 + 5) - 3', NUMBERS, 9),
    ('7+5-3', NUMBERS, 9),
    (' 7 - ( 3 - 5 ) ', NUMBERS, 9),  # 7 - (-2): negative on the way
    ('3 + 5 * 7', NUMBERS, 38),  # precedence: not 56
    ('7 - 5 - 3', NUMBERS, -1),  # left-associative: not 5
    ('8 / 4 / 2', (2, 4, 8), 1),  # not 4
    ('8 / (3 - 8 / 3)', (3, 3, 8, 8), 24),  # exact fractions: 8 / (1 / 3)
    ('((((5))))+((3))*7', NUMBERS, 26),
    ('12', (12,), 12),
    ('0 * 5 + 7', (0, 5, 7), 7),
  ],
)
def test_right_answers(answer, numbers, target):
  assert verify.verify_text(answer, numbers, target) == 1.0
  assert verify.verify_text(answer, numbers, target + 1) == 0.0


@pytest.mark.parametrize(
  'answer',
  [
    '',
    ' ',
    '7 + 5',  # 3 is not used
    '7 + 5 - 3 + 0',  # a number more
    '7 + 5 - 3 - 3 + 3',
    '12 - 3',  # joined
    '7 + 5 - 3 = 9',
    'answer: 7 + 5 - 3',
    '7 + 5 - 3.',
    '7 + 5 - 3\n',
    '7\t+ 5 - 3',
    '7.0 + 5 - 3',
    '7 5 + 3 -',  # postfix
    '07 + 5 - 3',
    '7_ + 5 - 3',
    '+7 + 5 - 3',  # signs
    '-3 + 7 + 5',
    '7 - -5 - 3',
    '7 + (5) (-3)',
    '(7 + 5 - 3',
    '7 + 5) - 3',
    ')7 + 5 - 3(',
    '7 + () 5 - 3',
    '7 + 5 -',
    '7 + 5 - (3',
    '٧ + 5 - 3',  # ARABIC-INDIC DIGIT SEVEN
    '７ + 5 - 3',
    '7 + 5 − 3',
    '7 × 5 - 3',
  ],
)
def test_wrong_or_refused(answer):
  assert verify.verify_text(answer, NUMBERS, 9) == 0.0


@pytest.mark.parametrize(
  'answer, numbers, target',
  [
    ('7 // 2', (2, 7), 3),
    ('7 % 4', (4, 7), 3),
    ('2 ** 3', (2, 3), 8),
    ('3!', (3,), 6),
    ('- 3 + 7', (3, 7), 4),
    ('+ 3 + 7', (3, 7), 10),
    ('~3 + 7', (3, 7), 3),
    ('1_0 + 3', (10, 3), 13),
    ('(3 , 7)', (3, 7), 3),
    ('3 if 7 else 7', (3, 7, 7), 3),
    ('abs(3) + 7', (3, 7), 10),
    ('3 + 7 # = 11', (3, 7, 11), 10),
  ],
)
def test_what_other_scorers_let_through_is_refused(answer, numbers, target):
  assert verify.verify_text(answer, numbers, target) == 0.0


@pytest.mark.parametrize(
  'answer, numbers',
  [
    ('9**9**9', (9, 9, 9)),
    ('9**9**9**9**9', (9,) * 5),
    ('1 / 0', (0, 1)),
    ('1 / (5 - 5)', (1, 5, 5)),
    ('0 / 0', (0, 0)),
    ('9' * 10_000, (9,)),
    ('9' * 1000, (9,)),
    ('(' * 100_000 + '9' + ')' * 100_000, (9,)),
    ('(' * 499 + '9' + ')' * 499, (9,)),
    ('(' * 1000, (9,)),
    (')' * 1000, (9,)),
    ('9' + ' ' * 100_000, (9,)),
    ('\x00', (9,)),
    ('__import__("os").getcwd()', (9,)),
  ],
)
def test_hostile_answers_score_zero_at_once(answer, numbers):
  start = time.perf_counter()
  assert verify.verify_text(answer, numbers, 9) == 0.0
  assert time.perf_counter() - start < 0.1


def test_depth_and_length_limits_are_where_they_are_said_to_be():
  nested = '(' * expression.MAX_DEPTH + '9' + ')' * expression.MAX_DEPTH
  assert verify.verify_text(nested, (9,), 9) == 1.0
  assert verify.verify_text(f'({nested})', (9,), 9) == 0.0
  assert verify.verify_text('9'.ljust(expression.MAX_LENGTH), (9,), 9) == 1.0
  assert (
    verify.verify_text('9'.ljust(expression.MAX_LENGTH + 1), (9,), 9) == 0.0
  )


def test_answer_must_be_text():
  with pytest.raises(TypeError, match='type NoneType'):
    verify.verify_text(None, NUMBERS, 9)


@pytest.mark.parametrize(
  'postfix, infix',
  [
    ('7 5 + 3 -', '(7 + 5) - 3'),
    ('7 5 3 - + <eos>', '7 + (5 - 3)'),
    ('6 3 / 4 2 * +', '(6 / 3) + (4 * 2)'),
    ('12', '12'),
  ],
)
def test_render_infix(postfix, infix):
  assert verify.render_infix(tokenizer.encode(postfix)) == infix


@pytest.mark.parametrize(
  'postfix', ['', '7 5', '7 +', '+', '7 5 + yes', '<eos> 7', '7 5 + <pad>']
)
def test_render_infix_rejects(postfix):
  with pytest.raises(ValueError, match='is not one postfix expression'):
    verify.render_infix(tokenizer.encode(postfix))


@pytest.mark.parametrize('numbers', [(2, 2, 8), (1, 3, 4, 6)])
def test_host_and_device_agree_on_canonical_answers(numbers):
  listed = countdown.enumerate_expressions(numbers, '+-*/')
  target = listed[len(listed) // 2][2]
  answers = np.asarray([(*plain, tokenizer.EOS) for plain, _, _ in listed])
  device = jax.jit(countdown.verify_tokens)(
    answers, np.ones(answers.shape, bool), np.asarray(numbers), target
  )
  host = [
    verify.verify_text(verify.render_infix(answer), numbers, target)
    for answer in answers
  ]
  np.testing.assert_array_equal(device, host)
  assert 0 < sum(host) < len(host)


# Recorded from reasoning-gym 0.1.25, score_answer(...) >= 1.0; numbers 2 4 6 8.
RECORDED = [
  ('(6 - (2*8))-4', -14, 1),
  ('6 - 8 - 2 + 4', 0, 1),
  ('(6 / (4 / (2 + 8)))', 15, 1),
  ('(((8/4) - 6) + 2)', -2, 1),
  ('(4/6 / (8 + 2))', 56, 0),
  ('6 + 8 - 4 + 2', 12, 1),
  ('(8-2) + 6 + 4', 35, 0),
  ('(2*8 / 4*6)', 24, 1),
  ('(8 / (4 + 6*2))', 21, 0),
  ('((8 - 6) * (4 - 2))', 4, 1),
  ('4 + (8-6+6)', 12, 0),
  ('(6*(8 / 4 * 2))', 24, 1),
  ('(6*6) - (4-8)', 40, 0),
  ('(4/2 + 8 / 6)', 32, 0),
  ('4/6-6*8', 26, 0),
  ('4/(8 - 2) - 6', 28, 0),
  ('((2/6) - (4-8))', 20, 0),
  ('(4+(2 + 8 + 6))', 20, 1),
  ('((2 * (8+6))*4)', 112, 1),
  ('(8/6)-4 - 2', 41, 0),
  ('(4*8 - (2*6))', 20, 1),
  ('(4*6)-(8-2)', 18, 1),
  ('((4 + 2/8) + 6)', 1, 0),
  ('(6 - 8) * 2-4', -8, 1),
  ('((4*2)*8-6)', 58, 1),
  ('(8 * 2 / 6)/4', 15, 0),
  ('(((8 + 2) - 4) / 6)', 1, 1),
  ('(6*8 / (6+4))', -2, 0),
  ('6/4 * (2/8)', 34, 0),
  ('(8 - (2+6)-4)', 5, 0),
]


def test_recorded_scores_of_reasoning_gym():
  for answer, target, right in RECORDED:
    assert verify.verify_text(answer, (2, 4, 6, 8), target) == right, answer


def random_answer(rng, numbers):
  """A random infix text of the grammar, with random needless brackets."""
  parts = [str(number) for number in rng.permutation(numbers)]
  while len(parts) > 1:
    index = rng.integers(len(parts) - 1)
    op = '+-*/'[rng.integers(4)]
    space = ' ' * int(rng.integers(2))
    joined = f'{parts[index]}{space}{op}{space}{parts[index + 1]}'
    if rng.random() < 0.5:
      joined = f'({joined})'
    parts[index : index + 2] = [joined]
  return parts[0]


def test_agrees_with_reasoning_gym():
  gym = pytest.importorskip('reasoning_gym')
  dataset = gym.create_dataset('countdown', size=1, seed=0)
  rng = np.random.default_rng(0)
  seen = {0.0: 0, 1.0: 0}
  for _ in range(3000):
    numbers = rng.integers(0, 13, size=rng.integers(2, 6)).tolist()
    used = list(numbers)
    if rng.random() < 0.1:
      used[0] = int(rng.integers(0, 13))
    answer = random_answer(rng, used)
    target = int(rng.integers(-5, 60))
    exact = expression.value(expression.tokenize(answer))
    if exact is not None and exact.denominator == 1 and rng.random() < 0.6:
      target = int(exact)
    entry = {'metadata': {'numbers': numbers, 'target': target}}
    theirs = float(dataset.score_answer(answer, entry) >= 1.0)
    assert verify.verify_text(answer, numbers, target) == theirs, answer
    seen[theirs] += 1
  assert min(seen.values()) > 500


def test_refuses_what_reasoning_gym_lets_through():
  gym = pytest.importorskip('reasoning_gym')
  dataset = gym.create_dataset('countdown', size=1, seed=0)
  cases = [
    ('7 // 2', (2, 7), 3),
    ('7 % 4', (4, 7), 3),
    ('2 ** 3', (2, 3), 8),
    ('3!', (3,), 6),
    ('-3 + 7', (3, 7), 4),
  ]
  for answer, numbers, target in cases:
    entry = {'metadata': {'numbers': list(numbers), 'target': target}}
    assert dataset.score_answer(answer, entry) >= 1.0
    assert verify.verify_text(answer, numbers, target) == 0.0


def test_the_value_of_a_postfix_answer():
  value = lambda text: verify.postfix_value(tokenizer.encode(text))
  assert value('7 5 + 3 -') == 9
  assert value('7 5 + 3 - <eos>') == 9
  assert value('3 4 /') == fractions.Fraction(3, 4)
  for text in ('7 5', '+', '<eos>', '7 0 /', 'yes'):
    assert value(text) is None
  assert verify.postfix_value([]) is None
