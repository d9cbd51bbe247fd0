/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Read many tables of one size ahead of the one that is looked at.
 *
 * Tables that lie side by side are read in one request, tables that do not are
 * read by several threads at once, so that a cold disk or an NBD server gets
 * more than one request at a time.  The caller sees the tables in its order.
 */

#ifndef NBDIMG_QCOW2_STREAM_H
#define NBDIMG_QCOW2_STREAM_H

#include "storage/storage.h"

struct table_stream;

/* NR tables of SIZE bytes each (a power of 2); HOST says where table I lies; it
 * must stay valid, and answer from any thread, until the stream is freed.
 * MEMORY: bytes for the tables that were read ahead.  Returns owned.
 */
extern struct table_stream *table_stream_new (
  struct storage *st, size_t size, size_t nr,
  uint64_t (*host) (const void *opaque, size_t i), const void *opaque,
  size_t memory, struct error *e);

/* The next table, valid until the next call.  1 = *TABLE is table *I; 0 = there
 * are no more; -1 = table *I could not be read, and the stream goes on behind
 * it.  Tables that are holes of the file, all zero, are passed over.
 */
extern int table_stream_next (struct table_stream *s, size_t *i,
                              const uint8_t **table, struct error *e);

extern void table_stream_free (struct table_stream *s);

#endif /* NBDIMG_QCOW2_STREAM_H */
