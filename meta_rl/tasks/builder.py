"""Countdown problems as a TFDS dataset in array_record, without TensorFlow.

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

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from meta_rl import tokenizer
from meta_rl.tasks import countdown, expressions

_OP_NAMES = {'+': 'add', '-': 'sub', '*': 'mul', '/': 'div'}


@dataclasses.dataclass(eq=False, kw_only=True)
class CountdownConfig(tfds.core.BuilderConfig):
  """What a dataset of problems is made of; its name spells out every field.

  Attributes:
    n, low, high, ops, max_answers, min_target, max_target, max_value,
      max_multisets, seed: as in `countdown.problem_set`.
    orders: at most as many orders of the numbers are prompts of one problem.
  """

  n: int = 3
  low: int = 1
  high: int = 10
  ops: str = '+-'
  max_answers: int = 8
  min_target: int = 1
  max_target: int = tokenizer.MAX_INTEGER
  max_value: int = tokenizer.MAX_INTEGER
  max_multisets: int = 5000
  orders: int = 6
  seed: int = 0


def make_config(**fields) -> CountdownConfig:
  """Returns a config whose name is a function of its fields.

  Raises:
    ValueError: an unknown field, or operators that don't exist.
  """
  known = [f.name for f in dataclasses.fields(CountdownConfig)]
  known = known[len(dataclasses.fields(tfds.core.BuilderConfig)) :]
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(f'unknown Countdown options {unknown}: known are {known}')
  config = CountdownConfig(name='unnamed', **fields)
  expressions.check_ops(config.ops)
  name = (
    f'n{config.n}_{config.low}to{config.high}_'
    f'{"_".join(_OP_NAMES[op] for op in config.ops)}_'
    f'answers{config.max_answers}_target{config.min_target}to'
    f'{config.max_target}_max{config.max_value}_sets{config.max_multisets}_'
    f'orders{config.orders}_seed{config.seed}'
  )
  return dataclasses.replace(config, name=name)


class Countdown(tfds.core.GeneratorBasedBuilder):
  """Prompts of Countdown, split by problem into train, validation and test.

  A record is {'numbers' i32[n] in the order to show, 'target' i32[],
  'answers' i32[max_answers, 2n-1], unused rows zero, 'num_answers' i32[]}.
  Records keep the order of `countdown.prompt_orders`: a slice from the front
  holds as many distinct problems as it can.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded, so no checksums lie beside the code; looking for
  # them needs importlib_resources, which TFDS doesn't declare.
  code_path = None

  def __init__(self, *, data_dir: str | os.PathLike, **fields):
    super().__init__(
      data_dir=os.fspath(data_dir),
      config=make_config(**fields),
      file_format='array_record',
    )

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    rows = (config.max_answers, 2 * config.n - 1)
    features = {
      'numbers': tfds.features.Tensor(shape=(config.n,), dtype=np.int32),
      'target': tfds.features.Scalar(dtype=np.int32),
      'answers': tfds.features.Tensor(shape=rows, dtype=np.int32),
      'num_answers': tfds.features.Scalar(dtype=np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Reach a target using every given number exactly once.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in countdown.SPLITS}

  def _generate_examples(self, split: str):
    config = self.builder_config
    problems = countdown.problem_set(
      split,
      n=config.n,
      low=config.low,
      high=config.high,
      ops=config.ops,
      max_answers=config.max_answers,
      min_target=config.min_target,
      max_target=config.max_target,
      max_value=config.max_value,
      max_multisets=config.max_multisets,
      seed=config.seed,
    )
    if not problems:
      raise ValueError(
        f'Countdown config {config.name} has no {split} problem: widen '
        'low..high, the target range or max_answers'
      )
    prompts = countdown.prompt_orders(
      problems, orders=config.orders, seed=config.seed
    )
    for key, problem in enumerate(prompts):
      answers = np.zeros((config.max_answers, 2 * config.n - 1), np.int32)
      answers[: len(problem.answers)] = problem.answers
      yield (
        key,
        {
          'numbers': np.asarray(problem.numbers, np.int32),
          'target': problem.target,
          'answers': answers,
          'num_answers': len(problem.answers),
        },
      )


def record_problem(
  record: Mapping[str, np.ndarray],
  *,
  ops: str,
  max_value: int = tokenizer.MAX_INTEGER,
) -> countdown.Problem:
  """Returns the `countdown.Problem` of one record of a data source.

  Args:
    record: as in `Countdown`.
    ops, max_value: of the dataset's config; they are not in the records.
  """
  answers = np.asarray(record['answers'])[: int(record['num_answers'])]
  return countdown.Problem(
    tuple(np.asarray(record['numbers']).tolist()),
    int(record['target']),
    tuple(map(tuple, answers.tolist())),
    ops,
    max_value,
  )


def load_source(
  data_dir: str | os.PathLike, split: str, **config
) -> Sequence[dict[str, Any]]:
  """Returns the random-access data source of a split, built on first use.

  Args:
    data_dir: local folder that holds all datasets.
    split: 'train', 'validation' or 'test', or a TFDS slice such as
      'test[:2000]'.
    **config: fields of `CountdownConfig`.

  Returns:
    A `tfds.data_source` of records as in `Countdown`.

  Raises:
    ValueError: an unknown split or option, or a config without problems.
  """
  if split.partition('[')[0] not in countdown.SPLITS:
    raise ValueError(
      f'split {split!r} must be one of {countdown.SPLITS}, or a slice of one '
      "such as 'test[:2000]'"
    )
  if '://' in os.fspath(data_dir):
    raise ValueError(f'data_dir {str(data_dir)!r} must be a local folder')
  root = pathlib.Path(data_dir).expanduser().absolute()
  root.mkdir(parents=True, exist_ok=True)
  name = make_config(**config).name
  final = root / Countdown.name / name / str(Countdown.VERSION)
  with _locked(root / '.lock'):
    if not _is_whole(final):
      _build(root, final, config)
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
    for split in countdown.SPLITS:
      # A file's index is at its end: the last record tells a file cut short.
      builder.as_data_source(split=split)[_last(builder, split)]
    return True
  except Exception:  # damage has no one type: cut files, metadata, indices
    return False


def _build(root: pathlib.Path, final: pathlib.Path, config: Mapping[str, Any]):
  """Builds beside the final folder, then moves it into place at once."""
  for left_over in root.glob('.build-*'):
    shutil.rmtree(left_over, ignore_errors=True)  # of a process that was killed
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='.build-', dir=root))
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # it warns of a config of one's own
  try:
    builder = Countdown(data_dir=scratch, **config)
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
