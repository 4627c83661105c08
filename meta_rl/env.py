"""The machine and the installation: versions, caches, configs.

Imports jax only inside functions, so that `check_versions` can speak before a
jax of the wrong version fails in its own words.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import warnings

MIN_PYTHON = (3, 11)
# The same bounds as in setup.py; the upper one is not tested yet.
MIN_JAX = (0, 10)
BELOW_JAX = (0, 12)


def version_problem(python: tuple[int, ...], jax: str | None) -> str | None:
  """Returns one line that says what is wrong with the versions, or None.

  Args:
    python: version of Python, for example (3, 11, 7).
    jax: version of jax, for example '0.10.2'; None: it is not installed.
  """
  if tuple(python[:2]) < MIN_PYTHON:
    return (
      f'meta_rl needs Python >= {_dotted(MIN_PYTHON)}, this is '
      f'{_dotted(python[:3])}: make a new environment with a newer Python'
    )
  allowed = f'>={_dotted(MIN_JAX)},<{_dotted(BELOW_JAX)}'
  advice = f"run: {sys.executable} -m pip install 'jax{allowed}'"
  if jax is None:
    return f'meta_rl needs jax {allowed}, none is installed: {advice}'
  if not MIN_JAX <= tuple(int(n) for n in jax.split('.')[:2]) < BELOW_JAX:
    return f'meta_rl needs jax {allowed}, this is {jax}: {advice}'
  return None


def check_versions() -> None:
  """Stops a command at start-up if Python or jax are not of tested versions.

  Raises:
    SystemExit: with one line that says what is installed, what is allowed and
      the command that mends it; exit code 1.
  """
  try:
    jax = importlib.metadata.version('jax')
  except importlib.metadata.PackageNotFoundError:
    jax = None
  problem = version_problem(sys.version_info, jax)
  if problem:
    raise SystemExit(problem)


def configs_dir() -> pathlib.Path:
  """Returns the folder of the configs, installed or in the checkout."""
  spec = importlib.util.find_spec('meta_rl.configs')
  if spec is not None and spec.origin is not None:
    return pathlib.Path(spec.origin).parent
  return pathlib.Path(__file__).resolve().parent.parent / 'configs'


def config_names() -> list[str]:
  """Returns the names that `resolve_config` accepts, in order."""
  files = configs_dir().glob('*.py')
  return sorted(f.stem for f in files if not f.stem.startswith('_'))


def resolve_config(name: str) -> str:
  """Returns the path of a config, with its argument: 'DIR/x.py:tiny'.

  A path that exists is taken as it is. Otherwise 'x' and 'configs/x.py' both
  mean the x of the installed package, so that the commands of the README work
  from any folder.

  Args:
    name: a path ('configs/mrt_countdown.py') or a bare name ('mrt_countdown'),
      each with an optional argument (':tiny') for its `get_config`.

  Raises:
    ValueError: there is no such config; the line names those that exist.
  """
  path, colon, argument = name.partition(':')
  if path.endswith('.py') and os.path.isfile(path):
    return name
  stem = path.removeprefix('configs/').removesuffix('.py')
  if stem in config_names():
    return f'{configs_dir() / stem}.py{colon}{argument}'
  near = difflib.get_close_matches(stem, config_names(), n=2, cutoff=0.6)
  hint = f'did you mean {" or ".join(near)}? ' if near else ''
  raise ValueError(
    f'no config {name!r}: {hint}give the path of a .py file or one of '
    f'{", ".join(config_names())}, with :tiny behind it for a trial run'
  )


def machine_description() -> str:
  """Returns one line on the machine, to stand beside every measured number.

  For example 'AMD EPYC 7B13, 2 cores, 24 GiB, Linux x86_64, Python 3.11.7, jax
  0.10.2, 1 x cpu'. Cores and memory are what this process may use, not what the
  host has: affinity and container limits count.
  """
  import jax

  kinds = [device.device_kind for device in jax.devices()]
  devices = [f'{kinds.count(kind)} x {kind}' for kind in sorted(set(kinds))]
  parts = [
    _cpu_model(),
    f'{_num_cores()} cores',
    f'{_memory_bytes() / 2**30:.0f} GiB',
    f'{platform.system()} {platform.machine()}',
    f'Python {platform.python_version()}',
    f'jax {jax.__version__}',
    *devices,
  ]
  return ', '.join(parts)


def enable_compile_cache(path: str | os.PathLike | None = None) -> str | None:
  """Returns the folder in which jax now keeps compiled programs between runs.

  Every program is kept, however small and quick to compile: a run has few, and
  together they are what the first minute goes to. The folder has a part for
  each kind of CPU, since code that was compiled for one may not run on another
  that shares the home directory.

  Args:
    path: the folder; None: $META_RL_CACHE, or else ~/.cache/meta_rl/jax. If
      the default cannot be written, a warning says so and there is no cache.

  Raises:
    ValueError: `path` was given and cannot be written.
  """
  import jax

  root = path or os.environ.get('META_RL_CACHE') or '~/.cache/meta_rl/jax'
  folder = pathlib.Path(root)
  try:
    folder = _expand(folder).absolute() / _cpu_key()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(f'{folder} is read-only')
  except OSError as error:
    message = f'no compile cache in {folder}: {error}; give a writable folder'
    if path is not None:
      raise ValueError(message) from error
    warnings.warn(f'{message} in META_RL_CACHE', stacklevel=2)
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return str(folder)


def _expand(folder: pathlib.Path) -> pathlib.Path:
  try:
    return folder.expanduser()
  except RuntimeError as error:  # a user without a home, as in many containers
    raise FileNotFoundError(str(error)) from None


def _dotted(version) -> str:
  return '.'.join(str(number) for number in version)


def _cpuinfo(field: str) -> str:
  """Returns the first value of a field of /proc/cpuinfo; '' without one."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return ''
  for line in lines:
    key, _, value = line.partition(':')
    if key.strip() == field:
      return value.strip()
  return ''


def _cpu_model() -> str:
  return _cpuinfo('model name') or platform.processor() or 'unknown CPU'


def _cpu_key() -> str:
  """Returns a name for the instruction set: equal names run equal code."""
  features = _cpuinfo('flags') or _cpuinfo('Features') or platform.processor()
  digest = hashlib.sha256(f'{_cpu_model()} {features}'.encode()).hexdigest()
  return f'{platform.machine()}-{digest[:12]}'


def _num_cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _memory_bytes() -> int:
  """Returns the memory of the machine, or of the container if it has less."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    limit = pathlib.Path('/sys/fs/cgroup/memory.max').read_text().strip()
  except OSError:
    return memory
  return min(memory, int(limit)) if limit.isdigit() else memory
