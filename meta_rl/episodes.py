"""Cuts a thinking trace into the episodes of its meta-RL problem.

Text is cut on the host (`split_text`, for R1-style traces), tokens on the
device (`from_delimiters`, `from_budgets`). Axes: B traces, T tokens, K episodes
at most.

For tokens, `thinking_mask` is True on response tokens before the answer marker
and is one contiguous run; the marker, the answer, EOS, the prompt and padding
are False:

  tokens  <bos> 3 5 = 8 <think>  5 3 + 8 yes ;  5 3 - 2 no  </think> 5 3 + <eos>
  mask      .   . . . .    .     T T T T  T  T  T T T T  T     .     . . .   .
  ids       -   - - - -    -     0 0 0 0  0  0  1 1 1 1  1     -     - - -   -
"""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_rl import checks, masked
from meta_rl.types import Episodes

Array = jax.Array

# Openings of a paragraph that announce another attempt (arXiv 2503.07572).
R1_MARKERS = (
  'Wait',
  'But wait',
  'Alternatively',
  'Is there another way to think about this?',
  'But let me double-check',
  'But hold on',
)

_BLANK_LINE = '\n\n'


def split_spans(
  text: str,
  *,
  markers: Sequence[str] = R1_MARKERS,
  min_paragraphs: int = 3,
  max_cuts: int = 49,
) -> list[tuple[int, int]]:
  r"""Returns the character spans of the episodes of a text (host).

  A paragraph (text between blank lines) that starts with a marker opens a new
  episode, unless the current one has fewer than `min_paragraphs` paragraphs:
  then the marker is passed over and the episode goes on. The match is literal:
  case counts, nothing is stripped, and 'Waiting' starts with 'Wait'.

  Args:
    text: the thinking trace.
    markers: openings of a paragraph that start another attempt.
    min_paragraphs: paragraphs that an episode must have before it is cut, at
      least 1.
    max_cuts: cuts at most; what follows the last cut is one episode.

  Returns:
    [(start, end), …] in order, at least one; `text[start:end]` is an episode
    without its trailing newlines.

  Raises:
    ValueError: no text, `markers` that are no list of texts, `min_paragraphs`
      < 1 or `max_cuts` < 0.

  Example:
    >>> from meta_rl import episodes
    >>> text = 'a\n\nb\n\nc\n\nWait, d\n\ne'
    >>> episodes.split_spans(text)
    [(0, 7), (9, 19)]

  Source: MRT, section 6 and its public segmentation (arXiv 2503.07572).
  """
  if not isinstance(text, str):
    raise ValueError(f'text must be a str, got {checks.show(text)}')
  checks.check_texts('markers', markers)
  checks.check_count('min_paragraphs', min_paragraphs)
  checks.check_count('max_cuts', max_cuts, low=0)
  markers = tuple(markers)
  starts, position, paragraphs = [0], 0, 0
  for paragraph in text.split(_BLANK_LINE):
    opens = position > 0 and paragraph.startswith(markers)
    if opens and paragraphs >= min_paragraphs and len(starts) <= max_cuts:
      starts.append(position)
      paragraphs = 0
    paragraphs += 1
    position += len(paragraph) + len(_BLANK_LINE)
  ends = starts[1:] + [len(text)]
  return [
    (start, start + len(text[start:end].rstrip('\n')))
    for start, end in zip(starts, ends, strict=True)
  ]


def split_text(
  text: str,
  *,
  markers: Sequence[str] = R1_MARKERS,
  min_paragraphs: int = 3,
  max_cuts: int = 49,
) -> list[str]:
  r"""Returns the episodes of a text (host); see `split_spans` for the rule.

  Example:
    >>> from meta_rl import episodes
    >>> episodes.split_text('a\n\nb\n\nc\n\nWait, d\n\ne')
    ['a\n\nb\n\nc', 'Wait, d\n\ne']
  """
  spans = split_spans(
    text, markers=markers, min_paragraphs=min_paragraphs, max_cuts=max_cuts
  )
  return [text[start:end] for start, end in spans]


