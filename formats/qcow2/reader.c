/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Streams of metadata: see reader.h.  Layer: formats.  No locking: a reader
 * belongs to one thread.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/qcow2/reader.h"

int
reader_init (struct reader *r, struct storage *st, size_t size,
             struct error *e)
{
  r->st = st;
  r->size = size;
  r->host = 0;
  r->len = 0;
  r->buf = malloc (size);
  return r->buf ? 0 : error_nomem (e, "metadata", size);
}

void
reader_free (struct reader *r)
{
  free (r->buf);
  r->buf = NULL;
}

const uint8_t *
reader_get (struct reader *r, uint64_t host, size_t len, struct error *e)
{
  if (host >= r->host && host - r->host <= r->len
      && len <= r->len - (host - r->host))
    return r->buf + (host - r->host);
  r->len = 0;
  if (host > INT64_MAX - r->size) {
    error_set (e, EINVAL, "metadata at 0x%" PRIx64 " cannot exist", host);
    return NULL;
  }
  if (storage_pread (r->st, r->buf, r->size, host, e) == -1)
    return NULL;
  r->host = host;
  r->len = r->size;
  return r->buf;
}
