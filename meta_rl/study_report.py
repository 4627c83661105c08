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
    'intervals': "95%, Student's t over seeds; gain ratios: bootstrap",
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
      }
      for dose in sorted(study.doses)
    },
    'predictions': {
      name: _prediction(results, entry)
      for name, entry in study.predictions.items()
    },
    'not_run': [key.path for key in results.missing],
    'failed': {key.path: f['error'] for key, f in results.failures.items()},
    'variance': results.variance,
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
    'cost': mean(lambda c: c['cost']),
    'steps': mean(lambda c: c['steps']),
    'tokens_sampled': mean(lambda c: c['tokens']),
    'seconds': mean(lambda c: c['seconds']['train']),
    'extrapolation': {
      factor: _plain(value)
      for factor, value in study_results.extrapolation(cells).items()
    },
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
  if isinstance(value, float) and not math.isfinite(value):
    return None
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
