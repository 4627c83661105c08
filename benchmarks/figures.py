"""The file that a benchmark writes its figures to."""

import pathlib

from absl import flags


def define_json():
  """Defines --json; a path that cannot be written is refused at the start."""
  flags.DEFINE_string('json', '', 'File for the figures.')
  flags.register_validator(
    'json',
    lambda path: not path or _is_writable(pathlib.Path(path)),
    'it is a folder, or lies in one that is not there: name a file in a folder '
    'that exists',
  )


def _is_writable(path: pathlib.Path) -> bool:
  return path.absolute().parent.is_dir() and not path.is_dir()
