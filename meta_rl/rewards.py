"""A user's own rewards: functions of a batch of text, added to the outcome.

    config.rewards = (('my_rewards.short', 0.1), ('my_rewards:polite', 0.5))

    # my_rewards.py, beside where the command is started or on PYTHONPATH
    def short(batch):
      return [-n / 100 for n in batch['tokens']]

A function gets the traces of one batch (`text_batch` says what that holds) and
returns one number or None a trace. The reward of a trace is

    r = outcome_weight * outcome + sum_i weight_i * value_i

A trace for which a function has no number (None, NaN, an infinity) has no
reward: it leaves the update and the baseline of its group, and nothing else
changes. Rewards are for training; held-out evaluation stays the task's own.

Axes: P prompts, G group, B = P * G traces.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import numbers
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from meta_rl import tokenizer
from meta_rl.files import one_line
from meta_rl.tasks.base import Task

ERRORS = ('raise', 'mask')

# The update is in f32: what that cannot hold is as good as an infinity.
_LARGEST = float(np.finfo(np.float32).max)


class RewardError(ValueError):
  """A reward function that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Reward:
  """One entry of `config.rewards`.

  Attributes:
    path: as given, 'package.module.function' or 'module:function'.
    name: what its metric is called: the last part of the path.
    weight: of its values in the sum.
    fn: `(batch) -> Sequence[float | None]`, B values.
  """

  path: str
  name: str
  weight: float
  fn: Callable[[dict[str, Any]], Sequence[float | None]]


def resolve(path: str) -> Callable:
  """Returns the function that a dotted path names.

  Args:
    path: 'package.module.function' or 'package.module:function'; a function
      inside a class is 'module:Class.function'.

  Raises:
    RewardError: no such path, a module that cannot be imported, a name that it
      lacks (the nearest ones are given), or something that is not callable.
  """
  if not isinstance(path, str):
    raise RewardError(
      f'reward {path!r} must be a string: package.module.function'
    )
  module_name, colon, attribute = path.partition(':')
  if not colon:
    module_name, _, attribute = path.rpartition('.')
  parts = [*module_name.split('.'), *attribute.split('.')]
  if not all(part.isidentifier() for part in parts):
    raise RewardError(
      f'reward {path!r} names no function: give package.module.function, or '
      'module:function'
    )
  try:
    found = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # a user's module may do anything
    raise RewardError(
      f'reward {path!r}: module {module_name!r} cannot be imported '
      f'({type(error).__name__}: {one_line(error)}); start the command in the '
      'folder that holds it, or put that folder on PYTHONPATH'
    ) from error
  for part in attribute.split('.'):
    if not hasattr(found, part):
      near = difflib.get_close_matches(part, dir(found), n=2)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise RewardError(
        f'reward {path!r}: {module_name!r} has no {attribute!r}{hint}'
      )
    found = getattr(found, part)
  if not callable(found):
    raise RewardError(
      f'reward {path!r} is a {type(found).__name__}: give a function of a batch'
    )
  try:
    inspect.signature(found).bind({})
  except TypeError as error:
    raise RewardError(
      f'reward {path!r} cannot be called with a batch alone ({error}): give a '
      'function of one argument'
    ) from None
  except ValueError:  # one written in C, which says nothing of itself
    pass
  return found


def parse(entries: Iterable) -> tuple[Reward, ...]:
  """Returns the rewards of a config, their functions imported.

  Args:
    entries: pairs (path, weight); weights are finite and not 0.

  Raises:
    RewardError: an entry of another form, the same one twice, or a path that
      `resolve` refuses.
  """
  if isinstance(entries, str) or not isinstance(entries, Sequence):
    raise RewardError(f'rewards={entries!r} must be a tuple of (path, weight)')
  pairs = []
  for entry in entries:
    is_pair = isinstance(entry, Sequence) and not isinstance(entry, str)
    if not is_pair or len(entry) != 2:
      raise RewardError(
        f'rewards entry {entry!r} must be (path, weight), such as '
        "('my_rewards.short', 0.1); one alone needs a comma behind it: "
        "(('my_rewards.short', 0.1),)"
      )
    path, weight = entry
    if not _is_number(weight) or not 0 < abs(weight) <= _LARGEST:
      raise RewardError(
        f'reward {path!r} has weight {one_line(repr(weight), 60)}: allowed is '
        'a number that is finite and not 0'
      )
    pairs.append((path, float(weight)))
  paths = [path for path, _ in pairs]
  # The same function in both spellings is the same path.
  plain = [str(path).replace(':', '.') for path in paths]
  last = [path.rpartition('.')[2] for path in plain]
  rewards = []
  for i, (path, weight) in enumerate(pairs):
    if plain.count(plain[i]) > 1:
      raise RewardError(f'reward {path!r} is given twice: add up the weights')
    name = last[i] if last.count(last[i]) == 1 else plain[i]
    rewards.append(Reward(path, name, weight, resolve(path)))
  return tuple(rewards)


