"""The held-out problems of an evaluation, measured in batches of one shape."""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from meta_rl import held_out
from meta_rl.eval_partial import Partial, Stage
from meta_rl.tasks.base import TaskKit


@dataclasses.dataclass(frozen=True)
class Problems:
  """The first problems of a split, measured in batches of one shape.

  Attributes:
    source: records of `TaskKit.load_source`.
    kit: of the task.
    number: N, how many.
    batch_size: traces at a time, or as many as there are.
    partial: where finished batches are kept; None: nowhere.
  """

  source: Sequence
  kit: TaskKit
  number: int
  batch_size: int
  partial: Partial | None = None

  def first(self, number: int) -> 'Problems':
    """Returns the first of them, all if there are fewer."""
    return dataclasses.replace(self, number=min(number, self.number))

  def batches(self, repeats: int = 1) -> list[dict[str, np.ndarray]]:
    """Returns `held_out.problem_batches` with so many rows a problem."""
    return held_out.problem_batches(
      self.source,
      record_arrays=self.kit.record_arrays,
      num_problems=self.number,
      batch_size=min(self.batch_size, max(1, self.number * repeats)),
      repeats=repeats,
    )

  def measure(
    self,
    calls,
    params,
    key,
    *,
    repeats: int = 1,
    stage: str | None = None,
    **options,
  ) -> dict[str, np.ndarray]:
    """Returns `held_out.measure` of them.

    Args:
      calls, params, key: as there.
      repeats: rows a problem.
      stage: a name of its own for each measurement of an evaluation, under
        which its batches are kept; None: they are not.
      **options: of `held_out.measure`.
    """
    if stage is not None and (kept := self.kept(stage)) is not None:
      options['kept'] = kept
    return held_out.measure(
      calls, params, self.batches(repeats), key, **options
    )

  def kept(self, stage: str) -> Stage | None:
    """Returns where batches of a measurement are kept; None: nowhere."""
    return None if self.partial is None else self.partial.stage(stage)

  @functools.cached_property
  def clusters(self) -> np.ndarray:
    """i[N], one id for all prompts of one and the same problem (a hash).

    Equal ids in two evaluations mean equal problems: the report pairs
    evaluations by them.
    """
    keys = (self.kit.cluster_key(self.source[i]) for i in range(self.number))
    return np.asarray([zlib.crc32(key.encode()) for key in keys])

  def digest(self) -> str:
    """Returns a hash of all arrays of the problems, in order."""
    found = hashlib.blake2b(digest_size=16)
    for i in range(self.number):
      arrays = self.kit.record_arrays(self.source[i])
      for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(f'{name} {array.dtype} {array.shape} '.encode())
        found.update(array.tobytes())
    return found.hexdigest()
