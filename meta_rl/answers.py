"""Scores of sampled answers, on the host: pass@k, maj@k and boxed answers.

n samples of one problem, of which k are looked at. Both scores are exact
expectations over the k-subsets, so that no seed enters an evaluation.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from meta_rl.verifiers.extract import extract_boxed

__all__ = ['extract_boxed', 'maj_at_k', 'pass_at_k', 'subsets']


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """Returns the chance that at least one of k samples is right.

    1 − C(n − c, k) / C(n, k)

  Unbiased for 1 − (1 − p)^k, unlike the plug-in with p = c/n.

  Args:
    num_samples: n >= 1, samples drawn.
    num_correct: c in 0..n, right ones among them.
    k: 1..n, samples looked at.

  Returns:
    A probability.

  Raises:
    ValueError: k > n, or an argument out of its range.
    TypeError: an argument that is not an integer.

  Source: Chen et al. 2021, section 2.1, arXiv 2107.03374.
  """
  n, c = (
    _integer(num_samples, 'num_samples'),
    _integer(num_correct, 'num_correct'),
  )
  k = _size(k, n)
  if not 0 <= c <= n:
    raise ValueError(f'num_correct={c}: 0..{n} is allowed for {n} samples.')
  return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def maj_at_k(
  answers: Sequence[Hashable | None],
  k: int,
  truth: Hashable,
  *,
  weights: Sequence[float] | None = None,
  equivalent: Callable[[Any, Any], bool] | None = None,
  max_subsets: int = 100_000,
  seed: int = 0,
) -> float:
  """Returns the chance that a vote among k of the answers elects the truth.

    E_{S ⊂ answers, |S| = k} [ 1[truth ∈ W(S)] / |W(S)| ],
    W(S) = argmax_a Σ_{i ∈ S, answers[i] = a} weights[i]

  Tied winners share the win. None (no answer found) fills a place in the subset
  but never wins, nor does a total weight of 0: a vote of only such scores 0.

  Without weights it is exact at any size (a polynomial count of the subsets).
  With weights the subsets are enumerated up to `max_subsets` of them; beyond,
  that many are drawn with `seed`.

  Args:
    answers: n answers, None where there is none.
    k: 1..n, the answers that vote.
    truth: the right answer, not None.
    weights: n votes' weights, >= 0 and finite, for example 2^(mean log2-prob).
    equivalent: `(a, b) -> bool`, answers that count as one, an equivalence
      relation; None: `==`.
    max_subsets: the most subsets that are enumerated in the weighted vote.
    seed: of the draw beyond that.

  Returns:
    A probability.

  Raises:
    ValueError: k > n, no answers, truth None, weights that do not fit.
    TypeError: k is not an integer.

  Source: Wang et al. 2022, arXiv 2203.11171; the weighted vote of forced
    answers as in Qu et al. 2025, appendix, arXiv 2503.07572.
  """
  answers = list(answers)
  k = _size(k, len(answers))
  if truth is None:
    raise ValueError('truth=None: None never wins a vote, give the answer.')
  labels = _labels(answers, truth, equivalent)
  if weights is None:
    return _equal_votes(labels, k)
  weights = np.asarray(weights, np.float64)
  if weights.shape != (len(answers),):
    raise ValueError(
      f'weights has shape {weights.shape}: one an answer is needed,'
      f' ({len(answers)},).'
    )
  if not np.isfinite(weights).all() or (weights < 0).any():
    raise ValueError('weights must be finite and >= 0.')
  return _weighted_votes(labels, k, weights, max_subsets, seed)


def _labels(answers, truth, equivalent):
  """Returns ids: 0 the truth, 1.. the other answers, -1 none."""
  kinds, labels = [truth], []
  for answer in answers:
    if answer is None:
      labels.append(-1)
      continue
    for i, kind in enumerate(kinds):
      if equivalent(answer, kind) if equivalent else answer == kind:
        labels.append(i)
        break
    else:
      labels.append(len(kinds))
      kinds.append(answer)
  return labels


def _equal_votes(labels, k):
  """Counts the k-subsets by (votes of the others, how many of them tie)."""
  n, right = len(labels), labels.count(0)
  nones = labels.count(-1)
  others = [labels.count(i) for i in range(1, max(labels, default=0) + 1)]
  won = Fraction(0)
  for votes in range(1, min(right, k) + 1):
    # ways[used, ties]: choices of `used` votes for the others, none of them
    # above `votes`, `ties` of them equal to it.
    ways = {(0, 0): 1}
    for size in others:
      following = {}
      for (used, ties), number in ways.items():
        for take in range(min(size, votes, k - votes - used) + 1):
          state = used + take, ties + (take == votes)
          more = number * math.comb(size, take)
          following[state] = following.get(state, 0) + more
      ways = following
    for (used, ties), number in ways.items():
      rest = math.comb(nones, k - votes - used)
      won += Fraction(math.comb(right, votes) * number * rest, 1 + ties)
  return float(won / math.comb(n, k))


def subsets(
  n: int, k: int, *, max_subsets: int = 100_000, seed: int = 0
) -> np.ndarray:
  """Returns the k-subsets of range(n), or so many of them as are looked at.

  All of them up to `max_subsets`; beyond, that many are drawn with `seed`.

  Args:
    n, k: 1 <= k <= n.
    max_subsets: the most rows.
    seed: of the draw.

  Returns:
    i64[Q,k].
  """
  if math.comb(n, k) <= max_subsets:
    return np.array(list(itertools.combinations(range(n), k)))
  # The k smallest of n uniform numbers are a uniform k-subset.
  order = np.random.default_rng(seed).random((max_subsets, n))
  return np.argpartition(order, k - 1, axis=1)[:, :k]


def _weighted_votes(labels, k, weights, max_subsets, seed):
  chosen = subsets(len(labels), k, max_subsets=max_subsets, seed=seed)
  labels = np.asarray(labels)
  totals = np.stack(
    [
      np.where(labels[chosen] == kind, weights[chosen], 0.0).sum(1)
      for kind in range(max(labels.max(), 0) + 1)
    ],
    axis=1,
  )
  best = totals.max(1, keepdims=True)
  # Sums of equal weights in another order differ in the last bits: still ties.
  winners = (totals >= best * (1 - 1e-9)) & (best > 0)
  return float(np.mean(winners[:, 0] / np.maximum(winners.sum(1), 1)))


def _integer(value, name):
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f'{name}={value!r}: an integer is needed.')
  return int(value)


def _size(k, n):
  k = _integer(k, 'k')
  if n < 1:
    raise ValueError('There are no samples: at least one is needed.')
  if not 1 <= k <= n:
    raise ValueError(f'k={k}: 1..{n} is allowed for {n} samples.')
  return k
