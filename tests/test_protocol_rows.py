r"""Files of forced answers: what is read, what is refused, how it is graded."""

import copy
import json
import re

import numpy as np
import pytest

from meta_rl.protocol import grades
from meta_rl.protocol.grades import grade_rows, last_match
from meta_rl.protocol.rows import read_rows

ROW = {
  'problem': 'aime-1',
  'trace': 0,
  'gold': 70,
  'points': [
    {
      'tokens': 100,
      'answers': [{'text': r'\boxed{70}', 'tokens': 5, 'log_prob': -0.5}],
    },
    {
      'tokens': 900,
      'waits': 2,
      'stop': '</think>',
      'answers': [
        {'ids': [1, 2, 3], 'log_probs': [-0.5, None, -0.25]},
        {'answer': None, 'tokens': 7},
      ],
    },
  ],
}


def write(tmp_path, *records):
  path = tmp_path / 'traces.jsonl'
  path.write_text('\n\n'.join(json.dumps(record) for record in records))
  return path


def changed(value, *keys):
  """ROW with another value at a place; DROP takes the key away."""
  row = copy.deepcopy(ROW)
  inner = row
  for key in keys[:-1]:
    inner = inner[key]
  if value is DROP:
    del inner[keys[-1]]
  else:
    inner[keys[-1]] = value
  return row


DROP = object()
decode = lambda ids: 'ids' + ' '.join(map(str, ids))


def test_a_row(tmp_path):
  (row,) = read_rows(write(tmp_path, ROW), decode=decode)
  assert (row.line, row.problem, row.gold) == (1, 'aime-1', '70')
  first, last = row.points
  assert (first.tokens, first.waits, first.stop, first.text) == (
    100,
    0,
    '',
    None,
  )
  assert (last.tokens, last.waits, last.stop) == (900, 2, '</think>')
  assert first.answers[0].log_prob == -0.5
  one, two = last.answers
  assert (one.text, one.tokens) == ('ids1 2 3', 3)
  assert one.log_prob == pytest.approx(-0.375)  # of the two that were drawn
  assert (two.text, two.answer, two.tokens) == (None, None, 7)
  assert np.isnan(two.log_prob)


def test_tokens_are_counted_where_they_are_not_given(tmp_path):
  row = changed(DROP, 'points', 0, 'answers', 0, 'tokens')
  (read,) = read_rows(write(tmp_path, row), encode=str.split, decode=decode)
  assert read.points[0].answers[0].tokens == 1


def test_lines_are_counted_blank_ones_too(tmp_path):
  read = read_rows(
    write(tmp_path, ROW, changed(1, 'trace'), changed(DROP, 'trace')),
    decode=decode,
  )
  assert [row.line for row in read] == [1, 3, 5]


ANSWER = ('points', 0, 'answers', 0)


@pytest.mark.parametrize(
  'row, line',
  [
    (changed(DROP, 'problem'), '"problem" is None: give a text or a number'),
    (changed(True, 'problem'), '"problem" is True'),
    (changed('', 'problem'), '"problem" is \'\': give'),
    (changed(1.5, 'trace'), '"trace" is 1.5'),
    (changed(DROP, 'gold'), '"gold" is None: give the right answer'),
    (changed(['70'], 'gold'), '"gold" is ['),
    (changed(' ', 'gold'), '"gold" is empty'),
    (changed([], 'points'), '"points" is []: give a list'),
    (changed({}, 'points'), '"points" is {}'),
    (changed([7], 'points'), 'point 0: it is 7: give an object'),
    (changed(-1, 'points', 0, 'tokens'), 'point 0: "tokens" is -1'),
    (changed(1.0, 'points', 0, 'tokens'), 'point 0: "tokens" is 1.0'),
    (changed(DROP, 'points', 1, 'tokens'), 'point 1: "tokens" is None'),
    (changed(3, 'points', 0, 'text'), 'point 0: "text" is 3: give a text'),
    (changed(3, 'points', 1, 'stop'), 'point 1: "stop" is 3'),
    (changed([], 'points', 0, 'answers'), 'point 0: "answers" is []'),
    (changed('x', 'points', 1, 'waits'), 'point 1: "waits" is'),
    (changed(1, 'points', 0, 'waits'), 'point 0 has "waits": begin with'),
    (changed([], *ANSWER), 'point 0: answer 0: it is []: give an object'),
    (changed({'tokens': 1}, *ANSWER), 'give "text", "ids" or "answer"'),
    (changed(5, *ANSWER, 'text'), '"text" is 5'),
    (changed(DROP, *ANSWER, 'tokens'), 'it has no "tokens"'),
    (changed('1', *ANSWER, 'tokens'), '"tokens" is \'1\''),
    (changed([1, 'a'], *ANSWER, 'ids'), '"ids" must be a list of token ids'),
    (changed([-1], *ANSWER, 'ids'), '"ids" must be'),
    (changed(0.1, *ANSWER, 'log_prob'), '"log_prob" is 0.1: give nats'),
    (changed(float('nan'), *ANSWER, 'log_prob'), '"log_prob" is nan'),
    (changed(float('-inf'), *ANSWER, 'log_prob'), '"log_prob" is -inf'),
    (changed([None], *ANSWER, 'log_probs'), '"log_probs" must be a list'),
    (changed([0.5], *ANSWER, 'log_probs'), '"log_probs" must be a list'),
    (changed(1, *ANSWER, 'correct'), '"correct" is 1: give true or false'),
    (changed(5, *ANSWER, 'answer'), '"answer" is 5: give a text, or null'),
  ],
)
def test_rows_that_are_refused(row, line, tmp_path):
  path = write(tmp_path, changed(9, 'trace'), row)
  with pytest.raises(ValueError, match=re.escape(line)) as error:
    read_rows(path, decode=decode)
  assert str(error.value).startswith(f'{path}, line 3: ')
  assert '\n' not in str(error.value)


