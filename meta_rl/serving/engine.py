"""Continuous batching: requests that share the steps of one model (host).

    engine = Engine(model, params, marks, rows=8, length=1024)
    engine.start()
    ticket = engine.submit(Request(prompt=(1, 7, 9), max_new_tokens=64), print)

One thread owns the device. In each round it lets waiting requests into free
rows, starts a few decode steps, hands out what the round before gave while the
device computes, and reads what came. With nothing to do it sleeps. What a
request gets does not depend on what runs beside it: its draws are by its own
seed and step (meta_rl/serving/slots.py).
"""

import collections
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import jax
import numpy as np

from meta_rl import checks, stopping
from meta_rl.compiled import CountedJit
from meta_rl.serving import slots, tickets, ticks
from meta_rl.serving.slots import Marks
from meta_rl.serving.tickets import CANCELLED, ERROR, Piece, Request, Ticket
from meta_rl.types import Model, Params

# Tokens of a prompt that are computed at once where several come together.
_JOINED = 256
# Rounds that fail in a row, and seconds without one while there is work, behind
# which something is wrong. (A program that is not warm is compiled meanwhile.)
_FAILURES, _SECONDS = 3, 120.0


class QueueFull(Exception):
  """As many requests wait as may."""


class Stopped(Exception):
  """The engine takes no requests any more."""


