# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154,SC2016

# TLS credentials of the user's: --object tls-creds-x509 and tls-creds-psk, and
# tls-creds= of nbd drivers, with nbdkit and qemu-nbd as servers and qemu-img as
# the other client.

load lib
load tls

# A folder of pre-shared keys, and a server on a Unix socket that wants one.
# start_psk ARGUMENT...: sets OBJECT and OPTS (image options)
start_psk () {
  [ -d keys ] || { mkdir keys; make_key alice keys/keys.psk; }
  start_server --tls=require --tls-psk=keys/keys.psk "$@"
  OBJECT=tls-creds-psk,id=t,dir=keys,endpoint=client,username=alice
  NODE=driver=nbd,server.type=unix,server.path=$SOCKET,tls-creds=t
}

# tcp_options [MORE]: image options for the server of start_tcp
tcp_options () {
  echo "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=$PORT$1"
}

# under PREFIX OPTIONS: each option below PREFIX
under () {
  sed "s/^/$1./;s/,/,$1./g" <<<"$2"
}

# both TEXT ARGUMENT...: qemu-img refuses "info ARGUMENT..." and so do we, with
# TEXT in what we say
both () {
  local text=$1
  shift
  run qemu-img info "$@"
  [ "$status" = 1 ] || fail "qemu-img info $*: $output"
  expect_error 1 "$text" "$NBDIMG" info "$@"
}

# ---- what works ----

@test "every command opens images behind a pre-shared key" {
  need qemu-img
  "$NBDIMG" create -q -f qcow2 disk 1M
  truncate -s 4M disk
  start_psk file disk
  local opts o=(--object "$OBJECT") made
  opts=driver=qcow2,$(under file "$NODE")
  img () { "$NBDIMG" "$1" "${o[@]}" "${@:2}" >out; }
  img io -c 'write -P 7 0 64k' --image-opts "$opts"
  img io -r -c 'read -P 7 0 64k' --image-opts "$opts"
  run ! grep failed out
  img bench -c 10 -w --image-opts "$opts"
  img io -c 'write -P 7 0 64k' --image-opts "$opts"
  img amend -o lazy_refcounts=on --image-opts "$opts"
  img bitmap --add --image-opts "$opts" b0
  img snapshot -c s1 --image-opts "$opts"
  img check --image-opts "$opts"
  img info --image-opts "$opts"
  grep -q 's1' out
  img map --image-opts "$opts"
  img measure -O raw --image-opts "$opts"
  img resize --image-opts "$opts" 1100k
  made=json:"{\"driver\":\"qcow2\",\"file\":{\"driver\":\"nbd\",\"server\":\
{\"type\":\"unix\",\"path\":\"$SOCKET\"},\"tls-creds\":\"t\"}}"
  img convert -O raw "$made" copy
  [ "$(peek copy 0 2)" = 0707 ]
  img compare --image-opts "$opts" driver=raw,file.filename=copy
  img dd -O raw bs=64k count=1 --image-opts "if=$opts" of=part
  cmp -n 65536 part copy
  "$NBDIMG" create -q -f qcow2 -b copy -F raw top
  img rebase --image-opts \
    "driver=qcow2,file.filename=top,$(under backing "$opts")" -b ""
  img compare top copy
  stop_server
  qemu-img check disk
}

@test "a target behind TLS is written to, and the other client reads it" {
  need qemu-img
  random_image in 1M 3
  start_psk memory 1M
  "$NBDIMG" convert --object "$OBJECT" -n --target-image-opts in "$NODE"
  "$NBDIMG" compare --object "$OBJECT" --image-opts driver=file,filename=in \
    "$NODE"
  qemu-img compare --object "$OBJECT" --image-opts driver=file,filename=in \
    "$NODE"
  "$NBDIMG" create -q --object "$OBJECT" -f qcow2 "json:{\"driver\":\"nbd\",\
\"path\":\"$SOCKET\",\"tls-creds\":\"t\"}" 512k
  qemu-img info --object "$OBJECT" --image-opts \
    "driver=qcow2,$(under file "$NODE")" | grep -q 'file format: qcow2'
}

@test "certificates are those of the folder, and both clients take the same" {
  need qemu-img
  make_authority pki
  mkdir authority
  cp pki/ca-cert.pem authority
  local x=tls-creds-x509,id=t,dir=pki o
  start_tcp --tls=require --tls-certificates=pki --tls-verify-peer memory 1M
  o=$(tcp_options ,tls-creds=t)
  for object in "$x" "$x,endpoint=client,verify-peer=on" "$x,verify-peer=off" \
      '{"qom-type":"tls-creds-x509","id":"t","dir":"pki","verify-peer":true}'
  do
    qemu-img info --object "$object" --image-opts "$o" >theirs
    "$NBDIMG" info --object "$object" --image-opts "$o" >ours
    grep -q 'virtual size: 1 MiB' ours
    [ "$(head -n 1 ours)" = "$(head -n 1 theirs)" ]
  done
  # A client that has no certificate is not let in.
  both 'gnutls' --object tls-creds-x509,id=t,dir=authority --image-opts "$o"
  cp pki/client-cert.pem authority
  run --separate-stderr "$NBDIMG" info \
    --object tls-creds-x509,id=t,dir=authority --image-opts "$o"
  [ "$status" = 1 ]
  [[ $stderr == *'authority/client-cert.pem is not used'* ]]
}

