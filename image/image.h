/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Images: a chain of formats over storages, as one disk; the contract of this
 * folder.
 *
 * Invariants (I1-I9; those of a format's metadata stand in its own header):
 *
 * I1 A mapping that was looked up under a range lock stays true until the lock
 *    is dropped.  Reads and in-place writes hold their guest range SHARED;
 *    whatever changes a mapping, or reads, modifies and writes, holds it
 *    EXCLUSIVE, rounded out to clusters.
 * I2 Drivers never touch guest data; the core (io.c) never touches metadata.
 * I3 No driver mutex is held during a storage read or flush.
 * I4 Data and refcounts reach the disk before the entry that points there.
 * I5 A freed cluster is reused only after the table that dropped it is on disk.
 * I6 No number from disk is used before it is checked.
 * I7 Structural operations run under the gate's exclusive side, for a time that
 *    metadata bound and guest data do not.
 * I8 A file named inside an image is opened only through policy.c.
 * I9 One storage object per (device, inode) in a chain.
 *
 * Lock order: gate (top image first) -> range (top first) -> format mutex ->
 * storage.  Never wait for a gate or a range with a format mutex held.
 */

#ifndef NBDIMG_IMAGE_H
#define NBDIMG_IMAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "formats/format.h"
#include "image/range_lock.h"
#include "storage/storage.h"

/* ---- names (name.c) ----
 *
 * What the user may write is turned into one tree of options, QEMU's -blockdev
 * form: {"driver": "qcow2", "file": {"driver": "file", "filename": "a.img"}}.
 * A tree without a format driver at its top ({"driver": "file", ...}, or "nbd")
 * is probed.  A server that runs for the purpose is
 * {"driver": "nbd", "command": ["nbdkit", "curl", "https://..."]}.
 */

/* Parse a name that the user gave: a path ("file:" optional), an NBD URI or an
 * older nbd: form, json:{...}, a JSON array of strings (a command: the tool
 * turns "[ command args ]" into it), http, https, ftp, ssh URLs.
 * FORMAT: -f, or NULL = probe.  Returns owned.
 */
extern json_t *image_name_parse (const char *name, const char *format,
                                 struct error *e);

/* --image-opts: key=value,key.sub=value ("," is doubled).  Returns owned. */
extern json_t *image_opts_parse (const char *opts, struct error *e);

/* Resolve a name found inside the image PARENT (relative names are relative to
 * the parent's file) into an absolute or plain name, as info's "full backing
 * filename" shows it.  Returns owned, NULL when out of memory.
 */
extern char *image_name_resolve (const char *parent, const char *name);

/* Can NAME be resolved?  A relative name in an image that has no folder (an
 * NBD export) cannot.
 */
extern bool image_name_is_resolvable (const char *parent, const char *name);

/* ---- open ---- */

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

struct image_open_options {
  bool writable;
  bool writable_if_permitted;   /* plugin: open read-write where the file lets
                                   us, with read locks, until begin_write */
  unsigned writable_depth;      /* with writable: the backing file so far down
                                   the chain (1 = the top's own) is opened to
                                   be written to as well, and has its write
                                   locks; 0 = none */
  bool no_backing;              /* do not open the backing chain */
  bool info_only;               /* open no other file, no locks beyond
                                   consistent read, no data file */
  bool info_chain;              /* with info_only: open the backing files, each
                                   for info only */
  bool check;                   /* tolerate dirty and corrupt images; writable
                                   then is for check's repair alone: the write
                                   locks are held, begin_write is not done */
  bool force_share;             /* -U */
  bool share;                   /* share=on: let other writers in */
  bool untrusted;               /* the closed profile of the open policy */
  bool data_file_known;         /* who opens the image has just made it: it
                                   names no data file but the user's */
  bool discard;                 /* discard=unmap */
  enum detect_zeroes detect_zeroes;
  enum cache_mode cache;        /* of the image and its data file */
  enum cache_mode backing_cache;
  const char *snapshot;         /* id or name of an internal snapshot: the
                                   image is then read-only; NULL = the disk.
                                   image->options has a copy of its own */
  uint64_t cache_size;          /* metadata cache of the whole chain, bytes;
                                   0 = 16 MiB */
  unsigned nbd_connections;     /* 0 = choose */
  const char *key_secret;       /* id of the top layer's secret where the tree
                                   names none; or NULL */
};

struct gate {                   /* rwlock that does not starve its writer */
  pthread_rwlock_t lock;
};

struct image {
  /* fixed after open */
  char *name;                   /* as info shows it; owned */
  char *backing_name;           /* as it stands in the image; NULL = none */
  char *backing_format_name;    /* as recorded; NULL = not recorded */
  char *key_secret;             /* id of the secret that opened it; or NULL */
  uint64_t max_iterations;      /* that its key may take (format_key) */
  char *data_file_name;         /* as it stands in the image; NULL = none */
  struct storage *storage;      /* owned */
  struct storage *data_file;    /* owned; NULL = none */
  struct format *format;        /* owned */
  struct format_view *view;     /* an internal snapshot; NULL = the disk */
  struct image *backing;        /* owned; NULL = none, or not followed */
  struct image_open_options options;
  bool probed;                  /* nobody named the format */
  bool writable;                /* opened so that begin_write may be called */

  /* atomic */
  bool writing;                 /* begin_write was done */
  uint64_t size;                /* virtual size: image_size () */

  /* changed while frozen (hook.h) */
  struct write_hook *hooks;     /* borrowed */
  struct write_hook *format_hook;       /* owned; the format's, or NULL */

  struct gate gate;
  struct range_locks ranges;
  struct packed_cache *packed;  /* decoded clusters; own lock (packed.c) */
};

/* Open what OPTIONS (borrowed) describes, with its chain.  With writable set
 * the write locks are held and begin_write has been done on return.
 */
extern struct image *image_open (json_t *options,
                                 const struct image_open_options *,
                                 struct error *);

/* image_name_parse and image_open in one. */
extern struct image *image_open_name (const char *name, const char *format,
                                      const struct image_open_options *,
                                      struct error *);

/* First writer (plugin): write locks, then what the format must mark.  May be
 * called more than once and from any thread.
 */
extern int image_begin_write (struct image *im, struct error *e);

/* Clean shutdown of the whole chain; NULL is allowed.  An error (the first) is
 * told, everything is freed all the same.
 */
extern int image_close (struct image *im, struct error *e);

static inline uint64_t
image_size (const struct image *im)
{
  return __atomic_load_n (&im->size, __ATOMIC_ACQUIRE);
}

/* ---- create (create.c) ---- */

/* Create FORMAT in the place that NAME means (a file is made; a device or an
 * NBD export is overwritten).  An existing file is locked as QEMU locks it
 * before it is truncated.  Unlinks a file that it made when it fails.  With
 * the option data_file in OPTIONS that file is made too; options->data_file is
 * set by the function itself.  What is made is durable when it returns, but for
 * CACHE_UNSAFE.
 */
extern int image_create (const char *name, const struct format_ops *format,
                         const struct format_create_options *,
                         enum cache_mode cache, struct error *e);

/* ---- guest I/O (io.c) ----
 *
 * Offsets and lengths in bytes of the virtual disk, any alignment, within
 * image_size (EINVAL, or ENOSPC for a write, beyond it).  From any thread.
 */

enum image_flags {
  IMAGE_FUA = 1,                /* durable when the call returns */
  IMAGE_MAY_UNMAP = 2,          /* zero: clusters may be freed */
  IMAGE_FAST = 4,               /* zero: ENOTSUP, nothing changed, unless it is
                                   fast */
};

extern int image_read (struct image *im, void *buf, size_t len,
                       uint64_t offset, struct error *e);
extern int image_write (struct image *im, const void *buf, size_t len,
                        uint64_t offset, unsigned flags, struct error *e);
extern int image_zero (struct image *im, uint64_t offset, uint64_t len,
                       unsigned flags, struct error *e);
extern int image_trim (struct image *im, uint64_t offset, uint64_t len,
                       unsigned flags, struct error *e);

/* Write LEN bytes that stand at SRC_OFFSET of the file SRC by sharing its
 * blocks, or with COPY by a copy inside the kernel.  *DONE = how many were
 * written, from OFFSET on; fewer than LEN, or 0: not possible here, the caller
 * reads and writes.  OFFSET and LEN are multiples of the format's cow_size.
 */
extern int image_share (struct image *im, uint64_t offset, uint64_t len,
                        struct storage *src, uint64_t src_offset, bool copy,
                        uint64_t *done, struct error *e);

/* Copy on read: of all clusters that [offset, offset+len) touches, what comes
 * from the backing file, or from nowhere, becomes the image's own.
 */
extern int image_copy_up (struct image *im, uint64_t offset, uint64_t len,
                          struct error *e);

/* All that was acknowledged before is durable, on every storage written to. */
extern int image_flush (struct image *im, struct error *e);

/* Write one whole cluster (or the rest of the disk) compressed; OFFSET is
 * cluster aligned.  A cluster that does not get smaller is stored plain.
 * ENOTSUP where the format has no compressed clusters.  The second form takes
 * a stream that the caller has deflated already (convert -c does it on its
 * worker threads); PACKED_LENGTH 0 = it did not get smaller, store plain.
 */
extern int image_write_packed (struct image *im, const void *buf, size_t len,
                               uint64_t offset, struct error *e);
extern int image_write_stream (struct image *im, const void *buf, size_t len,
                               const void *stream, size_t packed_length,
                               uint64_t offset, struct error *e);

/* ---- what is where (extents.c) ---- */

struct image_extent {
  uint64_t length;              /* bytes, > 0 */
  bool data;                    /* there are bytes to read */
  bool zero;                    /* reads as zeroes */
  bool present;                 /* some layer of the chain has it; false = it is
                                   zero because no layer has it */
  bool compressed;
  unsigned depth;               /* 0 = the top layer */
  const struct image *layer;    /* at that depth; borrowed */
  bool has_host;                /* host is valid (plain, or raw, or reserved) */
  uint64_t host;                /* offset in the layer's storage */
};

enum image_extents_flags {
  EXTENTS_TOP_ONLY = 1,         /* do not look below the first layer: what it
                                   does not have is !present (depth 0) */
  EXTENTS_METADATA = 2,         /* do not ask the storage for holes (fast);
                                   raw layers are asked all the same */
};

/* What is at OFFSET?  Answers for 1..LEN bytes. */
extern int image_extents (struct image *im, uint64_t offset, uint64_t len,
                          unsigned flags, struct image_extent *out,
                          struct error *e);

/* ---- structure ---- */

/* A new size.  Larger: what is new reads as zeroes, and its space is reserved
 * as MODE says.  Smaller: what is behind the new end is lost; in qcow2 the disk
 * is the old one or the new one whatever happens.
 */
extern int image_resize (struct image *im, uint64_t size, struct error *e);
extern int image_resize_preallocated (struct image *im, uint64_t size,
                                      enum preallocation mode,
                                      struct error *e);

/* Other options of the format: see format_ops. */
extern int image_amend (struct image *im, const struct format_amend *a,
                        struct error *e);

/* Internal snapshots: as the calls of format_ops.  Guest I/O waits meanwhile;
 * what it has written is flushed before it has to.  apply changes what the
 * guest reads, and maybe the size, under its feet.
 */
extern int image_snapshot_create (struct image *im,
                                  const struct format_snapshot *s,
                                  struct error *e);
extern int image_snapshot_apply (struct image *im, const char *snapshot,
                                 struct error *e);
extern int image_snapshot_delete (struct image *im, const char *snapshot,
                                  struct error *e);

/* Record another backing file: NAME in FORMAT, or none (NULL).  Durable when it
 * returns.  Only the header changes: the chain that is open stays as it is, and
 * IM is to be closed next.
 */
extern int image_set_backing (struct image *im, const char *name,
                              const char *format, struct error *e);

/* Let go of all that IM itself has of the disk, so that its backing file shows
 * everywhere.  ENOTSUP, and nothing is changed, where the format cannot.  An
 * error in the middle leaves some parts let go of and others not.
 */
extern int image_empty (struct image *im, struct error *e);

/* Add or erase a passphrase of an image that was opened with its secret. */
extern int image_change_key (struct image *im,
                             const struct format_key_change *change,
                             const bool *cancel, struct error *e);

/* Persistent bitmaps: as the calls of format_ops, and ENOTSUP where the format
 * has none.  An image that is open for writing tells those that are enabled of
 * every change by itself.  merge: what SOURCE of FROM has dirty becomes dirty
 * in NAME; the disks must have the same size.
 */
extern int image_bitmaps (struct image *im, struct format_bitmap **list,
                          size_t *nr, struct error *e);
extern int image_bitmap_edit (struct image *im,
                              const struct format_bitmap_edit *edit,
                              struct error *e);
extern int image_bitmap_merge (struct image *im, const char *name,
                               struct image *from, const char *source,
                               struct error *e);

/* The state of a virtual machine, which lies behind the disk: its offset there,
 * or 0 where the format keeps none (ENOTSUP below).  What was never written
 * reads as zeroes.  Guest I/O waits meanwhile.
 */
extern uint64_t image_vm_state_offset (const struct image *im);
extern int image_vm_state_read (struct image *im, void *buf, size_t len,
                                uint64_t offset, struct error *e);
extern int image_vm_state_write (struct image *im, const void *buf,
                                 size_t len, uint64_t offset,
                                 struct error *e);

/* The frozen side of the gate, for structural operations. */
extern void image_freeze (struct image *im);
extern void image_thaw (struct image *im);

#endif /* NBDIMG_IMAGE_H */
