"""Tests of meta_rl.algorithms.segment: Monte Carlo credit, VinePPO and PAV."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import LENGTH, row

from meta_rl import check_config
from meta_rl.algorithms import Measured, outcome, segment
from meta_rl.algorithms.segment import best_of
from meta_rl.types import Episodes

pytest_plugins = ['small_runs']

# Row 0: two segments (columns 2-4, 5-6), stops at 7, right.
# Row 1: one segment (2-5), stops inside it at 6, wrong.
# Row 2: stops at once at 2 with EOS, no answer.
TRACES = Measured(
  rewards=jnp.array([1.0, 0.0, 0.0]),
  success=jnp.array([[0.2, 0.5, 0.9], [0.2, 0.1, 0.1], [0.2, 0.2, 0.2]]),
  episodes=Episodes(
    jnp.array([[1, 4, 6], [1, 5, 5], [1, 1, 1]]), jnp.array([2, 1, 0])
  ),
  stop_index=jnp.array([7, 6, 2]),
  answered=jnp.array([True, True, False]),
  inside=jnp.array([False, True, False]),
)


def check(found, rows):
  np.testing.assert_allclose(found, np.stack(rows), atol=1e-6)


def test_a_prover_that_stops_by_hand():
  # Progress .3, .4 and -.1. Stopping at a boundary changes no value; inside a
  # segment it is that segment's end. Answers: r - J.
  check(
    segment(TRACES, LENGTH, group_size=3),
    [
      row(0.1, (2, 4, 0.3), (5, 6, 0.4), (7, 7, 0.0)),
      row(-0.1, (2, 5, -0.1), (6, 6, -0.1)),
      row(-0.2),
    ],
  )


def test_a_prover_that_goes_on_by_hand():
  # Before the choice to stop the values were .7, .3 and .6.
  traces = dataclasses.replace(TRACES, before_stop=jnp.array([0.7, 0.3, 0.6]))
  check(
    segment(traces, LENGTH, group_size=3),
    [
      # .5 -> .7 by thinking, .7 -> .9 by stopping.
      row(0.1, (2, 4, 0.3), (5, 6, 0.2), (7, 7, 0.2)),
      # It stops inside the segment: .2 -> .1 for all of it.
      row(-0.1, (2, 5, -0.1), (6, 6, -0.1)),
      # .6 -> .2, and no answer follows: - .2.
      row(-0.2, (2, 2, -0.4 - 0.2)),
    ],
  )


def test_best_of_by_hand():
  # f(V) = 1 - (1 - V)^2: .2 -> .36, .5 -> .75, .9 -> .99, .1 -> .19.
  # alpha 2, half of the leave-one-out outcome (1, -.5, -.5) on top.
  found = segment(
    TRACES,
    LENGTH,
    group_size=3,
    transform='best_of',
    tries=2,
    alpha=2.0,
    outcome_coef=0.5,
    outcome_baseline='leave_one_out',
  )
  check(
    found,
    [
      row(0.52, (2, 4, 1.28), (5, 6, 0.98), (7, 7, 0.5)),
      row(-0.38 - 0.25, (2, 5, -0.34 - 0.25), (6, 6, -0.34 - 0.25)),
      row(-0.72 - 0.25),
    ],
  )


def test_best_of():
  values = np.array([0.0, 0.3, 1.0])
  np.testing.assert_allclose(best_of(values, 1), values)
  # 1 - .7^3 = .657
  np.testing.assert_allclose(best_of(values, 3), [0, 0.657, 1], rtol=1e-6)
  with pytest.raises(ValueError, match='number must be >= 1'):
    best_of(values, 0)


@pytest.mark.parametrize('options', [{}, {'transform': 'best_of', 'tries': 3}])
def test_credits_add_up_over_a_trace(options):
  """One token a segment, a stop and an answer: f(r) - f(V_0)."""
  f = (lambda x: x) if not options else lambda x: best_of(x, 3)
  traces = Measured(
    rewards=jnp.array([0.5]),  # half a point, so that f(r) is not r
    success=jnp.array([[0.3, 0.6, 0.4]]),
    episodes=Episodes(jnp.array([[0, 1, 2]]), jnp.array([2])),
    stop_index=jnp.array([3]),
    answered=jnp.array([True]),
    inside=jnp.array([False]),
    before_stop=jnp.array([0.8]),
  )
  found = segment(traces, 5, group_size=1, **options)
  assert found[0, 1:].sum() == pytest.approx(f(0.5) - f(0.3), abs=1e-6)


def test_the_outcome_alone():
  found = segment(
    TRACES,
    LENGTH,
    group_size=3,
    alpha=0.0,
    outcome_coef=2.0,
    outcome_baseline='mean',
  )
  expected = 2 * outcome(TRACES, LENGTH, group_size=3, baseline='mean')
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'transform': 'square'}, 'transform must be one of'),
    ({'transform': 'best_of'}, "transform='best_of' with tries=None"),
    ({'tries': 2}, "transform='identity' with tries=2"),
    ({'transform': 'best_of', 'tries': 0}, 'number must be >= 1'),
    ({'outcome_coef': 1.0, 'outcome_baseline': 'x'}, 'baseline must be one'),
    ({'outcome_coef': 1.0}, 'outcome_baseline=None: give a baseline'),
    ({'outcome_baseline': 'mean'}, 'outcome_coef=0.0 with'),
    ({'alpha': -1.0}, 'alpha must be >= 0'),
    ({'alpha': 0.0}, 'both 0'),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    segment(TRACES, LENGTH, group_size=3, **options)


# --- PAV's theorem, on a policy that can be enumerated ---
#
# Two steps of thought. The policy draws z1 in {0, 1}, then z2 in {0, 1} or
# stops; after two steps thinking is over. It then answers, right with a chance
# that depends on where it stopped. A trace is (z1, z2 or 2 = stop, right).

ACTIONS = list(itertools.product(range(2), range(3), range(2)))


def policy(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(1.5 * rng.standard_normal(shape))
  return {'first': draw(2), 'second': draw(2, 3), 'answer': draw(2, 3)}


def log_probs(params):
  """f64[12,3]: log-probs of the two choices and the answer of each trace."""
  first = jax.nn.log_softmax(params['first'])
  second = jax.nn.log_softmax(params['second'])
  right = jax.nn.log_sigmoid(params['answer'])
  wrong = jax.nn.log_sigmoid(-params['answer'])
  rows = [
    (first[a], second[a, b], (right if ok else wrong)[a, b])
    for a, b, ok in ACTIONS
  ]
  return jnp.stack([jnp.stack(r) for r in rows])


def objective(params):
  """The chance of a right answer."""
  chances = jnp.exp(log_probs(params).sum(1))
  return (chances * jnp.array([ok for *_, ok in ACTIONS])).sum()


def measured_exactly(params):
  """The 12 traces with the policy's own values, as the prover would find them.

  Column 0 is the prompt, 1 is z1, 2 is z2 or the stop, 3 the (forced) stop or
  the answer, 4 the answer of those that thought twice.
  """
  over = jax.nn.sigmoid(params['answer'])  # J after each (z1, z2 or stop)
  second = jax.nn.softmax(params['second'])
  one = (second * over).sum(1)  # V after z1
  start = (jax.nn.softmax(params['first']) * one).sum()
  success, ends, count, before = [], [], [], []
  for a, b, _ in ACTIONS:
    stopped = b == 2
    success.append([start, over[a, b] if stopped else one[a], over[a, b]])
    ends.append([0, 1, 1] if stopped else [0, 1, 2])
    count.append(1 if stopped else 2)
    before.append(one[a] if stopped else over[a, b])
  rows = len(ACTIONS)
  return Measured(
    rewards=jnp.array([float(ok) for *_, ok in ACTIONS]),
    success=jnp.asarray(success),
    episodes=Episodes(jnp.array(ends), jnp.array(count)),
    stop_index=jnp.array(count) + 1,
    answered=jnp.ones(rows, bool),
    inside=jnp.zeros(rows, bool),
    before_stop=jnp.asarray(before),
  )


def expected_gradient(params, advantages):
  """E over traces of sum_t A_t grad log pi_t; advantages f[12,5]."""
  chances = jnp.exp(log_probs(params).sum(1))
  # A stop that the budget forces is no action; the answer is in column 4 then.
  twice = jnp.array([b != 2 for _, b, _ in ACTIONS])
  answer = jnp.where(twice, advantages[:, 4], advantages[:, 3])
  used = jnp.stack([advantages[:, 1], advantages[:, 2], answer], 1)
  weights = jax.lax.stop_gradient(chances[:, None] * used)
  return jax.grad(lambda p: (weights * log_probs(p)).sum())(params)


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def cosine(x, y):
  return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize('seed', [0, 1])
def test_a_prover_that_is_the_policy_gives_the_outcome_gradient(seed):
  """Choices to think, to stop and to answer alike; alpha is a factor."""
  params = policy(seed)
  traces = measured_exactly(params)
  expected = flat(jax.grad(objective)(params))
  assert np.linalg.norm(expected) > 0.05
  for options in ({}, {'transform': 'best_of', 'tries': 1}):
    found = segment(traces, 5, group_size=1, alpha=1.5, **options)
    gradient = flat(expected_gradient(params, found))
    np.testing.assert_allclose(gradient, 1.5 * expected, atol=1e-6)


@pytest.mark.parametrize('seed', [0, 1])
def test_it_does_so_with_stops_inside_a_segment(seed):
  """One segment of two tokens, in which the second choice may be to stop."""
  params = policy(seed)
  traces = measured_exactly(params)
  stopped = jnp.array([b == 2 for _, b, _ in ACTIONS])
  traces = dataclasses.replace(
    traces,
    success=traces.success[:, jnp.array([0, 2])],
    episodes=Episodes(
      jnp.where(stopped[:, None], jnp.array([0, 1]), jnp.array([0, 2])),
      jnp.ones(len(ACTIONS), int),
    ),
    inside=stopped,
  )
  expected = flat(jax.grad(objective)(params))
  found = segment(traces, 5, group_size=1)
  gradient = flat(expected_gradient(params, found))
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_a_prover_that_tries_several_times_gives_another_gradient():
  params = policy(0)
  traces = measured_exactly(params)
  expected = flat(jax.grad(objective)(params))
  found = segment(traces, 5, group_size=1, transform='best_of', tries=4)
  gradient = flat(expected_gradient(params, found))
  assert 0 < cosine(gradient, expected) < 0.98
  # The effective reward, outcome + alpha A, lies between the two.
  both = cosine(expected + gradient, expected)
  assert cosine(gradient, expected) < both < 0.999


def test_without_the_value_before_the_stop_the_gradient_is_biased():
  """The reason for `before_stop`: J_k after it is no value of c_k."""
  params = policy(0)
  traces = dataclasses.replace(measured_exactly(params), before_stop=None)
  gradient = flat(expected_gradient(params, segment(traces, 5, group_size=1)))
  expected = flat(jax.grad(objective)(params))
  assert np.abs(gradient - expected).max() > 0.01


# --- from a config ---


@pytest.mark.parametrize(
  'name, changes, message',
  [
    (
      'mrt',
      {'prover__kind': 'continued'},
      "algorithm.name='segment', not 'mrt'",
    ),
    ('grpo', {'prover__kind': 'continued'}, "'segment', not 'outcome'"),
    ('vineppo', {'prover__kind': 'none'}, 'needs a prover'),
    ('vineppo', {'algorithm__tries': 3}, "transform='identity' with tries=3"),
    ('vineppo', {'algorithm__transform': 'x'}, 'algorithm.transform must be'),
    ('pav', {'algorithm__tries': 0}, 'number must be >= 1'),
    ('pav', {'rollout__group_size': 1}, 'rollout.group_size=1'),
    ('pav', {'prover__kind': 'control_variate'}, 'values above 1'),
    (
      'mrt',
      {'prover__num_enumerated': 1},
      "num_enumerated=1 is of prover kind 'control_variate'",
    ),
    (
      'mrt',
      {'prover__kind': 'control_variate', 'prover__num_enumerated': -1},
      'num_enumerated must be >= 0',
    ),
  ],
)
def test_what_no_run_can_use(name, changes, message, small):
  with pytest.raises(ValueError, match=message):
    check_config.check(small.config(name, **changes))


def test_one_trace_a_prompt_is_enough_for_vineppo(small):
  check_config.check(small.config('vineppo', rollout__group_size=1))
