"""A stream gives what `generate` gives, a few tokens at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import models, rollout, streaming

EOS, END, STOP = 2, 4, 9
CONFIG = models.TransformerConfig(
  vocab_size=16, num_layers=1, width=16, num_heads=2, ffn_width=16
)
MODEL = models.make_model(CONFIG)
PARAMS = models.init_params(CONFIG, jax.random.key(0))
OPTIONS = {
  'max_new_tokens': 21,
  'eos_id': EOS,
  'think_end_id': END,
  'thinking_budget': 6,
  'stop_ids': (END, STOP),
}
PROMPT = (1, 7, 8)


def whole(key, **options):
  """The response of `generate`, padding left out."""
  prompts = jnp.asarray([PROMPT])
  found = rollout.generate(
    MODEL, PARAMS, prompts, prompts > 0, key, **(OPTIONS | options)
  )
  start = len(PROMPT)
  return found.tokens[0, start:][found.token_mask[0, start:]].tolist()


@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.full), 8])
def test_the_tokens_are_those_of_generate(every):
  key = jax.random.key(0)
  parts = list(
    streaming.stream(
      MODEL, PARAMS, PROMPT, key, every=every, bucket=8, **OPTIONS
    )
  )
  assert sum(parts, []) == whole(key)
  assert max(map(len, parts)) <= every
  assert STOP in sum(parts, [])  # forced at the budget


def test_another_budget():
  key = jax.random.key(5)
  options = OPTIONS | {'thinking_budget': 4}
  parts = streaming.stream(MODEL, PARAMS, PROMPT, key, bucket=8, **options)
  assert sum(parts, []) == whole(key, thinking_budget=4)


def test_greedy_without_a_thought():
  options = {'max_new_tokens': 5, 'eos_id': EOS, 'temperature': 0.0}
  prompt = (1, 7, 8, 11)
  parts = streaming.stream(
    MODEL, PARAMS, prompt, jax.random.key(0), bucket=8, **options
  )
  prompts = jnp.asarray([prompt])
  found = rollout.generate(
    MODEL, PARAMS, prompts, prompts > 0, jax.random.key(1), **options
  )
  real = found.tokens[0, 4:][found.token_mask[0, 4:]]
  np.testing.assert_array_equal(sum(parts, []), real)


def test_bad_input_is_refused():
  stream = lambda prompt=PROMPT, **o: next(
    streaming.stream(MODEL, PARAMS, prompt, jax.random.key(0), **(OPTIONS | o))
  )
  with pytest.raises(ValueError, match='prompt must be a tuple of token ids'):
    stream(())
  with pytest.raises(ValueError, match='every must be a whole number'):
    stream(every=0)
  with pytest.raises(ValueError, match='temperature must be >= 0'):
    stream(temperature=-1)
