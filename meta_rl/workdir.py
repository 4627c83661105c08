"""A run's folder: whose it is, which config it holds, and the config's keys.

workdir/
  config.json      the config that the folder was last run with
  config.N.json    earlier ones, if changes were allowed
  .lock            held (flock) while a run uses the folder
"""

import ast
import contextlib
import copy
import difflib
import fcntl
import json
import os
import re
import sys
import weakref
from collections.abc import Iterable, Mapping

from absl import flags
from etils import epath

from meta_rl import files
from meta_rl.files import atomic_write

CONFIG_NAME = 'config.json'
LOCK_NAME = '.lock'
_MISSING = '(absent)'


class WorkdirError(ValueError):
  """A folder that cannot be used for this run; the message is one line."""


def flatten(config: Mapping, prefix: str = '') -> dict:
  """Returns {'a.b': value} for nested mappings; an empty one is a value."""
  flat = {}
  for key, value in config.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f'{name}.'))
    else:
      flat[name] = value
  return flat


def parse_keys(text: str | Iterable[str]) -> tuple[str, ...]:
  """Returns the dotted keys of 'a.b, c' (or of an iterable of such)."""
  parts = text.split(',') if isinstance(text, str) else text
  return tuple(key.strip() for key in parts if key.strip())


def difference(
  old: Mapping, new: Mapping, free: Iterable[str] = ()
) -> dict[str, tuple]:
  """Returns {dotted key: (old value, new value)} where two configs differ.

  Args:
    old, new: the configs.
    free: keys that may differ, and all below them.
  """
  old, new = flatten(_plain(old)), flatten(_plain(new))
  return {
    key: (old.get(key, _MISSING), new.get(key, _MISSING))
    for key in sorted(old.keys() | new.keys())
    if old.get(key, _MISSING) != new.get(key, _MISSING)
    and not _covered(key, free)
  }


def _plain(config: Mapping) -> dict:
  """Returns the config as JSON reads it back (tuples become lists)."""
  try:
    return json.loads(json.dumps(config))
  except (TypeError, ValueError) as error:
    raise TypeError(
      f'a config may hold numbers, strings, bools, None, lists and dicts: '
      f'{error}'
    ) from None


def _covered(key: str, allowed: Iterable[str]) -> bool:
  """Returns whether a dotted key is one of `allowed`, or lies below one."""
  return any(key == name or key.startswith(f'{name}.') for name in allowed)


class Workdir:
  """An open run folder; leave it (or `close`) to release its lock.

  Attributes:
    path: the folder.
    config: dict, the config recorded in it.
    changed: {dotted key: (old, new)}, changes just allowed; empty otherwise.
    made: whether the folder was not there before.
  """

  def __init__(self, path: epath.Path, lock):
    self.path = path
    self.config: dict = {}
    self.changed: dict[str, tuple] = {}
    self.made = False
    self._lock = lock
    # A forked worker would hold the lock too, and outlive a killed parent.
    reference = weakref.ref(self)
    os.register_at_fork(after_in_child=lambda: _close(reference()))

  def revert(self):
    """Puts the config back that the folder held before an allowed change."""
    if not self.changed:
      return
    kept = max(self.path.glob('config.*.json'), key=_number)
    kept.replace(self.path / CONFIG_NAME)
    self.changed = {}

  def close(self):
    """Releases the lock. The file stays: removing it would race with others."""
    if self._lock is not None:
      self._lock.close()
      self._lock = None

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, *exc_info):
    self.close()


def _number(kept: epath.Path) -> int:
  middle = kept.name.split('.')[1]
  return int(middle) if middle.isdigit() else -1


def _close(workdir: Workdir | None):
  if workdir is not None:
    workdir.close()


def open_workdir(
  path,
  config: Mapping,
  *,
  allow_change: str | Iterable[str] = (),
  free: Iterable[str] = (),
) -> Workdir:
  """Returns the run folder `path`, locked and guarded by its config.

  A new folder records `config`. One that holds another config is refused,
  unless every key that differs is named in `allow_change` or lies under a name
  there; then the new config is recorded and the old one kept as config.N.json.
  The lock is the kernel's (flock): it ends with its process, however that
  ends, so that a stale lock cannot be left behind. Of several processes of one
  run, process 0 alone opens the folder. A bucket ('gs://…') has no lock: see
  to it that one run alone uses the folder.

  Args:
    path: folder, made if absent.
    config: nested dict of JSON values.
    allow_change: dotted keys, as an iterable or as 'optimizer.lr,seed'.
    free: keys that may change unasked, whether or not there are such.

  Returns:
    A `Workdir`, which is a context manager.

  Raises:
    WorkdirError: not a folder, not writable, in use, or of another config.
  """
  path = epath.Path(path)
  config = _plain(config)
  allowed = parse_keys(allow_change)
  try:
    _check_allowed(allowed, config, path)
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    lock = None if files.is_remote(path) else _lock(path)
  except (FileExistsError, NotADirectoryError):
    raise WorkdirError(
      f'workdir {path} is a file, or lies under one: name a folder'
    ) from None
  except ImportError as error:
    raise WorkdirError(
      f"workdir {path}: {error}. Run: pip install 'meta-rl[gcs]'"
    ) from None
  except OSError as error:
    raise WorkdirError(
      f'workdir {path} cannot be written ({error.strerror}): name a folder '
      'that this user may write to'
    ) from None
  workdir = Workdir(path, lock)
  workdir.made = made
  try:
    workdir.changed = _record(path, config, (*allowed, *free))
  except BaseException:
    workdir.close()
    raise
  workdir.config = config
  return workdir


