"""Tests of meta_rl.study: what runs, what is skipped, how it stops."""

import contextlib
import fcntl
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import study_made
from conftest import ROOT

from meta_rl import (
  metrics,
  signals,
  study,
  study_cells,
  study_files,
  study_report,
  workdir,
)
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key

pytest_plugins = ['small_runs']

# The order of the tiny study: seed by seed, the base once.
ORDER = [
  'tiny/base/0',
  'tiny/grpo/0',
  'tiny/mrt_exact/0',
  'tiny/grpo/1',
  'tiny/mrt_exact/1',
]


class Process:
  """A made-up process: it runs for some polls, then does `end(self)`.

  It leaves with EX_TEMPFAIL at the poll after its standard input was closed.
  """

  def __init__(self, job, folder, cores, polls, end):
    self.job, self.folder, self.cores = job, folder, cores
    self.stdin = io.BytesIO()
    self.code = None
    self._polls, self._end = polls, end

  def poll(self):
    if self.code is None and self.stdin.closed:
      self.code = signals.EXIT_INTERRUPTED
    if self.code is None:
      self._polls -= 1
      if self._polls < 0:
        self.code = self._end(self)
    return self.code

  def wait(self):
    assert self.stdin.closed
    return self.poll()


def write_cell(process):
  """Ends a process well: with the result of its cell."""
  job = process.job
  key = Key(*(job.spec[name] for name in Key._fields))
  cell = study_made.make_cell(
    study_countdown.get_config('tiny'), key, spec=job.spec
  )
  job.out.parent.mkdir(parents=True, exist_ok=True)
  job.out.write_text(json.dumps(cell))
  return signals.EXIT_OK


def failing(code, output):
  """Ends a process with a code and what it printed."""

  def end(process):
    path = study.log_of(process.folder, process.job)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(output)
    return code

  return end


class Starter:
  """Starts made-up processes; `ends` maps a path to its end, else it is well.

  Attributes:
    started: the processes, in order.
    most: how many ran at once.
  """

  def __init__(self, polls=1, ends=None):
    self.started, self.most = [], 0
    self._polls, self._ends = polls, ends or {}

  def __call__(self, job, folder, cores):
    end = self._ends.get(job.path, write_cell)
    study.run_folder(folder, job).mkdir(parents=True)
    self.started.append(Process(job, folder, cores, self._polls, end))
    running = sum(process.code is None for process in self.started)
    self.most = max(self.most, running)
    return self.started[-1]

  @property
  def paths(self):
    return [process.job.path for process in self.started]


@pytest.fixture
def tiny():
  return study_countdown.get_config('tiny')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """No waiting between polls, and no report: it has tests of its own."""
  monkeypatch.setattr(study, 'POLL_S', 0.0)
  written = study_report.Written([], 'the table')
  monkeypatch.setattr(study.study_report, 'write', lambda *a, **k: written)


def run(config, folder, start=None, **options):
  """Runs a study; returns its exit code, stdout, stderr and the starter."""
  start = start or Starter()
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = study.run(config, str(folder), start=start, **options)
  return types.SimpleNamespace(
    code=code, out=out.getvalue(), err=err.getvalue(), start=start
  )


def failures(folder):
  """The failures that are written down, by file."""
  paths = sorted((folder / 'failed').glob('*.json'))
  return {path.name: json.loads(path.read_text()) for path in paths}


# ---- what runs


def test_all_cells_run_in_order_and_are_skipped_the_next_time(tiny, tmp_path):
  first = run(tiny, tmp_path)
  assert first.code == signals.EXIT_OK, first.err
  assert first.start.paths == ORDER
  assert first.start.most == 1
  assert '5 selected, 0 done already' in first.out
  assert '[5/5] tiny/mrt_exact/1: accuracy 0.' in first.out
  assert 'the table' in first.out
  again = run(tiny, tmp_path)
  assert again.code == signals.EXIT_OK
  assert again.start.paths == []
  assert '5 selected, 5 done already' in again.out
  # One that is deleted is run again, alone.
  study_files.path_of(tmp_path, Key('tiny', 'grpo', 1)).unlink()
  assert run(tiny, tmp_path).start.paths == ['tiny/grpo/1']


