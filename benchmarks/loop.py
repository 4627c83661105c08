"""How long a run takes: to its first step, and to a given held-out regret.

    python benchmarks/loop.py [--config=configs/mrt_countdown.py] [--pairs=5]
      [--target=0.33] [--eval_every=5] [--fused=0,5] [--against=CHECKOUT]
      [--flags='--config.seed=1'] [--cold=1] [--json=loop.json]

Runs `python -m meta_rl.train` as a user does and watches its metrics.jsonl, so
that all is counted: the start of Python, imports, data, tracing, compiling,
evaluation. Variants alternate A B A B: this checkout at each number of fused
steps (`config.parallel.fused_steps`), and another checkout with `--against`, as
it is. For each of them, medians over pairs and their range:
  - seconds from the command to its first step with an empty compile cache
    (--cold starts, 0 for none; not all of them are pairs: they take minutes);
  - the same with a warm cache, and the programs that were compiled then, which
    should be none;
  - seconds from the command to the first evaluation at or below --target, from
    a warm cache, and the step of it;
  - seconds a step behind the first, the median of a run's;
  - programs traced behind the first evaluation: recompiles.
"""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import figures
from absl import app, flags

FLAGS = flags.FLAGS
POLL_S = 0.02
REGRET = 'eval/regret_token_weighted'
ROOT = Path(__file__).resolve().parent.parent


def define_flags():
  """Defines the command's flags."""
  flags.DEFINE_string('config', 'configs/mrt_countdown.py', 'RL config.')
  flags.DEFINE_integer('pairs', 5, 'Runs of each variant.', lower_bound=1)
  flags.DEFINE_integer('cold', 1, 'Cold starts of each.', lower_bound=0)
  flags.DEFINE_float('target', 0.33, 'Held-out regret to reach.')
  flags.DEFINE_integer('eval_every', 5, 'Steps between two evaluations.')
  flags.DEFINE_integer('max_steps', 60, 'Steps after which a run is given up.')
  flags.DEFINE_list('fused', ['0'], 'Numbers of fused steps to compare.')
  flags.DEFINE_string('against', '', 'Another checkout, run as it is.')
  flags.DEFINE_string('flags', '', 'More flags of meta_rl.train, for all.')
  figures.define_json()


def variants() -> dict[str, tuple[Path, list[str]]]:
  """Returns {name: (checkout, its own flags)} of what is compared."""
  found = {}
  if FLAGS.against:
    found['against'] = Path(FLAGS.against).resolve(), []
  for count in FLAGS.fused:
    name = f'fused {count}' if int(count) else 'phases'
    found[name] = ROOT, [f'--config.parallel.fused_steps={count}']
  return found


def command(checkout: Path, folder: str, own: list[str]) -> list[str]:
  """Returns the training command of one run."""
  every = FLAGS.eval_every
  return [
    *(sys.executable, '-m', 'meta_rl.train'),
    f'--config={checkout / FLAGS.config}',
    f'--workdir={folder}',
    f'--config.total_steps={FLAGS.max_steps}',
    f'--config.eval.every={every}',
    f'--config.checkpoint.every={every}',
    f'--config.log.samples_every={every}',
    *shlex.split(FLAGS.flags),
    *own,
  ]


def new_rows(path: Path, is_alive) -> Iterator[tuple[float, dict]]:
  """Yields (time, row) of a metrics.jsonl as its lines come.

  Ends when the file does not grow and `is_alive()` is false.
  """
  seen = 0
  while True:
    alive = is_alive()  # asked first: what is written before its end counts
    text = path.read_text('utf-8') if path.exists() else ''
    lines = text.split('\n')[:-1]  # the last may be half a line
    for line in lines[seen:]:
      yield time.perf_counter(), json.loads(line)
    seen = len(lines)
    if not alive:
      return
    time.sleep(POLL_S)


def package_of(checkout: Path, folder: Path) -> Path:
  """Returns a folder with the package of a checkout, its configs included.

  `meta_rl.configs` would else be that of the environment: in a checkout it lies
  beside the package, not in it.
  """
  package = folder / 'meta_rl'
  package.mkdir(parents=True)
  for path in (checkout / 'meta_rl').iterdir():
    (package / path.name).symlink_to(path)
  (package / 'configs').symlink_to(checkout / 'configs')
  return folder


