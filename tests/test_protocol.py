"""The official evaluation: golden inputs, each fault by hand, the command.

x is where a point stands on the axis of tokens, H the horizon, R the normalized
regret against comparator 1.
"""

import json

import numpy as np
import pytest

from meta_rl import protocol, regret
from meta_rl.protocol import __main__ as command
from meta_rl.protocol import curves, figures
from meta_rl.protocol.curves import FAULTS, Curve, normalized_regret
from meta_rl.protocol.grades import Graded, Trace


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


BUDGETS = {'budget': 1000, 'wait_tokens': 500}


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


def rows(tmp_path, texts, *, gold='7', before='', name='file', **point):
  """Rows of a file whose one point has these answers."""
  answers = [{'text': text, 'tokens': 10} for text in texts]
  point = {'tokens': 0, 'text': before, 'answers': answers} | point
  path = tmp_path / f'{name}.jsonl'
  record = {'problem': 1, 'gold': gold, 'points': [point]}
  path.write_text(json.dumps(record))
  return protocol.read_rows(path)


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


# Figures of a model.


def test_problems_count_alike():
  values = np.array([[0.0], [1.0], [0.5]])
  ids, means = curves.by_problem(values, ['b', 'b', 'a'])
  assert ids == ['b', 'a']
  np.testing.assert_array_equal(means, [[0.5], [0.5]])


def test_a_curve_is_read_forwards():
  own = curve((400, 0.5), (200, 1), (800, 1), (900, 0, 2))
  read = lambda compat: curves.accuracy_at(
    [own], [200, 400, 900], compat=compat, **BUDGETS
  )
  # Lifted: 1/2 until 400, then 1; from (0, 0) it is 1/4 at 200.
  np.testing.assert_allclose(read(False), [[0.5, 1, 1]])
  np.testing.assert_allclose(read(True), [[0.25, 1, 1]])
  # After two waits at 900, as a horizon of 2000 has them.
  found = curves.accuracy_at([own], [2000], form='step', **BUDGETS)
  np.testing.assert_allclose(found, [[0]])


def two_problems():
  """Problem p is solved after one episode, q never; budget 1000, 2 waits."""
  solved = (graded(0, 0), graded(840, 8), graded(1340, 8, waits=2))
  never = (graded(0, 0), graded(340, 0), graded(840, 4, waits=2))
  return [Trace('p', solved), Trace('q', never)]


def test_figures_by_hand():
  found = figures.evaluate_traces(two_problems(), name='m', **BUDGETS)
  assert found['horizons'] == [250, 500, 750, 1000, 2000]
  assert found['problems'] == ['p', 'q']
  # p: x of 160 and 1000; q: 160, 500, and 1000 after two waits.
  # H = 1000: p 840/2 = 420. H = 2000: p 1420; q 500/4 + 1000/2 = 625.
  per_problem = found['per_problem']['regret_normalized']
  np.testing.assert_allclose(per_problem[3], [0.58, 1])
  np.testing.assert_allclose(per_problem[4], [1 - 0.71, 1 - 0.3125])
  assert found['regret_normalized'][3]['mean'] == pytest.approx(0.79)
  # A resample is p twice, q twice, or both.
  assert found['regret_normalized'][3]['low'] == pytest.approx(0.58)
  assert found['regret_normalized'][3]['high'] == pytest.approx(1)
  # Steps: p is right from 1000 on alone, q half right.
  assert found['regret_step'][3]['mean'] == pytest.approx(1)
  assert found['regret_step'][4]['mean'] == pytest.approx(1 - (0.5 + 0.25) / 2)
  half = figures.evaluate_traces(two_problems(), comparator=0.5, **BUDGETS)
  for key in ('regret_normalized', 'regret_step'):
    np.testing.assert_allclose(
      half['per_problem'][key], np.array(found['per_problem'][key]) - 0.5
    )
  at = dict(zip(found['budgets'], found['accuracy_at_budget']))
  assert at[500] == pytest.approx((340 / 840) / 2)
  assert at[1000] == pytest.approx(0.5)
  assert at[2000] == pytest.approx(0.75)
  assert found['waits'] == [
    {
      'waits': 0,
      'traces': 2,
      'tokens': 750,
      'accuracy': {'mean': 0.5, 'low': 0, 'high': 1},
    },
    {
      'waits': 2,
      'traces': 2,
      'tokens': 1250,
      'accuracy': {'mean': 0.75, 'low': 0.5, 'high': 1},
    },
  ]
  assert found['unboxed'] == 0
  assert found['votes']['weighted'] is False
  assert found['votes']['sizes'] == [1, 2, 4, 8]
  assert found['departures'] == [
    '2 problems, 15 in the official protocol',
    '1 traces a problem, 16 in the official protocol',
    '1000 tokens of thinking, 16384 in the official protocol',
  ]


