/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Opening, locking and making images. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "image/image.h"
#include "image/name.h"
#include "image/policy.h"
#include "unit.h"

static const struct image_open_options reading = { .discard = true };
static const struct image_open_options writing = { .writable = true };
static const struct image_open_options permitted = {
  .writable_if_permitted = true,
};

/* ---- helpers ---- */

static void
write_file (const char *name, const void *buf, size_t len, uint64_t size)
{
  CLEANUP_CLOSE int fd = open (name, O_RDWR | O_CREAT | O_TRUNC, 0644);

  CHECK (fd >= 0 && write (fd, buf, len) == (ssize_t) len
         && ftruncate (fd, (off_t) size) == 0);
}

static void
poke (const char *name, off_t offset, const void *buf, size_t len)
{
  CLEANUP_CLOSE int fd = open (name, O_RDWR);

  CHECK (fd >= 0 && pwrite (fd, buf, len, offset) == (ssize_t) len);
}

static uint64_t
file_size (const char *name)
{
  struct stat st;

  return stat (name, &st) == 0 ? (uint64_t) st.st_size : UINT64_MAX;
}

static int
create (const char *name, const char *format, uint64_t size,
        const char *backing, const char *backing_format, const char *options,
        struct error *e)
{
  json_t *o = json_loads (options ? options : "{}", 0, NULL);
  struct format_create_options opts = {
    .size = size, .backing_file = backing, .backing_format = backing_format,
    .options = o,
  };
  int r = image_create (name, format_by_name (format), &opts, CACHE_WRITEBACK,
                        e);

  json_decref (o);
  return r;
}

static void
make_qcow2 (const char *name, const char *backing, const char *backing_format)
{
  struct error e = ERROR_INIT;

  CHECK_OK (create (name, "qcow2", MiB, backing, backing_format, NULL, &e),
            &e);
}

static struct image *
open_ok (const char *name, const char *format,
         const struct image_open_options *o)
{
  struct error e = ERROR_INIT;
  struct image *im = image_open_name (name, format, o, &e);

  if (!im)
    unit_fail (__FILE__, __LINE__, "open %s: %s", name, e.text);
  return im;
}

static void
close_ok (struct image *im)
{
  struct error e = ERROR_INIT;

  CHECK_OK (image_close (im, &e), &e);
}

/* It must not open, and say WANT. */
static void
open_fails (const char *name, const char *format,
            const struct image_open_options *o, int err, const char *want)
{
  struct error e = ERROR_INIT;
  struct image *im = image_open_name (name, format, o, &e);

  if (im)
    unit_fail (__FILE__, __LINE__, "open %s: no failure", name);
  else if (e.err != err || !strstr (e.text, want))
    unit_fail (__FILE__, __LINE__, "open %s: %d '%s' does not say %d '%s'",
               name, e.err, e.text, err, want);
  close_ok (im);
}

static void
opens (const char *name, const char *format,
       const struct image_open_options *o)
{
  close_ok (open_ok (name, format, o));
}

/* ---- which format ---- */

static void
test_raw (void)
{
  struct image *im;

  write_file ("odd", "hello", 5, 1000);
  im = open_ok ("odd", NULL, &reading);
  if (!im)
    return;
  CHECK (image_size (im) == 1024);
  CHECK (im->probed && im->format->ops == &format_raw);
  CHECK_STR (im->name, "odd");
  CHECK (!im->writable && !im->backing);
  close_ok (im);
  im = open_ok ("odd", "raw", &reading);
  CHECK (im && !im->probed);
  close_ok (im);
  write_file ("empty", "", 0, 0);
  im = open_ok ("empty", NULL, &reading);
  CHECK (im && image_size (im) == 0);
  close_ok (im);
}

