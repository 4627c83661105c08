"""Rotary positions, and how a context is stretched after pretraining.

Axes: B rows, Q query tokens, H heads, E head width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl.checks import check_choice
from meta_rl.types import Array

# What each kind reads; a number given to a kind that doesn't is refused.
_FIELDS = {
  'linear': set(),
  'llama3': {'original_length', 'low_freq_factor', 'high_freq_factor'},
  'yarn': {
    'original_length',
    'beta_fast',
    'beta_slow',
    'attention_factor',
    'truncate',
  },
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched to longer contexts; hashable.

  Attributes:
    kind: 'linear': every frequency divided by `factor` (Chen et al. 2023,
      arXiv 2306.15595). 'llama3': wavelengths above original_length /
      low_freq_factor are stretched by `factor`, those below original_length /
      high_freq_factor are kept, with a ramp between (Llama 3.1, arXiv
      2407.21783). 'yarn': dimensions that turn more than `beta_fast` times
      within the original length are kept, those below `beta_slow` stretched,
      and queries and keys multiplied by `attention_factor` (Peng et al. 2023,
      arXiv 2309.00071).
    factor: how many times longer, >= 1.
    original_length: context of pretraining, tokens; 'llama3' and 'yarn'.
    low_freq_factor, high_freq_factor: turns within the original length;
      'llama3'.
    beta_fast, beta_slow: turns within the original length; None means 32 and 1.
    attention_factor: None means 0.1 ln(factor) + 1; 'yarn'.
    truncate: round the ends of the ramp to whole dimensions; None means True.

  Raises:
    ValueError: an unknown kind, a missing number, or one that `kind` ignores.
  """

  kind: str
  factor: float
  original_length: int | None = None
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  beta_fast: float | None = None
  beta_slow: float | None = None
  attention_factor: float | None = None
  truncate: bool | None = None

  def __post_init__(self):
    check_choice('rope_scaling.kind', self.kind, tuple(_FIELDS))
    if not self.factor >= 1:
      raise ValueError(f'rope_scaling.factor={self.factor} must be at least 1.')
    given = {k for k, v in dataclasses.asdict(self).items() if v is not None}
    if ignored := given - _FIELDS[self.kind] - {'kind', 'factor'}:
      raise ValueError(
        f'rope_scaling.kind={self.kind!r} does not use {sorted(ignored)}: '
        'leave it out.'
      )
    needed = {'original_length', 'low_freq_factor', 'high_freq_factor'}
    if missing := (needed & _FIELDS[self.kind]) - given:
      raise ValueError(
        f'rope_scaling.kind={self.kind!r} needs {sorted(missing)}.'
      )
    if self.kind == 'llama3' and not (
      0 < self.low_freq_factor < self.high_freq_factor
    ):
      raise ValueError(
        f'rope_scaling: low_freq_factor={self.low_freq_factor} must be above 0 '
        f'and below high_freq_factor={self.high_freq_factor}.'
      )

  def yarn_factor(self, scale: float = 1.0) -> float:
    """Returns 0.1 scale ln(factor) + 1, the attention factor of YaRN."""
    return 0.1 * scale * math.log(self.factor) + 1.0

  def worked_out(self) -> 'RopeScaling':
    """Returns the same scaling with every number that it uses given."""
    if self.kind != 'yarn':
      return self
    factor = self.attention_factor
    return dataclasses.replace(
      self,
      beta_fast=self.beta_fast or 32,
      beta_slow=self.beta_slow or 1,
      attention_factor=self.yarn_factor() if factor is None else factor,
      truncate=self.truncate is not False,
    )


def frequencies(
  dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Array, float]:
  """Returns the frequencies f32[dim/2] and the factor on cos and sin.

    w_i = base^(-2i/dim), each then w_i ((1 - r_i) + r_i / factor)

  with r_i how far pair i is stretched: 1 for 'linear', else a ramp from 0 to 1
  over the wavelengths ('llama3') or over the dimensions ('yarn').

  Args:
    dim: width of a head, even.
    base: > 1.
    scaling: None: not stretched.
  """
  inverse = base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  if scaling is None:
    return inverse, 1.0
  s = scaling.worked_out()
  if s.kind == 'linear':
    return inverse / s.factor, 1.0
  if s.kind == 'llama3':
    turns = s.original_length * inverse / (2 * math.pi)
    low, high = s.low_freq_factor, s.high_freq_factor
    stretched = 1 - jnp.clip((turns - low) / (high - low), 0, 1)
    attention = 1.0
  else:
    stretched = jnp.asarray(_yarn_ramp(dim, base, s), jnp.float32)
    attention = s.attention_factor
  return inverse * ((1 - stretched) + stretched / s.factor), attention


def _yarn_ramp(dim: int, base: float, s: RopeScaling) -> np.ndarray:
  """Returns f[dim/2], 0 where a pair turns often and 1 where it hardly does."""

  def pair_of(turns):
    # The (real-valued) pair that turns so often within the original length.
    wavelength = s.original_length / turns
    return dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(base))

  low, high = pair_of(s.beta_fast), pair_of(s.beta_slow)
  if s.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  # A ramp without width would be 0 / 0.
  width = (high - low) or 0.001
  return np.clip((np.arange(dim // 2) - low) / width, 0, 1)


def rope_angles(
  positions: Array, dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
  """Returns cos and sin, f32[B,1,Q,dim/2], of positions i32[B,Q] (-1 as 0)."""
  inverse, factor = frequencies(dim, base, scaling)

  def turn(positions):
    angles = jnp.maximum(positions, 0)[:, None, :, None] * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)

  def once(positions):
    # XLA's CPU compiler fuses cos and sin into all that reads them, and works
    # them out anew in every layer and for every head, forward and backward; it
    # drops an optimization_barrier, but not a condition that it cannot know.
    # Where all is padding, what is turned does not matter.
    some = jnp.any(positions >= 0)
    nothing = lambda p: jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(turn, p)
    )
    return jax.lax.cond(some, turn, nothing, positions)

  return jax.lax.platform_dependent(positions, cpu=once, default=turn)


@jax.custom_vjp
def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the two halves of x [B,H,Q,E] (the half-split form of RoPE).

  Its gradient, of x alone, is the rotation back: one pass over x, where that
  of two slices and a concatenation is several.
  """
  # [first, second] cos + [-second, first] sin, the halves as an axis of two.
  # Unlike a concatenation, it is the same for every element, and vectorises.
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  signed = jnp.stack([-sin, sin], axis=-2)
  turned = halves * cos[..., None, :] + jnp.flip(halves, -2) * signed
  return turned.reshape(x.shape).astype(x.dtype)


def _rotate_forward(x, cos, sin):
  return rotate(x, cos, sin), (cos, sin)


def _rotate_backward(angles, cotangent):
  cos, sin = angles
  return rotate(cotangent, cos, -sin), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)
