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
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from meta_rl import (
  checkpoint,
  data,
  env,
  evaluate,
  metrics,
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
  """Trains a policy by reinforcement until `config.total_steps`.

  Args:
    config: of configs/, locked.
    folder: run folder, already opened and guarded by `workdir.open_workdir`.
    profile_steps: 'first:last' steps to trace, '' for none.

  Returns:
    The exit code.
  """
  # ---- what is trained, on what
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  problems = make_batches(config, task)
  held_out = evaluate.problem_batches(
    setup_run.load_problems(config, 'validation'),
    num_problems=config.eval.num_problems,
    batch_size=config.eval.batch_size,
  )
  base_params = setup_run.initial_params(config)
  optimizer = setup_run.make_optimizer(config)
  state = update.TrainState(
    params=base_params,
    opt_state=optimizer.init(base_params),
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key(config.seed),
  )

  # ---- the jitted calls, each traced once a shape
  parallel = make_parallel(config, model, task, optimizer)
  summarize = make_summarize(config)
  reward_fn = setup_run.make_reward_fn(config, task, parallel.get)
  eval_calls = evaluate.make_calls(config, model, task)
  correct = make_correct(config)
  # Without a KL term nothing asks for them again.
  base_params = (
    parallel.put_params(base_params) if config.loss.kl_coef else None
  )
  state = parallel.put_state(state)

  # ---- where it stands: a checkpoint's state beats init_from and the seed
  saver = checkpoint.Checkpointer(
    f'{folder}/{checkpoint.CHECKPOINTS_DIR}',
    max_to_keep=config.checkpoint.max_to_keep,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(saver)
    restored = saver.restore_latest(state)
    first = 0
    if restored is not None:
      first, state, data_state = restored
      state = parallel.put_state(state)
      problems.set_state(data_state)
      print(f'resuming after step {first} of {config.total_steps}')
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
    profiler = stack.enter_context(Profiler(folder, profile_steps))
    watchdog, timer = metrics.Watchdog(), metrics.Timer()

    # ---- the loop
    for step in range(first + 1, config.total_steps + 1):
      began = time.perf_counter()
      profiler.before(step)
      with timer('data'):
        batch = parallel.put_batch(next(problems))
        data_state = problems.get_state()
      state, row, samples = rl_step(
        parallel,
        summarize,
        state,
        base_params,
        batch,
        timer,
        reward_fn,
        correct,
      )
      profiler.after(step)
      row['time/step_s'] = time.perf_counter() - began
      row['time/tokens_per_s'] = row['rollout/tokens_sum'] / row['time/step_s']
      row |= phase_speeds(timer.metrics(), row)
      metrics.check_finite(step, row, saver.latest_step())
      check_gap(step, row, config.max_log_prob_gap)
      if correct is not None:
        check_mismatch(step, row, config.external.max_mismatch)

      last = step == config.total_steps
      if last or step % config.eval.every == 0:
        measured = evaluate.measure(
          eval_calls, state.params, held_out, jax.random.key(config.seed)
        )
        row |= evaluate.summary(measured, config.rollout.thinking_budget)
      row['compile/count'] = count_traces(
        parallel, summarize, eval_calls, correct
      )
      writer.write(step, row)
      bar.update(step, row)
      for warning in watchdog.update(step, row):
        bar.say(warning)
      if last or step % config.log.samples_every == 0:
        writer.write_text_rows(
          'samples', step, evaluate.describe_traces(*samples, limit=16)
        )
      # Read once: a signal behind the save must not leave without one.
      leave = last or bool(stop)
      if leave or step % config.checkpoint.every == 0:
        saver.save(step, state, data_state, row, wait=leave)
      if leave and not last:
        bar.say(stop.message(step))
        return signals.EXIT_INTERRUPTED
  return signals.EXIT_OK


def make_batches(config, task):
  """Returns the resumable batches: problems, or groups of given rollouts."""
  if setup_run.rollouts_path(config) is not None:
    return setup_run.load_rollouts(config, task)
  return data.problem_iterator(
    setup_run.load_problems(config, 'train'),
    batch_size=config.rollout.num_prompts,
    seed=config.seed,
  )


def make_correct(config) -> CountedJit | None:
  """Returns the jitted correction of given rollouts, None without them."""
  if setup_run.rollouts_path(config) is None:
    return None
  return CountedJit(
    steps.make_correction(
      correction=config.external.correction, cap=config.external.cap
    )
  )


def make_parallel(config, model, task, optimizer) -> sharding.Parallel:
  """Returns the jitted generate, prove, score and update of a config."""
  rollout, loss = config.rollout, config.loss.to_dict()
  generate, prove = setup_run.make_training_calls(config, model, task)
  score = None
  if config.loss.kl_coef or setup_run.rollouts_path(config) is not None:
    score = steps.make_score(
      model, temperature=rollout.temperature, chunk=config.loss.chunk
    )
  constant = None
  if loss['aggregate'] == 'constant':
    constant = rollout.thinking_budget + len(task.stop_ids) + task.answer_length
  loss_fn = steps.make_loss(
    model, temperature=rollout.temperature, constant=constant, **loss
  )

  def make_update(axis_name, spread):
    return steps.make_update(
      spread(loss_fn),
      optimizer,
      setup_run.make_advantages(config, axis_name=axis_name),
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
    make_update=make_update,
    rows_per_prompt=rollout.group_size,
    mini_batches=config.batching.mini_batches,
    mesh=mesh,
  )


def make_summarize(config) -> CountedJit:
  """Returns the jitted scalars of a batch of traces."""
  return CountedJit(
    functools.partial(
      steps.rollout_metrics,
      group_size=config.rollout.group_size,
      horizon=config.rollout.thinking_budget,
      has_success=config.prover.kind != 'none',
    )
  )


def rl_step(
  parallel,
  summarize,
  state,
  base_params,
  batch,
  timer,
  reward_fn=None,
  correct=None,
):
  """Runs one step of the loop.

  Args:
    parallel: of `make_parallel`.
    summarize: of `make_summarize`.
    state: before the step; donated.
    base_params: what the reference log-probs are of; None: there are none.
    batch: problems, placed.
    timer: phases are added to it.
    reward_fn: of `setup_run.make_reward_fn`, None for the task's outcome alone.
    correct: of `make_correct`, None for traces of the policy itself.

  Returns:
    The new state, a dict of float metrics, and (traces, measured) for the
    samples.
  """
  key = jax.random.fold_in(state.key, state.step)
  sample_key, prove_key = jax.random.split(key)
  with timer('generate'):
    traces, cache = parallel.generate(state.params, batch, sample_key)
    jax.block_until_ready(traces)
  with timer('prove'):
    measured = parallel.prove(state.params, batch, traces, cache, prove_key)
    jax.block_until_ready(measured)
  del cache  # before the update, which needs the memory
  own = {}
  if reward_fn is not None:
    with timer('reward'):
      measured, own = reward_fn(batch, traces, measured)
  reference = None
  if base_params is not None and parallel.score is not None:
    with timer('score'):
      reference = parallel.score(base_params, traces)
      jax.block_until_ready(reference)
  if correct is not None:
    with timer('score'):
      log_probs = parallel.score(state.params, traces)
      traces, found = jax.block_until_ready(correct(traces, log_probs))
      own |= {k: float(v) for k, v in jax.device_get(found).items()}
  with timer('update'):
    state, sums = parallel.update(state, traces, measured, reference)
    row, sums = jax.device_get((summarize(traces, measured), sums))
  row = {name: float(value) for name, value in row.items()}
  return state, row | own | update.to_scalars(sums), (traces, measured)


def count_traces(parallel, summarize, eval_calls, correct=None) -> int:
  """Returns how often the run's jitted calls were traced, evaluation's too."""
  calls = [summarize, *eval_calls.values()]
  if correct is not None:
    calls.append(correct)
  return sum(parallel.traces.values()) + sum(call.traces for call in calls)


def phase_speeds(seconds: dict[str, float], row: dict[str, float]) -> dict:
  """Returns each phase's seconds, and response tokens a second."""
  speeds = {
    f'{name.removesuffix("_s")}_tokens_per_s': row['rollout/tokens_sum'] / spent
    for name, spent in seconds.items()
    if spent and name != 'time/data_s'
  }
  return seconds | speeds


def check_gap(step: int, row: dict[str, float], limit: float):
  """Stops a run whose sampler and trainer disagree on log-probs.

  The gap is that of the first mini-batch, which is trained on the very
  parameters that sampled it: beyond rounding it means a wrong mask, position,
  temperature or dtype, and the policy gradient is then biased.
  """
  gap = row['policy/log_prob_gap']
  if gap > limit:
    raise ValueError(
      f'step {step}: the sampler and the trainer differ by {gap:.3g} nats a '
      f'token (max_log_prob_gap={limit:g}): the update would be off-policy. '
      'Use one dtype for both, or raise the limit.'
    )


def check_mismatch(step: int, row: dict[str, float], limit: float):
  """Stops a run whose given rollouts are too far from its policy.

  Beyond some nats a token the weights say more of the cap than of the policy:
  another tokenizer, temperature or model, or a policy that has moved away.
  """
  gap = row['external/mismatch_mean']
  if gap > limit:
    raise ValueError(
      f'step {step}: the log-probs of the rollouts differ from the policy by '
      f'{gap:.3g} nats a token (external.max_mismatch={limit:g}; at most '
      f'{row["external/mismatch_max"]:.3g}, effective share '
      f'{row["external/ess"]:.2g}): sample again from the policy as it is now, '
      'at its temperature, or raise the limit.'
    )


class Profiler(contextlib.AbstractContextManager):
  """Traces the steps 'first:last' with JAX's profiler."""

  def __init__(self, folder: str, span: str):
    self._folder, self._on = f'{folder}/profile', False
    self._span, self._first, self._last = span, -1, -1
    if span:
      first, colon, last = span.partition(':')
      numbers = colon and first.isdigit() and last.isdigit()
      if not (numbers and 1 <= int(first) <= int(last)):
        raise ValueError(
          f'profile_steps={span!r}: give first:last, such as 10:13.'
        )
      self._first, self._last = int(first), int(last)

  def before(self, step: int):
    """Starts the trace at its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._on, self._span = True, ''

  def after(self, step: int):
    """Ends the trace behind its last step."""
    if self._on and step >= self._last:
      self._stop()

  def _stop(self):
    jax.profiler.stop_trace()
    self._on = False
    print(f'profile written to {self._folder}', file=sys.stderr)

  def __exit__(self, *exc_info):
    if self._on:
      self._stop()
    if self._span:
      print(
        f'profile_steps={self._span}: step {self._first} was not run, so '
        'nothing was profiled',
        file=sys.stderr,
      )


def run(config, folder: str, *, allow_change='', profile_steps='') -> int:
  """Opens the run folder and trains; every expected error becomes one line."""
  loops = {'sft': sft.train}
  try:
    config = workdir.lock_and_check(config)
    setup_run.check(config)
    with workdir.open_workdir(
      folder, config.to_dict(), allow_change=allow_change
    ) as opened:
      for key, (old, new) in opened.changed.items():
        print(f'config: {key} changed from {old} to {new}')
      loop = loops.get(config.algorithm.name, train)
      with forget_failed_start(folder):
        return loop(config, folder, profile_steps=profile_steps)
  except metrics.NonFiniteError as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_NON_FINITE
  except KeyboardInterrupt:  # while it starts: the loop has its own handler
    print(
      'stopped by Ctrl-C before a step: run the same command again',
      file=sys.stderr,
    )
    return signals.EXIT_INTERRUPTED
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_ERROR


@contextlib.contextmanager
def forget_failed_start(folder: str):
  """Frees a run folder of its config if the run fails with nothing saved.

  There is nothing that another config could spoil: after a wrong `init_from`,
  the mended command runs in the same folder.
  """
  try:
    yield
  except BaseException:  # Ctrl-C included
    saved = Path(folder) / checkpoint.CHECKPOINTS_DIR
    if not saved.is_dir() or not any(saved.iterdir()):
      (Path(folder) / workdir.CONFIG_NAME).unlink(missing_ok=True)
    raise


def main(argv):
  """Runs the command."""
  del argv
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
  app.run(main, flags_parser=setup_run.parse_flags)
