"""Training: the loop, told top to bottom.

    python -m meta_rl.train --config=configs/mrt_countdown.py --workdir=DIR

One step of reinforcement fine-tuning:

    1. generate: sample a group of traces for every prompt of a batch.
    2. prove: grade the answers, find the episodes, and estimate the chance of
       success J at each of their ends; add rewards of one's own, if any.
    3. turn rewards and J into an advantage for every token.
    4. update: clipped policy gradient, one optimizer step a mini-batch.

`rollout.source = 'jsonl:PATH'` takes traces that another engine sampled in the
place of 1 (meta_rl/setup_own.py), and `algorithm.name = 'sft'` imitates given
traces instead (meta_rl/sft.py).

Exit codes: 0 done, 1 an error (one line), 3 a NaN or infinite loss, 75 stopped
by SIGTERM or Ctrl-C after saving; the same command goes on from there.
"""

import contextlib
import dataclasses
import functools
import re
import sys
import time
import traceback

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  check_config,
  checkpoint,
  command_line,
  compiled,
  config_keys,
  costs,
  data,
  files,
  guards,
  heap,
  held_out,
  lora,
  metrics,
  preemption,
  profiler,
  setup_own,
  setup_run,
  setup_steps,
  sft,
  sharding,
  signals,
  trace_text,
  train_blocks,
  train_calls,
  update,
  weights,
  workdir,
)

