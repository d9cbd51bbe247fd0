#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# What the plugin takes of memory under load, beside nbdkit's own file plugin:
# requests in flight are nbdkit's, and at most 32 MiB more are ours.

load lib
load plugin

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  /usr/bin/python3 -c 'import nbd' || skip "no libnbd module for Python"
  [ -z "$config_sanitizers" ] || skip "sanitizers take memory of their own"
}

# memory LINE: of the server, in KiB
memory () {
  sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$SERVER_PID/status"
}

# bounded KIND IMAGE: while 64 requests of 1 MiB are in flight.  How many there
# really are at a time is chance, so the file plugin counts as if it had all.
bounded () {
  local idle largest
  start_server file disk.raw
  idle=$(memory VmRSS)
  stop_server
  start_nbdkit "file=$2"
  /usr/bin/python3 -B "$SRCDIR/tests/helpers/nbd-load.py" "$SOCKET" "$1" 200
  largest=$(memory VmHWM)
  stop_server
  echo "$1 $2: $largest KiB; the file plugin $idle KiB without a request"
  [ "$largest" -gt $((idle + 8 * 1024)) ]
  [ "$largest" -le $((idle + (64 + 32) * 1024)) ]
}

@test "64 MiB of requests in flight cost no more than in the file plugin" {
  make_disk raw disk.raw 128M
  make_disk qcow2 disk 128M
  bounded write disk
  bounded read disk
}

@test "nor with small clusters, on an overlay, or from a compressed image" {
  make_disk raw disk.raw 128M
  qemu-img create -q -f qcow2 -o cluster_size=512 small 128M
  bounded write small
  qemu-img create -q -f qcow2 -o cluster_size=2M -b small -F qcow2 top
  bounded write top
  qemu-img convert -c -f raw -O qcow2 disk.raw packed
  bounded read packed
}

@test "nor with compressed clusters of 2 MiB, read and written over" {
  head -c 100M /dev/urandom | base64 -w 0 | head -c 128M >disk.raw
  "$NBDIMG" convert -c -f raw -O qcow2 -o cluster_size=2M disk.raw packed
  bounded read packed
  "$NBDIMG" convert -c -f raw -O qcow2 \
    -o cluster_size=2M,compression_type=zstd disk.raw packed
  bounded write packed
}
