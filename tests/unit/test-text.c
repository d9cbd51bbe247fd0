/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* common/text.c.  The numbers are those of qemu-img; with "--human-size N..."
 * and "--parse-size TEXT..." the program prints what it makes of them, so that
 * tests/text.bats can compare others with the installed qemu-img.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/text.h"
#include "tests/unit/unit.h"

static void
test_parse_size (void)
{
  static const struct { const char *text; uint64_t want; } good[] = {
    { "0", 0 }, { "10", 10 }, { "07", 7 }, { "10b", 10 }, { "10B", 10 },
    { " 1", 1 }, { "1.", 1 }, { "1.0", 1 }, { "1.00b", 1 },
    { "64k", 64 * KiB }, { "64K", 64 * KiB }, { "5.k", 5 * KiB },
    { "1m", MiB }, { "1M", MiB }, { "1.5G", 3 * GiB / 2 }, { "1T", TiB },
    { "1P", 1024 * TiB }, { "1e", 1024 * 1024 * TiB },
    { "7E", 7 * 1024 * 1024 * TiB },
    { "0x200", 512 }, { "0X200", 512 }, { "0x1e", 30 }, { "0x1b", 27 },
    { "0x10K", 16 * KiB },
    { "1.1k", 1126 }, { "0.0005k", 1 }, { "0.00048k", 0 },
    { "1.00049k", 1025 }, { "1.9999999999999999k", 2048 },
    { "1.1G", 1181116006 }, { "1.1P", 1238489897526886 },
    { "1.1E", 1268213655067531680 },
    { "3.3333333333333333E", 3843071682022823232 },
    { "1.23456789012345678901234567890E", 1423359869420436352 },
    { "9223372036854775807", INT64_MAX },
  };
  static const char *const bad[] = {
    "", " ", "k", "-1", "+1", "1 ", "1.5", "1.5b", ".5k", "1,5k", "1e3",
    "1.5e3", "1kB", "1KiB", "0x", "0xg", "0x1.8k", "1_000", "inf", "nan",
    "k1", "1z", "--1",
  };
  static const char *const large[] = {
    "8E", "7.99999999999999999999E", "9223372036854775808",
    "18446744073709551616", "99999999999999999999999", "16E", "17179869184G",
    "0x8000000000000000", "0x10000000000000000",
  };
  struct error e = ERROR_INIT;
  uint64_t v;

  unit_begin ("a size is read as qemu-img reads it");
  for (size_t i = 0; i < sizeof good / sizeof good[0]; ++i) {
    v = UINT64_MAX;
    CHECK_OK (parse_size ("size", good[i].text, &v, &e), &e);
    if (v != good[i].want)
      unit_fail (__FILE__, __LINE__, "%s: %" PRIu64 ", not %" PRIu64,
                 good[i].text, v, good[i].want);
  }

  unit_begin ("what is not a size is refused (EINVAL)");
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i)
    CHECK_FAILS (parse_size (bad[i], bad[i], &v, &e), &e, EINVAL);

  unit_begin ("a size above INT64_MAX is refused (ERANGE)");
  for (size_t i = 0; i < sizeof large / sizeof large[0]; ++i)
    CHECK_FAILS (parse_size (large[i], large[i], &v, &e), &e, ERANGE);

  unit_begin ("the error of a size names the value and its text");
  parse_size ("cluster_size", "many", &v, &e);
  CHECK (strstr (e.text, "cluster_size: 'many' is not a size") == e.text);
}

static void
test_parse_number (void)
{
  struct error e = ERROR_INIT;
  uint64_t v = 0;

  unit_begin ("a number is decimal digits within its bounds");
  CHECK_OK (parse_number ("n", "16", 1, 16, &v, &e), &e);
  CHECK (v == 16);
  CHECK_OK (parse_number ("n", "18446744073709551615", 0, UINT64_MAX, &v, &e),
            &e);
  CHECK (v == UINT64_MAX);
  CHECK_FAILS (parse_number ("n", "17", 1, 16, &v, &e), &e, ERANGE);
  CHECK_FAILS (parse_number ("n", "0", 1, 16, &v, &e), &e, ERANGE);
  CHECK_FAILS (parse_number ("n", "18446744073709551616", 0, UINT64_MAX, &v,
                             &e), &e, ERANGE);
  CHECK_FAILS (parse_number ("n", "", 0, 16, &v, &e), &e, EINVAL);
  CHECK_FAILS (parse_number ("n", "1k", 0, 16, &v, &e), &e, EINVAL);
  CHECK_FAILS (parse_number ("n", "-1", 0, 16, &v, &e), &e, EINVAL);
  CHECK_FAILS (parse_number ("n", "+1", 0, 16, &v, &e), &e, EINVAL);
  CHECK_FAILS (parse_number ("n", " 1", 0, 16, &v, &e), &e, EINVAL);
  CHECK_FAILS (parse_number ("n", "0x1", 0, 16, &v, &e), &e, EINVAL);
}

static void
test_parse_bool (void)
{
  static const char *const yes[] = { "on", "yes", "true", "y" };
  static const char *const no[] = { "off", "no", "false", "n" };
  static const char *const bad[] = { "", "1", "ON", "onn", "o", "maybe" };
  struct error e = ERROR_INIT;
  bool v;

  unit_begin ("a switch is on, yes, true, y or off, no, false, n");
  for (size_t i = 0; i < 4; ++i) {
    v = false;
    CHECK_OK (parse_bool ("b", yes[i], &v, &e), &e);
    CHECK (v);
    CHECK_OK (parse_bool ("b", no[i], &v, &e), &e);
    CHECK (!v);
  }
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i)
    CHECK_FAILS (parse_bool ("b", bad[i], &v, &e), &e, EINVAL);
}

