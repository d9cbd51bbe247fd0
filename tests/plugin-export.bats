#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# What the plugin tells clients of an image, and how it is configured.

load lib
load plugin

@test "a client sees the size, all abilities and multi-conn" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 100M
    captive -- disk format=$fmt -- 'nbdinfo --json "$uri"' >info
    for line in '"export-size": 104857600' '"is_read_only": false' \
        '"can_cache": true' '"can_df": true' '"can_fast_zero": true' \
        '"can_flush": true' '"can_fua": true' '"can_multi_conn": true' \
        '"can_trim": true' '"can_zero": true' '"base:allocation"' \
        '"block_size_minimum": 1' '"block_size_preferred": 4096' \
        '"block_size_maximum": 33554432'; do
      grep -F "$line" info
    done
  done
}

@test "the description says format, name and snapshot, not the folder" {
  make_disk qcow2 disk.qcow2 1M
  qemu-img snapshot -c s1 disk.qcow2
  run captive -- disk.qcow2 -- 'nbdinfo "$uri"'
  [[ $output == *"description: qcow2 image disk.qcow2"* ]]
  [[ $output != *"$BATS_TEST_TMPDIR"* ]]
  run captive -- disk.qcow2 snapshot=s1 -- 'nbdinfo --list "$uri"'
  [[ $output == *"description: qcow2 image disk.qcow2, snapshot s1"* ]]
}

@test "one image is given out under any export name" {
  make_disk raw disk 1M
  captive -- disk format=raw -- 'nbdinfo --size "nbd+unix:///any/name?socket=$unixsocket"'
}

@test "a raw file whose size is no multiple of 512 is rounded up" {
  printf 'end' >disk
  captive -r -- disk format=raw -- 'nbdsh -u "$uri" -c "
assert h.get_size() == 512
assert h.pread(512, 0) == b\"end\" + bytes(509)"'
}

