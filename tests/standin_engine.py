"""A worker that computes nothing: what tests put in place of an engine.

    python tests/standin_engine.py NAME

It takes 'SECONDS of mode' for what a run takes: ours 1, tunix 4, trl 3 or, in
its better way, 2.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(
  0, str(pathlib.Path(__file__).resolve().parents[1] / 'benchmarks' / 'peers')
)
import worker

SECONDS = {'meta_rl': {'a': 1.0}, 'tunix': {'a': 4.0}}
SECONDS['trl'] = {'slow': 3.0, 'good': 2.0, 'broken': None}


class Engine:
  """Says what it is asked for, from a table."""

  def __init__(self, name):
    self.name = name
    self.loss = 0.25
    self.asked = []

  def write(self, size, folder):
    """Writes nothing."""

  def load(self, folder, threads):
    """Loads nothing."""
    print('not an answer')
    machine = {'machine': 'none'} if self.name == 'meta_rl' else {}
    return {'versions': {}, 'parameters': 1000, 'loaded_mb': 1.0} | machine

  def logits(self, tokens, path):
    """Writes logits; those of an engine of another name are others."""
    found = np.outer(np.arange(len(tokens)), [1.0, 2.0])
    np.save(path, found + (1.0 if self.name == 'other' else 0.0))

  def modes(self, rows, batch):
    """Returns the ways of the table."""
    modes = [{'name': n, 'batch': batch} for n in self._seconds]
    return {'modes': modes, 'warm': 1}

  def update_modes(self, rows):
    """Returns the ways of the table."""
    return {'modes': [{'name': n} for n in self._seconds], 'warm': 2}

  @property
  def _seconds(self):
    return SECONDS.get(self.name, SECONDS['tunix'])

  def rollout(self, path, mode, seed):
    """Returns what the table says."""
    if self._seconds[mode['name']] is None:
      raise RuntimeError('cannot do this\nat all')
    tokens = int(np.load(path)['lengths'].sum())
    return {'seconds': self._seconds[mode['name']], 'tokens': tokens}

  def score(self, path):
    """Adds nothing."""

  def update(self, path, mode, fresh):
    """Returns what the table says."""
    if self._seconds[mode['name']] is None:
      raise RuntimeError('cannot do this')
    loss = 0.5 if self.name == 'other' else 0.25
    return {'seconds': self._seconds[mode['name']], 'loss': loss, 'tokens': 96}

  def memory(self, path, mode):
    """Returns 10 MB a second of the way."""
    return {'peak_mb': 10 * self._seconds[mode['name']]}

  def shapes(self, rows, backward):
    """Returns one shape."""
    return {'shapes': [[rows, 10, 10]]}

  def matmuls(self, shapes, rounds):
    """Returns a millisecond each."""
    return {'seconds': [1e-3] * len(shapes)}

  def limits(self, rows, backward, rounds, others):
    """Returns limits in which reading 4 kB takes a millisecond."""
    fastest = min([2e-3, *(seconds[0] for seconds in others)])
    flops = 2 * rows * 100
    return {
      'gflops': flops / fastest / 1e9,
      'seconds': fastest,
      'read_gb_s': 0.004 / fastest / 1e3,
    }


if __name__ == '__main__':
  worker.serve(Engine(sys.argv[1]))