FLAGS = flags.FLAGS
# Of the curriculum, beside the data iterator's state in a checkpoint.
CURRICULUM = 'curriculum'


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
  optimizer = setup_run.make_optimizer(config)

  # ---- the jitted calls, each traced once a shape: once a thinking budget, of
  # which there is one but under a curriculum
  plan = setup_steps.make_curriculum(config)
  watch = compiled.CompileWatch()
  calls = {}
  for budget, stage in setup_steps.stages(config).items():
    parallel = train_calls.make_parallel(stage, model, task, optimizer)
    summarize = train_calls.make_summarize(stage, task)
    block = train_blocks.make_block(stage, parallel, summarize)
    calls[budget] = parallel, summarize, block
  parallel, *_ = calls[plan.budgets[-1]]
  problems = make_batches(config, task, parallel.mesh)
  eval_batches = held_out.validation_batches(config, mesh=parallel.mesh)
  reward_fn = setup_own.make_reward_fn(
    config, task, parallel.get, parallel.mesh
  )
  correct = setup_own.make_correct(config)
  eval_calls = held_out.make_calls(
    config,
    model,
    task,
    budgets=plan.points or None,
    mesh=parallel.mesh,
  )

  # ---- where it stands: a checkpoint's state beats init_from and the seed
  saver = checkpoint.Checkpointer(
    f'{folder}/{checkpoint.CHECKPOINTS_DIR}',
    max_to_keep=config.checkpoint.max_to_keep,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(saver)
    first, state, spent = start_or_resume(
      config, folder, saver, problems, plan, parallel, optimizer
    )
    meter = costs.Meter(config.total_cost, config.total_tokens, spent)
    base_params = None  # of the reference, where there is one
    if setup_run.has_reference(config) and setup_run.trainable(config):
      base_params = lora.without  # of what the policy is then
    elif setup_run.has_reference(config):
      base_params = setup_run.reference_params(
        config, folder, mesh=train_calls.param_mesh(parallel)
      )
      base_params = parallel.put_params(base_params)
    if config.algorithm.get('prefix_policy') == 'reference':
      calls = {
        budget: (train_calls.with_reference(call, base_params), *others)
        for budget, (call, *others) in calls.items()
      }
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
    tracer = stack.enter_context(profiler.Profiler(folder, profile_steps))
    watchdog, timer = guards.Watchdog(), metrics.Timer()

    def next_batch():
      with timer('data'):
        return parallel.put_batch(next(problems))

    feed = train_blocks.Feed(next_batch, problems.get_state)
    resample = train_calls.make_resample(config, parallel, next_batch)

    def measure(at_budgets=False):
      return held_out.measure(
        eval_calls,
        state.params,
        eval_batches,
        jax.random.key(config.seed),
        at_budgets=at_budgets,
        mesh=parallel.mesh,
      )

    # ---- the loop
    stop_at = first if meter.reached else config.total_steps
    if budget := meter.reached:
      print(
        f'nothing to do: {budget}={config[budget]:,g} was reached after step '
        f'{first}; raise it, with --allow_change={budget}, to go on'
      )
    # Traces are sampled while metrics and checkpoints are written, but not
    # beside an evaluation, whose memory they would need. (A resampled batch, or
    # one of a file, is no matter of one call.)
    overlaps = (
      not config.parallel.get('fused_steps', 0)
      and resample is None
      and correct is None
      and not profile_steps
    )
    begun = {}  # what is known of the first step before it
    if plan.budget is None and first < stop_at:
      begun = choose_budget(plan, measure(at_budgets=True))
    step, ahead = first, None  # the next step's batch, and its `Begun`
    while step < stop_at:
      began = time.perf_counter() if ahead is None else ahead[1].since
      count = train_blocks.block_length(config, step, stop_at)
      tracer.before(step + 1, step + count)
      parallel, summarize, block = calls[plan.budget]
      if block is None:
        state, row, samples = rl_step(
          parallel,
          summarize,
          state,
          base_params,
          *(ahead or (next_batch(), None)),
          timer,
          resample,
          reward_fn,
          correct,
          # Else a phase is traced while the one before runs.
          step > first,
        )
        ahead = None
        rows = [row]
        data_state = problems.get_state()  # behind the step: it may draw more
      else:
        state, rows, data_state, samples = train_blocks.run(
          block,
          state,
          base_params,
          feed,
          timer,
          count=count,
          size=train_blocks.most_steps(config),
          meter=meter,
          paid=begun.get(costs.CURRICULUM, 0.0),
        )
      tracer.after(step + len(rows))
      seconds = (time.perf_counter() - began) / len(rows)
      phases = {k: v / len(rows) for k, v in timer.metrics().items()}
      for row in rows:
        step += 1
        row['time/step_s'] = seconds
        row['time/tokens_per_s'] = row['rollout/tokens_sum'] / seconds
        row |= metrics.phase_speeds(phases, row)
        guards.check_finite(step, row, saver.latest_step())
        guards.check_gap(step, row, config.max_log_prob_gap)
        if correct is not None:
          guards.check_mismatch(step, row, config.external.max_mismatch)

        measured = None
        if plan.points:
          row |= {'curriculum/budget': float(plan.budget)} | begun
          begun = {}
        if plan.due(step):
          measured = measure(at_budgets=True)
          paid = row.get(costs.CURRICULUM, 0.0)
          row |= choose_budget(plan, measured, paid=paid)
        row |= meter.add(row)
        last = step == config.total_steps or bool(meter.reached)
        due = measured is not None or last or step % config.eval.every == 0
        if overlaps and not due:
          batch = next_batch()
          ahead = batch, begin_step(parallel, state, batch)
        if measured is None and due:
          measured = measure()
        if measured is not None:
          row |= held_out.summary(measured, config.rollout.thinking_budget)
          row |= held_out.episode_shares(measured, config)
        if kit.metrics is not None:
          row |= kit.metrics(sharding.add_up)
        row['compile/count'] = train_calls.count_traces(
          calls.values(), eval_calls, resample, correct
        )
        row |= watch.metrics()
        writer.write(step, row)
        bar.update(step, row)
        for warning in watchdog.update(step, row):
          bar.say(warning)
      if last or step % config.log.samples_every == 0:
        writer.write_text_rows(
          'samples',
          step,
          trace_text.describe_traces(
            *parallel.get(samples), limit=16, decode=kit.decode
          ),
        )
      # Read once: a signal behind the save must not leave without one.
      leave = stop.reached(step) or last
      if leave or step % config.checkpoint.every == 0:
        saved = data_state | meter.state
        if plan.points:
          saved[CURRICULUM] = plan.get_state()
        writer.save()
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


def make_batches(config, task, mesh=None):
  """Returns the resumable batches: problems, or groups of given rollouts."""
  if setup_own.rollouts_path(config) is not None:
    return setup_own.load_rollouts(config, task, mesh)
  problems = setup_run.load_problems(config, 'train')
  if config.rollout.num_prompts > len(problems):
    raise ValueError(
      f'rollout.num_prompts={config.rollout.num_prompts} is given; the train '
      f'split holds {len(problems)} problems.'
    )
  return data.problem_iterator(
    problems,
    record_arrays=setup_run.task_kit(config).record_arrays,
    batch_size=config.rollout.num_prompts,
    rows=sharding.process_slice(config.rollout.num_prompts, mesh),
    seed=config.seed,
  )


def start_or_resume(config, folder, saver, problems, plan, parallel, optimizer):
  """Returns (steps done, state, what was spent) of a run.

  `problems` and `plan` are set to where it stands.

  A checkpoint's state beats `init_from` and the seed. In a function, so that
  what the state was copied from or restored into ends here.

  Args:
    config: an RL config.
    folder: run folder.
    saver: its checkpoints.
    problems: the iterator of training batches.
    plan: the curriculum.
    parallel: of `train_calls.make_parallel`.
    optimizer: whose state is part of it.
  """
  own = setup_run.trainable(config)
  mesh = train_calls.param_mesh(parallel)
  # Without a name: what is blank would be held until the run starts.
  restored = saver.restore_latest(
    parallel.put_state(
      update.init_state(
        setup_run.blank_params(config, mesh=mesh), optimizer, config.seed, own
      )
    )
  )
  if restored is None:
    if found := weights.describe(config.init_from):
      print(f'init_from={config.init_from}: {found}')
    start = setup_run.start_params(config, folder, mesh=mesh)
    state = update.init_state(start, optimizer, config.seed, own)
    return 0, parallel.put_state(state), {}
  first, state, data_state = restored
  # What was spent lies beside the state of the data iterator.
  spent = {k: data_state.pop(k) for k in costs.METER_STATE if k in data_state}
  if 'cumulative_tokens' not in spent:  # a checkpoint of before total_tokens
    spent['cumulative_tokens'] = metrics.total(
      folder, 'rollout/tokens_sum', last_step=first
    )
  plan.set_state(data_state.pop(CURRICULUM, {}))
  problems.set_state(data_state)
  print(metrics.resuming(first, config.total_steps))
  return first, parallel.put_state(state), spent


def choose_budget(plan, measured, *, paid: float = 0.0) -> dict[str, float]:
  """Chooses the thinking budget of the next steps; returns metrics.

  Args:
    plan: the curriculum.
    measured: of `held_out.measure` at the budgets of `plan.points`.
    paid: what a choice has cost in this step already.
  """
  success = dict(zip(plan.points, held_out.budget_success(measured)))
  row = plan.update(success)
  return row | {costs.CURRICULUM: paid + held_out.budget_cost(measured)}


def step_key(state) -> jax.Array:
  """Returns the PRNG key of the step that a state is about to take."""
  return jax.random.fold_in(state.key, state.step)


def step_keys(key):
  """Returns the PRNG keys of a step's sampling and of its prover."""
  return jax.random.split(key)


class Begun:
  """The traces of a step and their cache, on their way; handed over once.

  Whoever takes them holds them alone: the cache's memory is free as soon as the
  prover is done with it.

  Attributes:
    since: when they were dispatched, of `time.perf_counter`.
  """

  def __init__(self, sampled, since: float):
    self.since = since
    self._sampled = [sampled]

  def take(self):
    """Returns (traces, cache), and forgets them."""
    return self._sampled.pop()


def begin_step(parallel, state, batch) -> Begun:
  """Returns the traces of the step that a state is about to take.

  They are dispatched and not waited for: the device samples them while the host
  is busy with the step before. They are those that `rl_step` would sample: of
  the same parameters, which sampling does not donate.

  Args:
    parallel: of `train_calls.make_parallel`.
    state: before the step.
    batch: its problems, placed.
  """
  since = time.perf_counter()
  sample_key, _ = step_keys(step_key(state))
  return Begun(parallel.generate(state.params, batch, sample_key), since)


def rl_step(
  parallel,
  summarize,
  state,
  base_params,
  batch,
  begun,
  timer,
  resample=None,
  reward_fn=None,
  correct=None,
  timed=True,
):
  """Runs one step of the loop.

  Args:
    parallel: of `train_calls.make_parallel`.
    summarize: of `train_calls.make_summarize`.
    state: before the step; donated.
    base_params: what the reference log-probs are of, or a function that gives
      it of the policy's; None: there are none.
    batch: problems, placed.
    begun: of `begin_step` on the same batch, where the traces of this step are
      on their way; None: they are sampled here.
    timer: phases are added to it.
    resample: of `train_calls.make_resample`.
    reward_fn: of `setup_own.make_reward_fn`, None for the outcome alone.
    correct: of `setup_own.make_correct`, None for traces of the policy itself.
    timed: wait for each phase, so that its time is its own. Else each is
      dispatched, and where it is new traced, while the one before still runs.

  Returns:
    The new state, a dict of float metrics, and (traces, measured) for the
    samples.
  """

  asked = []  # what a round's own rewards were
  ready = jax.block_until_ready if timed else lambda values: values

  def sample(batch, key):
    sample_key, prove_key = step_keys(key)
    with timer('generate', since=begun and begun.since):
      if begun is None:
        traces, cache = parallel.generate(state.params, batch, sample_key)
      else:
        traces, cache = begun.take()
      ready(traces)
    with timer('prove'):
      measured = parallel.prove(state.params, batch, traces, cache, prove_key)
      ready(measured)
    if reward_fn is not None:
      del cache  # its memory is not needed while a user's function runs
      with timer('reward'):
        measured, found = reward_fn(batch, traces, measured)
        asked.append(found)
    return traces, measured  # not the cache: the update needs its memory

  key = step_key(state)
  if resample is None:
    traces, measured = sample(batch, key)
    row = summarize(traces, measured)
  else:
    batch, traces, measured, row = resample(sample, summarize, batch, key)
  reference = None
  if parallel.score is not None and base_params is not None:
    with timer('score'):
      base = base_params(state.params) if callable(base_params) else base_params
      reference = parallel.score(base, traces)
      ready(reference)
  distance = {}
  if correct is not None:
    with timer('score'):
      log_probs = parallel.score(state.params, traces)
      traces, distance = ready(correct(traces, log_probs))
  if parallel.value is not None:
    with timer('value'):
      critic = parallel.value(state.params, traces)
      ready(critic)
    measured = dataclasses.replace(measured, critic=critic)
  with timer('update'):
    state, sums = parallel.update(state, traces, measured, reference)
    row, sums = jax.device_get((row | distance, sums))
  row = {name: float(value) for name, value in row.items()}
  row |= metrics.mean_rows(asked)
  return state, row | update.to_scalars(sums), (traces, measured)


def run(config, folder: str, *, allow_change='', profile_steps='') -> int:
  """Opens the run folder and trains; every expected error becomes one line.

  An error of one process of many ends all of them.
  """
  loops = {'sft': sft.train}
  try:
    with preemption.as_interrupt():
      config = workdir.lock_and_check(config)
      profiler.parse_span(profile_steps)
      check_config.check(config)
      check_config.check_machine(config)
      opening = functools.partial(
        workdir.open_workdir,
        folder,
        config.to_dict(),
        allow_change=allow_change,
        free=config_keys.PLACES,
      )
      with contextlib.ExitStack() as stack:
        if opened := sharding.by_main(opening):  # others leave it to process 0
          stack.enter_context(opened)
          forget = stack.enter_context(forget_failed_start(opened))
          stack.enter_context(sharding.at_end(forget))
          for key, (old, new) in opened.changed.items():
            print(f'config: {key} changed from {old} to {new}')
        sharding.check_shared(folder)
        if note := check_config.note_on_saving(config):
          print(note)
        loop = loops.get(config.algorithm.name, train)
        return loop(config, folder, profile_steps=profile_steps)
  except guards.NonFiniteError as error:
    return failed(signals.EXIT_NON_FINITE, error)
  except KeyboardInterrupt:  # while it starts: the loop has its own handler
    print(
      'stopped before a step: run the same command again',
      file=sys.stderr,
    )
    return signals.EXIT_INTERRUPTED
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    return failed(signals.EXIT_ERROR, error)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    line = files.one_line(error)
    if re.search('RESOURCE_EXHAUSTED|allback', str(error)):  # its own
      return failed(signals.EXIT_ERROR, line)
    print(
      f'error: another process is lost ({line}): jax says within '
      f'{sharding.heartbeat_s()} s which one',
      file=sys.stderr,
      flush=True,
    )
    sharding.wait_for_verdict(line)
  except Exception as error:
    if jax.process_count() > 1:
      traceback.print_exc()
      sharding.leave_all(signals.EXIT_ERROR, repr(error))
    raise


def failed(code: int, error: Exception | str) -> int:
  """Says what went wrong and returns the exit code."""
  print(f'error: {error}', file=sys.stderr)
  sharding.leave_all(code, str(error))
  return code


@contextlib.contextmanager
def forget_failed_start(opened: workdir.Workdir):
  """Undoes what starting a run left in its folder, if it fails at once.

  With nothing saved the folder is freed of its config, and of what the run was
  to start from: there is nothing that another one could spoil, and after a
  wrong `init_from` the mended command runs in the same folder. Before the first
  step all else that the start made goes too, the folder itself if it is new. A
  config that `allow_change` let in, but under which no step was taken, gives
  way to the one before.
  """
  folder = opened.path
  saved = folder / checkpoint.CHECKPOINTS_DIR
  found = lambda: sorted(saved.iterdir()) if saved.is_dir() else []
  before, there = found(), set(folder.iterdir())

  def forget():
    if not found():
      for name in (workdir.CONFIG_NAME, setup_run.REFERENCE_NAME):
        (folder / name).unlink(missing_ok=True)
      log = folder / metrics.METRICS_NAME
      if not log.exists() or not metrics.read_metrics(log):
        _remove(set(folder.iterdir()) - there)
        if opened.made:
          _remove({folder})
    elif found() == before:
      opened.revert()

  try:
    yield forget
    if found() == before:  # it was done already: no step was taken
      opened.revert()
  except BaseException:  # Ctrl-C included
    forget()
    raise


def _remove(paths):
  for path in paths:
    with contextlib.suppress(OSError):
      path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def main(argv):
  """Runs the command."""
  command_line.refuse_arguments(argv)
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_threefry_partitionable', True)
  heap.keep_memory()
  env.enable_compile_cache()
  try:
    sharding.initialize_from_environment()
  except (ValueError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    signals.leave(signals.EXIT_ERROR)
  sharding.quiet_others()
  code = run(
    FLAGS.config,
    FLAGS.workdir,
    allow_change=FLAGS.allow_change,
    profile_steps=FLAGS.profile_steps,
  )
  sharding.part()
  signals.leave(code)


if __name__ == '__main__':
  sys.stdout.reconfigure(line_buffering=True)  # seen at once through a pipe
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
