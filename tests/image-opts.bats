# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154,SC2034,SC2030,SC2031

# Each command that takes an image, beside QEMU's: by a plain name, by json:, by
# --image-opts, with -U, with a secret, under QEMU's name; and what can be wrong
# in all that.

load lib
load peer
load encrypt

setup () {
  need qemu-img qemu-io qemu-nbd
  cd "$BATS_TEST_TMPDIR" || return 1
}

make_files () {
  mkdir files
  (
    cd files || exit
    qemu-img create -q raw.img 512k
    qemu-io -f raw -c 'write -q -P 1 64k 64k' raw.img
    qemu-img create -q -f qcow2 a.qcow2 512k
    qemu-io -c 'write -q -P 2 0 64k' -c 'write -q -z 128k 64k' a.qcow2
    qemu-img snapshot -c s1 a.qcow2
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
    qemu-io -c 'write -q -P 3 64k 64k' top.qcow2
    qemu-img create -q -f qcow2 bits.qcow2 512k
    qemu-img bitmap --add bits.qcow2 b0
  )
}

# ---- tables ----
#
# A line is a command; "%o" in it is the place of --image-opts, %a and %t are the
# images a.qcow2 and top.qcow2.

readers='
info %o %t
info %o --output=json --backing-chain %a
map %o %t
map %o --output=json %t
check %o %a
compare %o %a %t
convert %o -O raw %t o
convert %o -O qcow2 -l s1 %a o
dd %o if=%t of=o bs=64k
measure %o -O qcow2 %t
bench %o -c 4 -s 4k %t
snapshot %o -l %a
io -r %o -c "read -P 2 0 64k" %a'

writers='
amend %o -o refcount_bits=32 %a
bench %o -c 4 -w --pattern=5 -s 4k %a
bitmap %o --add --merge b0 -b %b %a b1
check %o -r all %a
commit %o %t
convert -n -O qcow2 raw.img %a
rebase %o -b raw.img -F raw %t
rebase %o -b "" %t
resize %o %a 1M
snapshot %o -c s2 %a
snapshot %o -a s1 %a
snapshot %o -d s1 %a
io %o -c "write -P 7 60k 8k" %t'

# name WAY FILE: as it stands in a line
name () {
  case $1 in
    plain) echo "$2" ;;
    json) echo "'json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\"," \
      "\"filename\":\"$2\"}}'" ;;
    dotted) echo "'json:{\"file.filename\":\"$2\"}'" ;;
    opts) echo "driver=qcow2,file.filename=$2" ;;
  esac
}

