/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Storage: one flat, file-like object of bytes; the contract of this folder.
 *
 * A storage is a local file or block device (file.c), an NBD export (nbd.c), a
 * piece of memory (memory.c), a window of another storage (slice.c) or, in
 * tests, a wrapper that records (record.c) or fails (fault.c) the requests of
 * another one.  Storages know nothing of image formats.
 *
 * Offsets and lengths are in bytes, 0 <= offset, offset + length <= INT64_MAX.
 * Every call is positional and may come from any thread at the same time.  Two
 * calls that touch the same bytes at once are the caller's affair, but calls
 * on different bytes never disturb each other, not even when the storage must
 * round them to a larger block (O_DIRECT, NBD minimum block size): the storage
 * has a lock of its own for each aligned block.
 *
 * Locking: a storage's locks are the innermost of the whole program.
 * Errors: -1 or NULL and a filled struct error (see common/error.h).  A
 * message names the storage ("a.qcow2: write at 65536: No space left").
 */

#ifndef NBDIMG_STORAGE_H
#define NBDIMG_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/* Flags of pwrite, zero and trim. */
enum storage_flags {
  STORAGE_FUA = 1,        /* durable when the call returns */
  STORAGE_MAY_UNMAP = 2,  /* zero: space may be given back (hole) */
  STORAGE_FAST = 4,       /* zero: fail with ENOTSUP, nothing changed, unless
                             it is faster than writing zero bytes */
};

/* What a user's -t, -T or cache= asks for. */
enum cache_mode {
  CACHE_WRITEBACK,        /* page cache, flush = fdatasync */
  CACHE_NONE,             /* O_DIRECT, flush = fdatasync */
  CACHE_WRITETHROUGH,     /* page cache, each write durable */
  CACHE_DIRECTSYNC,       /* O_DIRECT, each write durable */
  CACHE_UNSAFE,           /* page cache, flush does nothing */
};

/* Parse "none", "writeback", ...  WHAT is the option's name. */
extern int cache_mode_parse (const char *what, const char *text,
                             enum cache_mode *mode, struct error *e);

enum extent_kind {
  EXTENT_DATA,            /* must be read */
  EXTENT_ZERO,            /* reads as zeroes, space allocated */
  EXTENT_HOLE,            /* reads as zeroes, no space allocated */
};

struct storage_extent {
  uint64_t length;        /* bytes, > 0 */
  enum extent_kind kind;
};

/* What the object can do; fixed after open. */
struct storage_caps {
  bool writable;
  bool can_grow;              /* a write or truncate past the end extends it */
  bool reads_zero_past_end;   /* bytes that a growth adds are zero */
  bool can_punch;             /* trim and zero with MAY_UNMAP free space */
  bool zero_is_fast;          /* zero does not move the bytes */
  bool is_device;             /* block device: fixed size, stale content */
  bool is_local_file;         /* regular file: extents are cheap, clone_range
                                 and copy_range may work */
  uint32_t alignment;         /* requests that are multiples of this take the
                                 short way; power of 2, 1 = any */
  uint64_t max_request;       /* larger ones are split inside the storage */
};

/* Who an object is, so that two names of one file are found to be the same.
 * Two storages are the same object when both are valid and equal.
 */
struct storage_identity {
  bool valid;
  uint64_t device, inode;     /* block devices: device = st_rdev, inode = 0 */
};

/* QEMU's image lock permissions (bytes 100+i and 200+i, trust.md E). */
enum storage_permission {
  PERM_CONSISTENT_READ = 1 << 0,
  PERM_WRITE = 1 << 1,
  PERM_WRITE_UNCHANGED = 1 << 2,
  PERM_RESIZE = 1 << 3,
};

struct storage;

struct storage_ops {
  const char *driver;         /* "file", "host_device", "nbd", ... */
  void (*close) (struct storage *);
  int (*pread) (struct storage *, void *buf, size_t len, uint64_t offset,
                struct error *);
  int (*pwrite) (struct storage *, const void *buf, size_t len,
                 uint64_t offset, unsigned flags, struct error *);
  int (*zero) (struct storage *, uint64_t offset, uint64_t len,
               unsigned flags, struct error *);
  int (*trim) (struct storage *, uint64_t offset, uint64_t len,
               unsigned flags, struct error *);
  int (*flush) (struct storage *, struct error *);
  int (*truncate) (struct storage *, uint64_t size, struct error *);
  int (*extents) (struct storage *, uint64_t offset, uint64_t len,
                  struct storage_extent *out, size_t max, size_t *nr,
                  struct error *);
  int (*lock) (struct storage *, unsigned held, unsigned unshared,
               struct error *);
  int (*refresh_size) (struct storage *, struct error *);
  /* The descriptor under the object, -1 = none (clone_range, copy_range). */
  int (*descriptor) (struct storage *);
  int (*disk_size) (struct storage *, uint64_t *, struct error *);
  int (*set_writable) (struct storage *, struct error *);
  /* Fill [dst_offset, dst_offset+len) from SRC inside the kernel, SHARE =
   * by sharing the blocks: 1 = done, 0 = not possible here, -1 = failed.
   */
  int (*copy_from) (struct storage *dst, uint64_t dst_offset,
                    struct storage *src, uint64_t src_offset, uint64_t len,
                    bool share, struct error *);
};

