#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# QED: what check finds, and what it mends.

load lib
load peer

# A disk of 64 MiB with clusters 0, 1, 2 and, in the second L2 table, the one at
# 2 GiB.  L1 0x10000, first L2 table 0x50000, data 0x90000 0xa0000 0xb0000, second
# L2 table 0xc0000, data 0x100000; the file ends at 0x110000.
setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
  "$NBDIMG" create -q -f qed good 4G
  "$NBDIMG" io -f qed -c 'write -q -P 1 0 64k' -c 'write -q -P 2 64k 64k' \
    -c 'write -q -P 3 128k 64k' -c 'write -q -P 4 2G 64k' good
  [ "$(peek good 0x50000 8)" = 0000090000000000 ]
  [ "$(peek good 0x10008 8)" = 00000c0000000000 ]
  [ "$(stat -c %s good)" = $((0x110000)) ]
}

# status COMMAND...: its exit status is in $status, and nothing else counts
status () {
  status=0
  "$@" >out 2>err || status=$?
}

# found STATUS FILE: what check says, and qemu-img too
found () {
  status "$NBDIMG" check "$2"
  [ $status = "$1" ] || fail "check $2: $status, not $1"$'\n'"$(cat out err)"
  status qemu-img check "$2"
  [ $status = "$1" ] || fail "qemu-img check $2: $status"$'\n'"$(cat out err)"
}

# repaired WHAT STATUS FILE: what is left after -r; then once more, and no byte
# changes
repaired () {
  status "$NBDIMG" check -r "$1" "$3"
  [ $status = "$2" ] || fail "-r $1 $3: $status, not $2"$'\n'"$(cat out err)"
  found "$2" "$3"
  cp "$3" before
  status "$NBDIMG" check -r "$1" "$3"
  [ $status = "$2" ] || fail "-r $1 $3 again: $status"$'\n'"$(cat out err)"
  cmp "$3" before || fail "a second repair changed $3"
}

# unchanged WHAT STATUS FILE: -r has nothing to mend there
unchanged () {
  cp "$3" before
  repaired "$1" "$2" "$3"
  cmp "$3" before || fail "-r $1 changed $3"
}

reads_as_good () {
  "$NBDIMG" compare -q "$1" good || fail "$1: other content"
}

@test "what check prints of a sound image is what qemu-img prints" {
  qemu-img create -q -f qed frag 10M
  qemu-io -f qed -c 'write -q 128k 64k' -c 'write -q 0 64k' \
    -c 'write -q 64k 64k' -c 'write -q 1M 1M' -c 'write -q 640k 64k' frag
  qemu-img create -q -f qed empty 1M
  for f in good frag empty; do
    same_img check $f
    same_img_json check --output=json $f
    unchanged leaks 0 $f
    unchanged all 0 $f
  done
}

@test "clusters that nothing refers to: cut off at the end, else only counted" {
  cp good end
  truncate -s +131072 end
  found 3 end
  grep -q '^2 leaked' out
  repaired leaks 0 end
  cmp end good
  cp good part
  truncate -s +1000 part                # not even a whole one
  found 0 part
  unchanged all 0 part
  cp good middle
  poke middle 0x50008 0000000000000000
  found 3 middle
  unchanged leaks 3 middle
  unchanged all 3 middle
  cp middle both
  truncate -s +1M both
  repaired all 3 both
  cmp both middle
}

@test "an entry that is no place for a cluster goes, and nothing else" {
  local entry
  for entry in 0000001000000000 0002090000000000 0000000000000000 \
      0000010000000000 0000040000000000 00000000ffffff7f ffffffffffffffff \
      0200000000000000 0000110000000000; do
    [ $entry != 0000000000000000 ] || continue
    cp good bad
    poke bad 0x50100 $entry
    found 2 bad
    run ! "$NBDIMG" io -c 'read 2M 64k' bad
    unchanged leaks 2 bad
    repaired all 0 bad
    cmp bad good || fail "$entry"
  done
}

@test "an L1 entry that is no place for a table goes, with what it stood for" {
  local entry
  for entry in 0002050000000000 0000ff0000000000 0000000000000080 \
      0000010000000000 00000e0000000000 0100000000000000; do
    cp good bad
    poke bad 0x10010 $entry
    found 2 bad
    unchanged leaks 2 bad
    repaired all 0 bad
    cmp bad good || fail "$entry"
  done
  # The second table is lost; its data lie at the end and are cut off.
  cp good lost
  poke lost 0x10008 0002000000000000
  found 2 lost
  repaired all 0 lost
  [ "$(stat -c %s lost)" = $((0xc0000)) ]
  "$NBDIMG" io -c 'read -P 1 0 64k' -c 'read -P 0 2G 64k' lost >out
  run ! grep -i 'fail\|error' out
}

