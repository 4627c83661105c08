"""A cache for models that have none: the tokens themselves."""

import jax
import jax.numpy as jnp

from meta_rl.types import Model


def from_apply_fn(apply_fn) -> Model:
  """Returns a `Model` around a bare function without a cache of its own.

  The cache is a buffer of the tokens, positions and mask rows seen so far, and
  every call runs `apply_fn` over the whole buffer: slow, right, and enough for
  a ten-line toy or a foreign network to work in every public function.

  Args:
    apply_fn: `(params, tokens i32[B,L], positions i32[B,L], None, mask
      bool[B,L,L]) -> (logits f32[B,L,V], anything)`; position -1 marks padding.
      It is called with `cache=None` and a mask that already hides padding.

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl.models import from_apply_fn
    >>> bigram = from_apply_fn(lambda p, tokens, *_: (p[tokens], None))
    >>> tokens, positions = jnp.array([[2, 0]]), jnp.array([[0, 1]])
    >>> logits, _ = bigram.apply_fn(jnp.eye(3), tokens, positions, None)
    >>> logits.tolist()
    [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
  """

  def init_cache(batch: int, length: int):
    return {
      'tokens': jnp.zeros((batch, length), jnp.int32),
      # 1 + position, so that a slot of zeros is void in a cache that grew too.
      'places': jnp.zeros((batch, length), jnp.int32),
      'mask': jnp.zeros((batch, length, length), bool),
      'index': jnp.zeros((), jnp.int32),
    }

  def cached(params, tokens, positions, cache, mask=None):
    queries = tokens.shape[1]
    if cache is None:
      visible = _visible(positions >= 0, 0, queries, mask)
      return apply_fn(params, tokens, positions, None, visible)[0], None
    index = cache['index']
    write = jax.lax.dynamic_update_slice
    new = {
      'tokens': write(cache['tokens'], tokens, (0, index)),
      'places': write(cache['places'], positions + 1, (0, index)),
    }
    rows = _visible(new['places'] > 0, index, queries, mask)
    new['mask'] = write(cache['mask'], rows, (0, index, 0))
    new['index'] = index + queries
    logits, _ = apply_fn(
      params, new['tokens'], new['places'] - 1, None, new['mask']
    )
    return jax.lax.dynamic_slice_in_dim(logits, index, queries, 1), new

  return Model(apply_fn=cached, init_cache=init_cache)


def _visible(slots, index, queries, mask):
  """Returns bool[B,Q,L]: `mask`, or causal by slot, without void slots."""
  if mask is None:
    own = index + jnp.arange(queries)
    mask = (jnp.arange(slots.shape[1]) <= own[:, None])[None]
  return mask & slots[:, None]
