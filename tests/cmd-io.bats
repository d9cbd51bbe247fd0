# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg io beside qemu-io: what is printed (but for times), the exit status,
# and what is in the images afterwards.

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
    printf 'a pattern\n' >text
    : >empty
    qemu-img create -q -f qcow2 base.qcow2 4M
    qemu-io -c 'write -q -P 1 0 128k' -c 'write -q -z 1M 64k' \
      -c 'write -q -P 3 3M 64k' base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k \
      top.qcow2 5M
    qemu-io -c 'write -q -P 9 64k 8k' top.qcow2
    qemu-img create -q -f qcow2 -u -b nope -F qcow2 orphan.qcow2 1M
    cp base.qcow2 corrupt.qcow2
    poke corrupt.qcow2 79 02
    cp base.qcow2 feature.qcow2
    poke feature.qcow2 79 40
    head -c 100 base.qcow2 >short.qcow2
    mkdir dir
  )
}

# The same words, and the same bytes afterwards.
io_change () {
  io_words "$@"
  same_images raw.img base.qcow2 top.qcow2 >/dev/null
}

@test "io: read and readv" {
  make_files
  peer_lines 'io_words -f raw' <<'END'
-c 'read 65000 1000' raw.img
-c 'read -v 65500 64' raw.img
-c 'read -v 131060 20' raw.img
-c 'read -P 1 64k 64k' raw.img
-c 'read -P 2 64k 64k' raw.img
-c 'read -P 1 -s 512 -l 512 64k 2k' raw.img
-c 'read -P 1 -s 512 64k 2k' raw.img
-c 'read -P 1 -l 512 64k 2k' raw.img
-c 'read -P 2 -s 512 -l 4k 64k 2k' raw.img
-c 'read -q 0 512' raw.img
-c 'read -C 0 512' raw.img
-c 'read -p 0 512' raw.img
-c 'read 1 1' raw.img
-c 'r 0 512' raw.img
-c 'readv 0 512 512' raw.img
-c 'readv -v 0 16 16' raw.img
-c 'readv -P 0 0 512 1k' raw.img
-c 'readv -P 4 0 512 1k' raw.img
-c 'readv -C 0 512 1k' raw.img
-c 'readv -q 0 512 1k' raw.img
-r -c 'read 0 512' raw.img
END
}

@test "io: what is wrong with a request" {
  make_files
  peer_lines 'io_words -f raw' <<'END'
-c 'read 0' raw.img
-c read raw.img
-c 'read x 512' raw.img
-c 'read 0 x' raw.img
-c 'read 0 3G' raw.img
-c 'read 0 2G' raw.img
-c 'read -P 300 0 1' raw.img
-c 'read -P x 0 1' raw.img
-c 'readv 0' raw.img
-c 'readv 0 x' raw.img
-c 'write 0' raw.img
-c 'write -u 64k 64k' raw.img
-c 'write -n 64k 64k' raw.img
-c 'write -z -P 3 64k 64k' raw.img
-c 'write -s nope 0 512' raw.img
-c 'write -s empty 0 512' raw.img
-c 'write -s text -P 1 0 512' raw.img
-r -c 'write 0 512' raw.img
-c 'aio_write -u 0 512' -c aio_flush raw.img
-c 'aio_write -z -P 1 0 512' raw.img
-c 'aio_flush x' raw.img
-c 'discard 0 3G' raw.img
-c 'discard x 1' raw.img
-c 'alloc 64k x' raw.img
-c 'alloc 1 512' raw.img
-c 'alloc 2M 512' raw.img
-c 'truncate x' raw.img
-c 'sleep x' raw.img
-c sleep raw.img
-c 'sigraise x' raw.img
-c bogus raw.img
-c 'help bogus' raw.img
-c '' raw.img
END
  peer_lines 'io_own "beyond the end of the disk" -f raw' <<'END'
-c 'read 2M 512' raw.img
-c 'read 1048000 1000' raw.img
-c 'write 2M 512' raw.img
-c 'write 1M 512' raw.img
-c 'aio_read 2M 512' -c aio_flush raw.img
-c 'discard 2M 64k' raw.img
END
  peer_lines io_own <<'END'
"no compressed clusters" -f raw -c 'write -c 0 64k' raw.img
"whole clusters" -c 'write -c 512 512' base.qcow2
END
}

