"""From a laptop to a run on a TPU slice, and through its preemptions.

    python launch/tpu_vm.py --name=mrt --zone=us-west4-a --accelerator=v5e-16 \
      --spot --queued --env=WANDB_API_KEY -- \
      python -m meta_rl.train --config=configs/mrt_countdown.py \
      --workdir=gs://BUCKET/mrt

What happens, each step a `gcloud` command that `--dry_run` prints:

    1. describe, create, wait until it is ready; one that is there is used.
    2. copy the code to every worker, and install it.
    3. start the command on every worker, detached; count those that joined.
    4. follow worker 0's output. A connection that breaks is taken up again.
    5. preempted, or ended by a signal: from 1 again, up to --max_restarts.
    6. delete the TPU, whatever happened; --keep leaves it.

The command goes on from its last checkpoint by itself, which is why its
--workdir must outlive the TPU. Needs gcloud, git and absl-py here; no jax.

Exit codes: that of the run; 0 done; 1 a wrong flag or a step that failed, in
one line; 75 restarts or time are used up, the same command goes on; 130 Ctrl-C,
143 SIGTERM.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import signal
import sys

import gcloud
import interrupts
import launcher
import pack
import slices

try:
  from absl import app, flags
except ImportError:
  sys.exit(
    f'tpu_vm.py needs absl-py. Run: {sys.executable} -m pip install absl-py'
  )


FLAGS = flags.FLAGS
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')


def define_flags():
  """Defines the command's flags."""
  flags.DEFINE_string(
    'name', None, 'Name of the TPU; one that is there is used.'
  )
  flags.DEFINE_string('zone', None, 'Zone, such as us-west4-a.')
  flags.DEFINE_string('project', '', "Project; default: gcloud config's.")
  flags.DEFINE_string('accelerator', None, 'Slice: v5e-16, v5e:4x4, v5p-64.')
  flags.DEFINE_string(
    'runtime_version', '', "Image of the VMs, if not Google's."
  )
  flags.DEFINE_bool('spot', False, 'Cheaper, and may be preempted at any time.')
  flags.DEFINE_bool('queued', False, 'Queue for capacity (queued resource).')
  flags.DEFINE_bool('internal_ip', False, 'VMs without external addresses.')
  flags.DEFINE_multi_string(
    'create_flag', [], 'A further flag of gcloud create.'
  )
  flags.DEFINE_string('code', str(launcher.ROOT), 'Git checkout to copy.')
  flags.DEFINE_string(
    'ref', '', 'Commit to copy; default: the files as they are.'
  )
  flags.DEFINE_string(
    'extras', 'tpu', 'Extras of setup.py to install: tpu,llm.'
  )
  flags.DEFINE_string('install', '', 'Shell command that installs instead.')
  flags.DEFINE_multi_string(
    'env', [], 'Name of a variable to pass on, by value.'
  )
  flags.DEFINE_bool('keep', False, 'Leave the TPU when the run has ended.')
  flags.DEFINE_bool('reports', True, "Workers must print 'process I of N'.")
  flags.DEFINE_float('report_seconds', 900, 'How long they have for it.', 0)
  flags.DEFINE_integer('max_restarts', 20, 'Attempts after the first.', 0)
  flags.DEFINE_float('backoff_seconds', 60, 'Before the first restart.', 0)
  flags.DEFINE_float('poll_seconds', 30, 'Between two looks at the TPU.', 0)
  flags.DEFINE_float('wait_minutes', None, 'For the TPU; default: for ever.', 0)
  flags.DEFINE_bool('dry_run', False, 'Print the commands, run none.')


def parse_flags(argv: list[str]) -> list[str]:
  """Returns what is left of the command line; a mistake gets one line.

  Flags may be written with hyphens. What stands behind `--` is not touched.
  """
  end = argv.index('--') if '--' in argv else len(argv)
  own = [_underscored(word) for word in argv[1:end]]
  try:
    rest = FLAGS([argv[0], *own])
    if len(rest) > 1:
      raise ValueError(
        f"'{rest[1]}' is given; flags are --name=value, and the command to run "
        "stands behind '--'."
      )
  except (flags.Error, ValueError) as error:
    sys.exit(f'tpu_vm.py: {error}'.replace('\n', ' '))
  return [argv[0], *argv[end + 1 :]]


def _underscored(word):
  if not word.startswith('--'):
    return word
  name, equals, value = word.partition('=')
  return f'--{name[2:].replace("-", "_")}{equals}{value}'


