"""Held-out evaluation: batches, measuring, what eval.json holds."""

import dataclasses
import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import (
  eval_partial,
  eval_regrets,
  evaluation,
  headline,
  held_out,
  metrics,
  regret,
  setup_run,
  setup_steps,
  statistics,
  tokenizer,
  trace_text,
  waste,
  weights,
)
from meta_rl.compiled import CountedJit
from meta_rl.configs import mrt_qwen3_0p6b
from meta_rl.tasks import countdown, hidden

pytest_plugins = ['small_runs']

# What `runs`, `headline`, `plots` and `report_traces` read of an eval.json.
SCHEMA = {
  'name': str,
  'algorithm': str,
  'num_problems': int,
  'num_clusters': int,
  'horizon': int,
  'max_episodes': int,
  'seed': int,
  'machine': str,
  'measured': dict,
  'budgets': list,
  'accuracy_at_budget': list,
  'tokens_at_budget': list,
  'accuracy_low': list,
  'accuracy_high': list,
  'regret_at_budget': list,
  'forced_at_budget': dict,
  'scalars': dict,
  'regrets': dict,
  'success_rates': dict,
  'difficulty': dict,
  'per_problem': dict,
  'stopping': dict,
  'waste': dict,
  'prover': dict,
  'traces': list,
}
INTERVALS = [
  'accuracy',
  'reward',
  'regret_token_weighted',
  'regret_normalized',
]
HORIZON = 27  # of the `:tiny` configs: 3 episodes of 9


def numbers_in(value):
  """Every number in nested dicts and lists."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return [x for part in value for x in numbers_in(part)]
  return [value] if isinstance(value, int | float) else []


def params_of(trained):
  """The parameters that a run ended with."""
  like = setup_run.abstract_params(trained.config)
  return weights.init_from(f'{trained.folder}@last', like)


def run_evaluate(trained, **changes):
  """`evaluate` of a run, small."""
  options = {'num_problems': 10, 'batch_size': 16, 'samples': 4}
  options |= {'sample_problems': 4, 'name': 'MRT', 'algorithm': 'mrt'}
  return evaluation.evaluate(
    trained.config, params_of(trained), **options | changes
  )


@pytest.fixture(scope='module')
def result(trained, small):
  """eval.json of the trained policy, as it is read back."""
  del small
  return json.loads(json.dumps(run_evaluate(trained)))


# ---- batches of problems

problem_batches = functools.partial(
  held_out.problem_batches, record_arrays=countdown.record_arrays
)


def problems_of(trained, number, batch_size=4):
  """The first test problems of a run."""
  kit = setup_run.task_kit(trained.config)
  return evaluation.Problems(source_of(trained), kit, number, batch_size)


def source_of(trained):
  """The test split of a run's problems."""
  return setup_run.load_problems(trained.config, 'test')


def test_stack():
  records = [{'a': np.array([1, 2]), 'b': np.array(i)} for i in range(3)]
  batch = held_out.stack(records)
  assert batch['a'].tolist() == [[1, 2]] * 3
  assert batch['b'].tolist() == [0, 1, 2]


def test_the_last_batch_is_filled_up(trained, small):
  source = source_of(trained)
  batches = problem_batches(source, num_problems=5, batch_size=4)
  assert [b['problem'].tolist() for b in batches] == [
    [0, 1, 2, 3],
    [4, 0, 1, 2],
  ]
  assert [b['counts'].tolist() for b in batches] == [
    [True] * 4,
    [True, False, False, False],
  ]
  assert {b['prompts'].shape for b in batches} == {(4, 7)}
  # 5 x 2 rows in batches of 4: two are left over.
  batches = problem_batches(source, num_problems=5, batch_size=4, repeats=2)
  rows = np.concatenate([b['problem'] for b in batches])
  assert rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]
  assert np.concatenate([b['counts'] for b in batches]).sum() == 10


def test_one_small_batch_may_repeat_its_problems(trained, small):
  (batch,) = problem_batches(source_of(trained), num_problems=2, batch_size=5)
  assert batch['problem'].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_problems': 0, 'batch_size': 4}, 'num_problems=0: the split holds'),
    ({'num_problems': 10**6, 'batch_size': 4}, 'num_problems=1000000: the'),
    ({'num_problems': 4, 'batch_size': 0}, 'batch_size must be'),
    ({'num_problems': 4, 'batch_size': 4, 'repeats': 0}, 'repeats must be'),
  ],
)
def test_sizes_out_of_range(options, message, trained, small):
  with pytest.raises(ValueError, match=message):
    problem_batches(source_of(trained), **options)


