"""The pathwise prover term: the half of the gradient that MRT leaves out.

    F(theta) = E_z[ sum_j w_j J_j(z; theta) ],   sum_j w_j = 1

J depends on theta twice: through the traces z that are sampled, and through how
the policy answers from a given prefix. MRT's advantages are the score-function
half with J held fixed,

    grad F = E[ sum_t grad log pi(z_t) R_t ] + E[ sum_j w_j grad J_j(z; theta) ]

and the second half is differentiated here (`prover_gradient.differentiable`).
Off by default, an ablation. It shows the policy the accepted answers, which a
reward does not; it may teach to guess at once (watch J under the frozen base
prover); and after the first mini-batch the traces are stale. It takes the exact
prover, and J as a function of the policy that is trained.

Together the halves are the gradient of F where MRT's own half is one: on-policy
and with `decay` = 1, `price` = 0. A trace that ends without an answer keeps its
penalty J_k, which F does not know.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from meta_rl import (
  algorithms,
  checks,
  costs,
  losses,
  prover_gradient,
  regret,
)
from meta_rl.algorithms.base import at
from meta_rl.steps.prove import per_trace
from meta_rl.tasks.base import Task
from meta_rl.types import Array, Model, Params, Rollout, WeightedSum

PATHWISE = ('none', 'last', 'all')


def boundary_weights(
  measured: algorithms.Measured,
  *,
  boundaries: str,
  horizon: int,
  outcome_mass: float = 0.0,
) -> Array:
  """Returns f32[B,K+1], w: the weight of each J in the objective.

    all   w_j = (1 - rho) share_j + rho [j = count], share_j the part of the
          horizon for which J_j holds (`regret.shares`). Then sum_j w_j J_j =
          J_0 + sum_i w_i p_i with the weights of credit 'token_weighted'
    last  [j = count], the outcome

  Where no answer followed, the outcome is 0 whatever the prover would have
  said, and [j = count] is 0 too.

  Args:
    measured: boundaries, and whether an answer followed.
    boundaries: 'all' or 'last'.
    horizon: H, tokens.
    outcome_mass: rho, that of the algorithm; of 'all' alone.
  """
  checks.check_choice('boundaries', boundaries, PATHWISE[1:])
  ends, count = measured.episodes.ends, measured.episodes.count
  last = jnp.arange(ends.shape[1]) == count[:, None]
  last = (last & measured.answered[:, None]).astype(jnp.float32)
  if boundaries == 'last':
    return last
  shares = regret.shares(ends, horizon=horizon)
  return (1 - outcome_mass) * shares + outcome_mass * last


def differentiated_tokens(
  measured: algorithms.Measured,
  *,
  stop_length: int,
  boundaries: str,
  horizon: int,
  outcome_mass: float = 0.0,
) -> Array:
  """Returns i32[B], tokens of each trace's probes that have a weight.

  What `costs.step_costs` takes for `differentiated`.

  Args:
    measured: of `with_answers`.
    stop_length: m >= 1, stop tokens.
    boundaries, horizon, outcome_mass: as in `boundary_weights`.
  """
  weights = boundary_weights(
    measured, boundaries=boundaries, horizon=horizon, outcome_mass=outcome_mass
  )
  weights = prover_gradient.on_first(weights, measured.episodes.ends)
  count = (weights != 0).sum(1)
  return costs.exact_tokens(count - 1, measured.answer_mask, stop_length)


def with_answers(prove: Callable, *, group_size: int) -> Callable:
  """Returns `prove` whose Measured also holds each trace's accepted answers."""

  def run(params, batch, traces, cache, key, row_offset=0):
    measured = prove(params, batch, traces, cache, key, row_offset)
    wanted = {k: batch[k] for k in ('answers', 'answer_mask')}
    return dataclasses.replace(measured, **per_trace(wanted, group_size))

  return run


