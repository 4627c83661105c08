"""gcloud's TPU commands as lists of arguments, their answers, running them.

Only what `gcloud help` documents without `alpha` is used. Nothing here decides
anything: that is launch/tpu_vm.py.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable

_TPUS = ['gcloud', 'compute', 'tpus']
# Folder on every worker, in the home of the user that ssh logs in.
FOLDER = 'meta_rl_launch'

# Of a TPU VM (REST: Node.State) and of a queued resource (QueuedResourceState).
READY = ('READY', 'ACTIVE')
COMING = (
  *('CREATING', 'STARTING', 'RESTARTING', 'REPAIRING', 'REIMAGING'),
  *('ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'DRAFT'),
)
STOPPED = ('STOPPED', 'STOPPING', 'HIDING', 'HIDDEN', 'UNHIDING')
ABSENT = 'absent'
# All others (PREEMPTED, TERMINATED, SUSPENDED, FAILED, DELETING …) are gone.

# What Google says when a zone is out of TPUs, or itself in trouble: another try
# may go through. Quotas and permissions are not among them.
_PASSING = (
  'no more capacity',
  'not enough resources',
  'stockout',
  'unavailable',
  'internal error',
  'deadline_exceeded',
  'deadline exceeded',
)
_REFUSED = ('permission', 'unrecognized', 'invalid', 'auth login')


@dataclasses.dataclass(frozen=True)
class Target:
  """The TPU that is asked for.

  Attributes:
    name: of the TPU VM and, if it is queued for, of the queued resource.
    zone: 'us-west4-a'.
    project: '' for that of `gcloud config`.
    accelerator_type: as gcloud calls it, 'v5litepod-16'.
    runtime: image of the VMs.
    spot: cheaper, may be preempted at any time.
    queued: through a queued resource, which waits for capacity.
    internal_ip: the VMs have no external addresses.
    create_flags: more flags of `create`, as they are.
  """

  name: str
  zone: str
  project: str
  accelerator_type: str
  runtime: str
  spot: bool = False
  queued: bool = False
  internal_ip: bool = False
  create_flags: tuple[str, ...] = ()

  def _where(self) -> list[str]:
    project = [f'--project={self.project}'] if self.project else []
    return [f'--zone={self.zone}', *project]

  def create(self) -> list[str]:
    """Returns the command that makes it, or asks for it."""
    flags = ['--spot'] if self.spot else []
    if self.internal_ip:
      flags.append('--internal-ips')
    what = f'--accelerator-type={self.accelerator_type}'
    tail = [*flags, *self.create_flags, '--quiet']
    if self.queued:
      return [
        *(*_TPUS, 'queued-resources', 'create', self.name, *self._where()),
        *(f'--node-id={self.name}', what, f'--runtime-version={self.runtime}'),
        *tail,
      ]
    return [
      *(*_TPUS, 'tpu-vm', 'create', self.name, *self._where()),
      *(what, f'--version={self.runtime}', *tail),
    ]

  def describe(self, *, request: bool = False) -> list[str]:
    """Returns the command that says how the VM, or the request, stands."""
    group = 'queued-resources' if request else 'tpu-vm'
    where = self._where()
    return [*_TPUS, group, 'describe', self.name, *where, '--format=json']

  def delete(self) -> list[str]:
    """Returns the command that deletes the VM, and its request."""
    if self.queued:  # --force: with the VM, in whatever state it is
      group, force = 'queued-resources', ['--force']
    else:
      group, force = 'tpu-vm', []
    where = self._where()
    return [*_TPUS, group, 'delete', self.name, *where, *force, '--quiet']

  def ssh(self, worker: str, command: str) -> list[str]:
    """Returns how a shell command is run on a worker.

    gcloud hands the command to ssh, and ssh to the login shell, as it is: it is
    quoted for that one shell by whoever makes it.

    Args:
      worker: '0', or 'all' for each of them at once.
      command: of a shell.
    """
    return [
      *(*_TPUS, 'tpu-vm', 'ssh', self.name, *self._where()),
      *(f'--worker={worker}', *self._route(), '--quiet'),
      f'--command={command}',
    ]

  def scp(self, files: list[str]) -> list[str]:
    """Returns how local files are copied to `FOLDER` of every worker."""
    return [
      *(*_TPUS, 'tpu-vm', 'scp', *files, f'{self.name}:{FOLDER}/'),
      *(*self._where(), '--worker=all', *self._route(), '--quiet'),
    ]

  def _route(self) -> list[str]:
    return ['--internal-ip'] if self.internal_ip else []


@dataclasses.dataclass(frozen=True)
class Result:
  """How a command ended.

  Attributes:
    code: exit code.
    out: standard output; '' if it was streamed.
    err: standard error.
  """

  code: int
  out: str = ''
  err: str = ''

  @property
  def error(self) -> str:
    """The one line of the output that says most."""
    lines = [x.strip() for x in (self.err or self.out).splitlines()]
    # '##### Command execution on worker 1 failed': that it did is known.
    lines = [x for x in lines if x and not x.startswith('#####')]
    ours = [x for x in lines if x.startswith('worker.sh')]
    errors = [x for x in lines if 'error' in x.lower()]
    return (ours or errors or lines or [f'exit code {self.code}'])[-1]

  @property
  def not_found(self) -> bool:
    """Whether it failed since there is nothing of that name."""
    return self.code != 0 and (
      'NOT_FOUND' in self.err or 'was not found' in self.err
    )

  @property
  def passing(self) -> bool:
    """Whether it failed for want of capacity, or of a server."""
    text = self.err.lower()
    return self.code != 0 and any(phrase in text for phrase in _PASSING)

  @property
  def refused(self) -> bool:
    """Whether it failed and would again in a minute."""
    text = self.err.lower()
    return self.code == 127 or (
      self.code != 0 and any(phrase in text for phrase in _REFUSED)
    )


@dataclasses.dataclass(frozen=True)
class State:
  """How a TPU VM or a request for one stands.

  Attributes:
    name: Google's word, 'READY', or `ABSENT`.
    hosts: how many workers it has; 0 of a request.
    accelerator_type: what it is, '' if that is not said.
    reason: why it failed, if it did.
  """

  name: str
  hosts: int = 0
  accelerator_type: str = ''
  reason: str = ''

  @classmethod
  def of(cls, text: str) -> 'State':
    """Returns the state in the JSON that `describe` prints.

    Raises:
      ValueError: text that is not of that form.
    """
    answer = json.loads(text)
    if not isinstance(answer, dict):
      raise ValueError(f'an object is expected, not {text[:80]!r}')
    state, reason = answer.get('state', ''), ''
    if isinstance(state, dict):  # of a queued resource
      failed = state.get('failedData') or {}
      reason = (failed.get('error') or {}).get('message', '')
      state = state.get('state', '')
    return cls(
      state or 'STATE_UNSPECIFIED',
      len(answer.get('networkEndpoints') or ()),
      answer.get('acceleratorType', '').rpartition('/')[2],
      reason,
    )


class Runner:
  """Runs commands."""

  dry = False

  def run(
    self, argv: list[str], on_line: Callable[[str], None] | None = None
  ) -> Result:
    """Runs a command and returns how it ended.

    Args:
      argv: the command.
      on_line: is given each whole line of its output as it comes.
    """
    # Its errors go to a file: nothing has to read them while the output is
    # read. No input, or ssh would take what is typed here.
    with tempfile.TemporaryFile('w+', errors='replace') as errors:
      try:
        process = subprocess.Popen(
          argv,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE,
          stderr=errors,
          text=True,
          errors='replace',
          # Ctrl-C is for the launcher, which ends this one or waits for it.
          start_new_session=True,
        )
      except FileNotFoundError:
        return Result(127, err=f'{argv[0]}: no such command')
      out = []
      try:
        for line in process.stdout:
          if on_line is None:
            out.append(line)
          elif line.endswith('\n'):  # half a line: the connection broke
            on_line(line[:-1])
        code = process.wait()
      except BaseException:  # Ctrl-C
        process.terminate()
        process.wait()
        raise
      errors.seek(0)
      return Result(code, ''.join(out), errors.read())


class DryRunner(Runner):
  """Prints commands and answers as if each went well at once."""

  dry = True

  def __init__(self, hosts: int):
    self._hosts = hosts
    self._made = False

  def run(self, argv, on_line=None) -> Result:
    """Prints the command; returns an answer of the form that it would give."""
    print(shlex.join(argv))
    sys.stdout.flush()
    action = argv[4] if argv[:3] == _TPUS else ''
    if action == 'create':
      self._made = True
    if action == 'describe':
      if not self._made:
        return Result(1, err='NOT_FOUND')
      state = {'state': 'ACTIVE'} if argv[3] != 'tpu-vm' else 'READY'
      endpoints = [{}] * self._hosts
      return Result(
        0, json.dumps({'state': state, 'networkEndpoints': endpoints})
      )
    out = []
    if action == 'ssh':
      for i in range(self._hosts):
        out.append(f'[launch] w-{i} report process {i} of {self._hosts} (x)')
        out.append(f'[launch] w-{i} exit done 0')
    if on_line is not None:
      for line in out:
        on_line(line)
    return Result(0, ''.join(f'{line}\n' for line in out))