# ---- measuring


def fake_calls(seen):
  """Calls whose trace i is full of its own row number."""

  def generate(params, batch, key, offset):
    del params, key
    assert set(batch) & {'problem', 'counts'} == set()
    rows = len(batch['prompts'])
    seen.append(offset)
    number = jnp.arange(rows)[:, None] + offset + jnp.zeros((rows, 9), int)
    yes = jnp.ones((rows, 9), bool)
    return types.SimpleNamespace(
      tokens=number, token_mask=yes, mask=yes, thinking_mask=yes,
      forced=yes[:, 0], truncated=yes[:, 0],
    ), 'cache'  # fmt: skip

  def prove(params, batch, traces, cache, key, offset):
    del params, batch, key
    assert cache == 'cache'
    number = traces.tokens[:, 0]
    return types.SimpleNamespace(
      rewards=number * 1.0,
      success=number[:, None] * jnp.ones((1, 4)),
      episodes=types.SimpleNamespace(ends=traces.tokens[:, :4], count=number),
      stop_index=number,
    )

  return {'generate': generate, 'prove': prove}


def test_measure_drops_the_filler_and_counts_rows_on(trained, small):
  batches = problem_batches(source_of(trained), num_problems=5, batch_size=4)
  offsets = []
  found = held_out.measure(
    fake_calls(offsets), None, batches, jax.random.key(0)
  )
  # Row i draws from fold_in(key, i), whatever batch it lies in.
  assert offsets == [0, 4]
  assert found['rewards'].tolist() == [0, 1, 2, 3, 4]
  assert found['problem'].tolist() == [0, 1, 2, 3, 4]
  assert all(len(value) == 5 for value in found.values())
  assert all(isinstance(value, np.ndarray) for value in found.values())


def test_samples_do_not_depend_on_the_batch(trained, small):
  task = setup_run.make_task(trained.config)
  model = setup_run.make_model(trained.config, task)
  generate, _ = setup_steps.make_calls(
    trained.config, model, task, group_size=1
  )
  params, tokens = params_of(trained), []
  for size in (16, 4):
    batches = problem_batches(
      source_of(trained), num_problems=10, batch_size=size
    )
    calls = fake_calls([]) | {'generate': CountedJit(generate)}
    calls['prove'] = lambda p, batch, traces, *_: types.SimpleNamespace(
      rewards=traces.tokens[:, 0],
      success=traces.tokens,
      episodes=types.SimpleNamespace(
        ends=traces.tokens, count=traces.tokens[:, 0]
      ),
      stop_index=traces.tokens[:, 0],
    )
    found = held_out.measure(calls, params, batches, jax.random.key(3))
    tokens.append(found['tokens'])
    assert calls['generate'].traces == 1
  assert np.array_equal(*tokens)
  # They are samples: rows differ.
  assert len(np.unique(tokens[0][:, 7:], axis=0)) > 7


def test_the_first_problems_in_batches_no_larger_than_they_are(trained):
  some = problems_of(trained, 10, 16)
  assert [some.first(n).number for n in (4, 99)] == [4, 10]
  rows = lambda problems, **more: [
    len(batch['problem']) for batch in problems.batches(**more)
  ]
  assert rows(some.first(4)) == [4]
  assert rows(some.first(4), repeats=8) == [16, 16]
  assert rows(problems_of(trained, 10, 4)) == [4, 4, 4]


def test_who_only_grades_asks_for_no_j():
  for options in ({'at_budgets': True}, {'base_params': {}}, {'other_key': 1}):
    with pytest.raises(ValueError, match='grade_only measures no J'):
      held_out.measure({}, {}, [], None, grade_only=True, **options)


