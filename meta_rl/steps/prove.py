"""traces -> rewards, episode boundaries, J at each boundary."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import algorithms, continuations, costs, masked, prover
from meta_rl.rollout import answers_of
from meta_rl.steps.boundaries import check_boundaries, find_boundaries
from meta_rl.steps.summaries import sample_summaries
from meta_rl.tasks.base import Task, verifier
from meta_rl.types import Model


def per_trace(batch: dict, group_size: int) -> dict:
  """Returns the problems' arrays with one row a trace, [P,...] -> [B,...]."""
  return {k: jnp.repeat(x, group_size, axis=0) for k, x in batch.items()}


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
  num_enumerated: int | None = None,
  thinking_budget: int | None = None,
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
      `num_branches` answers), 'control_variate' (the first accepted answers
      exactly, all others by sampling), 'continued' (values of free
      continuations, not of stopping) or 'none' (J is 0 everywhere: outcome
      only).
    boundaries: 'delimiters' (J after every attempt) or 'budgets' (J after every
      token budget).
    budgets: K token budgets, increasing; of 'budgets'. Let the last be the
      thinking budget: thought past it belongs to no episode.
    num_branches: M of the provers that sample.
    num_enumerated: accepted answers that 'control_variate' takes exactly; None
      for all.
    thinking_budget: tokens of thought, up to which 'continued' goes on.
    summaries_per_trace: of its answers, how many of each trace to keep for
      training (meta_rl/steps/summaries.py).
    temperature, top_p, top_k: at which the prover answers, those of the
      rollout.
  """
  if kind not in KINDS:
    raise ValueError(
      f'prover kind {kind!r} is unknown; allowed: {list(KINDS)}.'
    )
  check_boundaries(boundaries, budgets)
  check_enumerated(num_enumerated, kind)
  if kind == 'continued' and thinking_budget is None:
    raise ValueError(
      "prover kind 'continued' thinks on to the end of the budget: give "
      'thinking_budget, that of the rollout.'
    )
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
    fed = before_stop = None
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
    elif kind == 'continued':
      success, before_stop, fed = _continued(
        *given,
        found,
        rows,
        cache,
        key,
        thinking_budget=thinking_budget,
        **options,
      )
    elif kind != 'none':
      success, fed = PROVERS[kind](
        *given,
        found,
        rows,
        cache,
        key,
        num_enumerated=num_enumerated,
        **options,
      )
    return algorithms.Measured(
      rewards=rewards,
      success=success,
      episodes=found,
      stop_index=stop_index,
      answered=mask.any(1),
      prover_tokens=fed,
      inside=inside,
      summaries=summaries,
      before_stop=before_stop,
    )

  return prove


def check_enumerated(num_enumerated: int | None, kind: str):
  """Raises ValueError for a number of answers that the prover has no use for.

  Args:
    num_enumerated: answers that are listed; None for all.
    kind: of the prover.
  """
  if num_enumerated is None:
    return
  if kind != 'control_variate':
    raise ValueError(
      f"num_enumerated={num_enumerated} is of prover kind 'control_variate' "
      f'alone: set it to None with {kind!r}.'
    )
  masked.check_range('num_enumerated', num_enumerated, low=0)


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
  num_enumerated,
  row_offset,
  **support,
):
  del key, num_branches, num_enumerated, row_offset
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
  num_enumerated,
  row_offset,
  **support,
):
  del num_enumerated
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


def _control_variate(
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
  num_enumerated,
  row_offset,
  **support,
):
  success, mask = prover.control_variate(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    found.ends,
    rows['answers'],
    rows['answer_mask'],
    verifier(task, rows),
    key,
    num_enumerated=num_enumerated,
    num_branches=num_branches,
    max_answer_len=task.answer_length,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    cache=cache,
    row_offset=row_offset,
    return_mask=True,
    **support,
  )
  stop = len(task.stop_ids)
  listed = rows['answer_mask'][:, :num_enumerated]
  fed = costs.sampled_tokens(mask, stop)
  return success, fed + costs.exact_tokens(found.count, listed, stop)


def _continued(
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
  thinking_budget,
  row_offset,
  **support,
):
  """Returns V f32[B,K+1], V f32[B] before the stop, and tokens fed i32[B]."""
  observe = None
  if task.observe is not None:
    observe = lambda last, thinking, row: task.observe(
      last, thinking, {k: jnp.asarray(x)[row] for k, x in rows.items()}
    )
  return continuations.continued(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    found.ends,
    verifier(task, rows),
    key,
    num_branches=num_branches,
    thinking_budget=thinking_budget,
    max_answer_len=task.answer_length,
    think_end_id=task.think_end_id,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    observe_fn=observe,
    cache=cache,
    row_offset=row_offset,
    **support,
  )


# They stop: each gives J f32[B,K+1] and the tokens i32[B] that it fed.
PROVERS = {
  'exact': _exact,
  'sampled': _sampled,
  'control_variate': _control_variate,
}
KINDS = (*PROVERS, 'continued', 'none')
