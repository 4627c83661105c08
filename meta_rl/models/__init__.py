"""Networks, each behind the one seam `meta_rl.types.Model`."""

from meta_rl.models.config import TransformerConfig, config_from_dict
from meta_rl.models.generic import from_apply_fn
from meta_rl.models.rope import RopeScaling
from meta_rl.models.transformer import (
  init_params,
  make_model,
  num_params,
)
from meta_rl.types import Model

__all__ = [
  'Model',
  'RopeScaling',
  'TransformerConfig',
  'config_from_dict',
  'from_apply_fn',
  'init_params',
  'make_model',
  'num_params',
]
