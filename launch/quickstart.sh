#!/usr/bin/env bash
# From a bare Python to a report: MRT and GRPO from the shipped base policy on
# Countdown, all three evaluated on held-out problems.
#
#   bash launch/quickstart.sh                    into runs/quickstart
#   QUICKSTART_DIR=DIR bash launch/quickstart.sh
#   QUICKSTART_TOKENS=40000 bash launch/quickstart.sh   a short try: learns less
#   QUICKSTART_PROBLEMS=512 ...   fewer held-out problems: wider intervals
#   QUICKSTART_AT_ONCE=1 ...      one run after the other, as on one core
#
# Runs go side by side where there are cores for it, each of which a small model
# leaves half idle: as many as QUICKSTART_AT_ONCE says, by default 2 of training
# and 3 of evaluation on CPUs; 1 on one core, with less than 5 GB of free memory
# (a run takes 1.3), and on a GPU or TPU, which one process owns. What a run
# computes does not depend on it.
#
# Under 10 minutes on 2 cores, the installation included. It may be stopped at
# any time: run again, training goes on from its last checkpoint.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh

DIR=${QUICKSTART_DIR:-runs/quickstart}
TOKENS=${QUICKSTART_TOKENS:-420000}
PROBLEMS=${QUICKSTART_PROBLEMS:-2048}
AT_ONCE=${QUICKSTART_AT_ONCE:-3}
PHASE='setting up'
BEGAN=0
CHILDREN=() # process ids of the commands that run, and of their labels
LABELS=()

for number in "$TOKENS" "$PROBLEMS" "$AT_ONCE"; do
  case $number in
  '' | *[!0-9]* | 0*)
    fail "QUICKSTART_TOKENS=$TOKENS, QUICKSTART_PROBLEMS=$PROBLEMS," \
      "QUICKSTART_AT_ONCE=$AT_ONCE: give whole numbers above 0."
    ;;
  esac
done

# Succeeds if a GPU or a TPU may be used.
has_accelerator() {
  local device
  case ${JAX_PLATFORMS:-} in cpu) return 1 ;; esac
  for device in /dev/nvidia[0-9]* /dev/accel[0-9]* /dev/vfio/[0-9]* /dev/kfd; do
    [ -e "$device" ] && return 0
  done
  return 1
}

# Succeeds if several runs fit the cores and the memory; where Linux does not
# say, they are taken to.
has_room() {
  local cores free
  cores=$(nproc 2>/dev/null || echo 2)
  free=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' \
    "${MEMINFO:-/proc/meminfo}" 2>/dev/null) || free=''
  [ "$cores" -ge 2 ] && [ "${free:-5}" -ge 5 ]
}

# On CPUs a few traces decode at a time, of which a cache near the core can hold
# what they attend to: the same traces in less than half the time (LOG.md).
SLOTS=--config.rollout.slots=24
if has_accelerator; then SLOTS=; fi

if [ -z "${QUICKSTART_AT_ONCE:-}" ]; then
  if has_accelerator || ! has_room; then AT_ONCE=1; fi
fi

# Says where it stopped and leaves with the code $1.
stopped() {
  local again='Run the same command again to go on from there'
  trap - ERR INT TERM
  if [ "$1" -eq 137 ] && [ "$AT_ONCE" -gt 1 ]; then
    again="A command was killed, as for want of memory: one after the other they"
    again+=" need less. Go on with QUICKSTART_AT_ONCE=1"
  fi
  echo >&2
  echo "quickstart.sh: stopped while $PHASE (exit code $1). $again" >&2
  exit "$1"
}

