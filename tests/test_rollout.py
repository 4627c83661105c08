"""Tests of meta_rl.rollout."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import (
  EOS,
  MARKER,
  check_response,
  follow,
  lively_params,
  tiny,
)

from meta_rl import models, sampling, stops
from meta_rl.rollout import cache_rooms, generate
from meta_rl.scoring import positions_of, score

# --- what is written, by a model that follows a script ---

# Row r wants SCRIPT[r, t] as its response token t, whatever it has read.
SCRIPT = np.array(
  [
    [10, 11, 12, 13, 14, 15, 16, 17],  # 0 never ends thinking
    [10, 4, 20, 2, 1, 1, 1, 1],  # 1 ends it by itself, and answers
    [10, 11, 12, 4, 13, 2, 1, 1],  # 2 wants to end it right at the budget
    [2, 1, 1, 1, 1, 1, 1, 1],  # 3 EOS first
    [10, 2, 1, 1, 1, 1, 1, 1],  # 4 EOS in the thought
    [10, 11, 4, 20, 21, 22, 23, 2],  # 5 EOS in the last column
    [10, 4, 20, 21, 22, 23, 24, 25],  # 6 an answer without EOS
    [4, 4, 10, 2, 1, 1, 1, 1],  # 7 no thought, and a second marker
  ]
)
# With a budget of 3 thinking tokens; a forced token is written over the wish.
BUDGET_3 = {
  'tokens': [
    [10, 11, 12, 4, 9, 15, 16, 17],
    [10, 4, 20, 2, 0, 0, 0, 0],
    [10, 11, 12, 4, 9, 2, 0, 0],
    [2, 0, 0, 0, 0, 0, 0, 0],
    [10, 2, 0, 0, 0, 0, 0, 0],
    [10, 11, 4, 20, 21, 22, 23, 2],
    [10, 4, 20, 21, 22, 23, 24, 25],
    [4, 4, 10, 2, 0, 0, 0, 0],
  ],
  'token_mask': [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 0, 0],
  ],
  'mask': [
    [1, 1, 1, 0, 0, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 1, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0, 0, 0],
  ],
  'thinking_mask': [
    [1, 1, 1, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
  ],
  'truncated': [1, 0, 0, 0, 0, 0, 1, 0],
  'forced': [1, 0, 1, 0, 0, 0, 0, 0],
}
ROWS = np.arange(8, dtype=np.int32)[:, None]


@pytest.fixture(scope='module')
def scripted():
  """`follow`, jitted, with the budget of each row an argument."""
  return jax.jit(lambda budget: follow(SCRIPT, budget))


def test_forced_termination_table(scripted):
  rollout = scripted(jnp.full(8, 3))
  check_response(rollout, BUDGET_3)
  # The prompt's column: real, no action, no thought.
  np.testing.assert_array_equal(rollout.tokens[:, 0], ROWS[:, 0])
  assert rollout.token_mask[:, 0].all()
  assert not rollout.mask[:, 0].any()
  assert not rollout.thinking_mask[:, 0].any()


def test_a_budget_of_each_row(scripted):
  rollout = scripted(jnp.array([0, 0, 2, 0, 1, 2, 5, 1]))
  check_response(
    rollout,
    {
      'tokens': [
        [4, 9, 12, 13, 14, 15, 16, 17],  # budget 0: forced at once
        [4, 9, 20, 2, 0, 0, 0, 0],
        [10, 11, 4, 9, 13, 2, 0, 0],
        [4, 9, 1, 1, 1, 1, 1, 1],  # EOS was wanted first, forced over
        [10, 4, 9, 1, 1, 1, 1, 1],
        [10, 11, 4, 9, 21, 22, 23, 2],
        [10, 4, 20, 21, 22, 23, 24, 25],
        [4, 4, 10, 2, 0, 0, 0, 0],  # ended by itself below its budget
      ],
      'forced': [1, 1, 1, 1, 1, 1, 0, 0],
      'truncated': [1, 0, 0, 1, 1, 0, 1, 0],
    },
  )
  np.testing.assert_array_equal(
    rollout.thinking_mask.sum(1), [0, 0, 2, 0, 1, 2, 1, 0]
  )


def test_an_int_budget_and_the_marker_as_default_stop():
  rollout, trace = follow(
    SCRIPT[:3], 3, stop_ids=None, return_cache=True, pad_id=30
  )
  check_response(
    rollout,
    {
      'tokens': [
        [10, 11, 12, 4, 14, 15, 16, 17],
        [10, 4, 20, 2, 30, 30, 30, 30],
        [10, 11, 12, 4, 13, 2, 30, 30],
      ],
      'mask': [
        [1, 1, 1, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0],
      ],
    },
  )
  # Slot t holds column t, all but the last one: 1 + 8 - 1.
  assert trace.used == 8
  np.testing.assert_array_equal(
    trace.cache['tokens'][0, :8], rollout.tokens[0, :8]
  )


def test_without_a_budget_the_cache_holds_a_last_thought_too():
  rollout, trace = follow(
    SCRIPT[:1], None, stop_ids=None, think_end_id=None, return_cache=True
  )
  assert rollout.thinking_mask[0, 1:].all()
  assert rollout.truncated[0]
  assert not rollout.forced[0]
  assert trace.used == 9
  np.testing.assert_array_equal(trace.cache['tokens'][0], rollout.tokens[0])


def test_decoding_stops_when_all_rows_are_done():
  # Row 1 is done at step 4; check_every=3 looks after 1 + 3 steps.
  script = np.stack([SCRIPT[3], SCRIPT[1]])
  _, trace = follow(script, None, stop_ids=None, return_cache=True)
  assert trace.used == 1 + 4


# --- a given prefix ---

PREFIX = np.array(
  [
    [30, 31, 1],
    [30, 31, 1],
    [30, 31, 29],
    [1, 1, 1],
    [30, MARKER, 29],
    [30, EOS, 29],
    [30, 31, 29],
    [30, 1, 1],
  ],
  np.int32,
)


def test_forced_prefix_table():
  rollout, trace = jax.jit(
    lambda budget, length: follow(
      SCRIPT,
      budget,
      prefix=jnp.asarray(PREFIX),
      prefix_length=length,
      return_cache=True,
    )
  )(jnp.array([4, 2, 0, 0, 3, 3, 3, 2]), jnp.array([2, 2, 3, 0, 3, 2, 3, 1]))
  check_response(
    rollout,
    {
      'tokens': [
        [30, 31, 12, 13, 4, 9, 16, 17],  # Continue: two more thoughts
        [30, 31, 4, 9, 1, 1, 1, 1],  # Direct: the budget is the prefix
        [30, 31, 29, 4, 9, 2, 0, 0],  # Direct: a budget below it
        [4, 9, 1, 1, 1, 1, 1, 1],  # no prefix
        [30, 4, 29, 1, 1, 1, 1, 1],  # a marker in it: the rest is answer
        [30, 2, 0, 0, 0, 0, 0, 0],  # an EOS in it
        [30, 31, 29, 4, 9, 23, 24, 25],
        [30, 4, 10, 2, 0, 0, 0, 0],  # ended by itself right behind it
      ],
      'mask': [
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 1, 1, 1, 0, 0, 0, 0],
      ],
      'thinking_mask': [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
      ],
      'forced': [1, 1, 1, 1, 0, 0, 1, 0],
      'truncated': [1, 1, 0, 1, 1, 0, 1, 0],
    },
  )
  # Slot t holds column t, given or sampled.
  np.testing.assert_array_equal(trace.cache['tokens'][0], rollout.tokens[0])


def test_an_int_budget_bounds_each_prefix():
  rollout, trace = follow(
    SCRIPT[:2],
    1,
    prefix=jnp.asarray(PREFIX[:2]),
    prefix_length=jnp.array([2, 1]),
    return_cache=True,
  )
  check_response(
    rollout,
    {'tokens': [[30, 31, 4, 9, 14, 15, 16, 17], [30, 4, 9, 2, 0, 0, 0, 0]]},
  )
  # As without a prefix, the last column is no thought and is not in the cache.
  assert trace.used == 8


def test_a_prefix_of_all_columns_is_in_the_cache():
  whole = jnp.asarray(SCRIPT[:1, ::-1].copy())
  rollout, trace = follow(
    SCRIPT[:1],
    1,
    prefix=whole,
    prefix_length=jnp.array([8]),
    return_cache=True,
  )
  check_response(rollout, {'tokens': whole, 'thinking_mask': [[1] * 8]})
  # The last column is a thought here: a prover may start from it.
  assert trace.used == 9
  np.testing.assert_array_equal(trace.cache['tokens'][0], rollout.tokens[0])


# --- samples and their log-probs, by a transformer ---

CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
PROMPTS = np.array(
  [[0, 0, 5, 6], [0, 7, 8, 9], [3, 3, 11, 12], [5, 6, 7, 8]], np.int32
)
PROMPT_MASK = PROMPTS > 0
OPTIONS = {'max_new_tokens': 6, 'eos_id': EOS, 'temperature': 0.7}
TOP = {'temperature': 0.9, 'top_k': 6, 'top_p': 0.8}
KEY = jax.random.key(11)


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


@functools.cache
def jitted(**options):
  settings = OPTIONS | options

  def run(params, prompts, mask, key, row_offset):
    return generate(
      MODEL, params, prompts, mask, key, row_offset=row_offset, **settings
    )

  return jax.jit(run)


def sample(params, prompts=PROMPTS, key=KEY, offset=0, **options):
  run = jitted(**options)
  return run(params, prompts, prompts > 0, key, offset)


def assert_same(one, other):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    one,
    other,
  )


@pytest.mark.parametrize('buckets', [(1,), (2, 5), (3, 4, 99), (99,)])
def test_a_cache_that_grows_gives_the_same_traces(params, buckets):
  assert_same(
    sample(params, group_size=2, cache_buckets=buckets),
    sample(params, group_size=2),
  )
  one, cache = sample(
    params, group_size=2, cache_buckets=buckets, return_cache=True
  )
  other, whole = sample(params, group_size=2, return_cache=True)
  assert_same(one, other)
  assert cache.used == whole.used
  assert_same(cache.cache, whole.cache)


def test_a_step_attends_to_the_slots_of_its_bucket_alone(params):
  lengths = []

  def apply_fn(params, tokens, positions, cache, mask=None):
    if tokens.shape[1] == 1:
      lengths.append(cache['valid'].shape[1])
    return MODEL.apply_fn(params, tokens, positions, cache, mask)

  model = dataclasses.replace(MODEL, apply_fn=apply_fn)
  jax.eval_shape(
    lambda p: generate(
      model, p, PROMPTS, PROMPT_MASK, KEY, cache_buckets=(1, 4), **OPTIONS
    ),
    params,
  )
  prompt = PROMPTS.shape[1]
  assert list(dict.fromkeys(lengths)) == [prompt + 1, prompt + 4, prompt + 6]


def test_the_rooms_of_a_cache_end_with_all_tokens():
  assert cache_rooms((4, 8, 16, 32), 12) == (4, 8, 12)
  assert cache_rooms((), 12) == (12,)
  assert cache_rooms((12,), 12) == (12,)


def test_group_members_are_adjacent_and_differ(params):
  rollout = sample(params, group_size=2)
  np.testing.assert_array_equal(
    rollout.tokens[:, :4], np.repeat(PROMPTS, 2, axis=0)
  )
  np.testing.assert_array_equal(
    rollout.token_mask[:, :4], np.repeat(PROMPT_MASK, 2, axis=0)
  )
  response = np.asarray(rollout.tokens[:, 4:])
  assert (response[::2] != response[1::2]).any(1).all()
  assert rollout.mask.sum() > 8


def test_samples_do_not_depend_on_the_batch(params):
  whole = sample(params, group_size=2)
  rows = lambda i, j: jax.tree.map(lambda x: x[i:j], whole)
  # A fork of the prompt's cache equals the prompt given twice.
  twice = np.repeat(PROMPTS, 2, axis=0)
  assert_same(sample(params, twice, group_size=1), whole)
  # Each half of the batch by itself, told where its rows begin.
  for half in (0, 1):
    part = sample(
      params, PROMPTS[2 * half :][:2], offset=4 * half, group_size=2
    )
    assert_same(part, rows(4 * half, 4 * half + 4))
  # How often it is asked whether all are done.
  assert_same(sample(params, group_size=2, check_every=1), whole)
  # And another key gives other samples.
  other = sample(params, key=jax.random.key(12), group_size=2)
  assert (other.tokens != whole.tokens).any()


def test_recorded_log_probs_equal_rescored_ones(params):
  rollout = sample(params, group_size=2)
  rescore = jax.jit(functools.partial(score, MODEL, temperature=0.7))
  log_probs, _ = rescore(params, rollout.tokens, rollout.token_mask)
  mask = np.asarray(rollout.mask)
  np.testing.assert_allclose(
    rollout.behavior_log_probs[mask], log_probs[mask], atol=1e-4
  )
  assert not rollout.behavior_log_probs[~mask].any()
  np.testing.assert_array_equal(
    rollout.raw_log_probs, rollout.behavior_log_probs
  )


def test_a_traces_own_tokens_as_prefix_change_nothing(params):
  """Positions, cache and random draws behind a prefix are those of sampling."""
  options = OPTIONS | {'group_size': 2, 'return_cache': True}

  @jax.jit
  def both(params):
    args = MODEL, params, PROMPTS, PROMPT_MASK, KEY
    whole, cache = generate(*args, **options)
    length = jnp.minimum(jnp.arange(8), whole.mask.sum(1))
    again, again_cache = generate(
      *args, prefix=whole.tokens[:, 4:], prefix_length=length, **options
    )
    return whole, cache, again, again_cache, length

  whole, cache, again, again_cache, length = both(params)
  np.testing.assert_array_equal(again.tokens, whole.tokens)
  np.testing.assert_array_equal(again.token_mask, whole.token_mask)
  np.testing.assert_array_equal(again.thinking_mask, whole.thinking_mask)
  np.testing.assert_array_equal(again.truncated, whole.truncated)
  assert_same(again_cache, cache)
  given = np.arange(10) < 4 + np.asarray(length)[:, None]
  np.testing.assert_array_equal(again.mask, whole.mask & ~given)
  np.testing.assert_allclose(
    again.behavior_log_probs,
    np.where(given, 0, whole.behavior_log_probs),
    atol=1e-5,
  )
  assert (length > 0).sum() > 4  # rows are given something


def test_log_probs_under_top_k_and_top_p(params):
  rollout = sample(params, group_size=2, **TOP)
  positions = positions_of(rollout.token_mask)
  apply = jax.jit(MODEL.apply_fn)
  logits, _ = apply(params, rollout.tokens, positions, None)
  before, tokens = logits[:, :-1], rollout.tokens[:, 1:]
  raw = sampling.token_log_probs(before / 0.9, tokens)
  support = sampling.truncate(before, **TOP)
  behavior = sampling.token_log_probs(support, tokens)
  mask = np.asarray(rollout.mask[:, 1:])
  found = np.asarray(rollout.behavior_log_probs)[:, 1:][mask]
  np.testing.assert_allclose(found, behavior[mask], atol=1e-4)
  found_raw = np.asarray(rollout.raw_log_probs)[:, 1:][mask]
  np.testing.assert_allclose(found_raw, raw[mask], atol=1e-4)
  # Leaving tokens out makes those left likelier.
  assert (found > found_raw - 1e-5).all()
  assert (found - found_raw).mean() > 0.05
  assert np.isfinite(found).all()


def test_greedy_starts_from_the_last_logits_of_the_prompt(params):
  rollout = sample(params, temperature=0)
  apply = jax.jit(MODEL.apply_fn)
  positions = positions_of(rollout.token_mask)
  logits, _ = apply(params, rollout.tokens, positions, None)
  best = np.asarray(logits.argmax(-1))[:, 3:-1]
  response = np.asarray(rollout.tokens)[:, 4:]
  mask = np.asarray(rollout.mask)[:, 4:]
  np.testing.assert_array_equal(response[mask], best[mask])
  assert mask[:, 0].all()
  assert not rollout.behavior_log_probs.any()
  # Greedy needs no luck: another key, the same tokens.
  again = sample(params, key=jax.random.key(5), temperature=0)
  np.testing.assert_array_equal(again.tokens, rollout.tokens)


def test_the_frequencies_are_those_of_the_model():
  # One token after a prompt of one: probabilities 1/2, 1/4, 1/4 of 4096 rows.
  model = models.from_apply_fn(lambda p, t, *_: (p[t], None))
  table = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  rollout = generate(
    model,
    table,
    jnp.zeros((1, 1), jnp.int32),
    jnp.ones((1, 1), bool),
    KEY,
    max_new_tokens=1,
    eos_id=2,
    group_size=4096,
  )
  share = np.bincount(rollout.tokens[:, 1], minlength=3) / 4096
  # Standard deviation sqrt(1/4 / 4096) = 0.0078 at most.
  np.testing.assert_allclose(share, [0.5, 0.25, 0.25], atol=4 * 0.0078)
  np.testing.assert_array_equal(rollout.truncated, rollout.tokens[:, 1] != 2)


def test_traced_once_for_a_shape(scripted):
  run = jax.jit(chex.assert_max_traces(lambda b: follow(SCRIPT, b), 1))
  for budget in (1, 2, 3):
    run(jnp.full(8, budget))


# --- budget forcing: thinking that may not end yet ---


@pytest.fixture(scope='module')
def held():
  """`follow`, jitted, with the least thinking of each row an argument."""
  return jax.jit(lambda least: follow(SCRIPT, 5, min_thinking=least))


def test_an_end_that_comes_too_early_is_left_out(held):
  # The script wants a token at its place in the response, and token 0 is the
  # first of the others: it stands where the marker or EOS was wanted early.
  rollout = held(jnp.full(8, 4))
  check_response(
    rollout,
    {
      'tokens': [
        [10, 11, 12, 13, 14, 4, 9, 17],  # 0 goes on to its budget of 5
        [10, 0, 20, 0, 1, 4, 9, 1],  # 1 marker, then EOS: both too early
        [10, 11, 12, 0, 13, 4, 9, 1],  # 2 a marker as the fourth token
        [0, 1, 1, 1, 1, 4, 9, 1],
        [10, 0, 1, 1, 1, 4, 9, 1],
        [10, 11, 0, 20, 21, 4, 9, 2],
        [10, 0, 20, 21, 22, 4, 9, 25],
        [0, 0, 10, 0, 1, 4, 9, 1],
      ],
      'mask': [[1, 1, 1, 1, 1, 0, 0, 1]] * 8,
      'thinking_mask': [[1, 1, 1, 1, 1, 0, 0, 0]] * 8,
      'forced': [1] * 8,
    },
  )
  # One row below its least, one right at it, one above: the end is free again.
  rollout = held(jnp.array([0, 2, 3, 1, 1, 2, 0, 0]))
  check_response(
    rollout,
    {
      'tokens': [
        [10, 11, 12, 13, 14, 4, 9, 17],
        [10, 0, 20, 2, 0, 0, 0, 0],  # 1 EOS in the thought
        [10, 11, 12, 4, 13, 2, 0, 0],  # 2 has its three
        [0, 1, 1, 1, 1, 4, 9, 1],  # 3 no EOS as the first token
        [10, 2, 0, 0, 0, 0, 0, 0],
        [10, 11, 4, 20, 21, 22, 23, 2],
        [10, 4, 20, 21, 22, 23, 24, 25],
        [4, 4, 10, 2, 0, 0, 0, 0],
      ],
      'forced': [1, 0, 0, 1, 0, 0, 0, 0],
    },
  )
  np.testing.assert_array_equal(
    rollout.thinking_mask.sum(1), [5, 3, 3, 5, 1, 2, 1, 0]
  )


def test_wait_tokens_replace_an_early_end():
  rollout = follow(SCRIPT, 5, min_thinking=4, wait_ids=(30, 31))
  check_response(
    rollout,
    {
      'tokens': [
        [10, 11, 12, 13, 14, 4, 9, 17],
        # 1 the second wait token takes the place of what was wanted there, and
        # the EOS behind it is too early as well.
        [10, 30, 31, 30, 31, 4, 9, 1],
        [10, 11, 12, 30, 31, 4, 9, 1],
        [30, 31, 1, 1, 1, 4, 9, 1],
        [10, 30, 31, 1, 1, 4, 9, 1],
        [10, 11, 30, 31, 21, 4, 9, 2],
        [10, 30, 31, 21, 22, 4, 9, 25],
        [30, 31, 10, 30, 31, 4, 9, 1],
      ],
      # Wait tokens are thoughts and no actions.
      'mask': [
        [1, 1, 1, 1, 1, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 0, 1],
        [0, 0, 1, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 1, 0, 0, 1],
        [1, 1, 0, 0, 1, 0, 0, 1],
        [1, 0, 0, 1, 1, 0, 0, 1],
        [0, 0, 1, 0, 0, 0, 0, 1],
      ],
      'thinking_mask': [[1, 1, 1, 1, 1, 0, 0, 0]] * 8,
    },
  )
  assert not rollout.behavior_log_probs[~rollout.mask].any()
  # A budget that is spent in the middle of the wait tokens cuts them short.
  rollout = follow(SCRIPT[2:3], 4, min_thinking=4, wait_ids=(30, 31))
  check_response(rollout, {'tokens': [[10, 11, 12, 30, 4, 9, 1, 1]]})


def test_log_probs_without_the_ends(params):
  options = {'think_end_id': MARKER, 'min_thinking': 4}
  rollout = sample(params, group_size=4, **options)
  free = sample(params, group_size=4, think_end_id=MARKER)
  positions = positions_of(rollout.token_mask)
  logits, _ = jax.jit(MODEL.apply_fn)(params, rollout.tokens, positions, None)
  before, tokens = np.asarray(logits[:, :-1]) / 0.7, rollout.tokens[:, 1:]
  thoughts = np.cumsum(rollout.thinking_mask, 1)[:, :-1]
  # Thinking goes on for all rows up to the fourth token.
  early = thoughts < 4
  cut = before.copy()
  cut[..., [MARKER, EOS]] = np.where(
    early[..., None], -np.inf, cut[..., [MARKER, EOS]]
  )
  mask = np.asarray(rollout.mask[:, 1:])
  for name, logits in (('behavior', cut), ('raw', before)):
    found = np.asarray(getattr(rollout, f'{name}_log_probs'))[:, 1:][mask]
    wanted = sampling.token_log_probs(jnp.asarray(logits), tokens)[mask]
    np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
  assert (rollout.thinking_mask.sum(1) >= 4).all()
  assert (free.thinking_mask.sum(1) < 4).any()
  # A trace that does not want to end early is the same with and without.
  late = np.asarray(free.thinking_mask.sum(1) >= 4)
  assert late.any()
  np.testing.assert_array_equal(rollout.tokens[late], free.tokens[late])


# --- bad input ---


@pytest.mark.parametrize(
  'options, message',
  [
    (
      {'max_new_tokens': 0},
      'max_new_tokens must be a whole number >= 1, got 0',
    ),
    ({'max_new_tokens': 1.5}, 'whole number >= 1, got 1.5'),
    ({'eos_id': 10**6}, 'eos_id=1000000; the vocabulary'),
    ({'eos_id': -1}, 'eos_id must be a whole number >= 0'),
    ({'group_size': 0}, 'group_size must be a whole number >= 1, got 0'),
    ({'check_every': 0}, 'check_every must be a whole number >= 1, got 0'),
    (
      {'cache_buckets': (4, 2)},
      r'cache_buckets=.*4, 2.* is given; allowed are',
    ),
    (
      {'cache_buckets': (0, 2)},
      r'cache_buckets=.*0, 2.* is given; allowed are',
    ),
    ({'cache_buckets': 8}, 'cache_buckets=.*8.* is given; allowed are whole'),
    ({'cache_buckets': (2.5,)}, 'is given; allowed are whole numbers of'),
    ({'cache_buckets': (True,)}, 'is given; allowed are whole numbers of'),
    ({'temperature': -1}, 'temperature must be >= 0'),
    ({'stop_ids': ()}, 'stop_ids must be a tuple of token ids'),
    ({'think_end_id': None, 'stop_ids': None}, 'needs stop_ids or think_end'),
    ({'min_thinking': -1}, 'min_thinking must be a whole number >= 0'),
    ({'min_thinking': 4}, 'min_thinking=4 is above the 3 tokens'),
    ({'wait_ids': (30,)}, 'give min_thinking, or no wait_ids'),
    (
      {'wait_ids': (30, 4), 'min_thinking': 2},
      r'wait_ids hold \[4\], which end thinking',
    ),
  ],
)
def test_bad_numbers_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    follow(SCRIPT[:1], 3, **options)


@pytest.mark.parametrize(
  'budget, message',
  [(-1, 'thinking_budget must be a whole number >= 0'), (6, 'leave no room')],
)
def test_bad_budgets_are_refused(budget, message):
  with pytest.raises(ValueError, match=message):
    follow(SCRIPT[:1], budget)


@pytest.mark.parametrize(
  'prompts, mask, message',
  [
    (
      np.zeros((2, 3), int),
      np.ones((2, 2), bool),
      r'prompt_mask must have shape \[P,Tp\]',
    ),
    (np.zeros((2, 3)), np.ones((2, 3), bool), 'prompts must hold int'),
    (np.zeros((2, 3), int), np.ones((2, 3)), 'prompt_mask must hold bool'),
  ],
)
def test_bad_prompts_are_refused(prompts, mask, message):
  with pytest.raises(ValueError, match=message):
    generate(MODEL, None, prompts, mask, KEY, max_new_tokens=1, eos_id=EOS)


@pytest.mark.parametrize(
  'prefix, length, message',
  [
    (np.zeros((2, 3), int), None, 'given together, or neither'),
    (None, np.zeros(2, int), 'given together, or neither'),
    (np.zeros((1, 3), int), np.zeros(2, int), 'must have shape .* with B=2'),
    (
      np.zeros((2, 3), int),
      np.zeros((2, 1), int),
      'must have shape .* with B=2',
    ),
    (np.zeros((2, 9), int), np.zeros(2, int), '9 columns; allowed are 1..'),
    (np.zeros((2, 0), int), np.zeros(2, int), '0 columns; allowed are 1..'),
    (np.zeros((2, 3)), np.zeros(2, int), 'prefix must hold int values'),
    (np.zeros((2, 3), int), np.zeros(2), 'prefix_length must hold int values'),
  ],
)
def test_bad_prefixes_are_refused(prefix, length, message):
  with pytest.raises(ValueError, match=message):
    follow(SCRIPT[:2], 3, prefix=prefix, prefix_length=length)


# --- stop strings ---


def stop_table(*ids):
  """The table of a stop string that the tokens `ids` alone spell."""
  texts = [b''] * 32
  for place, token in enumerate(ids):
    texts[token] = b'xyz'[place : place + 1]
  return stops.make_table(texts, ('xyz'[: len(ids)],))


def test_a_stop_string_ends_an_answer_as_eos_does():
  script = np.array(
    [
      [10, 4, 20, 21, 22, 23, 24, 25],  # spelled in the answer
      [20, 21, 4, 20, 11, 21, 20, 21],  # in the thought: ends nothing; again
      [10, 20, 4, 21, 22, 2, 1, 1],  # begun in the thought: none
      [10, 4, 20, 2, 1, 1, 1, 1],  # EOS comes first
      [10, 11, 12, 13, 20, 21, 22, 23],  # behind a forced stop
    ]
  )
  rollout = jax.jit(
    lambda budget: follow(
      script, budget, stop_table=stop_table(20, 21), stop_ids=(MARKER, 20)
    )
  )(jnp.array([3, 3, 3, 3, 2]))
  check_response(
    rollout,
    {
      'tokens': [
        [10, 4, 20, 21, 0, 0, 0, 0],
        [20, 21, 4, 20, 11, 21, 0, 0],  # 11 has no text
        [10, 20, 4, 21, 22, 2, 0, 0],
        [10, 4, 20, 2, 0, 0, 0, 0],
        # The forced 20 is no part of the answer.
        [10, 11, 4, 20, 20, 21, 0, 0],
      ],
      'mask': [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
      ],
      'token_mask': [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
      ],
      'truncated': [0, 0, 0, 0, 0],
      'forced': [0, 0, 0, 0, 1],
    },
  )


def test_another_end_token_ends_a_thought_and_an_answer():
  script = np.array(
    [
      [10, 9, 11, 12, 13, 4, 20, 21],  # in the thought
      [10, 4, 20, 9, 21, 22, 23, 24],  # in the answer
      [9, 4, 20, 2, 1, 1, 1, 1],  # at once
    ]
  )
  table = stops.make_table([b''] * 32, (), end_ids=(9,))
  rollout = follow(script, 5, stop_table=table)
  check_response(
    rollout,
    {
      'tokens': [
        [10, 9, 0, 0, 0, 0, 0, 0],
        [10, 4, 20, 9, 0, 0, 0, 0],
        [9, 0, 0, 0, 0, 0, 0, 0],
      ],
      'mask': [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
      ],
      'thinking_mask': [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
      ],
      'truncated': [0, 0, 0],
    },
  )


def test_a_stop_string_without_a_marker_ends_a_response():
  rollout, trace = follow(
    SCRIPT[:2],
    None,
    stop_ids=None,
    think_end_id=None,
    stop_table=stop_table(11, 12, 13),
    return_cache=True,
  )
  check_response(
    rollout,
    {
      'tokens': [[10, 11, 12, 13, 0, 0, 0, 0], [10, 4, 20, 2, 0, 0, 0, 0]],
      'thinking_mask': [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]],
      'truncated': [0, 0],
    },
  )
  # Both rows are done at step 4, where the loop looks: no token is wasted.
  assert trace.used == 1 + 4


@pytest.mark.full
def test_a_stop_string_changes_nothing_before_it():
  """Sampled tokens and log-probs are those of a run without it, cut."""
  model = models.make_model(tiny())
  params = lively_params(tiny())
  run = functools.partial(
    generate,
    model,
    params,
    jnp.array([[5, 6], [7, 8]]),
    jnp.ones((2, 2), bool),
    jax.random.key(3),
    max_new_tokens=12,
    eos_id=EOS,
    group_size=8,
    think_end_id=MARKER,
    thinking_budget=3,
  )
  whole, cut = (
    run(),
    run(
      stop_table=stops.make_table(
        [b'ab'[i % 2 :][:1] for i in range(32)], ('ab',)
      )
    ),
  )
  shorter = np.asarray(cut.token_mask.sum(1) < whole.token_mask.sum(1))
  assert shorter.any()
  kept = np.asarray(cut.token_mask)
  for name in ('tokens', 'mask', 'behavior_log_probs'):
    a, b = (np.asarray(getattr(x, name)) for x in (whole, cut))
    np.testing.assert_allclose(a[kept], b[kept], rtol=1e-5, err_msg=name)
    assert not b[~kept].any()
  assert not np.asarray(cut.truncated)[shorter].any()
