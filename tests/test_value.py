"""The critic: its head, its loss, what it converges to, and runs with it."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import SPECIAL, lively_params, tiny

from meta_rl import (
  algorithms,
  check_config,
  checkpoint,
  export,
  losses,
  models,
  scoring,
  setup_run,
  sharding,
  signals,
  steps,
  train,
  value,
  weights,
)
from meta_rl.algorithms import Measured
from meta_rl.models import from_apply_fn
from meta_rl.types import Episodes, Model, Rollout

# Slow to compile.
pytestmark = pytest.mark.full

pytest_plugins = ['small_runs']

# ---- the head

CONFIG = tiny(scan_layers=True, num_layers=1)
MODEL = models.make_model(CONFIG)


def lively():
  """Parameters with a head that is not 0."""
  rng = np.random.default_rng(0)
  head = {
    'kernel': jnp.asarray(rng.standard_normal(CONFIG.width), jnp.float32),
    'bias': jnp.float32(0.3),
  }
  return value.with_head(lively_params(CONFIG), head)


def left_padded():
  """Tokens i32[3,8] and their mask, the second row padded on both sides."""
  rng = np.random.default_rng(1)
  mask = np.ones((3, 8), bool)
  mask[1, [0, 1, 7]] = False
  return jnp.asarray(rng.integers(0, 32, (3, 8)), jnp.int32), jnp.asarray(mask)


@pytest.mark.full
def test_a_value_is_read_off_the_token_before():
  params, (tokens, mask) = lively(), left_padded()
  features = value.features(MODEL, params, tokens, mask)
  found = np.asarray(value.read_out(params, features, mask))
  kernel = np.asarray(params['value_head']['kernel'])
  for b, real in enumerate(np.asarray(mask)):
    columns = np.nonzero(real)[0]
    for before, t in zip(columns, columns[1:]):
      expected = np.asarray(features)[b, before] @ kernel + 0.3
      assert found[b, t] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found[b, columns[0]] == 0
    assert not found[b, ~real].any()
  # What comes later does not show: the value is of the state before.
  changed = tokens.at[:, 5].add(1) % 32
  again = value.features(MODEL, params, changed, mask)
  again = np.asarray(value.read_out(params, again, mask))
  np.testing.assert_allclose(again[:, :6], found[:, :6], rtol=1e-4, atol=1e-5)
  assert np.all(np.abs(again[:, 6] - found[:, 6]) > 1e-3)


def test_the_policy_takes_no_notice_of_the_head():
  params, (tokens, mask) = lively(), left_padded()
  features = value.features(MODEL, params, tokens, mask)
  bare = value.without_head(params)
  assert set(params) - set(bare) == {'value_head'}
  plain = scoring.score(MODEL, bare, tokens, mask)
  shared = scoring.score(MODEL, params, tokens, mask, features=features)
  for x, y in zip(plain, shared):
    np.testing.assert_allclose(x, y, atol=1e-5)
  # It starts at 0, and so do all values.
  fresh = value.with_head(bare, value.init_head(CONFIG.width))
  assert not value.read_out(fresh, features, mask).any()


def test_a_model_or_parameters_without_one_are_refused():
  params, (tokens, mask) = lively(), left_padded()
  bare = from_apply_fn(lambda *args: None)
  with pytest.raises(ValueError, match='no features_fn'):
    value.features(bare, params, tokens, mask)
  with pytest.raises(ValueError, match="no 'value_head'"):
    value.read_out(value.without_head(params), jnp.zeros((3, 8, 16)), mask)


def test_the_head_is_whole_on_every_device():
  sizes = {'data': 2, 'fsdp': 2, 'tensor': 2, 'context': 1}
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  specs = sharding.param_shardings(lively(), mesh)['value_head']
  assert {tuple(s.spec) for s in specs.values()} == {()}


# ---- its loss


def test_value_loss_by_hand():
  # Errors .5, -1, 0 and one that is masked: (.25 + 1 + 0)/2 = .625.
  values = jnp.array([[0.5, 0.0, 0.3, jnp.nan]])
  targets = jnp.array([[0.0, 1.0, 0.3, jnp.inf]])
  mask = jnp.array([[True, True, True, False]])
  loss, found = losses.value_loss(values, targets, mask)
  assert float(loss.total) == pytest.approx(0.625 / 3)
  assert float(loss.weight) == 1  # a row
  assert float(found['error'].value) == pytest.approx(1.25 / 3)
  assert set(found) == {'error'}
  loss, _ = losses.value_loss(values, targets, mask, aggregate='token_mean')
  assert (float(loss.total), float(loss.weight)) == (0.625, 3)
  # Weights 1, .5, 0: (.25 + .5)/2, over the same three tokens.
  loss, found = losses.value_loss(
    values,
    targets,
    mask,
    weights=jnp.array([[1, 0.5, 0.0, jnp.nan]]),
    aggregate='token_mean',
  )
  assert (float(loss.total), float(loss.weight)) == (0.375, 3)
  assert float(found['error'].value) == pytest.approx(0.25)


def test_value_clip_by_hand():
  # Clip .1, V_old = 0, R = 1.
  # V = .05: moved little, (.95)²/2 = .45125, slope V - R = -.95.
  # V = .3: too far towards R, the limit .1 decides: (.9)²/2 = .405, slope 0.
  # V = -.3: too far away, its own error is the larger: (1.3)²/2 = .845, -1.3.
  values = jnp.array([[0.05, 0.3, -0.3]])
  ones, mask = jnp.ones((1, 3)), jnp.ones((1, 3), bool)

  def total(v):
    loss, found = losses.value_loss(
      v,
      ones,
      mask,
      old_values=jnp.zeros((1, 3)),
      clip=0.1,
      aggregate='token_mean',
    )
    return loss.total, found

  (loss, found), slope = jax.value_and_grad(total, has_aux=True)(values)
  assert float(loss) == pytest.approx(0.45125 + 0.405 + 0.845)
  np.testing.assert_allclose(slope, [[-0.95, 0, -1.3]], rtol=1e-6)
  assert float(found['clip_fraction'].value) == pytest.approx(1 / 3)


def test_value_loss_keeps_nan_out_of_gradients_and_constants_constant():
  rng = np.random.default_rng(0)
  mask = rng.random((4, 5)) < 0.5
  mask[0] = False
  draw = lambda: np.where(mask, rng.standard_normal((4, 5)), np.nan)

  def total(values, targets, old):
    options = {'old_values': old, 'clip': 0.2}
    loss, _ = losses.value_loss(values, targets, mask, **options)
    return loss.total

  given = [jnp.asarray(draw(), jnp.float32) for _ in range(3)]
  slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*given)
  assert np.isfinite(slopes[0]).all()
  assert not np.asarray(slopes[0])[~mask].any()
  assert np.asarray(slopes[0]).any()
  assert not slopes[1].any()
  assert not slopes[2].any()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'clip': 0.2}, 'clip needs old_values'),
    ({'clip': 0.0, 'old_values': jnp.zeros((2, 3))}, 'clip must be > 0'),
    ({'aggregate': 'mean'}, 'aggregate must be one of'),
    ({'aggregate': 'constant'}, 'needs constant'),
    ({'weights': jnp.zeros((2, 4))}, 'weights must have shape'),
  ],
)
def test_bad_options_of_the_loss(options, message):
  zeros = jnp.zeros((2, 3))
  with pytest.raises(ValueError, match=message):
    losses.value_loss(zeros, zeros, jnp.ones((2, 3), bool), **options)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'value_coef': -1.0}, 'value_coef must be >= 0'),
    ({'value_coef': 0.0, 'value_j_coef': 0.0}, 'are both 0'),
    ({'value_coef': 0.0, 'value_clip': 0.1}, 'set value_clip to None'),
    ({'value_clip': 0.0}, 'value_clip must be > 0'),
  ],
)
def test_bad_options_of_the_term(options, message):
  with pytest.raises(ValueError, match=message):
    steps.make_value_term(**options)


@pytest.mark.parametrize('aggregate', losses.AGGREGATES)
def test_the_term_is_added_to_the_loss_of_the_policy(aggregate):
  """One weight, so that the means add up; and the head gets a gradient."""
  rng = np.random.default_rng(2)
  params, (tokens, token_mask) = lively(), left_padded()
  noise = lambda: jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)
  mask = token_mask.at[:, :3].set(False)
  batch = {
    'tokens': tokens,
    'token_mask': token_mask,
    'mask': mask,
    'behavior_log_probs': noise() - 4,
    'advantages': noise(),
    'old_values': noise(),
    'value_targets': noise(),
    'j_targets': noise(),
    'j_mask': mask & (rng.random((3, 8)) < 0.5),
  }
  shared = {'aggregate': aggregate, 'constant': 5}
  term = steps.make_value_term(
    value_coef=0.3, value_j_coef=0.7, value_clip=0.5, **shared
  )
  make = lambda extra: steps.make_loss(MODEL, value_term=extra, **shared)
  policy, _ = jax.jit(make(None))(params, batch)
  whole, metrics = jax.jit(make(term))(params, batch)
  features = value.features(MODEL, params, tokens, token_mask)
  values = np.asarray(value.read_out(params, features, token_mask))
  b = jax.tree.map(np.asarray, batch)
  limited = b['old_values'] + np.clip(values - b['old_values'], -0.5, 0.5)
  error = np.maximum(
    (values - b['value_targets']) ** 2, (limited - b['value_targets']) ** 2
  )
  taught = np.where(b['j_mask'], (values - b['j_targets']) ** 2, 0)
  per_token = (0.3 * error + 0.7 * taught) / 2
  rows = b['mask'].sum(1)
  expected = {
    'token_mean': per_token[b['mask']].sum() / rows.sum(),
    'sequence_mean': np.mean(np.where(b['mask'], per_token, 0).sum(1) / rows),
    'constant': per_token[b['mask']].sum() / 15,
  }[aggregate]
  assert float(whole.weight) == float(policy.weight)
  found = float(whole.value) - float(policy.value)
  assert found == pytest.approx(expected, rel=1e-3)
  gap = np.abs(values - b['j_targets'])[b['j_mask']].mean()
  assert float(metrics['value/j_gap'].value) == pytest.approx(gap, rel=1e-4)
  assert float(metrics['value/mean'].value) == pytest.approx(
    values[b['mask']].mean(), rel=1e-4
  )
  grads = jax.jit(jax.grad(lambda p: make(term)(p, batch)[0].total))(params)
  assert np.abs(grads['value_head']['kernel']).max() > 1e-3
  assert abs(float(grads['value_head']['bias'])) > 1e-3


# ---- what it converges to

EOS, MARKER, DELIMITER = 2, 4, 5


def seen_model():
  """Features: one-hot of (SPECIALs so far, marker so far), six states."""

  def features_fn(params, tokens, positions, cache, mask=None):
    del params, positions, mask
    special = jnp.cumsum(tokens == SPECIAL, axis=1)
    marker = jnp.cumsum(tokens == MARKER, axis=1)
    return jax.nn.one_hot(2 * special + jnp.minimum(marker, 1), 6), cache

  return Model(
    apply_fn=None,
    init_cache=None,
    features_fn=features_fn,
    unembed_fn=lambda params, features: features @ params['table'],
  )


# J after 0, 1 and 2 attempts.
CHANCE = np.array([0.2, 0.5, 0.9], np.float32)


def toy_traces(rows, rng):
  """Traces of 0 to 2 attempts `SPECIAL ;`, whose answer is right by CHANCE."""
  count = np.arange(rows) % 3
  right = rng.random(rows) < CHANCE[count]
  tokens = np.zeros((rows, 8), np.int32)
  for row, k in enumerate(count):
    body = [6, *[SPECIAL, DELIMITER] * k, MARKER, 3, EOS]
    tokens[row, : len(body)] = body
  real = tokens > 0
  columns = np.arange(8)
  zeros = np.zeros(tokens.shape, np.float32)
  traces = Rollout(
    tokens=tokens,
    token_mask=real,
    mask=real & (columns > 0),
    thinking_mask=(columns > 0) & (columns <= 2 * count[:, None]),
    behavior_log_probs=zeros,
    raw_log_probs=zeros,
    truncated=np.zeros(rows, bool),
    forced=np.zeros(rows, bool),
  )
  boundaries = np.minimum(np.arange(3), count[:, None])
  measured = Measured(
    rewards=right.astype(np.float32),
    success=CHANCE[boundaries],
    episodes=Episodes(2 * boundaries, count),
    stop_index=2 * count + 1,
    answered=np.ones(rows, bool),
  )
  return jax.tree.map(jnp.asarray, (traces, measured)), count, right


def fit(traces, measured, **options):
  """Returns the six values after 400 updates of the head alone."""
  model = seen_model()
  term = steps.make_value_term(aggregate='token_mean', **options)
  get_value = steps.make_value(model)
  optimizer = optax.adam(0.02)
  params = value.with_head({'table': jnp.zeros((6, 10))}, value.init_head(6))
  advantage_fn = steps.make_advantages('ppo', group_size=1, decay=1.0)

  def step(carry, _):
    params, opt_state = carry
    critic = get_value(params, traces)
    batch = steps.training_batch(
      traces, dataclasses.replace(measured, critic=critic), advantage_fn
    )

    def loss_fn(params):
      features = value.features(
        model, params, batch['tokens'], batch['token_mask']
      )
      loss, _ = term(params, features, batch)
      return loss.value

    updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  run = jax.jit(
    lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=400)[0][0]
  )
  head = run(params)['value_head']
  return np.asarray(head['kernel'] + head['bias'])


def test_the_value_converges_to_j():
  """With J as its teacher exactly, with sampled returns up to their noise."""
  (traces, measured), count, right = toy_traces(96, np.random.default_rng(0))
  taught = fit(traces, measured, value_coef=0.0, value_j_coef=1.0)
  # States (k attempts, no marker) are the boundaries, (k, marker) the answer.
  np.testing.assert_allclose(taught[::2], CHANCE, atol=2e-3)
  np.testing.assert_allclose(taught[1::2], CHANCE, atol=2e-3)
  plain = fit(traces, measured, value_coef=1.0, value_j_coef=0.0)
  sampled = np.array([right[count == k].mean() for k in range(3)])
  np.testing.assert_allclose(plain[1::2], sampled, atol=2e-3)
  sigma = np.sqrt(CHANCE * (1 - CHANCE) / 32)
  assert np.all(np.abs(sampled - CHANCE) < 4 * sigma)
  assert np.abs(sampled - CHANCE).max() > 0.02
  # Before the first attempt the return is that of what the policy goes on to
  # do, a third each: more than J_0, what stopping at once would give.
  assert plain[0] == pytest.approx(right.mean(), abs=2e-3)
  assert plain[0] > CHANCE[0] + 0.2
  # Both: between them, by their shares of the states.
  both = fit(traces, measured, value_coef=1.0, value_j_coef=1.0)
  assert CHANCE[0] < both[0] < plain[0]


# ---- one device, a mesh, pmap

EQUAL = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np, optax
from meta_rl import models, sharding, steps, update, value
from meta_rl.algorithms import Measured
from meta_rl.types import Episodes, Rollout

config = models.TransformerConfig(
  vocab_size=8, num_layers=1, width=16, num_heads=2, ffn_width=32
)
model = models.make_model(config)
optimizer = optax.sgd(0.5)
head = value.init_head(16)
params = value.with_head(models.init_params(config, jax.random.key(0)), head)
params['value_head']['kernel'] += 0.1
state = update.TrainState(
  params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(1)
)
rng = np.random.default_rng(0)
rows, length = 16, 10
mask = np.arange(length) >= rng.integers(1, 4, (rows, 1))
noise = lambda: rng.standard_normal((rows, length)).astype(np.float32)
traces = Rollout(
  rng.integers(0, 8, (rows, length)).astype(np.int32),
  np.ones((rows, length), bool), mask, mask, noise() - 2, noise(),
  np.zeros(rows, bool), np.zeros(rows, bool),
)
measured = Measured(
  rng.integers(0, 2, rows).astype(np.float32),
  rng.random((rows, 3)).astype(np.float32),
  Episodes(np.tile(np.int32([3, 5, 7]), (rows, 1)), np.full(rows, 2)),
  np.full(rows, 8), np.ones(rows, bool),
)

def make_update(axis_name, spread):
  term = steps.make_value_term(value_clip=0.2)
  return steps.make_update(
    spread(steps.make_loss(model, value_term=term)), optimizer,
    steps.make_advantages('ppo', group_size=1), axis_name=axis_name,
    mini_batches=2, micro_batches=2,
  )

def run(kind, mesh=None):
  parallel = sharding.parallelize(
    kind, generate=None, prove=None, value=steps.make_value(model),
    make_update=make_update, rows_per_prompt=1, mini_batches=2, mesh=mesh,
  )
  own = parallel.put_state(state)
  critic = parallel.value(own.params, traces)
  seen = dataclasses.replace(measured, critic=critic)
  own, metrics = parallel.update(own, traces, seen)
  sums = {name: metric.value for name, metric in metrics.items()}
  assert parallel.traces['value'] == parallel.traces['update'] == 1
  return parallel.get((critic, own.params, sums))

want = run('none')
assert np.abs(want[0].values[mask]).min() > 1e-4
moved = np.abs(want[1]['value_head']['kernel'] - 0.1).max()
assert moved > 1e-2, moved
for kind, mesh in (
  ('jit', sharding.make_mesh(data=2, fsdp=2)), ('pmap', None),
):
  got = run(kind, mesh)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=kind)
print('equal')
"""
QUICK = {
  'XLA_FLAGS': '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


@pytest.mark.soak
@pytest.mark.full
def test_all_kinds_of_parallelism_give_the_same_numbers(run_python):
  assert 'equal' in run_python(EQUAL, devices=4, env=QUICK, timeout=500)


# ---- runs


@pytest.fixture(scope='module')
def straight(small, tmp_path_factory):
  """Four steps of PPO without a stop; saves after 3 and 4."""
  config = small.config('ppo', checkpoint__every=3, critic__value_clip=0.2)
  result = small.run(config, tmp_path_factory.mktemp('ppo') / 'run')
  assert result.code == signals.EXIT_OK, result.err
  result.config = config
  return result


def head_of(source, like, **options):
  """The value head of a start, as numpy."""
  like = value.with_head(like, value.init_head(like['embedding'].shape[1]))
  return jax.device_get(weights.init_from(source, like)['value_head'])


def test_four_steps(straight):
  assert [row['step'] for row in straight.rows] == [1, 2, 3, 4]
  names = 'mean target_mean error clip_fraction j_gap'.split()
  for row in straight.rows:
    assert all(math.isfinite(x) for x in row.values())
    assert {f'value/{name}' for name in names} <= set(row)
    assert {'loss/value', 'loss/value_j', 'time/value_s'} <= set(row)
    assert row['policy/log_prob_gap'] < 1e-5
  # generate, prove, value, update, summarize; evaluation's two from step 2 on.
  assert [row['compile/count'] for row in straight.rows] == [5, 7, 7, 7]
  like = setup_run.abstract_params(straight.config)
  head = head_of(f'{straight.folder}@last', like)
  assert np.abs(head['kernel']).max() > 0


@pytest.mark.full
def test_two_and_two_steps_are_four_bit_for_bit(
  small, straight, tmp_path, monkeypatch
):
  config, real = straight.config, train.rl_step
  seen = []

  def rl_step(*args):
    result = real(*args)
    seen.append(None)
    if len(seen) == 2:
      signals.signal.raise_signal(signals.signal.SIGTERM)
    return result

  with monkeypatch.context() as patch:
    patch.setattr(train, 'rl_step', rl_step)
    stopped = small.run(config, tmp_path / 'run')
  assert stopped.code == signals.EXIT_INTERRUPTED, stopped.err
  resumed = small.run(config, tmp_path / 'run')
  assert resumed.code == signals.EXIT_OK, resumed.err
  assert 'resuming after step 2 of 4' in resumed.out
  untimed = lambda rows: [
    {k: v for k, v in r.items() if not k.startswith(('time/', 'compile/'))}
    for r in rows
  ]
  assert untimed(resumed.rows) == untimed(straight.rows)


@pytest.mark.full  # shapes of its own: several programs to compile
def test_a_group_of_one(small, tmp_path):
  config = small.config(
    'ppo',
    rollout__group_size=1,
    rollout__num_prompts=16,
    batching__length_buckets=(),
    total_steps=1,
  )
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert 'rollout/zero_variance_share' not in result.rows[0]


def test_where_a_critic_comes_from_and_goes_to(small, straight, tmp_path):
  """A start may have a value head or not; a policy goes without."""
  like = setup_run.abstract_params(straight.config)
  run = f'{straight.folder}@last'
  # To an algorithm without a critic: the policy alone.
  policy = weights.init_from(run, like)
  assert set(policy) == set(like)
  # From the file of a policy: 0. From the run, and its whole file: the head.
  files = [str(tmp_path / f'{name}.safetensors') for name in ('bare', 'whole')]
  for file, head in zip(files, (False, True)):
    export.export(
      straight.folder, file, which='last', dtype=None, value_head=head
    )
  tensors, _ = weights.load_safetensors(files[0])
  assert set(tensors) == set(like)
  assert small.equal(tensors, policy)
  assert not any(x.any() for x in head_of(files[0], like).values())
  assert small.equal(head_of(files[1], like), head_of(run, like))
  assert small.equal(weights.init_from(files[1], like), policy)
  # From the run of an algorithm without one: 0, and the policy as it is.
  folder = tmp_path / 'checkpoints'
  with checkpoint.Checkpointer(folder) as saver:
    saver.save(1, {'params': policy}, {}, wait=True)
  assert not any(x.any() for x in head_of(str(tmp_path), like).values())
  config = small.config('ppo', init_from=f'{tmp_path}@last')
  params = setup_run.initial_params(config)
  assert small.equal(value.without_head(params), policy)
  # Any other tensor that is missing is still refused.
  strange = like | {'other_head': like['embedding']}
  for source in (run, files[0]):
    with pytest.raises((ValueError, RuntimeError), match='other_head'):
      weights.init_from(source, strange)


def test_no_head_to_export(small, tmp_path):
  config = small.config('mrt')
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
  with pytest.raises(ValueError, match='has no value head'):
    export.export(str(tmp_path), 'x', which='last', dtype=None, value_head=True)


def test_the_command_asks_for_the_head(straight, tmp_path, monkeypatch):
  file = tmp_path / 'whole.safetensors'
  flags = types.SimpleNamespace(
    workdir=str(straight.folder),
    out=str(file),
    which='last',
    dtype=None,
    command='',
    value_head=True,
    format='safetensors',
  )
  monkeypatch.setattr(export, 'FLAGS', flags)
  export.main(['export'])
  assert 'value_head' in weights.load_safetensors(file)[0]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prover__kind': 'none'}, 'value_j_coef=0.5 needs a prover'),
    ({'critic__value_coef': -1.0}, 'value_coef must be >= 0'),
    ({'algorithm__decay': 1.5}, 'decay must be >= 0 and <= 1'),
    (
      {'critic__value_coef': 0.0, 'critic__value_j_coef': 0.0},
      'are both 0',
    ),
  ],
)
def test_configs_that_are_refused(changes, message, small):
  with pytest.raises(ValueError, match=message):
    check_config.check(small.config('ppo', **changes))


def test_a_critic_belongs_to_ppo(small):
  config = small.config('ppo')
  del config.critic
  with pytest.raises(ValueError, match="name='ppo' needs config.critic"):
    check_config.check(config)
  config = small.config('mrt')
  config.critic = {'value_coef': 0.5}
  with pytest.raises(ValueError, match='config.critic applies to ppo'):
    check_config.check(config)


def test_without_a_prover_the_usual_ppo(small):
  check_config.check(small.config('ppo', 'plain,tiny', prover__kind='none'))
  assert algorithms.ALGORITHMS['ppo'] is algorithms.ppo
