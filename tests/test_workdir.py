import json
import os
import signal
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from meta_rl import workdir

CONFIG = {'optimizer': {'lr': 0.1, 'b1': 0.9}, 'seed': 0, 'sizes': (3, 4)}


def changed(**kwargs):
  return CONFIG | kwargs


def test_a_new_folder_records_the_config(tmp_path):
  with workdir.open_workdir(tmp_path / 'a' / 'run', CONFIG) as run:
    assert run.changed == {}
    saved = json.loads((run.path / 'config.json').read_text())
  assert saved == {**CONFIG, 'sizes': [3, 4]}
  assert workdir.read_config(run.path) == saved == run.config


def test_the_same_config_opens_again(tmp_path):
  workdir.open_workdir(tmp_path, CONFIG).close()
  # Tuples come back from JSON as lists: no difference.
  with workdir.open_workdir(tmp_path, changed(sizes=[3, 4])) as run:
    assert run.changed == {}
  assert not (tmp_path / 'config.0.json').exists()


def test_another_config_is_refused_key_by_key(tmp_path):
  workdir.open_workdir(tmp_path, CONFIG).close()
  other = {'optimizer': {'lr': 0.2, 'b1': 0.9}, 'seed': 0, 'new': True}
  with pytest.raises(workdir.WorkdirError) as caught:
    workdir.open_workdir(tmp_path, other, allow_change='seed')
  text = str(caught.value)
  assert '\n' not in text
  assert 'optimizer.lr: 0.1 -> 0.2' in text
  assert "new: '(absent)' -> True" in text
  assert "sizes: [3, 4] -> '(absent)'" in text
  assert '--allow_change=new,optimizer.lr,sizes' in text
  assert 'b1' not in text
  assert workdir.read_config(tmp_path)['optimizer']['lr'] == 0.1
  # A refusal lets go of the lock.
  workdir.open_workdir(tmp_path, CONFIG).close()


def test_a_config_that_is_a_folder(tmp_path):
  (tmp_path / 'config.json').mkdir()
  with pytest.raises(
    workdir.WorkdirError, match=r'config\.json cannot be read'
  ):
    workdir.read_config(tmp_path)


@pytest.mark.parametrize(
  'allow',
  ['optimizer.lr,seed', ' seed , optimizer', ['optimizer', 'seed']],
)
def test_named_changes_are_recorded(tmp_path, allow):
  workdir.open_workdir(tmp_path, CONFIG).close()
  new = changed(optimizer={'lr': 0.2, 'b1': 0.9}, seed=1)
  with workdir.open_workdir(tmp_path, new, allow_change=allow) as run:
    assert run.changed == {'optimizer.lr': (0.1, 0.2), 'seed': (0, 1)}
  assert workdir.read_config(tmp_path)['seed'] == 1
  old = json.loads((tmp_path / 'config.0.json').read_text())
  assert old['seed'] == 0
  newer = new | {'seed': 2}
  workdir.open_workdir(tmp_path, newer, allow_change='seed').close()
  assert json.loads((tmp_path / 'config.1.json').read_text())['seed'] == 1


def test_a_name_covers_its_children_only(tmp_path):
  workdir.open_workdir(tmp_path, CONFIG).close()
  new = changed(optimizer={'lr': 0.2, 'b1': 0.9})
  for allow in ('opt', 'optimizer.l', 'lr'):
    with pytest.raises(workdir.WorkdirError, match='unknown config key'):
      workdir.open_workdir(tmp_path, new, allow_change=allow)
  with pytest.raises(workdir.WorkdirError, match='optimizer.lr: 0.1 -> 0.2'):
    workdir.open_workdir(tmp_path, new, allow_change='optimizer.b1')