def test_votes_of_traces_by_hand():
  """A short trace holds its last boundary; prefixes may have more answers."""
  short = Trace('p', (graded(0, 4),))
  long = Trace('p', (graded(0, 0), graded(1000, 1, answers=2)))
  three = Trace('p', (graded(0, 0), graded(0, 0), graded(0, 0)))
  found = figures.evaluate_traces([long, three], sizes=[1])['votes']
  assert found['1']['accuracy'] == [0, 0.25, 0.25]
  found = figures.evaluate_traces([short, long], sizes=[1, 2])['votes']
  # Pairs of 4 right of 8: 6 + 16/2 of 28 win. The long one: 0, then 1/2.
  assert found['1']['accuracy'] == [0.25, 0.5]
  np.testing.assert_allclose(found['2']['accuracy'], [0.25, 0.5])
  # Prefix and two answers of 160 tokens: 320, and (320 + 1320)/2.
  assert found['2']['tokens'] == [320, 820]
  # At 320 tokens the long trace has come 160 of the 1000 to 1/2.
  assert found['2']['thinking_on'][0] == pytest.approx((0.5 + 0.08) / 2)


def test_weights_of_votes(tmp_path):
  answers = [
    {'answer': '7', 'tokens': 1, 'log_prob': -1.0},
    {'answer': '8', 'tokens': 1, 'log_probs': [-0.5, None, -0.3]},
    {'answer': None, 'tokens': 1, 'log_prob': 0.0},
  ]
  read = rows(tmp_path, [], answers=answers)
  traces, _ = protocol.grade_rows(read, verifier='exact')
  found = figures.evaluate_traces(traces, sizes=[1, 3])['votes']
  # 2^-1 against 2^-0.4: the wrong one wins.
  assert found['weighted'] is True
  assert found['3']['accuracy'] == [0]
  assert found['1']['accuracy'][0] == pytest.approx(1 / 3)
  answers[1].pop('log_probs')
  traces, _ = protocol.grade_rows(
    rows(tmp_path, [], answers=answers), verifier='exact'
  )
  with pytest.raises(ValueError, match='some answers have a log_prob'):
    figures.evaluate_traces(traces)


def test_faults_reach_the_figures():
  """`compat` is handed on: sixteenths move x, origin the start."""
  traces = [Trace('p', (graded(0, 4), graded(840, 8)))]
  found = lambda *faults: figures.evaluate_traces(
    traces, horizons=[1000], compat=faults, **BUDGETS
  )
  # 160 · .5 + 840 · .75 = 710; x of 80 and 920: 40 + 630 + 80 = 750.
  # From (0, 0): 40 + 630 = 670.
  for faults, reached in (
    ((), 710),
    (('sixteenths',), 750),
    (('origin',), 670),
  ):
    own = found(*faults)
    assert own['compat'] == list(faults)
    assert own['regret_normalized'][0]['mean'] == pytest.approx(
      1 - reached / 1000
    )


def test_comparison_by_hand():
  traces = two_problems()
  one = figures.evaluate_traces(traces, name='one', **BUDGETS)
  other = figures.evaluate_traces(
    [Trace('r', traces[0].points), traces[1]], name='other', **BUDGETS
  )
  found = figures.compare(other, one)
  assert (found['to'], found['problems']) == ('one', 1)
  # Of q alone, where they are one and the same.
  assert [each['mean'] for each in found['regret_normalized']] == [0] * 5
  better = [Trace('q', traces[0].points), traces[0]]  # in another order
  found = figures.compare(
    figures.evaluate_traces(better, name='better', **BUDGETS), one
  )
  assert found['problems'] == 2
  assert found['regret_normalized'][3]['mean'] == pytest.approx(-0.42 / 2)
  lonely = figures.evaluate_traces([Trace('r', traces[0].points)], **BUDGETS)
  assert figures.compare(lonely, one)['regret_step'] == []


# The command, from files.

FILE = r"""
{"problem": "a", "trace": 0, "gold": "7", "points": [
 {"tokens": 40, "answers": [{"text": "I say \\boxed{5}.", "tokens": 10},
                            {"text": "I cannot say.", "tokens": 30}]},
 {"tokens": 380, "answers": [{"text": "It is \\boxed{7}.", "tokens": 20},
                             {"text": "\\boxed{007}", "tokens": 20}]}]}
{"problem": "b", "trace": 0, "gold": "1/2", "points": [
 {"tokens": 40, "answers": [{"text": "\\boxed{0.5}", "tokens": 10},
                            {"text": "\\boxed{2}", "tokens": 10}]},
 {"tokens": 600, "waits": 2, "stop": "</think>", "answers": [
   {"text": "\\boxed{0.5} </think> \\boxed{\\frac{1}{2}}", "tokens": 20},
   {"text": "\\boxed{0.5} and on", "tokens": 20}]}]}
"""


