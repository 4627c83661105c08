# Makes .venv once and trusts it only when it is whole. Sourced, not run:
#
#   cd CHECKOUT; . launch/venv.sh; make_venv test; "$PY" -m pytest
#
# Afterwards $PY is the environment's interpreter. $PYTHON chooses the Python
# that makes it, $VENV its folder (default .venv).
#
# Two kinds of marks lie in the folder. `installing` is there from before the
# first byte until pip is done, so a run that was killed leaves it behind and
# the next run starts over. `stamps/EXTRAS` is written last of all and holds a
# hash of all that decides what is installed: while it matches, nothing is done
# and no network is needed. A stamp of more extras covers fewer.

VENV=${VENV:-.venv}
MIN_FREE_GB=4   # for an environment from nothing
MORE_FREE_GB=2  # for extras in one that is there

# Says what is missing, in one line, and stops.
fail() {
  local IFS=' '
  echo "${0##*/}: $*" >&2
  exit 1
}

# Prints 'major.minor' of the interpreter $1; nothing if it does not run.
python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Succeeds if $1 ('3.11') is a version that the package supports.
new_enough() {
  [ "${1%%.*}" -eq 3 ] && [ "${1#*.}" -ge 11 ]
}

# Sets BASE_PYTHON to the first interpreter that is new enough.
find_python() {
  local name version found='' names='python3.13 python3.12 python3.11 python3'
  local IFS=' '
  [ -z "${PYTHON:-}" ] || { names=$PYTHON && IFS=''; }
  for name in $names; do
    version=$(python_version "$name") || continue
    if new_enough "$version"; then
      BASE_PYTHON=$name
      return
    fi
    found="$found $name ($version)"
  done
  fail "Python 3.11 or newer is needed; found:${found:- none}" \
    "${PYTHON:+for PYTHON=$PYTHON}." \
    'Install one, or name it: PYTHON=/path/to/python3.11'
}

# Prints the hash of everything that decides what is installed, but for the
# extras.
stamp_key() {
  "$PY" - <<'END'
import hashlib, os, pathlib, sys
digest = hashlib.sha256()
for name in ('setup.py', 'pyproject.toml'):
  digest.update(pathlib.Path(name).read_bytes())
for part in (sys.version, sys.prefix, os.getcwd()):
  digest.update(b'\0' + part.encode())
print(digest.hexdigest())
END
}

# Succeeds if some stamp covers the extras $1.
covered() {
  local stamp extra key
  key=$(stamp_key)
  for stamp in "$VENV"/stamps/*; do
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] || continue
    for extra in ${1//,/ }; do
      case ",${stamp##*/}," in
      *",$extra,"*) ;;
      *) continue 2 ;;
      esac
    done
    return 0
  done
  return 1
}

# Says in one line why pip failed at the step $1, from its log $2.
explain() {
  local step=$1 log=$2 package
  package=$(sed -n 's/.*No matching distribution found for //p' "$log" | tail -1)
  if grep -q 'No space left on device' "$log"; then
    fail "the disk is full: $step stopped (log: $log)." \
      'Make room and run this again'
  elif grep -qE 'Failed to establish|resolution|Connection|timed out|ProxyError' \
    "$log"; then
    fail "no network: $step could not reach the package index" \
      "${package:+for '$package' }(log: $log). Connect and run this again"
  elif grep -qE "(gcc|cc)[':].*(failed|No such file|not found)" "$log"; then
    fail "$step needs a C compiler (log: $log)." \
      'Install one (Debian and Ubuntu: apt install gcc)'
  elif [ -n "$package" ]; then
    fail "$step found no package '$package' for Python" \
      "$(python_version "$PY") on the package index (log: $log)."
  fi
  fail "$step failed: $(grep -i error "$log" | tail -1) (log: $log)"
}

