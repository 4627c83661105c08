"""Backtracking search: generated traces and the task."""

import functools
import hashlib
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import (
  data,
  episodes,
  evaluate,
  evaluation,
  prover,
  report,
  scoring,
  signals,
  steps,
  tasks,
  tokenizer,
)
from meta_rl.models import make_model
from meta_rl.tasks import backtrack, check, countdown, expressions, traces

pytest_plugins = ['small_runs']

EASY = countdown.make_problem((3, 5, 7), 9, '+-')
FOUR = countdown.make_problem((1, 3, 4, 6), 24, '+-*/')


def ids(text):
  return tokenizer.encode(f'<bos> 3 5 7 = 9 <think> {text}')


# ---- what a step is


def test_steps_by_hand():
  attempts = ['7 5 + 12 3 - 9', '7 5 3 - 2 + 9']
  rows = np.array([tokenizer.encode(text) for text in attempts])
  np.testing.assert_array_equal(
    backtrack.step_ends(rows), [[0, 4, 7], [0, 5, 7]]
  )
  four = np.array([tokenizer.encode('6 4 * 24 3 1 - 2 / 12')])
  np.testing.assert_array_equal(backtrack.step_ends(four), [[0, 4, 8, 10]])
  two = np.array([tokenizer.encode('5 3 - 2')])
  np.testing.assert_array_equal(backtrack.step_ends(two), [[0, 4]])


# ---- the chain


def shared(table, i, j, n):
  """How many whole steps two attempts have in common, token by token."""
  a, b = table.annotated[i].tolist(), table.annotated[j].tolist()
  same = len([*itertools.takewhile(lambda ab: ab[0] == ab[1], zip(a, b))])
  values = [k + 2 for k, t in enumerate(a) if t in tokenizer.OPERATORS.values()]
  assert len(values) == n - 1
  return sum(end <= same for end in values)


@pytest.mark.parametrize('problem', [EASY, FOUR], ids=['three', 'four'])
def test_each_attempt_keeps_what_it_says(problem):
  numbers, n = tuple(sorted(problem.numbers)), len(problem.numbers)
  rules = problem.ops, problem.max_value
  table = expressions.expression_table(numbers, *rules)
  rng = np.random.default_rng(0)
  chosen, kept = backtrack.chain(numbers, *rules, rng, 600)
  assert len(chosen) == len(kept) == 600
  assert kept[0] == 0
  assert set(kept[1:].tolist()) == set(range(n - 1))
  for last, new, steps_kept in zip(chosen, chosen[1:], kept[1:]):
    assert new != last
    assert shared(table, last, new, n) >= steps_kept
  if problem is EASY:  # earlier attempts come back
    assert len(set(chosen.tolist())) < 60


def test_the_choice_is_uniform():
  """Over the legal numbers of steps, then over the attempts that share them."""
  numbers, rules = (3, 5, 7), ('+-', 12)
  table = expressions.expression_table(numbers, *rules)
  size = len(table.values)
  legal = {
    (i, n): [j for j in range(size) if j != i and shared(table, i, j, 3) >= n]
    for i in range(size)
    for n in (0, 1)
  }
  # Both kinds of attempt occur: with and without another last operator.
  assert {len(legal[i, 1]) for i in range(size)} == {0, 1}
  rng = np.random.default_rng(1)
  chosen, kept = backtrack.chain(numbers, *rules, rng, 30_000)
  seen = {}
  for last, new, n in zip(chosen, chosen[1:], kept[1:]):
    seen.setdefault(int(last), []).append((int(n), int(new)))
  assert set(seen) == set(range(size))
  for last, moves in seen.items():
    expected = {}
    counts = [n for n in (0, 1) if legal[last, n]]
    for n in counts:
      for j in legal[last, n]:
        expected[n, j] = 1 / len(counts) / len(legal[last, n])
    found = {move: moves.count(move) for move in set(moves)}
    assert set(found) <= set(expected)
    for move, p in expected.items():
      sigma = np.sqrt(len(moves) * p * (1 - p))
      assert abs(found.get(move, 0) - len(moves) * p) < 5 * sigma + 1e-9


def test_a_problem_with_one_attempt_has_nowhere_to_go():
  only = countdown.make_problem((1, 1, 1), 3, '+')
  assert countdown.hit_rate(only) == 1
  rng = np.random.default_rng(0)
  options = {'mode': 'backtrack', 'long_share': 1.0, 'direct_share': 0.0}
  tokens, _ = traces.sample_trace(only, rng, **options)
  assert tokenizer.decode(tokens) == (
    '<bos> 1 1 1 = 3 <think> 1 1 + 2 1 + 3 yes ; </think> 1 1 + 1 + <eos>'
  )


# ---- traces


