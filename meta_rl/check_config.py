"""Refusing a config that no training can use, in one line, before it starts.

`check` is called before anything is written or compiled, so that a config that
is refused leaves nothing behind.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_collections

from meta_rl import (
  algorithms,
  checks,
  config_keys,
  dynamic_sampling,
  losses,
  setup_devices,
  setup_own,
  setup_run,
  setup_steps,
  sharding,
  steps,
  train_blocks,
  workdir,
)
from meta_rl.rollout import cache_rooms, check_slots
from meta_rl.types import Episodes

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
  'prover.block_rows',
  'curriculum.every',
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
_SHARE = {'low': 0, 'high': 1}
# Bounds of `checks.check_range`, for keys that a config has.
_RANGES = {
  'seed': checks.SEEDS,
  'model.rope_base': {'above': 0},
  'loss.clip_low': _SHARE,
  'loss.clip_high': {'low': 0},
}
# Shares and chances, wherever they stand in config.data.
_DATA_SHARES = ('p_stop', 'p_continue', 'long_share', 'direct_share')
_CHOICES = {
  'algorithm.name': (*algorithms.ALGORITHMS, 'sft'),
  'algorithm.counted': algorithms.COUNTED,
  'algorithm.credit': algorithms.CREDITS,
  'algorithm.form': algorithms.FORMS,
  'algorithm.select': algorithms.SELECTS,
  'algorithm.prefix_policy': steps.PREFIX_POLICIES,
  'algorithm.prefix_success': steps.PREFIX_SUCCESS,
  'algorithm.summary': algorithms.SUMMARIES,
  'algorithm.transform': algorithms.TRANSFORMS,
  'prover.boundaries': steps.BOUNDARIES,
  'loss.surrogate': losses.SURROGATES,
  'loss.ratio': losses.RATIOS,
  'loss.aggregate': losses.AGGREGATES,
  'loss.pathwise.boundaries': steps.PATHWISE,
  'loss.kl_estimator': tuple(losses.KL_ESTIMATORS),
}


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
  config_keys.check(config)
  values = workdir.flatten(config.to_dict())
  check_numbers(values)
  check_algorithm(config)
  for name, allowed in _CHOICES.items():
    if name in values:
      checks.check_choice(name, values[name], allowed)
  for name in ('loss.chunk', 'rollout.top_k', 'batching.rows_per_device'):
    size = values.get(name)
    if size is not None and not (isinstance(size, int) and size >= 1):
      raise ValueError(f'{name}={size!r} is given; allowed is >= 1, or None.')
  check_buckets(config)
  check_pathwise(config)
  if not config.rollout.temperature > 0:
    raise ValueError(
      f'rollout.temperature={config.rollout.temperature} is given; allowed is '
      '> 0: the gradient is that of a policy that samples.'
    )
  for name in ('total_cost', 'total_tokens'):
    budget = values.get(name)
    if budget is None:
      continue
    if not budget > 0:
      raise ValueError(
        f'{name}={budget} is given; allowed is > 0, or None for no limit.'
      )
    if config.algorithm.name == 'sft':
      raise ValueError(
        f"{name}={budget} is of reinforcement: algorithm.name='sft' ends by "
        'total_steps; leave it out.'
      )
  setup_own.check(config)
  with workdir.of_section('task', config.task):
    task = setup_run.make_task(config)
  with workdir.of_section('model', config.model):
    model = setup_run.make_model(config, task)
  with workdir.of_section('optimizer', config.optimizer):
    setup_run.make_optimizer(config)
  if config.algorithm.name != 'sft':
    setup_steps.budgets_of(config)
  check_lora(config)
  check_eval(config)
  check_curriculum(config)
  train_blocks.check(config)
  for stage in setup_steps.stages(config).values():
    setup_own.make_training_calls(stage, model, task)
    if config.algorithm.name != 'sft':
      check_rl(stage)


def check_lora(config: ml_collections.ConfigDict):
  """Raises ValueError for a use of LoRA that is not supported."""
  if setup_run.trainable(config) is None:
    return
  if config.algorithm.get('prefix_policy') == 'reference':
    raise ValueError(
      f"algorithm.prefix_policy='reference' with model.lora_rank="
      f'{config.model.lora_rank}: the reference is the policy without its '
      "factors, which generates no prefixes; use 'current', or lora_rank=0."
    )


def check_eval(config: ml_collections.ConfigDict):
  """Raises ValueError for a prover that cannot measure a policy."""
  checks.check_choice(
    'eval.prover', setup_steps.measuring_prover(config), ('exact', 'sampled')
  )


def check_machine(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, if the devices here don't fit a config."""
  kind = config.parallel.kind
  checks.check_choice('parallel.kind', kind, ('auto', *sharding.KINDS))
  if config.algorithm.name == 'sft' and kind == 'pmap':
    raise ValueError(
      f'parallel.kind={kind!r} is of reinforcement: '
      "algorithm.name='sft' takes 'auto', 'jit' or 'none'."
    )
  with workdir.of_section('parallel.mesh'):
    _, mesh = setup_devices.parallel_of(config)
  if mesh is None:
    return
  setup_devices.check(config, mesh)
  if note := setup_devices.note_on_unused(mesh):
    print(note)