# by WAY [OPTION]: standard input, with the images named that way
by () {
  local line option=${2-}
  [ "$1" != opts ] || option="$option --image-opts"
  while IFS= read -r line; do
    [ -n "$line" ] || continue
    line=${line//%o/$option} line=${line//%a/$(name "$1" a.qcow2)}
    line=${line//%b/$(name "$1" bits.qcow2)}
    echo "${line//%t/$(name "$1" top.qcow2)}"
  done
}

# same ARG...: the same words, status, and content of all files
same () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@") f
  [ "$1" != io ] || theirs=(qemu-io "${@:2}")
  peer_run theirs ours
  peer_times "$BATS_TEST_TMPDIR"/.{our,their}.out
  sed -i 's/^Run completed in .*/TIME/' "$BATS_TEST_TMPDIR"/.{our,their}.out
  case $* in *--output=json*) sort_json ;; esac
  peer_same
  same_made
  for f in files/*; do
    f=${f#files/}
    cmp -s "theirs/$f" "ours/$f" && continue
    [ "$(check_status theirs "$f")" = "$(check_status ours "$f")" ] &&
      qemu-img compare -q "theirs/$f" "ours/$f" || peer_fail "another $f"
  done
}

sort_json () {
  local f
  for f in "$BATS_TEST_TMPDIR"/.{our,their}.out; do
    jq -S . "$f" >"$f.json" || peer_fail "no JSON"
    mv "$f.json" "$f"
  done
}

# ---- good names ----

@test "what reads an image takes a name, json: or --image-opts" {
  need jq
  make_files
  for way in plain json opts; do
    peer_lines same < <(by $way <<<"$readers")
  done
  # a name without a driver is probed; a new image may be over any of them
  by dotted >lines <<'END'
info %o %t
map %o %t
convert %o -O raw %t o
create -f qcow2 -F qcow2 -b %a o
END
  peer_lines same <lines
}

@test "what changes an image takes a name, json: or --image-opts" {
  make_files
  for way in plain json opts; do
    peer_lines same < <(by $way <<<"$writers")
  done
}

@test "convert writes to the image that --target-image-opts describes" {
  make_files
  peer_lines same <<'END'
convert -n --target-image-opts raw.img driver=qcow2,file.filename=a.qcow2
convert -n --target-image-opts top.qcow2 driver=raw,file.filename=raw.img
convert -n --target-image-opts a.qcow2 file.filename=raw.img
convert -n --target-image-opts raw.img file.filename=bits.qcow2,discard=unmap
convert -n --image-opts --target-image-opts driver=qcow2,file.filename=top.qcow2 driver=raw,file.driver=file,file.filename=raw.img
convert -n -O raw a.qcow2 'json:{"driver":"raw","file.filename":"raw.img"}'
convert --target-image-opts a.qcow2 driver=raw,file.filename=raw.img
convert -n --target-image-opts a.qcow2 driver=raw
convert -n --target-image-opts a.qcow2 driver=nope,file.filename=raw.img
convert -n --target-image-opts a.qcow2 driver=raw,file.filename=raw.img,bogus=1
convert -n --target-image-opts -O raw a.qcow2 driver=raw,file.filename=raw.img
END
}

# ---- bad names ----

# Nothing is changed: one copy of the files is enough.
same_here () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  [ "$1" != io ] || theirs=(qemu-io "${@:2}")
  peer_run files files
  peer_same
}

# parses_not ARG...: both say that this is no JSON, in words of their own
parses_not () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  [ "$1" != io ] || theirs=(qemu-io "${@:2}")
  peer_run files files
  peer_same_output
  grep -q "Could not parse the JSON options: .*at byte [0-9]*" .our.err ||
    peer_fail "it is not said what is wrong"
}

# each_command FUNCTION NAME: every command with NAME for the image
each_command () {
  local line
  while IFS= read -r line; do
    eval "$1 $line"
  done < <(sed '/^$/d; /%o/!d' <<<"$readers$writers" |
    sed "s|%[abt]|'$2'|g; s|%o|${3-}|")
}

@test "a bad description of an image is refused by every command, as by QEMU" {
  make_files
  cp -r files before
  # not asked here for what they do without an image or name a second one
  readers=$(sed '/^io/d; /-l s1/d' <<<"$readers")
  writers=$(sed '/^io/d; s/-b %b/-b bits.qcow2/' <<<"$writers")
  each_command same_here driver=nope,file.filename=a.qcow2 --image-opts
  each_command same_here driver=qcow2,file.filename=a.qcow2,x=1 --image-opts
  each_command same_here 'json:{"driver":"qcow2"}'
  each_command parses_not 'json:{"driver":"qcow2",'
  # snapshot has no -f in QEMU 7.2
  readers=$(sed '/^snap/d' <<<"$readers") writers=$(sed '/^snap/d' <<<"$writers")
  each_command same_here driver=qcow2,file.filename=a.qcow2 '-f qcow2 --image-opts'
  while read -r line; do
    eval "same_here $line"
  done <<'END'
map --image-opts driver=qcow2,file.filename=a.qcow2,file.x=1
map --image-opts driver=qcow2,file.driver=nope,file.filename=a.qcow2
map --image-opts driver=qcow2
map --image-opts driver=qcow2,file.filename=
map --image-opts driver=qcow2,file.driver=file
map --image-opts driver=qcow2,file=a.qcow2
resize --image-opts driver=qcow2,file.filename=nope 1M
check --image-opts ''
check 'json:{}'
check 'json:[]'
check 'json:{"driver":"qcow2","file.filename":"a.qcow2","x":1}'
check 'json:{"driver":"qcow2","file":{"driver":"file"}}'
END
  diff -r before files
}

# ---- -U ----

# held ARG...: the lock is in the way, and it is said whose it is
held () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  [ "$1" != io ] || theirs=(qemu-io "${@:2}")
  peer_run files files
  peer_same_output
  grep -q "Failed to get .*lock: Is another process.*process $SERVER_PID" \
    .our.err || peer_fail "it is not said who holds the lock"
}

same_read () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  [ "$1" != io ] || theirs=(qemu-io "${@:2}")
  peer_run files files
  peer_times .{our,their}.out
  sed -i 's/^Run completed in .*/TIME/' .{our,their}.out
  peer_same
}