static void
test_human_size (void)
{
  static const struct { uint64_t bytes; const char *want; } sizes[] = {
    { 0, "0 B" }, { 512, "512 B" }, { 1024, "1 KiB" }, { 1536, "1.5 KiB" },
    { 200192, "196 KiB" }, { 200704, "196 KiB" }, { 1000448, "977 KiB" },
    { 1022976, "999 KiB" }, { 1023488, "1e+03 KiB" },
    { 1024000, "0.977 MiB" }, { MiB, "1 MiB" }, { 1023999488, "977 MiB" },
    { 1048576000, "0.977 GiB" }, { 64 * MiB, "64 MiB" }, { GiB, "1 GiB" },
    { 1610612736, "1.5 GiB" }, { 123456789504, "115 GiB" }, { TiB, "1 TiB" },
    { 1024 * TiB, "1 PiB" }, { UINT64_C (1000000000000000000), "888 PiB" },
    { 1024 * 1024 * TiB, "1 EiB" }, { UINT64_MAX, "16 EiB" },
  };
  char buf[32];

  unit_begin ("a size is printed as qemu-img prints it");
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; ++i)
    CHECK_STR (human_size (sizes[i].bytes, buf, sizeof buf), sizes[i].want);
}

static void
check_printable (const char *text, const char *want)
{
  char *r = printable (text);

  CHECK_STR (r, want);
  free (r);
}

static void
test_printable (void)
{
  unit_begin ("a name without control characters is left as it is");
  check_printable ("", "");
  check_printable ("a b\\c.img", "a b\\c.img");
  check_printable ("b\xc3\xa4r \xe2\x82\xac \xf0\x9f\x92\xbe",
                   "b\xc3\xa4r \xe2\x82\xac \xf0\x9f\x92\xbe");

  unit_begin ("what drives a terminal is escaped");
  check_printable ("a\x1b[2Jb\n\t\x7f", "a\\x1b[2Jb\\x0a\\x09\\x7f");
  check_printable ("\xc2\x9b" "31m", "\\xc2\\x9b31m");          /* C1 CSI */
  check_printable ("\xe2\x80\xae" "gnp.exe", "\\xe2\\x80\\xaegnp.exe");

  unit_begin ("what is not UTF-8 is escaped byte by byte");
  check_printable ("\xff\x41\xfe", "\\xffA\\xfe");
  check_printable ("\xc0\xaf", "\\xc0\\xaf");                   /* overlong */
  check_printable ("\xe0\x80\xaf", "\\xe0\\x80\\xaf");
  check_printable ("\xf0\x80\x80\xaf", "\\xf0\\x80\\x80\\xaf");
  check_printable ("\xed\xa0\x80", "\\xed\\xa0\\x80");          /* surrogate */
  check_printable ("\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"); /* too high */
  check_printable ("\xe2\x82", "\\xe2\\x82");                   /* cut off */
  check_printable ("\xe2\x82" "A", "\\xe2\\x82" "A");
  check_printable ("\xc3", "\\xc3");
}

static void
check_utf8 (const char *text, const char *expected)
{
  char *r = utf8_text (text);

  CHECK_STR (r, expected);
  free (r);
}

static void
test_utf8_text (void)
{
  unit_begin ("utf8_text leaves valid UTF-8 alone");
  check_utf8 ("", "");
  check_utf8 ("a\n\xc3\xa9\xe2\x82\xac\xf0\x9f\x92\xbe",
              "a\n\xc3\xa9\xe2\x82\xac\xf0\x9f\x92\xbe");

  unit_begin ("utf8_text replaces each byte that is not UTF-8 by U+FFFD");
  check_utf8 ("\xff" "A", "\xef\xbf\xbd" "A");
  check_utf8 ("\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd");
}

static void
test_format_text (void)
{
  char *r = format_text ("%s-%d", "a", 5);

  unit_begin ("format_text returns what printf would print");
  CHECK_STR (r, "a-5");
  free (r);
}

static int
print_human_sizes (char **p)
{
  char buf[32];

  for (; *p; ++p)
    printf ("%s\n", human_size (strtoull (*p, NULL, 10), buf, sizeof buf));
  return EXIT_SUCCESS;
}

static int
print_parsed_sizes (char **p)
{
  for (; *p; ++p) {
    struct error e = ERROR_INIT;
    uint64_t v;

    if (parse_size ("size", *p, &v, &e) == -1)
      puts ("invalid");
    else
      printf ("%" PRIu64 "\n", v);
  }
  return EXIT_SUCCESS;
}

int
main (int argc, char **argv)
{
  if (argc > 1 && strcmp (argv[1], "--human-size") == 0)
    return print_human_sizes (argv + 2);
  if (argc > 1 && strcmp (argv[1], "--parse-size") == 0)
    return print_parsed_sizes (argv + 2);
  test_parse_size ();
  test_parse_number ();
  test_parse_bool ();
  test_human_size ();
  test_printable ();
  test_utf8_text ();
  test_format_text ();
  return unit_end ();
}
