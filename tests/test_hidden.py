"""Hidden: its rules, its closed forms, and the estimators held against them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import prover, regret, steps, tokenizer
from meta_rl.tasks import hidden, hidden_data

# Slow to compile.
pytestmark = pytest.mark.full

encode = tokenizer.encode
YES, NO = tokenizer.YES, tokenizer.NO

# --- rules ---


def test_task_by_hand():
  task = hidden.hidden_task(n=8)
  assert tokenizer.decode(hidden.prompt_tokens(8)) == '<bos> 8 = <think>'
  assert (task.episode_length, task.answer_length) == (2, 2)
  assert set(task.delimiter_ids) == {YES, NO}


def test_verdicts_by_hand():
  #       tried   right  wrong  no such   silent: <think>, yes, +, padded ids
  last = [16 + 3, 16 + 4, 16, 16 + 99, tokenizer.THINK, YES, 9, 116, 16 + 3]
  thinking = [True] * 8 + [False]
  found = hidden.verdict(
    jnp.array(last), jnp.array(thinking), jnp.array([4] * 9)
  )
  assert found.tolist() == [NO, YES, NO, NO, -1, -1, -1, -1, -1]
  assert found.dtype == jnp.int32


@pytest.mark.parametrize(
  'text, mask, reward',
  [
    ('3 <eos>', [1, 1], 1),
    ('3 <eos> 5', [1, 1, 0], 1),
    ('3 <eos> 5', [1, 1, 1], 0),
    ('4 <eos>', [1, 1], 0),
    ('3 3', [1, 1], 0),
    ('<eos> 3', [1, 1], 0),
    ('3 <eos>', [1, 0], 0),
    ('3 <eos>', [0, 0], 0),
  ],
)
def test_answers_by_hand(text, mask, reward):
  answer = jnp.array([encode(text)])
  found = hidden.verify_tokens(answer, jnp.array([mask], bool), jnp.array([3]))
  assert found.tolist() == [reward]


def test_the_verifier_broadcasts_over_branches():
  answers = jnp.tile(jnp.array(encode('1 <eos>')), (2, 3, 4, 1))
  right = jnp.array([1, 2])[:, None, None]
  found = hidden.verify_tokens(answers, jnp.ones(answers.shape, bool), right)
  np.testing.assert_array_equal(found, [np.ones((3, 4)), np.zeros((3, 4))])


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: hidden.hidden_task(n=1), 'n=1 options: give 2'),
    (lambda: hidden.prompt_tokens(100), 'n=100 options: give 2..99'),
    (lambda: hidden.optimal_policy(0), 'n=0 options'),
    (lambda: hidden.optimal_success(4, -1), 'num_episodes must be >= 0'),
    (lambda: hidden.area([1.0], horizon=0), 'horizon must be >= 1'),
    (
      lambda: hidden.verify_tokens(
        np.zeros((2, 1), int), np.ones((2, 1), bool), np.zeros(2, int)
      ),
      'A >= 2',
    ),
    (
      lambda: hidden.verify_tokens(
        np.zeros((2, 2), int), np.ones((2, 2)), np.zeros(2, int)
      ),
      'mask must hold bool',
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# --- closed forms ---


def test_closed_forms_by_hand():
  np.testing.assert_allclose(
    hidden.optimal_success(4, 5), [0.25, 0.5, 0.75, 1, 1, 1]
  )
  # 3/4 before the first try, 2/4 before the second.
  assert hidden.optimal_regret(4, 2) == pytest.approx(1.25)
  # 3/4 + 2/4 + 1/4, and nothing from then on.
  assert hidden.optimal_regret(4, 3) == pytest.approx(1.5)
  assert hidden.optimal_regret(4, 9) == pytest.approx(1.5)
  assert hidden.optimal_regret(4, 0) == 0
  # n = 3. Different options after 2 tries: 1 with chance 1/3, 2 with 2/3; after
  # 3 tries: 1, 2, 3 with 1/9, 6/9, 2/9. J = min(1, (D + 1)/3):
  # 1/3·2/3 + 2/3 = 8/9 and 1/9·2/3 + 8/9 = 26/27.
  np.testing.assert_allclose(
    hidden.uniform_success(3, 3), [1 / 3, 2 / 3, 8 / 9, 26 / 27]
  )
  # (1 - 8/9) before the third try.
  assert hidden.uniform_regret(3, 3) == pytest.approx(1 / 9)
  # 2 tokens each at 1/4, 2/4, 3/4, 4/4.
  curve = hidden.optimal_success(4, 5)
  assert hidden.area(curve, horizon=8) == pytest.approx(0.625)
  # Cut in the middle of an episode: 2 at 1/4, 1 at 2/4; and held: 2 at 4/4.
  assert hidden.area(curve, horizon=3) == pytest.approx(1 / 3)
  assert hidden.area([0.0, 1.0], horizon=5) == pytest.approx(3 / 5)


def best_success(n, tried):
  """E over h of the best answer's chance after a sequence of tries."""
  outcomes = [option in tried for option in range(n)]
  # After nothing but no: any one option that was not tried.
  return (sum(outcomes) + (not all(outcomes))) / n


