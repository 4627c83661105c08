"""The values that pass between the rooms of meta_rl.

Axes, here and everywhere: P prompts, G group size, B = P * G traces (trace
b = p * G + g), T tokens, Q query tokens, L cache length, K episodes, S accepted
answers, A answer length, V vocabulary.

Masks are bool and True means 'counts'. Ids are int32 and -1 means 'none'.
`log_probs[b, t]` always belongs to `tokens[b, t]`, and the EOS token belongs to
the mask. Everything here is a frozen pytree, except `Model`, which is static.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Params = Any
Cache = Any


@dataclasses.dataclass(frozen=True)
class Model:
  """The one seam between a network and everything else.

  A `Model` holds functions only: it is hashable, so it is closed over or passed
  as a static argument of `jax.jit`.

  Attributes:
    apply_fn: `(params, tokens i32[B,Q], positions i32[B,Q], cache, mask=None)
      -> (logits f32[B,Q,V], cache)`. With `cache=None` the Q tokens attend to
      each other only; otherwise they are written behind those already in the
      cache, token q into slot `index + q` of every row. Position -1 marks
      padding, which is neither attended to nor written (its slot stays zero).
      `mask bool[B,Q,L]` (L = Q without a cache, else the cache's length)
      replaces the causal default.
    init_cache: `(batch, length) -> cache`, a pytree of zeros.
    features_fn: like `apply_fn`, but returns the features f32[B,Q,D] before the
      vocabulary matrix. None: the full logits are paid for.
    unembed_fn: `(params, features f32[...,D]) -> logits f32[...,V]`.
    head_fn: `params -> w [D,V]`, where unembed_fn is finish(features @ w). With
      it a score over many positions gathers w once, and sums its gradient once.
    finish: of `head_fn`, element by element; None: as they are.
  """

  apply_fn: Callable[..., tuple[Array, Cache]]
  init_cache: Callable[[int, int], Cache]
  features_fn: Callable[..., tuple[Array, Cache]] | None = None
  unembed_fn: Callable[[Params, Array], Array] | None = None
  head_fn: Callable[[Params], Array] | None = None
  finish: Callable[[Array], Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
  """A mean that is not divided yet: `value = total / weight`.

  Sums of micro-batches and devices are added first and divided once, so that
  the result does not depend on how a batch was cut.

  Attributes:
    total: f32[], the weighted sum.
    weight: f32[], the sum of the weights.

  Example:
    >>> from meta_rl.types import WeightedSum
    >>> float((WeightedSum(3.0, 2.0) + WeightedSum(1.0, 2.0)).value)
    1.0
  """

  total: Array
  weight: Array

  @property
  def value(self) -> Array:
    """f32[], total / weight, and 0 where the weight is 0."""
    empty = self.weight == 0
    safe = jax.numpy.where(empty, 1, self.weight)
    return jax.numpy.where(empty, 0.0, self.total / safe)

  def __add__(self, other: 'WeightedSum') -> 'WeightedSum':
    return WeightedSum(self.total + other.total, self.weight + other.weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Episodes:
  """Boundaries of the episodes of B thinking traces.

  Episode j (0-based) is the tokens in `(ends[:, j], ends[:, j + 1]]`, and the
  success probability J_j is measured at `ends[:, j]`.

  Attributes:
    ends: i32[B,K+1], `ends[:, 0]` is the last token before thinking; past
      `count` the last end repeats.
    count: i32[B], number of episodes, 0..K.
  """

  ends: Array
  count: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
  """B sampled traces, prompt included; the response starts at column Tp.

  Attributes:
    tokens: i32[B,T], prompts (left-padded to Tp) and responses.
    token_mask: bool[B,T], everything but padding: prompt, thought and answer.
    mask: bool[B,T], the actions: sampled response tokens, EOS included. Forced
      tokens (stop string, budget forcing, a given prefix) and observations are
      False.
    thinking_mask: bool[B,T], response tokens before the answer marker,
      observations included.
    behavior_log_probs: f32[B,T], nats, log-probability of each sampled token
      under the distribution that it was drawn from (temperature, top-k and
      top-p included); 0 where `mask` is False.
    raw_log_probs: f32[B,T], nats, the same under the full softmax at the same
      temperature; equal to `behavior_log_probs` without top-k and top-p.
    truncated: bool[B], the trace ran out of its tokens without EOS or a
      stop string.
    forced: bool[B], thinking was ended by the budget, not by the policy.
    side_tokens: i32[B], response tokens that were sampled or observed for this
      trace and are no part of it, such as those of a stale trace that a group
      branches off (at its first trace, 0 at the others); None: none.
    weights: f32[B,T], a factor on each token's loss, for traces of another
      sampler; None: 1.
  """

  tokens: Array
  token_mask: Array
  mask: Array
  thinking_mask: Array
  behavior_log_probs: Array
  raw_log_probs: Array
  truncated: Array
  forced: Array
  side_tokens: Array | None = None
  weights: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TraceCache:
  """The KV cache of sampled traces, for whoever forks them.

  Attributes:
    cache: the model's cache of B rows; slot t holds column t of the tokens.
    used: i32[], slots written so far; the next token goes to slot `used`.
  """

  cache: Cache
  used: Array
