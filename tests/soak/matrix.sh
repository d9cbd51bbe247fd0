#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Every kind of qcow2 image, written and read by QEMU and by us: see matrix.py.
# MATRIX_SEED=N for a run that was seen, MATRIX_REQUESTS=N for longer ones;
# arguments are those of matrix.py.  It wants libnbd's Python module, which
# belongs to the system's Python.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-matrix.XXXXXX")
trap 'rm -rf "$dir"' EXIT
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"
/usr/bin/python3 -B "$here/matrix.py" --build "$NBDIMG_BUILD" --dir "$dir" \
  ${MATRIX_SEED:+--seed "$MATRIX_SEED"} --preload "${config_PRELOAD:-}" \
  ${MATRIX_REQUESTS:+--requests "$MATRIX_REQUESTS"} "$@"
