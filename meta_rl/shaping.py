"""Shaping: rewards that also look at how long a trace thought.

Each function takes the outcomes of groups and the lengths of their thoughts and
returns the rewards to learn from. They come before the baseline of the group.

    shaping         a right trace of n tokens         a wrong one
    lcpo_exact      1 - α·|n_gold - n|                -α·|n_gold - n|
    lcpo_max        (clip(α(n_max - n), ±1) + 1)/2    0
    length_penalty  1 - α·σ((n - mean)/std)           0
    overlong        1 + p(n), p from 0 down to -1     p(n)

Axes: P prompts, G group.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from meta_rl import checks, masked

Array = jax.Array


def none(rewards: Array, lengths: Array) -> Array:
  """Returns the outcomes as they are.

  Args:
    rewards: f32[P,G].
    lengths: i32[P,G], of any use to the others only.

  Returns:
    f32[P,G].

  Raises:
    ValueError: wrong shape or dtype.
  """
  return _check(rewards, lengths)[0]


def lcpo_exact(
  rewards: Array,
  lengths: Array,
  *,
  target_length: int | Array,
  alpha: float = 0.0003,
) -> Array:
  """Returns the outcome less the distance from a length.

    r' = r - α·|n_gold - n|

  Wrong traces are drawn to the length too, so a group without one right answer
  still has a gradient: towards n_gold.

  Departs from L1: there n_gold is drawn for each prompt and told to the model;
  here it is what the caller gives, one number or one a prompt.

  Args:
    rewards: f32[P,G], outcome, 0 or 1.
    lengths: i32[P,G], n, thinking tokens, >= 0.
    target_length: n_gold, tokens, >= 0; a number or i32[P,1].
    alpha: α, reward a token, >= 0. Published is 0.0003 for lengths up to 4,000;
      what counts is α times the longest distance, there about 1.

  Returns:
    f32[P,G].

  Raises:
    ValueError: wrong shape or dtype, or a number out of its range.

  Example:
    >>> import numpy as np
    >>> from meta_rl import shaping
    >>> given = [[1.0, 1.0, 0.0]], [[100, 300, 200]]
    >>> found = shaping.lcpo_exact(*given, target_length=200, alpha=0.001)
    >>> print(np.asarray(found).round(4))
    [[0.9 0.9 0. ]]

  Source: L1 (Aggarwal and Welleck 2025, arXiv 2503.04697), section 3.
  """
  rewards, lengths = _check(rewards, lengths)
  checks.check_spread('target_length', target_length, rewards.shape, low=0)
  checks.check_scalar('alpha', alpha, low=0)
  return rewards - alpha * jnp.abs(target_length - lengths)


def lcpo_max(
  rewards: Array,
  lengths: Array,
  *,
  max_length: int | Array,
  alpha: float = 0.002,
) -> Array:
  """Returns the outcome times a slope around the longest length wished for.

    r' = r·(clip(α(n_max - n), -1, 1) + 1)/2

  A right trace of n_max tokens is worth 1/2, one that is 1/α tokens shorter 1,
  one that is 1/α longer 0, as a wrong one is.

  Departs from L1: this is what its authors run, with α = 1/500. Their paper
  writes r·clip(α(n_max - n) + δ, 0, 1) with δ = 1/2: the same at half the α. A
  single n_max, as in `lcpo_exact`.

  Args:
    rewards: f32[P,G], outcome, 0 or 1.
    lengths: i32[P,G], n, thinking tokens, >= 0.
    max_length: n_max, tokens, >= 0; a number or i32[P,1].
    alpha: α, 1 over tokens, >= 0; half of it is the reward that a token costs.

  Returns:
    f32[P,G] in [0, 1].

  Raises:
    ValueError: wrong shape or dtype, or a number out of its range.

  Example:
    >>> import numpy as np
    >>> from meta_rl import shaping
    >>> given = [[1.0, 1.0, 0.0]], [[100, 300, 200]]
    >>> found = shaping.lcpo_max(*given, max_length=200, alpha=0.005)
    >>> print(np.asarray(found).round(4))
    [[0.75 0.25 0.  ]]

  Source: L1 (Aggarwal and Welleck 2025, arXiv 2503.04697), section 3, and the
  code published with it.
  """
  rewards, lengths = _check(rewards, lengths)
  checks.check_spread('max_length', max_length, rewards.shape, low=0)
  checks.check_scalar('alpha', alpha, low=0)
  slope = jnp.clip(alpha * (max_length - lengths), -1.0, 1.0)
  return rewards * (slope + 1) / 2


def length_penalty(rewards: Array, lengths: Array, *, alpha: float) -> Array:
  """Returns outcomes, the right ones of a group less by how long they are.

    r' = r·(1 - α·σ((n - mean)/std)),  mean and std over the group's right ones

  Lengths are compared within a prompt only: a hard one may take its tokens. A
  right trace keeps more than 1 - α, so it beats every wrong one.

  Departs from the source where it says nothing: std is the population's, and
  right traces of one length (a single one among them) are all at the mean,
  1 - α/2, whatever rounding would make of 0/0.

  Args:
    rewards: f32[P,G], outcome, 0 or 1; above 0 is right.
    lengths: i32[P,G], n, thinking tokens, >= 0.
    alpha: α in [0, 1], without a unit; published are 0.05 to 0.4.

  Returns:
    f32[P,G].

  Raises:
    ValueError: wrong shape or dtype, or α out of its range.

  Example:
    >>> import numpy as np
    >>> from meta_rl import shaping
    >>> given = [[1.0, 1.0, 0.0]], [[100, 300, 200]]
    >>> found = shaping.length_penalty(*given, alpha=0.5)
    >>> print(np.asarray(found).round(4))  # 1 - σ(-1)/2, 1 - σ(1)/2
    [[0.8655 0.6345 0.    ]]

  Source: Arora and Zanette 2025 (arXiv 2502.04463), section 4.
  """
  rewards, lengths = _check(rewards, lengths)
  checks.check_scalar('alpha', alpha, low=0, high=1)
  right = rewards > 0
  mean = masked.masked_mean(lengths, right, axis=1)[:, None]
  centred = masked.select(right, lengths - mean)
  std = jnp.sqrt(masked.masked_mean(centred**2, right, axis=1))[:, None]
  longest = jnp.max(jnp.where(right, lengths, -jnp.inf), 1, keepdims=True)
  shortest = jnp.min(jnp.where(right, lengths, jnp.inf), 1, keepdims=True)
  # Not `std == 0`: where division rounds (TPU), so does the mean of equal ones.
  alike = longest <= shortest
  score = jnp.where(alike, 0.0, masked.safe_divide(centred, std))
  return rewards * (1 - alpha * jax.nn.sigmoid(score))


def overlong(
  rewards: Array,
  lengths: Array,
  *,
  max_length: int,
  cache_length: int,
) -> Array:
  """Returns the outcome plus DAPO's soft punishment of overlong traces.

    r' = r + p(n)
    p(n) = 0                                 n <= L_max - L_cache
           ((L_max - L_cache) - n)/L_cache   up to L_max
           -1                                n > L_max

  It is continuous, so a trace that is a token too long is not lost at once.

  Departs from DAPO: its outcome is ±1 and the length that of the whole
  response; here the outcome is 0 or 1, against which -1 weighs twice as much.

  Args:
    rewards: f32[P,G], outcome, 0 or 1.
    lengths: i32[P,G], n, thinking tokens, >= 0.
    max_length: L_max, tokens, >= L_cache.
    cache_length: L_cache, tokens over which the punishment grows, > 0.

  Returns:
    f32[P,G].

  Raises:
    ValueError: wrong shape or dtype, or numbers out of their ranges.

  Example:
    >>> from meta_rl import shaping
    >>> given = [[1.0, 1.0, 0.0]], [[100, 300, 200]]
    >>> shaping.overlong(*given, max_length=300, cache_length=200).tolist()
    [[1.0, 0.0, -0.5]]

  Source: DAPO (Yu et al. 2025, arXiv 2503.14476), equation 13.
  """
  rewards, lengths = _check(rewards, lengths)
  checks.check_scalar('cache_length', cache_length, above=0)
  checks.check_scalar('max_length', max_length, low=cache_length)
  over = (lengths - (max_length - cache_length)) / cache_length
  return rewards - jnp.clip(over, 0.0, 1.0)


SHAPINGS = {
  'none': none,
  'lcpo_exact': lcpo_exact,
  'lcpo_max': lcpo_max,
  'length_penalty': length_penalty,
  'overlong': overlong,
}


def shape(
  rewards: Array, lengths: Array, *, kind: str = 'none', **options: Any
) -> Array:
  """Returns `SHAPINGS[kind]` of the rewards, with its options checked by name.

  Args:
    rewards: f32[P,G], outcome.
    lengths: i32[P,G], thinking tokens.
    kind: one of `SHAPINGS`.
    **options: of all shapings; None is 'not given'.

  Returns:
    f32[P,G].

  Raises:
    ValueError: an unknown kind, an option that this kind has no use for, or one
      that it cannot do without.

  Example:
    >>> from meta_rl import shaping
    >>> given = [[1.0, 1.0, 0.0]], [[100, 300, 200]]
    >>> shaping.shape(
    ...   *given, kind='overlong', max_length=300, cache_length=200
    ... ).tolist()
    [[1.0, 0.0, -0.5]]
  """
  checks.check_choice('shaping', kind, SHAPINGS)
  known = {
    name: parameter.default is parameter.empty
    for name, parameter in inspect.signature(SHAPINGS[kind]).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  given = {name: x for name, x in options.items() if x is not None}
  for name in given:
    if name not in known:
      raise ValueError(
        f'{name}={given[name]} does nothing with shaping={kind!r}, whose '
        f'options are {list(known)}: set {name}=None.'
      )
  if missing := [n for n, needed in known.items() if needed and n not in given]:
    raise ValueError(f'shaping={kind!r} needs {", ".join(missing)}.')
  return SHAPINGS[kind](rewards, lengths, **given)


def _check(rewards: Array, lengths: Array) -> tuple[Array, Array]:
  """Returns both as f32[P,G], checked."""
  dims = {}
  rewards = checks.as_array('rewards', rewards, 'float[P,G]', dims)
  lengths = checks.as_array('lengths', lengths, 'int[P,G]', dims)
  return rewards, lengths.astype(rewards.dtype)
