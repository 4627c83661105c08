"""Training on given rollouts: equal to the policy's own where they are its."""

import dataclasses
import functools
import json
import math
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import lively_params, tiny

from meta_rl import (
  algorithms,
  check_config,
  external,
  generate,
  held_out,
  models,
  setup_own,
  setup_run,
  sharding,
  signals,
  steps,
  train,
  train_calls,
  update,
  workdir,
)
from meta_rl.tasks.base import Task
from meta_rl.types import Episodes, Rollout

pytest_plugins = ['small_runs']

# ---- call by call, on a task where a random policy is often right

EOS, MARKER, DELIMITER, ARM = 2, 3, 4, 5
GROUP, PROMPTS = 4, 4
BANDIT = Task(
  name='bandit',
  vocab_size=8,
  pad_id=0,
  eos_id=EOS,
  think_end_id=MARKER,
  stop_ids=(MARKER,),
  delimiter_ids=(DELIMITER,),
  episode_length=1,
  answer_length=2,
  verify=lambda answers, mask, batch: (
    (answers[..., 0] == batch['answers'][..., 0, 0]) & mask[..., 0]
  ).astype(jnp.float32),
)
CONFIG = tiny(vocab_size=8, num_layers=1)
MODEL = models.make_model(CONFIG)


def problem_of(prompt, question=None):
  """The arrays of a problem: the right answer is what the prompt ends with."""
  return {
    'answers': np.asarray([[prompt[-1], EOS]], np.int32),
    'answer_mask': np.ones((1, 2), bool),
  }


@pytest.fixture(scope='module')
def calls():
  """The jitted calls, the state, and what the policy sampled itself."""
  shared = {'group_size': GROUP}
  optimizer = optax.sgd(1.0)
  loss_fn = steps.make_loss(MODEL, aggregate='token_mean')

  def make_update(name, **options):
    advantage_fn = steps.make_advantages(name, **shared, **options)
    step = steps.make_update(loss_fn, optimizer, advantage_fn, mini_batches=2)
    return jax.jit(step), jax.jit(advantage_fn, static_argnums=1)

  params = lively_params(CONFIG)
  arms = np.arange(PROMPTS) + ARM - 1
  prompts = np.stack([np.ones_like(arms), arms], 1).astype(np.int32)
  problems = [problem_of(prompt) for prompt in prompts.tolist()]
  batch = {'prompts': prompts, 'prompt_mask': np.ones(prompts.shape, bool)}
  batch |= {k: np.stack([p[k] for p in problems]) for k in problems[0]}
  made = {
    'generate': jax.jit(
      steps.make_generate(MODEL, BANDIT, thinking_budget=6, **shared)
    ),
    'prove': jax.jit(
      steps.make_prove(MODEL, BANDIT, max_episodes=3, **shared)
    ),
    'score': jax.jit(steps.make_score(MODEL)),
    'mrt': make_update('mrt', horizon=6),
    'outcome': make_update('outcome'),
    'state': update.TrainState(
      params, optimizer.init(params), jnp.zeros((), jnp.int32),
      jax.random.key(0),
    ),
  }  # fmt: skip
  traces, cache = made['generate'](params, batch, jax.random.key(1))
  measured = made['prove'](params, batch, traces, cache, jax.random.key(2))
  made['own'] = jax.device_get((traces, measured))
  return made


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture
def given(calls, tmp_path):
  """(batch, traces): the policy's own traces, through a file.

  The groups come in the order of the shuffle; `own` puts a value of the policy
  into it.
  """

  def make(change=lambda row: row):
    traces, measured = calls['own']
    rows = external.rows_of(
      traces, prompt_length=2, rewards=measured.rewards, decode=str
    )
    path = write(tmp_path / 'rollouts.jsonl', map(change, rows))
    batch = next(
      external.RolloutBatches(
        path,
        num_prompts=PROMPTS,
        group_size=GROUP,
        seed=0,
        task=BANDIT,
        vocab_size=8,
        encode=lambda text, is_prompt=False: [],
        problem_fn=problem_of,
        buckets=(traces.tokens.shape[1] - 2,),
      )
    )
    return batch, steps.replay(None, batch, None)[0]

  return make


