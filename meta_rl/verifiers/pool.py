"""A pool of killable worker processes that grade answers.

A model that is rewarded for its answers writes everything: expressions that
keep sympy busy for hours, text that makes an interpreter crash or run out of
memory. Each row has a deadline of its own; a row that fails costs itself alone:

  ok        graded: the value is 0.0 or 1.0
  timeout   no answer within the time limit: the worker is killed
  crash     the worker died of it
  error     the verifier raised, or ran out of memory
  too_long  not looked at

Only an 'ok' row has a value. Workers that were killed are replaced; rows that
waited behind the one that failed go to another worker.

The worst case is a batch of rows that hang: each takes one worker for the whole
time limit, so that H of them among W workers cost about H / W times `timeout_s`
(256 rows, 8 workers, 5 s: 160 s), and the replaced workers' starts on top. The
batch still ends, but a step waits for it; a batch that lost more than a tenth
of its rows says so as an error in the log, with its seconds.
"""

import collections
import dataclasses
import math
import os
import pickle
import selectors
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from meta_rl import verifiers
from meta_rl.verifiers import VerifierError, extract, worker
from meta_rl.verifiers.process import Worker

STATUSES = worker.STATUSES

# A message to a worker: rows for about 20 ms, so that a hang holds up few.
_MESSAGE_S = 0.02
_MAX_ROWS = 256
_MAX_BYTES = 1 << 22
_MAX_FAILED_STARTS = 3
# A batch that loses a larger share of its rows is logged as an error.
_MUCH = 0.1
_ENOUGH = 8  # answers, all of which raised, that tell a broken verifier


@dataclasses.dataclass(frozen=True)
class Grades:
  """What became of the rows of one batch, in their order.

  Attributes:
    values: 0.0 or 1.0 where the status is 'ok', else None.
    statuses: each one of STATUSES.
    details: why, in one line, '' where 'ok'.
    restarts: workers that were replaced meanwhile.
    seconds: of wall-clock time.
  """

  values: tuple[float | None, ...]
  statuses: tuple[str, ...]
  details: tuple[str, ...]
  restarts: int
  seconds: float

  def scores(self, failed: float | None = 0.0) -> list[float | None]:
    """Returns the values, with `failed` for rows that have none.

    Args:
      failed: 0.0 counts an answer that could not be graded as wrong; None
        leaves it out, where the caller knows what to do with that.
    """
    return [failed if value is None else value for value in self.values]

  def metrics(self) -> dict[str, float]:
    """Returns shares of the rows by what went wrong, and counters.

    A share that grows says that the policy has found a way to break its
    verifier, not that it gives wrong answers.
    """
    size = max(len(self.statuses), 1)
    share = {
      f'verifier/{status}_share': self.statuses.count(status) / size
      for status in STATUSES[1:]
    }
    return share | {
      'verifier/restarts': float(self.restarts),
      'time/verify_s': self.seconds,
    }


