"""TPU slices by name: what 'v5e-16' is to gcloud, to GKE and to libtpu.

A slice has three names. gcloud counts chips for v5e and v6e (`v5litepod-16`)
and TensorCores, two a chip, for the others (`v5p-64` is 32 chips); GKE wants
the grid of chips (`4x4`) and a label of the generation. `parse` takes them all.

Imports the standard library alone: launchers run where jax is not installed.
"""

import dataclasses
import math

# Grids of chips that Google offers, up to the largest slice. A grid is 2-D for
# v2, v3, v5e and v6e, whose network is a 2-D torus, and 3-D for the others.
_FLAT = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'.split()
_CUBES = (
  '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16 '
  '16x16x16 16x16x24'
).split()


@dataclasses.dataclass(frozen=True)
class Generation:
  """One generation of TPU.

  Attributes:
    gcloud: prefix of its accelerator types; '' where gcloud's TPU VMs don't
      have it.
    cores_per_chip: what a type counts: 1 for chips, 2 for TensorCores.
    runtime: image of its TPU VMs, of Google's table of runtime versions.
    gke: value of the node label cloud.google.com/gke-tpu-accelerator; '': GKE
      does not have it.
    grids: the grids of chips it comes in.
    single_host: the most chips that hang on one host; a larger slice has
      `per_host` on each.
    per_host: see `single_host`.
  """

  gcloud: str
  cores_per_chip: int
  runtime: str
  gke: str
  grids: tuple[str, ...]
  single_host: int = 4
  per_host: int = 4


GENERATIONS = {
  'v4': Generation(
    'v4', 2, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', tuple(_CUBES)
  ),
  'v5e': Generation(
    *('v5litepod', 1, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice'),
    grids=tuple(_FLAT),
    single_host=8,
  ),
  'v5p': Generation('v5p', 2, 'v2-alpha-tpuv5', 'tpu-v5p-slice', tuple(_CUBES)),
  'v6e': Generation(
    *('v6e', 1, 'v2-alpha-tpuv6e', 'tpu-v6e-slice'),
    grids=tuple(_FLAT),
    single_host=8,
  ),
  'tpu7x': Generation('', 2, '', 'tpu7x', tuple(_CUBES)),
}
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', '7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of a TPU pod.

  Attributes:
    generation: key of `GENERATIONS`.
    grid: the chips, '4x4'.
  """

  generation: str
  grid: str

  @property
  def _kind(self) -> Generation:
    return GENERATIONS[self.generation]

  @property
  def chips(self) -> int:
    """How many chips it has."""
    return _chips(self.grid)

  @property
  def hosts(self) -> int:
    """How many hosts, and so processes, it has."""
    return self.chips // self.chips_per_host

  @property
  def chips_per_host(self) -> int:
    """How many chips hang on each host."""
    kind = self._kind
    one = self.chips <= kind.single_host
    return self.chips if one else kind.per_host

  @property
  def accelerator_type(self) -> str:
    """What gcloud and xpk call it; '' for those that only GKE has."""
    kind = self._kind
    if not kind.gcloud:
      return ''
    return f'{kind.gcloud}-{self.chips * kind.cores_per_chip}'

  @property
  def xpk_type(self) -> str:
    """What xpk calls it: like gcloud, and 'tpu7x-128' where gcloud has none."""
    cores = self.chips * self._kind.cores_per_chip
    return self.accelerator_type or f'{self.generation}-{cores}'

  @property
  def runtime(self) -> str:
    """The image of its TPU VMs; '' for those that only GKE has."""
    return self._kind.runtime

  @property
  def gke(self) -> str:
    """Its generation as a node label of GKE."""
    return self._kind.gke


def parse(name: str) -> Slice:
  """Returns the slice of a name.

  Args:
    name: 'v5e-16', 'v5litepod-16' (gcloud's name of the same), 'v5p-64', or a
      grid of chips, 'v5e:4x4'.

  Raises:
    ValueError: no such slice, with those there are.
  """
  kind, separator, size = name.replace(':', '-').partition('-')
  kind = _ALIASES.get(kind, kind)
  generation = GENERATIONS.get(kind)
  if generation is None or not separator:
    raise ValueError(
      f"'{name}' is not a TPU slice: give a generation "
      f'({", ".join(GENERATIONS)}) and a size, such as v5e-16 or v5e:4x4.'
    )
  for grid in generation.grids:
    if size in (grid, str(_chips(grid) * generation.cores_per_chip)):
      return Slice(kind, grid)
  sizes = [
    f'{kind}-{_chips(grid) * generation.cores_per_chip} ({grid})'
    for grid in generation.grids
  ]
  raise ValueError(f"'{name}' is not a slice of {kind}: {', '.join(sizes)}.")


def _chips(grid: str) -> int:
  return math.prod(int(side) for side in grid.split('x'))
