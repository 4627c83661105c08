"""Episodes of text at token boundaries: hand counts, round trips, edges."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from meta_rl import episodes, segments
from meta_rl.episodes import merge, split_spans

TRAINED_ON = [
  'First we add the numbers.\n\nWait, that is wrong.\n\nSo we try again.',
  'Alternatively, we multiply.\n\nBut wait, is it right?\n\nWait.\n\n',
  'caf\u00e9 na\u00efve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469',
] * 3
# The text of method and paper whose episodes are known.
GOLDEN = 'a\n\nb\n\nc\n\nWait, d\n\ne\n\nf\n\nAlternatively, g'


def byte_level(size):
  """A byte-level BPE; 256 is one token a byte."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(TRAINED_ON, trainer)
  # As DeepSeek's: an added token with letters outside of the byte alphabet.
  tokenizer.add_special_tokens(['<\uff5cend\u2581\uff5c>', '<think>'])
  return tokenizer


def byte_fallback():
  """As Llama 2 and Gemma: words with a mark for the space, and bytes."""
  words = ['\u2581Wait', '\u2581so', 'so', ',', '.', '\n\n', '\u2581', 'a', 'b']
  vocab = ['<unk>', *(f'<0x{byte:02X}>' for byte in range(256)), *words]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      {word: index for index, word in enumerate(vocab)},
      [],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  return tokenizer


BYTES, MERGED, FALLBACK = byte_level(256), byte_level(330), byte_fallback()
GENERIC = byte_level(330)
GENERIC.decoder = decoders.Sequence([decoders.ByteLevel()])  # the slow path


def encode(text, tokenizer=BYTES):
  return tokenizer.encode(text, add_special_tokens=False).ids


# ---- the text of each token


@pytest.mark.parametrize('tokenizer', [BYTES, MERGED, GENERIC])
@settings(max_examples=60)
@given(text=st.text(st.sampled_from('aW.\n \u00e9\u4f60\U0001f600\u200d')))
def test_texts_join_to_the_text(tokenizer, text):
  ids = encode(text, tokenizer)
  texts = segments.token_texts(ids, tokenizer)
  assert len(texts) == len(ids)
  assert ''.join(texts) == text == tokenizer.decode(ids)


@pytest.mark.parametrize('tokenizer', [MERGED, GENERIC])
@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 334), max_size=12))
def test_texts_of_any_ids_join_to_what_they_decode_to(tokenizer, ids):
  """Sampled ids need not be UTF-8, and special tokens are text too."""
  texts = segments.token_texts(ids, tokenizer)
  assert len(texts) == len(ids)
  assert ''.join(texts) == tokenizer.decode(ids, skip_special_tokens=False)


def test_a_character_belongs_to_the_token_that_completes_it():
  # U+1F600 is four bytes and é two.
  ids = encode('a\U0001f600\u00e9b')
  expected = ['a', '', '', '', '\U0001f600', '', '\u00e9', 'b']
  assert segments.token_texts(ids, BYTES) == expected
  # Cut within: what is there of a character is the last token's.
  assert segments.token_texts(ids[:3], BYTES) == ['a', '', '\ufffd']
  assert segments.token_texts([], BYTES) == []


def test_every_byte_has_its_letter():
  table = segments._byte_of_letter()
  assert sorted(table.values()) == list(range(256))
  assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
  # Against the library: a token of one letter decodes to that byte.
  for letter, byte in table.items():
    if byte < 0x80:
      assert decoders.ByteLevel().decode([letter]) == chr(byte)


def test_byte_fallback_and_the_first_space():
  index = FALLBACK.token_to_id
  emoji = [index(f'<0x{byte:02X}>') for byte in '\U0001f600'.encode()]
  ids = [index('\u2581so'), *emoji, index('\n\n'), index('\u2581Wait'), 0]
  texts = segments.token_texts(ids, FALLBACK)
  assert texts == ['so', '', '', '', '\U0001f600', '\n\n', ' Wait', '<unk>']
  assert ''.join(texts) == FALLBACK.decode(ids, skip_special_tokens=False)


