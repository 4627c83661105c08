"""A batch of given traces in the place of `generate`, and its correction."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from meta_rl import losses
from meta_rl.external import PREFIX
from meta_rl.types import Rollout

CORRECTIONS = (*losses.LEVELS, 'none')


def replay(params, batch, key, row_offset=0):
  """Returns the traces that a batch of `external.collate` holds, and no cache.

  It stands where `generate` does: `(params, batch, key, row_offset)`. A
  log-prob that the file did not have is NaN until `make_correction`'s function
  has filled it in.
  """
  del params, key, row_offset
  fields = {}
  for field in dataclasses.fields(Rollout):
    name = PREFIX + field.name
    if name in batch:
      x = jnp.asarray(batch[name])
      fields[field.name] = x.reshape(-1, *x.shape[2:])
  log_probs = fields['behavior_log_probs']
  return Rollout(raw_log_probs=log_probs, **fields), None


def with_given_rewards(prove: Callable) -> Callable:
  """Returns `prove` with the rewards that came with the traces."""

  def prove_given(params, batch, traces, cache, key, row_offset=0):
    measured = prove(params, batch, traces, cache, key, row_offset)
    rewards = jnp.asarray(batch[f'{PREFIX}rewards']).reshape(-1)
    return dataclasses.replace(measured, rewards=rewards)

  return prove_given


def make_correction(*, correction: str, cap: float) -> Callable:
  """Returns the function that makes given traces the trainer's own.

    correct(traces, trainer_log_probs) -> (traces, metrics)

  `trainer_log_probs` are of `score` under the policy before the update. They
  become the traces' `behavior_log_probs`, so that the clipped ratio says how
  far this update has gone; how far the sampler was is in the traces' `weights`
  (`losses.truncated_importance_weights`). Tokens without a recorded log-prob
  are taken to be the policy's own: their weight is 1.

  Args:
    correction: 'token' or 'sequence', the level of the weights; 'none': they
      are measured and not used.
    cap: of the weights.

  Returns:
    The function. Its metrics are those of `losses.importance_metrics`, under
    `external/`.
  """
  level = 'token' if correction == 'none' else correction

  def correct(traces, trainer_log_probs):
    given = traces.behavior_log_probs
    sampler = jnp.where(jnp.isnan(given), trainer_log_probs, given)
    options = {'cap': cap, 'level': level}
    args = trainer_log_probs, sampler, traces.mask
    found = losses.importance_metrics(*args, **options)
    weights = None
    if correction != 'none':
      weights = losses.truncated_importance_weights(*args, **options)
    own = jnp.where(traces.mask, trainer_log_probs, 0.0)
    traces = dataclasses.replace(
      traces, behavior_log_probs=own, raw_log_probs=own, weights=weights
    )
    return traces, {f'external/{k}': v for k, v in found.items()}

  return correct
