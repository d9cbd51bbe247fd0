# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg rebase beside qemu-img, and the disk that must stay the same.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io jq
}

# Two disks that differ in the middle, and an overlay of the first.
images () {
  qemu-img create -q -f qcow2 old.qcow2 3M
  qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' old.qcow2 >/dev/null
  qemu-img create -q -f qcow2 new.qcow2 3M
  qemu-io -c 'write -P 1 0 1M' -c 'write -P 3 1500k 1548k' new.qcow2 >/dev/null
  qemu-img create -q -f qcow2 -b old.qcow2 -F qcow2 top.qcow2
  qemu-io -c 'write -P 4 100k 300k' -c 'write -z 2M 100k' top.qcow2 >/dev/null
}

backing_of () {
  qemu-img info -U --output=json "$1" |
    jq -r '."backing-filename" // "none", ."backing-filename-format" // "none"' |
    xargs
}

own () {
  qemu-img map --output=json "$1" |
    jq '[.[] | select(.depth == 0 and .present) | .length] | add // 0'
}

# rebase_keeps IMAGE ARGUMENT...: the disk is the same, the image clean
rebase_keeps () {
  qemu-img convert -O raw "$1" want.raw
  "$NBDIMG" rebase "${@:2}" "$1" || fail "rebase ${*:2} $1"
  qemu-img compare -q "$1" want.raw || fail "another disk: ${*:2}"
  qemu-img check -q "$1" || fail "damaged: ${*:2}"
}

@test "rebase: messages, exit codes and images as qemu-img's" {
  make_twins images
  twin_img rebase
  twin_img rebase top.qcow2
  twin_img rebase -F qcow2 top.qcow2
  twin_img rebase -b new.qcow2 -F qcow2
  twin_img rebase -b new.qcow2 top.qcow2
  twin_img rebase -b new.qcow2 -F foo top.qcow2
  twin_img rebase -b new.qcow2 -F qcow2 -t foo top.qcow2
  twin_img rebase -b new.qcow2 -F qcow2 -T foo top.qcow2
  twin_img rebase -u -b nosuch top.qcow2
  twin_img rebase -x top.qcow2
  twin_img rebase --image-opts -f qcow2 -b new.qcow2 driver=qcow2
  twin_img rebase -b nosuch -F qcow2 top.qcow2
  twin_img_output rebase -b new.qcow2 -F qcow2 nosuch
  twin_img_output rebase -b top.qcow2 -F qcow2 top.qcow2
  twin_img_output rebase -U -b new.qcow2 -F qcow2 top.qcow2
  twin_img_output rebase -u -b "$(printf 'x%.0s' {1..1100})" -F qcow2 top.qcow2
  same_images top.qcow2
  twin_img rebase -u -b nosuch -F qcow2 top.qcow2
  for f in theirs ours; do
    [ "$(cd $f && backing_of top.qcow2)" = "nosuch qcow2" ]
  done
  twin_img rebase -u -b old.qcow2 -F qcow2 top.qcow2
  twin_img rebase -b new.qcow2 -F qcow2 top.qcow2
  same_images top.qcow2 new.qcow2 old.qcow2
  twin_img rebase -q -f qcow2 -b old.qcow2 -F qcow2 top.qcow2
  twin_img rebase -b '' top.qcow2
  same_images top.qcow2
  twin_img rebase -u top.qcow2
  for f in theirs ours; do
    [ "$(cd $f && backing_of top.qcow2)" = "none none" ]
    qemu-img create -q -f raw $f/r.raw 1M
  done
  twin_img_output rebase -f raw -u -b new.qcow2 -F qcow2 r.raw
}

@test "rebase: only what differs is copied, to and fro" {
  images
  rebase_keeps top.qcow2 -b new.qcow2 -F qcow2
  [ "$(backing_of top.qcow2)" = "new.qcow2 qcow2" ]
  # Own before: 300k in clusters and the zeroes; copied: from 1M on.
  [ "$(own top.qcow2)" -lt $((3 * 1024 * 1024 - 500 * 1024)) ]
  rebase_keeps top.qcow2 -b old.qcow2 -F qcow2
  rebase_keeps top.qcow2 -b ''
  [ "$(backing_of top.qcow2)" = "none none" ]
  rebase_keeps top.qcow2 -b new.qcow2 -F qcow2
  rebase_keeps top.qcow2 -b old.qcow2 -F qcow2 -t none -T none
}

