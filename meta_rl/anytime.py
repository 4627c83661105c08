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
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import checks, decode, looking, probes, rollout, sampling, stopping
from meta_rl.scoring import positions_of
from meta_rl.stops import StopTable
from meta_rl.types import Array, Model, Params, Rollout


def generate(
  model: Model,
  params: Params,
  prompts: Array,
  prompt_mask: Array,
  key: Array,
  *,
  rule: str,
  threshold: float | Array | None = None,
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
) -> tuple[Rollout, looking.Looks]:
  """Returns traces whose thinking a rule may end, and what the rule saw.

  Thoughts are those of `rollout.generate` with this key, up to where the rule
  stops: a rule changes no draw. The traces are for inference: a greedy answer
  is no sample of the policy, and its `mask` is False.

  Args:
    model, params, prompts, prompt_mask, key: as in `rollout.generate`.
    rule: one of `stopping.KINDS`.
    threshold: a probability ('confidence'), a number of equal answers
      ('agreement'), a price in J a thinking token ('progress'), or a number of
      looks after the first ('episodes'); a number or f32[B]. 'budget' has none.
    head: of 'progress', fitted to this policy.
    thinking_budget: tokens at which thinking ends at the latest.
    answer_length: A, tokens of an answer, its EOS included.
    eos_id, think_end_id, stop_ids: as in `rollout.generate`.
    delimiter_ids: tokens that end an episode, behind which the rule looks.
    every: the rule looks at every `every`-th thinking token too.
    max_looks: K, how many are kept and acted on, after the one before any
      thought; None: one a token. Calibrated rules say how many theirs had.
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
  rows = len(prompts) * checks.check_count('anytime: group_size', group_size)
  check_rule(
    rule,
    threshold,
    head,
    delimiter_ids,
    every,
    rows=rows,
    greedy_answers=greedy_answers,
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
  start, looks = prompts.shape[1], thinking_budget
  if max_looks is not None:
    looks = checks.check_count('anytime: max_looks', max_looks, low=0)
  ends = (think_end_id, eos_id)
  ends += () if stop_table is None else stop_table.end_ids
  of_rows = lambda name, value: (
    None if value is None else checks.check_counts(name, value, rows)
  )
  min_thinking = of_rows('anytime: min_thinking', min_thinking)
  row_offset = of_rows('anytime: row_offset', row_offset)
  rollout.check_waiting(min_thinking, wait_ids, ends, thinking_budget, columns)
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
    looking.probe if rule in stopping.PROBING else looking.look_ahead,
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
      looking.boundaries, delimiter_ids=tuple(delimiter_ids), every=every
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
  watch = looking.begin(rows, looks, start, answer_length, thinking_budget)

  def write(state, watch, features):
    if rule != 'budget':
      state, watch = look(state, watch, features)
    logits = probes.unembed(model, params, features)
    for name, ids in (
      ('eos_id', eos_id),
      ('think_end_id', think_end_id),
      ('stop_ids', stop),
      ('wait_ids', wait_ids),
      ('delimiter_ids', delimiter_ids),
      ('pad_id', pad_id),
    ):
      checks.check_vocabulary(f'anytime: {name}', ids, logits.shape[-1])
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
    out = looking.with_probes(out, watch, start, stop, pad_id)
    truncated |= watch.looks.stopped & ~watch.ended
  if greedy_answers:
    out = out | {'mask': out['mask'] & out['thinking_mask']}
    for name in ('behavior_log_probs', 'raw_log_probs'):
      out = out | {name: jnp.where(out['mask'], out[name], 0.0)}
  return _rollout(
    out, prompts, prompt_mask, group_size, truncated=truncated, forced=forced
  ), watch.looks


def check_rule(
  rule, threshold, head, delimiter_ids, every, *, rows, greedy_answers=True
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
  _check_threshold(rule, threshold, rows)


def _check_threshold(rule, threshold, rows):
  if rule == 'budget':
    if threshold is not None:
      raise ValueError(
        f'anytime: threshold={checks.show(threshold)} is given, and rule '
        "'budget' has none: take 'episodes' to stop after a number of them."
      )
    return
  if threshold is None:
    raise ValueError(
      f'anytime: rule {rule!r} needs a threshold: give one, such as a '
      'calibrated one (python -m meta_rl.calibrate).'
    )
  if isinstance(threshold, numbers.Real):
    bounds = {
      'confidence': {'low': 0},
      'agreement': {'low': 1},
      'episodes': {'low': 0},
    }.get(rule, {})
    checks.check_range('anytime: threshold', threshold, **bounds)
    return
  given = checks.to_array('anytime: threshold', threshold)
  if given.shape not in ((), (rows,)):
    raise ValueError(
      f'anytime: threshold has shape {given.shape}; allowed is one number, or '
      f'one for each of the {rows} traces.'
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