def note_on_saving(config: ml_collections.ConfigDict) -> str:
  """Returns a line if evaluated steps exist that cannot be kept, else ''."""
  if config.eval.every % config.checkpoint.every == 0:
    return ''
  return (
    f'note: eval.every={config.eval.every} is no multiple of '
    f'checkpoint.every={config.checkpoint.every}: only an evaluated step that '
    'is saved can be kept as the best.'
  )


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
    if name in _RANGES:
      checks.check_range(name, given, **_RANGES[name])
    section, _, last = name.rpartition('.')
    if section.startswith('data.') and last in _DATA_SHARES:
      checks.check_range(name, given, **_SHARE)


def check_algorithm(config: ml_collections.ConfigDict):
  """Raises ValueError for keys that an algorithm does not take."""
  name = config.algorithm.name
  for key in ('kl_coef', 'entropy_coef') if name == 'sft' else ():
    if given := config.loss[key]:
      raise ValueError(
        f"loss.{key}={given} is of reinforcement: algorithm.name='sft' has no "
        'such term; set it to 0.'
      )
  if name in algorithms.ALGORITHMS:
    unknown = sorted(set(config.algorithm) - setup_steps.algorithm_keys(name))
    if unknown:
      raise ValueError(
        f'algorithm.name={name!r} does not take algorithm.{unknown[0]}: start '
        'from a config of that algorithm.'
      )


def check_buckets(config: ml_collections.ConfigDict):
  """Raises ValueError for buckets that no update or rollout can use."""
  caches = config.rollout.get('cache_buckets') or ()
  cache_rooms(caches, 1, name='rollout.cache_buckets')
  check_slots(config.rollout.get('slots'), caches, prefix='rollout.')
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
    or config.algorithm.get('outcome_baseline')
    not in (None, *algorithms.UNGROUPED)
    or config.algorithm.name == 'brpo'
    or config.algorithm.get('credit') == 'immediate'
  )
  if rollout.group_size == 1 and needs_group:
    raise ValueError(
      'rollout.group_size=1 leaves a group baseline nothing to compare with: '
      'give at least 2, or a baseline without a group (batch_mean, or '
      'algorithm.name=mrt with the prover, or ppo).'
    )
  rounds = rollout.dynamic_sampling.max_rounds
  dynamic_sampling.check(rounds, rollout.group_size)
  # A trace comes with its summaries, one row each.
  size = rollout.group_size * (1 + setup_steps.summaries_of(config))
  rows = rollout.num_prompts * size
  by_device = batching.rows_per_device is not None  # micro-batches follow
  micro = 1 if by_device else batching.micro_batches
  parts = batching.mini_batches * micro
  if rollout.num_prompts % batching.mini_batches or rows % parts:
    raise ValueError(
      f'rollout of {rollout.num_prompts} prompts x {size} rows cannot '
      f'be cut into batching.mini_batches={batching.mini_batches}'
      + ('' if by_device else f' x micro_batches={micro}')
      + ': num_prompts must be a multiple of mini_batches, and all rows of '
      'their product.'
    )
  name = config.algorithm.name
  if name in ('mrt', 'brpo', 'segment', 'rl2') and config.prover.kind == 'none':
    raise ValueError(
      f"algorithm.name={name!r} needs a prover: set prover.kind to 'exact' or "
      "'sampled'."
    )
  check_prover(config)
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
  budgets = setup_steps.budgets_of(config)
  boundaries = 1 + (len(budgets) if budgets else config.prover.max_episodes)
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
  with workdir.of_section('algorithm', config.algorithm):
    advantage_fn = setup_steps.make_advantages(config)
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


