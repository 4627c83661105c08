"""Evaluation: accuracy against tokens and regret on held-out problems.

    python -m meta_rl.evaluate --workdir=DIR
    python -m meta_rl.evaluate --config=configs/mrt_countdown.py --base \\
      --workdir=DIR

Every trace is sampled once at the full thinking budget, and J is measured by
forced termination at each of its episode boundaries and at fixed token budgets.
The result is DIR/eval.json, which `meta_rl.report` draws.
"""

import contextlib
import functools
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checkpoint,
  checks,
  command_line,
  env,
  eval_figures,
  held_out,
  metrics,
  setup_run,
  setup_steps,
  signals,
  statistics,
  weights,
)
from meta_rl.answers import extract_boxed, maj_at_k, pass_at_k
from meta_rl.files import atomic_write, is_remote, made_folder

__all__ = [
  'evaluate',
  'extract_boxed',
  'maj_at_k',
  'pass_at_k',
]

FLAGS = flags.FLAGS


def several_samples(
  calls,
  params,
  source,
  key,
  *,
  kit,
  num_problems,
  samples,
  batch_size,
  stop_length=1,
  on_batch=None,
) -> dict[str, dict[str, float]]:
  """Returns pass@k and maj@k over `samples` traces of each problem.

  A trace votes for what the kit's `vote` takes its answer to be; right answers
  are one and the same, and an answer that is none votes for none. It begins
  behind the marker, or behind all `stop_length` tokens that the budget forced.
  """
  batches = held_out.problem_batches(
    source,
    record_arrays=kit.record_arrays,
    num_problems=num_problems,
    batch_size=batch_size,
    repeats=samples,
  )
  found = held_out.measure(calls, params, batches, key, on_batch=on_batch)
  right = found['rewards'].reshape(num_problems, samples) >= 1
  votes = []
  for i, reward in enumerate(found['rewards']):
    more = stop_length - 1 if found['forced'][i] else 0
    columns = slice(int(found['stop_index'][i]) + 1 + more, None)
    answer = found['tokens'][i][columns][found['token_mask'][i][columns]]
    votes.append('right' if reward >= 1 else kit.vote(answer.tolist()))
  votes = np.asarray(votes, object).reshape(num_problems, samples)
  sizes = [2**i for i in range(int(math.log2(samples)) + 1)]
  mean = lambda values: float(np.mean(list(values)))
  return {
    'pass@k': {
      str(k): mean(pass_at_k(samples, int(r.sum()), k) for r in right)
      for k in sizes
    },
    'maj@k': {
      str(k): mean(maj_at_k(list(v), k, 'right') for v in votes) for k in sizes
    },
  }