def test_only_what_is_chosen(tiny, tmp_path):
  found = run(tiny, tmp_path, only='tiny/mrt*/1, */base')
  assert found.start.paths == ['tiny/base/0', 'tiny/mrt_exact/1']
  assert '2 selected' in found.out
  found = run(tiny, tmp_path, only='u4')
  assert found.code == signals.EXIT_ERROR
  assert found.err.startswith('error: --only=u4 matches no cell')
  assert found.err.count('\n') == 1


@pytest.mark.parametrize('keep', [False, True])
def test_run_folders_of_done_cells(tiny, tmp_path, keep):
  run(tiny, tmp_path, only='tiny/grpo/0', keep_runs=keep)
  assert (tmp_path / 'runs' / 'tiny_grpo_0').exists() == keep


def test_workers_run_side_by_side_on_cores_of_their_own(
  tiny, tmp_path, monkeypatch
):
  monkeypatch.setattr(study.os, 'sched_getaffinity', lambda pid: {4, 5, 6, 9})
  found = run(tiny, tmp_path, Starter(polls=3), num_workers=2)
  assert found.code == signals.EXIT_OK
  assert sorted(found.start.paths) == sorted(ORDER)
  assert found.start.most == 2
  assert {tuple(sorted(p.cores)) for p in found.start.started} == {
    (4, 6), (5, 9),
  }  # fmt: skip


def test_split_cores(monkeypatch):
  monkeypatch.setattr(study.os, 'sched_getaffinity', lambda pid: {0, 1, 2})
  assert study.split_cores(1) == [None]
  assert study.split_cores(3) == [{0}, {1}, {2}]
  assert study.split_cores(2) == [{0, 2}, {1}]
  assert study.split_cores(4) == [None] * 4  # too few to split


# ---- what fails


def test_a_failure_is_written_down_and_tried_again(tiny, tmp_path):
  ends = {
    'tiny/grpo/0': failing(1, 'step 1\nerror: no data\n\n'),
    'tiny/mrt_exact/0': failing(-9, 'step 7'),
    'tiny/grpo/1': failing(3, ''),
    'tiny/mrt_exact/1': failing(0, 'bye'),
  }
  found = run(tiny, tmp_path, Starter(ends=ends))
  assert found.code == signals.EXIT_ERROR
  # One that fails stops no other.
  assert found.start.paths == ORDER
  assert 'error: 4 failed: tiny/grpo/0, ' in found.err
  assert 'the table' in found.out
  written = failures(tmp_path)
  assert {name: value['error'] for name, value in written.items()} == {
    'tiny_grpo_0.json': 'error: no data',
    'tiny_grpo_1.json': 'it printed nothing',
    'tiny_mrt_exact_0.json': 'killed by signal 9; its last line: step 7',
    'tiny_mrt_exact_1.json': ('it ended without a result; its last line: bye'),
  }
  first = written['tiny_grpo_0.json']
  assert (first['dose'], first['method'], first['seed']) == ('tiny', 'grpo', 0)
  assert first['code'] == 1
  # What failed keeps its run folder: it may go on from a checkpoint.
  assert (tmp_path / 'runs' / 'tiny_grpo_0').exists()
  shutil.rmtree(tmp_path / 'runs')
  again = run(tiny, tmp_path)
  assert again.code == signals.EXIT_OK
  assert again.start.paths == ORDER[1:]
  assert failures(tmp_path) == {}


