"""Tests of meta_rl.models.dense: attention with a gradient of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl.models import attention, dense

DIM = 8


def inputs(length, heads=4, kv_heads=2, dtype=jnp.float32):
  """q, k, v, dy, and which tokens are no padding: of row 1 the first 3 are."""
  rng = np.random.default_rng(0)
  draw = lambda count: jnp.asarray(
    rng.normal(size=(2, count, length, DIM)), dtype
  )
  valid = np.ones((2, length), bool)
  valid[1, :3] = False
  q, k, v, dy = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
  return (q, k, v), dy * valid[:, None, :, None], jnp.asarray(valid)


def values_and_gradients(fn, args, dy):
  y, pull = jax.vjp(fn, *args)
  return y * (dy != 0), *pull(dy.astype(y.dtype))


def compare(found, wanted, atol):
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), atol=atol
    )


@pytest.mark.parametrize(
  'length, heads, kv_heads, softcap',
  [(5, 2, 2, None), (40, 4, 2, 5.0), (144, 3, 3, None), (150, 4, 1, None)],
)
def test_causal_blocks_are_plain_attention(length, heads, kv_heads, softcap):
  args, dy, valid = inputs(length, heads, kv_heads)
  mask, _ = attention.attention_mask(valid, None, None)
  plain = lambda q, k, v: attention.attend(q, k, v, mask, softcap=softcap)
  own = lambda q, k, v: dense.dense_attend(
    q, k, v, mask, causal=True, softcap=softcap
  )
  compare(
    jax.jit(values_and_gradients, static_argnums=0)(own, args, dy),
    jax.jit(values_and_gradients, static_argnums=0)(plain, args, dy),
    2e-5,
  )


@pytest.mark.parametrize('softcap', [None, 2.0])
def test_any_mask(softcap):
  args, dy, valid = inputs(37)
  mask = jnp.asarray(np.random.default_rng(1).random((2, 37, 37)) < 0.4)
  mask |= jnp.eye(37, dtype=bool)  # also of later keys
  mask &= valid[:, None]
  plain = lambda q, k, v: attention.attend(q, k, v, mask, softcap=softcap)
  own = lambda q, k, v: dense.dense_attend(q, k, v, mask, softcap=softcap)
  compare(
    values_and_gradients(own, args, dy),
    values_and_gradients(plain, args, dy),
    2e-5,
  )


@pytest.mark.parametrize('softcap', [None, 2.0])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_query_without_a_key_moves_no_score(softcap, dtype):
  args, _, valid = inputs(40, dtype=dtype)
  dy = jnp.ones_like(args[0])  # of padding, too
  mask, _ = attention.attention_mask(valid, None, None)
  seeing = mask.any(-1)
  assert not seeing[1, :3].any()
  assert seeing[0].all()
  plain = lambda q, k, v: attention.attend(q, k, v, mask, softcap=softcap)
  own = lambda q, k, v: dense.dense_attend(q, k, v, mask, softcap=softcap)
  compare(
    values_and_gradients(own, args, dy),
    values_and_gradients(plain, args, dy),
    2e-5 if dtype == jnp.float32 else 0.15,
  )
  own = lambda q, k, v: dense.dense_attend(
    q, k, v, mask, causal=True, softcap=softcap
  )
  to_q = values_and_gradients(own, args, dy)[1]
  assert not to_q[1, :, :3].any()


def test_no_tokens():
  args, _, _ = inputs(0)
  mask = jnp.zeros((2, 0, 0), bool)
  for causal in (False, True):
    assert dense.dense_attend(*args, mask, causal=causal).shape == (2, 4, 0, 8)


def test_a_query_without_a_key_gets_the_mean_and_its_gradient():
  # As in plain attention: all scores are alike, 1 / L each.
  args, dy, _ = inputs(6)
  mask = jnp.zeros((2, 6, 6), bool)
  own = lambda q, k, v: dense.dense_attend(q, k, v, mask)
  y, to_q, to_k, to_v = values_and_gradients(own, args, dy)
  mean = args[2].mean(2, keepdims=True).repeat(2, axis=1)
  np.testing.assert_allclose(y, mean * (dy != 0), atol=1e-6)
  each = dy.reshape(2, 2, 2, 6, DIM).sum((2, 3)) / 6
  np.testing.assert_allclose(to_v, each[:, :, None].repeat(6, 2), atol=1e-6)
  assert not to_q.any()
  assert not to_k.any()


def test_large_scores_stay_finite():
  args, dy, valid = inputs(40)
  mask, _ = attention.attention_mask(valid, None, None)
  args = (args[0] * 1e4, *args[1:])
  own = lambda q, k, v: dense.dense_attend(q, k, v, mask, causal=True)
  for x in values_and_gradients(own, args, dy):
    assert np.isfinite(x).all()


def test_bfloat16_is_as_close_as_plain_attention_is():
  args, dy, valid = inputs(144, dtype=jnp.bfloat16)
  mask, _ = attention.attention_mask(valid, None, None)
  plain = lambda q, k, v: attention.attend(q, k, v, mask)
  own = lambda q, k, v: dense.dense_attend(q, k, v, mask, causal=True)
  wide = [x.astype(jnp.float32) for x in args]
  exact = values_and_gradients(plain, wide, dy.astype(jnp.float32))
  error = lambda fn: [
    float(jnp.sqrt(jnp.square(a.astype(jnp.float32) - b).mean()))
    for a, b in zip(values_and_gradients(fn, args, dy), exact, strict=True)
  ]
  for ours, theirs in zip(error(own), error(plain), strict=True):
    assert ours <= 1.25 * theirs


def test_no_score_of_a_later_block_is_computed():
  args, _, valid = inputs(144)
  mask, _ = attention.attention_mask(valid, None, None)
  count = lambda causal: (
    jax.jit(
      jax.grad(
        lambda q, k, v: dense.dense_attend(q, k, v, mask, causal=causal).sum(),
        argnums=(0, 1, 2),
      )
    )
    .lower(*args)
    .cost_analysis()['flops']
  )
  # (48 + 96 + 144) / (3 * 144) of all scores.
  assert count(True) < 0.72 * count(False)


@pytest.mark.parametrize('length', [1, 31, 32, 33, 144, 512, 1000, 5000])
def test_spans_cover_all_queries_once(length):
  spans = dense.causal_spans(length)
  assert (spans[0][0], spans[-1][1]) == (0, length)
  for (_, end), (begin, _) in zip(spans, spans[1:]):
    assert end == begin
  assert len(spans) <= 8
