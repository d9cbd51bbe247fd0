# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg convert from and to NBD exports, with servers that fail.

load lib

convert () {
  "$NBDIMG" convert "$@"
}

# start_file_server FILE: a writable export of a file
start_file_server () {
  start_server file "$@"
}

@test "from an export: by URI, by a command in brackets, by its options" {
  need qemu-img jq
  random_image src.raw 20M 1
  start_file_server src.raw
  convert -f raw -O qcow2 "$URI" a.qcow2
  qemu-img compare -f raw -F qcow2 src.raw a.qcow2
  qemu-img check -q a.qcow2
  # Holes of the export are holes of the target.
  [ "$(qemu-img check --output=json a.qcow2 | jq '."allocated-clusters"')" \
    -lt 320 ]
  convert -f raw -c -O qcow2 [ nbdkit file src.raw ] b.qcow2
  qemu-img compare -f raw -F qcow2 src.raw b.qcow2
  convert --image-opts -O raw \
    "driver=nbd,server.type=unix,server.path=$SOCKET" c.raw
  cmp src.raw c.raw
  convert -f raw -O raw -m 16 -W "nbd:unix:$SOCKET" d.raw
  cmp src.raw d.raw
  stop_server
  start_tcp file src.raw
  convert -f raw -O raw "$URI" e.raw
  cmp src.raw e.raw
}

# most_reads LOG: how many reads of nbdkit's log were on their way together
most_reads () {
  awk '/\.\.\.Read / { --n } / Read / && ++n > most { most = n }
    END { print most + 0 }' "$1"
}

@test "an export is read by several requests at once, whatever the target" {
  random_image src.raw 12M 8
  for fmt in raw qcow2; do
    start_server -r --filter=log --filter=delay file src.raw logfile=log \
      rdelay=100ms
    convert -f raw -O $fmt "$URI" t.$fmt
    stop_server
    [ "$(most_reads log)" -ge 2 ]
    rm log
  done
  cmp src.raw t.raw
}

@test "qcow2 from an export, with a backing file on another" {
  need qemu-img qemu-io
  random_image base.raw 8M 2
  start_file_server base.raw
  qemu-img create -q -f qcow2 -b "$URI" -F raw top.qcow2
  qemu-io -c 'write -P 7 1M 1M' top.qcow2
  qemu-img convert -O raw top.qcow2 want.raw
  start_file_server top.qcow2
  convert -f qcow2 -O raw "$URI" t.raw
  cmp want.raw t.raw
  convert -O qcow2 -c "$URI" t.qcow2
  qemu-img compare -F qcow2 -f raw want.raw t.qcow2
}

@test "to an export: raw and qcow2, made there or with -n" {
  need qemu-img
  random_image src.raw 8M 3
  printf '%16777216s' '' >disk
  start_file_server disk
  convert -n -f raw -O raw src.raw "$URI"
  cmp -n 8388608 src.raw disk
  [ "$(tail -c 1 disk)" = ' ' ]
  printf '%16777216s' '' | dd of=disk conv=notrunc status=none
  convert -f raw -O raw src.raw "$URI"
  cmp -n 8388608 src.raw disk
  convert -f raw -O qcow2 src.raw "$URI"
  qemu-img check "$URI"
  qemu-img compare -f raw -F qcow2 src.raw "$URI"
  convert -f raw -c -O qcow2 src.raw "$URI"
  qemu-img check "$URI"
  qemu-img compare -f raw -F qcow2 src.raw "$URI"
  convert -n -f raw -O raw src.raw [ nbdkit file disk ]
  cmp -n 8388608 src.raw disk
  [ "$(stat -c %s disk)" = 16777216 ]
}

@test "from one export to another, by our plugin too" {
  need qemu-img
  random_image src.raw 20M 4
  convert -f raw -O qcow2 src.raw s.qcow2
  qemu-img create -q -f qcow2 t.qcow2 20M
  start_nbdkit s.qcow2
  from=$URI
  start_nbdkit t.qcow2
  convert -n -f raw -O raw "$from" "$URI"
  stop_server
  qemu-img check t.qcow2
  qemu-img compare -f raw -F qcow2 src.raw t.qcow2
}

@test "exports of odd sizes" {
  random_image src.raw 1000001 5
  start_file_server src.raw
  convert -f raw -O raw "$URI" t.raw
  cmp -n 1000001 src.raw t.raw
  [ "$(stat -c %s t.raw)" = 1000448 ]
  printf '%1000001s' '' >disk
  start_file_server disk
  convert -n -f raw -O raw src.raw "$URI"
  cmp src.raw disk
}

@test "an export that is too small, or read-only, is told and left alone" {
  random_image src.raw 8M 6
  printf '%1048576s' '' >disk
  cp disk saved
  start_file_server disk
  expect_error 1 'error while converting raw' convert -f raw src.raw "$URI"
  expect_error 1 'output file is smaller than input file' \
    convert -n -f raw -O raw src.raw "$URI"
  cmp disk saved
  start_server -r file disk
  expect_error 1 'read-only' convert -n -f raw -O raw -S 0 disk "$URI"
  cmp disk saved
}

@test "a server that is lost in mid-copy: an error, and no target" {
  random_image src.raw 20M 7
  for extra in "" "--salvage" "-c" "-m 8"; do
    start_file_server src.raw
    # shellcheck disable=SC2086
    start "$NBDIMG" convert $extra -r 4M -S 0 -f raw -O qcow2 "$URI" t.qcow2 \
      2>err
    poll 20 test -e t.qcow2
    kill -9 "$SERVER_PID"
    status=0
    wait "$STARTED_PID" || status=$?
    [ $status = 1 ]
    grep 'error while reading at byte' err
    [ ! -e t.qcow2 ]
  done
  truncate -s 20M disk
  start_file_server disk
  start "$NBDIMG" convert -n -r 4M -S 0 -f raw -O raw src.raw "$URI" 2>err
  poll 20 has_data disk
  kill -9 "$SERVER_PID"
  status=0
  wait "$STARTED_PID" || status=$?
  [ $status = 1 ]
  grep -E 'error while (writing|reading)|lost' err
}

has_data () {
  [ "$(stat -c %b "$1")" -gt 0 ]
}

@test "a server that fails now and then: never success with another disk" {
  NBDIMG_BUILD=$NBDIMG_BUILD COPY_RUNS=12 "$SRCDIR/tests/soak/copy-errors.sh"
}
