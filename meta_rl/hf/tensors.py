"""safetensors files read one tensor at a time, every byte of a header checked.

Bytes are read, not mapped: what is in memory is the tensor asked for. A header
from a stranger may lie, so each size is checked against dtype, shape and file
before anything is allocated.
"""

import json
import math
import os
from pathlib import Path

import numpy as np

from meta_rl.files import one_line
from meta_rl.weights import DTYPES, WeightsError, diagnose, first_few

INDEX_NAME = 'model.safetensors.index.json'
SINGLE_NAME = 'model.safetensors'
_MAX_HEADER = 100_000_000  # the format's own limit
_AGAIN = 'copy or download it again'


def read_json(path: Path, what: str = 'file') -> dict:
  """Returns the JSON object in a file.

  Raises:
    WeightsError: one line, for a missing file, no JSON or no object.
  """
  try:
    value = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise WeightsError(f'{what} {path} does not exist: {_AGAIN}') from None
  except (OSError, ValueError, RecursionError) as error:
    raise WeightsError(
      f'{what} {path} cannot be read ({one_line(error)}): {_AGAIN}'
    ) from None
  if not isinstance(value, dict):
    raise WeightsError(f'{what} {path} holds no JSON object: {_AGAIN}')
  return value


class TensorFile:
  """The tensors of one safetensors file, none of them read yet.

  Attributes:
    path: of the file.
    tensors: name -> (dtype, shape, first byte, bytes).
    metadata: text to text.

  Raises:
    WeightsError: a missing, truncated or foreign file; names it and a tensor.
  """

  def __init__(self, path):
    self.path = Path(path)
    try:
      with self.path.open('rb') as f:
        size = os.fstat(f.fileno()).st_size
        length = int.from_bytes(f.read(8), 'little')
        if size < 8 or length > min(size - 8, _MAX_HEADER):
          f.seek(0)
          raise self._error(_not_whole(size, length, f.read(9)))
        text = f.read(length)
    except FileNotFoundError:
      raise self._error('does not exist') from None
    except IsADirectoryError:
      raise self._error('is a folder') from None
    try:
      header = json.loads(text, object_pairs_hook=self._no_duplicates)
      if not isinstance(header, dict):
        raise ValueError('its header is no object')
      self.metadata = header.pop('__metadata__', {})
      self.tensors = {
        name: self._tensor(name, value, 8 + length)
        for name, value in header.items()
      }
    except WeightsError:
      raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
      raise self._error(
        f'is not a safetensors file ({one_line(error)})'
      ) from None
    self._check_layout(8 + length, size)

  def _error(self, text: str) -> WeightsError:
    return WeightsError(f'weights file {self.path} {text}')

  def _no_duplicates(self, pairs):
    if len({name for name, _ in pairs}) < len(pairs):
      names = [name for name, _ in pairs]
      twice = {name for name in names if names.count(name) > 1}
      raise self._error(f'holds {first_few(twice)} twice')
    return dict(pairs)

  def _tensor(self, name, value, start):
    try:
      dtype, shape = value['dtype'], tuple(value['shape'])
      first, end = value['data_offsets']
      fits = all(type(n) is int and n >= 0 for n in (*shape, first, end))
    except (TypeError, KeyError, ValueError):
      fits = False
    if not fits or not isinstance(dtype, str):
      raise self._error(f'has a damaged header at tensor {name}')
    if dtype not in DTYPES:
      raise self._error(
        f'holds tensor {name} of dtype {dtype}; allowed is {", ".join(DTYPES)}'
      )
    dtype = np.dtype(DTYPES[dtype])
    if end - first != math.prod(shape) * dtype.itemsize:
      raise self._error(
        f'has a damaged header: tensor {name}, {dtype}{list(shape)}, is given '
        f'{end - first} bytes'
      )
    return dtype, shape, start + first, end - first

  def _check_layout(self, start, size):
    """Raises unless the tensors fill the file, in some order, side by side."""
    ordered = sorted(self.tensors.items(), key=lambda item: item[1][2:])
    for name, (_, _, first, count) in ordered:
      if first != start:
        raise self._error(f'has a damaged header: tensor {name} is misplaced')
      start += count
    if start > size:
      raise self._error(
        f'is truncated: {start - size} bytes are missing from its end (tensor '
        f'{ordered[-1][0]}); copy or download it again'
      )
    if start < size:
      raise self._error(f'has {size - start} bytes behind its last tensor')

  def read(self, name: str) -> np.ndarray:
    """Returns one tensor, freshly read."""
    dtype, shape, first, count = self.tensors[name]
    array = np.empty(shape, dtype)
    with self.path.open('rb') as f:
      f.seek(first)
      got = f.readinto(array.reshape(-1).view(np.uint8))
    if got != count:
      raise self._error(f'became shorter while it was read, at tensor {name}')
    return array


