"""Evaluation: accuracy against tokens and regret on held-out problems.

    python -m meta_rl.evaluate --workdir=DIR
    python -m meta_rl.evaluate --config=configs/mrt_countdown.py --base \\
      --workdir=DIR

Every trace is sampled once at the full thinking budget, and J is measured by
forced termination at each of its episode boundaries and at fixed token budgets.
The result is DIR/eval.json, which `meta_rl.report` draws.
"""

import json
import math
import os
import sys
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from meta_rl import (
  checkpoint,
  data,
  env,
  episodes,
  metrics,
  prover,
  regret,
  setup_run,
  signals,
  statistics,
  tokenizer,
  weights,
  workdir,
)
from meta_rl.answers import extract_boxed, maj_at_k, pass_at_k
from meta_rl.compiled import CountedJit
from meta_rl.files import atomic_write

__all__ = [
  'describe_traces',
  'evaluate',
  'extract_boxed',
  'maj_at_k',
  'make_calls',
  'measure',
  'pass_at_k',
  'problem_batches',
  'summary',
]

FLAGS = flags.FLAGS
BUDGET_POINTS = 4  # of the forced termination at fixed token budgets


def problem_batches(
  source, *, num_problems: int, batch_size: int, repeats: int = 1
) -> list[dict[str, np.ndarray]]:
  """Returns the first problems of a split in batches of one shape.

  The last batch is filled up with the first problems again; `measure` drops
  these rows.

  Args:
    source: records of `builder.load_source`.
    num_problems: how many; more than there are raises ValueError.
    batch_size: rows of each batch.
    repeats: rows of each problem, one after the other, for pass@k.
  """
  if batch_size < 1 or repeats < 1:
    raise ValueError(
      f'batch_size={batch_size}, repeats={repeats}: both must be at least 1.'
    )
  if not 1 <= num_problems <= len(source):
    raise ValueError(
      f'num_problems={num_problems}: the split holds {len(source)} problems; '
      f'give 1..{len(source)}.'
    )
  records = [data.record_arrays(source[i]) for i in range(num_problems)]
  rows = [i for i in range(num_problems) for _ in range(repeats)]
  filler = -len(rows) % batch_size
  weights_ = [1] * len(rows) + [0] * filler
  rows += [rows[i % len(rows)] for i in range(filler)]
  batches = []
  for start in range(0, len(rows), batch_size):
    part = slice(start, start + batch_size)
    batch = setup_run.stack([records[i] for i in rows[part]])
    batch['problem'] = np.asarray(rows[part], np.int32)
    batch['counts'] = np.asarray(weights_[part], bool)
    batches.append(batch)
  return batches


def make_calls(config, model, task) -> dict[str, CountedJit]:
  """Returns the jitted generate and prove for one trace a problem.

  J is always the exact prover's here, whatever trains, and measured at episode
  boundaries (`prove`) and at fixed token budgets (`prove_budgets`).
  """
  exact = config.copy_and_resolve_references()
  exact.unlock()
  exact.prover.kind = 'exact'
  generate, prove = setup_run.make_calls(exact, model, task, group_size=1)
  budget = config.rollout.thinking_budget
  budgets = tuple(
    round(budget * (i + 1) / BUDGET_POINTS) for i in range(BUDGET_POINTS)
  )

  def prove_budgets(params, batch, traces, cache):
    found = episodes.from_budgets(
      traces.thinking_mask, budgets=budgets, start=batch['prompts'].shape[1] - 1
    )
    success = prover.exact(
      model,
      params,
      traces.tokens,
      traces.token_mask,
      found.ends,
      batch['answers'],
      batch['answer_mask'],
      stop_ids=task.stop_ids,
      temperature=config.rollout.temperature,
      top_p=config.rollout.top_p,
      top_k=config.rollout.top_k,
      cache=cache,
    )
    return success, found

  return {
    'generate': CountedJit(generate),
    'prove': CountedJit(prove),
    'prove_budgets': CountedJit(prove_budgets),
  }


