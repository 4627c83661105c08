"""Problem batches, packing, and batches for supervised fine-tuning."""

import functools
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import data, tokenizer
from meta_rl.tasks import builder, countdown, traces


@pytest.fixture(scope='module')
def problems():
  return countdown.prompt_orders(countdown.problem_set('train', high=6))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return builder.load_source(folder, 'train', high=8, orders=2)


# Countdown's: any task's do.
iterate = functools.partial(
  data.problem_iterator, record_arrays=countdown.record_arrays
)
sft_batches = functools.partial(
  data.sft_batches,
  sample_traces=traces.sample_traces,
  max_trace_length=traces.longest,
)


def numbers(iterator, count):
  return [next(iterator)['numbers'] for _ in range(count)]


def test_batches_are_problem_arrays(source):
  iterator = iterate(source, batch_size=8, shuffle=False)
  problems = [
    builder.record_problem(source[index], ops='+-') for index in range(8)
  ]
  expected = countdown.problem_arrays(problems, max_answers=8)
  batch = next(iterator)
  assert set(batch) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(batch[name], value)
    assert batch[name].dtype == value.dtype


def test_resume_is_exact_across_epochs(source):
  iterator = iterate(source, batch_size=64, seed=1)
  numbers(iterator, 3)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = numbers(iterator, 30)
  fresh = iterate(source, batch_size=64, seed=1)
  fresh.set_state(state)
  np.testing.assert_array_equal(numbers(fresh, 30), expected)
  assert 33 * 64 > 2 * len(source)


def test_epochs_are_reshuffled_and_complete(source):
  size = len(source)
  iterator = iterate(source, batch_size=size, seed=1)
  batches = [next(iterator) for _ in range(2)]
  rows = [
    np.column_stack([b['numbers'], b['target']]).tolist() for b in batches
  ]
  assert rows[0] != rows[1]
  assert sorted(rows[0]) == sorted(rows[1])
  other = iterate(source, batch_size=size, seed=2)
  assert numbers(other, 1)[0].tolist() != batches[0]['numbers'].tolist()


@pytest.mark.parametrize('count', [2, 3])
def test_processes_read_their_rows_of_the_same_batches(source, count):
  whole = iterate(source, batch_size=6, seed=1)
  size = 6 // count
  parts = [
    iterate(source, batch_size=6, seed=1, rows=slice(i * size, (i + 1) * size))
    for i in range(count)
  ]
  for _ in range(len(source) // 3):
    found = np.concatenate([next(part)['numbers'] for part in parts])
    np.testing.assert_array_equal(found, next(whole)['numbers'])
  assert parts[0].get_state() == whole.get_state()


def test_other_rows_are_not_read(source):
  read = []

  class Source:
    __len__ = source.__len__

    def __getitem__(self, index):
      read.append(index)
      return source[index]

  next(iterate(Source(), batch_size=8, shuffle=False, rows=slice(4, 8)))
  assert read
  assert all(index % 8 >= 4 for index in read)


def test_remainder(source):
  size = len(source)
  options = {'batch_size': size - 1, 'shuffle': False, 'num_epochs': 1}
  kept = iterate(source, **options, drop_remainder=False)
  assert [len(batch['target']) for batch in kept] == [size - 1, 1]
  dropped = iterate(source, **options)
  assert [len(batch['target']) for batch in dropped] == [size - 1]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'batch_size': 0}, 'batch_size 0'),
    ({'batch_size': 10**6}, 'give no batch of 1000000'),
  ],
)
def test_iterator_rejects(source, options, message):
  with pytest.raises(ValueError, match=message):
    iterate(source, **options)


def test_pack_by_hand():
  # First fit into rows of 6: 4 -> row 0; 3 -> row 1, for 2 are left in row 0;
  # 2 -> row 0; 3 -> row 1.
  rows = [([10, 11, 12, 13], 2), ([20, 21, 22], 1), ([30, 31], 1)]
  rows += [([40, 41, 42], np.asarray([False, True, False]))]
  batch = data.pack(rows, 6)
  expected = {
    'tokens': [[10, 11, 12, 13, 30, 31], [20, 21, 22, 40, 41, 42]],
    'positions': [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]],
    'segment_ids': [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]],
    'loss_mask': [[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0]],
  }
  for name, value in expected.items():
    np.testing.assert_array_equal(batch[name], value)
  assert batch['loss_mask'].dtype == bool
  assert batch['tokens'].dtype == batch['positions'].dtype == np.int32


def test_first_fit_is_the_first_row_with_room():
  assert data.first_fit([], 6) == []
  assert data.first_fit([6], 6) == [0]
  # 4 opens row 0; 3 does not fit its 2; 2 does; 4 opens a third; 3 fills row 1.
  assert data.first_fit([4, 3, 2, 4, 3], 6) == [0, 1, 0, 2, 1]
  lengths = np.random.default_rng(0).integers(1, 101, 500).tolist()
  free, rows = [], []
  for size in lengths:  # the definition, in quadratic time
    row = next((r for r, room in enumerate(free) if room >= size), len(free))
    free += [100] * (row == len(free))
    free[row] -= size
    rows.append(row)
  assert data.first_fit(lengths, 100) == rows


