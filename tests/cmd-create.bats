# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg create beside qemu-img create: what is printed, the exit status and the
# image that is made.

load lib
load peer

teardown () {
  umount "$BATS_TEST_TMPDIR/small" 2>/dev/null || :
  [ -z "$loop" ] || losetup -d "$loop"
  stop_all
}

# In the folder "files".
make_files () {
  mkdir files
  (
    cd files || exit
    qemu-img create -q -f qcow2 base.qcow2 3M
    qemu-img create -q base.raw 2M
    cp base.raw had.raw
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
    qemu-img create -q -f qcow2 -u -b nope -F qcow2 orphan.qcow2 1M
    mkdir dir
    ln -s base.raw link
  )
}

@test "create: raw images, and every way to write a size" {
  make_files
  peer_lines same_words <<'END'
create o 1M
create -q o 1M
create -f raw o 0
create -f raw o 1000
create -f raw o 1k
create -f raw o 1.5G
create -f raw o 3T
create -f raw o 1b
create -f raw -o size=1M o
create -f raw -o preallocation=off o 1M
create -f raw -o preallocation=falloc o 1M
create -f raw -o preallocation=full o 1M
create -f raw -o nocow=on o 1M
create -f raw -o nonocow o 1M
create file:o 1M
create o -1
create o 1Q
create o 1MB
create o 512s
create o 9E
create o 99999999999999999999
create o ''
create o x
create -f raw -o size=1M o 1M
create -f raw -o nocow=maybe o 1M
create -f raw -o cluster_size=4k o 1M
create -f raw -b base.raw o
create -f raw -F raw o 1M
END
}

@test "create: qcow2 with each of its options" {
  make_files
  peer_lines same_words <<'END'
create -f qcow2 o 1M
create -f qcow2 -q o 1M
create -f qcow2 o 0
create -f qcow2 o 1000
create -f qcow2 -o size=2M -o cluster_size=4k o
create -f qcow2 -o cluster_size=4k,cluster_size=8k o 1M
create -f qcow2 -o compat=0.10 o 1M
create -f qcow2 -o compat=1.1 o 1M
create -f qcow2 -o compat=v2,compression_type=zlib o 1M
create -f qcow2 -o compat=v3 o 1M
create -f qcow2 -o lazy_refcounts=on o 1M
create -f qcow2 -o lazy_refcounts o 1M
create -f qcow2 -o nolazy_refcounts o 1M
create -f qcow2 -o refcount_bits=1 o 1M
create -f qcow2 -o refcount_bits=64 o 1M
create -f qcow2 -o cluster_size=512 o 1M
create -f qcow2 -o cluster_size=2M o 1M
create -f qcow2 -o extended_l2=on o 1M
create -f qcow2 -o extended_l2=on,cluster_size=16k o 1M
create -f qcow2 -o preallocation=metadata o 1M
create -f qcow2 -o preallocation=falloc o 1M
create -f qcow2 -o preallocation=full o 1M
create -f qcow2 -o nocow=on o 1M
create -f qcow2 -o data_file=o2 o 1M
create -f qcow2 -o data_file=o2,data_file_raw=on o 1M
create -f qcow2 -o data_file=o2,preallocation=metadata o 1M
create -f qcow2 -o data_file=o2,preallocation=full,data_file_raw=on o 1M
create -f qcow2 -o data_file=had.raw o 1M
END
}

@test "create: encryption, with a secret" {
  make_files
  peer_lines same_words <<'END'
create --object secret,id=s,data=x o 1M
create -f qcow2 -o encryption=off o 1M
create -f qcow2 -o encryption=on o 1M
create -f qcow2 -o encrypt.format=aes o 1M
create -f qcow2 -o encrypt.format=luks o 1M
create -f qcow2 --object secret,id=s,data=x -o encryption=on,encrypt.key-secret=s o 1M
create -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s o 1M
create --object secret o 1M
END
  peer_lines own_words <<'END'
"there is no object 'bogus'" create --object bogus,id=s o 1M
"does not accept value 'bogus'" create -f qcow2 -o encrypt.format=bogus,encrypt.key-secret=s o 1M
END
}

@test "create: zstd is an option where it was built in" {
  need_zstd
  make_files
  peer_lines same_words <<'END'
create -f qcow2 -o compression_type=zstd o 1M
END
}

