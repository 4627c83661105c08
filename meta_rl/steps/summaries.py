"""Forced answers as rows of the update: the summary policy is trained too.

The sampled prover writes M answers at every budget to measure J. They are
actions of the policy that answers, so a share of them goes into the update, one
row each behind the row of its trace:

    prefix of the trace up to the budget | stop tokens | answer
    mask:            False               |    False    | True

Axes: B traces, T tokens, K boundaries after the first, M branches, R rows a
trace, A answer tokens.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_rl import costs, prover
from meta_rl.algorithms import Summaries
from meta_rl.probes import repeat_past_count
from meta_rl.tasks.base import Task, block_begin, verifier
from meta_rl.types import Array, Episodes, Model, Params, Rollout, TraceCache


def sample_summaries(
  model: Model,
  params: Params,
  traces: Rollout,
  found: Episodes,
  rows: dict[str, Array],
  cache: TraceCache | None,
  key: Array,
  *,
  task: Task,
  num_branches: int,
  summaries_per_trace: int,
  row_offset: int | Array = 0,
  **support,
) -> tuple[Array, Summaries, Array]:
  """Returns J f32[B,K+1], R answers of every trace, and tokens fed i32[B].

  R of a trace's K * M (budget, answer) pairs are drawn without putting one
  back: uniform over budgets, whatever the prior of the thought, as published. A
  trace that stopped early has one prefix for all later budgets, and its answers
  are drawn for each of them.

  Args:
    model, params: the prover.
    traces: the sampled traces.
    found: their boundaries.
    rows: the problems' arrays, one row a trace.
    cache: KV cache of the traces; None: prefilled here.
    key: PRNG key, consumed here.
    task: stop tokens and verifier.
    num_branches: M.
    summaries_per_trace: R, 1..K * M.
    row_offset: global index of the first trace.
    **support: temperature, top_p and top_k of `prover.sample_answers`.
  """
  sample_key, pick_key = jax.random.split(key)
  answers, mask, log_probs = prover.sample_answers(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    found.ends,
    sample_key,
    num_branches=num_branches,
    max_answer_len=task.answer_length,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    stop_table=task.stop_table,
    cache=cache,
    row_offset=row_offset,
    begin_fn=block_begin(task, rows),
    return_log_probs=True,
    **support,
  )
  rewards = verifier(task, rows)(answers, mask).astype(jnp.float32)
  budget, branch = _pick(
    pick_key, found, num_branches, summaries_per_trace, row_offset
  )
  trace = jnp.arange(len(budget))[:, None]
  own = jnp.minimum(budget, found.count[:, None])  # past it none was sampled
  take = lambda x: x[trace, own, branch]
  summaries = Summaries(
    budget=budget,
    tokens=take(answers),
    mask=take(mask),
    log_probs=take(log_probs),
    rewards=take(rewards),
  )
  fed = costs.sampled_tokens(mask, len(task.stop_ids))
  return repeat_past_count(rewards.mean(-1), found.ends), summaries, fed


def _pick(key, found, num_branches, number, row_offset):
  """Returns the budget 1..K and the branch of R pairs, i32[B,R] each."""
  pairs = (found.ends.shape[1] - 1) * num_branches
  if not 1 <= number <= pairs:
    raise ValueError(
      f'summaries_per_trace={number}: a trace has {pairs} of them '
      f'({num_branches} branches at each budget); give 1..{pairs}.'
    )

  def draw(row):
    return jax.random.permutation(jax.random.fold_in(key, row), pairs)[:number]

  pair = jax.vmap(draw)(row_offset + jnp.arange(len(found.ends)))
  return 1 + pair // num_branches, pair % num_branches


def summary_rows(
  traces: Rollout,
  ends: Array,
  summaries: Summaries,
  advantages: Array,
  *,
  stop_ids: Sequence[int],
  pad_id: int = 0,
) -> dict[str, Array]:
  """Returns the rows that train the answers, arrays [B,R,T].

  Only answer tokens count. What a row sees is what the answer was sampled from,
  so that its first ratio is 1. T must have room for the longest prefix, the
  stop tokens and an answer, as it has where thinking has a budget; tokens
  beyond are left out.

  Args:
    traces: of which the prefixes are.
    ends: i32[B,K+1], boundaries.
    summaries: R answers of each trace.
    advantages: f32[B,R], of all tokens of an answer.
    stop_ids: m tokens between prefix and answer.
    pad_id: fills the rest.

  Returns:
    tokens, token_mask, mask, behavior_log_probs and advantages, as
    `steps.training_batch` has them with [B,T].
  """
  column = jnp.arange(traces.tokens.shape[1])
  end = jnp.take_along_axis(ends, summaries.budget, axis=1)[..., None]
  behind = column - end - 1  # 0 is the first stop token; [B,R,T]
  place = behind - len(stop_ids)
  size = summaries.tokens.shape[-1]
  prefix = behind < 0
  is_stop = ~prefix & (place < 0)
  is_answer = (place >= 0) & (place < size)
  place = jnp.clip(place, 0, size - 1)
  answer = lambda x: jnp.take_along_axis(x, place, axis=-1)
  stop = jnp.asarray(tuple(stop_ids), jnp.int32)
  stop = stop[jnp.clip(behind, 0, len(stop_ids) - 1)]
  mask = is_answer & answer(summaries.mask)
  tokens = jnp.where(is_stop, stop, answer(summaries.tokens))
  tokens = jnp.where(prefix, traces.tokens[:, None], tokens)
  real = jnp.where(prefix, traces.token_mask[:, None], is_stop | mask)
  return {
    'tokens': jnp.where(real, tokens, pad_id),
    'token_mask': real,
    'mask': mask,
    'behavior_log_probs': jnp.where(mask, answer(summaries.log_probs), 0.0),
    'advantages': jnp.where(mask, advantages[..., None], 0.0),
  }


def join_rows(
  batch: dict[str, Array], rows: dict[str, Array]
) -> dict[str, Array]:
  """Returns a batch [B * (1 + R), T]: each trace, then its R rows [B,R,T].

  Rows of a prompt stay together, so that a mini-batch holds whole groups.
  """
  if batch.keys() != rows.keys():
    raise ValueError(
      f'the batch holds {sorted(batch)} and the rows {sorted(rows)}: both need '
      'the same arrays (there is no reference for rows: kl_coef must be 0).'
    )
  join = lambda x, y: jnp.concatenate([x[:, None], y], axis=1).reshape(
    -1, *x.shape[1:]
  )
  return jax.tree.map(join, batch, rows)
