"""What `rollout` and `update` do alike: flags, loading, limits, the end."""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable

import figures
import numpy as np
from absl import flags

from meta_rl import command_line
from peers import compare, engines, workload

FLAGS = flags.FLAGS
# Sizes of a real comparison; the others are for a look at the commands.
SIZES = [name for name in workload.SIZES if name != 'micro']
CASES = ['long-tailed', 'equal']
_ROUNDS = 9  # that the median of a bare product is over
# A way is tried so often, unless its runs have taken so many seconds.
_TRIES, _TRYING_S = 3, 6
_SHORT_S = 2  # a run that caches could tell in


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def define_flags():
  """Defines the flags of both benchmarks."""
  flags.DEFINE_list('sizes', SIZES, f'Of {list(workload.SIZES)}.')
  flags.DEFINE_list('peers', list(engines.PEERS), 'Peers to compare with.')
  flags.DEFINE_bool('only_ours', False, 'No peer at all.')
  flags.DEFINE_list('cases', CASES, f'Of {CASES}.')
  flags.DEFINE_list('ways', [], "Parts of the names of peers' ways to try.")
  flags.DEFINE_integer('rounds', 5, 'Times that each is timed.', lower_bound=1)
  flags.DEFINE_integer(
    'threads', cores(), 'Of torch; XLA takes all cores.', lower_bound=1
  )
  flags.DEFINE_string('folder', '', 'Keeps checkpoints and logs here.')
  figures.define_json()
  flags.DEFINE_bool('add', False, 'Adds rounds to those that are in the file.')
  for name, allowed in (
    ('sizes', workload.SIZES),
    ('peers', engines.PEERS),
    ('cases', CASES),
  ):
    flags.register_validator(
      name,
      lambda given, name=name, allowed=allowed: (
        set(given) <= set(allowed) and (given or name == 'peers')
      ),
      f'--{name}: allowed are {list(allowed)}, with commas between',
    )


def run(
  measure: Callable[..., dict], lines: Callable[[dict], str], argv: list[str]
):
  """Measures size after size and prints a table of each.

  Args:
    measure: `(size, names, folder, before) -> figures`; before: those of the
      file, {} for none.
    lines: the table of `{size: figures}`.
    argv: the command and what is no flag, for which there is no use.
  """
  command_line.refuse_arguments(argv)
  if FLAGS.add and not FLAGS.json:
    raise SystemExit('error: --add adds to the file of --json: name it')
  names = [engines.OURS]
  if not FLAGS.only_ours:
    names += engines.present(FLAGS.peers)
  found, file = {}, pathlib.Path(FLAGS.json or '/dev/null')
  if FLAGS.add and file.is_file():
    found = json.loads(file.read_text('utf-8'))
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(FLAGS.folder or scratch).absolute()
    for size in FLAGS.sizes:
      try:
        before = found.get(size, {})
        found[size] = measure(size, names, folder, before)
      except engines.EngineError as error:
        raise SystemExit(f'error: {error}') from None
      except KeyboardInterrupt:
        raise SystemExit(f'stopped; of {size} nothing is kept') from None
      print(lines({size: found[size]}), flush=True)
      if FLAGS.json:
        file.write_text(json.dumps(found, indent=2) + '\n', 'utf-8')


def load(workers: dict, size: str, folder: pathlib.Path) -> dict:
  """Gives every worker the checkpoint; returns what they say of themselves."""
  ours = workers[engines.OURS]
  checkpoint = str(folder / 'checkpoint')
  ours.ask('write', size=size, folder=checkpoint)
  loaded = {
    name: worker.ask('load', folder=checkpoint, threads=FLAGS.threads)
    for name, worker in workers.items()
  }
  own = loaded[engines.OURS]
  return {
    'machine': own['machine'],
    'revision': revision(),
    'threads': FLAGS.threads,
    'parameters': own['parameters'],
    'versions': {name: x['versions'] for name, x in loaded.items()},
    'logits_apart': logits_apart(workers, folder),
  }


def logits_apart(workers: dict, folder: pathlib.Path) -> dict[str, float]:
  """Returns how far each engine's logits of one prompt are from ours, at most.

  Raises:
    EngineError: further than rounding: it is not the same model.
  """
  tokens = list(range(workload.FIRST, workload.FIRST + workload.PROMPT))
  logits = {}
  for name, worker in workers.items():
    path = folder / f'{name}.npy'
    worker.ask('logits', tokens=tokens, path=str(path))
    logits[name] = np.load(path)
  ours = logits.pop(engines.OURS)
  found = {k: float(abs(x - ours).max()) for k, x in logits.items()}
  for name, gap in found.items():
    if not gap < 1e-3 * ours.std():
      raise engines.EngineError(
        f'{name}: its logits are {gap:.3g} from ours, of standard deviation '
        f'{ours.std():.3g}: it does not compute the same model'
      )
  return found