static void
test_foreign (void)
{
  static const struct {
    size_t offset;
    const char *magic, *name;
    size_t len;
  } rows[] = {
    { 0, "KDMV", "vmdk", 4 },
    { 0, "COWD", "vmdk", 4 },
    { 0, "# Disk DescriptorFile\n", "vmdk", 22 },
    { 0, "conectix", "vpc", 8 },
    { 0, "vhdxfile", "vhdx", 8 },
    { 0, "WithoutFreeSpace", "parallels", 16 },
    { 0, "Bochs Virtual HD Image", "bochs", 22 },
    { 0, "#!/bin/sh\n#V2.0 Format\n", "cloop", 23 },
  };

  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    CLEANUP_FREE char *way = format_text ("[ qemu-nbd -r -f %s foreign ]",
                                          rows[i].name);

    write_file ("foreign", "", 0, 4096);
    poke ("foreign", (off_t) rows[i].offset, rows[i].magic, rows[i].len);
    open_fails ("foreign", NULL, &reading, ENOTSUP, way);
    opens ("foreign", "raw", &reading);
  }
  write_file ("foreign", "QFI\xfb\0\0\0\3", 8, 40);
  opens ("foreign", NULL, &reading);
}

static void
test_not_images (void)
{
  CHECK (mkdir ("folder", 0755) == 0 && mkfifo ("fifo", 0644) == 0);
  open_fails ("folder", NULL, &reading, EISDIR, "folder");
  open_fails ("fifo", NULL, &reading, ENOTSUP, "fifo");
  open_fails ("missing", NULL, &reading, ENOENT, "missing");
  open_fails ("odd", "qcow2", &reading, EINVAL, "odd");
}

static void
test_windows (void)
{
  static const char window[] = "json:{\"driver\": \"raw\", \"offset\": 512, "
    "\"size\": 1024, \"file.filename\": \"disk\"}";
  struct error e = ERROR_INIT;
  char buf[4] = "";
  struct image *im;

  write_file ("disk", "", 0, 4096);
  poke ("disk", 512, "abcd", 4);
  im = open_ok (window, NULL, &reading);
  if (im) {
    CHECK (image_size (im) == 1024);
    CHECK_OK (image_read (im, buf, 4, 0, &e), &e);
    CHECK (memcmp (buf, "abcd", 4) == 0);
    close_ok (im);
  }
  open_fails ("json:{\"driver\": \"raw\", \"offset\": 8192, "
              "\"file.filename\": \"disk\"}", NULL, &reading, EINVAL,
              "Offset (8192)");
  open_fails ("json:{\"driver\": \"raw\", \"size\": 8192, "
              "\"file.filename\": \"disk\"}", NULL, &reading, EINVAL,
              "The sum of offset (0) and size (8192)");
  open_fails ("json:{\"driver\": \"raw\", \"size\": 1000, "
              "\"file.filename\": \"disk\"}", NULL, &reading, EINVAL,
              "not multiple of 512");
}

/* ---- chains ---- */

static void
test_chain (void)
{
  struct image *im;

  CHECK (mkdir ("d", 0755) == 0);
  write_file ("d/base.raw", "x", 1, MiB);
  make_qcow2 ("d/mid", "base.raw", "raw");
  make_qcow2 ("top", "d/mid", "qcow2");
  im = open_ok ("top", NULL, &reading);
  if (!im)
    return;
  CHECK_STR (im->backing_name, "d/mid");
  CHECK_STR (im->backing_format_name, "qcow2");
  CHECK (im->backing && im->backing->backing);
  if (im->backing && im->backing->backing) {
    CHECK_STR (im->backing->name, "d/mid");
    CHECK_STR (im->backing->backing_name, "base.raw");
    CHECK_STR (im->backing->backing->name, "d/base.raw");
    CHECK (!im->backing->probed && !im->backing->writable);
    CHECK (!im->backing->backing->backing);
  }
  close_ok (im);
}

