"""Tests of meta_rl.refill: with slots, traces are those of all at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_rollout import PREFIX, SCRIPT
from toys import (
  EOS,
  MARKER,
  STOP,
  check_response,
  follow,
  lively_params,
  script_model,
  tiny,
)

from meta_rl import check_config, models, probes, refill, stops
from meta_rl.aot import hlo
from meta_rl.configs import mrt_countdown
from meta_rl.rollout import generate

MODEL = models.make_model(tiny())
# Prompts of 6, 5, 3 and 1 tokens, 3 traces each of up to 9.
PROMPTS = np.random.default_rng(0).integers(10, 32, (4, 6)).astype(np.int32)
PROMPT_MASK = np.arange(6) >= np.array([0, 1, 3, 5])[:, None]
ROWS, COLUMNS = 12, 9
BUDGET = np.random.default_rng(1).integers(0, 6, ROWS).astype(np.int32)
LENGTHS = np.random.default_rng(2).integers(1, COLUMNS + 1, ROWS)


@pytest.fixture(scope='module')
def params():
  return lively_params(tiny())


def sample(params, slots=None, model=MODEL, prompts=PROMPTS, **options):
  settings = {'max_new_tokens': COLUMNS, 'eos_id': EOS, 'group_size': 3}
  settings |= {'temperature': 0.7, 'check_every': 2, 'slots': slots}
  mask = jnp.asarray(PROMPT_MASK[:, -prompts.shape[1] :])
  run = functools.partial(generate, model, **settings | options)
  return jax.jit(run)(params, jnp.asarray(prompts), mask, jax.random.key(3))


def assert_same(one, other):
  for name in ('tokens', 'token_mask', 'mask', 'thinking_mask'):
    a, b = getattr(one, name), getattr(other, name)
    np.testing.assert_array_equal(a, b, err_msg=name)
  np.testing.assert_array_equal(one.truncated, other.truncated)
  np.testing.assert_array_equal(one.forced, other.forced)
  for name in ('behavior_log_probs', 'raw_log_probs'):
    a, b = getattr(one, name), getattr(other, name)
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


# --- the traces of a transformer, with each option ---

TABLE = stops.make_table(
  [b'ab'[i % 2 :][:1] for i in range(32)], ('aab',), end_ids=(7,)
)
THINKS = {'think_end_id': MARKER, 'thinking_budget': 4}
OPTIONS = {
  'plain': {},
  'lengths': {
    'thinking_budget': LENGTHS - 1,
    'min_thinking': LENGTHS - 1,
    'stop_ids': (EOS,),
  },
  'all': {
    'think_end_id': MARKER,
    'thinking_budget': BUDGET,
    'min_thinking': np.minimum(BUDGET, 2),
    'wait_ids': (30, 31),
    'stop_ids': STOP,
    'stop_table': TABLE,
    'top_k': 20,
    'top_p': 0.9,
    'prefix': np.full((ROWS, 3), 11, np.int32),
    'prefix_length': np.arange(ROWS) % 4,
    'observe_fn': lambda last, thinking, rows: jnp.where(
      thinking & (last % 4 == 1), rows % 4 + 20, -1
    ),
    'row_offset': 7,
    'pad_id': 1,
  },
}


@pytest.mark.parametrize(
  'name, slots',
  [
    ('plain', 5),
    *(
      pytest.param(name, slots, marks=pytest.mark.full)
      for name, slots in (
        ('all', 5),
        ('plain', 1),
        ('plain', 99),
        ('lengths', 5),
        ('all', 1),
      )
    ),
  ],
)
def test_traces_are_those_without_slots(params, name, slots):
  whole = sample(params, **OPTIONS[name])
  lengths = np.asarray(whole.token_mask[:, 6:].sum(1))
  assert len(set(lengths.tolist())) > 3
  assert_same(sample(params, slots, **OPTIONS[name]), whole)
  if name == 'lengths':
    np.testing.assert_array_equal(lengths, LENGTHS)


@pytest.mark.full
@pytest.mark.parametrize(
  'options',
  [
    {'temperature': 0},
    {'check_every': 1},
    {'check_every': 50},
    {**THINKS},
    {**THINKS, 'stop_ids': STOP, 'min_thinking': 3},
    {**THINKS, 'stop_ids': STOP, 'stop_table': TABLE},
    {'eos_id': 1, 'min_thinking': COLUMNS},  # all are cut at the last column
  ],
  ids=lambda options: '-'.join(options),
)
def test_traces_are_those_without_slots_whatever_is_asked(params, options):
  whole = sample(params, **options)
  assert_same(sample(params, 5, **options), whole)


@pytest.mark.full
@pytest.mark.parametrize(
  'changes',
  [{'scan_layers': True}, {'sliding_window': 3, 'local_layers': (True, False)}],
  ids=str,
)
def test_slots_of_other_models(changes):
  config = tiny(**changes)
  model, own = models.make_model(config), lively_params(config)
  assert_same(sample(own, 5, model), sample(own, None, model))


@pytest.mark.full
def test_a_prompt_of_one_token(params):
  one = PROMPTS[:, -1:]
  assert_same(sample(params, 5, prompts=one), sample(params, prompts=one))


@pytest.mark.full
def test_rows_that_run_dry_go_on_in_fewer_slots(params, monkeypatch):
  widths = []
  monkeypatch.setattr(refill, '_FEWEST', 2)

  def apply_fn(params, tokens, positions, cache, mask=None):
    widths.append(len(tokens))
    return MODEL.apply_fn(params, tokens, positions, cache, mask)

  model = models.from_apply_fn(MODEL.apply_fn)
  model = model.__class__(apply_fn, MODEL.init_cache)
  found = sample(params, 9, model, **OPTIONS['lengths'])
  assert_same(found, sample(params, **OPTIONS['lengths']))
  # The prompts are read first.
  assert list(dict.fromkeys(widths[1:])) == [9, 4, 2]


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import AxisType, PartitionSpec
sys.path.insert(0, sys.argv[1])
from test_refill import MODEL, PROMPT_MASK, PROMPTS, assert_same, sample
from toys import lively_params, tiny
from meta_rl.rollout import generate

mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
rows, whole = PartitionSpec('data'), PartitionSpec()

def own(params, prompts, mask, key):
  first = jax.lax.axis_index('data') * len(prompts) * 3
  return generate(
    MODEL, params, prompts, mask, key, max_new_tokens=9, eos_id=2,
    group_size=3, temperature=0.7, slots=4, row_offset=first, check_every=2,
  )

run = jax.jit(jax.shard_map(
  own, mesh=mesh, in_specs=(whole, rows, rows, whole), out_specs=rows,
  check_vma=False,
))
params = lively_params(tiny())
args = params, jnp.asarray(PROMPTS), jnp.asarray(PROMPT_MASK)
assert_same(run(*args, jax.random.key(3)), sample(params))
run(*args, jax.random.key(4))
assert run._cache_size() == 1
print('same')
"""