def make_target() -> gcloud.Target:
  """Returns the TPU that the flags ask for.

  Raises:
    ValueError: flags that name none.
  """
  for flag in ('name', 'zone', 'accelerator'):
    if not FLAGS[flag].value:
      example = {'name': 'mrt', 'zone': 'us-west4-a', 'accelerator': 'v5e-16'}
      raise ValueError(f'--{flag} is missing: give --{flag}={example[flag]}.')
  if not _NAME.fullmatch(FLAGS.name):
    raise ValueError(
      f"--name='{FLAGS.name}': a name is 1 to 40 lower-case letters, digits "
      'and hyphens, a letter first and no hyphen last.'
    )
  if not re.fullmatch(r'[a-z]+-[a-z]+[0-9]+-[a-z]', FLAGS.zone):
    raise ValueError(f"--zone='{FLAGS.zone}': a zone is like us-west4-a.")
  tpu = slices.parse(FLAGS.accelerator)
  if not tpu.accelerator_type:
    raise ValueError(
      f'--accelerator={FLAGS.accelerator}: {tpu.generation} is to be had on '
      'GKE only; see launch/xpk.sh and launch/jobset.py.'
    )
  return gcloud.Target(
    name=FLAGS.name,
    zone=FLAGS.zone,
    project=FLAGS.project,
    accelerator_type=tpu.accelerator_type,
    runtime=FLAGS.runtime_version or tpu.runtime,
    spot=FLAGS.spot,
    queued=FLAGS.queued,
    internal_ip=FLAGS.internal_ip,
    create_flags=tuple(FLAGS.create_flag),
  )


def make_job(command: list[str], cache: pathlib.Path) -> launcher.Job:
  """Returns the run that the flags and the words behind '--' ask for.

  Raises:
    ValueError: what could not go well.
  """
  if not command:
    raise ValueError(
      "no command is given: put it behind '--', such as "
      '-- python -m meta_rl.train --config=mrt_countdown '
      '--workdir=gs://BUCKET/mrt.'
    )
  env = pack.read_env(FLAGS.env)
  pack.check_command(command, env)
  if not FLAGS.keep:
    _check_workdir(command)
  code = pathlib.Path(FLAGS.code)
  if not (code / '.git').exists():
    raise ValueError(f'--code={code}: it is not the top of a git checkout.')
  wait = FLAGS.wait_minutes
  return launcher.Job(
    command=command,
    code=str(code.resolve()),
    ref=FLAGS.ref,
    extras=FLAGS.extras,
    install=FLAGS.install,
    env=env,
    cache=cache,
    keep=FLAGS.keep,
    reports=FLAGS.reports,
    report_s=FLAGS.report_seconds,
    max_restarts=FLAGS.max_restarts,
    backoff_s=FLAGS.backoff_seconds,
    poll_s=FLAGS.poll_seconds,
    wait_s=None if wait is None else 60 * wait,
  )


def _check_workdir(command):
  for word, following in zip(command, [*command[1:], '']):
    name, equals, value = word.partition('=')
    if name in ('--workdir', '-workdir'):
      value = value if equals else following
      if not re.match(r'gs://|/(?!tmp\b|home\b)', value):
        raise ValueError(
          f'--workdir={value} lies on the TPU VM, which is deleted at the end '
          'and goes at a preemption: give gs://BUCKET/FOLDER, or --keep.'
        )


@contextlib.contextmanager
def locked(cache: pathlib.Path):
  """Makes the folder of what is sent; no second launcher may use it.

  Raises:
    ValueError: another one does.
  """
  cache.mkdir(parents=True, exist_ok=True, mode=0o700)
  with open(cache / 'lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'another launcher is at work on --name={cache.name}: wait for it, or '
        'give another name.'
      ) from None
    yield


def main(argv):
  """Runs the command."""
  home = (
    os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
  )
  cache = pathlib.Path(home) / 'meta_rl_launch' / (FLAGS.name or '')
  signal.signal(signal.SIGINT, interrupts.raise_interrupted)
  signal.signal(signal.SIGTERM, interrupts.raise_interrupted)
  try:
    target = make_target()
    job = make_job(argv[1:], cache)
    if FLAGS.dry_run:
      hosts = slices.parse(FLAGS.accelerator).hosts
      sys.exit(launcher.Launcher(target, job, gcloud.DryRunner(hosts)).run())
    if shutil.which('gcloud') is None:
      raise ValueError(
        'gcloud is not on PATH: install it (https://cloud.google.com/sdk/docs/'
        'install) and run gcloud auth login.'
      )
    with locked(cache):
      sys.exit(launcher.Launcher(target, job, gcloud.Runner()).run())
  except ValueError as error:
    sys.exit(f'tpu_vm.py: {error}')


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
