"""Files that are whole or seen not to be: atomic writes and manifests.

A manifest lists size and crc32 of every file below a folder. It says nothing of
who wrote them, only that they are the bytes that were written.
"""

import contextlib
import errno
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

MANIFEST_NAME = 'MANIFEST.json'
_CHUNK = 1 << 20


def atomic_write(path, data: bytes):
  """Writes `data` to `path` so that a reader sees the old file or the new one.

  Temporary file in the same folder, fsync, rename; the temporary file is
  removed on any error, a full disk included. An object of a bucket is whole by
  itself.
  """
  if is_remote(path):
    epath.Path(path).write_bytes(data)
    return
  path = Path(path)
  fd, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
  try:
    with os.fdopen(fd, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    # mkstemp makes files of the owner alone; others may read results.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


@contextlib.contextmanager
def made_folder(path):
  """Makes a folder and those above it; an error takes away the empty ones.

  Those that were there before stay, as do those that something was put into.
  """
  path = Path(path)
  made = [p for p in (path, *path.parents) if not p.exists()]
  try:
    path.mkdir(parents=True, exist_ok=True)
    yield
  except BaseException:
    with contextlib.suppress(OSError):
      for folder in made:
        folder.rmdir()
    raise


def is_remote(path) -> bool:
  """Returns whether a path is of a bucket: 'gs://bucket/run'."""
  return '://' in os.fspath(path)


class RemoteLines:
  """A text file in a bucket that lines are added to.

  An object cannot be added to: the whole of it is written again, at most once
  in `every_s` seconds and when it is closed.

  Args:
    path: of the object; what it holds stays.
    every_s: seconds; a killed process loses the lines of so many.
  """

  def __init__(self, path, *, every_s: float = 30.0):
    self._path = epath.Path(path)
    self._text = self._path.read_text() if self._path.exists() else ''
    self._every_s, self._written = every_s, time.monotonic()
    self._dirty = False

  def write(self, text: str):
    """Adds a text."""
    self._text += text
    self._dirty = True

  def flush(self, *, now: bool = False):
    """Writes what was added, if it is time, or `now`."""
    if self._dirty and (
      now or time.monotonic() - self._written >= self._every_s
    ):
      self._path.write_text(self._text)
      self._written, self._dirty = time.monotonic(), False

  def close(self):
    """Writes what was added."""
    self.flush(now=True)


def check_input(name: str, path, prefix: str = ''):
  """Raises ValueError, in one line, unless `path` is a file that can be read.

  Args:
    name: what the path was given as, such as 'data.path'.
    path: of the file.
    prefix: what stood before the path.
  """
  problem = None
  try:
    with open(path, 'rb'):
      pass
  except FileNotFoundError:
    problem = 'there is no such file'
  except IsADirectoryError:
    problem = 'it is a folder'
  except OSError as error:
    problem = f'it cannot be read ({error.strerror})'
  if problem:
    raise ValueError(
      f'{name}={prefix + os.fspath(path)!r}: {problem}; name a file that this '
      'user may read.'
    )


def check_output(name: str, path):
  """Raises ValueError, in one line, unless a file can be written at `path`.

  Its folder is made where it is missing: to be asked before the work whose
  result the file will hold.

  Args:
    name: what the path was given as, such as '--out'.
    path: of the file.
  """
  path, problem = Path(path), None
  try:
    if path.is_dir():
      problem = 'it is a folder'
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      if not os.access(path.parent, os.W_OK):
        problem = f'{path.parent} cannot be written'
  except (FileExistsError, NotADirectoryError):
    problem = 'it lies under a file'
  except OSError as error:
    problem = f'its folder cannot be made ({error.strerror})'
  if problem:
    raise ValueError(
      f'{name}={os.fspath(path)!r}: {problem}; name a file in a folder that '
      'this user may write to.'
    )


def read_jsonl(path, parse: Callable[[int, dict], Any]) -> list:
  """Returns `parse(line number, object)` of every line that is not blank.

  Args:
    path: a file of UTF-8 with one JSON object a line.
    parse: what it raises as ValueError is said with the file and the line.

  Raises:
    ValueError: one line, for what is not UTF-8, not JSON, no object, or what
      `parse` refuses.
  """
  try:
    text = Path(path).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: {error}') from error
  found = []
  # Not splitlines: JSON strings may hold U+2028 and its kin unescaped.
  for number, line in enumerate(text.split('\n'), start=1):
    if not line.strip():
      continue
    try:
      found.append(parse(number, _json_object(line)))
    except ValueError as error:
      raise ValueError(f'{path}, line {number}: {error}') from error
  return found


def _json_object(line: str) -> dict:
  try:
    record = json.loads(line)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f'not JSON: {error}') from error
  if not isinstance(record, dict):
    raise ValueError(f'a JSON {type(record).__name__}: give an object')
  return record


def one_line(error: BaseException, limit: int = 200) -> str:
  """Returns the message of an error as one line of at most `limit` characters.

  An error without a message gives the name of its class.
  """
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= limit else text[: limit - 1] + '…'


def is_disk_full(error: BaseException | None) -> bool:
  """Returns whether an error, or one that it came from, is a full disk."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    # Tensorstore, in C++, says it in words.
    if 'No space left' in str(error) or 'quota exceeded' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _files(folder: epath.Path):
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _crc32(path: epath.Path) -> int:
  value = 0
  with path.open('rb') as f:
    while chunk := f.read(_CHUNK):
      value = zlib.crc32(chunk, value)
  return value


def write_manifest(folder):
  """Writes the manifest of all files in the subfolders of `folder`."""
  folder = epath.Path(folder)
  files = {
    str(path.relative_to(folder)): [path.stat().length, _crc32(path)]
    for part in sorted(folder.iterdir())
    if part.is_dir()
    for path in _files(part)
  }
  (folder / MANIFEST_NAME).write_text(json.dumps(files))


def find_damage(folder) -> str | None:
  """Returns the first difference from the manifest, None if there is none.

  A missing file, another size, other bytes, an unreadable manifest. Files that
  the manifest does not list are not looked at.
  """
  folder = epath.Path(folder)
  try:
    files = json.loads((folder / MANIFEST_NAME).read_text())
    for name, (size, crc) in files.items():
      path = folder / name
      if not path.exists():
        return f'{name} is missing'
      if path.stat().length != size:
        return f'{name} has {path.stat().length} bytes instead of {size}'
      if _crc32(path) != crc:
        return f'{name} has other bytes than were written'
  except FileNotFoundError:
    return f'{MANIFEST_NAME} is missing'
  except (OSError, ValueError, TypeError, AttributeError) as error:
    return f'{MANIFEST_NAME} cannot be used ({one_line(error)})'
  return None