@pytest.mark.parametrize(
  'given, kind',
  [('size=many', 'a whole number'), ('share=half', 'a number')],
)
def test_a_flag_of_another_type(given, kind):
  values = flags.FlagValues()
  flags.DEFINE_integer('size', 1, '', flag_values=values)
  flags.DEFINE_float('share', 1.0, '', flag_values=values)
  with pytest.raises(SystemExit) as left:
    workdir.parse_flags(['x', f'--{given}'], values)
  assert left.value.code == f'error: --{given} is given; allowed is {kind}'


def test_two_runs_cannot_share_a_folder(tmp_path):
  with workdir.open_workdir(tmp_path, CONFIG):
    with pytest.raises(
      workdir.WorkdirError, match=rf'in use .*process {os.getpid()}\)'
    ):
      workdir.open_workdir(tmp_path, CONFIG)
  workdir.open_workdir(tmp_path, CONFIG).close()


def test_a_killed_run_leaves_no_lock_and_nor_do_its_workers(tmp_path, root):
  code = (
    'import os, sys, time\n'
    'from meta_rl.workdir import open_workdir\n'
    'run = open_workdir(sys.argv[1], {})\n'
    'if os.fork() == 0: print(os.getpid(), flush=True)\n'
    'time.sleep(60)\n'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', code, tmp_path],
    cwd=root,
    stdout=subprocess.PIPE,
  )
  worker = int(parent.stdout.readline())
  try:
    with pytest.raises(workdir.WorkdirError, match='in use'):
      workdir.open_workdir(tmp_path, {})
    parent.kill()
    parent.wait()
    workdir.open_workdir(tmp_path, {}).close()
  finally:
    parent.kill()
    os.kill(worker, signal.SIGKILL)
    parent.stdout.close()


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_a_file_is_no_folder(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(workdir.WorkdirError, match='is a file, or lies under'):
    workdir.open_workdir(tmp_path / name, CONFIG)


def test_an_unwritable_folder_is_one_line(tmp_path, monkeypatch):
  # Root may write anywhere: the refusal of the kernel is put in by hand.
  def refuse(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(workdir, '_lock', refuse)
  with pytest.raises(workdir.WorkdirError, match='cannot be written .Permis'):
    workdir.open_workdir(tmp_path, CONFIG)


@pytest.mark.parametrize('text', ['{"a"', '[1]', ''])
def test_a_damaged_config_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(workdir.WorkdirError, match='config.json'):
    workdir.open_workdir(tmp_path, CONFIG)


def test_a_config_that_is_not_json_is_refused(tmp_path):
  with pytest.raises(TypeError, match='a config may hold'):
    workdir.open_workdir(tmp_path, {'f': print})


@pytest.mark.parametrize(
  'key, hint',
  [
    ('optimizer.lrr', 'did you mean optimizer.lr'),
    ('optimzer.lr', 'did you mean optimizer.lr'),
    ('lr', 'did you mean optimizer.lr'),
    ('sed', 'did you mean seed'),
    ('zzzz', 'a config has optimizer, seed, sizes'),
  ],
)
def test_unknown_key_message(key, hint):
  text = workdir.unknown_key_message(CONFIG, key)
  assert text.startswith(f'unknown config key {key}: {hint}')


def test_unknown_key_message_names_what_the_group_holds():
  text = workdir.unknown_key_message(CONFIG, 'optimizer.lrr')
  keys = ', '.join(sorted(CONFIG['optimizer']))
  assert text.endswith(f'(optimizer has {keys})')
  many = {'a': {f'k{i}': i for i in range(9)}}
  assert '(' not in workdir.unknown_key_message(many, 'a.k10')


def test_lock_and_check():
  config = workdir.lock_and_check(ConfigDict(CONFIG))
  with pytest.raises((AttributeError, KeyError)):
    config.optimizer.lrr = 1
  with pytest.raises(ValueError, match='config key data.path has no value'):
    workdir.lock_and_check(ConfigDict({'data': {'path': '???'}}))
  # What follows another needs no flag of its own.
  config = ConfigDict({'path': '???', 'data': '???'})
  config.tokenizer = config.get_oneway_ref('path')
  with pytest.raises(ValueError, match='config key data, path has no value'):
    workdir.lock_and_check(config)
  # Of two that are one and the same, one is asked for.
  config = ConfigDict({'path': '???', 'tokenizer': ''})
  config.tokenizer = config.get_ref('path')
  with pytest.raises(ValueError, match='config key path has no value'):
    workdir.lock_and_check(config)


# From ml_collections, which loads config files with it.
old_loader = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning',
  'ignore:.*load_module:ImportWarning',
)


@old_loader
@pytest.mark.parametrize(
  'arg, message',
  [
    ('--config.optimizer.lrr=3', 'error: unknown config key optimizer.lrr: di'),
    ('--config.optimzer.lr=3', 'error: unknown config key optimzer.lr: did yo'),
    ('--config.sed=3', 'error: unknown config key sed: did you mean seed?'),
    (
      '--config.seed=abc',
      'error: seed=abc is given; allowed is a whole number',
    ),
    ('--config.seed=2.5', 'error: seed=2.5 is given; allowed is a whole numb'),
    ('--config.optimizer.lr=x', 'error: optimizer.lr=x is given; allowed is a'),
    ('--nonsense=1', 'error: unknown flag --nonsense$'),
    ('--seed=1', 'error: unknown flag --seed: did you mean --config.seed'),
  ],
)
def test_parse_flags_says_one_line(arg, message, monkeypatch, tmp_path):
  argv, flag_values = make_flags(monkeypatch, tmp_path, arg)
  with pytest.raises(SystemExit, match=message) as caught:
    workdir.parse_flags(argv, flag_values)
  assert '\n' not in str(caught.value)


def make_flags(monkeypatch, tmp_path, *args):
  file = tmp_path / 'a.py'
  file.write_text(
    'from ml_collections import ConfigDict\n'
    f'def get_config(arg=None): return ConfigDict({CONFIG})\n'
  )
  argv = ['prog', f'--config={file}', '--config.optimizer.b1=0.5', *args]
  # ml_collections looks for its overrides in sys.argv.
  monkeypatch.setattr(sys, 'argv', argv)
  flag_values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=flag_values)
  return argv, flag_values