@test "-U reads an image that another program writes to; without it nobody does" {
  make_files
  (cd files && start_qemu_nbd a.qcow2 && echo "$SERVER_PID" >../pid)
  SERVER_PID=$(cat pid)
  while read -r line; do
    eval "held ${line/-U/}"
    eval "same_read $line"
    rm -f files/o
  done <<'END'
map -U a.qcow2
map -U --image-opts driver=qcow2,file.filename=top.qcow2
check -U a.qcow2
compare -U a.qcow2 top.qcow2
convert -U a.qcow2 o
convert -U --image-opts -O qcow2 driver=qcow2,file.filename=top.qcow2 o
dd -U if=a.qcow2 of=o
measure -U -O raw 'json:{"driver":"qcow2","file.filename":"a.qcow2"}'
bench -U -c 2 a.qcow2
snapshot -U -l a.qcow2
io -r -U -c 'read 0 512' a.qcow2
io -c 'open -r -U a.qcow2' -c 'read 0 512'
END
  # info never minds a writer
  same_read info -U --backing-chain top.qcow2
  "$NBDIMG" info --backing-chain files/top.qcow2
  # and rebase -U is about the image alone, as in QEMU
  held rebase -U -b '' top.qcow2
  same_read rebase -U -u -b '' top.qcow2
  stop_server
}

@test "-U is refused where something is to be written, or where it is no option" {
  make_files
  cp -r files before
  while read -r line; do
    eval "same_here $line"
  done <<'END'
check -U -r all a.qcow2
check -U -r leaks --image-opts driver=qcow2,file.filename=a.qcow2
bench -U -w -c 2 a.qcow2
snapshot -U -c s2 a.qcow2
snapshot -U -a s1 a.qcow2
snapshot -U -d s1 --image-opts driver=qcow2,file.filename=a.qcow2
io -U -c 'read 0 512' a.qcow2
io -c 'open -U a.qcow2' -c 'read 0 512'
amend -U -o lazy_refcounts=on a.qcow2
bitmap -U --add a.qcow2 b1
commit -U top.qcow2
resize -U a.qcow2 2M
END
  "$NBDIMG" create -U -f qcow2 files/o 1M && fail "create -U"
  diff -r before files
}

# ---- secrets ----

enc=driver=qcow2,encrypt.key-secret=s,file.filename=enc.qcow2
enc_top=driver=qcow2,file.filename=etop.qcow2,backing.encrypt.key-secret=s
enc_json='json:{"driver":"qcow2","encrypt":{"key-secret":"s"},"file.filename":"enc.qcow2"}'

# Both encrypted disks have the same content.
same_secret () {
  same_words "$@"
  qemu-img compare -q "${SECRET[@]/file=/file=files/}" --image-opts \
    "${enc/enc./theirs/enc.}" "${enc/enc./ours/enc.}" || peer_fail "another disk"
}

@test "a secret opens an encrypted image for every command" {
  make_secret
  make_files
  our_create -f qcow2 \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 \
    files/enc.qcow2 512k
  our_create -u -f qcow2 -b enc.qcow2 -F qcow2 files/etop.qcow2 512k
  cp key files/
  (cd files && qemu-io "${SECRET[@]}" -c 'write -q -P 6 32k 64k' --image-opts $enc)
  while read -r line; do
    line=${line/-S/-J --image-opts}
    peer_lines same_secret <<<"${line/-J/--object secret,id=s,file=key}"
  done <<'END'
check -S $enc
check -J "$enc_json"
compare -S $enc driver=raw,file.filename=raw.img
convert -S $enc o
convert -J "$enc_json" o
convert -J --target-image-opts -n raw.img $enc
dd -S if=$enc of=o bs=64k
map -S $enc
measure -S -O qcow2 $enc
resize -S $enc 1M
amend -S -o lazy_refcounts=on $enc
snapshot -S -c s2 $enc
snapshot -S -l $enc
bitmap -S --add $enc b1
commit -S $enc_top
rebase -S -b '' $enc_top
convert --object secret,id=s,data=x --object secret,data=y raw.img o
convert --object secret,id=s raw.img o
convert --object secret,id=s,data=x,bogus=1 raw.img o
map --object secret,id=s,file=key --image-opts encrypt.key-secret=s,file.filename=enc.qcow2
END
  peer_lines 'own_words "is given twice"' <<'END'
convert --object secret,id=s,data=x --object secret,id=s,data=y raw.img o
END
}

