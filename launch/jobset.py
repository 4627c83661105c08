"""Prints the JobSet manifest of a run on GKE TPUs, for `kubectl apply -f -`.

    python launch/jobset.py --name=mrt --slice=v5e-16 --image=IMAGE --spot \
      --secret=keys -- python -m meta_rl.train --config=mrt_countdown \
      --workdir=gs://BUCKET/mrt | kubectl apply -f -

A slice is one Job, a host one Pod; GKE tells each Pod its number and the names
of all (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES), by which jax joins them. When one
is preempted or fails, the JobSet starts all of them again, and the run goes on
from its checkpoint. A NaN loss (exit code 3) ends it for good. Exit code 1 does
not, since it is also how the other hosts end when one is taken away.

Secrets: --secret names a Kubernetes secret, whose keys become variables.
Needs the standard library alone.
"""

import argparse
import json
import re
import sys

import slices

# Exit codes of meta_rl that no restart mends (meta_rl/signals.py).
FINAL_CODES = (2, 3)
# What the run gets to finish its step and save.
GRACE_S = 120
_NAME = re.compile(r'[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?')

_MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    # A slice is a node pool: all Pods of a Job on one, and no other's.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network:
    enableDNSHostnames: true  # a headless service, by which the hosts meet
  failurePolicy:
    maxRestarts: {max_restarts}
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: {num_slices}
    template:
      spec:
        parallelism: {hosts}
        completions: {hosts}
        completionMode: Indexed
        backoffLimit: 0  # one Pod alone can't go on: the JobSet starts all
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: run
              operator: In
              values: {final_codes}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: {grace_s}
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {accelerator}
              cloud.google.com/gke-tpu-topology: {grid}
{spot}\
            containers:
            - name: run
              image: {image}
              command: {command}
              env:
              - name: META_RL_COORDINATOR
                value: auto
{secret}\
              ports:
              - containerPort: 8471  # TPU runtime
              - containerPort: 8482  # jax.distributed
              resources:
                requests:
                  google.com/tpu: {chips}
                limits:
                  google.com/tpu: {chips}
"""
_SPOT = """\
              cloud.google.com/gke-spot: "true"
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
"""
_SECRET = """\
              envFrom:
              - secretRef:
                  name: {secret}
"""


def render(
  *,
  name: str,
  tpu: slices.Slice,
  image: str,
  command: list[str],
  num_slices: int = 1,
  max_restarts: int = 20,
  spot: bool = False,
  secret: str = '',
) -> str:
  """Returns the manifest, as YAML.

  Args:
    name: of the JobSet.
    tpu: what each slice is.
    image: container image that holds the code.
    command: the words to run on every host.
    num_slices: slices, joined over the data-centre network.
    max_restarts: of the whole JobSet.
    spot: on spot nodes.
    secret: Kubernetes secret whose keys become variables, '' for none.
  """
  # JSON strings are YAML strings, whatever is in them.
  quote = json.dumps
  # Kubernetes would put variables in the place of $(NAME), in commands.
  command = [word.replace('$', '$$') for word in command]
  return _MANIFEST.format(
    name=quote(name),
    max_restarts=max_restarts,
    num_slices=num_slices,
    hosts=tpu.hosts,
    final_codes=list(FINAL_CODES),
    grace_s=GRACE_S,
    accelerator=quote(tpu.gke),
    grid=quote(tpu.grid),
    spot=_SPOT if spot else '',
    image=quote(image),
    command=quote(command),
    secret=_SECRET.format(secret=quote(secret)) if secret else '',
    chips=tpu.chips_per_host,
  )


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    sys.exit(f'jobset.py: {message}')


def main(argv: list[str]) -> str:
  """Returns the manifest that a command line asks for.

  Raises:
    SystemExit: a mistake, in one line.
  """
  end = argv.index('--') if '--' in argv else len(argv)
  parser = _Parser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--name', required=True)
  parser.add_argument('--slice', required=True, help='v5e-16, v5p:2x4x4')
  parser.add_argument('--image', required=True)
  parser.add_argument('--num-slices', type=int, default=1)
  parser.add_argument('--max-restarts', type=int, default=20)
  parser.add_argument('--spot', action='store_true')
  parser.add_argument('--secret', default='')
  given = parser.parse_args(argv[:end])
  command = argv[end + 1 :]
  if not command:
    parser.error("no command is given: put it behind '--'.")
  for flag, value in (('name', given.name), ('secret', given.secret or 'x')):
    if not _NAME.fullmatch(value):
      parser.error(
        f"--{flag}='{value}': give 1 to 40 lower-case letters, digits and "
        'hyphens, none of them at an end.'
      )
  if given.num_slices < 1 or given.max_restarts < 0:
    parser.error(
      f'--num-slices={given.num_slices}, --max-restarts={given.max_restarts}: '
      'give at least 1 slice and 0 restarts.'
    )
  try:
    tpu = slices.parse(given.slice)
  except ValueError as error:
    parser.error(str(error))
  return render(
    name=given.name,
    tpu=tpu,
    image=given.image,
    command=command,
    num_slices=given.num_slices,
    max_restarts=given.max_restarts,
    spot=given.spot,
    secret=given.secret,
  )


if __name__ == '__main__':
  print(main(sys.argv[1:]), end='')
