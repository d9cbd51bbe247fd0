# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# nbdimg measure beside qemu-img measure.

load lib
load peer

setup () {
  need qemu-img qemu-io jq
  cd "$BATS_TEST_TMPDIR" || return 1
}

# Images of all kinds, in the folder "files".
make_files () {
  mkdir files
  cd files || return
  random_image r.raw 3M 7
  truncate -s 1000 odd.raw
  truncate -s 0 empty.raw
  head -c 1M /dev/zero >zeroes.raw
  qemu-img create -q -f qcow2 -b r.raw -F raw top.qcow2 5M
  qemu-io -c 'write -q -P 1 1M 64k' top.qcow2
  qemu-img snapshot -c s1 top.qcow2
  qemu-io -c 'write -q -P 2 4M 200k' -c 'write -q -z 0 128k' top.qcow2
  qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 10M
  qemu-img create -q -f qcow2 -o preallocation=metadata pre.qcow2 4M
  qemu-img create -q -f qcow2 -o preallocation=full full.qcow2 4M
  qemu-img create -q -f qcow2 maps.qcow2 1G
  qemu-img bitmap --add -g 512 maps.qcow2 one
  qemu-img bitmap --add maps.qcow2 'another, which has a longer name'
  qemu-img create -q -f qed disk.qed 9M
  qemu-io -c 'write -q 1M 100k' disk.qed
  cd ..
}

@test "the sizes are those of qemu-img, for each kind of source and options" {
  make_files
  cd files
  for source in *.raw *.qcow2 *.qed; do
    same_img measure "$source"
    for o in cluster_size=512 cluster_size=4k,refcount_bits=1 \
        cluster_size=16k,extended_l2=on compat=0.10 cluster_size=2M \
        preallocation=metadata preallocation=full,refcount_bits=64 \
        data_file=x,compat=1.1 backing_file=r.raw; do
      [ "$source" != empty.raw ] || continue
      same_img measure -O qcow2 -o "$o" "$source"
      same_img_json measure -O qcow2 -o "$o" --output=json "$source"
    done
  done
}

@test "an empty disk of any size has the size that qemu-img says" {
  local size o
  for size in 1 511 65537 99M 1G 3.99G 7T; do
    same_img measure --size "$size"
    for o in cluster_size=64k cluster_size=2M,refcount_bits=64 \
        cluster_size=512k,extended_l2=on preallocation=falloc; do
      same_img measure --size "$size" -O qcow2 -o "$o"
    done
  done
  same_img measure --size 1G -O qcow2 -o cluster_size=512
  same_img measure --size 1P -O qcow2 -o cluster_size=2M
}

# A device of the size that is required, and not a byte larger: a file may be
# longer while it has holes.
@test "an image that is made afterwards fits into what is required" {
  need nbdkit
  make_files
  cd files
  for source in r.raw empty.raw top.qcow2 disk.qed; do
    for o in cluster_size=512 cluster_size=4k,refcount_bits=1 \
        cluster_size=64k,extended_l2=on cluster_size=1M,compat=0.10; do
      required=$("$NBDIMG" measure -O qcow2 -o "$o" --output json "$source" |
        jq .required)
      new_socket
      start nbdkit -f -U "$SOCKET" -P "$PIDFILE" memory "$required"
      wait_for_server "$STARTED_PID"
      URI="nbd+unix:///?socket=$SOCKET"
      "$NBDIMG" convert -O qcow2 -o "$o" "$source" "$URI" ||
        fail "$source $o: $required were required, but are too few"
      qemu-img compare -F qcow2 "$source" "$URI"
      qemu-img check -q "$URI"
      kill "$STARTED_PID"
    done
  done
}

@test "-l is about a snapshot, -f and --image-opts say what the source is" {
  make_files
  cd files
  same_img measure -O qcow2 -l s1 top.qcow2
  same_img measure -O qcow2 -l 1 top.qcow2
  same_img measure -O qcow2 -l snapshot.id=1,snapshot.name=s1 top.qcow2
  same_img measure -O qcow2 -f raw top.qcow2
  same_img measure -O qcow2 --image-opts \
    driver=qcow2,file.driver=file,file.filename=top.qcow2
  same_img measure -O qcow2 \
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
  same_img measure -l none top.qcow2
  same_img measure -l snapshot.foo=1 top.qcow2
  same_img_output measure -l s1 -f raw r.raw
}

# luks_like_theirs ARG...: qemu-img measures its processor for this, and now and
# then says that it cannot.
luks_like_theirs () {
  poll 20 sh -c 'qemu-img measure --object secret,id=s,data=abc "$@" >theirs' \
    - "$@"
  "$NBDIMG" measure --object secret,id=s,data=abc "$@" >ours
  cmp theirs ours
}

