"""The study: a matrix of methods, doses and seeds, at equal cost.

    python -m meta_rl.study --config=configs/study_countdown.py --workdir=DIR

Every cell is a process of its own (meta_rl/study_cell.py), one at a time or
`--num_workers` side by side, and leaves one small JSON file in DIR/cells
(meta_rl/study_cells.py). The same command goes on where it was stopped: cells
that are done are skipped, one that was interrupted resumes from its checkpoint,
and one that failed is tried again. All configs are looked at before the first
cell starts. At the end, study.html, study.json and study.md say what is known,
and what was not run.

    --only=u4/mrt*/0     dose/method/seed, patterns, comma-separated
    --max_minutes=60     start no cell after that; 0: write the report alone
    --keep_runs          keep the run folders of cells that are done
    --variance           measure the variance of the gradient instead of cells

Exit codes: 0 done or out of time, 1 an error (one line) or cells that failed,
75 stopped by SIGTERM or Ctrl-C after the cells had saved.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from meta_rl import (
  command_line,
  metrics,
  signals,
  study_cells,
  study_files,
  study_report,
  study_results,
  workdir,
)
from meta_rl.files import atomic_write

FLAGS = flags.FLAGS
POLL_S = 0.2
_ENDED = -signal.SIGTERM  # while it evaluates there is nothing to save


class Job(NamedTuple):
  """One process of a study.

  Attributes:
    name: of its files, 'u4_grpo_0'.
    path: as it is said, 'u4/grpo/0'.
    module: of meta_rl, that runs it.
    spec: JSON values, its input.
    out: the JSON file that it writes.
    failed: the JSON file that says how it failed.
  """

  name: str
  path: str
  module: str
  spec: Mapping[str, Any]
  out: Path
  failed: Path


def run(
  study: ConfigDict,
  folder: str,
  *,
  only: str = '',
  num_workers: int = 1,
  max_minutes: float | None = None,
  keep_runs: bool = False,
  variance: bool = False,
  allow_change: str = '',
  command: str = '',
  start: Callable | None = None,
) -> int:
  """Runs a study as far as it goes and writes its report.

  Args:
    study: of configs/study_*.py.
    folder: the study's folder.
    only: which cells, as in `study_cells.select`.
    num_workers: processes side by side, >= 1.
    max_minutes: after which no cell is started; None: no limit.
    keep_runs: keep the run folders of cells that are done.
    variance: measure gradient variance instead of training cells.
    allow_change: keys of the study that may differ from those of its folder.
    command: for the report, how this was started.
    start: `(job, folder, cores) -> process`, for tests.

  Returns:
    The exit code.
  """
  try:
    if num_workers < 1:
      raise ValueError(f'num_workers={num_workers} is given; allowed is >= 1.')
    if max_minutes is not None and not max_minutes >= 0:  # NaN too
      raise ValueError(
        f'max_minutes={max_minutes:g} is given; allowed is >= 0, or none for '
        'no limit.'
      )
    study_cells.check(study)
    study_results.check_figures(study)
    workdir.lock_and_check(study)
    chosen = study_cells.select(study_cells.keys(study), only)
    make_jobs = variance_jobs if variance else cell_jobs
    jobs = make_jobs(study, chosen, folder)
    study_files.check_done(study, folder)
    study_files.check_variances(study, folder)
    with workdir.open_workdir(
      folder, study.to_dict(), allow_change=allow_change
    ):
      todo = [job for job in jobs if not job.out.exists()]
      print(
        f'{len(jobs)} selected, {len(jobs) - len(todo)} done already',
        flush=True,
      )
      code = run_jobs(
        todo,
        Path(folder),
        num_workers=num_workers,
        max_minutes=max_minutes,
        keep_runs=keep_runs,
        start=start or start_process,
      )
      report = study_report.write(study, folder, command=command)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_ERROR
  print(report.table)
  print('\nWrote ' + ', '.join(str(path) for path in report.files))
  return code


def cell_jobs(study, chosen: Sequence[study_cells.Key], folder) -> list[Job]:
  """Returns the job of every cell.

  Raises:
    ValueError: a config that cannot be used.
  """
  jobs = []
  for key, spec in study_cells.make_specs(study, chosen).items():
    paths = [
      study_files.path_of(folder, key, part)
      for part in (study_files.CELLS, study_files.FAILED)
    ]
    jobs.append(Job(key.name, key.path, 'study_cell', spec, *paths))
  return jobs


def variance_jobs(study, chosen: Sequence[study_cells.Key], folder):
  """Returns the job of every dose that is chosen.

  Raises:
    ValueError: a config that cannot be used.
  """
  doses = sorted({key.dose for key in chosen})
  jobs = []
  for dose, spec in study_cells.make_variance_specs(study, doses).items():
    # A dot, which joins no names of cells.
    name = f'variance.{dose}'
    jobs.append(
      Job(
        name,
        f'variance of {dose}',
        'study_variance',
        spec,
        Path(folder) / study_files.VARIANCE / f'{dose}.json',
        Path(folder) / study_files.FAILED / f'{name}.json',
      )
    )
  return jobs


def run_jobs(
  todo: Sequence[Job],
  folder: Path,
  *,
  num_workers: int,
  max_minutes: float | None,
  keep_runs: bool,
  start: Callable,
) -> int:
  """Runs jobs side by side until none is left; returns the exit code.

  A signal, or the end of the time, starts no further one: the one asks those
  that run to save and leave, the other lets them finish.
  """
  began = time.monotonic()
  waiting, running, failed, done = list(todo), {}, [], 0
  interrupted = 0
  cores = split_cores(num_workers)
  with signals.GracefulExit() as stop, ending(running):
    asked = False
    while waiting or running:
      minutes = (time.monotonic() - began) / 60
      late = max_minutes is not None and minutes >= max_minutes
      if stop and not asked:
        asked = True
        for job, process, _ in running.values():
          print(f'{job.path}: asked to save and leave', flush=True)
          # It ends with its input, as it would if this process were killed: a
          # signal as well could be the second, which does not wait for a save.
          process.stdin.close()
      free = [i for i in range(num_workers) if i not in running]
      while waiting and free and not (late or stop):
        job = waiting.pop(0)
        process = start(job, folder, cores[free[0]])
        running[free.pop(0)] = job, process, time.monotonic()
      if (late or stop) and not running:
        break
      for slot, (job, process, since) in list(running.items()):
        code = process.poll()
        if code is None:
          continue
        del running[slot]
        process.stdin.close()
        seconds = time.monotonic() - since
        if code == signals.EXIT_OK and job.out.exists():
          done += 1
          finish(job, folder, keep_runs)
          each = (time.monotonic() - began) / done
          left = each * (len(waiting) + len(running))
          say(job, seconds, len(todo), done, left)
        elif code == signals.EXIT_INTERRUPTED or (stop and code == _ENDED):
          interrupted += 1
          print(f'{job.path}: interrupted, its checkpoint is kept', flush=True)
        else:
          failed.append(record_failure(job, folder, code, seconds))
      if running:
        time.sleep(POLL_S)
    if waiting:
      print(f'{len(waiting)} not started', flush=True)
  if failed:
    print(
      f'error: {len(failed)} failed: {", ".join(failed)}; the same command '
      'tries them again',
      file=sys.stderr,
    )
  if stop:  # whatever failed before: who started it may start it again
    return signals.EXIT_INTERRUPTED
  if failed:
    return signals.EXIT_ERROR
  # Of one, by a signal to its process alone.
  return signals.EXIT_INTERRUPTED if interrupted else signals.EXIT_OK


@contextlib.contextmanager
def ending(running: Mapping):
  """Waits for what still runs to save and leave, if an error ends the loop.

  A full disk, say: the folder must not be free while processes write to it.
  """
  try:
    yield
  finally:
    for _, process, _ in running.values():
      process.stdin.close()
    for _, process, _ in running.values():
      process.wait()


def split_cores(num_workers: int) -> list[set[int] | None]:
  """Returns each worker's cores; None: all, for there are too few to split."""
  if num_workers == 1 or not hasattr(os, 'sched_getaffinity'):
    return [None] * num_workers
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < num_workers:
    return [None] * num_workers
  return [set(cores[i::num_workers]) for i in range(num_workers)]


