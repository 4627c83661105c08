#!/usr/bin/env bash
# A run on a GKE cluster through XPK.
#
#   bash launch/xpk.sh --cluster=C --workload=W --tpu-type=v5e-16 \
#     --docker-image=IMAGE [OPTIONS] [--dry-run] -- COMMAND...
#
# Options: --project=P --zone=Z --num-slices=1 --max-restarts=20 --spot
# --priority=medium, and --env=NAME for a variable whose value is taken from
# here. xpk reads it from a file, and puts it into the workload's manifest, where
# who may read the cluster's jobs can read it. For more than a key of Weights & Biases use
# launch/jobset.py with a Kubernetes secret.
#
# XPK restarts the workload when a host is preempted, and when it ends with exit
# code 75, which is what meta_rl leaves with once it has saved, or with 1, which
# is also how hosts end whose neighbour is taken away.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}

# Says what is wrong in one line, and stops.
fail() {
  local IFS=' '
  echo "xpk.sh: $*" >&2
  exit 1
}

DRY='' CLUSTER='' WORKLOAD='' TPU='' IMAGE='' SLICES=1 RESTARTS=20
PRIORITY=medium
MORE=() NAMES=()
while [ $# -gt 0 ]; do
  value=${1#*=}
  case $1 in
  --cluster=?*) CLUSTER=$value ;;
  --workload=?*) WORKLOAD=$value ;;
  --tpu-type=?*) TPU=$value ;;
  --docker-image=?*) IMAGE=$value ;;
  --num-slices=?*) SLICES=$value ;;
  --max-restarts=?*) RESTARTS=$value ;;
  --priority=?*) PRIORITY=$value ;;
  --project=?* | --zone=?* | --spot) MORE+=("$1") ;;
  --env=?*) NAMES+=("$value") ;;
  --dry-run | --dry_run) DRY=yes ;;
  --) break ;;
  *) fail "'$1' is given; allowed: --cluster= --workload= --tpu-type=" \
    '--docker-image= --num-slices= --max-restarts= --priority= --project=' \
    '--zone= --env= --spot --dry-run, and the command behind --.' ;;
  esac
  shift
done
[ -n "$CLUSTER" ] || fail '--cluster is missing: give --cluster=NAME.'
[ -n "$WORKLOAD" ] || fail '--workload is missing: give --workload=NAME.'
[ -n "$TPU" ] || fail '--tpu-type is missing: give --tpu-type=v5e-16.'
[ -n "$IMAGE" ] || fail '--docker-image is missing: give an image of your' \
  'registry that holds the code (docs/pods.md).'
for number in "$SLICES" "$RESTARTS"; do
  case $number in
  '' | *[!0-9]*) fail "--num-slices=$SLICES, --max-restarts=$RESTARTS: give" \
    'whole numbers.' ;;
  esac
done
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || fail "no command is given: put it behind '--'."

TYPE=$("$PYTHON" -c 'import sys
sys.path.insert(0, sys.argv[1])
import slices
try:
  print(slices.parse(sys.argv[2]).xpk_type)
except ValueError as error:
  sys.exit(f"xpk.sh: {error}")' "$HERE" "$TPU") || exit 1

ENV_FILE=''
if [ "${#NAMES[@]}" -gt 0 ]; then
  for name in "${NAMES[@]}"; do
    case $name in
    *=*) fail "--env=${name%%=*}… is given; give a name alone: its value is" \
      'taken from your environment and is on no command line.' ;;
    esac
    [ -n "${!name+set}" ] ||
      fail "--env=$name: $name is not set here. Run: export $name=…"
  done
  # Names alone: xpk takes the values from its own environment.
  ENV_FILE=${TMPDIR:-/tmp}/xpk_env.$WORKLOAD
  [ -n "$DRY" ] || printf '%s\n' "${NAMES[@]}" >"$ENV_FILE"
  MORE+=("--env-file=$ENV_FILE")
fi

# One word of a shell: xpk runs it in the container with bash -c. `exec`, so
# that the SIGTERM that it passes on reaches the command.
printf -v QUOTED '%q ' exec env META_RL_COORDINATOR=auto "$@"
set -- xpk workload create --cluster="$CLUSTER" --workload="$WORKLOAD" \
  --tpu-type="$TYPE" --num-slices="$SLICES" --docker-image="$IMAGE" \
  --priority="$PRIORITY" --max-restarts="$RESTARTS" \
  --restart-on-exit-codes=1,75 --termination-grace-period-seconds=120 \
  ${MORE[@]+"${MORE[@]}"} --command="${QUOTED% }"
if [ -n "$DRY" ]; then
  printf '%q ' "$@"
  echo
  exit 0
fi
command -v xpk >/dev/null || fail 'xpk is not installed. Run: pip install xpk'
"$@"
