"""benchmarks/rollout.py and update.py: the comparison, with stand-in engines.

The engines of tests/standin_engine.py take 1, 4 and, in the better of two ways,
2 seconds for a run, as they say themselves.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT

STANDIN = pathlib.Path(__file__).parent / 'standin_engine.py'


@pytest.fixture
def module(monkeypatch):
  """Returns how a module of benchmarks/ is imported."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')

  return importlib.import_module


@pytest.fixture
def started(module, monkeypatch, tmp_path):
  """Returns both benchmarks as modules, with stand-ins and flags."""
  engines = module('peers.engines')
  monkeypatch.setattr(
    engines, 'command_of', lambda name: [sys.executable, str(STANDIN), name]
  )
  flags = types.SimpleNamespace(
    cases=['long-tailed', 'equal'],
    rounds=2,
    threads=1,
    ways=[],
    only_ours=False,
    peers=['tunix', 'trl'],
    sizes=['micro'],
    folder=str(tmp_path),
    json='',
    add=False,
  )
  found = module('rollout'), module('update')
  for one in (*found, module('peers.common')):
    monkeypatch.setattr(one, 'FLAGS', flags)
  return found


ALL = ['meta_rl', 'tunix', 'trl']


def test_arithmetic_by_hand(module):
  compare = module('peers.compare')
  assert compare.quartiles([3, 1, 2, 4]) == [1.75, 3.25]
  assert compare.quartiles([7]) == [7, 7]
  # 12 tokens in 3, 1, 2 seconds: 4, 12 and 6 a second.
  assert compare.rate([3, 1, 2], 12) == {
    'tokens_per_s': 6,
    'quartiles': [5, 9],
  }
  # Medians 2 and 6; single pairs 2, 6 and 2.
  assert compare.ratio([3, 1, 2], [6, 6, 4]) == {
    'ratio': 3,
    'quartiles': [2, 4],
    'pairs': 3,
  }
  with pytest.raises(ValueError, match='shorter'):
    compare.ratio([1, 2], [1])
  assert compare.spread(1234.5, [1000, 2000]) == '1,234 (1,000-2,000)'
  table = compare.table([('way', 'tokens/s'), ('a b', '1'), ('c', '-')], 1)
  assert table == 'way  tokens/s\na b         1\nc           -'


def test_the_calls_take_turns(module):
  order = []
  calls = {k: lambda k=k: order.append(k) or len(order) for k in 'abc'}
  found = module('peers.compare').alternate(calls, 2)
  assert order == list('abcabc')
  assert found == {'a': [1, 4], 'b': [2, 5], 'c': [3, 6]}


def test_lengths(module):
  workload = module('peers.workload')
  found = workload.lengths(500)
  assert (found == 256).sum() >= 100  # and geometric ones that are as long
  assert found.min() >= 2
  assert found.max() == 256
  short = np.sort(found)[:400]
  # Geometric with mean 32: half are at most 22, and the mean of 400 is within
  # 3 * 31.5 / 20 of 32.
  assert 15 <= np.median(short) <= 30
  assert abs(short.mean() - 32) < 5
  np.testing.assert_array_equal(found, workload.lengths(500))


def test_the_traces_that_are_trained_on(module):
  workload = module('peers.workload')
  size = workload.SIZES['0.5M']
  cases = workload.update_cases(size)
  case = cases['long-tailed']
  tokens, mask = case['tokens'], case['mask']
  assert tokens.shape == mask.shape == (64, 16 + 256)
  counts = mask.sum(1)
  assert (tokens[np.arange(64), 15 + counts] == workload.EOS).all()
  assert (tokens == workload.EOS).sum() == 64
  assert (tokens[~mask & (np.arange(272) >= 16)] == workload.PAD).all()
  assert (tokens[mask & (tokens != workload.EOS)] >= workload.FIRST).all()
  groups = tokens[:, :16].reshape(8, 8, 16)
  assert (groups == groups[:, :1]).all()
  np.testing.assert_allclose(
    case['advantages'].reshape(8, 8).sum(1), 0, atol=1e-5
  )
  assert (cases['equal']['mask'].sum(1) == 128).all()


