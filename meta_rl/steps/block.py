"""Several training steps as one program, for tasks that verify on the device.

    block(state, ref_params, batches, limits) -> (state, Block)

The host is asked nothing between the steps of a block: it dispatches once and
reads the metrics of all its steps at once. What could end a run between two of
its steps ends the block there, so that a run of blocks takes the same steps,
and ends with the same state, as one that is dispatched phase by phase.

Axes: N steps of the longest block, P prompts.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from meta_rl import algorithms, costs, update
from meta_rl.types import Array, Rollout

TOKENS = 'rollout/tokens_sum'
NO_LIMIT = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
  """How far a block may go; a step that reaches a limit is its last.

  Attributes:
    steps: i32[], 1..N.
    cost: i32[], forward tokens of all kinds (`costs.PARTS`) that are left.
    tokens: i32[], response tokens that are left.
  """

  steps: Array
  cost: Array
  tokens: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
  """What the steps of a block gave; rows past `done` are 0.

  Attributes:
    done: i32[], steps taken, 1..N: fewer than were allowed where a limit was
      reached or a metric was not finite.
    rows: f32[N] each, the scalars of `summarize`.
    sums: of `update.update`, with a leading axis [N].
    traces, measured: of the last step that was taken.
  """

  done: Array
  rows: dict[str, Array]
  sums: update.Metrics
  traces: Rollout
  measured: algorithms.Measured


def make_block(step: Callable, summarize: Callable) -> Callable:
  """Returns the function that takes up to N steps.

    block(state, ref_params, batches, limits) -> (state, Block)

  `batches` is a sequence of N batches of one shape; those past `limits.steps`
  are not looked at. jit it with the state donated. Step s of a run draws from
  `fold_in(state.key, s)`, in a block as outside of one.

  Args:
    step: of `steps.fused`.
    summarize: `(traces, measured) -> scalars`, `costs.PARTS` and the number of
      sampled tokens among them, whole numbers below 2^24.
  """

  def one(state, ref_params, batch):
    key = jax.random.fold_in(state.key, state.step)
    state, traces, measured, sums = step(state, ref_params, batch, key)
    return state, traces, measured, sums, summarize(traces, measured)

  def block(state, ref_params, batches, limits):
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *batches)

    def body(carry):
      i, state, left, _, rows, sums, _, _ = carry
      batch = jax.tree.map(lambda x: x[i], stacked)
      state, traces, measured, found, row = one(state, ref_params, batch)
      whole = lambda name: row[name].astype(jnp.int32)
      left = {
        'cost': left['cost'] - sum(map(whole, costs.PARTS)),
        'tokens': left['tokens'] - whole(TOKENS),
      }
      put = lambda kept, new: jax.tree.map(
        lambda all_, own: all_.at[i].set(own), kept, new
      )
      return (
        *(i + 1, state, left, _finite((row, found))),
        *(put(rows, row), put(sums, found), traces, measured),
      )

    def goes_on(carry):
      i, _, left, finite, *_ = carry
      some = (left['cost'] > 0) & (left['tokens'] > 0)
      return (i == 0) | ((i < limits.steps) & some & finite)

    blank = jax.eval_shape(one, state, ref_params, batches[0])
    zeros = lambda tree, *axis: jax.tree.map(
      lambda x: jnp.zeros((*axis, *x.shape), x.dtype), tree
    )
    _, traces, measured, sums, row = blank
    count = len(batches)
    left = {'cost': limits.cost, 'tokens': limits.tokens}
    done, state, _, _, rows, sums, traces, measured = jax.lax.while_loop(
      goes_on,
      body,
      (
        *(jnp.int32(0), state, left, jnp.asarray(True)),
        *(zeros(row, count), zeros(sums, count)),
        *(zeros(traces), zeros(measured)),
      ),
    )
    return state, Block(done, rows, sums, traces, measured)

  return block


def _finite(tree) -> Array:
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def left_of(limit: float | None, spent: float) -> int:
  """Returns i32, the whole tokens left of a limit (host); None: no limit.

  What is spent are whole numbers: the smallest that reaches the limit counts.
  """
  if limit is None:
    return NO_LIMIT
  return int(min(max(-(-(limit - spent) // 1), 0), NO_LIMIT))
