"""Tests of meta_rl.steps.branches: rollouts that share a stale prefix."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL

from meta_rl import algorithms, episodes, models, sharding, steps, train_calls
from meta_rl.steps import branches
from meta_rl.tasks import Task

# Slow to compile.
pytestmark = pytest.mark.full

pytest_plugins = ['small_runs']

PLAIN, EOS, RIGHT, MARKER, DELIMITER, OTHER = 1, 2, 3, 4, 5, 8
TASK = Task(
  name='toy',
  vocab_size=10,
  pad_id=0,
  eos_id=EOS,
  think_end_id=MARKER,
  stop_ids=(MARKER,),
  delimiter_ids=(DELIMITER,),
  episode_length=2,
  answer_length=2,
  verify=lambda answers, mask, batch: (
    (answers[..., 0] == batch['target'])
    & (answers[..., 1] == EOS)
    & mask.all(-1)
  ).astype(jnp.float32),
)
PROMPTS, GROUP, BUDGET = 32, 4, 6
BATCH = {
  'prompts': np.full((PROMPTS, 2), 6, np.int32),
  'prompt_mask': np.ones((PROMPTS, 2), bool),
  'target': np.full(PROMPTS, RIGHT, np.int32),
  'answers': np.tile(np.int32([[RIGHT, EOS]]), (PROMPTS, 1, 1)),
  'answer_mask': np.ones((PROMPTS, 1, 2), bool),
}
KEY = jax.random.key(5)


def table(**thoughts):
  """Logits f32[18,10]: c = 0..8 SPECIALs seen while thinking, then answering.

  Thoughts don't depend on c; the chance of RIGHT, and of EOS behind it, does.
  """
  chance = np.full((18, 10), 1e-9)
  for token, value in thoughts.items():
    chance[:9, globals()[token]] = value
  c = np.arange(9) / 8
  chance[9:, RIGHT], chance[9:, EOS] = 0.2 + 0.2 * c, 0.3 + 0.2 * c
  chance[9:, OTHER] = 1 - chance[9:].sum(1)
  chance /= chance.sum(1, keepdims=True)
  return jnp.log(jnp.asarray(chance, jnp.float32))


def apply_fn(params, tokens, positions, cache, mask):
  del cache, positions
  seen = (mask & (tokens == SPECIAL)[:, None]).sum(-1)
  answering = (mask & (tokens == MARKER)[:, None]).any(-1)
  return params[seen + 9 * answering], None


MODEL = models.from_apply_fn(apply_fn)
POLICY = table(SPECIAL=0.5, DELIMITER=0.35, MARKER=0.15)
REFERENCE = table(PLAIN=0.5, DELIMITER=0.4, MARKER=0.1)


def make(task, policy, group_size=GROUP, **options):
  """The jitted `generate` and `prove` of a task."""
  shared = {'group_size': group_size}
  generate = steps.make_branches(
    MODEL,
    task,
    thinking_budget=BUDGET,
    max_episodes=3,
    prefix_policy=policy,
    **shared,
  )
  prove = steps.make_branch_prove(
    steps.make_prove(MODEL, task, max_episodes=3, kind='none', **shared),
    MODEL,
    task,
    **shared,
    **options,
  )
  return jax.jit(generate), jax.jit(prove)


@functools.cache
def calls(kind='exact', policy='reference', group_size=GROUP):
  return make(TASK, policy, group_size, prefix_success=kind, num_branches=256)


@pytest.fixture(scope='module')
def traces():
  generate, _ = calls()
  return generate((POLICY, REFERENCE), BATCH, KEY, 0)


def given(traces):
  """bool[B,T], the tokens of the prefixes."""
  return np.asarray(traces.thinking_mask & ~traces.mask)


def test_rows_of_a_group_share_one_prefix(traces):
  rollout, _ = traces
  mine = given(rollout)
  tokens = np.where(mine, rollout.tokens, 0).reshape(PROMPTS, GROUP, -1)
  np.testing.assert_array_equal(tokens, np.repeat(tokens[:, :1], GROUP, 1))
  lengths = mine.reshape(PROMPTS, GROUP, -1).sum(-1)
  np.testing.assert_array_equal(
    lengths[:, 0], branches.given_length(rollout, GROUP)
  )
  # It stands right behind the prompt, and differs between prompts.
  columns = np.arange(mine.shape[1])
  np.testing.assert_array_equal(
    mine, (columns >= 2) & (columns < 2 + lengths.reshape(-1, 1))
  )
  assert len(set(lengths[:, 0])) > 2
  # Each is the beginning of a trace that was sampled once for its group.
  side = np.asarray(rollout.side_tokens).reshape(PROMPTS, GROUP)
  assert (side[:, 1:] == 0).all()
  assert (side[:, 0] >= lengths[:, 0]).all()
  assert (side[:, 0] > lengths[:, 0]).any()
  # The reference has written them: it knows no SPECIAL, the policy no 1.
  written = np.asarray(rollout.tokens)
  assert not (written[mine] == SPECIAL).any()
  assert (written[mine] == PLAIN).any()
  sampled = np.asarray(rollout.mask)
  assert not (written[sampled] == PLAIN).any()
  assert (written[sampled] == SPECIAL).any()


def test_half_think_on_and_half_answer(traces):
  rollout, _ = traces
  on = np.tile([True, True, False, False], PROMPTS)
  np.testing.assert_array_equal(branches.is_continue(len(on), GROUP), on)
  length = given(rollout).sum(1)
  thoughts = np.asarray(rollout.thinking_mask).sum(1)
  np.testing.assert_array_equal(thoughts[~on], length[~on])
  assert rollout.forced[~on].all()
  assert (thoughts[on] > length[on]).mean() > 0.3
  assert thoughts.max() <= BUDGET
  # Direct rows: prefix, marker, answer; the answer alone is trained.
  row = int(np.flatnonzero(~on & (length > 0))[0])
  stop = 2 + length[row]
  assert rollout.tokens[row, stop] == MARKER
  assert not rollout.mask[row, : stop + 1].any()
  assert rollout.mask[row, stop + 1]


def test_a_prefix_ends_at_an_episode(traces):
  rollout, _ = traces
  mine, tokens = given(rollout), np.asarray(rollout.tokens)
  length = mine.sum(1)
  last = tokens[np.arange(len(length)), 1 + length]
  # A delimiter, or the end of the whole stale trace (its tail is an episode).
  ended = (last == DELIMITER)[length > 0]
  assert 0.4 < ended.mean() < 1
  assert (length == 0).mean() > 0.1


def test_episodes_are_kept_uniformly():
  # Certain traces of three episodes: 0, 1, 2 or 3 are kept, each 1/4 of 1024.
  rows = jnp.full((10, 10), -50.0)
  follows = {6: OTHER, OTHER: DELIMITER, DELIMITER: OTHER, MARKER: EOS}
  for before, after in follows.items():
    rows = rows.at[before, after].set(50.0)
  model = models.from_apply_fn(lambda p, t, *_: (p[t], None))
  generate = steps.make_branches(
    model,
    TASK,
    group_size=2,
    thinking_budget=BUDGET,
    max_episodes=3,
    prefix_policy='current',
  )
  batch = {k: np.repeat(BATCH[k][:1], 1024, 0) for k in BATCH}
  rollout, _ = jax.jit(generate)(rows, batch, KEY)
  length = given(rollout).sum(1)
  np.testing.assert_array_equal(length[::2], length[1::2])
  np.testing.assert_array_equal(length[::2], branches.given_length(rollout, 2))
  counts = np.bincount(length[::2], minlength=7)
  assert not counts[1::2].any()
  # Standard deviation √(1024·3/16) = 13.9.
  np.testing.assert_allclose(counts[::2], 256, atol=4 * 13.9)


def test_prefixes_of_text_end_where_the_task_says():
  """At PLAIN tokens here, and not at delimiters."""
  segment = functools.partial(episodes.from_delimiters, delimiter_ids=(PLAIN,))
  task = dataclasses.replace(TASK, segment=segment)
  policy = table(SPECIAL=0.2, PLAIN=0.35, DELIMITER=0.35, MARKER=0.1)
  options = {'group_size': 2, 'thinking_budget': BUDGET, 'max_episodes': 3}
  options |= {'prefix_policy': 'current', 'boundaries': 'text'}
  generate = steps.make_branches(MODEL, task, **options)
  rollout, _ = jax.jit(generate)(policy, BATCH, KEY)
  length = np.asarray(branches.given_length(rollout, 2))
  tokens = np.asarray(rollout.tokens)[::2]
  last = tokens[np.arange(PROMPTS), 1 + length][length > 0]
  assert (last == PLAIN).any()
  # A delimiter ends a whole stale trace alone.
  assert (last == PLAIN).mean() > (last == DELIMITER).mean()
  with pytest.raises(ValueError, match='which this task is not'):
    steps.make_branches(MODEL, TASK, **options)


def test_samples_do_not_depend_on_the_batch(traces):
  # All prompts are alike: told that it begins half-way, a batch has the second
  # half of the other.
  whole, _ = traces
  generate, _ = calls()
  half = PROMPTS // 2 * GROUP
  part, _ = generate((POLICY, REFERENCE), BATCH, KEY, half)
  for name in ('tokens', 'mask', 'thinking_mask', 'forced'):
    np.testing.assert_array_equal(
      getattr(part, name)[:half], getattr(whole, name)[half:]
    )
  assert (part.tokens[half:] != whole.tokens[half:]).any()


def chances(rollout):
  """f64[B], J at the end of each prefix, off the table."""
  count = (given(rollout) & (np.asarray(rollout.tokens) == SPECIAL)).sum(1)
  probs = np.exp(np.asarray(jax.nn.log_softmax(POLICY), np.float64))
  return probs[9 + count, RIGHT] * probs[9 + count, EOS]


def test_success_is_measured_at_the_prefix():
  # The policy's own prefixes, which hold 0 to 6 SPECIALs, tails included.
  generate, prove = calls()
  rollout, cache = generate((POLICY, POLICY), BATCH, KEY, 0)
  found = prove(POLICY, BATCH, rollout, cache, KEY)
  wanted = chances(rollout)
  assert len(set(wanted)) > 3
  np.testing.assert_allclose(found.prefix_success, wanted, rtol=1e-4)
  np.testing.assert_array_equal(
    found.continues, branches.is_continue(len(wanted), GROUP)
  )
  # What the ordinary `prove` found is left as it was.
  assert found.rewards.shape == found.stop_index.shape == wanted.shape
  _, by_sampling = calls('sampled')
  estimate = by_sampling(POLICY, BATCH, rollout, cache, KEY).prefix_success
  sigma = np.sqrt(wanted * (1 - wanted) / 256)
  assert (np.abs(estimate - wanted) < 4.5 * sigma).all()
  assert (estimate != found.prefix_success).any()


def test_the_environment_speaks_in_prefixes_and_behind_them():
  # After each SPECIAL it gives the verdict of the problem, 5 or 9; by itself
  # the policy says neither.
  verdict = np.where(np.arange(PROMPTS) % 2, DELIMITER, 9).astype(np.int32)
  task = dataclasses.replace(
    TASK,
    delimiter_ids=(DELIMITER, 9),
    observe=lambda last, thinking, batch: jnp.where(
      thinking & (last == SPECIAL), batch['verdict'], -1
    ),
  )
  batch = BATCH | {'verdict': verdict}
  policy = table(SPECIAL=0.8, MARKER=0.2)
  generate, prove = make(task, 'current')
  rollout, cache = generate(policy, batch, KEY)
  tokens, sampled = np.asarray(rollout.tokens), np.asarray(rollout.mask)
  thinking = np.asarray(rollout.thinking_mask)
  behind = thinking[:, 1:] & (tokens[:, :-1] == SPECIAL)
  mine = np.repeat(verdict, GROUP)
  np.testing.assert_array_equal(
    tokens[:, 1:][behind], np.broadcast_to(mine[:, None], behind.shape)[behind]
  )
  spoken = np.isin(tokens, (DELIMITER, 9))
  assert not (spoken & sampled).any()
  prefix = np.repeat(thinking[GROUP - 1 :: GROUP], GROUP, axis=0)
  on = branches.is_continue(len(tokens), GROUP)
  assert (spoken & prefix).any()
  assert (spoken & thinking & ~prefix)[on].any()
  # What was fed for the stale traces, the verdicts among it, is their cost.
  side = np.asarray(rollout.side_tokens)[::GROUP]
  assert (side >= prefix.sum(1)[::GROUP]).all()
  # J is that of the prefix, and not of what Continue rows heard behind it.
  measured = prove(policy, batch, rollout, cache, KEY)
  count = (prefix & (tokens == SPECIAL)).sum(1)
  probs = np.exp(np.asarray(jax.nn.log_softmax(policy), np.float64))
  wanted = probs[9 + count, RIGHT] * probs[9 + count, EOS]
  assert len(set(wanted)) == 4
  np.testing.assert_allclose(measured.prefix_success, wanted, rtol=1e-4)
  found = branches.branch_metrics(rollout, measured)
  assert found['rollout/prefix_tokens_mean'] == pytest.approx(
    prefix.sum(1).mean()
  )


def test_success_of_the_direct_rollouts_themselves(traces):
  generate, prove = calls('direct')
  del generate
  rollout, cache = traces
  found = prove(POLICY, BATCH, rollout, cache, KEY)
  rewards = np.asarray(found.rewards).reshape(PROMPTS, GROUP)
  assert rewards.any()
  success = np.asarray(found.prefix_success).reshape(PROMPTS, GROUP)
  mean = rewards[:, 2:].mean(1)
  np.testing.assert_allclose(success[:, 0], mean, rtol=1e-6)
  np.testing.assert_allclose(success[:, 1], mean, rtol=1e-6)
  # Of two Direct rows, J of each is the reward of the other.
  np.testing.assert_array_equal(success[:, 2:], rewards[:, :1:-1])


def measure_directly(rewards):
  """What `prove` makes of rewards f32[B], groups of 6."""
  blank = algorithms.Measured(rewards, None, None, None, None)
  prove = steps.make_branch_prove(
    lambda *_: blank, MODEL, TASK, group_size=6, prefix_success='direct'
  )
  return prove(None, None, None, None, KEY)


def test_success_of_direct_rollouts_is_of_the_others():
  # Direct 1, 0, 1: on Continue 2/3, on each Direct row (2 - r)/2.
  found = measure_directly(jnp.array([0.0, 1, 0, 1, 0, 1]))
  np.testing.assert_allclose(
    found.prefix_success, [2 / 3] * 3 + [0.5, 1, 0.5], rtol=1e-6
  )
  # So E[r - J] (r - q) is q(1 - q) on every row, not (1 - 1/m) of it.
  draws = np.array(list(itertools.product((0.0, 1.0), repeat=6)), np.float32)
  chance = np.where(draws, 0.25, 0.75).prod(1)
  found = measure_directly(jnp.asarray(draws.ravel()))
  gain = draws - np.asarray(found.prefix_success).reshape(-1, 6)
  np.testing.assert_allclose(
    (chance[:, None] * gain * (draws - 0.25)).sum(0), 0.25 * 0.75, rtol=1e-5
  )


def test_metrics_by_hand(traces):
  _, prove = calls()
  rollout, cache = traces
  measured = prove(POLICY, BATCH, rollout, cache, KEY)
  found = steps.rollout_metrics(
    rollout, measured, group_size=GROUP, horizon=BUDGET, has_success=False
  )
  on = np.asarray(measured.continues)
  rewards = np.asarray(measured.rewards)
  length, success = given(rollout).sum(1), np.asarray(measured.prefix_success)
  for name, value in {
    'rollout/continue_reward_mean': rewards[on].mean(),
    'rollout/direct_reward_mean': rewards[~on].mean(),
    'rollout/prefix_tokens_mean': length.mean(),
    'progress/prefix': success.mean(),
    'progress/continue': (rewards - success)[on].mean(),
  }.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: calls(policy='older'), "prefix_policy='older' is unknown"),
    (lambda: calls('guess'), "prefix_success='guess' is unknown"),
    (lambda: calls(group_size=3), 'group_size=3: half of the rollouts'),
    (lambda: calls('direct', group_size=2), 'no other to be compared with'),
  ],
)
def test_bad_options_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# --- in the loop


def test_the_reference_goes_into_generate_alone():
  calls = {f.name: f.name for f in dataclasses.fields(sharding.Parallel)}
  calls['generate'] = lambda params, batch, key: (params, batch, key)
  given = train_calls.with_reference(sharding.Parallel(**calls), 'start')
  assert given.generate('now', 'batch', 'key') == (
    ('now', 'start'),
    'batch',
    'key',
  )
  assert given.prove == 'prove'


@pytest.mark.soak
@pytest.mark.full
def test_one_and_one_steps_are_two(small, tmp_path):
  """A resumed run has the reference of its start, not of its checkpoint."""
  moving = {'loss__entropy_coef': 1.0, 'optimizer__learning_rate': 0.1}
  config = small.config('mrt_rl', total_steps=2, **moving)
  whole = small.run(config, tmp_path / 'whole')
  config = small.config('mrt_rl', total_steps=1, **moving)
  assert small.run(config, tmp_path / 'parts').code == 0
  config = small.config('mrt_rl', total_steps=2, **moving)
  parts = small.run(config, tmp_path / 'parts', allow_change='total_steps')
  assert 'resuming after step 1 of 2' in parts.out
  same = lambda rows: [
    {k: v for k, v in row.items() if k.startswith(('rollout', 'opt', 'loss'))}
    for row in rows
  ]
  assert same(parts.rows) == same(whole.rows)
  assert whole.rows[0]['optimizer/update_norm'] > 0.1


KINDS = """
import jax, numpy as np, optax
from meta_rl import sharding
import test_branches as t

