# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg convert on local files: the target reads as the sources do, QEMU finds
# nothing wrong with it, and what need not be written is not.

load lib

convert () {
  "$NBDIMG" convert "$@"
}

# The disk of a target is that of a raw file, to QEMU and to us.
is_copy () {
  local raw=$1 target=$2
  qemu-img compare -f raw "$raw" "$target" || return 1
  qemu-img check -q "$target" || [ $? = 63 ] || fail "$target: check"
  rm -f is_copy.raw
  convert -O raw "$target" is_copy.raw
  cmp "$raw" is_copy.raw
}

# Bytes that the top layer of an image holds itself.
own_bytes () {
  qemu-img map --output=json "$1" |
    jq '[.[] | select (.depth == 0 and .data) | .length] | add // 0'
}

own_clusters () {
  qemu-img check --output=json "$1" | jq '."allocated-clusters" // 0'
}

@test "raw to qcow2 of every cluster size and version, and back" {
  need qemu-img
  random_image src.raw 8M 1
  for compat in 0.10 1.1; do
    for size in 512 4k 64k 2M; do
      rm -f t.qcow2
      convert -f raw -O qcow2 -o compat=$compat,cluster_size=$size \
        src.raw t.qcow2
      is_copy src.raw t.qcow2
    done
  done
}

@test "compressed clusters, zlib and zstd, are read by QEMU and are no larger" {
  need qemu-img jq
  need_zstd
  random_image src.raw 20M 2
  for type in zlib zstd; do
    for size in 4k 64k 2M; do
      rm -f t.qcow2 q.qcow2
      convert -c -f raw -O qcow2 \
        -o compression_type=$type,cluster_size=$size src.raw t.qcow2
      is_copy src.raw t.qcow2
      qemu-img convert -c -f raw -O qcow2 \
        -o compression_type=$type,cluster_size=$size src.raw q.qcow2
      [ "$(stat -c %s t.qcow2)" -le $(($(stat -c %s q.qcow2) * 102 / 100)) ]
    done
    qemu-img check --output=json t.qcow2 |
      jq -e '."compressed-clusters" > 0'
  done
}

@test "a short last cluster is compressed as QEMU reads it" {
  need qemu-img
  for size in 512 66048 130560; do
    random_image src.raw $size 3
    rm -f t.qcow2
    convert -c -f raw -O qcow2 src.raw t.qcow2
    is_copy src.raw t.qcow2
  done
}

@test "what QEMU wrote, in all its kinds, is copied to the byte" {
  need qemu-img
  need_zstd
  random_image src.raw 8M 4
  while read -r options; do
    rm -f s.qcow2 t.raw data
    # shellcheck disable=SC2086
    qemu-img convert -f raw -O qcow2 $options src.raw s.qcow2
    convert -f qcow2 -O raw s.qcow2 t.raw
    cmp src.raw t.raw
    rm -f t.qcow2
    convert s.qcow2 -O qcow2 t.qcow2
    is_copy src.raw t.qcow2
  done <<'END'
-o compat=0.10
-c -o compat=0.10,cluster_size=4k
-c
-c -o compression_type=zstd
-o cluster_size=512,refcount_bits=1
-o extended_l2=on,cluster_size=128k
-c -o extended_l2=on
-o data_file=data
-o data_file=data,data_file_raw=on
-o preallocation=metadata
-o lazy_refcounts=on
END
}

@test "targets of every kind: subclusters, data files, preallocation" {
  need qemu-img
  random_image src.raw 8M 5
  while read -r options; do
    rm -f t.qcow2 data
    convert -f raw -O qcow2 -o "$options" src.raw t.qcow2
    is_copy src.raw t.qcow2
  done <<'END'
extended_l2=on,cluster_size=64k
data_file=data
data_file=data,data_file_raw=on
preallocation=metadata
preallocation=falloc
preallocation=full
lazy_refcounts=on
refcount_bits=1
refcount_bits=64
END
  for mode in falloc full; do
    rm -f t.raw
    convert -O raw -o preallocation=$mode src.raw t.raw
    cmp src.raw t.raw
    [ $(($(stat -c '%b * %B' t.raw))) -ge 8388608 ]
  done
}

@test "a source that is not whole sectors gets zeroes up to the next one" {
  need qemu-img
  for n in 1 511 513 65537 1000001; do
    random_image src.raw $n 6
    cp src.raw padded
    truncate -s %512 padded
    for format in raw qcow2; do
      rm -f ours theirs flat
      convert -f raw -O $format src.raw ours
      qemu-img convert -f raw -O $format src.raw theirs
      qemu-img compare ours theirs
      convert -f $format -O raw ours flat
      cmp padded flat
    done
  done
}

