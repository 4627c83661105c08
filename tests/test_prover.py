"""Tests of meta_rl.prover."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, counting_model, lively_params, tiny

from meta_rl import episodes, models, probes, prover, stops
from meta_rl.rollout import generate
from meta_rl.scoring import score
from meta_rl.types import TraceCache

EOS, STOP = 2, (4, 9)
CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
KEY = jax.random.key(7)


@pytest.fixture(scope='module')
def params():
  return lively_params(CONFIG)


# --- exact, against teacher forcing of every pair by itself ---


@pytest.fixture(scope='module')
def traces(params):
  """4 sampled traces, their KV cache, boundaries and accepted answers."""
  prompts = np.array([[0, 5, 6], [7, 8, 9]], np.int32)

  @jax.jit
  def run(params):
    rollout, cache = generate(
      MODEL,
      params,
      prompts,
      prompts > 0,
      KEY,
      max_new_tokens=9,
      eos_id=EOS,
      group_size=2,
      think_end_id=STOP[0],
      thinking_budget=6,
      stop_ids=STOP,
      return_cache=True,
    )
    found = episodes.from_delimiters(
      rollout.tokens,
      rollout.thinking_mask,
      delimiter_ids=tuple(range(10, 20)),
      max_episodes=3,
      start=2,
    )
    return rollout, cache, found

  rollout, cache, found = run(params)
  rng = np.random.default_rng(5)
  answers = rng.integers(10, 32, (4, 3, 4), np.int32)
  lengths = np.array([[1, 2, 4], [3, 4, 0], [0, 0, 0], [2, 2, 2]])
  mask = np.arange(4) < lengths[..., None]
  answers[mask & (np.arange(4) == lengths[..., None] - 1)] = EOS
  # Boundaries by hand in one row: none before the prompt, a repeat, the end.
  ends = np.array(found.ends)
  ends[3] = [-1, 2, 2, 5]
  return rollout, cache, ends, answers, mask


@pytest.fixture(scope='module')
def brute(params, traces):
  """J f64[B,K+1] by one uncached pass over [prefix, stop, answer] of each."""
  rollout, _, ends, answers, mask = traces
  tokens, real = np.asarray(rollout.tokens), np.asarray(rollout.token_mask)
  sequences, owners = [], []
  for b, j, s in np.ndindex(*ends.shape, answers.shape[1]):
    prefix = tokens[b, : ends[b, j] + 1][real[b, : ends[b, j] + 1]]
    answer = answers[b, s][mask[b, s]]
    if len(answer):
      sequences.append([*prefix, *STOP, *answer])
      owners.append((b, j, len(answer)))
  width = max(map(len, sequences))
  padded = np.array([s + [0] * (width - len(s)) for s in sequences], np.int32)
  valid = np.arange(width) < np.array([len(s) for s in sequences])[:, None]
  rescore = jax.jit(functools.partial(score, MODEL))
  log_probs = np.asarray(rescore(params, padded, valid)[0], np.float64)
  result = np.zeros(ends.shape)
  for row, (b, j, length) in enumerate(owners):
    result[b, j] += np.exp(log_probs[row, : valid[row].sum()][-length:].sum())
  return result


@functools.cache
def exact(**blocks):
  return jax.jit(
    functools.partial(prover.exact, MODEL, stop_ids=STOP, **blocks)
  )


def arguments(traces):
  rollout, _, ends, answers, mask = traces
  return rollout.tokens, rollout.token_mask, ends, answers, mask


@pytest.mark.parametrize('cached', [True, False])
@pytest.mark.parametrize(
  'blocks', [{}, {'block_rows': 3, 'block_pairs': 2}], ids=['one', 'many']
)
def test_exact_equals_teacher_forcing(params, traces, brute, blocks, cached):
  cache = traces[1] if cached else None
  found = exact(**blocks)(params, *arguments(traces), cache=cache)
  assert found.shape == (4, 4)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, brute, rtol=2e-3, atol=1e-9)
  # Something was measured: boundaries differ, and so do the rows.
  assert len(np.unique(brute[0].round(8))) > 1
  assert (brute[[0, 1, 3]] > 1e-7).any(1).all()


def test_without_accepted_answers_success_is_zero(params, traces):
  found = exact()(params, *arguments(traces), cache=None)
  assert not found[2].any()
  found = exact()(
    params, *arguments(traces)[:4], np.zeros((4, 3, 4), bool), cache=None
  )
  assert not found.any()


def test_truncated_support_is_that_of_the_answers(params):
  # One-token answers, the whole vocabulary: with top_k = 3 the three likeliest
  # share all of J and every other one has none.
  tokens = np.array([[5, 6, 7, 8]], np.int32)
  rows = lambda *shape: np.ones((32, *shape), bool)

  def each(**support):
    found = exact(**support)(
      params,
      np.repeat(tokens, 32, 0),
      rows(4),
      np.full((32, 1), 3),
      np.arange(32, dtype=np.int32)[:, None, None],
      rows(1, 1),
    )
    return np.array(found)[:, 0]

  whole, cut = each(), each(top_k=3)
  likeliest = np.argsort(-whole)[:3]
  assert set(np.flatnonzero(cut)) == set(likeliest)
  share = whole[likeliest] / whole[likeliest].sum()
  np.testing.assert_allclose(cut[likeliest], share, rtol=1e-4)
  assert each(top_p=1e-6).max() == pytest.approx(1)


def test_all_answers_of_a_length_sum_to_one(params):
  # Answers of one token, the whole vocabulary of 32: J = 1 at any boundary.
  tokens = np.array([[5, 6, 7, 8]], np.int32)
  found = jax.jit(functools.partial(prover.exact, MODEL, stop_ids=STOP))(
    params,
    tokens,
    np.ones((1, 4), bool),
    np.array([[-1, 1, 3]]),
    np.arange(32, dtype=np.int32)[None, :, None],
    np.ones((1, 32, 1), bool),
  )
  np.testing.assert_allclose(found, [[1, 1, 1]], rtol=1e-4)


# --- a model that counts SPECIAL tokens: J in closed form ---

TRACE = np.array([[5, SPECIAL, 8, SPECIAL, SPECIAL, 8]], np.int32)
REAL = np.ones((1, 6), bool)
ENDS = np.array([[0, 1, 2, 4, 4]], np.int32)  # 0, 1, 1, 3 specials, a repeat
ANSWER, WRONG = 3, 5
# Probability of ANSWER after c specials; EOS has 1/4, SPECIAL never comes.
CHANCE = np.array([0.1, 0.5, 0.3, 0.7])
J = (CHANCE / 4)[[0, 1, 1, 3, 3]]


def count_params():
  probs = np.zeros((4, 10))
  probs[:, ANSWER], probs[:, EOS] = CHANCE, 0.25
  probs[:, WRONG] = 0.75 - CHANCE
  return jnp.log(jnp.asarray(probs, jnp.float32))


def test_exact_in_closed_form():
  # ANSWER then EOS: CHANCE[c] / 4, c counted up to the boundary alone.
  found = prover.exact(
    counting_model(),
    count_params(),
    TRACE,
    REAL,
    ENDS,
    np.array([[[ANSWER, EOS, 0]]], np.int32),
    np.array([[[True, True, False]]]),
    stop_ids=STOP,
    block_pairs=3,
  )
  np.testing.assert_allclose(found[0], J, rtol=1e-5)


def test_exact_reads_a_cache_that_is_not_full():
  # 4 columns written of 6: what a rollout that ended early leaves.
  model = counting_model()
  cache = model.init_cache(1, 6)
  positions = np.arange(4, dtype=np.int32)[None]
  _, cache = model.apply_fn(count_params(), TRACE[:, :4], positions, cache)
  found = prover.exact(
    model,
    count_params(),
    TRACE,
    REAL & (np.arange(6) < 4),
    np.array([[0, 1, 3]]),
    np.array([[[ANSWER, EOS]]], np.int32),
    np.ones((1, 1, 2), bool),
    stop_ids=STOP,
    cache=TraceCache(cache, jnp.asarray(4)),
    block_pairs=2,
  )
  np.testing.assert_allclose(found[0], CHANCE[[0, 1, 2]] / 4, rtol=1e-5)


# --- sampled ---

ROWS, BRANCHES = 12, 64


def verify(answers, mask):
  """1 where the answer is ANSWER EOS."""
  right = (answers[..., 0] == ANSWER) & (answers[..., 1] == EOS)
  return (right & mask[..., :2].all(-1)).astype(jnp.float32)


@functools.cache
def sampler(block_rows=16, stop_table=None):
  def run(params, tokens, mask, ends, row_offset):
    return prover.sample_answers(
      counting_model(),
      params,
      tokens,
      mask,
      ends,
      KEY,
      num_branches=BRANCHES,
      max_answer_len=3,
      stop_ids=STOP,
      eos_id=EOS,
      row_offset=row_offset,
      block_rows=block_rows,
      stop_table=stop_table,
    )

  return jax.jit(run)


@pytest.fixture(scope='module')
def branches():
  rows = lambda x: np.repeat(x, ROWS, axis=0)
  return sampler()(count_params(), rows(TRACE), rows(REAL), rows(ENDS), 0)


def test_sampled_answers_have_the_probabilities_of_the_model(branches):
  answers, mask = branches
  assert answers.shape == mask.shape == (ROWS, 5, BRANCHES, 3)
  rewards = np.asarray(verify(answers, mask))[:, :4]
  share = rewards.mean((0, 2))
  sigma = np.sqrt(J[:4] * (1 - J[:4]) / (ROWS * BRANCHES))
  assert (np.abs(share - J[:4]) < 4 * sigma).all(), (share, J)
  # No two rows, boundaries or branches share their luck.
  first = np.asarray(answers)[:, :4, :, 0].reshape(ROWS * 4, BRANCHES)
  assert len(np.unique(first, axis=0)) == ROWS * 4


def test_mask_ends_with_eos(branches):
  answers, mask = (np.asarray(x) for x in branches)
  ended = np.cumsum(answers == EOS, -1) - (answers == EOS) > 0
  np.testing.assert_array_equal(mask[:, :4], ~ended[:, :4])
  assert not answers[~mask].any()
  assert not mask[:, 4].any()  # a boundary that repeats: nothing to sample
  assert mask[:, :4, :, 0].all()
  assert mask[:, :4, :, 2].any()


def test_a_stop_string_ends_an_answer(branches):
  """The answers are the same ones, up to WRONG, the text of the stop string."""
  texts = [b'a' if i == WRONG else b'' for i in range(10)]
  run = sampler(stop_table=stops.make_table(texts, ('a',)))
  rows = lambda x: np.repeat(x, ROWS, axis=0)
  cut, mask = run(count_params(), rows(TRACE), rows(REAL), rows(ENDS), 0)
  answers, whole = (np.asarray(x) for x in branches)
  ends = whole & ((answers == WRONG) | (answers == EOS))
  kept = whole & (np.cumsum(ends, -1) - ends == 0)
  assert kept.sum() < whole.sum()
  np.testing.assert_array_equal(mask, kept)
  np.testing.assert_array_equal(cut, np.where(kept, answers, 0))


def test_blocks_and_batches_change_no_sample(branches):
  rows = lambda x: np.repeat(x, ROWS, axis=0)
  args = count_params(), rows(TRACE), rows(REAL), rows(ENDS)
  again = sampler(block_rows=5)(*args, 0)
  jax.tree.map(np.testing.assert_array_equal, again, branches)
  rows = lambda x: np.repeat(x, 3, axis=0)
  part = sampler()(count_params(), rows(TRACE), rows(REAL), rows(ENDS), 4)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y[4:7]), part, branches
  )


def test_sampled_is_the_mean_of_its_branches(branches):
  rows = lambda x: np.repeat(x, ROWS, axis=0)
  found, mask = jax.jit(
    lambda p: prover.sampled(
      counting_model(),
      p,
      rows(TRACE),
      rows(REAL),
      rows(ENDS),
      verify,
      KEY,
      num_branches=BRANCHES,
      max_answer_len=3,
      stop_ids=STOP,
      eos_id=EOS,
      return_mask=True,
    )
  )(count_params())
  np.testing.assert_array_equal(mask, branches[1])
  expected = np.asarray(verify(*branches)).mean(-1)
  np.testing.assert_allclose(found[:, :4], expected[:, :4])
  np.testing.assert_array_equal(found[:, 4], found[:, 3])  # it repeats


# --- control variate: ANSWER and WRONG are both right here ---

# The second of the three is padding: no answer.
LISTED = np.array([[[ANSWER, EOS, 0], [0, 0, 0], [WRONG, EOS, 0]]], np.int32)
BOTH = LISTED > 0


def verify_both(answers, mask):
  """1 where the answer is ANSWER EOS or WRONG EOS."""
  first = (answers[..., 0] == ANSWER) | (answers[..., 0] == WRONG)
  right = first & (answers[..., 1] == EOS) & mask[..., :2].all(-1)
  return right.astype(jnp.float32)


@functools.cache
def mixed(num_enumerated, kind='control_variate'):
  """J f64[256,5], by few branches so that single values are noisy."""
  rows = lambda x: np.repeat(x, 256, axis=0)
  sampling = {'num_branches': 8, 'max_answer_len': 4, 'eos_id': EOS}
  given = rows(TRACE), rows(REAL), rows(ENDS)
  listed = rows(LISTED), rows(BOTH)

  def run(params):
    args = counting_model(), params, *given
    if kind == 'exact':
      return prover.exact(*args, *listed, stop_ids=STOP)
    if kind == 'sampled':
      return prover.sampled(*args, verify_both, KEY, stop_ids=STOP, **sampling)
    return prover.control_variate(
      *args,
      *listed,
      verify_both,
      KEY,
      num_enumerated=num_enumerated,
      stop_ids=STOP,
      **sampling,
    )

  return np.asarray(jax.jit(run)(count_params()), np.float64)


# Both have the chance .75 of the first token and .25 of EOS at any count.
WHOLE = 0.75 * 0.25
REST = (WHOLE - CHANCE / 4)[[0, 1, 1, 3, 3]]  # what WRONG adds to J


def test_control_variate_is_unbiased():
  found = mixed(2)
  assert found.shape == (256, 5)
  error = np.abs(found.mean(0) - WHOLE)
  # 4 standard deviations of what is sampled, which at boundary 3 are 3.5 times
  # as narrow as those of a sampled J.
  assert (error < 4 * np.sqrt(REST * (1 - REST) / 2048)).all(), error
  np.testing.assert_array_equal(found[:, 4], found[:, 3])


def test_control_variate_has_the_variance_of_what_is_not_listed():
  # REST is .1625, .0625, .0625, .0125 of .1875: the variance q (1 - q) / 8.
  some, none = mixed(2).var(0), mixed(0).var(0)
  expected = REST * (1 - REST) / 8
  # Of 256 values a sample variance is off by a tenth, or more where hits are
  # rare.
  np.testing.assert_allclose(some, expected, rtol=0.5)
  np.testing.assert_allclose(none, WHOLE * (1 - WHOLE) / 8, rtol=0.5)
  assert (some[1:] < 0.6 * none[1:]).all()
  assert some[3] < 0.2 * none[3]


@pytest.mark.full
def test_control_variate_with_all_or_none_listed():
  np.testing.assert_array_equal(mixed(None), mixed(None, 'exact'))
  np.testing.assert_array_equal(mixed(3), mixed(None))
  np.testing.assert_array_equal(mixed(0), mixed(0, 'sampled'))


@pytest.mark.full
def test_a_listed_answer_is_one_from_first_to_last_token():
  """A sample that a listed answer begins with is another answer."""
  longer = np.array([[[ANSWER, ANSWER, EOS]]], np.int32)
  found = prover.control_variate(
    counting_model(),
    count_params(),
    np.repeat(TRACE, 32, 0),
    np.repeat(REAL, 32, 0),
    np.repeat(ENDS, 32, 0),
    np.repeat(longer, 32, 0),
    np.ones((32, 1, 3), bool),
    verify,
    KEY,
    num_branches=8,
    max_answer_len=3,
    stop_ids=STOP,
    eos_id=EOS,
  )
  # The listed one is not right by `verify`, but is counted as told.
  expected = J + (CHANCE**2 / 4)[[0, 1, 1, 3, 3]]
  error = np.abs(np.asarray(found).mean(0) - expected)
  assert (error < 4 * np.sqrt(J * (1 - J) / 256)).all()


@pytest.mark.parametrize(
  'options, message',
  [
    (
      {'num_enumerated': 4},
      'num_enumerated must be a whole number >= 0 and <= 3',
    ),
    ({'num_enumerated': -1}, 'num_enumerated must be .*, got -1'),
    ({'max_answer_len': 2}, 'max_answer_len=2 cuts the accepted answers of 3'),
  ],
)
def test_what_control_variate_cannot_do(options, message):
  settings = {'num_branches': 1, 'max_answer_len': 3} | options
  with pytest.raises(ValueError, match=message):
    prover.control_variate(
      counting_model(),
      None,
      TRACE,
      REAL,
      ENDS,
      LISTED,
      BOTH,
      verify_both,
      KEY,
      stop_ids=STOP,
      eos_id=EOS,
      **settings,
    )


def test_greedy_answers_of_a_transformer(params, traces):
  # Greedy branches read the trace's KV cache; decoded here without any.
  rollout, cache, ends, _, _ = traces
  answers, mask = jax.jit(
    lambda p, c: prover.sample_answers(
      MODEL,
      p,
      rollout.tokens,
      rollout.token_mask,
      ends,
      KEY,
      num_branches=2,
      max_answer_len=3,
      stop_ids=STOP,
      eos_id=EOS,
      temperature=0,
      cache=c,
    )
  )(params, cache)
  np.testing.assert_array_equal(answers[:, :, 0], answers[:, :, 1])
  # A greedy answer is its own best: no other token is likelier anywhere.
  tokens, real = np.asarray(rollout.tokens), np.asarray(rollout.token_mask)
  apply = jax.jit(lambda t, s: MODEL.apply_fn(params, t, s, None)[0])
  width = tokens.shape[1] + len(STOP) + 3
  for b, j in np.ndindex(*ends.shape):
    if not mask[b, j, 0, 0]:
      assert ends[b, j] == ends[b, j - 1]
      continue
    prefix = tokens[b, : ends[b, j] + 1][real[b, : ends[b, j] + 1]]
    answer = np.asarray(answers[b, j, 0])[np.asarray(mask[b, j, 0])]
    row = np.array([*prefix, *STOP, *answer], np.int32)
    padded = np.pad(row, (0, width - len(row)))[None]
    steps = np.arange(width, dtype=np.int32)[None]
    logits = apply(padded, np.where(steps < len(row), steps, -1))
    best = np.asarray(logits[0].argmax(-1))
    start = len(row) - len(answer) - 1
    np.testing.assert_array_equal(answer, best[start : len(row) - 1])


# --- pieces and bad input ---


def test_probe_mask_by_hand():
  # Two slots of a trace, probes of two tokens: the first sees slot 0, the
  # second the whole trace, each its own past.
  mask = probes.probe_mask(jnp.array([[0, 1]]), 2, jnp.asarray(2), 6)
  np.testing.assert_array_equal(
    mask[0].astype(int),
    [
      [1, 0, 1, 0, 0, 0],
      [1, 0, 1, 1, 0, 0],
      [1, 1, 0, 0, 1, 0],
      [1, 1, 0, 0, 1, 1],
    ],
  )


def test_repeat_past_count():
  success = jnp.array([[0.1, 0.2, 0.9, 0.9], [0.3, 0.0, 0.0, 0.0]])
  ends = jnp.array([[2, 5, 5, 5], [2, 2, 2, 2]])
  np.testing.assert_allclose(
    probes.repeat_past_count(success, ends),
    [[0.1, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]],
  )


@pytest.mark.parametrize(
  'change, message',
  [
    (
      {'token_mask': np.ones((1, 5), bool)},
      r'token_mask must have shape \[B,T\]',
    ),
    ({'token_mask': np.ones((1, 6))}, 'token_mask must hold bool values'),
    (
      {'ends': np.zeros((2, 3), int)},
      r'ends must have shape \[B,K\+1\] with B=1',
    ),
    ({'ends': np.zeros((1, 3))}, 'ends must hold int values'),
    (
      {'answers': np.zeros((2, 1, 2), int)},
      r'answers must have shape \[B,S,A\] with B=1',
    ),
    ({'answer_mask': np.ones((1, 1, 2))}, 'answer_mask must hold bool values'),
    ({'stop_ids': ()}, 'stop_ids must be a tuple of token ids'),
    ({'stop_ids': 3}, 'stop_ids must be a tuple of token ids'),
    ({'block_rows': 0}, 'block_rows must be a whole number'),
  ],
)
def test_bad_input_is_refused(change, message):
  inputs = {
    'tokens': TRACE,
    'token_mask': REAL,
    'ends': ENDS,
    'answers': np.array([[[ANSWER, EOS]]], np.int32),
    'answer_mask': np.ones((1, 1, 2), bool),
    'stop_ids': STOP,
  }
  with pytest.raises(ValueError, match=message):
    prover.exact(counting_model(), None, **inputs | change)


@pytest.mark.parametrize('name', ['num_branches', 'max_answer_len'])
def test_bad_counts_are_refused(name):
  sizes = {'num_branches': 1, 'max_answer_len': 1} | {name: 0}
  with pytest.raises(
    ValueError, match=f'{name} must be a whole number >= 1, got 0'
  ):
    prover.sample_answers(
      counting_model(),
      None,
      TRACE,
      REAL,
      ENDS,
      KEY,
      stop_ids=STOP,
      eos_id=EOS,
      **sizes,
    )


def test_a_verifier_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r'verify_fn returned shape \(1, 5\)'):
    prover.sampled(
      counting_model(),
      count_params(),
      TRACE,
      REAL,
      ENDS,
      lambda answers, mask: mask.any((-1, -2)),
      KEY,
      num_branches=2,
      max_answer_len=2,
      stop_ids=STOP,
      eos_id=EOS,
    )
