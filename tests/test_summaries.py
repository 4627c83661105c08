"""Tests of meta_rl.steps.summaries: forced answers as rows of the update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_steps import (
  DELIMITER,
  EOS,
  MARKER,
  PROBLEMS,
  TOY,
  toy_params,
  toy_task,
)
from toys import SPECIAL, counting_model

from meta_rl import check_config, setup_run, setup_steps, steps
from meta_rl.algorithms import Summaries, summary_advantages
from meta_rl.update import TrainState

# Slow to compile.
pytestmark = pytest.mark.full

pytest_plugins = ['small_runs']
KEY = jax.random.key(3)
BUDGETS, BRANCHES = (2, 4, 6), 8
ROWS = len(BUDGETS) * BRANCHES


@functools.cache
def prove(summaries_per_trace, first=0):
  """TOY has 2, 1, 2, 1 attempts of two tokens; J is known.

  From problem `first` on.
  """
  run = steps.make_prove(
    counting_model(),
    toy_task(),
    group_size=2,
    max_episodes=9,
    kind='sampled',
    num_branches=BRANCHES,
    boundaries='budgets',
    budgets=BUDGETS,
    summaries_per_trace=summaries_per_trace,
  )
  batch = {k: v[first:] for k, v in PROBLEMS.items()}
  traces = jax.tree.map(lambda x: x[2 * first :], TOY)
  return jax.jit(lambda t: run(t, batch, traces, None, KEY, 2 * first))(
    toy_params()
  )


@pytest.mark.full
def test_all_summaries_are_those_of_which_success_is_the_mean():
  found = prove(ROWS)
  picked = found.summaries
  assert picked.tokens.shape == (4, ROWS, 2)
  for b, s in np.ndindex(4, len(BUDGETS)):
    here = np.asarray(picked.budget[b]) == s + 1
    # Each once, and at a budget past the end those of the end again.
    assert here.sum() == BRANCHES
    mean = np.asarray(picked.rewards[b])[here].mean()
    assert mean == pytest.approx(float(found.success[b, s + 1]))
  assert 0 < found.success[0, 3] < 1


def test_summaries_have_the_probabilities_of_the_model():
  picked = prove(ROWS).summaries
  probs = np.exp(toy_params())
  # Trace 0 has 1, 2, 2 SPECIALs at the budgets, trace 1 has one of them.
  seen = np.array([[1, 2, 2], [1, 1, 1]] * 2)
  for b, r in np.ndindex(4, ROWS):
    row = probs[seen[b, int(picked.budget[b, r]) - 1]]
    tokens = np.asarray(picked.tokens[b, r])
    mask = np.asarray(picked.mask[b, r])
    expected = np.log(np.where(mask, row[tokens], 1.0))
    np.testing.assert_allclose(picked.log_probs[b, r], expected, atol=1e-5)
    assert mask[0]
    assert mask[1] == (tokens[0] != EOS)
    right = tokens.tolist() == [3 if b < 2 else 8, EOS]
    assert picked.rewards[b, r] == right


def test_a_share_is_drawn_without_repeats_and_apart_in_each_trace():
  whole, part = prove(ROWS).summaries, prove(7).summaries
  assert part.budget.shape == (4, 7)
  # The answers are the same ones: a part of the pairs, in the pairs' order.
  for b in range(4):
    np.testing.assert_array_equal(part.tokens[b], whole.tokens[b, :7])
  order = np.asarray(whole.budget)
  assert any((order[0] != order[b]).any() for b in (1, 2, 3))


@pytest.mark.full
def test_what_is_drawn_does_not_depend_on_the_batch():
  whole, half = prove(7), prove(7, first=1)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x[2:], y),
    (whole.summaries, whole.success),
    (half.summaries, half.success),
  )


# --- rows ---


def test_summary_rows_by_hand():
  # Trace 0 of the toy, cut after its first attempt and at its end; a stop of
  # two tokens; the answers (3, EOS) and (EOS).
  traces = jax.tree.map(lambda x: x[:1], TOY)
  summaries = Summaries(
    budget=jnp.array([[1, 2]]),
    tokens=jnp.array([[[3, EOS], [EOS, 0]]]),
    mask=jnp.array([[[True, True], [True, False]]]),
    log_probs=jnp.array([[[-0.5, -0.25], [-2.0, 0.0]]]),
    rewards=jnp.array([[1.0, 0.0]]),
  )
  rows = steps.summary_rows(
    traces,
    jnp.array([[0, 2, 4, 4]]),
    summaries,
    jnp.array([[0.7, -0.3]]),
    stop_ids=(MARKER, 9),
    pad_id=1,
  )
  S, D = SPECIAL, DELIMITER
  expected = {
    'tokens': [
      [6, S, D, MARKER, 9, 3, EOS, 1],
      [6, S, D, S, D, MARKER, 9, EOS],
    ],
    'token_mask': [[1] * 7 + [0], [1] * 8],
    'mask': [[0] * 5 + [1, 1, 0], [0] * 7 + [1]],
    'behavior_log_probs': [[0] * 5 + [-0.5, -0.25, 0], [0] * 7 + [-2]],
    'advantages': [[0] * 5 + [0.7, 0.7, 0], [0] * 7 + [-0.3]],
  }
  assert set(rows) == set(expected)
  for name, values in expected.items():
    np.testing.assert_allclose(rows[name][0], values, err_msg=name)


def test_padding_of_the_prompt_stays_padding():
  traces = jax.tree.map(lambda x: x[:1], TOY)
  real = traces.token_mask.at[0, 0].set(False)
  object.__setattr__(traces, 'token_mask', real)
  picked = jax.tree.map(lambda x: x[:1], prove(7).summaries)
  rows = steps.summary_rows(
    traces, jnp.array([[0, 2, 4, 4]]), picked, jnp.ones((1, 7)), stop_ids=(4,)
  )
  assert not rows['token_mask'][0, :, 0].any()
  assert rows['token_mask'][0, :, 1:3].all()


def test_join_rows_keeps_each_trace_with_its_rows():
  batch = {'a': jnp.array([[1, 1], [2, 2]])}
  rows = {'a': jnp.array([[[11, 11], [12, 12]], [[21, 21], [22, 22]]])}
  joined = steps.join_rows(batch, rows)['a']
  np.testing.assert_array_equal(joined[:, 0], [1, 11, 12, 2, 21, 22])
  with pytest.raises(ValueError, match='kl_coef must be 0'):
    steps.join_rows(batch | {'ref_log_probs': batch['a']}, rows)


def test_the_answering_policy_is_trained_at_every_budget():
  """The gradient of the rows in the model's own table, by hand.

  The model answers from the number of SPECIALs alone, so that the gradient in
  row c of its logits is that of the answers written after c of them:
  sum over their tokens of -A (onehot - p), over the number of tokens.
  """
  found = prove(ROWS)
  weights = summary_advantages(found, group_size=2)
  rows = steps.make_rows(toy_task(), group_size=2)(TOY, found)
  flat = {k: x.reshape(-1, x.shape[-1]) for k, x in rows.items()}
  loss_fn = steps.make_loss(counting_model(), aggregate='token_mean')

  def value(params):
    loss, metrics = loss_fn(params, flat)
    return loss.value, metrics

  grad, metrics = jax.jit(jax.grad(value, has_aux=True))(toy_params())
  # What is scored is what was sampled.
  assert metrics['policy/log_prob_gap'].value < 1e-5
  picked = jax.tree.map(np.asarray, found.summaries)
  probs = np.exp(np.asarray(toy_params()))
  seen = np.array([[1, 2, 2], [1, 1, 1]] * 2)
  expected, tokens = np.zeros(probs.shape), picked.mask.sum()
  for b, r, t in np.ndindex(4, ROWS, 2):
    if picked.mask[b, r, t]:
      c = seen[b, picked.budget[b, r] - 1]
      step = np.eye(10)[picked.tokens[b, r, t]] - probs[c]
      expected[c] -= float(weights[b, r]) * step / tokens
  np.testing.assert_allclose(grad, expected, atol=1e-6)
  # Answers at both budgets are trained, those at once (budget 0) are not.
  assert (np.abs(expected[1:]).max(1) > 1e-3).all()
  assert not expected[0].any()


def test_an_update_takes_the_rows_in():
  """make_update with rows sees B * (1 + R) of them."""
  seen = []

  def loss_fn(params, batch):
    seen.append({k: x.shape for k, x in batch.items()})
    raise RuntimeError('enough')

  found = prove(7)
  update = steps.make_update(
    loss_fn,
    optax.sgd(1.0),
    lambda measured, length: jnp.zeros((4, length)),
    steps.make_rows(toy_task(), group_size=2),
  )
  state = TrainState(
    params=toy_params(), opt_state=None, step=jnp.asarray(0), key=KEY
  )
  with pytest.raises(RuntimeError, match='enough'):
    update(state, TOY, found)
  assert set(seen[0].values()) == {(32, 8)}


# --- bad input ---


@pytest.mark.parametrize('number', [-1, ROWS + 1])
def test_a_bad_number_of_summaries_is_refused(number):
  with pytest.raises(
    ValueError, match=f'summaries_per_trace={number}: a trace'
  ):
    prove(number)


def test_summaries_need_a_prover_that_samples():
  with pytest.raises(ValueError, match="kind='sampled', not 'exact'"):
    steps.make_prove(
      None, toy_task(), group_size=1, max_episodes=1, summaries_per_trace=1
    )


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'prover__boundaries': 'delimiters', 'prover__budgets': None},
      "prover.boundaries='budgets', not 'delimiters'",
    ),
    ({'prover__kind': 'exact'}, "prover.kind='sampled', not 'exact'"),
    ({'prover__kind': 'none'}, "algorithm.name='brpo' needs a prover"),
    ({'loss__kl_coef': 0.1}, 'loss.kl_coef=0.1'),
    ({'prover__num_branches': 1}, 'prover.num_branches=1'),
    (
      {'algorithm__summaries_per_trace': 7},
      'algorithm.summaries_per_trace=7: a trace has 6',
    ),
    ({'algorithm__summary': 'all'}, 'algorithm.summary must be one of'),
    ({'algorithm__summary_baseline': 'all'}, 'summary_baseline must be one of'),
    ({'algorithm__prior': 'peak'}, 'prior must be one of'),
    ({'rollout__group_size': 1}, 'at least 2'),
    # 4 prompts x 4 traces with 2 rows each are 48.
    ({'batching__micro_batches': 5}, '4 prompts x 12 rows'),
  ],
)
def test_what_no_run_can_use(changes, message, small):
  with pytest.raises(ValueError, match=message):
    check_config.check(small.config('brpo', **changes))


def test_own_answers_alone_need_no_samples(small):
  config = small.config(
    'brpo',
    algorithm__summary='own',
    prover__kind='exact',
    loss__kl_coef=0.1,
    prover__num_branches=1,
  )
  check_config.check(config)
  task = setup_run.make_task(config)
  assert setup_steps.make_rows(config, task) is None
