"""Tests of meta_rl.steps: the training step, piece by piece and as a whole."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import SPECIAL, counting_model, lively_params, tiny

from meta_rl import losses, models, places, scoring, steps, update
from meta_rl.algorithms import Measured
from meta_rl.tasks import Task, countdown, countdown_task
from meta_rl.types import Episodes, Rollout, WeightedSum

# --- one step on Countdown: fused, and call by call ---

TASK = countdown_task(n=3, ops='+-', max_value=99)
# Scanned layers compile once.
CONFIG = tiny(vocab_size=128, scan_layers=True)
MODEL = models.make_model(CONFIG)
BATCH = countdown.problem_arrays(
  [
    countdown.make_problem((3, 5, 7), 9, '+-'),
    countdown.make_problem((2, 4, 9), 11, '+-'),
  ],
  max_answers=4,
)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
GROUP = 2


@pytest.fixture(scope='module')
def pieces():
  shared = {'group_size': GROUP}
  loss_fn = steps.make_loss(MODEL, chunk=11, kl_coef=0.1, entropy_coef=0.01)
  advantage_fn = steps.make_advantages('mrt', horizon=9, price=0.5, **shared)
  return {
    'generate': steps.make_generate(MODEL, TASK, thinking_budget=9, **shared),
    'prove': steps.make_prove(MODEL, TASK, max_episodes=2, **shared),
    'update_fn': steps.make_update(
      loss_fn, OPTIMIZER, advantage_fn, mini_batches=2
    ),
    'score': steps.make_score(MODEL, chunk=11),
  }


@pytest.fixture(scope='module')
def states():
  """The state to start from, and the parameters of the reference."""
  params = lively_params(CONFIG)
  state = update.TrainState(
    params=params,
    opt_state=OPTIMIZER.init(params),
    step=jnp.asarray(0),
    key=jax.random.key(3),
  )
  return state, jax.tree.map(lambda x: 0.9 * x, params)


@pytest.fixture(scope='module')
def fused(pieces):
  return jax.jit(chex.assert_max_traces(steps.fused(**pieces), 1))


@pytest.mark.full
def test_fused_step_equals_its_calls(pieces, states, fused):
  state, reference = states
  key = jax.random.key(8)
  whole, traces, measured, metrics = fused(state, reference, BATCH, key)
  sample_key, prove_key = jax.random.split(key)
  traces_2, cache = jax.jit(pieces['generate'])(state.params, BATCH, sample_key)
  np.testing.assert_array_equal(traces.tokens, traces_2.tokens)
  measured_2 = jax.jit(pieces['prove'])(
    state.params, BATCH, traces_2, cache, prove_key
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, measured, measured_2)
  ref_log_probs = jax.jit(pieces['score'])(reference, traces_2)
  parts, metrics_2 = jax.jit(pieces['update_fn'])(
    state, traces_2, measured_2, ref_log_probs
  )
  jax.tree.map(close, metrics, metrics_2)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-3),
    whole.params,
    parts.params,
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), whole.params, state.params
  )
  assert min(jax.tree.leaves(moved)) > 1e-3
  assert whole.step == 1
  # On-policy at the first mini-batch, and the ratio is measured.
  assert metrics['policy/log_prob_gap'].value[0] < 1e-4
  # A second key, another batch of traces, the same program.
  _, other, _, _ = fused(whole, reference, BATCH, jax.random.key(9))
  assert (other.tokens != traces.tokens).any()


def test_a_budget_below_one_episode_is_refused():
  with pytest.raises(
    ValueError, match='thinking_budget=8 is below one episode'
  ):
    steps.make_generate(MODEL, TASK, group_size=1, thinking_budget=8)


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: steps.make_prove(
        MODEL, TASK, group_size=1, max_episodes=1, kind='guess'
      ),
      "'guess' is unknown",
    ),
    (
      lambda: steps.make_prove(
        MODEL, TASK, group_size=1, max_episodes=1, num_enumerated=1
      ),
      "num_enumerated=1 is of prover kind 'control_variate'",
    ),
    (lambda: steps.make_advantages('a2c'), "'a2c' is unknown"),
  ],
)
def test_unknown_names_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# --- prove, on a model whose chances are known ---

EOS, MARKER, FORCED, DELIMITER = 2, 4, 9, 5


def toy_task(stop_ids=(MARKER,)):
  return Task(
    name='toy',
    vocab_size=10,
    pad_id=0,
    eos_id=EOS,
    think_end_id=MARKER,
    stop_ids=stop_ids,
    delimiter_ids=(DELIMITER,),
    episode_length=2,
    answer_length=2,
    verify=lambda answers, mask, batch: (
      (answers[..., 0] == batch['target'])
      & (answers[..., 1] == EOS)
      & mask.all(-1)
    ).astype(jnp.float32),
  )


def rollout(tokens, thinking, real, mask=None, forced=False):
  """A hand-written rollout; mask defaults to all real but the first column."""
  tokens, thinking, real = (jnp.asarray(x) for x in (tokens, thinking, real))
  thinking, real = thinking.astype(bool), real.astype(bool)
  rows = tokens.shape[0]
  if mask is None:
    mask = real.at[:, 0].set(False)
  return Rollout(
    tokens=tokens,
    token_mask=real,
    mask=jnp.asarray(mask, bool),
    thinking_mask=thinking,
    behavior_log_probs=jnp.zeros(tokens.shape),
    raw_log_probs=jnp.zeros(tokens.shape),
    truncated=jnp.zeros(rows, bool),
    forced=jnp.broadcast_to(jnp.asarray(forced), (rows,)),
  )


# Two problems with two traces each: prompt, two attempts of (SPECIAL, ;) or
# one, marker, answer. After c SPECIALs the answer 3 has the chance CHANCE[c],
# EOS 1/4.
PROBLEMS = {
  'prompts': np.array([[6], [6]], np.int32),
  'prompt_mask': np.ones((2, 1), bool),
  'target': np.array([3, 8], np.int32),
  'answers': np.array([[[3, EOS]], [[8, EOS]]], np.int32),
  'answer_mask': np.ones((2, 1, 2), bool),
}
LONG = [6, SPECIAL, DELIMITER, SPECIAL, DELIMITER, MARKER, 3, EOS]
SHORT = [6, SPECIAL, DELIMITER, MARKER, 3, EOS, 0, 0]
TOY = rollout(
  [LONG, SHORT, LONG, SHORT],
  [[0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]] * 2,
  [[1] * 8, [1] * 6 + [0] * 2] * 2,
)
CHANCE = np.array([0.1, 0.3, 0.5])
J = CHANCE / 4


def toy_params():
  """Logits f32[3,10] of the counting model, row c after c SPECIALs."""
  probs = np.zeros((3, 10))
  probs[:, 3], probs[:, EOS], probs[:, 1] = CHANCE, 0.25, 0.75 - CHANCE
  return jnp.log(jnp.asarray(probs, jnp.float32))


def prove_toy(kind, **options):
  prove = steps.make_prove(
    counting_model(),
    toy_task(),
    group_size=2,
    max_episodes=3,
    kind=kind,
    **options,
  )
  return jax.jit(lambda t: prove(t, PROBLEMS, TOY, None, jax.random.key(1)))(
    toy_params()
  )


def test_prove_grades_and_measures_exactly():
  found = prove_toy('exact')
  np.testing.assert_array_equal(found.rewards, [1, 1, 0, 0])
  np.testing.assert_array_equal(found.episodes.count, [2, 1, 2, 1])
  np.testing.assert_array_equal(
    found.episodes.ends, [[0, 2, 4, 4], [0, 2, 2, 2]] * 2
  )
  np.testing.assert_array_equal(found.stop_index, [5, 3, 5, 3])
  assert found.answered.all()
  np.testing.assert_allclose(
    found.success,
    [J[[0, 1, 2, 2]], J[[0, 1, 1, 1]], [0] * 4, [0] * 4],
    rtol=1e-5,
  )


def test_prove_by_sampling():
  found = prove_toy('sampled', num_branches=256)
  sigma = np.sqrt(J * (1 - J) / 256)
  for row, boundaries in ((0, [0, 1, 2]), (1, [0, 1])):
    gap = np.abs(np.asarray(found.success)[row, boundaries] - J[boundaries])
    assert (gap < 4 * sigma[boundaries]).all()
  assert not found.success[2:].any()
  np.testing.assert_array_equal(found.success[1, 1:], found.success[1, 1])


class HostVerify:
  """The toy's verifier on the host, which notes when it is asked for what."""

  def __init__(self):
    self.calls = []

  def ask(self, name, result, *args):
    def answer(*args):
      self.calls.append((name, *map(np.array, args)))
      return np.zeros(result.shape, result.dtype)

    out = jax.ShapeDtypeStruct(result.shape, result.dtype)
    zero = places.once(lambda *x: jax.pure_callback(answer, out, *x), *args)
    return result + zero.astype(result.dtype)

  def begin(self, answers, mask, batch):
    target = jnp.broadcast_to(batch['target'], mask.shape[:-1])
    zeros = jnp.zeros(mask.shape[:-1], jnp.int32)
    return self.ask('begin', zeros, answers, mask, target)

  def __call__(self, answers, mask, batch):
    score = toy_task().verify(answers, mask, batch)
    target = jnp.broadcast_to(batch['target'], mask.shape[:-1])
    return self.ask('verify', score, answers, mask, target)

  def model(self):
    counting = counting_model()

    def apply_fn(*args):
      logits, cache = counting.apply_fn(*args)
      return self.ask('model', logits, logits), cache

    return models.from_apply_fn(apply_fn)

  def prove(self, kind):
    prove = steps.make_prove(
      self.model(),
      dataclasses.replace(toy_task(), verify=self),
      group_size=2,
      max_episodes=3,
      kind=kind,
      num_branches=8,
      block_rows=2,
      thinking_budget=4,
    )
    found = jax.jit(lambda t: prove(t, PROBLEMS, TOY, None, jax.random.key(1)))(
      toy_params()
    )
    return jax.block_until_ready(found)

  def texts(self, name, shape):
    """What was asked in calls of one shape: {(target, answer)}."""
    found = set()
    for call, *args in self.calls:
      if call != name or args[0].ndim != len(shape) + 1:
        continue
      answers, mask, target = args
      for index in np.argwhere(mask.any(-1)):
        own = tuple(index)
        found.add((int(target[own]), *answers[own][mask[own]].tolist()))
    return found


