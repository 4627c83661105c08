"""The loop of `train`: resume, stops, compile counts, guards, and learning."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

from meta_rl import (
  checkpoint,
  guards,
  held_out,
  metrics,
  profiler,
  setup_run,
  setup_steps,
  signals,
  train,
  train_calls,
  update,
  workdir,
)
from meta_rl.models import TransformerConfig, init_params, make_model
from meta_rl.tasks.base import Task

pytest_plugins = ['small_runs']

# What each step must say.
METRICS = """
rollout/reward_mean rollout/episodes_mean rollout/tokens_mean
rollout/truncation_rate rollout/zero_variance_share rollout/forced_rate
progress/total regret/token_weighted regret/normalized regret/cumulative
loss/total policy/clip_fraction policy/approx_kl policy/entropy
policy/log_prob_gap optimizer/grad_norm optimizer/update_norm
time/step_s time/tokens_per_s time/generate_s time/prove_s time/update_s
time/data_s compile/count
cost/generate cost/prove cost/train cost/total cost/cumulative
""".split()
HELD_OUT = ['accuracy', 'reward_mean', 'regret_token_weighted', 'tokens_mean']


def steps_of(folder):
  """The steps that have a checkpoint."""
  with checkpoint.Checkpointer(folder / 'checkpoints', read_only=True) as saver:
    return saver.all_steps()


def last_state(config, folder):
  """(step, state, data state) of the last checkpoint."""
  params = setup_run.abstract_params(config)
  like = jax.eval_shape(
    lambda p: update.TrainState(
      params=p,
      opt_state=setup_run.make_optimizer(config).init(p),
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key(0),
    ),
    params,
  )
  with checkpoint.Checkpointer(folder / 'checkpoints', read_only=True) as saver:
    return saver.restore_latest(like)


def untimed(rows):
  """Rows without what the clock and the process decide."""
  return [
    {k: v for k, v in row.items() if not k.startswith(('time/', 'compile/'))}
    for row in rows
  ]


def after_step(monkeypatch, step, action):
  """Calls `action` at the end of the `step`-th step that is run."""
  real, seen = train.rl_step, []

  def rl_step(*args):
    result = real(*args)
    seen.append(None)
    if len(seen) == step:
      changed = action(result)
      result = result if changed is None else changed
    return result

  monkeypatch.setattr(train, 'rl_step', rl_step)


# ---- what a run leaves


def test_every_step_has_its_metrics(trained):
  assert [row['step'] for row in trained.rows] == [1, 2, 3, 4]
  for row in trained.rows:
    assert set(METRICS) <= set(row)
    assert all(math.isfinite(value) for value in row.values())
    held_out = {f'eval/{name}' for name in HELD_OUT}
    # eval.every = 2
    assert held_out & set(row) == (held_out if row['step'] % 2 == 0 else set())
    assert 0 < row['time/generate_s'] < row['time/step_s']
    assert row['policy/log_prob_gap'] < 1e-5


def test_files_of_a_run(trained):
  folder = trained.folder
  assert workdir.read_config(folder)['name'] == 'MRT'
  assert list((folder / 'tensorboard').iterdir())
  assert sorted(f.name for f in (folder / 'samples').iterdir()) == [
    'step_000002.jsonl',
    'step_000004.jsonl',
  ]
  lines = (folder / 'samples' / 'step_000004.jsonl').read_text().splitlines()
  assert len(lines) == 16  # 4 prompts x 4
  sample = json.loads(lines[0])
  assert sample['prompt'].startswith('<bos>')
  assert sample['prompt'].endswith('<think>')
  assert 'step 4/4' in trained.err
  assert steps_of(folder) == [3, 4]


def test_each_call_is_traced_once(trained):
  names = ['generate', 'prove', 'update', 'eval_generate', 'eval_prove']
  # Training has no KL term, doesn't evaluate at token budgets, and compares no
  # provers.
  none = {'score': 0, 'eval_prove_budgets': 0, 'eval_prove_other': 0}
  none['eval_grade'] = 0
  assert none | trained.traces == none | dict.fromkeys(names, 1)
  # generate, prove, update, summarize
  # Evaluation adds its own two calls at step 2.
  assert [row['compile/count'] for row in trained.rows] == [4, 6, 6, 6]


def test_a_finished_run_stays_as_it_is(small, trained):
  before = (trained.folder / 'metrics.jsonl').read_bytes()
  result = small.run(trained.config, trained.folder)
  assert result.code == signals.EXIT_OK
  assert 'nothing to do: step 4 of 4 is done; raise total_steps' in result.out
  assert (trained.folder / 'metrics.jsonl').read_bytes() == before


# ---- stop and go on


def test_two_and_two_steps_are_four_bit_for_bit(
  small, trained, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    after_step(patch, 2, lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = small.run(trained.config, folder)
  assert stopped.code == signals.EXIT_INTERRUPTED == 75
  assert 'stopped by SIGTERM after step 2, which is saved' in stopped.err
  # checkpoint.every = 3: it was saved for the stop alone.
  assert steps_of(folder) == [2]
  resumed = small.run(trained.config, folder)
  assert resumed.code == signals.EXIT_OK
  assert 'resuming after step 2 of 4' in resumed.out
  step, state, data_state = last_state(trained.config, folder)
  wanted_step, wanted, wanted_data = last_state(trained.config, trained.folder)
  assert (step, data_state) == (wanted_step, wanted_data) == (4, data_state)
  assert small.equal(state, wanted)
  assert int(state.step) == 4
  assert untimed(resumed.rows) == untimed(trained.rows)
  # The comparison is of a state that training has moved.
  first = setup_run.initial_params(trained.config)
  assert not small.equal(state.params, first)


@pytest.mark.soak
@pytest.mark.full
def test_one_state_is_alive(small, tmp_path, monkeypatch):
  """What it was made of, or restored into, is let go."""
  # No save beside a step: what is being written is alive, too.
  config = small.config('mrt', checkpoint__every=4)
  found, real = [], guards.check_gap

  def count(*args):
    found.append(small.live_copies(config) - before)
    real(*args)

  monkeypatch.setattr(guards, 'check_gap', count)
  with monkeypatch.context() as patch:
    after_step(patch, 1, lambda _: signal.raise_signal(signal.SIGTERM))
    before = small.live_copies(config)
    stopped = small.run(config, tmp_path / 'run')
  assert stopped.code == signals.EXIT_INTERRUPTED, stopped.err
  before = small.live_copies(config)
  resumed = small.run(config, tmp_path / 'run')
  assert resumed.code == signals.EXIT_OK, resumed.err
  # Parameters, and Adam's two means of them; the first step, then the others.
  assert found == [3] + [3] * 3


def test_no_cache_is_alive_in_the_update(small, trained, tmp_path, monkeypatch):
  """Neither of the traces that were sampled ahead, nor of others."""
  real, alive, steps = train_calls.make_parallel, [], []

  def make(*args, **options):
    parallel = real(*args, **options)

    def generate(*given):
      traces, cache = parallel.generate(*given)
      leaves = [x for x in jax.tree.leaves(cache) if x.ndim > 1]
      assert leaves
      alive.extend(map(weakref.ref, leaves))
      return traces, cache

    def step(*given):
      steps.append(sum(leaf() is not None for leaf in alive))
      return parallel.update(*given)

    return dataclasses.replace(parallel, generate=generate, update=step)

  monkeypatch.setattr(train_calls, 'make_parallel', make)
  result = small.run(trained.config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert steps == [0] * 4
  # A step's time holds its sampling, which began beside the step before.
  for row in result.rows[1:]:
    assert 0 < row['time/generate_s'] <= row['time/step_s']


@pytest.mark.full
def test_dynamic_sampling_goes_on_bit_for_bit(small, tmp_path, monkeypatch):
  """The problems and keys of the extra rounds are part of what is saved."""
  real = setup_run.make_task

  def luckier(config):
    # Random weights never answer right; a third of their answers count here.
    task = real(config)
    verify = lambda answer, mask, _: ((answer[..., 0] % 3 == 0) * 1.0).astype(
      jnp.float32
    )
    return dataclasses.replace(task, verify=verify)

  monkeypatch.setattr(setup_run, 'make_task', luckier)
  config = small.config(
    'mrt',
    rollout__dynamic_sampling__max_rounds=3,
    checkpoint__every=3,
    eval__every=100,
  )
  straight = small.run(config, tmp_path / 'straight')
  assert straight.code == signals.EXIT_OK, straight.err
  with monkeypatch.context() as patch:
    after_step(patch, 2, lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = small.run(config, tmp_path / 'run')
  assert stopped.code == signals.EXIT_INTERRUPTED
  resumed = small.run(config, tmp_path / 'run')
  assert resumed.code == signals.EXIT_OK
  assert untimed(resumed.rows) == untimed(straight.rows)
  found = last_state(config, tmp_path / 'run')
  wanted = last_state(config, tmp_path / 'straight')
  assert small.equal(found[1], wanted[1])
  assert found[2] == wanted[2]
  # It was put to use before the stop: a step took other rounds than one.
  rounds = [row['rollout/rounds'] for row in straight.rows]
  assert max(rounds[:2]) > 1
  assert len(set(rounds)) > 1
  for row in straight.rows:
    # 4 x 4 traces a round, of some tokens each; all of them count.
    traces = 16 * row['rollout/rounds']
    tokens = traces * row['rollout/tokens_mean']
    assert row['rollout/tokens_sum'] == pytest.approx(tokens, rel=1e-5)
    if row['rollout/rounds'] < 3:
      assert row['rollout/filled_groups'] == 0
  # generate, prove, update, summarize, and the merging of rounds.
  assert straight.rows[-1]['compile/count'] == 5 + 2


def test_cost_is_counted(trained):
  # MRT's exact prover feeds </think> and 5 tokens an answer; 3 passes train.
  for before, row in zip([None, *trained.rows], trained.rows):
    parts = [row[f'cost/{part}'] for part in ('generate', 'prove', 'train')]
    assert row['cost/total'] == sum(parts)
    spent = before['cost/cumulative'] if before else 0
    assert row['cost/cumulative'] == spent + row['cost/total']
    assert row['cost/prove'] % 6 == 0 < row['cost/prove']
    # Prompts of 7 tokens: 4 of them are sampled from, 16 are trained on.
    assert row['cost/generate'] >= row['rollout/tokens_sum'] + 4 * 7
    assert row['cost/train'] == 3 * (row['cost/generate'] + 12 * 7)


@pytest.mark.parametrize(
  'name, changes',
  [
    ('mrt', {'loss__kl_coef': 0.1}),
    ('mrt', {'loss__pathwise__boundaries': 'last'}),
    ('ppo', {}),
    ('brpo', {}),
  ],
)
def test_training_costs_what_is_fed(name, changes, small):
  config = small.config(name, **changes)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  parallel = train_calls.make_parallel(
    config, model, task, setup_run.make_optimizer(config)
  )
  (batch,) = held_out.problem_batches(
    setup_run.load_problems(config, 'train'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=4,
    batch_size=4,
  )
  arrays = {k: v for k, v in batch.items() if k not in ('problem', 'counts')}
  params, key = setup_run.initial_params(config), jax.random.key(0)
  traces, cache = parallel.generate(params, arrays, key)
  measured = parallel.prove(params, arrays, traces, cache, key)
  row = train_calls.make_summarize(config, task)(traces, measured)
  real = np.asarray(traces.token_mask)
  if name == 'brpo':
    # Two rows a trace: all up to a budget, </think>, and what was answered.
    answers = measured.summaries
    ends = np.take_along_axis(measured.episodes.ends, answers.budget, axis=1)
    before = np.take_along_axis(real.cumsum(1), ends, axis=1)
    fed = before + 1 + np.asarray(answers.mask).sum(-1)
    assert fed.shape == (16, 2)
    assert float(row['cost/train']) == 3 * (real.sum() + fed.sum())
  elif 'loss__pathwise__boundaries' in changes:
    # The last boundary of each trace that has an answer, once more behind it.
    probes = np.asarray(measured.answer_mask).sum((1, 2))
    probes = probes * np.asarray(measured.answered)
    again = 3 * (real.sum(1) + probes)
    assert 0 < probes.sum() < float(row['cost/prove'])
    assert float(row['cost/train']) == 3 * real.sum() + again[probes > 0].sum()
  else:
    # Forward and backward, and before it the reference's pass or the critic's.
    assert float(row['cost/train']) == 4 * real.sum()


@pytest.mark.full
def test_tokens_of_a_checkpoint_without_their_count(
  small, trained, tmp_path, monkeypatch
):
  """One of before `total_tokens`: metrics.jsonl says what was sampled."""
  tokens = [row['rollout/tokens_sum'] for row in trained.rows]
  config = small.config(
    'mrt', checkpoint__every=2, total_tokens=sum(tokens[:3])
  )
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    after_step(patch, 2, lambda _: signal.raise_signal(signal.SIGTERM))
    assert small.run(config, folder).code == signals.EXIT_INTERRUPTED
  real = checkpoint.Checkpointer.restore_latest

  def older(*args):
    step, state, data_state = real(*args)
    del data_state['cumulative_tokens']
    return step, state, data_state

  monkeypatch.setattr(checkpoint.Checkpointer, 'restore_latest', older)
  result = small.run(config, folder)
  assert result.code == signals.EXIT_OK, result.err
  assert [row['step'] for row in result.rows] == [1, 2, 3]


@pytest.mark.parametrize(
  'budget, counted',
  [('total_cost', 'cost/total'), ('total_tokens', 'rollout/tokens_sum')],
)
def test_training_ends_when_a_budget_is_spent(
  small, trained, tmp_path, monkeypatch, budget, counted
):
  spent = sum(row[counted] for row in trained.rows[:2])
  config = small.config('mrt', checkpoint__every=3, **{budget: spent})
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    after_step(patch, 1, lambda _: signal.raise_signal(signal.SIGTERM))
    assert small.run(config, folder).code == signals.EXIT_INTERRUPTED
  # What step 1 spent is in its checkpoint.
  result = small.run(config, folder)
  assert result.code == signals.EXIT_OK
  assert [row['step'] for row in result.rows] == [1, 2]
  assert untimed(result.rows) == untimed(trained.rows[:2])
  assert f'{budget}={spent:,g} was reached after step 2' in result.err
  assert steps_of(folder)[-1] == 2
  # Reached is reached: nothing is trained any more.
  again = small.run(config, folder)
  assert again.code == signals.EXIT_OK
  assert again.rows == result.rows


@pytest.mark.full
def test_a_longer_run_goes_on_from_where_it_was(small, trained, tmp_path):
  short = small.run(
    small.config('mrt', checkpoint__every=3, total_steps=2), tmp_path / 'run'
  )
  assert [row['step'] for row in short.rows] == [1, 2]
  refused = small.run(trained.config, tmp_path / 'run')
  assert refused.code == signals.EXIT_ERROR
  assert refused.err.count('\n') == 1
  assert 'holds another config (total_steps: 2 -> 4)' in refused.err
  assert '--allow_change=total_steps' in refused.err
  longer = small.run(
    trained.config, tmp_path / 'run', allow_change='total_steps'
  )
  assert 'config: total_steps changed from 2 to 4' in longer.out
  assert untimed(longer.rows) == untimed(trained.rows)
  again = last_state(trained.config, tmp_path / 'run')
  assert small.equal(again[1], last_state(trained.config, trained.folder)[1])


def test_a_damaged_newest_checkpoint_is_skipped(
  small, trained, tmp_path, monkeypatch
):
  config = small.config('mrt', checkpoint__every=1)
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    after_step(patch, 3, lambda _: signal.raise_signal(signal.SIGTERM))
    assert small.run(config, folder).code == signals.EXIT_INTERRUPTED
  newest = folder / 'checkpoints' / '3'
  file = max(
    (f for f in newest.rglob('*') if f.is_file() and f.parent != newest),
    key=lambda f: f.stat().st_size,
  )
  file.write_bytes(file.read_bytes()[:-7])
  with pytest.warns(RuntimeWarning, match='checkpoint of step 3 is damaged'):
    result = small.run(config, folder)
  assert result.code == signals.EXIT_OK
  assert 'resuming after step 2 of 4' in result.out
  assert untimed(result.rows) == untimed(trained.rows)


def test_sigterm_ends_the_command_with_75(small, small_data, tmp_path):
  del small
  folder = tmp_path / 'run'
  command = [sys.executable, '-m', 'meta_rl.train', f'--workdir={folder}']
  command += ['--config=mrt_countdown:tiny', '--config.total_steps=100000']
  command += ['--config.task.high=8', '--config.eval.every=100000']
  process = subprocess.Popen(
    command,
    env=os.environ
    | {'META_RL_DATA': str(small_data), 'PYTHONPATH': str(ROOT)}
    | {'JAX_NUM_CPU_DEVICES': '1'},
    cwd=tmp_path,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    log, deadline = folder / 'metrics.jsonl', time.monotonic() + 240
    while not (log.exists() and log.stat().st_size):
      assert process.poll() is None, process.communicate()[1]
      assert time.monotonic() < deadline
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
  finally:
    process.kill()
  assert process.returncode == 75, out + err
  last = json.loads(log.read_text().splitlines()[-1])['step']
  assert f'stopped by SIGTERM after step {last}, which is saved' in err
  assert 'Traceback' not in err
  assert steps_of(folder)[-1] == last


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  'fused_steps', [0, pytest.param(2, marks=pytest.mark.soak)]
)
def test_the_second_start_compiles_nothing(fused_steps, small_data, tmp_path):
  """Another process, in another folder, with the cache of the first."""

  def start(folder):
    result = subprocess.run(
      [
        *(sys.executable, '-m', 'meta_rl.train'),
        '--config=mrt_countdown:tiny',
        f'--workdir={tmp_path / folder}',
        '--config.task.high=8',
        '--config.total_steps=2',
        f'--config.parallel.fused_steps={fused_steps}',
      ],
      env=os.environ
      | {'META_RL_DATA': str(small_data), 'PYTHONPATH': str(ROOT)}
      | {'META_RL_CACHE': str(tmp_path / 'cache')}
      | {'JAX_NUM_CPU_DEVICES': '1', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
      cwd=tmp_path,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return metrics.read_metrics(tmp_path / folder / 'metrics.jsonl')[-1]

  first, second = start('one'), start('two')
  assert first['compile/cache_misses'] > 10
  assert second['compile/cache_misses'] == 0
  # Other folders, other processes: the same programs.
  assert second['compile/cache_hits'] == first['compile/cache_misses']


# ---- guards


def test_a_nan_ends_the_run_with_3(small, tmp_path, monkeypatch):
  config = small.config('mrt')

  def poison(result):
    state, row, samples = result
    return state, row | {'loss/total': math.nan}, samples

  with monkeypatch.context() as patch:
    after_step(patch, 3, poison)
    result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_NON_FINITE == 3
  line = result.err.splitlines()[-1]
  assert line.startswith('error: step 3: loss/total is nan')
  assert 'the last good checkpoint is step 2' in line
  assert [row['step'] for row in result.rows] == [1, 2]
  assert steps_of(tmp_path / 'run') == [2]


def test_a_huge_learning_rate_is_caught_by_the_loss(small, tmp_path):
  """Not by a patch: weights of 1e38 overflow in the next forward pass."""
  config = small.config('mrt', optimizer__learning_rate=1e38)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_NON_FINITE
  line = result.err.splitlines()[-1]
  assert line.startswith('error: step 1: ')
  assert 'no checkpoint was saved yet' in line
  # Nothing was saved: the folder takes the mended command.
  assert workdir.read_config(tmp_path / 'run') is None


def test_dead_learning_is_said_aloud(trained):
  """Random weights never answer right: each group's rewards are all 0."""
  assert {row['rollout/reward_mean'] for row in trained.rows} == {0.0}
  said = [line for line in trained.err.splitlines() if 'WARNING' in line]
  assert any('every group had constant rewards' in line for line in said)


