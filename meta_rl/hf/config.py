"""config.json of Hugging Face <-> `TransformerConfig`.

What a checkpoint computes is by definition what the reference implementation of
its `model_type` in `transformers` computes. Every key that it reads is either
translated or refused; a key that it does not read changes nothing here either.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from meta_rl.hf.tensors import read_json
from meta_rl.models import RopeScaling, TransformerConfig

# model_type -> the class that 'architectures' may name.
ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'gemma3_text': 'Gemma3ForCausalLM',
}
_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu_tanh',
}
_SIZES = {
  'vocab_size': 'vocab_size',
  'num_hidden_layers': 'num_layers',
  'hidden_size': 'width',
  'num_attention_heads': 'num_heads',
  'intermediate_size': 'ffn_width',
}
# Values that leave the model as it is; any other would change it.
_NEUTRAL = {
  'quantization_config': (None,),
  'auto_map': (None,),
  'is_encoder_decoder': (None, False),
  'add_cross_attention': (None, False),
  'use_bidirectional_attention': (None, False),
  'rope_interleaved': (None, False),
  'use_mrope': (None, False),
  'attention_dropout': (None, 0, 0.0),
  'partial_rotary_factor': (None, 1, 1.0),
  'num_experts': (None, 0),
  'num_local_experts': (None, 0),
  'adapters': (None,),
}
_YARN_ALIASES = {'mscale', 'mscale_all_dim'}
_SCALING = {
  'original_max_position_embeddings': 'original_length',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'beta_fast': 'beta_fast',
  'beta_slow': 'beta_slow',
  'attention_factor': 'attention_factor',
  'truncate': 'truncate',
}
# What a run may choose freely; the rest is the checkpoint's.
OVERRIDES = (
  *('dtype', 'param_dtype', 'scan_layers', 'remat', 'attention'),
  *('lora_rank', 'lora_alpha', 'lora_layers'),
)


def read_config(folder, **overrides) -> TransformerConfig:
  """Returns the config of a checkpoint's folder; see `config_from_hf`."""
  path = Path(folder) / 'config.json'
  values = read_json(path, 'config')
  try:
    return config_from_hf(values, **overrides)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def config_from_hf(values: Mapping[str, Any], **overrides) -> TransformerConfig:
  """Returns the config of a transformer from what config.json holds.

  Args:
    values: the object in config.json, of any version of `transformers`.
    **overrides: those of `OVERRIDES`; and, for Gemma
      3, `attention_softcap`, which `transformers` keeps and never applies (as
      of 5.24), so that neither do we unless told to.

  Raises:
    ValueError: an unknown architecture, or an option that this model does not
      compute; names the key and what is allowed.
  """
  kind = values.get('model_type')
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    raise ValueError(
      f'model_type {kind!r} is not supported; allowed is '
      f'{", ".join(ARCHITECTURES)}'
    )
  _check_types(values)
  for name in values.get('architectures') or ():
    if name != ARCHITECTURES[kind]:
      raise ValueError(
        f'architectures {name!r} is not supported; allowed for {kind} is '
        f'{ARCHITECTURES[kind]}'
      )
  for key, allowed in _NEUTRAL.items():
    if values.get(key) not in allowed:
      raise ValueError(
        f'{key}={_short(values[key])} is not supported; allowed is '
        f'{" or ".join(map(repr, allowed[1:])) or "to leave it out"}'
      )
  free = {*OVERRIDES, *(('attention_softcap',) * (kind == 'gemma3_text'))}
  if unknown := sorted(set(overrides) - free):
    raise ValueError(
      f'{unknown} cannot be overridden; allowed is {sorted(free)}: the rest is '
      "the checkpoint's"
    )
  fields = _sizes(values, kind) | _switches(values, kind)
  fields |= _gemma(values) if kind == 'gemma3_text' else _plain(values, kind)
  return TransformerConfig(**fields | overrides)


# Beyond any model, and well within what an index of an array can be.
_MAX_SIZE = 10**8
_MAX_LAYERS = 10**4
_MAX_POSITION = 2**31 - 1


def _is_count(value, high: int = _MAX_POSITION) -> bool:
  return type(value) is int and 1 <= value <= high


def _is_positive(value) -> bool:
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return number and 0 < value < math.inf


def _is_names(value) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