@test "a file that lost its end is mended as far as it is there" {
  cp good data
  truncate -s $((0x100000)) data        # the last data cluster
  found 2 data
  repaired all 0 data
  cp good table
  truncate -s $((0xd0000)) table        # within the second table
  found 2 table
  repaired all 0 table
  "$NBDIMG" io -c 'read -P 3 128k 64k' -c 'read -P 0 2G 64k' table >out
  run ! grep -i 'fail\|error' out
}

# QEMU writes the next new cluster over this one.
@test "a last cluster that is not whole is read, and made whole" {
  cp good short
  truncate -s -60000 short
  found 2 short
  "$NBDIMG" io -c 'read -P 4 2G 5k' short | grep '^read 5120'
  unchanged leaks 2 short
  repaired all 0 short
  [ "$(stat -c %s short)" = $((0x110000)) ]
  cp good short
  truncate -s -60000 short
  "$NBDIMG" io -c 'write -q -P 6 1M 64k' -c 'read -P 4 2G 5k' short >out
  run ! grep -i 'fail\|error' out
  found 0 short
  qemu-io -f qed -c 'read -P 4 2G 5k' -c 'read -P 6 1M 64k' short >out
  run ! grep -i 'fail\|error' out
}

@test "clusters with two owners stay as they are, and nothing is cut" {
  cp good data                          # two guest clusters, one place
  poke data 0x50018 0000090000000000
  cp good table                         # data on a table
  poke table 0x50018 00000c0000000000
  cp good l2                            # two L1 entries, one table
  poke l2 0x10010 0000050000000000
  cp good lapped                        # a table that begins in another one
  poke lapped 0x10010 0000060000000000
  for f in data table l2 lapped; do
    truncate -s +64k $f
    found 2 $f
    unchanged leaks 2 $f
    unchanged all 2 $f
    "$NBDIMG" io -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' $f >out
    run ! grep -i 'fail\|error' out
  done
  # A write through one of the two must not reach the table, nor any part of it.
  for entry in 00000c 00000d 00000f; do
    poke table 0x50018 ${entry}0000000000
    run "$NBDIMG" io -c 'write -q -P 9 192k 64k' table
    [[ $output == *'a table is there'* ]]
    "$NBDIMG" io -c 'read -P 4 2G 64k' table | grep '^read 65536'
  done
  # What the same write has before that is written.
  cp good run
  poke run 0x50018 00000c0000000000
  run "$NBDIMG" io -c 'write -q -P 9 0 256k' run
  [[ $output == *'a table is there'* ]]
  "$NBDIMG" io -c 'read -P 9 0 192k' run | grep '^read 196608'
}

@test "a repair writes into no data that an L1 entry takes for a table" {
  cp good bad                           # over three clusters and a table
  poke bad 0x10010 0000090000000000
  poke bad 0x50100 0000000100000000     # may be one of that table
  found 2 bad
  unchanged leaks 2 bad
  unchanged all 2 bad
  reads_as_good_or_fails bad
  grep -c '^read 65536' out | grep -qx 4
  # A writer that finds the image dirty is refused, and nothing else happens.
  poke bad 16 02
  cp bad before
  expect_error 1 'cannot be repaired' "$NBDIMG" io -c 'write 0 64k' bad
  cmp bad before
  # Over one cluster: entries of the other tables can be mended.
  cp good bad
  truncate -s +192k bad
  poke bad 0x10010 0000100000000000
  poke bad 0x50100 0000000100000000
  cp bad want
  poke want 0x50100 0000000000000000
  repaired all 2 bad
  cmp bad want
  "$NBDIMG" io -c 'read -P 4 2G 64k' bad | grep '^read 65536'
}

@test "NEED_CHECK: a reader leaves it, a repair or the next writer clears it" {
  cp good dirty
  poke dirty 16 02
  found 0 dirty
  "$NBDIMG" info dirty | grep 'cleanly shut down: no'
  "$NBDIMG" io -r -c 'read -P 1 0 64k' dirty | grep '^read 65536'
  [ "$(peek dirty 16 1)" = 02 ]
  cp dirty mended
  repaired leaks 0 mended
  cmp mended good
  cp dirty mended
  truncate -s +1M mended
  poke mended 0x50018 0000ff0000000000
  poke mended 32 01                     # autoclear
  "$NBDIMG" io -c 'write -q -P 5 1M 64k' mended 2>err
  grep -q 'not closed cleanly' err
  found 0 mended
  [ "$(peek mended 16 1)$(peek mended 32 1)" = 0000 ]
  [ "$(stat -c %s mended)" = $((0x120000)) ]
}

@test "NEED_CHECK and two owners of a cluster: no writer, but readers" {
  cp good bad
  poke bad 16 02
  poke bad 0x50018 0000090000000000
  cp bad before
  expect_error 1 'cannot be repaired' "$NBDIMG" io -c 'write 0 64k' bad
  cmp bad before
  "$NBDIMG" io -r -c 'read -P 1 0 64k' -c 'read -P 1 192k 64k' bad >out
  run ! grep -i 'fail\|error' out
  "$NBDIMG" convert -O qed bad new
  found 0 new
  "$NBDIMG" compare -q bad new
}