def test_an_error_in_starting_waits_for_what_runs(tiny, tmp_path):
  """A full disk, say; nothing goes on writing into a folder that is free."""
  start = Starter(polls=10**9)

  def full(job, folder, cores):
    if start.started:
      raise OSError(28, 'No space left on device')
    return start(job, folder, cores)

  found = run(tiny, tmp_path, full, num_workers=2)
  assert found.code == signals.EXIT_ERROR
  assert 'error: [Errno 28] No space left on device' in found.err
  (process,) = start.started
  assert process.stdin.closed
  assert process.code == signals.EXIT_INTERRUPTED


# ---- how it stops


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_cells_save_and_leave(tiny, tmp_path, number):
  polls = itertools.count()

  def end(process):
    del process
    raise AssertionError('it was asked to leave before')

  class Signalled(Starter):
    def __call__(self, job, folder, cores):
      process = super().__call__(job, folder, cores)
      poll = process.poll

      def signalled():
        if next(polls) == 5:
          signal.raise_signal(number)
        return poll()

      process.poll = signalled
      return process

  start = Signalled(polls=10**9, ends=dict.fromkeys(ORDER, end))
  found = run(tiny, tmp_path, start, num_workers=2)
  assert found.code == signals.EXIT_INTERRUPTED == 75
  assert start.paths == ORDER[:2]
  assert all(process.stdin.closed for process in start.started)
  assert found.out.count('interrupted, its checkpoint is kept') == 2
  assert '3 not started' in found.out
  assert failures(tmp_path) == {}
  assert 'the table' in found.out
  # The run folders stay, for the same command to go on with.
  assert (tmp_path / 'runs' / 'tiny_grpo_0').exists()


def test_what_fails_as_it_is_asked_to_leave_is_a_failure(tiny, tmp_path):
  """One cannot save, on a full disk; the other one had nothing to save."""

  def signalled(process):
    if process.job.path == 'tiny/base/0':
      signal.raise_signal(signal.SIGTERM)
      return failing(1, 'error: No space left')(process)
    return -signal.SIGTERM

  start = Starter(ends=dict.fromkeys(ORDER, signalled))
  found = run(tiny, tmp_path, start, num_workers=2)
  assert found.code == signals.EXIT_INTERRUPTED
  assert list(failures(tmp_path)) == ['tiny_base_0.json']
  assert 'tiny/base/0: failed: error: No space left' in found.err
  assert 'tiny/grpo/0: interrupted' in found.out


def test_a_cell_that_a_scheduler_interrupts_is_no_failure(tiny, tmp_path):
  ends = {'tiny/grpo/0': failing(signals.EXIT_INTERRUPTED, 'saved')}
  found = run(tiny, tmp_path, Starter(ends=ends))
  assert found.start.paths == ORDER
  assert 'tiny/grpo/0: interrupted' in found.out
  assert failures(tmp_path) == {}
  # Something is left, for the same command to go on with.
  assert found.code == signals.EXIT_INTERRUPTED


def test_no_minutes_write_the_report_alone(tiny, tmp_path):
  found = run(tiny, tmp_path, max_minutes=0)
  assert found.code == signals.EXIT_OK
  assert found.start.paths == []
  assert '5 not started' in found.out
  assert 'the table' in found.out


def test_out_of_time_what_runs_may_end(tiny, tmp_path, monkeypatch):
  """A clock that moves by half a minute whenever it is read."""
  ticks = itertools.count()
  clock = types.SimpleNamespace(
    monotonic=lambda: 30.0 * next(ticks), sleep=lambda seconds: None
  )
  monkeypatch.setattr(study, 'time', clock)
  found = run(tiny, tmp_path, max_minutes=2)
  assert found.code == signals.EXIT_OK
  assert 0 < len(found.start.paths) < 5
  assert found.start.paths == ORDER[: len(found.start.paths)]
  done = list((tmp_path / 'cells').glob('*.json'))
  assert len(done) == len(found.start.paths)


# ---- what is refused


