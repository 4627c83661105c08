"""From a config to a task, its data, a model and the step functions.

The command modules (`train`, `sft`, `evaluate`, `export`) share this, and with
it `check_config`, `command_line` and `held_out`: nothing else reads a
ConfigDict.
"""

import functools
import inspect
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from meta_rl import (
  algorithms,
  curriculum,
  episodes,
  hf,
  lora,
  models,
  optimizers,
  sharding,
  steps,
  tasks,
  value,
  weights,
)
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.types import Model, Params

# The start of a run, in its folder.
REFERENCE_NAME = 'reference.safetensors'

# Keys of `config.algorithm` that say what is sampled or trained on, and not how
# it is credited: `make_training_calls` and `make_rows` read them.
_SAMPLING = {
  'prefix': {'prefix_policy', 'prefix_success'},
  'brpo': {'summary', 'summaries_per_trace', 'summary_baseline'},
}


# Parameters of an algorithm that a run gives it: no key of a config.
_GIVEN = {
  'measured',
  'length',
  'group_size',
  'horizon',
  'budgets',
  'axis_name',
}


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
  """Returns the random-access source of a split of the task's problems."""
  options = task_options(config)
  return task_kit(config).load_source(data_dir(), split, **options)


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
  return models.make_model(shape)


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


def reads_success(config: ml_collections.ConfigDict) -> bool:
  """Returns whether training uses J, or has it measured for the log alone.

  What is measured for the log is no cost of the method.
  """
  name = config.algorithm.name
  if name == 'star':
    return config.algorithm.select == 'progress'
  if name == 'ppo':
    return config.critic.value_j_coef > 0
  if name == 'segment':
    return config.algorithm.alpha > 0
  if (pathwise_of(config) or {}).get('alone'):
    return False  # all advantages are 0, and the term has a J of its own
  return name != 'outcome'


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
    weights.save_safetensors(Path(folder) / REFERENCE_NAME, whole, {})
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
  kept = Path(folder) / REFERENCE_NAME
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
  rollout, kind = config.rollout, config.prover.kind
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
    kind=kind,
    boundaries=config.prover.boundaries,
    budgets=budgets_of(config),
    num_branches=config.prover.num_branches,
    num_enumerated=config.prover.num_enumerated,
    thinking_budget=rollout.thinking_budget,
    summaries_per_trace=summaries_of(config) if kind == 'sampled' else 0,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )
  return generate, prove


def make_training_calls(config, model: Model, task: Task):
  """Returns the unjitted (generate, prove) that train a config.

  Those of `make_calls`, but for `algorithm.name='prefix'`: its rollouts branch
  off a prefix, and with `algorithm.prefix_policy='reference'` its generate
  takes the pair (policy, reference) for params.
  """
  generate, prove = make_calls(config, model, task)
  if pathwise_of(config):
    prove = steps.with_answers(prove, group_size=config.rollout.group_size)
  if config.algorithm.name != 'prefix':
    return generate, prove
  rollout = config.rollout
  shared = {
    'group_size': rollout.group_size,
    'temperature': rollout.temperature,
    'top_p': rollout.top_p,
    'top_k': rollout.top_k,
  }
  generate = steps.make_branches(
    model,
    task,
    thinking_budget=rollout.thinking_budget,
    max_episodes=config.prover.max_episodes,
    boundaries=config.prover.boundaries,
    prefix_policy=config.algorithm.prefix_policy,
    **shared,
  )
  prove = steps.make_branch_prove(
    prove,
    model,
    task,
    prefix_success=config.algorithm.prefix_success,
    num_branches=config.prover.num_branches,
    num_enumerated=config.prover.num_enumerated,
    **shared,
  )
  return generate, prove


def budgets_of(config: ml_collections.ConfigDict) -> tuple[int, ...] | None:
  """Returns the token budgets of `config.prover`; None where it has delimiters.

  Raises:
    ValueError: budgets beside delimiters, that are no increasing whole numbers,
      or whose last is not the thinking budget, behind which nothing would be
      measured.
  """
  prover, total = config.prover, config.rollout.thinking_budget
  budgets = prover.budgets
  if prover.boundaries != 'budgets':
    if budgets is not None:
      raise ValueError(
        f'prover.budgets={tuple(budgets)} is of prover.boundaries='
        f"'budgets' alone: set it to None with {prover.boundaries!r}."
      )
    return None
  if budgets is None:
    return episodes.equal_budgets(total, min(prover.max_episodes, total))
  whole = all(type(b) is int and b >= 1 for b in budgets)
  if not whole or any(b <= a for a, b in zip(budgets, budgets[1:])):
    raise ValueError(
      f'prover.budgets={tuple(budgets)} is given; allowed are whole numbers '
      '>= 1, each above the one before.'
    )
  if not budgets or budgets[-1] != total:
    raise ValueError(
      f'prover.budgets={tuple(budgets)}: the last must be the thinking budget, '
      f'rollout.thinking_budget={total}.'
    )
  return tuple(budgets)