@pytest.mark.parametrize('kind', ['exact', 'sampled', 'control_variate'])
def test_the_host_grades_while_the_device_proves(kind):
  asked = HostVerify()
  found = asked.prove(kind)
  chex.assert_trees_all_close(found, prove_toy(kind, **BRANCHES[kind]))
  names = [name for name, *_ in asked.calls]
  work = [i for i, name in enumerate(names) if name == 'model']
  # The traces' own answers: begun with before the proof (of which a prefill of
  # the traces is no part), asked for behind it.
  first = names.index('begin')
  assert asked.calls[first][1].ndim == 2
  assert first < work[-1]
  assert names[-1] == 'verify'
  assert asked.calls[-1][1].ndim == 2
  if kind != 'exact':
    # Those of a block: while the next one is sampled.
    blocks = [
      i
      for i, (name, *args) in enumerate(asked.calls)
      if name == 'begin' and args[0].ndim == 3
    ]
    assert len(blocks) == 2
    assert blocks[0] < work[-1]
    begun = asked.texts('begin', ('rows', 'branches'))
    assert begun == asked.texts('verify', ('rows', 'boundaries', 'branches'))
    assert len(begun) > 4


BRANCHES = {
  'exact': {},
  'sampled': {'num_branches': 8, 'block_rows': 2},
  'control_variate': {'num_branches': 8, 'block_rows': 2},
}