def evaluate(
  config,
  params,
  *,
  name: str,
  algorithm: str,
  num_problems: int = 2048,
  batch_size: int = 256,
  samples: int = 8,
  sample_problems: int = 128,
  seed: int = 1,
  extrapolate: Sequence[int] = (),
  extrapolate_problems: int = 256,
  base_params=None,
  compare_provers: int = 0,
  progress: Callable[[str, int, int], None] | None = None,
) -> dict:
  """Returns the content of `eval.json` for one policy on the test split.

  Beside the headline figures it holds

    stopping       chances and stops at each boundary, where the trace holds a
                   success (J above 0.5) and where it does not
                   (`eval_figures.stop_rates`)
    extrapolation  accuracy and regret at 1x and the factors of the thinking
                   budget, thinking kept going by budget forcing
                   (`eval_figures.extrapolation`); with `extrapolate` alone
    base_prover    accuracy and regret of the same traces when the frozen base
                   policy answers (`eval_figures.base_prover`); with
                   `base_params` alone
    prover         which prover measured J here and which one trains, and how
                   far exact and sampled J differ (`eval_figures.prover_gap`),
                   under 'gap'; that with `compare_provers` alone

  Args:
    config: an RL config: task, model, thinking budget, temperature.
    params: the policy.
    name, algorithm: for the report.
    num_problems: held-out problems, one trace each.
    batch_size: traces at a time.
    samples, sample_problems: traces a problem, and problems, of pass@k and
      maj@k.
    seed: of the sampling; the same for policies that are to be compared.
    extrapolate: multiples > 1 of the thinking budget, such as (2, 4).
    extrapolate_problems: how many of the problems these are measured on: traces
      of four times the length cost more than four times as much.
    base_params: of the policy that training started from.
    compare_provers: problems on which the exact prover is compared with one
      that samples `prover.num_branches` answers and asks the verifier; 0: none.
    progress: is told after each batch what is measured, how many traces of it
      are done, and of how many.
  """
  telling = lambda what: progress and functools.partial(progress, what)
  checks.check_count('compare_provers', compare_provers, low=0)
  check_factors(extrapolate, extrapolate_problems)
  kit = setup_run.task_kit(config)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  calls = held_out.make_calls(config, model, task)
  source = setup_run.load_problems(config, 'test')
  key = jax.random.key(seed)
  horizon = config.rollout.thinking_budget
  batches = held_out.problem_batches(
    source,
    record_arrays=kit.record_arrays,
    num_problems=num_problems,
    batch_size=batch_size,
  )
  found = held_out.measure(
    calls,
    params,
    batches,
    key,
    at_budgets=True,
    base_params=base_params,
    on_batch=telling('J along traces'),
  )
  clusters = cluster_ids(source, num_problems, kit.cluster_key)
  grid = list(range(horizon + 1))  # J is a step function: every token
  curve_args = found['success'], found['ends'], found['count']
  curves = statistics.success_at_budgets(*curve_args, budgets=grid)
  mean, low, high = statistics.bootstrap_curve(curves, clusters=clusters)
  regret_curve = statistics.regret_at_budgets(
    *curve_args, budgets=grid, horizon=horizon
  )
  total = regret_curve[:, -1]
  tokens = found['thinking_mask'].sum(1)
  cut = found['budget_ends'] - found['budget_ends'][:, :1]
  shares = held_out.episode_shares(found, config)
  more = {}
  if extrapolate:
    more['extrapolation'] = extrapolated(
      config,
      model,
      task,
      params,
      source,
      key,
      kit=kit,
      factors=extrapolate,
      num_problems=min(extrapolate_problems, num_problems),
      batch_size=batch_size,
      on_batch=telling('longer traces'),
    )
  kind = setup_steps.measuring_prover(config)
  prover = {'kind': kind, 'training': config.prover.kind}
  if compare_provers or kind == 'sampled':
    prover['branches'] = config.prover.num_branches
  if compare_provers:
    prover['gap'] = compared(
      calls,
      params,
      source,
      key,
      kind=kind,
      kit=kit,
      num_problems=min(compare_provers, num_problems),
      batch_size=batch_size,
      on_batch=telling('both provers'),
    )
  if base_params is not None:
    more['base_prover'] = eval_figures.base_prover(
      found['base_success'],
      found['ends'],
      found['count'],
      horizon=horizon,
      clusters=clusters,
      budgets=grid,
    )
  return {
    'name': name,
    'algorithm': algorithm,
    'num_problems': num_problems,
    'num_clusters': len(np.unique(clusters)),
    'horizon': horizon,
    'machine': env.machine_description(),
    'budgets': grid,
    'accuracy_at_budget': mean.tolist(),
    'tokens_at_budget': np.minimum(tokens[:, None], grid).mean(0).tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'regret_at_budget': regret_curve.mean(0).tolist(),
    'forced_at_budget': {
      'budgets': cut.max(0).tolist(),
      'accuracy': found['budget_success'].mean(0).tolist(),
    },
    'scalars': {
      'accuracy': eval_figures.interval(
        held_out.final_success(found), clusters
      ),
      'reward': eval_figures.interval(found['rewards'], clusters),
      'regret_token_weighted': eval_figures.interval(total, clusters),
      'regret_normalized': eval_figures.normalized(curves, clusters),
      'tokens_to_accuracy': eval_figures.tokens_to_levels(grid, mean),
      'tokens_mean': float(tokens.mean()),
      'forced_rate': float(found['forced'].mean()),
      **{k.removeprefix('eval/'): share for k, share in shares.items()},
      **several_samples(
        calls,
        params,
        source,
        jax.random.fold_in(key, 1),
        kit=kit,
        num_problems=min(sample_problems, num_problems),
        samples=samples,
        batch_size=batch_size,
        stop_length=len(task.stop_ids),
        on_batch=telling('pass@k'),
      ),
    },
    'per_problem': {
      'regret_token_weighted': total.tolist(),
      'accuracy': held_out.final_success(found).tolist(),
      'reward': found['rewards'].tolist(),
      'tokens': tokens.tolist(),
      'cluster': clusters.tolist(),
    },
    'stopping': eval_figures.stop_rates(
      found['success'], found['count'], found['forced']
    ),
    'prover': prover,
    **more,
    'traces': [
      held_out.describe(found, i, kit.decode)
      for i in range(min(12, num_problems))
    ],
  }


