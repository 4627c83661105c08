"""From a config to what a user brings: rewards, and rollouts of another engine.

`config.rewards` names functions whose values are added to the task's outcome
(meta_rl/rewards.py); `config.rollout.source` may name a file whose traces take
the place of sampling (meta_rl/external/).
"""

import dataclasses

import jax.numpy as jnp
import ml_collections

from meta_rl import (
  checks,
  external,
  files,
  rewards,
  setup_run,
  setup_steps,
  sharding,
  steps,
)
from meta_rl.compiled import CountedJit
from meta_rl.tasks.base import Task
from meta_rl.types import Model

REWARD_SOURCES = ('task', 'row')

# Algorithms that know what to do with a reward that J is not the chance of.
_REWARDED = ('outcome', 'mrt', 'ppo', 'star')


def rollouts_path(config: ml_collections.ConfigDict) -> str | None:
  """Returns the file that `config.rollout.source` names, None for 'policy'.

  Raises:
    ValueError: another source.
  """
  source = config.rollout.source
  kind, _, path = source.partition(':')
  if source != 'policy' and (kind != 'jsonl' or not path):
    raise ValueError(
      f'rollout.source={source!r} is unknown; allowed: policy, jsonl:PATH, '
      'such as jsonl:rollouts.jsonl.'
    )
  return path or None


def load_rollouts(
  config: ml_collections.ConfigDict, task: Task, mesh=None
) -> external.RolloutBatches:
  """Returns the batches of the file that `config.rollout.source` names.

  Args:
    config: an RL config.
    task: its task.
    mesh: of several processes, of which each gives its own groups.
  """
  by_task = config.external.reward == 'task'
  files.check_input('rollout.source', rollouts_path(config), 'jsonl:')
  kit, problem_fn = setup_run.task_kit(config), None
  if by_task:
    problem_fn = kit.make_problem_fn(
      setup_run.data_dir(), **setup_run.task_options(config)
    )
  return external.RolloutBatches(
    rollouts_path(config),
    num_prompts=config.rollout.num_prompts,
    group_size=config.rollout.group_size,
    seed=config.seed,
    task=task,
    vocab_size=setup_run.model_config(config).vocab_size,
    encode=kit.encode,
    problem_fn=problem_fn,
    thinking_budget=config.rollout.thinking_budget,
    buckets=config.external.buckets,
    needs_reward=not by_task,
    own=sharding.process_slice(config.rollout.num_prompts, mesh),
  )


def make_training_calls(config, model: Model, task: Task):
  """Returns the unjitted (generate, prove) of a config's own source of traces.

  Those of `setup_steps.make_training_calls`, unless the source is a file:
  `generate` then takes the traces from the batch, and rewards may be those of
  the rows.
  """
  if rollouts_path(config) is None:
    return setup_steps.make_training_calls(config, model, task)
  if config.external.reward == 'task':
    return steps.replay, setup_steps.make_training_calls(config, model, task)[1]
  ungraded = dataclasses.replace(
    task, verify=lambda answers, mask, batch: jnp.zeros(mask.shape[:-1])
  )
  _, prove = setup_steps.make_training_calls(config, model, ungraded)
  return steps.replay, steps.with_given_rewards(prove)


def make_correct(config: ml_collections.ConfigDict) -> CountedJit | None:
  """Returns the jitted correction of given rollouts, None without them."""
  if rollouts_path(config) is None:
    return None
  return CountedJit(
    steps.make_correction(
      correction=config.external.correction, cap=config.external.cap
    )
  )


def make_reward_fn(
  config: ml_collections.ConfigDict, task: Task, get, mesh=None
):
  """Returns the function that adds a user's rewards to what was measured.

  None where `config.rewards` is empty: nothing is then fetched or computed.

  Args:
    config: an RL config.
    task: its task.
    get: fetches values from the devices, of `sharding.Parallel`.
    mesh: of several processes, each of which asks about its own traces.
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
    decode=setup_run.task_kit(config).decode,
    own=sharding.process_slice(config.rollout.num_prompts, mesh),
    gather=sharding.gather_columns,
  )


def check(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for rewards or rollouts of no use."""
  check_rewards(config)
  check_external(config)