def test_continuations_tell_the_host_of_their_answers():
  asked = HostVerify()
  asked.prove('continued')
  begun = asked.texts('begin', ('rows', 'branches'))
  assert begun == asked.texts('verify', ('rows', 'boundaries', 'branches'))
  assert len(begun) > 4


def test_without_a_prover_nothing_is_begun():
  asked = HostVerify()
  found = asked.prove('none')
  np.testing.assert_array_equal(found.rewards, [1, 1, 0, 0])
  assert [name for name, *_ in asked.calls] == ['verify']


def test_prove_with_the_only_answer_listed_is_exact():
  found = prove_toy('control_variate', num_branches=2)
  np.testing.assert_allclose(found.success[0], J[[0, 1, 2, 2]], rtol=1e-5)
  np.testing.assert_allclose(found.success[1], J[[0, 1, 1, 1]], rtol=1e-5)


def test_prove_with_some_answers_listed_is_unbiased():
  """3 and 1 are right, 3 alone is listed; sampling adds the chance of 1."""

  def verify(answers, mask, batch):
    right = (answers[..., 0] == 3) | (answers[..., 0] == 1)
    return (right & (answers[..., 1] == EOS) & mask.all(-1)).astype(jnp.float32)

  rows = 64
  prove = steps.make_prove(
    counting_model(),
    dataclasses.replace(toy_task(), verify=verify),
    group_size=2 * rows,
    max_episodes=3,
    kind='control_variate',
    num_enumerated=1,
    num_branches=8,
  )
  many = jax.tree.map(
    lambda x: jnp.tile(x[:2], (rows, *[1] * (x.ndim - 1))), TOY
  )
  problem = {k: v[:1] for k, v in PROBLEMS.items()}
  # A second answer beside it, which is not listed.
  both = jnp.array([[[3, EOS], [1, EOS]]])
  problem |= {'answers': both, 'answer_mask': jnp.ones(both.shape, bool)}
  found = jax.jit(
    lambda p: prove(p, problem, many, None, jax.random.key(1)).success
  )(toy_params())
  mean = np.asarray(found)[::2, :3].mean(0)
  # EOS has 1/4 in either case: J = (CHANCE + .75 - CHANCE) / 4 = .1875, of
  # which (.75 - CHANCE) / 4 is sampled.
  rest = (0.75 - CHANCE) / 4
  sigma = np.sqrt(rest * (1 - rest) / (8 * rows))
  assert (np.abs(mean - 0.1875) < 4 * sigma).all(), mean
  # The listed one alone, or what is sampled alone, would be told apart.
  assert (rest > 4 * sigma).all()
  assert (CHANCE[1:] / 4 > 4 * sigma[1:]).all()
  # Less noise than a sampled J, whose variance is J (1 - J) / 8 = .019.
  spread = np.asarray(found)[::2, 2].var()
  assert spread < 0.75 * 0.1875 * 0.8125 / 8