@pytest.fixture
def paths(tmp_path):
  """Two models: one as above, the other solves b at once."""
  text = ' '.join(FILE.split('\n'))
  lines = text.replace(' {"problem"', '\n{"problem"').strip()
  base, better = tmp_path / 'base.jsonl', tmp_path / 'better.jsonl'
  base.write_text(lines + '\n')
  better.write_text(lines.replace(r'\\boxed{2}', r'\\boxed{\\frac12}') + '\n')
  return str(base), str(better)


def run(*words):
  return command.main([*words, '--budget=500', '--wait_tokens=50'])


def test_command_by_hand(paths, tmp_path, capsys):
  out = tmp_path / 'found.json'
  assert run(*paths, '--verifier=exact', f'--out={out}') == 0
  base, better = json.loads(out.read_text())['models']
  assert base['horizons'] == [125, 250, 375, 500, 600]
  # a: (60, 0), (400, 1): at 500 tokens 170 + 100 of 500. b: 1/2 throughout.
  np.testing.assert_allclose(
    base['per_problem']['regret_normalized'][3], [1 - 0.54, 0.5]
  )
  # b after two waits: one of two, for the other has not come to its answer.
  # 0.5 is 1/2, and so is \frac{1}{2}.
  assert base['waits'][1]['accuracy']['mean'] == 0.5
  assert better['per_problem']['regret_normalized'][3] == [
    base['per_problem']['regret_normalized'][3][0],
    0,
  ]
  difference = better['to']['regret_normalized'][3]
  assert difference['mean'] == pytest.approx(-0.25)
  assert base['unboxed'] == 2 / 8
  assert base['verifier'] == 'exact'
  assert base['ungraded'] == 0
  printed = capsys.readouterr()
  assert 'better less base' in printed.out
  assert '500  0.4800 [0.460, 0.500]' in printed.out
  assert '600+ ' in printed.out
  assert 'note: base: 2 problems, 15 in the official protocol' in printed.err
  # Nothing is drawn: the same again.
  first = out.read_bytes()
  assert run(*paths, '--verifier=exact', f'--out={out}') == 0
  assert out.read_bytes() == first


def test_command_with_faults_and_a_comparator(paths, tmp_path, capsys):
  best = tmp_path / 'best.json'
  best.write_text('{"tokens": [0, 500], "accuracy": [0.8, 0.8]}')
  for comparator in ('0.8', str(best)):
    words = ['--compat=origin,sixteenths', '--horizons=500', '--sizes=1,2']
    words += [f'--comparator={comparator}', f'--out={tmp_path / "f.json"}']
    assert run(paths[0], *words) == 0
    (found,) = json.loads((tmp_path / 'f.json').read_text())['models']
    # a: (40 + 40/16, 0), (382.5, 1): 170 + 117.5 of 500.
    # b: (41.25, 1/2): 41.25/4 + 458.75/2.
    np.testing.assert_allclose(
      found['per_problem']['regret_normalized'][0],
      [0.8 - 287.5 / 500, 0.8 - (41.25 / 4 + 458.75 / 2) / 500],
    )
  assert found['votes']['sizes'] == [1, 2]
  assert found['compat'] == ['origin', 'sixteenths']
  capsys.readouterr()


@pytest.mark.parametrize(
  'words, line',
  [
    ([], 'the following arguments are required: FILE'),
    (['none.jsonl'], "FILE='none.jsonl': there is no such file"),
    (['BASE', '--compat=al'], "compat must be one of ['sixteenths'"),
    (['BASE', '--compat=all'], 'base.jsonl, line 1: compat='),
    (['BASE', '--cell_runs=0'], 'cell_runs must be a whole number >= 1'),
    (['BASE', '--cell_runs=x'], "argument --cell_runs: invalid int value: 'x'"),
    (['BASE', '--horizons=2,1'], '--horizons=2,1: rising numbers above 0'),
    (['BASE', '--budget='], '--budget=: one number above 0'),
    (['BASE', '--budget=1,2'], '--budget=1,2: one number above 0'),
    (['BASE', '--wait_tokens=nan'], '--wait_tokens=nan: one number above 0'),
    (['BASE', '--sizes=1,9'], 'p=9: 1..2 is allowed for 2 answers'),
    (['BASE', '--comparator=best'], '--comparator=best: a number is needed'),
    (['BASE', '--comparator=inf'], '--comparator=inf: a number is needed'),
    (['BASE', '--verifier=maths'], '--verifier must be one of'),
    (['BASE', '--tokenizer=none'], 'none'),
    (['BASE', '--out=BASE/x.json'], 'it lies under a file'),
  ],
)
def test_command_refuses(words, line, paths, capsys):
  words = [word.replace('BASE', paths[0]) for word in words]
  code = None
  try:
    code = command.main(words)
  except SystemExit as error:  # of the parser of the flags
    code = error.code
  assert code == 1
  printed = capsys.readouterr()
  assert printed.out == ''
  (said,) = printed.err.splitlines()
  assert said.startswith('error: ')
  assert line in said