@test "the header and the key slots of LUKS count" {
  "$NBDIMG" create -q r.raw 5M
  luks_like_theirs -O luks -o key-secret=s --size 1G
  luks_like_theirs -O luks -o key-secret=s,cipher-alg=aes-128 r.raw
  luks_like_theirs -O qcow2 --size 1G \
    -o encrypt.format=luks,encrypt.key-secret=s
  luks_like_theirs -O qcow2 r.raw \
    -o encrypt.format=luks,encrypt.key-secret=s,cluster_size=4k
  same_img_output measure -O luks --size 1G
  same_img_output measure -O luks -o key-secret=none --size 1G
}

@test "bad invocations end as those of qemu-img" {
  make_files
  cd files
  same_img measure
  same_img measure -O qcow2
  same_img measure --size 1G r.raw
  same_img measure r.raw odd.raw
  same_img measure -l s1 --size 1G
  same_img measure -f raw --size 1G
  same_img measure --image-opts --size 1G
  same_img measure -f raw --image-opts driver=raw,file.filename=r.raw
  same_img measure --size abc
  same_img measure --size -1
  same_img measure --output=xml --size 1
  same_img measure -o , --size 1
  same_img measure -O vdi --size 1G
  same_img measure -O qed r.raw
  same_img measure -O qcow r.raw
  same_img measure -O none --size 1G
  same_img_output measure none.raw
  same_img_output measure -O qcow2 -o none=1 --size 1G
  same_img_output measure -O qcow2 -o lazy_refcounts=perhaps --size 1G
  same_img_output measure -O qcow2 -o cluster_size=3 --size 1G
  same_img_output measure -O qcow2 -o refcount_bits=3 --size 1G
  same_img_output measure -O qcow2 -o compat=9 --size 1G
  same_img_output measure -O qcow2 -o preallocation=some --size 1G
  same_img_output measure -O qcow2 -o cluster_size=4k,extended_l2=on --size 1G
  same_img_output measure -O qcow2 -o compat=0.10,refcount_bits=1 --size 1G
  same_img_output measure -O qcow2 -o encrypt.format=luks --size 1G
  same_img_output measure -O qcow2 -o cluster_size=512 --size 1P
}

@test "what create would refuse is refused; -o size is the new size" {
  make_files
  mv files/r.raw files/top.qcow2 .
  # Each line: the status of qemu-img, what we say, the arguments.
  while IFS='|' read -r theirs text args; do
    eval "own_img_status $theirs 1 '$text' measure -O qcow2 $args"
  done <<'EOF'
0|External data files are only|-o compat=0.10,data_file=x --size 1G
0|Lazy refcounts are only|-o compat=0.10,lazy_refcounts=on --size 1G
0|data_file_raw requires data_file|-o data_file_raw=on --size 1G
0|Backing file and preallocation|-o preallocation=full,backing_file=r.raw r.raw
0|specified only once|-o size=2G --size 1G
0|less than the 3145728 bytes|-o size=1M r.raw
0|encrypt.format|-o encrypt.format=xx --size 1G
EOF
  [ "$("$NBDIMG" measure -o size=4M r.raw)" = "required size: 4194304
fully allocated size: 4194304" ]
}

@test "-U measures what another program writes to" {
  qemu-img create -q -f qcow2 a.qcow2 10M
  mkfifo keep
  exec 5<>keep
  start qemu-io a.qcow2 <keep >/dev/null 5>&-
  poll 10 sh -c '! qemu-img info a.qcow2 >/dev/null 2>&1'
  run "$NBDIMG" measure -O qcow2 a.qcow2
  [ "$status" = 1 ]
  "$NBDIMG" measure -U -O qcow2 a.qcow2 >ours
  qemu-img measure -U -O qcow2 a.qcow2 >theirs
  cmp ours theirs
  exec 5>&-
}

# own_img_status THEIRS OURS TEXT ARG...: in this folder
own_img_status () {
  ln -sfn . theirs && ln -sfn . ours
  own_status "$@"
}

@test "what convert makes is as long as measure says, also where nothing is shared" {
  local size o
  random_image noise.raw 5M 3
  for size in 5M 700k 100000; do
    head -c $size noise.raw >r.raw
    for o in cluster_size=64k cluster_size=4k cluster_size=2M extended_l2=on; do
      "$NBDIMG" convert -O qcow2 -o $o r.raw t.qcow2
      required=$("$NBDIMG" measure --output=json -O qcow2 -o $o r.raw |
        jq .required)
      [ "$(stat -c %s t.qcow2)" -le "$required" ] ||
        fail "$size $o: $(stat -c %s t.qcow2) bytes, not $required"
      qemu-img compare -f raw r.raw t.qcow2
      qemu-img check -q t.qcow2
    done
  done
}
