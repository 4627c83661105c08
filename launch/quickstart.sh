#!/usr/bin/env bash
# From a bare Python to a report: MRT and GRPO from the shipped base policy on
# Countdown, all three evaluated on held-out problems.
#
#   bash launch/quickstart.sh                    into runs/quickstart
#   QUICKSTART_DIR=DIR bash launch/quickstart.sh
#   QUICKSTART_TOKENS=40000 bash launch/quickstart.sh   a short try: learns less
#   QUICKSTART_PROBLEMS=512 ...   fewer held-out problems: wider intervals
#
# Under 10 minutes on 2 cores, the installation included. It may be stopped at
# any time: run again, training goes on from its last checkpoint.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh

DIR=${QUICKSTART_DIR:-runs/quickstart}
TOKENS=${QUICKSTART_TOKENS:-420000}
PROBLEMS=${QUICKSTART_PROBLEMS:-2048}
PHASE='setting up'
CHILD=''

for number in "$TOKENS" "$PROBLEMS"; do
  case $number in
  '' | *[!0-9]* | 0*)
    fail "QUICKSTART_TOKENS=$TOKENS, QUICKSTART_PROBLEMS=$PROBLEMS: give whole numbers above 0."
    ;;
  esac
done

# Says where it stopped and leaves with the code $1.
stopped() {
  trap - ERR INT TERM
  echo >&2
  echo "quickstart.sh: stopped while $PHASE (exit code $1)." \
    'Run the same command again to go on from there' >&2
  exit "$1"
}

# Ends the running command, which saves its checkpoint, and leaves with $1.
interrupted() {
  trap '' INT TERM
  if [ -n "$CHILD" ]; then
    kill -TERM "$CHILD" 2>/dev/null || true
    wait "$CHILD" || true
  fi
  stopped "$1"
}

trap 'stopped $?' ERR
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# Runs `python -m …` as the phase named $1 and says how long it took.
phase() {
  local began=$SECONDS
  PHASE=$1
  shift
  echo
  echo "== $PHASE"
  # In the background, since bash runs no trap while it waits for a command in
  # the foreground: a SIGTERM to this script alone would not reach the command.
  "$PY" -m "$@" &
  CHILD=$!
  wait "$CHILD"
  CHILD=''
  echo "== $PHASE: $((SECONDS - began)) s"
}

make_venv ''
mkdir -p "$DIR"
mrt=configs/mrt_countdown.py
# Both end when they have sampled as many tokens, about 50 steps.
equal="--config.total_tokens=$TOKENS"
equal+=' --config.total_steps=60'
phase 'training MRT' meta_rl.train --config="$mrt" --workdir="$DIR/mrt" $equal
# Each at the better one of the learning rates that were tried (LOG.md).
phase 'training GRPO' meta_rl.train --config=configs/grpo_countdown.py \
  --workdir="$DIR/grpo" $equal --config.optimizer.learning_rate=5e-5
problems=--num_problems=$PROBLEMS
phase 'evaluating MRT' meta_rl.evaluate "$problems" --workdir="$DIR/mrt"
phase 'evaluating GRPO' meta_rl.evaluate "$problems" --workdir="$DIR/grpo"
phase 'evaluating the base policy' meta_rl.evaluate "$problems" \
  --config="$mrt" --base \
  --workdir="$DIR/base"
phase 'writing the report' meta_rl.report "$DIR/base" "$DIR/grpo" "$DIR/mrt" \
  --out="$DIR/report.html"
echo
echo "== done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $DIR/report.html"
