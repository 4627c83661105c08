#!/usr/bin/env bash
# The environments of those that the benchmarks compare meta_rl with.
#
#   bash benchmarks/peers.sh [trl] [tunix]     default: both; minutes, 3 GB
#
# Makes .venv-trl and .venv-tunix (or $TRL_VENV and $TUNIX_VENV), without
# meta_rl in them, and reuses those that are whole.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh

# As in test.sh, which shares the folder. torch comes first, so that trl takes
# the one that is there; its CPU build will do, where pip finds one.
TRL_PACKAGES='torch==2.13.0 trl==1.16.0'
# The jax of meta_rl's own tests, so that both are compiled by one XLA. Of
# google-tunix only the extra `prod` asks for jax[tpu]; nothing else in it needs
# an accelerator, vLLM or a checkout of git.
TUNIX_PACKAGES='jax==0.10.2 google-tunix==0.1.7'

[ $# -gt 0 ] || set -- trl tunix
for peer; do
  case $peer in
  trl)
    PINNED_NAME=TRL_VENV make_pinned_venv "${TRL_VENV:-.venv-trl}" $TRL_PACKAGES
    ;;
  tunix)
    PINNED_NAME=TUNIX_VENV \
      make_pinned_venv "${TUNIX_VENV:-.venv-tunix}" $TUNIX_PACKAGES
    ;;
  *) fail "there is no peer '$peer': allowed are trl and tunix" ;;
  esac
  echo "$peer: $PINNED_PY"
done