# Starts a new environment over whatever an interrupted run left.
create_venv() {
  find_python
  "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$BASE_PYTHON has no venv module." \
      "Install it (Debian and Ubuntu: apt install python3-venv)"
  echo "== making $VENV with $BASE_PYTHON $(python_version "$BASE_PYTHON")"
  rm -rf "$VENV"
  mkdir -p "$VENV/stamps"
  touch "$VENV/installing"
  "$BASE_PYTHON" -m venv "$VENV" >"$VENV/install.log" 2>&1 ||
    explain "making $VENV" "$VENV/install.log"
}

# Stops where less than $1 GB are free, $MIN_FREE_GB by default.
check_disk() {
  local free needed=${1:-$MIN_FREE_GB}
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge "$needed" ] ||
    fail "the disk is short: $free GB free in $PWD, $needed GB needed"
}

# Stops where $VENV is a folder of someone else's.
refuse_foreign() {
  [ ! -d "$VENV" ] || [ -e "$VENV/stamps" ] ||
    fail "$VENV is there, was not made by this script and cannot be used" \
      "as it is. Move it away, or choose another folder: ${1:-VENV}=.venv2"
}

# Installs '.[$1]' and leaves its stamp.
install_extras() {
  local log=$VENV/install.log target=.${1:+[$1]}
  # All extras together are half of a whole environment.
  check_disk ${READY:+$MORE_FREE_GB}
  [ -n "$READY" ] || create_venv
  touch "$VENV/installing"
  echo "== installing $target (a minute or two; log: $log)"
  if ! "$PY" -m pip install -e "$target" >"$log" 2>&1; then
    # Up to this line pip has only resolved and downloaded: an environment that
    # was whole before still is, without the new stamp.
    if [ -n "$READY" ] && ! grep -q '^Installing collected packages' "$log"; then
      rm -f "$VENV/installing"
    fi
    explain "pip install -e '$target'" "$log"
  fi
  "$PY" -c 'from meta_rl import env; env.check_versions()' >>"$log" 2>&1 ||
    fail "the installed package does not start: $(tail -1 "$log")"
  stamp_key >"$VENV/stamp"
  rm -f "$VENV/installing"
  mkdir -p "$VENV/stamps"
  mv "$VENV/stamp" "$VENV/stamps/${1:-core}"
}

# Succeeds if $VENV is whole and runs the Python that is asked for.
ready() {
  local version
  [ ! -e "$VENV/installing" ] && version=$(python_version "$PY") &&
    new_enough "$version" &&
    { [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$version" ]; }
}

# Makes $VENV hold the package with the extras $1 ('' or 'test,docs').
make_venv() {
  PY=$VENV/bin/python
  READY=''
  # Two commands started at once wait for each other; without flock (macOS) they
  # are on their own.
  exec 9<.
  ! command -v flock >/dev/null || flock 9
  if ready; then
    READY=yes
  else
    refuse_foreign
  fi
  if [ -z "$READY" ] || ! covered "$1"; then
    install_extras "$1"
  fi
  exec 9<&-
}

# Makes the folder $1 hold the packages $2 ... ('torch==2.13.0'), installed one
# after the other, without meta_rl: for what it is compared with. Sets PINNED_PY
# to the folder's interpreter and leaves $PY alone. $PINNED_NAME is the variable
# that names the folder, for a message (default TRL_VENV).
make_pinned_venv() {
  local VENV=$1 MIN_FREE_GB=8 PY package log
  shift
  PY=$VENV/bin/python log=$VENV/install.log
  exec 9<.
  ! command -v flock >/dev/null || flock 9
  if ! ready || [ "$(cat "$VENV/stamps/packages" 2>&1)" != "$*" ]; then
    refuse_foreign "${PINNED_NAME:-TRL_VENV}"
    check_disk
    create_venv
    for package; do
      echo "== installing $package (some minutes; log: $log)"
      "$PY" -m pip install "$package" >>"$log" 2>&1 ||
        explain "pip install '$package'" "$log"
    done
    rm -f "$VENV/installing"
    echo "$*" >"$VENV/stamps/packages"
  fi
  exec 9<&-
  PINNED_PY=$VENV/bin/python
}
