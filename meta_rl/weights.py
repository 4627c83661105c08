"""Params in and out of safetensors files, and where a run may start from.

A file holds flat names: the leaf `params['block']['attention']['q']['kernel']`
is the tensor `block/attention/q/kernel`. No pickle anywhere: a file from a
stranger can be wrong, but it cannot run code.
"""

import contextlib
import json
import struct
from collections.abc import Mapping
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from meta_rl import checkpoint
from meta_rl import value as value_head
from meta_rl.files import atomic_write
from meta_rl.leaves import named_sharding
from meta_rl.types import Params

ASSET_PREFIX = 'asset:'
_ASSETS_DIR = 'assets'
_SUFFIX = '.safetensors'
# safetensors' names of dtypes.
DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
_CASTS = {None: None, 'bfloat16': jnp.bfloat16, 'float16': np.float16}


class WeightsError(ValueError):
  """A file that does not hold the weights asked for; one line."""


def flatten(params: Params) -> dict:
  """Returns {'a/b/c': leaf} for nested dicts.

  Raises:
    TypeError: another container than dict, a key that is no string, or one
      with a slash, none of which would come back as it was.
  """
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    for key in path:
      name = getattr(key, 'key', None)
      if not isinstance(name, str) or '/' in name:
        raise TypeError(
          f'params{jax.tree_util.keystr(path)} cannot be named in a '
          'safetensors file: use nested dicts with string keys without "/"'
        )
    flat['/'.join(key.key for key in path)] = leaf
  return flat


def unflatten(flat: Mapping[str, jax.Array]) -> dict:
  """Returns the nested dicts of {'a/b/c': leaf}; inverse of `flatten`."""
  params = {}
  for name, leaf in flat.items():
    *groups, last = name.split('/')
    node = params
    for group in groups:
      node = node.setdefault(group, {})
      if not isinstance(node, dict):
        raise WeightsError(f'tensor {name} lies below another tensor')
    if last in node:
      raise WeightsError(f'tensor {name} is also the name of a group')
    node[last] = leaf
  return params


def save_safetensors(
  path,
  params: Params,
  metadata: Mapping[str, str] | None = None,
  dtype: str | None = None,
):
  """Writes params to a safetensors file, whole or not at all.

  Args:
    path: file.
    params: nested dicts of arrays.
    metadata: text to text, kept in the file's header.
    dtype: None keeps every leaf's own; 'bfloat16' or 'float16' rounds the
      floating-point leaves to it, to halve the file.

  Raises:
    ValueError: an unknown dtype.
    TypeError: metadata that is not text, params that are not nested dicts.
  """
  if dtype not in _CASTS:
    raise ValueError(f'dtype={dtype!r} is given; allowed is {list(_CASTS)}')
  metadata = dict(metadata or {})
  for key, value in metadata.items():
    if not isinstance(key, str) or not isinstance(value, str):
      raise TypeError(
        f'metadata {key!r}: {value!r} is given; both must be strings'
      )
  tensors = {}
  for name, leaf in flatten(params).items():
    leaf = np.asarray(leaf)
    if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
      leaf = leaf.astype(_CASTS[dtype])
    # The writer reads memory in order, whatever the strides say.
    tensors[name] = np.asarray(leaf, order='C')
  atomic_write(path, safetensors.numpy.save(tensors, metadata))