def test_more_that_is_refused(tmp_path):
  refused = lambda line, *rows, **options: pytest.raises(
    ValueError, match=re.escape(line)
  )
  waits = copy.deepcopy(ROW)
  waits['points'].append(waits['points'][1])
  with refused('the points have [0, 2, 2] waits'):
    read_rows(write(tmp_path, waits), decode=decode)
  waits['points'][2] = waits['points'][0]
  with refused('the points have [0, 2, 0] waits'):
    read_rows(write(tmp_path, waits), decode=decode)
  with refused('"ids" without "text": name a tokenizer'):
    read_rows(write(tmp_path, ROW))
  with refused(
    "line 3: problem 'aime-1' has gold '71' here and '70' in line 1"
  ):
    read_rows(write(tmp_path, ROW, changed(71, 'gold')), decode=decode)
  with refused("line 3: trace 0 of problem 'aime-1' was given in line 1"):
    read_rows(write(tmp_path, ROW, ROW), decode=decode)
  with refused('has no row'):
    read_rows(write(tmp_path), decode=decode)


# Grades.


def graded(tmp_path, texts, *, gold='70', stop='', verifier='exact', **more):
  answers = [
    {'text': t, 'tokens': 1} if isinstance(t, str) else t | {'tokens': 1}
    for t in texts
  ]
  row = {
    'problem': 1,
    'gold': gold,
    'points': [{'tokens': 0, 'stop': stop, 'answers': answers}],
  }
  (trace,), failed = grade_rows(
    read_rows(write(tmp_path, row)), verifier=verifier, **more
  )
  assert failed == 0
  (point,) = trace.points
  return point.right.tolist(), list(point.votes)


def test_texts_and_numbers(tmp_path):
  texts = [r'\boxed{70}', r'\boxed{ 070.0 }', r'\boxed{$70$}', r'\boxed{7}']
  texts += [
    r'\boxed{}',
    'seventy',
    r'\boxed{140/2}',
    r'\boxed{70',
    r'\boxed{x}',
  ]
  right, votes = graded(tmp_path, texts)
  assert right == [True, True, True, False, False, False, True, False, False]
  none = [None, None]
  assert votes == [*['right'] * 3, '7', *none, 'right', None, 'x']
  texts = [r'\boxed{0.5}', r'\boxed{\frac12}', r'\boxed{\dfrac{2}{4}}']
  texts += [r'\boxed{-\frac{1}{2}}', r'\boxed{1/0}', r'\boxed{.5}']
  right, votes = graded(tmp_path, texts, gold='1/2')
  assert right == [True, True, True, False, False, True]
  # Wrong answers are one if their normal forms are.
  _, votes = graded(tmp_path, [r'\boxed{\dfrac12}', r'\boxed{ \frac12 }'])
  assert votes[0] == votes[1] != 'right'


def test_an_answer_counts_behind_its_stop(tmp_path):
  texts = [r'\boxed{70} </think> so', r'no </think> \boxed{70}', r'\boxed{70}']
  right, votes = graded(tmp_path, texts, stop='</think>')
  assert right == [False, True, False]
  assert votes == [None, 'right', None]


def test_answers_and_grades_of_the_file(tmp_path):
  given = [
    {'answer': '70'},
    {'answer': '71'},
    {'answer': None},
    {'answer': '71', 'correct': True},
    {'text': r'\boxed{70}', 'correct': False},
  ]
  right, votes = graded(tmp_path, given)
  assert right == [True, False, False, True, False]
  assert votes == ['right', '71', None, 'right', '70']


def test_mathematics_where_it_is_installed(tmp_path):
  """math-verify sees what texts and numbers do not decide."""
  pytest.importorskip('math_verify')
  assert grades.default_verifier() == 'math'
  texts = [r'\boxed{\sqrt{8}}', r'\boxed{2\sqrt{2}}', r'\boxed{2}']
  right, votes = graded(tmp_path, texts, gold=r'2\sqrt{2}', verifier=None)
  assert right == [True, True, False]
  assert votes == ['right', 'right', '2']
  right, _ = graded(tmp_path, texts, gold=r'2\sqrt{2}')
  assert right == [False, True, False]


def test_without_math_verify(monkeypatch):
  monkeypatch.setattr(grades.importlib.util, 'find_spec', lambda name: None)
  assert grades.default_verifier() == 'exact'


def test_grading_refuses(tmp_path):
  with pytest.raises(ValueError, match="verifier='integer': one of"):
    graded(tmp_path, ['x'], verifier='integer')
  for fault in ('thought_boxes', 'brace_pattern'):
    for given in ({'answer': '70'}, {'text': '70', 'correct': True}):
      with pytest.raises(ValueError, match=f"line 1: compat='{fault}' grades"):
        graded(tmp_path, [given], faults=[fault])
  with pytest.raises(ValueError, match='give each point its "text"'):
    graded(tmp_path, ['x'], faults=['thought_boxes'])


@pytest.mark.parametrize(
  'text, expected',
  [
    (r'\boxed{7}', '7'),
    (r'boxed{7} and \boxed{8}', '8'),
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{\frac{1}{\sqrt{2}}}', r'\frac{1}{\sqrt{2}'),
    (r'\boxed{7} then \boxed{8', '7'),
    (r'\boxed{{8', None),
    (r'\boxed{a \boxed{8}', r'8'),
    (r'\boxed{}', ''),
    ('none', None),
  ],
)
def test_the_official_pattern(text, expected):
  assert last_match(text) == expected
