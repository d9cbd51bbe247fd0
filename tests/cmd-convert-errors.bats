# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg convert when something is wrong: it says what, with the words and the
# status of qemu-img where that says enough, and leaves no half-made target.

load lib

convert () {
  "$NBDIMG" convert "$@"
}

# Small images, and our tool under the name qemu-img in $ours.
make_images () {
  random_image a.raw 1M 1
  random_image c.raw 2M 2
  random_image odd.raw 1000 3
  qemu-img create -q -f qcow2 b.qcow2 1M
  qemu-io -c 'write -P 7 64k 64k' b.qcow2 >/dev/null
  qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 ov.qcow2
  mkdir bin dir
  ln -s "$NBDIMG" bin/qemu-img
  ours=$PWD/bin/qemu-img
}

# outcome TOOL ARGUMENT...: all that can be seen of one run
outcome () {
  local tool=$1 status=0
  shift
  rm -f o
  "$tool" convert "$@" >out 2>err || status=$?
  echo "status $status"
  cat out err
  [ ! -e o ] || { echo "o:"; qemu-img info o | grep -v 'disk size'; }
}

as_qemu () {
  outcome qemu-img "$@" >theirs
  outcome "$ours" "$@" >mine
  diff theirs mine || fail "not as qemu-img (<): convert $*"
}

@test "bad invocations are refused in the words of qemu-img" {
  need qemu-img qemu-io
  make_images
  as_qemu
  as_qemu a.raw
  as_qemu nope o
  as_qemu '' o
  as_qemu -O foo a.raw o
  as_qemu -O '' a.raw o
  as_qemu -f foo a.raw o
  as_qemu -f qcow2 a.raw o
  as_qemu -X a.raw o
  as_qemu --foo a.raw o
  as_qemu -s s1 b.qcow2 o
  as_qemu -c a.raw o
  as_qemu -c -O raw a.raw o
  as_qemu -c -O qcow2 -o preallocation=metadata a.raw o
  as_qemu -n -c a.raw c.raw
  for size in 3 foo -1 1G ''; do
    as_qemu -S "$size" a.raw o
  done
  for n in 0 17 x -1; do
    as_qemu -m $n a.raw o
  done
  as_qemu -r x a.raw o
  as_qemu -T foo a.raw o
  as_qemu -C -S 4k a.raw o
  as_qemu -C -c -O qcow2 a.raw o
  as_qemu -C --salvage a.raw o
  as_qemu -n a.raw o
  as_qemu -n -o size=1M a.raw c.raw
  as_qemu -n -o cluster_size=64k -O qcow2 a.raw ov.qcow2
  as_qemu -n -O qcow2 a.raw c.raw
  as_qemu -n -O qcow2 c.raw b.qcow2
  as_qemu --target-is-zero a.raw o
  as_qemu --skip-broken-bitmaps a.raw o
  as_qemu --target-image-opts a.raw o
  as_qemu --target-image-opts -O raw -n a.raw driver=raw,file.filename=c.raw
  as_qemu --target-image-opts -n a.raw driver=qcow2,file.filename=nope
  as_qemu --target-image-opts -n a.raw foo=1
  as_qemu --target-image-opts -n c.raw driver=raw,file.filename=a.raw
  as_qemu --image-opts -f raw driver=raw,file.filename=a.raw o
  as_qemu --image-opts driver=raw,file.filename=nope o
  as_qemu --image-opts driver=foo,file.filename=a.raw o
  as_qemu 'json:{}' o
  as_qemu -B b.qcow2 a.raw o
  as_qemu -O raw -B b.qcow2 -F qcow2 ov.qcow2 o
  as_qemu -O qcow2 -B b.qcow2 a.raw o
  as_qemu -O qcow2 -F qcow2 ov.qcow2 o
  as_qemu -O qcow2 -o backing_file=b.qcow2 ov.qcow2 o
  as_qemu -O qcow2 -B b.qcow2 -F qcow2 a.raw c.raw o
  as_qemu -l foo b.qcow2 o
  as_qemu -l foo b.qcow2 b.qcow2 o
  as_qemu -l snapshot.foo=1 b.qcow2 o
  as_qemu -o '' a.raw o
  as_qemu -o foo=1 -O qcow2 a.raw o
  as_qemu -o foo -O qcow2 a.raw o
  as_qemu -o cluster_size=64k a.raw o
  as_qemu -o cluster_size=3 -O qcow2 a.raw o
  as_qemu -O qcow2 a.raw nodir/o
  as_qemu a.raw dir
}

