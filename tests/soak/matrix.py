#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Every kind of qcow2 image, written by QEMU and by us, read by both.

{compat} x {cluster size} x {refcount bits} x {feature}.  For each cell one
image is made by qemu-img and one by nbdimg.  qemu-io writes, zeroes and
discards at random in the one, "nbdimg io" and the plugin (by libnbd, many
requests at once) in the other, and then they change places.  After each turn
the disk is read by qemu-img, "nbdimg io", "nbdimg convert" and the plugin, and
all must read what a plain array holds; "qemu-img check" and "nbdimg check" find
no error and no leak.  What qemu-img refuses to make, nbdimg must refuse for the
same reason.

usage: matrix.py [--seed N] [--jobs N] [--requests N] [--sample | --refused]
                 [--keep] [--preload LIBRARY] --build FOLDER --dir FOLDER
                 [CELL...]

A cell is COMPAT/CLUSTER/BITS/FEATURE, as in 1.1/64k/16/plain.  Its requests
come from the seed and its name, so one cell can be run again.  Prints a line
for each cell; the exit status is 1 if one was wrong.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import traceback

import nbd
from model import SECTOR, Disk, Requests
from peers import Export, Server, Wrong, run

COMPATS = ["0.10", "1.1"]
CLUSTERS = {"512": 512, "4k": 4 << 10, "16k": 16 << 10, "64k": 64 << 10,
            "2M": 2 << 20}
BITS = [1, 16, 64]
FEATURES = ["plain", "extended_l2", "data_file", "backing-qcow2",
            "backing-raw", "lazy"]

# What a refusal is about, by its words.
REASONS = [("refcounts", "refcount width"), ("extended", "extended l2"),
           ("data file", "external data file"), ("lazy", "lazy refcounts")]


def all_cells():
    return ["/".join(map(str, c)) for c in itertools.product(
        COMPATS, CLUSTERS, BITS, FEATURES)]


def sample_cells():
    """Each feature with each cluster size, and version 2 with each."""
    for cell in all_cells():
        compat, cluster, bits, feature = cell.split("/")
        i = FEATURES.index(feature)
        j = list(CLUSTERS).index(cluster)
        if expected_refusals(cell):
            continue
        if compat == "0.10":
            if feature == ["plain", "backing-qcow2", "backing-raw"][j % 3]:
                yield cell
        elif bits == str(BITS[(i + j) % 3]):
            yield cell


def expected_refusals(cell):
    """The reasons for which a cell cannot be."""
    compat, cluster, bits, feature = cell.split("/")
    old = compat == "0.10"
    reasons = set()
    if old and bits != "16":
        reasons.add("refcounts")
    if feature == "extended_l2" and (old or CLUSTERS[cluster] < 16384):
        reasons.add("extended")
    if feature == "data_file" and old:
        reasons.add("data file")
    if feature == "lazy" and old:
        reasons.add("lazy")
    return reasons


