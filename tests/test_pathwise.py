"""Tests of meta_rl.steps.pathwise: the other half of the gradient of F."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import (
  advantages,
  costs,
  losses,
  models,
  prover_gradient,
  regret,
  scoring,
  steps,
)
from meta_rl.algorithms import Measured
from meta_rl.steps import pathwise
from meta_rl.tasks import Task
from meta_rl.types import Episodes, Rollout

pytest_plugins = ['small_runs']

PLAIN, EOS, RIGHT, MARKER, END, PROMPT, SPECIAL, WRONG = range(1, 9)
TASK = Task(
  name='toy',
  vocab_size=9,
  pad_id=0,
  eos_id=EOS,
  think_end_id=MARKER,
  stop_ids=(MARKER,),
  delimiter_ids=(END,),
  episode_length=2,
  answer_length=2,
  verify=lambda answers, mask, batch: (
    ((answers == jnp.array([RIGHT, EOS])) & mask).all(-1).astype(jnp.float32)
  ),
)
BUDGET, EPISODES, RHO = 6, 3, 0.3
WEIGHTS = {'horizon': BUDGET, 'outcome_mass': RHO}

# A problem whose traces can be enumerated. An episode is (SPECIAL or PLAIN,
# END); behind it the policy goes on or stops; an answer is RIGHT or WRONG, and
# then EOS or RIGHT again. The chances depend on how many SPECIALs were seen.
FOLLOWS = {
  PROMPT: (SPECIAL, PLAIN, MARKER),
  END: (SPECIAL, PLAIN, MARKER),
  SPECIAL: (END,),
  PLAIN: (END,),
  MARKER: (RIGHT, WRONG),
  RIGHT: (EOS, RIGHT),
  WRONG: (EOS,),
}
LEGAL = np.full((9, 9), -1e9, np.float32)
for _before, _after in FOLLOWS.items():
  LEGAL[_before, _after] = 0
PARAMS = jnp.asarray(
  np.random.default_rng(0).standard_normal((4, 9, 9)), jnp.float32
)


def apply_fn(params, tokens, positions, cache, mask):
  del cache, positions
  seen = (mask & (tokens == SPECIAL)[:, None]).sum(-1)
  return params[seen, tokens] + jnp.asarray(LEGAL)[tokens], None


MODEL = models.from_apply_fn(apply_fn)
ANSWERS = [(RIGHT, EOS), (RIGHT, RIGHT), (WRONG, EOS)]
PROBLEM = {
  'prompts': np.array([[PROMPT]], np.int32),
  'prompt_mask': np.ones((1, 1), bool),
  'answers': np.array([[ANSWERS[0]]], np.int32),
  'answer_mask': np.ones((1, 1, 2), bool),
}


def enumerated(answers):
  """Every trace, answered in each of the given ways: a Rollout, one prompt."""
  rows = []
  for k in range(EPISODES + 1):
    for choice in itertools.product((SPECIAL, PLAIN), repeat=k):
      thought = [t for x in choice for t in (x, END)]
      forced = k == EPISODES  # the budget is spent: the marker is no action
      for answer in answers:
        row = [PROMPT, *thought, MARKER, *answer]
        act = [0] + [1] * len(thought) + [not forced] + [1] * len(answer)
        rows.append((row, act, len(thought), forced))
  width = max(len(row) for row, *_ in rows)
  fill = lambda x: list(x) + [0] * (width - len(x))
  columns = np.arange(width)
  length = np.array([n for *_, n, _ in rows])
  sizes = np.array([len(row) for row, *_ in rows])
  nothing = jnp.zeros((len(rows), width))
  return Rollout(
    tokens=jnp.asarray([fill(row) for row, *_ in rows], jnp.int32),
    token_mask=jnp.asarray(columns < sizes[:, None]),
    mask=jnp.asarray([fill(act) for _, act, *_ in rows], bool),
    thinking_mask=jnp.asarray((columns > 0) & (columns <= length[:, None])),
    behavior_log_probs=nothing,
    raw_log_probs=nothing,
    truncated=jnp.zeros(len(rows), bool),
    forced=jnp.asarray([forced for *_, forced in rows]),
  )


def log_probs_of(params, rollout):
  return scoring.score(MODEL, params, rollout.tokens, rollout.token_mask)[0]


def measure_all(rollout):
  """Rewards and J of every row, by `prove`."""
  shared = {'group_size': len(rollout.tokens)}
  prove = steps.make_prove(MODEL, TASK, max_episodes=EPISODES, **shared)
  prove = steps.with_answers(prove, **shared)
  return prove(PARAMS, PROBLEM, rollout, None, jax.random.key(0))


def expected_gradient(rollout, measured, boundaries, alone=False):
  """E over the traces of minus the gradient of the loss, and their chances."""
  advantage_fn = steps.make_advantages(
    'mrt',
    credit='token_weighted',
    baseline='none',
    group_size=len(rollout.tokens),
    **WEIGHTS,
  )
  batch = steps.training_batch(rollout, measured, advantage_fn)
  batch['behavior_log_probs'] = log_probs_of(PARAMS, rollout)
  if boundaries != 'none':
    prepare = steps.make_prepare(
      TASK, boundaries=boundaries, alone=alone, **WEIGHTS
    )
    batch = prepare(batch, rollout, measured)
  shared = {'aggregate': 'constant', 'constant': 1}
  term = None
  if boundaries != 'none':
    term = steps.make_pathwise_term(MODEL, TASK, block_pairs=4, **shared)
  loss_fn = steps.make_loss(MODEL, pathwise_term=term, **shared)
  chance = jnp.exp(
    jnp.where(rollout.mask, batch['behavior_log_probs'], 0.0).sum(1)
  )
  # The loss is linear in both, so this makes its sum an expectation.
  for name in ('advantages', 'boundary_weights'):
    if name in batch:
      batch[name] *= chance[:, None]
  gradient = jax.grad(lambda params: -loss_fn(params, batch)[0].total)(PARAMS)
  return gradient, chance


def objective(params, rollout, weights):
  """F = Σ_z P(z) Σ_j w_j J_j(z), each J by enumeration of the answers."""
  log_probs = log_probs_of(params, rollout)
  chance = jnp.exp(jnp.where(rollout.mask, log_probs, 0.0).sum(1))
  value = 0.0
  for j in range(EPISODES + 1):
    columns = jnp.arange(rollout.tokens.shape[1])
    probe = jnp.where(columns <= 2 * j, rollout.tokens, 0)
    probe = probe.at[:, 2 * j + 1 : 2 * j + 4].set(
      jnp.array([MARKER, RIGHT, EOS])
    )
    real = jnp.broadcast_to(columns <= 2 * j + 3, probe.shape)
    scored = scoring.score(MODEL, params, probe, real)[0]
    success = jnp.exp(scored[:, 2 * j + 2 : 2 * j + 4].sum(1))
    value += weights[:, j] * jnp.where(weights[:, j] > 0, success, 0.0)
  return (chance * value).sum()


@pytest.fixture(scope='module')
def halves(small):
  """∇F by enumeration, and its halves, one by one and together."""
  del small  # little optimisation: what is compiled runs once
  # Each thought once: its answer is no action, and no part of its chance.
  once = enumerated(ANSWERS[:1])
  columns = jnp.arange(once.tokens.shape[1])
  stop = once.thinking_mask.sum(1) + 1
  mask = once.mask & (columns <= stop[:, None])
  thinking = dataclasses.replace(once, mask=mask)

  @jax.jit
  def run():
    measured = measure_all(thinking)
    both, chance = expected_gradient(thinking, measured, 'all')
    score_half, _ = expected_gradient(thinking, measured, 'none')
    alone, _ = expected_gradient(thinking, measured, 'all', alone=True)
    weights = pathwise.boundary_weights(measured, boundaries='all', **WEIGHTS)
    wanted = jax.grad(objective)(PARAMS, thinking, weights)
    return both, score_half, alone, wanted, chance

  return run()


@pytest.mark.full
def test_score_function_and_pathwise_are_the_gradient_of_the_objective(halves):
  both, score_half, alone, wanted, chance = halves
  assert len(chance) == 1 + 2 + 4 + 8
  assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
  np.testing.assert_allclose(both, wanted, atol=1e-6)
  # MRT alone leaves a part out: how the policy answers.
  gap = np.abs(score_half - wanted)
  assert gap.max() > 0.01
  answers = np.zeros(PARAMS.shape, bool)
  answers[:, [MARKER, RIGHT]] = True
  np.testing.assert_allclose(gap[~answers], 0, atol=1e-6)
  assert not np.abs(np.asarray(score_half))[answers].any()
  # Alone, the term is that part and no more.
  np.testing.assert_allclose(alone, wanted - score_half, atol=1e-6)
  assert not np.abs(np.asarray(alone))[~answers].any()


@pytest.mark.full
def test_last_replaces_the_answers_own_term_by_its_expectation(small):
  """E[(r - J_k) ∇log μ(a)] = ∇J_k: the same gradient, without the draw."""
  del small
  rollout = enumerated(ANSWERS)

  @jax.jit
  def run():
    measured = measure_all(rollout)
    own, chance = expected_gradient(rollout, measured, 'none')
    last, _ = expected_gradient(rollout, measured, 'last')
    return own, last, chance.sum()

  own, last, total = run()
  assert float(total) == pytest.approx(1, abs=1e-5)
  np.testing.assert_allclose(last, own, atol=1e-6)
  assert np.abs(own[:, MARKER]).max() > 0.01


# --- weights


def measure(ends, count, **changes):
  fields = {
    'rewards': jnp.zeros(len(ends)),
    'success': None,
    'episodes': Episodes(jnp.asarray(ends), jnp.asarray(count)),
    'stop_index': jnp.asarray(ends)[:, -1] + 1,
    'answered': jnp.ones(len(ends), bool),
  }
  return Measured(**fields | changes)


def test_weights_by_hand():
  # H = 10. Row 0: ends 0, 3, 5 tokens in: .3, .2, .5. Row 1: 0, 4 (repeats):
  # .4, 0, .6 on the repeat. Row 2: 0, 8, 12: .8, .2, 0. rho = .3 on the last.
  measured = measure([[1, 4, 6], [1, 5, 5], [1, 9, 13]], [2, 1, 2])
  found = pathwise.boundary_weights(
    measured, boundaries='all', horizon=10, outcome_mass=0.3
  )
  np.testing.assert_allclose(
    found,
    [[0.21, 0.14, 0.65], [0.28, 0.3, 0.42], [0.56, 0.14, 0.3]],
    atol=1e-6,
  )
  last = pathwise.boundary_weights(measured, boundaries='last', horizon=10)
  np.testing.assert_array_equal(last, [[0, 0, 1], [0, 1, 0], [0, 0, 1]])
  # No answer, no outcome: the shares alone are left of row 1.
  silent = dataclasses.replace(
    measured, answered=jnp.array([True, False, True])
  )
  found = pathwise.boundary_weights(
    silent, boundaries='all', horizon=10, outcome_mass=0.3
  )
  np.testing.assert_allclose(found[1], [0.28, 0, 0.42], atol=1e-6)
  last = pathwise.boundary_weights(silent, boundaries='last', horizon=10)
  np.testing.assert_array_equal(last, [[0, 0, 1], [0, 0, 0], [0, 0, 1]])


def test_weights_are_those_of_the_credit():
  """Σ w_j J_j = J_0 + Σ w_i p_i: the algorithm's own objective."""
  rng = np.random.default_rng(1)
  ends = np.cumsum(rng.integers(1, 6, (20, 5)), axis=1)
  count = rng.integers(0, 5, 20)
  past = np.arange(5) > count[:, None]
  ends[past] = np.repeat(ends[np.arange(20), count], past.sum(1))
  success = rng.random((20, 5)).astype(np.float32)
  success[past] = np.repeat(success[np.arange(20), count], past.sum(1))
  measured = measure(ends, count, success=jnp.asarray(success))
  for mass in (0.0, 0.4):
    weights = pathwise.boundary_weights(
      measured, boundaries='all', horizon=10, outcome_mass=mass
    )
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    progress = regret.progress(measured.success, measured.episodes.count)
    credit = advantages.episode_weights(
      measured.episodes.ends, horizon=10, outcome_mass=mass
    )
    np.testing.assert_allclose(
      (weights * success).sum(1),
      success[:, 0] + (credit * progress).sum(1),
      atol=1e-5,
    )


