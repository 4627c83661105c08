"""A decoder-only transformer in Flax Linen, behind the `Model` seam.

RMSNorm, rotary positions, grouped-query attention and SwiGLU, with the switches
that Llama (none), Qwen2 (`qkv_bias`) and Qwen3 (`qk_norm`, `head_dim`) need.

Axes: B rows, Q query tokens, L cache length, D width, H query heads, N
key/value heads, R = H / N query heads that share one, E head width, F
feed-forward width. Two layout choices matter for speed: linear layers see 2-D
operands [B*Q, D], and attention keeps heads before time, so that every product
is a plain batched matrix multiply.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from meta_rl.types import Array, Cache, Model, Params

MASKED = -1e30  # finite: a row without any key gives numbers, never NaN


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Shape and switches of a transformer; hashable, so it can be static.

  Attributes:
    vocab_size: rows of the embedding; tokens are ids below it.
    num_layers, width, num_heads, num_kv_heads, head_dim, ffn_width: sizes;
      `num_kv_heads=None` means `num_heads`, `head_dim=None` means
      `width // num_heads`.
    rope_base: base of the rotary frequencies.
    norm_eps: added to the mean square in every RMSNorm.
    tie_embeddings: logits through the transposed embedding.
    qkv_bias: biases on query, key and value (Qwen2).
    qk_norm: RMSNorm on every head's query and key (Qwen3).
    scan_layers: one compiled layer in a `lax.scan` instead of `num_layers`
      copies; parameters and cache get a leading layer axis.
    remat: keep only each layer's input for the backward pass.
    dtype: of activations and the KV cache; parameters stay float32, and norms,
      softmax and logits are computed in float32.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  ffn_width: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  rope_base: float = 10_000.0
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
  scan_layers: bool = False
  remat: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f'width={self.width} is not divisible by num_heads={self.num_heads}: '
        'change one of them or give head_dim.'
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.kv_heads}.'
      )
    if self.dim % 2:
      raise ValueError(f'head_dim={self.dim} is odd; rotary needs an even one.')

  @property
  def kv_heads(self) -> int:
    """Number of key/value heads."""
    return self.num_kv_heads or self.num_heads

  @property
  def dim(self) -> int:
    """Width of a head."""
    return self.head_dim or self.width // self.num_heads


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale, in float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Linear(nn.Module):
  """x @ kernel (+ bias) over the last axis, on 2-D operands."""

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    kernel = self.param('kernel', init, shape).astype(x.dtype)
    y = x.reshape(-1, x.shape[-1]) @ kernel
    if self.use_bias:
      y += self.param('bias', nn.initializers.zeros, shape[1:]).astype(x.dtype)
    return y.reshape(*x.shape[:-1], self.features)


def rope_angles(positions: Array, dim: int, base: float) -> tuple[Array, Array]:
  """Returns cos and sin, f32[B,1,Q,dim/2], of positions i32[B,Q] (-1 as 0)."""
  inverse = base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  angles = jnp.maximum(positions, 0)[:, None, :, None] * inverse
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the two halves of x [B,H,Q,E] (the half-split form of RoPE)."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention over the keys in `cache`, or over x itself."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, cos, sin, valid, mask, cache, index):
    c = self.config
    batch, queries, _ = x.shape
    heads = lambda y, n: y.reshape(batch, queries, n, c.dim).swapaxes(1, 2)
    q = heads(Linear(c.num_heads * c.dim, c.qkv_bias, name='q')(x), c.num_heads)
    k = heads(Linear(c.kv_heads * c.dim, c.qkv_bias, name='k')(x), c.kv_heads)
    v = heads(Linear(c.kv_heads * c.dim, c.qkv_bias, name='v')(x), c.kv_heads)
    if c.qk_norm:
      q = RMSNorm(c.norm_eps, name='q_norm')(q)
      k = RMSNorm(c.norm_eps, name='k_norm')(k)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if cache is not None:
      keep = valid[
        :, None, :, None
      ]  # padding writes zeros: its slot stays void
      start = (0, 0, index, 0)
      k = jax.lax.dynamic_update_slice(cache['k'], k * keep, start)
      v = jax.lax.dynamic_update_slice(cache['v'], v * keep, start)
      cache = {'k': k, 'v': v}
    y = attend(q * c.dim**-0.5, k, v, mask)
    y = y.swapaxes(1, 2).reshape(batch, queries, c.num_heads * c.dim)
    return Linear(c.width, name='o')(y), cache


def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
  """Returns softmax(q k^T) v, [B,H,Q,E].

  The R query heads that share a key head are folded into the query axis, so
  that keys and values are never repeated.

  Args:
    q: [B,H,Q,E], scaled queries.
    k: [B,N,L,E], keys.
    v: [B,N,L,E], values.
    mask: bool[B,Q,L], True where a query may see a key.
  """
  batch, heads, queries, dim = q.shape
  kv_heads, length = k.shape[1:3]
  repeats = heads // kv_heads
  q = q.reshape(batch, kv_heads, repeats * queries, dim)
  scores = jnp.einsum(
    'bnqe,bnle->bnql', q, k, preferred_element_type=jnp.float32
  )
  scores = scores.reshape(batch, heads, queries, length)
  scores = jnp.where(mask[:, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  weights = weights.reshape(batch, kv_heads, repeats * queries, length)
  y = jnp.einsum('bnql,bnle->bnqe', weights, v)
  return y.reshape(batch, heads, queries, dim)


class Block(nn.Module):
  """x + Attention(norm x), then x + SwiGLU(norm x)."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, cache, cos, sin, valid, mask, index):
    c = self.config
    y = RMSNorm(c.norm_eps, name='attention_norm')(x)
    y, cache = Attention(c, name='attention')(
      y, cos, sin, valid, mask, cache, index
    )
    x += y
    y = RMSNorm(c.norm_eps, name='ffn_norm')(x)
    gate = Linear(c.ffn_width, name='gate')(y)
    up = Linear(c.ffn_width, name='up')(y)
    return x + Linear(c.width, name='down')(nn.silu(gate) * up), cache


