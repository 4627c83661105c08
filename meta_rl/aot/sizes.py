"""Shapes of models that people train, for a plan without a checkpoint.

As their config.json has them (huggingface.co/Qwen, meta-llama, google).
"""

_QWEN2 = {'qkv_bias': True, 'rope_base': 1e6}
SIZES = {
  'qwen2.5-0.5b': _QWEN2
  | {
    'vocab_size': 151936,
    'num_layers': 24,
    'width': 896,
    'num_heads': 14,
    'num_kv_heads': 2,
    'ffn_width': 4864,
  },
  # R1-Distill-Qwen-1.5B: Qwen2.5-1.5B's shape with a head of its own.
  'qwen2.5-1.5b': _QWEN2
  | {
    'vocab_size': 151936,
    'num_layers': 28,
    'width': 1536,
    'num_heads': 12,
    'num_kv_heads': 2,
    'ffn_width': 8960,
    'tie_embeddings': False,
  },
  'qwen2.5-7b': _QWEN2
  | {
    'vocab_size': 152064,
    'num_layers': 28,
    'width': 3584,
    'num_heads': 28,
    'num_kv_heads': 4,
    'ffn_width': 18944,
    'tie_embeddings': False,
  },
  'qwen2.5-32b': _QWEN2
  | {
    'vocab_size': 152064,
    'num_layers': 64,
    'width': 5120,
    'num_heads': 40,
    'num_kv_heads': 8,
    'ffn_width': 27648,
    'tie_embeddings': False,
  },
}
