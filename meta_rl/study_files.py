"""What a study keeps of its cells: one JSON a cell, and its settings.

A file is read only if it is of its cell, and kept only if it was run with the
settings that the study has by now.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from meta_rl import config_keys, study_cells, workdir
from meta_rl.study_cells import Key

CELLS, FAILED, VARIANCE = 'cells', 'failed', 'variance'
FORMAT = 1  # of a cell's file
_NO_DEFAULT = object()


def path_of(folder, key: Key, part: str = CELLS) -> Path:
  """Returns where the result, or the failure, of a cell lies."""
  return Path(folder) / part / f'{key.name}.json'


def read(folder, key: Key, part: str = CELLS) -> dict | None:
  """Returns the result (or the failure) of a cell, None if there is none.

  Raises:
    ValueError: the file is not JSON of a cell.
  """
  path = path_of(folder, key, part)
  if not path.exists():
    return None
  value = _read_json(path, 'the cell is run again')
  wrong = not isinstance(value, dict) or any(
    value.get(name) != wanted for name, wanted in key._asdict().items()
  )
  if wrong:
    raise ValueError(
      f'{path} is not of cell {key.path}: delete it, and the cell is run again.'
    )
  if part == CELLS and value.get('format') != FORMAT:
    raise ValueError(
      f'{path} has format {value.get("format")} and {FORMAT} is read: delete '
      'it, and the cell is run again.'
    )
  return value


def _read_json(path: Path, then: str):
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged ({error}): delete it, and {then}.'
    ) from None


def check_done(study: ConfigDict, folder):
  """Raises ValueError if any cell that is done was run with other settings.

  All of them, not the chosen alone: the report shows them side by side.
  """
  done = {key: read(folder, key) for key in study_cells.keys(study)}
  done = {key: cell for key, cell in done.items() if cell is not None}
  defaults = functools.cache(
    lambda dose, method: study_cells.plain_config(study, dose, method).to_dict()
  )
  for key, spec in study_cells.make_specs(study, list(done)).items():
    check_same(key, spec, done[key], defaults(key.dose, key.method))


def check_variances(study: ConfigDict, folder):
  """Raises ValueError if any variance was measured with other settings.

  All of them, as the cells in `check_done`.
  """
  done = {dose: read_variance(folder, dose) for dose in sorted(study.doses)}
  done = {dose: found for dose, found in done.items() if found is not None}
  for dose, spec in study_cells.make_variance_specs(study, done).items():
    defaults = study_cells.plain_config(
      study, dose, study.variance.method
    ).to_dict()
    check_same_variance(dose, spec, done[dose], defaults)


def read_variance(folder, dose: str) -> dict | None:
  """Returns the gradient variance of a dose, None if it was not measured.

  Raises:
    ValueError: the file is damaged.
  """
  path = Path(folder) / VARIANCE / f'{dose}.json'
  if not path.exists():
    return None
  value = _read_json(path, 'it is measured again')
  if not isinstance(value, dict) or 'rows' not in value:
    raise ValueError(f'{path} is no gradient variance: delete it.')
  return value


def check_same(
  key: Key,
  spec: Mapping,
  result: Mapping,
  defaults: Mapping | None = None,
):
  """Raises ValueError if a cell that is done was run with other settings.

  Args:
    key: which cell.
    spec: what it would be run with, of `make_specs`.
    result: what it was run with, and found.
    defaults: the config without the study's overrides, of `plain_config`: a key
      that the result lacks came later, and what was before is its default. None
      allows for no such key.
  """
  file = f'{CELLS}/{key.name}.json'
  parts = 'config', 'evaluation'
  _same(f'cell {key.path}', parts, spec, result, file, defaults)


def check_same_variance(
  dose: str, spec: Mapping, result: Mapping, defaults: Mapping | None = None
):
  """Raises ValueError if a variance was measured with other settings.

  Args:
    dose: which one.
    spec, result, defaults: as in `check_same`, of a variance.
  """
  file = f'{VARIANCE}/{dose}.json'
  parts = 'config', 'variance'
  _same(f'variance of {dose}', parts, spec, result, file, defaults)


def _same(what, parts, spec, result, file, defaults):
  # What a study says of its evaluation and variance has no defaults.
  plain = workdir.flatten(study_cells.as_json({'config': defaults or {}}))
  for part in parts:
    had = workdir.flatten(result.get(part, {}))
    free = config_keys.PLACES if part == 'config' else ()
    changed = {
      name: (old, new)
      for name, (old, new) in workdir.difference(had, spec[part], free).items()
      if name in had or plain.get(f'{part}.{name}', _NO_DEFAULT) != new
    }
    if changed:
      shown = ', '.join(f'{k}: {o!r} -> {n!r}' for k, (o, n) in changed.items())
      raise ValueError(
        f'{what} was run with another {part} ({shown}): delete its file, '
        f'{file}, to run it again, or use another workdir.'
      )
