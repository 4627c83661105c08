"""From a config to its parts, and what commands make of a config's name."""

import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from meta_rl import (
  algorithms,
  check_config,
  command_line,
  env,
  models,
  setup_run,
  weights,
  workdir,
)
from meta_rl.configs import mrt_qwen3_0p6b
from meta_rl.tasks import countdown

pytest_plugins = ['small_runs']


def test_datasets_go_where_the_environment_says(monkeypatch, tmp_path):
  monkeypatch.setenv('META_RL_DATA', str(tmp_path))
  assert setup_run.data_dir() == tmp_path
  monkeypatch.delenv('META_RL_DATA')
  assert setup_run.data_dir() == Path.home() / '.cache/meta_rl/data'


def test_problems_are_those_of_the_config(small):
  config = small.config('mrt')
  records = setup_run.load_problems(config, 'train')
  assert len(records) > 100
  for record in (records[0], records[len(records) - 1]):
    numbers = np.asarray(record['numbers'])
    assert numbers.shape == (config.task.n,)
    assert (config.task.low <= numbers).all()
    assert (numbers <= config.task.high).all()
    assert 1 <= int(record['num_answers']) <= config.task.max_answers
  names = [len(setup_run.load_problems(config, s)) for s in countdown.SPLITS]
  assert names[0] == len(records)


def test_parameters_of_a_seed(small):
  one = setup_run.initial_params(small.config('mrt'))
  assert small.equal(one, setup_run.initial_params(small.config('mrt')))
  other = setup_run.initial_params(small.config('mrt', seed=1))
  assert not small.equal(one, other)
  shapes = setup_run.abstract_params(small.config('mrt'))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), one) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
  assert all(
    isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes)
  )


def test_parameters_of_a_file(small, tmp_path):
  config = small.config('mrt', seed=3)
  params = setup_run.initial_params(config)
  weights.save_safetensors(tmp_path / 'x.safetensors', params)
  config = small.config('mrt', init_from=str(tmp_path / 'x.safetensors'))
  assert small.equal(setup_run.initial_params(config), params)


@pytest.mark.parametrize('arg', ['', 'hard', 'backtrack'])
def test_shipped_base_policies_fit_their_configs(arg, small):
  config = small.config('mrt', arg)
  assert config.init_from.startswith(weights.ASSET_PREFIX)
  params = setup_run.initial_params(config)
  assert models.num_params(params) > 400_000


@pytest.mark.parametrize('name', weights.asset_names())
def test_every_asset_is_a_start(name, small):
  config = small.config('mrt', '', init_from=f'{weights.ASSET_PREFIX}{name}')
  assert models.num_params(setup_run.initial_params(config)) > 400_000


def test_the_schedule_spans_all_optimizer_steps(small):
  """total_steps x mini_batches x epochs updates, not total_steps."""
  config = small.config(
    'mrt',
    total_steps=3,
    batching__epochs=2,
    optimizer__schedule='linear',
    optimizer__max_grad_norm=None,
  )
  assert config.batching.mini_batches == 2
  optimizer = setup_run.make_optimizer(config)
  params = {'w': np.ones((2, 2), np.float32)}
  state, sizes = optimizer.init(params), []
  for _ in range(12):
    updates, state = optimizer.update(params, state, params)
    sizes.append(np.linalg.norm(updates['w']))
  # Adam's step on a constant gradient is the learning rate, in each of the 4
  # entries: lr (1 - i/12) x 2.
  wanted = [2 * 1e-4 * (1 - i / 12) for i in range(12)]
  np.testing.assert_allclose(sizes, wanted, rtol=1e-4)


def test_check_leaves_a_good_config_alone(small):
  for name in ('mrt', 'grpo', 'sft'):
    config = small.config(name)
    before = config.to_dict()
    check_config.check(config)
    assert config.to_dict() == before


def test_one_trace_a_prompt_goes_with_the_prover_as_baseline(small):
  """A group of one has nothing to compare with, the prover has J."""
  config = small.config('mrt', rollout__group_size=1)
  check_config.check(config)


@pytest.mark.parametrize('baseline', algorithms.UNGROUPED)
def test_one_trace_a_prompt_goes_without_a_group(baseline, small):
  config = small.config(
    'grpo', rollout__group_size=1, algorithm__baseline=baseline
  )
  check_config.check(config)