static void
test_backing_given (void)
{
  struct image_open_options no_backing = { .no_backing = true };
  struct image_open_options untrusted = { .untrusted = true };
  struct image *im = open_ok ("top", NULL, &no_backing);

  CHECK (im && !im->backing && im->backing_name);
  close_ok (im);
  im = open_ok ("json:{\"driver\": \"qcow2\", \"file.filename\": \"top\", "
                "\"backing\": null}", NULL, &reading);
  CHECK (im && !im->backing);
  close_ok (im);
  im = open_ok ("json:{\"driver\": \"qcow2\", \"file.filename\": \"top\", "
                "\"backing\": {\"driver\": \"raw\", \"file.filename\": "
                "\"disk\"}}", NULL, &untrusted);
  CHECK (im && im->backing && strcmp (im->backing->name, "disk") == 0);
  close_ok (im);
  /* The name is the image's, the format the user's. */
  im = open_ok ("json:{\"driver\": \"qcow2\", \"file.filename\": \"top\", "
                "\"backing.driver\": \"raw\"}", NULL, &reading);
  CHECK (im && im->backing && strcmp (im->backing->name, "d/mid") == 0
         && im->backing->format->ops == &format_raw);
  close_ok (im);
  open_fails ("json:{\"file.filename\": \"disk\", \"backing\": "
              "{\"file.filename\": \"top\"}}", NULL, &reading, EINVAL,
              "Driver doesn't support backing files");
}

static void
test_untrusted (void)
{
  struct image_open_options untrusted = { .untrusted = true };

  open_fails ("top", NULL, &untrusted, EPERM,
              "top: its backing file 'd/mid' is not followed");
  opens ("d/base.raw", NULL, &untrusted);
}

static void
test_missing_backing (void)
{
  struct image_open_options info = { .info_only = true };
  struct image *im;

  make_qcow2 ("orphan", "gone", "raw");
  open_fails ("orphan", NULL, &reading, ENOENT, "orphan");
  open_fails ("orphan", NULL, &reading, ENOENT, "gone");
  im = open_ok ("orphan", NULL, &info);
  CHECK (im && !im->backing && image_size (im) == MiB);
  close_ok (im);
}

static void
test_loops (void)
{
  struct image_open_options info = { .info_only = true };

  make_qcow2 ("self", "self", "qcow2");
  open_fails ("self", NULL, &reading, ELOOP, "self: its backing file self");
  open_fails ("self", NULL, &writing, ELOOP, "self: its backing file self");
  opens ("self", NULL, &info);
  make_qcow2 ("one", "two", "qcow2");
  make_qcow2 ("two", "three", "qcow2");
  CHECK (link ("one", "three") == 0);
  open_fails ("one", NULL, &reading, ELOOP, "same object as one");
  CHECK (unlink ("three") == 0 && symlink ("one", "three") == 0);
  open_fails ("one", NULL, &reading, ELOOP, "same object as one");
}

static void
test_depth (void)
{
  char name[16], below[16];
  struct error e = ERROR_INIT;

  for (int i = 256; i >= 0; --i) {
    snprintf (name, sizeof name, "deep%d", i);
    snprintf (below, sizeof below, "deep%d", i + 1);
    CHECK_OK (create (name, "qcow2", MiB, i < 256 ? below : NULL, "qcow2",
                      "{\"cluster_size\": \"512\"}", &e), &e);
  }
  opens ("deep1", NULL, &reading);
  open_fails ("deep0", NULL, &reading, ELOOP, "longer than 256");
}

static void
test_child_as_raw (void)
{
  struct image *im;

  /* No recorded format, and what is probed as raw has no children. */
  make_qcow2 ("lax", "d/base.raw", "raw");
  poke ("lax", 112, "\0\0\0\1", 4);
  im = open_ok ("lax", NULL, &reading);
  CHECK (im && !im->backing_format_name);
  CHECK (im && im->backing && im->backing->probed
         && im->backing->format->ops == &format_raw);
  close_ok (im);
}

/* ---- data files ---- */

static void
test_data_file (void)
{
  static const char option[] = "{\"data_file\": \"data\"}";
  struct image_open_options info = { .info_only = true };
  struct error e = ERROR_INIT;
  struct image *im;

  CHECK_OK (create ("d/ext", "qcow2", MiB, NULL, NULL, option, &e), &e);
  CHECK (file_size ("data") == MiB);
  im = open_ok ("d/ext", NULL, &writing);
  CHECK (im && im->data_file && strcmp (im->data_file_name, "data") == 0);
  close_ok (im);
  im = open_ok ("json:{\"driver\": \"qcow2\", \"file.filename\": \"d/ext\", "
                "\"data-file.filename\": \"disk\"}", NULL, &reading);
  CHECK (im && im->data_file && strcmp (im->data_file->name, "disk") == 0);
  close_ok (im);
  open_fails ("json:{\"driver\": \"qcow2\", \"file.filename\": \"top\", "
              "\"data-file.filename\": \"disk\"}", NULL, &reading, EINVAL,
              "'data-file' can only be set");
  open_fails ("json:{\"driver\": \"qcow2\", \"file.filename\": \"d/ext\", "
              "\"data-file.filename\": \"d/ext\"}", NULL, &reading, ELOOP,
              "same object");
  CHECK (unlink ("data") == 0);
  open_fails ("d/ext", NULL, &reading, ENOENT, "current directory");
  opens ("d/ext", NULL, &info);
}

