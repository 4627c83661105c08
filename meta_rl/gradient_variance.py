"""Where the variance of a policy gradient comes from: traces, or the prover.

With g(t, w) the gradient on a batch of traces t with the prover's luck w, the
law of total variance splits

    Var g = Var_t( E_w[g | t] )  +  E_t( Var_w(g | t) )
            between traces          of the prover

The second part is what more branches, or the exact prover, can take away; the
first is what they cannot. Each is the trace of a covariance: the variance of
every parameter's gradient, summed.

Estimated from N independent batches of traces with M independent draws of the
prover on each, without bias: within has (M - 1) in its denominator, and the
variance of the batch means, with (N - 1), is too large by within / M, which is
taken off. (A batch is one rollout of training; its traces share a baseline and
a normalisation, so the batch, not the trace, is the unit.)

Axes: N batches of traces, M draws of the prover, D parameters.

Source: MRT's public notes name the variance of 4 sampled branches as the reason
why its online form trails (arXiv 2503.07572, section 6); the split is ours.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Split(NamedTuple):
  """The variance of a gradient, summed over parameters.

  Attributes:
    between: between batches of traces; an unbiased estimate of a small variance
      may fall below 0.
    within: of the prover on given traces.
    total: their sum, the variance of a gradient with one draw of the prover.
    mean_norm: Euclidean norm of the mean gradient, to compare its root with.
  """

  between: float
  within: float
  total: float
  mean_norm: float


class VarianceSplit:
  """Accumulates gradients, batch by batch, without keeping them.

      split = VarianceSplit()
      for traces in batches:
        split.add([gradient(traces, draw) for draw in draws])
      split.result()

  A gradient of a million parameters has a norm that float32 sums carry well
  enough, differences of two such sums not: sums of squares are float64, and
  deviations are taken before squaring.
  """

  def __init__(self):
    self._batches = 0
    self._draws = None
    self._within = 0.0
    # Welford's running mean of the batch means, and its sum of squares.
    self._mean = None
    self._squares = 0.0

  def add(self, gradients: Sequence[Any]):
    """Adds one batch of traces.

    Args:
      gradients: M pytrees of f[...], one for each draw of the prover on these
        traces; M >= 2, or M = 1 for a prover without luck, whose part is 0.

    Raises:
      ValueError: no gradient, or another M than before.
    """
    rows = np.stack([flat(g) for g in gradients]) if len(gradients) else None
    if rows is None or self._draws not in (None, len(rows)):
      raise ValueError(
        f'{len(gradients)} gradients of a batch: give as many for each batch '
        f'({self._draws or "at least one"}).'
      )
    self._draws = len(rows)
    mean = rows.mean(0)
    if len(rows) > 1:
      self._within += float(((rows - mean) ** 2).sum()) / (len(rows) - 1)
    self._batches += 1
    if self._mean is None:
      self._mean = mean
      return
    step = mean - self._mean
    self._mean = self._mean + step / self._batches
    self._squares += float((step * (mean - self._mean)).sum())

  def result(self) -> Split:
    """Returns the split.

    Raises:
      ValueError: fewer than two batches of traces.
    """
    if self._batches < 2:
      raise ValueError(
        f'{self._batches} batches of traces: a variance needs at least 2.'
      )
    within = self._within / self._batches
    between = self._squares / (self._batches - 1) - within / self._draws
    return Split(
      between, within, between + within, float(np.linalg.norm(self._mean))
    )


def flat(gradient: Any) -> np.ndarray:
  """Returns a pytree of arrays as one vector f64[D]."""
  leaves = [
    np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)
  ]
  return np.concatenate(leaves)


def measure(
  sample_fn: Callable,
  draw_fn: Callable,
  exact_fn: Callable,
  gradient_fn: Callable,
  *,
  batches: int,
  draws: int,
  key: jax.Array,
) -> dict[str, Split]:
  """Returns the split of several provers on the same batches of traces.

  Batch n draws from fold_in(key, n), and draw m of its provers from fold_in of
  that. Provers of one call of `draw_fn` may share their luck (4 branches may be
  the first of 16): each one's split is unbiased by itself.

  Args:
    sample_fn: `(n, key) -> traces`, one batch.
    draw_fn: `(traces, key) -> {name: measured}`, provers with luck.
    exact_fn: `traces -> {name: measured}`, provers without.
    gradient_fn: `(traces, measured) -> gradient`, a pytree.
    batches: N >= 2.
    draws: M >= 2, of `draw_fn`.
    key: PRNG key, consumed here.

  Raises:
    ValueError: fewer than two batches or draws.
  """
  if batches < 2 or draws < 2:
    raise ValueError(
      f'batches={batches} and draws={draws}: a variance needs at least 2.'
    )
  splits = collections.defaultdict(VarianceSplit)
  for n in range(batches):
    sample_key, draw_key = jax.random.split(jax.random.fold_in(key, n))
    traces = sample_fn(n, sample_key)
    gradients = collections.defaultdict(list)
    found = [
      draw_fn(traces, jax.random.fold_in(draw_key, m)) for m in range(draws)
    ]
    for measured in [*found, exact_fn(traces)]:
      for name, value in measured.items():
        gradients[name].append(gradient_fn(traces, value))
    for name, values in gradients.items():
      splits[name].add(values)
  return {name: split.result() for name, split in splits.items()}
