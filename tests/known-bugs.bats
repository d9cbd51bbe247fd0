#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Bugs that other programs for qcow2 have or had.  Each was somebody's data.

load lib

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
}

# io IMAGE COMMAND...: all of them must go through, and patterns be right
io () {
  local image=$1 args=() c
  shift
  for c; do args+=(-c "$c"); done
  run "$NBDIMG" io "${args[@]}" "$image"
  [ "$status" = 0 ] && [[ $output != *erification* ]] || fail "$output"
}

# The same to QEMU, and no error and no leak.
sound () {
  local image=$1 args=() c
  shift
  for c; do args+=(-c "$c"); done
  run qemu-io -r "${args[@]}" "$image"
  [ "$status" = 0 ] && [[ $output != *erification* ]] || fail "$output"
  qemu-img check -q "$image"
  "$NBDIMG" check -q "$image"
}

@test "a compressed write does not land in a cluster that was freed" {
  # QEMU 7.2: the last write overwrites the one before it.
  qemu-img create -q -f qcow2 disk 4M
  io disk 'write -c -P 1 0 64k' 'write -z -u 0 64k' 'write -P 10 1M 64k' \
    'write -c -P 2 2M 64k' 'read -P 10 1M 64k' 'read -P 2 2M 64k' 'flush'
  sound disk 'read -P 0 0 64k' 'read -P 10 1M 64k' 'read -P 2 2M 64k'
}

@test "discard in a version 2 overlay does not show old data of the base" {
  qemu-img create -q -f raw base 1M
  qemu-io -f raw -c 'write -P 170 0 1M' base >/dev/null
  qemu-img create -q -f qcow2 -o compat=0.10 -b base -F raw top
  io top 'write -P 1 0 128k' 'discard 0 64k'
  run ! qemu-io -r -c 'read -P 170 0 64k' top
  io top 'read -P 1 64k 64k'
  sound top 'read -P 1 64k 64k' 'read -P 170 128k 128k'
}

@test "zeroes over a base are zeroes, whole and in part, in every version" {
  local compat
  qemu-img create -q -f raw base 1M
  qemu-io -f raw -c 'write -P 170 0 1M' base >/dev/null
  for compat in 0.10 1.1; do
    qemu-img create -q -f qcow2 -o compat=$compat -b base -F raw top
    io top 'write -z 0 64k' 'write -z -u 64k 64k' 'write -z 130k 3k' \
      'write -P 1 4k 4k'
    sound top 'read -P 0 0 4k' 'read -P 1 4k 4k' 'read -P 0 8k 120k' \
      'read -P 170 128k 2k' 'read -P 0 130k 3k' 'read -P 170 133k 59k'
  done
}

@test "the lowest bit of a compressed cluster's entry is no zero flag" {
  local i odd=0 l2 commands=()
  qemu-img create -q -f raw base 1M
  qemu-io -f raw -c 'write -P 170 0 1M' base >/dev/null
  qemu-img create -q -f qcow2 -b base -F raw top
  for i in 1 2 3 4 5 6 7 8; do
    # streams of different lengths
    perl -e 'srand 1; print map { chr rand 256 } 1 .. $ARGV[0]' $((i * 7)) \
      >part$i
    head -c $((65536 - i * 7)) /dev/zero | tr '\0' "$i" >>part$i
    cat part$i >>want
    commands+=("write -c -s part$i $((i * 64))k 64k")
  done
  # one behind the other, at any byte
  io top "${commands[@]}"
  l2=$((0x$(peek top $((0x$(peek top 40 8))) 8) & 0xfffffffffffe00))
  for i in 1 2 3 4 5 6 7 8; do
    [ $((0x$(peek top $((l2 + i * 8 + 7)) 1) & 1)) = 0 ] || odd=$((odd + 1))
  done
  [ $odd -gt 0 ]    # or nothing was tested
  sound top 'read -P 170 0 64k' 'read -P 170 576k 64k'
  "$NBDIMG" convert -O raw top got
  cmp <(dd if=got bs=64k skip=1 count=8 status=none) want
}

@test "compressed streams that cross clusters are counted in each" {
  local i commands=()
  # noise of 12 KiB in 16 KiB: a stream fits seldom into what is left
  head -c 12288 /dev/urandom >noise
  head -c 4096 /dev/zero >>noise
  qemu-img create -q -f qcow2 -o cluster_size=16k disk 4M
  for ((i = 0; i < 40; ++i)); do
    commands+=("write -c -s noise $((i * 16))k 16k")
  done
  io disk "${commands[@]}" 'write -P 1 96k 32k' 'discard 160k 48k' \
    'write -c -s noise 160k 16k'
  sound disk 'read -P 1 96k 32k' 'read -P 0 176k 32k'
  "$NBDIMG" convert -O raw disk got
  for i in 0 5 10 39; do
    cmp <(dd if=got bs=16k skip=$i count=1 status=none) noise
  done
}

@test "what is not understood in a header survives writes" {
  qemu-img create -q -f qcow2 -o compression_type=zstd,lazy_refcounts=on disk 4M
  # An unknown compatible bit, an unknown autoclear bit, and an unknown
  # extension in the place of the feature name table.
  poke disk 80 8000000000000001
  poke disk 88 4000000000000000
  poke disk 112 12345678
  io disk 'write -P 1 0 1M' 'discard 0 64k' 'write -c -P 2 2M 64k'
  [ "$(peek disk 80 8)" = 8000000000000001 ]
  [ "$(peek disk 88 8)" = 0000000000000000 ]
  [ "$(peek disk 112 4)" = 12345678 ]
  [ "$(peek disk 104 1)" = 01 ]
  sound disk 'read -P 1 64k 960k' 'read -P 2 2M 64k'
}

@test "the file is no larger than QEMU's after the same writes" {
  local i args=() ours theirs
  for ((i = 0; i < 64; ++i)); do
    args+=(-c "write -q $((i * 37 % 64 * 128))k 128k")
  done
  for i in 512,refcount_bits=64 4k 64k; do
    qemu-img create -q -f qcow2 -o cluster_size=$i theirs 8M
    qemu-img create -q -f qcow2 -o cluster_size=$i ours 8M
    qemu-io "${args[@]}" theirs
    "$NBDIMG" io "${args[@]}" ours
    ours=$(stat -c %s ours) theirs=$(stat -c %s theirs)
    [ "$ours" -le $((theirs + theirs / 50)) ] ||
      fail "$i: $ours bytes, QEMU's has $theirs"
    qemu-img check -q ours
  done
}

@test "an image in an image is made, written and checked" {
  need nbdkit
  qemu-img create -q -f qcow2 outer 16M
  start_nbdkit outer format=qcow2
  "$NBDIMG" create -q -f qcow2 "$URI" 8M
  run "$NBDIMG" io -f qcow2 -c 'write -P 1 0 3M' -c 'discard 1M 64k' \
    -c 'write -c -P 2 5M 64k' -c 'read -P 1 2M 1M' "$URI"
  [ "$status" = 0 ] && [[ $output != *erification* ]] || fail "$output"
  "$NBDIMG" check -q -f qcow2 "$URI"
  stop_server
  qemu-img check -q outer
  qemu-img convert -f qcow2 -O raw outer inner
  qemu-img check -q -f qcow2 inner
  qemu-io -r -f qcow2 -c 'read -P 1 0 1M' -c 'read -P 2 5M 64k' inner
}
