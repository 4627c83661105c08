"""Episodes of a thought in text, cut on the host at token boundaries.

`episodes.split_spans` says where a text is cut; this says which tokens that is:

  text      First.\\n\\nSo.\\n\\nHm.\\n\\nWait, no.
  spans     0                 ^       ^
  tokens    First  .\\n\\n  So  .\\n\\n  Hm  .\\n\\n  Wait  ,  no  .
  episode     0      0    0    0    0    0     1   1   1  1

The ids that were sampled are kept: encoding the text again would give others,
whose log-probs nobody recorded. Each token is given the text that it completes,
and a boundary falls on the token that completes the last character of an
episode. A character of UTF-8 may be spread over several tokens of a byte-level
vocabulary: it belongs to the last of them.

Axes: B traces, T tokens, K episodes at most.
"""

import codecs
import functools
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import decoders

from meta_rl import checks
from meta_rl.episodes import R1_MARKERS, split_spans
from meta_rl.types import Episodes

# Tokens that may be needed before a character is whole: four bytes, and a few
# that complete nothing.
_MOST_PENDING = 8
# Of SentencePiece, for bytes that are in no other token.
_BYTE_TOKEN = re.compile('<0x[0-9A-Fa-f]{2}>')


def token_texts(
  ids: Sequence[int], tokenizer: tokenizers.Tokenizer
) -> list[str]:
  """Returns the text that each token completes.

    ''.join(token_texts(ids)) = tokenizer.decode(ids)

  Special tokens are text too. As in `decode`, bytes that are no UTF-8 become
  U+FFFD, and ids that the tokenizer lacks have no text: the vocabulary of a
  model is often padded beyond that of its tokenizer. Of a vocabulary with byte
  tokens ('<0x0A>', as SentencePiece has) the equation holds for UTF-8 alone:
  `decode` gives a run of bytes with a mistake in it as one U+FFFD a byte, valid
  ones too, which only the end of the run tells.

  Args:
    ids: token ids, >= 0.
    tokenizer: theirs.

  Raises:
    ValueError: ids that are no whole numbers >= 0, or no tokenizer.
  """
  if not isinstance(tokenizer, tokenizers.Tokenizer):
    raise ValueError(
      f'tokenizer must be a tokenizers.Tokenizer, got {checks.show(tokenizer)}'
    )
  ids = _id_list(ids)
  if isinstance(tokenizer.decoder, decoders.ByteLevel):
    return _texts_of_bytes(ids, tokenizer)
  return _texts_by_decoding(ids, tokenizer)


def token_bytes(tokenizer: tokenizers.Tokenizer, size: int) -> list[bytes]:
  """Returns the bytes of text of each id below `size`, taken by itself.

  Those of a byte-level vocabulary are exact. In others a byte token '<0x0A>' is
  its byte, '▁' a space, and what is added is as it is written.
  """
  tokens = [tokenizer.id_to_token(index) or '' for index in range(size)]
  if isinstance(tokenizer.decoder, decoders.ByteLevel):
    return [_bytes_of(token) for token in tokens]
  return [
    bytes([int(token[3:5], 16)])
    if _BYTE_TOKEN.fullmatch(token)
    else token.replace('\u2581', ' ').encode()
    for token in tokens
  ]


def split_ids(
  ids: Sequence[int],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_episodes: int,
  group_size: int = 1,
  with_blank_line: bool = False,
  markers: Sequence[str] = R1_MARKERS,
  min_paragraphs: int = 3,
  max_cuts: int = 49,
) -> list[int]:
  """Returns the index in `ids` of the last token of each episode.

  The first `max_episodes` - 1 episodes end where the text says so, the last one
  at the last token, whatever follows it. Every token has one episode and every
  episode a token: one whose text lies within the last token of the episode
  before is part of that.

  Args:
    ids: of one thought, without the tokens that open and close it.
    tokenizer: theirs.
    max_episodes: K, at least 1.
    group_size: consecutive episodes that are taken as one, as in
      `episodes.merge`.
    with_blank_line: whether tokens of the blank line that separates two
      episodes belong to the first of them. Without, '.' ends an episode and a
      token of two line feeds behind it is the next one's; a token that holds
      both, such as '.\\n\\n', ends it either way, so that only with it all
      prefixes end alike.
    markers, min_paragraphs, max_cuts: as in `episodes.split_spans`.

  Returns:
    Increasing indices, the last one len(ids) - 1; none without ids.

  Raises:
    ValueError: an option out of its range.
  """
  checks.check_count('max_episodes', max_episodes)
  checks.check_count('group_size', group_size)
  checks.check_flag('with_blank_line', with_blank_line)
  texts = token_texts(ids, tokenizer)
  if not texts:
    return []
  reached = np.cumsum([len(text) for text in texts])
  spans = split_spans(
    ''.join(texts),
    markers=markers,
    min_paragraphs=min_paragraphs,
    max_cuts=max_cuts,
  )
  ends = []
  for (_, end), (following, _) in zip(spans, spans[1:]):
    last = int(np.searchsorted(reached, end))
    if with_blank_line:
      before = int(np.searchsorted(reached, following))
      # A token that goes on into the next episode is not taken for its spaces.
      last = max(last, before - int(reached[before] > following))
    ends.append(last)
  ends = ends[group_size - 1 :: group_size][: max_episodes - 1]
  final = len(texts) - 1
  return [*sorted({end for end in ends if end < final}), final]


