"""Tests of meta_rl.cache: both kinds of cache, rows and slots alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import cache as caches
from meta_rl import models

TOKENS = np.random.default_rng(2).integers(0, 32, (3, 4), np.int32)
POSITIONS = np.broadcast_to(np.arange(4, dtype=np.int32), (3, 4))
PARAMS = {
  scan: lively_params(tiny(num_layers=2, scan_layers=scan))
  for scan in (False, True)
}


def model_of(kind):
  own = models.make_model(tiny(num_layers=2, scan_layers=kind == 'scan'))
  return models.from_apply_fn(own.apply_fn) if kind == 'buffer' else own


@pytest.fixture(scope='module', params=['kv', 'scan', 'buffer'])
def setup(request):
  """A model, a jitted forward pass, and a cache of 3 rows x 3 of 3 slots."""
  model = model_of(request.param)
  params = PARAMS[request.param == 'scan']
  apply = jax.jit(lambda t, s, c: model.apply_fn(params, t, s, c))
  cache = model.init_cache(3, 3)
  _, cache = apply(TOKENS[:, :3], POSITIONS[:, :3], cache)
  return model, apply, cache


@pytest.fixture(scope='module')
def expected():
  """Logits after the fourth token of each row, without any cache."""
  model = model_of('kv')
  params = PARAMS[False]
  logits, _ = jax.jit(model.apply_fn)(params, TOKENS, POSITIONS, None)
  own = np.asarray(logits[:, 3])
  model, params = model_of('scan'), PARAMS[True]
  logits, _ = jax.jit(model.apply_fn)(params, TOKENS, POSITIONS, None)
  return {'kv': own, 'buffer': own, 'scan': np.asarray(logits[:, 3])}


def test_grow_fork_and_take(setup, expected, request):
  model, apply, cache = setup
  expected = expected[request.node.callspec.params['setup']]
  grown = caches.grow(model, cache, 2)
  assert jax.tree.map(jnp.shape, grown) == jax.tree.map(
    jnp.shape, jax.eval_shape(lambda: model.init_cache(3, 5))
  )
  # Each row stands twice in succession; then rows 2, 0, 2 and others of those.
  forked = caches.fork(model, grown, 2)
  rows = np.array([5, 0, 4, 2, 1, 3])
  taken = caches.take(model, forked, jnp.asarray(rows))
  logits, after = apply(TOKENS[rows // 2, 3:], POSITIONS[rows // 2, 3:], taken)
  np.testing.assert_allclose(logits[:, 0], expected[rows // 2], atol=1e-4)
  assert after['index'] == 4
  # What was there before is untouched, bit for bit.
  back = caches.take(model, forked, jnp.array([0, 2, 4]))
  jax.tree.map(np.testing.assert_array_equal, back, grown)


def test_behind(setup, expected, request):
  model, _, cache = setup
  expected = expected[request.node.callspec.params['setup']]
  params = PARAMS[request.node.callspec.params['setup'] == 'scan']
  rows = np.array([2, 0, 2])
  moved = caches.behind(model, caches.grow(model, cache, 1), rows, 3, 2)
  assert jax.tree.map(jnp.shape, moved) == jax.tree.map(
    jnp.shape, jax.eval_shape(lambda: model.init_cache(3, 5))
  )
  assert moved['index'] == 0
  # The token takes the first of two empty slots and sees itself and the row.
  mask = jnp.broadcast_to(jnp.array([1, 0, 1, 1, 1], bool), (3, 1, 5))
  logits, after = jax.jit(model.apply_fn)(
    params, TOKENS[rows, 3:], POSITIONS[rows, 3:], moved, mask
  )
  np.testing.assert_allclose(logits[:, 0], expected[rows], atol=1e-4)
  assert after['index'] == 1


def test_one_copy_and_no_slot_change_nothing(setup):
  model, _, cache = setup
  same = caches.grow(model, caches.fork(model, cache, 1), 0)
  jax.tree.map(np.testing.assert_array_equal, same, cache)


def test_under_jit_and_by_traced_rows(setup):
  model, _, cache = setup
  take = jax.jit(lambda c, r: caches.take(model, c, r))
  rows = jnp.array([2, 1])
  jax.tree.map(
    np.testing.assert_array_equal,
    take(cache, rows),
    caches.take(model, cache, rows),
  )
