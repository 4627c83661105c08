"""One HTTP request of the server while it is answered (host).

Its responses come from the engine into a queue of the event loop, and leave it
whole or as events of a stream. Whatever ends it, the client's going, the
deadline, an error or the end of the server, frees its rows.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from meta_rl.serving import openai_replies, tickets, voices
from meta_rl.serving.engine import Engine, QueueFull, Stopped
from meta_rl.serving.metrics import Metrics
from meta_rl.serving.openai_api import ApiError, Ask
from meta_rl.serving.openai_replies import Said
from meta_rl.serving.writer import Writer

# As nginx counts a request whose client has gone.
GONE = 499


def requests_of(
  engine: Engine, voice: voices.Voice, ask: Ask
) -> list[tickets.Request]:
  """Returns a request for each response; they share a seed.

  Raises:
    ApiError: a prompt that has no tokens, or too many; numbers that do not fit;
      more responses than may wait.
  """
  count = ask.choices * max(1, len(ask.prompts))
  if count > engine.max_queue:
    raise ApiError(
      400,
      f'{count} responses are asked for, and {engine.max_queue} requests may '
      'wait here at most (--max_queue): ask for fewer',
      param='n',
    )
  found = []
  try:
    for prompt in ask.prompts if ask.messages is None else [ask.messages]:
      ids = voices.encode(voice, prompt, engine.length + 1)
      one = voices.request(voice, ids, engine.length, ask)
      engine.check(one)
      found += [one] * ask.choices
  except ValueError as error:
    raise ApiError(400, ' '.join(str(error).split())) from error
  return tickets.branches(found)


class Work:
  """All responses that one HTTP request asks for."""

  def __init__(
    self,
    engine: Engine,
    voice: voices.Voice,
    metrics: Metrics,
    ask: Ask,
    requests: list[tickets.Request],
    *,
    name: str,
    path: str,
    began: float,
    deadline: float,
  ):
    """Hands the requests to the engine.

    Args:
      engine, voice, metrics: of the server.
      ask: what is asked for.
      requests: of `requests_of`.
      name: of the model.
      path: of the request.
      began: when it came, by the clock of the event loop.
      deadline: seconds that it may take.

    Raises:
      ApiError: no room in the queue, or the server ends.
    """
    self._engine, self._metrics, self._ask = engine, metrics, ask
    self._began, self._path, self._deadline = began, path, deadline
    self._clock = asyncio.get_running_loop().time
    self._queue: asyncio.Queue = asyncio.Queue()
    self._tickets: list[tickets.Ticket] = []
    self._status, is_chat = GONE, ask.messages is not None
    prompts = requests[:: ask.choices]
    self._prompt_tokens = sum(len(request.prompt) for request in prompts)
    self._writers = [
      Writer(voice, ask.stop, joined=not is_chat) for _ in requests
    ]
    self._said = [Said() for _ in requests]
    self._seen: list[float | None] = [None] * len(requests)
    self._head = openai_replies.head_of(
      is_chat=is_chat, stream=ask.stream, model=name
    )
    self._submit(requests)

  def _submit(self, requests):
    def put_of(index):
      return lambda piece: self._queue.put_nowait((index, piece))

    asked = [(one, put_of(index)) for index, one in enumerate(requests)]
    try:
      self._tickets = self._engine.submit_all(asked)
    except QueueFull:
      raise ApiError(
        429,
        'too many requests wait: try again in a second',
        code='rate_limit_exceeded',
      ) from None
    except Stopped:
      raise stopping() from None

  def _cancel(self):
    """Gives up what is not done."""
    for ticket, said in zip(self._tickets, self._said):
      if not said.finish:
        self._engine.cancel(ticket)

  def close(self):
    """Gives up what is not done, and counts the request."""
    self._cancel()
    metrics = self._metrics
    metrics.count('requests_total', path=self._path, status=str(self._status))
    metrics.observe('request_seconds', self._clock() - self._began)
    metrics.count('tokens_total', self._prompt_tokens, kind='prompt')
    for said in self._said:
      metrics.count('tokens_total', said.thinking, kind='thinking')
      metrics.count('tokens_total', said.probe, kind='probe')
      metrics.count('tokens_total', said.answer_tokens, kind='answer')
      if said.stopped_by:
        metrics.count('stops_total', by=said.stopped_by)

  async def _news(self) -> AsyncIterator[tuple[int, Said]]:
    """Yields (index, what is new) until all responses are done.

    Raises:
      ApiError: the deadline is over, the engine failed, or the server ends.
    """
    left = len(self._said)
    until = self._began + self._deadline
    while left:
      try:
        if self._clock() >= until:  # whatever is there and was not read
          raise TimeoutError
        # Not around the whole loop: it would reach into whoever reads this.
        async with asyncio.timeout_at(until):
          index, piece = await self._queue.get()
      except TimeoutError:
        raise ApiError(
          504,
          f'the deadline of {self._deadline:g} s is over: ask for fewer tokens',
          code='timeout',
        ) from None
      new = self._take(index, piece)
      if new is not None:
        left -= bool(new.finish)
        yield index, new

  def _take(self, index, piece) -> Said | None:
    """Returns what a piece adds, None for nothing to show."""
    said, writer, usage = self._said[index], self._writers[index], piece.usage
    if said.finish:
      return None  # of the steps behind a stop string
    if piece.finish == tickets.ERROR:
      raise ApiError(500, piece.message)
    if piece.finish == tickets.CANCELLED:
      raise stopping()
    self._time(index)
    thought, answer = writer.write(piece)
    finish = tickets.STOP if writer.ended else piece.finish
    if finish and not piece.finish:
      self._engine.cancel(self._tickets[index])
    said.thought += thought
    said.answer += answer
    said.scores += piece.scores
    said.thinking, said.answer_tokens = usage.thinking, usage.answer
    said.probe, said.finish = usage.probe, finish
    said.stopped_by, said.forced = usage.stopped_by, usage.forced
    if not (thought or answer or finish):
      return None
    return Said(**vars(said) | {'thought': thought, 'answer': answer})

  def _time(self, index):
    """Measures how long tokens of a response took to come."""
    now, before = self._clock(), self._seen[index]
    if before is None:
      self._metrics.observe('first_token_seconds', now - self._began)
    else:
      self._metrics.observe('between_tokens_seconds', now - before)
    self._seen[index] = now

  async def whole(self, receive):
    """Returns the response in one piece."""
    work = asyncio.create_task(self._all())
    try:
      if not await _done_first(work, receive):
        return reply({}, GONE)  # which nobody reads
      body = await work
      self._status = 200
      return reply(body)
    except ApiError as error:
      self._status = error.status
      return refusal(error)
    except Exception:
      self._status = 500
      raise
    finally:
      work.cancel()
      self.close()

  async def _all(self):
    async for _ in self._news():
      pass
    return openai_replies.response(
      self._head, self._said, self._prompt_tokens, self._ask
    )

  async def events(self) -> AsyncIterator[bytes]:
    """Yields the events of a stream; raises ApiError as `_news`."""
    begun = set()
    async for index, new in self._news():
      yield event(
        openai_replies.chunk(
          self._head, index, new, self._ask, first=index not in begun
        )
      )
      begun.add(index)
    if self._ask.include_usage:
      yield event(
        openai_replies.usage_chunk(self._head, self._said, self._prompt_tokens)
      )
    yield b'data: [DONE]\n\n'
    self._status = 200

  def failed(self, status: int):
    """Notes with what a stream ended."""
    self._status = status


class Stream:
  """The ASGI response of a stream: it ends when the client goes, too."""

  def __init__(self, work: Work):
    """Keeps whose events are sent."""
    self._work = work

  async def __call__(self, scope, receive, send):
    """Sends the events until there are no more, or nobody reads them."""
    sent = asyncio.create_task(self._send(scope, receive, send))
    try:
      if await _done_first(sent, receive):
        await sent
    except ConnectionError:
      pass  # the client has gone in the middle of an event
    except Exception as error:
      if not isinstance(error, OSError):  # who does not read is counted as gone
        self._work.failed(500)
      raise
    finally:
      sent.cancel()
      await asyncio.gather(sent, return_exceptions=True)
      self._work.close()

  async def _send(self, scope, receive, send):
    """Sends all; what fails before the first event is no stream."""
    part = {'type': 'http.response.body', 'more_body': True}
    begun = False
    async with contextlib.aclosing(self._work.events()) as events:
      try:
        async for body in events:
          if not begun:
            await send(_START)
          begun = True
          await send(part | {'body': body})
      except ApiError as error:
        self._work.failed(error.status)
        if not begun:
          await refusal(error)(scope, receive, send)
          return
        await send(part | {'body': event(error.body)})
    await send({'type': 'http.response.body', 'body': b''})


_START = {
  'type': 'http.response.start',
  'status': 200,
  'headers': [
    (b'content-type', b'text/event-stream; charset=utf-8'),
    (b'cache-control', b'no-cache'),
    (b'x-accel-buffering', b'no'),
  ],
}


async def _done_first(task, receive) -> bool:
  """Returns whether a task ends before the client goes."""

  async def until_gone():
    while (await receive())['type'] != 'http.disconnect':
      pass

  gone = asyncio.create_task(until_gone())
  try:
    await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
    return task.done()
  finally:
    gone.cancel()


def stopping() -> ApiError:
  """Returns what is answered when the server ends."""
  return ApiError(503, 'the server is stopping: try again later')


def event(body: dict) -> bytes:
  """Returns an event of a stream."""
  return b'data: ' + json.dumps(body, separators=(',', ':')).encode() + b'\n\n'


def reply(body: dict, status: int = 200, headers: dict | None = None):
  """Returns an HTTP response of JSON."""
  from starlette.responses import Response

  text = json.dumps(body, separators=(',', ':')).encode()
  return Response(text, status, headers, 'application/json')


def refusal(error: ApiError):
  """Returns the HTTP response of an error."""
  headers = {}
  if error.status in (429, 503):
    headers['retry-after'] = '1'
  if error.status == 401:
    headers['www-authenticate'] = 'Bearer'
  return reply(error.body, error.status, headers)