class Cell:
    def __init__(self, args, name):
        self.args, self.name = args, name
        self.rnd = random.Random("%s:%s" % (args.seed, name))
        compat, cluster, bits, self.feature = name.split("/")
        self.cluster = CLUSTERS[cluster]
        self.dir = os.path.join(args.dir, name.replace("/", "_"))
        os.mkdir(self.dir)
        self.nbdimg = os.path.join(args.build, "nbdimg")
        self.plugin = os.path.join(args.build, "nbdkit-nbdimg-plugin.so")
        self.preload = args.preload
        self.options = ["compat=" + compat, "cluster_size=" + cluster,
                        "refcount_bits=" + bits]
        self.data_file_raw = False
        if self.feature == "extended_l2":
            self.options.append("extended_l2=on")
        elif self.feature == "lazy":
            self.options.append("lazy_refcounts=on")
        elif self.feature == "data_file":
            self.data_file_raw = self.rnd.random() < 0.5
        self.can_compress = self.feature != "data_file"
        self.nr = 0

    # ---- images ----

    def layout(self):
        """The size of the disk, and the windows that are written to: its begin,
        its end, and where the second L2 table begins."""
        per_table = self.cluster ** 2 // (
            16 if self.feature == "extended_l2" else 8)
        if self.data_file_raw:
            # All of it counts as data to QEMU, which then looks at each GiB.
            per_table = min(per_table, 1 << 30)
        reach = min(max(12 * self.cluster, 256 << 10), 4 << 20)
        size = (max(per_table, 2 * reach) + 3 * reach
                + self.rnd.choice([0, SECTOR, 7 * SECTOR]))
        return size, [(0, reach), (per_table - reach // 2,
                                   per_table + reach // 2),
                      (size - reach, size)]

    def path(self, name):
        return os.path.join(self.dir, name)

    def make_backing(self, disk):
        """The backing file is shorter or longer than the disk, or as long."""
        fmt = self.feature.split("-")[1]
        name = self.path("base." + fmt)
        size = disk.size + self.rnd.choice(
            [0, 1 << 20, -disk.size // 2 // SECTOR * SECTOR,
             -self.rnd.randrange(1, 3 * self.cluster // SECTOR + 1) * SECTOR])
        run("qemu-img", "create", "-q", "-f", fmt, name, str(size))
        requests = Requests(self.rnd, disk, self.cluster, self.dir)
        commands = []
        for _ in range(12):
            r = requests.write(*requests.range(SECTOR))
            if r.start + r.length <= size:
                disk.apply(r)
                commands += ["-c", r.io_command()]
        self.quiet("qemu-io", "-f", fmt, *commands, name)
        return ["-b", name, "-F", fmt]

    def create(self, tool, name, size, backing):
        """Returns what the tool said if it refused to."""
        options = list(self.options)
        if self.feature == "data_file":
            options += ["data_file=" + self.path(name + ".data"),
                        "data_file_raw=" + ("on" if self.data_file_raw
                                            else "off")]
        p = subprocess.run(
            [tool, "create", "-q", "-f", "qcow2", "-o", ",".join(options),
             *backing, self.path(name), str(size)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            universal_newlines=True)
        if p.returncode not in (0, 1) or bool(p.stderr) != bool(p.returncode):
            raise Wrong("%s create: status %d: %s"
                        % (tool, p.returncode, p.stderr))
        return p.stderr

    def quiet(self, *argv):
        """A program that says nothing when all is well."""
        out = run(*argv)
        if out.strip():
            raise Wrong("%s: %s" % (" ".join(argv), out))

    # ---- writers ----

    def write_by_qemu(self, image, disk):
        requests = Requests(self.rnd, disk, self.cluster, self.dir)
        # Compressed clusters first, each once: QEMU 7.2 packs into clusters
        # that were freed and belong to others by then.
        seen, commands = [], []
        for _ in range(8 if self.can_compress and self.is_new(image) else 0):
            r = requests.compressed()
            if not any(r.meets(s) for s in seen):
                seen.append(r)
                disk.apply(r)
                commands += ["-c", r.io_command()]
        if commands:
            self.quiet("qemu-io", "-f", "qcow2", *commands, image)
        commands = []
        for _ in range(self.args.requests):
            r = requests.any()
            disk.apply(r)
            commands += ["-c", r.io_command()]
        self.quiet("qemu-io", "-d", "unmap", "-f", "qcow2", *commands, image)
        self.nr += len(seen) + self.args.requests

    def is_new(self, image):
        """Has it no clusters yet?"""
        info = json.loads(run("qemu-img", "check", "--output=json", image))
        return not info.get("allocated-clusters")

    def write_by_io(self, image, disk):
        requests = Requests(self.rnd, disk, self.cluster, self.dir)
        commands, busy = [], []
        for _ in range(self.args.requests):
            if self.can_compress and self.rnd.random() < 0.25:
                r = requests.compressed()
            else:
                r = requests.any()
            # aio_write does not wait: others of its time stay away from it
            if any(r.meets(b) for b in busy):
                commands += ["-c", "aio_flush"]
                busy = []
            if r.words[:3] == ["write", "-q", "-P"] and self.rnd.random() < 0.5:
                r.words[0] = "aio_write"
                busy.append(r)
            disk.apply(r)
            commands += ["-c", r.io_command()]
            if self.rnd.random() < 0.05:
                commands += ["-c", "flush"]
        self.quiet(self.nbdimg, "io", "-f", "qcow2", *commands, image)
        self.nr += self.args.requests

    def write_by_plugin(self, image, disk):
        requests = Requests(self.rnd, disk, self.cluster, self.dir)
        server = Server(self, Export(image, "qcow2"))
        handles = [server.connect(), server.connect()]
        left = self.args.requests
        while left > 0:
            batch = []
            for _ in range(self.rnd.randint(1, 8)):
                r = requests.any()
                if not any(r.meets(b) for b in batch):
                    batch.append(r)
            self.send(handles, batch)
            for r in batch:
                disk.apply(r)
            left -= len(batch)
            self.look(self.rnd.choice(handles), requests)
        for h in handles:
            h.shutdown()
        server.stop()
        self.nr += self.args.requests - left

    def send(self, handles, batch):
        """All at once, over both connections."""
        cookies = []
        for i, r in enumerate(batch):
            h = handles[i % 2]
            if r.kind == "write":
                buffer = nbd.Buffer.from_bytearray(bytearray(r.data))
                cookie = h.aio_pwrite(buffer, r.start, flags=nbd.CMD_FLAG_FUA
                                      if "-f" in r.words else 0)
                cookies.append((h, cookie, buffer))
            elif r.kind == "zero":
                flags = 0 if "-u" in r.words else nbd.CMD_FLAG_NO_HOLE
                cookies.append((h, h.aio_zero(r.length, r.start, flags=flags),
                                None))
            else:
                cookies.append((h, h.aio_trim(r.length, r.start), None))
        if self.rnd.random() < 0.1:
            cookies.append((handles[0], handles[0].aio_flush(), None))
        for h, cookie, _ in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)

    def look(self, h, requests):
        """A read between the writes."""
        at, length = requests.range()
        if not requests.disk.is_loose(at, length):
            if h.pread(length, at) != requests.disk.get(at, length):
                raise Wrong("the plugin: another content of %d bytes at %#x"
                            % (length, at))

    # ---- readers ----

    def read_by_all(self, image, disk):
        raw = self.path("flat")
        for who, argv in (
                ("qemu-img", ["qemu-img", "convert", "-f", "qcow2"]),
                ("convert", [self.nbdimg, "convert", "-f", "qcow2"])):
            self.quiet(*argv, "-O", "raw", image, raw)
            disk.judge_file(raw, who)
            os.unlink(raw)
        if self.data_file_raw:
            # QEMU makes it of whole clusters.
            disk.judge_file(image + ".data", "the raw data file", self.cluster)
        self.read_by_plugin(image, disk)
        self.read_by_io(image, disk)
        for tool in "qemu-img", self.nbdimg:
            run(tool, "check", "-f", "qcow2", image)

    def read_by_plugin(self, image, disk):
        server = Server(self, Export(image, "qcow2"), readonly=True)
        h = server.connect()
        if h.get_size() != disk.size:
            raise Wrong("the plugin: a disk of %d bytes" % h.get_size())
        disk.judge(lambda start, length: b"".join(
            h.pread(min(1 << 20, start + length - at), at)
            for at in range(start, start + length, 1 << 20)), "the plugin")
        h.shutdown()
        server.stop()

    def read_by_io(self, image, disk):
        commands = []
        for start, length, byte in disk.uniform_runs():
            commands += ["-c", "read -q -P %d %d %d" % (byte, start, length)]
        self.quiet(self.nbdimg, "io", "-r", "-f", "qcow2", *commands, image)
        dumps = []
        for _ in range(6):
            start, end = self.rnd.choice(disk.windows)
            at = self.rnd.randrange(start, end) // SECTOR * SECTOR
            dumps.append((at, min(2048, end - at)))
        commands = [w for d in dumps for w in ("-c", "read -v %d %d" % d)]
        out = run(self.nbdimg, "io", "-r", "-f", "qcow2", *commands, image)
        got = bytes.fromhex("".join(re.findall(
            "^[0-9a-f]+:  ((?:[0-9a-f]{2} )+)", out, re.M)))
        if got != b"".join(disk.get(*d) for d in dumps):
            raise Wrong("io: read -v shows another content: %s" % (dumps,))

    # ---- the cell ----

    def run(self):
        size, windows = self.layout()
        disk = Disk(size, windows)
        backing = []
        if self.feature.startswith("backing"):
            backing = self.make_backing(disk)
        theirs = self.create("qemu-img", "theirs", size, backing)
        ours = self.create(self.nbdimg, "ours", size, backing)
        if theirs or ours:
            return self.refused(theirs, ours)
        other = Disk(size, windows)
        other.content = [bytearray(c) for c in disk.content]
        theirs, ours = self.path("theirs"), self.path("ours")

        self.write_by_qemu(theirs, disk)
        self.read_by_all(theirs, disk)
        self.write_by_plugin(ours, other)
        self.read_by_all(ours, other)
        self.write_by_io(theirs, disk)
        self.read_by_all(theirs, disk)
        self.write_by_qemu(ours, other)
        self.read_by_all(ours, other)
        self.write_by_plugin(theirs, disk)
        self.write_by_io(ours, other)
        self.read_by_all(theirs, disk)
        self.read_by_all(ours, other)
        return "%d requests" % self.nr

    def refused(self, theirs, ours):
        reasons = []
        for text in theirs, ours:
            found = [k for k, words in REASONS if words in text.lower()]
            reasons.append(" ".join(found))
        if not reasons[0] or reasons[0] != reasons[1]:
            raise Wrong("qemu-img: %s; nbdimg: %s"
                        % (theirs or "made it", ours or "made it"))
        if reasons[0] not in expected_refusals(self.name):
            raise Wrong("qemu-img refused it: %s" % theirs)
        for name in os.listdir(self.dir):
            if name.startswith("ours"):
                raise Wrong("%s is left after a refusal" % name)
        return "refused for its %s" % reasons[0]


def run_cell(job):
    args, name = job
    cell = Cell(args, name)
    try:
        note = "ok %s: %s" % (name, cell.run())
    except Wrong as e:
        note = "not ok %s (--seed %d): %s" % (name, args.seed, e)
    except Exception:
        note = "not ok %s (--seed %d): %s" % (name, args.seed,
                                              traceback.format_exc())
    if note.startswith("ok") or not args.keep:
        shutil.rmtree(cell.dir)
    return note


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int)
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--requests", type=int, default=30,
                   help="of each writer in its turn")
    p.add_argument("--sample", action="store_true")
    p.add_argument("--refused", action="store_true",
                   help="the cells that cannot be")
    p.add_argument("--keep", action="store_true", help="images of wrong cells")
    p.add_argument("--build", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--preload", help="for nbdkit: a sanitizer's runtime")
    p.add_argument("cells", nargs="*", metavar="CELL")
    args = p.parse_args()
    if args.seed is None:
        args.seed = random.randrange(1 << 31)
    cells = args.cells or all_cells()
    if args.sample:
        cells = list(sample_cells())
    elif args.refused:
        cells = [c for c in cells if expected_refusals(c)]
    unknown = set(cells) - set(all_cells())
    if unknown:
        p.error("no such cell: %s" % " ".join(sorted(unknown)))
    print("seed %d, %d cells" % (args.seed, len(cells)), flush=True)
    wrong = 0
    with multiprocessing.Pool(args.jobs) as pool:
        for note in pool.imap(run_cell, [(args, c) for c in cells]):
            print(note, flush=True)
            wrong += note.startswith("not")
    print("%d cells, %d wrong" % (len(cells), wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
