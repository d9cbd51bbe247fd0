# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# nbdimg bitmap beside qemu-img, in a folder of its own each.

load lib
load peer

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io qemu-nbd nbdinfo jq
}

# a: b0 enabled, off disabled, with bits; i: b0 was in use; o: of another size
images () {
  qemu-img create -q -f qcow2 a 10M
  qemu-img bitmap --add a b0
  qemu-img bitmap --add -g 4k a b1
  qemu-img bitmap --add -g 4k a off
  qemu-io -c 'write 1M 5000' -c 'write 9M 1M' a >/dev/null
  qemu-img bitmap --disable a off
  qemu-img create -q -f qcow2 b 10M
  qemu-img bitmap --add -g 32k b src
  qemu-io -c 'write 2M 100k' b >/dev/null
  qemu-img create -q -f qcow2 o 5M
  qemu-img bitmap --add o b0
  qemu-img create -q -f qcow2 n 10M
  qemu-img create -q -f raw r 1M
  qemu-img create -q -f qcow2 -o compat=0.10 v2 10M
  qemu-img create -q -f qcow2 huge 64T
  qemu-img create -q -f qcow2 i 10M
  qemu-img bitmap --add i b0
  # Bit 0 of the flags of the first entry; the directory is where it says.
  poke i $((0x$(xxd -p -s 0x210 -l 8 i) + 15)) 03
}

# What the two programs made of it: the list and the bits of each.
same_bitmaps () {
  local name
  for name in a i; do
    (cd theirs && bitmaps_of $name) >.their.list
    (cd ours && bitmaps_of $name) >.our.list
    diff .their.list .our.list || peer_fail "other bitmaps in $name"
    qemu-img check -q ours/$name || peer_fail "$name is damaged"
  done
}

