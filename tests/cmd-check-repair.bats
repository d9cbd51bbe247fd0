# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# check -r: damaged qcow2 images.  A line of a table is a kind of damage:
#
#   NAME BASE LEFT OFFSET HEX [OFFSET HEX]...
#
# BASE is a sound image into which bytes are written, LEFT the exit status of
# -r all: 0 clean, 2 some of it cannot be mended, 1 nothing may be touched.  For
# each kind: check finds what qemu-img finds or more; after -r leaks and -r all
# the guest reads what it could read before, and a second run changes no byte;
# what is called clean qemu-img calls clean too; what is not says why.
#
# Where things are in the bases with 64 KiB clusters: refcount table 0x10000,
# refcount block 0x20000, L1 0x30000, L2 0x40000, data from 0x50000 on.
# snap: the snapshot's L1 0x90000, snapshot table 0xa0000, the new L2 0xb0000.
# bitmap: data 0x90000, bitmap table 0xa0000, directory 0x100000.

load lib
load peer

make_base () {                  # make_base NAME
  local o=compat=1.1
  case $1 in
  extended) o=extended_l2=on ;;
  version2 | v2-backing) o=compat=0.10 ;;
  one-bit) o=refcount_bits=1 ;;
  two-bits) o=refcount_bits=2 ;;
  small) o=cluster_size=512 ;;
  datafile) o=data_file=data.raw ;;
  esac
  case $1 in
  *backing)
    head -c 4M /dev/zero | tr '\0' '\252' >base.raw
    o+=,backing_file=base.raw,backing_fmt=raw ;;
  esac
  qemu-img create -q -f qcow2 -o $o base.qcow2 4M
  case $1 in
  packed)
    qemu-io -c 'write -c -P 17 0 64k' -c 'write -c -P 18 64k 64k' base.qcow2 ;;
  small) qemu-io -c 'write -P 17 0 4k' base.qcow2 ;;
  *) qemu-io -c 'write -P 17 0 256k' base.qcow2 ;;
  esac >/dev/null
  case $1 in
  snap)
    qemu-img snapshot -c s1 base.qcow2
    qemu-io -c 'write -P 18 0 64k' base.qcow2 >/dev/null ;;
  bitmap)
    qemu-img bitmap --add base.qcow2 b0
    qemu-img bitmap --add base.qcow2 bb
    qemu-io -c 'write -P 18 64k 64k' base.qcow2 >/dev/null ;;
  esac
}

# What the guest reads, zeroes where it cannot.
content () {                    # content FILE
  "$NBDIMG" convert --salvage -O raw t.qcow2 "$1" 2>/dev/null || rm -f "$1"
}

same_content () {               # same_content WHAT
  [ -e before.raw ] || return 0
  content after.raw
  cmp before.raw after.raw || fail "$1: the guest reads something else"
}

# -r HOW on the image NAME, twice; the status is in $first
repair_twice () {               # repair_twice NAME HOW
  local sum second=0
  first=0
  cp damaged.qcow2 t.qcow2
  "$NBDIMG" check -r "$2" t.qcow2 >out 2>err || first=$?
  sum=$(sha256sum <t.qcow2)
  [ "$first" != 1 ] || cmp -s damaged.qcow2 t.qcow2 ||
    fail "$1: -r $2 was refused, and changed it all the same"
  [ "$first" = 0 ] || [ -s err ] || fail "$1: -r $2 does not say why"
  "$NBDIMG" check -q -r "$2" t.qcow2 2>/dev/null || second=$?
  [ $second = "$first" ] || fail "$1: -r $2: first $first, then $second"
  [ "$sum" = "$(sha256sum <t.qcow2)" ] ||
    fail "$1: a second -r $2 changed it again"
}

one_kind () {                   # one_kind NAME LEFT
  local name=$1 left=$2 ours=0 theirs=0 first
  cp damaged.qcow2 t.qcow2
  "$NBDIMG" check -q t.qcow2 2>/dev/null || ours=$?
  qemu-img check -q t.qcow2 >/dev/null 2>&1 || theirs=$?
  case $theirs:$ours in
  0:*) ;;
  3:[123]) ;;
  [12]:[12]) ;;
  *) fail "$name: check ends with $ours, qemu-img's with $theirs" ;;
  esac
  cmp damaged.qcow2 t.qcow2 || fail "$name: check changed it"
  rm -f before.raw
  content before.raw
  repair_twice "$name" leaks
  [ "$first" != 0 ] || qemu-img check -q t.qcow2
  # Metadata that the guest reads as its own change with the metadata.
  case $name in *-reads-l2) ;; *) same_content "$name -r leaks" ;; esac
  repair_twice "$name" all
  [ "$first" = "$left" ] ||
    fail "$name: -r all ended with $first, not $left"$'\n'"$(cat out err)"
  same_content "$name -r all"
  [ "$left" != 0 ] || qemu-img check -q t.qcow2 ||
    fail "$name: qemu-img does not find it clean"
}

