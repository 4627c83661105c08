"""Calibration of stop rules: a head that predicts progress, safe thresholds.

    python -m meta_rl.calibrate --workdir=runs/mrt
    python -m meta_rl.calibrate --config=configs/mrt_countdown.py --base \\
      --workdir=runs/base

The head is fitted to traces of training problems; thresholds of each rule are
tested on traces of validation problems, so that with probability 1 - delta at
most a share alpha of the answers is spoiled by stopping early
(meta_rl/calibration.py). The result is DIR/stop_rules.safetensors, which
`meta_rl.evaluate` and `meta_rl.serve` read.
"""

import functools
import os
import sys
from collections.abc import Callable

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  calibration,
  check_config,
  checkpoint,
  checks,
  command_line,
  eval_partial,
  evaluate,
  heap,
  held_out,
  progress_head,
  setup_run,
  signals,
  stop_figures,
  stop_rules,
  stop_traces,
)

FLAGS = flags.FLAGS
RULES = ('progress', 'confidence', 'agreement', 'episodes')


def calibrate(
  config,
  params,
  *,
  fit_problems: int = 4096,
  num_traces: int = calibration.MIN_TRACES,
  batch_size: int = 256,
  alpha: float = calibration.ALPHA,
  delta: float = calibration.DELTA,
  seed: int = 0,
  progress: Callable[[str, int, int], None] | None = None,
) -> stop_rules.StopRules:
  """Returns the stop rules of a policy.

  Args:
    config: an RL config: task, model, thinking budget.
    params: the policy.
    fit_problems: training problems that the heads are fitted to, at most.
    num_traces: of validation problems, at least; several of each problem where
      there are fewer. The guarantee is for these problems, and for others as
      far as they are like them.
    batch_size: traces at a time.
    alpha: share of spoiled answers that is allowed.
    delta: chance that it is exceeded all the same.
    seed: of the sampling.
    progress: is told what is done, how much of it, and of how much.
  """
  checks.check_range('alpha', alpha, above=0, below=1)
  checks.check_range('delta', delta, above=0, below=1)
  checks.check_count('fit_problems', fit_problems, low=10)
  checks.check_count('num_traces', num_traces)
  checks.check_range('seed', seed, **checks.SEEDS)
  seen = _problems(config, 'train', fit_problems, 1, batch_size)
  unseen = _problems(config, 'validation', num_traces, num_traces, batch_size)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  key = jax.random.key(seed)
  heads, said, found = {}, {}, {}
  for mode in stop_traces.MODES:
    calls = stop_traces.make_calls(config, model, task, forced=mode == 'forced')
    telling = lambda what: progress and functools.partial(progress, what)
    fitted = stop_traces.gather(
      calls, params, seen, key, on_batch=telling(f'fitting ({mode})')
    )
    fit = fit_head(fitted, config.rollout.thinking_budget, key)
    heads[mode] = fit.head
    said[mode] = fit._replace(head=None)._asdict()
    tested = stop_traces.gather(
      calls,
      params,
      unseen,
      jax.random.fold_in(key, 1),
      on_batch=telling(f'testing ({mode})'),
    )
    found[mode] = [
      stop_traces.with_index(x, fit.head) for x in (fitted, tested)
    ]
  choices = []
  for mode, (fitted, tested) in found.items():
    own_fitted, own_tested = map(stop_figures.run_out, found['own'])
    for rule in RULES:
      choice = choose(
        rule, fitted, tested, own_fitted, own_tested, alpha=alpha, delta=delta
      )
      choices.append({'rule': rule, 'mode': mode, **choice})
  right, tokens = stop_figures.run_out(found['own'][1])
  return stop_rules.StopRules(
    heads,
    choices,
    {
      'alpha': alpha,
      'delta': delta,
      'budget': config.rollout.thinking_budget,
      'max_looks': config.prover.max_episodes - 1,
      'policy': eval_partial.digest_of(params),
      'problems': len(np.unique(found['own'][1]['problem'])),
      'traces': len(right),
      'full': {
        'accuracy': float(right.mean()),
        'tokens_mean': float(tokens.mean()),
      },
      'heads': said,
    },
  )


def fit_head(found: dict, budget: int, key) -> progress_head.Fit:
  """Returns the head that predicts progress, fitted to scored traces."""
  boundary = np.arange(found['thought'].shape[1])
  return progress_head.fit(
    found['features'],
    found['thought'],
    found['success'],
    boundary <= found['count'][:, None],
    jax.random.fold_in(key, 2),
    budget=budget,
  )


