"""Tests of meta_rl.study_cell: what a cell says of its run, and refuses."""

import json
import math
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from meta_rl import signals, study_cell, study_cells, study_files
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key


def make_rows(seconds, counts, *, evaluated=()):
  """Metrics of steps 1, 2 ...; each costs 100 and samples 10 tokens."""
  rows = []
  for step, (second, count) in enumerate(zip(seconds, counts), 1):
    row = {
      'step': step,
      'time/step_s': second,
      'compile/count': count,
      'cost/cumulative': 100.0 * step,
      'rollout/tokens_sum': 10.0,
      'rollout/tokens_mean': 5.0 + step,
      'rollout/reward_mean': 0.1 * step,
    }
    if step in evaluated:
      row |= {
        'eval/accuracy': 0.5 + 0.01 * step,
        'eval/regret_token_weighted': 0.5 - 0.01 * step,
        'eval/tokens_mean': 30.0,
      }
    rows.append(row)
  return rows


def make_found():
  """What `evaluation.evaluate` gives, of two problems."""
  value = {'mean': 0.123456789, 'low': 0.1, 'high': 0.2}
  return {
    'machine': 'a machine',
    'horizon': 2,
    'num_problems': 2,
    'scalars': {'accuracy': value, 'tokens_mean': 1.0},
    'stopping': {'solved': {'rate': None}},
    'budgets': [0, 1, 2],
    'accuracy_at_budget': [0.0, 0.333333333, 0.5],
    'per_problem': {
      'regret_token_weighted': [0.123456, 1.0],
      'accuracy': [0.5, 0.5],
      'tokens': [1, 2],
      'reward': [1.0, 0.0],
      'cluster': [7, 9],
    },
    'traces': ['long'],
  }


SPEC = {
  'dose': 'u4',
  'method': 'grpo',
  'seed': 3,
  'label': 'GRPO',
  'train': True,
  'config': {'optimizer': {'learning_rate': 1.23456789e-7}},
  'evaluation': {'num_problems': 2, 'extrapolate': [2]},
}


# ---- time


def test_steps_that_compiled_count_as_the_median():
  # Compiling shows in the count: steps 1 and 4. The median of 2, 3, 5 is 3.
  rows = make_rows([60.0, 2.0, 3.0, 40.0, 5.0], [4, 4, 4, 5, 5])
  assert study_cell.without_compiling(rows) == [3.0, 2.0, 3.0, 3.0, 5.0]
  assert study_cell.without_compiling([]) == []


def test_a_resumed_process_compiles_although_its_count_is_the_same():
  # The second process begins with step 3: 4 programs again, as before it.
  rows = make_rows([60.0, 2.0, 50.0, 4.0], [4, 4, 4, 4])
  # Median of 2, 4 is 3.
  found = study_cell.without_compiling(rows, starts=[0, 2])
  assert found == [3.0, 2.0, 3.0, 4.0]
  assert study_cell.without_compiling(rows)[2] == 50.0


def test_if_every_step_compiled_seconds_are_what_they_were():
  rows = make_rows([6.0, 5.0], [1, 2])
  assert study_cell.without_compiling(rows) == [6.0, 5.0]


def test_each_process_notes_where_it_starts(tmp_path):
  folder = tmp_path / 'run'
  assert study_cell.note_start(folder) == [0]
  for name in ('5', '10', 'damaged', '15.orbax-checkpoint-tmp'):
    (folder / 'checkpoints' / name).mkdir(parents=True)
  assert study_cell.note_start(folder) == [0, 10]


# ---- what was learnt