def test_flops_by_hand(module):
  update, workload = module('update'), module('peers.workload')
  size = workload.Size(2, 10, 1, 1, 1, 1)
  # 5 tokens of 100 parameters; 3 + 6 pairs, at 12 x 2 layers x width 10.
  assert update.step_flops(size, 100, [2, 3]) == 6 * 100 * 5 + 240 * 9


def test_a_rollout_beside_two_peers(started, tmp_path):
  rollout, _ = started
  found = rollout.measure('micro', ALL, tmp_path, {})
  assert found['logits_apart'] == {'tunix': 0, 'trl': 0}
  rows = found['cases']['long-tailed']
  tokens = np.load(tmp_path / 'micro' / 'long-tailed.npz')['lengths'].sum()
  assert rows['meta_rl']['tokens_per_s'] == tokens
  assert rows['tunix']['ours_faster']['ratio'] == 4
  assert rows['trl']['ours_faster'] == {
    'ratio': 2,
    'quartiles': [2, 2],
    'pairs': 2,
  }
  assert rows['trl']['way'] == 'good'
  assert rows['trl']['tried']['slow'] == 3
  assert rows['trl']['tried']['broken'].endswith('RuntimeError: cannot do this')
  # 8 rows a step of 1 ms, the faster of two bare products.
  assert rows['meta_rl']['limit_tokens_per_s'] == pytest.approx(8000)
  table = rollout.lines({'micro': found}).splitlines()
  assert f' {tokens / 8000:.0%} ' in table[1]
  assert len(table) == 1 + 2 * 3
  assert table[2].split()[:4] == ['micro', 'long-tailed', 'tunix', 'a']
  assert table[2].endswith('4.00 (4.00-4.00)')


def test_an_update_beside_two_peers(started, tmp_path):
  _, update = started
  update.FLAGS.cases = ['equal']
  found = update.measure('micro', ALL, tmp_path, {})
  rows = found['cases']['equal']
  assert rows['meta_rl']['tokens_per_s'] == 96
  assert rows['tunix']['ours_faster']['ratio'] == 4
  assert rows['trl']['ours_faster']['ratio'] == 2
  assert [rows[name]['peak_mb'] for name in ALL] == [10, 40, 20]
  assert {row['loss'] for row in rows.values()} == {0.25}
  table = update.lines({'micro': found}).splitlines()
  assert table[-1].split()[2] == 'trl'
  assert table[-1].endswith('20  0.250000  2.00 (2.00-2.00)')


def test_ways_and_peers_that_are_asked_for(
  started, module, tmp_path, capsys, monkeypatch
):
  rollout, _ = started
  monkeypatch.setattr(module('peers.common'), 'revision', lambda: 'abc')
  rollout.FLAGS.ways, rollout.FLAGS.cases = ['slow'], ['equal']
  rows = rollout.measure('micro', ['meta_rl', 'trl'], tmp_path, {})['cases']
  assert rows['equal']['trl']['ours_faster']['ratio'] == 3
  # Without torch the bare products are XLA's alone.
  rows = rollout.measure('micro', ['meta_rl'], tmp_path, {})['cases']
  assert list(rows['equal']) == ['meta_rl']
  assert rows['equal']['meta_rl']['limit_tokens_per_s'] == pytest.approx(8000)
  rollout.FLAGS.only_ours = True
  rollout.FLAGS.json = str(tmp_path / 'found.json')
  module('peers.common').run(rollout.measure, rollout.lines, ['rollout.py'])
  assert capsys.readouterr().out.splitlines()[1].endswith('-')
  read = lambda: json.loads((tmp_path / 'found.json').read_text())
  assert read()['micro']['cases']['equal']['meta_rl']['seconds'] == [1, 1]
  rollout.FLAGS.add = True
  module('peers.common').run(rollout.measure, rollout.lines, ['rollout.py'])
  assert read()['micro']['cases']['equal']['meta_rl']['seconds'] == [1] * 4