kinds () {                      # kinds TABLE
  local name base left line last=
  while read -r name base left line; do
    case $name in '' | '#'*) continue ;; esac
    [ "$base" = "$last" ] || { rm -f base.qcow2; make_base "$base"; }
    last=$base
    cp base.qcow2 damaged.qcow2
    # shellcheck disable=SC2086
    set -- $line
    while [ $# -gt 1 ]; do
      poke damaged.qcow2 "$1" "$2"
      shift 2
    done
    one_kind "$name" "$left"
  done <<<"$1"
}

@test "repair: refcounts that are too small, too large or missing" {
  kinds '
one-is-0            written 0 0x2000a 0000
header-is-0         written 0 0x20000 0000
all-are-0           written 0 0x20000 000000000000000000000000000000000000
all-are-2           written 0 0x20000 000200020002000200020002000200020002
one-is-65535        written 0 0x2000a ffff
leak                written 0 0x20010 0001 0x40018 0000000000000000
leaks-and-errors    written 0 0x2000a 0000 0x20010 0005
of-1-bit            one-bit 0 0x20000 00
of-1-bit-leak       one-bit 0 0x20000 ffff
of-512-bytes        small   0 0x400 000000000000000000000000
snapshot-too-small  snap    0 0x2000c 00010001
snapshot-too-large  snap    0 0x2000c 00090009
snapshot-and-flags  snap    0 0x2000c 00010001 0xb0010 8000000000070000
of-version-2        version2 0 0x2000a 0000
over-a-data-file    datafile 0 0x20008 0000
'
}

@test "repair: refcount structures that are beyond mending are made anew" {
  kinds '
no-block            written 0 0x10000 0000000000000000
block-unaligned     written 0 0x10000 0000000000020200
block-behind-end    written 0 0x10000 00000000ffff0000
block-all-ones      written 0 0x10000 ffffffffffffffff
block-reserved-bits written 0 0x10000 0000000000020001
block-is-l1         written 0 0x10000 0000000000030000
block-is-table      written 0 0x10000 0000000000010000
block-is-header     written 0 0x10000 00000000000001ff
block-is-data       written 0 0x10000 0000000000050000
block-twice         written 0 0x10008 0000000000020000
table-behind-end    written 0 48 00000000ffff0000
table-is-l1         written 0 48 0000000000030000
table-is-data       written 0 48 0000000000060000
table-too-long      written 0 56 00000010
no-block-1-bit      one-bit 0 0x10000 0000000000000000
no-block-512-bytes  small   0 0x200 0000000000000000
no-block-snapshot   snap    0 0x10000 0000000000000000
no-block-version-2  version2 0 0x10000 0000000000000000
no-block-and-lost   written 1 0x10000 0000000000000000 0x40000 8000000000052a00
'
}

@test "repair: COPIED flags follow the refcounts" {
  kinds '
no-flag-in-l2       written 0 0x40000 0000000000050000
no-flag-in-l1       written 0 0x30000 0000000000040000
flags-of-shared     snap    0 0xb0008 8000000000060000 0xb0010 8000000000070000
flag-of-packed      packed  0 0x40000 c000000000050000
no-flag-data-file   datafile 0 0x40008 0000000000010000
'
}

