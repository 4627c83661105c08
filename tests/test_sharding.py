"""One device, a mesh and pmap give the same numbers; processes add up."""

import json
import os
import re
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from meta_rl import models, sharding, update
from meta_rl.models import transformer

# A training step of a one-layer transformer on a task of eight tokens, whose
# verifier counts the answer's tokens; EOS comes often, so lengths differ.
STEP = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from meta_rl import models, sharding, steps, update
from meta_rl.tasks.base import Task

task = Task(
  name='toy', vocab_size=8, pad_id=0, eos_id=2, think_end_id=4, stop_ids=(4,),
  delimiter_ids=(5,), episode_length=3, answer_length=3,
  verify=lambda answers, mask, batch: (mask.sum(-1) == batch['target']) * 1.0,
)
config = models.TransformerConfig(
  vocab_size=8, num_layers=1, width=16, num_heads=2, ffn_width=32,
  scan_layers=True,
)
model = models.make_model(config)
loss_fn = steps.make_loss(model, kl_coef=0.1)
optimizer = optax.sgd(0.5, momentum=0.9)  # its trace holds the gradients
params = models.init_params(config, jax.random.key(0))
params['embedding'] *= 20.0
state = update.TrainState(
  params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(1)
)
rng = np.random.default_rng(0)
prompts = 16
batch = {
  'prompts': rng.integers(3, 8, (prompts, 3)).astype(np.int32),
  'prompt_mask': np.ones((prompts, 3), bool),
  'target': rng.integers(1, 3, prompts).astype(np.int32),
  'answers': np.tile(np.int32([[6, 2, 0], [6, 7, 2]]), (prompts, 1, 1)),
  'answer_mask': np.tile(np.bool_([[1, 1, 0], [1, 1, 1]]), (prompts, 1, 1)),
}

def make_update(axis_name, spread):
  advantage_fn = steps.make_advantages(
    'mrt', group_size=2, horizon=12, axis_name=axis_name
  )
  return steps.make_update(
    spread(loss_fn), optimizer, advantage_fn, axis_name=axis_name,
    mini_batches=2, micro_batches=2,
  )

def make(kind, mesh=None):
  return sharding.parallelize(
    kind,
    generate=steps.make_generate(
      model, task, group_size=2, thinking_budget=12, check_every=1
    ),
    prove=steps.make_prove(model, task, group_size=2, max_episodes=3),
    score=steps.make_score(model),
    make_update=make_update,
    rows_per_prompt=2, mini_batches=2, mesh=mesh,
  )

def run(parallel):
  own, rows = parallel.put_state(state), parallel.put_batch(batch)
  traces, cache = parallel.generate(own.params, rows, jax.random.key(2))
  measured = parallel.prove(own.params, rows, traces, cache, jax.random.key(3))
  reference = parallel.score(parallel.put_params(params), traces)
  before = own
  own, metrics = parallel.update(own, traces, measured, reference)
  return before, own, cache, parallel.get({
    'tokens': traces.tokens,
    'mask': traces.token_mask,
    'success': measured.success,
    'reference': reference,
    'gradient': own.opt_state,
    'params': own.params,
    'step': own.step,
    'metrics': {name: metric.value for name, metric in metrics.items()},
  })
"""

EQUAL = (
  STEP
  + """
def close(name, got, wanted, tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.shape == b.shape, (name, a.shape, b.shape)
    gap = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)
    assert gap <= tolerance, (name, gap)

_, _, _, want = run(make('none'))
assert 0.01 < np.abs(want['gradient'][0].trace['embedding']).max()
assert 0 < want['success'].mean() < 1
moved = np.abs(want['params']['embedding'] - params['embedding']).max()
assert moved > 0.01, moved
out = {'lengths': want['mask'].sum(1).tolist()}
for name, parallel in {
  'data': make('jit', sharding.make_mesh()),
  'cube': make('jit', sharding.make_mesh(data=2, fsdp=2, tensor=2)),
  'pmap': make('pmap'),
}.items():
  before, after, cache, got = run(parallel)
  for exact in ('tokens', 'mask', 'step'):
    np.testing.assert_array_equal(got[exact], want[exact])
  np.testing.assert_allclose(got['success'], want['success'], atol=1e-5)
  np.testing.assert_allclose(got['reference'], want['reference'], atol=1e-5)
  close('gradient', got['gradient'], want['gradient'], 1e-4)
  close('params', got['params'], want['params'], 1e-5)
  for k, value in want['metrics'].items():
    np.testing.assert_allclose(
      got['metrics'][k], value, rtol=1e-3, atol=1e-5, err_msg=k
    )
  assert jax.tree.leaves(before.params)[0].is_deleted(), name
  assert not jax.tree.leaves(state.params)[0].is_deleted(), name
  # Nor does a second step trace anything anew.
  parallel.generate(
    after.params, parallel.put_batch(batch), jax.random.key(4)
  )
  assert parallel.traces == dict.fromkeys(parallel.traces, 1), parallel.traces
  put = parallel.put_state(state)
  same = lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim)
  assert all(jax.tree.leaves(jax.tree.map(same, put, after))), name
  out[name] = {
    'used': cache.used.tolist(),
    'local': put.params['layers']['gate']['kernel']
      .addressable_shards[0].data.shape,
    'momentum': after.opt_state[0].trace['layers']['gate']['kernel']
      .addressable_shards[0].data.shape,
  }
