"""pass@k, maj@k and the vote at each boundary."""

import dataclasses
import functools

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


def votes_of(found, trained, monkeypatch, **options):
  """`votes_at_boundaries` of answers by hand; one votes for its first token."""
  asked = []

  def measure(*args, **given):
    asked.append(given)
    return found

  monkeypatch.setattr(held_out, 'measure', measure)
  rows = len(found['answer_count'])
  problems = problems_of(trained, rows, rows)
  kit = dataclasses.replace(
    problems.kit, vote=lambda ids: ids[0] if ids else None
  )
  found = eval_samples.votes_at_boundaries(
    dataclasses.replace(problems, kit=kit),
    *(None, None, jax.random.key(0)),
    stop_length=2,
    **options,
  )
  (given,) = asked
  assert given['grade_only']
  assert given['votes_key'] is not None
  return found


def answers_by_hand():
  """Two traces, of one episode and of none; 4 answers of 1 to 2 tokens."""
  tokens = np.array(
    [
      # 7 is right. Past the last boundary stands what must not be seen.
      [[7, 7, 8, 9], [7, 7, 7, 8], [7, 7, 7, 7]],
      [[7, 8, 8, 9], [7, 7, 7, 7], [7, 7, 7, 7]],
    ]
  )
  lengths = np.ones((2, 3, 4), int)
  lengths[0, 1] = 2
  lengths[1, 0] = [2, 2, 2, 2]
  log_probs = np.full((2, 3, 4, 2), np.nan)
  log_probs[..., 0] = -1.0
  log_probs[0, 1, :, 1] = -1.0
  log_probs[1, 0, :, 1] = [0.0, -2.0, -2.0, -2.0]
  return {
    'answers': np.stack([tokens, np.full_like(tokens, 1)], -1),
    'answer_mask': np.arange(2) < lengths[..., None],
    'answer_rewards': (tokens == 7).astype(np.float32),
    'answer_log_probs': log_probs,
    'answer_ends': np.array([[6, 15, 99], [6, 88, 99]]),
    'answer_count': np.array([1, 0]),
  }


def test_votes_of_two_traces_by_hand(trained, monkeypatch):
  found = votes_of(answers_by_hand(), trained, monkeypatch)
  assert (found['problems'], found['answers']) == (2, 4)
  assert found['weighted'] is False
  assert found['sizes'] == [1, 2, 4]
  # Trace 0: prefixes 0 + 2 and 9 + 2, answers of 1 and 2 tokens. Trace 1 stands
  # with its only boundary, a prefix of 2 and answers of 2.
  assert found['1']['tokens'] == [(3 + 4) / 2, (13 + 4) / 2, (13 + 4) / 2]
  assert found['2']['tokens'] == [(4 + 6) / 2, (15 + 6) / 2, (15 + 6) / 2]
  assert found['4']['tokens'] == [(6 + 10) / 2, (19 + 10) / 2, (19 + 10) / 2]
  assert found['1']['accuracy'] == [3 / 8, 4 / 8, 4 / 8]
  # Of all four: 7 7 8 9 is won, 7 7 7 8 too; 7 8 8 9 is lost.
  assert found['4']['accuracy'] == [1 / 2, 1 / 2, 1 / 2]
  # Pairs of 7 7 8 9: 77 1, 78 and 79 1/2 twice each, 89 0: 3/6; of 7 7 7 8:
  # 1 thrice, 1/2 thrice: 3/4; of 7 8 8 9: 1/2 thrice of 6.
  expected = np.mean([[3 / 6, 3 / 4, 3 / 4], [1 / 4, 1 / 4, 1 / 4]], axis=0)
  assert found['2']['accuracy'] == pytest.approx(expected)
  # Trace 0 thinks from 1/2 at 3 tokens to 3/4 at 13; 4 answers cost 6.
  on = 1 / 2 + (6 - 3) / (13 - 3) / 4
  assert found['4']['thinking_on'][0] == pytest.approx((on + 1 / 4) / 2)


def test_votes_weigh_what_they_are_likely(trained, monkeypatch):
  found = votes_of(answers_by_hand(), trained, monkeypatch, weighted=True)
  assert found['weighted'] is True
  # Trace 1: mean log-probs -1/2 of the 7, -3/2 of the others: 2^(-1/2) against
  # 2 · 2^(-3/2), a tie. Powers of e, or sums of logs, would have the 7 win.
  assert found['4']['accuracy'] == [3 / 4, 3 / 4, 3 / 4]
  none = {'answer_mask': np.zeros((1, 1, 1, 2), bool)}
  none['answer_log_probs'] = np.full((1, 1, 1, 2), np.nan)
  assert eval_samples._mean_log_probs(none).tolist() == [[[0]]]


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
  assert result['1']['tokens'][0] == pytest.approx(tokens)