/* ---- locks ---- */

static void
test_writers (void)
{
  struct image *im = open_ok ("d/mid", NULL, &writing);
  struct image_open_options forced = { .force_share = true };

  CHECK (im && im->writable && im->writing);
  open_fails ("d/mid", NULL, &writing, EAGAIN, "lock");
  open_fails ("./d/../d/mid", NULL, &reading, EAGAIN, "lock");
  open_fails ("top", NULL, &reading, EAGAIN, "top");
  opens ("d/mid", NULL, &forced);
  close_ok (im);
  opens ("top", NULL, &writing);

  forced.writable = true;
  open_fails ("d/mid", NULL, &forced, EINVAL, "force-share");
}

static void
test_readers (void)
{
  struct image *a = open_ok ("d/mid", NULL, &reading);
  struct image *b = open_ok ("d/mid", NULL, &reading);

  open_fails ("d/mid", NULL, &writing, EAGAIN, "lock");
  close_ok (a);
  close_ok (b);
}

static void
test_two_overlays (void)
{
  struct image *a, *b;

  make_qcow2 ("top2", "d/mid", "qcow2");
  a = open_ok ("top", NULL, &writing);
  b = open_ok ("top2", NULL, &writing);
  open_fails ("d/mid", NULL, &writing, EAGAIN, "lock");
  close_ok (a);
  close_ok (b);
}

static void
test_first_writer (void)
{
  struct image *a = open_ok ("d/base.raw", NULL, &permitted);
  struct image *b = open_ok ("d/base.raw", NULL, &permitted);
  struct error e = ERROR_INIT;

  if (!a || !b)
    return;
  CHECK (a->writable && !a->writing && b->writable);
  CHECK_FAILS (image_begin_write (a, &e), &e, EAGAIN);
  close_ok (b);
  CHECK_OK (image_begin_write (a, &e), &e);
  CHECK_OK (image_begin_write (a, &e), &e);
  open_fails ("d/base.raw", NULL, &reading, EAGAIN, "lock");
  close_ok (a);
}

static void *
begin_write_thread (void *im)
{
  struct error e = ERROR_INIT;

  CHECK_OK (image_begin_write (im, &e), &e);
  return NULL;
}

static void
test_many_first_writers (void)
{
  struct image *im = open_ok ("top", NULL, &permitted);
  pthread_t threads[8];

  if (!im)
    return;
  for (int i = 0; i < 8; ++i)
    CHECK (pthread_create (&threads[i], NULL, begin_write_thread, im) == 0);
  for (int i = 0; i < 8; ++i)
    pthread_join (threads[i], NULL);
  CHECK (im->writing);
  close_ok (im);
}

static void
test_share (void)
{
  struct image_open_options share = { .writable = true, .share = true };
  struct image *a = open_ok ("d/base.raw", "raw", &share);
  struct image *b = open_ok ("d/base.raw", "raw", &share);

  open_fails ("d/base.raw", NULL, &writing, EAGAIN, "lock");
  close_ok (a);
  close_ok (b);
  open_fails ("d/mid", NULL, &share, ENOTSUP, "share=on");
}

