"""Several answers to a problem: pass@k, maj@k, and a vote at each boundary.

    pass@k, maj@k   of k whole traces
    [maj@p]_j       p answers forced after j episodes of one trace vote

The question of [maj@p]_j is where tokens are better spent: on more answers
after the same thought, or on more thought before one answer. So it stands
beside pass@1 at equal tokens: of the same trace, after as many episodes as the
tokens of its vote would have paid for.

Axes: N problems, K episodes, M answers, A answer tokens.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from meta_rl import statistics
from meta_rl.answers import maj_at_k, pass_at_k
from meta_rl.eval_problems import Problems

RIGHT = '\0right'  # what every right answer votes for, and no other


def several_samples(
  problems: Problems,
  calls,
  params,
  key,
  *,
  samples: int,
  stop_length: int = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
  """Returns pass@k and maj@k over `samples` traces of each problem.

  A trace votes for what the kit's `vote` takes its answer to be; right answers
  are one and the same, and an answer that is none votes for none. It begins
  behind the marker, or behind all `stop_length` tokens that the budget forced.

  Returns:
    {'pass@k': {k: score}, 'maj@k': {k: score}}, and the share of each problem's
    traces that were right, f64[N].
  """
  found = problems.measure(
    calls,
    params,
    key,
    repeats=samples,
    stage='samples',
    grade_only=True,
    on_batch=on_batch,
  )
  shape = problems.number, samples
  right = found['rewards'].reshape(shape) >= 1
  votes = []
  for i, reward in enumerate(found['rewards']):
    more = stop_length - 1 if found['forced'][i] else 0
    columns = slice(int(found['stop_index'][i]) + 1 + more, None)
    answer = found['tokens'][i][columns][found['token_mask'][i][columns]]
    vote = problems.kit.vote
    votes.append(RIGHT if reward >= 1 else vote(answer.tolist()))
  votes = np.asarray(votes, object).reshape(shape)
  mean = lambda values: float(np.mean(list(values)))
  scores = {
    'pass@k': {
      str(k): mean(pass_at_k(samples, int(r.sum()), k) for r in right)
      for k in _powers(samples)
    },
    'maj@k': {
      str(k): mean(maj_at_k(list(v), k, RIGHT) for v in votes)
      for k in _powers(samples)
    },
  }
  return scores, right.mean(1)


def votes_at_boundaries(
  problems: Problems,
  calls,
  params,
  key,
  *,
  stop_length: int,
  weighted: bool = False,
  on_batch: Callable[[int, int], None] | None = None,
) -> dict:
  """Returns `vote_figures` of the traces that the headline measures.

  Args:
    problems: which.
    calls: of `held_out.make_calls` with a number of votes.
    params, key: as in `held_out.measure`.
    stop_length: tokens that force an answer.
    weighted: a vote weighs 2^(mean log2-probability of the answer's tokens).
    on_batch: as in `held_out.measure`.
  """
  found = problems.measure(
    calls,
    params,
    key,
    stage='votes',
    grade_only=True,
    # Answers of a key of their own: not those by which J was measured.
    votes_key=jax.random.fold_in(key, 3),
    on_batch=on_batch,
  )
  ends, mask = found['answer_ends'], found['answer_mask']
  return vote_figures(
    _votes(found, problems.kit.vote),
    elapsed=ends - ends[:, :1],
    count=found['answer_count'],
    answer_tokens=mask.sum(-1).mean(-1) + stop_length,
    weights=_likelihoods(found) if weighted else None,
    clusters=problems.clusters,
  )


def vote_figures(
  votes: Sequence[Sequence[Sequence[Hashable | None]]],
  *,
  elapsed: np.ndarray,
  count: np.ndarray,
  answer_tokens: np.ndarray,
  clusters: np.ndarray,
  weights: np.ndarray | None = None,
) -> dict:
  """Returns [maj@p]_j beside pass@1 at equal tokens.

    tokens of [maj@p]_j  c = e_j + p·a_j, a_j the mean tokens of an answer
                         there
    pass@1 beside it     J after the most episodes l <= count for which
                         e_l + a_l <= c

  A trace that has fewer than j episodes stands with its last boundary. Where
  thinking ends before the tokens are used up, pass@1 has no use for the rest.

  Args:
    votes: [N][K+1][M], RIGHT for right answers, None for what is no answer;
      past its last boundary what is there is not looked at.
    elapsed: i[N,K+1], tokens thought at each boundary.
    count: i[N], episodes of each trace.
    answer_tokens: f[N,K+1], a, those that force the answer among them.
    clusters: i[N], one id a problem.
    weights: f[N,K+1,M], of the votes; None: all alike.

  Returns:
    'problems' N, 'answers' M, 'weighted', 'pass@1' ('tokens' and 'accuracy',
    K+1 each) and 'maj@p', for p = 2, 4, … M each with 'tokens', 'accuracy',
    'equal_tokens' (pass@1 there) and 'difference' (mean, low, high of maj@p
    less pass@1, a 95% bootstrap over problems), K+1 each.
  """
  rows, width = elapsed.shape
  answers = len(votes[0][0])
  at = np.minimum(np.arange(width), np.asarray(count)[:, None])
  once = np.asarray(
    [[sum(v == RIGHT for v in at_j) / answers for at_j in row] for row in votes]
  )
  paid = elapsed + answer_tokens
  held = lambda x: np.take_along_axis(x, at, axis=1)
  found = {}
  for size in _powers(answers)[1:]:
    score = np.zeros((rows, width))
    for i, j in np.argwhere(np.arange(width) <= np.asarray(count)[:, None]):
      weight = None if weights is None else weights[i, j]
      score[i, j] = maj_at_k(list(votes[i][j]), size, RIGHT, weights=weight)
    cost = elapsed + size * answer_tokens
    # [N, j, l]: whether l episodes and one answer cost no more than the vote.
    within = paid[:, None, :] <= cost[:, :, None]
    within &= np.arange(width) <= np.asarray(count)[:, None, None]
    last = width - 1 - within[:, :, ::-1].argmax(-1)
    equal = np.take_along_axis(once, last, axis=1)
    score, equal, cost = held(score), held(equal), held(cost)
    found[str(size)] = {
      'tokens': cost.mean(0).tolist(),
      'accuracy': score.mean(0).tolist(),
      'equal_tokens': equal.mean(0).tolist(),
      'difference': [
        statistics.paired_bootstrap(a, b, clusters=clusters)._asdict()
        for a, b in zip(score.T, equal.T)
      ],
    }
  return {
    'problems': rows,
    'answers': answers,
    'weighted': weights is not None,
    'pass@1': {
      'tokens': held(paid).mean(0).tolist(),
      'accuracy': held(once).mean(0).tolist(),
    },
    'maj@p': found,
  }


def _votes(found, vote) -> list[list[list[Hashable | None]]]:
  """Returns what each forced answer votes for, [N][K+1][M]."""
  known: dict[tuple, Hashable | None] = {}

  def one(ids, mask, reward):
    if reward >= 1:
      return RIGHT
    key = tuple(ids[mask].tolist())
    if key not in known:
      known[key] = vote(list(key))
    return known[key]

  given = (found[f'answer{part}'] for part in ('s', '_mask', '_rewards'))
  return [
    [[one(*each) for each in zip(*at_j)] for at_j in zip(*row)]
    for row in zip(*given)
  ]


def _likelihoods(found) -> np.ndarray:
  """Returns f64[N,K+1,M], exp of the mean log-probability of a token."""
  mask = found['answer_mask']
  total = np.where(mask, found['answer_log_probs'], 0).sum(-1, dtype=np.float64)
  return np.exp(total / np.maximum(mask.sum(-1), 1))


def _powers(highest: int) -> list[int]:
  """Returns 1, 2, 4, … up to `highest`."""
  return [2**i for i in range(int(math.log2(highest)) + 1)]
