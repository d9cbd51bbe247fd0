#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# kill -9 of nbdkit under load: see kill.py.  100 rounds over all kinds of
# images; KILL_ROUNDS=1000 for more, KILL_SEED=N for a run that was seen.
# It wants libnbd's Python module, which belongs to the system's Python.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-kill.XXXXXX")
mkdir "$dir/images"
trap 'rm -rf "$dir"' EXIT
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"
/usr/bin/python3 -B "$here/kill.py" --rounds "${KILL_ROUNDS:-100}" \
  ${KILL_SEED:+--seed "$KILL_SEED"} --dir "$dir/images" \
  --preload "${config_PRELOAD:-}" --plugin "$NBDIMG_BUILD/nbdkit-nbdimg-plugin.so" \
  --nbdimg "$NBDIMG_BUILD/nbdimg" "$@"