def run(checkout: Path, own: list[str], cache: str, *, steps: int) -> dict:
  """Trains once and returns what was seen.

  Args:
    checkout: whose code runs.
    own: flags of the variant.
    cache: folder of compiled programs.
    steps: after which it is stopped; it is also stopped at the target.
  """
  with tempfile.TemporaryDirectory() as folder:
    tree = package_of(checkout, Path(folder) / 'tree')
    environment = os.environ | {
      'PYTHONPATH': str(tree),
      'META_RL_CACHE': cache,
    }
    log = Path(folder) / 'log'
    began = time.perf_counter()
    with open(log, 'w', encoding='utf-8') as output:
      process = subprocess.Popen(
        command(checkout, f'{folder}/run', own),
        cwd=tree,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
      )
    try:
      found = summary(
        (
          (now - began, row)
          for now, row in new_rows(
            Path(folder) / 'run' / 'metrics.jsonl',
            lambda: process.poll() is None,
          )
        ),
        target=FLAGS.target,
        steps=steps,
      )
    finally:
      process.send_signal(signal.SIGKILL)
      process.wait()
    if found['first_step_s'] is None:
      raise SystemExit(f'error: no step was taken:\n{log.read_text("utf-8")}')
    return found


def summary(rows, *, target: float, steps: int) -> dict:
  """Returns the figures of one run, reading no more rows than they need.

  Args:
    rows: (seconds since the command, row of metrics.jsonl) in order.
    target: held-out regret at which the run may end.
    steps: number of rows after which it may.
  """
  found = {
    'first_step_s': None,
    'cache_misses': None,
    'target_s': None,
    'target_step': None,
    'regret': None,
    'recompiles': 0,
  }
  spent, traced = [], None
  for seconds, row in rows:
    if found['first_step_s'] is None:
      found['first_step_s'] = seconds
    else:
      spent.append(row['time/step_s'])
    # Of checkouts that count it: all that was compiled so far.
    found['cache_misses'] = row.get('compile/cache_misses')
    if traced is not None:
      found['recompiles'] = row['compile/count'] - traced
    if REGRET in row:
      traced = row['compile/count'] if traced is None else traced
      found['regret'] = row[REGRET]
      if row[REGRET] <= target:
        found |= {'target_s': seconds, 'target_step': row['step']}
        break
    if row['step'] >= steps:
      break
  found['step_s'] = statistics.median(spent) if spent else None
  return found


def spread(runs: list[dict], name: str) -> list[float] | None:
  """Returns [median, least, most] of a figure; None where a run lacks it."""
  values = [run[name] for run in runs]
  if not values or None in values:
    return None
  return [statistics.median(values), min(values), max(values)]


def measure() -> dict:
  """Returns every figure of this benchmark as one dict."""
  found = {}
  with tempfile.TemporaryDirectory() as caches:
    chosen = variants()
    cold = {name: [] for name in chosen}
    warm = {name: [] for name in chosen}
    # Behind the last cold start, or a first one, the cache is warm, also for
    # evaluation, whose programs are compiled at its first time.
    for number in range(max(FLAGS.cold, 1)):
      for name, (checkout, own) in chosen.items():
        cache = f'{caches}/{name}/{number}'
        cold[name].append(run(checkout, own, cache, steps=FLAGS.eval_every))
        print(f'cold, {name}: {cold[name][-1]}', file=sys.stderr)
    for _ in range(FLAGS.pairs):
      for name, (checkout, own) in chosen.items():
        cache = f'{caches}/{name}/{max(FLAGS.cold, 1) - 1}'
        warm[name].append(run(checkout, own, cache, steps=FLAGS.max_steps))
        print(f'warm, {name}: {warm[name][-1]}', file=sys.stderr)
    for name in chosen:
      found[name] = {
        'cold_first_step_s': spread(cold[name][: FLAGS.cold], 'first_step_s')
      } | {
        key: spread(warm[name], key)
        for key in (
          'first_step_s',
          'cache_misses',
          'step_s',
          'target_s',
          'target_step',
          'regret',
          'recompiles',
        )
      }
  return {
    'config': FLAGS.config,
    'flags': FLAGS.flags,
    'target': FLAGS.target,
    'pairs': FLAGS.pairs,
    'variants': found,
  }


_TABLE = (
  ('first step, cold', 'cold_first_step_s', '.1f'),
  ('first step, warm', 'first_step_s', '.1f'),
  ('compiled when warm', 'cache_misses', '.0f'),
  ('a step', 'step_s', '.2f'),
  ('to the target', 'target_s', '.1f'),
  ('its step', 'target_step', '.0f'),
  ('recompiles', 'recompiles', '.0f'),
)


def table(found: dict) -> str:
  """Returns the figures as text: median [least, most] of each, in seconds."""
  names = list(found['variants'])
  lines = [f'{"":20}' + ''.join(f'{name:>24}' for name in names)]
  for label, key, form in _TABLE:
    cells = []
    for name in names:
      value = found['variants'][name][key]
      cell = '-'
      if value is not None:
        middle, low, high = (format(x, form) for x in value)
        cell = f'{middle} [{low}, {high}]'
      cells.append(f'{cell:>24}')
    lines.append(f'{label:20}' + ''.join(cells))
  return '\n'.join(lines)


def main(argv):
  """Runs the benchmark and prints its figures."""
  del argv
  # Its finally ends the training, which would else run on.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  found = measure()
  print(table(found))
  if FLAGS.json:
    Path(FLAGS.json).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  define_flags()
  app.run(main)
