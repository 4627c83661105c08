"""A run on a TPU slice, from the creation of the slice to its deletion.

`Launcher.run` does what launch/tpu_vm.py says. It knows gcloud's commands by
launch/gcloud.py alone, and what the hosts do by launch/worker.sh.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import sys
import time

import gcloud
import pack
from interrupts import Interrupted, uninterrupted
from provision import EXIT_AGAIN, EXIT_ERROR, Failed, Lost, Tpu

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKER = f'{gcloud.FOLDER}/worker.sh'

# An attempt that lasted longer was no failure to start.
_LONG_S = 600
_MAX_BACKOFF_S = 900
_CRASHES = 3
_SAVE_S = 120  # what a run gets to finish its step and save

_LINE = re.compile(r'\[launch\] (\S+) (status|report|exit) (.*)')
_REPORT = re.compile(r'process (\d+) of (\d+) ')


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to run, and how patiently.

  Attributes:
    command: the words of it, the same on every worker.
    code: folder of the git checkout to copy.
    ref: commit to copy; '' for the working tree as it is.
    extras: of setup.py, to install.
    install: shell command that installs instead; ''.
    env: variables that the run gets.
    cache: local folder for what is sent.
    keep: whether the TPU is left when the run has ended.
    reports: whether every worker has to say 'process I of N'.
    report_s: seconds that they have for it.
    max_restarts: attempts after the first one.
    backoff_s: seconds before the first restart, doubled with each that fails.
    poll_s: seconds between two looks at the same thing.
    wait_s: seconds to wait for a TPU; None for ever.
  """

  command: list[str]
  code: str
  ref: str
  extras: str
  install: str
  env: dict[str, str]
  cache: pathlib.Path
  keep: bool
  reports: bool
  report_s: float
  max_restarts: int
  backoff_s: float
  poll_s: float
  wait_s: float | None


