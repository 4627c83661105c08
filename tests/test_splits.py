"""One optimizer step on eight devices, in every split of them."""

import json

import pytest

# A step of SGD at rate 1 is the gradient. Rows with padding on either side, of
# a length that no axis divides; 4 heads over 2 of keys, which a tensor axis of
# 4 or 8 does not.
SPLITS = """
import itertools, json
import jax, numpy as np, jax.numpy as jnp, optax
from meta_rl import models, scoring, sharding, update
from meta_rl.types import WeightedSum

rng = np.random.default_rng(0)
LENGTH = 61  # which nothing divides
tokens = rng.integers(1, 64, (8, LENGTH)).astype(np.int32)
mask = np.ones((8, LENGTH), bool)
mask[:3, :5], mask[4, 50:] = False, False
batch = {'tokens': tokens, 'token_mask': mask}
optimizer = optax.sgd(1.0)

def step_of(model):
  def loss_fn(params, rows):
    log_probs, _ = scoring.score(
      model, params, rows['tokens'], rows['token_mask'], chunk=16
    )
    own = rows['token_mask'].at[:, 0].set(False)
    total = -jnp.where(own, log_probs, 0.0).sum()
    return WeightedSum(total, own.sum().astype(jnp.float32)), {}

  def make_update(axis_name, spread):
    return lambda state, rows: update.update(
      state, rows, loss_fn=spread(loss_fn), optimizer=optimizer,
      mini_batches=1, epochs=1, micro_batches=1, axis_name=axis_name,
    )

  return make_update

found = {}
every = itertools.product((1, 2, 4, 8), repeat=4)
sizes = [split for split in every if np.prod(split) == 8]
assert len(sizes) == 20
reverse = jax.devices()[::-1]
for attention in ('dense', 'flash'):
  config = models.TransformerConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=4, num_kv_heads=2,
    ffn_width=64, scan_layers=True, remat='full', attention=attention,
  )
  params = models.init_params(config, jax.random.key(0))
  make_update = step_of(models.make_model(config))
  state = update.init_state(params, optimizer, 0)
  one, _ = jax.jit(make_update(None, lambda loss_fn: loss_fn))(state, batch)
  wanted = jax.tree.map(lambda a, b: np.asarray(a - b), one.params, params)
  # Dense attention is the compiler's alone: a few splits say as much.
  for split in sizes if attention == 'flash' else sizes[::6]:
    for devices in (None, reverse) if split == (2, 2, 1, 2) else (None,):
      mesh = sharding.make_mesh(*split, devices=devices)
      run = jax.jit(sharding.sharded_update(mesh, make_update))
      many, _ = run(sharding.put_state(mesh, state), batch)
      gap = jax.tree.map(
        lambda new, old, step: float(
          np.abs(np.asarray(new) - np.asarray(old) - step).max()
          / np.abs(step).max()
        ),
        jax.device_get(many.params), params, wanted,
      )
      name = f'{attention} {split}' + ('' if devices is None else ' reversed')
      found[name] = max(jax.tree.leaves(gap))
print(json.dumps(found))
"""

QUICK = {
  'XLA_FLAGS': '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true',
}


@pytest.mark.full
@pytest.mark.soak
def test_every_split_of_eight_gives_the_gradient_of_one(run_python):
  output = run_python(SPLITS, env=QUICK, timeout=550)
  found = json.loads(output.splitlines()[-1])
  assert len(found) == 25, sorted(found)
  assert {k: v for k, v in found.items() if not v <= 1e-4} == {}
