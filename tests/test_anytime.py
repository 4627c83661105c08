"""Sampling under a stop rule, against what is known of whole traces."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import (
  anytime,
  calibration,
  held_out,
  probes,
  prover,
  rollout,
  setup_run,
  stopping,
)
from meta_rl.configs import mrt_countdown
from meta_rl.scoring import positions_of

BUDGET, ROWS, LOOKS = 45, 12, 8


@functools.cache
def world():
  """The shipped base policy and some problems, prompts padded by a column."""
  config = mrt_countdown.get_config()
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  source = setup_run.load_problems(config, 'validation')
  batch = held_out.problem_batches(
    source,
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=ROWS,
    batch_size=ROWS,
  )[0]
  left = lambda x: jnp.pad(jnp.asarray(x), ((0, 0), (1, 0)))
  prompts, mask = left(batch['prompts']), left(batch['prompt_mask'])
  return task, model, setup_run.initial_params(config), prompts, mask


@functools.cache
def whole(forced=False):
  """Traces thought to their end, and scores at all of their boundaries."""
  task, model, params, prompts, mask = world()
  traces = rollout.generate(
    model,
    params,
    prompts,
    mask,
    jax.random.key(3),
    max_new_tokens=BUDGET + 1 + task.answer_length,
    eos_id=task.eos_id,
    think_end_id=task.think_end_id,
    thinking_budget=BUDGET,
    min_thinking=BUDGET if forced else None,
  )
  start = prompts.shape[1] - 1
  boundary = traces.thinking_mask & (traces.tokens == task.delimiter_ids[0])
  columns = [np.flatnonzero(row).tolist() for row in np.asarray(boundary)]
  count = np.array([len(c) for c in columns])
  ends = np.array(
    [[start, *c, *[c[-1] if c else start] * 9][:9] for c in columns]
  )
  answers, given, log_probs = prover.sample_answers(
    model,
    params,
    traces.tokens,
    traces.token_mask,
    jnp.asarray(ends),
    jax.random.key(0),
    num_branches=1,
    max_answer_len=task.answer_length,
    stop_ids=task.stop_ids,
    eos_id=task.eos_id,
    temperature=0.0,
    return_log_probs=True,
    raw_log_probs=True,
  )
  answers, given = answers[:, :, 0], given[:, :, 0]
  features, _ = probes.features_of(
    model, params, traces.tokens, positions_of(traces.token_mask), None, None
  )
  features = np.take_along_axis(np.asarray(features), ends[..., None], 1)
  scores = {
    'confidence': stopping.confidence(log_probs[:, :, 0], given),
    'agreement': stopping.agreement(answers, given),
    'progress': stopping.progress_index(head(), features, ends - start),
  }
  return {
    'traces': traces,
    'ends': ends,
    'count': count,
    'answers': np.asarray(answers),
    'given': np.asarray(given),
    **{k: np.asarray(x) for k, x in scores.items()},
  }


def head():
  """A head with weights that make its index vary."""
  width = 96
  normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  return stopping.ProgressHead(
    shift=jnp.zeros(width),
    scale=jnp.ones(width) / 10,
    hidden=normal(1, width + 1, 8),
    bias=normal(2, 8),
    out=normal(3, 8, 3),
    out_bias=normal(4, 3),
    horizons=jnp.array([9.0, 18.0]),
    budget=jnp.array(float(BUDGET)),
  )


def run(rule, threshold=None, **options):
  """Returns what `generate` does; thresholds of a rule share a program."""
  params = world()[2]
  call = compiled(rule, tuple(sorted(options.items())))
  return call(params, jax.random.key(3), threshold)


@functools.cache
def compiled(rule, options):
  task, model, _, prompts, mask = world()
  options = {
    'thinking_budget': BUDGET,
    'answer_length': task.answer_length,
    'eos_id': task.eos_id,
    'think_end_id': task.think_end_id,
    'delimiter_ids': task.delimiter_ids,
    'max_looks': LOOKS,
    'head': head() if rule == 'progress' else None,
  } | dict(options)
  return jax.jit(
    lambda params, key, threshold: anytime.generate(
      model,
      params,
      prompts,
      mask,
      key,
      rule=rule,
      threshold=threshold,
      **options,
    )
  )


def middle(rule, found):
  """A threshold between two scores, at which some of the rows stop."""
  real = np.arange(found[rule].shape[1]) <= found['count'][:, None]
  scores = np.unique(found[rule][real])
  at = len(scores) // 2
  return float((scores[at - 1] + scores[at]) / 2)


def expected(rule, threshold, found):
  """Returns (stop i[B], stopped bool[B]) from the scores of whole traces."""
  stop = calibration.threshold_stops(
    rule, found[rule], found['count'], [threshold]
  )[0]
  rows = np.arange(len(stop))
  stopped = np.asarray(stopping.stops(rule, found[rule][rows, stop], threshold))
  return stop, stopped


@pytest.mark.full
@pytest.mark.parametrize(
  'rule, forced',
  [
    ('progress', False),
    ('confidence', False),
    pytest.param('agreement', False, marks=pytest.mark.soak),
    pytest.param('progress', True, marks=pytest.mark.soak),
    ('confidence', True),
    ('agreement', True),
  ],
)
def test_rows_stop_where_their_scores_say(rule, forced):
  found = whole(forced)
  threshold = 2.0 if rule == 'agreement' else middle(rule, found)
  traces, looks = run(rule, threshold, min_thinking=BUDGET if forced else None)
  stop, stopped = expected(rule, threshold, found)
  assert 0 < stopped.sum() < ROWS or forced  # the test can fail
  np.testing.assert_array_equal(looks.stopped, stopped)
  start = found['ends'][0, 0]
  own = np.asarray(found['traces'].thinking_mask).sum(1)
  thought = np.where(stopped, found['ends'][np.arange(ROWS), stop] - start, own)
  np.testing.assert_array_equal(traces.thinking_mask.sum(1), thought)
  # The thoughts are those of the whole traces, cut short.
  mine, whole_ = np.asarray(traces.tokens), np.asarray(found['traces'].tokens)
  for b in range(ROWS):
    end = start + 1 + thought[b]
    np.testing.assert_array_equal(mine[b, :end], whole_[b, :end])
  np.testing.assert_array_equal(looks.count, stop)
  for b in range(ROWS):
    seen = slice(0, stop[b] + 1)
    np.testing.assert_allclose(
      looks.scores[b, seen], found[rule][b, seen], rtol=2e-4, atol=1e-5
    )
    np.testing.assert_array_equal(looks.ends[b, seen], found['ends'][b, seen])
  assert np.isnan(np.asarray(looks.scores)[np.arange(9) > stop[:, None]]).all()
  np.testing.assert_array_equal(looks.late_tokens, 0)


@pytest.mark.parametrize(
  'rule',
  [
    pytest.param('progress', marks=pytest.mark.full),
    'confidence',
    pytest.param('agreement', marks=pytest.mark.full),
  ],
)
def test_the_answer_is_the_greedy_one_of_the_prefix(rule):
  task, found = world()[0], whole()
  threshold = 2.0 if rule == 'agreement' else middle(rule, found)
  traces, looks = run(rule, threshold)
  stop, stopped = expected(rule, threshold, found)
  tokens, real = np.asarray(traces.tokens), np.asarray(traces.token_mask)
  for b in np.flatnonzero(stopped):
    begin = found['ends'][b, stop[b]] + 1
    own = tokens[b, begin:][real[b, begin:]].tolist()
    answer = found['answers'][b, stop[b]][found['given'][b, stop[b]]].tolist()
    assert own == [task.think_end_id, *answer]
  assert np.asarray(traces.forced)[stopped].all()
  assert not np.asarray(traces.truncated)[stopped].any()
  # A greedy answer is no action.
  assert not np.asarray(traces.mask & ~traces.thinking_mask).any()
  assert (
    np.asarray(traces.behavior_log_probs)[~np.asarray(traces.mask)] == 0
  ).all()


def test_the_budget_rule_changes_nothing():
  found = whole()
  traces, looks = run('budget', greedy_answers=False)
  # One is a loop of single steps, the other of eight: compiled apart.
  chex.assert_trees_all_close(traces, found['traces'], atol=1e-4)
  chex.assert_trees_all_equal(traces.tokens, found['traces'].tokens)
  assert not looks.stopped.any()
  assert (looks.count == -1).all()
  assert (looks.probe_tokens == 0).all()


def test_probes_are_paid_for_but_for_the_one_that_is_used():
  found = whole()
  threshold = middle('confidence', found)
  _, looks = run('confidence', threshold)
  stop, stopped = expected('confidence', threshold, found)
  for b in range(ROWS):
    asked = stop[b] + (not stopped[b])  # boundaries 0 ... stop - 1, or stop
    # the marker and the answer without its last token, which is only predicted
    paid = sum(found['given'][b, j].sum() for j in range(asked))
    assert looks.probe_tokens[b] == paid
  _, never = run('confidence', 2.0)
  assert (np.asarray(never.probe_tokens) > 0).all()
  assert not never.stopped.any()


def test_a_look_now_and_then_thinks_on_in_vain():
  found = whole()
  threshold = middle('confidence', found)
  exact, _ = run('confidence', threshold)
  traces, looks = run('confidence', threshold, check_every=4)
  # Only the newest boundary is looked at; with episodes of 9 tokens that is
  # all of them, some tokens late.
  late = np.asarray(looks.late_tokens)
  assert late.max() > 0
  assert (late < 4).all()
  same = np.asarray(looks.stopped)
  np.testing.assert_array_equal(
    np.asarray(traces.tokens)[same], np.asarray(exact.tokens)[same]
  )


def test_looks_at_every_nth_token():
  traces, looks = run(
    'progress', -9.0, delimiter_ids=(), every=5, max_looks=BUDGET
  )
  thought = np.asarray(traces.thinking_mask).sum(1)
  np.testing.assert_array_equal(looks.count, thought // 5)
  start = whole()['ends'][0, 0]
  ends = np.asarray(looks.ends)
  for b in range(ROWS):
    at = np.arange(thought[b] // 5 + 1)
    np.testing.assert_array_equal(ends[b, at], start + 5 * at)


def test_a_stop_before_any_thought():
  traces, looks = run('progress', 9.0)
  assert looks.stopped.all()
  assert (looks.count == 0).all()
  assert not traces.thinking_mask.any()


def test_no_looks_are_left():
  # Stops at the third look behind the first; two are left.
  _, enough = run('episodes', 3.0, max_looks=3)
  assert enough.stopped.any()
  traces, looks = run('episodes', 3.0, max_looks=2)
  assert not looks.stopped.any()
  assert (looks.count <= 2).all()
  plain, _ = run('budget')
  chex.assert_trees_all_equal(traces.tokens, plain.tokens)


@pytest.mark.full
def test_rows_do_not_depend_on_their_neighbours():
  task, model, params, prompts, mask = world()
  threshold = middle('confidence', whole())
  all_, _ = run('confidence', threshold)
  one, _ = anytime.generate(
    model,
    params,
    prompts[5:6],
    mask[5:6],
    jax.random.key(3),
    rule='confidence',
    threshold=threshold,
    thinking_budget=BUDGET,
    answer_length=task.answer_length,
    eos_id=task.eos_id,
    think_end_id=task.think_end_id,
    delimiter_ids=task.delimiter_ids,
    row_offset=5,
  )
  np.testing.assert_array_equal(one.tokens[0], all_.tokens[5])


@pytest.mark.full
def test_group_and_thresholds_of_each_row():
  prompts = world()[3]
  thresholds = jnp.where(jnp.arange(ROWS) % 2 == 0, 0.0, 2.0)
  _, looks = run('confidence', thresholds)
  np.testing.assert_array_equal(looks.stopped, np.arange(ROWS) % 2 == 0)
  traces, _ = run('budget', group_size=2)
  assert len(traces.tokens) == 2 * ROWS
  np.testing.assert_array_equal(traces.tokens[::2, : prompts.shape[1]], prompts)


def test_compiles_once():
  task, model, params, prompts, mask = world()

  @jax.jit
  @chex.assert_max_traces(1)
  def call(params, key, threshold):
    return anytime.generate(
      model,
      params,
      prompts,
      mask,
      key,
      rule='progress',
      head=head(),
      threshold=threshold,
      thinking_budget=18,
      answer_length=task.answer_length,
      eos_id=task.eos_id,
      think_end_id=task.think_end_id,
      delimiter_ids=task.delimiter_ids,
    )

  call(params, jax.random.key(0), 0.1)
  call(params, jax.random.key(1), 0.2)


@pytest.mark.parametrize(
  'rule, options, said',
  [
    ('hope', {}, 'rule must be one of'),
    ('progress', {'head': None}, 'fit one'),
    ('confidence', {'delimiter_ids': ()}, 'give one of them'),
    ('confidence', {'greedy_answers': False}, 'greedy probe'),
    ('confidence', {'threshold': -0.1}, 'threshold must be >= 0'),
    ('agreement', {'threshold': 0}, 'threshold must be >= 1'),
    ('budget', {'thinking_budget': 0}, 'thinking_budget'),
    ('budget', {'threshold': 2.0}, "take 'episodes'"),
    ('progress', {'every': 0}, 'every'),
    ('progress', {'threshold': None}, 'needs a threshold'),
    ('progress', {'threshold': np.zeros((2, 1))}, 'one for each of the 12'),
    ('progress', {'threshold': 'low'}, 'threshold'),
    ('progress', {'threshold': float('nan')}, 'threshold'),
    ('progress', {'max_looks': -1}, 'max_looks'),
    ('progress', {'max_looks': 2.5}, 'max_looks'),
    ('budget', {'min_thinking': 99}, 'min_thinking=99'),
    ('budget', {'wait_ids': (5,)}, 'wait_ids'),
    ('budget', {'eos_id': 999}, 'eos_id=999'),
    ('progress', {'delimiter_ids': (999,)}, r'delimiter_ids\[0\]=999'),
    ('budget', {'group_size': 0}, 'group_size'),
    ('budget', {'check_every': 0}, 'check_every'),
    ('budget', {'answer_length': 0}, 'answer_length'),
  ],
)
def test_bad_input(rule, options, said):
  task, model, params, prompts, mask = world()
  given = {
    'rule': rule,
    'threshold': None if rule == 'budget' else 1.0,
    'head': head(),
    'thinking_budget': BUDGET,
    'answer_length': task.answer_length,
    'eos_id': task.eos_id,
    'think_end_id': task.think_end_id,
    'delimiter_ids': task.delimiter_ids,
  } | options
  with pytest.raises(ValueError, match=said):
    anytime.generate(model, params, prompts, mask, jax.random.key(0), **given)