def _read(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    raise WeightsError(f'weights file {path} does not exist') from None
  except IsADirectoryError:
    raise WeightsError(f'weights file {path} is a folder') from None
  try:
    tensors = safetensors.deserialize(data)
    header = json.loads(data[8 : 8 + struct.unpack('<Q', data[:8])[0]])
  except (safetensors.SafetensorError, ValueError) as error:
    raise WeightsError(f'weights file {path} {diagnose(data, error)}') from None
  flat = {}
  for name, spec in tensors:
    if spec['dtype'] not in DTYPES:
      raise WeightsError(
        f'weights file {path}: tensor {name} has dtype {spec["dtype"]}; '
        f'allowed is {", ".join(DTYPES)}'
      )
    array = np.frombuffer(spec['data'], DTYPES[spec['dtype']])
    flat[name] = array.reshape(spec['shape'])
  return flat, header.get('__metadata__', {})


def diagnose(data: bytes, error: Exception) -> str:
  """Returns what is wrong with a file, a cut one told from another format."""
  if not data:
    return 'is empty: copy or download it again'
  looks_right = len(data) >= 9 and data[8:9] == b'{'
  if looks_right:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      size = struct.unpack('<Q', data[:8])[0]
      if size > len(data) - 8:
        return 'is truncated: copy or download it again'
      header = json.loads(data[8 : 8 + size])
      ends = [v['data_offsets'][1] for k, v in header.items() if k[0] != '_']
      if max(ends, default=0) > len(data) - 8 - size:
        last = max(
          (k for k in header if k[0] != '_'),
          key=lambda k: header[k]['data_offsets'][1],
        )
        return (
          f'is truncated: {max(ends) - len(data) + 8 + size} bytes are missing '
          f'from its end (tensor {last}); copy or download it again'
        )
  elif data[:2] == b'PK' or data[:1] == b'\x80':
    kind = 'a zip, as torch.save writes,' if data[:2] == b'PK' else 'a pickle'
    return (
      f'is {kind} and not a safetensors file: no pickle is ever read; convert '
      'it to safetensors'
    )
  return f'is not a safetensors file ({error})'


def first_few(names) -> str:
  """Returns up to three names, in order, and how many more there are."""
  names = sorted(names)
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def check_like(source: str, flat: Mapping, like: Params) -> dict:
  """Returns `flat` as nested params with the shapes and dtypes of `like`.

  A value head that `like` has and `flat` lacks starts at 0, and one that `like`
  lacks is left out: it is no part of the policy.

  Floating-point tensors are cast to the dtype of `like` (weights shipped in
  bfloat16 train in float32); other dtypes must be equal.

  Args:
    source: what to call the weights in an error, e.g. 'weights file a.b'.
    flat: {'a/b': array}.
    like: nested dicts of arrays or `jax.ShapeDtypeStruct`s; where one has a
      sharding, its tensor is placed on it.

  Raises:
    WeightsError: a missing, an extra or a differing tensor, by name.
  """
  wanted = flatten(like)
  is_head = lambda name: name.startswith(f'{value_head.NAME}/')
  fresh = {
    name: np.zeros(leaf.shape, leaf.dtype)
    for name, leaf in wanted.items()
    if is_head(name)
  }
  flat = fresh | {
    name: array
    for name, array in flat.items()
    if name in wanted or not is_head(name)
  }
  if missing := wanted.keys() - flat.keys():
    raise WeightsError(f'{source} lacks tensor {first_few(missing)}')
  if extra := flat.keys() - wanted.keys():
    raise WeightsError(
      f'{source} has tensor {first_few(extra)}, which this model does not: '
      'is it of another model config?'
    )
  result = {}
  for name, leaf in wanted.items():
    array = flat[name]
    if tuple(array.shape) != tuple(leaf.shape):
      raise WeightsError(
        f'{source}: tensor {name} has shape {list(array.shape)}; this model '
        f'needs {list(leaf.shape)}'
      )
    if array.dtype != leaf.dtype and not (
      jnp.issubdtype(array.dtype, jnp.floating)
      and jnp.issubdtype(leaf.dtype, jnp.floating)
    ):
      raise WeightsError(
        f'{source}: tensor {name} has dtype {array.dtype}; this model needs '
        f'{leaf.dtype}'
      )
    # Without a sharding the array stays uncommitted, as a fresh one is.
    sharding = named_sharding(leaf)
    result[name] = jax.device_put(array.astype(leaf.dtype), sharding)
  return unflatten(result)


def load_safetensors(
  path, like: Params | None = None
) -> tuple[Params, dict[str, str]]:
  """Returns `(params, metadata)` of a safetensors file.

  Args:
    path: file.
    like: params or their `jax.ShapeDtypeStruct`s: names and shapes must match,
      and floating-point dtypes are cast. None takes what the file holds.

  Raises:
    WeightsError: a missing, truncated or foreign file, a missing, extra or
      differing tensor; names the file and the tensor.
  """
  path = epath.Path(path)
  flat, metadata = _read(path)
  if like is not None:
    return check_like(f'weights file {path}', flat, like), metadata
  try:
    return unflatten({k: jnp.asarray(v) for k, v in flat.items()}), metadata
  except WeightsError as error:
    raise WeightsError(f'weights file {path}: {error}') from None


def read_metadata(source) -> dict[str, str]:
  """Returns the metadata of a .safetensors file, or of an 'asset:NAME'.

  Raises:
    WeightsError: there is none such, or it is damaged.
  """
  with _file_of(str(source)) as path:
    return _read(epath.Path(path))[1]


@contextlib.contextmanager
def _file_of(source: str):
  """Gives the file of an asset, or the path as it is."""
  if not source.startswith(ASSET_PREFIX):
    yield source
    return
  name = source.removeprefix(ASSET_PREFIX).removesuffix(_SUFFIX)
  if name not in asset_names():
    raise WeightsError(
      f'init_from={source!r}: no such asset; {_known_assets()}'
    )
  file = resources.files('meta_rl') / _ASSETS_DIR / (name + _SUFFIX)
  # as_file, since a package may be read from a zip.
  with resources.as_file(file) as path:
    yield path


def asset_names() -> list[str]:
  """Returns the names that 'asset:NAME' may have."""
  folder = resources.files('meta_rl') / _ASSETS_DIR
  if not folder.is_dir():
    return []
  return sorted(
    f.name.removesuffix(_SUFFIX)
    for f in folder.iterdir()
    if f.name.endswith(_SUFFIX)
  )


def init_from(source, like: Params) -> Params:
  """Returns the params that a run starts from.

  Args:
    source: one of
      'asset:countdown_easy', a file shipped in the package;
      a path to a .safetensors file;
      a run folder: its best checkpoint, or its last if none has a score.
        'DIR@last' and 'DIR@best' choose.
    like: params or `jax.ShapeDtypeStruct`s of the model.

  Raises:
    WeightsError: an unknown source, or one that does not fit `like`.
    CheckpointError: a run folder whose checkpoints are all damaged.
  """
  text = str(source)
  if text.startswith(ASSET_PREFIX):
    with _file_of(text) as path:
      return load_safetensors(path, like)[0]
  folder, which = _split_source(text)
  if epath.Path(folder).is_dir():
    return of_run(folder, like, which=which)[1]
  if epath.Path(text).exists() or text.endswith(_SUFFIX):
    return load_safetensors(text, like)[0]
  raise WeightsError(
    f'init_from={text!r} is neither a .safetensors file nor a run folder; '
    'if it is to be one, train that run first (a warm start is often a config '
    f"with ':sft'); {_known_assets()}"
  )


def of_run(
  folder, like: Params, *, which: str | None = None
) -> tuple[int, Params]:
  """Returns the step and the params of a run's checkpoint.

  Args:
    folder, which: a run folder, and as in `checkpoint.restore_params`.
    like: as in `init_from`.

  Raises:
    WeightsError: it has none.
    CheckpointError: they are all damaged.
  """
  found = checkpoint.restore_params(
    folder, like, which=which, optional=(value_head.NAME,)
  )
  if found is None:
    raise WeightsError(
      f'{folder} holds no checkpoint: name a run folder that has saved one, '
      'a .safetensors file or an asset'
    )
  return found


def describe(source) -> str:
  """Returns which checkpoint of a run `init_from` takes, '' of a file."""
  folder, which = _split_source(str(source))
  if not folder or not epath.Path(folder).is_dir():
    return ''
  with checkpoint.open_folder(folder) as saved:
    best, last = saved.best_step(), saved.latest_step()
  step = last if which == 'last' else best
  if step is None and which is None:
    step = last
  if step is None:
    return ''
  kind = 'best' if step == best else 'last'
  if best == last:
    kind = 'best and last'
  return f'its {kind} checkpoint, step {step}'


def _split_source(text: str) -> tuple[str, str | None]:
  """Returns the folder and 'last', 'best' or None of 'DIR@last'."""
  for suffix in ('last', 'best'):
    if text.endswith(f'@{suffix}'):
      return text.removesuffix(f'@{suffix}'), suffix
  return text, None


def _known_assets() -> str:
  names = [ASSET_PREFIX + name for name in asset_names()]
  return f'assets are {", ".join(names)}' if names else 'there are no assets'