@test "several sources stand one behind the other" {
  need qemu-img
  random_image a 100000 7
  random_image b 3M 8
  random_image c 77777 9
  qemu-img convert -O qcow2 b b.qcow2
  cat a /dev/null >all
  truncate -s %512 all
  cat b >>all
  cat c >>all
  truncate -s %512 all
  convert -O raw a b.qcow2 c t.raw
  cmp all t.raw
  convert -O qcow2 a b.qcow2 c t.qcow2
  is_copy all t.qcow2
  convert -c -O qcow2 -o cluster_size=128k a b.qcow2 c z.qcow2
  is_copy all z.qcow2
  qemu-img convert -O raw a b.qcow2 c q.raw
  cmp t.raw q.raw
}

@test "-l takes an id, a name, or both by their keys" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow2 s.qcow2 4M
  for n in 1 2 3; do
    qemu-io -c "write -P $n 0 2M" s.qcow2
    qemu-img snapshot -c snap$n s.qcow2
  done
  qemu-img snapshot -c 2 s.qcow2        # a name that is another's id
  qemu-io -c 'write -P 9 0 4M' s.qcow2
  for l in 2 snap2 snapshot.id=2 snapshot.name=snap2 \
    snapshot.id=2,snapshot.name=snap2; do
    for format in raw qcow2; do
      rm -f ours theirs
      convert -l $l -O $format s.qcow2 ours
      qemu-img convert -l $l -O $format s.qcow2 theirs
      qemu-img compare ours theirs
      qemu-io -r -c 'read -P 2 0 2M' -c 'read -P 0 2M 2M' ours >out
      run ! grep -i fail out
    done
  done
  convert -l snapshot.name=2 -O raw s.qcow2 t.raw
  qemu-io -f raw -c 'read -P 3 0 2M' t.raw >out
  run ! grep -i fail out
  expect_error 1 "Can't find snapshot" convert -l nosuch s.qcow2 u
  expect_error 1 "Can't find snapshot" \
    convert -l snapshot.id=1,snapshot.name=snap2 s.qcow2 u
  expect_error 1 "Invalid parameter 'snapshot.x'" \
    convert -l snapshot.x=1 s.qcow2 u
  expect_error 1 "internal snapshots" convert -f raw -l snap1 s.qcow2 u
  [ ! -e u ]
}

# base <- mid <- top, each with some bytes of its own
make_chain () {
  qemu-img create -q -f qcow2 base.qcow2 4M
  qemu-io -c 'write -P 1 0 2M' base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
  qemu-io -c 'write -P 2 1M 512k' -c 'write -z 256k 64k' mid.qcow2
  qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
  qemu-io -c 'write -P 3 3M 128k' -c 'write -z 512k 64k' top.qcow2
}

@test "-B leaves out what the backing file has, wherever it stands" {
  need qemu-img qemu-io jq
  make_chain
  qemu-img convert -O raw top.qcow2 top.raw
  for base in base mid; do
    for extra in "" "-c" "-S 0" "-W -m 8"; do
      rm -f t.qcow2
      # shellcheck disable=SC2086
      convert $extra -O qcow2 -B $base.qcow2 -F qcow2 top.qcow2 t.qcow2
      is_copy top.raw t.qcow2
      [ "$(own_clusters t.qcow2)" -le 12 ]
    done
  done
  # What was in the middle is not lost.
  rm -f t.qcow2
  convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 t.qcow2
  [ "$(own_bytes t.qcow2)" = $((512 * 1024 + 128 * 1024)) ]
}

@test "-B with a copy of the base, or another disk, gives the same disk" {
  need qemu-img qemu-io jq
  make_chain
  qemu-img convert -O raw top.qcow2 top.raw
  cp base.qcow2 copy.qcow2
  convert -O qcow2 -b copy.qcow2 -F qcow2 top.qcow2 t.qcow2
  is_copy top.raw t.qcow2
  [ "$(own_bytes t.qcow2)" = $((512 * 1024 + 128 * 1024)) ]
  random_image other.raw 3M 10
  rm t.qcow2
  convert -O qcow2 -B other.raw -F raw top.qcow2 t.qcow2
  is_copy top.raw t.qcow2
  rm t.qcow2
  convert -O qcow2 -o backing_file=other.raw,backing_fmt=raw,compat=0.10 \
    top.qcow2 t.qcow2
  is_copy top.raw t.qcow2
  rm t.qcow2
  convert -O qcow2 -o extended_l2=on,backing_file=other.raw,backing_fmt=raw \
    top.qcow2 t.qcow2
  is_copy top.raw t.qcow2
}

@test "-B with a backing file that is shorter or longer than the disk" {
  need qemu-img
  random_image src.raw 4M 11
  random_image long.raw 6M 11
  head -c 3000000 src.raw >short.raw
  truncate -s %512 short.raw
  for base in short long; do
    rm -f t.qcow2
    convert -f raw -O qcow2 -B $base.raw -F raw src.raw t.qcow2
    is_copy src.raw t.qcow2
  done
}

