"""Tests of meta_rl.listed_answers, through `prover.exact` where it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import listed_answers, models, prover
from meta_rl.aot import hlo
from meta_rl.scoring import score

EOS = 2
CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)


def test_a_queue_by_hand():
  # Trees of 5, 0 and 8 nodes at 3, 2 and 2 boundaries, rows of 16 tokens: 3 of
  # the first fit a row and 2 of the last.
  queue = listed_answers.make_queue(
    jnp.array([5, 0, 8]),
    jnp.array([4, 2, 2]),
    jnp.array([[1, 3, 9, 9], [1, 2, 9, 9], [0, 5, 9, 9]]),
    tokens=16,
    most=8,
  )
  assert int(queue.total) == 3
  assert queue.per.tolist() == [3, 4, 2]
  # By the last column that each reads: 5 of the last tree, then both of the
  # first, whose boundaries 0 to 2 and 3 end at 9.
  assert queue.tree[:3].tolist() == [2, 0, 0]
  assert queue.first[:3].tolist() == [0, 0, 3]
  assert queue.last[:3].tolist() == [5, 9, 9]
  assert queue.place[:3].tolist() == [2, 0, 1]
  assert queue.start.tolist() == [0, 2, 2]


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


@pytest.fixture(scope='module')
def given():
  """6 traces of 3 prompts, with answers that share what they begin with."""
  rng = np.random.default_rng(3)
  prompts = np.repeat(rng.integers(3, 32, (3, 3)), 2, axis=0)
  prompts[4, 0] = 31  # of one group, but not of one prompt
  tokens = np.concatenate([prompts, rng.integers(3, 32, (6, 9))], 1)
  token_mask = np.ones(tokens.shape, bool)
  token_mask[2:4, 0] = False  # padding, on the left and on the right
  token_mask[3, 9:] = False
  ends = np.array(
    [
      [2, 4, 7, 11],
      [2, 11, 11, 11],
      [2, 3, 4, 5],
      [2, 2, 2, 2],  # no episode
      [2, 5, 8, 8],
      [2, 3, 3, 10],  # one that repeats in between
    ]
  )
  lists = [
    [[8, 5, 7, EOS], [8, 5, EOS], [8, 6, EOS], [5, 8, EOS], [EOS]],
    [[9, 9, 9, EOS], [], [9, 9, 8, EOS], [], []],
    [[], [], [], [], []],
  ]
  answers = np.zeros((3, 5, 4), np.int32)
  mask = np.zeros((3, 5, 4), bool)
  for p, rows in enumerate(lists):
    for s, answer in enumerate(rows):
      answers[p, s, : len(answer)] = answer
      mask[p, s, : len(answer)] = True
  twice = lambda x: np.repeat(x, 2, axis=0)
  answers, mask = twice(answers[[0, 1, 0]]), twice(mask[[0, 1, 0]])
  mask[5] = False  # of the last trace none is accepted
  return tokens.astype(np.int32), token_mask, ends, answers, mask


def brute(params, given, stop):
  """J f64[B,K+1], each [prefix, stop, answer] by itself."""
  tokens, token_mask, ends, answers, mask = given
  sequences, owners = [], []
  for b, j, s in np.ndindex(*ends.shape, answers.shape[1]):
    prefix = tokens[b, : ends[b, j] + 1][token_mask[b, : ends[b, j] + 1]]
    answer = answers[b, s][mask[b, s]]
    if len(answer):
      sequences.append([*prefix, *stop, *answer])
      owners.append((b, j, len(answer)))
  width = max(map(len, sequences))
  padded = np.array([s + [0] * (width - len(s)) for s in sequences], np.int32)
  valid = np.arange(width) < np.array([len(s) for s in sequences])[:, None]
  log_probs = np.asarray(score(MODEL, params, padded, valid)[0], np.float64)
  found = np.zeros(ends.shape)
  for row, (b, j, length) in enumerate(owners):
    found[b, j] += np.exp(log_probs[row, : valid[row].sum()][-length:].sum())
  return found


def exact(params, given, stop, **options):
  run = functools.partial(prover.exact, MODEL, stop_ids=stop, **options)
  return np.asarray(jax.jit(run)(params, *given))


@pytest.mark.parametrize('stop', [(4,), (4, 9, 11)], ids=['one', 'three'])
@pytest.mark.parametrize(
  'options',
  [
    {},
    # Several trees a trace, rows of one boundary, blocks that do not divide.
    {'block_pairs': 2, 'block_rows': 4, 'cache_parts': 3},
    {'block_pairs': 1, 'block_rows': 5, 'group_size': 2},
    {'block_pairs': 16, 'block_rows': 2, 'cache_parts': 1, 'group_size': 6},
  ],
  ids=['default', 'small', 'single', 'large'],
)
def test_a_tree_gives_what_each_answer_by_itself_does(
  params, given, stop, options
):
  expected = brute(params, given, stop)
  found = exact(params, given, stop, **options)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-9)
  assert (expected[[0, 1, 2, 4]] > 1e-7).any(1).all()
  assert not found[5].any()


@pytest.mark.parametrize('parts', [1, 3])
def test_a_plan_counts_the_blocks_of_a_queue_once(params, given, parts):
  # 6 traces of 4 boundaries, rows of 1: 24 items, 5 blocks of 5.
  options = {'block_pairs': 1, 'block_rows': 5, 'cache_parts': parts}
  tokens, token_mask, ends, answers, mask = given
  args = params, tokens, token_mask, ends, answers[:, :1], mask[:, :1]
  run = functools.partial(prover.exact, MODEL, stop_ids=(4,), **options)
  lowered = jax.jit(run).lower(*args)
  module = lowered.compiler_ir('hlo').as_hlo_module()
  program = hlo.parse(module.to_string())
  trips = [
    program.trips(each)
    for each in program.computations[program.entry].values()
    if each.opcode == 'while'
  ]
  assert sorted(trips) == [1] * (parts - 1) + [5]


def test_a_group_shares_its_first_boundary(params, given):
  tokens, token_mask, ends, answers, mask = given
  alone = exact(params, given, (4,))
  # Another token in the prompt of the group's second trace: nothing is shared.
  changed = tokens.copy()
  changed[1, 1] = 30
  changed = changed, token_mask, ends, answers, mask
  of_other = exact(params, changed, (4,))
  assert abs(of_other[1, 0] - alone[1, 0]) > 1e-6
  shared = exact(params, given, (4,), group_size=2)
  assert shared[1, 0] == shared[0, 0]
  np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-9)
  shared = exact(params, changed, (4,), group_size=2)
  np.testing.assert_allclose(shared, of_other, rtol=1e-5, atol=1e-9)


def test_equal_answers_count_each(params, given):
  tokens, token_mask, ends, answers, mask = (x[:1] for x in given)
  one, two = mask.copy(), mask.copy()
  one[:, 1:], two[:, 2:] = False, False
  answers = answers.copy()
  answers[:, 1] = answers[:, 0]
  two[:, 1] = two[:, 0]
  once = exact(params, (tokens, token_mask, ends, answers, one), (4,))
  twice = exact(params, (tokens, token_mask, ends, answers, two), (4,))
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_a_group_that_does_not_divide_the_traces(params, given):
  with pytest.raises(ValueError, match='group_size=4 does not divide 6 traces'):
    exact(params, given, (4,), group_size=4)
