"""What each verifier takes for right, and what hostile text does to it."""

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_rl import verifiers
from meta_rl.verifiers import VerifierError, exact, extract, integers, pool
from meta_rl.verifiers import math as mathematics

# ---- which part of a text is its answer


@pytest.mark.parametrize(
  'text, stop, expected',
  [
    (r'\boxed{1}</think>\boxed{2}', '</think>', r'\boxed{2}'),
    (r'\boxed{1}', '</think>', None),
    ('a</think>b</think>c', '</think>', 'b</think>c'),
    ('</think>', '</think>', ''),
    ('abc', '', 'abc'),
    ('', '', ''),
  ],
)
def test_only_what_comes_after_the_stop(text, stop, expected):
  assert extract.after(text, stop) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('The answer is 42.', '42.'),
    ('answer: 41\nso\nAnswer: 42\nthat is it', '42'),
    ('**Final Answer:** 7', '7'),
    ('The final answer is: $x$', '$x$'),
    ('so 3 + 4\n#### 1,024', '1,024'),
    ('my answer = 5, no, the answer is 6', '6'),
    ('answer: ', None),
    ('answer: 3\nanswer:', '3'),
    ('an answer', None),
    ('answer\n: 5', None),
    ('answer: 3\nthe answer is 4, answer:', '3'),
    ('answer: 3\n\n', '3'),
    ('answering: 5', None),
    ('', None),
  ],
)
def test_answer_line(text, expected):
  assert extract.answer_line(text) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    (r'answer: 1 or \boxed{2}', '2'),
    (r'answer: 1 or \boxed{2', None),
    ('so\nanswer: 1', '1'),
    (' a b \n', 'a b'),
    ('', ''),
  ],
)
def test_final_answer(text, expected):
  assert extract.final_answer(text) == expected


HUGE = [
  r'\boxed{' * 150_000,
  r'\boxed{' + '{' * 500_000,
  '\\' * 1_000_001,
  'answer' * 170_000,
  'answer ' * 140_000,
  'answer: ' * 125_000,
  'answer' + '*_ ' * 330_000,
  '#' * 1_000_000,
  '\n' * 1_000_000,
  '9' * 1_000_000,
  '1' + ',000' * 250_000,
  '1' + ' 000' * 250_000 + 'x',
  '0' * 500_000 + '.' + '0' * 500_000 + '1',
  '$' * 1_000_000,
  r'\text{' * 160_000,
  r'\,' * 500_000,
  '\ud800' * 1_000_000,
]


@pytest.mark.parametrize('text', HUGE, ids=range(len(HUGE)))
def test_a_megabyte_takes_no_time(text):
  """Quadratic work over 1e6 characters would take minutes."""
  began = time.process_time()
  integers.grade(text, {'answer': '7'})
  exact.grade(text, {'answer': '7'})
  assert time.process_time() - began < 3


# ---- integers


@pytest.mark.parametrize(
  'text, expected',
  [
    ('42', '42'),
    ('007', '7'),
    ('+5', '5'),
    ('-5', '-5'),
    ('\u22125', '-5'),
    ('-0', '0'),
    ('000', '0'),
    ('1,024', '1024'),
    ('1{,}024', '1024'),
    (r'1\,024', '1024'),
    ('12 345 678', '12345678'),
    ('5.', '5'),
    ('5.000', '5'),
    ('$42$', '42'),
    ('$42$.', '42'),
    (r'\$42', '42'),
    (r'\(42\)', '42'),
    (r'42\%', '42'),
    ('42 %', '42'),
    ('**42**', '42'),
    (r'\text{42}', '42'),
    (r'\mathbf{ 42 }', '42'),
    ('  42\n', '42'),
    ('9' * 5000, '9' * 5000),
    ('', None),
    ('.', None),
    ('-', None),
    ('--5', None),
    ('5.01', None),
    ('.0', None),
    ('1,00', None),
    ('1,0000', None),
    ('1 2', None),
    ('1e3', None),
    ('1_000', None),
    ('0x10', None),
    ('6*7', None),
    ('2^5', None),
    ('nan', None),
    ('\u0664\u0662', None),  # Arabic-Indic digits
    ('\uff14\uff12', None),  # full-width digits
    ('4\u00b2', None),  # 4²
    ('4\x002', None),
    ('\ud800', None),
    ('42 apples', None),
    ('x = 42', None),
  ],
)
def test_normalized_integers(text, expected):
  assert integers.normalize(text) == expected


