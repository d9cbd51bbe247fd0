/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* common/codec.c.  zlib and zstd themselves, called here with QEMU's window and
 * without any of the code under test, are the other side.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "common/codec.h"
#include "tests/unit/unit.h"

enum { MAX_CLUSTER = 2 << 20 };

static const size_t cluster_sizes[] = { 512, 4096, 65536, MAX_CLUSTER };
enum { NR_SIZES = sizeof cluster_sizes / sizeof cluster_sizes[0] };

enum content { ZEROES, TEXT, HALF_RANDOM, NR_CONTENTS };

/* Bytes that can be compressed, and are never the same for two seeds but for
 * ZEROES.
 */
static void
fill (unsigned char *buf, size_t len, enum content content, uint64_t seed)
{
  memset (buf, 0, len);
  if (content == TEXT) {
    for (size_t i = 0; i < len; ++i)
      buf[i] = (unsigned char) ("the quick brown fox "[i % 20]
                                ^ (i % 997 == seed % 997));
  } else if (content == HALF_RANDOM)
    unit_random (buf, len / 2, seed);
}

static void
test_round_trip_size (enum codec codec, size_t size)
{
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = unit_alloc (size);
  struct error e = ERROR_INIT;

  for (enum content c = ZEROES; c < NR_CONTENTS; ++c) {
    ssize_t n;

    fill (src, size, c, size);
    n = codec_compress (codec, src, size, packed, size - 1, &e);
    CHECK (n > 0 && (size_t) n < size);
    if (n <= 0)
      continue;
    memset (back, 0xee, size);
    CHECK_OK (codec_decompress (codec, packed, (size_t) n, back, size, &e),
              &e);
    CHECK (memcmp (src, back, size) == 0);
  }
  free (src);
  free (back);
  free (packed);
}

static void
test_round_trip (enum codec codec)
{
  for (size_t i = 0; i < NR_SIZES; ++i)
    test_round_trip_size (codec, cluster_sizes[i]);
}

/* A stream of CODEC in a buffer that has SPARE bytes of 0xa5 behind it. */
static unsigned char *
make_stream (enum codec codec, unsigned char *src, size_t size, size_t spare,
             size_t *len)
{
  unsigned char *packed = unit_alloc (size + spare);
  struct error e = ERROR_INIT;
  ssize_t n;

  fill (src, size, HALF_RANDOM, 7);
  n = codec_compress (codec, src, size, packed, size - 1, &e);
  if (n <= 0) {
    unit_fail (__FILE__, __LINE__, "no stream: %s", e.text);
    n = 0;
  }
  memset (packed + n, 0xa5, spare);
  *len = (size_t) n;
  return packed;
}

static void
test_incompressible (enum codec codec)
{
  size_t size = 65536;
  unsigned char *src = unit_alloc (size), *packed = unit_alloc (size);
  struct error e = ERROR_INIT;

  unit_random (src, size, 3);
  packed[size - 1] = 0x5a;
  CHECK (codec_compress (codec, src, size, packed, size - 1, &e) == 0);
  CHECK (e.err == 0);
  CHECK (packed[size - 1] == 0x5a);
  CHECK (codec_compress (codec, src, size, packed, 1, &e) == 0);
  /* The state is as good as new afterwards. */
  test_round_trip_size (codec, 4096);
  free (src);
  free (packed);
}

static void
test_garbage_behind (enum codec codec)
{
  size_t size = 65536, len;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = make_stream (codec, src, size, 1024, &len);
  static const size_t spares[] = { 1, 3, 4, 7, 511, 1024 };
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < sizeof spares / sizeof spares[0]; ++i) {
    memset (back, 0xee, size);
    CHECK_OK (codec_decompress (codec, packed, len + spares[i], back, size,
                                &e), &e);
    CHECK (memcmp (src, back, size) == 0);
  }
  /* The next cluster's stream begins in the same sector. */
  memcpy (packed + len, packed, 1024);
  memset (back, 0xee, size);
  CHECK_OK (codec_decompress (codec, packed, len + 1024, back, size, &e), &e);
  CHECK (memcmp (src, back, size) == 0);
  memset (packed + len, 0, 1024);
  CHECK_OK (codec_decompress (codec, packed, len + 1024, back, size, &e), &e);
  free (src);
  free (back);
  free (packed);
}

