"""Tests of meta_rl.steps.block: where a block of steps ends, on a toy step."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import steps
from meta_rl.steps.block import NO_LIMIT
from meta_rl.types import WeightedSum

N = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """What a toy step changes: its weight grows by the batch's value."""

  weight: jax.Array
  step: jax.Array
  key: jax.Array


def toy_step(state, ref_params, batch, key):
  """The drawn number is the trace; the loss is NaN where the weight is 13."""
  drawn = jax.random.randint(key, (), 0, 1000)
  weight = state.weight + batch['value'] + ref_params
  state = dataclasses.replace(state, weight=weight, step=state.step + 1)
  loss = jnp.where(weight == 13, jnp.nan, weight)
  return state, drawn, weight, {'loss': WeightedSum(loss, jnp.ones(()))}


def summarize(traces, measured):
  del traces
  return {
    'cost/generate': measured,
    'cost/prove': jnp.float32(2),
    'cost/train': jnp.float32(3),
    'rollout/tokens_sum': 10 * measured,
  }


BLOCK = jax.jit(steps.make_block(toy_step, summarize))


def run(values=(1, 1, 1, 1), *, count=N, cost=NO_LIMIT, tokens=NO_LIMIT):
  """The weights are 1, 2, 3, 4 where nothing else is said."""
  state = State(jnp.zeros(()), jnp.asarray(7), jax.random.key(0))
  batches = tuple({'value': jnp.float32(value)} for value in values)
  limits = steps.Limits(*map(np.int32, (count, cost, tokens)))
  return BLOCK(state, jnp.zeros(()), batches, limits)


def test_all_steps_of_a_block():
  state, found = run()
  assert found.done == N
  assert state.step == 7 + N
  np.testing.assert_array_equal(found.rows['cost/generate'], [1, 2, 3, 4])
  np.testing.assert_array_equal(found.sums['loss'].total, [1, 2, 3, 4])
  assert found.measured == 4
  # Of the last step: the key is that of the run, folded with the step.
  key = jax.random.fold_in(jax.random.key(0), 7 + N - 1)
  assert found.traces == jax.random.randint(key, (), 0, 1000)


@pytest.mark.parametrize(
  'limits, done',
  [
    ({'count': 2}, 2),
    # Costs 6, 7, 8, 9: 13 after two steps, 21 after three.
    ({'cost': 13}, 2),
    ({'cost': 14}, 3),
    ({'cost': 21}, 3),
    # Tokens 10, 20, 30, 40.
    ({'tokens': 10}, 1),
    ({'tokens': 11}, 2),
    ({'tokens': 30}, 2),
    ({'tokens': 31}, 3),
    ({'tokens': 0}, 1),  # a step is never taken back
    ({'cost': 14, 'tokens': 10}, 1),
    ({'count': 1, 'cost': 100}, 1),
    # A weight of 13, whose loss is not finite.
    ({'values': (6, 7, 1, 1)}, 2),
  ],
)
def test_a_block_ends_with_the_step_that_reaches_a_limit(limits, done):
  state, found = run(**limits)
  assert found.done == done
  assert state.step == 7 + done
  assert np.count_nonzero(found.rows['rollout/tokens_sum']) == done
  assert state.weight == found.measured


def test_one_program_for_every_length():
  before = BLOCK._cache_size()
  run(count=1)
  run(count=3, tokens=17)
  assert BLOCK._cache_size() == max(before, 1)


@pytest.mark.parametrize(
  'limit, spent, left',
  [
    (None, 1e12, NO_LIMIT),
    (100.0, 40.0, 60),
    (100.5, 40.0, 61),  # 100 is below it
    (100.0, 100.0, 0),
    (100.0, 140.0, 0),
    (1e30, 0.0, NO_LIMIT),
  ],
)
def test_left_of(limit, spent, left):
  assert steps.left_of(limit, spent) == left


def test_the_package_names_it():
  assert isinstance(steps.block, types.ModuleType)
  assert steps.make_block is steps.block.make_block
