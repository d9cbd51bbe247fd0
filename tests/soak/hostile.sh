#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# All hostile images under AddressSanitizer and UBSan, with 512 MiB and 20
# seconds for each command: hostile.bats and hostile-formats.bats on a build
# with sanitizers, which is made in a folder of its own unless NBDIMG_BUILD is
# one.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"
case $config_sanitizers in
*address*) ;;
*)
  dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-asan.XXXXXX")
  trap 'rm -rf "$dir"' EXIT
  (cd "$dir" && "$config_srcdir/configure" --enable-sanitizers >conf.log &&
    make -j2 nbdimg nbdkit-nbdimg-plugin.so >make.log 2>&1) || {
    tail "$dir"/*.log >&2
    exit 1
  }
  export NBDIMG_BUILD=$dir ;;
esac
bats --formatter tap "$here/../hostile.bats" "$here/../hostile-formats.bats"