def test_prove_without_a_prover_still_grades():
  found = prove_toy('none')
  np.testing.assert_array_equal(found.rewards, [1, 1, 0, 0])
  assert not found.success.any()


def test_what_is_graded_comes_after_the_whole_stop():
  # Forced termination writes two tokens; the policy's own stop is the marker
  # alone. An EOS in the thought leaves nothing to grade.
  traces = rollout(
    [
      [6, 1, DELIMITER, MARKER, FORCED, 3, EOS],
      [6, 1, DELIMITER, MARKER, 3, EOS, 0],
      [6, 3, EOS, 0, 0, 0, 0],
    ],
    [[0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
    [[1] * 7, [1] * 6 + [0], [1] * 3 + [0] * 4],
    forced=np.array([True, False, False]),
  )
  prove = steps.make_prove(
    None,
    toy_task(stop_ids=(MARKER, FORCED)),
    group_size=3,
    max_episodes=1,
    kind='none',
  )
  batch = {k: v[:1] for k, v in PROBLEMS.items()}
  found = prove(None, batch, traces, None, jax.random.key(0))
  np.testing.assert_array_equal(found.rewards, [1, 1, 0])
  np.testing.assert_array_equal(found.answered, [True, True, False])
  np.testing.assert_array_equal(found.stop_index, [3, 3, 2])


def test_answers_of():
  traces = rollout(
    [[6, 1, 4, 3, 2, 0], [6, 1, 1, 1, 1, 4]],
    np.zeros((2, 6)),
    [[1, 1, 1, 1, 1, 0], [1] * 6],
  )
  answers, mask = steps.answers_of(traces, jnp.array([2, 5]), 3)
  np.testing.assert_array_equal(answers[0], [3, 2, 0])
  np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 0, 0]])


