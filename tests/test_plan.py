"""Tests of meta_rl.plan: what it says of a slice, and what it refuses.

Compiling needs the TPU compiler, the extra `tpu`: without it those are skipped.
"""

import importlib.util
import json
import types

import pytest

from meta_rl import plan, plan_programs, plan_report, setup_devices
from meta_rl.aot import chips, roofline
from meta_rl.aot.sizes import SIZES
from meta_rl.configs import (
  mrt_countdown,
  mrt_qwen3_0p6b,
  mrt_r1_distill_qwen_1p5b,
)

V5E_16 = chips.slice_of('v5e-16')
needs_tpu_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the TPU compiler is not installed: pip install -e '.[tpu]'",
)


def compiled(name, *, seconds=2.0, peak=8e9, problem=''):
  """A program of so many seconds; half of its FLOPs are the model's."""
  cost = roofline.Cost(
    flops=100e12,
    bytes=10e9,
    compute=seconds,
    memory=1.0,
    network=0.5,
    exposed=0.0,
    collectives=(
      roofline.Collective('all-gather', 16, 32e6, 100, True, 'layers'),
      roofline.Collective('all-reduce', 16, 1.0, 1, False, 'loss'),
    ),
  )
  return plan.Compiled(name, 30.0, 1e9, 7e9, peak, cost, problem)


def a_plan(config, **programs):
  return plan.Plan(
    config=config,
    slice_=V5E_16,
    parameters=1_500_000_000,
    rows=256,
    length=8192,
    compiled=programs,
    model_flops=16 * 197e12,
  )


@pytest.fixture(name='config')
def make_config():
  return mrt_qwen3_0p6b.get_config('tiny')


def test_mfu_is_model_flops_over_peak_and_time(config):
  found = a_plan(config, update=compiled('update', seconds=2.0))
  assert found.mfu() == pytest.approx(0.5)
  # All FLOPs of a device: 100e12 in 2 s of 197e12 a second.
  assert found.hfu() == pytest.approx(100 / (2 * 197))
  assert found.step_seconds() is None  # generate and prove are not known
  whole = a_plan(
    config,
    generate=compiled('generate', seconds=3.0),
    prove=compiled('prove', seconds=1.0),
    update=compiled('update', seconds=2.0),
  )
  assert whole.step_seconds() == 6.0


def test_what_a_plan_says(config):
  found = a_plan(
    config,
    generate=compiled('generate', seconds=3.0),
    prove=compiled('prove', seconds=1.0),
    update=compiled('update', seconds=2.0),
  )
  text = plan_report.describe(found, price=1.2)
  assert text.startswith('v5e:4x4: 16 chips, 16 devices; mesh ')
  assert '1.50B parameters; 256 traces of 8,192 tokens' in text
  assert 'prediction: update MFU 50.0%' in text
  # 256 * 8192 tokens in 2 s on 16 chips.
  assert '65,536 tokens/s a chip; compute binds' in text
  # 6 s a step: 1.67 hours a thousand steps, 16 chips at 1.2 dollars.
  assert '$32 per thousand steps at $1.2' in text
  # 15/16 of 32 MB, 100 times; what is below a megabyte is summed up.
  assert 'all-gather              3.000 GB       100 x      32.0 MB' in text
  assert json.loads(json.dumps(plan_report.as_json(found)))['mfu'] == 0.5


def test_what_does_not_fit_says_what_to_change(config):
  config.model.update({'remat': 'none', 'attention': 'dense'})
  config.batching.micro_batches = 2
  found = a_plan(
    config,
    update=compiled('update', peak=17e9, problem='does not fit'),
    generate=compiled('generate', peak=18e9, problem='does not fit'),
  )
  assert not found.fits
  text = plan_report.describe(found)
  assert 'update needs 17.0 GB a device of 16.0: try' in text
  assert 'mesh.context' not in text
  for change in (
    '--config.model.remat=full',
    '--config.model.attention=flash',
    '--config.batching.micro_batches=4',
    'a larger --config.parallel.mesh.fsdp',
    f'--config.rollout.num_prompts={config.rollout.num_prompts // 2}',
  ):
    assert change in text


@pytest.mark.parametrize(
  'tensor, context, advised', [(1, 1, 2), (4, 2, 4), (4, 4, None)]
)
def test_where_there_is_one_trace_a_device_it_is_cut(
  config, tensor, context, advised
):
  config.parallel.mesh.update({'tensor': tensor, 'context': context})
  config.batching.micro_batches = 256 * tensor * context // 16
  config.batching.mini_batches = 1
  config.rollout.update({'num_prompts': 64, 'group_size': 4})
  too_large = compiled('update', peak=17e9, problem='does not fit')
  text = plan_report.describe(a_plan(config, update=too_large))
  assert 'micro_batches=' not in text
  both = f'context={advised} with --config.batching.rows_per_device=1'
  assert ('mesh.context=' in text) == (advised is not None)
  assert (both in text) == (advised is not None)
  if advised:  # and what is advised is taken
    config.batching.rows_per_device = 1
    shards = 16 // (tensor * advised)
    mesh = types.SimpleNamespace(
      shape={'data': 1, 'fsdp': shards, 'tensor': tensor, 'context': advised}
    )
    setup_devices.check(config, mesh)