static void
test_read_only (void)
{
  static const char name[] = "json:{\"driver\": \"qcow2\", \"read-only\": "
    "true, \"file.filename\": \"top\"}";
  struct image_open_options view = { .writable = true, .snapshot = "s" };
  struct error e = ERROR_INIT;
  struct image *im = open_ok (name, NULL, &permitted);

  CHECK (im && !im->writable);
  CHECK (im && image_begin_write (im, &e) == -1 && e.err == EROFS);
  close_ok (im);
  open_fails (name, NULL, &writing, EROFS, "read-only=on");
  open_fails ("json:{\"driver\": \"raw\", \"file\": {\"driver\": \"file\", "
              "\"read-only\": \"on\", \"filename\": \"disk\"}}", NULL,
              &writing, EROFS, "read-only=on");
  open_fails ("top", NULL, &view, EROFS, "snapshot");
  view.writable = false;
  open_fails ("disk", NULL, &view, ENOTSUP, "no internal snapshots");
  open_fails ("top", NULL, &view, ENOENT, "top");
}

static void
test_encrypted (void)
{
  struct image_open_options info = { .info_only = true };

  make_qcow2 ("secret", NULL, NULL);
  poke ("secret", 32, "\0\0\0\1", 4);
  open_fails ("secret", NULL, &reading, EINVAL, "encrypt.key-secret");
  opens ("secret", NULL, &info);
}

/* ---- writes that change the probe ---- */

static void
test_probed_raw (void)
{
  struct image *im;

  write_file ("guest", "QF", 2, MiB);
  im = open_ok ("guest", NULL, &writing);
  if (!im)
    return;
  CHECK (!image_probed_raw_write_ok (im, "QFI\xfb\0\0\0\2", 8, 0));
  CHECK (!image_probed_raw_write_ok (im, "KDMV", 4, 0));
  CHECK (!image_probed_raw_write_ok (im, "\x7f\x10\xda\xbe", 4, 64));
  CHECK (image_probed_raw_write_ok (im, "I\xfb", 2, 2));
  CHECK (image_probed_raw_write_ok (im, "QFI\xfb\0\0\0\2", 8, 512));
  CHECK (image_probed_raw_write_ok (im, "hello", 5, 0));
  poke ("guest", 2, "I\xfb", 2);
  /* The other bytes are there: one more is enough, and so are zeroes. */
  CHECK (!image_probed_raw_write_ok (im, "\2", 1, 7));
  poke ("guest", 0, "QEDx", 4);
  CHECK (!image_probed_raw_write_ok (im, NULL, 1, 3));
  close_ok (im);
  im = open_ok ("guest", "raw", &writing);
  CHECK (im && image_probed_raw_write_ok (im, "QFI\xfb\0\0\0\2", 8, 0));
  close_ok (im);
}

/* ---- create ---- */

static void
test_create_raw (void)
{
  struct error e = ERROR_INIT;
  struct stat st;

  CHECK_OK (create ("new", "raw", 1000, NULL, NULL, NULL, &e), &e);
  CHECK (file_size ("new") == 1024);
  CHECK_OK (create ("new", "raw", MiB, NULL, NULL,
                    "{\"preallocation\": \"falloc\"}", &e), &e);
  CHECK (stat ("new", &st) == 0 && st.st_blocks * 512 >= (off_t) MiB);
  CHECK_OK (create ("new", "raw", MiB, NULL, NULL,
                    "{\"preallocation\": \"full\", \"nocow\": \"on\"}", &e),
            &e);
  CHECK (stat ("new", &st) == 0 && st.st_blocks * 512 >= (off_t) MiB);
  CHECK_FAILS (create ("new", "raw", MiB, NULL, NULL,
                       "{\"preallocation\": \"metadata\"}", &e), &e, EINVAL);
  CHECK (file_size ("new") == MiB);
  CHECK_FAILS (create ("new2", "raw", MiB, "new", "raw", NULL, &e), &e,
               ENOTSUP);
  CHECK (access ("new2", F_OK) == -1);
  CHECK_FAILS (create ("folder", "raw", MiB, NULL, NULL, NULL, &e), &e,
               EISDIR);
  CHECK_FAILS (create ("no/where", "raw", MiB, NULL, NULL, NULL, &e), &e,
               ENOENT);
}