@old_loader
def test_parse_flags_takes_what_is_right(monkeypatch, tmp_path):
  argv, flag_values = make_flags(
    monkeypatch, tmp_path, '--config.optimizer.lr=3.5', 'more'
  )
  assert workdir.parse_flags(argv, flag_values) == ['prog', 'more']
  assert flag_values['config'].value.optimizer.lr == 3.5


@old_loader
def test_parse_flags_names_a_missing_config_file(monkeypatch, tmp_path):
  argv, flag_values = make_flags(monkeypatch, tmp_path, '--config=nope.py')
  with pytest.raises(SystemExit, match='error: .*nope.py') as caught:
    workdir.parse_flags(argv, flag_values)
  assert '\n' not in str(caught.value)


def test_of_section_names_the_section():
  cases = {
    'lr=3 is given': 'optimizer.lr=3 is given',
    'the rate is odd': 'config.optimizer: the rate is odd',
    'optimizer.lr=3: no': 'optimizer.lr=3: no',
  }
  for text, line in cases.items():
    with pytest.raises(ValueError, match=f'^{line}$'):
      with workdir.of_section('optimizer', ('lr', 'b1')):
        raise ValueError(text)


@old_loader
def test_a_flag_that_is_missing_is_named(monkeypatch, tmp_path):
  argv, flag_values = make_flags(monkeypatch, tmp_path)
  flags.DEFINE_string('out', None, '', flag_values=flag_values)
  flags.mark_flag_as_required('out', flag_values=flag_values)
  with pytest.raises(SystemExit, match='^error: --out is missing: give --out='):
    workdir.parse_flags(argv, flag_values)
