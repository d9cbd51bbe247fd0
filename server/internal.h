/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the files of this folder share.  Not for others: see server.h. */

#ifndef NBDIMG_SERVER_INTERNAL_H
#define NBDIMG_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/lock.h"
#include "image/image.h"

struct export {
  /* fixed after server_add */
  char *name;                   /* owned */
  char *description;            /* owned */
  /* guarded by server.state */
  struct image *image;          /* owned; NULL after shutdown */
  /* guarded by server.mutex */
  struct export *next;
};

struct server {
  pthread_rwlock_t state;       /* shared: a request; exclusive: shutdown */
  /* guarded by state */
  bool down;

  struct mutex mutex;
  /* guarded by mutex */
  struct export *exports;       /* in the order in which they were added */
  unsigned nr_connections;
};

struct connection {
  /* fixed after server_connect */
  struct server *server;        /* borrowed */
  struct export *export;        /* borrowed */
  uint64_t size;                /* bytes */
  bool writable;
  unsigned extents_flags;       /* enum image_extents_flags */
};

#endif /* NBDIMG_SERVER_INTERNAL_H */
