"""Dynamic sampling: what is kept, what is counted, on any number of devices."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import dynamic_sampling

GROUP = 2
# Whether the rewards of the groups of each round differ; P = 4.
ROUNDS = [
  [True, False, False, True],
  [False, True, False, False],
  [True, False, True, True],
]

# A pytree that has rewards.
Measured = collections.namedtuple(
  'Measured', 'rewards problem valid', defaults=(None,)
)


class Rounds:
  """Stands in for data and policy: the groups of each round are as given.

  Every array holds the number of its problem, counted over all rounds, so that
  one can see whether the parts of a group stay together.
  """

  def __init__(self, rounds, **options):
    self.rounds, self.keys, self.drawn = rounds, [], 0
    self.resample = dynamic_sampling.Resampler(
      group_size=GROUP, next_batch=self.next_batch, **options
    )

  def next_batch(self):
    size = len(self.rounds[0])
    number = size * self.drawn + jnp.arange(size)
    self.drawn += 1
    return {'prompts': jnp.tile(number[:, None], (1, 3)), 'target': number}

  def sample(self, batch, key):
    varied = jnp.asarray(self.rounds[(self.drawn - 1) % len(self.rounds)])
    self.keys.append(key)
    number = jnp.repeat(batch['target'], GROUP)
    place = jnp.arange(number.size) % GROUP
    rewards = jnp.where(jnp.repeat(varied, GROUP), place, 1).astype(jnp.float32)
    traces = {'tokens': jnp.stack([number, place], 1)}
    return traces, Measured(rewards, number)

  def summarize(self, traces, measured):
    """As `steps.rollout_metrics`: a mean and a sum of the round.

    A group is as long as the number of its problem.
    """
    rewards = measured.rewards.reshape(-1, GROUP)
    return {
      'rollout/zero_variance_share': (rewards.max(1) == rewards.min(1)).mean(),
      'rollout/tokens_sum': jnp.float32(100 * self.drawn),
      'cost/prove': jnp.float32(10 * self.drawn),
      'cost/train': 3.0 * traces['tokens'][:, 0].sum(),
    }

  def step(self, key=0):
    return self.resample(
      self.sample, self.summarize, self.next_batch(), jax.random.key(key)
    )


def numbers(step):
  """The problems that a step trains on, which all of its parts must name."""
  batch, traces, measured, _ = step
  found = np.asarray(batch['target'])
  np.testing.assert_array_equal(batch['prompts'], np.tile(found, (3, 1)).T)
  rows = np.repeat(found, GROUP)
  np.testing.assert_array_equal(measured.problem, rows)
  np.testing.assert_array_equal(traces['tokens'][:, 0], rows)
  # The traces of a group are in order.
  np.testing.assert_array_equal(
    traces['tokens'][:, 1], np.arange(rows.size) % GROUP
  )
  return found.tolist()


def test_places_by_hand():
  def index(kept, new):
    return dynamic_sampling.places(np.array(kept), np.array(new)).tolist()

  # The picture in the module, as indices: e f g are 4 + 0, 3, 6 of seven.
  kept = [True, False, True, True, False, True, False, False]
  new = [True, False, False, True, False, False, True, False]
  assert index(kept, new) == [0, 8, 2, 3, 11, 5, 14, 7]
  # More than there are places: the later ones are dropped.
  assert index([True, False], [True, True]) == [0, 2]
  assert index([True, True], [True, True]) == [0, 1]
  assert index([False, False], [False, False]) == [0, 1]
  assert index([False, False], [False, True]) == [3, 1]


def test_rounds_by_hand():
  rounds = Rounds(ROUNDS, max_rounds=5)
  step = rounds.step()
  # Round 1 keeps 0 and 3; round 2 has 5 for the place of 1; round 3 has 8 for
  # that of 2, and 10 and 11 are more than is needed.
  assert numbers(step) == [0, 5, 8, 3]
  assert step[-1] == {
    'rollout/rounds': 3,
    'rollout/filled_groups': 0,
    # Equal: 2, 3 and 1 of 4 each, whatever was kept: 6 of 12.
    'rollout/zero_variance_share': 0.5,
    'rollout/tokens_sum': 100 + 200 + 300,
    # All rounds are proved, and the merged batch is trained on, two traces of
    # each problem. (The mean over rounds is 3 * 2 * (6 + 22 + 38) / 3 = 132.)
    'cost/prove': 10 + 20 + 30,
    'cost/train': 3 * 2 * (0 + 5 + 8 + 3),
  }
  assert all(isinstance(value, float) for value in step[-1].values())
  # The fourth batch is the next step's, not lost.
  assert rounds.drawn == 3
  assert numbers(rounds.step())[0] == 12


def test_the_last_round_fills_up():
  step = Rounds(ROUNDS, max_rounds=2).step()
  assert numbers(step) == [0, 5, 2, 3]
  assert step[-1]['rollout/rounds'] == 2
  assert step[-1]['rollout/filled_groups'] == 1
  assert step[-1]['rollout/tokens_sum'] == 300
  np.testing.assert_allclose(step[-1]['rollout/zero_variance_share'], 5 / 8)


def test_nothing_ever_differs():
  step = Rounds([[False] * 4], max_rounds=3).step()
  assert numbers(step) == [0, 1, 2, 3]
  assert step[-1]['rollout/rounds'] == 3
  assert step[-1]['rollout/filled_groups'] == 4
  assert step[-1]['rollout/zero_variance_share'] == 1


def test_one_round_is_an_ordinary_step():
  rounds = Rounds([[True] * 4], max_rounds=3)
  step = rounds.step(key=7)
  assert numbers(step) == [0, 1, 2, 3]
  assert step[-1]['rollout/rounds'] == 1
  assert rounds.drawn == 1
  assert rounds.keys == [jax.random.key(7)]
  assert rounds.resample.merge.traces == 0


def test_merging_is_traced_once():
  rounds = Rounds(ROUNDS, max_rounds=3)
  for _ in range(5):
    rounds.step()
  assert rounds.drawn == 15
  assert rounds.resample.merge.traces == 1


@pytest.mark.parametrize('partitionable', [True, False])
def test_no_two_rounds_share_a_key(partitionable):
  """Neither with each other nor with what a step splits its key into.

  Under the partitionable threefry, `fold_in(key, 1)` is `split(key)[1]`: the
  prover's key of round 1 would sample the traces of the round numbered 1.
  """
  with jax.threefry_partitionable(partitionable):
    rounds = Rounds([[False] * 4], max_rounds=6)
    rounds.step(key=3)
    used = [*rounds.keys]
    for key in rounds.keys:
      used += list(jax.random.split(key))
    data = {tuple(jax.random.key_data(key).tolist()) for key in used}
  assert len(rounds.keys) == 6
  assert len(data) == len(used) == 18


def test_what_differs_is_decided_group_by_group():
  found = dynamic_sampling.varied_groups(
    np.float32([0, 0, 0, 1, 0.1, 0.1, 1, 0.5]), 2
  )
  assert found.tolist() == [False, True, False, True]


def test_a_trace_without_a_reward_makes_no_group_differ():
  rewards = np.float32([0, 1, 5, 2, 2, 7, 3, 4, 5])
  valid = np.asarray([1, 1, 0, 1, 1, 0, 0, 1, 0], bool)
  found = dynamic_sampling.varied_groups(rewards, 3, valid)
  assert found.tolist() == [True, False, False]
  none = dynamic_sampling.varied_groups(rewards, 3, np.zeros(9, bool))
  assert not none.any()


@pytest.mark.parametrize(
  'max_rounds, group_size, message',
  [
    (1, 8, 'max_rounds=1: allowed is >= 2, or 0'),
    (-3, 8, 'max_rounds=-3: allowed is >= 2, or 0'),
    (2, 1, 'max_rounds=2 with group_size=1'),
  ],
)
def test_options_that_change_nothing_are_refused(
  max_rounds, group_size, message
):
  with pytest.raises(ValueError, match=message):
    dynamic_sampling.check(max_rounds, group_size)


def test_off_is_allowed():
  for off in (0, None):
    dynamic_sampling.check(off, 1)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from meta_rl import dynamic_sampling, sharding
from meta_rl.update import TrainState

state = TrainState(
  {'w': jnp.zeros(3)}, {}, jnp.zeros((), jnp.int32), jax.random.key(0)
)

# Sixteen prompts x 2; the rewards of a problem differ if its number is right.
def run(kind):
  def generate(params, batch, key, row_offset=0):
    number = jnp.repeat(batch['target'], 2)
    rows = row_offset + jnp.arange(number.size)
    draw = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row)))
    return {'number': number, 'bits': draw(rows)}, number.sum()[None]

  def prove(params, batch, traces, cache, key, row_offset=0):
    place = jnp.arange(traces['number'].size) % 2
    differ = jnp.isin(traces['number'] % 5, jnp.array([0, 2]))
    return {'rewards': jnp.where(differ, place, 0) * 1.0, **traces}

  def make_update(axis_name, spread):
    # Of mini-batch, place and number: the batch must come in order.
    def update(state, traces, measured, reference=None):
      total = (measured['number'] * traces['number']).sum()
      return state, total if axis_name is None else jax.lax.psum(
        total, axis_name)
    return update

  parallel = sharding.parallelize(
    kind, generate=generate, prove=prove, make_update=make_update,
    rows_per_prompt=2, mini_batches=2,
  )
  params = parallel.put_params({'w': np.zeros(3)})
  drawn = iter(range(100))
  next_batch = lambda: parallel.put_batch(
    {'target': np.arange(16) + 16 * next(drawn)})

  class Measured(dict):
    rewards = property(lambda self: self['rewards'])
    valid = None
  jax.tree_util.register_pytree_node(
    Measured, lambda x: ((dict(x),), None), lambda _, x: Measured(x[0]))

  def sample(batch, key):
    traces, cache = parallel.generate(params, batch, key)
    return traces, Measured(parallel.prove(params, batch, traces, cache, key))

  resample = dynamic_sampling.Resampler(
    max_rounds=5, group_size=2, next_batch=next_batch, get=parallel.get,
    mesh=parallel.mesh)
  summarize = jax.jit(lambda traces, measured: {
    'tokens_sum': measured['number'].sum()})
  out = []
  for step in range(3):
    first = next_batch()
    batch, traces, measured, metrics = resample(
      sample, summarize, first, jax.random.key(step))
    assert batch['target'].sharding == first['target'].sharding
    _, total = parallel.update(
      parallel.put_state(state), traces, dict(measured), None)
    out.append(parallel.get((batch, traces, dict(measured), total)))
    out.append(metrics)
  assert resample.merge.traces == 1
  assert all(n <= 1 for n in parallel.traces.values()), parallel.traces
  return out

want = run('none')
assert want[1]['rollout/rounds'] == 3, want[1]
assert len(set(want[0][1]['bits'].tolist())) == 32
for kind in ('jit', 'pmap'):
  jax.tree.map(np.testing.assert_array_equal, run(kind), want)
print('equal')
"""


def test_the_same_groups_on_any_number_of_devices(run_python):
  assert run_python(DEVICES).strip() == 'equal'
