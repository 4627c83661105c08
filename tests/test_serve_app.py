"""The server over real sockets: responses, streams, refusals, disconnects."""

import concurrent.futures
import json
import socket
import threading
import time

import pytest
import serving
from served import CHAT, TEXT, Served

from meta_rl.serving import asgi

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')

BODY = {'model': 'm', 'prompt': '1 5 8', 'seed': 9}
LONG = {'min_thinking_tokens': 38, 'max_thinking_tokens': 40, 'max_tokens': 46}


@pytest.fixture(scope='module')
def served():
  one = Served()
  yield one
  one.stop()


@pytest.fixture
def fresh():
  """A function that starts a server; it is stopped at the end."""
  started = []

  def start(**options):
    started.append(Served(**options))
    return started[-1]

  yield start
  for one in started:
    one.stop()


def wait_for(condition):
  """Waits until something holds."""
  until = time.monotonic() + serving.WAIT_S
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.005)


def slowly(one, seconds=0.05):
  """Makes each round of the engine take at least so long."""
  tick = one.engine._tick

  def slow(*args):
    time.sleep(seconds)
    return tick(*args)

  slow.traces = 0
  one.engine._tick = slow


def text_of(seed, prompt=(1, 5, 8), **changes):
  """Returns the text that a completion should have."""
  tokens = serving.alone(serving.request(prompt, seed=seed, **changes))
  return ' '.join(str(i) for i in tokens if i != serving.EOS)


def test_a_completion(served):
  status, headers, body = served.post(BODY)
  assert status == 200
  assert body['choices'][0]['text'] == text_of(9)
  usage = body['usage']
  details = usage['completion_tokens_details']
  assert usage['prompt_tokens'] == 3
  assert usage['completion_tokens'] == sum(
    details[name] for name in ('thinking_tokens', 'answer_tokens')
  )
  assert headers['content-type'] == 'application/json'


def test_a_chat(served):
  turns = [{'role': 'user', 'content': '1 5 8'}]
  body = {'model': 'm', 'messages': turns, 'seed': 9}
  _, _, found = served.post(body, CHAT)
  message = found['choices'][0]['message']
  thought, answer = message['reasoning_content'], message['content']
  tokens = text_of(9).split()
  place = tokens.index(str(serving.END))
  assert thought.split() == tokens[:place]
  assert answer.split() == tokens[place + 1 :]
  assert found['object'] == 'chat.completion'
  pieces = served.stream(body, CHAT)
  deltas = [event['choices'][0]['delta'] for event in pieces]
  assert deltas[0]['role'] == 'assistant'
  assert ''.join(d.get('reasoning_content', '') for d in deltas) == thought
  assert ''.join(d.get('content', '') for d in deltas) == answer
  assert pieces[-1]['choices'][0]['finish_reason'] == 'stop'


def test_a_stream_has_the_same_text(served):
  events = served.stream(BODY | {'stream_options': {'include_usage': True}})
  *chunks, last = events
  assert len(chunks) > 3
  assert len({event['id'] for event in events}) == 1
  text = ''.join(chunk['choices'][0]['text'] for chunk in chunks)
  assert text == text_of(9)
  assert last['choices'] == []
  assert last['usage'] == served.post(BODY)[2]['usage']


def test_several_responses(served):
  _, _, body = served.post(BODY | {'prompt': ['1 5 8', '6 7'], 'n': 2})
  texts = [choice['text'] for choice in body['choices']]
  assert [choice['index'] for choice in body['choices']] == [0, 1, 2, 3]
  assert texts[0] == text_of(9)
  assert len(set(texts)) == 4
  assert body['usage']['prompt_tokens'] == 3 + 2
  events = served.stream(BODY | {'prompt': ['1 5 8', '6 7'], 'n': 2})
  joined = [''] * 4
  for event in events:
    (choice,) = event['choices']
    joined[choice['index']] += choice['text']
  assert joined == texts


