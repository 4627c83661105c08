"""traces -> forced answers at each boundary, for a vote among them."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import checks, probes, prover
from meta_rl.steps.boundaries import check_boundaries, find_boundaries
from meta_rl.tasks.base import Task, verifier
from meta_rl.types import Model


def make_answers(
  model: Model,
  task: Task,
  *,
  num_answers: int,
  max_episodes: int,
  boundaries: str = 'delimiters',
  budgets: Sequence[int] | None = None,
  block_rows: int = 16,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
) -> Callable:
  """Returns the function that samples answers at the boundaries of traces.

    answer(params, batch, traces, cache, key, row_offset=0) -> dict

  of 'answers' i32[B,K+1,M,A], 'answer_mask' bool[B,K+1,M,A], 'answer_log_probs'
  f32[B,K+1,M,A], nats, under the distribution that they were drawn from,
  'answer_rewards' f32[B,K+1,M], and the boundaries, 'answer_ends' i32[B,K+1]
  and 'answer_count' i32[B]. Past the last boundary of a trace the mask is False
  and the reward 0. There is one trace a problem.

  Args:
    model, task: the network and the task.
    num_answers: M >= 1.
    max_episodes, boundaries, budgets: as in `make_prove`.
    block_rows: traces at a time whose answers are in memory.
    temperature, top_p, top_k: of the answers.
  """
  checks.check_count('num_answers', num_answers)
  check_boundaries(boundaries, budgets)

  def answer(params, batch, traces, cache, key, row_offset=0):
    found, _, _ = find_boundaries(
      traces,
      start=batch['prompts'].shape[1] - 1,
      delimiter_ids=task.delimiter_ids,
      max_episodes=max_episodes,
      boundaries=boundaries,
      budgets=budgets,
      segment=task.segment,
    )
    answers, mask, log_probs = prover.sample_answers(
      model,
      params,
      traces.tokens,
      traces.token_mask,
      found.ends,
      key,
      num_branches=num_answers,
      max_answer_len=task.answer_length,
      stop_ids=task.stop_ids,
      eos_id=task.eos_id,
      stop_table=task.stop_table,
      cache=cache,
      row_offset=row_offset,
      block_rows=block_rows,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      return_log_probs=True,
    )
    rewards = probes.rewards_of(verifier(task, batch), answers, mask)
    return {
      'answers': answers,
      'answer_mask': mask,
      'answer_log_probs': log_probs,
      'answer_rewards': jnp.where(mask.any(-1), rewards, 0.0),
      'answer_ends': found.ends,
      'answer_count': found.count,
    }

  return answer
