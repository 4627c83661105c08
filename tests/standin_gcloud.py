"""A stand-in for gcloud: one TPU in a folder, its workers being subfolders.

`install` puts it on a PATH. It answers as gcloud does, refuses flags that
`gcloud help` does not document, runs `ssh` commands in the workers' folders
with a shell as sshd would, and does harm as told by `plan.json`:

    workers   how many
    states    what `describe` says after `create`, one after the other; the last
              stays
    fail      {step: [times, exit code, standard error]}; a step is one of STEPS
    preempt   after this line of worker 0's output, once, the TPU is taken away
    drop      after this line, once, the connection ends
    absent    workers that a command for all of them does not reach
    tpu       the TPU that is there from the start

`calls.jsonl` holds the arguments of each call. Only the standard library is
imported, since many of these are started.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

# Of `gcloud compute tpus … --help`, Google Cloud SDK 528.0.0. Those with '='
# take a value.
_RESOURCE = '--zone= --project= --format= --quiet --verbosity='
_CREATE = (
  '--accelerator-type= --topology= --type= --async --data-disk= --description= '
  '--internal-ips --labels= --metadata= --metadata-from-file= --network= '
  '--range= --reserved --scopes= --service-account= --shielded-secure-boot '
  '--spot --subnetwork= --tags='
)
_SSH = (
  '--dry-run --force-key-file-overwrite --internal-ip --plain --ssh-key-file= '
  '--strict-host-key-checking= --worker= --ssh-key-expiration= '
  '--ssh-key-expire-after='
)
FLAGS = {
  'tpu-vm create': f'{_CREATE} --version= --preemptible --queue-count=',
  'tpu-vm describe': '',
  'tpu-vm delete': '--async',
  'tpu-vm ssh': f'{_SSH} --ssh-flag= --command= --output-directory=',
  'tpu-vm scp': f'{_SSH} --scp-flag= --compress --recurse',
  'queued-resources create': (
    f'{_CREATE} --runtime-version= --node-id= --node-count= --node-prefix= '
    '--guaranteed --valid-after-duration= --valid-after-time= '
    '--valid-until-duration= --valid-until-time= --reservation-host-folder= '
    '--reservation-host-organization= --reservation-host-project='
  ),
  'queued-resources describe': '',
  'queued-resources delete': '--async --force',
}
REQUIRED = {
  'tpu-vm create': ['--zone', '--version', '--accelerator-type'],
  'queued-resources create': [
    *('--zone', '--runtime-version', '--accelerator-type', '--node-id')
  ],
}
# In the order of a run; those from `connect` to `finish` are told by what the
# ssh command holds.
STEPS = {
  'connect': 'status; else',
  'prepare': 'mkdir -p',
  'install': 'worker.sh install',
  'start': 'worker.sh start',
  'report': 'worker.sh report',
  'follow': 'worker.sh follow',
  'finish': 'worker.sh finish',
}


def install(folder: pathlib.Path, **plan) -> dict[str, str]:
  """Puts the stand-in into a folder; returns the variables to run with."""
  programs = folder / 'bin'
  programs.mkdir(parents=True)
  # -I -S: nothing of the environment, no site-packages; it starts faster.
  write(programs / 'gcloud', f'exec {sys.executable} -I -S {__file__} "$@"')
  write(programs / 'hostname', 'echo "w-$WORKER"')
  write(programs / 'ssh-add', 'echo "$@" >>"$STANDIN/ssh-add"')
  (folder / 'plan.json').write_text(json.dumps({'workers': 2} | plan))
  (folder / 'tpu.json').write_text(json.dumps(plan.get('tpu', {})))
  return {
    'PATH': f'{programs}:{os.environ["PATH"]}',
    'STANDIN': str(folder),
    'XDG_CACHE_HOME': str(folder / 'cache'),
    'SSH_AUTH_SOCK': '',
  }


def write(path: pathlib.Path, body: str):
  """Writes an executable shell script."""
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)


def calls(folder: pathlib.Path) -> list[list[str]]:
  """Returns the arguments of every call, 'gcloud' first."""
  file = folder / 'calls.jsonl'
  lines = file.read_text().splitlines() if file.exists() else []
  return [['gcloud', *json.loads(line)] for line in lines]


class Tpu:
  """The one TPU, in files of a folder."""

  def __init__(self, folder):
    self.folder = folder
    self.plan = json.loads((folder / 'plan.json').read_text())
    self.file = folder / 'tpu.json'
    self.tpu = json.loads(self.file.read_text())

  def save(self):
    self.file.write_text(json.dumps(self.tpu))

  def counted(self, what):
    """Returns how often something has happened before, and counts it."""
    file = self.folder / f'count.{what}'
    with open(file, 'a') as out:
      out.write('x')
    return file.stat().st_size - 1

  def worker(self, i):
    return self.folder / f'worker{i}'

  def harm(self, step):
    """Fails as the plan says."""
    times, code, text = self.plan.get('fail', {}).get(step, (0, 0, ''))
    if times and self.counted(f'fail.{step}') < times:
      leave(code, text)

  def create(self, options, queued):
    self.harm('create')
    if self.tpu.get('state'):
      leave(1, 'ERROR: (gcloud) ALREADY_EXISTS: Resource already exists')
    for i in range(self.plan['workers']):
      shutil.rmtree(self.worker(i), ignore_errors=True)
      self.worker(i).mkdir()
    self.tpu = {
      'queued': queued,
      'type': options['--accelerator-type'],
      'states': self.plan.get('states', ['ACTIVE' if queued else 'READY']),
      'state': 'CREATING',
    }
    self.save()

  def describe(self, request):
    self.harm('describe')
    if not self.tpu.get('state'):
      leave(1, 'ERROR: (gcloud) NOT_FOUND: Resource was not found')
    if request or not self.tpu['queued']:
      states = self.tpu['states']
      if states:
        self.tpu['state'] = states[0]
        self.tpu['states'] = states[1:]
        self.save()
    if request:
      print(json.dumps({'state': {'state': self.tpu['state']}}))
      return
    state = 'READY' if self.tpu['state'] == 'ACTIVE' else self.tpu['state']
    endpoints = [{'ipAddress': '10.0.0.1'}] * self.plan['workers']
    kind = {'acceleratorType': self.tpu['type']}
    print(json.dumps({'state': state, 'networkEndpoints': endpoints} | kind))

  def delete(self, options, queued):
    self.harm('delete')
    if not self.tpu.get('state'):
      leave(1, 'ERROR: (gcloud) NOT_FOUND: Resource was not found')
    if queued and '--force' not in options:
      leave(1, 'ERROR: (gcloud) FAILED_PRECONDITION: it has nodes')
    self.kill_runs()
    self.tpu = {}
    self.save()

  def kill_runs(self):
    for i in range(self.plan['workers']):
      pid = self.worker(i) / 'meta_rl_launch' / 'run' / 'pid'
      if pid.exists():
        try:
          os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
          pass

  def reachable(self):
    if self.tpu.get('state') not in ('READY', 'ACTIVE'):
      leave(1, f'ERROR: (gcloud) state "{self.tpu.get("state")}", unusable')

  def shell(self, i, command, **options):
    return subprocess.Popen(
      ['bash', '-c', command],
      cwd=self.worker(i),
      env=os.environ
      | {'HOME': str(self.worker(i)), 'WORKER': str(i)}
      | {'WORKERS': str(self.plan['workers'])},
      stdin=subprocess.DEVNULL,
      **options,
    )

  def ssh(self, options):
    self.reachable()
    # As gcloud and ssh do: split at blanks, and joined again.
    command = ' '.join(options['--command'].split(' '))
    step = next((s for s, part in STEPS.items() if part in command), '')
    self.harm(step)
    if step == 'follow':
      return self.follow(command)
    workers = [0]
    if options['--worker'] == 'all':
      absent = self.plan.get('absent', [])
      workers = [i for i in range(self.plan['workers']) if i not in absent]
    processes = [self.shell(i, command) for i in workers]
    codes = [process.wait() for process in processes]
    for i, code in zip(workers, codes):
      if code:
        leave(code, f'##### Command execution on worker {i} failed')

  def follow(self, command):
    process = self.shell(0, command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
      sys.stdout.write(line)
      sys.stdout.flush()
      for harm in ('preempt', 'drop'):
        if self.plan.get(harm) == line.strip() and not self.counted(harm):
          if harm == 'preempt':
            queued = self.tpu['queued']
            self.tpu['states'] = ['SUSPENDED' if queued else 'PREEMPTED']
            self.save()
            self.kill_runs()
          process.terminate()
          sys.stdout.write('half a li')
          leave(255, 'ssh: connection closed by remote host')
    sys.exit(process.wait())

  def scp(self, words, options):
    self.reachable()
    self.harm('scp')
    *files, target = words
    folder = target.partition(':')[2]
    for i in range(self.plan['workers']):
      for file in files:
        shutil.copy(file, self.worker(i) / folder)  # with its mode, as scp does


def leave(code, text):
  """Ends with an exit code and a line of error."""
  print(text, file=sys.stderr)
  sys.exit(code)


def parse(argv):
  """Returns (group and command, other words, flags); gcloud's own refusals."""
  if argv[:2] != ['compute', 'tpus']:
    leave(2, f'ERROR: (gcloud) Invalid choice: {argv}')
  command = ' '.join(argv[2:4])
  if command not in FLAGS:
    leave(2, f"ERROR: (gcloud.compute.tpus) Invalid choice: '{command}'")
  known = f'{FLAGS[command]} {_RESOURCE}'.split()
  words, options = [], {}
  for word in argv[4:]:
    name, equals, value = word.partition('=')
    if not word.startswith('--'):
      words.append(word)
    elif name + equals not in known:
      leave(2, f'ERROR: (gcloud) unrecognized arguments: {word}')
    else:
      options[name] = value
  for name in REQUIRED.get(command, ['--zone']):
    if name not in options:
      leave(2, f'ERROR: (gcloud) argument {name}: Must be specified.')
  return command, words, options


def main(argv):
  """Answers one call."""
  folder = pathlib.Path(os.environ['STANDIN'])
  with open(folder / 'calls.jsonl', 'a') as out:
    out.write(json.dumps(argv) + '\n')
  command, words, options = parse(argv)
  group, action = command.split(' ')
  tpu, queued = Tpu(folder), group == 'queued-resources'
  if action == 'create':
    tpu.create(options, queued)
  elif action == 'describe':
    tpu.describe(queued)
  elif action == 'delete':
    tpu.delete(options, queued)
  elif action == 'ssh':
    tpu.ssh(options)
  else:
    tpu.scp(words, options)


if __name__ == '__main__':
  main(sys.argv[1:])
