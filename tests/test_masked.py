"""Tests of meta_rl.masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import checks, masked

MASKS = [
  [False, False, True, False, True],
  [True, False, False, False, False],
  [False, False, False, False, False],
  [True, True, True, True, True],
  [False, False, False, False, True],
]


def test_before_first_tells_first_from_none():
  got = masked.before_first(jnp.array(MASKS))
  want = [
    [True, True, True, False, False],
    [True, False, False, False, False],
    [True, True, True, True, True],
    [True, False, False, False, False],
    [True, True, True, True, True],
  ]
  np.testing.assert_array_equal(got, want)


def test_first_and_last_true_index():
  mask = jnp.array(MASKS)
  np.testing.assert_array_equal(masked.first_true_index(mask), [2, 0, -1, 0, 4])
  np.testing.assert_array_equal(masked.last_true_index(mask), [4, 0, -1, 4, 4])
  across = masked.first_true_index(mask, axis=0)
  np.testing.assert_array_equal(across, [1, 3, 0, 3, 0])


def test_cumsums():
  x = jnp.array([1.0, 2.0, 4.0])
  np.testing.assert_array_equal(masked.exclusive_cumsum(x), [0, 1, 3])
  np.testing.assert_array_equal(masked.reverse_cumsum(x), [7, 6, 4])
  flags = masked.exclusive_cumsum(jnp.array([False, True, False, True, False]))
  np.testing.assert_array_equal(flags, [0, 0, 1, 1, 2])
  assert flags.dtype == jnp.int32


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_masked_positions_reach_neither_value_nor_gradient(poison):
  x = jnp.array([[1.0, poison, 3.0], [poison, poison, poison]])
  mask = jnp.array([[True, False, True], [False, False, False]])
  np.testing.assert_array_equal(masked.masked_sum(x, mask, axis=1), [4, 0])
  # (1 + 3) / 2 = 2; the empty row is 0, not 0 / 0.
  np.testing.assert_array_equal(masked.masked_mean(x, mask, axis=1), [2, 0])
  grad = jax.grad(lambda x: jnp.sum(jnp.exp(masked.select(mask, x))))(x)
  want = [[np.exp(1), 0, np.exp(3)], [0, 0, 0]]
  np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_safe_divide_has_finite_gradients():
  x, y = jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])
  np.testing.assert_array_equal(masked.safe_divide(x, y), [0.5, 0])
  grad = jax.grad(lambda y: masked.safe_divide(x, y).sum())(y)
  np.testing.assert_array_equal(grad, [-0.25, 0])


def test_check_shape_binds_letters_over_calls():
  dims = {}
  checks.check_shape('success', np.zeros((4, 7)), 'B,K+1', dims)
  checks.check_shape('count', np.zeros(4), ('B',), dims)
  checks.check_shape('scores', np.zeros((2, 3, 6)), '...,K', dims)
  checks.check_shape('fixed', np.zeros((9, 4)), (None, 4))
  assert dims == {'B': 4, 'K': 6}


@pytest.mark.parametrize(
  ('shape', 'spec'),
  [
    ((5, 6), 'B,K'),
    ((4, 7), 'B,K'),
    ((4,), 'B,K'),
    ((4, 6, 1), 'B,K'),
    ((2, 5), '...,K'),
    ((), '...,K'),
    ((3, 3), 'N,4'),
    ((0,), 'J+1'),
  ],
)
def test_check_shape_names_the_argument(shape, spec):
  with pytest.raises(ValueError, match=r'rewards must have shape \['):
    checks.check_shape('rewards', np.zeros(shape), spec, {'B': 4, 'K': 6})


def test_a_failed_check_binds_nothing():
  dims = {'K': 6}
  with pytest.raises(ValueError, match='with K=6'):
    checks.check_shape('x', np.zeros((4, 9)), 'B,K', dims)
  assert dims == {'K': 6}


@pytest.mark.parametrize(
  ('dtype', 'kind'),
  [('int32', 'float'), ('float32', 'int'), ('int32', 'bool'), ('bool', 'int')],
)
def test_check_dtype(dtype, kind):
  with pytest.raises(ValueError, match=f'x must hold {kind} .* {dtype}'):
    checks.check_dtype('x', np.zeros(3, dtype), kind)


def test_as_array_widens_half_precision():
  x = checks.as_array('x', jnp.ones(3, jnp.bfloat16), 'float[T]')
  assert x.dtype == jnp.float32
  assert checks.as_array('x', [1, 2], 'number[T]').dtype == jnp.int32


def test_check_range_and_choice():
  checks.check_range('x', 0.5, above=0, high=1)
  checks.check_range('x', jnp.array(-1.0), low=0)  # arrays pass unseen
  with pytest.raises(ValueError, match=r'x must be > 0 and <= 1, got 0'):
    checks.check_range('x', 0, above=0, high=1)
  with pytest.raises(ValueError, match='x must be >= 0, got -1'):
    checks.check_range('x', -1, low=0)
  with pytest.raises(ValueError, match='>= 0, got nan'):
    checks.check_range('x', float('nan'), low=0)
  with pytest.raises(ValueError, match=r"k must be one of \['a', 'b'\]"):
    checks.check_choice('k', 'c', ('a', 'b'))


@pytest.mark.parametrize(
  'check, given, message',
  [
    (checks.check_count, 0, 'x must be a whole number >= 1, got 0'),
    (checks.check_count, 1.0, 'whole number >= 1, got 1.0'),
    (checks.check_count, True, 'whole number >= 1, got True'),
    (checks.check_scalar, '3', "x must be a number, got '3'"),
    (checks.check_scalar, np.zeros((4, 1)), r'one number, got float64\[4, 1\]'),
    (checks.check_ids, 3, 'x must be a tuple of token ids, got 3'),
    (checks.check_ids, '3', 'must be a tuple of token ids'),
    (checks.check_ids, (1, -1), 'a token id must be a whole number >= 0'),
    (checks.check_ids, jnp.zeros(2), 'x must hold int values'),
    (checks.check_key, 0, r'one key, such as jax.random.key\(0\), got 0'),
    (
      checks.check_key,
      jax.random.split(jax.random.key(0)),
      'must be one key',
    ),
  ],
)
def test_a_check_names_what_is_allowed(check, given, message):
  with pytest.raises(ValueError, match=message):
    check('x', given)


def test_checks_pass_what_is_right():
  checks.check_count('x', np.int32(2))
  checks.check_scalar('x', jnp.float32(2), above=0)
  checks.check_ids('x', [1, np.int32(2)])
  checks.check_ids('x', jnp.arange(3))
  checks.check_key('x', jax.random.key(0))
  checks.check_key('x', jax.random.PRNGKey(0))


def test_a_bare_function_is_no_model():
  def net(params, tokens):
    return params, tokens

  with pytest.raises(ValueError, match="got 'net'.*from_apply_fn wraps"):
    checks.check_model(net)