@pytest.mark.full
def test_under_shard_map_and_without_a_retrace(run_python):
  """Each device has slots of its own, and rows of the whole batch."""
  assert run_python(SHARDED, ROOT / 'tests', devices=2).strip() == 'same'


# --- traces that are written down ---


def scripted(script, budget=None, **options):
  """`toys.follow` in 3 slots: row r wants script[r, t] as its token t.

  The prompt is r and another token, since slots forget the first one's place
  in the cache where it is the only one.
  """
  script = np.asarray(script, np.int32)
  settings = {'max_new_tokens': 8, 'eos_id': EOS, 'temperature': 0, 'slots': 3}
  settings |= {'check_every': 3, 'thinking_budget': budget}
  prompts = np.stack([np.arange(len(script)), np.ones(len(script))], 1)
  run = functools.partial(generate, script_model(), **settings | options)
  return jax.jit(run)(
    jnp.pad(jnp.asarray(script), ((0, 0), (1, 0))),
    jnp.asarray(prompts, jnp.int32),
    jnp.ones(prompts.shape, bool),
    jax.random.key(0),
  )


def check_columns(rollout, expected):
  """Asserts response columns of a rollout, behind prompts of 2 tokens."""
  for name, rows in expected.items():
    found = np.asarray(getattr(rollout, name))
    found = found[:, 2:] if found.ndim == 2 else found
    np.testing.assert_array_equal(found, rows, err_msg=name)


def test_forced_prefix_table_in_slots():
  found, cache = scripted(
    SCRIPT,
    jnp.array([4, 2, 0, 0, 3, 3, 3, 2]),
    think_end_id=MARKER,
    stop_ids=STOP,
    prefix=jnp.asarray(PREFIX),
    prefix_length=jnp.array([2, 2, 3, 0, 3, 2, 3, 1]),
    return_cache=True,
  )
  check_columns(
    found,
    {
      'tokens': [
        [30, 31, 12, 13, 4, 9, 16, 17],
        [30, 31, 4, 9, 1, 1, 1, 1],
        [30, 31, 29, 4, 9, 2, 0, 0],
        [4, 9, 1, 1, 1, 1, 1, 1],
        [30, 4, 29, 1, 1, 1, 1, 1],
        [30, 2, 0, 0, 0, 0, 0, 0],
        [30, 31, 29, 4, 9, 23, 24, 25],
        [30, 4, 10, 2, 0, 0, 0, 0],
      ],
      'forced': [1, 1, 1, 1, 0, 0, 1, 0],
      'truncated': [1, 1, 0, 1, 1, 0, 1, 0],
    },
  )
  # All but what ended a trace is in the cache, in its column.
  kept = np.asarray(cache.cache['places']) > 0
  wanted = np.asarray(found.token_mask.sum(1) - ~found.truncated)
  np.testing.assert_array_equal(kept.sum(1), wanted)
  np.testing.assert_array_equal(
    np.asarray(cache.cache['tokens'])[kept], np.asarray(found.tokens)[kept]
  )
  assert cache.used == 2 + 8


