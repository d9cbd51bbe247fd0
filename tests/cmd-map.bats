# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg map beside qemu-img map.

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
    qemu-img create -q odd.img 1000
    qemu-img create -q empty.img 0
    qemu-img create -q -f qcow2 zero.qcow2 0
    qemu-img create -q -f qcow2 base.qcow2 4M
    qemu-io -c 'write -q -P 1 0 128k' -c 'write -q -z 1M 64k' \
      -c 'write -q -z -u 2M 128k' -c 'write -q -P 3 3M 1M' base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k \
      top.qcow2 5M
    qemu-io -c 'write -q -P 9 64k 8k' -c 'write -q -z 3M 64k' \
      -c 'discard -q 3200k 64k' top.qcow2
    qemu-img create -q -f qcow2 -o data_file=df ext.qcow2 1M
    qemu-io -c 'write -q -P 9 64k 128k' ext.qcow2
    qemu-img convert -q -c -O qcow2 base.qcow2 packed.qcow2
    qemu-img create -q -f qcow2 -o extended_l2=on sub.qcow2 1M
    qemu-io -c 'write -q -P 9 6k 8k' -c 'write -z -q 64k 10k' sub.qcow2
    qemu-img create -q -f qcow2 -o preallocation=metadata pre.qcow2 1M
    qemu-img create -q -f qcow2 -b raw.img -F raw over.qcow2
    qemu-img create -q -f qcow2 -u -b nope -F qcow2 orphan.qcow2 1M
    cp base.qcow2 feature.qcow2
    poke feature.qcow2 79 40
    mkdir dir
  )
}

@test "map: every kind of image, as text and as JSON" {
  make_files
  peer_lines same_words <<'END'
map raw.img
map odd.img
map empty.img
map zero.qcow2
map base.qcow2
map top.qcow2
map ext.qcow2
map packed.qcow2
map sub.qcow2
map pre.qcow2
map over.qcow2
map --output=human raw.img
map --output=json raw.img
map --output=json odd.img
map --output=json empty.img
map --output=json zero.qcow2
map --output=json base.qcow2
map --output=json top.qcow2
map --output=json ext.qcow2
map --output=json packed.qcow2
map --output=json sub.qcow2
map --output=json pre.qcow2
map --output=json over.qcow2
END
}

@test "map: a part of the disk" {
  make_files
  peer_lines same_words <<'END'
map -s 1M base.qcow2
map -s 1M --output=json base.qcow2
map -s 100 --output=json base.qcow2
map -s 100k -l 100 --output=json base.qcow2
map -l 1M --output=json top.qcow2
map --start-offset=1M --max-length=1M --output=json top.qcow2
map --start-offset=3M top.qcow2
map -s 100M --output=json base.qcow2
map -s 100M base.qcow2
map -s 4M --output=json base.qcow2
map -l 0 --output=json base.qcow2
map -l 0 base.qcow2
map -l 100M --output=json base.qcow2
map -s x base.qcow2
map -s -1 base.qcow2
map -l x base.qcow2
map -l '' base.qcow2
map -s 99999999999999999999 base.qcow2
END
}

@test "map: every way to name an image" {
  make_files
  peer_lines same_words 7<files/raw.img <<'END'
map -f raw base.qcow2
map -f raw --output=json base.qcow2
map -f qcow2 base.qcow2
map -U --output=json top.qcow2
map --force-share base.qcow2
map file:raw.img
map --image-opts driver=qcow2,file.filename=base.qcow2
map --image-opts --output=json driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2
map 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'
map /dev/fd/7
map -U --output=json /dev/fd/7
END
}

@test "map: a window of a file is mapped to where it lies in the file" {
  make_files
  peer_lines same_words <<'END'
map 'json:{"driver":"raw","offset":65536,"size":65536,"file":{"driver":"file","filename":"raw.img"}}'
map --output=json 'json:{"driver":"raw","offset":65536,"file":{"driver":"file","filename":"raw.img"}}'
map --output=json 'json:{"driver":"raw","offset":512,"file":{"driver":"raw","offset":1024,"file":{"driver":"file","filename":"raw.img"}}}'
END
}

@test "map: bad invocations" {
  make_files
  peer_lines same_words <<'END'
map
map a b
map --output=xml raw.img
map -f qcow2 raw.img
map -f bogus raw.img
map nope
map ''
map -z raw.img
map --bogus raw.img
map -f
map orphan.qcow2
map feature.qcow2
map --image-opts -f raw driver=raw,file.filename=raw.img
map --image-opts bogus=1
map --image-opts driver=qcow2,file.filename=nope
END
  peer_lines own_words <<'END'
"'dir': it is a directory" map dir
"--output must be used with human or json" map --output raw.img
"JSON" map json:{
END
}

@test "map under the name qemu-img prints the same" {
  make_files
  ln -s "$NBDIMG" qemu-img
  [ "$(./qemu-img map files/raw.img)" = "$(qemu-img map files/raw.img)" ]
  expect_error 1 "qemu-img: Expecting one image file name" ./qemu-img map
}

@test "map: what cannot be opened for reading is an error" {
  make_files
  chmod 0 files/raw.img
  expect_error 1 "Permission denied" as_owner "$NBDIMG" map files/raw.img
  run as_owner qemu-img map files/raw.img
  [ "$status" = 1 ]
}

@test "map: a block device" {
  need_root
  make_files
  loop=$(losetup -f --show files/base.qcow2) || skip "no loop device"
  same_img map "$loop"
  same_img map --output=json "$loop"
}

@test "map: an NBD export" {
  need nbdkit
  make_files
  cd files
  for f in raw.img base.qcow2; do
    nbdkit -U - file $f --run "qemu-img map --output=json \"\$uri\" >theirs.json
      '$NBDIMG' map --output=json \"\$uri\" >ours.json"
    cmp theirs.json ours.json
  done
  expect_error 1 "nowhere" "$NBDIMG" map 'nbd+unix:///?socket=/nowhere'
}

@test "map: a null-co device reads as zeroes, also without read-zeroes" {
  mkdir theirs ours
  twin_img map --output=json \
    'json:{"driver":"null-co","size":65536,"read-zeroes":true}'
  "$NBDIMG" map --output=json 'json:{"driver":"null-co","size":65536}' |
    jq -e '.[0].zero == true and .[0].length == 65536'
}