/* The base of every storage; a driver's struct has it as its first member. */
struct storage {
  const struct storage_ops *ops;
  char *name;                 /* for messages and info; owned */
  struct storage_caps caps;
  struct storage_identity identity;
  uint64_t size;              /* atomic: storage_size () */
  int flush_error;            /* atomic: errno of the first failed flush */
};

struct storage_open_options {
  bool writable;
  bool try_writable;          /* writable if permitted, else read-only */
  enum cache_mode cache;
  bool no_discard;            /* trim and MAY_UNMAP change no allocation */
  bool no_lock;               /* lock () does nothing (locking=off) */
  bool lock_strict;           /* locking=on: an unsupported lock is an error;
                                 otherwise a warning */
};

/* ---- drivers: each returns owned, close with storage_close ---- */

/* A regular file or block device.  FIFOs, sockets and directories are refused
 * (ENOTSUP, EISDIR).  Opens with O_NONBLOCK | O_CLOEXEC and looks at fstat
 * before anything else.  /dev/fd/N and /dev/fdset are opened by descriptor.
 */
extern struct storage *storage_file_open (const char *path,
                                          const struct storage_open_options *,
                                          struct error *);

/* What a new file shall be like; quietly not so where the file system has
 * nothing of the kind.
 */
struct storage_new_file {
  bool nocow;                 /* FS_NOCOW_FL: no copy on write (btrfs) */
  uint32_t extent_size_hint;  /* bytes that are allocated at a time (XFS); 0 =
                                 no hint */
  bool hint_asked_for;        /* by the user: a warning if it is refused */
};

/* Create PATH for writing, or open it if it exists.  CREATED says whether the
 * file is ours to unlink on failure.  An existing file is not touched: take
 * the locks, then storage_truncate.  HOW (or NULL) is about a new file, or one
 * without a byte.
 */
extern struct storage *storage_file_create (const char *path,
                                            const struct storage_new_file *how,
                                            const struct storage_open_options *,
                                            bool *created, struct error *);

/* An NBD export.  URI: nbd, nbds, nbd+unix, nbds+unix, and nothing else.
 * CONNECTIONS 0 = choose (4 where the server has multi-conn).
 * TLS: see struct nbd_tls; NULL = what the URI says.
 */
struct nbd_tls {
  const char *certificates;   /* folder, or NULL */
  const char *psk_file;       /* or NULL */
  const char *username;       /* or NULL */
  const char *hostname;       /* to verify against, or NULL */
  bool verify;
};
extern struct storage *storage_nbd_open (const char *uri,
                                         const struct nbd_tls *tls,
                                         unsigned connections,
                                         const struct storage_open_options *,
                                         struct error *);

/* Run ARGV (NULL-terminated) as an NBD server by socket activation and open
 * its default export.  The process is ended by storage_close.
 */
extern struct storage *storage_nbd_command (char *const *argv,
                                            unsigned connections,
                                            const struct storage_open_options *,
                                            struct error *);

/* SIZE bytes of zeroes, sparse.  Grows.  For tests and fuzzing. */
extern struct storage *storage_memory_new (const char *name, uint64_t size,
                                           struct error *);

/* SIZE bytes of zeroes; what is written is dropped (QEMU's null-co). */
extern struct storage *storage_null_new (const char *name, uint64_t size,
                                         struct error *);

/* The bytes [offset, offset+size) of INNER (takes it on success); size
 * UINT64_MAX = up to its end.  Does not grow unless it reaches to the end.
 */
extern struct storage *storage_slice_new (struct storage *inner,
                                          uint64_t offset, uint64_t size,
                                          struct error *);

/* ---- calls: the checks that all drivers share, then the driver ---- */

extern void storage_close (struct storage *);      /* NULL is allowed */

static inline uint64_t
storage_size (const struct storage *st)
{
  return __atomic_load_n (&st->size, __ATOMIC_ACQUIRE);
}

/* Bytes past the end of the object read as zeroes. */
extern int storage_pread (struct storage *, void *buf, size_t len,
                          uint64_t offset, struct error *);

