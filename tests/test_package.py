"""Metadata of the package and what its wheel carries."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import pytest
import wheels
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import meta_rl
from meta_rl import env

EXTRAS = {'tpu', 'cuda', 'serve', 'docs', 'wandb', 'llm', 'tasks', 'test'}
EXTRAS |= {'colab', 'bench', 'gcs'}


def setup_arguments():
  """Returns what setup.py passes to setuptools, without running a build."""
  code = (
    'import json, sys, setuptools\n'
    'setuptools.setup = lambda **k: json.dump(k, sys.stdout)\n'
    "exec(compile(open('setup.py').read(), 'setup.py', 'exec'),"
    " {'__file__': 'setup.py'})"
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(result.stdout)


@pytest.fixture(scope='module')
def arguments():
  """The arguments of setup.py."""
  return setup_arguments()


def test_language_models_need_no_transformers(arguments):
  """Nothing here imports it: folders are read and written without it."""
  assert 'transformers' not in ' '.join(arguments['extras_require']['llm'])
  for file in (ROOT / 'meta_rl').rglob('*.py'):
    text = file.read_text('utf-8')
    assert 'import transformers' not in text
    assert 'from transformers' not in text


def test_metadata(arguments):
  assert arguments['name'] == 'meta-rl'
  assert arguments['license_expression'] == 'Apache-2.0'
  assert arguments['python_requires'] == '>=3.11'
  assert arguments['package_dir'] == {'meta_rl.configs': 'configs'}
  assert set(arguments['extras_require']) == EXTRAS
  readme = ROOT / 'README.md'
  expected = readme.read_text('utf-8') if readme.exists() else ''
  assert arguments['long_description'] == expected
  assert f'version: {arguments["version"]}\n' in (
    ROOT / 'CITATION.cff'
  ).read_text('utf-8')
  assert arguments['version'] == meta_rl.__version__
  assert arguments['version'] in (ROOT / 'CHANGELOG.md').read_text('utf-8')


def test_every_package_is_shipped(arguments):
  folders = {p.parent for p in (ROOT / 'meta_rl').rglob('*.py')}
  names = {'.'.join(f.relative_to(ROOT).parts) for f in folders}
  assert set(arguments['packages']) == names | {'meta_rl.configs'}


def test_start_up_check_and_setup_agree(arguments):
  bounds = '.'.join(map(str, env.MIN_JAX)), '.'.join(map(str, env.BELOW_JAX))
  expected = f'>={bounds[0]},<{bounds[1]}'
  groups = [
    arguments['install_requires'],
    *arguments['extras_require'].values(),
  ]
  jaxes = [r for group in groups for r in group if re.match(r'jax\b', r)]
  assert len(jaxes) == 3
  assert all(r.endswith(expected) for r in jaxes)


def test_what_is_installed_satisfies_setup(arguments):
  extras = arguments['extras_require']
  for text in arguments['install_requires'] + extras['test']:
    requirement = Requirement(text)
    if requirement.name != 'setuptools':  # checked where the wheel is built
      version = importlib.metadata.version(requirement.name)
      assert requirement.specifier.contains(version), text


def imported(tree, deferred):
  """Returns the top-level names that a module imports.

  Args:
    tree: the parsed module.
    deferred: imports inside functions are included.
  """
  nodes = ast.walk(tree) if deferred else tree.body
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module.split('.')[0])
  return found - {'meta_rl', '__future__'} - set(sys.stdlib_module_names)


def test_every_import_is_declared(arguments):
  """Imports at the top of a module are core; inside a function, any extra."""
  owners = importlib.metadata.packages_distributions()
  extras = arguments['extras_require'].values()

  def declared(texts):
    names = {canonicalize_name(Requirement(t).name) for t in texts}
    # jaxlib comes with jax, and only with it.
    return names | {'jaxlib'} if 'jax' in names else names

  core = declared(arguments['install_requires'])
  known = core | declared(t for group in extras for t in group)
  for path in sorted((ROOT / 'meta_rl').rglob('*.py')):
    tree = ast.parse(path.read_text('utf-8'))
    for deferred, allowed in ((False, core), (True, known)):
      for name in imported(tree, deferred):
        dists = {canonicalize_name(d) for d in owners.get(name, [name])}
        assert dists & allowed, f'{path.name} imports {name}: not in setup.py'


def test_warnings_are_errors():
  settings = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
  filters = settings['tool']['pytest']['ini_options']['filterwarnings']
  assert filters[0] == 'error'
  # An ignore names a message; one for a whole category would hide our own.
  assert all(re.match(r'ignore:[^:]{12,}:', f) for f in filters[1:])


def test_the_wheel_works_outside_the_tree(run_python, tmp_path):
  installed = wheels.build(tmp_path)
  assert {p.name for p in installed.iterdir() if p.suffix != '.dist-info'} == {
    'meta_rl'
  }
  for source, target in (('meta_rl', ''), ('configs', 'configs')):
    for file in (ROOT / source).rglob('*'):
      if file.is_file() and '__pycache__' not in file.parts:
        path = file.relative_to(ROOT / source)
        assert (installed / 'meta_rl' / target / path).is_file(), file
  (metadata,) = installed.glob('*.dist-info/METADATA')
  assert 'License-Expression: Apache-2.0' in metadata.read_text('utf-8')
  assert list(installed.glob('*.dist-info/licenses/LICENSE'))
  code = """
import importlib, pathlib, sys
import meta_rl
from meta_rl import env
top = pathlib.Path(sys.argv[1])
assert pathlib.Path(env.__file__).is_relative_to(top), env.__file__
for name in env.config_names():
  module = importlib.import_module(f'meta_rl.configs.{name}')
  assert pathlib.Path(module.__file__).is_relative_to(top), module.__file__
  assert env.resolve_config(name + ':tiny') == module.__file__ + ':tiny'
"""
  environment = {'PYTHONPATH': str(installed)}
  run_python(code, installed, devices=1, env=environment, cwd=tmp_path)