def own(values, batch):
  """The policy's values [B,...] in the order of a batch's prompts."""
  order = batch['prompts'][:, 1] - (ARM - 1)
  by_group = lambda x: np.asarray(x).reshape(PROMPTS, GROUP, *x.shape[1:])
  return jax.tree.map(lambda x: by_group(x)[order].reshape(np.shape(x)), values)


def measure_given(calls, batch, traces):
  """What `prove` finds without the cache that sampling leaves."""
  params = calls['state'].params
  return calls['prove'](params, batch, traces, None, jax.random.key(2))


def test_through_a_file_traces_are_as_they_were(calls, given):
  batch, traces = given()
  wanted = own(calls['own'][0], batch)
  assert not np.array_equal(wanted.tokens, calls['own'][0].tokens)
  for field in dataclasses.fields(wanted):
    np.testing.assert_array_equal(
      getattr(traces, field.name), getattr(wanted, field.name), field.name
    )
  # Both ways to end a thought are among them.
  assert 0 < wanted.forced.mean() < 1
  measured = measure_given(calls, batch, traces)
  want = own(calls['own'][1], batch)
  np.testing.assert_array_equal(measured.rewards, want.rewards)
  np.testing.assert_array_equal(measured.episodes.ends, want.episodes.ends)
  np.testing.assert_allclose(measured.success, want.success, atol=1e-5)
  assert 0 < want.rewards.mean() < 1


@pytest.mark.parametrize(
  'name', [pytest.param('mrt', marks=pytest.mark.full), 'outcome']
)
@pytest.mark.parametrize('correction', steps.CORRECTIONS)
def test_on_the_policys_own_traces_nothing_is_corrected(
  name, correction, calls, given
):
  """Ratio 1, weights 1, the same advantages, and the same step."""
  batch, traces = given()
  step, advantage_fn = calls[name]
  measured = measure_given(calls, batch, traces)
  wanted_traces, wanted = own(calls['own'], batch)
  length = traces.tokens.shape[1]
  advantages = advantage_fn(wanted, length)
  assert np.abs(advantages).max() > 0.1
  np.testing.assert_allclose(
    advantage_fn(measured, length), advantages, atol=1e-4
  )
  correct = steps.make_correction(correction=correction, cap=2.0)
  log_probs = calls['score'](calls['state'].params, traces)
  corrected, metrics = correct(traces, log_probs)
  assert metrics['external/mismatch_max'] < 1e-5
  assert metrics['external/capped_share'] == 0
  assert metrics['external/ess'] == pytest.approx(1, abs=1e-5)
  if correction == 'none':
    assert corrected.weights is None
  else:
    np.testing.assert_allclose(corrected.weights, 1, atol=1e-4)
  state, sums = step(calls['state'], corrected, measured)
  want_state, want_sums = step(calls['state'], wanted_traces, wanted)
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)
  jax.tree.map(close, state.params, want_state.params)
  jax.tree.map(close, sums, want_sums)
  assert sums['policy/ratio_mean'].value[0] == pytest.approx(1, abs=1e-6)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.params, calls['state'].params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_rows_without_log_probs_are_taken_for_the_policys(calls, given):
  def forget(row):
    mask = [int(value is not None) for value in row['log_probs']]
    return {k: v for k, v in row.items() if k != 'log_probs'} | {'mask': mask}

  batch, traces = given(forget)
  assert np.isnan(traces.behavior_log_probs).any()
  correct = steps.make_correction(correction='token', cap=2.0)
  log_probs = calls['score'](calls['state'].params, traces)
  corrected, metrics = correct(traces, log_probs)
  assert metrics['external/mismatch_max'] == 0
  np.testing.assert_array_equal(corrected.weights, 1)
  np.testing.assert_allclose(
    corrected.behavior_log_probs,
    own(calls['own'][0], batch).behavior_log_probs,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'correction, weight', [('token', math.exp(0.5)), ('sequence', 2.0)]
)
def test_a_sampler_that_differs_is_weighed(correction, weight, calls, given):
  """It recorded every log-prob 1/2 nat too low: token weights e^.5, traces
  e^(n/2), which the cap of 2 cuts from two tokens on."""
  lower = lambda row: (
    row | {'log_probs': [v and v - 0.5 for v in row['log_probs']]}
  )
  _, traces = given(lower)
  log_probs = calls['score'](calls['state'].params, traces)
  correct = steps.make_correction(correction=correction, cap=2.0)
  corrected, metrics = correct(traces, log_probs)
  assert metrics['external/mismatch_mean'] == pytest.approx(0.5, abs=1e-4)
  several = np.asarray(traces.mask).sum(1) > 1
  found = np.asarray(corrected.weights)
  np.testing.assert_allclose(
    found[several][traces.mask[several]], weight, rtol=1e-4
  )
  # The clipped ratio is against the trainer itself.
  np.testing.assert_allclose(
    corrected.behavior_log_probs,
    np.where(traces.mask, log_probs, 0),
    atol=1e-6,
  )
  batch = steps.training_batch(
    corrected, calls['own'][1], lambda measured, length: jnp.ones(found.shape)
  )
  np.testing.assert_array_equal(batch['weights'], corrected.weights)
  loss_fn = steps.make_loss(MODEL, aggregate='token_mean')
  loss, _ = loss_fn(calls['state'].params, batch)
  mask = np.asarray(traces.mask)
  assert loss.value == pytest.approx(-found[mask].mean(), rel=1e-4)


