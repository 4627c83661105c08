"""What a training step costs, in tokens of one forward pass.

    generate  1 a response token (sampled or forced), and 1 a prompt token of
              each problem: a group shares its prompt's forward pass; the same
              for stale traces that groups branch off
              (a prefix that is given is forced token by token in every row:
              each of MRT-RL's rollouts pays for that of its group)
    prove     1 a token fed for a probe, and 1 a token of a given trace, which
              has no cache of its rollout to probe
    train     3 a token fed, prompts included, in every epoch (the backward pass
              is twice the forward one), and 1 for each scoring pass before it
              (of a reference, of a critic); nothing for traces that a method
              drops (STaR's wrong ones)

A probe that is differentiated (steps/pathwise.py) is fed in the update, once an
epoch: 3 a token of [trace | probes], of the boundaries that have a weight. That
is a second pass over the trace, as a row of forced answers is one over its
prefix. (That few probes at a time
are fed, each with the trace anew, saves memory and is not counted.)

Padding costs nothing, whatever the program does with it: the figure is about a
method, not about how well its batches are packed. Methods are compared at equal
cost, and the exact and the sampled prover are counted by one rule: the tokens
of a probe that pass through the network. The last token of an answer never
does: it is predicted or drawn, and nothing follows it. A probe that thinks on
(meta_rl/continuations.py) feeds its prefix again.

Held-out evaluation is no part of a method and costs nothing, except where the
method acts on it: a curriculum pays for the traces and probes that it chooses
its budget by.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes, S accepted
answers, A answer tokens, M branches.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from meta_rl import checks
from meta_rl.types import Array

BACKWARD = 3  # a token that is trained on costs as much as three forward ones

PARTS = ('cost/generate', 'cost/prove', 'cost/train')
# What a curriculum measured to choose a budget, in rows where it did.
CURRICULUM = 'cost/curriculum'

# What a meter has counted, in the order of its budgets; kept in checkpoints.
METER_STATE = ('cumulative_cost', 'cumulative_tokens')


def exact_tokens(count: Array, answer_mask: Array, stop_length: int) -> Array:
  """Returns the tokens that the exact prover feeds for each trace.

    (count + 1) * sum_s (m + |a_s| - 1) over the answers that exist

  Each answer is counted by itself, as a probe that is sampled is, although
  `prover.exact` feeds what several begin with once: the cost of a method does
  not depend on how well its batches are packed.

  Args:
    count: i32[B], episodes; a trace has count + 1 boundaries.
    answer_mask: bool[B,S,A], True on an answer and its EOS.
    stop_length: m >= 1, stop tokens.

  Returns:
    i32[B], tokens.

  Example:
    >>> from meta_rl import costs
    >>> costs.exact_tokens([2], [[[True, True, False]]], 1).tolist()
    [6]
  """
  dims = {}
  count = checks.as_array('count', count, 'int[B]', dims)
  lengths = checks.as_array('answer_mask', answer_mask, 'bool[B,S,A]', dims)
  checks.check_range('stop_length', stop_length, low=1)
  lengths = lengths.sum(-1)
  fed = jnp.where(lengths > 0, stop_length + lengths - 1, 0).sum(-1)
  return ((count + 1) * fed).astype(jnp.int32)


def sampled_tokens(branch_mask: Array, stop_length: int) -> Array:
  """Returns the tokens that the sampled prover feeds for each trace.

    sum over branches of m + n - 1, n the tokens that the branch drew

  A branch with nothing drawn, of a boundary that does not exist, costs nothing.

  Args:
    branch_mask: bool[B,...,A], tokens drawn, EOS included; the axes between are
      boundaries and branches.
    stop_length: m >= 1, stop tokens.

  Returns:
    i32[B], tokens.
  """
  drawn = checks.as_array('branch_mask', branch_mask, 'bool[...,A]').sum(-1)
  checks.check_range('stop_length', stop_length, low=1)
  fed = jnp.where(drawn > 0, stop_length + drawn - 1, 0)
  return fed.reshape(fed.shape[0], -1).sum(1).astype(jnp.int32)


def step_costs(
  token_mask: Array,
  prompt_ends: Array,
  prover_tokens: Array | None,
  row_tokens: Array | int = 0,
  *,
  group_size: int,
  epochs: int = 1,
  scorings: int = 0,
  differentiated: Array | None = None,
  side_tokens: Array | None = None,
  trained: Array | None = None,
) -> dict[str, Array]:
  """Returns what one step cost, f32[] each, by part.

  Args:
    token_mask: bool[B,T], everything but padding of the traces.
    prompt_ends: i32[B], last column of what each trace was sampled from, equal
      within a group.
    prover_tokens: i32[B] of the prover; None: nothing was proved, or for the
      log alone.
    row_tokens: i32[] or i32[B], tokens of rows that are trained on beside the
      traces.
    group_size: G traces of each prompt.
    epochs: passes of the update over the traces.
    scorings: forward passes over the traces between sampling and training.
    differentiated: i32[B], tokens of the probes that the update differentiates,
      0 where it differentiates none; None: it never does.
    side_tokens: i32[B], response tokens sampled beside the traces, from the
      same prompts; None: nothing was.
    trained: bool[B], the traces that the method trains on; None: all.

  Returns:
    'cost/generate', 'cost/prove', 'cost/train'.

  Raises:
    ValueError: shapes, or rows that are no whole groups.
  """
  dims = {}
  mask = checks.as_array('token_mask', token_mask, 'bool[B,T]', dims)
  if dims['B'] % group_size:
    raise ValueError(
      f'token_mask has {dims["B"]} rows: give whole groups of {group_size}'
    )
  ends = checks.as_array('prompt_ends', prompt_ends, 'int[B]', dims)
  prompt = mask & (jnp.arange(mask.shape[1]) <= ends[:, None])
  proved = 0
  if prover_tokens is not None:
    proved = checks.as_array('prover_tokens', prover_tokens, 'int[B]', dims)
    proved = proved.sum()
  again = 0
  if differentiated is not None:
    probed = checks.as_array('differentiated', differentiated, 'int[B]', dims)
    again = BACKWARD * epochs * jnp.where(probed > 0, mask.sum(1) + probed, 0)
    again = again.sum()
  prompts = prompt[::group_size].sum()
  side = 0
  if side_tokens is not None:
    side = checks.as_array('side_tokens', side_tokens, 'int[B]', dims)
    side = side.sum() + prompts
  own = mask.sum()
  if trained is not None:
    kept = checks.as_array('trained', trained, 'bool[B]', dims)
    own = (mask & kept[:, None]).sum()
  costs = {
    'cost/generate': mask.sum() - prompt.sum() + prompts + side,
    'cost/prove': proved,
    'cost/train': BACKWARD * epochs * (own + jnp.sum(row_tokens))
    + scorings * mask.sum()
    + again,
  }
  return {k: jnp.asarray(v, jnp.float32) for k, v in costs.items()}


class Meter:
  """Adds up what a run spends, and says when a budget is used up (host).

  Args:
    total_cost: budget of forward tokens of all kinds; None: no end.
    total_tokens: budget of sampled response tokens; None: no end.
    state: of an earlier meter's `state`, where a run goes on; it may hold other
      keys.
  """

  def __init__(
    self,
    total_cost: float | None = None,
    total_tokens: float | None = None,
    state: Mapping[str, float] | None = None,
  ):
    self._budgets = {'total_cost': total_cost, 'total_tokens': total_tokens}
    for name, budget in self._budgets.items():
      if budget is not None:
        checks.check_range(name, budget, above=0)
    self.state = {
      name: float((state or {}).get(name, 0.0)) for name in METER_STATE
    }

  def add(self, row: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics 'cost/total' and 'cost/cumulative' after a step.

    Args:
      row: metrics of the step, PARTS and 'rollout/tokens_sum' among them, and
        CURRICULUM where a budget was chosen.
    """
    total = sum(row[name] for name in PARTS) + row.get(CURRICULUM, 0.0)
    self.state['cumulative_cost'] += total
    self.state['cumulative_tokens'] += row['rollout/tokens_sum']
    return {
      'cost/total': total,
      'cost/cumulative': self.state['cumulative_cost'],
    }

  def left(self, paid: float = 0.0) -> tuple[tuple[float | None, float], ...]:
    """Returns (budget, spent) of the cost and of the tokens.

    Args:
      paid: cost that is not added yet.
    """
    spent = self.state.values()
    return tuple(zip(self._budgets.values(), map(sum, zip(spent, (paid, 0.0)))))

  @property
  def reached(self) -> str:
    """The budget that is used up, such as 'total_cost', else ''.

    The step that crossed it was the last.
    """
    for (name, budget), spent in zip(
      self._budgets.items(), self.state.values()
    ):
      if budget is not None and spent >= budget:
        return name
    return ''
