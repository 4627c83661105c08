"""Versions, configs, the machine's description and the compile cache."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from meta_rl import env


@pytest.mark.parametrize(
  'python, jax_version',
  [((3, 11, 0), '0.10.0'), ((3, 13, 2), '0.11.2'), ((4, 0), '0.10.2.dev1')],
)
def test_tested_versions_pass(python, jax_version):
  assert env.version_problem(python, jax_version) is None


@pytest.mark.parametrize(
  'python, jax_version, said',
  [
    ((3, 10, 13), '0.10.2', 'Python >= 3.11, this is 3.10.13'),
    ((3, 12, 1), '0.9.2', 'jax >=0.10,<0.12, this is 0.9.2'),
    ((3, 12, 1), '0.12.0', 'jax >=0.10,<0.12, this is 0.12.0'),
    ((3, 12, 1), '1.0', 'jax >=0.10,<0.12, this is 1.0'),
    ((3, 12, 1), None, 'none is installed'),
  ],
)
def test_other_versions_get_one_line(python, jax_version, said):
  problem = env.version_problem(python, jax_version)
  assert said in problem
  assert '\n' not in problem


def test_check_versions_stops_with_the_line(monkeypatch):
  env.check_versions()
  monkeypatch.setattr(env.importlib.metadata, 'version', lambda _: '0.4.1')
  with pytest.raises(SystemExit, match='this is 0.4.1: run: .* install'):
    env.check_versions()


COMMANDS = 'train evaluate calibrate generate serve export plan study'.split()
COMMANDS += ['study_cell', 'study_variance']


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_speaks_of_versions_before_it_imports_jax(name, tmp_path):
  old = tmp_path / 'jax-0.4.1.dist-info'
  old.mkdir()
  (old / 'METADATA').write_text('Name: jax\nVersion: 0.4.1\n')
  (tmp_path / 'jax.py').write_text('raise AttributeError("too old")')
  done = subprocess.run(
    [sys.executable, '-m', f'meta_rl.{name}', '--help'],
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join([str(tmp_path), os.getcwd()])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.count('\n') == 1
  assert 'this is 0.4.1: run: ' in done.stderr


@pytest.fixture
def configs(tmp_path, monkeypatch):
  """A folder of configs in the place of the installed one, and an empty cwd."""
  folder = tmp_path / 'installed'
  folder.mkdir()
  for name in ('__init__', '_shared', 'mrt_countdown', 'grpo_countdown'):
    (folder / f'{name}.py').write_text('')
  monkeypatch.setattr(env, 'configs_dir', lambda: folder)
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  return folder


@pytest.mark.parametrize('argument', ['', ':tiny', ':tiny,seed=1:2'])
@pytest.mark.parametrize(
  'name', ['mrt_countdown', 'mrt_countdown.py', 'configs/mrt_countdown.py']
)
def test_names_resolve_from_any_folder(configs, name, argument):
  expected = f'{configs}/mrt_countdown.py{argument}'
  assert env.resolve_config(name + argument) == expected


def test_a_path_that_exists_is_taken_as_it_is(configs):
  pathlib.Path('configs').mkdir()
  pathlib.Path('configs/mrt_countdown.py').write_text('')
  pathlib.Path('mine.py').write_text('')
  for name in ('configs/mrt_countdown.py', 'mine.py:tiny'):
    assert env.resolve_config(name) == name


@pytest.mark.parametrize(
  'name', ['mrt', '', ':tiny', '__init__', 'other/mrt_countdown.py', '/x.py']
)
def test_an_unknown_config_lists_those_that_exist(configs, name):
  with pytest.raises(ValueError) as error:
    env.resolve_config(name)
  assert 'one of grpo_countdown, mrt_countdown, with' in str(error.value)
  assert repr(name) in str(error.value)


def test_the_configs_of_the_checkout_are_found(root):
  assert env.configs_dir() == root / 'configs'


def test_machine_description_is_one_line():
  line = env.machine_description()
  assert '\n' not in line
  assert f'jax {jax.__version__}, 1 x cpu' in line
  assert ' cores, ' in line
  assert ' GiB, ' in line


@pytest.fixture
def _cache_restored():
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_entry_size_bytes',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.usefixtures('_cache_restored')
def test_compile_cache_is_where_it_is_told(tmp_path, monkeypatch):
  folder = env.enable_compile_cache(tmp_path / 'given')
  assert pathlib.Path(folder).parent == tmp_path / 'given'
  assert jax.config.jax_compilation_cache_dir == folder
  monkeypatch.setenv('META_RL_CACHE', str(tmp_path / 'variable'))
  folder = env.enable_compile_cache()
  assert pathlib.Path(folder).parent == tmp_path / 'variable'
  monkeypatch.delenv('META_RL_CACHE')
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = env.enable_compile_cache()
  assert pathlib.Path(folder).parent == tmp_path / '.cache/meta_rl/jax'


@pytest.mark.usefixtures('_cache_restored')
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(ValueError, match='no compile cache in .*file'):
    env.enable_compile_cache(file)
  monkeypatch.setenv('META_RL_CACHE', str(file))
  with pytest.warns(UserWarning, match='META_RL_CACHE'):
    assert env.enable_compile_cache() is None


def test_programs_are_reused_between_processes(run_python, tmp_path):
  code = """
import sys, jax
from meta_rl import env
env.enable_compile_cache(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name.endswith('cache_hits')))
assert jax.device_count() == 2
jax.jit(lambda x: x * 3 + 1)(1.0)
print(sum(hits))
"""
  counts = [int(run_python(code, tmp_path, devices=2)) for _ in range(2)]
  assert counts[0] == 0
  assert counts[1] > 0


def test_the_tests_need_no_cache_of_pytest(run_python, root):
  code = """
import sys, pytest
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--co', sys.argv[1]]))
"""
  assert 'test_the_nearest_config' in run_python(code, __file__, cwd=root)


def test_the_nearest_config_is_named():
  with pytest.raises(ValueError, match='did you mean mrt_countdown or'):
    env.resolve_config('mrt_countdwn')