def test_another_study_in_the_folder_is_refused(tiny, tmp_path):
  assert run(tiny, tmp_path).code == signals.EXIT_OK
  other = study_countdown.get_config('tiny')
  other.seeds.core = 3
  found = run(other, tmp_path)
  assert found.code == signals.EXIT_ERROR
  assert 'holds another config (seeds.core: 2 -> 3)' in found.err
  assert '--allow_change=seeds.core' in found.err
  assert found.start.paths == []
  more = run(other, tmp_path, allow_change='seeds')
  assert more.start.paths == ['tiny/grpo/2', 'tiny/mrt_exact/2']


def test_cells_of_other_settings_are_refused_chosen_or_not(tiny, tmp_path):
  assert run(tiny, tmp_path).code == signals.EXIT_OK
  other = study_countdown.get_config('tiny')
  other.methods.grpo.overrides.optimizer = {'learning_rate': 0.5}
  found = run(other, tmp_path, allow_change='methods', only='*/mrt_exact')
  assert found.code == signals.EXIT_ERROR
  assert 'cell tiny/grpo/0 was run with another config' in found.err
  assert found.err.count('\n') == 1


def test_a_folder_in_use_is_refused(tiny, tmp_path):
  with workdir.open_workdir(tmp_path, tiny.to_dict()):
    found = run(tiny, tmp_path)
  assert found.code == signals.EXIT_ERROR
  assert 'is in use by another run' in found.err
  assert found.start.paths == []


@pytest.mark.parametrize(
  'change, options, message',
  [
    ({}, {'num_workers': 0}, 'num_workers=0 is given; allowed is >= 1'),
    ({}, {'max_minutes': float('nan')}, 'max_minutes=nan is given; allowed is'),
    ({}, {'max_minutes': -1.0}, 'max_minutes=-1 is given; allowed is >= 0'),
    (
      {'methods.mrt_exact.overrides': {'optimzer': {'name': 'sgd'}}},
      {},
      'cell tiny/mrt_exact: unknown config key optimzer.name: did you mean',
    ),
    (
      {'predictions.p1.figure': 'speed'},
      {},
      'predictions.p1.figure',
    ),
    ({'reference': 'gpro'}, {}, "reference='gpro'"),
  ],
)
def test_a_wrong_study_is_one_line(tiny, tmp_path, change, options, message):
  for key, value in change.items():
    tiny.update_from_flattened_dict({key: value})
  found = run(tiny, tmp_path / 'x', **options)
  assert found.code == signals.EXIT_ERROR
  assert found.err.startswith('error: ')
  assert message in found.err
  assert found.err.count('\n') == 1
  # It was seen before anything was written.
  assert not (tmp_path / 'x').exists()


def test_a_damaged_cell_is_named(tiny, tmp_path):
  run(tiny, tmp_path)
  path = study_files.path_of(tmp_path, Key('tiny', 'grpo', 0))
  path.write_text(path.read_text()[:-9])
  found = run(tiny, tmp_path)
  assert found.code == signals.EXIT_ERROR
  assert 'tiny_grpo_0.json is damaged' in found.err
  assert 'delete it' in found.err


# ---- the variance


def test_the_variance_of_the_chosen_doses(tiny, tmp_path):
  def end(process):
    job = process.job
    job.out.parent.mkdir(parents=True, exist_ok=True)
    job.out.write_text(json.dumps({**job.spec, 'rows': []}))
    return signals.EXIT_OK

  tiny.doses.second = tiny.doses.tiny.copy_and_resolve_references()
  ends = {'variance of tiny': end, 'variance of second': end}
  start = Starter(ends=ends)
  found = run(tiny, tmp_path, start, variance=True, only='tiny')
  assert found.code == signals.EXIT_OK, found.err
  assert start.paths == ['variance of tiny']
  assert start.started[0].job.module == 'study_variance'
  start = Starter(ends=ends)
  assert run(tiny, tmp_path, start, variance=True).code == signals.EXIT_OK
  assert start.paths == ['variance of second']
  tiny.variance.draws = 7
  found = run(tiny, tmp_path, variance=True, allow_change='variance')
  assert found.code == signals.EXIT_ERROR
  assert 'variance of second was run with another variance' in found.err


