"""A tiny engine and what it should say, shared by the tests of the server."""

import functools
import queue

import jax
import jax.numpy as jnp
import numpy as np
import toys

from meta_rl import models, rollout, streaming
from meta_rl.serving import engine, tickets
from meta_rl.serving.slots import Marks

EOS, END, STOP, DELIMITER, A = 2, 4, (4, 9), 7, 3
CONFIG = toys.tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
# So lively that thoughts and answers differ, and tame enough to agree at times.
PARAMS = toys.lively_params(CONFIG, noise=0.1)
MARKS = Marks((EOS,), END, STOP, (DELIMITER,), A)
WAIT_S = 120


def make(model=MODEL, params=PARAMS, marks=MARKS, **options):
  """Returns an engine that has not started."""
  options = {'rows': 3, 'length': 48, 'steps': 2} | options
  return engine.Engine(model, params, marks, **options)


def request(prompt=(1, 5, 8), **changes):
  """Returns a request with a budget of 9 thinking tokens."""
  options = {'max_new_tokens': 16, 'thinking_budget': 9} | changes
  return tickets.Request(tuple(prompt), **options)


def some_requests(count, **changes):
  """Returns requests of many lengths and seeds."""
  rng = np.random.default_rng(0)
  return [
    request(rng.integers(5, 30, 1 + i % 7), seed=i, **changes)
    for i in range(count)
  ]


class Inbox:
  """Where the pieces of one response go."""

  def __init__(self, made, asked):
    """Submits a request."""
    self._pieces = queue.Queue()
    self.ticket = made.submit(asked, self._pieces.put)

  def next(self):
    """Returns the next piece."""
    return self._pieces.get(timeout=WAIT_S)

  def all(self):
    """Returns (tokens, kinds, scores, last piece) of the whole response."""
    tokens, kinds, scores = [], [], []
    while True:
      piece = self.next()
      tokens += piece.tokens
      kinds += piece.kinds
      scores += piece.scores
      if piece.finish:
        return tokens, kinds, scores, piece


def answers(made, requests):
  """Returns what `Inbox.all` gives of each, all asked for at once."""
  return [inbox.all() for inbox in [Inbox(made, asked) for asked in requests]]


def alone(asked, model=MODEL, params=PARAMS, marks=MARKS):
  """Returns the tokens that the offline decode gives to a request."""
  key = jax.random.key(asked.seed)
  top_p = None if asked.top_p == 1 else asked.top_p
  parts = streaming.stream(
    model,
    params,
    asked.prompt,
    key,
    max_new_tokens=asked.max_new_tokens,
    eos_id=marks.end_ids[0],
    temperature=asked.temperature,
    top_p=top_p,
    think_end_id=marks.think_end_id,
    thinking_budget=asked.thinking_budget,
    stop_ids=marks.stop_ids or None,
    bucket=16,
  )
  return sum(parts, [])


def batch_of(asked):
  """Returns the prompt of a request as i32[1,8], and its mask."""
  prompts = jnp.zeros((1, 8), jnp.int32).at[0, 8 - len(asked.prompt) :]
  prompts = prompts.set(jnp.asarray(asked.prompt))
  return prompts, jnp.arange(8)[None] >= 8 - len(asked.prompt)


@functools.cache
def _generate(max_new_tokens, options):
  return jax.jit(
    lambda prompts, mask, key: rollout.generate(
      MODEL,
      PARAMS,
      prompts,
      mask,
      key,
      max_new_tokens=max_new_tokens,
      eos_id=EOS,
      think_end_id=END,
      thinking_budget=9,
      stop_ids=STOP,
      **dict(options),
    )
  )


def generated(asked, **options):
  """Returns the tokens of each trace that `rollout.generate` gives."""
  decode = _generate(asked.max_new_tokens, tuple(options.items()))
  traces = decode(*batch_of(asked), jax.random.key(asked.seed))
  tokens, real = np.asarray(traces.tokens), np.asarray(traces.token_mask)
  return [row[8:][keep[8:]].tolist() for row, keep in zip(tokens, real)]


def generated_long(asked):
  """Returns the tokens of a request whose thought fills all of them."""
  found = rollout.generate(
    MODEL,
    PARAMS,
    jnp.asarray([asked.prompt]),
    jnp.ones((1, len(asked.prompt)), bool),
    jax.random.key(asked.seed),
    max_new_tokens=asked.max_new_tokens,
    eos_id=EOS,
    think_end_id=END,
    min_thinking=asked.min_thinking,
  )
  return found.tokens[0, len(asked.prompt) :].tolist()
