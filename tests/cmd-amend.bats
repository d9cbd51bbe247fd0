#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck disable=SC2154,SC2034

# nbdimg amend, beside qemu-img.

load lib
load peer

make_images () {
  qemu-img create -q -f qcow2 base.qcow2 4M
  qemu-io -c 'write -q -P 9 0 4M' base.qcow2
  qemu-img create -q -f qcow2 a.qcow2 4M
  qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=8 narrow.qcow2 4M
  qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 4M
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
  qemu-img create -q -f qcow2 -o data_file=d.raw ext.qcow2 2M
  qemu-img create -q -f qcow2 -o data_file=e.raw,data_file_raw=on raw.qcow2 2M
  qemu-img create -q -f qcow2 -o extended_l2=on x.qcow2 2M
  qemu-img create -q r.img 1M
  local f
  for f in a narrow v2 over; do
    qemu-io -c 'write -q -P 1 0 1M' -c 'write -q -z 1M 512k' \
      -c 'write -q -z -u 2M 512k' $f.qcow2
    qemu-img snapshot -c s $f.qcow2
    qemu-io -c 'write -q -P 2 512k 1M' -c 'write -q -z 0 100k' $f.qcow2
  done
}

twin () {
  local theirs=(qemu-img amend "$@") ours=("$NBDIMG" amend "$@")
  peer_run theirs ours
  peer_same
}

# What snapshot "s" of ours/FILE holds, if it is there, into FILE2.
snapshot_content () {
  "$NBDIMG" convert -l s -O raw "ours/$1" "$2" 2>/dev/null || rm -f "$2"
}

# What info says of the format, and the disk, are the same, and our snapshot is
# what it was at first.
same () {
  local side
  [ -e "$1.first" ] || snapshot_content "$1" "$1.first"
  (cd ours && qemu-img check -q "$1")
  for side in theirs ours; do
    (cd $side && qemu-img info --output=json "$1" |
      jq -S '."format-specific".data, ."virtual-size"') >$side.json
    (cd $side && qemu-img convert -O raw "$1" ../$side.raw)
  done
  diff theirs.json ours.json
  cmp theirs.raw ours.raw
  snapshot_content "$1" snapshot.raw
  [ ! -e "$1.first" ] || cmp "$1.first" snapshot.raw
}

@test "versions, widths and flags change as with qemu-img" {
  local f
  make_twins make_images
  for f in a.qcow2 over.qcow2 narrow.qcow2 v2.qcow2; do
    same $f
    [ -s $f.first ]
  done
  for f in a.qcow2 over.qcow2; do
    twin -o compat=0.10 $f
    same $f
    twin -o compat=v3 $f
    same $f
    twin -o lazy_refcounts=on $f
    same $f
    twin -o refcount_bits=64 $f
    same $f
    twin -o refcount_bits=16,lazy_refcounts=off $f
    same $f
    twin -o size=6M $f
    same $f
    twin -o size=4M $f
    twin -q -t none -o compat=0.10 $f
    same $f
  done
  twin -o compat=0.10,refcount_bits=16 narrow.qcow2
  same narrow.qcow2
  twin --image-opts -o compat=1.1,refcount_bits=32 \
    driver=qcow2,file.filename=narrow.qcow2
  same narrow.qcow2
  twin -f qcow2 --force -o compat=1.1 v2.qcow2
  same v2.qcow2
  twin -o refcount_bits=4 v2.qcow2
  same v2.qcow2
  twin -o size=0 v2.qcow2
  twin -o data_file_raw=off raw.qcow2
  same raw.qcow2
  (cd theirs && cp d.raw new-name.raw) && (cd ours && cp d.raw new-name.raw)
  twin -o data_file=new-name.raw ext.qcow2
  same ext.qcow2
  twin -o data_file=d.raw ext.qcow2
  same ext.qcow2
}

@test "what can go wrong is said as qemu-img says it" {
  make_twins make_images
  twin a.qcow2
  twin -o compat=1.1
  twin -o compat=1.1 a.qcow2 more
  twin -o
  twin -x
  twin -o '' a.qcow2
  twin -o nosuch=1 a.qcow2
  twin -o cluster_size=4k a.qcow2
  twin -o preallocation=full a.qcow2
  twin -o extended_l2=on a.qcow2
  twin -o compression_type=zstd a.qcow2
  twin -o encryption=on a.qcow2
  twin -o encrypt.state=active a.qcow2
  twin -o compat=foo a.qcow2
  twin -o lazy_refcounts=maybe a.qcow2
  twin -o lazy_refcounts=on v2.qcow2
  twin -o refcount_bits=64 v2.qcow2
  twin -o refcount_bits=3 a.qcow2
  twin -o refcount_bits=128 a.qcow2
  twin -o compat=0.10 narrow.qcow2
  twin -o compat=0.10,refcount_bits=32 a.qcow2
  twin -o backing_file=base.qcow2 over.qcow2
  twin -o backing_fmt=qcow2 over.qcow2
  twin -o backing_file=base.qcow2,backing_fmt=qcow2 a.qcow2
  twin -o data_file=x a.qcow2
  twin -o data_file_raw=on a.qcow2
  twin -o data_file_raw=on ext.qcow2
  twin -o compat=0.10 ext.qcow2
  twin -o compat=0.10 x.qcow2
  twin -o size=1000 a.qcow2
  twin -f raw -o size=2M r.img
  twin -o compat=1.1 r.img
  twin -f raw --image-opts -o compat=1.1 driver=qcow2,file.filename=a.qcow2
  twin -t foo -o compat=1.1 a.qcow2
  twin -o compat=1.1 nosuch
  twin -o help a.qcow2
  twin -f qcow2 -o help
  twin -f raw -o help
  twin -o compat=1.1,help a.qcow2
  # a snapshot with another size
  (cd theirs && qemu-img resize -q a.qcow2 5M && cp a.qcow2 ../ours)
  twin -o compat=0.10 a.qcow2
  same a.qcow2
}

