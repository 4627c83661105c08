import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import leaves

Moments = collections.namedtuple('Moments', 'mu nu')


def make_state():
  return {
    'opt': [Moments(jnp.zeros(2), jnp.ones((2, 3), jnp.bfloat16)), ()],
    'key': jax.random.split(jax.random.key(3), 4),
  }


def test_flatten_names_every_container():
  flat = leaves.flatten(make_state())
  assert list(flat) == [('key',), ('opt', '0', 'mu'), ('opt', '0', 'nu')]
  assert leaves.describe(flat) == {
    'key': [[4], 'key<fry>'],
    'opt/0/mu': [[2], 'float32'],
    'opt/0/nu': [[2, 3], 'bfloat16'],
  }
  assert leaves.key_impls(flat) == {'key': 'threefry2x32'}
  nested = leaves.nest(flat)
  assert nested['opt']['0'].keys() == {'mu', 'nu'}


def test_a_leaf_that_is_no_array_is_refused():
  with pytest.raises(TypeError, match='leaf step is a int; allowed are array'):
    leaves.flatten({'step': 3})


def test_two_leaves_of_one_name_are_refused():
  class Twins:
    pass

  jax.tree_util.register_pytree_with_keys(
    Twins,
    lambda _: ([(jax.tree_util.DictKey('a'), jnp.ones(1))] * 2, None),
    lambda _, __: Twins(),
  )
  with pytest.raises(TypeError, match='two state leaves are named twins/a'):
    leaves.flatten({'twins': Twins()})


def test_first_difference_goes_in_the_order_of_this_run():
  table = {'a': [[2], 'float32'], 'b': [[3], 'int32']}
  assert leaves.first_difference(table, table) is None
  text = leaves.first_difference(table, table | {'a': [[4], 'float32']})
  assert text == (
    'leaf a is float32[2] in the checkpoint and float32[4] in this run'
  )
  text = leaves.first_difference(table, {'a': table['a']})
  assert text == 'leaf b is int32[3] in the checkpoint and nothing in this run'


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_keys_go_to_words_and_back(impl):
  key = jax.random.split(jax.random.key(3, impl=impl), 4)
  words = leaves.to_save(key)
  assert words.dtype == jnp.uint32
  abstract = leaves.stored(jax.ShapeDtypeStruct(key.shape, key.dtype))
  assert (abstract.shape, abstract.dtype) == (words.shape, words.dtype)
  back = leaves.from_stored(np.asarray(words), impl)
  assert back.dtype == key.dtype
  np.testing.assert_array_equal(jax.random.key_data(back), words)


def test_a_saved_leaf_survives_the_donation_of_its_source():
  x = jnp.arange(4.0)
  kept = leaves.to_save(x)
  x.delete()
  np.testing.assert_array_equal(kept, [0, 1, 2, 3])


def test_a_restored_leaf_is_as_free_as_a_fresh_one():
  leaf = leaves.from_stored(np.full(1 << 16, 3, np.float32), None)
  assert not leaf.committed
  # Donating it must be possible and give the right numbers.
  double = jax.jit(lambda x: x + x, donate_argnums=0)
  np.testing.assert_array_equal(double(leaf), 6)
  assert leaf.is_deleted()
