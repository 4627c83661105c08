"""Tests of what a study keeps of its cells."""

import json

import pytest

from meta_rl import study_cells, study_files, workdir
from meta_rl.configs import study_countdown
from meta_rl.study_cells import Key


@pytest.fixture
def study():
  return study_countdown.get_config('tiny')


# ---- which there are


def test_results_come_back_or_say_why_not(study, tmp_path):
  key = Key('tiny', 'grpo', 0)
  assert study_files.read(tmp_path, key) is None
  path = study_files.path_of(tmp_path, key)
  path.parent.mkdir()
  path.write_text('{"dose": "tiny", "x"')
  with pytest.raises(ValueError, match='tiny_grpo_0.json is damaged'):
    study_files.read(tmp_path, key)
  for other in ('[]', '{"dose": "u4", "method": "grpo", "seed": 0}'):
    path.write_text(other)
    with pytest.raises(ValueError, match='is not of cell tiny/grpo/0'):
      study_files.read(tmp_path, key)
  # A copy under another name would be counted as a seed of its own.
  path.write_text(json.dumps({**key._asdict(), 'seed': 1}))
  with pytest.raises(ValueError, match='is not of cell tiny/grpo/0'):
    study_files.read(tmp_path, key)
  path.write_text(json.dumps(key._asdict()))
  with pytest.raises(ValueError, match='has format None and 1 is read'):
    study_files.read(tmp_path, key)
  path.write_text(json.dumps({**key._asdict(), 'format': 1}))
  assert study_files.read(tmp_path, key)['seed'] == 0


def test_a_variance_comes_back_or_says_why_not(tmp_path):
  assert study_files.read_variance(tmp_path, 'u4') is None
  path = tmp_path / 'variance' / 'u4.json'
  path.parent.mkdir()
  path.write_text('{"rows"')
  with pytest.raises(ValueError, match='u4.json is damaged'):
    study_files.read_variance(tmp_path, 'u4')
  path.write_text('{}')
  with pytest.raises(ValueError, match='u4.json is no gradient variance'):
    study_files.read_variance(tmp_path, 'u4')
  path.write_text('{"rows": []}')
  assert study_files.read_variance(tmp_path, 'u4') == {'rows': []}


def test_a_cell_of_other_settings_is_refused(study):
  key = Key('tiny', 'grpo', 0)
  spec = study_cells.make_specs(study, [key])[key]
  study_files.check_same(key, spec, {**spec, 'scalars': {}})
  other = study_cells.as_json(spec)
  other['config']['optimizer']['learning_rate'] = 1.0
  with pytest.raises(
    ValueError, match=r'another config \(optimizer.learning_rate: 1.0 -> 0.0001'
  ):
    study_files.check_same(key, spec, other)
  other = study_cells.as_json(spec)
  other['evaluation']['num_problems'] = 3
  with pytest.raises(ValueError, match=r'another evaluation \(num_problems: 3'):
    study_files.check_same(key, spec, other)


def test_all_cells_that_are_done_are_checked(study, tmp_path):
  keys = [Key('tiny', 'grpo', 0), Key('tiny', 'mrt_exact', 1)]
  for key, spec in study_cells.make_specs(study, keys).items():
    path = study_files.path_of(tmp_path, key)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**spec, 'format': 1}))
  study_files.check_done(study, tmp_path)
  study.methods.mrt_exact.overrides = {'algorithm': {'price': 0.5}}
  with pytest.raises(
    ValueError,
    match=r'cell tiny/mrt_exact/1 .*algorithm.price: 0.0 -> 0.5\): delete its '
    'file, cells/tiny_mrt_exact_1.json',
  ):
    study_files.check_done(study, tmp_path)


def test_a_key_that_a_cell_lacks_had_its_default(study, tmp_path):
  """It came later; what a study has set it to since is another setting."""
  key = Key('tiny', 'mrt_exact', 0)
  old = study_cells.make_specs(study, [key])[key]
  del old['config']['algorithm']['decay'], old['config']['loss']['pathwise']
  path = study_files.path_of(tmp_path, key)
  path.parent.mkdir()
  path.write_text(json.dumps({**old, 'format': 1}))
  study_files.check_done(study, tmp_path)
  study.methods.mrt_exact.overrides = {'algorithm': {'decay': 0.25}}
  with pytest.raises(
    ValueError,
    match=r"algorithm.decay: '\(absent\)' -> 0.25\): delete its file",
  ):
    study_files.check_done(study, tmp_path)
  # Overridden by what it is anyway.
  plain = study_cells.plain_config(study, 'tiny', 'mrt_exact')
  study.methods.mrt_exact.overrides = {
    'algorithm': {'decay': plain.algorithm.decay}
  }
  study_files.check_done(study, tmp_path)
  # An evaluation has no defaults.
  del old['evaluation']['samples']
  path.write_text(json.dumps({**old, 'format': 1}))
  with pytest.raises(ValueError, match=r"samples: '\(absent\)' -> 2"):
    study_files.check_done(study, tmp_path)


def test_a_variance_that_lacks_a_key_had_its_default(study, tmp_path):
  old = study_cells.make_variance_specs(study, ['tiny'])['tiny']
  del old['config']['algorithm']['decay']
  path = tmp_path / 'variance' / 'tiny.json'
  path.parent.mkdir()
  path.write_text(json.dumps({**old, 'rows': []}))
  study_files.check_variances(study, tmp_path)
  study.methods.mrt_exact.overrides = {'algorithm': {'decay': 0.25}}
  with pytest.raises(ValueError, match=r"variance of tiny .*'\(absent\)' -> 0"):
    study_files.check_variances(study, tmp_path)


def test_the_cells_that_are_kept_in_the_repository_are_accepted(root):
  study = study_countdown.get_config()
  folder = root / 'results' / 'study_countdown'
  assert list(folder.glob('cells/u4_*.json'))
  study_files.check_done(study, folder)
  # And the folder is one to go on in.
  assert workdir.difference(workdir.read_config(folder), study.to_dict()) == {}


def test_a_variance_of_other_settings_is_refused(study):
  spec = study_cells.make_variance_specs(study, ['tiny'])['tiny']
  study_files.check_same_variance('tiny', spec, {**spec, 'rows': []})
  other = {**spec, 'variance': {**spec['variance'], 'draws': 9}}
  with pytest.raises(
    ValueError,
    match=r'variance of tiny .*draws: 9 -> 2\): .*variance/tiny.json',
  ):
    study_files.check_same_variance('tiny', spec, other)
