#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""An NBD server in memory that says and does what it is told to.

For tests of clients against servers that lack something, lie or break.
Listens on --socket, writes its number to --pid when it does, serves each
connection in a thread, and one line for each request to --log:
"CONNECTION KIND OFFSET LENGTH FLAGS".
"""

import argparse
import os
import socket
import struct
import threading

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 8, 9, 10
REP_ACK, REP_INFO, REP_META, REP_UNSUP = 1, 3, 4, 0x80000001
KINDS = {0: "read", 1: "write", 2: "disc", 3: "flush", 4: "trim", 5: "cache",
         6: "zero", 7: "extents"}
FLAGS = {"flush": 4, "fua": 8, "trim": 32, "zero": 64, "multi": 256,
         "fast": 2048, "readonly": 2}


class Closed(Exception):
    """The client went away."""


class Break(Exception):
    """End this connection, as the command line asks."""


class Connection:
    def __init__(self, server, sock, number):
        self.server, self.sock, self.number = server, sock, number
        self.args = server.args
        self.structured = False

    def recv(self, length):
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise Closed
            data += more
        return data

    def send(self, fmt, *values, data=b""):
        self.sock.sendall(struct.pack(fmt, *values) + data)

    # ---- handshake ----

    def reply_option(self, opt, kind, data=b""):
        self.send(">QIII", 0x3e889045565a9, opt, kind, len(data), data=data)

    def describe(self, opt):
        flags = 1
        for name in self.args.offer.split(","):
            flags |= FLAGS.get(name, 0)
        self.reply_option(opt, REP_INFO, struct.pack(
            ">HQH", 0, self.args.size, flags))
        if self.args.block:
            sizes = [int(x, 0) for x in self.args.block.split(",")]
            self.reply_option(opt, REP_INFO, struct.pack(">HIII", 3, *sizes))
        self.reply_option(opt, REP_ACK)

    def option(self, opt, data):
        """True = the handshake is over."""
        if opt == OPT_STRUCTURED and "structured" in self.args.offer:
            self.structured = True
            self.reply_option(opt, REP_ACK)
        elif opt == OPT_SET_META and "extents" in self.args.offer:
            self.reply_option(opt, REP_META,
                              struct.pack(">I", 1) + b"base:allocation")
            self.reply_option(opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            info = struct.pack(">QIIIH", 0x3e889045565a9, opt, REP_INFO, 2, 9)
            while self.args.babble and self.number > self.args.babble:
                self.sock.sendall(1000 * info)
            self.describe(opt)
            return opt == OPT_GO
        elif opt == OPT_ABORT:
            raise Closed
        else:
            self.reply_option(opt, REP_UNSUP)
        return False

    def handshake(self):
        if self.args.mute and self.number > self.args.mute:
            threading.Event().wait()
        if self.args.dumb:
            self.server.log.write(f"{self.number} connected\n")
            threading.Event().wait()
        self.send(">QQH", 0x4e42444d41474943, 0x49484156454f5054, 3)
        self.recv(4)
        while True:
            _, opt, length = struct.unpack(">QII", self.recv(16))
            if self.option(opt, self.recv(length)):
                return

    # ---- requests ----

    def simple(self, cookie, err=0, data=b""):
        self.send(">IIQ", 0x67446698, err, cookie, data=data)

    def chunk(self, cookie, kind, data=b"", done=True):
        self.send(">IHHQI", 0x668e33ef, int(done), kind, cookie, len(data),
                  data=data)

    def reply(self, cookie, err=0):
        if self.structured and err:
            self.chunk(cookie, 0x8001, struct.pack(">IH", err, 0))
        else:
            self.simple(cookie, err)

    def do_read(self, cookie, offset, length):
        data = bytes(self.server.data[offset:offset + length])
        data += bytes(length - len(data))       # size > what is stored
        if self.args.cut_reply and length > self.args.cut_reply:
            head = struct.pack(">IIQ", 0x67446698, 0, cookie)
            if self.structured:
                head = struct.pack(">IHHQIQ", 0x668e33ef, 1, 1, cookie,
                                   length + 8, offset)
            self.sock.sendall(head + data[:self.args.cut_reply])
            raise Break
        if self.structured:
            self.chunk(cookie, 1, struct.pack(">Q", offset) + data)
        else:
            self.simple(cookie, 0, data)

    def do_extents(self, cookie, offset, length):
        text = self.args.extents
        if text == "none":
            return self.chunk(cookie, 0)
        if text == "error":
            return self.reply(cookie, 22)
        data = struct.pack(">I", 1)
        for pair in (text or f"{length}:0").split(","):
            data += struct.pack(">II", *[int(x, 0) for x in pair.split(":")])
        if self.args.extents_twice:
            self.chunk(cookie, 5, data, done=False)
        self.chunk(cookie, 5, data)

    def change(self, kind, flags, offset, data):
        if kind == "zero" and flags & 16 and self.args.slow_zero:
            return 95
        if kind == "zero" and self.args.no_zero:
            return 95
        data = data[:max(0, len(self.server.data) - offset)]
        self.server.data[offset:offset + len(data)] = data
        return 0

    def request(self):
        magic, flags, number, cookie, offset, length = struct.unpack(
            ">IHHQQI", self.recv(28))
        kind = KINDS[number]
        data = self.recv(length) if kind == "write" else b""
        err = self.server.note(self.number, kind, offset, length, flags)
        if kind in self.args.silent:
            threading.Event().wait()
        if kind == "disc":
            raise Closed
        if err:
            self.reply(cookie, err)
        elif kind == "read":
            self.do_read(cookie, offset, length)
        elif kind == "extents":
            self.do_extents(cookie, offset, length)
        elif kind in ("write", "zero", "trim"):
            data = data or bytes(length)
            self.reply(cookie, self.change(kind, flags, offset, data))
        else:
            self.reply(cookie)

    def run(self):
        try:
            self.handshake()
            while True:
                self.request()
        except (Closed, Break, ConnectionError):
            self.sock.close()


class Server:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.log = open(args.log, "a", buffering=1) if args.log else None
        self.data = bytearray(min(args.size, 64 << 20))
        self.seen = 0

    def note(self, connection, kind, offset, length, flags):
        """Write the log; the NBD error number that the request gets."""
        with self.lock:
            self.seen += 1
            if self.log:
                self.log.write(f"{connection} {kind} {offset} {length} "
                               f"{flags}\n")
            if self.args.exit_at and self.seen >= self.args.exit_at:
                os._exit(9)
        for rule in self.args.fail:
            what, err = rule.split(":")
            if what == kind:
                return int(err)
        return 0

    def run(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.args.socket)
        listener.listen(16)
        with open(self.args.pid, "w") as f:
            f.write(f"{os.getpid()}\n")
        number = 0
        while True:
            sock, _ = listener.accept()
            number += 1
            threading.Thread(target=Connection(self, sock, number).run,
                             daemon=True).start()


def main():
    p = argparse.ArgumentParser()
    number = lambda x: int(x, 0)
    p.add_argument("--socket", required=True)
    p.add_argument("--pid", required=True)
    p.add_argument("--log")
    p.add_argument("--size", type=number, default=1 << 20)
    p.add_argument("--offer", default="flush,fua,trim,zero,fast,structured,"
                   "extents", help="what the server can do")
    p.add_argument("--block", help="MIN,PREFERRED,MAX")
    p.add_argument("--extents", help="LENGTH:FLAGS,... or none or error")
    p.add_argument("--extents-twice", action="store_true")
    p.add_argument("--cut-reply", type=number, default=0,
                   help="close after this many bytes of a longer read")
    p.add_argument("--fail", action="append", default=[],
                   help="KIND:NUMBER: answer with this error")
    p.add_argument("--slow-zero", action="store_true",
                   help="fast zero is not supported, for this range")
    p.add_argument("--no-zero", action="store_true",
                   help="zero is not supported, although offered")
    p.add_argument("--exit-at", type=int, default=0,
                   help="the server is gone at this request")
    p.add_argument("--mute", type=int, default=0,
                   help="say nothing to connections after the first N")
    p.add_argument("--babble", type=int, default=0,
                   help="the handshake of connections after the first N has "
                   "no end")
    p.add_argument("--dumb", action="store_true",
                   help="never say anything; the log tells of connections")
    p.add_argument("--silent", default="",
                   help="KIND,...: requests that are never answered")
    Server(p.parse_args()).run()


main()
