"""GGUF files: metadata as a config, tensors dequantised one at a time.

The `gguf` package reads the format (extra 'llm'). Two things that writers of
GGUF do to weights are undone: Llama's query and key rows are interleaved for
another form of rotary positions, and Gemma's norms have 1 added.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meta_rl.files import one_line
from meta_rl.hf import config as hf_config
from meta_rl.hf.load import fill
from meta_rl.hf.names import Entry, entries
from meta_rl.models import RopeScaling, TransformerConfig
from meta_rl.models.rope import frequencies
from meta_rl.types import Params
from meta_rl.weights import WeightsError, first_few

_KINDS = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'gemma3': 'gemma3_text',
}
# Key below the architecture's name -> key of config.json.
_KEYS = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'rope.freq_base': 'rope_theta',
  'final_logit_softcapping': 'final_logit_softcapping',
  'attn_logit_softcapping': 'attn_logit_softcapping',
}
_NEEDED = {
  'num_hidden_layers',
  'hidden_size',
  'intermediate_size',
  'num_attention_heads',
}
_SCALING = {
  'factor': 'factor',
  'original_context_length': 'original_max_position_embeddings',
  'yarn_beta_fast': 'beta_fast',
  'yarn_beta_slow': 'beta_slow',
}
_ROPE_FACTORS = 'rope_freqs.weight'


class GgufFile:
  """A GGUF file: its metadata read, its tensors not yet.

  Attributes:
    path: of the file.
    metadata: key -> value.
    tensors: name -> the package's tensor.

  Raises:
    WeightsError: the package `gguf` is missing; a missing, truncated or foreign
      file.
  """

  def __init__(self, path):
    try:
      import gguf
    except ImportError:
      raise WeightsError(
        f'weights file {path}: GGUF files need the package gguf: run pip '
        "install 'meta-rl[llm]'"
      ) from None
    self.path = Path(path)
    self._dequantize = gguf.quants.dequantize
    if self.path.is_dir():
      raise WeightsError(
        f'weights file {path} is a folder: name a .gguf file in it, or give a '
        'folder of safetensors a name that does not end in .gguf'
      )
    if not self.path.is_file():
      raise WeightsError(
        f'weights file {path} does not exist: name one that does'
      )
    try:
      reader = _reader(gguf)(self.path)
    except Exception as error:  # whatever damaged bytes lead the reader to
      raise WeightsError(
        f'weights file {path} is damaged, truncated or no GGUF file '
        f'({one_line(error)})'
      ) from None
    self._fields = reader.fields
    self.metadata = {
      key: field.contents()
      for key, field in reader.fields.items()
      if key != 'GGUF.tensor_count' and len(field.types) > 0
    }
    self.tensors = {tensor.name: tensor for tensor in reader.tensors}

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor, rows first."""
    return tuple(int(n) for n in reversed(self.tensors[name].shape))

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor in float32 (or as it is, if not quantised)."""
    tensor = self.tensors[name]
    try:
      array = self._dequantize(tensor.data, tensor.tensor_type)
      return np.asarray(array).reshape(self.shape(name))
    except (NotImplementedError, ValueError) as error:
      raise WeightsError(
        f'weights file {self.path}: tensor {name} of type '
        f'{tensor.tensor_type.name} cannot be read: {one_line(error)}'
      ) from None


def _reader(gguf):
  """Returns the package's reader, made quick.

  It takes a slice of its memory map for every string of the vocabulary, which
  costs some ten times that of a plain array on the same memory.
  """

  class Reader(gguf.GGUFReader):
    @property
    def data(self):
      return self._plain_data

    @data.setter
    def data(self, value):
      self._plain_data = np.asarray(value)

  return Reader


def config_values(file: GgufFile) -> dict[str, Any]:
  """Returns what config.json would hold of the model in a GGUF file.

  Raises:
    ValueError: an architecture or an option that this model does not compute.
  """
  data = file.metadata
  name = data.get('general.architecture')
  if name not in _KINDS:
    raise ValueError(
      f'{file.path}: general.architecture {name!r} is not supported; allowed '
      f'is {", ".join(_KINDS)}'
    )
  own = {
    key.removeprefix(f'{name}.'): value
    for key, value in data.items()
    if key.startswith(f'{name}.')
  }
  try:
    return _values(_KINDS[name], own, file)
  except KeyError as error:
    raise ValueError(f'{file.path} lacks {name}.{error.args[0]}') from None
  except ValueError as error:
    raise ValueError(f'{file.path}: {one_line(error)}') from None


def _values(kind: str, own: dict, file: GgufFile) -> dict[str, Any]:
  values = {
    'model_type': kind,
    'architectures': [hf_config.ARCHITECTURES[kind]],
  }
  for key, name in _KEYS.items():
    if key in own:
      values[name] = _plain(own.pop(key))
  if missing := [k for k, v in _KEYS.items() if v in _NEEDED - values.keys()]:
    raise KeyError(missing[0])
  heads, width = values['num_attention_heads'], values['hidden_size']
  values.setdefault('num_key_value_heads', heads)
  dim = own.pop('attention.key_length', width // heads)
  values['head_dim'] = dim
  own.pop('vocab_size', None)
  values['vocab_size'] = file.shape('token_embd.weight')[0]
  values['tie_word_embeddings'] = 'output.weight' not in file.tensors
  biased = 'blk.0.attn_output.bias' in file.tensors
  values |= {'attention_bias': biased, 'mlp_bias': False}
  for key in ('attention.value_length', 'rope.dimension_count'):
    if own.pop(key, dim) != dim:
      raise ValueError(f'{key} differs from the width of a head, {dim}')
  scaling = _scaling(own, values)
  if kind == 'gemma3_text':
    values |= _gemma(own, values)
  if _ROPE_FACTORS in file.tensors:
    scaling = _llama3(file.read(_ROPE_FACTORS), values)
  if scaling:
    values['rope_scaling'] = scaling
  own.pop('attention.causal', True)
  if own.get('expert_count') == 0:
    own = {k: v for k, v in own.items() if not k.startswith('expert')}
  if own:
    raise ValueError(f'{first_few(own)} is not supported: leave it out')
  return values


def _plain(value):
  """Returns a float as the shortest that float32 rounds to the same."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(own: dict, values: dict) -> dict:
  """Takes the keys of rope.scaling; returns config.json's rope_scaling."""
  prefix = 'rope.scaling.'
  kind = own.pop(prefix + 'type', 'none')
  own.pop(prefix + 'finetuned', None)
  found = {
    theirs: _plain(own.pop(prefix + key))
    for key, theirs in _SCALING.items()
    if prefix + key in own
  }
  # A factor on top of YaRN's own; 1 leaves it.
  if own.get(prefix + 'attn_factor') == 1:
    own.pop(prefix + 'attn_factor')
  if kind == 'none':
    return {}
  if kind not in ('linear', 'yarn'):
    raise ValueError(
      f'rope.scaling.type {kind!r} is not supported; allowed is none, linear '
      'and yarn'
    )
  return {'rope_type': kind} | found