def test_rewards_of_the_rows(calls, given):
  """They stand in the place of the task's own, trace by trace."""
  place = iter(range(100))
  batch, traces = given(lambda row: row | {'reward': next(place) / 10})
  prove = steps.with_given_rewards(
    steps.make_prove(MODEL, BANDIT, group_size=GROUP, max_episodes=3)
  )
  measured = jax.jit(prove)(
    calls['state'].params, batch, traces, None, jax.random.key(2)
  )
  assert isinstance(measured, algorithms.Measured)
  want = own(np.arange(16, dtype=np.float32) / 10, batch)
  np.testing.assert_allclose(measured.rewards, want)


# ---- the command that writes and the command that trains


@pytest.fixture(scope='module')
def file(small, tmp_path_factory):
  """8 prompts x 4 traces of the policy that the tiny configs start with."""
  path = tmp_path_factory.mktemp('external') / 'rollouts.jsonl'
  config = small.config('mrt')
  rows = generate.sample(
    config,
    setup_run.initial_params(config),
    num_prompts=8,
    group_size=4,
  )
  return write(path, rows)


def config_of(small, file, arg='tiny', **changes):
  return small.config(
    'external', arg, rollout__source=f'jsonl:{file}', **changes
  )


@pytest.mark.full
def test_a_run_on_a_file(small, file, tmp_path):
  config = config_of(small, file, external__buckets=(34,))
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert [row['step'] for row in result.rows] == [1, 2, 3, 4]
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['time/score_s'] > 0
    # generate, prove, score, correct, update, summarize; evaluation's two.
    assert row['compile/count'] == 6 + 2 * (row['step'] > 1)
    assert row['policy/log_prob_gap'] < 1e-5
  first = result.rows[0]
  assert first['external/mismatch_max'] < 1e-5
  assert first['policy/ratio_mean'] == pytest.approx(1, abs=1e-5)


@pytest.mark.full
def test_a_run_on_the_rows_own_rewards(small, file, tmp_path):
  """Two of four traces of each prompt are worth 1: a signal to learn from, and
  beside it a reward of one's own."""
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  rows = [row | {'reward': i % 2} for i, row in enumerate(rows)]
  # Prompts of no task of ours.
  rows = [row | {'prompt_ids': [1, *row['prompt_ids'][:3]]} for row in rows]
  config = config_of(
    small,
    write(tmp_path / 'own.jsonl', rows),
    'row,tiny',
    total_steps=2,
    rewards=(('test_replay.length_of', 0.0625),),
  )
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  row, later = result.rows
  # The sampler saw the whole prompts, and the policy moves.
  mismatch = row['external/mismatch_mean']
  assert 1e-3 < mismatch < 0.5
  assert abs(later['external/mismatch_mean'] - mismatch) > 1e-5
  assert row['reward/outcome_mean'] == 0.5
  assert row['rollout/reward_mean'] == pytest.approx(
    0.5 + 0.0625 * row['reward/length_of_mean']
  )
  assert row['optimizer/grad_norm'] > 0
  assert 'regret/token_weighted' not in row


