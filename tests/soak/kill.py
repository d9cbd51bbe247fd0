#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""kill -9 of nbdkit under load, again and again on one image.

Clients write, zero, trim and flush, and keep a ledger of what they did.  After
each kill the image is opened again, by the plugin and by QEMU, and every sector
must hold the value of the last flush that was acknowledged, or one that was
written later; "qemu-img check" may find leaks and nothing else.

usage: kill.py [--rounds N] [--seed N] [--preload LIBRARY]
               --plugin FILE --nbdimg FILE --dir FOLDER [CONFIG...]

Prints one line for each round and exits with 1 at the first wrong sector.
"""

import argparse
import json
import os
import random
import re
import shutil
import struct
import sys
import threading
import time

import nbd
from peers import Export, Server, Wrong, run

SECTOR = 512
DISK = 32 << 20                 # bytes
SECTORS = DISK // SECTOR
CLIENTS = 4
REPEAT = SECTOR // 16

# name: (format, creation options, backing format)
CONFIGS = {
    "raw": ("raw", "", None),
    "qcow2": ("qcow2", "", None),
    "4k": ("qcow2", "cluster_size=4k", None),
    "512": ("qcow2", "cluster_size=512,refcount_bits=1", None),
    "v2": ("qcow2", "compat=0.10", None),
    "backing": ("qcow2", "cluster_size=16k", "raw"),
    "backing-v2": ("qcow2", "compat=0.10", "qcow2"),
    "extended": ("qcow2", "extended_l2=on,cluster_size=64k", "qcow2"),
    "data-file": ("qcow2", "data_file=%s.data", None),
    "lazy": ("qcow2", "lazy_refcounts=on", None),
    "qcow": ("qcow", "", None),
    "qcow-backing": ("qcow", "", "raw"),
    "qed": ("qed", "", None),
    "qed-backing": ("qed", "cluster_size=4k,table_size=2", "qcow2"),
    "vdi": ("vdi", "", None),
    "luks": ("luks", "key-secret=s,iter-time=10", None),
    "qcow2-luks": ("qcow2", "cluster_size=4k,encrypt.format=luks,"
                   "encrypt.key-secret=s,encrypt.iter-time=10", None),
    "qcow2-luks-backing": ("qcow2", "encrypt.format=luks,"
                           "encrypt.key-secret=s,encrypt.iter-time=10",
                           "raw"),
    "qcow-aes": ("qcow", "encrypt.format=aes,encrypt.key-secret=s", None),
}

# qemu-img cannot make a LUKS header that takes 10 ms to open: nbdimg can.
CHECKED = ("qcow2", "qed", "vdi")


def sector_bytes(sector, version):
    """What a sector holds after write number VERSION; 0 is zeroes."""
    if version == 0:
        return bytes(SECTOR)
    return struct.pack("<QQ", sector, version) * REPEAT


def version_of(sector, data):
    """The number of the write that made DATA, or None: it is torn or alien."""
    where, version = struct.unpack_from("<QQ", data)
    if version == 0 and where == 0:
        return 0 if data == bytes(SECTOR) else None
    if where != sector or data != data[:16] * REPEAT:
        return None
    return version


class Ledger:
    """For each sector, the values that it may have after a crash, oldest
    first: [0] is the durable one, the others came after it.  An entry is
    (clock, version): the clock of a write that was acknowledged, infinite
    before that.
    """

    NEVER = float("inf")

    def __init__(self, base):
        self.lock = threading.Condition()
        self.busy = set()
        self.pending = set()    # sectors with more than one value
        self.clock = 0
        self.version = 1 << 32
        self.history = [[(0, v)] for v in base]

    def begin(self, start, count, zero):
        """Reserve sectors for one client, and note a write to them."""
        sectors = range(start, start + count)
        with self.lock:
            while any(s in self.busy for s in sectors):
                self.lock.wait()
            self.busy.update(sectors)
            self.pending.update(sectors)
            self.version += 1
            version = 0 if zero else self.version
            for s in sectors:
                self.history[s].append((self.NEVER, version))
            return version

    def end(self, start, count, acknowledged, durable):
        sectors = range(start, start + count)
        with self.lock:
            if acknowledged:
                self.clock += 1
                for s in sectors:
                    version = self.history[s][-1][1]
                    if durable:
                        self.history[s] = [(self.clock, version)]
                    else:
                        self.history[s][-1] = (self.clock, version)
            self.busy.difference_update(sectors)
            self.lock.notify_all()

    def now(self):
        with self.lock:
            return self.clock

    def flushed(self, clock):
        """A flush that was sent at CLOCK came back."""
        with self.lock:
            for s in list(self.pending):
                h = self.history[s]
                last = max((i for i, (c, _) in enumerate(h) if c <= clock),
                           default=0)
                if last:
                    self.history[s] = h = h[last:]
                if len(h) == 1 and s not in self.busy:
                    self.pending.discard(s)

    def trimmed(self, start, data):
        """A trim left DATA: zeroes, or what was there."""
        with self.lock:
            self.clock += 1
            for i in range(len(data) // SECTOR):
                h = self.history[start + i]
                got = version_of(start + i,
                                 data[i * SECTOR:(i + 1) * SECTOR])
                before = h[-2][1]
                if got == before:
                    h.pop()
                elif got == 0:
                    h[-1] = (self.clock, 0)
                else:
                    raise Wrong("sector %d reads %r after a trim, was %d"
                                % (start + i, got, before))

    def check(self, data, who):
        """DATA is the disk after a crash.  What is there now is durable."""
        wrong = 0
        for s in range(SECTORS):
            got = version_of(s, data[s * SECTOR:(s + 1) * SECTOR])
            allowed = [v for _, v in self.history[s]]
            if got not in allowed:
                wrong += 1
                if wrong <= 10:
                    print("%s: sector %d: %s, allowed: %s"
                          % (who, s, "torn or alien" if got is None else got,
                             allowed), file=sys.stderr)
        if wrong:
            raise Wrong("%s: %d wrong sectors" % (who, wrong))

    def settle(self, data):
        for s in range(SECTORS):
            got = version_of(s, data[s * SECTOR:(s + 1) * SECTOR])
            self.history[s] = [(0, got)]
        self.busy.clear()
        self.pending.clear()


def client(server, ledger, seed, stop, counts, failures):
    rnd = random.Random(seed)
    try:
        h = server.connect()
        while not stop.is_set():
            one_request(h, ledger, rnd)
            counts[0] += 1
    except nbd.Error:
        if not stop.is_set():
            failures.append("a request failed before the kill: %s"
                            % sys.exc_info()[1])
    except Wrong as e:
        failures.append(str(e))


def one_request(h, ledger, rnd):
    kind = rnd.choices(["write", "fua", "zero", "keep", "trim", "flush"],
                       [50, 5, 8, 4, 8, 5])[0]
    if kind == "flush":
        clock = ledger.now()
        h.flush()
        ledger.flushed(clock)
        return
    count = min(rnd.choice([1, 1, 7, 8, 16, 128, 300]), SECTORS)
    start = rnd.randrange(SECTORS - count + 1)
    if rnd.random() < 0.5:
        start -= start % 8
    version = ledger.begin(start, count, kind not in ("write", "fua"))
    acknowledged = False
    try:
        if kind in ("write", "fua"):
            data = b"".join(sector_bytes(s, version)
                            for s in range(start, start + count))
            h.pwrite(data, start * SECTOR,
                     nbd.CMD_FLAG_FUA if kind == "fua" else 0)
        elif kind == "trim":
            h.trim(count * SECTOR, start * SECTOR)
            ledger.trimmed(start, h.pread(count * SECTOR, start * SECTOR))
        else:
            h.zero(count * SECTOR, start * SECTOR,
                   nbd.CMD_FLAG_NO_HOLE if kind == "keep" else 0)
        acknowledged = kind != "trim"
    finally:
        ledger.end(start, count, acknowledged, kind == "fua")


def make_base(args, fmt, rnd):
    """Returns the file and the versions that it holds."""
    base = [rnd.choice([0, 0, 5]) for _ in range(SECTORS)]
    raw = os.path.join(args.dir, "base.raw")
    with open(raw, "wb") as fp:
        for s in range(SECTORS):
            fp.write(sector_bytes(s, base[s]))
    name = os.path.join(args.dir, "base." + fmt)
    if fmt != "raw":
        run("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, name)
    return name, base


def make_image(args, name, rnd):
    """Returns the Export, and the versions that it holds."""
    fmt, options, backing = CONFIGS[name]
    image = os.path.join(args.dir, "disk." + fmt)
    secret = os.path.join(args.dir, "secret")
    base = [0] * SECTORS
    key = None
    for f in os.listdir(args.dir):
        os.unlink(os.path.join(args.dir, f))
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if "key-secret" in options:
        key = "encrypt.key-secret" if "encrypt." in options else "key-secret"
        with open(secret, "w", encoding="ascii") as fp:
            fp.write("open sesame")
        argv[0] = args.nbdimg
        argv += ["--object", "secret,id=s,file=" + secret]
    if options:
        argv += ["-o", options.replace("%s", image)]
    if backing:
        below, base = make_base(args, backing, rnd)
        argv += ["-b", below, "-F", backing]
    run(*argv, image, str(DISK))
    disk = Export(image, fmt, key, secret)
    if fmt == "luks":           # what was never written reads as anything
        run(args.nbdimg, "io", "-c", "write -q -z 0 %d" % DISK, *disk.qemu)
    return disk, base


def read_all(h):
    return b"".join(h.pread(1 << 20, o) for o in range(0, DISK, 1 << 20))


def is_dirty(disk):
    info = json.loads(run("qemu-img", "info", "--output=json", disk.image))
    return info.get("dirty-flag", False)


def check_mended(disk):
    """What is marked dirty is something that check -r mends."""
    copy = disk.image + ".mended"
    shutil.copyfile(disk.image, copy)
    run("qemu-img", "check", "-r", "all", "-f", disk.fmt, copy, ok=(0, 3))
    run("qemu-img", "check", "-f", disk.fmt, copy, ok=(0, 3))
    os.unlink(copy)


def check_by_qemu(disk):
    """Returns what is to be told about it."""
    if disk.fmt not in CHECKED:
        return ""
    if is_dirty(disk):
        check_mended(disk)
        return ", dirty"
    vdi = disk.fmt == "vdi"
    out = run("qemu-img", "check", *disk.qemu, ok=(0, 2) if vdi else (0, 3))
    # VDI: the number of blocks in the header is a hint, written first.
    if vdi and "error" in out.lower().replace("no errors", ""):
        m = re.search(r"^ERROR: allocated blocks mismatch, is (\d+), should be"
                      r" (\d+)\s+1 errors were found", out)
        if not m or int(m[1]) > int(m[2]):
            raise Wrong("qemu-img check: " + out)
        return ", dirty"
    return ", leaks" if "leaked" in out else ""


def load_until_killed(server, ledger, rnd):
    stop = threading.Event()
    counts = [[0] for _ in range(CLIENTS)]
    failures = []
    threads = [threading.Thread(target=client,
                                args=(server, ledger, rnd.random(), stop, c,
                                      failures))
               for c in counts]
    for t in threads:
        t.start()
    time.sleep(rnd.uniform(0.1, 0.6))   # how long the load lasts
    stop.set()
    server.kill()
    for t in threads:
        t.join()
    if failures:
        raise Wrong("; ".join(failures))
    return sum(c[0] for c in counts)


def crash(args, disk, ledger, rnd):
    """One round.  Returns what is to be told about it."""
    nr = load_until_killed(Server(args, disk), ledger, rnd)
    note = "%d requests%s" % (nr, check_by_qemu(disk))
    raw = os.path.join(args.dir, "read-by-qemu")
    run("qemu-img", "convert", *disk.qemu, "-O", "raw", raw)
    with open(raw, "rb") as fp:
        ledger.check(fp.read(), "qemu-img")
    os.unlink(raw)
    server = Server(args, disk, readonly=True)
    h = server.connect()
    data = read_all(h)
    h.shutdown()
    server.stop()
    ledger.check(data, "nbdimg")
    ledger.settle(data)
    return note


def clean_end(args, disk):
    """After a clean shutdown nothing is left of the crashes but leaks."""
    server = Server(args, disk)
    h = server.connect()
    h.pwrite(bytes(SECTOR), 0)
    h.shutdown()
    server.stop()
    if "dirty" in check_by_qemu(disk):
        raise Wrong("dirty after a clean shutdown")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=100)
    p.add_argument("--seed", type=int)
    p.add_argument("--plugin", required=True)
    p.add_argument("--nbdimg", required=True, help="the program")
    p.add_argument("--dir", required=True)
    p.add_argument("--preload", help="for nbdkit: a sanitizer's runtime")
    p.add_argument("configs", nargs="*", metavar="CONFIG")
    args = p.parse_args()
    names = args.configs or list(CONFIGS)
    seed = args.seed if args.seed is not None else random.randrange(1 << 31)
    rnd = random.Random(seed)
    per_image = max(1, -(-args.rounds // len(names)))
    done = 0
    try:
        for name in names:
            disk, base = make_image(args, name, rnd)
            ledger = Ledger(base)
            for _ in range(min(per_image, args.rounds - done)):
                done += 1
                note = crash(args, disk, ledger, rnd)
                print("ok %d %s: %s" % (done, name, note), flush=True)
            clean_end(args, disk)
            if done == args.rounds:
                break
    except Wrong as e:
        print("not ok %d %s (--seed %d): %s" % (done, name, seed, e),
              flush=True)
        return 1
    print("%d kills, nothing lost" % done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