def test_grading_alone_gives_the_same_rewards(trained, small):
  config = trained.config
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  # Answers that are right by chance are rare: take every other one.
  odd = dataclasses.replace(
    task, verify=lambda ids, mask, _: (ids.sum(-1) % 2).astype(np.float32)
  )
  calls = held_out.make_calls(config, model, odd)
  asked = params_of(trained), jax.random.key(3)
  problems = problems_of(trained, 6)
  whole = problems.measure(calls, *asked)
  graded = problems.measure(calls, *asked, grade_only=True)
  assert 0 < graded['rewards'].mean() < 1
  assert not graded['success'].any()
  assert whole['success'].any()
  for name in set(whole) - {'success'}:
    assert graded[name].tolist() == whole[name].tolist(), name


@pytest.mark.full
def test_grading_text_alone_asks_no_prover(small):
  del small  # its data folder
  config = mrt_qwen3_0p6b.get_config('tiny')
  assert (config.eval.prover, config.prover.boundaries) == ('sampled', 'text')
  task = setup_run.make_task(config)
  assert len(task.stop_ids) > 1
  odd = dataclasses.replace(
    task, verify=lambda ids, mask, _: (ids.sum(-1) % 2).astype(np.float32)
  )
  model = setup_run.make_model(config, task)
  source = setup_run.load_problems(config, 'test')
  problems = evaluation.Problems(source, setup_run.task_kit(config), 4, 4)
  calls = held_out.make_calls(config, model, odd)
  asked = setup_run.initial_params(config), jax.random.key(3)
  whole = problems.measure(calls, *asked)
  graded = problems.measure({**calls, 'prove': None}, *asked, grade_only=True)
  assert 0 < whole['rewards'].mean() < 1
  for name in ('rewards', 'tokens', 'stop_index', 'forced'):
    assert graded[name].tolist() == whole[name].tolist(), name


# ---- eval.json


def test_schema(result, trained, small):
  assert set(result) == set(SCHEMA)
  for key, kind in SCHEMA.items():
    assert isinstance(result[key], kind), key
  assert all(math.isfinite(x) for x in numbers_in(result))
  assert result['num_problems'] == 10
  assert result['horizon'] == HORIZON
  assert result['measured'] == {
    'weights': eval_partial.digest_of(params_of(trained)),
    'temperature': 1.0,
    'top_p': None,
    'top_k': None,
    'prover': 'exact',
  }
  budgets = result['budgets']
  assert (budgets[0], budgets[-1]) == (0, HORIZON)
  assert sorted(set(budgets)) == budgets
  for key in SCHEMA:
    if key.startswith(('accuracy_', 'regret_at')):
      assert len(result[key]) == len(budgets)
  scalars = result['scalars']
  assert set(scalars) == {
    *INTERVALS,
    *('tokens_mean', 'forced_rate', 'pass@k', 'maj@k'),
    *('episodes_well_formed', 'episodes_true'),
    'tokens_to_accuracy',
  }
  for name in INTERVALS:
    low, mean, high = (scalars[name][k] for k in ('low', 'mean', 'high'))
    assert low <= mean <= high
  assert set(scalars['pass@k']) == set(scalars['maj@k']) == {'1', '2', '4'}
  assert set(result['forced_at_budget']) == {'budgets', 'accuracy'}
  assert len(result['forced_at_budget']['budgets']) == 5
  assert result['forced_at_budget']['budgets'][-1] <= HORIZON
  assert set(result['per_problem']) == {
    *('regret_token_weighted', 'accuracy', 'reward', 'tokens', 'cluster'),
    *('boundary_tokens', 'boundary_success'),
  }
  assert {len(v) for v in result['per_problem'].values()} == {10}
  # As many traces as there are problems, 48 at most.
  assert len(result['traces']) == 10
  assert set(result['traces'][0]) == {
    *('prompt', 'success_start', 'episodes', 'answer', 'reward', 'stopped'),
    *('classes', 'stops'),
  }


@pytest.mark.full
def test_beyond_the_budget_and_under_another_prover(result, trained, small):
  """The own policy as base prover, from the trace's tokens and not its cache,
  finds what was found; traces that are kept thinking reach every horizon."""
  found = run_evaluate(
    trained,
    extrapolate=(2, 3),
    extrapolate_problems=6,
    base_params=params_of(trained),
  )
  assert {k: found[k] for k in result} == result
  frozen = found['base_prover']
  # J of this policy is minute: only relative differences would show.
  own = result['scalars']
  assert frozen['accuracy'] == pytest.approx(own['accuracy'], rel=1e-3)
  np.testing.assert_allclose(
    frozen['accuracy_at_budget'], result['accuracy_at_budget'], rtol=1e-3
  )
  more = found['extrapolation']
  assert more['num_problems'] == 6
  assert more['factors'] == [1, 2, 3]
  assert more['horizons'] == [HORIZON, 2 * HORIZON, 3 * HORIZON]
  assert more['budgets'][-1] == 3 * HORIZON
  assert np.shape(more['per_problem']) == (3, 6)
  assert all(0 <= x['mean'] <= 1 for x in more['regret_token_weighted'])


