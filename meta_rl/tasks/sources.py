"""Datasets of problems: TFDS builders in array_record, without TensorFlow.

`load_source` builds on first use and returns a random-access data source. A
dataset is built in a folder of its own and renamed into place when complete,
under a lock: processes that start together build once, and a build that was
killed leaves nothing that a later run would read.
"""

import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from meta_rl.tasks.base import SPLITS


def make_config(
  config_class: type[tfds.core.BuilderConfig], task: str, fields: Mapping
) -> tfds.core.BuilderConfig:
  """Returns a config of `fields`, not named yet.

  Args:
    config_class: a dataclass with only keywords and defaults.
    task: what the message calls the task.
    fields: values of fields that `config_class` adds to a BuilderConfig.

  Raises:
    ValueError: an unknown field.
  """
  known = [f.name for f in dataclasses.fields(config_class)]
  known = known[len(dataclasses.fields(tfds.core.BuilderConfig)) :]
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(f'unknown {task} options {unknown}: known are {known}')
  return config_class(name='unnamed', **fields)


def load_source(
  builder_class: type[tfds.core.GeneratorBasedBuilder],
  name: str,
  data_dir: str | os.PathLike,
  split: str,
  **fields,
) -> Sequence[dict[str, Any]]:
  """Returns the random-access data source of a split, built on first use.

  Args:
    builder_class: of a builder with the splits `SPLITS`, made by
      `builder_class(data_dir=..., **fields)`.
    name: of its config.
    data_dir: local folder that holds all datasets.
    split: 'train', 'validation' or 'test', or a TFDS slice such as
      'test[:2000]'.
    **fields: of the config.

  Raises:
    ValueError: an unknown split, or a folder that is not local.
  """
  if split.partition('[')[0] not in SPLITS:
    raise ValueError(
      f'split {split!r} must be one of {SPLITS}, or a slice of one '
      "such as 'test[:2000]'"
    )
  if '://' in os.fspath(data_dir):
    raise ValueError(f'data_dir {str(data_dir)!r} must be a local folder')
  root = pathlib.Path(data_dir).expanduser().absolute()
  root.mkdir(parents=True, exist_ok=True)
  final = root / builder_class.name / name / str(builder_class.VERSION)
  with _locked(root / '.lock'):
    if not _is_whole(final):
      _build(builder_class, root, final, fields)
  builder = tfds.builder_from_directory(os.fspath(final))
  return builder.as_data_source(split=split)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds an exclusive lock, which the system drops if the process dies."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _last(builder: tfds.core.DatasetBuilder, split: str) -> int:
  """Returns the index of the last record of a split."""
  return builder.info.splits[split].num_examples - 1


def _is_whole(folder: pathlib.Path) -> bool:
  """Whether the records that the metadata of `folder` promises can be read."""
  if not (folder / 'dataset_info.json').exists():
    return False
  try:
    builder = tfds.builder_from_directory(os.fspath(folder))
    for split in SPLITS:
      # A file's index is at its end: the last record tells a file cut short.
      builder.as_data_source(split=split)[_last(builder, split)]
    return True
  except Exception:  # damage has no one type: cut files, metadata, indices
    return False


def _build(builder_class, root: pathlib.Path, final: pathlib.Path, fields):
  """Builds beside the final folder, then moves it into place at once."""
  for left_over in root.glob('.build-*'):
    shutil.rmtree(left_over, ignore_errors=True)  # of a process that was killed
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='.build-', dir=root))
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # it warns of a config of one's own
  try:
    builder = builder_class(data_dir=scratch, **fields)
    with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloads
      tfds.disable_progress_bar()
      builder.download_and_prepare()
      tfds.enable_progress_bar()
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(builder.data_dir, final)
  finally:
    logging.set_verbosity(verbosity)
    shutil.rmtree(scratch, ignore_errors=True)
