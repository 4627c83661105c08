"""What a run says while it goes: metrics, progress, phase times.

    workdir/
      metrics.jsonl               one line a step: {"step": 3, "loss/total": …}
      samples/step_000050.jsonl   sampled traces
      tensorboard/                the same scalars

Names are slash-grouped with the unit in the last word: `time/generate_s`.
"""

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

import jax
import tensorboardX
import tqdm
from etils import epath

from meta_rl import files
from meta_rl.files import atomic_write

METRICS_NAME = 'metrics.jsonl'


def _whole_rows(path: epath.Path):
  """Yields (step, line) of the whole lines; kill -9 may tear the last."""
  with path.open('rb') as f:
    for raw in f:
      line = raw.decode('utf-8', errors='replace')
      with contextlib.suppress(ValueError, KeyError, TypeError):
        yield int(json.loads(line)['step']), line.rstrip('\n') + '\n'


def read_metrics(path) -> list[dict]:
  """Returns the rows of a metrics.jsonl, torn lines left out.

  Non-finite values, null in the file, come back as NaN.
  """
  rows = [json.loads(line) for _, line in _whole_rows(epath.Path(path))]
  return [
    {name: math.nan if v is None else v for name, v in row.items()}
    for row in rows
  ]


def resuming(first: int, total_steps: int) -> str:
  """Returns the line that a run which was begun before starts with."""
  if first < total_steps:
    return f'resuming after step {first} of {total_steps}'
  return (
    f'nothing to do: step {first} of {total_steps} is done; raise total_steps, '
    'with --allow_change=total_steps, to go on'
  )


def total(workdir, name: str, *, last_step: float = math.inf) -> float:
  """Returns the sum of a metric over a run's steps up to `last_step`.

  Args:
    workdir: folder of the run; without a metrics.jsonl the sum is 0.
    name: of the metric; a step without it adds nothing.
    last_step: the last step that counts.
  """
  path = epath.Path(workdir) / METRICS_NAME
  rows = read_metrics(path) if path.exists() else []
  return sum(row.get(name, 0.0) for row in rows if row['step'] <= last_step)


class MetricsWriter:
  """Writes scalars to JSONL and TensorBoard, and sampled traces to JSONL.

  Every line is flushed, so kill -9 loses none but the one being written; in a
  bucket those of the last half minute, but none of before a checkpoint. On
  resume, lines of steps after `resume_step` go: those steps are run again, and
  no step appears twice. Process 0 alone writes.

  Args:
    workdir: folder.
    tensorboard: also write TensorBoard events (tensorboardX, no TensorFlow),
      where the folder is no bucket.
    resume_step: last step of the restored checkpoint; None starts afresh.
    name: the file is `<name>.jsonl`.
  """

  def __init__(
    self,
    workdir,
    *,
    tensorboard: bool = True,
    resume_step: int | None = None,
    name: str = 'metrics',
  ):
    self.non_finite = Counter()
    self._workdir = epath.Path(workdir)
    self._active = jax.process_index() == 0
    self._file = self._events = None
    self._last_step = None
    if not self._active:
      return
    path = self._workdir / f'{name}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      self._keep_until(path, resume_step)
    if files.is_remote(path):
      self._file = files.RemoteLines(path)
    else:
      self._file = open(path, 'a', encoding='utf-8')
    # Its writer knows local folders only.
    if tensorboard and not files.is_remote(path):
      self._events = tensorboardX.SummaryWriter(
        str(self._workdir / 'tensorboard'),
        # TensorBoard hides events of earlier runs from this step on.
        purge_step=0 if resume_step is None else resume_step + 1,
        flush_secs=10,
      )

  def _keep_until(self, path: epath.Path, resume_step: int | None):
    kept = []
    for step, line in _whole_rows(path):
      if resume_step is not None and step <= resume_step:
        kept.append(line)
        self._last_step = step
    atomic_write(path, ''.join(kept).encode())

  def write(self, step: int, scalars: Mapping[str, float]):
    """Writes one step's scalars; a non-finite one becomes null and is warned.

    Args:
      step: larger than every step before.
      scalars: name -> number, or anything that `float` takes.

    Raises:
      ValueError: the step is not larger than the last one.
    """
    if self._last_step is not None and step <= self._last_step:
      raise ValueError(
        f'metrics of step {step} come after those of step {self._last_step}: '
        'write all scalars of a step at once, and steps in order'
      )
    row = {'step': int(step)}
    for name, value in scalars.items():
      value = float(value)
      if not math.isfinite(value):
        self._count_non_finite(step, name, value)
      row[name] = value if math.isfinite(value) else None
    self._last_step = step
    if not self._active:
      return
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    if self._events is not None:
      for name, value in row.items():
        if name != 'step' and value is not None:
          self._events.add_scalar(name, value, step)

  def _count_non_finite(self, step: int, name: str, value: float):
    self.non_finite[name] += 1
    count = self.non_finite[name]
    # Powers of two: loud at first, never a flood.
    if count & (count - 1) == 0:
      warnings.warn(
        f'step {step}: {name} is {value} (time {count} in this run)',
        RuntimeWarning,
        stacklevel=3,
      )

  def write_text_rows(self, name: str, step: int, rows: Iterable[Mapping]):
    """Returns the path of `<name>/step_000050.jsonl`, written whole.

    Args:
      name: folder below the workdir, e.g. 'samples'.
      step: the step that the rows belong to.
      rows: dicts of JSON values.
    """
    path = self._workdir / name / f'step_{step:06d}.jsonl'
    if self._active:
      path.parent.mkdir(parents=True, exist_ok=True)
      lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
      atomic_write(path, ''.join(lines).encode())
    return path

  def save(self):
    """Makes sure that no line is lost: before a checkpoint says it was said."""
    if isinstance(self._file, files.RemoteLines):
      self._file.flush(now=True)

  def close(self):
    """Closes the files."""
    for f in (self._file, self._events):
      if f is not None:
        f.close()
    self._file = self._events = None
    self._active = False

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *exc_info):
    self.close()