@pytest.mark.parametrize('n', [2, 3, 4])
def test_closed_forms_by_enumeration(n):
  """All sequences of tries: the best of them, and their mean."""
  for j in range(6):
    values = [
      best_success(n, tried) for tried in itertools.product(range(n), repeat=j)
    ]
    assert hidden.optimal_success(n, 5)[j] == pytest.approx(max(values))
    assert hidden.uniform_success(n, 5)[j] == pytest.approx(np.mean(values))


def test_closed_forms_agree_with_each_other():
  for n, k in ((5, 3), (8, 16), (99, 40)):
    best, uniform = hidden.optimal_success(n, k), hidden.uniform_success(n, k)
    assert (uniform <= best + 1e-12).all()
    assert (np.diff(uniform) > 0).all()
    assert hidden.optimal_regret(n, k) == pytest.approx((1 - best)[:-1].sum())
    # A horizon of whole episodes: the area is the mean over them.
    assert hidden.area(best, horizon=2 * k) == pytest.approx(best[:-1].mean())
  # Coupons: all 6 were tried after 40 tries with chance 0.9959.
  every = sum((-1) ** i * math.comb(6, i) * (1 - i / 6) ** 40 for i in range(7))
  mean_different = 6 * (1 - (5 / 6) ** 40)
  assert hidden.uniform_success(6, 40)[-1] == pytest.approx(
    (mean_different + 1 - every) / 6
  )


# --- policies ---


@functools.cache
def program(n, kind, stops):
  make = {'optimal': hidden.optimal_policy, 'uniform': hidden.uniform_policy}
  model = make[kind](n, stops=stops)
  return jax.jit(lambda *args: model.apply_fn(None, *args, None)[0])


def allowed(text, n=3, kind='optimal', stops=True):
  """The words that a policy may say after each word of a text."""
  ids = encode(text)
  tokens = np.zeros((1, 12), np.int32)
  tokens[0, : len(ids)] = ids
  places = np.where(np.arange(12) < len(ids), np.arange(12), -1)[None]
  logits = np.asarray(program(n, kind, stops)(tokens, places))[0, : len(ids)]
  assert set(np.unique(logits).tolist()) <= {0.0, float(np.float32(-1e30))}
  return [tokenizer.decode(np.flatnonzero(row == 0)) for row in logits]


@pytest.mark.parametrize(
  'kind, after_no', [('optimal', '0 2'), ('uniform', '0 1 2')]
)
def test_policies_by_hand(kind, after_no):
  words = allowed('<bos> 3 = <think> 1 no 0 yes </think> 0', kind=kind)
  verdicts = 'yes no'
  first, answer = ['0 1 2', verdicts], ['</think>', '0', '<eos>']
  assert words[3:] == [*first, after_no, verdicts, *answer]


@pytest.mark.parametrize(
  'text, words',
  [
    # Forced to answer after nothing, after one no, and sure after two.
    ('<bos> 3 = <think> </think>', '0 1 2'),
    ('<bos> 3 = <think> 1 no </think>', '0 2'),
    ('<bos> 3 = <think> 1 no 2 no </think>', '0'),
    ('<bos> 3 = <think> 1 no 2 no', '</think>'),
    ('<bos> 3 = <think> 1 no 1 no', '0 2'),
    # A try that the budget cut off before its verdict tells nothing.
    ('<bos> 3 = <think> 1 no 2 </think>', '0 2'),
  ],
)
def test_the_optimal_policy_guesses_and_infers(text, words):
  assert allowed(text)[-1] == words


