"""prompts -> rollouts that branch off a prefix of a stale trace (MRT-RL).

    prompts --prefix policy--> one trace each --stopped after a random number of
    its episodes--> prefix --policy--> m Continue and m Direct rollouts

Rows: trace b = p * G + g with G = 2m; g < m continue the prefix of prompt p,
the others answer from it at once. All of them come of one `rollout.generate`,
through a prefix and a thinking budget of each row, so that traces, cache,
prover and update are those of any other rollout. The prefix is thinking and no
action; Direct rows think nothing else. (What an environment says is no action
either: of Continue rows `thinking_mask & ~mask` may hold more.)

Axes: P prompts, G group, B = P * G traces, K episodes, T tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import algorithms, episodes, rollout
from meta_rl import cache as caches
from meta_rl.algorithms.base import at
from meta_rl.steps.generate import observer
from meta_rl.steps.prove import PROVERS, Prefixes
from meta_rl.tasks.base import Task
from meta_rl.types import Array, Episodes, Model, Rollout, TraceCache

PREFIX_POLICIES = ('reference', 'current')
PREFIX_SUCCESS = (*PROVERS, 'direct')


def is_continue(rows: int, group_size: int) -> Array:
  """Returns bool[B]: the first half of each group thinks on."""
  return jnp.arange(rows) % group_size < group_size // 2


def given_length(traces: Rollout, group_size: int) -> Array:
  """Returns i32[P], tokens of each prefix: all thinking of a Direct row."""
  direct = traces.thinking_mask[group_size - 1 :: group_size]
  return direct.sum(1, dtype=jnp.int32)


def make_branches(
  model: Model,
  task: Task,
  *,
  group_size: int,
  thinking_budget: int,
  max_episodes: int,
  boundaries: str = 'delimiters',
  prefix_policy: str = 'reference',
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  check_every: int | None = None,
  cache_buckets: Sequence[int] = (),
  slots: int | None = None,
) -> Callable:
  """Returns the function that samples prefixes, and rollouts from them.

    generate(params, batch, key, row_offset=0) -> (Rollout, TraceCache)

  A prefix is stopped after j of the count episodes of its trace, j uniform in
  0..count and drawn with the key of its prompt: fold_in(key', global prompt).
  With j = count of a trace that used up the budget, Continue rollouts have
  nothing left to think with and answer at once, too.

  Args:
    model, task: the network and the task.
    group_size: G = 2m, even.
    thinking_budget: tokens, the prefix's included.
    max_episodes: K; from the K-th on all of a stale trace is one episode.
    boundaries: 'text' for the episodes that the task takes open-ended text for;
      else those of its delimiters, with 'budgets' too.
    prefix_policy: 'reference' (params is then the pair (policy, reference), and
      the reference writes the prefixes: the offline form) or 'current'.
    temperature, top_p, top_k, check_every, cache_buckets, slots: as in
      `rollout.generate`, of both stages.
  """
  if prefix_policy not in PREFIX_POLICIES:
    raise ValueError(
      f'prefix_policy={prefix_policy!r} is unknown; allowed: '
      f'{list(PREFIX_POLICIES)}.'
    )
  check_group(group_size)
  if boundaries == 'text' and task.segment is None:
    raise ValueError(
      "boundaries='text' is of open-ended text, which this task is not: use "
      "'delimiters' or 'budgets'."
    )
  find = task.segment
  if boundaries != 'text':
    find = functools.partial(
      episodes.from_delimiters, delimiter_ids=task.delimiter_ids
    )
  sampling = {
    'eos_id': task.eos_id,
    'stop_table': task.stop_table,
    'temperature': temperature,
    'top_p': top_p,
    'top_k': top_k,
    'think_end_id': task.think_end_id,
    'pad_id': task.pad_id,
    'check_every': check_every,
    'cache_buckets': cache_buckets,
    'slots': slots,
  }

  def sample_prefixes(params, batch, key, first_prompt):
    """Returns prefixes i32[P,N'], their lengths and what was fed i32[P]."""
    prompts = batch['prompts']
    sample_key, cut_key = jax.random.split(key)
    traces = rollout.generate(
      model,
      params,
      prompts,
      batch['prompt_mask'],
      sample_key,
      max_new_tokens=thinking_budget,
      row_offset=first_prompt,
      observe_fn=observer(task, batch, 1),
      **sampling,
    )
    last = prompts.shape[1] - 1  # the column before the response
    found = find(
      traces.tokens,
      traces.thinking_mask,
      max_episodes=max_episodes,
      start=last,
    )
    keep = jax.vmap(
      lambda prompt, count: jax.random.randint(
        jax.random.fold_in(cut_key, prompt), (), 0, count + 1
      )
    )(first_prompt + jnp.arange(prompts.shape[0]), found.count)
    length = at(found.ends, keep) - last
    fed = traces.token_mask[:, last + 1 :].sum(1, dtype=jnp.int32)
    return traces.tokens[:, last + 1 :], length, fed

  def generate(params, batch, key, row_offset=0):
    pair = prefix_policy == 'reference'
    policy, stale = params if pair else (params, params)
    prefix_key, key = jax.random.split(key)
    given, length, fed = sample_prefixes(
      stale, batch, prefix_key, row_offset // group_size
    )
    given, length = (jnp.repeat(x, group_size, axis=0) for x in (given, length))
    on = is_continue(len(length), group_size)
    side = jnp.zeros_like(length).at[::group_size].set(fed)
    traces, cache = rollout.generate(
      model,
      policy,
      batch['prompts'],
      batch['prompt_mask'],
      key,
      max_new_tokens=thinking_budget + len(task.stop_ids) + task.answer_length,
      group_size=group_size,
      thinking_budget=jnp.where(on, thinking_budget, 0),
      stop_ids=task.stop_ids,
      prefix=given,
      prefix_length=length,
      row_offset=row_offset,
      observe_fn=observer(task, batch, group_size),
      return_cache=True,
      **sampling,
    )
    return dataclasses.replace(traces, side_tokens=side), cache

  return generate


def make_branch_prove(
  prove: Callable,
  model: Model,
  task: Task,
  *,
  group_size: int,
  prefix_success: str = 'exact',
  num_branches: int = 8,
  num_enumerated: int | None = None,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
) -> Callable:
  """Returns `prove` with J at the end of each prefix: same arguments, Measured.

  J is measured at the prefix's own end, once a prompt. (The boundaries that
  `prove` finds need not hold it: a Continue rollout that goes on behind a tail
  without a delimiter has no boundary there.)

  Args:
    prove: of `steps.make_prove`.
    model, task: the prover's network and the task.
    group_size: G = 2m.
    prefix_success: 'exact', 'sampled' or 'control_variate', the prover that
      measures J, or 'direct', the mean reward of the prefix's own Direct
      rollouts: any task can do that, with a variance of J (1 - J) / m. Of a
      Direct rollout it is the mean of the others: J must not depend on the
      reward that it is compared with. That takes a group of 4.
    num_branches: M of the provers that sample.
    num_enumerated: of 'control_variate'; None for all answers.
    temperature, top_p, top_k: at which the prover answers.
  """
  if prefix_success not in PREFIX_SUCCESS:
    raise ValueError(
      f'prefix_success={prefix_success!r} is unknown; allowed: '
      f'{list(PREFIX_SUCCESS)}.'
    )
  check_group(group_size)
  half = group_size // 2
  if prefix_success == 'direct' and half < 2:
    raise ValueError(
      f"prefix_success='direct' with group_size={group_size}: the one Direct "
      "rollout has no other to be compared with; give at least 4, or 'exact'."
    )

  def of_prover(params, batch, traces, cache, key, row_offset):
    """Returns f32[P], J at the end of each prompt's prefix, and tokens fed."""
    prompts = batch['prompts']
    heads = jnp.arange(len(prompts)) * group_size
    own = jax.tree.map(lambda x: x[heads], traces)
    ends = prompts.shape[1] - 1 + given_length(traces, group_size)
    # One boundary and no episode: the end of the prefix.
    found = Episodes(ends[:, None], jnp.zeros_like(ends))
    measured = PROVERS[prefix_success](
      Prefixes(
        model=model,
        params=params,
        traces=own,
        found=found,
        rows=batch,
        cache=TraceCache(caches.take(model, cache.cache, heads), cache.used),
        key=key,
        task=task,
        num_branches=num_branches,
        row_offset=row_offset // group_size,
        support={'temperature': temperature, 'top_p': top_p, 'top_k': top_k},
        num_enumerated=num_enumerated,
      )
    )
    return measured['success'][:, 0], measured['prover_tokens']

  def run(params, batch, traces, cache, key, row_offset=0):
    key, prefix_key = jax.random.split(key)
    measured = prove(params, batch, traces, cache, key, row_offset)
    # J along the traces is for the log: the prefix's alone is used, and paid.
    fed = jnp.zeros(len(measured.rewards), jnp.int32)
    if prefix_success == 'direct':
      direct = measured.rewards.reshape(-1, group_size)[:, half:]
      total = direct.sum(1, keepdims=True)
      of_continue = jnp.repeat(total / half, half, axis=1)
      others = (total - direct) / (half - 1)
      success = jnp.concatenate([of_continue, others], axis=1).reshape(-1)
    else:
      success, of_prefix = of_prover(
        params, batch, traces, cache, prefix_key, row_offset
      )
      fed = fed.at[::group_size].set(of_prefix)
      success = jnp.repeat(success, group_size)
    return dataclasses.replace(
      measured,
      continues=is_continue(len(measured.rewards), group_size),
      prefix_success=success,
      prover_tokens=fed,
    )

  return run


def branch_metrics(
  traces: Rollout, measured: algorithms.Measured
) -> dict[str, Array]:
  """Returns scalars of Continue and Direct rollouts, f32[] each."""
  on = measured.continues
  half = on.sum()  # as many of either kind
  over = lambda x, rows: jnp.where(rows, x, 0.0).sum() / half
  return {
    'rollout/continue_reward_mean': over(measured.rewards, on),
    'rollout/direct_reward_mean': over(measured.rewards, ~on),
    # Direct rows think the prefix and nothing else.
    'rollout/prefix_tokens_mean': over(traces.thinking_mask.sum(1), ~on),
    'progress/prefix': over(measured.prefix_success, on),
    'progress/continue': over(measured.rewards - measured.prefix_success, on),
  }


def check_group(group_size: int):
  """Raises ValueError unless a group has as many of either kind."""
  if group_size < 2 or group_size % 2:
    raise ValueError(
      f'rollout.group_size={group_size}: half of the rollouts of a prefix '
      'continue and half answer at once; give an even number of at least 2.'
    )
