/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Server: images being served, by export name; the contract of this folder.
 *
 * A server holds exports; each export is one open image.  A connection is one
 * client's use of an export.  This folder knows nothing of nbdkit: a plugin
 * hands over export names and requests, and turns errors into replies.
 *
 * From start to end:
 *   server_new, server_add        one thread, before the program forks
 *   server_connect, requests,
 *   server_disconnect             any thread, any number at a time
 *   server_shutdown               once, any thread.  Waits for the requests
 *                                 that are inside; later ones get ESHUTDOWN,
 *                                 so that no write is acknowledged after the
 *                                 image was marked clean
 *   server_free                   when nobody can call any more
 *
 * An image is opened with read locks only.  The first connection that may
 * write takes the write locks and makes the marks that a crash needs (dirty,
 * in use); they stay until server_shutdown.
 *
 * Lock order: server -> image (its gate first).
 */

#ifndef NBDIMG_SERVER_H
#define NBDIMG_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "image/image.h"

struct server;
struct connection;

/* Returns owned, or NULL. */
extern struct server *server_new (struct error *e);

/* Open the image that TREE (borrowed; see image/image.h, names) describes and
 * serve it as export NAME.  "" is the default export; a server whose only
 * export is "" gives it to every client, whatever name the client asks for.
 */
extern int server_add (struct server *s, const char *name, json_t *tree,
                       const struct image_open_options *, struct error *e);

/* Call EACH for every export; it returns -1 to stop, which is handed on. */
extern int server_list (struct server *s,
                        int (*each) (void *opaque, const char *name,
                                     const char *description),
                        void *opaque);

/* A client comes.  READONLY: it will not write, and what a first writer needs
 * is not done.  ENOENT: no such export.  Returns owned; server_disconnect.
 */
extern struct connection *server_connect (struct server *s, const char *name,
                                          bool readonly, struct error *e);
extern void server_disconnect (struct connection *c);

/* Fixed for a connection's life: a live resize shows to later ones. */
extern uint64_t connection_size (const struct connection *c);
extern bool connection_writable (const struct connection *c);
extern const char *connection_description (const struct connection *c);

/* Requests.  FLAGS are enum image_flags; the range lies inside the size. */
extern int connection_read (struct connection *c, void *buf, size_t len,
                            uint64_t offset, struct error *e);
extern int connection_write (struct connection *c, const void *buf,
                             size_t len, uint64_t offset, unsigned flags,
                             struct error *e);
extern int connection_zero (struct connection *c, uint64_t offset,
                            uint64_t len, unsigned flags, struct error *e);
extern int connection_trim (struct connection *c, uint64_t offset,
                            uint64_t len, unsigned flags, struct error *e);
extern int connection_flush (struct connection *c, struct error *e);

/* Block status: call ADD for consecutive extents from OFFSET on, neighbours
 * that are alike merged, none past OFFSET + LEN, at least one.  LEN is cut to
 * CONNECTION_EXTENTS_MAX, and the answer may end earlier.  ONE: the first
 * extent is enough.  ADD returns -1 to stop; an error it has not filled is
 * EIO.
 */
#define CONNECTION_EXTENTS_MAX (UINT64_C (1) << 31)
typedef int (*connection_add_extent) (void *opaque, uint64_t offset,
                                      uint64_t length, bool data, bool zero,
                                      struct error *e);
extern int connection_extents (struct connection *c, uint64_t offset,
                               uint64_t len, bool one,
                               connection_add_extent add, void *opaque,
                               struct error *e);

/* Clean shutdown of every image: all that was acknowledged is made durable and
 * the marks of begin_write are taken back.  The first error is told, all
 * images are closed all the same.  Nothing to do the second time.
 */
extern int server_shutdown (struct server *s, struct error *e);

/* After server_shutdown, or before the first connection; NULL is allowed. */
extern void server_free (struct server *s);

#endif /* NBDIMG_SERVER_H */
