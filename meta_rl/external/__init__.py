"""Rollouts made elsewhere: JSONL files of them, in and out."""

from meta_rl.external.batches import (
  PREFIX,
  Group,
  RolloutBatches,
  collate,
  group_rows,
)
from meta_rl.external.rows import Row, read_rows, rows_of

__all__ = [
  'PREFIX',
  'Group',
  'RolloutBatches',
  'Row',
  'collate',
  'group_rows',
  'read_rows',
  'rows_of',
]