def test_shares_are_what_token_weighted_regret_adds_up():
  ends = jnp.array([[1, 4, 6, 6], [1, 9, 13, 20]])
  shares = regret.shares(ends, horizon=10)
  np.testing.assert_allclose(
    shares, [[0.3, 0.2, 0, 0.5], [0.8, 0.2, 0, 0]], atol=1e-6
  )
  success = jnp.array([[0.1, 0.5, 0.9, 0.9], [0.2, 0.3, 0.4, 0.5]])
  np.testing.assert_allclose(
    regret.token_weighted(success, ends, horizon=10),
    (shares * (1 - success)).sum(1),
    rtol=1e-6,
  )


def test_only_boundaries_with_a_weight_are_differentiated():
  # 15 episodes of 9 tokens, the whole budget; 2 answers of 6 tokens behind one
  # stop token: 16 boundaries feed 16 * 2 * 6 = 192, the last alone 12.
  ends = 9 * np.arange(16)[None]
  measured = measure(ends, [15], answer_mask=jnp.ones((1, 2, 6), bool))

  def tokens(boundaries, measured=measured):
    return steps.differentiated_tokens(
      measured, stop_length=1, boundaries=boundaries, horizon=135
    ).tolist()

  fed = costs.exact_tokens(jnp.array([15]), measured.answer_mask, 1)
  assert fed.tolist() == [192]
  assert tokens('last') == [12]
  # The last boundary holds for none of the horizon, and rho = 0.
  assert tokens('all') == [180]
  # No answer, no outcome: nothing is differentiated.
  silent = dataclasses.replace(measured, answered=jnp.array([False]))
  assert tokens('last', silent) == [0]
  # A trace of 135 tokens: 3 each for it and the probes, in every epoch.
  mask = jnp.ones((1, 135), bool)
  for epochs, wanted in ((1, 3 * 135 + 36), (2, 6 * 135 + 72)):
    with_it, without = (
      costs.step_costs(
        mask,
        jnp.array([0]),
        fed,
        group_size=1,
        epochs=epochs,
        differentiated=probed,
      )
      for probed in (jnp.array(tokens('last')), None)
    )
    assert with_it['cost/prove'] == without['cost/prove'] == 192
    assert with_it['cost/train'] - without['cost/train'] == wanted


