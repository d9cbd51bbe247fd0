#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# QED: our images and QEMU's, both ways.  Damage and repair: qed-check.bats.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
}

teardown () {
  umount "$BATS_TEST_TMPDIR/small" 2>/dev/null || :
  stop_all
}

# le BYTES VALUE: a number as it stands in a QED file, in hex
le () {
  local i hex=
  for ((i = 0; i < $1; i++)); do
    hex+=$(printf '%02x' $(($2 >> (8 * i) & 255)))
  done
  echo "$hex"
}

# features FILE: the byte with the feature bits
features () { peek "$1" 16 1; }

# clean FILE...: for us and for QEMU, and closed
clean () {
  local f
  for f; do
    qemu-img check -q "$f" || fail "qemu-img finds $f damaged"
    "$NBDIMG" check -q "$f" || fail "$f is damaged"
    [ $((0x$(features "$f") & 2)) = 0 ] || fail "$f needs a check"
  done
}

# same A B: the guest content is the same, for us and for QEMU
same () {
  qemu-img compare -q "$1" "$2" || fail "qemu-img: $1 is not $2"
  "$NBDIMG" compare -q "$1" "$2" || fail "$1 is not $2"
}

@test "the layout of an image is the one that is known" {
  qemu-img create -q -f qed q 64M
  [ "$(stat -c %s q)" = $((0x50000)) ]
  [ "$(peek q 0 4)" = 51454400 ]
  [ "$(peek q 4 4)" = "$(le 4 65536)" ]           # cluster_size
  [ "$(peek q 8 4)" = "$(le 4 4)" ]               # table_size
  [ "$(peek q 12 4)" = "$(le 4 1)" ]              # header_size
  [ "$(peek q 40 8)" = "$(le 8 $((0x10000)))" ]   # L1
  [ "$(peek q 48 8)" = "$(le 8 $((64 << 20)))" ]
  qemu-io -f qed -c 'write -q -P 1 0 4k' q
  [ "$(peek q 0x50000 2)" = 0101 ]                # first data
  [ "$(peek q 0x10000 8)" = "$(le 8 $((0x60000)))" ]
  [ "$(peek q 0x60000 8)" = "$(le 8 $((0x50000)))" ]
  # Ours takes the table first, and both are what an entry says.
  "$NBDIMG" create -q -f qed o 64M
  "$NBDIMG" io -f qed -c 'write -q -P 1 70000 4k' -c 'write -q -z -u 0 64k' o
  [ "$(peek o 0x10000 8)" = "$(le 8 $((0x50000)))" ]
  [ "$(peek o 0x50000 8)" = "$(le 8 0)" ]         # reads as zeroes as it is
  [ "$(peek o 0x50008 8)" = "$(le 8 $((0x90000)))" ]
  [ "$(stat -c %s o)" = $((0xa0000)) ]
  clean q o
}

@test "create writes the bytes that qemu-img writes" {
  truncate -s 5M base.raw
  qemu-img create -q -f qed base.qed 3M
  mkdir theirs ours
  cp base.* theirs
  cp base.* ours
  twin_img create -f qed a 64M
  twin_img create -f qed b 1000
  twin_img create -f qed c 0
  twin_img create -f qed d 2T
  twin_img create -f qed -o cluster_size=4k,table_size=2 e 1G
  twin_img create -f qed -o cluster_size=1M,table_size=16 f 10G
  twin_img create -f qed -o cluster_size=4M,table_size=2 g 1P
  twin_img create -f qed -b base.raw -F raw h
  twin_img create -f qed -b base.qed -F qed i
  twin_img create -f qed -b base.qed -F qed -o size=9M j
  twin_img create -f qed -o backing_file=base.raw,backing_fmt=raw k 8G
  cp base.raw "theirs/$(printf 'n%.0s' {1..250})"
  cp base.raw "ours/$(printf 'n%.0s' {1..250})"
  twin_img create -f qed -F raw \
    -b "./././././$(printf 'n%.0s' {1..250})" l
  for f in a b c d e f g h i j k l; do
    cmp theirs/$f ours/$f
  done
  same_img create -f qed -o help
}

