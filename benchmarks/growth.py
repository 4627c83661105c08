"""How the time of an MRT step grows: `python benchmarks/step.py --growth=all`.

One size at a time, all others as they are at the base: random weights that
think to the end of their budget, J at budgets of equal distances. The exponent
of each is the slope of log seconds in log size, by least squares over every
timing, with its standard error.
"""

import math
import statistics

import jax
import jax.numpy as jnp
import ml_collections

from meta_rl import data, models, setup_run, train_calls, update

# Sizes of each, the base among them.
SIZES = {
  'batch': (32, 64, 128, 256),  # traces
  'length': (48, 96, 192, 384),  # thinking tokens
  'episodes': (4, 8, 16, 32),
  'branches': (2, 4, 8, 16),  # of the sampled prover; of no other size
  'parameters': (64, 96, 128, 192),  # width, which they are counted for
}
BASE = {'batch': 64, 'length': 96, 'episodes': 8, 'parameters': 96}
ROWS = 16  # of a micro-batch
PARTS = 'generate', 'prove', 'update', 'step'


def make_config(config, axis: str, size: int) -> ml_collections.ConfigDict:
  """Returns the config at the base, one of its sizes changed.

  Args:
    config: of Countdown, for its task and model.
    axis: of `SIZES`.
    size: of it.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  sizes = BASE | {axis: size}
  config.init_from = ''
  config.model.width = sizes['parameters']
  config.model.num_heads = sizes['parameters'] // 32
  config.model.ffn_width = 4 * sizes['parameters']
  config.rollout.group_size = 8
  config.rollout.num_prompts = sizes['batch'] // 8
  config.rollout.thinking_budget = sizes['length']
  number = sizes['episodes']
  config.prover.max_episodes = number
  config.prover.boundaries = 'budgets'
  config.prover.budgets = tuple(
    sizes['length'] * (i + 1) // number for i in range(number)
  )
  if axis == 'branches':
    config.prover.kind = 'sampled'
    config.prover.num_branches = size
  config.batching.length_buckets = ()
  config.batching.mini_batches = 1
  config.batching.micro_batches = sizes['batch'] // ROWS
  return config


def make_parts(config) -> tuple[dict, int]:
  """Returns the calls of a step of a config, by name, and its parameters."""
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  params = setup_run.initial_params(config)
  optimizer = setup_run.make_optimizer(config)
  calls = train_calls.make_parallel(config, model, task, optimizer)
  problems = data.problem_iterator(
    setup_run.load_problems(config, 'train'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    batch_size=config.rollout.num_prompts,
  )
  batch = jax.tree.map(jnp.asarray, next(problems))
  key = jax.random.key(1)
  traces, cache = calls.generate(params, batch, key)
  measured = calls.prove(params, batch, traces, cache, key)
  state = update.init_state(params, optimizer, 0, setup_run.trainable(config))
  box = [calls.put_state(state)]

  def update_once():
    # The state is donated: each call trains on from where the last one was.
    box[0], found = calls.update(box[0], traces, measured, None)
    return found

  parts = {
    'generate': lambda: calls.generate(params, batch, key),
    'prove': lambda: calls.prove(params, batch, traces, cache, key),
    'update': update_once,
  }
  return parts, models.num_params(params)


def fit(sizes, seconds) -> dict[str, float]:
  """Returns the exponent b of seconds = a size^b and its standard error.

  Args:
    sizes: of each timing, at least two of them different.
    seconds: of each.

  Example, exactly a square:
    fit([1, 2, 4], [3, 12, 48]) == {'exponent': 2.0, 'standard_error': 0.0}
  """
  x, y = [math.log(n) for n in sizes], [math.log(t) for t in seconds]
  center, level = statistics.fmean(x), statistics.fmean(y)
  spread = sum((a - center) ** 2 for a in x)
  slope = sum((a - center) * (b - level) for a, b in zip(x, y)) / spread
  left = sum((b - level - slope * (a - center)) ** 2 for a, b in zip(x, y))
  error = math.sqrt(left / max(len(x) - 2, 1) / spread)
  return {'exponent': slope, 'standard_error': error}


def grow(config, axis: str, pairs: int, alternate) -> dict:
  """Returns seconds of each part and of a step at each size, and exponents.

  Args:
    config: of Countdown.
    axis: of `SIZES`.
    pairs: timings of each, in turn over all sizes.
    alternate: of benchmarks/step.py.
  """
  calls, counted = {}, {}
  for size in SIZES[axis]:
    parts, number = make_parts(make_config(config, axis, size))
    counted[size] = number if axis == 'parameters' else size
    calls |= {(part, size): fn for part, fn in parts.items()}
  times = alternate(calls, pairs)
  names = PARTS[:-1]
  for size in SIZES[axis]:
    each = zip(*(times[part, size] for part in names))
    times['step', size] = [sum(values) for values in each]
  found = {'sizes': list(counted.values()), 'seconds': {}, 'exponents': {}}
  for part in PARTS:
    found['seconds'][part] = [
      statistics.median(times[part, size]) for size in SIZES[axis]
    ]
    every = [(n, t) for n in SIZES[axis] for t in times[part, n]]
    found['exponents'][part] = fit(
      [counted[n] for n, _ in every], [t for _, t in every]
    )
  return found


def table(figures: dict[str, dict]) -> str:
  """Returns the exponents of `grow`, by axis, as lines to read."""
  lines = [f'{"exponent of":12}' + ''.join(f'{p:>16}' for p in PARTS)]
  for axis, found in figures.items():
    cells = (found['exponents'][part] for part in PARTS)
    lines.append(
      f'{axis:12}'
      + ''.join(
        f'{c["exponent"]:>9.2f} ± {c["standard_error"]:.2f}' for c in cells
      )
    )
  return '\n'.join(lines)
