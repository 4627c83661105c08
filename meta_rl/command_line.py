"""What every command does with its words: flags, configs, one line of error."""

import importlib.util
import re
import sys
import traceback
import unicodedata
import warnings

import ml_collections
from absl import flags

from meta_rl import config_keys, env, files, workdir

# Unicode's control characters, line and paragraph separators, halves of pairs;
# and what embeds, overrides or isolates a direction.
_DRIVING = ('Cc', 'Zl', 'Zp', 'Cs')
_TURN = ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI')
_HELP = ('?', 'help', 'helpfull', 'helpshort', 'helpxml')


def parse_flags(argv: list[str]) -> list[str]:
  """Returns `argv` without flags; --config also takes a shipped config's name.

  For `app.run(main, flags_parser=...)`. A flag that cannot be used is one line
  on stderr and exit code 1; --help ends with exit code 0. Warnings become one
  line each.
  """
  warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\n'
  resolved = list(argv)
  for i, arg in enumerate(argv):
    flag, equals, name = arg.partition('=')
    if flag.lstrip('-') != 'config' or not flag.startswith('-'):
      continue
    at = i if equals else i + 1
    if at == len(argv) or (not equals and argv[at].startswith('-')):
      sys.exit('error: --config has no value: give a name or the path of one.')
    try:
      found = env.resolve_config(name if equals else argv[at])
      check_config_file(found)
    except ValueError as error:
      sys.exit(f'error: {error}')
    resolved[at] = f'{flag}={found}' if equals else found
  try:
    rest = workdir.parse_flags(resolved)
    for name, kind in (('workdir', 'folder'), ('out', 'file')):
      if name in flags.FLAGS and flags.FLAGS[name].value == '':
        sys.exit(
          f'error: --{name} is empty (an unset variable?): name a {kind}.'
        )
    return rest
  except SystemExit as error:
    if error.code == 1 and any(arg.lstrip('-') in _HELP for arg in argv):
      sys.exit(0)  # absl's 1 after its help
    raise


def jax_error(error: Exception, *, lower: str) -> str:
  """Returns an error of a program that jax runs, as one line.

  Args:
    error: a `jax.errors.JaxRuntimeError`.
    lower: the flags that take less memory, if it was out of it.
  """
  line = files.one_line(error)
  if re.search('RESOURCE_EXHAUSTED|out of memory', str(error), re.IGNORECASE):
    return f'out of memory ({line}): lower {lower}.'
  return f'jax: {line}'


def check_config_file(name: str):
  """Raises ValueError, in one line, unless a config file gives a config.

  The file is run here a first time: what it raises within the flags is a
  traceback, or a text that holds one.

  Args:
    name: a path, and ':argument' of its `get_config` if it is given one.
  """
  path, colon, argument = name.partition(':')
  problem = None
  try:
    spec = importlib.util.spec_from_file_location('config_config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      problem = 'it has no function get_config'
    else:
      config = module.get_config(*[argument] * bool(colon))
      if not isinstance(config, ml_collections.ConfigDict):
        problem = (
          f'get_config returns {type(config).__name__}, not an '
          'ml_collections.ConfigDict'
        )
  except (Exception, SystemExit) as error:
    if type(error) is ValueError:  # what a config says of its argument
      raise
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == path
    ]
    if isinstance(error, SyntaxError) and error.filename == path:
      lines = [error.lineno]
    where = f'line {lines[-1]}: ' if lines else ''
    problem = f'{where}{type(error).__name__}: {files.one_line(error)}'
  if problem:
    raise ValueError(f'--config={name}: {problem}.')


def refuse_arguments(argv: list[str]):
  """Leaves with one line if a command was given words that are no flags."""
  if len(argv) > 1:
    hint, (name, equals, _) = '', argv[1].partition('=')
    if equals:
      known = name.partition('.')[0] in flags.FLAGS
      prefix = '' if known or 'config' not in flags.FLAGS else 'config.'
      hint = f' Did you mean --{prefix}{argv[1]}?'
    sys.exit(f'error: {argv[1]!r} is no flag: flags begin with --.{hint}')


def run_config(folder, *, hint: str = '') -> ml_collections.ConfigDict:
  """Returns the config of a run folder.

  Args:
    folder: of a run.
    hint: what else to do, for the message.

  Raises:
    ValueError: it holds none, or that of another program.
  """
  recorded = workdir.read_config(folder)
  if recorded is None:
    raise ValueError(
      f'{folder} holds no config.json: name a run folder of meta_rl.train'
      f'{hint}.'
    )
  config = ml_collections.ConfigDict(recorded)
  config_keys.check_recorded(folder, config)
  return config


def printable(text: str) -> str:
  """Returns a text as a terminal may be given it.

  Control characters, by which what a model wrote could drive the terminal or
  turn its text round, are '\ufffd', but for line breaks and tabs.
  """
  drives = lambda c: (
    unicodedata.category(c) in _DRIVING or unicodedata.bidirectional(c) in _TURN
  )
  return ''.join('\ufffd' if drives(c) and c not in '\n\t' else c for c in text)
