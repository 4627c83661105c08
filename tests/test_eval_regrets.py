"""Regret of measured traces against comparators, by hand and by other code."""

import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import eval_regrets, regret
from meta_rl.tasks import hidden

HORIZON = 16


def traces(rows=40, seed=0, width=5, horizon=HORIZON):
  """success, ends, count of made-up traces, some beyond the horizon."""
  rng = np.random.default_rng(seed)
  count = rng.integers(0, width, rows)
  at = np.minimum(np.arange(width), count[:, None])
  success = np.take_along_axis(
    rng.uniform(size=(rows, width)).astype(np.float32), at, 1
  )
  steps = rng.integers(1, horizon // 3, (rows, width)).cumsum(1)
  ends = 6 + np.take_along_axis(np.pad(steps, ((0, 0), (1, 0))), at, 1)
  return success, ends.astype(np.int32), count.astype(np.int32)


def profile_of(*given, horizon=HORIZON):
  return eval_regrets.profile(*given, horizon=horizon)


def test_one_trace_by_hand():
  # J: 0.1 at the prompt, 0.5 after 4 tokens, 0.9 after 12, then it stops.
  success = np.array([[0.1, 0.5, 0.9, 0.7]])  # what is past count is not read
  own = profile_of(success, np.array([[3, 7, 15, 15]]), np.array([2]))
  assert own.tokens[0].tolist() == [0.1] * 4 + [0.5] * 8 + [0.9] * 5
  assert own.episodes[0].tolist() == [0.1, 0.5, 0.9, 0.9]
  found = eval_regrets.against_one(own, np.array([0]))
  mean = {form: each['mean'] for form, each in found.items()}
  assert mean == pytest.approx(
    {
      'cumulative': 0.9 + 0.5 + 0.1,  # before each of K = 3 episodes
      'token_weighted': (4 * 0.9 + 8 * 0.5 + 4 * 0.1) / 16,
      # Straight lines through (0, 0), and J after 1, 2, … 16 tokens.
      'normalized': 1 - (3 * 0.1 + 8 * 0.5 + 4 * 0.9 + 0.9 / 2) / 16,
    }
  )


def test_against_one_is_what_the_public_functions_give():
  success, ends, count = traces()
  own = profile_of(success, ends, count)
  found = eval_regrets.against_one(own, np.arange(len(count)))
  all_count = jnp.full(len(count), success.shape[1] - 1)
  at = jnp.arange(1, 17) * HORIZON / 16
  others = {
    'cumulative': regret.cumulative(jnp.asarray(success), 1.0, all_count),
    'token_weighted': regret.token_weighted(
      jnp.asarray(success), jnp.asarray(ends), horizon=HORIZON
    ),
    'normalized': regret.normalized(
      jnp.asarray(own.tokens[:, 1:], jnp.float32), at, horizon=HORIZON
    ),
  }
  for form, values in others.items():
    assert found[form]['mean'] == pytest.approx(float(values.mean()), abs=1e-6)
    assert found[form]['low'] < found[form]['mean'] < found[form]['high']


def test_the_best_is_the_pointwise_maximum_of_the_means():
  profiles = [profile_of(*traces(seed=seed)) for seed in range(3)]
  best = eval_regrets.best_of(profiles)
  for name in ('tokens', 'episodes'):
    means = [getattr(each, name).mean(0) for each in profiles]
    np.testing.assert_allclose(
      getattr(best, name).mean(0), np.max(means, 0), atol=1e-12
    )
  clusters = np.arange(40)
  found = [eval_regrets.against(each, best, clusters) for each in profiles]
  for form in eval_regrets.FORMS:
    assert min(each[form]['mean'] for each in found) >= 0
  # Alone a policy is the best itself, problem by problem.
  alone = eval_regrets.best_of(profiles[:1])
  zero = dict.fromkeys(('mean', 'low', 'high'), 0.0)
  assert eval_regrets.against(profiles[0], alone, clusters) == dict.fromkeys(
    eval_regrets.FORMS, zero
  )


def test_differences_to_the_best_are_paired():
  """Two policies that differ by 0.1 on every problem, whatever its J."""
  rng = np.random.default_rng(0)
  j = rng.uniform(0.1, 0.9, (50, 1)) * np.ones((1, 3))
  ends, count = np.tile([6, 10, 14], (50, 1)), np.full(50, 2)
  good, bad = (profile_of(x, ends, count) for x in (j, j - 0.1))
  best = eval_regrets.best_of([bad, good])
  found = eval_regrets.against(bad, best, np.arange(50))['token_weighted']
  assert list(found.values()) == pytest.approx([0.1] * 3)


def test_the_optimum_of_hidden():
  """The best policy has no regret against it, uniform tries have the known."""
  n, episodes = 8, 8
  ends = np.arange(episodes + 1)[None] * hidden.EPISODE_LENGTH
  count = np.array([episodes])
  best, uniform = (
    profile_of(success(n, episodes)[None], ends, count)
    for success in (hidden.optimal_success, hidden.uniform_success)
  )
  known = eval_regrets.optimum(
    [hidden.optimal_success(n, 30)], like=best, episode_length=2
  )
  cluster = np.array([0])
  for each in eval_regrets.against(best, known, cluster).values():
    assert each['mean'] == pytest.approx(0, abs=1e-12)
  found = eval_regrets.against(uniform, known, cluster)
  assert found['cumulative']['mean'] == pytest.approx(
    hidden.uniform_regret(n, episodes)
  )
  areas = [
    hidden.area(success(n, episodes), horizon=HORIZON)
    for success in (hidden.optimal_success, hidden.uniform_success)
  ]
  assert found['token_weighted']['mean'] == pytest.approx(areas[0] - areas[1])
  one = eval_regrets.against_one(best, cluster)['cumulative']['mean']
  assert one == pytest.approx(hidden.optimal_regret(n, episodes))


def test_points_between_tokens_are_of_the_token_before():
  """17 tokens: 16 equal shares end at 1.0625, 2.125 … of which J is known."""
  curve = np.linspace(0, 1, 18)[None]
  at = np.floor(np.arange(1, 17) * 17 / 16).astype(int)
  by_lines = np.trapezoid([0, *curve[0, at]], dx=1 / 16)
  assert eval_regrets.normalized_area(curve)[0] == pytest.approx(by_lines)
