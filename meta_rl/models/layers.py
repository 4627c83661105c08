"""RMSNorm and linear layers, in float32 or with bfloat16 storage."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from meta_rl import places
from meta_rl.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
  x: Array, w: Array, path: str = '', dtype: str | None = None
) -> Array:
  """Returns x @ w, summed in float32.

  The sums of bfloat16 products are float32 on every device; asking for them and
  rounding after, here and in the gradient of x, is what XLA has its fast
  kernels for on CPUs. (Without a rule of its own the gradient would multiply a
  float32 cotangent by bfloat16 weights, as float32.) The gradient of w keeps
  its float32 sums, on one device and over many.

  Under fsdp w is gathered here, in the dtype of x, forward and again backward.

  Args:
    x: [N,D].
    w: [D,F], of the same dtype or a wider one.
    path: the end of w's path in the parameters, for `places`.
    dtype: of the result; None: that of x.
  """
  y = _sums(x, _whole(w, x, path))
  return y.astype(dtype or x.dtype)


def _sums(x, w):
  return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def _whole(w, x, path):
  return places.gather(w.astype(x.dtype), path)


def _product_forward(x, w, path, dtype):
  return product(x, w, path, dtype), (x, w)


def _product_backward(path, dtype, kept, y):
  del dtype
  x, w = kept
  y = y.astype(x.dtype)
  to_x = _sums(y, _whole(w, x, path).T).astype(x.dtype)
  return to_x, places.outer(x, y, path).astype(w.dtype)


product.defvjp(_product_forward, _product_backward)


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
  """x @ kernel (+ bias) over the last axis, on 2-D operands.

  With `lora_rank` r it is x @ kernel + lora_scale * (x @ A) @ B, where A [D,r]
  starts at random and B [r,F] at 0: the layer then begins as it was (Hu et al.
  2021, arXiv 2106.09685, section 4.1). A and B are float32 whatever the kernel.
  """

  features: int
  use_bias: bool = False
  param_dtype: str = 'float32'
  lora_rank: int = 0
  lora_scale: float = 1.0

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    kernel = self.param('kernel', init, shape, self.param_dtype)
    flat = x.reshape(-1, x.shape[-1])
    y = product(flat, kernel, f'{self.name}/kernel')
    if self.lora_rank:
      rank = self.lora_rank
      a = self.param('lora_a', init, (shape[0], rank))
      b = self.param('lora_b', nn.initializers.zeros, (rank, shape[1]))
      low = product(flat, a)
      y += product(low, self.lora_scale * b)
    if self.use_bias:
      zeros = nn.initializers.zeros
      bias = self.param('bias', zeros, shape[1:], self.param_dtype)
      y += bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], self.features)


def make_linear(config, features: int, use_bias: bool, name: str) -> Linear:
  """Returns the linear layer `name` of a `TransformerConfig`."""
  rank = config.lora_rank if name in config.lora_layers else 0
  return Linear(
    features,
    use_bias,
    config.param_dtype,
    rank,
    config.lora_alpha / rank if rank else 1.0,
    name=name,
  )
