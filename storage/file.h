/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The insides of the file driver, which stands in four files: file.c (open,
 * close, what the object can do), file_io.c (read, write, flush), file_space.c
 * (zero, trim, truncate, extents) and file_copy.c; lock.c has QEMU's image
 * locks.
 *
 * Locks, in this order: eof, blocks, flushes.  The ordinary read, write and
 * zero, inside the file and aligned, take none of them.
 */

#ifndef NBDIMG_STORAGE_FILE_H
#define NBDIMG_STORAGE_FILE_H

#include <pthread.h>

#include "common/bytes.h"
#include "common/lock.h"
#include "storage/driver.h"

/* ---- lock.c ---- */

struct image_lock {
  struct mutex mutex;
  unsigned held, unshared;    /* guarded by mutex: what the file shows */
  bool unsupported;           /* guarded by mutex: the warning was given */
};

/* The bytes of QEMU's locks: permission i is held on HELD + i, not shared on
 * UNSHARED + i.
 */
enum {
  LOCK_HELD_BASE = 100, LOCK_UNSHARED_BASE = 200, LOCK_NR_PERMISSIONS = 4,
};

/* As storage_lock_holders, for locks other than those of FD (lock_holders.c).
 */
extern int lock_holders (int fd, const char *name,
                         struct storage_lock_holder **holders, size_t *nr,
                         struct error *e);

/* See storage_lock.  STRICT: a file system without locks is an error. */
extern int image_lock_change (struct image_lock *lock, int fd,
                              const char *name, bool strict, unsigned held,
                              unsigned unshared, struct error *e);

/* Set the same locks on FD, another description of the same file. */
extern int image_lock_copy (struct image_lock *lock, int fd,
                            const char *name, struct error *e);

/* ---- the file driver ---- */

/* A read-modify-write in progress, on the stack of its thread. */
struct busy_blocks {
  uint64_t start, end;
  struct busy_blocks *next;
};

/* Buffers for O_DIRECT requests that are not aligned: kept for the 16 threads
 * that nbdkit runs for a connection.
 */
enum { BOUNCE_SIZE = 1 << 20, NR_BOUNCE = 16 };

struct file {
  struct storage base;

  /* Fixed after open (set_writable changes what stands behind FD). */
  int fd;
  int fua_fd;                 /* a second description, see file_io.c; or fd */
  bool by_descriptor;         /* the caller of the program owns the file */
  bool direct;                /* O_DIRECT */
  bool writethrough;          /* each write is durable */
  bool unsafe;                /* nothing is ever flushed */
  bool no_discard, no_lock, lock_strict;
  bool device_zero_fast;      /* device: it has a command for zeroes */
  uint32_t align;             /* of offsets and lengths; 1 = any */
  uint32_t mem_align;         /* of buffers; 1 = any */
  uint32_t zero_align;        /* of fallocate and the like */

  /* Atomic, only ever set: what this file system turned out not to have. */
  bool no_punch, no_zero_range, no_allocate, no_dsync, no_clone;
  bool no_device_zero, no_device_discard;

  /* Every change of the end of the file.  XFS has lost writes past the end
   * that raced with fallocate.
   */
  struct mutex eof;

  struct mutex blocks;
  pthread_cond_t blocks_free; /* with blocks */
  struct busy_blocks *busy;   /* guarded by blocks */

  struct mutex flushes;
  pthread_cond_t flush_done;  /* with flushes */
  uint64_t flush_started;     /* guarded by flushes: number of the last one */
  uint64_t flush_finished;    /* guarded by flushes */
  bool flush_running;         /* guarded by flushes */

  struct image_lock lock;

  void *bounce[NR_BOUNCE];    /* atomic: a buffer, or NULL = in use or none */
};

static inline struct file *
file_of (struct storage *st)
{
  return (struct file *) st;
}

static inline bool
file_known_missing (const bool *flag)
{
  return __atomic_load_n (flag, __ATOMIC_RELAXED);
}

static inline void
file_note_missing (bool *flag)
{
  __atomic_store_n (flag, true, __ATOMIC_RELAXED);
}

/* Must this request be durable when it returns? */
static inline bool
file_wants_fua (const struct file *f, unsigned flags)
{
  return ((flags & STORAGE_FUA) || f->writethrough) && !f->unsafe;
}

/* file_io.c */
extern int file_pread (struct storage *, void *buf, size_t len,
                       uint64_t offset, struct error *);
extern int file_pwrite (struct storage *, const void *buf, size_t len,
                        uint64_t offset, unsigned flags, struct error *);
extern int file_flush (struct storage *, struct error *);
extern void file_free_bounce (struct file *f);

/* file_space.c */
extern int file_zero (struct storage *, uint64_t offset, uint64_t len,
                      unsigned flags, struct error *);
extern int file_trim (struct storage *, uint64_t offset, uint64_t len,
                      unsigned flags, struct error *);
extern int file_truncate (struct storage *, uint64_t size, struct error *);
extern int file_extents (struct storage *, uint64_t offset, uint64_t len,
                         struct storage_extent *out, size_t max, size_t *nr,
                         struct error *);
extern int file_refresh_size (struct storage *, struct error *);
extern int file_disk_size (struct storage *, uint64_t *size, struct error *);

/* Ask the kernel for the size of the object behind FD. */
extern int file_ask_size (int fd, bool is_device, const char *name,
                          uint64_t *size, struct error *);

/* ftruncate, repeated after EINTR; 0 or -1 and errno. */
extern int file_ftruncate (int fd, uint64_t size);

/* file_copy.c */
extern int file_copy_from (struct storage *dst, uint64_t dst_offset,
                           struct storage *src, uint64_t src_offset,
                           uint64_t len, bool share, struct error *);

#endif /* NBDIMG_STORAGE_FILE_H */
