"""The HTTP side of the server: routes, keys, bodies, and its end (host).

The engine's thread hands over what a round gave with one call into the event
loop; each request waits on a queue of its own there
(meta_rl/serving/exchange.py).
"""

import asyncio
import contextlib
import functools
import hmac
import json
import threading
import time
from collections.abc import Callable

from meta_rl.serving import (
  connections,
  exchange,
  openai_api,
  openai_replies,
  voices,
)
from meta_rl.serving.engine import Engine
from meta_rl.serving.metrics import Metrics
from meta_rl.serving.openai_api import ApiError

# Of a request: what its body may have at least and at most, and for each token
# of its prompts (ids, commas and spaces).
_BODY_BYTES = (1 << 16, 1 << 22)
_TOKEN_BYTES = 8
_BODY_SECONDS = 30
_LONG = 1 << 14


class App:
  """An ASGI application around an engine.

  Attributes:
    engine, voice, name: as given.
    body_bytes: that a request may have.
    metrics: of the requests.
  """

  def __init__(
    self,
    make_engine: Callable[..., Engine],
    voice: voices.Voice,
    *,
    name: str,
    api_key: str = '',
    local: bool = True,
    deadline: float = 600.0,
    grace: float = 10.0,
  ):
    """Makes the application, and its engine with `make_engine(deliver=...)`.

    Args:
      make_engine: returns an engine that is not started.
      voice: of its model.
      name: by which requests call the model.
      api_key: what requests must carry; '': nothing.
      local: it listens on this machine alone.
      deadline: seconds that a request may take, its waiting included.
      grace: seconds that requests under way get when the server ends.
    """
    self.engine = make_engine(deliver=self._deliver)
    least, most = _BODY_BYTES
    prompts = openai_api.MAX_CHOICES * self.engine.length * _TOKEN_BYTES
    self.body_bytes = min(least + prompts, most)
    self.voice, self.name, self.metrics = voice, name, Metrics()
    self._key, self._deadline, self._grace = api_key.encode(), deadline, grace
    self._local = local
    self._created = int(time.time())
    self._loop: asyncio.AbstractEventLoop | None = None
    self._draining = threading.Event()

  def asgi(self):
    """Returns the ASGI application."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = [
      Route('/v1/chat/completions', self._chat, methods=['POST']),
      Route('/v1/completions', self._completion, methods=['POST']),
      Route('/v1/models', self._models),
      Route('/v1/models/{name:path}', self._models),
      Route('/health', self._health),
      Route('/metrics', self._text),
    ]
    handlers = {404: _no_route, 405: _no_route, Exception: _broken}
    app = Starlette(
      routes=routes, lifespan=self._lifespan, exception_handlers=handlers
    )
    return connections.Guard(app, key=bool(self._key), local=self._local)

  def drain(self):
    """Takes no more requests, and ends those left after the grace period."""
    if self._draining.is_set():
      return
    self._draining.set()
    threading.Thread(
      target=self.engine.stop, args=(self._grace,), name='drain', daemon=True
    ).start()

  @contextlib.asynccontextmanager
  async def _lifespan(self, app):
    del app
    self._loop = asyncio.get_running_loop()
    yield
    self._draining.set()
    await asyncio.to_thread(self.engine.stop)

  def _deliver(self, ready):
    """Hands pieces over to the event loop; called in the engine's thread."""
    with contextlib.suppress(RuntimeError):  # a loop that is closed
      self._loop.call_soon_threadsafe(self.engine.put_each, ready)

  async def _chat(self, request):
    return await self._answer(request, openai_api.chat)

  async def _completion(self, request):
    return await self._answer(request, openai_api.completion)

  async def _answer(self, request, read):
    """Returns the response to a request, or what is wrong with it."""
    from starlette.requests import ClientDisconnect

    began, path = self._loop.time(), request.url.path
    try:
      self._check_key(request)
      text = await _body_of(request, self.body_bytes)
      ask = read(_json_of(text), self.name)
      if self._draining.is_set():
        raise exchange.stopping()
      read_prompts = functools.partial(
        exchange.requests_of, self.engine, self.voice, ask
      )
      # Others should not wait while a long text is tokenized.
      requests = (
        await asyncio.to_thread(read_prompts)
        if len(text) > _LONG
        else read_prompts()
      )
      work = exchange.Work(
        self.engine,
        self.voice,
        self.metrics,
        ask,
        requests,
        name=self.name,
        path=path,
        began=began,
        deadline=self._deadline,
      )
    except ApiError as error:
      self.metrics.count('requests_total', path=path, status=str(error.status))
      return exchange.refusal(error)
    except ClientDisconnect:
      self.metrics.count('requests_total', path=path, status=str(exchange.GONE))
      return exchange.reply({}, exchange.GONE)  # which nobody reads
    except Exception:
      self.metrics.count('requests_total', path=path, status='500')
      raise  # to `_broken`
    if ask.stream:
      return exchange.Stream(work)
    return await work.whole(request.receive)

  def _check_key(self, request):
    """Raises ApiError unless a request carries the key."""
    if not self._key:
      return
    given = request.headers.get('authorization', '')
    scheme, _, key = given.partition(' ')
    same = hmac.compare_digest(key.strip().encode(), self._key)
    if scheme.lower() != 'bearer' or not same:
      raise ApiError(
        401,
        'the API key is missing or wrong: send "Authorization: Bearer KEY"',
        code='invalid_api_key',
      )

  async def _models(self, request):
    wanted = request.path_params.get('name')
    try:
      self._check_key(request)
      if wanted not in (None, self.name):
        raise openai_api.unknown_model(wanted, self.name)
    except ApiError as error:
      return exchange.refusal(error)
    body = openai_replies.models(
      self.name, self._created, max_model_len=self.engine.length + 1
    )
    return exchange.reply(body if wanted is None else body['data'][0])

  async def _health(self, request):
    del request
    engine = self.engine
    if engine.broken:
      return exchange.reply({'status': 'the engine has ended'}, 503)
    if not engine.alive or self._draining.is_set():
      return exchange.reply({'status': 'stopping'}, 503)
    trouble = engine.trouble
    return exchange.reply({'status': trouble or 'ok'}, 503 if trouble else 200)

  async def _text(self, request):
    """Returns the metrics."""
    from starlette.responses import PlainTextResponse

    del request
    engine = self.engine
    gauges = {
      'requests_active': engine.active,
      'requests_queued': engine.queued,
      'rows': engine.rows,
    }
    counters = {'programs_compiled_total': engine.traces}
    for name in ('rounds', 'errors', 'cancelled', 'undelivered'):
      counters[f'engine_{name}_total'] = engine.stats[name]
    return PlainTextResponse(
      self.metrics.text(gauges, counters),
      media_type='text/plain; version=0.0.4',
    )


async def _body_of(request, most: int) -> bytes:
  """Returns the body of a request; raises ApiError."""
  parts, size = [], 0
  try:
    async with asyncio.timeout(_BODY_SECONDS):
      async for part in request.stream():
        size += len(part)
        if size > most:
          raise ApiError(413, f'the body has over {most:,} bytes: shorten it')
        parts.append(part)
  except TimeoutError:
    raise ApiError(
      408, f'the body did not come within {_BODY_SECONDS} s: send it again'
    ) from None
  return b''.join(parts)


def _json_of(text: bytes):
  """Returns what a body says; raises ApiError."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    line = ' '.join(str(error).split())[:200]
    raise ApiError(400, f'the body is no JSON: {line}') from error


async def _no_route(request, error):
  where = f'{request.method} {request.url.path}'[:200]
  found = exchange.refusal(
    ApiError(
      error.status_code,
      f'{where} is not served here: there are POST /v1/chat/completions, POST '
      '/v1/completions, GET /v1/models, GET /health and GET /metrics',
    )
  )
  found.headers.update(error.headers or {})  # what is allowed
  return found


async def _broken(request, error):
  del request
  message = f'the server failed: {type(error).__name__}'
  return exchange.refusal(ApiError(500, message))
