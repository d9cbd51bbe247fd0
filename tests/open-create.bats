# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Where images are made: exports and devices, which have a size of their own;
# data files; and what is left when it goes wrong.

load lib

@test "a raw image on an export keeps its size and loses its old header" {
  need qemu-img qemu-io nbdinfo
  start_server memory 1M
  qemu-img create -q -f qcow2 "$URI" 1M
  qemu-io -f raw -c 'write -P 5 512k 512k' "$URI"
  "$NBDIMG" create -q -f raw "$URI" 512k
  "$NBDIMG" info "$URI" | grep 'file format: raw'
  [ "$(nbdinfo --size "$URI")" = 1048576 ]
  qemu-io -f raw -c 'read -P 5 512k 512k' "$URI" >out
  run ! grep -i fail out
  expect_error 1 'cannot grow' "$NBDIMG" create -q -f raw "$URI" 2M
  expect_error 1 'preallocat' "$NBDIMG" create -q -f raw \
    -o preallocation=full "$URI" 1M
  expect_error 1 'nocow' "$NBDIMG" create -q -f raw -o nocow=on "$URI" 1M
}

@test "a qcow2 image on an export is one to QEMU" {
  need qemu-img qemu-io
  start_server memory 4M
  qemu-io -f raw -c 'write -P 255 0 4M' "$URI"
  "$NBDIMG" create -q -f qcow2 "$URI" 50M
  qemu-img check "$URI"
  qemu-io -c 'read -P 0 0 50M' -c 'write -P 1 0 1M' "$URI"
  qemu-img check "$URI"
}

@test "a device that is too small is told, and never removed" {
  start_server memory 64k
  expect_error 1 'it is a socket' "$NBDIMG" create -q -f raw "$SOCKET" 1M
  [ -S "$SOCKET" ]
  expect_error 1 'bytes' "$NBDIMG" create -q -f qcow2 "$URI" 50M
  nbdinfo --size "$URI"
}

@test "the data file is made too, and both go when something fails" {
  need qemu-img qemu-io
  "$NBDIMG" create -q -f qcow2 -o data_file=data,data_file_raw=on a.qcow2 1M
  [ "$(stat -c %s data)" = 1048576 ]
  qemu-io -c 'write -P 3 0 64k' a.qcow2
  qemu-img compare -f qcow2 -F raw a.qcow2 data
  expect_error 1 'its own data file' "$NBDIMG" create -q -f qcow2 \
    -o data_file=b.qcow2 b.qcow2 1M
  expect_error 1 'gone/data' "$NBDIMG" create -q -f qcow2 \
    -o data_file=gone/data b.qcow2 1M
  expect_error 1 '' "$NBDIMG" create -q -f qcow2 \
    -o data_file=newdata,cluster_size=3 b.qcow2 1M
  [ ! -e b.qcow2 ]
  [ ! -e newdata ]
}

@test "a slip in the options does not cost the file that was there" {
  echo precious >file
  expect_error 1 '' "$NBDIMG" create -q -f qcow2 -o cluster_size=3 file 1M
  expect_error 1 '' "$NBDIMG" create -q -f raw -o preallocation=nope file 1M
  expect_error 1 '' "$NBDIMG" create -q -f raw -o nope=1 file 1M
  [ "$(cat file)" = precious ]
}

@test "a file that cannot be made whole is not left behind" {
  ulimit -f 100
  trap '' XFSZ
  expect_error 1 'new' "$NBDIMG" create -q -f raw -o preallocation=full new 1M
  [ ! -e new ]
  truncate -s 4k old
  expect_error 1 'its old content is gone' "$NBDIMG" create -q -f raw \
    -o preallocation=full old 1M
  [ -e old ]
}
