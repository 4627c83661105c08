"""Run folders in a bucket: 'gs://…' in the place of a path."""

import json

import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from meta_rl import eval_partial, evaluate, files, metrics, workdir


class Bucket(MemoryFileSystem):
  """Objects in memory, under the names that epath gives those of gs://."""

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + path.removeprefix('gs://').strip('/')

  def glob(self, path, **options):
    return [name.lstrip('/') for name in super().glob(path, **options)]


@pytest.fixture
def bucket(monkeypatch):
  """An empty bucket, as a path."""
  system = Bucket(skip_instance_cache=True)
  system.store.clear()
  system.pseudo_dirs[:] = ['']
  monkeypatch.setattr(
    backend._FileSystemSpecBackend, '_get_filesystem', lambda *_: system
  )
  return epath.Path('gs://bucket')


def test_which_paths_are_remote(tmp_path):
  assert files.is_remote('gs://bucket/run')
  assert files.is_remote(epath.Path('gs://bucket/run'))
  assert not files.is_remote(tmp_path)
  assert not files.is_remote('runs/gs')


def test_an_object_is_written_whole(bucket):
  files.atomic_write(bucket / 'a' / 'x.json', b'{}')
  files.atomic_write(bucket / 'a' / 'x.json', b'[1]')
  assert (bucket / 'a' / 'x.json').read_bytes() == b'[1]'
  assert [p.name for p in (bucket / 'a').iterdir()] == ['x.json']


def test_lines_are_added_now_and_then(bucket):
  path = bucket / 'x.jsonl'
  path.write_text('1\n')
  lines = files.RemoteLines(path, every_s=3600)
  lines.write('2\n')
  lines.flush()
  assert path.read_text() == '1\n'
  lines.flush(now=True)
  assert path.read_text() == '1\n2\n'
  lines.write('3\n')
  lines.close()
  assert path.read_text() == '1\n2\n3\n'
  soon = files.RemoteLines(path, every_s=0)
  soon.write('4\n')
  soon.flush()
  assert path.read_text().endswith('4\n')


def test_metrics_of_a_resumed_run(bucket):
  folder = bucket / 'run'
  with metrics.MetricsWriter(folder) as writer:
    for step in (1, 2, 3):
      writer.write(step, {'loss': step})
    writer.save()
    assert len(metrics.read_metrics(folder / metrics.METRICS_NAME)) == 3
    writer.write_text_rows('samples', 2, [{'text': 'é'}])
  with metrics.MetricsWriter(folder, resume_step=2) as writer:
    writer.write(3, {'loss': 30})
  rows = metrics.read_metrics(folder / metrics.METRICS_NAME)
  assert [(r['step'], r['loss']) for r in rows] == [(1, 1), (2, 2), (3, 30)]
  text = (folder / 'samples' / 'step_000002.jsonl').read_text()
  assert json.loads(text) == {'text': 'é'}
  assert metrics.total(folder, 'loss', last_step=2) == 3


def test_the_config_guards_the_folder(bucket):
  path = 'gs://bucket/run'
  with workdir.open_workdir(path, {'a': 1}) as opened:
    assert opened.changed == {}
  with pytest.raises(workdir.WorkdirError, match='a: 1 -> 2'):
    workdir.open_workdir(path, {'a': 2})
  with workdir.open_workdir(path, {'a': 2}, allow_change='a') as opened:
    assert opened.changed == {'a': (1, 2)}
    assert workdir.read_config(path) == {'a': 2}
    opened.revert()
  assert workdir.read_config(path) == {'a': 1}
  names = {each.name for each in (bucket / 'run').iterdir()}
  assert names == {workdir.CONFIG_NAME}


def test_without_gcsfs_one_line_says_so(monkeypatch):
  def missing(*_):
    raise ImportError('Install gcsfs to access Google Storage')

  monkeypatch.setattr(
    backend._FileSystemSpecBackend, '_get_filesystem', missing
  )
  with pytest.raises(workdir.WorkdirError, match=r'meta-rl\[gcs\]'):
    workdir.open_workdir('gs://bucket/run', {})


def test_a_result_makes_no_folder_here(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with evaluate.result_folder('gs://bucket/run'):
    pass
  files.atomic_write('gs://bucket/run/eval.json', b'{}')
  assert (bucket / 'run' / 'eval.json').exists()
  assert not list(tmp_path.iterdir())


def test_an_evaluation_goes_on_from_a_bucket(bucket):
  """Its batches are read back, and leave nothing behind."""
  lines, part = [], {'rewards': np.arange(3, dtype=np.float32)}
  make = lambda seed: eval_partial.Partial(
    'gs://bucket/run/eval.partial', {'seed': seed}, say=lines.append
  )
  make(0).stage('traces').write(0, part)
  make(1).stage('traces').write(0, part)
  assert [line.partition(' (')[0] for line in lines] == [
    'gs://bucket/run/eval.partial is of another evaluation'
  ]
  again = make(1)
  assert 'going on behind 1 finished batches' in lines[1]
  found = again.stage('traces').read(0)
  assert found['rewards'].tolist() == part['rewards'].tolist()
  assert again.stage('traces').read(1) is None
  again.remove()
  assert not (bucket / 'run' / 'eval.partial').exists()
