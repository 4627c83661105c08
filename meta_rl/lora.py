"""LoRA: small trainable factors beside frozen weights.

The factors are parameters of their layers, `lora_a` and `lora_b` beside
`kernel` (meta_rl/models/layers.py). Here is what else there is to them: adding
them to a checkpoint's weights, telling them from what is frozen, leaving them
out for the reference policy, and multiplying them in for an export.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from meta_rl import checks, models
from meta_rl.types import Array, Params

NAMES = ('lora_a', 'lora_b')


def is_factor(path: str) -> bool:
  """Returns whether 'layers/attention/q/lora_a' is a factor's path."""
  return path.rpartition('/')[2] in NAMES


def split(
  params: Params, trainable: Callable[[str], bool]
) -> tuple[Params, Params]:
  """Returns (what is trained, what is frozen), nested dicts without the rest.

  Args:
    params: nested dicts of arrays.
    trainable: of the path of a leaf, its names joined by '/'.

  Raises:
    ValueError: params that are no dict, or trainable that is no function.
  """
  checks.check_callable('trainable', trainable)
  own, frozen = {}, {}
  for path, leaf in _flatten(params).items():
    (own if trainable(path) else frozen)[path] = leaf
  return _unflatten(own), _unflatten(frozen)


def join(own: Params, frozen: Params) -> Params:
  """Returns the params that `split` cut in two."""
  checks.check_dict('own', own)
  checks.check_dict('frozen', frozen)
  return _unflatten({**_flatten(frozen), **_flatten(own)})


def add(params: Params, config: models.TransformerConfig, key: Array) -> Params:
  """Returns params with fresh factors: the function is that without them.

  Args:
    params: of the same model without LoRA; its arrays are shared.
    config: with a `lora_rank`.
    key: PRNG key of A.

  Raises:
    ValueError: params that are no dict, another config, or no key.
  """
  _check_config(config)
  checks.check_key('key', key)
  abstract = jax.eval_shape(lambda: models.init_params(config, key))
  flat = _flatten(params)
  for index, (path, leaf) in enumerate(sorted(_flatten(abstract).items())):
    if not is_factor(path) or path in flat:
      continue
    if path.endswith('lora_b'):
      flat[path] = jnp.zeros(leaf.shape, leaf.dtype)
    else:
      own = jax.random.normal(
        jax.random.fold_in(key, index), leaf.shape, leaf.dtype
      )
      flat[path] = own * leaf.shape[-2] ** -0.5
  return _unflatten(flat)


def without(params: Params) -> Params:
  """Returns params whose factors do nothing: the policy before training.

  All but B is shared, so that a frozen reference costs no memory.
  """
  return _unflatten(
    {
      path: jnp.zeros_like(leaf) if path.endswith('/lora_b') else leaf
      for path, leaf in _flatten(params).items()
    }
  )


def merge(params: Params, config: models.TransformerConfig) -> Params:
  """Returns params of the model without LoRA that computes the same.

    kernel + alpha / r * A @ B, rounded once to the kernel's dtype

  Args:
    params: with factors; without any they come back as they are.
    config: whose `lora_alpha` and `lora_rank` count.

  Raises:
    ValueError: params that are no dict, or factors of another rank.
  """
  _check_config(config)
  flat = _flatten(params)
  for path in [p for p in flat if p.endswith('/lora_a')]:
    layer = path.rpartition('/')[0]
    a, b = flat.pop(path), flat.pop(f'{layer}/lora_b')
    if a.shape[-1] != config.lora_rank:
      raise ValueError(
        f'config must have lora_rank={a.shape[-1]}, that of the factors of '
        f'{layer}, got {config.lora_rank}'
      )
    kernel = flat[f'{layer}/kernel']
    product = jnp.einsum('...dr,...rf->...df', a, b)
    scale = config.lora_alpha / config.lora_rank
    total = kernel.astype(jnp.float32) + scale * product
    flat[f'{layer}/kernel'] = total.astype(kernel.dtype)
  return _unflatten(flat)


def _check_config(config: models.TransformerConfig) -> None:
  if not isinstance(config, models.TransformerConfig):
    raise ValueError(
      f'config must be a TransformerConfig, got {checks.show(config)}'
    )


def _flatten(tree: Mapping, prefix: str = '') -> dict[str, Array]:
  checks.check_dict('params', tree)
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{name}/')
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def _unflatten(flat: Mapping[str, Array]) -> dict:
  tree = {}
  for path, value in flat.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree
