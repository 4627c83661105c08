"""From a config to a task, its data, a model and its weights.

The command modules (`train`, `sft`, `evaluate`, `export`) share this, and with
it `setup_steps`, `check_config`, `command_line` and `held_out`: nothing else
reads a ConfigDict.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from meta_rl import (
  hf,
  lora,
  models,
  optimizers,
  sharding,
  tasks,
  value,
  weights,
)
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.types import Model, Params

# The start of a run, in its folder.
REFERENCE_NAME = 'reference.safetensors'


def task_kit(config: ml_collections.ConfigDict) -> TaskKit:
  """Returns the host functions of the task named in `config.task`."""
  return tasks.make_kit(config.task.name, **task_options(config))


def task_options(config: ml_collections.ConfigDict) -> dict:
  """Returns what `config.task` says beside the name: options of the kit."""
  return {k: v for k, v in config.task.to_dict().items() if k != 'name'}


def make_task(config: ml_collections.ConfigDict) -> Task:
  """Returns the task named in `config.task`."""
  return task_kit(config).make_task(**task_options(config))


def data_dir() -> Path:
  """Returns where datasets go: $META_RL_DATA or ~/.cache/meta_rl/data."""
  if given := os.environ.get('META_RL_DATA'):
    return Path(given)
  try:
    return Path.home() / '.cache' / 'meta_rl' / 'data'
  except RuntimeError:  # a user without a home, as in many containers
    raise ValueError(
      'there is no home directory for datasets: set META_RL_DATA to a folder.'
    ) from None


def load_problems(config: ml_collections.ConfigDict, split: str):
  """Returns the random-access source of a split of the task's problems.

  Raises:
    ValueError: one line; the problems to train on list no accepted answer, and
      the prover is one that scores them.
  """
  options = task_options(config)
  source = task_kit(config).load_source(data_dir(), split, **options)
  if config.task.name == 'text' and split == 'train':
    kind = config.prover.kind
    some = (source[i] for i in range(min(64, len(source))))
    listed = any(record['accepted'] for record in some)
    if kind in ('exact', 'control_variate') and not listed:
      raise ValueError(
        f'prover.kind={kind!r} scores the accepted answers, and the problems '
        "of this task list none: set prover.kind='sampled'."
      )
  return source


def model_config(config: ml_collections.ConfigDict):
  """Returns the shape of `config.model`: of a checkpoint, or its own keys."""
  options = config.model.to_dict()
  path = options.pop('path', '')
  if path:
    return hf.model_config(path, **options)
  return models.config_from_dict(options)


def make_model(config: ml_collections.ConfigDict, task: Task) -> Model:
  """Returns the model of `config.model`, checked against the task."""
  shape = model_config(config)
  if shape.vocab_size < task.vocab_size:
    raise ValueError(
      f'model.vocab_size={shape.vocab_size} is below the {task.vocab_size} '
      f'tokens of {task.name}.'
    )
  check_context(config, task)
  return models.make_model(shape)


def check_context(
  config: ml_collections.ConfigDict, task: Task, *, times: int = 1
):
  """Raises ValueError if traces are longer than a checkpoint was made for.

  Args:
    config: of a run.
    task: of it.
    times: thinking budgets that a thought may take.
  """
  path = config.model.get('path')
  limit = hf.context_length(path) if path else None
  if limit is None:
    return
  length = trace_length(config, task, times=times)
  if length > limit:
    raise ValueError(
      f'model.path={path} was made for {limit:,} tokens '
      '(max_position_embeddings and rope_scaling of its config.json), and a '
      f'trace may have {length:,}: a prompt of '
      f'{config.task.get("prompt_length", 0):,}, '
      f'{times * config.rollout.thinking_budget:,} of thought, '
      f'{len(task.stop_ids)} that end it and an answer of '
      f'{task.answer_length}; lower rollout.thinking_budget, '
      'task.prompt_length or task.answer_length.'
    )


def trace_length(
  config: ml_collections.ConfigDict, task: Task, *, times: int = 1
) -> int:
  """Returns the tokens of the longest trace; of built-in tasks no prompt's."""
  return (
    config.task.get('prompt_length', 0)
    + times * config.rollout.thinking_budget
    + len(task.stop_ids)
    + task.answer_length
  )


