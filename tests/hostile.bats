#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Hostile images: hostile/images.bash makes them, hostile/try.bash says what is
# done to each.  soak/hostile.sh runs this file on a build with sanitizers.

load lib
load plugin
load hostile/images
load hostile/try

setup_file () {
  hostile_images "$BATS_FILE_TMPDIR/images"
}

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io jq
  IMAGES=$BATS_FILE_TMPDIR/images
  HOSTILE_WORK=$PWD
  [ -z "$config_sanitizers" ] || under_sanitizers
}

# They need more of all, and no address space is enough for them.
under_sanitizers () {
  HOSTILE_SECONDS=20 HOSTILE_KIB=unlimited
  export ASAN_OPTIONS=$ASAN_OPTIONS:hard_rss_limit_mb=512
}

# A copy that a test may write to.
own_images () {
  cp -a --sparse=always "$IMAGES" images
  IMAGES=$PWD/images
}

@test "no image crashes, delays or bloats info, and its names are harmless" {
  hostile_try_all "$IMAGES" info
  [ "$(jq .format json | grep -c qcow2)" -gt 100 ]
}

@test "no image crashes, delays or bloats check" {
  hostile_try_all "$IMAGES" check
}

@test "no image crashes, delays or bloats a reader" {
  hostile_try_all "$IMAGES" read
  hostile_try_all "$IMAGES" snapshot
}

@test "no image crashes, delays or bloats map and convert" {
  hostile_try_all "$IMAGES" convert
}

@test "no image crashes, delays or bloats a writer" {
  own_images
  hostile_try_all "$IMAGES" write
}

@test "no image crashes, delays or bloats the plugin" {
  need nbdinfo nbdcopy
  need_clean_exit
  hostile_try_all "$IMAGES" serve
}

@test "info opens the image alone, whatever it names" {
  need strace
  local f nr=0
  cd "$IMAGES"
  for f in name-*.qcow2 data-*.qcow2 backing-*.qcow2; do
    strace -f -qq -e trace=openat,open,connect,execve,socket \
      -o "$HOSTILE_WORK/trace" "$NBDIMG" info "$f" >/dev/null 2>&1 || :
    # but for what the loader and the libraries open
    run grep -vE -e "execve\\(\"$NBDIMG\"" -e '"/(etc/ld\.so|lib|usr/lib)' \
      -e '"/proc/self/' -e '"/dev/urandom"' "$HOSTILE_WORK/trace"
    [ "${#lines[@]}" = 1 ] && [[ $output == *"\"$f\", O_RDONLY"* ]] ||
      fail "$f: $output"
    nr=$((nr + 1))
  done
  [ $nr -gt 30 ]
}

# expect_refused NAME TEXT: it is not opened, and TEXT says why
expect_refused () {
  expect_error 1 "$2" "$NBDIMG" map -f qcow2 "$IMAGES/$1.qcow2"
}

@test "a header that lies is refused, and the error says where it does" {
  local name text nr=0
  while read -r name text; do
    [ -n "$name" ] || continue
    expect_refused "$name" "$text"
    nr=$((nr + 1))
  done <<'END'
zero-cluster-bits       Unsupported cluster size: 2^0
cluster-bits-64         Unsupported cluster size: 2^64
huge-size               the virtual size 18446744073709551615 is too large
l1-size-int-max         Active L1 table too large: 17179869176 bytes
l1-size-32-mib-and-one  Active L1 table too large: 33554440 bytes
l1-offset-int64-max     Active L1 table offset 0x7fffffffffff0000 is invalid
zero-l1-offset          Active L1 table offset 0x0 is invalid
reftable-wraps          Reference count table too large: 8590000128 bytes
reftable-8-mib-and-one  Reference count table too large: 8454144 bytes
zero-reftable-offset    Image does not contain a reference count table
huge-refcount-order     Reference count entry width too large
snapshots-65537         Snapshot table too large: 65537 snapshots
snapshots-int64-max     Snapshot table offset 0x7fffffffffff0000 is invalid
snapshot-extra-max      Too much extra metadata in snapshot table entry 0
huge-header-length      qcow2 header exceeds cluster size (4294967295 bytes)
huge-extension          Header extension too large
extension-120-bytes     Header extension too large
compression-no-bit      Compression type incompatible feature bit must be set
compression-bit-only    Compression type incompatible feature bit must not be
compression-unknown     Unknown compression type: 7
unknown-incompatible    Unknown incompatible feature: 20
backing-with-nuls       the backing file name contains a NUL byte
backing-length-alone    Backing file name too long or missing
backing-offset-alone    Backing file name too long or missing
backing-behind-cluster  Invalid backing file offset: 65536
backing-1024-bytes      Backing file name too long or missing: 1024 bytes
data-name-nul           the data file name contains a NUL byte
data-name-json          must be a path or an NBD URI
bitmap-dir-huge         2 bitmaps in a directory of 18446744073709551615 bytes
extended-512            extended L2 entries need clusters of at least 16384
END
  [ $nr -gt 25 ]
}

