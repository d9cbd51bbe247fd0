#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Reads and writes through the plugin.

load lib
load plugin

@test "nbdcopy from and to the plugin keeps every byte" {
  random_image data 20M 1
  for fmt in raw qcow2; do
    make_disk $fmt disk 20M
    captive -- disk format=$fmt -- 'nbdcopy data "$uri"'
    is_clean disk
    qemu-img compare -f raw -F $fmt data disk
    captive -r -- disk format=$fmt -- 'nbdcopy "$uri" copy'
    cmp data copy
  done
}

@test "nbdcopy with four connections writes what one connection reads" {
  random_image data 20M 2
  make_disk qcow2 disk 20M
  captive -- disk -- 'nbdcopy --connections=4 --requests=16 \
    --request-size=65536 data "$uri" && nbdcopy --connections=1 "$uri" copy'
  cmp data copy
  is_clean disk
}

@test "writes of any offset and length read back, here and by QEMU" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 3M
    captive -- disk format=$fmt -- 'nbdsh -u "$uri" -c "
import random
rnd = random.Random(3)
model = bytearray(3 << 20)
for i in range(400):
    n = rnd.choice([1, 2, 511, 512, 513, 4096, 65536, 70001])
    o = rnd.randrange(len(model) - n)
    b = rnd.randbytes(n) if rnd.random() < 0.8 else bytes(n)
    if rnd.random() < 0.2:
        h.zero(n, o)
        b = bytes(n)
    else:
        h.pwrite(b, o)
    model[o:o+n] = b
    n = rnd.randrange(1, 100000)
    o = rnd.randrange(len(model) - n)
    assert h.pread(n, o) == model[o:o+n]
assert h.pread(len(model), 0) == model
open(\"model\", \"wb\").write(model)"'
    is_clean disk
    qemu-img compare -f raw -F $fmt model disk
  done
}

@test "a request past the end is refused, also one that wraps" {
  make_disk qcow2 disk 1M
  captive -- disk -- 'nbdsh -u "$uri" -c "
import errno, nbd
h.set_strict_mode(0)
end = h.get_size()
for offset in end, end - 1, (1 << 63) - 1, (1 << 64) - 1:
    for f in (lambda: h.pwrite(b\"xy\", offset), lambda: h.pread(2, offset),
              lambda: h.zero(2, offset), lambda: h.trim(2, offset)):
        try:
            f()
            assert False, offset
        except nbd.Error as e:
            assert e.errno in (\"ENOSPC\", \"EINVAL\"), e
assert h.pread(end, 0) == bytes(end)"'
}

@test "a flush on one connection covers what another one wrote" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 64M
    start_nbdkit disk format=$fmt
    nbdsh -c "
import nbd
a, b, c = [nbd.NBD() for _ in range(3)]
for h in a, b, c:
    h.connect_uri('$URI')
    assert h.can_multi_conn()
for i in range(100):
    data = bytes([i + 1]) * 5000
    a.pwrite(data, i * 600000)
    b.flush()
    assert c.pread(5000, i * 600000) == data, i
"
    # What was flushed is there when the server dies at once.
    kill_server disk
    qemu-img convert -f $fmt -O raw disk copy
    nbdsh -c "
f = open('copy', 'rb')
for i in range(100):
    f.seek(i * 600000)
    assert f.read(5000) == bytes([i + 1]) * 5000, i
"
  done
}

@test "FUA writes, zeroes and trims survive kill -9 without a flush" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 8M
    qemu-io -f $fmt -c 'write -P 9 4M 4M' disk >/dev/null
    start_nbdkit disk format=$fmt
    nbdsh -u "$URI" -c "
import nbd
h.pwrite(b'A' * 70000, 0, nbd.CMD_FLAG_FUA)
h.pwrite(b'B' * 512, 1 << 20, nbd.CMD_FLAG_FUA)
h.zero(70000, 4 << 20, nbd.CMD_FLAG_FUA)
h.zero(70000, 5 << 20, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 6 << 20, nbd.CMD_FLAG_FUA)
open('after-trim', 'wb').write(h.pread(1 << 20, 6 << 20))
"
    kill_server disk
    qemu-img convert -f $fmt -O raw disk copy
    nbdsh -c "
d = open('copy', 'rb').read()
assert d[:70000] == b'A' * 70000
assert d[1 << 20:][:512] == b'B' * 512
assert d[4 << 20:][:70000] == bytes(70000)
assert d[5 << 20:][:70000] == bytes(70000)
assert d[6 << 20:7 << 20] == open('after-trim', 'rb').read()
"
  done
}

