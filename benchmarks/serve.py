"""A server under load: what it gives a second, and whether it mixes answers up.

    pip install 'meta-rl[serve]'
    python benchmarks/serve.py [--config=mrt_countdown] [--clients=64]
      [--requests=10000] [--rows=64] [--json=serve.json]

Starts `python -m meta_rl.serve` as a process of its own and asks it from
`--clients` connections at once, each a request behind the other, as streams.
Each of `--problems` prompts, with a seed of its own, has one right response; it
is decoded offline before, and asked for again and again in turn. A response
that is another one's is counted as mixed up, one that does not come as lost. (A
sum in another order may turn a draw that is nearly a tie: where the two tokens
at the first difference are within 1e-3 of each other, noise of the draw
included, it is counted as a tie.)

Prints requests and tokens a second, the time to the first token and between
tokens (p50, p99, largest), lost, mixed up and ties.
"""

import asyncio
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from meta_rl import env, generate, rollout, sampling
from meta_rl.scoring import positions_of
from meta_rl.serving import voices

FLAGS = flags.FLAGS
_TIE = 1e-3
_BATCH = 250


def problems(count: int) -> list[str]:
  """Returns prompts of Countdown, all different in their order of numbers."""
  rng = np.random.default_rng(0)
  found = {}
  while len(found) < count:
    *numbers, target = rng.integers(1, 15, 4)
    words = ' '.join(map(str, numbers))
    found[f'<bos> {words} = {target} <think>'] = None
  return list(found)


def offline(voice, prompts: list[str]) -> list[list[int]]:
  """Returns the response of each prompt, its index the seed."""
  ids = [voices.encode(voice, prompt) for prompt in prompts]
  width = max(map(len, ids))
  tokens = np.zeros((len(ids), width), np.int32)
  mask = np.zeros((len(ids), width), bool)
  for row, one in enumerate(ids):
    tokens[row, width - len(one) :], mask[row, width - len(one) :] = one, True

  @jax.jit
  def decode(params, tokens, mask, seeds):
    # A prompt and a seed at a time, as a server has them.
    return jax.lax.map(
      lambda one: _alone(voice, params, *one),
      (tokens, mask, seeds),
      batch_size=_BATCH,
    )

  seeds = np.arange(len(ids), dtype=np.uint32)
  found, real = jax.device_get(decode(voice.params, tokens, mask, seeds))
  return [row[keep].tolist() for row, keep in zip(found, real)]


def _alone(voice, params, tokens, mask, seed):
  """Returns the response columns of one prompt, and which are real."""
  traces = rollout.generate(
    voice.model,
    params,
    tokens[None],
    mask[None],
    jax.random.key(seed),
    **_options(voice),
  )
  width = len(tokens)
  return traces.tokens[0, width:], traces.token_mask[0, width:]


def _options(voice) -> dict:
  marks, given = voice.marks, voice.defaults
  return {
    'max_new_tokens': given['max_new_tokens'],
    'eos_id': marks.end_ids[0],
    'temperature': given['temperature'],
    'think_end_id': marks.think_end_id,
    'thinking_budget': given['thinking_budget'],
    'stop_ids': marks.stop_ids,
  }


