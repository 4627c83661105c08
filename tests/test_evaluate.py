"""The command of an evaluation: which policy, its files, its messages."""

import json
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from test_eval_compare import evaluation
from test_evaluation import (
  asked_for,
  measured_by_hand,
  params_of,
  source_of,
)

from meta_rl import (
  eval_partial,
  evaluate,
  held_out,
  setup_run,
  signals,
  stop_rules,
  workdir,
)

pytest_plugins = ['small_runs']


def test_the_base_is_what_the_config_starts_from(trained, small, tmp_path):
  config, params = evaluate.policy(
    str(tmp_path), trained.config, base=True, which='last'
  )
  assert config is trained.config
  assert small.equal(params, setup_run.initial_params(trained.config))
  assert not small.equal(params, params_of(trained))


def test_a_run_is_what_it_recorded(trained, small):
  config, params = evaluate.policy(
    str(trained.folder), None, base=False, which='last'
  )
  assert workdir.difference(config.to_dict(), trained.config.to_dict()) == {}
  assert small.equal(params, params_of(trained))


@pytest.fixture
def command(monkeypatch, trained, small):
  """`main` with flags; returns its exit code."""

  def run(**changes):
    flags = types.SimpleNamespace(
      **{'workdir': str(trained.folder), 'config': None, 'base': False}
      | {'which': 'last', 'num_problems': 10, 'batch_size': 16, 'name': ''}
      | {'extrapolate': [], 'extrapolate_problems': 4, 'base_prover': False}
      | {'samples': 3, 'sample_problems': 2, 'votes': None, 'seed': 1}
      | {'weighted_votes': False, 'difficulty': '', 'model': None}
      | {'compare_provers': 0, 'adaptive': True}
      | changes
    )
    monkeypatch.setattr(evaluate, 'FLAGS', flags)
    try:
      evaluate.main(['evaluate'])
    except SystemExit as error:
      return error.code
    return 0

  return run


def quick_evaluate(seen):
  """Stands for `evaluate` where only the command is tested."""

  def run(config, params, **options):
    seen.append((config, params, options))
    interval = {'mean': 0.5, 'low': 0.25, 'high': 0.75}
    scalars = {'accuracy': interval, 'regret_token_weighted': interval}
    return {
      'name': options['name'],
      'num_problems': options['num_problems'],
      'measured': {},
      'scalars': scalars | {'tokens_mean': 12.0},
    }

  return run


def test_the_command_writes_eval_json(
  command, trained, small, tmp_path, monkeypatch, capsys
):
  seen = []
  monkeypatch.setattr(evaluate, 'evaluate', quick_evaluate(seen))
  assert command(num_problems=10**6) == 0
  written = json.loads((trained.folder / 'eval.json').read_text())
  (trained.folder / 'eval.json').unlink()
  assert written['name'] == 'MRT'
  _, _, options = seen[0]
  last = max(
    int(p.name) for p in (trained.folder / 'checkpoints').glob('[0-9]*')
  )
  assert written['measured'] == {'which': 'last', 'step': last}
  # More problems than there are means all of them.
  assert options['num_problems'] == len(source_of(trained))
  assert (options['algorithm'], options['batch_size']) == ('mrt', 16)
  said = capsys.readouterr().out
  assert 'accuracy 0.500, regret 0.5000 [0.2500, 0.7500], 12.0 think' in said
  assert (options['extrapolate'], options['base_params']) == ([], None)
  # As many votes as samples, unless it is said; one is no vote.
  assert (options['votes'], options['seed']) == (3, 1)
  assert command(votes=2, seed=5) == command(samples=1) == 0
  assert [each[2]['votes'] for each in seen[-2:]] == [2, 0]
  assert [each[2]['seed'] for each in seen[-2:]] == [5, 1]
  del seen[1:]
  assert (
    command(extrapolate=['2', '4'], base_prover=True, compare_provers=3) == 0
  )
  (trained.folder / 'eval.json').unlink()
  _, _, options = seen.pop()
  assert options['extrapolate'] == [2, 4]
  assert options['compare_provers'] == 3
  assert options['rules'] is None
  assert options['extrapolate_problems'] == 4
  assert (options['samples'], options['sample_problems']) == (3, 2)
  assert small.equal(
    options['base_params'], setup_run.initial_params(trained.config)
  )
  # --base goes into a folder that isn't there yet.
  folder = tmp_path / 'runs' / 'base'
  assert command(base=True, config=trained.config, workdir=str(folder)) == 0
  assert json.loads((folder / 'eval.json').read_text())['name'] == 'base'
  assert seen[1][2]['algorithm'] == 'base'
  assert json.loads((folder / 'eval.json').read_text())['measured'] == {}


