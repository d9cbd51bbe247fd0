# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg commit beside qemu-img, and what it does to chains.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io jq
}

chain () {
  qemu-img create -q -f qcow2 base.qcow2 3M
  qemu-io -c 'write -P 1 0 3M' base.qcow2 >/dev/null
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 3M
  qemu-io -c 'write -P 2 1M 512k' -c 'write -z 100k 300k' mid.qcow2 >/dev/null
  qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 3M
  qemu-io -c 'write -P 3 1100k 100k' -c 'write -z 2M 128k' \
    -c 'write -P 4 0 5k' top.qcow2 >/dev/null
}

# own FILE: the bytes that the image itself has, zeroes too
own () {
  qemu-img map --output=json "$1" |
    jq '[.[] | select(.depth == 0 and .present) | .length] | add // 0'
}

# content_is FILE RAW: what QEMU reads there, and its check is content
content_is () {
  qemu-img compare -q "$1" "$2" || fail "$1: another content"
  qemu-img check -q "$1" || [ $? = 63 ] || fail "$1 is damaged"
}

@test "commit: messages, exit codes and images as qemu-img's" {
  make_twins chain
  twin_img commit base.qcow2
  twin_img commit
  twin_img commit top.qcow2 mid.qcow2
  twin_img commit -b nosuch top.qcow2
  twin_img commit -b top.qcow2 top.qcow2
  twin_img commit -x top.qcow2
  twin_img commit -t foo top.qcow2
  twin_img commit -r 1x top.qcow2
  twin_img_output commit nosuch
  twin_img_output commit -f raw top.qcow2
  twin_img_output commit --image-opts -f qcow2 driver=qcow2,file.filename=top.qcow2
  twin_img commit top.qcow2
  same_images top.qcow2 mid.qcow2 base.qcow2
  twin_img commit -q top.qcow2
  twin_img commit -d mid.qcow2
  same_images top.qcow2 mid.qcow2 base.qcow2
  twin_img commit --image-opts driver=qcow2,file.filename=top.qcow2
}

@test "commit: options that change how, not what" {
  for options in "" "-f qcow2" "-t none" "-t writethrough" "-t unsafe" \
      "-t directsync" "-d" "-r 100M" "-q"; do
    make_twins chain
    # shellcheck disable=SC2086
    twin_img commit $options top.qcow2
    same_images top.qcow2 mid.qcow2 base.qcow2
  done
}

@test "commit -p shows its progress, and --progress=json for programs" {
  chain
  "$NBDIMG" commit -p top.qcow2 >out
  tr '\r' '\n' <out | grep -x '    (100.00/100%)'
  tr '\r' '\n' <out | grep -x 'Image committed.'
  "$NBDIMG" commit --progress=json mid.qcow2 >out 2>&1
  grep -m1 '^{' out | jq -e .
}

@test "commit: the image is empty afterwards, with -d it is as it was" {
  chain
  qemu-img convert -O raw top.qcow2 want.raw
  cp mid.qcow2 mid.before
  "$NBDIMG" commit -d top.qcow2
  [ "$(own top.qcow2)" != 0 ]
  content_is top.qcow2 want.raw
  content_is mid.qcow2 want.raw
  cp mid.before mid.qcow2
  "$NBDIMG" commit top.qcow2
  [ "$(own top.qcow2)" = 0 ]
  content_is top.qcow2 want.raw
  content_is mid.qcow2 want.raw
  [ "$(stat -c %b top.qcow2)" -lt 1000 ]
}

@test "commit -b: all layers above go into the base, by any name of it" {
  for name in base.qcow2 ./base.qcow2 link "$PWD/base.qcow2"; do
    chain
    ln -sf base.qcow2 link
    qemu-img convert -O raw top.qcow2 want.raw
    before=$(sha256sum mid.qcow2)
    "$NBDIMG" commit -b "$name" top.qcow2
    content_is base.qcow2 want.raw
    content_is top.qcow2 want.raw
    [ "$(sha256sum mid.qcow2)" = "$before" ]
    [ "$(own top.qcow2)" != 0 ]
  done
}

