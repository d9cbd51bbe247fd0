/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What io.c and zero.c share: steps of guest I/O under a range lock. */

#ifndef NBDIMG_IO_H
#define NBDIMG_IO_H

#include "image/image.h"

/* A guest write on its way: what is left of it.  BUF NULL = zeroes. */
struct write_job {
  struct image *im;
  const uint8_t *buf;
  size_t len;
  uint64_t offset;
  unsigned storage_flags;       /* STORAGE_FUA for writes in place */
  bool placed;                  /* a mapping was changed: FUA needs a flush */
};

static inline struct storage *
io_storage (const struct image *im, enum map_storage where)
{
  return where == MAP_IN_DATA_FILE ? im->data_file : im->storage;
}

/* A flag beside enum image_flags, for detect-zeroes=on: zero as MAY_UNMAP does,
 * but what has space keeps it.
 */
enum { IO_KEEP = 1 << 8 };

/* And another: what is zeroed is no guest data yet, and no change to hooks. */
enum { IO_NO_CHANGE = 1 << 9 };

/* With cache=writethrough and directsync each write is durable when it is
 * answered: its metadata too, which the storage knows nothing of.
 */
static inline unsigned
io_durable (const struct image *im, unsigned flags)
{
  return im->options.cache == CACHE_WRITETHROUGH
    || im->options.cache == CACHE_DIRECTSYNC ? flags | IMAGE_FUA : flags;
}

/* Offset and length inside the disk, and open for writing? */
extern int io_check_write (struct image *im, uint64_t offset, uint64_t len,
                           struct error *e);

/* Does a change at OFFSET touch what a probe would look at (raw, probed)?  Then
 * it is allowed only after io_check_probed_head.
 */
extern bool io_is_probed_head (const struct image *im, uint64_t offset);
extern int io_check_probed_head (struct image *im, const void *buf,
                                 size_t len, uint64_t offset,
                                 struct error *e);

/* Hold the clusters that [offset, offset+len) touches EXCLUSIVE. */
extern void io_lock_clusters (struct image *im, struct range *r,
                              uint64_t offset, uint64_t len);

/* LEN bytes of the guest at GUEST, which lie at HOST of the storage WHERE:
 * decrypted or encrypted on the way if the image is (crypt.c).  BUF NULL =
 * zeroes.  The caller holds the range; for io_put with a cipher EXCLUSIVE, and
 * rounded out to sectors.
 */
extern int io_get (struct image *im, enum map_storage where, void *buf,
                   size_t len, uint64_t host, uint64_t guest,
                   struct error *e);
extern int io_put (struct image *im, enum map_storage where, const void *buf,
                   uint64_t len, uint64_t host, uint64_t guest,
                   unsigned flags, struct error *e);

/* One layer's answer, with the checks that hold for every driver. */
extern int io_map (struct image *im, uint64_t offset, uint64_t len,
                   struct mapping *m, struct error *e);

/* What the guest reads; the caller holds the range.  Behind the end of the disk
 * (the tail of the last cluster) there are zeroes.
 */
extern int io_read (struct image *im, uint8_t *buf, size_t len,
                    uint64_t offset, struct error *e);

/* Does M mean zeroes, without looking into data? */
extern bool io_reads_zero (const struct image *im, const struct mapping *m,
                           uint64_t offset);

/* Write the next piece of W; the caller holds its clusters EXCLUSIVE. */
extern int io_write_piece (struct write_job *w, struct error *e);

/* Zero what is behind the end of the disk in its last cluster, which a larger
 * size will show.  The image is frozen.
 */
extern int io_zero_behind (struct image *im, uint64_t offset, uint64_t len,
                           struct error *e);

/* The storage flag for a FUA request: 0 while metadata is dirty (then only a
 * flush makes the mapping durable).
 */
extern unsigned io_fua_flag (struct image *im, unsigned flags);

/* What a FUA request needs after its writes. */
extern int io_fua_end (struct image *im, unsigned flags,
                       unsigned storage_flags, bool placed, struct error *e);

#endif /* NBDIMG_IO_H */
