"""Attention of whole rows over themselves, with a gradient of its own.

What `attention.attend` gives, up to rounding, for passes without a cache. Three
things make it cheap to train:
  - the weights exp(s - max s) are divided by their sum behind the product with
    the values, where there are E numbers a query and not L;
  - the gradient needs no sum over [Q,L]: sum_l p dp is the product of the
    result and its own cotangent, E numbers a query (Dao et al. 2022,
    'FlashAttention', arXiv 2205.14135, appendix B);
  - where the mask is causal, queries go in blocks, each against the keys up to
    its own end: nearly half of all scores are never computed.

Axes: B rows, Q query tokens, L = Q keys, H query heads, N key/value heads, E
head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from meta_rl import places
from meta_rl.models.flash import ATTENDED
from meta_rl.types import Array

MASKED = -1e30  # finite: a row without any key gives numbers, never NaN
# Causal blocks of queries: about so many, of a multiple of so many queries and
# within these bounds. Smaller ones save more scores, and lose it to products
# that are too small.
_BLOCKS, _MULTIPLE, _LEAST, _MOST = 4, 16, 32, 128
_MOST_BLOCKS = 8  # each is compiled on its own


def dense_attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array,
  *,
  causal: bool = False,
  softcap: float | None = None,
) -> Array:
  """Returns softmax(q k^T) v, [B,H,Q,E].

  Args:
    q: [B,H,Q,E], scaled queries.
    k, v: [B,N,Q,E]; the H / N query heads that share a key head are folded into
      the query axis, so that keys and values are never repeated.
    mask: bool[B,Q,Q], True where a query may see a key.
    causal: no query sees a key behind its own slot: what the mask says of these
      is not read. What a query gets that sees no key at all then differs from
      what it gets otherwise; both are finite.
    softcap: c, for scores c tanh(q k^T / c); None: scores as they are.
  """
  if not q.shape[2]:
    return q
  # A device that has a run of the queries would wait for those of others.
  cut = causal and places.parts('length') == 1
  spans = causal_spans(q.shape[2]) if cut else ((0, q.shape[2]),)
  return _attend(spans, softcap, q, k, v, mask)


def causal_spans(length: int) -> tuple[tuple[int, int], ...]:
  """Returns (begin, end) of each causal block of so many queries.

  Example:
    >>> from meta_rl.models.dense import causal_spans
    >>> causal_spans(144)
    ((0, 48), (48, 96), (96, 144))
  """
  whole = lambda x, unit: -(-x // unit) * unit
  size = whole(-(-length // _BLOCKS), _MULTIPLE)
  size = min(max(size, _LEAST), _MOST)
  size = max(size, whole(-(-length // _MOST_BLOCKS), _MULTIPLE))
  return tuple((i, min(i + size, length)) for i in range(0, length, size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(spans, softcap, q, k, v, mask):
  return _forward(spans, softcap, q, k, v, mask)[0]


def _forward(spans, softcap, q, k, v, mask):
  parts = [
    _block(softcap, *_block_of(span, q, k, v), mask[:, slice(*span), : span[1]])
    for span in spans
  ]
  y = _join([y for y, _ in parts])
  # Named here and not outside, so that a `remat` that keeps it keeps what the
  # gradient reads.
  y = checkpoint_name(y, ATTENDED)
  return y, (q, k, v, y, [kept for _, kept in parts])


def _block_of(span, q, k, v):
  """Returns a block's queries and all keys that they may see."""
  return q[:, :, slice(*span)], k[:, :, : span[1]], v[:, :, : span[1]]


def _block(softcap, q, k, v, mask):
  """Returns what a block of queries gets, and what its gradient needs."""
  kv_heads = k.shape[1]
  raw = _product('bnqe,bnle->bnql', _fold(q, kv_heads), k, jnp.float32)
  raw = raw.reshape(*q.shape[:3], -1)
  # The softcap's slope 1 - tanh^2, and 0 where the mask hides the key anyway.
  slope = None
  scores = raw
  if softcap is not None:
    bent = jnp.tanh(raw / softcap)
    scores, slope = softcap * bent, 1 - bent * bent
  scores = jnp.where(mask[:, None], scores, MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  norm = weights.sum(-1, keepdims=True)
  y = _product(
    'bnql,bnle->bnqe',
    _fold(weights.astype(v.dtype), kv_heads),
    v,
    jnp.float32,
  )
  y = (y.reshape(q.shape) / norm).astype(q.dtype)
  return y, (weights, norm, slope, mask.any(-1))


def _backward(spans, softcap, kept, cotangent):
  del softcap
  q, k, v, y, parts = kept
  to_q, to_k, to_v = [], 0.0, 0.0
  for span, part in zip(spans, parts, strict=True):
    block = _block_of(span, q, k, v)
    own = slice(*span)
    one, keys, values = _block_backward(
      part, *block, y[:, :, own], cotangent[:, :, own]
    )
    to_q.append(one)
    rest = ((0, 0), (0, 0), (0, k.shape[2] - span[1]), (0, 0))
    to_k, to_v = to_k + jnp.pad(keys, rest), to_v + jnp.pad(values, rest)
  return _join(to_q), to_k.astype(k.dtype), to_v.astype(v.dtype), None


def _block_backward(part, q, k, v, y, cotangent):
  """Returns the cotangents of a block's queries, keys and values.

    dp_l = dy v_l,  ds_l = p_l (dp_l - dy y),  p = weights / norm

  with 1 / norm put on dy, where there are E numbers a query and not L. In
  bfloat16 both that and dy y, of a rounded y, would cost digits: p is divided
  and sum_l p_l dp_l taken.
  """
  weights, norm, slope, seeing = part
  kv_heads, dtype = k.shape[1], q.dtype
  # Scores of a query without any key are no function of it, nor of the keys.
  seeing = seeing[:, None, :, None]
  q = jnp.where(seeing, q, 0)
  out = cotangent
  if dtype == jnp.float32:
    out = out / norm
    mean = (out * y).sum(-1, keepdims=True)
  else:
    weights = weights / norm
  out = _fold(out, kv_heads)
  to_p = _product('bnqe,bnle->bnql', out, v, jnp.float32)
  to_p = to_p.reshape(weights.shape)
  if dtype != jnp.float32:
    mean = (weights * to_p).sum(-1, keepdims=True)
  slopes = weights * (to_p - mean)
  if slope is not None:
    slopes *= slope
  slopes = _fold(slopes.astype(dtype), kv_heads)
  weights = _fold(weights.astype(dtype), kv_heads)
  to_q = _product('bnql,bnle->bnqe', slopes, k, dtype).reshape(q.shape)
  to_q = jnp.where(seeing, to_q, 0)
  to_k = _product('bnql,bnqe->bnle', slopes, _fold(q, kv_heads), jnp.float32)
  to_v = _product('bnql,bnqe->bnle', weights, out, jnp.float32)
  return to_q, to_k, to_v


_attend.defvjp(_forward, _backward)


def _fold(x, kv_heads):
  """[B,H,Q,...] -> [B,N,R*Q,...], the R heads that share a key head."""
  return x.reshape(x.shape[0], kv_heads, -1, x.shape[-1])


def _product(formula, a, b, dtype):
  y = jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)
  return y.astype(dtype)


def _join(parts):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)
