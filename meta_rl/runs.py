"""Run folders as a report reads them.

A run folder holds `config.json`, `metrics.jsonl` and `eval.json`, each of which
may be missing: what is not there is said in the run's notes and left out. The
values come from files, so each is checked before it is used as a number.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from meta_rl.headline import is_base, number
from meta_rl.plots import assign_colors

FILES = ('eval.json', 'metrics.jsonl', 'config.json')
# What eval.json is read for, and what kind of JSON it is.
_EVALUATED = {
  'budgets': list,
  'accuracy_at_budget': list,
  'scalars': dict,
  'per_problem': dict,
}


@dataclasses.dataclass
class Run:
  """One policy's folder.

  Attributes:
    path: the folder.
    name: unique among the runs of a report.
    algorithm: 'base', 'grpo', 'mrt', …
    color: palette index of `meta_rl.plots`.
    eval: `eval.json`, {} where missing.
    metrics: rows of `metrics.jsonl`, one a step, in order of steps.
    config: `config.json`, {} where missing.
    notes: what is missing or was skipped, one sentence each.
  """

  path: pathlib.Path
  name: str
  algorithm: str
  color: int = 0
  eval: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


def read_runs(folders: Sequence[str | pathlib.Path]) -> list[Run]:
  """Returns the runs of some folders, the base policy first.

  A folder that is no run itself but holds run folders stands for these.

  Args:
    folders: run folders, or folders of run folders.

  Returns:
    The runs with unique names and their colours.

  Raises:
    ValueError: no folder, a folder that is neither, a file that is damaged.
  """
  paths = [path for folder in folders for path in _expand(folder)]
  if not paths:
    raise ValueError('No run folder was given: name at least one.')
  runs = [_read_run(path) for path in dict.fromkeys(paths)]
  runs.sort(key=lambda run: not is_base(run.eval, run.algorithm))
  names = set()
  for run in runs:
    name, number = run.name, 2
    while run.name in names:
      run.name, number = f'{name} ({number})', number + 1
    names.add(run.name)
  for run, color in zip(runs, assign_colors([r.algorithm for r in runs])):
    run.color = color
  return runs


def series(
  run: Run, key: str, *, x: str = 'step'
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a logged scalar against steps or tokens generated.

  Args:
    run: the run.
    key: name of the scalar, such as 'reward/mean'.
    x: 'step' or 'tokens', sampled in training up to and with a step.

  Returns:
    x f64[M], y f64[M]; empty where the scalar, or the tokens, were not logged.
  """
  xs = [number(row.get('step')) for row in run.metrics]
  if x == 'tokens':
    xs = _tokens_sampled(run, np.array(xs))
  points = [
    (at, number(row.get(key)))
    for at, row in zip(xs, run.metrics)
    if math.isfinite(at) and math.isfinite(number(row.get(key)))
  ]
  table = np.array(points, np.float64).reshape(-1, 2)
  return table[:, 0], table[:, 1]


def _tokens_sampled(run, steps):
  each = np.array([number(r.get('rollout/tokens_sum')) for r in run.metrics])
  known = np.isfinite(each) & np.isfinite(steps)
  if not known.any():
    return [math.nan] * len(steps)
  # Steps that were not logged are taken to be like the next one that was.
  at, size = steps[known], each[known]
  spent = np.diff(at, prepend=min(at[0] - 1, 0)) * size
  return np.interp(steps, at, np.cumsum(spent))


def _find(config, key):
  if not isinstance(config, dict):
    return None
  if key in config:
    return config[key]
  found = (_find(value, key) for value in config.values())
  return next((value for value in found if value is not None), None)


def _expand(folder):
  path = epath.Path(folder)
  if not path.is_dir():
    raise ValueError(f'{path} is no folder: give run folders.')
  if any((path / name).is_file() for name in FILES):
    return [path]
  inside = sorted(
    child
    for child in path.iterdir()
    if any((child / name).is_file() for name in FILES)
  )
  if not inside:
    raise ValueError(
      f'{path} is no run folder: none of {", ".join(FILES)} is in it; give the'
      ' --workdir of a training run or the folder that an evaluation wrote.'
    )
  return inside


def _read_run(path):
  notes = []
  evaluation = _read_json(path / 'eval.json', notes, 'no evaluation is shown')
  # The base policy was not trained here: no log of it is no loss.
  unneeded = [] if is_base(evaluation) else notes
  config = _read_json(path / 'config.json', unneeded, 'no settings are shown')
  metrics = _read_metrics(path / 'metrics.jsonl', unneeded)
  algorithm = evaluation.get('algorithm') or _find(config, 'algorithm')
  algorithm = _find(algorithm, 'name') or algorithm
  name = str(evaluation.get('name') or path.resolve().name)
  algorithm = algorithm if isinstance(algorithm, str) else name
  if evaluation:
    lacking = [
      key
      for key, kind in _EVALUATED.items()
      if not isinstance(evaluation.get(key), kind) or not evaluation[key]
    ]
    if len(lacking) == len(_EVALUATED):
      raise ValueError(
        f'{path / "eval.json"} holds no evaluation, none of '
        f'{", ".join(_EVALUATED)}: write it again with meta_rl.evaluate or '
        'leave the run out.'
      )
    notes += [f'eval.json has no {key} that can be read.' for key in lacking]
  return Run(
    path=path,
    name=name,
    algorithm=algorithm,
    eval=evaluation,
    metrics=metrics,
    config=config,
    notes=notes,
  )


def _read_json(path, notes, consequence):
  if not path.is_file():
    notes.append(f'{path.name} is missing: {consequence}.')
    return {}
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): write it again or leave the run out.'
    ) from None
  if not isinstance(value, dict):
    raise ValueError(
      f'{path} holds a {type(value).__name__}: a JSON object is needed.'
    )
  return value


def _read_metrics(path, notes):
  if not path.is_file():
    notes.append('metrics.jsonl is missing: no learning curves of this run.')
    return []
  rows, skipped = {}, 0
  for line in path.read_bytes().decode('utf-8', 'replace').splitlines():
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    step = number(row.get('step')) if isinstance(row, dict) else math.nan
    if math.isnan(step):
      skipped += 1
      continue
    # A resumed run logs a step again: the later line counts, key by key, since
    # one step's evaluation may stand on a line of its own.
    rows[step] = rows.get(step, {}) | row
  if skipped:
    notes.append(f'metrics.jsonl: {skipped} unreadable line(s) were skipped.')
  return [rows[step] for step in sorted(rows)]
