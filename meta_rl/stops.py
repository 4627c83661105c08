r"""Stop strings: what ends an answer besides end-of-text, seen on the device.

A text is the bytes of its tokens, one behind the other, and a stop string may
be spelled by them in any way: its first token may begin before it, its last
one may go on behind it. All of these are found by one automaton over bytes
(Aho and Corasick 1975, https://doi.org/10.1145/360825.360855), run through
every token of the vocabulary on the host:

    state    how much of a stop string the text ends with
    table    state, token -> state; the last state: a stop string is complete

    stop string 'ab', tokens 'xa' 'ba' 'b'
    text    xa     ba
    state   0 -> 1 -> 2, complete in the middle of the second token

On the device a token costs two look-ups a row. Tokens that do the same in every
state share a column, so that the table of a large vocabulary is small. (A table
of token sequences was refused: a stop string of n letters has up to 2^(n - 1)
of them, and those that begin or end inside a token are none of these.)
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from meta_rl.types import Array


@dataclasses.dataclass(frozen=True, eq=False)
class StopTable:
  """Where texts of tokens complete a stop string; static, hashed by identity.

  Attributes:
    next_state: i32[S+1,C], of a state and a class of tokens; state 0 begins a
      text, state S is that of a complete stop string.
    class_of: i32[V], of each token.
    end_ids: tokens that end a trace as EOS does, in its thought too; in an
      answer they complete a stop string.
  """

  next_state: np.ndarray
  class_of: np.ndarray
  end_ids: tuple[int, ...] = ()

  @property
  def complete(self) -> int:
    """The state of a complete stop string."""
    return len(self.next_state) - 1

  def step(self, state: Array, token: Array) -> Array:
    """Returns the states i32[...] behind one more token of each text.

    Args:
      state: i32[...], 0 where a text begins.
      token: i32[...]; ids that the table lacks have no text.
    """
    size = len(self.class_of)
    known = (token >= 0) & (token < size)
    column = jnp.asarray(self.class_of)[jnp.where(known, token, 0)]
    return jnp.where(known, jnp.asarray(self.next_state)[state, column], state)


def make_table(
  token_bytes: Sequence[bytes],
  stop_strings: Sequence[str],
  end_ids: Sequence[int] = (),
) -> StopTable | None:
  """Returns the table of stop strings, None where nothing ends a text.

  Args:
    token_bytes: V texts in UTF-8, b'' for tokens without text.
    stop_strings: none of them empty.
    end_ids: tokens that end a text whatever theirs is, besides EOS.

  Raises:
    ValueError: an empty stop string, which would end every answer.
  """
  if isinstance(stop_strings, str) or '' in stop_strings:
    raise ValueError(
      f'stop_strings={stop_strings!r}: give a sequence of texts, none empty'
    )
  if not stop_strings and not end_ids:
    return None
  after = _automaton([text.encode() for text in stop_strings])
  states = np.repeat(np.arange(len(after))[:, None], len(token_bytes), axis=1)
  lengths = np.array([len(text) for text in token_bytes], np.int64)
  order = np.argsort(-lengths, kind='stable')
  for place in range(lengths.max(initial=0)):
    longer = order[: np.searchsorted(-lengths[order], -place)]
    byte = np.array([token_bytes[i][place] for i in longer])
    states[:, longer] = after[states[:, longer], byte]
  states[:, list(end_ids)] = len(after) - 1
  columns, class_of = np.unique(states.T, axis=0, return_inverse=True)
  return StopTable(
    np.ascontiguousarray(columns.T).astype(np.int32),
    class_of.reshape(-1).astype(np.int32),
    tuple(end_ids),
  )


def _automaton(words):
  """Returns the state behind each state and byte, i64[S+1,256]."""
  prefixes = {b''} | {w[:n] for w in words for n in range(1, len(w))}
  # A state that holds a whole stop string is never left, nor entered but once.
  prefixes = sorted(
    (p for p in prefixes if not any(w in p for w in words)),
    key=lambda p: (len(p), p),
  )
  index = {prefix: state for state, prefix in enumerate(prefixes)}
  after = np.full((len(prefixes) + 1, 256), len(prefixes))
  for prefix, state in index.items():
    for byte in range(256):
      text = prefix + bytes([byte])
      if any(text.endswith(word) for word in words):
        continue
      while text not in index:
        text = text[1:]
      after[state, byte] = index[text]
  return after
