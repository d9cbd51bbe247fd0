# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# Secrets, and the legacy encryption (AES-CBC) of qcow2; tests/luks.bats has
# LUKS.

load lib
load encrypt

# ---- secrets ----

# An image whose passphrase is "letmein".
letmein_image () {
  printf letmein >plain
  "$NBDIMG" create -q --object secret,id=s,file=plain -f qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s disk 1M
  "$NBDIMG" io --object secret,id=s,file=plain -c 'write -P 5 0 64k' \
    --image-opts driver=qcow2,file.filename=disk,encrypt.key-secret=s
}

# opens OBJECT...: the secret "s" among them is letmein, for qemu-io and us
opens () {
  local o objects=()
  for o; do objects+=(--object "$o"); done
  for o in qemu-io "$NBDIMG io"; do
    # shellcheck disable=SC2086
    run $o "${objects[@]}" -r -c 'read -P 5 0 64k' --image-opts \
      driver=qcow2,file.filename=disk,encrypt.key-secret=s
    [[ $status = 0 && $output == *'read 65536'* && $output != *failed* ]] ||
      fail "$o $*: $output"
  done
}

@test "a secret comes as text, file, base64, JSON, or under another secret" {
  need openssl qemu-io
  letmein_image
  head -c 32 /dev/urandom >master
  head -c 16 /dev/urandom >iv
  base64 <master >master.b64
  openssl enc -aes-256-cbc -a -K "$(xxd -p -c 64 master)" \
    -iv "$(xxd -p -c 64 iv)" <plain >coded.b64
  opens secret,id=s,data=letmein
  opens secret,id=s,file=plain,format=raw
  opens "secret,id=s,format=base64,data=$(base64 <plain)"
  opens '{"qom-type":"secret","id":"s","data":"letmein"}'
  opens "secret,id=m,format=base64,file=master.b64" \
    "secret,id=s,keyid=m,format=base64,file=coded.b64,iv=$(base64 <iv)"
}

