# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# -t and -T: what each mode asks of the system.

load lib

setup () {
  need qemu-img qemu-io strace
  cd "$BATS_TEST_TMPDIR" || return 1
  random_image odd.raw 1000003 3
}

# traced ARG...: run it, and count into $direct and $syncs
traced () {
  strace -f -o log -e trace=openat,fcntl,fsync,fdatasync,pwritev2 \
    "$NBDIMG" "$@" || fail "$*"
  direct=$(grep -cE 'O_DIRECT' log) || :
  syncs=$(grep -cE 'f(data)?sync\(|RWF_DSYNC' log) || :
}

# as_mode MODE SYNCS: with O_DIRECT or without, and the mode's flushes, SYNCS
# being those of writeback
as_mode () {
  case $1 in
    none | directsync) [ "$direct" -gt 0 ] ;;
    *) [ "$direct" = 0 ] ;;
  esac || fail "$1: O_DIRECT $direct times"
  case $1 in
    writethrough | directsync) [ "$syncs" -gt "$2" ] ;;
    unsafe) [ "$syncs" = 0 ] ;;
    *) [ "$syncs" -gt 0 ] ;;
  esac || fail "$1: $syncs flushes, writeback has $2"
}

@test "each mode of convert and io is what it says" {
  local base
  for mode in writeback none writethrough directsync unsafe; do
    qemu-img create -q -f qcow2 o.qcow2 1000448
    traced convert -n -t $mode -f raw -O qcow2 odd.raw o.qcow2
    [ $mode != writeback ] || base=$syncs
    as_mode $mode "$base"
    qemu-img compare -f raw -F qcow2 odd.raw o.qcow2
    qemu-img check -q o.qcow2

    traced io -t $mode -c 'write -q -P 7 1001 70003' -c 'write -q -P 8 4099 1' \
      o.qcow2
    case $mode in
      none | directsync) [ "$direct" -gt 0 ] ;;
      unsafe) [ "$direct" = 0 ] && [ "$syncs" = 0 ] ;;
    esac
    qemu-io -c 'read -P 7 1001 3098' -c 'read -P 8 4099 1' \
      -c 'read -P 7 4100 66904' o.qcow2 >out
    [ "$(grep -c '^read' out)" = 3 ]
    [ "$(grep -ci fail out)" = 0 ]
  done
}

@test "-T reads sizes that are no multiple of a block with O_DIRECT, and only then" {
  "$NBDIMG" convert -f raw -O qcow2 odd.raw o.qcow2
  for mode in writeback none writethrough directsync unsafe; do
    traced compare -T $mode -f raw -F qcow2 odd.raw o.qcow2
    case $mode in
      none | directsync) [ "$direct" -gt 0 ] ;;
      *) [ "$direct" = 0 ] ;;
    esac || fail "$mode: O_DIRECT $direct times"
    [ "$syncs" = 0 ]
    traced check -q -T $mode o.qcow2
    [ "$syncs" = 0 ]
  done
}