def test_boundaries_that_repeat_are_differentiated_once():
  # All three columns have a weight, of two boundaries: 2 * (1 + 1) tokens.
  measured = measure([[1, 5, 5]], [1], answer_mask=jnp.ones((1, 1, 2), bool))
  found = steps.differentiated_tokens(
    measured,
    stop_length=1,
    boundaries='all',
    horizon=10,
    outcome_mass=0.3,
  )
  assert found.tolist() == [4]


# --- what is added to a batch and to the loss


def prepared(task=TASK, *, answers=1, stop_index=(3, 3), alone=False):
  """The batch of two traces, thoughts to column 2, a marker, an answer."""
  rollout = Rollout(
    tokens=jnp.array([[PROMPT, PLAIN, END, MARKER, RIGHT, EOS]] * 2),
    token_mask=jnp.ones((2, 6), bool),
    mask=jnp.array([[0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1]], bool),
    thinking_mask=None,
    behavior_log_probs=jnp.zeros((2, 6)),
    raw_log_probs=None,
    truncated=None,
    forced=jnp.array([True, False]),
  )
  size = (2, answers, 2)
  measured = measure(
    [[0, 2, 2], [0, 2, 2]],
    [1, 1],
    answers=jnp.full(size, RIGHT).at[..., 1].set(EOS),
    answer_mask=jnp.ones(size, bool),
    stop_index=jnp.array(stop_index),
  )
  prepare = steps.make_prepare(task, boundaries='all', alone=alone, **WEIGHTS)
  ones = lambda measured, length: jnp.ones((2, length))
  batch = steps.training_batch(rollout, measured, ones)
  return prepare(batch, rollout, measured), rollout


