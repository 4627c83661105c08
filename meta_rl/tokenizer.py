"""The fixed WordLevel vocabulary of the built-in token tasks.

Every number 0..99, every operator and every control word is one token, so that
an episode is a fixed number of tokens and an accepted answer is one known
token string. Words are separated by single spaces.
"""

import functools
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers

PAD, BOS, EOS, THINK, END_THINK, DELIMITER, EQUALS, YES, NO = range(9)
PLUS, MINUS, TIMES, DIVIDE = range(9, 13)
BACKTRACK = 13
FIRST_INTEGER = 16
MAX_INTEGER = 99
OPERATORS = {'+': PLUS, '-': MINUS, '*': TIMES, '/': DIVIDE}

WORDS = (
  *('<pad>', '<bos>', '<eos>', '<think>', '</think>', ';', '=', 'yes', 'no'),
  *OPERATORS,
  *('back', '<r1>', '<r2>'),
  *(str(value) for value in range(MAX_INTEGER + 1)),
)
VOCAB_SIZE = len(WORDS)


@functools.cache
def make_tokenizer() -> tokenizers.Tokenizer:
  """Returns the HF `tokenizers` WordLevel tokenizer of the vocabulary.

  There is no unknown token: a word outside the vocabulary is an error rather
  than a silent id. `save` on the result gives a standard `tokenizer.json`.
  """
  vocabulary = {word: index for index, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return tokenizer


def encode(text: str) -> list[int]:
  """Returns the ids of the whitespace-separated words of `text`.

  Raises:
    ValueError: a word is not in the vocabulary.
  """
  tokenizer = make_tokenizer()
  for word in text.split():
    if tokenizer.token_to_id(word) is None:
      raise ValueError(
        f'{word[:40]!r} is not one of the {VOCAB_SIZE} words: integers are '
        f'0..{MAX_INTEGER} without leading zeros, operators {list(OPERATORS)}, '
        f'control words {list(WORDS[:9])}; separate words by spaces'
      )
  return tokenizer.encode(text).ids


def decode(ids: Iterable[int]) -> str:
  """Returns the words of `ids`, joined with spaces; `encode` inverts it.

  Args:
    ids: token ids, 0..VOCAB_SIZE-1; ids from there up to the model's padded
      vocabulary have no word and are shown as `<id>` with the number.
  """
  words = []
  for index in ids:
    index = int(index)
    known = 0 <= index < VOCAB_SIZE
    words.append(WORDS[index] if known else f'<{index}>')
  return ' '.join(words)


def integer(value: int) -> int:
  """Returns the id of the integer `value`, 0..99."""
  if not 0 <= value <= MAX_INTEGER:
    raise ValueError(f'integer {value} has no token: give 0..{MAX_INTEGER}')
  return FIRST_INTEGER + int(value)
