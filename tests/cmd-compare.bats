# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg compare beside qemu-img compare.

load lib
load peer

teardown () {
  [ -z "$loop" ] || losetup -d "$loop"
  stop_all
}

make_files () {
  mkdir files
  (
    cd files || exit
    qemu-img create -q raw.img 1M
    qemu-io -f raw -c 'write -q -P 1 64k 64k' -c 'write -q -P 2 512k 100k' raw.img
    cp raw.img other.img
    poke other.img 600000 ff
    qemu-img create -q odd.img 1000
    qemu-img create -q empty.img 0
    qemu-img create -q -f qcow2 zero.qcow2 0
    qemu-img create -q -f qcow2 base.qcow2 4M
    qemu-io -c 'write -q -P 1 0 128k' -c 'write -q -z 1M 64k' \
      -c 'write -q -P 3 3M 1M' base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 5M
    qemu-io -c 'write -q -P 9 64k 8k' top.qcow2
    qemu-img convert -q -c -O qcow2 base.qcow2 packed.qcow2
    qemu-img create -q -f qcow2 -o preallocation=metadata pre.qcow2 1M
    qemu-img create -q -f qcow2 blank.qcow2 1M
    qemu-img create -q -f qcow2 -b raw.img -F raw over.qcow2
    qemu-img create -q -f qcow2 -u -b nope -F qcow2 orphan.qcow2 1M
    cp base.qcow2 dirty.qcow2
    poke dirty.qcow2 79 01
    cp base.qcow2 corrupt.qcow2
    poke corrupt.qcow2 79 02
    cp base.qcow2 feature.qcow2
    poke feature.qcow2 79 40
    head -c 100 base.qcow2 >short.qcow2
    # an L2 table that cannot be where the L1 table says
    cp base.qcow2 bad.qcow2
    poke bad.qcow2 "0x$(peek bad.qcow2 40 8)" 8000000000050200
    # compressed data that nothing was compressed to
    cp packed.qcow2 garbled.qcow2
    l2=$((0x$(peek packed.qcow2 "0x$(peek packed.qcow2 40 8)" 8) & ~(1 << 63)))
    data=$((0x$(peek packed.qcow2 $l2 8) & 0xffffffffff))
    poke garbled.qcow2 $data ffffffffffffffffffffffffffffffff
    mkdir dir
  )
}

@test "compare: the same, different, shorter, and strict about it" {
  make_files
  peer_lines same_words <<'END'
compare raw.img raw.img
compare raw.img over.qcow2
compare -s raw.img raw.img
compare -s raw.img over.qcow2
compare raw.img other.img
compare -s raw.img other.img
compare base.qcow2 packed.qcow2
compare -s base.qcow2 packed.qcow2
compare base.qcow2 top.qcow2
compare top.qcow2 base.qcow2
compare -s base.qcow2 top.qcow2
compare raw.img odd.img
compare odd.img raw.img
compare odd.img empty.img
compare empty.img odd.img
compare -s odd.img empty.img
compare empty.img empty.img
compare zero.qcow2 empty.img
compare -s zero.qcow2 empty.img
compare raw.img pre.qcow2
compare blank.qcow2 pre.qcow2
compare -s blank.qcow2 pre.qcow2
compare dirty.qcow2 base.qcow2
compare corrupt.qcow2 base.qcow2
END
}

@test "compare: every option" {
  make_files
  peer_lines same_words 7<files/raw.img <<'END'
compare -q raw.img raw.img
compare -q raw.img other.img
compare -q -s base.qcow2 top.qcow2
compare -p -q raw.img raw.img
compare -U raw.img over.qcow2
compare --force-share raw.img raw.img
compare -f raw -F qcow2 raw.img over.qcow2
compare -f qcow2 raw.img over.qcow2
compare -F qcow2 over.qcow2 raw.img
compare -F raw over.qcow2 over.qcow2
compare -T none raw.img raw.img
compare -T unsafe raw.img raw.img
compare -T writethrough raw.img other.img
compare -T directsync raw.img raw.img
compare -T writeback raw.img raw.img
compare --image-opts driver=raw,file.filename=raw.img driver=qcow2,file.filename=over.qcow2
compare 'json:{"driver":"raw","file":{"driver":"file","filename":"raw.img"}}' raw.img
compare 'json:{"driver":"raw","offset":65536,"size":65536,"file":{"driver":"file","filename":"raw.img"}}' raw.img
compare 'json:{"driver":"null-co","size":1048576,"read-zeroes":true}' pre.qcow2
compare /dev/fd/7 raw.img
compare -U raw.img /dev/fd/7
END
}

