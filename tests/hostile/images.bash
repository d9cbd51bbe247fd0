# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash

# Hostile qcow2 images.  "hostile_images DIR" makes them all, each as
# DIR/NAME.qcow2, from a few sound images (BASE) by writing bytes into a copy.
# A line of the table: NAME BASE OFFSET HEX [OFFSET HEX]...
#
# Where things are in the bases with 64 KiB clusters: refcount table 0x10000,
# refcount block 0x20000, L1 0x30000, L2 0x40000, data from 0x50000 on.
# snap: the snapshot's L1 0x90000, snapshot table 0xa0000, the new L2 0xb0000.
# bitmap: data 0x90000, bitmap table 0xa0000, directory 0x100000.
#
# Header: version 4, backing name 8 and 16, cluster_bits 20, size 24, crypt 32,
# l1_size 36, L1 40, refcount table 48 and 56, snapshots 60 and 64, features 72
# (incompatible), 80, 88 (autoclear), refcount_order 96, header_length 100,
# compression_type 104, first extension 112.

hostile_table='
# each number of the header: 0
zero-version            written  4 00000000
zero-cluster-bits       written  20 00000000
zero-size               written  24 0000000000000000
zero-l1-size            written  36 00000000
zero-l1-offset          written  40 0000000000000000
zero-reftable-offset    written  48 0000000000000000
zero-reftable-clusters  written  56 00000000
zero-refcount-order     written  96 00000000
zero-header-length      written  100 00000000
zero-everything         written  4 00000000000000000000000000000000000000000000
# each number: too large
huge-version            written  4 ffffffff
huge-cluster-bits       written  20 ffffffff
cluster-bits-64         written  20 00000040
cluster-bits-22         written  20 00000016
cluster-bits-21         written  20 00000015
cluster-bits-9          written  20 00000009
cluster-bits-8          written  20 00000008
huge-size               written  24 ffffffffffffffff
size-int64-max          written  24 7fffffffffffffff
size-1-tib              written  24 0000010000000000
size-1-tib-l1           written  24 0000010000000000 36 00000800
size-2-eib              written  20 00000015 24 2000000000000000 36 00400000
huge-crypt              written  32 ffffffff
crypt-aes               written  32 00000001
crypt-luks              written  32 00000002
huge-l1-size            written  36 ffffffff
l1-size-int-max         written  36 7fffffff
l1-size-32-mib          written  36 00400000
l1-size-32-mib-and-one  written  36 00400001
huge-l1-offset          written  40 ffffffffffffffff
l1-offset-unaligned     written  40 0000000000030200
l1-offset-int64-max     written  40 7fffffffffff0000
l1-at-refcount-table    written  40 0000000000010000
l1-behind-the-file      written  40 00000000000f0000
huge-reftable-offset    written  48 ffffffffffffffff
reftable-unaligned      written  48 0000000000010200
reftable-behind-file    written  48 00000000ffff0000
reftable-is-l1          written  48 0000000000030000
reftable-8-mib          written  56 00000080
reftable-8-mib-and-one  written  56 00000081
huge-reftable-clusters  written  56 ffffffff
reftable-wraps          written  56 00020001
huge-refcount-order     written  96 ffffffff
refcount-order-7        written  96 00000007
refcount-order-6        written  96 00000006
refcount-order-0        written  96 00000000
huge-header-length      written  100 ffffffff
header-length-105       written  100 00000069
header-length-65536     written  100 00010000
header-length-65544     written  100 00010008
compression-no-bit      written  104 01
compression-bit-only    written  72 0000000000000008
compression-unknown     written  72 0000000000000008 104 07
# features
dirty                   written  72 0000000000000001
dirty-no-refcounts      written  72 0000000000000001 0x10000 0000000000000000
dirty-damaged           written  72 0000000000000001 0x40000 80000000ffff0000
corrupt                 written  72 0000000000000002
data-file-no-name       written  72 0000000000000004
extended-l2-bit         written  72 0000000000000010
unknown-incompatible    written  72 0000000000000020
all-incompatible        written  72 ffffffffffffffff
all-autoclear           written  88 ffffffffffffffff
data-file-raw-alone     written  88 0000000000000002
# header extensions and names
huge-extension          written  116 ffffffff
extension-to-the-end    written  116 0000ff88
extension-one-too-long  written  116 0000ff89
extension-unknown       written  112 12345678ffffff00
huge-bitmaps-extension  written  112 2387287500000018
bitmaps-extension       written  112 2385287500000018
backing-offset-alone    written  8 0000000000000200
backing-length-alone    written  16 00000020
backing-with-nuls       written  8 000000000000020000000020
backing-in-header       written  8 000000000000000800000020
backing-behind-cluster  written  8 000000000001000000000020
backing-1024-bytes      written  8 000000000000100000000400
backing-2-gib           written  8 00000000000002007fffffff
huge-backing-offset     written  8 ffffffffffffffffffffffff
backing-escapes         backing  0x238 1b5b324a1b5d303b
backing-format-blank    backing  112 00000000
backing-format-odd      backing  120 2e2e2f2e
# L1
l1-entry-to-l1          written  0x30000 8000000000030000
l1-entry-to-header      written  0x30000 8000000000000000
l1-entry-to-reftable    written  0x30000 8000000000010000
l1-entry-to-refblock    written  0x30000 8000000000020000
l1-entry-to-data        written  0x30000 8000000000050000
l1-entry-unaligned      written  0x30000 8000000000040200
l1-entry-2a00           written  0x30000 8000000000042a00
l1-entry-behind-file    written  0x30000 80000000ffff0000
l1-entry-reserved       written  0x30000 ff00000000040000
l1-entry-all-ones       written  0x30000 ffffffffffffffff
l1-entry-last-cluster   written  0x30000 8000000000080000
# L2
l2-entry-to-header      written  0x40000 8000000000000200
l2-entry-to-refblock    written  0x40000 8000000000020000
l2-entry-to-reftable    written  0x40000 8000000000010000
l2-entry-to-l1          written  0x40000 8000000000030000
l2-entry-to-l2          written  0x40000 8000000000040000
l2-entry-unaligned      written  0x40000 8000000000052a00
l2-entry-behind-file    written  0x40000 800000ffffff0000
l2-entry-far            written  0x40000 800000ffffff0000
l2-entry-reserved       written  0x40000 bf000000000501fe
l2-entry-all-ones       written  0x40000 ffffffffffffffff
l2-entry-shared         written  0x40000 8000000000060000
l2-entry-zero-unaligned written  0x40000 8000000000052a01
# compressed clusters
packed-garbage          written  0x40000 4000000000050000
packed-too-far          written  0x40000 4006000000050000
packed-too-long         written  0x40000 7ffe000000050000
packed-all-ones         written  0x40000 7fffffffffffffff
packed-copied           written  0x40000 c000000000050000
packed-in-header        written  0x40000 4000000000000000
packed-is-l2            written  0x40000 4000000000040000
packed-at-the-end       written  0x40000 400000000008fe00
packed-over-the-end     written  0x40000 400000000008ffff
packed-short            packed   0x40000 4000000000050000
packed-cut              packed   0x50010 0000000000000000
zstd-garbage            zstd     0x50010 ffffffffffffffff
zstd-no-frame           zstd     0x50000 0000000000000000
# refcounts
reftable-entry-none     written  0x10000 0000000000000000
reftable-entry-unalign  written  0x10000 0000000000020200
reftable-entry-2a00     written  0x10000 0000000000022a00
reftable-entry-behind   written  0x10000 00000000ffff0000
reftable-entry-ones     written  0x10000 ffffffffffffffff
reftable-entry-l1       written  0x10000 0000000000030000
reftable-entry-self     written  0x10000 0000000000010000
reftable-entry-header   written  0x10000 00000000000001ff
reftable-second         written  0x10008 0000000000020000
refcounts-zero          written  0x20000 0000000000000000
refcounts-header-free   written  0x20000 0000
refcounts-all-zero      written  0x20000 0000000000000000000000000000000000000000
refcounts-max           written  0x20000 ffffffffffffffffffffffffffffffffffffffff
refcounts-data-free     written  0x2000a 0000000000000000
# snapshots
snapshots-65537         snap     60 00010001
snapshots-65536         snap     60 00010000
snapshots-max           snap     60 ffffffff
snapshots-2             snap     60 00000002
snapshots-none-there    written  60 00000001
snapshots-unaligned     snap     64 00000000000a0200
snapshots-in-header     snap     64 0000000000000000
snapshots-behind-file   snap     64 00000000ffff0000
huge-snapshots-offset   snap     64 ffffffffffffffff
snapshots-int64-max     snap     64 7fffffffffff0000
snapshot-l1-unaligned   snap     0xa0000 0000000000090200
snapshot-l1-behind      snap     0xa0000 00000000ffff0000
snapshot-l1-huge-offset snap     0xa0000 ffffffffffff0000
snapshot-l1-is-active   snap     0xa0000 0000000000030000
snapshot-l1-huge        snap     0xa0008 10000000
snapshot-l1-max         snap     0xa0008 ffffffff
snapshot-l1-none        snap     0xa0008 00000000
snapshot-names-long     snap     0xa000c ffffffff
snapshot-extra-1025     snap     0xa0024 00000401
snapshot-extra-max      snap     0xa0024 ffffffff
snapshot-extra-none     snap     0xa0024 00000000
snapshot-vm-state-max   snap     0xa0028 ffffffffffffffff
snapshot-size-max       snap     0xa0030 ffffffffffffffff
snapshot-size-1-tib     snap     0xa0030 0000010000000000
snapshot-escapes        snap     0xa0040 1b5b4a
snapshot-name-nul       snap     0xa0040 000000
snapshot-l1-entry-far   snap     0x90000 80000000ffff0000
snapshot-l1-entry-self  snap     0x90000 8000000000090000
snapshot-copied         snap     0x40008 8000000000060000 0xb0008 8000000000060000
# bitmaps
bitmaps-none            bitmap   512 00000000
bitmaps-3               bitmap   512 00000003
bitmaps-max             bitmap   512 ffffffff
bitmap-dir-short        bitmap   520 0000000000000008
bitmap-dir-0            bitmap   520 0000000000000000
bitmap-dir-huge         bitmap   520 ffffffffffffffff
bitmap-dir-64-mib       bitmap   520 0000000004000000
bitmap-dir-unaligned    bitmap   528 0000000000100200
bitmap-dir-behind       bitmap   528 00000000ffff0000
bitmap-dir-huge-offset  bitmap   528 ffffffffffff0000
bitmap-table-behind     bitmap   0x100000 00000000ffff0000
bitmap-table-unaligned  bitmap   0x100000 00000000000a0200
bitmap-table-max        bitmap   0x100008 ffffffff
bitmap-flags            bitmap   0x10000c fffffff8
bitmap-granularity-255  bitmap   0x100011 ff
bitmap-name-0           bitmap   0x100012 0000
bitmap-name-max         bitmap   0x100012 ffff
bitmap-extra-max        bitmap   0x100014 ffffffff
bitmap-name-escapes     bitmap   0x100018 1b0a
bitmap-data-far         bitmap   0xa0000 00000000ffff0000
bitmap-data-ones        bitmap   0xa0000 ffffffffffffffff
bitmap-data-l2          bitmap   0xa0000 0000000000040000
# extended L2
extended-both-bits      extended 0x40008 ffffffffffffffff
extended-no-cluster     extended 0x40000 000000000000000000000000ffffffff
extended-zero-bit       extended 0x40000 8000000000050001
extended-packed         extended 0x40000 4000000000050000ffffffffffffffff
extended-512            extended 20 00000009
# external data file
data-moved              datafile 0x40008 8000000000050000
data-packed             datafile 0x40008 4000000000010000
data-far                datafile 0x40008 80ffffffffff0000
data-not-copied         datafile 0x40008 0000000000010000
data-name-empty         datafile 116 00000000
data-name-outside       datafile 120 2f6574632f6e6f73756368
data-name-json          datafile 120 6a736f6e3a7b202020207d
data-name-nul           datafile 120 6a736f6e3a7b7d00000000
data-name-escapes       datafile 120 1b5b324a0d1b5d303b6107
data-name-huge          datafile 116 7fffffff
# version 2
v2-zero-bit             version2 0x40000 8000000000050001
v2-behind-file          version2 0x40000 80000000ffff0000
'