def test_exact_and_sampled_answers_are_compared(result, trained, small):
  """The mean over a trace's boundaries of what either prover says of them."""
  assert result['prover'] == {'kind': 'exact', 'training': 'exact'}
  config = trained.config
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  # Answers that are right by chance are rare: take all that are not empty.
  generous = dataclasses.replace(
    task, verify=lambda ids, mask, _: mask.any(-1).astype(np.float32)
  )
  calls = held_out.make_calls(config, model, generous)
  gap = evaluation.compared(
    problems_of(trained, 6), calls, params_of(trained), jax.random.key(1)
  )
  assert gap['problems'] == 6
  assert gap['sampled']['mean'] == 1
  assert 0 <= gap['exact']['mean'] < 0.5
  assert gap['difference']['mean'] == pytest.approx(gap['exact']['mean'] - 1)


@pytest.mark.full
def test_a_comparison_of_provers_changes_nothing_else(result, trained, small):
  told = []
  found = run_evaluate(
    trained, compare_provers=4, progress=lambda *args: told.append(args)
  )
  measured = list(dict.fromkeys(what for what, _, _ in told))
  assert measured == ['J along traces', 'both provers', 'pass@k']
  assert all(0 < done <= total for _, done, total in told)
  assert all((what, total, total) in told for what, _, total in told)
  prover = found['prover']
  assert {k: found[k] for k in result if k != 'prover'} == {
    k: v for k, v in result.items() if k != 'prover'
  }
  assert prover['gap']['problems'] == 4
  assert prover['branches'] == trained.config.prover.num_branches


def test_without_listed_answers_nothing_is_compared():
  record = {'answer_mask': np.zeros((2, 3), bool)}
  kit = types.SimpleNamespace(record_arrays=lambda _: record)
  problems = evaluation.Problems([{}] * 4, kit, 4, 4)
  with pytest.raises(ValueError, match='none of these problems lists'):
    evaluation.compared(problems, {}, {}, None)


def test_traces_are_kept_thinking(trained, small):
  task = setup_run.make_task(trained.config)
  model = setup_run.make_model(trained.config, task)
  calls = held_out.make_calls(trained.config, model, task, factor=3)
  batches = held_out.problem_batches(
    source_of(trained),
    record_arrays=countdown.record_arrays,
    num_problems=6,
    batch_size=6,
  )
  found = held_out.measure(
    calls, params_of(trained), batches, jax.random.key(1)
  )
  assert (found['thinking_mask'].sum(1) == 3 * HORIZON).all()
  assert found['forced'].all()
  assert found['success'].shape == (6, 3 * 3 + 1)
  thoughts = found['tokens'][found['thinking_mask']]
  assert not {task.think_end_id, task.eos_id} & set(thoughts.tolist())


def test_the_report_takes_it(result):
  base = result | {'name': 'base', 'algorithm': 'base'}
  rows = headline.headlines([base, result])
  assert [row.name for row in rows] == ['base', 'MRT']
  stated = result['scalars']['regret_token_weighted']
  assert rows[1].regret.mean == stated['mean']
  assert rows[1].change.mean == 0  # it is compared with itself
  assert rows[1].pass_at[0] == 4


def test_one_seed_one_result(result, trained, small):
  again = json.loads(json.dumps(run_evaluate(trained)))
  assert again == result


