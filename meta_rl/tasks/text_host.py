"""What a text task asks of the host from the device's program.

Grading in worker processes (meta_rl/verifiers) and cutting open-ended text into
episodes (meta_rl/segments.py). Both are `jax.pure_callback`s, so that every
prover, mesh and fused step takes a text task as it takes any other.
"""

import collections
import contextlib
import functools
import json
import threading
import time
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
Asked = tuple[str, bytes]  # a text, and its record as JSON
# Grades that are known for certain; of older ones at most as many.
_MOST_KNOWN = 1 << 15


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
  """A pool of verifiers, started when it is first asked, and its counts.

  What is equal is graded once, be it begun with ahead, asked by several devices
  or at several boundaries: a grade is known until `metrics` is called twice, or
  many others have come.
  """

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
    self._grading = threading.Lock()  # held while the pool is asked
    self._ahead: list[Callable] = []
    self._thread: threading.Thread | None = None
    self._error: Exception | None = None  # of grading ahead
    self._known: dict[Asked, float] = {}  # by `_grading`
    self._older: dict[Asked, float] = {}
    self._failed: set[Asked] = set()  # of a time limit, say: tried once a step
    self._waiting, self._since = 0, 0.0

  def begin(self, asked: Callable[[], Sequence[Asked]]):
    """Grades ahead what will be asked, and does not wait for it.

    Args:
      asked: `() -> [(text, record as JSON)]`, called by a thread of its own,
        which takes all that has come at once.
    """
    with self._lock:
      if self._error is not None:
        return  # it is said when the answers are asked for
      self._ahead.append(asked)
      if self._thread is None:
        # A daemon: no end of a process waits for answers nobody asked for.
        self._thread = threading.Thread(target=self._grade_ahead, daemon=True)
        self._thread.start()

  def __call__(self, asked: Sequence[Asked]) -> list[float]:
    """Returns 0.0 or 1.0 of each (text, record as JSON).

    Where the prefix was forced the text goes on from it, and where it was not
    the model may have written its own: both readings count.
    """
    with self.waited_for(), self._grading:
      with self._lock:
        error, self._error = self._error, None
      if error is not None:
        raise error
      self._learn(asked)
      known = self._known
      self._forget()
      return [known[each] for each in asked]

  @contextlib.contextmanager
  def waited_for(self):
    """Counts the seconds inside as some that a device waits, once for all."""
    with self._lock:
      self._waiting += 1
      if self._waiting == 1:
        self._since = time.monotonic()
    try:
      yield
    finally:
      with self._lock:
        self._waiting -= 1
        if not self._waiting:
          self._counts['waited'] += time.monotonic() - self._since

  def _grade_ahead(self):
    while True:
      with self._grading:
        with self._lock:
          ahead, self._ahead = self._ahead, []
          if not ahead:
            self._thread = None
            return
        try:
          self._learn([each for asked in ahead for each in asked()])
          self._forget()
        except Exception as error:  # raised by who asks
          with self._lock:
            self._error, self._ahead, self._thread = error, [], None
          return

  def _learn(self, asked):
    """Grades what is not known; `_grading` is held."""
    known, older = self._known, self._older
    asked = dict.fromkeys(asked)
    known.update((each, older[each]) for each in asked if each in older)
    if new := [each for each in asked if each not in known]:
      known.update(zip(new, self._grade(new)))

  def _forget(self):
    if len(self._known) > _MOST_KNOWN:
      self._known, self._older = {}, self._known

  def _grade(self, asked):
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
    for i, each in enumerate(asked):
      if set(grades.statuses[i::size]) != {'ok'}:
        self._failed.add(each)
    return [max(scores[i::size]) for i in range(size)]

  def metrics(self, add_up: Callable = lambda x: x) -> dict[str, float]:
    """Returns shares of what could not be graded since the last call.

    Args:
      add_up: `f64[K] -> f64[K]`, the sum over all processes, each of which
        grades answers of its own. The seconds are their mean: those that
        grading took, and those for which some device waited for it.
    """
    with self._lock:
      counts, self._counts = self._counts, collections.Counter()
    with self._grading:
      for each in self._failed:
        self._known.pop(each, None)
      self._known, self._older, self._failed = {}, self._known, set()
    names = *pool.STATUSES, 'restarts', 'seconds', 'waited'
    own = np.array([*(counts[name] for name in names), 1.0], np.float64)
    *found, processes = map(float, add_up(own))
    counts = dict(zip(names, found))
    total = sum(counts[status] for status in pool.STATUSES)
    if not (total or counts['waited']):
      return {}
    shares = {
      f'verifier/{status}_share': counts[status] / max(total, 1)
      for status in pool.STATUSES[1:]
    }
    return shares | {
      'verifier/restarts': counts['restarts'],
      'time/verify_s': counts['seconds'] / processes,
      'time/verify_wait_s': counts['waited'] / processes,
    }


class Verify:
  """The `Task.verify` of a text task: `(answers, mask, batch) -> f32[...]`.

  What is equal is graded once. A row whose answer is empty scores 0 unasked.
  """

  def __init__(
    self,
    words: TextTokenizer,
    grader: Grader,
    stop_strings: Sequence[str] = (),
  ):
    """Notes whom to ask.

    Args:
      words: the tokenizer of the answers.
      grader: of the texts.
      stop_strings: an answer ends at the first of them.
    """
    self._words, self._grader = words, grader
    self._stop_strings = stop_strings

  def __call__(self, answers, mask, batch):
    return self._ask(self._grade, jnp.float32, answers, mask, batch)

  def begin(self, answers, mask, batch):
    """Returns zeros i32[...]: the grader works ahead (`tasks.base.begin`)."""
    return self._ask(self._begin, jnp.int32, answers, mask, batch)

  def _ask(self, fn, dtype, answers, mask, batch):
    gold = jnp.asarray(batch['gold'])
    gold = jnp.broadcast_to(gold, (*mask.shape[:-1], gold.shape[-1]))
    out = jax.ShapeDtypeStruct(mask.shape[:-1], dtype)
    ask = functools.partial(jax.pure_callback, fn, out)
    # A grader with a time limit may judge twice, and otherwise.
    return places.once(ask, answers, mask, gold)

  def _grade(self, *given):
    mask = np.asarray(given[1])
    scores = np.zeros(mask[..., 0].size, np.float32)
    with self._grader.waited_for():
      asked = self._texts(*map(np.asarray, given))
      if asked:
        for rows, score in zip(asked.values(), self._grader(list(asked))):
          scores[rows] = score
    return scores.reshape(mask.shape[:-1])

  def _begin(self, *given):
    given = [np.array(x) for x in given]  # they may end with the call
    self._grader.begin(lambda: list(self._texts(*given)))
    return np.zeros(given[1].shape[:-1], np.int32)

  def _texts(self, answers, mask, gold):
    """Returns {(text, gold): rows} of the answers that have a token."""
    length = mask.shape[-1]
    answers, mask = answers.reshape(-1, length), mask.reshape(-1, length)
    gold = gold.reshape(-1, gold.shape[-1])
    found = {}
    for row in np.flatnonzero(mask.any(1)):
      text = self._words.decode(answers[row][mask[row]], special=False)
      text = chat_template.cut(text, self._stop_strings)[0]
      record = gold[row].tobytes().rstrip(b'\0')
      found.setdefault((text, record), []).append(row)
    return found