@test "commit: sizes may differ; what a short layer hides stays hidden" {
  for sizes in "3M 1M 4M" "1M 3M 2M" "3M 1M 2M" "2M 2M 8M" "4M 2M 1M"; do
    read -r base mid top <<<"$sizes"
    for target in mid base; do
      rm -f ./*.qcow2
      qemu-img create -q -f qcow2 base.qcow2 "$base"
      qemu-io -c "write -P 1 0 $base" base.qcow2 >/dev/null
      qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 "$mid"
      qemu-io -c 'write -P 2 64k 192k' mid.qcow2 >/dev/null
      qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 "$top"
      qemu-io -c 'write -P 3 128k 64k' top.qcow2 >/dev/null
      qemu-img convert -O raw top.qcow2 want.raw
      "$NBDIMG" commit -b $target.qcow2 top.qcow2
      content_is top.qcow2 want.raw
      qemu-img check -q $target.qcow2
      qemu-img convert -O raw $target.qcow2 got.raw
      cmp -n "$(stat -c %s want.raw)" got.raw want.raw
    done
  done
}

@test "commit: every kind of layer, down into raw" {
  head -c 3M /dev/urandom >data
  for base in raw qcow2; do
    for options in compat=0.10 extended_l2=on cluster_size=512 \
        cluster_size=2M refcount_bits=1 lazy_refcounts=on; do
      rm -f base mid top
      qemu-img convert -f raw -O $base data base
      qemu-img create -q -f qcow2 -o $options -b base -F $base mid
      qemu-io -c 'write -P 2 1M 300k' -c 'write -z 64k 128k' \
        -c 'write -z 2000k 1000k' mid >/dev/null
      qemu-img create -q -f qcow2 -o $options -b mid -F qcow2 top 3333k
      qemu-io -c 'write -P 3 1111k 11k' -c 'write -z 2M 100k' top >/dev/null
      qemu-img convert -O raw top want.raw
      "$NBDIMG" commit -q top
      content_is top want.raw
      content_is mid want.raw
      "$NBDIMG" commit -q mid
      content_is top want.raw
      qemu-img compare -q -f raw -F $base want.raw base
    done
  done
}

@test "commit: compressed clusters, snapshots and data files stay right" {
  chain
  qemu-img convert -c -O qcow2 -o cluster_size=4k -B base.qcow2 -F qcow2 \
    mid.qcow2 packed.qcow2
  qemu-img snapshot -c s1 packed.qcow2
  qemu-img convert -O raw packed.qcow2 want.raw
  "$NBDIMG" commit packed.qcow2
  content_is packed.qcow2 want.raw
  content_is base.qcow2 want.raw
  qemu-img convert -O raw -l s1 packed.qcow2 s1.raw
  cmp s1.raw want.raw
  qemu-img create -q -f qcow2 -o data_file=data -b base.qcow2 -F qcow2 \
    ext.qcow2
  qemu-io -c 'write -P 9 0 1M' -c 'write -z 1M 64k' ext.qcow2 >/dev/null
  qemu-img convert -O raw ext.qcow2 want.raw
  "$NBDIMG" commit ext.qcow2
  content_is ext.qcow2 want.raw
  content_is base.qcow2 want.raw
}

@test "commit: a base on an NBD export" {
  need nbdkit
  qemu-img create -q -f raw base.raw 2M
  qemu-io -f raw -c 'write -P 7 0 2M' base.raw >/dev/null
  start_server file base.raw
  qemu-img create -q -f qcow2 -b "$URI" -F raw top.qcow2
  qemu-io -c 'write -P 8 64k 100k' top.qcow2 >/dev/null
  qemu-img convert -O raw top.qcow2 want.raw
  "$NBDIMG" commit top.qcow2
  cmp base.raw want.raw
  [ "$(own top.qcow2)" = 0 ]
}

@test "commit: a failure leaves the image's disk as it was" {
  need_test_storage
  make_small () {
    qemu-img create -q -f qcow2 -o cluster_size=4k base 256k
    qemu-io -c 'write -P 1 0 256k' base >/dev/null
    qemu-img create -q -f qcow2 -o cluster_size=4k -b base -F qcow2 top 300k
    qemu-io -c 'write -P 2 6k 50k' -c 'write -z 100k 20k' top >/dev/null
  }
  make_small
  qemu-img convert -O raw top want.raw
  local k failed=0 status
  for errno in EIO ENOSPC; do
    for ((k = 1; ; ++k)); do
      make_small
      status=0
      NBDIMG_TEST_STORAGE="fault:scope=process,index=$k,errno=$errno" \
        "$NBDIMG" commit -q top 2>err || status=$?
      qemu-img compare -q top want.raw || fail "request $k: another disk"
      for image in top base; do
        qemu-img check -q $image || [ $? = 3 ] || fail "request $k: $image"
      done
      [ $status != 0 ] || break
      [ -s err ] || fail "request $k: no message"
      failed=$((failed + 1))
    done
  done
  [ $failed -gt 20 ] || fail "only $failed requests failed"
}

@test "commit: killed at any moment the disk is as it was" {
  chain
  qemu-io -c 'write -P 5 0 3M' top.qcow2 >/dev/null
  qemu-img convert -O raw top.qcow2 want.raw
  mkdir safe
  cp ./*.qcow2 safe
  local i killed=0
  for ((i = 0; i < 20; ++i)); do
    cp safe/* .
    start "$NBDIMG" commit -q top.qcow2
    # At a moment of its own each time, for as long as a commit takes.
    sleep 0.0$((RANDOM % 4))
    kill -9 "$STARTED_PID" 2>/dev/null || :
    wait "$STARTED_PID" 2>/dev/null || killed=$((killed + 1))
    qemu-img compare -q top.qcow2 want.raw || fail "another disk"
    for image in top mid; do
      qemu-img check -q $image.qcow2 || [ $? = 3 ] || fail "$image is damaged"
    done
  done
  [ $killed -gt 0 ]
}

@test "commit: who cannot write says which file, before anything is changed" {
  chain
  chmod 400 mid.qcow2
  if [ "$(id -u)" != 0 ]; then
    expect_error 1 mid.qcow2 "$NBDIMG" commit top.qcow2
  fi
  chmod 600 mid.qcow2
  before=$(sha256sum mid.qcow2 top.qcow2)
  expect_error 1 "read-only=on" "$NBDIMG" commit --image-opts \
    "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=mid.qcow2,backing.read-only=on"
  [ "$(sha256sum mid.qcow2 top.qcow2)" = "$before" ]
  mkfifo commands
  exec 9<>commands
  start qemu-io -r mid.qcow2 <commands >opened 9>&-
  echo length >&9
  poll 20 grep -q MiB opened
  expect_error 1 lock "$NBDIMG" commit top.qcow2
  exec 9>&-
  [ "$(sha256sum mid.qcow2 top.qcow2)" = "$before" ]
}
