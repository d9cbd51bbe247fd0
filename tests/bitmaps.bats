# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Persistent bitmaps are kept in step by every writer.  QEMU makes them and
# reads them back; its own writers are what ours are measured by.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io qemu-nbd nbdinfo jq
}

# disk FILE [CREATE OPTION...]: 10 MiB with three bitmaps, one disabled
disk () {
  qemu-img create -q -f qcow2 "${@:2}" "$1" 10M
  qemu-img bitmap --add "$1" b0
  qemu-img bitmap --add -g 4k "$1" b1
  qemu-img bitmap --add --disable "$1" off
}

# dirty FILE BITMAP: its ranges, as qemu-nbd shows them
dirty () {
  cp "$1" dirty.qcow2
  qemu-img bitmap --disable dirty.qcow2 "$2" || return
  nbdinfo --map="qemu:dirty-bitmap:$2" -- \
    [ qemu-nbd -r -B "$2" -f qcow2 dirty.qcow2 ]
}

# flags FILE: the flags of each bitmap
flags () {
  qemu-img info -U --output=json "$1" |
    jq -c '."format-specific".data.bitmaps // [] | map({(.name): .flags}) | add'
}

# same_bits FOLDER-LESS-NAME BITMAP...: theirs and ours have the same ones
same_bits () {
  local b
  for b in "${@:2}"; do
    dirty "theirs-$1" "$b" >their.map || fail "theirs-$1: $b"
    dirty "ours-$1" "$b" >our.map || fail "ours-$1: $b"
    diff their.map our.map || fail "$1: other bits in $b"
  done
  qemu-img check -q "ours-$1" || fail "ours-$1 is damaged"
}

writes=(
  -c 'write -P 1 0 1M' -c 'write -z 3M 100k' -c 'write -P 2 5000k 3000'
  -c 'discard 6M 100k' -c 'discard 7000001 100000' -c 'write -c 8M 64k'
  -c 'write -z -u 9M 64k' -c 'write -P 3 511 2' -c 'read 0 10M'
  -c 'write -P 4 10485759 1' -c 'writev -P 5 2M 1k 2k 3k'
)

@test "bitmaps: io sets the bits that qemu-io does, in every kind of image" {
  local o
  for o in cluster_size=65536 cluster_size=4096,refcount_bits=64 \
    extended_l2=on cluster_size=2M data_file=x.raw; do
    rm -f x.raw
    disk theirs-a.qcow2 -o "$o"
    cp theirs-a.qcow2 ours-a.qcow2
    qemu-io -d unmap "${writes[@]/write -c/write}" theirs-a.qcow2 >/dev/null
    "$NBDIMG" io -d unmap "${writes[@]/write -c/write}" ours-a.qcow2 >/dev/null
    [ "$(flags ours-a.qcow2)" = "$(flags theirs-a.qcow2)" ] ||
      fail "$o: other flags: $(flags ours-a.qcow2)"
    same_bits a.qcow2 b0 b1 off
  done
  disk theirs-c.qcow2
  cp theirs-c.qcow2 ours-c.qcow2
  qemu-io -d unmap "${writes[@]}" theirs-c.qcow2 >/dev/null
  "$NBDIMG" io -d unmap "${writes[@]}" ours-c.qcow2 >/dev/null
  same_bits c.qcow2 b0 b1 off
}

@test "bitmaps: the plugin keeps them, from the first write to its end" {
  local old
  disk a.qcow2
  cp a.qcow2 old.qcow2
  # shellcheck disable=SC2016
  nbdkit -U - "$PLUGIN" file=a.qcow2 --run 'nbdinfo --size "$uri"' >/dev/null
  cmp a.qcow2 old.qcow2 || fail "reading changed the image"
  # While it runs they are in use; afterwards they are complete.
  # shellcheck disable=SC2016
  nbdkit -U - "$PLUGIN" file=a.qcow2 --run '
    qemu-io -f raw -c "write -P 7 1M 64k" "$uri" >/dev/null &&
    cp a.qcow2 running.qcow2 &&
    qemu-io -f raw -d unmap -c "write -z 4M 4k" -c "discard 5M 64k" "$uri" \
      >/dev/null
  '
  [ "$(flags running.qcow2)" = \
    '{"b0":["in-use","auto"],"b1":["in-use","auto"],"off":[]}' ] ||
    fail "while it is served: $(flags running.qcow2)"
  [ "$(flags a.qcow2)" = '{"b0":["auto"],"b1":["auto"],"off":[]}' ]
  dirty a.qcow2 b1 | awk '$3 { print $1, $2 }' >out
  old=$(printf '1048576 65536\n4194304 4096\n5242880 65536')
  [ "$(cat out)" = "$old" ] || fail "other bits: $(cat out)"
  qemu-img check -q a.qcow2
}

@test "bitmaps: a writer that is killed leaves them in use, and they stay so" {
  disk a.qcow2
  run -137 "$NBDIMG" io -c 'write 0 1M' -c flush -c 'sigraise 9' a.qcow2
  [ "$(flags a.qcow2)" = \
    '{"b0":["in-use","auto"],"b1":["in-use","auto"],"off":[]}' ]
  qemu-img check -q a.qcow2 || [ $? = 3 ]
  "$NBDIMG" io -c 'write 2M 1M' a.qcow2
  [ "$(flags a.qcow2)" = \
    '{"b0":["in-use","auto"],"b1":["in-use","auto"],"off":[]}' ]
}

