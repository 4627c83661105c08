"""Whole training steps as one program, several of them a dispatch.

`config.parallel.fused_steps = n` takes up to n steps in one donated program
(meta_rl/steps/block.py) in place of a dispatch a phase. It is for tasks that
verify on the device, where nothing is asked of the host within a step. A block
ends where something is due behind a step (held-out evaluation, a checkpoint,
samples, the end of the run), so that a run of blocks takes the same steps and
leaves the same files as one without; a signal is seen at the end of a block.
"""

import collections
from collections.abc import Callable

import jax
import numpy as np

from meta_rl import setup_own, setup_run, sharding, steps, update
from meta_rl.compiled import CountedJit


def check(config):
  """Raises ValueError, in one line, where steps cannot be fused.

  Args:
    config: a training config.
  """
  count = config.parallel.get('fused_steps', 0)
  name = f'parallel.fused_steps={count!r}'
  if isinstance(count, bool) or not isinstance(count, int) or count < 0:
    raise ValueError(f'{name} is given; allowed is a number >= 0, 0 for none.')
  if not count:
    return
  # The host, or what the program does not hold, is asked within a step.
  reasons = {
    "algorithm.name='sft' has no phases": config.algorithm.name == 'sft',
    "parallel.kind='pmap' deals traces anew before its update": (
      config.parallel.kind == 'pmap'
    ),
    'config.rewards are functions of the host': bool(config.rewards),
    'rollout.source names traces of a file': (
      setup_own.rollouts_path(config) is not None
    ),
    'rollout.dynamic_sampling draws further prompts within a step': bool(
      config.rollout.dynamic_sampling.max_rounds
    ),
    f'answers of task.name={config.task.name!r} are graded on the host': (
      setup_run.task_kit(config).metrics is not None
    ),
    "algorithm.prefix_policy='reference' samples from two policies": (
      config.algorithm.get('prefix_policy') == 'reference'
    ),
    'the reference of LoRA is made from the policy': (
      setup_run.has_reference(config)
      and setup_run.trainable(config) is not None
    ),
  }
  for reason, given in reasons.items():
    if given:
      raise ValueError(
        f'{name} takes whole steps on the device, and {reason}: set it to 0.'
      )


def make_block(config, parallel: sharding.Parallel, summarize):
  """Returns the jitted block of a config, None where steps are not fused.

  Args:
    config: an RL config.
    parallel: of `train_calls.make_parallel`.
    summarize: of `train_calls.make_summarize`.
  """
  if not config.parallel.get('fused_steps', 0):
    return None
  step = steps.fused(
    parallel.generate,
    parallel.prove,
    parallel.update,
    parallel.score,
    parallel.value,
  )
  return CountedJit(steps.make_block(step, summarize), donate_argnums=0)


def block_length(config, step: int, stop_at: int) -> int:
  """Returns how many steps the block behind `step` may take, >= 1.

  Args:
    config: a training config; without fused steps each block is one step.
    step: steps done.
    stop_at: the last step of the run.
  """
  ends = [stop_at - step, *(every - step % every for every in _dues(config))]
  return min(most_steps(config), *ends)


def most_steps(config) -> int:
  """Returns how many steps a block takes at most, >= 1.

  That is `parallel.fused_steps` unless something is due more often: a larger
  program would be handed batches that no block looks at.
  """
  asked = max(1, config.parallel.get('fused_steps', 0))
  return min(asked, config.total_steps, *_dues(config))


def _dues(config) -> tuple[int, ...]:
  return config.eval.every, config.checkpoint.every, config.log.samples_every


class Feed:
  """Batches ahead of a block, each with the iterator's state behind it.

  Args:
    next_batch: `() -> batch`, placed.
    get_state: `() -> dict`, of the iterator behind the batch drawn last.
  """

  def __init__(self, next_batch: Callable, get_state: Callable):
    self._next, self._get_state = next_batch, get_state
    self._drawn = collections.deque()

  def peek(self, count: int) -> list:
    """Returns the next `count` batches; they stay in front."""
    while len(self._drawn) < count:
      self._drawn.append((self._next(), self._get_state()))
    return [batch for batch, _ in list(self._drawn)[:count]]

  def take(self, count: int) -> dict:
    """Drops `count` batches and returns the state behind the last of them."""
    for _ in range(count):
      _, state = self._drawn.popleft()
    return state


def run(
  block, state, base_params, feed, timer, *, count, size, meter, paid=0.0
):
  """Runs a block of steps.

  Args:
    block: of `make_block`.
    state: before the block; donated.
    base_params: what the reference log-probs are of; None: there are none.
    feed: a `Feed`.
    timer: the phase 'fused' is added to it.
    count: steps that it may take, of `block_length`.
    size: N of the program, >= count: `most_steps`.
    meter: of the run; a step that reaches one of its budgets is the last.
    paid: what the first step pays beside its own parts.

  Returns:
    The new state, the float metrics of each step that was taken, the data
    iterator's state behind them, and (traces, measured) of the last.
  """
  batches = feed.peek(count)
  # One program whatever the length: what is not looked at is any batch.
  batches += batches[-1:] * (size - count)
  cost, tokens = (
    np.int32(steps.left_of(limit, spent)) for limit, spent in meter.left(paid)
  )
  limits = steps.Limits(np.int32(count), cost, tokens)
  with timer('fused'):
    state, found = block(state, base_params, tuple(batches), limits)
    done, rows, sums = jax.device_get((found.done, found.rows, found.sums))
  of = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
  scalars = [
    {name: float(value) for name, value in of(rows, i).items()}
    | update.to_scalars(of(sums, i))
    for i in range(int(done))
  ]
  return state, scalars, feed.take(int(done)), (found.traces, found.measured)
