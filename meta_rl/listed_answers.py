"""The chance of listed answers at every boundary of every trace, as a queue.

What has to be fed is a tree of answers (meta_rl/tries.py) at each boundary. A
trace's boundaries have trees of one size n, so that `C = Q // n` of them fill a
row of Q tokens, an item:

    boundary   0 0 0 0 0 1 1 1 1 1 2 2 2 2 2 -      n = 5, Q = 16
    node       0 1 2 3 4 0 1 2 3 4 0 1 2 3 4

Items of all traces stand in one queue, those whose prefix is shortest first,
and R of them run at a time, each in a copy of its trace's cache: no row waits
for one that has more to do, and the first ones read a part of the cache alone.
The tokens stand before the trace in that copy, whose slots a mask tells apart:

    slots      z0 ... z(Q-1) | the trace up to the longest prefix

Axes: B traces, K episodes, S answers, A answer tokens, m stop tokens, U answers
of a tree, N = B * S / U trees, M nodes of a tree at most, I items, R items of a
block, Q tokens of an item, C boundaries of an item at most.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_rl import cache as caches
from meta_rl import checks, probes, tries
from meta_rl.types import Array, Cache, Model, Params


class Queue(NamedTuple):
  """Items, shortest prefix first.

  Attributes:
    total: i32[], items; what follows them is filled up.
    tree: i32[I], the tree of each.
    first: i32[I], its first boundary, counted among those of its trace.
    last: i32[I], the last column that it reads.
    start: i32[N], where the items of a tree begin, before they were sorted.
    place: i32[I], where an item stood before that.
    per: i32[N], boundaries of a tree's items.
  """

  total: Array
  tree: Array
  first: Array
  last: Array
  start: Array
  place: Array
  per: Array


def make_queue(
  size: Array, count: Array, ends: Array, *, tokens: int, most: int
) -> Queue:
  """Returns the items of N trees.

  Args:
    size: i32[N], nodes of each tree; 0: it has no items.
    count: i32[N], boundaries at which it is fed.
    ends: i32[N,K+1], columns of these, increasing; anything past count.
    tokens: Q of an item.
    most: the largest size that there may be.
  """
  trees, width = ends.shape
  per = jnp.minimum(tokens // jnp.maximum(size, 1), width)
  need = jnp.where(size > 0, -(-count // per), 0)
  fill = trees * -(-width // min(tokens // most, width))
  stop = jnp.cumsum(need)
  start, total = stop - need, stop[-1]
  place = jnp.arange(fill)
  tree = jnp.repeat(jnp.arange(trees), need, total_repeat_length=fill)
  first = (place - start[tree]) * per[tree]
  final = jnp.minimum(first + per[tree], count[tree]) - 1
  last = ends[tree, jnp.clip(final, 0, width - 1)]
  last = jnp.where(place < total, last, jnp.iinfo(jnp.int32).max)
  by_last = jnp.argsort(last)
  of = lambda x: x[by_last]
  return Queue(total, of(tree), of(first), of(last), start, by_last, per)


class Work(NamedTuple):
  """What the blocks read: trees, their traces and the boundaries of these.

  Attributes:
    trie: `tries.Trie` of the N trees.
    answers: i32[N,U,A] and
    scored: bool[N,U,A], their answers.
    ends: i32[N,K+1], boundaries at which a tree is fed, packed to the front.
    start: i32[N,K+1], positions of the first stop token there.
    count: i32[N], how many there are.
    queue: `Queue` of the items.
  """

  trie: tries.Trie
  answers: Array
  scored: Array
  ends: Array
  start: Array
  count: Array
  queue: Queue


def chances(
  model: Model,
  params: Params,
  cache: Cache,
  ends: Array,
  start: Array,
  real: Array,
  answers: Array,
  scored: Array,
  *,
  stop: tuple[int, ...],
  truncate: Callable[[Array], Array],
  columns: int,
  tokens: int,
  block_rows: int,
  answers_each: int,
  cache_parts: int,
) -> Array:
  """Returns f32[B,K+1], the chances of all answers, summed; 0 if not `real`.

  Args:
    cache: of the traces.
    ends: i32[B,K+1], the last column of each prefix, -1 for none.
    start: i32[B,K+1], positions of the first stop token.
    real: bool[B,K+1], boundaries to measure.
    answers: i32[B,S,A].
    scored: bool[B,S,A], True on the answers.
    stop: m token ids.
    truncate: logits -> those of the distribution that answers are drawn from.
    columns: T, slots of the cache.
    tokens: Q, at least m + U (A - 1).
    block_rows: R.
    answers_each: U, answers of a tree; more are several trees.
    cache_parts: a block reads as many of them as its prefixes need.
  """
  rows, width = ends.shape
  length = answers.shape[2]
  pad = -answers.shape[1] % answers_each
  split = lambda x: jnp.pad(x, ((0, 0), (0, pad), (0, 0))).reshape(
    -1, answers_each, length
  )
  answers, scored = split(answers), split(scored)
  each = len(answers) // rows  # trees of a trace
  trie = tries.make(jnp.asarray(stop, jnp.int32), answers, scored)
  order = jnp.argsort(~real, axis=1, stable=True)
  packed = lambda x: jnp.repeat(jnp.take_along_axis(x, order, 1), each, axis=0)
  count = jnp.repeat(real.sum(1), each)
  most = trie.tokens.shape[1]
  queue = make_queue(trie.size, count, packed(ends), tokens=tokens, most=most)
  work = Work(trie, answers, scored, packed(ends), packed(start), count, queue)
  found = run(
    model,
    params,
    cache,
    work,
    each,
    stop=stop,
    truncate=truncate,
    tokens=tokens,
    block_rows=block_rows,
    lengths=sorted(
      {-(-columns * (i + 1) // cache_parts) for i in range(cache_parts)}
    ),
  )
  # Back from items to boundaries, and from packed ones to all.
  nth = jnp.arange(width)
  item = queue.start[:, None] + nth // queue.per[:, None]
  value = found[jnp.minimum(item, len(found) - 1), nth % queue.per[:, None]]
  value = jnp.where((nth < count[:, None]) & (trie.size > 0)[:, None], value, 0)
  value = value.reshape(rows, each, width).sum(1)
  return jnp.take_along_axis(value, jnp.argsort(order, axis=1), axis=1)


def run(model, params, cache, work, each, *, lengths, block_rows, **options):
  """Returns f32[I,C], the chances of each item's boundaries, in old places."""
  queue, tokens = work.queue, options['tokens']
  fewest = len(options['stop'])
  most = min(work.ends.shape[1], tokens // fewest)
  found = jnp.zeros((len(queue.tree), most), jnp.float32)
  block_rows = min(block_rows, len(queue.tree))
  most_blocks = -(-len(queue.tree) // block_rows)
  begin = jnp.arange(most_blocks) * block_rows
  final = jnp.minimum(begin + block_rows, queue.total) - 1

  def advance(length, carry):
    nth, found = carry
    # The last block is filled up with items that were done.
    at = jnp.minimum(nth * block_rows, len(queue.tree) - block_rows)
    items = jnp.arange(block_rows) + at
    tree = queue.tree[items]
    own = caches.behind(model, cache, tree // each, length, tokens)
    new = probe(model, params, own, work, items, most, length=length, **options)
    return nth + 1, found.at[queue.place[items]].set(new)

  carry = jnp.zeros((), jnp.int32), found
  for length in lengths:
    # The blocks that read no more than this part, or a shorter one.
    within = (begin < queue.total) & (queue.last[final] < length)
    until = within.sum(dtype=jnp.int32)
    more = lambda carry, until=until: carry[0] < until
    if length == lengths[-1]:
      # That all blocks read the whole cache is the worst case. A plan takes a
      # constant for how often a loop runs, and one without for once
      # (meta_rl/aot/hlo.py): so the blocks are counted once, not once a part.
      more = lambda carry, until=until: (
        (carry[0] < until) & (carry[0] < most_blocks)
      )
    advance_in = functools.partial(advance, length)
    carry = jax.lax.while_loop(more, advance_in, carry)
  return carry[1]


def probe(
  model, params, own, work, items, most, *, stop, truncate, tokens, length
):
  """Returns f32[R,C], the chances at the boundaries of R items.

  Args:
    own: caches of the items' traces, their slots behind Q empty ones.
    work: of `chances`.
    items: i32[R].
    most: C.
    stop, truncate, tokens: as in `chances`.
    length: slots of the traces.
  """
  trie, queue = work.trie, work.queue
  tree, first = queue.tree[items], queue.first[items]
  size = jnp.maximum(trie.size[tree], 1)[:, None]
  pick = lambda table, index: jnp.take_along_axis(table[tree], index, 1)
  # Of each token: its node, and its boundary within the item.
  nth, node = jnp.arange(tokens) // size, jnp.arange(tokens) % size
  boundary = jnp.minimum(first[:, None] + nth, work.ends.shape[1] - 1)
  wanted = (nth < queue.per[tree][:, None]) & (
    first[:, None] + nth < work.count[tree][:, None]
  )
  wanted &= (items < queue.total)[:, None]
  depth = pick(trie.depth, node)
  positions = jnp.where(wanted, pick(work.start, boundary) + depth, -1)
  path = jnp.take_along_axis(
    trie.path[tree], pick(trie.owner, node)[..., None], 1
  )
  mine = tries.sees(path, depth, node)
  mine &= nth[:, :, None] == nth[:, None]
  trace = jnp.arange(length) <= pick(work.ends, boundary)[..., None]
  features, _ = probes.features_of(
    model,
    params,
    pick(trie.tokens, node),
    positions,
    own,
    jnp.concatenate([mine, trace], -1),
  )
  # What stop tokens but the last predict is known.
  skip = len(stop) - 1
  kept = size - skip
  if skip:
    places = jnp.arange(_most_kept(tokens, len(stop), trie.tokens.shape[1]))
    places = places // kept * size + skip + places % kept
    places = jnp.minimum(places, tokens - 1)
    features = jnp.take_along_axis(features, places[..., None], 1)
  logits = probes.unembed(model, params, features)
  checks.check_vocabulary('prover: stop_ids', stop, logits.shape[-1])
  logits = truncate(logits)
  norm = jax.nn.logsumexp(logits, axis=-1)
  # The token behind each node of an answer, at every boundary: [R,C,U,A].
  answers, scored = work.answers[tree][:, None], work.scored[tree][:, None]
  nth = jnp.arange(most)[:, None, None]
  place = (
    nth * kept[..., None, None] + trie.path[tree][:, None, :, skip:] - skip
  )
  place = jnp.clip(place, 0, norm.shape[1] - 1)
  flat = lambda x: x.reshape(len(tree), -1)
  there = place * logits.shape[-1] + answers
  log_probs = jnp.take_along_axis(flat(logits), flat(there), 1)
  log_probs -= jnp.take_along_axis(norm, flat(place), 1)
  log_probs = log_probs.reshape(place.shape)
  log_probs = jnp.where(scored, log_probs, 0.0).sum(-1)
  return jnp.where(scored.any(-1), jnp.exp(log_probs), 0.0).sum(-1)


def _most_kept(tokens: int, stop: int, most: int) -> int:
  """Returns how many tokens of an item predict something, at most."""
  return max(tokens // n * (n - stop + 1) for n in range(stop, most + 1))
