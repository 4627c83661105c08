"""benchmarks/serve.py: its figures, of few requests."""

import importlib
import types

import pytest
from conftest import ROOT

from meta_rl.configs import mrt_countdown

pytest.importorskip('uvicorn')


@pytest.mark.full
def test_figures_of_few_requests(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
  benchmark = importlib.import_module('serve')
  flags = {'config': 'mrt_countdown:tiny', 'clients': 6, 'requests': 40}
  flags |= {'problems': 10, 'rows': 4, 'steps': 2, 'length': 64}
  monkeypatch.setattr(benchmark, 'FLAGS', types.SimpleNamespace(**flags))
  figures = benchmark.measure(mrt_countdown.get_config('tiny'))
  counts = {name: figures[name] for name in ('requests', 'lost', 'mixed_up')}
  assert counts == {'requests': 40, 'lost': 0, 'mixed_up': 0}
  assert figures['exit_code'] == 0
  assert figures['tokens_per_s'] > 0
  assert figures['between_tokens']['p50_ms'] > 0
