"""Supervised fine-tuning on traces: the warm start, an algorithm of `train`.

    python -m meta_rl.train --config=configs/sft_countdown.py --workdir=DIR

Rows are packed: traces lie one behind another, see only themselves, and only
their completions are trained. Batches come in buckets of row length, one
compiled program each, since attention over long rows is what costs: rows of a
bucket hold every example that fits them, and `data.pattern` says which bucket
each batch is of.
"""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp

from meta_rl import (
  checkpoint,
  data,
  files,
  guards,
  held_out,
  metrics,
  preemption,
  scoring,
  setup_devices,
  setup_run,
  sharding,
  signals,
  tokenizer,
  update,
  weights,
  workdir,
)
from meta_rl.compiled import CountedJit
from meta_rl.types import Model, WeightedSum


class Buckets:
  """Endless packed batches that go round several iterators in turn.

  Args:
    iterators: one a bucket.
    pattern: which bucket the batches come from, repeated.
  """

  def __init__(self, iterators, pattern):
    self._iterators, self._pattern = list(iterators), list(pattern)
    self._next = 0

  def __next__(self):
    bucket = self._pattern[self._next % len(self._pattern)]
    self._next += 1
    return next(self._iterators[bucket])

  def get_state(self) -> dict:
    """Returns a JSON-able dict."""
    states = [iterator.get_state() for iterator in self._iterators]
    return {'next': self._next, 'iterators': states}

  def set_state(self, state: dict):
    """Goes on from where `state` was taken."""
    self._next = int(state['next'])
    for iterator, own in zip(self._iterators, state['iterators'], strict=True):
      iterator.set_state(own)


def make_batches(config, mesh=None) -> Buckets:
  """Returns the training batches that `config.data` describes.

  Args:
    config: an SFT config.
    mesh: of the devices that share a batch, None for one.
  """
  source = config.data.source
  buckets = config.data.buckets.to_dict()
  names = sorted(buckets)
  if not config.data.pattern or set(config.data.pattern) - set(names):
    raise ValueError(
      f'data.pattern={tuple(config.data.pattern)} must name one or more of '
      f'data.buckets, which are {", ".join(names)}.'
    )
  batching = setup_devices.batching_of(config, mesh)
  parts = batching['mini_batches'] * batching['micro_batches']
  for name in names:
    if buckets[name]['batch_size'] % parts:
      raise ValueError(
        f'data.buckets.{name}.batch_size={buckets[name]["batch_size"]} cannot '
        f'be cut into batching.mini_batches={batching["mini_batches"]} x '
        f'micro_batches={batching["micro_batches"]} equal parts.'
      )
  if source == 'traces':
    kit, options = setup_run.task_kit(config), config.data.traces.to_dict()
    problems = kit.trace_problems(
      setup_run.load_problems(config, 'train'),
      shown=config.data.orders,
      **setup_run.task_options(config),
    )
    iterators = []
    for i, name in enumerate(names):
      with workdir.of_section(f'data.buckets.{name}', buckets[name]):
        iterators.append(
          data.sft_batches(
            problems,
            sample_traces=kit.sample_traces,
            max_trace_length=kit.max_trace_length,
            seed=config.seed + i,
            **{**options, **buckets[name]},
          )
        )
  elif source == 'jsonl':
    if not config.data.path:
      raise ValueError("data.source='jsonl' needs data.path, a JSONL file.")
    files.check_input('data.path', config.data.path)
    # Those alone that batches come from: no example may wait in other rows.
    names = sorted(set(config.data.pattern))
    lengths = {name: buckets[name]['length'] for name in names}
    kit = setup_run.task_kit(config)
    examples = data.chat_jsonl(
      config.data.path,
      kit.tokenizer or tokenizer.make_tokenizer(),
      render=kit.render_chat,
      eos_token=kit.end_token,
      max_length=max(lengths.values()),
    )
    own = spread_examples(examples, lengths)
    iterators = [
      data.packed_batches(
        own[name],
        seed=config.seed,
        batch_size=buckets[name]['batch_size'],
        length=buckets[name]['length'],
      )
      for name in names
    ]
  else:
    raise ValueError(
      f'data.source={source!r} is unknown; allowed: traces, jsonl.'
    )
  pattern = [names.index(name) for name in config.data.pattern]
  return Buckets(iterators, pattern)


def spread_examples(examples: list, lengths: dict[str, int]) -> dict[str, list]:
  """Returns each bucket's examples: all that fit its rows.

  Long rows hold the short examples too, beside the long ones and as often as
  them. The pattern says how many batches come from each bucket, so that an
  example that several buckets hold is trained on more often than one that only
  long rows can.

  Args:
    examples: (tokens, loss mask), none longer than the longest rows.
    lengths: tokens a row, of each bucket that batches come from.

  Raises:
    ValueError: a bucket whose rows are too short for every example.
  """
  sizes = [len(tokens) for tokens, _ in examples]
  for name, length in lengths.items():
    if min(sizes) > length:
      raise ValueError(
        f'data.buckets.{name}.length={length}: the shortest example has '
        f'{min(sizes)} tokens, so that these rows can hold none: raise length, '
        f'or take {name!r} out of data.pattern.'
      )
  return {
    name: [e for e, size in zip(examples, sizes) if size <= length]
    for name, length in lengths.items()
  }


