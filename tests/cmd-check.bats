# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg check, without -r, beside qemu-img check: the report, its JSON and the
# exit status for whole and for damaged images.

load lib
load peer

teardown () {
  [ -z "$loop" ] || losetup -d "$loop"
  stop_all
}

# The place of the first refcount block, and of the first L2 table, of $1.
block_of () { echo "0x$(peek "$1" 65536 8)"; }
table_of () {
  echo $((0x$(peek "$1" "0x$(peek "$1" 40 8)" 8) & ~(1 << 63)))
}

make_damaged () {
  local end=$(($(stat -c %s base.qcow2) / 65536))
  cp base.qcow2 leak.qcow2
  truncate -s +64k leak.qcow2
  poke leak.qcow2 $(($(block_of base.qcow2) + 2 * end)) 0001
  cp base.qcow2 unref.qcow2
  poke unref.qcow2 $(($(block_of base.qcow2) + 2 * 5)) 0000
  cp leak.qcow2 both.qcow2
  poke both.qcow2 $(($(block_of base.qcow2) + 2 * 5)) 0000
  cp base.qcow2 copied.qcow2
  poke copied.qcow2 "$(table_of base.qcow2)" 00
  cp base.qcow2 dirty.qcow2
  poke dirty.qcow2 79 01
  cp base.qcow2 corrupt.qcow2
  poke corrupt.qcow2 79 02
  cp base.qcow2 feature.qcow2
  poke feature.qcow2 79 40
  head -c 100 base.qcow2 >short.qcow2
  cp base.qcow2 outside.qcow2
  poke outside.qcow2 "$(table_of base.qcow2)" 8000000100000000
  cp base.qcow2 unaligned.qcow2
  poke unaligned.qcow2 "$(table_of base.qcow2)" 8000000000050200
}

make_files () {
  mkdir files
  (
    cd files || exit
    qemu-img create -q raw.img 1M
    qemu-img create -q -f qcow2 base.qcow2 4M
    qemu-io -c 'write -q -P 1 0 128k' -c 'write -q -z 1M 64k' \
      -c 'write -q -P 3 3M 64k' base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 5M
    qemu-img create -q -f qcow2 -o data_file=df ext.qcow2 1M
    qemu-io -c 'write -q -P 9 64k 128k' ext.qcow2
    qemu-img convert -q -c -O qcow2 base.qcow2 packed.qcow2
    qemu-img create -q -f qcow2 -o extended_l2=on sub.qcow2 1M
    qemu-io -c 'write -q -P 9 6k 8k' sub.qcow2
    qemu-img create -q -f qcow2 -o preallocation=metadata pre.qcow2 1M
    qemu-img create -q -f qcow2 zero.qcow2 0
    qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 1M
    qemu-io -c 'write -q -P 9 60k 80k' old.qcow2
    cp base.qcow2 snap.qcow2
    qemu-img snapshot -c s1 snap.qcow2
    qemu-io -c 'write -q -P 7 0 64k' snap.qcow2
    qemu-img create -q -f qcow2 -u -b nope -F qcow2 orphan.qcow2 1M
    make_damaged
    mkdir dir
  )
}

# The order of the members does not count.
same_check_json () {
  local theirs=(qemu-img check --output=json "$@") f
  local ours=("$NBDIMG" check --output=json "$@")
  peer_run theirs ours
  for f in .their.out .our.out; do
    jq -S . "$BATS_TEST_TMPDIR/$f" >"$BATS_TEST_TMPDIR/json" ||
      peer_fail "no JSON"
    mv "$BATS_TEST_TMPDIR/json" "$BATS_TEST_TMPDIR/$f"
  done
  peer_same_output
}

@test "check: images without an error" {
  make_files
  peer_lines same_words <<'END'
check base.qcow2
check --output=human base.qcow2
check top.qcow2
check ext.qcow2
check packed.qcow2
check sub.qcow2
check pre.qcow2
check zero.qcow2
check old.qcow2
check snap.qcow2
check dirty.qcow2
check corrupt.qcow2
END
  peer_lines same_check_json <<'END'
base.qcow2
top.qcow2
ext.qcow2
packed.qcow2
sub.qcow2
pre.qcow2
zero.qcow2
old.qcow2
snap.qcow2
dirty.qcow2
END
}

@test "check: leaks and errors have qemu-img's report, numbers and status" {
  make_files
  run qemu-img check files/leak.qcow2
  [ "$status" = 3 ]
  for f in unref both copied; do
    run qemu-img check files/$f.qcow2
    [ "$status" = 2 ]
  done
  peer_lines same_words <<'END'
check leak.qcow2
check -q leak.qcow2
check unref.qcow2
check -q unref.qcow2
check both.qcow2
check copied.qcow2
END
  peer_lines same_check_json <<'END'
leak.qcow2
unref.qcow2
both.qcow2
copied.qcow2
END
}

