#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The life of an nbdkit with the plugin: locks, start, shutdown, TLS.

load lib
load plugin
load tls

# A client in the background that stays connected.  It has done its requests
# when $1 exists.
start_client () {
  start nbdsh -u "$URI" -c "
import sys, time
h.pwrite(b'x' * 100000, 0)
open('$1', 'w').close()
while True:
    time.sleep(100)"
  poll 20 test -e "$1"
}

@test "a reader's locks are held until a client comes that may write" {
  make_disk qcow2 disk 1M
  start_nbdkit disk
  [ "$(held_locks disk)" = "100 201 203" ]
  qemu-img info disk >/dev/null
  run qemu-io -c 'write 0 512' disk
  [[ $output == *'Failed to get'* ]]
  nbdinfo --size "$URI"
  [ "$(held_locks disk)" = "100 101 103 201 203" ]
  run qemu-img info disk
  [[ $output == *'Failed to get'* ]]
  stop_server
  [ -z "$(held_locks disk)" ]
  is_clean disk
}

@test "with -r readers of all kinds live side by side" {
  make_disk qcow2 disk 1M
  start_nbdkit -r disk
  nbdinfo --size "$URI"
  [ "$(held_locks disk)" = "100 201 203" ]
  qemu-img check disk
  captive -r -- disk -- 'nbdinfo --size "$uri"'
}

@test "a client that may write is turned away while QEMU has the image" {
  make_disk qcow2 disk 1M
  start_qemu_nbd -r -f qcow2 disk
  reader=$SERVER_PID
  start_nbdkit disk 2>log
  run nbdinfo --size "$URI"
  [ "$status" -ne 0 ]
  grep -i 'lock' log
  kill "$reader"
  poll 20 not_running "$reader"
  nbdinfo --size "$URI"
}

@test "a client turned away for the data file leaves no writer's locks" {
  qemu-img create -q -f qcow2 -o data_file=data disk 1M
  start_qemu_nbd -r -f raw data
  reader=$SERVER_PID
  start_nbdkit disk
  run nbdinfo --size "$URI"
  [ "$status" -ne 0 ]
  [ "$(held_locks disk)" = "100 201 203" ]
  kill "$reader"
  poll 20 not_running "$reader"
  nbdinfo --size "$URI"
  [ "$(held_locks disk)" = "100 101 103 201 203" ]
}

@test "a second server for the same image does not start" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 1M
    start_nbdkit disk format=$fmt
    nbdinfo --size "$URI"
    run captive -- disk format=$fmt -- true
    [ "$status" -ne 0 ]
    [[ $output == *lock* ]]
    run qemu-io -f $fmt -c 'write 0 512' disk
    [[ $output == *'Failed to get'* ]]
    stop_server
  done
}

@test "share=on lets another writer of a raw image in" {
  make_disk raw disk 1M
  start_nbdkit disk format=raw share=on
  nbdinfo --size "$URI"
  qemu-io -f raw -c 'write -P 3 0 512' disk
  nbdsh -u "$URI" -c 'assert h.pread(512, 0) == b"\3" * 512'
}

@test "SIGTERM with a client connected is a clean shutdown" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 1M
    [ $fmt = raw ] || make_disk 'qcow2 -o lazy_refcounts=on' disk 1M ||
      qemu-img create -q -f qcow2 -o lazy_refcounts=on disk 1M
    start_nbdkit disk format=$fmt
    start_client connected.$fmt
    stop_server
    is_clean disk
    qemu-io -f $fmt -r -c 'read -P 0x78 0 100000' disk | grep -qv failed
    [ -z "$(held_locks disk)" ]
  done
}

@test "a write after the clean shutdown is not acknowledged" {
  make_disk qcow2 disk 64M
  start_nbdkit disk
  # Writes as fast as it can; says what was acknowledged last.
  start nbdsh -u "$URI" -c "
import os
i = 0
try:
    while True:
        i += 1
        h.pwrite(i.to_bytes(8, 'little') * 64, 0)
        if i == 200:
            open('busy', 'w').close()
except nbd.Error:
    open('last.tmp', 'w').write(str(i - 1))
    os.rename('last.tmp', 'last')"
  poll 20 test -e busy
  stop_server
  poll 20 test -e last
  is_clean disk
  qemu-img convert -O raw disk copy
  nbdsh -c "
got = int.from_bytes(open('copy', 'rb').read(8), 'little')
assert got - int(open('last').read()) in (0, 1), got"
}