def test_per_trace_repeats_a_problem_for_its_group():
  found = steps.per_trace({'a': jnp.array([1, 2])}, 3)
  np.testing.assert_array_equal(found['a'], [1, 1, 1, 2, 2, 2])


# --- loss ---

BIGRAM = models.from_apply_fn(lambda p, t, *_: (p[t], None))


@pytest.fixture(scope='module')
def loss_batch():
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, 5, (4, 6)), jnp.int32)
  mask = jnp.asarray(rng.random((4, 6)) < 0.6).at[:, 0].set(False)
  noise = lambda: jnp.asarray(-rng.random((4, 6)) - 1, jnp.float32)
  return {
    'tokens': tokens,
    'token_mask': jnp.ones((4, 6), bool),
    'mask': mask,
    'behavior_log_probs': noise(),
    'ref_log_probs': noise(),
    'advantages': noise() + 1.5,
  }


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_loss_is_the_sum_of_its_terms(loss_batch, aggregate):
  table = jnp.asarray(np.random.default_rng(1).standard_normal((5, 5)))
  table = table.astype(jnp.float32)
  shared = {'aggregate': aggregate, 'constant': 6}
  loss_fn = steps.make_loss(
    BIGRAM,
    temperature=0.8,
    clip_high=0.3,
    kl_coef=0.5,
    kl_estimator='k3',
    entropy_coef=0.2,
    **shared,
  )
  loss, metrics = jax.jit(loss_fn)(table, loss_batch)
  b = loss_batch
  log_probs, entropy = scoring.score(
    BIGRAM, table, b['tokens'], b['token_mask'], temperature=0.8
  )
  policy, _ = losses.policy_gradient(
    log_probs,
    b['behavior_log_probs'],
    b['advantages'],
    b['mask'],
    clip_high=0.3,
    **shared,
  )
  kl, _ = losses.kl_penalty(
    log_probs, b['ref_log_probs'], b['mask'], estimator='k3', **shared
  )
  bonus, _ = losses.entropy_bonus(entropy, b['mask'], **shared)
  expected = policy.value + 0.5 * kl.value + 0.2 * bonus.value
  assert loss.value == pytest.approx(float(expected), rel=1e-5)
  assert loss.weight == policy.weight == kl.weight == bonus.weight
  assert metrics['loss/kl'].value == pytest.approx(float(kl.value), rel=1e-5)
  mask = np.asarray(b['mask'])
  gap = np.abs(log_probs - b['behavior_log_probs'])[mask].mean()
  assert metrics['policy/log_prob_gap'].value == pytest.approx(gap, rel=1e-5)
  assert metrics['policy/entropy'].value == pytest.approx(
    float(np.asarray(entropy)[mask].mean()), rel=1e-5
  )
  assert all(isinstance(m, WeightedSum) for m in metrics.values())


def test_without_coefficients_no_reference_is_needed(loss_batch):
  batch = {k: v for k, v in loss_batch.items() if k != 'ref_log_probs'}
  loss, metrics = steps.make_loss(BIGRAM)(jnp.zeros((5, 5)), batch)
  assert 'loss/kl' not in metrics
  assert loss.value == metrics['loss/policy_gradient'].value


# --- metrics ---


