# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""What may be there after a command that was cut off: the judges of torture.py.

A rule looks at one file of the folder.  It is told how the command ended: DONE
(status 0), FAILED (it said so) or KILLED.
"""

import json
import os

from torture_image import (SECTOR, Wrong, check_image, check_repairs,
                           check_sound, content_of, differ_in, mixed,
                           read_file, run, state_of)

DONE, FAILED, KILLED = "done", "failed", "killed"
GONE = "old content is gone"


class Round:
    """What a judge needs to know of the round: WARNED when the command said
    that a file has lost its old content.
    """

    def __init__(self, nbdimg, cwd, ended, mendable=None, warned=False):
        self.nbdimg, self.cwd, self.ended = nbdimg, cwd, ended
        self.mendable = None if ended == DONE else mendable
        self.warned = warned

    def path(self, name):
        return os.path.join(self.cwd, name)


class Rule:
    def note_old(self, nbdimg, cwd):
        """The folder is as it was before the command ..."""

    def note_new(self, nbdimg, cwd):
        """... and as it is when nothing was in its way."""

    def judge(self, r):
        """Raises Wrong, or returns a word for what is there."""
        raise NotImplementedError

    def judge_again(self, nbdimg, cwd):
        """The command was given once more, and said that it is done."""
        self.judge(Round(nbdimg, cwd, DONE))


class Keep(Rule):
    """Not one byte of the file changes."""

    def __init__(self, name):
        self.name = name

    def note_old(self, nbdimg, cwd):
        self.bytes = read_file(os.path.join(cwd, self.name))

    def note_new(self, nbdimg, cwd):
        self.judge(Round(nbdimg, cwd, DONE))

    def judge(self, r):
        if not os.path.exists(r.path(self.name)):
            raise Wrong("%s is gone" % self.name)
        if read_file(r.path(self.name)) != self.bytes:
            raise Wrong("%s has changed" % self.name)
        return "old"


class Gone(Rule):
    """A file that is made beside the target: not there when that fails."""

    def __init__(self, name):
        self.name = name

    def note_new(self, nbdimg, cwd):
        if not os.path.exists(os.path.join(cwd, self.name)):
            raise Wrong("%s was not made" % self.name)

    def judge(self, r):
        if r.ended == FAILED and os.path.exists(r.path(self.name)):
            raise Wrong("%s is left behind" % self.name)
        return "new"


class Whole(Rule):
    """The old state or the new one, and no other."""

    def __init__(self, image):
        self.image = image

    def note_old(self, nbdimg, cwd):
        check_image(nbdimg, self.image, cwd, lambda line: True)
        self.old = state_of(nbdimg, self.image, cwd)

    def note_new(self, nbdimg, cwd):
        check_image(nbdimg, self.image, cwd)
        self.new = state_of(nbdimg, self.image, cwd)

    def judge(self, r):
        condition = check_image(r.nbdimg, self.image, r.cwd, r.mendable)
        got = state_of(r.nbdimg, self.image, r.cwd)
        if r.ended == DONE:
            which = self.must_be(got, self.new, "new")
        else:
            which = self.may_be(got)
        if condition == "clean":
            return which
        check_repairs(r.nbdimg, self.image, r.cwd, got.content)
        return which + "+" + condition

    def judge_again(self, nbdimg, cwd):
        check_sound(nbdimg, self.image, cwd)
        got = content_of(nbdimg, self.image, cwd)
        if got != self.new.content:
            raise Wrong("%s: done again, sector %d is another"
                        % (self.image.name, differ_in(got, self.new.content)))

    def may_be(self, got):
        for state, which in (self.old, "old"), (self.new, "new"):
            if got.content == state.content and all(
                    self.key_fits(key, got, state) for key in got.meta):
                return which + in_use(got)
        self.must_be(got, self.old, "old or the new")

    def key_fits(self, key, got, state):
        """A bitmap that is in use says that it is worth nothing."""
        if key != "bitmaps":
            return got.meta[key] == state.meta[key]
        a, b = got.meta[key], state.meta[key]
        return a.keys() == b.keys() and all(
            a[n] in (b[n], "in-use") for n in a)

    def must_be(self, got, state, which):
        if got.content != state.content:
            raise Wrong("%s: sector %s is not that of the %s content"
                        % (self.image.name,
                           differ_in(got.content, state.content), which))
        for key in got.meta:
            if got.meta[key] != state.meta[key]:
                raise Wrong("%s: %s is %s, not the %s %s"
                            % (self.image.name, key, got.meta[key], which,
                               state.meta[key]))
        return which


def in_use(state):
    return "+in-use" if "in-use" in state.meta.get("bitmaps", {}).values() \
        else ""


class Parts(Whole):
    """Each sector, and everything else by itself, is the old or the new one.
    ALSO is another image whose old content its sectors may have, STEPS are the
    bytes of which they may consist on the way.
    """

    def __init__(self, image, also=None, steps=()):
        super().__init__(image)
        self.also, self.steps = also, steps

    def note_old(self, nbdimg, cwd):
        super().note_old(nbdimg, cwd)
        self.more = [content_of(nbdimg, self.also, cwd)] if self.also else []
        self.more += [bytes([n]) * len(self.old.content) for n in self.steps]

    def may_be(self, got):
        if got in (self.old, self.new):
            return "old" if got == self.old else "new"
        for key in got.meta:
            if not any(self.key_fits(key, got, s) for s in
                       (self.old, self.new)):
                self.must_be(got, self.old, "old")
        if len(got.content) not in (len(self.old.content),
                                    len(self.new.content)):
            raise Wrong("%s: a size of %d" % (self.image.name,
                                              len(got.content)))
        wrong = mixed(got.content, self.old.content, self.new.content,
                      *self.more)
        if wrong is not None:
            raise Wrong("%s: sector %d is neither old nor new"
                        % (self.image.name, wrong))
        self.bitmaps_tell(got)
        return "between" + in_use(got)

    def key_fits(self, key, got, state):
        """Bitmaps need not be old or new: bitmaps_tell looks at them."""
        if key == "bitmaps":
            return got.meta[key].keys() == state.meta[key].keys()
        return super().key_fits(key, got, state)

    def bitmaps_tell(self, got):
        """A bitmap that is not in use has all that it had, and all changes if
        it records them.
        """
        for name, bitmap in got.meta.get("bitmaps", {}).items():
            old = self.old.meta["bitmaps"].get(name)
            if "in-use" in (bitmap, old) or old is None or \
                    bitmap == self.new.meta["bitmaps"].get(name):
                continue
            must = dirty_ranges(old)
            if "auto" in old[1]:
                must += changed(self.old.content, got.content)
            missing = outside(must, dirty_ranges(bitmap))
            if missing:
                raise Wrong("%s: bitmap %s does not tell of %d"
                            % (self.image.name, name, missing[0]))


def dirty_ranges(bitmap):
    return [(e["offset"], e["offset"] + e["length"])
            for e in json.loads(bitmap[2]) if e["type"]]


def changed(a, b):
    """The sectors that differ, as ranges."""
    return [(at, at + SECTOR) for at in range(0, len(a), SECTOR)
            if a[at:at + SECTOR] != b[at:at + SECTOR]]


def outside(ranges, cover):
    """The starts of RANGES that are not wholly in one of COVER."""
    return [a for a, b in ranges
            if not any(c <= a and b <= d for c, d in cover)]


class Same(Parts):
    """The disk reads the same all the time; all else is as for Parts."""

    def note_new(self, nbdimg, cwd):
        super().note_new(nbdimg, cwd)
        if self.new.content != self.old.content:
            raise Wrong("the command itself changes the disk")

    def may_be(self, got):
        if got.content != self.old.content:
            self.must_be(got, self.old, "old")
        return super().may_be(got)


class Made(Rule):
    """A new image.  Not there when the command fails.  When it was killed: no
    image yet, or one that passes check and has, sector by sector, zeroes or
    what was to be copied.
    """

    def __init__(self, image, base=None):
        self.image, self.base = image, base

    def note_old(self, nbdimg, cwd):
        self.blank = content_of(nbdimg, self.base, cwd) if self.base else b""

    def note_new(self, nbdimg, cwd):
        check_image(nbdimg, self.image, cwd)
        self.new = state_of(nbdimg, self.image, cwd)

    def judge(self, r):
        if not os.path.exists(r.path(self.image.name)):
            if r.ended == DONE:
                raise Wrong("%s was not made" % self.image.name)
            return "absent"
        if r.ended == FAILED:
            raise Wrong("%s is left behind" % self.image.name)
        if r.ended == KILLED and self.unfinished(r):
            return "unfinished"
        condition = check_image(r.nbdimg, self.image, r.cwd, r.mendable)
        got = state_of(r.nbdimg, self.image, r.cwd)
        which = self.complete_or_part(r, got)
        if condition == "clean":
            return which
        check_repairs(r.nbdimg, self.image, r.cwd, got.content)
        return which + "+" + condition

    def complete_or_part(self, r, got):
        if got == self.new:
            return "new"
        if r.ended == DONE:
            raise Wrong("%s is not what was to be made: %s"
                        % (self.image.name, got.meta))
        wrong = mixed(got.content, self.new.content,
                      bytes(len(self.new.content)), self.blank)
        if wrong is not None:
            raise Wrong("%s: sector %d is neither empty nor new"
                        % (self.image.name, wrong))
        return "between"

    def unfinished(self, r):
        """Neither program takes it for an image of its format."""
        if self.image.fmt == "raw":
            return False
        ends = [run([tool, "info", "-U"] + self.image.arguments(), r.cwd,
                    ok=None) for tool in (r.nbdimg, "qemu-img")]
        if any(e.status not in (0, 1) for e in ends):
            raise Wrong("; ".join(map(str, ends)))
        return all(e.status == 1 and e.err for e in ends)


class MadeSecret(Made):
    """The same of LUKS: what was never written reads as noise, another each
    time.
    """

    def __init__(self, image, written=True):
        super().__init__(image)
        self.written = written

    def judge(self, r):
        if r.ended == DONE and self.written or r.ended == FAILED or \
                not os.path.exists(r.path(self.image.name)):
            return super().judge(r)
        if r.ended == KILLED and self.unfinished(r):
            return "unfinished"
        got = state_of(r.nbdimg, self.image, r.cwd)
        if got.meta != self.new.meta or \
                len(got.content) != len(self.new.content):
            raise Wrong("%s is another image: %s" % (self.image.name,
                                                     got.meta))
        return "new" if got == self.new else "between"


class Replaced(Made):
    """The same over a file that was there: it stays when the command fails,
    which says so when the old content does not.
    """

    def note_old(self, nbdimg, cwd):
        super().note_old(nbdimg, cwd)
        self.bytes = read_file(os.path.join(cwd, self.image.name))

    def judge(self, r):
        path = r.path(self.image.name)
        if not os.path.exists(path):
            raise Wrong("%s is gone" % self.image.name)
        if r.ended != DONE:
            if read_file(path) == self.bytes:
                return "old"
            if r.ended == FAILED and not r.warned:
                raise Wrong("%s: the old content is gone without a word"
                            % self.image.name)
            if self.unfinished(r):
                return "unfinished"
            r = Round(r.nbdimg, r.cwd, KILLED, r.mendable)
        return super().judge(r)