# ---- each option ----

@test "options of an image that was probed are those of its format" {
  make_files
  peer_lines same <<'END'
map --image-opts file.filename=a.qcow2,lazy-refcounts=off,cache-size=1M
map --image-opts driver=qcow2,file.filename=a.qcow2,lazy-refcounts=on
map --image-opts driver=qcow2,file.filename=a.qcow2,overlap-check=none
map --image-opts driver=qcow2,file.filename=a.qcow2,overlap-check=constant
map --image-opts driver=qcow2,file.filename=a.qcow2,overlap-check=cached
map --image-opts file.filename=a.qcow2,offset=512
map --image-opts file.filename=a.qcow2,bogus=1
map --image-opts file.filename=raw.img,offset=512,size=64k
map --image-opts file.filename=raw.img,lazy-refcounts=off
convert --image-opts file.filename=raw.img,offset=64k o
map --image-opts driver=qcow2,file.filename=top.qcow2,backing.lazy-refcounts=off
END
  peer_lines "own_words 'Cannot resize fixed-size raw disks'" <<'END'
resize --image-opts driver=raw,size=64k,file.filename=raw.img 128k
END
  peer_lines "own_words \"does not support the option 'bogus'\"" <<'END'
map --image-opts driver=qcow2,file.filename=top.qcow2,backing.bogus=1
END
  expect_error 1 "does not support the option 'bogus'" "$NBDIMG" create -f qcow2 \
    'json:{"file.filename":"o","bogus":1}' 1M
  [ ! -e o ]
}

@test "force-share=on is -U" {
  make_files
  (cd files && start_qemu_nbd a.qcow2 && echo "$SERVER_PID" >../pid)
  SERVER_PID=$(cat pid)
  same_read check --image-opts driver=qcow2,file.filename=a.qcow2,force-share=on
  # what lies below is shared too
  same_read map --image-opts file.filename=top.qcow2,force-share=on
  same_read map 'json:{"file.filename":"top.qcow2","backing.force-share":true}'
  held map --image-opts file.filename=top.qcow2,force-share=off
  same_here snapshot -c x --image-opts file.filename=a.qcow2,force-share=on
  expect_error 1 "set it for the format above" "$NBDIMG" map --image-opts \
    driver=qcow2,file.filename=files/a.qcow2,file.force-share=on
  stop_server
}

@test "a filename that stands in options is a path, whatever it looks like" {
  make_files
  cp files/raw.img files/file:x
  peer_lines same <<'END'
map --image-opts driver=raw,file.filename=file:x
map --image-opts driver=raw,file.filename=nbd://localhost/x
map --image-opts driver=raw,file.driver=file,file.filename=file:x
map --image-opts driver=raw,file.filename=file:raw.img
map 'json:{"driver":"raw","file":{"filename":"file:x"}}'
END
}

@test "JSON may have single quotes, null, and objects in any order" {
  make_files
  (cd files && qemu-img create -q -f qcow2 -o data_file=d ext.qcow2 512k &&
    cp raw.img "q'\"\\.img")
  peer_lines same <<'END'
map "json:{'driver':'qcow2','file':{'driver':'file','filename':'a.qcow2'}}"
map "json:{'driver':\"qcow2\",'file.filename':\"a.qcow2\"}"
map "json:{'driver':'raw','file.filename':'q\\'\"\\\\.img'}"
map "json:{'driver':'raw','file.filename':\"q'\\\"\\\\.img\"}"
map 'json:{"file.filename":"r\u0061w.img"}'
map 'json: {"file.filename" : "raw.img"} '
map 'json:{"driver":"raw","file.driver":"file","file":{"filename":"raw.img"}}'
map 'json:{"driver":"raw","file":{"driver":"file"},"file.filename":"raw.img"}'
map 'json:{"driver":"raw","file.filename":"raw.img","backing":null}'
map 'json:{"driver":"raw","file.filename":"raw.img","backing":{"driver":"raw","file.filename":"a.qcow2"}}'
map 'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":null}'
map 'json:{"driver":"qcow2","file.filename":"ext.qcow2","data-file":null}'
map 'json:{"driver":"raw","file":null}'
map 'json:{"driver":"raw","file":{}}'
END
  for bad in "json:{'driver':'raw" "json:{'driver\\" "json:'" 'json:"\'; do
    parses_not map "$bad"
  done
}