def _gemma(own: dict, values: dict) -> dict:
  """Takes the keys of Gemma 3; returns config.json's."""
  heads, width = values['num_attention_heads'], values['hidden_size']
  pattern = own.pop('attention.sliding_window_pattern', 6)
  if isinstance(pattern, list):
    kinds = ['sliding_attention' if p else 'full_attention' for p in pattern]
    where = {'layer_types': kinds}
  else:
    where = {'sliding_window_pattern': pattern}
  # The file doesn't say; of all sizes, the one with 62 layers alone divides by
  # the width that its heads would have if they shared the model's.
  big = values['num_hidden_layers'] == 62
  return where | {
    'sliding_window': own.pop('attention.sliding_window'),
    'rope_theta': values.get('rope_theta', 1_000_000.0),
    'rope_local_base_freq': _plain(own.pop('rope.freq_base_swa', 10_000.0)),
    'query_pre_attn_scalar': width // heads if big else values['head_dim'],
  }


def _llama3(factors: np.ndarray, values: dict) -> dict:
  """Returns the scaling that Llama 3's factors on wavelengths come from.

  The file holds the factors and not what made them; all of Llama 3.1 to 3.3
  stretch a context of 8192 tokens with the same two turns.
  """
  scaling = RopeScaling(
    kind='llama3',
    factor=float(factors.max()),
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )
  dim, base = values['head_dim'], values.get('rope_theta', 10_000.0)
  stretched = [frequencies(dim, base, s)[0] for s in (None, scaling)]
  if not np.allclose(stretched[0] / stretched[1], factors, rtol=1e-3):
    raise ValueError(f'{_ROPE_FACTORS} is not the scaling of a Llama 3')
  return {
    'rope_type': 'llama3',
    'factor': scaling.factor,
    'original_max_position_embeddings': scaling.original_length,
    'low_freq_factor': scaling.low_freq_factor,
    'high_freq_factor': scaling.high_freq_factor,
  }


def load_params(
  file: GgufFile, config: TransformerConfig, *, shardings: Any = None
) -> Params:
  """Returns the parameters of a GGUF file, each tensor dequantised in turn.

  Args:
    file: an open file.
    config: of its model.
    shardings: as in `load_checkpoint`.

  Raises:
    WeightsError: a missing, extra or misshapen tensor, by name.
  """
  wanted = entries(config, 'gguf')
  names = {entry.name for entry in wanted}
  source = f'weights file {file.path}'
  if missing := names - file.tensors.keys():
    raise WeightsError(
      f'{source} lacks tensor {first_few(missing)}: download it again, or '
      'convert the checkpoint again'
    )
  if extra := file.tensors.keys() - names - {_ROPE_FACTORS}:
    raise WeightsError(
      f'{source} has tensor {first_few(extra)}, which this model does not'
    )
  for entry in wanted:
    if file.shape(entry.name) != entry.shape:
      raise WeightsError(
        f'{source}: tensor {entry.name} has shape '
        f'{list(file.shape(entry.name))}; this model needs '
        f'{list(entry.shape)}: convert the checkpoint again'
      )
  undo = _undo(file.metadata, config)
  read = lambda entry: undo(entry, file.read(entry.name))
  return fill(config, wanted, read, shardings)


def _undo(metadata: Mapping[str, Any], config: TransformerConfig):
  """Returns what undoes the changes of a GGUF writer to a tensor."""
  interleaved = metadata['general.architecture'] == 'llama'
  heads = {'q': config.num_heads, 'k': config.kv_heads}

  def undo(entry: Entry, array: np.ndarray) -> np.ndarray:
    group, last = ('', *entry.path.split('/'))[-2:]
    if interleaved and group in heads:
      pairs = array.reshape(heads[group], config.dim // 2, 2, *array.shape[1:])
      return pairs.swapaxes(1, 2).reshape(array.shape)
    if config.norm_plus_one and last == 'scale':
      return array - 1
    return array

  return undo


def read_gguf_config(file: GgufFile, **overrides) -> TransformerConfig:
  """Returns the config of the model in a GGUF file; see `config_from_hf`."""
  return hf_config.config_from_hf(config_values(file), **overrides)