@pytest.mark.parametrize(
  'text, words',
  [
    ('<bos> 2 = <think> 1 yes', '0'),
    ('<bos> 2 = <think> 1 yes 0 no', '0 1'),
    ('<bos> 2 = <think> 1 yes 0 no </think>', '1'),
  ],
)
def test_a_policy_that_does_not_stop_goes_on(text, words):
  assert allowed(text, n=2, stops=False)[-1] == words


# --- the provers and the estimators, against the truth ---

N, K = 5, 6
BUDGET = 2 * K
TASK = hidden.hidden_task(n=N)
BEST = hidden.optimal_success(N, K)
UNIFORM = hidden.uniform_success(N, K)
POLICIES = {
  'optimal': (hidden.optimal_policy(N), BEST),
  'optimal, no stop': (hidden.optimal_policy(N, stops=False), BEST),
  'uniform': (hidden.uniform_policy(N), UNIFORM),
  'uniform, no stop': (hidden.uniform_policy(N, stops=False), UNIFORM),
}
# Two compile, and two more, in seconds each.
NAMES = [
  'optimal',
  'uniform, no stop',
  pytest.param('optimal, no stop', marks=pytest.mark.full),
  pytest.param('uniform', marks=pytest.mark.full),
]


def problems(rows):
  """Problems that hide each option equally often."""
  arrays = [
    hidden_data.record_arrays({'n': N, 'hidden': i % N}) for i in range(rows)
  ]
  return {k: np.stack([a[k] for a in arrays]) for k in arrays[0]}


@functools.cache
def measured(name, rows, temperature=1.0, kind='exact', num_branches=4):
  """Traces of a policy, and what the prover says of them."""
  model, _ = POLICIES[name]
  generate = steps.make_generate(
    model, TASK, group_size=1, thinking_budget=BUDGET, temperature=temperature
  )
  prove = steps.make_prove(
    model,
    TASK,
    group_size=1,
    max_episodes=K,
    kind=kind,
    num_branches=num_branches,
  )

  def run(batch, key):
    one, other = jax.random.split(key)
    traces, cache = generate(None, batch, one)
    return traces, prove(None, batch, traces, cache, other)

  return jax.device_get(jax.jit(run)(problems(rows), jax.random.key(7)))


def believed(tokens, end):
  """J of a prefix: what its verdicts leave, by reading it word by word."""
  words = tokenizer.decode(tokens[4 : end + 1]).split()
  verdicts = dict(zip(words[::2], words[1::2]))
  if 'yes' in verdicts.values() or len(verdicts) == N:
    return 1.0
  return 1 / (N - len(verdicts))


def test_exact_prover_is_the_closed_form():
  """Greedy tries 0, 1, 2, …: each h once gives the expectation exactly."""
  traces, found = measured('optimal', N, temperature=0)
  np.testing.assert_allclose(found.success.mean(0), BEST, atol=1e-6)
  # h = 2 is found by the third try; h = 4 is what is left after four.
  assert tokenizer.decode(traces.tokens[2, 4:13]) == (
    '0 no 1 no 2 yes </think> 2 <eos>'
  )
  assert tokenizer.decode(traces.tokens[4, 4:15]) == (
    '0 no 1 no 2 no 3 no </think> 4 <eos>'
  )
  assert found.episodes.count.tolist() == [1, 2, 3, 4, 4]
  assert found.rewards.tolist() == [1] * N
  # 1/5 + 1/4 + 1/3 + 1/2, cumulative against an oracle, held to six episodes.
  cumulative = regret.cumulative(found.success, 1.0, np.full(N, K))
  assert cumulative.mean() == pytest.approx(hidden.optimal_regret(N, K), 1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_exact_prover_believes_what_was_said(name):
  traces, found = measured(name, 2000)
  ends = found.episodes.ends
  for i in range(0, 2000, 20):
    expected = [believed(traces.tokens[i], end) for end in ends[i]]
    np.testing.assert_allclose(found.success[i], expected, atol=1e-5)
  # No verdict is the policy's own, and each option tried gets one.
  thought = traces.thinking_mask
  verdicts = np.isin(traces.tokens, (YES, NO)) & thought
  np.testing.assert_array_equal(verdicts, thought & ~traces.mask)
  assert (2 * verdicts.sum(1) == thought.sum(1)).all()
  own = found.success[np.arange(2000), found.episodes.count]
  if 'no stop' in name:
    assert (found.episodes.count == K).all()
    assert traces.forced.all()
  else:  # it stops by itself when it is sure, and only then
    assert (own[~traces.forced] == 1).all()
    assert (name == 'optimal') != traces.forced.any()


def assert_unbiased(values, truth):
  """The mean over traces is within four standard errors of the truth."""
  values = np.asarray(values, np.float64)
  error = values.std(0, ddof=1) / np.sqrt(len(values))
  gap = np.abs(values.mean(0) - truth)
  assert (gap <= 4 * error + 1e-6).all(), (gap, error)


def whole(ends):
  """Boundaries at every episode of the budget: a trace that stopped holds J.

  A curve J* goes on after a trace has stopped; at the trace's own boundaries,
  the last of which reaches to the horizon, it would be read off wrongly.
  """
  return ends[:, :1] + 2 * np.arange(K + 1)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['exact', 'sampled'])
