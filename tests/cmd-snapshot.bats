#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck disable=SC2154,SC2034

# nbdimg snapshot, beside qemu-img.

load lib
load peer

make_images () {
  qemu-img create -q -f qcow2 a.qcow2 8M
  qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 3M
  qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k x.qcow2 4M
  qemu-img create -q -f qcow2 -o data_file=d.raw ext.qcow2 1M
  qemu-img create -q -f qcow2 -o refcount_bits=1 one.qcow2 1M
  qemu-img create -q r.img 1M
  local f
  for f in a v2 x one; do
    qemu-io -c 'write -q -P 1 0 1M' $f.qcow2
  done
}

# Dates of twins differ by a second now and then.
without_dates () {
  sed -i -E 's/[0-9-]{10} [0-9:]{8}/DATE/' "$BATS_TEST_TMPDIR"/.{our,their}.out
}

twin_list () {
  local theirs=(qemu-img snapshot -l "$@") ours=("$NBDIMG" snapshot -l "$@")
  peer_run theirs ours
  without_dates
  peer_same
}

# content FILE [SNAPSHOT]: a sum of what the guest reads
content () {
  qemu-img convert -O raw ${2:+-l "snapshot.name=$2"} "$1" content.raw &&
    md5sum <content.raw
}

@test "snapshots are made, listed, applied and deleted as qemu-img does it" {
  local f
  make_twins make_images
  for f in a.qcow2 v2.qcow2 x.qcow2; do
    twin_list $f
    twin_img snapshot -c first $f
    twin_io -c 'write -P 2 64k 1M' $f
    twin_img snapshot -c second $f
    twin_io -c 'write -P 3 512 1000k' $f
    twin_list $f
    twin_img snapshot -a first $f
    same_images $f
    twin_img snapshot -a 2 $f
    same_images $f
    twin_img snapshot -d first $f
    twin_list $f
    twin_img snapshot -c third $f
    twin_img snapshot -a second $f
    same_images $f
    twin_img snapshot -d second $f
    twin_img snapshot -d third $f
    twin_list $f
    same_images $f
  done
}

@test "what can go wrong ends as it does with qemu-img" {
  local name
  make_twins make_images
  for name in a.qcow2 v2.qcow2; do
    twin_img snapshot -a nope $name
    twin_img snapshot -d nope $name
    twin_img snapshot -d '' $name
    twin_img snapshot -l $name
  done
  twin_img snapshot
  twin_img snapshot -c
  twin_img snapshot -c x -d y a.qcow2
  twin_img snapshot -l -c x a.qcow2
  twin_img snapshot -l -l a.qcow2
  twin_img snapshot -l a.qcow2 more
  twin_img snapshot -x a.qcow2
  twin_img snapshot -c x nosuch
  twin_img snapshot -l nosuch
  twin_img_output snapshot -c x r.img
  twin_img_output snapshot -a x r.img
  twin_img_output snapshot -d x r.img
  twin_img_output snapshot -l r.img
  twin_img_output snapshot -c x ext.qcow2
  twin_img_output snapshot -a x ext.qcow2
  twin_img_output snapshot -d x ext.qcow2
  twin_img_output snapshot -c x one.qcow2
  twin_img_output snapshot -U -c x a.qcow2
  twin_img snapshot -U -l a.qcow2
  twin_img snapshot -q -c quiet a.qcow2
  twin_img snapshot --image-opts -c opts driver=qcow2,file.filename=a.qcow2
  twin_list --image-opts driver=qcow2,file.filename=a.qcow2
  same_images a.qcow2 v2.qcow2
}

@test "a snapshot of qemu-img is applied by nbdimg, and the other way round" {
  local i tool other first second
  make_images
  for i in 1 2; do
    if [ $i = 1 ]; then
      tool=qemu-img other=$NBDIMG
    else
      tool=$NBDIMG other=qemu-img
    fi
    first=$(content a.qcow2)
    $tool snapshot -c first a.qcow2
    qemu-io -c "write -q -P 7$i 256k 2M" a.qcow2
    second=$(content a.qcow2)
    $other snapshot -c second a.qcow2
    "$NBDIMG" io -c "write -q -P 8$i 100k 3M" a.qcow2
    qemu-img check -q a.qcow2
    $other snapshot -a first a.qcow2
    [ "$(content a.qcow2)" = "$first" ]
    [ "$(content a.qcow2 second)" = "$second" ]
    qemu-img check -q a.qcow2
    $tool snapshot -a second a.qcow2
    [ "$(content a.qcow2)" = "$second" ]
    $other snapshot -d first a.qcow2
    $tool snapshot -d second a.qcow2
    [ "$(content a.qcow2)" = "$second" ]
    qemu-img check -q a.qcow2
    "$NBDIMG" check -q a.qcow2
  done
}

@test "a snapshot brings its size back, and keeps compressed clusters" {
  local old
  random_image r.raw 3M 5
  qemu-img convert -c -O qcow2 r.raw c.qcow2
  old=$(content c.qcow2)
  "$NBDIMG" snapshot -c small c.qcow2
  qemu-img resize -q c.qcow2 5M
  qemu-io -c 'write -q -P 1 0 5M' c.qcow2
  "$NBDIMG" snapshot -c large c.qcow2
  "$NBDIMG" snapshot -a small c.qcow2
  [ "$(qemu-img info --output=json c.qcow2 | jq '."virtual-size"')" = 3145728 ]
  [ "$(content c.qcow2)" = "$old" ]
  qemu-img check -q c.qcow2
  "$NBDIMG" snapshot -a large c.qcow2
  [ "$(qemu-img info --output=json c.qcow2 | jq '."virtual-size"')" = 5242880 ]
  "$NBDIMG" snapshot -d small c.qcow2
  qemu-img check -q c.qcow2
}

