import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_rl import checkpoint
from meta_rl.checkpoint import Checkpointer, CheckpointError

OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(1.0),
  optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  params: dict
  opt_state: optax.OptState
  step: jax.Array
  key: jax.Array


def make_state(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'w': jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
    'block': {'b': jnp.asarray(rng.normal(size=8), jnp.bfloat16)},
  }
  return State(
    params=params,
    opt_state=OPTIMIZER.init(params),
    step=jnp.int32(seed),
    key=jax.random.split(jax.random.key(seed, impl='rbg'), 2),
  )


def words(x):
  return jax.random.key_data(x) if 'key' in str(x.dtype) else x


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(words(x)).tobytes() == np.asarray(words(y)).tobytes()


def save_all(folder, scores, **kwargs):
  """Saves steps 1, 2, … with these values of the best metric."""
  with Checkpointer(folder, **kwargs) as checkpointer:
    for step, score in enumerate(scores, 1):
      metrics = None if score is None else {checkpoint.BEST_METRIC: score}
      checkpointer.save(step, make_state(step), {'i': step}, metrics)
  return folder


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with steps 1, 2 and 3, of which 1 is the best. Copy to change."""
  folder = tmp_path_factory.mktemp('saved')
  return save_all(folder, [0.1, 0.3, 0.2], max_to_keep=3)


@pytest.fixture
def folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'checkpoints')


def test_everything_comes_back_bit_for_bit(folder):
  with Checkpointer(folder) as checkpointer:
    step, state, data = checkpointer.restore_latest(make_state())
  assert (step, data) == (3, {'i': 3})
  assert_same(state, make_state(3))
  # The keys go on as they would have.
  np.testing.assert_array_equal(
    jax.random.bits(state.key[0]), jax.random.bits(make_state(3).key[0])
  )
  # Free to go anywhere, as a fresh state's arrays are: no new compilation.
  assert not state.params['w'].committed


def test_abstract_state_is_enough(folder):
  abstract = jax.eval_shape(make_state)
  with Checkpointer(folder) as checkpointer:
    assert_same(checkpointer.restore_latest(abstract)[1], make_state(3))


def test_an_empty_folder_gives_none(tmp_path):
  with Checkpointer(tmp_path / 'a' / 'b') as checkpointer:
    assert checkpointer.restore_latest(make_state()) is None
    assert checkpointer.restore_best(make_state()) is None
    assert checkpointer.latest_step() is checkpointer.best_step() is None


def test_the_last_and_the_best_are_kept(tmp_path):
  # Best is 2; nan, none and a tie with 2 do not replace it.
  scores = [0.3, 0.1, 0.1, float('nan'), None, 0.2]
  save_all(tmp_path, scores, max_to_keep=2)
  with Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.all_steps() == [2, 5, 6]
    assert checkpointer.latest_step() == 6
    assert checkpointer.best_step() == 2
    step, state, data = checkpointer.restore_best(make_state())
  assert (step, data) == (2, {'i': 2})
  assert_same(state, make_state(2))


def test_nan_is_never_the_best(tmp_path):
  # nan < x is False: a sort would leave it in front.
  save_all(tmp_path, [float('nan'), 0.3], max_to_keep=2)
  with Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.best_step() == 2


@pytest.mark.parametrize(
  'kwargs, kept',
  [({'best_mode': 'max'}, [1, 3]), ({'keep_best': False}, [3])],
)
def test_what_is_best_can_be_chosen(tmp_path, kwargs, kept):
  save_all(tmp_path, [0.3, 0.1, 0.2], max_to_keep=1, **kwargs)
  with Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.all_steps() == kept


def test_a_saved_step_is_left_as_it_is(folder):
  with Checkpointer(folder) as checkpointer:
    assert not checkpointer.save(3, make_state(9), {}, wait=True)
    assert checkpointer.save(4, make_state(4), {}, wait=True)
    assert_same(checkpointer.restore_latest(make_state())[1], make_state(4))


def test_a_step_that_donates_the_state_does_not_change_the_save(tmp_path):
  @jax.jit
  def ones(state):
    return jax.tree.map(jnp.ones_like, state)

  update = jax.jit(ones, donate_argnums=0)
  state = {'w': jnp.zeros((512, 512))}
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, {})
    state = jax.block_until_ready(update(state))
    _, restored, _ = checkpointer.restore_latest({'w': jnp.zeros((512, 512))})
  np.testing.assert_array_equal(restored['w'], 0)


def largest_file(step):
  files = [p for p in (step / 'state').rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def truncate(step):
  path = largest_file(step)
  os.truncate(path, path.stat().st_size - 1)


def garble(step):
  path = largest_file(step)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  'damage, message',
  [
    (truncate, r'has \d+ bytes instead of'),
    (garble, 'has other bytes than were written'),
    (lambda step: largest_file(step).unlink(), 'is missing'),
    (lambda step: (step / 'MANIFEST.json').unlink(), 'MANIFEST.json is miss'),
    (lambda step: shutil.rmtree(step / 'data'), 'data/.* is missing'),
  ],
)
def test_a_damaged_newest_is_named_and_skipped(folder, damage, message):
  damage(folder / '3')
  with Checkpointer(folder) as checkpointer:
    with pytest.warns(RuntimeWarning, match='step 3 is damaged') as seen:
      step, state, data = checkpointer.restore_latest(make_state())
    assert (step, data) == (2, {'i': 2})
    assert_same(state, make_state(2))
    # Step 3 is done once more, with its place free, and nothing was deleted.
    assert checkpointer.all_steps() == [1, 2]
    assert (folder / 'damaged' / '3').is_dir()
    checkpointer.save(3, make_state(3), {}, wait=True)
    assert checkpointer.restore_latest(make_state())[0] == 3
  assert len(seen) == 1
  said = f'{message}.*moved to .*, and the one before it is used'
  assert re.search(said, str(seen[0].message))


def test_what_the_manifest_cannot_see_is_found_by_reading(folder):
  step = folder / '3'
  (step / 'state' / '_METADATA').write_text('{"tree')
  checkpoint.files.write_manifest(step)
  with Checkpointer(folder) as checkpointer:
    with pytest.warns(RuntimeWarning, match='step 3 is damaged'):
      assert checkpointer.restore_latest(make_state())[0] == 2


def test_a_damaged_best_gives_the_next_best(folder):
  truncate(folder / '1')
  with Checkpointer(folder) as checkpointer:
    with pytest.warns(RuntimeWarning, match='step 1 is damaged'):
      assert checkpointer.restore_best(make_state())[0] == 3
    assert checkpointer.best_step() == 3


def test_all_damaged_is_one_error(folder):
  for step in '123':
    truncate(folder / step)
  with Checkpointer(folder) as checkpointer:
    with (
      pytest.warns(RuntimeWarning) as seen,
      pytest.raises(CheckpointError, match='every checkpoint in') as caught,
    ):
      checkpointer.restore_latest(make_state())
  # There is none before the last of them.
  assert 'one before' not in str(seen[-1].message)
  assert len(seen) == 3
  assert '\n' not in str(caught.value)
  assert sorted(os.listdir(folder / 'damaged')) == ['1', '2', '3']
  # Nor does the next try begin anew, over what was logged.
  with Checkpointer(folder) as checkpointer:
    with pytest.raises(CheckpointError, match='every checkpoint in'):
      checkpointer.restore_latest(make_state())
  # Nor does who reads it find no checkpoint at all.
  with pytest.raises(CheckpointError, match='is damaged and lies in'):
    checkpoint.restore_params(folder, make_state().params)


def test_orbax_is_silent_of_what_is_said_here(folder, capfd):
  """A save that was killed left no metadata: the step is whole without."""
  (folder / '3' / '_CHECKPOINT_METADATA').unlink()
  with Checkpointer(folder) as checkpointer:
    checkpointer.restore_latest(make_state())
  assert capfd.readouterr().err == ''


def test_read_only_touches_nothing(folder):
  truncate(folder / '3')
  (folder / '9.orbax-checkpoint-tmp').mkdir()  # a save that is under way
  before = sorted(os.walk(folder))
  with pytest.warns(RuntimeWarning, match='step 3 is damaged.*skipped'):
    step, params = checkpoint.restore_params(
      folder, make_state().params, which='last'
    )
  assert step == 2
  assert_same(params, make_state(2).params)
  assert sorted(os.walk(folder)) == before


def replace(**kwargs):
  return dataclasses.replace(make_state(), **kwargs)


@pytest.mark.parametrize(
  'state, message',
  [
    (
      replace(params={'w': jnp.zeros((4, 9)), 'block': {'b': jnp.zeros(8)}}),
      r'leaf params/block/b is bfloat16\[8\] in the .* float32\[8\] in this',
    ),
    (replace(step=jnp.zeros(1, jnp.int32)), r'leaf step is int32\[\]'),
    (replace(step=jnp.float32(0)), 'leaf step is int32'),
    (replace(opt_state=()), 'leaf opt_state/1/0/count is .* nothing in this'),
    (
      replace(key=jax.random.split(jax.random.key(0), 2)),
      'leaf key is key<rbg',
    ),
  ],
)
def test_another_structure_is_named_and_not_called_damage(
  folder, state, message
):
  with Checkpointer(folder) as checkpointer:
    with pytest.raises(CheckpointError, match=message) as caught:
      checkpointer.restore_latest(state)
    assert checkpointer.all_steps() == [1, 2, 3]
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'kwargs, message',
  [({'max_to_keep': 0}, 'max_to_keep=0'), ({'best_mode': 'low'}, "='low'")],
)
def test_bad_arguments(tmp_path, kwargs, message):
  with pytest.raises(ValueError, match=message):
    Checkpointer(tmp_path, **kwargs)


def test_bad_states(folder, tmp_path):
  with Checkpointer(folder) as checkpointer:
    with pytest.raises(TypeError, match='data_state must be JSON'):
      checkpointer.save(4, make_state(), {'f': print})
    with pytest.raises(TypeError, match='leaf step is a int'):
      checkpointer.save(4, {'step': 4}, {})
    with pytest.raises(ValueError, match="which='worst'"):
      checkpointer.restore_params(make_state().params, which='worst')
    assert checkpointer.all_steps() == [1, 2, 3]
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot be used'):
    Checkpointer(tmp_path / 'file')


def test_a_full_disk_is_one_line_and_earlier_steps_stay(folder, monkeypatch):
  with Checkpointer(folder) as checkpointer:
    with monkeypatch.context() as patch:

      def full(path):
        raise OSError(errno.ENOSPC, 'No space left on device')

      patch.setattr(checkpoint.files, 'write_manifest', full)
      checkpointer.save(4, make_state(4), {}, {checkpoint.BEST_METRIC: 0.0})
      # In the background: the next call to look says it.
      with pytest.raises(CheckpointError) as caught:
        checkpointer.wait()
    text = str(caught.value)
    assert 'step 4 could not be written' in text
    assert 'earlier checkpoints are whole (steps 1, 2, 3)' in text
    assert 'disk is full' in text
    assert '\n' not in text
    # The half step is gone, is not the best, and saving works again.
    assert not list(folder.glob('4*'))
    assert checkpointer.best_step() == 1
    assert_same(checkpointer.restore_latest(make_state())[1], make_state(3))
    assert checkpointer.save(4, make_state(4), {}, wait=True)
    assert checkpointer.restore_latest(make_state())[0] == 4
    # The score of the failed save went with it.
    assert checkpointer.best_step() == 1


# The kernel refuses the write inside the storage library, not in Python.
SMALL_FILES = """
import resource, sys
import jax, jax.numpy as jnp
from meta_rl.checkpoint import Checkpointer, CheckpointError
def make(n):
  return {'params': {'w': jax.random.normal(jax.random.key(n), (20000,))}}