@test "good invocations say what qemu-img says, which is nothing" {
  need qemu-img qemu-io
  make_images
  qemu-img snapshot -c s1 b.qcow2
  as_qemu a.raw o
  as_qemu -O qcow2 a.raw o
  as_qemu -q a.raw o
  as_qemu -p -q a.raw o
  as_qemu -U a.raw o
  as_qemu -W a.raw o
  as_qemu -m 16 -W a.raw o
  as_qemu -m 1 -m 2 a.raw o
  as_qemu -C -W a.raw o
  as_qemu -r 0 a.raw o
  as_qemu -r 1G a.raw o
  as_qemu -t none a.raw o
  as_qemu -T none a.raw o
  as_qemu -t unsafe a.raw o
  as_qemu -S 0 -O qcow2 a.raw o
  as_qemu -S 64k a.raw o
  as_qemu -c -W -O qcow2 a.raw o
  as_qemu -c -O qcow2 -o compression_type=zstd a.raw o
  as_qemu --salvage -q a.raw o
  as_qemu -f raw -f qcow2 b.qcow2 o
  as_qemu -l s1 b.qcow2 o
  as_qemu a.raw b.qcow2 ov.qcow2 o
  as_qemu odd.raw odd.raw o
  as_qemu -O qcow2 odd.raw o
  as_qemu -n a.raw c.raw
  as_qemu -n -O qcow2 a.raw ov.qcow2
  as_qemu -n -B b.qcow2 -O qcow2 a.raw ov.qcow2
  as_qemu --target-image-opts -n a.raw driver=raw,file.filename=c.raw
  as_qemu --image-opts driver=raw,file.filename=a.raw o
  as_qemu 'json:{"driver":"raw","file":{"driver":"file","filename":"a.raw"}}' o
  as_qemu a.raw file:o
  as_qemu file:a.raw o
  as_qemu -O qcow2 -B b.qcow2 -F qcow2 ov.qcow2 o
  as_qemu -O qcow2 -o backing_file=b.qcow2,backing_fmt=qcow2 ov.qcow2 o
  as_qemu -O qcow2 -o compat=0.10,cluster_size=4k,refcount_bits=16 a.raw o
}

@test "--salvage of a damaged image warns of it once, and saves the rest" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow2 disk 1G
  qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 600M 1M' disk >/dev/null
  # The table of the first half leads nowhere.
  printf '\x80\0\0\0\xff\xff\0\0' | dd of=disk bs=1 seek=$((0x30000)) \
    conv=notrunc status=none
  "$NBDIMG" convert --salvage -O raw disk copy 2>said
  [ "$(grep -c 'warning: disk: corrupt image' said)" = 1 ]
  qemu-io -f raw -c 'read -P 2 600M 1M' copy >out
  ! grep failed out
}

@test "a file that was cut off is an error wherever it ends, and no target" {
  need qemu-img qemu-io
  qemu-img create -q -f qcow2 whole 64M
  qemu-io -c 'write -P 3 0 8M' whole >/dev/null
  # In the middle of the tables, right behind them, and in the data.
  for size in 100000 190000 262144 300000 400000 8000000; do
    head -c $size whole >cut
    expect_error 1 "guest offset" "$NBDIMG" convert -O raw cut copy
    [ ! -e copy ]
    run "$NBDIMG" compare cut whole
    [ "$status" != 0 ]
    run "$NBDIMG" check cut
    [ "$status" = 2 ]
  done
  # The zeroes at the end of the last cluster need not be there.
  head -c $((5 * 65536 + 512)) whole >first
  "$NBDIMG" io -r -c 'read -P 3 0 512' first
  # What was there is saved.
  "$NBDIMG" convert --salvage -O raw cut copy
  qemu-io -f raw -c 'read -P 3 0 7M' copy | grep -v failed
}

