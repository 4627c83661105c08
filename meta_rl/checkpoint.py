"""Checkpoints with Orbax: the last ones, the best one, and what to trust.

    <workdir>/checkpoints/
      40/                 one step, renamed here only when it is whole
        state/            params, optimizer state, step, PRNG key (OCDBT)
        data/             JSON: data iterator, metrics, table of the leaves
        MANIFEST.json     size and crc32 of every file above
      damaged/50/         set aside by a restore that could not trust it

Orbax writes a step under a temporary name and renames it at the end, so that a
kill at any moment leaves whole steps only. What Orbax does not see is damage
afterwards (a copy cut short, a bad disk): the manifest, written before the
rename, finds it before a single wrong weight is used.
"""

import contextlib
import json
import logging as python_logging
import math
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from meta_rl import files
from meta_rl import leaves as leaves_lib

CHECKPOINTS_DIR = 'checkpoints'
# What training measures on held-out problems: who reads a run folder must rank
# its checkpoints as the run did.
BEST_METRIC = 'eval/regret_token_weighted'
_DAMAGED_DIR = 'damaged'
_TMP_GLOB = '{}.orbax-checkpoint-tmp*'


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written, read or fitted; one line."""


def _quiet_orbax(record: python_logging.LogRecord) -> bool:
  # Orbax logs the traceback of an error that it also raises, which is one line
  # here, and warns of what was asked for or is looked at here too: a read-only
  # mode, files that a killed save left out.
  if 'orbax' not in record.pathname:
    return True
  return record.levelno >= python_logging.ERROR and not record.exc_info


class _LastAndBest:
  """Orbax preservation policy: the last `n` steps, and the best one."""

  def __init__(self, n: int, best_of):
    self._n, self._best_of = n, best_of

  def should_preserve(self, checkpoints, *, context):
    del context
    steps = [info.step for info in checkpoints]
    keep = {*sorted(steps)[-self._n :], self._best_of(steps)}
    return [step in keep for step in steps]


class Checkpointer:
  """Saves and restores a training state: any pytree of arrays.

  Typed PRNG keys are kept with their implementation; everything comes back bit
  for bit. Saves run in the background: the call returns once the arrays are
  copied, and `wait=True`, `wait` or `close` return once they are on disk. One
  save is under way at a time, so kill -9 costs the steps since the last one
  that finished.

  Args:
    directory: folder of the checkpoints, made if absent.
    max_to_keep: how many of the last to keep, >= 1.
    keep_best: keep the best as well.
    best_metric: name in `metrics` that decides which is best.
    best_mode: 'min' or 'max'.
    read_only: never write, move or clean anything, e.g. to read a live run.
  """

  def __init__(
    self,
    directory,
    *,
    max_to_keep: int = 2,
    keep_best: bool = True,
    best_metric: str = BEST_METRIC,
    best_mode: str = 'min',
    read_only: bool = False,
  ):
    if max_to_keep < 1:
      raise ValueError(f'max_to_keep={max_to_keep} is given; allowed is >= 1')
    if best_mode not in ('min', 'max'):
      raise ValueError(f'best_mode={best_mode!r} is given; allowed: min, max')
    self.directory = epath.Path(directory)
    if not files.is_remote(directory):
      self.directory = self.directory.absolute()
    self._max_to_keep, self._keep_best = max_to_keep, keep_best
    self._best_metric, self._best_mode = best_metric, best_mode
    self._read_only = read_only
    self._saving: int | None = None
    python_logging.getLogger('absl').addFilter(_quiet_orbax)
    self._scores: dict[int, float] = {}
    self._remove_half_steps()
    self._manager = self._open_manager()
    for step in self.all_steps():
      with contextlib.suppress(OSError, ValueError, KeyError):
        self._set_score(step, self._read_data(step)['metrics'])

  def _open_manager(self) -> ocp.CheckpointManager:
    try:
      if self.directory.exists() and not self.directory.is_dir():
        raise NotADirectoryError('it is a file')
      return ocp.CheckpointManager(
        self.directory,
        item_handlers={
          'state': ocp.PyTreeCheckpointHandler(),
          'data': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          create=not self._read_only,
          read_only=self._read_only,
          preservation_policy=_LastAndBest(self._max_to_keep, self._best_of),
          async_options=ocp.AsyncOptions(
            post_finalization_callback=self._write_manifest
          ),
        ),
      )
    except OSError as error:
      raise CheckpointError(
        f'checkpoint folder {self.directory} cannot be used: '
        f'{files.one_line(error)}'
      ) from error

  def _remove_half_steps(self):
    """Removes what a killed or failed save left, and the space that it took."""
    if self._read_only or jax.process_index() != 0:
      return
    with contextlib.suppress(OSError):
      for folder in self.directory.glob(_TMP_GLOB.format('*')):
        folder.rmtree()

  # ---- which steps there are

  def all_steps(self) -> list[int]:
    """Returns the steps that are whole or being saved, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """Returns the last step, None if there is none."""
    return max(self.all_steps(), default=None)

  def best_step(self) -> int | None:
    """Returns the step of the best `best_metric`, None if none has one."""
    return self._best_of(self.all_steps())

  def _by_score(self, steps) -> list[int]:
    """Steps that have a score, the best first, of equals the earlier first."""
    sign = 1 if self._best_mode == 'min' else -1
    scored = [step for step in steps if step in self._scores]
    return sorted(scored, key=lambda step: (sign * self._scores[step], step))

  def _best_of(self, steps) -> int | None:
    ranked = self._by_score(steps) if self._keep_best else []
    return ranked[0] if ranked else None

  def _set_score(self, step: int, metrics: Mapping | None):
    score = (metrics or {}).get(self._best_metric)
    # NaN compares as neither better nor worse: it must never be the best.
    if score is not None and math.isfinite(score):
      self._scores[step] = float(score)

  # ---- saving

  def save(
    self,
    step: int,
    state,
    data_state: Mapping,
    metrics: Mapping[str, float] | None = None,
    *,
    wait: bool = False,
  ) -> bool:
    """Returns True once the save of `step` is under way, or done (`wait`).

    A step that is saved already is left as it is (False): a signal may ask for
    a save right after a regular one.

    Args:
      step: steps done, larger than those saved.
      state: pytree of arrays; its buffers may be donated right afterwards.
      data_state: JSON values, e.g. the data iterator's state.
      metrics: numbers; `best_metric` among them makes this a candidate.
      wait: return only when it is on disk.

    Raises:
      CheckpointError: this save, or the one before in the background, failed.
      TypeError: a leaf that is no array, or data_state that is not JSON.
    """
    self.wait()
    saved = step in self.all_steps()
    if not saved:
      flat = leaves_lib.flatten(state)
      data = self._make_data(step, flat, data_state, metrics)
      self._set_score(step, data['metrics'])
      self._saving = step
      try:
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(
              leaves_lib.nest(
                {name: leaves_lib.to_save(leaf) for name, leaf in flat.items()}
              )
            ),
            data=ocp.args.JsonSave(data),
          ),
          force=True,
        )
      except Exception as error:
        self._fail(error)
    if wait:
      self.wait()
    return not saved

  def _make_data(self, step, flat, data_state, metrics) -> dict:
    data = {
      'format': 1,
      'step': int(step),
      'metrics': {k: float(v) for k, v in (metrics or {}).items()},
      'leaves': leaves_lib.describe(flat),
      'keys': leaves_lib.key_impls(flat),
      'data_state': dict(data_state),
    }
    try:
      return json.loads(json.dumps(data))
    except (TypeError, ValueError) as error:
      raise TypeError(f'data_state must be JSON values: {error}') from None

  def _write_manifest(self):
    """Called by Orbax when all files are written, before the final rename."""
    if jax.process_index() != 0:
      return
    folders = [*self.directory.glob(_TMP_GLOB.format(self._saving))]
    folder = folders[0] if folders else self.directory / str(self._saving)
    files.write_manifest(folder)

  def wait(self):
    """Returns when the save under way, if any, is on disk.

    Raises:
      CheckpointError: it failed.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      self._fail(error)
    self._saving = None

  def _fail(self, error: Exception):
    """Raises the one line, with the folder and the manager fit for use."""
    step, self._saving = self._saving, None
    with contextlib.suppress(Exception):
      self._manager.close()
    self._remove_half_steps()
    if jax.process_count() == 1:  # or it would wait for the other processes
      # A new manager lists what is really there.
      with contextlib.suppress(CheckpointError):
        self._manager = self._open_manager()
    self._scores.pop(step, None)
    steps = [s for s in self.all_steps() if s != step]
    whole = (
      f'earlier checkpoints are whole (steps {", ".join(map(str, steps))})'
      if steps
      else 'there is no earlier checkpoint'
    )
    reason = (
      'the disk is full: make room and run again'
      if files.is_disk_full(error)
      else files.one_line(error)
    )
    raise CheckpointError(
      f'checkpoint of step {step} could not be written to {self.directory}; '
      f'{whole}; {reason}'
    ) from error

  def close(self):
    """Waits for the save under way and lets go of the folder."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *exc_info):
    self.close()

  # ---- restoring

  def restore_latest(self, abstract_state, shardings=None):
    """Returns `(step, state, data_state)` of the last step that is whole.

    A damaged step is named in a warning, set aside in `damaged/`, and the one
    before it is used.

    Args:
      abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`s: structure,
        shapes and dtypes; a `NamedSharding` in a leaf is where it goes.
      shardings: pytree like it, or one sharding for all, instead of those.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      CheckpointError: every checkpoint is damaged, or a whole one is of another
        structure (the first leaf that differs is named).
    """
    self.wait()
    steps = self._some(self.all_steps()[::-1])
    return self._restore_first(steps, abstract_state, shardings)

  def _some(self, steps: list[int]) -> list[int]:
    """Returns the steps; raises CheckpointError if all were damaged."""
    aside = self.directory / _DAMAGED_DIR
    if not steps and aside.is_dir() and any(aside.iterdir()):
      # Starting anew would write over what the run has logged.
      raise CheckpointError(
        f'every checkpoint in {self.directory} is damaged and lies in {aside}:'
        ' start in another workdir, or delete this one to begin anew'
      )
    return steps

  def restore_best(self, abstract_state, shardings=None):
    """Returns `(step, state, data_state)` of the best step; see above.

    None if no checkpoint has the metric.
    """
    self.wait()
    steps = self._by_score(self.all_steps())
    return self._restore_first(steps, abstract_state, shardings)

  def restore_params(
    self, like, *, which: str | None = None, optional: Sequence[str] = ()
  ):
    """Returns `(step, params)`: `state['params']` alone, without the rest.

    Args:
      like: params or their `jax.ShapeDtypeStruct`s.
      which: 'best', 'last', or None for the best if there is one.
      optional: names at the top of params that the checkpoint may lack, which
        gives 0, or may have beside those of `like`, which are left out.

    Returns:
      None if there is no such checkpoint.
    """
    if which not in (None, 'best', 'last'):
      raise ValueError(f'which={which!r} is given; allowed: best, last, None')
    last = self._some(self.all_steps()[::-1])
    steps = [] if which == 'last' else self._by_score(last)
    if which != 'best':
      steps += [step for step in last if step not in steps]
    found = self._restore_first(
      steps, {'params': like}, None, partial=True, optional=optional
    )
    return found and (found[0], found[1]['params'])

  def _restore_first(
    self, steps, abstract_state, shardings, partial=False, optional=()
  ):
    wanted = leaves_lib.place(abstract_state, shardings)
    problem = None
    for tried, step in enumerate(steps, start=1):
      problem = self.damage(step)
      if problem is None:
        try:
          data = self._read_data(step)
          held = self._check_fits(step, data, wanted, partial, optional)
          state = self._read_state(step, data, held, partial)
        except CheckpointError:
          raise  # it is whole, and of another structure
        except Exception as error:
          if jax.process_count() > 1:
            raise  # other processes would wait for this one for ever
          problem = files.one_line(error)
        else:
          treedef = jax.tree_util.tree_structure(abstract_state)
          leaves = [
            state[names] if names in state else _zeros(leaf)
            for names, leaf in wanted.items()
          ]
          return step, treedef.unflatten(leaves), data['data_state']
      self._set_aside(step, problem, more=tried < len(steps))
    if problem is not None:
      raise CheckpointError(
        f'every checkpoint in {self.directory} is damaged (the last one tried, '
        f'step {steps[-1]}: {problem}): start in another workdir, or delete '
        'this one to begin anew'
      )
    return None

  def damage(self, step: int) -> str | None:
    """Returns what is wrong with the files of `step`, None if nothing is."""
    problem = self._find_damage(step) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
      bad = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
      problem = problem or ('found by process 0' if bad else None)
    return problem

  def _find_damage(self, step: int) -> str | None:
    problem = files.find_damage(self.directory / str(step))
    if problem is None:
      try:
        self._read_data(step)
      except (OSError, ValueError) as error:
        problem = f'data cannot be read ({files.one_line(error)})'
    return problem

  def _set_aside(self, step: int, problem: str, *, more: bool):
    where = 'it is skipped'
    if not self._read_only:
      aside = self.directory / _DAMAGED_DIR / str(step)
      n = 1
      while aside.exists():
        aside = self.directory / _DAMAGED_DIR / f'{step}-{n}'
        n += 1
      if jax.process_index() == 0:
        aside.parent.mkdir(exist_ok=True)
        (self.directory / str(step)).rename(aside)
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f'set aside {step}')
      self._manager.reload()
      where = f'it is moved to {aside}'
    self._scores.pop(step, None)
    warnings.warn(
      f'checkpoint of step {step} is damaged ({problem}): {where}'
      + (', and the one before it is used' if more else ''),
      RuntimeWarning,
      stacklevel=4,
    )

  def _read_data(self, step: int) -> dict:
    return json.loads(
      (self.directory / str(step) / 'data' / 'metadata').read_text()
    )

  def _check_fits(self, step, data, wanted, partial, optional) -> dict:
    """Returns the wanted leaves that the step holds: all but optional ones."""
    spare = lambda name: (
      name.split('/')[:2] in [['params', o] for o in optional]
    )
    saved, table = data['leaves'], leaves_lib.describe(wanted)
    if partial:
      saved = {k: v for k, v in saved.items() if k.startswith('params/')}
    absent = {k for k in table if spare(k) and k not in saved}
    saved = {k: v for k, v in saved.items() if k in table or not spare(k)}
    table = {k: v for k, v in table.items() if k not in absent}
    if difference := leaves_lib.first_difference(saved, table):
      raise CheckpointError(
        f'checkpoint of step {step} in {self.directory} does not fit: '
        f'{difference}'
      )
    return {k: v for k, v in wanted.items() if '/'.join(k) not in absent}

  def _read_state(self, step, data, wanted: dict, partial: bool) -> dict:
    items = {names: leaves_lib.stored(leaf) for names, leaf in wanted.items()}
    args = {names: _restore_args(leaf) for names, leaf in items.items()}
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=leaves_lib.nest(items),
          restore_args=leaves_lib.nest(args),
          partial_restore=partial,
        )
      ),
    )
    flat = leaves_lib.flatten(restored['state'])
    return {
      names: leaves_lib.from_stored(
        flat[names], data['keys'].get('/'.join(names))
      )
      for names in wanted
    }


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """Returns zeros of a leaf's shape, where its sharding says."""
  return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
  if leaf.sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(
    sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
  )


def open_folder(folder) -> Checkpointer:
  """Returns the checkpoints of a run folder, or of their own, to be read."""
  folder = epath.Path(folder)
  if (folder / CHECKPOINTS_DIR).is_dir():
    folder = folder / CHECKPOINTS_DIR
  return Checkpointer(folder, read_only=True)


def restore_params(
  folder, like, *, which: str | None = None, optional: Sequence[str] = ()
):
  """Returns `(step, params)` of a run folder, or of its checkpoints folder.

  Nothing in the folder is changed: the run may be a live one.

  Args:
    folder: a workdir, or a folder of checkpoints.
    like: params or their `jax.ShapeDtypeStruct`s.
    which: 'best', 'last', or None for the best if there is one.
    optional: as in `Checkpointer.restore_params`.

  Returns:
    None if it holds no checkpoint.
  """
  with open_folder(folder) as checkpointer:
    return checkpointer.restore_params(like, which=which, optional=optional)
