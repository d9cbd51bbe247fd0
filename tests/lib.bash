# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# What the bats files share; each begins with "load lib".  A test runs in a
# folder of its own, $BATS_TEST_TMPDIR, and what it starts with the functions
# below is ended after it.  "NBDIMG_BUILD=DIR bats tests/x.bats" runs one file.
#
#   $NBDIMG   the tool        $PLUGIN   the plugin        $SRCDIR   the sources

bats_require_minimum_version 1.5.0

: "${NBDIMG_BUILD:?set it to the folder that was built in, or run make check}"
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"

NBDIMG=$NBDIMG_BUILD/nbdimg
PLUGIN=$NBDIMG_BUILD/nbdkit-nbdimg-plugin.so
SRCDIR=$config_srcdir
export NBDIMG PLUGIN SRCDIR
export NBDIMG_PLUGIN=$PLUGIN    # what "nbdimg serve" loads
export LC_ALL=C.UTF-8
# Neither the user's settings nor a terminal change what is printed.
unset NBDIMG_TEST_STORAGE POSIXLY_CORRECT
# A sanitizer's finding is a failure, whatever exit status a test expects.
export ASAN_OPTIONS="exitcode=99:allocator_may_return_null=1"
export UBSAN_OPTIONS="print_stacktrace=1:exitcode=99"
export TSAN_OPTIONS="exitcode=99"

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
}

teardown () {
  stop_all
}

# need PROGRAM...: skip the test where one is not installed
need () {
  local p
  for p; do
    command -v "$p" >/dev/null || skip "$p is not installed"
  done
}

need_root () {
  [ "$(id -u)" = 0 ] || skip "needs root"
}

# Is the test storage (NBDIMG_TEST_STORAGE) built in?
need_test_storage () {
  [ "$config_test_storage" = yes ] ||
    skip "configure --enable-test-storage was not given"
}

need_zstd () {
  [ "$config_have_zstd" = yes ] || skip "built without libzstd"
}

# fail TEXT...: end the test, saying why
fail () {
  printf '%s\n' "$*" >&2
  return 1
}

# expect_error STATUS TEXT COMMAND...: the command ends with STATUS, and TEXT is
# a part of what it says on standard error
expect_error () {
  local want=$1 text=$2
  shift 2
  run --separate-stderr "$@"
  [ "$status" = "$want" ] ||
    fail "status $status, not $want: $*"$'\n'"$output"$'\n'"$stderr"
  [[ $stderr == *"$text"* ]] ||
    fail "'$text' is not in the error of: $*"$'\n'"$stderr"
}

# poll SECONDS COMMAND...: until the command succeeds
poll () {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.02
  done
}

# ---- processes ----

