"""Tests of rollout.generate with an environment that speaks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import (
  EOS,
  MARKER,
  check_response,
  follow,
  lively_params,
  script_model,
  tiny,
)

from meta_rl import models, steps
from meta_rl.rollout import generate
from meta_rl.scoring import score
from meta_rl.tasks import Task

# What the environment says after a token: while thinking, and afterwards.
THINKING = {10: 20, 12: MARKER, 13: EOS, 5: 25, 16: 16}
ANSWERING = {10: 21, 4: 27, 9: 26, 17: MARKER}


def says(last, thinking, rows):
  """The environment of these tests; after 14 it says 15 plus the trace."""

  def look_up(table):
    entries = jnp.full(32, -1).at[jnp.array(list(table))]
    return entries.set(jnp.array(list(table.values())))[last]

  answer = jnp.where(thinking, look_up(THINKING), look_up(ANSWERING))
  return jnp.where(last == 14, 15 + rows, answer)


# Row r wants SCRIPT[r, t] as its response token t.
SCRIPT = np.array(
  [
    [10, 30, 11, 13, 14, 2, 1, 1],  # 0 a verdict within the budget of 3
    [11, 11, 10, 30, 30, 30, 3, 2],  # 1 the budget cuts a verdict off
    [12, 30, 22, 10, 30, 2, 1, 1],  # 2 the environment ends thinking
    [13, 30, 30, 30, 30, 30, 30, 30],  # 3 the environment ends the trace
    [10, 2, 4, 2, 1, 1, 1, 1],  # 4 an EOS that the verdict stands before
    [30, 11, 4, 30, 2, 1, 1, 1],  # 5 the environment speaks first
    [14, 30, 4, 30, 2, 1, 1, 1],  # 6 a verdict that depends on the trace
    [16, 30, 30, 30, 30, 30, 17, 30],  # 7 every thought but one is observed
  ]
)
EXPECTED = {
  # Row 0: 10 and its verdict 20, then 11 spends the budget. Nothing is observed
  # between the stop tokens 4 and 9, though the environment would say 27; after
  # the 9 it says 26, then comes the wish of that place, 2.
  'tokens': [
    [10, 20, 11, 4, 9, 26, 1, 1],
    [11, 11, 10, 4, 9, 26, 3, 2],
    [12, 4, 27, 10, 21, 2, 0, 0],
    [13, 2, 0, 0, 0, 0, 0, 0],
    [10, 20, 4, 27, 1, 1, 1, 1],
    [25, 11, 4, 27, 2, 0, 0, 0],
    [14, 21, 4, 27, 2, 0, 0, 0],
    [16, 16, 16, 4, 9, 26, 17, 4],
  ],
  'token_mask': [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
  ],
  'mask': [
    [1, 0, 1, 0, 0, 0, 1, 1],
    [1, 1, 1, 0, 0, 0, 1, 1],
    [1, 0, 0, 1, 0, 1, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 0, 1, 0, 1, 1, 1, 1],
    [0, 1, 1, 0, 1, 0, 0, 0],
    [1, 0, 1, 0, 1, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 1, 0],
  ],
  'thinking_mask': [
    [1, 1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
  ],
  'truncated': [1, 0, 0, 0, 1, 0, 0, 1],
  'forced': [1, 1, 0, 0, 0, 0, 0, 1],
}
ROWS = np.arange(8, dtype=np.int32)[:, None]


@pytest.fixture(scope='module')
def scripted():
  """`follow`, jitted, with the budget of each row an argument."""
  return jax.jit(lambda budget: follow(SCRIPT, budget, observe_fn=says))


def test_table_of_observations(scripted):
  rollout = scripted(jnp.full(8, 3))
  check_response(rollout, EXPECTED)


def test_observed_thoughts_count_towards_a_budget_of_each_row(scripted):
  rollout = scripted(jnp.array([1, 4, 1, 2, 2, 1, 1, 0]))
  np.testing.assert_array_equal(
    rollout.thinking_mask.sum(1), [1, 4, 1, 1, 2, 1, 1, 0]
  )
  # Row 1 now hears the verdict on its 10; row 2 the budget stops before the
  # environment does.
  assert rollout.tokens[1, 1:5].tolist() == [11, 11, 10, 20]
  assert rollout.forced.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


def test_the_cache_holds_observed_tokens():
  _, trace = follow(SCRIPT, 3, observe_fn=says, return_cache=True)
  np.testing.assert_array_equal(
    trace.cache['tokens'][0, 1:8], EXPECTED['tokens'][0][:7]
  )


# --- by a transformer, in groups ---

CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
PROMPTS = jnp.array([[0, 5, 6], [7, 8, 9], [3, 11, 12]], jnp.int32)


def sample(observe_fn, params, **options):
  run = lambda p, key: generate(
    MODEL,
    p,
    PROMPTS,
    PROMPTS > 0,
    key,
    max_new_tokens=9,
    eos_id=EOS,
    temperature=0.7,
    group_size=2,
    observe_fn=observe_fn,
    **options,
  )
  return jax.jit(run)(params, jax.random.key(11))


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


def every_other(last, thinking, rows):
  """Says 20 + the trace behind every token that is not such a token."""
  del thinking
  return jnp.where(last < 20, 20 + rows, -1)


@pytest.mark.full
def test_observations_have_no_log_probs_and_are_read(params):
  rollout = sample(every_other, params)
  response = np.asarray(rollout.tokens[:, 3:])
  mask = np.asarray(rollout.mask)
  observed = np.asarray(rollout.token_mask[:, 3:]) & ~mask[:, 3:]
  assert observed[:, 0].all()  # each prompt ends in a token below 20
  assert observed.sum() > 8
  assert mask.sum() > 8
  own = np.broadcast_to(20 + np.arange(6)[:, None], response.shape)
  np.testing.assert_array_equal(response[observed], own[observed])
  # Log-probs of actions are those given all that was observed before.
  log_probs, _ = score(
    MODEL, params, rollout.tokens, rollout.token_mask, temperature=0.7
  )
  np.testing.assert_allclose(
    rollout.behavior_log_probs[mask], log_probs[mask], atol=1e-4
  )
  assert not rollout.behavior_log_probs[~mask].any()
  assert not rollout.raw_log_probs[~mask].any()


def test_a_silent_environment_changes_nothing(params):
  silent = lambda last, thinking, rows: jnp.full_like(last, -1)
  one, other = sample(None, params), sample(silent, params)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_no_environment_no_operation(params):
  """None is not a function that says -1: it adds nothing to the program."""
  silent = lambda last, thinking, rows: jnp.full_like(last, -1)

  def size(observe_fn):
    run = lambda p: sample(observe_fn, p)
    return len(str(jax.make_jaxpr(run)(params)))

  assert size(None) < size(silent)


@pytest.mark.parametrize(
  'answer', [jnp.zeros(6), jnp.zeros((6, 1), int), jnp.zeros(5, int)]
)
def test_a_wrong_answer_of_the_environment_is_refused(answer, params):
  with pytest.raises(ValueError, match='observe_fn returned .* expected int32'):
    sample(lambda last, thinking, rows: answer, params)


# --- from a task ---

TASK = Task(
  name='echo',
  vocab_size=32,
  pad_id=0,
  eos_id=EOS,
  think_end_id=MARKER,
  stop_ids=(MARKER,),
  delimiter_ids=(20,),
  episode_length=2,
  answer_length=2,
  verify=None,
)


def test_a_task_observes_the_problem_of_each_trace():
  batch = {
    'prompts': np.array([[0], [1]], np.int32),
    'prompt_mask': np.ones((2, 1), bool),
    'word': np.array([[20, 21], [22, 23]], np.int32),
  }
  task = dataclasses.replace(
    TASK,
    observe=lambda last, thinking, batch: jnp.where(
      thinking & (last < 20), batch['word'][:, 1], -1
    ),
  )
  run = {
    name: jax.jit(
      steps.make_generate(
        script_model(), one, group_size=2, thinking_budget=4, temperature=1.0
      )
    )
    for name, one in (('echo', task), ('mute', TASK))
  }
  script = jnp.full((2, 8), 11)
  found = {
    name: np.asarray(call(script, batch, jax.random.key(0))[0].tokens[:, 1:])
    for name, call in run.items()
  }
  # The prompt is below 20: the environment speaks first, then every other time.
  one, two = [21, 11, 21, 11, 4, 11, 11], [23, 11, 23, 11, 4, 11, 11]
  np.testing.assert_array_equal(found['echo'], [one, one, two, two])
  np.testing.assert_array_equal(found['mute'], [[11] * 4 + [4, 11, 11]] * 4)
