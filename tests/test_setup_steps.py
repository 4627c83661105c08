"""From a config to its step functions."""

import jax
import numpy as np
import pytest

from meta_rl import algorithms, check_config, setup_run, setup_steps
from meta_rl.types import Episodes

pytest_plugins = ['small_runs']


def test_advantages_know_the_horizon_and_the_group(small):
  measured = algorithms.Measured(
    rewards=np.array([1.0, 0, 0, 0], np.float32),
    success=np.array([[0.0, 0.5]] * 4, np.float32),
    episodes=Episodes(np.array([[6, 15]] * 4), np.array([1] * 4)),
    stop_index=np.array([16] * 4),
    answered=np.ones(4, bool),
  )
  config = small.config(
    'mrt',
    algorithm__baseline='none',
    algorithm__decay=1.0,
    prover__max_episodes=1,
  )
  found = setup_steps.make_advantages(config)(measured, 20)
  # w = (1 - 0.3) (1 - 9/27) + 0.3, times the progress 0.5.
  np.testing.assert_allclose(
    found[0, 7:16], 0.5 * (0.7 * 2 / 3 + 0.3), rtol=1e-5
  )
  config = small.config('grpo', 'rloo,tiny')
  found = setup_steps.make_advantages(config)(measured, 20)
  # Leave one out: 1 - 0, and 0 - 1/3.
  np.testing.assert_allclose(
    found[:, 0], [1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-5
  )


@pytest.mark.parametrize(
  'changes, reads',
  [
    ({}, True),
    ({'loss__pathwise__boundaries': 'all'}, True),
    # No advantage is left that J is in.
    (
      {'loss__pathwise__boundaries': 'all', 'loss__pathwise__alone': True},
      False,
    ),
  ],
)
def test_who_reads_what_is_proved(changes, reads, small):
  config = small.config('mrt', **changes)
  check_config.check(config)
  assert setup_steps.reads_success(config) == reads


def test_calls_of_one_trace_a_problem(small):
  """`group_size` stands above the config's."""
  config = small.config('mrt')
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  generate, _ = setup_steps.make_calls(config, model, task, group_size=1)
  batch = {
    'prompts': np.ones((2, 7), np.int32),
    'prompt_mask': np.ones((2, 7), bool),
  }
  args = setup_run.abstract_params(config), batch, jax.random.key(0)
  traces, _ = jax.eval_shape(generate, *args)
  # 7 of the prompt, 27 of thought, the marker, 6 of the answer.
  assert traces.tokens.shape == (2, 41)
  generate, _ = setup_steps.make_calls(config, model, task)
  assert jax.eval_shape(generate, *args)[0].tokens.shape == (8, 41)