@test "create refuses what QEMU could not open, and makes no file" {
  for options in cluster_size=5000 cluster_size=2k cluster_size=128M \
      table_size=3 table_size=32 table_size=0 \
      cluster_size=64M,table_size=16 cluster_size=4M,table_size=4; do
    run ! qemu-img create -f qed -o $options q 1G
    expect_error 1 QED "$NBDIMG" create -f qed -o $options o 1G
    [ ! -e o ]
  done
  run ! qemu-img create -f qed -o cluster_size=4k,table_size=2 q 1T
  expect_error 1 'at most 4294967296 bytes' \
    "$NBDIMG" create -f qed -o cluster_size=4k,table_size=2 o 1T
  "$NBDIMG" create -q -f qed -o cluster_size=4k,table_size=2 o 4G
  clean o
}

# qemu-img 7.2 makes such an image, and can then not open it.
@test "tables of one cluster work, and create says who cannot read them" {
  qemu-img create -q -f qed -o table_size=1 q 64M
  run ! qemu-img info q
  run --separate-stderr "$NBDIMG" create -q -f qed -o table_size=1 o 64M
  [ "$status" = 0 ]
  [[ $stderr == *'QEMU cannot open'* ]]
  cmp o q
  "$NBDIMG" io -c 'write -q -P 3 5M 1M' q
  "$NBDIMG" io -c 'read -P 3 5M 1M' q | grep '^read 1048576'
  "$NBDIMG" check -q q
}

