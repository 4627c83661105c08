"""traces -> rewards, episode boundaries, J at each boundary."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import algorithms, checks, continuations, costs, prover
from meta_rl.rollout import answers_of
from meta_rl.steps.boundaries import check_boundaries, find_boundaries
from meta_rl.steps.summaries import sample_summaries
from meta_rl.tasks.base import Task, after, begin, block_begin, verifier
from meta_rl.types import Array, Episodes, Model, Params, Rollout, TraceCache


def per_trace(batch: dict, group_size: int) -> dict:
  """Returns the problems' arrays with one row a trace, [P,...] -> [B,...]."""
  return {k: jnp.repeat(x, group_size, axis=0) for k, x in batch.items()}


BLOCK_ROWS = 16  # traces at a time, of provers that sample


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
  block_rows: int = BLOCK_ROWS,
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
    boundaries: 'delimiters' (J after every attempt), 'budgets' (J after every
      token budget) or 'text' (J after what `task.segment` takes for an
      episode).
    budgets: K token budgets, increasing; of 'budgets'. Let the last be the
      thinking budget: thought past it belongs to no episode.
    num_branches: M of the provers that sample.
    num_enumerated: accepted answers that 'control_variate' takes exactly; None
      for all.
    block_rows: traces at a time of which those provers keep answers in memory.
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

  measure = _summaries if summaries_per_trace else KINDS[kind]

  def prove(params, batch, traces, cache, key, row_offset=0):
    prompt_length = batch['prompts'].shape[1]
    found, stop_index, inside = find_boundaries(
      traces,
      start=prompt_length - 1,
      delimiter_ids=task.delimiter_ids,
      max_episodes=max_episodes,
      boundaries=boundaries,
      budgets=budgets,
      segment=task.segment,
    )
    rows = per_trace(batch, group_size)
    # A policy ends thinking with the marker, the budget with all of stop_ids.
    more = jnp.where(traces.forced, len(task.stop_ids) - 1, 0)
    answer, mask = answers_of(traces, stop_index + more, task.answer_length)
    # A host that grades begins here, and is asked behind the proof.
    begun = 0 if kind == 'none' else begin(task, answer, mask, rows)[:, None]
    asked = Prefixes(
      model=model,
      params=params,
      traces=traces,
      found=dataclasses.replace(found, ends=found.ends + begun),
      rows=rows,
      cache=cache,
      key=key,
      task=task,
      num_branches=num_branches,
      row_offset=row_offset,
      support={'temperature': temperature, 'top_p': top_p, 'top_k': top_k},
      group_size=group_size,
      num_enumerated=num_enumerated,
      block_rows=block_rows,
      thinking_budget=thinking_budget,
      summaries_per_trace=summaries_per_trace,
    )
    proved = measure(asked)
    return algorithms.Measured(
      rewards=task.verify(answer, after(task, mask, proved['success']), rows),
      episodes=found,
      stop_index=stop_index,
      answered=mask.any(1),
      inside=inside,
      **proved,
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
  checks.check_range('num_enumerated', num_enumerated, low=0)


@dataclasses.dataclass(frozen=True)
class Prefixes:
  """What a prover is asked: prefixes of traces, and how to go on from them.

  Attributes:
    model, params: the prover's network.
    traces: the traces, B rows.
    found: their boundaries, where the prefixes end.
    rows: the problems' arrays, one row a trace.
    cache: KV cache of the traces; None: prefilled anew.
    key: PRNG key, consumed by provers that sample.
    task: stop tokens and verifier.
    num_branches: M of the provers that sample.
    row_offset: global index of the first trace.
    support: temperature, top_p and top_k.
    group_size: traces of a prompt, next to each other.
    num_enumerated, block_rows, thinking_budget, summaries_per_trace: as in
      `make_prove`.
  """

  model: Model
  params: Params
  traces: Rollout
  found: Episodes
  rows: dict[str, Array]
  cache: TraceCache | None
  key: Array
  task: Task
  num_branches: int
  row_offset: int | Array
  support: dict
  group_size: int = 1
  num_enumerated: int | None = None
  block_rows: int = BLOCK_ROWS
  thinking_budget: int | None = None
  summaries_per_trace: int = 0

  @property
  def given(self) -> tuple:
    """The leading arguments of every prover."""
    traces = self.traces
    ends = self.found.ends
    return self.model, self.params, traces.tokens, traces.token_mask, ends

  @property
  def sampling(self) -> dict:
    """The options of every prover that samples."""
    return {
      'num_branches': self.num_branches,
      'max_answer_len': self.task.answer_length,
      'stop_ids': self.task.stop_ids,
      'eos_id': self.task.eos_id,
      'stop_table': self.task.stop_table,
      'cache': self.cache,
      'row_offset': self.row_offset,
      'begin_fn': block_begin(self.task, self.rows),
      **self.support,
    }


def _none(asked):
  return {'success': jnp.zeros(asked.found.ends.shape, jnp.float32)}


def _exact(asked):
  answers, mask = asked.rows['answers'], asked.rows['answer_mask']
  stop_ids = asked.task.stop_ids
  success = prover.exact(
    *asked.given,
    answers,
    mask,
    stop_ids=stop_ids,
    cache=asked.cache,
    group_size=asked.group_size,
    **asked.support,
  )
  fed = costs.exact_tokens(asked.found.count, mask, len(stop_ids))
  return {'success': success, 'prover_tokens': fed}


def _sampled(asked):
  success, mask = prover.sampled(
    *asked.given,
    verifier(asked.task, asked.rows),
    asked.key,
    return_mask=True,
    block_rows=asked.block_rows,
    **asked.sampling,
  )
  fed = costs.sampled_tokens(mask, len(asked.task.stop_ids))
  return {'success': success, 'prover_tokens': fed}


def _control_variate(asked):
  success, mask = prover.control_variate(
    *asked.given,
    asked.rows['answers'],
    asked.rows['answer_mask'],
    verifier(asked.task, asked.rows),
    asked.key,
    num_enumerated=asked.num_enumerated,
    return_mask=True,
    block_rows=asked.block_rows,
    **asked.sampling,
  )
  stop = len(asked.task.stop_ids)
  listed = asked.rows['answer_mask'][:, : asked.num_enumerated]
  fed = costs.sampled_tokens(mask, stop)
  fed += costs.exact_tokens(asked.found.count, listed, stop)
  return {'success': success, 'prover_tokens': fed}


def _continued(asked):
  """Values of going on and not of stopping; `before_stop` is one more."""
  task, observe = asked.task, None
  if task.observe is not None:
    observe = lambda last, thinking, row: task.observe(
      last, thinking, {k: jnp.asarray(x)[row] for k, x in asked.rows.items()}
    )
  success, before_stop, fed = continuations.continued(
    *asked.given,
    verifier(task, asked.rows),
    asked.key,
    thinking_budget=asked.thinking_budget,
    think_end_id=task.think_end_id,
    observe_fn=observe,
    **asked.sampling,
  )
  return {
    'success': success,
    'prover_tokens': fed,
    'before_stop': before_stop,
  }


def _summaries(asked):
  """As `_sampled`, some of its answers kept for training."""
  success, summaries, fed = sample_summaries(
    asked.model,
    asked.params,
    asked.traces,
    asked.found,
    asked.rows,
    asked.cache,
    asked.key,
    task=asked.task,
    num_branches=asked.num_branches,
    summaries_per_trace=asked.summaries_per_trace,
    row_offset=asked.row_offset,
    **asked.support,
  )
  return {'success': success, 'prover_tokens': fed, 'summaries': summaries}


# They stop: each gives J f32[B,K+1] as 'success', and the tokens i32[B] that it
# fed as 'prover_tokens'.
PROVERS = {
  'exact': _exact,
  'sampled': _sampled,
  'control_variate': _control_variate,
}
# What each gives are fields of `algorithms.Measured`.
KINDS = {**PROVERS, 'continued': _continued, 'none': _none}