def check_factors(factors: Sequence[int], num_problems: int):
  """Raises ValueError unless the factors are integers above 1, of problems."""
  if not all(isinstance(f, int) and f > 1 for f in factors):
    raise ValueError(
      f'extrapolate={tuple(factors)} is given; allowed are integers above 1, '
      'multiples of the thinking budget.'
    )
  if factors and num_problems < 1:
    raise ValueError(
      f'extrapolate_problems={num_problems} is given; allowed is >= 1, or no '
      'extrapolate.'
    )


def extrapolated(
  config,
  model,
  task,
  params,
  source,
  key,
  *,
  kit,
  factors,
  num_problems,
  batch_size,
  on_batch=None,
) -> dict:
  """Returns `eval_figures.extrapolation` of freshly sampled, kept traces."""
  calls = held_out.make_calls(config, model, task, factor=max(factors))
  batches = held_out.problem_batches(
    source,
    record_arrays=kit.record_arrays,
    num_problems=num_problems,
    batch_size=min(batch_size, num_problems),
  )
  return eval_figures.extrapolation(
    held_out.measure(calls, params, batches, key, on_batch=on_batch),
    horizon=config.rollout.thinking_budget,
    factors=factors,
    clusters=cluster_ids(source, num_problems, kit.cluster_key),
  )


def compared(
  calls,
  params,
  source,
  key,
  *,
  kit,
  num_problems,
  batch_size,
  kind='exact',
  on_batch=None,
) -> dict:
  """Returns `eval_figures.prover_gap` of the first problems.

  Raises:
    ValueError: none of them lists an answer, so that exact J is 0 throughout.
  """
  batches = held_out.problem_batches(
    source,
    record_arrays=kit.record_arrays,
    num_problems=num_problems,
    batch_size=min(batch_size, num_problems),
  )
  if not any(batch['answer_mask'].any() for batch in batches):
    raise ValueError(
      f'compare_provers={num_problems}: none of these problems lists an '
      'accepted answer, so there is no exact prover to compare; give 0.'
    )
  # Answers of a key of their own; the traces are those of the headline.
  found = held_out.measure(
    calls,
    params,
    batches,
    key,
    other_key=jax.random.fold_in(key, 2),
    on_batch=on_batch,
  )
  provers = found['success'], found['other_success']
  if kind == 'sampled':
    provers = provers[::-1]
  return eval_figures.prover_gap(
    *provers,
    found['count'],
    clusters=cluster_ids(source, num_problems, kit.cluster_key),
  )


def cluster_ids(source, num_problems: int, cluster_key: Callable) -> np.ndarray:
  """Returns i[N], one id for all prompts of one and the same problem.

  The id is a hash of `cluster_key`, so that equal ids in two evaluations mean
  equal problems: the report pairs evaluations by them.

  Args:
    source: records of `TaskKit.load_source`.
    num_problems: N, of the first.
    cluster_key: of the task's `TaskKit`.
  """
  keys = (cluster_key(source[i]) for i in range(num_problems))
  return np.asarray([zlib.crc32(key.encode()) for key in keys])


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
