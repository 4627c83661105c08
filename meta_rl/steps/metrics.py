"""Scalars of a batch of traces."""

import jax.numpy as jnp

from meta_rl import algorithms, regret
from meta_rl.steps import branches
from meta_rl.types import Array, Rollout


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
  tokens = sampled = traces.mask.sum(1)
  if traces.side_tokens is not None:
    sampled = sampled + traces.side_tokens
  ends, count = measured.episodes.ends, measured.episodes.count
  mean = lambda x: x.astype(jnp.float32).mean()
  metrics = {
    'rollout/reward_mean': mean(rewards),
    'rollout/truncation_rate': mean(traces.truncated),
    'rollout/forced_rate': mean(traces.forced),
    'rollout/tokens_mean': mean(tokens),
    'rollout/tokens_sum': sampled.sum().astype(jnp.float32),
    'rollout/thinking_tokens_mean': mean(traces.thinking_mask.sum(1)),
    'rollout/episodes_mean': mean(count),
  }
  if group_size > 1:  # a group of one is constant by definition
    constant = rewards.max(1) == rewards.min(1)
    metrics['rollout/zero_variance_share'] = mean(constant)
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
  if measured.continues is not None:
    metrics |= branches.branch_metrics(traces, measured)
  return metrics


def _normalized(success, ends, horizon, points: int = regret.NORMALIZED_POINTS):
  """Returns f32[], the normalized regret of the batch's accuracy curve.

  The curve is the mean over traces of the J at hand after each of `points`
  equal shares of the horizon.
  """
  budgets = jnp.arange(1, points + 1) * horizon / points
  spent = (ends - ends[:, :1])[:, None, :]
  reached = (spent <= budgets[:, None]).sum(-1) - 1
  curve = jnp.take_along_axis(success, reached, axis=1).mean(0)
  return regret.normalized(curve, budgets.astype(jnp.float32), horizon=horizon)