@test "qemu-nbd with the same kinds of credentials is a server too" {
  need qemu-nbd
  truncate -s 1M disk
  make_authority pki
  mkdir keys
  make_key qemu keys/keys.psk
  new_socket
  start_listening qemu-nbd -t --pid-file="$PIDFILE" -f raw \
    --object tls-creds-x509,id=s,dir=pki,endpoint=server --tls-creds s disk
  wait_for_server "$STARTED_PID"
  "$NBDIMG" io --object tls-creds-x509,id=t,dir=pki -c 'write -P 5 0 4k' \
    --image-opts "$(tcp_options ,tls-creds=t)"
  [ "$(peek disk 0 2)" = 0505 ]
  new_socket
  start_listening qemu-nbd -t --pid-file="$PIDFILE" -f raw \
    --object "tls-creds-psk,id=s,dir=$PWD/keys,endpoint=server" \
    --tls-creds s disk
  wait_for_server "$STARTED_PID"
  # The user's name is qemu where none is given, as with QEMU.
  "$NBDIMG" io --object tls-creds-psk,id=t,dir=keys -c 'write -P 6 4k 4k' \
    --image-opts "$(tcp_options ,tls-creds=t)"
  [ "$(peek disk 4096 2)" = 0606 ]
}

@test "serve and the plugin read an image behind TLS" {
  need nbdinfo
  "$NBDIMG" create -q -f qcow2 disk 1M
  start_psk file disk
  local url='nbdinfo --size "$uri"' o
  o=driver=qcow2,$(under file "$NODE")
  run -0 "$NBDIMG" serve --object "$OBJECT" --image-opts "$o" --run "$url"
  [ "$output" = 1048576 ]
  run -0 nbdkit_env -U - --run "$url" "$PLUGIN" object="$OBJECT" \
    image-opts="$o"
  [ "$output" = 1048576 ]
  expect_error 1 'give tls-creds-x509' nbdkit_env -U - --run true "$PLUGIN" \
    object=secret,id=s,data=x disk
}

# ---- what is refused ----

@test "TLS that was asked for is never given up, nor keys of others believed" {
  need qemu-img
  make_authority pki
  make_authority other
  make_authority named DNS:elsewhere.example
  mkdir keys wrong
  make_key alice keys/keys.psk
  make_key alice wrong/keys.psk
  local x=tls-creds-x509,id=t,dir
  start_tcp --filter=log memory 1M logfile="$PWD/log"
  both 'the server has no TLS' --object $x=pki \
    --image-opts "$(tcp_options ,tls-creds=t)"
  both 'the server has no TLS' --object \
    tls-creds-psk,id=t,dir=keys,username=alice \
    --image-opts "$(tcp_options ,tls-creds=t)"
  # Also when the server is so quick that it answers while we connect.
  for _ in {1..20}; do
    expect_error 1 'the server has no TLS' "$NBDIMG" info --object $x=pki \
      --image-opts "$(tcp_options ,tls-creds=t)"
  done
  run ! grep Connect log
  start_tcp --tls=require --tls-certificates=pki memory 1M
  both 'requires TLS' --object $x=pki --image-opts "$(tcp_options)"
  both 'certificate' --object $x=other \
    --image-opts "$(tcp_options ,tls-creds=t)"
  "$NBDIMG" info --object $x=other,verify-peer=off \
    --image-opts "$(tcp_options ,tls-creds=t)"
  both 'redentials' --object tls-creds-psk,id=t,dir=keys,username=alice \
    --image-opts "$(tcp_options ,tls-creds=t)"
  # libnbd before 1.22 cannot look for a name of the user's, and says so.
  both 'hostname' --object $x=pki \
    --image-opts "$(tcp_options ,tls-creds=t,tls-hostname=elsewhere.example)"
  start_tcp --tls=require --tls-certificates=named memory 1M
  both 'certificate' --object $x=named \
    --image-opts "$(tcp_options ,tls-creds=t)"
  start_tcp --tls=require --tls-psk=keys/keys.psk memory 1M
  both 'gnutls' --object tls-creds-psk,id=t,dir=wrong,username=alice \
    --image-opts "$(tcp_options ,tls-creds=t)"
}