@test "names of nodes are checked" {
  make_files
  peer_lines same <<'END'
map --image-opts file.filename=a.qcow2,node-name=a-1_b.c,file.node-name=b
map --image-opts file.filename=a.qcow2,node-name=a,file.node-name=a
map --image-opts file.filename=top.qcow2,node-name=a,backing.node-name=b
map --image-opts file.filename=a.qcow2,node-name=a/b
map --image-opts file.filename=a.qcow2,node-name=1
map --image-opts file.filename=a.qcow2,node-name=
map --image-opts file.filename=a.qcow2,node-name=abcdefghijabcdefghijabcdefghija
map --image-opts file.filename=a.qcow2,node-name=abcdefghijabcdefghijabcdefghijab
END
}

@test "options that say what is so anyway are taken" {
  make_files
  peer_lines same <<'END'
map --image-opts file.filename=a.qcow2,auto-read-only=on,file.auto-read-only=on
map --image-opts file.filename=a.qcow2,auto-read-only=off
resize --image-opts file.filename=a.qcow2,auto-read-only=on 1M
map --image-opts file.filename=a.qcow2,file.driver=file,file.aio=threads
commit --image-opts file.filename=top.qcow2,backing=
END
  expect_error 1 "aio=io_uring is invalid or not built" "$NBDIMG" map \
    --image-opts file.filename=files/a.qcow2,file.driver=file,file.aio=io_uring
}

@test "another backing file has the format of the one that it replaces" {
  make_files
  (cd files && qemu-img create -q -f qcow2 -b raw.img -F raw rtop.qcow2)
  peer_lines same <<'END'
map --image-opts file.filename=rtop.qcow2,backing.file.filename=a.qcow2
convert --image-opts file.filename=rtop.qcow2,backing.file.filename=a.qcow2 o
map --image-opts file.filename=top.qcow2,backing.file.filename=bits.qcow2
map --image-opts file.filename=top.qcow2,backing.driver=raw,backing.file.filename=a.qcow2
map --image-opts file.filename=top.qcow2,backing.driver=raw
map --image-opts file.filename=top.qcow2,backing.driver=nope
map --image-opts file.filename=top.qcow2,backing=nope
map --image-opts file.filename=top.qcow2,backing.driver=raw,backing.offset=512,backing.file.filename=raw.img
END
  peer_lines 'own_words "top.qcow2: Could not open backing file: raw.img: Image is not in qcow2"' <<'END'
map --image-opts file.filename=top.qcow2,backing.file.filename=raw.img
END
}

@test "options for the file of a backing file leave its name to the image" {
  make_files
  peer_lines same <<'END'
map --image-opts file.filename=top.qcow2,backing.file.locking=off
map --image-opts file.filename=top.qcow2,backing.file.driver=file,backing.file.read-only=on
map 'json:{"file.filename":"top.qcow2","backing":{"file":{"locking":"on"}}}'
commit --image-opts file.filename=top.qcow2,backing.file.node-name=low
rebase -b "" --image-opts file.filename=top.qcow2,backing.file.cache.direct=on
map --image-opts file.filename=top.qcow2,backing.file.bogus=1
END
  peer_lines 'own_words "it can be: auto|on|off"' <<'END'
map --image-opts file.filename=top.qcow2,backing.file.locking=maybe
END
  peer_lines 'own_words "and the image has no backing file"' <<'END'
map --image-opts file.filename=a.qcow2,backing.file.locking=off
END
  (cd files && qemu-nbd -k "$PWD/nbd.sock" --fork --pid-file=pid -t -r a.qcow2)
  qemu-img create -q -f qcow2 -F raw \
    -b "nbd+unix:///?socket=$PWD/files/nbd.sock" far.qcow2
  "$NBDIMG" compare --image-opts file.filename=files/a.qcow2,force-share=on \
    file.filename=far.qcow2,backing.file.node-name=far,backing.file.driver=nbd
  kill "$(cat files/pid)"
  expect_error 1 "Block protocol 'nbd' doesn't support the option 'locking'" \
    "$NBDIMG" map --image-opts file.filename=far.qcow2,backing.file.locking=off
}

