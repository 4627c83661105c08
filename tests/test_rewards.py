"""A user's own rewards: from a path to the update, and every way to fail."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import (
  rewards,
  setup_own,
  setup_run,
  signals,
  steps,
  tokenizer,
  workdir,
)
from meta_rl.algorithms import Measured
from meta_rl.tasks import countdown_task
from meta_rl.types import Episodes, Rollout

pytest_plugins = ['small_runs']

TASK = countdown_task(n=3, ops='+-', max_value=99)


# ---- functions that tests name by their path


def short(batch):
  """Minus the share of 27 thinking tokens."""
  return [-int(n) / 27 for n in batch['tokens']]


def every_third(batch):
  """1, None, NaN, 1, None, NaN, ... by the trace's place."""
  values = [1.0, None, math.nan]
  return [values[i % 3] for i in range(len(batch['tokens']))]


def never(batch):
  """None for all."""
  return [None] * len(batch['prompts'])


def broken(batch):
  """Raises as a user's slip does."""
  return batch['no such key']


class Group:
  """A function may also be an attribute."""

  @staticmethod
  def ones(batch):
    """1 for all."""
    return np.ones(len(batch['outcome']))


NOT_A_FUNCTION = 3


# ---- paths


@pytest.mark.parametrize(
  'path',
  ['test_rewards.short', 'test_rewards:short'],
)
def test_a_path_is_its_function(path):
  assert rewards.resolve(path) is rewards.resolve('test_rewards.short')
  assert rewards.resolve(path)({'tokens': [27]}) == [-1.0]


def test_a_path_into_a_class():
  assert rewards.resolve('test_rewards:Group.ones')({'outcome': [0, 0]}).sum()


@pytest.mark.parametrize(
  'path, message',
  [
    ('short', "'short' names no function: give package.module.function"),
    ('', 'names no function'),
    ('a..b', 'names no function'),
    ('../x.py:f', 'names no function'),
    (3, 'reward 3 must be a string'),
    ('no_such_module.f', "module 'no_such_module' cannot be imported"),
    ('test_rewards.shrt', 'has no .shrt.; did you mean short'),
    ('test_rewards.zzzzzz', "'test_rewards' has no 'zzzzzz'$"),
    ('test_rewards.NOT_A_FUNCTION', 'is a int: give a function'),
    ('test_rewards.without_a_batch', 'cannot be called with a batch alone'),
    ('test_rewards.of_two', r'batch alone \(missing a required argument'),
  ],
)
def test_a_path_that_names_nothing(path, message):
  with pytest.raises(rewards.RewardError, match=message) as error:
    rewards.resolve(path)
  assert '\n' not in str(error.value)


def without_a_batch():
  return []


