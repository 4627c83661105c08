"""Measuring in batches, with what is finished kept."""

import numpy as np
import pytest

from meta_rl import batchwise

BATCHES = [
  {'problem': np.array([0, 1]), 'counts': np.array([True, True])},
  {'problem': np.array([2, 0]), 'counts': np.array([True, False])},
]


class Kept(dict):
  """Parts in a dict."""

  read, write = dict.get, dict.__setitem__


def run(kept=None):
  """Returns what was found, and where the batches that were measured begin."""
  offsets, told = [], []

  def measure_batch(batch, offset):
    offsets.append(offset)
    rows = offset + np.arange(2)
    return {'row': rows[batch['counts']], 'b': np.ones(batch['counts'].sum())}

  found = batchwise.in_batches(
    measure_batch,
    BATCHES,
    names={'row', 'b'},
    kept=kept,
    on_batch=lambda *args: told.append(args),
  )
  assert told == [(2, 4), (4, 4)]
  return found['row'].tolist(), offsets


def test_only_what_is_missing_is_measured():
  assert run() == ([0, 1, 2], [0, 2])
  kept = Kept()
  assert run(kept) == ([0, 1, 2], [0, 2])
  assert run(kept) == ([0, 1, 2], [])
  del kept[0]
  assert run(kept) == ([0, 1, 2], [0])


@pytest.mark.parametrize(
  'part',
  [
    {'row': np.array([7])},
    {'row': np.array([7]), 'b': np.ones(1), 'c': np.ones(1)},
    {'row': np.array([7, 8]), 'b': np.ones(2)},  # with the filler
    {'row': np.array([7]), 'b': np.ones(())},
    {},
  ],
)
def test_a_part_of_other_names_or_rows_is_measured_again(part):
  kept = Kept({1: part})
  assert run(kept) == ([0, 1, 2], [0, 2])
  assert run(kept) == ([0, 1, 2], [])
