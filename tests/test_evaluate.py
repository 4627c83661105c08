"""The command of an evaluation: which policy, its files, its messages."""

import json
import types

import pytest
from test_evaluation import params_of, source_of

from meta_rl import (
  evaluate,
  setup_run,
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
      | {'samples': 3, 'sample_problems': 2}
      | {'compare_provers': 0}
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
  # More problems than there are means all of them.
  assert options['num_problems'] == len(source_of(trained))
  assert (options['algorithm'], options['batch_size']) == ('mrt', 16)
  said = capsys.readouterr().out
  assert 'accuracy 0.500, regret 0.5000 [0.2500, 0.7500], 12.0 think' in said
  assert (options['extrapolate'], options['base_params']) == ([], None)
  assert (
    command(extrapolate=['2', '4'], base_prover=True, compare_provers=3) == 0
  )
  (trained.folder / 'eval.json').unlink()
  _, _, options = seen.pop()
  assert options['extrapolate'] == [2, 4]
  assert options['compare_provers'] == 3
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


def test_what_the_command_refuses(command, tmp_path, capsys):
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
  for factors in (['1'], ['2', '0']):
    assert command(extrapolate=factors) == 1
    assert 'integers above 1' in line()
  assert command(extrapolate=['two']) == 1
  assert '--extrapolate=two: give integers' in line()
  assert command(extrapolate=['2'], extrapolate_problems=0) == 1
  assert 'extrapolate_problems=0 is given; allowed is >= 1' in line()
  assert not (tmp_path / 'none').exists()


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


def test_how_far_an_evaluation_is(capsys):
  say = evaluate.Progress(every_s=0)
  say('J along traces', 4, 8)
  line = capsys.readouterr().err
  assert line.startswith('evaluate: J along traces, 4 of 8 traces, ')
  say = evaluate.Progress(every_s=60)
  say('J along traces', 4, 8)
  assert capsys.readouterr().err == ''