@pytest.mark.parametrize(
  'text, value',
  [
    (r'So \boxed{042}.', 1.0),
    (r'\boxed{41} or rather \boxed{42}', 1.0),
    (r'\boxed{42} or rather \boxed{41}', 0.0),
    (r'42, \boxed{4', 0.0),
    (r'answer: 42 \boxed{}', 0.0),
    ('The answer is 42.', 1.0),
    ('Answer: $42$', 1.0),
    ('#### 42', 1.0),
    ('42', 1.0),
    ('42.0', 1.0),
    ('It is 42 for sure', 0.0),
    (r'\boxed {42}', 1.0),
    (r'\fbox{42}', 1.0),
    (r'\boxed{41} \fbox{42}', 1.0),
    (r'\boxed{x=42}', 1.0),
    (r'\boxed{x = $42$}', 1.0),
    (r'\boxed{41=42}', 0.0),
    (r'\boxed 42', 0.0),
    ('#### 42 apples', 0.0),  # which number is meant is not guessed
    ('The answer is 42, since 40+2=42.', 0.0),
    ('41 42', 0.0),
    ('', 0.0),
  ],
)
def test_graded_integers(text, value):
  assert integers.grade(text, {'answer': '42'}) == value


def test_a_box_may_be_asked_for():
  assert integers.find_integer('answer: 42') == '42'
  assert integers.find_integer('answer: 42', boxed_only=True) is None
  assert integers.find_integer(r'\boxed{42}', boxed_only=True) == '42'


def test_a_right_answer_that_is_none():
  with pytest.raises(ValueError, match="right answer 'x' is no integer"):
    integers.grade('1', {'answer': 'x'})
  assert integers.grade('1,000', {'answer': 1000}) == 1.0


@given(
  st.integers(-(10**12), 10**12),
  st.sampled_from(['{}', '{}.', '{}.00', ' {}\n', '${}$', '**{}**', '+{}']),
  st.sampled_from(['d', ',', 'zeros']),
)
def test_every_spelling_of_an_integer(number, form, grouping):
  """Against Python's own spelling of the number."""
  digits = f'{abs(number):,}' if grouping == ',' else str(abs(number))
  sign = '-' if number < 0 else ''
  if grouping == 'zeros':
    digits = '000' + digits
  text = form.format(sign + digits)
  expected = None if text.startswith('+-') else str(number)
  assert integers.normalize(text) == expected


MARKS = ('\\boxed{', '{', '}', '\\', '$', '\\text{', ',', ' ', '.', '-', '%')
MARKS += (
  '0',
  '7',
  '1e999',
  '\x00',
  '\ud800',
  '\u0664',
  'answer:',
  '\n',
  '#### ',
)
hostile_text = st.lists(st.sampled_from(MARKS) | st.text(max_size=3)).map(
  ''.join
)


@settings(max_examples=50)
@given(hostile_text)
def test_any_text_is_graded(text):
  number = integers.normalize(text)
  assert number is None or re.fullmatch('0|-?[1-9][0-9]*', number)
  if number is not None:  # what comes out goes in unchanged
    assert integers.normalize(number) == number
  for grade, gold in ((integers.grade, '7'), (exact.grade, 'seven')):
    assert grade(text, {'answer': gold}) in (0.0, 1.0)
  box = extract.extract_boxed(text)
  assert box is None or '\\boxed{' + box + '}' in text


# ---- text


@pytest.mark.parametrize(
  'text, gold, value',
  [
    ('Paris', 'paris', 1.0),
    ('The answer is  Paris.', 'Paris', 1.0),
    (r'\boxed{New   York}', 'new york', 1.0),
    (r'\boxed{Paris', 'Paris', 0.0),
    ('caf\u00e9', 'cafe\u0301', 1.0),
    ('x\u00b2', 'x2', 0.0),
    ('STRASSE', 'stra\u00dfe', 1.0),
    ('Paris, France', 'Paris', 0.0),
    ('"yes"', 'Yes', 1.0),
    ('', 'x', 0.0),
    ('\ud800', '\ud800', 1.0),
  ],
)
def test_text(text, gold, value):
  assert exact.grade(text, {'answer': gold}) == value


