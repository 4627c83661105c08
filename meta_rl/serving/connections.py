"""Connections of the server: who is let in, how many, and for how long (host).

What the application (meta_rl/serving/asgi.py) cannot see or do by itself: a
connection on which no request begins, a client that does not read, a page of
another site that speaks to this machine through a browser.
"""

import asyncio
import math
import re

from meta_rl.serving import exchange
from meta_rl.serving.openai_api import ApiError

# Seconds until a request has begun; for a client to take what is sent.
HEADER_SECONDS = 30.0
SEND_SECONDS = 10.0
# Connections beside those of requests: that are idle, ask for the health, or
# are about to be refused in words.
MARGIN = 64
_CUT = 'meta_rl.cut'
_LOCAL = r'(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d*)?'


class NotRead(OSError):
  """A client does not take what is sent."""


class Guard:
  """An ASGI application that lets only some requests through to another.

  Without a key, who may ask is whoever reaches the server, and a browser of
  this machine does so for any page it shows. So what another site sends is
  refused (its Origin says so), and, where the server is of this machine alone,
  what calls it by another name (a site whose name was made to point here).
  """

  def __init__(self, app, *, key: bool, local: bool):
    """Keeps what it guards.

    Args:
      app: the application.
      key: requests carry one, so that no check is needed.
      local: the server listens on this machine alone.
    """
    self._app, self._key, self._local = app, key, local

  async def __call__(self, scope, receive, send):
    """Answers a request, and cuts a client off that does not read."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return

    async def send_soon(message):
      try:
        async with asyncio.timeout(SEND_SECONDS):
          await send(message)
      except TimeoutError:
        raise NotRead from None

    try:
      error = self._refusal(scope)
      app = self._app if error is None else exchange.refusal(error)
      await app(scope, receive, send_soon)
    except (NotRead, asyncio.CancelledError):
      # Cancelled is what takes too long at the end of the server.
      await _cut(scope, receive)

  def _refusal(self, scope) -> ApiError | None:
    """Returns what is wrong with whom a request comes from."""
    if self._key:
      return None
    headers = {
      name: value.decode('latin-1') for name, value in scope['headers']
    }
    host, origin = headers.get(b'host', ''), headers.get(b'origin')
    if self._local and not re.fullmatch(_LOCAL, host, re.IGNORECASE):
      return ApiError(
        403,
        'without an API key the server answers to 127.0.0.1, localhost and '
        f'[::1], and the request is for {host[:100]!r}: take one of them',
      )
    if origin is None:
      return None
    scheme, _, site = origin.partition('://')
    same = site.lower() == host.lower()
    same |= self._local and bool(re.fullmatch(_LOCAL, site, re.IGNORECASE))
    if scheme not in ('http', 'https') or not same:
      return ApiError(
        403,
        f'the request comes from a page of {origin[:100]!r}, another site: '
        'give the server an API key to let it in',
      )
    return None


async def _cut(scope, receive):
  """Ends a connection at once, whatever is still to be sent."""
  cut = scope.get('extensions', {}).get(_CUT)
  if cut is not None:
    cut()
    while (await receive())['type'] != 'http.disconnect':
      pass


def _protocol():
  """Returns uvicorn's protocol, with a limit to how long nothing is asked."""
  from uvicorn.protocols.http.auto import AutoHTTPProtocol

  class Protocol(AutoHTTPProtocol):
    """One connection."""

    def connection_made(self, transport):
      """Begins: a request must come soon."""
      super().connection_made(transport)
      inner = self.app

      async def app(scope, receive, send):
        extensions = scope.get('extensions', {}) | {_CUT: transport.abort}
        await inner(scope | {'extensions': extensions}, receive, send)

      self.app, self._timer = app, None
      self._wait_for_request()

    def connection_lost(self, exc):
      """Ends."""
      self._timer.cancel()
      super().connection_lost(exc)

    def on_response_complete(self):
      """The next request must come soon, too."""
      super().on_response_complete()
      self._wait_for_request()

    def _wait_for_request(self, left=math.inf):
      if self._timer is not None:
        self._timer.cancel()
      self._timer = self.loop.call_later(HEADER_SECONDS, self._late, left)

    def _late(self, before):
      """Cuts the connection off, unless it answers or is still being read."""
      if self.cycle is not None and not self.cycle.response_complete:
        return
      left = self.transport.get_write_buffer_size()
      if 0 < left < before:
        self._wait_for_request(left)
      else:
        self.transport.abort()

  return Protocol


def config(app, engine, *, grace: float, log_level: str = 'warning'):
  """Returns the uvicorn.Config of a server.

  Args:
    app: of `asgi.App.asgi`.
    engine: that it asks.
    grace: seconds that requests under way get at the end.
    log_level: of uvicorn.
  """
  import uvicorn

  return uvicorn.Config(
    app,
    http=_protocol(),
    log_level=log_level,
    access_log=False,
    server_header=False,
    limit_concurrency=engine.rows + engine.max_queue + MARGIN,
    # The engine ends requests at the grace period; who does not read the last
    # word is cut off a little later.
    timeout_graceful_shutdown=math.ceil(grace + SEND_SECONDS) + 5,
  )
