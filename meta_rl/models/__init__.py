"""Networks, each behind the one seam `meta_rl.types.Model`."""

from meta_rl.models.generic import from_apply_fn
from meta_rl.models.transformer import (
  TransformerConfig,
  config_from_dict,
  init_params,
  make_model,
  num_params,
)
from meta_rl.types import Model

__all__ = [
  'Model',
  'TransformerConfig',
  'config_from_dict',
  'from_apply_fn',
  'init_params',
  'make_model',
  'num_params',
]
