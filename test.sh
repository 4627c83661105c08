#!/usr/bin/env bash
# From a bare Python to a tested checkout.
#
#   bash test.sh                      install, lint, the tests of every change
#   bash test.sh full [ARGS]          the slow ones, with the extras they need
#   bash test.sh soak [ARGS]          what is slow and tested elsewhere too:
#                                     before a release
#   bash test.sh trl [ARGS]           our losses against TRL itself, which gets
#                                     an environment of its own, .venv-trl
#   bash test.sh tests/test_x.py::t   lint and what pytest is told
#
# The first run makes .venv; the next ones install nothing and need no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. launch/venv.sh

FULL_EXTRAS=test,tasks,tpu,docs,colab

# What tests/data/trl_losses.json is of. torch comes first, so that trl takes
# the one that is there; its CPU build will do, where pip finds one.
TRL_VENV=${TRL_VENV:-.venv-trl}
TRL_PACKAGES='torch==2.13.0 trl==1.16.0'

# Two processes, a file to each at a time: most of a run is compiling.
BOTH_CORES='-n 2 --dist loadfile'

# Most of the tests' time is compiling, which LLVM without optimisation halves.
export XLA_FLAGS=${XLA_FLAGS---xla_backend_optimization_level=0}

if [ "${1:-}" = full ] || [ "${1:-}" = soak ]; then
  which='full and not soak'
  [ "$1" = full ] || which=soak
  shift
  make_venv "$FULL_EXTRAS"
  # In the order of tests/conftest.py, which puts the longest test first.
  exec "$PY" -m pytest -m "$which" $BOTH_CORES --no-loadscope-reorder "$@"
fi

make_venv test

if [ "${1:-}" = trl ]; then
  shift
  if [ "$TRL_VENV" -ef "$VENV" ]; then
    fail "TRL_VENV=$TRL_VENV is the environment of meta_rl: name another folder."
  fi
  # Pinned, so it changes with the two versions alone: `full` has no need of it.
  make_pinned_venv "$TRL_VENV" $TRL_PACKAGES
  META_RL_TRL_PYTHON=$(cd "$(dirname "$PINNED_PY")" && pwd)/python
  export META_RL_TRL_PYTHON
  exec "$PY" -m pytest tests/test_losses_trl.py "$@"
fi

echo '== lint'
"$PY" -m ruff format --check . ||
  fail "the formatting differs. Run: $PY -m ruff format ."
"$PY" -m ruff check . || fail "lint found the lines above"
echo '== tests'
# A test that is asked for by name runs, whatever its marks.
case " $* " in
*::* | *' -m '*) exec "$PY" -m pytest "$@" ;;
*) exec "$PY" -m pytest -m 'not full' $BOTH_CORES "$@" ;;
esac
