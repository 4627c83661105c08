"""Tasks: prompts, accepted answers, verifiers, warm-start traces, datasets."""

import functools

from meta_rl import tokenizer
from meta_rl.tasks.base import Task
from meta_rl.tasks.expressions import verify_tokens

__all__ = ['TASKS', 'Task', 'countdown_task']


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


TASKS = {'countdown': countdown_task}
