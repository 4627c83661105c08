"""The training step in four calls, each jitted once per shape by its caller.

    generate   prompts -> traces and their KV cache
    prove      traces -> rewards, episode boundaries, J at each boundary
    score      traces -> log-probs under other parameters (the reference)
    update     traces and what was measured -> new parameters

Each `make_*` binds what is static and returns a pure function of arrays;
`fused` is their composition, one program for tasks that verify on the device.
Sharding, pmap and the host loop live with the callers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_rl import (
  algorithms,
  episodes,
  losses,
  prover,
  regret,
  rollout,
  scoring,
  update,
)
from meta_rl.tasks.base import Task
from meta_rl.types import Array, Model, Rollout, WeightedSum


def make_generate(
  model: Model,
  task: Task,
  *,
  group_size: int,
  thinking_budget: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  check_every: int = 8,
) -> Callable:
  """Returns the function that samples the traces of a batch of problems.

    generate(params, batch, key, row_offset=0) -> (Rollout, TraceCache)

  Args:
    model, task: the network and the task.
    group_size: G traces a prompt.
    thinking_budget: tokens before forced termination, at least one episode.
    temperature, top_p, top_k, check_every: as in `rollout.generate`.
  """
  if thinking_budget < task.episode_length:
    raise ValueError(
      f'thinking_budget={thinking_budget} is below one episode of {task.name} '
      f'({task.episode_length} tokens): give at least {task.episode_length}.'
    )

  def generate(params, batch, key, row_offset=0):
    return rollout.generate(
      model,
      params,
      batch['prompts'],
      batch['prompt_mask'],
      key,
      max_new_tokens=thinking_budget + len(task.stop_ids) + task.answer_length,
      eos_id=task.eos_id,
      temperature=temperature,
      group_size=group_size,
      top_p=top_p,
      top_k=top_k,
      think_end_id=task.think_end_id,
      thinking_budget=thinking_budget,
      stop_ids=task.stop_ids,
      pad_id=task.pad_id,
      row_offset=row_offset,
      check_every=check_every,
      return_cache=True,
    )

  return generate


def per_trace(batch: dict, group_size: int) -> dict:
  """Returns the problems' arrays with one row a trace, [P,...] -> [B,...]."""
  return {k: jnp.repeat(x, group_size, axis=0) for k, x in batch.items()}


def answers_of(traces: Rollout, stop_index: Array, length: int):
  """Returns what follows column `stop_index`, i32[B,A], and its mask bool[B,A].

  That is the last token of the stop: only what comes after it is graded, and an
  answer inside the thought does not count.
  """
  columns = stop_index[:, None] + 1 + jnp.arange(length)
  inside = columns < traces.tokens.shape[1]
  columns = jnp.minimum(columns, traces.tokens.shape[1] - 1)
  take = lambda x: jnp.take_along_axis(x, columns, axis=1)
  return take(traces.tokens), take(traces.token_mask) & inside


def make_prove(
  model: Model,
  task: Task,
  *,
  group_size: int,
  max_episodes: int,
  kind: str = 'exact',
  num_branches: int = 8,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
) -> Callable:
  """Returns the function that grades traces and measures J at boundaries.

    prove(params, batch, traces, cache, key, row_offset=0) -> Measured

  Args:
    model, task: the prover's network and the task.
    group_size: G traces a prompt.
    max_episodes: K; from the K-th on all thinking belongs to the last episode.
    kind: 'exact' (sums the accepted answers' likelihood), 'sampled' (means of
      `num_branches` answers) or 'none' (J is 0 everywhere: outcome only).
    num_branches: M of the sampled prover.
    temperature, top_p, top_k: at which the prover answers, those of the
      rollout.
  """
  if kind not in (*PROVERS, 'none'):
    raise ValueError(
      f'prover kind {kind!r} is unknown; allowed: {sorted(PROVERS)} or none.'
    )

  def prove(params, batch, traces, cache, key, row_offset=0):
    prompt_length = batch['prompts'].shape[1]
    found = episodes.from_delimiters(
      traces.tokens,
      traces.thinking_mask,
      delimiter_ids=task.delimiter_ids,
      max_episodes=max_episodes,
      start=prompt_length - 1,
    )
    rows = per_trace(batch, group_size)
    stop_index = found.ends[:, -1] + 1
    # A policy ends thinking with the marker, the budget with all of stop_ids.
    more = jnp.where(traces.forced, len(task.stop_ids) - 1, 0)
    answer, mask = answers_of(traces, stop_index + more, task.answer_length)
    rewards = task.verify(answer, mask, rows)
    success = jnp.zeros(found.ends.shape, jnp.float32)
    if kind != 'none':
      success = PROVERS[kind](
        model,
        params,
        traces,
        found.ends,
        rows,
        cache,
        key,
        task=task,
        num_branches=num_branches,
        row_offset=row_offset,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
      )
    return algorithms.Measured(
      rewards=rewards,
      success=success,
      episodes=found,
      stop_index=stop_index,
      answered=mask.any(1),
    )

  return prove