def test_text_that_never_becomes_whole_is_given_up_on():
  """Continuation bytes for ever: linear, and every token has its place."""
  index = FALLBACK.token_to_id
  ids = [index('a'), *[index('<0x98>')] * 40, index('b')]
  texts = segments.token_texts(ids, FALLBACK)
  assert ''.join(texts) == FALLBACK.decode(ids)
  assert texts[8] != '' or texts[9] != ''
  assert texts[-1].endswith('b')


@pytest.mark.parametrize('tokenizer', [MERGED, GENERIC, FALLBACK])
def test_ids_that_the_tokenizer_lacks_have_no_text(tokenizer):
  """A model's vocabulary is padded; with random weights such ids come up."""
  ids = [64, 9999, 65, 9999]
  texts = segments.token_texts(ids, tokenizer)
  assert texts[1] == texts[3] == ''
  assert ''.join(texts) == tokenizer.decode(ids, skip_special_tokens=False)


# ---- cuts


def test_golden_cuts():
  """A token a character. 'a¶¶b¶¶c' is 7 characters, its last token is 6; the
  blank line is 7 and 8; 'Wait, d¶¶e¶¶f' is 13 from 9 on: 21, blank 22 and 23;
  'Alternatively, g' is 16 from 24 on: 39."""
  ids = encode(GOLDEN)
  split = lambda **options: segments.split_ids(
    ids, BYTES, **{'max_episodes': 5} | options
  )
  assert len(ids) == 40
  assert split() == [6, 21, 39]
  assert split(with_blank_line=True) == [8, 23, 39]
  assert split(max_cuts=1) == [6, 39]
  assert split(max_episodes=2) == [6, 39]
  assert split(max_episodes=1) == [39]
  assert split(max_episodes=3) == [6, 21, 39]
  assert split(group_size=2) == [21, 39]
  assert split(group_size=3) == [39]
  # 'Wait' is passed over then, and the episode goes on to 'Alternatively'.
  assert split(min_paragraphs=4) == [21, 39]
  assert split(min_paragraphs=7) == [39]
  assert split(markers=('Alt',)) == [21, 39]


def test_merged_tokens():
  """'.¶¶' may be one token: then it ends the episode either way."""
  tokenizer = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(['a', '.\u010a\u010a'])})
  )
  tokenizer.add_tokens(['Wait', '\u010a\u010a', '.', '.\u010a\u010aWait'])
  tokenizer.add_tokens(['\u010a\u010aWait'])
  tokenizer.decoder = decoders.ByteLevel()
  index = tokenizer.token_to_id
  split = lambda words, **options: segments.split_ids(
    [index(w) for w in words],
    tokenizer,
    max_episodes=9,
    min_paragraphs=1,
    **options,
  )
  # The letter U+010A stands for a line feed.
  both, feed = '.\u010a\u010a', '\u010a\u010a'
  assert split(['a', both, 'Wait', '.']) == [1, 3]
  assert split(['a', both, 'Wait', '.'], with_blank_line=True) == [1, 3]
  assert split(['a', '.', feed, 'Wait', '.']) == [1, 4]
  assert split(['a', '.', feed, 'Wait', '.'], with_blank_line=True) == [2, 4]
  # A token across the boundary: it has the last character of the first one.
  across = '.\u010a\u010aWait'
  assert split(['a', across, '.']) == [1, 2]
  assert split(['a', across, '.'], with_blank_line=True) == [1, 2]
  # One that has the blank line and goes on is not taken for its blank line.
  for blank in (False, True):
    words = ['a', '.', feed + 'Wait', '.']
    assert split(words, with_blank_line=blank) == [1, 3]
  # Three episodes, two of them within one token, and nothing behind it.
  assert split(['a', across, across, '.']) == [1, 2, 3]
  assert split(['a', across]) == [1]


words = st.sampled_from(
  ['Wait, no', 'Alternatively', 'so \U0001f600', 'caf\u00e9', '', '\n', 'x.']
)


