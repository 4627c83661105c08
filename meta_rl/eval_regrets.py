"""Regret of measured traces against what could have been reached, on the host.

Three forms of regret, each the area between a comparator's J and the policy's:

    cumulative      Σ_{j<K} (J*_j − J_j), in episodes; all K count, and a trace
                    that stopped holds its J (arXiv 2503.07572, Definition 4.1)
    token_weighted  (1/H) ∫_0^H (J*(t) − J(t)) dt, J a step function of tokens
    normalized      the same by straight lines through (0, 0) and the accuracy
                    after each of `regret.NORMALIZED_POINTS` equal shares of H

and three comparators:

    one      an oracle that answers right at once: J* = 1
    optimum  the best policy that the task allows, where it is known
    best     of policies that are compared, at each point the one with the
             highest mean J there

The best is chosen on the problems that it is measured on: a little above what
it would be on others. Its interval is of the paired difference to that choice,
which is held fixed. Pure numpy.

Axes: N traces, H tokens, K episodes, P policies.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from meta_rl import regret, statistics

FORMS = ('cumulative', 'token_weighted', 'normalized')


@dataclasses.dataclass(frozen=True)
class Profile:
  """J of each trace against tokens and against episodes.

  Attributes:
    tokens: f64[N,H+1], J when stopped after 0 … H tokens.
    episodes: f64[N,K+1], J after 0 … K episodes; past its own stop a trace
      holds its last J.
  """

  tokens: np.ndarray
  episodes: np.ndarray

  @property
  def horizon(self) -> int:
    """H, tokens."""
    return self.tokens.shape[1] - 1

  def areas(self) -> np.ndarray:
    """Returns f64[N,3], the area under J in each of FORMS."""
    return np.stack(
      [
        self.episodes[:, :-1].sum(1),
        self.tokens[:, :-1].mean(1),
        normalized_area(self.tokens),
      ],
      axis=1,
    )


def profile(
  success: np.ndarray, ends: np.ndarray, count: np.ndarray, *, horizon: int
) -> Profile:
  """Returns the profile of traces.

  Args:
    success: f32[N,K+1], J at every boundary.
    ends: i32[N,K+1], last token of each episode.
    count: i32[N], episodes of each trace.
    horizon: H, tokens, >= 1.
  """
  success = np.asarray(success, np.float64)
  tokens = statistics.success_at_budgets(
    success, ends, count, budgets=range(horizon + 1)
  )
  return Profile(tokens, statistics.held(success, count))


def normalized_area(curves: np.ndarray) -> np.ndarray:
  """Returns f64[N], one minus the normalised regret of each trace.

  The trapezoid through (0, 0) and J after each of `regret.NORMALIZED_POINTS`
  equal shares of the horizon, as training logs it. J at 0 tokens is measured;
  the official form is not, and so has (0, 0).

  Args:
    curves: f[N,H+1], J after 0 … H tokens.
  """
  curves, points = np.asarray(curves, np.float64), regret.NORMALIZED_POINTS
  at = np.arange(1, points + 1) * (curves.shape[1] - 1) / points
  values = curves[:, np.floor(at).astype(int)]
  return (values.sum(1) - values[:, -1] / 2) / points


def against_one(own: Profile, clusters: np.ndarray) -> dict:
  """Returns the regret in each form against an oracle, with intervals.

  Args:
    own: of the policy.
    clusters: i[N], one id a problem.

  Returns:
    FORMS, each mean, low and high of a 95% bootstrap over problems.
  """
  episodes = own.episodes.shape[1] - 1
  return _intervals([episodes, 1, 1] - own.areas(), clusters)


def against(own: Profile, other: Profile, clusters: np.ndarray) -> dict:
  """Returns the regret in each form against a comparator of the same shape."""
  return _intervals(other.areas() - own.areas(), clusters)


def optimum(
  successes: Sequence[np.ndarray], *, like: Profile, episode_length: int
) -> Profile:
  """Returns the profile of the best policy that a task allows.

  Args:
    successes: N of f64[L+1], its expected J after 0 … L episodes, L at least K
      and as many as the horizon has room for.
    like: of a policy, whose horizon and K it is to have.
    episode_length: tokens of each of its episodes.
  """
  success = np.asarray(successes, np.float64)
  done = np.arange(like.horizon + 1) // episode_length
  return Profile(success[:, done], success[:, : like.episodes.shape[1]])


def best_of(profiles: Sequence[Profile]) -> Profile:
  """Returns the comparator 'best', row i of which is of problem i.

  Its mean over problems is the pointwise maximum of the policies' means.

  Args:
    profiles: P of the same problems, horizon and number of episodes.
  """
  chosen = lambda name: _choose([getattr(each, name) for each in profiles])
  return Profile(chosen('tokens'), chosen('episodes'))


def _choose(curves):
  means = np.stack([curve.mean(0) for curve in curves])
  best = means.argmax(0)
  return np.take_along_axis(
    np.stack(curves), best[None, None, :], axis=0
  ).squeeze(0)


def _intervals(values, clusters):
  return {
    form: statistics.bootstrap_mean(column, clusters=clusters)._asdict()
    for form, column in zip(FORMS, values.T)
  }