@test "cache.no-flush=on allows flushes to be left out, and forbids none" {
  make_files
  peer_lines same <<'END'
io --image-opts -c "write -q -P 5 0 64k" -c flush file.filename=a.qcow2,cache.direct=on,cache.no-flush=on
io --image-opts -t unsafe -c "write -q -P 5 0 64k" file.filename=a.qcow2,cache.direct=on
END
}

@test "what differs from QEMU on purpose is said" {
  make_files
  # QEMU 7.2 reads other bytes
  "$NBDIMG" convert --image-opts driver=raw,offset=1000,file.filename=files/raw.img o
  cmp o <(tail -c +1001 files/raw.img; head -c 488 /dev/zero)
  peer_lines 'own_status 1 0 top.qcow2' <<'END'
map --image-opts file.filename=top.qcow2,backing.driver=null-co
END
  peer_lines 'own_status 0 1 "read-only=on forbids"' <<'END'
commit --image-opts driver=qcow2,file.filename=top.qcow2,backing.read-only=on
END
  peer_lines 'own_status 0 1 "must be a"' <<'END'
map 'json:{"driver":1,"file.filename":"a.qcow2"}'
map 'json:{"driver":"raw","offset":null,"file.filename":"a.qcow2"}'
END
  over=backing.driver=raw,backing.file.filename=raw.img
  peer_lines 'own_status 1 0 raw.img' <<END
info --image-opts driver=qcow2,file.filename=top.qcow2,$over
info --backing-chain --image-opts driver=qcow2,file.filename=top.qcow2,$over
END
  cd files
  # the raw disk is not that of the backing file that the image names
  disk=driver=qcow2,file.filename=top.qcow2,$over
  "$NBDIMG" convert --image-opts "$disk" ../disk.raw
  "$NBDIMG" rebase -b raw.img -F raw --image-opts "$disk"
  qemu-img compare -F raw top.qcow2 ../disk.raw
  [[ $(qemu-img info top.qcow2) == *"backing file: raw.img"* ]]
  cd ..
  theirs=(qemu-img bitmap --add --image-opts "$disk" b)
  ours=("$NBDIMG" "${theirs[@]:1}")
  peer_run files files
  [ $their_status = 1 ] && [ $our_status = 0 ]
  [[ $(qemu-img info files/top.qcow2) == *"name: b"* ]]
  peer_lines 'own_status 1 0 "No errors"' <<END
check --image-opts file.filename=a.qcow2,cache.writeback=off
END
  peer_lines 'own_status 0 1 "is given twice"' <<'END'
check --image-opts driver=qcow2,driver=qcow2,file.filename=a.qcow2
END
  peer_lines 'own_status 0 1 "is not key=value"' <<'END'
check --image-opts driver=qcow2,read-only,file.filename=a.qcow2
END
  peer_lines 'own_status 0 1 "a format over another format"' <<'END'
map --image-opts driver=raw,file.driver=qcow2,file.file.filename=a.qcow2
END
  peer_lines 'own_status 0 1 "is not built"' <<'END'
map --image-opts file.filename=a.qcow2,cache-clean-interval=9
map --image-opts driver=qcow2,file.filename=a.qcow2,l2-cache-entry-size=4k
map --image-opts driver=qcow2,file.filename=a.qcow2,pass-discard-other=on
END
  peer_lines 'own_status 0 1 "Unknown driver"' <<'END'
map --image-opts driver=null-aio,size=1M
END
}

# ---- QEMU's name ----

@test "under the name qemu-img each command signs its messages with it" {
  make_files
  ln -s "$NBDIMG" qemu-img
  cp qemu-img files/
  cd files
  while read -r line; do
    eval "qemu-img $line" >../theirs.out 2>&1 </dev/null && fail "$line"
    eval "./qemu-img $line" >../ours.out 2>&1 </dev/null && fail "$line"
    diff ../theirs.out ../ours.out
    grep -q '^qemu-img: ' ../ours.out
  done < <(
    sed '/^$/d; /^io/d; s/%o//; s/%[at]/nope/g; s/%b/bits.qcow2/' \
      <<<"$readers$writers")
}
