# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# LUKS version 1, alone and in qcow2; QEMU and cryptsetup are the other side.
# tests/encrypt.bats has secrets and the legacy encryption.

load lib
load encrypt

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  make_secret
}

# Of the ciphers without nettle only AES in CBC and XTS are left.
luks_ciphers () {
  printf '%s\n' cipher-alg=aes-256 \
    cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv
  [ "$config_have_nettle" = yes ] || return 0
  printf '%s\n' cipher-alg=serpent-256 \
    cipher-alg=twofish-128,cipher-mode=cbc,hash-alg=ripemd160 \
    cipher-alg=cast5-128,cipher-mode=cbc,hash-alg=sha512 \
    cipher-mode=ctr,hash-alg=sha1 cipher-mode=ecb,ivgen-alg=plain
}

# The same in a list for qcow2.
prefixed () { sed 's/\([^,]*\)/encrypt.\1/g' <<<"$1"; }

# new_luks CREATE NAME [OPTION] [SIZE]: by qemu_create or our_create
new_luks () {
  "$1" -f luks -o "key-secret=s,iter-time=10${3:+,$3}" "$2" "${4:-1M}"
}
new_qcow2 () {
  "$1" -f qcow2 -o \
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10${3:+,$3}" \
    "$2" "${4:-1M}"
}

# same_info FILE: what is printed, and the JSON, but for space that the two
# programs measure a moment apart
same_info () {
  "$NBDIMG" info "$1" >info.ours
  qemu-img info "$1" >info.theirs
  diff info.theirs info.ours
  "$NBDIMG" info --output=json "$1" | jq -S . >json.ours
  qemu-img info --output=json "$1" | jq -S . >json.theirs
  diff json.theirs json.ours
}

# ---- both directions ----

@test "LUKS images of QEMU and ours are read and written by both" {
  need qemu-img qemu-io
  luks_key
  local o f=0
  for o in $(luks_ciphers); do
    new_luks our_create "ours$f" "$o"
    both_ways "ours$f"
    same_info "ours$f"
    f=$((f + 1))
  done
  # One by QEMU, since it takes up to 10 s to find its iterations.
  o=$(luks_ciphers | sed -n '3p')
  new_luks qemu_create theirs "$o"
  both_ways theirs
  same_info theirs
}

@test "LUKS in qcow2: images of QEMU and ours are read and written by both" {
  need qemu-img qemu-io
  qcow2_key
  local o p f=0
  for o in $(luks_ciphers); do
    case $f in
    0) p=,cluster_size=512 ;;
    1) p=,compat=0.10 ;;
    2) p=,extended_l2=on ;;
    *) p= ;;
    esac
    new_qcow2 our_create "ours$f" "$(prefixed "$o")$p"
    both_ways "ours$f"
    same_info "ours$f"
    qemu-img check "${SECRET[@]}" --image-opts "$(opts "ours$f")"
    f=$((f + 1))
  done
  o=$(luks_ciphers | sed -n '2p')
  new_qcow2 qemu_create theirs "$(prefixed "$o")"
  both_ways theirs
  same_info theirs
  "$NBDIMG" check theirs
}

@test "convert to luks writes all of it, also where the source is empty" {
  need qemu-img
  luks_key
  random_image raw 3M 11
  "$NBDIMG" convert "${SECRET[@]}" -O luks -o key-secret=s,iter-time=10 raw disk
  same_as_raw disk raw
  "$NBDIMG" convert "${SECRET[@]}" --image-opts -O raw "$(opts disk)" back
  cmp raw back
  qcow2_key
  "$NBDIMG" convert "${SECRET[@]}" -O qcow2 -o \
    encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 raw disk2
  same_as_raw disk2 raw
}

@test "check of luks is not supported (63), map tells of no place" {
  luks_key
  new_luks our_create disk
  run "$NBDIMG" check disk
  [ "$status" = 63 ]
  "$NBDIMG" map "${SECRET[@]}" --output=json --image-opts "$(opts disk)" >map
  jq -e 'length == 1 and .[0].data and (.[0].zero | not) and
    (.[0] | has("offset") | not)' map
  "$NBDIMG" io "${SECRET[@]}" -r -c info --image-opts "$(opts disk)" >info
  grep -qx 'cluster size: 0 bytes' info
}

