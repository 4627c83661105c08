"""A folder that `transformers` and vLLM load: weights, config, tokenizer.

It appears whole or not at all: everything is written to a temporary folder
beside it, which is renamed at the end. Tensors are written one at a time.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_rl.files import made_folder
from meta_rl.hf.config import check_same
from meta_rl.hf.names import Entry, entries
from meta_rl.hf.tensors import INDEX_NAME, SINGLE_NAME
from meta_rl.hf.tokenizer import TEMPLATE_NAME, TokenizerInfo
from meta_rl.models import TransformerConfig
from meta_rl.types import Params
from meta_rl.weights import DTYPES, flatten

_TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  TEMPLATE_NAME,
  'generation_config.json',
)
_FLOATS = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}


def save_checkpoint(
  folder,
  params: Params,
  config: TransformerConfig,
  hf_config: Mapping[str, Any],
  *,
  tokenizer: Any = None,
  dtype: str | None = None,
  max_shard_bytes: int = 5_000_000_000,
):
  """Writes a Hugging Face folder.

  With the dtype of the checkpoint that the parameters were loaded from, the
  tensors are bit for bit those of that checkpoint.

  Args:
    folder: must not exist, or be empty.
    params: of the model.
    config: of the model.
    hf_config: what config.json is to hold, of the checkpoint that the model
      came from (`hf_config_of`) or of `config_to_hf`; its dtype is set here.
    tokenizer: a folder whose tokenizer files are copied, or a `TokenizerInfo`;
      None: no tokenizer.
    dtype: of the tensors, 'float32', 'bfloat16' or 'float16'; None: that of
      the parameters.
    max_shard_bytes: a file holds at most so many bytes of tensors, or one
      tensor.

  Raises:
    ValueError: `hf_config` is not of this model, the parameters are not, the
      folder is in the way, or an unknown dtype.
  """
  folder = Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'{folder} exists: give a folder that does not')
  if dtype is not None and dtype not in _FLOATS:
    raise ValueError(f'dtype={dtype!r} is given; allowed is {list(_FLOATS)}')
  if max_shard_bytes < 1:
    raise ValueError(f'max_shard_bytes={max_shard_bytes} must be at least 1')
  check_same(hf_config, config)
  leaves = _checked(params, config)
  dtype = dtype or str(leaves['embedding'].dtype)
  values = dict(hf_config)
  for old in ('torch_dtype', 'dtype'):
    values.pop(old, None)
  values['dtype'] = dtype
  with _sigterm_raises(), made_folder(folder.parent), _temporary(folder) as new:
    _write_tensors(new, leaves, entries(config), dtype, max_shard_bytes)
    _write_json(new / 'config.json', values)
    _write_tokenizer(new, tokenizer)
    umask = os.umask(0)
    os.umask(umask)
    new.chmod(0o777 & ~umask)  # mkdtemp makes it the owner's alone
    os.rename(new, folder)


@contextlib.contextmanager
def _temporary(folder: Path):
  """Gives a folder beside another; it goes if an error comes."""
  new = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
  try:
    yield new
  except BaseException:
    with contextlib.suppress(OSError):
      shutil.rmtree(new)
    raise


@contextlib.contextmanager
def _sigterm_raises():
  """Makes SIGTERM an exception, so that what is half written is taken away.

  Where the program has a handler of its own that counts, and only the main
  thread may set one.
  """
  free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  if not free or threading.current_thread() is not threading.main_thread():
    yield
    return

  def leave(number, frame):
    del frame
    sys.exit(128 + number)

  signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(params: Params, config: TransformerConfig) -> dict:
  """Returns the flat parameters, all of them there, in one place and shape."""
  leaves = flatten(params)
  wanted = {}
  for entry in entries(config):
    shape = entry.shape[::-1] if entry.transpose else entry.shape
    layers = () if entry.layer is None else (config.num_layers,)
    wanted[entry.path] = (*layers, *shape)
  found = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  if found != wanted:
    path = min(dict(found.items() ^ wanted.items()))
    raise ValueError(
      f'params are not of this model: {path} is {found.get(path, "missing")}, '
      f'and should be {wanted.get(path, "absent")}'
    )
  for path, leaf in leaves.items():
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      raise ValueError(
        f'params: {path} lies on devices of other processes: load the run in '
        'one process to export it'
      )
  return leaves


def _write_tensors(folder, leaves, wanted, dtype, max_shard_bytes):
  size = np.dtype(DTYPES[_FLOATS[dtype]]).itemsize
  shards, room = [[]], max_shard_bytes
  for entry in wanted:
    count = size * math.prod(entry.shape)
    if count > room and shards[-1]:
      shards.append([])
      room = max_shard_bytes
    shards[-1].append(entry)
    room -= count
  if len(shards) == 1:
    _write_file(folder / SINGLE_NAME, leaves, shards[0], dtype)
    return
  where = {}
  for i, shard in enumerate(shards, start=1):
    name = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
    _write_file(folder / name, leaves, shard, dtype)
    where |= {entry.name: name for entry in shard}
  total = sum(size * math.prod(entry.shape) for entry in wanted)
  index = {'metadata': {'total_size': total}, 'weight_map': where}
  _write_json(folder / INDEX_NAME, index)


def _write_file(path: Path, leaves, shard: list[Entry], dtype: str):
  """Writes a safetensors file: the header, then one tensor after the other."""
  kind = _FLOATS[dtype]
  numpy_dtype = np.dtype(DTYPES[kind])
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for entry in shard:
    start, end = end, end + math.prod(entry.shape) * numpy_dtype.itemsize
    header[entry.name] = {
      'dtype': kind,
      'shape': list(entry.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for entry in shard:
      leaf = leaves[entry.path]
      array = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
      array = array.T if entry.transpose else array
      array = np.ascontiguousarray(array.astype(numpy_dtype, copy=False))
      f.write(array.reshape(-1).view(np.uint8))
    f.flush()
    os.fsync(f.fileno())


def _write_json(path: Path, value):
  path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')


def _write_tokenizer(folder: Path, tokenizer):
  if tokenizer is None:
    return
  if not isinstance(tokenizer, TokenizerInfo):
    source = Path(tokenizer)
    names = [n for n in _TOKENIZER_FILES if (source / n).is_file()]
    if not {'tokenizer.json', 'tokenizer.model'} & set(names):
      raise ValueError(
        f'tokenizer={str(source)!r} holds no tokenizer.json: give the folder '
        'of the checkpoint'
      )
    for name in names:
      shutil.copyfile(source / name, folder / name)
    return
  info = tokenizer
  info.tokenizer.save(str(folder / 'tokenizer.json'))
  token = lambda i: None if i is None else info.tokenizer.id_to_token(i)
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'bos_token': token(info.bos_id),
    'eos_token': token(info.eos_ids[0] if info.eos_ids else None),
    'pad_token': token(info.pad_id),
  }
  settings = {k: v for k, v in settings.items() if v is not None}
  if info.chat_template is not None:
    settings['chat_template'] = info.chat_template
  _write_json(folder / 'tokenizer_config.json', settings)
  if info.eos_ids:
    ends = {'eos_token_id': list(info.eos_ids)}
    _write_json(folder / 'generation_config.json', ends)
