"""Regret by the official protocol: golden inputs, and each fault by hand.

x is where a point stands on the axis of tokens, H the horizon, R the normalized
regret against comparator 1.
"""

import numpy as np
import pytest
from protocol_made import BUDGETS, curve, graded, rows

from meta_rl import protocol, regret
from meta_rl.protocol import curves
from meta_rl.protocol.curves import FAULTS, normalized_regret
from meta_rl.protocol.grades import Trace


@pytest.mark.parametrize(
  'horizon, expected', [(4096, 0.902518), (8192, 0.759399), (12288, 0.672933)]
)
def test_golden_regret(horizon, expected):
  """4096: 3000 · .125 + 96 · (.25 + .256)/2 = 399.288 of 4096 are reached.

  The accuracy without a thought is 0 here: the notebooks say the same.
  """
  golden = curve((1000, 0), (4000, 0.25), (8000, 0.5), (12000, 0.5))
  for compat in (False, True):
    found = normalized_regret(golden, horizon, compat=compat)
    assert found == pytest.approx(expected, abs=5e-7)


def test_step_form_by_hand():
  # 0 until 4000, .25 until 8000, .5 from there: (4000 · .25 + 4288 · .5)/12288.
  golden = curve((1000, 0), (4000, 0.25), (8000, 0.5), (12000, 0.5))
  found = normalized_regret(golden, 12288, form='step')
  assert found == pytest.approx(1 - 3144 / 12288)
  # What the empty prefix gives holds from 0 on, under the fault from its x on.
  early = curve((100, 0.5), (600, 1))
  assert normalized_regret(early, 1000, form='step') == pytest.approx(0.3)
  found = normalized_regret(early, 1000, form='step', compat=['origin'])
  assert found == pytest.approx(0.35)


def test_comparators_by_hand():
  own = curve((0, 0), (1000, 1))  # area 500 + 0 at H = 1000
  assert normalized_regret(own, 1000, comparator=0.8) == pytest.approx(0.3)
  # A curve at tokens of its own: 1/2 until 500, then up to 1: 250 + 375.
  best = ([500, 1000], [0.5, 1.0])
  assert normalized_regret(own, 1000, comparator=best) == pytest.approx(0.125)
  # As steps: 500 of the comparator, which is 1/2 until 1000, and none of own.
  found = normalized_regret(own, 1000, comparator=best, form='step')
  assert found == pytest.approx(0.5)
  # The curve itself has no regret.
  itself = (own.tokens.tolist(), own.accuracy.tolist())
  assert normalized_regret(own, 700, comparator=itself) == 0


@pytest.mark.parametrize('form', ['trapezoid', 'step'])
def test_it_is_the_regret_of_meta_rl(form):
  rng = np.random.default_rng(0)
  for _ in range(30):
    x, y = rng.integers(1, 900, 5), rng.integers(0, 9, 5) / 8
    found = normalized_regret(
      curve(*zip(x, y)), 700, form=form, budget=1000, compat=['origin']
    )
    # In float32.
    expected = regret.normalized(
      y.astype(np.float32), x.astype(np.int32), horizon=700, form=form
    )
    assert found == pytest.approx(float(expected), abs=2e-6)


# Faults: each corrected, and as the notebooks have it.


def test_sixteenths():
  """8 answers of 160 tokens: 160 each; the notebook's 1280/16 = 80."""
  trace = Trace('p', (graded(0, 0), graded(1000, 8), graded(1500, 8, waits=2)))
  own = protocol.curve_of(trace)
  half = protocol.curve_of(trace, compat=['sixteenths'])
  np.testing.assert_array_equal(own.tokens, [160, 1160, 1660])
  # Where there are waits it divides by 8.
  np.testing.assert_array_equal(half.tokens, [80, 1080, 1660])
  # H = 2000: 1000/2 + 840 = 1340, and 1000/2 + 920 = 1420.
  assert normalized_regret(own, 2000) == pytest.approx(1 - 1340 / 2000)
  assert normalized_regret(half, 2000) == pytest.approx(1 - 1420 / 2000)
  # Of 16 answers a sixteenth is right.
  trace = Trace('p', (graded(0, 4, answers=16),))
  for compat in (False, True):
    assert protocol.curve_of(trace, compat=compat).tokens == 160


