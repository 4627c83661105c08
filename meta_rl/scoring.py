"""Log-probabilities of given tokens: the `score` of the training step.

Sampling, scoring, the update and the prover share one forward pass and one
temperature, so that a recorded log-prob and a re-scored one differ by rounding
alone.
"""

import functools
import math

import jax
import jax.numpy as jnp

from meta_rl import checks, places
from meta_rl.types import Array, Model, Params


def positions_of(token_mask: Array) -> Array:
  """Returns i32[B,T]: 0, 1, 2 … over the True of each row, -1 elsewhere."""
  token_mask = checks.as_array('token_mask', token_mask, 'bool[...,T]')
  count = jnp.cumsum(token_mask.astype(jnp.int32), axis=-1)
  return jnp.where(token_mask, count - 1, -1)


def log_softmax_at(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Returns (log p(target), entropy of p), both f32[...].

  log p = logit_target - logsumexp(logits). The target is picked by comparing
  with an iota, which fuses with the reduction and, unlike a gather, has no
  scatter in its gradient.
  """
  logits = checks.to_array('logits', logits)
  checks.check_dtype('logits', logits, 'float')
  checks.check_shape('logits', logits, '...,V')
  checks.check_filled('logits', logits)
  targets = checks.as_array('targets', targets, 'int[...]')
  checks.check_shape('targets', targets, logits.shape[:-1])
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  shifted = logits - top
  exp = jnp.exp(shifted)
  norm = exp.sum(-1)
  log_norm = jnp.log(norm)
  picked = jnp.where(ids == targets[..., None], shifted, 0.0).sum(-1)
  # 0 * log 0 = 0: a token that cannot be (logit -inf) adds nothing.
  finite = jnp.where(exp > 0, shifted, 0.0)
  entropy = log_norm - (exp * finite).sum(-1) / norm
  return picked - log_norm, entropy


def score(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  *,
  positions: Array | None = None,
  mask: Array | None = None,
  temperature: float = 1.0,
  chunk: int | None = None,
  features: Array | None = None,
) -> tuple[Array, Array]:
  """Returns the log-probability of every token given those before it.

    log_probs[b, t] = log softmax(logits[b, t - 1] / temperature)[tokens[b, t]]

  The vocabulary matrix is applied to `chunk` positions of each row at a time
  and rematerialised in the backward pass, so that [B,T,V] never exists.

  Args:
    model: the network; without `features_fn` the full logits are paid for.
    params: its parameters.
    tokens: i32[B,T].
    token_mask: bool[B,T], everything but padding.
    positions: i32[B,T], where they are not simply 0, 1, 2 … (packed rows).
    mask: bool[B,T,T], attention, where it is not causal (packed rows).
    temperature: > 0, the one that sampling used.
    chunk: positions at a time, or fewer, so that all chunks are about equal;
      None takes all at once.
    features: f32[B,T,D], what `model.features_fn` gives on these arguments, for
      a caller that reads them too: the forward pass is then not run again.

  Returns:
    log_probs f32[B,T] in nats, 0 at padding and at each row's first token, and
    the entropy f32[B,T] in nats of the distribution that token t was drawn
    from.

  Raises:
    ValueError: wrong shape or dtype, a number outside its range, or features
      for a model that has none.
  """
  checks.check_model(model)
  dims = {}
  tokens = checks.as_array('tokens', tokens, 'int[B,T]', dims)
  checks.check_filled('tokens', tokens)
  token_mask = checks.as_array('token_mask', token_mask, 'bool[B,T]', dims)
  checks.check_scalar('temperature', temperature, above=0, below=math.inf)
  if chunk is not None:
    chunk = _even(tokens.shape[1], checks.check_count('chunk', chunk))
  if mask is not None:
    mask = checks.as_array('mask', mask, 'bool[B,T,T]', dims)
  if positions is None:
    positions = positions_of(token_mask)
  positions = checks.as_array('positions', positions, 'int[B,T]', dims)
  if features is not None:
    if model.features_fn is None:
      raise ValueError(
        'features must be None for a model without features_fn, got '
        f'{checks.show(features)}'
      )
    features = checks.to_array('features', features)  # of any float dtype
    checks.check_dtype('features', features, 'float')
    checks.check_shape('features', features, 'B,T,D', dims)
  # Features at t predict token t + 1; shifting the targets, not the features,
  # keeps T a round number.
  targets = jnp.roll(tokens, -1, axis=1)
  if model.features_fn is None:
    logits, _ = model.apply_fn(params, tokens, positions, None, mask)
    log_probs, entropy = log_softmax_at(logits / temperature, targets)
  else:
    if features is None:
      features, _ = model.features_fn(params, tokens, positions, None, mask)

    if chunk is None or chunk >= tokens.shape[1]:
      logits = model.unembed_fn(params, features)
      log_probs, entropy = log_softmax_at(logits / temperature, targets)
    elif model.head_fn is None:
      head = lambda args: log_softmax_at(
        model.unembed_fn(params, args[0]) / temperature, args[1]
      )
      pieces = _split(features, chunk), _split(targets, chunk)
      found = jax.lax.map(jax.checkpoint(head), pieces)
      log_probs, entropy = (_join(x, tokens.shape[1]) for x in found)
    else:
      finish = model.finish or (lambda logits: logits)
      log_probs, entropy = _head(
        lambda z, t: log_softmax_at(finish(z) / temperature, t),
        chunk,
        model.head_fn(params),
        features,
        targets,
      )
  known = token_mask & (positions > 0)
  shift = lambda x: jnp.where(known, jnp.roll(x, 1, axis=1), 0.0)
  return shift(log_probs), shift(entropy)


def _even(length: int, chunk: int) -> int:
  """Returns the least chunk that needs no more of them: little is padding.

  A multiple of 8, where chunks are, so that a mesh can cut it as before.

  Example:
    >>> _even(144, 64)  # three of 48, and not of 64
    48
  """
  even = -(-length // -(-length // chunk))
  return even if chunk % 8 else -(-even // 8) * 8


def _split(x, chunk):
  """[B,T,...] -> [N,B,chunk,...], padded at the end."""
  batch, length = x.shape[:2]
  num = -(-length // chunk)
  x = jnp.pad(x, [(0, 0), (0, num * chunk - length)] + [(0, 0)] * (x.ndim - 2))
  return x.reshape(batch, num, chunk, *x.shape[2:]).swapaxes(0, 1)


def _join(x, length):
  """[N,B,chunk,...] -> [B,T,...]."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head(measure, chunk, w, features, targets):
  """Returns measure(features @ w, targets), `chunk` positions at a time.

  Under fsdp the matrix is gathered once, not once a chunk, and each device adds
  up the gradient of its own rows over all chunks before they are summed over
  devices: both are hundreds of megabytes.
  """
  whole = _gathered(w, features)

  def one(piece):
    x, t = piece
    return measure(_logits(x, whole), t)

  found = jax.lax.map(one, (_split(features, chunk), _split(targets, chunk)))
  return tuple(_join(x, targets.shape[1]) for x in found)


def _gathered(w, features):
  return places.gather(w.astype(features.dtype), 'head')


def _logits(x, whole):
  logits = jnp.matmul(
    x.reshape(-1, x.shape[-1]), whole, preferred_element_type=jnp.float32
  )
  logits = logits.reshape(*x.shape[:-1], -1)
  return places.activation(logits, 'batch', 'length', 'vocab')


def _head_forward(measure, chunk, w, features, targets):
  out = _head(measure, chunk, w, features, targets)
  return out, (w, features, targets)


def _head_backward(measure, chunk, kept, cotangents):
  w, features, targets = kept
  whole, shards = _gathered(w, features), places.parts('batch')
  (depth, vocab), dtype = w.shape, features.dtype
  sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  # Of each shard's rows: [shards,rows,...].
  own = lambda x, size: x.reshape(shards, -1, size)
  place = lambda x: places.activation(x, 'batch', None, 'vocab')

  def one(to_w, piece):
    x, t, out = piece
    _, pull = jax.vjp(lambda z: measure(z, t), _logits(x, whole))
    z = pull(out)[0].astype(dtype)
    to_x = sums('bqv,dv->bqd', z, whole).astype(dtype)
    part = sums('srd,srv->sdv', own(x, depth), own(z, vocab))
    return place(to_w + part), to_x

  start = place(jnp.zeros((shards, depth, vocab), jnp.float32))
  pieces = jax.tree.map(
    lambda x: _split(x, chunk), (features, targets, cotangents)
  )
  to_w, to_x = jax.lax.scan(one, start, pieces)
  to_w = places.reduce(to_w, 'head').astype(w.dtype)
  return to_w, _join(to_x, targets.shape[1]), None


_head.defvjp(_head_forward, _head_backward)