def test_a_rule_and_its_scores(served):
  rule = {'stop_rule': 'confidence', 'stop_threshold': 0.0}
  _, _, body = served.post(BODY | rule | {'return_confidence': True})
  (choice,) = body['choices']
  assert choice['thinking_stopped_by'] == 'confidence'
  assert choice['confidence'][0]['thinking_tokens'] == 0
  assert body['usage']['completion_tokens_details']['forced']
  looks = {'return_confidence': True, 'check_every': 3}
  _, _, body = served.post(BODY | looks)
  (choice,) = body['choices']
  assert choice['text'] == text_of(9)  # to look changes nothing
  assert [c['thinking_tokens'] for c in choice['confidence']][:2] == [0, 3]
  assert body['usage']['completion_tokens_details']['probe_tokens'] > 0


def test_stop_strings(served):
  words = text_of(9).split()
  answer = words[words.index(str(serving.STOP[-1])) + 1 :]
  stop = f' {answer[1]}'
  assert stop in ' '.join(words[:8])  # in a thought it ends nothing
  _, _, body = served.post(BODY | {'stop': stop})
  (choice,) = body['choices']
  assert choice['finish_reason'] == 'stop'
  assert choice['text'].split() == words[: len(words) - len(answer) + 1]
  events = served.stream(BODY | {'stop': stop})
  text = ''.join(event['choices'][0]['text'] for event in events)
  assert text == choice['text']
  assert events[-1]['choices'][0]['finish_reason'] == 'stop'


def test_nobody_sees_the_tokens_of_another(served):
  def one(index):
    seed = index % 5
    prompt = (5 + index % 7, 8)
    body = BODY | {'prompt': list(prompt), 'seed': seed}
    if index % 2:
      events = served.stream(body)
      text = ''.join(event['choices'][0]['text'] for event in events)
    else:
      text = served.post(body)[2]['choices'][0]['text']
    return text == text_of(seed, prompt)

  expected = {(s, (5 + p, 8)): None for s in range(5) for p in range(7)}
  for seed, prompt in expected:
    text_of(seed, prompt)  # compiled before the threads
    break
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    assert all(pool.map(one, range(60)))


def refused(answer, status, message):
  """Asserts that an answer is an error of OpenAI's shape; returns it."""
  found, headers, body = answer
  assert found == status, body
  error = body['error']
  assert set(error) == {'message', 'type', 'param', 'code'}
  assert message in error['message']
  assert '\n' not in error['message']
  return error | headers


@pytest.mark.parametrize(
  'body, status, message',
  [
    (b'{"model": ', 400, 'the body is no JSON'),
    (b'\xff', 400, 'the body is no JSON'),
    (b'', 400, 'the body is no JSON'),
    (b'[' * 70_000, 400, 'the body is no JSON'),
    (b'[]', 400, 'must be a JSON object'),
    ({'model': 'x', 'prompt': '1'}, 404, "'x' is not served here"),
    (BODY | {'temperature': 'hot'}, 400, "temperature='hot'"),
    (BODY | {'prompt': 'word'}, 400, 'invalid literal'),
    (BODY | {'prompt': '99'}, 400, 'ids outside 0..31'),
    (BODY | {'prompt': ' '.join(['5'] * 49)}, 400, 'has 49 tokens'),
    (BODY | {'prompt': [5] * 50}, 400, 'the prompt has 50 tokens, and a'),
    (BODY | {'prompt': '5' * 3137}, 400, 'the prompt has 3,137 characters'),
    (BODY | {'max_tokens': 47}, 400, 'may have 49 in all'),
    (BODY | {'max_thinking_tokens': 15}, 400, 'no room for an answer'),
    (BODY | {'stop_rule': 'progress', 'price_per_token': 0}, 400, 'a head'),
    (BODY | {'stop_rule': 'agreement'}, 400, 'needs stop_threshold'),
    (BODY | {'logprobs': 1}, 400, 'not supported'),
  ],
)
def test_what_is_refused(served, body, status, message):
  refused(served.post(body), status, message)
  if isinstance(body, dict):
    refused(served.post(body | {'stream': True}), status, message)


