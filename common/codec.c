/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Compressed clusters: see codec.h.  Layer: common.
 *
 * Locking: none.  Each thread has its own states under one pthread key, made
 * when they are first needed and freed when the thread ends.
 *
 * The streams are those of the qcow2 specification: raw deflate (RFC 1951) and
 * zstd frames (RFC 8878).  It says of a stream that it "ends when there's
 * enough data to produce a cluster", so what follows is not looked at.
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <zlib.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "common/codec.h"

enum {
  /* On 64 KiB clusters of a file system libdeflate 5 makes 93 MB/s at a ratio
   * of 0.345, level 6 makes 80 at 0.343, zlib's default 37 at 0.369.
   */
  LIBDEFLATE_LEVEL = 5,

  ZSTD_LEVEL = 3,

  /* QEMU inflates with a window of 2^12.  A stream that looks back further is
   * read by it only because it inflates a cluster in one call; zlib can keep
   * to the small window, so it does.
   */
  DEFLATE_WINDOW_BITS = -12,
  INFLATE_WINDOW_BITS = -15,
};

struct states {
  z_stream deflate, inflate;
  bool have_deflate, have_inflate;
#ifdef HAVE_LIBDEFLATE
  struct libdeflate_compressor *compressor;
  struct libdeflate_decompressor *decompressor;
#endif
#ifdef HAVE_ZSTD
  ZSTD_CCtx *cctx;
  ZSTD_DCtx *dctx;
#endif
};

/* ---- the states of a thread ---- */

static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int key_error = EAGAIN;  /* 0 after the key was made */

static void
states_free (void *opaque)
{
  struct states *s = opaque;

  if (s->have_deflate)
    deflateEnd (&s->deflate);
  if (s->have_inflate)
    inflateEnd (&s->inflate);
#ifdef HAVE_LIBDEFLATE
  libdeflate_free_compressor (s->compressor);
  libdeflate_free_decompressor (s->decompressor);
#endif
#ifdef HAVE_ZSTD
  ZSTD_freeCCtx (s->cctx);
  ZSTD_freeDCtx (s->dctx);
#endif
  free (s);
}

static void
make_key (void)
{
  key_error = pthread_key_create (&key, states_free);
}

/* The plugin can be unloaded while threads of its server live on.  Without the
 * key, the end of such a thread calls nothing in code that is gone.
 */
static void __attribute__ ((destructor))
delete_key (void)
{
  struct states *s;

  if (key_error)
    return;
  s = pthread_getspecific (key);
  pthread_key_delete (key);
  key_error = EAGAIN;
  if (s)
    states_free (s);
}

static struct states *
get_states (struct error *e)
{
  struct states *s;
  int r;

  pthread_once (&key_once, make_key);
  if (key_error) {
    error_errno (e, key_error, "pthread_key_create");
    return NULL;
  }
  s = pthread_getspecific (key);
  if (s)
    return s;
  s = calloc (1, sizeof *s);
  if (!s) {
    error_nomem (e, "the state of the codecs", sizeof *s);
    return NULL;
  }
  r = pthread_setspecific (key, s);
  if (r != 0) {
    error_errno (e, r, "pthread_setspecific");
    free (s);
    return NULL;
  }
  return s;
}

static int
no_state (enum codec codec, struct error *e)
{
  return error_set (e, ENOMEM, "out of memory: the state of the %s codec",
                    codec_name (codec));
}

/* ---- deflate ---- */

#ifdef HAVE_LIBDEFLATE

static ssize_t
deflate_compress (struct states *s, const void *src, size_t len, void *dst,
                  size_t dst_size, struct error *e)
{
  if (!s->compressor)
    s->compressor = libdeflate_alloc_compressor (LIBDEFLATE_LEVEL);
  if (!s->compressor)
    return no_state (CODEC_DEFLATE, e);
  return (ssize_t) libdeflate_deflate_compress (s->compressor, src, len,
                                                dst, dst_size);
}

#else

