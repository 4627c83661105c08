"""Tests of meta_rl.eval_figures, by hand and against the regret functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import eval_figures, regret

# Four traces over at most 2 episodes of 3 tokens, ends counted from column 5.
SUCCESS = np.array(
  [
    [0.2, 0.6, 0.9],  # goes on at 0 and at 1 (solved there), stops at 2, solved
    [0.2, 0.8, 0.8],  # goes on at 0, stops at 1, solved
    [0.1, 0.4, 0.4],  # goes on at 0, stops at 1, unsolved
    [0.3, 0.5, 0.7],  # goes on at 0 and 1 (0.5 is not above 0.5), cut off at 2
  ]
)
COUNT = np.array([2, 1, 1, 2])
ENDS = np.array([[5, 8, 11], [5, 8, 8], [5, 8, 8], [5, 8, 11]])
FORCED = np.array([False, False, False, True])


def test_stop_rates_by_hand():
  found = eval_figures.stop_rates(SUCCESS, COUNT, FORCED)
  assert found == {
    'solved_above': 0.5,
    # Boundary 1: traces 0 and 1, of which trace 1 stops. Boundary 2: trace 0
    # stops; trace 3 had no choice. Together 2 of 3.
    'solved': {'stops': [0, 1, 1], 'chances': [0, 2, 1], 'rate': 2 / 3},
    # Boundary 0: all four, none stops. Boundary 1: traces 2 and 3. 1 of 6.
    'unsolved': {'stops': [0, 1, 0], 'chances': [4, 2, 0], 'rate': 1 / 6},
  }
  # At a lower bar trace 3 is solved at boundary 1, and trace 2 too.
  found = eval_figures.stop_rates(SUCCESS, COUNT, FORCED, solved_above=0.35)
  assert found['solved'] == {
    'stops': [0, 2, 1],
    'chances': [0, 4, 1],
    'rate': 3 / 5,
  }


def test_no_chance_has_no_rate():
  forced = np.ones(4, bool)
  found = eval_figures.stop_rates(SUCCESS, np.zeros(4, int), forced)
  assert found['solved']['rate'] is found['unsolved']['rate'] is None
  assert found['unsolved']['chances'] == [0, 0, 0]


def test_each_choice_counts_once():
  rng = np.random.default_rng(0)
  success, count = rng.uniform(size=(50, 6)), rng.integers(0, 6, 50)
  forced = rng.uniform(size=50) < 0.3
  found = eval_figures.stop_rates(success, count, forced)
  parts = [found[name] for name in ('solved', 'unsolved')]
  assert sum(sum(p['stops']) for p in parts) == (~forced).sum()
  chances = sum(sum(p['chances']) for p in parts)
  assert chances == (count + ~forced).sum()


def test_shapes_that_do_not_fit():
  with pytest.raises(ValueError, match=r'\[N,K\+1\], \[N\] and \[N\]'):
    eval_figures.stop_rates(SUCCESS, COUNT[:3], FORCED)


def test_extrapolation_by_hand():
  # Traces 0 and 3 alone, horizon 3, kept thinking to 6 tokens.
  keep = [0, 3]
  found = eval_figures.extrapolation(
    {'success': SUCCESS[keep], 'ends': ENDS[keep], 'count': COUNT[keep]},
    horizon=3,
    factors=(2,),
    clusters=np.arange(2),
    points=3,
  )
  assert found['factors'] == [1, 2]
  assert found['horizons'] == [3, 6]
  # 6 tokens at 3 points: a step of 2, and the horizons themselves.
  assert found['budgets'] == [0, 2, 3, 4, 6]
  # Means of both traces: .25 until token 3, then .55, at 6 .8.
  np.testing.assert_allclose(
    found['accuracy_at_budget'], [0.25, 0.25, 0.55, 0.55, 0.8]
  )
  assert [x['mean'] for x in found['accuracy']] == pytest.approx([0.55, 0.8])
  # Horizon 3: 1 - .2 and 1 - .3. Horizon 6: 1 - (.2 + .6)/2 and 1 - (.3 +
  # .5)/2: what comes at the last token itself is too late.
  np.testing.assert_allclose(found['per_problem'], [[0.8, 0.7], [0.6, 0.6]])
  means = [x['mean'] for x in found['regret_token_weighted']]
  assert means == pytest.approx([0.75, 0.6])
  # Sixteen points, at each the accuracy of the last whole token: .25 but for
  # the last, .55. Trapezoid from (0, 0): .125, 14 x .25, .4, each 1/16 wide:
  # 1 - 4.025 / 16 = 0.7484375.
  normalized = found['regret_normalized'][0]
  assert normalized['mean'] == pytest.approx(0.7484375, abs=1e-6)
  assert normalized['low'] < normalized['mean'] < normalized['high']
  assert found['num_problems'] == 2


def made_up(rows=30, episodes=8):
  """Traces that all think to the end, with J that wanders."""
  rng = np.random.default_rng(1)
  return {
    'success': rng.uniform(size=(rows, episodes + 1)).astype(np.float32),
    'ends': np.tile(np.arange(episodes + 1) * 9 + 6, (rows, 1)),
    'count': np.full(rows, episodes),
  }


def test_a_prefix_of_a_kept_trace_is_the_kept_trace_of_a_smaller_budget():
  whole = made_up()
  cut = {
    'success': whole['success'][:, :3],
    'ends': whole['ends'][:, :3],
    'count': np.full(30, 2),
  }
  options = {'horizon': 18, 'clusters': np.arange(30)}
  found = eval_figures.extrapolation(whole, factors=(2, 4), **options)
  short = eval_figures.extrapolation(cut, factors=(), **options)
  assert short['horizons'] == [18]
  for name in ('accuracy', 'regret_token_weighted', 'regret_normalized'):
    assert found[name][0] == short[name][0]
  # The device's own function agrees at every horizon.
  for h, values in zip(found['horizons'], found['per_problem']):
    wanted = regret.token_weighted(
      jnp.asarray(whole['success']), jnp.asarray(whole['ends']), horizon=h
    )
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_base_prover_by_hand():
  found = eval_figures.base_prover(
    SUCCESS,
    ENDS,
    COUNT,
    horizon=6,
    clusters=np.arange(4),
    budgets=[0, 3, 6],
  )
  # .9, .8, .4, .7 at the traces' own stops.
  assert found['accuracy']['mean'] == pytest.approx(0.7)
  # 1 - half of each: .6, .5, .75, .6 of regret.
  assert found['regret_token_weighted']['mean'] == pytest.approx(0.6125)
  np.testing.assert_allclose(found['accuracy_at_budget'], [0.2, 0.575, 0.7])


def test_prover_gap_by_hand():
  exact = [[0.2, 0.4, 0.9], [0.1, 0.3, 0.5]]
  sampled = [[0.5, 0.5, 0.0], [0.0, 0.5, 1.0]]
  found = eval_figures.prover_gap(exact, sampled, [1, 2], clusters=np.arange(2))
  assert found['problems'] == 2
  # (.2 + .4) / 2 = .3 and (.1 + .3 + .5) / 3 = .3; .5 and 1.5 / 3 = .5.
  assert found['exact']['mean'] == pytest.approx(0.3)
  assert found['sampled']['mean'] == pytest.approx(0.5)
  for part in ('mean', 'low', 'high'):
    assert found['difference'][part] == pytest.approx(-0.2)
  with pytest.raises(ValueError, match='must be'):
    eval_figures.prover_gap(exact, sampled[:1], [1, 2], clusters=np.arange(2))


def test_tokens_to_levels():
  found = eval_figures.tokens_to_levels([0, 10, 20], [0.25, 0.55, 0.65])
  assert found['0.1'] == found['0.2'] == 0
  # A third of the way from .25 to .55 is .35: .4 is half of it, 5 tokens.
  assert found['0.4'] == pytest.approx(5)
  assert found['0.6'] == pytest.approx(15)
  assert found['0.7'] is None
  assert list(found) == [f'0.{i}' for i in range(1, 10)]
