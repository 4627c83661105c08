"""Checkpoints of Hugging Face and GGUF, in and out.

config, params, tokenizer = hf.load_model(PATH)
hf.save_checkpoint(OUT, params, config, hf.hf_config_of(PATH), tokenizer=PATH)
"""

from meta_rl.hf.config import config_from_hf, config_to_hf, read_config
from meta_rl.hf.load import load_checkpoint
from meta_rl.hf.model import (
  context_length,
  find,
  hf_config_of,
  load_model,
  model_config,
  model_tokenizer,
)
from meta_rl.hf.save import save_checkpoint
from meta_rl.hf.tokenizer import TokenizerInfo, read_tokenizer

__all__ = [
  'TokenizerInfo',
  'config_from_hf',
  'config_to_hf',
  'context_length',
  'find',
  'hf_config_of',
  'load_checkpoint',
  'load_model',
  'model_config',
  'model_tokenizer',
  'read_config',
  'read_tokenizer',
  'save_checkpoint',
]
