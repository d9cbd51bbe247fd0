#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The NBD storage, driven by tests/helpers/storage-io, against nbdkit, qemu-nbd
# and a server that does what its command line says.

load lib
load tls

IO=$NBDIMG_BUILD/tests/helpers/storage-io
NBDKIT=$config_NBDKIT

# start_python ARGUMENT...: helpers/nbd-server.py; its requests are in ./log
start_python () {
  need python3
  new_socket
  start python3 "$SRCDIR/tests/helpers/nbd-server.py" --socket "$SOCKET" \
    --pid "$PIDFILE" --log "$PWD/log" "$@"
  wait_for_server "$STARTED_PID" || return 1
  SERVER_PID=$(cat "$PIDFILE")
  URI="nbd+unix:///?socket=$SOCKET"
}

# start_logged ARGUMENT...: nbdkit with its requests in ./log
start_logged () {
  start_server --filter=log "$@" logfile="$PWD/log"
}

# How many connections got as far as the transmission phase?
count_connections () {
  grep -c ' Connect export=' log
}

# status_of PID: wait for a child of this shell, set $status
status_of () {
  status=0
  wait "$1" || status=$?
}

all_is_there () {
  "$IO" "$URI" 'write 1000 100000 7' 'is 1000 100000 7' 'is 0 1000 0' \
    'is 101000 1000 0' 'zero 2000 5000' 'is 2000 5000 0' 'is 1999 1 7' \
    'is 7000 94000 7' 'zero 0 64k unmap' 'is 0 64k 0' 'is 65536 30000 7' \
    'trim 64k 64k' 'flush' 'write 0 1 9 fua' 'is 0 1 9'
}

# ---- requests ----

@test "nbd: write, zero, trim and flush reach an nbdkit server" {
  start_server memory 1M
  all_is_there
}

@test "nbd: write, zero, trim and flush reach a qemu-nbd server" {
  need qemu-nbd
  truncate -s 1M disk
  start_qemu_nbd -f raw --discard=unmap disk
  all_is_there
  [ "$(peek disk 0 1)" = 09 ]
}

@test "nbd: size and abilities are what the server says" {
  start_server memory 1234567
  run -0 "$IO" "$URI" info
  [ "${lines[0]}" = "driver=nbd name=$URI size=1234567" ]
  [[ ${lines[1]} == "writable=1 grow=0 punch=1 zero=1 device=0 local=0 \
alignment=1 max="* ]]
}

@test "nbd: an export with a name is found, another name is an error" {
  truncate -s 1M a
  truncate -s 2M b
  start_server file dir="$PWD"
  run -0 "$IO" -r "nbd+unix:///b?socket=$SOCKET" info
  [[ ${lines[0]} == *size=2097152 ]]
  expect_error 1 "no export named 'nosuch'" \
    "$IO" -r "nbd+unix:///nosuch?socket=$SOCKET" info
}

@test "nbd: a write past the end is ENOSPC, a read past it gives zeroes" {
  start_server memory 64k
  "$IO" "$URI" 'write 65535 1 1' 'is 65536 10 0'
  expect_error 1 "goes past the end" "$IO" "$URI" 'write 65535 2 1'
}

