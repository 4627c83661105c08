"""The command that serves: flags, keys, sockets; a process and its end."""

import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest
import served
import serving
from conftest import ROOT

from meta_rl import (
  eval_partial,
  hf,
  models,
  serve,
  signals,
  stop_rules,
  stopping,
  text_tokenizer,
)
from meta_rl.configs import mrt_countdown
from meta_rl.serving import engine, openai_api, voices

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')

PROMPT = '<bos> 3 5 7 = 15 <think>'
BODY = {'model': 'mrt_countdown', 'prompt': PROMPT, 'seed': 3}


class Flags(types.SimpleNamespace):
  """Flags by attribute and by name; those given are present."""

  def __getitem__(self, name):
    return types.SimpleNamespace(
      present=name in self.given, config_filename='configs/x.py:tiny'
    )


@pytest.fixture
def flags(monkeypatch):
  """A function that sets the command's flags."""

  def give(**given):
    values = {'api_key_file': '', 'host': '127.0.0.1', 'port': 0}
    values |= {'allow_no_key': False, 'deadline': 600.0, 'grace': 10.0}
    values |= {'name': '', 'stop_rules': ''}
    values |= {'model': None, 'workdir': None, 'config': None, 'which': 'last'}
    monkeypatch.setattr(
      serve, 'FLAGS', Flags(**values | given, given=list(given))
    )

  return give


def test_keys(tmp_path, monkeypatch):
  monkeypatch.delenv(serve.API_KEY, raising=False)
  assert serve.api_key('') == ''
  monkeypatch.setenv(serve.API_KEY, 'of-the-environment')
  assert serve.api_key('') == 'of-the-environment'
  file = tmp_path / 'key'
  file.write_text(' of-a-file\n')
  assert serve.api_key(str(file)) == 'of-a-file'
  for text, message in (('\n', 'is empty'), ('a b', 'spaces'), ('é', 'ASCII')):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
      serve.api_key(str(file))


def test_ports():
  with serve.listen('127.0.0.1', 0) as one:
    port = one.getsockname()[1]
    with pytest.raises(ValueError, match=f'--port={port} cannot be listened'):
      serve.listen('127.0.0.1', port)
  with pytest.raises(ValueError, match='--host=no.such.host'):
    serve.listen('no.such.host', 0)


@pytest.mark.parametrize('host', ['0.0.0.0', '0', '::'])
def test_other_machines_need_a_key(host):
  with pytest.raises(ValueError, match=f'--host={host} lets .* --allow_no_key'):
    serve.listen(host, 0)
  with serve.listen(host, 0, anybody=True) as one:
    assert not serve.is_local(one)
  with serve.listen('localhost', 0) as one:
    assert serve.is_local(one)


def test_what_is_served(flags):
  config = mrt_countdown.get_config('tiny')
  flags(config=config)
  voice, name = serve.load(None, None, config, which='last')
  assert name == 'x'  # of the config's file
  assert voice.defaults['thinking_budget'] == 27
  # 27 + 1 + 6 tokens, doubled and rounded up to a power of two.
  assert serve.row_length(voice, None) == 128
  assert serve.row_length(voice, 40) == 40
  # A prompt, a thought, a stop token and 6 tokens of an answer.
  assert serve.row_length(voice, 9) == 9
  with pytest.raises(ValueError, match='--length=8 is given, .* take 9 tokens'):
    serve.row_length(voice, 8)
  for given in ((None, None, None), ('m', None, config), ('m', 'w', None)):
    with pytest.raises(ValueError, match='give one of the three'):
      serve.load(*given, which='last')
  flags(config=config, temperature=0.5)
  with pytest.raises(ValueError, match='--temperature is of --model alone'):
    serve.load(None, None, config, which='last')