def measure(
  calls, params, batches: Sequence[dict], key, *, at_budgets: bool = False
) -> dict[str, np.ndarray]:
  """Returns what was measured on every trace, numpy, N rows (host).

  Row i draws from fold_in(key, i): two policies evaluated with one key share
  their random numbers, and the paired differences are the narrower for it.

  Args:
    calls: of `make_calls`.
    params: the policy, its own prover.
    batches: of `problem_batches`.
    key: PRNG key.
    at_budgets: also J at fixed token budgets.

  Returns:
    tokens i32[N,T], mask, thinking_mask bool[N,T], rewards f32[N], success
    f32[N,K+1], ends i32[N,K+1], count i32[N], forced, truncated bool[N],
    problem i32[N]; with at_budgets also budget_success and budget_ends.
  """
  parts = []
  for index, batch in enumerate(batches):
    offset = index * len(batch['problem'])
    arrays = {k: v for k, v in batch.items() if k not in ('problem', 'counts')}
    traces, cache = calls['generate'](params, arrays, key, offset)
    found = calls['prove'](params, arrays, traces, cache, key)
    part = {
      'tokens': traces.tokens,
      'token_mask': traces.token_mask,
      'mask': traces.mask,
      'thinking_mask': traces.thinking_mask,
      'forced': traces.forced,
      'truncated': traces.truncated,
      'rewards': found.rewards,
      'success': found.success,
      'ends': found.episodes.ends,
      'count': found.episodes.count,
      'stop_index': found.stop_index,
    }
    if at_budgets:
      success, cut = calls['prove_budgets'](params, arrays, traces, cache)
      part |= {'budget_success': success, 'budget_ends': cut.ends}
    part = jax.device_get(part) | {'problem': batch['problem']}
    parts.append({k: v[batch['counts']] for k, v in part.items()})
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def regrets(measured: dict[str, np.ndarray], horizon: int) -> np.ndarray:
  """Returns f64[N], each trace's token-weighted regret against 1."""
  return statistics.regret_at_budgets(
    measured['success'],
    measured['ends'],
    measured['count'],
    budgets=[horizon],
    horizon=horizon,
  )[:, 0]


def final_success(measured: dict[str, np.ndarray]) -> np.ndarray:
  """Returns f32[N], J at each trace's own stop."""
  rows = np.arange(len(measured['count']))
  return measured['success'][rows, measured['count']]


def summary(measured: dict[str, np.ndarray], horizon: int) -> dict[str, float]:
  """Returns the scalars that training logs at a held-out evaluation."""
  return {
    'eval/accuracy': float(final_success(measured).mean()),
    'eval/reward_mean': float(measured['rewards'].mean()),
    'eval/regret_token_weighted': float(regrets(measured, horizon).mean()),
    'eval/tokens_mean': float(measured['thinking_mask'].sum(1).mean()),
  }


def describe_traces(traces, measured, *, limit: int) -> list[dict]:
  """Returns sampled traces of a training step as rows of text (host)."""
  rewards = measured.rewards
  if measured.valid is not None:
    rewards = jnp.where(measured.valid, rewards, jnp.nan)
  arrays = jax.device_get(
    {
      'tokens': traces.tokens[:limit],
      'token_mask': traces.token_mask[:limit],
      'forced': traces.forced[:limit],
      'rewards': rewards[:limit],
      'success': measured.success[:limit],
      'ends': measured.episodes.ends[:limit],
      'count': measured.episodes.count[:limit],
      'stop_index': measured.stop_index[:limit],
    }
  )
  return [describe(arrays, i) for i in range(len(arrays['rewards']))]


def describe(arrays: dict[str, np.ndarray], i: int) -> dict:
  """Returns trace i as text with J before and after each of its episodes.

  Its reward is None where it has none (NaN).
  """
  tokens, real = arrays['tokens'][i], arrays['token_mask'][i]
  ends, success = arrays['ends'][i].tolist(), arrays['success'][i].tolist()

  def text(start, stop):
    part = slice(max(start, 0), max(stop, 0))
    return tokenizer.decode(tokens[part][real[part]].tolist())

  found = [
    {
      'text': text(ends[j] + 1, ends[j + 1] + 1),
      'success': success[j + 1],
      'progress': success[j + 1] - success[j],
      'tokens': ends[j + 1] - ends[j],
    }
    for j in range(int(arrays['count'][i]))
  ]
  reward = float(arrays['rewards'][i])
  return {
    'prompt': text(0, ends[0] + 1),
    'success_start': success[0],
    'episodes': found,
    'answer': text(int(arrays['stop_index'][i]) + 1, len(tokens)),
    'reward': None if math.isnan(reward) else reward,
    'stopped': 'budget' if arrays['forced'][i] else 'policy',
  }


def several_samples(
  calls, params, source, key, *, num_problems, samples, batch_size
) -> dict[str, dict[str, float]]:
  """Returns pass@k and maj@k over `samples` traces of each problem.

  All right answers of a problem vote as one; a wrong one votes for its own
  tokens, and a trace without an answer for none.
  """
  batches = problem_batches(
    source, num_problems=num_problems, batch_size=batch_size, repeats=samples
  )
  found = measure(calls, params, batches, key)
  right = found['rewards'].reshape(num_problems, samples) >= 1
  votes = []
  for i, reward in enumerate(found['rewards']):
    answer = describe(found, i)['answer']
    votes.append('right' if reward >= 1 else answer or None)
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


