#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Random commands on chains of images, and a model of each disk: see chains.py.
# CHAINS=N for another number of chains than 40, CHAINS_SEED=N for a run that was
# seen; arguments are those of chains.py.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-chains.XXXXXX")
trap 'rm -rf "$dir"' EXIT
python3 -B "$here/chains.py" --build "$NBDIMG_BUILD" --dir "$dir" \
  --chains "${CHAINS:-40}" ${CHAINS_SEED:+--seed "$CHAINS_SEED"} "$@"
