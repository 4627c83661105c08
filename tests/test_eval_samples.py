"""pass@k, maj@k and the vote at each boundary."""

import functools
import itertools

import jax
import numpy as np
import pytest
from test_evaluation import (
  measured_by_hand,
  params_of,
  problems_of,
)

from meta_rl import eval_samples, held_out, setup_run, tokenizer
from meta_rl.eval_samples import RIGHT

pytest_plugins = ['small_runs']


def test_pass_and_majority_of_two_problems(trained, small, monkeypatch):
  found = measured_by_hand(8)
  # Problem 0: right, right, and one wrong answer twice: a tie of two.
  # Problem 1: right once; the others end without an answer.
  found['rewards'] = np.array([1, 1, 0, 0, 1, 0, 0, 0], np.float32)
  last = found['tokens'].shape[1] - 1
  found['tokens'][:, last] = tokenizer.integer(5)  # of value 5
  found['token_mask'][:, last] = True
  found['stop_index'] = np.full(8, last - 1)
  found['stop_index'][5:] = last  # nothing behind it
  monkeypatch.setattr(held_out, 'measure', lambda *args, **options: found)
  measured = functools.partial(
    eval_samples.several_samples,
    problems_of(trained, 2, 8),
    *(None, None, jax.random.key(0)),
    samples=4,
  )
  result, rates = measured()
  assert rates.tolist() == [1 / 2, 1 / 4]
  # pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2.
  assert result['pass@k'] == pytest.approx(
    {'1': (1 / 2 + 1 / 4) / 2, '2': (5 / 6 + 1 / 2) / 2, '4': 1.0}
  )
  # maj@4: 1/2 by the tie, and 1 since no answer has no vote.
  assert result['maj@k']['4'] == pytest.approx((1 / 2 + 1) / 2)
  assert result['maj@k']['1'] == pytest.approx((1 / 2 + 1 / 4) / 2)
  # What was forced is no part of the answer, nor of its vote.
  found['forced'] = np.array([False, False, True, True] + [False] * 4)
  found['stop_index'][2:4] = last - 3
  found['tokens'][2:4, last - 2 : last] = tokenizer.integer(7)
  found['token_mask'][2:4, last - 2 : last] = True
  assert measured(stop_length=3)[0] == result


# ---- votes at boundaries


def figures(votes, elapsed, count, answer_tokens, **options):
  """`vote_figures` of lists."""
  return eval_samples.vote_figures(
    votes,
    elapsed=np.array(elapsed),
    count=np.array(count),
    answer_tokens=np.array(answer_tokens),
    clusters=np.arange(len(votes)),
    **options,
  )


def test_one_trace_that_votes_by_hand():
  r = RIGHT
  votes = [
    [
      [r, 'a', 'b', 'c'],  # of 6 pairs 3 hold r, and tie: 1/4. Of all: 1/4
      [r, r, 'a', None],  # pairs: rr 1, ra 1/2 twice, r– 1 twice, a– 0: 4/6
      [r, r, r, 'a'],  # pairs: rr 1 thrice, ra 1/2 thrice: 3/4. Of all: 1
    ]
  ]
  found = figures(votes, [[0, 10, 20]], [2], [[5.0, 5.0, 6.0]])
  assert (found['problems'], found['answers']) == (1, 4)
  assert not found['weighted']
  assert found['pass@1'] == {
    'tokens': [5, 15, 26],
    'accuracy': [1 / 4, 2 / 4, 3 / 4],
  }
  assert set(found['maj@p']) == {'2', '4'}
  two, four = found['maj@p']['2'], found['maj@p']['4']
  assert two['tokens'] == [10, 20, 32]
  assert two['accuracy'] == pytest.approx([1 / 4, 4 / 6, 3 / 4])
  # 10 tokens pay for 0 episodes and an answer, 20 for one, 32 for both.
  assert two['equal_tokens'] == [1 / 4, 2 / 4, 3 / 4]
  assert four['tokens'] == [20, 30, 44]
  assert four['accuracy'] == [1 / 4, 1, 1]
  # 20 tokens: 15 would do for one episode; 30: 26 for both.
  assert four['equal_tokens'] == [2 / 4, 3 / 4, 3 / 4]
  differences = [each['mean'] for each in four['difference']]
  assert differences == [-1 / 4, 1 / 4, 1 / 4]


