"""traces -> rewards, episode boundaries, J at each boundary."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import algorithms, costs, prover
from meta_rl.steps.boundaries import check_boundaries, find_boundaries
from meta_rl.steps.summaries import sample_summaries
from meta_rl.tasks.base import Task, verifier
from meta_rl.types import Array, Model, Rollout


def per_trace(batch: dict, group_size: int) -> dict:
  """Returns the problems' arrays with one row a trace, [P,...] -> [B,...]."""
  return {k: jnp.repeat(x, group_size, axis=0) for k, x in batch.items()}


def answers_of(traces: Rollout, stop_index: Array, length: int):
  """Returns what follows column `stop_index`, i32[B,A], and its mask bool[B,A].

  That is the last token of the stop: only what comes after it is graded, and an
  answer inside the thought does not count.
  """
  columns = stop_index[:, None] + 1 + jnp.arange(length)
  inside = columns < traces.tokens.shape[1]
  columns = jnp.minimum(columns, traces.tokens.shape[1] - 1)
  take = lambda x: jnp.take_along_axis(x, columns, axis=1)
  return take(traces.tokens), take(traces.token_mask) & inside


def make_prove(
  model: Model,
  task: Task,
  *,
  group_size: int,
  max_episodes: int,
  kind: str = 'exact',
  boundaries: str = 'delimiters',
  budgets: Sequence[int] | None = None,
  num_branches: int = 8,
  summaries_per_trace: int = 0,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
) -> Callable:
  """Returns the function that grades traces and measures J at boundaries.

    prove(params, batch, traces, cache, key, row_offset=0) -> Measured

  Args:
    model, task: the prover's network and the task.
    group_size: G traces a prompt.
    max_episodes: K of 'delimiters'; from the K-th on all thinking belongs to
      the last episode.
    kind: 'exact' (sums the accepted answers' likelihood), 'sampled' (means of
      `num_branches` answers) or 'none' (J is 0 everywhere: outcome only).
    boundaries: 'delimiters' (J after every attempt) or 'budgets' (J after every
      token budget).
    budgets: K token budgets, increasing; of 'budgets'. Let the last be the
      thinking budget: thought past it belongs to no episode.
    num_branches: M of the sampled prover.
    summaries_per_trace: of its answers, how many of each trace to keep for
      training (meta_rl/steps/summaries.py).
    temperature, top_p, top_k: at which the prover answers, those of the
      rollout.
  """
  if kind not in (*PROVERS, 'none'):
    raise ValueError(
      f'prover kind {kind!r} is unknown; allowed: {sorted(PROVERS)} or none.'
    )
  check_boundaries(boundaries, budgets)
  if summaries_per_trace and kind != 'sampled':
    raise ValueError(
      f'summaries_per_trace={summaries_per_trace} needs a prover that samples '
      f"its answers: kind='sampled', not {kind!r}."
    )

  def prove(params, batch, traces, cache, key, row_offset=0):
    prompt_length = batch['prompts'].shape[1]
    found, stop_index, inside = find_boundaries(
      traces,
      start=prompt_length - 1,
      delimiter_ids=task.delimiter_ids,
      max_episodes=max_episodes,
      boundaries=boundaries,
      budgets=budgets,
    )
    rows = per_trace(batch, group_size)
    # A policy ends thinking with the marker, the budget with all of stop_ids.
    more = jnp.where(traces.forced, len(task.stop_ids) - 1, 0)
    answer, mask = answers_of(traces, stop_index + more, task.answer_length)
    rewards = task.verify(answer, mask, rows)
    success, summaries = jnp.zeros(found.ends.shape, jnp.float32), None
    fed = None
    given = model, params, traces
    options = {
      'task': task,
      'num_branches': num_branches,
      'row_offset': row_offset,
      'temperature': temperature,
      'top_p': top_p,
      'top_k': top_k,
    }
    if summaries_per_trace:
      success, summaries, fed = sample_summaries(
        *given,
        found,
        rows,
        cache,
        key,
        summaries_per_trace=summaries_per_trace,
        **options,
      )
    elif kind != 'none':
      success, fed = PROVERS[kind](*given, found, rows, cache, key, **options)
    return algorithms.Measured(
      rewards=rewards,
      success=success,
      episodes=found,
      stop_index=stop_index,
      answered=mask.any(1),
      prover_tokens=fed,
      inside=inside,
      summaries=summaries,
    )

  return prove


def _exact(
  model,
  params,
  traces,
  found,
  rows,
  cache,
  key,
  *,
  task,
  num_branches,
  row_offset,
  **support,
):
  del key, num_branches, row_offset
  success = prover.exact(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    found.ends,
    rows['answers'],
    rows['answer_mask'],
    stop_ids=task.stop_ids,
    cache=cache,
    **support,
  )
  fed = costs.exact_tokens(found.count, rows['answer_mask'], len(task.stop_ids))
  return success, fed


def _sampled(
  model,
  params,
  traces,
  found,
  rows,
  cache,
  key,
  *,
  task,
  num_branches,
  row_offset,
  **support,
):
  success, mask = prover.sampled(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    found.ends,
    verifier(task, rows),
    key,
    num_branches=num_branches,
    max_answer_len=task.answer_length,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    cache=cache,
    row_offset=row_offset,
    return_mask=True,
    **support,
  )
  return success, costs.sampled_tokens(mask, len(task.stop_ids))


# Each gives J f32[B,K+1] and the tokens i32[B] that it fed.
PROVERS = {'exact': _exact, 'sampled': _sampled}
