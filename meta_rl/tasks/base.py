"""What the training step and the host need to know of a token task.

`Task` is what runs on the device, `TaskKit` what makes it and its data on the
host. A new task is one module with a kit, which a config names by its path,
'module:KIT', or by a row of `tasks.TASKS`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from meta_rl.stops import StopTable
from meta_rl.types import Array, Episodes

SPLITS = ('train', 'validation', 'test')


def split_of_key(key: str, percent: Mapping[str, int]) -> str:
  """Returns the split that owns a key, whatever else is in a dataset.

  The bucket is blake2s(key) mod 100.

  Args:
    key: what makes two problems the same.
    percent: split -> its share; they add up to 100.
  """
  digest = hashlib.blake2s(key.encode()).digest()
  bucket = int.from_bytes(digest[:8], 'big') % 100
  for split in SPLITS:
    if bucket < percent[split]:
      return split
    bucket -= percent[split]
  raise AssertionError('split shares do not add up to 100')


Record = Mapping[str, np.ndarray]
Trace = tuple[np.ndarray, 'int | np.ndarray']


@dataclasses.dataclass(frozen=True)
class Task:
  """A task whose answers are verified on the device; static and hashable.

  Attributes:
    name: of the task.
    vocab_size: token ids are below it.
    pad_id, eos_id: padding and end of a trace.
    think_end_id: the answer marker.
    stop_ids: tokens that forced termination puts after a prefix.
    delimiter_ids: tokens that end an episode.
    episode_length: tokens of the longest episode.
    answer_length: A, tokens of the longest answer, EOS included.
    verify: `(answers i32[...,A], mask bool[...,A], batch) -> f32[...]`, the
      reward; `batch` holds the arrays of the problems, whose leading axes
      broadcast against those of the answers. One that asks the host may have an
      attribute `begin`, `(answers, mask, batch) -> i32[...]`, zeros, which lets
      the host grade them while the device goes on (`begin`).
    observe: `(last i32[B], thinking bool[B], batch) -> i32[B]`, the token that
      the environment puts behind `last`, -1 where it is the policy's turn;
      `batch` holds the arrays of the problems, one row a trace. None: nothing
      is ever observed.
    segment: `(tokens i32[B,T], thinking_mask bool[B,T], *, max_episodes, start)
      -> Episodes`, traceable: where episodes of open-ended text end; None: its
      episodes end at delimiters or budgets alone.
    stop_table: of the strings that end an answer as EOS does; None: EOS alone.
  """

  name: str
  vocab_size: int
  pad_id: int
  eos_id: int
  think_end_id: int
  stop_ids: tuple[int, ...]
  delimiter_ids: tuple[int, ...]
  episode_length: int
  answer_length: int
  verify: Callable[[Array, Array, dict[str, Array]], Array]
  observe: Callable[[Array, Array, dict[str, Array]], Array] | None = None
  segment: Callable[..., Episodes] | None = None
  stop_table: StopTable | None = None

  @property
  def end_ids(self) -> tuple[int, ...]:
    """All tokens that end a trace, EOS first."""
    others = () if self.stop_table is None else self.stop_table.end_ids
    return (self.eos_id, *others)


@dataclasses.dataclass(frozen=True)
class TaskKit:
  """The host functions of a task: its data, its warm start, its text.

  Attributes:
    make_task: `(**options) -> Task`; the options are those of the dataset, and
      an unknown one raises ValueError.
    load_source: `(data_dir, split, **options) -> Sequence[record]`, random
      access, built on first use; split is one of `SPLITS` or a TFDS slice.
    record_arrays: `record -> dict`, the arrays of one problem: prompts i32[Tp],
      prompt_mask bool[Tp], answers i32[S,A], answer_mask bool[S,A] (all that
      are accepted, each with its EOS), and what `Task.verify` and
      `Task.observe` read.
    cluster_key: `record -> str`, equal for prompts of one and the same problem,
      in whatever dataset: what a bootstrap draws, and evaluations pair by.
    trace_problems: `(source, *, shown, **options) -> Sequence`, the problems of
      which `sample_traces` makes traces. `shown` is the config's data.orders:
      how many presentations of a problem are shown, None for all.
    sample_traces: `(problems, rng, count, **trace_options) -> list` of warm-
      start traces (tokens i32[T], loss), where loss is the index from which
      tokens are trained, or their mask bool[T].
    max_trace_length: `(problems, **trace_options) -> int`, tokens of the
      longest trace that `sample_traces` may give.
    decode: `ids -> str`.
    encode: `(text, *, is_prompt=False) -> ids`, special tokens as the tokenizer
      writes them; a prompt begins with what all prompts of the task do.
    vote: `answer ids -> hashable | None`, what an answer votes for under maj@k:
      equal for answers that are one; None for what is no answer.
    make_problem_fn: `(data_dir, **options) -> ((prompt ids, question) ->
      dict)`, the arrays of the problem that a prompt is of, as in
      `record_arrays` but for the prompt's own. It is what the prompt states, or
      that of the train split with this question (a str, or None) or with the
      prompt's ids; a prompt of none raises ValueError. None: a prompt does not
      say all.
    check_trace: `(tokens of one trace, **options) -> list`, a check an episode,
      each with the bools `well_formed` (it is one of the task's) and `valid`
      (all that it claims is true); None where episodes claim nothing.
    tokenizer: of HF `tokenizers`, that of chats and completions given as text;
      None: the vocabulary of meta_rl/tokenizer.py.
    render_chat: `(messages, add_generation_prompt) -> str`, the chat template
      of a checkpoint; None: there is none.
    end_token: the text of its end-of-text token; None: a format's own.
    difficulty: `(record, **options) -> (label, value)`, what is known of how
      hard a problem is before any policy is asked, and what that is called: a
      number or a text, of which problems are compared alike; None of a record
      of which nothing is known. None: of no record is.
    optimum: `(record, num_episodes) -> f64[num_episodes+1]`, the J that the
      best of all policies is expected to have after so many episodes, each of
      `Task.episode_length` tokens; None: it is not known.
    metrics: `(add_up) -> dict`, what became of the answers that were graded on
      the host since the last call, in all processes: `add_up` sums an array
      over these. None: answers are graded on the device.
  """

  make_task: Callable[..., Task]
  load_source: Callable[..., Sequence[dict[str, Any]]]
  record_arrays: Callable[[Record], dict[str, np.ndarray]]
  cluster_key: Callable[[Record], str]
  trace_problems: Callable[..., Sequence[Any]]
  sample_traces: Callable[..., list[Trace]]
  max_trace_length: Callable[..., int]
  decode: Callable[[Iterable[int]], str]
  encode: Callable[..., Sequence[int]]
  vote: Callable[[Sequence[int]], Hashable | None]
  make_problem_fn: Callable[..., Callable] | None = None
  check_trace: Callable[..., list] | None = None
  tokenizer: Any = None
  render_chat: Callable[..., str] | None = None
  end_token: str | None = None
  difficulty: Callable[..., tuple[str, float | str] | None] | None = None
  optimum: Callable[[Record, int], np.ndarray] | None = None
  metrics: Callable[[Callable], dict[str, float]] | None = None


def _asks_host(task: Task) -> bool:
  return hasattr(task.verify, 'begin')


def begin(task: Task, answers: Array, mask: Array, rows: dict) -> Array:
  """Returns zeros i32[...]; a verifier on the host begins with the answers.

  It is not waited for. What depends on the zeros comes behind its beginning,
  what `verify` is told may come later still: see `after`.

  Args:
    task: whose `verify` will be asked of the same answers.
    answers, mask, rows: as it takes them.
  """
  if not _asks_host(task):
    return jnp.zeros(mask.shape[:-1], jnp.int32)
  return task.verify.begin(answers, mask, rows)


def after(task: Task, mask: Array, done: Array) -> Array:
  """Returns the mask, which no program has before the numbers `done`.

  For a verifier on the host, which a program may else ask, and wait for, before
  it has done what the host has time for.

  Args:
    task: whose `verify` will be asked.
    mask: bool[B,A].
    done: f32[B,...].
  """
  if not _asks_host(task):
    return mask
  never = (done < 0) & (done > 0)
  return mask & ~never.reshape(len(mask), -1).any(1, keepdims=True)


def block_begin(task: Task, rows: dict[str, Array]) -> Callable | None:
  """Returns `(answers i32[b,N,A], mask, row i32[b]) -> i32[b,N]` of a batch.

  `begin` of the answers of some rows, for provers that sample block by block;
  None where there is nothing to begin with.

  Args:
    task: whose `verify` will be asked.
    rows: the problems' arrays, one row a trace.
  """
  if not _asks_host(task):
    return None
  return lambda answers, mask, row: begin(
    task,
    answers,
    mask,
    {k: jnp.asarray(x)[row][:, None] for k, x in rows.items()},
  )


def verifier(task: Task, rows: dict[str, Array]) -> Callable:
  """Returns `(answers i32[B,K+1,M,A], mask) -> f32[B,K+1,M]` of a batch.

  Args:
    task: whose `verify` it is.
    rows: the problems' arrays, one row a trace.
  """
  per_branch = {k: x[:, None, None] for k, x in rows.items()}
  return lambda answers, mask: task.verify(answers, mask, per_branch)
