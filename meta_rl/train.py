"""Training: the loop, told top to bottom.

    python -m meta_rl.train --config=configs/mrt_countdown.py --workdir=DIR

One step of reinforcement fine-tuning:

    1. generate: sample a group of traces for every prompt of a batch.
    2. prove: grade the answers, find the episodes, and estimate the chance of
       success J at each of their ends.
    3. turn rewards and J into an advantage for every token.
    4. update: clipped policy gradient, one optimizer step a mini-batch.

`algorithm.name = 'sft'` trains on given traces instead (meta_rl/sft.py).

Exit codes: 0 done, 1 an error (one line), 3 a NaN or infinite loss, 75 stopped
by SIGTERM or Ctrl-C after saving; the same command goes on from there.
"""

import contextlib
import dataclasses
import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checkpoint,
  command_line,
  costs,
  data,
  dynamic_sampling,
  env,
  held_out,
  metrics,
  profiler,
  setup_run,
  sft,
  sharding,
  signals,
  steps,
  update,
  workdir,
)
from meta_rl.compiled import CountedJit

FLAGS = flags.FLAGS


def define_flags():
  """Defines the command's flags; called once, by `main`'s module."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, or the name of a shipped one.',
    lock_config=True,
  )
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string(
    'allow_change',
    '',
    'Config keys that may differ from those of the run in workdir: '
    'optimizer.learning_rate,total_steps.',
  )
  flags.DEFINE_string(
    'profile_steps', '', 'Steps first:last to trace, into workdir/profile.'
  )
  flags.mark_flags_as_required(['config', 'workdir'])


def train(config, folder: str, *, profile_steps: str = '') -> int:
  """Trains a policy by reinforcement until its steps or its cost are spent.

  The last step is `config.total_steps`, or the first at which the cumulative
  cost (meta_rl/costs.py) reaches `config.total_cost`, or the response tokens
  that were sampled reach `config.total_tokens`.

  Args:
    config: of configs/, locked.
    folder: run folder, already opened and guarded by `workdir.open_workdir`.
    profile_steps: 'first:last' steps to trace, '' for none.

  Returns:
    The exit code.
  """
  # ---- what is trained, on what
  kit = setup_run.task_kit(config)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  problems = data.problem_iterator(
    setup_run.load_problems(config, 'train'),
    record_arrays=kit.record_arrays,
    batch_size=config.rollout.num_prompts,
    seed=config.seed,
  )
  eval_batches = held_out.problem_batches(
    setup_run.load_problems(config, 'validation'),
    record_arrays=kit.record_arrays,
    num_problems=config.eval.num_problems,
    batch_size=config.eval.batch_size,
  )
  optimizer = setup_run.make_optimizer(config)

  # ---- the jitted calls, each traced once a shape
  parallel = make_parallel(config, model, task, optimizer)
  summarize = make_summarize(config, task)
  eval_calls = held_out.make_calls(config, model, task)

  # ---- where it stands: a checkpoint's state beats init_from and the seed
  saver = checkpoint.Checkpointer(
    f'{folder}/{checkpoint.CHECKPOINTS_DIR}',
    max_to_keep=config.checkpoint.max_to_keep,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(saver)
    blank = update.init_state(
      setup_run.blank_params(config), optimizer, config.seed
    )
    restored = saver.restore_latest(parallel.put_state(blank))
    first, spent = 0, {}
    if restored is not None:
      first, state, data_state = restored
      # What was spent lies beside the state of the data iterator.
      spent = {k: data_state.pop(k, 0.0) for k in costs.METER_STATE}
      problems.set_state(data_state)
      print(f'resuming after step {first} of {config.total_steps}')
    else:
      start = setup_run.start_params(config, folder)
      state = update.init_state(start, optimizer, config.seed)
    state = parallel.put_state(state)
    meter = costs.Meter(config.total_cost, config.total_tokens, spent)
    base_params = None  # of the reference, where there is one
    if setup_run.has_reference(config):
      base_params = setup_run.reference_params(config, folder)
      base_params = parallel.put_params(base_params)
    if config.algorithm.get('prefix_policy') == 'reference':
      parallel = with_reference(parallel, base_params)
    stop = stack.enter_context(signals.GracefulExit())
    writer = stack.enter_context(
      metrics.MetricsWriter(folder, resume_step=first if restored else None)
    )
    bar = stack.enter_context(
      metrics.ProgressBar(
        config.total_steps,
        initial_step=first,
        print_every=config.log.print_every,
      )
    )
    tracer = stack.enter_context(profiler.Profiler(folder, profile_steps))
    watchdog, timer = metrics.Watchdog(), metrics.Timer()

    def next_batch():
      with timer('data'):
        return parallel.put_batch(next(problems))

    resample = make_resample(config, parallel, next_batch)

    # ---- the loop
    stop_at = first if meter.reached else config.total_steps
    for step in range(first + 1, stop_at + 1):
      began = time.perf_counter()
      tracer.before(step)
      state, row, samples = rl_step(
        parallel, summarize, state, base_params, next_batch(), timer, resample
      )
      data_state = problems.get_state()  # behind the step: it may draw more
      tracer.after(step)
      row['time/step_s'] = time.perf_counter() - began
      row['time/tokens_per_s'] = row['rollout/tokens_sum'] / row['time/step_s']
      row |= metrics.phase_speeds(timer.metrics(), row) | meter.add(row)
      metrics.check_finite(step, row, saver.latest_step())
      metrics.check_gap(step, row, config.max_log_prob_gap)

      last = step == config.total_steps or bool(meter.reached)
      if last or step % config.eval.every == 0:
        measured = held_out.measure(
          eval_calls, state.params, eval_batches, jax.random.key(config.seed)
        )
        row |= held_out.summary(measured, config.rollout.thinking_budget)
        row |= held_out.episode_shares(measured, config)
      row['compile/count'] = count_traces(
        parallel, summarize, eval_calls, resample
      )
      writer.write(step, row)
      bar.update(step, row)
      for warning in watchdog.update(step, row):
        bar.say(warning)
      if last or step % config.log.samples_every == 0:
        writer.write_text_rows(
          'samples',
          step,
          held_out.describe_traces(*samples, limit=16, decode=kit.decode),
        )
      # Read once: a signal behind the save must not leave without one.
      leave = last or bool(stop)
      if leave or step % config.checkpoint.every == 0:
        saved = data_state | meter.state
        saver.save(step, state, saved, row, wait=leave)
      if last and step < config.total_steps:
        budget = meter.reached
        bar.say(f'{budget}={config[budget]:,g} was reached after step {step}')
      if last:
        break
      if leave:
        bar.say(stop.message(step))
        return signals.EXIT_INTERRUPTED
  return signals.EXIT_OK


def make_parallel(config, model, task, optimizer) -> sharding.Parallel:
  """Returns the jitted calls of a training step of a config."""
  rollout, loss = config.rollout, config.loss.to_dict()
  generate, prove = setup_run.make_training_calls(config, model, task)
  score = None
  if config.loss.kl_coef:
    score = steps.make_score(
      model, temperature=rollout.temperature, chunk=config.loss.chunk
    )
  constant = None
  if loss['aggregate'] == 'constant':
    constant = rollout.thinking_budget + len(task.stop_ids) + task.answer_length
  value = value_term = None
  if config.algorithm.name == 'ppo':
    value = steps.make_value(model)
    value_term = steps.make_value_term(
      aggregate=loss['aggregate'], constant=constant, **config.critic.to_dict()
    )
  loss_fn = steps.make_loss(
    model,
    temperature=rollout.temperature,
    constant=constant,
    value_term=value_term,
    **loss,
  )

  def make_update(axis_name, spread):
    return steps.make_update(
      spread(loss_fn),
      optimizer,
      setup_run.make_advantages(config, axis_name=axis_name),
      rows_fn=setup_run.make_rows(config, task),
      axis_name=axis_name,
      **config.batching.to_dict(),
    )

  kind = config.parallel.kind
  mesh = None
  if kind != 'none':
    mesh = sharding.make_mesh(**config.parallel.mesh.to_dict())
  return sharding.parallelize(
    kind,
    generate=generate,
    prove=prove,
    score=score,
    value=value,
    make_update=make_update,
    rows_per_prompt=rollout.group_size,
    mini_batches=config.batching.mini_batches,
    mesh=mesh,
  )


def with_reference(parallel, reference) -> sharding.Parallel:
  """Returns the calls with a `generate` that is given the reference, too.

  It is what the run starts from, so that a resumed run has the same one.
  """

  def generate(params, batch, key):
    return parallel.generate((params, reference), batch, key)

  return dataclasses.replace(parallel, generate=generate)


def make_summarize(config, task) -> CountedJit:
  """Returns the jitted scalars of a batch of traces, and what they cost."""
  group_size = config.rollout.group_size
  rows = setup_run.make_rows(config, task)

  def summarize(traces, measured):
    row = steps.rollout_metrics(
      traces,
      measured,
      group_size=group_size,
      horizon=config.rollout.thinking_budget,
      has_success=config.prover.kind != 'none',
    )
    return row | costs.step_costs(
      traces.token_mask,
      measured.episodes.ends[:, 0],
      measured.prover_tokens if setup_run.reads_success(config) else None,
      rows(traces, measured)['token_mask'].sum() if rows else 0,
      group_size=group_size,
      epochs=config.batching.epochs,
      scorings=bool(config.loss.kl_coef) + (config.algorithm.name == 'ppo'),
      side_tokens=traces.side_tokens,
    )

  return CountedJit(summarize)


def make_resample(config, parallel, next_batch):
  """Returns what samples further prompts within a step, None if it is off.

  Args:
    config: an RL config.
    parallel: of `make_parallel`.
    next_batch: `() -> batch`, the next problems, placed.
  """
  max_rounds = config.rollout.dynamic_sampling.max_rounds
  if not max_rounds:
    return None
  return dynamic_sampling.Resampler(
    max_rounds=max_rounds,
    group_size=config.rollout.group_size,
    next_batch=next_batch,
    get=parallel.get,
    mesh=parallel.mesh,
  )


def rl_step(
  parallel, summarize, state, base_params, batch, timer, resample=None
):
  """Runs one step of the loop.

  Args:
    parallel: of `make_parallel`.
    summarize: of `make_summarize`.
    state: before the step; donated.
    base_params: what the reference log-probs are of.
    batch: problems, placed.
    timer: phases are added to it.
    resample: of `make_resample`.

  Returns:
    The new state, a dict of float metrics, and (traces, measured) for the
    samples.
  """

  def sample(batch, key):
    sample_key, prove_key = jax.random.split(key)
    with timer('generate'):
      traces, cache = parallel.generate(state.params, batch, sample_key)
      jax.block_until_ready(traces)
    with timer('prove'):
      measured = parallel.prove(state.params, batch, traces, cache, prove_key)
      jax.block_until_ready(measured)
    return traces, measured  # not the cache: the update needs its memory

  key = jax.random.fold_in(state.key, state.step)
  if resample is None:
    traces, measured = sample(batch, key)
    row = summarize(traces, measured)
  else:
    batch, traces, measured, row = resample(sample, summarize, batch, key)
  reference = None
  if parallel.score is not None:
    with timer('score'):
      reference = parallel.score(base_params, traces)
      jax.block_until_ready(reference)
  if parallel.value is not None:
    with timer('value'):
      critic = parallel.value(state.params, traces)
      jax.block_until_ready(critic)
    measured = dataclasses.replace(measured, critic=critic)
  with timer('update'):
    state, sums = parallel.update(state, traces, measured, reference)
    row, sums = jax.device_get((row, sums))
  row = {name: float(value) for name, value in row.items()}
  return state, row | update.to_scalars(sums), (traces, measured)


def count_traces(parallel, summarize, eval_calls, resample=None) -> int:
  """Returns how often the run's jitted calls were traced, evaluation's too."""
  calls = [summarize, *eval_calls.values()]
  if resample is not None:
    calls.append(resample.merge)
  return sum(parallel.traces.values()) + sum(call.traces for call in calls)


def run(config, folder: str, *, allow_change='', profile_steps='') -> int:
  """Opens the run folder and trains; every expected error becomes one line."""
  loops = {'sft': sft.train}
  try:
    config = workdir.lock_and_check(config)
    check_config.check(config)
    with (
      signals.as_interrupt(),
      workdir.open_workdir(
        folder, config.to_dict(), allow_change=allow_change
      ) as opened,
    ):
      for key, (old, new) in opened.changed.items():
        print(f'config: {key} changed from {old} to {new}')
      if note := check_config.note_on_saving(config):
        print(note)
      loop = loops.get(config.algorithm.name, train)
      with forget_failed_start(opened):
        return loop(config, folder, profile_steps=profile_steps)
  except metrics.NonFiniteError as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_NON_FINITE
  except KeyboardInterrupt:  # while it starts: the loop has its own handler
    print(
      'stopped before a step: run the same command again',
      file=sys.stderr,
    )
    return signals.EXIT_INTERRUPTED
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_ERROR


@contextlib.contextmanager
def forget_failed_start(opened: workdir.Workdir):
  """Undoes what opening a run folder recorded, if the run fails at once.

  With nothing saved the folder is freed of its config: there is nothing that
  another one could spoil, and after a wrong `init_from` the mended command runs
  in the same folder. A config that `allow_change` let in, but under which no
  step was taken, gives way to the one before.
  """
  folder = opened.path
  saved = folder / checkpoint.CHECKPOINTS_DIR
  found = lambda: sorted(saved.iterdir()) if saved.is_dir() else []
  before = found()
  try:
    yield
  except BaseException:  # Ctrl-C included
    if not found():
      (folder / workdir.CONFIG_NAME).unlink(missing_ok=True)
    elif found() == before:
      opened.revert()
    raise


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_threefry_partitionable', True)
  env.enable_compile_cache()
  sys.exit(
    run(
      FLAGS.config,
      FLAGS.workdir,
      allow_change=FLAGS.allow_change,
      profile_steps=FLAGS.profile_steps,
    )
  )


if __name__ == '__main__':
  env.check_versions()
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
