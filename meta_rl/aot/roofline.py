"""How long a compiled program takes, and what binds it: a prediction.

    compute  the compiler's estimated cycles over the clock; what it has no
             estimate for (Pallas kernels) by its FLOPs at half of the peak
    memory   bytes to and from HBM over its bandwidth
    network  bytes of each collective over the links that its group fills
    time     max(compute, memory) + exposed network

What a collective in the background (start ... done, or fused with a product)
takes longer than the rest of its loop body is exposed; any other is wholly so.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from meta_rl.aot.chips import Slice
from meta_rl.aot.hlo import COLLECTIVES, Instruction, Program

_HALF = 0.5  # of the peak, for kernels without an estimate


@dataclasses.dataclass(frozen=True)
class Collective:
  """What one collective moves in a whole run of the program.

  Attributes:
    kind: of `hlo.COLLECTIVES`.
    group: devices that take part together.
    size: bytes of its whole array, once.
    times: how often it runs.
    hidden: whether it runs in the background.
    where: of the traced program.
  """

  kind: str
  group: int
  size: float
  times: float
  hidden: bool
  where: str

  @property
  def moved(self) -> float:
    """Bytes into each device, in all: what a ring needs."""
    share = (self.group - 1) / self.group
    factor = {'all-reduce': 2 * share, 'collective-permute': 1.0}
    return self.size * self.times * factor.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one program costs on each device.

  Attributes:
    flops: of its matrix products and kernels.
    bytes: to and from HBM.
    compute, memory, network, exposed: seconds.
    collectives: in the order of the bytes that they move.
  """

  flops: float
  bytes: float
  compute: float
  memory: float
  network: float
  exposed: float
  collectives: tuple[Collective, ...]

  @property
  def seconds(self) -> float:
    """max(compute, memory) + exposed."""
    return max(self.compute, self.memory) + self.exposed

  @property
  def binds(self) -> str:
    """'compute', 'memory' or 'network', whatever takes longest."""
    if self.exposed > max(self.compute, self.memory):
      return 'network'
    return 'compute' if self.compute >= self.memory else 'memory'


def cost(program: Program, slice_: Slice) -> Cost:
  """Returns what a program costs on each device of a slice."""
  chip = slice_.chip
  peak, bandwidth = chip.flops / chip.devices, chip.bandwidth / chip.devices
  flops = moved = compute = network = 0.0
  collectives, seen = {}, {}
  busy, hidden, plain = {}, {}, {}
  for each, where, times in program.walk():
    for collective in _collectives(program, each, times, slice_):
      channel = collective.where, collective.kind, collective.size
      key = (_channel(program, each), *channel)
      if key in seen and seen[key] != each.name:
        continue  # the same one, in another of the fusions that carry it
      seen[key] = each.name
      collectives[key] = collective
      seconds = collective.moved / slice_.ring_bandwidth(collective.group)
      network += seconds
      lane = hidden if collective.hidden else plain
      lane[where] = lane.get(where, 0.0) + seconds
    if _kind(each) in COLLECTIVES:
      continue
    own = program.flops(each, where)
    if each.opcode == 'custom-call':
      own += kernel_flops(program, each, where)
    flops += own * times
    moved += program.moved(each, where) * times
    seconds = own / (_HALF * peak)
    if each.cycles is not None:
      seconds = each.cycles / chip.clock
    compute += seconds * times
    busy[where] = busy.get(where, 0.0) + seconds * times
  exposed = sum(plain.values()) + sum(
    max(0.0, seconds - busy.get(where, 0.0))
    for where, seconds in hidden.items()
  )
  order = sorted(collectives.values(), key=lambda c: -c.moved)
  return Cost(
    flops,
    moved,
    compute,
    moved / bandwidth,
    network,
    exposed,
    tuple(order),
  )


def merged(collectives: Sequence[Collective]) -> list[Collective]:
  """Returns one for each kind, group and array size, their times added."""
  found = {}
  for each in collectives:
    key = each.kind, each.group, each.size, each.hidden
    old = found.get(key)
    times = each.times + (old.times if old else 0)
    found[key] = dataclasses.replace(old or each, times=times)
  return sorted(found.values(), key=lambda c: -c.moved)


def _kind(each: Instruction) -> str:
  return each.opcode.removesuffix('-start').removesuffix('-done')


def _collectives(program, each, times, slice_):
  """Yields the collectives of an instruction, or of what it fuses."""
  if each.opcode == 'fusion':
    for other in program.inner(each).values():
      if other.opcode in COLLECTIVES:
        yield _collective(other, times, True, slice_)
  elif _kind(each) in COLLECTIVES and not each.opcode.endswith('-done'):
    hidden = each.opcode.endswith('-start')
    hidden |= 'async_collective_name' in each.text
    yield _collective(each, times, hidden, slice_)


def _collective(each, times, hidden, slice_):
  kind, group = _kind(each), _group(each.text, slice_.devices)
  sizes = [shape.size for shape in each.shapes]
  size = max(sizes, default=0.0)
  if kind == 'reduce-scatter':
    size *= group  # the whole array is what goes in
  elif kind == 'all-reduce':
    size = sum(sizes)
  return Collective(kind, group, size, times, hidden, each.where)


def _channel(program, each):
  """Returns what a collective is known by, in several fusions that carry it.

  One that stands alone is itself: shard_map's sums all have one channel.
  """
  if each.opcode != 'fusion':
    return each.name
  texts = [each.text, *(i.text for i in program.inner(each).values())]
  for text in texts:
    if found := re.search(r'channel_id=(\d+)', text):
      return found[1]
  return each.name


def _group(text: str, devices: int) -> int:
  """Returns how many devices a collective's groups have."""
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    group = 1
    for axis in re.findall(r"'(\w+)'", found[2]):
      group *= int(sizes.get(axis, 1))
    return group
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', text):
    return int(found[2])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', text):
    return len(found[1].split(','))
  return devices


def kernel_flops(program: Program, each: Instruction, where: str) -> float:
  """Returns the FLOPs of a Pallas kernel that is known here, else 0.

  Splash attention is causal: half of the scores. Of queries that are cut over
  devices those of the last one see the most keys. Forward has two products of
  scores, backward five.
  """
  name = each.name
  if 'splash' not in name:
    return 0.0
  known = program.computations[where]
  shapes = [known[o].shapes[0] for o in each.operands if o in known]
  # In this order: q, k, v.
  floats = [
    s.dims for s in shapes if s.dtype in ('bf16', 'f32') and len(s.dims) >= 3
  ]
  if len(floats) < 2:
    return 0.0
  (*rows, queries, dim), keys = floats[0], floats[1][-2]
  # Keys may be padded by less than a device's queries.
  end = keys // queries * queries
  scores = queries * (end - queries / 2)
  products = 2 if 'fwd' in name else 5
  return products * 2.0 * math.prod(rows) * scores * dim
