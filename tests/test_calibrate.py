"""Calibration of a policy, from its traces to a file of stop rules."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from meta_rl import (
  anytime,
  calibrate,
  held_out,
  rollout,
  setup_run,
  stop_figures,
  stop_rules,
  stop_traces,
)
from meta_rl.configs import mrt_countdown

# Five episodes of 9 tokens and half a one; the fourth takes all that is left.
BUDGET, EPISODES = 49, 4


@functools.cache
def world():
  config = mrt_countdown.get_config()
  config.rollout.thinking_budget = BUDGET
  config.prover.max_episodes = EPISODES
  return config, setup_run.initial_params(config)


@functools.cache
def scored(forced=False):
  config, params = world()
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  batches = held_out.problem_batches(
    setup_run.load_problems(config, 'validation'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=12,
    batch_size=8,
  )
  calls = stop_traces.make_calls(config, model, task, forced=forced)
  found = stop_traces.gather(calls, params, batches, jax.random.key(4))
  return task, model, batches, found


@pytest.mark.full
@pytest.mark.parametrize(
  'rule, forced',
  [
    ('confidence', False),
    pytest.param('agreement', True, marks=pytest.mark.soak),
    ('episodes', True),
  ],
)
def test_scored_traces_tell_what_a_rule_does(rule, forced):
  """The simulated rule does what `anytime.generate` does with the same key.

  With a budget that cuts the last episode, and more episodes than are kept.
  """
  config, params = world()
  task, model, batches, found = scored(forced)
  batch = batches[0]
  threshold = {'confidence': 0.5, 'agreement': 2, 'episodes': 2}[rule]
  traces, looks = anytime.generate(
    model,
    params,
    batch['prompts'],
    batch['prompt_mask'],
    jax.random.key(4),
    rule=rule,
    threshold=threshold,
    thinking_budget=BUDGET,
    answer_length=task.answer_length,
    eos_id=task.eos_id,
    think_end_id=task.think_end_id,
    delimiter_ids=task.delimiter_ids,
    min_thinking=BUDGET if forced else None,
    max_looks=EPISODES - 1,
  )
  result = stop_figures.outcome(rule, found, [threshold])
  thinking = np.asarray(traces.thinking_mask).sum(1)
  np.testing.assert_array_equal(result.thinking[0, :8], thinking)
  np.testing.assert_array_equal(result.probing[0, :8], looks.probe_tokens)
  stopped = np.asarray(looks.stopped)
  assert 0 < stopped.sum() < 8 or forced
  answers = rollout.answers_of(
    traces, batch['prompts'].shape[1] + thinking, task.answer_length
  )
  rows = {k: v for k, v in batch.items() if k not in ('problem', 'counts')}
  right = task.verify(*answers, rows) >= 1
  np.testing.assert_array_equal(result.right[0, :8], right)


def test_episodes_that_end_elsewhere_are_refused():
  config, _ = world()
  task = dataclasses.replace(scored()[0], segment=lambda *a, **k: None)
  config = config.copy_and_resolve_references()
  config.prover.boundaries = 'text'
  with pytest.raises(ValueError, match="set it to 'delimiters'"):
    stop_traces.make_calls(config, scored()[1], task)


def test_the_two_kinds_are_one_trace_up_to_the_own_stop():
  own, forced = scored()[3], scored(True)[3]
  for b in range(12):
    # The last episode takes all that is left, which is more when forced.
    seen = slice(0, min(own['count'][b], EPISODES - 1) + 1)
    for name in ('thought', 'right'):
      np.testing.assert_array_equal(own[name][b, seen], forced[name][b, seen])
    np.testing.assert_allclose(
      own['success'][b, seen], forced['success'][b, seen], atol=1e-4
    )
  assert (forced['count'] == EPISODES).all()
  assert own['count'].min() < EPISODES
  assert own['problem'].tolist() == list(range(12))


def test_several_traces_of_a_problem():
  config, _ = world()
  batches = calibrate._problems(config, 'validation', 5, 9, 4)
  problems = np.concatenate([b['problem'][b['counts']] for b in batches])
  # 9 traces of 5 problems: two of each
  assert problems.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_right_and_j_agree():
  """A greedy answer of chance above a half is what J is made of."""
  found = scored(True)[3]
  sure = found['confidence'] > 0.9
  assert sure.sum() >= 5
  gap = found['success'] - found['right']
  assert np.abs(gap[sure]).max() < 0.11


@pytest.mark.full
def test_calibrate_and_its_file(tmp_path):
  config, params = world()
  small = {'fit_problems': 40, 'num_traces': 60, 'batch_size': 20}
  told = []
  rules = calibrate.calibrate(
    config,
    params,
    alpha=0.2,
    progress=lambda *what: told.append(what),
    **small,
  )
  assert rules.about['traces'] == 60
  assert told[0][0] == 'fitting (own)'
  assert {(c['rule'], c['mode']) for c in rules.choices} == {
    (rule, mode) for rule in calibrate.RULES for mode in stop_traces.MODES
  }
  budget = next(c for c in rules.choices if c['rule'] == 'episodes')
  # An early stop after some number of episodes spoils less than a fifth.
  assert 0 < budget['threshold'] < EPISODES
  assert budget['risk'] <= 0.2
  assert budget['equal_accuracy'] is not None
  text = calibrate.table(rules)
  assert text.count('\n') == 8
  assert 'own stop: accuracy' in text
  stop_rules.save(tmp_path / 'rules', rules)
  assert stop_rules.load(tmp_path / 'rules').choices == rules.choices


@pytest.mark.parametrize(
  'options, said',
  [
    ({'alpha': 0.0}, 'alpha must be'),
    ({'delta': 1.0}, 'delta must be'),
    ({'fit_problems': 3}, 'fit_problems'),
    ({'num_traces': 0}, 'num_traces'),
    ({'seed': -1}, 'seed'),
  ],
)
def test_bad_input(options, said):
  config, params = world()
  with pytest.raises(ValueError, match=said):
    calibrate.calibrate(config, params, **options)


def test_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
  from absl import flags

  values = flags.FlagValues()
  monkeypatch.setattr(calibrate, 'FLAGS', values)
  for name, value in (
    ('workdir', str(tmp_path / 'none')),
    ('config', None),
    ('base', False),
    ('which', 'last'),
  ):
    define = flags.DEFINE_bool if value is False else flags.DEFINE_string
    define(name, value, '', flag_values=values)
  values(['calibrate'])

  def out_of_memory(*args, **options):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED:\n9 bytes')

  monkeypatch.setattr(calibrate.heap, 'keep_memory', lambda: False)
  with monkeypatch.context() as patch:
    patch.setattr(calibrate.evaluate, 'policy', out_of_memory)
    with pytest.raises(SystemExit) as left:
      calibrate.main(['calibrate'])
  assert left.value.code == 1
  assert capsys.readouterr().err == (
    'error: out of memory (RESOURCE_EXHAUSTED: 9 bytes): lower --batch_size.\n'
  )
  with pytest.raises(SystemExit) as left:
    calibrate.main(['calibrate'])
  assert left.value.code == 1
  assert capsys.readouterr().err.startswith('error: ')
  assert not (tmp_path / 'none').exists()
