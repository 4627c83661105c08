"""[maj@p]_j by hand, against all subsets, and beside thinking on."""

import itertools

import numpy as np
import pytest

from meta_rl import answers as answers_
from meta_rl import votes
from meta_rl.votes import maj_at_p, thinking_on, vote_figures, vote_weights


def one(answers, **options):
  """[maj@p] of one boundary whose truth is 'a'."""
  weights = options.pop('weights', None)
  weights = None if weights is None else [[weights]]
  return maj_at_p([[answers]], 'a', weights=weights, **options)[0, 0]


@pytest.mark.parametrize(
  'answers, p, expected',
  [
    (['a', 'a', 'b', None], 1, 1 / 2),
    # Pairs: aa 1; ab 1/2, twice; a and none 1, twice; b and none 0. 4 of 6.
    (['a', 'a', 'b', None], 2, 4 / 6),
    # aab 1; aa and none 1; ab and none 1/2, twice. 3 of 4.
    (['a', 'a', 'b', None], 3, 3 / 4),
    (['a', 'a', 'b', None], 4, 1),
    (['a', 'b', 'c'], 3, 1 / 2),  # a tie of three is a tie: half
    ([None, None, 'b'], 3, 0),
    ([None, None, None], 2, 0),
    ([None, None, 'a'], 3, 1),  # none never wins
  ],
)
def test_votes_by_hand(answers, p, expected):
  assert one(answers, p=p) == pytest.approx(expected)


def test_weights_by_hand():
  # 2^(mean log-prob): a, a, b weigh 1/2, 1/2 and 1.
  weights = vote_weights([-1.0, -1.0, 0.0])
  np.testing.assert_allclose(weights, [0.5, 0.5, 1])
  # aa wins; ab loses, twice.
  assert one(['a', 'a', 'b'], p=2, weights=weights) == pytest.approx(1 / 3)
  # All: 1 against 1, half. A little less for b, and a wins.
  assert one(['a', 'a', 'b'], weights=weights) == 0.5
  assert one(['a', 'a', 'b'], weights=vote_weights([-1, -1, -0.01])) == 1
  # Three times 0.1 is 0.3 in every order.
  assert one(['a', 'b', 'a', 'a'], weights=[0.1, 0.3, 0.1, 0.1]) == 0.5
  # A vote without weight is none.
  assert one(['a', None], weights=[0.0, 1.0]) == 0
  assert vote_weights(-np.inf) == 0


def test_against_all_subsets():
  """An oracle in plain Python, over random answers and weights."""
  rng = np.random.default_rng(1)
  for _ in range(40):
    size = int(rng.integers(1, 7))
    answers = rng.choice(['a', 'b', 'c', None], size).tolist()
    weights = rng.choice([0.25, 0.5, 1.0], size).tolist()
    for p in range(1, size + 1):
      won = []
      for subset in itertools.combinations(range(size), p):
        total = {}
        for i in subset:
          total[answers[i]] = total.get(answers[i], 0) + weights[i]
        total.pop(None, None)
        right = total.pop('a', 0)
        other = max(total.values(), default=0)
        won.append(1.0 if right > other else 0.5 * (right == other > 0))
      assert one(answers, p=p, weights=weights) == pytest.approx(np.mean(won))


def test_of_two_answers_it_is_maj_at_k():
  """Where no three can tie, sharing a win and halving it are one."""
  rng = np.random.default_rng(2)
  for _ in range(20):
    answers = rng.choice(['a', 'b', None], 6).tolist()
    for p in range(1, 7):
      expected = answers_.maj_at_k(answers, p, 'a')
      assert one(answers, p=p) == pytest.approx(expected)
  assert answers_.maj_at_k(['a', 'b', 'c'], 3, 'a') == pytest.approx(1 / 3)


def test_many_subsets_are_sampled():
  rng = np.random.default_rng(3)
  answers = rng.choice(['a', 'b'], 12).tolist()
  exact = one(answers, p=5)  # 792 subsets
  drawn = one(answers, p=5, max_subsets=500, seed=4)
  assert drawn != exact
  assert drawn == pytest.approx(exact, abs=0.1)
  assert drawn == one(answers, p=5, max_subsets=500, seed=4)


def test_arrays_and_a_truth_a_trace():
  answers = np.array([[[1, 2], [1, 1]], [[1, 2], [1, 1]]])
  np.testing.assert_allclose(
    maj_at_p(answers, [1, 2]), [[0.5, 1.0], [0.5, 0.0]]
  )
  np.testing.assert_allclose(
    maj_at_p(answers, [1, 2], p=1), [[0.5, 1.0], [0.5, 0.0]]
  )
  # Tuples are answers as good as any.
  assert maj_at_p([[[(1, 2), (3, 4)]]], (3, 4)) == 0.5
  labels = votes.labels_of([[['x', None, 'y', 'x']]], 'y')
  np.testing.assert_array_equal(labels, [[[1, -1, 0, 1]]])


