"""What every test gets: one CPU device, fixed seeds, a compile cache.

A test that needs several devices runs its code in a process of its own through
the fixture `run_python`, since a process can only choose their number once.
"""

import os
import pathlib
import random
import subprocess
import sys
import tempfile

# Before jax is imported: an accelerator on the machine must not change numbers.
os.environ['JAX_PLATFORMS'] = 'cpu'
ROOT = pathlib.Path(__file__).resolve().parent.parent
import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from meta_rl import env  # noqa: E402

# Their assertions show values as those of test modules do.
pytest.register_assert_rewrite('launched')

# The same examples in every run, and no time limit on a busy machine.
hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None)
hypothesis.settings.load_profile('fixed')


def pytest_configure(config):
  """Keeps compiled programs between runs, in pytest's own cache folder.

  Under `-p no:cacheprovider` there is none: they are kept for this run alone.
  """
  jax.config.update('jax_num_cpu_devices', 1)
  if config.pluginmanager.has_plugin('cacheprovider'):
    kept = config.cache.mkdir('jax')
  else:
    temporary = tempfile.TemporaryDirectory()
    config.add_cleanup(temporary.cleanup)
    kept = temporary.name
  folder = env.enable_compile_cache(kept)
  # For the processes that tests start.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
  os.environ['META_RL_CACHE'] = str(pathlib.Path(folder).parent)


def pytest_collection_modifyitems(items):
  """The scripts first: the quickstart takes as long as much of the rest."""
  items.sort(key=lambda item: item.path.name != 'test_scripts.py')


@pytest.fixture(autouse=True)
def _fixed_seeds():
  random.seed(0)
  np.random.seed(0)  # noqa: NPY002 (what third-party code still draws from)


@pytest.fixture(scope='session')
def root():
  """The top folder of the checkout."""
  return ROOT


@pytest.fixture(scope='session')
def run_python():
  """A function that runs code in a fresh Python and returns what it prints.

  `run_python(code, *args, devices=8, timeout=120, env=None, cwd=None)`: `code`
  sees `devices` CPU devices, and `args` in `sys.argv[1:]`. If it fails, the
  test does, with its output.
  """

  def run(code, *args, devices=8, timeout=120, env=None, cwd=None):
    result = subprocess.run(
      [sys.executable, '-c', code, *map(str, args)],
      env=os.environ
      | {'JAX_NUM_CPU_DEVICES': str(devices), 'PYTHONPATH': str(ROOT)}
      | (env or {}),
      cwd=cwd,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=timeout,
    )
    assert result.returncode == 0, (
      f'exit code {result.returncode}\n{result.stdout}\n{result.stderr}'
    )
    return result.stdout

  return run
