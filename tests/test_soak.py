"""A run that is killed at random moments ends as one that never was.

`bash test.sh full` kills one process twice, `bash test.sh soak` one, and two
together, twenty times.
"""

import random
import signal
import time

import numpy as np
import pytest
from launched import HEARTBEAT_S, finish, params_of, rows_of, start

from meta_rl import checkpoint, metrics, signals

SHORT = (
  '--config.eval.every=8',
  '--config.checkpoint.every=4',
  '--config.log.samples_every=8',
)


def begin(count, folder, steps):
  """Returns the processes of the run; each has one device."""
  flags = (*SHORT, f'--config.total_steps={steps}')
  return start(count, 1, folder, *flags, heartbeat_s=HEARTBEAT_S)


def saved_step(folder):
  """Returns the last step that a run goes on from, 0 for none."""
  if not (folder / 'checkpoints').exists():
    return 0
  with checkpoint.open_folder(folder) as saved:
    return max(saved.all_steps(), default=0)


def wait_for_news(folder, began, step, processes):
  """Returns once a run has taken a step that was not saved before."""
  path = folder / metrics.METRICS_NAME
  while True:
    assert all(process.poll() is None for process in processes)
    if path.exists() and path.stat().st_mtime > began:
      rows = rows_of(folder)
      if rows and rows[-1]['step'] > step:
        return
    time.sleep(0.02)


# How runs end: all at once, by a notice in time, or by one machine's loss.
WAYS = ('all', 'all', 'term', 'one')


def kill(processes, way, rng):
  """Ends a run; of a lost process the others find out."""
  if way == 'term':
    rng.choice(processes).send_signal(signal.SIGTERM)
  elif way == 'one':
    rng.choice(processes).kill()
  else:
    for process in processes:
      process.kill()


def untimed(rows):
  """Returns rows of metrics without what is of the machine."""
  return [
    {k: v for k, v in row.items() if k.split('/')[0] not in ('time', 'compile')}
    for row in rows
  ]


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
  'count, kills',
  [
    (1, 2),
    pytest.param(1, 20, marks=pytest.mark.soak),
    pytest.param(2, 20, marks=pytest.mark.soak),
  ],
)
def test_a_run_killed_again_and_again_is_one_run(tmp_path, count, kills):
  whole, folder, steps = tmp_path / 'whole', tmp_path / 'run', 12 * kills
  codes, _, errs = finish(begin(count, whole, steps))
  assert codes == [0] * count, errs
  rng = random.Random(kills)
  for _ in range(kills):
    step, began = saved_step(folder), time.time()
    processes = begin(count, folder, steps)
    if rng.random() < 0.25:  # before all is there
      time.sleep(rng.uniform(0.1, 4))
      way = 'all'
    else:
      wait_for_news(folder, began, step, processes)
      time.sleep(rng.uniform(0, 0.2))
      way = rng.choice(WAYS)
    kill(processes, way, rng)
    codes, _, errs = finish(processes)
    assert codes != [0] * count, 'it was done: give it more steps'
    assert 1 not in codes or way == 'one', errs
  codes, _, errs = finish(begin(count, folder, steps))
  assert codes == [signals.EXIT_OK] * count, errs
  assert untimed(rows_of(folder)) == untimed(rows_of(whole))
  found, wanted = params_of(folder), params_of(whole)
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
