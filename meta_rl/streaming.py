"""The response to one prompt while it is being written, for a person (host)."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, decode, rollout
from meta_rl.types import Array, Model, Params


def stream(
  model: Model,
  params: Params,
  prompt: Sequence[int],
  key: Array,
  *,
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
  top_p: float | None = None,
  top_k: int | None = None,
  think_end_id: int | None = None,
  thinking_budget: int | None = None,
  stop_ids: Sequence[int] | None = None,
  every: int = 8,
  bucket: int = 64,
) -> Iterator[list[int]]:
  """Yields the response to one prompt as it comes, a few tokens at a time.

  The tokens are those of `generate` for this prompt and key: decoding is the
  same, cut into calls of `every` steps.

  Args:
    model, params: the network.
    prompt: token ids, at least one.
    key, max_new_tokens, eos_id, temperature, top_p, top_k, think_end_id,
      thinking_budget, stop_ids: as in `generate`.
    every: tokens at a time.
    bucket: prompts are padded to multiples of it, and the room for the response
      likewise, so that few shapes are compiled.

  Yields:
    Token ids, EOS included if it comes; forced stop tokens too.

  Raises:
    ValueError: as in `generate`; an empty prompt.
  """
  checks.check_model(model)
  checks.check_key('stream: key', key)
  checks.check_ids('stream: prompt', prompt)
  checks.check_count('stream: every', every)
  checks.check_count('stream: bucket', bucket)
  rollout.check(
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    eos_id=eos_id,
    think_end_id=think_end_id,
    stop_ids=stop_ids,
    max_new_tokens=max_new_tokens,
  )
  if thinking_budget is not None:
    checks.check_count('stream: thinking_budget', thinking_budget, low=0)
  up = lambda n: -(-n // bucket) * bucket
  length = up(len(prompt))
  tokens = jnp.zeros((1, length), jnp.int32)
  tokens = tokens.at[0, length - len(prompt) :].set(jnp.asarray(prompt))
  mask = jnp.arange(length)[None] >= length - len(prompt)
  room = up(max_new_tokens)
  stop = rollout.stop_tokens(
    think_end_id, thinking_budget, stop_ids, max_new_tokens
  )
  options = {
    'temperature': temperature,
    'top_k': top_k,
    'top_p': top_p,
    'stop': stop,
    'eos_id': eos_id,
    'think_end_id': think_end_id,
  }
  budget = room if thinking_budget is None else thinking_budget
  first, more = _stream_calls(model, room, every, tuple(options.items()))
  state = first(params, tokens, mask, key, budget)
  shown = 0
  while True:
    done, step = jax.device_get((state.done[0], state.step))
    column = state.out['tokens'][0, shown:step]
    real = state.out['token_mask'][0, shown:step]
    new = jax.device_get(column)[jax.device_get(real)].tolist()
    new = new[: max_new_tokens - shown]
    if new:
      yield new
    shown = int(step)
    if done or shown >= max_new_tokens:
      return
    state = more(params, state, key, budget)


@functools.lru_cache(maxsize=8)
def _stream_calls(model, room, every, options):
  """Returns the two jitted calls of `stream`; the second one is donated."""

  def emit(key, budget):
    return functools.partial(
      decode.emit,
      key=key,
      rows=jnp.zeros(1, jnp.int32),
      budget=jnp.full(1, budget, jnp.int32),
      **dict(options),
    )

  def first(params, tokens, mask, key, budget):
    logits, state = decode.prefill(model, params, tokens, mask, room, 1)
    return emit(key, budget)(state, logits)

  def more(params, state, key, budget):
    one = emit(key, budget)
    return decode.decode_some(model, params, state, emit=one, most=every)

  return jax.jit(first), jax.jit(more, donate_argnums=1)
