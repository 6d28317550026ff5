/* out = x + scale sigmoid(gate) y, one gate a row of the last dim;
 * with s = sigmoid(gate): grad_y = scale s grad, grad_gate = scale s (1 - s) sum(grad y). */
#include "cpu/kernel.h"
#include "math/functions.h"

typedef struct gate_args {
  char *out, *grad_gate; /* grad_gate NULL: forward */
  const char *x, *gate, *y;
  int out_dtype, grad_gate_dtype, x_dtype, gate_dtype, y_dtype;
  int64_t out_size, x_size, y_size; /* bytes an element */
  int64_t columns;
  float scale;
} gate_args;

/* Forward: x is what is added to. Backward: x is grad_out, out is grad_y. */
static void gate_row(const gate_args *a, int64_t row) {
  const int64_t c = a->columns, x_size = a->x_size, y_size = a->y_size, out_size = a->out_size;
  float in_x[LM__CHUNK], in_y[LM__CHUNK], result[LM__CHUNK], gate = 0;
  double sum = 0;
  lm__load(&gate, a->gate + row * lm_dtype_size(a->gate_dtype), a->gate_dtype, 1, 1);
  const float s = lm_sigmoidf(gate), factor = a->scale * s;
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *x = lm__as_f32(in_x, a->x + (row * c + at) * x_size, a->x_dtype, 1, n);
    const float *y = lm__as_f32(in_y, a->y + (row * c + at) * y_size, a->y_dtype, 1, n);
    char *p = a->out + (row * c + at) * out_size;
    float *z = a->out_dtype == LM_F32 ? (float *)(void *)p : result;
    if (a->grad_gate) {
      float part = 0;
      _Pragma("omp simd reduction(+:part)") for (int64_t i = 0; i < n; i++) part += x[i] * y[i];
      sum += part;
      LM_SIMD
      for (int64_t i = 0; i < n; i++) z[i] = factor * x[i];
    } else {
      LM_SIMD
      for (int64_t i = 0; i < n; i++) z[i] = x[i] + factor * y[i];
    }
    if (z == result) lm__store(p, result, a->out_dtype, 1, n);
  }
  if (!a->grad_gate) return;
  const float grad = factor * (1.0f - s) * (float)sum;
  lm__store(a->grad_gate + row * lm_dtype_size(a->grad_gate_dtype), &grad, a->grad_gate_dtype, 1,
            1);
}

static void range_gate(int64_t begin, int64_t end, void *arg) {
  for (int64_t row = begin; row < end; row++) gate_row(arg, row);
}

int LM_KERNEL(gated_add)(lm_tensor *out, const lm_tensor *x, const lm_tensor *gate,
                         const lm_tensor *y, float scale) {
  gate_args a = {.out = lm__data(out),
                 .x = lm__data(x),
                 .gate = lm__data(gate),
                 .y = lm__data(y),
                 .out_dtype = out->dtype,
                 .x_dtype = x->dtype,
                 .gate_dtype = gate->dtype,
                 .y_dtype = y->dtype,
                 .out_size = lm_dtype_size(out->dtype),
                 .x_size = lm_dtype_size(x->dtype),
                 .y_size = lm_dtype_size(y->dtype),
                 .columns = y->shape[y->ndim - 1],
                 .scale = scale};
  lm__parallel_for(lm__numel(gate), LM__GRAIN / (a.columns + 1) + 1, range_gate, &a);
  return LM_OK;
}

int LM_KERNEL(gated_add_backward)(lm_tensor *grad_gate, lm_tensor *grad_y,
                                  const lm_tensor *grad_out, const lm_tensor *gate,
                                  const lm_tensor *y, float scale) {
  gate_args a = {.out = lm__data(grad_y),
                 .grad_gate = lm__data(grad_gate),
                 .x = lm__data(grad_out),
                 .gate = lm__data(gate),
                 .y = lm__data(y),
                 .out_dtype = grad_y->dtype,
                 .grad_gate_dtype = grad_gate->dtype,
                 .x_dtype = grad_out->dtype,
                 .gate_dtype = gate->dtype,
                 .y_dtype = y->dtype,
                 .out_size = lm_dtype_size(grad_y->dtype),
                 .x_size = lm_dtype_size(grad_out->dtype),
                 .y_size = lm_dtype_size(y->dtype),
                 .columns = y->shape[y->ndim - 1],
                 .scale = scale};
  lm__parallel_for(lm__numel(gate), LM__GRAIN / (a.columns + 1) + 1, range_gate, &a);
  return LM_OK;
}