def test_a_search_tries_meshes_that_the_batch_fits(config):
  config.rollout.update({'num_prompts': 8, 'group_size': 4})
  config.batching.mini_batches = 1
  tried = list(plan.candidates(config, 16))
  assert tried[0] == (
    {'data': 1, 'fsdp': 16, 'tensor': 1, 'context': 1},
    2,  # micro-batches of 16 traces, one a device
  )
  for mesh, micro in tried:
    shards = mesh['data'] * mesh['fsdp']
    assert shards * mesh['tensor'] == 16
    assert 32 % (shards * micro) == 0
  assert {mesh['tensor'] for mesh, _ in tried} == {1, 2, 4, 8}


def test_a_plan_reads_no_checkpoint_and_asks_no_host():
  config = mrt_r1_distill_qwen_1p5b.get_config()
  found = plan_programs.abstract_config(config, SIZES['qwen2.5-1.5b'])
  assert (found.model.path, found.init_from) == ('', 'random')
  assert found.task.tokenizer == 'bytes'
  # Episodes are found on the host: equal budgets stand for them.
  assert found.prover.boundaries == 'budgets'
  assert found.prover.budgets[-1] == found.rollout.thinking_budget
  assert len(found.prover.budgets) == found.prover.max_episodes
  assert config.model.path == '???'  # the caller's own is as it was


def for_four_devices(num_prompts):
  config = plan_programs.abstract_config(mrt_countdown.get_config('tiny'), None)
  config.parallel.mesh.update({'data': 1, 'fsdp': 4})
  config.rollout.num_prompts = num_prompts
  return config


@needs_tpu_compiler
@pytest.mark.full
def test_a_batch_that_a_slice_cannot_share_is_one_line():
  config = for_four_devices(num_prompts=6)
  with pytest.raises(ValueError, match=r'num_prompts=6 cannot .* 4 devices'):
    plan.make_plan(config, chips.slice_of('v5e:2x2'), ('update',))


@needs_tpu_compiler
@pytest.mark.full
def test_a_small_config_compiled_for_a_slice():
  config = for_four_devices(num_prompts=8)
  slice_ = chips.slice_of('v5e:2x2')
  found = plan.make_plan(config, slice_, plan_programs.PROGRAMS)
  assert found.fits
  assert 0 < found.mfu() < 1
  # Each device decodes alone with whole weights: they are gathered, once.
  kinds = {
    (c.kind, c.times) for c in found.compiled['generate'].cost.collectives
  }
  assert all(kind == 'all-gather' for kind, _ in kinds)
  assert all(times == 1 for _, times in kinds)


@needs_tpu_compiler
@pytest.mark.full
@pytest.mark.parametrize('name', ['v4-8', 'tpu7x:2x2x1'])
def test_chips_of_two_devices(name):
  slice_ = chips.slice_of(name)
  assert (slice_.chips, slice_.devices) == (4, 8)
  config = for_four_devices(num_prompts=16)
  config.parallel.mesh.fsdp = 8
  found = plan.make_plan(config, slice_, ('update',))
  assert found.fits
  assert 0 < found.mfu() < 1


@needs_tpu_compiler
@pytest.mark.full
def test_what_data_parallel_moves_is_the_least():
  """Each gradient once around the ring, whatever the micro-batches."""
  config = for_four_devices(num_prompts=16)
  # Beside which the batch, which is handed round, is little.
  config.model.update({'width': 128, 'ffn_width': 256})
  config.parallel.mesh.update({'data': 4, 'fsdp': 1})
  config.batching.micro_batches = 4
  slice_ = chips.slice_of('v5e:2x2')
  whole = plan.make_plan(config, slice_, ('generate', 'update'))
  assert whole.config.batching.micro_batches == 4
  assert whole.compiled['generate'].cost.collectives == ()
  moved = sum(c.moved for c in whole.compiled['update'].cost.collectives)
  gradient = 4 * whole.parameters * config.batching.mini_batches
  assert 0.99 < moved / (2 * 3 / 4 * gradient) < 1.2
  # And what lies on a device falls with fsdp.
  config.parallel.mesh.update({'data': 1, 'fsdp': 4})
  cut = plan.make_plan(config, slice_, ('update',))
  state = 3 * 4 * whole.parameters  # weights, Adam's two means
  given = [p.compiled['update'].arguments for p in (whole, cut)]
  assert given[0] - given[1] == pytest.approx(3 / 4 * state, rel=0.05)
