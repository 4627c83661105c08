"""From a config to a task, its data, a model and the step functions.

The command modules (`train`, `sft`, `evaluate`) share this: nothing else reads
a ConfigDict.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meta_rl import (
  algorithms,
  env,
  losses,
  masked,
  models,
  optimizers,
  steps,
  tasks,
  weights,
  workdir,
)
from meta_rl.tasks import builder
from meta_rl.tasks.base import Task
from meta_rl.types import Episodes, Model, Params

# Options of `config.task` that are no fields of the dataset.
_TASK_ONLY = ('name',)

# Keys whose value must be at least 1 wherever a config has them.
_COUNTS = (
  'total_steps',
  'model.num_layers',
  'rollout.num_prompts',
  'rollout.group_size',
  'prover.max_episodes',
  'prover.num_branches',
  'batching.mini_batches',
  'batching.epochs',
  'batching.micro_batches',
  'eval.every',
  'eval.num_problems',
  'eval.batch_size',
  'checkpoint.every',
  'checkpoint.max_to_keep',
  'log.samples_every',
  'log.print_every',
)
_CHOICES = {
  'algorithm.name': (*algorithms.ALGORITHMS, 'sft'),
  'algorithm.credit': algorithms.CREDITS,
  'loss.surrogate': losses.SURROGATES,
  'loss.ratio': losses.RATIOS,
  'loss.aggregate': losses.AGGREGATES,
  'loss.kl_estimator': tuple(losses.KL_ESTIMATORS),
}


def make_task(config: ml_collections.ConfigDict) -> Task:
  """Returns the task named in `config.task`."""
  if config.task.name not in tasks.TASKS:
    raise ValueError(
      f'task.name={config.task.name!r} is unknown; allowed: '
      f'{sorted(tasks.TASKS)}.'
    )
  return tasks.TASKS[config.task.name](
    n=config.task.n, ops=config.task.ops, max_value=config.task.max_value
  )


def data_dir() -> Path:
  """Returns where datasets go: $META_RL_DATA or ~/.cache/meta_rl/data."""
  default = Path.home() / '.cache' / 'meta_rl' / 'data'
  return Path(os.environ.get('META_RL_DATA', default))


def load_problems(config: ml_collections.ConfigDict, split: str):
  """Returns the random-access source of a split of the task's problems."""
  fields = {k: v for k, v in config.task.items() if k not in _TASK_ONLY}
  return builder.load_source(data_dir(), split, **fields)


def make_model(config: ml_collections.ConfigDict, task: Task) -> Model:
  """Returns the model of `config.model`, checked against the task."""
  shape = models.config_from_dict(config.model.to_dict())
  if shape.vocab_size < task.vocab_size:
    raise ValueError(
      f'model.vocab_size={shape.vocab_size} is below the {task.vocab_size} '
      f'tokens of {task.name}.'
    )
  return models.make_model(shape)


def abstract_params(config: ml_collections.ConfigDict) -> Params:
  """Returns shapes and dtypes of the parameters; nothing is allocated."""
  shape = models.config_from_dict(config.model.to_dict())
  return jax.eval_shape(lambda: models.init_params(shape, jax.random.key(0)))


def initial_params(config: ml_collections.ConfigDict) -> Params:
  """Returns the parameters that `config.init_from` says to start from."""
  if config.init_from:
    return weights.init_from(config.init_from, abstract_params(config))
  shape = models.config_from_dict(config.model.to_dict())
  return models.init_params(shape, jax.random.key(config.seed))


def make_optimizer(config: ml_collections.ConfigDict):
  """Returns the optax transformation; its schedule spans the whole run."""
  updates = config.total_steps
  if 'batching' in config:
    updates *= config.batching.mini_batches * config.batching.epochs
  options = config.optimizer.to_dict()
  optimizer, _ = optimizers.make_optimizer(total_steps=updates, **options)
  return optimizer


def make_calls(
  config, model: Model, task: Task, *, group_size=None, min_thinking=None
):
  """Returns the unjitted (generate, prove) of a config.

  Args:
    config: an RL config.
    model, task: the network and the task.
    group_size: traces a prompt, default `config.rollout.group_size`.
    min_thinking: tokens before a trace may end thinking, for budget forcing.
  """
  group_size = group_size or config.rollout.group_size
  rollout = config.rollout
  generate = steps.make_generate(
    model,
    task,
    group_size=group_size,
    thinking_budget=rollout.thinking_budget,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
    min_thinking=min_thinking,
  )
  prove = steps.make_prove(
    model,
    task,
    group_size=group_size,
    max_episodes=config.prover.max_episodes,
    kind=config.prover.kind,
    num_branches=config.prover.num_branches,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )
  return generate, prove


def make_advantages(config: ml_collections.ConfigDict, *, axis_name=None):
  """Returns `(Measured, T) -> f32[B,T]` of `config.algorithm`.

  Args:
    config: an RL config.
    axis_name: of a mapped data axis.
  """
  options = config.algorithm.to_dict()
  if options['name'] == 'mrt':
    options['horizon'] = config.rollout.thinking_budget
    # Its baseline is fitted over all rows; a group lies on one device.
    options['axis_name'] = axis_name
  return steps.make_advantages(**options, group_size=config.rollout.group_size)