def length_of(batch):
  """Thinking tokens; the problem is the prompt alone."""
  assert set(batch['problem']) == {'prompts', 'prompt_mask'}
  return [float(n) for n in batch['tokens']]


@pytest.mark.full
def test_two_and_two_steps_on_a_file_are_four(
  small, file, tmp_path, monkeypatch
):
  config = config_of(small, file)
  whole = small.run(config, tmp_path / 'whole')
  real = train.rl_step

  def stop_after_two(*args):
    result = real(*args)
    if int(result[0].step) == 2:
      signal.raise_signal(signal.SIGTERM)
    return result

  with monkeypatch.context() as patch:
    patch.setattr(train, 'rl_step', stop_after_two)
    stopped = small.run(config, tmp_path / 'cut')
  assert stopped.code == signals.EXIT_INTERRUPTED
  assert small.run(config, tmp_path / 'cut').code == signals.EXIT_OK
  starts = [
    small.config('mrt', init_from=f'{tmp_path / name}@last')
    for name in ('whole', 'cut')
  ]
  assert small.equal(*map(setup_run.initial_params, starts))
  assert whole.rows[-1]['step'] == 4


@pytest.mark.full
def test_a_file_that_changed_between_is_refused(small, file, tmp_path):
  copy = tmp_path / 'rollouts.jsonl'
  copy.write_text(file.read_text())
  config = config_of(small, copy, total_steps=2)
  assert small.run(config, tmp_path / 'run').code == signals.EXIT_OK
  copy.write_text(file.read_text() + '\n')
  config = config_of(small, copy)
  result = small.run(config, tmp_path / 'run', allow_change='total_steps')
  assert result.code == signals.EXIT_ERROR
  assert 'has changed since the checkpoint' in result.err


def test_rollouts_that_are_too_far_stop_the_run(small, file, tmp_path):
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  far = lambda v: None if v is None else v - 3.0
  rows = [row | {'log_probs': list(map(far, row['log_probs']))} for row in rows]
  path = write(tmp_path / 'far.jsonl', rows)
  result = small.run(
    config_of(small, path, external__buckets=(34,)), tmp_path / 'run'
  )
  assert result.code == signals.EXIT_ERROR
  (line,) = result.err.splitlines()
  assert line.startswith('error: step 1: the log-probs of the rollouts differ')
  assert 'by 3 nats a token (external.max_mismatch=0.5' in line
  assert result.rows == []