@test "create: bad options of qcow2 are refused with qemu-img's words" {
  make_files
  peer_lines same_words <<'END'
create -f qcow2 o x
create -f qcow2 o 1E
create -f qcow2 o 64P
create -f qcow2 -o cluster_size=2M o 63P
create -f qcow2 -o cluster_size=512 o 1T
create -f qcow2 -o refcount_bits=3 o 1M
create -f qcow2 -o refcount_bits=x o 1M
create -f qcow2 -o cluster_size=4M o 1M
create -f qcow2 -o cluster_size=256 o 1M
create -f qcow2 -o cluster_size=0 o 1M
create -f qcow2 -o cluster_size=65537 o 1M
create -f qcow2 -o extended_l2=on,cluster_size=8k o 1M
create -f qcow2 -o lazy_refcounts=maybe o 1M
create -f qcow2 -o size=2M o 3M
create -f qcow2 -o bogus=1 o 1M
create -f qcow2 -o bogus o 1M
create -f qcow2 -o '' o 1M
create -f qcow2 -o , o 1M
create -f qcow2 -o =1 o 1M
END
  peer_lines own_words <<'END'
"compat does not accept the value '2'" create -f qcow2 -o compat=2 o 1M
compat=v3 create -f qcow2 -o compat=0.10,lazy_refcounts=on o 1M
compat=v3 create -f qcow2 -o compat=0.10,refcount_bits=8 o 1M
compat=v3 create -f qcow2 -o compat=0.10,extended_l2=on o 1M
compat=v3 create -f qcow2 -o compat=0.10,data_file=o2 o 1M
"between 1 and 64" create -f qcow2 -o refcount_bits=128 o 1M
"between 1 and 64" create -f qcow2 -o refcount_bits=0 o 1M
"a number of bytes" create -f qcow2 -o cluster_size=x o 1M
"a number of bytes" create -f qcow2 -o cluster_size=-1 o 1M
"a number of bytes" create -f qcow2 -o size=x o
"'lzma'" create -f qcow2 -o compression_type=lzma o 1M
"'bogus'" create -f qcow2 -o preallocation=bogus o 1M
"requires data_file" create -f qcow2 -o data_file_raw=on o 1M
"data_file_raw cannot" create -f qcow2 -o data_file=o2,data_file_raw=on -b base.qcow2 -F qcow2 o
"file name" create -f qcow2 -o data_file= o 1M
"'dir': Is a directory" create -f qcow2 -o data_file=dir o 1M
"'dir/no/x': No such file" create -f qcow2 -o data_file=dir/no/x o 1M
"its own data file" create -f qcow2 -o data_file=o o 1M
END
}

@test "create: backing files" {
  make_files
  peer_lines same_words <<'END'
create -f qcow2 -b base.qcow2 -F qcow2 o
create -f qcow2 -b base.qcow2 -F qcow2 o 10M
create -f qcow2 -b base.qcow2 -F qcow2 o 1M
create -f qcow2 -b base.raw -F raw o
create -f qcow2 -b base.qcow2 -F raw o
create -f qcow2 -b mid.qcow2 -F qcow2 o
create -f qcow2 -b "$PWD/files/base.qcow2" -F qcow2 o
create -f qcow2 -b ./link -F raw o
create -f qcow2 -b file:base.qcow2 -F qcow2 o
create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 o
create -f qcow2 -o backing_file=base.qcow2 -F qcow2 o
create -f qcow2 -o backing_fmt=qcow2 -b base.qcow2 o
create -f qcow2 -o backing_file=base.qcow2,backing_fmt=raw -b mid.qcow2 -F qcow2 o
create -f qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}' -F qcow2 o
create -f qcow2 -o preallocation=metadata,extended_l2=on -b base.qcow2 -F qcow2 o 1M
create -f qcow2 -u -b nope -F qcow2 o 1M
create -f qcow2 -u o 1M
create -f qcow2 -u -b nope -F qcow2 o
create -f qcow2 -o preallocation=full -b base.qcow2 -F qcow2 o 1M
create -f qcow2 -o preallocation=metadata -b base.qcow2 -F qcow2 o 1M
create -f qcow2 -b '' o 1M
create -f qcow2 -F qcow2 o 1M
create -f qcow2 -b o -F qcow2 o 1M
END
  peer_lines own_words <<'END'
