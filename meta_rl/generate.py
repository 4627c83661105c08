"""Traces of a policy: printed, and as a JSONL file with their log-probs.

    python -m meta_rl.generate --workdir=DIR --num_prompts=2
    python -m meta_rl.generate --config=mrt_countdown --out=rollouts.jsonl \\
      --num_prompts=480 --group_size=8

With `--model=PATH` it talks with a checkpoint instead (meta_rl/converse.py).

The policy is a run's (`--workdir`), or what a config starts from (`--config`,
its `init_from`: a shipped asset, a file, a run). What a row of the file holds
is said in meta_rl/external/rows.py; `config.rollout.source = 'jsonl:FILE'`
trains on it.
"""

import json
import sys
from collections.abc import Iterator

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checkpoint,
  checks,
  command_line,
  converse,
  external,
  files,
  heap,
  held_out,
  setup_run,
  setup_steps,
  signals,
  weights,
)
from meta_rl.compiled import CountedJit

FLAGS = flags.FLAGS
# Flags of talking with a checkpoint, and of sampling a policy's traces.
_OF_MODEL = (
  'prompt',
  'system',
  'thinking',
  'thinking_budget',
  'max_new_tokens',
  'temperature',
  'top_p',
  'top_k',
  'dtype',
)
_OF_POLICY = (
  'config',
  'workdir',
  'which',
  'out',
  'num_prompts',
  'group_size',
  'split',
  'batch_size',
  'show',
)


def sample(
  config,
  params,
  *,
  num_prompts: int,
  group_size: int,
  split: str = 'train',
  batch_size: int = 64,
  seed: int = 0,
) -> Iterator[dict]:
  """Yields the rows of `external.rows_of`, the traces of a prompt together.

  Trace b draws from `fold_in(key, b)`, whatever the size of the batches.

  Args:
    config: task, model, thinking budget, temperature, top-p and top-k.
    params: the policy.
    num_prompts: the first ones of the split.
    group_size: traces a prompt.
    split: of the task's problems.
    batch_size: prompts at a time.
    seed: of the sampling.

  Raises:
    ValueError: a size out of range, or an unknown split.
  """
  checks.check_count('group_size', group_size)
  checks.check_count('batch_size', batch_size)
  checks.check_range('seed', seed, **checks.SEEDS)
  source = setup_run.load_problems(config, split)
  if not 1 <= num_prompts <= len(source):
    raise ValueError(
      f'num_prompts={num_prompts} is given; the split {split!r} has '
      f'1..{len(source)}.'
    )
  ungauged = config.copy_and_resolve_references()
  ungauged.unlock()
  ungauged.prover.kind = 'none'  # the answers are graded, J is not measured
  kit, task = setup_run.task_kit(config), setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  generate, prove = map(
    CountedJit,
    setup_steps.make_calls(ungauged, model, task, group_size=group_size),
  )
  key = jax.random.key(seed)
  batches = held_out.problem_batches(
    source,
    record_arrays=kit.record_arrays,
    num_problems=num_prompts,
    batch_size=min(batch_size, num_prompts),
  )
  for index, batch in enumerate(batches):
    counts = np.repeat(batch.pop('counts'), group_size)
    offset = index * len(batch.pop('problem')) * group_size
    traces, cache = generate(params, batch, key, offset)
    found = prove(params, batch, traces, cache, key)
    del cache
    traces, rewards = jax.device_get((traces, found.rewards))
    rows = external.rows_of(
      jax.tree.map(lambda x: x[counts], traces),  # noqa: B023 (used at once)
      prompt_length=batch['prompts'].shape[1],
      rewards=rewards[counts],
      decode=kit.decode,
    )
    yield from rows


def policy(folder: str | None, config, *, which: str):
  """Returns (config, params): of a run folder, or what a config starts from."""
  if (folder is None) == (config is None):
    raise ValueError(
      'give one of the three: --workdir, a run whose policy samples; --config, '
      'which says what to start from; --model, a checkpoint to talk to.'
    )
  if folder is None:
    check_config.check(config)
    return config, setup_run.initial_params(config)
  config = command_line.run_config(folder)
  like = setup_run.abstract_params(config)
  return config, weights.init_from(f'{folder}@{which}', like)