def test_rounds_are_added_to_those_of_a_file(module, capsys):
  compare = module('peers.compare')
  now = lambda ours, theirs, name='tunix': compare.side_by_side(
    {
      'meta_rl': [{'seconds': s, 'tokens': 6} for s in ours],
      name: [{'seconds': s, 'tokens': 6} for s in theirs],
    }
  )
  way = lambda rows, **ways: {
    name: row | {'way': ways.get(name, 'a')} for name, row in rows.items()
  }
  first = way(now([1, 2], [4, 4]))
  assert compare.joined(first, {}) == first
  both = compare.joined(way(now([3], [6], 'trl')), first)
  assert both['meta_rl']['seconds'] == [1, 2, 3]
  assert both['tunix'] == first['tunix']
  assert both['trl']['ours_seconds'] == [3]
  again = compare.joined(way(now([1], [5])), both)
  rates = compare.with_rates(again)
  # Medians 1 and 4, of the pairs 4 by 1, 4 by 2 and 5 by 1.
  assert rates['tunix']['ours_faster'] == {
    'ratio': 4,
    'quartiles': [3, 4.5],
    'pairs': 3,
  }
  assert rates['meta_rl']['tokens_per_s'] == 6 / 1.5
  other = compare.joined(way(now([1], [5]), tunix='b'), both)
  assert other['tunix']['seconds'] == [5]
  assert 'rounds of tunix in the file are dropped' in capsys.readouterr().err
  # A ratio is of one way of ours: no round beside another is kept.
  other = compare.joined(way(now([9], [5]), meta_rl='b'), both)
  assert other['tunix']['ours_seconds'] == other['meta_rl']['seconds'] == [9]
  assert 'trl' not in other
  assert "of all in the file are dropped: they were with 'a', " in (
    capsys.readouterr().err
  )


def test_rounds_of_something_else_are_refused(
  started, module, tmp_path, monkeypatch
):
  rollout, update = started
  error = module('peers.engines').EngineError
  common = module('peers.common')
  monkeypatch.setattr(common, 'revision', lambda: 'abc')
  for benchmark in (rollout, update):
    first = benchmark.measure('micro', ALL, tmp_path, {})
    again = benchmark.measure('micro', ALL, tmp_path, first)
    assert len(again['cases']['equal']['trl']['seconds']) == 4
    other = first | {'revision': 'other'}
    with pytest.raises(error, match='are of revision other, not abc: name'):
      benchmark.measure('micro', ALL, tmp_path, other)
  for key in ('revision', 'machine', 'parameters', 'threads'):
    with pytest.raises(error, match=f'are of {key} other, not'):
      common.comparable(first | {key: 'other'}, first)
  assert common.comparable({}, {}) == {}
  now = first | {'versions': {'trl': {'torch': '1'}}}
  assert common.comparable(now | {'versions': {}}, now)  # no rounds of trl's
  other = {'versions': {'trl': {'torch': '2'}}}
  with pytest.raises(error, match="versions of trl {'torch': '2'}, not"):
    common.comparable(now | other, now)
  for revision in ('abc+', 'unknown'):
    now = first | {'revision': revision}
    with pytest.raises(error, match='commit first'):
      common.comparable(now, now)


def test_a_peer_that_can_do_nothing_is_left_out(
  started, module, tmp_path, capsys
):
  rollout, update = started
  rollout.FLAGS.ways = ['broken']
  for benchmark in (rollout, update):
    cases = benchmark.measure('micro', ALL, tmp_path, {})['cases']
    assert list(cases['equal']) == ['meta_rl', 'tunix']
    assert 'trl is left out: trl: ' in capsys.readouterr().err


