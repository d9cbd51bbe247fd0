# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg lock: who uses an image.

load lib

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img jq
}

@test "lock: an image that nobody uses, in every kind of name" {
  qemu-img create -q -f qcow2 a.qcow2 1M
  for name in a.qcow2 "-f qcow2 a.qcow2" "-f raw ./a.qcow2" \
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}' \
    "--image-opts driver=qcow2,file.filename=a.qcow2"; do
    # shellcheck disable=SC2086
    "$NBDIMG" lock $name | grep ': no program holds it$'
    # shellcheck disable=SC2086
    [ "$("$NBDIMG" lock --output=json $name)" = "[]" ] ||
      [ "$("$NBDIMG" lock --output=json $name | jq length)" = 0 ]
  done
}

@test "lock: a server that writes, and one that reads, are told by their number" {
  need qemu-nbd
  qemu-img create -q -f qcow2 a.qcow2 1M
  qemu-img create -q -f raw b.raw 1M
  start_qemu_nbd -f qcow2 a.qcow2
  [ "$("$NBDIMG" lock a.qcow2)" = "a.qcow2: process $SERVER_PID (qemu-nbd)\
 writes to it, and lets nobody else write" ]
  "$NBDIMG" lock --output=json a.qcow2 |
    jq -e --argjson pid "$SERVER_PID" '.[0].pid == $pid and .[0].writes and
      (.[0].held | contains(["write"])) and
      (.[0].unshared | contains(["write"]))'
  # it is in nobody's way
  qemu-img info -U a.qcow2
  stop_server
  "$NBDIMG" lock a.qcow2 | grep 'no program'
  start_qemu_nbd -r -f raw b.raw
  [ "$("$NBDIMG" lock b.raw)" = \
    "b.raw: process $SERVER_PID (qemu-nbd) reads it" ]
}

@test "lock: our own server, and a process that may not be looked into" {
  "$NBDIMG" create -q -f qcow2 a.qcow2 1M
  start_nbdkit a.qcow2
  "$NBDIMG" lock a.qcow2 | grep "process $SERVER_PID (.*) reads it"
  need_root
  chmod 755 "$BATS_TEST_TMPDIR"
  setpriv --reuid=65534 --clear-groups -- cat a.qcow2 >/dev/null ||
    skip "another user cannot reach the folder"
  setpriv --reuid=65534 --clear-groups -- "$NBDIMG" lock a.qcow2 |
    grep 'a process of another user, or of another machine, reads it'
}

@test "lock: what has no locks is refused with the reason" {
  need nbdkit
  start_server memory 1M
  expect_error 1 'only files and devices have image locks' \
    "$NBDIMG" lock "$URI"
  expect_error 1 'No such file' "$NBDIMG" lock nope
  expect_error 1 'is a directory' "$NBDIMG" lock .
  expect_error 1 'one image file name' "$NBDIMG" lock
  expect_error 1 '--output' "$NBDIMG" lock --output=xml nope
}
