"""Steps of decoding for rows that come and go (meta_rl/serving/slots.py).

A *check* looks at a thought where an episode ends and decides by the row's rule
(meta_rl/stopping.py) whether to answer. The rules 'confidence' and 'agreement'
ask for an answer to decide: a *probe*, the stop tokens and the likeliest
answer, which the row writes as it would write anything else, beside rows that
think on. If it goes on thinking, the probe's slots are hidden from it; if it
stops, the probe is its answer and nothing is decoded twice.

    thought  a  b  ;        probe  s  7  $      goes on: slots of s 7 hidden,
    slots    z0 z1 z2 | z3 z4                   the token drawn after ; is next

Tokens are those of `rollout.generate` for the row's seed, and under a rule
those of `anytime.generate`.

Axes: S rows, L slots, m stop tokens, A answer tokens, V vocabulary, D width.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_rl import sampling, stopping
from meta_rl.scoring import log_softmax_at
from meta_rl.serving.slots import RULES, Marks, Slots
from meta_rl.types import Array, Model, Params

# What a step gave a row: nothing, a thought, the model's own answer marker, a
# stop token that was forced, a token of the answer, a token of a probe.
NONE, THOUGHT, MARKER, FORCED, ANSWER, PROBE = range(6)
# Why a row ended: not yet, by an end token or its rule, for want of tokens, for
# logits that are no numbers.
RUNS, STOPPED, LENGTH, FAILED = range(4)


def tick(
  model: Model,
  params: Params,
  slots: Slots,
  drop: Array,
  *,
  marks: Marks,
  steps: int,
  head: stopping.ProgressHead | None = None,
) -> tuple[Slots, dict[str, Array]]:
  """Returns the slots after `steps` steps, and what these gave each row.

  Args:
    model, params: the network.
    slots: before.
    drop: bool[S], rows whose requests are given up.
    marks: as in `join`.
    steps: at least 1, static.
    head: of the rule 'progress'; None: it never stops a row.

  Returns:
    The slots, and [steps,S] each: tokens i32; kinds i32, THOUGHT and so on;
    ends i32, why it ended at a row's last step, else RUNS; scores f32, of
    a check that ended in this step, else NaN.
  """
  slots = dataclasses.replace(slots, active=slots.active & ~drop)
  one = lambda s, _: _step(model, params, s, marks, head)
  return jax.lax.scan(one, slots, length=steps)


class _Decision(NamedTuple):
  """What a step forces on rows, all [S].

  Attributes:
    begins: bool, the stop tokens: the budget is spent, or the rule stops here.
    probes: bool, the first of a probe.
    looks: bool, the rule looks; where a probe has no room, in vain.
    scores: f32, of a look at the features, else NaN.
  """

  begins: Array
  probes: Array
  looks: Array
  scores: Array


class _Answer(NamedTuple):
  """The answers of probes so far, [S] but for `tokens`.

  Attributes:
    token: i32, the likeliest one, which a probe writes.
    tokens: i32[S,A], -1 where none is written yet.
    count: i32.
    log_prob: f32, nats.
    stop_state: i32, of the stop strings.
    closed: bool, this token ends it.
    whole: bool, it is closed, or has all of its A tokens.
    run: f32, how many in a row were equal.
    score: f32, what the rule measures.
    stops: bool, it is whole, and the row's answer.
  """

  token: Array
  tokens: Array
  count: Array
  log_prob: Array
  stop_state: Array
  closed: Array
  whole: Array
  run: Array
  score: Array
  stops: Array


def _decide(s, features, marks, head) -> _Decision:
  """Returns where thoughts are stopped or probed before the next token."""
  asked = s.asked
  idle = s.active & ~s.probing & (s.to_force < 0) & s.thinking
  spent = idle & (s.thoughts >= asked.budget)
  # The look before any thought does not count, as in `anytime.generate`.
  looks = idle & s.due & ~spent & (s.looked <= asked.max_looks)
  gain = jnp.full_like(asked.threshold, jnp.nan)
  if head is not None:
    gain = stopping.progress_index(head, features, s.thoughts)
  predicts = looks & (asked.rule == RULES['progress'])
  gives_up = predicts & stopping.stops(asked.rule, gain, asked.threshold)
  # A probe must leave the slots that the rest of the response may need.
  left = asked.most - s.step
  fits = (left >= marks.probe_length) & (s.room - left >= marks.probe_length)
  asks = _is_in(asked.rule, [RULES[kind] for kind in stopping.PROBING])
  can = bool(marks.stop_ids)
  return _Decision(
    begins=(spent | gives_up) & can,
    probes=looks & asks & fits & can,
    looks=looks,
    scores=jnp.where(predicts, gain, jnp.nan),
  )


def _probe_answer(s, logits, says, marks) -> _Answer:
  """Returns the answers of probes with one more token in rows `says`."""
  token = sampling.argmax(logits)
  column = jnp.arange(marks.answer_length) == s.answered[:, None]
  tokens = jnp.where(says[:, None] & column, token[:, None], s.answer)
  gained = jax.lax.cond(
    says.any(),
    lambda: log_softmax_at(logits, token)[0] * says,
    lambda: jnp.zeros_like(s.log_prob),
  )
  log_prob, count = s.log_prob + gained, s.answered + says
  stop_state = _after(marks, s.stop_state, token, says)
  ends = _is_in(token, marks.end_ids) | _complete(marks, stop_state)
  closed = says & ends
  whole = closed | (says & (count == marks.answer_length))
  run = stopping.next_streak(
    s.run, tokens, tokens >= 0, s.before, s.before >= 0
  )
  agree = s.asked.rule == RULES['agreement']
  score = jnp.where(agree, run, jnp.exp(log_prob))
  stops = whole & stopping.stops(s.asked.rule, score, s.asked.threshold)
  return _Answer(
    token,
    tokens,
    count,
    log_prob,
    stop_state,
    closed,
    whole,
    run,
    score,
    stops,
  )


def _step(model, params, s, marks, head):
  """Returns (slots, outputs [S]) of one step; the order is `decode.emit`'s."""
  features, cache = _feed(model, params, s)
  logits = model.unembed_fn(params, features)
  asked = s.asked
  sampled = _draw(s, logits, s.thinking & (s.thoughts < asked.least), marks)
  begins, probes, looks, scores = _decide(s, features, marks, head)
  to_force = jnp.where(begins | probes, 0, s.to_force)
  forcing = s.active & (to_force >= 0)
  in_probe = s.probing | probes
  probe = _probe_answer(s, logits, s.probing & ~forcing, marks)
  stops, resumes = probe.stops, probe.whole & ~probe.stops

  # The token, and what follows from it.
  own = (s.active & ~in_probe & ~forcing) | resumes
  stop = jnp.asarray(marks.stop_ids or (-1,), jnp.int32)
  token = jnp.where(in_probe, probe.token, sampled)
  token = jnp.where(forcing, stop[to_force], token)
  token = jnp.where(resumes, s.saved, token)
  marker = own & s.thinking & (token == _or_none(marks.think_end_id))
  answers = own & ~s.thinking
  stop_state = jnp.where(
    in_probe, probe.stop_state, _after(marks, s.stop_state, token, answers)
  )
  ended = own & _is_in(token, marks.end_ids)
  ended |= answers & _complete(marks, stop_state)
  thought = own & s.thinking & ~marker & ~ended
  thoughts = s.thoughts + thought
  forced = forcing & ~in_probe
  # A probe that is the answer, and has no end yet, is gone on with.
  probed = s.probed + s.probing
  step = s.step + (own | forced) + jnp.where(stops, probed + 1, 0)
  ended |= stops & probe.closed
  full = (own | forced | stops) & ~ended & (step >= asked.most)
  ends = jnp.where(full, LENGTH, jnp.where(ended, STOPPED, RUNS))
  sound = jnp.isfinite(logits).all(-1) | ~s.active
  ends = jnp.where(sound, ends, FAILED)
  at_look = _is_in(token, marks.delimiter_ids)
  every = jnp.maximum(asked.every, 1)
  at_look |= (asked.every > 0) & (thoughts % every == 0)

  last_forced = to_force == len(marks.stop_ids) - 1
  new = dataclasses.replace(
    s,
    cache=_moved_on(cache, jnp.where(resumes, probed, 0)),
    active=s.active & (ends == RUNS),
    last=token,
    position=s.position + 1 - jnp.where(resumes, probed, 0),
    step=step,
    room=s.room - 1,
    thinking=s.thinking & ~marker & ~forced & ~stops,
    thoughts=thoughts,
    to_force=jnp.where(forcing & ~last_forced, to_force + 1, -1),
    due=thought & at_look,
    looked=s.looked + looks,
    stop_state=jnp.where(resumes, 0, stop_state),
    probing=in_probe & ~probe.whole,
    probed=jnp.where(probe.whole, 0, probed),
    saved=jnp.where(probes, sampled, s.saved),
    answered=jnp.where(probe.whole, 0, probe.count),
    log_prob=jnp.where(probe.whole, 0.0, probe.log_prob),
    answer=jnp.where(probe.whole[:, None], -1, probe.tokens),
    before=jnp.where(probe.whole[:, None], probe.tokens, s.before),
    run=jnp.where(probe.whole, probe.run, s.run),
  )
  kinds = jnp.where(s.active, ANSWER, NONE)
  for flag, kind in (
    (thought, THOUGHT),
    (marker, MARKER),
    (forced, FORCED),
    (in_probe & ~resumes, PROBE),
  ):
    kinds = jnp.where(flag, kind, kinds)
  scores = jnp.where(probe.whole, probe.score, scores)
  return new, {'tokens': token, 'kinds': kinds, 'ends': ends, 'scores': scores}