hostile_base () {
  local f=$1/.base-$2
  [ -e "$f" ] && return
  case $2 in
  extended) qemu-img create -q -f qcow2 -o extended_l2=on "$f" 64M ;;
  version2) qemu-img create -q -f qcow2 -o compat=0.10 "$f" 64M ;;
  zstd) qemu-img create -q -f qcow2 -o compression_type=zstd "$f" 64M ;;
  backing)
    qemu-img create -q -f raw "$1/base.raw" 1M
    qemu-img create -q -f qcow2 -b base.raw -F raw "$f" 64M ;;
  datafile)
    # The name is as long as those that take its place.
    (cd "$1" && qemu-img create -q -f qcow2 -o data_file=data-01.raw \
      .base-datafile 64M) ;;
  *) qemu-img create -q -f qcow2 "$f" 64M ;;
  esac || return
  case $2 in
  packed | zstd)
    qemu-io -c 'write -c -P 17 0 64k' -c 'write -c -P 18 64k 64k' "$f" ;;
  *) (cd "$1" && qemu-io -c 'write -P 17 0 256k' "$f") ;;
  esac >/dev/null
  case $2 in
  snap)
    qemu-img snapshot -c s1 "$f"
    qemu-io -c 'write -P 18 0 64k' "$f" >/dev/null ;;
  bitmap)
    qemu-img bitmap --add "$f" b0
    qemu-img bitmap --add "$f" bb
    qemu-io -c 'write -P 18 64k 64k' "$f" >/dev/null ;;
  esac
}

