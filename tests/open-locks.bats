# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# QEMU's image locks: QEMU and nbdimg keep each other out, both ways round.

load lib

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io qemu-nbd nbdinfo
  qemu-img create -q -f qcow2 base.qcow2 1M
  qemu-img create -q -f raw base.raw 1M
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
  qemu-img create -q -f qcow2 -b base.raw -F raw top.raw
}

# The locked bytes of FILE, in order: "100-101 103-103".
locked_bytes () {
  local inode
  inode=$(stat -c %i "$1")
  awk -v i=":$inode\$" '$2 == "OFDLCK" && $6 ~ i { print $7 "-" $8 }' \
    /proc/locks | sort -n | tr '\n' ' '
}

need_proc_locks () {
  start flock -s base.raw sleep 100
  poll 10 grep -q ":$(stat -c %i base.raw) " /proc/locks ||
    skip "/proc/locks does not show our locks"
  stop_all
}

# Our plugin with a client that may write: the write locks are taken.
we_write () {
  start_nbdkit "$@" || return 1
  nbdinfo --size "$URI"
}

we_read () {
  start_nbdkit -r "$@"
}

qemu_writes () { start_qemu_nbd -f "$1" "$2"; }
qemu_reads () { start_qemu_nbd -r -f "$1" "$2"; }

locked () {
  expect_error "$1" "lock" "${@:2}"
}

@test "the locked bytes are QEMU's, for a writer, a reader and their chains" {
  need_proc_locks
  local theirs ours
  qemu_writes qcow2 top.qcow2
  theirs="$(locked_bytes top.qcow2)/ $(locked_bytes base.qcow2)"
  stop_server
  we_write top.qcow2
  ours="$(locked_bytes top.qcow2)/ $(locked_bytes base.qcow2)"
  stop_server
  echo "$theirs $ours"
  [ "$theirs" = "$ours" ]
  [ "$ours" = '100-101 103-103 201-201 203-203 / 100-100 201-201 203-203 ' ]
  qemu_reads qcow2 top.raw
  theirs="$(locked_bytes top.raw)/ $(locked_bytes base.raw)"
  stop_server
  we_read top.raw
  ours="$(locked_bytes top.raw)/ $(locked_bytes base.raw)"
  stop_server
  [ "$theirs" = "$ours" ]
  [ "$ours" = '100-100 201-201 203-203 / 100-100 ' ]
  [ -z "$(locked_bytes top.raw)" ]
}

@test "while we write, QEMU neither writes nor reads, nor creates" {
  local f size
  for f in top.qcow2 base.raw; do
    we_write "$f"
    size=$(stat -c %s "$f")
    locked 1 qemu-io -c 'write 0 512' "$f"
    [ "$f" = base.raw ] || locked 1 qemu-io -r -c 'read 0 512' "$f"
    [ "$f" = base.raw ] || locked 1 qemu-img info "$f"
    qemu-img info -U "$f"
    locked 1 qemu-img resize "$f" 2M
    locked 1 qemu-img create -q -f raw "$f" 4k
    [ "$(stat -c %s "$f")" = "$size" ]
    stop_server
    qemu-io -c 'write 0 512' "$f"
  done
}

@test "while we read, QEMU reads too, and does not write" {
  local f
  for f in top.qcow2 base.raw; do
    we_read "$f"
    qemu-io -r -c 'read 0 512' "$f"
    qemu-img info "$f"
    locked 1 qemu-io -c 'write 0 512' "$f"
    locked 1 qemu-img create -q -f raw "$f" 4k
    stop_server
  done
}

@test "while QEMU writes, we neither write nor read, but with -U" {
  qemu_writes qcow2 top.qcow2
  locked 1 "$NBDIMG" map top.qcow2
  locked 2 "$NBDIMG" compare top.qcow2 base.qcow2
  "$NBDIMG" map -U top.qcow2
  "$NBDIMG" info top.qcow2
  expect_error 1 lock nbdkit_env -U - "$PLUGIN" top.qcow2 --run true
  expect_error 1 lock nbdkit_env -r -U - "$PLUGIN" top.qcow2 --run true
  # Its backing file is only read.
  "$NBDIMG" map base.qcow2
  stop_server
  "$NBDIMG" map top.qcow2
  # A raw image that QEMU writes to is read by QEMU, and not by us, but as a
  # backing file.
  qemu_writes raw base.raw
  locked 1 "$NBDIMG" map base.raw
  "$NBDIMG" map -U base.raw
  "$NBDIMG" map top.raw
}

@test "while QEMU reads, we read too, and do not write" {
  qemu_reads qcow2 top.qcow2
  "$NBDIMG" map top.qcow2
  start_nbdkit top.qcow2
  run nbdinfo --size "$URI"
  [ "$status" != 0 ]
  stop_server
  qemu_reads raw base.raw
  start_nbdkit -r base.raw
  nbdinfo --size "$URI"
}

@test "create over an image that QEMU has open fails and leaves it alone" {
  local before
  before=$(sha256sum base.qcow2)
  qemu_reads qcow2 top.qcow2
  locked 1 "$NBDIMG" create -q -f raw base.qcow2 4k
  locked 1 "$NBDIMG" create -q -f qcow2 top.qcow2 4k
  [ "$(sha256sum base.qcow2)" = "$before" ]
}

@test "overlays of one base are written side by side, ours and QEMU's" {
  local base
  for base in base.qcow2 base.raw; do
    qemu-img create -q -f qcow2 -b $base -F "${base#base.}" one
    qemu-img create -q -f qcow2 -b $base -F "${base#base.}" two
    we_write one
    qemu-io -c 'write -P 1 0 64k' two
    "$NBDIMG" compare -f "${base#base.}" -F "${base#base.}" $base $base
    stop_server
    qemu_writes qcow2 two
    we_write one
    qemu-io -f raw -c 'write -P 2 64k 64k' "$URI"
    stop_server
    stop_all
  done
}

@test "a base that we read from is not written to by qemu-img commit" {
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 other
  qemu-io -c 'write -P 1 0 64k' other
  we_read top.qcow2
  locked 1 qemu-img commit other
  stop_server
  qemu-img commit -q other
}

@test "readers that may write later wait for each other to be gone" {
  start_nbdkit top.qcow2
  local first=$SERVER_PID uri=$URI
  start_nbdkit top.qcow2
  run nbdinfo --size "$uri"
  [ "$status" != 0 ]
  stop_server
  nbdinfo --size "$uri"
  locked 1 qemu-io -c 'write 0 512' top.qcow2
  SERVER_PID=$first stop_server
}

@test "kill -9 gives the locks back" {
  we_write top.qcow2
  kill -9 "$SERVER_PID"
  poll 10 not_running "$SERVER_PID"
  qemu-io -c 'write 0 512' top.qcow2
}

@test "two names of one file are one image" {
  ln top.qcow2 hard
  ln -s top.qcow2 soft
  we_write top.qcow2
  locked 1 "$NBDIMG" map hard
  locked 1 "$NBDIMG" map soft
  locked 1 "$NBDIMG" map ./././top.qcow2
}

@test "locking=off asks for no locks, locking=on insists on them" {
  we_write top.qcow2
  "$NBDIMG" map --image-opts \
    driver=qcow2,file.filename=top.qcow2,file.locking=off
  locked 1 "$NBDIMG" map --image-opts \
    driver=qcow2,file.filename=top.qcow2,file.locking=on
}
