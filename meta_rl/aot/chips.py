"""TPU chips and slices: what a roofline needs to know of them.

Peak rates are those that Google publishes (cloud.google.com/tpu/docs, the pages
of each version): bfloat16 FLOP/s, bytes and bytes/s of HBM, all per chip.
`link` is one ICI link one way: what is published for a chip (both ways, all
links) over twice the number of its links.
"""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU chip.

  Attributes:
    name: as topologies name it.
    flops: bfloat16 FLOP/s.
    hbm: bytes of memory.
    bandwidth: bytes/s from and to HBM.
    link: bytes/s of one ICI link, one way.
    axes: dimensions of the torus.
    clock: cycles/s that the compiler's estimates count.
    devices: jax devices of a chip, ahead of time.
    cores: of a chip, as its slices' names count ('v5p-64' has 32 chips); 1
      where they count chips.
    wraps: sizes of an axis of the torus that closes into a ring are multiples
      of it.
  """

  name: str
  flops: float
  hbm: float
  bandwidth: float
  link: float
  axes: int
  clock: float
  devices: int = 1
  cores: int = 1
  wraps: int = 4


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 275e12, 32e9, 1228e9, 50e9, 3, 1.05e9, devices=2, cores=2),
    Chip('v5e', 197e12, 16e9, 819e9, 50e9, 2, 1.5e9, wraps=16),
    Chip('v5p', 459e12, 95e9, 2765e9, 100e9, 3, 1.75e9, cores=2),
    Chip('v6e', 918e12, 32e9, 1640e9, 112e9, 2, 1.75e9, wraps=16),
    Chip('tpu7x', 2307e12, 192e9, 7380e9, 100e9, 3, 2.2e9, devices=2),
  )
}
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v6': 'v6e', 'v7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips in a torus.

  Attributes:
    chip: of which kind.
    shape: chips along each axis.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """As `jax.experimental.topologies` takes it, such as 'v5e:4x4'."""
    return f'{self.chip.name}:' + 'x'.join(map(str, self.shape))

  @property
  def chips(self) -> int:
    """How many."""
    return math.prod(self.shape)

  @property
  def devices(self) -> int:
    """How many jax devices, ahead of time."""
    return self.chips * self.chip.devices

  def ring_bandwidth(self, size: int) -> float:
    """Returns bytes/s into a chip for collectives over groups of `size`.

    A group takes the innermost axes of the torus that it fills; a closed ring
    brings data from both sides, an open line from one.
    """
    total, left = 0.0, size
    for length in reversed(self.shape):
      if left <= 1 or length == 1:
        continue
      used = math.gcd(left, length)
      closed = used == length and length % self.chip.wraps == 0
      total += self.chip.link * (2 if closed else 1)
      left //= used
    return total or self.chip.link


def slice_of(text: str) -> Slice:
  """Returns the slice of a topology ('v5e:4x4') or a slice's name ('v5e-16').

  Names count chips for v5e and v6e and cores, two a chip, for v4 and v5p.

  Raises:
    ValueError: one line: what is given, what is allowed.
  """
  allowed = (
    f'give a topology such as v5e:4x4 or v5p:2x4x4, or a slice such as v5e-16 '
    f'or v5p-64; chips: {", ".join(CHIPS)}'
  )
  found = re.fullmatch(r'([a-z0-9]+)([:\-])([\dx]+)', text.strip().lower())
  kind = found and _ALIASES.get(found[1], found[1])
  if kind not in CHIPS:
    raise ValueError(f'topology={text!r}: {allowed}.')
  chip = CHIPS[kind]
  if found[2] == ':':
    parts = found[3].split('x')
    if len(parts) != chip.axes or not all(
      p.isdigit() and int(p) for p in parts
    ):
      raise ValueError(
        f'topology={text!r}: {kind} has {chip.axes} axes, such as '
        f'{kind}:{"x".join(["4"] * chip.axes)}.'
      )
    return Slice(chip, tuple(map(int, parts)))
  if not found[3].isdigit():
    raise ValueError(f'topology={text!r}: {allowed}.')
  count, rest = divmod(int(found[3]), chip.cores)
  if kind == 'tpu7x':
    raise ValueError(f'topology={text!r}: give one, such as tpu7x:2x2x1.')
  if rest or not count or count & (count - 1):
    raise ValueError(
      f'topology={text!r}: {kind} slices have a power of two of '
      f'{"cores, two a chip" if chip.cores == 2 else "chips"}; for another '
      f'shape give it, such as {kind}:{"x".join(["4"] * chip.axes)}.'
    )
  return Slice(chip, _shape(count, chip.axes))


def _shape(count: int, axes: int) -> tuple[int, ...]:
  """The squarest torus of a power of two of chips, shorter axes first."""
  power = count.bit_length() - 1
  sizes = [power // axes + (i < power % axes) for i in range(axes)]
  shape = sorted(2**size for size in sizes)
  if axes == 3 and count == 4:
    return 2, 2, 1  # a host's four chips are a square
  return tuple(shape)