def test_a_gap_between_sampler_and_trainer_stops_the_run(
  small, tmp_path, monkeypatch
):
  real = setup_steps.make_calls

  def tampered(config, model, task, **options):
    generate, prove = real(config, model, task, **options)

    def wrong(*args):
      traces, cache = generate(*args)
      shifted = traces.behavior_log_probs - 0.5 * traces.mask
      return dataclasses.replace(traces, behavior_log_probs=shifted), cache

    return wrong, prove

  monkeypatch.setattr(setup_steps, 'make_calls', tampered)
  result = small.run(small.config('mrt'), tmp_path / 'run')
  assert result.code == signals.EXIT_ERROR
  assert 'step 1: the sampler and the trainer differ by 0.5' in result.err
  assert 'max_log_prob_gap=0.01' in result.err


def test_check_gap_allows_up_to_the_limit():
  guards.check_gap(1, {'policy/log_prob_gap': 0.01}, 0.01)
  with pytest.raises(ValueError, match='step 7: .* 0.011 nats'):
    guards.check_gap(7, {'policy/log_prob_gap': 0.011}, 0.01)


@pytest.mark.full
def test_profile_steps(small, tmp_path):
  result = small.run(small.config('mrt'), tmp_path / 'run', profile_steps='2:3')
  assert result.code == signals.EXIT_OK
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


