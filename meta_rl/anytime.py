"""Sampling with a rule that stops thinking where it no longer helps.

    prompts --prefill--> [feed the last token -> look -> write the next]*

Looking happens at the start, at every episode boundary or every n thinking
tokens: a score of the prefix (meta_rl/stopping.py) says for each row whether to
think on. Rows stop each for itself, in one compiled loop.

  progress     the score comes with the features of the token that was fed: no
               probe. The stop tokens are forced next, and the row answers.
  confidence,  a probe forks the row's KV cache: stop tokens and a greedy
  agreement    answer in slots behind the trace that no later token sees. Where
               the rule stops, that is the row's answer, and the row is done.

With `min_thinking` a rule also decides where the model would have stopped by
itself too early (budget forcing): thinking then goes on while progress is
predicted.

Axes: B traces, Tp prompt columns, N new tokens, T = Tp + N, K looks after the
first, A answer tokens, D features.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import checks, decode, probes, rollout, sampling, stopping
from meta_rl.scoring import positions_of
from meta_rl.stops import StopTable
from meta_rl.types import Array, Model, Params, Rollout


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
class _Watch:
  """The carry of the looks: `Looks` in the making, and the last probe."""

  looks: Looks
  budget: Array  # i32[B], thinking tokens
  streak: Array  # f32[B], of `stopping.agreement`
  answer: Array  # i32[B,A], of the last probe
  answer_mask: Array  # bool[B,A]


def generate(
  model: Model,
  params: Params,
  prompts: Array,
  prompt_mask: Array,
  key: Array,
  *,
  rule: str,
  threshold: float | Array = 0.0,
  head: stopping.ProgressHead | None = None,
  thinking_budget: int,
  answer_length: int,
  eos_id: int,
  think_end_id: int,
  stop_ids: Sequence[int] | None = None,
  delimiter_ids: Sequence[int] = (),
  every: int | None = None,
  max_looks: int | None = None,
  min_thinking: int | Array | None = None,
  wait_ids: Sequence[int] = (),
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  greedy_answers: bool = True,
  group_size: int = 1,
  stop_table: StopTable | None = None,
  pad_id: int = 0,
  row_offset: int | Array = 0,
  check_every: int = 1,
) -> tuple[Rollout, Looks]:
  """Returns traces whose thinking a rule may end, and what the rule saw.

  Thoughts are those of `rollout.generate` with this key, up to where the rule
  stops: a rule changes no draw. The traces are for inference: a greedy answer
  is no sample of the policy, and its `mask` is False.

  Args:
    model, params, prompts, prompt_mask, key: as in `rollout.generate`.
    rule: one of `stopping.KINDS`.
    threshold: a probability ('confidence'), a number of equal answers
      ('agreement'), or a price in J a thinking token ('progress'); a number or
      f32[B]. Of 'budget' unused.
    head: of 'progress', fitted to this policy.
    thinking_budget: tokens at which thinking ends at the latest.
    answer_length: A, tokens of an answer, its EOS included.
    eos_id, think_end_id, stop_ids: as in `rollout.generate`.
    delimiter_ids: tokens that end an episode, behind which the rule looks.
    every: the rule looks at every `every`-th thinking token too.
    max_looks: K, how many are kept and acted on, after the one before any
      thought; None: one a token.
    min_thinking: tokens before which the model may not stop by itself, as in
      `rollout.generate`; the rule may.
    wait_ids, temperature, top_p, top_k, group_size, stop_table, pad_id,
      row_offset: as in `rollout.generate`.
    greedy_answers: answers take the likeliest token; else they are sampled as
      thoughts are. Probes are greedy, and so with a probing rule it stays True.
    check_every: of probing rules, decode steps between two looks: a row that
      reached a boundary in between has then thought on in vain.

  Returns:
    `Rollout` with N = thinking_budget + len(stop_ids) + answer_length new
    columns, and `Looks`.

  Raises:
    ValueError: shapes, numbers outside their ranges, or a rule without what it
      reads.
  """
  checks.check_model(model)
  checks.check_key('anytime: key', key)
  dims = {}
  prompts = checks.as_array('anytime: prompts', prompts, 'int[P,Tp]', dims)
  checks.check_filled('anytime: prompts', prompts)
  prompt_mask = checks.as_array(
    'anytime: prompt_mask', prompt_mask, 'bool[P,Tp]', dims
  )
  check_rule(
    rule, threshold, head, delimiter_ids, every, greedy_answers=greedy_answers
  )
  for name, value in (
    ('thinking_budget', thinking_budget),
    ('answer_length', answer_length),
    ('check_every', check_every),
  ):
    checks.check_count(f'anytime: {name}', value)
  stop = (think_end_id,) if stop_ids is None else tuple(stop_ids)
  columns = thinking_budget + len(stop) + answer_length
  rollout.check(
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    eos_id=eos_id,
    think_end_id=think_end_id,
    stop_ids=stop,
    wait_ids=wait_ids,
    pad_id=pad_id,
    max_new_tokens=columns,
    group_size=group_size,
  )
  rows, start = len(prompts) * group_size, prompts.shape[1]
  looks = thinking_budget if max_looks is None else max_looks
  ends = (think_end_id, eos_id)
  ends += () if stop_table is None else stop_table.end_ids
  emit = functools.partial(
    decode.emit,
    key=key,
    rows=row_offset + jnp.arange(rows),
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    stop=stop,
    least=min_thinking,
    wait=tuple(wait_ids),
    ends=ends,
    eos_id=eos_id,
    think_end_id=think_end_id,
    pad_id=pad_id,
    stop_table=stop_table,
  )
  look = functools.partial(
    _look_ahead if rule == 'progress' else _probe,
    rule=rule,
    threshold=threshold,
    head=head,
    model=model,
    params=params,
    stop=stop,
    answer_length=answer_length,
    eos_id=eos_id,
    stop_table=stop_table,
    prompt_mask=jnp.repeat(prompt_mask, group_size, axis=0),
    at_boundary=functools.partial(
      _boundaries, delimiter_ids=tuple(delimiter_ids), every=every
    ),
    check_every=check_every,
  )
  features, state = _prefill(
    model,
    params,
    jnp.repeat(prompts, group_size, axis=0),
    jnp.repeat(prompt_mask, group_size, axis=0),
    columns,
    scratch=len(stop) + answer_length if rule in stopping.PROBING else 0,
  )
  watch = _begin(rows, looks, start, answer_length, thinking_budget)

  def write(state, watch, features):
    if rule != 'budget':
      state, watch = look(state, watch, features)
    logits = probes.unembed(model, params, features)
    if greedy_answers:
      logits = jnp.where(
        state.thinking[:, None],
        logits,
        sampling.apply_temperature(logits, 0.0),
      )
    return emit(state, logits, budget=watch.budget), watch

  def advance(carry):
    state, watch = carry
    features, cache = probes.features_of(
      model,
      params,
      state.last[:, None],
      jnp.where(state.done, -1, state.position)[:, None],
      state.cache,
      None,
    )
    state = dataclasses.replace(state, cache=cache)
    return write(state, watch, features[:, 0])

  state, watch = jax.lax.while_loop(
    lambda carry: (carry[0].step < columns) & ~carry[0].done.all(),
    advance,
    write(state, watch, features),
  )
  out, forced = state.out, state.forced | watch.looks.stopped
  truncated = ~state.done
  if rule in stopping.PROBING:
    out = _with_probes(out, watch, start, stop, pad_id)
    open_ended = watch.answer_mask[:, -1] & (watch.answer[:, -1] != eos_id)
    truncated |= watch.looks.stopped & open_ended
  if greedy_answers:
    out = out | {'mask': out['mask'] & out['thinking_mask']}
    for name in ('behavior_log_probs', 'raw_log_probs'):
      out = out | {name: jnp.where(out['mask'], out[name], 0.0)}
  return _rollout(
    out, prompts, prompt_mask, group_size, truncated=truncated, forced=forced
  ), watch.looks


def check_rule(
  rule, threshold, head, delimiter_ids, every, *, greedy_answers=True
):
  """Raises ValueError unless a rule has what it reads."""
  checks.check_choice('anytime: rule', rule, stopping.KINDS)
  if rule == 'progress' and not isinstance(head, stopping.ProgressHead):
    raise ValueError(
      "anytime: rule 'progress' reads a head that predicts progress, got "
      f'head={checks.show(head)}: fit one (progress_head.fit).'
    )
  checks.check_ids('anytime: delimiter_ids', delimiter_ids, empty=True)
  if every is not None:
    checks.check_count('anytime: every', every)
  if rule != 'budget' and not len(delimiter_ids) and every is None:
    raise ValueError(
      f'anytime: rule {rule!r} looks behind delimiter_ids or at every n-th '
      'token: give one of them.'
    )
  if rule in stopping.PROBING and not greedy_answers:
    raise ValueError(
      f'anytime: rule {rule!r} answers with its greedy probe: leave '
      'greedy_answers True.'
    )
  if isinstance(threshold, int | float):
    bounds = {
      'confidence': {'low': 0},
      'agreement': {'low': 1},
    }.get(rule, {})
    checks.check_range('anytime: threshold', threshold, **bounds)


def _begin(rows, looks, start, answer_length, budget):
  """Returns the watch before anything was looked at."""
  count = jnp.zeros(rows, jnp.int32)
  return _Watch(
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
  )


def _prefill(model, params, prompts, prompt_mask, columns, scratch):
  """Returns the features f32[B,D] of each prompt's last token, and a state."""
  positions = positions_of(prompt_mask)
  cache = model.init_cache(*prompts.shape)
  features, cache = probes.features_of(
    model, params, prompts, positions, cache, None
  )
  cache = caches.grow(model, cache, columns + scratch)
  last = prompts[:, -1].astype(jnp.int32)
  return features[:, -1], decode.initial(cache, last, positions[:, -1], columns)