@test "refcounts that would not fit are refused before anything changes" {
  local old
  make_images
  for i in 1 2 3; do
    qemu-img snapshot -c s$i a.qcow2
  done
  cp a.qcow2 was.qcow2
  expect_error 1 "Cannot decrease refcount entry width to 2 bits: Cluster at" \
    "$NBDIMG" amend -o refcount_bits=2 a.qcow2
  cmp a.qcow2 was.qcow2
  "$NBDIMG" amend -o refcount_bits=4 a.qcow2
  qemu-img check -q a.qcow2
  qemu-img compare -q a.qcow2 was.qcow2
}

@test "nothing that version 2 cannot hold is lost" {
  qemu-img create -q -f qcow2 bitmap.qcow2 1M
  qemu-img bitmap --add bitmap.qcow2 b
  run -1 "$NBDIMG" amend -o compat=0.10 bitmap.qcow2
  [[ $output == *bitmaps* ]]
  [ "$(qemu-img info --output=json bitmap.qcow2 |
    jq -r '."format-specific".data.bitmaps[0].name')" = b ]
  need_zstd
  random_image r.raw 1M 3
  "$NBDIMG" convert -c -O qcow2 -o compression_type=zstd r.raw z.qcow2
  expect_error 1 "compression_type=zstd: its compressed clusters could not" \
    "$NBDIMG" amend -o compat=0.10 z.qcow2
  "$NBDIMG" compare -q r.raw z.qcow2
}

@test "a large disk of zeroes becomes version 2 and takes no space" {
  qemu-img create -q -f qcow2 base.qcow2 20G
  qemu-io -c 'write -q -P 7 0 64k' -c 'write -q -P 7 19G 64k' base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 o.qcow2
  qemu-io -c 'write -q -z 0 1G' -c 'write -q -z 18G 1G' \
    -c 'write -q -z 19G 1G' o.qcow2
  "$NBDIMG" amend -o compat=0.10 o.qcow2
  [ "$(du -k o.qcow2 | cut -f1)" -lt 10000 ]
  qemu-img check -q o.qcow2
  qemu-io -c 'read -q -P 0 0 128k' -c 'read -q -P 0 19G 128k' o.qcow2
  # what is written afterwards stays alone
  qemu-io -c 'write -q -P 5 64k 64k' -c 'read -q -P 0 0 64k' \
    -c 'read -q -P 0 128k 64k' o.qcow2
  "$NBDIMG" snapshot -c s o.qcow2
  qemu-img check -q o.qcow2
  "$NBDIMG" amend -o compat=1.1 o.qcow2
  qemu-img check -q o.qcow2
}

@test "unknown header extensions stay, and a corrupt image is left alone" {
  make_images
  # behind the extensions that are there: the end mark becomes another one
  end=$((16#$(peek v2.qcow2 72 4) == 0 ? 72 : 0))
  [ $end = 72 ]
  poke v2.qcow2 72 1234567800000003414243000000000000000000000000
  "$NBDIMG" amend -o compat=1.1,refcount_bits=32 v2.qcow2
  [ "$(peek v2.qcow2 112 16)" = 12345678000000034142430000000000 ]
  qemu-img check -q v2.qcow2
  "$NBDIMG" amend -o compat=0.10,refcount_bits=16 v2.qcow2
  [ "$(peek v2.qcow2 72 16)" = 12345678000000034142430000000000 ]
  qemu-img check -q v2.qcow2
  poke a.qcow2 79 02
  expect_error 1 "marked corrupt" "$NBDIMG" amend -o lazy_refcounts=on a.qcow2
}

@test "a refcount table that leads nowhere is repaired first, not amended" {
  local entry
  qemu-img create -q -f qcow2 good.qcow2 64M
  qemu-io -c 'write -q 0 1M' good.qcow2
  for entry in 0000000000000001 0000000000090200 7fffffffffff0000 \
    0000000100000000; do
    cp good.qcow2 bad.qcow2
    poke bad.qcow2 65544 $entry
    cp bad.qcow2 before
    expect_error 1 "entry 1 of the refcount table is not valid" \
      "$NBDIMG" amend -o refcount_bits=64 bad.qcow2
    cmp before bad.qcow2
  done
  "$NBDIMG" check -q -r all bad.qcow2
  "$NBDIMG" amend -o refcount_bits=64 bad.qcow2
  qemu-img check -q bad.qcow2
}

@test "progress, and the long names of options" {
  make_images
  run -0 "$NBDIMG" amend -p -o compat=0.10 a.qcow2
  [[ $output == *'(0.00/100%)'*'(100.00/100%)'* ]]
  run -0 "$NBDIMG" amend -q -p --options=compat=1.1 a.qcow2
  [ -z "$output" ]
  run -0 --separate-stderr "$NBDIMG" amend --progress=json \
    -o refcount_bits=8 a.qcow2
  [[ $output$stderr == *amend*100* ]]
}

@test "a snapshot keeps what it has, where qemu-img 7.2 overwrites it" {
  # A cluster that reads as zeroes now, and keeps its place, which a snapshot has
  # data in.
  make_images
  "$NBDIMG" convert -l s -O raw a.qcow2 was.raw
  "$NBDIMG" amend -o compat=0.10 a.qcow2
  "$NBDIMG" convert -l s -O raw a.qcow2 now.raw
  cmp was.raw now.raw
  qemu-img check -q a.qcow2
}
