"""Golden values, oracles and edges of meta_rl.answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_rl.answers import extract_boxed, maj_at_k, pass_at_k


@pytest.mark.parametrize(
  ('k', 'expected'),
  [
    (1, 0.375),  # 3/8
    (2, 0.642857),  # 1 - C(5,2)/C(8,2) = 1 - 10/28
    (4, 0.928571),  # 1 - C(5,4)/C(8,4) = 1 - 5/70
    (8, 1.0),
  ],
)
def test_pass_at_k_golden(k, expected):
  assert pass_at_k(8, 3, k) == pytest.approx(expected, abs=5e-7)


def test_pass_at_k_is_the_mean_over_subsets():
  right = [1, 0, 0, 1, 0, 0]
  for k in range(1, 7):
    hits = [max(s) for s in itertools.combinations(right, k)]
    assert pass_at_k(6, 2, k) == pytest.approx(np.mean(hits))


def test_pass_at_k_edges():
  assert pass_at_k(5, 0, 5) == 0.0
  assert pass_at_k(5, 5, 1) == 1.0
  # Binomials near 10^300 stay exact: 1 - C(999,500)/C(1000,500) = 1/2.
  assert pass_at_k(1000, 1, 500) == 0.5
  assert pass_at_k(np.int64(4), np.int32(1), 2) == 0.5


@pytest.mark.parametrize(
  ('args', 'line'),
  [
    ((4, 1, 5), r'k=5: 1\.\.4 is allowed'),
    ((4, 1, 0), r'k=0: 1\.\.4'),
    ((4, 5, 2), r'num_correct=5: 0\.\.4'),
    ((4, -1, 2), r'num_correct=-1'),
    ((0, 0, 1), 'no samples'),
  ],
)
def test_pass_at_k_refuses(args, line):
  with pytest.raises(ValueError, match=line):
    pass_at_k(*args)


def test_pass_at_k_refuses_other_types():
  with pytest.raises(TypeError, match=r'k=2\.0: an integer'):
    pass_at_k(4, 1, 2.0)
  with pytest.raises(TypeError, match='num_correct=True'):
    pass_at_k(4, True, 2)


def _vote(answers, weights, truth):
  totals = {}
  for answer, weight in zip(answers, weights, strict=True):
    if answer is not None:
      totals[answer] = totals.get(answer, 0) + weight
  best = max(totals.values(), default=0)
  winners = [a for a, total in totals.items() if total == best and best > 0]
  return (truth in winners) / max(len(winners), 1)


def _vote_mean(answers, k, truth, weights=None):
  weights = weights or [1] * len(answers)
  subsets = list(itertools.combinations(range(len(answers)), k))
  return sum(
    _vote([answers[i] for i in s], [weights[i] for i in s], truth)
    for s in subsets
  ) / len(subsets)


def test_maj_at_k_by_hand():
  answers = ['7', '7', '3', None]
  # k=1: two of four samples say 7.
  assert maj_at_k(answers, 1, '7') == 0.5
  # k=2: {7,7} 1; {7,3} twice, tied 1/2; {7,None} twice 1; {3,None} 0 -> 4/6.
  assert maj_at_k(answers, 2, '7') == pytest.approx(4 / 6)
  # k=3: {7,7,3} 1, {7,7,None} 1, {7,3,None} twice 1/2 -> 3/4.
  assert maj_at_k(answers, 3, '7') == 0.75
  assert maj_at_k(answers, 4, '7') == 1.0
  # Weighted, k=3: 3 weighs 1.5 against 1 and 1: the pair still wins, a single
  # 7 loses -> {7,7,3} 1, {7,7,None} 1, the two {7,3,None} 0 -> 2/4.
  assert maj_at_k(answers, 3, '7', weights=[1, 1, 1.5, 9]) == 0.5


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.sampled_from(['a', 'b', 'c', None]), min_size=1, max_size=8),
  st.data(),
)
def test_maj_at_k_equals_every_vote(answers, data):
  k = data.draw(st.integers(1, len(answers)))
  weights = data.draw(
    st.lists(st.integers(0, 3), min_size=len(answers), max_size=len(answers))
  )
  expected = _vote_mean(answers, k, 'a')
  assert maj_at_k(answers, k, 'a') == pytest.approx(expected)
  assert maj_at_k(
    answers, k, 'a', weights=[1.0] * len(answers)
  ) == pytest.approx(expected)
  assert maj_at_k(answers, k, 'a', weights=weights) == pytest.approx(
    _vote_mean(answers, k, 'a', weights)
  )


def test_maj_at_k_edges():
  assert maj_at_k([None, None], 2, 'a') == 0.0
  assert maj_at_k([None, None], 2, 'a', weights=[1, 1]) == 0.0
  assert maj_at_k(['b'], 1, 'a') == 0.0
  # Weight 0 never wins, not even alone.
  assert maj_at_k(['a', 'b'], 2, 'a', weights=[0, 0]) == 0.0
  # 0.1 + 0.2 and 0.3 differ in the last bit and still tie.
  assert maj_at_k(['a', 'a', 'b'], 3, 'a', weights=[0.1, 0.2, 0.3]) == 0.5
  assert maj_at_k(['b', 'a', 'a'], 3, 'b', weights=[0.3, 0.1, 0.2]) == 0.5


def test_maj_at_k_is_exact_far_beyond_enumeration():
  # C(100,50) subsets; 30 of 100 right against 70 different wrong answers.
  answers = ['t'] * 30 + [f'w{i}' for i in range(70)]
  assert maj_at_k(answers, 50, 't') == pytest.approx(1.0, abs=1e-9)
  # By symmetry two equal camps share the wins.
  assert maj_at_k(['a'] * 30 + ['b'] * 30, 21, 'a') == pytest.approx(0.5)


def test_maj_at_k_draws_beyond_max_subsets():
  answers = ['a'] * 6 + ['b'] * 5 + ['c'] * 3
  weights = [1.0] * 14
  exact = maj_at_k(answers, 5, 'a')
  drawn = maj_at_k(answers, 5, 'a', weights=weights, max_subsets=1500)
  # Standard error below 0.5/sqrt(1500) = 0.013.
  assert drawn == pytest.approx(exact, abs=0.05)
  assert drawn == maj_at_k(answers, 5, 'a', weights=weights, max_subsets=1500)


def _value(text):
  top, _, bottom = text.partition('/')
  return float(top) / float(bottom or 1)


def _same(a, b):
  return _value(a) == _value(b)


def test_maj_at_k_groups_equivalent_answers():
  answers = ['1/2', '0.5', '3', '3']
  # Of the first four, each spelling alone loses 1:2 to 3; together they tie.
  assert maj_at_k(answers, 4, '0.5') == 0.0
  assert maj_at_k(answers, 4, '0.5', equivalent=_same) == 0.5


@pytest.mark.parametrize(
  ('args', 'options', 'line'),
  [
    ((['a'], 2, 'a'), {}, r'k=2: 1\.\.1'),
    (([], 1, 'a'), {}, 'no samples'),
    ((['a'], 1, None), {}, 'truth=None'),
    ((['a', 'b'], 1, 'a'), {'weights': [1.0]}, r'weights has shape \(1,\)'),
    ((['a'], 1, 'a'), {'weights': [-1.0]}, 'finite and >= 0'),
    ((['a'], 1, 'a'), {'weights': [float('nan')]}, 'finite and >= 0'),
  ],
)
def test_maj_at_k_refuses(args, options, line):
  with pytest.raises(ValueError, match=line):
    maj_at_k(*args, **options)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (r'so \boxed{\frac{1}{\sqrt{2}}}.', r'\frac{1}{\sqrt{2}}'),
    (r'\boxed{12', None),
    (r'\boxed{}', ''),
    ('no box', None),
    ('', None),
    (r'\boxed{1} then \boxed{2}', '2'),
    (r'\boxed{1} then \boxed{2', None),
    (r'\boxed{\boxed{3}}', '3'),
    (r'\boxed{\left\{1, 2\right.}', r'\left\{1, 2\right.'),
    (r'\boxed{a\\{b}}', r'a\\{b}'),
    (r'\boxed 5', None),
    ('\\boxed{1\\', None),
    ('\\boxed{a\nb}', 'a\nb'),
    (r'\boxed{7}}}', '7'),
  ],
)
def test_extract_boxed(text, expected):
  assert extract_boxed(text) == expected


def test_extract_boxed_is_linear():
  assert extract_boxed(r'\boxed{' * 1000 + '{' * 200_000) is None
