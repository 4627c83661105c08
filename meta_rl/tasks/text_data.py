"""Text problems of any files as a TFDS dataset in array_record.

    source = load_source(data_dir, 'train', path='/data/gsm8k',
                         answer_format='gsm8k')
    record_text(source[0])    # {'question': ..., 'answer': ..., 'key': ...}

Problems are split so that nothing held out is trained on: a test or validation
file stays what it is, what it shares with the train file is taken out of the
train file, and where there is no such file, a hash of the question alone
decides. How a dataset is built and read is said in meta_rl/tasks/sources.py.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from meta_rl import checks
from meta_rl.tasks import sources, text_files
from meta_rl.tasks.base import SPLITS, split_of_key
from meta_rl.tasks.text_files import Problem

# Options of well-known data sets, to be given with `**`; with `path=...` and
# `hub=''` those of a local copy. That the hub holds MATH under this name, with
# these columns, is not verified here (its first home is no more): where the
# cache holds another copy, give `path` or `hub` and the columns' names.
DATASETS = {
  'gsm8k': {'hub': 'openai/gsm8k', 'subset': 'main', 'answer_format': 'gsm8k'},
  'math': {'hub': 'EleutherAI/hendrycks_math', 'answer_format': 'boxed'},
}

# The key of a dataset's metadata for one question that was dropped.
_FIRST = 'first_contaminated'


@dataclasses.dataclass(eq=False, kw_only=True)
class TextConfig(tfds.core.BuilderConfig):
  """Where the problems are; the name is a hash of these and of the files.

  Attributes:
    path, hub, subset: as in `text_files.find_files`.
    test_path: a file or folder all of whose problems are the test split, in
      place of test files beside the others.
    answer_format, question_key, answer_key: as in `text_files.read_problems`.
    test_answer_format, test_question_key, test_answer_key: the same of
      `test_path`, where they differ; '': as above.
    validation_percent: of the questions, by their hash, where there is no
      validation file.
    test_percent: likewise, where there is no test file.
  """

  path: str = ''
  hub: str = ''
  subset: str = ''
  test_path: str = ''
  answer_format: str = 'plain'
  question_key: str = ''
  answer_key: str = ''
  test_answer_format: str = ''
  test_question_key: str = ''
  test_answer_key: str = ''
  validation_percent: int = 10
  test_percent: int = 10


def make_config(**fields) -> TextConfig:
  """Returns a config whose name changes with its fields and with the files.

  Raises:
    ValueError: an unknown field, one out of its range, or no such files.
  """
  config = sources.make_config(TextConfig, 'text', fields)
  checks.check_choice(
    'answer_format', config.answer_format, text_files.ANSWER_FORMATS
  )
  shares = config.validation_percent, config.test_percent
  if min(shares) < 1 or sum(shares) > 99:
    raise ValueError(
      f'validation_percent={shares[0]} and test_percent={shares[1]}: each must '
      'be at least 1, and something must be left to train on'
    )
  others = [n for n in _of_test(config) if n and not config.test_path]
  if others:
    raise ValueError(f'test_* {others} without test_path: give both or neither')
  digest = hashlib.blake2s()
  for split, file in _files(config):
    digest.update(f'{split} {_digest(file)} '.encode())
  names = [field.name for field in dataclasses.fields(TextConfig)]
  own = names[len(dataclasses.fields(tfds.core.BuilderConfig)) :]
  # Not where the files are: a copy of them is the same dataset.
  where = ('path', 'hub', 'subset', 'test_path')
  options = [f'{n}={getattr(config, n)}' for n in own if n not in where]
  digest.update(' '.join(options).encode())
  stem = pathlib.PurePath(config.path or config.hub).stem
  stem = ''.join(c if c.isalnum() else '_' for c in stem)[:40] or 'text'
  name = f'{stem}_{digest.hexdigest()[:16]}'
  return dataclasses.replace(config, name=name)


def split_problems(
  found: Mapping[str, Sequence[Problem]],
  *,
  validation_percent: int = 10,
  test_percent: int = 10,
) -> tuple[dict[str, list[Problem]], dict[str, int], str]:
  """Returns the problems of train, validation and test, and what was dropped.

  No two of all the problems that are left have the same normalised question: of
  several, one in test stays before one in validation before one in train, and
  the first of a split.

  Args:
    found: problems by 'train', 'validation' and 'test' as the files have them,
      or by 'all'.
    validation_percent, test_percent: as in `TextConfig`.

  Returns:
    (problems by split, counts, question). Counts: `duplicates`, dropped within
    their own split; `conflicts`, those of them whose answer was another;
    `contaminated_by_test` and `contaminated_by_validation`, dropped since those
    splits have them. The question is the first of these, '' without one.

  Raises:
    ValueError: a split would be empty.
  """
  if 'train' not in found and 'all' not in found:
    raise ValueError(
      f'there are files of {sorted(found)} and none to train on: add train*, '
      'or give one file and test_path'
    )
  counts = dict.fromkeys(
    (
      'duplicates',
      'conflicts',
      'contaminated_by_test',
      'contaminated_by_validation',
    ),
    0,
  )
  splits = {split: [] for split in SPLITS}
  percent = {
    'validation': 0 if 'validation' in found else validation_percent,
    'test': 0 if 'test' in found else test_percent,
  }
  percent['train'] = 100 - sum(percent.values())
  owners: dict[str, tuple[str, str]] = {}
  first = ''
  for split in ('test', 'validation', 'train', 'all'):
    for problem in found.get(split, ()):
      text = text_files.normalize_question(problem.question)
      owner, answer = owners.get(text, ('', ''))
      if owner == split:
        counts['duplicates'] += 1
        counts['conflicts'] += answer != problem.answer
      elif owner:
        counts[f'contaminated_by_{owner}'] += 1
        first = first or problem.question
      else:
        owners[text] = split, problem.answer
        held_out = split in ('test', 'validation')
        place = split if held_out else split_of_key(text, percent)
        splits[place].append(problem)
  empty = [split for split in SPLITS if not splits[split]]
  if empty:
    sizes = {split: len(problems) for split, problems in splits.items()}
    lost = sum(n for what, n in counts.items() if what.startswith('contam'))
    if empty[0] == 'train' and lost:
      raise ValueError(
        f'the problems give {sizes}: train is empty, since {lost} of its '
        f'problems, such as {_short(first)!r}, are held out too (as test or '
        'validation): give others to train on'
      )
    raise ValueError(
      f'the problems give {sizes}: {empty[0]} is empty; give more problems, a '
      f'{empty[0]} file, or other percentages'
    )
  return splits, counts, first


class TextProblems(tfds.core.GeneratorBasedBuilder):
  """Problems of files, split into train, validation and test.

  A record is {'question', 'answer', 'key', 'level'}, each bytes of UTF-8. The
  key is a hash of the normalised question: equal for one problem in whatever
  dataset. The level is '' where the files say nothing of it.
  """

  VERSION = tfds.core.Version('1.1.0')
  code_path = None  # as in `builder.Countdown`

  def __init__(self, *, data_dir: str | os.PathLike, **fields):
    config = make_config(**fields)
    self._splits, self._counts, self._first = _read(config)
    super().__init__(
      data_dir=os.fspath(data_dir), config=config, file_format='array_record'
    )

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      name: tfds.features.Text()
      for name in ('question', 'answer', 'key', 'level')
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Questions with one answer each.',
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(
        self._counts | {_FIRST: _short(self._first)}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str):
    for number, problem in enumerate(self._splits[split]):
      yield (
        number,
        {
          'question': problem.question,
          'answer': problem.answer,
          'key': question_key(problem.question),
          'level': problem.level,
        },
      )


def question_key(question: str) -> str:
  """Returns 16 hexadecimal digits, equal for equal normalised questions."""
  text = text_files.normalize_question(question)
  return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()


def load_source(
  data_dir: str | os.PathLike, split: str, **fields
) -> Sequence[dict[str, Any]]:
  """Returns the random-access data source of a split, built on first use.

  Args:
    data_dir, split: as in `sources.load_source`.
    **fields: of `TextConfig`.

  Raises:
    ValueError: in one line, whatever is wrong with an option or a file.
  """
  config = make_config(**fields)
  name = config.name
  source = sources.load_source(TextProblems, name, data_dir, split, **fields)
  # Here, since a build silences what is logged.
  for line in _notes(config, _folder(data_dir, name)):
    _say_once(os.fspath(data_dir), name, line)
  return source


@functools.lru_cache(maxsize=1024)
def _say_once(data_dir: str, name: str, line: str):
  """Logs a line, once a process for all splits of a dataset."""
  del data_dir, name
  logging.warning('%s', line)


def _notes(config: TextConfig, folder: pathlib.Path):
  """Yields what a user should know of a dataset that is built."""
  info = tfds.builder_from_directory(os.fspath(folder)).info
  files = _files(config)
  where = config.path or config.hub
  counts, first = dict(info.metadata), info.metadata.get(_FIRST, '')
  counts.pop(_FIRST, None)
  dropped = ', '.join(f'{n} {what}' for what, n in counts.items() if n)
  if dropped:
    such = f'; held out and in train is {first!r}' if first else ''
    yield f'{where}: dropped of the problems: {dropped}{such}'
  if not any(split == 'test' for split, _ in files):
    sizes = [info.splits[split].num_examples for split in SPLITS]
    yield (
      f'{files[0][1]}: there is no test file, so that its problems are split '
      f'by the hash of their questions: {sizes[0]} train, {sizes[1]} '
      f'validation, {sizes[2]} test; task.data.test_path names a file of others'
    )


def load_counts(data_dir: str | os.PathLike, **fields) -> dict[str, int]:
  """Returns what `split_problems` dropped, of a dataset that is built.

  Args:
    data_dir, **fields: as in `load_source`.
  """
  folder = _folder(data_dir, make_config(**fields).name)
  metadata = tfds.builder_from_directory(os.fspath(folder)).info.metadata
  return {key: int(n) for key, n in metadata.items() if key != _FIRST}


def record_text(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns a record as text: what a prompt is made of and a verifier reads.

  Args:
    record: as in `TextProblems`.
  """
  return {
    name: value.decode('utf-8') if isinstance(value, bytes) else str(value)
    for name, value in record.items()
  }


