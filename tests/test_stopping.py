"""Scores of prefixes and the rules that read them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import stopping


def head(**changes):
  """A head of one feature, one hidden unit and horizons of 10 and 20 tokens."""
  fields = {
    'shift': jnp.array([1.0]),
    'scale': jnp.array([2.0]),
    'hidden': jnp.array([[1.0], [4.0]]),
    'bias': jnp.array([0.5]),
    'out': jnp.array([[0.0, 1.0, 2.0]]),
    'out_bias': jnp.array([0.0, 0.0, -1.0]),
    'horizons': jnp.array([10.0, 20.0]),
    'budget': jnp.array(100.0),
  }
  return stopping.ProgressHead(**fields | changes)


def test_predict_success_by_hand():
  # x = (2 - 1) 2 = 2, share 25/100: hidden = gelu(2 + 4 * 0.25 + 0.5)
  now, later = stopping.predict_success(
    head(), jnp.array([[2.0]]), jnp.array([25])
  )
  h = float(jax.nn.gelu(jnp.array(3.5)))
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(now, [0.5], rtol=1e-6)
  np.testing.assert_allclose(
    later, [[sigmoid(h), sigmoid(2 * h - 1)]], rtol=1e-5
  )


def test_progress_index_is_the_best_rate():
  features, thought = jnp.array([[2.0], [-3.0]]), jnp.array([25, 0])
  now, later = stopping.predict_success(head(), features, thought)
  rates = (np.asarray(later) - np.asarray(now)[:, None]) / [10, 20]
  index = stopping.progress_index(head(), features, thought)
  np.testing.assert_allclose(index, rates.max(1), rtol=1e-5)
  assert rates[0].argmax() == 0  # a rate, and not the largest gain
  assert later[0, 1] > later[0, 0]


def test_features_of_another_model_are_refused():
  with pytest.raises(ValueError, match='fit one to this model'):
    stopping.progress_index(head(), jnp.zeros((2, 3)), jnp.zeros(2))


def test_confidence_is_the_product_over_the_answer():
  log_probs = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.5, 0.5, 0.5]]))
  mask = jnp.array([[True, True, False], [False, False, False]])
  # 0.5 * 0.4; no answer: 0
  np.testing.assert_allclose(
    stopping.confidence(log_probs, mask), [0.2, 0.0], rtol=1e-6
  )
  inf = jnp.full((1, 3), -jnp.inf)
  assert stopping.confidence(inf, mask[:1]) == 0


def test_agreement_counts_equal_answers_in_a_row():
  # x y y y z; the second row: none, x, x, and xx, whose tokens begin as x does
  answers = jnp.array(
    [
      [[1, 0], [2, 0], [2, 0], [2, 0], [3, 0]],
      [[9, 9], [1, 0], [1, 5], [1, 1], [1, 1]],
    ]
  )
  mask = jnp.array(
    [
      [[True, False]] * 5,
      [[False] * 2, [True, False], [True, False], [True] * 2, [False] * 2],
    ]
  )
  np.testing.assert_array_equal(
    stopping.agreement(answers, mask), [[1, 1, 2, 3, 1], [0, 1, 2, 1, 0]]
  )


def test_agreement_equals_a_plain_loop():
  rng = np.random.default_rng(0)
  answers = rng.integers(0, 2, (40, 6, 2))
  mask = np.arange(2) < rng.integers(0, 3, (40, 6, 1))
  expected = np.zeros((40, 6))
  for b in range(40):
    for j in range(6):
      own = answers[b, j][mask[b, j]].tolist()
      before = answers[b, j - 1][mask[b, j - 1]].tolist() if j else None
      expected[b, j] = bool(own)
      if own and own == before:
        expected[b, j] = expected[b, j - 1] + 1
  found = stopping.agreement(jnp.asarray(answers), jnp.asarray(mask))
  np.testing.assert_array_equal(found, expected)


def test_stops():
  score = jnp.array([0.1, 0.5, 0.9])
  said = lambda kind, t: stopping.stops(kind, score, t).tolist()
  assert said('confidence', 0.5) == [False, True, True]
  assert said('agreement', 0.5) == [False, True, True]
  assert said('progress', 0.5) == [True, True, False]
  assert said('budget', 0.0) == [False] * 3


def test_stops_takes_a_rule_a_row():
  kinds = jnp.array([stopping.KINDS.index(k) for k in stopping.KINDS])
  thresholds = jnp.array([0, 0.5, 2, 0.7, 0.6])
  found = stopping.stops(kinds, jnp.full(5, 0.7), thresholds)
  assert dict(zip(stopping.KINDS, found.tolist())) == {
    'budget': False,
    'confidence': True,
    'agreement': False,
    'progress': True,
    'episodes': True,
  }


def test_a_score_that_is_none_never_stops():
  for kind in stopping.KINDS:
    assert not stopping.stops(kind, jnp.nan, 0.5)


def test_an_unknown_rule_is_refused():
  with pytest.raises(ValueError, match='stop rule must be one of'):
    stopping.stops('hope', jnp.zeros(1), 0.0)
