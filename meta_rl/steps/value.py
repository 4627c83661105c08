"""The critic of PPO: values before the update, and terms of the loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_rl import algorithms, checks, losses
from meta_rl import value as value_head
from meta_rl.types import Model, WeightedSum


def make_value(model: Model) -> Callable:
  """Returns `value(params, traces) -> Critic`: one scoring pass.

  The values are those of the policy that sampled, before the update moves them.
  """

  def value(params, traces):
    features = value_head.features(
      model, params, traces.tokens, traces.token_mask
    )
    return algorithms.Critic(
      values=value_head.read_out(params, features, traces.token_mask),
      mask=traces.mask,
    )

  return value


def make_value_term(
  *,
  value_coef: float = 0.5,
  value_j_coef: float = 0.5,
  value_clip: float | None = None,
  aggregate: str = 'sequence_mean',
  constant: int | None = None,
) -> Callable:
  """Returns `term(params, features, batch) -> (WeightedSum, metrics)`.

    value_coef · value_loss(V, A + V_old)
      + value_j_coef · value_loss(V, J) at the states that have a J

  Both sums have the weight of the policy's own loss, so that a state with a J
  counts, coefficient for coefficient, like a token.

  Args:
    value_coef: >= 0, of the regression on λ-returns.
    value_j_coef: >= 0, of the regression on the prover's J.
    value_clip: > 0, of the former; None: no clip.
    aggregate, constant: those of the policy's loss.

  Raises:
    ValueError: a negative coefficient, both 0, or a clip of nothing.
  """
  checks.check_range('value_coef', value_coef, low=0)
  checks.check_range('value_j_coef', value_j_coef, low=0)
  if not value_coef and not value_j_coef:
    raise ValueError(
      'value_coef and value_j_coef are both 0: the critic would stay at 0; '
      "raise one of them, or use algorithm.name='outcome'."
    )
  if value_clip is not None:
    checks.check_range('value_clip', value_clip, above=0)
    if not value_coef:
      raise ValueError(
        f'value_clip={value_clip} is of the regression on returns alone and '
        'value_coef is 0: set value_clip to None.'
      )
  shared = {'aggregate': aggregate, 'constant': constant}

  def term(params, features, batch):
    values = value_head.read_out(params, features, batch['token_mask'])
    mask, known = batch['mask'], batch['j_mask']
    loss, found = losses.value_loss(
      values,
      batch['value_targets'],
      mask,
      old_values=None if value_clip is None else batch['old_values'],
      clip=value_clip,
      **shared,
    )
    taught, _ = losses.value_loss(
      values,
      batch['j_targets'],
      mask,
      weights=known.astype(values.dtype),
      **shared,
    )
    over = lambda x, at: losses.aggregate_tokens(
      jax.lax.stop_gradient(x), at, aggregate='token_mean'
    )
    metrics = {f'value/{k}': v for k, v in found.items()} | {
      'value/mean': over(values, mask),
      'value/target_mean': over(batch['value_targets'], mask),
      'value/j_gap': over(jnp.abs(values - batch['j_targets']), known),
      'loss/value': loss,
      'loss/value_j': taught,
    }
    total = value_coef * loss.total + value_j_coef * taught.total
    return WeightedSum(total, loss.weight), metrics

  return term