@test "rebase: the same content under another name copies nothing" {
  images
  cp old.qcow2 copy.qcow2
  qemu-img convert -O raw old.qcow2 copy.raw
  before=$(own top.qcow2)
  rebase_keeps top.qcow2 -b copy.qcow2 -F qcow2
  [ "$(own top.qcow2)" = "$before" ]
  rebase_keeps top.qcow2 -b copy.raw -F raw
  [ "$(own top.qcow2)" = "$before" ]
  qemu-img create -q -f qcow2 -b old.qcow2 -F qcow2 mid.qcow2
  qemu-img rebase -u -b mid.qcow2 -F qcow2 top.qcow2
  rebase_keeps top.qcow2 -b old.qcow2 -F qcow2
  [ "$(own top.qcow2)" = "$before" ]
}

@test "rebase: every kind of image, backing files of every size" {
  local options old new
  head -c 4M /dev/urandom >random
  for options in compat=0.10 compat=1.1 extended_l2=on cluster_size=512 \
      cluster_size=2M lazy_refcounts=on data_file=ext refcount_bits=1; do
    for sizes in "3M 3M" "1M 3M" "3M 1M" "3333k 1111k" "4M 2M"; do
      read -r old new <<<"$sizes"
      rm -f old new top ext
      qemu-img create -q -f qcow2 old "$old"
      qemu-io -c 'write -s random 0 500k' -c 'write -P 5 700k 324k' old \
        >/dev/null
      qemu-img create -q -f qcow2 -o cluster_size=4k new "$new"
      qemu-io -c 'write -s random 0 300k' -c 'write -P 6 300k 724k' new \
        >/dev/null
      [ "$new" != 3M ] || qemu-io -c 'write -P 7 1M 2M' new >/dev/null
      qemu-img create -q -f qcow2 -o $options -b old -F qcow2 top 3000k
      qemu-io -c 'write -P 8 222k 33k' -c 'discard 640k 64k' top >/dev/null
      rebase_keeps top -b new -F qcow2
      rebase_keeps top -b old -F qcow2
      rebase_keeps top -b ''
      rebase_keeps top -b new -F qcow2
    done
  done
}

@test "rebase -p shows its progress, and --progress=json for programs" {
  qemu-img create -q -f qcow2 one.qcow2 1M
  cp one.qcow2 two.qcow2
  qemu-img create -q -f qcow2 -b one.qcow2 -F qcow2 top.qcow2
  "$NBDIMG" rebase -p -F qcow2 -b two.qcow2 top.qcow2 >out
  tr '\r' '\n' <out | grep -x '    (100.00/100%)'
  "$NBDIMG" rebase --progress=json -F qcow2 -b one.qcow2 top.qcow2 >out 2>&1
  grep -m1 '^{' out | jq -e .
}

@test "rebase -c compresses what it copies" {
  images
  rebase_keeps top.qcow2 -c -b new.qcow2 -F qcow2
  qemu-img check --output=json top.qcow2 | jq -e '."compressed-clusters" > 5'
  images
  qemu-img create -q -f qcow2 -o extended_l2=on -b old.qcow2 -F qcow2 sub.qcow2
  qemu-io -c 'write -P 9 1100k 4k' sub.qcow2 >/dev/null
  rebase_keeps sub.qcow2 -c -b new.qcow2 -F qcow2
  qemu-img check --output=json sub.qcow2 | jq -e '."compressed-clusters" > 5'
  qemu-img create -q -f qcow2 -o data_file=ext -b old.qcow2 -F qcow2 e.qcow2
  expect_error 1 "leave out -c" "$NBDIMG" rebase -c -b new.qcow2 -F qcow2 e.qcow2
  qemu-img compare -q e.qcow2 old.qcow2
}

@test "rebase: relative names are those of the image's folder" {
  mkdir sub
  (cd sub && images)
  rebase_keeps sub/top.qcow2 -b new.qcow2 -F qcow2
  [ "$(backing_of sub/top.qcow2)" = "new.qcow2 qcow2" ]
  expect_error 1 "sub/old2" "$NBDIMG" rebase -b old2 -F qcow2 sub/top.qcow2
}

