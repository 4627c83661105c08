"""The value head: a linear read-out of the policy's own features.

    V(state before token t) = kernel · features[t - 1] + bias

Its two leaves lie beside the policy's, in `params['value_head']`: one tree is
trained, sharded, saved and donated, and the policy's functions take no notice.
It starts at 0, so that a fresh critic subtracts nothing.

Axes: B traces, T tokens, D width.
"""

import jax.numpy as jnp

from meta_rl import checks
from meta_rl.scoring import positions_of
from meta_rl.types import Array, Model, Params

NAME = 'value_head'


def init_head(width: int) -> Params:
  """Returns the parameters of a value head, all 0.

  Args:
    width: D, of the model's features.

  Raises:
    ValueError: width < 1.
  """
  checks.check_count('width', width)
  return {'kernel': jnp.zeros(width), 'bias': jnp.zeros(())}


def with_head(params: Params, head: Params) -> Params:
  """Returns the policy's parameters with a value head beside them."""
  checks.check_dict('params', params)
  checks.check_dict('head', head)
  return {**params, NAME: head}


def without_head(params: Params) -> Params:
  """Returns the policy's parameters alone."""
  checks.check_dict('params', params)
  return {name: leaf for name, leaf in params.items() if name != NAME}


def features(
  model: Model, params: Params, tokens: Array, token_mask: Array
) -> Array:
  """Returns the features f32[B,T,D] that both read-outs share.

  Raises:
    ValueError: a model without `features_fn`, wrong shape or dtype.
  """
  checks.check_model(model)
  if model.features_fn is None:
    raise ValueError(
      'a value head reads features and this model has no features_fn: give it '
      'one, or use an algorithm without a critic.'
    )
  dims = {}
  tokens = checks.as_array('tokens', tokens, 'int[B,T]', dims)
  token_mask = checks.as_array('token_mask', token_mask, 'bool[B,T]', dims)
  positions = positions_of(token_mask)
  return model.features_fn(params, tokens, positions, None, None)[0]


def read_out(params: Params, features: Array, token_mask: Array) -> Array:
  """Returns the value of the state before each token.

    values[b, t] = kernel · features[b, t - 1] + bias

  Args:
    params: with a value head.
    features: f32[B,T,D], of `features`.
    token_mask: bool[B,T], everything but padding.

  Returns:
    f32[B,T], 0 at padding and at each row's first token, which no state is
    before.

  Raises:
    ValueError: parameters without a value head, wrong shape or dtype.
  """
  checks.check_dict('params', params)
  if NAME not in params:
    raise ValueError(
      f'the parameters have no {NAME!r}: add one with value.with_head, as '
      "algorithm.name='ppo' does."
    )
  head = params[NAME]
  dims = {'D': len(head['kernel'])}
  features = checks.as_array('features', features, 'float[B,T,D]', dims)
  token_mask = checks.as_array('token_mask', token_mask, 'bool[B,T]', dims)
  # A reduction and no matrix product: it keeps float32 on every device.
  product = features * head['kernel']
  after = product.sum(-1) + head['bias']
  known = token_mask & (positions_of(token_mask) > 0)
  return jnp.where(known, jnp.roll(after, 1, axis=1), 0.0)
