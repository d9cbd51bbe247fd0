/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A storage whose requests fail as a test asks.  SPEC is a list of
 *
 *   op=any|read|write|zero|trim|flush|truncate  which requests; default any
 *   index=N         fail the Nth of them, from 1; 0 (the default) = none
 *   count=M         and those that follow, M in all; 0 = all; default 1
 *   once=1          the same as count=1
 *   rate=P          fail P of 1000, chosen by seed=S (default 0)
 *   errno=EIO       the error: EIO, ENOSPC, ENOMEM, EDQUOT, EROFS, EINVAL,
 *                   ENOTSUP, ETIMEDOUT, ENXIO, or a number; default EIO
 *   short=1         the first half of the sectors is done before it fails
 *   kill=1          the process is killed there (SIGKILL), nothing fails
 *   delay=N         each request takes N microseconds more: a short run lasts
 *                   long enough to be killed at a moment of its own
 *   file=TEXT       only objects whose name contains TEXT; default all
 *   scope=process   count the requests of all objects of the process together
 *   countfile=PATH  at close, write how many requests there were: a test can
 *                   raise index until that number is reached
 *
 * separated by commas.  Layer: storage.  Locking: none, the count is atomic.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "storage/wrapper.h"

enum fault_op {
  OP_READ = 1, OP_WRITE = 2, OP_ZERO = 4, OP_TRIM = 8, OP_FLUSH = 16,
  OP_TRUNCATE = 32, OP_ANY = 63,
};

static const struct {
  const char *name;
  unsigned op;
} op_names[] = {
  { "any", OP_ANY }, { "read", OP_READ }, { "write", OP_WRITE },
  { "zero", OP_ZERO }, { "trim", OP_TRIM }, { "flush", OP_FLUSH },
  { "truncate", OP_TRUNCATE },
};

static const struct {
  const char *name;
  int err;
} errno_names[] = {
  { "EIO", EIO }, { "ENOSPC", ENOSPC }, { "ENOMEM", ENOMEM },
  { "EDQUOT", EDQUOT }, { "EROFS", EROFS }, { "EINVAL", EINVAL },
  { "ENOTSUP", ENOTSUP }, { "ETIMEDOUT", ETIMEDOUT }, { "ENXIO", ENXIO },
};

struct fault {
  struct wrapper wrapper;

  /* Fixed after open. */
  unsigned ops;
  uint64_t index, count, rate, seed, delay;
  int err;
  bool half;                  /* short=1 */
  bool killing;               /* kill=1 */
  bool process_wide;
  char *file, *countfile;     /* NULL = none; owned */

  uint64_t own_requests;      /* atomic */
};

static uint64_t process_requests;       /* atomic */

/* ---- which requests ---- */

static uint64_t *
counter (struct fault *f)
{
  return f->process_wide ? &process_requests : &f->own_requests;
}

/* A good mixture of N and SEED (the finaliser of MurmurHash3). */
static uint64_t
mix (uint64_t n, uint64_t seed)
{
  uint64_t x = n + seed * UINT64_C (0x9e3779b97f4a7c15);

  x = (x ^ (x >> 33)) * UINT64_C (0xff51afd7ed558ccd);
  x = (x ^ (x >> 33)) * UINT64_C (0xc4ceb9fe1a85ec53);
  return x ^ (x >> 33);
}

static bool
must_fail (struct fault *f, unsigned op)
{
  uint64_t n;

  if (!(f->ops & op) || (f->file && !strstr (f->wrapper.base.name, f->file)))
    return false;
  if (f->delay)
    usleep ((useconds_t) f->delay);
  n = __atomic_add_fetch (counter (f), 1, __ATOMIC_RELAXED);
  if (f->rate && mix (n, f->seed) % 1000 < f->rate)
    return true;
  return f->index && n >= f->index
    && (f->count == 0 || n - f->index < f->count);
}

static int
fail (struct fault *f, const char *what, uint64_t offset, struct error *e)
{
  if (f->killing) {
    kill (getpid (), SIGKILL);
    for (;;)
      pause ();
  }
  error_clear (e);
  return error_errno (e, f->err, "%s: %s at %" PRIu64 " (fault of a test)",
                      f->wrapper.base.name, what, offset);
}