# Of a command that is used wrongly the line with its options is ours.
io_usage () {
  local theirs ours f
  twin_io_run "$@"
  for f in .our.out .their.out; do
    sed -i -E 's/^([a-z_]+ \[).* -- .*/\1/' "$BATS_TEST_TMPDIR/$f"
  done
  peer_same
}

@test "io: a command that is used wrongly shows how it is used" {
  make_files
  peer_lines 'io_usage -f raw' <<'END'
-c 'read -s 512 64k 2k' raw.img
-c 'read -1 512' raw.img
-c 'read 0 -1' raw.img
-c 'read -z 0 512' raw.img
-c 'writev -z 0 512' raw.img
-c 'open -z raw.img'
END
}

@test "io: write and writev, with every option" {
  make_files
  peer_lines 'io_change -f raw' <<'END'
-c 'write 0 512' -c 'read -v 0 32' raw.img
-c 'write -P 5 100 1000' -c 'read -P 5 100 1000' raw.img
-c 'write -f -P 5 100 1000' raw.img
-c 'write -z 64k 64k' -c 'read -P 0 64k 64k' raw.img
-c 'write -z -u 64k 64k' -c map raw.img
-c 'write -n -z 1M 0' raw.img
-c 'write -C -P 3 64k 64k' raw.img
-c 'write -q -P 3 64k 64k' raw.img
-c 'write -p 0 512' raw.img
-c 'write -s text 0 512' -c 'read -v 0 32' raw.img
-c 'w -P 8 0 1' raw.img
-c 'writev -P 3 0 512 1k' -c 'read -P 3 0 1536' raw.img
-c 'writev -f 0 512' raw.img
-c 'writev -C 0 512' raw.img
-c 'writev -q 0 512' raw.img
END
  peer_lines io_change <<'END'
-c 'write -P 4 60k 10k' -c 'read -v 61430 20' base.qcow2
-c 'write -P 4 60k 10k' -c map top.qcow2
-c 'write -c -P 7 1536k 64k' -c 'read -P 7 1536k 64k' base.qcow2
-c 'write -z 0 64k' -c map base.qcow2
-c 'write -z -u 0 64k' -c map base.qcow2
END
}

@test "io: requests in the background" {
  make_files
  peer_lines 'io_change -f raw' <<'END'
-c 'aio_read 0 512' -c aio_flush raw.img
-c 'aio_read -P 0 0 512' -c aio_flush raw.img
-c 'aio_read -P 5 0 512' -c aio_flush raw.img
-c 'aio_read -v 0 16' -c aio_flush raw.img
-c 'aio_read -q 0 16' -c aio_flush raw.img
-c 'aio_read -C 0 512' -c aio_flush raw.img
-c 'aio_read -i 0 512' raw.img
-c 'aio_write -P 3 0 512' -c aio_flush -c 'read -P 3 0 512' raw.img
-c 'aio_write -z 0 512' -c aio_flush -c 'read -P 0 0 512' raw.img
-c 'aio_write -z -u 0 512' -c aio_flush -c 'read -P 0 0 512' raw.img
-c 'aio_write -f 0 512' -c aio_flush raw.img
-c 'aio_write -i 0 512' raw.img
END
}

@test "io: discard, alloc, map, length, truncate, info, flush, sleep" {
  make_files
  peer_lines 'io_change -f raw' <<'END'
-c 'discard 64k 64k' -c map raw.img
-c 'discard -q 64k 64k' raw.img
-c 'discard -C 64k 64k' raw.img
-c 'alloc 64k' raw.img
-c 'alloc 64k 128k' raw.img
-c map raw.img
-c length raw.img
-c length text
-c 'truncate 2M' -c length raw.img
-c 'truncate 512k' -c length raw.img
-c info raw.img
-c flush raw.img
-c f raw.img
-c 'sleep 1' raw.img
END
  peer_lines io_change <<'END'
-c 'discard 0 1M' -c map base.qcow2
-c 'alloc 0 4M' base.qcow2
-c 'alloc 0 5M' top.qcow2
-c alloc top.qcow2
-c map top.qcow2
-c l base.qcow2
-c 'truncate 8M' -c length base.qcow2
-c 'truncate 512k' -c length base.qcow2
-c 'truncate 4M' -c length base.qcow2
-c info base.qcow2
-c i top.qcow2
END
}