def interval(values, clusters) -> dict[str, float]:
  """Returns mean, low and high of a bootstrap over problems, as a dict."""
  found = statistics.bootstrap_mean(values, clusters=clusters)
  return {'mean': found.mean, 'low': found.low, 'high': found.high}


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
) -> dict:
  """Returns the content of `eval.json` for one policy on the test split.

  Args:
    config: an RL config: task, model, thinking budget, temperature.
    params: the policy.
    name, algorithm: for the report.
    num_problems: held-out problems, one trace each.
    batch_size: traces at a time.
    samples, sample_problems: traces a problem, and problems, of pass@k and
      maj@k.
    seed: of the sampling; the same for policies that are to be compared.
  """
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  calls = make_calls(config, model, task)
  source = setup_run.load_problems(config, 'test')
  key = jax.random.key(seed)
  horizon = config.rollout.thinking_budget
  batches = problem_batches(
    source, num_problems=num_problems, batch_size=batch_size
  )
  found = measure(calls, params, batches, key, at_budgets=True)
  clusters = cluster_ids(source, num_problems)
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
  return {
    'name': name,
    'algorithm': algorithm,
    'num_problems': num_problems,
    'horizon': horizon,
    'machine': env.machine_description(),
    'budgets': grid,
    'accuracy_at_budget': mean.tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'regret_at_budget': regret_curve.mean(0).tolist(),
    'forced_at_budget': {
      'budgets': cut.max(0).tolist(),
      'accuracy': found['budget_success'].mean(0).tolist(),
    },
    'scalars': {
      'accuracy': interval(final_success(found), clusters),
      'reward': interval(found['rewards'], clusters),
      'regret_token_weighted': interval(total, clusters),
      'regret_normalized': normalized(mean, grid, horizon),
      'tokens_mean': float(tokens.mean()),
      'forced_rate': float(found['forced'].mean()),
      **several_samples(
        calls,
        params,
        source,
        jax.random.fold_in(key, 1),
        num_problems=min(sample_problems, num_problems),
        samples=samples,
        batch_size=batch_size,
      ),
    },
    'per_problem': {
      'regret_token_weighted': total.tolist(),
      'accuracy': final_success(found).tolist(),
      'reward': found['rewards'].tolist(),
      'tokens': tokens.tolist(),
      'cluster': clusters.tolist(),
    },
    'traces': [describe(found, i) for i in range(min(12, num_problems))],
  }


def normalized(curve, budgets, horizon: int) -> float:
  """Returns a curve's normalised regret, the trapezoid through (0, 0)."""
  # The curve's own point at 0 tokens is measured; the official form is not.
  values = jnp.asarray(curve[1:], jnp.float32)
  tokens = jnp.asarray(budgets[1:], jnp.float32)
  return float(regret.normalized(values, tokens, horizon=horizon))


def cluster_ids(source, num_problems: int) -> np.ndarray:
  """Returns i[N], one id for all prompts of the same numbers and target.

  The id is a hash of these, so that equal ids in two evaluations mean equal
  problems: the report pairs evaluations by them.
  """

  def cluster(record):
    numbers = sorted(np.asarray(record['numbers']).tolist())
    return zlib.crc32(f'{numbers} = {int(record["target"])}'.encode())

  return np.asarray([cluster(source[i]) for i in range(num_problems)])


def training_tokens(folder: str) -> float:
  """Returns the response tokens that a run has sampled in training."""
  path = os.path.join(folder, 'metrics.jsonl')
  rows = metrics.read_metrics(path) if os.path.exists(path) else []
  return sum(row.get('rollout/tokens_sum', 0.0) for row in rows)


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of --base.')
  flags.DEFINE_string('workdir', None, 'Run folder; eval.json goes there.')
  flags.DEFINE_boolean('base', False, 'Evaluate what --config starts from.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_integer('num_problems', 2048, 'Held-out problems.')
  flags.DEFINE_integer('batch_size', 256, 'Traces at a time.')
  flags.DEFINE_string('name', '', 'Name in the report.')
  flags.mark_flag_as_required('workdir')


def policy(folder: str, config, *, base: bool, which: str):
  """Returns (config, params) of a run folder, or of a config's own start."""
  if base:
    if config is None:
      raise ValueError('--base needs --config: it names what to start from.')
    return config, setup_run.initial_params(config)
  if config is not None:
    raise ValueError(
      '--config is of --base alone: a run is evaluated with the config that it '
      'recorded; leave it out, or add --base.'
    )
  recorded = workdir.read_config(folder)
  if recorded is None:
    raise ValueError(
      f'{folder} holds no config.json: name a run folder of meta_rl.train, or '
      'give --config and --base.'
    )
  config = config_dict.ConfigDict(recorded)
  like = setup_run.abstract_params(config)
  return config, weights.init_from(f'{folder}@{which}', like)


def main(argv):
  """Runs the command."""
  del argv
  logging.set_verbosity(logging.WARNING)
  env.enable_compile_cache()
  try:
    config, params = policy(
      FLAGS.workdir, FLAGS.config, base=FLAGS.base, which=FLAGS.which
    )
    source = setup_run.load_problems(config, 'test')
    result = evaluate(
      config,
      params,
      name=FLAGS.name or ('base' if FLAGS.base else config.name),
      algorithm='base' if FLAGS.base else config.name.lower(),
      num_problems=min(FLAGS.num_problems, len(source)),
      batch_size=FLAGS.batch_size,
    )
    if not FLAGS.base:
      result['training_tokens'] = training_tokens(FLAGS.workdir)
    os.makedirs(FLAGS.workdir, exist_ok=True)
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
  app.run(main, flags_parser=setup_run.parse_flags)
