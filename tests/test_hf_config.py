"""Tests of meta_rl.hf.config: config.json in and out."""

import json
import logging as python_logging

import pytest
from hf_files import DATA

from meta_rl import hf
from meta_rl.models import RopeScaling, TransformerConfig

NAMES = sorted(path.name for path in DATA.iterdir())
LLAMA = {
  'model_type': 'llama',
  'vocab_size': 64,
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'intermediate_size': 40,
}


def values_of(name):
  """Returns config.json of a committed checkpoint."""
  return json.loads((DATA / name / 'config.json').read_text('utf-8'))


def test_an_r1_distill_config():
  # Keys as transformers 4 wrote them for this family.
  config = hf.config_from_hf(
    {
      'architectures': ['Qwen2ForCausalLM'],
      'attention_dropout': 0.0,
      'bos_token_id': 151643,
      'eos_token_id': 151643,
      'hidden_act': 'silu',
      'hidden_size': 1536,
      'initializer_range': 0.02,
      'intermediate_size': 8960,
      'max_position_embeddings': 131072,
      'max_window_layers': 21,
      'model_type': 'qwen2',
      'num_attention_heads': 12,
      'num_hidden_layers': 28,
      'num_key_value_heads': 2,
      'rms_norm_eps': 1e-06,
      'rope_theta': 10000,
      'sliding_window': 4096,
      'tie_word_embeddings': False,
      'torch_dtype': 'bfloat16',
      'use_cache': True,
      'use_mrope': False,
      'use_sliding_window': False,
      'vocab_size': 151936,
    },
    dtype='bfloat16',
    scan_layers=True,
  )
  assert config == TransformerConfig(
    vocab_size=151936,
    num_layers=28,
    width=1536,
    num_heads=12,
    num_kv_heads=2,
    ffn_width=8960,
    tie_embeddings=False,
    qkv_bias=True,
    dtype='bfloat16',
    scan_layers=True,
  )


def test_a_llama_3_config():
  old = LLAMA | {
    'head_dim': 8,
    'num_key_value_heads': 2,
    'rope_theta': 500000.0,
    'rope_scaling': {
      'factor': 32.0,
      'high_freq_factor': 4.0,
      'low_freq_factor': 1.0,
      'original_max_position_embeddings': 8192,
      'rope_type': 'llama3',
    },
  }
  config = hf.config_from_hf(old)
  assert config.rope_base == 500000.0
  assert config.rope_scaling == RopeScaling(
    kind='llama3',
    factor=32.0,
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )
  # transformers 5 keeps the base in the same dict, under another name.
  new = {k: v for k, v in old.items() if not k.startswith('rope')}
  new['rope_parameters'] = old['rope_scaling'] | {'rope_theta': 500000.0}
  assert hf.config_from_hf(new) == config


def test_a_gemma_3_config_of_transformers_4_and_5():
  old = LLAMA | {
    'model_type': 'gemma3_text',
    'num_hidden_layers': 7,
    'num_key_value_heads': 1,
    'head_dim': 16,
    'query_pre_attn_scalar': 64,
    'rope_theta': 1000000,
    'rope_local_base_freq': 10000,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 512,
    'sliding_window_pattern': 6,
  }
  config = hf.config_from_hf(old)
  # The default activation and tied head of its class are not in the file.
  assert (config.activation, config.tie_embeddings) == ('gelu_tanh', True)
  assert config.local_layers == (True,) * 5 + (False, True)
  assert (config.sliding_window, config.local_rope_base) == (512, 10000.0)
  assert config.rope_scaling == RopeScaling(kind='linear', factor=8.0)
  assert config.query_scale == 64**-0.5
  assert config.embedding_scale == 32**0.5
  new = {k: v for k, v in old.items() if 'rope' not in k}
  new['rope_parameters'] = {
    'full_attention': {
      'rope_type': 'linear',
      'factor': 8.0,
      'rope_theta': 1000000,
    },
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 10000},
  }
  assert hf.config_from_hf(new) == config


def test_the_attention_factor_of_deepseek():
  rope = {
    'rope_type': 'yarn',
    'factor': 40.0,
    'original_max_position_embeddings': 4096,
    'mscale': 1.0,
    'mscale_all_dim': 0.5,
  }
  config = hf.config_from_hf(LLAMA | {'rope_scaling': rope})
  # (0.1 ln 40 + 1) / (0.05 ln 40 + 1) = 1.3688879 / 1.1844440 = 1.1557220
  assert config.rope_scaling.attention_factor == pytest.approx(1.1557220)


def test_a_cap_that_is_not_applied_is_said(caplog):
  with caplog.at_level(python_logging.WARNING, logger='absl'):
    hf.config_from_hf(values_of('gemma3_text'))
  assert 'attention_softcap=1.0 applies it' in caplog.text


@pytest.mark.parametrize('name', NAMES)
def test_back_to_config_json(name):
  config = hf.read_config(DATA / name)
  values = hf.config_to_hf(config, max_position_embeddings=64, eos_token_id=2)
  assert values['eos_token_id'] == 2
  assert values['model_type'] == values_of(name)['model_type']
  again = hf.config_from_hf(json.loads(json.dumps(values)))
  assert (
    hf.config_to_hf(again, max_position_embeddings=64, eos_token_id=2) == values
  )


def rope(**values):
  """A config.json with this rope_scaling."""
  return {'rope_scaling': values}