def test_profile_steps_that_are_never_run(capsys, monkeypatch, tmp_path):
  started = []
  monkeypatch.setattr(jax.profiler, 'start_trace', started.append)
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: started.append(None))
  with profiler.Profiler(str(tmp_path), '10:12') as tracer:
    for step in (1, 2):
      tracer.before(step)
      tracer.after(step)
  assert started == []
  assert 'step 10 was not run' in capsys.readouterr().err
  with profiler.Profiler(str(tmp_path), '1:2') as tracer:
    for step in (1, 2, 3):
      tracer.before(step)
      tracer.after(step)
  assert started == [f'{tmp_path}/profile', None]
  assert 'not run' not in capsys.readouterr().err


def test_phase_speeds():
  # 60 tokens: in 2 s 30 a second, in 4 s 15; 'data' has no tokens, and a phase
  # of no time no speed.
  row = {'rollout/tokens_sum': 60.0}
  seconds = {'time/generate_s': 2.0, 'time/prove_s': 4.0, 'time/data_s': 1.0}
  found = metrics.phase_speeds(seconds | {'time/score_s': 0.0}, row)
  assert found == seconds | {
    'time/score_s': 0.0,
    'time/generate_tokens_per_s': 30.0,
    'time/prove_tokens_per_s': 15.0,
  }


