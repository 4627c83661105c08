"""[maj@p]_j: p forced answers after j episodes vote, or the trace thinks on.

Tokens can be spent in two ways: on several answers from one prefix, of which
the vote counts, or on more episodes and one answer. [maj@p]_j is the first,
pass@1 at as many tokens the second; a policy whose thinking makes progress is
better off with the second.

Pure numpy on the host, exact expectations: no seed enters up to 1e5 subsets.
Axes: N traces, K episodes, M forced answers at each boundary, p of which vote.

Source: MRT, section 5 and its public notebooks (arXiv 2503.07572).
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from meta_rl import answers as answers_
from meta_rl import statistics, token_curves

# Sums of equal weights in another order differ in the last bits: still ties.
_TIE = 1e-9
_BLOCK = 1 << 22  # entries of one array
RIGHT, NONE = 0, -1


def vote_weights(mean_log_probs: Any) -> np.ndarray:
  """Returns 2^(mean log-prob of an answer's tokens), f64 of the same shape.

  The base is 2 and the logarithm natural, as in the official notebooks.

  Args:
    mean_log_probs: nats a token, <= 0; -inf weighs nothing.
  """
  return np.exp2(np.asarray(mean_log_probs, np.float64))


def labels_of(answers: Any, truth: Hashable | Sequence[Hashable]) -> np.ndarray:
  """Returns what each answer votes for as a number, i64[N,K+1,M].

  Args:
    answers: [N,K+1,M], nested lists or an array: hashable, None for no answer.
    truth: the right answer, or a list or array of N, one a trace.

  Returns:
    0 for the truth, -1 for None, 1 ... for other answers of the same trace.

  Raises:
    ValueError: another shape, or a truth that is None.
  """
  given = _objects(answers)
  many = isinstance(truth, list | np.ndarray)
  truths = list(truth) if many else [truth] * len(given)
  if len(truths) != len(given):
    raise ValueError(
      f'truth has {len(truths)} entries for {len(given)} traces: give one a '
      'trace, or one for all.'
    )
  if any(each is None for each in truths):
    raise ValueError('truth is None: None never wins a vote, give the answer.')
  found = np.empty(given.shape, np.int64)
  for row, own, right in zip(found, given, truths):
    known = {right: RIGHT}
    row.flat = [
      NONE if each is None else known.setdefault(each, len(known))
      for each in own.flat
    ]
  return found


def maj_at_p(
  answers: Any,
  truth: Hashable | Sequence[Hashable],
  *,
  p: int | None = None,
  weights: Any = None,
  max_subsets: int = 100_000,
  seed: int = 0,
) -> np.ndarray:
  """Returns [maj@p]_j of each trace: f64[N,K+1].

    mean over the p-subsets S of the M answers of
      1 if W_S(truth) > max of W_S(a) over other answers a
      1/2 if they are equal, else 0,    W_S(a) = sum of weights of a in S

  None (no answer) takes a place among the p and never wins. A tie gives 1/2
  however many share it, as in the official notebooks; `answers.maj_at_k`
  shares the win, which differs where three or more tie.

  Args:
    answers: [N,K+1,M], hashable; None: no answer.
    truth: the right answer, or a list or array of N, one a trace. Where the
      grade is known, let right answers be one and the same: 'right', say.
    p: 1..M answers that vote; None: all M.
    weights: f[N,K+1,M], >= 0, such as `vote_weights`; None: all equal.
    max_subsets: more subsets than these are sampled, with `seed`.
    seed: of that.

  Returns:
    f64[N,K+1] in [0, 1]; with p = 1 the share of right answers.

  Raises:
    ValueError: shapes that do not fit, p outside 1..M, bad weights.
  """
  labels = labels_of(answers, truth)
  size = labels.shape[-1]
  p = size if p is None else p
  if isinstance(p, bool) or not isinstance(p, int | np.integer):
    raise ValueError(f'p={p!r}: a whole number of votes is needed.')
  if not 1 <= p <= size:
    raise ValueError(f'p={p}: 1..{size} is allowed for {size} answers.')
  if weights is None:
    weights = np.ones(labels.shape)
  weights = np.asarray(weights, np.float64)
  if weights.shape != labels.shape:
    raise ValueError(
      f'weights has shape {weights.shape}: one an answer is needed, '
      f'{labels.shape}.'
    )
  if not np.isfinite(weights).all() or (weights < 0).any():
    raise ValueError('weights must be finite and >= 0.')
  chosen = answers_.subsets(size, p, max_subsets=max_subsets, seed=seed)
  flat = labels.reshape(-1, size), weights.reshape(-1, size)
  step = max(1, _BLOCK // (len(chosen) * p * p))
  parts = [
    _win(flat[0][i : i + step], flat[1][i : i + step], chosen)
    for i in range(0, len(flat[0]), step)
  ]
  return np.concatenate(parts).reshape(labels.shape[:-1])


def _win(labels, weights, chosen):
  """Returns the chance f64[R] that a subset of R rows elects the truth."""
  own, weight = labels[:, chosen], weights[:, chosen]  # [R, Q, p]
  same = own[..., :, None] == own[..., None, :]
  total = (same * weight[..., None, :]).sum(-1)
  right = np.where(own == RIGHT, total, 0.0).max(-1)
  other = np.where(own > RIGHT, total, 0.0).max(-1)
  tied = np.abs(right - other) <= _TIE * np.maximum(right, other)
  won = np.where(tied, 0.5, right > other)
  return np.where(right > 0, won, 0.0).mean(1)


def thinking_on(tokens: Any, accuracy: Any, at: Any) -> np.ndarray:
  """Returns pass@1 of each trace when it has spent so many tokens, f64[N,J].

  Linear between a trace's own boundaries and flat after its last one: the trace
  has stopped and spends no more. Tokens are kept from running backwards.

  Args:
    tokens: f[N,K+1], at boundary j: of the prefix and one answer.
    accuracy: f[N,K+1], pass@1 there.
    at: f[N,J], tokens to be spent.
  """
  tokens = statistics.monotone(np.asarray(tokens, np.float64))
  accuracy = np.asarray(accuracy, np.float64)
  rows = zip(tokens, accuracy, np.asarray(at, np.float64))
  return np.stack([token_curves.at_tokens(*row) for row in rows])


def vote_figures(
  answers: Any,
  truth: Hashable | Sequence[Hashable],
  *,
  prefix_tokens: Any,
  answer_tokens: Any,
  weights: Any = None,
  sizes: Sequence[int] | None = None,
  clusters: np.ndarray | None = None,
) -> dict:
  """Returns the figures of [maj@p]_j beside thinking on, for an `eval.json`.

  A vote of p costs its prefix once and p answers of mean length:

    tokens = prefix_tokens[j] + p · mean of answer_tokens[j]

  Args:
    answers, truth, weights: as in `maj_at_p`. Past the last boundary of a trace
      all arrays repeat it.
    prefix_tokens: f[N,K+1], tokens before the answers of boundary j.
    answer_tokens: f[N,K+1,M], of the answers.
    sizes: votes p; None: 1, 2, 4 ... up to M.
    clusters: i[N], rows that are drawn together (traces of one problem).

  Returns:
    As `compare_votes`.

  Raises:
    ValueError: shapes that do not fit, or p outside 1..M.
  """
  labels = labels_of(answers, truth)
  prefix = np.asarray(prefix_tokens, np.float64)
  each = np.asarray(answer_tokens, np.float64)
  if prefix.shape != labels.shape[:2] or each.shape != labels.shape:
    raise ValueError(
      f'answers {labels.shape}, prefix_tokens {prefix.shape} and answer_tokens '
      f'{each.shape} must be [N,K+1,M], [N,K+1] and [N,K+1,M].'
    )
  sizes = doubling(labels.shape[-1]) if sizes is None else sizes
  return compare_votes(
    {p: maj_at_p(answers, truth, p=p, weights=weights) for p in sizes},
    (labels == RIGHT).mean(-1),
    prefix_tokens=prefix,
    answer_tokens=each.mean(-1),
    clusters=clusters,
  )


def compare_votes(
  votes: dict[int, np.ndarray],
  accuracy: np.ndarray,
  *,
  prefix_tokens: np.ndarray,
  answer_tokens: np.ndarray,
  clusters: np.ndarray | None = None,
) -> dict:
  """Returns votes of every size beside thinking on at equal tokens.

  Args:
    votes: of each p, f64[N,K+1] of `maj_at_p`.
    accuracy: f64[N,K+1], pass@1 at the boundaries.
    prefix_tokens: f64[N,K+1], tokens before the answers.
    answer_tokens: f64[N,K+1], mean tokens of one answer.
    clusters: i[N], rows that are drawn together.

  Returns:
    'sizes'; and under str(p) each 'accuracy' [K+1], 'low' and 'high', 'tokens'
    [K+1], 'thinking_on' [K+1], pass@1 at these tokens, and 'gain' [K+1] of
    {mean, low, high}, the vote's accuracy less that, paired by trace.
  """
  single = prefix_tokens + answer_tokens
  found = {'sizes': [int(p) for p in votes]}
  for p, own in votes.items():
    tokens = prefix_tokens + p * answer_tokens
    other = thinking_on(single, accuracy, tokens)
    mean, low, high = statistics.bootstrap_curve(own, clusters=clusters)
    gain = statistics.bootstrap_curve(own - other, clusters=clusters)
    found[str(p)] = {
      'accuracy': mean.tolist(),
      'low': low.tolist(),
      'high': high.tolist(),
      'tokens': tokens.mean(0).tolist(),
      'thinking_on': other.mean(0).tolist(),
      'gain': [
        dict(zip(('mean', 'low', 'high'), map(float, each)))
        for each in zip(*gain)
      ],
    }
  return found


def doubling(most: int) -> list[int]:
  """Returns 1, 2, 4 ... up to `most`."""
  return [2**i for i in range(most.bit_length())]


def _objects(answers):
  """Returns answers as an array of objects [N,K+1,M]."""
  if isinstance(answers, np.ndarray):
    shape = answers.shape
    flat = list(answers.astype(object).flat)
  else:
    nested = list | tuple | np.ndarray
    rows = [list(row) if isinstance(row, nested) else [] for row in answers]
    if not all(isinstance(point, nested) for row in rows for point in row):
      raise ValueError(
        'answers has boundaries that are no list of answers: [N,K+1,M] is '
        'needed.'
      )
    points = {len(row) for row in rows}
    sizes = {len(point) for row in rows for point in row}
    if len(points) > 1 or len(sizes) > 1:
      raise ValueError(
        f'answers has traces of {sorted(points)} boundaries and boundaries of '
        f'{sorted(sizes)} answers: as many everywhere are needed, [N,K+1,M].'
      )
    shape = len(rows), *(points or {0}), *(sizes or {0})
    flat = [each for row in rows for point in row for each in point]
  if len(shape) != 3 or 0 in shape:
    raise ValueError(
      f'answers has shape {shape}: [N,K+1,M] is needed, none of them 0.'
    )
  found = np.empty(len(flat), object)
  found[:] = flat
  return found.reshape(shape)