@test "bad credentials are refused before anything is connected to" {
  need qemu-img
  mkdir none keys
  make_authority pki
  make_key alice keys/keys.psk
  local nbd=driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=1
  while IFS='|' read -r object creds text; do
    both "$text" --object "$object" --image-opts "$nbd,tls-creds=$creds"
  done <<'END'
tls-creds-psk,id=t,dir=keys,username=alice|u|No TLS credentials with id 'u'
secret,id=t,data=x|t|Object with id 't' is not TLS credentials
tls-creds-x509,id=t,dir=none|t|Unable to access credentials none/ca-cert.pem: No such file or directory
tls-creds-psk,id=t,dir=none|t|Unable to access credentials none/keys.psk: No such file or directory
tls-creds-psk,id=t,dir=keys|t|Username qemu not found in PSK file keys/keys.psk
tls-creds-psk,id=t,dir=keys,username=alic|t|Username alic not found in PSK file keys/keys.psk
tls-creds-x509,id=t|t|Missing 'dir' property value
tls-creds-psk,id=t|t|Missing 'dir' property value
tls-creds-psk,dir=keys,username=alice|t|Parameter 'id' is missing
tls-creds-psk,id=t,dir=keys,username=alice,endpoint=server|t|Expected TLS credentials for a client endpoint
tls-creds-psk,id=t,dir=keys,endpoint=middle|t|Parameter 'endpoint' does not accept value 'middle'
tls-creds-psk,id=t,dir=keys,username=alice,bla=1|t|Parameter 'bla' is unexpected
tls-creds-psk,id=t,dir=keys,username=alice,passwordid=s|t|Parameter 'passwordid' is unexpected
tls-creds-x509,id=t,dir=pki,passwordid=s|t|passwordid
{"qom-type":"tls-creds-psk","id":"t","dir":"keys","verify-peer":"on"}|t|Invalid parameter type for 'verify-peer', expected: boolean
{"qom-type":"tls-creds-psk","id":"t","dir":3}|t|Parameter 'dir' expects a text
END
  both 'given twice' --object secret,id=t,data=x --object \
    tls-creds-psk,id=t,dir=keys,username=alice --image-opts "$nbd"
  # A secret is not what credentials are.
  "$NBDIMG" create -q --object secret,id=s,data=x -f qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s disk 1M
  local image=driver=qcow2,file.filename=disk,encrypt.key-secret=t
  for program in qemu-img "$NBDIMG"; do
    expect_error 1 "Object with id 't' is not a secret" "$program" map \
      --object tls-creds-psk,id=t,dir=keys,username=alice --image-opts "$image"
  done
}

@test "what libnbd has no call for is refused by name" {
  mkdir keys pki
  make_key alice keys/keys.psk
  touch pki/ca-cert.pem disk
  local psk=tls-creds-psk,id=t,dir=keys,username=alice
  while IFS='|' read -r object text; do
    expect_error 1 "$text" "$NBDIMG" info --object "$object" disk
  done <<END
$psk,priority=NORMAL|priority is not built
$psk,verify-peer=off|verify-peer=off is not built
tls-creds-x509,id=t,dir=pki,priority=NORMAL|priority is not built
tls-creds-x509,id=t,dir=pki,sanity-check=on|sanity-check=on is not built
tls-creds-anon,id=t|tls-creds-anon is not built yet
END
  "$NBDIMG" info --object tls-creds-x509,id=t,dir=pki,sanity-check=off disk
  local nbd=driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=1
  expect_error 1 "tls-hostname needs tls-creds" "$NBDIMG" info --object "$psk" \
    --image-opts "$nbd,tls-hostname=a"
  expect_error 1 "tls-hostname is for certificates" "$NBDIMG" info \
    --object "$psk" --image-opts "$nbd,tls-creds=t,tls-hostname=a"
  expect_error 1 "together with command" "$NBDIMG" info --object "$psk" \
    --image-opts driver=nbd,command.0=nbdkit,tls-creds=t
  expect_error 1 "given twice" "$NBDIMG" info --object "$psk" --image-opts \
    "driver=nbd,uri=nbds://127.0.0.1:1/?tls-psk-file=keys/keys.psk,tls-creds=t"
}

@test "a name in an image cannot make use of the user's credentials" {
  need qemu-img
  start_psk --filter=log memory 1M logfile="$PWD/log"
  local name="json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\
\"path\":\"$SOCKET\",\"tls-creds\":\"t\"}}"
  qemu-img create -q -u -f qcow2 -b "$name" -F raw top 1M
  expect_error 1 "'tls-creds' is not taken from an image" \
    "$NBDIMG" map --object "$OBJECT" top
  run ! grep -s Connect log
  # The user's own options may.
  "$NBDIMG" map --object "$OBJECT" --image-opts \
    "driver=qcow2,file.filename=top,backing.driver=raw,\
$(under backing.file "$NODE")"
  grep -q Connect log
}