def test_the_limit_without_a_peer_that_has_ended(module):
  common, error = module('peers.common'), module('peers.engines').EngineError
  asked = []

  class Ended:
    def ask(self, do, **request):
      raise error('trl: the worker ended')

  class Ours:
    def ask(self, do, **request):
      asked.append((do, request.get('others')))
      return {'shapes': []}

  workers = {'meta_rl': Ours(), 'trl': Ended()}
  common.bare_products(workers, 8, backward=False)
  assert asked == [('shapes', None), ('limits', [])]


def test_a_way_is_tried_three_times_where_that_is_short(module, monkeypatch):
  common = module('peers.common')
  monkeypatch.setattr(common, 'FLAGS', types.SimpleNamespace(ways=[]))
  took = {'a': iter([9, 2, 3, 4]), 'b': iter([9, 5, 2.5]), 'c': iter([9, 7])}
  once = lambda mode, fresh=False: {'seconds': next(took[mode['name']])}
  offered = {'modes': [{'name': n} for n in 'abc'], 'warm': 1}
  # The third run of b would come after more than 6 seconds.
  best, tried = common.best_of('trl', offered, once)
  assert tried == {'a': 2, 'b': 2.5, 'c': 7}
  assert best == {'name': 'a'}
  assert [next(left, None) for left in took.values()] == [None] * 3


def test_a_short_run_comes_behind_one_that_does_not_count(module, capsys):
  calls = []

  def run(name, mode):
    calls.append((name, mode['name']))
    return {'seconds': len(calls)}

  ways = lambda ours, theirs: {
    'meta_rl': ({'name': 'a'}, {'a': ours, 'b': 9.0}),
    'trl': ({'name': 'c'}, {'c': theirs}),
  }
  turns = module('peers.common').turns(run, ways(3.0, 1.9))
  # Where one is short all are warmed.
  assert [turns[name]()['seconds'] for name in turns] == [2, 4]
  assert capsys.readouterr().err == 'meta_rl: 2.00 s\ntrl: 4.00 s\n'
  turns = module('peers.common').turns(run, ways(3.0, 2.5))
  assert [turns[name]()['seconds'] for name in turns] == [5, 6]
  assert calls == [('meta_rl', 'a')] * 2 + [('trl', 'c')] * 2 + [
    ('meta_rl', 'a'),
    ('trl', 'c'),
  ]


def test_rows_at_a_time(module):
  at_once = module('peers.workload').at_once
  assert at_once(512, 64) == [16, 32, 64, 128, 512]
  assert at_once(128, 32) == [16, 32, 64, 128]
  assert at_once(16, 32) == [16]


def test_an_engine_of_another_model_is_refused(started, module, tmp_path):
  rollout, update = started
  error = module('peers.engines').EngineError
  names = ['meta_rl', 'other']
  with pytest.raises(error, match='other: its logits are 1 from ours'):
    rollout.measure('micro', names, tmp_path, {})
  with pytest.raises(error, match='other: its loss is 0.5.*ours 0.25'):
    update.check_losses({'meta_rl': 0.25, 'other': 0.5})
  update.check_losses({'meta_rl': 0.25, 'other': 0.2501})


def test_a_worker_runs_while_it_is_asked(started, module, tmp_path):
  engines = module('peers.engines')
  state = lambda process: (
    pathlib.Path(f'/proc/{process.pid}/stat').read_text().split()[2]
  )
  with engines.started(['trl'], tmp_path) as workers:
    worker = workers['trl']
    assert worker.ask('shapes', rows=3, backward=True) == {
      'shapes': [[3, 10, 10]]
    }
    until = time.monotonic() + 10
    while state(worker._process) not in 'Tt' and time.monotonic() < until:
      time.sleep(0.01)
    assert state(worker._process) in 'Tt'
    with pytest.raises(engines.EngineError, match='trl: nothing: Attribute'):
      worker.ask('nothing')
    worker._process.kill()
    with pytest.raises(engines.EngineError, match='trl: the worker ended'):
      worker.ask('load', folder='', threads=1)