@test "-B does not show the base behind the end of a shorter layer above it" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow2 base.qcow2 3M
  qemu-io -c 'write -P 1 0 3M' base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 1M
  qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 4M
  qemu-io -c 'write -P 2 2M 64k' top.qcow2
  qemu-img convert -O raw top.qcow2 top.raw
  convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 t.qcow2
  is_copy top.raw t.qcow2
}

@test "-S 0 writes all as data, other sizes find runs of zeroes" {
  need qemu-img jq
  truncate -s 4M src.raw
  # Pages of one byte each, at 0, 64k and 1M; zero bytes, not holes, at 2M.
  for at in 0 64 1024; do
    printf x | dd of=src.raw bs=1k seek=$at conv=notrunc status=none
  done
  dd if=/dev/zero of=src.raw bs=1M seek=2 count=1 conv=notrunc status=none
  for format in raw qcow2; do
    rm -f t
    convert -f raw -O $format -S 0 src.raw t
    qemu-img compare -f raw src.raw t
    [ $(($(stat -c '%b * %B' t))) -ge 4194304 ]
  done
  [ "$(own_bytes t)" = 4194304 ]
  rm t
  convert -f raw -O raw src.raw t
  cmp src.raw t
  [ $(($(stat -c '%b * %B' t))) -le 65536 ]
  rm t
  convert -f raw -O raw -S 1M src.raw t
  cmp src.raw t
  # Known holes stay holes; found zeroes must fill a megabyte.
  [ $(($(stat -c '%b * %B' t))) -lt 2097152 ]
  rm t
  convert -f raw -O qcow2 -S 512 src.raw t
  qemu-img compare -f raw src.raw t
  [ "$(own_clusters t)" = 3 ]
}

@test "-n writes zeroes over what was there, and not past the source" {
  need qemu-img qemu-io
  random_image src.raw 4M 12
  for format in raw qcow2; do
    for extra in "" "-S 0" "-C" "-W -m 4"; do
      rm -f t
      qemu-img create -q -f $format t 6M
      qemu-io -f $format -c 'write -P 5 0 6M' t
      # shellcheck disable=SC2086
      convert -n $extra -f raw -O $format src.raw t
      rm -f flat
      qemu-img convert -f $format -O raw t flat
      cmp -n 4194304 src.raw flat
      qemu-io -f raw -c 'read -P 5 4M 2M' flat >out
      run ! grep -i fail out
    done
  done
  rm t
  qemu-img create -q -f qcow2 t 4M
  qemu-io -c 'write -P 5 0 4M' t
  convert -n -c -O qcow2 src.raw t
  is_copy src.raw t
  qemu-img create -q -f qcow2 small.qcow2 1M
  expect_error 1 'output file is smaller than input file' \
    convert -n -O qcow2 src.raw small.qcow2
}

@test "-n over a backing file leaves that file alone" {
  need qemu-img
  random_image src.raw 4M 13
  random_image base.raw 4M 14
  cp base.raw saved
  qemu-img create -q -f qcow2 -b base.raw -F raw t.qcow2
  convert -n -f raw -O qcow2 src.raw t.qcow2
  is_copy src.raw t.qcow2
  cmp base.raw saved
  expect_error 1 'has a backing file' \
    convert -n --target-is-zero -O qcow2 src.raw t.qcow2
}

@test "--target-is-zero writes no zeroes" {
  need qemu-img
  random_image src.raw 4M 15
  truncate -s 4M t.raw
  convert -n --target-is-zero -f raw -O raw src.raw t.raw
  cmp src.raw t.raw
  # It is believed: what was there stays where the source is zero.
  printf '%4194304s' '' >t.raw
  truncate -s 1M zero.raw
  convert -n --target-is-zero -f raw -O raw zero.raw t.raw
  run ! cmp -n 1048576 zero.raw t.raw
}

@test "any number of workers, any order, with and without -C: the same disk" {
  need qemu-img
  random_image src.raw 20M 16
  for extra in "-m 1" "-m 2 -W" "-m 16" "-m 16 -W" "-C" "-C -W -m 4" \
    "-T none -t none" "-t writethrough" "-T directsync -t directsync"; do
    for format in raw qcow2; do
      rm -f t
      # shellcheck disable=SC2086
      convert $extra -f raw -O $format src.raw t
      is_copy src.raw t
    done
  done
}

