# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

load lib
load peer

make_images () {
  qemu-img create -q raw.img 1M
  qemu-img create -q odd.img 1000
  qemu-img create -q -f qcow2 base.qcow2 10M
  qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 3M
  qemu-img create -q -f qcow2 -o refcount_bits=64,cluster_size=2M,extended_l2=on \
    wide.qcow2 3G
  qemu-img create -q -f qcow2 -o lazy_refcounts=on,compression_type=zlib \
    lazy.qcow2 1M
  qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on ext.qcow2 1M
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
  qemu-img create -q -f qcow2 -b "$PWD/mid.qcow2" -F qcow2 top.qcow2
  qemu-io -c 'write -q 0 64k' mid.qcow2
  qemu-img snapshot -c one mid.qcow2
  qemu-img snapshot -c 'a name longer than the column' mid.qcow2
  cp base.qcow2 bitmaps.qcow2
  qemu-img bitmap --add bitmaps.qcow2 b0
  qemu-img bitmap --add --disable -g 4k bitmaps.qcow2 b1
}

@test "info: the text is that of qemu-img, for raw and every kind of qcow2" {
  make_images
  for f in *.img *.qcow2; do
    same_img info "$f"
  done
}

@test "info: the JSON is that of qemu-img, key for key" {
  make_images
  for f in *.img *.qcow2; do
    same_img_json info --output=json "$f"
  done
}

@test "info: a disk of nothing takes no space, as qemu-img says" {
  same_img info --image-opts driver=raw,file.driver=null-co,file.size=1M
  same_img_json info --output=json --image-opts \
    driver=raw,file.driver=null-co,file.size=1M
  same_img info null-co://
}

@test "info: an image that nbdimg made looks the same to both" {
  "$NBDIMG" create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on a.qcow2 5M
  "$NBDIMG" create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
  "$NBDIMG" create -q c.img 3M
  for f in a.qcow2 b.qcow2 c.img; do
    same_img info "$f"
    same_img_json info --output=json "$f"
  done
}

@test "info --backing-chain: each layer, in order" {
  make_images
  same_img info --backing-chain top.qcow2
  same_img_json info --backing-chain --output=json top.qcow2
  same_img_json info --backing-chain --output=json base.qcow2
  rm base.qcow2
  same_img_output info --backing-chain top.qcow2
}

@test "info: flags of a dirty and of a corrupt image" {
  qemu-img create -q -f qcow2 dirty.qcow2 1M
  cp dirty.qcow2 corrupt.qcow2
  poke dirty.qcow2 79 01
  poke corrupt.qcow2 79 02
  for f in dirty.qcow2 corrupt.qcow2; do
    same_img info $f
    same_img_json info --output=json $f
  done
}