@test "nbd: extents are those of the server" {
  truncate -s 1M disk
  dd if=/dev/urandom of=disk bs=64k count=1 seek=4 conv=notrunc status=none
  start_server file disk
  run -0 "$IO" -r "$URI" 'extents 0 1M'
  [ "$output" = "0 262144 hole
262144 65536 data
327680 720896 hole" ]
  run -0 "$IO" -r "$URI" 'extents 300000 30000'
  [ "$output" = "300000 27680 data
327680 2320 hole" ]
}

@test "nbd: without block status everything is data" {
  start_server --filter=noextents memory 1M
  run -0 "$IO" "$URI" 'extents 0 1M'
  [ "$output" = "0 1048576 data" ]
}

@test "nbd: a hole that may hold anything is data, zeroes are zeroes" {
  start_python --size 16384 --extents 4096:1,4096:2,4096:3,4096:0
  run -0 "$IO" "$URI" 'extents 0 16384'
  [ "$output" = "0 4096 data
4096 4096 zero
8192 4096 hole
12288 4096 data" ]
}

@test "nbd: a server without zero gets zero bytes, and no fast zero" {
  start_logged --filter=nozero memory 4M
  "$IO" "$URI" 'write 0 4M 5' 'zero 1 3M' 'is 1 3M 0' 'is 0 1 5' 'is 3145729 9 5'
  run ! grep Zero log
  expect_error 1 "no fast zero" "$IO" "$URI" 'zero 0 64k fast'
}

@test "nbd: a server that refuses the zero it offered gets zero bytes" {
  start_python --no-zero
  "$IO" "$URI" 'write 0 64k 5' 'zero 4096 8192' 'is 4096 8192 0' 'is 0 4096 5'
  grep '^1 zero 4096 8192' log
  grep '^1 write 4096 8192' log
}

@test "nbd: a fast zero that is not fast changes nothing" {
  start_python --slow-zero
  "$IO" "$URI" 'write 0 64k 5'
  expect_error 1 "zero of 8192 bytes at 4096" "$IO" "$URI" 'zero 4096 8192 fast'
  "$IO" "$URI" 'is 0 64k 5'
  [ "$(grep -c write log)" = 1 ]
}

@test "nbd: zero keeps its space unless it may unmap" {
  start_python
  "$IO" "$URI" 'zero 0 4096' 'zero 4096 4096 unmap' 'zero 8192 4096 fast'
  "$IO" -d "$URI" 'zero 12288 4096 unmap' 'trim 0 4096'
  grep zero log >got
  printf '1 zero %s\n' '0 4096 2' '4096 4096 0' '8192 4096 18' >want
  printf '2 zero 12288 4096 2\n' >>want
  diff want got
  run ! grep trim log
}

@test "nbd: FUA is asked of a server that has it" {
  start_python
  "$IO" "$URI" 'write 0 4096 1 fua' 'zero 0 4096 unmap fua' 'trim 0 4096 fua'
  grep -v disc log >got
  printf '1 %s 0 4096 1\n' write zero trim >want
  diff want got
}

@test "nbd: FUA is a flush where the server has none" {
  start_python --offer flush,trim,zero,structured
  "$IO" "$URI" 'write 0 4096 1 fua' 'zero 0 4096 unmap fua' 'write 0 1 1'
  grep -v disc log >got
  printf '1 %s\n' 'write 0 4096 0' 'flush 0 0 0' 'zero 0 4096 0' 'flush 0 0 0' \
    'write 0 1 0' >want
  diff want got
}

@test "nbd: writethrough makes each write durable, unsafe none" {
  start_python
  "$IO" -t writethrough "$URI" 'write 0 4096 1' 'zero 0 4096 unmap'
  "$IO" -t unsafe "$URI" 'write 0 4096 1 fua' flush
  grep -v disc log >got
  printf '%s\n' '1 write 0 4096 1' '1 zero 0 4096 1' '2 write 0 4096 0' >want
  diff want got
}

@test "nbd: a server that cannot flush is told of once" {
  start_python --offer structured
  run -0 --separate-stderr "$IO" "$URI" 'write 0 4096 1 fua' flush flush
  [ "$stderr" = "storage-io: warning: $URI: the server cannot flush: when \
data is durable is not known" ]
}

@test "nbd: a flush that failed once fails from then on" {
  start_python --fail flush:5
  run -0 --separate-stderr "$IO" "$URI" 'write 0 1 1' 'fails flush' \
    'fails flush' 'fails write 0 1 1 fua' 'write 0 1 1'
  [ "${stderr_lines[0]}" = "$URI: flush: Input/output error" ]
  [[ ${stderr_lines[1]} == *"a flush failed earlier"* ]]
  [[ ${stderr_lines[2]} == *"a flush failed earlier"* ]]
  [ "$(grep -c flush log)" = 1 ]
}

@test "nbd: trim of a server without trim does nothing" {
  start_python --offer flush,structured
  "$IO" "$URI" 'write 0 64k 3' 'trim 0 64k' 'is 0 64k 3'
}

@test "nbd: a read-only export is not opened for writing" {
  start_server -r memory 1M
  expect_error 1 "export is read-only" "$IO" "$URI" info
  run -0 "$IO" --try "$URI" info
  [[ ${lines[1]} == writable=0* ]]
  expect_error 1 "export is read-only" "$IO" -r "$URI" writable
  expect_error 1 "read-only" "$IO" -r "$URI" 'write 0 1 1'
}

@test "nbd: an export that was opened for reading can become writable" {
  start_server memory 1M
  expect_error 1 "open read-only" "$IO" -r "$URI" 'write 0 1 1'
  "$IO" -r "$URI" writable 'write 0 1 1' 'is 0 1 1'
}

@test "nbd: errors name the server, the request, its place and the reason" {
  start_python --fail write:28 --fail read:5
  expect_error 1 "$URI: write of 4096 bytes at 8192: No space left on device" \
    "$IO" "$URI" 'write 8192 4096 1'
  expect_error 1 "$URI: read of 512 bytes at 100: Input/output error" \
    "$IO" "$URI" 'is 100 512 0'
}

# ---- block sizes ----

@test "nbd: parts of the server's blocks are written whole" {
  start_server --filter=blocksize-policy memory 1M blocksize-minimum=4096 \
    blocksize-preferred=4096 blocksize-maximum=64k blocksize-error-policy=error
  run -0 "$IO" "$URI" info
  [[ ${lines[1]} == *"alignment=4096 max=65536" ]]
  all_is_there
  "$IO" "$URI" 'write 0 1M 1' 'write 4095 2 2' 'is 0 4095 1' 'is 4095 2 2' \
    'is 4097 4096 1' 'zero 100 300k' 'is 0 100 1' 'is 100 300k 0' \
    'is 307300 1000 1' 'trim 5000 100' 'is 4097 9 0'
}

@test "nbd: writers of parts of one block do not disturb each other" {
  start_server --filter=blocksize-policy --filter=delay memory 1M \
    blocksize-minimum=4096 blocksize-preferred=4096 blocksize-maximum=64k \
    blocksize-error-policy=error delay-read=1ms delay-write=1ms
  "$IO" "$URI" 'stress 8 60 512'
}

@test "nbd: extents of a server with large blocks begin and end anywhere" {
  start_python --size 16384 --block 4096,4096,65536 \
    --extents 4096:0,4096:3,8192:0
  run -0 "$IO" "$URI" 'extents 100 10000'
  [ "$output" = "100 3996 data
4096 4096 hole
8192 1908 data" ]
  grep '^1 extents 0 12288 0' log
}

@test "nbd: requests above the server's maximum are split" {
  start_python --block 512,4096,65536
  "$IO" "$URI" 'write 0 1M 8' 'is 0 1M 8'
  awk '($2 == "read" || $2 == "write") && $4 > 65536 { bad = 1 }
    END { exit bad }' log
  [ "$(grep -c write log)" = 16 ]
}

@test "nbd: ranges of many GiB are sent in pieces of 1 GiB" {
  start_logged memory 5G
  "$IO" "$URI" 'write 4G 1M 1' 'zero 1 5368709119 unmap' 'is 4G 1M 0' \
    'trim 0 5G' 'zero 0 2g fast'
  run -0 "$IO" "$URI" 'extents 0 5G'
  [ "$(tail -n 1 <<<"$output")" = "4294967296 1073741824 hole" ]
  local count nr=0
  while read -r count; do
    [ $((count)) -le $((1 << 30)) ] || fail "a request of $count bytes"
    nr=$((nr + 1))
  done < <(sed -nE 's/.* (Zero|Trim|Extents) id=.* count=(\S+) .*/\2/p' log)
  [ $nr = 17 ]
  # Once it was fast the rest is not asked again whether it is.
  [ "$(grep -c ' Zero .* fast=1 ' log)" = 1 ]
}

# ---- connections ----

@test "nbd: requests of many threads stay apart" {
  start_server --filter=delay memory 64M delay-read=1ms delay-write=1ms
  "$IO" "$URI" 'stress 16 200 4096' 'stress 16 200 100k'
}

@test "nbd: one connection serves requests one after the other" {
  start_logged memory 4M
  "$IO" "$URI" 'write 0 4M 1' 'is 0 4M 1' flush
  [ "$(count_connections)" = 1 ]
}

@test "nbd: requests that meet open further connections, four at most" {
  start_logged --filter=delay memory 8M delay-read=1ms delay-write=1ms
  "$IO" "$URI" 'stress 16 200 4096'
  [ "$(count_connections)" = 4 ]
}

@test "nbd: the number of connections can be set" {
  start_logged --filter=delay memory 8M delay-read=1ms delay-write=1ms
  "$IO" -n 2 "$URI" 'stress 16 200 4096'
  [ "$(count_connections)" = 2 ]
}

@test "nbd: a server without multi-conn gets one connection" {
  start_logged --filter=multi-conn --filter=delay memory 8M \
    multi-conn-mode=disable delay-read=1ms delay-write=1ms
  "$IO" "$URI" 'stress 16 100 4096'
  [ "$(count_connections)" = 1 ]
}

@test "nbd: a server that ignores further connections does no harm" {
  start_python --size 0x400000 --offer multi,structured --mute 1
  "$IO" "$URI" 'stress 8 100 4096'
  [ "$(cut -d ' ' -f 1 log | sort -u)" = 1 ]
}

@test "nbd: a handshake without an end holds nobody up" {
  start_python --babble 1 --offer flush,fua,zero,trim,multi,structured
  run -0 timeout 30 "$IO" "$URI" 'stress 8 50 4096'
}

@test "nbd: a connection that was opened before a fork works after it" {
  start_logged --filter=delay memory 8M delay-read=1ms delay-write=1ms
  "$IO" "$URI" 'write 0 4096 7' fork 'is 0 4096 7' 'stress 16 100 4096' flush
  [ "$(count_connections)" = 4 ]
}

# ---- servers that end ----

@test "nbd: a killed server fails each later request, and says so" {
  start_server memory 1M
  mkfifo go
  start "$IO" "$URI" 'write 0 4096 1' 'wait go' 'fails flush' 'fails flush' \
    'fails write 0 1 1' 'is 7 2 1' >out 2>err
  pid=$STARTED_PID
  poll 30 grep -q waiting out
  kill -9 "$SERVER_PID"
  echo >go
  status_of "$pid"
  [ "$status" = 1 ]
  grep -F "$URI: flush: the connection is lost: " err
  grep -F "$URI: write of 1 bytes at 0: the connection is lost: " err
  grep -F "$URI: read of 2 bytes at 7: the connection is lost: " err
}

@test "nbd: a killed server fails every request in flight" {
  start_logged --filter=delay memory 64M delay-read=1000 delay-write=1000
  start "$IO" "$URI" 'scan 40 1M' 2>err
  pid=$STARTED_PID
  poll 30 grep -q ' Read id=' log
  kill -9 "$SERVER_PID"
  status_of "$pid"
  [ "$status" = 1 ]
  grep -F "the connection is lost: " err
  grep -F "read of 1048576 bytes at " err
}

@test "nbd: a server that ends in the middle of a reply is an error" {
  local offer
  for offer in structured flush; do
    start_python --offer $offer --cut-reply 70000
    "$IO" "$URI" 'is 0 64k 0'
    expect_error 1 "read of 131072 bytes at 4096: the connection is lost" \
      "$IO" "$URI" 'is 4096 128k 0'
  done
}

@test "nbd: a server that exits in the middle of many requests is an error" {
  start_python --size 0x400000 --offer multi,structured --exit-at 300
  expect_error 1 "the connection is lost" "$IO" "$URI" 'stress 16 200 4096'
}

@test "nbd: a server that does not answer holds nobody up who wants to end" {
  truncate -s 1M disk
  local pids=() pid
  start_python --silent read,zero
  start "$NBDIMG" info "$URI" 2>reading
  pids+=("$STARTED_PID")
  start "$NBDIMG" convert -n -O raw disk "$URI" 2>writing
  pids+=("$STARTED_PID")
  both_wait () { grep -q read log && grep -q zero log; }
  poll 30 both_wait
  # One that says nothing at all.
  start_python --dumb
  start "$NBDIMG" map "$URI" 2>connecting
  pids+=("$STARTED_PID")
  poll 30 grep -q connected log
  kill "${pids[@]}"
  for pid in "${pids[@]}"; do
    poll 30 not_running "$pid" || fail "still there: $pid"
    status_of "$pid"
    [ "$status" = 143 ]
  done
  grep -q 'the server does not answer' reading
  grep -q 'the server does not answer' writing
  grep -q 'has not finished the handshake' connecting
}

@test "nbd: the last sector of a disk may end behind the export" {
  start_python --size 1000
  run -0 "$NBDIMG" io -f raw -c 'write -P 3 0 1000' -c 'write -z 0 1k' \
    -c 'write -z 512 512' -c 'read -P 0 0 1k' "$URI"
  head -c 1000 /dev/zero | tr '\0' '\5' >five
  truncate -s 1024 five
  run -0 "$NBDIMG" io -f raw -c 'write -s five 0 1k' -c 'write -s five 0 1k' \
    -c 'read -P 5 0 1000' -c 'read -P 0 1000 24' "$URI"
  [[ $output != *failed* ]]
  # What cannot be kept is not taken.
  run "$NBDIMG" io -f raw -c 'write -P 3 512 512' -c 'read -P 5 0 1000' "$URI"
  [[ $output == *'No space left on device'* ]]
  [[ $output != *verification* ]]
  awk '$2 ~ /write|zero/ && $3 + $4 > 1000' log >behind
  [ ! -s behind ]
}

@test "nbd: a server that is not there is an error" {
  expect_error 1 "nosuch: connect: No such file" \
    "$IO" "nbd+unix:///?socket=$PWD/nosuch" info
}

# ---- hostile servers ----

@test "nbd: a size of 2^63 and more is refused" {
  local size
  for size in 0x8000000000000000 0x8000000000000005 0xffffffffffffffff; do
    start_python --size $size
    expect_error 1 "claims a size of 2^63" "$IO" "$URI" info
  done
}

@test "nbd: a size of 2^63 - 1 is believed" {
  start_python --size 0x7fffffffffffffff
  run -0 "$IO" "$URI" info
  [[ ${lines[0]} == *size=9223372036854775807 ]]
}

@test "nbd: a size that is not whole blocks is refused" {
  start_python --size 100000 --block 4096,4096,65536
  expect_error 1 "not a multiple of the server's minimum block size of 4096" \
    "$IO" "$URI" info
}

@test "nbd: block sizes that are no powers of 2 do no harm" {
  local block
  # libnbd drops what it does not believe; what it lets through, we check.
  for block in 3,4096,65536 131072,131072,33554432 0,0,0 \
      4096,4096,1024 0x80000000,0x80000000,0xffffffff; do
    start_python --size 0x100000 --block $block
    run "$IO" "$URI" 'write 5 10 1' 'is 5 10 1'
    [ "$status" = 0 ] || [[ $output == *"block size"* ]] || fail "$output"
  done
}

@test "nbd: an extent of length 0 is refused" {
  start_python --extents 4096:0,0:0
  expect_error 1 "an extent has length 0" "$IO" "$URI" 'extents 0 1M'
}

@test "nbd: extents longer than asked for are cut" {
  start_python --size 16384 --extents 4096:3,0xffffffff:0
  run -0 "$IO" "$URI" 'extents 0 16384'
  [ "$output" = "0 4096 hole
4096 12288 data" ]
}

@test "nbd: extents shorter than asked for are asked again" {
  start_python --size 16384 --extents 4096:0
  run -0 "$IO" "$URI" 'extents 0 16384'
  [ "$(wc -l <<<"$output")" = 4 ]
}

@test "nbd: a block status reply that comes twice is refused" {
  start_python --extents-twice --extents 4096:0
  expect_error 1 "block status at 0 is wrong" "$IO" "$URI" 'extents 0 4096'
}

@test "nbd: a block status reply that says nothing is refused" {
  start_python --extents none
  expect_error 1 "block status" "$IO" "$URI" 'extents 0 1M'
}

@test "nbd: a block status error is an error" {
  start_python --extents error
  expect_error 1 "block status of 1048576 bytes at 0: Invalid argument" \
    "$IO" "$URI" 'extents 0 1M'
}

# ---- errors are never lost (CVE-2022-0485) ----

@test "nbd: a copy that met a read error is never taken for a good one" {
  local i good=0 bad=0
  random_image disk 8M 1
  start_server --filter=error file disk error-pread=EIO error-pread-rate=10%
  for i in {1..40}; do
    if "$IO" -r "$URI" 'save copy' 2>err; then
      cmp disk copy
      good=$((good + 1))
    else
      grep -q 'bytes at [0-9]*: Input/output error' err
      bad=$((bad + 1))
    fi
  done
  [ $bad -gt 0 ]
}

@test "nbd: a write error in one of many requests is reported" {
  local i bad=0
  start_server --filter=error memory 8M error-pwrite=ENOSPC \
    error-pwrite-rate=10%
  for i in {1..20}; do
    if "$IO" "$URI" "write 0 8M $i" 2>err; then
      "$IO" "$URI" "is 0 8M $i"
    else
      grep -q 'write of [0-9]* bytes at [0-9]*: No space left' err
      bad=$((bad + 1))
    fi
  done
  [ $bad -gt 0 ]
}

# ---- commands ----

# The storage's sockets and what else it leaves behind go here.
private_tmp () {
  mkdir tmp
  export TMPDIR=$PWD/tmp
}

nothing_is_left () {
  [ -z "$(ls -A tmp)" ] || fail "left behind: $(ls -A tmp)"
  [ ! -e server.pid ] || ! is_running "$(cat server.pid)" ||
    fail "the server still runs"
}

@test "nbd: a command is started, used by several connections and ended" {
  private_tmp
  run -0 "$IO" [ "$NBDKIT" -P "$PWD/server.pid" --filter=log --filter=delay \
    memory 8M logfile="$PWD/log" delay-read=1ms delay-write=1ms ] \
    info 'stress 16 200 4096'
  [[ $output == *size=8388608* ]]
  [ "$(count_connections)" = 4 ]
  nothing_is_left
}

@test "nbd: qemu-nbd as a command opens a format that we do not have" {
  need qemu-nbd
  private_tmp
  random_image disk 4M 3
  qemu-img convert -O vmdk disk disk.vmdk
  "$IO" -r [ qemu-nbd -r -f vmdk disk.vmdk ] 'save copy'
  cmp disk copy
  nothing_is_left
}

@test "nbd: a command that cannot be run is an error" {
  private_tmp
  expect_error 1 "[ ./nosuch a ]: ./nosuch: No such file or directory" \
    "$IO" [ ./nosuch a ] info
  expect_error 1 "no command stands between the brackets" "$IO" [ ] info
  nothing_is_left
}

@test "nbd: a command that fails is named with its exit status" {
  private_tmp
  expect_error 1 "[ sh -c exit 3 ]" "$IO" [ sh -c 'exit 3' ] info
  [[ $stderr == *"(the command exited with status 3)"* ]]
  nothing_is_left
}

@test "nbd: a command that is killed is named with the signal" {
  private_tmp
  mkfifo go
  start "$IO" [ "$NBDKIT" -P "$PWD/server.pid" memory 1M ] \
    'write 0 1 1' 'wait go' 'is 0 1 1' >out 2>err
  pid=$STARTED_PID
  poll 30 grep -q waiting out
  kill -9 "$(cat server.pid)"
  echo >go
  status_of "$pid"
  [ "$status" = 1 ]
  grep -F "(the command was killed by signal 9, Killed)" err
  nothing_is_left
}

@test "nbd: a command that was started before a fork is ended after it" {
  private_tmp
  "$IO" [ "$NBDKIT" -P "$PWD/server.pid" memory 1M ] fork 'write 0 1 1' \
    'is 0 1 1'
  nothing_is_left
}

@test "nbd: a client that is killed leaves no socket behind" {
  private_tmp
  mkfifo go
  start "$IO" [ "$NBDKIT" -P "$PWD/server.pid" memory 1M ] 'wait go' >out
  pid=$STARTED_PID
  poll 30 grep -q waiting out
  remember_pid "$(cat server.pid)"
  kill -9 "$pid"
  status_of "$pid"
  [ -z "$(ls -A tmp)" ]
}

@test "nbd: a command sees one listening socket and the user's environment" {
  cat >server <<'EOF'
#!/bin/sh
env | grep -E '^(LISTEN_|MARK)' | sort >env
[ "$LISTEN_PID" = $$ ] && echo "for us" >>env
ls -l /proc/$$/fd | grep -c socket: >>env
trap '' TERM; trap - TERM
exec "$@"
EOF
  chmod +x server
  LISTEN_PID=1 LISTEN_FDS=7 LISTEN_FDNAMES=x MARK=1 \
    "$IO" [ ./server "$NBDKIT" memory 1M ] info
  sed -i 's/^LISTEN_PID=.*/LISTEN_PID=/' env
  printf '%s\n' LISTEN_FDS=1 LISTEN_PID= MARK=1 'for us' 1 | diff - env
}

# ---- TLS ----

make_keys () {
  make_key alice keys
  make_key alice wrong
}

@test "nbd: a pre-shared key opens a server on a Unix socket" {
  make_keys
  start_server --tls=require --tls-psk=keys --filter=delay memory 8M \
    delay-read=1ms delay-write=1ms
  "$IO" "nbds+unix://alice@/?socket=$SOCKET&tls-psk-file=keys" \
    'write 0 4M 3' 'is 0 4M 3' 'stress 16 100 4096'
  "$IO" --psk keys --user alice "$URI" 'write 0 4096 3' 'is 0 4096 3'
}

@test "nbd: a wrong key, a wrong user and no key are refused" {
  local u
  make_keys
  start_server --tls=require --tls-psk=keys memory 1M
  for u in "nbds+unix://alice@/?socket=$SOCKET&tls-psk-file=wrong" \
      "nbds+unix://bob@/?socket=$SOCKET&tls-psk-file=keys" \
      "nbds+unix://alice@/?socket=$SOCKET&tls-psk-file=nosuch" "$URI"; do
    run "$IO" "$u" info
    [ "$status" = 1 ] || fail "$u: $output"
    [[ $output == "storage-io: $u: "?* ]]
  done
}

@test "nbd: a killed server fails the requests of a TLS connection too" {
  make_keys
  mkfifo go
  start_server --tls=require --tls-psk=keys memory 1M
  start "$IO" --psk keys --user alice "$URI" 'wait go' 'fails write 0 64k 1' \
    'is 0 64k 1' >out 2>err
  pid=$STARTED_PID
  poll 30 grep -q waiting out
  kill -9 "$SERVER_PID"
  echo >go
  status_of "$pid"
  [ "$status" = 1 ]
  [ "$(grep -c "the connection is lost" err)" = 2 ]
}

@test "nbd: TLS is required, never given up" {
  make_keys
  start_server memory 1M
  expect_error 1 "TLS" "$IO" --psk keys --user alice "$URI" info
  expect_error 1 "TLS" \
    "$IO" "nbds+unix://alice@/?socket=$SOCKET&tls-psk-file=keys" info
}

@test "nbd: a certificate of the right authority and name is accepted" {
  make_authority pki
  start_tcp --tls=require --tls-certificates=pki memory 8M
  "$IO" "nbds://127.0.0.1:$PORT/?tls-certificates=pki" 'write 0 4M 3' \
    'is 0 4M 3' 'stress 4 50 4096'
  "$IO" --certificates pki "nbd://127.0.0.1:$PORT/" info
}

@test "nbd: a certificate of another authority or name is refused" {
  make_authority pki
  make_authority other
  make_authority named DNS:elsewhere.example
  start_tcp --tls=require --tls-certificates=pki memory 1M
  expect_error 1 "certificate" \
    "$IO" "nbds://127.0.0.1:$PORT/?tls-certificates=other" info
  "$IO" "nbds://127.0.0.1:$PORT/?tls-certificates=other&tls-verify-peer=0" info
  start_tcp --tls=require --tls-certificates=named memory 1M
  expect_error 1 "certificate" \
    "$IO" "nbds://127.0.0.1:$PORT/?tls-certificates=named" info
}

@test "nbd: a certificate that would not be checked is refused" {
  local u
  make_authority pki
  make_authority other
  start_server --tls=require --tls-certificates=pki memory 1M
  # Old libnbd checks none on a Unix socket, a newer one finds it wrong.
  u="nbds+unix:///?socket=$SOCKET&tls-certificates=other"
  expect_error 1 "certificate" "$IO" "$u" info
  "$IO" "$u&tls-verify-peer=0" info
  mkdir empty
  expect_error 1 "empty/ca-cert.pem cannot be read" \
    "$IO" "nbds+unix:///?socket=$SOCKET&tls-certificates=empty" info
}
