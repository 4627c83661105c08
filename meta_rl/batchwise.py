"""Measuring problems batch by batch, so that a killed measurement goes on.

A batch is of `held_out.problem_batches`: equal shapes, 'problem' says which
problem a row is of, and 'counts' which rows are no filler.
"""

from collections.abc import Callable, Sequence, Set
from typing import Protocol

import numpy as np

Part = dict[str, np.ndarray]


class Kept(Protocol):
  """What was measured of earlier batches, by their number."""

  def read(self, index: int) -> Part | None:
    """Returns what was written of a batch; None: nothing."""

  def write(self, index: int, part: Part):
    """Keeps what was measured of a batch."""


def in_batches(
  measure_batch: Callable[[dict, int], Part],
  batches: Sequence[dict],
  *,
  names: Set[str],
  kept: Kept | None = None,
  on_batch: Callable[[int, int], None] | None = None,
) -> Part:
  """Returns what was measured on all rows that are no filler, numpy (host).

  Args:
    measure_batch: of a batch and the number of its first row, filler counted,
      gives what was measured of its rows without filler.
    batches: in order.
    names: of what it gives: a kept part of other names, or of another number of
      rows, is damaged, and measured again.
    kept: where finished batches are looked for before they are measured, and
      put after; None: nowhere.
    on_batch: is told how many rows are done, and of how many, after each batch.
  """
  parts = []
  total = sum(len(batch['problem']) for batch in batches)
  for index, batch in enumerate(batches):
    rows = len(batch['problem'])
    offset = index * rows
    part = None if kept is None else kept.read(index)
    if part is None or not _is_whole(part, names, int(batch['counts'].sum())):
      part = measure_batch(batch, offset)
      if kept is not None:
        kept.write(index, part)
    parts.append(part)
    if on_batch is not None:
      on_batch(offset + rows, total)
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _is_whole(part: Part, names: Set[str], rows: int) -> bool:
  return part.keys() == names and all(
    array.ndim and len(array) == rows for array in part.values()
  )
