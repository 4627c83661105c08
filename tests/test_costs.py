"""Tests of meta_rl.costs: forward tokens of a step, counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import lively_params, tiny

from meta_rl import costs, models, steps
from meta_rl.tasks import countdown, countdown_task

ARRAY = jnp.asarray


def answer_mask(*rows, length=6):
  """bool[B,S,A] of answers of the given lengths."""
  return ARRAY(
    [[[i < n for i in range(length)] for n in lengths] for lengths in rows]
  )


def test_exact_by_hand():
  # Row 0: 2 episodes, so 3 boundaries; answers of 6 and 4 tokens behind 1 stop
  # token feed 1 + 5 and 1 + 3: 3 * (6 + 4) = 30.
  # Row 1: no episode, 1 boundary, one answer of 6: 6.
  # Row 2: no answer is accepted: nothing is fed.
  mask = answer_mask((6, 4), (6, 0), (0, 0))
  counts = ARRAY([2, 0, 5])
  assert costs.exact_tokens(counts, mask, 1).tolist() == [30, 6, 0]
  # Two more stop tokens: 3 * 2 * 2 = 12 and 1 * 1 * 2 = 2 more.
  assert costs.exact_tokens(counts, mask, 3).tolist() == [42, 8, 0]


def test_sampled_by_hand():
  # Two boundaries x two branches: 6, 3, 1 and 0 tokens drawn feed, behind one
  # stop token, 6 + 3 + 1 and nothing.
  drawn = [[6, 3], [1, 0]]
  mask = ARRAY([[[[i < n for i in range(6)] for n in b] for b in drawn]])
  assert costs.sampled_tokens(mask, 1).tolist() == [10]
  # Two more stop tokens for each of the three branches that exist.
  assert costs.sampled_tokens(mask, 3).tolist() == [16]


def test_a_step_by_hand():
  # A group of two: a prompt of 2 tokens behind one of padding, responses of 3
  # and 1. Generation: 2 for the prompt, once, and 4. Training: 2 + 3 + 2 + 1 =
  # 8 tokens, three times.
  mask = ARRAY([[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]], bool)
  ends, fed = ARRAY([2, 2]), ARRAY([10, 6])
  found = costs.step_costs(mask, ends, fed, group_size=2)
  assert found == {'cost/generate': 6, 'cost/prove': 16, 'cost/train': 24}
  assert set(found) == set(costs.PARTS)
  # Two epochs, each 3 x 8; one scoring of 8.
  found = costs.step_costs(mask, ends, fed, group_size=2, epochs=2, scorings=1)
  assert found == {'cost/generate': 6, 'cost/prove': 16, 'cost/train': 56}
  # Rows of 5 and 7 tokens beside the traces: 3 x 2 x 12 more, and no scoring.
  more = costs.step_costs(
    mask, ends, fed, ARRAY([5, 7]), group_size=2, epochs=2, scorings=1
  )
  assert more == {'cost/generate': 6, 'cost/prove': 16, 'cost/train': 128}
  # Two groups of one pay for two prompts; without a prover nothing is proved.
  found = costs.step_costs(mask, ends, None, group_size=1)
  assert found == {'cost/generate': 8, 'cost/prove': 0, 'cost/train': 24}
  # A stale trace of 4 tokens that the group branches off had a prompt too.
  found = costs.step_costs(
    mask, ends, None, group_size=2, side_tokens=ARRAY([4, 0])
  )
  assert found['cost/generate'] == 6 + 2 + 4
  # Of the first trace alone, 5 tokens, anything is learnt: 3 x 2 x 5.
  found = costs.step_costs(
    mask, ends, None, group_size=2, epochs=2, trained=ARRAY([1, 0], bool)
  )
  assert found == {'cost/generate': 6, 'cost/prove': 0, 'cost/train': 30}


def test_a_differentiated_probe_by_hand():
  mask = ARRAY([[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]], bool)
  ends, fed, again = ARRAY([2, 2]), ARRAY([10, 6]), ARRAY([4, 0])

  def cost(prover_tokens=fed, **options):
    found = costs.step_costs(mask, ends, prover_tokens, group_size=2, **options)
    return float(found['cost/prove']), float(found['cost/train'])

  # Of the first trace 4 tokens of probes are differentiated, behind its own 5:
  # 3 x (5 + 4). The second trace has none and is not fed again.
  assert cost() == (16, 24)
  assert cost(differentiated=again) == (16, 24 + 27)
  # Every epoch does so; the prover ran once.
  assert cost(differentiated=again, epochs=2) == (16, 2 * 24 + 2 * 27)
  # Nor does it matter whether the prover is a cost.
  assert cost(None, differentiated=again) == (0, 24 + 27)


def test_numbers_are_whole_beyond_one_batch():
  mask = jnp.ones((1024, 512), bool)
  found = jax.jit(
    lambda m: costs.step_costs(m, jnp.full(1024, 9), None, group_size=8)
  )(mask)
  assert found['cost/train'] == 3 * 1024 * 512


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: costs.step_costs(
        jnp.ones((3, 4), bool), jnp.zeros(3, int), None, group_size=2
      ),
      '3 rows: give whole groups of 2',
    ),
    (
      lambda: costs.step_costs(
        jnp.ones((2, 4), bool), jnp.zeros(3, int), None, group_size=2
      ),
      r'prompt_ends must have shape \[B\] with B=2',
    ),
    (
      lambda: costs.exact_tokens(
        jnp.zeros(2, int), jnp.ones((3, 1, 2), bool), 1
      ),
      'answer_mask must have shape',
    ),
    (
      lambda: costs.sampled_tokens(jnp.ones((1, 1, 2), bool), 0),
      'stop_length must be >= 1',
    ),
    (lambda: costs.Meter(0.0), 'total_cost must be > 0'),
    (lambda: costs.Meter(None, -1.0), 'total_tokens must be > 0'),
  ],
)
def test_what_cannot_be_counted_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_the_meter():
  meter = costs.Meter(100.0, 90.0)
  row = {'cost/generate': 10.0, 'cost/prove': 20.0, 'cost/train': 30.0}
  row['rollout/tokens_sum'] = 40.0
  assert meter.add(row) == {'cost/total': 60.0, 'cost/cumulative': 60.0}
  assert not meter.reached
  assert meter.add(row) == {'cost/total': 60.0, 'cost/cumulative': 120.0}
  assert meter.reached == 'total_cost'
  assert meter.state == {'cumulative_cost': 120.0, 'cumulative_tokens': 80.0}
  # It goes on from a checkpoint, and 'reaches' is 'at least'.
  assert not costs.Meter(121.0, 81.0, meter.state).reached
  assert costs.Meter(120.0, None, meter.state).reached == 'total_cost'
  assert costs.Meter(None, 80.0, meter.state).reached == 'total_tokens'
  assert not costs.Meter(state={'cumulative_cost': 1e12}).reached


# ---- what the provers report is what they feed

TASK = countdown_task(n=3, ops='+-', max_value=99)
CONFIG = tiny(vocab_size=128, num_layers=1)
MODEL = models.make_model(CONFIG)
BATCH = countdown.problem_arrays(
  [
    countdown.make_problem((3, 5, 7), 9, '+-'),
    countdown.make_problem((2, 2, 9), 13, '+-'),
  ],
  max_answers=4,
)


@pytest.fixture(scope='module')
def traces():
  """Traces of two problems in groups of two, and their cache."""
  generate = steps.make_generate(MODEL, TASK, thinking_budget=27, group_size=2)
  params = lively_params(CONFIG)
  return params, *jax.jit(generate)(params, BATCH, jax.random.key(1))


@pytest.mark.parametrize(
  'kind, options',
  [
    ('exact', {}),
    ('sampled', {}),
    *(
      pytest.param(
        'control_variate', {'num_enumerated': n}, marks=pytest.mark.full
      )
      for n in (0, 1, None)
    ),
  ],
)
def test_the_prover_counts_what_it_feeds(kind, options, traces):
  """The oracle: tokens with a position, seen by the network itself.

  Listed answers are counted each by itself, though what several begin with is
  fed once: a run at a given cost does not depend on how well they are packed.
  """
  params, rollout, cache = traces
  seen = []

  def features_fn(params, tokens, positions, *rest):
    jax.debug.callback(lambda n: seen.append(int(n)), (positions >= 0).sum())
    return MODEL.features_fn(params, tokens, positions, *rest)

  prove = steps.make_prove(
    dataclasses.replace(MODEL, features_fn=features_fn),
    TASK,
    group_size=2,
    max_episodes=3,
    kind=kind,
    num_branches=2,
    **options,
  )
  found = jax.jit(prove)(params, BATCH, rollout, cache, jax.random.key(2))
  jax.effects_barrier()
  if kind == 'sampled' or options.get('num_enumerated') == 0:
    assert found.prover_tokens.sum() == sum(seen)
  else:
    assert 0 < sum(seen) <= found.prover_tokens.sum()
  if kind == 'exact':
    lengths = np.repeat(np.asarray(BATCH['answer_mask']).sum(-1), 2, axis=0)
    each = np.where(lengths, len(TASK.stop_ids) + lengths - 1, 0).sum(1)
    expected = (np.asarray(found.episodes.count) + 1) * each
    assert found.prover_tokens.tolist() == expected.tolist()
    assert sum(seen) < expected.sum()
    assert len(set(expected.tolist())) > 1  # the problems differ


def test_nothing_is_proved_for_nothing(traces):
  prove = steps.make_prove(
    MODEL, TASK, group_size=2, max_episodes=3, kind='none'
  )
  found = jax.eval_shape(prove, traces[0], BATCH, *traces[1:], None)
  assert found.prover_tokens is None
