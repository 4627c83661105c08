"""Batches: problems through Grain, packed rows for supervised fine-tuning.

Axes: N problems a batch, R rows of a packed batch, L tokens of a row. In a
packed row the traces lie one behind another; `segment_ids` says which is which
and positions restart with each, so that a trace sees only itself.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import tokenizer
from meta_rl.chat import chat_jsonl
from meta_rl.tasks.base import Trace

__all__ = [
  'CountedBatches',
  'chat_jsonl',
  'pack',
  'packed_batches',
  'packed_mask',
  'problem_iterator',
  'sft_batches',
]

Batch = dict[str, np.ndarray]


def problem_iterator(
  source: Sequence[Mapping[str, np.ndarray]],
  *,
  record_arrays: Callable[[Mapping[str, np.ndarray]], Batch],
  batch_size: int,
  seed: int = 0,
  shuffle: bool = True,
  rows: slice = slice(None),
  drop_remainder: bool = True,
  num_epochs: int | None = None,
) -> grain.DatasetIterator:
  """Returns a resumable iterator over batches of problems.

  Every epoch is a new shuffle of the whole source. Of several processes each
  reads its own `rows` of every batch and no others: batch i of all together
  holds the same problems in the same order however many there are.

  Args:
    source: random access to records, e.g. of `TaskKit.load_source`.
    record_arrays: the arrays of one record, of the task's `TaskKit`.
    batch_size: P, problems a batch.
    seed: of the shuffles.
    shuffle: False keeps the order of the source.
    rows: those of each batch to give, of `sharding.process_slice`.
    drop_remainder: leave out a last, smaller batch.
    num_epochs: None repeats forever.

  Returns:
    An iterator of dicts, the arrays of N records stacked. `get_state()` is a
    small JSON-able dict; `set_state` on an equal iterator goes on exactly where
    it was taken.

  Raises:
    ValueError: a size out of range, or no complete batch.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size {batch_size} must be at least 1')
  total = len(source) * (num_epochs or 1)
  if total < (batch_size if drop_remainder else 1):
    raise ValueError(
      f'{len(source)} problems give no batch of {batch_size}: lower batch_size '
      'or use a larger split'
    )

  def stack(indices):
    records = [record_arrays(source[i]) for i in indices[rows].tolist()]
    return {k: np.stack([r[k] for r in records]) for k in records[0]}

  dataset = grain.MapDataset.range(len(source))
  if shuffle:
    dataset = dataset.shuffle(seed=seed)
  dataset = dataset.repeat(num_epochs)
  dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
  dataset = dataset.map(stack)
  # Records are a few hundred bytes: one thread that reads ahead is plenty.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(dataset.to_iter_dataset(options))


def first_fit(lengths: Sequence[int], length: int) -> list[int]:
  """Returns the row of each trace: the first that still has room for it.

  At most one row stays half empty or worse, so rows <= 2 * sum(lengths)/length
  + 1.
  """
  # The room of every row that may be opened, as the leaves of a tree whose
  # nodes hold the most room below them: the first row with room is found in
  # log(N) steps, and an unopened one is always the last resort.
  leaves = 1 << max(len(lengths) - 1, 0).bit_length()
  room, rows = [length] * (2 * leaves), []
  for size in lengths:
    node = 1
    while node < leaves:
      node *= 2
      node += room[node] < size
    rows.append(node - leaves)
    room[node] -= size
    while node > 1:
      node //= 2
      room[node] = max(room[2 * node], room[2 * node + 1])
  return rows


def pack(
  examples: Sequence[Trace], length: int, *, num_rows: int | None = None
) -> Batch:
  """Returns rows of exactly `length` tokens, filled first-fit with traces.

  Args:
    examples: pairs of tokens i32[T], T <= length, and either the index from
      which tokens count for the loss (at least 1: the first token of a trace
      has nothing to be predicted from) or their mask bool[T].
    length: L.
    num_rows: R; None takes as many rows as needed. Rows beyond are left out,
      with the traces in them; missing rows are all padding.

  Returns:
    tokens i32[R,L]; positions i32[R,L], restarting at 0, -1 on padding;
    segment_ids i32[R,L], 0, 1, ... within a row, -1 on padding; loss_mask
    bool[R,L], True on tokens to be predicted.

  Raises:
    ValueError: a trace is empty or longer than a row, or its loss begins at
      token 0.
  """
  for index, (tokens, _) in enumerate(examples):
    if not 0 < len(tokens) <= length:
      raise ValueError(
        f'trace {index} has {len(tokens)} tokens: a row holds 1 to {length}; '
        'raise length or leave it out'
      )
  places = first_fit([len(tokens) for tokens, _ in examples], length)
  size = num_rows or max(places, default=-1) + 1
  batch = {
    'tokens': np.full((size, length), tokenizer.PAD, np.int32),
    'positions': np.full((size, length), -1, np.int32),
    'segment_ids': np.full((size, length), -1, np.int32),
    'loss_mask': np.zeros((size, length), bool),
  }
  ends, counts = [0] * size, [0] * size
  for index, ((tokens, loss), row) in enumerate(zip(examples, places)):
    mask = _loss_mask(loss, len(tokens), index)
    if row >= size:
      continue
    place = slice(ends[row], ends[row] + len(tokens))
    batch['tokens'][row, place] = tokens
    batch['positions'][row, place] = np.arange(len(tokens))
    batch['segment_ids'][row, place] = counts[row]
    batch['loss_mask'][row, place] = mask
    ends[row] = place.stop
    counts[row] += 1
  return batch