def test_the_answers_own_term_is_dropped():
  batch, rollout = prepared()
  # The marker's stays: to stop is an action. So does the mask, and with it what
  # the sum is divided by.
  np.testing.assert_array_equal(batch['advantages'], [[1, 1, 1, 1, 0, 0]] * 2)
  np.testing.assert_array_equal(batch['mask'], rollout.mask)
  for name, shape in (
    ('ends', (2, 3)),
    ('boundary_weights', (2, 3)),
    ('answers', (2, 1, 1, 2)),
    ('answer_mask', (2, 1, 1, 2)),
  ):
    assert batch[name].shape == shape


def test_the_credit_of_a_reward_beyond_the_outcome_stays():
  # Rewards 1 + .5 and 0 + .25, J_k = .75 and .5: MRT gives the answers
  # 1 - .75 + .25 and 0 - .5 - .25. Of these the term holds r - J_k; left is
  # the extra's leave-one-out, .5 - .25 = .25 and -.25.
  _, rollout = prepared()
  measured = measure(
    [[0, 2, 2], [0, 2, 2]],
    [1, 1],
    rewards=jnp.array([1.5, 0.25]),
    extra=jnp.array([0.5, 0.25]),
    success=jnp.array([[0.5, 0.75, 0.75], [0.5, 0.5, 0.5]]),
    answers=jnp.full((2, 1, 2), RIGHT),
    answer_mask=jnp.ones((2, 1, 2), bool),
  )
  mrt = steps.make_advantages('mrt', group_size=2, **WEIGHTS)
  batch = steps.training_batch(rollout, measured, mrt)
  np.testing.assert_allclose(
    batch['advantages'][:, 4:], [[0.5, 0.5], [-0.75, -0.75]], atol=1e-6
  )
  prepare = steps.make_prepare(TASK, boundaries='all', **WEIGHTS)
  found = prepare(batch, rollout, measured)['advantages']
  np.testing.assert_allclose(
    found[:, 4:], [[0.25, 0.25], [-0.25, -0.25]], atol=1e-6
  )
  np.testing.assert_array_equal(found[:, :4], batch['advantages'][:, :4])


