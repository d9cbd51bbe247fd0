#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Each command killed, and failed by its disk, at every request: see torture.py.
# TORTURE_KILLS=N for another number of kills than 100, TORTURE_SEED=N for a run
# that was seen, TORTURE_JOBS=N commands at a time; arguments are those of
# torture.py.  It takes an hour, most of it in fsync: TMPDIR=/dev/shm helps.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"
# shellcheck disable=SC2154
if [ "$config_test_storage" != yes ]; then
  echo "torture: configure --enable-test-storage was not given; left out"
  exit 0
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-torture.XXXXXX")
trap 'rm -rf "$dir"' EXIT
export LC_ALL=C.UTF-8
/usr/bin/python3 -B "$here/torture.py" --nbdimg "$NBDIMG_BUILD/nbdimg" \
  --dir "$dir" --kills "${TORTURE_KILLS:-100}" --jobs "${TORTURE_JOBS:-2}" \
  ${TORTURE_SEED:+--seed "$TORTURE_SEED"} "$@"
