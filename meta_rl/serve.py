"""A policy behind OpenAI's API, its thought on a budget or a stop rule.

    python -m meta_rl.serve --model=PATH
    python -m meta_rl.serve --workdir=RUN
    python -m meta_rl.serve --config=mrt_countdown --port=8000

    from openai import OpenAI
    client = OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')
    client.chat.completions.create(
      model='mrt_countdown',
      messages=[{'role': 'user', 'content': '<bos> 3 5 7 = 15 <think>'}],
      extra_body={'max_thinking_tokens': 54},
    )

Requests share the steps of the model (meta_rl/serving/engine.py). What they may
ask for beside OpenAI's fields is in meta_rl/serving/openai_api.py. It needs the
extra `serve`; `--model` that of `llm` too.

It listens on this machine alone unless --host says otherwise, and asks for no
key unless --api_key_file or META_RL_API_KEY gives one; other machines are let
in with a key, or with --allow_no_key. SIGTERM and Ctrl-C end it: requests under
way get --grace seconds.
"""

import dataclasses
import functools
import ipaddress
import math
import os
import pathlib
import signal
import socket
import sys

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  checkpoint,
  command_line,
  converse,
  generate,
  heap,
  hf,
  signals,
  stop_rules,
  stopping,
)
from meta_rl.serving import asgi, connections, engine, voices

FLAGS = flags.FLAGS
API_KEY = 'META_RL_API_KEY'
# Tokens of a language model's rows, where it is made for more.
_LENGTH = 2048
_OF_MODEL = ('thinking', 'thinking_budget', 'max_new_tokens', 'dtype')
_OF_MODEL += ('temperature', 'top_p')


def api_key(path: str) -> str:
  """Returns the key that requests must carry, '' for none.

  Args:
    path: of the file that holds it; '': META_RL_API_KEY has it.

  Raises:
    ValueError: an empty file, or a key that no header can carry.
    OSError: a file that cannot be read.
  """
  key, source = os.environ.get(API_KEY, ''), API_KEY
  if path:
    key, source = pathlib.Path(path).read_text('utf-8').strip(), path
    if not key:
      raise ValueError(f'--api_key_file={path} is empty: put a key into it.')
  if not key.isascii() or not key.isprintable() or ' ' in key:
    raise ValueError(
      f'the API key of {source} has spaces or characters beyond ASCII: take '
      'letters and digits.'
    )
  return key


def listen(host: str, port: int, *, anybody: bool = False) -> socket.socket:
  """Returns a socket that listens.

  Args:
    host: address or name.
    port: 0: any that is free.
    anybody: other machines may reach it. (What a name or a short form such as
      '0' stands for, the socket says.)

  Raises:
    ValueError: it cannot, or other machines would reach it.
  """
  if not host.strip():
    raise ValueError(
      '--host is empty, which would be all addresses of this machine: give '
      'one, or leave it out.'
    )
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    listening = socket.create_server((host, port), family=family)
  except OSError as error:
    raise ValueError(
      f'--host={host} --port={port} cannot be listened on: {error}; choose '
      'another port.'
    ) from error
  if not anybody and not is_local(listening):
    listening.close()
    raise ValueError(
      f'--host={host} lets other machines in, and there is no API key: give '
      f'--api_key_file or {API_KEY}, or --allow_no_key.'
    )
  return listening


def is_local(listening: socket.socket) -> bool:
  """Returns whether this machine alone reaches a socket."""
  return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def load(model: str | None, workdir: str | None, config, *, which: str):
  """Returns the voice that is served, and a name for it."""
  if sum(given is not None for given in (model, workdir, config)) != 1:
    raise ValueError(
      'give one of the three: --model, a checkpoint; --workdir, a run; '
      '--config, whose start is served.'
    )
  if model is not None:
    speaker = converse.load(
      model,
      thinking=FLAGS.thinking,
      dtype=FLAGS.dtype,
      temperature=FLAGS.temperature,
      top_p=FLAGS.top_p,
      max_new_tokens=FLAGS.max_new_tokens,
      thinking_budget=FLAGS.thinking_budget,
    )
    name = os.path.basename(os.path.normpath(model))
    size = hf.model_config(model).vocab_size
    return voices.of_checkpoint(speaker, size), name
  given = [name for name in _OF_MODEL if FLAGS[name].present]
  if given:
    raise ValueError(
      f'--{given[0]} is of --model alone: the defaults of a policy are those '
      'of its config; leave it out.'
    )
  own, params = generate.policy(workdir, config, which=which)
  path = workdir or FLAGS['config'].config_filename.partition(':')[0]
  name = os.path.basename(os.path.normpath(path)).removesuffix('.py')
  return voices.of_policy(own, params), name


