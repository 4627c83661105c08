import errno
import os

import pytest

from meta_rl import files


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'a'
  files.atomic_write(path, b'one')
  files.atomic_write(path, b'two')
  assert path.read_bytes() == b'two'
  assert os.listdir(tmp_path) == ['a']


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a'
  files.atomic_write(path, b'one')

  def full(fd):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError) as caught:
    files.atomic_write(path, b'two')
  assert files.is_disk_full(caught.value)
  assert path.read_bytes() == b'one'
  assert os.listdir(tmp_path) == ['a']


def test_is_disk_full_looks_at_causes_and_words():
  error = ValueError('could not write')
  error.__cause__ = OSError(errno.EDQUOT, 'quota')
  assert files.is_disk_full(error)
  assert files.is_disk_full(ValueError('a: No space left on device [b]'))
  assert not files.is_disk_full(OSError(errno.EACCES, 'denied'))


def test_one_line():
  assert files.one_line(ValueError('a\n  b\tc')) == 'a b c'
  assert files.one_line(KeyError()) == 'KeyError'
  assert files.one_line(ValueError('x' * 300)) == 'x' * 199 + '…'


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'state' / 'd').mkdir(parents=True)
  (tmp_path / 'state' / 'd' / 'x').write_bytes(b'0123456789')
  (tmp_path / 'state' / 'y').write_bytes(b'')
  files.write_manifest(tmp_path)
  return tmp_path


def test_a_whole_folder_has_no_damage(folder):
  assert files.find_damage(folder) is None


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('state/d/x', None, 'state/d/x is missing'),
    ('state/d/x', b'012345678', 'state/d/x has 9 bytes instead of 10'),
    ('state/d/x', b'0123456780', 'state/d/x has other bytes'),
    ('state/y', b'0', 'state/y has 1 bytes instead of 0'),
    ('MANIFEST.json', None, 'MANIFEST.json is missing'),
    ('MANIFEST.json', b'{"state/y', 'MANIFEST.json cannot be used'),
    ('MANIFEST.json', b'[]', 'MANIFEST.json cannot be used'),
  ],
)
def test_damage_is_named(folder, name, data, message):
  path = folder / name
  path.unlink() if data is None else path.write_bytes(data)
  assert message in files.find_damage(folder)


def test_an_input_that_cannot_be_read_is_one_line(tmp_path):
  files.check_input('x', __file__)
  with pytest.raises(ValueError, match="data.path='none': there is no such"):
    files.check_input('data.path', 'none')
  with pytest.raises(ValueError, match=r"='jsonl:.*': it is a folder; name"):
    files.check_input('rollout.source', tmp_path, 'jsonl:')


def test_an_output_is_looked_at_before_the_work(tmp_path):
  out = tmp_path / 'new' / 'deep' / 'a.jsonl'
  files.check_output('--out', out)
  assert out.parent.is_dir()
  assert not out.exists()
  out.write_text('x')
  files.check_output('--out', out)  # it will be replaced
  with pytest.raises(ValueError, match=r'--out=.*: it is a folder; name a'):
    files.check_output('--out', tmp_path)
  with pytest.raises(ValueError, match='it lies under a file'):
    files.check_output('--out', out / 'b')
  out.parent.chmod(0o500)
  if not os.access(out.parent, os.W_OK):  # root may write anywhere
    with pytest.raises(ValueError, match='cannot be written'):
      files.check_output('--out', out)
