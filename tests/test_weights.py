import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import checkpoint, weights

PARAMS = {
  'embedding': jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7,
  'block': {'q': {'kernel': jnp.ones((2, 2), jnp.bfloat16)}},
  'scalar': jnp.float32(3),
  'count': jnp.arange(3, dtype=jnp.int32),
  'empty': jnp.zeros((0, 2)),
}


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'a.safetensors'
  weights.save_safetensors(path, PARAMS, {'seed': '3'})
  return path


@pytest.mark.parametrize('like', [None, PARAMS])
def test_round_trip_is_bit_exact(path, like):
  params, metadata = weights.load_safetensors(path, like)
  assert_equal(params, PARAMS)
  assert metadata == {'seed': '3'}
  assert os.listdir(path.parent) == ['a.safetensors']


def test_other_readers_see_flat_names(path):
  safetensors_numpy = pytest.importorskip('safetensors')
  with safetensors_numpy.safe_open(path, 'numpy') as f:
    assert 'block/q/kernel' in f.keys()
    np.testing.assert_array_equal(f.get_tensor('count'), [0, 1, 2])


def test_memory_order_does_not_matter(tmp_path):
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  weights.save_safetensors(tmp_path / 'a', {'t': x.T, 'r': x[:, ::-1]})
  params, _ = weights.load_safetensors(tmp_path / 'a')
  np.testing.assert_array_equal(params['t'], x.T)
  np.testing.assert_array_equal(params['r'], x[:, ::-1])


@pytest.mark.parametrize('dtype, bits', [('bfloat16', 8), ('float16', 11)])
def test_a_smaller_dtype_rounds_and_comes_back(tmp_path, dtype, bits):
  weights.save_safetensors(tmp_path / 'a', PARAMS, dtype=dtype)
  raw, _ = weights.load_safetensors(tmp_path / 'a')
  assert raw['embedding'].dtype == dtype
  assert raw['count'].dtype == jnp.int32
  params, _ = weights.load_safetensors(tmp_path / 'a', PARAMS)
  assert params['embedding'].dtype == jnp.float32
  # Half a unit in the last of `bits` significant bits.
  np.testing.assert_allclose(
    params['embedding'], PARAMS['embedding'], rtol=2.0**-bits
  )


def test_loaded_leaves_go_where_like_says(path):
  mesh = jax.make_mesh(
    (1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), PARAMS
  )
  params, _ = weights.load_safetensors(path, like)
  assert params['embedding'].sharding == sharding
  params, _ = weights.load_safetensors(path, PARAMS)
  assert not params['embedding'].committed


def change(**kwargs):
  return {**PARAMS, **kwargs}


@pytest.mark.parametrize(
  'like, message',
  [
    (change(b=jnp.ones(1)), 'lacks tensor b'),
    ({k: v for k, v in PARAMS.items() if k != 'block'}, 'block/q/kernel'),
    (change(count=jnp.zeros(4, jnp.int32)), r'count has shape \[3\].*\[4\]'),
    (change(count=jnp.zeros(3)), 'count has dtype int32.*needs float32'),
  ],
)
def test_a_file_that_does_not_fit_is_named_with_its_tensor(path, like, message):
  with pytest.raises(weights.WeightsError, match=message) as caught:
    weights.load_safetensors(path, like)
  assert str(path) in str(caught.value)


def truncate(data):
  return data[:-5]


def foreign_header(data):
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [9]}}).encode()
  return struct.pack('<Q', len(header)) + header