def _not_whole(size: int, length: int, head: bytes) -> str:
  """Tells an empty or cut file from one of another format."""
  if head[8:9] == b'{' and length <= _MAX_HEADER:
    return f'is truncated: {_AGAIN}'
  return diagnose(head, ValueError('no header'))


def open_folder(folder) -> dict[str, TensorFile]:
  """Returns which file holds each tensor of a checkpoint's folder.

  An index names the files if there is one, else `model.safetensors` is all.

  Raises:
    WeightsError: no safetensors; a file that the index names and that is not
      there, lies outside the folder, or lacks a tensor; two files with one
      tensor; a file that is damaged.
  """
  folder = Path(folder)
  # os.path's take a name that no file can have for one that is not there.
  if not os.path.isdir(folder):
    raise WeightsError(f'checkpoint {folder} is not a folder')
  index = folder / INDEX_NAME
  if not index.exists():
    return _single(folder)
  where = read_json(index, 'index').get('weight_map')
  if not isinstance(where, dict) or not where:
    raise WeightsError(f'index {index} has no weight_map: {_AGAIN}')
  files, held = {}, {}
  for tensor, name in where.items():
    if not isinstance(name, str) or Path(name).name != name or name == '..':
      raise WeightsError(
        f'index {index} puts tensor {tensor} into {name!r}: a file of the same '
        'folder is allowed'
      )
    if not os.path.isfile(folder / name):
      raise WeightsError(
        f'checkpoint {folder} lacks file {name}, which {INDEX_NAME} names for '
        f'tensor {tensor}: copy or download it too'
      )
    if name not in files:
      files[name] = TensorFile(folder / name)
    if tensor not in files[name].tensors:
      raise WeightsError(
        f'weights file {folder / name} lacks tensor {tensor}, which '
        f'{INDEX_NAME} says it holds: {_AGAIN}, and the index'
      )
  for name, file in files.items():
    for tensor in file.tensors:
      if tensor in held:
        raise WeightsError(
          f'tensor {tensor} is both in {held[tensor].path.name} and in {name} '
          f'of checkpoint {folder}'
        )
      held[tensor] = file
  return held


def _single(folder: Path) -> dict[str, TensorFile]:
  path = folder / SINGLE_NAME
  if path.exists():
    file = TensorFile(path)
    return dict.fromkeys(file.tensors, file)
  others = sorted(
    p.name
    for p in folder.iterdir()
    if p.suffix in ('.bin', '.pt', '.pth', '.pkl', '.ckpt', '.msgpack', '.h5')
  )
  shards = sorted(p.name for p in folder.glob('*.safetensors'))
  if shards:
    raise WeightsError(
      f'checkpoint {folder} has {first_few(shards)} and neither {SINGLE_NAME} '
      f'nor {INDEX_NAME}: copy the index too'
    )
  if others:
    raise WeightsError(
      f'checkpoint {folder} has its weights in {first_few(others)} only: no '
      'pickle is ever read; convert it to safetensors'
    )
  raise WeightsError(
    f'checkpoint {folder} has no {SINGLE_NAME}: copy or download it'
  )
