"""The fixed vocabulary: ids, round trips, words that are not in it."""

import pytest
import tokenizers

from meta_rl import tokenizer


@pytest.mark.parametrize(
  'word, index',
  [
    ('<pad>', 0),
    ('<bos>', 1),
    ('<eos>', 2),
    ('<think>', 3),
    ('</think>', 4),
    (';', 5),
    ('=', 6),
    ('yes', 7),
    ('no', 8),
    ('+', 9),
    ('-', 10),
    ('*', 11),
    ('/', 12),
    ('back', 13),
    ('<r1>', 14),
    ('<r2>', 15),
    ('0', 16),
    ('99', 115),
  ],
)
def test_ids_are_fixed(word, index):
  assert tokenizer.encode(word) == [index]
  assert tokenizer.decode([index]) == word
  assert tokenizer.WORDS[index] == word


def test_constants_name_the_words():
  names = ['PAD', 'BOS', 'EOS', 'THINK', 'END_THINK', 'DELIMITER', 'EQUALS']
  names += ['YES', 'NO', 'PLUS', 'MINUS', 'TIMES', 'DIVIDE']
  assert [getattr(tokenizer, name) for name in names] == list(range(13))
  assert tokenizer.BACKTRACK == 13
  assert tokenizer.VOCAB_SIZE == 116
  assert tokenizer.integer(7) == tokenizer.encode('7')[0]


def test_text_round_trip():
  text = '<bos> 3 5 7 = 9 <think> 7 5 + 12 3 - 9 yes ; </think> 7 5 + 3 - <eos>'
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert len(tokenizer.encode(text)) == 7 + 9 + 1 + 5 + 1


def test_saved_file_is_a_standard_tokenizer(tmp_path):
  path = str(tmp_path / 'tokenizer.json')
  tokenizer.make_tokenizer().save(path)
  loaded = tokenizers.Tokenizer.from_file(path)
  assert loaded.encode('7 5 + <eos>').ids == tokenizer.encode('7 5 + <eos>')
  assert loaded.get_vocab_size() == 116


def test_padded_vocabulary_decodes_visibly():
  assert tokenizer.decode([2, 116, 127]) == '<eos> <116> <127>'


@pytest.mark.parametrize('text', ['7 plus 5', '100', '07', '-1', '7+5'])
def test_unknown_words_are_named(text):
  with pytest.raises(ValueError, match='is not one of the 116 words'):
    tokenizer.encode(text)


@pytest.mark.parametrize('value', [-1, 100])
def test_integers_without_a_token(value):
  with pytest.raises(ValueError, match='0..99'):
    tokenizer.integer(value)