hostile_poke () {
  printf '%s' "$3" | xxd -r -p |
    dd of="$1" bs=64k seek=$(($2)) oflag=seek_bytes conv=notrunc status=none
}

hostile_from_table () {
  local name base line
  while read -r name base line; do
    case $name in '' | '#'*) continue ;; esac
    hostile_base "$1" "$base" || return
    cp --sparse=always "$1/.base-$base" "$1/$name.qcow2"
    # shellcheck disable=SC2086
    set -- "$1" $line
    while [ $# -gt 1 ]; do
      hostile_poke "$1/$name.qcow2" "$2" "$3" || return
      set -- "$1" "${@:4}"
    done
  done <<<"$hostile_table"
}

# Images that take more than a few bytes.
hostile_special () {
  python3 - "$1" "$1/.base-written" <<'EOF'
import os, struct, sys, zlib
d, base = sys.argv[1:]
base = open(base, "rb").read()

def header(cluster_bits=16, size=64 << 20, l1=(0x30000, 1), rt=(0x10000, 1),
           snaps=(0, 0), incompat=0, order=4):
    return struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0,
                       cluster_bits, size, 0, l1[1], l1[0], rt[0], rt[1],
                       snaps[1], snaps[0], incompat, 0, 0, order, 104)

def image(name, length, *pieces):
    with open(os.path.join(d, name + ".qcow2"), "wb") as f:
        f.truncate(length)
        for at, data in pieces:
            f.seek(at)
            f.write(data)

