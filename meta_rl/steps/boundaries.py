"""Where the episodes of sampled traces end, by delimiters or by budgets.

    delimiters   an episode is an attempt: it ends at a delimiter token
    budgets      an episode is what lies between two token budgets, the anytime
                 view (arXiv 2505.13438)
    text         an episode is what the task takes for one: of open-ended text

Axes: B traces, T tokens, K episodes.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from meta_rl import checks, episodes
from meta_rl.types import Array, Episodes, Rollout

BOUNDARIES = ('delimiters', 'budgets', 'text')


def check_boundaries(boundaries: str, budgets: Sequence[int] | None):
  """Raises ValueError unless budgets are given where they are used."""
  checks.check_choice('boundaries', boundaries, BOUNDARIES)
  if (boundaries == 'budgets') != (budgets is not None):
    raise ValueError(
      f'boundaries={boundaries!r} with budgets={budgets}: budgets are given '
      "with boundaries='budgets', and with that alone."
    )
  if budgets is not None:
    episodes.check_budgets(budgets)


def find_boundaries(
  traces: Rollout,
  *,
  start: int | Array,
  delimiter_ids: Sequence[int],
  max_episodes: int,
  boundaries: str = 'delimiters',
  budgets: Sequence[int] | None = None,
  segment: Callable[..., Episodes] | None = None,
) -> tuple[Episodes, Array, Array]:
  """Returns the episodes, where thinking stopped, and whether inside one.

  An end inside an episode is one where the policy, had it gone on, would have
  added to that episode: what is compared there is another way for the episode
  to end, and no decision at a boundary. That is a tail behind the last
  delimiter, all that comes from the `max_episodes`-th episode on, or a length
  between two budgets.

  Args:
    traces: tokens and thinking_mask are looked at.
    start: int or i32[B], `ends` of rows without thinking: the prompt's last
      column.
    delimiter_ids: tokens that end an episode; of 'delimiters'.
    max_episodes: K of 'delimiters' and 'text'.
    boundaries: 'delimiters', 'budgets' or 'text'.
    budgets: K token budgets, increasing; of 'budgets'. Thinking past the last
      belongs to no episode: let the last be the thinking budget.
    segment: `Task.segment`; of 'text'.

  Returns:
    The episodes; stop_index i32[B], the column behind the last thought (the
    answer marker, or EOS); inside bool[B].

  Raises:
    ValueError: budgets without 'budgets', or the other way round; 'text' of a
      task that knows no such episodes.
  """
  check_boundaries(boundaries, budgets)
  if boundaries == 'text' and segment is None:
    raise ValueError(
      "boundaries='text' is of open-ended text, which this task is not: use "
      "'delimiters' or 'budgets'."
    )
  thinking = traces.thinking_mask
  length = thinking.sum(1, dtype=jnp.int32)
  if boundaries == 'budgets':
    found = episodes.from_budgets(thinking, budgets=budgets, start=start)
    stop_index = found.ends[:, 0] + length + 1
    limits = jnp.asarray(budgets, jnp.int32)
    whole = (length[:, None] == limits).any(1) | (length > limits[-1])
  elif boundaries == 'text':
    found = segment(
      traces.tokens, thinking, max_episodes=max_episodes, start=start
    )
    stop_index = found.ends[:, 0] + length + 1
    # Where an episode ends is only seen in what follows it.
    whole = jnp.zeros(length.shape, bool)
  else:
    found = episodes.from_delimiters(
      traces.tokens,
      thinking,
      delimiter_ids=delimiter_ids,
      max_episodes=max_episodes,
      start=start,
    )
    stop_index = found.ends[:, 0] + length + 1
    last = jnp.take_along_axis(
      traces.tokens, jnp.maximum(stop_index - 1, 0)[:, None], axis=1
    )
    ended = (last == jnp.asarray(delimiter_ids, jnp.int32)).any(1)
    whole = ended & (found.count < max_episodes)
  return found, stop_index, (length > 0) & ~whole
