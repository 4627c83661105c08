"""`meta_rl.train` by several processes: one run, whoever takes part in it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from launched import (
  FLAGS,
  HEARTBEAT_S,
  assert_same_run,
  finish,
  rows_of,
  start,
  wait_for_step,
)

from meta_rl import checkpoint


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The run of one process with four devices."""
  folder = tmp_path_factory.mktemp('one') / 'run'
  codes, _, errs = finish(start(1, 4, folder, config='mrt_countdown'))
  assert codes == [0], errs
  return folder


@pytest.mark.full
@pytest.mark.parametrize(
  'count, devices, mesh',
  [
    pytest.param(4, 1, {}, marks=pytest.mark.soak),
    (2, 2, {'data': 1, 'fsdp': 4}),
  ],
)
def test_the_same_run_by_several_processes(tmp_path, one, count, devices, mesh):
  flags = [f'--config.parallel.mesh.{k}={v}' for k, v in mesh.items()]
  codes, outs, errs = finish(
    start(count, devices, tmp_path / 'run', *flags, config='mrt_countdown')
  )
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


# What has batches or host work of its own: config and flags; {} is a folder.
WAYS = {
  'imitation': ('sft_countdown:tiny', ()),
  'own rewards': (
    'mrt_countdown',
    (
      *FLAGS,
      '--config.total_steps=2',
      "--config.rewards=(('own:short', 0.1),)",
    ),
  ),
  'dynamic sampling': (
    'dapo_countdown',
    (*FLAGS, '--config.total_steps=2', '--config.algorithm.max_length=36'),
  ),
  'a file': (
    'external_countdown:tiny',
    ('--config.rollout.source=jsonl:{}/rollouts.jsonl',),
  ),
}


