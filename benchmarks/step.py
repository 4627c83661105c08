"""Where the time of a training step goes, beside the machine's own limits.

    python benchmarks/step.py [--config=configs/mrt_countdown.py] [--pairs=5]
      [--growth=AXES] [--json=step.json]

Prints, as medians over pairs that alternate A B A B in one run:
  - the matrix-multiply rate at the model's own shapes, and memory bandwidth;
  - generate, prove and update: seconds, tokens/s, and for the update its rate
    against the matrix-multiply rate;
  - the exact prover's share of a step, at the task's own answers, at a mean of
    2 and at 8 answers a problem;
  - a whole MRT step beside a GRPO step on the same rollouts: the first also
    proves, the second only grades; with the task's own answers, and at a mean
    of 2;
  - exact against sampled prover (8 branches) on the same traces: seconds and
    difference in units of its Monte Carlo error;
  - peak memory.

With --growth=all, or some of batch, length, episodes, branches and parameters,
it prints instead how a step grows with each (benchmarks/growth.py).
"""

import json
import resource
import statistics
import sys

import figures
import growth
import jax
import jax.numpy as jnp
import limits
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  check_config,
  data,
  env,
  heap,
  models,
  setup_run,
  steps,
  train_calls,
  update,
)

FLAGS = flags.FLAGS


def alternate(calls: dict, pairs: int) -> dict[str, list[float]]:
  """Returns the seconds of each call, run in turn after a warm-up."""
  for fn in calls.values():
    jax.block_until_ready(fn())
  times = {name: [] for name in calls}
  for _ in range(pairs):
    for name, fn in calls.items():
      times[name].append(limits.seconds(fn))
  return times


def update_flops(config, params, token_mask, buckets, rows: int) -> dict:
  """Returns the FLOPs of forward and backward, of real and processed tokens.

  6 N_matmul a token, and 12 L H E a token and key it may see (causal). Of
  'processed' tokens: columns that the program computes, padding included, with
  the same causal count.
  """
  shape = models.config_from_dict(config.model.to_dict())
  matmul = models.num_params(params)
  per_key = 12 * shape.num_layers * shape.num_heads * shape.dim
  lengths = np.asarray(update.row_lengths(token_mask))
  real = np.asarray(token_mask.sum(1))
  whole = token_mask.shape[1]
  ordered = []
  parts = config.batching.mini_batches
  for part in np.sort(lengths.reshape(parts, -1), axis=1):
    for micro in part.reshape(-1, rows):
      fits = [n for n in (*sorted(buckets), whole) if n >= micro.max()]
      ordered += [fits[0]] * rows
  cost = lambda n: (6 * matmul * n + per_key * n * (n + 1) / 2).sum()
  return {
    'useful': float(cost(real)),
    'processed': float(cost(np.asarray(ordered))),
    'tokens': int(real.sum()),
  }