@pytest.mark.full
def test_a_language_model(flags, tmp_path):
  """A checkpoint of bytes, from its folder to an answer to a chat."""
  words = text_tokenizer.load('bytes')
  shape = models.TransformerConfig(
    vocab_size=262, num_layers=1, width=16, num_heads=2, ffn_width=16
  )
  template = '{% for m in messages %}{{ m.content }}{% endfor %}'
  info = hf.TokenizerInfo(
    words.tokenizer, template, None, (words.eos_id,), pad_id=0
  )
  params = models.init_params(shape, jax.random.key(0))
  folder = tmp_path / 'own'
  like = hf.config_to_hf(shape, max_position_embeddings=512)
  hf.save_checkpoint(folder, params, shape, like, tokenizer=info)
  own = {'thinking': '', 'dtype': 'float32', 'temperature': 1.0, 'top_p': None}
  flags(model=str(folder), **own, max_new_tokens=300, thinking_budget=8)
  voice, name = serve.load(str(folder), None, None, which='last')
  assert name == 'own'
  assert voice.context == 512
  length = serve.row_length(voice, None)
  turns = [{'role': 'user', 'content': 'Hi'}]
  body = {'model': 'own', 'messages': turns, 'seed': 1}
  ids = voices.encode(voice, turns)
  asked = voices.request(voice, ids, length, openai_api.chat(body, 'own'))
  made = engine.Engine(
    voice.model, voice.params, voice.marks, rows=2, length=length
  )
  made.start(warm=False)
  tokens, _, _, last = serving.Inbox(made, asked).all()
  made.stop()
  expected = serving.alone(asked, voice.model, voice.params, voice.marks)
  assert tokens == expected
  assert last.usage.stopped_by == 'budget'
  assert 'Time is up.' in voice.decode(tokens)


def test_calibrated_rules(flags, tmp_path):
  config = mrt_countdown.get_config('tiny')
  flags(config=config)
  voice, _ = serve.load(None, None, config, which='last')
  assert serve.with_rules(voice, str(tmp_path), '').rules is None
  assert serve.with_rules(voice, str(tmp_path), 'none').rules is None
  zeros = lambda *shape: np.zeros(shape, np.float32)

  about = {'budget': 27, 'policy': eval_partial.digest_of(voice.params)}

  def save(width, **changes):
    head = stopping.ProgressHead(
      *(zeros(width), zeros(width), zeros(width + 1, 4), zeros(4)),
      *(zeros(4, 3), zeros(3), np.float32([1, 2]), np.float32(27)),
    )
    rules = stop_rules.StopRules({'own': head}, [], about | changes)
    stop_rules.save(tmp_path / stop_rules.NAME, rules)

  save(16)  # the width of the model
  found = serve.with_rules(voice, str(tmp_path), '')
  assert found.head.shift.shape == (16,)
  assert serve.with_rules(voice, None, str(tmp_path)).head is not None
  save(17)
  with pytest.raises(ValueError, match='is of another policy: features have'):
    serve.with_rules(voice, str(tmp_path), '')
  save(16, budget=54)
  with pytest.raises(ValueError, match='budget of 54 .* this one is 27: calib'):
    serve.with_rules(voice, str(tmp_path), '')
  save(16, policy='of-another')
  with pytest.raises(ValueError, match=r'stop_rules.*: .* other weights than'):
    serve.with_rules(voice, str(tmp_path), '')
  # Of an exported checkpoint neither is known.
  found = serve.with_rules(voice, None, str(tmp_path), ours=False)
  assert found.head is not None
  with pytest.raises(ValueError, match='none'):
    serve.with_rules(voice, None, str(tmp_path / 'none'))


def test_rows_of_a_language_model():
  voice = voices.Voice(
    None, None, serving.MARKS, list, list, str, 32, context=300
  )
  assert serve.row_length(voice, None) == 300
  with pytest.raises(ValueError, match='--length=301 is given.* made for 300'):
    serve.row_length(voice, 301)


@pytest.mark.parametrize(
  'given, message',
  [
    ({'api_key_file': '/no/such/file'}, 'No such file'),
    ({'host': 'no.such.host'}, '--host=no.such.host --port=0 cannot be'),
    ({'host': ''}, '--host is empty'),
    ({'host': '0.0.0.0'}, 'there is no API key: give --api_key_file'),
    ({'deadline': math.inf}, '--deadline=inf is given: take a number of'),
    ({'deadline': 0.0}, '--deadline=0 is given'),
    ({'deadline': math.nan}, '--deadline=nan is given'),
    ({'grace': math.inf}, '--grace=inf is given'),
    ({'grace': -1.0}, '--grace=-1 is given'),
    ({}, 'give one of the three'),
  ],
)
def test_errors_are_one_line(flags, capsys, given, message):
  flags(**given)
  check_error(capsys, message)


