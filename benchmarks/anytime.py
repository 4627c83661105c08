"""Stop rules on held-out problems: tokens saved, guarantees, and their cost.

    python benchmarks/anytime.py --config=configs/mrt_countdown.py --base
    python benchmarks/anytime.py --workdir=runs/quickstart/mrt --name=MRT
    python benchmarks/anytime.py --workdir=runs/smollm2_sft --name=SmolLM2 \
      --episodes=0 --fit_problems=128 --held_problems=96 --alpha=0.05 \
      --batch_size=32 --rows=16

Of one policy at a budget of 16 episodes (`--episodes=0`: at its own budget):
every rule at its calibrated threshold and at equal accuracy, on 20 resampled
halves of the held-out problems (one half calibrates, the other tests; all
prompts of a problem lie in one half); what a reference that knows J at every
boundary would save; and the time of decoding with each rule, alternating with
plain decoding.
"""

import functools
import hashlib
import json
import pathlib
import statistics as stats
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  anytime,
  calibrate,
  calibration,
  command_line,
  env,
  eval_partial,
  evaluate,
  held_out,
  setup_run,
  stop_figures,
  stop_traces,
)

FLAGS = flags.FLAGS
KINDS = calibrate.RULES


def scored(config, params, splits, *, batch_size, most, keep):
  """Returns (mode, split) -> scored traces, kept in a folder between runs."""
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  kit = setup_run.task_kit(config)
  identity = json.dumps(
    {
      'policy': eval_partial.digest_of(params),
      'config': config.to_dict(),
      'most': most,
      'batch_size': batch_size,
    },
    sort_keys=True,
    default=str,
  )
  keep = keep / hashlib.sha256(identity.encode()).hexdigest()[:12]
  found = {}
  for mode in stop_traces.MODES:
    calls = stop_traces.make_calls(config, model, task, forced=mode == 'forced')
    for index, split in enumerate(splits):
      path = keep / f'{mode}_{split}.npz'
      if path.exists():
        with np.load(path) as kept:
          found[mode, split] = dict(kept)
        continue
      source = setup_run.load_problems(config, split)
      batches = held_out.problem_batches(
        source,
        record_arrays=kit.record_arrays,
        num_problems=min(most.get(split, len(source)), len(source)),
        batch_size=batch_size,
      )
      traces = stop_traces.gather(
        calls, params, batches, jax.random.key(7 + index)
      )
      keys = [kit.cluster_key(source[i]) for i in traces['problem']]
      traces['cluster'] = np.asarray(keys)
      keep.mkdir(parents=True, exist_ok=True)
      np.savez(path.with_suffix('.part.npz'), **traces)
      path.with_suffix('.part.npz').rename(path)
      found[mode, split] = traces
  return found


def both(a, b):
  """Returns the rows of two sets of scored traces."""
  return {k: np.concatenate([a[k], b[k]]) for k in a}


def part(traces, rows):
  """Returns some rows of scored traces."""
  return {k: v[rows] for k, v in traces.items()}