def _exact(
  model,
  params,
  traces,
  ends,
  rows,
  cache,
  key,
  *,
  task,
  num_branches,
  row_offset,
  **support,
):
  del key, num_branches, row_offset
  return prover.exact(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    ends,
    rows['answers'],
    rows['answer_mask'],
    stop_ids=task.stop_ids,
    cache=cache,
    **support,
  )


def _sampled(
  model,
  params,
  traces,
  ends,
  rows,
  cache,
  key,
  *,
  task,
  num_branches,
  row_offset,
  **support,
):
  per_branch = {k: x[:, None, None] for k, x in rows.items()}
  return prover.sampled(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    ends,
    lambda answers, mask: task.verify(answers, mask, per_branch),
    key,
    num_branches=num_branches,
    max_answer_len=task.answer_length,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    cache=cache,
    row_offset=row_offset,
    **support,
  )


PROVERS = {'exact': _exact, 'sampled': _sampled}


def make_score(
  model: Model, *, temperature: float = 1.0, chunk: int | None = None
) -> Callable:
  """Returns `score(params, traces) -> log_probs f32[B,T]`."""

  def score(params, traces):
    log_probs, _ = scoring.score(
      model,
      params,
      traces.tokens,
      traces.token_mask,
      temperature=temperature,
      chunk=chunk,
    )
    return log_probs

  return score


def make_loss(
  model: Model,
  *,
  temperature: float = 1.0,
  chunk: int | None = None,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  surrogate: str = 'clip',
  ratio: str = 'token',
  aggregate: str = 'sequence_mean',
  constant: int | None = None,
  kl_coef: float = 0.0,
  kl_estimator: str = 'k2',
  entropy_coef: float = 0.0,
) -> update.LossFn:
  """Returns `loss_fn(params, batch) -> (WeightedSum, metrics)`.

    policy_gradient + kl_coef * kl_penalty - entropy_coef * entropy

  The batch holds tokens, token_mask, mask, behavior_log_probs, advantages, and
  ref_log_probs where kl_coef is not 0. All terms share one weight, so that
  their sums may be added before the division.
  """
  shared = {'aggregate': aggregate, 'constant': constant}

  def loss_fn(params, batch):
    log_probs, entropy = scoring.score(
      model,
      params,
      batch['tokens'],
      batch['token_mask'],
      temperature=temperature,
      chunk=chunk,
    )
    mask = batch['mask']
    loss, found = losses.policy_gradient(
      log_probs,
      batch['behavior_log_probs'],
      batch['advantages'],
      mask,
      clip_low=clip_low,
      clip_high=clip_high,
      surrogate=surrogate,
      ratio=ratio,
      **shared,
    )
    total = loss.total
    metrics = {f'policy/{k}': v for k, v in found.items()}
    metrics['loss/policy_gradient'] = loss
    tokens = mask.sum().astype(jnp.float32)
    over_tokens = lambda x: WeightedSum(jnp.where(mask, x, 0.0).sum(), tokens)
    metrics['policy/entropy'] = over_tokens(jax.lax.stop_gradient(entropy))
    gap = jnp.abs(
      jax.lax.stop_gradient(log_probs) - batch['behavior_log_probs']
    )
    metrics['policy/log_prob_gap'] = over_tokens(gap)
    if kl_coef:
      kl, _ = losses.kl_penalty(
        log_probs,
        batch['ref_log_probs'],
        mask,
        estimator=kl_estimator,
        **shared,
      )
      total += kl_coef * kl.total
      metrics['loss/kl'] = kl
    if entropy_coef:
      bonus, _ = losses.entropy_bonus(entropy, mask, **shared)
      total += entropy_coef * bonus.total
    return WeightedSum(total, loss.weight), metrics

  return loss_fn


