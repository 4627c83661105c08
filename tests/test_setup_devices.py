"""From a config to the devices that are here."""

import json

import pytest

from meta_rl import setup_devices
from meta_rl.configs import mrt_countdown, sft_countdown


def config_of(get_config=mrt_countdown.get_config, **changes):
  config = get_config()
  for key, value in changes.items():
    section, _, name = key.partition('__')
    config[section][name] = value
  return config


def test_one_device():
  assert setup_devices.parallel_of(config_of()) == ('none', None)
  assert setup_devices.parallel_of(config_of(parallel__kind='none'))[1] is None
  kind, mesh = setup_devices.parallel_of(config_of(parallel__kind='jit'))
  assert (kind, mesh.size) == ('jit', 1)


class Mesh:
  """As many data shards as are said."""

  def __init__(self, data, fsdp=1, context=1):
    self.shape = {'data': data, 'fsdp': fsdp, 'context': context}


@pytest.mark.parametrize(
  'rows, mesh, micro',
  [
    (None, Mesh(4), 6),  # as the config says
    (96, None, 1),
    (16, None, 6),  # 24 x 8 / 2 = 96 rows
    (16, Mesh(2), 3),  # 48 each
    (16, Mesh(2, 2), 2),  # 24 each: 12 at a time
    (7, Mesh(4), 4),  # 6 at a time, the most that divides 24
    (1, Mesh(8), 12),
  ],
)
def test_micro_batches_follow_from_the_devices(rows, mesh, micro):
  found = setup_devices.batching_of(
    config_of(batching__rows_per_device=rows), mesh
  )
  assert found['micro_batches'] == micro
  assert 'rows_per_device' not in found
  assert found['mini_batches'] == 2


def test_rows_of_imitation():
  config = sft_countdown.get_config()
  sizes = [b.batch_size for b in config.data.buckets.values()]
  config.batching.rows_per_device = 4
  found = setup_devices.batching_of(config)['micro_batches']
  assert all(size % found == 0 and size // found >= 1 for size in sizes)
  assert max(sizes) // found <= 4


@pytest.mark.parametrize(
  'changes, mesh, words',
  [
    ({}, Mesh(4, 1, 2), 'context=2 cuts one trace a device and there are 4'),
    ({}, Mesh(8), 'num_prompts=24 cannot be spread over 8 devices'),
    ({}, Mesh(12), 'micro-batch of 16 rows cannot be spread over 12'),
    ({'batching__rows_per_device': 1}, Mesh(5), 'give a multiple of 10'),
  ],
)
def test_batches_that_cannot_be_cut(changes, mesh, words):
  with pytest.raises(ValueError, match=words):
    setup_devices.check(config_of(**changes), mesh)


def test_a_batch_that_can():
  config = config_of(batching__rows_per_device=8, rollout__num_prompts=32)
  setup_devices.check(config, Mesh(16))  # docs/pods.md: a v5e-16
  setup_devices.check(config_of(), Mesh(4))


CODE = """
import json
from meta_rl import setup_devices
from meta_rl.configs import mrt_countdown
found = []
whole = {'rows_per_device': 8, 'num_prompts': 32}
for changes in ({}, {'rows_per_device': 8}, whole):
  config = mrt_countdown.get_config()
  for key, value in changes.items():
    section = config.rollout if key == 'num_prompts' else config.batching
    section[key] = value
  kind, mesh = setup_devices.parallel_of(config)
  setup_devices.check(config, mesh)
  found.append([kind, mesh.size, setup_devices.note_on_unused(mesh)])
print(json.dumps(found))
"""


def test_as_many_devices_as_the_batch_can_be_cut_for(run_python):
  found = json.loads(run_python(CODE, devices=8).splitlines()[-1])
  assert [each[:2] for each in found] == [['jit', 4], ['jit', 6], ['jit', 8]]
  assert found[0][2].startswith('note: 4 of 8 devices are used')
  assert found[2][2] == ''


def test_rows_of_the_fullest_batches_count():
  config = sft_countdown.get_config()
  config.data.buckets.short.batch_size = 64
  config.data.buckets.long.batch_size = 16
  config.batching.rows_per_device = 8
  # 64 rows in 8 parts; those of the other are of 2.
  assert setup_devices.batching_of(config)['micro_batches'] == 8
  config.data.pattern = ('long',)
  assert setup_devices.batching_of(config)['micro_batches'] == 2