def show(row: dict) -> str:
  """Returns a trace as it is printed."""
  prompt, response = map(
    command_line.printable, (row['prompt'], row['response'])
  )
  return f'{prompt}\n  {response}\n  reward {row["reward"]:g}'


def summary(rows: list[dict], out: str | None) -> str:
  """Returns the line that a run of the command ends with."""
  prompts = len({tuple(row['prompt_ids']) for row in rows})
  reward = np.mean([row['reward'] for row in rows])
  tokens = np.mean([len(row['response_ids']) for row in rows])
  where = f'; written to {out}' if out else ''
  return (
    f'{len(rows)} traces of {prompts} prompts, mean reward {reward:.3f}, '
    f'{tokens:.1f} tokens a response{where}'
  )


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file(
    'config', None, 'Config whose start samples; no run folder is needed.'
  )
  flags.DEFINE_string('workdir', None, 'Run folder whose policy samples.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_string('out', None, 'JSONL file to write; none: only print.')
  flags.DEFINE_integer('num_prompts', 4, 'Prompts, the first of the split.')
  flags.DEFINE_integer(
    'group_size', None, "Traces a prompt; default the config's."
  )
  flags.DEFINE_string('split', 'train', 'train, validation or test.')
  flags.DEFINE_integer('batch_size', 64, 'Prompts at a time.')
  flags.DEFINE_integer('seed', 0, 'Of the sampling.')
  flags.DEFINE_integer('show', 4, 'Traces to print.')
  # Of --model alone.
  flags.DEFINE_string('model', None, 'Checkpoint to talk to (meta_rl/hf).')
  flags.DEFINE_string('prompt', '', 'Answer this alone, and leave.')
  flags.DEFINE_string('system', '', 'Text of a system turn.')
  flags.DEFINE_string(
    'thinking',
    '',
    "What ends a thought: 'r1' (</think>) or 'plain' (####); default by the "
    'model.',
  )
  flags.DEFINE_integer(
    'thinking_budget',
    None,
    'Tokens of a thought, at most; none: no limit.',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'max_new_tokens',
    512,
    'Tokens of a thought and its answer, at most.',
    lower_bound=1,
  )
  flags.DEFINE_float(
    'temperature', 0.7, 'Of the sampling; 0 is greedy.', lower_bound=0.0
  )
  flags.DEFINE_float(
    'top_p',
    None,
    'Sample from the likeliest tokens that hold this much; none: from all.',
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_integer(
    'top_k', None, 'Sample from so many tokens; none: all.', lower_bound=1
  )
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )


def check_flags():
  """Raises ValueError for flags of the other of the command's two uses."""
  given = [name for name in _OF_MODEL if FLAGS[name].present]
  if given and not FLAGS.model:
    raise ValueError(
      f'--{given[0]} is of --model alone: a policy samples as its config says; '
      'leave it out, or give --model=PATH.'
    )
  given = [name for name in _OF_POLICY if FLAGS[name].present]
  if given and FLAGS.model:
    raise ValueError(
      f'--{given[0]} is of --workdir or --config, and --model={FLAGS.model} is '
      'given: leave one of them out.'
    )


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_threefry_partitionable', True)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    check_flags()
    if FLAGS.model:
      converse.converse(
        converse.load(
          FLAGS.model,
          thinking=FLAGS.thinking,
          dtype=FLAGS.dtype,
          temperature=FLAGS.temperature,
          top_p=FLAGS.top_p,
          top_k=FLAGS.top_k,
          max_new_tokens=FLAGS.max_new_tokens,
          thinking_budget=FLAGS.thinking_budget,
        ),
        prompt=FLAGS.prompt,
        system=FLAGS.system,
        seed=FLAGS.seed,
      )
      return
    if FLAGS.out:
      files.check_output('--out', FLAGS.out)
    config, params = policy(FLAGS.workdir, FLAGS.config, which=FLAGS.which)
    size = FLAGS.group_size
    rows = []
    for row in sample(
      config,
      params,
      num_prompts=FLAGS.num_prompts,
      group_size=config.rollout.group_size if size is None else size,
      split=FLAGS.split,
      batch_size=FLAGS.batch_size,
      seed=FLAGS.seed,
    ):
      if len(rows) < FLAGS.show:
        print(show(row))
      rows.append(row)
    if FLAGS.out:
      lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
      files.atomic_write(FLAGS.out, ''.join(lines).encode())
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  print(summary(rows, FLAGS.out))


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