/* All of LEN, or an error.  Past the end: grows, or ENOSPC. */
extern int storage_pwrite (struct storage *, const void *buf, size_t len,
                           uint64_t offset, unsigned flags, struct error *);

/* Make the range read as zeroes: by a hole (MAY_UNMAP), by allocated zeroes,
 * or by writing zero bytes.  Past the end it grows the object, as pwrite does.
 */
extern int storage_zero (struct storage *, uint64_t offset, uint64_t len,
                         unsigned flags, struct error *);

/* A hint: afterwards the range may read as anything (a file: what was there, or
 * zeroes).
 */
extern int storage_trim (struct storage *, uint64_t offset, uint64_t len,
                         unsigned flags, struct error *);

/* Everything written before is durable.  A failure is sticky: each later
 * flush fails too, until the object is opened again.
 */
extern int storage_flush (struct storage *, struct error *);

/* Set the size.  All changes of the end go through one lock per object. */
extern int storage_truncate (struct storage *, uint64_t size, struct error *);

/* Describe [offset, offset+len) in at most MAX extents, in order and without
 * a gap; a shorter answer than LEN is allowed, an empty one is not.  Where the
 * driver does not know, it is data.  The range lies inside the object.
 */
extern int storage_extents (struct storage *, uint64_t offset, uint64_t len,
                            struct storage_extent *out, size_t max,
                            size_t *nr, struct error *);

/* Take, change or give back QEMU's image locks: hold the permissions HELD, let
 * nobody else have UNSHARED (bits of enum storage_permission).  Locks all new
 * bytes first, then tests; on conflict what was held before is still held and
 * the error (EAGAIN) names the lock and, where it can be known, the holder.
 */
extern int storage_lock (struct storage *, unsigned held, unsigned unshared,
                         struct error *);

/* Who holds image locks on the object, but for ST itself: *HOLDERS (free it) of
 * *NR.  ENOTSUP where the object has none.
 */
struct storage_lock_holder {
  long pid;                   /* 0 = locks whose process was not found */
  char command[32];           /* as /proc tells it, printable; "" = unknown */
  unsigned held, unshared;    /* bits of enum storage_permission */
};
extern int storage_lock_holders (struct storage *st,
                                 struct storage_lock_holder **holders,
                                 size_t *nr, struct error *e);

/* Ask again how large the object is. */
extern int storage_refresh_size (struct storage *, struct error *);

/* Space that the object takes on its medium, in bytes. */
extern int storage_disk_size (struct storage *, uint64_t *size,
                              struct error *);

/* Make a storage that was opened read-only writable, by its descriptor and
 * never by its name.  ENOTSUP where the driver cannot.
 */
extern int storage_set_writable (struct storage *, struct error *);

/* Share (FICLONERANGE) or copy in the kernel (copy_file_range) LEN bytes from
 * SRC to DST.  Return 1 = done, 0 = not possible here (nothing said, nothing
 * or part of the range changed: copy by hand), -1 = failed.
 */
extern int storage_clone_range (struct storage *src, uint64_t src_offset,
                                struct storage *dst, uint64_t dst_offset,
                                uint64_t len, struct error *);
extern int storage_copy_range (struct storage *src, uint64_t src_offset,
                               struct storage *dst, uint64_t dst_offset,
                               uint64_t len, struct error *);

/* The object in which ST is a window, else ST; *OFFSET becomes that in it. */
extern struct storage *storage_below_slices (struct storage *st,
                                             uint64_t *offset);

static inline bool
storage_same (const struct storage *a, const struct storage *b)
{
  return a->identity.valid && b->identity.valid
    && a->identity.device == b->identity.device
    && a->identity.inode == b->identity.inode;
}

/* ---- test storages: built only by configure --enable-test-storage ---- */

/* Each file that storage_file_open or storage_file_create opens is wrapped as
 * the environment variable NBDIMG_TEST_STORAGE says: "rec:LOG" appends every
 * request to LOG, "fault:SPEC" makes requests fail.  In a release build this
 * returns INNER.  Takes INNER.
 */
extern struct storage *storage_test_wrap (struct storage *inner,
                                          struct error *);

/* record.c: wrap INNER (takes it); requests and their data go to the file
 * descriptor of LOG.  The layout of a record is in record.h.
 */
extern struct storage *storage_record_new (struct storage *inner,
                                           const char *log, struct error *);

/* fault.c: wrap INNER (takes it).  SPEC: "op=write,index=7,errno=EIO,once=1"
 * and the like; see the comment at the top of fault.c.
 */
extern struct storage *storage_fault_new (struct storage *inner,
                                          const char *spec, struct error *);

#endif /* NBDIMG_STORAGE_H */
