#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg serve.

load lib
load plugin
load tls

# start_serve ARGUMENT...: in the background; sets URI once it is printed.
start_serve () {
  rm -f uri
  start env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    "$NBDIMG" serve "$@" >uri 2>errors
  poll 30 printed_or_gone
  URI=$(cat uri)
  [ -n "$URI" ] || { cat errors >&2; return 1; }
}
printed_or_gone () { [ -s uri ] || ! is_running "$STARTED_PID"; }

# stop_serve [SIGNAL]: ends it, and its exit status.
stop_serve () {
  kill -"${1:-TERM}" "$STARTED_PID"
  wait "$STARTED_PID"
}

# The socket in a URI.
socket_of () {
  printf '%s' "${1#*socket=}"
}

@test "the URI works when it is printed; the end is clean and leaves nothing" {
  for signal in TERM INT HUP QUIT; do
    make_disk qcow2 disk 4M
    start_serve disk
    nbdsh -u "$URI" -c 'h.pwrite(b"x" * 5000, 1000)'
    stop_serve $signal
    is_clean disk
    qemu-io -r -c 'read -P 0x78 1000 5000' disk
    [ ! -e "$(socket_of "$URI")" ]
    [ ! -e "$(dirname "$(socket_of "$URI")")" ]
  done
}

@test "the private socket's folder is closed to others" {
  make_disk qcow2 disk 1M
  start_serve disk
  [ "$(stat -c %a "$(dirname "$(socket_of "$URI")")")" = 700 ]
}

@test "--socket listens there, replaces a dead socket, respects a live one" {
  make_disk qcow2 disk 1M
  make_disk qcow2 disk2 1M
  start_serve -k './a b?.sock' disk
  [ "$URI" = "nbd+unix:///?socket=$PWD/./a%20b%3F.sock" ]
  nbdinfo --size "$URI"
  expect_error 1 'another server listens there' \
    "$NBDIMG" serve -k './a b?.sock' disk2
  # The socket of a server that was killed.
  nbdkit=$(pgrep -P "$STARTED_PID")
  kill -9 "$STARTED_PID" "$nbdkit"
  poll 10 not_running "$nbdkit"
  [ -S './a b?.sock' ]
  start_serve -k './a b?.sock' disk2
  nbdinfo --size "$URI"
  stop_serve
  touch file
  expect_error 1 'exists and is not a socket' "$NBDIMG" serve -k file disk
  [ -f file ]
}

@test "when nbdimg is killed nbdkit does not stay behind" {
  make_disk qcow2 disk 1M
  start_serve disk
  nbdkit=$(pgrep -P "$STARTED_PID")
  kill -9 "$STARTED_PID"
  poll 20 not_running "$nbdkit"
  is_clean disk
  rm -rf "$(dirname "$(socket_of "$URI")")"
}

@test "a start that takes for ever can be broken off, and leaves nothing" {
  mkdir tmp
  # A server that never says a word.
  start /usr/bin/python3 -c '
import signal, socket
s = socket.socket(socket.AF_UNIX)
s.bind("mute")
s.listen()
signal.pause()'
  poll 20 test -S mute
  for option in --persistent --fork; do
    start env TMPDIR="$PWD/tmp" ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
      "$NBDIMG" serve $option "nbd+unix:///?socket=$PWD/mute"
    poll 20 nbdkit_runs
    kill "$STARTED_PID"
    poll 20 not_running "$STARTED_PID"
    status=0
    wait "$STARTED_PID" || status=$?
    [ "$status" -ne 0 ]
    poll 20 nbdkit_ended
    poll 20 rmdir tmp
    mkdir tmp
  done
}
nbdkit_runs () { pgrep -f "^[^ ]*nbdkit .*socket=$PWD/mute"; }
nbdkit_ended () { ! nbdkit_runs; }

@test "a child of somebody else's that ends meanwhile keeps no URI back" {
  truncate -s 1M disk
  start nbdkit -f -U slow --filter=delay file disk delay-open=2
  poll 20 test -S slow
  rm -f uri
  # As a script does that starts a helper and becomes the server.
  start env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    sh -c 'sleep 0.5 & exec "$@"' sh \
    "$NBDIMG" serve -f raw "nbd+unix:///?socket=$PWD/slow" >uri 2>errors
  poll 30 printed_or_gone
  [ "$(nbdinfo --size "$(cat uri)")" = 1048576 ]
  stop_serve
}

@test "--port listens on this machine only" {
  make_disk qcow2 disk 1M
  # A port that is free now may be taken when it is used: try some.
  for _ in {1..20}; do
    port=$((RANDOM % 20000 + 20000))
    start_serve -p $port disk && break
  done
  [ "$URI" = "nbd://127.0.0.1:$port" ]
  nbdinfo --size "$URI"
  ss -Hltn "sport = :$port" | awk '{ print $4 }' >listening
  [ "$(cat listening)" = "127.0.0.1:$port" ]
}