def be64(v, n=1):
    return struct.pack(">Q", v) * n

def deflate(data):
    z = zlib.compressobj(9, zlib.DEFLATED, -12)
    return z.compress(data) + z.flush()

COPIED = 1 << 63
for n in 0, 4, 71, 72, 103, 104, 111, 112, 119, 120, 512, 65536, 65537:
    open(os.path.join(d, "cut-%d.qcow2" % n), "wb").write(base[:n])
open(os.path.join(d, "cut-in-l2.qcow2"), "wb").write(base[:0x40008])
open(os.path.join(d, "cut-in-data.qcow2"), "wb").write(base[:0x58001])
# an extension that says it is 4 GiB long, in a file of 120 bytes
open(os.path.join(d, "extension-120-bytes.qcow2"), "wb").write(
    base[:116] + b"\xff\xff\xff\xff")

# 1 TiB of virtual size in a file of a few hundred bytes
image("claim-1-tib", 512, (0, header(size=1 << 40, l1=(0x30000, 2048))))
# the largest L1 table there can be, each entry to one L2 table that is a hole
image("l1-to-one-l2", 0x2200000 + 0x20000,
      (0, header(size=1 << 40, l1=(0x200000, 32768))),
      (0x10000, be64(0x20000)), (0x20000, b"\0\1" * 32768),
      (0x200000, be64(COPIED | 0x40000, 32768)),
      (0x40000, be64(COPIED | 0x50000, 8192)))