def check_curriculum(config: ml_collections.ConfigDict):
  """Raises ValueError for a curriculum that cannot be followed."""
  own = config.curriculum
  if not own.budgets:
    return
  budgets = f'curriculum.budgets={tuple(own.budgets)}'
  if config.algorithm.name == 'sft':
    raise ValueError(
      f"{budgets} is of reinforcement: algorithm.name='sft' has no thinking "
      'budget; set it to ().'
    )
  if own.every % config.eval.every:
    raise ValueError(
      f'curriculum.every={own.every} is no multiple of eval.every='
      f'{config.eval.every}: a budget is chosen by what is measured there.'
    )
  for name in ('max_length', 'target_length'):
    if config.algorithm.get(name) is not None:
      raise ValueError(
        f'{budgets} with algorithm.{name}={config.algorithm[name]}: a length '
        'that is fixed does not fit budgets that change; use one of them.'
      )


def check_prover(config: ml_collections.ConfigDict):
  """Raises ValueError for values that the algorithm would misread."""
  name, kind = config.algorithm.name, config.prover.kind
  if kind == 'continued' and name != 'segment':
    raise ValueError(
      "prover.kind='continued' gives the value of going on, not of stopping: "
      f"it is for algorithm.name='segment', not {name!r}."
    )
  best_of = config.algorithm.get('transform') == 'best_of'
  if kind == 'control_variate' and best_of:
    raise ValueError(
      "prover.kind='control_variate' may give values above 1, of which "
      "algorithm.transform='best_of' makes no chance: use 'exact', 'sampled' "
      "or 'continued'."
    )


def check_pathwise(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, where the pathwise term has no meaning."""
  given = config.loss.pathwise
  kind, name = given.boundaries, config.algorithm.name
  where = f'loss.pathwise.boundaries={kind!r}'
  if kind == 'none':
    if given.coef != 1 or given.alone:
      raise ValueError(
        f'{where} is off, and loss.pathwise.coef={given.coef}, '
        f"alone={given.alone} do nothing: set boundaries to 'all' or 'last', "
        'or coef=1, alone=False.'
      )
    return
  credit = config.algorithm.get('credit')
  needed = ['token_weighted'] + ['return_to_go'] * (kind == 'last')
  if name != 'mrt' or credit not in needed:
    raise ValueError(
      f"{where} is the other half of the gradient of algorithm.name='mrt' with "
      f'credit {" or ".join(needed)}; got {name!r}, {credit!r}.'
    )
  if config.prover.kind != 'exact':
    raise ValueError(
      f"{where} differentiates the exact prover: set prover.kind='exact', not "
      f'{config.prover.kind!r}.'
    )
  checks.check_range('loss.pathwise.coef', given.coef, above=0)


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
  most = len(setup_steps.budgets_of(config)) * prover.num_branches
  if not 1 <= algorithm.summaries_per_trace <= most:
    raise ValueError(
      f'algorithm.summaries_per_trace={algorithm.summaries_per_trace}: a trace '
      f'has {most} summaries; give 1..{most}.'
    )