def merge(episodes: Sequence[str], group_size: int) -> list[str]:
  r"""Returns consecutive episodes joined with a blank line, in groups (host).

  Args:
    episodes: the episodes of one trace.
    group_size: episodes a group, at least 1; the last group may be shorter.

  Raises:
    ValueError: `episodes` that are no list of texts, or `group_size` < 1.

  Example:
    >>> from meta_rl import episodes
    >>> episodes.merge(['a', 'b', 'c'], 2)
    ['a\n\nb', 'c']
  """
  checks.check_texts('episodes', episodes)
  checks.check_count('group_size', group_size)
  return [
    _BLANK_LINE.join(episodes[i : i + group_size])
    for i in range(0, len(episodes), group_size)
  ]


def from_delimiters(
  tokens: Array,
  thinking_mask: Array,
  *,
  delimiter_ids: int | Sequence[int] | Array,
  max_episodes: int,
  start: int | Array = -1,
) -> Episodes:
  """Returns the episodes of traces whose attempts end at a delimiter token.

  A delimiter belongs to the episode that it ends; a tail after the last one is
  an episode too; and from the `max_episodes`-th on, everything to the last
  thinking token belongs to the last episode. So every thinking token has
  exactly one episode.

  Args:
    tokens: i32[B,T].
    thinking_mask: bool[B,T], one contiguous run a row.
    delimiter_ids: token ids that end an episode, e.g. `(5,)`; () where none
      does, and the whole thought is one episode.
    max_episodes: K, at least 1.
    start: int or i32[B], `ends` of rows without a thinking token, e.g. the
      last token of the prompt.

  Returns:
    `Episodes(ends i32[B,K+1], count i32[B])`.

  Raises:
    ValueError: wrong shape or dtype, no delimiter, an id that is no whole
      number >= 0, or `max_episodes` < 1.

  Example:
    >>> from meta_rl import episodes
    >>> found = episodes.from_delimiters(
    ...   [[9, 4, 5, 4, 4, 5, 7]],
    ...   [[False, True, True, True, True, True, False]],
    ...   delimiter_ids=5,
    ...   max_episodes=3,
    ... )
    >>> found.ends.tolist(), found.count.tolist()
    ([[0, 2, 5, 5]], [2])
  """
  dims = {}
  tokens = checks.as_array('tokens', tokens, 'int[B,T]', dims)
  mask = checks.as_array('thinking_mask', thinking_mask, 'bool[B,T]', dims)
  max_episodes = checks.check_count('max_episodes', max_episodes)
  if isinstance(delimiter_ids, numbers.Number):
    delimiter_ids = (delimiter_ids,)
  elif getattr(delimiter_ids, 'ndim', 1) == 0:
    delimiter_ids = delimiter_ids[None]
  checks.check_ids('delimiter_ids', delimiter_ids, empty=True)
  delimiter_ids = jnp.asarray(delimiter_ids, jnp.int32)

  is_end = mask & jnp.any(tokens[..., None] == delimiter_ids, axis=-1)
  ids = jnp.minimum(masked.exclusive_cumsum(is_end), max_episodes - 1)
  ids = jnp.where(mask, ids, -1)

  first = _before_thinking(mask, start)
  position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  episode = jnp.arange(max_episodes, dtype=jnp.int32)[:, None]
  within = (ids[:, None, :] >= 0) & (ids[:, None, :] <= episode)
  # max(·, initial = first): a row without thinking keeps `start` everywhere.
  last = jnp.max(jnp.where(within, position, first[:, None, None]), axis=-1)
  ends = jnp.concatenate([first[:, None], last], axis=1)
  return Episodes(ends=ends, count=jnp.max(ids, axis=1) + 1)


def from_budgets(
  thinking_mask: Array,
  *,
  budgets: Sequence[int] | Array,
  start: int | Array = -1,
) -> Episodes:
  """Returns the episodes between fixed token budgets, the anytime view.

    ends[:, s+1] = ends[:, 0] + min(budgets[s], length)
    count = number of s with budgets[s-1] < length   (budgets[-1] read as 0)

  Tokens past the last budget belong to no episode.

  Args:
    thinking_mask: bool[B,T], one contiguous run a row, `length` tokens long.
    budgets: i32[S], increasing, in tokens from the start of thinking.
    start: int or i32[B], `ends` of rows without a thinking token.

  Returns:
    `Episodes(ends i32[B,S+1], count i32[B])`.

  Raises:
    ValueError: wrong shape or dtype, no budget, or budgets not increasing.

  Example:
    >>> from meta_rl import episodes
    >>> thinking = [[False, True, True, True, True, True, False]]
    >>> found = episodes.from_budgets(thinking, budgets=(2, 4, 8))
    >>> found.ends.tolist(), found.count.tolist()
    ([[0, 2, 4, 5]], [3])

  Source: AnytimeReasoner (arXiv 2505.13438).
  """
  mask = checks.as_array('thinking_mask', thinking_mask, 'bool[B,T]')
  check_budgets(budgets)
  budgets = checks.as_array('budgets', budgets, 'int[S]').astype(jnp.int32)

  length = jnp.sum(mask, axis=1, dtype=jnp.int32)[:, None]
  first = _before_thinking(mask, start)[:, None]
  ends = jnp.concatenate([first, first + jnp.minimum(budgets, length)], axis=1)
  before = jnp.concatenate([jnp.zeros((1,), jnp.int32), budgets[:-1]])
  count = jnp.sum(before < length, axis=1, dtype=jnp.int32)
  return Episodes(ends=ends, count=count)


