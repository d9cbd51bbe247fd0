#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The plugin under nbdkit's filters.

load lib
load plugin

setup () {
  cd "$BATS_TEST_TMPDIR"
  random_image data 8M 1
  qemu-img convert -f raw -O qcow2 data disk
}

@test "cow: writes are seen and then forgotten" {
  before=$(sha256sum disk)
  captive --filter=cow -- disk -- 'nbdsh -u "$uri" -c "
h.pwrite(b\"new\" * 1000, 12345)
h.flush()
assert h.pread(3000, 12345) == b\"new\" * 1000"'
  [ "$(sha256sum disk)" = "$before" ]
}

@test "cache: what was flushed is in the image" {
  captive --filter=cache -- disk -- 'nbdsh -u "$uri" -c "
assert h.pread(8 << 20, 0) == open(\"data\", \"rb\").read()
h.pwrite(b\"new\" * 1000, 12345)
h.flush()"'
  printf 'new%.0s' {1..1000} |
    dd of=data bs=1 seek=12345 conv=notrunc status=none
  qemu-img compare -f raw -F qcow2 data disk
  is_clean disk
}

@test "delay: requests that overtake each other stay right" {
  captive --filter=delay -- disk rdelay=1ms wdelay=2ms -- \
    'nbdcopy data "$uri" && nbdcopy "$uri" copy'
  cmp data copy
  is_clean disk
}

@test "error: a client gets the error and the image stays right" {
  run captive --filter=error -- disk error-pwrite=ENOSPC \
    error-pwrite-rate=100% -- 'nbdsh -u "$uri" -c "
import nbd
try:
    h.pwrite(b\"x\", 0)
    assert False
except nbd.Error as e:
    assert e.errno == \"ENOSPC\", e"'
  [ "$status" -eq 0 ]
  qemu-img compare -f raw -F qcow2 data disk
  is_clean disk
}

@test "exportname: the export has one name" {
  captive --filter=exportname -- disk exportname=vm exportname-strict=true \
    exportname-list=explicit -- '
      nbdinfo --list "$uri" >list
      nbdinfo --size "nbd+unix:///vm?socket=$unixsocket" >size
      ! nbdinfo --size "nbd+unix:///other?socket=$unixsocket"'
  grep -F 'export="vm"' list
  [ "$(cat size)" = 8388608 ]
}

@test "log: requests arrive with their flags" {
  captive --filter=log -- disk logfile=log -- 'nbdsh -u "$uri" -c "
import nbd
h.pwrite(b\"x\", 5, nbd.CMD_FLAG_FUA)
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
h.flush()"'
  grep -E 'Write.*offset=0x5 count=0x1 fua=1' log
  grep -E 'Zero.*fast=1' log
  grep -F 'Flush' log
}

@test "multi-conn: the filter's other modes can be had" {
  for mode in auto emulate plugin; do
    captive --filter=multi-conn -- disk multi-conn-mode=$mode -- \
      'nbdinfo --can multi-conn "$uri" && nbdcopy "$uri" copy'
    cmp data copy
  done
  captive --filter=multi-conn -- disk multi-conn-mode=disable -- \
    '! nbdinfo --can multi-conn "$uri"'
}

@test "offset: a window of the disk" {
  captive -r --filter=offset -- disk offset=1000000 range=2000000 -- \
    'nbdcopy "$uri" copy'
  tail -c +1000001 data | head -c 2000000 | cmp - copy
}

@test "partition: one partition of the disk" {
  # An MBR with one partition: sectors 2048 to 4095.
  truncate -s 8M mbr
  poke mbr 446 0000000083000000
  poke mbr 454 0008000000080000
  poke mbr 510 55aa
  printf 'partition' | dd of=mbr bs=1 seek=1M conv=notrunc status=none
  qemu-img convert -f raw -O qcow2 mbr disk
  captive --filter=partition -- disk partition=1 -- 'nbdsh -u "$uri" -c "
assert h.get_size() == 1 << 20
assert h.pread(9, 0) == b\"partition\"
h.pwrite(b\"P\", 0)"'
  [ "$(qemu-io -r -c 'read -v 1M 9' disk | grep -c 'Partition')" = 1 ]
  is_clean disk
}

@test "protect: a protected range is not written" {
  captive --filter=protect -- disk protect=0-4095 -- 'nbdsh -u "$uri" -c "
import nbd
try:
    h.pwrite(b\"changed!\" * 512, 0)
    assert False
except nbd.Error as e:
    assert e.errno == \"EPERM\", e
h.pwrite(b\"x\", 4096)"'
  qemu-img convert -O raw disk copy
  cmp -n 4096 data copy
  is_clean disk
}

@test "readahead: reads in sequence give the same bytes" {
  captive -r --filter=readahead -- disk -- 'nbdsh -u "$uri" -c "
d = open(\"data\", \"rb\").read()
for o in range(0, 8 << 20, 65536):
    assert h.pread(65536, o) == d[o:o+65536]"'
}

@test "retry: the filter opens the image again, and writes go on" {
  touch fail
  start_nbdkit -v --filter=retry --filter=error disk error-pread=EIO \
    error-pread-rate=100% error-pread-file="$PWD/fail" retry-delay=1 2>log
  nbdsh -u "$URI" -c '
h.pwrite(b"before", 10)
assert h.pread(1000, 65536) == open("data", "rb").read()[65536:66536]
h.pwrite(b"after!", 20)
assert h.pread(16, 10)[:6] == b"before"' &
  client=$!
  poll 20 grep -q 'retry 1: ' log
  rm fail
  wait $client
  stop_server
  is_clean disk
}
