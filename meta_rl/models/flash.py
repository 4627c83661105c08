"""Attention over whole traces that never holds their scores [B,H,Q,L] at once.

    TPU    Pallas splash attention, of jax.experimental
    GPU    cuDNN's flash attention, by jax.nn.dot_product_attention
    CPU    blocks of queries, each rematerialised in the backward pass

All give what `attention.attend` gives, up to rounding; what a padding token
gets differs, and nobody reads it. The kernels know causal attention over rows
with padding; any other mask (a sliding window, packed rows) takes blocks of
queries everywhere.

Axes: B rows, Q query tokens, L = Q keys, H query heads, N key/value heads, E
head width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from meta_rl import places
from meta_rl.types import Array

BLOCK = 512  # queries at a time
# What attention gives, by name: `model.remat` may keep it.
ATTENDED = 'attended'
_TILE, _LANES = 512, 128  # of the Pallas kernel: its blocks, and the least

Attend = Callable[..., Array]


def flash_attend(
  attend: Attend,
  q: Array,
  k: Array,
  v: Array,
  mask: Array,
  valid: Array | None,
  *,
  softcap: float | None = None,
) -> Array:
  """Returns softmax(q k^T) v, [B,H,Q,E], as `attend(q, k, v, mask)` does.

  On a mesh each device attends for its own rows and heads.

  Args:
    attend: attention with all scores at once, used for a block of queries.
    q: [B,H,Q,E], scaled queries.
    k, v: [B,N,Q,E].
    mask: bool[B,Q,Q], True where a query may see a key.
    valid: bool[B,Q], everything but padding, where the mask is causal attention
      over these; None: it is another one.
    softcap: as in `attention.attend`.
  """
  blocks = functools.partial(_blocks, attend, softcap=softcap)
  rows = 'batch', 'heads', None, None
  keys = 'batch', 'kv_heads', None, None
  whole = 'batch', None, None
  if valid is None:
    return places.local(
      blocks, (q, k, v, mask), (rows, keys, keys, whole), rows
    )

  def kernel(q, k, v, valid, mask):
    if jax.default_backend() == 'gpu' and q.dtype != jnp.float32:
      return _cudnn(q, k, v, mask) if softcap is None else blocks(q, k, v, mask)
    return jax.lax.platform_dependent(
      q,
      k,
      v,
      valid,
      mask,
      tpu=functools.partial(_splash, softcap=softcap),
      default=lambda q, k, v, _, mask: blocks(q, k, v, mask),
    )

  return places.local(
    kernel,
    (q, k, v, valid, mask),
    (rows, keys, keys, ('batch', None), whole),
    rows,
  )


def _blocks(attend, q, k, v, mask, *, softcap):
  """A block of queries at a time against all keys."""
  queries = q.shape[2]
  if queries <= BLOCK:
    return attend(q, k, v, mask, softcap=softcap)
  count = -(-queries // BLOCK)
  pad = count * BLOCK - queries
  q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
  mask = jnp.pad(mask, ((0, 0), (0, pad), (0, 0)))
  batch, heads, _, dim = q.shape
  q = jnp.moveaxis(q.reshape(batch, heads, count, BLOCK, dim), 2, 0)
  mask = jnp.moveaxis(mask.reshape(batch, count, BLOCK, -1), 1, 0)

  @jax.checkpoint
  def one(block):
    return attend(block[0], k, v, block[1], softcap=softcap)

  y = jnp.moveaxis(jax.lax.map(one, (q, mask)), 0, 2)
  return y.reshape(batch, heads, -1, dim)[:, :, :queries]


def _splash(q, k, v, valid, mask, *, softcap, interpret=False):
  """Pallas splash attention: padding is a segment of its own."""
  del mask
  length = q.shape[2]
  block = _TILE if length > _TILE else _LANES
  pad = -length % block
  q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (q, k, v))
  segments = jnp.pad(valid, ((0, 0), (0, pad))).astype(jnp.int32)
  causal = splash_attention.CausalMask((length + pad, length + pad))
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([causal] * q.shape[1]),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      use_fused_bwd_kernel=True,
    ),
    attn_logits_soft_cap=softcap,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=ATTENDED,
    interpret=interpret,
  )
  ids = splash_attention.SegmentIds(segments, segments)
  return jax.vmap(kernel)(q, k, v, ids)[:, :, :length]


def _cudnn(q, k, v, mask):
  """cuDNN's fused attention; it knows padding as a bias of the scores alone."""
  time_first = lambda x: x.swapaxes(1, 2)
  y = jax.nn.dot_product_attention(
    *map(time_first, (q, k, v)),
    mask=mask[:, None],
    scale=1.0,
    implementation='cudnn',
  )
  return time_first(y)