print(json.dumps(out))
"""
)


# Sixteen programs, run once each: quick to compile beats quick to run.
QUICK = {
  'XLA_FLAGS': '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


@pytest.fixture(scope='module')
def equal(run_python):
  """Runs the step in every kind, compares, and returns what it printed."""
  output = run_python(EQUAL, env=QUICK, timeout=500)
  return json.loads(output.splitlines()[-1])


@pytest.mark.full
def test_all_kinds_give_the_same_numbers(equal):
  # Compared in the process itself; the weights of a layer are [1,16,32] there:
  # whole under data alone, cut by fsdp=2 and tensor=2 in the cube, and so is
  # the optimizer's momentum.
  assert equal['data']['local'] == equal['pmap']['local'] == [1, 16, 32]
  assert equal['cube']['local'] == [1, 8, 16]
  assert equal['cube']['momentum'] == [1, 8, 16]


@pytest.mark.full
def test_each_device_stops_alone(equal):
  # With check_every=1 a device stops behind the EOS of its longest trace; the
  # last token written is not in the cache: used = longest - 1.
  lengths = np.array(equal['lengths'])
  for name, shards in (('data', 8), ('cube', 4), ('pmap', 8)):
    longest = lengths.reshape(shards, -1).max(1)
    assert equal[name]['used'] == (longest - 1).tolist()
    assert shards == 4 or len(set(equal[name]['used'])) > 1


PLUMBING = """
import jax, jax.numpy as jnp, numpy as np
from meta_rl import sharding

def parallel(kind, **options):
  def generate(params, batch, key, row_offset=0):
    rows = row_offset + jnp.arange(2 * batch['x'].shape[0])
    return rows, {'used': rows[0], 'kv': rows}
  def prove(params, batch, traces, cache, key, row_offset=0):
    return traces + 100 * (cache['used'] - row_offset) + (cache['kv'] - traces)
  def make_update(axis_name, spread):
    def update(state, traces, measured, reference=None):
      return state, traces.sum()
    return update
  return sharding.parallelize(
    kind, generate=generate, prove=prove, make_update=make_update,
    rows_per_prompt=2, **options,
  )

def refused(fn, *words):
  try:
    fn()
  except ValueError as error:
    assert len(str(error).splitlines()) == 1, error
    for word in words:
      assert word in str(error), (word, error)
  else:
    raise AssertionError(f'not refused: {words}')

mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2, 'context': 1}
assert dict(sharding.make_mesh(2, tensor=-1).shape)['tensor'] == 4
four = sharding.make_mesh(devices=jax.devices()[:4])
assert four.size == four.shape['data'] == 4
refused(lambda: sharding.make_mesh(data=3), 'data=3', '8 devices')
refused(lambda: sharding.make_mesh(tensor=3), 'tensor=3', '8 devices')
refused(lambda: sharding.make_mesh(tensor=0), 'tensor=0', 'at least 1')
refused(lambda: sharding.make_mesh(fsdp=-1), 'fsdp=-1', 'at least 1')

for kind, mesh in (('none', None), ('jit', mesh), ('pmap', four)):
  calls = parallel(kind, mesh=mesh)
  params = calls.put_params({'w': jnp.ones(2)})
  batch = calls.put_batch({'x': np.arange(8)})
  traces, cache = calls.generate(params, batch, jax.random.key(0))
  np.testing.assert_array_equal(calls.get(traces), np.arange(16))
  measured = calls.prove(params, batch, traces, cache, jax.random.key(0))
  np.testing.assert_array_equal(calls.get(measured), np.arange(16))
  if kind != 'none':
    assert cache['used'].tolist() == [0, 4, 8, 12]
    assert cache['kv'].shape == (4, 4)
    assert len(traces.sharding.device_set) == mesh.size
    assert traces.addressable_shards[0].data.shape == (4,)
    refused(
      lambda: calls.put_batch({'x': np.arange(6)}),
      '6 prompts', '4 data shards', 'multiple of 4',
    )
    uneven = {'x': np.arange(4), 'y': np.arange(8)}
    refused(lambda: calls.put_batch(uneven), '[4, 8] rows')
    halves = parallel(kind, mesh=mesh, mini_batches=2)
    refused(lambda: halves.put_batch({'x': np.arange(4)}), 'multiple of 8')