@test "what one side writes the other reads, in every geometry and odd size" {
  local g size
  for g in 65536,4 4096,2 4096,16 1048576,2; do
    for size in 3000320 512 1048576; do
      random_image disk.raw $size 5
      qemu-img convert -O qed -o cluster_size=${g%,*},table_size=${g#*,} \
        disk.raw theirs.qed
      "$NBDIMG" convert -O qed -o cluster_size=${g%,*},table_size=${g#*,} \
        disk.raw ours.qed
      same theirs.qed disk.raw
      same ours.qed disk.raw
      # Each goes on with the other's image.
      for f in theirs.qed disk.raw; do
        "$NBDIMG" io -f ${f##*.} -c 'write -q -P 7 100 300' \
          -c "write -q -P 8 $((size / 2 & ~511)) 512" $f
      done
      qemu-io -f qed -c 'write -q -P 7 100 300' \
        -c "write -q -P 8 $((size / 2 & ~511)) 512" ours.qed
      same theirs.qed disk.raw
      same ours.qed disk.raw
      clean theirs.qed ours.qed
    done
  done
}

@test "a disk of 2 TiB takes little space and is read to its end" {
  "$NBDIMG" create -q -f qed o 2T
  qemu-img create -q -f qed q 2T
  for p in "$NBDIMG io" qemu-io; do
    for f in o q; do
      $p -f qed -c 'write -q -P 3 2199023254528 1k' o >/dev/null
      $p -f qed -c 'write -q -P 4 1T 1k' -c 'write -q -P 3 2199023254528 1k' \
        -c 'read -P 3 2199023254528 1k' -c 'read -P 0 1500G 1M' $f >out
      run ! grep -i 'fail\|error' out
    done
  done
  clean o q
  [ "$(du -k o | cut -f1)" -lt 2000 ]
  "$NBDIMG" map --output=json o | jq -e 'map(.length) | add == 2199023255552'
}

@test "chains that mix formats read as the same disk on both sides" {
  local f
  random_image base.raw 1000448 1
  qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 3M
  qemu-img create -q -f qed -b mid.qcow2 -F qcow2 top.qed
  qemu-img create -q -f qed -b base.raw -F raw mid.qed 2M
  qemu-img create -q -f qcow2 -b mid.qed -F qed top.qcow2 3M
  qemu-img create -q -f qed -b mid.qed -F qed -o cluster_size=4k two.qed 3M
  for f in mid.qcow2 top.qed mid.qed top.qcow2 two.qed; do
    "$NBDIMG" io -c "write -q -P 5 ${#f}00000 70000" \
      -c "write -q -P 6 999900 1000" $f
    qemu-io -c "write -q -P 9 ${#f}50000 512" -c 'write -q -P 1 1M 3k' $f
  done
  for f in top.qed top.qcow2 two.qed; do
    qemu-img convert -O raw $f theirs.raw
    "$NBDIMG" convert -O raw $f ours.raw
    cmp theirs.raw ours.raw
    # and all by one side in one go
    "$NBDIMG" convert -O qed $f flat.qed
    same flat.qed $f
  done
  clean top.qed mid.qed two.qed flat.qed
}

# QEMU fills up a cluster like this one from the backing file.
@test "what surrounds a write into a zero cluster is zero" {
  "$NBDIMG" create -q base.raw 1M
  "$NBDIMG" io -f raw -c 'write -q -P 0xbb 0 1M' base.raw
  "$NBDIMG" create -q -f qed -b base.raw -F raw o
  "$NBDIMG" io -c 'write -q -z 0 64k' -c 'write -q -z -u 128k 128k' o
  "$NBDIMG" io -c 'write -q -P 1 4k 4k' -c 'write -q -P 2 190k 8k' \
    -c 'read -P 0 0 4k' -c 'read -P 1 4k 4k' -c 'read -P 0 8k 56k' \
    -c 'read -P 0xbb 64k 64k' -c 'read -P 0 128k 62k' -c 'read -P 2 190k 8k' \
    -c 'read -P 0 198k 58k' -c 'read -P 0xbb 256k 64k' o >out
  run ! grep -i 'fail\|error' out
  qemu-io -f qed -c 'read -P 0 8k 56k' -c 'read -P 0 198k 58k' o >out
  run ! grep -i 'fail\|error' out
  clean o
  # A zero cluster takes no space: only its L2 table.
  "$NBDIMG" create -q -f qed -b base.raw -F raw z
  "$NBDIMG" io -c 'write -q -z -u 0 1M' z
  [ "$(stat -c %s z)" = $((0x90000)) ]
  [ "$(peek z 0x50000 16)" = "$(le 8 1)$(le 8 1)" ]
  qemu-io -f qed -c 'read -P 0 0 1M' z | grep '^read 1048576'
}

@test "zeroes and trims over data keep the cluster and give its space back" {
  "$NBDIMG" create -q -f qed o 4M
  "$NBDIMG" io -c 'write -q -P 1 0 4M' o
  [ "$(du -k o | cut -f1)" -ge 4096 ]
  "$NBDIMG" io -d unmap -c 'write -q -z -u 0 1M' -c 'discard 2M 1M' o
  [ "$(du -k o | cut -f1)" -lt 3000 ]
  qemu-io -f qed -c 'read -P 0 0 1M' -c 'read -P 1 1M 1M' -c 'read -P 0 2M 1M' \
    -c 'read -P 1 3M 1M' o >out
  run ! grep -i 'fail\|error' out
  clean o
  qemu-img check o | grep '64/64 = 100.00% allocated'
  # What is written next is in the same place: nothing leaked.
  size=$(stat -c %s o)
  "$NBDIMG" io -c 'write -q -P 2 0 4M' o
  [ "$(stat -c %s o)" = "$size" ]
  clean o
}

@test "info: text and JSON are those of qemu-img" {
  truncate -s 1M base.raw
  qemu-img create -q -f qcow2 base.qcow2 1M
  "$NBDIMG" create -q -f qed a.qed 10M
  "$NBDIMG" create -q -f qed -o cluster_size=4k b.qed 1000
  "$NBDIMG" create -q -f qed -b base.raw -F raw c.qed
  "$NBDIMG" create -q -f qed -b base.qcow2 -F qcow2 d.qed
  "$NBDIMG" create -q -f qed -b "$PWD/d.qed" -F qed e.qed
  for f in a b c d e; do
    same_img info $f.qed
    same_img_json info --output=json $f.qed
  done
  same_img_json info --backing-chain --output=json e.qed
}

@test "rebase and commit: the chain changes, the disk does not" {
  random_image base.raw 3M 3
  random_image other.raw 2M 4
  qemu-img convert -O qcow2 base.raw other.qcow2
  qemu-img create -q -f qed -b base.raw -F raw top.qed 3M
  qemu-io -f qed -c 'write -q -P 1 64k 100k' -c 'write -q -P 2 2900k 512' top.qed
  qemu-img convert -O raw top.qed want.raw
  "$NBDIMG" rebase -u -b other.qcow2 -F qcow2 top.qed
  qemu-img info --output=json top.qed |
    jq -e '."backing-filename" == "other.qcow2"'
  same top.qed want.raw
  "$NBDIMG" rebase -b other.raw -F raw top.qed
  qemu-img info --output=json top.qed |
    jq -e '."backing-filename-format" == "raw"'
  same top.qed want.raw
  "$NBDIMG" rebase -b '' top.qed
  run ! grep backing <(qemu-img info top.qed)
  same top.qed want.raw
  clean top.qed
  # Down into a QED image, as qemu-img does it: the top keeps its clusters.
  qemu-img create -q -f qed -b other.raw -F raw mid.qed 3M
  qemu-img create -q -f qed -b mid.qed -F qed vm.qed
  "$NBDIMG" io -f qed -c 'write -q -P 3 1M 200k' -c 'write -q -z 64k 64k' vm.qed
  qemu-img convert -O raw vm.qed want.raw
  "$NBDIMG" commit -q vm.qed
  same mid.qed want.raw
  same vm.qed want.raw
  clean mid.qed vm.qed
}

@test "map: where the bytes are is what qemu-img says" {
  truncate -s 1M base.raw
  qemu-img create -q -f qed -b base.raw -F raw o 4M
  qemu-io -c 'write -q -P 1 100k 200k' -c 'write -q -P 2 2M 64k' \
    -c 'write -q -P 2 2176k 64k' o
  same_img map o
  same_img_json map --output=json o
}

@test "resize: a grown disk reads zero behind its old end, also over more" {
  "$NBDIMG" create -q base.raw 2M
  "$NBDIMG" io -f raw -c 'write -q -P 0xbb 0 2M' base.raw
  "$NBDIMG" create -q -f qed -b base.raw -F raw o 100k
  "$NBDIMG" io -c 'truncate 4M' o
  qemu-img info --output=json o | jq -e '."virtual-size" == 4194304'
  for p in "$NBDIMG io" qemu-io; do
    $p -f qed -c 'read -P 0xbb 0 100k' -c 'read -P 0 100k 3996k' o >out
    run ! grep -i 'fail\|error' out
  done
  clean o
  "$NBDIMG" create -q -f qed p 1M
  "$NBDIMG" io -c 'write -q -P 5 0 1M' -c 'truncate 1T' \
    -c 'write -q -P 6 1000G 4k' p
  qemu-io -f qed -c 'read -P 5 0 1M' -c 'read -P 6 1000G 4k' p >out
  run ! grep -i 'fail\|error' out
  clean p
}

@test "resize: what QED cannot do is refused, and nothing changes" {
  "$NBDIMG" create -q -f qed -o cluster_size=4k,table_size=2 o 8M
  "$NBDIMG" io -c 'write -q -P 5 0 8M' o
  cp o before
  run "$NBDIMG" io -c 'truncate 1M' o
  [[ $output == 'nbdimg: o: a qed image cannot be shrunk'* ]]
  run "$NBDIMG" io -c 'truncate 5G' o
  [[ $output == *'too large'* ]]
  clean o
  cmp o before
}

@test "unknown features: refused, kept or cleared, as the header says" {
  "$NBDIMG" create -q -f qed o 1M
  cp o incompatible
  poke incompatible 16 10
  expect_error 1 'Unsupported QED features: 0x10' \
    "$NBDIMG" io -f qed -c 'read 0 512' incompatible
  expect_error 1 'Unsupported QED features: 0x10' "$NBDIMG" info incompatible
  poke o 24 ff01                                  # compat
  poke o 32 0203                                  # autoclear
  "$NBDIMG" io -r -c 'read 0 512' o
  [ "$(peek o 24 16)" = "$(le 8 $((0x1ff)))$(le 8 $((0x302)))" ]
  "$NBDIMG" io -c 'write -q 0 512' o
  [ "$(peek o 24 16)" = "$(le 8 $((0x1ff)))$(le 8 0)" ]
  clean o
}

@test "each number of the header that is not in its range is refused" {
  local field
  truncate -s 1M base.raw
  "$NBDIMG" create -q -f qed -b base.raw -F raw good 64M
  while read -r field at hex; do
    [ -n "$field" ] || continue
    cp good bad
    poke bad "$at" "$hex"
    for command in 'info' 'check' 'map' 'convert -O raw'; do
      out=
      [ "$command" != 'convert -O raw' ] || out=out.raw
      # shellcheck disable=SC2086
      run timeout 20 bash -c 'ulimit -v 300000; exec "$@"' - \
        "$NBDIMG" $command -f qed bad $out
      [ "$status" = 1 ] || fail "$field $hex: $command: $status: $output"
    done
  done <<'TABLE'
cluster_size      4 00000000
cluster_size      4 00080000
cluster_size      4 01000100
cluster_size      4 00000008
cluster_size      4 ffffffff
table_size        8 00000000
table_size        8 03000000
table_size        8 20000000
table_size        8 ffffffff
tables-of-1-GiB   4 0000000410000000
tables-of-64-MiB  4 0000400010000000
header_size      12 00000000
header_size      12 02000000
header_size      12 ffffffff
l1-in-header     40 0000000000000000
l1-unaligned     40 0002010000000000
l1-behind-end    40 0000020000000000
l1-huge          40 ffffffffffffffff
l1-huge-aligned  40 0000ffffffffffff
image_size-odd   48 0100000400000000
image_size-reach 48 0000000000000100
image_size-huge  48 00feffffffffffff
name-in-fields   56 3f000000
name-behind      56 feff0000ff000000
name-huge        56 ffffffffffffffff
name-long        60 00100000
name-with-NUL    60 09000000
TABLE
}

@test "json: and --image-opts know the driver and its backing file" {
  truncate -s 1M other.raw
  "$NBDIMG" io -f raw -c 'write -q -P 9 0 1M' other.raw
  truncate -s 1M base.raw
  "$NBDIMG" create -q -f qed -b base.raw -F raw o
  "$NBDIMG" io --image-opts -c 'read -P 9 0 1M' \
    driver=qed,file.filename=o,backing.driver=raw,backing.file.filename=other.raw \
    | grep '^read 1048576'
  "$NBDIMG" info 'json:{"driver": "qed", "file": {"driver": "file",
    "filename": "o"}}' | grep 'file format: qed'
  expect_error 1 QED "$NBDIMG" info -f qed base.raw
}

@test "a raw backing file is never probed where the image says raw" {
  qemu-img create -q -f qcow2 trap 1M
  qemu-img create -q -f qed -b trap -F raw o 1M
  qemu-img create -q -f qed -b trap -F qcow2 p 1M
  "$NBDIMG" io -c 'read -v 0 4' o | grep 'QFI'
  "$NBDIMG" io -c 'read -P 0 0 64k' p | grep '^read'
}

@test "the plugin serves QED: copies both ways, extents, random writes verify" {
  need nbdcopy fio
  fio --enghelp | grep -qw nbd || skip "fio has no NBD engine"
  random_image disk.raw 20M 2
  "$NBDIMG" create -q -f qed o 64M
  start_nbdkit -t4 o
  nbdcopy disk.raw "$URI"
  nbdcopy "$URI" - | head -c 20M | cmp - disk.raw
  nbdinfo --map "$URI" >map
  grep -q hole map
  [ $((0x$(features o) & 2)) = 2 ]      # marked while it is being written to
  fio --name=job --ioengine=nbd --uri="$URI" --numjobs=4 --iodepth=8 \
    --size=16m --offset_increment=16m --rw=randrw --bsrange=512-128k \
    --verify=crc32c --verify_fatal=1 --verify_backlog=128 --randseed=7 \
    --time_based --runtime=2 --fsync=64 --minimal >fio.log 2>&1 ||
    { cat fio.log; return 1; }
  stop_server
  clean o
}

@test "after kill -9 the image is marked, and the next writer mends it" {
  "$NBDIMG" create -q -f qed o 64M
  start_nbdkit o
  qemu-io -f raw -c 'write -q -P 1 0 1M' -c flush -c 'write -q -P 2 9M 1M' \
    "$URI"
  kill -9 "$SERVER_PID"
  poll 10 not_running "$SERVER_PID"
  [ "$(features o)" = 02 ]
  "$NBDIMG" info o | grep 'cleanly shut down: no'
  "$NBDIMG" io -r -c 'read -P 1 0 1M' o | grep '^read 1048576'
  [ "$(features o)" = 02 ]              # who only reads changes nothing
  cp o q
  qemu-io -f qed -c 'read -P 1 0 1M' q | grep '^read 1048576'
  qemu-img check -q q || [ $? = 3 ]     # what is behind the last cluster
  run --separate-stderr "$NBDIMG" io -c 'read -P 1 0 1M' -c 'write -q 5M 64k' o
  [[ $stderr == *'not closed cleanly'* ]]
  [[ $output == *'read 1048576/1048576'* ]]
  clean o
}

@test "a full disk fails the write that does not fit, and loses no other" {
  need_root
  local options
  mkdir small
  mount -t tmpfs -o size=3M none small || skip "cannot mount a tmpfs"
  for options in cluster_size=64k cluster_size=4k,table_size=2; do
    "$NBDIMG" create -q -f qed -o $options small/o 64M
    run "$NBDIMG" io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 1M 9M' \
      -c flush -c 'read -q -P 1 0 1M' small/o
    [[ $output == *"No space left"* && $output != *"writing out"* ]] ||
      fail "$options: $output"
    qemu-io -r -f qed -c 'read -P 1 0 1M' small/o >out
    run ! grep -i 'fail\|error' out
    "$NBDIMG" check small/o >out || [ $? = 3 ]
    rm small/o
  done
  umount small
}