static void
test_truncated (enum codec codec)
{
  size_t size = 4096, len;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = make_stream (codec, src, size, 0, &len);
  struct error e = ERROR_INIT;

  /* The last bytes of a stream may hold its end mark and check sum alone. */
  for (size_t n = 0; n + 8 < len; ++n) {
    unsigned char *cut = unit_alloc (n);        /* ASan sees a read past it */

    memcpy (cut, packed, n);
    CHECK_FAILS (codec_decompress (codec, cut, n, back, size, &e), &e, EIO);
    free (cut);
  }
  free (src);
  free (back);
  free (packed);
}

static void
test_wrong_length (enum codec codec)
{
  size_t size = 4096, len;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (2 * size);
  unsigned char *packed = make_stream (codec, src, size, 0, &len);
  struct error e = ERROR_INIT;

  CHECK_FAILS (codec_decompress (codec, packed, len, back, size + 1, &e), &e,
               EIO);
  CHECK_FAILS (codec_decompress (codec, packed, len, back, 2 * size, &e), &e,
               EIO);
  free (src);
  free (back);
  free (packed);
}

/* No byte of a stream may make the decoder fail in another way than EIO, or
 * write past DST (ASan), or disturb the next cluster.
 */
static void
test_damaged (enum codec codec)
{
  size_t size = 4096, len;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = make_stream (codec, src, size, 0, &len);

  for (size_t i = 0; i < 16 * len; ++i) {
    struct error e = ERROR_INIT;
    unsigned char old = packed[i / 16];

    packed[i / 16] = (unsigned char) (old ^ (i % 16 * 17 + 1));
    if (codec_decompress (codec, packed, len, back, size, &e) == -1)
      CHECK (e.err == EIO);
    packed[i / 16] = old;
  }
  test_round_trip_size (codec, size);
  free (src);
  free (back);
  free (packed);
}