def make_curriculum(
  config: ml_collections.ConfigDict,
) -> curriculum.Curriculum:
  """Returns the curriculum of `config.curriculum`, of one budget if it is off.

  Raises:
    ValueError: budgets that cannot be chosen from.
  """
  own, total = config.curriculum, config.rollout.thinking_budget
  budgets = tuple(own.budgets) or (total,)
  if own.budgets and (len(budgets) < 2 or budgets[-1] != total):
    raise ValueError(
      f'curriculum.budgets={budgets}: give at least two, the last of them '
      f'rollout.thinking_budget={total}, or () for no curriculum.'
    )
  return curriculum.Curriculum(budgets, kappa=own.kappa, every=own.every)


def stages(
  config: ml_collections.ConfigDict,
) -> dict[int, ml_collections.ConfigDict]:
  """Returns the config of each budget that training may choose, by tokens.

  A smaller budget has as many fewer episodes, and of `prover.budgets` those up
  to it. Without a curriculum there is the config itself alone.

  Raises:
    ValueError: a budget at which `prover.budgets` measure nothing.
  """
  total, given = config.rollout.thinking_budget, config.prover.budgets
  found = {}
  for budget in make_curriculum(config).budgets:
    stage = config.copy_and_resolve_references()
    stage.unlock()
    stage.rollout.thinking_budget = budget
    stage.prover.max_episodes = -(-config.prover.max_episodes * budget // total)
    if given is not None:
      if budget not in given:
        raise ValueError(
          f'curriculum.budgets hold {budget} and prover.budgets={tuple(given)} '
          'do not: J at the end of thinking would not be measured; add it.'
        )
      stage.prover.budgets = tuple(b for b in given if b <= budget)
    stage.curriculum.budgets = ()
    stage.lock()
    found[budget] = stage
  return found


def summaries_of(config: ml_collections.ConfigDict) -> int:
  """Returns how many forced answers of each trace are trained on."""
  algorithm = config.algorithm
  if algorithm.name == 'brpo' and algorithm.summary == 'rows':
    return algorithm.summaries_per_trace
  return 0


def make_rows(config: ml_collections.ConfigDict, task: Task):
  """Returns `(traces, measured) -> rows` of forced answers, None for none."""
  if not summaries_of(config):
    return None
  return steps.make_rows(
    task,
    group_size=config.rollout.group_size,
    summary_baseline=config.algorithm.summary_baseline,
  )


def pathwise_of(config: ml_collections.ConfigDict) -> dict | None:
  """Returns what `config.loss.pathwise` says, None where it is off."""
  given = config.loss.pathwise
  return None if given.boundaries == 'none' else given.to_dict()


def make_pathwise_term(config, model: Model, task: Task, *, constant=None):
  """Returns the pathwise prover term of the loss, None where it is off.

  Args:
    config: an RL config.
    model, task: the network and the task.
    constant: that of the policy gradient's aggregate.
  """
  given = pathwise_of(config)
  if given is None:
    return None
  return steps.make_pathwise_term(
    model,
    task,
    coef=given['coef'],
    temperature=config.rollout.temperature,
    aggregate=config.loss.aggregate,
    constant=constant,
  )


def make_prepare(config: ml_collections.ConfigDict, task: Task):
  """Returns what the pathwise term adds to a batch, None where it is off."""
  given = pathwise_of(config)
  if given is None:
    return None
  return steps.make_prepare(
    task,
    boundaries=given['boundaries'],
    alone=given['alone'],
    horizon=config.rollout.thinking_budget,
    outcome_mass=config.algorithm.outcome_mass,
  )


def make_differentiated(config: ml_collections.ConfigDict, task: Task):
  """Returns `measured -> i32[B]`, tokens differentiated; None where it is off.

  Of the probes of the pathwise term (`steps.differentiated_tokens`).
  """
  given = pathwise_of(config)
  if given is None:
    return None
  return functools.partial(
    steps.differentiated_tokens,
    stop_length=len(task.stop_ids),
    boundaries=given['boundaries'],
    horizon=config.rollout.thinking_budget,
    outcome_mass=config.algorithm.outcome_mass,
  )


def make_advantages(config: ml_collections.ConfigDict, *, axis_name=None):
  """Returns `(Measured, T) -> f32[B,T]` of `config.algorithm`.

  Args:
    config: an RL config.
    axis_name: of a mapped data axis.
  """
  options = config.algorithm.to_dict()
  name = options.pop('name')
  taken = _parameters(name)
  for key in _SAMPLING.get(name, set()) - set(taken):
    options.pop(key)
  offered = {
    'group_size': config.rollout.group_size,
    'horizon': config.rollout.thinking_budget,
    'budgets': budgets_of(config) or (),
    'axis_name': axis_name,  # for a baseline over all rows
  }
  options |= {key: offered[key] for key in offered if key in taken}
  return steps.make_advantages(name, **options)


def algorithm_keys(name: str) -> set[str]:
  """Returns the keys that `config.algorithm` may have."""
  return {'name', *_parameters(name), *_SAMPLING.get(name, ())} - _GIVEN


def _parameters(name):
  return inspect.signature(algorithms.ALGORITHMS[name]).parameters