bitmaps_of () {
  local b
  qemu-img info --output=json "$1" |
    jq -c '."format-specific".data.bitmaps // [] | .[]' | sort
  for b in $(qemu-img info --output=json "$1" | jq -r \
    '."format-specific".data.bitmaps // [] | .[] |
      select(.flags | index("in-use") | not) | .name'); do
    cp "$1" .copy
    qemu-img bitmap --disable .copy "$b"
    echo "$b"
    nbdinfo --map="qemu:dirty-bitmap:$b" -- \
      [ qemu-nbd -r -B "$b" -f qcow2 .copy ]
  done
}

twin () {
  make_twins images
  twin_img bitmap "$@"
  same_bitmaps
}

# The same status, and a message with TEXT.
twin_own () {
  make_twins images
  twin_img_output bitmap "${@:2}"
  grep -qF -- "$1" .our.err || peer_fail "the message is without '$1'"
  same_bitmaps
}

@test "bitmap: what is asked for is done, as qemu-img does it" {
  twin --add a new
  twin --add -g 512 a new
  twin --add -g 2G a new
  twin --add -g 0 a new
  twin --add -g 4k -g 32k a new
  twin --add --disable a new
  twin --add --merge b0 a new
  twin --add --merge b0 --merge off -g 64k a new
  twin --add --merge src -b b -F qcow2 a new
  twin --merge src -b b a b1
  twin --merge b1 a b0
  twin --merge b0 a b1
  twin --merge b0 a b0
  twin --merge=b0 a off
  twin --clear a b0
  twin --clear a off
  twin --clear --merge off a b1
  twin --enable a off
  twin --enable a b0
  twin --disable a b0
  twin --disable --enable --clear a b0
  twin --remove a b0
  twin --remove --add -g 4k a b0
  twin --add --remove a new
  twin --remove i b0
  twin --add i new
  twin --add -f qcow2 a new
  twin --add --image-opts driver=qcow2,file.filename=a new
  twin --add a "$(printf 'x%.0s' {1..1023})"
  twin --add a 'name,with=and"'
}

@test "bitmap: what cannot be done is refused in qemu-img's words" {
  twin
  twin a b0
  twin --add
  twin --add a
  twin --add a new more
  twin --remove -g 64k a b0
  twin -b b --add a new
  twin -F qcow2 --merge b0 a b1
  twin --add -g foo a new
  twin --add -g 3000 a new
  twin --add -g 256 a new
  twin --add -g 4G a new
  twin --add a b0
  twin --add a ''
  twin --add i b0
  twin --merge nosuch a b0
  twin --merge b0 a nosuch
  twin --clear a nosuch
  twin --enable a nosuch
  twin --disable a nosuch
  twin --remove a nosuch
  twin --remove --remove a b0
  twin --add --merge nosuch a new
  twin --merge b0 -b o -F qcow2 a b0
  twin --merge src -b b -F nosuch a b0
  twin --add -f nosuch a new
  twin --add -U a new
  twin --add --nosuch a new
  twin --add --image-opts -f qcow2 driver=qcow2,file.filename=a new
}

@test "bitmap: what cannot be done, with the file and the reason" {
  twin_own 'r: images of the format raw have no persistent bitmaps' --add -f raw r new
  twin_own 'have no persistent bitmaps' --add -f raw a new
  twin_own 'qcow2 v2 files' --add v2 new
  twin_own 'Use larger granularity' --add -g 8k huge new
  twin_own 'Name length exceeds maximum' --add a "$(printf 'x%.0s' {1..1024})"
  twin_own 'is inconsistent and cannot be used' --clear i b0
  twin_own 'is inconsistent and cannot be used' --enable i b0
  twin_own 'is inconsistent and cannot be used' --disable i b0
  twin_own 'is inconsistent and cannot be used' --merge b0 -b i -F qcow2 a b0
  twin_own 'No such file' --add nosuch new
  twin_own 'No such file' --merge b0 -b nosuch a b0
  twin_own "'a'" --merge b0 -b a -F qcow2 a b1
}

@test "convert copies bitmaps, with their bits and flags" {
  make_twins images
  twin_img convert --bitmaps -O qcow2 a o1
  twin_img convert --bitmaps -O qcow2 -o cluster_size=4k -c a o2
  twin_img convert --bitmaps -O qcow2 -o compat=0.10 a o3
  twin_img convert --bitmaps -O qcow2 r o4
  twin_img_output convert --bitmaps -O qcow2 i o5
  twin_img convert --bitmaps --skip-broken-bitmaps -O qcow2 i o6
  twin_img convert --bitmaps -O qcow2 a b o7
  twin_img convert --bitmaps -O raw a o8
  twin_img convert --bitmaps -O vdi a o9
  twin_img convert --bitmaps -n -O qcow2 a a2
  twin_img convert --bitmaps -n -O qcow2 a n
  twin_img convert --skip-broken-bitmaps -O qcow2 a o10
  for o in o1 o2 o6 n; do
    (cd theirs && bitmaps_of $o) >.their.list
    (cd ours && bitmaps_of $o) >.our.list
    diff .their.list .our.list || peer_fail "other bitmaps in $o"
    qemu-img check -q ours/$o || peer_fail "$o is damaged"
  done
  grep -q off .our.list
  twin_img_output convert --bitmaps -n -O qcow2 a n
  grep -q 'Bitmap already exists' .our.err
}

@test "bitmap: a header with a backing file keeps all that it says" {
  local o
  qemu-img create -q -f raw base.raw 10M
  for o in compat=1.1 cluster_size=512 extended_l2=on; do
    qemu-img create -q -f qcow2 -b base.raw -F raw -o $o x 10M
    qemu-img info --output=json x >want
    "$NBDIMG" bitmap --add x one
    "$NBDIMG" bitmap --add x two
    qemu-img check -q x || fail "$o: damaged"
    [ "$(qemu-img info --output=json x |
      jq -r '."format-specific".data.bitmaps[].name' | xargs)" = 'one two' ]
    "$NBDIMG" bitmap --remove x one
    "$NBDIMG" bitmap --remove x two
    qemu-img info --output=json x >got
    diff <(jq 'del(."actual-size")' want) <(jq 'del(."actual-size")' got) ||
      fail "$o: another image"
    qemu-img check -q x || fail "$o: damaged"
  done
}

@test "bitmap: many bitmaps, and large ones, come and go without a leak" {
  local i
  qemu-img create -q -f qcow2 -o cluster_size=512 x 8M
  for ((i = 0; i < 40; ++i)); do
    "$NBDIMG" bitmap --add -g 512 x "$(printf 'bitmap-%d-%0200d' $i $i)"
  done
  "$NBDIMG" io -c 'write 0 1M' -c 'write 5M 512' x >/dev/null
  qemu-img check -q x
  for ((i = 0; i < 40; ++i)); do
    "$NBDIMG" bitmap --remove x "$(printf 'bitmap-%d-%0200d' $i $i)"
  done
  qemu-img check -q x
  qemu-img create -q -f qcow2 y 64T
  "$NBDIMG" bitmap --add -g 16k y large
  "$NBDIMG" io -c 'write 63T 1M' y >/dev/null
  qemu-img check -q y
  # Bits that are clear take no space.
  [ "$(stat -c %s y)" -lt $((4 * 1024 * 1024)) ]
}

# What can be there after "bitmap ARG..." failed: the old state or the new one,
# but for the mark on those that are enabled.
fails_whole () {
  local i total status states=0 spec=fault:scope=process,file=x
  cp safe x
  NBDIMG_TEST_STORAGE="$spec,countfile=total" "$NBDIMG" bitmap "$@"
  total=$(cat total)
  list_of safe >old
  list_of x >new
  for ((i = 1; i <= total; ++i)); do
    cp safe x
    status=0
    NBDIMG_TEST_STORAGE="$spec,index=$i,count=$((i % 2))" \
      "$NBDIMG" bitmap "$@" 2>err || status=$?
    qemu-img check -q x 2>err || [ $? = 3 ] ||
      fail "request $i: $*: damaged: $(cat err)"
    list_of x >got
    if ! cmp -s got new; then
      [ $status != 0 ] || fail "request $i: $*: not done, and no failure"
      cmp -s got old || fail "request $i: $*: $(cat got)"
      states=$((states + 1))
    fi
  done
  [ $states -gt 5 ] || fail "$*: only $states failures"
}

list_of () {
  qemu-img info --output=json "$1" |
    jq -c '."format-specific".data.bitmaps // [] | .[] | .flags -= ["in-use"]'
}

@test "bitmap: a failing request, whichever it is, leaves the old or the new" {
  need_test_storage
  qemu-img create -q -f qcow2 -o cluster_size=4k safe 4M
  qemu-img bitmap --add safe b0
  qemu-img bitmap --add --disable -g 4k safe off
  qemu-io -c 'write 1M 64k' safe >/dev/null
  fails_whole --add -g 4k x new
  fails_whole --remove x b0
  fails_whole --add --merge b0 --disable x new
}

# The file cannot grow: a limit of the process, as a full disk.
in_full_disk () (
  trap '' XFSZ
  ulimit -f $((($(stat -c %s x) + 1023) / 1024))
  exec "$NBDIMG" "$@"
)

@test "bitmap: a full disk costs none of those that have not changed" {
  local i
  qemu-img create -q -f qcow2 -o cluster_size=4k x 4M
  qemu-img bitmap --add x b0
  qemu-img bitmap --add --disable x off
  qemu-io -c 'write 1M 64k' x >/dev/null
  for ((i = 1; i < 40; ++i)); do
    list_of x >old
    in_full_disk bitmap --add x n$i 2>err || break
  done
  grep -q 'could not be stored' err
  # list_of tells of no marks; here there must be none.
  qemu-img info --output=json x |
    jq -c '."format-specific".data.bitmaps[]' >got
  cmp old got
  qemu-img check -q x || [ $? = 3 ]
  run in_full_disk bitmap --clear x b0
  [ "$status" = 1 ]
  # This one has changed.
  [ "$(qemu-img info x | grep -c in-use)" = 1 ]
}

@test "bitmap: removing one that is damaged frees nothing of others" {
  local l2 data at table to
  qemu-img create -q -f qcow2 safe 4M
  qemu-io -c 'write -q -P 7 0 4M' safe
  qemu-img bitmap --add safe b0
  qemu-io -c 'write -q -P 7 1M 64k' safe
  # Its only table entry leads to the L2 table, or to a cluster of the guest.
  l2=$(peek safe $((16#$(peek safe 40 8))) 8)
  data=$(peek safe $((16#$l2 & 0xfffffffffffe00)) 8)
  at=$((16#$(peek safe 100 4)))         # the first header extension
  while [ "$(peek safe $at 4)" != 23852875 ]; do
    at=$((at + 8 + (16#$(peek safe $((at + 4)) 4) + 7) / 8 * 8))
  done
  table=$(peek safe $((16#$(peek safe $((at + 24)) 8))) 8)
  for to in "$l2" "$data"; do
    cp safe x
    poke x $((16#$table)) "00${to:2}"
    "$NBDIMG" bitmap --remove x b0 2>err
    grep -q 'are leaked' err
    qemu-io -r -c 'read -q -P 7 0 4M' x >out
    [ ! -s out ]
    qemu-img check -q x || [ $? = 3 ]
  done
}
