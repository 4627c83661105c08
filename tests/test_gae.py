"""Generalised advantage estimates, by hand and against a loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import advantages

# Actions at columns 1, 2 and 4; column 3 was forced, and what stands where no
# action is must never be read.
NAN = np.nan
gae = jax.jit(advantages.gae)  # quicker than op by op
MASK = np.array([[0, 1, 1, 0, 1, 0]], bool)
REWARDS = np.array([[NAN, 0, 0, 5, 1, NAN]], np.float32)
VALUES = np.array([[NAN, 0.5, 0.6, 9, 0.7, np.inf]], np.float32)


def test_by_hand():
  # γ = 1: δ = .6 - .5, .7 - .6, 1 - .7 = .1, .1, .3, past the forced token.
  # λ = .95: A = .3; .1 + .95·.3 = .385; .1 + .95·.385 = .46575.
  found = gae(REWARDS, VALUES, MASK)
  np.testing.assert_allclose(found, [[0, 0.46575, 0.385, 0, 0.3, 0]], rtol=1e-5)
  # γ = .9, λ = .5: δ = .54 - .5, .63 - .6, .3 = .04, .03, .3; γλ = .45:
  # A = .3; .03 + .135 = .165; .04 + .45·.165 = .11425.
  found = gae(REWARDS, VALUES, MASK, discount=0.9, decay=0.5)
  np.testing.assert_allclose(
    found, [[0, 0.11425, 0.165, 0, 0.3, 0]], rtol=1e-5, atol=1e-7
  )


def test_the_value_behind_the_last_action_by_hand():
  # Cut off where the state is worth .8: δ = .1, .1, 0 + .8 - .7 = .1; λ = .5:
  # .1; .15; .175. It belongs to the last action, wherever that is.
  rewards = np.where(MASK, 0, NAN).astype(np.float32)
  values = np.append(VALUES, [[0.8]], axis=1).astype(np.float32)
  found = gae(rewards, values, MASK, decay=0.5)
  np.testing.assert_allclose(
    found, [[0, 0.175, 0.15, 0, 0.1, 0]], rtol=1e-5, atol=1e-7
  )


def oracle(rewards, values, mask, discount, decay, final):
  """A loop over each row's actions, the last first."""
  found = np.zeros(mask.shape)
  for b, row in enumerate(mask):
    after, advantage = final[b], 0.0
    for t in np.nonzero(row)[0][::-1]:
      delta = rewards[b, t] + discount * after - values[b, t]
      advantage = delta + discount * decay * advantage
      found[b, t], after = advantage, values[b, t]
  return found


def random_batch(seed=0, shape=(7, 33)):
  rng = np.random.default_rng(seed)
  mask = rng.random(shape) < 0.6
  mask[0], mask[1] = False, True  # no action, and nothing but actions
  mask[2], mask[2, 9] = False, True  # one action
  rewards, values = rng.standard_normal((2, *shape)).astype(np.float32)
  return rewards, values, mask, rng.standard_normal(shape[0]).astype(np.float32)


@pytest.mark.parametrize('bootstrap', [False, True])
@pytest.mark.parametrize(
  'discount, decay', [(1, 0.95), (0.97, 0.9), (1, 0), (0, 1), (1, 1)]
)
def test_against_a_loop(discount, decay, bootstrap):
  rewards, values, mask, final = random_batch()
  dirty = lambda x: np.where(mask, x, NAN).astype(np.float32)
  given = dirty(values)
  if bootstrap:
    given = np.append(given, final[:, None], axis=1)
  else:
    final = np.zeros_like(final)
  expected = oracle(rewards, values, mask, discount, decay, final)
  found = gae(dirty(rewards), given, mask, discount=discount, decay=decay)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  # Masked positions are exactly 0, a row without an action is all 0.
  assert not np.asarray(found)[~mask].any()
  # One action: its own δ.
  assert found[2, 9] == pytest.approx(
    rewards[2, 9] + discount * final[2] - values[2, 9], abs=1e-5
  )


def test_extremes_of_the_decay():
  """λ = 1 is the return minus V; λ = 0 is δ, the TD error."""
  _, values, mask, _ = random_batch()
  outcome = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
  rewards = advantages.terminal_rewards(outcome, mask)
  found = gae(rewards, values, mask, decay=1.0)
  expected = np.where(mask, outcome[:, None] - values, 0)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # Deltas of γ = 1 telescope: they add up to r - V of the first action.
  deltas = np.asarray(gae(rewards, values, mask, decay=0.0)).sum(1)
  np.testing.assert_allclose(deltas[1:], expected[1:][first(mask[1:])], 1e-3)


def first(mask):
  """Indexes of the first True of each row."""
  return np.arange(len(mask)), mask.argmax(1)


def test_a_value_that_knows_the_outcome_leaves_nothing():
  _, _, mask, _ = random_batch()
  outcome = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
  rewards = advantages.terminal_rewards(outcome, mask)
  values = np.broadcast_to(outcome[:, None], mask.shape)
  found = gae(rewards, values, mask)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_forced_tokens_are_no_steps():
  """The same actions with columns between them, and one behind the other."""
  rewards, values, mask, _ = random_batch()
  order = np.argsort(~mask, axis=1, kind='stable')
  close = [np.take_along_axis(x, order, 1) for x in (rewards, values, mask)]
  spread, close = gae(rewards, values, mask), gae(*close)
  np.testing.assert_allclose(
    np.take_along_axis(spread, order, 1), close, rtol=1e-4, atol=1e-5
  )


def test_terminal_rewards():
  mask = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6], bool)
  found = advantages.terminal_rewards(np.array([2.0, 3.0, 4.0]), mask)
  np.testing.assert_array_equal(
    found, [[0, 0, 0, 0, 2, 0], [3, 0, 0, 0, 0, 0], [0] * 6]
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'values': jnp.zeros((1, 8))}, r'values must have shape \[B,T\]'),
    ({'values': jnp.zeros((2, 7))}, r'values must have shape \[B,7\]'),
    ({'rewards': jnp.zeros((1, 5))}, 'rewards must have shape'),
    ({'mask': jnp.zeros((1, 6))}, 'mask must hold bool'),
    ({'values': jnp.zeros((1, 6), int)}, 'values must hold float'),
    ({'discount': 1.1}, 'discount must be >= 0 and <= 1'),
    ({'decay': -0.1}, 'decay must be >= 0 and <= 1'),
  ],
)
def test_bad_arguments(changes, message):
  arguments = {
    'rewards': jnp.zeros((1, 6)),
    'values': jnp.zeros((1, 6)),
    'mask': jnp.asarray(MASK),
  }
  with pytest.raises(ValueError, match=message):
    advantages.gae(**arguments | changes)