class Engine:
  """Requests in, pieces of their responses out.

  Attributes:
    marks, rows, length, head, max_queue: as given.
    stats: counts since the start; read them, no more.
    broken: it has ended by itself, and for good.
  """

  def __init__(
    self,
    model: Model,
    params: Params,
    marks: Marks,
    *,
    rows: int,
    length: int,
    steps: int = 4,
    max_queue: int = 256,
    head: stopping.ProgressHead | None = None,
    deliver: Callable[[list], None] | None = None,
  ):
    """Makes an engine; `start` starts its thread.

    Args:
      model, params: the network, with a cache of models.make_model.
      marks: of its tokens.
      rows: S, requests under way at once.
      length: L, tokens of a prompt, its response and probes, at most.
      steps: decode steps of a round; a waiting request waits for it.
      max_queue: requests that wait at most.
      head: of the rule 'progress'.
      deliver: called in the engine's thread, once a round, with the list of
        (put, piece); None: calls each put with its piece.

    Raises:
      ValueError: a model with another cache, or a number below 1.
    """
    for name, number in (
      ('rows', rows),
      ('length', length),
      ('steps', steps),
      ('max_queue', max_queue),
    ):
      checks.check_count(f'engine: {name}', number)
    slots.check_cache(model)
    self.marks, self.rows, self.length, self.head = marks, rows, length, head
    self.max_queue, self.broken = max_queue, False
    self.stats = collections.Counter()
    self._model, self._params = model, params
    self._deliver = deliver or self.put_each
    self._failures, self._beat = 0, time.monotonic()
    self._join = CountedJit(
      lambda params, state, *new: slots.join(model, params, state, marks, *new),
      donate_argnums=1,
    )
    self._tick = CountedJit(
      lambda params, state, drop, head: ticks.tick(
        model, params, state, drop, marks=marks, steps=steps, head=head
      ),
      donate_argnums=1,
    )
    self._clean = CountedJit(slots.clean, donate_argnums=0)
    self._state = None
    self._tickets: list[Ticket | None] = [None] * rows
    self._queue: collections.deque[Ticket] = collections.deque()
    self._wake = threading.Condition()
    self._stopping = False
    self._thread = threading.Thread(
      target=self._run, name='engine', daemon=True
    )

  @property
  def queued(self) -> int:
    """Requests that wait."""
    return len(self._queue)

  @property
  def active(self) -> int:
    """Requests in rows."""
    return sum(ticket is not None for ticket in self._tickets)

  @property
  def alive(self) -> bool:
    """Whether the engine takes requests."""
    return self._thread.is_alive() and not self._stopping

  @property
  def trouble(self) -> str:
    """What is wrong with its rounds; '' for nothing."""
    if self._failures >= _FAILURES:
      return f'the last {self._failures} rounds failed'
    with self._wake:
      works = self._queue or any(self._tickets)
      seconds = time.monotonic() - self._beat
    if works and seconds > _SECONDS:
      return f'no round for {seconds:.0f} s'
    return ''

  @property
  def traces(self) -> int:
    """Programs compiled so far: none is added once all shapes were seen."""
    return self._join.traces + self._tick.traces + self._clean.traces

  def start(self, *, warm: bool = True):
    """Starts the engine; `warm` compiles all its programs first."""
    self._reset()
    if warm:
      for width in self._widths():
        for count in sorted({1, self._at_once(width)}):
          # Rows beyond the last are nowhere: nothing joins.
          prompt = Ticket(Request((0,) * (width + 1), 1), lambda piece: None)
          self._call_join([prompt], [self.rows], width, count)
      self._read(self._call_tick(np.zeros(self.rows, bool)))
    self._thread.start()

  def submit(self, request: Request, put: Callable[[Piece], None]) -> Ticket:
    """Returns the ticket of a request, whose pieces will go to `put`.

    Raises:
      ValueError: a request that cannot be served here.
      QueueFull, Stopped: not now; not any more.
    """
    return self.submit_all([(request, put)])[0]

  def submit_all(
    self, asked: Sequence[tuple[Request, Callable[[Piece], None]]]
  ) -> list[Ticket]:
    """Returns the tickets of several requests, which all wait or none; as
    `submit`.
    """
    for request, _ in asked:
      self.check(request)
    found = [Ticket(request, put) for request, put in asked]
    with self._wake:
      if not self.alive:
        raise Stopped
      if len(self._queue) + len(found) > self.max_queue:
        raise QueueFull
      if not self._queue and not any(self._tickets):
        self._beat = time.monotonic()  # it has slept
      self._queue += found
      self._wake.notify()
    return found

  def cancel(self, ticket: Ticket):
    """Gives a request up: no piece of it is begun any more."""
    with self._wake:
      ticket.cancelled = True
      if ticket in self._queue:
        self._queue.remove(ticket)
        self.stats['cancelled'] += 1

  def check(self, request: Request):
    """Raises ValueError unless a request can be served here."""
    marks, most = self.marks, request.max_new_tokens
    needed = len(request.prompt) + most - 1
    if not request.prompt or most < 1 or needed > self.length:
      raise ValueError(
        f'the prompt has {len(request.prompt):,} tokens and {most:,} are asked '
        f'for; a request may have {self.length + 1:,} in all, and at least one '
        'of each: shorten the prompt or lower max_tokens'
      )
    budget = request.thinking_budget
    limits = budget is not None or request.rule != 'budget'
    if limits and (marks.think_end_id is None or not marks.stop_ids):
      raise ValueError(
        'no token ends a thought of this model: leave out '
        'max_thinking_tokens and stop_rule'
      )
    if budget is not None and budget + len(marks.stop_ids) >= most:
      raise ValueError(
        f'max_thinking_tokens={budget:,} and {len(marks.stop_ids)} stop tokens '
        f'leave no room for an answer in max_tokens={most:,}: raise '
        'max_tokens, which counts the thought too'
      )
    if request.min_thinking > (most if budget is None else budget):
      raise ValueError(
        f'min_thinking_tokens={request.min_thinking:,} is above '
        'max_thinking_tokens or max_tokens: lower it'
      )
    if request.rule == 'progress' and self.head is None:
      raise ValueError(
        "stop_rule='progress' needs a head that predicts progress, and there "
        'is none (python -m meta_rl.calibrate makes one, --stop_rules=DIR '
        'reads it): take another rule'
      )

  def stop(self, grace: float = 0.0):
    """Takes no more requests, waits for those there, cancels what is left.

    Args:
      grace: seconds to wait at most.
    """
    with self._wake:
      self._stopping = True
      self._wake.notify()
    if self._thread.ident is None:
      return
    self._thread.join(grace)
    with self._wake:
      waiting = [t for t in (*self._queue, *self._tickets) if t is not None]
      for ticket in waiting:
        ticket.cancelled = True
      self._queue.clear()
      self._wake.notify()
    self._thread.join(30)
    self._deliver([(t.put, tickets.last(t, CANCELLED)) for t in waiting])

  def _run(self):
    """The engine's thread."""
    try:
      self._rounds()
    except BaseException:
      self.broken = True
      raise
    finally:  # whatever ended it, nobody is left waiting
      with self._wake:
        self._stopping = True
        left = [t for t in (*self._tickets, *self._queue) if t is not None]
        self._queue.clear()
      self._hand_out(
        [(t.put, tickets.last(t, ERROR, 'the engine has ended')) for t in left]
      )

  def _rounds(self):
    """Goes round until it is stopped and nothing is left."""
    ready = []
    while True:
      with self._wake:
        idle = not self._queue and not any(self._tickets)
        if idle and not ready:
          if self._stopping:
            return
          self._wake.wait()
          continue
      if idle:
        self._hand_out(ready)
        ready = []
        continue
      try:
        drop = self._let_in()
        out = self._call_tick(drop)
        self._hand_out(ready)
        ready = []
        ready = self._parse(self._read(out))
        self._failures = 0
      except Exception as error:  # whatever the device may raise
        self._hand_out(ready)
        ready = self._fail(error)
      self._beat = time.monotonic()

  def put_each(self, ready):
    """Calls each put with its piece; one that fails takes nothing of others."""
    for put, piece in ready:
      try:
        put(piece)
      except Exception:
        self.stats['undelivered'] += 1
        traceback.print_exc()

  def _hand_out(self, ready):
    """Delivers pieces; what fails there must not stop the engine."""
    if not ready:
      return
    try:
      self._deliver(ready)
    except Exception:
      self.stats['undelivered'] += len(ready)
      traceback.print_exc()

  def _let_in(self) -> np.ndarray:
    """Puts waiting requests into free rows; returns which rows to drop."""
    drop = np.zeros(self.rows, bool)
    groups = collections.defaultdict(list)
    with self._wake:
      for row, ticket in enumerate(self._tickets):
        if ticket is not None and ticket.cancelled:
          drop[row], self._tickets[row] = True, None
          self.stats['cancelled'] += 1
      free = [row for row, t in enumerate(self._tickets) if t is None]
      spent = 0
      # Those under way wait meanwhile: not for more than a few prompts.
      while self._queue and free and spent < _JOINED:
        ticket, row = self._queue.popleft(), free.pop()
        width = self._width_of(len(ticket.request.prompt) - 1)
        groups[width].append((ticket, row))
        self._tickets[row] = ticket
        spent += width
    for width, pairs in groups.items():
      at_once = self._at_once(width)
      for begin in range(0, len(pairs), at_once):
        chosen = pairs[begin : begin + at_once]
        size = 1 if len(chosen) == 1 else at_once
        self._call_join(*zip(*chosen), width, size)
        drop[[row for _, row in chosen]] = False
    return drop

  def _widths(self) -> list[int]:
    """Returns the lengths that prompts are padded to, but for a last token."""
    widths = [min(16 if self.length <= 256 else 64, self.length)]
    while widths[-1] < self.length:
      widths.append(min(2 * widths[-1], self.length))
    return widths

  def _width_of(self, length: int) -> int:
    return next(width for width in self._widths() if width >= length)

  def _at_once(self, width: int) -> int:
    return min(self.rows, max(1, _JOINED // width))

  def _call_join(self, joining, rows, width, size):
    """Starts the program that lets requests in; `size` rows, some nowhere."""
    requests = [ticket.request for ticket in joining]
    tokens = np.zeros((size, width + 1), np.int32)
    lengths = np.ones(size, np.int32)
    places = np.full(size, self.rows, np.int32)
    for i, (request, row) in enumerate(zip(requests, rows)):
      lengths[i], places[i] = len(request.prompt), row
      tokens[i, -len(request.prompt) :] = request.prompt
    asked = tickets.asked(requests + requests[:1] * (size - len(requests)))
    self._state = self._join(
      self._params, self._state, tokens, lengths, places, asked
    )

  def _call_tick(self, drop):
    """Starts a round of steps; returns its outputs, still to be waited for."""
    self._state, out = self._tick(self._params, self._state, drop, self.head)
    self.stats['rounds'] += 1
    return out

  def _read(self, out):
    return jax.device_get(out)

  def _parse(self, out) -> list:
    """Returns (put, piece) of each row that got something; frees rows."""
    tokens, kinds, ends, scores = (
      out[name].T.tolist() for name in ('tokens', 'kinds', 'ends', 'scores')
    )
    ready, failed = [], np.zeros(self.rows, bool)
    for row, ticket in enumerate(self._tickets):
      if ticket is None:
        continue
      columns = zip(tokens[row], kinds[row], ends[row], scores[row])
      piece = tickets.read(ticket, columns, len(self.marks.stop_ids))
      if piece.finish:
        self._tickets[row] = None
        failed[row] = piece.finish == ERROR
      if not ticket.cancelled and (piece.tokens or piece.finish):
        ready.append((ticket.put, piece))
    if failed.any():
      self.stats['errors'] += 1
      self._state = self._clean(self._state, failed)
    return ready

  def _fail(self, error) -> list:
    """Returns (put, piece) of the error for those under way; starts afresh."""
    traceback.print_exception(error)
    self.stats['errors'] += 1
    self._failures += 1
    message = f'the engine failed: {type(error).__name__}'
    failed = [ticket for ticket in self._tickets if ticket is not None]
    self._tickets = [None] * self.rows
    try:
      self._reset()
    except Exception as again:  # no memory, no device: nothing more can be done
      traceback.print_exception(again)
      with self._wake:
        self._stopping = self.broken = True
        failed += self._queue
        self._queue.clear()
    return [(t.put, tickets.last(t, ERROR, message)) for t in failed]

  def _reset(self):
    self._state = None  # before new memory is taken
    self._state = slots.empty(self._model, self.rows, self.length, self.marks)
