"""What a text task asks of the host from the device's program.

Grading in worker processes (meta_rl/verifiers) and cutting open-ended text into
episodes (meta_rl/segments.py). Both are `jax.pure_callback`s, so that every
prover, mesh and fused step takes a text task as it takes any other.
"""

import collections
import functools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import chat_template, places, segments
from meta_rl.files import one_line
from meta_rl.text_tokenizer import TextTokenizer
from meta_rl.types import Episodes
from meta_rl.verifiers import pool

_TUPLE = '__tuple__'


def to_json(value: Any) -> bytes:
  """Returns a value as JSON that `from_json` reads, tuples as such.

  Raises:
    ValueError: it is no JSON value.
  """
  try:
    text = json.dumps(_tagged(value), ensure_ascii=False, separators=(',', ':'))
    return text.encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(
      f'what the verifier needs of {str(value)[:40]!r} is no JSON '
      f'({one_line(error)}): take another task or verifier'
    ) from error


def from_json(data: bytes) -> Any:
  """Returns the value of `to_json`; zeros behind it are no part of it."""
  return json.loads(data.rstrip(b'\0'), object_hook=_untagged)


def _tagged(value):
  if isinstance(value, tuple):
    return {_TUPLE: [_tagged(each) for each in value]}
  if isinstance(value, list):
    return [_tagged(each) for each in value]
  if isinstance(value, dict):
    return {key: _tagged(each) for key, each in value.items()}
  return value


def _untagged(found: dict):
  return tuple(found[_TUPLE]) if found.keys() == {_TUPLE} else found


def pack_json(value: Any, size: int) -> np.ndarray:
  """Returns a JSON value as bytes u8[size], zeros behind them.

  Raises:
    ValueError: it is longer.
  """
  data = to_json(value)
  if len(data) > size:
    raise ValueError(
      f'task.gold_bytes={size}: what the verifier needs of {data[:40]!r} has '
      f'{len(data)} bytes; raise it'
    )
  packed = np.zeros(size, np.uint8)
  packed[: len(data)] = np.frombuffer(data, np.uint8)
  return packed


def make_segment(words: TextTokenizer, **options) -> Callable:
  """Returns the `Task.segment` of a text task.

  Args:
    words: the tokenizer of the traces.
    **options: of `segments.split_ids`.
  """

  def segment(tokens, thinking_mask, *, max_episodes, start):
    def cut(tokens, mask, start):
      found = segments.from_text(
        np.asarray(tokens),
        np.asarray(mask),
        tokenizer=words.tokenizer,
        max_episodes=max_episodes,
        start=np.asarray(start),
        **options,
      )
      return found.ends, found.count

    rows = tokens.shape[0]
    out = (
      jax.ShapeDtypeStruct((rows, max_episodes + 1), jnp.int32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (rows,))
    ends, count = jax.pure_callback(cut, out, tokens, thinking_mask, start)
    return Episodes(ends, count)

  return segment


class Grader:
  """A pool of verifiers, started when it is first asked, and its counts."""

  def __init__(self, verifier: str, answer_prefix: str = '', **options):
    """Notes what to start; nothing is started yet.

    Args:
      verifier: as in `verifiers.path_of`.
      answer_prefix: what answers that were forced go on from.
      **options: of `pool.Pool`.
    """
    self._options = {'verifier': verifier, **options}
    self._prefix, self._pool = answer_prefix, None
    self._counts = collections.Counter()
    # Each device of a mesh calls from a thread of its own.
    self._lock = threading.Lock()

  def __call__(self, asked: Sequence[tuple[str, bytes]]) -> list[float]:
    """Returns 0.0 or 1.0 of each (text, record as JSON).

    Where the prefix was forced the text goes on from it, and where it was not
    the model may have written its own: both readings count.
    """
    with self._lock:
      if self._pool is None:
        self._pool = pool.Pool(**self._options)
    records = [from_json(gold) for _, gold in asked]
    texts = [text for text, _ in asked]
    if self._prefix:
      texts += [self._prefix + text for text in texts]
      records += records
    grades = self._pool.grade(texts, records)
    with self._lock:
      self._counts.update(grades.statuses)
      self._counts['restarts'] += grades.restarts
      self._counts['seconds'] += grades.seconds
    scores, size = grades.scores(), len(asked)
    return [max(scores[i::size]) for i in range(size)]

  def metrics(self, add_up: Callable = lambda x: x) -> dict[str, float]:
    """Returns shares of what could not be graded since the last call.

    Args:
      add_up: `f64[K] -> f64[K]`, the sum over all processes, each of which
        grades answers of its own. The seconds are their mean.
    """
    with self._lock:
      counts, self._counts = self._counts, collections.Counter()
    names = *pool.STATUSES, 'restarts', 'seconds'
    own = np.array([*(counts[name] for name in names), 1.0], np.float64)
    *found, processes = map(float, add_up(own))
    counts = dict(zip(names, found))
    total = sum(counts[status] for status in pool.STATUSES)
    if not total:
      return {}
    shares = {
      f'verifier/{status}_share': counts[status] / total
      for status in pool.STATUSES[1:]
    }
    return shares | {
      'verifier/restarts': counts['restarts'],
      'time/verify_s': counts['seconds'] / processes,
    }


def make_verify(
  words: TextTokenizer, grader: Grader, stop_strings: Sequence[str] = ()
) -> Callable:
  """Returns the `Task.verify` of a text task.

  What is equal is graded once. A row whose answer is empty scores 0 unasked.

  Args:
    words: the tokenizer of the answers.
    grader: of the texts.
    stop_strings: an answer ends at the first of them.
  """

  def grade(answers, mask, gold):
    answers, mask, gold = map(np.asarray, (answers, mask, gold))
    shape, length = mask.shape[:-1], mask.shape[-1]
    answers, mask = answers.reshape(-1, length), mask.reshape(-1, length)
    gold = gold.reshape(-1, gold.shape[-1])
    asked = {}  # (text, gold) -> rows
    for row in np.flatnonzero(mask.any(1)):
      text = words.decode(answers[row][mask[row]], special=False)
      text = chat_template.cut(text, stop_strings)[0]
      asked.setdefault((text, gold[row].tobytes()), []).append(row)
    scores = np.zeros(len(mask), np.float32)
    if asked:
      for rows, score in zip(asked.values(), grader(list(asked))):
        scores[rows] = score
    return scores.reshape(shape)

  def verify(answers, mask, batch):
    gold = jnp.asarray(batch['gold'])
    gold = jnp.broadcast_to(gold, (*mask.shape[:-1], gold.shape[-1]))
    out = jax.ShapeDtypeStruct(mask.shape[:-1], jnp.float32)
    ask = functools.partial(jax.pure_callback, grade, out)
    # A grader with a time limit may judge twice, and otherwise.
    return places.once(ask, answers, mask, gold)

  return verify
