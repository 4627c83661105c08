"""What an algorithm may look at, and how it reads it.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl import advantages, episodes
from meta_rl.types import Array, Episodes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Critic:
  """What a value head said of the traces before the update.

  Attributes:
    values: f32[B,T], of the state before each token.
    mask: bool[B,T], the actions, those of the rollout.
  """

  values: Array
  mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Summaries:
  """R forced answers of each trace that are to be trained on.

  Attributes:
    budget: i32[B,R], column of `ends` and of `success` at which the answer was
      forced, 1..S; past a trace's count that is its last boundary again.
    tokens: i32[B,R,A], the answers.
    mask: bool[B,R,A], True up to and including EOS.
    log_probs: f32[B,R,A], nats, of the sampled tokens, 0 elsewhere.
    rewards: f32[B,R].
  """

  budget: Array
  tokens: Array
  mask: Array
  log_probs: Array
  rewards: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
  """What an algorithm may look at.

  Attributes:
    rewards: f32[B], r, the outcome of each trace's own answer, plus `extra`.
    success: f32[B,K+1], J at every boundary; past count it repeats.
    episodes: the boundaries.
    stop_index: i32[B], column of the token that ended thinking (the answer
      marker); the token count where there is none.
    answered: bool[B], an answer followed the end of thinking.
    critic: the values of an algorithm that has some, else None.
    continues: bool[B], of rollouts that branch off a prefix: this one thinks
      on, the others answer at once. None: the rollouts are no branches.
    prefix_success: f32[B], J at the end of the prefix, measured without the
      row itself; None likewise.
    prover_tokens: i32[B], tokens fed to the prover (meta_rl/costs.py); None
      where nothing was proved.
    inside: bool[B], thinking ended inside its last episode and not at a
      boundary; None: it never does.
    summaries: forced answers to train on; None: none.
    valid: bool[B], the trace has a reward; None: all have. The others are in no
      baseline and in no update.
    extra: f32[B], the part of `rewards` that the task's own outcome, of which J
      is the chance, does not account for; None: nothing.
    before_stop: f32[B], the value at the last boundary before the choice to
      stop, of a prover that may go on there; None: J of the stop itself.
    answers: i32[B,S,A], accepted answers, for the pathwise prover term; None:
      it is off.
    answer_mask: bool[B,S,A]; None likewise.
  """

  rewards: Array
  success: Array
  episodes: Episodes
  stop_index: Array
  answered: Array
  critic: Critic | None = None
  continues: Array | None = None
  prefix_success: Array | None = None
  prover_tokens: Array | None = None
  inside: Array | None = None
  summaries: Summaries | None = None
  valid: Array | None = None
  extra: Array | None = None
  before_stop: Array | None = None
  answers: Array | None = None
  answer_mask: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selected:
  """What an algorithm returns that trains on some of the traces alone.

  Attributes:
    advantages: f32[B,T].
    keep: bool[B], traces to train on; the others are out of every mean.
  """

  advantages: Array
  keep: Array


def at(values: Array, index: Array) -> Array:
  """Returns values[b, index[b]], [B,N] and i32[B] -> [B]."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def grouped(values: Array | None, group_size: int) -> Array | None:
  """Returns values [B] with one group a row, [P,G]; None stays None."""
  return None if values is None else values.reshape(-1, group_size)


def spread(
  measured: Measured,
  length: int,
  credit: Array,
  *,
  stop: Array,
  answer: Array,
  inside: Array | None = None,
) -> Array:
  """Returns the advantage of every token, f32[B,T].

    a token of episode j     credit_j
    the one that ended       stop at a boundary; inside an episode that
    thinking                 episode's credit, which is what going on there gets
    the answer               answer
    thought past all         answer: no J tells it from what follows
    boundaries

  Ending the trace in place of answering forgoes the answer: `answer` is then
  added to what the last token gets. Actions that compete in one state must
  share one baseline, or the gradient is biased towards one of them: hence the
  case of an end inside an episode.

  Args:
    measured: boundaries, where thinking ended and how.
    length: T.
    credit: f32[B,K], of each episode.
    stop: f32[B], of ending thought at the boundary `count`.
    answer: f32[B], of the answer's own tokens.
    inside: f32[B], of ending thought inside the last episode; None: what that
      episode's tokens get.
  """
  found = measured.episodes
  if measured.inside is not None:
    if inside is None:
      inside = at(credit, jnp.maximum(found.count - 1, 0))
    stop = jnp.where(measured.inside, inside, stop)
  stop = stop + jnp.where(measured.answered, 0.0, answer)
  past = measured.stop_index > found.ends[:, -1] + 1
  return advantages.to_tokens(
    credit,
    episodes.token_ids(found, length),
    rest=answer,
    stop=jnp.where(past, answer, stop),
    stop_index=measured.stop_index,
  )