cube = sharding.make_mesh(2, 2, 2)
refused(lambda: parallel('pmap', mesh=cube), 'pmap', 'data=-1')
refused(lambda: parallel('none', mesh=cube), 'no mesh')
refused(lambda: parallel('ddp'), "'ddp'", 'pmap')
assert sharding.process_slice(8) == slice(0, 8)
assert sharding.process_slice(8, cube) == slice(0, 8)
refused(lambda: sharding.process_slice(6, cube), '6 rows', 'multiple of 4')

losses = []
make_update = lambda axis_name, spread: losses.append(spread(
  lambda params, batch: batch['tokens'].sum()
))
sharding.parallelize(
  'jit', generate=None, prove=None, make_update=make_update, rows_per_prompt=1,
  mesh=sharding.make_mesh(data=1, fsdp=8),
)
spread = jax.jit(losses[0])
assert spread({}, {'tokens': jnp.ones((16, 2))}) == 32
text = spread.lower({}, {'tokens': jnp.ones((16, 2))}).compile().as_text()
assert 'f32[2,2]' in text
refused(
  lambda: spread({}, {'tokens': jnp.ones((12, 2))}),
  '12 traces', '8 data shards',
)
"""


def test_offsets_boxed_cache_and_refusals(run_python):
  run_python(PLUMBING)


# ---- the table


ONCE = """
import jax, numpy as np
from meta_rl import places, sharding

asked = []

def grade(x):
  asked.append(x.tolist())
  return x * 0 + len(asked)  # another each time

def fn(x):
  out = jax.ShapeDtypeStruct(x.shape, np.float32)
  ask = lambda x: jax.pure_callback(grade, out, x)
  return places.once(ask, x)

mesh = sharding.make_mesh(data=2, tensor=2, context=2)
call = jax.jit(sharding.rows_call(mesh, fn, 'r'))
rows = sharding.batch_sharding(mesh)
x = jax.device_put(np.arange(4, dtype=np.float32), rows)
y = jax.block_until_ready(call(x))
assert sorted(asked) == [[0.0, 1.0], [2.0, 3.0]], asked
for shard in y.addressable_shards:  # the same on all that hold the rows
  np.testing.assert_array_equal(shard.data, np.asarray(y)[shard.index])
assert {*np.asarray(y).tolist()} <= {1.0, 2.0}, y
assert fn(np.zeros(2, np.float32)).tolist() == [3.0, 3.0]  # no mesh
"""


def test_a_grader_is_asked_once_of_each_row(run_python):
  run_python(ONCE)


BEGUN = """
import dataclasses, sys
import jax, numpy as np
import test_steps as toy
from meta_rl import sharding, steps

kind = sys.argv[1]
asked = toy.HostVerify()
prove = steps.make_prove(
  toy.counting_model(),
  dataclasses.replace(toy.toy_task(), verify=asked),
  group_size=2,
  max_episodes=3,
  kind=kind,
  num_branches=4,
  block_rows=1,
  thinking_budget=4,
)

def fn(params, batch, traces):
  return prove(params, batch, traces, None, jax.random.key(1))