def test_origin():
  """4 of 8 are right without a thought, at x = 100; all at 1100."""
  own = curve((100, 0.5), (1100, 1))
  # 100 · .5 + 1000 · .75 = 800 of 1100; from (0, 0) 25 + 750 = 775.
  assert normalized_regret(own, 1100) == pytest.approx(3 / 11)
  found = normalized_regret(own, 1100, compat=['origin'])
  assert found == pytest.approx(1 - 775 / 1100)


def test_backwards():
  """x of 400, 200, 800, as long answers of an early prefix give it."""
  own = curve((400, 0), (200, 1), (800, 1))
  # Lifted to 400, 400, 800: 1 from 400 to 1000.
  assert normalized_regret(own, 1000) == pytest.approx(0.4)
  # As it comes: 400 · 0 - 200 · .5 + 600 + 200 = 700.
  found = normalized_regret(own, 1000, compat=['backwards'])
  assert found == pytest.approx(0.3)
  # H = 300. Lifted: nothing yet. As it comes, of the x below 300, 0 and 200,
  # there are two, so that the second and third points, 400 and 200, give the
  # value at 300: 1/2; joined to 200 at the second value, 0: 100 · .25.
  assert normalized_regret(own, 300) == 1
  found = normalized_regret(own, 300, compat=['backwards'])
  assert found == pytest.approx(1 - 25 / 300)


def test_overrun():
  """Two waits end at 2400, past their horizon 1000 + 2 · 500."""
  own = curve((500, 0), (2400, 1, 2))
  # Cut at 2000, where the line is at 1500/1900.
  expected = 1 - 1500 / 2 * (1500 / 1900) / 2000
  assert normalized_regret(own, 2000, **BUDGETS) == pytest.approx(expected)
  # 1900/2 to 2400, and 400 back at 1: 550.
  found = normalized_regret(own, 2000, compat=['overrun'], **BUDGETS)
  assert found == pytest.approx(1 - 550 / 2000)
  # Within the budget the notebook cuts too.
  own = curve((500, 0), (1500, 1))
  found = normalized_regret(own, 1000, compat=['overrun'], **BUDGETS)
  assert found == pytest.approx(1 - 125 / 1000)


def test_rerun():
  """Two waits at 1500 are right, four at 2500 wrong."""
  own = curve((500, 0), (1500, 1, 2), (2500, 0, 4))
  again = {'compat': ['rerun'], 'cell_runs': 2}
  # H = 1000 is of the trace alone: never right. A second run finds the points
  # that the first one added: at 1000 the line to 1500 is at 1/2: 500 · .25.
  # H = 2000: 500 + 500; again, to 2500 at 0 and back to 1 there: cut at 2000,
  # where the line is at 1/2: 500 + 500 · .75.
  for horizon, once, twice in ((1000, 0, 125), (2000, 1000, 875)):
    for options in ({}, {'cell_runs': 2}, {'compat': ['rerun']}):
      found = normalized_regret(own, horizon, **BUDGETS, **options)
      assert found == pytest.approx(1 - once / horizon)
    found = normalized_regret(own, horizon, **BUDGETS, **again)
    assert found == pytest.approx(1 - twice / horizon)


def test_which_waits_a_horizon_pays_for():
  own = curve((500, 0), (600, 1, 2), (700, 0.5, 4))
  points = lambda h: curves.points_until(own, h, **BUDGETS)[0].tolist()
  assert points(1000) == [0, 500]
  assert points(1999) == [0, 500]
  assert points(2000) == [0, 500, 600]
  assert points(9000) == [0, 500, 600, 700]


GOLD = r'\frac{1}{\sqrt{2}}'


def right(read, *faults):
  """Which answers of the one point are right."""
  (trace,), failed = protocol.grade_rows(read, faults=faults, verifier='exact')
  assert failed == 0
  return trace.points[0].right.tolist()


def test_thought_boxes(tmp_path):
  texts = ['so', r'so \boxed{8}', r'so \boxed{7}']
  read = rows(tmp_path, texts, before=r'Maybe \boxed{7}? No.')
  assert right(read) == [False, False, True]
  assert right(read, 'thought_boxes') == [True, False, True]