@test "bitmaps: what nobody wrote to is not changed" {
  disk a.qcow2
  cp a.qcow2 old.qcow2
  "$NBDIMG" io -c 'read 0 1M' a.qcow2
  cmp a.qcow2 old.qcow2
  "$NBDIMG" io -r -c 'read 0 1M' a.qcow2
  cmp a.qcow2 old.qcow2
}

@test "bitmaps: commit and rebase change bits where the guest's data change" {
  disk base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
  qemu-img bitmap --add -g 64k top.qcow2 t
  qemu-io -c 'write -P 1 1M 64k' top.qcow2 >/dev/null
  for f in base top; do cp $f.qcow2 theirs-$f.qcow2; done
  cp base.qcow2 ours-base.qcow2
  cp top.qcow2 ours-top.qcow2
  qemu-img rebase -u -b theirs-base.qcow2 -F qcow2 theirs-top.qcow2
  "$NBDIMG" rebase -u -b ours-base.qcow2 -F qcow2 ours-top.qcow2
  qemu-img commit -q theirs-top.qcow2
  "$NBDIMG" commit -q ours-top.qcow2
  same_bits base.qcow2 b0 off
  dirty ours-top.qcow2 t | awk '$3 { print $1, $2 }' >out
  [ "$(cat out)" = '1048576 65536' ] || fail "top: $(cat out)"
}

@test "bitmaps: resize keeps them, clean where it grew, or refuses" {
  local size
  for size in 20M 10486272 64G; do
    disk theirs-a.qcow2
    cp theirs-a.qcow2 ours-a.qcow2
    for f in theirs ours; do
      qemu-io -c 'write 9M 1M' $f-a.qcow2 >/dev/null
    done
    qemu-img resize -q theirs-a.qcow2 $size
    "$NBDIMG" resize -q ours-a.qcow2 $size
    same_bits a.qcow2 b0 b1 off
  done
  qemu-img resize -q --shrink theirs-a.qcow2 9500k
  "$NBDIMG" resize -q --shrink ours-a.qcow2 9500k
  same_bits a.qcow2 b0 b1 off
  disk a.qcow2
  run -137 "$NBDIMG" io -c 'write 0 1M' -c 'sigraise 9' a.qcow2
  expect_error 1 "Bitmap 'b0' is inconsistent and cannot be used" \
    "$NBDIMG" resize a.qcow2 20M
}

@test "bitmaps: after a program without bitmaps they count for nothing" {
  disk a.qcow2
  poke a.qcow2 88 0000000000000000
  run "$NBDIMG" io -c 'write 0 64k' a.qcow2
  [ "$status" = 0 ]
  [[ $output == *"all bitmaps are now considered inconsistent"* ]]
  qemu-img bitmap --add a.qcow2 new
  [ "$(flags a.qcow2)" = '{"new":["auto"]}' ]
  "$NBDIMG" check -q -r leaks a.qcow2
  qemu-img check -q a.qcow2
}

@test "bitmaps: with a failing request, whichever it is, none is wrong" {
  local i total in_use=0 complete=0 spec=fault:scope=process
  need_test_storage
  disk base.qcow2 -o cluster_size=4096
  qemu-io -c 'write 5M 64k' base.qcow2 >/dev/null
  cp base.qcow2 a.qcow2
  NBDIMG_TEST_STORAGE="$spec,countfile=total" \
    "$NBDIMG" io -c 'write -P 1 1M 4k' a.qcow2 >/dev/null
  total=$(cat total)
  for ((i = 1; i <= total; ++i)); do
    cp base.qcow2 a.qcow2
    NBDIMG_TEST_STORAGE="$spec,index=$i,count=$((i % 2))" \
      "$NBDIMG" io -c 'write -P 1 1M 4k' a.qcow2 >out 2>&1 || :
    qemu-img check -q a.qcow2 || [ $? = 3 ] || fail "request $i: damaged"
    case $(flags a.qcow2) in
    '{"b0":["auto"],"b1":["auto"],"off":[]}')
      # Complete: if the data are there, the bits are.
      complete=$((complete + 1))
      dirty a.qcow2 b1 >map || fail "request $i: cannot be read"
      grep -q '5242880 *65536 *1' map || fail "request $i: older bits are lost"
      qemu-io -r -c 'read -P 0 1M 4k' a.qcow2 2>&1 | grep -q verif ||
        continue
      grep -q '1048576 *4096 *1' map ||
        fail "request $i: a change that b1 does not tell of"
      ;;
    *in-use*)
      in_use=$((in_use + 1))
      ;;
    *)
      fail "request $i: $(flags a.qcow2)"
      ;;
    esac
  done
  [ $complete -gt 2 ] && [ $in_use -gt 5 ] ||
    fail "$total requests: $complete complete, $in_use in use"
}

@test "bitmaps: convert -n marks what it writes, and nothing else" {
  truncate -s 10M src.raw
  qemu-io -f raw -c 'write -q -P 5 2M 256k' -c 'write -q -P 6 7M 64k' src.raw
  disk ours-n.qcow2
  cp ours-n.qcow2 theirs-n.qcow2
  qemu-img convert -n -f raw -O qcow2 src.raw theirs-n.qcow2
  "$NBDIMG" convert -n --target-is-zero -f raw -O qcow2 src.raw ours-n.qcow2
  qemu-img compare theirs-n.qcow2 ours-n.qcow2
  qemu-img check -q ours-n.qcow2
  [ "$(dirty theirs-n.qcow2 b0 | wc -l)" = 1 ]     # all of it
  dirty ours-n.qcow2 b0 | awk '$3 % 2 { print $1, $2 }' >marked
  diff - marked <<'END'
2097152 262144
7340032 65536
END
}
