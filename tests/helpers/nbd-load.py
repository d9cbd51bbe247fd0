#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Keep an NBD server busy: 4 connections, each with 16 requests of 1 MiB in
flight, at random places.

usage: nbd-load.py SOCKET read|write REQUESTS
"""

import random
import sys
import threading

import nbd

MIB = 1 << 20
DEPTH = 16


def client(socket, kind, left, seed, failures):
    try:
        rnd = random.Random(seed)
        h = nbd.NBD()
        h.connect_unix(socket)
        data = nbd.Buffer.from_bytearray(bytearray(rnd.randbytes(MIB)))
        pending = []
        while left or pending:
            while left and len(pending) < DEPTH:
                at = rnd.randrange(h.get_size() // MIB) * MIB
                if kind == "read":
                    buf = nbd.Buffer(MIB)
                    pending.append((h.aio_pread(buf, at), buf))
                else:
                    pending.append((h.aio_pwrite(data, at), data))
                left -= 1
            h.poll(-1)
            pending = [p for p in pending if not h.aio_command_completed(p[0])]
        h.flush()
        h.shutdown()
    except nbd.Error as e:
        failures.append(e)


def main():
    socket, kind, nr = sys.argv[1:]
    failures = []
    threads = [threading.Thread(target=client, args=(socket, kind, int(nr) // 4,
                                                     i, failures))
               for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for e in failures:
        print(e, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
