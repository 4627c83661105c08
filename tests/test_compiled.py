"""CountedJit counts traces, not calls; a watch counts what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import compiled
from meta_rl.compiled import CountedJit


def test_one_trace_a_shape():
  call = CountedJit(lambda x: 2 * x)
  assert call.traces == 0
  for _ in range(3):
    np.testing.assert_array_equal(call(jnp.arange(3)), [0, 2, 4])
  assert call.traces == 1
  call(jnp.arange(4))
  assert call.traces == 2
  # Known shapes are not traced again, other dtypes are.
  call(jnp.arange(3))
  assert call.traces == 2
  call(jnp.arange(3.0))
  assert call.traces == 3


def test_a_python_number_is_one_trace_whatever_its_value():
  """`held_out.measure` gives the row offset so."""
  call = CountedJit(lambda x, offset: x + offset)
  assert [int(call(jnp.int32(1), offset)) for offset in (0, 4, 8)] == [1, 5, 9]
  assert call.traces == 1


def test_two_wrappers_of_one_function_count_apart():
  double = lambda x: 2 * x
  one, two = CountedJit(double), CountedJit(double)
  one(1)
  assert (one.traces, two.traces) == (1, 0)


def test_options_reach_jit():
  call = CountedJit(lambda state, x: (state + x, x), donate_argnums=0)
  text = call.lower(jnp.ones(4), jnp.ones(4)).as_text()
  assert 'tf.aliasing_output' in text or 'jax.buffer_donor' in text
  plain = CountedJit(lambda state, x: (state + x, x))
  text = plain.lower(jnp.ones(4), jnp.ones(4)).as_text()
  assert 'tf.aliasing_output' not in text
  assert 'jax.buffer_donor' not in text


def test_lowered_without_allocating():
  call = CountedJit(lambda x: x @ x)
  lowered = call.lower(jax.ShapeDtypeStruct((3, 3), jnp.float32))
  assert call.traces == 1
  assert lowered.compile()(jnp.eye(3)).shape == (3, 3)


def test_what_is_compiled_is_counted():
  before, watch = compiled.CompileWatch(), compiled.CompileWatch()
  call = compiled.CountedJit(lambda x: x * 3.5 + 17)
  call(jnp.ones(11))
  first = watch.metrics()
  assert first['compile/cache_misses'] + first['compile/cache_hits'] > 0
  assert first['compile/backend_s'] > 0
  call(jnp.ones(11))
  assert watch.metrics() == first == before.metrics()
  # From where a watch begins.
  assert compiled.CompileWatch().metrics() == {
    'compile/cache_misses': 0.0,
    'compile/cache_hits': 0.0,
    'compile/backend_s': 0.0,
  }