"detected format of qcow2" create -f qcow2 -b base.qcow2 o 5M
"detected format of raw" create -f qcow2 -b base.raw o
"without backing format" create -f qcow2 -u -b nope o 1M
"base.raw: Image is not in qcow2 format" create -f qcow2 -b base.raw -F qcow2 o
"Unknown driver 'bogus'" create -f qcow2 -b base.qcow2 -F bogus o
"'nope': No such file" create -f qcow2 -b nope -F qcow2 o
"'nope': No such file" create -f qcow2 -b nope -F qcow2 o 1M
"orphan.qcow2: Could not open backing file" create -f qcow2 -b orphan.qcow2 -F qcow2 o
"'dir': it is a directory" create -f qcow2 -b dir -F raw o 1M
"Connection refused" create -f qcow2 -b nbd://127.0.0.1:1/ -F raw o 1M
END
}

@test "create: bad invocations and names" {
  make_files
  peer_lines same_words <<'END'
create
create o
create o 1M extra
create -f
create -o
create -z o 1M
create --bogus o 1M
create -U o 1M
create --image-opts o 1M
create -f bogus o 1M
create -f '' o 1M
create -f bogus -o help
create -o bogus=1 o 1M
create dir 1M
create -f qcow2 dir 1M
create nodir/o 1M
create -f qcow2 nodir/o 1M
END
  peer_lines own_words <<'END'
"driver" create -f qcow2 json:{} 1M
"a file of this name is ./bogus:o" create bogus:o 1M
"Connection refused" create nbd:127.0.0.1:1 1M
"character device" create /dev/null 1M
"character device" create -f qcow2 /dev/full 1M
"allowed are off, falloc, full" create -f raw -o preallocation=bogus o 1M
END
}

@test "create: what is wrong is found before anything is printed or made" {
  make_files
  peer_lines "own_status 1 1 'requires a file name'" <<'END'
create '' 1M
create -f qcow2 '' 1M
END
  [ ! -s .our.out ]
  peer_lines "own_status 1 1 'allowed are off, falloc, full'" <<'END'
create -f raw -o preallocation=metadata o 1M
END
  [ ! -e ours/o ]
}

@test "create -o help lists the options in qemu-img's words" {
  local f list
  mkdir files theirs ours
  for f in raw qcow qcow2 qed vdi luks; do
    for list in help '?' 'size=1M,help'; do
      twin_img create -f $f -o "$list"
      twin_img create -f $f -o "$list" o
    done
  done
  twin_img create -o help
}

@test "create: extent_size_hint is what the file system is told" {
  need strace
  make_files
  peer_lines same_words <<'END'
create -f raw -o extent_size_hint=0 o 1M
create -f qcow2 -o extent_size_hint=64k o 1M
create -f qed -o extent_size_hint=1M,nocow=off o 1M
create -f vdi -o extent_size_hint=4095M o 1M
END
  peer_lines own_words <<'END'
"Extent size hint is too large" create -f raw -o extent_size_hint=4G o 1M
"expects a number of bytes" create -f raw -o extent_size_hint=x o 1M
END
  for o in "" ,extent_size_hint=0 ,extent_size_hint=192k; do
    hints qemu-img "$o" >theirs.hints
    hints "$NBDIMG" "$o" >our.hints
    cat our.hints
    cmp theirs.hints our.hints
  done
  [ "$(grep -c 'fsx_extsize=196608' our.hints)" = 2 ]
}

# hints PROGRAM OPTIONS: those that it sets on two new files
hints () {
  rm -f new data
  strace -f -o log -e trace=ioctl "$1" create -q -f qcow2 \
    -o "data_file=data$2" new 1M || skip "strace cannot trace here"
  sed -n 's/.*FS_IOC_FSSETXATTR, //p' log
}

@test "create: on XFS a file has the hint of qemu-img, 1 MiB by default" {
  need mkfs.xfs xfs_io
  need_root
  truncate -s 320M fs
  mkfs.xfs -q fs
  mkdir mnt
  mount -o loop fs mnt || skip "cannot mount XFS"
  local r=0
  (cd mnt && on_xfs) || r=1
  umount mnt
  [ $r = 0 ]
}

