/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg serve: what the options ask for, the nbdkit command that does it, and
 * the processes.  cmd_serve.c, serve_command.c, serve_run.c.
 */

#ifndef NBDIMG_SERVE_H
#define NBDIMG_SERVE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

struct serve {
  /* the image; strings are the user's, borrowed from argv */
  const char *image, *format, *snapshot, *backing, *metadata_cache;
  const char *cache, *discard, *detect_zeroes, *offset;
  bool image_opts, readonly, force_share, share, untrusted, temporary;
  bool show_only;               /* --print-command: secrets are asked for */

  /* the export */
  const char *export_name, *description;
  const char *clients;          /* -e, or NULL = any number */
  bool once;

  /* where it listens */
  const char *port, *bind;
  char *socket;                 /* absolute; owned */
  char *private_dir;            /* made for the socket; owned, or NULL */
  const char *tls, *tls_certificates, *tls_psk;
  bool tls_verify_peer;

  /* the process */
  const char *run, *pid_file;
  unsigned threads;             /* for each connection */
  bool fork, verbose;
};

/* A list of arguments that ends with NULL; all owned. */
struct arguments {
  char **argv;
  size_t nr;
};
extern void arguments_free (struct arguments *a);

/* The nbdkit command, to run in the foreground unless FORK; PIDFILE is where
 * nbdkit tells that it is ready, or NULL.
 */
extern int serve_command (const struct serve *s, const char *pidfile,
                          struct arguments *a, struct error *e);

/* The URI of the export.  Returns owned, NULL when memory is out. */
extern char *serve_uri (const struct serve *s);

/* Settle where it listens: make a private folder for the socket when none was
 * named, take away a socket that nobody listens on any more.
 */
extern int serve_prepare_socket (struct serve *s, const char *path,
                                 struct error *e);
extern void serve_remove_socket (const struct serve *s);

/* Run the command until it ends.  Returns the exit status of the program. */
extern int serve_run (const struct serve *s, struct error *e);

#endif /* NBDIMG_SERVE_H */
