"""benchmarks/verifiers.py: its figures, on few rows."""

import importlib
import types

import pytest
from conftest import ROOT


@pytest.mark.full
def test_figures_of_few_rows(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  benchmark = importlib.import_module('verifiers')
  flags = types.SimpleNamespace(workers=2, rows=600, math=30)
  monkeypatch.setattr(benchmark, 'FLAGS', flags)
  figures = benchmark.measure()
  assert figures['rows_lost'] == 1
  assert figures['integer_per_s'] > 500
  assert figures['batch_with_a_hang_s'] < 2 * figures['timeout_s']
  assert all(value > 0 for value in figures.values())