def with_rules(
  voice: voices.Voice, workdir: str | None, path: str, *, ours: bool = True
):
  """Returns the voice with its calibrated stop rules, where there are any.

  Args:
    voice: of the policy.
    workdir: its run folder, which may hold some.
    path: of other ones; 'none': no rules; '': those of the run folder.
    ours: the policy is a run's or a config's start, so that its rules know its
      weights and its budget. (A checkpoint may hold them in another dtype.)

  Raises:
    ValueError: a file that cannot be read, or rules of another policy or
      budget.
  """
  if not path and workdir is not None:
    found = os.path.join(workdir, stop_rules.NAME)
    path = found if os.path.exists(found) else ''
  if not path or path == 'none':
    return voice
  voice = dataclasses.replace(voice, rules=stop_rules.load(path))
  if ours:
    try:
      voice.rules.check(voice.defaults['thinking_budget'], voice.params)
    except ValueError as error:
      raise ValueError(
        f'{path}: {error} Or serve without them: --stop_rules=none.'
      ) from error
  if voice.head is not None:
    one = jnp.zeros((1,), jnp.int32)

    def features(params):
      cache = voice.model.init_cache(1, 1)
      tokens = one[None]
      return voice.model.features_fn(params, tokens, tokens, cache)[0]

    width = jax.eval_shape(features, voice.params)
    try:
      jax.eval_shape(stopping.progress_index, voice.head, width, one[None])
    except ValueError as error:
      raise ValueError(f'{path} is of another policy: {error}') from error
  return voice


def check_seconds(deadline: float, grace: float):
  """Raises ValueError for times that are none."""
  for name, value, allowed, fine in (
    ('deadline', deadline, 'above 0', deadline > 0),
    ('grace', grace, '0 or more', grace >= 0),
  ):
    if not fine or not math.isfinite(value):
      raise ValueError(
        f'--{name}={value:g} is given: take a number of seconds, {allowed}.'
      )


def row_length(voice: voices.Voice, asked: int | None) -> int:
  """Returns L, tokens of a row: a prompt, its response and its probes."""
  if asked is not None:
    least = voice.marks.probe_length + 2  # a prompt, a thought, an answer
    if asked < least:
      raise ValueError(
        f'--length={asked} is given, and a prompt, a thought and its answer '
        f'take {least} tokens or more: raise it.'
      )
    if voice.context is not None and asked > voice.context:
      raise ValueError(
        f'--length={asked} is given, and the model was made for '
        f'{voice.context:,} tokens: lower it.'
      )
    return asked
  if voice.context is not None:
    return min(voice.context, _LENGTH)
  # Half for the response, half for its prompt and probes.
  return 1 << (2 * voice.defaults['max_new_tokens'] - 1).bit_length()