def measured_by_hand(rows, seed=0):
  """What `measure` returns, made up: J that rises over 3 episodes of 9."""
  rng = np.random.default_rng(seed)
  count = rng.integers(0, 4, rows)
  success = np.sort(rng.uniform(size=(rows, 4)), 1).astype(np.float32)
  at = np.minimum(np.arange(4), count[:, None])
  # Past count the last boundary repeats.
  success = np.take_along_axis(success, at, 1)
  ends = 6 + 9 * at
  tokens = np.full((rows, 7 + HORIZON + 7), tokenizer.YES)
  tokens[:, :7] = tokenizer.encode('<bos> 3 5 7 = 9 <think>')
  return {
    'tokens': tokens,
    'token_mask': np.ones(tokens.shape, bool),
    'mask': np.ones(tokens.shape, bool),
    'thinking_mask': np.arange(tokens.shape[1]) < 9 * count[:, None],
    'rewards': (rng.uniform(size=rows) < 0.5).astype(np.float32),
    'success': success,
    'ends': ends.astype(np.int32),
    'count': count.astype(np.int32),
    'stop_index': ends[:, -1] + 1,
    'forced': count == 3,
    'truncated': np.zeros(rows, bool),
    'problem': np.arange(rows),
    'budget_success': success,
    'budget_ends': ends,
    'budget_tokens': np.zeros(rows, np.int32),
  }


def asked_for(found, *, at_budgets, **_):
  """What `_measure_batch` gives of it."""
  return {
    k: v for k, v in found.items() if at_budgets or not k.startswith('budget_')
  }


def test_regret_is_that_of_the_public_function():
  found = measured_by_hand(200)
  on_device = regret.token_weighted(
    jnp.asarray(found['success']), jnp.asarray(found['ends']), horizon=HORIZON
  )
  np.testing.assert_allclose(
    held_out.regrets(found, HORIZON), on_device, atol=1e-6
  )
  total = held_out.summary(found, HORIZON)['eval/regret_token_weighted']
  assert total == pytest.approx(float(on_device.mean()), abs=1e-6)


def test_one_trace_by_hand():
  found = {
    # J: 0.1 at the prompt, 0.5 after 9 tokens, 0.9 from 18 tokens on.
    'success': np.array([[0.1, 0.5, 0.9, 0.9]], np.float32),
    'ends': np.array([[6, 15, 24, 24]]),
    'count': np.array([2]),
    'rewards': np.array([1.0]),
    'thinking_mask': np.arange(41)[None] < 18,
  }
  # (9 (1 - 0.1) + 9 (1 - 0.5) + 9 (1 - 0.9)) / 27 = (0.9 + 0.5 + 0.1) / 3
  assert held_out.regrets(found, HORIZON)[0] == pytest.approx(0.5)
  assert held_out.final_success(found).tolist() == pytest.approx([0.9])
  assert held_out.summary(found, HORIZON) == pytest.approx(
    {
      'eval/accuracy': 0.9,
      'eval/reward_mean': 1.0,
      'eval/regret_token_weighted': 0.5,
      'eval/tokens_mean': 18.0,
    }
  )