# ---- cryptsetup ----

@test "cryptsetup opens what we make" {
  need cryptsetup
  local o f=0
  for o in $(luks_ciphers); do
    [[ $o != *ecb* ]] || continue       # "ecb-plain" is QEMU's alone
    new_luks our_create "d$f" "$o"
    cryptsetup isLuks --type luks1 "d$f"
    cryptsetup open --test-passphrase --type luks1 --key-file key "d$f" ||
      [[ $o == *cast5* || $o == *twofish* || $o == *serpent* ]] ||
      fail "$o: cryptsetup does not open it"
    f=$((f + 1))
  done
  cryptsetup luksDump d0 | grep -Eq 'Cipher mode:[[:space:]]*xts-plain64'
  printf wrong >wrong
  run cryptsetup open --test-passphrase --type luks1 --key-file wrong d0
  [ "$status" = 2 ]
}

@test "we open what cryptsetup makes, with its slots and sizes" {
  need cryptsetup qemu-io
  luks_key
  local cipher size
  while read -r cipher size; do
    rm -f disk
    truncate -s 4M disk
    cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 \
      --cipher "$cipher" --key-size "$size" disk key
    printf other >other
    cryptsetup luksAddKey -q --pbkdf-force-iterations 1000 --key-file key \
      disk other
    ours_io disk 'write -P 5 1000 3000' 'read -P 5 1000 3000'
    [ "$size" = 192 ] || theirs_io disk 'read -P 5 1000 3000'
    "$NBDIMG" io --object secret,id=s,file=other -r -c 'read -P 5 1000 3000' \
      --image-opts "$(opts disk)" >out
    run ! grep -q failed out
  done <<'END'
aes-xts-plain64 512
aes-xts-plain64 256
aes-cbc-essiv:sha256 256
aes-cbc-plain 192
END
}

@test "a detached header of cryptsetup's opens its disk" {
  need cryptsetup
  truncate -s 3M hdr disk
  cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 \
    --header hdr disk key
  local o=driver=luks,key-secret=s,file.filename=disk,header.filename=hdr
  "$NBDIMG" io "${SECRET[@]}" -c 'write -P 5 1000 3000' -c 'write -P 6 2M 1M' \
    --image-opts "$o"
  "$NBDIMG" io "${SECRET[@]}" -c 'read -P 5 1000 3000' -c 'read -P 6 2M 1M' \
    --image-opts "$o" >out
  run ! grep -q failed out
  "$NBDIMG" info --image-opts "$o" | grep -q '^virtual size: 3 MiB'
  # Behind a copy of the header, where QEMU finds it, the disk is the same.
  truncate -s 2068480 hdr
  poke hdr 104 00000fc8
  cat hdr disk >whole
  qemu-io "${SECRET[@]}" -c 'read -P 5 1000 3000' -c 'read -P 6 2M 1M' \
    --image-opts driver=luks,key-secret=s,file.filename=whole >out
  run ! grep -q failed out
  expect_error 1 "does not support the option 'header'" "$NBDIMG" info \
    --image-opts driver=qcow2,file.filename=disk,header.filename=hdr
  expect_error 1 "No such file" "$NBDIMG" info \
    --image-opts driver=luks,file.filename=no,header.filename=hdr
}

# ---- refusals, each by its own name ----

@test "wrong password, missing secret, no slot: each its own error" {
  luks_key
  new_luks our_create disk
  printf wrong >wrong
  expect_error 1 "Invalid password, cannot unlock any keyslot" "$NBDIMG" map \
    --object secret,id=s,file=wrong --image-opts "$(opts disk)"
  expect_error 1 "No secret with id 's'" "$NBDIMG" map --image-opts \
    "$(opts disk)"
  expect_error 1 "'key-secret' is required" "$NBDIMG" io -c 'read 0 1k' disk
  expect_error 1 "'key-secret' is required" our_create -f luks none 1M
  expect_error 1 "does not support the option 'encrypt'" "$NBDIMG" map \
    --image-opts driver=luks,file.filename=disk,encrypt.key-secret=s
  poke disk 208 0000dead
  expect_error 1 "no key slot is active" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk)"
  [ ! -e none ]
}

