"""Small models with known answers, shared by the tests of the training step."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl.models import TransformerConfig, from_apply_fn, init_params
from meta_rl.rollout import generate


def tiny(**changes):
  """The config of a transformer that compiles in about a second."""
  sizes = {
    'vocab_size': 32,
    'num_layers': 2,
    'width': 16,
    'num_heads': 4,
    'num_kv_heads': 2,
    'ffn_width': 24,
  }
  return TransformerConfig(**sizes | changes)


def lively_params(config, seed=0, noise=0.2):
  """Parameters whose distributions are far from uniform, biases not 0."""
  params = init_params(config, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noisy = lambda x, k: 1.5 * x + noise * jax.random.normal(k, x.shape)
  return tree.unflatten([noisy(x, k) for x, k in zip(leaves, keys)])


def script_model():
  """A model that says what it is told to; params are i32[R,L].

  A row whose first token is r wants params[r, p] after position p, whatever
  it has read.
  """

  def apply_fn(params, tokens, positions, cache, mask):
    del cache, mask
    wanted = params[tokens[:, :1], jnp.maximum(positions, 0)]
    return 50.0 * jax.nn.one_hot(wanted, 32), None

  return from_apply_fn(apply_fn)


SPECIAL = 7


def counting_model():
  """A model that counts; params are logits f32[C,V].

  The next token comes from softmax(params[c]), c the number of SPECIAL tokens
  that the query may see. It is a probe of masks and caches: one key too many or
  too few changes the distribution.
  """

  def apply_fn(params, tokens, positions, cache, mask):
    del cache, positions
    seen = (mask & (tokens == SPECIAL)[:, None]).sum(-1)
    return params[seen], None

  return from_apply_fn(apply_fn)


EOS, MARKER, STOP = 2, 4, (4, 9)


def follow(script, budget, **options):
  """`generate` by `script_model`: row r wants script[r, t] as its token t.

  The prompt of row r is the token r alone.
  """
  rows = np.arange(len(script), dtype=np.int32)[:, None]
  settings = {
    'max_new_tokens': 8,
    'eos_id': EOS,
    'temperature': 0,
    'think_end_id': MARKER,
    'stop_ids': STOP,
    'check_every': 3,
  }
  return generate(
    script_model(),
    jnp.asarray(script),
    jnp.asarray(rows),
    jnp.ones((len(script), 1), bool),
    jax.random.key(0),
    thinking_budget=budget,
    **settings | options,
  )


def check_response(rollout, expected):
  """Asserts each field of a rollout in `expected`, prompts of one token cut."""
  for name, rows in expected.items():
    found = np.asarray(getattr(rollout, name))
    found = found[:, 1:] if found.ndim == 2 else found
    np.testing.assert_array_equal(found, rows, err_msg=name)


LENGTH = 12  # columns of a trace whose advantages are written down by hand


def row(rest, *spans):
  """f64[LENGTH]: `rest` everywhere but in (first, last, value) spans."""
  values = np.full(LENGTH, rest, float)
  for first, last, value in spans:
    values[first : last + 1] = value
  return values
