#!/usr/bin/env bash
# What one host of a TPU slice does: install, start, report, follow, stop.
#
# launch/tpu_vm.py copies this file, code.tar.gz and, if there are variables to
# pass on, a file `env` to ~/meta_rl_launch of every host, and calls it through
# ssh. It is not meant to be called by hand, except to look:
#
#   bash meta_rl_launch/worker.sh follow 1     the log, from line 1 on
#   bash meta_rl_launch/worker.sh status
#
# The run is detached from the ssh connection, so that a closed laptop does not
# end it; its output is in run/log, its exit code in run/code once it has one.
# Lines for the launcher begin with '[launch]'.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/worker.sh
cd "$HERE" || exit 1

# Says in one line what is wrong, and stops.
fail() {
  echo "worker.sh on $(hostname): $*" >&2
  exit 1
}

# Succeeds while the run is alive.
alive() {
  # Not the process alone: nobody may have reaped it yet.
  [ -f run/pid ] && [ ! -f run/code ] && kill -0 "$(cat run/pid)" 2>/dev/null
}

# Asks the run to save and leave. Not all that it started: its graders must
# outlive it, since the step is finished first.
terminate() {
  [ -f run/child ] && kill -TERM "$(cat run/child)" 2>/dev/null
}

# Ends the run and all that it started: it leads a process group of its own.
kill_all() {
  [ -f run/pid ] && kill -KILL -- "-$(cat run/pid)" 2>/dev/null
}

# Waits up to $1 seconds for the end of the run.
wait_for() {
  local end=$((SECONDS + $1))
  while alive && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done
  ! alive
}

# Sets the variables that were passed on.
load_env() {
  [ ! -f env ] || . ./env
}

# Prints 'running', 'done CODE', 'lost' (ended without a code) or 'none'.
state() {
  if alive; then
    echo running
  elif [ -f run/code ]; then
    echo "done $(cat run/code)"
  elif [ -f run/pid ]; then
    echo lost
  else
    echo none
  fi
}

# Prints a Python that is new enough; the images of TPU VMs have an older one,
# for which uv brings one along. Not apt: unattended upgrades hold its lock for
# the first minutes of a new machine.
new_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys, ensurepip, venv
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv >&2 &&
    python3 -m uv python install --quiet 3.12 >&2 &&
    python3 -m uv python find 3.12
}

# Unpacks the code and installs it with the extras $1, or by the command $2.
install() {
  load_env
  rm -rf code.new && mkdir code.new &&
    tar -xzf code.tar.gz -C code.new && rm -rf code && mv code.new code ||
    fail 'code.tar.gz could not be unpacked'
  cd code || exit 1
  if [ -n "${2:-}" ]; then
    bash -c "$2"
    return
  fi
  if [ ! -x "$HERE/venv/bin/python" ] || [ -e "$HERE/venv/installing" ]; then
    PYTHON=$(new_python) || fail 'no Python 3.11 and no way to get one'
    export PYTHON
  fi
  # venv.sh leaves at once if nothing that it depends on has changed.
  VENV=$HERE/venv bash -c '. launch/venv.sh; make_venv "$1"' worker.sh "$1"
}

# Starts "$@" in the code's folder and returns.
start() {
  # Left over where another host has lost the run: the launcher looks first.
  ! alive || kill_all
  rm -rf run && mkdir run
  printf '%q ' "$@" >run/command
  load_env
  rm -f env # it is in the environment of the run from here on
  export META_RL_COORDINATOR=auto PATH=$HERE/venv/bin:$PATH
  setsid nohup bash "$SELF" run "$@" >run/log 2>&1 </dev/null &
  echo "$!" >run/pid
}

# Runs "$@" and keeps its exit code; called by `start`.
run() {
  local child code=127 last
  trap : TERM # the signal reaches the child as well; this shell must outlive it
  cd code || exit 1
  "$@" &
  child=$!
  echo "$child" >../run/child
  # The trap ends `wait` early: it is over when the child is gone, and one more
  # `wait` has its code unless that was given already (127).
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" 2>/dev/null
    code=$?
  done
  wait "$child" 2>/dev/null
  last=$?
  [ "$last" = 127 ] || code=$last
  echo "$code" >../run/code.part
  mv ../run/code.part ../run/code
}

# Prints which process this host's is, by the line 'process I of N' in its log.
report() {
  local line
  line=$(grep -m 1 -aoE '^process [0-9]+ of [0-9]+' run/log 2>/dev/null)
  echo "[launch] $(hostname) report ${line:-none} ($(state))"
}

# Prints the log from line $1 on until the run has ended, then its exit code.
follow() {
  while alive && [ ! -f run/child ]; do sleep 0.1; done
  if [ -f run/child ]; then
    # It ends with the process, having shown all that there is.
    tail -s 0.2 --pid="$(cat run/child)" -n "+$1" -f run/log
  else
    tail -n "+$1" run/log
  fi
  wait_for 1
  echo "[launch] $(hostname) exit $(state)"
}

# Gives the run $1 seconds to end by itself, then asks it to save and leave,
# and gives that $2 seconds; prints its exit code.
finish() {
  if ! wait_for "$1"; then
    terminate
    wait_for "$2" || kill_all
    wait_for 10
  fi
  echo "[launch] $(hostname) exit $(state)"
}

case ${1:-} in
install | start | run | report | follow | finish) "$@" ;;
status) echo "[launch] $(hostname) status $(state)" ;;
*) fail "'${1:-}' is given; install, start, report, follow, finish or status" ;;
esac