@test "options of create that do not fit are refused before the file is made" {
  while IFS='|' read -r options text; do
    expect_error 1 "$text" our_create -f luks -o "key-secret=s,$options" o 1M
    [ ! -e o ] || fail "$options: a file was left"
  done <<'END'
cipher-alg=foo|'cipher-alg' does not accept value 'foo'
cipher-alg=3des|Algorithm '3des' not supported
cipher-mode=gcm|'cipher-mode' does not accept value 'gcm'
ivgen-alg=foo|'ivgen-alg' does not accept value 'foo'
hash-alg=foo|'hash-alg' does not accept value 'foo'
ivgen-hash-alg=foo|'ivgen-hash-alg' does not accept value 'foo'
cipher-alg=cast5-128|Unsupported cipher mode xts
cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha512|essiv:sha512
preallocation=some|Unsupported preallocation mode: some
iter-time=99999999999|iter-time
END
}

@test "preallocation takes the space of a luks disk, by create and by resize" {
  need qemu-img
  luks_key
  local p used mode
  for p in off metadata falloc full; do
    new_luks our_create $p preallocation=$p 4M
    qemu-img info "${SECRET[@]}" --image-opts "$(opts $p)" |
      grep 'virtual size: 4 MiB'
    used=$(stat -c %b $p)
    case $p in
    falloc|full) [ "$used" -ge 8192 ] ;;
    *) [ "$used" -lt 8192 ] ;;
    esac
    expect_error 1 "" "$NBDIMG" resize "${SECRET[@]}" --preallocation=metadata \
      --image-opts "$(opts $p)" +1M
    [ "$(stat -c %b $p)" = "$used" ]
    for mode in falloc full; do
      "$NBDIMG" resize -q "${SECRET[@]}" --preallocation=$mode --image-opts \
        "$(opts $p)" +1M
    done
    [ $(($(stat -c %b $p) - used)) -ge 4096 ]
    both_ways $p
  done
}

# Offsets: cipher 8, mode 40, hash 72, payload 104, key bytes 108, digest's
# iterations 164, slot i at 208 + 48 i: state, iterations, salt, offset, stripes.
hostile='
version-2             6 0002               LUKS version 2
no-cipher             8 666f6f00           cipher .foo. is not supported
no-mode               40 666f6f00          cipher mode .foo. is not supported
no-ivgen              43 2d666f6f00        IV generator .foo. is not supported
no-hash               72 666f6f00          hash .foo. is not supported
name-without-end      8 6161616161616161616161616161616161616161616161616161616161616161 not NUL terminated
name-with-escape      8 1b5b326a00         has a byte 0x1b
payload-behind-end    104 7fffffff         behind the end of the file
payload-in-header     104 00000000         payload offset 0
payload-over-slots    104 00000010         overlapping with the encrypted payload
key-of-0-bytes        108 00000000         a key of 0 bytes
key-of-33-bytes       108 00000021         has no keys of 33 bytes
key-of-4-gib          108 ffffffff         a key of 4294967295 bytes
digest-iterations-0   164 00000000         iteration count is zero
digest-iterations-max 164 ffffffff         asks for 4294967295 iterations
state-unknown         256 12345678         neither active nor inactive
iterations-0          212 00000000         iteration count is zero
iterations-max        212 ffffffff         asks for 4294967295 iterations
iterations-over-cap   212 01000001         asks for 16777217 iterations
material-in-header    248 00000001         overlapping with the LUKS header
material-far-away     248 fffffff0         overlapping with the encrypted payload
slots-overlap         296 00000009         overlapping in the header
stripes-0             252 00000000         stripes 0 != 4000
stripes-max           252 ffffffff         stripes 4294967295 != 4000
stripes-unused-slot   300 00000fa1         stripes 4001 != 4000
'

@test "hostile LUKS headers: an error that says what, at once, in little memory" {
  luks_key
  new_luks our_create good
  local name offset hex text
  while read -r name offset hex text; do
    [ -n "$name" ] || continue
    cp good disk
    poke disk "$offset" "$hex"
    run --separate-stderr bash -c 'ulimit -v 1000000; exec timeout 2 "$@"' - \
      "$NBDIMG" map "${SECRET[@]}" --image-opts "$(opts disk)"
    [ "$status" = 1 ] || fail "$name: status $status: $stderr"
    [[ $stderr =~ $text ]] || fail "$name: $stderr"
    run bash -c 'ulimit -v 1000000; exec timeout 2 "$@"' - \
      "$NBDIMG" info disk
    [ "$status" -le 1 ] || fail "$name: info: status $status"
  done <<<"$hostile"
  truncate -s 300000 good
  expect_error 1 "behind the end of the file" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts good)"
  truncate -s 400 good
  expect_error 1 "no room" "$NBDIMG" info -f luks good
}