@test "info: the clocks and the instruction count of snapshots" {
  qemu-img create -q -f qcow2 a.qcow2 1M
  qemu-img snapshot -c s1 a.qcow2
  qemu-img snapshot -c s2 a.qcow2
  # the table's address is in the header at 64; one entry: 40 bytes, 24 bytes of
  # extra data, id and name
  at=$((16#$(xxd -s 64 -l 8 -p a.qcow2)))
  poke a.qcow2 $at+24 0001931ce4dc5000      # vm clock: hours
  poke a.qcow2 $at+40 00000000075bcd15      # vm state size, 64 bits
  poke a.qcow2 $at+56 ffffffffffffffff      # no instruction count
  same_img info a.qcow2
  same_img_json info --output=json a.qcow2
}

@test "info: every way to write a name" {
  make_images
  same_img info file:mid.qcow2
  same_img info -f raw mid.qcow2
  same_img info --image-opts driver=qcow2,file.filename=mid.qcow2
  same_img info --image-opts driver=qcow2,file.driver=file,file.filename=mid.qcow2
  same_img info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"}}'
  same_img info ./mid.qcow2
  same_img info -U mid.qcow2
}

@test "info: bad invocations get qemu-img's message and exit status" {
  qemu-img create -q raw.img 1M
  same_img info
  same_img info a b
  same_img info --bogus raw.img
  same_img info -z raw.img
  same_img info -Uz raw.img
  same_img info -f
  same_img info --output
  same_img info --output=xml raw.img
  same_img info --image-opts -f raw driver=raw,file.filename=raw.img
  same_img info missing.img
  same_img info -f qcow2 raw.img
  same_img info -f bogus raw.img
  same_img info --backing-chain=3 raw.img
  same_img bogus
  same_img
  same_img --bogus
  same_img -T
  same_img_output info ''
  same_img_output info .
  same_img_output info 'json:{'
  same_img_output info --image-opts bogus=1,file.filename=raw.img
}

@test "info: opens neither the backing file nor the data file" {
  qemu-img create -q -f qcow2 -u -b nowhere -F qcow2 a.qcow2 1M
  qemu-img create -q -f qcow2 -o data_file=data b.qcow2 1M
  rm data
  same_img info a.qcow2
  same_img info b.qcow2
}

@test "info: a file that cannot be an image is refused, and nothing hangs" {
  mkfifo fifo
  mkdir folder
  : >empty
  expect_error 1 "fifo" timeout 10 "$NBDIMG" info fifo
  expect_error 1 "folder" timeout 10 "$NBDIMG" info folder
  same_img info empty
}

@test "info: a format that we do not have is named, with a way to read it" {
  qemu-img create -q -f vmdk a.vmdk 1M
  expect_error 1 "VMDK" "$NBDIMG" info a.vmdk
  [[ $stderr == *"qemu-nbd -r -f vmdk"* ]]
}

@test "info: names from an image cannot drive a terminal" {
  qemu-img create -q -f qcow2 -u -b $'x\x1b[31my' -F raw a.qcow2 1M
  "$NBDIMG" info a.qcow2 >out
  ! grep -q $'\x1b' out
  grep -F 'backing file: x\x1b[31my' out
  [ "$("$NBDIMG" info --output=json a.qcow2 | jq -r '."backing-filename"')" \
    = $'x\x1b[31my' ]
  cp a.qcow2 $'b\xff.qcow2'
  "$NBDIMG" info --output=json $'b\xff.qcow2' | jq . >/dev/null
}

@test "info: works while another program writes, as -U does" {
  qemu-img create -q -f qcow2 a.qcow2 1M
  mkfifo keep
  exec 5<>keep
  start qemu-io a.qcow2 <keep >/dev/null 5>&-
  poll 10 sh -c '! qemu-img info a.qcow2 >/dev/null 2>&1'
  "$NBDIMG" info -U a.qcow2
  "$NBDIMG" info a.qcow2
  exec 5>&-
}

@test "info: NBD servers by URI and by command" {
  need nbdkit
  qemu-img create -q -f qcow2 a.qcow2 3M
  "$NBDIMG" info [ nbdkit file a.qcow2 ] | grep -x 'virtual size: 3 MiB (3145728 bytes)'
  nbdkit -U - file a.qcow2 --run "qemu-img info \"\$uri\" | sed /image:/d >theirs.txt
    '$NBDIMG' info \"\$uri\" | sed /image:/d >ours.txt"
  diff theirs.txt ours.txt
  nbdkit -U - memory 1M --run "qemu-img info --output=json \"\$uri\" |
      jq -S 'del(.filename)' >theirs.json
    '$NBDIMG' info --output=json \"\$uri\" | jq -S 'del(.filename)' >ours.json"
  diff theirs.json ours.json
}

@test "brackets: an open one and an empty pair are errors" {
  expect_error 1 "without its ]" "$NBDIMG" info [ nbdkit memory 1M
  expect_error 1 "no command between" "$NBDIMG" info [ ]
}

@test "-h and -V work everywhere, and say the name that the program has" {
  "$NBDIMG" -V | grep -q "^nbdimg version"
  "$NBDIMG" --help | grep -q "^usage: nbdimg"
  for c in check compare convert create info io map serve; do
    "$NBDIMG" $c --help | grep -qi "^usage: nbdimg $c"
    "$NBDIMG" $c -V | grep -q "^nbdimg version"
  done
  ln -s "$NBDIMG" qemu-img
  ln -s "$NBDIMG" qemu-io
  ./qemu-img -V | grep -q "^qemu-img version 7"
  ./qemu-io -V | grep -q "^qemu-io version 7"
  expect_error 1 "qemu-img: Expecting one image file name" ./qemu-img info
  expect_error 1 "qemu-io: can't open device nothing" ./qemu-io -c map nothing
}

@test "--trace prints debug messages, and knows its event" {
  qemu-img create -q raw.img 1M
  [ "$("$NBDIMG" -T help)" = debug ]
  "$NBDIMG" --trace enable=debug,file=log info raw.img
  [ -e log ]
  expect_error 1 "Invalid parameter 'bogus'" "$NBDIMG" -T bogus=1 info raw.img
  run --separate-stderr "$NBDIMG" -T no_event info raw.img
  [ "$status" = 0 ]
  [[ $stderr == *"no such trace event"* ]]
}

@test "commands and objects that are not built yet are refused by name" {
  qemu-img create -q raw.img 1M
  # Those that the help says so of.
  for c in $("$NBDIMG" --help | sed -n 's/^  \([a-z]*\) .*(not built yet)$/\1/p'); do
    expect_error 1 "'$c' is not built yet" "$NBDIMG" $c raw.img
  done
  expect_error 1 "tls-creds-anon is not built yet" \
    "$NBDIMG" info --object tls-creds-anon,id=t raw.img
}

@test "a result that cannot be written is a failure" {
  qemu-img create -q raw.img 1M
  [ -e /dev/full ] || skip "no /dev/full"
  run bash -c '"$NBDIMG" info raw.img >/dev/full'
  [ "$status" = 1 ]
  [[ $output == *"No space left"* ]]
}
