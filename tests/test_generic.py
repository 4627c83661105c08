"""Tests of meta_rl.models.generic: a token buffer in place of a KV cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, counting_model, lively_params, tiny

from meta_rl import cache as caches
from meta_rl import models
from meta_rl.scoring import positions_of

CONFIG = tiny(num_layers=1)
TOKENS = np.random.default_rng(1).integers(0, 32, (2, 6), np.int32)
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1]], bool)
POSITIONS = np.asarray(positions_of(MASK))
# The last two queries look at chosen slots instead of at all before them, and
# at slots that were never written.
CHOSEN = np.array([[1, 1, 1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1]], bool)[
  None
].repeat(2, 0)


@pytest.fixture(scope='module')
def logits():
  """Of the transformer's own cache and of the buffer around its bare function.

  Four tokens in two writes, then two under a mask of their own, in a cache that
  was grown on the way.
  """

  def steps(model):
    @jax.jit
    def run(params):
      cache = model.init_cache(2, 4)
      first, cache = model.apply_fn(
        params, TOKENS[:, :3], POSITIONS[:, :3], cache
      )
      second, cache = model.apply_fn(
        params, TOKENS[:, 3:4], POSITIONS[:, 3:4], cache
      )
      cache = caches.grow(model, cache, 4)
      third, _ = model.apply_fn(
        params, TOKENS[:, 4:], POSITIONS[:, 4:], cache, CHOSEN
      )
      return jnp.concatenate([first, second, third], 1)

    return run(lively_params(CONFIG))

  own = models.make_model(CONFIG)
  return {
    'kv': steps(own),
    'buffer': steps(models.from_apply_fn(own.apply_fn)),
  }


def test_buffer_equals_the_kv_cache(logits):
  assert logits['buffer'].shape == (2, 6, 32)
  np.testing.assert_allclose(
    logits['buffer'][MASK], logits['kv'][MASK], atol=1e-4
  )


def test_a_query_sees_the_slots_of_its_mask_and_no_void_ones():
  model = counting_model()
  # params[c] says c at the first entry of the vocabulary.
  params = jnp.arange(10.0)[:, None] * jnp.ones(2)
  cache = model.init_cache(1, 2)
  tokens = jnp.full((1, 2), SPECIAL)
  logits, cache = model.apply_fn(params, tokens, jnp.array([[-1, 0]]), cache)
  assert logits[0, 1, 0] == 1  # itself, not the padding before it
  cache = caches.grow(model, cache, 3)
  one = jnp.full((1, 1), SPECIAL)
  logits, cache = model.apply_fn(params, one, jnp.array([[1]]), cache)
  assert logits[0, 0, 0] == 2
  everything = jnp.ones((1, 1, 5), bool)
  logits, cache = model.apply_fn(
    params, one, jnp.array([[2]]), cache, everything
  )
  assert logits[0, 0, 0] == 3  # not the padding, not the slot never written
  assert cache['index'] == 4


def test_without_a_cache_it_is_causal_and_hides_padding():
  model = counting_model()
  params = jnp.arange(10.0)[:, None] * jnp.ones(2)
  tokens = jnp.full((1, 4), SPECIAL)
  positions = jnp.array([[0, -1, 1, 2]])
  logits, cache = model.apply_fn(params, tokens, positions, None)
  assert cache is None
  np.testing.assert_array_equal(logits[0, :, 0], [1, 1, 2, 3])
  mask = jnp.ones((1, 4, 4), bool)
  logits, _ = model.apply_fn(params, tokens, positions, None, mask)
  np.testing.assert_array_equal(logits[0, :, 0], [3, 3, 3, 3])


def test_an_empty_cache_is_all_zeros():
  for leaf in jax.tree.leaves(counting_model().init_cache(2, 3)):
    assert not leaf.any()