@test "hostile LUKS headers in qcow2" {
  qcow2_key
  new_qcow2 our_create good
  local at
  at=$((0x$(xxd -p -s 112 -l 4096 good | tr -d '\n' |
    sed 's/.*0537be7700000010\(.\{16\}\).*/\1/')))
  [ "$(xxd -p -s $at -l 6 good)" = 4c554b53babe ]
  cp good disk
  poke disk $((at + 212)) ffffffff
  expect_error 1 "asks for 4294967295 iterations" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk)"
  cp good disk
  poke disk $at 00
  expect_error 1 "not in LUKS format" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk)"
  "$NBDIMG" info disk 2>&1 | grep 'not in LUKS format'
  while read -r offset hex text; do
    cp good disk
    poke disk "$offset" "$hex"
    expect_error 1 "$text" "$NBDIMG" info disk
  done <<'END'
32 00000001 only expected with LUKS encryption method
32 00000003 Unsupported encryption method
120 0000000000000000 Encryption header offset
120 0000000000000200 Encryption header offset
120 7ffffffffff00000 Encryption header offset
128 0000000000000000 can have 1 to
128 ffffffffffffffff can have 1 to
112 00000001 CRYPTO header extension not found
END
  cp good disk
  poke disk 120 0000000040000000
  expect_error 1 "behind the end of the file" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk)"
}

@test "max-iterations sets the limit of what a header may ask for" {
  luks_key
  new_luks our_create disk "" 1M
  expect_error 1 "max-iterations" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk),max-iterations=999"
  "$NBDIMG" map "${SECRET[@]}" --output=json --image-opts \
    "$(opts disk),max-iterations=16777216"
  qcow2_key
  new_qcow2 our_create disk2
  expect_error 1 "max-iterations" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts disk2),encrypt.max-iterations=999"
}

# Minutes of PBKDF2 are within the limit; this is hours.
@test "Ctrl-C ends a command that derives a key" {
  luks_key
  new_luks our_create disk
  qemu-img create -q -f raw raw 1M
  poke disk 212 ffffffff
  local o command
  o=$(opts disk),max-iterations=4294967295
  catches () {
    local caught
    caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$STARTED_PID/status")
    [ -n "$caught" ] && (( 0x$caught & 0x4000 ))
  }
  for command in map "compare $o" "convert -n --target-image-opts \
      driver=raw,file.filename=raw"; do
    # shellcheck disable=SC2086
    start "$NBDIMG" $command "${SECRET[@]}" --image-opts "$o"
    poll 10 catches
    kill -TERM "$STARTED_PID"
    poll 10 not_running "$STARTED_PID" || fail "$command goes on"
  done
}

# ---- the encryption header is part of the image ----

@test "check counts the encryption header, and notices what lies over it" {
  qcow2_key
  new_qcow2 our_create disk cluster_size=4k
  "$NBDIMG" check disk
  ours_io disk 'write -P 1 0 4k'
  local at l2
  at=$(xxd -p -s 120 -l 8 disk)
  l2=$((0x$(xxd -p -s $((0x$(xxd -p -s 40 -l 8 disk))) -l 8 disk) &
    0xfffffffffffe00))
  poke disk $l2 "8${at:1}"
  run "$NBDIMG" check disk
  [ "$status" = 2 ]
  [[ $output == *"encryption header"* ]]
}

# ---- amend: key slots ----

