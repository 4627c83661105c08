"""From a config to a task, its data, a model and the step functions.

The command modules (`train`, `sft`, `evaluate`) share this: nothing else reads
a ConfigDict.
"""

import dataclasses
import inspect
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
  dynamic_sampling,
  env,
  episodes,
  losses,
  masked,
  models,
  optimizers,
  steps,
  tasks,
  value,
  weights,
  workdir,
)
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.types import Episodes, Model, Params

# The start of a run, in its folder.
REFERENCE_NAME = 'reference.safetensors'

# Options of an algorithm that say what is sampled or trained on, not how it is
# credited.
_BRANCHES = ('prefix_policy', 'prefix_success')
_SAMPLING = {
  'prefix': _BRANCHES,
  'brpo': ('summary', 'summaries_per_trace', 'summary_baseline'),
}

# Keys whose value must be at least 1 wherever a config has them.
_COUNTS = (
  'total_steps',
  'model.vocab_size',
  'model.num_layers',
  'model.width',
  'model.num_heads',
  'model.ffn_width',
  'rollout.thinking_budget',
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
_NOT_NEGATIVE = (
  'max_log_prob_gap',
  'loss.kl_coef',
  'loss.entropy_coef',
  'optimizer.weight_decay',
  'optimizer.warmup_steps',
)
_CHOICES = {
  'algorithm.name': (*algorithms.ALGORITHMS, 'sft'),
  'algorithm.credit': algorithms.CREDITS,
  'algorithm.form': algorithms.FORMS,
  'algorithm.select': algorithms.SELECTS,
  'algorithm.prefix_policy': steps.PREFIX_POLICIES,
  'algorithm.prefix_success': steps.PREFIX_SUCCESS,
  'algorithm.summary': algorithms.SUMMARIES,
  'prover.boundaries': steps.BOUNDARIES,
  'loss.surrogate': losses.SURROGATES,
  'loss.ratio': losses.RATIOS,
  'loss.aggregate': losses.AGGREGATES,
  'loss.kl_estimator': tuple(losses.KL_ESTIMATORS),
}


def task_kit(config: ml_collections.ConfigDict) -> TaskKit:
  """Returns the host functions of the task named in `config.task`."""
  if config.task.name not in tasks.TASKS:
    raise ValueError(
      f'task.name={config.task.name!r} is unknown; allowed: '
      f'{sorted(tasks.TASKS)}.'
    )
  return tasks.TASKS[config.task.name]


def task_options(config: ml_collections.ConfigDict) -> dict:
  """Returns what `config.task` says beside the name: options of the kit."""
  return {k: v for k, v in config.task.items() if k != 'name'}


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
  """Returns shapes and dtypes of the policy; nothing is allocated."""
  shape = models.config_from_dict(config.model.to_dict())
  return jax.eval_shape(lambda: models.init_params(shape, jax.random.key(0)))


def initial_params(config: ml_collections.ConfigDict) -> Params:
  """Returns the parameters that `config.init_from` says to start from.

  Those of an algorithm with a critic hold its value head too.
  """
  if config.init_from:
    return weights.init_from(config.init_from, _like(config))
  shape = models.config_from_dict(config.model.to_dict())
  return _with_head(
    config, models.init_params(shape, jax.random.key(config.seed))
  )


def _like(config) -> Params:
  """Returns shapes and dtypes of all that is trained."""
  return _with_head(config, abstract_params(config))


def _with_head(config, params: Params) -> Params:
  if config.algorithm.name != 'ppo':
    return params
  return value.with_head(params, value.init_head(config.model.width))


def blank_params(config: ml_collections.ConfigDict) -> Params:
  """Returns zeros of the parameters' shapes, for a checkpoint to fill."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _like(config))


def has_reference(config: ml_collections.ConfigDict) -> bool:
  """Returns whether a run needs the policy that it started from all along."""
  from_it = config.algorithm.get('prefix_policy') == 'reference'
  return bool(config.loss.get('kl_coef')) or from_it


def start_params(config: ml_collections.ConfigDict, folder) -> Params:
  """Returns what a run that has nothing saved yet starts from.

  Where they are also the reference they are kept in the run folder, so that
  the run can go on when `init_from` has moved or changed.
  """
  params = initial_params(config)
  if has_reference(config):
    weights.save_safetensors(Path(folder) / REFERENCE_NAME, params, {})
  return params


def reference_params(config: ml_collections.ConfigDict, folder) -> Params:
  """Returns the parameters that a run started from, when it goes on."""
  kept = Path(folder) / REFERENCE_NAME
  if kept.exists():
    return weights.init_from(str(kept), _like(config))
  return initial_params(config)


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
    prefix_policy=config.algorithm.prefix_policy,
    **shared,
  )
  prove = steps.make_branch_prove(
    prove,
    model,
    task,
    prefix_success=config.algorithm.prefix_success,
    num_branches=config.prover.num_branches,
    **shared,
  )
  return generate, prove


def budgets_of(config: ml_collections.ConfigDict) -> tuple[int, ...] | None:
  """Returns the token budgets of `config.prover`; None where it has delimiters.

  Raises:
    ValueError: budgets beside delimiters, or a last one that is not the
      thinking budget, behind which nothing would be measured.
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
  if not budgets or budgets[-1] != total:
    raise ValueError(
      f'prover.budgets={tuple(budgets)}: the last must be the thinking budget, '
      f'rollout.thinking_budget={total}.'
    )
  return tuple(budgets)


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


def make_advantages(config: ml_collections.ConfigDict, *, axis_name=None):
  """Returns `(Measured, T) -> f32[B,T]` of `config.algorithm`.

  Args:
    config: an RL config.
    axis_name: of a mapped data axis.
  """
  options = config.algorithm.to_dict()
  if options['name'] in ('mrt', 'star'):
    options['horizon'] = config.rollout.thinking_budget
  if options['name'] in ('mrt', 'outcome'):
    # For a baseline over all rows; a group lies on one device.
    options['axis_name'] = axis_name
  for name in _BRANCHES:
    options.pop(name, None)
  if options['name'] == 'brpo':
    options['budgets'] = budgets_of(config) or ()
    # These say what else is trained on (`make_rows`).
    del options['summary'], options['summaries_per_trace']
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


def recorded_config(folder, recorded: dict) -> ml_collections.ConfigDict:
  """Returns the config that a run folder recorded.

  Raises:
    ValueError: it is no config of meta_rl, such as another tool's file.
  """
  config = ml_collections.ConfigDict(recorded)
  for section in ('task', 'model', 'rollout', 'algorithm'):
    if not isinstance(config.get(section), ml_collections.ConfigDict):
      raise ValueError(
        f'{folder}/config.json is of another program: it has no {section!r} '
        'section. Name a run folder of meta_rl.train.'
      )
  return config


def refuse_arguments(argv: list[str]):
  """Leaves with one line if a command was given words that are no flags."""
  if len(argv) > 1:
    hint = ''
    if '=' in argv[1]:
      hint = f' Did you mean --{argv[1].lstrip("-")}?'
    sys.exit(f'error: {argv[1]!r} is no flag: flags begin with --.{hint}')


def check_numbers(values: dict):
  """Raises ValueError unless each number of a config can be used as one.

  Args:
    values: {dotted key: value}.
  """
  for name, given in values.items():
    if isinstance(given, float) and not math.isfinite(given):
      raise ValueError(f'{name}={given} is given; allowed are finite numbers.')
    for kind, names in (((int, float), _NOT_NEGATIVE), ((int,), _COUNTS)):
      wrong = isinstance(given, bool) or not isinstance(given, kind)
      if name in names and wrong:
        raise ValueError(
          f'{name}={given!r} is given; allowed is a number'
          + (' without a fraction.' if kind == (int,) else '.')
        )
    if name in _COUNTS and not 1 <= given < 2**31:
      raise ValueError(
        f'{name}={given} is given; allowed is >= 1 and below 2^31.'
      )
    if name in _NOT_NEGATIVE and given < 0:
      raise ValueError(f'{name}={given} is given; allowed is >= 0.')


def check_sections(config: ml_collections.ConfigDict):
  """Raises ValueError unless a config has what its algorithm reads."""
  name = config.algorithm.name
  needed = {'sft': ('data',)}.get(name, ('rollout', 'prover', 'loss'))
  for section in needed:
    if section not in config:
      raise ValueError(
        f'algorithm.name={name!r} needs the section config.{section}, which '
        'this config lacks: start from a config of that algorithm.'
      )
  if name in algorithms.ALGORITHMS:
    known = inspect.signature(algorithms.ALGORITHMS[name]).parameters
    known = {*known, 'name', *_SAMPLING.get(name, ())}
    unknown = sorted(set(config.algorithm) - known)
    if unknown:
      raise ValueError(
        f'algorithm.name={name!r} does not take algorithm.{unknown[0]}: start '
        'from a config of that algorithm.'
      )


def check(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for values that no training can use.

  It is called before anything is written or compiled, so that a config that is
  refused leaves nothing behind.
  """
  values = workdir.flatten(config.to_dict())
  check_numbers(values)
  check_sections(config)
  for name, allowed in _CHOICES.items():
    if name in values:
      masked.check_choice(name, values[name], allowed)
  for name in ('loss.chunk', 'rollout.top_k'):
    size = values.get(name)
    if size is not None and not (isinstance(size, int) and size >= 1):
      raise ValueError(f'{name}={size!r} is given; allowed is >= 1, or None.')
  check_buckets(config)
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
  make_training_calls(config, make_model(config, task), task)
  if config.algorithm.name != 'sft':
    check_rl(config)


def note_on_saving(config: ml_collections.ConfigDict) -> str:
  """Returns a line if evaluated steps exist that cannot be kept, else ''."""
  if config.eval.every % config.checkpoint.every == 0:
    return ''
  return (
    f'note: eval.every={config.eval.every} is no multiple of '
    f'checkpoint.every={config.checkpoint.every}: only an evaluated step that '
    'is saved can be kept as the best.'
  )


def check_buckets(config: ml_collections.ConfigDict):
  """Raises ValueError for length buckets that no update can use."""
  buckets = config.batching.length_buckets
  if not all(isinstance(size, int) and size > 0 for size in buckets):
    raise ValueError(
      f'batching.length_buckets={tuple(buckets)} is given; allowed are numbers '
      'of columns, each >= 1.'
    )
  if buckets and config.algorithm.name == 'sft':
    raise ValueError(
      f'batching.length_buckets={tuple(buckets)} is of reinforcement: packed '
      "rows of algorithm.name='sft' are full; set it to ()."
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
    (
      config.algorithm.name == 'outcome'
      and config.algorithm.baseline not in algorithms.UNGROUPED
    )
    or config.algorithm.name == 'brpo'
    or config.algorithm.get('credit') == 'immediate'
  )
  if rollout.group_size == 1 and needs_group:
    raise ValueError(
      'rollout.group_size=1 leaves a group baseline nothing to compare with: '
      'give at least 2, or a baseline without a group (batch_mean, or '
      'algorithm.name=mrt with the prover, or ppo).'
    )
  rounds = rollout.get('dynamic_sampling', {}).get('max_rounds')
  dynamic_sampling.check(rounds, rollout.group_size)
  # A trace comes with its summaries, one row each.
  size = rollout.group_size * (1 + summaries_of(config))
  rows = rollout.num_prompts * size
  parts = batching.mini_batches * batching.micro_batches
  if rollout.num_prompts % batching.mini_batches or rows % parts:
    raise ValueError(
      f'rollout of {rollout.num_prompts} prompts x {size} rows cannot '
      f'be cut into batching.mini_batches={batching.mini_batches} x '
      f'micro_batches={batching.micro_batches}: num_prompts must be a multiple '
      'of mini_batches, and all rows of their product.'
    )
  name = config.algorithm.name
  if name in ('mrt', 'brpo') and config.prover.kind == 'none':
    raise ValueError(
      f"algorithm.name={name!r} needs a prover: set prover.kind to 'exact' or "
      "'sampled'."
    )
  if name == 'ppo':
    check_critic(config)
  elif 'critic' in config:
    raise ValueError(
      f'config.critic applies to ppo and algorithm.name={name!r}: use a config '
      'without it.'
    )
  if config.algorithm.get('select') == 'progress':
    if config.prover.kind == 'none':
      raise ValueError(
        "algorithm.select='progress' needs a prover: set prover.kind to "
        "'exact' or 'sampled', or select='any'."
      )
  if name == 'brpo':
    check_brpo(config)
  # The algorithm's own checks of its options, on shapes alone.
  group = rollout.group_size
  boundaries = len(budgets_of(config) or range(config.prover.max_episodes)) + 1
  shape = lambda dtype, *dims: jax.ShapeDtypeStruct((group, *dims), dtype)
  measured = algorithms.Measured(
    rewards=shape(jnp.float32),
    success=shape(jnp.float32, boundaries),
    episodes=Episodes(shape(jnp.int32, boundaries), shape(jnp.int32)),
    stop_index=shape(jnp.int32),
    answered=shape(bool),
    critic=algorithms.Critic(
      values=shape(jnp.float32, rollout.thinking_budget),
      mask=shape(bool, rollout.thinking_budget),
    ),
    inside=shape(bool),
  )
  if config.algorithm.name == 'prefix':
    measured = dataclasses.replace(
      measured, continues=shape(bool), prefix_success=shape(jnp.float32)
    )
  advantage_fn = make_advantages(config)
  jax.eval_shape(lambda m: advantage_fn(m, rollout.thinking_budget), measured)


def check_critic(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for a critic that cannot be trained."""
  if 'critic' not in config:
    raise ValueError(
      "algorithm.name='ppo' needs config.critic: take it from "
      'configs/ppo_countdown.py.'
    )
  steps.make_value_term(**config.critic.to_dict())
  if config.critic.value_j_coef and config.prover.kind == 'none':
    raise ValueError(
      f'critic.value_j_coef={config.critic.value_j_coef} needs a prover that '
      "teaches: set prover.kind to 'exact' or 'sampled', or value_j_coef to 0."
    )


def check_brpo(config: ml_collections.ConfigDict):
  """Raises ValueError unless what BRPO needs is measured and can be trained."""
  algorithm, prover = config.algorithm, config.prover
  if prover.boundaries != 'budgets':
    raise ValueError(
      "algorithm.name='brpo' compares scores at token budgets: set "
      f"prover.boundaries='budgets', not {prover.boundaries!r}."
    )
  if algorithm.summary == 'own':
    return
  if prover.kind != 'sampled':
    raise ValueError(
      "algorithm.summary='rows' trains on the prover's own answers: set "
      f"prover.kind='sampled', not {prover.kind!r}, or algorithm.summary='own'."
    )
  if config.loss.kl_coef:
    raise ValueError(
      f"loss.kl_coef={config.loss.kl_coef} with algorithm.summary='rows': the "
      "rows have no reference log-probs: set kl_coef=0, or summary='own'."
    )
  if prover.num_branches == 1 and algorithm.summary_baseline == 'prefix':
    raise ValueError(
      'prover.num_branches=1 leaves a summary nothing to compare with: give at '
      "least 2, or algorithm.summary_baseline='group'."
    )
  most = len(budgets_of(config)) * prover.num_branches
  if not 1 <= algorithm.summaries_per_trace <= most:
    raise ValueError(
      f'algorithm.summaries_per_trace={algorithm.summaries_per_trace}: a trace '
      f'has {most} summaries; give 1..{most}.'
    )


def stack(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns one batch out of equal-shaped records."""
  return {k: np.stack([r[k] for r in records]) for k in records[0]}
