"""Warm-start traces: their form, their truth, their shares."""

import numpy as np
import pytest

from meta_rl import tokenizer
from meta_rl.tasks import countdown, traces


@pytest.fixture(scope='module')
def problems():
  return countdown.prompt_orders(countdown.problem_set('train'), orders=2)


def parse(problem, tokens):
  """Returns the attempts and the answer of a trace, checking its form."""
  tokens = tokens.tolist()
  prompt = countdown.prompt_tokens(problem.numbers, problem.target)
  assert tokens[: len(prompt)] == prompt
  assert tokens[-1] == tokenizer.EOS
  body = tokens[len(prompt) : -1]
  marker = body.index(tokenizer.END_THINK)
  thought, answer = body[:marker], body[marker + 1 :]
  width = 3 * len(problem.numbers)
  assert len(thought) % width == 0
  attempts = [
    thought[start : start + width] for start in range(0, len(thought), width)
  ]
  return attempts, answer


def sample(problems, count, **options):
  """Returns (problem, attempts, answer, successes) of many traces."""
  rng = np.random.default_rng(0)
  rows = []
  for index in rng.integers(len(problems), size=count):
    problem = problems[index]
    tokens, start = traces.sample_trace(problem, rng, **options)
    assert start == len(problem.numbers) + 4
    attempts, answer = parse(problem, tokens)
    right = [attempt[-2] == tokenizer.YES for attempt in attempts]
    rows.append((problem, attempts, answer, right))
  return rows


def test_attempts_are_canonical_and_their_verdicts_true(problems):
  for problem, attempts, answer, right in sample(problems, 300):
    table = {
      annotated: (plain, value)
      for plain, annotated, value in countdown.enumerate_expressions(
        problem.numbers, problem.ops
      )
    }
    latest = None
    for attempt, said in zip(attempts, right, strict=True):
      plain, value = table[tuple(attempt[:-2])]
      assert said == (value == problem.target)
      assert attempt[-2] in (tokenizer.YES, tokenizer.NO)
      assert attempt[-1] == tokenizer.DELIMITER
      latest = plain if said else latest
    assert tuple(answer) in {plain for plain, _ in table.values()}
    if latest is not None:
      assert tuple(answer) == latest


def test_shares_and_hazards(problems):
  rows = sample(problems, 4000)
  lengths = np.asarray([len(attempts) for _, attempts, _, _ in rows])
  assert np.mean(lengths == 0) == pytest.approx(0.1, abs=0.02)
  # 6% long, and a few that never stopped before the 16th episode.
  assert np.mean(lengths > 16) == pytest.approx(0.06, abs=0.015)
  assert lengths.max() == 48
  assert set(range(17)) <= set(lengths.tolist())
  ordinary = [row for row in rows if 1 <= len(row[1]) < 16]
  too_early = [row for row in ordinary if not any(row[3])]
  first = [row[3].index(True) for row in ordinary if any(row[3])]
  went_on = np.mean(
    [len(row[3]) - 1 > f for row, f in zip(ordinary_hits(ordinary), first)]
  )
  # An ordinary trace stops before a success with chance about
  # (1 - q) s / (1 - (1 - q)(1 - s)), q = 0.27, s = 0.08: 0.18; those with
  # small q more often.
  assert 0.15 < len(too_early) / len(ordinary) < 0.3
  assert went_on == pytest.approx(0.25, abs=0.04)


def ordinary_hits(rows):
  return [row for row in rows if any(row[3])]


def test_guesses_are_informed_at_the_given_rate(problems):
  hard = [p for p in problems if countdown.hit_rate(p) < 0.25]
  for chance in (0.0, 1.0):
    rows = sample(hard, 300, direct_share=1, long_share=0, p_informed=chance)
    assert all(not attempts for _, attempts, _, _ in rows)
    hits = [tuple(answer) in p.answers for p, _, answer, _ in rows]
    assert np.mean(hits) == 1 if chance else np.mean(hits) < 0.35


def test_extremes_of_the_options(problems):
  always = sample(problems, 50, direct_share=0, long_share=0, p_stop=1)
  assert {len(attempts) for _, attempts, _, _ in always} <= set(range(1, 17))
  options = {'direct_share': 0, 'long_share': 0, 'p_stop': 0, 'p_continue': 0}
  for _, attempts, _, right in sample(problems, 100, **options):
    assert right.index(True) == len(right) - 1 if any(right) else True
    assert any(right) or len(attempts) == 16
  options = {'p_stop': 0, 'p_continue': 1, 'direct_share': 0, 'long_share': 0}
  rows = sample(problems, 20, **options, ordinary_episodes=5)
  assert {len(attempts) for _, attempts, _, _ in rows} == {5}
  long = sample(problems, 50, long_share=1, direct_share=0, max_episodes=18)
  assert {len(attempts) for _, attempts, _, _ in long} == {17, 18}


def test_four_numbers_and_longest_trace():
  problem = countdown.make_problem((1, 3, 4, 6), 24, '+-*/')
  rng = np.random.default_rng(0)
  options = {'long_share': 1, 'direct_share': 0, 'ordinary_episodes': 47}
  tokens, start = traces.sample_trace(problem, rng, **options)
  assert start == 8
  # 8 of prompt, 48 episodes of 12, the marker, 7 of answer and EOS: 593.
  assert len(tokens) == traces.max_trace_length(4) == 593
  assert traces.max_trace_length(3) == 446


def test_same_state_same_traces(problems):
  one, other = (
    traces.sample_traces(problems, np.random.default_rng(3), 20)
    for _ in range(2)
  )
  for (a, i), (b, j) in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert i == j
    assert a.dtype == np.int32


@pytest.mark.parametrize(
  'options, message',
  [
    ({'p_stop': 1.5}, 'each must be in'),
    ({'p_informed': -0.1}, 'each must be in'),
    ({'direct_share': 0.6, 'long_share': 0.6}, 'sum of the'),
    ({'ordinary_episodes': 0}, 'ordinary_episodes 0'),
    ({'max_episodes': 8}, 'must be in 1..max_episodes'),
  ],
)
def test_bad_options(problems, options, message):
  with pytest.raises(ValueError, match=message):
    traces.sample_trace(problems[0], np.random.default_rng(0), **options)


def test_no_problems():
  with pytest.raises(ValueError, match='no problems'):
    traces.sample_traces([], np.random.default_rng(0), 3)