@pytest.mark.parametrize(
  'values, message',
  [
    (
      {'model_type': 'mixtral'},
      "model_type 'mixtral'.*allowed is llama, qwen2",
    ),
    ({'model_type': None}, 'model_type None is not supported'),
    (
      {'architectures': ['LlamaForSequenceClassification']},
      "'LlamaForSequenceClassification'.*LlamaForCausalLM",
    ),
    (
      {'quantization_config': {'bits': 4}},
      'quantization_config=.*leave it out',
    ),
    ({'auto_map': {'AutoModel': 'x.Y'}}, 'auto_map=.*is not supported'),
    ({'num_local_experts': 8}, 'num_local_experts=8 is not supported'),
    ({'hidden_act': 'relu'}, "hidden_act='relu'.*allowed is silu"),
    ({'attention_dropout': 0.1}, 'attention_dropout=0.1'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'hidden_size': '32'}, "hidden_size='32'.*a whole number >= 1"),
    ({'hidden_size': -16}, 'hidden_size=-16.*a whole number >= 1'),
    ({'num_hidden_layers': 0}, 'num_hidden_layers=0.*a whole number >= 1'),
    ({'num_attention_heads': 0}, 'num_attention_heads=0.*>= 1'),
    ({'vocab_size': 10**12}, 'vocab_size=10{12} .*>= 1 and <= 10{8}$'),
    ({'num_hidden_layers': 10**9}, 'num_hidden_layers=10{9} .*<= 10000$'),
    ({'sliding_window': 2**31}, 'sliding_window=2147483648 .*<= 2147483647$'),
    ({'head_dim': '8'}, "head_dim='8'.*a whole number >= 1"),
    ({'head_dim': 0}, 'head_dim=0.*a whole number >= 1'),
    ({'rope_theta': None}, 'rope_theta=None.*a number > 0'),
    ({'rms_norm_eps': None}, 'rms_norm_eps=None.*a number > 0'),
    ({'rms_norm_eps': '1e-5'}, "rms_norm_eps='1e-5'.*a number > 0"),
    ({'hidden_act': []}, r'hidden_act=\[\].*a name'),
    ({'model_type': []}, r'model_type \[\] is not supported'),
    ({'architectures': 5}, 'architectures=5.*a list of names'),
    ({'layer_types': [[], []]}, r'layer_types=.*a list of names'),
    ({'rope_scaling': 'x'}, "rope_scaling='x'.*an object"),
    (rope(rope_type=['yarn']), 'rope_type=.*a name'),
    (rope(rope_type='linear', factor='2'), "factor='2'.*a number > 0"),
    ({'tie_word_embeddings': 'false'}, "='false'.*true or false"),
    (
      {
        'model_type': 'qwen2',
        'num_key_value_heads': 2,
        'use_sliding_window': True,
        'sliding_window': 4,
        'max_window_layers': None,
      },
      'max_window_layers=None',
    ),
    (rope(rope_type='dynamic', factor=2.0), "rope_type='dynamic'.*yarn"),
    (rope(type='longrope', factor=2.0), "rope_type='longrope'"),
    (rope(rope_type='linear'), "kind 'linear' lacks factor"),
    (
      rope(rope_type='linear', factor=2.0, odd=1),
      r"\['odd'\] is not supported",
    ),
    (rope(rope_type='llama3', factor=2.0), 'needs .*high_freq_factor'),
    (rope(rope_type='linear', factor=0.5), 'factor=0.5 must be at least 1'),
    ({'layer_types': ['full_attention']}, 'layer_types has 1 entries for'),
    ({'layer_types': ['linear_attention'] * 2}, r"\['linear_attention'\]"),
    ({'layer_types': ['sliding_attention'] * 2}, 'without a window'),
    ({'model_type': 'qwen2'}, 'lacks num_key_value_heads'),
    (
      {
        'model_type': 'gemma3_text',
        'num_key_value_heads': 1,
        'rope_parameters': {
          'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}
        },
      },
      "sliding_attention.rope_type='linear'",
    ),
  ],
)
def test_what_is_not_computed_is_refused(values, message):
  values = LLAMA | {'max_position_embeddings': 64} | values
  with pytest.raises(ValueError, match=message) as caught:
    hf.config_from_hf(values)
  assert '\n' not in str(caught.value)


def test_what_a_checkpoint_settles_cannot_be_overridden():
  with pytest.raises(ValueError, match=r"\['rope_base'\] cannot be overridden"):
    hf.config_from_hf(LLAMA, rope_base=5.0)
  with pytest.raises(ValueError, match='attention_softcap'):
    hf.config_from_hf(LLAMA, attention_softcap=5.0)


@pytest.mark.parametrize(
  'changes, name',
  [
    ({'post_norms': True}, 'post_norms'),
    ({'o_bias': True}, 'o_bias'),
    ({'query_scale': 0.5}, 'query_scale'),
    ({'attention_softcap': 2.0}, 'attention_softcap'),
    (
      {'activation': 'gelu_tanh', 'qk_norm': True, 'ffn_bias': True},
      'ffn_bias',
    ),
  ],
)
def test_a_model_without_an_architecture_is_refused(changes, name):
  config = TransformerConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=4, ffn_width=40, **changes
  )
  with pytest.raises(ValueError, match=rf"\['{name}'.*cannot be said"):
    hf.config_to_hf(config, max_position_embeddings=64)