@pytest.mark.parametrize('tokenizer', [BYTES, MERGED, GENERIC])
@settings(max_examples=60)
@given(
  paragraphs=st.lists(words, max_size=12),
  group_size=st.integers(1, 3),
  min_paragraphs=st.integers(1, 3),
)
def test_a_boundary_completes_its_episode(
  tokenizer, paragraphs, group_size, min_paragraphs
):
  """Against the spans: the tokens up to a boundary have the text up to the end
  of the episode, and one fewer has not."""
  text = '\n\n'.join(paragraphs)
  ids = encode(text, tokenizer)
  ends = segments.split_ids(
    ids,
    tokenizer,
    max_episodes=99,
    group_size=group_size,
    min_paragraphs=min_paragraphs,
  )
  spans = split_spans(text, min_paragraphs=min_paragraphs)
  if not ids:
    assert ends == []
    return
  groups = merge([text[a:b] for a, b in spans], group_size)
  assert len(ends) <= len(groups)
  assert ends == sorted(set(ends))
  assert ends[-1] == len(ids) - 1
  wanted = [b for _, b in spans][group_size - 1 :: group_size]
  for end in ends[:-1]:
    with_it = len(tokenizer.decode(ids[: end + 1]).rstrip('\ufffd'))
    without = len(tokenizer.decode(ids[:end]).rstrip('\ufffd'))
    # An empty first episode has the first token.
    assert any(without < max(b, 1) <= with_it for b in wanted)
  if tokenizer is BYTES:  # no token holds the end of two episodes
    first_empty = spans[0][1] == 0
    assert first_empty or len(ends) == len(groups)


# ---- batches


def test_a_batch_like_that_of_delimiters():
  ids = encode(GOLDEN)
  tokens = np.zeros((4, 50), np.int32)
  mask = np.zeros((4, 50), bool)
  tokens[0, 5:45], mask[0, 5:45] = ids, True
  tokens[2, :40], mask[2, :40] = ids, True
  tokens[3, 49], mask[3, 49] = ids[0], True
  found = segments.from_text(
    tokens, mask, tokenizer=BYTES, max_episodes=4, start=np.arange(4) + 10
  )
  # Row 0: golden cuts 6, 21, 39 behind 5 tokens; row 1 has no thought.
  np.testing.assert_array_equal(
    found.ends,
    [
      [4, 11, 26, 44, 44],
      [11, 11, 11, 11, 11],
      [-1, 6, 21, 39, 39],
      [48, 49, 49, 49, 49],
    ],
  )
  np.testing.assert_array_equal(found.count, [3, 0, 3, 1])
  assert found.ends.dtype == found.count.dtype == np.int32
  # Every thinking token has one episode, no other has.
  ids_of = np.asarray(episodes.token_ids(found, 50))
  np.testing.assert_array_equal(ids_of >= 0, mask)
  # The delimiters' own function agrees where a delimiter ends each episode.
  tokens = np.asarray([encode('x' * 3 + '\n\nWait' + 'y' * 3)])
  mask = np.ones_like(tokens, bool)
  mine = segments.from_text(
    tokens,
    mask,
    tokenizer=BYTES,
    max_episodes=3,
    min_paragraphs=1,
    with_blank_line=True,
  )
  other = np.where(np.arange(tokens.shape[1]) == 4, 10**6, tokens)
  theirs = episodes.from_delimiters(
    other, mask, delimiter_ids=10**6, max_episodes=3
  )
  np.testing.assert_array_equal(mine.ends, theirs.ends)
  np.testing.assert_array_equal(mine.count, theirs.count)


@pytest.mark.parametrize(
  'changes, line',
  [
    ({'max_episodes': 0}, 'max_episodes must be a whole number'),
    ({'group_size': 0}, 'group_size must be a whole number'),
    ({'thinking_mask': np.ones((1, 3), bool)}, 'thinking_mask must have shape'),
    ({'thinking_mask': np.ones((1, 4), int)}, 'must hold bool values'),
    ({'tokens': np.ones(4, int)}, 'tokens must have shape'),
    ({'tokens': np.ones((1, 4))}, 'tokens must hold int values'),
    (
      {'thinking_mask': np.array([[True, False, True, True]])},
      'row 0 has a gap between 0 and 3',
    ),
  ],
)
def test_arguments_that_do_not_fit(changes, line):
  arguments = {
    'tokens': np.asarray([encode('abcd')]),
    'thinking_mask': np.ones((1, 4), bool),
    'max_episodes': 3,
  }
  with pytest.raises(ValueError, match=line):
    segments.from_text(**arguments | changes, tokenizer=BYTES)
