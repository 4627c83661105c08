"""RMSNorm and linear layers, in float32 or with bfloat16 storage."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale, in float32.

  With `plus_one` it is multiplied by 1 + scale, and scale starts at 0 (Gemma):
  the same function, stored so that weight decay pulls towards the identity.
  """

  eps: float
  plus_one: bool = False
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param('scale', init, (x.shape[-1],), self.param_dtype)
    if self.plus_one:
      scale = 1.0 + scale.astype(jnp.float32)
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Linear(nn.Module):
  """x @ kernel (+ bias) over the last axis, on 2-D operands."""

  features: int
  use_bias: bool = False
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    kernel = self.param('kernel', init, shape, self.param_dtype)
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    if self.use_bias:
      zeros = nn.initializers.zeros
      bias = self.param('bias', zeros, shape[1:], self.param_dtype)
      y += bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], self.features)
