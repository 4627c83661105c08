"""benchmarks/step.py: which configs it can time."""

import importlib.util
import types

import pytest
from conftest import ROOT

pytest_plugins = ['small_runs']


@pytest.mark.parametrize(
  'name, changes, given',
  [
    ('mrt_rl', {}, "algorithm.name='prefix'"),
    ('ppo', {}, "algorithm.name='ppo'"),
    ('sft', {}, "algorithm.name='sft'"),
    ('mrt', {'loss__kl_coef': 0.1}, 'loss.kl_coef=0.1'),
  ],
)
def test_configs_of_other_steps_are_refused(
  name, changes, given, small, monkeypatch
):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  spec = importlib.util.spec_from_file_location(
    'step', ROOT / 'benchmarks' / 'step.py'
  )
  step = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(step)
  flags = types.SimpleNamespace(
    config=small.config(name, **changes), pairs=1, json=''
  )
  monkeypatch.setattr(step, 'FLAGS', flags)
  with pytest.raises(SystemExit) as error:
    step.main(['step'])
  assert error.value.code.startswith('error: ')
  assert given in error.value.code
