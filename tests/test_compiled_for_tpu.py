"""What the TPU compiler makes of an update, read from its HLO.

A small language model with everything that a large one has: scanned layers,
bfloat16 over float32 weights, fsdp, flash attention, log-probs in chunks.
"""

import importlib.util
import math

import jax
import pytest

from meta_rl import plan_programs, setup_run
from meta_rl.aot import chips, hlo, roofline
from meta_rl.configs import mrt_qwen3_0p6b

pytestmark = [
  pytest.mark.full,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="the TPU compiler is not installed: pip install -e '.[tpu]'",
  ),
]

LAYERS, WIDTH, FFN, VOCAB = 4, 256, 768, 8192
SIZE = {
  'vocab_size': VOCAB,
  'num_layers': LAYERS,
  'width': WIDTH,
  'num_heads': 4,
  'num_kv_heads': 2,
  'ffn_width': FFN,
  'tie_embeddings': False,
}


def compile_update(topology, *, chunk=128, rows=2, **mesh):
  """Returns (program, rows a device, tokens a trace, shapes of the params)."""
  config = plan_programs.abstract_config(mrt_qwen3_0p6b.get_config(), SIZE)
  config.task.update({'prompt_length': 64, 'answer_length': 64})
  stop = len(setup_run.make_task(config).stop_ids)
  config.rollout.thinking_budget = 1024 - 128 - stop
  config.rollout.update({'num_prompts': 4, 'group_size': 4})
  budget, count = config.rollout.thinking_budget, config.prover.max_episodes
  config.prover.budgets = tuple(budget * (i + 1) // count for i in range(count))
  config.batching.length_buckets = ()
  config.batching.rows_per_device = rows
  config.loss.chunk = chunk
  config.parallel.mesh.update({'data': 1} | mesh)
  programs = plan_programs.make(config, chips.slice_of(topology))
  built = programs.lower['update']().compile()
  params = [x.shape for x in jax.tree.leaves(programs.params)]
  return hlo.parse(built.as_text()), rows, programs.length, params


def gathered(program):
  """Returns the elements of each array that an all-gather makes."""
  return [
    math.prod(shape.dims)
    for each, _, _ in program.walk()
    for inner in (each, *program.inner(each).values())
    if roofline._kind(inner) == 'all-gather'
    for shape in inner.shapes
  ]


def logits(program, tokens):
  """Returns the shapes that hold the vocabulary for so many tokens or more."""
  found = set()
  for each, _, _ in program.walk():
    for shape in each.shapes:
      if VOCAB in shape.dims and math.prod(shape.dims) >= tokens * VOCAB:
        found.add(shape.dims)
  return found


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1'])
def test_an_update_gathers_a_layer_at_a_time_and_no_logits(topology):
  program, rows, length, params = compile_update(topology, fsdp=4)
  layer = max(math.prod(shape[1:]) for shape in params if len(shape) == 3)
  largest = max(VOCAB * WIDTH, layer)
  assert layer == WIDTH * FFN
  sizes = gathered(program)
  assert sizes, 'no weight is gathered: fsdp cuts none'
  assert max(sizes) <= largest
  # The layers' own, of which all are four times as large, one at a time.
  assert layer in sizes
  assert LAYERS * layer not in sizes
  assert not logits(program, rows * length)


@pytest.mark.soak
def test_logits_of_whole_traces_would_be_seen():
  program, rows, length, _ = compile_update('v5e:2x2', fsdp=4, chunk=2048)
  assert logits(program, rows * length)


def product_flops(program):
  """Returns the FLOPs of a device's matrix products, kernels left out."""
  return sum(
    program.flops(each, where) * times for each, where, times in program.walk()
  )


def test_traces_that_are_cut_by_time():
  program, rows, length, _ = compile_update(
    'v5e:2x2', rows=1, fsdp=2, context=2
  )
  kernels = [
    (each, where)
    for each, where, _ in program.walk()
    if 'splash' in each.name and each.opcode == 'custom-call'
  ]
  assert len(kernels) >= 2  # forward and backward
  padded = length + -length % 1024
  whole = 2 * 2.0 * rows * 4 * padded * padded * 64
  for each, where in kernels:
    found = roofline.kernel_flops(program, each, where)
    times = 1 if 'fwd' in each.name else 2.5
    # The last half of the queries sees three quarters of the scores.
    assert found == pytest.approx(whole * times * 3 / 8)
  assert not logits(program, rows * length)
  # And every other product is cut, too: a device's share is a quarter of all.
  other, _, _, _ = compile_update('v5e:2x2', rows=1, fsdp=4)
  assert product_flops(program) < 1.2 * product_flops(other)
