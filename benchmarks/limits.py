"""What the machine itself does at a model's own shapes, bare.

Axes: m rows of activations, k inputs and n outputs of a matrix.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

from meta_rl.models.layers import product

_LEAST_FLOPS = 2e8  # of one timed program


def seconds(fn) -> float:
  """Returns the wall-clock seconds of one call, its result waited for."""
  began = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - began


def median(fn, rounds: int) -> float:
  """Returns the median seconds of a call, after one that is not counted."""
  jax.block_until_ready(fn())
  return statistics.median(seconds(fn) for _ in range(rounds))


def products(config) -> list[tuple[int, int, int]]:
  """Returns (inputs, outputs, how often) of every matrix that a token meets."""
  inner, keys = config.num_heads * config.dim, config.kv_heads * config.dim
  width, ffn, layers = config.width, config.ffn_width, config.num_layers
  return [
    (width, inner, layers),
    (width, keys, 2 * layers),
    (inner, width, layers),
    (width, ffn, 2 * layers),
    (ffn, width, layers),
    (width, config.vocab_size, 1),
  ]


def matmul_seconds(shapes, rounds: int, dtype='float32') -> list[float]:
  """Returns the median seconds of [m,k] x [k,n] for every (m, k, n).

  Small products are repeated in one program: a call's own time, some 10 us,
  would be most of theirs.
  """
  found = []
  for m, k, n in shapes:
    times = max(1, round(_LEAST_FLOPS / (2 * m * k * n)))
    a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    many = functools.partial(_multiply, times)
    found.append(median(functools.partial(many, a, b), rounds) / times)
  return found


@functools.partial(jax.jit, static_argnums=0)
def _multiply(times, a, b):
  """Returns a product, taken so many times, each waiting for the one before."""

  def again(_, carry):
    left, _ = carry
    found = product(left, b)
    # One number of what comes out, so that nothing is left out or moved.
    one = (1e-9 * found[:1, :1]).astype(left.dtype)
    return jax.lax.dynamic_update_slice(left, one, (0, 0)), found

  shape = jax.eval_shape(product, a, b)
  empty = jnp.zeros(shape.shape, shape.dtype)
  return jax.lax.fori_loop(0, times, again, (a, empty))[1]


def shapes_of(config, rows: int, *, backward: bool) -> list[tuple]:
  """Returns ((m, k, n), how often) of the model's products on so many rows.

  backward: the two products of each gradient as well.
  """
  found = []
  for k, n, number in products(config):
    found.append(((rows, k, n), number))
    if backward:
      found += [((rows, n, k), number), ((k, rows, n), number)]
  return found


def matmuls(config, rows: int, rounds: int, *, backward: bool) -> dict:
  """Returns GFLOP/s and seconds of the model's products on so many rows.

  Args:
    config: of the model.
    rows: of activations.
    rounds: that each median is over.
    backward: the two products of the gradient as well.
  """
  known = shapes_of(config, rows, backward=backward)
  spent = matmul_seconds([s for s, _ in known], rounds, config.dtype)
  return total(known, spent)


def total(known, spent) -> dict:
  """Returns GFLOP/s and seconds of products, each counted as often as it is.

  Args:
    known: ((m, k, n), how often), of `shapes_of`.
    spent: seconds of each once.
  """
  whole = sum(t * number for t, (_, number) in zip(spent, known))
  flops = sum(2 * m * k * n * number for (m, k, n), number in known)
  return {'gflops': flops / whole / 1e9, 'seconds': whole}


def bandwidth(rounds: int) -> float:
  """Returns GB/s at which memory is read, of a sum over 512 MB."""
  x = jnp.ones((1 << 27,), jnp.float32)
  add = jax.jit(jnp.sum)
  return x.nbytes / median(lambda: add(x), rounds) / 1e9