def test_a_body_that_is_too_large(served):
  # Rows of 48 tokens: 64 KiB, and 8 bytes a token of 32 prompts.
  most = 65_536 + 32 * 48 * 8
  refused(served.post(b' ' * (most + 1)), 413, f'over {most:,} bytes')
  refused(served.post(b' ' * most), 400, 'no JSON')


def test_routes(served):
  refused(served.ask('GET', '/v1/nothing'), 404, 'GET /v1/nothing is not')
  error = refused(served.ask('GET', TEXT), 405, 'not served here')
  assert error['allow'] == 'POST'
  assert served.ask('GET', '/health')[::2] == (200, {'status': 'ok'})
  _, _, found = served.ask('GET', '/v1/models')
  assert found['data'][0]['id'] == 'm'
  assert served.ask('GET', '/v1/models/m')[2] == found['data'][0]
  refused(served.ask('GET', '/v1/models/x'), 404, "'x' is not served")


def test_metrics(served):
  served.post(BODY)
  _, headers, text = served.ask('GET', '/metrics')
  assert headers['content-type'].startswith('text/plain; version=0.0.4')
  assert f'meta_rl_requests_total{{path="{TEXT}",status="200"}}' in text
  assert 'meta_rl_requests_active 0' in text
  assert 'meta_rl_engine_errors_total 0' in text
  heads = [line.split()[2] for line in text.splitlines() if line[0] == '#']
  assert all(heads.count(name) == 2 for name in heads)  # HELP and TYPE


def test_a_key(fresh):
  one = fresh(api_key='secret')
  error = refused(one.post(BODY), 401, 'Authorization: Bearer KEY')
  assert error['www-authenticate'] == 'Bearer'
  for given in ('Bearer wrong', 'Basic secret', 'secret', 'Bearer s\xe9cret'):
    header = {'Authorization': given}
    refused(one.post(BODY, headers=header), 401, 'the API key')
  refused(one.ask('GET', '/v1/models'), 401, 'the API key')
  right = {'Authorization': 'Bearer secret'}
  assert one.post(BODY, headers=right)[0] == 200
  assert one.ask('GET', '/v1/models', headers=right)[0] == 200
  assert one.ask('GET', '/health')[0] == 200


def test_a_full_queue_and_clients_that_go(fresh):
  one = fresh(rows=1, max_queue=1)
  slowly(one)
  under_way = one.open(BODY | LONG)
  wait_for(lambda: one.engine.active == 1)
  waiting = one.open(BODY | {'stream': True})
  wait_for(lambda: one.engine.queued == 1)
  error = refused(one.post(BODY), 429, 'too many requests wait')
  assert error['retry-after'] == '1'
  too_many = '2 responses are asked for, and 1 requests may wait'
  refused(one.post(BODY | {'n': 2}), 400, too_many)
  waiting.close()  # a stream that has not begun
  wait_for(lambda: one.engine.queued == 0)
  under_way.close()  # not a stream
  wait_for(lambda: one.engine.active == 0)
  assert one.engine.stats['cancelled'] == 2
  assert one.post(BODY)[2]['choices'][0]['text'] == text_of(9)
  _, _, text = one.ask('GET', '/metrics')
  assert f'{{path="{TEXT}",status="499"}} 2' in text
  assert f'{{path="{TEXT}",status="429"}} 1' in text


def test_a_client_that_goes_in_the_middle_of_a_stream(fresh):
  one = fresh(rows=1)
  slowly(one)
  client = one.open(BODY | LONG | {'stream': True})
  assert b'200 OK' in client.recv(200)
  client.close()
  wait_for(lambda: one.engine.active == 0)
  assert one.engine.stats['cancelled'] == 1


