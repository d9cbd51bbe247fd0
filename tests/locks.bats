# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Who may do what while another program has the image open: the whole table,
# with nbdimg and QEMU on either side of it; and races for an image.  What the
# locks are, and locks of servers and chains: open-locks.bats.

load lib

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
}

teardown () {
  exec 9>&-
  stop_all
}

# ---- the table ----

# img ours|QEMU ARGUMENT...
img () {
  case $1 in
  ours) "$NBDIMG" "${@:2}" ;;
  QEMU) qemu-img "${@:2}" ;;
  esac
}

io () {
  case $1 in
  ours) "$NBDIMG" io "${@:2}" ;;
  QEMU) qemu-io "${@:2}" ;;
  esac
}

# hold ours|QEMU FORMAT OPTION...: have the image "disk" open until let_go
hold () {
  local tool=(qemu-io)
  [ "$1" = QEMU ] || tool=("$NBDIMG" io)
  rm -f commands opened
  mkfifo commands
  exec 9<>commands
  start "${tool[@]}" -f "$2" "${@:3}" disk <commands >opened 9>&-
  echo length >&9
  poll 20 grep -q MiB opened
}

let_go () {
  exec 9>&-
  poll 20 not_running "$STARTED_PID"
}

# try WHO FORMAT WHAT
try () {
  case $3 in
  write) io "$1" -f "$2" -c 'write 0 512' disk ;;
  read) io "$1" -r -f "$2" -c 'read 0 512' disk ;;
  read-U) io "$1" -r -U -f "$2" -c 'read 0 512' disk ;;
  create) img "$1" create -f "$2" disk 1M ;;
  check) img "$1" check -f "$2" disk ;;
  check-U) img "$1" check -U -f "$2" disk ;;
  info) img "$1" info -f "$2" disk ;;
  map) img "$1" map -f "$2" disk ;;
  copy) img "$1" convert -f "$2" -O raw disk copy ;;
  onto) img "$1" convert -f raw -O "$2" source disk ;;
  into) img "$1" convert -n -f raw -O "$2" source disk ;;
  esac
}

# table FORMAT HOLDER TRIER OPTIONS WHAT=STATUS...: while HOLDER has the image
# open with OPTIONS, what TRIER does ends with that status; where it is 1 the
# image is what it was, and the error speaks of the lock.
table () {
  local format=$1 holder=$2 trier=$3 options=$4 entry status before
  shift 4
  truncate -s 1M source
  for entry; do
    qemu-img create -q -f "$format" disk 1M
    # shellcheck disable=SC2086
    hold "$holder" "$format" $options
    before=$(sha256sum disk)
    status=0
    try "$trier" "$format" "${entry%=*}" 9>&- >said 2>&1 || status=$?
    let_go
    [ $status = "${entry#*=}" ] || {
      cat said
      fail "$format, $holder has it open ($options), $trier: ${entry%=*}:" \
        "status $status, not ${entry#*=}"
    }
    [ $status != 1 ] || {
      grep -q 'lock' said || { cat said; fail "no word of a lock: $entry"; }
      [ "$(sha256sum disk)" = "$before" ] || fail "changed: $entry"
    }
  done
}

@test "a qcow2 image that is written to is closed to all, but with -U" {
  local all="write=1 read=1 read-U=0 create=1 check=1 check-U=0 map=1 copy=1
    onto=1 into=1"
  for holder in ours QEMU; do
    # info of ours asks for nothing that a writer minds.
    table qcow2 $holder ours '' $all info=0
    table qcow2 $holder QEMU '' $all info=1
  done
}

@test "a qcow2 image that is read is closed to writers" {
  for holder in ours QEMU; do
    for trier in ours QEMU; do
      table qcow2 $holder $trier -r write=1 read=0 read-U=0 create=1 check=0 \
        check-U=0 info=0 map=0 copy=0 onto=1 into=1
    done
  done
}

@test "who reads with -U stands in nobody's way" {
  for format in qcow2 raw; do
    for holder in ours QEMU; do
      for trier in ours QEMU; do
        table $format $holder $trier '-r -U' write=0 read=0 read-U=0 create=0 \
          info=0 map=0 copy=0 onto=0 into=0
      done
    done
  done
}

# QEMU lets writers of a raw image share it; we do not, on either side.
@test "a raw image that we write to is closed to other writers, QEMU too" {
  table raw ours ours '' write=1 read=1 read-U=0 create=1 info=0 map=1 copy=1 \
    onto=1 into=1
  table raw ours QEMU '' write=1 read=0 read-U=0 create=1 info=0 map=0 copy=1 \
    onto=1 into=1
}

@test "a raw image that QEMU writes to is closed to us" {
  table raw QEMU ours '' write=1 read=1 read-U=0 create=1 info=0 map=1 copy=1 \
    onto=1 into=1
}

@test "a raw image that we read is closed to writers" {
  for trier in ours QEMU; do
    table raw ours $trier -r write=1 read=0 read-U=0 create=1 info=0 map=0 \
      copy=0 onto=1 into=1
  done
}

@test "kill -9 of any holder gives the image back" {
  for holder in ours QEMU; do
    for options in '' -r; do
      qemu-img create -q -f qcow2 disk 1M
      # shellcheck disable=SC2086
      hold $holder qcow2 $options
      kill -9 "$STARTED_PID"
      let_go
      "$NBDIMG" io -c 'write 0 512' disk
      qemu-io -c 'write 0 512' disk
    done
  done
}

# ---- races ----

@test "of those who race for an image at most one has it, ours and QEMU's" {
  LOCK_RACES=300 "$SRCDIR/tests/soak/locks.sh"
}

@test "the race is seen by its test where there are no locks" {
  run env LOCK_RACES=100 LOCK_OFF=1 "$SRCDIR/tests/soak/locks.sh"
  [ "$status" != 0 ]
  [[ $output == *'two writers at once'* ]]
}
