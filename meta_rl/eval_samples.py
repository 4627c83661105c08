"""Several answers to a problem: pass@k, maj@k, and a vote at each boundary.

    pass@k, maj@k   of k whole traces
    [maj@p]_j       p answers forced after j episodes of one trace vote

Here is what is measured, and what an answer votes for; the figures of [maj@p]_j
beside thinking on are those of `votes`.

Axes: N problems, K episodes, M answers, A answer tokens.
"""

from collections.abc import Callable, Hashable

import jax
import numpy as np

from meta_rl import statistics, votes
from meta_rl.answers import maj_at_k, pass_at_k
from meta_rl.eval_problems import Problems

RIGHT = '\0right'  # what every right answer votes for, and no other
_PARTS = ('mask', 'log_probs', 'rewards')


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
  cast = []
  for i, reward in enumerate(found['rewards']):
    more = stop_length - 1 if found['forced'][i] else 0
    columns = slice(int(found['stop_index'][i]) + 1 + more, None)
    answer = found['tokens'][i][columns][found['token_mask'][i][columns]]
    vote = problems.kit.vote
    cast.append(RIGHT if reward >= 1 else vote(answer.tolist()))
  cast = np.asarray(cast, object).reshape(shape)
  mean = lambda values: float(np.mean(list(values)))
  scores = {
    'pass@k': {
      str(k): mean(pass_at_k(samples, int(r.sum()), k) for r in right)
      for k in votes.doubling(samples)
    },
    'maj@k': {
      str(k): mean(maj_at_k(list(v), k, RIGHT) for v in cast)
      for k in votes.doubling(samples)
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
  """Returns [maj@p]_j beside thinking on, of the traces of the headline.

  Past its own stop a trace stands with its last boundary. The tokens that force
  an answer belong to the prefix: several answers of one prefix share them.

  Args:
    problems: which.
    calls: of `held_out.make_calls` with a number of votes.
    params, key: as in `held_out.measure`.
    stop_length: tokens that force an answer.
    weighted: a vote weighs `votes.vote_weights`.
    on_batch: as in `held_out.measure`.

  Returns:
    As `votes.vote_figures`, and 'problems' N, 'answers' M and 'weighted'.
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
  ends, count = found['answer_ends'], found['answer_count']
  found = {
    name: statistics.held(found[name], count)
    for name in ('answers', *(f'answer_{part}' for part in _PARTS))
  }
  mask = found['answer_mask']
  figures = votes.vote_figures(
    _votes(found, problems.kit.vote),
    RIGHT,
    prefix_tokens=statistics.held(ends - ends[:, :1], count) + stop_length,
    answer_tokens=mask.sum(-1),
    weights=votes.vote_weights(_mean_log_probs(found)) if weighted else None,
    clusters=problems.clusters,
  )
  return figures | {
    'problems': len(mask),
    'answers': mask.shape[2],
    'weighted': weighted,
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


def _mean_log_probs(found) -> np.ndarray:
  """Returns f64[N,K+1,M], nats a token; 0 of an answer without one."""
  mask = found['answer_mask']
  total = np.where(mask, found['answer_log_probs'], 0).sum(-1, dtype=np.float64)
  return total / np.maximum(mask.sum(-1), 1)