@pytest.mark.parametrize(
  'lengths',
  [
    np.arange(1, 9),
    np.arange(8, 0, -1),
    np.full(7, 1),
    np.full(7, 4),
    np.full(7, 8),
    np.full(7, 9),  # no EOS at all
  ],
  ids=str,
)
def test_the_order_of_traces_is_theirs(lengths):
  """First come, last done; all at once; none by itself."""
  own = 10 + np.arange(len(lengths))[:, None]  # a token of each row's own
  script = np.where(np.arange(8) == lengths[:, None] - 1, EOS, own)
  inside = np.arange(8) < lengths[:, None]
  check_columns(
    scripted(script),
    {
      'tokens': np.where(inside, script, 0),
      'mask': inside,
      'token_mask': inside,
      'truncated': lengths > 8,
    },
  )


@pytest.mark.parametrize('slots, halved', [(5, 0), (9, 2)])
def test_a_plan_counts_the_blocks_of_whole_traces(
  params, slots, halved, monkeypatch
):
  """12 traces of 9 tokens each, 2 a block: 5 blocks, for each S of them."""
  monkeypatch.setattr(refill, '_FEWEST', 2 if halved else 8)
  run = functools.partial(
    generate, MODEL, max_new_tokens=COLUMNS, group_size=3, eos_id=EOS
  )
  run = functools.partial(run, check_every=2, slots=slots)
  lowered = jax.jit(run).lower(
    params, jnp.asarray(PROMPTS), jnp.asarray(PROMPT_MASK), jax.random.key(3)
  )
  module = lowered.compiler_ir('hlo').as_hlo_module()
  program = hlo.parse(module.to_string())
  loops = lambda name: [
    each
    for each in program.computations[name].values()
    if each.opcode == 'while'
  ]
  # What decodes has a loop of steps inside.
  trips = [
    program.trips(each)
    for each in loops(program.entry)
    if loops(each.called('body'))
  ]
  assert trips == [-(-12 // slots) * 5] + [1] * halved


def test_a_stop_that_ends_in_eos_ends_the_trace():
  whole = follow(SCRIPT[:3], jnp.array([3, 0, 7]), stop_ids=(9, EOS))
  check_response(
    whole,
    {
      'tokens': [
        [10, 11, 12, 9, 2, 0, 0, 0],
        [9, 2, 0, 0, 0, 0, 0, 0],
        [10, 11, 12, 4, 13, 2, 0, 0],
      ],
      'mask': [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
      ],
      'forced': [1, 1, 0],
      'truncated': [0, 0, 0],
    },
  )


# --- the cache of whole traces ---


@pytest.mark.full
@pytest.mark.parametrize(
  'options', [THINKS, {'check_every': 1}, OPTIONS['all']], ids=('0', '1', '2')
)
def test_the_cache_is_that_of_a_prefill(params, options):
  found, cache = sample(params, 5, return_cache=True, **options)
  assert cache.used == 6 + COLUMNS - ('thinking_budget' in options) + (
    'prefix' in options
  )
  wanted = jax.jit(functools.partial(probes.prefill, MODEL))(
    params, found.tokens, found.token_mask
  )
  valid = np.asarray(cache.cache['valid'])
  assert valid.shape == found.tokens.shape
  # All but the last token of a trace that ended.
  last = np.cumsum(found.token_mask, 1) == found.token_mask.sum(1)[:, None]
  ended = last & ~np.asarray(found.truncated)[:, None]
  needed = np.asarray(found.token_mask) & ~ended
  needed &= np.arange(6 + COLUMNS) < int(cache.used)
  np.testing.assert_array_equal(valid, needed)
  for name in ('k', 'v'):
    for a, b in zip(cache.cache['layers'], wanted.cache['layers']):
      a, b = np.asarray(a[name]), np.asarray(b[name])
      keep = valid[:, None, :, None]
      np.testing.assert_allclose(a, b * keep, atol=1e-4)


# --- bad input ---


@pytest.mark.parametrize(
  'options, message',
  [
    ({'slots': 0}, 'generate: slots must be a whole number >= 1, got 0'),
    ({'slots': 2.5}, 'slots must be a whole number >= 1, got 2.5'),
    (
      {'slots': 2, 'cache_buckets': (4,)},
      r'slots=2 and cache_buckets=\(4,\): .* give one of the two',
    ),
  ],
)
def test_bad_slots_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    follow(SCRIPT[:1], 3, **options)


def test_slots_of_a_config_are_checked():
  config = mrt_countdown.get_config('tiny')
  config.rollout.slots = 4
  check_config.check(config)
  config.rollout.slots = 0
  with pytest.raises(ValueError, match=r'rollout\.slots must be a whole numb'):
    check_config.check(config)


def test_a_cache_without_an_index_is_refused(params):
  model = MODEL.__class__(MODEL.apply_fn, lambda *s: (MODEL.init_cache(*s),))
  with pytest.raises(ValueError, match='slots need a model whose cache is a'):
    refill.check_cache(model)
