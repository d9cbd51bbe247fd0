# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash

# Hostile VDI, qcow and QED images: "hostile_formats DIR" makes them, each as
# DIR/NAME.FORMAT, by writing bytes into a copy of a sound image.  A line of the
# table: NAME.FORMAT LENGTH OFFSET HEX [OFFSET HEX]...  LENGTH: of the file after
# that, = as it is.
#
# The VDI image (64 MiB) has its map at 512, blocks 0 and 5 with places 0 and 1;
# the qcow image (10 MiB) its L1 table at 48, the first L2 table at 0x1000, data
# from 0x2000 on, a compressed cluster at guest offset 1 MiB (entry 0x1800); the
# QED image (10 MiB, clusters of 4 KiB, tables of 2) its L1 table at 0x1000, data
# from 0x3000 on, their L2 table at 0x13000, more data, a second one at 0x25000.

hostile_formats_table='
version-0.vdi           =     68 00000000
version-max.vdi         =     68 ffffffff
type-0.vdi              =     76 00000000
differencing.vdi        =     76 04000000
type-max.vdi            =     76 ffffffff
map-0.vdi               =     340 00000000
map-max.vdi             =     340 ffffffff
map-far.vdi             =     340 00feffff
map-over-data.vdi       =     340 00000800
data-0.vdi              =     344 00000000
data-max.vdi            =     344 00feffff
data-over-map.vdi       =     344 00020000
sector-0.vdi            =     360 00000000
size-0.vdi              =     368 0000000000000000
size-max.vdi            =     368 ffffffffffffffff
size-int64-max.vdi      =     368 ffffffffffffff7f
size-blocks-64.vdi      =     368 000000f8ffff0100
block-0.vdi             =     376 00000000
block-16m.vdi           =     376 00000001
block-max.vdi           =     376 ffffffff
extra-max.vdi           =     380 ffffffff
blocks-0.vdi            =     384 00000000
blocks-max.vdi          =     384 ffffffff
blocks-128.vdi          =     384 80000000
blocks-129.vdi          =     384 81000000
bomb.vdi                4096  368 000000f8ffff0100 384 80ffff1f
huge-hole.vdi           3G    344 0000c0bf 368 000000f8ffff0100 384 80ffff1f
count-0.vdi             =     388 00000000
count-max.vdi           =     388 ffffffff
parent.vdi              =     440 01
entry-duplicate.vdi     =     516 00000000
entries-one-place.vdi   =     512 00000000000000000000000000000000000000000000
entry-outside.vdi       =     516 02000000
entry-far.vdi           =     516 fdffffff
entry-discarded.vdi     =     516 feffffff
entries-all-far.vdi     =     512 fdfffffffdfffffffdfffffffdfffffffdfffffffdffffff
cut-in-header.vdi       500   0 00
cut-in-map.vdi          600   0 00
cut-in-block.vdi        1M    0 00
no-blocks.vdi           1024  0 00
version-0.qcow          =     4 00000000
version-max.qcow        =     4 ffffffff
backing-max.qcow        =     8 ffffffffffffffffffffffff
backing-2-gib.qcow      =     8 00000000000000507fffffff
backing-nul.qcow        =     8 000000000000020000000020
backing-in-header.qcow  =     8 000000000000000000000020
backing-passwd.qcow     =     8 00000000000008000000000b 0x800 2f6574632f706173737764
size-0.qcow             =     24 0000000000000000
size-1.qcow             =     24 0000000000000001
size-2.qcow             =     24 0000000000000002
size-eeee.qcow          =     24 eeeeeeeeeeeeeeee
size-int64-max.qcow     =     24 7fffffffffffffff
size-4g.qcow            =     24 0000000100000000
cluster-bits-0.qcow     =     32 00
cluster-bits-8.qcow     =     32 08
cluster-bits-9.qcow     =     32 09
cluster-bits-16.qcow    =     32 10
cluster-bits-17.qcow    =     32 11
cluster-bits-max.qcow   =     32 ff
l2-bits-0.qcow          =     33 00
l2-bits-6.qcow          =     33 06
l2-bits-13.qcow         =     33 0d
l2-bits-14.qcow         =     33 0e
l2-bits-27.qcow         =     33 1b
l2-bits-max.qcow        =     33 ff
crypt-aes.qcow          =     36 00000001
crypt-max.qcow          =     36 ffffffff
l1-0.qcow               =     40 0000000000000000
l1-odd.qcow             =     40 0000000000000031
l1-max.qcow             =     40 ffffffffffffffff
l1-int64-max.qcow       =     40 7fffffffffffffff
l1-is-l2.qcow           =     40 0000000000001000
l1-entry-header.qcow    =     48 0000000000000030
l1-entry-odd.qcow       =     48 0000000000001010
l1-entry-far.qcow       =     48 7ffffffffffff000
l1-entry-max.qcow       =     48 ffffffffffffffff
l1-entries-same.qcow    =     48 00000000000010000000000000001000
l2-entry-header.qcow    =     0x1000 0000000000000200
l2-entry-l2.qcow        =     0x1000 0000000000001000
l2-entry-odd.qcow       =     0x1000 0000000000002010
l2-entry-far.qcow       =     0x1000 7ffffffffffff000
l2-entries-same.qcow    =     0x1000 00000000000020000000000000002000
packed-max.qcow         =     0x1800 ffffffffffffffff
packed-0.qcow           =     0x1800 8000000000000000
packed-header.qcow      =     0x1800 8008000000000000
packed-long.qcow        =     0x1800 fff8000000002000
packed-far.qcow         =     0x1800 8807ffffffffffff
cut-in-header.qcow      40    0 51
cut-in-l1.qcow          52    0 51
cut-in-l2.qcow          6152  0 51
cluster-size-0.qed      =     4 00000000
cluster-size-2k.qed     =     4 00080000
cluster-size-odd.qed    =     4 01100000
cluster-size-64m.qed    =     4 00000004
cluster-size-128m.qed   =     4 00000008
cluster-size-max.qed    =     4 ffffffff
table-size-0.qed        =     8 00000000
table-size-1.qed        =     8 01000000
table-size-3.qed        =     8 03000000
table-size-16.qed       =     8 10000000
table-size-max.qed      =     8 ffffffff
tables-1-gib.qed        =     4 0000000410000000
header-0.qed            =     12 00000000
header-2.qed            =     12 02000000
header-max.qed          =     12 ffffffff
feature-8.qed           =     16 08
features-max.qed        =     16 ffffffffffffffff
need-check.qed          =     16 02
others-max.qed          =     24 ffffffffffffffffffffffffffffffff
l1-0.qed                =     40 0000000000000000
l1-odd.qed              =     40 0002000000000000
l1-is-data.qed          =     40 0030000000000000
l1-is-l2.qed            =     40 0030010000000000
l1-last.qed             =     40 0060020000000000
l1-max.qed              =     40 ffffffffffffffff
size-0.qed              =     48 0000000000000000
size-1.qed              =     48 0100000000000000
size-512.qed            =     48 0002000000000000
size-reach.qed          =     48 0000000001000000
size-over.qed           =     48 0002000001000000
size-int64-max.qed      =     48 00feffffffffff7f
size-max.qed            =     48 ffffffffffffffff
backing-fields.qed      =     16 01 56 000000000c000000
backing-over.qed        =     16 01 56 f50f00000c000000
backing-max.qed         =     16 01 56 ffffffffffffffff
backing-nul.qed         =     16 01 56 0001000010000000
backing-empty.qed       =     16 01 56 0000000000000000
backing-itself.qed      =     16 01 56 4000000012000000 64 6261636b696e672d697473656c662e716564
l1-entry-1.qed          =     0x1000 0100000000000000
l1-entry-header.qed     =     0x1000 0000000000000080
l1-entry-l1.qed         =     0x1000 0010000000000000
l1-entry-data.qed       =     0x1000 0030000000000000
l1-entry-odd.qed        =     0x1000 0030010000000001
l1-entry-lapped.qed     =     0x1000 0040010000000000
l1-entry-last.qed       =     0x1000 0060020000000000
l1-entry-far.qed        =     0x1000 00f0ffffffffff7f
l1-entry-max.qed        =     0x1000 ffffffffffffffff
l1-entries-same.qed     =     0x1000 00300100000000000030010000000000
l2-entry-2.qed          =     0x13000 0200000000000000
l2-entry-l1.qed         =     0x13000 0020000000000000
l2-entry-l2.qed         =     0x13000 0040010000000000
l2-entry-odd.qed        =     0x13000 0032000000000000
l2-entry-end.qed        =     0x13000 0070020000000000
l2-entry-far.qed        =     0x13000 00f0ffffffffff7f
l2-entry-max.qed        =     0x13000 ffffffffffffffff
l2-entries-same.qed     =     0x13000 00500000000000000050000000000000
need-check-bad.qed      =     16 02 0x13000 00700200000000000020000000000000
need-check-same.qed     =     16 02 0x13000 00500000000000000050000000000000
huge-hole.qed           3G    16 02
cut-in-header.qed       63    0 51
cut-in-l1.qed           8192  0 51
cut-in-data.qed         20000 0 51
cut-in-l2.qed           80000 0 51
'

hostile_formats_bases () {
  qemu-img create -q -f vdi "$1/.base.vdi" 64M &&
    qemu-img create -q -f qcow "$1/.base.qcow" 10M &&
    qemu-img create -q -f qed -o cluster_size=4k,table_size=2 \
      "$1/.base.qed" 10M &&
    qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 5M 64k' "$1/.base.vdi" &&
    qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 5M 64k' "$1/.base.qed" &&
    qemu-io -c 'write -P 1 0 64k' -c 'write -c -P 3 1M 4k' \
      -c 'write -P 2 5M 64k' "$1/.base.qcow"
}

# hostile_formats DIR, with hostile/images.bash loaded
hostile_formats () {
  local name length line
  mkdir -p "$1" && hostile_formats_bases "$1" >/dev/null || return
  while read -r name length line; do
    [ -n "$name" ] || continue
    cp --sparse=always "$1/.base.${name##*.}" "$1/$name"
    # shellcheck disable=SC2086
    set -- "$1" $line
    while [ $# -gt 1 ]; do
      hostile_poke "$1/$name" "$2" "$3" || return
      set -- "$1" "${@:4}"
    done
    [ "$length" = = ] || truncate -s "$length" "$1/$name" || return
  done <<<"$hostile_formats_table"
}
