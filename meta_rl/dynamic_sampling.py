"""Dynamic sampling: prompts are drawn until enough of their groups differ.

A group whose traces all have one reward has no advantage within itself: its
share of the batch, the larger the better or worse the policy, is paid for and
not learned from. So further prompts are sampled in its place (DAPO, Yu et al.
2025, arXiv 2503.14476, section 3.2):

    round 1   a = b c = d = =     P groups; '=' came out equal
    round 2   e = = f = = g =     e, f, g take the places of the first three
    batch     a e b c f d g =     the last '=' waits for round 3, or fills up

Every round has the shapes of the first, and two batches are merged by a gather,
so nothing is traced anew. What is measured is of all that was sampled; the
update alone sees the groups that were kept, and `cost/train` is theirs.

Departs from DAPO in the end only: after `max_rounds` the batch is filled up
with groups of equal rewards in place of going on, or giving up.

Axes: P prompts, G group, B = P * G traces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from meta_rl import sharding
from meta_rl.compiled import CountedJit

# What every round adds to.
SUMMED = ('rollout/tokens_sum', 'cost/generate', 'cost/prove')
# What is of the merged batch alone: it is trained on, whatever was sampled.
MERGED = ('cost/train',)


def check(max_rounds: int | None, group_size: int) -> None:
  """Raises ValueError for rounds that could never change a batch.

  Args:
    max_rounds: rounds a step; 0 or None is off.
    group_size: G.
  """
  if not max_rounds:
    return
  if max_rounds < 2:
    raise ValueError(
      f'dynamic_sampling.max_rounds={max_rounds}: allowed is >= 2, or 0 for '
      'none; one round is what there is without.'
    )
  if group_size < 2:
    raise ValueError(
      f'dynamic_sampling.max_rounds={max_rounds} with group_size={group_size}: '
      'a group of one trace has equal rewards, so that every prompt would be '
      'dropped; give group_size >= 2, or max_rounds=0.'
    )


def round_key(key: jax.Array, number: int) -> jax.Array:
  """Returns the key of a round, counted from 1: `key` itself, then folds of it.

  The first is the step's own, so that a step of one round is an ordinary one.
  No round folds in 0 or 1: those are the very keys that `split(key)` gives.
  """
  return key if number == 1 else jax.random.fold_in(key, number)


def varied_groups(
  rewards: np.ndarray, group_size: int, valid: np.ndarray | None = None
) -> np.ndarray:
  """Returns bool[P], whether the rewards of a group differ (host).

  Args:
    rewards: f32[B].
    group_size: G.
    valid: bool[B], the traces that have a reward; None: all. The others make no
      difference.
  """
  groups = np.asarray(rewards).reshape(-1, group_size)
  if valid is None:
    return groups.max(axis=1) > groups.min(axis=1)
  known = np.asarray(valid).reshape(groups.shape)
  high = groups.max(axis=1, where=known, initial=-np.inf)
  return high > groups.min(axis=1, where=known, initial=np.inf)


def places(kept: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns where each group of the merged batch comes from (host).

    kept  T F T F      new  F T F F      0 5 2 3

  Groups that differ stay where they are, and those of the new round take the
  places of equal ones in order. Groups beyond the last free place are dropped.

  Args:
    kept: bool[P], whether the rewards of each group so far differ.
    new: bool[P], the same of the new round.

  Returns:
    i32[P]: p for the p-th group so far, P + p for the p-th of the new round.
  """
  index = np.arange(len(kept), dtype=np.int32)
  free, fresh = np.flatnonzero(~kept), np.flatnonzero(new)
  count = min(len(free), len(fresh))
  index[free[:count]] = len(kept) + fresh[:count]
  return index


def merge(kept: Any, new: Any, index: jax.Array) -> Any:
  """Returns the groups of two batches that `places` names.

  Args:
    kept: pytree of arrays [P,...] or [B,...], traces of a prompt together.
    new: the same of the new round.
    index: i32[P], of `places`.
  """

  def pick(a, b):
    group = lambda x: x.reshape(len(index), -1, *x.shape[1:])
    both = jnp.concatenate([group(a), group(b)])
    return both[index].reshape(a.shape)

  return jax.tree.map(pick, kept, new)


def total(rows: list[dict[str, float]]) -> dict[str, float]:
  """Returns the metrics of all rounds: sums of SUMMED, means of the others."""
  values = {name: [row[name] for row in rows] for name in rows[0]}
  return {
    name: float(np.sum(x) if name in SUMMED else np.mean(x))
    for name, x in values.items()
  }


class Resampler:
  """Samples rounds of prompts until each place has a group that differs.

  Attributes:
    merge: the jitted `merge`, which counts its traces.
  """

  def __init__(
    self,
    *,
    max_rounds: int,
    group_size: int,
    next_batch: Callable[[], dict],
    get: Callable[[Any], Any] = jax.device_get,
    mesh: Mesh | None = None,
  ):
    """Checks the options; nothing is drawn yet.

    Args:
      max_rounds: rounds a step, >= 2.
      group_size: G, >= 2.
      next_batch: the next P problems, placed; it advances the data.
      get: fetches an array whole, from all processes.
      mesh: over which batches are spread; None: on one device.
    """
    check(max_rounds, group_size)
    self._max_rounds, self._group_size = max_rounds, group_size
    self._next_batch, self._get = next_batch, get
    options = {}
    if mesh is not None:
      options['out_shardings'] = sharding.batch_sharding(mesh)
    self.merge = CountedJit(merge, **options)

  def __call__(
    self, sample: Callable, summarize: Callable, batch: dict, key: jax.Array
  ) -> tuple[dict, Any, Any, dict[str, float]]:
    """Returns (batch, traces, measured) to train on, and metrics.

    Args:
      sample: `(batch, key) -> (traces, measured)`; `measured.rewards` f32[B]
        decides, of those traces that `measured.valid` says have one.
      summarize: `(traces, measured) -> dict` of scalars of one round.
      batch: the problems of the first round, placed.
      key: of the step.

    Returns:
      The problems' arrays, traces and what was measured, of the groups that
      were kept; and floats: what `summarize` says of all rounds together, or
      (MERGED) of the groups that were kept, `rollout/rounds`, and
      `rollout/filled_groups`, how many groups of equal rewards are left in the
      batch.
    """
    kept, varied, rows = None, None, []
    for number in range(1, self._max_rounds + 1):
      if number > 1:
        batch = self._next_batch()
      traces, measured = sample(batch, round_key(key, number))
      rows.append(jax.device_get(summarize(traces, measured)))
      rewards, valid = self._get((measured.rewards, measured.valid))
      found = varied_groups(rewards, self._group_size, valid)
      new = batch, traces, measured
      if kept is None:
        kept, varied = new, found
      else:
        index = places(varied, found)
        kept = self.merge(kept, new, index)
        varied = np.concatenate([varied, found])[index]
      if varied.all():
        break
    metrics = total(rows)
    if len(rows) > 1:
      found = jax.device_get(summarize(*kept[1:]))
      metrics |= {name: float(found[name]) for name in MERGED if name in found}
    metrics |= {
      'rollout/rounds': float(len(rows)),
      'rollout/filled_groups': float(np.sum(~varied)),
    }
    return *kept, metrics