def parse_flags(argv: list[str]) -> list[str]:
  """Returns `argv` without flags; --config also takes a shipped config's name.

  For `app.run(main, flags_parser=...)`. A flag that cannot be used is one line
  on stderr and exit code 1.
  """
  resolved = list(argv)
  for i, arg in enumerate(argv):
    flag, equals, name = arg.partition('=')
    if flag.lstrip('-') != 'config' or not flag.startswith('-'):
      continue
    try:
      if equals:
        resolved[i] = f'{flag}={env.resolve_config(name)}'
      elif i + 1 < len(argv):
        resolved[i + 1] = env.resolve_config(argv[i + 1])
    except ValueError as error:
      sys.exit(f'error: {error}')
  try:
    return workdir.parse_flags(resolved)
  except SystemExit as error:
    # ml_collections wraps what `get_config` raises in a whole traceback.
    head, _, message = str(error.code).rpartition('ValueError: ')
    if 'Traceback' in head:
      sys.exit(f'error: {message}')
    raise


def check(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for values that no training can use.

  It is called before anything is written or compiled, so that a config that is
  refused leaves nothing behind.
  """
  if 'task' not in config:
    raise ValueError(
      'the config has no task: it is not of a training run (a study runs with '
      'python -m meta_rl.study).'
    )
  values = workdir.flatten(config.to_dict())
  for name in _COUNTS:
    if values.get(name, 1) < 1:
      raise ValueError(f'{name}={values[name]} is given; allowed is >= 1.')
  for name, allowed in _CHOICES.items():
    if name in values:
      masked.check_choice(name, values[name], allowed)
  if values.get('loss.chunk') is not None and values['loss.chunk'] < 1:
    raise ValueError(
      f'loss.chunk={values["loss.chunk"]} is given; allowed is >= 1, or None.'
    )
  if not config.rollout.temperature > 0:
    raise ValueError(
      f'rollout.temperature={config.rollout.temperature} is given; allowed is '
      '> 0: the gradient is that of a policy that samples.'
    )
  total_cost = values.get('total_cost')
  if total_cost is not None and not total_cost > 0:
    raise ValueError(
      f'total_cost={total_cost} is given; allowed is > 0, or None for no limit.'
    )
  if total_cost is not None and config.algorithm.name == 'sft':
    raise ValueError(
      f"total_cost={total_cost} is of reinforcement: algorithm.name='sft' ends "
      'by total_steps; leave it out.'
    )
  task = make_task(config)
  make_calls(config, make_model(config, task), task)
  if config.algorithm.name != 'sft':
    check_rl(config)


def check_rl(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for sizes that cannot work together."""
  rollout, batching = config.rollout, config.batching
  if rollout.top_p is not None or rollout.top_k is not None:
    raise ValueError(
      f'rollout.top_p={rollout.top_p} and top_k={rollout.top_k}: training '
      'scores the full softmax, so the policy that samples must not be '
      'truncated; set both to None (they are for evaluation).'
    )
  needs_group = (
    config.algorithm.name == 'outcome'
    or config.algorithm.get('credit') == 'immediate'
  )
  if rollout.group_size == 1 and needs_group:
    raise ValueError(
      'rollout.group_size=1 leaves a group baseline nothing to compare with: '
      'give at least 2, or use algorithm.name=mrt with the prover as baseline.'
    )
  rows = rollout.num_prompts * rollout.group_size
  parts = batching.mini_batches * batching.micro_batches
  if rollout.num_prompts % batching.mini_batches or rows % parts:
    raise ValueError(
      f'rollout of {rollout.num_prompts} prompts x {rollout.group_size} cannot '
      f'be cut into batching.mini_batches={batching.mini_batches} x '
      f'micro_batches={batching.micro_batches}: num_prompts must be a multiple '
      'of mini_batches, and all rows of their product.'
    )
  if config.algorithm.name == 'mrt' and config.prover.kind == 'none':
    raise ValueError(
      "algorithm.name='mrt' needs a prover: set prover.kind to 'exact' or "
      "'sampled'."
    )
  # The algorithm's own checks of its options, on shapes alone.
  group, boundaries = rollout.group_size, config.prover.max_episodes + 1
  shape = lambda dtype, *dims: jax.ShapeDtypeStruct((group, *dims), dtype)
  measured = algorithms.Measured(
    rewards=shape(jnp.float32),
    success=shape(jnp.float32, boundaries),
    episodes=Episodes(shape(jnp.int32, boundaries), shape(jnp.int32)),
    stop_index=shape(jnp.int32),
    answered=shape(bool),
  )
  advantage_fn = make_advantages(config)
  jax.eval_shape(lambda m: advantage_fn(m, rollout.thinking_budget), measured)


def stack(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns one batch out of equal-shaped records."""
  return {k: np.stack([r[k] for r in records]) for k in records[0]}