class Pool:
  """Worker processes that grade (answer, record) rows with one verifier.

  Used by one thread at a time (others wait). `close` it, or use it in a `with`:
  otherwise the workers live until it is collected or the program ends. They
  also end when the program is killed.
  """

  def __init__(
    self,
    verifier: str,
    *,
    workers: int | None = None,
    timeout_s: float = 5.0,
    memory_mb: int | None = 2048,
    max_chars: int = 20_000,
    stop: str = '',
    start_timeout_s: float = 120.0,
  ):
    """Starts the workers and waits for the first one.

    Args:
      verifier: a key of `verifiers.VERIFIERS`, or 'package.module:function'.
      workers: processes, >= 1; None: one a core, at most 8.
      timeout_s: for each row, seconds, > 0.
      memory_mb: address space of a worker, MiB, >= 256; None: no limit.
      max_chars: of an answer, after the stop string; longer ones are
        'too_long'.
      stop: what ends the thought: only what comes after it is graded, and a
        text without it is wrong. '' grades all.
      start_timeout_s: for a worker to import its verifier, seconds, > 0.

    Raises:
      VerifierError: no such verifier, a package that it needs is missing, or an
        option out of its range.
    """
    if workers is None:
      workers = min(_cores(), 8)
    asked = [
      ('workers', workers, 1),
      ('timeout_s', timeout_s, 1e-3),
      ('start_timeout_s', start_timeout_s, 1e-3),
      ('max_chars', max_chars, 1),
      ('memory_mb', 256 if memory_mb is None else memory_mb, 256),
    ]
    for name, value, low in asked:
      if not value >= low or value == math.inf:
        raise VerifierError(f'{name}={value}: allowed is >= {low} and finite')
    self.totals = collections.Counter()
    self._options = {
      'verifier': verifiers.path_of(verifier),
      'memory_mb': memory_mb,
    }
    self._timeout_s, self._max_chars = timeout_s, max_chars
    self._stop, self._start_timeout_s = stop, start_timeout_s
    self._lock = threading.Lock()
    self._selector = selectors.DefaultSelector()
    self._workers: list[Worker] = []
    self._failed_starts = 0
    self._rate = 0.0
    self._close = weakref.finalize(
      self, _end_all, self._workers, self._selector, os.getpid()
    )
    try:
      for _ in range(workers):
        self._start()
      while not any(w.ready for w in self._workers):
        self._step(None)
        if self._failed_starts:  # for want of a package, say: again is no use
          raise VerifierError(self._start_error)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *error):
    self.close()

  def close(self):
    """Kills the workers; the pool cannot be used any more."""
    self._close()

  def grade(
    self, answers: Sequence[str], records: Sequence[Mapping[str, Any]]
  ) -> Grades:
    """Returns what the verifier says of each answer; no row can make it raise.

    A verifier of the user's own that raises on every answer of the first batch
    is not one that meets bad answers: it is broken, and that ends the run.

    Args:
      answers: texts.
      records: as many, each as the verifier needs it; they are pickled.

    Raises:
      ValueError: not as many records as answers.
      VerifierError: the pool is closed, no worker can be started any more, or
        a verifier of the user's own has graded nothing.
    """
    if len(answers) != len(records):
      raise ValueError(
        f'{len(answers)} answers and {len(records)} records: give one an answer'
      )
    with self._lock:
      if not self._close.alive:
        raise VerifierError('the pool is closed: make a new one')
      began, restarts = time.monotonic(), self.totals['restarts']
      batch = _Batch(len(answers))
      for index, (answer, record) in enumerate(zip(answers, records)):
        self._admit(batch, index, answer, record)
      try:
        while batch.unanswered:
          self._step(batch)
      except BaseException:  # Ctrl-C: no worker may keep rows of this batch
        for each in list(self._workers):
          if each.rows:
            self._replace(each)
        raise
      restarts = self.totals['restarts'] - restarts
      seconds = time.monotonic() - began
    self.totals.update(batch.statuses)
    grades = Grades(
      tuple(batch.values),
      tuple(batch.statuses),
      tuple(batch.details),
      restarts,
      seconds,
    )
    _say(grades)
    if not self.totals['ok'] and len(answers) >= _ENOUGH:
      self._refuse_broken(grades)
    return grades

  def _refuse_broken(self, grades: Grades):
    name = self._options['verifier']
    if name.startswith('meta_rl.') or set(grades.statuses) != {'error'}:
      return
    raise VerifierError(
      f'{name} raised on each of the first {len(grades.statuses)} answers '
      f'({grades.details[0]}): a verifier is grade(answer, record), the text '
      'and the dict of its problem (meta_rl/verifiers), and returns a float'
    )

  def _admit(self, batch: '_Batch', index: int, answer, record):
    """Puts a row into the queue, or answers it here."""
    if not isinstance(answer, str):
      kind = type(answer).__name__
      batch.answer(index, 'error', None, f'answer has type {kind}: give a str')
      return
    answer = extract.after(answer, self._stop)
    if answer is None:
      batch.answer(index, 'ok', 0.0, '')
    elif len(answer) > self._max_chars:
      detail = f'{len(answer)} characters, at most {self._max_chars} are graded'
      batch.answer(index, 'too_long', None, detail)
    else:
      try:
        row = pickle.dumps((answer, record), pickle.HIGHEST_PROTOCOL)
      except Exception as error:  # pickle raises all sorts of things
        kind = type(error).__name__
        batch.answer(
          index,
          'error',
          None,
          f'the record cannot be pickled ({kind}: {error})',
        )
      else:
        batch.queue.append((index, row))

  def _start(self):
    new = Worker(self._options, self._selector)
    new.deadline = time.monotonic() + self._start_timeout_s
    self._workers.append(new)

  def _replace(self, old: Worker):
    old.end()
    self._workers.remove(old)
    self.totals['restarts'] += 1
    self._start()

  def _step(self, batch: '_Batch | None'):
    """Hands out rows, waits for whatever comes first, and takes it in."""
    if batch is not None:
      for each in list(self._workers):
        if each.ready and not each.rows and batch.queue:
          self._send(each, batch)
    deadlines = [w.deadline for w in self._workers if w.deadline is not None]
    wait = max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None
    for key, events in self._selector.select(wait):
      each = key.data
      if each not in self._workers:
        continue  # replaced while this list was worked off
      if events & selectors.EVENT_WRITE:
        each.flush()
      if events & selectors.EVENT_READ:
        self._receive(each, batch)
    now = time.monotonic()
    for each in list(self._workers):
      if each.deadline is not None and now >= each.deadline:
        self._overdue(each, batch)

  def _send(self, each: Worker, batch: '_Batch'):
    share = math.ceil(len(batch.queue) / (2 * len(self._workers)))
    most = max(int(self._rate * _MESSAGE_S), 8)
    rows, size = [], 0
    for _ in range(min(share, most, _MAX_ROWS)):
      if rows and size + len(batch.queue[0][1]) > _MAX_BYTES:
        break
      rows.append(batch.queue.popleft())
      size += len(rows[-1][1])
    each.send(rows, self._timeout_s)

  def _receive(self, each: Worker, batch: '_Batch | None'):
    replies, ended = each.receive()
    for status, last, value, detail in replies:
      if status == worker.READY:
        each.ready, each.deadline = True, None
        self._failed_starts = 0
      elif status == worker.FAILED:
        self._start_failed(each, detail)
        return
      else:
        index, _ = each.rows.popleft()
        name = STATUSES[status]
        batch.answer(index, name, value if name == 'ok' else None, detail)
        each.retired |= bool(last)
        each.deadline = time.monotonic() + self._timeout_s
    if replies and not each.rows:
      each.deadline = None
      self._rate = max(0.5 * self._rate, each.rate())
    if each.retired:
      self._give_back(each, batch)
    elif ended and not each.ready:
      self._start_failed(each, f'a worker ended at its start, {each.exit()}')
    elif ended and each.untouched:  # killed from outside while it was idle
      self._give_back(each, batch)
    elif ended:
      self._give_back(each, batch, 'crash', f'the worker ended, {each.exit()}')

  def _overdue(self, each: Worker, batch: '_Batch | None'):
    if each.ready:
      line = f'no answer within {self._timeout_s:g} s'
      self._give_back(each, batch, 'timeout', line)
    else:
      line = f'a worker was not ready within {self._start_timeout_s:g} s'
      self._start_failed(each, line)

  def _give_back(self, each: Worker, batch, status: str = '', detail=''):
    """Replaces a worker; its rows go back, but not the one that failed."""
    if each.rows and status:
      index, _ = each.rows.popleft()
      batch.answer(index, status, None, detail)
    if each.rows:
      # In front: they have waited for longer than the others.
      batch.queue.extendleft(reversed(each.rows))
    self._replace(each)

  def _start_failed(self, each: Worker, line: str):
    self._start_error = f'{self._options["verifier"]}: {line}'
    self._failed_starts += 1
    others = any(w.ready for w in self._workers if w is not each)
    if self._failed_starts >= _MAX_FAILED_STARTS and not others:
      raise VerifierError(self._start_error)
    self._replace(each)