def test_an_answer_that_the_prover_does_not_measure_keeps_its_term():
  # The prover stops with two tokens, the policy of row 1 did with the marker.
  task = Task(**vars(TASK) | {'stop_ids': (MARKER, PLAIN)})
  batch, _ = prepared(task)
  np.testing.assert_array_equal(
    batch['advantages'], [[1, 1, 1, 1, 0, 0], [1] * 6]
  )


def test_an_answer_behind_thought_past_the_boundaries_keeps_its_term():
  # Row 1 ends thinking at column 4, and its last boundary is column 2.
  batch, _ = prepared(stop_index=(3, 4))
  np.testing.assert_array_equal(
    batch['advantages'], [[1, 1, 1, 1, 0, 0], [1] * 6]
  )


def test_alone_nothing_is_left_of_the_policy_gradient():
  batch, rollout = prepared(alone=True)
  np.testing.assert_array_equal(batch['advantages'], np.zeros((2, 6)))
  np.testing.assert_array_equal(batch['mask'], rollout.mask)


def test_as_many_answers_as_columns_are_not_cut_as_columns():
  batch, _ = prepared(answers=6)
  wide = {k for k, x in batch.items() if x.ndim > 1 and x.shape[1] == 6}
  tokens = {'tokens', 'token_mask', 'mask', 'behavior_log_probs', 'advantages'}
  assert wide == tokens  # what `update.cut_to_length` cuts
  assert batch['answers'].shape == (2, 1, 6, 2)


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_the_term_weighs_as_the_sum_of_a_traces_tokens(aggregate):
  batch, rollout = prepared()
  shared = {'aggregate': aggregate, 'constant': 6}
  term = steps.make_pathwise_term(MODEL, TASK, coef=0.5, **shared)
  loss_fn = steps.make_loss(MODEL, pathwise_term=term, **shared)
  plain = steps.make_loss(MODEL, **shared)

  @jax.jit
  def run():
    value = prover_gradient.differentiable(
      MODEL,
      PARAMS,
      rollout.tokens,
      rollout.token_mask,
      batch['ends'],
      *(batch[k][:, 0] for k in ('answers', 'answer_mask')),
      stop_ids=TASK.stop_ids,
      boundary_weights=batch['boundary_weights'],
    )
    return *loss_fn(PARAMS, batch), plain(PARAMS, batch)[0], value

  loss, metrics, without, value = run()
  value = np.asarray(value)
  assert (value > 0).all()
  # 4 and 5 actions.
  added = {
    'token_mean': value.sum(),
    'constant': value.sum(),
    'sequence_mean': value[0] / 4 + value[1] / 5,
  }[aggregate]
  assert loss.weight == without.weight == metrics['loss/pathwise'].weight
  gain = float(without.total - loss.total)
  assert gain == pytest.approx(0.5 * added, rel=1e-4)
  assert float(metrics['loss/pathwise'].total) == pytest.approx(
    -added, rel=1e-4
  )