def best_of(name: str, offered: dict, once: Callable) -> tuple:
  """Returns the mode of an engine that took least, and what each took.

  Args:
    name: of the engine.
    offered: `modes`, its ways (--ways leaves some of a peer's out), and `warm`,
      how many runs it takes until all is compiled.
    once: `(mode, fresh) -> answer` of one run; fresh: nothing before it.
  """
  modes, warm = offered['modes'], offered['warm']
  if name != engines.OURS and FLAGS.ways:
    kept = [m for m in modes if any(way in m['name'] for way in FLAGS.ways)]
    if not kept:
      compare.tell(
        f'{name}: none of --ways, so all: {[m["name"] for m in modes]}'
      )
    modes = kept or modes

  def seconds(mode):
    for i in range(warm):
      once(mode, i == 0)
    found = [once(mode, not warm)['seconds']]
    while len(modes) > 1 and len(found) < _TRIES and sum(found) < _TRYING_S:
      found.append(once(mode)['seconds'])
    compare.tell(f'{name}, {mode["name"]}: {min(found):.2f} s')
    return min(found)

  return compare.best_mode(modes, seconds)


def turns(run: Callable, found: dict[str, tuple]) -> dict[str, Callable]:
  """Returns what is timed when it is an engine's turn: one run at its best.

  Others have had the cores and their caches since its last one. Where that
  could tell of any engine, each has a run before it that does not count.

  Args:
    run: `(name, mode) -> answer`.
    found: of `best_ways`.
  """
  shortest = min(tried[best['name']] for best, tried in found.values())

  def turn(name):
    best, _ = found[name]
    if shortest < _SHORT_S:
      run(name, best)
    answer = run(name, best)
    compare.tell(f'{name}: {answer["seconds"]:.2f} s')
    return answer

  return {name: functools.partial(turn, name) for name in found}


def best_ways(
  workers: dict, choose: Callable[[str], tuple]
) -> dict[str, tuple]:
  """Returns what `choose` gives for each engine.

  A peer of which every way fails is left out, with a line that says so.

  Args:
    workers: of all engines, by their names.
    choose: of an engine's name; raises EngineError.
  """
  found = {}
  for name in workers:
    try:
      found[name] = choose(name)
    except engines.EngineError as error:
      if name == engines.OURS:
        raise
      compare.tell(f'{name} is left out: {error}')
  return found


def comparable(before: dict, now: dict) -> dict:
  """Returns earlier figures, which have to be of the same.

  Args:
    before: of a file, {} for none.
    now: what the engines of this run say of themselves.

  Raises:
    EngineError: they are of other files, another machine, model or version.
  """
  if not before:
    return {}
  if now['revision'].endswith(('+', 'unknown')):
    raise engines.EngineError(
      f'--add: revision {now["revision"]} does not say which files these are: '
      'earlier rounds may be of others; commit first, or name another --json'
    )
  keys = 'revision', 'machine', 'parameters', 'threads'
  compared = [(key, before.get(key), now[key]) for key in keys]
  compared += [
    (f'versions of {name}', versions, now['versions'][name])
    for name, versions in before.get('versions', {}).items()
    if name in now['versions']
  ]
  for key, was, new in compared:
    if was != new:
      raise engines.EngineError(
        f'--add: the rounds in the file are of {key} {was}, not {new}: name '
        'another --json'
      )
  return before


def revision() -> str:
  """Returns the commit of this checkout, '+' behind it where files differ."""
  command = ['git', 'describe', '--always', '--dirty=+', '--exclude=*']
  try:
    found = subprocess.run(
      command, cwd=engines.ROOT, capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return found.stdout.strip()


def bare_products(workers: dict, rows: int, *, backward: bool) -> dict:
  """Returns GFLOP/s and seconds of the model's matrix products on `rows` rows.

  Of each the faster: XLA's, or torch's where its worker is there. With it,
  `read_gb_s`, the rate at which memory is read.
  """
  ours = workers[engines.OURS]
  given = {'rows': rows, 'backward': backward}
  others = []
  if 'trl' in workers:
    shapes = ours.ask('shapes', **given)['shapes']
    # A peer that is left out may have ended.
    with contextlib.suppress(engines.EngineError):
      answer = workers['trl'].ask('matmuls', shapes=shapes, rounds=_ROUNDS)
      others = [answer['seconds']]
  return ours.ask('limits', rounds=_ROUNDS, others=others, **given)


def ratio_cell(row: dict) -> str:
  """Returns how often faster ours is, as the table has it."""
  faster = row.get('ours_faster')
  if faster is None:
    return '-'
  return compare.spread(faster['ratio'], faster['quartiles'], 2)