static ssize_t
deflate_compress (struct states *s, const void *src, size_t len, void *dst,
                  size_t dst_size, struct error *e)
{
  z_stream *z = &s->deflate;

  if (!s->have_deflate) {
    if (deflateInit2 (z, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
                      DEFLATE_WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
      return no_state (CODEC_DEFLATE, e);
    s->have_deflate = true;
  } else
    deflateReset (z);
  z->next_in = (Bytef *) src;
  z->avail_in = (uInt) len;
  z->next_out = dst;
  z->avail_out = (uInt) dst_size;
  if (deflate (z, Z_FINISH) != Z_STREAM_END)
    return 0;
  return (ssize_t) (dst_size - z->avail_out);
}

#endif /* !HAVE_LIBDEFLATE */

/* Stops where DST is full, end of the stream or not. */
static int
zlib_decompress (struct states *s, const void *src, size_t len, void *dst,
                 size_t dst_len, struct error *e)
{
  z_stream *z = &s->inflate;
  int r;

  if (!s->have_inflate) {
    if (inflateInit2 (z, INFLATE_WINDOW_BITS) != Z_OK)
      return no_state (CODEC_DEFLATE, e);
    s->have_inflate = true;
  } else
    inflateReset (z);
  z->next_in = (Bytef *) src;
  z->avail_in = (uInt) len;
  z->next_out = dst;
  z->avail_out = (uInt) dst_len;
  r = inflate (z, Z_FINISH);
  if (r == Z_MEM_ERROR)
    return no_state (CODEC_DEFLATE, e);
  if (r != Z_STREAM_END && r != Z_BUF_ERROR && r != Z_OK)
    return error_set (e, EIO, "zlib stream is damaged%s%s",
                      z->msg ? ": " : "", z->msg ? z->msg : "");
  if (z->avail_out)
    return error_set (e, EIO, "zlib stream %s after %zu of %zu bytes",
                      r == Z_STREAM_END ? "ends" : "is cut off",
                      dst_len - z->avail_out, dst_len);
  return 0;
}

/* libdeflate is more than twice as fast, but wants streams with an end mark
 * that yield no byte more than DST_LEN.  Any writer makes those; zlib decides
 * on all others, and finds the words for what is wrong.
 */
static int
deflate_decompress (struct states *s, const void *src, size_t len, void *dst,
                    size_t dst_len, struct error *e)
{
#ifdef HAVE_LIBDEFLATE
  size_t used, out;

  if (!s->decompressor)
    s->decompressor = libdeflate_alloc_decompressor ();
  if (!s->decompressor)
    return no_state (CODEC_DEFLATE, e);
  if (libdeflate_deflate_decompress_ex (s->decompressor, src, len, dst,
                                        dst_len, &used, &out)
      == LIBDEFLATE_SUCCESS && out == dst_len)
    return 0;
#endif
  return zlib_decompress (s, src, len, dst, dst_len, e);
}

/* ---- zstd ---- */

#ifdef HAVE_ZSTD

static ssize_t
zstd_compress (struct states *s, const void *src, size_t len, void *dst,
               size_t dst_size, struct error *e)
{
  size_t r;

  if (!s->cctx)
    s->cctx = ZSTD_createCCtx ();
  if (!s->cctx)
    return no_state (CODEC_ZSTD, e);
  /* Its only failure that is not "does not fit" is want of memory, and then a
   * plain cluster is as right an answer.
   */
  r = ZSTD_compressCCtx (s->cctx, dst, dst_size, src, len, ZSTD_LEVEL);
  return ZSTD_isError (r) ? 0 : (ssize_t) r;
}

/* The end of each frame is found first: ZSTD_decompressDCtx would take what
 * stands behind it for one more.  One call a frame needs no window, however
 * large a window the frame's header claims.
 */
static int
zstd_decompress (struct states *s, const void *src, size_t len, void *dst,
                 size_t dst_len, struct error *e)
{
  size_t pos = 0, done = 0;

  if (!s->dctx)
    s->dctx = ZSTD_createDCtx ();
  if (!s->dctx)
    return no_state (CODEC_ZSTD, e);
  while (done < dst_len) {
    const char *frame = (const char *) src + pos;
    size_t frame_len = ZSTD_findFrameCompressedSize (frame, len - pos);
    size_t r = frame_len;

    if (!ZSTD_isError (r))
      r = ZSTD_decompressDCtx (s->dctx, (char *) dst + done, dst_len - done,
                               frame, frame_len);
    if (ZSTD_isError (r))
      return error_set (e, EIO, "zstd stream is damaged after %zu of %zu "
                        "bytes: %s", done, dst_len, ZSTD_getErrorName (r));
    pos += frame_len;           /* > 0: a frame has a header */
    done += r;
  }
  return 0;
}

#else

static int
no_zstd (struct error *e)
{
  return error_set (e, ENOTSUP, "zstd: this build has no libzstd");
}

static ssize_t
zstd_compress (struct states *s, const void *src, size_t len, void *dst,
               size_t dst_size, struct error *e)
{
  (void) s, (void) src, (void) len, (void) dst, (void) dst_size;
  return no_zstd (e);
}

static int
zstd_decompress (struct states *s, const void *src, size_t len, void *dst,
                 size_t dst_len, struct error *e)
{
  (void) s, (void) src, (void) len, (void) dst, (void) dst_len;
  return no_zstd (e);
}

#endif /* !HAVE_ZSTD */

/* ---- both ---- */

const char *
codec_name (enum codec codec)
{
  return codec == CODEC_ZSTD ? "zstd" : "zlib";
}

bool
codec_available (enum codec codec)
{
#ifdef HAVE_ZSTD
  return codec == CODEC_DEFLATE || codec == CODEC_ZSTD;
#else
  return codec == CODEC_DEFLATE;
#endif
}

/* zlib counts in unsigned int, and no cluster is near it. */
static int
check_lengths (size_t a, size_t b, struct error *e)
{
  if (a > INT_MAX || b > INT_MAX)
    return error_set (e, EINVAL, "too much for one compressed cluster: %zu and "
                      "%zu bytes", a, b);
  return 0;
}

ssize_t
codec_compress (enum codec codec, const void *src, size_t len, void *dst,
                size_t dst_size, struct error *e)
{
  struct states *s;

  if (check_lengths (len, dst_size, e) == -1)
    return -1;
  s = get_states (e);
  if (!s)
    return -1;
  if (codec == CODEC_ZSTD)
    return zstd_compress (s, src, len, dst, dst_size, e);
  return deflate_compress (s, src, len, dst, dst_size, e);
}

int
codec_decompress (enum codec codec, const void *src, size_t len, void *dst,
                  size_t dst_len, struct error *e)
{
  struct states *s;

  if (check_lengths (len, dst_len, e) == -1)
    return -1;
  s = get_states (e);
  if (!s)
    return -1;
  if (codec == CODEC_ZSTD)
    return zstd_decompress (s, src, len, dst, dst_len, e);
  return deflate_decompress (s, src, len, dst, dst_len, e);
}
