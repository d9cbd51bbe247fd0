#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# VDI images, beside QEMU's driver.

load lib

# le32 FILE OFFSET: a number of the header or the map
le32 () {
  local hex
  hex=$(peek "$1" "$2" 4)
  echo $((16#${hex:6:2}${hex:4:2}${hex:2:2}${hex:0:2}))
}

# next_index FILE BLOCKS: the one behind all in the map
next_index () {
  local i entry next=0
  for ((i = 0; i < $2; i++)); do
    entry=$(le32 "$1" $((512 + 4 * i)))
    [ "$entry" -ge $((0xfffffffe)) ] || [ "$entry" -lt $next ] ||
      next=$((entry + 1))
  done
  echo $next
}

# clean FILE: both programs say so
clean () {
  "$NBDIMG" check -q "$1" || fail "nbdimg check $1: $?"
  qemu-img check -q "$1" || fail "qemu-img check $1: $?"
}

@test "a VDI image of QEMU has the known layout, and ours has the same" {
  need qemu-img qemu-io
  qemu-img create -q -f vdi theirs 5000000
  "$NBDIMG" create -q -f vdi ours 5000000
  # all but the UUIDs of the image and of its last snapshot
  cmp <(peek theirs 0 392) <(peek ours 0 392)
  cmp <(peek theirs 424 1024) <(peek ours 424 1024)
  [ "$(stat -c %s theirs)" = "$(stat -c %s ours)" ]
  [ "$(peek ours 392 16)" != "$(peek ours 408 16)" ]
  [ "$(peek ours 64 4)" = 7f10dabe ]
  [ "$(le32 ours 68)" = $((0x10001)) ]
  [ "$(le32 ours 72)" = $((0x180)) ]
  [ "$(le32 ours 340)" = 512 ]
  [ "$(le32 ours 344)" = 1024 ]
  [ "$(le32 ours 360)" = 512 ]
  [ "$(le32 ours 368)" = 5000192 ]
  [ "$(le32 ours 376)" = 1048576 ]
  [ "$(le32 ours 384)" = 5 ]
  # blocks stand in the order in which they were first written
  for f in theirs ours; do
    io=qemu-io
    [ $f = theirs ] || io="$NBDIMG io"
    $io -c 'write -q -P 3 3M 512' -c 'write -q -P 1 1M 512' $f
    [ "$(peek $f 512 20)" = ffffffff01000000ffffffff00000000ffffffff ]
    [ "$(le32 $f 388)" = 2 ]
    [ "$(stat -c %s $f)" = $((1024 + 2097152)) ]
    clean $f
  done
  "$NBDIMG" compare theirs ours
}

@test "a static VDI image has all blocks, in order" {
  need qemu-img
  qemu-img create -q -f vdi -o static=on theirs 3500000
  "$NBDIMG" create -f vdi -o static=on ours 3500000 |
    grep 'fmt=vdi size=3500000 static=on'
  cmp <(peek theirs 0 392) <(peek ours 0 392)
  cmp <(peek theirs 424 1024) <(peek ours 424 1024)
  [ "$(stat -c %s theirs)" = "$(stat -c %s ours)" ]
  "$NBDIMG" io -c 'write -q -P 7 0 3500032' ours
  [ "$(stat -c %s theirs)" = "$(stat -c %s ours)" ]
  clean ours
}

@test "sizes that are no multiple of a block are written and read as by QEMU" {
  need qemu-img qemu-io
  local size
  local area
  for size in 512 1049088 5000192 2T; do
    area=$size
    [ $size != 2T ] || area=9000448
    new_disks vdi $size
    same_requests vdi 1 $area ours theirs
    qemu-img compare -f raw -F vdi raw ours
    "$NBDIMG" compare -f raw -F vdi raw theirs
    clean ours
    clean theirs
  done
}

@test "convert from and to VDI keeps every byte" {
  need qemu-img
  random_image raw 5000192 1
  "$NBDIMG" convert -O vdi raw a.vdi
  "$NBDIMG" convert -O qcow2 -c a.vdi b.qcow2
  "$NBDIMG" convert -O vdi -o static=on b.qcow2 c.vdi
  "$NBDIMG" convert -O raw c.vdi d.raw
  cmp raw d.raw
  qemu-img compare -f raw -F vdi raw a.vdi
  qemu-img convert -O vdi raw e.vdi
  "$NBDIMG" compare a.vdi e.vdi
  clean a.vdi
  clean c.vdi
  expect_error 1 'ompress' "$NBDIMG" convert -c -O vdi raw f.vdi
  expect_error 1 'Backing file not supported' \
    "$NBDIMG" create -q -f vdi -b raw -F raw f.vdi
}

# An image as VirtualBox leaves it: the data begin at 1 MiB, blocks in any order,
# some discarded, some missing, and the disk ends within a block.
make_virtualbox () {
  perl -e '
    my ($file) = @ARGV;
    my @map = (3, 0xffffffff, 0, 0xfffffffe, 2, 0xffffffff, 1);
    open my $f, ">:raw", $file or die;
    print $f pack ("a64 V3", "<<< Oracle VM VirtualBox Disk Image >>>\n",
                   0xbeda107f, 0x10001, 0x190);
    print $f pack ("V2 a256 V7 Q< V4 a64", 1, 0, "a comment", 1048576, 2097152,
                   0, 0, 0, 512, 0, 6 * 1048576 + 5120, 1048576, 0, 7, 4,
                   "0123456789abcdef0123456789abcdef");
    seek $f, 1048576, 0;
    print $f pack ("V*", @map);
    for my $i (0 .. 6) {
      next if $map[$i] >= 0xfffffffe;
      seek $f, 2097152 + $map[$i] * 1048576, 0;
      print $f chr (65 + $i) x 1048576;
    }' -- "$1"
}

@test "images by VirtualBox's rules are read, written and checked" {
  need qemu-img qemu-io
  make_virtualbox a.vdi
  "$NBDIMG" convert -O raw a.vdi raw
  [ "$(stat -c %s raw)" = $((6 * 1048576 + 5120)) ]
  perl -e 'for my $i (0 .. 6) {
    print +(grep { $_ == $i } 1, 3, 5) ? "\0" x 1048576
      : chr (65 + $i) x ($i == 6 ? 5120 : 1048576) }' >want
  cmp raw want
  clean a.vdi
  qemu-img compare -f raw -F vdi raw a.vdi
  "$NBDIMG" io -c 'write -q -P 1 1M 4k' -c 'write -q -P 2 3M 1M' \
    -c 'write -q -P 3 6M 512' a.vdi
  qemu-io -f raw -c 'write -q -P 1 1M 4k' -c 'write -q -P 2 3M 1M' \
    -c 'write -q -P 3 6M 512' raw
  [ "$(le32 a.vdi 388)" = 6 ]
  [ "$(peek a.vdi $((1048576 + 4)) 4)" = 04000000 ]
  [ "$(peek a.vdi $((1048576 + 12)) 4)" = 05000000 ]
  qemu-img compare -f raw -F vdi raw a.vdi
  clean a.vdi
}

@test "what a VDI image cannot be is refused by name" {
  make_virtualbox a.vdi
  local offset hex text
  while read -r offset hex text; do
    cp a.vdi b.vdi
    poke b.vdi "$offset" "$hex"
    expect_error 1 "$text" "$NBDIMG" info -f vdi b.vdi
  done <<'END'
64 00000000 not in VDI format
68 02000100 version 1.2
76 04000000 differencing image
76 03000000 image type 3
76 00000000 image type 0
340 00030000 unaligned block map offset
340 00000000 does not lie in the file, behind the header
340 000000ff does not lie in the file, behind the header
344 01002000 unaligned data offset
344 00001000 the block map ends at
360 00040000 sector size 1024
368 000000f8ffff0100 image bitmap has room
368 ffffffffffffffff Unsupported VDI image size
376 00000000 block size 0
376 00000001 block size 16777216
376 ffffffff block size 4294967295
380 00020000 extra bytes
384 06000000 image bitmap has room
384 ffffffff too many blocks
384 80ffff1f does not lie in the file
424 01 non-NULL link UUID
440 01 non-NULL parent UUID
END
  truncate -s 500 b.vdi
  expect_error 1 'ends within the VDI header' "$NBDIMG" info -f vdi b.vdi
}

@test "a map of 2 GiB in a file of 4 KiB costs neither time nor memory" {
  need qemu-img
  qemu-img create -q -f vdi a.vdi 1M
  truncate -s 4096 a.vdi
  poke a.vdi 368 000000f8ffff0100
  poke a.vdi 384 80ffff1f
  ulimit -v 1000000
  ulimit -t 2
  expect_error 1 'does not lie in the file' "$NBDIMG" info a.vdi
  expect_error 1 'does not lie in the file' "$NBDIMG" check a.vdi
  # the same map as a hole of the file
  truncate -s 3G a.vdi
  poke a.vdi 344 0000c0bf
  "$NBDIMG" info a.vdi | grep 'virtual size: 512 TiB'
  expect_error 1 'another block has too' "$NBDIMG" io -c 'write 0 512' a.vdi
}

@test "a number of blocks that is wrong is not believed, and mended" {
  need qemu-img qemu-io
  local count
  for count in 00000000 01000000 09000000; do
    rm -f a.vdi
    qemu-img create -q -f vdi a.vdi 10M
    qemu-io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 5M 1M' a.vdi
    poke a.vdi 388 $count
    run "$NBDIMG" check a.vdi
    [ "$status" = 2 ]
    [[ $output == *"allocated blocks mismatch"* ]]
    cp a.vdi b.vdi
    "$NBDIMG" check -r leaks b.vdi
    clean b.vdi
    "$NBDIMG" io -c 'write -q -P 3 1M 1M' a.vdi
    qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 3 1M 1M' -c 'read -P 2 5M 1M' \
      a.vdi >out
    run ! grep -i fail out
    clean a.vdi
  done
}

@test "blocks that share a place are not written to, and get their own" {
  need qemu-img qemu-io
  qemu-img create -q -f vdi a.vdi 10M
  qemu-io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 5M 1M' a.vdi
  poke a.vdi 516 00000000       # block 1 shares with block 0
  poke a.vdi 520 01000000       # block 2 with block 5
  run "$NBDIMG" check a.vdi
  [ "$status" = 2 ]
  [[ $output == *"also used by"* ]]
  "$NBDIMG" io -r -c 'read -q -P 1 1M 1M' a.vdi
  expect_error 1 'check -r all' "$NBDIMG" io -c 'write 0 512' a.vdi
  "$NBDIMG" convert -O raw a.vdi raw
  run "$NBDIMG" check -r leaks a.vdi
  [ "$status" = 2 ]
  "$NBDIMG" check -r all a.vdi
  clean a.vdi
  "$NBDIMG" compare -f raw -F vdi raw a.vdi
  sum=$(sha256sum <a.vdi)
  "$NBDIMG" check -r all a.vdi
  [ "$sum" = "$(sha256sum <a.vdi)" ]
  "$NBDIMG" io -c 'write -q -P 9 0 1M' -c 'read -q -P 1 1M 1M' \
    -c 'read -q -P 2 2M 1M' -c 'read -q -P 2 5M 1M' a.vdi
}

@test "places behind the end of the file are found, and given up by repair" {
  need qemu-img qemu-io
  qemu-img create -q -f vdi a.vdi 10M
  qemu-io -c 'write -q -P 1 0 2M' a.vdi
  poke a.vdi 520 07000000       # block 2
  poke a.vdi 524 fdffffff       # block 3
  run "$NBDIMG" check a.vdi
  [ "$status" = 2 ]
  [[ $output == *"too large, is 4294967293"* ]]
  expect_error 1 'behind the end of the file' \
    "$NBDIMG" convert -O raw a.vdi raw
  expect_error 1 'check -r all' "$NBDIMG" io -c 'write 0 512' a.vdi
  "$NBDIMG" check -r all a.vdi
  clean a.vdi
  "$NBDIMG" io -c 'read -q -P 1 0 2M' -c 'read -q -P 0 2M 8M' \
    -c 'write -q -P 3 2M 1M' a.vdi
  # and one that the end of the file cuts
  truncate -s -4096 a.vdi
  run "$NBDIMG" check a.vdi
  [ "$status" = 2 ]
  "$NBDIMG" check -r all a.vdi
  clean a.vdi
  # a map that is something else
  head -c 40 /dev/zero | dd of=a.vdi bs=1 seek=512 conv=notrunc status=none
  truncate -s 500M a.vdi
  qemu-img create -q -f vdi b.vdi 500M
  dd if=/dev/zero of=b.vdi bs=1 seek=512 count=2000 conv=notrunc status=none
  truncate -s 20M b.vdi
  expect_error 1 'cannot be repaired' "$NBDIMG" check -r all b.vdi
  [ "$(stat -c %s b.vdi)" = $((20 << 20)) ]
}

@test "zeroes and trims of a block keep its place, and give back its space" {
  need qemu-img qemu-io
  "$NBDIMG" create -q -f vdi a.vdi 10M
  "$NBDIMG" io -c 'write -q -P 1 0 4M' a.vdi
  map=$(peek a.vdi 512 40)
  size=$(stat -c %b a.vdi)
  "$NBDIMG" io -d unmap -c 'discard 1M 1M' -c 'write -z -u 2M 1M' \
    -c 'discard 3500k 4k' -c 'discard 6M 2M' -c 'write -z -u 8M 1M' a.vdi
  [ "$map" = "$(peek a.vdi 512 40)" ]
  [ "$(stat -c %b a.vdi)" -lt $((size - 3000)) ]
  qemu-io -c 'read -P 1 0 1M' -c 'read -P 0 1M 2M' -c 'read -P 1 3M 428k' \
    -c 'read -P 0 3500k 4k' -c 'read -P 1 3504k 80k' -c 'read -P 0 4M 6M' \
    a.vdi >out
  run ! grep -i fail out
  clean a.vdi
  # the next block goes behind the last one
  qemu-io -c 'write -q -P 5 7M 1M' a.vdi
  "$NBDIMG" io -c 'read -q -P 5 7M 1M' -c 'read -q -P 1 0 1M' a.vdi
  clean a.vdi
}

@test "a VDI image grows, its map too, and QEMU reads it" {
  need qemu-img qemu-io
  local size
  qemu-img create -q -f raw raw 5M
  "$NBDIMG" create -q -f vdi a.vdi 5M
  random_requests 3 5242880 >requests
  qemu-io -f raw raw <requests >/dev/null
  "$NBDIMG" io a.vdi <requests >/dev/null
  # within the map's sector; over it; a map of 2 MiB
  for size in 6000128 400M 600G; do
    "$NBDIMG" io -c "truncate $size" a.vdi
    truncate -s $size raw
    clean a.vdi
    qemu-img compare -f raw -F vdi raw a.vdi
    "$NBDIMG" io -c 'write -q -P 77 5700k 300' a.vdi
    qemu-io -f raw -c 'write -q -P 77 5700k 300' raw
    "$NBDIMG" compare -f raw -F vdi raw a.vdi
  done
  qemu-io -c 'write -q -P 8 599G 1M' a.vdi
  clean a.vdi
  run "$NBDIMG" io -c 'truncate 5M' a.vdi
  [[ $output == "nbdimg: a.vdi: VDI images cannot be made smaller" ]]
  "$NBDIMG" create -q -f vdi -o static=on b.vdi 3M
  "$NBDIMG" io -c 'write -q -P 1 0 3M' -c 'truncate 300M' b.vdi
  [ "$(le32 b.vdi 388)" = 300 ]
  clean b.vdi
  qemu-io -c 'read -P 1 0 3M' -c 'read -P 0 3M 297M' b.vdi >out
  run ! grep -i fail out
}

@test "what another program left behind the end of a VDI disk never shows" {
  need qemu-img qemu-io
  local size
  for size in 3M 300M; do
    rm -f a.vdi raw
    qemu-img create -q -f vdi a.vdi 3M
    qemu-io -c 'write -q -P 7 2M 1M' -c 'write -q -P 8 0 1M' a.vdi
    # the disk ends within block 0, and block 2 is behind it
    poke a.vdi 368 0002000000000000
    qemu-img convert -O raw a.vdi raw
    [ "$(stat -c %s raw)" = 512 ]
    "$NBDIMG" resize -q a.vdi $size
    truncate -s $size raw
    clean a.vdi
    qemu-img compare -q -f raw -F vdi raw a.vdi
    qemu-io -c 'write -q -P 9 1M 512' a.vdi
    "$NBDIMG" io -c 'write -q -P 9 2M 512' a.vdi
    qemu-io -c 'write -q -P 9 1M 512' -c 'write -q -P 9 2M 512' -f raw raw
    clean a.vdi
    qemu-img compare -q -f raw -F vdi raw a.vdi
  done
}

@test "what is written after a VDI image could not grow goes nowhere else" {
  need_test_storage
  "$NBDIMG" create -q -f vdi a.vdi 4M
  "$NBDIMG" io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 1M 1M' a.vdi
  # its longer map takes two places, whose blocks move
  local k
  for ((k = 1; k < 99; k++)); do
    cp a.vdi b.vdi
    NBDIMG_TEST_STORAGE="fault:op=write,index=$k,short=1" run "$NBDIMG" io \
      -c 'truncate 300G' -c 'write -q -P 3 2M 512' -c 'write -q -P 4 3M 1M' \
      b.vdi
    [ "$(le32 b.vdi 344)" = 1024 ] || break     # it has grown
    "$NBDIMG" check -q b.vdi || fail "write $k: $(peek b.vdi 512 16)"
    run "$NBDIMG" io -r -c 'read -q -P 1 0 1M' -c 'read -q -P 2 1M 1M' \
      -c 'read -q -P 3 2M 512' -c 'read -q -P 0 2097664 1048064' \
      -c 'read -q -P 4 3M 1M' b.vdi
    [ -z "$output" ] || fail "write $k: $output"
  done
  [ "$k" -gt 6 ] && [ "$k" -lt 99 ]
}

@test "a repaired VDI map is clean for QEMU too, and no moment of it loses data" {
  need qemu-img
  need_test_storage
  "$NBDIMG" create -q -f vdi a.vdi 8M
  "$NBDIMG" io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 1M 1M' \
    -c 'write -q -P 3 2M 1M' -c 'write -q -P 4 3M 1M' -c 'write -q -P 5 4M 1M' \
    a.vdi
  # Gaps alone: block 2 lies far out.  QEMU counts the entries, and would write
  # over a block if the header said that number.
  cp a.vdi b.vdi
  truncate -s $((1024 + (12 << 20))) b.vdi
  poke b.vdi 520 0b000000
  dd if=b.vdi of=b.vdi iflag=skip_bytes,count_bytes oflag=seek_bytes \
    skip=$((1024 + (2 << 20))) seek=$((1024 + (11 << 20))) count=1M \
    conv=notrunc status=none
  poke b.vdi 388 05000000
  "$NBDIMG" convert -O raw b.vdi raw
  run -2 "$NBDIMG" check b.vdi
  [[ $output == *"7 places are not in use"* ]]
  "$NBDIMG" check -r all b.vdi
  clean b.vdi
  [ "$(le32 b.vdi 520)" = 2 ] && [ "$(le32 b.vdi 388)" = 5 ]
  qemu-img compare -f raw -F vdi raw b.vdi
  # Two share a place, of one the place is lost, one is given up, and the number
  # is too small.
  poke a.vdi 512 03000000       # block 0 has that of block 3
  poke a.vdi 516 feffffff       # block 1 is discarded
  poke a.vdi 532 04000000       # block 5 has that of block 4
  poke a.vdi 536 03000000       # block 6 that of block 3
  poke a.vdi 388 02000000
  "$NBDIMG" convert -O raw a.vdi raw
  # The file does not reach to the place of one, which is the next for a copy.
  poke a.vdi 540 05000000
  local k
  for ((k = 1; k < 99; k++)); do
    cp --sparse=always a.vdi b.vdi
    NBDIMG_TEST_STORAGE="fault:op=write,index=$k,short=1,kill=1" \
      run "$NBDIMG" check -r all b.vdi
    qemu-img compare -q -f raw -F vdi raw b.vdi || fail "write $k: content"
    [ "$status" = 137 ] || break
    # a number that is too small lets QEMU write over a block
    [ "$(peek b.vdi 512 32)" = "$(peek a.vdi 512 32)" ] ||
      [ "$(le32 b.vdi 388)" -ge "$(next_index b.vdi 8)" ] ||
      fail "write $k: $(peek b.vdi 388 4) $(peek b.vdi 512 32)"
    "$NBDIMG" check -q -r all b.vdi
    clean b.vdi
    qemu-img compare -q -f raw -F vdi raw b.vdi
  done
  [ "$k" -gt 6 ] && [ "$k" -lt 99 ]
  clean b.vdi
  [ "$(le32 b.vdi 388)" = 6 ]
}