def test_stop_rules_beside_a_checkpoint_are_evaluated(
  command, trained, monkeypatch, capsys
):
  seen = []
  monkeypatch.setattr(evaluate, 'evaluate', quick_evaluate(seen))
  path = trained.folder / stop_rules.NAME
  budget = trained.config.rollout.thinking_budget
  digest = eval_partial.digest_of(params_of(trained))
  rules = lambda budget, policy=digest: stop_rules.StopRules(
    {}, [], {'budget': budget, 'policy': policy}
  )
  try:
    stop_rules.save(path, rules(budget))
    assert command() == 0
    assert seen[-1][2]['rules'].about['budget'] == budget
    assert command(adaptive=False) == 0
    assert seen[-1][2]['rules'] is None
    stop_rules.save(path, rules(budget + 1))
    assert command() == 1
    assert 'calibrate again' in capsys.readouterr().err
    stop_rules.save(path, rules(budget, 'another'))
    assert command() == 1
    assert 'other weights' in capsys.readouterr().err
    assert len(seen) == 2
  finally:
    path.unlink()
    (trained.folder / 'eval.json').unlink()


def test_what_the_command_refuses(command, trained, tmp_path, capsys):
  run = trained.folder

  def line():
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    return error

  assert command(base=True) == 1
  assert '--base needs --config' in line()
  assert command(workdir=str(tmp_path / 'none')) == 1
  assert 'holds no config.json' in line()
  assert command(num_problems=0) == 1
  assert 'num_problems=0' in line()
  assert command(batch_size=0) == 1
  assert 'batch_size must be' in line()
  assert command(workdir=None) == 1
  assert 'nothing is named: give --workdir=DIR' in line()
  assert command(model='x', base=True) == 1
  assert '--base is what --config starts from, and --model' in line()
  assert command(model='x', base_prover=True) == 1
  assert '--model names no run' in line()
  assert command(workdir='a,b', base=True) == 1
  assert '--base goes to one folder, and --workdir names 2' in line()
  assert command(model=str(tmp_path / 'x'), workdir='y') == 1
  assert 'neither a folder nor a .gguf file' in line()
  assert command(name='a,b', workdir=f'{run},{tmp_path}') == 1
  assert 'holds no config.json' in line()
  assert command(seed=-1) == 1
  assert 'seed must be' in line()
  assert command(difficulty=str(tmp_path)) == 1
  assert 'eval.json does not exist: evaluate that policy first' in line()
  assert command(config=trained.config) == 1
  assert '--config is of --base and --model' in line()
  for factors in (['1'], ['2', '0']):
    assert command(extrapolate=factors) == 1
    assert 'integers above 1' in line()
  assert command(extrapolate=['two']) == 1
  assert '--extrapolate=two: give integers' in line()
  assert command(extrapolate=['2'], extrapolate_problems=0) == 1
  assert 'extrapolate_problems=0 is given; allowed is >= 1' in line()
  assert not (tmp_path / 'none').exists()


# ---- several, and going on


def test_lists_of_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert evaluate.listed('a,b') == ['a', 'b']
  assert evaluate.listed('gs://bucket/a,b,') == ['gs://bucket/a', 'b']
  (tmp_path / 'a,b').mkdir()
  assert evaluate.listed('a,b') == ['a,b']
  assert evaluate.listed(None) == evaluate.listed('') == []


@pytest.fixture
def runs(trained, tmp_path):
  """Three folders: a run, the same run again, and the base's eval.json."""
  folders = [tmp_path / name for name in ('a', 'b', 'base')]
  for folder in folders[:2]:
    shutil.copytree(
      trained.folder, folder, ignore=shutil.ignore_patterns('eval*')
    )
  folders[2].mkdir()
  old = evaluation('base', 0)
  (folders[2] / 'eval.json').write_text(json.dumps(old))
  return folders


