#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck disable=SC2154,SC2034

# nbdimg resize, beside qemu-img.

load lib
load peer

make_images () {
  qemu-img create -q -f qcow2 a.qcow2 8M
  qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 3M
  qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k x.qcow2 4M
  qemu-img create -q -f qcow2 -o data_file=d.raw ext.qcow2 2M
  qemu-img create -q -f qcow2 -o data_file=e.raw,data_file_raw=on raw.qcow2 2M
  qemu-img create -q r.img 3M
  local f
  for f in a.qcow2 v2.qcow2 x.qcow2 ext.qcow2 raw.qcow2; do
    qemu-io -c 'write -q -P 1 0 1300k' -c 'write -q -P 2 1900k 90k' $f
  done
  qemu-io -f raw -c 'write -q -P 1 0 1300k' r.img
}

# The twins hold the same; their data files have relative names.
same () {
  local side
  for side in theirs ours; do
    (cd $side && qemu-img convert -O raw "$1" ../$side.raw) || return
    (cd $side && qemu-img check -q "$1" 2>/dev/null) || [ $? = 63 ] || return
  done
  cmp theirs.raw ours.raw
}

virtual_size () {
  qemu-img info --output=json "$1" | jq '."virtual-size"'
}

twin () {
  local theirs=(qemu-img resize "$@") ours=("$NBDIMG" resize "$@")
  peer_run theirs ours
  peer_same
}

@test "every kind of image grows and shrinks as with qemu-img" {
  local f s
  make_twins make_images
  for f in a.qcow2 v2.qcow2 x.qcow2 ext.qcow2 raw.qcow2 r.img; do
    twin $f 20M
    twin $f +1M
    twin --shrink $f -2M
    same $f
    twin --shrink $f 1310720
    twin --shrink $f 1M
    twin $f +1536
    twin -q $f 3M
    same $f
    for s in ours theirs; do
      [ "$(virtual_size $s/$f)" = 3145728 ]
    done
  done
  for f in d.raw e.raw r.img; do
    [ "$(stat -c %s theirs/$f)" = "$(stat -c %s ours/$f)" ]
    cmp theirs/$f ours/$f
  done
}

@test "what can go wrong is said as qemu-img says it" {
  local f
  make_twins make_images
  for f in a.qcow2 r.img; do
    twin $f 1M
    twin $f -1M
    twin $f -40M
    twin $f 0
    twin --shrink $f 0
    twin --preallocation=full $f -1M
    twin --shrink --preallocation=falloc $f 1M
    twin --preallocation=foo $f +1M
    twin $f foo
    twin $f +
    twin $f ''
    twin $f 1M 2M
    twin $f +16E
    twin $f -- +0
    twin $f +0x1000
  done
  twin
  twin a.qcow2
  twin -q
  twin nosuch +1M
  twin +1M a.qcow2
  twin a.qcow2 -q
  twin a.qcow2 9000001
  twin -U a.qcow2 +1M
  twin -f qcow2 r.img 5M
  twin -f raw --image-opts driver=qcow2,file.filename=a.qcow2 +1M
  twin --image-opts driver=qcow2,file.filename=a.qcow2 +1M
  twin --preallocation=metadata r.img +1M
  (cd theirs && qemu-img snapshot -c s v2.qcow2 && qemu-img snapshot -c s a.qcow2)
  cp theirs/v2.qcow2 theirs/a.qcow2 ours
  twin v2.qcow2 8M
  twin --shrink v2.qcow2 1M
  twin --shrink a.qcow2 1M
  twin a.qcow2 10M
  for f in a.qcow2 v2.qcow2 r.img; do
    same $f
  done
}

@test "--preallocation: space is reserved, and reads as zeroes" {
  local f mode side size before
  make_twins make_images
  for f in a.qcow2 v2.qcow2 ext.qcow2 raw.qcow2 r.img; do
    for mode in off metadata falloc full; do
      [ $f$mode != r.imgmetadata ] || continue
      twin --preallocation=$mode $f +1M
      same $f
    done
  done
  for f in a.qcow2 v2.qcow2; do
    for side in theirs ours; do
      qemu-img map --output=json $side/$f |
        jq -c '.[] | [.start, .length, .zero, .data]' >$side.map
    done
    # where clusters continue each other is not the same, what they are is
    diff <(jq -s 'map(.[2:]) | unique' theirs.map) \
      <(jq -s 'map(.[2:]) | unique' ours.map)
    [ "$(jq -s 'map(select(.[3])) | map(.[1]) | add' theirs.map)" = \
      "$(jq -s 'map(select(.[3])) | map(.[1]) | add' ours.map)" ]
  done
  # what is promised is on the medium
  for f in a.qcow2 r.img ext.qcow2; do
    for mode in off falloc full; do
      before=$(du -k -c ours/${f/ext.qcow2/d.raw} | tail -1 | cut -f1)
      (cd ours && "$NBDIMG" resize -q --preallocation=$mode $f +1M)
      size=$(($(du -k -c ours/${f/ext.qcow2/d.raw} | tail -1 | cut -f1) - before))
      case $mode in
      off) [ $size -lt 200 ] ;;
      *) [ $size -ge 1024 ] ;;
      esac
    done
  done
}