@test "--fork returns when the server is ready, --pid-file has its number" {
  make_disk qcow2 disk 1M
  uri=$("$NBDIMG" serve --fork --pid-file=pid -k sock disk 3>&- 4>&-)
  remember_pid "$(cat pid)"
  [ "$(ps -o comm= -p "$(cat pid)")" = nbdkit ]
  nbdsh -u "$uri" -c 'h.pwrite(b"x", 0)'
  kill "$(cat pid)"
  poll 20 not_running "$(cat pid)"
  socket_is_gone () { [ ! -e sock ]; }
  poll 20 socket_is_gone
  is_clean disk
}

@test "--run has the URI, and its exit status is the command's" {
  make_disk qcow2 disk 3M
  run --separate-stderr "$NBDIMG" serve --run 'nbdinfo --size "$uri"' disk
  [ "$status" -eq 0 ]
  [ "$output" = 3145728 ]
  run "$NBDIMG" serve --run 'exit 7' disk
  [ "$status" -eq 7 ]
  run "$NBDIMG" serve -x vm --run 'printf "%s\n" "$uri"; nbdinfo --size "$uri"' \
    disk
  [[ ${lines[0]} == nbd+unix:///vm?* ]]
  [ "${lines[1]}" = 3145728 ]
}

@test "--once ends after the last client" {
  make_disk qcow2 disk 1M
  start_serve --once disk
  nbdsh -u "$URI" -c 'h.pwrite(b"x", 0)'
  poll 20 not_running "$STARTED_PID"
  is_clean disk
}

@test "--read-only, --load-snapshot, --snapshot, --offset" {
  make_disk qcow2 disk 1M
  qemu-io -c 'write -P 1 0 1M' disk >/dev/null
  qemu-img snapshot -c s1 disk
  qemu-io -c 'write -P 2 0 1M' disk >/dev/null
  before=$(sha256sum disk)
  "$NBDIMG" serve -r --run 'nbdinfo --is read-only "$uri"' disk
  for name in s1 1 snapshot.id=1 snapshot.name=s1; do
    "$NBDIMG" serve -l $name --run 'nbdsh -u "$uri" -c "
assert h.is_read_only()
assert h.pread(512, 0) == b\"\\1\" * 512"' disk
  done
  "$NBDIMG" serve -s --run 'nbdsh -u "$uri" -c "
h.pwrite(b\"new\", 0)
assert h.pread(3, 0) == b\"new\""' disk
  "$NBDIMG" serve -r -o 512k --run 'nbdsh -u "$uri" -c "
assert h.get_size() == 512 << 10"' disk
  [ "$(sha256sum disk)" = "$before" ]
}

@test "--export-name is the only name, --description is told" {
  make_disk qcow2 disk 1M
  start_serve -x 'my disk' -D 'the description' disk
  [[ $URI == "nbd+unix:///my%20disk?socket="* ]]
  nbdinfo "$URI" >info
  grep -F 'description: the description' info
  run nbdinfo "nbd+unix:///?socket=$(socket_of "$URI")"
  [ "$status" -ne 0 ]
  nbdinfo --list "nbd+unix:///?socket=$(socket_of "$URI")" >list
  grep -F 'export="my disk"' list
}

@test "--shared limits the clients" {
  make_disk qcow2 disk 1M
  start_serve --shared=2 disk
  nbdsh -c "
a, b, c = nbd.NBD(), nbd.NBD(), nbd.NBD()
a.connect_uri('$URI')
b.connect_uri('$URI')
try:
    c.connect_uri('$URI')
    assert False
except nbd.Error:
    pass"
}

@test "--tls-psk requires TLS, and the URI says so" {
  make_disk qcow2 disk 1M
  make_key alice keys.psk
  start_serve --tls-psk=keys.psk disk
  [[ $URI == nbds+unix:///?socket=* ]]
  nbdinfo --size "nbds+unix://alice@/?socket=$(socket_of "$URI")&tls-psk-file=$PWD/keys.psk"
  run nbdinfo --size "nbd+unix:///?socket=$(socket_of "$URI")"
  [ "$status" -ne 0 ]
}

@test "--force-share serves what QEMU is writing to, read-only" {
  make_disk qcow2 disk 1M
  start_qemu_nbd -f qcow2 disk
  expect_error 1 'lock' "$NBDIMG" serve -r --run true disk
  "$NBDIMG" serve -r -U --run 'nbdinfo --size "$uri"' disk
  expect_error 1 'needs --read-only' "$NBDIMG" serve -U --run true disk
}

@test "a bad image ends it with 1 and a message, and prints no URI" {
  expect_error 1 missing "$NBDIMG" serve missing
  [ -z "$output" ]
  expect_error 1 missing "$NBDIMG" serve --fork -k sock missing
  [ -z "$output" ]
  [ ! -e sock ]
  expect_error 1 missing "$NBDIMG" serve --run 'touch started' missing
  [ ! -e started ]
}

@test "wrong options are refused before anything is opened" {
  make_disk qcow2 disk 1M
  expect_error 1 'no image' "$NBDIMG" serve
  expect_error 1 'second image' "$NBDIMG" serve disk disk
  expect_error 1 '--cache' "$NBDIMG" serve --cache=fast disk
  expect_error 1 '--offset' "$NBDIMG" serve -o x disk
  expect_error 1 '--format=vmdk' "$NBDIMG" serve -f vmdk disk
  expect_error 1 '--port' "$NBDIMG" serve -p 0 disk
  expect_error 1 '--port' "$NBDIMG" serve -p 65536 disk
  expect_error 1 'one of them' "$NBDIMG" serve -p 10809 -k sock disk
  expect_error 1 '--bind needs --port' "$NBDIMG" serve -b ::1 disk
  expect_error 1 '--aio=fast' "$NBDIMG" serve --aio=fast disk
  expect_error 1 'not with --fork' "$NBDIMG" serve --fork --run true disk
  expect_error 1 'at most 107' "$NBDIMG" serve -k "$(printf '%0200d' 0)" disk
  expect_error 1 'write driver=raw' "$NBDIMG" serve -f raw --image-opts driver=x
}

@test "options of qemu-nbd that are not supported are refused with advice" {
  make_disk qcow2 disk 1M
  expect_error 1 'nbd-client' "$NBDIMG" serve -c /dev/nbd0 disk
  expect_error 1 'nbd-client -d' "$NBDIMG" serve -d /dev/nbd0
  expect_error 1 'nbdinfo --list' "$NBDIMG" serve -L
  expect_error 1 'bitmaps' "$NBDIMG" serve -B b0 disk
  expect_error 1 'nbdimg map' "$NBDIMG" serve -A disk
  expect_error 1 '--tls-psk' "$NBDIMG" serve --tls-creds t disk
}

@test "--print-command can be run by a shell" {
  make_disk qcow2 "it's a disk" 1M
  "$NBDIMG" serve -r -k sock --cache=none --print-command "it's a disk" >command
  [ ! -e sock ]
  eval "set -- $(cat command)"
  [[ $1 == *nbdkit ]]
  for word in -r cache=none "file=it's a disk" -U "$PWD/sock"; do
    for arg; do [ "$arg" = "$word" ] && continue 2; done
    fail "$word is not in: $(cat command)"
  done
}

@test "every option of the image reaches nbdkit as the plugin takes it" {
  qemu-img create -q -f qcow2 a.qcow2 1M
  mkdir certificates
  while IFS='|' read -r options words; do
    # shellcheck disable=SC2086
    run "$NBDIMG" serve --print-command $options a.qcow2
    [ "$status" = 0 ] || fail "$options: $output"
    for word in $words; do
      [[ " $output " == *" $word "* ]] || fail "$options: no $word: $output"
    done
  done <<'END'
-f qcow2|format=qcow2
-r -U|-r readonly=on force-share=on
--share|share=on
-n|cache=none
--cache=unsafe|cache=unsafe
--discard=ignore|discard=ignore
--detect-zeroes=unmap|detect-zeroes=unmap
--backing=off|backing=off
--untrusted|untrusted=on
--metadata-cache=1M|metadata-cache=1M
--aio=threads|file=a.qcow2
--aio=io_uring|file=a.qcow2
-t|file=a.qcow2
-v|-v
-T debug|file=a.qcow2
-p 10809 -b ::1|--port=10809 --ipaddr=::1
--tls-certificates=certificates|--tls=require --tls-certificates=certificates
--tls=on --tls-certificates=certificates|--tls=on
--tls-certificates=certificates --tls-verify-peer|--tls-verify-peer
END
  run "$NBDIMG" serve --print-command --image-opts driver=qcow2,file.filename=a.qcow2
  [[ $output == *"image-opts="* ]]
}

@test "the number of threads follows the processors, or --threads" {
  make_disk qcow2 disk 1M
  threads () {
    "$NBDIMG" serve -k sock --print-command "$@" | grep -o 'threads=[0-9]*'
  }
  n=$((2 * $(getconf _NPROCESSORS_ONLN)))
  [ $n -ge 4 ] || n=4
  [ $n -le 16 ] || n=16
  [ "$(threads disk)" = threads=$n ]
  [ "$(threads --threads=3 disk)" = threads=3 ]
  [ "$(threads --cache=none disk)" = threads=16 ]
  [ "$(threads nbd://localhost)" = threads=16 ]
}

@test "an image behind an NBD server that is run for it" {
  random_image data 2M 1
  qemu-img convert -f raw -O qcow2 data disk
  "$NBDIMG" serve -r --run 'nbdcopy "$uri" copy' [ nbdkit file disk ]
  cmp data copy
}

@test "--help and --version" {
  run "$NBDIMG" serve --help
  [ "$status" -eq 0 ]
  [[ $output == "usage: nbdimg serve"* ]]
  run "$NBDIMG" serve --version
  [ "$status" -eq 0 ]
  [[ $output == "nbdimg version "* ]]
}