def text_batch(
  problems: Mapping[str, np.ndarray],
  traces,
  measured,
  *,
  task: Task,
  group_size: int,
  decode: Callable[[Sequence[int]], str] = tokenizer.decode,
) -> dict[str, Any]:
  """Returns what a reward function gets: the traces of a batch as text (host).

  Trace b = p * G + g. End-of-text and padding are in no text.

  Args:
    problems: arrays [P,...] of the batch of problems; those with a slash in
      their name are traces (meta_rl/external) and left out.
    traces: a `Rollout` of numpy arrays, B rows.
    measured: `algorithms.Measured` of numpy arrays.
    task: whose marker and end-of-text these are.
    group_size: G.
    decode: token ids -> text.

  Returns:
    prompts, responses, thoughts, answers: tuple of B str. A response is all
      that the policy wrote; its thought is what comes before the answer marker,
      its answer what comes behind ('' without one).
    outcome: f32[B], the task's own reward.
    tokens: i32[B], thinking tokens.
    forced, truncated: bool[B], the budget ended the thought; no end-of-text.
    problem: dict of arrays [B,...], the problem of each trace as the task
      stores it (for Countdown numbers, target, answers ...).
    group_size: G.
    Arrays are read-only.
  """
  real = traces.token_mask & ~np.isin(traces.tokens, task.end_ids)
  columns = np.arange(traces.tokens.shape[1])
  start = np.asarray(problems['prompts']).shape[1]
  more = np.where(traces.forced, len(task.stop_ids) - 1, 0)
  answer_start = measured.stop_index + more + 1
  text = lambda mask: tuple(
    decode(row[keep].tolist()) for row, keep in zip(traces.tokens, mask)
  )
  per_trace = lambda x: np.repeat(np.asarray(x), group_size, axis=0)
  batch = {
    'prompts': text(real & (columns < start)),
    'responses': text(real & (columns >= start)),
    'thoughts': text(traces.thinking_mask),
    'answers': text(real & (columns >= answer_start[:, None])),
    'outcome': np.array(measured.rewards, np.float32),
    'tokens': traces.thinking_mask.sum(1).astype(np.int32),
    'forced': np.array(traces.forced),
    'truncated': np.array(traces.truncated),
    'problem': {k: per_trace(x) for k, x in problems.items() if '/' not in k},
    'group_size': group_size,
  }
  for array in (*batch.values(), *batch['problem'].values()):
    if isinstance(array, np.ndarray):
      array.flags.writeable = False
  return batch