def _loss_mask(loss, size: int, index: int) -> np.ndarray:
  if np.ndim(loss) == 0:
    mask = np.arange(size) >= loss
  else:
    mask = np.asarray(loss, bool)
  if mask.shape != (size,) or mask[0]:
    raise ValueError(
      f'trace {index}: the loss must be a start in 1..{size} or a mask of '
      f'{size} tokens whose first is False, for nothing comes before it'
    )
  return mask


def packed_mask(segment_ids: jax.Array) -> jax.Array:
  """Returns the attention mask of packed rows, for `apply_fn`'s `mask`.

    mask[r, q, l] = (l <= q) and segment[r, q] == segment[r, l] >= 0

  Args:
    segment_ids: i32[R,L], -1 on padding.

  Returns:
    bool[R,L,L]: query q attends to l.
  """
  if segment_ids.ndim != 2:
    raise ValueError(f'segment_ids {segment_ids.shape} must have rank 2, [R,L]')
  query, key = segment_ids[:, :, None], segment_ids[:, None, :]
  place = jnp.arange(segment_ids.shape[1])
  return (query == key) & (query >= 0) & (place[:, None] >= place[None, :])


class CountedBatches(Iterator[Batch]):
  """An endless iterator whose batch i is a pure function of i.

  Its whole state is a counter and the seed, so that resuming is exact by
  construction.
  """

  def __init__(self, make_batch: Callable[[int], Batch], seed: int):
    self._make_batch = make_batch
    self._state = {'next_batch': 0, 'seed': int(seed)}

  def __next__(self) -> Batch:
    batch = self._make_batch(self._state['next_batch'])
    self._state['next_batch'] += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns a JSON-able dict, to be given to `set_state`."""
    return dict(self._state)

  def set_state(self, state: Mapping[str, Any]):
    """Goes on from where `state` was taken.

    Raises:
      ValueError: the state belongs to another seed.
    """
    if state.get('seed') != self._state['seed'] or 'next_batch' not in state:
      raise ValueError(
        f'data state {dict(state)} does not belong to these batches with seed '
        f'{self._state["seed"]}: resume with the seed that it was saved with'
      )
    self._state['next_batch'] = int(state['next_batch'])


def sft_batches(
  problems: Sequence[Any],
  *,
  sample_traces: Callable[..., list[Trace]],
  max_trace_length: Callable[..., int],
  batch_size: int,
  length: int,
  seed: int = 0,
  fill: float = 0.9,
  **trace_options,
) -> CountedBatches:
  """Returns endless packed batches of fresh warm-start traces.

  Traces are drawn until they fill the share `fill` of the batch and packed
  longest first: a long trace always finds room, so that packing doesn't bias
  their lengths. (Drawing until one doesn't fit would drop the long ones.)

  Args:
    problems: of the training split, as `sample_traces` takes them.
    sample_traces, max_trace_length: of the task's `TaskKit`.
    batch_size: R, rows a batch.
    length: L, tokens a row; at least the longest trace.
    seed: batch i depends on this and i alone.
    fill: share of tokens that are not padding, in (0, 1).
    **trace_options: of `sample_traces`.

  Raises:
    ValueError: `fill` out of range, no problem, or rows too short.
  """
  if not 0 < fill < 1:
    raise ValueError(f'fill {fill} must be in (0, 1)')
  if not len(problems) or batch_size < 1:
    raise ValueError(
      f'{len(problems)} problems in batches of {batch_size} rows: give at '
      'least one of each'
    )
  longest = max_trace_length(problems, **trace_options)
  if longest > length:
    raise ValueError(
      f'length={length} is given, and a trace may have {longest} tokens: raise '
      'it or lower max_episodes'
    )

  def make_batch(index: int) -> Batch:
    rng = np.random.default_rng([seed, 0, index])  # as shipped bases were made
    drawn, total = [], 0
    while total < fill * batch_size * length:
      drawn += sample_traces(problems, rng, 1, **trace_options)
      total += len(drawn[-1][0])
    drawn.sort(key=lambda trace: -len(trace[0]))
    return pack(drawn, length, num_rows=batch_size)

  return CountedBatches(make_batch, seed)


def packed_batches(
  examples: Sequence[Trace],
  *,
  batch_size: int,
  length: int,
  seed: int = 0,
) -> CountedBatches:
  """Returns endless batches of a fixed set of examples, e.g. `chat_jsonl`'s.

  The examples are packed once, in random order; every epoch is a new shuffle
  of the rows, and batches run on across the ends of epochs.

  Args:
    examples: as in `pack`, at least one.
    batch_size: R, rows a batch.
    length: L, tokens a row; at least the longest example.
    seed: of the packing and the shuffles.

  Raises:
    ValueError: no example, or one that doesn't fit a row.
  """
  if not examples or batch_size < 1:
    raise ValueError(
      f'{len(examples)} examples in batches of {batch_size} rows: give at '
      'least one of each'
    )
  order = np.random.default_rng(seed).permutation(len(examples))
  rows = pack([examples[index] for index in order], length)
  size = len(rows['tokens'])

  @functools.lru_cache(maxsize=2)
  def shuffled(epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)

  def make_batch(index: int) -> Batch:
    places = range(index * batch_size, (index + 1) * batch_size)
    chosen = [shuffled(place // size)[place % size] for place in places]
    return {name: value[chosen] for name, value in rows.items()}

  return CountedBatches(make_batch, seed)