# (keys that are read, what they may be where they are there and not null, so
# in words)
_KINDS = (
  (
    ('num_hidden_layers',),
    lambda value: _is_count(value, _MAX_LAYERS),
    f'a whole number >= 1 and <= {_MAX_LAYERS}',
  ),
  (
    (
      *(name for name in _SIZES if name != 'num_hidden_layers'),
      *('num_key_value_heads', 'head_dim'),
    ),
    lambda value: _is_count(value, _MAX_SIZE),
    f'a whole number >= 1 and <= {_MAX_SIZE}',
  ),
  (
    (
      *('sliding_window', 'sliding_window_pattern'),
      *('_sliding_window_pattern', 'max_position_embeddings'),
    ),
    _is_count,
    f'a whole number >= 1 and <= {_MAX_POSITION}',
  ),
  (
    ('max_window_layers',),
    lambda value: value == 0 or _is_count(value),
    'a whole number >= 0',
  ),
  (
    ('mscale', 'mscale_all_dim'),
    lambda value: value == 0 or _is_positive(value),
    'a number >= 0',
  ),
  (
    (
      *('rms_norm_eps', 'rope_theta', 'rope_local_base_freq', 'factor'),
      *('query_pre_attn_scalar', 'final_logit_softcapping'),
      *('low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow'),
      *('attention_factor', 'original_max_position_embeddings'),
    ),
    _is_positive,
    'a number > 0',
  ),
  (
    ('rope_scaling', 'rope_parameters', 'full_attention', 'sliding_attention'),
    lambda value: isinstance(value, Mapping),
    'an object',
  ),
  (('architectures', 'layer_types'), _is_names, 'a list of names'),
  (
    ('hidden_act', 'hidden_activation', 'rope_type', 'type'),
    lambda value: isinstance(value, str),
    'a name',
  ),
  (
    (
      *('attention_bias', 'mlp_bias', 'use_sliding_window'),
      *('tie_word_embeddings', 'truncate'),
    ),
    lambda value: isinstance(value, bool),
    'true or false',
  ),
)
_TYPES = {
  key: (fits, allowed) for keys, fits, allowed in _KINDS for key in keys
}
# null is a value of its own only where transformers reads it as one.
_NEVER_NULL = (*_SIZES, 'rms_norm_eps', 'rope_theta')


def _check_types(values: Mapping[str, Any], inside: str = ''):
  """Raises ValueError for a key whose value is of another kind."""
  for key, (fits, allowed) in _TYPES.items():
    if key not in values:
      continue
    given = values[key]
    if given is None and key not in _NEVER_NULL:
      continue
    if not fits(given):
      raise ValueError(
        f'{inside}{key}={_short(given)} is not supported; allowed is {allowed}'
      )
    if isinstance(given, Mapping):
      _check_types(given, f'{inside}{key}.')


def _short(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:59] + '…'


def _sizes(values, kind) -> dict:
  # Where transformers has a default of its own for these, no checkpoint means
  # it by leaving them out.
  needed = [*_SIZES] + ['num_key_value_heads'] * (kind != 'llama')
  if missing := [key for key in needed if key not in values]:
    raise ValueError(f'lacks {", ".join(missing)}')
  fields = {ours: values[theirs] for theirs, ours in _SIZES.items()}
  fields['num_kv_heads'] = values.get('num_key_value_heads')
  fixed = {'qwen3': 128, 'gemma3_text': 256}.get(kind)
  # Qwen2's own config has no head_dim, but the reference obeys one.
  fields['head_dim'] = values.get('head_dim', fixed)
  return fields


def _switches(values, kind) -> dict:
  gemma = kind == 'gemma3_text'
  key = 'hidden_activation' if gemma else 'hidden_act'
  act = values.get(key, 'gelu_pytorch_tanh' if gemma else 'silu')
  if act not in _ACTIVATIONS:
    raise ValueError(
      f'{key}={act!r} is not supported; allowed is {", ".join(_ACTIVATIONS)}'
    )
  bias = bool(values.get('attention_bias', False)) and kind != 'qwen2'
  return {
    'norm_eps': values.get('rms_norm_eps', 1e-6),
    'tie_embeddings': bool(values.get('tie_word_embeddings', gemma)),
    'activation': _ACTIVATIONS[act],
    'qkv_bias': bias or kind == 'qwen2',
    'o_bias': bias,
    'ffn_bias': kind == 'llama' and bool(values.get('mlp_bias', False)),
    'qk_norm': kind in ('qwen3', 'gemma3_text'),
  }


def _plain(values, kind) -> dict:
  """Returns positions and windows of Llama and Qwen."""
  rope = values.get('rope_scaling') or values.get('rope_parameters') or {}
  base = rope.get('rope_theta', values.get('rope_theta', 10_000.0))
  fields = {
    'rope_base': float(base),
    'rope_scaling': _rope_scaling(rope, values),
  }
  window = values.get('sliding_window')
  if kind == 'llama' or not values.get('use_sliding_window', False):
    window = None
  first = values.get('max_window_layers', 28)
  if window is not None and first is None:
    raise ValueError(
      'max_window_layers=None is not supported with use_sliding_window; '
      'allowed is a whole number >= 0'
    )
  default = [
    'full_attention' if window is None or i < first else 'sliding_attention'
    for i in range(values['num_hidden_layers'])
  ]
  return fields | _windows(values, default, window)