def abstract_params(config: ml_collections.ConfigDict) -> Params:
  """Returns shapes and dtypes of the policy; nothing is allocated."""
  shape = model_config(config)
  return jax.eval_shape(lambda: models.init_params(shape, jax.random.key(0)))


def initial_params(config: ml_collections.ConfigDict, *, mesh=None) -> Params:
  """Returns the parameters that `config.init_from` says to start from.

  Those of an algorithm with a critic hold its value head too.

  Args:
    config: of a run.
    mesh: of devices to read weights straight to, each its share of a tensor at
      a time (fresh ones are small enough to be drawn on one device and placed
      after); None: the default device.
  """
  key = jax.random.key(config.seed)
  if config.init_from and config.init_from != 'random':
    return weights.init_from(config.init_from, _like(config, mesh))
  shape, path = model_config(config), config.model.get('path')
  if not path or config.init_from == 'random':
    return _with_head(config, models.init_params(shape, key))
  options = config.model.to_dict()
  options = {k: v for k, v in options.items() if k.partition('_')[0] != 'lora'}
  _, params, _ = hf.load_model(
    tokenizer=False, shardings=_shardings(mesh), **options
  )
  if shape.lora_rank:
    params = lora.add(params, shape, key)
  return _with_head(config, params)


def _shardings(mesh):
  """Returns `params -> shardings` on a mesh, None without one."""
  if mesh is None:
    return None
  return lambda params: sharding.param_shardings(params, mesh)


def _like(config, mesh=None) -> Params:
  """Returns shapes, dtypes and with a mesh places of all parameters."""
  like = _with_head(config, abstract_params(config))
  if mesh is None:
    return like
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    like,
    _shardings(mesh)(like),
  )


def _with_head(config, params: Params) -> Params:
  if config.algorithm.name != 'ppo':
    return params
  width = model_config(config).width
  return value.with_head(params, value.init_head(width))


def trainable(config: ml_collections.ConfigDict):
  """Returns which parameters are trained, of their paths; None: all."""
  if not config.model.get('lora_rank'):
    return None
  return lambda path: lora.is_factor(path) or path.startswith(f'{value.NAME}/')


def blank_params(config: ml_collections.ConfigDict, *, mesh=None) -> Params:
  """Returns zeros of the parameters' shapes, for a checkpoint to fill.

  Args:
    config: of a run.
    mesh: as in `initial_params`.
  """
  return jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding),
    _like(config, mesh),
  )


def has_reference(config: ml_collections.ConfigDict) -> bool:
  """Returns whether a run needs the policy that it started from all along."""
  from_it = config.algorithm.get('prefix_policy') == 'reference'
  return bool(config.loss.kl_coef) or from_it


def start_params(
  config: ml_collections.ConfigDict, folder, *, mesh=None
) -> Params:
  """Returns what a run that has nothing saved yet starts from.

  Where they are also the reference they are kept in the run folder, so that
  the run can go on when `init_from` has moved or changed. Under LoRA the policy
  holds the reference's weights itself.

  Args:
    config: of a run.
    folder: its run folder.
    mesh: as in `initial_params`.
  """
  params = initial_params(config, mesh=mesh)
  if has_reference(config) and trainable(config) is None:
    whole = sharding.gather_to_host(params) if mesh is not None else params
    path = epath.Path(folder) / REFERENCE_NAME
    sharding.by_main(lambda: weights.save_safetensors(path, whole, {}))
  return params


def reference_params(
  config: ml_collections.ConfigDict, folder, *, mesh=None
) -> Params:
  """Returns what a run started from, as `start_params` kept it.

  Args:
    config: of a run.
    folder: its run folder.
    mesh: as in `initial_params`.
  """
  kept = epath.Path(folder) / REFERENCE_NAME
  if kept.exists():
    return weights.init_from(str(kept), _like(config, mesh))
  return initial_params(config, mesh=mesh)


def make_optimizer(config: ml_collections.ConfigDict):
  """Returns the optax transformation; its schedule spans the whole run."""
  batching = config.batching
  updates = config.total_steps * batching.mini_batches * batching.epochs
  options = config.optimizer.to_dict()
  optimizer, _ = optimizers.make_optimizer(total_steps=updates, **options)
  return optimizer
