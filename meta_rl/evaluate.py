"""Evaluation: accuracy against tokens and regret on held-out problems.

    python -m meta_rl.evaluate --workdir=DIR
    python -m meta_rl.evaluate --config=configs/mrt_countdown.py --base \\
      --workdir=DIR

The result is DIR/eval.json, which `meta_rl.report` draws; what it holds is said
at `meta_rl.evaluation.evaluate`.
"""

import contextlib
import json
import os
import sys
import time

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checkpoint,
  command_line,
  env,
  metrics,
  setup_run,
  signals,
  weights,
)
from meta_rl.answers import extract_boxed, maj_at_k, pass_at_k
from meta_rl.evaluation import check_factors, evaluate
from meta_rl.files import atomic_write, is_remote, made_folder

# With what evaluations are made of, where one looks for it.
__all__ = [
  'evaluate',
  'extract_boxed',
  'maj_at_k',
  'pass_at_k',
]

FLAGS = flags.FLAGS


def training_tokens(folder: str) -> float:
  """Returns the response tokens that a run has sampled in training."""
  return metrics.total(folder, 'rollout/tokens_sum')


class Progress:
  """Says on stderr how far an evaluation is, at most a line every 15 s."""

  def __init__(self, every_s: float = 15.0):
    self._every_s, self._start = every_s, time.monotonic()
    self._last = self._start

  def __call__(self, what: str, done: int, total: int):
    now = time.monotonic()
    if now - self._last < self._every_s:
      return
    self._last = now
    print(
      f'evaluate: {what}, {done} of {total} traces, {now - self._start:.0f} s',
      file=sys.stderr,
      flush=True,
    )


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of --base.')
  flags.DEFINE_string('workdir', None, 'Run folder; eval.json goes there.')
  flags.DEFINE_boolean('base', False, 'Evaluate what --config starts from.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_integer('num_problems', 2048, 'Held-out problems.')
  flags.DEFINE_integer('batch_size', 256, 'Traces at a time.')
  flags.DEFINE_integer(
    'samples', 8, 'Traces a problem of pass@k and maj@k.', lower_bound=1
  )
  flags.DEFINE_integer(
    'sample_problems', 128, 'Problems of pass@k and maj@k.', lower_bound=1
  )
  flags.DEFINE_string('name', '', 'Name in the report.')
  flags.DEFINE_list(
    'extrapolate', [], 'Multiples of the thinking budget to think for: 2,4.'
  )
  flags.DEFINE_integer(
    'extrapolate_problems', 256, 'Held-out problems of --extrapolate.'
  )
  flags.DEFINE_boolean(
    'base_prover', False, 'Measure J also with the policy that it started from.'
  )
  flags.DEFINE_integer(
    'compare_provers',
    0,
    'Problems on which exact J is compared with sampled, verified answers.',
    lower_bound=0,
  )
  flags.mark_flag_as_required('workdir')


def policy(folder: str, config, *, base: bool, which: str):
  """Returns (config, params) of a run folder, or of a config's own start."""
  if base:
    if config is None:
      raise ValueError('--base needs --config: it names what to start from.')
    check_config.check(config)
    return config, setup_run.initial_params(config)
  if config is not None:
    raise ValueError(
      '--config is of --base alone: a run is evaluated with the config that it '
      'recorded; leave it out, or add --base.'
    )
  config = command_line.run_config(folder, hint=', or give --config and --base')
  like = setup_run.abstract_params(config)
  return config, weights.init_from(f'{folder}@{which}', like)


@contextlib.contextmanager
def result_folder(path: str):
  """Makes the folder of a result; an error takes it away if it made it.

  Raises:
    ValueError: it is a file.
  """
  if is_remote(path):
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(made_folder(path))
    except (FileExistsError, NotADirectoryError):
      raise ValueError(
        f'workdir {path} is a file, or lies under one: name a folder.'
      ) from None
    yield


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  env.enable_compile_cache()
  try:
    config, params = policy(
      FLAGS.workdir, FLAGS.config, base=FLAGS.base, which=FLAGS.which
    )
    source = setup_run.load_problems(config, 'test')
    if not all(factor.isdecimal() for factor in FLAGS.extrapolate):
      raise ValueError(
        f'--extrapolate={",".join(FLAGS.extrapolate)}: give integers, as 2,4.'
      )
    factors = [int(factor) for factor in FLAGS.extrapolate]
    check_factors(factors, FLAGS.extrapolate_problems)
    with result_folder(FLAGS.workdir):
      frozen = setup_run.initial_params(config) if FLAGS.base_prover else None
      result = evaluate(
        config,
        params,
        name=FLAGS.name or ('base' if FLAGS.base else config.name),
        algorithm='base' if FLAGS.base else config.name.lower(),
        num_problems=min(FLAGS.num_problems, len(source)),
        batch_size=FLAGS.batch_size,
        samples=FLAGS.samples,
        sample_problems=FLAGS.sample_problems,
        extrapolate=factors,
        extrapolate_problems=FLAGS.extrapolate_problems,
        base_params=frozen,
        compare_provers=FLAGS.compare_provers,
        progress=Progress(),
      )
      if not FLAGS.base:
        result['training_tokens'] = training_tokens(FLAGS.workdir)
      path = os.path.join(FLAGS.workdir, 'eval.json')
      atomic_write(path, json.dumps(result).encode())
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  scalars = result['scalars']
  headline = scalars['regret_token_weighted']
  print(
    f'{result["name"]}: {result["num_problems"]} problems, accuracy '
    f'{scalars["accuracy"]["mean"]:.3f}, regret {headline["mean"]:.4f} '
    f'[{headline["low"]:.4f}, {headline["high"]:.4f}], '
    f'{scalars["tokens_mean"]:.1f} thinking tokens, '
    f'{result.get("training_tokens", 0):,.0f} tokens sampled in training; '
    f'written to {path}'
  )


if __name__ == '__main__':
  env.check_versions()
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