def test_learning_curves_by_hand():
  rows = make_rows([9.0, 1.0, 3.0], [4, 4, 4], evaluated=(2, 3))
  found = study_cell.learning_curves(rows)
  # Seconds 2 (the median of 1, 3), 1, 3: their sums are 2, 3, 6.
  assert found['held_out'] == {
    'step': [2, 3],
    'cost': [200.0, 300.0],
    'seconds': [3.0, 6.0],
    'accuracy': [0.52, 0.53],
    'regret': [0.48, 0.47],
    'tokens': [30.0, 30.0],
  }
  assert found['train']['step'] == [1, 2, 3]
  assert found['train']['seconds'] == [2.0, 3.0, 6.0]
  assert found['train']['reward'] == pytest.approx([0.1, 0.2, 0.3])
  assert found['train']['tokens'] == [6.0, 7.0, 8.0]


@pytest.mark.parametrize('steps', [59, 60, 61, 1000])
def test_learning_curves_are_coarse(steps):
  rows = make_rows([1.0] * steps, [4] * steps)
  found = study_cell.learning_curves(rows)['train']
  assert 30 <= len(found['step']) <= study_cell.MAX_POINTS
  assert len(set(np.diff(found['step']))) == 1
  assert all(len(column) == len(found['step']) for column in found.values())


def test_a_policy_that_was_not_trained_learnt_nothing():
  found = study_cell.learning_curves([])
  assert not any(column for part in found.values() for column in part.values())


# ---- cost


def test_cost():
  config = types.SimpleNamespace(
    algorithm=types.SimpleNamespace(name='mrt'), total_cost=300, total_steps=9
  )
  rows = make_rows([1.0] * 3, [4] * 3)
  study_cell.check_cost(config, rows, trained=True)  # spent 300 of 300
  study_cell.check_cost(config, [], trained=False)
  config.total_cost = 301
  with pytest.raises(ValueError, match='ended after 300 of total_cost=301 at'):
    study_cell.check_cost(config, rows, trained=True)
  for without in ([], [{'step': 1}]):
    with pytest.raises(ValueError, match="'mrt' logs no cost/cumulative"):
      study_cell.check_cost(config, without, trained=True)


# ---- the file


def test_sum_up():
  rows = make_rows([9.0, 1.0, 3.0], [4, 4, 4], evaluated=(3,))
  found = study_cell.sum_up(SPEC, make_found(), rows, 12.3456789)
  assert {k: found[k] for k in Key._fields} == {
    'dose': 'u4', 'method': 'grpo', 'seed': 3,
  }  # fmt: skip
  # A setting is not rounded: it is compared.
  assert found['config'] == SPEC['config']
  study_files.check_same(Key('u4', 'grpo', 3), SPEC, found)
  assert (found['steps'], found['cost'], found['tokens']) == (3, 300.0, 30.0)
  assert found['seconds'] == {'train': 6.0, 'evaluate': 12.34568}
  assert found['scalars']['accuracy']['mean'] == 0.12346
  assert found['accuracy_at_budget'] == [0.0, 0.33333, 0.5]
  assert 'per_problem' not in found  # cells stay small
  assert 'extrapolation' not in found
  assert 'base_prover' not in found
  more = make_found() | {'extrapolation': {'factors': [1, 2]}}
  assert study_cell.sum_up(SPEC, more, [], 1.0)['extrapolation'] == {
    'factors': [1, 2]
  }


def test_the_digest_tells_problems_apart():
  digest = lambda found: study_cell.sum_up(SPEC, found, [], 1.0)['problems']
  other = make_found()
  assert digest(other) == digest(make_found())
  other['per_problem']['cluster'] = [9, 7]
  assert digest(other) != digest(make_found())


@pytest.fixture
def base(monkeypatch):
  """The spec of an untrained cell, its evaluation made up."""
  found = make_found()
  monkeypatch.setattr(study_cell.evaluation, 'evaluate', lambda *a, **k: found)
  monkeypatch.setattr(study_cell.setup_run, 'initial_params', lambda c: None)
  key = Key('tiny', 'base', 0)
  spec = study_cells.make_specs(study_countdown.get_config('tiny'), [key])[key]
  return types.SimpleNamespace(spec=spec, found=found, key=key)


