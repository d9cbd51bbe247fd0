/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Compressed clusters: see packed.h.  Layer: image.  Locking: the cache has a
 * mutex of its own, held for look-ups and copies, never while reading or
 * inflating.  An entry is known by its guest cluster and its stream's place;
 * whoever changes a cluster's mapping holds its range EXCLUSIVE and forgets the
 * entry first, so no reader can meet an old one.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/codec.h"
#include "common/lock.h"
#include "image/packed.h"

enum { MAX_ENTRIES = 32 };

/* What streams and clusters may take while they are decoded, in the whole
 * process: 64 readers of clusters of 2 MiB would want 256 MiB, and more of them
 * than processors gain nothing.  Who waits here holds ranges, who is waited for
 * only reads the file and inflates: nobody waits for each other.
 */
#define DECODE_BYTES (8 * MiB)

static struct {
  struct mutex mutex;
  pthread_cond_t less;
  uint64_t bytes;               /* in use; guarded by mutex */
} decoding = { .mutex = MUTEX_INIT, .less = PTHREAD_COND_INITIALIZER };

/* One may have more than the bound, if it is alone. */
static void
decoding_enter (uint64_t bytes)
{
  mutex_lock (&decoding.mutex);
  while (decoding.bytes > 0 && decoding.bytes + bytes > DECODE_BYTES)
    mutex_wait (&decoding.mutex, &decoding.less);
  decoding.bytes += bytes;
  mutex_unlock (&decoding.mutex);
}

static void
decoding_leave (uint64_t bytes)
{
  mutex_lock (&decoding.mutex);
  decoding.bytes -= bytes;
  pthread_cond_broadcast (&decoding.less);
  mutex_unlock (&decoding.mutex);
}

struct entry {
  bool used;
  uint64_t cluster, host;       /* guest offset; stream's host offset */
  uint64_t stamp;               /* of the last use */
  size_t len;
  uint8_t *data;                /* owned */
};

struct packed_cache {
  uint64_t budget;              /* bytes; fixed */
  struct mutex mutex;
  /* guarded by mutex */
  struct entry entries[MAX_ENTRIES];
  uint64_t clock;
  size_t nr_used;
};

struct packed_cache *
packed_cache_new (uint64_t bytes, struct error *e)
{
  struct packed_cache *pc = calloc (1, sizeof *pc);

  if (!pc) {
    error_nomem (e, "the cache of decoded clusters", sizeof *pc);
    return NULL;
  }
  pc->budget = bytes;
  mutex_init (&pc->mutex);
  return pc;
}

void
packed_cache_free (struct packed_cache *pc)
{
  if (!pc)
    return;
  for (size_t i = 0; i < MAX_ENTRIES; ++i)
    free (pc->entries[i].data);
  mutex_destroy (&pc->mutex);
  free (pc);
}

static struct entry *
find_locked (struct packed_cache *pc, const struct mapping *m)
  REQUIRES (pc->mutex)
{
  for (size_t i = 0; i < MAX_ENTRIES; ++i) {
    struct entry *x = &pc->entries[i];

    if (x->used && x->cluster == m->cluster && x->host == m->host)
      return x;
  }
  return NULL;
}

static bool
read_cached (struct packed_cache *pc, const struct mapping *m, void *buf,
             size_t len, uint64_t in_cluster)
{
  struct entry *x;

  mutex_lock (&pc->mutex);
  x = find_locked (pc, m);
  if (x) {
    x->stamp = ++pc->clock;
    memcpy (buf, x->data + in_cluster, len);
  }
  mutex_unlock (&pc->mutex);
  return x != NULL;
}

/* The place for one more: a free one while the budget lasts, else the one that
 * was not used for longest.
 */
static struct entry *
victim_locked (struct packed_cache *pc, size_t len) REQUIRES (pc->mutex)
{
  size_t max = (size_t) max_u64 (2, min_u64 (MAX_ENTRIES, pc->budget / len));
  struct entry *oldest = NULL;

  for (size_t i = 0; i < max; ++i) {
    struct entry *x = &pc->entries[i];

    if (!x->used)
      return x;
    if (!oldest || x->stamp < oldest->stamp)
      oldest = x;
  }
  return oldest;
}

/* Takes DATA. */
static void
insert (struct packed_cache *pc, const struct mapping *m, uint8_t *data,
        size_t len)
{
  struct entry *x;

  mutex_lock (&pc->mutex);
  if (find_locked (pc, m)) {
    mutex_unlock (&pc->mutex);
    free (data);
    return;
  }
  x = victim_locked (pc, len);
  free (x->data);
  if (!x->used)
    __atomic_fetch_add (&pc->nr_used, 1, __ATOMIC_RELAXED);
  *x = (struct entry) {
    .used = true, .cluster = m->cluster, .host = m->host, .len = len,
    .stamp = ++pc->clock, .data = data,
  };
  mutex_unlock (&pc->mutex);
}

void
packed_forget (struct packed_cache *pc, uint64_t offset, uint64_t length)
{
  if (__atomic_load_n (&pc->nr_used, __ATOMIC_RELAXED) == 0)
    return;
  mutex_lock (&pc->mutex);
  for (size_t i = 0; i < MAX_ENTRIES; ++i) {
    struct entry *x = &pc->entries[i];

    if (!x->used || !ranges_overlap (x->cluster, x->len, offset, length))
      continue;
    free (x->data);
    *x = (struct entry) { .used = false };
    __atomic_fetch_sub (&pc->nr_used, 1, __ATOMIC_RELAXED);
  }
  mutex_unlock (&pc->mutex);
}

/* Read the stream and inflate it into DST, a whole cluster. */
static int
decode (struct image *im, const struct mapping *m, uint8_t *dst, size_t len,
        struct error *e)
{
  CLEANUP_FREE uint8_t *stream = malloc (m->packed_length);

  if (!stream)
    return error_nomem (e, "a compressed cluster", m->packed_length);
  if (storage_pread (im->storage, stream, m->packed_length, m->host, e) == -1
      || codec_decompress (m->codec, stream, m->packed_length, dst, len,
                           e) == -1)
    return error_prefix (e, "%s: compressed cluster of guest offset %" PRIu64
                         " at 0x%" PRIx64, im->name, m->cluster, m->host);
  return 0;
}

/* By way of a buffer, which the cache keeps. */
static int
read_part (struct image *im, const struct mapping *m, void *buf, size_t len,
           uint64_t in_cluster, struct error *e)
{
  size_t cluster_size = im->format->info.cluster_size;
  uint8_t *data = malloc (cluster_size);

  if (!data)
    return error_nomem (e, "a decoded cluster", cluster_size);
  if (decode (im, m, data, cluster_size, e) == -1) {
    free (data);
    return -1;
  }
  memcpy (buf, data + in_cluster, len);
  insert (im->packed, m, data, cluster_size);
  return 0;
}

int
packed_read (struct image *im, const struct mapping *m, void *buf, size_t len,
             uint64_t offset, struct error *e)
{
  size_t cluster_size = im->format->info.cluster_size;
  bool whole = len == cluster_size;
  uint64_t bytes = m->packed_length + (whole ? 0 : cluster_size);
  int r;

  if (!whole && read_cached (im->packed, m, buf, len, offset - m->cluster))
    return 0;
  decoding_enter (bytes);
  r = whole ? decode (im, m, buf, len, e)
    : read_part (im, m, buf, len, offset - m->cluster, e);
  decoding_leave (bytes);
  return r;
}
