"""The meta-prover: the chance J_j of answering right if thinking stopped now.

At boundary j of a trace the prover stops thinking (the stop tokens are forced)
and answers from the prefix c_j. Its success probability J_j is found in three
ways, all from the trace's own KV cache, so that no prefix is computed again:

  exact    J_j = sum_s mu(a_s | c_j): every accepted answer a_s is scored by
           teacher forcing. No sampling noise; a lower bound where answers
           beyond the listed ones would be accepted too.
  sampled  J_j = mean over M branches of verify(answer): unbiased, variance
           J (1 - J) / M.
  control  the listed answers exactly, all others by sampling: unbiased, with
  variate  the variance of what is not listed alone.

(MRT: Qu et al. 2025, arXiv 2503.07572, section 6; the exact form is ours.)

Axes: B traces, T tokens, K episodes, S accepted answers, A answer tokens, m
stop tokens, M branches, L cache slots.

How probes share a trace's cache is said in meta_rl/probes.py.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import checks, listed_answers, probes, sampling
from meta_rl.stops import StopTable
from meta_rl.types import Array, Model, Params, TraceCache


def exact(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  answers: Array,
  answer_mask: Array,
  *,
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  cache: TraceCache | None = None,
  group_size: int = 1,
  block_rows: int = 16,
  block_pairs: int = 8,
  cache_parts: int | None = None,
) -> Array:
  """Returns J f32[B,K+1]: the probability of the accepted answers, summed.

    J_j = sum_s prod_i mu(a_s,i | c_j, stop, a_s,<i)

  Only what exists is computed, and nothing twice: tokens that several answers
  begin with are fed once a boundary (meta_rl/tries.py), and so is the boundary
  that the traces of a group share. Boundaries stand in a queue of rows of equal
  length, `block_rows` of which run at a time (meta_rl/listed_answers.py).

  Args:
    model: the network.
    params: the prover's parameters.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding. The prefix of boundary j is
      tokens[:, :ends[:, j] + 1].
    ends: i32[B,K+1], boundaries; past the last one it repeats, and so does J.
    answers: i32[B,S,A], distinct accepted answers, each ending in EOS, so that
      J <= 1.
    answer_mask: bool[B,S,A], True on an answer and its EOS; an all-False row
      adds 0.
    stop_ids: m tokens, forced after the prefix and not scored.
    temperature: > 0, at which the prover answers.
    top_p, top_k: truncate the support of the prover's answers; None for all.
    cache: the traces' KV cache, as `generate(return_cache=True)` gives it;
      None: the traces are prefilled once here.
    group_size: G consecutive traces of one prompt. Where their first boundaries
      have one prefix and one list of answers, J is measured at that of the
      group's first trace alone.
    block_rows, block_pairs: rows of a block, and how many probes that share
      nothing fill a row. They change speed and memory only.
    cache_parts: a block reads the first of so many parts of the cache, as many
      as its prefixes need; each is one more program to compile. None: two, and
      one of a cache of less than 64 slots.

  Raises:
    ValueError: shapes or dtypes, a number outside its range, or a token that
      the model does not have.

  Example:
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from meta_rl import models, prover
    >>> def policy(params, tokens, positions, cache, mask):
    ...   seen = (mask & (tokens == 3)[:, None]).sum(-1)  # thoughts so far
    ...   return params[seen], None
    >>> chances = jnp.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.5, 0.0]])
    >>> found = prover.exact(
    ...   models.from_apply_fn(policy),
    ...   jnp.log(chances),
    ...   jnp.array([[2, 3]]),  # a prompt of one token, one thought
    ...   jnp.ones((1, 2), bool),
    ...   jnp.array([[0, 1]]),
    ...   jnp.array([[[2, 1]]]),  # the answer is 2, then EOS
    ...   jnp.ones((1, 1, 2), bool),
    ...   stop_ids=(0,),
    ... )
    >>> print(np.asarray(found).round(4))  # 1/4 · 1/4 and 1/2 · 1/2
    [[0.0625 0.25  ]]
  """
  tokens, token_mask, ends, answers, answer_mask = probes.listed_of(
    model, tokens, token_mask, ends, answers, answer_mask, stop_ids
  )
  checks.check_count('prover: block_rows', block_rows)
  checks.check_count('prover: block_pairs', block_pairs)
  if cache_parts is None:
    cache_parts = 2 if tokens.shape[1] >= 64 else 1
  checks.check_count('prover: cache_parts', cache_parts)
  checks.check_count('prover: group_size', group_size)
  if len(tokens) % group_size:
    raise ValueError(
      f'prover: group_size={group_size} does not divide {len(tokens)} traces: '
      'give the number of traces that each prompt has.'
    )
  sampling.check_truncation('prover: ', temperature, top_k, top_p, greedy=False)
  num_answers, length = answers.shape[1:]
  cache = probes.cache_of(cache, model, params, tokens, token_mask)
  head = jnp.arange(len(tokens)) // group_size * group_size
  shared = probes.same_first(
    head, tokens, token_mask, ends, answers, answer_mask
  )
  real = probes.is_boundary(ends)
  success = listed_answers.chances(
    model,
    params,
    cache.cache,
    ends,
    probes.tokens_until(jnp.cumsum(token_mask, axis=1), ends),
    real.at[:, 0].set(~shared),
    answers,
    answer_mask,
    stop=tuple(stop_ids),
    truncate=functools.partial(
      sampling.truncate, temperature=temperature, top_p=top_p, top_k=top_k
    ),
    columns=tokens.shape[1],
    tokens=block_pairs * (len(stop_ids) + length - 1),
    block_rows=block_rows,
    answers_each=min(block_pairs, num_answers),
    cache_parts=cache_parts,
  )
  first = jnp.where(shared, success[head, 0], success[:, 0])
  success = success.at[:, 0].set(first)
  return probes.repeat_past_count(success, ends)


def sampled(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  verify_fn: Callable[[Array, Array], Array],
  key: Array,
  *,
  num_branches: int,
  max_answer_len: int,
  stop_ids: Sequence[int],
  eos_id: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  stop_table: StopTable | None = None,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 16,
  begin_fn: Callable | None = None,
  return_mask: bool = False,
) -> Array | tuple[Array, Array]:
  """Returns J f32[B,K+1]: the share of `num_branches` sampled answers right.

    J_j = (1/M) sum_m verify(a_m), a_m ~ mu(. | c_j)

  Unbiased, with variance J_j (1 - J_j) / M.

  Args:
    verify_fn: `(answers i32[B,K+1,M,A], mask bool[B,K+1,M,A]) -> f32[B,K+1,M]`,
      traceable; rewards in [0, 1].
    key: PRNG key, consumed here.
    return_mask: also return bool[B,K+1,M,A], the tokens that were drawn.
    Others: as in `sample_answers`.

  Raises:
    ValueError: as in `sample_answers`; rewards of another shape.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from meta_rl import models, prover
    >>> def policy(params, tokens, positions, cache, mask):
    ...   seen = (mask & (tokens == 3)[:, None]).sum(-1)  # thoughts so far
    ...   return params[seen], None
    >>> sure = jnp.array([[0.0, 9e9, 0.0, 0.0], [0.0, 0.0, 9e9, 0.0]])
    >>> prover.sampled(
    ...   models.from_apply_fn(policy),
    ...   sure,  # answers 1, EOS, without a thought, and 2 with one
    ...   jnp.array([[2, 3]]),
    ...   jnp.ones((1, 2), bool),
    ...   jnp.array([[0, 1]]),
    ...   lambda answers, mask: (answers[..., 0] == 2).astype(jnp.float32),
    ...   jax.random.key(0),
    ...   num_branches=4,
    ...   max_answer_len=1,
    ...   stop_ids=(0,),
    ...   eos_id=1,
    ... ).tolist()
    [[0.0, 1.0]]
  """
  checks.check_callable('prover: verify_fn', verify_fn)
  checks.check_flag('prover: return_mask', return_mask)
  found, mask = sample_answers(
    model,
    params,
    tokens,
    token_mask,
    ends,
    key,
    num_branches=num_branches,
    max_answer_len=max_answer_len,
    stop_ids=stop_ids,
    eos_id=eos_id,
    stop_table=stop_table,
    temperature=temperature,
    top_p=top_p,
    top_k=top_k,
    cache=cache,
    row_offset=row_offset,
    block_rows=block_rows,
    begin_fn=begin_fn,
  )
  success = probes.rewards_of(verify_fn, found, mask).mean(-1)
  success = probes.repeat_past_count(success, ends)
  return (success, mask) if return_mask else success


def control_variate(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  answers: Array,
  answer_mask: Array,
  verify_fn: Callable[[Array, Array], Array],
  key: Array,
  *,
  num_enumerated: int | None = None,
  num_branches: int,
  max_answer_len: int,
  stop_ids: Sequence[int],
  eos_id: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  stop_table: StopTable | None = None,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 16,
  begin_fn: Callable | None = None,
  return_mask: bool = False,
) -> Array | tuple[Array, Array]:
  """Returns J f32[B,K+1]: listed answers exactly, the others by sampling.

    J_j = sum_{s<n} mu(a_s | c_j)
          + (1/M) sum_m verify(a_m) 1[a_m is none of a_0 ... a_{n-1}]

  Unbiased whatever is listed, with variance q (1 - q) / M, q the chance of a
  right answer that is not. All listed: `exact`. None: `sampled`. A value may
  exceed 1, which clipping would turn into a bias.

  Args:
    answers, answer_mask: as in `exact`; `verify_fn` gives each of them 1.
    verify_fn, key, num_branches: as in `sampled`.
    num_enumerated: n, how many of the S answers count as listed, the first
      ones; None for all.
    max_answer_len: at least A, so that whatever is listed can be sampled.
    return_mask: also return bool[B,K+1,M,A], the tokens that were drawn.
    Others: as in `exact` and `sample_answers`.

  Raises:
    ValueError: shapes, n outside 0..S, or max_answer_len below A.
  """
  tokens, token_mask, ends, answers, answer_mask = probes.listed_of(
    model, tokens, token_mask, ends, answers, answer_mask, stop_ids
  )
  checks.check_callable('prover: verify_fn', verify_fn)
  checks.check_flag('prover: return_mask', return_mask)
  number, length = answers.shape[1:]
  listed = number
  if num_enumerated is not None:
    listed = checks.check_count(
      'prover: num_enumerated', num_enumerated, low=0, high=number
    )
  row_offset = _check_draws(
    key,
    eos_id,
    row_offset,
    num_branches=num_branches,
    max_answer_len=max_answer_len,
    block_rows=block_rows,
  )
  sampling.check_truncation(
    'prover: ', temperature, top_k, top_p, greedy=not listed
  )
  if max_answer_len < length:
    raise ValueError(
      f'prover: max_answer_len={max_answer_len} cuts the accepted answers of '
      f'{length} tokens: give at least {length}.'
    )
  answers, answer_mask = answers[:, :listed], answer_mask[:, :listed]
  cache = probes.cache_of(cache, model, params, tokens, token_mask)
  given = model, params, tokens, token_mask, ends
  shared = {
    'stop_ids': stop_ids,
    'temperature': temperature,
    'top_p': top_p,
    'top_k': top_k,
    'cache': cache,
    'block_rows': block_rows,
  }

  def verify_others(found, mask):
    wide = ((0, 0), (0, 0), (0, max_answer_len - length))
    known = jnp.pad(answers, wide)[:, None, None]
    inside = jnp.pad(answer_mask, wide)[:, None, None]
    same = (found[..., None, :] == known) | ~inside  # [B,K+1,M,n,A]
    same &= mask[..., None, :] == inside
    rewards = probes.rewards_of(verify_fn, found, mask)
    return jnp.where(same.all(-1).any(-1), 0.0, rewards)

  others, mask = sampled(
    *given,
    verify_others,
    key,
    num_branches=num_branches,
    max_answer_len=max_answer_len,
    eos_id=eos_id,
    stop_table=stop_table,
    row_offset=row_offset,
    begin_fn=begin_fn,
    return_mask=True,
    **shared,
  )
  success = others
  if listed:
    success += exact(*given, answers, answer_mask, **shared)
  return (success, mask) if return_mask else success


def sample_answers(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  key: Array,
  *,
  num_branches: int,
  max_answer_len: int,
  stop_ids: Sequence[int],
  eos_id: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  stop_table: StopTable | None = None,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 16,
  begin_fn: Callable | None = None,
  return_log_probs: bool = False,
  raw_log_probs: bool = False,
) -> tuple[Array, ...]:
  """Returns forced answers i32[B,K+1,M,A] and their mask bool[B,K+1,M,A].

  All branches of a trace decode side by side in the query axis and read the
  trace's keys in place; nothing is copied. Branch n of row b at answer token t
  draws from fold_in(fold_in(fold_in(key, row_offset + b), n), t), where
  n = j * M + m.

  Args:
    model, params: the prover.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding.
    ends: i32[B,K+1], boundaries; past the last real one nothing is sampled and
      the mask is False.
    key: PRNG key, consumed here.
    num_branches: M >= 1 answers a boundary.
    max_answer_len: A >= 1, tokens, EOS included.
    stop_ids: m tokens forced after the prefix.
    eos_id: ends an answer and belongs to the mask.
    temperature: >= 0.
    top_p, top_k: truncate the support that is sampled from; None for all.
    stop_table: as in `rollout.generate`; it ends an answer as EOS does.
    cache: KV cache that holds the traces; None: prefilled once here.
    row_offset: global index of the first trace.
    block_rows: traces at a time; bounds memory, changes no number.
    begin_fn: `(answers i32[b,N,A], mask bool[b,N,A], row i32[b]) -> i32[b,N]`,
      zeros, traceable: told the answers of each block of traces as soon as they
      are drawn, for a verifier on the host that need not wait for the last;
      None: nobody is.
    return_log_probs: also return f32[B,K+1,M,A], nats, of each token under the
      distribution that it was drawn from; 0 where the mask is False.
    raw_log_probs: these under the model's own softmax instead, at temperature 1
      and over the whole vocabulary.

  Raises:
    ValueError: shapes or dtypes, a number outside its range, or a token that
      the model does not have.
  """
  checks.check_model(model)
  tokens, token_mask, ends = probes.traces_of(
    tokens, token_mask, ends, stop_ids
  )
  row_offset = _check_draws(
    key,
    eos_id,
    row_offset,
    num_branches=num_branches,
    max_answer_len=max_answer_len,
    block_rows=block_rows,
  )
  sampling.check_truncation('prover: ', temperature, top_k, top_p)
  checks.check_flag('prover: return_log_probs', return_log_probs)
  checks.check_flag('prover: raw_log_probs', raw_log_probs)
  checks.check_callable('prover: begin_fn', begin_fn, optional=True)
  rows, width = ends.shape
  branches = width * num_branches
  stop = tuple(stop_ids)
  block_rows = min(block_rows, rows)
  cache = probes.cache_of(cache, model, params, tokens, token_mask)
  room = branches * (len(stop) + max_answer_len - 1)
  before = jnp.cumsum(token_mask, axis=1)
  real = jnp.repeat(probes.is_boundary(ends), num_branches, axis=1)
  decode = functools.partial(
    probes.decode_branches,
    model,
    params,
    stop=stop,
    used=cache.used,
    slots=tokens.shape[1] + room,
    max_answer_len=max_answer_len,
    eos_id=eos_id,
    stop_table=stop_table,
    truncate=functools.partial(
      sampling.truncate, temperature=temperature, top_p=top_p, top_k=top_k
    ),
    scored=(lambda logits: logits) if raw_log_probs else None,
  )

  def run_block(index, found):
    start = jnp.minimum(index * block_rows, rows - block_rows)
    row = start + jnp.arange(block_rows)
    end = jnp.repeat(ends[row], num_branches, axis=1)
    # With room for the answers of these traces alone.
    own = caches.grow(model, caches.take(model, cache.cache, row), room)
    *new, _ = decode(
      own,
      end=end,
      start=probes.tokens_until(before[row], end),
      real=real[row],
      keys=jax.vmap(lambda r: probes.branch_keys(key, r, branches))(
        row_offset + row
      ),
    )
    if begin_fn is not None:
      new[0] += begin_fn(new[0], new[1], row)[..., None]
    write = lambda x, y: jax.lax.dynamic_update_slice(x, y, (start, 0, 0))
    return jax.tree.map(write, found, tuple(new))

  shape = (rows, branches, max_answer_len)
  found = tuple(jnp.zeros(shape, t) for t in (jnp.int32, bool, jnp.float32))
  found = jax.lax.fori_loop(0, -(-rows // block_rows), run_block, found)
  split = lambda x: x.reshape(rows, width, num_branches, max_answer_len)
  found = jax.tree.map(split, found)
  return found if return_log_probs else found[:2]


def _check_draws(key, eos_id, row_offset, **at_least_one) -> int | Array:
  """Returns row_offset; raises ValueError for what draws no answers."""
  checks.check_key('prover: key', key)
  for name, value in at_least_one.items():
    checks.check_count(f'prover: {name}', value)
  checks.check_count('prover: eos_id', eos_id, low=0)
  return checks.check_counts('prover: row_offset', row_offset)
