"""Runs of `meta_rl.train` by one or several processes, for tests."""

import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from meta_rl import checkpoint, command_line, metrics, setup_run

FLAGS = (
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


def start(
  count,
  devices,
  folder,
  *flags,
  heartbeat_s=60,
  code=None,
  config='mrt_countdown:tiny',
  shared=FLAGS,
):
  """Returns the processes of one run, begun."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'META_RL_COORDINATOR': f'localhost:{port}',
    'META_RL_NUM_PROCESSES': str(count),
    'META_RL_HEARTBEAT_S': str(heartbeat_s),
  }
  run = ['-c', code] if code else ['-m', 'meta_rl.train']
  command = [sys.executable, *run, f'--workdir={folder}']
  command += [f'--config={config}']
  return [
    subprocess.Popen(
      [*command, *shared, *flags],
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
  try:
    found = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()  # of those that have ended nothing comes of it
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
  """Parameters by their path, of the last checkpoint."""
  like = setup_run.abstract_params(command_line.run_config(folder))
  _, params = checkpoint.restore_params(folder, like, which='last')
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}