@test "compare: bad invocations have qemu-img's message and status" {
  make_files
  peer_lines same_words <<'END'
compare
compare raw.img
compare a b c
compare -f bogus raw.img raw.img
compare -F bogus raw.img raw.img
compare -T bogus raw.img raw.img
compare -T '' raw.img raw.img
compare -T
compare -z raw.img raw.img
compare --bogus raw.img raw.img
compare nope raw.img
compare raw.img nope
compare '' raw.img
compare orphan.qcow2 raw.img
compare raw.img orphan.qcow2
compare feature.qcow2 base.qcow2
compare --image-opts -f raw driver=raw,file.filename=raw.img driver=raw,file.filename=raw.img
compare --image-opts -F raw driver=raw,file.filename=raw.img driver=raw,file.filename=raw.img
compare --image-opts driver=raw,file.filename=raw.img nope=1
END
  peer_lines own_words <<'END'
"'dir': it is a directory" compare dir raw.img
"'dir': it is a directory" compare raw.img dir
"'raw.img' is not key=value" compare --image-opts raw.img raw.img
"JSON" compare json:{ raw.img
"failed for bad.qcow2" compare bad.qcow2 base.qcow2
"failed for bad.qcow2" compare base.qcow2 bad.qcow2
"failed for bad.qcow2" compare -s base.qcow2 bad.qcow2
"offset 0 of garbled.qcow2" compare garbled.qcow2 base.qcow2
"offset 0 of garbled.qcow2" compare base.qcow2 garbled.qcow2
"ends within the header" compare short.qcow2 base.qcow2
END
}

@test "compare -p ends its progress before the result" {
  make_files
  "$NBDIMG" compare -p files/raw.img files/raw.img >out
  [ "$(tr '\r' '\n' <out | sed 1q)" = "    (0.00/100%)" ]
  tr '\r' '\n' <out | grep -x "Images are identical."
  "$NBDIMG" compare --progress json files/raw.img files/raw.img >out 2>err
  cat out err | grep -m1 '^{' | jq -e .
}

@test "compare: long options of newer qemu-img" {
  make_files
  cd files
  "$NBDIMG" compare --a-format=raw --b-format=qcow2 --cache=none --strict --quiet \
    raw.img raw.img && fail "a raw image is no qcow2 image"
  "$NBDIMG" compare --a-format=raw --b-format=raw --strict --quiet raw.img raw.img
}

@test "compare under the name qemu-img has its status and name" {
  make_files
  ln -s "$NBDIMG" qemu-img
  run ./qemu-img compare files/raw.img files/other.img
  [ "$status" = 1 ]
  [ "$output" = "Content mismatch at offset 599552!" ]
  expect_error 2 "qemu-img: Could not open 'nope'" ./qemu-img compare nope nope
}

@test "compare: an unreadable file, a device, an export" {
  need nbdkit
  make_files
  chmod 0 files/other.img
  expect_error 2 "Permission denied" \
    as_owner "$NBDIMG" compare files/raw.img files/other.img
  nbdkit -U - file files/raw.img \
    --run "'$NBDIMG' compare \"\$uri\" files/over.qcow2" |
    grep -x 'Images are identical.'
  "$NBDIMG" compare [ nbdkit file files/raw.img ] files/raw.img
  need_root
  loop=$(losetup -f --show files/raw.img) || skip "no loop device"
  same_img compare "$loop" files/raw.img
  same_img compare "$loop" files/base.qcow2
}
