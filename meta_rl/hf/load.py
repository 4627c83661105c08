"""Parameters out of a folder of safetensors, one tensor at a time.

Everything that names, shapes and headers can tell is checked before the first
tensor is read. Then each is read, turned, cast and placed: beside the
parameters themselves no more than a few copies of the largest tensor is held.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from meta_rl.hf.config import read_config
from meta_rl.hf.names import Entry, abstract_params, entries
from meta_rl.hf.tensors import open_folder
from meta_rl.models import TransformerConfig
from meta_rl.types import Params
from meta_rl.weights import WeightsError, first_few, flatten, unflatten

# Buffers that old checkpoints hold and that follow from the config.
_BUFFERS = re.compile(r'(^|\.)rotary_emb\.inv_freq$')


def load_checkpoint(
  folder,
  config: TransformerConfig | None = None,
  *,
  shardings: Any = None,
  dtype: str | None = None,
) -> Params:
  """Returns the parameters of a Hugging Face folder, placed.

  Args:
    folder: with config.json and model.safetensors, or shards and their index.
    config: of the model; None: what config.json says.
    shardings: where to put the parameters: a pytree like them, one sharding for
      all, a function from their shapes to either, or None.
    dtype: of the parameters, 'float32' or 'bfloat16'; None: the config's
      `param_dtype`.

  Raises:
    WeightsError: one line that names file and tensor: a missing, truncated or
      foreign file, a missing, extra, doubled or misshapen tensor. No pickle is
      ever read.
    ValueError: a config that this model cannot compute.
  """
  folder = Path(folder)
  if config is None:
    config = read_config(folder)
  if dtype is not None:
    config = dataclasses.replace(config, param_dtype=dtype)
  wanted = entries(config)
  held = open_folder(folder)
  _check(f'checkpoint {folder}', wanted, held, config)

  def read(entry: Entry) -> np.ndarray:
    return held[entry.name].read(entry.name)

  return fill(config, wanted, read, shardings)


def _check(source, wanted, held, config):
  """Raises unless the checkpoint holds what is wanted, and nothing else."""
  names = {entry.name for entry in wanted}
  if missing := names - held.keys():
    raise WeightsError(
      f'{source} lacks tensor {first_few(missing)}: is config.json '
      'of another checkpoint? If not, copy or download the weights again'
    )
  extra = {n for n in held.keys() - names if not _BUFFERS.search(n)}
  if config.tie_embeddings and 'lm_head.weight' in extra:
    _check_tied(source, held)
    extra.remove('lm_head.weight')
  if extra:
    file = held[min(extra)].path.name
    raise WeightsError(
      f'{source} has tensor {first_few(extra)} (in {file}), which this model '
      'does not: is it of another architecture?'
    )
  for entry in wanted:
    file = held[entry.name]
    dtype, shape = file.tensors[entry.name][:2]
    where = f'weights file {file.path}: tensor {entry.name}'
    if shape != entry.shape:
      raise WeightsError(
        f'{where} has shape {list(shape)}; this model needs '
        f'{list(entry.shape)}: is config.json of another checkpoint?'
      )
    if not jnp.issubdtype(dtype, jnp.floating):
      raise WeightsError(
        f'{where} has dtype {dtype}; floating-point numbers are allowed'
      )


def _check_tied(source, held):
  """Raises if a tied head differs from the embedding: which would count?"""
  pair = [
    held[name].read(name)
    for name in ('lm_head.weight', 'model.embed_tokens.weight')
  ]
  if not np.array_equal(*pair):
    raise WeightsError(
      f'{source} ties its head to the embedding, but its tensor lm_head.weight '
      'differs from model.embed_tokens.weight: set tie_word_embeddings to '
      'false in config.json'
    )


def fill(
  config: TransformerConfig,
  wanted: list[Entry],
  read: Callable[[Entry], np.ndarray],
  shardings: Any = None,
) -> Params:
  """Returns the parameters, each tensor read, turned, cast and placed in turn.

  Args:
    config: of the model; its `param_dtype` is that of the parameters.
    wanted: of `entries`.
    read: gives a tensor as the checkpoint holds it.
    shardings: as in `load_checkpoint`.
  """
  abstract = abstract_params(config)
  if callable(shardings) and not isinstance(shardings, Sharding):
    shardings = shardings(abstract)
  if shardings is None or isinstance(shardings, Sharding):
    placed = dict.fromkeys(flatten(abstract), shardings)
  else:
    placed = flatten(shardings)
  leaves = flatten(abstract)
  flat = {}
  for entry in wanted:
    leaf, sharding = leaves[entry.path], placed[entry.path]
    array = read(entry)
    array = (array.T if entry.transpose else array).astype(
      leaf.dtype, copy=False
    )
    if entry.layer is None:
      flat[entry.path] = place(array, sharding)
      continue
    if entry.path not in flat:
      flat[entry.path] = _zeros(leaf.shape, leaf.dtype, sharding)()
    layer = place(array, _of_layer(sharding))
    flat[entry.path] = _put(sharding)(flat[entry.path], layer, entry.layer)
  return unflatten(flat)


def place(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
  """Returns the array on its devices; each process gives its own shards."""
  if sharding is None:
    # Uncommitted, as fresh parameters are.
    return jnp.array(array)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: np.ascontiguousarray(array[index])
  )


def _of_layer(sharding: Sharding | None) -> Sharding | None:
  """Returns the sharding of one layer of stacked ones."""
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
  return sharding


@functools.lru_cache(maxsize=64)
def _zeros(shape, dtype, sharding):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _put(sharding):
  """Returns `(stacked, layer, i) -> stacked`, written in place."""

  def put(stacked, layer, i):
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, 0)

  return jax.jit(put, donate_argnums=0, out_shardings=sharding)
