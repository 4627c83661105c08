"""From a config to a task, its data, a model and the step functions.

The command modules (`train`, `sft`, `evaluate`) share this: nothing else reads
a ConfigDict.
"""

import dataclasses
import math
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
  external,
  losses,
  masked,
  models,
  optimizers,
  rewards,
  steps,
  tasks,
  weights,
  workdir,
)
from meta_rl.tasks import builder, countdown
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
  'reward_errors': rewards.ERRORS,
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
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )
  return generate, prove


def make_training_calls(config, model: Model, task: Task):
  """Returns the (generate, prove) of a config's own source of traces.

  Those of `make_calls`, unless `config.rollout.source` is a file: `generate`
  then takes the traces from the batch, and rewards may be those of the rows.
  """
  if rollouts_path(config) is None:
    return make_calls(config, model, task)
  if config.external.reward == 'task':
    return steps.replay, make_calls(config, model, task)[1]
  ungraded = dataclasses.replace(
    task, verify=lambda answers, mask, batch: jnp.zeros(mask.shape[:-1])
  )
  _, prove = make_calls(config, model, ungraded)
  return steps.replay, steps.with_given_rewards(prove)


def rollouts_path(config: ml_collections.ConfigDict) -> str | None:
  """Returns the file that `config.rollout.source` names, None for 'policy'.

  Raises:
    ValueError: another source.
  """
  source = config.rollout.source
  kind, _, path = source.partition(':')
  if source != 'policy' and (kind != 'jsonl' or not path):
    raise ValueError(
      f'rollout.source={source!r} is unknown; allowed: policy, jsonl:PATH.'
    )
  return path or None


def load_rollouts(
  config: ml_collections.ConfigDict, task: Task
) -> external.RolloutBatches:
  """Returns the batches of the file that `config.rollout.source` names."""
  by_task = config.external.reward == 'task'
  return external.RolloutBatches(
    rollouts_path(config),
    num_prompts=config.rollout.num_prompts,
    group_size=config.rollout.group_size,
    seed=config.seed,
    task=task,
    vocab_size=config.model.vocab_size,
    problem_fn=_make_problem_fn(config.task) if by_task else None,
    buckets=config.external.buckets,
    needs_reward=not by_task,
  )


def _make_problem_fn(task: ml_collections.ConfigDict):
  """Returns prompt ids -> the arrays of its problem, of `config.task`."""

  def problem_fn(prompt):
    numbers, target = countdown.parse_prompt(prompt)
    problem = countdown.make_problem(numbers, target, task.ops, task.max_value)
    count = len(problem.answers)
    if len(numbers) != task.n or not 1 <= count <= task.max_answers:
      raise ValueError(
        f'the prompt has {len(numbers)} numbers and {count} accepted answers '
        f'with task.ops={task.ops!r}; the config has task.n={task.n} and '
        f'1..task.max_answers={task.max_answers}'
      )
    arrays = countdown.problem_arrays(
      [problem], max_answers=task.max_answers, num_numbers=task.n
    )
    return {k: x[0] for k, x in arrays.items() if not k.startswith('prompt')}

  return problem_fn


def make_reward_fn(config: ml_collections.ConfigDict, task: Task, get):
  """Returns the function that adds a user's rewards to what was measured.

  None where `config.rewards` is empty: nothing is then fetched or computed.

  Args:
    config: an RL config.
    task: its task.
    get: fetches values from the devices, of `sharding.Parallel`.
  """
  if not config.rewards:
    return None
  return rewards.make_reward_fn(
    rewards.parse(config.rewards),
    task=task,
    group_size=config.rollout.group_size,
    get=get,
    outcome_weight=config.outcome_weight,
    errors=config.reward_errors,
  )


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
  check_rewards(config)
  check_external(config)
  task = make_task(config)
  make_calls(config, make_model(config, task), task)
  if config.algorithm.name != 'sft':
    check_rl(config)


def check_rewards(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for rewards that cannot be used.

  Their functions are imported here, before anything is compiled.
  """
  weight = config.outcome_weight
  if not config.rewards:
    if weight != 1.0 or config.reward_errors != 'raise':
      raise ValueError(
        f'outcome_weight={weight} and reward_errors={config.reward_errors!r} '
        "are of config.rewards, which is empty: leave them at 1.0 and 'raise'."
      )
    return
  if config.algorithm.name == 'sft':
    raise ValueError(
      "algorithm.name='sft' learns from given traces and asks no rewards: "
      'leave config.rewards empty.'
    )
  rewards.parse(config.rewards)
  if not math.isfinite(weight):
    raise ValueError(f'outcome_weight={weight} is given; allowed is finite.')
  if config.algorithm.name == 'mrt' and weight != 1.0:
    raise ValueError(
      f"outcome_weight={weight} with algorithm.name='mrt': progress is that of "
      'the outcome itself; leave it at 1.0 and weigh the rewards against it.'
    )
  if config.rollout.group_size == 1:
    raise ValueError(
      'rollout.group_size=1 leaves rewards nothing to compare with: give at '
      'least 2.'
    )
  if jax.process_count() > 1:
    raise ValueError(
      f'rewards are asked in one process and there are {jax.process_count()}: '
      'leave config.rewards empty, or run one process.'
    )


def check_external(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for a file of rollouts that can't be used.

  The file itself is read when training begins.
  """
  path = rollouts_path(config)
  source = f'rollout.source={config.rollout.source!r}'
  if path is None:
    if 'external' in config:
      raise ValueError(
        f'{source} makes config.external useless: give a file, jsonl:PATH, or '
        'take another config.'
      )
    return
  if config.algorithm.name == 'sft':
    raise ValueError(
      f"{source} is for reinforcement: algorithm.name='sft' reads data.path."
    )
  if 'external' not in config:
    raise ValueError(
      f'{source} needs the options of config.external: start from '
      '--config=external_countdown.'
    )
  options = config.external
  masked.check_choice('external.reward', options.reward, ('task', 'row'))
  masked.check_choice(
    'external.correction', options.correction, steps.CORRECTIONS
  )
  for name in ('cap', 'max_mismatch'):
    if not options[name] > 0:
      raise ValueError(f'external.{name}={options[name]}; allowed is > 0.')
  buckets = tuple(options.buckets)
  if any(n < 1 for n in buckets) or sorted(set(buckets)) != list(buckets):
    raise ValueError(
      f'external.buckets={buckets} must be numbers of tokens that rise.'
    )
  plain = config.algorithm.name == 'outcome' and config.prover.kind == 'none'
  if options.reward == 'row' and not plain:
    raise ValueError(
      "external.reward='row' goes with algorithm.name='outcome' and "
      "prover.kind='none': J is the chance of the task's own outcome."
    )
  if jax.process_count() > 1:
    raise ValueError(
      f'{source} is read in one process and there are {jax.process_count()}.'
    )


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
