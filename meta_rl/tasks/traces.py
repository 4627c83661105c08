"""Warm-start traces: an imperfect search that leaves room for RL.

A trace is a prompt, episodes of trial and error, the answer marker and an
answer: `<bos> 3 5 7 = 9 <think> 7 5 + 12 3 - 9 yes ; </think> 7 5 + 3 - <eos>`.
Attempts are uniformly random with repeats, each with its own values and a
truthful verdict; with `mode='backtrack'` an episode goes back to a step of the
attempt before (meta_rl/tasks/backtrack.py). What is wrong is when the search
stops: often too early, at times after it has found an answer and gone on. That
is what reinforcement fine-tuning is to put right.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meta_rl import checks, tokenizer
from meta_rl.tasks import backtrack, check, countdown

# Four times an RL budget of 12 episodes: later extrapolation is then not into
# positions that the base policy has never seen.
MAX_EPISODES = 48


@functools.lru_cache(maxsize=1 << 16)
def _attempts(numbers, target, ops, max_value):
  """Returns (attempts i32[M,3n], right bool[M]), cached per problem."""
  table = countdown.expression_table(numbers, ops, max_value)
  right = table.values == target
  verdict = np.where(right, tokenizer.YES, tokenizer.NO)[:, None]
  delimiter = np.full_like(verdict, tokenizer.DELIMITER)
  attempts = np.hstack([table.annotated, verdict, delimiter])
  return attempts.astype(np.int32), right


def sample_trace(
  problem: countdown.Problem,
  rng: np.random.Generator,
  *,
  p_stop: float = 0.08,
  p_continue: float = 0.25,
  p_informed: float = 0.3,
  direct_share: float = 0.1,
  long_share: float = 0.06,
  ordinary_episodes: int = 16,
  max_episodes: int = MAX_EPISODES,
  mode: str = 'restart',
) -> tuple[np.ndarray, int]:
  """Returns (tokens i32[T], start): one trace, and where its loss begins.

  A 'direct' trace has no episode. A 'long' one has ordinary_episodes + 1 to
  max_episodes, uniformly, whatever it finds: it teaches positions beyond the
  RL budget, and every number of episodes. Any other stops after each episode
  with chance p_stop before its first success and 1 - p_continue from then on,
  and at ordinary_episodes at the latest. The answer copies the latest success;
  without one it is a guess.

  Args:
    problem: numbers in the order to show, with answers, ops and max_value.
    rng: consumed; the same state gives the same trace.
    p_stop: chance to give up after an episode without a success so far.
    p_continue: chance to go on after each episode once there was a success.
    p_informed: chance that a guess is an accepted answer; otherwise it is a
      uniformly random canonical expression.
    direct_share, long_share: shares of the two other kinds of trace.
    ordinary_episodes: most episodes of an ordinary trace.
    max_episodes: most episodes of a long trace.
    mode: 'restart', every episode a whole attempt, or 'backtrack'.

  Returns:
    The tokens, prompt and EOS included, and the prompt's length: tokens from
    there on are the completion.

  Raises:
    ValueError: a probability outside [0, 1], episode limits out of order, or an
      unknown mode.
  """
  check_options(
    p_stop=p_stop,
    p_continue=p_continue,
    p_informed=p_informed,
    direct_share=direct_share,
    long_share=long_share,
    ordinary_episodes=ordinary_episodes,
    max_episodes=max_episodes,
  )
  checks.check_choice('mode', mode, check.MODES)
  numbers = tuple(sorted(problem.numbers))
  rules = problem.ops, problem.max_value
  attempts, right = _attempts(numbers, problem.target, *rules)
  length = draw_length(
    rng,
    direct_share=direct_share,
    long_share=long_share,
    ordinary_episodes=ordinary_episodes,
    max_episodes=max_episodes,
  )
  if mode == 'restart':
    chosen = rng.integers(len(attempts), size=length)
  else:
    chosen, kept = backtrack.chain(numbers, *rules, rng, length)
  if length == ordinary_episodes:
    stop = draw_stop(right[chosen], rng, p_stop=p_stop, p_continue=p_continue)
    chosen = chosen[:stop]
  if mode == 'restart':
    thought = attempts[chosen].ravel()
  else:
    thought = backtrack.episode_tokens(
      numbers, *rules, chosen, kept, right[chosen]
    )
  answer = _answer(problem, rng, attempts, chosen[right[chosen]], p_informed)
  prompt = countdown.prompt_tokens(problem.numbers, problem.target)
  parts = (
    prompt,
    thought,
    [tokenizer.END_THINK],
    answer,
    [tokenizer.EOS],
  )
  return np.concatenate(parts, dtype=np.int32, casting='unsafe'), len(prompt)


def _answer(problem, rng, attempts, successes, p_informed):
  """Returns the plain tokens of the latest success, or of a guess."""
  if not len(successes) and problem.answers and rng.random() < p_informed:
    return problem.answers[rng.integers(len(problem.answers))]
  if len(successes):
    index = successes[-1]
  else:
    index = rng.integers(len(attempts))
  table = countdown.expression_table(
    problem.numbers, problem.ops, problem.max_value
  )
  return table.plain[index]


def draw_length(
  rng: np.random.Generator,
  *,
  direct_share: float,
  long_share: float,
  ordinary_episodes: int,
  max_episodes: int,
) -> int:
  """Returns how many episodes a trace has at most, by its kind.

  `ordinary_episodes` says that it is an ordinary one, which `draw_stop` may
  cut; direct and long ones are left as they are. Options as in `sample_trace`.
  """
  kind = rng.random()
  if kind < direct_share:
    return 0
  if kind < direct_share + long_share and max_episodes > ordinary_episodes:
    return int(rng.integers(ordinary_episodes + 1, max_episodes + 1))
  return ordinary_episodes


def draw_stop(
  right: np.ndarray,
  rng: np.random.Generator,
  *,
  p_stop: float,
  p_continue: float,
) -> int:
  """Returns after how many of its episodes an ordinary trace stops.

  After each episode it stops with chance p_stop before the first success and
  1 - p_continue from then on, and after the last one in any case.

  Args:
    right: bool[N], which episodes succeed.
    rng: consumed.
    p_stop, p_continue: as in `sample_trace`.
  """
  found = np.logical_or.accumulate(right)
  stop = rng.random(len(right)) < np.where(found, 1 - p_continue, p_stop)
  return int(stop.argmax()) + 1 if stop.any() else len(right)


def check_options(
  *,
  p_stop: float,
  p_continue: float,
  p_informed: float,
  direct_share: float,
  long_share: float,
  ordinary_episodes: int,
  max_episodes: int,
):
  """Raises ValueError for options of `sample_trace` out of their ranges."""
  probabilities = (p_stop, p_continue, p_informed, direct_share, long_share)
  other_shares = direct_share + long_share
  if min(probabilities) < 0 or max(*probabilities, other_shares) > 1:
    raise ValueError(
      'p_stop, p_continue, p_informed, direct_share and long_share are '
      f'{probabilities}: each must be in [0, 1], and so must the sum of the '
      'two shares'
    )
  if not 1 <= ordinary_episodes <= max_episodes:
    raise ValueError(
      f'ordinary_episodes {ordinary_episodes} must be in 1..max_episodes '
      f'({max_episodes})'
    )


def sample_traces(
  problems: Sequence[countdown.Problem],
  rng: np.random.Generator,
  count: int,
  **options,
) -> list[tuple[np.ndarray, int]]:
  """Returns `count` traces of problems drawn with replacement.

  Args:
    problems: a sequence to draw from, at least one.
    rng: consumed.
    count: how many traces.
    **options: as in `sample_trace`.
  """
  return draw_traces(sample_trace, problems, rng, count, **options)


def draw_traces(
  sample: Callable,
  problems: Sequence[Any],
  rng: np.random.Generator,
  count: int,
  **options,
) -> list:
  """Returns traces of `count` problems, drawn with replacement.

  Args:
    sample: makes one trace of a problem.
    problems: a sequence to draw from, at least one.
    rng: consumed.
    count: how many traces.
    **options: of `sample`.

  Raises:
    ValueError: there is no problem.
  """
  if not len(problems):
    raise ValueError('no problems to draw traces from: give at least one')
  return [
    sample(problems[index], rng, **options)
    for index in rng.integers(len(problems), size=count)
  ]


def longest(
  problems: Sequence[countdown.Problem],
  *,
  max_episodes: int = MAX_EPISODES,
  mode: str = 'restart',
  **options,
) -> int:
  """Returns the tokens of the longest trace that `sample_traces` may give.

  Args:
    problems: as there.
    max_episodes: most episodes of a trace.
    mode: as in `sample_trace`.
    **options: the other options of `sample_trace`, which don't matter here.
  """
  del options
  most = max(len(p.numbers) for p in problems)
  return max_trace_length(most, max_episodes, mode)


def max_trace_length(
  n: int, max_episodes: int = MAX_EPISODES, mode: str = 'restart'
) -> int:
  """Returns the tokens of the longest trace over n numbers.

  n + 4 of prompt, 3n an episode, the marker, and 2n of answer and EOS; with
  backtracking 2 more of every episode but the first.
  """
  later = 3 * n if mode == 'restart' else backtrack.longest_episode(n)
  thought = 3 * n + later * (max_episodes - 1) if max_episodes else 0
  return (n + 4) + thought + 1 + 2 * n
