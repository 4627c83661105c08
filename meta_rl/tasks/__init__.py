"""Tasks: prompts, accepted answers, verifiers, warm-start traces, datasets."""

import functools
import importlib

from meta_rl import checks, tokenizer
from meta_rl.tasks import (
  backtrack,
  builder,
  check,
  countdown,
  hidden,
  hidden_data,
  text,
  traces,
  verify,
)
from meta_rl.tasks.base import Task, TaskKit
from meta_rl.tasks.expressions import verify_tokens
from meta_rl.tasks.hidden import hidden_task

__all__ = [
  'TASKS',
  'Task',
  'TaskKit',
  'countdown_task',
  'hidden_task',
  'make_kit',
]


def countdown_task(
  *, n: int, ops: str, max_value: int, mode: str = 'restart'
) -> Task:
  """Returns the token task of Countdown with n numbers.

  Args:
    n: how many numbers are given.
    ops: allowed operators out of '+-*/'.
    max_value: largest value allowed anywhere in an expression.
    mode: what an episode is: 'restart', a whole attempt, or 'backtrack', what
      follows a step of the attempt before.

  Raises:
    ValueError: an unknown mode.
  """
  checks.check_choice('mode', mode, check.MODES)
  longest = {'restart': 3 * n, 'backtrack': backtrack.longest_episode(n)}
  verify = functools.partial(verify_tokens, ops=ops, max_value=max_value)
  return Task(
    name={'restart': 'countdown', 'backtrack': 'countdown_backtrack'}[mode],
    vocab_size=tokenizer.VOCAB_SIZE,
    pad_id=tokenizer.PAD,
    eos_id=tokenizer.EOS,
    think_end_id=tokenizer.END_THINK,
    stop_ids=(tokenizer.END_THINK,),
    delimiter_ids=(tokenizer.DELIMITER,),
    episode_length=longest[mode],
    answer_length=2 * n,
    verify=lambda answers, mask, batch: verify(
      answers, mask, batch['numbers'], batch['target']
    ),
  )


def _encode(text: str, *, is_prompt: bool = False) -> list[int]:
  """Returns the ids of words, <bos> among them where it is."""
  del is_prompt
  return tokenizer.encode(text)


def _countdown_kit(mode: str) -> TaskKit:
  """Returns the kit of Countdown with one form of search.

  Problems, splits and answers are those of one dataset, whatever the form.
  """

  def rules(options):
    config = builder.make_config(**options)
    return {'ops': config.ops, 'max_value': config.max_value}

  def make_problem_fn(data_dir, **options):
    del data_dir  # a prompt states its problem
    stated = builder.make_problem_fn(**options)
    return lambda prompt, question: stated(prompt)

  return TaskKit(
    make_task=lambda **options: countdown_task(
      n=builder.make_config(**options).n, mode=mode, **rules(options)
    ),
    load_source=builder.load_source,
    record_arrays=countdown.record_arrays,
    cluster_key=countdown.cluster_key,
    trace_problems=builder.trace_problems,
    sample_traces=functools.partial(traces.sample_traces, mode=mode),
    max_trace_length=functools.partial(traces.longest, mode=mode),
    decode=tokenizer.decode,
    encode=_encode,
    vote=verify.postfix_value,
    make_problem_fn=make_problem_fn,
    check_trace=lambda tokens, **options: check.check_trace(
      tokens, mode=mode, **rules(options)
    ),
    difficulty=lambda record, **options: countdown.difficulty(
      builder.record_problem(record, **rules(options))
    ),
  )


# A kit, or a function of the options that makes one. So may be what a path
# names: a task of one's own needs no row here.
TASKS = {
  'countdown': _countdown_kit('restart'),
  'countdown_backtrack': _countdown_kit('backtrack'),
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
    encode=_encode,
    vote=lambda ids: tokenizer.decode(ids) or None,
    difficulty=lambda record, **_: ('options', int(record['n'])),
    optimum=lambda record, num_episodes: hidden.optimal_success(
      int(record['n']), num_episodes
    ),
  ),
  'text': text.make_kit,
}


def make_kit(name: str, **options) -> TaskKit:
  """Returns the kit of a task.

  Args:
    name: a key of TASKS, or of a task of one's own the path 'module:NAME' of a
      `TaskKit`, or of a function of the options that makes one.
    **options: of the task; they may be given to the kit's functions again.

  Raises:
    ValueError: an unknown name, a path to nothing of use, or options that make
      no kit.
  """
  if isinstance(name, str) and ':' in name:
    kit = _named(name)
  elif name in TASKS:
    kit = TASKS[name]
  else:
    raise ValueError(
      f'task.name={name!r} is unknown; allowed: {sorted(TASKS)}, or the path '
      "of a kit of your own, 'module:NAME'."
    )
  made = kit if isinstance(kit, TaskKit) else kit(**options)
  if not isinstance(made, TaskKit):
    raise ValueError(
      f'task.name={name!r} gave {checks.show(made)}: a TaskKit is needed, or a '
      'function that returns one.'
    )
  return made


def _named(path: str):
  """Returns what 'module:NAME' names, a kit or a function."""
  module_name, _, attribute = path.partition(':')
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # a user's module may do anything
    line = ' '.join(str(error).split())
    raise ValueError(
      f'task.name={path!r}: module {module_name!r} cannot be imported '
      f'({type(error).__name__}: {line}); it must lie where the command is '
      'started, or on PYTHONPATH.'
    ) from error
  kit = getattr(module, attribute, None)
  if not isinstance(kit, TaskKit) and not callable(kit):
    raise ValueError(
      f'task.name={path!r}: {module_name!r} has no TaskKit, and no function '
      f'that makes one, of the name {attribute!r}.'
    )
  return kit