def test_config_names_are_resolved_in_flags(monkeypatch):
  seen = []
  monkeypatch.setattr(workdir, 'parse_flags', lambda argv: seen.append(argv))
  command_line.parse_flags(
    ['x', '--config=mrt_countdown:tiny', '--config.seed=1']
  )
  command_line.parse_flags(
    ['x', '-config', 'configs/mrt_countdown.py', '--base']
  )
  command_line.parse_flags(['x', '--workdir=mrt_countdown', 'config'])
  by_equals, by_space, untouched = seen
  folder = env.configs_dir()
  assert by_equals[1] == f'--config={folder}/mrt_countdown.py:tiny'
  assert by_equals[2] == '--config.seed=1'
  assert Path(by_space[2]).samefile(folder / 'mrt_countdown.py')
  assert untouched == ['x', '--workdir=mrt_countdown', 'config']


def test_a_refused_flag_is_one_line(monkeypatch):
  with pytest.raises(SystemExit) as error:
    command_line.parse_flags(['x', '--config=mrt_cuontdown'])
  assert "error: no config 'mrt_cuontdown'" in str(error.value.code)
  with pytest.raises(SystemExit) as error:
    command_line.parse_flags(['x', '--config=mrt_countdown:tinny'])
  assert error.value.code.startswith("error: unknown argument 'tinny': ")
  monkeypatch.setattr(
    workdir, 'parse_flags', lambda argv: types.SimpleNamespace(argv=argv)
  )
  assert command_line.parse_flags(['x']).argv == ['x']


def test_help_is_no_error():
  for flag, returned in (('--help', 0), ('--workdir=', 1)):
    result = subprocess.run(
      [sys.executable, '-m', 'meta_rl.export', flag],
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == returned
    assert ('Run folder' in result.stdout) == (returned == 0)


PLACED = """
import sys
import jax
import numpy as np
from meta_rl import setup_run, sharding, weights
from meta_rl.configs import mrt_qwen3_0p6b
folder, other = sys.argv[1:]
config = mrt_qwen3_0p6b.get_config('tiny')
with config.unlocked():
  config.model = {
    'path': folder, 'scan_layers': True, 'param_dtype': 'float32',
    'dtype': 'float32', 'lora_rank': 0}
  config.loss.kl_coef = 0.1
mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
plain = setup_run.initial_params(config)
wanted = sharding.param_shardings(plain, mesh)

def check(found):
  jax.tree.map(np.testing.assert_array_equal, found, plain)
  jax.tree.map(lambda x, s: s.is_equivalent_to(x.sharding, x.ndim) or 1 / 0,
               found, wanted)
  split = [x for x in jax.tree.leaves(found)
           if not x.sharding.is_fully_replicated]
  assert len(split) >= 8
  assert all(x.addressable_shards[0].data.size < x.size for x in split)

# Nothing but the config may put a whole parameter on one device.
check(setup_run.start_params(config, other, mesh=mesh))
check(setup_run.reference_params(config, other, mesh=mesh))
config.init_from = other + '/' + setup_run.REFERENCE_NAME
check(setup_run.initial_params(config, mesh=mesh))
blank = setup_run.blank_params(config, mesh=mesh)
jax.tree.map(lambda x, s: s.is_equivalent_to(x.sharding, x.ndim) or 1 / 0,
             blank, wanted)
print('done')
"""


def test_a_start_is_read_straight_to_its_devices(run_python, tmp_path):
  """Weights of a checkpoint, of the reference and of a file; and zeros."""
  folder = Path(__file__).parent / 'data' / 'hf' / 'qwen3'
  assert 'done' in run_python(PLACED, folder, tmp_path, devices=4)


@pytest.mark.parametrize('kind', ['exact', 'control_variate', 'sampled'])
def test_problems_without_accepted_answers_need_a_sampling_prover(
  kind, monkeypatch
):
  """As reasoning-gym's boxnet: J by likelihood would be 0 throughout."""
  config = mrt_qwen3_0p6b.get_config('tiny')
  config.prover.kind = kind
  records = [{'accepted': ()}] * 3
  kit = types.SimpleNamespace(load_source=lambda *_, **__: records)
  monkeypatch.setattr(setup_run, 'task_kit', lambda _: kit)
  assert setup_run.load_problems(config, 'test') is records
  if kind == 'sampled':
    assert setup_run.load_problems(config, 'train') is records
  else:
    with pytest.raises(ValueError, match="set prover.kind='sampled'"):
      setup_run.load_problems(config, 'train')
  records.append({'accepted': ('1',)})
  assert setup_run.load_problems(config, 'train') is records