def with_answers(batch: dict, mean: int, width: int) -> dict:
  """Returns the batch with exactly `mean` answer rows a problem.

  Rows beyond a problem's own answers are these again with another first token:
  they share nothing, and cost as much as any.
  """
  own, mask = np.asarray(batch['answers']), np.asarray(batch['answer_mask'])
  number = np.maximum(mask[:, :, 0].sum(1, keepdims=True), 1)
  index = np.arange(width)
  take = lambda x: np.take_along_axis(x, (index % number)[..., None], 1)
  answers, listed = take(own), index < mean
  first = (answers[:, :, 0] + index // number) % (own.max() + 1)
  answers[:, :, 0] = first
  return batch | {
    'answers': jnp.asarray(answers),
    'answer_mask': jnp.asarray(take(mask) & listed[None, :, None]),
  }


def run(config, pairs: int) -> dict:
  """Returns every figure of this benchmark as one dict."""
  check_config.check(config)
  name, kl_coef = config.algorithm.name, config.loss.kl_coef
  if name in ('prefix', 'ppo', 'sft') or kl_coef:
    raise ValueError(
      f'algorithm.name={name!r} with loss.kl_coef={kl_coef}: what is timed is '
      'a step of generate, prove and update, without a prefix, a critic or a '
      'reference; take the config of another algorithm, and kl_coef=0.'
    )
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  params = setup_run.initial_params(config)
  optimizer = setup_run.make_optimizer(config)
  state = update.TrainState(
    params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(0)
  )
  problems = data.problem_iterator(
    setup_run.load_problems(config, 'train'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    batch_size=config.rollout.num_prompts,
  )
  batch = jax.tree.map(jnp.asarray, next(problems))
  group = config.rollout.group_size
  calls = train_calls.make_parallel(config, model, task, optimizer)
  key = jax.random.key(1)
  traces, cache = calls.generate(params, batch, key)
  measured = calls.prove(params, batch, traces, cache, key)
  rows = config.rollout.num_prompts * group
  rows //= config.batching.mini_batches * config.batching.micro_batches
  shape = models.config_from_dict(config.model.to_dict())
  processed = rows * traces.tokens.shape[1]
  bare = limits.matmuls(shape, processed, 8 * pairs, backward=True)
  machine = {
    'matmul_gflops': bare['gflops'],
    'read_gb_s': limits.bandwidth(pairs),
  }

  make = lambda kind: jax.jit(
    steps.make_prove(
      model,
      task,
      group_size=group,
      max_episodes=config.prover.max_episodes,
      kind=kind,
      num_branches=8,
    )
  )
  exact, sampled, grade = make('exact'), make('sampled'), make('none')
  two, eight = with_answers(batch, 2, 2), with_answers(batch, 8, 8)
  box = [calls.put_state(state)]

  def update_once():
    # The state is donated: each call trains on from where the last one was.
    box[0], found = calls.update(box[0], traces, measured, None)
    return found

  outcome = outcome_config(config)
  grpo = train_calls.make_parallel(outcome, model, task, optimizer)
  other = [grpo.put_state(state)]

  def mrt_step(prove, problems):
    found, cache = calls.generate(params, batch, key)
    proved = prove(params, problems, found, cache, key)
    box[0], metrics = calls.update(box[0], found, proved, None)
    return metrics

  def grpo_step():
    found, cache = calls.generate(params, batch, key)
    graded = grade(params, batch, found, cache, key)
    other[0], metrics = grpo.update(other[0], found, graded, None)
    return metrics

  timed = {
    'GRPO step': grpo_step,
    'MRT step': lambda: mrt_step(calls.prove, batch),
    'MRT step, 2 answers': lambda: mrt_step(exact, two),
    'generate': lambda: calls.generate(params, batch, key),
    'prove': lambda: calls.prove(params, batch, traces, cache, key),
    'update': update_once,
    'prove, 2 answers': lambda: exact(params, two, traces, cache, key),
    'prove, 8 answers': lambda: exact(params, eight, traces, cache, key),
    'sampled, 8 branches': lambda: sampled(params, batch, traces, cache, key),
  }
  times = alternate(timed, pairs)
  median = {k: statistics.median(v) for k, v in times.items()}
  flops = update_flops(
    config, params, traces.token_mask, config.batching.length_buckets, rows
  )
  rest = median['generate'] + median['update']
  share = lambda name: median[name] / (median[name] + rest)
  rate = flops['processed'] / median['update'] / 1e9
  return {
    'machine': env.machine_description(),
    'limits': machine,
    'seconds': median,
    'spread': {k: [min(v), max(v)] for k, v in times.items()},
    'generate_tokens_s': float(traces.mask.sum()) / median['generate'],
    'update_tokens_s': flops['tokens'] / median['update'],
    'update_gflops': rate,
    'update_share_of_matmul': rate / machine['matmul_gflops'],
    'update_useful_share_of_matmul': flops['useful']
    / median['update']
    / 1e9
    / machine['matmul_gflops'],
    'prover_share': {
      'own answers': share('prove'),
      '2 answers': share('prove, 2 answers'),
      '8 answers': share('prove, 8 answers'),
    },
    'mrt_over_grpo': {
      'own answers': median['MRT step'] / median['GRPO step'],
      '2 answers': median['MRT step, 2 answers'] / median['GRPO step'],
    },
    'answers_mean': float(batch['answer_mask'][:, :, 0].sum(1).mean()),
    'sampled_over_exact': median['sampled, 8 branches'] / median['prove'],
    'sampled_over_exact_2_answers': median['sampled, 8 branches']
    / median['prove, 2 answers'],
    'exact_minus_sampled': compare(
      measured, sampled(params, batch, traces, cache, key)
    ),
    'peak_memory_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
  }


def outcome_config(config):
  """Returns the config as GRPO's: an advantage a trace, of its outcome."""
  config = ml_collections.ConfigDict(config.to_dict())
  config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
  config.loss.aggregate = 'sequence_mean'
  return config


def compare(exact, sampled) -> dict[str, float]:
  """Returns the mean difference of J and its Monte Carlo standard error.

  Over real boundaries; branches are independent, so the variance of the mean is
  the sum of J (1 - J) / 8 over its square.
  """
  ends, count = (
    np.asarray(exact.episodes.ends),
    np.asarray(exact.episodes.count),
  )
  real = np.arange(ends.shape[1]) <= count[:, None]
  j, estimate = (
    np.asarray(exact.success)[real],
    np.asarray(sampled.success)[real],
  )
  error = np.sqrt((j * (1 - j) / 8).sum()) / len(j)
  return {
    'mean': float((j - estimate).mean()),
    'standard_error': float(error),
    'z': float((j - estimate).mean() / error),
    'boundaries': len(j),
  }


def run_growth(config, axes: list[str], pairs: int) -> dict:
  """Returns how a step grows along each axis, as one dict."""
  check_config.check(config)
  if axes == ['all']:
    axes = list(growth.SIZES)
  unknown = [axis for axis in axes if axis not in growth.SIZES]
  if unknown or config.task.name != 'countdown':
    raise ValueError(
      f'--growth={",".join(axes)} of task {config.task.name!r}: allowed are '
      f"all, or some of {','.join(growth.SIZES)}, of task 'countdown'."
    )
  found = {axis: growth.grow(config, axis, pairs, alternate) for axis in axes}
  return {'machine': env.machine_description(), 'growth': found}


def main(argv):
  """Runs the benchmark and prints its figures as JSON."""
  del argv
  logging.set_verbosity(logging.WARNING)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    if FLAGS.growth:
      figures = run_growth(FLAGS.config, FLAGS.growth, FLAGS.pairs)
    else:
      figures = run(FLAGS.config, FLAGS.pairs)
  except ValueError as error:
    sys.exit(f'error: {error}')
  text = json.dumps(figures, indent=2)
  print(text)
  if FLAGS.growth:
    print(growth.table(figures['growth']))
  if FLAGS.json:
    with open(FLAGS.json, 'w', encoding='utf-8') as file:
      file.write(text + '\n')


if __name__ == '__main__':
  env.check_versions()
  config_flags.DEFINE_config_file(
    'config', 'configs/mrt_countdown.py', 'RL config.'
  )
  flags.DEFINE_list('growth', [], 'What to grow, in place of the figures.')
  flags.DEFINE_integer('pairs', 5, 'Alternations.')
  figures.define_json()
  app.run(main)
