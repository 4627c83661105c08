"""One program on one device, many devices, or many processes."""

from meta_rl.sharding.mesh import (
  ARRAY_AXES,
  LOGICAL_AXES,
  MESH_AXES,
  batch_sharding,
  cache_shardings,
  data_shards,
  make_mesh,
  optimizer_shardings,
  param_shardings,
  partition,
  replicated,
  state_shardings,
)
from meta_rl.sharding.parallel import (
  KINDS,
  Parallel,
  check_batch,
  parallelize,
)
from meta_rl.sharding.processes import (
  gather_to_host,
  global_batch,
  initialize,
  initialize_from_environment,
  is_main,
  process_slice,
)

__all__ = [
  'ARRAY_AXES',
  'KINDS',
  'LOGICAL_AXES',
  'MESH_AXES',
  'Parallel',
  'batch_sharding',
  'check_batch',
  'cache_shardings',
  'data_shards',
  'gather_to_host',
  'global_batch',
  'initialize',
  'initialize_from_environment',
  'is_main',
  'make_mesh',
  'optimizer_shardings',
  'parallelize',
  'param_shardings',
  'partition',
  'process_slice',
  'replicated',
  'state_shardings',
]