@test "what is not built yet is refused by name" {
  need qemu-img qemu-io
  make_images
  expect_error 1 'tls-creds-anon is not built yet' \
    convert --object tls-creds-anon,id=t a.raw o
  expect_error 1 'vmdk' convert -O vmdk a.raw o
  [ ! -e o ]
}

@test "a target that was there is not touched before all is checked" {
  need qemu-img qemu-io
  make_images
  qemu-img snapshot -c s1 b.qcow2
  cp c.raw o
  for bad in "nope o" "-O qcow2 -o cluster_size=3 a.raw o" \
    "-O qcow2 -o size=1k a.raw o" "-t foo a.raw o" "-l nosuch b.qcow2 o" \
    "-O qcow2 -B nope -F qcow2 a.raw o" "-O qcow2 -B o -F raw a.raw o" \
    "-c -O qcow2 -o data_file=d a.raw o" "a.raw nope o" \
    "-O qcow2 -o compat=0.10,compression_type=zstd a.raw o"; do
    # shellcheck disable=SC2086
    run convert $bad
    [ "$status" = 1 ] || fail "status $status: $bad"
    cmp c.raw o || fail "changed: $bad"
    [ ! -e d ]
  done
}

@test "source and target are the same: by name, link, device, backing file" {
  need qemu-img qemu-io
  make_images
  ln a.raw hard
  ln -s a.raw soft
  for f in a.raw b.qcow2 ov.qcow2; do cp $f saved.$f; done
  expect_error 1 'the target is the source' convert a.raw a.raw
  expect_error 1 'the target is the source' convert a.raw ./a.raw
  expect_error 1 'the target is the source' convert a.raw hard
  expect_error 1 'the target is the source' convert soft a.raw
  expect_error 1 'the target is the source' convert -n a.raw a.raw
  expect_error 1 'the target is the source' convert c.raw a.raw hard
  expect_error 1 'a file that it needs' convert -O qcow2 ov.qcow2 b.qcow2
  expect_error 1 'the target is the source' \
    convert --image-opts driver=raw,file.filename=a.raw file:a.raw
  for f in a.raw b.qcow2 ov.qcow2; do cmp $f saved.$f; done
  start_server memory 1M
  expect_error 1 'the target is the source' convert -f raw "$URI" "$URI"
}

@test "no space: the error says where, and nothing is left" {
  need qemu-img
  need_root
  random_image src.raw 20M 4
  mkdir small
  mount -t tmpfs -o size=4M none small || skip "cannot mount a tmpfs"
  local r=0
  for options in "-O raw" "-O qcow2" "-O qcow2 -c" "-O raw -S 0 -m 8" \
    "-O qcow2 -o cluster_size=512" "-O raw -o preallocation=full"; do
    # shellcheck disable=SC2086
    expect_error 1 'No space left' convert -f raw $options src.raw small/t ||
      r=1
    [ ! -e small/t ] || r=1
  done
  # A file that was there is not removed, and the user hears of it.
  echo old >small/t
  expect_error 1 'old content is gone' convert -f raw -O qcow2 src.raw small/t ||
    r=1
  [ -e small/t ] || r=1
  umount small
  [ $r = 0 ]
}

@test "an unreadable cluster ends it with the offset, and nothing is left" {
  need qemu-img
  random_image src.raw 8M 5
  qemu-img convert -c -f raw -O qcow2 src.raw s.qcow2
  # The host bytes of the stream at 4 MiB or after become nonsense.
  at=$(($(stat -c %s s.qcow2) * 3 / 4))
  dd if=/dev/zero of=s.qcow2 bs=1 seek=$at count=2000 conv=notrunc status=none
  expect_error 1 'error while reading at byte' convert -O raw s.qcow2 t.raw
  [[ $stderr == *s.qcow2* ]]
  [ ! -e t.raw ]
  run --separate-stderr convert --salvage -O raw s.qcow2 t.raw
  [ "$status" = 0 ]
  [[ $stderr == *'warning: error while reading offset'*'zeroes'* ]]
  # All that could be read is there.
  run cmp -l src.raw t.raw
  [ "$(wc -l <<<"$output")" -le 262144 ]
  rm t.raw
  run --separate-stderr convert -q --salvage -O raw s.qcow2 t.raw
  [ "$status" = 0 ]
  [ "$stderr" = "" ]
}

