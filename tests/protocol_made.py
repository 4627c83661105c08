"""Curves, graded points and files of the official protocol, made by hand."""

import json

import numpy as np

from meta_rl import protocol
from meta_rl.protocol.curves import Curve
from meta_rl.protocol.grades import Graded

BUDGETS = {'budget': 1000, 'wait_tokens': 500}


def curve(*points, problem='p'):
  """A curve of points (x, accuracy) or (x, accuracy, waits)."""
  x, y, waits = zip(*((*point, 0)[:3] for point in points))
  return Curve(
    problem, np.asarray(x, float), np.asarray(y, float), np.asarray(waits)
  )


def graded(tokens, right, *, answers=8, length=160, waits=0):
  """A graded point: so many of its answers, of `length` tokens, are right."""
  found = np.arange(answers) < right
  return Graded(
    tokens,
    waits,
    found,
    tuple('right' if each else 'other' for each in found),
    np.full(answers, length),
    np.full(answers, np.nan),
  )


def rows(tmp_path, texts, *, gold='7', before='', name='file', **point):
  """Rows of a file whose one point has these answers."""
  answers = [{'text': text, 'tokens': 10} for text in texts]
  point = {'tokens': 0, 'text': before, 'answers': answers} | point
  path = tmp_path / f'{name}.jsonl'
  record = {'problem': 1, 'gold': gold, 'points': [point]}
  path.write_text(json.dumps(record))
  return protocol.read_rows(path)
