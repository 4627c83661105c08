"""Connections of the server: idle ones, unread ones, other sites."""

import contextlib
import socket
import time

import pytest
import serving
from served import TEXT, Served

from meta_rl.serving import connections, exchange

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')

BODY = {'model': 'm', 'prompt': '1 5 8', 'seed': 9}
HALF = b'GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow:'


@pytest.fixture
def start():
  """A function that starts a server; it is stopped at the end."""
  started = []

  def one(**options):
    started.append(Served(**options))
    return started[-1]

  yield one
  for each in started:
    each.stop()


def wait_for(condition):
  """Waits until something holds."""
  until = time.monotonic() + serving.WAIT_S
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.005)


def connect(one):
  """Returns a socket that has sent nothing yet."""
  found = socket.create_connection(('127.0.0.1', one.port))
  found.settimeout(serving.WAIT_S)
  return contextlib.closing(found)


def is_cut(client):
  """Returns whether the server ends a connection, once all was read."""
  with contextlib.suppress(ConnectionError):
    while client.recv(1 << 16):
      pass
  return True


def test_connections_on_which_no_request_begins_are_cut_off(start, monkeypatch):
  monkeypatch.setattr(connections, 'HEADER_SECONDS', 0.3)
  one = start(rows=1)
  for sent in (b'', HALF):
    with connect(one) as client:
      client.sendall(sent)
      began = time.monotonic()
      assert is_cut(client)
      assert time.monotonic() - began < 5
  with connect(one) as client:  # a second request of the same connection
    client.sendall(HALF + b'1\r\n\r\n' + HALF)
    assert client.recv(12) == b'HTTP/1.1 200'
    assert is_cut(client)
  wait_for(lambda: not one.server.server_state.connections)


def test_a_request_under_way_is_not_cut_off(start, monkeypatch):
  monkeypatch.setattr(connections, 'HEADER_SECONDS', 0.1)
  one = start(rows=1)
  tick = one.engine._tick

  def slow(*args):
    time.sleep(0.1)
    return tick(*args)

  slow.traces = 0
  one.engine._tick = slow
  assert one.post(BODY)[0] == 200


def test_no_more_connections_than_requests_and_some(start, monkeypatch):
  monkeypatch.setattr(connections, 'MARGIN', 1)
  one = start(rows=1, max_queue=1)
  with contextlib.ExitStack() as stack:
    for _ in range(3):
      stack.enter_context(connect(one))
    wait_for(lambda: len(one.server.server_state.connections) == 3)
    assert one.ask('GET', '/health')[0] == 503
  wait_for(lambda: not one.server.server_state.connections)
  assert one.ask('GET', '/health')[0] == 200


def unread(one, monkeypatch):
  """Returns a client that does not read the large events of a stream."""
  large = b'data: ' + b'x' * (1 << 22) + b'\n\n'
  monkeypatch.setattr(exchange, 'event', lambda body: large)
  serving.Inbox(one.engine, serving.request()).all()  # compiled
  client = one.open(BODY | {'stream': True})
  states = one.server.server_state.connections
  wait_for(lambda: any(c.flow.write_paused for c in tuple(states)))
  return contextlib.closing(client)


def test_a_client_that_does_not_read_is_cut_off(start, monkeypatch, capsys):
  monkeypatch.setattr(connections, 'SEND_SECONDS', 0.3)
  one = start(rows=1)
  with unread(one, monkeypatch):
    wait_for(lambda: not one.server.server_state.connections)
  wait_for(lambda: not one.server.server_state.tasks)
  _, _, text = one.ask('GET', '/metrics')
  assert f'{{path="{TEXT}",status="499"}} 1' in text
  assert capsys.readouterr().err == ''


def test_a_client_that_reads_slowly_meets_the_deadline(start, monkeypatch):
  one = start(rows=1, deadline=0.5)
  with unread(one, monkeypatch) as client:
    time.sleep(0.6)
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
      while client.recv(1 << 20):
        pass
  wait_for(lambda: 'status="504"' in one.ask('GET', '/metrics')[2])


def test_the_end_of_the_server_leaves_no_traceback(start, monkeypatch, capsys):
  one = start(rows=1)
  one.server.config.timeout_graceful_shutdown = 0.2
  with unread(one, monkeypatch):
    one.stop()
  assert 'Traceback' not in capsys.readouterr().err


def refused(one, headers, message):
  """Asserts that a request is refused in OpenAI's shape."""
  status, _, body = one.post(BODY, headers=headers)
  assert status == 403, body
  assert set(body['error']) == {'message', 'type', 'param', 'code'}
  assert message in body['error']['message']


def test_other_sites(start):
  one = start(rows=1)
  for host in ('127.0.0.1', 'localhost:80', '[::1]:8000', 'LOCALHOST'):
    assert one.post(BODY, headers={'Host': host})[0] == 200
  for host in ('evil.example', 'localhost.evil.example', '', '127.0.0.1.x:80'):
    refused(one, {'Host': host}, 'answers to 127.0.0.1')
  for origin in ('http://localhost:3000', 'https://[::1]'):
    assert one.post(BODY, headers={'Origin': origin})[0] == 200
  for origin in ('https://evil.example', 'null', 'http://localhost.evil', ''):
    refused(one, {'Origin': origin}, 'another site')
  assert one.engine.stats['rounds'] > 0


def test_other_sites_of_a_server_for_other_machines(start):
  one = start(rows=1, local=False)
  here = {'Host': 'box:8000'}
  assert one.post(BODY, headers=here)[0] == 200
  assert one.post(BODY, headers=here | {'Origin': 'http://box:8000'})[0] == 200
  refused(one, here | {'Origin': 'http://localhost:1'}, 'another site')


def test_a_key_lets_other_sites_in(start):
  one = start(rows=1, api_key='secret')
  headers = {'Authorization': 'Bearer secret', 'Origin': 'https://a.example'}
  assert one.post(BODY, headers=headers | {'Host': 'b.example'})[0] == 200