/* The bytes that are done with short=1.  They end with a sector: neither a disk
 * nor a killed process's write to the page cache leaves half of one.
 */
static uint64_t
first_half (uint64_t offset, uint64_t len)
{
  uint64_t end = round_down (offset + len / 2, 512);

  return end > offset ? end - offset : 0;
}

/* ---- the driver ---- */

static int
fault_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
             struct error *e)
{
  struct fault *f = (struct fault *) st;

  if (!must_fail (f, OP_READ))
    return storage_pread (f->wrapper.inner, buf, len, offset, e);
  if (f->half)
    storage_pread (f->wrapper.inner, buf, (size_t) first_half (offset, len),
                   offset, e);
  return fail (f, "read", offset, e);
}

static int
fault_pwrite (struct storage *st, const void *buf, size_t len,
              uint64_t offset, unsigned flags, struct error *e)
{
  struct fault *f = (struct fault *) st;
  bool failing = must_fail (f, OP_WRITE);
  int r = 0;

  if (!failing || f->half)
    r = storage_pwrite (f->wrapper.inner, buf,
                        failing ? (size_t) first_half (offset, len) : len,
                        offset, flags, e);
  wrapper_note_growth (st);
  return failing ? fail (f, "write", offset, e) : r;
}

static int
fault_zero (struct storage *st, uint64_t offset, uint64_t len,
            unsigned flags, struct error *e)
{
  struct fault *f = (struct fault *) st;
  bool failing = must_fail (f, OP_ZERO);
  int r = 0;

  if (!failing || f->half)
    r = storage_zero (f->wrapper.inner, offset,
                      failing ? first_half (offset, len) : len, flags, e);
  wrapper_note_growth (st);
  return failing ? fail (f, "zero", offset, e) : r;
}

static int
fault_trim (struct storage *st, uint64_t offset, uint64_t len,
            unsigned flags, struct error *e)
{
  struct fault *f = (struct fault *) st;

  if (!must_fail (f, OP_TRIM))
    return storage_trim (f->wrapper.inner, offset, len, flags, e);
  if (f->half)
    storage_trim (f->wrapper.inner, offset, first_half (offset, len),
                  flags, e);
  return fail (f, "trim", offset, e);
}

static int
fault_flush (struct storage *st, struct error *e)
{
  struct fault *f = (struct fault *) st;

  if (must_fail (f, OP_FLUSH))
    return fail (f, "flush", 0, e);
  return storage_flush (f->wrapper.inner, e);
}

static int
fault_truncate (struct storage *st, uint64_t size, struct error *e)
{
  struct fault *f = (struct fault *) st;
  int r;

  if (must_fail (f, OP_TRUNCATE))
    return fail (f, "truncate", size, e);
  r = storage_truncate (f->wrapper.inner, size, e);
  wrapper_copy_size (st);
  return r;
}

static void
write_count (struct fault *f)
{
  FILE *fp = f->countfile ? fopen (f->countfile, "we") : NULL;

  if (fp) {
    fprintf (fp, "%" PRIu64 "\n",
             __atomic_load_n (counter (f), __ATOMIC_RELAXED));
    fclose (fp);
  }
}

static void
fault_close (struct storage *st)
{
  struct fault *f = (struct fault *) st;

  write_count (f);
  free (f->file);
  free (f->countfile);
  wrapper_free (st);
}

static const struct storage_ops fault_ops = {
  .driver = "fault",
  .close = fault_close,
  .pread = fault_pread,
  .pwrite = fault_pwrite,
  .zero = fault_zero,
  .trim = fault_trim,
  .flush = fault_flush,
  .truncate = fault_truncate,
  WRAPPER_OPS,
};

/* ---- SPEC ---- */

static int
parse_op (const char *text, unsigned *op, struct error *e)
{
  for (size_t i = 0; i < sizeof op_names / sizeof op_names[0]; ++i)
    if (strcmp (text, op_names[i].name) == 0) {
      *op = op_names[i].op;
      return 0;
    }
  return error_set (e, EINVAL, "test storage: unknown op '%s'", text);
}