@test "repair: bits that mean nothing, and places behind the end of the file" {
  kinds '
l1-reserved         written 0 0x30000 ff00000000040000
l1-without-place    written 0 0x30000 0000000000000001 0x40000 00
l2-reserved         written 0 0x40000 bf000000000501fe
l2-zero-version-2   version2 0 0x40000 8000000000050001
l2-zero-extended    extended 0 0x40000 8000000000050001
l2-behind-end       written 0 0x40000 800000ffffff0000
l2-behind-end-zero  written 0 0x40000 800000ffffff0001
l2-behind-v2        version2 0 0x40000 80000000ffff0000
l2-behind-v2-back   v2-backing 2 0x40000 80000000ffff0000
l2-behind-extended  extended 0 0x40000 80000000ffff0000
l2-behind-and-shared written 0 0x40000 8000000000030000 0x40008 8000000000090000
l2-behind-no-block  written 0 0x10000 0000000000000000 0x40008 8000000000090000
l2-zero-unaligned   written 0 0x40000 8000000000052a01
packed-bitmap       extended 0 0x40000 4000000000050000ffffffffffffffff
raw-without-file    written 0 88 0000000000000002
'
}

@test "repair: what may not share a cluster gets one of its own" {
  kinds '
data-is-header      written 0 0x40000 8000000000000000 0x40008 8000000000000000
data-is-l1          written 0 0x40000 8000000000030000
data-reads-l2       written 0 0x40000 8000000000040000
data-is-refblock    written 0 0x40000 8000000000020000
data-is-reftable    written 0 0x40000 8000000000010000
data-is-snap-table  snap    0 0xb0000 80000000000a0000
data-is-directory   bitmap  0 0x40000 8000000000100000
packed-reads-l2     written 0 0x40000 4000000000040000
zero-is-l1          written 0 0x40000 8000000000030001
extended-is-l1      extended 0 0x40000 8000000000030000
data-twice          written 0 0x40000 8000000000060000
data-twice-1-bit    one-bit 0 0x40000 8000000000060000 0x40010 8000000000060000
packed-twice-1-bit  one-bit 0 0x40000 4000000000060000 0x40010 4000000000060000
data-4-times-2-bits two-bits 0 0x40000 8000000000060000 0x40010 80000000000600008000000000060000
data-is-header-v2   version2 0 0x40000 8000000000010000
'
}

@test "repair: snapshots, bitmaps and the bits of the header" {
  kinds '
snapshot-no-extra   snap    0 0xa0024 00000000
snapshot-8-extra    snap    0 0xa0024 00000008
snapshot-one-more   snap    0 60 00000002
snapshot-l1-gone    snap    2 0xa0000 0000000000090200
snapshot-l1-behind  snap    2 0xa0000 00000000ffff0000
snapshot-l1-huge    snap    2 0xa0008 10000000
snapshot-l1-active  snap    1 0xa0000 0000000000030000
snapshots-in-header snap    1 64 0000000000000000
bitmap-dir-cut      bitmap  2 520 0000000000000008
bitmap-table-behind bitmap  2 0x100000 00000000ffff0000
bitmap-data-far     bitmap  2 0xa0000 00000000ffff0000
bitmap-data-is-l2   bitmap  1 0xa0000 0000000000040000
bitmap-leak         bitmap  0 0x20020 0001
dirty               written 0 72 0000000000000001
dirty-no-refcounts  written 0 72 0000000000000001 0x20000 0000000000000000
dirty-and-flag      snap    0 72 0000000000000001 0xb0008 8000000000060000
corrupt             written 0 72 0000000000000002
corrupt-and-leak    written 0 72 0000000000000002 0x40000 0000000000000000
corrupt-and-lost    written 2 72 0000000000000002 0x40000 8000000000052a00
'
}

@test "repair: what is lost stays lost, and clusters that may be its are kept" {
  kinds '
l1-unaligned        written 2 0x30000 8000000000040200
l1-behind-end       written 2 0x30000 80000000ffff0000
l1-is-data          written 2 0x30000 8000000000050000 0x50000 1111
l1-is-l1            written 1 0x30000 8000000000030000
l2-unaligned        written 2 0x40000 8000000000052a00
l2-in-header        written 2 0x40000 8000000000000200
l2-all-ones         written 2 0x40000 ffffffffffffffff
packed-too-far      written 2 0x40000 4006000000050000
packed-in-header    written 2 0x40000 4000000000000000
packed-data-file    datafile 2 0x40008 4000000000010000
data-file-moved     datafile 2 0x40008 8000000000050000
extended-both-bits  extended 2 0x40008 ffffffffffffffff
extended-no-place   extended 2 0x40000 000000000000000000000000ffffffff
'
}

