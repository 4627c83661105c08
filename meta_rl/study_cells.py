"""The cells of a study: which there are, what each trains, where they lie.

    DIR/
      config.json                the study, guarded as that of a run is
      cells/u4_mrt_exact_0.json  a cell that is done: dose, method, seed
      failed/…json               one that failed, with its last line
      variance/u4.json           gradient variance of a dose
      runs/…, logs/…             run folder and output of each cell
      study.html, .json, .md     the report

A cell is one training run and its evaluation. What its process needs is one
JSON value, its spec, and what it leaves is one small JSON file.
"""

import fnmatch
import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from meta_rl import check_config, checks, env, evaluation, workdir

# What a study must say.
_NEEDED = (
  'name', 'doses', 'methods', 'core', 'rest', 'base', 'reference', 'hero',
  'seeds', 'evaluation', 'variance', 'predictions',
)  # fmt: skip

# What a dose and a method may say: u is the expected hits within the budget,
# `apart` that it is drawn in no line over u, `of_methods` what single methods
# override at this dose, `short` a name of at most 9 letters for the charts,
# `seeds` how many in place of the tier's.
_DOSE_KEYS = {
  'u', 'label', 'arg', 'total_cost', 'extrapolate', 'overrides', 'of_methods',
  'apart',
}  # fmt: skip
_METHOD_KEYS = {
  'label', 'short', 'config', 'arg', 'overrides', 'train', 'seeds',
}  # fmt: skip
_PREDICTION_KEYS = ('text', 'dose', 'method', 'against', 'figure', 'expect')
EXPECTED = ('lower', 'higher', 'none')
_NAME = re.compile(r'[A-Za-z0-9_.-]+')


class Key(NamedTuple):
  """Which cell: `path` names it to `--only`, `name` its files."""

  dose: str
  method: str
  seed: int

  @property
  def path(self) -> str:
    """'dose/method/seed'."""
    return '/'.join(map(str, self))

  @property
  def name(self) -> str:
    """'dose_method_seed'."""
    return '_'.join(map(str, self))


def check(study: ConfigDict):
  """Raises ValueError, in one line, for a study that does not fit together."""
  if 'doses' not in study or 'methods' not in study:
    raise ValueError(
      'the config has no doses and methods: it is no study; one run is trained '
      'with python -m meta_rl.train.'
    )
  lacking = [key for key in _NEEDED if key not in study]
  if lacking:
    raise ValueError(
      f'the study lacks {", ".join(lacking)}: start from '
      'configs/study_countdown.py.'
    )
  for group, allowed, needed in (
    ('doses', _DOSE_KEYS, ('u', 'label', 'total_cost')),
    ('methods', _METHOD_KEYS, ('label', 'config')),
  ):
    for name, entry in study[group].items():
      if not _NAME.fullmatch(name):
        raise ValueError(
          f'{group}: the name {name!r} is given; allowed are letters, digits, '
          '_ . and -.'
        )
      wrong = sorted(set(entry) - allowed) + [
        k for k in needed if k not in entry
      ]
      if wrong:
        raise ValueError(
          f'{group}.{name} has the wrong keys or lacks them: {wrong}; allowed '
          f'are {sorted(allowed)}, of which {", ".join(needed)} must be there.'
        )
  for name, entry in study.doses.items():
    for key in ('u', 'total_cost'):
      with workdir.of_section(f'doses.{name}', entry):
        checks.check_scalar(key, entry[key], above=0)
  listed = (*study.core, *study.rest)
  if sorted(listed) != sorted(study.methods):
    raise ValueError(
      f'core and rest list {sorted(listed)} and methods holds '
      f'{sorted(study.methods)}: list every method once.'
    )
  for tier in ('core', 'rest'):
    if tier not in study.seeds:
      raise ValueError(f'seeds.{tier} is not given: how many of each method?')
  names = {}
  for dose in study.doses:
    for method in study.methods:
      other = names.setdefault(Key(dose, method, 0).name, (dose, method))
      if other != (dose, method):
        raise ValueError(
          f'{"/".join(other)} and {dose}/{method} would share their files: '
          'rename one.'
        )
  for role in ('base', 'reference', 'hero'):
    _known(f'{role}', study[role], study.methods)
  if study.methods[study.base].get('train', True):
    raise ValueError(
      f'base={study.base!r} is trained: set methods.{study.base}.train=False.'
    )
  _known('variance.method', study.variance.method, study.methods)
  for dose, entry in study.doses.items():
    for name in entry.get('of_methods', {}):
      _known(f'doses.{dose}.of_methods', name, study.methods)
  for name, entry in study.predictions.items():
    if set(entry) - {'than_dose'} != set(_PREDICTION_KEYS):
      raise ValueError(
        f'predictions.{name} has the keys {sorted(entry)}; needed are '
        f'{", ".join(_PREDICTION_KEYS)}, and than_dose is allowed.'
      )
    _known(f'predictions.{name}.dose', entry.dose, study.doses)
    if 'than_dose' in entry:
      _known(f'predictions.{name}.than_dose', entry.than_dose, study.doses)
    _known(f'predictions.{name}.method', entry.method, study.methods)
    _known(f'predictions.{name}.against', entry.against, study.methods)
    _known(f'predictions.{name}.expect', entry.expect, EXPECTED)


def _known(what, value, allowed):
  if value not in allowed:
    raise ValueError(f'{what}={value!r}: allowed are {", ".join(allowed)}.')


