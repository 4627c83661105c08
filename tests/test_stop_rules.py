"""The file of stop rules: what is written is read, anything else refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import eval_partial, stop_rules, stopping, weights


def head(seed):
  normal = lambda i, *shape: jax.random.normal(jax.random.key(seed + i), shape)
  return stopping.ProgressHead(
    shift=normal(0, 4),
    scale=normal(1, 4),
    hidden=normal(2, 5, 3),
    bias=normal(3, 3),
    out=normal(4, 3, 2),
    out_bias=normal(5, 2),
    horizons=jnp.array([9.0]),
    budget=jnp.array(36.0),
  )


def rules():
  choice = lambda rule, mode, threshold: {
    'rule': rule,
    'mode': mode,
    'threshold': threshold,
  }
  return stop_rules.StopRules(
    {'own': head(0), 'forced': head(9)},
    [
      choice('progress', 'own', 0.1),
      choice('progress', 'forced', 0.2),
      choice('agreement', 'own', None),
    ],
    {'alpha': 0.01, 'delta': 0.1, 'budget': 36},
  )


def test_what_is_written_is_read(tmp_path):
  stop_rules.save(tmp_path / stop_rules.NAME, rules())
  for path in (tmp_path, tmp_path / stop_rules.NAME):  # a run folder, or a file
    found = stop_rules.load(path)
    assert found.choices == rules().choices
    assert found.about == rules().about
    same = jax.tree.map(np.array_equal, found.heads, rules().heads)
    assert all(jax.tree.leaves(same))
    x, t = jnp.ones((2, 4)), jnp.array([0, 9])
    np.testing.assert_array_equal(
      stopping.progress_index(found.heads['own'], x, t),
      stopping.progress_index(rules().heads['own'], x, t),
    )


def test_thresholds():
  assert rules().threshold('progress') == 0.1
  assert rules().threshold('progress', forced=True) == 0.2
  with pytest.raises(ValueError, match='no threshold was shown to spoil'):
    rules().threshold('agreement')
  with pytest.raises(ValueError, match=r"'confidence' \(own\) was not calib"):
    rules().threshold('confidence')


def test_rules_of_another_policy_or_budget():
  params = {'a': jnp.ones(3)}
  own = dataclasses.replace(
    rules(),
    about=rules().about | {'policy': eval_partial.digest_of(params)},
  )
  own.check(36, params)
  with pytest.raises(ValueError, match='budget of 36 thinking tokens.* 27'):
    own.check(27)
  with pytest.raises(ValueError, match='other weights'):
    own.check(36, {'a': jnp.zeros(3)})


def test_other_files_are_refused(tmp_path):
  with pytest.raises(weights.WeightsError, match='does not exist'):
    stop_rules.load(tmp_path)
  path = tmp_path / 'policy.safetensors'
  weights.save_safetensors(path, {'a': jnp.ones(2)}, {})
  with pytest.raises(weights.WeightsError, match='holds no stop rules'):
    stop_rules.load(path)
  path.write_bytes(b'no tensors')
  with pytest.raises(weights.WeightsError):
    stop_rules.load(path)
