"""LoRA: begins as the model was, trains its factors alone, merges away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_rl import lora, models, scoring, update
from meta_rl.types import WeightedSum

PLAIN = models.TransformerConfig(
  vocab_size=32, num_layers=2, width=16, num_heads=2, ffn_width=24
)
OWN = dataclasses.replace(PLAIN, lora_rank=3, lora_alpha=6.0)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 32)
POSITIONS = jnp.tile(jnp.arange(7), (2, 1))


def logits(config, params):
  model = models.make_model(config)
  return model.apply_fn(params, TOKENS, POSITIONS, None)[0]


def paths(tree):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in flat}


@pytest.fixture(
  params=[
    'layers',
    pytest.param('scanned', marks=pytest.mark.full),
  ]
)
def scan(request):
  return request.param == 'scanned'


def configs(scan, **changes):
  return (
    dataclasses.replace(PLAIN, scan_layers=scan),
    dataclasses.replace(OWN, scan_layers=scan, **changes),
  )


def noisy(params):
  """The params with factors B that are not 0."""
  own, frozen = lora.split(params, lora.is_factor)
  leaves, tree = jax.tree.flatten(own)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  leaves = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return lora.join(tree.unflatten(leaves), frozen)


def test_fresh_factors_change_nothing(scan):
  plain, own = configs(scan)
  params = models.init_params(plain, jax.random.key(0))
  added = lora.add(params, own, jax.random.key(2))
  assert paths(added) == paths(models.init_params(own, jax.random.key(0)))
  np.testing.assert_array_equal(logits(own, added), logits(plain, params))
  a = added['layers' if scan else 'layers_0']['attention']['q']['lora_a']
  assert abs(float(a.std()) * 4 - 1) < 0.3  # 16 inputs: 1 / sqrt(16)


def test_merged_weights_compute_the_same(scan):
  plain, own = configs(scan)
  params = models.init_params(plain, jax.random.key(0))
  params = noisy(lora.add(params, own, jax.random.key(2)))
  merged = lora.merge(params, own)
  assert paths(merged) == paths(models.init_params(plain, jax.random.key(0)))
  np.testing.assert_allclose(
    logits(plain, merged), logits(own, params), atol=2e-5
  )
  # By hand, one layer of one projection: W + 6/3 A B.
  name = 'layers' if scan else 'layers_1'
  one = params[name]['attention']['o']
  pick = (lambda x: np.asarray(x)[1]) if scan else np.asarray
  by_hand = pick(one['kernel']) + 2 * pick(one['lora_a']) @ pick(one['lora_b'])
  np.testing.assert_allclose(
    pick(merged[name]['attention']['o']['kernel']), by_hand, atol=1e-6
  )


def test_the_reference_is_the_policy_without_its_factors(scan):
  plain, own = configs(scan)
  params = models.init_params(plain, jax.random.key(0))
  added = noisy(lora.add(params, own, jax.random.key(2)))
  base = lora.without(added)
  np.testing.assert_array_equal(logits(own, base), logits(plain, params))
  assert base['embedding'] is added['embedding']  # shared, not copied


def test_layers_are_chosen_by_name():
  own = dataclasses.replace(OWN, lora_layers=('q', 'down'))
  made = models.init_params(own, jax.random.key(0))
  with_factors = {p.split('/')[-2] for p in paths(made) if lora.is_factor(p)}
  assert with_factors == {'q', 'down'}


def test_split_and_join():
  params = models.init_params(OWN, jax.random.key(0))
  own, frozen = lora.split(params, lora.is_factor)
  assert all(lora.is_factor(p) for p in paths(own))
  assert not any(lora.is_factor(p) for p in paths(frozen))
  again = lora.join(own, frozen)
  assert paths(again) == paths(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def loss_fn(params, batch):
  log_probs, _ = scoring.score(
    models.make_model(OWN), params, batch['tokens'], batch['mask']
  )
  return WeightedSum(-log_probs.sum(), jnp.float32(batch['mask'].sum())), {}


def test_training_moves_the_factors_alone():
  params = lora.add(
    models.init_params(PLAIN, jax.random.key(0)), OWN, jax.random.key(2)
  )
  optimizer = optax.adamw(1e-2, weight_decay=0.1)
  state = update.init_state(params, optimizer, 0, lora.is_factor)
  # The optimizer keeps moments of the factors and of nothing else.
  moments = paths(state.opt_state[0].mu)
  assert moments
  assert all(lora.is_factor(path) for path in moments)
  batch = {'tokens': TOKENS, 'mask': jnp.ones(TOKENS.shape, bool)}
  step = jax.jit(
    lambda s: update.update(
      s,
      batch,
      loss_fn=loss_fn,
      optimizer=optimizer,
      epochs=3,
      micro_batches=2,
      trainable=lora.is_factor,
    )
  )
  after, _ = step(state)
  for path, old, new in zip(
    sorted(paths(params)),
    *(
      [x for _, x in sorted(_flat(tree).items())]
      for tree in (params, after.params)
    ),
  ):
    moved = bool((np.asarray(old) != np.asarray(new)).any())
    assert moved == lora.is_factor(path), path
  assert loss_fn(after.params, batch)[0].value < loss_fn(params, batch)[0].value


def _flat(tree):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  key = lambda p: jax.tree_util.keystr(p, simple=True, separator='/')
  return {key(p): x for p, x in flat}


@pytest.mark.full
def test_gradients_are_those_of_all_parameters():
  params = noisy(
    lora.add(
      models.init_params(PLAIN, jax.random.key(0)), OWN, jax.random.key(2)
    )
  )
  batch = {'tokens': TOKENS, 'mask': jnp.ones(TOKENS.shape, bool)}
  whole, _, _ = update.gradients(loss_fn, params, batch)
  own, _, _ = update.gradients(loss_fn, params, batch, trainable=lora.is_factor)
  wanted, _ = lora.split(whole, lora.is_factor)
  assert paths(own) == paths(wanted)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), own, wanted
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'lora_rank': -1}, 'lora_rank must be a whole number >= 0'),
    ({'lora_rank': 4, 'lora_layers': ()}, 'one or more of'),
    ({'lora_layers': ('q', 'head')}, 'allowed are one or more of'),
    ({'lora_alpha': 0}, 'lora_alpha must be > 0'),
  ],
)
def test_options_that_cannot_be_used(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize(
  'patterns, layers',
  [
    (('*',), ('q', 'k', 'v', 'o', 'gate', 'up', 'down')),
    ('[qkvo]', ('q', 'k', 'v', 'o')),
    (('up', 'q_proj'), ('q', 'up')),
    (['*_proj'], ('q', 'k', 'v', 'o', 'gate', 'up', 'down')),
  ],
)
def test_layers_by_pattern(patterns, layers):
  own = dataclasses.replace(OWN, lora_layers=patterns)
  assert own.lora_layers == layers


@pytest.mark.parametrize('patterns', ['qv', ('q', 'x*'), ('self_attn.*',)])
def test_a_pattern_of_no_layer_is_refused(patterns):
  with pytest.raises(ValueError, match=r"such as '\*' and '\[qkvo\]'"):
    dataclasses.replace(OWN, lora_layers=patterns)
