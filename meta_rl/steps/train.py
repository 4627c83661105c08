"""traces and what was measured -> new parameters.

`score` gives log-probs under other parameters (the reference), `update` takes
all optimizer steps on one rollout, and `fused` is a whole training step as one
program.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_rl import algorithms, losses, scoring, update
from meta_rl import value as value_head
from meta_rl.steps.summaries import join_rows, summary_rows
from meta_rl.tasks.base import Task
from meta_rl.types import Array, Model, Rollout, WeightedSum


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
  value_term: Callable | None = None,
  pathwise_term: Callable | None = None,
) -> update.LossFn:
  """Returns `loss_fn(params, batch) -> (WeightedSum, metrics)`.

    policy_gradient + kl_coef * kl_penalty - entropy_coef * entropy + value_term
      + pathwise_term

  The batch holds tokens, token_mask, mask, behavior_log_probs, advantages,
  ref_log_probs where kl_coef is not 0, and weights of the policy gradient where
  the traces have some. All terms share one weight, so that
  their sums may be added before the division. `value_term`, of
  `make_value_term`, reads the features of the same forward pass;
  `pathwise_term`, of `make_pathwise_term`, has forward passes of its own, and
  reads what `make_prepare`'s function adds to the batch.
  """
  shared = {'aggregate': aggregate, 'constant': constant}

  def loss_fn(params, batch):
    features = None
    if value_term is not None:
      features = value_head.features(
        model, params, batch['tokens'], batch['token_mask']
      )
    log_probs, entropy = scoring.score(
      model,
      params,
      batch['tokens'],
      batch['token_mask'],
      temperature=temperature,
      chunk=chunk,
      features=features,
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
      weights=batch.get('weights'),
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
    if 'kept' in batch:
      kept = batch['kept'].astype(jnp.float32)
      rows = jnp.asarray(len(kept), jnp.float32)
      metrics['policy/kept_share'] = WeightedSum(kept.sum(), rows)
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
    if value_term is not None:
      critic, found = value_term(params, features, batch)
      total += critic.total
      metrics |= found
    if pathwise_term is not None:
      term, found = pathwise_term(params, batch)
      total += term.total
      metrics |= found
    return WeightedSum(total, loss.weight), metrics

  return loss_fn


def training_batch(
  traces: Rollout,
  measured: algorithms.Measured,
  advantage_fn: Callable,
  ref_log_probs: Array | None = None,
) -> dict[str, Array]:
  """Returns the arrays that the loss reads, one row a trace.

  Of `algorithms.Selected`, rows that are not kept have no action left; nor has
  a trace without a reward (`measured.valid`): it adds nothing to the loss. With
  aggregate 'constant' its row still counts in the denominator, the number of
  rows.
  """
  credit = advantage_fn(measured, traces.tokens.shape[1])
  batch = {
    'tokens': traces.tokens,
    'token_mask': traces.token_mask,
    'mask': traces.mask,
    'behavior_log_probs': traces.behavior_log_probs,
    'advantages': credit,
  }
  if isinstance(credit, algorithms.Selected):
    batch['advantages'] = credit.advantages
    batch['kept'] = credit.keep
    batch['mask'] &= credit.keep[:, None]
  if measured.valid is not None:
    batch['mask'] &= measured.valid[:, None]
  if traces.weights is not None:
    batch['weights'] = traces.weights
  if ref_log_probs is not None:
    batch['ref_log_probs'] = ref_log_probs
  if measured.critic is not None:
    batch |= algorithms.value_targets(measured, batch['advantages'])
  return batch


def make_update(
  loss_fn,
  optimizer,
  advantage_fn: Callable,
  rows_fn: Callable | None = None,
  prepare: Callable | None = None,
  **options,
) -> Callable:
  """Returns the function that takes all optimizer steps on one rollout.

    update(state, traces, measured, ref_log_probs=None) -> (state, metrics)

  Args:
    loss_fn: of `make_loss`.
    optimizer: an optax transformation.
    advantage_fn: `(Measured, T) -> f32[B,T]` or `Selected`, of
      `make_advantages`.
    rows_fn: `(traces, measured) -> arrays [B,R,T]`, of `make_rows`: what is
      trained on beside the traces; None: nothing.
    prepare: `(batch, traces, measured) -> batch`, of `make_prepare`: what else
      the loss reads; None: nothing.
    **options: mini_batches, epochs, micro_batches, axis_name, trainable of
      `update.update`.
  """

  def run(state, traces, measured, ref_log_probs=None):
    batch = training_batch(traces, measured, advantage_fn, ref_log_probs)
    if prepare is not None:
      batch = prepare(batch, traces, measured)
    if rows_fn is not None:
      batch = join_rows(batch, rows_fn(traces, measured))
    return update.update(
      state, batch, loss_fn=loss_fn, optimizer=optimizer, **options
    )

  return run


def make_advantages(name: str, **options) -> Callable:
  """Returns `(Measured, T) -> f32[B,T]` (or `Selected`) of an algorithm."""
  if name not in algorithms.ALGORITHMS:
    raise ValueError(
      f'algorithm {name!r} is unknown; allowed: '
      f'{sorted(algorithms.ALGORITHMS)}.'
    )
  return functools.partial(algorithms.ALGORITHMS[name], **options)


def make_rows(task: Task, **options) -> Callable:
  """Returns `(traces, measured) -> arrays [B,R,T]`: summaries as rows.

  Args:
    task: its stop tokens and padding.
    **options: group_size and summary_baseline of
      `algorithms.summary_advantages`.
  """

  def rows(traces, measured):
    return summary_rows(
      traces,
      measured.episodes.ends,
      measured.summaries,
      algorithms.summary_advantages(measured, **options),
      stop_ids=task.stop_ids,
      pad_id=task.pad_id,
    )

  return rows


def fused(generate, prove, update_fn, score=None, value=None):
  """Returns a whole training step as one function of arrays.

  `step(state, ref_params, batch, key) -> (state, traces, measured, metrics)`:
  generate, grade, prove, credit and update without leaving the device. jit it
  with the state donated.
  """

  def step(state, ref_params, batch, key):
    sample_key, prove_key = jax.random.split(key)
    traces, cache = generate(state.params, batch, sample_key)
    measured = prove(state.params, batch, traces, cache, prove_key)
    if value is not None:
      critic = value(state.params, traces)
      measured = dataclasses.replace(measured, critic=critic)
    reference = None if score is None else score(ref_params, traces)
    state, metrics = update_fn(state, traces, measured, reference)
    return state, traces, measured, metrics

  return step