def of_two(batch, other):
  return [batch, other]


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
  """Whatever it raises is named, in one line."""
  (tmp_path / 'falls_over.py').write_text('raise KeyError("a\\nb")\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(rewards.RewardError, match=r'\(KeyError: ') as error:
    rewards.resolve('falls_over.f')
  assert '\n' not in str(error.value)


def test_a_script_that_leaves_when_imported(tmp_path, monkeypatch):
  """As one that parses its own command line does."""
  (tmp_path / 'leaves.py').write_text('import sys\nsys.exit(2)\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(rewards.RewardError, match=r'imported \(SystemExit: 2\)'):
    rewards.resolve('leaves.f')


@pytest.mark.parametrize(
  'entries, message',
  [
    ('test_rewards.short', 'must be a tuple'),
    (('test_rewards.short', 0.1), 'needs a comma behind it'),
    ((('test_rewards.short',),), r'must be \(path, weight\)'),
    ((('test_rewards.short', 'x'),), "weight 'x'"),
    ((('test_rewards.short', 0.0),), 'weight 0.0: allowed is'),
    ((('test_rewards.short', math.inf),), 'weight inf'),
    ((('test_rewards.short', math.nan),), 'weight nan'),
    ((('test_rewards.short', 10**400),), 'weight 1000'),
    (
      (('test_rewards.short', 1.0), ('test_rewards:short', 2.0)),
      'is given twice',
    ),
  ],
)
def test_entries_of_another_form(entries, message):
  with pytest.raises(rewards.RewardError, match=message):
    rewards.parse(entries)


def test_names_are_short_unless_two_are_equal(tmp_path, monkeypatch):
  (tmp_path / 'other_rewards.py').write_text('def short(batch):\n  pass\n')
  monkeypatch.syspath_prepend(tmp_path)
  found = rewards.parse(
    [['test_rewards:short', 1], ['other_rewards.short', 2], ['json.dumps', 3]]
  )
  assert [r.name for r in found] == [
    'test_rewards.short',
    'other_rewards.short',
    'dumps',
  ]
  assert [r.weight for r in found] == [1.0, 2.0, 3.0]


# ---- the batch that a function gets

# <bos> 1 2 3 = 6 <think> | 1 2 + 3 3 + 6 yes ; </think> 1 2 + <eos>
THOUGHT = '1 2 + 3 3 + 6 yes ;'
PROMPT = '<bos> 1 2 3 = 6 <think>'


def traces_of(*responses, forced=None):
  """A rollout of response texts behind PROMPT, numpy; thoughts by marker."""
  start = tokenizer.encode(PROMPT)
  rows = [start + tokenizer.encode(text) for text in responses]
  width = max(map(len, rows))
  tokens = np.asarray([r + [0] * (width - len(r)) for r in rows], np.int32)
  real = np.asarray([[1] * len(r) + [0] * (width - len(r)) for r in rows], bool)
  stop = [
    len(start)
    + next(
      i for i, word in enumerate([*text.split(), '</think>'])
      if word in ('</think>', '<eos>')
    )
    for text in responses
  ]  # fmt: skip
  columns = np.arange(width)
  thinking = (columns >= len(start)) & (columns < np.asarray(stop)[:, None])
  zeros = np.zeros(tokens.shape, np.float32)
  size = len(rows)
  traces = Rollout(
    tokens=tokens,
    token_mask=real,
    mask=real & (columns >= len(start)),
    thinking_mask=thinking,
    behavior_log_probs=zeros,
    raw_log_probs=zeros,
    truncated=np.zeros(size, bool),
    forced=np.zeros(size, bool) if forced is None else np.asarray(forced),
  )
  measured = Measured(
    rewards=np.arange(size, dtype=np.float32),
    success=np.zeros((size, 2), np.float32),
    episodes=Episodes(np.full((size, 2), 6), np.zeros(size, np.int32)),
    stop_index=np.asarray(stop, np.int32),
    answered=np.ones(size, bool),
  )
  return traces, measured


def test_texts_of_a_batch():
  traces, measured = traces_of(
    f'{THOUGHT} </think> 1 2 + 3 + <eos>', '</think> 1 <eos>', '1 2 <eos>', '1'
  )
  problems = {
    'prompts': traces.tokens[:2, :7],
    'target': np.asarray([6, 9], np.int32),
  }
  batch = rewards.text_batch(
    problems, traces, measured, task=TASK, group_size=2
  )
  assert batch['prompts'] == (PROMPT,) * 4
  assert batch['responses'] == (
    f'{THOUGHT} </think> 1 2 + 3 +',
    '</think> 1',
    '1 2',
    '1',
  )
  assert batch['thoughts'] == (THOUGHT, '', '1 2', '1')
  assert batch['answers'] == ('1 2 + 3 +', '1', '', '')
  assert batch['tokens'].tolist() == [9, 0, 2, 1]
  assert batch['outcome'].tolist() == [0, 1, 2, 3]
  assert batch['problem']['target'].tolist() == [6, 6, 9, 9]
  assert batch['problem']['prompts'].shape == (4, 7)
  assert batch['group_size'] == 2
  with pytest.raises(ValueError, match='read-only'):
    batch['outcome'][0] = 9


# ---- the sum


def batch_of(outcome):
  return {
    'outcome': np.asarray(outcome, np.float32),
    'tokens': np.asarray([27] * len(outcome)),
    'prompts': ('',) * len(outcome),
  }


def reward(fn, weight=1.0, name='fn'):
  return rewards.Reward(f'module.{name}', name, weight, fn)


def test_the_sum_by_hand():
  # .5·1 + 2·1 - 1·3 = -.5; .5·0 + 2·.25 - 1·4 = -3.5.
  first = reward(lambda b: [1, 0.25], 2.0, 'first')
  second = reward(lambda b: np.asarray([3.0, 4.0]), -1.0, 'second')
  total, valid, extra, metrics = rewards.combine(
    [first, second], batch_of([1, 0]), outcome_weight=0.5
  )
  np.testing.assert_allclose(total, [-0.5, -3.5])
  np.testing.assert_allclose(extra, [-1, -3.5])
  assert valid.all()
  assert total.dtype == extra.dtype == np.float32
  assert metrics == {
    'reward/first_mean': 0.625,
    'reward/second_mean': 3.5,
    'reward/outcome_mean': 0.5,
    'reward/none_share': 0.0,
  }


NO_NUMBER = [None, math.nan, math.inf, -math.inf, 10**400, 1e300]


@pytest.mark.parametrize('value', NO_NUMBER, ids=repr)
def test_a_value_that_is_no_number_masks_its_row_alone(value):
  """1e300 is finite, and infinite once it is f32."""
  total, valid, extra, metrics = rewards.combine(
    [reward(lambda b: [1.0, value, 2.0]), reward(lambda b: [5, 5, 5], 1, 'x')],
    batch_of([0, 1, 1]),
  )
  assert valid.tolist() == [True, False, True]
  # Finite, so that no arithmetic behind it can spread it.
  assert total.tolist() == [6, 1, 8]
  assert extra.tolist() == [6, 0, 7]
  assert metrics['reward/none_share'] == pytest.approx(1 / 3)
  assert metrics['reward/x_mean'] == 5
  assert metrics['reward/fn_mean'] == 1.5


def test_all_without_a_number():
  _, valid, _, metrics = rewards.combine([reward(never)], batch_of([0, 1]))
  assert not valid.any()
  assert metrics['reward/none_share'] == 1
  assert 'reward/fn_mean' not in metrics


@pytest.mark.parametrize(
  'values',
  [
    [True, np.bool_(False)],
    [np.float16(1), np.int64(0)],
    (jnp.float32(1), jnp.int32(0)),
    jnp.asarray([1.0, 0.0]),
    np.asarray([1, 0]),
    np.asarray([1.0, 0.0], object),
  ],
  ids=lambda v: type(v).__name__,
)
def test_numbers_of_any_kind(values):
  total, valid, _, _ = rewards.combine(
    [reward(lambda b: values)], batch_of([0, 0])
  )
  assert total.tolist() == [1, 0]
  assert valid.all()


@pytest.mark.parametrize(
  'values, message',
  [
    ([1.0], 'returned 1 values for 2 traces: give one a trace'),
    ([1, 2, 3], 'returned 3 values for 2 traces'),
    (None, 'returned a NoneType: give a list of 2 values'),
    (1.0, 'returned a float'),
    (np.float64(1), 'returned a float64'),
    (np.asarray(1.0), 'returned a ndarray'),
    ('ab', 'returned a str'),
    ({0: 1, 1: 2}, 'returned a dict'),
    ({1, 2}, 'returned a set'),
    (iter([1, 2]), 'returned a list_iterator'),
    (['1.0', 1], "returned '1.0' of type str for trace 0: give a number"),
    ([1, 1j], 'of type complex for trace 1'),
    ([1, [2]], 'of type list for trace 1'),
    (np.ones((2, 1)), 'of type ndarray for trace 0'),
  ],
  ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
@pytest.mark.parametrize('errors', rewards.ERRORS)
def test_values_of_another_form(values, message, errors):
  """A wrong function is not a bad reward: neither policy lets it pass."""
  with pytest.raises(rewards.RewardError, match=message) as error:
    rewards.combine([reward(lambda b: values)], batch_of([0, 0]), errors=errors)
  assert str(error.value).startswith('reward module.fn returned ')
  assert '\n' not in str(error.value)


def test_a_function_that_raises():
  with pytest.raises(rewards.RewardError) as error:
    rewards.combine([reward(broken)], batch_of([0]))
  line = str(error.value)
  assert line.startswith("reward module.fn raised KeyError: 'no such key' (")
  assert '(test_rewards.py, line ' in line
  assert "reward_errors='mask'" in line
  with pytest.warns(RuntimeWarning, match='no trace of this batch has a'):
    _, valid, _, metrics = rewards.combine(
      [reward(broken)], batch_of([0, 1]), errors='mask'
    )
  assert not valid.any()
  assert metrics['reward/none_share'] == 1


def test_a_function_that_leaves():
  with pytest.raises(rewards.RewardError, match='raised SystemExit: 3'):
    rewards.combine([reward(lambda b: sys.exit(3))], batch_of([0]))


def test_weights_that_cancel_leave_the_outcome():
  """Nothing is divided by their sum."""
  first = reward(lambda b: [3.0, None, 2.0], 1.0, 'first')
  second = reward(lambda b: [3.0, 1.0, 1.0], -1.0, 'second')
  total, valid, extra, _ = rewards.combine([first, second], batch_of([1, 0, 0]))
  assert total.tolist() == [1, 0, 1]
  assert extra.tolist() == [0, 0, 1]
  assert valid.tolist() == [True, False, True]


def test_a_sum_that_f32_cannot_hold_masks_its_row():
  """Finite parts: 1e38·100 is no f32, and 1e38 - 1e38 is 0."""
  both = [reward(lambda b: [1e38, 1e38], 100.0)]
  both.append(reward(lambda b: [1e38, 0.0], -100.0, 'x'))
  total, valid, extra, _ = rewards.combine(both, batch_of([1, 1]))
  assert valid.tolist() == [True, False]
  assert total.tolist() == [1, 1]
  assert extra.tolist() == [0, 0]


def test_a_function_cannot_change_what_the_next_one_sees():
  def greedy(batch):
    batch['outcome'] = None
    batch.clear()
    return [1.0, 1.0]

  total, _, _, _ = rewards.combine(
    [reward(greedy), reward(lambda b: b['outcome'], 1, 'x')], batch_of([0, 1])
  )
  assert total.tolist() == [1, 3]


# ---- into the update


def test_a_trace_without_a_reward_is_out_of_the_mask():
  traces, measured = traces_of('1 <eos>', '1 <eos>')
  ones = lambda measured, length: jnp.ones((2, length))
  plain = steps.training_batch(traces, measured, ones)
  assert plain['mask'] is traces.mask
  bad = jax.tree.map(lambda x: x, measured)
  bad = type(bad)(**vars(bad) | {'valid': np.asarray([True, False])})
  found = steps.training_batch(traces, bad, ones)
  assert found['mask'].sum(1).tolist() == [2, 0]


def run_config(small, name='grpo', entries=(('test_rewards.short', 1.0),), **k):
  return small.config(name, rewards=entries, **k)


def test_a_run_learns_from_the_sum(small, tmp_path):
  """Rewards, means and shares of two steps; the samples show None."""
  entries = (('test_rewards:short', 0.5), ('test_rewards.every_third', 1.0))
  config = run_config(small, entries=entries, total_steps=2, outcome_weight=2.0)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    # 16 traces, of which 0, 3, 6, ... have a number.
    assert row['reward/none_share'] == 10 / 16
    assert row['reward/every_third_mean'] == 1
    assert -1 <= row['reward/short_mean'] <= 0
    assert row['time/reward_s'] > 0
    # Once a shape, as without rewards.
    assert row['compile/count'] == 4 + 2 * (row['step'] == 2)
  lines = (tmp_path / 'run/samples/step_000002.jsonl').read_text().splitlines()
  kept = [json.loads(line)['reward'] for line in lines]
  assert [r is None for r in kept] == [i % 3 > 0 for i in range(16)]
  outcome = result.rows[1]['reward/outcome_mean']
  if outcome == 0:  # an untrained policy
    mean = np.mean([r for r in kept if r is not None])
    assert result.rows[1]['rollout/reward_mean'] == pytest.approx(mean)
    assert mean < 1


OTHERS = {
  'ppo': ('ppo', {'critic__value_j_coef': 0.0}),
  'star': ('star', {'outcome_weight': 0.0}),
  'further prompts': ('grpo', {'rollout__dynamic_sampling__max_rounds': 2}),
}


@pytest.mark.full
@pytest.mark.parametrize('variant', OTHERS)
def test_algorithms_that_take_rewards(variant, small, tmp_path):
  """Their two steps are finite and move the policy; the shares are the same
  over every round of further prompts."""
  name, changes = OTHERS[variant]
  entries = (('test_rewards.every_third', 1.0),)
  config = run_config(small, name, entries=entries, total_steps=2, **changes)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['reward/none_share'] == 10 / 16
    assert row['reward/every_third_mean'] == 1
  assert result.rows[0]['optimizer/grad_norm'] > 0 or variant != 'ppo'
  if variant == 'star':  # those of worth 1 are imitated
    assert result.rows[0]['policy/kept_share'] == 6 / 16
    assert result.rows[0]['optimizer/grad_norm'] > 0


def test_mrt_credits_a_reward_on_the_thought(small, tmp_path):
  config = run_config(small, 'mrt', total_steps=1)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert result.rows[0]['reward/none_share'] == 0
  assert result.rows[0]['optimizer/grad_norm'] > 0


@pytest.mark.soak
@pytest.mark.full
@pytest.mark.parametrize('kind', ['pmap'])  # all kinds: tests/test_sharding.py
def test_on_devices_as_on_one(kind, run_python, small_data, tmp_path):
  """The same rewards, masked rows included, move the same parameters."""
  code = """
import sys
from small_runs import make_config, run, quick
import pathlib, json
kind, data, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
rows = {}
with quick(data):
  for k in ('none', kind):
    entries = (('test_rewards.short', 1.0), ('test_rewards.every_third', 1.0))
    config = make_config(
      'mrt', parallel__kind=k, total_steps=2, rewards=entries,
      rollout__num_prompts=8,
    )
    result = run(config, folder / k)
    assert result.code == 0, result.err
    rows[k] = result.rows
print(json.dumps([rows['none'], rows[kind]]))
"""
  out = run_python(
    code,
    kind,
    small_data,
    tmp_path,
    devices=2,
    timeout=300,
    env={'PYTHONPATH': ':'.join(path for path in sys.path if path)},
  )
  one, many = json.loads(out.splitlines()[-1])
  for a, b in zip(one, many, strict=True):
    for name, value in a.items():
      if name.startswith(('reward/', 'rollout/', 'loss/', 'optimizer/')):
        assert b[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_run_of_a_function_that_raises(small, tmp_path):
  config = run_config(small, entries=(('test_rewards.broken', 1.0),))
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_ERROR
  line = result.err.splitlines()[-1]
  assert line.startswith('error: reward test_rewards.broken raised KeyError')
  assert 'Traceback' not in result.err
  assert workdir.read_config(tmp_path / 'run') is None


def test_a_run_in_which_no_trace_has_a_reward(small, tmp_path):
  """Nothing moves, nothing breaks, and it is said."""
  config = run_config(
    small,
    entries=(('test_rewards.never', 1.0),),
    total_steps=3,
    eval__every=3,
  )
  before = setup_run.initial_params(config)
  result = small.run(config, tmp_path / 'run')
  assert result.code == signals.EXIT_OK, result.err
  assert 'no trace had a reward' in result.err
  config = small.config('grpo', init_from=f'{tmp_path / "run"}@last')
  assert small.equal(setup_run.initial_params(config), before)


@pytest.mark.parametrize(
  'name, changes, parts',
  [
    ('mrt', {'rewards': (('no_such.f', 1.0),)}, ("'no_such.f'", 'PYTHONPATH')),
    ('mrt', {'rewards': ('test_rewards.short', 1.0)}, ('needs a comma',)),
    ('mrt', {'outcome_weight': 0.5}, ('outcome_weight=0.5', 'empty')),
    ('mrt', {'reward_errors': 'mask'}, ("'mask'", 'empty')),
    ('mrt', {'reward_errors': 'x'}, ('reward_errors', "'raise', 'mask'")),
    (
      'mrt',
      {'rewards': (('test_rewards.short', 1.0),), 'outcome_weight': 0.5},
      ("name='mrt'", 'leave it at 1.0'),
    ),
    (
      'mrt',
      {'rewards': (('test_rewards.short', 1.0),), 'rollout__group_size': 1},
      ('rollout.group_size=1', 'at least 2'),
    ),
    (
      'mrt',
      {
        'rewards': (('test_rewards.short', 1.0),),
        'loss__pathwise__boundaries': 'all',
        'loss__pathwise__alone': True,
      },
      ('loss.pathwise.alone=True', 'leave config.rewards empty'),
    ),
    # Right with a small penalty is .95, wrong with a bonus 1.2: the sum is no
    # measure of what to imitate.
    (
      'star',
      {'rewards': (('test_rewards.short', 1.0),)},
      ("outcome_weight=1.0 with algorithm.name='star'", 'set it to 0'),
    ),
    (
      'brpo',
      {'rewards': (('test_rewards.short', 1.0),)},
      ("name='brpo'", 'outcome, mrt, ppo, star'),
    ),
    (
      'mrt_rl',
      {'rewards': (('test_rewards.short', 1.0),)},
      ("name='prefix'", 'leave config.rewards empty'),
    ),
    (
      'dapo',
      {'rewards': (('test_rewards.short', 1.0),)},
      ("shaping='overlong'", "set it to 'none'"),
    ),
    (
      'ppo',
      {'rewards': (('test_rewards.short', 1.0),)},
      ('critic.value_j_coef=0.5', 'value_j_coef to 0'),
    ),
    (
      'grpo',
      {
        'rewards': (('test_rewards.short', 1.0),),
        'outcome_weight': math.nan,
      },
      ('outcome_weight=nan', 'finite'),
    ),
    (
      'sft',
      {'rewards': (('test_rewards.short', 1.0),)},
      ("name='sft'", 'leave config.rewards empty'),
    ),
  ],
)
def test_a_config_that_is_refused(name, changes, parts, small, tmp_path):
  result = small.run(small.config(name, **changes), tmp_path / 'run')
  assert result.code == signals.EXIT_ERROR
  (line,) = result.err.splitlines()
  assert all(part in line for part in parts), line
  assert not (tmp_path / 'run').exists()


def test_processes_ask_about_their_own_traces():
  """Each sees half of the prompts, and all have all rewards."""
  traces, measured = traces_of(
    f'{THOUGHT} </think> 1 <eos>', '</think> 1 <eos>', '1 2 <eos>', '1'
  )
  problems = {'prompts': traces.tokens[:2, :7]}
  seen, asked = [], []

  def by_length(batch):
    seen.append(batch['responses'])
    # The last has none, in one process alone.
    return [len(text) if text != '1' else None for text in batch['responses']]

  def fn_of(own, gather):
    return rewards.make_reward_fn(
      [reward(by_length)],
      task=TASK,
      group_size=2,
      get=lambda tree: tree,
      own=own,
      gather=gather,
    )

  def record(values, rows, size):
    assert (len(rows), size) == (2, 4)
    asked.append(values)
    return np.tile(values, 2)

  given = problems, traces, measured
  whole, metrics = fn_of(slice(None), lambda values, *_: values)(*given)
  for own in (slice(0, 1), np.asarray([1])):
    fn_of(own, record)(*given)
  assert seen[1] + seen[2] == seen[0]
  assert len(seen[1]) == 2
  every = lambda *_: np.concatenate(asked, 1)
  found, same = fn_of(slice(0, 1), every)(*given)
  assert same == metrics
  for name in ('rewards', 'valid', 'extra'):
    np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_without_rewards_there_is_no_hook(small):
  config = small.config('mrt')
  assert setup_own.make_reward_fn(config, TASK, None) is None
