"""What a compiled TPU program does, read from its HLO text.

XLA's own totals (`cost_analysis`) count the body of a loop once and kernels
without a cost model not at all. Here every instruction is counted as often as
its loops run, and what one costs is taken from the text: the compiler's
estimate of cycles, the shapes of products, the sizes of what moves.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_SIZES = {
  'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2,
  's32': 4, 'u32': 4, 's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2, 'f32': 4,
  'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1, 'c64': 8, 'token': 0,
}  # fmt: skip
_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_HEAD = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r' ([a-z][a-z0-9\-]*)\(')
COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# Of which the text says nothing that costs time.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all iota '
  'partition-id replica-id'.split()
)
# What reads as much of its first operand as it gives.
_CUTS = frozenset(('slice', 'dynamic-slice', 'gather'))


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array: its dtype, sizes, and whether it lies in on-chip memory."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool = False

  @property
  def size(self) -> float:
    """Bytes."""
    return math.prod(self.dims) * _SIZES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: without '%'.
    opcode: such as 'fusion', 'while', 'all-gather'.
    shapes: of the result, one or, of a tuple, several.
    operands: names.
    text: what stands behind the operands.
    root: whether it is the result of its computation.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  text: str
  root: bool = False

  def called(self, key: str) -> str | None:
    """Returns the computation that `key` ('calls', 'body', …) names."""
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.text)
    return found and found[1]

  @property
  def where(self) -> str:
    """What of the traced program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.text)
    return found[1] if found else ''

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate; None where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
    # The largest number that fits is the compiler's word for not knowing.
    return int(found[1]) if found and int(found[1]) < 2**62 else None


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: name -> its instructions by name, in order.
    entry: the name of the one that runs.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str

  def walk(self) -> Iterator[tuple[Instruction, str, float]]:
    """Yields (instruction, its computation, how often it runs).

    Loops, branches and calls are entered, fusions are not. Of branches the one
    with the most instructions runs. A loop whose end depends on data runs as
    often as its bound allows.
    """
    yield from self.walk_from(self.entry)

  def walk_from(self, name: str) -> Iterator[tuple[Instruction, str, float]]:
    """Yields what `walk` does, of one computation, run once."""
    yield from self._walk(name, 1.0)

  def _walk(self, name, times):
    for each in self.computations[name].values():
      if each.opcode == 'while':
        often = times * self.trips(each)
        yield from self._walk(each.called('body'), often)
      elif each.opcode == 'conditional':
        names = re.search(r'branch_computations=\{([^}]*)\}', each.text)
        if names:
          branches = [b.strip().lstrip('%') for b in names[1].split(',')]
        else:
          keys = 'true_computation', 'false_computation'
          branches = [each.called(key) for key in keys]
        most = max(branches, key=lambda b: len(self.computations[b]))
        yield from self._walk(most, times)
      elif each.opcode in ('call', 'async-start'):
        inner = each.called('to_apply') or each.called('calls')
        yield from self._walk(inner, times)
      elif each.opcode not in _FREE:
        yield each, name, times

  def trips(self, loop: Instruction) -> int:
    """Returns how often a loop runs, from the constant that it is held to.

    XLA's loops count from 0, or from a constant, to another one by ones or
    twos; what cannot be read runs once.
    """
    found = re.search(r'known_trip_count[^\d]*(\d+)', loop.text)
    if found:
      return int(found[1])
    condition = self.computations[loop.called('condition')]
    bounds = [
      int(found[1])
      for each in condition.values()
      if each.opcode == 'constant'
      and (found := re.match(r'\((\d+)\)', each.text))
    ]
    return max(bounds, default=1) or 1

  def inner(self, fusion: Instruction) -> dict[str, Instruction]:
    """Returns the instructions of a fusion, by name."""
    return self.computations.get(fusion.called('calls') or '', {})

  def flops(self, each: Instruction, where: str) -> float:
    """Returns the FLOPs of the matrix products in one instruction."""
    if each.opcode == 'fusion':
      name = each.called('calls')
      inner = self.computations.get(name, {}).values()
      return sum(self.flops(other, name) for other in inner)
    if each.opcode not in ('dot', 'convolution'):
      return 0.0
    left = self.computations[where].get(each.operands[0])
    right = self.computations[where].get(each.operands[1])
    if left is None or right is None:
      return 0.0
    out = math.prod(each.shapes[0].dims)
    if each.opcode == 'dot':
      axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', each.text)
      sizes = left.shapes[0].dims
      inner = math.prod(sizes[int(i)] for i in axes[1].split(',') if i)
      return 2.0 * out * inner
    # What a product was turned into: every output sums over the kernel's sizes
    # but that of its output features.
    labels = re.search(r'dim_labels=\w+_(\w+)->', each.text)
    sizes = right.shapes[0].dims
    inner = math.prod(
      size for size, label in zip(sizes, labels[1]) if label != 'o'
    )
    return 2.0 * out * inner

  def moved(self, each: Instruction, where: str) -> float:
    """Returns the bytes that one instruction reads from and writes to HBM.

    What cuts a slice out of an operand, or gathers rows of it, reads these
    alone, and what updates a slice in place writes that slice; so do fusions.
    """
    known = self.computations[where]
    if each.opcode in _CUTS:
      source = known.get(each.operands[0])
      near = source is not None and source.shapes[0].on_chip
      return sum(s.size * (2 - s.on_chip - near) for s in each.shapes)
    if each.opcode == 'dynamic-update-slice':
      update = known.get(each.operands[1])
      if update is None:
        return 0.0
      shape = update.shapes[0]
      return shape.size * (2 - shape.on_chip - each.shapes[0].on_chip)
    inner = self.inner(each) if each.opcode == 'fusion' else {}
    parameters = _parameters(inner)
    total = 0.0
    for number, name in enumerate(each.operands):
      operand = known.get(name)
      if operand is None or len(operand.shapes) != 1:
        continue
      shape = operand.shapes[0]
      if not shape.on_chip:
        total += self._read(inner, parameters.get(number), shape.size)
    return total + self._written(inner, each)

  def _written(self, inner, each):
    """Returns how much of its results an instruction writes to HBM.

    inner: what it fuses; {} for no fusion.
    """
    root = next((i for i in inner.values() if i.root), None)
    if root is None:
      return sum(s.size for s in each.shapes if not s.on_chip)
    parts = [root]
    if root.opcode == 'tuple':
      parts = [inner.get(name) for name in root.operands]
    total = 0.0
    for part, shape in zip(parts, each.shapes, strict=False):
      while part is not None and part.opcode == 'bitcast':
        part = inner.get(part.operands[0])
      if shape.on_chip:
        continue
      if part is not None and part.opcode == 'dynamic-update-slice':
        update = inner.get(part.operands[1])
        total += update.shapes[0].size if update else 0.0
      elif part is not None and part.opcode == 'fusion':
        total += min(shape.size, self._written(self.inner(part), part))
      else:
        total += shape.size
    return total

  def _read(self, inner, parameter, size):
    """Returns how much of an operand is read, through what is fused within."""
    users = [i for i in inner.values() if parameter in i.operands]
    if not users:
      return size
    slices = 0.0
    for user in users:
      if user.opcode in _CUTS and user.operands[0] == parameter:
        slices += user.shapes[0].size
      elif (
        user.opcode == 'dynamic-update-slice' and user.operands[0] == parameter
      ):
        continue  # in place
      elif user.opcode == 'bitcast':
        slices += self._read(inner, user.name, size)
      elif user.opcode == 'fusion':
        fused = self.inner(user)
        names = _parameters(fused)
        slices += sum(
          self._read(fused, names.get(number), size)
          for number, name in enumerate(user.operands)
          if name == parameter
        )
      else:
        return size
    return min(size, slices)