def start_process(job: Job, folder: Path, cores) -> subprocess.Popen:
  """Returns the process of a job.

  Its standard input is a pipe that ends with this process, upon which it leaves
  (`study_cell.end_with_parent`). It has a session of its own: Ctrl-C reaches
  the study alone, which passes it on once.
  """
  spec, log = folder / 'runs' / f'{job.name}.json', log_of(folder, job)
  for path in (spec, log, job.out):
    path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(spec, json.dumps(job.spec).encode())
  with open(log, 'wb') as output:
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        f'meta_rl.{job.module}',
        str(spec),
        str(run_folder(folder, job)),
        str(job.out),
      ],
      stdin=subprocess.PIPE,
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
  if cores is not None:
    os.sched_setaffinity(process.pid, cores)
  return process


def run_folder(folder: Path, job: Job) -> Path:
  """Returns the run folder of a job."""
  return folder / 'runs' / job.name


def log_of(folder: Path, job: Job) -> Path:
  """Returns the file of what a job printed."""
  return folder / 'logs' / f'{job.name}.log'


def finish(job: Job, folder: Path, keep_runs: bool):
  """Clears away what a job that is done needs no more."""
  job.failed.unlink(missing_ok=True)
  if not keep_runs:
    shutil.rmtree(run_folder(folder, job), ignore_errors=True)
    (folder / 'runs' / f'{job.name}.json').unlink(missing_ok=True)