static int
parse_errno (const char *text, int *err, struct error *e)
{
  uint64_t n;

  for (size_t i = 0; i < sizeof errno_names / sizeof errno_names[0]; ++i)
    if (strcmp (text, errno_names[i].name) == 0) {
      *err = errno_names[i].err;
      return 0;
    }
  if (parse_number ("errno", text, 1, 4095, &n, e) < 0)
    return -1;
  *err = (int) n;
  return 0;
}

static int
parse_text (const char *text, char **out, struct error *e)
{
  free (*out);
  *out = strdup (text);
  return *out ? 0 : error_nomem (e, "a test storage", strlen (text));
}

static int
parse_scope (const char *text, bool *process_wide, struct error *e)
{
  *process_wide = strcmp (text, "process") == 0;
  if (*process_wide || strcmp (text, "object") == 0)
    return 0;
  return error_set (e, EINVAL, "test storage: unknown scope '%s'", text);
}

static int
parse_count (const char *key, const char *text, uint64_t *n, struct error *e)
{
  return parse_number (key, text, 0, INT64_MAX, n, e);
}

static int
parse_flag (const char *key, const char *text, bool *on, struct error *e)
{
  uint64_t n;

  if (parse_number (key, text, 0, 1, &n, e) < 0)
    return -1;
  *on = n == 1;
  return 0;
}

static int
parse_once (const char *key, const char *text, uint64_t *count,
            struct error *e)
{
  bool once;

  if (parse_flag (key, text, &once, e) < 0)
    return -1;
  *count = once ? 1 : 0;
  return 0;
}

static int
parse_key (struct fault *f, const char *key, const char *value,
           struct error *e)
{
  if (strcmp (key, "op") == 0)
    return parse_op (value, &f->ops, e);
  if (strcmp (key, "errno") == 0)
    return parse_errno (value, &f->err, e);
  if (strcmp (key, "index") == 0)
    return parse_count (key, value, &f->index, e);
  if (strcmp (key, "count") == 0)
    return parse_count (key, value, &f->count, e);
  if (strcmp (key, "rate") == 0)
    return parse_number (key, value, 0, 1000, &f->rate, e);
  if (strcmp (key, "seed") == 0)
    return parse_count (key, value, &f->seed, e);
  if (strcmp (key, "short") == 0)
    return parse_flag (key, value, &f->half, e);
  if (strcmp (key, "kill") == 0)
    return parse_flag (key, value, &f->killing, e);
  if (strcmp (key, "delay") == 0)
    return parse_number (key, value, 0, 1000000, &f->delay, e);
  if (strcmp (key, "file") == 0)
    return parse_text (value, &f->file, e);
  if (strcmp (key, "countfile") == 0)
    return parse_text (value, &f->countfile, e);
  if (strcmp (key, "scope") == 0)
    return parse_scope (value, &f->process_wide, e);
  if (strcmp (key, "once") == 0)
    return parse_once (key, value, &f->count, e);
  return error_set (e, EINVAL, "test storage: unknown key '%s'", key);
}

static int
parse_spec (struct fault *f, const char *spec, struct error *e)
{
  CLEANUP_FREE char *copy = strdup (spec);
  char *save = NULL, *value;

  if (!copy)
    return error_nomem (e, "a test storage", strlen (spec));
  for (char *key = strtok_r (copy, ",", &save); key;
       key = strtok_r (NULL, ",", &save)) {
    value = strchr (key, '=');
    if (!value)
      return error_set (e, EINVAL, "test storage: '%s' has no value", key);
    *value++ = '\0';
    if (parse_key (f, key, value, e) < 0)
      return -1;
  }
  return 0;
}

struct storage *
storage_fault_new (struct storage *inner, const char *spec, struct error *e)
{
  struct fault *f = wrapper_new (&fault_ops, sizeof *f, inner, e);

  if (!f)
    return NULL;
  f->ops = OP_ANY;
  f->count = 1;
  f->err = EIO;
  if (parse_spec (f, spec, e) == 0)
    return &f->wrapper.base;
  free (f->file);
  free (f->countfile);
  free (f->wrapper.base.name);
  free (f);
  return NULL;
}