def test_evaluate_puts_together_what_was_measured(trained, small, monkeypatch):
  made = {}

  def measure(
    calls,
    params,
    batches,
    key,
    *,
    at_budgets=False,
    grade_only=False,
    base_params=None,
    on_batch=None,
  ):
    del calls, params, key, base_params, on_batch
    assert at_budgets != grade_only  # pass@k has no need of J
    rows = int(sum(b['counts'].sum() for b in batches))
    found = measured_by_hand(rows, seed=int(at_budgets))
    return made.setdefault(at_budgets, found)

  monkeypatch.setattr(held_out, 'measure', measure)
  result = run_evaluate(trained, num_problems=60)
  found, many = made[True], made[False]
  success, ends = jnp.asarray(found['success']), jnp.asarray(found['ends'])
  on_device = regret.token_weighted(success, ends, horizon=HORIZON)
  own = result['per_problem']
  np.testing.assert_allclose(own['regret_token_weighted'], on_device, atol=1e-6)
  mean = result['scalars']['regret_token_weighted']['mean']
  assert mean == pytest.approx(float(on_device.mean()), abs=1e-6)
  # The regret curve ends in the headline.
  assert result['regret_at_budget'][-1] == pytest.approx(mean, abs=1e-9)
  rows = np.arange(60)
  final = found['success'][rows, found['count']]
  assert own['accuracy'] == final.tolist()
  assert own['tokens'] == (9 * found['count']).tolist()
  # Accuracy at a budget by a loop: the last boundary that it reaches.
  for budget, value in zip(result['budgets'], result['accuracy_at_budget']):
    spent = found['ends'] - found['ends'][:, :1]
    reached = [
      found['success'][i, max(j for j in range(4) if spent[i, j] <= budget)]
      for i in rows
    ]
    assert value == pytest.approx(np.mean(reached))
  spent = [np.minimum(9 * found['count'], b).mean() for b in result['budgets']]
  assert result['tokens_at_budget'] == pytest.approx(spent)
  # Sixteen points of the curve, joined by lines from (0, 0).
  at = np.arange(17) * HORIZON / 16
  curve = [result['accuracy_at_budget'][int(b)] for b in at]
  area = np.trapezoid([0, *curve[1:]], at) / HORIZON
  normalized = result['scalars']['regret_normalized']
  assert normalized['mean'] == pytest.approx(1 - area, abs=1e-6)
  assert normalized['low'] < normalized['mean'] < normalized['high']
  assert result['scalars']['forced_rate'] == np.mean(found['count'] == 3)
  # 4 problems x 4 samples; pass@1 is the mean, pass@4 the share ever right.
  right = many['rewards'].reshape(4, 4) >= 1
  scalars = result['scalars']
  assert scalars['pass@k']['1'] == pytest.approx(right.mean())
  assert scalars['pass@k']['4'] == pytest.approx(right.any(1).mean())
  # Every class of trace that there is is among the traces that are kept, the
  # first twelve problems in front.
  names = ('success', 'ends', 'count', 'forced')
  classes = waste.trace_classes(*map(found.get, names), horizon=HORIZON)
  kept = waste.chosen(classes)
  assert kept[:12] == list(range(12))
  texts = [trace_text.describe(found, i) for i in kept]
  assert result['traces'] == [
    text | {'classes': classes[i], 'stops': {}} for text, i in zip(texts, kept)
  ]
  clusters = np.asarray(own['cluster'])
  counted = waste.summary(found, horizon=HORIZON, clusters=clusters)
  assert result['waste'] == counted
  assert 0 < counted['categories']['any']['share']['mean'] < 1


# ---- stopped, and gone on with


class Stopped(Exception):
  """What stands for a signal."""


def resumable(trained, folder, monkeypatch, *, stop_after=None, **changes):
  """`evaluate` with batches of 4; returns result, batches measured, messages.

  What is measured is made up, and other in each batch.
  """
  measured, told, lines = [], [], []

  def measure_batch(calls, params, batch, key, offset, **options):
    del calls, params, key
    measured.append((offset, options['grade_only']))
    found = measured_by_hand(4, seed=offset + 100 * options['grade_only'])
    found = asked_for(found, **options) | {'problem': batch['problem']}
    return {k: v[batch['counts']] for k, v in found.items()}

  def progress(*args):
    told.append(args)
    if len(told) == stop_after:
      raise Stopped

  def keep(identity):
    return eval_partial.Partial(folder, identity, say=lines.append)

  with monkeypatch.context() as patch:
    patch.setattr(held_out, '_measure_batch', measure_batch)
    try:
      result = run_evaluate(
        trained, batch_size=4, keep=keep, progress=progress, **changes
      )
    except Stopped:
      result = None
  return result, measured, lines


@pytest.mark.parametrize('stop_after', [1, 2, 3, 5])
def test_a_stopped_evaluation_goes_on_bit_for_bit(
  stop_after, trained, small, tmp_path, monkeypatch
):
  whole, batches, _ = resumable(trained, tmp_path / 'whole', monkeypatch)
  # 10 problems, then 4 x 4 traces, in batches of 4.
  assert batches == [
    *((offset, False) for offset in (0, 4, 8)),
    *((offset, True) for offset in (0, 4, 8, 12)),
  ]
  folder = tmp_path / 'part'
  options = {'stop_after': stop_after}
  none, first, _ = resumable(trained, folder, monkeypatch, **options)
  assert none is None
  assert first == batches[:stop_after]
  again, rest, lines = resumable(trained, folder, monkeypatch)
  assert rest == batches[stop_after:]
  assert json.dumps(again) == json.dumps(whole)
  assert lines == [
    f'going on behind {stop_after} finished batches, kept in {folder}'
  ]