def from_text(
  tokens: np.ndarray,
  thinking_mask: np.ndarray,
  *,
  tokenizer: tokenizers.Tokenizer,
  max_episodes: int,
  group_size: int = 1,
  with_blank_line: bool = False,
  start: int | np.ndarray = -1,
  markers: Sequence[str] = R1_MARKERS,
  min_paragraphs: int = 3,
  max_cuts: int = 49,
) -> Episodes:
  """Returns the episodes of traces whose thought is text (host).

  As `episodes.from_delimiters`, but cut where `split_ids` says.

  Args:
    tokens: i32[B,T].
    thinking_mask: bool[B,T], one contiguous run a row.
    tokenizer: of the tokens.
    max_episodes, group_size, with_blank_line, markers, min_paragraphs,
      max_cuts: as in `split_ids`.
    start: int or i32[B], `ends` of rows without a thinking token.

  Returns:
    `Episodes(ends i32[B,K+1], count i32[B])` of numpy arrays.

  Raises:
    ValueError: shapes that do not fit, a mask with a gap, or as `split_ids`.
  """
  tokens = checks.to_array('tokens', tokens, np.asarray)
  mask = checks.to_array('thinking_mask', thinking_mask, np.asarray)
  dims = checks.check_shape('tokens', tokens, 'B,T')
  checks.check_dtype('tokens', tokens, 'int')
  checks.check_shape('thinking_mask', mask, 'B,T', dims)
  checks.check_dtype('thinking_mask', mask, 'bool')
  checks.check_count('max_episodes', max_episodes)
  start = checks.to_array('start', start, np.asarray)
  checks.check_dtype('start', start, 'int')
  if start.ndim:
    checks.check_shape('start', start, 'B', dims)
  start = np.broadcast_to(start, len(tokens))
  ends = np.tile(start[:, None], (1, max_episodes + 1)).astype(np.int32)
  count = np.zeros(len(tokens), np.int32)
  for row in range(len(tokens)):
    places = np.flatnonzero(mask[row])
    if not len(places):
      continue
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 != len(places):
      raise ValueError(
        f'thinking_mask of row {row} has a gap between {first} and {last}: '
        'it must be one run'
      )
    found = split_ids(
      tokens[row, first : last + 1].tolist(),
      tokenizer,
      max_episodes=max_episodes,
      group_size=group_size,
      with_blank_line=with_blank_line,
      markers=markers,
      min_paragraphs=min_paragraphs,
      max_cuts=max_cuts,
    )
    count[row] = len(found)
    ends[row] = last
    ends[row, : len(found) + 1] = [first - 1, *(first + end for end in found)]
  return Episodes(ends=ends, count=count)


def _id_list(ids: Sequence[int]) -> list[int]:
  """Returns token ids as Python numbers, checked."""
  array = checks.to_array('ids', ids, np.asarray)
  whole = array.dtype.kind in 'iu' or not array.size
  if array.ndim != 1 or not whole or (array < 0).any():
    raise ValueError(
      f'ids must be a list of whole numbers >= 0, got {checks.show(ids)}'
    )
  return array.tolist()


@functools.cache
def _byte_of_letter() -> dict[str, int]:
  """Returns the byte that each letter of a byte-level vocabulary stands for.

  Printable bytes of Latin-1 stand for themselves, all others, in order, for the
  letters from U+0100 on.

  Source: the byte encoder of GPT-2 (Radford et al. 2019).
  """
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {chr(byte): byte for byte in printable}
  return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


@functools.lru_cache(maxsize=1 << 18)
def _bytes_of(token: str) -> bytes:
  table = _byte_of_letter()
  if all(letter in table for letter in token):
    return bytes(table[letter] for letter in token)
  return token.encode('utf-8')  # an added token, which is as it is written


def _texts_of_bytes(ids, tokenizer) -> list[str]:
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  texts = [
    decoder.decode(_bytes_of(tokenizer.id_to_token(index) or ''))
    for index in ids
  ]
  rest = decoder.decode(b'', final=True)
  if rest:
    texts[-1] += rest
  return texts


def _texts_by_decoding(ids, tokenizer) -> list[str]:
  """Returns what decoding gives more with each token, in any vocabulary.

  Only the last few tokens are decoded each time: a decoder looks at no more
  context than a token (it drops the first space of a text) and a character.
  """
  decode = functools.partial(tokenizer.decode, skip_special_tokens=False)
  texts, context, done = [], 0, 0
  for index in range(1, len(ids) + 1):
    text = decode(ids[context:index])
    pending = index < len(ids) and index - done < _MOST_PENDING
    if pending and text.endswith('\ufffd'):
      texts.append('')
      continue
    texts.append(text[len(decode(ids[context:done])) :])
    context, done = done, index
  return texts