def test_a_variance_of_other_settings_is_not_reported(tiny, tmp_path):
  """Nor beside new cells: the report would show it as theirs."""
  spec = study_cells.make_variance_specs(tiny, ['tiny'])['tiny']
  path = tmp_path / 'variance' / 'tiny.json'
  path.parent.mkdir()
  path.write_text(json.dumps({**spec, 'rows': []}))
  assert run(tiny, tmp_path, max_minutes=0).code == signals.EXIT_OK
  tiny.doses.tiny.total_cost = 6000.0
  found = run(tiny, tmp_path, max_minutes=0, allow_change='doses')
  assert found.code == signals.EXIT_ERROR
  assert 'variance of tiny was run with another config' in found.err
  assert 'total_cost: 5500.0 -> 6000.0' in found.err
  path.unlink()
  found = run(tiny, tmp_path, max_minutes=0, allow_change='doses')
  assert found.code == signals.EXIT_OK, found.err


# ---- processes


def test_a_process_gets_its_spec_and_ends_with_a_line(tmp_path):
  """The real one, of a spec without any key: the log holds how it ended."""
  job = study.Job(
    name='x',
    path='a/b/0',
    module='study_cell',
    spec={'config': {}},
    out=tmp_path / 'cells' / 'x.json',
    failed=tmp_path / 'failed' / 'x.json',
  )
  process = study.start_process(job, tmp_path, None)
  assert json.loads((tmp_path / 'runs' / 'x.json').read_text()) == job.spec
  code = process.wait(timeout=120)
  process.stdin.close()
  assert code == 1
  path = study.record_failure(job, tmp_path, code, 1.0)
  assert path == 'a/b/0'
  assert "KeyError: 'train'" in json.loads(job.failed.read_text())['error']


# ---- whole studies


