/* Each mutation does to a file what an accident, a careless writer or an attacker would: bytes that
 * flip or go missing, headers that lie about their length, numbers at the edges of their types,
 * keys that come twice, ranges that overlap. Most of them keep the header's length right, so that
 * the file gets past the first check and into the later ones.
 */
#include "mutate.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

uint64_t draw(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

size_t below(uint64_t *state, size_t n) { return n ? (size_t)(draw(state) % n) : 0; }

/* ---- the header as text ---- */

static size_t header_size(const bytes *f) {
  uint64_t n = 0;
  if (f->size < 8) return 0;
  memcpy(&n, f->data, 8);
  return n > f->size - 8 ? f->size - 8 : (size_t)n;
}

static void set_length(bytes *f, uint64_t n) {
  if (f->size >= 8) memcpy(f->data, &n, 8);
}

/* Put `with` (n bytes) in place of the `gone` bytes at `at`. */
static void replace(bytes *f, size_t at, size_t gone, const void *with, size_t n) {
  if (at > f->size || gone > f->size - at || f->size - gone + n > FILE_MAX) return;
  memmove(f->data + at + n, f->data + at + gone, f->size - at - gone);
  memcpy(f->data + at, with, n);
  f->size = f->size - gone + n;
}

/* The same inside the header, whose length follows (mostly). */
static void edit(bytes *f, uint64_t *state, size_t at, size_t gone, const void *with, size_t n) {
  const size_t header = header_size(f);
  if (at + gone > header || f->size - gone + n > FILE_MAX) return;
  replace(f, 8 + at, gone, with, n);
  if (below(state, 16) != 0) set_length(f, header - gone + n);
}

static bool is_number(unsigned char c) { return (c >= '0' && c <= '9') || c == '-'; }

/* A number in the header, picked by chance: its place and length; length 0: there is none. */
static size_t find_number(const bytes *f, uint64_t *state, size_t *length) {
  const unsigned char *text = f->data + 8;
  const size_t n = header_size(f), start = below(state, n);
  *length = 0;
  for (size_t i = 0; i < n; i++) {
    size_t at = (start + i) % n;
    if (!is_number(text[at])) continue;
    while (at > 0 && is_number(text[at - 1])) at--;
    while (at + *length < n && is_number(text[at + *length])) ++*length;
    return at;
  }
  return 0;
}

static size_t find_quoted(const bytes *f, uint64_t *state, size_t *length) {
  const unsigned char *text = f->data + 8;
  const size_t n = header_size(f), start = below(state, n);
  *length = 0;
  for (size_t i = 0; i < n; i++) {
    const size_t at = (start + i) % n;
    if (text[at] != '"') continue;
    const unsigned char *end = memchr(text + at + 1, '"', n - at - 1);
    if (!end) continue;
    *length = (size_t)(end - (text + at)) + 1;
    return at;
  }
  return 0;
}

/* ---- what is done to it ---- */

static const char *const numbers[] = {"0",
                                      "1",
                                      "2",
                                      "3",
                                      "4",
                                      "7",
                                      "8",
                                      "9",
                                      "16",
                                      "255",
                                      "256",
                                      "65535",
                                      "65536",
                                      "-1",
                                      "-0",
                                      "01",
                                      "1.5",
                                      "1.0",
                                      "1e2",
                                      "1E400",
                                      "2147483647",
                                      "2147483648",
                                      "4294967295",
                                      "4294967296",
                                      "4611686018427387904",
                                      "9223372036854775807",
                                      "9223372036854775808",
                                      "18446744073709551615",
                                      "18446744073709551616",
                                      "99999999999999999999999999999999",
                                      "null",
                                      "true",
                                      "\"4\"",
                                      "[]"};
static const char *const words[] = {
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    " ",
    "\n",
    "\t",
    "\\",
    "\\u0000",
    "\\ud800",
    "\\u00e9",
    "\xc3\xa9",
    "\xff",
    "\xc0\x80",
    "\xed\xa0\x80",
    "\xf4\x90\x80\x80",
    "\xef\xbb\xbf",
    "null",
    "\"__metadata__\"",
    "\"__metadata__\":{},",
    "\"__metadata__\":{\"a\":1},",
    "\"dtype\":\"F32\",",
    "\"shape\":[],",
    "\"shape\":[0],",
    "\"data_offsets\":[0,0],",
    "\"extra\":0,",
    "\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
    "\"i\":{\"dtype\":\"I64\",\"shape\":[0,4611686018427387904],\"data_offsets\":[0,0]},",
    "\"h\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]},"};
static const char *const dtypes[] = {"\"F32\"",  "\"BF16\"",    "\"F16\"",     "\"I32\"",
                                     "\"U16\"",  "\"U8\"",      "\"F64\"",     "\"I64\"",
                                     "\"BOOL\"", "\"F8_E4M3\"", "\"F6_E2M3\"", "\"F4\"",
                                     "\"C64\"",  "\"f32\"",     "\"\"",        "\"F128\""};
#define PICK(list, state) list[below(state, sizeof list / sizeof *list)]

static void change_length(bytes *f, uint64_t *state) {
  const uint64_t now = header_size(f);
  const uint64_t values[] = {0,           1,          2,        7,          f->size,
                             f->size - 8, now + 1,    now - 1,  now + 8,    now - 8,
                             100000000,   100000001,  1u << 31, UINT64_MAX, (uint64_t)1 << 63,
                             f->size - 7, draw(state)};
  set_length(f, PICK(values, state));
}

static void change_number(bytes *f, uint64_t *state) {
  size_t length = 0;
  char near[32];
  const size_t at = find_number(f, state, &length);
  const char *with = PICK(numbers, state);
  if (length == 0) return;
  if (length < 18 && below(state, 2)) { /* a neighbour, a multiple or a part of what is there */
    long long value = 0;
    static const int by[] = {-8, -4, -2, -1, 1, 2, 4, 8};
    (void)snprintf(near, sizeof near, "%.*s", (int)length, (const char *)f->data + 8 + at);
    (void)sscanf(near, "%lld", &value);
    value = below(state, 3) ? value + PICK(by, state) : below(state, 2) ? value * 2 : value / 2;
    (void)snprintf(near, sizeof near, "%lld", value);
    with = near;
  }
  edit(f, state, at, length, with, strlen(with));
}

static void swap_numbers(bytes *f, uint64_t *state) {
  size_t n1 = 0, n2 = 0;
  char first[64], second[64];
  const size_t at1 = find_number(f, state, &n1), at2 = find_number(f, state, &n2);
  if (n1 == 0 || n2 == 0 || at1 >= at2 || n1 > sizeof first || n2 > sizeof second) return;
  memcpy(first, f->data + 8 + at1, n1);
  memcpy(second, f->data + 8 + at2, n2);
  edit(f, state, at2, n2, first, n1);
  edit(f, state, at1, n1, second, n2);
}

/* Another name, key or dtype in place of a quoted string: of the same file, or a dtype. */
static void change_quoted(bytes *f, uint64_t *state) {
  size_t n1 = 0, n2 = 0;
  char copy[256];
  const size_t at = find_quoted(f, state, &n1), from = find_quoted(f, state, &n2);
  if (n1 == 0 || n2 > sizeof copy) return;
  if (below(state, 3) == 0) {
    const char *dtype = PICK(dtypes, state);
    edit(f, state, at, n1, dtype, strlen(dtype));
  } else {
    memcpy(copy, f->data + 8 + from, n2);
    edit(f, state, at, n1, copy, n2);
  }
}

/* A piece of this header, or of another file's, once more somewhere. */
static void copy_piece(bytes *f, const bytes *from, uint64_t *state) {
  unsigned char piece[512];
  const size_t n = header_size(from), at = below(state, n);
  size_t length = 1 + below(state, n - at < sizeof piece ? n - at : sizeof piece);
  if (n == 0 || at + length > n) return;
  memcpy(piece, from->data + 8 + at, length);
  edit(f, state, below(state, header_size(f)), 0, piece, length);
}

/* An entry of its own, between two others: mostly a valid file with one tensor more. */
static void add_entry(bytes *f, uint64_t *state) {
  char text[128];
  const size_t data = f->size - 8 - header_size(f), n = below(state, 64);
  if (header_size(f) < 2 || f->size < 8 || f->size + n > FILE_MAX) return;
  const int length = snprintf(
      text, sizeof text, "\"n%zu\":{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]},",
      below(state, 4), n, data, data + n);
  edit(f, state, 1, 0, text, (size_t)length);
  if (f->size + n > FILE_MAX) return;
  memset(f->data + f->size, (int)below(state, 256), n);
  f->size += n;
}

static void nest(bytes *f, uint64_t *state) {
  char deep[4096];
  static const char open[] = "[{";
  const size_t n = below(state, 8) ? below(state, 64) : below(state, sizeof deep);
  memset(deep, open[below(state, 2)], sizeof deep);
  edit(f, state, below(state, header_size(f)), 0, deep, n);
}

void mutate(bytes *f, const bytes *other, uint64_t *state) {
  const size_t header = header_size(f);
  const char *word = PICK(words, state);
  unsigned char any = (unsigned char)draw(state);
  switch (below(state, 16)) {
    case 0: /* a bit, anywhere */
      if (f->size) f->data[below(state, f->size)] ^= (unsigned char)(1u << below(state, 8));
      break;
    case 1: /* a byte, in the header */
      if (header) f->data[8 + below(state, header)] = any;
      break;
    case 2:
      change_length(f, state);
      break;
    case 3: /* cut short */
      f->size = below(state, 4) ? f->size - below(state, f->size < 9 ? f->size : 9)
                                : below(state, f->size + 1);
      break;
    case 4: /* something behind the end */
      replace(f, f->size, 0, &any, 1);
      break;
    case 5: /* a piece of the header gone */
      if (header) {
        const size_t at = below(state, header), most = below(state, 4) ? 8 : header;
        const size_t n = below(state, most);
        edit(f, state, at, n < header - at ? n : header - at, "", 0);
      }
      break;
    case 6:
    case 7:
    case 8:
      change_number(f, state);
      break;
    case 9:
      swap_numbers(f, state);
      break;
    case 10:
      change_quoted(f, state);
      break;
    case 11:
      copy_piece(f, below(state, 2) ? f : other, state);
      break;
    case 12: /* a word of the format, somewhere or as the first key */
      edit(f, state, below(state, 2) ? below(state, header) : 1, 0, word, strlen(word));
      break;
    case 13:
      add_entry(f, state);
      break;
    case 14:
      nest(f, state);
      break;
    default: /* padding: stays valid */
      edit(f, state, header, 0, "        ", 1 + below(state, 8));
  }
}