def cluster_key(record: Mapping[str, Any]) -> str:
  """Returns what is equal for one and the same problem, in whatever dataset."""
  return record_text(record)['key']


def _folder(data_dir: str | os.PathLike, name: str) -> pathlib.Path:
  root = pathlib.Path(data_dir).expanduser().absolute()
  return root / TextProblems.name / name / str(TextProblems.VERSION)


def _of_test(config: TextConfig) -> tuple[str, str, str]:
  return (
    config.test_answer_format,
    config.test_question_key,
    config.test_answer_key,
  )


def _files(config: TextConfig) -> list[tuple[str, pathlib.Path]]:
  """Returns (split, file), each file of a config in order."""
  found = text_files.find_files(
    path=config.path, hub=config.hub, subset=config.subset
  )
  if config.test_path:
    if 'test' in found:
      raise ValueError(
        f'test_path={config.test_path!r}, and there are test files already: '
        f'{found["test"][0]}; leave test_path out or move them away'
      )
    test = text_files.find_files(path=config.test_path)
    found['test'] = tuple(file for files in test.values() for file in files)
  return [(split, file) for split, files in found.items() for file in files]


def _read(config: TextConfig):
  """Returns what `split_problems` makes of the files of a config."""
  found = {}
  plain = config.answer_format, config.question_key, config.answer_key
  for split, file in _files(config):
    chosen = plain
    if split == 'test' and config.test_path:
      chosen = [own or other for own, other in zip(_of_test(config), plain)]
    names = ('answer_format', 'question_key', 'answer_key')
    problems = text_files.read_problems(file, **dict(zip(names, chosen)))
    found.setdefault(split, []).extend(problems)
  try:
    return split_problems(
      found,
      validation_percent=config.validation_percent,
      test_percent=config.test_percent,
    )
  except ValueError as error:
    raise ValueError(f'{config.path or config.hub}: {error}') from error


def _short(question: str) -> str:
  """Returns the beginning of a question, on one line."""
  text = ' '.join(question.split())
  return text if len(text) <= 40 else f'{text[:39]}…'


def _digest(file: pathlib.Path) -> str:
  stat = file.stat()
  return _digest_of(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest_of(file: pathlib.Path, size: int, changed: int) -> str:
  del size, changed  # another file then
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'blake2s').hexdigest()