def test_an_empty_right_answer():
  with pytest.raises(ValueError, match="right answer ' ' is empty"):
    exact.grade('', {'answer': ' '})


# ---- mathematics, in a worker: sympy is not for this process


GOLDEN = [
  (r'\frac{1}{2}', r'0.5', 1),
  ('0.5', r'\dfrac12', 1),
  (r'x^2+1', r'1 + x^{2}', 1),
  (r'(x+1)^2', r'x^2+2x+1', 1),
  (r'(0,1]', r'(0,1]', 1),
  (r'(0,1]', r'(0,1)', 0),
  (r'2\sqrt{2}', r'\sqrt{8}', 1),
  (r'\{1,2\}', r'\{2,1\}', 1),
  ('5', 'x=5', 1),
  ('5', '6', 0),
  ('1000', '1,000', 1),
  (r'\frac{1}{\sqrt{2}}', r'\frac{\sqrt{2}}{2}', 1),
  (r'\frac{1}{3}', '0.33', 0),
  (r'\text{even}', r'\text{odd}', 0),
  (r'\text{even}', r'\text{even}', 1),
  ('1/2', 'import os', 0),
  # One answer, and not several of which math-verify takes the last.
  ('5', '4=5', 0),
  ('5', 'x=4=5', 0),
  ('6', 'x=5, y=6', 0),
  ('6', 'x=5 and y=6', 0),
  ('5', r'\frac{10}{2}=5', 1),
  ('5', r'S=a+b=2+3=5', 1),
  ('5', r'P(X=1)=5', 1),
  ('5', r'4 \\ 5', 0),
  ('5', r'4 \to 5', 0),
  ('5', r'4 \lor 5', 0),
  ('5', r'4 \mid 5', 0),
  ('5', r'4 \cup 5', 0),
  ('5', r'4 \hspace{1cm} 5', 0),
  ('5', '4 & 5', 0),
  ('5', '4\u21925', 0),
  ('5', r'5 \approx 6', 0),
  ('5', r'\pi \approx 5', 0),
  (r'\pi', r'\pi \approx 3.14', 1),
  ('3.14', r'x \approx 3.14', 1),
  ('5', r'5\,\text{cm}', 1),
  ('5', r'\lim_{x \to 0} f(x)=5', 1),
  ('5', r'\log_2 32', 1),
  ('5', '5_4', 0),
  ('9', r'4 \quad 5', 0),
  ('9', r'4\,5', 0),
  ('9', '4\n\n5', 0),
  ('9', '4 (5)', 0),
  ('9', '{4}{5}', 0),
  ('45', '4\n\n5', 0),
  ('12', '1 2', 0),
  ('3', '1 2', 0),
  ('3/2', r'1 \frac{1}{2}', 1),
  ('1024', r'1\,024', 1),
  (r'\frac{1}{2}', r'\frac 1 2', 1),
  (r'\frac{1}{2}', r'\frac1{2}', 1),
  ('x=5', '4=5', 0),
  ('x+1', r'x \to x+1', 0),
  ('y=2x+1', '2x+1', 1),
  (
    r'\begin{pmatrix}1\\2\end{pmatrix}',
    r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}',
    1,
  ),
  (r'(-\infty,2]\cup[3,\infty)', r'(-\infty, 2] \cup [3, \infty)', 1),
]


@pytest.mark.parametrize(
  'text, expected',
  [
    (r'so \boxed{ 1{,}024 }', '1024'),
    (r'\boxed{x = 5}', '5'),
    (r'\boxed{\dfrac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{\frac 1 2} then', r'\frac1 2'),
    (r'\boxed{ }', None),
    (r'\boxed{5', None),
    ('5', None),
  ],
)
def test_votes_of_mathematics(text, expected):
  assert mathematics.vote(text) == expected


@pytest.fixture(scope='module')
def maths():
  """One worker with math-verify."""
  pytest.importorskip('math_verify', reason="needs pip install 'meta-rl[llm]'")
  with pool.Pool(
    'math', workers=1, timeout_s=20, memory_mb=1024, stop='</think>'
  ) as found:
    yield found


