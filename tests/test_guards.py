"""Tests of meta_rl.guards: what ends a run or warns."""

import math

import numpy as np
import pytest

from meta_rl import guards


def test_check_finite():
  guards.check_finite(3, {'loss/total': np.float32(1), 'x': 0}, 2)
  guards.check_finite(3, {'x': math.nan}, 2, ignore=['x'])
  with pytest.raises(guards.NonFiniteError) as caught:
    guards.check_finite(7, {'loss/total': math.nan, 'g': math.inf, 'k': 1}, 5)
  text = str(caught.value)
  assert 'step 7: loss/total is nan, g is inf' in text
  assert 'last good checkpoint is step 5' in text
  assert '\n' not in text
  assert caught.value.names == ['loss/total', 'g']
  with pytest.raises(guards.NonFiniteError, match='no checkpoint was saved'):
    guards.check_finite(1, {'x': -math.inf}, None)


DEAD = {
  'rollout/truncation_rate': 1.0,
  'rollout/zero_variance_share': 1.0,
  'optimizer/grad_norm': 0.0,
}
ALIVE = {
  'rollout/truncation_rate': 0.99,
  'rollout/zero_variance_share': 0.99,
  'optimizer/grad_norm': 1e-9,
}


@pytest.mark.parametrize('name', sorted(DEAD))
def test_each_symptom_is_said_once_until_it_recovers(name):
  row = ALIVE | {name: DEAD[name]}
  rows = [row] * 5 + [ALIVE] + [row] * 2 + [ALIVE] + [row] * 3
  watchdog = guards.Watchdog(3)
  said = [x for i, r in enumerate(rows, 1) for x in watchdog.update(i, r)]
  # Steps 1-3 make three, 4-5 say nothing new, 7-8 are only two, 10-12 three.
  assert [line.split(':')[1] for line in said] == [' step 3', ' step 12']
  assert all(name in line for line in said)


def test_a_step_without_the_metric_neither_counts_nor_resets():
  watchdog = guards.Watchdog(2)
  assert watchdog.update(1, {'optimizer/grad_norm': 0.0}) == []
  assert watchdog.update(2, {}) == []
  assert len(watchdog.update(3, {'optimizer/grad_norm': 0.0})) == 1


def test_patience_is_checked():
  with pytest.raises(ValueError, match='patience=0'):
    guards.Watchdog(0)


def test_a_mismatch_beyond_the_limit_stops():
  row = {
    'external/mismatch_mean': 0.5,
    'external/mismatch_max': 2.0,
    'external/ess': 0.25,
  }
  guards.check_mismatch(3, row, 0.5)
  for gap in (0.51, math.nan):
    with pytest.raises(ValueError, match='step 3: .* nats a token') as error:
      guards.check_mismatch(3, row | {'external/mismatch_mean': gap}, 0.5)
    assert 'effective share 0.25' in str(error.value)
