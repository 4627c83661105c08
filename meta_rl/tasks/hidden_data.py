"""Problems and warm-start traces of Hidden (meta_rl/tasks/hidden.py).

All problems of one n have the same prompt; they differ in the hidden option
alone, which no policy can know. So 'held out' means less here than elsewhere:
the splits share no record, but there is nothing to memorise and nothing to
generalise to. A held-out evaluation measures the policy on fresh draws of h,
and its error is that of sampling.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from meta_rl import tokenizer
from meta_rl.tasks import hidden, sources, traces
from meta_rl.tasks.base import SPLITS, Trace

# Eighths of the records, in the order of their indices.
_EIGHTHS = {'train': 4, 'validation': 1, 'test': 3}
MAX_EPISODES = 16


@dataclasses.dataclass(eq=False, kw_only=True)
class HiddenConfig(tfds.core.BuilderConfig):
  """What a dataset of problems is made of; its name spells out every field.

  Attributes:
    n: options, 2..99.
    num_problems: records of all splits together, at least 8.
    seed: of the hidden options.
  """

  n: int = 8
  num_problems: int = 8192
  seed: int = 0


def make_config(**fields) -> HiddenConfig:
  """Returns a config whose name is a function of its fields.

  Raises:
    ValueError: an unknown field, or a size out of its range.
  """
  config = sources.make_config(HiddenConfig, 'Hidden', fields)
  hidden.check_n(config.n)
  if config.num_problems < 8:
    raise ValueError(f'num_problems={config.num_problems}: give at least 8.')
  name = f'n{config.n}_problems{config.num_problems}_seed{config.seed}'
  return dataclasses.replace(config, name=name)


def problem_set(
  split: str, *, n: int, num_problems: int, seed: int = 0
) -> list[tuple[int, int]]:
  """Returns (index, hidden option) of the problems of a split, in order.

  Every n problems in succession hide each option once, in random order: a slice
  from the front whose size is a multiple of n is exactly balanced, so that
  what it measures differs from the expectation over h by the policy's own
  randomness alone.

  Args:
    split: 'train', 'validation' or 'test'.
    n: options.
    num_problems: of all splits together.
    seed: of the order.
  """
  place = SPLITS.index(split)
  before = sum(_EIGHTHS[name] for name in SPLITS[:place])
  first = num_problems * before // 8
  last = num_problems * (before + _EIGHTHS[split]) // 8
  rng = np.random.default_rng([seed, place])
  blocks = [rng.permutation(n) for _ in range(-(-(last - first) // n))]
  options = np.concatenate(blocks)[: last - first]
  return list(zip(range(first, last), options.tolist()))


class Hidden(tfds.core.GeneratorBasedBuilder):
  """Problems of Hidden: {'index' i32[], 'n' i32[], 'hidden' i32[]}.

  `index` is the number of the problem among those of all splits.
  """

  VERSION = tfds.core.Version('1.0.0')
  code_path = None  # as in `builder.Countdown`

  def __init__(self, *, data_dir: str | os.PathLike, **fields):
    super().__init__(
      data_dir=os.fspath(data_dir),
      config=make_config(**fields),
      file_format='array_record',
    )

  def _info(self) -> tfds.core.DatasetInfo:
    scalar = lambda: tfds.features.Scalar(dtype=np.int32)
    features = {name: scalar() for name in ('index', 'n', 'hidden')}
    return tfds.core.DatasetInfo(
      builder=self,
      description='Find the hidden one of n options by trying.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str):
    config = self.builder_config
    problems = problem_set(
      split,
      n=config.n,
      num_problems=config.num_problems,
      seed=config.seed,
    )
    for key, (index, option) in enumerate(problems):
      yield key, {'index': index, 'n': config.n, 'hidden': option}


def load_source(
  data_dir: str | os.PathLike, split: str, **config
) -> Sequence[dict[str, Any]]:
  """Returns the random-access data source of a split, built on first use.

  Args:
    data_dir, split: as in `sources.load_source`.
    **config: fields of `HiddenConfig`.
  """
  name = make_config(**config).name
  return sources.load_source(Hidden, name, data_dir, split, **config)


def record_arrays(record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays of one record; the prompt does not depend on `hidden`.

  Returns:
    prompts i32[4], prompt_mask bool[4], hidden i32[], answers i32[1,2],
    answer_mask bool[1,2].
  """
  option = int(record['hidden'])
  prompt = hidden.prompt_tokens(int(record['n']))
  answer = [tokenizer.integer(option), tokenizer.EOS]
  return {
    'prompts': np.asarray(prompt, np.int32),
    'prompt_mask': np.ones(len(prompt), bool),
    'hidden': np.asarray(option, np.int32),
    'answers': np.asarray([answer], np.int32),
    'answer_mask': np.ones((1, len(answer)), bool),
  }