@pytest.mark.soak
@pytest.mark.full
@pytest.mark.parametrize('kind', ['jit'])  # all kinds: tests/test_sharding.py
def test_on_devices_as_on_one(kind, run_python, small_data, file, tmp_path):
  code = """
import json, pathlib, sys
from small_runs import make_config, run, quick
kind, data, file, folder = *sys.argv[1:4], pathlib.Path(sys.argv[4])
rows = []
with quick(data):
  for k in ('none', kind):
    config = make_config(
      'external', 'tiny', parallel__kind=k, total_steps=2,
      rollout__source='jsonl:' + file, loss__kl_coef=0.1,
      rewards=(('test_rewards.short', 1.0),),
    )
    result = run(config, folder / k)
    assert result.code == 0, result.err
    rows.append(result.rows)
print(json.dumps(rows))
"""
  out = run_python(
    code,
    kind,
    small_data,
    file,
    tmp_path,
    devices=2,
    timeout=300,
    env={'PYTHONPATH': ':'.join(path for path in sys.path if path)},
  )
  one, many = json.loads(out.splitlines()[-1])
  for a, b in zip(one, many, strict=True):
    assert a['compile/count'] == b['compile/count']
    for name, value in a.items():
      if name.startswith(('external/', 'rollout/', 'loss/', 'optimizer/')):
        assert b[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


REFUSED = [
  ({'rollout__source': 'web'}, "rollout.source='web' is unknown; allowed: pol"),
  ({'rollout__source': 'jsonl:'}, "rollout.source='jsonl:' is unknown"),
  ({'rollout__source': 'policy'}, 'makes config.external useless'),
  ({'external__reward': 'x'}, 'external.reward must be one of'),
  ({'external__correction': 'x'}, 'external.correction must be one of'),
  ({'external__cap': 0.0}, 'external.cap=0.0; allowed is > 0'),
  ({'external__max_mismatch': -1.0}, 'external.max_mismatch=-1.0; allowed'),
  ({'external__buckets': (8, 8)}, 'external.buckets=(8, 8) must be numbers'),
  ({'external__buckets': (0,)}, 'external.buckets=(0,) must be numbers'),
  ({'external__buckets': (8.5,)}, 'external.buckets=(8.5,) must be numbers'),
  ({'external__reward': 'row'}, "goes with prover.kind='none'"),
  (
    {'rollout__dynamic_sampling__max_rounds': 2},
    'a file has no further prompts',
  ),
  ({'rollout__source': 'jsonl:none.jsonl'}, 'there is no such file'),
  ({'rollout__num_prompts': 6}, 'has 4 groups of 8 rows'),
]


@pytest.mark.parametrize('changes, message', REFUSED)
def test_what_is_refused(changes, message, small, file, tmp_path):
  if 'rollout__num_prompts' in changes:
    changes = changes | {'rollout__group_size': 8}
    rows = file.read_text().splitlines()
    file = tmp_path / 'eights.jsonl'
    file.write_text('\n'.join(r for r in rows[:16:4] for _ in range(8)))
  changes = {'rollout__source': f'jsonl:{file}'} | changes
  config = small.config('external', **changes)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_ERROR
  (line,) = result.err.splitlines()
  assert message in line
  assert workdir.read_config(tmp_path / 'run') is None


@pytest.mark.parametrize(
  'name, message',
  [
    ('mrt', 'start from --config=external_countdown, or with a language'),
    ('sft', "algorithm.name='sft' reads data.path"),
  ],
)
def test_configs_without_the_options(name, message, small, file, tmp_path):
  config = small.config(name, rollout__source=f'jsonl:{file}')
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_ERROR
  assert message in result.err


OF_A_FILE = [
  ('mrt_rl', {}, "name='prefix': its rollouts branch off a prefix"),
  ('star', {}, "name='star': traces are imitated whoever"),
  ('brpo', {}, "set algorithm.summary='own'"),
  ('mrt', {'task': {'name': 'hidden', 'n': 5}}, "set 'row'"),
]


def given_config(small, file, name, **changes):
  """The config of an algorithm, on a file."""
  config = small.config(name)
  config.external = small.config('external').external
  config.rollout.source = f'jsonl:{file}'
  if 'task' in changes:
    config.task = changes.pop('task')
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


@pytest.mark.parametrize('name, changes, message', OF_A_FILE)
def test_algorithms_and_tasks_that_a_file_does_not_fit(
  name, changes, message, small
):
  config = given_config(small, 'rollouts.jsonl', name, **changes)
  with pytest.raises(ValueError, match=message) as error:
    check_config.check(config)
  assert '\n' not in str(error.value)


@pytest.mark.soak
@pytest.mark.full
@pytest.mark.parametrize(
  'name, changes',
  [
    ('ppo', {'batching__epochs': 2}),
    ('star', {'external__correction': 'none'}),
    ('brpo', {'algorithm__summary': 'own'}),
    ('mrt', {'loss__pathwise__boundaries': 'all'}),
  ],
)
def test_other_algorithms_on_a_file(name, changes, small, file, tmp_path):
  config = given_config(small, file, name, total_steps=2, **changes)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['cost/generate'] == 0
    assert row['cost/train'] > 0


def blank_traces(config, arrays):
  """A Rollout of zeros with the shapes of a batch of problems."""
  width = arrays['prompts'].shape[1] + 34
  rows = len(arrays['prompts']) * config.rollout.group_size
  real = jnp.zeros((rows, width), bool)
  number, flag = jnp.zeros((rows, width)), jnp.zeros(rows, bool)
  tokens = real.astype(jnp.int32)
  return Rollout(tokens, real, real, real, number, number, flag, flag)


def problems_of(config):
  """The arrays of a batch of the config's problems."""
  (batch,) = held_out.problem_batches(
    setup_run.load_problems(config, 'train'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=4,
    batch_size=4,
  )
  return {k: v for k, v in batch.items() if k not in ('problem', 'counts')}


def test_the_pathwise_term_has_its_answers(small):
  config = config_of(small, 'x.jsonl', loss__pathwise__boundaries='all')
  check_config.check(config)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  _, prove = setup_own.make_training_calls(config, model, task)
  arrays = problems_of(config)
  found = jax.eval_shape(
    lambda *given: prove(*given[:3], None, given[3]),
    setup_run.abstract_params(config),
    arrays,
    blank_traces(config, arrays),
    jax.random.key(0),
  )
  assert found.answers.shape == (16, *arrays['answers'].shape[1:])
  assert found.answer_mask.shape == found.answers.shape


@pytest.mark.parametrize('arg, proved', [('tiny', 1), ('grpo,tiny', 0)])
def test_the_provers_prefill_of_given_traces_is_a_cost(arg, proved, small):
  # Three passes train and one scores; MRT's prover prefills in another. GRPO
  # measures J for the log alone.
  config = config_of(small, 'x.jsonl', arg)
  rows = 4 * config.rollout.group_size
  traces = blank_traces(config, {'prompts': np.zeros((4, 7))})
  traces = dataclasses.replace(
    traces, token_mask=jnp.ones_like(traces.token_mask)
  )
  nothing = jnp.zeros(rows, jnp.int32)
  ends = jnp.full((rows, config.prover.max_episodes + 1), 6, jnp.int32)
  measured = algorithms.Measured(
    rewards=jnp.zeros(rows),
    success=jnp.zeros(ends.shape),
    episodes=Episodes(ends, nothing),
    stop_index=nothing + 7,
    answered=nothing > 0,
    prover_tokens=nothing,
  )
  task = setup_run.make_task(config)
  row = train_calls.make_summarize(config, task)(traces, measured)
  assert float(row['cost/train']) == 4 * traces.tokens.size
  assert float(row['cost/prove']) == proved * traces.tokens.size


def test_prompts_that_are_not_the_configs_problems(small, file, tmp_path):
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  for prompt, message in (
    ('<bos> 9 9 9 = 1 <think>', '3 numbers and 0 accepted answers'),
    ('<bos> 1 2 = 3 <think>', 'the prompt has 2 numbers'),
    ('<bos> 1 2 3', 'is none of Countdown'),
  ):
    made = [r | {'prompt_ids': None, 'prompt': prompt} for r in rows[:4]]
    path = write(tmp_path / 'x.jsonl', rows[4:] + made)
    with pytest.raises(ValueError, match='x.jsonl, line 29: ') as error:
      setup_own.load_rollouts(
        config_of(small, path), setup_run.make_task(small.config('mrt'))
      )
    assert message in str(error.value)


def test_processes_give_their_own_groups(small, file, monkeypatch):
  config = config_of(small, file)
  task = setup_run.make_task(config)
  whole = setup_own.load_rollouts(config, task)
  size = config.rollout.num_prompts
  halves = []
  for own in (slice(0, size // 2), slice(size // 2, size)):
    monkeypatch.setattr(sharding, 'process_slice', lambda *_, own=own: own)
    halves.append(setup_own.load_rollouts(config, task))
  for _ in range(3):
    parts, expected = [next(half) for half in halves], next(whole)
    for name, value in expected.items():
      found = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(found, value)


def test_a_policy_that_samples_itself_has_no_correction(small):
  assert setup_own.make_correct(small.config('mrt')) is None