@test "rebase: a chain that cannot be read is refused before it writes" {
  images
  before=$(sha256sum top.qcow2)
  mv old.qcow2 away
  expect_error 1 old.qcow2 "$NBDIMG" rebase -b new.qcow2 -F qcow2 top.qcow2
  mv away old.qcow2
  printf 'QFI\xfb\0\0\0\1' >broken
  expect_error 1 broken "$NBDIMG" rebase -b broken -F qcow2 top.qcow2
  [ "$(sha256sum top.qcow2)" = "$before" ]
  # Without a look at either, the name is changed.
  rm old.qcow2
  "$NBDIMG" rebase -u -b new.qcow2 -F qcow2 top.qcow2
  [ "$(backing_of top.qcow2)" = "new.qcow2 qcow2" ]
}

@test "rebase: a backing file behind a server" {
  need nbdkit
  images
  qemu-img convert -O raw new.qcow2 new.raw
  start_server -r file new.raw
  rebase_keeps top.qcow2 -b "$URI" -F raw
  [ "$(backing_of top.qcow2)" = "$URI raw" ]
}

@test "rebase: a failing request, whichever it is, keeps the disk" {
  need_test_storage
  local k failed=0 status
  small () {
    qemu-img create -q -f qcow2 -o cluster_size=4k old 128k
    qemu-io -c 'write -P 1 0 128k' old >/dev/null
    qemu-img create -q -f qcow2 -o cluster_size=4k new 128k
    qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 100k 8k' new >/dev/null
    qemu-img create -q -f qcow2 -o cluster_size=4k -b old -F qcow2 top 128k
    qemu-io -c 'write -P 3 6k 10k' top >/dev/null
  }
  small
  qemu-img convert -O raw top want.raw
  for errno in EIO ENOSPC; do
    for ((k = 1; ; ++k)); do
      small
      status=0
      NBDIMG_TEST_STORAGE="fault:scope=process,index=$k,errno=$errno" \
        "$NBDIMG" rebase -b new -F qcow2 top 2>err || status=$?
      qemu-img compare -q top want.raw || fail "request $k: another disk"
      qemu-img check -q top || [ $? = 3 ] || fail "request $k: damaged"
      [ $status != 0 ] || break
      [ -s err ] || fail "request $k: no message"
      failed=$((failed + 1))
    done
  done
  [ $failed -gt 20 ] || fail "only $failed requests failed"
}

@test "rebase: killed at any moment the disk is the same" {
  images
  qemu-img convert -O raw top.qcow2 want.raw
  cp top.qcow2 safe
  local i killed=0
  for ((i = 0; i < 20; ++i)); do
    cp safe top.qcow2
    start "$NBDIMG" rebase -b new.qcow2 -F qcow2 top.qcow2
    # At a moment of its own each time, for as long as a rebase takes.
    sleep 0.0$((RANDOM % 3))
    kill -9 "$STARTED_PID" 2>/dev/null || :
    wait "$STARTED_PID" 2>/dev/null || killed=$((killed + 1))
    qemu-img compare -q top.qcow2 want.raw || fail "another disk"
    qemu-img check -q top.qcow2 || [ $? = 3 ] || fail "damaged"
  done
  [ $killed -gt 0 ]
}

@test "rebase -c takes a cluster of which the image has some subclusters" {
  qemu-img create -q -f raw base.raw 1M
  qemu-io -f raw -c 'write -q -P 7 0 1M' base.raw
  qemu-img create -q -f qcow2 -o extended_l2=on -b base.raw -F raw o.qcow2
  qemu-io -c 'write -q -z -u 100k 28k' -c 'write -q -P 9 600k 8k' o.qcow2
  "$NBDIMG" rebase -c -b "" o.qcow2
  qemu-img check -q o.qcow2
  qemu-io -c 'read -q -P 7 0 100k' -c 'read -q -P 0 100k 28k' \
    -c 'read -q -P 7 128k 472k' -c 'read -q -P 9 600k 8k' \
    -c 'read -q -P 7 608k 416k' o.qcow2 >out
  [ ! -s out ]
}
