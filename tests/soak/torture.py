#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Each command is cut off: killed at random moments, killed at each request to
its files, and each request fails, with EIO and ENOSPC.  Afterwards the images
open, check finds at most leaks or a dirty image that a repair makes clean, and
the content is the old or the new one: what that means for each command is in
torture_table.py, and how it is looked at in torture_rules.py.  That a flush
fails is not seen in an image: the command must say it.

usage: torture.py --nbdimg PROGRAM --dir FOLDER [--kills N] [--indexes N]
                  [--seed N] [--jobs N] [--only PATTERN] [--modes NAME,...]
                  [--list] [--table]

Prints a line for each command.  Exits with 1 when something was found; the line
says how to see it again.
"""

import argparse
import collections
import concurrent.futures
import fnmatch
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time

from torture_image import Folder, Wrong, escaped, finish, run, spawn
from torture_rules import DONE, FAILED, GONE, KILLED, Round
from torture_table import Maker, all_rows

# What happens at request N; "for good": at all those behind it too.
MODES = {
    "EIO": "errno=EIO",
    "EIO for good": "errno=EIO,count=0",
    "EIO half": "errno=EIO,short=1",
    "ENOSPC": "errno=ENOSPC",
    "ENOSPC for good": "errno=ENOSPC,count=0",
    "kill": "kill=1",
    "kill half": "kill=1,short=1",
    "flush": "op=flush,errno=EIO",
}
USUAL = "EIO,EIO for good,ENOSPC,ENOSPC for good,kill,kill half,flush"
REASONS = {"EIO": "Input/output error", "ENOSPC": "No space left on device",
           "flush": "Input/output error"}
DELAY = 150             # microseconds; see Victim.moments
MANY, SOME = 2000, 500  # with more requests so many indexes are tried
ENOUGH = 5              # findings in a row of the table


class Victim:
    """A row at work in a folder of its own."""

    def __init__(self, row, args):
        self.row, self.args = row, args
        self.nbdimg = args.nbdimg
        self.rnd = random.Random("%d %s" % (args.seed, row.name))
        self.cwd = os.path.join(args.dir, re.sub(r"\W+", "-", row.name))
        self.counter = self.cwd + ".count"
        self.verdicts = {}
        self.counts = collections.Counter()
        self.kinds = collections.Counter()
        self.findings = []
        self.requests = 0
        os.mkdir(self.cwd)

    def argv(self):
        return [self.nbdimg] + self.row.argv

    # ---- the two states ----

    def prepare(self):
        self.row.make(Maker(self.cwd, self.nbdimg))
        self.before = Folder(self.cwd)
        for rule in self.row.rules:
            rule.note_old(self.nbdimg, self.cwd)
        self.before.restore(self.cwd)
        self.printed = self.undisturbed("").out
        for rule in self.row.rules:
            rule.note_new(self.nbdimg, self.cwd)
        self.names = set(os.listdir(self.cwd))
        self.requests = self.count()

    def undisturbed(self, spec):
        end = finish(spawn(self.argv(), self.cwd, spec))
        if end.status != 0:
            raise Wrong("undisturbed: %s" % end)
        return end

    def count(self, spec="op=any"):
        self.before.restore(self.cwd)
        self.undisturbed("%s,countfile=%s" % (spec, self.counter))
        return self.counted()

    def counted(self):
        """How many requests the last program had that counts them."""
        if not os.path.exists(self.counter):
            return 0
        with open(self.counter, encoding="ascii") as fp:
            n = int(fp.read())
        os.unlink(self.counter)
        return n

    # ---- rounds ----

    def fault_round(self, mode, index):
        spec = "%s,index=%d" % (MODES[mode], index)
        self.before.restore(self.cwd)
        end = run(self.argv(), self.cwd, ok=None,
                  spec="%s,countfile=%s" % (spec, self.counter))
        happened = self.counted() >= index
        self.judge(mode, spec, end, happened and mode == "flush")

    def kill_round(self, moment, spec):
        self.before.restore(self.cwd)
        process = spawn(self.argv(), self.cwd, spec)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        self.judge("random kill", "%s after %.1f ms"
                   % (spec or "-", moment * 1000), finish(process))

    def judge(self, mode, what, end, must_fail=False):
        self.counts[mode] += 1
        try:
            ended = self.ending(mode, end)
            if ended == DONE and must_fail:
                raise Wrong("it did not fail, though a flush did")
            self.counts[mode, ended] += 1
            which = self.verdict(ended, GONE in end.err)
        except Wrong as e:
            self.counts["findings"] += 1
            self.findings.append("%s (%s): %s\n    %s" % (
                mode, what, escaped(str(e))[:900], end))
            return
        if ended != DONE:
            self.kinds[which] += 1

    def ending(self, mode, end):
        if end.status == 0:
            if self.row.reader and end.out != self.printed:
                raise Wrong("it did not fail, and printed something else")
            return DONE
        if end.status == -signal.SIGKILL and "kill" in mode:
            return KILLED
        if end.status not in self.row.statuses:
            raise Wrong("status %d" % end.status)
        if "kill" in mode:
            raise Wrong("it failed by itself")
        if self.printed and end.out == self.printed and not self.row.reader:
            raise Wrong("it failed, and says that it is done")
        if REASONS[mode.split()[0]] not in end.err:
            raise Wrong("the message does not give the reason")
        if not self.names.intersection(re.findall(r"([\w.]+)[':]", end.err)):
            raise Wrong("the message does not name a file")
        return FAILED

    def verdict(self, ended, warned):
        """What the rules say.  They have seen most states before."""
        folder = Folder(self.cwd)
        key = folder.digest(), ended, warned
        if key not in self.verdicts:
            self.verdicts[key] = None
            try:
                self.verdicts[key] = self.look(ended, folder, warned)
            except Wrong as e:
                self.verdicts[key] = e
                raise
        elif isinstance(self.verdicts[key], Wrong):
            raise self.verdicts[key]
        return self.verdicts[key]

    def look(self, ended, folder, warned):
        r = Round(self.nbdimg, self.cwd, ended, self.row.mendable, warned)
        which = [rule.judge(r) for rule in self.row.rules]
        if ended != DONE:
            self.go_on(folder, which)
        return which[0]

    def go_on(self, folder, which):
        """The same command again, with nothing in its way."""
        if "in-use" in which[0] or (not self.row.again
                                    and "old" not in which[0]):
            return
        folder.restore(self.cwd)
        end = finish(spawn(self.argv(), self.cwd))
        if end.status != 0:
            raise Wrong("it cannot be done again: %s" % end)
        for rule in self.row.rules:
            rule.judge_again(self.nbdimg, self.cwd)

    # ---- all of them ----

    def indexes(self, requests):
        """All, or as many as are wanted; of a long command a part."""
        limit = self.args.indexes or (
            requests if requests <= MANY else SOME)
        every = range(1, requests + 1)
        if limit >= requests:
            return every
        return sorted(self.rnd.sample(every, limit))

    def moments(self):
        """Over the time that the command takes, and as many over a slower run:
        most of a short one is the start of the program.
        """
        for spec in "", "delay=%d" % DELAY:
            taken = []
            for _ in range(3):
                self.before.restore(self.cwd)
                start = time.monotonic()
                self.undisturbed(spec)
                taken.append(time.monotonic() - start)
            for _ in range(-(-self.args.kills // 2)):
                yield self.rnd.uniform(0, sorted(taken)[1]), spec

    def torture(self):
        self.prepare()
        if self.requests == 0:
            raise Wrong("no request goes through the test storage")
        usual = self.indexes(self.requests)
        for mode in self.args.modes:
            for index in (usual if mode != "flush" else
                          self.indexes(self.count("op=flush"))):
                self.fault_round(mode, index)
                if len(self.findings) >= ENOUGH:
                    return
        if self.args.kills:
            for moment, spec in self.moments():
                self.kill_round(moment, spec)
                if len(self.findings) >= ENOUGH:
                    return

    def run(self):
        try:
            self.torture()
        except Wrong as e:
            self.counts["findings"] += 1
            self.findings.append(str(e))
        shutil.rmtree(self.cwd)
        return self


# ---- the report ----

def totals(victim):
    c = victim.counts
    faults = [m for m in MODES if "kill" not in m]
    return {
        "requests": victim.requests,
        "faults": sum(c[m] for m in faults),
        "harmless": sum(c[m, DONE] for m in faults),
        "kills": sum(c[m] for m in MODES if "kill" in m),
        "moments": c["random kill"],
        "states": len(victim.verdicts),
        "findings": c["findings"],
    }


def report(victim):
    kinds = ", ".join("%d %s" % (n, k) for k, n in
                      sorted(victim.kinds.items(), key=lambda x: -x[1]))
    print("%s %s: %s: %s" % (
        "not ok" if victim.findings else "ok", victim.row.name,
        ", ".join("%d %s" % (n, k) for k, n in totals(victim).items()),
        kinds), flush=True)
    for text in victim.findings:
        print("# %s: %s" % (victim.row.name, text), file=sys.stderr,
              flush=True)


def table(victims):
    """The table of docs/safety.md: a line for each command."""
    lines = {}
    for victim in victims:
        line = lines.setdefault(victim.row.argv[0], collections.Counter())
        line.update(totals(victim), rows=1)
    lines["**all**"] = sum(lines.values(), collections.Counter())
    print("| command | kinds | requests failed | of these harmless | kills at "
          "a request | kills at a moment | states | findings |")
    print("|---|---|---|---|---|---|---|---|")
    for command, line in lines.items():
        print("| %s | %s |" % (command, " | ".join(
            "{:,}".format(line[k]) for k in
            ("rows", "faults", "harmless", "kills", "moments", "states",
             "findings"))))


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--nbdimg", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--indexes", type=int, default=0, help="0 = every")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--only", action="append", help="names of rows")
    p.add_argument("--modes", default=USUAL, metavar="NAME,...",
                   help="of: %s; default: %%(default)s" % ", ".join(MODES))
    p.add_argument("--list", action="store_true")
    p.add_argument("--table", action="store_true",
                   help="at the end, what docs/safety.md has")
    args = p.parse_args()
    args.modes = [m for m in args.modes.split(",") if m]
    for mode in args.modes:
        if mode not in MODES:
            p.error("no such mode: " + mode)
    return args


def main():
    args = arguments()
    rows = [r for r in all_rows() if not args.only or any(
        fnmatch.fnmatchcase(r.name, p) for p in args.only)]
    if not rows:
        sys.exit("torture.py: no row of the table has such a name")
    if args.list:
        for row in rows:
            print("%s: nbdimg %s" % (row.name, shlex.join(row.argv)))
        return 0
    victims = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for victim in pool.map(lambda row: Victim(row, args).run(), rows):
            report(victim)
            victims.append(victim)
    if args.table:
        table(victims)
    bad = sum(bool(v.findings) for v in victims)
    print("%d commands, %d rounds, %d with findings (--seed %d)"
          % (len(rows), sum(sum(v.counts[m] for m in [*MODES, "random kill"])
                            for v in victims), bad, args.seed))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