@pytest.mark.full
@pytest.mark.parametrize(
  'way',
  [
    'own rewards',
    *(
      pytest.param(way, marks=pytest.mark.soak)
      for way in WAYS
      if way != 'own rewards'
    ),
  ],
)
def test_so_is_whatever_it_trains_on(tmp_path, monkeypatch, way):
  config, flags = WAYS[way]
  flags = [flag.format(tmp_path) if '{}' in flag else flag for flag in flags]
  flags.append('--config.parallel.kind=jit')
  (tmp_path / 'own.py').write_text(
    'def short(batch):\n  return [-int(n) / 100 for n in batch["tokens"]]\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  if way == 'a file':
    generate = [sys.executable, '-m', 'meta_rl.generate', f'--config={config}']
    generate += ['--num_prompts=16', '--group_size=4']
    generate += [f'--out={tmp_path}/rollouts.jsonl']
    subprocess.run(generate, cwd=ROOT, check=True, capture_output=True)
  for count in (1, 2):
    folder = tmp_path / str(count)
    codes, _, errs = finish(
      start(count, 2 // count, folder, *flags, config=config, shared=())
    )
    assert codes == [0] * count, errs
  assert len(rows_of(tmp_path / '1')) >= 2
  assert_same_run(tmp_path / '2', tmp_path / '1')


@pytest.mark.soak
@pytest.mark.full
def test_preempted_and_resumed_by_others(tmp_path, one):
  """SIGTERM to one process saves one step on all; others go on from there."""
  folder = tmp_path / 'run'
  # The signal finds it before its first step, which it then takes and saves.
  processes = start(2, 2, folder, config='mrt_countdown')
  processes[0].stdout.readline()
  while not (folder / 'config.json').exists():
    assert processes[0].poll() is None
    time.sleep(0.05)
  processes[1].send_signal(signal.SIGTERM)
  codes, _, errs = finish(processes)
  assert codes == [75, 75], errs
  assert 'stopped by SIGTERM after step 1' in errs[0]
  with checkpoint.open_folder(folder) as saved:
    assert saved.all_steps() == [1]
  mesh = ('--config.parallel.mesh.data=2', '--config.parallel.mesh.fsdp=2')
  codes, outs, errs = finish(start(4, 1, folder, *mesh, config='mrt_countdown'))
  assert codes == [0] * 4, errs
  assert 'resuming after step 1 of 4' in outs[0]
  assert_same_run(folder, one)


@pytest.mark.full
def test_a_lost_process_ends_the_others(tmp_path):
  processes = start(
    2,
    1,
    tmp_path / 'run',
    '--config.total_steps=400',
    heartbeat_s=HEARTBEAT_S,
  )
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
  """Process 0 alone opens the folder."""
  (tmp_path / 'run').write_text('a file')
  codes, _, errs = finish(start(2, 1, tmp_path / 'run'))
  assert codes == [1, 1]
  for err in errs:
    assert f'workdir {tmp_path / "run"} is a file' in err
    assert 'Traceback' not in err


# In process 1 alone; what ends it names process 1, and process 0 cleans up.
BREAK_ONE = """
import sys
import jax
from absl import app
from meta_rl import command_line, held_out, sharding, train

def validation_batches(config, *, mesh=None):
  if jax.process_index() == 1:
    raise ValueError('no such thing here')
  return whole(config, mesh=mesh)

whole, held_out.validation_batches = (
  held_out.validation_batches, validation_batches
)
train.define_flags()
app.run(train.main, flags_parser=command_line.parse_flags)
"""


@pytest.mark.full
def test_an_error_of_process_1_ends_all(tmp_path):
  folder = tmp_path / 'run'
  prompts = '--config.rollout.num_prompts=6'
  processes = start(3, 1, folder, prompts, code=BREAK_ONE)
  codes, _, errs = finish(processes)
  assert codes == [1, 1, 1], errs
  assert 'error: no such thing here' in errs[1]
  for err in (errs[0], errs[2]):
    assert 'error: process 1 of 3 ended: no such thing here' in err
  # As if it had not begun: the mended command may have another config.
  assert not folder.exists()


@pytest.mark.soak
@pytest.mark.full
def test_a_signal_before_a_resumed_run_has_taken_a_step(tmp_path):
  folder = tmp_path / 'run'
  codes, _, errs = finish(start(2, 1, folder, '--config.total_steps=2'))
  assert codes == [0, 0], errs
  flags = '--config.total_steps=400', '--allow_change=total_steps'
  processes = start(2, 1, folder, *flags)
  while not processes[0].stdout.readline().startswith('resuming after step 2'):
    assert processes[0].poll() is None
  processes[0].send_signal(signal.SIGTERM)
  codes, _, errs = finish(processes)
  assert codes == [75, 75], errs
  assert 'stopped by SIGTERM after step 3' in errs[0]


@pytest.mark.full
def test_devices_that_are_not_in_order():
  """A TPU's ring of chips: rows of one process lie between those of another."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', RING, str(i), str(port)],
      cwd=ROOT,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '2'},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=200)[0] for process in processes]
  found = [json.loads(out.splitlines()[-1]) for out in outputs]
  assert found[0]['mine'] == [0, 1, 6, 7]
  assert found[1]['mine'] == [2, 3, 4, 5]
  for each in found:
    assert each['whole'] == list(range(8))
    assert each['columns'] == [[float(i) for i in range(8)]]


RING = """
import json, sys
import jax, numpy as np
from meta_rl import sharding
sharding.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[1]))
a, b, c, d = jax.devices()
mesh = jax.sharding.Mesh(
  np.asarray([a, c, d, b]).reshape(4, 1, 1, 1), sharding.MESH_AXES
)
own = sharding.process_slice(8, mesh)
mine = np.arange(8)[own]
x = sharding.global_batch(mesh, {'x': mine})['x']
columns = sharding.gather_columns(mine[None].astype(float), mine, 8)
print(json.dumps({
  'mine': mine.tolist(),
  'whole': sharding.gather_to_host(x).tolist(),
  'columns': columns.tolist(),
}))
"""