def choose(
  rule, fitted, tested, own_fitted, own_tested, *, alpha, delta
) -> dict:
  """Returns the calibrated threshold of one rule and what it does.

  Args:
    rule: of `stopping.KINDS`.
    fitted, tested: scored traces: of the first come the thresholds and their
      order, of the second the losses.
    own_fitted, own_tested: of `stop_figures.run_out`, these traces at the own
      stop.
    alpha, delta: as in `calibration.fixed_sequence`.
  """
  whole = calibration.grid(rule, stop_figures.scores(rule, fitted))
  before = stop_figures.outcome(rule, fitted, whole)
  thresholds = calibration.from_safest(
    whole, stop_figures.spoiled(own_fitted[0], before.right).T
  )
  result = stop_figures.outcome(rule, tested, thresholds)
  own_right, own_tokens = own_tested
  losses = stop_figures.spoiled(own_right, result.right)
  found = calibration.fixed_sequence(
    losses.T, thresholds, alpha=alpha, delta=delta
  )
  said = found._asdict()
  if found.threshold is not None:
    at = list(thresholds).index(found.threshold)
    said['accuracy'] = float(result.right[at].mean())
    said['tokens_mean'] = float(result.tokens[at].mean())
  # Without a guarantee: for comparing rules at equal accuracy or tokens.
  result = stop_figures.outcome(rule, tested, whole)
  for name, at in (
    ('equal_accuracy', stop_figures.cheapest(result, own_right, drop=alpha)),
    ('equal_tokens', stop_figures.most_accurate(result, own_tokens)),
  ):
    said[name] = None if at is None else float(whole[at])
  return said


def _problems(config, split, most, traces, batch_size):
  """Returns batches of a split's problems, several traces each if need be."""
  source = setup_run.load_problems(config, split)
  number = min(most, len(source))
  repeats = max(1, -(-traces // number))
  return held_out.problem_batches(
    source,
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=number,
    batch_size=min(batch_size, number * repeats),
    repeats=repeats,
  )


def table(rules: stop_rules.StopRules) -> str:
  """Returns the rules as lines of text."""
  full = rules.about['full']
  lines = [
    f'own stop: accuracy {full["accuracy"]:.3f}, '
    f'{full["tokens_mean"]:.1f} tokens',
  ]
  for choice in rules.choices:
    name = f'{choice["rule"]} ({choice["mode"]})'
    if choice['threshold'] is None:
      lines.append(f'{name}: no safe threshold')
      continue
    share = choice['tokens_mean'] / full['tokens_mean'] - 1
    lines.append(
      f'{name}: threshold {choice["threshold"]:.4g}, accuracy '
      f'{choice["accuracy"]:.3f}, {choice["tokens_mean"]:.1f} tokens with '
      f'probes ({100 * abs(share):.1f}% {"more" if share > 0 else "fewer"}), '
      f'spoiled {choice["risk"]:.4f}'
    )
  return '\n'.join(lines)


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of --base.')
  flags.DEFINE_string('workdir', None, 'Run folder; the rules go there.')
  flags.DEFINE_boolean('base', False, 'Calibrate what --config starts from.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_integer('fit_problems', 4096, 'Training problems, at most.')
  flags.DEFINE_integer(
    'num_traces', calibration.MIN_TRACES, 'Traces of validation problems.'
  )
  flags.DEFINE_integer('batch_size', 256, 'Traces at a time.')
  flags.DEFINE_float('alpha', calibration.ALPHA, 'Spoiled answers allowed.')
  flags.DEFINE_float('delta', calibration.DELTA, 'Chance that it is exceeded.')
  flags.DEFINE_integer('seed', 0, 'Of the sampling.')
  flags.mark_flag_as_required('workdir')


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    config, params = evaluate.policy(
      FLAGS.workdir, FLAGS.config, base=FLAGS.base, which=FLAGS.which
    )
    check_config.check(config)
    with evaluate.result_folder(FLAGS.workdir):
      rules = calibrate(
        config,
        params,
        fit_problems=FLAGS.fit_problems,
        num_traces=FLAGS.num_traces,
        batch_size=FLAGS.batch_size,
        alpha=FLAGS.alpha,
        delta=FLAGS.delta,
        seed=FLAGS.seed,
        progress=evaluate.Progress(command='calibrate'),
      )
      path = os.path.join(FLAGS.workdir, stop_rules.NAME)
      stop_rules.save(path, rules)
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  except jax.errors.JaxRuntimeError as error:
    said = command_line.jax_error(error, lower='--batch_size')
    print(f'error: {said}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  print(table(rules))
  print(
    '(own): thinks no longer than the model by itself; (forced): may go on to '
    'the budget; episodes: after a fixed number, for comparison. Answers are '
    'greedy.\n'
    'spoiled: right at the own stop, wrong under the rule. Of each rule by '
    f'itself it is at most {FLAGS.alpha:g} with probability '
    f'{1 - FLAGS.delta:g}, for problems like these: '
    f'{rules.about["traces"]} traces of {rules.about["problems"]} prompts; '
    f'written to {path}'
  )


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
