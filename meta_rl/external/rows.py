"""Rollouts as JSONL, in and out: one JSON object a line is one trace.

    {"prompt": "<bos> 1 2 3 = 6 <think>", "response": "1 2 + ... <eos>",
     "log_probs": [-0.1, null, ...], "reward": 1.0}

prompt_ids or prompt: token ids, or text for the task's own tokenizer, special
  tokens written as it writes them; where both are there the ids count. Padding
  on the left of prompt_ids is taken off. response_ids or response: the same;
  what ended it, if that came, is its last token: end-of-text, or the one that
  completes a stop string. Give ids where the sampler has them: a text may be
  other tokens than those that were drawn.
log_probs (optional): one a response token, nats under the distribution that it
  was drawn from; null for a token that was not drawn but put there.
mask (optional): one a response token, 0 where it was put there, for files
  without log_probs.
reward (optional): the trace's own reward.
question (optional): of a text task, the question of the row's problem as its
  file has it. Without one the problem is that whose prompt has the same ids.

Other keys are left alone. `meta_rl/external/engines.py` makes rows of what vLLM
and SGLang return.
"""

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meta_rl.external.parts import Parts, parts_of
from meta_rl.files import one_line, read_jsonl
from meta_rl.tasks.base import Task
from meta_rl.types import Rollout

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Row:
  """One trace of a file.

  Attributes:
    line: of the file, from 1.
    prompt: token ids.
    response: i32[N], N >= 1.
    mask: bool[N], drawn by the sampler: the actions.
    log_probs: f32[N], nats, NaN at every action of a file without them, 0 where
      the mask is False.
    reward: of the row, NaN without one.
    question: of its problem, None without one.
    parts: of the response.
  """

  line: int
  prompt: tuple[int, ...]
  response: np.ndarray
  mask: np.ndarray
  log_probs: np.ndarray
  reward: float
  question: str | None
  parts: Parts


def read_rows(
  path: str | os.PathLike,
  *,
  vocab_size: int,
  task: Task,
  encode: Callable[..., Sequence[int]],
) -> list[Row]:
  """Returns the traces of a file, each of them checked.

  Args:
    path: JSONL, UTF-8; blank lines are passed over.
    vocab_size: ids are below it.
    task: what ends a response; nothing may come behind it.
    encode: of the task's `TaskKit`; what it raises is said with the line.

  Raises:
    ValueError: naming the file and the line: not JSON, a key that is missing or
      of another type, an unknown token, log_probs of another number than the
      tokens, NaN, infinite or above 0; or a file without a row.
  """

  def parse(number, record):
    row = _row(number, record, vocab_size, task, encode)
    end = row.parts.end
    if end is not None and end + 1 < len(row.response):
      raise ValueError(
        f'response token {end} {_how(int(row.response[end]), task)} and '
        f'{len(row.response) - 1 - end} tokens come behind it: cut them off, '
        'with their log_probs'
      )
    return row

  rows = read_jsonl(path, parse)
  if not rows:
    raise ValueError(f'{path} has no row: give one JSON object a line')
  return rows


def _how(token: int, task: Task) -> str:
  """Returns how a token ends a text."""
  if token == task.eos_id:
    return 'is the end-of-text'
  return 'ends a text' if token in task.end_ids else 'completes a stop string'


def _row(number: int, record, vocab_size: int, task: Task, encode) -> Row:
  of_prompt = functools.partial(encode, is_prompt=True)
  prompt = _ids(record, 'prompt', vocab_size, of_prompt)
  if record.get('prompt_ids') is not None:
    prompt = _unpadded(prompt, task.pad_id, list(of_prompt('')))
  response = np.asarray(_ids(record, 'response', vocab_size, encode), np.int32)
  mask, log_probs = _actions(record, len(response))
  question = record.get('question')
  if question is not None and not isinstance(question, str):
    raise ValueError(
      f'"question" is {_short(question)}: give its text, or none'
    )
  reward = record.get('reward')
  if reward is not None and not _is_finite(reward):
    raise ValueError(
      f'"reward" is {_short(reward)}: give a finite number, or none'
    )
  return Row(
    line=number,
    prompt=tuple(prompt),
    response=response,
    mask=mask,
    log_probs=log_probs,
    reward=math.nan if reward is None else float(reward),
    question=question,
    parts=parts_of(response, mask, task),
  )


