"""Budget relative policy optimisation: J at token budgets, weighed by a prior.

Axes: P prompts, G group, B = P * G traces, T tokens, S budgets, R summaries.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from meta_rl import advantages, checks
from meta_rl.algorithms.base import Measured, at, spread
from meta_rl.types import Array

PRIORS = ('uniform', 'linear', 'base')
SUMMARIES = ('rows', 'own')
SUMMARY_BASELINES = ('prefix', 'group')


def budget_prior(prior: str, budgets: Sequence[int]) -> Array:
  """Returns the probability of each token budget, f32[S], sum 1.

    uniform  1 / S
    linear   b_s / sum_k b_k
    base     all on the last budget: outcome reward at the full budget

  Args:
    prior: 'uniform', 'linear' or 'base'.
    budgets: S token budgets, increasing.
  """
  checks.check_choice('prior', prior, PRIORS)
  budgets = jnp.asarray(budgets, jnp.float32)
  if prior == 'base':
    return (jnp.arange(len(budgets)) == len(budgets) - 1).astype(jnp.float32)
  weights = budgets if prior == 'linear' else jnp.ones_like(budgets)
  return weights / weights.sum()


def brpo(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  budgets: Sequence[int],
  prior: str = 'uniform',
  summary_baseline: str = 'prefix',
) -> Array:
  """Returns the advantages of BRPO on tokens.

    thought between budgets s - 1 and s   A_s of `advantages.brpo`, of the
                                          scores J at the budgets
    the token that ends thinking          A_s, s the budget that it falls under
    the trace's own answer                r - baseline

  Thinking and answering are trained apart: a thought is worth what it lets
  answers at later budgets score, weighed by the prior, and an answer is only
  compared with other answers. A trace that stops early scores its last J at all
  later budgets. Nothing is divided by a standard deviation.

  Args:
    measured: J at the budgets, `success[:, 1:]`, the mean of several answers or
      the exact probability; `inside` is needed.
    length: T.
    group_size: G, at least 2.
    budgets: S token budgets of 'linear', those at which J was measured.
    prior: 'uniform', 'linear' or 'base'.
    summary_baseline: of the answer; 'prefix': the mean of the answers to the
      same thought, J; 'group': the group's mean J at the last budget, which is
      of use where J is a single answer.

  Returns:
    f32[B,T].

  Raises:
    ValueError: an unknown prior or baseline, budgets that are not those of J,
      `inside` missing, or G = 1.

  Source: AnytimeReasoner, Qi et al. 2025, arXiv 2505.13438, section 3. Departs
  from its code in where an answer is sampled once only, at the trace's own end:
  `summary_rows` of `meta_rl.steps` add those at every budget.
  """
  checks.check_choice('summary_baseline', summary_baseline, SUMMARY_BASELINES)
  scores = measured.success[:, 1:]
  num = scores.shape[1]
  if len(budgets) != num:
    raise ValueError(
      f'brpo: {len(budgets)} budgets are given and J was measured at {num}: '
      'give those at which it was measured.'
    )
  if measured.inside is None:
    raise ValueError(
      'brpo needs measured.inside, which tells under which budget a trace '
      'stopped: take it from steps.find_boundaries.'
    )
  grouped = scores.reshape(-1, group_size, num)
  credit = advantages.brpo(grouped, budget_prior(prior, budgets))
  credit = credit.reshape(-1, num)
  count = measured.episodes.count
  # Behind a whole budget the next token falls under the next one.
  under = jnp.minimum(count, num - 1)
  last = jnp.full(count.shape, num)
  return spread(
    measured,
    length,
    credit,
    stop=at(credit, under),
    answer=measured.rewards
    - _baseline(measured, last[:, None], group_size, summary_baseline)[:, 0],
  )


def summary_advantages(
  measured: Measured, *, group_size: int, summary_baseline: str = 'prefix'
) -> Array:
  """Returns the advantage of the summaries that are trained on, f32[B,R].

    A = reward - mean of the summaries at the same budget

  Args:
    measured: `summaries` and J, which is the mean of all sampled summaries of a
      budget, those that are not trained on included.
    group_size: G.
    summary_baseline: 'prefix': the mean over the summaries of the same thought,
      as published for several summaries; 'group': over those of the whole
      group, as published for one.

  Source: arXiv 2505.13438, section 3, and its code.
  """
  checks.check_choice('summary_baseline', summary_baseline, SUMMARY_BASELINES)
  found = measured.summaries
  return found.rewards - _baseline(
    measured, found.budget, group_size, summary_baseline
  )


def _baseline(measured, column, group_size, kind):
  """Returns J f32[B,R] at the columns i32[B,R], own or the group's mean."""
  success = measured.success
  if kind == 'group':
    grouped = success.reshape(-1, group_size, success.shape[1])
    success = jnp.repeat(grouped.mean(1), group_size, axis=0)
  return jnp.take_along_axis(success, column, axis=1)