def check_rewards(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for rewards that cannot be used.

  Their functions are imported here, before anything is compiled.
  """
  name, weight = config.algorithm.name, config.outcome_weight
  checks.check_choice('reward_errors', config.reward_errors, rewards.ERRORS)
  if not config.rewards:
    if weight != 1.0 or config.reward_errors != 'raise':
      raise ValueError(
        f'outcome_weight={weight} and reward_errors={config.reward_errors!r} '
        "are of config.rewards, which is empty: leave them at 1.0 and 'raise'."
      )
    return
  if name == 'sft':
    raise ValueError(
      "algorithm.name='sft' learns from given traces and asks no rewards: "
      'leave config.rewards empty.'
    )
  if name not in _REWARDED:
    raise ValueError(
      f'algorithm.name={name!r} compares outcomes with J, the chance of the '
      "task's own outcome: leave config.rewards empty, or take one of "
      f'{", ".join(_REWARDED)}.'
    )
  rewards.parse(config.rewards)
  if name == 'mrt' and weight != 1.0:
    raise ValueError(
      f"outcome_weight={weight} with algorithm.name='mrt': progress is that of "
      'the outcome itself; leave it at 1.0 and weigh the rewards against it.'
    )
  if name == 'star' and weight != 0:
    raise ValueError(
      f"outcome_weight={weight} with algorithm.name='star': it imitates traces "
      'of reward 1 or more, and a sum with the outcome says nothing of being '
      'right: set it to 0 and let config.rewards alone say what is right, or '
      'leave them empty.'
    )
  pathwise = setup_steps.pathwise_of(config)
  if pathwise and pathwise['alone']:
    raise ValueError(
      'loss.pathwise.alone=True trains on J alone, which knows nothing of '
      'config.rewards: set it to False, or leave config.rewards empty.'
    )
  shaping = config.algorithm.get('shaping', 'none')
  if shaping != 'none':
    raise ValueError(
      f'algorithm.shaping={shaping!r} is of outcomes of 0 and 1, which '
      "config.rewards change: set it to 'none' and give the length a reward."
    )
  if name == 'ppo' and config.get('critic', {}).get('value_j_coef'):
    raise ValueError(
      f'critic.value_j_coef={config.critic.value_j_coef} teaches the critic '
      "the chance of the task's own outcome, and config.rewards add to it: set "
      'value_j_coef to 0.'
    )
  # Their algorithms take a group of one as it is; MRT compares what is added.
  if name == 'mrt' and config.rollout.group_size == 1:
    raise ValueError(
      'rollout.group_size=1 leaves rewards nothing to compare with: give at '
      'least 2.'
    )


def check_external(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, for a file of rollouts that can't be used.

  The file itself is read when training begins.
  """
  name, path = config.algorithm.name, rollouts_path(config)
  source = f'rollout.source={config.rollout.source!r}'
  if path is None:
    if 'external' in config:
      raise ValueError(
        f'{source} makes config.external useless: give a file, jsonl:PATH, or '
        'take another config.'
      )
    return
  if name == 'sft':
    raise ValueError(
      f"{source} is for reinforcement: algorithm.name='sft' reads data.path."
    )
  if 'external' not in config:
    raise ValueError(
      f'{source} needs the options of config.external: start from '
      '--config=external_countdown, or with a language model from a config '
      "with the argument 'external', such as mrt_qwen3_0p6b:external."
    )
  options = config.external
  checks.check_choice('external.reward', options.reward, REWARD_SOURCES)
  checks.check_choice(
    'external.correction', options.correction, steps.CORRECTIONS
  )
  for key in ('cap', 'max_mismatch'):
    if not options[key] > 0:
      raise ValueError(f'external.{key}={options[key]}; allowed is > 0.')
  buckets = tuple(options.buckets)
  whole = all(isinstance(n, int) and n >= 1 for n in buckets)
  if not whole or sorted(set(buckets)) != list(buckets):
    raise ValueError(
      f'external.buckets={buckets} must be numbers of tokens that rise.'
    )
  check_given(config, source)


def check_given(config: ml_collections.ConfigDict, source: str):
  """Raises ValueError where traces of a file are not what is trained on."""
  options, algorithm = config.external, config.algorithm
  if options.reward == 'row' and config.prover.kind != 'none':
    raise ValueError(
      "external.reward='row' goes with prover.kind='none': J is the chance of "
      "the task's own outcome."
    )
  kit = setup_run.task_kit(config)
  if options.reward == 'task' and kit.make_problem_fn is None:
    raise ValueError(
      f"external.reward='task' with task.name={config.task.name!r}: its prompt "
      "does not say the whole problem, so no answer can be graded: set 'row'."
    )
  if algorithm.name == 'prefix':
    raise ValueError(
      f"{source} with algorithm.name='prefix': its rollouts branch off a "
      'prefix, which those of a file do not; take another algorithm.'
    )
  if algorithm.name == 'star' and options.correction != 'none':
    raise ValueError(
      f"external.correction={options.correction!r} with algorithm.name='star': "
      "traces are imitated whoever sampled them: set it to 'none'."
    )
  if setup_steps.summaries_of(config):
    raise ValueError(
      f"{source} with algorithm.summary='rows': the columns of a file leave no "
      "room for them: set algorithm.summary='own'."
    )
  if config.rollout.dynamic_sampling.max_rounds:
    raise ValueError(
      f'{source} with rollout.dynamic_sampling.max_rounds='
      f'{config.rollout.dynamic_sampling.max_rounds}: a file has no further '
      'prompts to sample; set it to 0.'
    )