on_xfs () {
  "$NBDIMG" create -q -f qcow2 a 1M
  "$NBDIMG" create -q -o extent_size_hint=0 b 1M
  : >c                          # as mktemp makes it
  "$NBDIMG" create -q -f vdi -o extent_size_hint=64k c 1M
  "$NBDIMG" create -q -f qcow2 -o extent_size_hint=1000 d 1M 2>err
  for f in a b c d; do xfs_io -c extsize $f; done >hints
  cat hints
  [ "$(tr '\n' ' ' <hints)" = "[1048576] a [0] b [65536] c [0] d " ] &&
    grep 'd: extent_size_hint=1000: Invalid argument; the file is made' err
}

@test "create: preallocation of formats that have nothing to allocate" {
  make_files
  peer_lines same_words <<'END'
create -f qcow -o preallocation=off o 1M
create -f qed -o preallocation=off o 1M
create -f vdi -o preallocation=off,static=on o 1M
END
  peer_lines "own_status 0 0 'gets the space for data when'" <<'END'
create -f qcow -o preallocation=full o 1M
create -f qed -o preallocation=falloc o 1M
create -f vdi -o preallocation=full o 1M
END
  peer_lines "own_status 1 1 'Unsupported preallocation mode'" <<'END'
create -f qcow -o preallocation=metadata o 1M
create -f qed -o preallocation=maybe o 1M
create -f vdi -o preallocation=metadata,static=on o 1M
END
  [ ! -e ours/o ]
}

@test "create: a static vdi image can have its space" {
  for p in falloc full; do
    "$NBDIMG" create -q -f vdi -o static=on,preallocation=$p $p.vdi 4M
    [ "$(stat -c %b $p.vdi)" -ge 8192 ]
    qemu-img check -q $p.vdi
    qemu-io -r -c 'read -P 0 0 4M' $p.vdi | grep -c '^read 4194304'
  done
}

@test "create: what is not built yet is refused by name, before the file is made" {
  expect_error 1 "tls-creds-anon is not built yet" \
    "$NBDIMG" create --object tls-creds-anon,id=t o 1M
  [ ! -e o ]
}

@test "create: the words that newer qemu-img and its long options have" {
  "$NBDIMG" create -q -f qcow2 base.qcow2 1M
  "$NBDIMG" create --quiet --format=qcow2 --backing base.qcow2 \
    --backing-format=qcow2 --options=cluster_size=4k o >out
  [ ! -s out ]
  "$NBDIMG" create -q -f qcow2 -b base.qcow2 -B qcow2 o2
  "$NBDIMG" create -q -f qcow2 --backing-unsafe -b no -F raw o3 1M
  for f in o o2 o3; do
    qemu-img info $f | grep -x 'virtual size: 1 MiB (1048576 bytes)'
  done
  "$NBDIMG" create -q -o nocow o4 1M
  "$NBDIMG" create -q -f qcow2 \
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"o5"}}' 1M
  qemu-img check -q o5
}

@test "create under the name qemu-img speaks under that name" {
  ln -s "$NBDIMG" qemu-img
  [ "$(./qemu-img create o 1M)" = "$(qemu-img create o2 1M | sed s/o2/o/)" ]
  expect_error 1 "qemu-img: Expecting image file name" ./qemu-img create
}

@test "create: preallocation takes its space" {
  for f in raw qcow2; do
    for p in off falloc full; do
      "$NBDIMG" create -q -f $f -o preallocation=$p ours.$f.$p 8M
      qemu-img create -q -f $f -o preallocation=$p theirs.$f.$p 8M
      used=$(stat -c %b ours.$f.$p) more=$((used - $(stat -c %b theirs.$f.$p)))
      [ $p = off ] || [ "$used" -ge 16384 ]
      [ $more -le 256 ] && [ $more -ge -256 ] ||
        fail "$f $p: $used blocks, $more more than theirs"
    done
  done
}

@test "create: a full disk is said, and a new file removed" {
  local limit
  # 1024 blocks of 1 KiB; the signal is what a shell's limit sends
  for limit in "create -o preallocation=full o 3M" \
    "create -f qcow2 -o preallocation=full o 3M" "create o 3M"; do
    run --separate-stderr bash -c "trap '' XFSZ; ulimit -f 1024
      exec \"\$NBDIMG\" $limit"
    [ "$status" = 1 ]
    [[ $stderr == *"o: "*"File too large"* ]] || fail "$stderr"
    [ ! -e o ]
  done
}

