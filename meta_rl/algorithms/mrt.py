"""Meta reinforcement fine-tuning: progress as the credit of an episode.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes.
"""

import dataclasses

import jax.numpy as jnp

from meta_rl import advantages, checks, regret
from meta_rl.algorithms.base import Measured, at, grouped, spread
from meta_rl.algorithms.outcome import outcome
from meta_rl.types import Array

CREDITS = ('token_weighted', 'return_to_go', 'immediate')
BASELINES = ('prover', 'continuing', 'none')


def mrt(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  horizon: int,
  credit: str = 'token_weighted',
  alpha: float = 1.0,
  outcome_mass: float = 0.3,
  price: float = 0.0,
  baseline: str = 'prover',
  decay: float = 1.0,
  axis_name: str | None = None,
) -> Array:
  """Returns per-episode MRT advantages on tokens.

  With progress p_i = J_{i+1} - J_i and weights
  w_i = (1 - rho) max(0, 1 - e_i/H) + rho, the return of boundary j is, by
  `credit`,

    token_weighted   R_j = sum_{i>=j} (w_i p_i - price * len_i / H)
    return_to_go     R_j = (1 + alpha) (J_k - J_j), the control: in expectation
                     the outcome gradient, (1 + alpha) times that of thinking
                     (alpha = 0 is all of it, with the prover as baseline)
    immediate        the tokens of episode j get A_outcome + alpha * p_j, the
                     literal gradient of the paper's objective (the outcome part
                     is leave-one-out within the group)

  For the first two, boundary j's baseline b_j depends on the prefix alone, so
  episode j gets R_j - b_j, the token that stops at boundary k gets 0 - b_k, and
  the answer gets its own r - J_k. `J_k` stands in for r while thinking (Rao-
  Blackwell). A stop inside an episode competes with going on in it, and gets
  R_{k-1} - b_{k-1} (`algorithms.base.spread`). With `decay` below 1 the
  baseline also stands in for what later episodes brought
  (`advantages.bootstrapped`). Nothing is divided by a batch standard
  deviation: the weights would lose their meaning.

  J is the chance of the task's own outcome and knows nothing of a reward that
  is added to it (`measured.extra`): that part is credited to all tokens of the
  trace, leave-one-out within the group.

  Departs from MRT v0.1: J is exact by default and not a mean of 4 branches, the
  baseline is fitted on J itself, and stopping is an action with an advantage.

  Args:
    measured: rewards, J and boundaries.
    length: T.
    group_size: G; used by 'immediate' and for `measured.extra`.
    horizon: H, tokens.
    credit: 'token_weighted', 'return_to_go' or 'immediate'.
    alpha: >= 0, weight of the progress term; 'token_weighted' is scaled by it.
    outcome_mass: rho in [0, 1], share of the budget prior on the full budget;
      of 'token_weighted' alone ('return_to_go' is rho = 1).
    price: lambda >= 0, of a horizon of tokens; of 'token_weighted' alone.
    baseline: 'prover' (`advantages.prover_baseline`), 'continuing' (that of
      the traces that go on alone, an ablation: stopping earns nothing) or
      'none'.
    decay: of later episodes' surprises, in [0, 1]; below 1 needs the baseline.
    axis_name: of a mapped data axis; the baseline is then fitted on all rows.

  Returns:
    f32[B,T].

  Raises:
    ValueError: an unknown credit or baseline, a price without weights, or a
      decay with no baseline that could stand in.

  Source: Qu et al. 2025, arXiv 2503.07572, section 6.
  """
  checks.check_choice('credit', credit, CREDITS)
  checks.check_choice('baseline', baseline, BASELINES)
  checks.check_range('alpha', alpha, low=0)
  if price and credit != 'token_weighted':
    raise ValueError(
      f"price={price} is of credit='token_weighted' alone, where it is weighed "
      f'against progress: set price=0 with credit={credit!r}.'
    )
  if decay != 1 and (credit == 'immediate' or baseline != 'prover'):
    raise ValueError(
      f"decay={decay} needs baseline='prover' and a credit that looks ahead "
      f"('token_weighted' or 'return_to_go'): set decay=1 with "
      f'credit={credit!r}, baseline={baseline!r}.'
    )
  success = measured.success
  ends, count = measured.episodes.ends, measured.episodes.count
  progress = regret.progress(success, count)
  final = at(success, count)
  answer = measured.rewards - final
  if measured.extra is not None:
    answer -= measured.extra
  if credit == 'immediate':
    own = outcome(
      measured, length, group_size=group_size, baseline='leave_one_out'
    )[:, 0]
    per_episode = own[:, None] + alpha * advantages.episode_credit(
      progress, jnp.ones_like(progress), kind='immediate'
    )
    # The outcome is in `own` already: nothing is forgone beside it.
    whole = dataclasses.replace(measured, answered=jnp.ones(count.shape, bool))
    return spread(whole, length, per_episode, stop=own, answer=own)
  weighted = credit == 'token_weighted'
  scale = alpha if weighted else 1 + alpha
  returns = advantages.returns(
    progress,
    advantages.episode_weights(
      ends, horizon=horizon, outcome_mass=outcome_mass if weighted else 1.0
    ),
    ends[:, 1:] - ends[:, :-1],
    count,
    price=price if weighted else 0.0,
    horizon=horizon,
  )
  base = jnp.zeros_like(returns)
  if baseline != 'none':
    base = advantages.prover_baseline(
      returns,
      success,
      count,
      rows='reaching' if baseline == 'prover' else baseline,
      axis_name=axis_name,
      valid=measured.valid,
      # What 'continuing' leaves out holds what stands at the count.
      inside=measured.inside if baseline == 'prover' else None,
    )
  earned = scale * advantages.bootstrapped(returns, base, count, decay=decay)
  credited = spread(
    measured,
    length,
    earned[:, :-1],
    stop=at(earned, count),
    # Nothing follows a stop: there is nothing to stand in for.
    inside=scale * at(returns - base, jnp.maximum(count - 1, 0)),
    answer=answer,
  )
  if measured.extra is None:
    return credited
  own = advantages.leave_one_out(
    grouped(measured.extra, group_size),
    valid=grouped(measured.valid, group_size),
  )
  return credited + own.reshape(-1, 1)