# amend_keys OPTIONS [ARGUMENT]...: with the secrets s (the disk's) and t ("other")
amend_keys () {
  local o=$1
  shift
  "$NBDIMG" amend "${SECRET[@]}" --object secret,id=t,data=other "$@" -o "$o" \
    --image-opts "$(opts disk)"
}
# does PASSPHRASE open disk, for us and for QEMU?
opened_by () {
  "$NBDIMG" map --object "secret,id=s,data=$1" --output=json --image-opts \
    "$(opts disk)" >map &&
    qemu-img map --object "secret,id=s,data=$1" --output=json --image-opts \
      "$(opts disk)" >map
}
active_slots () {
  qemu-img info --output=json disk | jq -c '[.. | .slots? // empty |
    .[] | .active] | map(if . then 1 else 0 end)'
}

@test "amend adds a passphrase and takes it away, in luks and in qcow2" {
  need qemu-img
  local p
  for p in "" encrypt.; do
    rm -f disk
    if [ -z "$p" ]; then
      luks_key
      new_luks our_create disk
    else
      qcow2_key
      new_qcow2 our_create disk
    fi
    ours_io disk 'write -P 3 0 64k'
    amend_keys "${p}state=active,${p}new-secret=t,${p}iter-time=10"
    [ "$(active_slots)" = '[1,1,0,0,0,0,0,0]' ]
    opened_by other
    opened_by "open sesame"
    amend_keys "${p}state=active,${p}new-secret=t,${p}iter-time=0,${p}keyslot=5"
    [ "$(active_slots)" = '[1,1,0,0,0,1,0,0]' ]
    amend_keys "${p}state=inactive,${p}keyslot=0"
    [ "$(active_slots)" = '[0,1,0,0,0,1,0,0]' ]
    opened_by other
    run ! opened_by "open sesame"
    printf other >key
    amend_keys "${p}state=active,${p}new-secret=s,${p}iter-time=0"
    amend_keys "${p}state=inactive,${p}old-secret=s" --force
    [ "$(active_slots)" = '[0,0,0,0,0,0,0,0]' ]
    make_secret
  done
}

@test "amend: every option, in both forms" {
  luks_key
  new_luks our_create disk
  local add=state=active,new-secret=s,iter-time=0
  "$NBDIMG" amend "${SECRET[@]}" -p -t none -o $add --image-opts \
    "$(opts disk)" >out
  grep -q '100.00/100%' out
  "$NBDIMG" amend "${SECRET[@]}" -p -q --cache=directsync --options=$add \
    --image-opts "$(opts disk)" >out
  "$NBDIMG" amend "${SECRET[@]}" -o state=inactive --quiet -o keyslot=0 \
    --image-opts "$(opts disk)" >>out
  [ ! -s out ]
  expect_error 1 "Refusing to overwrite" "$NBDIMG" amend "${SECRET[@]}" \
    -o $add,keyslot=1 --image-opts "$(opts disk)"
  "$NBDIMG" amend "${SECRET[@]}" --force -o $add,keyslot=1 --image-opts \
    "$(opts disk)"
  [ "$(active_slots)" = '[0,1,1,0,0,0,0,0]' ]
  "$NBDIMG" amend "${SECRET[@]}" -f luks -o $add \
    "json:{\"driver\":\"luks\",\"key-secret\":\"s\",
      \"file\":{\"driver\":\"file\",\"filename\":\"disk\"}}"
  expect_error 1 "'key-secret' is required" "$NBDIMG" amend "${SECRET[@]}" \
    --format=luks -o $add disk
  expect_error 1 "mutually exclusive" "$NBDIMG" amend -f luks -o $add \
    --image-opts "$(opts disk)"
  expect_error 1 "Must specify options" "$NBDIMG" amend disk
  "$NBDIMG" amend -f luks -o help >out
  qemu-img amend -f luks -o help | diff out -
}