def say(job: Job, seconds: float, total: int, done: int, left: float):
  """Prints that a job is done, and what it found."""
  found = json.loads(job.out.read_text(encoding='utf-8'))
  figures = ''
  if 'scalars' in found:
    scalars = found['scalars']
    figures = (
      f'accuracy {scalars["accuracy"]["mean"]:.3f}, '
      f'regret {scalars["regret_token_weighted"]["mean"]:.4f}, '
    )
  print(
    f'[{done}/{total}] {job.path}: {figures}'
    f'{metrics.format_seconds(seconds)}, {metrics.format_seconds(left)} left',
    flush=True,
  )


def record_failure(job: Job, folder: Path, code: int, seconds: float) -> str:
  """Writes down how a job failed; returns its path."""
  try:
    text = log_of(folder, job).read_text(encoding='utf-8', errors='replace')
  except OSError:
    text = ''
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  error = lines[-1] if lines else 'it printed nothing'
  if code < 0:
    error = f'killed by signal {-code}; its last line: {error}'
  elif code == signals.EXIT_OK:
    error = f'it ended without a result; its last line: {error}'
  names = {k: job.spec[k] for k in ('dose', 'method', 'seed') if k in job.spec}
  failure = {
    **names,
    'code': code,
    'error': error,
    'seconds': round(seconds, 1),
  }
  job.failed.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(failure, indent=2) + '\n'
  atomic_write(job.failed, text.encode())
  print(f'{job.path}: failed: {error}', file=sys.stderr, flush=True)
  return job.path


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Study config.')
  flags.DEFINE_string('workdir', None, 'Folder of the study.')
  flags.DEFINE_string('only', '', 'dose/method/seed, patterns with commas.')
  flags.DEFINE_integer('num_workers', 1, 'Cells side by side.')
  flags.DEFINE_float('max_minutes', None, 'Start no cell after that.')
  flags.DEFINE_boolean('keep_runs', False, 'Keep run folders of done cells.')
  flags.DEFINE_boolean('variance', False, 'Measure gradient variance instead.')
  flags.DEFINE_string(
    'allow_change', '', 'Study keys that may differ: methods,seeds.'
  )
  flags.mark_flags_as_required(['config', 'workdir'])


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  sys.exit(
    run(
      FLAGS.config,
      FLAGS.workdir,
      only=FLAGS.only,
      num_workers=FLAGS.num_workers,
      max_minutes=FLAGS.max_minutes,
      keep_runs=FLAGS.keep_runs,
      variance=FLAGS.variance,
      allow_change=FLAGS.allow_change,
      command=' '.join(['python -m meta_rl.study', *sys.argv[1:]]),
    )
  )


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
