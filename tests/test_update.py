"""Tests of meta_rl.update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_rl import update
from meta_rl.types import WeightedSum


def loss_fn(params, batch):
  """A weighted mean of (p·x - y)², weights that differ much between rows."""
  error = (batch['x'] @ params['p'] - batch['y']) ** 2
  weight = batch['w'].sum()
  loss = WeightedSum((batch['w'] * error).sum(), weight)
  return loss, {'error': WeightedSum(jnp.abs(error).sum(), weight * 0 + 1)}


def make_batch(rows=12, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'x': rng.standard_normal((rows, 3)).astype(np.float32),
    'y': rng.standard_normal(rows).astype(np.float32),
    'w': rng.integers(0, 9, rows).astype(np.float32),
  }


def make_state(optimizer, p=(0.5, -1.0, 2.0)):
  params = {'p': jnp.array(p)}
  return update.TrainState(
    params=params,
    opt_state=optimizer.init(params),
    step=jnp.asarray(4),
    key=jax.random.key(9),
  )


SGD = optax.sgd(0.1)


def test_one_sgd_step_by_hand():
  # p = 1, rows (x, y, w) = (1, 3, 1), (2, 1, 3). Loss: (1·4 + 3·1)/4 = 1.75.
  # Gradient: (1·2·(-2)·1 + 3·2·1·2)/4 = (-4 + 12)/4 = 2; p = 1 - 0.1·2 = 0.8.
  batch = {
    'x': jnp.array([[1.0], [2.0]]),
    'y': jnp.array([3.0, 1.0]),
    'w': jnp.array([1.0, 3.0]),
  }
  state, metrics = update.update(
    make_state(SGD, [1.0]), batch, loss_fn=loss_fn, optimizer=SGD
  )
  np.testing.assert_allclose(state.params['p'], [0.8], rtol=1e-6)
  # One optimizer step: a leading axis of one.
  assert metrics['loss/total'].weight.tolist() == [4]
  assert update.to_scalars(metrics) == pytest.approx(
    {
      'loss/total': 1.75,
      'optimizer/grad_norm': 2,
      'optimizer/update_norm': 0.2,
      'error': 5,
    }
  )
  assert state.step == 5
  assert (state.key == make_state(SGD).key).all()


@pytest.mark.parametrize('parts', [2, 3, 12])
def test_micro_batches_of_unequal_weight_equal_the_whole(parts):
  # A mean of micro-batch means would differ: the weights of the parts do.
  batch = make_batch()
  weights = update.split_batch(batch, parts)['w'].sum(1)
  assert len(np.unique(weights)) > 1
  state = make_state(SGD)
  whole = update.gradients(loss_fn, state.params, batch)
  cut = update.gradients(loss_fn, state.params, batch, micro_batches=parts)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
  # The metric 'error' counts micro-batches: its sum is shared, its weight not.
  jax.tree.map(close, cut[:2], whole[:2])
  close(cut[2]['error'].total, whole[2]['error'].total)
  assert cut[2]['error'].weight == parts


def test_mini_batches_times_epochs_optimizer_steps():
  batch = make_batch()
  # The optimizer counts: each step adds 1 to the first parameter.
  count = optax.stateless(lambda g, _: jax.tree.map(jnp.ones_like, g))
  state, metrics = update.update(
    make_state(count),
    batch,
    loss_fn=loss_fn,
    optimizer=count,
    mini_batches=2,
    epochs=3,
    micro_batches=2,
  )
  assert state.params['p'][0] == 0.5 + 6
  assert state.step == 5  # one rollout
  # The weights of each half, three times.
  halves = [batch['w'][:6].sum(), batch['w'][6:].sum()]
  np.testing.assert_allclose(metrics['loss/total'].weight, halves * 3)
  assert metrics['optimizer/grad_norm'].weight.tolist() == [1] * 6


def test_mini_batches_are_taken_in_order_one_after_the_other():
  batch, adam = make_batch(), optax.adam(0.05)
  options = {'loss_fn': loss_fn, 'optimizer': adam}
  found, _ = jax.jit(
    lambda s, b: update.update(s, b, mini_batches=3, epochs=2, **options)
  )(make_state(adam), batch)
  state = make_state(adam)
  for _ in range(2):
    for start in (0, 4, 8):
      part = jax.tree.map(lambda x, i=start: x[i : i + 4], batch)
      state, _ = update.optimizer_step(state, part, **options)
  np.testing.assert_allclose(found.params['p'], state.params['p'], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    found.opt_state,
    state.opt_state,
  )


@pytest.mark.parametrize('parts', [1, 2])
def test_no_weight_gives_a_zero_gradient(parts):
  batch = make_batch() | {'w': np.zeros(12, np.float32)}
  state, metrics = update.update(
    make_state(SGD),
    batch,
    loss_fn=loss_fn,
    optimizer=SGD,
    micro_batches=parts,
  )
  np.testing.assert_array_equal(state.params['p'], [0.5, -1, 2])
  assert update.to_scalars(metrics)['loss/total'] == 0


def test_split_batch_keeps_the_order_of_rows():
  parts = update.split_batch({'a': jnp.arange(6), 'b': jnp.ones((6, 2))}, 3)
  np.testing.assert_array_equal(parts['a'], [[0, 1], [2, 3], [4, 5]])
  assert parts['b'].shape == (3, 2, 2)


@pytest.mark.parametrize(
  'batch, message',
  [
    ({'a': np.zeros(6)}, 'a batch of 6 rows cannot be cut into 4 equal parts'),
    ({'a': np.zeros(8), 'b': np.zeros(4)}, r'a batch of \[4, 8\] rows'),
  ],
)
def test_rows_that_cannot_be_cut_are_refused(batch, message):
  with pytest.raises(ValueError, match=message):
    update.split_batch(batch, 4)


def test_to_scalars_divides_once():
  # (1 + 9)/(1 + 4) = 2, not the mean of 1 and 9/4; nothing measured is 0; and
  # the gap to the policy that sampled is that of the first step, 3/1.
  sums = lambda total, weight: WeightedSum(jnp.array(total), jnp.array(weight))
  found = update.to_scalars(
    {
      'loss/total': sums([1.0, 9.0], [1.0, 4.0]),
      'loss/kl': sums([0.0, 0.0], [0.0, 0.0]),
      'policy/log_prob_gap': sums([3.0, 8.0], [1.0, 1.0]),
    }
  )
  assert found == {'loss/total': 2, 'loss/kl': 0, 'policy/log_prob_gap': 3}


@pytest.mark.parametrize('parts', [1, 3])
def test_length_buckets_cut_padding_and_change_no_number(parts):
  rng = np.random.default_rng(2)
  lengths = np.array([6, 2, 4, 1, 3, 2])
  batch = {
    'x': rng.standard_normal((6, 6)).astype(np.float32),
    'token_mask': np.arange(6) < lengths[:, None],
    'row': rng.standard_normal(6).astype(np.float32),
  }
  seen = set()

  def masked_loss(params, batch):
    seen.add(batch['x'].shape)
    value = jnp.sin(params['p'][0] * batch['x']) * batch['row'][:, None]
    mask = batch['token_mask']
    total = jnp.where(mask, value, 0).sum()
    return WeightedSum(total, mask.sum().astype(jnp.float32)), {}

  params = make_state(SGD).params
  whole = update.gradients(masked_loss, params, batch)
  seen.clear()
  cut = update.gradients(
    masked_loss, params, batch, micro_batches=parts, length_buckets=(2, 4, 99)
  )
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, cut, whole)
  assert seen == {(6 // parts, n) for n in (2, 4, 6)}
  order = update.sort_by_length(batch)
  assert update.row_lengths(order['token_mask']).tolist() == [1, 2, 2, 3, 4, 6]


def test_traced_once():
  run = jax.jit(
    chex.assert_max_traces(
      lambda s, b: update.update(
        s, b, loss_fn=loss_fn, optimizer=SGD, mini_batches=2
      )[0],
      1,
    )
  )
  state = make_state(SGD)
  for seed in range(3):
    state = run(state, make_batch(seed=seed))
  assert state.step == 7


DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from test_update import SGD, loss_fn, make_batch, make_state
from meta_rl import update

batch, state = make_batch(), make_state(SGD)
run = lambda s, b, axis=None, parts=1: update.update(
  s, b, loss_fn=loss_fn, optimizer=SGD, axis_name=axis, micro_batches=parts,
  mini_batches=2)
# Device d holds rows 6d ... 6d + 5, so mini-batch m is rows 3m ... of both.
order = np.arange(12).reshape(2, 2, 3).swapaxes(0, 1).reshape(-1)
one, sums = run(state, jax.tree.map(lambda x: x[order], batch))
mesh = Mesh(np.array(jax.devices()), ('data',))

def check(name, new, metrics):
  np.testing.assert_allclose(
    new.params['p'].reshape(-1, 3)[0], one.params['p'], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(
    metrics['loss/total'].value.reshape(-1, 2)[0], sums['loss/total'].value,
    rtol=1e-5, err_msg=name)

for parts in (1, 3):
  for vma in (True, False):
    f = jax.shard_map(lambda s, b: run(s, b, 'data', parts), mesh=mesh,
                      in_specs=(P(), P('data')), out_specs=P(), check_vma=vma)
    check(f'shard_map {parts} {vma}', *jax.jit(f)(state, batch))
f = jax.pmap(lambda s, b: run(s, b, 'data', 3), axis_name='data',
             in_axes=(None, 0))
split = jax.tree.map(lambda x: x.reshape(2, 6, *x.shape[1:]), batch)
check('pmap', *f(state, split))
print('equal')
"""


def test_two_devices_equal_one(run_python, root):
  # Under shard_map's own replication rules, without them, and under pmap.
  path = f'{root}:{root / "tests"}'
  out = run_python(DEVICES, devices=2, env={'PYTHONPATH': path})
  assert out.split() == ['equal']