@test "amend refuses what would lose the data, and what makes no sense" {
  luks_key
  new_luks our_create disk
  cp disk before
  while IFS='|' read -r options text; do
    expect_error 1 "$text" amend_keys "$options"
    [ "${#stderr_lines[@]}" = 1 ] || fail "$options: $stderr"
    cmp disk before
  done <<'END'
state=inactive,keyslot=0|no active keyslot would be left
state=inactive,old-secret=s|no active keyslot would be left
state=inactive,old-secret=t|No keyslots match
state=inactive|either explicit keyslot index or the password
state=inactive,keyslot=5|already erased
state=inactive,keyslot=9|Invalid keyslot 9
state=active,new-secret=t,keyslot=0|Refusing to overwrite active keyslot 0
state=active|'new-secret' is required
state=active,new-secret=t,old-secret=s|'old-secret' must not be given
state=inactive,new-secret=t,keyslot=0|'new-secret' must not be given
state=active,new-secret=u|No secret with id 'u'
state=active,new-secret=|No secret with id ''
state=active,new-secret=t,old-secret=|No secret with id ''
state=inactive,old-secret=,keyslot=0|No secret with id ''
state=inactive,new-secret=,keyslot=0|No secret with id ''
state=asleep|'state' does not accept value 'asleep'
new-secret=t|'state' is missing
END
  qcow2_key
  new_qcow2 our_create two
  expect_error 1 "does not accept value 'asleep'" "$NBDIMG" amend \
    "${SECRET[@]}" -o size=2M,encrypt.state=asleep --image-opts "$(opts two)"
  "$NBDIMG" info two | grep '^virtual size: 1 MiB'
  "$NBDIMG" create -q -f qcow2 plain 1M
  expect_error 1 "encryption not present" \
    "$NBDIMG" amend -o encrypt.state=inactive plain
  expect_error 1 "does not support option amendment" \
    "$NBDIMG" amend -f raw -o help
}

@test "an amend that is cut off anywhere leaves the disk open to its passphrase" {
  need_test_storage
  luks_key
  new_luks our_create good
  local k
  for k in {1..20}; do
    cp good disk
    if NBDIMG_TEST_STORAGE="fault:op=write,index=$k,count=0" amend_keys \
        state=active,new-secret=t,iter-time=0 2>err; then
      break
    fi
    opened_by "open sesame"
    [ "$(active_slots)" = '[1,0,0,0,0,0,0,0]' ]
  done
  [ "$k" = 4 ] || fail "$k writes, not material, slot, state"
  opened_by other
  # Erasing: the material goes first, so that a key that is to go never stays.
  cp disk two
  for k in 1 2; do
    cp two disk
    run env NBDIMG_TEST_STORAGE="fault:op=write,index=$k,count=0" \
      "$NBDIMG" amend "${SECRET[@]}" -o state=inactive,keyslot=1 \
      --image-opts "$(opts disk)"
    [ "$status" = 1 ]
    opened_by "open sesame"
  done
  run ! opened_by other
  amend_keys state=inactive,keyslot=1
  [ "$(active_slots)" = '[1,0,0,0,0,0,0,0]' ]
}

@test "a passphrase that takes another one's slot is never the only one to come" {
  need_test_storage
  luks_key
  new_luks our_create good
  local k
  for k in {1..20}; do
    cp good disk
    if NBDIMG_TEST_STORAGE="fault:op=write,index=$k,count=0" amend_keys \
        state=active,new-secret=t,iter-time=0,keyslot=0 --force 2>err; then
      break
    fi
    opened_by "open sesame" || opened_by other || fail "lost at write $k"
  done
  [ "$k" = 11 ] || fail "$k writes, not spare, erase, slot, erase"
  [ "$(active_slots)" = '[1,0,0,0,0,0,0,0]' ]
  opened_by other
  run ! opened_by "open sesame"
}

@test "the only passphrase is not overwritten where no slot can hold the new one" {
  need cryptsetup
  luks_key
  truncate -s 3M hdr disk
  printf 'open sesame' >key
  cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 \
    --header hdr disk key
  # slot 0 has its material at 4096, 256000 bytes; the others lie behind
  truncate -s 260096 hdr
  cp hdr before
  local o=driver=luks,key-secret=s,file.filename=disk,header.filename=hdr
  local change=state=active,new-secret=t,iter-time=0,keyslot=0
  expect_error 1 "slot 0 is the only one in use" "$NBDIMG" amend \
    "${SECRET[@]}" --object secret,id=t,data=other --force -o "$change" \
    --image-opts "$o"
  cmp hdr before
  "$NBDIMG" io "${SECRET[@]}" -c 'write -q 0 4k' --image-opts "$o"
}

@test "--force erases a slot again, as after a crash" {
  luks_key
  new_luks our_create disk
  # Slot 5 begins at 4096 + 5 * 258048.
  printf 'a key of old times' | dd of=disk bs=1 seek=1294336 conv=notrunc \
    status=none
  grep -q 'old times' disk
  amend_keys state=inactive,keyslot=5 --force
  run ! grep -q 'old times' disk
  [ "$(active_slots)" = '[1,0,0,0,0,0,0,0]' ]
  qemu-img amend "${SECRET[@]}" --force -o state=inactive,keyslot=5 \
    --image-opts "$(opts disk)"
}

