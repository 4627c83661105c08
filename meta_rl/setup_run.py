"""From a config to a task, its data, a model and the step functions.

The command modules (`train`, `sft`, `evaluate`) share this: nothing else reads
a ConfigDict.
"""

import os
from pathlib import Path

import jax
import ml_collections
import numpy as np

from meta_rl import models, optimizers, steps, tasks, weights
from meta_rl.tasks import builder
from meta_rl.tasks.base import Task
from meta_rl.types import Model, Params

# Options of `config.task` that are no fields of the dataset.
_TASK_ONLY = ('name',)


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


def make_calls(config, model: Model, task: Task, *, group_size=None):
  """Returns the unjitted (generate, prove) of a config.

  Args:
    config: an RL config.
    model, task: the network and the task.
    group_size: traces a prompt, default `config.rollout.group_size`.
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
  )
  prove = steps.make_prove(
    model,
    task,
    group_size=group_size,
    max_episodes=config.prover.max_episodes,
    kind=config.prover.kind,
    num_branches=config.prover.num_branches,
    temperature=rollout.temperature,
  )
  return generate, prove


def check_rl(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for sizes that cannot work together."""
  rollout, batching = config.rollout, config.batching
  if rollout.num_prompts < 1 or rollout.group_size < 1:
    raise ValueError(
      f'rollout.num_prompts={rollout.num_prompts} and group_size='
      f'{rollout.group_size} must both be at least 1.'
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


def stack(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns one batch out of equal-shaped records."""
  return {k: np.stack([r[k] for r in records]) for k in records[0]}