@pytest.fixture
def measured(monkeypatch):
  """What is measured of made-up batches: (key, offset, whether they vote)."""
  seen = []

  def measure_batch(calls, params, batch, key, offset, **options):
    del calls
    seen.append((key_of(key), offset, options['votes_key'] is not None))
    found = measured_by_hand(len(batch['problem']), seed=offset)
    if options['votes_key'] is not None:
      shape = (*found['ends'].shape, 3)
      found |= {
        'answers': np.full((*shape, 2), 7),
        'answer_mask': np.ones((*shape, 2), bool),
        'answer_log_probs': np.zeros((*shape, 2)),
        'answer_rewards': np.ones(shape, np.float32),
        'answer_ends': found['ends'],
        'answer_count': found['count'],
      }
    found = asked_for(found, **options) | {'problem': batch['problem']}
    return {k: v[batch['counts']] for k, v in found.items()}

  def key_of(key):
    return tuple(np.asarray(held_out.jax.random.key_data(key)).tolist())

  monkeypatch.setattr(held_out, '_measure_batch', measure_batch)
  return seen


def read(folder):
  return json.loads((folder / 'eval.json').read_text())


def test_runs_side_by_side(command, runs, measured, capsys):
  a, b, base = runs
  before = (base / 'eval.json').read_bytes()
  assert command(workdir=','.join(map(str, runs)), batch_size=4) == 0
  out = capsys.readouterr().out
  # 10 problems, 2 x 3 traces, 2 traces that vote: in batches of 4.
  assert len(measured) == 2 * (3 + 2 + 1)
  # One key for all: the second's batches are those of the first.
  assert measured[: len(measured) // 2] == measured[len(measured) // 2 :]
  assert (base / 'eval.json').read_bytes() == before
  for folder in (a, b):
    found = read(folder)
    assert found['regrets']['best']['policies'] == ['MRT (a)', 'MRT (b)']
    assert found['regrets']['best']['token_weighted']['mean'] == 0
    assert found['votes']['problems'] == 2
    assert not (folder / 'eval.partial').exists()
  assert out.count('written to') == 2
  assert '| less base | accuracy' in out
  assert 'Not paired with base' in out
  assert command(workdir=f'{a},{b}', name='X,Y', batch_size=4) == 0
  out = capsys.readouterr().out
  # The same policy twice: no difference.
  assert '| Y      | 0.000 [0.000 to 0.000] | 0.0000 [0.0000 to' in out
  assert read(b)['name'] == 'Y'
  assert command(workdir=f'{a},{base}', name='X,Start', batch_size=4) == 0
  out = capsys.readouterr().out
  assert '| less Start | accuracy' in out
  assert read(base)['name'] == 'base'
  assert command(workdir=f'{a},{b}', name='X,Y,Z') == 1
  assert '3 names are given for 2' in capsys.readouterr().err


def test_how_hard_problems_were_for_another_policy(
  command, runs, measured, capsys
):
  a, _, base = runs
  assert command(workdir=str(a), batch_size=4) == 0
  found = read(a)
  # Countdown knows it of its problems.
  assert found['difficulty']['label'].startswith('chance that a random')
  old = read(base)
  clusters = found['per_problem']['cluster']
  old['success_rates'] = {'cluster': clusters[:4], 'rate': [0, 0, 1, 1]}
  (base / 'eval.json').write_text(json.dumps(old))
  assert command(workdir=str(a), batch_size=4, difficulty=str(base)) == 0
  found = read(a)['difficulty']
  assert found['label'] == 'success rate of base'
  assert [bin_['problems'] for bin_ in found['bins']] == [2, 2]
  # One that knows none of the problems is refused before all else.
  old['success_rates']['cluster'] = [-1, -2, -3, -4]
  for rates in (old['success_rates'], None):
    old['success_rates'] = rates
    (base / 'eval.json').write_text(json.dumps(old))
    before = (a / 'eval.json').read_bytes()
    measured.clear()
    assert command(workdir=str(a), batch_size=4, difficulty=str(base)) == 1
    error = capsys.readouterr().err
    assert f'are of none of the 10 problems of {a}: name' in error
    assert error.count('\n') == 1
    assert measured == []
    assert (a / 'eval.json').read_bytes() == before


def test_a_signal_stops_it_and_the_same_command_goes_on(
  command, runs, measured, capsys, monkeypatch
):
  a, b, _ = runs
  options = {'workdir': f'{a},{b}', 'batch_size': 4}
  assert command(**options) == 0
  whole, batches = [read(a), read(b)], list(measured)
  measured.clear()
  for folder in (a, b):
    (folder / 'eval.json').unlink()

  told = []

  def stop(self, *args):
    told.append(args)
    if len(told) == 8:  # in the second policy
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(signals, 'leave', evaluate.sys.exit)
  with monkeypatch.context() as patch:
    patch.setattr(evaluate.Progress, '__call__', stop)
    assert command(**options) == signals.EXIT_INTERRUPTED == 75
  assert 'run the same command to go on' in capsys.readouterr().err
  assert measured == batches[:8]
  assert (a / 'eval.partial').exists()  # the comparison is still to come
  assert not (b / 'eval.json').exists()
  measured.clear()
  assert command(**options) == 0
  assert 'going on behind 6 finished batches' in capsys.readouterr().err
  assert measured == batches[8:]
  assert [read(a), read(b)] == whole
  assert not (a / 'eval.partial').exists()
  # A third time nothing is kept any more.
  measured.clear()
  assert command(**options) == 0
  assert measured == batches


def test_an_evaluation_that_fails_leaves_no_folder(
  command, trained, tmp_path, capsys
):
  new = tmp_path / 'runs' / 'base'
  options = {'base': True, 'config': trained.config, 'num_problems': 0}
  assert command(workdir=str(new), **options) == 1
  assert 'num_problems=0' in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
  new.mkdir(parents=True)  # one that was there stays
  assert command(workdir=str(new), **options) == 1
  assert new.exists()


def test_a_folder_that_is_a_file_is_seen_at_once(
  command, trained, tmp_path, monkeypatch, capsys
):
  """Not after the whole evaluation."""
  seen = []
  monkeypatch.setattr(evaluate, 'evaluate', quick_evaluate(seen))
  (tmp_path / 'file').write_text('x')
  for folder in ('file', 'file/base'):
    options = {'base': True, 'config': trained.config}
    assert command(workdir=str(tmp_path / folder), **options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: workdir {tmp_path / folder} is a file, or')
    assert error.count('\n') == 1
  assert seen == []


def test_a_run_whose_checkpoints_are_damaged(
  command, trained, tmp_path, capsys
):
  folder = tmp_path / 'run'
  (folder / 'checkpoints' / '4').mkdir(parents=True)
  config = (trained.folder / 'config.json').read_text()
  (folder / 'config.json').write_text(config)
  with pytest.warns(RuntimeWarning, match='step 4 is damaged'):
    assert command(workdir=str(folder)) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: every checkpoint in ')
  assert error.count('\n') == 1


@pytest.mark.parametrize(
  'said, line',
  [
    (
      'RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes.',
      'error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 '
      'bytes.): lower --batch_size, --votes or --extrapolate.\n',
    ),
    (
      'INTERNAL: a verifier\nfailed',
      'error: jax: INTERNAL: a verifier failed\n',
    ),
  ],
)
def test_an_error_of_jax_is_one_line(
  said, line, command, trained, capsys, monkeypatch
):
  def fail(*args, **options):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(evaluate, 'evaluate', fail)
  assert command() == 1
  assert capsys.readouterr().err == line


def test_a_smaller_evaluation_keeps_the_larger_one(
  command, trained, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(evaluate, 'evaluate', quick_evaluate([]))
  there = {'base': True, 'config': trained.config, 'workdir': str(tmp_path)}
  number = lambda name: json.loads((tmp_path / name).read_text())[
    'num_problems'
  ]
  assert command(num_problems=9, **there) == 0
  capsys.readouterr()
  assert command(num_problems=4, **there) == 0
  said = capsys.readouterr().err
  assert said.endswith('eval.json was of 9 problems: kept as eval.9.json\n')
  assert (number('eval.json'), number('eval.9.json')) == (4, 9)
  # As many or more take its place, and so they do of a damaged file.
  assert command(num_problems=4, **there) == command(**there) == 0
  (tmp_path / 'eval.json').write_text('{"num_problems": null}')
  assert command(**there) == 0
  assert capsys.readouterr().err == ''
  assert not list(tmp_path.glob('eval.4*')) + list(tmp_path.glob('eval.N*'))


def test_how_far_an_evaluation_is(capsys):
  say = evaluate.Progress(every_s=0)
  say('J along traces', 4, 8)
  line = capsys.readouterr().err
  assert line.startswith('evaluate: J along traces, 4 of 8 traces, ')
  say = evaluate.Progress(every_s=60)
  say('J along traces', 4, 8)
  assert capsys.readouterr().err == ''
