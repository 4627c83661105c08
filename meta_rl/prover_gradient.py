"""The exact prover as a function that is differentiated: J(theta).

`prover.exact` runs a data-dependent loop over the trace's own KV cache, which
has no reverse mode and holds the trace's keys constant. Here each chunk of
(boundary, answer) pairs is one forward pass of

    [trace | probe 1 | probe 2 | ...]

without a cache, under the mask of meta_rl/probes.py, so that the gradient also
flows through what the trace itself has computed.

Axes: B traces, T tokens, K episodes, S accepted answers, A answer tokens, m
stop tokens, C pairs of a chunk.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, probes
from meta_rl.scoring import log_softmax_at, positions_of
from meta_rl.types import Array, Model, Params


def differentiable(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  answers: Array,
  answer_mask: Array,
  *,
  stop_ids: Sequence[int],
  boundary_weights: Array,
  temperature: float = 1.0,
  block_pairs: int = 16,
) -> Array:
  """Returns f32[B], sum_j w_j J_j with a gradient in the parameters.

    J_j = sum_s prod_i mu(a_s,i | c_j, stop, a_s,<i)

  The value is that of `prover.exact`. The pairs of a trace that exist and have
  a weight are packed to the front, and chunks of `block_pairs` are run in turn
  and rematerialised in the backward pass, each with the trace anew; chunks in
  which no trace has a pair left are skipped. Memory is that of one chunk.

  Args:
    model: the network.
    params: of the prover, differentiated.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding.
    ends: i32[B,K+1], boundaries; past the last one it repeats, and so does J.
    answers: i32[B,S,A], distinct accepted answers, each ending in EOS.
    answer_mask: bool[B,S,A], True on an answer and its EOS.
    stop_ids: m tokens, forced after the prefix and not scored.
    boundary_weights: f32[B,K+1], w, constants; boundaries of weight 0 cost
      nothing.
    temperature: > 0, at which the prover answers.
    block_pairs: C; it changes speed and memory only.

  Raises:
    ValueError: shapes, dtypes, a number outside its range, or a token that the
      model does not have.
  """
  tokens, token_mask, ends, answers, answer_mask = probes.listed_of(
    model, tokens, token_mask, ends, answers, answer_mask, stop_ids
  )
  checks.check_scalar('temperature', temperature, above=0, below=math.inf)
  checks.check_count('block_pairs', block_pairs)
  weights = checks.as_array('boundary_weights', boundary_weights, 'float[B,K]')
  checks.check_shape('boundary_weights', weights, ends.shape)

  rows, width = ends.shape
  num_answers, length = answers.shape[1:]
  block_pairs = min(block_pairs, width * num_answers)
  weights = jax.lax.stop_gradient(on_first(weights, ends))
  real = (weights != 0)[:, :, None] & answer_mask.any(-1)[:, None, :]
  real = real.reshape(rows, width * num_answers)
  order, count, _ = probes.pack(real, block_pairs)
  before = jnp.cumsum(token_mask, axis=1)
  trace_positions = positions_of(token_mask)
  stop = jnp.asarray(tuple(stop_ids), jnp.int32)
  query = len(stop) + length - 1  # the last answer token is predicted only
  columns = tokens.shape[1]
  slots = columns + block_pairs * query
  causal = jnp.arange(slots) <= jnp.arange(columns)[:, None]
  causal = jnp.broadcast_to(causal, (rows, columns, slots))

  def value(params, first):
    """Returns f32[B], the weighted J of the chunk that begins at `first`."""
    pair = jax.lax.dynamic_slice_in_dim(order, first, block_pairs, 1)
    wanted = first + jnp.arange(block_pairs) < count[:, None]
    boundary, choice = pair // num_answers, pair % num_answers
    boundary = jnp.minimum(boundary, width - 1)  # what fills up the last chunk
    end = jnp.take_along_axis(ends, boundary, 1)
    answer = jnp.take_along_axis(answers, choice[..., None], 1)
    scored = jnp.take_along_axis(answer_mask, choice[..., None], 1)
    scored &= wanted[..., None]
    given, positions = probes.forced_answer(
      stop, answer, scored, wanted, probes.tokens_until(before, end)
    )
    join = lambda x, y: jnp.concatenate([x, y.reshape(rows, -1)], axis=1)
    seen = probes.probe_mask(end, query, columns, slots)
    features, _ = probes.features_of(
      model,
      params,
      join(tokens, given),
      join(trace_positions, positions),
      None,
      jnp.concatenate([causal, seen], axis=1),
    )
    features = features[:, columns:].reshape(*pair.shape, query, -1)
    logits = probes.unembed(model, params, features[:, :, len(stop) - 1 :])
    checks.check_vocabulary('prover: stop_ids', stop_ids, logits.shape[-1])
    log_probs, _ = log_softmax_at(logits / temperature, answer)
    chance = jnp.exp(jnp.where(scored, log_probs, 0.0).sum(-1))
    weight = jnp.take_along_axis(weights, boundary, 1)
    return jnp.where(wanted, weight * chance, 0.0).sum(1)

  # Made of the weights, so that it is as local to a device as they are.
  nothing = 0.0 * weights.sum(1)

  @jax.checkpoint
  def chunk(params, first):
    return jax.lax.cond(
      first < count.max(), value, lambda *_: nothing, params, first
    )

  add = lambda total, first: (total + chunk(params, first), None)
  firsts = jnp.arange(0, order.shape[1], block_pairs)
  total, _ = jax.lax.scan(add, nothing, firsts)
  return total


def on_first(weights: Array, ends: Array) -> Array:
  """Returns f32[B,K+1], the weight of boundaries that repeat on the first.

  ends     2 5 5 7        weights  .1 .2 .3 .4   ->   .1 .5 0 .4
  """
  index = jnp.cumsum(probes.is_boundary(ends), axis=1) - 1  # of the boundary
  same = index[:, :, None] == index[:, None, :]
  total = jnp.where(same, weights[:, None, :], 0.0).sum(-1)
  return jnp.where(probes.is_boundary(ends), total, 0.0)
