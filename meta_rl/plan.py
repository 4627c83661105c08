"""What a run will need and take on a TPU slice, before it is paid for.

    pip install 'meta-rl[tpu]'      # the TPU compiler; no TPU is needed
    python -m meta_rl.plan --config=mrt_r1_distill_qwen_1p5b \\
      --topology=v5e-16 --size=qwen2.5-1.5b --length=8192

The programs of a training step (generate, prove, update) are compiled for the
slice by the real TPU compiler, from shapes alone, and what they do is read from
the result: memory, FLOPs, bytes, every collective, and from these a roofline
(meta_rl/aot/roofline.py). Times and MFU are predictions, not measurements.

    MFU  model FLOPs of the update, without recomputation, over chips x peak x t
    HFU  the same with all FLOPs that the program does
"""

import dataclasses
import itertools
import json
import re
import sys
import time

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checks,
  command_line,
  files,
  plan_programs,
  plan_report,
  setup_run,
  signals,
)
from meta_rl.aot import chips, hlo, roofline
from meta_rl.aot.sizes import SIZES

FLAGS = flags.FLAGS
_OPTIONS = {}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One program, compiled for one device of a slice.

  Attributes:
    name: of `plan_programs.PROGRAMS`.
    seconds: that compiling took, here.
    arguments, temporaries: bytes a device.
    peak: bytes a device, with what stays in memory beside it.
    cost: of `roofline`; None where it doesn't fit.
    problem: why it doesn't fit, '' where it does.
  """

  name: str
  seconds: float
  arguments: float
  temporaries: float
  peak: float
  cost: roofline.Cost | None
  problem: str = ''


def compile_program(
  programs: plan_programs.Programs, name: str, slice_: chips.Slice
) -> Compiled:
  """Returns one program, compiled and costed.

  Args:
    programs: of `plan_programs.make`.
    name: which of them.
    slice_: that they were made for.
  """
  began = time.perf_counter()
  hbm = slice_.chip.hbm / slice_.chip.devices
  try:
    built = programs.lower[name]().compile(compiler_options=_OPTIONS or None)
  except jax.errors.JaxRuntimeError as error:
    found = re.search(r'\(([\d.]+)([GM])\) exceeds', str(error))
    if found is None:
      raise
    needed = float(found[1]) * {'G': 2**30, 'M': 2**20}[found[2]]
    took = time.perf_counter() - began
    return Compiled(name, took, 0.0, needed, needed, None, 'does not fit')
  took = time.perf_counter() - began
  memory = built.memory_analysis()
  arguments, temporaries = (
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
  )
  peak = (
    arguments
    + temporaries
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  if name != 'update':  # the optimizer's moments lie beside them
    held = plan_programs.bytes_of(programs.params)
    peak += programs.state_bytes - held
  return Compiled(
    name,
    took,
    arguments,
    temporaries,
    peak,
    roofline.cost(hlo.parse(built.as_text()), slice_),
    '' if peak <= hbm else 'does not fit',
  )


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config needs and takes on a slice.

  Attributes:
    config: as it was compiled.
    slice_: the chips.
    parameters: of the policy.
    rows, length: traces of a step, and tokens of each.
    compiled: name -> program.
    model_flops: of an update, without recomputation, on all chips.
  """

  config: object
  slice_: chips.Slice
  parameters: int
  rows: int
  length: int
  compiled: dict[str, Compiled]
  model_flops: float

  @property
  def fits(self) -> bool:
    """Whether every program that was compiled fits in memory."""
    return not any(each.problem for each in self.compiled.values())

  def mfu(self) -> float | None:
    """Returns the predicted MFU of the update; None where it is not known."""
    found = self.compiled.get('update')
    if found is None or found.cost is None:
      return None
    peak = self.slice_.chip.flops * self.slice_.chips
    return self.model_flops / (peak * found.cost.seconds)

  def hfu(self) -> float | None:
    """Returns the same with all FLOPs that the program does."""
    found = self.compiled.get('update')
    if found is None or found.cost is None:
      return None
    peak = self.slice_.chip.flops / self.slice_.chip.devices
    return found.cost.flops / (peak * found.cost.seconds)

  def step_seconds(self) -> float | None:
    """Returns the seconds of a step; None unless all programs are known."""
    costs = [each.cost for each in self.compiled.values()]
    if len(costs) < len(plan_programs.PROGRAMS) or None in costs:
      return None
    return sum(cost.seconds for cost in costs)


def make_plan(config, slice_: chips.Slice, names, *, report=print) -> Plan:
  """Returns the plan of a config, its programs compiled one by one.

  Args:
    config: of `plan_programs.abstract_config`.
    slice_: of `chips.slice_of`.
    names: of the programs.
    report: is told of each as it is compiled.
  """
  programs = plan_programs.make(config, slice_)
  compiled = {}
  for name in names:
    compiled[name] = compile_program(programs, name, slice_)
    report(f'{name}: compiled in {compiled[name].seconds:.0f} s')
  return Plan(
    config,
    slice_,
    sum(x.size for x in jax.tree.leaves(programs.params)),
    programs.rows,
    programs.length,
    compiled,
    plan_programs.model_flops(config, programs),
  )


