"""From a config to the step functions: what is sampled, measured and credited.

Budgets, boundaries and the curriculum are read here too, since they say which
functions these are. What they run on, a task and a model with its weights, is
made in meta_rl/setup_run.py.
"""

import functools
import inspect

import jax.numpy as jnp
import ml_collections

from meta_rl import algorithms, curriculum, episodes, steps
from meta_rl.tasks.base import Task
from meta_rl.types import Model

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
    cache_buckets=_cache_buckets(config),
    slots=rollout.get('slots'),
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
    block_rows=config.prover.get('block_rows') or steps.BLOCK_ROWS,
    thinking_budget=rollout.thinking_budget,
    summaries_per_trace=summaries_of(config) if kind == 'sampled' else 0,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )
  return generate, prove


def make_answers(config, model: Model, task: Task, num_answers: int):
  """Returns the unjitted `steps.make_answers` of a config, a trace a problem.

  Args:
    config: an RL config.
    model, task: the network and the task.
    num_answers: at each boundary.
  """
  rollout, prover = config.rollout, config.prover
  return steps.make_answers(
    model,
    task,
    num_answers=num_answers,
    max_episodes=prover.max_episodes,
    boundaries=prover.boundaries,
    budgets=budgets_of(config),
    block_rows=prover.get('block_rows') or steps.BLOCK_ROWS,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )


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
    cache_buckets=_cache_buckets(config),
    slots=rollout.get('slots'),
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


def _cache_buckets(config) -> tuple[int, ...]:
  return tuple(config.rollout.get('cache_buckets') or ())


def measuring_prover(config) -> str:
  """Returns by which prover a policy is measured: `eval.prover`, or 'exact'.

  'exact' sums the likelihood of the accepted answers that are listed, with no
  noise; 'sampled' asks the verifier about `prover.num_branches` answers, where
  a right answer can be written in more ways than a list has.
  """
  return config.eval.get('prover') or 'exact'


def measuring_config(config, task: Task) -> ml_collections.ConfigDict:
  """Returns a copy of a config that measures a policy, whatever trains it.

  It is unlocked: by `measuring_prover`, at `episode_boundaries`.
  """
  own = config.copy_and_resolve_references()
  own.unlock()
  own.prover.update(
    {
      'kind': measuring_prover(config),
      'boundaries': episode_boundaries(config, task),
      'budgets': None,
      'num_enumerated': None,
    }
  )
  if own.algorithm.get('summaries_per_trace'):
    own.algorithm.summaries_per_trace = 0  # nothing is trained on them
  return own


def episode_boundaries(config, task: Task) -> str:
  """Returns by what the episodes of a measured trace end.

  Of text, what training takes for an episode: it has no short attempts.
  """
  if task.segment is None or config.prover.boundaries == 'budgets':
    return 'delimiters'
  return config.prover.boundaries


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


def make_trained(config: ml_collections.ConfigDict):
  """Returns `(traces, measured) -> bool[B]`, the traces that are trained on.

  None where all of them are. STaR drops those that it does not keep, and the
  pathwise term alone has a pass of its own over the traces.
  """
  if (pathwise_of(config) or {}).get('alone'):
    return lambda traces, _: jnp.zeros(len(traces.tokens), bool)
  if config.algorithm.name != 'star':
    return None
  select = make_advantages(config)
  return lambda traces, measured: select(measured, traces.tokens.shape[1]).keep


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


def algorithm_keys(name: str) -> set[str]:
  """Returns the keys that `config.algorithm` may have."""
  return {'name', *_parameters(name), *_SAMPLING.get(name, ())} - _GIVEN


def _parameters(name):
  return inspect.signature(algorithms.ALGORITHMS[name]).parameters
