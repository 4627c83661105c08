"""Countdown problems as a TFDS dataset in array_record.

How a dataset is built and read is said in meta_rl/tasks/sources.py.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from meta_rl import tokenizer
from meta_rl.tasks import countdown, sources

_OP_NAMES = {'+': 'add', '-': 'sub', '*': 'mul', '/': 'div'}


@dataclasses.dataclass(eq=False, kw_only=True)
class CountdownConfig(tfds.core.BuilderConfig):
  """What a dataset of problems is made of; its name spells out every field.

  Attributes:
    n, low, high, ops, max_answers, min_target, max_target, max_value,
      max_multisets, seed: as in `countdown.problem_set`.
    orders: at most as many orders of the numbers are prompts of one problem.
  """

  n: int = 3
  low: int = 1
  high: int = 10
  ops: str = '+-'
  max_answers: int = 8
  min_target: int = 1
  max_target: int = tokenizer.MAX_INTEGER
  max_value: int = tokenizer.MAX_INTEGER
  max_multisets: int = 5000
  orders: int = 6
  seed: int = 0


def make_config(**fields) -> CountdownConfig:
  """Returns a config whose name is a function of its fields.

  Raises:
    ValueError: an unknown field, or a value outside its range.
  """
  config = sources.make_config(CountdownConfig, 'Countdown', fields)
  own = {f.name for f in dataclasses.fields(CountdownConfig)}
  own -= {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)}
  options = {name: getattr(config, name) for name in own - {'seed'}}
  countdown.check_options(**options)
  name = (
    f'n{config.n}_{config.low}to{config.high}_'
    f'{"_".join(_OP_NAMES[op] for op in config.ops)}_'
    f'answers{config.max_answers}_target{config.min_target}to'
    f'{config.max_target}_max{config.max_value}_sets{config.max_multisets}_'
    f'orders{config.orders}_seed{config.seed}'
  )
  return dataclasses.replace(config, name=name)


class Countdown(tfds.core.GeneratorBasedBuilder):
  """Prompts of Countdown, split by problem into train, validation and test.

  A record is {'numbers' i32[n] in the order to show, 'target' i32[],
  'answers' i32[max_answers, 2n-1], unused rows zero, 'num_answers' i32[]}.
  Records keep the order of `countdown.prompt_orders`: a slice from the front
  holds as many distinct problems as it can.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded, so no checksums lie beside the code; looking for
  # them needs importlib_resources, which TFDS doesn't declare.
  code_path = None

  def __init__(self, *, data_dir: str | os.PathLike, **fields):
    super().__init__(
      data_dir=os.fspath(data_dir),
      config=make_config(**fields),
      file_format='array_record',
    )

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    rows = (config.max_answers, 2 * config.n - 1)
    features = {
      'numbers': tfds.features.Tensor(shape=(config.n,), dtype=np.int32),
      'target': tfds.features.Scalar(dtype=np.int32),
      'answers': tfds.features.Tensor(shape=rows, dtype=np.int32),
      'num_answers': tfds.features.Scalar(dtype=np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Reach a target using every given number exactly once.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in countdown.SPLITS}

  def _generate_examples(self, split: str):
    config = self.builder_config
    problems = countdown.problem_set(
      split,
      n=config.n,
      low=config.low,
      high=config.high,
      ops=config.ops,
      max_answers=config.max_answers,
      min_target=config.min_target,
      max_target=config.max_target,
      max_value=config.max_value,
      max_multisets=config.max_multisets,
      seed=config.seed,
    )
    if not problems:
      raise ValueError(
        f'Countdown config {config.name} has no {split} problem: widen '
        'low..high, the target range or max_answers'
      )
    prompts = countdown.prompt_orders(
      problems, orders=config.orders, seed=config.seed
    )
    for key, problem in enumerate(prompts):
      answers = np.zeros((config.max_answers, 2 * config.n - 1), np.int32)
      answers[: len(problem.answers)] = problem.answers
      yield (
        key,
        {
          'numbers': np.asarray(problem.numbers, np.int32),
          'target': problem.target,
          'answers': answers,
          'num_answers': len(problem.answers),
        },
      )


def record_problem(
  record: Mapping[str, np.ndarray],
  *,
  ops: str,
  max_value: int = tokenizer.MAX_INTEGER,
) -> countdown.Problem:
  """Returns the `countdown.Problem` of one record of a data source.

  Args:
    record: as in `Countdown`.
    ops, max_value: of the dataset's config; they are not in the records.
  """
  answers = np.asarray(record['answers'])[: int(record['num_answers'])]
  return countdown.Problem(
    tuple(np.asarray(record['numbers']).tolist()),
    int(record['target']),
    tuple(map(tuple, answers.tolist())),
    ops,
    max_value,
  )


def make_problem_fn(**config) -> Callable:
  """Returns prompt ids -> the arrays of the problem that the prompt states.

  Args:
    **config: fields of `CountdownConfig`. The function raises ValueError for a
      prompt that no dataset of these fields could hold.
  """
  made = make_config(**config)

  def problem_fn(prompt):
    numbers, target = countdown.parse_prompt(prompt)
    problem = countdown.make_problem(numbers, target, made.ops, made.max_value)
    count = len(problem.answers)
    if len(numbers) != made.n or not 1 <= count <= made.max_answers:
      raise ValueError(
        f'the prompt has {len(numbers)} numbers and {count} accepted answers '
        f'with task.ops={made.ops!r}; the config has task.n={made.n} and '
        f'1..task.max_answers={made.max_answers}'
      )
    arrays = countdown.problem_arrays(
      [problem], max_answers=made.max_answers, num_numbers=made.n
    )
    return {k: x[0] for k, x in arrays.items() if not k.startswith('prompt')}

  return problem_fn


def load_source(
  data_dir: str | os.PathLike, split: str, **config
) -> Sequence[dict[str, Any]]:
  """Returns the random-access data source of a split, built on first use.

  Args:
    data_dir: local folder that holds all datasets.
    split: 'train', 'validation' or 'test', or a TFDS slice such as
      'test[:2000]'.
    **config: fields of `CountdownConfig`.

  Returns:
    A `tfds.data_source` of records as in `Countdown`.

  Raises:
    ValueError: an unknown split or option, or a config without problems.
  """
  name = make_config(**config).name
  return sources.load_source(Countdown, name, data_dir, split, **config)


def trace_problems(
  source: Sequence[Mapping[str, np.ndarray]],
  *,
  shown: int | None = None,
  **config,
) -> list[countdown.Problem]:
  """Returns the problems of a source, of which warm-start traces are made.

  Args:
    source: records as in `Countdown`; each order of a problem's numbers is one.
    shown: how many orders of a problem are shown; None: all of the source's.
    **config: fields of `CountdownConfig`.
  """
  made = make_config(**config)
  problems = [
    record_problem(record, ops=made.ops, max_value=made.max_value)
    for record in source
  ]
  if shown is None:
    return problems
  return countdown.prompt_orders(problems, orders=shown)
