"""benchmarks/prover.py at a size of nothing: its figures are what they say."""

import importlib
import types

import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('prover')


@pytest.mark.full
def test_figures(benchmark):
  flags = types.SimpleNamespace(
    traces=2,
    boundaries=2,
    prompt=4,
    episode=3,
    answers=2,
    branches=64,
    pairs=1,
    width=32,
    layers=1,
    vocab=32,
  )
  figures = benchmark.run(flags)
  fed = figures['tokens']
  # Of each trace prefixes of 4 and 7 tokens and the stop token.
  assert 0 <= fed['prefix'] - 2 * (5 + 8) <= 2 * 2 * 64 * 5
  assert fed['prefilled'] == fed['exact'] + 2 * 7
  assert fed['sample'] > 64 * 2 * (5 + 8)
  assert figures['sizes']['answers_mean'] == 2
  # The exact ones know J; the samplers are off by their Monte Carlo error.
  assert figures['error']['exact'] < 1e-5
  assert figures['error']['prefilled'] < 1e-5
  expected = figures['expected_sampling_error']
  assert figures['success_mean'] > 1e-4
  for name in ('forked', 'prefix', 'sample'):
    assert 0 < figures['error'][name] < 4 * expected
  text = benchmark.table(figures)
  assert all(name in text for name in fed)


def test_traces_end_at_their_last_boundary(benchmark):
  tokens, ends = benchmark.make_traces(2, 4, 3, 3, 32)
  assert tokens.shape == (2, 10)
  np.testing.assert_array_equal(ends, [[3, 6, 9]] * 2)


def test_sizes_below_one_are_refused(benchmark, monkeypatch):
  sizes = {name: value for name, (value, _) in benchmark.SIZES.items()}
  flags = types.SimpleNamespace(**sizes | {'episode': 0}, json='')
  monkeypatch.setattr(benchmark, 'FLAGS', flags)
  with pytest.raises(SystemExit, match='--episode=0 must be at least 1'):
    benchmark.main(['prover'])
