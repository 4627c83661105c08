"""Whole steps in one program: the same run, and what it is refused for."""

import math
import types

import pytest
from test_train import last_state, untimed

from meta_rl import check_config, signals, train_blocks
from meta_rl.costs import Meter

pytest_plugins = ['small_runs']


def same(small, one, other):
  """Whether two runs have the same rows, and end in the same state."""
  assert untimed(one.rows) == untimed(other.rows)
  config = one.config
  step, state, data = last_state(config, one.folder)
  step_2, state_2, data_2 = last_state(config, other.folder)
  assert (step, data) == (step_2, data_2)
  assert small.equal(state, state_2)
  return True


def run(small, name, folder, **changes):
  config = small.config(name, **changes)
  result = small.run(config, folder)
  assert result.code == signals.EXIT_OK, result.err
  result.config = config
  return result


@pytest.mark.full
def test_a_run_of_blocks_is_the_run(small, trained, tmp_path):
  """Blocks of 2, 1 and 1: a checkpoint is due behind the third step."""
  blocks = run(
    small, 'mrt', tmp_path, checkpoint__every=3, parallel__fused_steps=2
  )
  assert same(small, blocks, trained)
  for row in blocks.rows:
    assert 0 < row['time/fused_s'] <= row['time/step_s']
  # One program whatever the length of a block: the block, generate, prove,
  # update and summarize within it, and evaluation's two.
  assert [row['compile/count'] for row in blocks.rows] == [5, 7, 7, 7]


@pytest.mark.full
@pytest.mark.parametrize('budget', ['total_tokens', 'total_cost'])
def test_a_budget_ends_a_block_where_it_ends_a_run(
  budget, small, trained, tmp_path
):
  """A budget that the second step of four reaches exactly."""
  spent = {
    'total_tokens': sum(r['rollout/tokens_sum'] for r in trained.rows[:2]),
    'total_cost': trained.rows[1]['cost/cumulative'],
  }[budget]
  every = {'checkpoint__every': 4, 'eval__every': 4, 'log__samples_every': 4}
  result = run(
    small,
    'mrt',
    tmp_path,
    parallel__fused_steps=4,
    **{budget: spent, **every},
  )
  assert len(result.rows) == 2
  assert f'{budget}={spent:,g} was reached after step 2' in result.err
  drop = lambda rows: [
    {k: v for k, v in row.items() if not k.startswith('eval/')} for row in rows
  ]
  assert drop(untimed(result.rows)) == drop(untimed(trained.rows[:2]))
  _, _, data = last_state(result.config, result.folder)
  assert data['cumulative_tokens'] == sum(
    row['rollout/tokens_sum'] for row in result.rows
  )


# ---- the length of a block, and what is drawn for it


@pytest.mark.parametrize(
  'step, stop_at, length',
  [
    (0, 60, 5),  # to the checkpoint
    (3, 60, 2),
    (5, 60, 5),
    (7, 60, 3),
    (58, 60, 2),
    (59, 60, 1),
    (9, 10, 1),
  ],
)
def test_a_block_ends_where_something_is_due(step, stop_at, length, small):
  config = small.config('mrt', '', parallel__fused_steps=8)
  assert config.checkpoint.every == 5
  assert train_blocks.block_length(config, step, stop_at) == length
  config.parallel.fused_steps = 0
  assert train_blocks.block_length(config, step, stop_at) == 1


def test_no_program_is_larger_than_a_block_can_be(small):
  config = small.config('mrt', '', parallel__fused_steps=10**9)
  assert train_blocks.most_steps(config) == config.checkpoint.every == 5
  config.checkpoint.every = 100
  config.eval.every = config.log.samples_every = 50
  config.total_steps = 40
  assert train_blocks.most_steps(config) == 40
  config.parallel.fused_steps = 3
  assert train_blocks.most_steps(config) == 3
  config.parallel.fused_steps = 0
  assert train_blocks.most_steps(config) == 1


def test_a_short_block_is_of_the_steps_that_it_may_take(small):
  config = small.config('mrt', '', parallel__fused_steps=2)
  lengths = [train_blocks.block_length(config, step, 60) for step in range(5)]
  assert lengths == [2, 2, 2, 2, 1]


def test_what_a_block_leaves_is_the_next_ones():
  drawn = iter(range(10))
  last = []

  def draw():
    last[:] = [next(drawn)]
    return last[0]

  feed = train_blocks.Feed(draw, lambda: {'next': last[0] + 1})
  assert feed.peek(3) == [0, 1, 2]
  assert feed.take(2) == {'next': 2}  # of what was used, not of what was drawn
  assert feed.peek(3) == [2, 3, 4]
  assert feed.take(1) == {'next': 3}
  assert feed.peek(1) == [3]


def test_a_meter_says_what_is_left():
  meter = Meter(total_cost=100.0, state={'cumulative_cost': 30.0})
  assert meter.left() == ((100.0, 30.0), (None, 0.0))
  assert meter.left(paid=5.0) == ((100.0, 35.0), (None, 0.0))


# ---- refusals


@pytest.mark.parametrize('count', [-1, 1.5, True])
def test_a_number_of_steps_that_is_none(count, small):
  config = types.SimpleNamespace(parallel={'fused_steps': count})
  with pytest.raises(ValueError, match=f'fused_steps={count} is given; allow'):
    train_blocks.check(config)


@pytest.mark.parametrize(
  'name, changes, reason',
  [
    ('sft', {}, "algorithm.name='sft' has no phases"),
    ('mrt', {'parallel__kind': 'pmap'}, "parallel.kind='pmap' deals traces"),
    (
      'grpo',
      {'rewards': (('math.sqrt', 1.0),)},
      'config.rewards are functions of the host',
    ),
    ('external', {}, 'rollout.source names traces of a file'),
    ('dapo', {}, 'rollout.dynamic_sampling draws further prompts'),
    ('mrt_rl', {}, "algorithm.prefix_policy='reference' samples from two"),
    (
      'mrt_smollm2_135m',
      {},
      "answers of task.name='text' are graded on the host",
    ),
  ],
)
def test_what_is_not_of_the_device_is_refused(name, changes, reason, small):
  assert math.sqrt  # of the config
  config = small.config(name, parallel__fused_steps=2, **changes)
  with pytest.raises(ValueError, match=reason) as caught:
    train_blocks.check(config)
  assert '\n' not in str(caught.value)
  assert 'set it to 0' in str(caught.value)
  config.parallel.fused_steps = 0
  train_blocks.check(config)


def test_the_check_of_a_config_asks(small):
  with pytest.raises(ValueError, match='fused_steps=3 takes whole steps'):
    check_config.check(small.config('dapo', parallel__fused_steps=3))