@test "-r and readonly=1 refuse writes, and say so to clients" {
  make_disk qcow2 disk 1M
  captive -r -- disk -- 'nbdinfo --is read-only "$uri"'
  captive -- disk readonly=1 -- 'nbdinfo --is read-only "$uri"'
  before=$(sha256sum disk)
  run captive -r -- disk -- 'nbdsh -u "$uri" -c "
h.set_strict_mode(0)
h.pwrite(b\"x\", 0)"'
  [ "$status" -ne 0 ]
  [[ $output == *"Operation not permitted"* ]]
  [ "$(sha256sum disk)" = "$before" ]
}

@test "an internal snapshot is served read-only, with its own bytes" {
  make_disk qcow2 disk 1M
  qemu-io -c 'write -P 1 0 64k' disk >/dev/null
  qemu-img snapshot -c s1 disk
  qemu-io -c 'write -P 2 0 64k' disk >/dev/null
  for snapshot in s1 1; do
    captive -- disk snapshot=$snapshot -- 'nbdsh -u "$uri" -c "
assert h.is_read_only()
assert h.pread(65536, 0) == b\"\\1\" * 65536"'
  done
  run captive -- disk snapshot=none -- true
  [ "$status" -ne 0 ]
  [[ $output == *none* ]]
}

@test "backing=off shows zeroes for what the image does not have" {
  make_disk raw base 1M
  qemu-io -f raw -c 'write -P 7 0 1M' base >/dev/null
  qemu-img create -q -f qcow2 -b base -F raw disk
  qemu-io -c 'write -P 8 64k 64k' disk >/dev/null
  captive -r -- disk -- 'nbdsh -u "$uri" -c "
assert h.pread(65536, 0) == b\"\\7\" * 65536
assert h.pread(65536, 65536) == b\"\\10\" * 65536"'
  rm base
  captive -r -- disk backing=off -- 'nbdsh -u "$uri" -c "
assert h.pread(65536, 0) == bytes(65536)
assert h.pread(65536, 65536) == b\"\\10\" * 65536"'
}

@test "untrusted=on opens no file that the image names" {
  make_disk raw base 1M
  qemu-img create -q -f qcow2 -b "$PWD/base" -F raw disk
  strace -f -e trace=open,openat,openat2 -o trace \
    env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    ASAN_OPTIONS=detect_leaks=0 nbdkit -U - -r "$PLUGIN" disk untrusted=on \
    --run true || :
  grep -F "$PWD/disk" trace
  run grep -F "$PWD/base" trace
  [ "$status" -eq 1 ]
}

# pieces EXPRESSION: JSON of a map from standard input, in lines "start length
# data zero" of which no two neighbours say the same.
pieces () {
  jq -r "[.[] | $1] | reduce .[] as \$p ([];
    if length > 0 and .[-1][2:] == \$p[2:] then .[-1][1] += \$p[1]
    else . + [\$p] end) | .[] | map (tostring) | join (\" \")"
}

# status_is_qemus FORMAT IMAGE: that of qemu-nbd, and the map of qemu-img.
status_is_qemus () {
  need jq
  captive -r -- "$2" format="$1" -- 'nbdinfo --map "$uri"' >ours
  nbdinfo --map -- [ qemu-nbd -r -f "$1" "$2" ] >qemu
  diff ours qemu
  captive -r -- "$2" format="$1" -- 'nbdinfo --map --json "$uri"' |
    pieces '[.offset, .length, .type % 2 == 0, .type >= 2]' >ours
  qemu-img map -f "$1" --output=json "$2" |
    pieces '[.start, .length, .data, .zero]' >qemu
  [ -s qemu ]
  diff ours qemu
}

@test "block status is what qemu-nbd says" {
  random_image disk.raw 4M 1
  status_is_qemus raw disk.raw
  make_disk qcow2 disk 4M
  qemu-io -c 'write 0 1000k' -c 'write -z 192k 64k' -c 'discard 256k 64k' \
    -c 'write -z -u 320k 64k' -c 'write 2M 3k' -c 'write -z 3M 64k' \
    disk >/dev/null
  status_is_qemus qcow2 disk
  qemu-img create -q -f qcow2 -b disk -F qcow2 top 5M
  qemu-io -c 'write 64k 128k' -c 'write -z 500k 64k' -c 'write 4M 1k' \
    top >/dev/null
  status_is_qemus qcow2 top
  qemu-img convert -c -f raw -O qcow2 disk.raw packed
  status_is_qemus qcow2 packed
  qemu-img create -q -f qcow2 -o extended_l2=on -b disk -F qcow2 extended
  qemu-io -c 'write 4k 10k' -c 'write -z 100k 2k' extended >/dev/null
  status_is_qemus qcow2 extended
}

@test "block status of an image with preallocated metadata shows zeroes" {
  qemu-img create -q -f qcow2 -o preallocation=metadata disk 64M
  qemu-io -c 'write 1M 64k' disk >/dev/null
  status_is_qemus qcow2 disk
}

@test "block status of 4 GiB less a byte is answered, in pieces" {
  make_disk raw disk 6G
  captive -r -- disk format=raw -- 'nbdsh -u "$uri" -c - <<PY
import nbd
got = []
def f(context, offset, extents, error):
    got.append((offset, extents))
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri("$uri")
for offset in 0, 1, 512, 3 << 30:
    for flags in 0, nbd.CMD_FLAG_REQ_ONE:
        got.clear()
        count = min(0xffffffff, (6 << 30) - offset)
        h.block_status(count, offset, f, flags)
        assert len(got) == 1 and got[0][0] == offset, got
        lengths = got[0][1][::2]
        assert 0 < sum(lengths) <= min(count, 1 << 31), got
        if flags:
            assert len(lengths) == 1
PY'
}

@test "REQ_ONE gives one extent, as long as the image goes on alike" {
  make_disk qcow2 disk 8M
  qemu-io -c 'write 1M 3M' disk >/dev/null
  captive -r -- disk -- 'nbdsh --base-allocation -u "$uri" -c "
import nbd
got = []
def f(context, offset, extents, error):
    got.append(extents)
h.block_status(7 << 20, 1 << 20, f, nbd.CMD_FLAG_REQ_ONE)
assert got == [[3 << 20, 0]], got
got.clear()
h.block_status(8 << 20, 0, f)
assert got == [[1 << 20, 3, 3 << 20, 0, 4 << 20, 3]], got"'
}

@test "a parameter that is wrong, unknown or not built yet is refused by name" {
  make_disk qcow2 disk 1M
  refused () {
    run nbdkit_env -U - "$PLUGIN" "${@:2}" --run true
    [ "$status" -ne 0 ]
    [[ $output == *"$1"* ]] || { echo "$output"; return 1; }
  }
  refused 'no image'
  refused 'disk2: a second image' disk disk2
  refused 'file= and image-opts=' disk image-opts=driver=raw
  refused 'format=vmdk' disk format=vmdk
  refused 'format= was given twice' disk format=raw format=raw
  refused 'cache' disk cache=sometimes
  refused 'discard=maybe' disk discard=maybe
  refused 'detect-zeroes=maybe' disk detect-zeroes=maybe
  refused 'detect-zeroes=unmap needs discard=unmap' disk \
    detect-zeroes=unmap discard=ignore
  refused 'force-share=on needs readonly=on' disk force-share=on
  refused 'backing=perhaps' disk backing=perhaps
  refused 'metadata-cache=1' disk metadata-cache=1
  refused 'dir= is not built yet' dir=.
  refused 'control= is not built yet' disk control=sock
  refused 'Unable to read b' disk secret=a:file:b
  refused 'unknown parameter size=' disk size=1M
}

@test "a bad image keeps nbdkit from starting, and the message says why" {
  need_clean_exit
  refused () {
    run nbdkit_env -U - "$PLUGIN" "${@:2}" --run 'touch started'
    [ "$status" -ne 0 ]
    [[ $output == *"$1"* ]] || { echo "$output"; return 1; }
    [ ! -e started ]
  }
  refused 'missing' missing
  refused 'Is a directory' .
  printf 'QFI\373\0\0\0\11' >version9
  truncate -s 1M version9
  refused 'version9' version9
  make_disk qcow2 disk 1M
  printf '\200' | dd of=disk bs=1 seek=72 conv=notrunc status=none
  refused 'incompatible' disk
  make_disk raw base 1M
  qemu-img create -q -f qcow2 -b base -F raw top
  rm base
  refused 'base' top
  printf 'KDMV' >vmdk
  truncate -s 1M vmdk
  refused 'vmdk' vmdk
}

@test "--dump-plugin lists formats, codecs and ciphers" {
  run nbdkit_env "$PLUGIN" --dump-plugin
  [ "$status" -eq 0 ]
  [[ $output == *"nbdimg_formats="*raw* ]]
  [[ $output == *"nbdimg_formats="*qcow2* ]]
  [[ $output == *"nbdimg_codecs=zlib"* ]]
  [[ $output == *"nbdimg_ciphers="* ]]
  [[ $output == *"thread_model=parallel"* ]]
  [[ $output == *"magic_config_key=file"* ]]
}

@test "--help lists every parameter" {
  run nbdkit_env "$PLUGIN" --help
  [ "$status" -eq 0 ]
  for parameter in file image-opts format readonly snapshot backing cache \
      discard detect-zeroes share force-share untrusted metadata-cache; do
    [[ $output == *"$parameter="* ]]
  done
}

@test "-D nbdimg.verbose=1 is known to nbdkit" {
  make_disk raw disk 1M
  run nbdkit_env -D nbdimg.verbose=1 -U - "$PLUGIN" disk format=raw --run true
  [ "$status" -eq 0 ]
  [[ $output != *"did not contain"* ]]
}

@test "only plugin_init and debug flags are exported" {
  nm -D --defined-only "$PLUGIN" | awk '{ print $3 }' |
    grep -v '^nbdimg_debug_' >names
  [ "$(cat names)" = plugin_init ]
}

@test "with image-opts a window of a raw file is served" {
  printf '%1000s' x >disk
  printf 'hello' | dd of=disk bs=1 seek=512 conv=notrunc status=none
  truncate -s 4096 disk
  captive -r -- image-opts=driver=raw,offset=512,size=1024,file.driver=file,file.filename=disk \
    -- 'nbdsh -u "$uri" -c "
assert h.get_size() == 1024
assert h.pread(5, 0) == b\"hello\""'
}