@test "io: open, close, reopen, quit" {
  make_files
  peer_lines io_change <<'END'
-c 'open -r base.qcow2' -c 'read 0 512' -c close
-c 'open base.qcow2' -c 'open base.qcow2'
-c 'open nope'
-c 'open -o driver=qcow2 base.qcow2' -c length
-c open
-c 'open -n base.qcow2' -c length
-c 'open -s base.qcow2' -c 'write -P 9 0 64k' -c close -c 'open base.qcow2' -c 'read -P 1 0 64k'
-c close -c length base.qcow2
-c close
-c length
-c 'reopen -r' -c 'write 0 512' base.qcow2
-c 'reopen -w' -c 'write 0 512' base.qcow2
-r -c 'reopen -w' -c 'write 0 512' base.qcow2
-c 'reopen -c none' -c 'write 0 512' base.qcow2
-c 'reopen -c bogus' -c 'write 0 512' base.qcow2
-c 'reopen -r -w' base.qcow2
-c quit -c bogus base.qcow2
-c q base.qcow2
END
}

@test "io: the options of the program" {
  make_files
  peer_lines io_change 7<>files/raw.img <<'END'
-r -U -c 'read 0 512' base.qcow2
-U -c 'read 0 512' base.qcow2
-n -c 'read 0 512' base.qcow2
-n -f raw -c 'read 1 5' -c 'write 3 7' -c 'read -P 0xcd 3 7' raw.img
-t none -c 'write 0 512' base.qcow2
-t directsync -c 'write 0 512' base.qcow2
-t writethrough -c 'write 0 512' base.qcow2
-t writeback -c 'write 0 512' base.qcow2
-t unsafe -c 'write 0 512' base.qcow2
--cache bogus -c 'read 0 512' base.qcow2
-d unmap -c 'discard 0 64k' base.qcow2
-d ignore -c 'discard 0 64k' -c 'read -P 1 0 64k' base.qcow2
-d bogus base.qcow2
-s -c 'write -P 9 0 64k' -c 'read -P 9 0 64k' base.qcow2
-m -c 'write -P 9 0 64k' -c 'read -P 9 0 64k' base.qcow2
-i threads -c 'read 0 512' base.qcow2
-i bogus -c 'read 0 512' base.qcow2
--image-opts -c 'read 0 512' driver=qcow2,file.filename=base.qcow2
--image-opts -f qcow2 -c 'read 0 512' driver=qcow2,file.filename=base.qcow2
--image-opts -c 'read 0 512' bogus=1
--object secret,id=s,data=x -c 'read 0 512' base.qcow2
-c 'read 0 512' 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'
--read-only --force-share --cmd 'read 0 512' base.qcow2
-f raw -c 'read -v 65530 12' /dev/fd/7
-r -f raw -c 'read -v 65530 12' /dev/fd/7
END
}

@test "io: images that cannot be opened" {
  make_files
  peer_lines io_words <<'END'
nope
-r nope
''
dir
-f qcow2 raw.img
-f bogus raw.img
-c 'read 0 512' feature.qcow2
-c 'read 0 512' orphan.qcow2
-r -c 'read 0 512' corrupt.qcow2
END
  peer_lines io_own <<'END'
"marked corrupt" -c 'write 0 512' corrupt.qcow2
"ends within the header" -c 'read 0 512' short.qcow2
END
  chmod 0 files/raw.img
  expect_error 1 "Permission denied" \
    as_owner "$NBDIMG" io -f raw -c 'read 0 1' files/raw.img
}

@test "io: lines from standard input, with the prompt" {
  make_files
  cp -r files theirs
  cp -r files ours
  printf 'length\n\nwrite -P 3 0 512\nread -P 3 0 512\nbogus\nquit\nlength\n' >in
  run -1 sh -c 'cd theirs && qemu-io base.qcow2 <../in >../theirs.out 2>&1'
  run -1 sh -c 'cd ours && "$NBDIMG" io base.qcow2 <../in >../ours.out 2>&1'
  peer_names theirs.out ours.out
  peer_times theirs.out ours.out
  diff theirs.out ours.out
  same_images base.qcow2
}

