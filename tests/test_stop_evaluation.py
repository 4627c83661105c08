"""Adaptive rules in an evaluation that is killed and goes on."""

import types

import jax
import numpy as np
import pytest
from test_stop_figures import rules

from meta_rl import eval_partial, stop_evaluation, stop_traces
from meta_rl.eval_problems import Problems

HORIZON = 18
PARAMS = {'w': np.ones(2, np.float32)}


class Stopped(Exception):
  """What stands for a signal."""


@pytest.fixture
def looked(monkeypatch):
  """Which batches are sampled, (kind, first row): other traces in each."""
  seen = []

  def make_calls(config, model, task, *, forced):
    del config, model, task

    def look(params, batch, traces, cache, key, offset):
      del params, traces, cache, key
      seen.append(('forced' if forced else 'own', offset))
      rng = np.random.default_rng(offset + 100 * forced)
      shape = len(batch['x']), 3
      return {
        'success': rng.uniform(size=shape).astype(np.float32),
        'thought': np.arange(3) * 9 + np.zeros((shape[0], 1), np.int32),
        'count': np.full(shape[0], 2, np.int32),
        'looked': np.ones(shape, bool),
        'right': rng.uniform(size=shape) < 0.5,
        'confidence': rng.uniform(size=shape).astype(np.float32),
        'agreement': np.ones(shape, np.int32),
        'probe_tokens': np.ones(shape, np.int32),
        'features': jax.numpy.ones((*shape, 2), 'bfloat16'),
      }

    generate = lambda *args: (None, None)
    return {'generate': generate, 'look': look}

  def with_index(found, head):
    del head
    assert found['features'].dtype == 'bfloat16'
    return found | {'progress': found['success'] / 10}

  monkeypatch.setattr(stop_traces, 'make_calls', make_calls)
  monkeypatch.setattr(stop_traces, 'with_index', with_index)
  return seen


def evaluate(folder, stop_after=None):
  """What `stop_evaluation` says of five problems in batches of two."""
  kit = types.SimpleNamespace(
    record_arrays=lambda record: {'x': np.array(record)}, cluster_key=str
  )
  partial = eval_partial.Partial(folder, {'seed': 1}, say=str)
  told = []

  def on_batch(*args):
    told.append(args)
    if len(told) == stop_after:
      raise Stopped

  found = rules()
  found.heads.update(own=None, forced=None)
  found.about['policy'] = eval_partial.digest_of(PARAMS)
  config = types.SimpleNamespace(
    rollout=types.SimpleNamespace(thinking_budget=HORIZON)
  )
  return stop_evaluation.evaluate(
    config,
    None,
    None,
    PARAMS,
    found,
    Problems(range(5), kit, 5, 2, partial),
    jax.random.key(0),
    on_batch=on_batch,
  )


@pytest.mark.parametrize('stop_after', [1, 4])
def test_it_goes_on_bit_for_bit(looked, tmp_path, stop_after):
  whole, stops = evaluate(tmp_path / 'whole')
  batches = [(kind, i) for kind in ('own', 'forced') for i in (0, 2, 4)]
  assert looked == batches
  looked.clear()
  with pytest.raises(Stopped):
    evaluate(tmp_path / 'part', stop_after)
  assert looked == batches[:stop_after]
  looked.clear()
  again, again_stops = evaluate(tmp_path / 'part')
  assert looked == batches[stop_after:]
  assert again == whole
  assert {k: v.tolist() for k, v in again_stops.items()} == {
    k: v.tolist() for k, v in stops.items()
  }
  kept = {path.stem for path in (tmp_path / 'part').rglob('*.npz')}
  assert kept == {
    f'rules-{kind}-{i:05d}' for kind in ('own', 'forced') for i in range(3)
  }
