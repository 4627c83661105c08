"""An evaluation under way: its finished batches, so that a killed one goes on.

    DIR/eval.partial/3f2a90…/identity.json      what is evaluated, and how
                            /traces-00000.npz   what was measured of a batch

The folder's name is a hash of the identity: config, weights, seed, problems,
code and all that a measured number depends on. A batch is thus never taken for
one of another evaluation, not even where two are under way at once.
"""

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from meta_rl import weights, workdir
from meta_rl.checks import show
from meta_rl.files import atomic_write

NAME = 'eval.partial'
_IDENTITY = 'identity.json'
_SHOWN = 3  # differences that a message names
_MARK = '@'  # between a name and a dtype that .npz files do not know
# Settings under which one program gives other numbers.
_SETTINGS = (
  'jax_threefry_partitionable',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_enable_x64',
)
_VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


class Partial:
  """The finished batches of one evaluation.

  Nothing is written before the first batch is finished, so that an evaluation
  that is refused leaves all as it was; then what is kept of others is removed.

  Args:
    folder: DIR/eval.partial.
    identity: JSON values on which what is measured depends.
    say: is told, in a line, of batches that are there already, and of those of
      another evaluation that are removed.
  """

  def __init__(
    self,
    folder,
    identity: Mapping[str, Any],
    *,
    say: Callable[[str], None] = print,
  ):
    self._identity, self._say = identity, say
    self._text = json.dumps(identity, sort_keys=True)
    name = hashlib.blake2b(self._text.encode(), digest_size=8).hexdigest()
    self._root = epath.Path(folder)
    self._folder = self._root / name
    self._begun = False
    if kept := self._number():
      say(f'going on behind {kept} finished batches, kept in {self._root}')

  def stage(self, name: str) -> 'Stage':
    """Returns where the batches of one measurement are kept."""
    return Stage(self, self._folder, name)

  def begin(self):
    """Makes the folder, and removes those of other evaluations, once."""
    if not self._begun:
      self._begun = True
      for other in self._folders():
        if other != self._folder:
          self._say(
            f'{self._root} is of another evaluation'
            f'{_changes(other, self._identity)}: it is removed, all is '
            'measured anew'
          )
          other.rmtree(missing_ok=True)
    if not (self._folder / _IDENTITY).exists():
      self._folder.mkdir(parents=True, exist_ok=True)
      atomic_write(self._folder / _IDENTITY, self._text.encode())

  def remove(self):
    """Takes the batches away, and the folder above if it is empty."""
    self._folder.rmtree(missing_ok=True)
    if self._root.exists() and not any(self._root.iterdir()):
      self._root.rmtree(missing_ok=True)

  def _folders(self):
    if not self._root.exists():
      return []
    return [path for path in self._root.iterdir() if path.is_dir()]

  def _number(self) -> int:
    if not self._folder.exists():
      return 0
    return sum(path.suffix == '.npz' for path in self._folder.iterdir())


class Stage:
  """The finished batches of one measurement, as `held_out.measure` takes them.

  Args:
    partial: of the evaluation.
    folder: of its batches.
    name: of the measurement.
  """

  def __init__(self, partial: Partial, folder: epath.Path, name: str):
    self._partial, self._folder, self._name = partial, folder, name

  def read(self, index: int) -> dict[str, np.ndarray] | None:
    """Returns what was written of a batch; None: nothing, or it is damaged."""
    path = self._path(index)
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
        return dict(_as_given(name, found[name]) for name in found.files)
    except FileNotFoundError:
      return None
    except (ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile):
      return None  # measured again, and written over

  def write(self, index: int, part: Mapping[str, np.ndarray]):
    """Keeps a batch: as a whole, or not at all where it is killed."""
    data = io.BytesIO()
    np.savez(data, **dict(_as_plain(*pair) for pair in part.items()))
    self._partial.begin()
    atomic_write(self._path(index), data.getvalue())

  def _path(self, index: int) -> epath.Path:
    return self._folder / f'{self._name}-{index:05d}.npz'


def digest_of(params) -> str:
  """Returns a hash of parameters: names, shapes, dtypes and every bit."""
  found = hashlib.blake2b(digest_size=16)
  for name, leaf in sorted(weights.flatten(params).items()):
    array = np.ascontiguousarray(jax.device_get(leaf))
    found.update(f'{name} {array.dtype} {array.shape} '.encode())
    found.update(array.reshape(-1).view(np.uint8))
  return found.hexdigest()


@functools.cache
def code_digest() -> str:
  """Returns a hash of the package's own .py files, names and content."""
  found = hashlib.blake2b(digest_size=16)
  root = pathlib.Path(__file__).parent
  for path in sorted(root.rglob('*.py')):
    data = path.read_bytes()
    found.update(f'{path.relative_to(root).as_posix()} {len(data)} '.encode())
    found.update(data)
  return found.hexdigest()


def environment() -> dict[str, Any]:
  """Returns on which code and settings numbers depend, as JSON values."""
  packages = ('jax', 'jaxlib', 'numpy')
  return {
    'code': code_digest(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
    'device': jax.devices()[0].device_kind,
    'settings': {name: getattr(jax.config, name) for name in _SETTINGS}
    | {name: os.environ.get(name, '') for name in _VARIABLES},
  }


def _as_plain(name: str, array) -> tuple[str, np.ndarray]:
  """Returns a name and an array as an .npz file keeps them: bfloat16 too."""
  array = np.asarray(array)
  if array.dtype.kind != 'V':
    return name, array
  bits = np.dtype(f'u{array.dtype.itemsize}')
  return f'{name}{_MARK}{array.dtype.name}', array.view(bits)


def _as_given(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
  """Returns what `_as_plain` was given."""
  name, _, dtype = name.partition(_MARK)
  return name, array.view(jnp.dtype(dtype)) if dtype else array


def _changes(folder: epath.Path, identity: Mapping) -> str:
  """Returns ' (seed 1, now 2)', what differs from that of a folder; or ''."""
  try:
    old = json.loads((folder / _IDENTITY).read_text())
    found = workdir.difference(old, identity)
  except (OSError, ValueError, AttributeError):
    return ''
  shown = [
    f'{key} {show(before)}, now {show(now)}'
    for key, (before, now) in found.items()
  ]
  more = f' and {len(shown) - _SHOWN} more' if len(shown) > _SHOWN else ''
  return f' ({"; ".join(shown[:_SHOWN])}{more})'