def test_a_client_that_goes_before_its_body_is_there(served):
  client = socket.create_connection(('127.0.0.1', served.port))
  client.sendall(
    f'POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n'
    ''.encode()
  )
  client.close()
  gone = f'{{path="{TEXT}",status="499"}} 1'
  wait_for(lambda: gone in served.ask('GET', '/metrics')[2])


def test_a_deadline(fresh):
  one = fresh(rows=1, deadline=0.8)
  serving.Inbox(one.engine, serving.request()).all()  # compiled
  slowly(one, 0.1)
  refused(one.post(BODY | LONG), 504, 'the deadline of 0.8 s is over')
  wait_for(lambda: one.engine.active == 0)
  text = one.post(BODY | LONG | {'stream': True})[2]
  last = json.loads(text.strip().split('\n\n')[-1].removeprefix('data: '))
  assert last['error']['code'] == 'timeout'
  wait_for(lambda: one.engine.active == 0)
  assert one.engine.stats['cancelled'] == 2


def test_an_engine_that_fails(fresh, capsys):
  one = fresh()
  tick = one.engine._tick

  def fail(*args):
    one.engine._tick = tick
    raise RuntimeError('no memory')

  fail.traces = 0
  one.engine._tick = fail
  refused(one.post(BODY), 500, 'the engine failed: RuntimeError')
  one.engine._tick = fail
  refused(one.post(BODY | {'stream': True}), 500, 'the engine failed')
  assert one.post(BODY)[2]['choices'][0]['text'] == text_of(9)
  assert 'no memory' in capsys.readouterr().err


def test_health_of_an_engine_that_fails(fresh, monkeypatch):
  one = fresh()
  monkeypatch.setattr(one.engine, '_failures', 3)
  status, _, body = one.ask('GET', '/health')
  assert (status, body) == (503, {'status': 'the last 3 rounds failed'})
  one.engine.broken = True
  status, _, body = one.ask('GET', '/health')
  assert (status, body) == (503, {'status': 'the engine has ended'})


def test_draining(fresh):
  one = fresh(rows=1, grace=0.4)
  slowly(one)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    whole = pool.submit(one.post, BODY | LONG)
    wait_for(lambda: one.engine.active == 1)
    one.app.drain()
    assert one.ask('GET', '/health')[0] == 503
    error = refused(one.post(BODY), 503, 'the server is stopping')
    assert error['retry-after'] == '1'
    refused(whole.result(), 503, 'the server is stopping')
  one.app.drain()  # twice is as once


def test_what_is_under_way_ends_within_the_grace_period(fresh):
  one = fresh(rows=1, grace=serving.WAIT_S)
  slowly(one, 0.01)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    whole = pool.submit(one.post, BODY)
    wait_for(lambda: one.engine.active == 1)
    one.app.drain()
    assert whole.result()[2]['choices'][0]['text'] == text_of(9)


@pytest.mark.parametrize(
  'where', ['requests_of', 'openai_replies.response', 'openai_replies.chunk']
)
def test_errors_of_the_server_are_json_and_counted(fresh, monkeypatch, where):
  def fail(*_, **__):
    raise KeyError('x')

  one = fresh()
  monkeypatch.setattr(f'meta_rl.serving.exchange.{where}', fail)
  body = BODY | {'stream': where.endswith('chunk')}
  refused(one.post(body), 500, 'the server failed: KeyError')
  _, _, text = one.ask('GET', '/metrics')
  assert f'requests_total{{path="{TEXT}",status="500"}} 1' in text
  assert 'status="499"' not in text


def test_long_texts_are_tokenized_beside_the_loop(served, monkeypatch):
  seen = []
  requests_of = asgi.exchange.requests_of

  def spy(*args):
    seen.append(threading.current_thread().name)
    return requests_of(*args)

  monkeypatch.setattr(asgi.exchange, 'requests_of', spy)
  served.post(BODY)
  served.post(BODY | {'user': 'x' * asgi._LONG})
  assert len(set(seen)) == 2
