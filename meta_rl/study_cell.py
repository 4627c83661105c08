"""One cell of a study, in a process of its own: train, evaluate, sum up.

    python -m meta_rl.study_cell SPEC.json RUN_FOLDER OUT.json

`meta_rl.study` starts it, so that a cell's memory and compiled programs are its
own. It trains as `meta_rl.train` does (a run that was stopped goes on from its
checkpoint), evaluates with equal problems and random numbers in all cells, and
writes OUT.json when it is done: scalars, curves on a coarse grid, learning
curves, and a digest of the problems, equal in cells that are paired.

It ends when its standard input does: a study that is killed, however it is,
leaves no process behind. Exit codes are those of `meta_rl.train`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
import numpy as np
from absl import logging

from meta_rl import (
  checkpoint,
  config_keys,
  evaluation,
  heap,
  metrics,
  setup_run,
  signals,
  study_cells,
  study_files,
  train,
  weights,
  workdir,
)
from meta_rl.files import atomic_write

STARTS_NAME = 'starts.json'  # in a run folder
MAX_BYTES = 60_000  # of a cell's JSON
MAX_POINTS = 60  # of a learning curve


def run(spec: Mapping, folder: str, out: str) -> int:
  """Trains and evaluates one cell; returns the exit code.

  Args:
    spec: of `study_cells.make_specs`.
    folder: its run folder.
    out: the JSON to write.
  """
  config = study_cells.to_config(spec)
  rows, starts = [], ()
  try:
    if spec['train']:
      check_run_folder(config, folder)
      starts = note_start(folder)
      code = train.run(config, folder)
      if code != signals.EXIT_OK:
        return code
      rows = metrics.read_metrics(Path(folder) / 'metrics.jsonl')
    check_cost(config, rows, trained=spec['train'])
    params = base_params = setup_run.initial_params(config)
    if spec['train']:
      like = setup_run.abstract_params(config)
      params = weights.init_from(f'{folder}@last', like)
    began = time.perf_counter()
    options = dict(spec['evaluation'])
    found = evaluation.evaluate(
      config,
      params,
      name=spec['label'],
      algorithm=spec['method'],
      base_params=base_params if options.pop('base_prover') else None,
      **options,
    )
    seconds = time.perf_counter() - began
    result = sum_up(spec, found, rows, seconds, starts=starts)
    text = json.dumps(result, allow_nan=False) + '\n'
    if len(text) > MAX_BYTES:
      raise ValueError(
        f'the result has {len(text)} bytes, {MAX_BYTES} are allowed: lower '
        'evaluation.num_problems.'
      )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, text.encode())
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_ERROR
  return signals.EXIT_OK


def check_run_folder(config, folder: str):
  """Raises ValueError if an interrupted run there has another config."""
  recorded = workdir.read_config(folder)
  changed = recorded and workdir.difference(
    recorded, config.to_dict(), free=config_keys.PLACES
  )
  if changed:
    shown = ', '.join(f'{k}: {o!r} -> {n!r}' for k, (o, n) in changed.items())
    raise ValueError(
      f'{folder} holds a run with other settings ({shown}): delete that folder '
      'to train the cell anew.'
    )


def note_start(folder: str) -> list[int]:
  """Returns the steps before which a process of this run started.

  This one's is added: the newest that is saved. The next step compiles, which
  the count of compiled programs, begun anew, need not show.
  """
  path = Path(folder) / STARTS_NAME
  saved = Path(folder) / checkpoint.CHECKPOINTS_DIR
  names = [p.name for p in saved.iterdir()] if saved.is_dir() else []
  starts = json.loads(path.read_text()) if path.exists() else []
  starts.append(max((int(n) for n in names if n.isdecimal()), default=0))
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(path, json.dumps(starts).encode())
  return starts


def check_cost(config, rows: Sequence[Mapping], *, trained: bool):
  """Raises ValueError unless the run counted its cost and stopped by it."""
  if not trained:
    return
  spent = rows[-1].get('cost/cumulative') if rows else None
  if spent is None:
    raise ValueError(
      f'algorithm.name={config.algorithm.name!r} logs no cost/cumulative: it '
      'cannot be compared at equal cost.'
    )
  if spent < config.total_cost:
    raise ValueError(
      f'the run ended after {spent:,.0f} of total_cost={config.total_cost:,.0f}'
      f' at total_steps={config.total_steps}: raise total_steps.'
    )


def sum_up(
  spec: Mapping,
  found: Mapping,
  rows: Sequence[Mapping],
  seconds: float,
  *,
  starts: Sequence[int] = (),
) -> dict:
  """Returns the content of a cell's JSON.

  Args:
    spec: of the cell.
    found: of `evaluation.evaluate`.
    rows: metrics of the run, one a step; none of a policy that is not trained.
    seconds: that the evaluation took.
    starts: of `note_start`.

  Returns:
    The settings; 'seconds' (those of training without compiling), 'steps',
    'cost' and 'tokens' of training; 'scalars', 'stopping' and, where they were
    measured, 'extrapolation' and 'base_prover' as in eval.json; 'budgets' and
    'accuracy_at_budget'; 'learning' (`learning_curves`); and in 'problems'
    a digest that is equal where the problems are. No values of single problems:
    the unit is the seed, and a study has hundreds of cells.
  """
  of_problem = found['per_problem']
  last = rows[-1] if rows else {}
  result = {
    'format': study_files.FORMAT,
    **{k: spec[k] for k in ('dose', 'method', 'seed', 'label', 'train')},
    'config': spec['config'],
    'evaluation': spec['evaluation'],
    'machine': found['machine'],
    'horizon': found['horizon'],
    'num_problems': found['num_problems'],
    'steps': int(last.get('step', 0)),
    'cost': last.get('cost/cumulative', 0.0),
    'tokens': sum(row['rollout/tokens_sum'] for row in rows),
    'seconds': {
      'train': sum(without_compiling(rows, starts)),
      'evaluate': seconds,
    },
    'scalars': found['scalars'],
    'stopping': found['stopping'],
    'budgets': found['budgets'],
    'accuracy_at_budget': found['accuracy_at_budget'],
    'learning': learning_curves(rows, starts),
    'problems': zlib.crc32(str(of_problem['cluster']).encode()),
  }
  for name in ('extrapolation', 'base_prover'):
    if name in found:
      result[name] = found[name]
  return rounded(result)


def learning_curves(
  rows: Sequence[Mapping], starts: Sequence[int] = ()
) -> dict:
  """Returns what was learnt against steps, cost and seconds.

  'held_out' holds the points at which held-out problems were measured, and
  'train' the reward and tokens of at most MAX_POINTS steps. Seconds are those
  of training steps alone, without evaluation; a step in which a program was
  compiled counts as the median of those in which none was, since a cell that
  finds its programs in the cache must not look quicker.
  """
  steps = [row['step'] for row in rows]
  clock = np.cumsum(without_compiling(rows, starts)) if rows else np.zeros(0)
  at = dict(zip(steps, clock.tolist()))
  held_out = [row for row in rows if 'eval/accuracy' in row]
  stride = max(1, -(-len(rows) // MAX_POINTS))

  def columns(chosen, names):
    return {
      'step': [row['step'] for row in chosen],
      'cost': [row['cost/cumulative'] for row in chosen],
      'seconds': [at[row['step']] for row in chosen],
      **{k: [row[name] for row in chosen] for k, name in names.items()},
    }

  return {
    'held_out': columns(
      held_out,
      {
        'accuracy': 'eval/accuracy',
        'regret': 'eval/regret_token_weighted',
        'tokens': 'eval/tokens_mean',
      },
    ),
    'train': columns(
      rows[stride - 1 :: stride],
      {'reward': 'rollout/reward_mean', 'tokens': 'rollout/tokens_mean'},
    ),
  }


def without_compiling(
  rows: Sequence[Mapping], starts: Sequence[int] = ()
) -> list[float]:
  """Returns each step's seconds, those that compiled replaced by the median.

  Args:
    rows: metrics, one a step.
    starts: steps behind which a process started: the next one compiled.
  """
  before = [0, *(row['compile/count'] for row in rows[:-1])]
  compiled = [
    row['compile/count'] != b or row['step'] - 1 in starts
    for row, b in zip(rows, before)
  ]
  plain = [r['time/step_s'] for r, c in zip(rows, compiled) if not c]
  typical = float(np.median(plain)) if plain else None
  return [
    typical if c and typical is not None else row['time/step_s']
    for row, c in zip(rows, compiled)
  ]


def rounded(value: Any, digits: int = 5) -> Any:
  """Returns nested values with floats rounded to some decimals."""
  if isinstance(value, Mapping):
    # A setting is kept as it is: it is compared.
    return {
      k: v
      if k in ('config', 'evaluation')
      else rounded(v, 3 if k == 'per_problem' else digits)
      for k, v in value.items()
    }
  if isinstance(value, list | tuple):
    return [rounded(v, digits) for v in value]
  return round(value, digits) if isinstance(value, float) else value


def end_with_parent():
  """Ends this process, after saving, when its standard input ends."""

  def wait():
    # Not sys.stdin: a thread that holds its lock fails the interpreter's exit.
    while os.read(0, 1024):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None, *, run: Callable = run) -> int:
  """Returns the exit code of one process of a study.

  Args:
    arguments: of the command line.
    run: `(spec, folder, out) -> exit code`.
  """
  parser = argparse.ArgumentParser(
    description='One process of a study, started by python -m meta_rl.study.'
  )
  parser.add_argument('spec', help='JSON of the cell')
  parser.add_argument('folder', help='run folder')
  parser.add_argument('out', help='JSON to write')
  options = parser.parse_args(arguments)
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_threefry_partitionable', True)
  heap.keep_memory()
  env.enable_compile_cache()
  end_with_parent()
  spec = json.loads(Path(options.spec).read_text(encoding='utf-8'))
  return run(spec, options.folder, options.out)


if __name__ == '__main__':
  sys.exit(main())
