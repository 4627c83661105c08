"""Checkpoints of `transformers` give the logits that it gave.

The tiny random checkpoints below tests/data/hf and their logits were written by
tests/make_hf_golden.py.
"""

import functools
import json

import jax
import jax.numpy as jnp
import make_hf_golden as golden
import numpy as np
import pytest
from conftest import ROOT

from meta_rl import hf, models

DATA = ROOT / 'tests' / 'data' / 'hf'
NAMES = tuple(golden.VARIANTS)
TOKENS, MASK, POSITIONS = golden.make_inputs()
ATOL = 1e-4


@functools.cache
def loaded(name, **overrides):
  """Config and parameters of a variant."""
  config = hf.read_config(DATA / name, **overrides)
  return config, hf.load_checkpoint(DATA / name, config)


def recorded(name, key='logits'):
  """What transformers gave."""
  return np.load(DATA / name / 'golden.npz')[key]


@functools.partial(jax.jit, static_argnums=0)
def whole(config, params):
  """Logits of all rows in one pass."""
  model = models.make_model(config)
  return model.apply_fn(params, TOKENS, POSITIONS, None)[0]


@functools.partial(jax.jit, static_argnums=0)
def cached(config, params):
  """Logits of all rows, a prompt of 9 columns and then one at a time."""
  model = models.make_model(config)
  cache = model.init_cache(golden.ROWS, golden.LENGTH + 3)
  first, cache = model.apply_fn(params, TOKENS[:, :9], POSITIONS[:, :9], cache)

  def step(cache, column):
    logits, cache = model.apply_fn(
      params, column[0][:, None], column[1][:, None], cache
    )
    return cache, logits[:, 0]

  columns = jnp.asarray(TOKENS[:, 9:].T), jnp.asarray(POSITIONS[:, 9:].T)
  _, rest = jax.lax.scan(step, cache, columns)
  return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)


@pytest.mark.parametrize('name', NAMES)
def test_the_logits_are_those_of_transformers(name):
  found = whole(*loaded(name))
  np.testing.assert_allclose(found[MASK], recorded(name)[MASK], atol=ATOL)


@pytest.mark.parametrize('name', NAMES)
def test_so_are_those_of_decoding_with_a_cache(name):
  found = cached(*loaded(name))
  np.testing.assert_allclose(found[MASK], recorded(name)[MASK], atol=ATOL)


@pytest.mark.parametrize(
  'name, forward', [('qwen2_yarn', whole), ('gemma3_text', cached)]
)
def test_scanned_layers_may_differ_in_window_and_rope(name, forward):
  found = forward(*loaded(name, scan_layers=True, remat=True))
  np.testing.assert_allclose(found[MASK], recorded(name)[MASK], atol=ATOL)


def test_the_cap_that_transformers_drops_can_be_applied():
  config, params = loaded('gemma3_text', attention_softcap=1.0)
  expected = recorded('gemma3_text', 'capped_logits')[MASK]
  np.testing.assert_allclose(whole(config, params)[MASK], expected, atol=ATOL)
  dropped = recorded('gemma3_text')[MASK]
  assert np.abs(expected - dropped).max() > 0.05


@pytest.mark.full
def test_the_inputs_try_what_can_differ():
  """Each switch, taken back, gives other logits on some row."""
  changes = {
    'llama_rope': ('rope_scaling',),
    'qwen2_yarn': ('rope_scaling', 'sliding_window'),
    'gemma3_text': (
      *('rope_scaling', 'query_scale', 'embedding_scale', 'local_rope_base'),
      *('logit_softcap', 'sliding_window'),
    ),
  }
  for name, switches in changes.items():
    values = json.loads((DATA / name / 'config.json').read_text('utf-8'))
    config, params = loaded(name)
    for switch in switches:
      fields = {switch: None}
      if switch == 'sliding_window' and config.local_rope_base is None:
        fields['local_layers'] = None
      other = whole(models.config_from_dict(vars(config) | fields), params)
      gap = np.abs(other - recorded(name))[MASK].max()
      assert gap > 100 * ATOL, (values['model_type'], switch)