def keys(study: ConfigDict) -> list[Key]:
  """Returns all cells in the order in which they run.

  The core before the rest, then seed by seed, so that a study that is stopped
  holds whole rounds: every dose and method of the core with the same seeds. A
  method that is not trained has one cell a dose, since every cell is evaluated
  with the same random numbers.
  """
  listed = []
  for tier in ('core', 'rest'):
    seeds = {
      method: study.methods[method].get('seeds', study.seeds[tier])
      if study.methods[method].get('train', True)
      else 1
      for method in study[tier]
    }
    for seed in range(max(seeds.values(), default=0)):
      for dose in sorted(study.doses):
        listed += [
          Key(dose, method, seed)
          for method in study[tier]
          if seed < seeds[method]
        ]
  return listed


def select(listed: Sequence[Key], only: str) -> list[Key]:
  """Returns the cells that match 'dose/method/seed', patterns, comma-separated.

  `*` and `?` as in a shell; what is left out matches everything: 'u4' is
  'u4/*/*'. An empty text selects all.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  if not only:
    return list(listed)
  chosen = set()
  for pattern in workdir.parse_keys(only):
    parts = pattern.split('/')
    parts += ['*'] * (3 - len(parts))
    match = {
      key
      for key in listed
      if len(parts) == 3
      and all(fnmatch.fnmatchcase(str(k), p) for k, p in zip(key, parts))
    }
    if not match:
      raise ValueError(
        f'--only={pattern} matches no cell: give dose/method/seed of the '
        f'doses {", ".join(sorted({k.dose for k in listed}))}, the methods '
        f'{", ".join(dict.fromkeys(k.method for k in listed))} and a seed.'
      )
    chosen |= match
  return [key for key in listed if key in chosen]


def load_config(name: str, arg: str = '') -> ConfigDict:
  """Returns the config of a file, with its argument.

  Args:
    name: a path, or the name of a shipped config.
    arg: for its `get_config`.

  Raises:
    ValueError: one line, for an unknown file or argument.
  """
  path = env.resolve_config(name)
  spec = importlib.util.spec_from_file_location(
    f'study_{Path(path).stem}', path
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  # Another's config may take no argument.
  return module.get_config(arg) if arg else module.get_config()


def override(config: ConfigDict, changes: Mapping):
  """Sets keys of a config; one that it lacks raises ValueError."""
  known = workdir.flatten(config.to_dict())
  flat = workdir.flatten(changes)
  for key, value in flat.items():
    if key not in known:
      raise ValueError(workdir.unknown_key_message(config.to_dict(), key))
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise ValueError(f'{key}={value!r}: {error}') from None


def plain_config(study: ConfigDict, dose: str, method: str) -> ConfigDict:
  """Returns the config of a method at a dose, without any override."""
  of_dose, of_method = study.doses[dose], study.methods[method]
  args = [of_method.get('arg', ''), of_dose.get('arg', '')]
  return load_config(of_method.config, ','.join(filter(None, args)))


def cell_config(study: ConfigDict, dose: str, method: str) -> ConfigDict:
  """Returns the checked run config of a dose and a method, with seed 0.

  The study's own overrides come first, then those of the dose, the method, and
  the method at this dose.

  Raises:
    ValueError: one line that names the dose and the method.
  """
  of_dose, of_method = study.doses[dose], study.methods[method]
  try:
    config = plain_config(study, dose, method)
    for part in (study, of_dose, of_method):
      if 'overrides' in part:
        override(config, part.overrides.to_dict())
    own = of_dose.to_dict().get('of_methods', {}).get(method, {})
    override(config, own)
    override(config, {'total_cost': of_dose.total_cost})
    if config.get('total_tokens') is not None:
      raise ValueError(
        f'total_tokens={config.total_tokens}: cells end by total_cost; set it '
        'to None.'
      )
    check_config.check(workdir.lock_and_check(config))
    evaluation.check_factors(
      of_dose.get('extrapolate', ()), study.evaluation.extrapolate_problems
    )
  except (ValueError, OSError) as error:
    text = ' '.join(str(error).split())
    raise ValueError(f'cell {dose}/{method}: {text}') from None
  return config


def make_specs(study: ConfigDict, chosen: Sequence[Key]) -> dict[Key, dict]:
  """Returns what the process of each cell needs, JSON values.

  Raises:
    ValueError: one line, for the first config that cannot be used.
  """
  configs = functools.cache(
    lambda dose, method: cell_config(study, dose, method)
  )
  specs = {}
  for key in chosen:
    of_dose, of_method = study.doses[key.dose], study.methods[key.method]
    config = configs(key.dose, key.method).to_dict()
    config['seed'] = key.seed
    options = study.evaluation.to_dict()
    options['extrapolate'] = tuple(of_dose.get('extrapolate', ()))
    specs[key] = as_json(
      {
        **key._asdict(),
        'label': of_method.label,
        'train': of_method.get('train', True),
        'config': config,
        'evaluation': options,
      }
    )
  return specs


def make_variance_specs(study: ConfigDict, doses) -> dict[str, dict]:
  """Returns what the process of each dose's variance measurement needs."""
  options = study.variance.to_dict()
  method = options.pop('method')
  return {
    dose: as_json(
      {
        'dose': dose,
        'variance': options,
        'config': cell_config(study, dose, method).to_dict(),
      }
    )
    for dose in doses
  }


def as_json(value: Any) -> Any:
  """Returns a value as JSON reads it back."""
  return json.loads(json.dumps(value))


def to_config(spec: Mapping) -> ConfigDict:
  """Returns the run config of a spec, locked, lists as the tuples they were."""

  def tuples(value):
    if isinstance(value, Mapping):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value

  config = ConfigDict(tuples(spec['config']))
  config.lock()
  return config
