"""PPO: advantages and value targets of three traces, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import algorithms, steps
from meta_rl.algorithms import Critic, Measured
from meta_rl.types import Episodes

LENGTH = 8

# Column 0 is the prompt. Row 0: two episodes (1-2, 3-4), its own marker at 5,
# the answer at 6-7, right. Row 1: one episode (1-2), the marker forced at 3,
# the answer at 4-5, wrong. Row 2: EOS at once, no episode and no answer.
MASK = np.array(
  [
    [0, 1, 1, 1, 1, 1, 1, 1],
    [0, 1, 1, 0, 1, 1, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 0],
  ],
  bool,
)
VALUES = np.zeros((3, LENGTH), np.float32)
VALUES[0, 1:] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
VALUES[1, [1, 2, 4, 5]] = [0.1, 0.2, 0.4, 0.3]
VALUES[1, 3] = 7.0  # before a forced token: no step of the trace
VALUES[2, 1] = 0.25
TRACES = Measured(
  rewards=jnp.array([1.0, 0.0, 0.0]),
  success=jnp.array([[0.1, 0.5, 0.9], [0.1, 0.3, 0.3], [0.1, 0.1, 0.1]]),
  episodes=Episodes(
    jnp.array([[0, 2, 4], [0, 2, 2], [0, 0, 0]]), jnp.array([2, 1, 0])
  ),
  stop_index=jnp.array([5, 3, 1]),
  answered=jnp.array([True, True, False]),
  critic=Critic(values=jnp.asarray(VALUES), mask=jnp.asarray(MASK)),
)


# Quicker than op by op.
value_targets = jax.jit(algorithms.value_targets)
ppo = jax.jit(algorithms.ppo, static_argnums=1, static_argnames=('group_size',))


def test_advantages_by_hand():
  # λ = .5. Row 0, last first: 1 - .8 = .2; then .1 + half of what follows:
  # .2; .2; .2 … Row 1: 0 - .3 = -.3; .3 - .4 - .15 = -.25; .4 - .2 - .125 =
  # .075; .2 - .1 + .0375 = .1375. Row 2: 0 - .25.
  found = ppo(TRACES, LENGTH, group_size=1, decay=0.5)
  expected = np.zeros((3, LENGTH))
  expected[0, 1:] = 0.2
  expected[1, [1, 2, 4, 5]] = [0.1375, 0.075, -0.25, -0.3]
  expected[2, 1] = -0.25
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_groups_do_not_matter():
  one, three = (ppo(TRACES, LENGTH, group_size=n, discount=0.9) for n in (1, 3))
  np.testing.assert_array_equal(one, three)
  by_name = steps.make_advantages('ppo', group_size=1, discount=0.9)
  np.testing.assert_allclose(by_name(TRACES, LENGTH), one, atol=1e-6)


def test_value_targets_by_hand():
  advantage = ppo(TRACES, LENGTH, group_size=1, decay=1.0)
  found = value_targets(TRACES, advantage)
  np.testing.assert_array_equal(found['old_values'], VALUES)
  # λ = 1: the outcome, wherever an action is.
  returns = np.asarray(found['value_targets'])
  np.testing.assert_allclose(returns[0, 1:], 1, rtol=1e-6)
  np.testing.assert_allclose(returns[1:][MASK[1:]], 0, atol=1e-6)
  # Row 0: J_0 before column 1, J_1 before 3, J_2 before its marker at 5, and
  # J_2 before the first token of the answer. Row 1: J_0, J_1 only before the
  # answer, since the token behind its boundary was forced. Row 2: J_0.
  targets, known = np.zeros((3, LENGTH)), np.zeros((3, LENGTH), bool)
  targets[0, [1, 3, 5, 6]] = [0.1, 0.5, 0.9, 0.9]
  targets[1, [1, 4]] = [0.1, 0.3]
  targets[2, 1] = 0.1
  known[0, [1, 3, 5, 6]] = known[1, [1, 4]] = known[2, 1] = True
  np.testing.assert_array_equal(found['j_mask'], known)
  np.testing.assert_allclose(
    np.where(known, found['j_targets'], 0), targets, rtol=1e-6
  )


def test_a_thought_that_fills_the_row_has_no_place_for_its_last_j():
  mask = np.ones((1, 4), bool)
  mask[0, 0] = False
  cut = Measured(
    rewards=jnp.zeros(1),
    success=jnp.array([[0.1, 0.5, 0.9]]),
    episodes=Episodes(jnp.array([[0, 1, 3]]), jnp.array([2])),
    stop_index=jnp.array([4]),
    answered=jnp.array([False]),
    critic=Critic(values=jnp.zeros((1, 4)), mask=jnp.asarray(mask)),
  )
  found = value_targets(cut, jnp.zeros((1, 4)))
  np.testing.assert_array_equal(found['j_mask'], [[0, 1, 1, 0]])
  np.testing.assert_allclose(found['j_targets'][0, 1:3], [0.1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'critic': None}, 'steps.make_value'),
    (
      {'critic': Critic(jnp.zeros((3, 5)), jnp.zeros((3, 5), bool))},
      r'critic.values must have shape \[B,8\]',
    ),
  ],
)
def test_a_critic_that_is_not_there_or_does_not_fit(change, message):
  with pytest.raises(ValueError, match=message):
    algorithms.ppo(dataclasses.replace(TRACES, **change), LENGTH, group_size=1)