def _parameters(inner: dict[str, Instruction]) -> dict[int, str]:
  """Returns the names of a computation's parameters, by number."""
  return {
    int(re.match(r'\((\d+)\)', each.text)[1]): each.name
    for each in inner.values()
    if each.opcode == 'parameter'
  }


def parse(text: str) -> Program:
  """Returns the program of an HLO module's text.

  Raises:
    ValueError: it has no entry computation.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if current is None:
      head = _HEAD.match(line)
      if head:
        current = computations.setdefault(head[1], {})
        entry = head[1] if line.startswith('ENTRY') else entry
    elif line == '}':  # a kernel's own text has lines that begin with one
      current = None
    elif found := _INSTRUCTION.match(line):
      each = _instruction(found[1], found[2], 'ROOT ' in line[:8])
      if each is not None:
        current[each.name] = each
  if entry is None:
    raise ValueError('the text holds no HLO module: no line begins with ENTRY.')
  return Program(computations, entry)


def _instruction(name, rest, root):
  opcode = _OPCODE.search(rest)
  if opcode is None:
    return None
  shapes = tuple(
    Shape(
      found[1],
      tuple(int(n) for n in found[2].split(',') if n),
      'S(' in (found[3] or ''),
    )
    for found in _SHAPE.finditer(rest[: opcode.start() + 1])
  )
  inside, text = _operands(rest[opcode.end() :])
  if opcode[1] in ('constant', 'parameter'):
    return Instruction(name, opcode[1], shapes, (), f'({inside}){text}', root)
  operands = tuple(re.findall(r'%([\w.\-]+)', inside))
  return Instruction(name, opcode[1], shapes, operands, text, root)


def _operands(rest):
  """Returns what stands inside the parentheses, and what behind them."""
  depth = 1
  for i, char in enumerate(rest):
    depth += (char == '(') - (char == ')')
    if not depth:
      return rest[:i], rest[i + 1 :]
  return rest, ''