def _check_allowed(allowed: tuple[str, ...], config: dict, path: epath.Path):
  """Raises WorkdirError for a key that neither config has."""
  if not allowed:
    return
  old = read_config(path) or {}
  for key in allowed:
    if not has(config, key) and not has(old, key):
      raise WorkdirError(
        f'--allow_change={key}: {unknown_key_message(config, key)}'
      )


def _lock(path: epath.Path):
  file = open(path / LOCK_NAME, 'a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    owner = file.read().strip() or 'unknown'
    file.close()
    raise WorkdirError(
      f'workdir {path} is in use by another run (process {owner}): wait for '
      'it, stop it, or name another folder'
    ) from None
  file.truncate(0)
  file.write(f'{os.getpid()}\n')
  file.flush()
  return file


def read_config(path) -> dict | None:
  """Returns the config recorded in a run folder, None if there is none.

  Raises:
    WorkdirError: the file is not a JSON object.
  """
  file = epath.Path(path) / CONFIG_NAME
  try:
    config = json.loads(file.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as error:
    problem = f'is not JSON ({error})'
    if isinstance(error, OSError):
      problem = f'cannot be read ({error.strerror})'
    raise WorkdirError(
      f'{file} {problem}: put the right one back, or name another workdir'
    ) from None
  if not isinstance(config, dict):
    raise WorkdirError(f'{file} holds no JSON object: name another workdir')
  return config


def _record(path: epath.Path, config: dict, allowed: tuple[str, ...]) -> dict:
  old = read_config(path)
  changed = {} if old is None else difference(old, config)
  refused = {k: v for k, v in changed.items() if not _covered(k, allowed)}
  if refused:
    lines = ', '.join(f'{k}: {o!r} -> {n!r}' for k, (o, n) in refused.items())
    raise WorkdirError(
      f'workdir {path} holds another config ({lines}): name another workdir, '
      f'or pass --allow_change={",".join(refused)}'
    )
  if old is None or changed:
    if changed:
      n = 0
      while (path / f'config.{n}.json').exists():
        n += 1
      atomic_write(path / f'config.{n}.json', _encode(old))
    atomic_write(path / CONFIG_NAME, _encode(config))
  return changed


def _encode(config: dict) -> bytes:
  return (json.dumps(config, indent=2, sort_keys=True) + '\n').encode()


def unknown_key_message(config: Mapping, key: str) -> str:
  """Returns the line for a dotted key that a config lacks, with a suggestion.

  The suggestion is the known key nearest in spelling, or the known one with the
  same last part, so that `optimzer.lr` and `lr` both find `optimizer.lr`. What
  the key's own group holds is said too, where that is short.
  """
  known = flatten(config)
  groups = {k.rsplit('.', n)[0] for k in known for n in range(k.count('.') + 1)}
  last = key.rsplit('.', 1)[-1]
  near = [k for k in known if k.rsplit('.', 1)[-1] == last]
  near += difflib.get_close_matches(key, sorted(groups), n=2, cutoff=0.6)
  if near:
    hint = 'did you mean ' + ' or '.join(list(dict.fromkeys(near))[:2]) + '?'
  else:
    tops = sorted({k.partition('.')[0] for k in known})
    hint = f'a config has {", ".join(tops)}'
  group = f'{key.rpartition(".")[0]}.'
  beside = sorted(
    {k[len(group) :].partition('.')[0] for k in known if k.startswith(group)}
  )
  if 0 < len(beside) <= 8:
    hint += f' ({group[:-1]} has {", ".join(beside)})'
  return f'unknown config key {key}: {hint}'


def lock_and_check(config):
  """Returns the ConfigDict locked: a key that it lacks can no longer be set.

  Raises:
    ValueError: a required value (`config_dict.placeholder`, or the string
      '???') was left unset.
  """
  config.lock()
  unset = _unset(config)
  for key in list(unset):
    if key not in unset:
      continue
    # One that follows another (a reference) has its value when that is given.
    given = copy.deepcopy(config)
    given.update_from_flattened_dict({key: 'given'})
    unset = [k for k in unset if k == key or k in _unset(given)]
  if unset:
    raise ValueError(
      f'config key {", ".join(unset)} has no value: pass '
      + ' '.join(f'--config.{key}=…' for key in unset)
    )
  return config


def _unset(config) -> list[str]:
  return [k for k, v in flatten(config.to_dict()).items() if v == '???']


@contextlib.contextmanager
def of_section(name: str, keys: Iterable[str] = ()):
  """Says of which section of a config a value is that was refused within.

  A message that begins with a key gets the section in front of it, as the key
  is given on the command line.

  Args:
    name: of the section.
    keys: of the section.

  Raises:
    ValueError: for a ValueError or TypeError raised within.
  """
  try:
    yield
  except (ValueError, TypeError) as error:
    text = ' '.join(str(error).split())
    if re.match(r'\w*', text).group() in keys:
      text = f'{name}.{text}'
    elif not text.startswith(f'{name}.'):
      text = f'config.{name}: {text}'
    raise ValueError(text) from error


def has(config: Mapping, key: str) -> bool:
  """Returns whether a config has a dotted key."""
  head, _, rest = key.partition('.')
  if not isinstance(config, Mapping) or head not in config:
    return False
  return not rest or has(config[head], rest)


def parse_flags(argv: list[str], flag_values=None) -> list[str]:
  """Returns `argv` without flags; for `app.run(main, flags_parser=…)`.

  ml_collections meets an unknown `--config.key` or a missing config file with a
  traceback: here each is one line, with the nearest key, and exit code 1.
  """
  flag_values = flags.FLAGS if flag_values is None else flag_values
  try:
    rest = flag_values(argv)
    if 'config' in flag_values:
      # A file that was not found is only noticed when its config is used.
      getattr(flag_values['config'].value, 'lock', None)
    return rest
  except (
    AttributeError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    flags.Error,
  ) as error:
    message = (
      _first_unknown(argv, flag_values)
      or _missing(error)
      or _misnamed(error, argv, flag_values)
      or _mistyped(error, argv, flag_values)
      or _one_line(error)
    )
  sys.exit(f'error: {message}')


def _one_line(error: BaseException) -> str:
  text = str(error)
  with contextlib.suppress(ValueError, SyntaxError):
    # ml_collections wraps messages in quotes twice over.
    text = str(ast.literal_eval(text))
  return ' '.join(text.split())


def given_config(argv: list[str], flag_values=None) -> dict:
  """Returns the config that `--config` names, without overrides; {} if none."""
  flag_values = flags.FLAGS if flag_values is None else flag_values
  names = [arg.lstrip('-').partition('=') for arg in argv]
  files = [
    value or ''.join(argv[i + 1 : i + 2])
    for i, (name, _, value) in enumerate(names)
    if name == 'config'
  ]
  try:
    # The file alone: overrides are applied by the flag, not by its parser.
    return flag_values['config'].parser.parse(files[-1]).to_dict()
  except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError):
    return {}


def _first_unknown(argv: list[str], flag_values) -> str | None:
  """Returns the line for the first `--config.key` that the file lacks."""
  config = given_config(argv, flag_values)
  for name, _, _ in [arg.lstrip('-').partition('=') for arg in argv]:
    key = name.removeprefix('config.')
    if config and key != name and not has(config, key):
      return unknown_key_message(config, key)
  return None


def _missing(error: BaseException) -> str | None:
  """Returns the line for a flag that is required and not given."""
  found = re.search(
    r'Flag --(\w+) must have a value other than None', str(error)
  )
  return found and f'--{found[1]} is missing: give --{found[1]}=…'


def _misnamed(error: BaseException, argv: list[str], flag_values) -> str | None:
  """Returns the line for a flag that there is not."""
  if not isinstance(error, flags.UnrecognizedFlagError):
    return None
  name = error.flagname
  known = [f'--{flag}' for flag in flag_values if flag.startswith(name[:1])]
  near = difflib.get_close_matches(f'--{name}', known, n=2, cutoff=0.7)
  if not near and has(given_config(argv, flag_values), name):
    near = [f'--config.{name}']
  hint = f': did you mean {" or ".join(near)}?' if near else ''
  return f'unknown flag --{name}{hint}'


_KINDS = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  tuple: 'a tuple, such as "(1, 2)"',
  list: 'a list, such as "[1, 2]"',
  dict: 'a section: set its keys one by one',
}


def _mistyped(error: BaseException, argv: list[str], flag_values) -> str | None:
  """Returns the line for a flag, or a `--config.key`, of another type."""
  text = str(error)
  for start, kind in (
    ('invalid literal for int', int),
    ('could not convert string to float', float),
  ):
    found = re.match(rf'flag --(\w+)=(.*): {start}', text, re.DOTALL)
    if found:
      return f'--{found[1]}={found[2]} is given; allowed is {_KINDS[kind]}'
  found = re.match(r'flag --config\.([\w.]+)=(.*?): ', text, re.DOTALL)
  value = given_config(argv, flag_values)
  for part in found[1].split('.') if found else ():
    value = value.get(part) if isinstance(value, Mapping) else None
  if not found or type(value) not in _KINDS:
    return None
  such = f', such as {value!r}' if type(value) in (int, float) else ''
  return (
    f'{found[1]}={found[2]} is given; allowed is {_KINDS[type(value)]}{such}'
  )