@test "repair: clusters of an image with LUKS encryption stay in their place" {
  local l1 l2
  "$NBDIMG" create -q -f qcow2 --object secret,id=s0,data=abc \
    -o encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=50 \
    damaged.qcow2 4M
  "$NBDIMG" io --object secret,id=s0,data=abc --image-opts \
    driver=qcow2,file.filename=damaged.qcow2,encrypt.key-secret=s0 \
    -c 'write -q 0 256k'
  l1=$((0x$(xxd -p -s 40 -l 8 damaged.qcow2)))
  l2=$((0x$(xxd -p -s $((l1 + 2)) -l 6 damaged.qcow2)))
  poke damaged.qcow2 $l2 8000"$(printf %012x $l1)"
  # reserved bits, which could be mended
  poke damaged.qcow2 $((l2 + 8)) bf
  repair_twice luks all
  [ "$first" = 1 ]
  [[ $(cat err) == *'their place is part of'* ]]
}

# What a crash in "snapshot -c" of a version 2 image leaves: refcounts that are
# too large, and COPIED flags that follow them or do not yet.
@test "check -r leaks mends the flags with the refcounts, and calls nothing left" {
  local v flags
  for v in 0.10 1.1; do
    for flags in 00 80; do
      rm -f base.qcow2
      qemu-img create -q -f qcow2 -o compat=$v,cluster_size=4k base.qcow2 1M
      qemu-io -c 'write -q -P 3 0 8k' base.qcow2
      qemu-img snapshot -c s base.qcow2
      poke base.qcow2 0x3000 $flags    # L1
      poke base.qcow2 0x4000 $flags    # the first entry of the L2 table
      poke base.qcow2 60 00000000      # no snapshot
      same_leaks
    done
  done
  rm base.qcow2
  make_base datafile
  poke base.qcow2 0x40008 0000000000010000
  same_leaks
}

# check -r leaks of base.qcow2 is what qemu-img makes of it, and says no more
same_leaks () {
  cp base.qcow2 theirs.qcow2
  cp base.qcow2 ours.qcow2
  qemu-img check -r leaks theirs.qcow2 | grep -A3 'found and repaired' >theirs
  "$NBDIMG" check -r leaks ours.qcow2 2>err | grep -A3 'found and repaired' >ours
  diff theirs ours
  run ! grep -- '-r all' err
  "$NBDIMG" check -q ours.qcow2
  qemu-img check -q ours.qcow2
}

@test "repair: JSON says what was mended, and the status what is left" {
  make_base written
  poke base.qcow2 0x20010 0001        # a leak
  poke base.qcow2 0x40018 0000000000000000
  poke base.qcow2 0x2000a 0003        # and another
  poke base.qcow2 0x40008 0000000000060000
  cp base.qcow2 t.qcow2
  "$NBDIMG" check -r all --output=json t.qcow2 2>/dev/null >out
  [ "$(jq -c '[."corruptions-fixed", ."leaks-fixed", .corruptions, .leaks,
    ."check-errors"]' out)" = '[1,2,null,null,0]' ] || fail "$(cat out)"
  cp base.qcow2 t.qcow2
  poke t.qcow2 0x40010 8000000000072a00
  expect_error 2 "'convert --salvage'" "$NBDIMG" check -r all t.qcow2
  # A writer keeps a repair out, and -U does not help.
  new_socket
  start qemu-nbd -f qcow2 -k "$SOCKET" --pid-file="$PIDFILE" t.qcow2
  wait_for_server $STARTED_PID
  expect_error 1 lock "$NBDIMG" check -r all t.qcow2
  expect_error 1 force-share "$NBDIMG" check -U -r all t.qcow2
}

@test "repair: an interrupted one leaves an image that another one mends" {
  need_test_storage
  local k status
  make_base snap
  poke base.qcow2 0x10000 0000000000000000
  poke base.qcow2 0xb0010 8000000000000000
  cp base.qcow2 t.qcow2
  content before.raw
  for k in 1 2 3 4 6 8 11 15; do
    cp base.qcow2 t.qcow2
    status=0
    NBDIMG_TEST_STORAGE="fault:op=write,index=$k,count=0,errno=ENOSPC" \
      "$NBDIMG" check -q -r all t.qcow2 2>/dev/null || status=$?
    same_content "write $k failed"
    "$NBDIMG" check -q -r all t.qcow2 2>/dev/null
    same_content "after write $k"
    qemu-img check -q t.qcow2
  done
  # So many writes there are not.
  [ $status = 0 ] || fail "write $k was not the last"
}
