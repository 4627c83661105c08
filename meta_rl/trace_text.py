"""Traces as rows of text, with J before and after each episode (host)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import tokenizer


def describe_traces(
  traces, measured, *, limit: int, decode: Callable = tokenizer.decode
) -> list[dict]:
  """Returns sampled traces of a training step as rows of text (host)."""
  rewards = measured.rewards
  if measured.valid is not None:
    rewards = jnp.where(measured.valid, rewards, jnp.nan)
  arrays = jax.device_get(
    {
      'tokens': traces.tokens[:limit],
      'token_mask': traces.token_mask[:limit],
      'forced': traces.forced[:limit],
      'rewards': rewards[:limit],
      'success': measured.success[:limit],
      'ends': measured.episodes.ends[:limit],
      'count': measured.episodes.count[:limit],
      'stop_index': measured.stop_index[:limit],
    }
  )
  return [describe(arrays, i, decode) for i in range(len(arrays['rewards']))]


def describe(
  arrays: dict[str, np.ndarray], i: int, decode: Callable = tokenizer.decode
) -> dict:
  """Returns trace i as text with J before and after each of its episodes.

  Its reward is None where it has none (NaN).
  """
  tokens, real = arrays['tokens'][i], arrays['token_mask'][i]
  ends, success = arrays['ends'][i].tolist(), arrays['success'][i].tolist()

  def text(start, stop):
    part = slice(max(start, 0), max(stop, 0))
    return decode(tokens[part][real[part]].tolist())

  found = [
    {
      'text': text(ends[j] + 1, ends[j + 1] + 1),
      'success': success[j + 1],
      'progress': success[j + 1] - success[j],
      'tokens': ends[j + 1] - ends[j],
    }
    for j in range(int(arrays['count'][i]))
  ]
  reward = float(arrays['rewards'][i])
  return {
    'prompt': text(0, ends[0] + 1),
    'success_start': success[0],
    'episodes': found,
    'answer': text(int(arrays['stop_index'][i]) + 1, len(tokens)),
    'reward': None if math.isnan(reward) else reward,
    'stopped': 'budget' if arrays['forced'][i] else 'policy',
  }