def test_first_fit_of_many_is_quick():
  lengths = np.random.default_rng(0).integers(1, 101, 50_000).tolist()
  began = time.perf_counter()
  rows = data.first_fit(lengths, 100)
  assert time.perf_counter() - began < 10  # minutes, were it quadratic
  assert np.bincount(rows, lengths).max() <= 100


def test_pack_padding_and_fixed_rows():
  batch = data.pack([([10, 11], 1)], 4, num_rows=2)
  np.testing.assert_array_equal(batch['tokens'], [[10, 11, 0, 0], [0] * 4])
  np.testing.assert_array_equal(batch['positions'], [[0, 1, -1, -1], [-1] * 4])
  np.testing.assert_array_equal(
    batch['segment_ids'], [[0, 0, -1, -1], [-1] * 4]
  )
  assert batch['loss_mask'].sum() == 1
  full = data.pack([([1, 2, 3], 1), ([4, 5, 6], 1)], 4, num_rows=1)
  np.testing.assert_array_equal(full['tokens'], [[1, 2, 3, 0]])


def test_pack_keeps_every_trace(problems):
  drawn = traces.sample_traces(problems, np.random.default_rng(0), 60)
  batch = data.pack(drawn, 512)
  found = []
  for row in range(len(batch['tokens'])):
    ids = batch['segment_ids'][row]
    for segment in range(ids.max() + 1):
      place = ids == segment
      tokens = batch['tokens'][row, place]
      start = int(batch['loss_mask'][row, place].argmax())
      np.testing.assert_array_equal(
        batch['positions'][row, place], np.arange(len(tokens))
      )
      assert batch['loss_mask'][row, place][start:].all()
      found.append((tokens.tolist(), start))
  assert sorted(found) == sorted((t.tolist(), start) for t, start in drawn)


@pytest.mark.parametrize(
  'rows, message',
  [
    ([([1, 2, 3], 1)] * 2 + [([1] * 9, 1)], 'trace 2 has 9 tokens'),
    ([([], 0)], 'trace 0 has 0 tokens'),
    ([([1, 2], 0)], 'nothing comes before'),
    ([([1, 2], np.ones(3, bool))], 'a mask of 2 tokens'),
  ],
)
def test_pack_rejects(rows, message):
  with pytest.raises(ValueError, match=message):
    data.pack(rows, 8)


def test_packed_mask_by_hand():
  mask = data.packed_mask(jnp.asarray([[0, 0, 1, -1]]))
  expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(mask[0], expected)
  with pytest.raises(ValueError, match='rank 2'):
    data.packed_mask(jnp.zeros(3, jnp.int32))


def test_sft_batches_resume(problems):
  options = {'batch_size': 2, 'length': 512, 'seed': 5}
  batches = sft_batches(problems, **options)
  next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  expected = [next(batches) for _ in range(2)]
  fresh = sft_batches(problems, **options)
  fresh.set_state(state)
  for batch in expected:
    again = next(fresh)
    for name, value in batch.items():
      np.testing.assert_array_equal(again[name], value)
  with pytest.raises(ValueError, match='resume with the seed'):
    sft_batches(problems, batch_size=2, length=512).set_state(state)


def test_sft_batches_are_full_and_keep_long_traces(problems):
  batches = sft_batches(problems, batch_size=8, length=512)
  filled, long, count = [], 0, 0
  for _ in range(40):
    batch = next(batches)
    assert batch['tokens'].shape == (8, 512)
    filled.append(np.mean(batch['positions'] >= 0))
    ends = batch['tokens'] == tokenizer.EOS
    count += ends.sum()
    # A trace of more than 16 episodes: 7 + 17 * 9 + 1 + 6 = 167 tokens.
    long += (ends & (batch['positions'] >= 166)).sum()
  assert 0.88 < np.mean(filled) < 1
  assert long / count == pytest.approx(0.06, abs=0.015)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'length': 400}, 'length=400 is given, and a trace may have 446 tokens'),
    ({'fill': 1.0}, 'fill 1.0'),
    ({'batch_size': 0}, 'batches of 0 rows'),
  ],
)
def test_sft_batches_reject(problems, options, message):
  with pytest.raises(ValueError, match=message):
    sft_batches(problems, **{'batch_size': 2, 'length': 512, **options})


def test_packed_batches_go_through_all_rows():
  examples = [([index, index, index], 1) for index in range(1, 8)]
  options = {'batch_size': 2, 'length': 3, 'seed': 3}
  batches = data.packed_batches(examples, **options)
  seen = np.concatenate([next(batches)['tokens'][:, 0] for _ in range(7)])
  # 14 rows are two epochs of 7, in different orders.
  assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(1, 8))
  assert seen[:7].tolist() != seen[7:].tolist()
  with pytest.raises(ValueError, match='0 examples'):
    data.packed_batches([], **options)