# the same with clusters of 512 bytes
image("l1-to-one-l2-512", 0x2000000 + 0x400000,
      (0, header(cluster_bits=9, size=1 << 36, l1=(0x200000, 1 << 22),
                 rt=(0x400, 1))),
      (0x400, be64(0x600)),
      (0x200000, be64(COPIED | 0x1000, 1 << 20)),
      (0x1000, be64(COPIED | 0x1200, 64)))
# a refcount table of 8 MiB, each entry to the same block
image("reftable-to-one-block", 1 << 40,
      (0, header(rt=(0x1000000, 128))),
      (0x1000000, be64(0x20000, 1 << 20)), (0x20000, b"\0\1" * 32768))
# the same where no block is in use
image("reftable-to-holes", 1 << 42, (0, header(rt=(0x1000000, 128))),
      (0x1000000, b"".join(be64((i + 512) << 16) for i in range(1 << 20))))
# 8 TiB of leaks
image("leaks-8-tib", 1 << 43, (0, header(rt=(0x1000000, 1), order=0)),
      (0x1000000, be64(0x20000, 256)), (0x20000, b"\xff" * 65536))
# as many snapshots as there can be, all with the same L1 table of 32 MiB
entry = struct.pack(">QIHHIIQII", 0x1000000, 1 << 22, 1, 1, 0, 0, 0, 0, 16) \
    + bytes(16) + b"ab" + bytes(6)
image("snapshots-one-l1", 0x1000000 + (32 << 20),
      (0, header(snaps=(0x80000, 65536))), (0x10000, be64(0x20000)),
      (0x80000, entry * 65536), (0x1000000, be64(COPIED | 0x40000, 1 << 16)),
      (0x40000, be64(COPIED | 0x50000, 8192)))
# the same, each a cluster behind the one before, in a sparse file
image("snapshots-overlap", 0x1000000 + (32 << 20) + (65536 << 16),
      (0, header(snaps=(0x80000, 65536))),
      (0x80000, b"".join(struct.pack(
          ">QIHHIIQII", 0x1000000 + (i << 16), 1 << 22, 1, 1, 0, 0, 0, 0, 16)
          + bytes(16) + b"ab" + bytes(6) for i in range(65536))))
# snapshots without an end: names of 65535 bytes
image("snapshots-long-names", 1 << 36,
      (0, header(snaps=(0x80000, 65536))),
      *((0x80000 + i * 131136, struct.pack(
          ">QIHHIIQII", 0x30000, 1, 65535, 65535, 0, 0, 0, 0, 16))
        for i in range(1024)))