def cluster_key(record: Mapping[str, np.ndarray]) -> str:
  """Returns one string a record: every draw of h is a problem of its own."""
  n, index, option = (int(record[k]) for k in ('n', 'index', 'hidden'))
  return f'problem {index}: {option} of {n}'


def trace_problems(
  source: Sequence[Mapping[str, np.ndarray]],
  *,
  shown: int | None = None,
  **config,
) -> list[tuple[int, int]]:
  """Returns (n, hidden option) of each record of a source.

  Args:
    source: records as in `Hidden`.
    shown: must be None: a problem has one presentation.
    **config: not needed, the records say it all.

  Raises:
    ValueError: `shown` is given.
  """
  del config
  if shown is not None:
    raise ValueError(
      f'data.orders={shown}: a problem of Hidden has one presentation; set it '
      'to None.'
    )
  return [(int(record['n']), int(record['hidden'])) for record in source]


def sample_trace(
  problem: tuple[int, int],
  rng: np.random.Generator,
  *,
  p_stop: float = 0.08,
  p_continue: float = 0.25,
  p_informed: float = 0.3,
  direct_share: float = 0.1,
  long_share: float = 0.0,
  ordinary_episodes: int = 8,
  max_episodes: int = MAX_EPISODES,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (tokens i32[T], loss bool[T]): one trace of an imperfect search.

  Options are tried uniformly with repeats, each with its truthful verdict, and
  the search stops as in `traces.sample_trace`: often too early, at times late.
  The answer is the option that got a yes; without one it is a guess. Verdicts
  are the environment's, so they carry no loss; nor does the prompt.

  Args:
    problem: (n, hidden option).
    rng: consumed; the same state gives the same trace.
    p_informed: chance that a guess is one of the options not tried, if there
      is one; otherwise it is any.
    p_stop, p_continue, direct_share, long_share, ordinary_episodes,
      max_episodes: as in `traces.sample_trace`.

  Raises:
    ValueError: a probability outside [0, 1], or episode limits out of order.
  """
  traces.check_options(
    p_stop=p_stop,
    p_continue=p_continue,
    p_informed=p_informed,
    direct_share=direct_share,
    long_share=long_share,
    ordinary_episodes=ordinary_episodes,
    max_episodes=max_episodes,
  )
  n, right = problem
  length = traces.draw_length(
    rng,
    direct_share=direct_share,
    long_share=long_share,
    ordinary_episodes=ordinary_episodes,
    max_episodes=max_episodes,
  )
  tried = rng.integers(n, size=length)
  if length == ordinary_episodes:
    kept = traces.draw_stop(
      tried == right, rng, p_stop=p_stop, p_continue=p_continue
    )
    tried = tried[:kept]
  hit = tried == right
  answer = right if hit.any() else _guess(n, tried, rng, p_informed)
  prompt = hidden.prompt_tokens(n)
  verdicts = np.where(hit, tokenizer.YES, tokenizer.NO)
  thought = np.stack([tokenizer.FIRST_INTEGER + tried, verdicts], 1).ravel()
  ending = [tokenizer.END_THINK, tokenizer.integer(answer), tokenizer.EOS]
  tokens = np.concatenate([prompt, thought, ending]).astype(np.int32)
  loss = np.ones(len(tokens), bool)
  loss[: len(prompt)] = False
  loss[len(prompt) + 1 : len(prompt) + len(thought) : 2] = False
  return tokens, loss


def _guess(n, tried, rng, p_informed) -> int:
  """Returns an option, by chance `p_informed` one that was not tried."""
  left = np.setdiff1d(np.arange(n), tried)
  if rng.random() < p_informed and len(left):
    return int(rng.choice(left))
  return int(rng.integers(n))


def sample_traces(
  problems: Sequence[tuple[int, int]],
  rng: np.random.Generator,
  count: int,
  **options,
) -> list[Trace]:
  """Returns `count` traces of problems drawn with replacement.

  Args:
    problems: of `trace_problems`, at least one.
    rng: consumed.
    count: how many traces.
    **options: as in `sample_trace`.
  """
  return traces.draw_traces(sample_trace, problems, rng, count, **options)


def max_trace_length(
  problems: Sequence[tuple[int, int]],
  *,
  max_episodes: int = MAX_EPISODES,
  **options,
) -> int:
  """Returns the tokens of the longest trace that `sample_traces` may give.

  4 of prompt, 2 an episode, the marker, an option and EOS.
  """
  del problems, options
  return 4 + hidden.EPISODE_LENGTH * max_episodes + 1 + hidden.ANSWER_LENGTH
