"""Countdown in words, for language models: the same problems, splits, answers.

    question   Use each of 3, 5, 7 once with + - to make 9.
    thought    3+5=8,8-7=1 no
               7+5=12,12-3=9 yes
    answer     7+5-3

An attempt is a line. Records are those of meta_rl/tasks/builder.py; traces of
the warm start are those of meta_rl/tasks/traces.py, rewritten.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from meta_rl import tokenizer
from meta_rl.tasks import builder, countdown, traces, verify

_SIGNS = {index: sign for sign, index in tokenizer.OPERATORS.items()}
_VERDICTS = {tokenizer.YES: 'yes', tokenizer.NO: 'no'}


def load_source(data_dir, split: str, **options):
  """Returns the records of `builder.load_source`, and what makes text of one.

  Args:
    data_dir, split: as there.
    **options: of `builder.CountdownConfig`.
  """
  config = builder.make_config(**options)
  rules = {'ops': config.ops, 'max_value': config.max_value}
  source = builder.load_source(data_dir, split, **options)
  return source, lambda r: text_record(builder.record_problem(r, **rules))


def text_record(problem: countdown.Problem) -> dict[str, Any]:
  """Returns a problem as a record of meta_rl/tasks/text_sources.py.

  Returns:
    question, accepted (one an answer of the token task), key (equal for all
    orders of the numbers), gold, and problem itself.
  """
  numbers = ', '.join(map(str, problem.numbers))
  shown = ' '.join(map(str, sorted(problem.numbers)))
  return {
    'question': (
      f'Use each of {numbers} once with {" ".join(problem.ops)} to make '
      f'{problem.target}.'
    ),
    'accepted': tuple(
      dict.fromkeys(map(verify.render_compact, problem.answers))
    ),
    'key': f'{shown}|{problem.target}',
    'gold': {'numbers': list(problem.numbers), 'target': problem.target},
    'problem': problem,
  }


def sample_trace(
  record: Mapping[str, Any], rng: np.random.Generator, **options
) -> tuple[str, str]:
  """Returns (thought, answer) of a warm-start trace.

  Args:
    record: of `load_source`.
    rng: consumed.
    **options: of `traces.sample_trace`.
  """
  tokens, start = traces.sample_trace(record['problem'], rng, **options)
  end = int(np.flatnonzero(tokens == tokenizer.END_THINK)[0])
  thought = ''.join(f'{line}\n' for line in attempts(tokens[start:end]))
  return thought, verify.render_compact(tokens[end + 1 : -1])


def attempts(tokens: np.ndarray) -> Iterator[str]:
  """Yields each attempt of a thought of the token task as a line of text.

  `7 5 + 12 3 - 9 yes ;` is '7+5=12,12-3=9 yes': its operators with their
  values, in the order in which they are worked out.
  """
  stack, steps, sign = [], [], None
  for token in tokens.tolist():
    if token in _SIGNS:
      sign = _SIGNS[token]
    elif token in _VERDICTS:
      yield f'{",".join(steps)} {_VERDICTS[token]}'
    elif token == tokenizer.DELIMITER:
      stack, steps, sign = [], [], None
    else:
      number = str(token - tokenizer.FIRST_INTEGER)
      if sign is not None:
        right, left = stack.pop(), stack.pop()
        steps.append(f'{left}{sign}{right}={number}')
        sign = None
      stack.append(number)
