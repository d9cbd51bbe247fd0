#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# fio's NBD engine on the plugin: four connections, every block verified.

load lib
load plugin

setup () {
  cd "$BATS_TEST_TMPDIR"
  need fio
  fio --enghelp | grep -qw nbd || skip "fio has no NBD engine"
}

# verified RW SECONDS: four jobs on ranges of their own.
verified () {
  fio --name=job --ioengine=nbd --uri="$URI" --numjobs=4 --iodepth=8 \
    --size=16m --offset_increment=16m --rw="$1" --bsrange=512-128k \
    --bs_unaligned=0 --verify=crc32c --verify_fatal=1 --verify_backlog=128 \
    --randseed=7 --time_based --runtime="$2" --fsync=64 \
    --group_reporting --minimal >fio.log 2>&1 || { cat fio.log; return 1; }
}

@test "random writes of all sizes over four connections verify" {
  for fmt in raw qcow qcow2 vdi; do
    make_disk $fmt disk 64M
    start_nbdkit -t4 disk format=$fmt
    verified randrw 2
    stop_server
    is_clean disk
  done
}

@test "small clusters, version 2, extended L2: random writes verify" {
  for options in cluster_size=4k compat=0.10 \
      extended_l2=on,cluster_size=32k; do
    qemu-img create -q -f qcow2 -o $options disk 64M
    start_nbdkit -t4 disk
    verified randrw 2
    stop_server
    is_clean disk
  done
}

@test "trims among the writes of other connections do no harm" {
  make_disk qcow2 disk 80M
  start_nbdkit -t4 disk
  fio --name=trim --ioengine=nbd --uri="$URI" --rw=randtrim --bs=32k \
    --offset=64m --size=16m --iodepth=8 --time_based --runtime=4 \
    --minimal >trim.log 2>&1 &
  trim=$!
  verified randrw 3
  wait $trim || { cat trim.log; return 1; }
  stop_server
  is_clean disk
}
