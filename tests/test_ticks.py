"""Rows that come and go say what each would say alone, rules included."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import serving
import toys
from serving import DELIMITER, END, EOS, MARKS, MODEL, PARAMS, STOP, A

from meta_rl import anytime, models, stopping, stops
from meta_rl.serving import ticks

COUNT = 24
CONFIG_WIDTH = serving.CONFIG.width


@pytest.fixture(scope='module')
def made():
  engine = serving.make(length=64)
  engine.start(warm=False)
  yield engine
  engine.stop()


def test_tokens_are_those_of_a_stream(made):
  requests = serving.some_requests(COUNT)
  found = serving.answers(made, requests)
  assert [tokens for tokens, *_ in found] == list(map(serving.alone, requests))
  assert made.stats['rounds'] * 2 > 64  # the ring has gone round
  assert made._state.cache['index'] < 64
  lengths = {len(tokens) for tokens, *_ in found}
  assert len(lengths) > 3  # they came and went at different steps
  by = {piece.usage.stopped_by for *_, piece in found}
  assert by == {'model', 'budget'}


@pytest.mark.parametrize(
  'changes',
  [
    {'temperature': 0.0},
    {'temperature': 0.6, 'top_p': 0.7},
    {'thinking_budget': None},
    {'thinking_budget': 0},
  ],
)
def test_other_requests(made, changes):
  requests = serving.some_requests(5, **changes)
  found = serving.answers(made, requests)
  assert [tokens for tokens, *_ in found] == list(map(serving.alone, requests))


def test_rows_of_all_kinds_side_by_side(made):
  kinds = [{'temperature': 0.0}, {'top_p': 0.5}, {'thinking_budget': 3}]
  requests = [
    dataclasses.replace(asked, **kinds[i % 3])
    for i, asked in enumerate(serving.some_requests(9))
  ]
  found = serving.answers(made, requests)
  assert [tokens for tokens, *_ in found] == list(map(serving.alone, requests))


def test_draws_are_by_seed_branch_and_step_alone(made):
  """Branches are the traces of a group; neighbours and rows do not matter."""
  asked = serving.request(seed=5)
  branches = [dataclasses.replace(asked, branch=i) for i in range(4)]
  expected = serving.generated(asked, group_size=4)
  others = serving.some_requests(5, temperature=2.0)
  found = serving.answers(made, others[:2] + branches + others[2:])
  assert [tokens for tokens, *_ in found[2:6]] == expected
  assert len({tuple(tokens) for tokens in expected}) == 4


def test_a_thought_of_least_length(made):
  """As budget forcing without wait tokens."""
  requests = serving.some_requests(6, min_thinking=7, max_new_tokens=20)
  found = serving.answers(made, requests)
  for asked, (tokens, kinds, _, piece) in zip(requests, found):
    assert [tokens] == serving.generated(asked, min_thinking=7)
    assert piece.usage.thinking >= 7 == kinds[:7].count(ticks.THOUGHT)


@functools.cache
def _offline(rule, every, max_looks):
  return jax.jit(
    lambda prompts, mask, key, threshold, head: anytime.generate(
      MODEL,
      PARAMS,
      prompts,
      mask,
      key,
      rule=rule,
      threshold=threshold,
      head=head,
      thinking_budget=9,
      answer_length=A,
      eos_id=EOS,
      think_end_id=END,
      stop_ids=STOP,
      delimiter_ids=(DELIMITER,),
      every=every,
      max_looks=max_looks,
    )
  )


def offline(asked, head=None):
  """Returns what `anytime.generate` gives to a request, and its looks."""
  prompts, mask = serving.batch_of(asked)
  trace, looks = jax.device_get(
    _offline(asked.rule, asked.every or None, asked.max_looks)(
      prompts, mask, jax.random.key(asked.seed), asked.threshold, head
    )
  )
  length = prompts.shape[1]
  real = np.asarray(trace.token_mask[0, length:])
  tokens = np.asarray(trace.tokens[0, length:])[real].tolist()
  count = int(looks.count[0]) + 1
  return tokens, looks, np.asarray(looks.scores[0, :count])


def check_rule(engine, requests, head=None):
  """Asserts that the engine does what is done offline; returns its pieces."""
  pieces = []
  for asked, (tokens, kinds, scores, piece) in zip(
    requests, serving.answers(engine, requests)
  ):
    expected, looks, seen = offline(asked, head)
    # A probe without an end is gone on with here: as far as it goes offline.
    assert tokens[: len(expected)] == expected, asked
    if asked.max_new_tokens == 9 + len(STOP) + A:
      assert len(tokens) <= asked.max_new_tokens
    # Where the budget is spent there is nothing to decide, and no look.
    assert len(scores) in (len(seen), len(seen) - 1)
    np.testing.assert_allclose(
      [score for _, score in scores], seen[: len(scores)], rtol=1e-4, atol=1e-5
    )
    usage = piece.usage
    if looks.stopped[0] and len(scores) == len(seen):
      assert usage.stopped_by == asked.rule
      assert usage.thinking == scores[-1][0]
    if len(scores) == len(seen):
      assert usage.probe == int(looks.probe_tokens[0])
    assert usage.thinking == kinds.count(ticks.THOUGHT)
    assert usage.answer == len(tokens) - usage.thinking
    pieces.append(piece)
  return pieces


@pytest.mark.parametrize(
  'rule, threshold', [('confidence', 0.005), ('agreement', 2.0)]
)
def test_rules_that_probe(made, rule, threshold):
  requests = serving.some_requests(
    COUNT, rule=rule, threshold=threshold, every=1, greedy_answer=True
  )
  requests = [dataclasses.replace(r, max_new_tokens=14) for r in requests]
  pieces = check_rule(made, requests)
  by = {piece.usage.stopped_by for piece in pieces}
  assert rule in by
  assert len(by) > 1
  assert any(piece.usage.probe for piece in pieces)


@pytest.mark.parametrize('max_looks', [0, 2])
def test_no_more_looks_than_a_threshold_is_calibrated_for(made, max_looks):
  changes = {'rule': 'agreement', 'threshold': 2.0, 'every': 1}
  changes |= {'greedy_answer': True, 'max_new_tokens': 14}
  some = serving.some_requests(COUNT, **changes)
  requests = [dataclasses.replace(r, max_looks=max_looks) for r in some]
  check_rule(made, requests)
  found = serving.answers(made, requests)
  assert max(len(scores) for _, _, scores, _ in found) == max_looks + 1
  # Without the limit some look, and stop, later.
  found = serving.answers(made, some)
  assert max(len(scores) for _, _, scores, _ in found) > max_looks + 1


def test_a_rule_that_looks_at_features():
  dims = (CONFIG_WIDTH + 1, 5)
  keys = jax.random.split(jax.random.key(0), 2)
  head = stopping.ProgressHead(
    shift=np.zeros(CONFIG_WIDTH, np.float32),
    scale=np.ones(CONFIG_WIDTH, np.float32),
    hidden=jax.random.normal(keys[0], dims),
    bias=np.zeros(5, np.float32),
    out=jax.random.normal(keys[1], (5, 3)),
    out_bias=np.zeros(3, np.float32),
    horizons=np.asarray([2.0, 4.0], np.float32),
    budget=np.float32(9),
  )
  engine = serving.make(head=head)
  engine.start(warm=False)
  requests = serving.some_requests(
    9, rule='progress', threshold=0.05, every=2, greedy_answer=True
  )
  requests = [dataclasses.replace(r, max_new_tokens=14) for r in requests]
  pieces = check_rule(engine, requests, head)
  engine.stop()
  by = {piece.usage.stopped_by for piece in pieces}
  assert 'progress' in by
  assert len(by) > 1
  assert not any(piece.usage.probe for piece in pieces)


def test_a_rule_that_only_looks_changes_no_token(made):
  looks = {'rule': 'confidence', 'threshold': float('inf'), 'every': 3}
  requests = serving.some_requests(6, **looks)
  found = serving.answers(made, requests)
  plain = [dataclasses.replace(r, rule='budget') for r in requests]
  assert [tokens for tokens, *_ in found] == list(map(serving.alone, plain))
  assert any(len(scores) > 2 for _, _, scores, _ in found)


def test_no_probe_where_the_response_would_lack_its_slots():
  """Prompt 3, response 16 of 20 slots: 2 are left, a probe takes 5."""
  engine = serving.make(length=20)
  engine.start(warm=False)
  asked = serving.request(rule='confidence', threshold=0.0)
  ((tokens, _, scores, piece),) = serving.answers(engine, [asked])
  engine.stop()
  plain = dataclasses.replace(asked, rule='budget')
  assert tokens == serving.alone(plain)
  assert scores == []
  assert piece.usage.stopped_by != 'confidence'


def test_a_probe_without_an_end_is_gone_on_with(made):
  """Threshold 0 stops at once; the answer is the greedy one of budget 0."""
  changes = {'max_new_tokens': 30, 'temperature': 0.0}
  zero = serving.some_requests(8, thinking_budget=0, **changes)
  requests = [
    dataclasses.replace(r, rule='confidence', thinking_budget=9) for r in zero
  ]
  found = serving.answers(made, requests)
  assert [tokens for tokens, *_ in found] == list(map(serving.alone, zero))
  longest = max(len(tokens) for tokens, *_ in found)
  assert longest > len(STOP) + A  # some went on
  assert all(piece.usage.probe == 0 for *_, piece in found)


@pytest.mark.full
@pytest.mark.parametrize(
  'changes',
  [
    {'scan_layers': True},
    {'sliding_window': 4, 'local_layers': (True, False)},
  ],
)
def test_other_caches(changes):
  config = toys.tiny(**changes)
  model = models.make_model(config)
  params = toys.lively_params(config)
  engine = serving.make(model, params)
  engine.start(warm=False)
  requests = serving.some_requests(7)
  found = serving.answers(engine, requests)
  engine.stop()
  expected = [serving.alone(asked, model, params) for asked in requests]
  assert [tokens for tokens, *_ in found] == expected


@pytest.mark.full
def test_stop_strings_end_an_answer_on_the_device():
  """Tokens are letters; 'bb' ends an answer, in a thought it does not."""
  letters = [b'' if i < 10 else bytes([97 + i % 3]) for i in range(32)]
  table = stops.make_table(letters, ['bb'])
  marks = dataclasses.replace(MARKS, stop_table=table)
  engine = serving.make(marks=marks)
  engine.start(warm=False)
  requests = serving.some_requests(8, max_new_tokens=30)
  found = serving.answers(engine, requests)
  engine.stop()
  cut = 0
  for asked, (tokens, *_, piece) in zip(requests, found):
    assert [tokens] == serving.generated(asked, stop_table=table)
    cut += piece.finish == 'stop' and tokens[-1] != EOS
  assert cut


def test_each_shape_is_compiled_once(made):
  before = made.traces
  serving.answers(made, serving.some_requests(COUNT))
  assert made.traces == before
  assert made._tick.traces == 1
