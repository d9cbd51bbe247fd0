/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The parts of the NBD storage, private to storage/nbd*.c:
 *
 *   nbd.c          the driver: what a request means, flags, whole blocks
 *   nbd_pool.c     connections, and many requests in flight on each
 *   nbd_connect.c  one libnbd handle: options, TLS, what the server claims
 *   nbd_uri.c      names of servers
 *   nbd_command.c  a server that runs for us
 *   nbd_keeper.c   the process that is its parent
 *
 * Names begin with "nbdx": "nbd_" is libnbd's.
 */

#ifndef NBDIMG_STORAGE_NBD_H
#define NBDIMG_STORAGE_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

#include "common/error.h"
#include "storage/storage.h"

/* ---- nbd_uri.c ---- */

/* Where a server is and how to speak to it.  Strings are owned. */
struct nbdx_target {
  char *name;                   /* the storage's name: URI or "[ cmd ]" */
  char label[256];              /* the same for messages: printable, cut */
  char *socket;                 /* Unix socket, NULL = TCP */
  char *host, *port;            /* TCP */
  char *export;                 /* "" = the default export */
  bool tls;                     /* then TLS is required, never optional */
  bool tls_verify;
  char *tls_certificates, *tls_psk_file, *tls_username, *tls_hostname;
};

/* Parse URI into T (zeroed by the caller), with TLS over what it says. */
extern int nbdx_target_parse (const char *uri, const struct nbd_tls *tls,
                              struct nbdx_target *t, struct error *e);

/* Set name and label.  Takes NAME; NULL (no memory) is an error. */
extern int nbdx_target_name (struct nbdx_target *t, char *name,
                             struct error *e);
extern void nbdx_target_free (struct nbdx_target *t);

/* Who waits for a server looks as often, in ms, whether the program is to end
 * (common/interrupt.h).
 */
enum { NBDX_TICK = 500 };

/* ---- nbd_connect.c ---- */

/* What the server said of the export, after checks. */
struct nbdx_export {
  uint64_t size;                /* <= INT64_MAX, a multiple of block */
  uint32_t block;               /* minimum block size: 1 to 64 KiB, 2^n */
  uint32_t max;                 /* largest read or write, in blocks */
  bool read_only, flush, fua, trim, zero, fast_zero, multi_conn, extents;
};

/* A handle on its way to T: drive it with nbd_poll until it is ready. */
extern struct nbd_handle *nbdx_connect_start (const struct nbdx_target *t,
                                              struct error *e);

/* The same, and wait for the end of the handshake. */
extern struct nbd_handle *nbdx_connect (const struct nbdx_target *t,
                                        struct error *e);

/* H is ready: look at what the server claims. */
extern int nbdx_connect_finish (const struct nbdx_target *t,
                                struct nbd_handle *h, struct nbdx_export *x,
                                struct error *e);

/* The text of libnbd's last error in this thread, without the name of the
 * function, never NULL.
 */
extern const char *nbdx_why (void);

/* ---- nbd_command.c ---- */

struct nbdx_command;

/* Start ARGV with a listening socket as descriptor 3.  T->socket is set to a
 * path that reaches it for as long as the command is not closed.
 */
extern struct nbdx_command *nbdx_command_start (char *const *argv,
                                                struct nbdx_target *t,
                                                struct error *e);

/* If the process is dead or dies within TIMEOUT ms, write how (", the command
 * exited with status 1") to TEXT, else an empty string.
 */
extern void nbdx_command_fate (struct nbdx_command *c, int timeout,
                               char *text, size_t size);

/* End the process, wait for it, free C.  NULL is allowed. */
extern void nbdx_command_close (struct nbdx_command *c);

/* ---- nbd_keeper.c ---- */

/* Be the parent of COMMAND until it ends, and then end like it.  LIFE is the
 * reading end of a pipe; when nobody has its other end open, or on SIGTERM,
 * the command gets SIGTERM.
 */
extern void nbdx_keep (pid_t command, int life) __attribute__ ((noreturn));

/* ---- nbd_pool.c ---- */

struct nbdx_pool;

enum nbdx_kind {
  NBDX_READ, NBDX_WRITE, NBDX_ZERO, NBDX_TRIM, NBDX_FLUSH, NBDX_EXTENTS
};

/* One request.  The pool cuts it into PIECEs and has several in flight. */
struct nbdx_job {
  enum nbdx_kind kind;
  union {
    void *in;                   /* READ */
    const void *out;            /* WRITE */
  } buf;
  bool same;                    /* WRITE: each piece is the same bytes */
  uint64_t offset, length;
  uint32_t piece;               /* > 0 */
  uint32_t flags;               /* LIBNBD_CMD_FLAG_* */
  nbd_extent_callback extents;  /* EXTENTS: one piece */
};

/* Open the first connection.  Borrows T and C (may be NULL): they outlive
 * the pool.  LIMIT is the largest number of connections, 0 = choose.
 */
extern struct nbdx_pool *nbdx_pool_open (const struct nbdx_target *t,
                                         struct nbdx_command *c,
                                         unsigned limit,
                                         struct nbdx_export *x,
                                         struct error *e);

/* From any thread.  Errors name the server, the request and its offset. */
extern int nbdx_pool_run (struct nbdx_pool *p, const struct nbdx_job *j,
                          struct error *e);
extern void nbdx_pool_close (struct nbdx_pool *p);

#endif /* NBDIMG_STORAGE_NBD_H */
