"""What every command does with its words: flags, configs, one line of error."""

import sys
import warnings

import ml_collections
from absl import flags

from meta_rl import env, workdir

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
    try:
      if equals:
        resolved[i] = f'{flag}={env.resolve_config(name)}'
      elif i + 1 < len(argv):
        resolved[i + 1] = env.resolve_config(argv[i + 1])
    except ValueError as error:
      sys.exit(f'error: {error}')
  try:
    rest = workdir.parse_flags(resolved)
    if 'workdir' in flags.FLAGS and flags.FLAGS['workdir'].value == '':
      sys.exit('error: --workdir is empty (an unset variable?): name a folder.')
    return rest
  except SystemExit as error:
    if error.code == 1 and any(arg.lstrip('-') in _HELP for arg in argv):
      sys.exit(0)  # absl's 1 after its help
    # ml_collections wraps what `get_config` raises in a whole traceback.
    head, _, message = str(error.code).rpartition('ValueError: ')
    if 'Traceback' in head:
      sys.exit(f'error: {message}')
    raise


def refuse_arguments(argv: list[str]):
  """Leaves with one line if a command was given words that are no flags."""
  if len(argv) > 1:
    hint, (name, equals, _) = '', argv[1].partition('=')
    if equals:
      known = name.partition('.')[0] in flags.FLAGS
      prefix = '' if known or 'config' not in flags.FLAGS else 'config.'
      hint = f' Did you mean --{prefix}{argv[1]}?'
    sys.exit(f'error: {argv[1]!r} is no flag: flags begin with --.{hint}')


def run_config(
  folder, *needed: str, hint: str = ''
) -> ml_collections.ConfigDict:
  """Returns the config of a run folder.

  Args:
    folder: of a run.
    *needed: as in `recorded_config`.
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
  return recorded_config(folder, recorded, *needed)


def recorded_config(
  folder, recorded: dict, *needed: str
) -> ml_collections.ConfigDict:
  """Returns the config that a run folder recorded.

  Args:
    folder: for the message.
    recorded: its config.json.
    *needed: sections that the command reads beside task, model, rollout and
      algorithm.

  Raises:
    ValueError: it is no config of meta_rl, such as another tool's file.
  """
  config = ml_collections.ConfigDict(recorded)
  for section in ('task', 'model', 'rollout', 'algorithm', *needed):
    if not isinstance(config.get(section), ml_collections.ConfigDict):
      raise ValueError(
        f'{folder}/config.json is of another program: it has no {section!r} '
        'section. Name a run folder of meta_rl.train.'
      )
  return config
