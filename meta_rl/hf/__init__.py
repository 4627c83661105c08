"""Checkpoints of Hugging Face and GGUF, in and out."""

from meta_rl.hf.config import config_from_hf, config_to_hf, read_config
from meta_rl.hf.load import load_checkpoint

__all__ = ['config_from_hf', 'config_to_hf', 'load_checkpoint', 'read_config']