@test "names are found although nbdkit changes its folder" {
  make_disk raw base 1M
  qemu-io -f raw -c 'write -P 7 0 1M' base >/dev/null
  qemu-img create -q -f qcow2 -b base -F raw disk
  new_socket
  nbdkit_env -U "$SOCKET" -P "$PIDFILE" "$PLUGIN" disk 3>&- 4>&-
  poll 20 test -s "$PIDFILE"
  SERVER_PID=$(cat "$PIDFILE")
  remember_pid "$SERVER_PID"
  [ "$(readlink "/proc/$SERVER_PID/cwd")" = / ]
  nbdsh -u "nbd+unix:///?socket=$SOCKET" -c '
assert h.pread(1 << 20, 0) == b"\7" * (1 << 20)
h.pwrite(b"x" * 5000, 5000)
h.flush()'
  stop_server
  is_clean disk
}

@test "as a daemon it serves an image from a server that was run for it" {
  make_disk qcow2 disk 1M
  truncate -s 2M disk
  new_socket
  nbdkit_env -U "$SOCKET" -P "$PIDFILE" "$PLUGIN" \
    'file=["nbdkit","file","disk"]' format=qcow2 3>&- 4>&-
  poll 20 test -s "$PIDFILE"
  SERVER_PID=$(cat "$PIDFILE")
  remember_pid "$SERVER_PID"
  nbdsh -u "nbd+unix:///?socket=$SOCKET" -c '
h.pwrite(b"x" * 5000, 5000)
h.flush()
assert h.pread(5000, 5000) == b"x" * 5000'
  stop_server
  is_clean disk
  qemu-io -r -c 'read -P 0x78 5000 5000' disk
}

@test "a server that was run for an image ends with us, also by kill -9" {
  make_disk qcow2 disk 1M
  for signal in TERM KILL; do
    start_nbdkit 'file=["sh","-c","echo $$ >inner; exec nbdkit file disk"]' \
      format=qcow2
    nbdinfo --size "$URI"
    is_running "$(cat inner)"
    kill -$signal "$SERVER_PID"
    poll 20 not_running "$(cat inner)"
  done
}

@test "by socket activation" {
  random_image data 4M 1
  qemu-img convert -f raw -O qcow2 data disk
  nbdcopy -- [ env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    nbdkit -r "$PLUGIN" disk ] copy
  cmp data copy
}

@test "on standard input and output, for inetd" {
  make_disk qcow2 disk 1M
  nbdsh -c "
h.connect_command(['nbdkit', '-s', '$PLUGIN', 'disk'])
h.pwrite(b'x', 0)
h.shutdown()"
  poll 10 is_clean disk
}

@test "with TLS and pre-shared keys, and without a key not" {
  make_disk qcow2 disk 1M
  make_key alice keys.psk
  start_nbdkit --tls=require --tls-psk="$PWD/keys.psk" disk
  tls="nbds+unix://alice@/?socket=$SOCKET&tls-psk-file=$PWD/keys.psk"
  nbdsh -c "
h.set_uri_allow_local_file(True)
h.connect_uri('$tls')" -c '
assert h.get_tls_negotiated()
h.pwrite(b"secret", 0)
h.flush()
assert h.pread(6, 0) == b"secret"'
  run nbdinfo "$URI"
  [ "$status" -ne 0 ]
  make_key mallory other.psk
  run nbdinfo "nbds+unix://mallory@/?socket=$SOCKET&tls-psk-file=$PWD/other.psk"
  [ "$status" -ne 0 ]
}

@test "a hundred clients come and go without a descriptor left behind" {
  make_disk qcow2 disk 1M
  start_nbdkit disk
  nbdinfo --size "$URI"
  before=$(find "/proc/$SERVER_PID/fd" | wc -l)
  for _ in {1..5}; do
    nbdsh -c "
for i in range(20):
    c = nbd.NBD()
    c.connect_uri('$URI')
    c.pread(1, 0)
    if i % 2:
        c.shutdown()"
  done
  descriptors_are () { [ "$(find "/proc/$SERVER_PID/fd" | wc -l)" = "$1" ]; }
  poll 10 descriptors_are "$before"
}

@test "an image that is damaged while it is served gives errors, no crash" {
  make_disk qcow2 disk 8M
  qemu-io -c 'write 0 8M' disk >/dev/null
  # The first entry of the L2 table points outside of the file, unaligned.
  l2=$(peek disk 0x30000 8)
  poke disk $((0x${l2#80})) 80ffffffffff1200
  start_nbdkit -r disk 2>log
  nbdsh -u "$URI" -c '
try:
    h.pread(512, 0)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e
assert len(h.pread(512, 1 << 20)) == 512'
  is_running "$SERVER_PID"
  grep -q disk log
}
