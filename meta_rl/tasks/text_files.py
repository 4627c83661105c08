r"""Problems with a question and an answer in files: JSONL, JSON and Parquet.

    files = find_files(path='/data/gsm8k')        # {'train': ..., 'test': ...}
    problems = read_problems(files['train'][0], answer_format='gsm8k')

Nothing is downloaded: a data set is a local path, or what the user's own hub
cache holds. Whatever is wrong with a file is said with its name and line.
"""

import dataclasses
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from meta_rl import checks
from meta_rl.files import one_line, read_jsonl
from meta_rl.verifiers.extract import extract_boxed

SUFFIXES = ('.jsonl', '.json', '.parquet')
# Keys of what says how hard a problem is, as MATH has the first.
_LEVEL_KEYS = ('level', 'difficulty')
# What is in front of the first '-', '_', '.' or digit of a file or folder.
_SPLIT_NAMES = {
  'train': 'train',
  'test': 'test',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
  'dev': 'validation',
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question and its answer.

  Attributes:
    question: as it stands.
    answer: the final answer alone.
    level: how hard it is said to be, a text or a number as text; '': nothing is
      said.
  """

  question: str
  answer: str
  level: str = ''


def normalize_question(text: str) -> str:
  """Returns a question without what does not make it another problem.

  Compatibility forms of Unicode, case and white space. Two problems whose texts
  are equal then are one and the same.
  """
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def find_files(
  *, path: str | os.PathLike = '', hub: str = '', subset: str = ''
) -> dict[str, tuple[pathlib.Path, ...]]:
  """Returns the files of each split that a data set has files of.

  Args:
    path: a file, or a folder whose files or subfolders are named after their
      splits: train.jsonl, data/test-00000-of-00001.parquet or
      train/algebra/1.json. Others in a folder are left out.
    hub: instead of a path, a data set's name on the hub, such as
      'openai/gsm8k', which the user's cache already has.
    subset: a folder in it, such as 'main'.

  Returns:
    Files by 'train', 'validation', 'test'; {'all': (path,)} for a file that
    stands for itself.

  Raises:
    ValueError: not exactly one of path and hub, or no such files.
  """
  if bool(os.fspath(path)) == bool(hub):
    raise ValueError(
      f'path={os.fspath(path)!r} and hub={hub!r}: give one of them, a local '
      "file or folder, or a data set's name such as 'openai/gsm8k'"
    )
  root = hub_snapshot(hub) if hub else pathlib.Path(path).expanduser()
  root = root / subset if subset else root
  if root.is_file():
    _check_suffix(root)
    return {'all': (root,)}
  if not root.is_dir():
    raise ValueError(f'{root} does not exist: give a file or a folder')
  found, others = {}, []
  for file in sorted(root.rglob('*')):
    inside = file.relative_to(root)
    hidden = any(part.startswith('.') for part in inside.parts)
    if hidden or file.suffix not in SUFFIXES or not file.is_file():
      continue
    split = _split_of(inside)
    if split:
      found.setdefault(split, []).append(file)
    else:
      others.append(file)
  if not found and len(others) == 1:
    return {'all': tuple(others)}
  if not found:
    raise ValueError(
      f'{root} has no file of a split among {len(others)} of {SUFFIXES}: name '
      'them train*, test* and, if there is one, validation*, or give one file'
    )
  return {split: tuple(files) for split, files in found.items()}


def hub_snapshot(name: str) -> pathlib.Path:
  """Returns the folder of a data set in the user's hub cache; no network.

    $HF_HUB_CACHE or $HF_HOME/hub: datasets--openai--gsm8k/snapshots/COMMIT

  The commit is that of refs/main, or the only one.

  Args:
    name: 'owner/name'.

  Raises:
    ValueError: it is not there.
  """
  environment = os.environ
  home = environment.get('XDG_CACHE_HOME') or '~/.cache'
  home = environment.get('HF_HOME') or f'{home}/huggingface'
  cache = environment.get('HF_HUB_CACHE') or f'{home}/hub'
  cache = pathlib.Path(cache).expanduser()
  if not re.fullmatch(r'\w[\w.-]*(/\w[\w.-]*)?', name):
    raise ValueError(f"hub={name!r}: give owner/name, such as 'openai/gsm8k'")
  folder = cache / ('datasets--' + name.replace('/', '--'))
  main = folder / 'refs' / 'main'
  snapshots = folder / 'snapshots'
  if main.is_file():
    chosen = [snapshots / main.read_text('utf-8').strip()]
  else:
    chosen = list(snapshots.iterdir()) if snapshots.is_dir() else []
  if len(chosen) != 1 or not chosen[0].is_dir():
    raise ValueError(
      f'data set {name!r} is not in the cache {cache}: fetch it once with hf '
      f'download --repo-type dataset {name}, set HF_HOME, or give a local path'
    )
  return chosen[0]


def read_problems(
  path: str | os.PathLike,
  *,
  answer_format: str = 'plain',
  question_key: str = '',
  answer_key: str = '',
) -> list[Problem]:
  """Returns the problems of a file, in its order.

  Args:
    path: JSONL (an object a line), JSON (an object or a list of them) or
      Parquet (needs pyarrow).
    answer_format: of ANSWER_FORMATS, which says what the answer is and how the
      two keys are called if they are not given. 'plain': the answer itself;
      'gsm8k': behind '####'; 'boxed': the last box of a solution, as in MATH.
    question_key, answer_key: of an object, or columns.

  Raises:
    ValueError: in one line, with the file and the line or row.
  """
  path = pathlib.Path(path)
  checks.check_choice('answer_format', answer_format, ANSWER_FORMATS)
  _check_suffix(path)
  default = _KEYS[answer_format]
  keys = question_key or default[0], answer_key or default[1]
  parse = lambda _, record: _problem(record, keys, answer_format)
  if path.suffix == '.jsonl':
    problems = read_jsonl(path, parse)
  else:
    rows = _json_rows if path.suffix == '.json' else _parquet_rows
    problems = []
    for place, record in rows(path, keys):
      try:
        problems.append(parse(place, record))
      except ValueError as error:
        raise ValueError(f'{path}, {place}: {error}') from error
  if not problems:
    raise ValueError(f'{path} has no problem: give at least one')
  return problems


def after_hashes(text: str) -> str:
  """Returns the answer of a solution of GSM8K: what is behind '####'.

  Commas in numbers go, as in '1,024'.
  """
  _, found, answer = text.rpartition('####')
  if not found:
    raise ValueError(
      "there is no '####' in front of the answer, which "
      "answer_format='gsm8k' looks for: 'plain' takes the whole text, 'boxed' "
      'the last box'
    )
  return answer.strip().replace(',', '')


def boxed_answer(text: str) -> str:
  r"""Returns the answer of a solution of MATH: the last `\boxed{}`.

  A few of them have `\fbox{5}`, or `\boxed 5`, which is no answer of a model:
  it may be words about the box.
  """
  answer = extract_boxed(text)
  if answer is None:
    found = re.findall(r'\\boxed\s+([^\s$.]+)', text)
    if not found:
      raise ValueError(
        r'the solution has no \boxed{} that is closed, which '
        "answer_format='boxed' looks for: 'plain' takes the whole text, "
        "'gsm8k' what is behind '####'"
      )
    answer = found[-1]
  return answer.strip()


ANSWER_FORMATS: dict[str, Callable[[str], str]] = {
  'plain': str.strip,
  'gsm8k': after_hashes,
  'boxed': boxed_answer,
}
_KEYS = {
  'plain': ('question', 'answer'),
  'gsm8k': ('question', 'answer'),
  'boxed': ('problem', 'solution'),
}


def _check_suffix(path: pathlib.Path):
  if path.suffix not in SUFFIXES:
    raise ValueError(f'{path}: its name must end in one of {SUFFIXES}')


def _split_of(inside: pathlib.PurePath) -> str | None:
  """Returns the split that a file or the nearest folder is named after."""
  for part in (inside.stem, *reversed(inside.parts[:-1])):
    name = re.match('[a-z]*', part.casefold())[0]
    if name in _SPLIT_NAMES:
      return _SPLIT_NAMES[name]
  return None


def _problem(record: dict[str, Any], keys, answer_format: str) -> Problem:
  missing = [key for key in keys if key not in record]
  if missing:
    raise ValueError(
      f'no {missing[0]!r} among the keys {sorted(map(str, record))}: set '
      'question_key and answer_key'
    )
  question, answer = (record[key] for key in keys)
  if not isinstance(question, str) or not question.strip():
    raise ValueError(f'{keys[0]!r} must be text that is not empty')
  if isinstance(answer, int | float) and not isinstance(answer, bool):
    answer = str(answer)
  if not isinstance(answer, str):
    raise ValueError(
      f'{keys[1]!r} is of type {type(answer).__name__}: give text or a number'
    )
  answer = ANSWER_FORMATS[answer_format](answer)
  if not answer:
    raise ValueError(f'the answer in {keys[1]!r} is empty')
  for text in (question, answer):
    try:
      text.encode('utf-8')
    except UnicodeEncodeError as error:
      raise ValueError(f'text that is not Unicode: {error.reason}') from error
  return Problem(question, answer, _level(record))


def _level(record: dict[str, Any]) -> str:
  """Returns how hard a problem is said to be, '' where that is no one value."""
  given = (record.get(key) for key in _LEVEL_KEYS)
  value = next((v for v in given if v is not None), None)
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return ''
  return str(value).strip().encode('utf-8', 'replace').decode('utf-8')


def _json_rows(path, keys) -> Iterator[tuple[str, dict]]:
  del keys
  try:
    value = json.loads(path.read_text('utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is no JSON: {one_line(error)}') from error
  values = value if isinstance(value, list) else [value]
  for number, record in enumerate(values, start=1):
    if not isinstance(record, dict):
      raise ValueError(
        f'{path}, object {number}: a JSON {type(record).__name__}, give an '
        'object'
      )
    yield f'object {number}', record


def _parquet_rows(path, keys) -> Iterator[tuple[str, dict]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      f"{path}: Parquet needs pyarrow ({error}): run pip install 'meta-rl[llm]'"
    ) from error
  number = 0
  try:
    with parquet.ParquetFile(path) as file:
      columns = [key for key in keys if key in file.schema_arrow.names]
      if len(columns) < len(keys):  # `_problem` says which one is missing
        columns = file.schema_arrow.names
      else:
        columns += [k for k in _LEVEL_KEYS if k in file.schema_arrow.names]
      for batch in file.iter_batches(columns=columns):
        for record in batch.to_pylist():
          number += 1
          yield f'row {number}', record
  except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
    raise ValueError(
      f'{path} cannot be read as Parquet behind row {number}: {one_line(error)}'
    ) from error
