"""Counts of the compiled programs: what may not grow unnoticed.

    python benchmarks/gate.py            what they are now, as JSON
    python benchmarks/gate.py --write    the same, into tests/data/gate.json

Seconds depend on the machine and its mood; the programs do not. For `:tiny` and
for the shipped Countdown config, of generate, prove, score and update (and of
tiny's fused step): FLOPs of the matrix products, HLO instructions and loops as
lowered; and of tiny's as compiled for the CPU, fusions, bytes that are accessed
and temporary memory. tests/test_gate.py compares them with the file, which
keeps a set for each minor version of jax.

A body of a loop that ends at a constant counts as often as it runs, one whose
end depends on data once: FLOPs of prove are those of one block.
"""

import argparse
import dataclasses
import functools
import inspect
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meta_rl import (
  listed_answers,
  models,
  prover,
  setup_run,
  steps,
  train_calls,
  update,
)
from meta_rl.aot import hlo
from meta_rl.configs import mrt_countdown

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'data' / 'gate.json'
CONFIGS = {'tiny': 'tiny', 'shipped': ''}


def jax_minor() -> str:
  """Returns such as '0.10': the counts differ from one to the next."""
  return '.'.join(jax.__version__.split('.')[:2])


class Once(hlo.Program):
  """A program whose loops run once."""

  def trips(self, loop: hlo.Instruction) -> int:
    """Returns 1."""
    return 1


class Never(hlo.Program):
  """A program whose loops do not run."""

  def trips(self, loop: hlo.Instruction) -> int:
    """Returns 0."""
    return 0


def parse(stage) -> hlo.Program:
  """Returns the program of a lowered or compiled stage."""
  if isinstance(stage, jax.stages.Lowered):
    return hlo.parse(stage.compiler_ir('hlo').as_hlo_module().to_string())
  return hlo.parse(stage.as_text())


def flops(program: hlo.Program) -> float:
  """Returns the FLOPs of a program's matrix products."""
  return sum(
    times * program.flops(each, where) for each, where, times in program.walk()
  )


def outside_loops(program: hlo.Program) -> float:
  """Returns those that are in no loop."""
  return flops(Never(program.computations, program.entry))


def instructions(program: hlo.Program):
  """Yields every instruction of every computation, once."""
  for computation in program.computations.values():
    yield from computation.values()


@dataclasses.dataclass(frozen=True)
class Programs:
  """The lowered programs of a config, and what they were made from.

  Attributes:
    lowered: name -> jax.stages.Lowered.
    config: ConfigDict.
    num_params: of the policy.
    prompt: tokens of a prompt.
    length: of a trace.
  """

  lowered: dict
  config: ml_collections.ConfigDict
  num_params: int
  prompt: int
  length: int