def test_golden_mathematics(maths):
  texts = [
    rf'\boxed{{7}}</think> \boxed{{{answer}}}.' for _, answer, _ in GOLDEN
  ]
  grades = maths.grade(texts, [{'answer': gold} for gold, _, _ in GOLDEN])
  assert set(grades.statuses) == {'ok'}
  assert [int(value) for value in grades.values] == [x for *_, x in GOLDEN]


@pytest.mark.full
def test_what_is_no_mathematics(maths):
  """Nothing is credited; only a box that is too long is not graded."""
  texts = [
    r'\boxed{7}',  # in the thought
    r'</think> 7',  # no box
    r'</think> \boxed{7',
    r'</think> \boxed{}',
    r'</think> \boxed{\frac{}{}}',
    r'</think> \boxed{' + r'\frac{1}' * 200 + '}',
    r'</think> \boxed{' + '9' * 1999 + '}',
    '</think> \\boxed{\x00\ud800\u0667}',
    r'</think> \boxed{' + '(' * 300 + '7' + ')' * 300 + 'x}',
    r'</think> \boxed{' + '1' * 2001 + '}',
  ]
  grades = maths.grade(texts, [{'answer': '7'}] * len(texts))
  assert grades.statuses[-1] == 'too_long'
  assert 1.0 not in grades.values
  assert set(grades.statuses[:8]) == {'ok'}


BOMBS = [
  '9^{9^{9^{9}}}',
  '10^{10^{10}}!',
  r'\sum_{i=1}^{10^{9}} \sin(i)^{i}',
  r'\int_0^1 x^{x^{x^{x}}} dx',
  r'\prod_{k=1}^{10^8} (x^k + 1)',
  '(x+y+z)^{100000}',
  r'\sqrt{' * 300 + '2' + '}' * 300,
  r'\frac{1}{' * 300 + 'x' + '}' * 300,
  '(' * 900 + 'x',
  '{' * 400 + 'x' + '}' * 400,
  '+'.join(f'x^{{{i}}}' for i in range(200)),
  r'\begin{pmatrix}' + '1 & ' * 400 + r'1\end{pmatrix}',
]


@pytest.mark.full
def test_bombs_cost_their_own_rows():
  """Between good answers, on two workers with two seconds a row."""
  pytest.importorskip('math_verify')
  texts, expected = [], []
  for bomb in BOMBS:
    texts += [r'\boxed{\frac{1}{2}}', rf'\boxed{{{bomb}}}', r'\boxed{1/3}']
    expected += [1.0, None, 0.0]
  with pool.Pool('math', workers=2, timeout_s=2, memory_mb=1024) as found:
    grades = found.grade(texts, [{'answer': '0.5'}] * len(texts))
  for value, status, right in zip(grades.values, grades.statuses, expected):
    if right is None:
      assert value in (None, 0.0)
    else:
      assert (value, status) == (right, 'ok')
  assert 'timeout' in grades.statuses


@pytest.mark.full
def test_hostile_mathematics_in_bulk():
  """500 random strings of LaTeX: none is credited, none takes others along."""
  pytest.importorskip('math_verify')
  pieces = [r'\frac', '{', '}', '^', '_', 'x', '9', '99', r'\sqrt', '(', ')']
  pieces += [r'\sum', r'\int', '=', ',', r'\text{', '!', r'\infty', r'\left(']
  rng = random.Random(0)
  texts = [
    r'\boxed{' + ''.join(rng.choices(pieces, k=rng.randrange(1, 25))) + '}'
    for _ in range(500)
  ]
  with pool.Pool('math', workers=2, timeout_s=3, memory_mb=1024) as found:
    grades = found.grade(
      texts + [r'\boxed{0.125}'], [{'answer': r'\frac{1}{8}'}] * 501
    )
  assert grades.values[-1] == 1.0
  assert 1.0 not in grades.values[:-1]
  assert grades.statuses.count('ok') > 400


# ---- the pool with each verifier


def test_every_verifier_has_a_path():
  for name, path in verifiers.VERIFIERS.items():
    assert verifiers.path_of(name) == path
  for name in ('integer', 'text'):
    assert callable(verifiers.resolve(name))