@pytest.mark.parametrize(
  'options',
  [{'n': 3, 'ops': '+-'}, {'n': 3, 'ops': '+-*/'}, {'n': 4, 'ops': '+-*'}],
  ids=['easy', 'all', 'four'],
)
def test_every_episode_of_a_warm_start_is_true(options):
  problems = countdown.prompt_orders(
    countdown.problem_set('train', high=8, max_multisets=60, **options)
  )
  rng = np.random.default_rng(2)
  rules = {'ops': options['ops']}
  lengths, words = [], set()
  for _ in range(150):
    problem = problems[rng.integers(len(problems))]
    tokens, start = traces.sample_trace(
      problem, rng, mode='backtrack', long_share=0.2, max_episodes=20
    )
    found = check.check_trace(tokens, mode='backtrack', **rules)
    assert all(episode.valid for episode in found)
    thought = tokens[start : tokens.tolist().index(tokenizer.END_THINK)]
    ends = np.nonzero(thought == tokenizer.DELIMITER)[0]
    assert len(found) == len(ends)
    lengths += np.diff(ends, prepend=-1)[1:].tolist()
    words |= set(thought[ends - 1].tolist())
    # The answer is the latest success.
    answer = tokens[start + len(thought) + 1 : -1].tolist()
    hits = [k for k in range(len(ends)) if thought[ends[k] - 1] == 7]
    assert not hits or tuple(answer) in problem.answers
    # As restarts, the later episodes are of no form: the check can tell.
    restarts = check.check_trace(tokens, mode='restart', **rules)
    assert not any(episode.form for episode in restarts[1:])
  assert words == {tokenizer.YES, tokenizer.NO}
  n = options['n']
  assert max(lengths) == backtrack.longest_episode(n) == 3 * n + 2
  assert min(lengths) == backtrack.shortest_episode() == 6


def test_restarts_are_what_they_were():
  """Bit for bit: the shipped base policies were trained on them."""
  rng, digest = np.random.default_rng(5), hashlib.sha256()
  for _ in range(300):
    tokens, _ = traces.sample_trace(EASY, rng)
    digest.update(tokens.tobytes())
  assert digest.hexdigest()[:16] == '231fc6dad1085d59'


def test_the_search_stops_as_with_restarts():
  """Only what is tried next is another matter, not when it is enough."""
  options = {'direct_share': 0.0, 'long_share': 0.0, 'p_stop': 0.0}
  rng = np.random.default_rng(3)
  for _ in range(60):
    tokens, _ = traces.sample_trace(
      EASY, rng, mode='backtrack', p_continue=0.0, **options
    )
    verdicts = [t for t in tokens if t in (tokenizer.YES, tokenizer.NO)]
    hits = [t == tokenizer.YES for t in verdicts]
    assert hits.index(True) == len(hits) - 1 if any(hits) else len(hits) == 16


def rebuilt(thought, n):
  """The attempts of a thought in full, by its `back N` alone."""
  whole, attempt = [], []
  for episode in tokenizer.decode(thought).split(' ;')[:-1]:
    *words, _ = episode.split()
    kept = []
    if words[0] == 'back':
      operators = [i for i, w in enumerate(attempt) if w in '+-*/']
      assert len(operators) == n - 1
      steps_kept = int(words[1])
      kept = attempt[: operators[steps_kept - 1] + 2] if steps_kept else []
      words = words[2:]
    attempt = kept + words
    whole.append(tokenizer.encode(' '.join(attempt)))
  return whole


@pytest.mark.parametrize('problem', [EASY, FOUR], ids=['three', 'four'])
def test_a_thought_says_which_attempts_it_is_of(problem):
  numbers, n = tuple(sorted(problem.numbers)), len(problem.numbers)
  rules = problem.ops, problem.max_value
  table = expressions.expression_table(numbers, *rules)
  right = table.values == problem.target
  rng = np.random.default_rng(4)
  for _ in range(20):
    rows, kept = backtrack.chain(numbers, *rules, rng, 12)
    thought = backtrack.episode_tokens(numbers, *rules, rows, kept, right[rows])
    np.testing.assert_array_equal(rebuilt(thought, n), table.annotated[rows])
    verdicts = [t for t in thought if t in (tokenizer.YES, tokenizer.NO)]
    said = np.array(verdicts) == tokenizer.YES
    np.testing.assert_array_equal(said, right[rows])
    assert tokenizer.encode(tokenizer.decode(thought)) == thought


def test_longest_traces():
  # 7 of prompt, 9 + 38·11 of thought, the marker, 5 of answer and EOS.
  assert traces.max_trace_length(3, 39, 'backtrack') == 441
  # 8, 12 + 14, the marker, 7 and EOS.
  assert traces.max_trace_length(4, 2, 'backtrack') == 43
  assert traces.max_trace_length(3, 0, 'backtrack') == 14
  kits = [tasks.TASKS[f'countdown{name}'] for name in ('', '_backtrack')]
  restart, back = (
    functools.partial(
      data.sft_batches,
      [EASY],
      sample_traces=kit.sample_traces,
      max_trace_length=kit.max_trace_length,
      batch_size=1,
      length=446,
    )
    for kit in kits
  )
  restart()
  with pytest.raises(ValueError, match='may have 540 tokens'):
    back()
  batch = next(back(max_episodes=39))
  assert (batch['tokens'] == tokenizer.BACKTRACK).any()


