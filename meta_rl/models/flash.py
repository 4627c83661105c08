"""Attention over whole traces that never holds their scores [B,H,Q,L] at once.

    TPU    Pallas splash attention, of jax.experimental
    GPU    cuDNN's flash attention, by jax.nn.dot_product_attention
    CPU    blocks of queries, each rematerialised in the backward pass

All give what `attention.attend` gives, up to rounding; what a padding token
gets differs, and nobody reads it. The kernels know causal attention over rows
with padding; any other mask (a sliding window, packed rows) takes blocks of
queries everywhere.

Where a mesh cuts the time axis (context), a device has a run of the queries and
all keys: those of grouped-query attention are few, and gathered. The last
device's queries see the most keys, twice the average.

Axes: B rows, Q query tokens, L = Q keys, H query heads, N key/value heads, E
head width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention

from meta_rl import places
from meta_rl.types import Array

BLOCK = 512  # queries at a time
# What attention gives, by name: `model.remat` may keep it.
ATTENDED = 'attention'
# Of the Pallas kernel: its least block, its own, and how many of these a block
# of keys has backward, where the gradient of q is written once for each.
TILE, _LARGE_TILE, _MORE = 128, 512, 2

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

  On a mesh each device attends for its own rows, heads and queries.

  Args:
    attend: attention with all scores at once, used for a block of queries.
    q: [B,H,Q,E], scaled queries.
    k, v: [B,N,Q,E].
    mask: bool[B,Q,Q], True where a query may see a key.
    valid: bool[B,Q], everything but padding, where the mask is causal attention
      over these; None: it is another one.
    softcap: as in `attention.attend`.
  """
  parts = places.parts('heads')
  if k.shape[1] % parts and q.shape[1] % parts == 0:
    # More devices than key heads: each query head takes its own copy along.
    repeats = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, repeats, axis=1) for x in (k, v))

  def blocks(*args):
    y = _blocks(attend, *args, softcap=softcap)
    return checkpoint_name(y, ATTENDED)  # as the kernel names its own

  rows = 'batch', 'heads', 'length', None
  keys = 'batch', 'kv_heads', None, None
  if valid is None:
    return places.local(
      blocks,
      (q, k, v, mask),
      (rows, keys, keys, ('batch', 'length', None)),
      rows,
    )
  length = q.shape[2]
  tile = _LARGE_TILE if length > _LARGE_TILE else TILE
  parts = places.parts('length')
  if parts > 1:
    # Every device's queries begin with a tile of the kernel: the largest one
    # that pads little.
    tile = next(
      n
      for n in (_LARGE_TILE, _LARGE_TILE // 2, TILE)
      if n == TILE or -length % (parts * n) <= length // 16
    )
    pad = -length % (parts * tile)
    q, k, v = (_pad(x, pad, 2) for x in (q, k, v))
    valid = _pad(valid, pad, 1)
  kernel = splash_kernel(q.shape[1:3], tile, parts, softcap=softcap)

  def local(*args):
    def plain(attend, q, k, v, valid, _, slots, __):
      seen = jnp.arange(k.shape[2]) <= slots[:, None]
      return attend(q, k, v, seen & valid[:, None])

    if jax.default_backend() == 'gpu' and q.dtype != jnp.float32:
      return plain(_cudnn if softcap is None else blocks, *args)
    return jax.lax.platform_dependent(
      *args, tpu=_splash, default=functools.partial(plain, blocks)
    )

  y = places.local(
    local,
    (q, k, v, valid, valid, jnp.arange(q.shape[2]), kernel),
    (
      rows,
      keys,
      keys,
      ('batch', None),
      ('batch', 'length'),
      ('length',),
      _kernel_axes(kernel),
    ),
    rows,
  )
  return y[:, :, :length]


def _pad(x, count, axis):
  """Returns x with `count` zeros behind it."""
  widths = [(0, count if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths)


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


def splash_kernel(
  shape: tuple[int, int],
  tile: int,
  parts: int,
  *,
  softcap: float | None = None,
  interpret: bool = False,
) -> Callable[..., Array]:
  """Returns the Pallas kernel of causal attention, for queries cut in parts.

  Args:
    shape: (heads, tokens), of the queries of all parts.
    tile: tokens of a block; tokens are padded to a multiple of it.
    parts: into how many runs the queries are cut, each of whole tiles.
    softcap: as in `flash_attend`.
    interpret: run the kernel's own code on any device, slowly.
  """
  heads, length = shape
  more = _MORE * tile if length > tile else tile
  queries, keys = length + -length % tile, length + -length % more
  causal = splash_attention.CausalMask((queries, keys))
  return splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([causal] * heads),
    block_sizes=splash_attention.BlockSizes(
      block_q=tile,
      block_kv=tile,
      block_q_dkv=tile,
      block_kv_dkv=more,
      block_kv_dkv_compute=tile,
      use_fused_bwd_kernel=True,
    ),
    attn_logits_soft_cap=softcap,
    head_shards=1,
    q_seq_shards=parts,
    residual_checkpoint_name=ATTENDED,
    interpret=interpret,
  )


def _kernel_axes(kernel):
  """Returns what the dimensions of the kernel's arrays mean.

  They say which blocks are masked, [1, query blocks, key blocks], one for all
  heads, and where a query stands.
  """
  leaves, tree = jax.tree.flatten(kernel)
  of_rank = {1: ('length',), 3: (None, 'length', None)}
  return jax.tree.unflatten(tree, [of_rank[x.ndim] for x in leaves])


def _splash(q, k, v, valid, own_valid, slots, kernel):
  """Pallas splash attention: padding is a segment of its own."""
  del slots
  queries, keys = q.shape[2], k.shape[2]
  sizes = kernel.kwargs['block_sizes']
  q = _pad(q, -queries % sizes.block_q, 2)
  k, v = (_pad(x, -keys % sizes.block_kv_dkv, 2) for x in (k, v))
  ids = splash_attention.SegmentIds(
    _pad(own_valid, -queries % sizes.block_q, 1).astype(jnp.int32),
    _pad(valid, -keys % sizes.block_kv_dkv, 1).astype(jnp.int32),
  )
  return jax.vmap(kernel)(q, k, v, ids)[:, :, :queries]


def _cudnn(q, k, v, mask):
  """cuDNN's fused attention; it knows padding as a bias of the scores alone.

  With a bias it wants an even number of queries, and of keys.
  """
  queries, keys = q.shape[2], k.shape[2]
  q = _pad(q, queries % 2, 2)
  k, v = (_pad(x, keys % 2, 2) for x in (k, v))
  mask = _pad(_pad(mask, queries % 2, 1), keys % 2, 2)
  time_first = lambda x: x.swapaxes(1, 2)
  y = jax.nn.dot_product_attention(
    *map(time_first, (q, k, v)),
    mask=mask[:, None],
    scale=1.0,
    implementation='cudnn',
  )
  return checkpoint_name(time_first(y)[:, :, :queries], ATTENDED)
