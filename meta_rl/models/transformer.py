"""A decoder-only transformer in Flax Linen, behind the `Model` seam.

RMSNorm, rotary positions, grouped-query attention and a gated feed-forward;
`TransformerConfig` has the switches that Llama, Qwen2, Qwen3 and Gemma 3 need.

Axes: B rows, Q query tokens, L cache length, D width, V vocabulary. Linear
layers see 2-D operands [B*Q, D], and attention keeps heads before time, so that
every product is a plain batched matrix multiply.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from meta_rl import places
from meta_rl.models.attention import (
  Attention,
  attention_mask,
  make_views,
  soft_cap,
)
from meta_rl.models.config import TransformerConfig, kept_names
from meta_rl.models.flash import TILE
from meta_rl.models.layers import RMSNorm, make_linear, product
from meta_rl.types import Array, Cache, Model, Params

_GATES = {
  'silu': nn.silu,
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}

# Rows and vocabulary for which `unembed` turns its product round.
_FEW_ROWS, _LARGE_VOCAB = 64, 8192


class Block(nn.Module):
  """x + Attention(norm x), then x + SwiGLU(norm x), each with a post-norm."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, cache, local, views, valid, index, layer=None):
    c = self.config
    norm = functools.partial(
      RMSNorm, c.norm_eps, c.norm_plus_one, c.param_dtype
    )
    linear = lambda features, name: make_linear(c, features, c.ffn_bias, name)
    view = views[0]
    if len(views) == 2:
      view = jax.tree.map(lambda a, b: jnp.where(local, b, a), *views)
    y = norm(name='attention_norm')(x)
    attention = Attention(c, name='attention')
    y, cache = attention(y, view, valid, cache, index, layer)
    if c.post_norms:
      y = norm(name='attention_post_norm')(y)
    x = _place(x + y, None)
    y = norm(name='ffn_norm')(x)
    gate = checkpoint_name(linear(c.ffn_width, 'gate')(y), 'gate')
    up = checkpoint_name(linear(c.ffn_width, 'up')(y), 'up')
    gate, up = _place(gate, 'ffn'), _place(up, 'ffn')
    y = linear(c.width, 'down')(_gated(c.activation, gate, up))
    if c.post_norms:
      y = norm(name='ffn_post_norm')(y)
    return _place(x + y, None), cache


def _gated(activation, gate, up):
  """Returns act(gate) * up, of which nothing else is kept for the gradient."""
  return jax.checkpoint(lambda g, u: _GATES[activation](g) * u)(gate, up)


def _as_stored(x):
  """Returns part of a cache, laid out in memory as `init_cache` has it.

  Left to itself the TPU compiler lays out a carry as new tokens come, heads
  behind slots, and copies the cache of all traces for that.
  """
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _place(x, last):
  """Returns rows of tokens, [B,Q,...] or [Q,...], where they belong."""
  if x.ndim != 3:
    return x
  return places.activation(x, 'batch', 'length', last)


