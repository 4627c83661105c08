"""benchmarks/growth.py: configs of each size, and the exponents fitted."""

import importlib
import math

import pytest
from conftest import ROOT

from meta_rl import check_config
from meta_rl.configs import mrt_countdown


@pytest.fixture
def growth(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('growth')


def test_a_power_is_fitted_exactly(growth):
  found = growth.fit([1, 2, 4, 4], [3, 12, 48, 48])
  assert found['exponent'] == pytest.approx(2)
  assert found['standard_error'] == pytest.approx(0, abs=1e-6)


def test_the_standard_error_by_hand(growth):
  # x = 0, 1, 2 (times log 2), y = 0, 1, 1: slope 1/2, residuals -1/6, 1/3,
  # -1/6, their squares sum to 1/6 over 1 degree of freedom and sum x² = 2.
  found = growth.fit([1, 2, 4], [1, 2, 2])
  assert found['exponent'] == pytest.approx(0.5)
  assert found['standard_error'] == pytest.approx(math.sqrt(1 / 6 / 2))


@pytest.mark.parametrize('axis', ['batch', 'length', 'episodes', 'branches'])
def test_every_size_is_a_config_that_runs(growth, axis):
  for size in growth.SIZES[axis]:
    config = growth.make_config(mrt_countdown.get_config(), axis, size)
    check_config.check(config)
    rollout = config.rollout
    rows = rollout.num_prompts * rollout.group_size
    assert rows == {'batch': size}.get(axis, 64)
    assert rollout.thinking_budget == {'length': size}.get(axis, 96)
    assert len(config.prover.budgets) == {'episodes': size}.get(axis, 8)
    assert config.prover.budgets[-1] == rollout.thinking_budget
    sampled = axis == 'branches'
    assert config.prover.kind == ('sampled' if sampled else 'exact')


def test_a_table_has_every_part(growth):
  found = {'exponent': 1.25, 'standard_error': 0.031}
  figures = {'batch': {'exponents': dict.fromkeys(growth.PARTS, found)}}
  text = growth.table(figures)
  assert text.count('1.25 ± 0.03') == len(growth.PARTS)