def _boundaries(tokens, thinking_mask, *, delimiter_ids, every):
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


def _look_ahead(
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
  """Looks with the head: where it stops, the budget is what was thought."""
  due, column = _due(state, watch, at_boundary, prompt_mask.shape[1])
  # The features are of the last token: a boundary further back is no longer
  # looked at, and with this rule there is none, since it looks at each step.
  score = stopping.progress_index(head, features, state.thoughts)
  stop = due & stopping.stops(rule, score, threshold)
  watch = dataclasses.replace(
    watch,
    looks=_record(watch.looks, due, column, score, stop),
    budget=jnp.where(stop, state.thoughts, watch.budget),
  )
  return state, watch


def _probe(
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
    answer, answered, log_probs = probes.decode_branches(
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
    answer, answered, log_probs = answer[:, 0], answered[:, 0], log_probs[:, 0]
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
    )

  watch = jax.lax.cond(due.any(), ask, lambda watch: watch, watch)
  done = state.done | watch.looks.stopped
  return dataclasses.replace(state, done=done), watch


def _with_probes(out, watch, start, stop, pad_id):
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


def _rollout(out, prompts, prompt_mask, group_size, **flags):
  """Returns the traces with their prompts in front."""
  fork = lambda x: jnp.repeat(x, group_size, axis=0)
  rows = len(prompts) * group_size
  front = {
    k: jnp.zeros((rows, prompts.shape[1]), x.dtype) for k, x in out.items()
  }
  front |= {'tokens': fork(prompts), 'token_mask': fork(prompt_mask)}
  joined = {
    k: jnp.concatenate([front[k].astype(x.dtype), x], 1) for k, x in out.items()
  }
  return Rollout(**joined, **flags)
