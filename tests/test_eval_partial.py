"""The finished batches of an evaluation that is under way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import eval_partial

PART = {
  'tokens': np.array([[1, 2], [3, 4]], np.int32),
  'mask': np.array([[True, False], [True, True]]),
  # Numbers that no rounding would keep.
  'success': np.array([[0.1, 1 / 3], [np.nextafter(1, 0), 0]], np.float32),
  'none': np.zeros((0, 3), np.float32),
}


def make(folder, lines, **changes):
  """A `Partial` whose messages go into a list."""
  identity = {'seed': 1, 'config': {'rollout': {'top_k': None}}} | changes
  return eval_partial.Partial(
    folder / 'eval.partial', identity, say=lines.append
  )


def test_a_batch_comes_back_bit_for_bit(tmp_path):
  lines = []
  stage = make(tmp_path, lines).stage('traces')
  assert stage.read(0) is None
  stage.write(0, PART)
  again = make(tmp_path, lines).stage('traces')
  found = again.read(0)
  assert set(found) == set(PART)
  for name, array in PART.items():
    assert found[name].dtype == array.dtype
    assert found[name].tobytes() == array.tobytes()
    assert found[name].shape == array.shape
  # Another batch, and another measurement, are others.
  assert again.read(1) is None
  assert make(tmp_path, lines).stage('samples').read(0) is None
  assert lines[0] == (
    f'going on behind 1 finished batches, kept in {tmp_path / "eval.partial"}'
  )


def test_bfloat16_comes_back(tmp_path):
  stage = make(tmp_path, []).stage('rules')
  array = jnp.asarray([[0.1, jnp.nan], [1, 2]], 'bfloat16')
  stage.write(0, {'features': np.asarray(array)})
  found = stage.read(0)['features']
  assert found.dtype == array.dtype
  assert found.tobytes() == np.asarray(array).tobytes()


def test_a_damaged_batch_is_none(tmp_path):
  stage = make(tmp_path, []).stage('traces')
  stage.write(0, PART)
  (file,) = tmp_path.rglob('*.npz')
  whole = file.read_bytes()
  flipped = bytearray(whole)
  flipped[len(whole) // 3] ^= 255
  for data in (b'', b'PK', whole[:-30], whole[: len(whole) // 2], b'x' * 99):
    file.write_bytes(data)
    assert stage.read(0) is None, data[:9]
  file.write_bytes(bytes(flipped))  # zip's own checksum
  assert stage.read(0) is None
  stage.write(0, PART)
  assert stage.read(0) is not None


def test_a_partial_of_anything_else_is_removed_and_said(tmp_path):
  lines = []
  make(tmp_path, lines).stage('traces').write(0, PART)
  other = make(tmp_path, lines, seed=2, config={'rollout': {'top_k': 5}})
  stage = other.stage('traces')
  assert stage.read(0) is None
  # It may still be refused: nothing is removed before a batch is finished.
  assert lines == []
  assert make(tmp_path, []).stage('traces').read(0) is not None
  stage.write(3, PART)
  assert lines == [
    f'{tmp_path / "eval.partial"} is of another evaluation '
    '(config.rollout.top_k None, now 5; seed 1, now 2): it is removed, all is '
    'measured anew'
  ]
  files = sorted(p.name for p in tmp_path.rglob('*') if p.is_file())
  assert files == ['identity.json', 'traces-00003.npz']
  stage.write(4, PART)
  assert len(lines) == 1
  # One whose identity cannot be read is another one too.
  next(tmp_path.rglob('identity.json')).write_text('{')
  lines.clear()
  make(tmp_path, lines).stage('traces').write(0, PART)
  assert 'is of another evaluation: it is removed' in lines[0]


def test_two_at_once_do_not_take_each_other_s_batches(tmp_path):
  first, second = make(tmp_path, []), make(tmp_path, [], seed=2)
  first.stage('traces').write(1, PART)
  second.stage('traces').write(1, PART)  # takes the first's folder away
  first.stage('traces').write(0, PART)
  assert second.stage('traces').read(0) is None
  assert first.stage('traces').read(0) is not None
  second.remove()
  assert (tmp_path / 'eval.partial').exists()
  first.remove()
  assert list(tmp_path.iterdir()) == []
  first.remove()  # again, without a word


def test_nothing_is_made_before_a_batch(tmp_path):
  partial = make(tmp_path, [])
  assert partial.stage('traces').read(0) is None
  partial.remove()
  assert list(tmp_path.iterdir()) == []
  partial.stage('traces').write(0, PART)
  file = next(tmp_path.rglob('identity.json'))
  assert json.loads(file.read_text())['seed'] == 1


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_digest_is_of_every_bit(dtype):
  params = {'a': {'w': jnp.ones((2, 3), dtype)}, 'b': jnp.zeros((), dtype)}
  digest = eval_partial.digest_of(params)
  assert digest == eval_partial.digest_of(dict(reversed(params.items())))
  above = np.asarray(params['a']['w']).copy()
  above.view(np.uint8).reshape(-1)[0] ^= 1
  others = [
    params | {'a': {'w': jnp.asarray(above)}},
    params | {'a': {'w': jnp.ones((3, 2), dtype)}},
    {'a': {'v': params['a']['w']}, 'b': params['b']},
    params | {'b': jnp.zeros((), 'float16')},
  ]
  assert len({digest, *map(eval_partial.digest_of, others)}) == 5


def test_code_is_part_of_what_is_evaluated(tmp_path, monkeypatch):
  """Every .py file of the package: its name, and its content."""
  monkeypatch.setattr(eval_partial, '__file__', str(tmp_path / 'x.py'))
  (tmp_path / 'tasks').mkdir()
  digests = []
  for name, text in (
    ('x.py', 'a = 1'),
    ('tasks/y.py', ''),
    ('x.py', 'a = 2'),
    ('x.txt', 'no code'),
    ('x.py', 'a = 1'),
  ):
    (tmp_path / name).write_text(text)
    eval_partial.code_digest.cache_clear()
    digests.append(eval_partial.environment()['code'])
  eval_partial.code_digest.cache_clear()
  assert len(set(digests[:3])) == 3
  assert digests[3] == digests[2]
  assert digests[4] == digests[1]


def test_settings_are_part_of_what_is_evaluated(monkeypatch):
  found = eval_partial.environment()
  assert json.loads(json.dumps(found)) == found
  assert eval_partial.environment() == found
  name = 'jax_threefry_partitionable'
  old = getattr(jax.config, name)
  try:
    jax.config.update(name, not old)
    assert eval_partial.environment() != found
  finally:
    jax.config.update(name, old)
  with jax.default_matmul_precision('highest'):
    assert eval_partial.environment() != found
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  assert eval_partial.environment() != found
