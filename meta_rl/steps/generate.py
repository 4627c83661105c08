"""prompts -> traces and their KV cache."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import rollout
from meta_rl.tasks.base import Task
from meta_rl.types import Model


def observer(task: Task, batch: dict, group_size: int) -> Callable | None:
  """Returns the `observe_fn` of `rollout.generate`, None for a silent task.

  Args:
    task: whose environment speaks.
    batch: arrays of its problems, [P,...].
    group_size: rows of each problem in this call.
  """
  if task.observe is None:
    return None
  take = lambda rows: {
    k: jnp.asarray(x)[rows // group_size] for k, x in batch.items()
  }
  return lambda last, thinking, rows: task.observe(last, thinking, take(rows))


def make_generate(
  model: Model,
  task: Task,
  *,
  group_size: int,
  thinking_budget: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  min_thinking: int | None = None,
  wait_ids: Sequence[int] = (),
  check_every: int | None = None,
  cache_buckets: Sequence[int] = (),
  slots: int | None = None,
) -> Callable:
  """Returns the function that samples the traces of a batch of problems.

    generate(params, batch, key, row_offset=0) -> (Rollout, TraceCache)

  Args:
    model, task: the network and the task.
    group_size: G traces a prompt.
    thinking_budget: tokens before forced termination, at least one episode.
    temperature, top_p, top_k, min_thinking, wait_ids, check_every,
      cache_buckets, slots: as in `rollout.generate`.
  """
  if thinking_budget < task.episode_length:
    raise ValueError(
      f'thinking_budget={thinking_budget} is below one episode of {task.name} '
      f'({task.episode_length} tokens): give at least {task.episode_length}.'
    )

  def generate(params, batch, key, row_offset=0):
    return rollout.generate(
      model,
      params,
      batch['prompts'],
      batch['prompt_mask'],
      key,
      max_new_tokens=thinking_budget + len(task.stop_ids) + task.answer_length,
      eos_id=task.eos_id,
      temperature=temperature,
      group_size=group_size,
      top_p=top_p,
      top_k=top_k,
      think_end_id=task.think_end_id,
      thinking_budget=thinking_budget,
      stop_ids=task.stop_ids,
      stop_table=task.stop_table,
      observe_fn=observer(task, batch, group_size),
      min_thinking=min_thinking,
      wait_ids=wait_ids,
      pad_id=task.pad_id,
      row_offset=row_offset,
      check_every=check_every,
      cache_buckets=cache_buckets,
      slots=slots,
      return_cache=True,
    )

  return generate