static void
test_create_locked (void)
{
  struct error e = ERROR_INIT;
  struct image *im = open_ok ("d/mid", NULL, &reading);
  uint64_t size = file_size ("d/mid");

  CHECK_FAILS (create ("d/mid", "raw", 512, NULL, NULL, NULL, &e), &e, EAGAIN);
  CHECK (file_size ("d/mid") == size);
  close_ok (im);
}

static void
test_create_fails (void)
{
  static const char bad[] = "{\"cluster_size\": \"3\"}";
  struct error e = ERROR_INIT;

  write_file ("precious", "data", 4, 4);
  CHECK_FAILS (create ("precious", "qcow2", MiB, NULL, NULL, bad, &e), &e,
               EINVAL);
  CHECK (file_size ("precious") == 4);
  CHECK_FAILS (create ("unborn", "qcow2", MiB, NULL, NULL, bad, &e), &e,
               EINVAL);
  CHECK (access ("unborn", F_OK) == -1);
  CHECK_FAILS (create ("unborn", "qcow2", MiB, NULL, NULL,
                       "{\"data_file\": \"unborn\"}", &e), &e, EINVAL);
  CHECK (access ("unborn", F_OK) == -1);
  CHECK_FAILS (create ("unborn", "qcow2", MiB, NULL, NULL,
                       "{\"data_file\": \"json:{}\"}", &e), &e, EINVAL);
  CHECK_FAILS (create ("unborn", "qcow2", MiB, NULL, NULL,
                       "{\"data_file\": \"no/where\"}", &e), &e, ENOENT);
  CHECK (access ("unborn", F_OK) == -1);
  CHECK_FAILS (create ("json:{\"driver\": \"raw\", \"offset\": 512, "
                       "\"file.filename\": \"precious\"}", "raw", MiB, NULL,
                       NULL, NULL, &e), &e, ENOTSUP);
}

static int
remove_one (const char *path, const struct stat *st, int flag,
            struct FTW *ftw)
{
  (void) st;
  (void) flag;
  (void) ftw;
  return remove (path);
}

int
main (void)
{
  char folder[] = "/tmp/test-open.XXXXXX";

  if (!mkdtemp (folder) || chdir (folder) == -1) {
    perror (folder);
    return EXIT_FAILURE;
  }
  unit_begin ("unknown content is raw, in whole sectors");
  test_raw ();
  unit_begin ("a foreign image is named, with a way to read it");
  test_foreign ();
  unit_begin ("directories, FIFOs and missing files are refused");
  test_not_images ();
  unit_begin ("raw with offset and size is a window of the file");
  test_windows ();
  unit_begin ("a chain is followed by names relative to each image");
  test_chain ();
  unit_begin ("what the user says of the backing file goes first");
  test_backing_given ();
  unit_begin ("an untrusted image names nothing that is opened");
  test_untrusted ();
  unit_begin ("a missing backing file is told with its image, not to info");
  test_missing_backing ();
  unit_begin ("a loop is found by the object, not by its name");
  test_loops ();
  unit_begin ("256 layers open, one more does not");
  test_depth ();
  unit_begin ("a backing file without a format is probed");
  test_child_as_raw ();
  unit_begin ("an external data file is opened as the image or the user says");
  test_data_file ();
  unit_begin ("a writer keeps everybody else out");
  test_writers ();
  unit_begin ("readers keep writers out");
  test_readers ();
  unit_begin ("two overlays share one base");
  test_two_overlays ();
  unit_begin ("the first writer takes the write locks");
  test_first_writer ();
  unit_begin ("many threads may be the first writer");
  test_many_first_writers ();
  unit_begin ("share=on lets raw writers in beside each other, no others");
  test_share ();
  unit_begin ("read-only=on and snapshots are never written to");
  test_read_only ();
  unit_begin ("an encrypted image needs its secret, but for info");
  test_encrypted ();
  unit_begin ("a guest cannot turn a probed raw disk into an image");
  test_probed_raw ();
  unit_begin ("raw images are made, preallocated and rounded to sectors");
  test_create_raw ();
  unit_begin ("an image that is in use is not created anew");
  test_create_locked ();
  unit_begin ("a creation that fails leaves nothing, and old files alone");
  test_create_fails ();
  CHECK (chdir ("/") == 0);
  nftw (folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  return unit_end ();
}
