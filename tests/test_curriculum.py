"""Tests of meta_rl.curriculum, and of training that follows one."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import after_step, last_state, untimed

from meta_rl import (
  check_config,
  checkpoint,
  costs,
  curriculum,
  held_out,
  setup_run,
  setup_steps,
  signals,
  train,
)

pytest_plugins = ['small_runs']

ARRAY = jnp.asarray


# ---- the rule


@pytest.mark.parametrize(
  'kappa, expected',
  [
    # J(2B) = .5, .55 against kappa .3, kappa .5.
    (1.05, 2),  # .5 > .315, .55 > .525: the largest
    (1.2, 1),  # .5 > .36, .55 <= .6
    (1.7, 0),  # .5 <= .51
  ],
)
def test_choose_by_hand(kappa, expected):
  found = curriculum.choose(
    ARRAY([0.3, 0.5, 0.55]), ARRAY([0.5, 0.55, 0.0]), kappa=kappa
  )
  assert found.dtype == jnp.int32
  assert found == expected


def test_choose_at_the_edges():
  choose = lambda *j: curriculum.choose(*map(ARRAY, j), kappa=1.5)
  # Nothing is ever right: there is no gain, at any budget.
  assert choose([0.0, 0.0], [0.0, 0.0]) == 0
  # Right only with twice the tokens.
  assert choose([0.0, 0.2], [0.1, 0.0]) == 1
  # Equal counts: .75 <= 1.5 x .5.
  assert choose([0.5, 0.9], [0.75, 0.0]) == 0
  # One budget; what is said of twice the last is not looked at.
  assert choose([0.1], [0.9]) == 0


def test_choose_is_the_smallest_that_satisfies():
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(50):
    success = np.sort(rng.random(5)).astype(np.float32)
    doubled = np.append(success[1:], 0.0).astype(np.float32)
    kappa = 1.0 + 0.6 * rng.random()
    fits = [i for i in range(4) if doubled[i] <= np.float32(kappa) * success[i]]
    expected = min([*fits, 4])
    found = curriculum.choose(ARRAY(success), ARRAY(doubled), kappa=kappa)
    assert found == expected
    seen.add(expected)
  assert len(seen) >= 4


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: curriculum.choose(ARRAY([0.1]), ARRAY([0.1]), kappa=1.0),
      'kappa must be > 1',
    ),
    (
      lambda: curriculum.choose(ARRAY([0.1]), ARRAY([0.1, 0.2]), kappa=2.0),
      'doubled must have shape',
    ),
  ],
)
def test_choose_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# ---- its state


def plan(budgets=(10, 20, 50), kappa=1.2, every=5):
  return curriculum.Curriculum(budgets, kappa=kappa, every=every)


def test_a_curriculum_by_hand():
  found = plan()
  assert found.points == (10, 20, 40, 50)
  assert found.budget is None
  assert [step for step in range(1, 12) if found.due(step)] == [5, 10]
  # .3 > 1.2 x .1; .35 <= 1.2 x .3.
  row = found.update({10: 0.1, 20: 0.3, 40: 0.35, 50: 0.6})
  assert found.budget == 20
  assert row == {
    'curriculum/next_budget': 20,
    'curriculum/success': 0.3,
    'curriculum/success_doubled': 0.35,
  }
  row = found.update({10: 0.1, 20: 0.3, 40: 0.5, 50: 0.6})
  assert found.budget == 50
  assert row == {'curriculum/next_budget': 50, 'curriculum/success': 0.6}
  # It may go down again.
  found.update({10: 0.6, 20: 0.6, 40: 0.6, 50: 0.6})
  assert found.budget == 10


def test_state_goes_round():
  found, again = plan(), plan()
  found.update({10: 0.1, 20: 0.3, 40: 0.35, 50: 0.6})
  again.set_state(found.get_state())
  assert again.budget == found.budget == 20
  # A budget that is not declared any more, and none: to be chosen.
  other = plan((10, 50))
  other.set_state(found.get_state())
  assert other.budget is None
  again.set_state({})
  assert again.budget is None


def test_one_budget_is_no_curriculum():
  found = plan((30,))
  assert found.budget == 30
  assert found.points == ()
  assert not any(found.due(step) for step in range(1, 20))
  found.set_state({'budget': 10})
  assert found.budget == 30
  assert found.get_state() == {}


@pytest.mark.parametrize(
  'options, message',
  [
    ({'budgets': ()}, 'increasing numbers of tokens'),
    ({'budgets': (20, 10)}, 'increasing numbers of tokens'),
    ({'budgets': (0, 10)}, 'increasing numbers of tokens'),
    ({'budgets': (4.5, 10)}, 'increasing numbers of tokens'),
    ({'budgets': (10, 30, 50)}, '30 is above half of the last.* 60 tokens'),
    ({'kappa': 1.0}, 'kappa must be > 1'),
    ({'every': 0}, 'every must be >= 1'),
  ],
)
def test_what_is_no_curriculum(options, message):
  with pytest.raises(ValueError, match=message):
    plan(**options)


# ---- from a config


def test_stages_by_hand(small):
  found = setup_steps.stages(small.config('e3', ''))
  assert list(found) == [27, 54, 108]
  assert [c.rollout.thinking_budget for c in found.values()] == [27, 54, 108]
  assert [c.prover.max_episodes for c in found.values()] == [3, 6, 12]
  # Each is a whole config of its own.
  assert all(setup_steps.stages(c).keys() == {b} for b, c in found.items())
  config = small.config('brpo', '', curriculum__budgets=(54, 108))
  budgets = [c.prover.budgets for c in setup_steps.stages(config).values()]
  assert budgets == [(27, 54), (27, 54, 81, 108)]
  check_config.check(config)


def test_without_a_curriculum_there_is_one_stage(small):
  config = small.config('mrt', '')
  (stage,) = setup_steps.stages(config).values()
  assert stage.to_dict() == config.to_dict()


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('mrt', {'budgets': (27,)}, 'give at least two'),
    (
      'mrt',
      {'budgets': (9, 18)},
      'the last of them rollout.thinking_budget=27',
    ),
    ('mrt', {'budgets': (9, 18, 27)}, '18 is above half'),
    ('mrt', {'budgets': (6, 27)}, 'thinking_budget=6 is below one episode'),
    ('e3', {'kappa': 0.9}, 'kappa must be > 1'),
    ('e3', {'every': 3}, 'curriculum.every=3 is no multiple of eval.every=2'),
    ('dapo', {'budgets': (9, 27)}, 'algorithm.max_length=27'),
    ('sft', {'budgets': (9, 27)}, 'is of reinforcement'),
    ('brpo', {'budgets': (10, 27)}, 'curriculum.budgets hold 10'),
  ],
)
def test_what_no_run_can_use(name, changes, message, small):
  changes = {f'curriculum__{key}': value for key, value in changes.items()}
  with pytest.raises(ValueError, match=message):
    check_config.check(small.config(name, **changes))


# ---- a run

# J at 9, 18 and 27 tokens, kappa 1.2: the first asks for 27, the second for 9.
LONG, SHORT = [0.1, 0.5, 0.6], [0.5, 0.5, 0.6]


def scripted(monkeypatch, *values):
  """J at the budgets is what is given, one list a choice; returns what is left.

  Random weights answer right too seldom for a choice that means something.
  """
  left = list(values)
  monkeypatch.setattr(held_out, 'budget_success', lambda _: left.pop(0))
  return left


@pytest.fixture(scope='module')
def straight(small, tmp_path_factory):
  """Four steps: two at 27 tokens, two at 9. Its result, config and J left."""
  config = small.config('e3', checkpoint__every=4)
  with pytest.MonkeyPatch.context() as patch:
    left = scripted(patch, LONG, SHORT, LONG)
    result = small.run(config, tmp_path_factory.mktemp('e3') / 'run')
  assert result.code == signals.EXIT_OK, result.err
  return result, config, left


@pytest.mark.full
def test_traces_are_cut_at_the_chosen_budget(straight):
  result, _, left = straight
  assert left == []
  column = lambda name: [row[name] for row in result.rows]
  assert column('curriculum/budget') == [27, 27, 9, 9]
  # Chosen before step 1, and after steps 2 and 4.
  chosen = [row.get('curriculum/next_budget') for row in result.rows]
  assert chosen == [27, 9, None, 27]
  thoughts = column('rollout/thinking_tokens_mean')
  assert min(thoughts[:2]) > 9 >= max(thoughts[2:])
  # One episode fits.
  assert max(column('rollout/episodes_mean')[2:]) <= 1


@pytest.mark.full
def test_each_budget_is_compiled_once(straight):
  # generate, prove, update and summarize of a budget; generate, prove and prove
  # at budgets of the evaluation. A second budget adds its four, and no more.
  result, _, _ = straight
  assert [row['compile/count'] for row in result.rows] == [7, 7, 11, 11]


@pytest.mark.full
def test_choosing_is_paid_for(straight):
  result, _, _ = straight
  spent = 0
  for row in result.rows:
    parts = sum(row[name] for name in costs.PARTS)
    choosing = row.get(costs.CURRICULUM, 0)
    assert (choosing > 0) == ('curriculum/next_budget' in row)
    assert row['cost/total'] == parts + choosing
    spent += row['cost/total']
    assert row['cost/cumulative'] == spent
  # 16 traces, prompts of 7 tokens: at least these and an answer were fed.
  assert result.rows[0][costs.CURRICULUM] > 16 * 8


@pytest.mark.full
def test_the_budget_survives_a_stop(small, straight, tmp_path, monkeypatch):
  """3 + 1 steps are 4, bit for bit; nothing is chosen where it goes on."""
  wanted, config, _ = straight
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    scripted(patch, LONG, SHORT)
    after_step(patch, 3, lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = small.run(config, folder)
  assert stopped.code == signals.EXIT_INTERRUPTED, stopped.err
  with checkpoint.Checkpointer(folder / 'checkpoints', read_only=True) as saver:
    assert saver.all_steps() == [3]
  left = scripted(monkeypatch, LONG)
  resumed = small.run(config, folder)
  assert resumed.code == signals.EXIT_OK, resumed.err
  assert left == []
  assert untimed(resumed.rows) == untimed(wanted.rows)
  step, state, data_state = last_state(config, folder)
  _, same, same_data = last_state(config, wanted.folder)
  assert step == 4
  assert small.equal(state, same)
  assert data_state == same_data
  assert data_state[train.CURRICULUM] == {'budget': 27}


def test_what_choosing_costs_by_hand():
  # Two traces of 5 and 3 tokens, and probes of 12 and 6.
  measured = {
    'token_mask': np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool),
    'budget_tokens': np.array([12, 6]),
    'budget_success': np.array([[0.5, 0.1, 0.3], [0.5, 0.2, 0.7]]),
  }
  assert held_out.budget_cost(measured) == 26
  # The first column is J before any thought.
  np.testing.assert_allclose(held_out.budget_success(measured), [0.15, 0.5])
  choice = plan((10, 20), kappa=4.0)
  row = train.choose_budget(choice, measured, paid=4.0)
  assert choice.budget == 10  # .5 <= 4 x .15
  assert row[costs.CURRICULUM] == 30


def test_j_at_the_points_is_measured(small):
  """At 9, 18 and 27 tokens: later budgets tell of longer prefixes."""
  config = small.config('e3')
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  points = setup_steps.make_curriculum(config).points
  assert points == (9, 18, 27)
  calls = held_out.make_calls(config, model, task, budgets=points)
  kit = setup_run.task_kit(config)
  batches = held_out.problem_batches(
    setup_run.load_problems(config, 'validation'),
    record_arrays=kit.record_arrays,
    num_problems=16,
    batch_size=16,
  )
  found = held_out.measure(
    calls,
    setup_run.initial_params(config),
    batches,
    jax.random.key(0),
    at_budgets=True,
  )
  spent = found['budget_ends'] - found['budget_ends'][:, :1]
  length = found['thinking_mask'].sum(1)
  for i, point in enumerate((0, *points)):
    np.testing.assert_array_equal(spent[:, i], np.minimum(point, length))
  # Boundaries that exist, times stop and answer tokens of each accepted answer.
  batch = batches[0]
  answers = np.where(
    batch['answer_mask'].any(-1), batch['answer_mask'].sum(-1), 0
  ).sum(1)
  real = 1 + (np.diff(found['budget_ends'], axis=1) > 0).sum(1)
  np.testing.assert_array_equal(found['budget_tokens'], real * answers)
