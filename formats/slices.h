/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the formats that write their tables back in epochs share: a cache of
 * table slices, and the epochs themselves.
 *
 * A slice is min (4 KiB, cluster) of a table, as it stands on disk.  Changes
 * collect in the cache.  An epoch is one round of writing them out, in the
 * order that the format needs: its setup.epoch collects the kinds of slices
 * into batches, then writes the batches with barriers between them.  One epoch
 * runs at a time; it writes copies, so that changes of the meantime go to the
 * next one.
 *
 * Locking: one mutex, the format's, guards everything but what setup says.  It
 * is never held during a storage read or flush: a function that must read
 * drops it, and its caller looks everything up again (it returns 0).
 * Functions called xxx_locked need it.
 */

#ifndef NBDIMG_SLICES_H
#define NBDIMG_SLICES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/lock.h"
#include "storage/storage.h"

enum { SLICE_MAX_KINDS = 4 };

struct slice {
  uint64_t host;                /* its place in the image, slice aligned */
  unsigned kind;
  bool loading;                 /* being read: wait for cache.changed */
  bool dirty;                   /* must be written by the next epoch */
  bool dead;                    /* its table is gone: no lookup finds it, the
                                   last pin frees it */
  unsigned pins;                /* operations and epochs that hold it: it is
                                   not evicted */
  struct slice *hash_next;
  struct slice *lru_prev, *lru_next;
  uint8_t *data;
};

struct slice_cache_setup {
  struct mutex *mutex;          /* borrowed, as all pointers here */
  struct storage *storage;
  const char *const *kinds;     /* names of the kinds of tables, for errors */
  unsigned nr_kinds;
  uint64_t unit;                /* of which tables are made: a cluster */
  uint64_t bytes;               /* budget; 0 = 16 MiB */
  /* Write out all that is dirty.  Called with the mutex, drops it. */
  int (*epoch) (void *owner, struct error *e);
  void *owner;
};

struct slice_cache {
  /* fixed after slices_init */
  struct slice_cache_setup setup;
  struct mutex *mutex;
  uint32_t slice_size;
  size_t max_slices;
  size_t nr_buckets;            /* power of 2 */

  /* guarded by *mutex */
  struct slice **buckets;
  struct slice *lru_first, *lru_last;   /* first = least recently used */
  size_t nr_slices;
  size_t nr_dirty[SLICE_MAX_KINDS];
  unsigned free_tokens;         /* operations that may still start to load */
  bool epoch_running;
  uint64_t epochs_started, epochs_done;
  pthread_cond_t changed;       /* a load or an epoch ended, a token is free,
                                   or what the format waits for */
};

/* One operation's claim on the cache; slice_op_end gives it back.  At most
 * SLICE_OP_PINS slices that it had to load stay pinned until then, so that
 * they are still there when the operation starts over.
 */
enum { SLICE_OP_PINS = 4 };
struct slice_op {
  struct slice *pinned[SLICE_OP_PINS];
  unsigned next;                /* the place of the oldest pin */
  bool token;
};
#define SLICE_OP_INIT { .next = 0 }

extern int slices_init (struct slice_cache *c,
                        const struct slice_cache_setup *setup,
                        struct error *e);
extern void slices_free (struct slice_cache *c);

/* The slice that holds byte HOST of the image.  1 = *S is it, valid until the
 * mutex is dropped; 0 = the mutex was dropped meanwhile: start over; -1;
 * SLICE_OTHER_KIND = *S is part of a table of another kind.
 */
enum { SLICE_OTHER_KIND = 2 };
extern int slices_get_locked (struct slice_cache *c, struct slice_op *op,
                              unsigned kind, uint64_t host, struct slice **s,
                              struct error *e) REQUIRES (c->mutex);
extern void slice_op_end_locked (struct slice_cache *c, struct slice_op *op)
  REQUIRES (c->mutex);

/* Room for NR more dirty slices?  1 = yes; 0 = an epoch was run and the mutex
 * dropped: start over; -1.
 */
extern int slices_make_room_locked (struct slice_cache *c, size_t nr,
                                    struct error *e) REQUIRES (c->mutex);
extern void slice_dirty_locked (struct slice_cache *c, struct slice *s)
  REQUIRES (c->mutex);
extern bool slices_dirty_locked (const struct slice_cache *c)
  REQUIRES (c->mutex);

/* Forget what is cached of [host, host+length): the table there is gone. */
extern void slices_drop_locked (struct slice_cache *c, uint64_t host,
                                uint64_t length) REQUIRES (c->mutex);

/* Forget everything; nothing may be dirty or pinned. */
extern void slices_drop_all_locked (struct slice_cache *c)
  REQUIRES (c->mutex);

/* Forget all that is cached: the tables were changed on disk.  No operation is
 * under way.
 */
extern void slices_forget_locked (struct slice_cache *c) REQUIRES (c->mutex);

/* Is a slice of a table inside [host, host+length) cached?  Cheap. */
extern bool slices_cached_locked (struct slice_cache *c, uint64_t host,
                                  uint64_t length) REQUIRES (c->mutex);

static inline uint8_t *
slice_byte (const struct slice_cache *c, struct slice *s, uint64_t host)
{
  return s->data + (host & (c->slice_size - 1));
}

/* ---- epochs ---- */

/* Copies of the slices that one step of an epoch writes. */
struct slice_batch {
  struct slice **slices;        /* owned array; each is pinned */
  uint8_t *data;                /* owned; nr times slice_size */
  size_t nr;
};

/* Copy what is dirty of KINDS (bits 1 << kind).  From here on, changes belong
 * to the next epoch.  Whatever is returned, slices_batch_end comes later.
 */
extern int slices_collect_locked (struct slice_cache *c, unsigned kinds,
                                  struct slice_batch *b, struct error *e)
  REQUIRES (c->mutex);

/* Without the mutex.  No barrier. */
extern int slices_write (const struct slice_cache *c,
                         const struct slice_batch *b, struct error *e);

/* The same and a barrier, if there is anything to write. */
extern int slices_write_out (const struct slice_cache *c,
                             const struct slice_batch *b, struct error *e);

/* What FAILED to be written is dirty again. */
extern void slices_batch_end_locked (struct slice_cache *c,
                                     struct slice_batch *b, bool failed)
  REQUIRES (c->mutex);

/* Write everything that is dirty now; drops the mutex. */
extern int slices_epoch_locked (struct slice_cache *c, struct error *e)
  REQUIRES (c->mutex);

/* For a format whose metadata are all in the cache: are changes of it not yet
 * on disk, and format_ops.flush.
 */
extern bool slices_pending (struct slice_cache *c);
extern int slices_flush (struct slice_cache *c, struct error *e);

#endif /* NBDIMG_SLICES_H */
