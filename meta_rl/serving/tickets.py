"""What is asked of the engine, and what it gives (host).

A `Request` goes in, `Piece`s of its response come out, one a round at most.
Probes that were not used are counted and not shown.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from meta_rl.serving import slots, ticks
from meta_rl.serving.slots import NO_LIMIT

# Why a response ended, as a `Piece` says it.
STOP, LENGTH, ERROR, CANCELLED = 'stop', 'length', 'error', 'cancelled'
_FINISH = {ticks.STOPPED: STOP, ticks.LENGTH: LENGTH, ticks.FAILED: ERROR}


@dataclasses.dataclass(frozen=True)
class Request:
  """One response that is asked for.

  Attributes:
    prompt: token ids, at least one.
    max_new_tokens: of the thought and its answer, at most; probes apart.
    temperature: >= 0; 0 is greedy.
    top_p: in (0, 1].
    seed: 0..2^32 - 1, of the draws.
    branch: index of the response among those of one prompt and seed.
    thinking_budget: tokens at which a thought is ended; None: never.
    min_thinking: tokens before which the model may not end it.
    rule: of `stopping.KINDS`.
    threshold: of the rule.
    every: thinking tokens between two looks of the rule besides those at the
      ends of episodes; 0: at these alone.
    max_looks: of the rule, after the one before any thought; None: no limit.
    greedy_answer: the answer takes the likeliest tokens.
  """

  prompt: tuple[int, ...]
  max_new_tokens: int
  temperature: float = 1.0
  top_p: float = 1.0
  seed: int = 0
  branch: int = 0
  thinking_budget: int | None = None
  min_thinking: int = 0
  rule: str = 'budget'
  threshold: float = 0.0
  every: int = 0
  max_looks: int | None = None
  greedy_answer: bool = False


@dataclasses.dataclass
class Usage:
  """Tokens of a response.

  Attributes:
    thinking: of the thought.
    answer: behind it, its marker or stop tokens and its end included.
    probe: written for answers that were not used.
    stopped_by: what ended the thought: 'model', 'budget' or another rule; None:
      it has not ended.
  """

  thinking: int = 0
  answer: int = 0
  probe: int = 0
  stopped_by: str | None = None

  @property
  def forced(self) -> bool:
    """Whether the thought was ended by something else than the model."""
    return self.stopped_by not in (None, 'model')


@dataclasses.dataclass
class Piece:
  """What a round gave a request.

  Attributes:
    tokens: ids, an end token included.
    kinds: of each, THOUGHT, MARKER, FORCED or ANSWER of `ticks`.
    scores: (thinking tokens, score) of each look of the rule.
    finish: '' while it goes on; STOP, LENGTH, ERROR or CANCELLED.
    usage: so far.
    message: of an error.
  """

  tokens: list[int]
  kinds: list[int]
  scores: list[tuple[int, float]]
  finish: str
  usage: Usage
  message: str = ''


class Ticket:
  """A request under way; `cancel` frees its row or its place in the queue."""

  def __init__(self, request: Request, put: Callable[[Piece], None]):
    """Keeps what belongs to a request.

    Args:
      request: as submitted.
      put: gets its pieces.
    """
    self.request, self.put = request, put
    self.cancelled = False
    self.usage = Usage()
    self.probe: list[int] = []


def last(ticket, finish, message=''):
  """Returns the piece that ends a request without tokens."""
  return Piece([], [], [], finish, ticket.usage, message)


def asked(requests: Sequence[Request]) -> slots.Asked:
  """Returns what requests ask for, an array a field."""

  def of(name, dtype):
    return np.asarray([getattr(r, name) for r in requests], dtype)

  def limits(name):
    found = [getattr(r, name) for r in requests]
    return np.asarray([NO_LIMIT if x is None else x for x in found], np.int32)

  return slots.Asked(
    seed=of('seed', np.uint32),
    branch=of('branch', np.int32),
    temperature=of('temperature', np.float32),
    top_p=of('top_p', np.float32),
    most=of('max_new_tokens', np.int32),
    budget=limits('thinking_budget'),
    least=of('min_thinking', np.int32),
    rule=np.asarray([slots.RULES[r.rule] for r in requests], np.int32),
    threshold=of('threshold', np.float32),
    every=of('every', np.int32),
    max_looks=limits('max_looks'),
    greedy_answer=of('greedy_answer', bool),
  )


def read(ticket, columns, stop_length) -> Piece:
  """Returns what the steps of a round gave a request; counts its tokens."""
  usage, rule = ticket.usage, ticket.request.rule
  tokens, kinds, scores, finish = [], [], [], ''
  for token, kind, end, score in columns:
    if kind == ticks.NONE:
      break
    looked = score == score  # no NaN
    if looked:
      scores.append((usage.thinking, score))
    if kind == ticks.PROBE:
      ticket.probe.append(token)
      if looked:  # and it stopped: the probe is the answer, or begins it
        tokens += ticket.probe
        answer = len(ticket.probe) - stop_length
        kinds += [ticks.FORCED] * stop_length + [ticks.ANSWER] * answer
        usage.answer += len(ticket.probe)
        usage.stopped_by, ticket.probe = rule, []
    else:
      usage.probe += len(ticket.probe)
      ticket.probe = []
      tokens.append(token)
      kinds.append(kind)
      if kind == ticks.THOUGHT:
        usage.thinking += 1
      else:
        usage.answer += 1
        if usage.stopped_by is None:
          by = rule if looked else 'budget'
          usage.stopped_by = by if kind == ticks.FORCED else 'model'
    if end:
      finish = _FINISH[end]
      break
  message = 'the logits of the model are no numbers' * (finish == ERROR)
  usage = dataclasses.replace(usage)  # this one stays as it is
  return Piece(tokens, kinds, scores, finish, usage, message)


def branches(requests: Sequence[Request]) -> list[Request]:
  """Returns requests with the first one's seed, each with its index."""
  return [
    dataclasses.replace(request, seed=requests[0].seed, branch=branch)
    for branch, request in enumerate(requests)
  ]