def test_a_peer_that_is_missing(module, monkeypatch, tmp_path, capsys):
  engines = module('peers.engines')
  monkeypatch.setenv('TRL_VENV', str(tmp_path / 'none'))
  python = tmp_path / 'tunix' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.touch()
  monkeypatch.setenv('TUNIX_VENV', str(tmp_path / 'tunix'))
  assert engines.present(['tunix', 'trl']) == ['tunix']
  (line,) = capsys.readouterr().err.splitlines()
  assert 'trl is left out' in line
  assert 'bash benchmarks/peers.sh trl' in line


def test_an_environment_that_is_unknown():
  result = subprocess.run(
    ['bash', 'benchmarks/peers.sh', 'vllm'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 1
  assert "no peer 'vllm': allowed are trl and tunix" in result.stderr


@pytest.mark.full
def test_ours_takes_lengths_weights_and_traces(module, monkeypatch, tmp_path):
  workload, engines = module('peers.workload'), module('peers.engines')
  size = workload.SIZES['micro']
  paths = workload.write(tmp_path, workload.rollout_cases(size))
  with engines.started(['meta_rl'], tmp_path) as workers:
    ours = workers['meta_rl']
    folder = str(tmp_path / 'checkpoint')
    ours.ask('write', size='micro', folder=folder)
    ours.ask('load', folder=folder, threads=1)
    for mode in ours.ask('modes', rows=16, batch=8)['modes']:
      # The worker itself compares the rows' lengths.
      found = ours.ask('rollout', path=paths['long-tailed'], mode=mode, seed=0)
      assert found['seconds'] > 0
    paths = workload.write(tmp_path, workload.update_cases(size))
    ours.ask('score', path=paths['equal'])
    case = np.load(paths['equal'])
    behavior = case['behavior_log_probs'][case['mask']]
    assert (behavior < 0.5).all()  # log-probs, and noise of 0.1
    mode = ours.ask('update_modes', rows=8)['modes'][-1]
    given = {'path': paths['equal'], 'mode': mode}
    first = ours.ask('update', fresh=True, **given)
    second = ours.ask('update', fresh=False, **given)
    assert first['tokens'] == 8 * (16 + 128)
    # A step of 1e-6 changes the loss a little, and for the better.
    assert 0 < first['loss'] - second['loss'] < 1e-3
    bare = ours.ask('limits', rows=8, backward=True, rounds=1, others=[])
    assert bare['gflops'] > 0


def test_only_buckets_that_are_needed_are_compiled(module, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks' / 'peers')
  needed = module('with_meta_rl')._needed
  mask = np.arange(20) < np.array([3, 20, 4, 9, 5, 6])[:, None]
  # Sorted in twos: 3 4, 5 6, 9 20, of which the last fits none.
  assert needed([4, 5, 8, 16], 3, mask) == [4, 8]
  assert needed([4, 5, 8, 16], 1, mask) == []


@pytest.mark.parametrize(
  'given, said',
  [
    (['--json=/nowhere/x.json'], 'name a file in a folder that exists'),
    (['--json=/'], 'it is a folder, or lies in one that is not there'),
    (['--cases', 'equal', 'long-tailed'], "'long-tailed' is no flag: flags"),
    (['--add'], '--add adds to the file of --json: name it'),
    (['--sizes='], "--sizes: allowed are ['0.5M', '10M', '135M', 'micro']"),
  ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(given, said):
  done = subprocess.run(
    [sys.executable, ROOT / 'benchmarks/rollout.py', *given],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 1
  assert said in done.stderr
  assert 'Traceback' not in done.stderr


def test_help_names_the_flags():
  done = subprocess.run(
    [sys.executable, ROOT / 'benchmarks/update.py', '--help'],
    capture_output=True,
    text=True,
  )
  for name in ('only_ours', 'ways', 'threads', 'folder', 'json'):
    assert name in done.stdout
