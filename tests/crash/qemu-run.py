#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Run a workload with qemu-io and turn its write log into ours.

  qemu-run.py DIR FORMAT <OPERATIONS

OPERATIONS are the lines that crash-run -p prints.  QEMU's blklogwrites driver
writes the log of dm-log-writes; this reads how far it has got after each
operation, so that each entry is known to belong to one.  The order of requests
inside an operation is that of the log; a flush covers all that stands before
it, and what stands behind it began when it had ended.  DIR/image is changed in
a copy.  Writes DIR/log and DIR/ledger (crash.h).
"""

import os
import shutil
import struct
import subprocess
import sys

SECTOR = 512
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
OP_WRITE, OP_TRIM, OP_FLUSH = 4, 6, 7


class Qemu:
    """qemu-io on a copy of the image, one command at a time."""

    def __init__(self, folder, image_format):
        self.log = os.path.join(folder, "qemu.log")
        copy = os.path.join(folder, "qemu.image")
        shutil.copy(os.path.join(folder, "image"), copy)
        open(self.log, "w").close()
        opts = ["driver=" + image_format, "discard=unmap", "file.discard=unmap",
                "file.driver=blklogwrites",
                "file.file.driver=file", "file.file.filename=" + copy,
                "file.file.discard=unmap",
                "file.log.driver=file", "file.log.filename=" + self.log,
                "file.log-super-update-interval=1"]
        base = os.path.join(folder, "base")
        if os.path.exists(base):
            opts += ["backing.driver=raw", "backing.file.driver=file",
                     "backing.file.filename=" + base]
        self.process = subprocess.Popen(
            # Its own default is writethrough; that of a virtual machine and
            # of qemu-nbd is writeback.
            ["qemu-io", "-t", "writeback", "-d", "unmap", "--image-opts",
             ",".join(opts)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        self.wait()

    def wait(self):
        """Read up to the prompt."""
        text = b""
        while not text.endswith(b"qemu-io> "):
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                sys.exit("qemu-io: " + text.decode())
            text += more
        if b"rror" in text or b"ailed" in text:
            sys.exit("qemu-io: " + text.decode())

    def command(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        self.wait()

    def quit(self):
        self.process.stdin.write(b"quit\n")
        self.process.stdin.close()
        self.process.wait()

    def entries(self):
        with open(self.log, "rb") as f:
            head = f.read(28)
        return struct.unpack_from("<Q", head, 16)[0] if len(head) == 28 else 0


class Writer:
    """The log and the ledger, with a clock that counts."""

    def __init__(self, folder, qemu_log):
        self.clock = 0
        self.log = open(os.path.join(folder, "log"), "wb")
        self.ledger = open(os.path.join(folder, "ledger"), "w")
        self.qemu_log = qemu_log
        self.at = SECTOR
        self.seen = 0

    def tick(self):
        self.clock += 1
        return self.clock

    def record(self, op, submit, offset, length, data=b"", flags=0):
        self.log.write(b"nbR1" + struct.pack(
            "<IQQIIIIQQQ", op, submit, self.tick(), 1, 1, flags, 0, offset,
            length, len(data)) + data)

    def entry(self, f, submit):
        f.seek(self.at)
        sector, count, flags, _ = struct.unpack("<QQQQ", f.read(32))
        self.at += SECTOR
        data = b""
        if count and not flags & DISCARD:
            f.seek(self.at)
            data = f.read(count * SECTOR)
            self.at += count * SECTOR
        if flags & FLUSH:
            self.record(OP_FLUSH, self.tick(), 0, 0)
            submit = self.tick()
        if flags & DISCARD:
            self.record(OP_TRIM, submit, sector * SECTOR, count * SECTOR)
        elif count:
            self.record(OP_WRITE, submit, sector * SECTOR, count * SECTOR,
                        data, 1 if flags & FUA else 0)
        return submit

    def take(self, until, submit):
        with open(self.qemu_log, "rb") as f:
            while self.seen < until:
                submit = self.entry(f, submit)
                self.seen += 1

    def close(self):
        self.log.close()
        self.ledger.close()


COMMANDS = {
    "write": ("W", "write -P {byte} {offset} {length}"),
    "write-fua": ("U", "write -f -P {byte} {offset} {length}"),
    "packed": ("W", "write -c -P {byte} {offset} {length}"),
    "zero": ("Z", "write -z {offset} {length}"),
    "zero-unmap": ("Z", "write -z -u {offset} {length}"),
    "trim": ("T", "discard {offset} {length}"),
    "flush": ("F", "flush"),
}


def main():
    folder = sys.argv[1]
    qemu = Qemu(folder, sys.argv[2])
    writer = Writer(folder, qemu.log)
    writer.take(qemu.entries(), writer.tick())
    for line in sys.stdin:
        name, offset, length, byte = line.split()
        letter, command = COMMANDS[name]
        submit = writer.tick()
        qemu.command(command.format(byte=byte, offset=offset, length=length))
        writer.take(qemu.entries(), writer.tick())
        byte = byte if letter in "WU" else "0"
        writer.ledger.write("%s %d %d %s %s %s\n" % (
            letter, submit, writer.tick(), offset, length, byte))
    qemu.quit()
    writer.take(qemu.entries(), writer.tick())
    writer.close()


main()
