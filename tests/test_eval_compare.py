"""Evaluations side by side, made from the contents of eval.json files."""

import json

import numpy as np
import pytest
from test_eval_regrets import HORIZON, traces

from meta_rl import eval_compare, eval_regrets


def evaluation(name, seed, rows=40, **changes):
  """What an eval.json holds of some made-up traces, as it is read back."""
  success, ends, count = traces(rows, seed)
  elapsed = ends - ends[:, :1]
  own = eval_regrets.profile(success, ends, count, horizon=HORIZON)
  one = eval_regrets.against_one(own, np.arange(rows))
  accuracy = success[np.arange(rows), count]
  interval = lambda mean: {'mean': mean, 'low': mean - 0.1, 'high': mean + 0.1}
  found = {
    'name': name,
    'algorithm': name.lower(),
    'horizon': HORIZON,
    'max_episodes': success.shape[1] - 1,
    'scalars': {
      'accuracy': interval(float(accuracy.mean())),
      'regret_token_weighted': one['token_weighted'],
      'regret_normalized': one['normalized'],
      'tokens_mean': float(elapsed[:, -1].mean()),
    },
    'regrets': {'one': one},
    'success_rates': {
      'samples': 4,
      'cluster': list(range(rows // 2)),
      'rate': [0.25 * (i % 3) for i in range(rows // 2)],
    },
    'per_problem': {
      'accuracy': accuracy.tolist(),
      'tokens': elapsed[:, -1].tolist(),
      'regret_token_weighted': (1 - own.tokens[:, :-1].mean(1)).tolist(),
      'cluster': list(range(rows)),
      'boundary_tokens': [
        row[: n + 1].tolist() for row, n in zip(elapsed, count)
      ],
      'boundary_success': [
        row[: n + 1].tolist() for row, n in zip(success, count)
      ],
    },
  }
  return json.loads(json.dumps(found | changes))


def test_a_profile_comes_back_from_the_file():
  given = traces(seed=3)
  own = eval_regrets.profile(*given, horizon=HORIZON)
  found = eval_compare.profile_of(evaluation('A', 3))
  assert np.array_equal(found.tokens, own.tokens)
  assert np.array_equal(found.episodes, own.episodes)


@pytest.mark.parametrize(
  'changes',
  [
    {'per_problem': {'cluster': [0]}},  # of an older version
    {'per_problem': None},
    {'max_episodes': None},
    {'max_episodes': 1},
    {'horizon': 'long'},
    {'per_problem': {'boundary_success': [], 'boundary_tokens': []}},
    {'per_problem': {'boundary_success': [[]], 'boundary_tokens': [[]]}},
    {'per_problem': {'boundary_success': [[0.5]], 'boundary_tokens': [['x']]}},
    {'per_problem': {'boundary_success': [3], 'boundary_tokens': [4]}},
  ],
)
def test_what_has_no_profile(changes):
  assert eval_compare.profile_of(evaluation('A', 0, **changes)) is None


def test_regret_against_the_best_of_three():
  evals = [evaluation(name, i) for i, name in enumerate('ABC')]
  found = eval_compare.best_regrets(evals)
  profiles = [eval_compare.profile_of(each) for each in evals]
  top = np.max([p.tokens.mean(0) for p in profiles], 0)[:-1].mean()
  for each, profile in zip(found, profiles):
    assert each['policies'] == ['A', 'B', 'C']
    gap = top - profile.tokens[:, :-1].mean()
    assert each['token_weighted']['mean'] == pytest.approx(gap, abs=1e-12)


def test_only_what_is_alike_is_compared_with_the_best():
  old = evaluation('old', 0, per_problem={'cluster': [1]})
  other = evaluation('other', 1, horizon=HORIZON - 1)
  fewer = evaluation('fewer', 2, rows=30)
  a, b = evaluation('A', 3), evaluation('B', 4)
  found = eval_compare.best_regrets([old, a, other, fewer, b])
  assert [each is None for each in found] == [True, False, True, True, False]
  assert found[1]['policies'] == ['A', 'B']
  assert eval_compare.best_regrets([old, a, other]) == [None] * 3
  assert eval_compare.best_regrets([old]) == [None]


def test_the_largest_group_is_compared_in_any_order():
  a, b, c = (evaluation(name, i) for i, name in enumerate('ABC'))
  x = evaluation('X', 3, rows=30)
  y, z = (evaluation(n, 4, horizon=HORIZON - 1) for n in 'YZ')
  for evals, names in (
    ([x, a, b], 'AB'),
    ([a, x, b], 'AB'),
    ([y, z, a, b, c], 'ABC'),
    ([y, a, z, b], 'YZ'),  # a tie
    ([a, y, z, b], 'AB'),
  ):
    found = eval_compare.best_regrets(evals)
    for each, best in zip(evals, found):
      if each['name'] in names:
        assert best['policies'] == list(names)
      else:
        assert best is None
  cold = evaluation('cold', 5, measured={'temperature': 0.5})
  assert eval_compare.best_regrets([cold, a]) == [None] * 2
  assert eval_compare.best_regrets([cold, a, b])[0] is None


def test_what_was_measured_otherwise_is_not_paired():
  how = lambda prover, temperature: {
    'measured': {'prover': prover, 'temperature': temperature, 'weights': 'a'}
  }
  base = evaluation('base', 0, **how('exact', 1.0))
  like = evaluation('like', 1, **how('exact', 1))
  cold = evaluation('cold', 2, **how('exact', 0.6))
  noisy = evaluation('noisy', 3, **how('sampled', 0.6))
  old = evaluation('old', 4, prover={'kind': 'exact'})
  text = eval_compare.table([base, like, cold, noisy, old])
  _, differences, note = text.split('\n\n')
  dashes = [row.count('–') for row in differences.splitlines()[2:]]
  assert dashes == [0, 3, 3, 3]
  assert note == (
    'Not paired with base, measured otherwise: cold (temperature 0.6, not 1.0),'
    ' noisy (prover sampled, not exact; temperature 0.6, not 1.0), old '
    '(temperature unknown, not 1.0).'
  )
  text = eval_compare.table(
    [base, cold, evaluation('X', 2, 30, **how('exact', 1))]
  )
  assert text.count('Not paired with') == 2


def test_the_table():
  evals = [evaluation('MRT', 0), evaluation('base', 1), evaluation('X', 2, 30)]
  text = eval_compare.table(evals)
  figures, differences, note = text.split('\n\n')
  assert figures.startswith('| policy | accuracy')
  assert 'against the best' not in figures  # none of them has it
  rows = differences.splitlines()
  assert rows[0].startswith('| less base | accuracy')
  assert [row.split('|')[1].strip() for row in rows[2:]] == ['MRT', 'X']
  mean = [np.mean(e['per_problem']['accuracy']) for e in evals[:2]]
  assert f'| {mean[0] - mean[1]:.3f} ['.replace('-', '−') in rows[2]
  assert rows[3].count('–') == 3
  assert note == (
    'Not paired with base, being of other problems or another budget: X.'
  )
  for each, best in zip(evals, eval_compare.best_regrets(evals[:2])):
    each['regrets']['best'] = best
  assert 'against the best' in eval_compare.table(evals)


def test_how_hard_a_problem_was_for_the_base():
  base, own = evaluation('base', 0), evaluation('A', 1)
  found = eval_compare.difficulty_by(base, own)
  assert found['label'] == 'success rate of base'
  # Rates 0, 0.25, 0.5 of problems 0 … 19 in turn; of 20 … 39 none is known.
  assert [(b['label'], b['problems']) for b in found['bins']] == [
    ('0', 7),
    ('0.25', 7),
    ('0.5', 6),
  ]
  accuracy = own['per_problem']['accuracy']
  assert found['bins'][1]['accuracy']['mean'] == pytest.approx(
    np.mean(accuracy[1:20:3])
  )
  own['per_problem']['cluster'] = list(range(100, 140))
  assert eval_compare.difficulty_by(base, own) is None
  del base['success_rates']
  assert eval_compare.difficulty_by(base, own) is None


def test_prompts_of_one_problem_share_its_rate():
  base, own = evaluation('base', 0), evaluation('A', 1)
  base['success_rates'] = {'cluster': [5, 5], 'rate': [0.25, 0.75]}
  found = eval_compare.difficulty_by(base, own)
  assert [(b['label'], b['problems']) for b in found['bins']] == [('0.5', 1)]