def test_unknown_modes_are_refused():
  for call in (
    lambda: check.check_trace(ids(''), mode='forward'),
    lambda: traces.sample_trace(EASY, np.random.default_rng(0), mode='forward'),
    lambda: tasks.countdown_task(n=3, ops='+-', max_value=99, mode='forward'),
  ):
    with pytest.raises(ValueError, match=r"mode must be one of .*'backtrack'"):
      call()


# ---- the task


def test_the_task_and_its_episodes():
  task = tasks.countdown_task(n=3, ops='+-', max_value=99, mode='backtrack')
  assert task.episode_length == 11
  with pytest.raises(ValueError, match='thinking_budget=10 is below one'):
    steps.make_generate(None, task, group_size=1, thinking_budget=10)
  text = '7 5 + 12 3 + 15 no ; back 1 3 - 9 yes ; </think> 7 5 + 3 - <eos>'
  tokens = jnp.asarray([ids(text)])
  thinking = (jnp.arange(tokens.shape[1]) >= 7)[None]
  thinking &= jnp.arange(tokens.shape[1]) < 7 + 9 + 7
  found = episodes.from_delimiters(
    tokens, thinking, delimiter_ids=task.delimiter_ids, max_episodes=4
  )
  np.testing.assert_array_equal(found.ends, [[6, 15, 22, 22, 22]])
  assert found.count == 2
  checked = tasks.TASKS['countdown_backtrack'].check_trace(tokens[0])
  assert [e.valid for e in checked] == [True] * 2


@pytest.mark.full
def test_exact_j_at_each_going_back():
  """Against each prefix on its own, stopped, with each accepted answer."""
  task = tasks.countdown_task(n=3, ops='+-', max_value=99, mode='backtrack')
  config = tiny(vocab_size=128)
  model, params = make_model(config), lively_params(config)
  text = '7 5 + 12 3 + 15 no ; back 1 3 - 9 yes ; </think> 7 5 + 3 - <eos>'
  tokens = jnp.asarray([ids(text)])
  place = jnp.arange(tokens.shape[1])[None]
  found = episodes.from_delimiters(
    tokens,
    (place >= 7) & (place < 7 + 9 + 7),
    delimiter_ids=task.delimiter_ids,
    max_episodes=3,
  )
  arrays = countdown.problem_arrays([EASY], max_answers=4)
  success = prover.exact(
    model,
    params,
    tokens,
    jnp.ones(tokens.shape, bool),
    found.ends,
    arrays['answers'],
    arrays['answer_mask'],
    stop_ids=task.stop_ids,
  )[0]
  assert len(EASY.answers) > 1
  for j, end in enumerate([6, 15, 22, 22]):
    prefix = [*tokens[0, : end + 1].tolist(), tokenizer.END_THINK]
    total = 0.0
    for answer in EASY.answers:
      whole = jnp.asarray([[*prefix, *answer, tokenizer.EOS]])
      log_probs, _ = scoring.score(
        model, params, whole, jnp.ones(whole.shape, bool)
      )
      total += float(jnp.exp(log_probs[0, len(prefix) :].sum()))
    # Of random weights they are tiny: the ratio is what can be wrong.
    assert float(success[j]) / total == pytest.approx(1, rel=1e-3)
  smallest, _, largest = sorted(map(float, success[:3]))
  assert largest > 1.01 * smallest > 0


@pytest.mark.full
def test_from_a_warm_start_to_a_report(small, tmp_path):
  config = small.config('sft', 'backtrack,tiny', total_steps=2)
  start = small.run(config, tmp_path / 'base')
  assert start.code == signals.EXIT_OK, start.err
  # Nothing is learned in two steps: no episode is of the grammar.
  assert start.rows[-1]['eval/episodes_well_formed'] == 0
  config = small.config(
    'mrt', 'backtrack,tiny', total_steps=2, init_from=str(tmp_path / 'base')
  )
  result = small.run(config, tmp_path / 'mrt')
  assert result.code == signals.EXIT_OK, result.err
  assert [row['step'] for row in result.rows] == [1, 2]
  config, params = evaluate.policy(
    str(tmp_path / 'mrt'), None, base=False, which='last'
  )
  found = evaluation.evaluate(
    config,
    params,
    name='MRT',
    algorithm='mrt',
    num_problems=8,
    batch_size=8,
    samples=2,
    sample_problems=4,
    extrapolate=(2,),
    extrapolate_problems=4,
  )
  assert found['scalars']['episodes_true'] == 0
  assert found['extrapolation']['horizons'] == [27, 54]
  (tmp_path / 'mrt' / 'eval.json').write_text(json.dumps(found))
  page = report.build_report([tmp_path / 'mrt'], tmp_path / 'report.html').html
  assert 'Sample traces' in page.read_text()
