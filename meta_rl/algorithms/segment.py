"""Monte Carlo credit of segments, with any prover.

    prover                      transform   gives
    continued (thinks on)       identity    VinePPO, arXiv 2410.01679
    continued                   best_of     PAV, arXiv 2410.08146
    exact, sampled (stops)      identity    MRT's progress, arXiv 2503.07572

Axes: P prompts, G group, B = P * G traces, T tokens, K segments.
"""

import jax.numpy as jnp

from meta_rl import checks
from meta_rl.algorithms.base import Measured, at, spread
from meta_rl.algorithms.outcome import outcome
from meta_rl.types import Array

TRANSFORMS = ('identity', 'best_of')


def best_of(value: Array, number: int) -> Array:
  """Returns the chance that one of `number` independent tries is right.

    1 - (1 - V)^K

  Of a mean of few samples in place of V it is biased downwards, the function
  being concave; of an exact V it is exact.

  Args:
    value: f32[...], V, probability.
    number: K, at least 1; 1 gives V itself.
  """
  checks.check_range('number', number, low=1)
  return 1.0 - (1.0 - value) ** number


def segment(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  transform: str = 'identity',
  tries: int | None = None,
  alpha: float = 1.0,
  outcome_coef: float = 0.0,
  outcome_baseline: str | None = None,
  axis_name: str | None = None,
) -> Array:
  """Returns the change of value over a segment as the advantage of its tokens.

    a token of segment j   alpha (f(V_{j+1}) - f(V_j)) + coef A_outcome
    the stop, boundary k   alpha (f(J_k) - f(V_k)) + coef A_outcome
    the answer             alpha (f(r) - f(J_k)) + coef A_outcome

  V_j is the prover's value at boundary j, V_k that of c_k before the choice to
  stop and J_k of c_k after it (the same for a prover that stops anyway), f the
  identity or 'best_of': V of a prover that may try K times. Credits add up to
  alpha (f(r) - f(V_0)) over a trace.

  Property: if the prover is the policy (free continuation, identity) the
  expected gradient is that of outcome reward, (alpha + coef) times, whatever
  the segments: only its variance is lower. A prover that differs, such as best
  of K, gives another gradient, which is the point of PAV.

  Args:
    measured: rewards, values at the boundaries, `before_stop` of the continued
      prover.
    length: T.
    group_size: G, for A_outcome.
    transform: 'identity' or 'best_of'.
    tries: K of 'best_of', at least 1; None with 'identity'.
    alpha: >= 0, of the change of value.
    outcome_coef: >= 0, of A_outcome, the trace's own outcome advantage; 0
      leaves it out, as VinePPO does.
    outcome_baseline: of A_outcome, as in `outcome`; None without it.
    axis_name: of a mapped data axis, for the baseline 'batch_mean'.

  Returns:
    f32[B,T].

  Raises:
    ValueError: an unknown transform or baseline, one of a pair of options
      without the other, or coefficients that are both 0.

  Source: VinePPO, Kazemnejad et al. 2024, arXiv 2410.01679, section 4; PAV,
  Setlur et al. 2024, arXiv 2410.08146, section 3 (effective reward: outcome +
  alpha A^mu). Departs from PAV in that its values are sampled anew and not
  those of a trained verifier.
  """
  checks.check_choice('transform', transform, TRANSFORMS)
  if (transform == 'best_of') != (tries is not None):
    raise ValueError(
      f'transform={transform!r} with tries={tries}: tries is how many '
      "transform='best_of' takes the best of, and of that alone."
    )
  checks.check_range('alpha', alpha, low=0)
  checks.check_range('outcome_coef', outcome_coef, low=0)
  if not alpha and not outcome_coef:
    raise ValueError(
      'alpha and outcome_coef are both 0: nothing would be learned; raise one.'
    )
  if bool(outcome_coef) != (outcome_baseline is not None):
    raise ValueError(
      f'outcome_coef={outcome_coef} with outcome_baseline={outcome_baseline!r}:'
      ' give a baseline where the coefficient is not 0, and None where it is.'
    )
  f = (lambda x: x) if tries is None else lambda x: best_of(x, tries)
  count = measured.episodes.count
  value = f(measured.success)
  over = at(value, count)
  before = over if measured.before_stop is None else f(measured.before_stop)
  num = value.shape[1] - 1
  last = jnp.arange(num) == count[:, None] - 1
  # Inside a segment the moment before a stop is none that a segment ends at:
  # where it lies depends on the stop that is to be judged.
  ended = before
  if measured.inside is not None:
    ended = jnp.where(measured.inside, over, before)
  credit = jnp.where(last, ended[:, None], value[:, 1:]) - value[:, :-1]
  credit = jnp.where(jnp.arange(num) < count[:, None], credit, 0.0)
  begun = at(value, jnp.maximum(count - 1, 0))
  result = alpha * spread(
    measured,
    length,
    credit,
    stop=over - before,
    # A stop inside a segment is one of its ways to end.
    inside=over - begun,
    answer=f(measured.rewards) - over,
  )
  if not outcome_coef:
    return result
  return result + outcome_coef * outcome(
    measured,
    length,
    group_size=group_size,
    baseline=outcome_baseline,
    axis_name=axis_name,
  )
