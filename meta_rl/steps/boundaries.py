"""Where the episodes of sampled traces end, by delimiters or by budgets.

    delimiters   an episode is an attempt: it ends at a delimiter token
    budgets      an episode is what lies between two token budgets, the anytime
                 view (arXiv 2505.13438)

Axes: B traces, T tokens, K episodes.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from meta_rl import episodes, masked
from meta_rl.types import Array, Episodes, Rollout

BOUNDARIES = ('delimiters', 'budgets')


def check_boundaries(boundaries: str, budgets: Sequence[int] | None):
  """Raises ValueError unless budgets are given where they are used."""
  masked.check_choice('boundaries', boundaries, BOUNDARIES)
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
    max_episodes: K of 'delimiters'.
    boundaries: 'delimiters' or 'budgets'.
    budgets: K token budgets, increasing; of 'budgets'. Thinking past the last
      belongs to no episode: let the last be the thinking budget.

  Returns:
    The episodes; stop_index i32[B], the column behind the last thought (the
    answer marker, or EOS); inside bool[B].

  Raises:
    ValueError: budgets without 'budgets', or the other way round.
  """
  check_boundaries(boundaries, budgets)
  thinking = traces.thinking_mask
  length = thinking.sum(1, dtype=jnp.int32)
  if boundaries == 'budgets':
    found = episodes.from_budgets(thinking, budgets=budgets, start=start)
    stop_index = found.ends[:, 0] + length + 1
    limits = jnp.asarray(budgets, jnp.int32)
    whole = (length[:, None] == limits).any(1) | (length > limits[-1])
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
