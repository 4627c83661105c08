"""Which tensor of a checkpoint is which parameter: the one table.

A linear layer's kernel is [inputs, outputs] here and [outputs, inputs] in
checkpoints, so kernels are transposed; nothing else changes.
"""

import dataclasses

import jax

from meta_rl.models import TransformerConfig, init_params
from meta_rl.types import Params
from meta_rl.weights import flatten

# Ours -> (Hugging Face, GGUF). '{}' is the layer.
_WHOLE = {
  'embedding': ('model.embed_tokens.weight', 'token_embd.weight'),
  'head': ('lm_head.weight', 'output.weight'),
  'final_norm/scale': ('model.norm.weight', 'output_norm.weight'),
}
_LAYER = {
  'attention_norm/scale': ('input_layernorm.weight', 'attn_norm.weight'),
  'attention/q/kernel': ('self_attn.q_proj.weight', 'attn_q.weight'),
  'attention/k/kernel': ('self_attn.k_proj.weight', 'attn_k.weight'),
  'attention/v/kernel': ('self_attn.v_proj.weight', 'attn_v.weight'),
  'attention/o/kernel': ('self_attn.o_proj.weight', 'attn_output.weight'),
  'attention/q/bias': ('self_attn.q_proj.bias', 'attn_q.bias'),
  'attention/k/bias': ('self_attn.k_proj.bias', 'attn_k.bias'),
  'attention/v/bias': ('self_attn.v_proj.bias', 'attn_v.bias'),
  'attention/o/bias': ('self_attn.o_proj.bias', 'attn_output.bias'),
  'attention/q_norm/scale': ('self_attn.q_norm.weight', 'attn_q_norm.weight'),
  'attention/k_norm/scale': ('self_attn.k_norm.weight', 'attn_k_norm.weight'),
  'ffn_norm/scale': ('post_attention_layernorm.weight', 'ffn_norm.weight'),
  'gate/kernel': ('mlp.gate_proj.weight', 'ffn_gate.weight'),
  'up/kernel': ('mlp.up_proj.weight', 'ffn_up.weight'),
  'down/kernel': ('mlp.down_proj.weight', 'ffn_down.weight'),
  'gate/bias': ('mlp.gate_proj.bias', 'ffn_gate.bias'),
  'up/bias': ('mlp.up_proj.bias', 'ffn_up.bias'),
  'down/bias': ('mlp.down_proj.bias', 'ffn_down.bias'),
}
# With norms behind the blocks too, 'post_attention_layernorm' is that one.
_LAYER_POST_NORMS = _LAYER | {
  'attention_post_norm/scale': (
    'post_attention_layernorm.weight',
    'post_attention_norm.weight',
  ),
  'ffn_norm/scale': ('pre_feedforward_layernorm.weight', 'ffn_norm.weight'),
  'ffn_post_norm/scale': (
    'post_feedforward_layernorm.weight',
    'post_ffw_norm.weight',
  ),
}
FORMATS = {'hf': ('model.layers.{}.', 0), 'gguf': ('blk.{}.', 1)}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a checkpoint and where it goes.

  Attributes:
    name: of the tensor in the checkpoint.
    path: of the parameter, 'layers_0/attention/q/kernel', or with scanned
      layers 'layers/attention/q/kernel'.
    layer: its index along the leading axis under scanned layers, else None.
    transpose: the checkpoint holds it transposed.
    shape: of the tensor in the checkpoint.
  """

  name: str
  path: str
  layer: int | None
  transpose: bool
  shape: tuple[int, ...]


def abstract_params(config: TransformerConfig) -> Params:
  """Returns the parameters' shapes and dtypes, nothing computed."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def entries(config: TransformerConfig, kind: str = 'hf') -> list[Entry]:
  """Returns every tensor that a checkpoint of this model holds.

  A parameter's tensors, one a layer under scanned layers, stand together.

  Args:
    config: of the transformer.
    kind: 'hf' or 'gguf', whose names.
  """
  prefix, column = FORMATS[kind]
  table = _LAYER_POST_NORMS if config.post_norms else _LAYER
  found = []
  for path, leaf in flatten(abstract_params(config)).items():
    transpose = path == 'head' or path.endswith('/kernel')
    if path in _WHOLE:
      names = [_WHOLE[path][column]]
      layers, shape = [None], leaf.shape
    else:
      group, inner = path.split('/', 1)
      name = table[inner][column]
      if group == 'layers':
        layers, shape = list(range(config.num_layers)), leaf.shape[1:]
        names = [prefix.format(i) + name for i in layers]
      else:
        layers, shape = [None], leaf.shape
        names = [prefix.format(group.removeprefix('layers_')) + name]
    shape = tuple(shape[::-1] if transpose else shape)
    found += [
      Entry(name, path, layer, transpose, shape)
      for name, layer in zip(names, layers)
    ]
  return found
