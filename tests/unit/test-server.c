/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Images being served: names, rights, block status, shutdown under load. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "image/image.h"
#include "server/server.h"
#include "unit.h"

/* A raw file of SIZE bytes, a hole. */
static char *
make_file (const char *dir, const char *name, uint64_t size)
{
  char *path = format_text ("%s/%s", dir, name);
  CLEANUP_CLOSE int fd = open (path, O_RDWR | O_CREAT | O_TRUNC, 0600);

  CHECK (fd >= 0 && ftruncate (fd, (off_t) size) == 0);
  return path;
}

static void
put (const char *path, uint64_t offset, size_t len, int byte)
{
  CLEANUP_CLOSE int fd = open (path, O_RDWR);
  CLEANUP_FREE uint8_t *buf = unit_alloc (len);

  memset (buf, byte, len);
  CHECK (pwrite (fd, buf, len, (off_t) offset) == (ssize_t) len);
}

static void
add (struct server *s, const char *name, const char *path, struct error *e)
{
  const struct image_open_options o = {
    .writable_if_permitted = true, .discard = true,
  };
  json_t *tree = image_name_parse (path, "raw", e);

  CHECK_OK (tree ? server_add (s, name, tree, &o, e) : -1, e);
  json_decref (tree);
}

/* ---- block status ---- */

struct answer {
  struct { uint64_t offset, length; bool data, zero; } extents[64];
  size_t nr, stop_after;
};

static int
note (void *opaque, uint64_t offset, uint64_t length, bool data, bool zero,
      struct error *e)
{
  struct answer *a = opaque;

  (void) e;
  if (a->nr == a->stop_after)
    return -1;
  a->extents[a->nr].offset = offset;
  a->extents[a->nr].length = length;
  a->extents[a->nr].data = data;
  a->extents[a->nr].zero = zero;
  a->nr++;
  return 0;
}

static void
is_extent (const struct answer *a, size_t i, uint64_t offset, uint64_t length,
           bool data)
{
  CHECK (i < a->nr);
  CHECK (a->extents[i].offset == offset);
  CHECK (a->extents[i].length == length);
  CHECK (a->extents[i].data == data && a->extents[i].zero == !data);
}

static void
test_extents (const char *dir)
{
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *path = make_file (dir, "extents", 5000 * MiB);
  struct server *s = server_new (&e);
  struct answer a = { .stop_after = 64 };
  struct connection *c;

  put (path, 1 * MiB, 1 * MiB, 1);
  put (path, 2 * MiB, 1 * MiB, 2);      /* alike: one extent */
  add (s, "", path, &e);
  c = server_connect (s, "", true, &e);

  unit_begin ("block status: neighbours that are alike are one extent");
  CHECK_OK (connection_extents (c, 0, 8 * MiB, false, note, &a, &e), &e);
  CHECK (a.nr == 3);
  is_extent (&a, 0, 0, MiB, false);
  is_extent (&a, 1, MiB, 2 * MiB, true);
  is_extent (&a, 2, 3 * MiB, 5 * MiB, false);

  unit_begin ("block status: nothing past the end of the request");
  a.nr = 0;
  CHECK_OK (connection_extents (c, MiB + 5, 1000, false, note, &a, &e), &e);
  CHECK (a.nr == 1);
  is_extent (&a, 0, MiB + 5, 1000, true);

  unit_begin ("block status: a single extent where one is enough");
  a.nr = 0;
  CHECK_OK (connection_extents (c, MiB, 100 * MiB, true, note, &a, &e), &e);
  CHECK (a.nr == 1);
  is_extent (&a, 0, MiB, 2 * MiB, true);

  unit_begin ("block status: no more than 2 GiB at a time");
  a.nr = 0;
  CHECK_OK (connection_extents (c, 4 * MiB, 0xffffffff, false, note, &a, &e),
            &e);
  CHECK (a.nr == 1);
  is_extent (&a, 0, 4 * MiB, CONNECTION_EXTENTS_MAX, false);

  unit_begin ("block status: an extent that is not taken is an error");
  a.nr = 0;
  a.stop_after = 1;
  CHECK_FAILS (connection_extents (c, 0, 8 * MiB, false, note, &a, &e), &e,
               EIO);

  server_disconnect (c);
  CHECK_OK (server_shutdown (s, &e), &e);
  server_free (s);
}

/* ---- names ---- */

static int
count (void *opaque, const char *name, const char *description)
{
  size_t *nr = opaque;

  CHECK (name != NULL && strstr (description, "raw image") != NULL);
  CHECK (strchr (description, '/') == NULL);
  ++*nr;
  return 0;
}

static int
stop (void *opaque, const char *name, const char *description)
{
  (void) name;
  (void) description;
  ++*(size_t *) opaque;
  return -1;
}

static int
connects (struct server *s, const char *name, struct error *e)
{
  struct connection *c = server_connect (s, name, true, e);

  if (!c)
    return -1;
  server_disconnect (c);
  return 0;
}

static void
test_names (const char *dir)
{
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *a = make_file (dir, "a", MiB);
  CLEANUP_FREE char *b = make_file (dir, "b", MiB);
  struct server *s = server_new (&e);
  const struct image_open_options o = { .discard = true };
  json_t *tree = image_name_parse (b, "raw", &e);
  size_t nr = 0;

  unit_begin ("a lone image answers to every name");
  add (s, "", a, &e);
  CHECK_OK (connects (s, "", &e), &e);
  CHECK_OK (connects (s, "other", &e), &e);

  unit_begin ("with several images each has its name");
  add (s, "b", b, &e);
  CHECK_OK (connects (s, "", &e), &e);
  CHECK_OK (connects (s, "b", &e), &e);
  CHECK_FAILS (connects (s, "other", &e), &e, ENOENT);
  CHECK_OK (server_list (s, count, &nr), &e);
  CHECK (nr == 2);
  nr = 0;
  CHECK (server_list (s, stop, &nr) == -1 && nr == 1);

  unit_begin ("a name is given once");
  CHECK_FAILS (server_add (s, "b", tree, &o, &e), &e, EEXIST);

  json_decref (tree);
  CHECK_OK (server_shutdown (s, &e), &e);
  server_free (s);
}