def _moved_on(cache, hidden):
  """Returns the cache with its index in the ring, and slots hidden.

  hidden: i32[S], of each row how many, up to the slot just written: those of a
    probe that came to nothing.
  """
  length = cache['valid'].shape[1]
  back = (cache['index'] - 1 - jnp.arange(length)) % length
  return cache | {
    'valid': cache['valid'] & (back >= hidden[:, None]),
    'index': cache['index'] % length,
  }


def _feed(model, params, s):
  """Returns the features f32[S,D] of the last tokens, and the cache."""
  rows, length = s.cache['valid'].shape
  features, cache = model.features_fn(
    params,
    s.last[:, None],
    jnp.where(s.active, s.position, -1)[:, None],
    s.cache,
    jnp.ones((rows, 1, length), bool),
  )
  return features[:, 0], cache


def _draw(s, logits, early, marks):
  """Returns one token a row, i32[S], by the row's own key and step."""
  ends = (*marks.end_ids, _or_none(marks.think_end_id))
  is_end = _is_in(jnp.arange(logits.shape[-1]), ends)
  logits = jnp.where(early[:, None] & is_end, -jnp.inf, logits)
  greedy = s.asked.greedy_answer & ~s.thinking
  temperature = jnp.where(greedy, 0.0, s.asked.temperature)

  def warm(logits):
    top_p = s.asked.top_p[:, None]
    support = sampling.apply_temperature(logits, temperature[:, None])
    support = jax.lax.cond(
      (top_p < 1).any(),
      lambda x: jnp.where(
        # All of it, where the sum of all probabilities is rounded to 1 early.
        (top_p >= 1) | sampling.top_p_mask(x, top_p),
        x,
        -jnp.inf,
      ),
      lambda x: x,
      support,
    )
    keys = jax.vmap(
      lambda data, step: jax.random.fold_in(
        jax.random.wrap_key_data(data), step
      )
    )(s.key, s.step)
    return sampling.sample(keys, support)

  likeliest = sampling.argmax
  some = (s.active & (temperature > 0)).any()
  return jax.lax.cond(some, warm, likeliest, logits)


def _after(marks, state, token, where):
  """Returns the states of stop strings behind one more token of an answer."""
  if marks.stop_table is None:
    return state
  return jnp.where(where, marks.stop_table.step(state, token), state)


def _complete(marks, state):
  """Returns bool[S], whether a stop string is complete."""
  if marks.stop_table is None:
    return jnp.zeros(state.shape, bool)
  return state == marks.stop_table.complete


def _is_in(tokens, ids):
  """Returns bool, whether tokens are among the ids."""
  return (tokens[..., None] == jnp.asarray(ids or (-1,), jnp.int32)).any(-1)


def _or_none(index):
  return -1 if index is None else index