# expect_unreadable NAME OFFSET TEXT: opened, but not read there
expect_unreadable () {
  run "$NBDIMG" io -r -f qcow2 -c "read $2 512" "$1.qcow2"
  [ "$status" = 1 ] && [[ $output == *"$3"* ]] ||
    fail "$1: status $status: $output"
}

@test "a table that points astray is an I/O error there, not other bytes" {
  cd "$IMAGES"
  expect_unreadable l1-entry-to-l1 0 'used as L1 table and as L2 table'
  expect_unreadable l1-entry-2a00 0 'L1 entry of guest offset 0'
  expect_unreadable l1-entry-behind-file 0 'L1 entry of guest offset 0'
  expect_unreadable l2-entry-unaligned 0 'L2 entry of guest offset 0'
  expect_unreadable l2-entry-to-header 0 'L2 entry of guest offset 0'
  expect_unreadable packed-too-far 0 'compressed cluster'
  expect_unreadable packed-too-long 0 'compressed cluster'
  expect_unreadable packed-garbage 0 'zlib stream'
  expect_unreadable zstd-garbage 0 'zstd stream'
  expect_unreadable extended-both-bits 0 'corrupt'
  expect_unreadable data-packed 64k 'compressed clusters cannot'
  # The rest of such a disk is there.
  "$NBDIMG" io -r -f qcow2 -c 'read -P 17 64k 64k' \
    l2-entry-unaligned.qcow2
}

@test "what is only unusual is read: above 4 GiB, odd headers, a far refcount" {
  "$NBDIMG" io -r -f qcow2 -c 'read -P 17 0 64k' \
    "$IMAGES/sound-packed-far.qcow2"
  "$NBDIMG" io -r -f qcow2 -c 'read -P 17 0 256k' \
    "$IMAGES/header-length-105.qcow2"
  "$NBDIMG" io -r -f qcow2 -c 'read -P 0 64k 64k' \
    "$IMAGES/refblock-at-8-tib.qcow2"
  "$NBDIMG" check -q "$IMAGES/sound-packed-far.qcow2"
  qemu-img check -q "$IMAGES/sound-packed-far.qcow2"
}

# The first COUNT clusters of an image, but for the incompatible features: the
# corrupt bit may be set.
metadata_sum () {
  dd if="$1" bs=64k count="$2" status=none |
    perl -0777 -pe 'substr ($_, 72, 8) = "\0" x 8' | sha256sum
}

write_over () {
  run "$NBDIMG" io -f qcow2 -c 'write -P 255 0 64k' -c 'write -P 255 4k 1k' \
    -c 'discard 0 64k' -c 'write -P 255 0 4k' -c 'write -P 255 1M 64k' "$1"
}

@test "a table that points at metadata does not have them overwritten" {
  local name before
  own_images
  cd images
  # header, refcount table and block, L1
  for name in l1-entry-to-l1 l1-entry-to-reftable l1-entry-to-refblock \
    l2-entry-to-header l2-entry-to-refblock l2-entry-to-reftable \
    l2-entry-to-l1; do
    before=$(metadata_sum $name.qcow2 4)
    write_over $name.qcow2
    [ "$before" = "$(metadata_sum $name.qcow2 4)" ] ||
      fail "$name: metadata were overwritten"
    [ "$status" = 1 ] || fail "$name: writes went through: $output"
  done
  # The header's cluster is never handed out.
  for name in l1-entry-to-header refcounts-zero refcounts-header-free \
    refcounts-all-zero reftable-entry-none reftable-entry-header; do
    before=$(metadata_sum $name.qcow2 1)
    write_over $name.qcow2
    [ "$before" = "$(metadata_sum $name.qcow2 1)" ] ||
      fail "$name: the header was overwritten"
  done
}
