"""Tests of meta_rl.continuations: values of going on freely."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import PROBLEMS, TOY, toy_task
from toys import SPECIAL, counting_model, lively_params, tiny

from meta_rl import continuations, models, rollout, steps

EOS, MARKER, FORCED, ANSWER = 2, 4, 9, 3
STOP = (MARKER, FORCED)
KEY = jax.random.key(5)

# --- a policy whose values are known ---
#
# After c SPECIALs (at most 3) the next token is SPECIAL with THINK[c], the
# marker with HALT[c], ANSWER with RIGHT[c], EOS else. So a prefix with c of
# them and b tokens of budget left is worth
#   V(c, b) = THINK[c] V(c + 1, b - 1) + HALT[c] A(c)
#             + RIGHT[c] V(c, b - 1)        (an ANSWER in the thought)
#   V(c, 0) = A(c), and EOS in the thought is worth 0,
# A(c) = RIGHT[c], the chance of ANSWER right behind a stop.
THINK = np.array([0.6, 0.1, 0.1, 0.0])
HALT = np.array([0.1, 0.3, 0.1, 0.3])
RIGHT = np.array([0.1, 0.4, 0.45, 0.7])
END = 1 - THINK - HALT - RIGHT
AFTER = RIGHT


def value(c, left):
  if left == 0:
    return AFTER[c]
  return (
    THINK[c] * value(min(c + 1, 3), left - 1)
    + HALT[c] * AFTER[c]
    + RIGHT[c] * value(c, left - 1)
  )


def policy():
  probs = np.full((8, 10), 1e-12)
  rows = np.minimum(np.arange(8), 3)
  for token, column in (
    (SPECIAL, THINK),
    (MARKER, HALT),
    (ANSWER, RIGHT),
    (EOS, END),
  ):
    probs[:, token] = column[rows] + 1e-12
  return jnp.log(jnp.asarray(probs, jnp.float32))


# A prompt of two tokens, the first padding; thinking from column 2. Row 0 is
# over after three tokens of a budget of 3, row 1 stopped after one, row 2 at
# once.
TRACES = np.array(
  [
    [0, 6, SPECIAL, ANSWER, SPECIAL, MARKER, FORCED, 5],
    [0, 6, SPECIAL, MARKER, ANSWER, EOS, 0, 0],
    [0, 6, MARKER, EOS, 0, 0, 0, 0],
  ],
  np.int32,
)
REAL = TRACES > 0
ENDS = np.array([[1, 2, 4, 4], [1, 2, 2, 2], [1, 1, 1, 1]], np.int32)
COPIES, BRANCHES = 64, 16


def verify(answers, mask):
  return ((answers[..., 0] == ANSWER) & mask[..., 0]).astype(jnp.float32)


@functools.cache
def sampled(copies=COPIES, block_rows=64, offset=0, key=0):
  rows = lambda x: jnp.asarray(np.tile(x, (copies, 1)))
  given = rows(TRACES), rows(REAL), rows(ENDS)

  def run(params):
    return continuations.sample_continuations(
      counting_model(),
      params,
      *given,
      [KEY, *jax.random.split(KEY)][key],
      num_branches=BRANCHES,
      thinking_budget=3,
      max_answer_len=2,
      think_end_id=MARKER,
      stop_ids=STOP,
      eos_id=EOS,
      row_offset=offset,
      block_rows=block_rows,
    )

  return jax.jit(run)(policy())


# SPECIALs seen and budget left at each real boundary of the three rows.
STATES = {(0, 0): (0, 3), (0, 1): (1, 2), (0, 2): (2, 0)}
STATES |= {(1, 0): (0, 3), (1, 1): (1, 2), (2, 0): (0, 3)}


def test_values_are_those_of_the_policy():
  found = np.asarray(verify(*sampled()[:2])).reshape(COPIES, 3, 4, BRANCHES)
  share = found.mean((0, 3))
  size = COPIES * BRANCHES
  for (b, j), (c, left) in STATES.items():
    expected = value(c, left)
    sigma = np.sqrt(expected * (1 - expected) / size)
    assert abs(share[b, j] - expected) < 4 * sigma, (b, j, share[b, j])
  # They are told apart: .282 from .202 by 4 (.0141), and from stopping, .4; so
  # is a budget that is spent, .45, from one of 3 tokens, .23.
  assert abs(value(1, 2) - value(0, 3)) > 0.06
  assert abs(value(1, 2) - AFTER[1]) > 0.06
  assert abs(value(2, 0) - value(2, 3)) > 0.2


def test_nothing_is_sampled_at_a_boundary_that_repeats():
  answers, mask = (np.asarray(x) for x in sampled()[:2])
  mask = mask.reshape(COPIES, 3, 4, BRANCHES, 2)
  for b, j in np.ndindex(3, 4):
    # An EOS in the thought leaves no answer: not all have one.
    assert mask[:, b, j].any() == ((b, j) in STATES)
  assert not answers[~mask.reshape(answers.shape)].any()


def test_blocks_and_batches_change_no_sample():
  whole = sampled()
  for options in ({'block_rows': 7}, {'offset': 3}):
    part, first = sampled(copies=2, **options), options.get('offset', 0)
    for x, y in zip(part, whole):
      np.testing.assert_array_equal(x, y[first : first + 6])
  # Rows with the same prefix have luck of their own.
  first = np.asarray(whole[0])[::3, 0].reshape(COPIES, -1)
  assert len(np.unique(first, axis=0)) == COPIES


def test_continued_by_the_last_boundary_answers_alone():
  rows = lambda x: jnp.asarray(np.tile(x, (COPIES, 1)))
  success, before, fed = jax.jit(
    lambda p: continuations.continued(
      counting_model(),
      p,
      rows(TRACES),
      rows(REAL),
      rows(ENDS),
      verify,
      KEY,
      num_branches=BRANCHES,
      thinking_budget=3,
      max_answer_len=2,
      think_end_id=MARKER,
      stop_ids=STOP,
      eos_id=EOS,
    )
  )(policy())
  assert success.shape == (3 * COPIES, 4)
  share = np.asarray(success).reshape(COPIES, 3, 4).mean(0)
  before = np.asarray(before).reshape(COPIES, 3).mean(0)
  close = lambda x, v: abs(x - v) < 4 * np.sqrt(v * (1 - v) / COPIES / BRANCHES)
  assert close(share[0, 0], value(0, 3))
  assert close(share[0, 1], value(1, 2))
  assert close(share[1, 0], value(0, 3))
  # Thinking is over: the answer's own chance, which repeats.
  for b, j, c in ((0, 2, 2), (1, 1, 1), (2, 0, 0)):
    assert close(share[b, j], AFTER[c])
    np.testing.assert_array_equal(share[b, j:], share[b, j])
  # Before it was over: where budget was left, another value.
  assert close(before[0], AFTER[2])
  assert close(before[1], value(1, 2))
  assert close(before[2], value(0, 3))
  # The answers at the end come on top: 2 stop tokens and all but the last of an
  # answer of 1 or 2 tokens.
  more = np.asarray(fed - sampled(key=1)[2])
  assert (more >= 2 * BRANCHES).all()
  assert (more <= 3 * BRANCHES).all()
  assert len(np.unique(more)) > 1


def test_tokens_fed_by_hand():
  """A policy that ends at once: prefixes, and no branch feeds a token."""
  table = jnp.log(jnp.full((8, 10), 1e-9).at[:, EOS].set(1.0))
  _, mask, fed = continuations.sample_continuations(
    counting_model(),
    table,
    TRACES,
    REAL,
    ENDS,
    KEY,
    num_branches=3,
    thinking_budget=4,
    max_answer_len=2,
    think_end_id=MARKER,
    stop_ids=STOP,
    eos_id=EOS,
  )
  assert not mask.any()
  # Prompts of 1 token: behind 0, 1 and 3 thoughts, 0 and 1, and 0.
  assert fed.tolist() == [1 + 2 + 4, 1 + 2, 1]


def test_an_environment_speaks_in_continuations_too():
  """What it says depends on the row, and the rows of a block lie apart."""
  say = jnp.array([ANSWER, SPECIAL, SPECIAL])

  def observe(last, thinking, rows):
    # It ends all thought at once and answers behind the marker.
    return jnp.where(last == MARKER, say[rows], jnp.where(thinking, MARKER, -1))

  answers, mask, _ = continuations.sample_continuations(
    counting_model(),
    policy(),
    TRACES,
    REAL,
    ENDS,
    KEY,
    num_branches=2,
    thinking_budget=4,
    max_answer_len=2,
    think_end_id=MARKER,
    stop_ids=STOP,
    eos_id=EOS,
    observe_fn=observe,
  )
  for b, j in STATES:
    assert mask[b, j, :, 0].all()
    assert (answers[b, j, :, 0] == say[b]).all()


def test_a_transformer_continues_its_own_prefix():
  """Greedy: continuing a greedy trace anywhere gives that trace's answer."""
  config = tiny(num_layers=1)
  model, params = models.make_model(config), lively_params(config)
  prompts = np.array([[0, 5, 6], [7, 8, 9]], np.int32)
  options = {'think_end_id': MARKER, 'stop_ids': STOP, 'eos_id': EOS}

  seen = []

  def counted(forward):
    def run(params, tokens, positions, *rest):
      jax.debug.callback(lambda n: seen.append(int(n)), (positions >= 0).sum())
      return forward(params, tokens, positions, *rest)

    return run

  probed = dataclasses.replace(
    model,
    apply_fn=counted(model.apply_fn),
    features_fn=counted(model.features_fn),
  )

  @jax.jit
  def run(params):
    traces = rollout.generate(
      model,
      params,
      prompts,
      prompts > 0,
      KEY,
      max_new_tokens=11,
      temperature=0,
      thinking_budget=6,
      **options,
    )
    found, stop_index, _ = steps.find_boundaries(
      traces,
      start=2,
      delimiter_ids=(),
      max_episodes=1,
      boundaries='budgets',
      budgets=(2, 4, 6),
    )
    more = jnp.where(traces.forced, 1, 0)
    answer = rollout.answers_of(traces, stop_index + more, 3)
    return (
      traces,
      found.ends,
      answer,
      continuations.sample_continuations(
        probed,
        params,
        traces.tokens,
        traces.token_mask,
        found.ends,
        KEY,
        num_branches=1,
        thinking_budget=6,
        max_answer_len=3,
        temperature=0,
        block_rows=1,  # so that nothing but what is counted runs
        **options,
      ),
    )

  _, ends, (answer, answer_mask), (found, mask, fed) = run(params)
  jax.effects_barrier()
  # What it says it has fed is what the network saw.
  assert fed.sum() == sum(seen) > 0
  assert answer_mask.any()
  for b in range(2):
    for j in range(4):
      if j == 0 or ends[b, j] > ends[b, j - 1]:
        np.testing.assert_array_equal(mask[b, j, 0], answer_mask[b])
        np.testing.assert_array_equal(
          found[b, j, 0], np.where(answer_mask[b], answer[b], 0)
        )