@pytest.mark.parametrize(
  'verifier, good, bad, message',
  [
    ('integer', ['7', '1,024', '$-3$'], ['it is about 0', '1/2'], 'no integer'),
    ('text', ['yes'], ['', '$.'], 'is empty'),
    (
      'math',
      [
        '7',
        '1{,}024',
        r'\boxed{5}',
        r'\frac{1}{2}',
        r'\{1, 2\}',
        'Evelyn',
        '???',
      ],
      [r'\frac{', '}{', r'\text{yes'],
      'its braces do not match',
    ),
    ('math', [], ['', ' '], 'is empty'),
    ('json:dumps', ['anything', ''], [], ''),
  ],
)
def test_right_answers_that_none_could_match(verifier, good, bad, message):
  check = verifiers.gold_check_of(verifier)
  for answer in good:
    check({'answer': answer})
  for answer in bad:
    with pytest.raises(ValueError, match=message) as caught:
      check({'answer': answer})
    assert '\n' not in str(caught.value)


def test_right_answers_of_mathematics_are_not_parsed(monkeypatch):
  """A data set of thousands is looked at before a run."""
  monkeypatch.setattr(mathematics, '_parse', None)
  for answer in ('7', r'\boxed{5}', r'x^2 + \sqrt{3}', '9^{9^{9^9}}'):
    mathematics.check_gold({'answer': answer})


def test_no_false_alarm_about_time_limits(run_python):
  code = """
import logging, sys
from meta_rl import verifiers
sys.stderr = sys.stdout
verifiers.resolve('math')
logging.getLogger('math_verify.parser').warning('another')
"""
  found = run_python(code)
  assert 'Timeout is disabled' not in found
  assert 'another' in found


def test_integers_fast_enough():
  """At least 500 rows a second (issue: on two cores)."""
  texts = [rf'It is \boxed{{{i}}}' for i in range(2000)]
  records = [{'answer': str(i - i % 2)} for i in range(2000)]
  with pool.Pool('integer', workers=2) as found:
    found.grade(texts[:100], records[:100])
    grades = found.grade(texts, records)
  assert grades.scores() == [1.0, 0.0] * 1000
  assert grades.seconds < 4


STAND_IN = """
import types
class Add:
  def __init__(self, high=50, **_):
    self.high = high
  def score_answer(self, answer, entry):
    if answer == 'hang':
      while True: pass
    return 1.0 if int(answer) == int(entry['answer']) % self.high else 0.01
factory = types.SimpleNamespace(
  DATASETS={'add': None}, create_dataset=lambda name, **config: Add(**config))
"""


def test_reasoning_gym_in_the_pool(tmp_path, monkeypatch):
  """On a stand-in: partial scores are wrong, options reach the worker."""
  (tmp_path / 'reasoning_gym.py').write_text(STAND_IN)
  monkeypatch.syspath_prepend(tmp_path)
  record = {'task': 'add', 'answer': '7', 'metadata': {}}
  other = record | {'options': {'high': 5}}
  unknown = record | {'task': 'adds'}
  with pool.Pool('reasoning_gym', workers=1, timeout_s=1.5) as found:
    grades = found.grade(
      ['7', '6', '7', '2', 'seven', 'hang', '7', '7'],
      [record, record, other, other, record, record, unknown, record],
    )
  assert grades.scores() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
  assert list(grades.statuses[4:]) == ['error', 'timeout', 'error', 'ok']
  assert "no reasoning-gym task 'adds': did you mean add" in grades.details[6]


def test_a_verifier_of_the_users_own_that_is_broken(tmp_path, monkeypatch):
  (tmp_path / 'own_verifier.py').write_text(
    'def same(answer, gold):\n  return float(answer == gold.strip())\n'
    'def some(answer, record):\n  return 1 / (answer != "bad")\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  answers, records = ['1'] * 8, [{'answer': '1'}] * 8
  with pool.Pool('own_verifier:same', workers=1) as found:
    with pytest.raises(
      VerifierError, match=r"first 8 answers .*'strip'.*grade\(answer, record"
    ) as error:
      found.grade(answers, records)
    assert '\n' not in str(error.value)
    assert set(found.grade(answers[:7], records[:7]).statuses) == {'error'}
  with pool.Pool('own_verifier:some', workers=1) as found:
    # One that has graded answers meets bad ones.
    assert set(found.grade(answers, records).statuses) == {'ok'}
    assert set(found.grade(['bad'] * 8, records).statuses) == {'error'}