# more than 2^32 clusters, the last ones in use
image("clusters-2-32", 1 << 43,
      (0, header(cluster_bits=9, size=1 << 36, l1=(0x200000, 1 << 22),
                 rt=(0x400, 1))),
      (0x400, be64(0x600)),
      (0x200000, be64(COPIED | ((1 << 43) - 512))),
      ((1 << 43) - 512, be64(COPIED | ((1 << 43) - 1024), 64)))
# sound, but far away: a compressed cluster above 4 GiB
image("sound-packed-far", (5 << 30) + 65536,
      (0, header()),
      (0x10000, be64(0x20000) + be64(0) + be64(0x50000)),
      (0x20000, b"\0\1" * 6), (0x50000 + 2 * 16384, b"\0\1"),
      (0x30000, be64(COPIED | 0x40000)),
      (0x40000, be64(1 << 62 | (5 << 30) + 4096)),
      ((5 << 30) + 4096, deflate(b"\x11" * 65536)))
# a refcount block at 8 TiB
image("refblock-at-8-tib", (1 << 43) + 65536,
      (0, header()), (0x10000, be64(1 << 43)), (1 << 43, b"\0\1" * 5),
      (0x30000, be64(COPIED | 0x40000)), (0x40000, be64(COPIED | 0x50000)))
# L2 tables of 2 MiB that are holes, as many as an L1 of 4 MiB can name
image("l2-in-holes", 1 << 41,
      (0, header(cluster_bits=21, size=1 << 55, l1=(0x800000, 1 << 19),
                 rt=(0x200000, 1))),
      (0x800000, b"".join(be64(COPIED | ((16 + i) << 21))
                          for i in range(1 << 19))))
# dirty, and its refcounts would cover far more than the file has
image("dirty-1-tib", 0x90000,
      (0, header(size=1 << 40, l1=(0x30000, 2048), incompat=1)),
      (0x10000, be64(0x20000)), (0x30000, be64(COPIED | 0x40000)),
      (0x40000, be64(COPIED | 0x50000)))
image("dirty-no-table", 0x90000,
      (0, header(size=1 << 40, l1=(0x30000, 2048), incompat=1)),
      (0x30000, be64(COPIED | 0x40000)), (0x40000, be64(COPIED | 0x50000)))
EOF
}

# Names that lead elsewhere, round in a circle, or nowhere.
hostile_names () {
  local i name
  (
    cd "$1" || return
    qemu-img create -q -f qcow2 -u -b name-loop.qcow2 -F qcow2 x 1M
    mv x name-loop.qcow2
    qemu-img create -q -f qcow2 -u -b name-loop-b.qcow2 -F qcow2 \
      name-loop-a.qcow2 1M
    qemu-img create -q -f qcow2 -u -b name-loop-a.qcow2 -F qcow2 \
      name-loop-b.qcow2 1M
    i=0
    for name in /etc/passwd ../../../../../etc/passwd /dev/zero /dev/stdin . \
      'json:{"driver":"null-co"}' 'json:{' 'nbd+ssh://-oProxyCommand=x/' \
      'nbd://127.0.0.1:1/' 'fd:0' '[ id ]' nosuch.raw nbd:unix:/nosuch \
      "$(printf 'esc\033[2Japed')"; do
      i=$((i + 1))
      qemu-img create -q -f qcow2 -u -b "$name" -F raw "name-$i.qcow2" 1M
    done
    rm -f fifo
    mkfifo fifo
    qemu-img create -q -f qcow2 -u -b fifo -F raw name-fifo.qcow2 1M
    # a raw backing file that begins as an image does, without a format
    cp .base-written name-probed.raw
    qemu-img create -q -f qcow2 -u -b name-probed.raw -F raw \
      name-probed.qcow2 1M
    hostile_poke name-probed.qcow2 112 12345678
  )
}

hostile_images () {
  mkdir -p "$1" && hostile_from_table "$1" && hostile_special "$1" &&
    hostile_names "$1"
}
