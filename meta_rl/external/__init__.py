"""Rollouts made elsewhere: JSONL files of them, in and out."""

from meta_rl.external.batches import (
  PREFIX,
  Group,
  RolloutBatches,
  collate,
  group_rows,
)
from meta_rl.external.engines import from_openai, from_sglang, from_vllm
from meta_rl.external.parts import Parts, parts_of
from meta_rl.external.rows import Row, read_rows, rows_of

__all__ = [
  'PREFIX',
  'Group',
  'Parts',
  'RolloutBatches',
  'Row',
  'collate',
  'from_openai',
  'from_sglang',
  'from_vllm',
  'group_rows',
  'parts_of',
  'read_rows',
  'rows_of',
]
