"""A plugin for the tests of the commands: runs that take a second or two.

A test module asks for it with `pytest_plugins = ['small_runs']`. Runs share one
small dataset, and the compile cache holds each program once: all are of the
shapes of the `:tiny` configs.
"""

import contextlib
import gc
import importlib
import io
import math
import pathlib
import types

import jax
import numpy as np
import pytest

from meta_rl import held_out, metrics, setup_run, train, train_calls

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of runs: a study is of another command.
FILES = sorted(
  f for f in (ROOT / 'configs').glob('[!_]*.py') if 'study' not in f.stem
)
CONFIGS = {
  file.stem.removesuffix('_countdown'): importlib.import_module(
    f'meta_rl.configs.{file.stem}'
  )
  for file in FILES
}


def make_config(name, arg='tiny', **changes):
  """A config; `changes` are dotted keys with '__' for the dot."""
  config = CONFIGS[name].get_config(arg)
  # Fewer problems: the dataset is built in a second.
  fewer = {'countdown': {'high': 8}, 'hidden': {'num_problems': 512}}
  config.task.update(fewer.get(config.task.name.split('_')[0], {}))
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


def run(config, folder, **options):
  """Trains; returns exit code, stdout and stderr, and the rows of metrics."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = train.run(config, str(folder), **options)
  path = folder / 'metrics.jsonl'
  return types.SimpleNamespace(
    code=code,
    out=out.getvalue(),
    err=err.getvalue(),
    rows=metrics.read_metrics(path) if path.exists() else [],
    folder=folder,
  )


def equal(a, b):
  """Whether two pytrees are the same bit for bit, PRNG keys included."""
  plain = lambda x: (
    jax.random.key_data(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
  )
  left, right = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(left) == len(right) and all(
    x.dtype == y.dtype and np.array_equal(plain(x), plain(y))
    for x, y in zip(left, right)
  )


def live_copies(config):
  """How many arrays of the embedding's shape are alive.

  Of a config whose parameters hold the shape once: copies of them.
  """
  like = jax.tree.leaves(setup_run.abstract_params(config))
  shape = max((x.shape for x in like), key=math.prod)
  assert [x.shape for x in like].count(shape) == 1
  gc.collect()
  return sum(x.shape == shape for x in jax.live_arrays() if not x.is_deleted())


@pytest.fixture(scope='session')
def small_data(tmp_path_factory):
  """The folder of the datasets that the session's runs share."""
  return tmp_path_factory.mktemp('data')


@contextlib.contextmanager
def quick(data):
  """Datasets in `data`, and little optimisation.

  What the programs compute counts here, and most of a small run's time goes to
  compiling them.
  """
  before = jax.config.read('jax_disable_most_optimizations')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('META_RL_DATA', str(data))
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    jax.config.update('jax_disable_most_optimizations', True)
    try:
      yield
    finally:
      jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module')
def small(small_data):
  """`config`, `run`, `equal` and `live_copies`, under `quick`."""
  with quick(small_data):
    yield types.SimpleNamespace(
      config=make_config, run=run, equal=equal, live_copies=live_copies
    )


@pytest.fixture(scope='session')
def trained(small_data, tmp_path_factory):
  """Four steps of MRT: `run`'s result, its `config`, and `traces`.

  `traces` says how often each jitted call was traced. It saves after steps 3
  and 4.
  """
  config, made = make_config('mrt', checkpoint__every=3), []
  with quick(small_data), pytest.MonkeyPatch.context() as patch:
    for module, name in (
      (train_calls, 'make_parallel'),
      (held_out, 'make_calls'),
    ):
      patch.setattr(module, name, kept(getattr(module, name), made))
    result = run(config, tmp_path_factory.mktemp('trained') / 'mrt')
  assert result.code == 0, result.err
  parallel, calls = made
  result.config = config
  result.traces = parallel.traces | {
    f'eval_{name}': call.traces for name, call in calls.items()
  }
  return result


def kept(make, made):
  """`make`, which also puts what it makes into the list `made`."""

  def keep(*args, **options):
    made.append(make(*args, **options))
    return made[-1]

  return keep
