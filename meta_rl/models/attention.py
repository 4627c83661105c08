"""Grouped-query attention over a KV cache, and what a query may see.

Axes: B rows, Q query tokens, L cache length, H query heads, N key/value heads,
E head width. Attention keeps heads before time, so that every product is a
plain batched matrix multiply.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from meta_rl import places
from meta_rl.models.config import TransformerConfig
from meta_rl.models.dense import MASKED, dense_attend
from meta_rl.models.flash import ATTENDED, flash_attend
from meta_rl.models.layers import RMSNorm, make_linear
from meta_rl.models.rope import rope_angles, rotate
from meta_rl.types import Array, Cache


class View(NamedTuple):
  """What a layer sees: local and global layers differ in nothing else.

  Attributes:
    cos, sin: f32[B,1,Q,E/2], rotations of the queries' positions.
    mask: bool[B,Q,L], True where a query may see a key.
    valid: bool[B,Q] where the mask is causal attention over these tokens, None
      where it is another one.
  """

  cos: Array
  sin: Array
  mask: Array
  valid: Array | None = None


class Attention(nn.Module):
  """Grouped-query attention over the keys in `cache`, or over x itself."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, view, valid, cache, index, layer=None):
    c = self.config
    batch, queries, _ = x.shape

    def heads(name, count):
      y = make_linear(c, count * c.dim, c.qkv_bias, name)(x)
      y = checkpoint_name(y, name)  # see `model.remat`
      y = y.reshape(batch, queries, count, c.dim).swapaxes(1, 2)
      axis = 'heads' if name == 'q' else 'kv_heads'
      return places.activation(y, 'batch', axis, 'length', None)

    q, k = heads('q', c.num_heads), heads('k', c.kv_heads)
    v = heads('v', c.kv_heads)
    if c.qk_norm:
      shared = (c.norm_eps, c.norm_plus_one, c.param_dtype)
      q = RMSNorm(*shared, name='q_norm')(q)
      k = RMSNorm(*shared, name='k_norm')(k)
    q, k = rotate(q, view.cos, view.sin), rotate(k, view.cos, view.sin)
    if cache is not None:
      # Padding writes zeros: its slot stays void.
      keep = valid[:, None, :, None]
      new = {'k': k * keep, 'v': v * keep}
      cache, k, v = _write(cache, new, index, layer)
    scale = c.dim**-0.5 if c.query_scale is None else c.query_scale
    args, cap = (q * scale, k, v, view.mask), c.attention_softcap
    if cache is not None:
      y = checkpoint_name(attend(*args, softcap=cap), ATTENDED)
    elif c.attention == 'flash':
      y = flash_attend(attend, *args, view.valid, softcap=cap)
    else:
      y = dense_attend(*args, causal=view.valid is not None, softcap=cap)
    y = y.swapaxes(1, 2).reshape(batch, queries, c.num_heads * c.dim)
    y = make_linear(c, c.width, c.o_bias, 'o')(y)
    return checkpoint_name(y, 'o'), cache


def _write(cache, new, index, layer):
  """Returns the cache with new keys and values, and those of the layer.

  layer: which one, of a cache that has them all; None: it is of one layer.
  """
  if layer is None:
    start = (0, 0, index, 0)
    put = jax.lax.dynamic_update_slice
    cache = {name: put(cache[name], x, start) for name, x in new.items()}
    return cache, cache['k'], cache['v']
  start = (layer, 0, 0, index, 0)
  put = lambda old, x: jax.lax.dynamic_update_slice(old, x[None], start)
  cache = {name: put(cache[name], x) for name, x in new.items()}
  own = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
  return cache, own(cache['k']), own(cache['v'])


def attend(
  q: Array, k: Array, v: Array, mask: Array, *, softcap: float | None = None
) -> Array:
  """Returns softmax(q k^T) v, [B,H,Q,E].

  The R = H / N query heads that share a key head are folded into the query
  axis, so that keys and values are never repeated.

  Args:
    q: [B,H,Q,E], scaled queries.
    k: [B,N,L,E], keys.
    v: [B,N,L,E], values.
    mask: bool[B,Q,L], True where a query may see a key.
    softcap: c, for scores c tanh(q k^T / c); None: scores as they are.
  """
  batch, heads, queries, dim = q.shape
  kv_heads, length = k.shape[1:3]
  repeats = heads // kv_heads
  q = q.reshape(batch, kv_heads, repeats * queries, dim)
  scores = jnp.einsum(
    'bnqe,bnle->bnql', q, k, preferred_element_type=jnp.float32
  )
  scores = soft_cap(scores, softcap).reshape(batch, heads, queries, length)
  scores = jnp.where(mask[:, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  weights = weights.reshape(batch, kv_heads, repeats * queries, length)
  y = jnp.einsum('bnql,bnle->bnqe', weights, v)
  return y.reshape(batch, heads, queries, dim)


def soft_cap(x: Array, cap: float | None) -> Array:
  """Returns cap tanh(x / cap), within (-cap, cap); x itself without a cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


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


def in_window(positions: Array, keys: Array, window: int) -> Array:
  """Returns bool[B,Q,L], True where a key is less than `window` tokens back.

      window = 2:  q = 5 sees positions 4, 5 and, if a mask allows it, later

  By position, not by slot: padding and void slots between do not use the
  window up, and neither do the other branches of a tree that a mask hides.

  Args:
    positions: i32[B,Q], of the queries.
    keys: i32[B,L], of the keys; anything in void slots.
    window: tokens, a query's own included.
  """
  return positions[:, :, None] - keys[:, None] < window


def make_views(
  config: TransformerConfig,
  positions: Array,
  keys: Array | None,
  mask: Array,
  valid: Array | None = None,
) -> tuple[View, ...]:
  """Returns the global and the local view, or one where layers have but one.

  Args:
    config: of the transformer.
    positions: i32[B,Q], of the queries.
    keys: i32[B,L], of the keys; used under a sliding window only.
    mask: bool[B,Q,L], of `attention_mask`.
    valid: bool[B,Q], where that is causal attention over these tokens.
  """
  c = config
  views = []
  if c.sliding_window is not None:
    valid = None  # layers that pick their view by a flag need equal ones
  if not all(c.is_local):
    angles = rope_angles(positions, c.dim, c.rope_base, c.rope_scaling)
    views.append(View(*angles, mask, valid))
  if any(c.is_local):
    if c.sliding_window is not None:
      mask = mask & in_window(positions, keys, c.sliding_window)
    if c.local_rope_base is not None:
      angles = rope_angles(positions, c.dim, c.local_rope_base)
    elif not views:
      angles = rope_angles(positions, c.dim, c.rope_base, c.rope_scaling)
    views.append(View(*angles, mask, valid))
  return tuple(views)
