"""The TFDS dataset: contents, config, and building it safely."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from meta_rl.tasks import builder, countdown, sources

# Small, and with an order of operators that the name must tell.
CONFIG = {'high': 6, 'ops': '+-*', 'max_answers': 4, 'orders': 2}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def splits(data_dir):
  return {
    split: builder.load_source(data_dir, split, **CONFIG)
    for split in countdown.SPLITS
  }


def expected(split):
  problems = countdown.problem_set(split, high=6, ops='+-*', max_answers=4)
  return countdown.prompt_orders(problems, orders=2)


def test_records_are_the_problems(splits):
  for split, source in splits.items():
    problems = [
      builder.record_problem(source[index], ops='+-*')
      for index in range(len(source))
    ]
    assert problems == expected(split)
  record = splits['train'][0]
  assert record['answers'].shape == (4, 5)
  assert record['answers'].dtype == record['numbers'].dtype == np.int32


def test_splits_share_no_problem(splits):
  keys = {
    split: {
      (tuple(sorted(record['numbers'].tolist())), int(record['target']))
      for record in (source[index] for index in range(len(source)))
    }
    for split, source in splits.items()
  }
  assert not keys['train'] & keys['validation']
  assert not keys['train'] & keys['test']
  assert not keys['validation'] & keys['test']


def test_second_use_reads_what_is_there(splits, data_dir, monkeypatch):
  monkeypatch.setattr(sources, '_build', None)
  again = builder.load_source(data_dir, 'test[:7]', **CONFIG)
  assert len(again) == 7
  np.testing.assert_array_equal(
    again[6]['numbers'], splits['test'][6]['numbers']
  )
  assert not list(data_dir.glob('.build-*'))


def test_every_option_is_in_the_name():
  base = builder.make_config()
  changes = {
    'n': 4,
    'low': 2,
    'high': 9,
    'ops': '+-*',
    'max_answers': 3,
    'min_target': 2,
    'max_target': 50,
    'max_value': 98,
    'max_multisets': 10,
    'orders': 1,
    'seed': 1,
  }
  names = {
    builder.make_config(**{name: value}).name for name, value in changes.items()
  }
  assert len(names | {base.name}) == len(changes) + 1


def test_damaged_folder_is_built_again(tmp_path):
  config = {'high': 3, 'orders': 1, 'max_answers': 9}
  whole = builder.load_source(tmp_path, 'test', **config)
  size = len(whole)
  (info,) = tmp_path.rglob('dataset_info.json')
  info.unlink()
  assert len(builder.load_source(tmp_path, 'test', **config)) == size
  (file,) = tmp_path.rglob('*-test.array_record*')
  file.write_bytes(file.read_bytes()[:100])
  again = builder.load_source(tmp_path, 'test', **config)
  assert len(again) == size
  assert again[size - 1]['target'] >= 1
  assert len(list(tmp_path.rglob('dataset_info.json'))) == 1


LOAD = """
import sys
from meta_rl.tasks import builder
source = builder.load_source(sys.argv[1], 'train', high=5, orders=1)
assert 'tensorflow' not in sys.modules
print(len(source), source[0]['target'])
"""


def test_two_processes_at_once_without_tensorflow(run_python, tmp_path):
  # One was killed in the middle before them: what it left is not trusted.
  left = tmp_path / '.build-left'
  left.mkdir()
  (left / 'half').write_text('x')
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    jobs = [
      pool.submit(run_python, LOAD, str(tmp_path), devices=1) for _ in range(2)
    ]
    one, other = (job.result() for job in jobs)
  assert one == other
  assert int(one.split()[0]) > 10
  assert not list(tmp_path.glob('.build-*'))
  assert len(list(tmp_path.rglob('dataset_info.json'))) == 1


def test_building_waits_for_the_lock(tmp_path):
  config = {'high': 3, 'orders': 1}
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with sources._locked(tmp_path / '.lock'):
      job = pool.submit(builder.load_source, tmp_path, 'train', **config)
      with pytest.raises(concurrent.futures.TimeoutError):
        job.result(timeout=1)
      assert not list(tmp_path.glob('.build-*'))
    assert len(job.result()) > 0


SLOW = """
import sys, time
from meta_rl.tasks import builder, countdown
whole = countdown.prompt_orders
def slow(*args, **kwargs):
  time.sleep(60)
  return whole(*args, **kwargs)
countdown.prompt_orders = slow
builder.load_source(sys.argv[1], 'train', high=3, orders=1)
"""


def test_killed_build_leaves_nothing_behind(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', SLOW, str(tmp_path)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob('.build-*/**/incomplete*')):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  source = builder.load_source(tmp_path, 'train', high=3, orders=1)
  assert len(source) > 0
  assert not list(tmp_path.glob('.build-*'))


@pytest.mark.parametrize(
  'split, config, message',
  [
    ('dev', {}, "split 'dev' must be one of"),
    ('train', {'hihg': 5}, r"unknown Countdown options \['hihg'\]"),
    ('train', {'ops': '+%'}, 'distinct characters'),
    ('train', {'min_target': 98, 'high': 3}, 'has no train problem'),
  ],
)
def test_bad_requests(tmp_path, split, config, message):
  with pytest.raises(ValueError, match=message):
    builder.load_source(tmp_path, split, **config)


def test_remote_folders_are_refused():
  with pytest.raises(ValueError, match='must be a local folder'):
    builder.load_source('gs://bucket/data', 'train')
