"""A config of one's own: keys that it lacks, and files that give none."""

import importlib
import inspect

import ml_collections
import pytest

from meta_rl import (
  check_config,
  command_line,
  config_keys,
  env,
  models,
  optimizers,
  workdir,
)


def shipped(argument='tiny'):
  """Returns {name: config} of all that are of training."""
  found = {}
  for name in env.config_names():
    if name.startswith('study'):
      continue
    module = importlib.import_module(f'meta_rl.configs.{name}')
    found[name] = module.get_config(argument)
  return found


def keys_of(config):
  return {*workdir.flatten(config.to_dict()), *config}


def table(*tables):
  """Returns the dotted keys and the sections of tables."""
  keys = set()
  for sections in tables:
    for section, names in sections.items():
      keys |= {'.'.join(filter(None, (section, name))) for name in names}
      keys |= {section} - {''}
  return keys


def without(config, path):
  config = config.copy_and_resolve_references()
  config.unlock()
  *sections, last = path.split('.')
  node = config
  for section in sections:
    node = node[section]
  del node[last]
  return config


def test_the_table_is_what_all_shipped_configs_have():
  configs = shipped()
  sft = {k for k, c in configs.items() if c.algorithm.name == 'sft'}
  assert sft
  assert len(configs) > 20
  both = [*configs.values(), *shipped('').values()]
  common = set.intersection(*map(keys_of, both))
  taken = inspect.signature(optimizers.make_optimizer).parameters
  own = {f'optimizer.{name}' for name in taken}  # these have defaults
  # These have defaults, too: configs of before them go on as they are.
  own |= {'parallel.fused_steps', 'rollout.slots'}
  assert common - own == table(config_keys.TRAINING) - own
  assert 'optimizer.learning_rate' in table(config_keys.TRAINING)
  imitation = set.intersection(*(keys_of(configs[name]) for name in sft))
  assert table(config_keys.IMITATION) <= imitation


@pytest.mark.parametrize('name', ['mrt_countdown', 'sft_countdown'])
def test_every_key_that_lacks_is_one_line(name):
  config = shipped()[name]
  tables = [config_keys.TRAINING]
  if name == 'sft_countdown':
    tables.append(config_keys.IMITATION)
  for path in sorted(table(*tables) - {'task'}):
    with pytest.raises(ValueError, match=f"has no (section|key) '{path}'"):
      check_config.check(without(config, path))
  with pytest.raises(ValueError, match='has no task'):
    check_config.check(without(config, 'task'))


def test_a_section_that_is_a_number():
  config = shipped()['mrt_countdown']
  config.unlock()
  with config.ignore_type():
    config.checkpoint = 5
  with pytest.raises(ValueError, match="no section 'checkpoint'"):
    check_config.check(config)


def test_a_model_without_its_width():
  with pytest.raises(ValueError, match=r'^model\.ffn_width is missing'):
    models.config_from_dict({'vocab_size': 8})


def test_a_recorded_config():
  config = shipped()['mrt_countdown']
  config_keys.check_recorded('folder', config)
  older = without(config, 'rollout.dynamic_sampling')
  config_keys.check_recorded('folder', without(older, 'curriculum'))
  with pytest.raises(ValueError, match="folder/config.json has no key 'seed'"):
    config_keys.check_recorded('folder', without(config, 'seed'))
  with pytest.raises(ValueError, match="another program.*'prover' section"):
    config_keys.check_recorded('folder', without(config, 'prover'))
  strange = ml_collections.ConfigDict({'architectures': ['Llama']})
  with pytest.raises(ValueError, match="another program.*'task' section"):
    config_keys.check_recorded('folder', strange)


@pytest.mark.parametrize(
  'text, message',
  [
    ('x = 1\ndef get_config(:\n', 'line 2: SyntaxError: '),
    ('import nosuchmodule\n', 'line 1: ModuleNotFoundError: '),
    ('def get_config():\n  return nothing\n', 'line 2: NameError: '),
    ('raise SystemExit(3)\n', 'line 1: SystemExit: 3.'),
    ('x = 1\n', 'it has no function get_config.'),
    ('def get_config():\n  return {}\n', 'get_config returns dict, not an '),
    ('def get_config():\n  pass\n', 'get_config returns NoneType, not an '),
    ('def get_config(arg):\n  pass\n', 'TypeError: get_config() missing 1 '),
  ],
)
def test_a_file_that_gives_no_config(text, message, tmp_path, capsys):
  path = tmp_path / 'own.py'
  path.write_text(text)
  with pytest.raises(SystemExit) as left:
    command_line.parse_flags(['train', f'--config={path}'])
  assert left.value.code.startswith(f'error: --config={path}: {message}')
  assert '\n' not in left.value.code


def test_what_a_config_says_of_its_argument_stays(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text('def get_config(arg):\n  raise ValueError(f"not {arg}")\n')
  with pytest.raises(ValueError, match='^not this$'):
    command_line.check_config_file(f'{path}:this')


def test_a_config_flag_without_a_value():
  for argv in (['train', '--config'], ['train', '--config', '--workdir=x']):
    with pytest.raises(SystemExit, match='--config has no value'):
      command_line.parse_flags(argv)