def _gemma(values) -> dict:
  """Returns positions, windows, caps and scales of Gemma 3."""
  # transformers 5 keeps the two ropes in one nested dict, 4 in three keys.
  nested = values.get('rope_parameters') or {}
  full = dict(nested.get('full_attention') or {})
  local = dict(nested.get('sliding_attention') or {})
  if unknown := set(nested) - {'full_attention', 'sliding_attention'}:
    raise ValueError(
      f'rope_parameters has {sorted(unknown)}; allowed for gemma3_text is '
      'full_attention and sliding_attention'
    )
  full |= values.get('rope_scaling') or {}
  full.setdefault('rope_theta', values.get('rope_theta', 1_000_000.0))
  local.setdefault('rope_theta', values.get('rope_local_base_freq', 10_000.0))
  if local.get('rope_type', 'default') != 'default':
    raise ValueError(
      f'rope_parameters.sliding_attention.rope_type={local["rope_type"]!r} is '
      "not supported; allowed is 'default'"
    )
  pattern = values.get('sliding_window_pattern')
  pattern = (
    values.get('_sliding_window_pattern') if pattern is None else pattern
  )
  pattern = 6 if pattern is None else pattern
  default = [
    'sliding_attention' if (i + 1) % pattern else 'full_attention'
    for i in range(values['num_hidden_layers'])
  ]
  fields = _windows(values, default, values.get('sliding_window', 4096))
  if fields:
    fields['local_rope_base'] = float(local['rope_theta'])
  if values.get('attn_logit_softcapping') is not None:
    logging.warning(
      'config.json sets attn_logit_softcapping=%s, which transformers does not '
      'apply to Gemma 3 and which is not applied here: '
      'attention_softcap=%s applies it.',
      *[values['attn_logit_softcapping']] * 2,
    )
  return fields | {
    'rope_base': float(full['rope_theta']),
    'rope_scaling': _rope_scaling(full, values),
    'norm_plus_one': True,
    'post_norms': True,
    'embedding_scale': values['hidden_size'] ** 0.5,
    'query_scale': values.get('query_pre_attn_scalar', 256) ** -0.5,
    'logit_softcap': values.get('final_logit_softcapping'),
  }


def _windows(values, default, window) -> dict:
  """Returns the fields of local layers, none where no layer is local."""
  kinds = values.get('layer_types') or default
  if unknown := sorted(set(kinds) - {'full_attention', 'sliding_attention'}):
    raise ValueError(
      f'layer_types has {unknown}; allowed is full_attention and '
      'sliding_attention'
    )
  if len(kinds) != values['num_hidden_layers']:
    raise ValueError(
      f'layer_types has {len(kinds)} entries for '
      f'num_hidden_layers={values["num_hidden_layers"]}'
    )
  flags = tuple(kind == 'sliding_attention' for kind in kinds)
  if not any(flags):
    return {}
  if window is None:
    raise ValueError('layer_types has sliding_attention without a window')
  return {'sliding_window': window, 'local_layers': flags}


