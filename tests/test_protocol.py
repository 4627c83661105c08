"""Figures of a model by the official protocol, and the command, by hand."""

import json

import numpy as np
import pytest
from protocol_made import BUDGETS, curve, graded, rows

from meta_rl import protocol
from meta_rl.protocol import __main__ as command
from meta_rl.protocol import curves, figures
from meta_rl.protocol.grades import Trace


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