@test "with cache=writethrough and directsync every write survives kill -9" {
  for mode in writethrough directsync; do
    make_disk qcow2 disk 8M
    start_nbdkit disk cache=$mode
    nbdsh -u "$URI" -c "
for i in range(8):
    h.pwrite(b'w' * 4096, i << 20)
"
    kill_server disk
    qemu-img convert -f qcow2 -O raw disk copy
    nbdsh -c "
d = open('copy', 'rb').read()
for i in range(8):
    assert d[i << 20:][:4096] == b'w' * 4096, i
"
  done
}

@test "every cache mode reads back what was written" {
  random_image data 4M 4
  for mode in writeback none writethrough directsync unsafe; do
    for fmt in raw qcow2; do
      make_disk $fmt disk 4M
      captive -- disk format=$fmt cache=$mode -- \
        'nbdcopy --flush data "$uri" && nbdcopy "$uri" copy'
      cmp data copy
      is_clean disk
    done
  done
}

@test "zero with NO_HOLE keeps the space, without it gives it back" {
  for fmt in raw qcow2; do
    make_disk $fmt disk 8M
    captive -- disk format=$fmt -- 'nbdsh -u "$uri" -c "
import os, nbd
used = lambda: os.stat(\"disk\").st_blocks * 512
h.pwrite(b\"x\" * (8 << 20), 0)
h.flush()
full = used()
h.zero(4 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
h.flush()
assert used() >= full - 65536, (used(), full)
assert h.pread(4 << 20, 0) == bytes(4 << 20)
h.zero(4 << 20, 4 << 20)
h.flush()
assert used() <= full - (3 << 20), (used(), full)
assert h.pread(8 << 20, 0) == bytes(8 << 20)"'
    is_clean disk
  done
}

@test "trim frees space; with discard=ignore it changes nothing" {
  for fmt in raw qcow2; do
    for discard in unmap ignore; do
      make_disk $fmt disk 8M
      discard=$discard captive -- disk format=$fmt discard=$discard -- \
        'nbdsh -u "$uri" -c "
import os
used = lambda: os.stat(\"disk\").st_blocks * 512
data = b\"x\" * (8 << 20)
h.pwrite(data, 0)
h.flush()
full = used()
h.trim(4 << 20, 4 << 20)
h.flush()
if os.environ[\"discard\"] == \"unmap\":
    assert used() <= full - (3 << 20), (used(), full)
    assert h.pread(4 << 20, 4 << 20) == bytes(4 << 20)
else:
    assert used() == full, (used(), full)
    assert h.pread(8 << 20, 0) == data
assert h.pread(4 << 20, 0) == data[:4 << 20]"'
      is_clean disk
    done
  done
}

@test "a fast zero that is not fast fails at once and changes nothing" {
  # Version 2 has no zero clusters: over a backing file only bytes can say it.
  make_disk raw base 1M
  qemu-io -f raw -c 'write -P 5 0 1M' base >/dev/null
  qemu-img create -q -f qcow2 -o compat=0.10 -b base -F raw disk
  captive -- disk -- 'nbdsh -u "$uri" -c "
import nbd
assert h.can_fast_zero()
try:
    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert False
except nbd.Error as e:
    assert e.errno in (\"ENOTSUP\", \"EOPNOTSUPP\"), e
assert h.pread(1 << 20, 0) == b\"\\5\" * (1 << 20)
h.zero(65536, 0)
assert h.pread(65536, 0) == bytes(65536)"'
  is_clean disk
}

@test "a fast zero that is fast is done" {
  make_disk qcow2 disk 1M
  qemu-io -c 'write -P 5 0 1M' disk >/dev/null
  captive -- disk -- 'nbdsh -u "$uri" -c "
import nbd
h.zero(131072, 65536, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(131072, 65536) == bytes(131072)
assert h.pread(65536, 0) == b\"\\5\" * 65536"'
  is_clean disk
}

@test "detect-zeroes stores zeroes as such, and unmap gives the space back" {
  for mode in off on unmap; do
    make_disk qcow2 disk 8M
    captive -- disk detect-zeroes=$mode -- 'nbdsh -u "$uri" -c "
h.pwrite(b\"x\" * (4 << 20), 0)
h.pwrite(bytes(8 << 20), 0)
assert h.pread(8 << 20, 0) == bytes(8 << 20)"'
    is_clean disk
    qemu-img map --output=json disk >map.$mode
  done
  grep -q '"data": true' map.off
  run ! grep '"data": true' map.on
  run ! grep '"data": true' map.unmap
  run ! grep '"offset"' map.unmap
}

@test "a probed raw image refuses to be made an image of another format" {
  make_disk raw disk 1M
  captive -- disk -- 'nbdsh -u "$uri" -c "
import nbd
try:
    h.pwrite(b\"QFI\\xfb\\0\\0\\0\\3\" + bytes(504), 0)
    assert False
except nbd.Error as e:
    assert e.errno == \"EPERM\", e
h.pwrite(b\"other\" + bytes(507), 0)
assert h.pread(512, 0) == b\"other\" + bytes(507)"'
  captive -- disk format=raw -- \
    'nbdsh -u "$uri" -c "h.pwrite(b\"QFI\\xfb\\0\\0\\0\\3\" + bytes(504), 0)"'
  [ "$(peek disk 0 4)" = 514649fb ]
}

@test "a full disk gives ENOSPC, and the image stays whole" {
  need_root
  mkdir small
  mount -t tmpfs -o size=4M none small || skip "cannot mount a tmpfs"
  make_disk qcow2 small/disk 64M
  run captive -- small/disk -- 'nbdsh -u "$uri" -c "
import nbd
done = 0
try:
    while True:
        h.pwrite(b\"x\" * 65536, done)
        h.flush()
        done += 65536
except nbd.Error as e:
    assert e.errno == \"ENOSPC\", e
assert done > 1 << 20, done
assert h.pread(done, 0) == b\"x\" * done
h.trim(done // 2, 0)
h.flush()
h.pwrite(b\"y\" * 65536, 0)
h.flush()"'
  check=0
  qemu-img check small/disk || check=$?
  umount small
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$check" -eq 0 ] || [ "$check" -eq 3 ]
}

@test "a storage error goes to the client, and is sticky for flushes" {
  need_test_storage
  make_disk raw disk 1M
  NBDIMG_TEST_STORAGE=fault:op=flush,index=1,errno=EIO,once=1 \
    captive -- disk format=raw -- 'nbdsh -u "$uri" -c "
import nbd
g = nbd.NBD()
g.connect_uri(h.get_uri())
h.pwrite(b\"x\", 0)
for c in h, g, h:
    try:
        c.flush()
        assert False
    except nbd.Error as e:
        assert e.errno == \"EIO\", e"'
}

@test "an NBD export can be the image, also a server that is run for it" {
  need qemu-nbd
  make_disk qcow2 disk 8M
  # An export cannot grow: it is made as large as the image may get.
  truncate -s 10M disk
  start_qemu_nbd -f raw disk
  random_image data 8M 5
  uri0=$URI captive -- "file=$URI" format=qcow2 -- 'nbdcopy data "$uri"'
  stop_server
  is_clean disk
  qemu-img compare -f raw -F qcow2 data disk
  captive -r -- 'file=["nbdkit","-r","file","disk"]' format=qcow2 -- \
    'nbdcopy "$uri" copy'
  cmp data copy
}
