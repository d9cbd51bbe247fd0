# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# What is opened when an image is: names in images, chains, foreign formats.

load lib

# nbdsh takes the first python3, and the system's has libnbd.
PATH=/usr/bin:$PATH

# Overwrite bytes of FILE at OFFSET with the hexadecimal HEX.
poke () {
  printf '%b' "$(sed 's/../\\x&/g' <<<"$3")" |
    dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Put the text NEW in the place of OLD, which is as long, in FILE.
replace_text () {
  [ ${#2} = ${#3} ] || fail "'$2' and '$3' are not of the same length"
  perl -0777 -pi -e 'BEGIN { ($o, $n) = splice @ARGV, 0, 2 }
    s/\Q$o\E/$n/ or die "not found"' "$2" "$3" "$1"
}

# Which files below this folder did the command open?  One name a line.
opened_by () {
  strace -f -qq -e trace=open,openat,openat2 -o trace "$@" >out 2>err || :
  sed -n 's/.*open[a-z0-9]*(\(AT_FDCWD, \)\?"\([^"]*\)".*/\2/p' trace |
    grep -E "^[^/]|^$PWD/" | grep -v '^\.\.' | sort -u
}

@test "info opens the one file that it is asked about, for reading" {
  need strace qemu-img
  qemu-img create -q -f qcow2 base 1M
  qemu-img create -q -f qcow2 -b base -F qcow2 top
  qemu-img create -q -f qcow2 -o data_file=data ext 1M
  [ "$(opened_by "$NBDIMG" info top)" = top ]
  run ! grep -E 'top".*O_(RDWR|WRONLY)' trace
  grep -q 'backing file: base' out
  [ "$(opened_by "$NBDIMG" info ext)" = ext ]
  grep -q 'data file: data' out
  [ "$(opened_by "$NBDIMG" info --backing-chain top)" = $'base\ntop' ]
}

@test "info shows a hostile data file name and does not open it" {
  need strace qemu-img
  local name='json:{"driver":"null-co"}'
  qemu-img create -q -f qcow2 -o data_file=0123456789012345678901234 ext 1M
  replace_text ext 0123456789012345678901234 "$name"
  [ "$(opened_by "$NBDIMG" info ext)" = ext ]
  grep -qF "data file: $name" out
  expect_error 1 'must be a path or an NBD URI' "$NBDIMG" map ext
}

@test "a missing backing file is told with the image that names it" {
  need qemu-img
  qemu-img create -q -u -f qcow2 -b gone -F raw top 1M
  "$NBDIMG" info top
  expect_error 1 "'gone'" "$NBDIMG" map top
  expect_error 1 "top" "$NBDIMG" map top
}

@test "a chain that bites its tail is refused at once, by any name" {
  need qemu-img
  qemu-img create -q -f qcow2 a 1M
  qemu-img create -q -f qcow2 -b a -F qcow2 b
  qemu-img create -q -u -f qcow2 -b b -F qcow2 a 1M
  expect_error 1 'in the chain already' timeout 10 "$NBDIMG" map a
  expect_error 1 'in the chain already' timeout 10 "$NBDIMG" info \
    --backing-chain a
  "$NBDIMG" info a
  ln b hard
  qemu-img create -q -u -f qcow2 -b hard -F qcow2 b 1M
  expect_error 1 'in the chain already' timeout 10 "$NBDIMG" map b
  rm hard
  ln -s b hard
  expect_error 1 'in the chain already' timeout 10 "$NBDIMG" map b
}

@test "folders, FIFOs, sockets and terminals are refused and do not hang" {
  mkdir folder
  mkfifo fifo
  start_nbdkit_socket
  expect_error 1 'directory' timeout 10 "$NBDIMG" info folder
  expect_error 1 'FIFO' timeout 10 "$NBDIMG" info fifo
  expect_error 1 'socket' timeout 10 "$NBDIMG" info "$SOCKET"
  expect_error 1 'character device' timeout 10 "$NBDIMG" info /dev/zero
}

start_nbdkit_socket () {
  start_server null 1M
}

@test "a backing name is relative to its image, not to the current folder" {
  need qemu-img qemu-io
  mkdir d d/e
  qemu-img create -q -f raw d/base 1M
  qemu-io -f raw -c 'write -P 7 0 64k' d/base >out
  qemu-img create -q -f qcow2 -b ../base -F raw d/e/top
  local d=$BATS_TEST_TMPDIR/d
  cd /
  "$NBDIMG" info "$d/e/top" | grep -F "actual path: $d/e/../base"
  "$NBDIMG" compare -f qcow2 -F raw "$d/e/top" "$d/base"
}

@test "json: names and NBD exports in images are followed as QEMU does" {
  need qemu-img qemu-io
  local name
  qemu-img create -q -f qcow2 base 1M
  qemu-io -c 'write -P 9 0 64k' base >out
  start_server file base
  local q='json:{"driver":"qcow2","file'
  for name in "$q"'":{"driver":"file","filename":"base"}}' \
      'json:{"file.filename":"base"}' \
      "$q.driver\":\"nbd\",\"file.path\":\"$SOCKET\"}" \
      "nbd+unix:///?socket=$SOCKET" "nbd:unix:$SOCKET"; do
    qemu-img create -q -f qcow2 -b "$name" -F qcow2 top 1M
    qemu-io -r -c 'read -P 9 0 64k' top | grep -q '^read'
    "$NBDIMG" compare top base
    "$NBDIMG" info top | grep -F "backing file: $name"
  done
}

@test "no name in an image starts a program or gives away a key" {
  need qemu-img strace
  local name
  echo secret >key
  local nbd='json:{"driver":"raw","file":{"driver":"nbd",'
  for name in "$nbd"'"command":["touch","made"]}}' \
      'https://localhost:1/x' 'ssh://localhost/x' \
      'nbds://localhost:1/?tls-psk-file=key' 'nbd+ssh://localhost/x'; do
    qemu-img create -q -u -f qcow2 -b "$name" -F raw top 1M
    expect_error 1 'is not followed' "$NBDIMG" map top
    strace -f -qq -e trace=execve,openat,connect -o trace "$NBDIMG" map top ||
      :
    [ "$(grep -c execve trace)" = 1 ]
    run ! grep -E '"key"|sin_port=htons\(1\)' trace
    "$NBDIMG" info top >out
    grep -qF 'backing file: ' out
  done
  [ ! -e made ]
}

# stranger IMAGE FILE [OPTION]...: an image whose data file is FILE, by an
# absolute path, which QEMU would write to without a word
stranger () {
  local there=$2
  qemu-img create -q -f qcow2 -o data_file="${there%/*}/new" "${@:3}" "$1" 1M
  rm "${there%/*}/new"
  sed -i "s|${there%/*}/new|$there|" "$1"
}

@test "an image makes nobody write into a file that is no data file" {
  need qemu-img nbdinfo
  mkdir home images
  local old
  for old in home images; do
    echo 'ssh-rsa AAAA me' >$old/key
    stranger images/$old.qcow2 "$PWD/$old/key"
    truncate -s 1M zero
    for command in "io -c flush" "convert -n -O qcow2 zero" "bench -c 1 -w"; do
      expect_error 1 'not written to' "$NBDIMG" $command images/$old.qcow2
    done
    expect_error 1 'not written to' "$NBDIMG" resize images/$old.qcow2 2M
    [ "$(cat $old/key)" = 'ssh-rsa AAAA me' ]
    # Reading is what it was, and a server only reads, also at the top of a
    # chain.
    "$NBDIMG" map images/$old.qcow2
    qemu-img create -q -f qcow2 base 1M
    stranger images/top "$PWD/$old/key" -b "$PWD/base" -F qcow2
    for image in images/$old.qcow2 images/top; do
      run nbdkit_env -U - "$PLUGIN" "$image" --run 'nbdinfo --json "$uri"'
      [[ $output == *'"is_read_only": true'* ]]
      [[ $output == *'not written to'* ]]
    done
  done
  # The user may mean it.
  "$NBDIMG" io -c 'write -P 1 0 4k' --image-opts \
    driver=qcow2,file.filename=images/home.qcow2,data-file.filename=home/key
  [ "$(peek home/key 0 2)" = 0101 ]
}

@test "a data file that lies elsewhere is warned of, unless it is the user's" {
  need qemu-img
  mkdir -p images/sub other
  # quiet COMMAND..., warns COMMAND...
  quiet () { run -0 --separate-stderr "$@" && [ -z "$stderr" ]; }
  warns () { run -0 --separate-stderr "$@" && [[ $stderr == *elsewhere* ]]; }
  local d
  for d in "$PWD/images/a" images/b "$PWD/images/sub/../c"; do
    qemu-img create -q -f qcow2 -o data_file="$d" images/here.qcow2 1M
    quiet "$NBDIMG" io -c 'write 0 4k' images/here.qcow2
    ln -sf images/here.qcow2 link
    quiet "$NBDIMG" io -c 'write 0 4k' link
  done
  qemu-img create -q -f qcow2 -o data_file="$PWD/other/d" images/away.qcow2 1M
  warns "$NBDIMG" io -c 'write 0 4k' images/away.qcow2
  quiet "$NBDIMG" io -r -c 'read 0 4k' images/away.qcow2
  quiet "$NBDIMG" map images/away.qcow2
  quiet "$NBDIMG" io -c 'write 0 4k' --image-opts \
    driver=qcow2,file.filename=images/away.qcow2,data-file.filename=other/d
  # A link to elsewhere is elsewhere.
  qemu-img create -q -f qcow2 -o data_file="$PWD/images/l" images/l.qcow2 1M
  mv images/l other/l
  ln -s ../other/l images/l
  warns "$NBDIMG" io -c 'write 0 4k' images/l.qcow2
  # Who makes an image names its data file.
  quiet "$NBDIMG" create -q -f qcow2 -o data_file="$PWD/other/e" \
    images/e.qcow2 1M
  quiet "$NBDIMG" convert -O qcow2 -o data_file="$PWD/other/f" \
    images/here.qcow2 images/f.qcow2
  warns "$NBDIMG" convert -n -O qcow2 images/here.qcow2 images/f.qcow2
}

@test "an untrusted image is served without what it names, or not at all" {
  need qemu-img nbdinfo
  qemu-img create -q -f raw base 1M
  qemu-img create -q -f qcow2 -b base -F raw top
  expect_error 1 'is not followed' nbdkit_env -U - "$PLUGIN" top \
    untrusted=1 --run 'true'
  nbdkit_env -U - "$PLUGIN" base untrusted=1 --run 'nbdinfo --size "$uri"'
  local backing=backing.driver=raw,backing.file.filename=base
  nbdkit_env -U - "$PLUGIN" untrusted=1 \
    image-opts=driver=qcow2,file.filename=top,$backing \
    --run 'nbdinfo --size "$uri"'
}

@test "a guest of a probed raw disk cannot make an image of it" {
  need qemu-img qemu-io
  truncate -s 1M disk
  qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw evil 1M
  head -c 512 evil >sector
  start_nbdkit disk
  run qemu-io -f raw -c 'write -s sector 0 512' "$URI"
  [[ $output == *'Operation not permitted'* ]]
  # Nor in pieces, nor beside other writes, which go through.
  head -c 4 sector >magic
  run nbdsh -u "$URI" -c '
h.pwrite (b"\0\0\0\3", 4)
h.pwrite (b"FI\xfb", 1)
h.pwrite (b"x" * 1024, 512)
try:
    h.pwrite (b"Q", 0)
except nbd.Error as e:
    print (e.errno)
h.pwrite (b"q", 0)
'
  [ "$output" = EPERM ] || fail "$output"
  stop_server
  [ "$(head -c 8 disk | od -An -tx1 | tr -d ' ')" = 714649fb00000003 ]
  start_nbdkit disk format=raw
  qemu-io -f raw -c 'write -s sector 0 512' "$URI"
}

@test "an image of a foreign format is named, and the way to read it works" {
  need qemu-img qemu-nbd
  local format
  for format in vmdk vhdx vpc parallels; do
    qemu-img create -q -f $format foreign 1M
    expect_error 1 "[ qemu-nbd -r -f $format foreign ]" "$NBDIMG" info foreign
    "$NBDIMG" info [ qemu-nbd -r -f $format foreign ] | grep 'file format: raw'
    "$NBDIMG" info -f raw foreign | grep 'file format: raw'
    expect_error 1 "$format" "$NBDIMG" info -f $format foreign
    rm -f foreign
  done
}

@test "dmg, bochs and cloop are named too; a dmg by its end and its name" {
  local format head
  for format in bochs cloop; do
    head='Bochs Virtual HD Image'
    [ $format = bochs ] || head=$'#!/bin/sh\n#V2.0 Format\nmodprobe cloop'
    { printf '%s' "$head" && head -c 4096 /dev/zero; } >foreign
    expect_error 1 "[ qemu-nbd -r -f $format foreign ]" "$NBDIMG" info foreign
  done
  truncate -s 1M disk.dmg
  "$NBDIMG" info disk.dmg | grep 'file format: raw'
  printf koly | dd of=disk.dmg bs=512 seek=2047 conv=notrunc status=none
  expect_error 1 "[ qemu-nbd -r -f dmg disk.dmg ]" "$NBDIMG" info disk.dmg
  cp disk.dmg disk
  "$NBDIMG" info disk | grep 'file format: raw'
}

@test "a format that is named wrongly is an error, not a guess" {
  truncate -s 1M disk
  expect_error 1 'not in qcow2 format' "$NBDIMG" info -f qcow2 disk
  expect_error 1 "Unknown driver 'nope'" "$NBDIMG" info -f nope disk
  expect_error 1 "Unknown protocol 'nope'" "$NBDIMG" info nope:disk
}