def is_tie(voice, prompt: str, seed: int, ours: list[int], theirs: list[int]):
  """Returns whether two responses part where two tokens were nearly level."""
  place = next(
    (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None
  )
  if place is None:
    return False
  ids = [*voices.encode(voice, prompt), *ours[:place]]
  tokens = jnp.asarray([ids])
  logits, _ = voice.model.apply_fn(
    voice.params, tokens, positions_of(jnp.ones(tokens.shape, bool)), None
  )
  logits = logits[0, -1] / (voice.defaults['temperature'] or 1)
  row = jnp.zeros(1, jnp.int32)
  key = sampling.row_keys(jax.random.key(seed), row, place)[0]
  level = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
  return bool(abs(level[ours[place]] - level[theirs[place]]) < _TIE)


async def ask(port: int, name: str, prompt: str, seed: int) -> dict:
  """Returns the text of a response and when its pieces came."""
  body = json.dumps(
    {'model': name, 'prompt': prompt, 'seed': seed, 'stream': True}
  ).encode()
  began = time.perf_counter()
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  try:
    writer.write(
      b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
      b'Connection: close\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body)
    )
    status = int((await reader.readline()).split()[1])
    times, text, done = [], [], False
    async for line in reader:
      if not line.startswith(b'data: '):
        continue
      if line.startswith(b'data: [DONE]'):
        done = True
        break
      times.append(time.perf_counter())
      text.append(json.loads(line[6:])['choices'][0]['text'])
    return {
      'ok': status == 200 and done,
      'text': ''.join(text),
      'first_s': times[0] - began if times else None,
      'between_s': np.diff(times).tolist(),
    }
  finally:
    writer.close()


async def load(port: int, name: str, prompts: list[str]) -> list[dict]:
  """Returns what came to each prompt, from several clients at once."""
  found, left = [None] * len(prompts), iter(enumerate(prompts))

  async def client():
    for index, prompt in left:
      try:
        found[index] = await ask(port, name, prompt, index % FLAGS.problems)
      except (OSError, ValueError, IndexError, KeyError) as error:
        found[index] = {'ok': False, 'error': repr(error)}

  await asyncio.gather(*(client() for _ in range(FLAGS.clients)))
  return found


def start() -> tuple[subprocess.Popen, int, str]:
  """Returns the server's process, its port and the name of its model."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'meta_rl.serve', '--port=0'),
      f'--config={FLAGS.config}',
      f'--rows={FLAGS.rows}',
      f'--steps={FLAGS.steps}',
      f'--length={FLAGS.length}',
      f'--max_queue={2 * FLAGS.clients}',
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  line = process.stdout.readline()
  if not line:
    raise SystemExit('the server did not start')
  name, _, rest = line.partition(': http://127.0.0.1:')
  return process, int(rest.partition('/')[0]), name


def quantiles(seconds: list[float]) -> dict:
  """Returns milliseconds."""
  p50, p99 = np.quantile(seconds, (0.5, 0.99)) * 1e3
  return {'p50_ms': p50, 'p99_ms': p99, 'largest_ms': max(seconds) * 1e3}


def measure(config) -> dict:
  """Returns all figures."""
  _, params = generate.policy(None, config, which='last')
  voice = voices.of_policy(config, params)
  different = problems(FLAGS.problems)
  expected = offline(voice, different)
  repeats = -(-FLAGS.requests // FLAGS.problems)
  prompts = (different * repeats)[: FLAGS.requests]
  expected = (expected * repeats)[: FLAGS.requests]
  process, port, name = start()
  try:
    asyncio.run(load(port, name, prompts[: 2 * FLAGS.clients]))  # not counted
    began = time.perf_counter()
    found = asyncio.run(load(port, name, prompts))
    seconds = time.perf_counter() - began
  finally:
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    process.stdout.close()
  ends = voice.marks.end_ids
  words = {voice.decode([index]): index for index in range(voice.vocab_size)}
  lost = [one for one in found if not one['ok']]
  mixed = ties = tokens = 0
  for index, (one, ids) in enumerate(zip(found, expected)):
    said = [i for i in ids if i not in ends]
    if not one['ok']:
      continue
    theirs = [words[word] for word in one['text'].split()]
    tokens += len(theirs)
    if theirs != said:
      seed = index % FLAGS.problems
      tie = is_tie(voice, prompts[index], seed, ids, [*theirs, *ends[:1]])
      ties, mixed = ties + tie, mixed + (not tie)
  between = [gap for one in found for gap in one.get('between_s', ())]
  firsts = [one['first_s'] for one in found if one.get('first_s')]
  return {
    'machine': env.machine_description(),
    'config': FLAGS.config,
    'clients': FLAGS.clients,
    'rows': FLAGS.rows,
    'steps': FLAGS.steps,
    'requests': len(found),
    'seconds': seconds,
    'requests_per_s': len(found) / seconds,
    'tokens_per_s': tokens / seconds,
    'first_token': quantiles(firsts),
    'between_tokens': quantiles(between),
    'lost': len(lost),
    'mixed_up': mixed,
    'ties': ties,
    'exit_code': code,
  }


def main(argv):
  """Runs the benchmark and prints a line a figure."""
  del argv
  jax.config.update('jax_threefry_partitionable', True)
  env.enable_compile_cache()
  config = FLAGS.config
  path = env.resolve_config(config).partition(':')
  namespace = {}
  exec(pathlib.Path(path[0]).read_text('utf-8'), namespace)
  found = measure(namespace['get_config'](path[2]))
  for name, value in found.items():
    print(f'{name:<16} {json.dumps(value)}')
  if FLAGS.json:
    pathlib.Path(FLAGS.json).write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
  env.check_versions()
  flags.DEFINE_string('config', 'mrt_countdown', 'Whose start is served.')
  flags.DEFINE_integer('clients', 64, 'Requests at once.', lower_bound=1)
  flags.DEFINE_integer('requests', 10_000, 'In all.', lower_bound=1)
  flags.DEFINE_integer('problems', 1000, 'Different ones.', lower_bound=1)
  flags.DEFINE_integer('rows', 64, 'Of the server.', lower_bound=1)
  flags.DEFINE_integer('steps', 4, 'Of the server.', lower_bound=1)
  flags.DEFINE_integer('length', 128, 'Of the server.', lower_bound=1)
  flags.DEFINE_string('json', '', 'File for the figures.')
  app.run(main)
