"""benchmarks/loop.py: what it reads of a run's metrics, and its table."""

import importlib.util
import json
import types

import pytest
from conftest import ROOT


@pytest.fixture
def loop(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  spec = importlib.util.spec_from_file_location(
    'loop', ROOT / 'benchmarks' / 'loop.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def rows(*regrets, traced=(4, 6, 6, 6, 6)):
  """(seconds, row) of steps of which each has a regret, or None."""
  found = []
  for i, regret in enumerate(regrets):
    row = {'step': i + 1, 'time/step_s': 1.0 + i, 'compile/count': traced[i]}
    row['compile/cache_misses'] = 3.0 * (i > 0)
    if regret is not None:
      row['eval/regret_token_weighted'] = regret
    found.append((10.0 * (i + 1), row))
  return found


def test_a_run_that_reaches_the_target(loop):
  given = iter(rows(None, 0.5, None, 0.3, 0.2))
  found = loop.summary(given, target=0.33, steps=60)
  assert found == {
    'first_step_s': 10.0,
    'cache_misses': 3.0,
    'target_s': 40.0,
    'target_step': 4,
    'regret': 0.3,
    'recompiles': 0,
    'step_s': 3.0,  # of 2, 3 and 4
  }
  assert len(list(given)) == 1  # no more is read


def test_a_run_that_does_not(loop):
  given = rows(None, 0.5, None, 0.4, traced=(4, 6, 7, 9))
  found = loop.summary(given, target=0.33, steps=4)
  assert found['target_s'] is None
  assert found['regret'] == 0.4
  assert found['recompiles'] == 3  # behind the first evaluation
  assert loop.summary(given, target=0.33, steps=1)['step_s'] is None
  assert loop.summary([], target=0.33, steps=1)['first_step_s'] is None


def test_rows_are_read_as_they_come(loop, tmp_path, monkeypatch):
  path, alive = tmp_path / 'metrics.jsonl', []
  writes = ['', '{"step": 1}\n{"st', '{"step": 1}\n{"step": 2}\n{"step"']

  def is_alive():
    path.write_text(writes[len(alive)])
    alive.append(len(alive) < 2)
    return alive[-1]

  monkeypatch.setattr(loop, 'POLL_S', 0)
  found = [row['step'] for _, row in loop.new_rows(path, is_alive)]
  assert found == [1, 2]
  assert alive == [True, True, False]


def test_variants_and_their_commands(loop, tmp_path, monkeypatch):
  given = types.SimpleNamespace(
    against=str(tmp_path),
    fused=['0', '5'],
    config='configs/mrt_countdown.py',
    eval_every=5,
    max_steps=20,
    flags='--config.seed=3',
  )
  monkeypatch.setattr(loop, 'FLAGS', given)
  found = loop.variants()
  assert list(found) == ['against', 'phases', 'fused 5']
  assert found['against'] == (tmp_path, [])
  line = loop.command(*found['fused 5'][:1], 'D', found['fused 5'][1])
  assert line[1:3] == ['-m', 'meta_rl.train']
  assert f'--config={ROOT}/configs/mrt_countdown.py' in line
  assert line[-2:] == ['--config.seed=3', '--config.parallel.fused_steps=5']


def test_the_table_and_its_json(loop):
  runs = [{'x': 2.0, 'y': None}, {'x': 1.0, 'y': 1}, {'x': 4.0, 'y': 1}]
  assert loop.spread(runs, 'x') == [2.0, 1.0, 4.0]
  assert loop.spread(runs, 'y') is None
  keys = [key for _, key, _ in loop._TABLE]
  variant = dict.fromkeys(keys) | {'first_step_s': [2.0, 1.0, 4.0]}
  found = {'variants': {'phases': variant}}
  lines = loop.table(json.loads(json.dumps(found))).splitlines()
  assert lines[2].split() == 'first step, warm 2.0 [1.0, 4.0]'.split()
  assert lines[1].split()[-1] == '-'