def test_brace_pattern(tmp_path):
  texts = [rf'\boxed{{{GOLD}}}', rf'\boxed{{{GOLD}}} or \boxed{{12']
  read = rows(tmp_path, texts, gold=GOLD)
  assert right(read) == [True, False]  # an open last box is no answer
  assert right(read, 'brace_pattern') == [False, False]
  texts = [r'\boxed{7} or \boxed{8', 'boxed{7}', r'\boxed{\text{a}7}']
  read = rows(tmp_path, texts)
  assert right(read) == [False, False, False]
  assert right(read, 'brace_pattern') == [True, True, False]


def test_each_fault_has_a_test_of_its_name():
  tested = {name.removeprefix('test_') for name in globals()}
  assert set(FAULTS) <= tested
  assert curves.faults_of(True) == set(FAULTS)
  assert curves.faults_of(False) == set()
  assert curves.faults_of('origin') == {'origin'}
  with pytest.raises(ValueError, match="compat must be one of .*got 'orgin'"):
    curves.faults_of(['orgin'])


def notebook_regret(pass_1, tokens, waits, *, runs):
  """An oracle: all faults at once, over lists as the notebook keeps them.

  Args:
    pass_1, tokens: of the prefixes of one trace, lists that the cell adds to.
    waits: {number: (accuracy, tokens)}.
    runs: of the cell; the last one counts.
  """
  for _ in range(runs):
    found = []
    for horizon in (250, 500, 750, 1000):
      y, x = [0.0, *pass_1], np.array([0.0, *tokens])
      inside = [t for t in x if t < horizon]
      last = len(inside) - 1
      if len(inside) == len(x):
        area = np.trapezoid([*y, y[-1]], [*x, horizon])
      else:
        slope = (y[last + 1] - y[last]) / (x[last + 1] - x[last])
        end = y[last] + (horizon - x[last]) * slope
        area = np.trapezoid([*y[: last + 1], end], [*inside, horizon])
      found.append(1 - area / horizon)
    for number, (accuracy, at) in waits.items():
      pass_1.append(accuracy)
      tokens.append(at)
      horizon = 1000 + 500 * number
      y, x = [0, *pass_1, pass_1[-1]], [0, *tokens, horizon]
      found.append(1 - np.trapezoid(y, x) / horizon)
  return found


@pytest.mark.parametrize('runs', [1, 2, 3])
def test_all_faults_at_once(runs):
  rng = np.random.default_rng(runs)
  for _ in range(40):
    size = rng.integers(1, 6)
    # Apart from each other, for a line between equal x has no slope.
    x = (rng.permutation(900)[: size + 2] * 1.5 + 20).tolist()
    y = (rng.integers(0, 9, size + 2) / 8).tolist()
    own = curve(*zip(x[:size], y[:size]), (x[-2], y[-2], 2), (x[-1], y[-1], 4))
    (found,) = curves.regrets(
      [own],
      [250, 500, 750, 1000, 2000, 3000],
      compat=True,
      cell_runs=runs,
      **BUDGETS,
    )
    expected = notebook_regret(
      y[:size], x[:size], {2: (y[-2], x[-2]), 4: (y[-1], x[-1])}, runs=runs
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_corrected_regret_is_a_share():
  rng = np.random.default_rng(5)
  for _ in range(50):
    x, y = rng.integers(0, 2000, 6), rng.uniform(size=6)
    waits = [0, 0, 0, 0, 2, 4]
    own = curve(*zip(x, y, waits))
    for horizon in (1, 300, 1000, 2000, 3000):
      for form in ('trapezoid', 'step'):
        found = normalized_regret(own, horizon, form=form, **BUDGETS)
        assert 1 - y.max() - 1e-9 <= found <= 1 - y.min() + 1e-9


@pytest.mark.parametrize(
  'options, line',
  [
    ({'horizon': 0}, 'horizon must be > 0'),
    ({'horizon': float('nan')}, 'horizon must be > 0'),
    ({'form': 'line'}, 'form must be one of'),
    ({'budget': -1}, 'budget must be > 0'),
    ({'wait_tokens': 0}, 'wait_tokens must be > 0'),
    ({'compat': ['all']}, 'compat must be one of'),
    ({'cell_runs': 0}, 'cell_runs must be a whole number >= 1'),
    ({'comparator': 'best'}, 'comparator must be a number'),
    ({'comparator': ([1, 2], [0.5])}, 'one accuracy a number of tokens'),
  ],
)
def test_regret_refuses(options, line):
  given = {'horizon': 100} | options
  with pytest.raises(ValueError, match=line):
    normalized_regret(curve((10, 1)), given.pop('horizon'), **given)