def test_what_is_kept_of_another_evaluation_is_not_gone_on_with(
  trained, small, tmp_path, monkeypatch
):
  folder = tmp_path / 'part'
  for changes, said in (
    ({'seed': 2}, 'seed 1, now 2'),
    ({'num_problems': 9}, 'num_problems 10, now 9'),
    ({'samples': 2}, 'samples 4, now 2'),
  ):
    resumable(trained, folder, monkeypatch, stop_after=2)
    _, batches, lines = resumable(trained, folder, monkeypatch, **changes)
    assert len(batches) >= 5
    assert said in lines[0]
    assert 'measured anew' in lines[0]
  # Nor that of other weights.
  resumable(trained, folder, monkeypatch, stop_after=2)
  params = params_of(trained)
  name = min(params)
  other = params | {name: jax.tree.map(lambda x: x + 1, params[name])}
  monkeypatch.setitem(globals(), 'params_of', lambda _: other)
  _, batches, lines = resumable(trained, folder, monkeypatch)
  assert len(batches) == 7
  assert 'weights' in lines[0]


@pytest.mark.full
def test_a_stopped_evaluation_of_a_model_goes_on(trained, small, tmp_path):
  """All that is measured of one, with nothing made up."""
  told = []

  def stop(*args):
    told.append(args)
    if args[:2] == ('votes at boundaries', 2):
      raise Stopped

  options = {
    'num_problems': 6,
    'batch_size': 2,
    'votes': 2,
    'extrapolate': (2,),
    'extrapolate_problems': 4,
    'base_params': params_of(trained),
    'compare_provers': 2,
  }
  whole = run_evaluate(trained, **options)
  keep = lambda identity: eval_partial.Partial(tmp_path, identity)
  with pytest.raises(Stopped):
    run_evaluate(trained, keep=keep, progress=stop, **options)
  kept = sorted(path.stem for path in tmp_path.rglob('*.npz'))
  assert {stem.partition('-')[0] for stem in kept} == {
    *('traces', 'longer', 'provers', 'samples', 'votes'),
  }
  times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npz')}
  again = run_evaluate(trained, keep=keep, **options)
  assert json.dumps(again) == json.dumps(whole)
  # None of them was measured, and so written, again.
  assert all(path.stat().st_mtime_ns == at for path, at in times.items())


def test_a_kept_batch_of_other_arrays_is_measured_again(
  trained, small, tmp_path, monkeypatch
):
  whole, batches, _ = resumable(trained, tmp_path, monkeypatch)
  file = next(tmp_path.rglob('traces-00001.npz'))
  part = dict(np.load(file))
  del part['budget_tokens']  # no figure of an evaluation is made of it
  np.savez(file, **part)
  again, rest, _ = resumable(trained, tmp_path, monkeypatch)
  assert rest == batches[1:2]
  assert again == whole


def test_kept_batches_of_other_code_are_not_gone_on_with(
  trained, small, tmp_path, monkeypatch
):
  resumable(trained, tmp_path, monkeypatch, stop_after=2)
  monkeypatch.setattr(eval_partial, 'code_digest', lambda: 'of other code')
  _, batches, lines = resumable(trained, tmp_path, monkeypatch)
  assert len(batches) == 7
  assert 'code' in lines[0]


# ---- traces as text

N = tokenizer.integer
T = tokenizer


def test_describe():
  prompt = [T.BOS, N(7), N(5), N(3), T.EQUALS, N(9), T.THINK]
  plus, minus = tokenizer.PLUS, tokenizer.MINUS
  wrong = [N(7), N(5), plus, N(12), N(3), plus, N(15), T.NO, T.DELIMITER]
  right = [N(7), N(5), plus, N(12), N(3), minus, N(9), T.YES, T.DELIMITER]
  answer = [N(7), N(5), plus, N(3), minus, T.EOS]
  tokens = [T.PAD, *prompt, *wrong, *right, T.END_THINK, *answer, T.PAD]
  # A padded prompt of 8, two episodes of 9, the marker in column 26.
  arrays = {
    'tokens': np.array([tokens]),
    'token_mask': np.array([tokens]) != T.PAD,
    'forced': np.array([False]),
    'rewards': np.array([1.0], np.float32),
    'success': np.array([[0.125, 0.25, 0.75, 0.75]], np.float32),
    'ends': np.array([[7, 16, 25, 25]]),
    'count': np.array([2]),
    'stop_index': np.array([26]),
  }
  assert trace_text.describe(arrays, 0) == {
    'prompt': '<bos> 7 5 3 = 9 <think>',
    'success_start': 0.125,
    'episodes': [
      {
        'text': '7 5 + 12 3 + 15 no ;',
        'success': 0.25,
        'progress': 0.125,
        'tokens': 9,
      },
      {
        'text': '7 5 + 12 3 - 9 yes ;',
        'success': 0.75,
        'progress': 0.5,
        'tokens': 9,
      },
    ],
    'answer': '7 5 + 3 - <eos>',
    'reward': 1.0,
    'stopped': 'policy',
  }
  # Without a thought, and without an answer.
  arrays |= {'count': np.array([0]), 'forced': np.array([True])}
  arrays |= {'stop_index': np.array([len(tokens)])}
  none = trace_text.describe(arrays, 0)
  assert (none['episodes'], none['answer']) == ([], '')
  assert none['stopped'] == 'budget'