parts = {}
for kind in ('none', 'jit', 'pmap'):
  generate, prove = (f.__wrapped__ for f in t.calls())
  parallel = sharding.parallelize(
    kind, generate=generate, prove=prove, rows_per_prompt=t.GROUP,
    make_update=lambda *_: lambda state, *given: (state, {}),
  )
  params = tuple(parallel.put_params(p) for p in (t.POLICY, t.REFERENCE))
  batch = parallel.put_batch(t.BATCH)
  rollout, cache = parallel.generate(params, batch, t.KEY)
  found = parallel.prove(params[0], batch, rollout, cache, t.KEY)
  parts[kind] = parallel.get((rollout, found))
  assert parallel.traces['generate'] == parallel.traces['prove'] == 1
for kind in ('jit', 'pmap'):
  for a, b in zip(jax.tree.leaves(parts[kind]), jax.tree.leaves(parts['none'])):
    np.testing.assert_allclose(a, b, atol=1e-5)
assert len(jax.tree.leaves(parts['none'])) == 19
print('equal')
"""


@pytest.mark.soak
@pytest.mark.full
def test_one_device_a_mesh_and_pmap_agree(run_python, root):
  output = run_python(
    KINDS, devices=4, cwd=root / 'tests', env={'JAX_PLATFORMS': 'cpu'}
  )
  assert output.split()[-1] == 'equal'
