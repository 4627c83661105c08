"""`meta_rl.train` by several processes: one run, whoever takes part in it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from meta_rl import checkpoint, metrics

FLAGS = (
  '--config=mrt_countdown',
  '--config.parallel.kind=jit',
  '--config.rollout.num_prompts=8',
  '--config.rollout.group_size=4',
  '--config.rollout.thinking_budget=36',
  '--config.prover.max_episodes=4',
  '--config.batching.micro_batches=1',
  '--config.batching.length_buckets=()',
  '--config.total_steps=4',
  '--config.eval.every=2',
  '--config.eval.num_problems=30',
  '--config.eval.batch_size=15',
  '--config.checkpoint.every=2',
  '--config.log.print_every=1',
  '--config.log.samples_every=2',
)
HEARTBEAT_S = 10


def start(count, devices, folder, *flags):
  """Returns the processes of one run, begun."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'META_RL_COORDINATOR': f'localhost:{port}',
    'META_RL_NUM_PROCESSES': str(count),
    'META_RL_HEARTBEAT_S': str(HEARTBEAT_S),
  }
  command = [sys.executable, '-m', 'meta_rl.train', f'--workdir={folder}']
  return [
    subprocess.Popen(
      [*command, *FLAGS, *flags],
      cwd=ROOT,
      env=environment | {'META_RL_PROCESS_ID': str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def finish(processes, timeout=400):
  """Returns (exit codes, stdouts, stderrs)."""
  found = [process.communicate(timeout=timeout) for process in processes]
  outs, errs = zip(*found)
  return [process.returncode for process in processes], outs, errs


def wait_for_step(folder, step, timeout=300):
  """Returns once a step's metrics are there."""
  path, until = folder / metrics.METRICS_NAME, time.monotonic() + timeout
  while not path.exists() or metrics.read_metrics(path)[-1:] == []:
    assert time.monotonic() < until
    time.sleep(0.05)
  while metrics.read_metrics(path)[-1]['step'] < step:
    assert time.monotonic() < until
    time.sleep(0.05)


def rows_of(folder):
  return metrics.read_metrics(folder / metrics.METRICS_NAME)


def assert_same_run(folder, whole):
  """Metrics and weights agree up to the order of additions."""
  rows, expected = rows_of(folder), rows_of(whole)
  assert [r['step'] for r in rows] == [r['step'] for r in expected]
  for row, other in zip(rows, expected):
    for name, value in other.items():
      if name.split('/')[0] not in ('time', 'compile'):
        assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
  found, wanted = (params_of(each) for each in (folder, whole))
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=2e-5)


def params_of(folder):
  import orbax.checkpoint as ocp

  with checkpoint.open_folder(folder) as saved:
    step = saved.latest_step()
  tree = ocp.PyTreeCheckpointer().restore(
    folder / checkpoint.CHECKPOINTS_DIR / str(step) / 'state'
  )
  flat = {}

  def walk(node, name):
    for key, value in node.items():
      if isinstance(value, dict):
        walk(value, f'{name}{key}/')
      else:
        flat[f'{name}{key}'] = np.asarray(value)

  walk(tree['params'], '')
  return flat


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The run of one process with four devices."""
  folder = tmp_path_factory.mktemp('one') / 'run'
  codes, _, errs = finish(start(1, 4, folder))
  assert codes == [0], errs
  return folder


@pytest.mark.full
@pytest.mark.parametrize(
  'count, devices, mesh',
  [(2, 2, {}), (4, 1, {}), (2, 2, {'data': 1, 'fsdp': 4})],
)
def test_the_same_run_by_several_processes(tmp_path, one, count, devices, mesh):
  flags = [f'--config.parallel.mesh.{k}={v}' for k, v in mesh.items()]
  codes, outs, errs = finish(start(count, devices, tmp_path / 'run', *flags))
  assert codes == [0] * count, errs
  assert_same_run(tmp_path / 'run', one)
  # Process 0 alone writes and speaks.
  assert all('step 4/4' not in err for err in errs[1:])
  assert 'step 4/4' in errs[0]
  for i, out in enumerate(outs):
    assert out.splitlines()[0].startswith(f'process {i} of {count} (')
  samples = sorted((tmp_path / 'run' / 'samples').iterdir())
  kept = sorted((one / 'samples').iterdir())
  assert [s.name for s in samples] == [s.name for s in kept]
  for mine, theirs in zip(samples, kept):
    text = lambda path: [
      json.loads(line)['prompt'] for line in path.read_text().splitlines()
    ]
    assert text(mine) == text(theirs)


@pytest.mark.full
def test_preempted_and_resumed_by_others(tmp_path, one):
  """SIGTERM to one process saves one step on all; others go on from there."""
  folder = tmp_path / 'run'
  # More steps than will be run, for the signal to find it at work.
  processes = start(2, 2, folder, '--config.total_steps=400')
  wait_for_step(folder, 1)
  processes[1].send_signal(signal.SIGTERM)
  codes, _, errs = finish(processes)
  assert codes == [75, 75], errs
  assert 'stopped by SIGTERM after step' in errs[0]
  stopped = rows_of(folder)[-1]['step']
  with checkpoint.open_folder(folder) as saved:
    assert saved.latest_step() == stopped
  total = max(4, stopped)
  codes, outs, errs = finish(
    start(
      4,
      1,
      folder,
      f'--config.total_steps={total}',
      '--config.parallel.mesh.data=2',
      '--config.parallel.mesh.fsdp=2',
      '--allow_change=total_steps',
    )
  )
  assert codes == [0] * 4, errs
  assert f'resuming after step {stopped}' in outs[0] or total == stopped
  if total == 4:
    assert_same_run(folder, one)


@pytest.mark.full
def test_a_lost_process_ends_the_others(tmp_path):
  processes = start(2, 1, tmp_path / 'run', '--config.total_steps=400')
  wait_for_step(tmp_path / 'run', 1)
  processes[1].kill()
  began = time.monotonic()
  codes, _, errs = finish(processes)
  assert time.monotonic() - began < 4 * HEARTBEAT_S
  assert codes[0] not in (0, 75)
  assert 'another process is lost' in errs[0]
  # jax's own words: which.
  assert 'tasks are unhealthy (stopped sending heartbeats):\n1\n' in errs[0]


@pytest.mark.full
def test_an_error_of_one_process_ends_all(tmp_path):
  """Process 1 has no device for its rows: it says so, and 0 says who."""
  (tmp_path / 'run').write_text('a file')
  codes, _, errs = finish(start(2, 1, tmp_path / 'run'))
  assert codes == [1, 1]
  for err in errs:
    assert f'workdir {tmp_path / "run"} is a file' in err
    assert 'Traceback' not in err
