"""Shape and switches of a decoder-only transformer."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from meta_rl.checks import check_choice, check_count, check_range
from meta_rl.models.rope import RopeScaling

ACTIVATIONS = ('silu', 'gelu_tanh')
DTYPES = ('float32', 'bfloat16')
ATTENTION = ('dense', 'flash')
# The linear layers of a block.
LORA_LAYERS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
# What a layer may keep for its backward pass, of `remat`: the result of one of
# these, by the names that the layers give them.
KEPT = ('attention', 'q', 'k', 'v', 'o', 'gate', 'up')


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Shape and switches of a transformer; hashable, so it can be static.

  The defaults are those of a plain Llama. Others need: Qwen2 `qkv_bias`; Qwen3
  `qk_norm` and `head_dim`; Gemma 3 `qk_norm`, `head_dim`, `activation`,
  `norm_plus_one`, `post_norms`, `embedding_scale`, `query_scale`,
  `sliding_window`, `local_layers` and `local_rope_base`.

  Attributes:
    vocab_size: rows of the embedding; tokens are ids below it.
    num_layers, width, num_heads, num_kv_heads, head_dim, ffn_width: sizes;
      `num_kv_heads=None` means `num_heads`, `head_dim=None` means
      `width // num_heads`.
    rope_base: base of the rotary frequencies.
    rope_scaling: how they are stretched, a `RopeScaling` or a mapping of its
      fields; None: not. Local layers with a base of their own are not.
    norm_eps: added to the mean square in every RMSNorm.
    tie_embeddings: logits through the transposed embedding.
    qkv_bias: biases on query, key and value (Qwen2).
    o_bias: a bias on the output of attention.
    ffn_bias: biases on gate, up and down.
    qk_norm: RMSNorm on every head's query and key (Qwen3).
    activation: of the gate, 'silu' or 'gelu_tanh'.
    norm_plus_one: norms multiply by 1 + scale, scale starting at 0.
    post_norms: norms also behind attention and feed-forward, before the sum.
    embedding_scale: factor on embedded tokens, rounded to `dtype`; None: 1.
    query_scale: factor on queries; None: head_dim^-0.5.
    sliding_window: local layers see the last so many tokens, a query's own
      included, counted by position; None: all.
    local_layers: for each layer whether it is local; None: all are if
      `sliding_window` is set, none if not.
    local_rope_base: rotary base of local layers; None: `rope_base`.
    attention_softcap: c tanh(s / c) in place of attention scores s.
    logit_softcap: the same of the logits.
    scan_layers: one compiled layer in a `lax.scan` instead of `num_layers`
      copies; parameters and cache get a leading layer axis.
    remat: what a layer keeps for the backward pass, which computes the rest
      again: 'none', everything; 'products', its input and what its matrices and
      its attention give; 'attention+up' and the like, its input and what those
      of `KEPT` give; 'full', its input alone. True is 'full', False is 'none'.
    attention: of passes without a cache: 'dense', all scores at once, or
      'flash', a block of them at a time (`models.flash`), for long traces.
    dtype: of activations and the KV cache; norms, softmax and logits are
      computed in float32.
    param_dtype: of stored parameters.
    lora_rank: r of LoRA, 0 for none (`layers.Linear`).
    lora_alpha: the product of A and B counts alpha / r times.
    lora_layers: the linear layers of every block that have it: names out of
      LORA_LAYERS, or shell patterns of them ('*', '[qkvo]', '*_proj').
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  ffn_width: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  rope_base: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  qkv_bias: bool = False
  o_bias: bool = False
  ffn_bias: bool = False
  qk_norm: bool = False
  activation: str = 'silu'
  norm_plus_one: bool = False
  post_norms: bool = False
  embedding_scale: float | None = None
  query_scale: float | None = None
  sliding_window: int | None = None
  local_layers: tuple[bool, ...] | None = None
  local_rope_base: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  scan_layers: bool = False
  remat: bool | str = 'none'
  attention: str = 'dense'
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_layers: tuple[str, ...] = LORA_LAYERS

  def __post_init__(self):
    if isinstance(self.rope_scaling, Mapping):
      scaling = _known(RopeScaling, 'model.rope_scaling', self.rope_scaling)
      object.__setattr__(self, 'rope_scaling', scaling)
    if self.local_layers is not None:
      flags = tuple(map(bool, self.local_layers))
      object.__setattr__(self, 'local_layers', flags)
    if isinstance(self.remat, bool):
      object.__setattr__(self, 'remat', 'full' if self.remat else 'none')
    kept_names(self.remat)
    check_choice('activation', self.activation, ACTIVATIONS)
    check_choice('attention', self.attention, ATTENTION)
    check_choice('dtype', self.dtype, DTYPES)
    check_choice('param_dtype', self.param_dtype, DTYPES)
    self._check_sizes()
    self._check_local()
    self._check_lora()

  def _check_lora(self):
    given = self.lora_layers
    patterns = (given,) if isinstance(given, str) else tuple(given)
    check_count('lora_rank', self.lora_rank, low=0)
    check_range('lora_alpha', self.lora_alpha, above=0)
    # By their own names, or by those of Hugging Face: q_proj.
    names = {name: (name, f'{name}_proj') for name in LORA_LAYERS}
    found = {
      pattern: [n for n in names if fnmatch.filter(names[n], str(pattern))]
      for pattern in patterns
    }
    wrong = [pattern for pattern, matched in found.items() if not matched]
    if wrong or (self.lora_rank and not patterns):
      raise ValueError(
        f'lora_layers={given} is given; allowed are one or more of '
        f"{LORA_LAYERS}, or patterns of these, such as '*' and '[qkvo]'."
      )
    every = {name for matched in found.values() for name in matched}
    layers = tuple(name for name in LORA_LAYERS if name in every)
    object.__setattr__(self, 'lora_layers', layers)

  def _check_sizes(self):
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f'width={self.width} is not divisible by num_heads={self.num_heads}: '
        'change one of them or give head_dim.'
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.kv_heads}.'
      )
    if self.dim % 2:
      raise ValueError(f'head_dim={self.dim} is odd; rotary needs an even one.')
    for name in ('sliding_window', 'attention_softcap', 'logit_softcap'):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f'{name}={value} must be above 0, or None.')

  def _check_local(self):
    if self.sliding_window is None and self.local_rope_base is None:
      if self.local_layers is not None:
        raise ValueError(
          'local_layers is given and local layers are like the others: give '
          'sliding_window or local_rope_base.'
        )
      return
    flags = self.local_layers
    if flags is None and self.sliding_window is None:
      raise ValueError('local_rope_base needs local_layers.')
    if flags is not None and len(flags) != self.num_layers:
      raise ValueError(
        f'local_layers has {len(flags)} flags for {self.num_layers} layers.'
      )
    if flags is not None and not any(flags):
      raise ValueError(
        'no layer of local_layers is local: leave out local_layers, '
        'sliding_window and local_rope_base.'
      )

  @property
  def kv_heads(self) -> int:
    """Number of key/value heads."""
    return self.num_kv_heads or self.num_heads

  @property
  def dim(self) -> int:
    """Width of a head."""
    return self.head_dim or self.width // self.num_heads

  @property
  def is_local(self) -> tuple[bool, ...]:
    """For each layer whether it is local."""
    if self.local_layers is not None:
      return self.local_layers
    return (self.sliding_window is not None,) * self.num_layers


def kept_names(remat: str) -> tuple[str, ...]:
  """Returns what a layer keeps beside its input, names of `KEPT`.

      'attention+up' -> ('attention', 'up')

  Raises:
    ValueError: for another text.
  """
  whole = {'none': (), 'full': (), 'products': KEPT}
  text = str(remat)
  if text in whole:
    return whole[text]
  names = tuple(text.split('+'))
  if unknown := [name for name in names if name not in KEPT]:
    raise ValueError(
      f'remat={remat!r}: {unknown[0]!r} is unknown; allowed are '
      f'{", ".join(whole)}, or some of {", ".join(KEPT)}, joined as in '
      "'attention+up'."
    )
  return names


def _known(kind: type, name: str, values: Mapping[str, Any]):
  """Returns the dataclass of plain values; an unknown key raises, named."""
  known = {f.name for f in dataclasses.fields(kind)}
  if unknown := sorted(set(values) - known):
    raise ValueError(f'{name}: unknown {unknown}; allowed: {sorted(known)}.')
  needed = {
    f.name
    for f in dataclasses.fields(kind)
    if f.default is f.default_factory is dataclasses.MISSING
  }
  if missing := sorted(needed - set(values)):
    raise ValueError(
      f'{name}.{missing[0]} is missing: a config of a model must say it.'
    )
  return kind(**values)


def config_from_dict(values: dict[str, Any]) -> TransformerConfig:
  """Returns a config from plain values; an unknown key raises, named."""
  return _known(TransformerConfig, 'model', values)