@contextlib.contextmanager
def command(config, folder, data, *flags):
  """The command, running; it is killed at the end if it still does."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'meta_rl.study', f'--config={config}']
    + [f'--workdir={folder}', *flags],
    env=os.environ
    | {'META_RL_DATA': str(data), 'PYTHONPATH': study_path()}
    | {'JAX_NUM_CPU_DEVICES': '1', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


def study_path():
  """The import path of the commands: this checkout before what is given."""
  return os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
  )


def finish(config, folder, data, *flags, code=0):
  """Runs the command to its end; returns what it printed."""
  with command(config, folder, data, *flags) as process:
    out, _ = process.communicate(timeout=500)
  assert process.returncode == code, out
  return out


def shape(value):
  """What a JSON value is made of: keys, and kinds of what they hold."""
  if isinstance(value, dict):
    return {name: shape(part) for name, part in value.items()}
  if isinstance(value, list):
    return 'list' if not value else [shape(value[0])]
  return 'number' if isinstance(value, int | float) else type(value).__name__


@pytest.mark.full
def test_a_tiny_study_from_end_to_end(small_data, tmp_path):
  config, folder = 'study_countdown:tiny', tmp_path / 'study'
  out = finish(config, folder, small_data, '--num_workers=2')
  assert '5 selected, 0 done already' in out
  assert '| MRT, exact ' in out
  tiny = study_countdown.get_config('tiny')
  cells = {
    key.path: study_files.read(folder, key) for key in study_cells.keys(tiny)
  }
  assert list(cells) == ORDER
  assert not list((folder / 'runs').iterdir())
  total = tiny.doses.tiny.total_cost
  for path, cell in cells.items():
    # Equal cost: the step that reaches it is the last.
    steps, cost = cell['steps'], cell['cost']
    if path == 'tiny/base/0':
      assert steps == cost == 0
    else:
      assert cost * (steps - 1) / steps * 0.8 < total <= cost
      assert cell['learning']['held_out']['step'] == list(range(1, steps + 1))
      assert cell['seconds']['train'] == pytest.approx(
        cell['learning']['held_out']['seconds'][-1], abs=1e-4
      )
  assert len({cell['problems'] for cell in cells.values()}) == 1
  # What the tests of the report are made of is what cells are made of.
  for path in ('tiny/base/0', 'tiny/mrt_exact/0'):
    dose, method, seed = path.split('/')
    made = study_made.make_cell(tiny, Key(dose, method, int(seed)))
    real = dict(cells[path])
    for part in ('config', 'evaluation', 'scalars', 'stopping'):
      made.pop(part), real.pop(part)
    assert shape(real) == shape(made)
  summary = json.loads((folder / 'study.json').read_text())
  assert summary['cells'] == {'done': 5, 'failed': 0, 'not_run': 0}
  grpo = summary['doses']['tiny']['methods']['grpo']
  assert grpo['seeds'] == [0, 1]
  for name in ('regret', 'accuracy', 'regret_normalized', 'tokens'):
    assert grpo['figures'][name]['low'] <= grpo['figures'][name]['high']
  assert grpo['kept']['accuracy']['2']['value'] is not None

  # All is done: nothing is started.
  out = finish(config, folder, small_data)
  assert '5 selected, 5 done already' in out
  # One that is lost is run again, and comes out the same.
  key = Key('tiny', 'mrt_exact', 1)
  study_files.path_of(folder, key).unlink()
  out = finish(config, folder, small_data)
  assert '[1/1] tiny/mrt_exact/1' in out
  again = study_files.read(folder, key)
  untimed = lambda cell: {
    **cell,
    'seconds': None,
    'machine': None,  # the cores of a worker
    'learning': {
      part: {name: x for name, x in columns.items() if name != 'seconds'}
      for part, columns in cell['learning'].items()
    },
  }
  assert untimed(again) == untimed(cells[key.path])


ENDLESS = """
from meta_rl.configs import study_countdown

def get_config(arg=''):
  config = study_countdown.get_config('tiny')
  config.doses.tiny.total_cost = 1e12
  config.overrides.total_steps = 10**6
  config.overrides.eval.every = 10**6
  config.overrides.checkpoint = {'every': 1}
  return config
"""


def in_use(folder):
  """Whether a process holds the lock of a run folder."""
  with open(folder / '.lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def wait_until(condition, seconds=240):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.1)


@pytest.mark.full
def test_a_killed_study_leaves_no_process_and_goes_on(small_data, tmp_path):
  config, folder = tmp_path / 'endless.py', tmp_path / 'study'
  config.write_text(ENDLESS)
  flags = ['--only=tiny/grpo', '--num_workers=2']
  runs = [folder / 'runs' / f'tiny_grpo_{seed}' for seed in (0, 1)]
  logs = [folder / 'logs' / f'tiny_grpo_{seed}.log' for seed in (0, 1)]
  rows = lambda run: (
    len(metrics.read_metrics(run / 'metrics.jsonl'))
    if (run / 'metrics.jsonl').exists()
    else 0
  )
  with command(config, folder, small_data, *flags) as process:
    wait_until(lambda: all(rows(run) > 1 for run in runs))
    assert all(map(in_use, runs))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(in_use, runs)), 60)
  before = [rows(run) for run in runs]
  with command(config, folder, small_data, *flags) as process:
    wait_until(lambda: all(rows(r) > n + 1 for r, n in zip(runs, before)))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
  assert process.returncode == signals.EXIT_INTERRUPTED, out
  assert out.count('interrupted, its checkpoint is kept') == 2
  assert (folder / 'study.html').exists()
  for run_folder, log, count in zip(runs, logs, before):
    assert f'resuming after step {count} of' in log.read_text()
    assert not in_use(run_folder)
  assert not list((folder / 'failed').glob('*'))
