# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg dd beside qemu-img, and beside dd itself.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io jq
}

images () {
  qemu-img create -q -f qcow2 a.qcow2 3333k
  qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 1500k 3k' \
    -c 'write -P 3 3000k 333k' a.qcow2 >/dev/null
  qemu-img convert -O raw a.qcow2 a.raw
}

@test "dd: messages, exit codes and images as qemu-img's" {
  make_twins images
  twin_img dd
  twin_img dd if=a.qcow2
  twin_img dd of=x
  twin_img dd if=a.qcow2 of=x bs=0
  twin_img dd if=a.qcow2 of=x bs=3G
  twin_img dd if=a.qcow2 of=x bs=99999999999999999999
  twin_img dd if=a.qcow2 of=x bs=xx
  twin_img dd if=a.qcow2 of=x skip=1x
  twin_img dd if=a.qcow2 of=x count=-1
  twin_img dd if=a.qcow2 of=x iflag=direct
  twin_img dd if=a.qcow2 of=x foo
  twin_img dd -n if=a.qcow2 of=x
  twin_img dd -f raw -O raw if=a.qcow2 of=/nonexistent/x
  twin_img dd --image-opts -f raw if=driver=qcow2 of=x
  twin_img_output dd if=nosuch of=x
  twin_img_output dd -O foo if=a.qcow2 of=x
  twin_img_output dd if=a.qcow2 of=a.qcow2
  for f in theirs ours; do
    [ ! -e $f/x ]
  done
  twin_img dd if=a.qcow2 of=o1
  twin_img dd -f qcow2 -O qcow2 bs=64k count=3 if=a.qcow2 of=o2
  twin_img dd bs=1M skip=2 if=a.qcow2 of=o3
  twin_img dd bs=512b count=100 if=a.qcow2 of=o4
  twin_img dd bs=1M skip=100 if=a.qcow2 of=o5
  twin_img dd count=0 if=a.qcow2 of=o6
  twin_img dd -U -f raw if=a.raw of=o7 bs=1000 count=700
  twin_img dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=o8
  twin_img dd count=2 if=a.qcow2 of=o1
  for f in o1 o2 o3 o4 o5 o6 o7 o8; do
    qemu-img compare -q theirs/$f ours/$f || fail "$f differs"
    [ "$(qemu-img info --output=json theirs/$f | jq '."virtual-size"')" = \
      "$(qemu-img info --output=json ours/$f | jq '."virtual-size"')" ] ||
      fail "$f has another size"
  done
}

@test "dd: skip and count mean what they mean to dd" {
  images
  for operands in "bs=64k skip=1 count=3" "bs=1000 skip=7 count=1111" \
      "bs=512 skip=3001 count=2000" "bs=4k skip=1" "bs=1M skip=3 count=9" \
      "bs=7k skip=200 count=55"; do
    # shellcheck disable=SC2086
    dd if=a.raw of=want $operands status=none
    truncate -s %512 want
    rm -f got
    # shellcheck disable=SC2086
    "$NBDIMG" dd if=a.qcow2 of=got $operands
    cmp want got
    # shellcheck disable=SC2086
    "$NBDIMG" dd -O qcow2 if=a.raw -f raw of=got $operands
    qemu-img compare -q want got
    qemu-img check -q got
  done
}

@test "dd -p shows progress, up to the end; -q does not" {
  images
  "$NBDIMG" dd -p if=a.qcow2 of=out >shown
  tr '\r' '\n' <shown | sed 1q | grep -x '    (0.00/100%)'
  tr '\r' '\n' <shown | grep -x '    (100.00/100%)'
  "$NBDIMG" dd --progress=json if=a.qcow2 of=out >shown 2>&1
  tail -1 shown | jq -e '.command == "dd" and .percent == 100'
  "$NBDIMG" dd -p -q if=a.qcow2 of=out >shown 2>&1
  "$NBDIMG" dd --quiet if=a.qcow2 of=out >>shown 2>&1
  [ ! -s shown ]
}

@test "dd: a failed copy leaves no file that looks finished" {
  need_test_storage
  images
  expect_error 1 "a.qcow2" env \
    NBDIMG_TEST_STORAGE=fault:file=a.qcow2,op=read,index=8,count=0 \
    "$NBDIMG" dd if=a.qcow2 of=out
  [ ! -e out ]
}