def _rope_scaling(rope, values) -> RopeScaling | None:
  """Returns the scaling that `rope_scaling` or `rope_parameters` asks for."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  known = {'rope_type', 'type', 'rope_theta', 'factor', *_SCALING}
  if kind == 'yarn':
    known |= _YARN_ALIASES
  if rope.get('partial_rotary_factor') not in (None, 1, 1.0):
    raise ValueError(
      f'partial_rotary_factor={rope["partial_rotary_factor"]} is not '
      'supported; allowed is 1.0'
    )
  known.add('partial_rotary_factor')
  if kind not in ('default', 'linear', 'llama3', 'yarn'):
    raise ValueError(
      f'rope_type={kind!r} is not supported; allowed is default, linear, '
      'llama3 and yarn'
    )
  if unknown := sorted(set(rope) - known):
    raise ValueError(f'rope_scaling: {unknown} is not supported with {kind!r}')
  if kind == 'default':
    return None
  given = {ours: rope.get(theirs) for theirs, ours in _SCALING.items()}
  length = 'original_max_position_embeddings'
  if kind == 'linear':
    # The reference reads the factor alone.
    given = {}
  elif values.get(length, rope.get(length)) is not None:
    given['original_length'] = values.get(length, rope.get(length))
  else:
    given['original_length'] = values.get('max_position_embeddings')
  factor = rope.get('factor')
  if kind == 'llama3':
    names = ('original_length', 'low_freq_factor', 'high_freq_factor')
    given = {name: given[name] for name in names}
  if kind == 'yarn':
    if factor is None:
      factor = values['max_position_embeddings'] / given['original_length']
    given = _yarn(rope, given, factor)
  if factor is None:
    raise ValueError(f'rope_scaling of kind {kind!r} lacks factor')
  return RopeScaling(kind=kind, factor=float(factor), **given)


def _yarn(rope, given, factor) -> dict:
  """Returns the fields of YaRN, the attention factor worked out."""
  given = {k: v for k, v in given.items() if not k.endswith('freq_factor')}
  # mscale and mscale_all_dim are DeepSeek's way to give the attention factor.
  scales = rope.get('mscale'), rope.get('mscale_all_dim')
  if given['attention_factor'] is None and all(scales):
    plain = RopeScaling('yarn', factor, original_length=1).yarn_factor
    above, below = (plain(scale) for scale in scales)
    given['attention_factor'] = above / below
  return given


def config_to_hf(
  config: TransformerConfig, *, max_position_embeddings: int, **extra
) -> dict:
  """Returns config.json of a model; `config_from_hf` gives the model back.

  Args:
    config: of the transformer.
    max_position_embeddings: the longest context, tokens.
    **extra: further keys, such as eos_token_id.

  Raises:
    ValueError: a model that none of the architectures is.
  """
  c = config
  kind = 'gemma3_text' if c.norm_plus_one else 'qwen3' if c.qk_norm else 'llama'
  if c.qkv_bias and not c.o_bias and kind == 'llama':
    kind = 'qwen2'
  act = {v: k for k, v in _ACTIVATIONS.items() if k != 'swish'}[c.activation]
  values = {theirs: getattr(c, ours) for theirs, ours in _SIZES.items()}
  values |= {
    'model_type': kind,
    'architectures': [ARCHITECTURES[kind]],
    'num_key_value_heads': c.kv_heads,
    'head_dim': c.dim,
    'rms_norm_eps': c.norm_eps,
    'tie_word_embeddings': c.tie_embeddings,
    'hidden_activation' if kind == 'gemma3_text' else 'hidden_act': act,
    'max_position_embeddings': max_position_embeddings,
    'dtype': c.param_dtype,
  }
  if kind != 'qwen2':
    values['attention_bias'] = c.qkv_bias
  if kind == 'llama':
    values['mlp_bias'] = c.ffn_bias
  rope = {'rope_type': 'default', 'rope_theta': c.rope_base}
  if (s := c.rope_scaling) is not None:
    rope |= {'rope_type': s.kind, 'factor': s.factor}
    given = {k: getattr(s, ours) for k, ours in _SCALING.items()}
    rope |= {k: v for k, v in given.items() if v is not None}
  values['rope_parameters'] = rope
  if any(c.is_local) or kind == 'gemma3_text':
    values |= {
      'sliding_window': c.sliding_window,
      'layer_types': [
        'sliding_attention' if local else 'full_attention'
        for local in c.is_local
      ],
    }
  if any(c.is_local) and kind.startswith('qwen'):
    values['use_sliding_window'] = True
  if kind == 'gemma3_text':
    scale = c.dim**-0.5 if c.query_scale is None else c.query_scale
    local = {'rope_type': 'default', 'rope_theta': c.local_rope_base or 1e4}
    values |= {
      'rope_parameters': {'full_attention': rope, 'sliding_attention': local},
      # transformers takes a whole number; another is found by the check below.
      'query_pre_attn_scalar': round(scale**-2),
      'final_logit_softcapping': c.logit_softcap,
      'attn_logit_softcapping': None,
    }
  values |= extra
  check_same(values, config)
  return values


def check_same(values: Mapping[str, Any], config: TransformerConfig):
  """Raises ValueError unless config.json's `values` mean `config`.

  What a run chooses freely (dtypes, scan, remat) may differ.
  """
  free = {name: getattr(config, name) for name in OVERRIDES}
  found = config_from_hf(values, **free)
  different = [
    f.name
    for f in dataclasses.fields(config)
    if not _equal(_value(found, f.name), _value(config, f.name))
  ]
  if different:
    raise ValueError(
      f'{different} of this model cannot be said in a config.json of '
      f'{values["model_type"]}: there {different[0]} is '
      f'{_value(found, different[0])}, here {_value(config, different[0])}'
    )


def _value(config, name):
  """Returns a field with its default worked out."""
  if name == 'num_kv_heads':
    return config.kv_heads
  if name == 'head_dim':
    return config.dim
  if name == 'local_layers':
    return config.is_local
  if name == 'query_scale' and config.query_scale is None:
    return config.dim**-0.5
  if name == 'rope_scaling' and config.rope_scaling is not None:
    return config.rope_scaling.worked_out()
  return getattr(config, name)


def _equal(a, b) -> bool:
  if isinstance(a, float) and isinstance(b, float):
    return abs(a - b) <= 1e-9 * abs(a)
  return a == b