@test "what a longer backing file has does not show in what is new" {
  local mode v
  qemu-img create -q -f qcow2 base.qcow2 4M
  qemu-io -c 'write -q -P 9 0 4M' base.qcow2
  for v in 1.1 0.10; do
    for mode in off metadata falloc full; do
      qemu-img create -q -f qcow2 -o compat=$v -b base.qcow2 -F qcow2 o.qcow2 2M
      if [ $v$mode = 0.10off ]; then
        expect_error 1 "unless with preallocation" \
          "$NBDIMG" resize o.qcow2 8M
        [ "$(virtual_size o.qcow2)" = 2097152 ]
      else
        "$NBDIMG" resize -q --preallocation=$mode o.qcow2 8M
        qemu-io -c 'read -q -P 0 2M 6M' o.qcow2
      fi
      qemu-io -c 'read -q -P 9 0 2M' o.qcow2
      qemu-img check -q o.qcow2
    done
  done
  # the other way round: the tail comes back as zeroes, in both programs
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 o.qcow2
  qemu-io -c 'write -q -P 5 1M 3M' o.qcow2
  "$NBDIMG" resize -q --shrink o.qcow2 1300k
  "$NBDIMG" resize -q o.qcow2 4M
  qemu-io -c 'read -q -P 0 1300k 2796k' -c 'read -q -P 5 1M 276k' o.qcow2
  qemu-img check -q o.qcow2
}

@test "snapshots keep their size and what they hold" {
  local old
  make_images
  "$NBDIMG" snapshot -c s a.qcow2
  old=$("$NBDIMG" convert -l s -O raw a.qcow2 s.raw && md5sum <s.raw)
  "$NBDIMG" resize -q --shrink a.qcow2 100k
  qemu-img check -q a.qcow2
  [ "$("$NBDIMG" convert -l s -O raw a.qcow2 s.raw && md5sum <s.raw)" = "$old" ]
  "$NBDIMG" resize -q a.qcow2 2G
  qemu-io -c 'read -q -P 0 100k 2M' a.qcow2
  qemu-img check -q a.qcow2
  "$NBDIMG" snapshot -a s a.qcow2
  [ "$(virtual_size a.qcow2)" = 8388608 ]
  qemu-img check -q a.qcow2
}

@test "a disk made smaller gives its space back, and its file ends" {
  qemu-img create -q -f qcow2 -o preallocation=full,cluster_size=4k big.qcow2 40M
  "$NBDIMG" resize -q --shrink big.qcow2 1M
  [ "$(stat -c %s big.qcow2)" -lt 3000000 ]
  [ "$(stat -c %b big.qcow2)" -lt 6000 ]
  qemu-img check -q big.qcow2
  "$NBDIMG" check -q big.qcow2
  qemu-img resize -q big.qcow2 60M
  qemu-io -c 'write -q -P 3 0 60M' big.qcow2
  qemu-img check -q big.qcow2
}

@test "a device keeps its size, and a file that is written to too" {
  make_images
  start_nbdkit --filter=offset memory 4M offset=0 range=2M 2>/dev/null ||
    start_server memory 4M
  expect_error 1 "Cannot resize device files" "$NBDIMG" resize -f raw "$URI" 8M
  stop_server
  start_nbdkit file=a.qcow2
  run qemu-io -f raw -c 'write 0 512' "$URI"
  expect_error 1 lock "$NBDIMG" resize a.qcow2 +1M
  stop_server
}

@test "what could not be made durable is not said to be done" {
  need_test_storage
  make_images
  # The last flush is that of closing the image.
  local total
  NBDIMG_TEST_STORAGE="fault:op=flush,countfile=total" \
    "$NBDIMG" resize a.qcow2 +1M
  total=$(cat total)
  run --separate-stderr env \
    NBDIMG_TEST_STORAGE="fault:op=flush,index=$total" \
    "$NBDIMG" resize a.qcow2 +1M
  [ "$status" = 1 ]
  [ -z "$output" ]
  [[ $stderr == *"Input/output error"* ]]
}

@test "what failed is told with the name of its file" {
  need_test_storage
  random_image flat 512k 4
  qemu-img convert -f raw -O vdi flat a.vdi
  NBDIMG_TEST_STORAGE="fault:op=zero,index=1" \
    expect_error 1 "a.vdi: zero at" "$NBDIMG" resize a.vdi 3M
}

@test "a full disk: the old size stays, and nothing is damaged" {
  need_test_storage
  make_images
  cp a.qcow2 was.qcow2
  for op in write zero; do
    for n in 1 2 3; do
      run env NBDIMG_TEST_STORAGE="fault:op=$op,index=$n,count=0,errno=ENOSPC" \
        "$NBDIMG" resize --preallocation=full a.qcow2 600M
      [ "$status" = 1 ] || break
      [[ $output == *"No space left"* ]]
      [ "$(virtual_size a.qcow2)" = 8388608 ]
      qemu-img check a.qcow2 || [ $? = 3 ]
      qemu-img compare -q a.qcow2 was.qcow2
    done
  done
}

@test "a smaller disk costs no data that refcounts do not know of" {
  local entry
  # The tail of the disk lies in front; what lies behind it has its refcounts
  # in the last block, which the table does not lead to.
  qemu-img create -q -f qcow2 -o cluster_size=512 good.qcow2 1M
  qemu-io -d unmap -c 'write -q -P 7 512k 512k' -c 'write -q -P 7 0 512k' \
    -c 'discard -q 512k 64k' good.qcow2
  for entry in 0000000000400000 0000000000000000 0000000000000001; do
    cp good.qcow2 bad.qcow2
    poke bad.qcow2 $((512 + 8 * 8)) $entry
    "$NBDIMG" resize -q --shrink bad.qcow2 1000k 2>err
    grep -q 'not cut' err
    "$NBDIMG" check -q -r all bad.qcow2
    qemu-io -r -c 'read -q -P 7 0 512k' bad.qcow2 >out
    [ ! -s out ]
    qemu-img check -q bad.qcow2
  done
}
