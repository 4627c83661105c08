"""What to sample for the protocol, and rows of what was sampled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, counting_model

from meta_rl import external, prover
from meta_rl.chat_template import thinking
from meta_rl.protocol import prompts
from meta_rl.protocol.grades import grade_rows
from meta_rl.protocol.rows import read_rows

# Four episodes by the rule of `episodes.split_text`, of three paragraphs each.
PARTS = ['a\n\nb\n\nc', 'Wait, d\n\ne\n\nf', 'Wait, g\n\nh\n\ni', 'Wait, j']
THOUGHT = '\n\n'.join(PARTS)
STOP = (
  "Time is up.\n\nGiven the time I've spent and the approaches I've tried, I "
  'should stop thinking and formulate a final answer based on what I already '
  'have.\n</think>\n\n**Step-by-Step Explanation and Answer:**\n\n1. **'
)


def test_prefixes():
  assert prompts.prefixes(THOUGHT, group_size=2) == [
    '',
    '\n\n'.join(PARTS[:2]),
    THOUGHT,
  ]
  assert prompts.prefixes(THOUGHT) == ['', THOUGHT]  # merged by 10
  assert len(prompts.prefixes(THOUGHT, group_size=1)) == 5
  assert len(prompts.prefixes(THOUGHT, group_size=1, max_cuts=1)) == 3
  assert prompts.prefixes('') == ['', '']
  # 99 cuts: 100 episodes at most, merged by 10.
  long = '\n\n'.join(['Wait\n\nx\n\ny'] * 150)
  assert len(prompts.prefixes(long)) == 11


def test_forced_prompts():
  """As the official strings have it: the whole thought is closed only."""
  found = prompts.forced_prompts('Q<think>\n', THOUGHT, group_size=2)
  assert found == [
    'Q<think>\n' + STOP,
    f'Q<think>\n{PARTS[0]}\n\n{PARTS[1]}\n\n{STOP}',
    f'Q<think>\n{THOUGHT}\n</think>',
  ]
  own = thinking('r1', termination='Stop.', answer_prefix='')
  found = prompts.forced_prompts('Q', 'a', style=own)
  assert found == ['QStop.\n</think>', 'Qa\n</think>']


def test_budget_forcing():
  asked = [prompts.go_on('t', waits) for waits in range(5)]
  assert asked == [
    't\nWait',
    't\nBut wait',
    't\nAlternatively',
    't\nBut hold on',
    't\nWait',
  ]
  assert prompts.finished(', so\n\nx = 1\n\nand th') == ', so\n\nx = 1\n'
  assert prompts.finished(' all in one paragraph') == '\n'
  with pytest.raises(ValueError, match='waits must be a whole number >= 0'):
    prompts.go_on('t', -1)


def test_answers_of_an_engine():
  output = {
    'prompt_token_ids': [1, 2],
    'outputs': [
      {
        'token_ids': [5, 6],
        'text': r'\boxed{7}',
        'logprobs': [{5: {'logprob': -0.5}}, {6: {'logprob': -0.1}}],
      }
    ],
  }
  (row,) = external.from_vllm(output)
  answer = prompts.answer_of(row)
  assert answer == {
    'text': r'\boxed{7}',
    'tokens': 2,
    'log_prob': pytest.approx(-0.3),
  }
  with pytest.raises(ValueError, match='"response" and "log_probs" are needed'):
    prompts.answer_of({'response': 'x'})


# Tokens are written as their numbers; 9 stops, 3 opens a box and 4 closes it.
WORDS = {3: r'\boxed{', 4: '}'}
decode = lambda ids: ' '.join(WORDS.get(i, str(i)) for i in ids)


def measured():
  """Two traces of problem 1 and one of problem 0; 0 is padding."""
  return {
    'tokens': np.array(
      [[0, 5, 6, 6, 6], [5, 5, 6, 6, 0], [0, 0, 5, 6, 0]], np.int32
    ),
    'token_mask': np.array(
      [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]], bool
    ),
    'ends': np.array([[1, 2, 4], [1, 3, 3], [2, 2, 2]]),
    'count': np.array([2, 1, 0]),
    'problem': np.array([1, 1, 0]),
  }


def test_rows_of_arrays_by_hand(tmp_path):
  answers = np.tile(np.array([[3, 7, 4], [3, 8, 4]], np.int32), (3, 3, 1, 1))
  mask = np.ones(answers.shape, bool)
  mask[:, :, 1, 2] = False  # the second answer does not close its box
  log_probs = np.tile([[-1.0, -0.5, 0.0]], (3, 3, 2, 1))
  given = {'golds': ['70', '7'], 'decode': decode, 'stop_ids': [9, 9]}
  rows = prompts.rows_of_arrays(measured(), answers, mask, log_probs, **given)
  assert [(r['problem'], r['trace'], r['gold']) for r in rows] == [
    (1, 0, '7'),
    (1, 1, '7'),
    (0, 0, '70'),
  ]
  # Two stop tokens behind one, two and four tokens, prompt included.
  assert [p['tokens'] for p in rows[0]['points']] == [3, 4, 6]
  assert [p['tokens'] for p in rows[1]['points']] == [4, 6]
  assert [p['tokens'] for p in rows[2]['points']] == [3]
  assert rows[0]['points'][1]['text'] == '5 69 9'
  assert rows[0]['points'][0]['answers'] == [
    {'text': r'\boxed{ 7 }', 'tokens': 3, 'log_prob': -0.5},
    {'text': r'\boxed{ 8', 'tokens': 2, 'log_prob': -0.75},
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(json.dumps(row) for row in rows))
  traces, _ = grade_rows(read_rows(path), verifier='exact')
  assert traces[0].points[2].right.tolist() == [True, False]
  assert traces[2].points[0].right.tolist() == [False, False]
  # Boundaries merged by two: the first and the last.
  rows = prompts.rows_of_arrays(
    measured(), answers, mask, log_probs, group_size=2, **given
  )
  assert [p['tokens'] for p in rows[0]['points']] == [3, 6]
  assert [p['tokens'] for p in rows[1]['points']] == [4, 6]


def test_rows_of_arrays_with_an_opened_box_and_grades():
  answers = np.full((3, 3, 1, 2), 7, np.int32)
  mask = np.zeros(answers.shape, bool)
  mask[..., 0] = True
  mask[0, 1] = False  # nothing was drawn
  rows = prompts.rows_of_arrays(
    measured(),
    answers,
    mask,
    np.zeros(answers.shape),
    golds=['70', '7'],
    decode=decode,
    stop_ids=[9, 3],
    answer_prefix=r'\boxed{',
    correct=np.ones((3, 3, 1), bool),
  )
  assert rows[0]['points'][0]['answers'] == [
    {'text': r'\boxed{7', 'tokens': 1, 'log_prob': 0.0, 'correct': True}
  ]
  assert rows[0]['points'][0]['text'] == '59 '
  assert rows[0]['points'][1]['answers'] == [
    {'text': r'\boxed{', 'tokens': 0, 'correct': True}
  ]


def test_rows_of_arrays_refuses_other_shapes():
  answers = np.zeros((3, 3, 2, 4), np.int32)
  given = {'golds': ['70', '7'], 'decode': decode, 'stop_ids': [9]}
  for changes, line in (
    ({'answers': answers[:2]}, r'answers has shape \(2, 3, 2, 4\)'),
    ({'answer_mask': answers[0]}, r'answer_mask has shape \(3, 2, 4\)'),
    ({'log_probs': answers[0]}, 'log_probs has shape'),
    ({'correct': answers}, r'correct has shape .*\(3, 3, 2\) is'),
    ({'group_size': 0}, 'group_size must be a whole number >= 1'),
  ):
    arrays = {
      'answers': answers,
      'answer_mask': answers > 0,
      'log_probs': answers * 0.0,
    }
    with pytest.raises(ValueError, match=line):
      prompts.rows_of_arrays(measured(), **arrays | given | changes)


def test_what_the_prover_sampled(tmp_path):
  """From `sample_answers` to grades: the share is that of the arrays."""
  own = measured()
  logits = np.full((6, 10), -9.0, np.float32)
  logits[:, [7, 8]] = [1.0, 0.5]
  answers, mask, log_probs = prover.sample_answers(
    counting_model(),
    jnp.asarray(logits),
    own['tokens'],
    own['token_mask'],
    own['ends'],
    jax.random.key(0),
    num_branches=8,
    max_answer_len=1,
    stop_ids=[9],
    eos_id=2,
    return_log_probs=True,
  )
  assert SPECIAL == 7  # what it counts may be an answer
  rows = prompts.rows_of_arrays(
    own,
    *map(np.asarray, (answers, mask, log_probs)),
    golds=['8', '7'],
    decode=lambda ids: ''.join(rf'\boxed{{{i}}}' for i in ids),
    stop_ids=[9],
  )
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(json.dumps(row) for row in rows))
  traces, _ = grade_rows(read_rows(path), verifier='exact')
  drawn, shares = np.asarray(answers)[..., 0], []
  for i, (trace, gold) in enumerate(zip(traces, [7, 7, 8])):
    for j, point in enumerate(trace.points):
      np.testing.assert_array_equal(point.right, drawn[i, j] == gold)
      shares += point.right.tolist()
      expected = np.asarray(log_probs)[i, j, :, 0]
      np.testing.assert_allclose(
        point.log_probs, np.minimum(expected, 0), rtol=1e-6
      )
  assert 0 < np.mean(shares) < 1
