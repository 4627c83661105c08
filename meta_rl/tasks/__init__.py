"""Tasks: prompts, accepted answers, verifiers, warm-start traces, datasets."""

import functools

from meta_rl import tokenizer
from meta_rl.tasks import builder, countdown, hidden_data, traces, verify
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.tasks.expressions import verify_tokens
from meta_rl.tasks.hidden import hidden_task

__all__ = ['TASKS', 'Task', 'TaskKit', 'countdown_task', 'hidden_task']


def countdown_task(*, n: int, ops: str, max_value: int) -> Task:
  """Returns the token task of Countdown with n numbers.

  Args:
    n: how many numbers are given.
    ops: allowed operators out of '+-*/'.
    max_value: largest value allowed anywhere in an expression.
  """
  verify = functools.partial(verify_tokens, ops=ops, max_value=max_value)
  return Task(
    name='countdown',
    vocab_size=tokenizer.VOCAB_SIZE,
    pad_id=tokenizer.PAD,
    eos_id=tokenizer.EOS,
    think_end_id=tokenizer.END_THINK,
    stop_ids=(tokenizer.END_THINK,),
    delimiter_ids=(tokenizer.DELIMITER,),
    episode_length=3 * n,
    answer_length=2 * n,
    verify=lambda answers, mask, batch: verify(
      answers, mask, batch['numbers'], batch['target']
    ),
  )


def _countdown_task(**options) -> Task:
  """Returns the task of a dataset's options."""
  config = builder.make_config(**options)
  return countdown_task(n=config.n, ops=config.ops, max_value=config.max_value)


TASKS = {
  'countdown': TaskKit(
    make_task=_countdown_task,
    load_source=builder.load_source,
    record_arrays=countdown.record_arrays,
    cluster_key=countdown.cluster_key,
    trace_problems=builder.trace_problems,
    sample_traces=traces.sample_traces,
    max_trace_length=traces.longest,
    decode=tokenizer.decode,
    vote=verify.postfix_value,
  ),
  'hidden': TaskKit(
    make_task=lambda **options: hidden_task(
      n=hidden_data.make_config(**options).n
    ),
    load_source=hidden_data.load_source,
    record_arrays=hidden_data.record_arrays,
    cluster_key=hidden_data.cluster_key,
    trace_problems=hidden_data.trace_problems,
    sample_traces=hidden_data.sample_traces,
    max_trace_length=hidden_data.max_trace_length,
    decode=tokenizer.decode,
    vote=lambda ids: tokenizer.decode(ids) or None,
  ),
}