/* ---- rights ---- */

static void
test_rights (const char *dir)
{
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *path = make_file (dir, "rights", MiB);
  struct server *s = server_new (&e);
  const struct image_open_options reading = { .discard = true };
  struct connection *reader, *writer;
  struct image *other;
  char byte = 'x';

  unit_begin ("before a writer comes other readers are let in");
  add (s, "", path, &e);
  reader = server_connect (s, "", true, &e);
  CHECK (reader && !connection_writable (reader));
  CHECK_FAILS (connection_write (reader, &byte, 1, 0, 0, &e), &e, EROFS);
  CHECK_OK (connection_flush (reader, &e), &e);
  other = image_open_name (path, "raw", &reading, &e);
  CHECK_OK (other ? image_close (other, &e) : -1, &e);

  unit_begin ("the first writer takes the writer's locks");
  writer = server_connect (s, "", false, &e);
  CHECK (writer && connection_writable (writer));
  CHECK_OK (connection_write (writer, &byte, 1, 0, 0, &e), &e);
  other = image_open_name (path, "raw", &reading, &e);
  CHECK_FAILS (other ? 0 : -1, &e, EAGAIN);

  unit_begin ("the locks go with the shutdown, not with the writer");
  server_disconnect (writer);
  other = image_open_name (path, "raw", &reading, &e);
  CHECK_FAILS (other ? 0 : -1, &e, EAGAIN);
  CHECK_OK (server_shutdown (s, &e), &e);
  other = image_open_name (path, "raw", &reading, &e);
  CHECK_OK (other ? image_close (other, &e) : -1, &e);

  unit_begin ("a client that outlives the shutdown is told so");
  CHECK_FAILS (connection_read (reader, &byte, 1, 0, &e), &e, ESHUTDOWN);
  CHECK_FAILS (connection_flush (reader, &e), &e, ESHUTDOWN);
  CHECK (connection_size (reader) == MiB);
  CHECK (connection_description (reader) != NULL);
  CHECK_FAILS (connects (s, "", &e), &e, ESHUTDOWN);
  CHECK_OK (server_shutdown (s, &e), &e);
  server_disconnect (reader);
  server_free (s);
}

/* ---- shutdown under load ---- */

enum { WRITERS = 4, WRITER_BYTES = 1 << 20 };

struct writer {
  pthread_t thread;
  struct connection *c;
  uint64_t start;
  uint32_t acknowledged;        /* atomic */
  int last_error;
};

/* Writes 1, 2, 3, ... to consecutive places until it is refused. */
static void *
write_on (void *opaque)
{
  struct writer *w = opaque;
  struct error e = ERROR_INIT;

  for (uint32_t i = 1; ; ++i) {
    uint64_t at = w->start + (i * sizeof i) % WRITER_BYTES;

    if (connection_write (w->c, &i, sizeof i, at, 0, &e) == -1)
      break;
    __atomic_store_n (&w->acknowledged, i, __ATOMIC_RELEASE);
  }
  w->last_error = e.err;
  return NULL;
}

static void
check_last (const char *path, const struct writer *w)
{
  CLEANUP_CLOSE int fd = open (path, O_RDONLY);
  uint32_t want = w->acknowledged, got = 0;
  uint64_t at = w->start + (want * sizeof want) % WRITER_BYTES;

  CHECK (pread (fd, &got, sizeof got, (off_t) at) == sizeof got);
  CHECK (got == want);
}

static void
test_shutdown (const char *dir)
{
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *path = make_file (dir, "load", WRITERS * MiB);
  struct server *s = server_new (&e);
  struct writer w[WRITERS] = { { .start = 0 } };

  unit_begin ("shutdown gets in under load, and no write is acknowledged "
              "after it");
  add (s, "", path, &e);
  for (unsigned i = 0; i < WRITERS; ++i) {
    w[i].start = i * MiB;
    w[i].c = server_connect (s, "", false, &e);
    CHECK (w[i].c != NULL);
    pthread_create (&w[i].thread, NULL, write_on, &w[i]);
  }
  for (unsigned i = 0; i < WRITERS; ++i)
    while (__atomic_load_n (&w[i].acknowledged, __ATOMIC_ACQUIRE) < 100)
      sched_yield ();
  CHECK_OK (server_shutdown (s, &e), &e);
  for (unsigned i = 0; i < WRITERS; ++i) {
    pthread_join (w[i].thread, NULL);
    CHECK (w[i].last_error == ESHUTDOWN);
    check_last (path, &w[i]);
    server_disconnect (w[i].c);
  }
  server_free (s);
}

int
main (void)
{
  const char *tmp = getenv ("TMPDIR");
  char *dir = format_text ("%s/nbdimg-server.XXXXXX", tmp ? tmp : "/tmp");
  static const char *const files[] = { "extents", "a", "b", "rights",
                                       "load" };

  if (!dir || !mkdtemp (dir)) {
    printf ("not ok no folder\n");
    return EXIT_FAILURE;
  }
  test_extents (dir);
  test_names (dir);
  test_rights (dir);
  test_shutdown (dir);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; ++i) {
    char *path = format_text ("%s/%s", dir, files[i]);

    unlink (path);
    free (path);
  }
  rmdir (dir);
  free (dir);
  return unit_end ();
}