def make_prepare(
  task: Task,
  *,
  boundaries: str,
  horizon: int,
  outcome_mass: float = 0.0,
  alone: bool = False,
) -> Callable:
  """Returns `prepare(batch, traces, measured) -> batch` of `make_update`.

  It adds what the term reads, and drops the score term r - J_k of the answer's
  own tokens: its expectation is grad J_k, which is part of the pathwise term.
  The credit of a reward beyond the outcome (`measured.extra`), which J does not
  know, stays.
  An answer that the prover does not measure keeps it: one behind the policy's
  own marker, where the prover is told to stop in other words, or behind thought
  past the last boundary.

  Args:
    task: its stop tokens.
    boundaries, horizon, outcome_mass: as in `boundary_weights`.
    alone: all advantages are 0: the term trains without the policy gradient.
  """
  as_prover = tuple(task.stop_ids) == (task.think_end_id,)

  def prepare(batch, traces: Rollout, measured: algorithms.Measured):
    columns = jnp.arange(traces.tokens.shape[1])
    measured_here = measured.stop_index <= measured.episodes.ends[:, -1] + 1
    if not as_prover:
      measured_here &= traces.forced
    answer = columns > measured.stop_index[:, None]
    left = 0.0
    if measured.extra is not None:
      final = at(measured.success, measured.episodes.count)
      own = measured.rewards - final - measured.extra
      left = batch['advantages'] - own[:, None]
    credit = jnp.where(
      answer & measured_here[:, None], left, batch['advantages']
    )
    return batch | {
      'advantages': jnp.zeros_like(credit) if alone else credit,
      'ends': measured.episodes.ends,
      # A second axis of 1: `update.cut_to_length` cuts arrays whose second axis
      # is as long as the traces, which S may happen to be.
      'answers': measured.answers[:, None],
      'answer_mask': measured.answer_mask[:, None],
      'boundary_weights': boundary_weights(
        measured,
        boundaries=boundaries,
        horizon=horizon,
        outcome_mass=outcome_mass,
      ),
    }

  return prepare


def make_pathwise_term(
  model: Model,
  task: Task,
  *,
  coef: float = 1.0,
  temperature: float = 1.0,
  block_pairs: int = 16,
  aggregate: str = 'sequence_mean',
  constant: int | None = None,
) -> Callable:
  """Returns `term(params, batch) -> (WeightedSum, metrics)` of `make_loss`.

  Minus coef * sum_j w_j J_j, weighed as the policy gradient is: a trace's
  score-function gradient is a sum over its tokens, and grad F takes it and the
  pathwise term at equal weight. So the value of a row is spread over its
  actions and aggregated as a loss of these tokens: 'token_mean' and 'constant'
  add it to the row's sum as it is, 'sequence_mean' divides it by the row's
  number of tokens, as it does the sum. Then a coefficient of 1 (of alpha, where
  `algorithm.alpha` is not 1; of 1 + alpha with 'return_to_go') makes the two
  halves one gradient.

  Args:
    model: the policy.
    task: its stop tokens.
    coef: weight, > 0.
    temperature: at which the prover answers, that of the rollout.
    block_pairs: as in `prover_gradient.differentiable`.
    aggregate, constant: those of the policy gradient.

  Raises:
    ValueError: coef <= 0.
  """
  checks.check_range('coef', coef, above=0)

  def term(params: Params, batch: dict[str, Array]):
    mask = batch['mask']
    value = prover_gradient.differentiable(
      model,
      params,
      batch['tokens'],
      batch['token_mask'],
      batch['ends'],
      batch['answers'][:, 0],
      batch['answer_mask'][:, 0],
      stop_ids=task.stop_ids,
      boundary_weights=batch['boundary_weights'],
      temperature=temperature,
      block_pairs=block_pairs,
    )
    size = jnp.maximum(mask.sum(1), 1)
    spread = jnp.broadcast_to(-(value / size)[:, None], mask.shape)
    loss = losses.aggregate_tokens(
      spread, mask, aggregate=aggregate, constant=constant
    )
    metrics = {'loss/pathwise': loss}
    return WeightedSum(coef * loss.total, loss.weight), metrics

  return term