@test "check: entries that point nowhere are errors, whoever looks" {
  make_files
  for f in outside unaligned; do
    run qemu-img check files/$f.qcow2
    [ "$status" = 2 ]
    run --separate-stderr "$NBDIMG" check files/$f.qcow2
    [ "$status" = 2 ]
    [[ $output$stderr == *ERROR* ]]
    run "$NBDIMG" check --output=json files/$f.qcow2
    [ "$status" = 2 ]
  done
}

@test "check: every option, and every way to name an image" {
  make_files
  peer_lines same_words 7<files/base.qcow2 <<'END'
check -q base.qcow2
check -f qcow2 base.qcow2
check -U base.qcow2
check --force-share base.qcow2
check -T none base.qcow2
check -T unsafe base.qcow2
check -T directsync base.qcow2
check -T writethrough base.qcow2
check -T writeback base.qcow2
check file:base.qcow2
check --image-opts driver=qcow2,file.filename=base.qcow2
check 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'
check /dev/fd/7
check -U /dev/fd/7
END
}

@test "check -r: what both mend in the same way has the same report" {
  make_files
  peer_lines same_words <<'END'
check -r leaks leak.qcow2
check -r all leak.qcow2
check -q -r leaks leak.qcow2
check -r all base.qcow2
check -U -r all base.qcow2
check -r all --output=json base.qcow2
END
  peer_lines own_words <<'END'
"Repairing OFLAG_COPIED data cluster" check -r all copied.qcow2
END
}

@test "check: a format without a check is status 63" {
  make_files
  peer_lines same_words <<'END'
check raw.img
check --output=json raw.img
check -q raw.img
check -f raw base.qcow2
check --image-opts driver=raw,file.filename=raw.img
END
}

@test "check: bad invocations" {
  make_files
  peer_lines same_words <<'END'
check
check a b
check --output=xml base.qcow2
check -f qcow2 raw.img
check -f bogus raw.img
check -T bogus base.qcow2
check -r
check -r bogus base.qcow2
check -z base.qcow2
check --bogus base.qcow2
check nope
check ''
check feature.qcow2
check --image-opts -f qcow2 driver=qcow2,file.filename=base.qcow2
check --image-opts bogus=1
END
  peer_lines own_words <<'END'
"'dir': it is a directory" check dir
"ends within the header" check short.qcow2
"ends within the header" check -f qcow2 short.qcow2
"JSON" check json:{
END
}

@test "check: an image without its backing file can be checked" {
  make_files
  peer_lines "own_status 1 0 'No errors were found'" <<'END'
check orphan.qcow2
END
}

@test "check -p and --progress json" {
  make_files
  "$NBDIMG" check -p files/base.qcow2 >out
  tr '\r' '\n' <out | grep -x '    (100.00/100%)'
  tr '\r' '\n' <out | grep -x 'No errors were found on the image.'
  "$NBDIMG" check --progress json files/base.qcow2 >out 2>&1
  grep -m1 '^{' out | jq -e .
}

@test "check under the name qemu-img has its status and name" {
  make_files
  ln -s "$NBDIMG" qemu-img
  run ./qemu-img check -q files/leak.qcow2
  [ "$status" = 3 ] || fail "$status: $output"
  expect_error 1 "qemu-img: Could not open 'nope'" ./qemu-img check nope
}

@test "check changes nothing, and works on a file that may only be read" {
  make_files
  for f in leak both dirty; do
    cp files/$f.qcow2 was
    "$NBDIMG" check files/$f.qcow2 >/dev/null 2>&1 || :
    cmp was files/$f.qcow2
  done
  chmod 444 files/base.qcow2
  as_owner "$NBDIMG" check -q files/base.qcow2
  chmod 0 files/base.qcow2
  expect_error 1 "Permission denied" as_owner "$NBDIMG" check files/base.qcow2
}

@test "check: an image that a program writes to is refused, but with -U" {
  make_files
  mkfifo keep
  exec 5<>keep
  start qemu-io files/base.qcow2 <keep >/dev/null 5>&-
  poll 10 sh -c '! qemu-img info files/base.qcow2 >/dev/null 2>&1'
  expect_error 1 "lock" "$NBDIMG" check files/base.qcow2
  run qemu-img check files/base.qcow2
  [ "$status" = 1 ]
  "$NBDIMG" check -q -U files/base.qcow2
  exec 5>&-
}

@test "check: a block device and an NBD export" {
  need nbdkit
  make_files
  nbdkit -U - file files/both.qcow2 --run "
    qemu-img check --output=json \"\$uri\" | jq -S 'del(.filename)' >theirs.json
    '$NBDIMG' check --output=json \"\$uri\" | jq -S 'del(.filename)' >ours.json"
  diff theirs.json ours.json
  need_root
  loop=$(losetup -f --show files/leak.qcow2) || skip "no loop device"
  same_img check "$loop"
}