@test "a bad --object is refused, and its value is not repeated" {
  qemu-img create -q -f raw raw.img 1M
  while IFS='|' read -r object text; do
    expect_error 1 "$text" "$NBDIMG" info --object "$object" raw.img
    [[ $stderr != *hunter2* ]] || fail "the secret is in: $stderr"
  done <<'END'
secret,id=s|Either 'file' or 'data' must be provided
secret,id=s,data=hunter2,file=y|mutually exclusive
secret,id=s,file=nothere|Unable to read nothere
secret,id=s,data=hunter2!,format=base64|not base64
secret,id=s,data=hunter2,format=rot13|'format' does not accept value 'rot13'
secret,data=hunter2|'id' is missing
secret,id=1s,data=hunter2|begins with a letter
secret,id=s,data=hunter2,keyid=z|No secret with id 'z'
secret,id=s,data=hunter2,iv=x|iv needs keyid
secret,id=s,data=hunter2,size=3|'size' is unexpected
secret,id=s,data=oh,hunter2|after a comma
data=hunter2,id=s|the type (
secrets,id=s,data=hunter2|no object 'secrets'
{"qom-type":"secret","id":"s","data":3}|'data' expects a text
{"qom-type":"secret",hunter2|not an object
END
  expect_error 1 "given twice" "$NBDIMG" info --object secret,id=s,data=a \
    --object secret,id=s,data=b raw.img
}

@test "no list of processes shows a secret" {
  letmein_image
  start "$NBDIMG" io --object secret,id=s,data=letmein -r -c 'sleep 20000' \
    --image-opts driver=qcow2,file.filename=disk,encrypt.key-secret=s
  asleep () { grep -q '\*\*\*' "/proc/$STARTED_PID/cmdline"; }
  poll 10 asleep
  run ! grep -q letmein "/proc/$STARTED_PID/cmdline"
}

# ---- missing and wrong ----

@test "without its secret an encrypted image is not read, but described" {
  make_secret
  our_create -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s disk 1M
  expect_error 1 "encrypt.key-secret" "$NBDIMG" map disk
  expect_error 1 "No secret with id 't'" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts driver=qcow2,file.filename=disk,encrypt.key-secret=t
  expect_error 1 "Header reported 'aes' encryption format" "$NBDIMG" map \
    "${SECRET[@]}" --image-opts \
    driver=qcow2,file.filename=disk,encrypt.key-secret=s,encrypt.format=luks
  qemu-img create -q -f qcow2 plain 1M
  expect_error 1 "No encryption in image header" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts \
    driver=qcow2,file.filename=plain,encrypt.key-secret=s,encrypt.format=aes
  expect_error 1 "does not support the option 'encrypt'" "$NBDIMG" map \
    --image-opts driver=raw,file.filename=disk,encrypt.key-secret=s
  "$NBDIMG" info --output=json disk | jq -e '.encrypted and
    .["format-specific"].data.encrypt.format == "aes"'
  "$NBDIMG" check disk
}

# ---- legacy AES ----

@test "AES images of QEMU and ours are read and written by both" {
  need qemu-img qemu-io
  make_secret
  qcow2_key
  local o f=0
  for o in encrypt.format=aes encryption=on,cluster_size=512,compat=0.10 \
      encrypt.format=aes,preallocation=metadata \
      encrypt.format=aes,extended_l2=on; do
    our_create -f qcow2 -o "$o,encrypt.key-secret=s" "ours$f" 1M
    qemu_create -f qcow2 -o "$o,encrypt.key-secret=s" "theirs$f" 1M
    both_ways "ours$f"
    [[ $o == *preallocation* ]] || both_ways "theirs$f"
    qemu-img check "${SECRET[@]}" --image-opts "$(opts "ours$f")"
    "$NBDIMG" check "theirs$f"
    "$NBDIMG" map "${SECRET[@]}" --output=json --image-opts \
      "$(opts "ours$f")" >map.ours
    qemu-img map "${SECRET[@]}" --output=json --image-opts \
      "$(opts "ours$f")" >map.theirs
    cmp map.ours map.theirs
    f=$((f + 1))
  done
}

@test "on disk legacy AES is what its description says" {
  need openssl
  printf 'a passphrase of more than 16' >key
  qcow2_key
  our_create -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s disk 1M
  ours_io disk 'write -P 0x41 3k 512'
  local host
  host=$((0x$(xxd -p -s $((0x40000)) -l 8 disk) & 0xfffffffffe00))
  dd if=disk bs=512 skip=$((host / 512 + 6)) count=1 of=sector status=none
  openssl enc -d -aes-128-cbc -nopad -K "$(head -c 16 key | xxd -p)" \
    -iv 06000000000000000000000000000000 -in sector -out text
  [ "$(tr -d A <text | wc -c)" = 0 ]
  [ "$(wc -c <text)" = 512 ]
}

@test "options that do not go with encrypt.format=aes are refused" {
  make_secret
  while IFS='|' read -r options text; do
    expect_error 1 "$text" our_create -f qcow2 -o "$options" o 1M
    [ ! -e o ] || fail "$options: a file was left"
  done <<'END'
encryption=on|'encrypt.key-secret' is required for cipher
encrypt.format=aes|'encrypt.key-secret' is required for cipher
encrypt.format=aes,encrypt.key-secret=t|No secret with id 't'
encrypt.format=rot13,encrypt.key-secret=s|does not accept value 'rot13'
encrypt.key-secret=s|'encrypt.format' is missing
encryption=off,encrypt.key-secret=s|'encrypt.format' is missing
encrypt.format=aes,encryption=on,encrypt.key-secret=s|at the same time
encrypt.format=aes,encrypt.key-secret=s,encrypt.iter-time=1|is unexpected
encrypt.format=aes,encrypt.key-secret=s,data_file=d,data_file_raw=on|data_file_raw and encryption
END
  # what the old option denies the new one may say
  local format
  for format in qcow qcow2; do
    our_create -f $format \
      -o encryption=off,encrypt.format=aes,encrypt.key-secret=s o 1M
    "$NBDIMG" info o | grep 'encrypted: yes'
  done
}

@test "a preallocated encrypted image reads as zeroes" {
  make_secret
  qcow2_key
  our_create -f qcow2 -o \
    encrypt.format=aes,encrypt.key-secret=s,preallocation=full disk 1M
  ours_io disk 'read -P 0 0 1M' 'write -P 1 100k 100' 'read -P 0 0 100k'
  theirs_io disk 'read -P 1 100k 100' 'read -P 0 110k 900k'
}

@test "encrypted images are converted, from and to, and never compressed" {
  need qemu-img
  make_secret
  qcow2_key
  random_image raw 5M 3
  "$NBDIMG" convert "${SECRET[@]}" -O qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s raw disk
  same_as_raw disk raw
  "$NBDIMG" convert "${SECRET[@]}" --image-opts -O raw "$(opts disk)" back
  cmp raw back
  "$NBDIMG" convert "${SECRET[@]}" -O qcow2 -o \
    encryption=on,encrypt.key-secret=s,compat=0.10,preallocation=metadata \
    raw v2
  same_as_raw v2 raw
  expect_error 1 "Compression and encryption not supported" \
    "$NBDIMG" convert "${SECRET[@]}" -c -O qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s raw none
  [ ! -e none ]
}

@test "copy on write, backing files and snapshots go through the cipher" {
  need qemu-img qemu-io
  make_secret
  qcow2_key
  random_image raw 1M 5
  qemu-img convert -O qcow2 raw base
  our_create -f qcow2 -b base -F qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s disk
  same_as_raw disk raw
  ours_io disk 'write -P 0x77 70001 999' 'write -z 200k 300k'
  qemu-io -f raw -c 'write -P 0x77 70001 999' -c 'write -z 200k 300k' raw
  same_as_raw disk raw
  qemu-img snapshot "${SECRET[@]}" --image-opts -c s1 "$(opts disk)"
  ours_io disk 'write -P 0x78 69k 3000'
  "$NBDIMG" convert "${SECRET[@]}" --image-opts -O raw -l s1 "$(opts disk)" s1
  cmp s1 raw
  qemu-io -f raw -c 'write -P 0x78 69k 3000' raw
  same_as_raw disk raw
}

# Each layer has a secret of its own, which the overlay names.
@test "a json: backing name says which secret opens it" {
  need qemu-img
  make_secret
  qcow2_key
  local secrets=("${SECRET[@]}" --object secret,id=b,data=second) p base
  base='json:{"driver":"qcow2","encrypt.key-secret":"b","file.filename":"base"}'
  random_image raw 1M 7
  "$NBDIMG" convert "${secrets[@]}" -O qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=b raw base
  qemu-io -f raw -c 'write -P 9 70000 999' raw
  for p in "$NBDIMG" qemu-img; do
    rm -f top
    "$p" convert "${secrets[@]}" -O qcow2 -B "$base" -F qcow2 \
      -o encrypt.format=aes,encrypt.key-secret=s raw top
    "$NBDIMG" compare "${secrets[@]}" --image-opts "$(opts top)" \
      driver=raw,file.filename=raw
    qemu-img compare "${secrets[@]}" --image-opts "$(opts top)" \
      driver=raw,file.filename=raw
  done
  "$NBDIMG" rebase "${secrets[@]}" -b "" --image-opts "$(opts top)"
  same_as_raw top raw
  "$NBDIMG" rebase "${secrets[@]}" -b "$base" -F qcow2 --image-opts \
    "$(opts top)"
  "$NBDIMG" commit -q "${secrets[@]}" --image-opts "$(opts top)"
  "$NBDIMG" compare "${secrets[@]}" --image-opts \
    driver=qcow2,file.filename=base,encrypt.key-secret=b \
    driver=raw,file.filename=raw
  expect_error 1 "No secret with id 'b'" "$NBDIMG" map "${SECRET[@]}" \
    --image-opts "$(opts top)"
}
