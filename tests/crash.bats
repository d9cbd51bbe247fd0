#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A short sample of "make crash": see tests/crash/crash.sh.

load lib

@test "after a crash every sector is the flushed or a later one (sample)" {
  need qemu-img qemu-io
  run env NBDIMG_BUILD="$NBDIMG_BUILD" CRASH_SEEDS=1 CRASH_OPS=25 \
    CRASH_STATES=70 CRASH_STEP=500 CRASH_QEMU=0 TMPDIR="$BATS_TEST_TMPDIR" \
    "$BATS_TEST_DIRNAME/crash/crash.sh"
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *" 0 findings"* ]]
}

@test "the crash states of QEMU's driver are judged by the same rules" {
  need qemu-img qemu-io /usr/bin/python3
  run env NBDIMG_BUILD="$NBDIMG_BUILD" CRASH_SEEDS=1 CRASH_OPS=20 \
    CRASH_STATES=200 CRASH_STEP=500 CRASH_KINDS=4k \
    TMPDIR="$BATS_TEST_TMPDIR" \
    "$BATS_TEST_DIRNAME/crash/crash.sh"
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output =~ "qemu "[0-9.]+": "[1-9] ]]
}