def test_a_cell_is_written(base, tmp_path):
  out = study_files.path_of(tmp_path, base.key)
  assert study_cell.run(base.spec, str(tmp_path / 'run'), str(out)) == 0
  cell = study_files.read(tmp_path, base.key)
  study_files.check_same(base.key, base.spec, cell)
  assert cell['cost'] == cell['steps'] == 0
  # Nothing was trained: there is no run folder.
  assert not (tmp_path / 'run').exists()


def test_a_cell_that_is_too_large_is_refused(
  base, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(study_cell, 'MAX_BYTES', 200)
  out = tmp_path / 'cells' / 'x.json'
  assert study_cell.run(base.spec, '', str(out)) == signals.EXIT_ERROR
  error = capsys.readouterr().err
  assert 'bytes, 200 are allowed: lower evaluation.num_problems' in error
  assert error.count('\n') == 1
  assert not out.exists()


def test_a_cell_with_nan_is_refused(base, tmp_path, capsys):
  base.found['scalars']['tokens_mean'] = math.nan
  out = tmp_path / 'cells' / 'x.json'
  assert study_cell.run(base.spec, '', str(out)) == signals.EXIT_ERROR
  assert 'error: Out of range float' in capsys.readouterr().err
  assert not out.exists()


def test_a_full_disk_is_one_line(base, tmp_path, monkeypatch, capsys):
  def full(path, data):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(study_cell, 'atomic_write', full)
  out = tmp_path / 'x.json'
  assert study_cell.run(base.spec, '', str(out)) == signals.EXIT_ERROR
  assert 'No space left on device' in capsys.readouterr().err


def test_what_training_says_is_passed_on(tmp_path, monkeypatch):
  key = Key('tiny', 'grpo', 0)
  spec = study_cells.make_specs(study_countdown.get_config('tiny'), [key])[key]
  codes = [signals.EXIT_INTERRUPTED, signals.EXIT_NON_FINITE]
  given = []

  def train(config, folder):
    given.append((config.seed, config.total_cost, folder))
    return codes[len(given) - 1]

  monkeypatch.setattr(study_cell.train, 'run', train)
  for code in codes:
    out = tmp_path / 'x.json'
    assert study_cell.run(spec, str(tmp_path / 'run'), str(out)) == code
    assert not out.exists()
  assert given == [(0, 5500.0, str(tmp_path / 'run'))] * 2


def test_an_interrupted_run_may_go_on_in_another_place(tmp_path):
  key = Key('tiny', 'grpo', 0)
  study = study_countdown.get_config('tiny')
  config = study_cells.make_specs(study, [key])[key]['config']
  other = study_cells.as_json(config)
  other['parallel'] = {'kind': 'none'}
  del other['batching']['rows_per_device']  # as an older version wrote it
  (tmp_path / 'config.json').write_text(json.dumps(other))
  study_cell.check_run_folder(ConfigDict(config), str(tmp_path))


def test_an_interrupted_run_of_other_settings_is_named(tmp_path, capsys):
  key = Key('tiny', 'grpo', 0)
  study = study_countdown.get_config('tiny')
  spec = study_cells.make_specs(study, [key])[key]
  other = study_cells.as_json(spec['config'])
  other['optimizer']['learning_rate'] = 0.5
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(other))
  code = study_cell.run(spec, str(folder), str(tmp_path / 'x.json'))
  assert code == signals.EXIT_ERROR
  error = capsys.readouterr().err
  assert f'{folder} holds a run with other settings' in error
  assert 'optimizer.learning_rate: 0.5 -> 0.0001' in error
  assert 'delete that folder' in error


def test_it_ends_with_its_standard_input():
  """As when the study that holds the other end is killed, however it is."""
  code = (
    'import time\n'
    'from meta_rl import study_cell\n'
    'study_cell.end_with_parent()\n'
    'print("ready", flush=True)\n'
    'time.sleep(300)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=ROOT,
  )
  try:
    assert process.stdout.readline() == b'ready\n'
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == -signal.SIGTERM
  finally:
    process.kill()
    process.stdout.close()
    process.wait()