def test_prove_gives_values_and_the_one_before_the_stop():
  run = steps.make_prove(
    counting_model(),
    toy_task(),
    group_size=2,
    max_episodes=3,
    kind='continued',
    num_branches=2,
    thinking_budget=6,
  )
  table = jnp.log(jnp.full((8, 10), 0.1))
  found = jax.jit(lambda: run(table, PROBLEMS, TOY, None, KEY))()
  assert found.success.shape == (4, 4)
  assert found.before_stop.shape == (4,)


@pytest.mark.parametrize(
  'name', ['num_branches', 'thinking_budget', 'max_answer_len']
)
def test_bad_counts_are_refused(name):
  sizes = {'num_branches': 1, 'thinking_budget': 1, 'max_answer_len': 1}
  with pytest.raises(ValueError, match=f'{name} must be a whole number >= 1'):
    continuations.sample_continuations(
      counting_model(),
      None,
      TRACES,
      REAL,
      ENDS,
      KEY,
      think_end_id=MARKER,
      stop_ids=STOP,
      eos_id=EOS,
      **sizes | {name: 0},
    )


def test_the_prove_step_needs_the_budget():
  with pytest.raises(ValueError, match='give thinking_budget'):
    steps.make_prove(
      None, toy_task(), group_size=1, max_episodes=1, kind='continued'
    )