with Checkpointer(sys.argv[1]) as c:
  c.save(1, make(1), {}, wait=True)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50000, resource.RLIM_INFINITY))
  try:
    c.save(2, make(2), {}, wait=True)
  except CheckpointError as error:
    print(str(error).count(chr(10)), str(error))
  step, state, _ = c.restore_latest(make(0))
  print(step, bool((state['params']['w'] == make(1)['params']['w']).all()))
"""


def test_a_refused_write_keeps_the_earlier_step(tmp_path, run_python):
  first, second = run_python(SMALL_FILES, tmp_path, devices=1).splitlines()
  assert first.startswith('0 checkpoint of step 2 could not be written')
  assert second == '1 True'
  assert sorted(os.listdir(tmp_path)) == ['1']


SAVE_FOR_EVER = """
import sys
import jax.numpy as jnp
from meta_rl.checkpoint import Checkpointer
c = Checkpointer(sys.argv[1])
found = c.restore_latest({'w': jnp.zeros(50000)})
step = found[0] if found else 0
while True:
  step += 1
  c.save(step, {'w': jnp.full(50000, step, jnp.float32)}, {'i': step})
  print(step, flush=True)
"""


def test_kill_9_loses_at_most_the_save_under_way(tmp_path, root):
  done = 0
  # Twice, at different moments, the second time going on from the first.
  for extra in (3, 6):
    process = subprocess.Popen(
      [sys.executable, '-c', SAVE_FOR_EVER, tmp_path],
      cwd=root,
      stdout=subprocess.PIPE,
    )
    # `save` of step n returns while n is written, n - 1 is on disk.
    started = [int(process.stdout.readline()) for _ in range(extra)]
    process.send_signal(signal.SIGKILL)
    started += [int(line) for line in process.stdout]
    process.stdout.close()
    process.wait()
    assert started[0] >= done
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # nothing is damaged
      with Checkpointer(tmp_path) as checkpointer:
        done, state, data = checkpointer.restore_latest({'w': jnp.zeros(50000)})
    assert done >= started[-1] - 1
    assert data == {'i': done}
    np.testing.assert_array_equal(state['w'], done)
  assert not list(tmp_path.glob('*tmp*'))


FOUR_DEVICES = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from meta_rl.checkpoint import Checkpointer
mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
put = lambda *spec: NamedSharding(mesh, P(*spec))
shardings = {'w': put('data'), 'v': put(None, 'data'), 'key': put()}
def make():
  w = jnp.arange(32.0).reshape(8, 4)
  return {'w': w, 'v': w + 1, 'key': jax.random.split(jax.random.key(7), 3)}
with Checkpointer(sys.argv[1]) as c:
  for given in (put(), shardings):
    _, state, _ = c.restore_latest(jax.eval_shape(make), given)
    for name, leaf in make().items():
      want = given if given is not shardings else shardings[name]
      assert state[name].sharding.is_equivalent_to(want, leaf.ndim), name
      assert (state[name] == leaf).all()
  c.save(2, state, {}, wait=True)
"""


def test_restores_onto_other_devices_and_back(tmp_path, run_python):
  w = jnp.arange(32.0).reshape(8, 4)
  state = {'w': w, 'v': w + 1, 'key': jax.random.split(jax.random.key(7), 3)}
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, {})
  run_python(FOUR_DEVICES, tmp_path, devices=4)
  with Checkpointer(tmp_path) as checkpointer:
    step, restored, _ = checkpointer.restore_latest(state)
  assert step == 2
  assert_same(restored, state)
