#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# qcow (version 1) images, beside QEMU's driver.

load lib

# be64 FILE OFFSET: a number of the header or of a table
be64 () { echo $((16#$(peek "$1" "$2" 8))); }

reads () {
  "$@" >out
  run ! grep -i -E 'fail|error' out
}

@test "a qcow image of QEMU has the known layout, and ours is the same file" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow theirs 10M
  "$NBDIMG" create -f qcow ours 10M | grep 'fmt=qcow size=10485760$'
  cmp theirs ours
  qemu-img create -q -f raw base.raw 3000320
  qemu-img create -q -f qcow -b base.raw -F raw theirs2
  "$NBDIMG" create -f qcow -b base.raw -F raw ours2 |
    grep 'size=3000320 backing_file=base.raw backing_fmt=raw'
  cmp theirs2 ours2
  [ "$(peek ours 0 8)" = 514649fb00000001 ]
  [ "$(be64 ours 24)" = 10485760 ]
  [ "$(peek ours 32 2)" = 0c09 ]
  [ "$(be64 ours 40)" = 48 ]
  [ "$(peek ours2 8 12)" = 000000000000003000000008 ]
  [ "$(peek ours2 32 2)" = 090c ]
  [ "$(be64 ours2 40)" = 56 ]
  # entries are byte offsets, and compressed ones have their length too
  for f in theirs ours; do
    io=qemu-io
    [ $f = theirs ] || io="$NBDIMG io"
    $io -c 'write -q -P 1 1M 512' -c 'write -q -P 2 0 8k' \
      -c 'write -q -c -P 3 2M 4k' $f
    l2=$(be64 $f 48)
    [ $((l2 % 4096)) = 0 ]
    [ "$(be64 $f $((l2 + 8)))" = $(($(be64 $f "$l2") + 4096)) ]
    entry=$(be64 $f $((l2 + 256 * 8)))
    [ "$(peek $f "$entry" 4)" = 01010101 ]
    l2=$(be64 $f 56)
    entry=$(be64 $f "$l2")
    [ $((entry >> 63 & 1)) = 1 ]
    host=$((entry & ((1 << 51) - 1))) len=$((entry >> 51 & 4095))
    [ $len -gt 0 ]
    [ $len -lt 200 ]
    [ $((host + len)) -le $((($(stat -c %s $f) + 511) / 512 * 512)) ]
  done
  qemu-img compare theirs ours
  "$NBDIMG" compare theirs ours
}

# same_disks SIZE: raw, ours and theirs.  qemu-img looks at 2 TiB of qcow cluster
# by cluster: it gets the first 9 MiB.
same_disks () {
  "$NBDIMG" compare -f raw -F qcow raw theirs
  [ "$1" = 2T ] || { qemu-img compare -f raw -F qcow raw ours; return; }
  "$NBDIMG" compare -f raw -F qcow raw ours
  qemu-img dd -f qcow -O raw bs=1M count=9 if=ours of=got
  cmp -n 9437184 got raw
  rm -f got
}

@test "sizes that are no multiple of a cluster are written and read as by QEMU" {
  need qemu-img qemu-io
  local size area
  for size in 512 1049088 5000192 2T; do
    area=$size
    [ $size != 2T ] || area=9000448
    new_disks qcow $size
    same_requests qcow 1 $area ours theirs
    same_disks $size
    # each goes on where the other one stopped
    same_requests qcow 2 $area theirs ours
    same_disks $size
  done
}

# make_chain TOOL: qcow over qcow2 over qcow over raw, each with something of its
# own, the lowest one shorter than the rest.  QEMU flushes for each cluster of 512
# bytes that it adds: there are not many.
make_chain () {
  local img=qemu-img io=qemu-io
  [ "$1" = qemu ] || { img=$NBDIMG; io="$NBDIMG io"; }
  mkdir "$1"
  random_image "$1/a.raw" 3000320 5
  (
    cd "$1" || exit
    "$img" create -q -f qcow -b a.raw -F raw b.qcow 6M
    $io -c 'write -q -P 1 0 20k' -c 'write -q -P 2 2900k 60k' b.qcow
    "$img" create -q -f qcow2 -b b.qcow -F qcow c.qcow2
    $io -c 'write -q -P 3 10k 100k' -c 'write -q -z 2M 64k' c.qcow2
    "$img" create -q -f qcow -b c.qcow2 -F qcow2 d.qcow 7000064
    $io -c 'write -q -P 4 5k 7k' -c 'write -q -z 2920k 3k' \
      -c 'write -q -P 5 2050k 512' -c 'write -q -P 6 6999040 1024' d.qcow
  )
}

@test "chains with qcow in them are the same disks to QEMU and us" {
  need qemu-img qemu-io
  make_chain qemu
  make_chain ours
  "$NBDIMG" compare qemu/d.qcow ours/d.qcow
  qemu-img compare qemu/d.qcow ours/d.qcow
  qemu-img convert -O raw ours/d.qcow want
  "$NBDIMG" convert -O raw qemu/d.qcow got
  cmp want got
  "$NBDIMG" info --backing-chain ours/d.qcow | grep -c '^image:' | grep -x 4
  # the same layer gives as much of the disk
  depths='[group_by(.depth)[] | {(.[0].depth | tostring): map(.length) | add}]
    | add'
  diff <(qemu-img map --output=json qemu/d.qcow | jq -S "$depths") \
    <("$NBDIMG" map --output=json qemu/d.qcow | jq -S "$depths")
}

@test "zeroes over a backing file stay zeroes, trims never show it" {
  need qemu-img qemu-io
  qemu-img create -q -f raw base.raw 1M
  qemu-io -f raw -c 'write -q -P 9 0 1M' base.raw
  "$NBDIMG" create -q -f qcow -b base.raw -F raw a.qcow
  "$NBDIMG" io -d unmap -c 'write -q -z 0 64k' -c 'write -q -z -u 64k 64k' \
    -c 'write -q -P 1 128k 128k' -c 'discard 128k 64k' -c 'discard 512k 64k' \
    a.qcow
  reads qemu-io -c 'read -P 0 0 192k' -c 'read -P 1 192k 64k' \
    -c 'read -P 9 256k 768k' a.qcow
  # without one, a zero takes no space
  "$NBDIMG" create -q -f qcow b.qcow 1G
  "$NBDIMG" io -d unmap -c 'write -q -z -u 0 1G' b.qcow
  [ "$(stat -c %s b.qcow)" -lt 10000 ]
  "$NBDIMG" io -d unmap -c 'write -q -P 1 0 4M' b.qcow
  used=$(stat -c %b b.qcow)
  "$NBDIMG" io -d unmap -c 'discard 1M 2M' -c 'write -q -z -u 3M 1M' b.qcow
  [ "$(stat -c %b b.qcow)" -lt $((used - 5000)) ]
  reads qemu-io -c 'read -P 1 0 1M' -c 'read -P 0 1M 3M' b.qcow
}

@test "compressed clusters: packed by us and by QEMU, written over by both" {
  need qemu-img qemu-io
  random_image raw 3M 2
  "$NBDIMG" convert -c -O qcow raw ours.qcow
  # 7.2 fails without a word when the image is complete
  qemu-img convert -c -O qcow raw theirs.qcow || [ $? = 1 ]
  [ "$(stat -c %s ours.qcow)" -le "$(stat -c %s theirs.qcow)" ]
  qemu-img compare -f raw -F qcow raw ours.qcow
  "$NBDIMG" compare -f raw -F qcow raw theirs.qcow
  "$NBDIMG" map --output=json ours.qcow | grep -q '"data": true'
  random_requests 9 3145728 >requests
  qemu-io -f raw raw <requests >/dev/null
  qemu-io -f qcow ours.qcow <requests >/dev/null
  "$NBDIMG" io -f qcow theirs.qcow <requests >/dev/null
  qemu-img compare -f raw -F qcow raw ours.qcow
  "$NBDIMG" compare -f raw -F qcow raw theirs.qcow
  # over a backing file the clusters are 512 bytes
  qemu-img create -q -f raw base.raw 3M
  "$NBDIMG" convert -c -O qcow -B base.raw -F raw raw small.qcow
  qemu-img compare -f raw -F qcow raw small.qcow
  "$NBDIMG" convert -O raw small.qcow again
  cmp raw again
  # a last cluster that the disk cuts
  random_image odd 3000320 2
  "$NBDIMG" convert -c -O qcow odd odd.qcow
  qemu-img compare -f raw -F qcow odd odd.qcow
}

@test "what a qcow image cannot be is refused by name" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow a.qcow 10M
  qemu-io -c 'write -q -P 1 0 64k' a.qcow
  local text patch
  while IFS=: read -r text patch; do
    cp a.qcow b.qcow
    # shellcheck disable=SC2086
    set -- $patch
    while [ $# -gt 1 ]; do
      poke b.qcow "$1" "$2"
      shift 2
    done
    expect_error 1 "$text" "$NBDIMG" info -f qcow b.qcow
  done <<'END'
not in qcow format:0 00
does not support qcow version:4 00000007
Cluster size must be between 512 and 64k:32 05
Cluster size must be between 512 and 64k:32 08
Cluster size must be between 512 and 64k:32 11
Cluster size must be between 512 and 64k:32 ff
L2 table size must be between 512 and 64k:33 05
L2 table size must be between 512 and 64k:33 0e
L2 table size must be between 512 and 64k:33 1b
L2 table size must be between 512 and 64k:33 ff
Image size is too small:24 0000000000000000
Image size is too small:24 0000000000000001
Image too large:24 eeeeeeeeeeeeeeee
Image too large:24 7fffffffffffffff
does not lie in the file, behind the header:24 0000100000000000
invalid encryption method:36 00000002
does not lie in the file, behind the header:40 0000000000000000
does not lie in the file, behind the header:40 0000000000000031
does not lie in the file, behind the header:40 7fffffffffffff00
does not lie in the file, behind the header:40 ffffffffffffff00
Backing file name too long:8 0000000000000040 16 7fffffff
Backing file name too long:8 0000000000000040 16 00000400
Invalid backing file offset:8 0000000000000040
Invalid backing file offset:16 00000010
Invalid backing file offset:8 0000000000000008 16 00000010
Invalid backing file offset:8 0000000000000030 16 00000010
Invalid backing file offset:8 00000000f0000030 16 00000010
Invalid backing file offset:8 fffffffffffffff0 16 00000020
contains a NUL byte:8 0000000000000100 16 00000020
END
  head -c 47 a.qcow >b.qcow
  expect_error 1 'ends within the qcow header' "$NBDIMG" info -f qcow b.qcow
}

@test "entries that lead nowhere are errors, and never written through" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow a.qcow 10M
  qemu-io -c 'write -q -P 1 0 64k' -c 'write -q -P 2 5M 64k' a.qcow
  local where hex
  while read -r where hex; do
    cp a.qcow b.qcow
    poke b.qcow "$where" "$hex"
    expect_error 1 'corrupt image' "$NBDIMG" convert -f qcow -O raw b.qcow raw
    sum=$(head -c 48 b.qcow | sha256sum)
    run "$NBDIMG" io -c 'write -P 3 0 512' -c 'write -P 3 4k 1M' b.qcow
    [ "$sum" = "$(head -c 48 b.qcow | sha256sum)" ]
    # what the damage does not touch is read and written
    "$NBDIMG" io -c 'read -q -P 2 5M 64k' -c 'write -q -P 4 8M 64k' \
      -c 'read -q -P 4 8M 64k' b.qcow
  done <<'END'
48 0000000000000030
48 0000000000001200
48 00000000fffff000
48 7ffffffffffff000
48 ffffffffffffffff
0x1000 0000000000000010
0x1000 0000000000002010
0x1000 0000000ffffff000
0x1000 7ffffffffffff000
0x1000 ffffffffffffffff
0x1000 8000000000002000
END
  # a table that the end of the file cuts
  "$NBDIMG" create -q -f qcow c.qcow 10M
  "$NBDIMG" io -c 'write -q -P 1 0 4k' c.qcow
  truncate -s $((0x1800)) c.qcow
  expect_error 1 'corrupt image' "$NBDIMG" io -c 'read 0 4k' c.qcow
}

@test "a file that was cut does not grow over what its entries lead to" {
  "$NBDIMG" create -q -f qcow a.qcow 10M
  "$NBDIMG" io -c 'write -q -P 1 0 8k' -c 'write -q -P 2 2M 4k' a.qcow
  # 0x2000 and 0x3000 are data, 0x4000 the second L2 table, 0x5000 data
  local end
  for end in $((0x3000)) $((0x5000)) $((0x3e00)); do
    cp a.qcow b.qcow
    truncate -s "$end" b.qcow
    expect_error 1 'an entry leads to 0x' "$NBDIMG" io -c 'write -P 9 1M 4k' \
      b.qcow
    [ "$(stat -c %s b.qcow)" = "$end" ]
    [[ $stderr == *'behind the end of the file'* ]]
    # what is there is read and written as before
    "$NBDIMG" io -c 'read -q -P 1 0 4k' -c 'write -q -P 7 0 4k' \
      -c 'read -q -P 7 0 4k' b.qcow
    expect_error 1 'corrupt image' "$NBDIMG" io -c 'read 2M 4k' b.qcow
  done
  # clusters in a row, the last of which is not there
  cp a.qcow b.qcow
  truncate -s $((0x3000)) b.qcow
  expect_error 1 'which is not the place of a cluster' "$NBDIMG" io \
    -c 'write -P 7 0 8k' b.qcow
  # an entry far out leaves room
  cp a.qcow b.qcow
  poke b.qcow $((0x1000 + 16)) 0000000000008000
  "$NBDIMG" io -c 'write -q -P 3 16k 8k' -c 'read -q -P 3 16k 8k' b.qcow
  expect_error 1 'an entry leads to 0x8000' "$NBDIMG" io -c 'write 24k 4k' b.qcow
  # a compressed cluster that is cut
  head -c 4096 /dev/urandom | xxd -p | head -c 4096 >raw
  "$NBDIMG" convert -c -f raw -O qcow raw c.qcow
  truncate -s -1k c.qcow
  "$NBDIMG" io -c 'write -q -P 1 0 4k' -c 'read -q -P 1 0 4k' c.qcow
}

@test "a table for each of more L1 entries than fit is no image to write to" {
  "$NBDIMG" create -q -f qcow a.qcow 1G
  "$NBDIMG" io -c 'write -q -P 1 0 4k' a.qcow
  local i
  for i in {1..30}; do poke a.qcow $((48 + i * 8)) 0000000000002000; done
  expect_error 1 'more entries than there are L2 tables' \
    "$NBDIMG" io -c 'write 512M 4k' a.qcow
}

@test "commit leaves an empty qcow image, as QEMU's does" {
  need qemu-img qemu-io
  local tool
  for tool in qemu-img "$NBDIMG"; do
    qemu-img create -q -f qcow a.qcow 4M
    qemu-img create -q -f qcow -b a.qcow -F qcow b.qcow
    qemu-io -c 'write -q -P 7 1M 300k' b.qcow
    "$tool" commit -q b.qcow
    cp b.qcow "empty.${tool##*/}"
    "$NBDIMG" io -c 'read -q -P 7 1M 300k' -c 'write -q -P 8 2M 4k' b.qcow
    reads qemu-io -c 'read -P 7 1M 300k' -c 'read -P 8 2M 4k' b.qcow
  done
  cmp empty.qemu-img "empty.${NBDIMG##*/}"
  # a name that stands behind the tables is kept
  "$NBDIMG" create -q -f qcow -b a.qcow -F qcow c.qcow
  "$NBDIMG" io -c 'write -q -P 9 0 512' c.qcow
  local at
  at=$(stat -c %s c.qcow)
  printf a.qcow >>c.qcow
  poke c.qcow 8 "$(printf %016x "$at")"
  "$NBDIMG" commit -q c.qcow
  [ "$(stat -c %s c.qcow)" = $((at + 6)) ]
  "$NBDIMG" io -c 'read -q -P 9 0 512' -c 'read -q -P 7 1M 300k' \
    -c 'write -q -P 1 2M 512' -c 'read -q -P 1 2M 512' c.qcow
  "$NBDIMG" info c.qcow | grep 'backing file: a.qcow'
}

@test "qcow has no check and no other size, and create says what it cannot" {
  need qemu-img
  "$NBDIMG" create -q -f qcow a.qcow 1M
  expect_error 63 'does not support checks' "$NBDIMG" check a.qcow
  run "$NBDIMG" io -c 'truncate 2M' a.qcow
  [[ $output == *"does not support resize"* ]]
  expect_error 1 "'encrypt.key-secret' is required" \
    "$NBDIMG" create -q -f qcow -o encryption=on b.qcow 1M
  expect_error 1 "does not accept value 'luks'" \
    "$NBDIMG" create -q -f qcow -o encrypt.format=luks b.qcow 1M
  expect_error 1 'zero length' "$NBDIMG" create -q -f qcow b.qcow 0
  expect_error 1 'too large' "$NBDIMG" create -q -f qcow b.qcow 1024T
  [ ! -e b.qcow ]
  diff <(qemu-img create -f qcow -o help) <("$NBDIMG" create -f qcow -o help)
}

# opts FILE: an encrypted image by its options
opts () {
  echo "driver=qcow,encrypt.key-secret=s,file.filename=$1"
}

@test "AES in qcow is the same to QEMU and us, and needs the secret" {
  need qemu-img qemu-io
  local secret=(--object 'secret,id=s,data=letmein')
  local make=(create -q -f qcow "${secret[@]}"
    -o 'encrypt.format=aes,encrypt.key-secret=s')
  qemu-img create -q -f raw raw 3000320
  qemu-img "${make[@]}" theirs 3000320
  "$NBDIMG" "${make[@]}" ours 3000320
  cmp theirs ours
  random_requests 4 3000320 >requests
  qemu-io -f raw raw <requests >/dev/null
  qemu-io "${secret[@]}" --image-opts "$(opts theirs)" <requests >/dev/null
  "$NBDIMG" io "${secret[@]}" --image-opts "$(opts ours)" <requests >/dev/null
  "$NBDIMG" convert "${secret[@]}" --image-opts -O raw "$(opts theirs)" a.raw
  cmp raw a.raw
  qemu-img convert "${secret[@]}" --image-opts -O raw "$(opts ours)" b.raw
  cmp raw b.raw
  "$NBDIMG" info ours | grep 'encrypted: yes'
  expect_error 1 'encrypt.key-secret' "$NBDIMG" convert -O raw ours c.raw
  expect_error 1 'ompress' "$NBDIMG" convert -c "${secret[@]}" -O qcow \
    -o encrypt.format=aes,encrypt.key-secret=s raw d.qcow
}