class _Batch:
  """Rows of one call: what is known of them and what is still to be done."""

  def __init__(self, size: int):
    self.values: list[float | None] = [None] * size
    self.statuses = [''] * size
    self.details = [''] * size
    self.queue: collections.deque[tuple[int, bytes]] = collections.deque()
    self.unanswered = size

  def answer(self, index: int, status: str, value: float | None, detail: str):
    """Takes down what became of a row."""
    assert not self.statuses[index], f'row {index} was answered twice'
    self.values[index], self.statuses[index] = value, status
    self.details[index] = detail
    self.unanswered -= 1


def _end_all(workers: list[Worker], selector, owner: int):
  """Ends all workers; not in a fork of the process that owns them."""
  if os.getpid() != owner:
    return
  while workers:
    workers.pop().end()
  selector.close()


def _cores() -> int:
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # macOS
    return os.cpu_count() or 1


def _say(grades: Grades):
  """Logs one line where rows failed, with the first of them."""
  failed = [i for i, s in enumerate(grades.statuses) if s != 'ok']
  if not failed:
    return
  counts = collections.Counter(grades.statuses)
  parts = [f'{counts[s]} {s}' for s in STATUSES[1:] if counts[s]]
  first = failed[0]
  much = len(failed) > _MUCH * len(grades.statuses)
  logging.log(
    logging.ERROR if much else logging.WARNING,
    'verifier: %d of %d answers not graded: %s; the first is row %d: %s%s',
    len(failed),
    len(grades.statuses),
    ', '.join(parts),
    first,
    grades.details[first],
    f' (more than {_MUCH:.0%} of a batch, in {grades.seconds:.1f} s: look at '
    'the verifier and its timeout_s)'
    if much
    else '',
  )
