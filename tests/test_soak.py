"""A run that is killed at random moments ends as one that never was.

`bash test.sh full` kills a few times, `bash test.sh soak` twenty.
"""

import random
import signal
import time

import numpy as np
import pytest
from launched import HEARTBEAT_S, finish, params_of, rows_of, start

from meta_rl import signals

STEPS = 24
SHORT = (
  f'--config.total_steps={STEPS}',
  '--config.eval.every=8',
  '--config.checkpoint.every=4',
  '--config.log.samples_every=8',
)


def begin(count, folder):
  """Returns the processes of the run; each has one device."""
  return start(count, 1, folder, *SHORT, heartbeat_s=HEARTBEAT_S)


def kill(processes, rng):
  """Ends a run in one of the ways that runs end; returns which."""
  way = rng.choice(['all', 'all', 'term', 'one'])
  if way == 'term':  # a notice in time: what is done is saved
    rng.choice(processes).send_signal(signal.SIGTERM)
  elif way == 'one':  # a machine is lost: the others find out
    rng.choice(processes).kill()
  else:
    for process in processes:
      process.kill()
  return way


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
    (1, 4),
    (2, 3),
    pytest.param(1, 20, marks=pytest.mark.soak),
    pytest.param(2, 20, marks=pytest.mark.soak),
  ],
)
def test_a_run_killed_again_and_again_is_one_run(tmp_path, count, kills):
  whole, folder = tmp_path / 'whole', tmp_path / 'run'
  codes, _, errs = finish(begin(count, whole))
  assert codes == [0] * count, errs
  began = time.monotonic()
  codes, _, errs = finish(begin(count, tmp_path / 'again'))  # nothing compiles
  assert codes == [0] * count, errs
  lasts = time.monotonic() - began
  rng = random.Random(kills)
  ways, reached = [], []
  while len(ways) < kills:
    processes = begin(count, folder)
    # From before anything is there to behind some steps.
    time.sleep(rng.uniform(0.1, 0.9) * lasts)
    ways.append(kill(processes, rng))
    codes, _, errs = finish(processes)
    # 0 where the end came first.
    assert 1 not in codes or ways[-1] == 'one', errs
    if (folder / 'metrics.jsonl').exists():
      reached.append(rows_of(folder)[-1]['step'] if rows_of(folder) else 0)
  codes, _, errs = finish(begin(count, folder))
  assert codes == [signals.EXIT_OK] * count, errs
  # It was stopped on its way, not before it began or behind its end alone.
  assert any(0 < step < STEPS for step in reached), (ways, reached)
  assert untimed(rows_of(folder)) == untimed(rows_of(whole))
  found, wanted = params_of(folder), params_of(whole)
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