def phase_speeds(seconds: dict[str, float], row: dict[str, float]) -> dict:
  """Returns each phase's seconds, and response tokens a second."""
  speeds = {
    f'{name.removesuffix("_s")}_tokens_per_s': row['rollout/tokens_sum'] / spent
    for name, spent in seconds.items()
    if spent and name != 'time/data_s'
  }
  return seconds | speeds


class Timer:
  """Seconds of each phase of a step, summed.

      with timer('generate'):
        rollout = jax.block_until_ready(generate(...))

  JAX returns before the device is done: a phase without block_until_ready
  measures its dispatch only, and the next one pays.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self._clock = clock
    self._seconds = defaultdict(float)

  @contextlib.contextmanager
  def __call__(self, phase: str, since: float | None = None):
    """Adds the time spent inside to `phase`, also when an error leaves it.

    since: when it began, of the same clock, if that was before; None: now.
    """
    start = self._clock() if since is None else since
    try:
      yield
    finally:
      self._seconds[phase] += self._clock() - start

  def metrics(self) -> dict[str, float]:
    """Returns {'time/generate_s': seconds, …} and starts again from zero."""
    seconds = {f'time/{k}_s': v for k, v in self._seconds.items()}
    self._seconds.clear()
    return seconds


def format_seconds(seconds: float) -> str:
  """Returns '45s', '3m05s' or '2h07m'."""
  seconds = int(max(seconds, 0))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds // 60 % 60:02d}m'


# The figures beside the bar: label, metrics of which the first found is shown,
# format.
_SHOWN = (
  ('loss', ('loss/total',), '.4f'),
  ('reward', ('rollout/reward_mean', 'reward/mean'), '.3f'),
  ('regret', ('regret/token_weighted', 'regret/normalized'), '.3f'),
  ('tok/s', ('time/tokens_per_s',), ',.0f'),
)


class ProgressBar:
  """Step, reward, regret, tokens a second and time left.

  On a terminal a bar; elsewhere (a log file, CI) one line every
  `print_every` steps and one for the first and the last step.

  Args:
    total_steps: steps of the whole run.
    initial_step: steps already done, on resume.
    print_every: steps between lines where there is no terminal.
    stream: where to write, default stderr.
    shown: (label, metric names, format) of the figures: the first name found
      is shown, and a figure without one is left out.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    initial_step: int = 0,
    print_every: int = 10,
    stream=None,
    shown=_SHOWN,
    clock: Callable[[], float] = time.perf_counter,
  ):
    if jax.process_index():
      stream = open(os.devnull, 'w')  # process 0 alone shows it
    self._stream = sys.stderr if stream is None else stream
    self._total, self._initial = total_steps, initial_step
    self._print_every, self._shown = max(1, print_every), shown
    self._clock, self._start = clock, clock()
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=initial_step,
        file=self._stream,
        unit='step',
        dynamic_ncols=True,
      )

  def update(self, step: int, metrics: Mapping[str, float]):
    """Shows that `step` steps of the run are done."""
    figures = []
    for label, names, form in self._shown:
      found = [metrics[name] for name in names if name in metrics]
      figures += [f'{label} {float(value):{form}}' for value in found[:1]]
    if self._bar is not None:
      self._bar.set_postfix_str(', '.join(figures), refresh=False)
      self._bar.update(step - self._bar.n)
    elif (
      step % self._print_every == 0
      or step in (self._initial + 1, self._total)  # the first: that it runs
    ):
      rate = (self._clock() - self._start) / max(1, step - self._initial)
      left = format_seconds(rate * (self._total - step))
      line = [f'step {step}/{self._total}', *figures, f'{left} left']
      print(', '.join(line), file=self._stream, flush=True)

  def say(self, text: str):
    """Prints a line without tearing the bar."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self):
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self) -> 'ProgressBar':
    return self

  def __exit__(self, *exc_info):
    self.close()


def mean_rows(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Returns the mean of each metric over the rows that have it."""
  found = {}
  for row in rows:
    for name, value in row.items():
      found.setdefault(name, []).append(value)
  return {name: sum(x) / len(x) for name, x in found.items()}
