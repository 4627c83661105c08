"""One GRPO step on the same traces, beside Tunix's trainer and TRL's.

    bash benchmarks/peers.sh          (once: makes .venv-tunix and .venv-trl)
    python benchmarks/update.py [--sizes=0.5M,10M,135M] [--peers=tunix,trl]
      [--cases=long-tailed,equal] [--rounds=5] [--json=update.json] [--add]

Forward, backward, clipping by the global norm and AdamW, in float32, on traces
with the lengths of benchmarks/rollout.py: prompt of 16 tokens, 256 at most
behind it. The loss is the mean over traces of each one's mean over its tokens
(TRL's 'grpo', Tunix's 'sequence-mean-token-mean'); clipped at 0.2, without a
reference. Before anything is timed, the losses of the first step are compared.

Counted are real tokens, prompts and responses without padding. Processes and
rounds are as in benchmarks/rollout.py; memory is the most that a step holds
beside the loaded weights, in a process that does nothing else. The limit is the
rate of the model's bare matrix products at so many tokens, forward and
backward, for the arithmetic of real tokens alone.
"""

import functools
import pathlib

import numpy as np
from absl import app, flags
from peers import common, compare, engines, workload

from meta_rl import command_line

FLAGS = flags.FLAGS
# More rows than this make no bare product faster.
_MOST_ROWS = 4096


def measure(size: str, names: list[str], folder, before: dict) -> dict:
  """Returns all figures of one size, those of `before` among them."""
  folder = folder / size
  folder.mkdir(parents=True, exist_ok=True)
  shape = workload.SIZES[size]
  paths = workload.write(folder, workload.update_cases(shape))
  measured = {}
  with engines.started(names, folder) as workers:
    found = common.load(workers, size, folder)
    before = common.comparable(before, found)
    for case in FLAGS.cases:
      workers[engines.OURS].ask('score', path=paths[case])
      measured[case] = rows = measure_case(workers, paths[case])
      mask = np.load(paths[case])['mask']
      bound = limit(workers, shape, found['parameters'], mask)
      for row in rows.values():
        row |= bound
  found['cases'] = dict(before.get('cases', {}))
  for case, rows in measured.items():
    for name, row in rows.items():
      # The mode of the table: what is fast and what is small are one program.
      row['peak_mb'] = memory(name, row.pop('mode'), paths[case], folder)
    rows = compare.joined(rows, found['cases'].get(case, {}))
    found['cases'][case] = compare.with_rates(rows)
  return found


def measure_case(workers: dict, path: str) -> dict[str, dict]:
  """Returns the seconds of each engine at its best, and its loss.

  Raises:
    EngineError: a loss that is not ours.
  """
  count = len(np.load(path)['tokens'])
  more = {}
  losses = {}

  def run(name, mode, fresh=False):
    answer = workers[name].ask('update', path=path, mode=mode, fresh=fresh)
    if fresh:
      losses[name] = answer['loss']
    return answer

  def choose(name):
    once = functools.partial(run, name)
    offered = workers[name].ask('update_modes', rows=count)
    best, tried = common.best_of(name, offered, once)
    if len(tried) > 1:
      # The one that was tried last is loaded.
      for i in range(offered['warm']):
        once(best, i == 0)
    return best, tried

  ways = common.best_ways(workers, choose)
  for name, (best, tried) in ways.items():
    more[name] = {'way': best['name'], 'mode': best, 'loss': losses[name]}
    more[name]['tried'] = tried
  check_losses({name: row['loss'] for name, row in more.items()})
  calls = common.turns(run, ways)
  found = compare.side_by_side(compare.alternate(calls, FLAGS.rounds))
  return {name: row | more[name] for name, row in found.items()}


def check_losses(losses: dict[str, float]):
  """Raises EngineError where a loss is further from ours than rounding."""
  ours = losses[engines.OURS]
  for name, loss in losses.items():
    if not abs(loss - ours) <= 1e-3 * abs(ours) + 1e-5:
      raise engines.EngineError(
        f'{name}: its loss is {loss:.7f}, ours {ours:.7f}: it does not '
        'compute the same loss'
      )


def limit(workers: dict, shape: workload.Size, parameters: int, mask) -> dict:
  """Returns the limit of a step on these traces, real tokens/s, and why."""
  real = mask.sum(1) + mask.argmax(1)
  flops = step_flops(shape, parameters, real)
  rows = min(int(real.sum()), _MOST_ROWS)
  bare = common.bare_products(workers, rows, backward=True)
  seconds = flops / bare['gflops'] / 1e9
  return {
    'gflop': flops / 1e9,
    'matmul_gflops': bare['gflops'],
    'read_gb_s': bare['read_gb_s'],
    'limit_tokens_per_s': int(real.sum()) / seconds,
  }


def step_flops(shape: workload.Size, parameters: int, lengths) -> float:
  """Returns the FLOPs of forward and backward on traces of these lengths.

  6 N a token, and 12 L D a token and key that it may see (causal), D being the
  width of all heads together. The embedding is tied: its N are those of the
  head's product.
  """
  lengths = np.asarray(lengths, np.float64)
  keys = lengths * (lengths + 1) / 2
  per_key = 12 * shape.layers * shape.width
  return float((6 * parameters * lengths + per_key * keys).sum())


def memory(name: str, mode: dict, path: str, folder: pathlib.Path) -> float:
  """Returns the most that a step holds beside the weights, MB."""
  with engines.started([name], folder) as workers:
    worker = workers[name]
    checkpoint = str(folder / 'checkpoint')
    worker.ask('load', folder=checkpoint, threads=FLAGS.threads)
    return worker.ask('memory', path=path, mode=mode)['peak_mb']


def lines(found: dict) -> str:
  """Returns the table of all sizes."""
  table = [
    (
      *('size', 'case', 'engine', 'way', 'tokens/s', 'limit', 'share'),
      *('memory MB', 'loss', 'ours is faster'),
    )
  ]
  for size, figures in found.items():
    for case, rows in figures['cases'].items():
      for name, row in rows.items():
        rate = compare.spread(row['tokens_per_s'], row['quartiles'])
        limit_ = f'{row["limit_tokens_per_s"]:,.0f}'
        share = f'{row["tokens_per_s"] / row["limit_tokens_per_s"]:.0%}'
        known = (size, case, name, row['way'], rate, limit_, share)
        held, loss = f'{row["peak_mb"]:,.0f}', f'{row["loss"]:.6f}'
        table.append((*known, held, loss, common.ratio_cell(row)))
  return compare.table(table, words=4)


def main(argv):
  """Runs the benchmark and prints its table."""
  common.run(measure, lines, argv)


if __name__ == '__main__':
  common.define_flags()
  flags.adopt_module_key_flags(common)  # for --help
  app.run(main, flags_parser=command_line.parse_flags)
