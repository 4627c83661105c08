"""What a launcher sends along: the code, and variables with secrets in them."""

import os
import pathlib
import re
import shlex
import tarfile

_SECRET = re.compile(r'^[A-Z0-9_]*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)=.+')


def list_tree(folder: str) -> list[str]:
  """Returns the command that lists the files of a working tree.

  Those that git follows, changed or not, and new ones that it does not ignore:
  what one would commit with `git add --all`.
  """
  git = ['git', '-C', folder, 'ls-files', '-z']
  return [*git, '--cached', '--others', '--exclude-standard']


def archive_ref(folder: str, ref: str, archive: str) -> list[str]:
  """Returns the command that writes the files of a commit to a .tar.gz."""
  git = ['git', '-C', folder, 'archive', '--format=tar.gz']
  return [*git, f'--output={archive}', ref]


def archive_tree(folder: str, names: list[str], archive: str) -> int:
  """Writes files of a folder to a .tar.gz; returns how many there are.

  Files that git still lists but that were removed are left out.

  Args:
    folder: of the working tree.
    names: paths in it, of `list_tree`.
    archive: file to write.
  """
  count = 0
  with tarfile.open(archive, 'w:gz', compresslevel=6) as tar:
    for name in names:
      path = pathlib.Path(folder, name)
      if path.is_symlink() or path.is_file():
        tar.add(path, arcname=name, recursive=False, filter=_anonymous)
        count += 1
  return count


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
  # Another machine has other users.
  member.uid = member.gid = 0
  member.uname = member.gname = ''
  return member


def read_env(names: list[str]) -> dict[str, str]:
  """Returns the local values of environment variables.

  Raises:
    ValueError: one that is not a name, or not set.
  """
  values = {}
  for name in names:
    if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name):
      shown = name.partition('=')[0]
      raise ValueError(
        f'--env={shown}… is given; give a name alone, such as '
        '--env=WANDB_API_KEY: its value is taken from your environment and is '
        'on no command line.'
      )
    if name not in os.environ:
      raise ValueError(
        f'--env={name}: {name} is not set here. Run: export {name}=…'
      )
    values[name] = os.environ[name]
  return values


def write_env(values: dict[str, str], file: str) -> None:
  """Writes variables as a shell script that only its owner can read."""
  lines = [f'export {name}={shlex.quote(x)}\n' for name, x in values.items()]
  path = pathlib.Path(file)
  path.unlink(missing_ok=True)
  # Made with its mode: a chmod afterwards would leave a moment for others.
  descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  with os.fdopen(descriptor, 'w') as out:
    out.writelines(lines)


def check_command(command: list[str], values: dict[str, str]) -> None:
  """Refuses a command that holds a secret.

  Args:
    command: the words of it.
    values: of `read_env`.

  Raises:
    ValueError: with the word's name, not its value.
  """
  for word in command:
    if _SECRET.match(word):
      name = word.partition('=')[0]
      raise ValueError(
        f'{name}=… is part of the command, where others can read it: run '
        f'export {name}=… here and give --env={name} instead.'
      )
    for name, value in values.items():
      if len(value) >= 8 and value in word:
        raise ValueError(
          f'the value of {name} is part of the command, where others can read '
          f'it: the run finds it in its environment, by --env={name}.'
        )


def redact(text: str, values: dict[str, str]) -> str:
  """Returns the text without the values of the variables."""
  for name, value in values.items():
    if len(value) >= 8:  # a shorter one would hit ordinary words
      text = text.replace(value, f'<{name}>')
  return text
