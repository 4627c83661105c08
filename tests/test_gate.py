"""The programs of a training step cost what they did: counts, not seconds.

`python benchmarks/gate.py --write` takes what they are now for right.
"""

import functools
import importlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from meta_rl.configs import mrt_countdown

ABOVE, BELOW = 1.05, 0.9  # of what is recorded
WRITE = 'python benchmarks/gate.py --write'


@functools.cache
def benchmark(name):
  """A module of benchmarks/, which is no package."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module(name)


@pytest.fixture(scope='module')
def gate():
  return benchmark('gate')


def problems(found, recorded):
  """One line for each count that moved."""
  lines = []
  for program, values in recorded.items():
    for name, before in values.items():
      now = found[program][name]
      ratio = now / before if before else 1.0 + now
      if ratio > ABOVE:
        lines.append(f'{program}: {name} {before:.0f} -> {now:.0f}')
      elif ratio < BELOW:
        lines.append(
          f'{program}: {name} {before:.0f} -> {now:.0f}, which is better: '
          f'keep it by {WRITE}'
        )
  return lines


@pytest.mark.parametrize('name', ['tiny', 'shipped'])
def test_counts(gate, name):
  known = json.loads(gate.FILE.read_text())
  if gate.jax_minor() not in known:
    pytest.skip(
      f'tests/data/gate.json has no counts of jax {gate.jax_minor()}, only of '
      f'{sorted(known)}: {WRITE}'
    )
  recorded = known[gate.jax_minor()][name]
  found = gate.counts(name)
  assert sorted(found) == sorted(recorded), f'other programs: {WRITE}'
  lines = problems(found, recorded)
  assert not lines, '\n'.join(
    [*lines, f'If it has to be: {WRITE}, and say why.']
  )


def test_what_moved_is_named():
  recorded = {'update': {'flops': 100.0, 'loops': 2.0, 'fusions': 0}}
  found = lambda **new: {'update': recorded['update'] | new}
  assert not problems(found(flops=104.0), recorded)
  assert not problems(found(flops=91.0), recorded)
  assert problems(found(flops=106.0), recorded) == ['update: flops 100 -> 106']
  assert 'keep it by python' in problems(found(flops=80.0), recorded)[0]
  assert problems(found(fusions=1), recorded) == ['update: fusions 0 -> 1']


# --- what holds whatever the version ---


def test_an_update_is_one_forward_and_one_backward_pass(gate):
  lowered = gate.programs('tiny').lowered
  update, forward = (
    gate.flops(gate.parse(lowered[name])) for name in ('update', 'score')
  )
  # A backward pass is two products for each of the forward one.
  assert 2.8 < update / forward < 3.05


def test_a_prompt_is_prefilled_once_a_group(gate):
  made = gate.programs('tiny')
  prefill = gate.outside_loops(gate.parse(made.lowered['generate']))
  tokens = made.config.rollout.num_prompts * made.prompt
  # Attention is a few percent, and the vocabulary is for the last token alone;
  # once a trace would be `group_size` = 4 times as much.
  assert 0.5 < prefill / (2 * made.num_params * tokens) < 1.5


@pytest.mark.parametrize('chunk', [8, None])
def test_no_logits_of_a_whole_batch_in_an_update(gate, chunk):
  config = mrt_countdown.get_config('tiny')
  config.model.vocab_size = vocab = 131  # like no other size
  config.loss.chunk = chunk
  config.batching.length_buckets = ()
  config.batching.micro_batches = 2
  made = gate.lower(config)
  rows = config.rollout.num_prompts * config.rollout.group_size
  rows //= config.batching.mini_batches * 2
  largest = max(
    np.prod(shape.dims[:-1])
    for each in gate.instructions(gate.parse(made.lowered['update']))
    for shape in each.shapes
    if shape.dims[-1:] == (vocab,)
  )
  # Those of a micro-batch, a chunk at a time. The head's gradient is [16,131].
  assert largest == rows * (chunk or made.length)


def test_a_step_of_mrt_beside_one_of_grpo(gate):
  assert 1.0 < gate.mrt_over_grpo(gate.programs('shipped')) <= 1.3


def test_tokens_of_the_provers():
  # The issue of a prover: 16 boundaries, prompts of 128 tokens, episodes of 64,
  # two accepted answers of 6 tokens that share nothing, 8 branches.
  module = benchmark('prover')
  ends = 127 + 64 * np.arange(16)[None]
  answers = jnp.array([[[5, 6, 7, 8, 9, 2], [6, 5, 7, 8, 9, 2]]])
  # As if every answer that is sampled ended with its first token.
  drawn = 16 * 8
  fed = module.count_tokens(
    ends, answers, jnp.ones((1, 2, 6), bool), drawn, drawn, 8
  )
  assert fed['exact'] == 16 * 11
  assert fed['prefix'] == sum(128 + 64 * j + 1 for j in range(16))
  assert fed['sample'] == 8 * fed['prefix']
  assert fed['sample'] / fed['exact'] >= 20
  assert fed['prefix'] / fed['exact'] >= 5
  # Where no cache was kept, the trace is paid for too.
  assert fed['sample'] / fed['prefilled'] >= 20