def serve(voice: voices.Voice, name: str, key: str, listening: socket.socket):
  """Serves until a signal comes; raises ValueError where the engine is lost."""
  import uvicorn

  make = functools.partial(
    engine.Engine,
    voice.model,
    voice.params,
    voice.marks,
    rows=FLAGS.rows,
    length=row_length(voice, FLAGS.length),
    steps=FLAGS.steps,
    max_queue=FLAGS.max_queue,
    head=voice.head,
  )
  served = asgi.App(
    make,
    voice,
    name=name,
    api_key=key,
    local=is_local(listening),
    deadline=FLAGS.deadline,
    grace=FLAGS.grace,
  )
  served.engine.start(warm=FLAGS.warm)

  class Server(uvicorn.Server):
    """Tells the engine, too, that it ends."""

    def handle_exit(self, sig, frame):
      """Begins the end."""
      served.drain()
      super().handle_exit(sig, frame)

    async def on_tick(self, counter):
      """Returns whether it is time to end: an engine that is lost ends it."""
      return await super().on_tick(counter) or served.engine.broken

  server = Server(
    connections.config(served.asgi(), served.engine, grace=FLAGS.grace)
  )
  # uvicorn raises the signal again at its end, which is no failure.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  host, port = listening.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  print(
    f'{name}: http://{host}:{port}/v1, {FLAGS.rows} rows of '
    f'{served.engine.length:,} tokens'
    + ('' if key else ', without an API key'),
    flush=True,
  )
  server.run(sockets=[listening])
  if served.engine.broken:
    raise ValueError(
      'the engine failed and could not start afresh (see above): start the '
      'server again.'
    )


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config whose start serves.')
  flags.DEFINE_string('workdir', None, 'Run folder whose policy serves.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_string('model', None, 'Checkpoint to serve (meta_rl/hf).')
  flags.DEFINE_string(
    'stop_rules',
    '',
    'File or folder with calibrated stop rules (meta_rl/calibrate.py); by '
    'default those of --workdir; none: no rules.',
  )
  flags.DEFINE_string('name', '', 'Of the model, in requests; by the path.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
  flags.DEFINE_integer(
    'port', 8000, 'Port; 0: any that is free.', lower_bound=0, upper_bound=65535
  )
  flags.DEFINE_string('api_key_file', '', f'Of the key; or {API_KEY} has it.')
  flags.DEFINE_boolean(
    'allow_no_key', False, 'Other machines (--host) are let in without a key.'
  )
  of = functools.partial(flags.DEFINE_integer, lower_bound=1)
  of('rows', 16, 'Requests under way at once.')
  of('length', None, 'Tokens of a prompt, its response and probes, at most.')
  of('steps', 4, 'Decode steps between two looks at what waits.')
  of('max_queue', 256, 'Requests that wait at most.')
  flags.DEFINE_boolean(
    'warm', True, 'Compile for all lengths of prompts before the first request.'
  )
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0)
  number('deadline', 600.0, 'Seconds that a request may take.')
  number('grace', 10.0, 'Seconds for requests under way at the end.')
  # Of --model alone; requests may ask for something else.
  flags.DEFINE_string('thinking', '', "What ends a thought: 'r1' or 'plain'.")
  flags.DEFINE_integer(
    'thinking_budget',
    None,
    'Tokens of a thought; none: no limit.',
    lower_bound=0,
  )
  of('max_new_tokens', 512, 'Tokens of a thought and its answer.')
  number('temperature', 0.7, 'Of the sampling; 0 is greedy.')
  number('top_p', None, 'Sample from the likeliest; none: all.', upper_bound=1)
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_threefry_partitionable', True)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    try:
      import starlette  # noqa: F401
      import uvicorn  # noqa: F401
    except ImportError as error:
      raise ValueError(
        f'serving needs starlette and uvicorn ({error}): run pip install '
        "'meta-rl[serve]'"
      ) from error
    check_seconds(FLAGS.deadline, FLAGS.grace)
    key = api_key(FLAGS.api_key_file)
    anybody = bool(key) or FLAGS.allow_no_key
    with listen(FLAGS.host, FLAGS.port, anybody=anybody) as listening:
      voice, name = load(
        FLAGS.model, FLAGS.workdir, FLAGS.config, which=FLAGS.which
      )
      voice = with_rules(
        voice, FLAGS.workdir, FLAGS.stop_rules, ours=FLAGS.model is None
      )
      serve(voice, FLAGS.name or name, key, listening)
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  except jax.errors.JaxRuntimeError as error:
    line = ' '.join(str(error).split())[:300]
    print(
      f'error: the device failed: {line}; if its memory is short, lower --rows '
      'or --length',
      file=sys.stderr,
    )
    sys.exit(signals.EXIT_ERROR)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
