"""Steps of decoding for rows that come and go (meta_rl/slots.py).

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

import jax
import jax.numpy as jnp

from meta_rl import sampling, stopping
from meta_rl.scoring import log_softmax_at
from meta_rl.slots import RULES, Marks, Slots
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


def _step(model, params, s, marks, head):
  """Returns (slots, outputs [S]) of one step; the order is `decode.emit`'s."""
  features, cache = _feed(model, params, s)
  logits = model.unembed_fn(params, features)
  asked, stop = s.asked, jnp.asarray(marks.stop_ids or (-1,), jnp.int32)
  is_end = lambda token: _is_in(token, marks.end_ids)
  early = s.thinking & (s.thoughts < asked.least)
  sampled = _draw(s, logits, early, marks)

  # What a check says, and what is forced: stop tokens, or those of a probe.
  idle = s.active & ~s.probing & (s.to_force < 0)
  spent = idle & s.thinking & (s.thoughts >= asked.budget)
  checks = idle & s.due & s.thinking & ~spent
  gain = jnp.full_like(asked.threshold, jnp.nan)
  if head is not None:
    gain = stopping.progress_index(head, features, s.thoughts)
  promise = checks & (asked.rule == RULES['progress'])
  begins = spent | (promise & stopping.stops(asked.rule, gain, asked.threshold))
  left = asked.most - s.step
  fits = (left >= marks.probe_length) & (s.room - left >= marks.probe_length)
  asks = _is_in(asked.rule, [RULES[kind] for kind in stopping.PROBING])
  probes = checks & asks & fits
  if not marks.stop_ids:
    begins, probes = begins & False, probes & False
  to_force = jnp.where(begins | probes, 0, s.to_force)
  forcing = s.active & (to_force >= 0)
  in_probe = s.probing | probes

  # A probe's answer, and whether it is the row's.
  likeliest = jnp.argmax(logits, -1).astype(jnp.int32)
  says = s.probing & ~forcing
  column = jnp.arange(marks.answer_length) == s.answered[:, None]
  answer = jnp.where(says[:, None] & column, likeliest[:, None], s.answer)
  log_prob = s.log_prob + log_softmax_at(logits, likeliest)[0] * says
  answered = s.answered + says
  probed_state = _after(marks, s.stop_state, likeliest, says)
  closed = says & (is_end(likeliest) | _complete(marks, probed_state))
  whole = closed | (says & (answered == marks.answer_length))
  run = stopping.next_streak(
    s.run, answer, answer >= 0, s.before, s.before >= 0
  )
  agree = asked.rule == RULES['agreement']
  measured = jnp.where(agree, run, jnp.exp(log_prob))
  stops = whole & stopping.stops(asked.rule, measured, asked.threshold)
  resumes = whole & ~stops

  # The token, and what follows from it.
  own = (s.active & ~in_probe & ~forcing) | resumes
  token = jnp.where(in_probe, likeliest, sampled)
  token = jnp.where(forcing, stop[to_force], token)
  token = jnp.where(resumes, s.saved, token)
  marker = own & s.thinking & (token == _or_none(marks.think_end_id))
  answers = own & ~s.thinking
  stop_state = jnp.where(
    in_probe, probed_state, _after(marks, s.stop_state, token, answers)
  )
  ended = own & is_end(token)
  ended |= answers & _complete(marks, stop_state)
  thought = own & s.thinking & ~marker & ~ended
  thoughts = s.thoughts + thought
  counted = own | (forcing & ~in_probe)
  # A probe that is the answer, and has no end yet, is gone on with.
  probed = s.probed + s.probing
  step = s.step + counted + jnp.where(stops, probed + 1, 0)
  ended |= stops & closed
  full = (counted | stops) & ~ended & (step >= asked.most)
  ends = jnp.where(full, LENGTH, jnp.where(ended, STOPPED, RUNS))
  sound = jnp.isfinite(logits).all(-1) | ~s.active
  ends = jnp.where(sound, ends, FAILED)
  at_check = _is_in(token, marks.delimiter_ids)
  every = jnp.maximum(asked.every, 1)
  at_check |= (asked.every > 0) & (thoughts % every == 0)

  # The slots of a probe that came to nothing, up to the one just written.
  length = cache['valid'].shape[1]
  back = (cache['index'] - 1 - jnp.arange(length)) % length
  hidden = resumes[:, None] & (back < probed[:, None])
  cache = cache | {
    'valid': cache['valid'] & ~hidden,
    'index': cache['index'] % length,
  }
  last_forced = to_force == len(marks.stop_ids) - 1
  new = dataclasses.replace(
    s,
    cache=cache,
    active=s.active & (ends == RUNS),
    last=token,
    position=s.position + 1 - jnp.where(resumes, probed, 0),
    step=step,
    room=s.room - 1,
    thinking=s.thinking & ~marker & ~(forcing & ~in_probe) & ~stops,
    thoughts=thoughts,
    to_force=jnp.where(forcing & ~last_forced, to_force + 1, -1),
    due=thought & at_check,
    stop_state=jnp.where(resumes, 0, stop_state),
    probing=in_probe & ~whole,
    probed=jnp.where(whole, 0, probed),
    saved=jnp.where(probes, sampled, s.saved),
    answered=jnp.where(whole, 0, answered),
    log_prob=jnp.where(whole, 0.0, log_prob),
    answer=jnp.where(whole[:, None], -1, answer),
    before=jnp.where(whole[:, None], answer, s.before),
    run=jnp.where(whole, run, s.run),
  )
  kind = jnp.where(s.active, ANSWER, NONE)
  for flag, value in (
    (thought, THOUGHT),
    (marker, MARKER),
    (forcing & ~in_probe, FORCED),
    (in_probe & ~resumes, PROBE),
  ):
    kind = jnp.where(flag, value, kind)
  scores = jnp.where(whole, measured, jnp.where(promise, gain, jnp.nan))
  return new, {'tokens': token, 'kinds': kind, 'ends': ends, 'scores': scores}


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

  likeliest = lambda logits: jnp.argmax(logits, -1).astype(jnp.int32)
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