def test_blocks_change_nothing(monkeypatch):
  rng = np.random.default_rng(4)
  answers = rng.integers(0, 3, (7, 3, 4))
  whole = maj_at_p(answers, 0, p=2)
  monkeypatch.setattr(votes, '_BLOCK', 1)
  np.testing.assert_array_equal(maj_at_p(answers, 0, p=2), whole)


def test_thinking_on_by_hand():
  # A trace of two boundaries, at 100 and 300 tokens; .2 to .6.
  at = thinking_on([[100, 300]], [[0.2, 0.6]], [[100, 200, 300, 800]])
  np.testing.assert_allclose(at, [[0.2, 0.4, 0.6, 0.6]])
  # Tokens that run backwards are lifted: 300 is reached with .6 and left at .8.
  at = thinking_on([[100, 300, 200]], [[0.2, 0.6, 0.8]], [[200, 300]])
  np.testing.assert_allclose(at, [[0.4, 0.8]])
  at = thinking_on([[300, 100]], [[0.2, 0.6]], [[200, 300]])
  np.testing.assert_allclose(at, [[0.2, 0.6]])


def test_figures_by_hand():
  # Two traces, boundaries at 0 and 100 tokens, answers of 50.
  found = vote_figures(
    [[['a', 'b'], ['a', 'a']], [['b', 'b'], ['a', 'b']]],
    'a',
    prefix_tokens=[[0, 100], [0, 100]],
    answer_tokens=np.full((2, 2, 2), 50.0),
  )
  assert found['sizes'] == [1, 2]
  # One answer: the curve itself, no gain.
  assert found['1']['accuracy'] == [0.25, 0.75]
  assert found['1']['tokens'] == [50, 150]
  assert [g['mean'] for g in found['1']['gain']] == [0, 0]
  # Two: tokens 100 and 200. Trace 0: half, 1; trace 1: 0, half.
  assert found['2']['tokens'] == [100, 200]
  assert found['2']['accuracy'] == [0.25, 0.75]
  # At 100 tokens trace 0 has come from 1/2 to 3/4, trace 1 from 0 to 1/4; at
  # 200 both have ended, at 1 and 1/2.
  assert found['2']['thinking_on'] == [0.5, 0.75]
  gain = found['2']['gain']
  assert gain[0] == {'mean': -0.25, 'low': -0.25, 'high': -0.25}
  assert gain[1]['mean'] == 0
  assert found['2']['low'][1] == 0.5
  assert found['2']['high'][1] == 1


def test_figures_by_clusters():
  """Two traces of one problem are no two problems: no interval is left."""
  found = vote_figures(
    [[['a', 'b'], ['a', 'a']], [['b', 'b'], ['b', 'b']]],
    'a',
    prefix_tokens=[[0, 10], [0, 10]],
    answer_tokens=np.ones((2, 2, 2)),
    clusters=[5, 5],
  )
  for p in '12':
    for j in range(2):
      gain = found[p]['gain'][j]
      assert gain['low'] == gain['mean'] == gain['high']
    assert found[p]['low'] == found[p]['accuracy'] == found[p]['high']
  assert found['2']['gain'][0]['mean'] == pytest.approx(-0.025)  # of -.05 and 0


@pytest.mark.parametrize(
  'options, line',
  [
    ({'p': 3}, r'p=3: 1\.\.2 is allowed for 2 answers'),
    ({'p': 0}, r'p=0: 1\.\.2'),
    ({'p': 1.0}, r'p=1\.0: a whole number'),
    ({'p': True}, 'p=True: a whole number'),
    ({'weights': [1, 1]}, r'weights has shape \(2,\): .*\(1, 1, 2\)'),
    ({'weights': [[[1, -1]]]}, 'finite and >= 0'),
    ({'weights': [[[1, np.nan]]]}, 'finite and >= 0'),
    ({'truth': None}, 'truth is None'),
    ({'truth': ['a', 'b']}, 'truth has 2 entries for 1 traces'),
    ({'answers': [['a']]}, 'boundaries that are no list of answers'),
    ({'answers': ['a']}, r'answers has shape \(1, 0, 0\)'),
    ({'answers': np.zeros((1, 2))}, r'answers has shape \(1, 2\)'),
    ({'answers': [[['a'], ['a', 'b']]]}, r'boundaries of \[1, 2\] answers'),
    ({'answers': [[['a']], [['a'], ['b']]]}, r'traces of \[1, 2\] boundaries'),
    ({'answers': []}, r'answers has shape \(0, 0, 0\)'),
  ],
)
def test_refusals(options, line):
  given = {'answers': [[['a', 'b']]], 'truth': 'a'} | options
  with pytest.raises(ValueError, match=line):
    maj_at_p(given.pop('answers'), given.pop('truth'), **given)


def test_figures_refuse_other_shapes():
  with pytest.raises(ValueError, match=r'answer_tokens \(1, 1\) must be'):
    vote_figures([[['a']]], 'a', prefix_tokens=[[1]], answer_tokens=[[1]])