def combine(
  rewards: Sequence[Reward],
  batch: Mapping[str, Any],
  *,
  outcome_weight: float = 1.0,
  errors: str = 'raise',
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
  """Returns the rewards of a batch and which traces have one (host).

    r = outcome_weight * outcome + sum_i weight_i * value_i

  Args:
    rewards: of `parse`.
    batch: of `text_batch`.
    outcome_weight: of the task's own outcome.
    errors: a function that raises stops the run ('raise'), or is taken to have
      had no number for any trace of this batch, with a warning ('mask').

  Returns:
    rewards f32[B], finite, the outcome alone where there is no reward; valid
    bool[B]; extra f32[B], the functions' part of the rewards; metrics:
    `reward/none_share` of the traces, `reward/outcome_mean`, and for each
    function `reward/<name>_mean` over the traces that it has a number for
    (absent without one).

  Raises:
    RewardError: a function that raised, or returned anything but B numbers or
      Nones. Neither is a matter of one trace.
  """
  values = ask(rewards, batch, errors=errors)
  return add_up(rewards, batch['outcome'], values, outcome_weight)


def ask(
  rewards: Sequence[Reward], batch: Mapping[str, Any], *, errors: str = 'raise'
) -> np.ndarray:
  """Returns f64[R,B], what each function gives each trace, NaN for nothing.

  Args, errors: as in `combine`.
  """
  size = len(batch['outcome'])
  found = [_call(reward, batch, size, errors) for reward in rewards]
  return np.asarray(found, np.float64).reshape(len(rewards), size)


def add_up(
  rewards: Sequence[Reward],
  outcome: np.ndarray,
  given: np.ndarray,
  outcome_weight: float,
):
  """Returns what `combine` does.

  Args:
    rewards: of `parse`.
    outcome: [B].
    given: f64[R,B] of `ask`.
    outcome_weight: of the outcome.
  """
  outcome = np.asarray(outcome, np.float64)
  extra, valid = np.zeros_like(outcome), np.ones(len(outcome), bool)
  metrics = {}
  for reward, values in zip(rewards, given, strict=True):
    known = np.abs(values) <= _LARGEST  # not of NaN
    extra += reward.weight * np.where(known, values, 0.0)
    valid &= known
    if known.any():
      metrics[f'reward/{reward.name}_mean'] = float(values[known].mean())
  with np.errstate(over='ignore'):
    total = (outcome_weight * outcome + extra).astype(np.float32)
  valid &= np.isfinite(total)
  extra = np.where(valid, extra, 0.0).astype(np.float32)
  total = np.where(valid, total, outcome_weight * outcome).astype(np.float32)
  metrics['reward/outcome_mean'] = float(outcome.mean())
  metrics['reward/none_share'] = float(1 - valid.mean())
  return total, valid, extra, metrics


def make_reward_fn(
  rewards: Sequence[Reward],
  *,
  task: Task,
  group_size: int,
  get: Callable[[Any], Any],
  outcome_weight: float = 1.0,
  errors: str = 'raise',
  decode: Callable[[Sequence[int]], str] = tokenizer.decode,
  own: slice | np.ndarray = slice(None),
  gather: Callable[..., np.ndarray] = lambda values, rows, size: values,
) -> Callable:
  """Returns `reward_fn(problems, traces, measured) -> (measured, metrics)`.

  It fetches a batch from the device, asks the functions, and puts `rewards`,
  `valid` and `extra` into `measured`.

  Args:
    rewards: of `parse`.
    task, group_size: as in `text_batch`.
    get: fetches a pytree as numpy arrays, e.g. `sharding.Parallel.get`.
    outcome_weight, errors: as in `combine`.
    decode: as in `text_batch`.
    own: of several processes, the prompts whose traces this one asks about: a
      function sees whole groups, and not those of other processes.
    gather: `(values f64[R,C], rows i32[C], B) -> f64[R,B]`, of all of them.
  """

  def reward_fn(problems, traces, measured):
    problems, traces, measured = get((problems, traces, measured))
    size = len(measured.rewards)
    mine = np.arange(size // group_size)[own]
    rows = (mine[:, None] * group_size + np.arange(group_size)).ravel()
    part = lambda tree, where: jax.tree.map(
      lambda x: x[where] if np.ndim(x) else x, tree
    )
    batch = text_batch(
      part(problems, own),
      part(traces, rows),
      part(measured, rows),
      task=task,
      group_size=group_size,
      decode=decode,
    )
    values = gather(ask(rewards, batch, errors=errors), rows, size)
    total, valid, extra, metrics = add_up(
      rewards, measured.rewards, values, outcome_weight
    )
    measured = dataclasses.replace(
      measured, rewards=total, valid=valid, extra=extra
    )
    return measured, metrics

  return reward_fn


def _call(reward: Reward, batch, size: int, errors: str) -> np.ndarray:
  """Returns f64[B], the values of one function, NaN for None."""
  try:
    values = reward.fn(dict(batch))  # it may write into its own dict
  except (Exception, SystemExit) as error:
    line = (
      f'reward {reward.path} raised {type(error).__name__}: {one_line(error)}'
      f' ({_place(error)})'
    )
    if errors == 'mask':
      warnings.warn(
        f'{line}: no trace of this batch has a reward',
        RuntimeWarning,
        stacklevel=2,
      )
      return np.full(size, np.nan)
    raise RewardError(
      f"{line}; mend it, or set reward_errors='mask' to leave such batches out"
    ) from error
  if not _is_list(values):
    raise RewardError(
      f'reward {reward.path} returned a {type(values).__name__}: give a list '
      f'of {size} values, one a trace, each a number or None'
    )
  if len(values) != size:
    raise RewardError(
      f'reward {reward.path} returned {len(values)} values for {size} traces: '
      'give one a trace, None where there is none'
    )
  return np.asarray([_number(reward, i, v) for i, v in enumerate(values)])


def _number(reward: Reward, index: int, value: Any) -> float:
  # An array of shape [] is what iterating over an array of jax gives.
  value = value.item() if getattr(value, 'shape', None) == () else value
  if value is None:
    return math.nan
  if not _is_number(value):
    raise RewardError(
      f'reward {reward.path} returned {one_line(repr(value), 60)} of type '
      f'{type(value).__name__} for trace {index}: give a number or None'
    )
  try:
    return float(value)
  except OverflowError:  # an int beyond floats is as good as an infinity
    return math.inf


def _is_list(values: Any) -> bool:
  """Whether values have an order and a length: lists, tuples and arrays do."""
  if (
    isinstance(values, str | bytes | Mapping)
    or getattr(values, 'shape', None) == ()
  ):
    return False
  return hasattr(values, '__len__') and hasattr(values, '__getitem__')


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real | np.bool_)


def _place(error: BaseException) -> str:
  """Returns 'file.py, line 3': where a user's function raised."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  return f'{os.path.basename(last.filename)}, line {last.lineno}'
