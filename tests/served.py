"""A server in a thread, over a real socket, for the tests of the server."""

import contextlib
import functools
import http.client
import json
import socket
import threading

import serving

from meta_rl.serving import asgi, connections, voices

# Words are token ids: '1 5 8'.
VOICE = voices.Voice(
  model=serving.MODEL,
  params=serving.PARAMS,
  marks=serving.MARKS,
  chat_prompt=lambda turns: [int(w) for w in turns[-1]['content'].split()],
  text_prompt=lambda text: [int(word) for word in text.split()],
  decode=lambda ids: ' '.join(map(str, ids)),
  vocab_size=32,
  defaults={
    'max_new_tokens': 16,
    'temperature': 1.0,
    'top_p': 1.0,
    'thinking_budget': 9,
  },
)
CHAT, TEXT = '/v1/chat/completions', '/v1/completions'


class Served:
  """A server in a thread, and its port."""

  def __init__(self, *, rows=3, max_queue=64, **options):
    """Starts it."""
    import uvicorn

    make = functools.partial(serving.make, rows=rows, max_queue=max_queue)
    self.app = asgi.App(make, VOICE, name='m', **options)
    self.engine = self.app.engine
    self.engine.start(warm=False)
    listening = socket.create_server(('127.0.0.1', 0))
    self.port = listening.getsockname()[1]
    config = connections.config(
      self.app.asgi(), self.engine, grace=5, log_level='error'
    )
    self.server = uvicorn.Server(config)
    self._thread = threading.Thread(
      target=self.server.run, kwargs={'sockets': [listening]}
    )
    self._thread.start()

  def stop(self):
    """Ends it."""
    self.server.should_exit = True
    self._thread.join()

  def post(self, body, path=TEXT, headers=None):
    """Returns (status, headers, JSON) of a request."""
    text = body if isinstance(body, bytes | str) else json.dumps(body)
    return self.ask('POST', path, text, headers)

  def ask(self, method, path, text=None, headers=None):
    """Returns (status, headers, JSON or text)."""
    connection = http.client.HTTPConnection(
      '127.0.0.1', self.port, timeout=serving.WAIT_S
    )
    with contextlib.closing(connection):
      connection.request(method, path, text, headers or {})
      response = connection.getresponse()
      found = response.read().decode()
      if response.getheader('content-type') == 'application/json':
        found = json.loads(found)
      return response.status, dict(response.getheaders()), found

  def open(self, body, path=TEXT):
    """Returns a socket that has sent a request."""
    text = json.dumps(body).encode()
    one = socket.create_connection(('127.0.0.1', self.port))
    one.settimeout(serving.WAIT_S)
    one.sendall(
      f'POST {path} HTTP/1.1\r\nHost: localhost\r\n'
      f'Content-Length: {len(text)}\r\n\r\n'.encode()
      + text
    )
    return one

  def stream(self, body, path=TEXT):
    """Returns the events of a stream."""
    _, headers, text = self.post(body | {'stream': True}, path)
    assert headers['content-type'].startswith('text/event-stream')
    events = text.strip().split('\n\n')
    assert events.pop() == 'data: [DONE]'
    return [json.loads(event.removeprefix('data: ')) for event in events]