class Transformer(nn.Module):
  """tokens -> features before the vocabulary matrix; `unembed` -> logits."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    init = nn.initializers.normal(0.02)
    self.embedding = self.param('embedding', init, (c.vocab_size, c.width))
    if not c.tie_embeddings:
      self.head = self.param('head', init, (c.width, c.vocab_size))
    block = nn.remat(Block, prevent_cse=not c.scan_layers) if c.remat else Block
    if c.scan_layers:
      shared = (nn.broadcast,) * 5
      block = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, *shared),
        length=c.num_layers,
      )
      self.layers = block(c)
    else:
      self.layers = [block(c) for _ in range(c.num_layers)]
    self.final_norm = RMSNorm(c.norm_eps)

  def __call__(self, tokens, positions, cache=None, mask=None):
    c = self.config
    valid = positions >= 0
    index = 0 if cache is None else cache['index']
    mask, slots = attention_mask(valid, cache, mask)
    cos, sin = rope_angles(positions, c.dim, c.rope_base)
    x = jnp.take(self.embedding, tokens, axis=0).astype(c.dtype)
    shared = (cos, sin, valid, mask, index)
    old = None if cache is None else cache['layers']
    if c.scan_layers:
      x, new = self.layers(x, old, *shared)
    else:
      new = []
      for i, layer in enumerate(self.layers):
        x, layer_cache = layer(x, None if old is None else old[i], *shared)
        new.append(layer_cache)
    if cache is not None:
      cache = {'layers': new, 'valid': slots, 'index': index + tokens.shape[1]}
    return self.final_norm(x), cache

  def unembed(self, features):
    """Returns logits f32[...,V] of features [...,D]."""
    head = self.embedding.T if self.config.tie_embeddings else self.head
    flat = features.reshape(-1, features.shape[-1])
    logits = jnp.matmul(
      flat, head.astype(flat.dtype), preferred_element_type=jnp.float32
    )
    return logits.reshape(*features.shape[:-1], self.config.vocab_size)


def attention_mask(valid: Array, cache: Cache, mask: Array | None):
  """Returns the mask bool[B,Q,L] to use, and the cache's slots bool[B,L] after.

      In:  valid  = [0 1 1], two tokens already in a cache of length 6
      Out: slots  = [1 1 0 1 1 0]   (a padding column leaves a void slot)
           mask_q = slots up to q's own slot

  A mask that is given replaces 'up to its own slot'; void slots stay hidden.
  """
  queries = valid.shape[1]
  if cache is None:
    slots, own = valid, jnp.arange(queries)
  else:
    start = (0, cache['index'])
    slots = jax.lax.dynamic_update_slice(cache['valid'], valid, start)
    own = cache['index'] + jnp.arange(queries)
  if mask is None:
    mask = (jnp.arange(slots.shape[1]) <= own[:, None])[None]
  return mask & slots[:, None], slots


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
  return {
    'layers': layer()
    if c.scan_layers
    else [layer() for _ in range(c.num_layers)],
    'valid': jnp.zeros((batch, length), bool),
    'index': jnp.zeros((), jnp.int32),
  }


def make_model(config: TransformerConfig) -> Model:
  """Returns the four functions of `Model` for a transformer."""
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
    return module.apply({'params': params}, tokens, positions, cache, mask)

  def unembed_fn(params, features):
    return module.apply({'params': params}, features, method='unembed')

  def apply_fn(params, tokens, positions, cache, mask=None):
    features, cache = features_fn(params, tokens, positions, cache, mask)
    return unembed_fn(params, features), cache

  return Model(
    apply_fn=apply_fn,
    init_cache=functools.partial(init_cache, config),
    features_fn=features_fn,
    unembed_fn=unembed_fn,
  )


def init_params(config: TransformerConfig, key: Array) -> Params:
  """Returns freshly initialised parameters, a nested dict of float32 arrays."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  positions = jnp.arange(2, dtype=jnp.int32)[None]
  return Transformer(config).init(key, tokens, positions)['params']


def num_params(params: Params) -> int:
  """Returns the number of scalars in a parameter tree."""
  return sum(x.size for x in jax.tree.leaves(params))


def config_from_dict(values: dict[str, Any]) -> TransformerConfig:
  """Returns a config from plain values; an unknown key raises, named."""
  known = {f.name for f in dataclasses.fields(TransformerConfig)}
  if unknown := sorted(set(values) - known):
    raise ValueError(f'model: unknown {unknown}; allowed: {sorted(known)}.')
  return TransformerConfig(**values)