class Launcher:
  """One run on one TPU, from its creation to its deletion.

  Args:
    target: the TPU.
    job: the run.
    runner: of commands.
  """

  def __init__(self, target: gcloud.Target, job: Job, runner: gcloud.Runner):
    self._target, self._job, self._runner = target, job, runner
    self._tpu = Tpu(
      *(target, runner, self._say, job.poll_s, job.wait_s, job.keep)
    )
    self._running = False  # a run is on it
    self._lines = 0  # of worker 0's output that were shown, in this attempt

  def run(self) -> int:
    """Runs it to its end; returns the exit code, the TPU being deleted."""
    try:
      code = self._attempts()
    except Failed as failed:
      self._complain(str(failed))
      code = failed.code
    except Interrupted as interrupted:
      code = self._interrupted(interrupted)
    if self._tpu.used:
      with uninterrupted():
        deleted = self._clean_up()
      code = code or (0 if deleted else EXIT_ERROR)
    return code

  # ---- attempts

  def _attempts(self) -> int:
    restarts = short = 0
    while True:
      began = time.monotonic()
      try:
        return self._attempt()
      except Lost as lost:
        line, crash = str(lost), lost.crash
      self._running = False
      short = 1 if time.monotonic() - began > _LONG_S else short + 1
      if crash and short >= _CRASHES:
        raise Failed(
          f'{line}; {short} times in a row, soon after its start', crash
        )
      if restarts == self._job.max_restarts:
        raise Failed(
          f'{line}; given up after {restarts} restarts (--max_restarts). Run '
          'the same command again to go on',
          EXIT_AGAIN,
        )
      restarts += 1
      wait = min(self._job.backoff_s * 2 ** (short - 1), _MAX_BACKOFF_S)
      self._say(
        f'{line}: restart {restarts} of {self._job.max_restarts} in {wait:g} s'
      )
      time.sleep(wait)

  def _attempt(self) -> int:
    hosts = self._tpu.get()
    self._lines = 0
    if not self._reach():
      self._add_key(hosts)
      self._send()
      self._install()
      self._start()
    self._running = True
    self._count_processes(hosts)
    self._follow()
    return self._finish(hosts)

  # ---- the code

  def _reach(self) -> bool:
    """Returns whether a run of an earlier command is going on there.

    The first connection: gcloud makes the key and hands it to the TPU, and the
    machine may still be booting.
    """
    script = f'if [ -f {WORKER} ]; then bash {WORKER} status; else echo new; fi'
    for i in range(6):
      result = self._ssh('0', script)
      if result.code == 0:
        break
      self._judge('connecting to', result, final=i == 5)
      time.sleep(self._job.poll_s)
    going_on = any(text == 'running' for _, _, text in _parse(result.out))
    if going_on:
      self._say(
        'a run is going on there: following it, this command is not run'
      )
    return going_on

  def _add_key(self, hosts):
    # To several workers at once gcloud connects through the agent alone.
    if hosts == 1 or not os.environ.get('SSH_AUTH_SOCK'):
      return
    key = pathlib.Path('~/.ssh/google_compute_engine').expanduser()
    result = self._runner.run(['ssh-add', str(key)])
    if result.code:
      self._say(f'note: ssh-add failed ({result.error})')

  def _send(self):
    archive = self._pack()
    files = [str(ROOT / 'launch' / 'worker.sh'), archive]
    secret = self._job.cache / 'env'
    # Made first: a folder that scp made could be read by other users.
    made = f'mkdir -p {gcloud.FOLDER} && chmod 700 {gcloud.FOLDER}'
    self._check(self._ssh('all', made), 'preparing')
    self._say('copying the code to every worker')
    if self._job.env:
      files.append(str(secret))
    try:
      if self._job.env and not self._runner.dry:
        pack.write_env(self._job.env, str(secret))
      result = self._runner.run(self._target.scp(files))
    finally:
      secret.unlink(missing_ok=True)
    self._check(result, 'copying to')

  def _pack(self) -> str:
    """Returns the archive of the code."""
    archive = str(self._job.cache / 'code.tar.gz')
    if self._job.ref:
      argv = pack.archive_ref(self._job.code, self._job.ref, archive)
      self._must(self._runner.run(argv), f'packing {self._job.ref} of')
      return archive
    listed = self._runner.run(pack.list_tree(self._job.code))
    self._must(listed, f'listing {self._job.code} for')
    if not self._runner.dry:
      names = sorted(set(listed.out.split('\0')) - {''})
      pack.archive_tree(self._job.code, names, archive)
    return archive

  def _install(self):
    self._say('installing on every worker')
    words = ['bash', WORKER, 'install', self._job.extras]
    words += [self._job.install] if self._job.install else []
    self._check(self._ssh('all', shlex.join(words)), 'installing on')

  # ---- the run

  def _start(self):
    self._say('starting the command on every worker')
    self._running = True
    words = ['bash', WORKER, 'start', *self._job.command]
    self._check(self._ssh('all', shlex.join(words)), 'starting on')

  def _count_processes(self, hosts):
    """Sees to it that the workers' processes have joined each other.

    Each says 'process I of N' once it has. A process that is alone on a slice
    of several hosts trains, too: wrongly, and on all of them.
    """
    if hosts == 1 or not self._job.reports:
      return
    end = time.monotonic() + self._job.report_s
    while True:
      result = self._ssh('all', f'bash {WORKER} report')
      said = [x for _, what, x in _parse(result.out) if what == 'report']
      reports = [
        tuple(map(int, m.groups())) for m in map(_REPORT.match, said) if m
      ]
      if any(count != hosts for _, count in reports):
        index, count = next(r for r in reports if r[1] != hosts)
        raise Failed(
          f"ran on one host only: 'process {index} of {count}', but "
          f'{self._tpu.name} has {hosts} workers. Is jax[tpu] installed '
          '(--extras=tpu), and does the command call '
          'jax.distributed.initialize?'
        )
      missing = set(range(hosts)) - {index for index, _ in reports}
      if not missing:
        self._say(f'{hosts} of {hosts} processes have joined')
        return
      if any('(done' in text or '(lost' in text for text in said):
        return  # what follows says why
      if time.monotonic() > end:
        self._judge_state('while its processes were to join')
        raise Failed(
          f'{hosts - len(missing)} of {hosts} workers said which process they '
          f'are, after {self._job.report_s:.0f} s (--report_seconds); missing: '
          f'{sorted(missing)}. A command that does not print '
          "'process I of N' needs --noreports"
        )
      time.sleep(self._job.poll_s)

  # ---- its output

  def _follow(self):
    """Shows worker 0's output until the run has ended there."""
    misses = 0
    while True:
      ended, before = [], self._lines

      def show(line, ended=ended):
        if found := _LINE.fullmatch(line):
          ended.append(found)
        else:
          self._lines += 1
          print(pack.redact(line, self._job.env), flush=True)

      result = self._ssh('0', f'bash {WORKER} follow {before + 1}', show)
      if ended:
        return
      misses = 1 if self._lines > before else misses + 1
      self._judge_state('and the run is lost')
      if misses > 5:
        raise Lost(f'no connection to worker 0: {result.error}')
      self._say(f'the connection ended ({result.error}); following again')
      time.sleep(self._job.poll_s)

  def _finish(self, hosts) -> int:
    """Returns the exit code of the run, from the codes of all workers."""
    script = f'bash {WORKER} finish 60 {_SAVE_S}'
    result = self._ssh('all', script)
    ends = [x for _, what, x in _parse(result.out) if what == 'exit']
    codes = [int(x.split()[1]) for x in ends if x.startswith('done ')]
    if len(codes) == hosts and not any(codes):
      self._running = False
      self._say('done')
      return 0
    self._judge_state(f'and the run ended with {codes}')
    # A host that is taken away ends the others too, each in its own way.
    crashes = [code for code in codes if code == EXIT_AGAIN or code >= 128]
    if len(codes) < hosts or crashes:
      raise Lost(
        f'the run ended with exit codes {codes} of {hosts} workers',
        crash=max(crashes, default=EXIT_ERROR),
      )
    self._running = False
    code = max(codes)
    raise Failed(f'the run ended with exit code {code}', code)

  # ---- the end

  def _interrupted(self, interrupted) -> int:
    if not self._running:
      self._complain(f'stopped by {interrupted}')
    elif self._job.keep:
      self._running = False
      self._complain(
        f'stopped by {interrupted}: --keep, so the run goes on; the same '
        'command follows it again'
      )
    else:
      self._complain(f'stopped by {interrupted}: the run saves and ends')
    return interrupted.code

  def _clean_up(self) -> bool:
    """Ends the run and deletes the TPU; returns whether nothing is left."""
    name, command = self._tpu.name, shlex.join(self._target.delete())
    try:
      if self._running:
        self._ssh('all', f'bash {WORKER} finish 0 {_SAVE_S}')
      if self._job.keep:
        self._say(f'{name} is kept and costs money. Delete it: {command}')
        return True
      self._say(f'deleting {name}')
      error = self._tpu.delete()
      if not error:
        return True
    except Interrupted as interrupted:
      error = f'stopped by {interrupted}'
    self._complain(
      f'{name} may still be there and cost money ({error}). Delete it: '
      f'{command}'
    )
    return False

  # ---- helpers

  def _ssh(self, worker, script, on_line=None) -> gcloud.Result:
    return self._runner.run(self._target.ssh(worker, script), on_line)

  def _must(self, result, doing):
    if result.code:
      raise Failed(f'{doing} {self._tpu.name} failed: {result.error}')

  def _check(self, result, doing):
    """Goes on only if a step on the TPU went well."""
    if result.code:
      self._judge(doing, result, final=True)

  def _judge(self, doing, result, *, final):
    """Says of a step that failed whether the TPU is to blame."""
    self._judge_state(f'while {doing} it')
    if final:
      log = self._keep_log(doing, result)
      raise Failed(
        f'{doing} {self._tpu.name} failed: {result.error} (all of it: {log})'
      )

  def _judge_state(self, when):
    state = self._tpu.look(patient=self._running)
    if state.name not in gcloud.READY:
      raise Lost(f'{self._tpu.name} is {state.name} {when}')

  def _keep_log(self, doing, result) -> pathlib.Path:
    log = self._job.cache / f'{doing.split()[0]}.log'
    log.write_text(pack.redact(result.out + result.err, self._job.env))
    return log

  def _say(self, line):
    if not self._runner.dry:  # which prints commands alone
      print(f'== {pack.redact(line, self._job.env)}', flush=True)

  def _complain(self, line):
    print(f'tpu_vm.py: {pack.redact(line, self._job.env)}', file=sys.stderr)


def _parse(text) -> list[tuple[str, str, str]]:
  """Returns (host, what, text) of every line for the launcher."""
  return [m.groups() for m in map(_LINE.fullmatch, text.splitlines()) if m]
