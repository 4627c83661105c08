"""The headline of an evaluation: its curves, its scalars, and its problems."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from meta_rl import eval_figures, eval_regrets, held_out, statistics

Measured = Mapping[str, np.ndarray]


def curves(
  found: Measured, own: eval_regrets.Profile, clusters: np.ndarray
) -> dict[str, Any]:
  """Returns accuracy, tokens and regret at every budget, 0 … H tokens.

  Args:
    found: of `held_out.measure` with J at token budgets.
    own: profile of the same traces.
    clusters: i[N], one id a problem.
  """
  grid = list(range(own.horizon + 1))  # J is a step function: every token
  mean, low, high = statistics.bootstrap_curve(own.tokens, clusters=clusters)
  regret_curve = statistics.regret_at_budgets(
    found['success'],
    found['ends'],
    found['count'],
    budgets=grid,
    horizon=own.horizon,
  )
  tokens = found['thinking_mask'].sum(1)
  cut = found['budget_ends'] - found['budget_ends'][:, :1]
  return {
    'budgets': grid,
    'accuracy_at_budget': mean.tolist(),
    'tokens_at_budget': np.minimum(tokens[:, None], grid).mean(0).tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'regret_at_budget': regret_curve.mean(0).tolist(),
    'forced_at_budget': {
      'budgets': cut.max(0).tolist(),
      'accuracy': found['budget_success'].mean(0).tolist(),
    },
  }


def scalars(
  found: Measured,
  own: eval_regrets.Profile,
  along: Mapping[str, Any],
  clusters: np.ndarray,
) -> dict[str, Any]:
  """Returns the figures that a table has of one trace a problem.

  Args:
    found, own, clusters: as in `curves`.
    along: what that returned.
  """
  last = held_out.final_success(found)
  regrets = held_out.regrets(found, own.horizon)
  return {
    'accuracy': eval_figures.interval(last, clusters),
    'reward': eval_figures.interval(found['rewards'], clusters),
    'regret_token_weighted': eval_figures.interval(regrets, clusters),
    'regret_normalized': eval_figures.normalized(own.tokens, clusters),
    'tokens_to_accuracy': eval_figures.tokens_to_levels(
      along['budgets'], along['accuracy_at_budget']
    ),
    'tokens_mean': float(found['thinking_mask'].sum(1).mean()),
    'forced_rate': float(found['forced'].mean()),
  }


def per_problem(
  found: Measured, own: eval_regrets.Profile, clusters: np.ndarray
) -> dict[str, list]:
  """Returns what is known of each trace, for comparisons problem by problem.

  Args:
    found, own, clusters: as in `curves`.
  """
  elapsed = found['ends'] - found['ends'][:, :1]
  until = found['count'] + 1
  return {
    'regret_token_weighted': held_out.regrets(found, own.horizon).tolist(),
    'accuracy': held_out.final_success(found).tolist(),
    'reward': found['rewards'].tolist(),
    'tokens': found['thinking_mask'].sum(1).tolist(),
    'cluster': clusters.tolist(),
    # At each boundary up to the own stop: tokens thought, and J.
    'boundary_tokens': [e[:n].tolist() for e, n in zip(elapsed, until)],
    'boundary_success': [
      x[:n].tolist() for x, n in zip(found['success'], until)
    ],
  }