def test_rollout_metrics_by_hand():
  # One group of two. Row 0: J .2, .5, .9 at 0, 3, 5 tokens, 9 actions; row 1
  # ends at once with J .2.
  real = np.array([[1] * 12, [1] * 3 + [0] * 9], bool)
  thinking = np.zeros((2, 12), bool)
  thinking[0, 2:7] = True
  mask = np.zeros((2, 12), bool)
  mask[0, 2:11], mask[1, 2] = True, True
  traces = rollout(
    np.ones((2, 12), int), thinking, real, mask, np.array([True, False])
  )
  measured = Measured(
    rewards=jnp.array([1.0, 0.0]),
    success=jnp.array([[0.2, 0.5, 0.9], [0.2, 0.2, 0.2]]),
    episodes=Episodes(jnp.array([[1, 4, 6], [1, 1, 1]]), jnp.array([2, 0])),
    stop_index=jnp.array([7, 2]),
    answered=jnp.array([True, False]),
  )
  options = {'group_size': 2, 'horizon': 10}
  found = steps.rollout_metrics(traces, measured, has_success=True, **options)
  expected = {
    'rollout/reward_mean': 0.5,
    'rollout/zero_variance_share': 0,
    'rollout/truncation_rate': 0,
    'rollout/forced_rate': 0.5,
    'rollout/tokens_mean': 5,
    'rollout/tokens_sum': 10,
    'rollout/thinking_tokens_mean': 2.5,
    'rollout/episodes_mean': 1,
    'progress/first': 0.2,
    'progress/last': 0.55,
    'progress/total': 0.35,
    # ((.8·3 + .5·2 + .1·5)/10 + .8)/2 = (.39 + .8)/2
    'regret/token_weighted': 0.595,
    'regret/cumulative': 0.65,  # (.8 + .5 + 0)/2
    # Mean J at budgets of i·10/16: .2 for i = 1-4, .35 for 5-7, .55 for 8-16.
    # Trapezoids from (0, 0): (.1 + 3·.2 + .275 + 2·.35 + .45 + 8·.55)/16
    # = .4078125.
    'regret/normalized': 0.5921875,
  }
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, abs=1e-5), name
  # A group of one is constant without that being a sign of anything.
  alone = steps.rollout_metrics(
    traces, measured, has_success=True, group_size=1, horizon=10
  )
  assert set(expected) - set(alone) == {'rollout/zero_variance_share'}
  found = steps.rollout_metrics(traces, measured, has_success=False, **options)
  assert not [name for name in found if not name.startswith('rollout/')]


def test_rewards_of_the_traces_that_have_one():
  # Groups [1, -, 3], [2, -, 2] and [5, -, -]: mean 13/5; the last two groups
  # have nothing to compare.
  measured = Measured(
    rewards=jnp.array([1, 9, 3, 2, 9, 2, 5, 9, 9], jnp.float32),
    success=jnp.zeros((9, 2)),
    episodes=Episodes(jnp.zeros((9, 2), jnp.int32), jnp.zeros(9, jnp.int32)),
    stop_index=jnp.zeros(9, jnp.int32),
    answered=jnp.ones(9, bool),
    valid=jnp.array([1, 0, 1, 1, 0, 1, 1, 0, 0], bool),
  )
  traces = rollout(np.ones((9, 2)), np.zeros((9, 2)), np.ones((9, 2)))
  found = steps.rollout_metrics(
    traces, measured, group_size=3, horizon=1, has_success=False
  )
  assert float(found['rollout/reward_mean']) == pytest.approx(13 / 5)
  assert float(found['rollout/zero_variance_share']) == pytest.approx(2 / 3)


def test_training_batch_holds_a_reference_only_if_there_is_one():
  measured = Measured(*[None] * 5)
  ones = lambda measured, length: jnp.ones((4, length))
  batch = steps.training_batch(TOY, measured, ones)
  assert batch['advantages'].shape == (4, 8)
  assert 'ref_log_probs' not in batch
  batch = steps.training_batch(TOY, measured, ones, jnp.zeros((4, 8)))
  assert batch['ref_log_probs'].shape == (4, 8)
