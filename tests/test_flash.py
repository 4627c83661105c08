"""Tests of meta_rl.models.flash: attention without all of its scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from meta_rl import models
from meta_rl.models import attention, flash

HEADS, KV_HEADS, DIM = 4, 2, 16


def inputs(length, seed=0):
  """q, k, v, and which tokens are no padding: of one row none, of one 7."""
  rng = np.random.default_rng(seed)
  draw = lambda heads: jnp.asarray(
    rng.normal(size=(2, heads, length, DIM)), jnp.float32
  )
  valid = np.ones((2, length), bool)
  valid[1, :7] = False
  return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS), jnp.asarray(valid)


def compare(fn, length, softcap=None):
  """Values and gradients of `fn` against dense attention, where not padding."""
  q, k, v, valid = inputs(length)
  mask, _ = attention.attention_mask(valid, None, None)
  seen = valid[:, None, :, None]
  weights = jnp.asarray(
    np.random.default_rng(1).normal(size=q.shape), jnp.float32
  )

  def total(attend):
    def loss(args):
      y = jnp.where(seen, attend(*args, mask, valid), 0.0)
      return (y * weights).sum(), y

    return jax.value_and_grad(loss, has_aux=True)((q, k, v))

  dense = lambda q, k, v, mask, _: attention.attend(
    q, k, v, mask, softcap=softcap
  )
  (_, wanted), wanted_grads = total(dense)
  (_, found), grads = total(fn)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  for a, b in zip(grads, wanted_grads):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize('softcap', [None, 5.0])
def test_blocks_of_queries_are_dense_attention(softcap):
  # One block more than is whole: 512 + 88.
  compare(
    lambda *args: flash.flash_attend(attention.attend, *args, softcap=softcap),
    600,
    softcap,
  )


def test_few_queries_are_one_block():
  compare(lambda *args: flash.flash_attend(attention.attend, *args), 40)


@pytest.mark.parametrize('softcap', [None, 5.0])
def test_the_tpu_kernel_is_dense_attention(softcap):
  """Interpreted here: the kernel's own code, its padding and its segments."""
  compare(
    lambda q, k, v, mask, valid: flash._splash(
      q,
      k,
      v,
      valid,
      valid,
      None,
      flash.splash_kernel(
        q.shape[1:3], 128, 1, softcap=softcap, interpret=True
      ),
    ),
    150,
    softcap,
  )


def test_parts_of_the_queries_are_attention_together():
  """Of the kernel whose queries are cut in three, as devices have it."""
  parts, tile = 3, 128

  def attend(q, k, v, mask, valid):
    kernel = flash.splash_kernel(q.shape[1:3], tile, parts, interpret=True)
    axes = flash._kernel_axes(kernel)
    found = []
    for part in range(parts):
      own = slice(tile * part, tile * (part + 1))

      def cut(x, names, part=part):
        if 'length' not in names:
          return x
        return jnp.split(x, parts, names.index('length'))[part]

      mine = jax.tree.map(cut, kernel, axes)
      found.append(
        flash._splash(q[:, :, own], k, v, valid, valid[:, own], None, mine)
      )
    return jnp.concatenate(found, axis=2)

  compare(attend, parts * tile)


@pytest.mark.parametrize('length', [63, 64])
def test_cudnn_takes_any_length(length, monkeypatch):
  """It wants even ones for a gradient with a mask; no GPU is needed to ask."""
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000
  )
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_compute_capability', lambda _: True
  )
  half = lambda x: x.astype(jnp.bfloat16)
  q, k, v, valid = inputs(length)
  mask, _ = attention.attention_mask(valid, None, None)

  def loss(q, k, v):
    return flash._cudnn(q, k, v, mask).astype(jnp.float32).sum()

  grads = jax.eval_shape(jax.grad(loss, (0, 1, 2)), half(q), half(k), half(v))
  assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize(
  'options',
  [
    pytest.param({}, marks=[pytest.mark.full, pytest.mark.soak]),
    pytest.param({'scan_layers': True, 'remat': True}, marks=pytest.mark.full),
    pytest.param(
      {'sliding_window': 9, 'local_layers': (True, False)},
      marks=pytest.mark.full,
    ),
    {
      'sliding_window': 9,
      'local_layers': (True, False),
      'scan_layers': True,
      'remat': True,
    },
  ],
)
def test_a_model_is_the_same_with_it(options, monkeypatch):
  monkeypatch.setattr(flash, 'BLOCK', 16)  # several blocks of a short row
  shape = {
    'vocab_size': 32,
    'num_layers': 2,
    'width': 16,
    'num_heads': 2,
    'num_kv_heads': 1,
    'ffn_width': 32,
  }
  tokens = jnp.asarray(np.random.default_rng(0).integers(32, size=(2, 40)))
  positions = jnp.where(jnp.arange(40) < jnp.array([[0], [5]]), -1, 0)
  positions = jnp.where(positions < 0, -1, jnp.cumsum(positions + 1, 1) - 1)
  found = {}
  for kind in ('dense', 'flash'):
    config = models.TransformerConfig(**shape, **options, attention=kind)
    params = models.init_params(config, jax.random.key(0))
    model = models.make_model(config)

    def loss(params, model=model):
      logits, _ = model.apply_fn(params, tokens, positions, None)
      logits = jnp.where(positions[..., None] < 0, 0.0, logits)
      return (logits**2).mean(), logits

    found[kind] = jax.value_and_grad(loss, has_aux=True)(params)
  (_, wanted), wanted_grads = found['dense']
  (_, logits), grads = found['flash']
  np.testing.assert_allclose(logits, wanted, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    grads,
    wanted_grads,
  )


def test_an_unknown_kind_is_one_line():
  with pytest.raises(ValueError, match="attention must be one of .*got 'dens'"):
    models.TransformerConfig(
      vocab_size=8,
      num_layers=1,
      width=8,
      num_heads=1,
      ffn_width=8,
      attention='dens',
    )
