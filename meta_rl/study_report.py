"""The report of a study: study.html, study.json and study.md."""

import datetime
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from meta_rl import study_page, study_results, study_tables
from meta_rl.files import atomic_write
from meta_rl.study_results import FIGURES, Results


def summarize(results: Results) -> dict:
  """Returns the content of study.json: every figure of the page, and why."""
  study = results.study
  return {
    'name': study.name,
    'written': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M'),
    'machines': sorted({c['machine'] for c in results.cells.values()}),
    'intervals': "95%, Student's t over seeds; gain ratios: Fieller's",
    'base': study.base,
    'reference': study.reference,
    'hero': study.hero,
    'cells': {
      'done': len(results.cells),
      'failed': len(results.failures),
      'not_run': len(results.missing),
    },
    'doses': {
      dose: {
        'u': study.doses[dose].u,
        'label': study.doses[dose].label,
        'total_cost': study.doses[dose].total_cost,
        'methods': {
          method: _summary(results, dose, method)
          for method in (*study.core, *study.rest)
          if results.of(dose, method)
        },
        # Held-out problems, during training: the second comparison by time.
        'at_equal_cost': _equal(results, dose, 'cost'),
        'at_equal_seconds': _equal(results, dose, 'seconds'),
      }
      for dose in sorted(study.doses)
    },
    'predictions': {
      name: _prediction(results, entry)
      for name, entry in study.predictions.items()
    },
    'not_run': [key.path for key in results.missing],
    'failed': {key.path: f['error'] for key, f in results.failures.items()},
    'variance': {
      dose: {k: v for k, v in found.items() if k != 'config'}
      for dose, found in results.variance.items()
    },
  }


def _summary(results, dose, method):
  study = results.study
  cells = results.of(dose, method)
  base, reference = (
    results.of(dose, name) for name in (study.base, study.reference)
  )
  mean = lambda get: float(np.mean([get(cell) for cell in cells.values()]))
  other = method != study.reference
  found = {
    'label': study.methods[method].label,
    'seeds': sorted(cells),
    'figures': {
      name: _plain(study_results.over(cells, name)) for name in FIGURES
    },
    'against_reference': {
      name: _plain(study_results.difference(cells, reference, name))
      if other
      else None
      for name in FIGURES
    },
    'gain_ratio': {
      name: _plain(study_results.gain_ratio(cells, base, reference, name))
      if other and method != study.base
      else None
      for name in ('regret', 'accuracy')
    },
    'tokens_to_reference': _plain(study_results.tokens_to(cells, reference)),
    'cost_to_reference': _plain(
      study_results.training_to(cells, reference, 'cost')
    ),
    'seconds_to_reference': _plain(
      study_results.training_to(cells, reference, 'seconds')
    ),
    'kept': {
      name: _kept(study.doses[dose], cells, reference if other else {}, name)
      for name in study_results.KEPT
    },
    'cost': mean(lambda c: c['cost']),
    'steps': mean(lambda c: c['steps']),
    'tokens_sampled': mean(lambda c: c['tokens']),
    'seconds': mean(lambda c: c['seconds']['train']),
  }
  return found


def _kept(entry, cells, reference, figure):
  """Returns factor -> a figure with thinking kept so long, and against what."""
  found = {}
  for factor in (1, *entry.get('extrapolate', ())):
    get = study_results.kept(figure, factor)
    found[str(factor)] = {
      'value': _plain(study_results.over(cells, get)),
      'against_reference': _plain(
        study_results.difference(cells, reference, get)
      ),
    }
  return found


def _equal(results, dose, x):
  """Returns held-out figures in training at equal cost, or at equal time."""
  study = results.study
  end = study_results.shared_end(results, dose, x)
  grid = [share * end for share in study_tables.SHARES if math.isfinite(end)]
  reference = results.of(dose, study.reference)
  found = {'at': grid, 'methods': {}}
  for method in (*study.core, *study.rest):
    cells = results.of(dose, method)
    if not any(cell['train'] for cell in cells.values()):
      continue
    other = reference if method != study.reference else {}
    found['methods'][method] = {
      y: {
        'values': [_plain(study_results.over(cells, get)) for get in gets],
        'against_reference': [
          _plain(study_results.difference(cells, other, get)) for get in gets
        ],
      }
      for y in ('regret', 'accuracy')
      for gets in [[study_results.held_out_at(x, y, at) for at in grid]]
    }
  return found


def _prediction(results, entry):
  found = study_results.outcome(results, entry)
  return {
    **entry.to_dict(),
    'outcome': _plain(found),
    'reading': study_results.reading(found, entry.expect),
  }


def _plain(value):
  """Returns intervals and the like as JSON, nan and infinities as None."""
  if hasattr(value, '_asdict'):
    return {k: _plain(v) for k, v in value._asdict().items()}
  if isinstance(value, tuple):
    return [_plain(v) for v in value]
  if isinstance(value, float):
    return round(value, 6) if math.isfinite(value) else None
  return value


class Written(NamedTuple):
  """What `write` wrote.

  Attributes:
    files: study.html, study.json, study.md.
    table: the Markdown.
  """

  files: list[Path]
  table: str


def write(study, folder, *, command: str = '') -> Written:
  """Returns the report of a study's folder, written into it.

  Args:
    study: the config.
    folder: the study's folder.
    command: what the reader types to go on.

  Raises:
    ValueError: a damaged file in the folder.
  """
  results = study_results.collect(study, folder)
  table, summary = study_tables.markdown(results), summarize(results)
  contents = {
    'study.html': study_page.page(results, summary, command),
    'study.json': json.dumps(summary, indent=1, allow_nan=False) + '\n',
    'study.md': table + '\n',
  }
  files = [Path(folder) / name for name in contents]
  for path, text in zip(files, contents.values()):
    atomic_write(path, text.encode('utf-8', errors='replace'))
  return Written(files, table)
