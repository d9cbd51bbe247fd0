/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A storage that keeps what is written to it, and what a crash leaves of that.
 */

#ifndef NBDIMG_CRASH_LOG_H
#define NBDIMG_CRASH_LOG_H

#include "common/bytes.h"
#include "storage/wrapper.h"
#include "tests/unit/storage-bytes.h"

/* ---- the log ---- */

/* Writes, in order, and barriers between them. */
struct logged {
  uint64_t host;
  struct bytes data;            /* p NULL = a barrier, or a change of size */
  bool durable;                 /* FUA */
  bool is_size;                 /* host is the new size */
};
struct write_log {
  struct logged items[2000];
  size_t nr;
};
static struct write_log the_log;

static inline void
log_add (uint64_t host, const void *buf, size_t len, bool durable)
{
  struct logged *l = &the_log.items[the_log.nr];

  CHECK (the_log.nr < 1999);
  the_log.nr += the_log.nr < 1999;
  *l = (struct logged) { .host = host, .durable = durable };
  if (len) {
    l->data = (struct bytes) { .p = unit_alloc (len), .len = len };
    memcpy (l->data.p, buf, len);
  }
}

static inline void
log_clear (void)
{
  for (size_t i = 0; i < the_log.nr; ++i)
    free (the_log.items[i].data.p);
  the_log.nr = 0;
}

static inline int
log_pwrite (struct storage *st, const void *buf, size_t len, uint64_t offset,
            unsigned flags, struct error *e)
{
  int r = storage_pwrite (wrapper_inner (st), buf, len, offset, 0, e);

  wrapper_note_growth (st);
  log_add (offset, buf, len, flags & STORAGE_FUA);
  return r;
}

static inline int
log_fill (struct storage *st, int byte, uint64_t offset, uint64_t len,
          unsigned flags, struct error *e)
{
  uint8_t *buf = unit_alloc (len);
  int r;

  memset (buf, byte, len);
  r = log_pwrite (st, buf, len, offset, flags, e);
  free (buf);
  return r;
}

static inline int
log_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
          struct error *e)
{
  return log_fill (st, 0, offset, len, flags, e);
}

static inline int
log_flush (struct storage *st, struct error *e)
{
  (void) st;
  (void) e;
  log_add (0, NULL, 0, false);
  return 0;
}

static inline int
log_truncate (struct storage *st, uint64_t size, struct error *e)
{
  int r = storage_truncate (wrapper_inner (st), size, e);

  wrapper_copy_size (st);
  log_add (size, NULL, 0, false);
  the_log.items[the_log.nr - 1].is_size = true;
  return r;
}

static inline int
log_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
           struct error *e)
{
  return storage_pread (wrapper_inner (st), buf, len, offset, e);
}

/* What is trimmed may read as anything: nobody may rely on it. */
static inline int
log_trim (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
          struct error *e)
{
  return log_fill (st, 0xda, offset, len, flags & ~(unsigned) STORAGE_FUA, e);
}

static const struct storage_ops log_ops = {
  .driver = "log",
  .close = wrapper_free,
  .pread = log_pread,
  .pwrite = log_pwrite,
  .zero = log_zero,
  .trim = log_trim,
  .flush = log_flush,
  .truncate = log_truncate,
  WRAPPER_OPS,
};

/* A storage with that content, which is logged from now on. */
static inline struct storage *
log_new (struct bytes content)
{
  struct error e = ERROR_INIT;
  struct storage *st = wrapper_new (&log_ops, sizeof (struct wrapper),
                                    storage_of (content), &e);

  log_clear ();
  if (!st) {
    printf ("not ok %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

/* ---- a crash ---- */

static inline void
replay (struct storage *st, const struct logged *l, size_t max)
{
  struct error e = ERROR_INIT;

  if (l->is_size)
    CHECK_OK (storage_truncate (st, l->host, &e), &e);
  else if (l->data.p)
    CHECK_OK (storage_pwrite (st, l->data.p,
                              (size_t) min_u64 (l->data.len, max), l->host, 0,
                              &e), &e);
}

/* What the disk may hold when the power fails after request END: all before the
 * last barrier, of the rest those whose bit is set in PICK (the last one torn
 * after 512 bytes if TORN).  Changes of size come when their turn is.
 */
static inline struct storage *
crash_state (struct bytes template, size_t end, uint64_t pick, bool torn)
{
  struct storage *st = storage_of (template);
  size_t barrier = 0;

  for (size_t i = 0; i < end; ++i)
    if (!the_log.items[i].data.p && !the_log.items[i].is_size)
      barrier = i;
  for (size_t i = 0; i < end; ++i) {
    const struct logged *l = &the_log.items[i];

    if (i < barrier || l->durable || l->is_size
        || (pick >> (i - barrier) % 64 & 1))
      replay (st, l, torn && i == end - 1 && !l->durable ? SECTOR_SIZE
              : SIZE_MAX);
  }
  return st;
}

#endif /* NBDIMG_CRASH_LOG_H */