@test "the same sources make the same file, byte for byte" {
  random_image src.raw 20M 17
  for options in "-O qcow2" "-O qcow2 -c -m 4" "-O qcow2 -m 16" \
    "-O qcow2 -o extended_l2=on" "-O qcow2 -c -o cluster_size=4k"; do
    for i in 1 2 3; do
      rm -f t.$i
      # shellcheck disable=SC2086
      convert -f raw $options src.raw t.$i
    done
    cmp t.1 t.2
    cmp t.1 t.3
  done
}

@test "a huge empty disk takes no time and no space" {
  need qemu-img
  truncate -s 8T src.raw || skip "no sparse files of 8 TiB here"
  printf x | dd of=src.raw bs=1M seek=6000000 conv=notrunc status=none
  SECONDS=0
  convert -f raw -O qcow2 -o cluster_size=2M src.raw t.qcow2
  convert -O raw t.qcow2 t.raw
  [ $SECONDS -lt 20 ]
  [ "$(stat -c %s t.raw)" = 8796093022208 ]
  [ "$(dd if=t.raw bs=1M skip=6000000 count=1 status=none | head -c 1)" = x ]
}

@test "buffers are bounded: 16 workers, the largest clusters and -S" {
  [ -z "$config_sanitizers" ] || skip "sanitizers need address space"
  random_image src.raw 40M 18
  (ulimit -v 1000000
   convert -m 16 -c -f raw -O qcow2 -o cluster_size=2M src.raw t.qcow2
   convert -m 16 -S 16M -f raw -O raw src.raw t.raw)
  convert -O raw t.qcow2 u.raw
  cmp src.raw t.raw
  cmp src.raw u.raw
}

@test "blocks are shared where the file system can" {
  need qemu-img mkfs.btrfs
  need_root
  truncate -s 300M fs
  mkfs.btrfs -q fs >/dev/null 2>&1
  mkdir mnt
  mount -o loop fs mnt || skip "cannot mount btrfs"
  random_image mnt/src.raw 40M 19
  sync -f mnt
  cd mnt
  before=$(df --output=used -k . | tail -1)
  convert -f raw -O qcow2 src.raw t.qcow2
  convert -O raw t.qcow2 t.raw
  convert -O qcow2 t.qcow2 u.qcow2
  convert -O raw src.raw src.raw u.raw
  sync -f .
  after=$(df --output=used -k . | tail -1)
  cp t.raw ..
  local r=0
  { is_copy src.raw t.qcow2 && cmp src.raw t.raw && is_copy src.raw u.qcow2 &&
    cat src.raw src.raw | cmp - u.raw; } || r=1
  cd ..
  umount mnt
  [ $r = 0 ]
  # Five copies of about 25 MB take little more than metadata.
  [ $((after - before)) -lt 10000 ]
}

@test "-r keeps to the rate" {
  random_image src.raw 4M 20
  start=${EPOCHREALTIME/[.,]/}
  convert -r 4M -S 0 -f raw -O raw src.raw t.raw
  end=${EPOCHREALTIME/[.,]/}
  cmp src.raw t.raw
  # The first chunk is free, the others wait.
  [ $((end - start)) -ge 500000 ]
}

@test "progress is shown as qemu-img shows it, or as JSON" {
  need jq
  random_image src.raw 20M 21
  convert -p -f raw -O qcow2 src.raw t.qcow2 >out
  head -c 20 out | grep -F '    (0.00/100%)'
  tr '\r' '\n' <out | grep -F '    (100.00/100%)'
  [ "$(tail -c 1 out)" = "" ]
  rm t.qcow2
  convert -p -q -f raw -O qcow2 src.raw t.qcow2 >out
  [ ! -s out ]
  rm t.qcow2
  convert --progress=json -f raw -O qcow2 src.raw t.qcow2 >out
  tail -n 1 out | jq -e '.command == "convert" and .percent == 100'
}

@test "block devices: stale content does not show, the device stays" {
  need qemu-img losetup
  need_root
  random_image src.raw 4M 22
  printf '%8388608s' '' >disk
  device=$(losetup --show -f disk) || skip "no loop device"
  r=0
  { convert -f raw -O raw src.raw "$device" &&
    cmp -n 4194304 src.raw "$device" &&
    [ "$(dd if="$device" bs=1 skip=5000000 count=1 status=none)" = ' ' ] &&
    convert -f raw -O qcow2 src.raw "$device" &&
    qemu-img compare -f raw -F qcow2 src.raw "$device" &&
    qemu-img check -f qcow2 "$device" &&
    convert -c -f raw -O qcow2 -o preallocation=off src.raw "$device" &&
    qemu-img compare -f raw -F qcow2 src.raw "$device" &&
    convert -f qcow2 "$device" -O raw back.raw && cmp src.raw back.raw; } || r=1
  truncate -s 16M large.raw
  expect_error 1 "$device" convert -f raw -O raw large.raw "$device" || r=1
  [ -b "$device" ] || r=1
  losetup -d "$device"
  [ $r = 0 ]
}
