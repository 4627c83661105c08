"""Tests of meta_rl.stops."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from meta_rl import stops, text_tokenizer

# One-letter tokens, and some that a stop string begins or ends in.
WORDS = ['a', 'b', 'c', 'ab', 'xa', 'ba', 'abab', 'é', '', '\n']
TOKENS = [word.encode() for word in WORDS]


def ended(table, ids):
  """Returns after how many tokens a stop string is complete, None if never."""
  state = jnp.zeros((), jnp.int32)
  for index, token in enumerate(ids):
    state = table.step(state, jnp.asarray(token))
    if state == table.complete:
      return index + 1
  return None


@pytest.mark.parametrize(
  ('stop', 'words', 'expected'),
  [
    ('ab', ['a', 'b'], 2),
    ('ab', ['ab'], 1),
    ('ab', ['xa', 'ba', 'c'], 2),  # it begins and ends inside tokens
    ('ab', ['a', '', 'b'], 3),  # a token without text is no gap
    ('ab', ['a', 'c', 'b'], None),
    ('aab', ['a', 'a', 'a', 'b'], 4),  # what was read counts again
    ('abac', ['ab', 'ab', 'a', 'c'], 4),
    ('é', ['a', 'é'], 2),  # two bytes
    ('b\na', ['b', '\n', 'c', 'b', '\n', 'a'], 6),
    ('c', ['abab', 'a'], None),
  ],
)
def test_where_a_stop_string_is_complete(stop, words, expected):
  table = stops.make_table(TOKENS, (stop,))
  assert ended(table, [WORDS.index(word) for word in words]) == expected


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  strategies.lists(
    strategies.text('ab', min_size=1, max_size=4), min_size=1, max_size=3
  ),
  strategies.lists(strategies.sampled_from(range(8)), max_size=12),
)
def test_as_a_search_of_the_text(stop_strings, ids):
  # The oracle looks for each stop string in the text after every token.
  table = stops.make_table(TOKENS, stop_strings)
  expected = None
  for index in range(len(ids)):
    text = ''.join(WORDS[i] for i in ids[: index + 1])
    if any(stop in text for stop in stop_strings):
      expected = index + 1
      break
  assert ended(table, ids) == expected


def test_ids_beyond_the_table_have_no_text():
  table = stops.make_table(TOKENS, ('ab',))
  assert ended(table, [0, 99, -1, 1]) == 4


def test_rows_keep_their_states_under_jit():
  table = stops.make_table(TOKENS, ('ab', 'c'))
  state = jax.jit(table.step)(jnp.zeros(4, jnp.int32), jnp.array([0, 1, 2, 3]))
  end = table.complete
  # States: '' 0, 'a' 1, complete 2.
  np.testing.assert_array_equal(state, [1, 0, end, end])
  assert end == 2


def test_tokens_that_do_the_same_share_a_column():
  # Of 'ab' after '': a or xa, b or ba..., ab or abab, and no text at all.
  table = stops.make_table(TOKENS, ('ab',))
  assert table.next_state.shape[1] < len(TOKENS)
  assert len(table.class_of) == len(TOKENS)
  assert hash(table)


def test_no_stop_strings_no_table():
  assert stops.make_table(TOKENS, ()) is None
  assert text_tokenizer.load('bytes').stop_table(()) is None
  for wrong in (('a', ''), 'ab'):
    with pytest.raises(ValueError, match='stop_strings'):
      stops.make_table(TOKENS, wrong)


def test_special_tokens_have_no_text():
  words = text_tokenizer.load('bytes')
  table = words.stop_table(('\nUser:', 'think'))
  assert ended(table, words.encode('5\nUser: 1')) == 7
  assert ended(table, words.encode('5 </think><think>')) is None
  assert ended(table, words.encode('5 the thinking')) == 11


def test_a_byte_level_vocabulary_with_merges():
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  letters = ['Q', ':', 'Ċ', '.', '.Ċ', 'Q:', '.ĊQ', 'ĠQ']
  tokenizer = Tokenizer(
    models.BPE({w: i for i, w in enumerate(letters)}, merges=[])
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  words = text_tokenizer.TextTokenizer(tokenizer, eos_id=0, pad_id=0)
  table = words.stop_table(('\nQ:',))
  assert ended(table, [2, 0, 1]) == 3
  assert ended(table, [4, 5]) == 2  # '.\n' 'Q:'
  assert ended(table, [6, 1]) == 2  # '.\nQ' ':'
  assert ended(table, [2, 7, 1]) is None  # '\n Q:'


def test_bytes_and_spaces_of_sentencepiece():
  from tokenizers import Tokenizer, models

  letters = ['<unk>', '<0x0A>', '▁Q', 'Q', ':']
  tokenizer = Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(letters)}, unk_token='<unk>')
  )
  words = text_tokenizer.TextTokenizer(tokenizer, eos_id=0, pad_id=0)
  assert ended(words.stop_table(('\nQ:',)), [3, 1, 3, 4]) == 4
  assert ended(words.stop_table(('\n Q:',)), [3, 1, 2, 4]) == 4


@pytest.mark.parametrize('stop_strings', [(), ('ab',)])
def test_a_token_that_ends_every_text(stop_strings):
  table = stops.make_table(TOKENS, stop_strings, end_ids=(2,))
  assert table.end_ids == (2,)
  assert ended(table, [0, 2, 1]) == 2
  assert ended(table, [2]) == 1
  assert ended(table, [0, 1]) == (2 if stop_strings else None)