@pytest.mark.parametrize(
  'damage, message',
  [
    (truncate, 'is truncated: 5 bytes are missing'),
    (lambda data: data[:40], 'is truncated'),
    (lambda data: b'', 'is empty'),
    (lambda data: b'hello world, no weights', 'is not a safetensors file'),
    (lambda data: b'\x80\x04\x95' + data, 'is a pickle and not a safetensors'),
    (lambda data: b'PK\x03\x04' + data, 'is a zip, as torch.save writes, and'),
    (foreign_header, 'is not a safetensors file'),
    (lambda data: data + b'tail', 'is not a safetensors file'),
  ],
)
def test_a_bad_file_is_one_line(path, damage, message):
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(weights.WeightsError, match=message) as caught:
    weights.load_safetensors(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_no_file(tmp_path):
  with pytest.raises(weights.WeightsError, match='does not exist'):
    weights.load_safetensors(tmp_path / 'a')
  with pytest.raises(weights.WeightsError, match='is a folder'):
    weights.load_safetensors(tmp_path)


def test_names_that_cannot_be_nested(tmp_path):
  import safetensors.numpy

  one = np.ones(1, np.float32)
  for tensors in ({'a': one, 'a/b': one}, {'a/b': one, 'a': one}):
    safetensors.numpy.save_file(tensors, tmp_path / 'x')
    with pytest.raises(weights.WeightsError, match='tensor a'):
      weights.load_safetensors(tmp_path / 'x')


@pytest.mark.parametrize(
  'params', [{'a/b': jnp.ones(1)}, {'a': [jnp.ones(1)]}, {1: jnp.ones(1)}]
)
def test_params_without_names_are_refused(tmp_path, params):
  with pytest.raises(TypeError, match='cannot be named'):
    weights.save_safetensors(tmp_path / 'a', params)


@pytest.mark.parametrize(
  'kwargs, message',
  [
    ({'dtype': 'int8'}, "dtype='int8' is given; allowed is"),
    ({'metadata': {'seed': 3}}, "metadata 'seed': 3"),
  ],
)
def test_bad_arguments(tmp_path, kwargs, message):
  with pytest.raises((TypeError, ValueError), match=message):
    weights.save_safetensors(tmp_path / 'a', PARAMS, **kwargs)
  assert not (tmp_path / 'a').exists()


def test_init_from_a_file(path):
  assert_equal(weights.init_from(path, PARAMS), PARAMS)


def test_init_from_an_asset(path, monkeypatch, tmp_path):
  (tmp_path / 'assets').mkdir()
  path.rename(tmp_path / 'assets' / 'countdown_easy.safetensors')
  monkeypatch.setattr(weights.resources, 'files', lambda package: tmp_path)
  assert weights.asset_names() == ['countdown_easy']
  assert_equal(weights.init_from('asset:countdown_easy', PARAMS), PARAMS)
  with pytest.raises(
    weights.WeightsError, match='no such asset; assets are asset:countdown_easy'
  ):
    weights.init_from('asset:countdown_hard', PARAMS)


def test_init_from_a_run(tmp_path):
  like = {'w': jnp.zeros(4)}
  folder = tmp_path / checkpoint.CHECKPOINTS_DIR
  with checkpoint.Checkpointer(folder) as checkpointer:
    for step in (1, 2, 3):
      checkpointer.save(
        step,
        {'params': {'w': jnp.full(4, float(step))}, 'opt_state': jnp.ones(2)},
        {},
        {checkpoint.BEST_METRIC: abs(step - 2)},
      )
  before = sorted(os.walk(tmp_path))
  for source, step in [('', 2), ('@last', 3), ('@best', 2)]:
    params = weights.init_from(f'{tmp_path}{source}', {'w': jnp.zeros(4)})
    np.testing.assert_array_equal(params['w'], step)
    said = weights.describe(f'{tmp_path}{source}')
    kind = 'last' if source == '@last' else 'best'
    assert said == f'its {kind} checkpoint, step {step}'
  assert weights.describe('asset:countdown_easy') == ''
  assert weights.describe('') == ''
  # The folder of checkpoints itself will do as well.
  np.testing.assert_array_equal(weights.init_from(folder, like)['w'], 2)
  # Nothing of what may be a live run was touched.
  assert sorted(os.walk(tmp_path)) == before
  with pytest.raises(checkpoint.CheckpointError, match='leaf params/w is .*4'):
    weights.init_from(tmp_path, {'w': jnp.zeros(5)})


@pytest.mark.parametrize(
  'source, message',
  [
    ('nowhere', 'is neither a .safetensors file nor a run folder; '),
    ('nowhere.safetensors', 'does not exist'),
    ('.', 'holds no checkpoint: name a run folder'),
  ],
)
def test_an_unknown_source(tmp_path, monkeypatch, source, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(weights.WeightsError, match=message) as caught:
    weights.init_from(source, PARAMS)
  assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path) == []