@test "tables that cannot be read are an error, and nothing is changed" {
  need_test_storage
  cp good bad
  truncate -s +1M bad
  cp bad before
  for k in 2 3 4 5; do
    NBDIMG_TEST_STORAGE=fault:op=read,index=$k,count=0 \
      status "$NBDIMG" check -r all bad
    [ $status = 1 ] || fail "read $k: $status"$'\n'"$(cat out err)"
    cmp bad before
  done
}

@test "a repair that is cut short can be gone on with" {
  need_test_storage
  local k=0 last=1
  cp good bad
  truncate -s +1M bad
  for i in 3 4 5; do poke bad 0x500${i}0 0000ff0000000000; done
  poke bad 0x10010 0100000000000000
  cp bad damaged
  while [ $last != 0 ]; do
    k=$((k + 1))
    [ $k -lt 40 ] || fail 'never whole'
    cp damaged bad
    NBDIMG_TEST_STORAGE=fault:op=any,index=$k,count=0 \
      status "$NBDIMG" check -r all bad
    last=$status
    reads_as_good_or_fails bad
    cp bad again
    repaired all 0 again
    cmp again good
  done
  [ $k -gt 8 ] || fail "only $k requests"
  cmp bad good
}

# What can be read is right.
reads_as_good_or_fails () {
  "$NBDIMG" io -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' \
    -c 'read -P 3 128k 64k' -c 'read -P 4 2G 64k' "$1" >out
  run ! grep -i 'verification failed' out
}

@test "an image that claims much is checked in little memory and time" {
  # 2 MiB of L1 that all say one table, whose entries all say one cluster.
  "$NBDIMG" create -q -f qed -o cluster_size=128k,table_size=16 big 1P
  "$NBDIMG" io -c 'write -q -P 1 0 4k' big
  perl -e 'print pack("Q<", 0x220000) x 262144' |
    dd of=big bs=128k seek=1 conv=notrunc status=none
  perl -e 'print pack("Q<", 0x420000) x 262144' |
    dd of=big bs=128k seek=17 conv=notrunc status=none
  run timeout 20 bash -c 'ulimit -v 400000; exec "$@"' - "$NBDIMG" check big
  [ "$status" = 2 ]
  # A file of 4 EiB with one cluster in use.
  "$NBDIMG" create -q -f qed -o cluster_size=4k,table_size=2 wide 1M
  if truncate -s 4E wide 2>/dev/null; then
    run timeout 20 bash -c 'ulimit -v 400000; exec "$@"' - "$NBDIMG" check wide
    [ "$status" = 3 ]
  fi
}

# survives COMMAND...: it ends by itself, soon, in little memory
survives () {
  run timeout 20 bash -c 'ulimit -v 600000; exec "$@"' - "$@"
  [ "$status" -le 3 ] || fail "status $status: $*"$'\n'"$output"
}

# survives_served IMAGE SHELL-TEXT
survives_served () {
  run timeout 20 bash -c 'ulimit -v 2000000; exec "$@"' - "$config_NBDKIT" \
    -U - "$PLUGIN" "file=$1" format=qed --run "$2"
  [ "$status" -le 3 ] || fail "status $status: $*"$'\n'"$output"
}

@test "no entry makes the tool or the plugin crash, or write over tables" {
  local at entry
  [ -z "$config_sanitizers" ] || skip "no address space is enough for them"
  for at in 0x10000 0x50000; do
    for entry in 0100000000000000 0200000000000000 0000010000000000 \
        0000060000000000 00000c0000000000 0000100000000000 \
        000000000000ff7f ffffffffffffffff; do
      cp good bad
      poke bad $at $entry
      survives "$NBDIMG" io -r -c 'read 0 192k' -c 'read 2G 64k' bad
      survives "$NBDIMG" map bad
      survives "$NBDIMG" io -c 'write -P 9 0 64k' -c 'write -P 9 3M 1k' \
        -c 'write -P 9 2G 64k' -c 'write -z 64k 64k' -c 'discard 0 4G' bad
      # Neither the header nor the L1 table were taken for data.
      [ "$(peek bad 0 16)" = "$(peek good 0 16)" ] || fail "$at $entry: header"
      ! peek bad 0x10010 64 | grep -q 0909 || fail "$at $entry: L1"
    done
  done
  for at in 4 12 40 48; do
    cp good bad
    poke bad $at ffffffff
    survives_served bad 'nbdinfo "$uri"'
  done
  for entry in 0000060000000000 ffffffffffffffff 0000010000000000; do
    cp good bad
    poke bad 0x50000 $entry
    survives_served bad \
      'nbdcopy "$uri" null:; nbdinfo --map "$uri" >/dev/null'
  done
}
