"""A curriculum of thinking budgets: train longer where longer would pay.

    B_i = argmin_{B >= B_0} B   such that   J(2B) <= kappa J(B)

J(B) is the chance of answering right when thinking is cut at B tokens. Below
B_i twice the budget still brings more than a factor kappa: traces cut there
would teach a policy to stop where it should go on. Above it, tokens are paid
for that bring little. (e3: Setlur et al. 2025, arXiv 2506.09026)

The budget is one of a few that are declared beforehand, so that each is one set
of compiled shapes and a run compiles no more than so many.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, masked

Array = jax.Array


def choose(success: Array, doubled: Array, *, kappa: float) -> Array:
  """Returns which of N budgets to train at, i32[].

    min i such that J(2 B_i) <= kappa J(B_i), or N - 1 where there is none

  A policy that never answers right, J = 0, gets the smallest budget.

  Args:
    success: f32[N], J at the budgets, smallest first, in [0, 1].
    doubled: f32[N], J at twice each; the last is not looked at.
    kappa: > 1, the gain that a doubling must bring to be worth it.

  Raises:
    ValueError: shapes, or kappa not above 1.

  Example:
    >>> from meta_rl import curriculum
    >>> int(
    ...   curriculum.choose([0.2, 0.5, 0.6], [0.5, 0.6, 0.6], kappa=1.5)
    ... )  # 0.5 > 1.5·0.2, but 0.6 <= 1.5·0.5
    1

  Source: e3, arXiv 2506.09026, the choice of the budget of a stage. Departs
  from it in that the budgets are a given set, with the largest as the last
  resort.
  """
  dims = {}
  success = checks.as_array('success', success, 'float[N]', dims)
  doubled = checks.as_array('doubled', doubled, 'float[N]', dims)
  checks.check_scalar('kappa', kappa, above=1)
  checks.check_filled('success', success)
  enough = (doubled <= kappa * success).at[-1].set(True)
  return masked.first_true_index(enough, axis=0).astype(jnp.int32)


class Curriculum:
  """Which budget a run trains at, and when it is chosen anew (host).

  With one budget there is nothing to choose.

  Attributes:
    budgets: tokens, smallest (B_0) first.
    points: tokens at which J must be known: all budgets, and twice each but the
      last; () with one budget.
    budget: the current one; None: it is to be chosen before the first step.
  """

  def __init__(self, budgets: Sequence[int], *, kappa: float, every: int):
    """Checks the options.

    Args:
      budgets: tokens, increasing, and each but the last at most half of the
        last: J past the last is not measured.
      kappa: > 1, as in `choose`.
      every: steps between two choices, >= 1.

    Raises:
      ValueError: one of them.
    """
    self.budgets = tuple(budgets)
    _check_budgets(self.budgets)
    checks.check_range('curriculum.kappa', kappa, above=1)
    checks.check_range('curriculum.every', every, low=1)
    self._kappa, self._every = kappa, every
    several = len(self.budgets) > 1
    twice = {2 * budget for budget in self.budgets[:-1]}
    self.points = tuple(sorted({*self.budgets, *twice})) if several else ()
    self.budget = None if several else self.budgets[0]

  def due(self, step: int) -> bool:
    """Returns whether the budget is chosen anew after step `step`."""
    return bool(self.points) and step % self._every == 0

  def update(self, success: Mapping[int, float]) -> dict[str, float]:
    """Chooses the budget of the next steps; returns metrics of the choice.

    Args:
      success: J by tokens, of each of `points`.
    """
    doubled = [success[2 * budget] for budget in self.budgets[:-1]] + [0.0]
    own = [success[budget] for budget in self.budgets]
    index = int(
      choose(jnp.asarray(own), jnp.asarray(doubled), kappa=self._kappa)
    )
    self.budget = self.budgets[index]
    row = {
      'curriculum/next_budget': float(self.budget),
      'curriculum/success': float(own[index]),
    }
    if index < len(own) - 1:
      row['curriculum/success_doubled'] = float(doubled[index])
    return row

  def get_state(self) -> dict[str, int]:
    """Returns what a checkpoint keeps, JSON."""
    return {'budget': self.budget} if self.points else {}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes on from a checkpoint.

    A budget that is not declared any more, or none, is left to be chosen.

    Args:
      state: of `get_state`.
    """
    kept = state.get('budget')
    if self.points:
      self.budget = kept if kept in self.budgets else None


def _check_budgets(budgets):
  """Raises ValueError unless J of each can be compared with J of twice it."""
  whole = all(isinstance(b, int) and b >= 1 for b in budgets)
  if not budgets or not whole or list(budgets) != sorted(set(budgets)):
    raise ValueError(
      f'curriculum.budgets={budgets}: give increasing numbers of tokens, each '
      '>= 1.'
    )
  for budget in budgets[:-1]:
    if 2 * budget > budgets[-1]:
      raise ValueError(
        f'curriculum.budgets={budgets}: {budget} is above half of the last, so '
        f'that J at {2 * budget} tokens is not measured; leave it out.'
      )
