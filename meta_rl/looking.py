"""What a stop rule sees along traces that are being sampled.

A look is due before any thought, and behind each boundary while a row thinks.
Scores are those of meta_rl/stopping.py; what they decide happens in
meta_rl/anytime.py's loop.

Axes: B traces, N new tokens, K looks after the first, A answer tokens, D
features.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl import probes, sampling, stopping
from meta_rl.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Looks:
  """What a rule saw along B traces, and what that cost.

  Attributes:
    ends: i32[B,K+1], columns at which it looked: the prefix's last token; past
      `count` the last one repeats.
    count: i32[B], looks after the first, -1 without any.
    scores: f32[B,K+1], NaN past `count`.
    stopped: bool[B], the rule ended thinking.
    probe_tokens: i32[B], fed for answers that were not used.
    late_tokens: i32[B], thinking tokens sampled behind the stop before it was
      seen, which are no part of the trace; 0 with `check_every=1`.
  """

  ends: Array
  count: Array
  scores: Array
  stopped: Array
  probe_tokens: Array
  late_tokens: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watch:
  """The carry of the looks: `Looks` in the making, and the last probe."""

  looks: Looks
  budget: Array  # i32[B], thinking tokens
  streak: Array  # f32[B], of `stopping.agreement`
  answer: Array  # i32[B,A], of the last probe
  answer_mask: Array  # bool[B,A]
  ended: Array  # bool[B], it was not cut at A tokens


def begin(rows, looks, start, answer_length, budget):
  """Returns the watch before anything was looked at."""
  count = jnp.zeros(rows, jnp.int32)
  return Watch(
    looks=Looks(
      ends=jnp.full((rows, looks + 1), start - 1, jnp.int32),
      count=count - 1,
      scores=jnp.full((rows, looks + 1), jnp.nan, jnp.float32),
      stopped=jnp.zeros(rows, bool),
      probe_tokens=count,
      late_tokens=count,
    ),
    budget=count + budget,
    streak=jnp.zeros(rows, jnp.float32),
    answer=jnp.zeros((rows, answer_length), jnp.int32),
    answer_mask=jnp.zeros((rows, answer_length), bool),
    ended=jnp.zeros(rows, bool),
  )


def boundaries(tokens, thinking_mask, *, delimiter_ids, every):
  """Returns bool[B,N], thinking tokens behind which the rule looks."""
  found = jnp.zeros(tokens.shape, bool)
  if delimiter_ids:
    ids = jnp.asarray(delimiter_ids, jnp.int32)
    found |= (tokens[..., None] == ids).any(-1)
  if every is not None:
    found |= jnp.cumsum(thinking_mask, axis=1) % every == 0
  return found & thinking_mask


def _due(state, watch, at_boundary, start):
  """Returns which rows have a new boundary bool[B], and its column i32[B].

  The column is of the trace, prompt included; the look before any thought is
  due at the prompt's last one.
  """
  found = at_boundary(state.out['tokens'], state.out['thinking_mask'])
  column = start + jnp.arange(found.shape[1])
  last = jnp.take_along_axis(
    watch.looks.ends, jnp.maximum(watch.looks.count, 0)[:, None], axis=1
  )
  found &= (column > last) & (column < start + state.step)
  newest = jnp.max(jnp.where(found, column, start - 1), axis=1)
  first = watch.looks.count < 0
  room = watch.looks.count < watch.looks.ends.shape[1] - 1
  due = state.thinking & ~state.done & (found.any(1) | first) & room
  return due & (state.to_force < 0), newest


def _record(looks, due, column, score, stop):
  """Returns the looks with one more in the rows that are due."""
  count = looks.count + due
  here = due[:, None] & (jnp.arange(looks.ends.shape[1]) >= count[:, None])
  now = due[:, None] & (jnp.arange(looks.ends.shape[1]) == count[:, None])
  return dataclasses.replace(
    looks,
    ends=jnp.where(here, column[:, None], looks.ends),
    count=count,
    scores=jnp.where(now, score[:, None], looks.scores),
    stopped=looks.stopped | stop,
  )


def look_ahead(
  state,
  watch,
  features,
  *,
  rule,
  threshold,
  head,
  prompt_mask,
  at_boundary,
  **_,
):
  """Looks without a probe: where it stops, the budget is what was thought."""
  due, column = _due(state, watch, at_boundary, prompt_mask.shape[1])
  # The features are of the last token: a boundary further back is no longer
  # looked at, and with this rule there is none, since it looks at each step.
  score = (watch.looks.count + 1).astype(jnp.float32)
  if rule == 'progress':
    score = stopping.progress_index(head, features, state.thoughts)
  stop = due & stopping.stops(rule, score, threshold)
  watch = dataclasses.replace(
    watch,
    looks=_record(watch.looks, due, column, score, stop),
    budget=jnp.where(stop, state.thoughts, watch.budget),
  )
  return state, watch


def probe(
  state,
  watch,
  features,
  *,
  rule,
  threshold,
  head,
  model,
  params,
  stop,
  answer_length,
  eos_id,
  stop_table,
  prompt_mask,
  at_boundary,
  check_every,
):
  """Looks with a greedy forced answer: where it stops, the row has it."""
  del features, head
  start = prompt_mask.shape[1]
  due, column = _due(state, watch, at_boundary, start)
  due &= state.step % check_every == 0
  used = start + state.step

  def ask(watch):
    mask = jnp.concatenate([prompt_mask, state.out['token_mask']], axis=1)
    begin = probes.tokens_until(jnp.cumsum(mask, axis=1), column[:, None])
    *found, ended = probes.decode_branches(
      model,
      params,
      state.cache,
      end=column[:, None],
      start=begin,
      real=due[:, None],
      keys=jax.random.split(jax.random.key(0), due.shape + (1,)),
      stop=stop,
      used=used,
      slots=start + state.out['tokens'].shape[1] + len(stop) + answer_length,
      max_answer_len=answer_length,
      eos_id=eos_id,
      truncate=lambda logits: sampling.apply_temperature(logits, 0.0),
      scored=lambda logits: logits,
      stop_table=stop_table,
    )
    answer, answered, log_probs = (x[:, 0] for x in found)
    streak = stopping.next_streak(
      watch.streak, answer, answered, watch.answer, watch.answer_mask
    )
    score = streak
    if rule == 'confidence':
      score = stopping.confidence(log_probs, answered)
    halt = due & stopping.stops(rule, score, threshold)
    looks = _record(watch.looks, due, column, score, halt)
    fed = jnp.where(due & ~halt, len(stop) + answered.sum(1) - 1, 0)
    late = jnp.where(halt, used - 1 - column, 0)
    pick = lambda new, old: jnp.where(
      due.reshape(-1, *[1] * (new.ndim - 1)), new, old
    )
    return dataclasses.replace(
      watch,
      looks=dataclasses.replace(
        looks,
        probe_tokens=looks.probe_tokens + fed,
        late_tokens=looks.late_tokens + late,
      ),
      streak=pick(streak, watch.streak),
      answer=pick(answer, watch.answer),
      answer_mask=pick(answered, watch.answer_mask),
      ended=pick(ended[:, 0], watch.ended),
    )

  watch = jax.lax.cond(due.any(), ask, lambda watch: watch, watch)
  done = state.done | watch.looks.stopped
  return dataclasses.replace(state, done=done), watch


def with_probes(out, watch, start, stop, pad_id):
  """Returns the columns with stop tokens and probed answers put in.

  In, one row that stopped behind column 1 (stop x, answer a b):
    tokens    t ; t t 0 0
  Out:
    tokens    t ; x a b 0    thinking 1 1 0 0 0 0
  """
  looks, length = watch.looks, out['tokens'].shape[1]
  rows = looks.stopped[:, None]
  last = jnp.take_along_axis(
    looks.ends, jnp.maximum(looks.count, 0)[:, None], axis=1
  )
  place = jnp.arange(length) - (last - start + 1)
  ended = jnp.concatenate(
    [jnp.broadcast_to(jnp.asarray(stop), (len(rows), len(stop))), watch.answer],
    axis=1,
  )
  real = jnp.concatenate(
    [jnp.ones((len(rows), len(stop)), bool), watch.answer_mask], axis=1
  )
  index = jnp.clip(place, 0, ended.shape[1] - 1)
  inside = (place >= 0) & (place < ended.shape[1])
  real = inside & jnp.take_along_axis(real, index, axis=1)
  tokens = jnp.where(real, jnp.take_along_axis(ended, index, axis=1), pad_id)
  behind = rows & (place >= 0)
  put = lambda name, x: jnp.where(behind, x, out[name]).astype(out[name].dtype)
  return {
    'tokens': put('tokens', tokens),
    'token_mask': put('token_mask', real),
    'mask': put('mask', False),
    'thinking_mask': put('thinking_mask', False),
    'behavior_log_probs': put('behavior_log_probs', 0.0),
    'raw_log_probs': put('raw_log_probs', 0.0),
  }