# ---- it learns

SWITCH, DELIMITER, EOS, MARKER = 5, 4, 2, 3


def bandit():
  """A task whose answer is one token, the one that the prompt ends with."""
  return Task(
    name='bandit',
    vocab_size=8,
    pad_id=0,
    eos_id=EOS,
    think_end_id=MARKER,
    stop_ids=(MARKER,),
    delimiter_ids=(DELIMITER,),
    episode_length=1,
    answer_length=1,
    verify=lambda answers, mask, batch: (
      (answers[..., 0] == batch['answers'][..., 0, 0]) & mask[..., 0]
    ).astype(jnp.float32),
  )


def bandit_batch(rng, rows):
  """Prompts `<bos> arm` of two arms; the arm is the right answer."""
  arms = rng.integers(SWITCH, SWITCH + 2, rows)
  prompts = np.stack([np.ones_like(arms), arms], 1).astype(np.int32)
  return {
    'prompts': jnp.asarray(prompts),
    'prompt_mask': jnp.ones(prompts.shape, bool),
    'answers': jnp.asarray(arms[:, None, None], jnp.int32),
    'answer_mask': jnp.ones((rows, 1, 1), bool),
  }


@pytest.mark.parametrize(
  'name', ['mrt', pytest.param('grpo', marks=pytest.mark.full)]
)
def test_thirty_steps_raise_the_reward_of_a_bandit(name, small):
  """A random answer is right in 1 of 8; picking either arm gives 1/2."""
  config = small.config(
    name,
    rollout__num_prompts=16,
    rollout__thinking_budget=3,
    prover__max_episodes=2,
    batching__mini_batches=1,
  )
  shape = TransformerConfig(
    vocab_size=8, num_layers=1, width=16, num_heads=2, ffn_width=16
  )
  params = init_params(shape, jax.random.key(0))
  optimizer = optax.adam(0.02)
  task = bandit()
  parallel = train_calls.make_parallel(
    config, make_model(shape), task, optimizer
  )
  summarize = train_calls.make_summarize(config, task)
  state = parallel.put_state(
    update.TrainState(
      params=params,
      opt_state=optimizer.init(params),
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key(1),
    )
  )
  rng, rewards = np.random.default_rng(0), []
  # The same prompts twice, with nearly the same parameters: other samples.
  batch, pairs = parallel.put_batch(bandit_batch(rng, 16)), []
  for _ in range(2):
    state, _, (traces, _) = train.rl_step(
      parallel, summarize, state, None, batch, None, metrics.Timer()
    )
    pairs.append(np.where(traces.mask, traces.tokens, -1)[:, 2:])
  assert np.any(pairs[0] != pairs[1], axis=1).mean() > 0.8
  for _ in range(30):
    batch = parallel.put_batch(bandit_batch(rng, 16))
    state, row, _ = train.rl_step(
      parallel, summarize, state, None, batch, None, metrics.Timer()
    )
    rewards.append(row['rollout/reward_mean'])
  assert np.mean(rewards[:3]) < 0.3
  assert np.mean(rewards[-5:]) > 0.8
