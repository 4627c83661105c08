"""Tests of meta_rl.study_variance: the measurement at the size of a toy."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from meta_rl import signals, study_cells, study_files, study_variance
from meta_rl.configs import study_countdown

pytest_plugins = ['small_runs']


@pytest.fixture
def spec():
  study = study_countdown.get_config('tiny')
  return study_cells.make_variance_specs(study, ['tiny'])['tiny']


@pytest.mark.parametrize('branches', [[], [0, 1], [2, 2]])
def test_branches_that_cannot_be_measured(spec, branches, tmp_path, capsys):
  spec['variance']['branches'] = branches
  out = tmp_path / 'tiny.json'
  assert study_variance.run(spec, '', str(out)) == signals.EXIT_ERROR
  assert 'variance.branches=' in capsys.readouterr().err
  assert not out.exists()


def test_a_reference_is_refused(spec, tmp_path, capsys):
  spec['config']['loss']['kl_coef'] = 0.1
  out = tmp_path / 'tiny.json'
  assert study_variance.run(spec, '', str(out)) == signals.EXIT_ERROR
  assert 'loss.kl_coef=0.1' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['brpo', 'prefix'])
def test_what_trains_on_more_than_the_traces_is_refused(name):
  config = ConfigDict({'algorithm': {'name': name}})
  with pytest.raises(ValueError, match=f"algorithm.name='{name}': it trains"):
    study_variance.measure(config, branches=[1], batches=2, draws=2)


@pytest.mark.full
def test_the_variance_of_a_tiny_policy(small, spec, tmp_path):
  del small
  out = tmp_path / 'variance' / 'tiny.json'
  out.parent.mkdir()
  spec['variance'] |= {'branches': [2, 1], 'batches': 3, 'draws': 3}
  assert study_variance.run(spec, '', str(out)) == signals.EXIT_OK
  found = study_files.read_variance(tmp_path, 'tiny')
  study_files.check_same_variance('tiny', spec, found)
  assert json.loads(out.read_text()) == found
  rows = {row['prover']: row for row in found['rows']}
  assert {name: row['branches'] for name, row in rows.items()} == {
    '2 branches': 2, '1 branch': 1, 'exact': None,
  }  # fmt: skip
  exact = rows['exact']
  # No luck in the exact prover: what varies is the traces.
  assert exact['within'] == 0.0
  assert exact['total'] == exact['between'] > 0
  for row in found['rows']:
    assert row['total'] == pytest.approx(row['between'] + row['within'])
    assert row['within'] >= 0
    assert np.isfinite(list(row[k] for k in ('mean_norm', 'cost'))).all()
  # A branch costs tokens; all else of a batch is the same.
  assert 0 < rows['1 branch']['cost'] < rows['2 branches']['cost']
  # The same seed, the same numbers.
  study_variance.run(spec, '', str(out))
  assert study_files.read_variance(tmp_path, 'tiny') == found