@test "io under the name qemu-io is qemu-io" {
  make_files
  ln -s "$NBDIMG" qemu-io
  for line in 'read 0 512' 'read -P 1 0 1' 'write 0 512' length bogus; do
    run qemu-io -c "$line" files/base.qcow2
    theirs_status=$status
    printf '%s\n' "$output" >theirs.out
    run ./qemu-io -c "$line" files/base.qcow2
    [ "$status" = "$theirs_status" ]
    printf '%s\n' "$output" >ours.out
    peer_times theirs.out ours.out
    diff theirs.out ours.out
  done
  expect_error 1 "qemu-io: can't open device nope" ./qemu-io nope
  [ "$(echo length | ./qemu-io files/base.qcow2)" = 'qemu-io> 4 MiB
qemu-io> ' ]
}

@test "io: a raw disk whose format is not named gives a warning" {
  make_files
  peer_lines io_words <<'END'
-c 'read 0 512' raw.img
-c map raw.img
-r -c map raw.img
--image-opts -c map file.filename=raw.img
END
}

@test "io: what is not there is refused by its name" {
  make_files
  cd files
  while IFS='|' read -r text line; do
    expect_error 1 "$text" "$NBDIMG" io -c "$line" base.qcow2
  done <<'END'
break is not supported|break a b
END
}

@test "io: --aio and -k are taken, and say that threads make the requests" {
  make_files
  peer_lines io_words <<'END'
-i threads -c length base.qcow2
-i bogus -c length base.qcow2
-c 'open -i bogus base.qcow2'
END
  peer_lines "io_own_status 0 0 'are made by threads'" <<'END'
-n -i native -c length base.qcow2
-k -t directsync -c length base.qcow2
--native-aio -n -f raw -c length raw.img
--aio=io_uring -c length base.qcow2
-c 'open -n -k base.qcow2' -c length
-c 'open -i io_uring base.qcow2' -c length
END
  peer_lines "io_own_status 1 1 'requires cache.direct=on'" <<'END'
-i native -c length base.qcow2
-k -t unsafe -c length base.qcow2
END
}

@test "io: truncate -m reserves the space of what is added" {
  make_files
  peer_lines io_words <<'END'
-c 'truncate -m off 8M' -c map base.qcow2
-c 'truncate -m metadata 5M' -c map base.qcow2
-c 'truncate -m falloc 5M' -c map -c 'read -P 0 4M 1M' base.qcow2
-c 'truncate -m full 5M' -c map base.qcow2
-c 'truncate -m bogus 5M' -c length base.qcow2
END
  "$NBDIMG" io -f raw -c 'truncate -m falloc 9M' files/raw.img
  [ "$(stat -c %s files/raw.img)" = 9437184 ]
  [ "$(stat -c %b files/raw.img)" -ge 8192 ]
}

@test "io: reopen -o changes options, one after the other" {
  make_files
  peer_lines io_words <<'END'
-c 'reopen -o discard=ignore' -c 'write -P 7 0 64k' -c 'reopen -o detect-zeroes=on' -c 'read -P 7 0 64k' base.qcow2
-c 'reopen -o driver=raw' -c length base.qcow2
-c 'reopen -r -o read-only=off' base.qcow2
-c 'reopen -c none -o cache.direct=off' base.qcow2
-r -c 'reopen -o read-only=off' -c 'write 0 512' base.qcow2
-c 'reopen -o cache.direct=on' -c 'reopen -c writeback' -c 'reopen -w' -c 'write 0 512' base.qcow2
END
  peer_lines "io_own 'Cannot change the option'" <<'END'
-c 'reopen -o file.filename=x' -c length base.qcow2
END
  peer_lines "io_own_status 1 1 \"option 'bogus'\"" <<'END'
-c 'reopen -o bogus=1' -c length base.qcow2
END
  expect_error 1 "open it with -f raw" "$NBDIMG" io \
    -c 'reopen -o discard=ignore' files/raw.img
  # an option that failed is forgotten, one that did not is kept
  "$NBDIMG" io -f raw -c 'write -q -P 5 0 1M' -c 'reopen -o discard=ignore' \
    -c 'reopen -o bogus=1' -c 'reopen -c unsafe' -c 'discard -q 0 1M' \
    -c 'read -q -P 5 0 1M' files/raw.img >out || :
  [ ! -s out ]
}

@test "io: -b is about the state of a machine, behind the disk" {
  local o
  mkdir files
  for o in cluster_size=64k compat=0.10,cluster_size=512 extended_l2=on; do
    qemu-img create -q -f qcow2 -o $o files/v 1M
    peer_lines io_words <<'END'
-c 'write -P 9 0 1M' -c 'write -b -P 5 512 70k' -c 'read -b -P 5 512 70k' -c 'read -b -P 0 71k 1k' -c 'read -P 9 0 1M' v
-c 'write -b -P 6 100k 1k' -c 'read -b -P 0 0 100k' -c 'read -b 10G 1k' -c map v
-c 'read -b 1 512' v
-c 'read -b 0 1' v
-c 'write -b 0 3' v
-c 'write -b -z 0 512' v
-c 'write -b -f 0 512' v
-c 'write -b -u 0 512' v
-c 'write -b -c 0 64k' -c 'read -b -q -P 0xcd 0 64k' v
END
    # a snapshot keeps it, and each reads what the other wrote
    "$NBDIMG" io -c 'write -q -b -P 5 0 70k' files/v
    "$NBDIMG" snapshot -c s files/v
    qemu-io -c 'read -q -b -P 5 0 70k' -c 'write -q -b -P 7 0 8k' files/v
    "$NBDIMG" io -r -c 'read -q -b -P 7 0 8k' -c 'read -q -b -P 5 8k 62k' files/v
    "$NBDIMG" snapshot -a s files/v
    "$NBDIMG" io -r -c 'read -q -b -P 5 0 70k' files/v
    qemu-img check -q files/v
    "$NBDIMG" snapshot -d s files/v
    rm files/v
  done
  # a disk that grows over it reads as zeroes there
  "$NBDIMG" create -q -f qcow2 -o cluster_size=4k v 1M
  "$NBDIMG" io -c 'write -q -b -P 5 0 70k' v
  "$NBDIMG" resize -q v 10M
  qemu-io -r -c 'read -q -P 0 0 10M' v
  qemu-img check -q v
  truncate -s 1M raw.img
  for o in "read -b" "write -b"; do
    expect_error 1 'keeps no state of a machine' "$NBDIMG" io -f raw \
      -c "$o 0 512" raw.img
    [[ $output == *'failed: Operation not supported' ]]
  done
  expect_error 1 'which is too far' "$NBDIMG" io -c 'write -b 7E 512' v
}

@test "io: copy on read keeps what came from the backing file" {
  qemu-img create -q -f raw b.raw 1M
  qemu-io -f raw -c 'write -q -P 7 64k 100k' b.raw
  mkdir files
  for o in "" cluster_size=4k extended_l2=on; do
    qemu-img create -q -f qcow2 ${o:+-o $o} -b ../b.raw -F raw files/o 1500k
    peer_lines io_words <<'END'
-C -c 'read 0 1k' -c 'read -P 7 70k 1k' -c 'read 500k 3k' -c map o
-C -c 'read 1400k 100k' -c 'aio_read 63k 2k' -c aio_flush -c map o
--copy-on-read -c 'readv 64k 1k 1k' -c map -c 'write -P 1 80k 1k' -c 'read 0 1500k' -c map o
-c 'open -C o' -c 'read 150k 40k' -c map
-c 'open -C -r o'
END
    cp theirs/o .
    qemu-img compare b.raw ours/o
    qemu-img check -q ours/o
    rm files/o
  done
  "$NBDIMG" create -q -f qed -b b.raw -F raw q.qed
  "$NBDIMG" io -C -c 'read -q 0 1M' q.qed
  qemu-img rebase -u -b "" q.qed
  qemu-img compare q.qed b.raw
  expect_error 1 "Can't use copy-on-read on read-only" "$NBDIMG" io -C -r q.qed
}

@test "io: no space" {
  make_files
  run --separate-stderr bash -c "trap '' XFSZ; ulimit -f 3072
    exec \"\$NBDIMG\" io -c 'write 0 4M' files/base.qcow2"
  [ "$status" = 1 ]
  [[ $output == "write failed: File too large"* ]]
  [[ $stderr == *"base.qcow2: "* ]]
  run qemu-img check files/base.qcow2
  [ "$status" = 0 ] || [ "$status" = 3 ]
}

@test "io: a block device and an NBD export" {
  need nbdkit
  make_files
  nbdkit -U - memory 1M --run "'$NBDIMG' io -f raw -c 'write -P 3 1k 1k' \
    -c 'read -P 3 1k 1k' \"\$uri\"" | grep -x 'read 1024/1024 bytes at offset 1024'
  need_root
  loop=$(losetup -f --show files/base.qcow2) || skip "no loop device"
  "$NBDIMG" io -c 'write -P 8 0 64k' "$loop"
  qemu-io -r -c 'read -P 8 0 64k' "$loop"
  qemu-img check -q "$loop"
}