def make_loss(model: Model, *, chunk: int | None = None):
  """Returns `loss_fn(params, batch)`: mean -log p of completion tokens."""

  def loss_fn(params, batch):
    log_probs, _ = scoring.score(
      model,
      params,
      batch['tokens'],
      batch['positions'] >= 0,
      positions=batch['positions'],
      mask=data.packed_mask(batch['segment_ids']),
      chunk=chunk,
    )
    mask = batch['loss_mask']
    total = -jnp.where(mask, log_probs, 0.0).sum()
    return WeightedSum(total, mask.sum().astype(jnp.float32)), {}

  return loss_fn


def train(config, folder: str, *, profile_steps: str = '') -> int:
  """Trains until `config.total_steps`; returns the exit code.

  Args:
    config: an SFT config, locked.
    folder: run folder, already opened by `workdir.open_workdir`.
    profile_steps: not supported here; must be ''.
  """
  if profile_steps:
    raise ValueError('profile_steps applies to reinforcement, not to sft.')
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  _, mesh = setup_devices.parallel_of(config)
  batches = make_batches(config, mesh)
  eval_batches = held_out.validation_batches(config, mesh=mesh)
  optimizer = setup_run.make_optimizer(config)

  def make_update(axis_name, spread):
    return functools.partial(
      update.update,
      axis_name=axis_name,
      loss_fn=spread(make_loss(model, chunk=config.loss.chunk)),
      optimizer=optimizer,
      trainable=setup_run.trainable(config),
      **setup_devices.batching_of(config, mesh),
    )

  if mesh is None:
    step_fn = make_update(None, lambda loss_fn: loss_fn)
  else:
    step_fn = sharding.sharded_update(
      mesh, make_update, mini_batches=config.batching.mini_batches
    )
  step_fn = CountedJit(step_fn, donate_argnums=0)
  eval_calls = held_out.make_calls(config, model, task, mesh=mesh)
  with contextlib.ExitStack() as stack:
    saver = stack.enter_context(
      checkpoint.Checkpointer(
        f'{folder}/{checkpoint.CHECKPOINTS_DIR}',
        max_to_keep=config.checkpoint.max_to_keep,
      )
    )
    first, state = start_or_resume(config, saver, batches, optimizer, mesh)
    stop = stack.enter_context(preemption.graceful_exit())
    writer = stack.enter_context(
      metrics.MetricsWriter(folder, resume_step=first or None)
    )
    stack.enter_context(sharding.at_end(writer.close))
    bar = stack.enter_context(
      metrics.ProgressBar(
        config.total_steps,
        initial_step=first,
        print_every=config.log.print_every,
      )
    )
    for step in range(first + 1, config.total_steps + 1):
      began = time.perf_counter()
      batch = next(batches)
      tokens = int((batch['positions'] >= 0).sum())
      state, sums = step_fn(state, batch)
      row = update.to_scalars(jax.device_get(sums))
      row['time/step_s'] = time.perf_counter() - began
      row['time/tokens_per_s'] = tokens / row['time/step_s']
      guards.check_finite(step, row, saver.latest_step())
      last = step == config.total_steps
      if last or step % config.eval.every == 0:
        measured = held_out.measure(
          eval_calls,
          state.params,
          eval_batches,
          jax.random.key(config.seed),
          mesh=mesh,
        )
        row |= held_out.summary(measured, config.rollout.thinking_budget)
        row |= held_out.episode_shares(measured, config)
      calls = (step_fn, *eval_calls.values())
      row['compile/count'] = sum(call.traces for call in calls)
      writer.write(step, row)
      bar.update(step, row)
      # Read once: a signal behind the save must not leave without one.
      leave = stop.reached(step) or last
      if leave or step % config.checkpoint.every == 0:
        writer.save()
        saver.save(step, state, batches.get_state(), row, wait=leave)
      if leave and not last:
        bar.say(stop.message(step))
        return signals.EXIT_INTERRUPTED
  return signals.EXIT_OK


def start_or_resume(config, saver, batches, optimizer, mesh=None):
  """Returns (steps done, state) of a run, its `batches` set to go on there.

  In a function, so that what the state was restored into ends here.
  """
  own = setup_run.trainable(config)

  def place(state):
    return state if mesh is None else sharding.put_state(mesh, state)

  # Without a name: what is blank would be held until the run starts.
  restored = saver.restore_latest(
    place(
      update.init_state(
        setup_run.blank_params(config, mesh=mesh), optimizer, config.seed, own
      )
    )
  )
  if restored is None:
    if found := weights.describe(config.init_from):
      print(f'init_from={config.init_from}: {found}')
    params = setup_run.initial_params(config, mesh=mesh)
    return 0, place(update.init_state(params, optimizer, config.seed, own))
  first, state, data_state = restored
  batches.set_state(data_state)
  print(metrics.resuming(first, config.total_steps))
  return first, state
