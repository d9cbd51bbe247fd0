/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A storage that writes down what is asked of another one: see record.h.
 *
 * Layer: storage.  Locking: one mutex for the appends of the process; the
 * clock is atomic.  The requests themselves run side by side.
 */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/lock.h"
#include "storage/record.h"
#include "storage/wrapper.h"

struct recorder {
  struct wrapper wrapper;
  int fd;                     /* of the log */
  uint32_t object;
};

/* A record on its way: what its request is, then when. */
struct request {
  enum record_op op;
  unsigned flags;
  uint64_t offset, length;
  const void *data;
  size_t data_size;
  uint64_t submitted;
};

static struct mutex append_mutex = MUTEX_INIT;

/* ---- the clock ---- */

uint64_t
storage_record_clock (void)
{
  static uint64_t last;
  struct timespec ts;
  uint64_t old, now, next;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  now = (uint64_t) ts.tv_sec * UINT64_C (1000000000) + (uint64_t) ts.tv_nsec;
  old = __atomic_load_n (&last, __ATOMIC_ACQUIRE);
  do
    next = max_u64 (old + 1, now);
  while (!__atomic_compare_exchange_n (&last, &old, next, true,
                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  return next;
}

/* ---- the log ---- */

/* Both parts in one write, which a kill may cut but never interleave.  Only a
 * full disk or more than 2 GiB need more than one round.
 */
static int
append_locked (int fd, struct iovec *iov, struct error *e)
  REQUIRES (append_mutex)
{
  ssize_t r;

  while (iov[0].iov_len + iov[1].iov_len) {
    r = writev (fd, iov, 2);
    if (r < 0 && errno == EINTR)
      continue;
    if (r <= 0)
      return error_errno (e, r < 0 ? errno : EIO, "log of the test storage");
    for (int i = 0; i < 2; ++i) {
      size_t n = (size_t) r < iov[i].iov_len ? (size_t) r : iov[i].iov_len;

      iov[i].iov_base = (char *) iov[i].iov_base + n;
      iov[i].iov_len -= n;
      r -= (ssize_t) n;
    }
  }
  return 0;
}

static int
append (const struct recorder *r, const struct request *q, int err,
        struct error *e)
{
  struct record rec = {
    .magic = { 'n', 'b', 'R', '1' },
    .op = htole32 ((uint32_t) q->op),
    .seq_submit = htole64 (q->submitted),
    .process = htole32 ((uint32_t) getpid ()),
    .object = htole32 (r->object),
    .flags = htole32 (q->flags),
    .error = htole32 ((uint32_t) err),
    .offset = htole64 (q->offset),
    .length = htole64 (q->length),
    .payload = htole64 (q->data_size),
  };
  struct iovec iov[2] = {
    { .iov_base = &rec, .iov_len = sizeof rec },
    { .iov_base = (void *) (uintptr_t) q->data, .iov_len = q->data_size },
  };
  int ret;

  rec.seq_done = htole64 (storage_record_clock ());
  mutex_lock (&append_mutex);
  ret = append_locked (r->fd, iov, e);
  mutex_unlock (&append_mutex);
  return ret;
}

static void
begin (struct request *q)
{
  q->submitted = storage_record_clock ();
}

/* The request has ended with RESULT and E; that the log has it matters more
 * than a success.
 */
static int
end (struct storage *st, const struct request *q, int result, struct error *e)
{
  struct recorder *r = (struct recorder *) st;
  struct error log_error = ERROR_INIT;
  int err = result < 0 ? e->err : 0;

  if (append (r, q, err, &log_error) < 0 && result == 0)
    return error_set (e, log_error.err, "%s", log_error.text);
  return result;
}

/* ---- the driver ---- */

static int
record_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
              struct error *e)
{
  struct request q = { .op = RECORD_READ, .offset = offset, .length = len };

  begin (&q);
  return end (st, &q, storage_pread (wrapper_inner (st), buf, len, offset, e),
              e);
}

static int
record_pwrite (struct storage *st, const void *buf, size_t len,
               uint64_t offset, unsigned flags, struct error *e)
{
  struct request q = {
    .op = RECORD_WRITE, .flags = flags, .offset = offset, .length = len,
    .data = buf, .data_size = len,
  };
  int r;

  begin (&q);
  r = storage_pwrite (wrapper_inner (st), buf, len, offset, flags, e);
  if (r == 0)
    storage_note_end (st, offset + len);
  return end (st, &q, r, e);
}

static int
record_zero (struct storage *st, uint64_t offset, uint64_t len,
             unsigned flags, struct error *e)
{
  struct request q = {
    .op = RECORD_ZERO, .flags = flags, .offset = offset, .length = len,
  };
  int r;

  begin (&q);
  r = storage_zero (wrapper_inner (st), offset, len, flags, e);
  if (r == 0)
    storage_note_end (st, offset + len);
  return end (st, &q, r, e);
}

static int
record_trim (struct storage *st, uint64_t offset, uint64_t len,
             unsigned flags, struct error *e)
{
  struct request q = {
    .op = RECORD_TRIM, .flags = flags, .offset = offset, .length = len,
  };

  begin (&q);
  return end (st, &q, storage_trim (wrapper_inner (st), offset, len, flags,
                                    e), e);
}

static int
record_flush (struct storage *st, struct error *e)
{
  struct request q = { .op = RECORD_FLUSH };

  begin (&q);
  return end (st, &q, storage_flush (wrapper_inner (st), e), e);
}

static int
record_truncate (struct storage *st, uint64_t size, struct error *e)
{
  struct request q = { .op = RECORD_TRUNCATE, .offset = size };
  int r;

  begin (&q);
  r = storage_truncate (wrapper_inner (st), size, e);
  if (r == 0)
    storage_set_size (st, size);
  return end (st, &q, r, e);
}

static void
record_close (struct storage *st)
{
  struct recorder *r = (struct recorder *) st;
  struct request q = { .op = RECORD_CLOSE };
  struct error ignored = ERROR_INIT;

  begin (&q);
  append (r, &q, 0, &ignored);
  close (r->fd);
  wrapper_free (st);
}

static const struct storage_ops record_ops = {
  .driver = "record",
  .close = record_close,
  .pread = record_pread,
  .pwrite = record_pwrite,
  .zero = record_zero,
  .trim = record_trim,
  .flush = record_flush,
  .truncate = record_truncate,
  WRAPPER_OPS,
};

/* ---- open ---- */

static int
append_open (struct recorder *r, struct error *e)
{
  const struct storage *st = &r->wrapper.base;
  size_t name_size = strlen (st->name);
  struct request q = { .op = RECORD_OPEN };
  struct record_open *payload;
  int ret;

  q.data_size = sizeof *payload + name_size;
  payload = calloc (1, q.data_size);
  if (!payload)
    return error_nomem (e, "a record", q.data_size);
  payload->size = htole64 (storage_size (st));
  payload->device = htole64 (st->identity.valid ? st->identity.device : 0);
  payload->inode = htole64 (st->identity.valid ? st->identity.inode : 0);
  payload->writable = htole32 (st->caps.writable);
  memcpy (payload + 1, st->name, name_size);
  q.data = payload;
  begin (&q);
  ret = append (r, &q, 0, e);
  free (payload);
  return ret;
}

static int
open_log (struct recorder *r, const char *log, struct error *e)
{
  static uint32_t objects;

  r->object = __atomic_add_fetch (&objects, 1, __ATOMIC_RELAXED);
  r->fd = open (log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (r->fd < 0)
    return error_errno (e, errno, "log of the test storage: %s", log);
  if (append_open (r, e) == 0)
    return 0;
  close (r->fd);
  return -1;
}

struct storage *
storage_record_new (struct storage *inner, const char *log, struct error *e)
{
  struct recorder *r = wrapper_new (&record_ops, sizeof *r, inner, e);

  if (!r)
    return NULL;
  if (open_log (r, log, e) < 0) {
    free (r->wrapper.base.name);
    free (r);
    return NULL;
  }
  return &r->wrapper.base;
}

int
storage_record_mark (struct storage *st, const char *text, struct error *e)
{
  struct request q = {
    .op = RECORD_MARK, .data = text, .data_size = strlen (text),
  };

  if (st->ops != &record_ops)
    return error_set (e, ENOTSUP, "%s: is not recorded", st->name);
  begin (&q);
  return append ((struct recorder *) st, &q, 0, e);
}