def test_sampled_traces_add_up(result):
  for trace in result['traces']:
    assert trace['prompt'].startswith('<bos>')
    total = trace['success_start'] + sum(
      e['progress'] for e in trace['episodes']
    )
    ends = [trace['success_start'], *(e['success'] for e in trace['episodes'])]
    assert total == pytest.approx(ends[-1], abs=1e-6)
    assert sum(e['tokens'] for e in trace['episodes']) <= HORIZON


def test_clusters_are_problems_in_any_order():
  record = lambda numbers, target: {
    'numbers': np.array(numbers),
    'target': np.array(target),
  }
  source = [
    record([1, 2, 3], 6),
    record([4, 5, 6], 15),
    record([3, 1, 2], 6),
    record([3, 1, 2], 0),
  ]
  kit = types.SimpleNamespace(cluster_key=countdown.cluster_key)
  ids = evaluation.Problems(source, kit, 4, 4).clusters.tolist()
  assert ids[0] == ids[2]
  assert len(set(ids)) == 3
  # An id says which problem it is, whatever else the data set holds.
  first = evaluation.Problems(source, kit, 4, 4).first(2)
  assert first.clusters.tolist() == ids[:2]


# ---- training measures the same


def test_training_logs_what_evaluate_measures(trained, small):
  """The last row of the log is `summary` on the validation split."""
  calls = held_out.make_calls(
    trained.config,
    *(lambda task: (setup_run.make_model(trained.config, task), task))(
      setup_run.make_task(trained.config)
    ),
  )
  batches = problem_batches(
    setup_run.load_problems(trained.config, 'validation'),
    num_problems=16,
    batch_size=16,
  )
  key = jax.random.key(trained.config.seed)
  found = held_out.measure(calls, params_of(trained), batches, key)
  row = metrics.read_metrics(trained.folder / 'metrics.jsonl')[-1]
  shares = held_out.episode_shares(found, trained.config)
  assert held_out.summary(found, HORIZON) | shares == {
    k: v for k, v in row.items() if k.startswith('eval/')
  }
  assert set(shares) == {'eval/episodes_well_formed', 'eval/episodes_true'}
  assert found['success'].shape == (16, 4)
  # The measured J is a probability at each boundary.
  values = statistics.success_at_budgets(
    found['success'], found['ends'], found['count'], budgets=[0, HORIZON]
  )
  assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.full
def test_the_best_policy_of_hidden_has_no_regret_against_the_optimum(small):
  """Its J is measured along real traces, whose tries are random."""
  config = small.config('mrt_hidden')
  task = setup_run.make_task(config)
  kit, n = setup_run.task_kit(config), config.task.n
  source = setup_run.load_problems(config, 'test')
  problems = evaluation.Problems(source, kit, 12 * n, 12 * n)
  gaps = {}
  for name, make in (
    ('optimal', hidden.optimal_policy),
    ('uniform', hidden.uniform_policy),
  ):
    bench = evaluation.Bench(
      config=config,
      params=None,
      task=task,
      model=make(n),
      problems=problems,
      key=jax.random.key(1),
    )
    found = problems.measure(bench.calls, None, bench.key)
    own = eval_regrets.profile(
      found['success'], found['ends'], found['count'], horizon=bench.horizon
    )
    gaps[name] = evaluation._regrets(bench, own)['optimum']
  for form in eval_regrets.FORMS:
    optimal, uniform = gaps['optimal'][form], gaps['uniform'][form]
    assert optimal['low'] < 0 < optimal['high']
    assert uniform['mean'] > optimal['mean']
