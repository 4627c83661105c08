"""Free continuations: from a prefix of a trace the policy thinks on by itself.

What Monte Carlo credit needs (VinePPO, arXiv 2410.01679): the value of a prefix
under the policy that goes on, stops when it likes, and answers. Forced answers
(meta_rl/prover.py) tell what a prefix is worth if thinking ended there.

Prefixes are taken as prompts of `rollout.generate`, each moved to the right so
that all end in one column, a block of them at a time:

    trace      x x 5 3 ; 5 3 ; ...        boundaries behind x and each ;
    prefixes   - - - - - - x x
               - - - x x 5 3 ;
               x x 5 3 ; 5 3 ;

Axes: B traces, T tokens, K episodes, M branches, A answer tokens, R prefixes of
a block.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, costs, probes, prover, rollout, sampling
from meta_rl.stops import StopTable
from meta_rl.types import Array, Model, Params, TraceCache


def continued(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  verify_fn: Callable[[Array, Array], Array],
  key: Array,
  *,
  num_branches: int,
  thinking_budget: int,
  max_answer_len: int,
  think_end_id: int,
  stop_ids: Sequence[int],
  eos_id: int,
  observe_fn: Callable[[Array, Array, Array], Array] | None = None,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  stop_table: StopTable | None = None,
  cache: TraceCache | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 64,
  begin_fn: Callable | None = None,
) -> tuple[Array, Array, Array]:
  """Returns the value of every prefix under the policy that goes on by itself.

    V_j = (1/M) sum_m verify(a_m),  a_m the answer of a free continuation of c_j
    V_k = the same of answers alone: at the last boundary thinking is over

  Before it was over, the policy at c_k could have gone on: that is the second
  value, without which the choice to stop there could not be judged. The two
  are equal in expectation where the budget ended thinking.

  Args:
    verify_fn: `(answers i32[B,N,M,A], mask bool[B,N,M,A]) -> f32[B,N,M]`,
      traceable; rewards in [0, 1].
    key: PRNG key, consumed here.
    cache: the traces' KV cache, for the answers at the last boundary. (A
      continuation prefills its prefix: it outgrows the slots behind a trace.)
    block_rows: prefixes at a time.
    Others: as in `sample_continuations`.

  Returns:
    V f32[B,K+1], past the last boundary repeating; V f32[B] at the last
    boundary before the choice to stop; i32[B], tokens fed.

  Raises:
    ValueError: as in `sample_continuations`; rewards of another shape.

  Source: VinePPO, Kazemnejad et al. 2024, arXiv 2410.01679, section 4. Departs
  from it in that values of one's own stop and answer are sampled too.
  """
  checks.check_key('continuations: key', key)
  checks.check_callable('continuations: verify_fn', verify_fn)
  go_key, stop_key = jax.random.split(key)
  shared = {
    'num_branches': num_branches,
    'max_answer_len': max_answer_len,
    'stop_ids': stop_ids,
    'eos_id': eos_id,
    'temperature': temperature,
    'top_p': top_p,
    'top_k': top_k,
    'stop_table': stop_table,
    'row_offset': row_offset,
    'begin_fn': begin_fn,
  }
  tokens, token_mask, ends = probes.traces_of(
    tokens, token_mask, ends, stop_ids
  )
  given = model, params, tokens, token_mask
  answers, mask, fed = sample_continuations(
    *given,
    ends,
    go_key,
    thinking_budget=thinking_budget,
    think_end_id=think_end_id,
    observe_fn=observe_fn,
    block_rows=block_rows,
    **shared,
  )
  value = probes.rewards_of(verify_fn, answers, mask).mean(-1)
  value = probes.repeat_past_count(value, ends)
  over, drawn = prover.sampled(
    *given,
    ends[:, -1:],
    verify_fn,
    stop_key,
    cache=cache,
    return_mask=True,
    **shared,
  )
  fed += costs.sampled_tokens(drawn, len(stop_ids))
  return jnp.where(ends == ends[:, -1:], over, value), value[:, -1], fed


def sample_continuations(
  model: Model,
  params: Params,
  tokens: Array,
  token_mask: Array,
  ends: Array,
  key: Array,
  *,
  num_branches: int,
  thinking_budget: int,
  max_answer_len: int,
  think_end_id: int,
  stop_ids: Sequence[int],
  eos_id: int,
  observe_fn: Callable[[Array, Array, Array], Array] | None = None,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  stop_table: StopTable | None = None,
  row_offset: int | Array = 0,
  block_rows: int = 64,
  begin_fn: Callable | None = None,
) -> tuple[Array, Array, Array]:
  """Returns answers i32[B,K+1,M,A] of free continuations, mask and tokens fed.

  From boundary j the policy thinks for what the budget leaves, budget -
  (ends[j] - ends[0]) tokens, unless it stops before, and then answers. Branch m
  of boundary j of row b draws as row ((row_offset + b) (K + 1) + j) M + m of a
  rollout: samples depend on neither blocks nor batch.

  Only boundaries that exist are continued. Those with most budget left come
  first, so that the prefixes of a block take about as long.

  Tokens fed, i32[B], are those of each prefix, once for its M branches, and of
  each branch all but the last (meta_rl/costs.py).

  Args:
    model, params: the policy.
    tokens: i32[B,T], prompt and response.
    token_mask: bool[B,T], everything but padding.
    ends: i32[B,K+1], boundaries, at least 0 (a prompt of one token or more);
      past the last real one nothing is sampled and the mask is False.
    key: PRNG key, consumed here.
    num_branches: M >= 1.
    thinking_budget: tokens from ends[:, 0] on.
    max_answer_len: A >= 1, tokens, EOS included.
    think_end_id: the answer marker.
    stop_ids: forced where the budget ends.
    eos_id: ends a trace.
    observe_fn: as in `rollout.generate`; its `rows` are those of `tokens`.
    temperature, top_p, top_k: of the policy.
    stop_table: as in `rollout.generate`.
    row_offset: global index of the first trace.
    block_rows: prefixes at a time; bounds memory, changes no number.
    begin_fn: as in `prover.sample_answers`, of the answers [r,M,A] of a block.

  Raises:
    ValueError: shapes, dtypes, a number outside its range, or a token that the
      model does not have.
  """
  checks.check_model(model)
  checks.check_key('continuations: key', key)
  tokens, token_mask, ends = probes.traces_of(
    tokens, token_mask, ends, stop_ids
  )
  for name, value in (
    ('num_branches', num_branches),
    ('thinking_budget', thinking_budget),
    ('max_answer_len', max_answer_len),
    ('block_rows', block_rows),
  ):
    checks.check_count(f'continuations: {name}', value)
  for name, value in (('think_end_id', think_end_id), ('eos_id', eos_id)):
    checks.check_count(f'continuations: {name}', value, low=0)
  row_offset = checks.check_counts('continuations: row_offset', row_offset)
  sampling.check_truncation('continuations: ', temperature, top_k, top_p)
  checks.check_callable('continuations: observe_fn', observe_fn, optional=True)
  checks.check_callable('continuations: begin_fn', begin_fn, optional=True)
  rows, width = ends.shape
  pairs = rows * width
  block_rows = min(block_rows, pairs)
  real = probes.is_boundary(ends)
  left = jnp.maximum(thinking_budget - (ends - ends[:, :1]), 0)
  left = jnp.where(real, left, 0).reshape(-1)
  real = real.reshape(-1)
  order = jnp.argsort(jnp.where(real, -left, 1), stable=True)
  # The first pair is real: what fills the last block writes it once more.
  order = jnp.pad(order, (0, -pairs % block_rows), constant_values=0)
  column = jnp.arange(tokens.shape[1])

  def run_block(index, found):
    pair = jax.lax.dynamic_slice_in_dim(order, index * block_rows, block_rows)
    row, boundary = pair // width, pair % width
    # Column c of a prefix that is moved so that it ends in the last one.
    source = column - (len(column) - 1 - ends[row, boundary])[:, None]
    take = lambda x: jnp.take_along_axis(x[row], jnp.maximum(source, 0), axis=1)
    prefix_mask = take(token_mask) & (source >= 0)
    branch = (row_offset * width + pair)[:, None] * num_branches
    branch = (branch + jnp.arange(num_branches)).reshape(-1)
    traces = rollout.generate(
      model,
      params,
      take(tokens),
      prefix_mask,
      key,
      max_new_tokens=thinking_budget + len(stop_ids) + max_answer_len,
      eos_id=eos_id,
      temperature=temperature,
      group_size=num_branches,
      top_p=top_p,
      top_k=top_k,
      think_end_id=think_end_id,
      thinking_budget=jnp.repeat(left[pair], num_branches),
      stop_ids=stop_ids,
      stop_table=stop_table,
      observe_fn=_of_rows(observe_fn, jnp.repeat(row, num_branches)),
      # Rows of a block lie apart: each gets its own offset.
      row_offset=branch - jnp.arange(len(branch)),
    )
    thoughts = traces.thinking_mask.sum(1)
    more = jnp.where(traces.forced, len(stop_ids) - 1, 0)
    answers, mask = rollout.answers_of(
      traces, len(column) + thoughts + more, max_answer_len
    )
    drawn = traces.token_mask[:, len(column) :].sum(1)
    fed = (drawn - 1).reshape(block_rows, num_branches).sum(1)
    fed += prefix_mask.sum(1)
    here = real[pair]
    if begin_fn is not None:
      split = lambda x: x.reshape(block_rows, num_branches, max_answer_len)
      begun = begin_fn(split(answers), split(mask) & here[:, None, None], row)
      answers += begun.reshape(-1, 1)

    def write(whole, part):
      part = part.reshape(block_rows, *whole.shape[1:]).astype(whole.dtype)
      kept = here.reshape(-1, *[1] * (part.ndim - 1))
      return whole.at[pair].set(jnp.where(kept, part, jnp.zeros_like(part)))

    return jax.tree.map(write, found, (answers, mask, fed))

  shape = (pairs, num_branches, max_answer_len)
  found = (
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, bool),
    jnp.zeros(pairs, jnp.int32),
  )
  blocks = -(-real.sum() // block_rows)
  answers, mask, fed = jax.lax.fori_loop(0, blocks, run_block, found)
  split = lambda x: x.reshape(rows, width, num_branches, max_answer_len)
  answers = split(jnp.where(mask, answers, 0))
  return answers, split(mask), fed.reshape(rows, width).sum(1)


def _of_rows(observe_fn, row):
  """Returns `observe_fn` for rows of a block, `row[r]` of the traces each."""
  if observe_fn is None:
    return None
  return lambda last, thinking, rows: observe_fn(last, thinking, row[rows])
