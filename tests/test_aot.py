# ruff: noqa: E501  (programs as a compiler writes them)
"""Tests of meta_rl.aot: what is read from a program, and what follows."""

import importlib
import pathlib
import re

import pytest

from meta_rl.aot import chips, hlo, roofline

# A loop of 28 turns: a product on gathered weights, a slice cut out of stacked
# ones, a collective in the background; a kernel whose text has braces of its
# own; a sum over devices behind it. As a TPU compiler writes them.
PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[]}

%fused_computation (param_0: bf16[28,16,64], param_1: s32[]) -> bf16[1,16,64] {
  %param_0 = bf16[28,16,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.1 = bf16[1,16,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,16,64}
}

%fused_product (param_0: bf16[32,64], param_1: bf16[64,128]) -> bf16[32,128] {
  %param_0 = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[32,128]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}

%body (arg: (s32[], bf16[32,64], bf16[28,16,64])) -> (s32[], bf16[32,64], bf16[28,16,64]) {
  %arg = (s32[]{:T(128)}, bf16[32,64]{1,0:T(8,128)(2,1)}, bf16[28,16,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[32,64]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %w = bf16[28,16,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %cut = bf16[1,16,64]{2,1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused_computation
  %gathered = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%cut), channel_id=1, replica_groups=mesh['a'=4,'b'=4] {'b'}, dimensions={0}, frontend_attributes={async_collective_name="all-gather-start"}
  %y = bf16[32,128]{1,0:T(8,128)(2,1)} fusion(%x, %gathered), kind=kOutput, calls=%fused_product, metadata={op_name="jit(f)/while/body/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1500"}}
  ROOT %out = (s32[]{:T(128)}, bf16[32,64]{1,0:T(8,128)(2,1)}, bf16[28,16,64]{2,1,0:T(8,128)(2,1)}) tuple(%i, %x, %w)
}

%cond (arg.1: (s32[], bf16[32,64], bf16[28,16,64])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[32,64]{1,0:T(8,128)(2,1)}, bf16[28,16,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %bound = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (p0: bf16[32,64], p1: bf16[28,16,64]) -> f32[256,128] {
  %p0 = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[28,16,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[32,64]{1,0:T(8,128)(2,1)}, bf16[28,16,64]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %p0, %p1)
  %while.1 = (s32[]{:T(128)}, bf16[32,64]{1,0:T(8,128)(2,1)}, bf16[28,16,64]{2,1,0:T(8,128)(2,1)}) while(%init), condition=%cond, body=%body, metadata={op_name="jit(f)/while"}
  %q = bf16[2,256,128]{2,1,0:T(8,128)(2,1)} custom-call(%p0), custom_call_target="Sharding"
  %splash_mha_fwd.1 = bf16[2,256,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "x
}}, metadata={op_name="jit(f)/splash"}
  ROOT %sum = f32[256,128]{1,0:T(8,128)} all-reduce(%splash_mha_fwd.1), channel_id=2, replica_groups=[4,4]<=[16], to_apply=%add
}
"""


@pytest.fixture(name='program')
def read_program():
  return hlo.parse(PROGRAM)


def test_every_instruction_counts_as_often_as_its_loops_run(program):
  times = {each.name: often for each, _, often in program.walk()}
  assert times['y'] == times['cut'] == times['gathered'] == 28
  assert times['splash_mha_fwd.1'] == times['sum'] == 1
  assert 'i' not in times  # costs nothing
  assert program.entry == 'main'


def test_a_line_of_a_kernel_s_text_ends_no_computation(program):
  assert 'sum' in program.computations['main']


def test_flops_of_a_product_in_a_fusion(program):
  y = program.computations['body']['y']
  assert program.flops(y, 'body') == 2 * 32 * 64 * 128
  assert y.cycles == 1500
  unknown = PROGRAM.replace('"1500"', f'"{2**63 - 1}"')
  assert hlo.parse(unknown).computations['body']['y'].cycles is None
  assert y.where == 'jit(f)/while/body/dot_general'


def test_flops_of_a_dot():
  text = """\
ENTRY %main (a: f32[4,8,16], b: f32[4,16,32]) -> f32[4,8,32] {
  %a = f32[4,8,16]{2,1,0} parameter(0)
  %b = f32[4,16,32]{2,1,0} parameter(1)
  ROOT %d = f32[4,8,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}
"""
  program = hlo.parse(text)
  d = program.computations['main']['d']
  assert program.flops(d, 'main') == 2 * 4 * 8 * 32 * 16
  assert program.moved(d, 'main') == 4 * (4 * 8 * 16 + 4 * 16 * 32 + 4 * 8 * 32)


def test_bytes_are_those_of_hbm(program):
  body = program.computations['body']
  # Of the stacked weights one slice is read; what is cut lies on the chip.
  assert program.moved(body['cut'], 'body') == 2 * 16 * 64 + 4
  # x in and y out; the gathered weights lie on the chip.
  assert program.moved(body['y'], 'body') == 2 * (32 * 64 + 32 * 128)


def test_an_update_in_place_moves_its_slice():
  text = """\
%fused (param_0: f32[28,64], param_1: f32[1,64], param_2: s32[]) -> f32[28,64] {
  %param_0 = f32[28,64]{1,0} parameter(0)
  %param_1 = f32[1,64]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[28,64]{1,0} dynamic-update-slice(%param_0, %param_1, %param_2, %param_2)
}

ENTRY %main (a: f32[28,64], b: f32[1,64], i: s32[]) -> f32[28,64] {
  %a = f32[28,64]{1,0} parameter(0)
  %b = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[28,64]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
  program = hlo.parse(text)
  u = program.computations['main']['u']
  assert program.moved(u, 'main') == 4 * 64 + 4 * 64 + 4


@pytest.mark.parametrize('root', ['bitcast(%k)', 'tuple(%k, %v)', 'k'])
def test_a_fusion_that_updates_in_place_writes_its_slices(root):
  """Keys and values of a token, also behind a bitcast."""
  array, row = 'f32[28,64]{1,0}', 'f32[1,64]{1,0}'
  both = root.startswith('tuple')
  result = f'({array}, {array})' if both else array
  update = 'dynamic-update-slice(%{0}, %b, %i, %i)'
  body = f'  %v = {array} {update.format("w")}\n' if both else ''
  first = f'%k = {array} {update.format("a")}'
  body += f'  ROOT {first}' if root == 'k' else f'  {first}'
  if root != 'k':
    body += f'\n  ROOT %r = {result} {root}'
  text = f"""\
%fused (a: f32[28,64], b: f32[1,64], i: s32[], w: f32[28,64]) -> {result} {{
  %a = {array} parameter(0)
  %b = {row} parameter(1)
  %i = s32[] parameter(2)
  %w = {array} parameter(3)
{body}
}}

ENTRY %main (a: f32[28,64], b: f32[1,64], i: s32[], w: f32[28,64]) -> {result} {{
  %a = {array} parameter(0)
  %b = {row} parameter(1)
  %i = s32[] parameter(2)
  %w = {array} parameter(3)
  ROOT %u = {result} fusion(%a, %b, %i, %w), kind=kLoop, calls=%fused
}}
"""
  program = hlo.parse(text)
  u = program.computations['main']['u']
  row, whole = 4 * 64, 4 * 28 * 64
  unused = 0 if both else whole  # nothing says that w is not read
  written = 2 * row if both else row
  assert program.moved(u, 'main') == row + 4 + unused + written


def test_slices_are_found_in_fusions_of_fusions():
  """As where a layer's keys are cut out for their product with a query."""
  text = """\
%cut (p: f32[28,64], i: s32[]) -> f32[1,64] {
  %p = f32[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[1,64]{1,0} dynamic-slice(%p, %i, %c), dynamic_slice_sizes={1,64}
}

%whole (q: f32[28,64], j: s32[]) -> f32[1,64] {
  %q = f32[28,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %b = f32[28,64]{1,0} bitcast(%q)
  %inner = f32[1,64]{1,0} fusion(%b, %j), kind=kLoop, calls=%cut
  ROOT %twice = f32[1,64]{1,0} add(%inner, %inner)
}

ENTRY %main (a: f32[28,64], b: f32[1,64], k: s32[8,1], i: s32[]) -> f32[28,64] {
  %a = f32[28,64]{1,0} parameter(0)
  %b = f32[1,64]{1,0} parameter(1)
  %k = s32[8,1]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %f = f32[1,64]{1,0} fusion(%a, %i), kind=kLoop, calls=%whole
  %g = f32[8,64]{1,0} gather(%a, %k), offset_dims={1}
  ROOT %u = f32[28,64]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}
"""
  program = hlo.parse(text)
  found = program.computations['main']
  row = 4 * 64
  assert program.moved(found['f'], 'main') == row + 4 + row
  assert program.moved(found['g'], 'main') == 2 * 8 * row
  assert program.moved(found['u'], 'main') == 2 * row


def test_the_last_device_s_queries_see_most_keys():
  """Of 1,024 tokens cut in four, the last 256: 7/8 of all scores."""
  text = """\
ENTRY %main (q: bf16[2,12,256,64], k: bf16[2,4,1024,64]) -> bf16[2,12,256,64] {
  %mask = s8[1,2,8]{2,1,0} constant({...})
  %q = bf16[2,12,256,64]{3,2,1,0} parameter(0)
  %k = bf16[2,4,1024,64]{3,2,1,0} parameter(1)
  ROOT %splash_mha_dkv.2 = (bf16[2,12,256,64]{3,2,1,0}) custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call"
}
"""
  program = hlo.parse(text)
  kernel = program.computations['main']['splash_mha_dkv.2']
  found = roofline.kernel_flops(program, kernel, 'main')
  scores = 2 * 12 * 256 * 1024 * 7 / 8
  assert found == 5 * 2 * scores * 64


def test_what_a_program_costs(program):
  slice_ = chips.slice_of('v5e:4x4')
  found = roofline.cost(program, slice_)
  # Causal: half of 2 products of 2 * 2 heads * 256^2 * 128.
  kernel = 2 * 2.0 * 2 * 256 * 256 * 128 / 2
  assert found.flops == 28 * 2 * 32 * 64 * 128 + kernel
  # Cycles where there are any, the kernel at half of the peak.
  compute = 28 * 1500 / 1.5e9 + kernel / (0.5 * 197e12)
  assert found.compute == pytest.approx(compute)
  gather, total = found.collectives
  assert (total.kind, total.group, total.times) == ('all-reduce', 4, 1)
  assert total.moved == 2 * 3 / 4 * 4 * 256 * 128
  assert (gather.kind, gather.group, gather.times) == ('all-gather', 4, 28)
  assert gather.moved == 28 * 3 / 4 * 2 * 64 * 128
  assert gather.hidden
  assert not total.hidden
  # 4 devices are an axis of the torus, which is no ring: one link.
  network = (gather.moved + total.moved) / 50e9
  assert found.network == pytest.approx(network)
  # The gather hides behind the product of its loop, the sum behind nothing.
  assert found.exposed == pytest.approx(total.moved / 50e9)
  assert found.seconds == pytest.approx(
    max(found.compute, found.memory) + found.exposed
  )


def test_one_collective_in_several_fusions_is_one():
  gather = (
    'bf16[64,128]{1,0} all-gather(%p), channel_id=7, '
    "replica_groups=mesh['a'=4] {'a'}, dimensions={0}"
  )
  fused = '\n\n'.join(
    f'%fused.{i} (p: bf16[16,128]) -> bf16[64,128] {{\n'
    f'  %p = bf16[16,128]{{1,0}} parameter(0)\n  ROOT %g.{i} = {gather}\n}}'
    for i in range(3)
  )
  calls = '\n'.join(
    f'  %f.{i} = bf16[64,128]{{1,0}} fusion(%p), kind=kOutput, calls=%fused.{i}'
    for i in range(3)
  )
  text = (
    f'{fused}\n\nENTRY %main (p: bf16[16,128]) -> bf16[64,128] {{\n'
    f'  %p = bf16[16,128]{{1,0}} parameter(0)\n{calls}\n}}\n'
  )
  found = roofline.cost(hlo.parse(text), chips.slice_of('v5e-4'))
  assert len(found.collectives) == 1
  assert found.collectives[0].times == 1


def test_a_text_without_a_program_is_one_line():
  with pytest.raises(ValueError, match='no line begins with ENTRY'):
    hlo.parse('nothing')


@pytest.mark.parametrize(
  'text, name, count, devices',
  [
    ('v5e-16', 'v5e:4x4', 16, 16),
    ('v5e:4x4', 'v5e:4x4', 16, 16),
    ('v5litepod-4', 'v5e:2x2', 4, 4),
    ('v5p-64', 'v5p:2x4x4', 32, 32),
    ('v5p-512', 'v5p:4x8x8', 256, 256),
    ('v5p-8', 'v5p:2x2x1', 4, 4),
    ('v6e-256', 'v6e:16x16', 256, 256),
    ('V4-8', 'v4:2x2x1', 4, 8),
    ('tpu7x:2x2x1', 'tpu7x:2x2x1', 4, 8),
  ],
)
def test_slices_by_name_and_by_topology(text, name, count, devices):
  found = chips.slice_of(text)
  assert (found.name, found.chips, found.devices) == (name, count, devices)


@pytest.mark.parametrize(
  'text, message',
  [
    ('v9-1', 'give a topology such as v5e:4x4'),
    ('v5e:4', 'v5e has 2 axes, such as v5e:4x4'),
    ('v5p:4x4', 'v5p has 3 axes'),
    ('v5e:4x0', 'v5e has 2 axes'),
    ('v5p-6', 'a power of two of cores, two a chip'),
    ('v5e-12', 'a power of two of chips'),
    ('tpu7x-8', 'give one, such as tpu7x:2x2x1'),
    ('', 'give a topology'),
    ('v5e-', 'give a topology'),
  ],
)
def test_what_is_no_slice_is_one_line(text, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    chips.slice_of(text)
  assert '\n' not in str(error.value)


def test_a_closed_ring_brings_data_from_both_sides():
  # v5e closes an axis of 16 alone, v5p one of 4.
  assert chips.slice_of('v5e:4x4').ring_bandwidth(16) == 2 * 50e9
  assert chips.slice_of('v5e:16x16').ring_bandwidth(256) == 4 * 50e9
  assert chips.slice_of('v5p:2x4x4').ring_bandwidth(32) == 5 * 100e9
  assert chips.slice_of('v5p:2x4x4').ring_bandwidth(4) == 2 * 100e9
  assert chips.slice_of('v5e-1').ring_bandwidth(1) == 50e9


@pytest.mark.parametrize(
  'name', ['v4-8', 'v5e-4', 'v5e-16', 'v5e:4x8', 'v5p-64', 'v5p-512', 'v6e-64']
)
def test_launchers_and_plans_mean_the_same_slice(name, monkeypatch):
  """The launchers run without the package, so each has its own table."""
  root = pathlib.Path(__file__).parents[1]
  monkeypatch.syspath_prepend(str(root / 'launch'))
  own = importlib.import_module('slices').parse(name)
  found = chips.slice_of(name)
  assert own.grid == 'x'.join(map(str, found.shape))
  assert (own.generation, own.chips) == (found.chip.name, found.chips)