def candidates(config, devices: int):
  """Yields (mesh, micro_batches) that fit the batch, the likeliest first.

  Args:
    config: an RL config.
    devices: of the slice.
  """
  rows = config.rollout.num_prompts * config.rollout.group_size
  rows //= config.batching.mini_batches
  context = config.parallel.mesh.context
  devices //= max(1, context)
  powers = [2**i for i in range(devices.bit_length()) if devices % 2**i == 0]
  for tensor, data in itertools.product((1, 2, 4, 8), powers):
    if devices % (tensor * data):
      continue
    fsdp = devices // (tensor * data)
    shards = data * fsdp
    # Traces of a device and micro-batch.
    for each in (1, 2, 4) if context == 1 else (1,):
      micro, rest = divmod(rows, shards * each)
      if micro and not rest:
        mesh = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
        yield mesh | {'context': context}, micro


def define_flags():
  """Defines the command's flags."""
  config_flags.DEFINE_config_file('config', None, 'Config of a run.')
  flags.DEFINE_string('topology', None, 'A slice: v5e:4x4, v5e-16, v5p-64, …')
  flags.DEFINE_string(
    'size', '', f'A shape in place of a checkpoint: {", ".join(SIZES)}.'
  )
  flags.DEFINE_integer(
    'length', None, 'Tokens of a trace, prompt and answer included.'
  )
  flags.DEFINE_list(
    'programs', list(plan_programs.PROGRAMS), 'Which programs to compile.'
  )
  flags.DEFINE_float('price', None, 'Dollars a chip and hour.', lower_bound=0)
  flags.DEFINE_boolean('search', False, 'Try meshes and micro-batches.')
  flags.DEFINE_integer(
    'tries', 8, 'Programs that --search compiles at most.', lower_bound=1
  )
  flags.DEFINE_string('json', '', 'Where to write the plan as JSON.')
  flags.mark_flags_as_required(['config', 'topology'])


def prepare(config):
  """Returns (config, slice) of the flags.

  Raises:
    ValueError: one line, for a flag that cannot be used.
  """
  slice_ = chips.slice_of(FLAGS.topology)
  for name in FLAGS.programs:
    checks.check_choice('programs', name, plan_programs.PROGRAMS)
  size = None
  if FLAGS.size:
    checks.check_choice('size', FLAGS.size, SIZES)
    size = SIZES[FLAGS.size]
  config = plan_programs.abstract_config(config, size)
  if config.model.get('path') == '???':
    raise ValueError(
      'config.model.path is not set: name a checkpoint, of which only '
      f'config.json is read, or give --size, one of {", ".join(SIZES)}.'
    )
  if FLAGS.length is not None:
    task = setup_run.make_task(config)
    own = setup_run.trace_length(config, task, times=0)
    budget = FLAGS.length - own
    if budget < config.prover.max_episodes:
      raise ValueError(
        f'length={FLAGS.length}: prompt, stop and answer have {own} tokens; '
        f'give more than {own + config.prover.max_episodes}.'
      )
    config.rollout.thinking_budget = budget
    config.batching.length_buckets = ()
    if config.prover.boundaries == 'budgets':
      count = config.prover.max_episodes
      config.prover.budgets = tuple(
        budget * (i + 1) // count for i in range(count)
      )
  check_config.check(config)
  return config, slice_


def search(config, slice_, tries: int) -> list[Plan]:
  """Returns plans of the update, those that fit by predicted time.

  Args:
    config: of `prepare`.
    slice_: the chips.
    tries: programs to compile at most.
  """
  plans = []
  for mesh, micro in candidates(config, slice_.devices):
    if len(plans) == tries:
      break
    config.parallel.mesh.update(mesh)
    config.batching.update({'micro_batches': micro, 'rows_per_device': None})
    shown = ', '.join(f'{k}={v}' for k, v in mesh.items())
    print(f'mesh {shown}, {micro} micro-batches', flush=True)
    own = type(config)(config.to_dict())
    plans.append(make_plan(own, slice_, ['update'], report=_say))
  key = lambda p: (not p.fits, p.compiled['update'].cost.seconds)
  return sorted(
    (p for p in plans if p.compiled['update'].cost is not None), key=key
  )


def _say(text):
  print(f'  {text}', flush=True)


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.ERROR)
  try:
    config, slice_ = prepare(FLAGS.config)
    if FLAGS.search:
      plans = search(config, slice_, FLAGS.tries)
      for plan in plans:
        print('\n' + plan_report.describe(plan, price=FLAGS.price))
    else:
      plans = [make_plan(config, slice_, FLAGS.programs, report=_say)]
      print(plan_report.describe(plans[0], price=FLAGS.price))
    if FLAGS.json:
      text = json.dumps([plan_report.as_json(plan) for plan in plans], indent=1)
      files.atomic_write(FLAGS.json, text.encode())
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(signals.EXIT_ERROR)
  if not all(plan.fits for plan in plans[:1]):
    sys.exit(signals.EXIT_ERROR)


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