mesh = sharding.make_mesh(data=2, tensor=2, context=2)
call = jax.jit(sharding.rows_call(mesh, fn, 'wrr'))
rows = sharding.batch_sharding(mesh)
batch, traces = jax.device_put((toy.PROBLEMS, toy.TOY), rows)
found = jax.block_until_ready(call(toy.toy_params(), batch, traces))
assert np.asarray(found.rewards).tolist() == [1, 1, 0, 0], found.rewards
names = [name for name, *_ in asked.calls]
# Of the four devices that hold the same rows one asks: once of the traces' own
# answers, and of those of a prover.
answers = {'exact': 0, 'sampled': 1, 'continued': 2}[kind]
blocks = {'exact': 0, 'sampled': 2, 'continued': 2}[kind]
assert names.count('verify') == 2 * (1 + answers), names
assert names.count('begin') == 2 * (1 + blocks), names
"""


@pytest.mark.full
@pytest.mark.parametrize('kind', ['exact', 'sampled', 'continued'])
def test_a_grader_begins_once_with_each_row(kind, run_python, root):
  path = f'{root}:{root / "tests"}'
  run_python(BEGUN, kind, env={'PYTHONPATH': path})


def abstract_mesh(**sizes):
  sizes = {axis: sizes.get(axis, 1) for axis in sharding.MESH_AXES}
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def specs(tree):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): tuple(leaf.spec) for path, leaf in flat}


def shapes(**switches):
  config = models.TransformerConfig(
    vocab_size=8, num_layers=2, width=8, num_heads=2, ffn_width=12, **switches
  )
  init = lambda: models.init_params(config, jax.random.key(0))
  return config, jax.eval_shape(init)


F, T, B = 'fsdp', 'tensor', ('data', 'fsdp')


def test_params_follow_the_table():
  mesh = abstract_mesh(data=2, fsdp=2, tensor=2)
  _, params = shapes(tie_embeddings=False, qkv_bias=True, qk_norm=True)
  got = specs(sharding.param_shardings(params, mesh))
  layer = 'layers_1/'
  assert got[layer + 'attention/q/kernel'] == (F, T)
  assert got[layer + 'attention/v/kernel'] == (F, T)
  assert got[layer + 'attention/k/bias'] == (T,)
  assert got[layer + 'attention/o/kernel'] == (T, F)
  assert got[layer + 'gate/kernel'] == got[layer + 'up/kernel'] == (F, T)
  assert got[layer + 'down/kernel'] == (T, F)
  assert got[layer + 'ffn_norm/scale'] == ()
  assert got[layer + 'attention/q_norm/scale'] == ()
  assert got['final_norm/scale'] == ()
  assert got['embedding'] == (T, F)
  assert got['head'] == (F, T)
  # Every matrix is in the table: only norms are whole.
  assert all(spec or name.endswith('scale') for name, spec in got.items())


def test_scanned_layers_have_a_leading_axis():
  mesh = abstract_mesh(fsdp=2, tensor=2)
  _, params = shapes(scan_layers=True, qkv_bias=True)
  got = specs(sharding.param_shardings(params, mesh))
  assert got['layers/attention/o/kernel'] == (None, T, F)
  assert got['layers/attention/q/bias'] == (None, T)
  assert got['layers/ffn_norm/scale'] == ()


def test_what_does_not_fit_stays_whole():
  # width 8 is not divisible by fsdp=3, ffn 12 is; axes of size 1 are left out.
  _, params = shapes()
  got = specs(sharding.param_shardings(params, abstract_mesh(fsdp=3, tensor=3)))
  assert got['layers_0/gate/kernel'] == (None, T)
  got = specs(sharding.param_shardings(params, abstract_mesh(data=8)))
  assert set(got.values()) == {()}
  tree = {'mystery': jnp.zeros((8, 8)), 'gate': {'kernel': jnp.zeros(8)}}
  got = specs(sharding.param_shardings(tree, abstract_mesh(fsdp=2)))
  assert set(got.values()) == {()}


@pytest.mark.parametrize('scan_layers', [False, True])
def test_cache_follows_the_table(scan_layers):
  mesh = abstract_mesh(data=2, fsdp=2, tensor=2, context=2)
  config, _ = shapes(scan_layers=scan_layers)
  cache = jax.eval_shape(lambda: transformer.init_cache(config, 8, 6))
  got = specs(sharding.cache_shardings(cache, mesh))
  front = (None,) if scan_layers else ()
  first = 'layers/k' if scan_layers else 'layers/0/k'
  assert got[first] == (*front, B, T, 'context')
  assert got['valid'] == (B, 'context')
  assert got['index'] == ()


def test_optimizer_state_lies_like_its_parameter():
  mesh = abstract_mesh(fsdp=2, tensor=2)
  _, params = shapes()
  state = update.TrainState(
    params,
    jax.eval_shape(
      optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init,
      params,
    ),
    jax.ShapeDtypeStruct((), jnp.int32),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  placed = sharding.state_shardings(state, mesh)
  adam = placed.opt_state[1][0]
  assert specs(adam.mu) == specs(adam.nu) == specs(placed.params)
  assert adam.count.spec == placed.step.spec == PartitionSpec()
  # Factored moments [layers,width] have other shapes than [layers,width,ffn]:
  # whole, though their names match and their rank is that of one layer's.
  _, params = shapes(scan_layers=True)
  factored = jax.eval_shape(
    optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params
  )
  placed = sharding.optimizer_shardings(factored, params, mesh)
  assert specs(placed.v_row)['layers/gate/kernel'] == ()
  assert factored.v_row['layers']['gate']['kernel'].shape == (2, 8)
  assert jax.tree.structure(placed) == jax.tree.structure(factored)


def test_a_chip_of_two_devices_is_taken_as_two():
  """As the TPU compiler lists a v4 ahead of time; jax.make_mesh refuses it."""

  class Device(types.SimpleNamespace):
    __hash__ = object.__hash__

  devices = [
    Device(device_kind='TPU v4', core_on_chip=i % 2, id=i, process_index=0)
    for i in range(4)
  ]
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=devices)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 1, 'context': 1}
  assert list(mesh.devices.flat) == devices


def test_the_table_names_mesh_axes_once():
  for axes in sharding.ARRAY_AXES.values():
    used = [a for axis in axes for a in sharding.LOGICAL_AXES[axis]]
    assert len(used) == len(set(used)), axes
    assert set(used) <= set(sharding.MESH_AXES)


def test_one_process_needs_nothing():
  sharding.initialize()
  sharding.initialize(num_processes=1, process_id=0)
  sharding.initialize('localhost:1', 1, 0)
  assert sharding.is_main()
  assert sharding.process_slice(6) == slice(0, 6)
  fetched = sharding.gather_to_host({'a': jnp.ones(2), 'b': 3})
  assert isinstance(fetched['a'], np.ndarray)


@pytest.mark.parametrize(
  'args, text',
  [
    ((None, 2, 0), "'host:port'"),
    (('localhost', 2, 0), "'host:port'"),
    (('localhost:1', None, 0), 'both num_processes and process_id'),
    (('localhost:1', 2, None), 'both num_processes and process_id'),
    (('localhost:1', 2, 2), 'process_id must be'),
    (('localhost:1', 0, 0), 'process_id must be'),
  ],
)
def test_initialize_refuses_what_does_not_fit(args, text):
  with pytest.raises(ValueError, match=re.escape(text)) as error:
    sharding.initialize(*args)
  assert len(str(error.value).splitlines()) == 1


# ---- two processes


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from meta_rl import sharding

index = int(sys.argv[2])
sharding.initialize(sys.argv[1], 2, index, timeout_s=60)
assert (jax.process_count(), jax.device_count()) == (2, 4)
assert sharding.is_main() == (index == 0)
mesh = sharding.make_mesh(data=2, fsdp=2)
mine = sharding.process_slice(8)
assert mine == slice(4 * index, 4 * index + 4)
assert mine == sharding.process_slice(8, mesh)

data = np.arange(16, dtype=np.int32).reshape(8, 2)
rows = sharding.global_batch(mesh, {'x': data[mine]})['x']
assert rows.shape == (8, 2) and not rows.is_fully_addressable
total = jax.jit(lambda x: x.sum())(rows)
whole = sharding.gather_to_host({'rows': rows, 'total': total, 'own': index})
np.testing.assert_array_equal(whole['rows'], data)
assert whole['total'] == 120 and whole['own'] == index

def generate(params, batch, key, row_offset=0):
  row = row_offset + jnp.arange(batch['x'].shape[0])
  return row + params['shift'], {'used': row[0]}

def prove(params, batch, traces, cache, key, row_offset=0):
  return traces * 10 + batch['x'][:, 0] * (cache['used'] == row_offset)

calls = sharding.parallelize(
  'jit', generate=generate, prove=prove, rows_per_prompt=1, mesh=mesh,
  make_update=lambda axis_name, spread: None,
)
params = calls.put_params({'shift': jnp.int32(1)})
batch = calls.put_batch({'x': data[mine]})
traces, cache = calls.generate(params, batch, jax.random.key(0))
measured = calls.prove(params, batch, traces, cache, jax.random.key(0))
want = (np.arange(8) + 1) * 10 + data[:, 0]
np.testing.assert_array_equal(calls.get(measured), want)
for kind in ('none', 'pmap'):
  try:
    sharding.parallelize(
      kind, generate=generate, prove=prove, rows_per_prompt=1, make_update=None
    )
  except ValueError as error:
    assert "use 'jit'" in str(error), error
  else:
    raise AssertionError(kind)
try:
  calls.put_batch({'x': data[:1]})
except ValueError as error:
  assert '2 prompts' in str(error), error
else:
  raise AssertionError('one row a process on four shards')
print('done', index)
"""


def test_two_processes_add_up(root):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '2', 'PYTHONPATH': str(root)}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, f'localhost:{port}', str(index)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=180)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for index, output in enumerate(outputs):
    assert processes[index].returncode == 0, output
    assert f'done {index}' in output