def lower(config, *, fused: bool = False) -> Programs:
  """Returns the programs of a config, lowered; nothing is compiled or run.

  Args:
    config: an RL config.
    fused: the whole step as one program, too.
  """
  task = setup_run.make_task(config)
  shape = setup_run.model_config(config)
  model = models.make_model(shape)
  optimizer = setup_run.make_optimizer(config)
  config.parallel.kind = 'none'
  calls = train_calls.make_parallel(config, model, task, optimizer)
  score = jax.jit(steps.make_score(model, chunk=config.loss.chunk))
  params = setup_run.abstract_params(config)
  state = jax.eval_shape(
    lambda params: update.init_state(
      params, optimizer, 0, setup_run.trainable(config)
    ),
    params,
  )
  problem = setup_run.load_problems(config, 'validation')[0]
  record = setup_run.task_kit(config).record_arrays(problem)
  prompts = config.rollout.num_prompts
  batch = {
    k: jax.ShapeDtypeStruct((prompts, *np.shape(x)), np.asarray(x).dtype)
    for k, x in record.items()
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = {'generate': calls.generate.lower(params, batch, key)}
  traces, cache = lowered['generate'].out_info
  lowered['prove'] = calls.prove.lower(params, batch, traces, cache, key)
  measured = lowered['prove'].out_info
  lowered['score'] = score.lower(params, traces)
  lowered['update'] = calls.update.lower(state, traces, measured, None)
  if fused:
    step = steps.fused(calls.generate, calls.prove, calls.update)
    lowered['fused'] = jax.jit(step).lower(state, None, batch, key)
  return Programs(
    lowered=lowered,
    config=config,
    num_params=models.num_params(params),
    prompt=batch['prompts'].shape[1],
    length=traces.tokens.shape[1],
  )


def count(name: str, lowered) -> dict[str, float]:
  """Returns the counts of one program as it was lowered."""
  program = parse(lowered)
  whole = program
  if name in ('prove', 'fused'):
    whole = Once(program.computations, program.entry)
  every = list(instructions(program))
  return {
    'flops': flops(whole),
    'instructions': len(every),
    'loops': sum(each.opcode == 'while' for each in every),
  }


def count_compiled(lowered) -> dict[str, float]:
  """Returns the counts of one program as it is compiled."""
  compiled = lowered.compile()
  every = list(instructions(parse(compiled)))
  return {
    'fusions': sum(each.opcode == 'fusion' for each in every),
    'bytes_accessed': compiled.cost_analysis()['bytes accessed'],
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
  }


@functools.cache
def programs(name: str) -> Programs:
  """Returns the programs of 'tiny' or 'shipped'."""
  config = mrt_countdown.get_config(CONFIGS[name])
  return lower(config, fused=name == 'tiny')


def block_flops(prove: hlo.Program) -> list[float]:
  """Returns the FLOPs of a block of the exact prover, of each part of a cache.

  Its loops are the only ones of `prove`, the largest part last.
  """
  once = Once(prove.computations, prove.entry)
  found = [
    sum(
      times * prove.flops(each, where)
      for each, where, times in once.walk_from(loop.called('body'))
    )
    for loop in instructions(prove)
    if loop.opcode == 'while'
  ]
  return sorted(found)


def mrt_over_grpo(made: Programs, *, answers: int = 2) -> float:
  """Returns the FLOPs of an MRT step over those of a GRPO step.

  On the same rollouts: traces of 1 to K episodes, as many of each, with so many
  accepted answers that share nothing. Both generate until the longest trace is
  done, and update (a forward and a backward pass, twice as much) the columns
  that each micro-batch is cut to; MRT runs the prover's blocks, too.
  """
  config, lowered = made.config, made.lowered
  group = config.rollout.group_size
  rows = config.rollout.num_prompts * group
  most = config.prover.max_episodes
  episode = config.rollout.thinking_budget // most
  shape = lowered['prove'].out_info
  count = 1 + np.arange(rows) % most
  length = made.length - episode * (most - count)
  buckets = np.array([*sorted(config.batching.length_buckets), made.length])
  columns = buckets[(length[:, None] > buckets).sum(1)]
  forward = flops(parse(lowered['score'])) * columns.mean() / made.length
  grpo = flops(parse(lowered['generate'])) + 3 * forward
  task = setup_run.make_task(config)
  stop, tail = len(task.stop_ids), task.answer_length - 1
  ends = made.prompt - 1 + episode * np.arange(shape.success.shape[1])
  defaults = inspect.signature(prover.exact).parameters
  queue = listed_answers.make_queue(
    jnp.full(rows, stop + answers * tail),
    # The first boundary is measured once a group.
    jnp.asarray(count + (np.arange(rows) % group == 0)),
    jnp.asarray(np.tile(ends, (rows, 1))),
    tokens=defaults['block_pairs'].default * (stop + tail),
    most=stop + config.task.max_answers * tail,
  )
  blocks = -(-int(queue.total) // defaults['block_rows'].default)
  # As if each read the whole cache: an upper bound.
  block = block_flops(parse(lowered['prove']))[-1]
  return 1 + blocks * block / grpo


def counts(name: str) -> dict[str, dict[str, float]]:
  """Returns program -> counts, of 'tiny' or 'shipped'."""
  found = {}
  for program, lowered in programs(name).lowered.items():
    found[program] = count(program, lowered)
    # The fused step is made of the others; the shipped one takes too long.
    if name == 'tiny' and program != 'fused':
      found[program] |= count_compiled(lowered)
  return found


def main():
  """Prints the counts, or writes them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--write', action='store_true')
  write = parser.parse_args().write
  found = {name: counts(name) for name in CONFIGS}
  if not write:
    json.dump(found, sys.stdout, indent=2)
    print()
    return
  known = json.loads(FILE.read_text()) if FILE.exists() else {}
  known[jax_minor()] = found
  FILE.write_text(json.dumps(known, indent=2, sort_keys=True) + '\n')
  print(f'{FILE}: counts of jax {jax_minor()}')


if __name__ == '__main__':
  main()