def _unpadded(ids: list[int], pad_id: int, begins: list[int]) -> list[int]:
  """Returns a prompt without the padding on its left.

  Args:
    ids: of the prompt.
    pad_id: of the task.
    begins: what every prompt begins with; padding itself in some vocabularies,
      of which one is then kept.
  """
  padding = next((i for i, x in enumerate(ids) if x != pad_id), len(ids))
  if padding == len(ids):
    raise ValueError(f'the prompt is padding alone (token {pad_id})')
  if padding and begins == [pad_id]:
    padding -= 1
  return ids[padding:]


def _ids(record, name: str, vocab_size: int, encode) -> list[int]:
  """Returns the ids of 'prompt' or 'response'."""
  given = record.get(f'{name}_ids')
  if given is None:
    text = record.get(name)
    if not isinstance(text, str):
      raise ValueError(
        f'keys {_short(sorted(record))}: give "{name}_ids", a list of token '
        f'ids, or "{name}", a string'
      )
    given = list(encode(text))
  whole = lambda x: isinstance(x, int) and not isinstance(x, bool)
  if not isinstance(given, list) or not all(map(whole, given)):
    raise ValueError(f'"{name}_ids" must be a list of whole numbers')
  if not given:
    raise ValueError(f'the {name} has no tokens')
  unknown = [x for x in given if not 0 <= x < vocab_size]
  if unknown:
    raise ValueError(
      f'the {name} has token {_short(unknown[0])}: the vocabulary is '
      f'0..{vocab_size - 1}'
    )
  return given


def _actions(record, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mask and the log-probs of a response of `size` tokens."""
  given = record.get('log_probs')
  known = given is not None
  if known:
    _check_list(given, 'log_probs', size)
    for i, value in enumerate(given):
      if value is not None and not (_is_finite(value) and value <= 0):
        raise ValueError(
          f'"log_probs" has {_short(value)} for token {i}: give nats, finite '
          'and at most 0, or null for a token that was not drawn'
        )
    mask = np.asarray([value is not None for value in given])
  else:
    mask = np.ones(size, bool)
  if record.get('mask') is not None:
    _check_list(record['mask'], 'mask', size)
    if any(value not in (0, 1) for value in record['mask']):
      raise ValueError('"mask" must hold 0 and 1')
    own = np.asarray(record['mask'], bool)
    if known and (own & ~mask).any():
      raise ValueError(
        f'"log_probs" is null for token {int(np.argmax(own & ~mask))}, which '
        '"mask" says was drawn'
      )
    mask = mask & own
  if not mask.any():
    raise ValueError('no token of the response was drawn: nothing is learnt')
  log_probs = np.full(size, np.nan, np.float32)
  if known:
    log_probs[mask] = [v for v, drawn in zip(given, mask) if drawn]
  return mask, np.where(mask, log_probs, np.float32(0))


def _check_list(given, name: str, size: int):
  if not isinstance(given, list):
    raise ValueError(f'"{name}" must be a list, one entry a response token')
  if len(given) != size:
    raise ValueError(
      f'"{name}" has {len(given)} entries for {size} response tokens: give one '
      'a token, and "response_ids" where a text may be other tokens'
    )


def _short(value: Any) -> str:
  return one_line(repr(value), 80)


def _is_finite(value: Any) -> bool:
  """Whether a JSON value is a number that f32 holds."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  # NaN compares as False, and ints of any size as what they are.
  return real and abs(value) <= _LARGEST


def rows_of(
  traces: Rollout,
  *,
  prompt_length: int,
  rewards: Sequence[float] | None = None,
  decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
  """Returns traces as JSON objects that `read_rows` takes in (host).

  A log-prob is written with all the digits that a float has, so that it comes
  back as it was.

  Args:
    traces: numpy arrays, B rows.
    prompt_length: Tp, columns of the prompts.
    rewards: f32[B].
    decode: token ids -> text; the texts are for people.
  """
  rows = []
  columns = np.arange(traces.tokens.shape[1])
  for b, tokens in enumerate(traces.tokens):
    real = traces.token_mask[b]
    prompt = tokens[real & (columns < prompt_length)].tolist()
    place = real & (columns >= prompt_length)
    response = tokens[place].tolist()
    pairs = zip(
      traces.behavior_log_probs[b, place].tolist(), traces.mask[b, place]
    )
    row = {
      'prompt': decode(prompt),
      'response': decode(response),
      'prompt_ids': prompt,
      'response_ids': response,
      'log_probs': [value if drawn else None for value, drawn in pairs],
    }
    if rewards is not None:
      row['reward'] = float(rewards[b])
    rows.append(row)
  return rows