def equal_budgets(total: int, num: int) -> tuple[int, ...]:
  """Returns `num` token budgets at equal distances, the last one `total`.

    b_s = round(total·(s + 1)/num)

  Args:
    total: tokens, >= num.
    num: S, at least 1.

  Raises:
    ValueError: `num` < 1 or `total` < `num`.

  Example:
    >>> from meta_rl import episodes
    >>> episodes.equal_budgets(12, 4)
    (3, 6, 9, 12)
  """
  num = checks.check_count('num', num)
  total = checks.check_count('total', total, low=num)
  return tuple(round(total * (s + 1) / num) for s in range(num))


def token_ids(episodes: Episodes, length: int) -> Array:
  """Returns the episode of every token.

  Token t is in episode j if ends[j] < t <= ends[j+1]; -1 elsewhere. Ends that
  repeat past `count` make empty intervals, so `count` itself is not needed.

  Args:
    episodes: ends i32[B,K+1], count i32[B].
    length: T, tokens a row.

  Returns:
    i32[B,T] in -1..K-1.

  Raises:
    ValueError: no episodes, wrong shape or dtype, or `length` < 0.

  Example:
    >>> from meta_rl import episodes, types
    >>> found = types.Episodes(ends=[[0, 2, 5, 5]], count=[2])
    >>> episodes.token_ids(found, 7).tolist()
    [[-1, 0, 0, 1, 1, 1, -1]]
  """
  if not hasattr(episodes, 'ends') or not hasattr(episodes, 'count'):
    raise ValueError(f'episodes must be Episodes, got {checks.show(episodes)}')
  length = checks.check_count('length', length, low=0)
  dims = {}
  ends = checks.as_array('episodes.ends', episodes.ends, 'int[B,K+1]', dims)
  checks.as_array('episodes.count', episodes.count, 'int[B]', dims)
  position = jnp.arange(length, dtype=jnp.int32)[None, :]
  past = position[..., None] > ends[:, None, 1:]
  ids = jnp.sum(past, axis=-1, dtype=jnp.int32)
  inside = (position > ends[:, :1]) & (position <= ends[:, -1:])
  return jnp.where(inside, ids, -1)


def _before_thinking(mask: Array, start: int | Array) -> Array:
  """Returns i32[B], the index before the first True, or `start`."""
  start = checks.to_array('start', start)
  checks.check_dtype('start', start, 'int')
  if start.ndim:
    checks.check_shape('start', start, (mask.shape[0],))
  first = masked.first_true_index(mask)
  return jnp.where(first < 0, start.astype(jnp.int32), first - 1)


def check_budgets(budgets: Sequence[int] | Array) -> None:
  """Raises ValueError unless the budgets are positive and increasing."""
  if isinstance(budgets, jax.Array):
    checks.as_array('budgets', budgets, 'int[S]')
    fits = budgets.shape[0] > 0
  else:
    fits = isinstance(budgets, Sequence) or getattr(budgets, 'ndim', 0) == 1
    # Values of arrays, which may be traced, are not looked at.
    known = [] if not fits else [b for b in budgets if not _is_array(b)]
    fits = fits and len(budgets) > 0 and all(map(_is_whole, known))
    fits = fits and all(a < b for a, b in zip([0, *known], known))
  if not fits:
    raise ValueError(
      f'budgets must be at least one token count, positive and increasing, '
      f'got {checks.show(budgets)}'
    )


def _is_array(x) -> bool:
  return isinstance(x, jax.Array)


def _is_whole(x) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)