def test_provers_and_estimators_are_unbiased(name, kind):
  _, truth = POLICIES[name]
  rows = 2000
  _, found = measured(name, rows, kind=kind)
  success, ends = found.success, whole(found.episodes.ends)
  every = np.full(rows, K)
  curve = np.broadcast_to(np.float32(BEST), success.shape)
  assert_unbiased(success, truth)
  assert_unbiased(regret.progress(success, every), np.diff(truth))
  assert_unbiased(
    regret.progress(success, found.episodes.count), np.diff(truth)
  )
  # Regret against the true comparator: 0 for the optimal policy.
  expected = (BEST - truth)[:-1].sum()
  assert_unbiased(regret.cumulative(success, curve, every), expected)
  assert_unbiased(
    regret.cumulative(success, 1.0, every), (1 - truth)[:-1].sum()
  )
  for horizon in (BUDGET, 5, 20):
    lost = hidden.area(BEST, horizon=horizon) - hidden.area(
      truth, horizon=horizon
    )
    token_weighted = functools.partial(
      regret.token_weighted, success, horizon=horizon
    )
    assert_unbiased(token_weighted(ends, comparator=curve), lost)
    # Against 1 the trace's own boundaries say the same.
    missing = 1 - hidden.area(truth, horizon=horizon)
    assert_unbiased(token_weighted(ends), missing)
    assert_unbiased(token_weighted(found.episodes.ends), missing)
    assert_unbiased(
      regret.normalized(
        success, 2.0 * np.arange(K + 1), horizon=horizon, form='step'
      ),
      missing,
    )
  # The published trapezoid: straight lines between the boundaries.
  area = (truth[1:] + truth[:-1]).mean() / 2
  assert_unbiased(
    regret.normalized(success, 2.0 * np.arange(K + 1), horizon=BUDGET),
    1 - area,
  )
  if name == 'uniform, no stop':
    assert expected == pytest.approx(hidden.uniform_regret(N, K))
    assert expected > 0.4  # nothing that 2000 traces could miss


@functools.cache
def also_accepted(rows):
  """J of the optimal policy where the option behind h is accepted too.

  By the exact prover, which is told of both; by the sampled one; and by the
  control variate, which is told of h alone and samples the other.
  """
  model, _ = POLICIES['optimal']
  generate = steps.make_generate(
    model, TASK, group_size=1, thinking_budget=BUDGET
  )
  batch = problems(rows)
  other = (batch['hidden'] + 1) % N
  both = np.repeat(batch['answers'], 2, axis=1)
  both[:, 1, 0] = tokenizer.FIRST_INTEGER + other
  given = np.ones(both.shape, bool)

  def verify(answers, mask):
    accepts = lambda h: hidden.verify_tokens(answers, mask, h[:, None, None])
    return accepts(batch['hidden']) + accepts(other)

  def run(key):
    one, two, three = jax.random.split(key, 3)
    traces, cache = generate(None, batch, one)
    found, _, _ = steps.find_boundaries(
      traces, start=3, delimiter_ids=TASK.delimiter_ids, max_episodes=K
    )
    prefixes = model, None, traces.tokens, traces.token_mask, found.ends
    options = {'stop_ids': TASK.stop_ids, 'cache': cache}
    drawn = options | {
      'num_branches': 2,
      'max_answer_len': TASK.answer_length,
      'eos_id': TASK.eos_id,
    }
    return {
      'exact': prover.exact(*prefixes, both, given, **options),
      'sampled': prover.sampled(*prefixes, verify, two, **drawn),
      'control variate': prover.control_variate(
        *prefixes, both, given, verify, three, num_enumerated=1, **drawn
      ),
    }

  return jax.device_get(jax.jit(run)(jax.random.key(9)))