def test_a_device_without_memory_is_one_line(flags, capsys, monkeypatch):
  def fail(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of\n memory')

  config = mrt_countdown.get_config('tiny')
  flags(config=config, grace=0.0)  # which is allowed
  monkeypatch.setattr(serve, 'serve', fail)
  check_error(capsys, 'RESOURCE_EXHAUSTED: Out of memory; if its memory is sho')


def check_error(capsys, message):
  """Asserts that the command ends with one line and the code of errors."""
  partitionable = jax.config.jax_threefry_partitionable
  try:
    with pytest.raises(SystemExit) as caught:
      serve.main(['serve'])
  finally:
    jax.config.update('jax_threefry_partitionable', partitionable)
  assert caught.value.code == signals.EXIT_ERROR
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert message in line


@pytest.fixture
def own_signals():
  """Handlers of signals are as they were at the end."""
  kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in kept.items():
    signal.signal(number, handler)


@pytest.mark.usefixtures('own_signals')
def test_a_lost_engine_ends_the_server(flags, monkeypatch, capsys):
  flags(rows=1, length=48, steps=1, max_queue=2, deadline=60.0, grace=5.0)
  serve.FLAGS.warm = False
  # uvicorn's would close the handler of absl, and with it pytest's stream.
  monkeypatch.setattr('logging.config.dictConfig', lambda config: None)
  reset, calls = engine.Engine._reset, []

  def fail(*_):
    raise RuntimeError('lost')

  def once(self):
    calls.append(self)
    return fail() if len(calls) > 1 else reset(self)

  monkeypatch.setattr(engine.Engine, '_reset', once)
  monkeypatch.setattr(engine.Engine, '_call_tick', fail)
  monkeypatch.setattr(engine.traceback, 'print_exception', lambda error: None)
  with serve.listen('127.0.0.1', 0) as listening:
    one = http.client.HTTPConnection(*listening.getsockname()[:2], timeout=60)
    body = json.dumps({'model': 'm', 'prompt': '1 5'})
    answers = []

    def ask():
      with contextlib.closing(one):
        one.request('POST', '/v1/completions', body)
        answers.append(one.getresponse().status)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(ValueError, match='could not start afresh'):
      serve.serve(served.VOICE, 'm', '', listening)
    asking.join()
  assert answers == [500]
  assert 'http://127.0.0.1:' in capsys.readouterr().out


@pytest.fixture(scope='module')
def server():
  """A process that serves, and its port."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'meta_rl.serve', '--port=0', '--rows=2'),
      *('--config=mrt_countdown:tiny', '--length=64', '--grace=60'),
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(map(str, [ROOT, *path()]))},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  line = process.stdout.readline()
  assert line.startswith('mrt_countdown: http://127.0.0.1:'), process.stderr
  assert '2 rows of 64 tokens, without an API key' in line
  yield process, int(line.partition('127.0.0.1:')[2].partition('/')[0])
  if process.poll() is None:
    process.kill()
  process.communicate()


def path():
  """Returns the folders of PYTHONPATH."""
  return filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))


@pytest.mark.full
def test_the_official_client(server):
  openai = pytest.importorskip('openai')
  client = openai.OpenAI(
    base_url=f'http://127.0.0.1:{server[1]}/v1', api_key='none', max_retries=0
  )
  turns = [{'role': 'user', 'content': PROMPT}]
  ask = client.chat.completions.create
  whole = ask(
    model='mrt_countdown',
    messages=turns,
    seed=3,
    extra_body={'max_thinking_tokens': 5, 'return_confidence': True},
  )
  assert whole.choices[0].finish_reason == 'stop'
  assert whole.usage.completion_tokens_details.thinking_tokens <= 5
  assert whole.choices[0].confidence[0]['thinking_tokens'] == 0
  parts = ask(
    model='mrt_countdown',
    messages=turns,
    seed=3,
    stream=True,
    extra_body={'max_thinking_tokens': 5},
  )
  text = ''.join(part.choices[0].delta.content or '' for part in parts)
  assert text == whole.choices[0].message.content
  assert [model.id for model in client.models.list()] == ['mrt_countdown']
  with pytest.raises(openai.NotFoundError, match='is not served here'):
    ask(model='other', messages=turns)
  with pytest.raises(openai.BadRequestError, match='tools'):
    ask(model='mrt_countdown', messages=turns, tools=[{'type': 'function'}])


@pytest.mark.full
def test_a_process_ends_after_what_is_under_way(server):
  process, port = server
  one = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
  with contextlib.closing(one):
    one.request('POST', '/v1/completions', json.dumps(BODY))
    body = json.loads(one.getresponse().read())
    assert body['usage']['prompt_tokens'] == 7
    body = json.dumps(BODY | {'stream': True})
    one.request('POST', '/v1/completions', body)
    with one.getresponse() as response:
      assert response.readline().startswith(b'data: ')
      process.send_signal(signal.SIGTERM)
      assert b'data: [DONE]' in response.read()
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert (out, err) == ('', '')
  with pytest.raises(ConnectionError):
    socket.create_connection(('127.0.0.1', port)).close()