# When a process began, in clock ticks: with its number that names it for good,
# where the number alone is soon another process's.
start_time () {
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

# Remember a process that this test started.
remember_pid () {
  echo "$1 $(start_time "$1")" >>"$BATS_TEST_TMPDIR/.pids"
}

# A process that ended and was not waited for does not count.  While it has
# threads that have not ended it does, whatever its first one says: they may hold
# its files and their locks.
is_running () {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra stat <<<"${stat##*) }"       # from field 3 (state) on; 20: threads
  [ "${stat[0]}" != Z ] || [ "${stat[17]}" -gt 1 ]
}

# start COMMAND...: in the background, with the standard input of the test (bash
# gives /dev/null otherwise); its number is in $STARTED_PID
start () {
  "$@" <&0 3>&- 4>&- &
  STARTED_PID=$!
  remember_pid $STARTED_PID
}

stop_all () {
  local pid began
  [ -e "$BATS_TEST_TMPDIR/.pids" ] || return 0
  while read -r pid began; do
    [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] || continue
    kill "$pid" 2>/dev/null || continue
    poll 10 not_running "$pid" || kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null || :
  done <"$BATS_TEST_TMPDIR/.pids"
  rm -f "$BATS_TEST_TMPDIR/.pids"
}

not_running () { ! is_running "$1"; }

# A name for a socket; they may not be longer than 107 bytes.
new_socket () {
  local nr=0
  while [ -e "$BATS_TEST_TMPDIR/s$nr.sock" ] \
      || [ -e "$BATS_TEST_TMPDIR/s$nr.pid" ]; do
    nr=$((nr + 1))
  done
  SOCKET=$BATS_TEST_TMPDIR/s$nr.sock
  PIDFILE=$BATS_TEST_TMPDIR/s$nr.pid
  [ ${#SOCKET} -le 107 ] || fail "TMPDIR is too long for a socket: $SOCKET"
}

# Servers write their number when they listen.
wait_for_server () {
  local pid=$1
  poll 30 server_is_up_or_gone "$pid"
  [ -s "$PIDFILE" ] || fail "the server did not start"
}

server_is_up_or_gone () {
  [ -s "$PIDFILE" ] || ! is_running "$1"
}

# nbdkit with what the sanitizers of a plugin need.
nbdkit_env () {
  env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    ${config_PRELOAD:+ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0"} \
    "$config_NBDKIT" "$@"
}

# start_nbdkit ARGUMENT...: nbdkit with our plugin on a new socket.  Options of
# nbdkit's (those with a dash, as one word each) go before the plugin.  Sets
# SOCKET, URI and SERVER_PID.
start_nbdkit () {
  local options=()
  while [ $# -gt 0 ]; do
    case $1 in
    -*) options+=("$1"); shift ;;
    *) break ;;
    esac
  done
  start_server "${options[@]}" "$PLUGIN" "$@"
}

# start_server ARGUMENT...: nbdkit with any plugin
start_server () {
  new_socket
  start nbdkit_env -f -U "$SOCKET" -P "$PIDFILE" "$@"
  wait_for_server "$STARTED_PID" || return 1
  SERVER_PID=$(cat "$PIDFILE")
  remember_pid "$SERVER_PID"
  URI="nbd+unix:///?socket=$SOCKET"
}

# A socket that listens on a free port of the loopback is made before the server,
# which takes it over as descriptor 3 by socket activation: no port is guessed.
listen_and_exec='
import os, socket, sys
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen(128)
with open("port.new", "w") as f:
    f.write(str(s.getsockname()[1]))
os.rename("port.new", "port")
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[1], sys.argv[1:])
'

# start_listening COMMAND...: a server on such a socket; sets PORT
start_listening () {
  need python3
  rm -f port
  start python3 -c "$listen_and_exec" "$@"
  poll 30 test -s port || fail "no port for $1"
  PORT=$(cat port)
}

# start_tcp ARGUMENT...: nbdkit with any plugin on a free port of localhost; sets
# PORT, URI and SERVER_PID
start_tcp () {
  new_socket
  start_listening env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    ${config_PRELOAD:+ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0"} \
    "$config_NBDKIT" -f -P "$PIDFILE" "$@" || return 1
  wait_for_server "$STARTED_PID" || return 1
  SERVER_PID=$(cat "$PIDFILE")
  URI="nbd://127.0.0.1:$PORT"
}

# start_qemu_nbd ARGUMENT...: the same with qemu-nbd
start_qemu_nbd () {
  new_socket
  start qemu-nbd --persistent --shared=0 --socket="$SOCKET" \
    --pid-file="$PIDFILE" "$@"
  wait_for_server "$STARTED_PID" || return 1
  SERVER_PID=$(cat "$PIDFILE")
  URI="nbd+unix:///?socket=$SOCKET"
}

# Clean end of the server that was started last.
stop_server () {
  kill "$SERVER_PID"
  poll 30 not_running "$SERVER_PID" || fail "the server did not end"
}

# ---- files ----

# random_image FILE SIZE SEED: the same bytes for the same seed.  Blocks of
# 64 KiB: holes, zero bytes, text that packs well, noise that does not, and
# noise that begins and ends anywhere.  SIZE in bytes, or with k, M, G.
random_image () {
  perl -e '
    my ($file, $size, $seed) = @ARGV;
    $size =~ /^(\d+)([kMG]?)$/ or die "size: $size\n";
    $size = $1 * {"" => 1, k => 1024, M => 1048576, G => 1073741824}->{$2};
    srand $seed;
    my $pool = join "", map { pack "L", int rand 4294967296 } 1 .. 65536;
    my $text = "All happy families are alike; " x 2200;
    open my $f, "+>:raw", $file or die "$file: $!\n";
    for (my $at = 0; $at < $size; $at += 65536) {
      my $len = $size - $at < 65536 ? $size - $at : 65536;
      my $kind = rand; my $from = int rand 196608;
      my $noise = substr ($pool, $from, $len) ^ (pack ("N", $at >> 9) x 16384);
      my ($skip, $block) = (0, "");
      if ($kind < 0.3) { next }
      elsif ($kind < 0.4) { $block = "\0" x $len }
      elsif ($kind < 0.6) { $block = substr "$at " . $text, 0, $len }
      elsif ($kind < 0.85) { $block = substr $noise, 0, $len }
      else { $skip = int rand $len;
             $block = substr $noise, 0, int rand ($len - $skip) }
      seek $f, $at + $skip, 0; print $f $block or die "$file: $!\n";
    }
    truncate $f, $size or die "$file: $!\n";
    close $f or die "$file: $!\n"' -- "$@"
}

# random_requests SEED SIZE: lines for qemu-io and nbdimg io, 512-byte aligned
random_requests () {
  perl -e '
    my ($seed, $size) = @ARGV;
    srand $seed;
    for (1 .. 40) {
      my $at = int (rand ($size / 512)) * 512;
      my $len = (1 + int rand (rand () < 0.3 ? 4096 : 40)) * 512;
      $len = $size - $at if $len > $size - $at;
      my $kind = rand;
      if ($kind < 0.7) { printf "write -q -P %d %d %d\n", 1 + rand 254, $at, $len }
      elsif ($kind < 0.85) { print "write -q -z $at $len\n" }
      else { print "write -q -z -u $at $len\n" }
    }' -- "$@"
}

# new_disks FORMAT SIZE: the same empty disk thrice: raw, ours and theirs
new_disks () {
  rm -f raw ours theirs
  qemu-img create -q -f raw raw "$2"
  "$NBDIMG" create -q -f "$1" ours "$2"
  qemu-img create -q -f "$1" theirs "$2"
}

# same_requests FORMAT SEED SIZE A B: random_requests on the file raw; on A by
# nbdimg io, on B by qemu-io
same_requests () {
  random_requests "$2" "$3" >requests
  qemu-io -f raw raw <requests >/dev/null
  "$NBDIMG" io -f "$1" "$4" <requests >/dev/null
  qemu-io -f "$1" "$5" <requests >/dev/null
}

# poke FILE OFFSET HEX: write bytes into a file
poke () {
  printf '%s' "$3" | xxd -r -p |
    dd of="$1" bs=1 seek=$(($2)) conv=notrunc status=none
}

# peek FILE OFFSET LENGTH: bytes of a file, in hex
peek () {
  dd if="$1" bs=1 skip=$(($2)) count=$(($3)) status=none | xxd -p | tr -d '\n'
}