@test "the state of a machine stays with its snapshot" {
  # As the emulator does it: behind the disk, at the next 512 MiB.  The snapshot
  # table is changed by hand, since its maker cannot write there.
  qemu-img create -q -f qcow2 vm.qcow2 4M
  qemu-img resize -q vm.qcow2 1G
  qemu-io -c 'write -q -P 5 512M 192k' vm.qcow2
  "$NBDIMG" snapshot -c vm vm.qcow2
  at=$((16#$(peek vm.qcow2 64 8)))
  poke vm.qcow2 $((at + 32)) 00030000
  poke vm.qcow2 $((at + 40)) 0000000000030000
  poke vm.qcow2 $((at + 48)) 0000000000400000
  qemu-img check -q vm.qcow2
  qemu-io -c 'write -q -P 6 512M 192k' vm.qcow2
  poke vm.qcow2 24 0000000000400000
  qemu-img check -q vm.qcow2
  "$NBDIMG" snapshot -c other vm.qcow2
  "$NBDIMG" snapshot -a vm vm.qcow2
  "$NBDIMG" snapshot -d other vm.qcow2
  qemu-img check -q vm.qcow2
  run -0 "$NBDIMG" snapshot -l vm.qcow2
  [[ ${lines[2]} == "1         vm                192 KiB"* ]]
  poke vm.qcow2 24 0000000040000000
  qemu-io -c 'read -q -P 5 512M 192k' vm.qcow2
}

@test "the reason is told, with what to do" {
  make_images
  expect_error 1 "refcount_bits=1 (amend can widen it)" \
    "$NBDIMG" snapshot -c x one.qcow2
  qemu-img check -q one.qcow2
  expect_error 1 "external data file" "$NBDIMG" snapshot -c x ext.qcow2
  expect_error 1 "r.img: the format raw has no internal snapshots" \
    "$NBDIMG" snapshot -f raw -c x r.img
  expect_error 1 "a snapshot's name may have 255 bytes, this one has 300" \
    "$NBDIMG" snapshot -c "$(printf 'n%.0s' {1..300})" a.qcow2
  poke a.qcow2 79 02
  expect_error 1 "marked corrupt" "$NBDIMG" snapshot -c x a.qcow2
}

@test "a damaged snapshot is refused, and nothing is changed" {
  local at l1
  make_images
  "$NBDIMG" snapshot -c s a.qcow2
  qemu-io -c 'write -q -P 2 0 1M' a.qcow2
  at=$((16#$(peek a.qcow2 64 8)))
  l1=$((16#$(peek a.qcow2 $at 8)))
  # two L1 entries for one L2 table; one behind the end; the refcount table
  for entry in 0000000000fff000 0000000fff000000 0000000000010000; do
    cp a.qcow2 bad.qcow2
    poke bad.qcow2 $l1 $entry
    cp bad.qcow2 was.qcow2
    run -1 "$NBDIMG" snapshot -d s bad.qcow2
    run -1 "$NBDIMG" snapshot -a s bad.qcow2
    cmp bad.qcow2 was.qcow2
  done
  cp a.qcow2 bad.qcow2
  poke bad.qcow2 $((at + 8)) 10000000
  run -1 "$NBDIMG" snapshot -d s bad.qcow2
  # refcounts that do not know of the snapshot: what the disk uses would be freed
  cp a.qcow2 bad.qcow2
  "$NBDIMG" snapshot -a s bad.qcow2
  block=$((16#$(peek bad.qcow2 $((16#$(peek bad.qcow2 48 8))) 8)))
  for i in {5..30}; do
    [ "$(peek bad.qcow2 $((block + 2 * i)) 2)" != 0002 ] ||
      poke bad.qcow2 $((block + 2 * i)) 0001
  done
  cp bad.qcow2 was.qcow2
  expect_error 1 "would become free" "$NBDIMG" snapshot -d s bad.qcow2
  cmp bad.qcow2 was.qcow2
}

@test "space of a deleted snapshot goes back to the file system" {
  local before
  make_images
  "$NBDIMG" snapshot -c s a.qcow2
  qemu-io -c 'write -q -P 2 0 1M' a.qcow2
  before=$(stat -c %b a.qcow2)
  "$NBDIMG" snapshot -d s a.qcow2
  [ $(($(stat -c %b a.qcow2) + 2000)) -le "$before" ]
  qemu-img check -q a.qcow2
}

@test "an image that is being written to is left alone" {
  make_images
  start_nbdkit file=a.qcow2
  run qemu-io -f raw -c 'write 0 512' "$URI"
  expect_error 1 lock "$NBDIMG" snapshot -c x a.qcow2
  stop_server
  "$NBDIMG" snapshot -c x a.qcow2
}

@test "zeroes that a snapshot shares, at the end of the disk, can be written" {
  # With subclusters; the cluster is copied, and no byte of it but the first
  # ones has to be in the file.
  qemu-img create -q -f qcow2 -o extended_l2=on x.qcow2 776k
  "$NBDIMG" io -c 'write -q -P 5 0 500k' -c 'write -q -z 508416 286208' x.qcow2
  "$NBDIMG" snapshot -c s x.qcow2
  "$NBDIMG" io -c 'write -q -z 768k 2560' x.qcow2
  "$NBDIMG" io -r -c 'read -q -P 0 508416 286208' x.qcow2 >out
  [ ! -s out ]
  qemu-io -r -c 'read -q -P 0 508416 286208' x.qcow2 >out
  [ ! -s out ]
  qemu-img check -q x.qcow2
}