static void
test_short_output (void)
{
  size_t size = 65536;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = unit_alloc (size);
  struct error e = ERROR_INIT;
  z_stream z = { .next_in = src, .avail_in = (uInt) size, .next_out = packed,
                 .avail_out = (uInt) size };

  /* A stream without its end mark, which zlib writes for Z_SYNC_FLUSH. */
  fill (src, size, TEXT, 1);
  CHECK (deflateInit2 (&z, 6, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  CHECK (deflate (&z, Z_SYNC_FLUSH) == Z_OK);
  CHECK_OK (codec_decompress (CODEC_DEFLATE, packed, size - z.avail_out, back,
                              size, &e), &e);
  CHECK (memcmp (src, back, size) == 0);
  deflateEnd (&z);

  /* A stream of which only the first half is wanted. */
  memset (back, 0xee, size);
  CHECK_OK (codec_decompress (CODEC_DEFLATE, packed, size - z.avail_out, back,
                              size / 2, &e), &e);
  CHECK (memcmp (src, back, size / 2) == 0);
  CHECK (back[size / 2] == 0xee);
  free (src);
  free (back);
  free (packed);
}

/* As QEMU reads a cluster: one call of inflate, window 2^12. */
static bool
inflate_as_qemu (const void *src, size_t len, void *dst, size_t dst_len)
{
  z_stream z = { .next_in = (Bytef *) src, .avail_in = (uInt) len,
                 .next_out = dst, .avail_out = (uInt) dst_len };
  int r;

  if (inflateInit2 (&z, -12) != Z_OK)
    return false;
  r = inflate (&z, Z_FINISH);
  inflateEnd (&z);
  return r == Z_STREAM_END && z.avail_out == 0;
}

static void
test_zlib_reads_ours (void)
{
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < NR_SIZES; ++i) {
    size_t size = cluster_sizes[i];
    unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
    unsigned char *packed = unit_alloc (size);

    for (enum content c = ZEROES; c < NR_CONTENTS; ++c) {
      ssize_t n;

      fill (src, size, c, 11);
      /* Matches from far back: the first half once more. */
      if (c == HALF_RANDOM)
        memcpy (src + size / 2, src, size / 2);
      n = codec_compress (CODEC_DEFLATE, src, size, packed, size - 1, &e);
      if (n == 0)               /* a window is shorter than half a cluster */
        continue;
      CHECK (inflate_as_qemu (packed, (size_t) n, back, size));
      CHECK (memcmp (src, back, size) == 0);
    }
    free (src);
    free (back);
    free (packed);
  }
}

static void
test_reads_zlib (void)
{
  struct error e = ERROR_INIT;

  for (int bits = 9; bits <= 15; ++bits)
    for (int level = 0; level <= 9; level += 3) {
      size_t size = 65536, room = size + 1024;
      unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
      unsigned char *packed = unit_alloc (room);
      z_stream z = { .next_in = src, .avail_in = (uInt) size,
                     .next_out = packed, .avail_out = (uInt) room };

      fill (src, size, HALF_RANDOM, (uint64_t) bits);
      CHECK (deflateInit2 (&z, level, Z_DEFLATED, -bits, 9,
                           Z_DEFAULT_STRATEGY) == Z_OK);
      CHECK (deflate (&z, Z_FINISH) == Z_STREAM_END);
      deflateEnd (&z);
      memset (back, 0xee, size);
      CHECK_OK (codec_decompress (CODEC_DEFLATE, packed, room - z.avail_out,
                                  back, size, &e), &e);
      CHECK (memcmp (src, back, size) == 0);
      free (src);
      free (back);
      free (packed);
    }
}

#ifdef HAVE_ZSTD

static void
test_zstd_frames (void)
{
  size_t size = 65536, room = ZSTD_compressBound (size) + 64, n;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = unit_alloc (room);
  struct error e = ERROR_INIT;
  ZSTD_CCtx *c = ZSTD_createCCtx ();

  unit_begin ("zstd: a frame with a check sum and without its size is read");
  fill (src, size, HALF_RANDOM, 5);
  ZSTD_CCtx_setParameter (c, ZSTD_c_checksumFlag, 1);
  ZSTD_CCtx_setParameter (c, ZSTD_c_contentSizeFlag, 0);
  n = ZSTD_compress2 (c, packed, room, src, size);
  CHECK (!ZSTD_isError (n));
  CHECK_OK (codec_decompress (CODEC_ZSTD, packed, n, back, size, &e), &e);
  CHECK (memcmp (src, back, size) == 0);
  packed[n - 1] ^= 1;
  CHECK_FAILS (codec_decompress (CODEC_ZSTD, packed, n, back, size, &e), &e,
               EIO);
  ZSTD_freeCCtx (c);

  unit_begin ("zstd: a cluster in two frames is read");
  n = ZSTD_compress (packed, room, src, 20000, 3);
  n += ZSTD_compress (packed + n, room - n, src + 20000, size - 20000, 3);
  memset (back, 0xee, size);
  CHECK_OK (codec_decompress (CODEC_ZSTD, packed, n, back, size, &e), &e);
  CHECK (memcmp (src, back, size) == 0);

  unit_begin ("zstd: a frame that yields too much is refused");
  CHECK_FAILS (codec_decompress (CODEC_ZSTD, packed, n, back, size - 1, &e),
               &e, EIO);

  unit_begin ("zstd: frames of nothing end where the stream ends");
  memset (packed, 0, room);
  for (n = 0; n + 16 < room; n += 16)   /* skippable frames of 8 bytes each */
    memcpy (packed + n, "\x50\x2a\x4d\x18\x08\0\0\0abcdefgh", 16);
  CHECK_FAILS (codec_decompress (CODEC_ZSTD, packed, n, back, size, &e), &e,
               EIO);
  free (src);
  free (back);
  free (packed);
}

#endif /* HAVE_ZSTD */

static void
test_not_built_in (void)
{
#ifndef HAVE_ZSTD
  struct error e = ERROR_INIT;
  char buf[512] = "";

  unit_begin ("zstd: refused by name in a build without it");
  CHECK (!codec_available (CODEC_ZSTD));
  CHECK_FAILS (codec_decompress (CODEC_ZSTD, buf, 10, buf, 512, &e), &e,
               ENOTSUP);
  CHECK (codec_compress (CODEC_ZSTD, buf, 512, buf, 511, &e) == -1);
  CHECK (e.err == ENOTSUP && strstr (e.text, "zstd"));
#endif
}

static void *
thread_main (void *opaque)
{
  uint64_t seed = (uint64_t) (uintptr_t) opaque;
  size_t size = 65536;
  unsigned char *src = unit_alloc (size), *back = unit_alloc (size);
  unsigned char *packed = unit_alloc (size);
  struct error e = ERROR_INIT;

  for (int i = 0; i < 40; ++i) {
    enum codec codec = i % 2 && codec_available (CODEC_ZSTD)
      ? CODEC_ZSTD : CODEC_DEFLATE;
    ssize_t n;

    fill (src, size, HALF_RANDOM, seed * 1000 + (uint64_t) i);
    n = codec_compress (codec, src, size, packed, size - 1, &e);
    CHECK (n > 0);
    CHECK_OK (codec_decompress (codec, packed, (size_t) n, back, size, &e),
              &e);
    CHECK (memcmp (src, back, size) == 0);
  }
  free (src);
  free (back);
  free (packed);
  return NULL;
}

/* Under ASan, a state that outlived its thread is a leak. */
static void
test_threads (void)
{
  pthread_t t[8];

  unit_begin ("threads do not share a state, and free it at their end");
  for (int round = 0; round < 2; ++round) {
    for (uintptr_t i = 0; i < 8; ++i)
      CHECK (pthread_create (&t[i], NULL, thread_main, (void *) i) == 0);
    for (uintptr_t i = 0; i < 8; ++i)
      CHECK (pthread_join (t[i], NULL) == 0);
  }
}

static void
test_codec (enum codec codec)
{
  bool zstd = codec == CODEC_ZSTD;

#define PROMISE(text) unit_begin (zstd ? "zstd: " text : "zlib: " text)
  PROMISE ("clusters of every size come back as they were");
  test_round_trip (codec);
  PROMISE ("what does not get smaller is told, and nothing is overrun");
  test_incompressible (codec);
  PROMISE ("what follows a stream in its sector is ignored");
  test_garbage_behind (codec);
  PROMISE ("a stream that is cut off is an I/O error at every length");
  test_truncated (codec);
  PROMISE ("a stream that yields less than a cluster is an I/O error");
  test_wrong_length (codec);
  PROMISE ("a damaged stream is an I/O error or other bytes, nothing worse");
  test_damaged (codec);
#undef PROMISE
}

int
main (void)
{
  unit_begin ("codecs have the names of the specification");
  CHECK_STR (codec_name (CODEC_DEFLATE), "zlib");
  CHECK_STR (codec_name (CODEC_ZSTD), "zstd");
  CHECK (codec_available (CODEC_DEFLATE));
  test_codec (CODEC_DEFLATE);
  unit_begin ("zlib: a stream may go on, or lack its end, past the cluster");
  test_short_output ();
  unit_begin ("zlib: QEMU's way of inflating reads our streams");
  test_zlib_reads_ours ();
  unit_begin ("zlib: streams of any window and level are read");
  test_reads_zlib ();
#ifdef HAVE_ZSTD
  CHECK (codec_available (CODEC_ZSTD));
  test_codec (CODEC_ZSTD);
  test_zstd_frames ();
#endif
  test_not_built_in ();
  test_threads ();
  return unit_end ();
}