def resampled(fitted, held, *, splits, alpha, delta):
  """Returns (mode, rule) -> figures over resampled halves of the problems."""
  _, cluster = np.unique(held['own']['cluster'], return_inverse=True)
  rng = np.random.default_rng(0)
  rows = {}
  for _ in range(splits):
    order = rng.permutation(cluster.max() + 1)
    first = np.isin(cluster, order[: len(order) // 2])
    own_fitted = stop_figures.run_out(fitted['own'])
    own = [stop_figures.run_out(part(held['own'], r)) for r in (first, ~first)]
    for mode in stop_traces.MODES:
      halves = [part(held[mode], r) for r in (first, ~first)]
      for rule in KINDS:
        choice = calibrate.choose(
          rule,
          fitted[mode],
          halves[0],
          own_fitted,
          own[0],
          alpha=alpha,
          delta=delta,
        )
        right, tokens = own[1]
        for point in ('threshold', 'equal_accuracy', 'equal_tokens'):
          if choice[point] is None:
            continue
          found = stop_figures.outcome(rule, halves[1], [choice[point]])
          rows.setdefault((mode, rule, point), []).append(
            {
              'saved': 1 - found.tokens.mean() / tokens.mean(),
              'gain': found.right.mean() - right.mean(),
              'risk': stop_figures.spoiled(right, found.right).mean(),
              'thinking': found.thinking.mean(),
              'probing': found.probing.mean(),
            }
          )
  return rows


def summary(rows, alpha):
  """Returns a line a rule: means over the splits, lowest and highest."""
  lines = []
  for (mode, rule, point), found in rows.items():
    column = lambda name, found=found: [row[name] for row in found]
    lines.append(
      {
        'rule': rule,
        'mode': mode,
        'point': point,
        'splits': len(found),
        'saved': stats.mean(column('saved')),
        'saved_low': min(column('saved')),
        'saved_high': max(column('saved')),
        'gain': stats.mean(column('gain')),
        'risk': stats.mean(column('risk')),
        'above_alpha': sum(r > alpha for r in column('risk')),
        'thinking': stats.mean(column('thinking')),
        'probing': stats.mean(column('probing')),
      }
    )
  return lines


def oracle(held, *, drop, episodes):
  """Returns the share of tokens that a reference which knows J saves, or None.

  It stops at the first boundary with J above 0.8, which no causal rule can see
  better than by J itself, and else after k episodes, where k is the best for
  this price among problems of this J before any thought, chosen on the very
  traces that it is measured on. Points between two prices mix them.
  """
  own_right, own_tokens = stop_figures.run_out(held['own'])
  traces = held['forced']
  rows = np.arange(len(traces['count']))
  solved = calibration.first_stop(traces['success'] > 0.8, traces['count'])
  groups = np.digitize(
    traces['success'][:, 0],
    np.quantile(traces['success'][:, 0], np.linspace(0, 1, 11)[1:-1]),
  )
  points = set()
  for price in np.geomspace(1e-4, 0.1, 400):
    stop = np.zeros(len(rows), int)
    for group in np.unique(groups):
      own = groups == group
      options = [np.minimum(solved[own], k) for k in range(episodes + 1)]
      worth = [
        traces['right'][rows[own], s].mean()
        - price * traces['thought'][rows[own], s].mean()
        for s in options
      ]
      stop[own] = options[int(np.argmax(worth))]
    points.add(
      (traces['thought'][rows, stop].mean(), traces['right'][rows, stop].mean())
    )
  wanted = own_right.mean() - drop
  below = [p for p in points if p[1] < wanted]
  above = [p for p in points if p[1] >= wanted]
  if not above:
    return None
  mixed = [
    a[0] + (b[0] - a[0]) * (wanted - a[1]) / (b[1] - a[1])
    for a in below
    for b in above
  ] or [min(p[0] for p in above)]
  return float(1 - min(mixed) / own_tokens.mean())


def timings(config, params, heads, *, rows, pairs):
  """Returns rule -> median time of decoding over that of plain decoding."""
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  batch = held_out.problem_batches(
    setup_run.load_problems(config, 'validation'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=rows,
    batch_size=rows,
  )[0]

  def make(rule, threshold):
    # Thresholds at which no row stops: equally many tokens are decoded.
    call = functools.partial(
      anytime.generate,
      model,
      rule=rule,
      threshold=threshold,
      head=heads if rule == 'progress' else None,
      thinking_budget=config.rollout.thinking_budget,
      answer_length=task.answer_length,
      eos_id=task.eos_id,
      think_end_id=task.think_end_id,
      stop_ids=task.stop_ids,
      delimiter_ids=task.delimiter_ids,
      max_looks=config.prover.max_episodes - 1,
    )
    call = jax.jit(call)
    given = params, batch['prompts'], batch['prompt_mask'], jax.random.key(0)
    jax.block_until_ready(call(*given))

    def run():
      begin = time.perf_counter()
      jax.block_until_ready(call(*given))
      return time.perf_counter() - begin

    return run

  plain = make('budget', None)
  never = {'progress': -1e9, 'confidence': 2.0, 'agreement': 1e9}
  found = {}
  for rule, threshold in never.items():
    run = make(rule, threshold)
    ratios, bases = [], []
    for index in range(pairs):
      # Each goes first in every other pair.
      first = run() if index % 2 else None
      base = plain()
      ratios.append((first or run()) / base)
      bases.append(base)
    found[rule] = {
      'ratio': stats.median(ratios),
      'low': min(ratios),
      'high': max(ratios),
      'decode_s': stats.median(bases),
    }
  return found


def main(argv):
  """Runs the benchmark."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  env.enable_compile_cache()
  config, params = evaluate.policy(
    FLAGS.workdir, FLAGS.config, base=FLAGS.base, which=FLAGS.which
  )
  config = config.copy_and_resolve_references()
  config.unlock()
  if FLAGS.episodes:
    longest = setup_run.make_task(config).episode_length
    config.rollout.thinking_budget = FLAGS.episodes * longest
    config.prover.max_episodes = FLAGS.episodes
  keep = pathlib.Path(FLAGS.out) / (FLAGS.name or 'base')
  found = scored(
    config,
    params,
    ('train', 'validation', 'test'),
    batch_size=FLAGS.batch_size,
    most={
      'train': FLAGS.fit_problems,
      'validation': FLAGS.held_problems,
      'test': FLAGS.held_problems,
    },
    keep=keep,
  )
  fitted, held, heads, fits = {}, {}, {}, {}
  for mode in stop_traces.MODES:
    fit = calibrate.fit_head(
      found[mode, 'train'], config.rollout.thinking_budget, jax.random.key(0)
    )
    heads[mode], fits[mode] = fit.head, fit._replace(head=None)._asdict()
    fitted[mode] = stop_traces.with_index(found[mode, 'train'], fit.head)
    held[mode] = stop_traces.with_index(
      both(found[mode, 'validation'], found[mode, 'test']), fit.head
    )
  right, tokens = stop_figures.run_out(held['own'])
  end_right, end_tokens = stop_figures.run_out(held['forced'])
  lines = summary(
    resampled(
      fitted,
      held,
      splits=FLAGS.splits,
      alpha=FLAGS.alpha,
      delta=calibration.DELTA,
    ),
    FLAGS.alpha,
  )
  result = {
    'name': FLAGS.name or 'base',
    'machine': env.machine_description(),
    'traces': len(right),
    'problems': len(np.unique(held['own']['cluster'])),
    'own_stop': {'accuracy': right.mean(), 'tokens': tokens.mean()},
    'whole_budget': {'accuracy': end_right.mean(), 'tokens': end_tokens.mean()},
    'heads': fits,
    'oracle_saved': oracle(
      held, drop=FLAGS.alpha, episodes=config.prover.max_episodes
    ),
    'rules': lines,
  }
  if FLAGS.pairs:
    result['time'] = timings(
      config, params, heads['own'], rows=FLAGS.rows, pairs=FLAGS.pairs
    )
  print(table(result))
  path = keep.parent / f'{keep.name}.json'
  path.write_text(json.dumps(result, default=float, indent=1))
  print(f'written to {path}')


def table(result):
  """Returns the figures as Markdown."""
  own, whole = result['own_stop'], result['whole_budget']
  known = 'nothing'
  if result['oracle_saved'] is not None:
    known = f'{100 * result["oracle_saved"]:.1f}% at equal accuracy'
  lines = [
    f'{result["name"]}: {result["traces"]} traces of {result["problems"]} '
    f'problems; own stop: accuracy {own["accuracy"]:.3f}, {own["tokens"]:.1f} '
    f'tokens; whole budget: {whole["accuracy"]:.3f}, {whole["tokens"]:.1f}; a '
    f'reference that knows J saves {known}',
    '',
    '| rule | past the own stop | threshold | tokens saved, probes counted | '
    'accuracy against the own stop | spoiled | splits above alpha | thinking '
    '| probes |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for row in result['rules']:
    point = {'threshold': 'calibrated'}.get(row['point'], row['point'])
    lines.append(
      f'| {row["rule"]} | {"yes" if row["mode"] == "forced" else "no"} | '
      f'{point.replace("_", " ")} | {100 * row["saved"]:.1f}% '
      f'[{100 * row["saved_low"]:.1f}, {100 * row["saved_high"]:.1f}] | '
      f'{row["gain"]:+.3f} | {row["risk"]:.4f} | '
      f'{row["above_alpha"]} of {row["splits"]} | {row["thinking"]:.1f} | '
      f'{row["probing"]:.1f} |'
    )
  for rule, found in result.get('time', {}).items():
    lines.append(
      f'time with {rule}: {found["ratio"]:.3f} of plain decoding '
      f'[{found["low"]:.3f}, {found["high"]:.3f}]'
    )
  return '\n'.join(lines)


def define_flags():
  """Defines the benchmark's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of --base.')
  flags.DEFINE_string('workdir', None, 'Run folder.')
  flags.DEFINE_boolean('base', False, 'Of what --config starts from.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_string('name', '', 'Of the result; default base.')
  flags.DEFINE_string('out', 'anytime_results', 'Folder of results and traces.')
  flags.DEFINE_integer('fit_problems', 4096, 'Training problems of the head.')
  flags.DEFINE_integer(
    'held_problems', 10**9, 'Of validation and of test, each, at most.'
  )
  flags.DEFINE_integer('episodes', 16, "The budget; 0: the policy's own.")
  flags.DEFINE_float(
    'alpha', calibration.ALPHA, 'Share of spoiled answers that is allowed.'
  )
  flags.DEFINE_integer('batch_size', 256, 'Traces at a time.')
  flags.DEFINE_integer('splits', 20, 'Resampled halves.')
  flags.DEFINE_integer('rows', 64, 'Traces at a time of the timings.')
  flags.DEFINE_integer('pairs', 7, 'Pairs of timings; 0: none.')


if __name__ == '__main__':
  env.check_versions()
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