class Transformer(nn.Module):
  """tokens -> features before the vocabulary matrix; `unembed` -> logits."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    init = nn.initializers.normal(0.02)
    self.embedding = self.param(
      'embedding', init, (c.vocab_size, c.width), c.param_dtype
    )
    if not c.tie_embeddings:
      self.head = self.param(
        'head', init, (c.width, c.vocab_size), c.param_dtype
      )
    block = Block
    if c.remat != 'none':
      names = kept_names(c.remat)
      policy = jax.checkpoint_policies.save_only_these_names(*names)
      block = nn.remat(Block, prevent_cse=not c.scan_layers, policy=policy)
    if c.scan_layers:
      block = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=c.num_layers,
      )
      self.layers = block(c)
    else:
      self.layers = [block(c) for _ in range(c.num_layers)]
    self.final_norm = RMSNorm(c.norm_eps, c.norm_plus_one, c.param_dtype)

  def __call__(self, tokens, positions, cache=None, mask=None):
    c = self.config
    valid = positions >= 0
    index = 0 if cache is None else cache['index']
    causal = valid if cache is None and mask is None else None
    mask, slots = attention_mask(valid, cache, mask)
    keys = positions
    if cache is not None and c.sliding_window is not None:
      keys = jax.lax.dynamic_update_slice(
        cache['positions'], positions, (0, index)
      )
    views = make_views(c, positions, keys, mask, causal)
    x = _place(jnp.take(self.embedding, tokens, axis=0).astype(c.dtype), None)
    if c.embedding_scale is not None:
      x *= jnp.asarray(c.embedding_scale, x.dtype)
    old = None if cache is None else cache['layers']
    if c.scan_layers:
      # Where layers differ, each picks its view by a flag that is scanned.
      local = jnp.asarray(c.is_local) if len(views) == 2 else None
      scan = self._through_cache
      if old is None or self.is_initializing():
        scan = self.layers
      x, new = scan(x, old, local, views, valid, index)
    else:
      new = []
      for i, layer in enumerate(self.layers):
        own = views[-1:] if c.is_local[i] else views[:1]
        layer_cache = None if old is None else old[i]
        x, layer_cache = layer(x, layer_cache, None, own, valid, index)
        new.append(layer_cache)
    if cache is not None:
      cache = cache | {
        'layers': new,
        'valid': slots,
        'index': index + tokens.shape[1],
      }
      if c.sliding_window is not None:
        cache['positions'] = keys
    return self.final_norm(x), cache

  def _through_cache(self, x, cache, local, views, valid, index):
    """Returns what `layers` does, and the cache with the new tokens.

    A scan over slices of the cache would read and write all of it to put one
    token there, and hold it twice; as the carry it is written in place.
    """
    block = Block(self.config, parent=None)
    indices = jnp.arange(self.config.num_layers)

    def layer(carry, each):
      params, own, i = each
      shared = views, valid, index, i
      x, new = block.apply({'params': params}, *carry, own, *shared)
      return (x, jax.tree.map(_as_stored, new)), None

    params = self.layers.variables['params']
    carry, _ = jax.lax.scan(layer, (x, cache), (params, local, indices))
    return carry

  def unembed(self, features):
    """Returns logits f32[...,V] of features [...,D]."""
    head = self.embedding.T if self.config.tie_embeddings else self.head
    flat = features.reshape(-1, features.shape[-1])
    if flat.shape[0] <= _FEW_ROWS and self.config.vocab_size >= _LARGE_VOCAB:
      # XLA's CPU product packs its right operand anew each time: the smaller
      # of the two should stand there. Decoding is a fifth faster for it.
      head = head.astype(flat.dtype)
      logits = jnp.matmul(head.T, flat.T, preferred_element_type=jnp.float32).T
    else:
      logits = product(flat, head, 'head', 'float32')
    logits = soft_cap(logits, self.config.logit_softcap)
    logits = logits.reshape(*features.shape[:-1], self.config.vocab_size)
    return _place(logits, 'vocab')


def init_cache(config: TransformerConfig, batch: int, length: int) -> Cache:
  """Returns an empty KV cache: zeros, never uninitialised memory."""
  c = config
  shape = (batch, c.kv_heads, length, c.dim)
  if c.scan_layers:
    shape = (c.num_layers, *shape)
  layer = lambda: {
    'k': jnp.zeros(shape, c.dtype),
    'v': jnp.zeros(shape, c.dtype),
  }
  cache = {
    'layers': layer()
    if c.scan_layers
    else [layer() for _ in range(c.num_layers)],
    'valid': jnp.zeros((batch, length), bool),
    'index': jnp.zeros((), jnp.int32),
  }
  if c.sliding_window is not None:
    cache['positions'] = jnp.zeros((batch, length), jnp.int32)
  return cache


def make_model(config: TransformerConfig) -> Model:
  """Returns the functions of `Model` for a transformer."""
  module = Transformer(config)

  def check(tokens, positions, mask, cache):
    if tokens.ndim != 2 or positions.shape != tokens.shape:
      raise ValueError(
        f'tokens {tokens.shape} and positions {positions.shape} must have one '
        'shape [B,Q].'
      )
    length = tokens.shape[1] if cache is None else cache['valid'].shape[1]
    if mask is not None and mask.shape != (*tokens.shape, length):
      raise ValueError(
        f'mask has shape {mask.shape}, expected [B,Q,L] = '
        f'{(*tokens.shape, length)}.'
      )

  def features_fn(params, tokens, positions, cache, mask=None):
    check(tokens, positions, mask, cache)
    length, parts = tokens.shape[1], places.parts('length')
    if cache is None and parts > 1:
      # Whole tiles of attention for each device: else nothing could be cut.
      pad = -length % (parts * TILE)
      tokens = jnp.pad(tokens, ((0, 0), (0, pad)))
      positions = jnp.pad(positions, ((0, 0), (0, pad)), constant_values=-1)
      if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, pad), (0, pad)))
    features, cache = module.apply(
      {'params': params}, tokens, positions, cache, mask
    )
    return features[:, :length], cache

  def unembed_fn(params, features):
    return module.apply({'params': params}, features, method='unembed')

  def head_fn(params):
    return params['embedding'].T if config.tie_embeddings else params['head']

  def apply_fn(params, tokens, positions, cache, mask=None):
    features, cache = features_fn(params, tokens, positions, cache, mask)
    return unembed_fn(params, features), cache

  return Model(
    apply_fn=apply_fn,
    init_cache=functools.partial(init_cache, config),
    features_fn=features_fn,
    unembed_fn=unembed_fn,
    head_fn=head_fn,
    finish=functools.partial(soft_cap, cap=config.logit_softcap),
  )


def init_params(config: TransformerConfig, key: Array) -> Params:
  """Returns fresh parameters, nested dicts of arrays of `param_dtype`."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  positions = jnp.arange(2, dtype=jnp.int32)[None]
  return Transformer(config).init(key, tokens, positions)['params']


def num_params(params: Params) -> int:
  """Returns the number of scalars in a parameter tree."""
  return sum(x.size for x in jax.tree.leaves(params))
