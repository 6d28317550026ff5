#include <stddef.h>
#include <string.h>

#include "io/safetensors.h"
#include "lumuon.h"

static const lm__st_dtype dtypes[] = {
    {"F32", 32, LM_F32},    {"BF16", 16, LM_BF16},  {"F16", 16, LM_F16}, {"I32", 32, LM_I32},
    {"U16", 16, LM_U16},    {"U8", 8, LM_U8},       {"F64", 64, -1},     {"I64", 64, -1},
    {"U64", 64, -1},        {"U32", 32, -1},        {"I16", 16, -1},     {"I8", 8, -1},
    {"BOOL", 8, -1},        {"C64", 64, -1},        {"F8_E4M3", 8, -1},  {"F8_E5M2", 8, -1},
    {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1}, {"F8_E8M0", 8, -1},  {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},     {"F4", 4, -1},
};
enum { COUNT = sizeof dtypes / sizeof dtypes[0] };

const lm__st_dtype *lm__st_dtype_named(const char *name) {
  for (int i = 0; i < COUNT; i++)
    if (strcmp(dtypes[i].name, name) == 0) return &dtypes[i];
  return NULL;
}

const char *lm__st_dtype_name(int dtype) {
  for (int i = 0; i < COUNT; i++)
    if (dtypes[i].dtype == dtype && dtype >= 0) return dtypes[i].name;
  return NULL;
}