@test "create: a small file system" {
  need_root
  mkdir small
  mount -t tmpfs -o size=1M none small || skip "no mount"
  expect_error 1 "No space left on device" \
    "$NBDIMG" create -f qcow2 -o preallocation=full small/o 3M
  [ ! -e small/o ]
  "$NBDIMG" create -q -f qcow2 small/o 3M
  qemu-img check -q small/o
}

@test "create: no permission, for the folder or the file" {
  mkdir locked
  "$NBDIMG" create -q locked/f 1M
  "$NBDIMG" create -q f 1M
  chmod 0 f
  chmod 555 locked
  for f in f locked/g; do
    expect_error 1 "Could not create '$f': Permission denied" \
      as_owner "$NBDIMG" create -f qcow2 $f 1M
    run --separate-stderr as_owner qemu-img create -f qcow2 $f 1M
    [ "$status" = 1 ]
  done
  chmod 755 locked
  [ ! -e locked/g ]
}

@test "create: an image on a block device, and one too large for it" {
  need_root
  truncate -s 8M disk
  loop=$(losetup -f --show disk) || skip "no loop device"
  "$NBDIMG" create -q -f qcow2 "$loop" 64M
  qemu-img check -q "$loop"
  qemu-img info "$loop" | grep -x 'virtual size: 64 MiB (67108864 bytes)'
  "$NBDIMG" create -q -f raw "$loop" 8M
  qemu-img info "$loop" | grep -x 'file format: raw'
  expect_error 1 "8388608" "$NBDIMG" create -f raw "$loop" 9M
}

@test "create: an image that a program has open, and the chain it is part of, stay" {
  "$NBDIMG" create -q -f qcow2 a.qcow2 1M
  "$NBDIMG" create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
  cp a.qcow2 was
  mkfifo keep
  exec 5<>keep
  start qemu-io a.qcow2 <keep >/dev/null 5>&-
  poll 10 sh -c '! qemu-img info a.qcow2 >/dev/null 2>&1'
  expect_error 1 "lock" "$NBDIMG" create -f qcow2 a.qcow2 2M
  exec 5>&-
  expect_error 1 "would be overwritten" \
    "$NBDIMG" create -f qcow2 -b b.qcow2 -F qcow2 a.qcow2
  cmp a.qcow2 was
}

@test "create: through a descriptor of the caller" {
  : >o
  "$NBDIMG" create -q -f qcow2 /dev/fd/7 1M 7<>o
  qemu-img check -q o
  qemu-img info o | grep -x 'file format: qcow2'
}

# interrupted FILE ARGUMENTS...: the command is ended once FILE is longer than a
# megabyte; each request takes 0.1 s, all of them half a minute.
interrupted () {
  local file=$1 status=0
  shift
  start env NBDIMG_TEST_STORAGE=fault:delay=100000 "$NBDIMG" "$@"
  poll 20 grown "$file"
  kill -TERM "$STARTED_PID"
  wait "$STARTED_PID" || status=$?
  [ $status = 143 ]
}

grown () { [ -e "$1" ] && [ "$(stat -c %s "$1")" -gt $((1024 * 1024)) ]; }

@test "create, resize: who is interrupted while space is written leaves nothing" {
  local format
  need_test_storage
  for format in raw qcow2; do
    interrupted o create -q -f $format -o preallocation=full o 600M
    [ ! -e o ]
  done
  truncate -s 1M r.raw
  interrupted r.raw resize -q -f raw --preallocation=full r.raw 600M
  [ "$(stat -c %s r.raw)" = 1048576 ]
  "$NBDIMG" create -q -f qcow2 r.qcow2 1M
  interrupted r.qcow2 resize -q --preallocation=full r.qcow2 600M
  qemu-img info --output=json r.qcow2 | jq -e '."virtual-size" == 1048576'
  qemu-img check -q r.qcow2
  for raw in on off; do
    "$NBDIMG" create -q -f qcow2 -o data_file=d.raw,data_file_raw=$raw d 1M
    interrupted d.raw resize -q --preallocation=full d 600M
    [ "$(stat -c %s d.raw)" = 1048576 ]
    "$NBDIMG" resize -q d 8M
    qemu-io -c 'read -q -P 0 0 8M' d
    qemu-img check -q d
  done
}