def test_a_trace_that_stopped_stands_with_its_last_boundary():
  r = RIGHT
  rubbish = [r, r]
  votes = [
    [[r, 'a'], [r, r], rubbish],
    [['a', 'a'], rubbish, rubbish],  # it stopped at once
  ]
  found = figures(
    votes,
    [[0, 8, 18], [0, 0, 0]],
    [1, 0],
    [[2.0, 2.0, 1.0], [4.0, 1.0, 1.0]],
  )
  assert found['pass@1']['tokens'] == [(2 + 4) / 2, (10 + 4) / 2, (10 + 4) / 2]
  assert found['pass@1']['accuracy'] == [1 / 4, 1 / 2, 1 / 2]
  two = found['maj@p']['2']
  assert two['tokens'] == [(4 + 8) / 2, (12 + 8) / 2, (12 + 8) / 2]
  assert two['accuracy'] == [1 / 4, 1 / 2, 1 / 2]
  assert two['equal_tokens'] == [1 / 4, 1 / 2, 1 / 2]


def test_equal_tokens_by_a_loop():
  rng = np.random.default_rng(0)
  rows, width, answers = 12, 5, 4
  votes = [
    [[RIGHT if x < 0.4 else x > 0.7 for x in at] for at in row]
    for row in rng.uniform(size=(rows, width, answers))
  ]
  count = rng.integers(0, width, rows)
  elapsed = rng.integers(1, 9, (rows, width)).cumsum(1)
  tokens = rng.uniform(1, 6, (rows, width))
  found = figures(votes, elapsed, count, tokens)
  for p, j in itertools.product((2, 4), range(width)):
    expected = []
    for i in range(rows):
      own = min(j, count[i])
      spent = elapsed[i, own] + p * tokens[i, own]
      last = max(
        k for k in range(count[i] + 1) if elapsed[i, k] + tokens[i, k] <= spent
      )
      expected.append(votes[i][last].count(RIGHT) / answers)
    each = found['maj@p'][str(p)]
    assert each['equal_tokens'][j] == pytest.approx(np.mean(expected))


def test_votes_weigh_what_they_are_likely():
  votes = [[[RIGHT, 'a', 'a', 'b']]]
  args = votes, [[0]], [0], [[1.0]]
  alike = figures(*args)['maj@p']['4']['accuracy']
  heavy = figures(*args, weights=np.array([[[0.9, 0.3, 0.3, 0.1]]]))
  assert (alike, heavy['maj@p']['4']['accuracy']) == ([0], [1])
  assert heavy['weighted']
  found = {
    'answer_mask': np.array([[[[True, True, False], [False] * 3]]]),
    'answer_log_probs': np.array([[[[-1.0, -2.0, np.nan], [np.nan] * 3]]]),
  }
  likely = eval_samples._likelihoods(found)
  assert likely.tolist() == [[[pytest.approx(np.exp(-1.5)), 1.0]]]


def test_what_answers_vote_for():
  """What is behind the end of an answer is no part of its vote."""
  asked = []

  def vote(ids):
    asked.append(ids)
    return ids[0] if ids else None

  found = {
    'answers': np.array([[[[7, 1], [7, 2], [8, 2], [9, 9], [7, 3]]]]),
    'answer_mask': np.array(
      [[[[True, False]] * 2 + [[True, True], [False] * 2, [True, False]]]]
    ),
    'answer_rewards': np.array([[[0, 0, 1.0, 0, 1.0]]]),
  }
  assert eval_samples._votes(found, vote) == [[[7, 7, RIGHT, None, RIGHT]]]
  assert asked == [[7], []]  # each once; of right answers none


@pytest.mark.full
def test_answers_that_the_model_gives(trained, small):
  """Forced answers of the headline's traces, in batches of any size."""
  config = trained.config
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  calls = held_out.make_calls(config, model, task, votes=4)
  asked = calls, params_of(trained), jax.random.key(3)
  found = {
    size: problems_of(trained, 6, size).measure(
      *asked, grade_only=True, votes_key=jax.random.key(5)
    )
    for size in (6, 4)
  }
  shape = found[6]['answer_mask'].shape
  assert shape == (6, 4, 4, task.answer_length)
  for name in found[6]:
    if name != 'answer_log_probs':
      assert np.array_equal(found[6][name], found[4][name]), name
  assert calls['votes'].traces == 2  # one a shape
  whole = problems_of(trained, 6, 6).measure(*asked)
  for name in ('ends', 'count'):
    assert np.array_equal(found[6][f'answer_{name}'], whole[name])
  # Of each boundary up to the own stop, and of no other.
  some = found[6]['answer_mask'].any((-1, -2))
  assert np.array_equal(some, np.arange(4) <= whole['count'][:, None])
  result = eval_samples.votes_at_boundaries(
    problems_of(trained, 6, 6), *asked, stop_length=len(task.stop_ids)
  )
  assert (result['problems'], result['answers']) == (6, 4)
  # The same answers by the same key.
  given = problems_of(trained, 6, 6).measure(
    *asked, grade_only=True, votes_key=jax.random.fold_in(asked[-1], 3)
  )
  tokens = given['answer_mask'][:, 0].sum(-1).mean() + len(task.stop_ids)
  assert result['pass@1']['tokens'][0] == pytest.approx(tokens)