def test_a_coefficient_of_nothing_is_refused():
  with pytest.raises(ValueError, match='coef must be > 0'):
    steps.make_pathwise_term(MODEL, TASK, coef=0.0)


# --- in the loop


@pytest.mark.soak
@pytest.mark.full
@pytest.mark.parametrize(
  'boundaries, alone', [('last', False), ('all', False), ('all', True)]
)
def test_two_steps(boundaries, alone, small, tmp_path):
  config = small.config(
    'mrt',
    total_steps=2,
    loss__pathwise__boundaries=boundaries,
    loss__pathwise__alone=alone,
  )
  result = small.run(config, tmp_path / 'run')
  assert result.code == 0, result.err
  for row in result.rows:
    assert row['loss/pathwise'] <= 0
    assert np.isfinite(row['loss/pathwise'])
    assert (row['loss/policy_gradient'] == 0) == alone
    # Trained on 3 * (generated + 12 prompts of 7), and more for the probes and
    # the traces before them, once more at most.
    once = 3 * (row['cost/generate'] + 12 * 7)
    more = row['cost/train'] - once
    # Alone, what the prover measures is for the log.
    assert (row['cost/prove'] == 0) == alone
    # At 3 boundaries of 4 answers of 7 tokens (a stop and 6) at most.
    probed = 3 * row['cost/prove'] or 3 * 48 * 4 * 4 * 7
    assert 0 < more <= once + probed
  assert [row['compile/count'] for row in result.rows] == [4, 6]


KINDS = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np, optax
from meta_rl import sharding, steps, update
import test_pathwise as t

shared = {'group_size': 2}
optimizer = optax.sgd(1.0)
state = update.TrainState(
  t.PARAMS, optimizer.init(t.PARAMS), jnp.zeros((), jnp.int32),
  jax.random.key(1),
)
batch = {k: np.repeat(v, 8, 0) for k, v in t.PROBLEM.items()}
shared_loss = {'aggregate': 'token_mean'}
term = steps.make_pathwise_term(t.MODEL, t.TASK, block_pairs=2, **shared_loss)
loss_fn = steps.make_loss(t.MODEL, pathwise_term=term, **shared_loss)

def make_update(axis_name, spread):
  return steps.make_update(
    spread(loss_fn), optimizer,
    steps.make_advantages('mrt', horizon=6, axis_name=axis_name, **shared),
    prepare=steps.make_prepare(t.TASK, boundaries='all', horizon=6),
    axis_name=axis_name, mini_batches=2, micro_batches=1,
  )

found = {}
for kind in ('none', 'jit', 'pmap'):
  prove = steps.make_prove(t.MODEL, t.TASK, max_episodes=3, **shared)
  parallel = sharding.parallelize(
    kind,
    generate=steps.make_generate(t.MODEL, t.TASK, thinking_budget=6, **shared),
    prove=steps.with_answers(prove, **shared), make_update=make_update,
    rows_per_prompt=2, mini_batches=2,
  )
  own, rows = parallel.put_state(state), parallel.put_batch(batch)
  traces, cache = parallel.generate(own.params, rows, jax.random.key(2))
  measured = parallel.prove(own.params, rows, traces, cache, jax.random.key(3))
  own, metrics = parallel.update(own, traces, measured, None)
  found[kind] = parallel.get((own.params, metrics['loss/pathwise'].value))
assert np.abs(found['none'][0] - t.PARAMS).max() > 0.01
assert np.abs(found['none'][1]).min() > 0.01
for kind in ('jit', 'pmap'):
  for a, b in zip(found[kind], found['none']):
    np.testing.assert_allclose(a, b, atol=1e-5)
print('equal')
"""


@pytest.mark.soak
@pytest.mark.full
def test_one_device_a_mesh_and_pmap_agree(run_python, root):
  output = run_python(KINDS, devices=4, cwd=root / 'tests', timeout=500)
  assert output.split()[-1] == 'equal'
