"""Tests of meta_rl.episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import episodes
from meta_rl.types import Episodes

D = 5  # the delimiter of these tests


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    (
      'a\n\nb\n\nc\n\nWait, d\n\ne\n\nf\n\nAlternatively, g',
      ['a\n\nb\n\nc', 'Wait, d\n\ne\n\nf', 'Alternatively, g'],
    ),
    # The first two markers find 1 and 2 paragraphs, the third finds 3.
    (
      'a\n\nWait b\n\nWait c\n\nWait d\n\ne',
      ['a\n\nWait b\n\nWait c', 'Wait d\n\ne'],
    ),
    # After a cut the paragraphs are counted from 1 again.
    ('a\n\nb\n\nc\n\nWait d\n\nWait e', ['a\n\nb\n\nc', 'Wait d\n\nWait e']),
    ('', ['']),
    ('Wait', ['Wait']),
    ('a\n\nb\n\nc\n\nWaiting', ['a\n\nb\n\nc', 'Waiting']),
    ('a\n\nb\n\nc\n\n Wait', ['a\n\nb\n\nc\n\n Wait']),
    ('a\n\nb\n\nc\n\nwait', ['a\n\nb\n\nc\n\nwait']),
    # An odd newline begins the next paragraph, which then is no marker.
    ('a\n\nb\n\nc\n\n\nWait', ['a\n\nb\n\nc\n\n\nWait']),
    ('a\n\nb\n\nc\n\n\n\nWait\n\n', ['a\n\nb\n\nc', 'Wait']),
  ],
)
def test_split_text(text, want):
  assert episodes.split_text(text) == want
  spans = episodes.split_spans(text)
  assert [text[start:end] for start, end in spans] == want


def test_split_text_options():
  text = 'a\n\nb\n\nc\n\nWait, d\n\ne\n\nf\n\nAlternatively, g'
  assert episodes.split_text(text, max_cuts=1) == [
    'a\n\nb\n\nc',
    'Wait, d\n\ne\n\nf\n\nAlternatively, g',
  ]
  assert episodes.split_text(text, max_cuts=0) == [text]
  assert episodes.split_text(text, markers=()) == [text]
  assert len(episodes.split_text(text, markers=('Wait',))) == 2
  assert episodes.split_text('a\n\nWait', min_paragraphs=1) == ['a', 'Wait']
  assert episodes.split_text('Wait\n\nWait', min_paragraphs=1) == ['Wait'] * 2
  with pytest.raises(ValueError, match='max_cuts'):
    episodes.split_text(text, max_cuts=-1)


@pytest.mark.parametrize('marker', episodes.R1_MARKERS)
def test_every_marker_cuts(marker):
  assert len(episodes.split_text(f'a\n\nb\n\nc\n\n{marker} d')) == 2


def test_default_cuts_stop_at_49():
  text = '\n\n'.join(['a\n\nb\n\nc'] + ['Wait\n\nb\n\nc'] * 60)
  parts = episodes.split_text(text)
  assert len(parts) == 50
  assert parts[-1].count('Wait') == 12
  assert '\n\n'.join(parts) == text


def test_merge():
  assert episodes.merge(['a', 'b', 'c', 'd', 'e'], 2) == [
    'a\n\nb',
    'c\n\nd',
    'e',
  ]
  assert episodes.merge([], 3) == []
  with pytest.raises(
    ValueError, match='group_size must be a whole number >= 1, got 0'
  ):
    episodes.merge(['a'], 0)


def _rows():
  """Rows with delimiters at hand-picked places; thinking is between columns."""
  spans = [
    # (first thinking column, one past the last, delimiter columns)
    (2, 9, [3, 6]),  # a tail 7..8
    (2, 9, [4, 8]),  # the last delimiter ends the thinking
    (2, 9, [2, 3, 4, 5, 6]),  # more episodes than K = 3
    (2, 9, []),  # one episode
    (0, 0, []),  # no thinking
    (0, 10, [0]),  # thinking from the first column on
    (3, 9, [1, 2, 9]),  # delimiters outside thinking do not count
  ]
  tokens = np.full((len(spans), 10), 9, np.int32)
  mask = np.zeros((len(spans), 10), bool)
  for row, (first, stop, delimiters) in enumerate(spans):
    mask[row, first:stop] = True
    tokens[row, delimiters] = D
  return tokens, mask


def test_from_delimiters_by_hand():
  tokens, mask = _rows()
  got = episodes.from_delimiters(
    tokens, mask, delimiter_ids=(D,), max_episodes=3, start=7
  )
  want = [
    [1, 3, 6, 8],
    [1, 4, 8, 8],
    [1, 2, 3, 8],
    [1, 8, 8, 8],
    [7, 7, 7, 7],
    [-1, 0, 9, 9],
    [2, 8, 8, 8],
  ]
  np.testing.assert_array_equal(got.ends, want)
  np.testing.assert_array_equal(got.count, [3, 2, 3, 1, 0, 2, 1])
  assert got.ends.dtype == got.count.dtype == jnp.int32


def test_token_ids_by_hand():
  tokens, mask = _rows()
  cut = episodes.from_delimiters(
    tokens, mask, delimiter_ids=D, max_episodes=3, start=7
  )
  ids = episodes.token_ids(cut, 10)
  n = -1
  np.testing.assert_array_equal(
    ids[:6],
    [
      [n, n, 0, 0, 1, 1, 1, 2, 2, n],
      [n, n, 0, 0, 0, 1, 1, 1, 1, n],
      [n, n, 0, 1, 2, 2, 2, 2, 2, n],
      [n, n, 0, 0, 0, 0, 0, 0, 0, n],
      [n] * 10,
      [0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ],
  )


def _oracle(tokens, mask, delimiters, max_episodes, start):
  """Walks each row token by token."""
  ends = np.zeros((len(tokens), max_episodes + 1), np.int32)
  count = np.zeros(len(tokens), np.int32)
  for b, row in enumerate(tokens):
    where = np.flatnonzero(mask[b])
    if not len(where):
      ends[b] = start
      continue
    cuts = [where[0] - 1]
    for t in where:
      full = len(cuts) == max_episodes  # the open episode is the last one
      if (row[t] in delimiters and not full) or t == where[-1]:
        cuts.append(t)
    count[b] = len(cuts) - 1
    ends[b] = cuts + [cuts[-1]] * (max_episodes + 1 - len(cuts))
  return ends, count


@pytest.mark.parametrize('max_episodes', [1, 2, 4])
def test_from_delimiters_against_a_walk(max_episodes):
  rng = np.random.default_rng(max_episodes)
  tokens = rng.integers(0, 8, (40, 12)).astype(np.int32)
  first = rng.integers(0, 12, 40)
  stop = rng.integers(0, 13, 40)
  column = np.arange(12)
  mask = (column >= first[:, None]) & (column < stop[:, None])
  cut = jax.jit(
    lambda tokens, mask: episodes.from_delimiters(
      tokens, mask, delimiter_ids=(5, 6), max_episodes=max_episodes
    )
  )(tokens, mask)
  ends, count = _oracle(tokens, mask, (5, 6), max_episodes, -1)
  np.testing.assert_array_equal(cut.ends, ends)
  np.testing.assert_array_equal(cut.count, count)
  ids = np.asarray(episodes.token_ids(cut, 12))
  np.testing.assert_array_equal(ids >= 0, mask)
  np.testing.assert_array_equal(ids.max(axis=1) + 1, count)


def test_from_budgets_by_hand():
  mask = np.zeros((4, 10), bool)
  mask[0, 2:9] = True  # 7 tokens
  mask[1, 2:6] = True  # 4: ends on a budget, which opens no further episode
  mask[2, 2:3] = True  # 1
  start = jnp.array([0, 0, 0, 6], jnp.int32)
  got = episodes.from_budgets(mask, budgets=(2, 4, 6), start=start)
  want = [[1, 3, 5, 7], [1, 3, 5, 5], [1, 2, 2, 2], [6, 6, 6, 6]]
  np.testing.assert_array_equal(got.ends, want)
  np.testing.assert_array_equal(got.count, [3, 2, 1, 0])
  # Token 8 of row 0 lies past the last budget.
  ids = episodes.token_ids(got, 10)
  np.testing.assert_array_equal(ids[0], [-1, -1, 0, 0, 1, 1, 2, 2, -1, -1])


def test_equal_budgets():
  assert episodes.equal_budgets(108, 4) == (27, 54, 81, 108)
  # 10/3 = 3.33 and 20/3 = 6.67, rounded.
  assert episodes.equal_budgets(10, 3) == (3, 7, 10)
  assert episodes.equal_budgets(2, 2) == (1, 2)
  for total, num in ((2, 3), (1, 0)):
    with pytest.raises(ValueError, match='must be a whole number >='):
      episodes.equal_budgets(total, num)


def test_budgets_may_be_traced():
  mask = np.ones((2, 5), bool)
  call = jax.jit(lambda b: episodes.from_budgets(mask, budgets=b).ends)
  got = call(jnp.array([2, 9], jnp.int32))
  np.testing.assert_array_equal(got, [[-1, 1, 4]] * 2)


def test_vmap_over_a_leading_axis():
  tokens, mask = _rows()

  def cut(tokens, mask):
    return episodes.from_delimiters(
      tokens, mask, delimiter_ids=(D,), max_episodes=3
    )

  alone = cut(tokens, mask)
  mapped = jax.vmap(cut)(np.stack([tokens] * 2), np.stack([mask] * 2))
  np.testing.assert_array_equal(mapped.ends, np.stack([alone.ends] * 2))
  np.testing.assert_array_equal(mapped.count, np.stack([alone.count] * 2))


def test_rejects_wrong_arguments():
  tokens, mask = _rows()
  kwargs = {'delimiter_ids': (D,), 'max_episodes': 3}
  with pytest.raises(ValueError, match='tokens must hold int'):
    episodes.from_delimiters(tokens.astype(np.float32), mask, **kwargs)
  with pytest.raises(ValueError, match='thinking_mask must hold bool'):
    episodes.from_delimiters(tokens, mask.astype(np.int32), **kwargs)
  with pytest.raises(ValueError, match='thinking_mask must have shape'):
    episodes.from_delimiters(tokens, mask[:, :-1], **kwargs)
  with pytest.raises(ValueError, match='tokens must have shape'):
    episodes.from_delimiters(tokens[0], mask, **kwargs)
  with pytest.raises(
    ValueError, match='max_episodes must be a whole number >= 1'
  ):
    episodes.from_delimiters(tokens, mask, delimiter_ids=D, max_episodes=0)
  with pytest.raises(ValueError, match='start must have shape'):
    episodes.from_delimiters(tokens, mask, start=np.array([1, 2]), **kwargs)
  for budgets in ([], [0, 3], [3, 3], [4, 2], [1.5]):
    with pytest.raises(ValueError, match='budgets must be'):
      episodes.from_budgets(mask, budgets=budgets)
  with pytest.raises(ValueError, match='budgets must hold int'):
    episodes.from_budgets(mask, budgets=jnp.array([1.5]))
  ends = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match='episodes.ends must hold int'):
    episodes.token_ids(Episodes(ends, np.zeros(2, np.int32)), 4)