# Waits for the last lines of commands that have ended.
end_labels() {
  local pipe
  for pipe in "$PIPES"/*; do
    # Of a command that was ended before it opened its pipe: nothing comes.
    [ ! -p "$pipe" ] || : <>"$pipe"
  done
  [ ${#LABELS[@]} -eq 0 ] || wait "${LABELS[@]}"
  LABELS=()
  rm -f "$PIPES"/*
}

# Asks the commands that run to end, which saves their checkpoints, and waits.
end_children() {
  if [ ${#CHILDREN[@]} -gt 0 ]; then
    kill -TERM "${CHILDREN[@]}" 2>/dev/null || true
    wait "${CHILDREN[@]}" || true
  fi
  CHILDREN=()
  end_labels
}

# Ends what runs, and leaves with the code $1.
interrupted() {
  trap '' INT TERM
  end_children
  stopped "$1"
}

trap 'stopped $?' ERR
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# Begins the phase named $1.
begin() {
  PHASE=$1
  BEGAN=$SECONDS
  echo
  echo "== $PHASE"
}

# Puts $1 in front of every line, to the last.
label() {
  local line
  trap '' INT TERM
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s: %s\n' "$1" "$line"
  done
}

# Starts `python -m …` of the phase. It is named $1 in front of its lines, unless
# it runs alone, and beside what runs already, unless there are enough.
#
# In the background, since bash runs no trap while it waits for a command in the
# foreground: a SIGTERM to this script alone would not reach the command.
start() {
  local name=$1 pipe="$PIPES/$1"
  shift
  [ ${#CHILDREN[@]} -lt "$AT_ONCE" ] || finish
  if [ "$AT_ONCE" -eq 1 ]; then
    "$PY" -m "$@" &
    CHILDREN+=($!)
    return
  fi
  rm -f "$pipe"
  mkfifo "$pipe"
  label "$name" <"$pipe" &
  LABELS+=($!)
  "$PY" -m "$@" >"$pipe" 2>&1 &
  CHILDREN+=($!)
}

# Waits for the commands that run. If one fails the others are ended, too.
finish() {
  local child code=0 left
  while [ ${#CHILDREN[@]} -gt 0 ]; do
    left=()
    for child in "${CHILDREN[@]}"; do
      if kill -0 "$child" 2>/dev/null; then
        left+=("$child")
      else
        wait "$child" || code=$?
      fi
    done
    CHILDREN=(${left[@]+"${left[@]}"})
    [ "$code" -eq 0 ] || end_children
    [ ${#CHILDREN[@]} -eq 0 ] || sleep 0.1
  done
  end_labels
  [ "$code" -eq 0 ] || stopped "$code"
}

# Ends the phase, and says how long it took.
end() {
  finish
  echo "== $PHASE: $((SECONDS - BEGAN)) s"
}

make_venv ''
mkdir -p "$DIR"
PIPES=$(mktemp -d) # not in $DIR, which may be on a drive that has none
trap 'rm -rf "$PIPES"' EXIT
mrt=configs/mrt_countdown.py
# Both end when they have sampled as many tokens, about 50 steps.
equal="--config.total_tokens=$TOKENS"
equal+=" --config.total_steps=60 $SLOTS"
begin 'training MRT and GRPO'
start MRT meta_rl.train --config="$mrt" --workdir="$DIR/mrt" $equal
# Each at the better one of the learning rates that were tried (LOG.md).
start GRPO meta_rl.train --config=configs/grpo_countdown.py \
  --workdir="$DIR/grpo" $equal --config.optimizer.learning_rate=5e-5
end
problems=--num_problems=$PROBLEMS
begin 'evaluating MRT, GRPO and the base policy'
start MRT meta_rl.evaluate "$problems" --workdir="$DIR/mrt"
start GRPO meta_rl.evaluate "$problems" --workdir="$DIR/grpo"
start base meta_rl.evaluate "$problems" --config="$mrt" $SLOTS --base \
  --workdir="$DIR/base"
end
begin 'writing the report'
AT_ONCE=1
start report meta_rl.report "$DIR/base" "$DIR/grpo" "$DIR/mrt" \
  --out="$DIR/report.html"
end
echo
echo "== done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $DIR/report.html"