# An export with a sector that cannot be read, at 100000 of 1 MiB.
start_bad_disk () {
  start_server eval get_size='echo 1M' pread='
    if [ $(($4)) -le 100352 ] && [ $(($4 + $3)) -gt 99840 ]; then
      echo "EIO bad sector" >&2; exit 1; fi
    head -c "$3" /dev/zero | tr "\0" x'
}

@test "--salvage gives up what cannot be read, sector by sector, and no more" {
  start_bad_disk
  expect_error 1 'error while reading at byte' convert -f raw "$URI" t.raw
  [ ! -e t.raw ]
  run --separate-stderr convert --salvage -f raw "$URI" t.raw
  [ "$status" = 0 ]
  [[ $stderr == *'offset 99840'*'1024 bytes'* ]]
  { head -c 99840 /dev/zero | tr '\0' x
    head -c 1024 /dev/zero
    head -c $((1048576 - 99840 - 1024)) /dev/zero | tr '\0' x; } | cmp - t.raw
}

@test "Ctrl-C ends it by that signal and leaves nothing" {
  random_image src.raw 20M 6
  for signal in INT TERM; do
    # What a shell starts in the background ignores SIGINT.
    start env --default-signal=INT "$NBDIMG" convert -r 1M -f raw -O qcow2 \
      src.raw t.qcow2
    poll 20 test -e t.qcow2
    kill -$signal "$STARTED_PID"
    status=0
    wait "$STARTED_PID" || status=$?
    [ $status = $((128 + $(kill -l $signal))) ]
    [ ! -e t.qcow2 ]
  done
}

@test "a target that another program has open is left alone" {
  need qemu-img qemu-io
  make_images
  cp b.qcow2 saved
  start_qemu_nbd -f qcow2 b.qcow2
  expect_error 1 'lock' convert -O qcow2 a.raw b.qcow2
  expect_error 1 'lock' convert -n -O qcow2 a.raw b.qcow2
  cmp b.qcow2 saved
  expect_error 1 'lock' convert -O raw b.qcow2 t.raw
  [ ! -e t.raw ]
  convert -U -O raw b.qcow2 t.raw
  [ -e t.raw ]
}

@test "each request that can fail: an error, no target, the source as it was" {
  need_test_storage
  random_image src.raw 3M 7
  convert -f raw -O qcow2 src.raw s.qcow2
  cp s.qcow2 saved
  local n=0 total
  for options in "-O raw" "-O qcow2" "-O qcow2 -c" \
    "-O qcow2 -t writeback -o cluster_size=4k"; do
    # shellcheck disable=SC2086
    NBDIMG_TEST_STORAGE=fault:scope=process,countfile=$PWD/total \
      convert $options s.qcow2 t
    total=$(cat total)
    [ "$total" -gt 10 ]
    rm t
    for ((i = 1; i <= total; i += 1 + total / 40)); do
      status=0
      # shellcheck disable=SC2086
      NBDIMG_TEST_STORAGE=fault:scope=process,index=$i \
        "$NBDIMG" convert $options s.qcow2 t 2>err || status=$?
      n=$((n + 1))
      if [ $status = 0 ]; then
        # A request that is only a hint, or had another way.
        rm -f flat
        convert -O raw t flat
        cmp src.raw flat || fail "request $i of $options: another disk"
        rm t
      else
        [ $status = 1 ] || fail "request $i of $options: status $status"
        [ -s err ] || fail "request $i of $options: not a word"
        [ ! -e t ] || fail "request $i of $options: a target is left"
      fi
    done
  done
  cmp s.qcow2 saved
  [ $n -gt 40 ]
}