@test "resize of luks: grow and shrink keep what is there" {
  luks_key
  new_luks our_create disk "" 1M
  ours_io disk 'write -P 5 0 1M'
  if "$NBDIMG" resize -h >/dev/null 2>&1; then
    "$NBDIMG" resize "${SECRET[@]}" --image-opts "$(opts disk)" 2M
    ours_io disk 'read -P 5 0 1M' 'write -P 6 1M 1M'
    theirs_io disk 'read -P 5 0 1M' 'read -P 6 1M 1M'
    "$NBDIMG" resize "${SECRET[@]}" --shrink --image-opts "$(opts disk)" 512k
    theirs_io disk 'read -P 5 0 512k'
    [ "$("$NBDIMG" info --output=json disk | jq '."virtual-size"')" = 524288 ]
  fi
  ours_io disk 'truncate 3M' 'read -P 5 0 512k' 'write -P 7 2M 1M'
  theirs_io disk 'read -P 5 0 512k' 'read -P 7 2M 1M'
}

# ---- served ----

@test "the plugin serves LUKS in qcow2 by secret=, and fio verifies what it wrote" {
  need fio
  qcow2_key
  new_qcow2 our_create disk cluster_size=4k 16M
  start_nbdkit secret=s:file:key "image-opts=$(opts disk)"
  fio --name=job --ioengine=nbd --uri="$URI" --numjobs=4 --iodepth=8 \
    --size=4m --offset_increment=4m --rw=randrw --bsrange=512-64k \
    --bs_unaligned=0 --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
    --randseed=7 --time_based --runtime=3 --fsync=64 --group_reporting \
    --minimal >fio.log 2>&1 || fail "$(cat fio.log)"
  stop_server
  "$NBDIMG" check disk
  qemu-img check "${SECRET[@]}" --image-opts "$(opts disk)"
}

@test "secret= reads a file, a line of one, and a descriptor, and nothing else" {
  qcow2_key
  new_qcow2 our_create disk
  { cat key; echo; } >line
  local how
  for how in file:key +line -8; do
    nbdkit_env -U - "$PLUGIN" "secret=s:$how" "image-opts=$(opts disk)" \
      --run '"$NBDIMG" io -f raw -c "read 0 64k" "$uri"' 8<line
  done
  run nbdkit_env -U - "$PLUGIN" "secret=s:hunter2" "image-opts=$(opts disk)" \
    --run true
  [ "$status" != 0 ]
  [[ $output == *"can be seen by others"* ]]
  [[ $output != *hunter2* ]]
}

@test "serve hands secrets to nbdkit in no command line" {
  luks_key
  new_luks our_create disk
  ours_io disk 'write -P 3 0 64k'
  "$NBDIMG" serve --object "secret,id=s,data=$(cat key)" --image-opts \
    "$(opts disk)" --run '"$NBDIMG" io -r -f raw -c "read -P 3 0 64k" "$uri"
      tr "\0" "\n" </proc/$PPID/cmdline
      cat "/proc/$PPID/fd/$(tr "\0" "\n" </proc/$PPID/cmdline |
        sed -n "s|^secret=s:file:/dev/fd/||p")"' >out
  run ! grep -q failed out
  run ! grep -q sesame out
  grep -q 'secret=s:file:/dev/fd/' out
  "$NBDIMG" serve --object secret,id=s,file=key --print-command --image-opts \
    "$(opts disk)" -p 1 | grep 'secret=s:-'
}

@test "no help, version, log or message has a secret in it" {
  luks_key
  new_luks our_create disk
  {
    "$NBDIMG" --help
    "$NBDIMG" create --help
    "$NBDIMG" -T '*' map "${SECRET[@]}" --image-opts "$(opts disk)" || :
    nbdkit_env -fv -U - "$PLUGIN" secret=s:file:key \
      "image-opts=$(opts disk)" --run 'nbdinfo "$uri"' || :
  } >out 2>&1
  run ! grep -q sesame out
}
