"""Tests of meta_rl.steps.boundaries: where episodes and thinking end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import (
  DELIMITER,
  EOS,
  MARKER,
  PROBLEMS,
  TOY,
  J,
  rollout,
  toy_params,
  toy_task,
)
from toys import counting_model

from meta_rl import check_config, held_out, setup_run, setup_steps, steps
from meta_rl.algorithms import Measured, mrt

pytest_plugins = ['small_runs']
KEY = jax.random.key(1)

# A prompt of one token, thinking from column 1 on:
#   0  four thoughts, marker, answer        1  two thoughts
#   2  no thought: the marker at once       3  EOS in the thought
#   4  thought fills the response           5  EOS at once
D = DELIMITER
TOKENS = [
  [6, 7, D, 7, D, MARKER, 3, EOS],
  [6, 7, 7, MARKER, 3, EOS, 0, 0],
  [6, MARKER, 3, EOS, 0, 0, 0, 0],
  [6, 7, D, 7, EOS, 0, 0, 0],
  [6, 7, D, 7, D, 7, D, 7],
  [6, EOS, 0, 0, 0, 0, 0, 0],
]
THOUGHTS = np.array([4, 2, 0, 3, 7, 0])
COLUMNS = np.arange(8)
TRACES = rollout(
  TOKENS,
  (COLUMNS > 0) & (COLUMNS <= THOUGHTS[:, None]),
  np.array(TOKENS) > 0,
)


def find(**options):
  settings = {'start': 0, 'delimiter_ids': (DELIMITER,), 'max_episodes': 3}
  return steps.find_boundaries(TRACES, **settings | options)


def test_thinking_stops_at_one_column_whatever_the_boundaries():
  """Behind the last thought; 8, past the response, where none is left."""
  expected = THOUGHTS + 1
  for options in (
    {},
    {'max_episodes': 1},
    {'boundaries': 'budgets', 'budgets': (1, 2, 7)},
    # A last budget below the thoughts of rows 0, 3 and 4.
    {'boundaries': 'budgets', 'budgets': (1, 2)},
  ):
    _, stop_index, _ = find(**options)
    np.testing.assert_array_equal(stop_index, expected)


def test_budgets_by_hand():
  # Budgets 2, 4, 7; ends min(budget, thoughts), counted from column 0.
  found, _, inside = find(boundaries='budgets', budgets=(2, 4, 7))
  np.testing.assert_array_equal(
    found.ends,
    [[0, 2, 4, 4], [0, 2, 2, 2], [0] * 4, [0, 2, 3, 3], [0, 2, 4, 7], [0] * 4],
  )
  np.testing.assert_array_equal(found.count, [2, 1, 0, 2, 3, 0])
  # Row 3 ends between two budgets; 0, 1 and 4 at one.
  np.testing.assert_array_equal(inside, [0, 0, 0, 1, 0, 0])
  # Past the last budget is not inside any episode.
  _, _, inside = find(boundaries='budgets', budgets=(3,))
  np.testing.assert_array_equal(inside, [0, 1, 0, 0, 0, 0])


def test_delimiters_by_hand():
  found, _, inside = find()
  np.testing.assert_array_equal(found.count, [2, 1, 0, 2, 3, 0])
  # Rows 1 and 3 stop in the middle of an attempt. In row 4 the third episode
  # takes all that follows.
  np.testing.assert_array_equal(inside, [0, 1, 0, 1, 1, 0])
  # With one episode at most nobody stops between two.
  _, _, inside = find(max_episodes=1)
  np.testing.assert_array_equal(inside, THOUGHTS > 0)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'boundaries': 'words'}, 'boundaries must be one of'),
    ({'boundaries': 'budgets'}, 'with budgets=None'),
    ({'budgets': (1, 2)}, "boundaries='delimiters' with budgets"),
    ({'boundaries': 'budgets', 'budgets': (3, 2)}, 'increasing'),
    ({'boundaries': 'budgets', 'budgets': ()}, 'at least one'),
  ],
)
def test_bad_boundaries_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    find(**options)
  with pytest.raises(ValueError, match=message):
    steps.make_prove(
      None, toy_task(), group_size=1, max_episodes=1, kind='none', **options
    )


# --- through prove ---


@pytest.mark.parametrize('kind', ['exact', 'sampled'])
def test_prove_at_budgets(kind):
  # Thought is (SPECIAL, ;) once or twice. After c SPECIALs J[c]: at budgets
  # 1, 3 and 6 rows 0 and 2 have 1, 2, 2 of them, rows 1 and 3 1, 1, 1.
  prove = steps.make_prove(
    counting_model(),
    toy_task(),
    group_size=2,
    max_episodes=5,
    kind=kind,
    num_branches=256,
    boundaries='budgets',
    budgets=(1, 3, 6),
  )
  found = jax.jit(lambda t: prove(t, PROBLEMS, TOY, None, KEY))(toy_params())
  expected = np.stack([J[[0, 1, 2, 2]], J[[0, 1, 1, 1]]])
  error = 1e-6 if kind == 'exact' else 4 * np.sqrt(J.max() / 256)
  np.testing.assert_allclose(found.success[:2], expected, atol=error)
  assert not found.success[2:].any()
  # The answer is graded behind the marker, not behind the last budget.
  np.testing.assert_array_equal(found.rewards, [1, 1, 0, 0])
  np.testing.assert_array_equal(found.stop_index, [5, 3, 5, 3])
  np.testing.assert_array_equal(found.inside, [True] * 4)


def test_budgets_that_fall_on_delimiters_change_nothing():
  """Attempts of two tokens: budgets 2, 4, 6 are their ends."""
  measured = []
  for options in ({}, {'boundaries': 'budgets', 'budgets': (2, 4, 6)}):
    prove = steps.make_prove(
      counting_model(), toy_task(), group_size=2, max_episodes=3, **options
    )
    call = jax.jit(lambda t, p=prove: p(t, PROBLEMS, TOY, None, KEY))
    measured.append(call(toy_params()))
  jax.tree.map(np.testing.assert_array_equal, *measured)
  one, other = (mrt(m, 8, group_size=2, horizon=6) for m in measured)
  np.testing.assert_array_equal(one, other)


# --- from a config ---


def test_budgets_of_a_config(small):
  config = small.config('mrt')
  assert setup_steps.budgets_of(config) is None
  config = small.config('mrt', prover__boundaries='budgets')
  # 27 tokens of thought, 3 episodes at most.
  assert setup_steps.budgets_of(config) == (9, 18, 27)
  config = small.config(
    'mrt', prover__boundaries='budgets', prover__budgets=(5, 27)
  )
  assert setup_steps.budgets_of(config) == (5, 27)
  check_config.check(config)


def test_held_out_problems_are_measured_at_delimiters(small, monkeypatch):
  """One scale for all runs, whatever they train on."""
  seen, real = [], steps.make_prove

  def make_prove(*args, **options):
    seen.append(options)
    return real(*args, **options)

  config = small.config(
    'mrt', prover__boundaries='budgets', prover__budgets=(5, 27)
  )
  task = setup_run.make_task(config)
  monkeypatch.setattr(steps, 'make_prove', make_prove)
  held_out.make_calls(config, setup_run.make_model(config, task), task)
  kinds = [options['kind'] for options in seen]
  assert kinds == ['exact', 'sampled', 'none', 'exact']
  own, other, grade, at_budgets = (o['boundaries'] for o in seen)
  assert own == other == grade == 'delimiters'
  assert [o['budgets'] for o in seen] == [*[None] * 3, (7, 14, 20, 27)]
  assert at_budgets == 'budgets'
  assert config.prover.budgets == (5, 27)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prover__budgets': (9, 27)}, 'budgets=.9, 27. is of prover.boundaries'),
    (
      {'prover__boundaries': 'budgets', 'prover__budgets': (9, 18)},
      'the last must be the thinking budget, rollout.thinking_budget=27',
    ),
    (
      {'prover__boundaries': 'budgets', 'prover__budgets': (18, 9, 27)},
      'each above the one before',
    ),
    ({'prover__boundaries': 'words'}, 'prover.boundaries must be one of'),
  ],
)
def test_budgets_that_no_run_can_use(changes, message, small):
  with pytest.raises(ValueError, match=message):
    check_config.check(small.config('mrt', **changes))


def test_stopping_inside_an_episode_competes_with_going_on():
  """At one state, an optimal baseline apart, equal futures get equal credit.

  Four traces of one prompt: at the second token of an episode of two budgets
  (2, 4), half stop and half go on; nothing is gained by either. All J are
  equal, so all advantages of thought are 0, and the gradient of 'stop' too.
  """
  thoughts = jnp.array([3, 3, 4, 4])
  tokens = np.full((4, 8), 7)
  tokens[np.arange(4), np.asarray(thoughts) + 1] = MARKER
  traces = rollout(
    tokens, (COLUMNS > 0) & (COLUMNS <= thoughts[:, None]), tokens > 0
  )
  found, stop_index, inside = steps.find_boundaries(
    traces,
    start=0,
    delimiter_ids=(D,),
    max_episodes=1,
    boundaries='budgets',
    budgets=(2, 4),
  )
  np.testing.assert_array_equal(inside, [1, 1, 0, 0])
  measured = measured_of(found, stop_index, inside, [[0.1, 0.5, 0.5]] * 4)
  credit = np.asarray(mrt(measured, 8, group_size=4, horizon=4))
  # What was gained before the choice, .4 from budget 0 to 2, is in neither.
  assert credit[0, 4] == pytest.approx(credit[2, 4], abs=1e-6)
  # Stopping there is worth .2 more than going on: the stop gets more.
  measured = measured_of(
    found, stop_index, inside, [[0.1, 0.5, 0.7]] * 2 + [[0.1, 0.5, 0.5]] * 2
  )
  credit = np.asarray(
    mrt(measured, 8, group_size=4, horizon=4, outcome_mass=1.0)
  )
  assert credit[0, 4] - credit[2, 4] > 0.2


def measured_of(found, stop_index, inside, success):
  success = jnp.asarray(success, jnp.float32)
  return Measured(
    rewards=jnp.zeros(4),
    success=success,
    episodes=found,
    stop_index=stop_index,
    answered=jnp.ones(4, bool),
    inside=inside,
  )