def training_batch(
  traces: Rollout,
  measured: algorithms.Measured,
  advantage_fn: Callable,
  ref_log_probs: Array | None = None,
) -> dict[str, Array]:
  """Returns the arrays that the loss reads, one row a trace."""
  batch = {
    'tokens': traces.tokens,
    'token_mask': traces.token_mask,
    'mask': traces.mask,
    'behavior_log_probs': traces.behavior_log_probs,
    'advantages': advantage_fn(measured, traces.tokens.shape[1]),
  }
  if ref_log_probs is not None:
    batch['ref_log_probs'] = ref_log_probs
  return batch


def make_update(
  loss_fn, optimizer, advantage_fn: Callable, **options
) -> Callable:
  """Returns the function that takes all optimizer steps on one rollout.

    update(state, traces, measured, ref_log_probs=None) -> (state, metrics)

  Args:
    loss_fn: of `make_loss`.
    optimizer: an optax transformation.
    advantage_fn: `(Measured, T) -> f32[B,T]`, of `make_advantages`.
    **options: mini_batches, epochs, micro_batches, axis_name of
      `update.update`.
  """

  def run(state, traces, measured, ref_log_probs=None):
    batch = training_batch(traces, measured, advantage_fn, ref_log_probs)
    return update.update(
      state, batch, loss_fn=loss_fn, optimizer=optimizer, **options
    )

  return run


def make_advantages(name: str, **options) -> Callable:
  """Returns `(Measured, T) -> advantages f32[B,T]` of an algorithm by name."""
  if name not in algorithms.ALGORITHMS:
    raise ValueError(
      f'algorithm {name!r} is unknown; allowed: '
      f'{sorted(algorithms.ALGORITHMS)}.'
    )
  return functools.partial(algorithms.ALGORITHMS[name], **options)


def rollout_metrics(
  traces: Rollout,
  measured: algorithms.Measured,
  *,
  group_size: int,
  horizon: int,
  has_success: bool,
) -> dict[str, Array]:
  """Returns scalars of a batch of traces, f32[] each, names slash-grouped."""
  rewards = measured.rewards.reshape(-1, group_size)
  tokens = traces.mask.sum(1)
  ends, count = measured.episodes.ends, measured.episodes.count
  mean = lambda x: x.astype(jnp.float32).mean()
  metrics = {
    'rollout/reward_mean': mean(rewards),
    'rollout/zero_variance_share': mean(rewards.max(1) == rewards.min(1)),
    'rollout/truncation_rate': mean(traces.truncated),
    'rollout/forced_rate': mean(traces.forced),
    'rollout/tokens_mean': mean(tokens),
    'rollout/tokens_sum': tokens.sum().astype(jnp.float32),
    'rollout/thinking_tokens_mean': mean(traces.thinking_mask.sum(1)),
    'rollout/episodes_mean': mean(count),
  }
  if has_success:
    success = measured.success
    final = jnp.take_along_axis(success, count[:, None], 1)[:, 0]
    weighted = regret.token_weighted(success, ends, horizon=horizon)
    metrics |= {
      'progress/first': mean(success[:, 0]),
      'progress/last': mean(final),
      'progress/total': mean(final - success[:, 0]),
      'regret/token_weighted': mean(weighted),
      'regret/cumulative': mean(regret.cumulative(success, 1.0, count)),
      'regret/normalized': _normalized(success, ends, horizon),
    }
  return metrics


def _normalized(success, ends, horizon, points: int = 16):
  """Returns f32[], the normalized regret of the batch's accuracy curve.

  The curve is the mean over traces of the J at hand after each of `points`
  equal shares of the horizon.
  """
  budgets = jnp.arange(1, points + 1) * horizon / points
  spent = (ends - ends[:, :1])[:, None, :]
  reached = (spent <= budgets[:, None]).sum(-1) - 1
  curve = jnp.take_along_axis(success, reached, axis=1).mean(0)
  return regret.normalized(curve, budgets.astype(jnp.float32), horizon=horizon)


def fused(generate, prove, update_fn, score=None):
  """Returns a whole training step as one function of arrays.

  `step(state, ref_params, batch, key) -> (state, traces, measured, metrics)`:
  generate, grade, prove, credit and update without leaving the device. jit it
  with the state donated.
  """

  def step(state, ref_params, batch, key):
    sample_key, prove_key = jax.random.split(key)
    traces, cache = generate(state.params, batch, sample_key)
    measured = prove(state.params, batch, traces, cache, prove_key)
    reference = None if score is None else score(ref_params, traces)
    state, metrics = update_fn(state, traces, measured, reference)
    return state, traces, measured, metrics

  return step