def test_all_provers_agree_with_a_closed_form_beyond_the_listed_answer():
  """J_j = (j + 1)/n + (1 - j/(n - 1))/n: h, and the option behind h.

  After j tries without a yes, of chance (n - j)/n, the other option is among
  the n - j that are left with chance 1 - j/(n - 1), and guessed with chance
  1/(n - j). After a yes it is never the answer.
  """
  tries = np.minimum(np.arange(K + 1), N - 1)
  truth = BEST + (1 - tries / (N - 1)) / N
  found = also_accepted(2000)
  for values in found.values():
    assert_unbiased(values, truth)
  # What is not listed is all that is left to chance.
  noise = {k: (v - found['exact']).std(0) for k, v in found.items()}
  inside = slice(0, N - 1)  # from then on, every answer is certain
  assert (noise['control variate'] > 0.05)[inside].all()
  assert (noise['control variate'] < 0.95 * noise['sampled'])[inside].all()
  with pytest.raises(AssertionError):
    assert_unbiased(found['control variate'], BEST)


def test_the_noise_of_a_bonus_of_four_branches():
  """The worst of it, J = 1/2 before and after: √(2 · (1/4) / 4) = .353553.

  Options 0, 1, 2; 0 was tried twice, and the second try said nothing: between
  1 and 2 the policy guesses, whether thinking stops before that try or after.
  """
  rows = 4000
  tokens = [*hidden.prompt_tokens(3), *encode('0 no 0 no </think> 1 <eos>')]
  tokens = jnp.tile(jnp.asarray(tokens), (rows, 1))
  traces = hidden.optimal_policy(3), None, tokens, jnp.ones(tokens.shape, bool)
  ends = jnp.tile(jnp.array([3, 5, 7]), (rows, 1))
  right = jnp.full((rows, 1, 1), 1)

  @jax.jit
  def run(key):
    found = prover.sampled(
      *traces,
      ends,
      lambda answers, mask: hidden.verify_tokens(answers, mask, right),
      key,
      num_branches=4,
      max_answer_len=TASK.answer_length,
      stop_ids=TASK.stop_ids,
      eos_id=TASK.eos_id,
      block_rows=1000,
    )
    return regret.progress(found, jnp.full(rows, 2))

  bonus = np.asarray(run(jax.random.key(3)), np.float64)
  # 4,000 bonuses: the sd is known to 1/√8000 of itself, .004.
  assert bonus[:, 1].std() == pytest.approx(0.354, abs=0.015)
  assert_unbiased(bonus[:, 1], 0)
  # The first try is worth 1/2 - 1/3; √(1/16 + (2/9)/4) = .343592.
  assert_unbiased(bonus[:, 0], 1 / 6)
  assert bonus[:, 0].std() == pytest.approx(0.3436, abs=0.015)


def test_four_standard_errors_tell_the_policies_apart():
  _, found = measured('uniform, no stop', 2000)
  with pytest.raises(AssertionError):
    assert_unbiased(found.success, BEST)
  with pytest.raises(AssertionError):
    assert_unbiased(found.success, UNIFORM + 0.02 * (UNIFORM < 0.9))


def test_outcomes_are_the_success_at_the_stop():
  _, found = measured('uniform, no stop', 2000)
  assert_unbiased(found.rewards, UNIFORM[-1])


def test_a_sum_over_a_traces_own_episodes_is_selective():
  """A trace that stops when it succeeds leaves the sum as it begins to pay.

  The optimal policy reaches boundary j < n - 1 without being sure with chance
  (n - j)/n, and has J = 1/(n - j) there: for n = 5 the sum over j < count of
  J*_j - J_j is sum_j (n - j)(j + 1)/n² - 1/n = 0 + .12 + .16 + .12 = 0.4 in
  expectation, though its regret is 0. Hence K episodes for every trace above.
  """
  _, found = measured('optimal', 2000)
  curve = np.broadcast_to(np.float32(BEST), found.success.shape)
  own = regret.cumulative(found.success, curve, found.episodes.count)
  assert_unbiased(own, 0.4)
  assert own.mean() > 0.3
