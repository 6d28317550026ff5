/* Singular values by one-sided Jacobi (Hestenes 1958), in f64.
 *
 * The shorter side's vectors w_0 .. w_(n-1) (rows of a wide matrix, columns of a tall one) are
 * turned in pairs until all are orthogonal; their lengths are the singular values. For a pair with
 *   alpha = |w_p|^2, beta = |w_q|^2, gamma = w_p . w_q
 * the angle that makes it orthogonal has
 *   zeta = (beta - alpha) / (2 gamma),  t = sign(zeta) / (|zeta| + sqrt(1 + zeta^2)).
 * Vectors are dealt into blocks. A sweep meets every pair of blocks once, in rounds of disjoint
 * pairs (a round-robin tournament), which can be turned at the same time. Before that the matrix is
 * reduced to its triangular factor R by Householder reflections, which keep the singular values;
 * the rows of R are short and so much nearer to orthogonal that half as many sweeps do.
 */
#include <math.h>
#include <stdlib.h>

#include "cpu/kernel.h"

/* Pairs this near to orthogonal change a singular value by the square of it: nothing in f64.
 * Vectors this short beside the largest are rounding errors of a matrix without full rank. */
static const double TOLERANCE = 1e-10, NEGLIGIBLE = 1e-16;
enum { MOST_SWEEPS = 60 }; /* about 7 are needed */

/* Vectors of a block, so that two lie in a core's cache; elements a thread should have to turn, as
 * a round ends with a barrier. */
enum { BLOCK = 16, ROUND_GRAIN = 1 << 16 };

typedef struct jacobi {
  double *w; /* n vectors of `length`, `pitch` apart */
  int64_t n, length, pitch;
  int64_t round;
  int64_t first;   /* of a reflection: its own vector */
  double shortest; /* squared length below which a vector is negligible */
  int turned;
} jacobi;

static double dot(const double *restrict x, const double *restrict y, int64_t n) {
  double s = 0;
  _Pragma("omp simd reduction(+:s)") for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
  return s;
}

/* Make w_p and w_q orthogonal; false if they were. */
static bool turn(double *restrict x, double *restrict y, int64_t n, double shortest) {
  const double alpha = dot(x, x, n), beta = dot(y, y, n), gamma = dot(x, y, n);
  if (alpha <= shortest || beta <= shortest) return false;
  if (fabs(gamma) <= TOLERANCE * sqrt(alpha) * sqrt(beta)) return false;
  const double zeta = (beta - alpha) / (2 * gamma);
  const double t = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
  const double c = 1 / sqrt(1 + t * t), s = c * t;
  LM_SIMD
  for (int64_t i = 0; i < n; i++) {
    const double a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
  return true;
}

/* Turn every pair of a vector of block p and one of block q, or of two of block p if q is p. */
static void turn_blocks(jacobi *j, int64_t p, int64_t q) {
  const int64_t end_p = (p + 1) * BLOCK < j->n ? (p + 1) * BLOCK : j->n;
  const int64_t end_q = (q + 1) * BLOCK < j->n ? (q + 1) * BLOCK : j->n;
  for (int64_t a = p * BLOCK; a < end_p; a++)
    for (int64_t b = p == q ? a + 1 : q * BLOCK; b < end_q; b++)
      if (turn(j->w + a * j->pitch, j->w + b * j->pitch, j->length, j->shortest))
        __atomic_store_n(&j->turned, 1, __ATOMIC_RELAXED);
}

/* Pairs of blocks begin..end-1 of a round: block 0 stays, the others move on one seat a round. In
 * the first round the blocks are also orthogonalised in themselves. */
static void range_pairs(int64_t begin, int64_t end, void *arg) {
  jacobi *j = arg;
  const int64_t blocks = (j->n + BLOCK - 1) / BLOCK;
  const int64_t players = blocks + blocks % 2, others = players - 1;
  for (int64_t i = begin; i < end; i++) {
    const int64_t p = i == 0 ? 0 : 1 + (i - 1 + j->round) % others;
    const int64_t q = 1 + (players - 2 - i + j->round) % others;
    if (j->round == 0 && p < blocks) turn_blocks(j, p, p);
    if (j->round == 0 && q < blocks) turn_blocks(j, q, q);
    if (p < blocks && q < blocks) turn_blocks(j, p, q); /* of an odd number one rests */
  }
}

/* Reflect vectors begin..end-1 of those behind `first` by first's reflector, kept in it. */
static void range_reflect(int64_t begin, int64_t end, void *arg) {
  const jacobi *j = arg;
  const double *v = j->w + j->first * j->pitch + j->first;
  const int64_t n = j->length - j->first;
  for (int64_t i = begin; i < end; i++) {
    double *x = j->w + (j->first + 1 + i) * j->pitch + j->first;
    const double scale = 2 * dot(v, x, n);
    LM_SIMD
    for (int64_t k = 0; k < n; k++) x[k] -= scale * v[k];
  }
}

/* Put the rows of the triangular factor in place of the vectors. */
static int triangulate(jacobi *j) {
  for (j->first = 0; j->first < j->n; j->first++) {
    double *x = j->w + j->first * j->pitch + j->first;
    const int64_t n = j->length - j->first;
    const double length = sqrt(dot(x, x, n));
    const double diagonal = x[0] > 0 ? -length : length;
    if (lm_interrupted()) return lm__fail(LM_EINTERRUPT, "singular_values: interrupted");
    if (length == 0) continue;
    x[0] -= diagonal;
    const double scale = 1 / sqrt(dot(x, x, n));
    for (int64_t k = 0; k < n; k++) x[k] *= scale;
    lm__parallel_for(j->n - 1 - j->first, ROUND_GRAIN / n + 1, range_reflect, j);
    memset(x, 0, (size_t)n * sizeof *x);
    x[0] = diagonal;
  }
  j->length = j->n;
  for (int64_t p = 0; p < j->n; p++)
    for (int64_t q = 0; q < p; q++) {
      double *lower = j->w + q * j->pitch + p, *upper = j->w + p * j->pitch + q;
      const double kept = *upper;
      *upper = *lower;
      *lower = kept;
    }
  return LM_OK;
}

static int falling(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* The n singular values in falling order, to sigma. */
static int decompose(jacobi *j, double *sigma) {
  LM__TRY(triangulate(j));
  const int64_t blocks = (j->n + BLOCK - 1) / BLOCK;
  double largest = 0;
  for (int64_t i = 0; i < j->n; i++)
    largest = fmax(largest, dot(j->w + i * j->pitch, j->w + i * j->pitch, j->length));
  j->shortest = largest * NEGLIGIBLE * NEGLIGIBLE;
  j->turned = 1;
  for (int sweep = 0; sweep < MOST_SWEEPS && j->turned; sweep++) {
    j->turned = 0;
    for (j->round = 0; j->round < blocks + blocks % 2 - 1; j->round++) {
      if (lm_interrupted()) return lm__fail(LM_EINTERRUPT, "singular_values: interrupted");
      lm__parallel_for((blocks + 1) / 2, ROUND_GRAIN / (BLOCK * BLOCK * j->length) + 1, range_pairs,
                       j);
    }
  }
  for (int64_t i = 0; i < j->n; i++)
    sigma[i] = sqrt(dot(j->w + i * j->pitch, j->w + i * j->pitch, j->length));
  qsort(sigma, (size_t)j->n, sizeof *sigma, falling);
  return LM_OK;
}

/* n vectors of `length` elements at p as f64. */
static void gather(double *w, const char *p, int dtype, int64_t n, int64_t length,
                   int64_t vector_stride, int64_t stride) {
  float buffer[LM__CHUNK];
  const int size = lm_dtype_size(dtype);
  for (int64_t i = 0; i < n; i++)
    for (int64_t at = 0; at < length; at += LM__CHUNK) {
      const int64_t m = length - at < LM__CHUNK ? length - at : LM__CHUNK;
      lm__load(buffer, p + (i * vector_stride + at * stride) * size, dtype, stride, m);
      for (int64_t k = 0; k < m; k++) w[i * length + at + k] = (double)buffer[k];
    }
}

int LM_KERNEL(singular_values)(lm_tensor *out, const lm_tensor *a) {
  const int d = a->ndim - 2;
  const bool wide = a->shape[d] < a->shape[d + 1];
  const int64_t n = a->shape[wide ? d : d + 1], length = a->shape[wide ? d + 1 : d];
  const int64_t count = lm__numel(out);
  lm__storage *scratch = NULL;
  int status = LM_OK;
  if (count == 0) return LM_OK;
  LM__TRY(lm__storage_new(&scratch, (size_t)(n * length + n) * sizeof(double), LM_CPU));
  for (int64_t matrix = 0; matrix < count / n && status == LM_OK; matrix++) {
    jacobi j = {.w = scratch->data, .n = n, .length = length, .pitch = length};
    double *sigma = j.w + n * length;
    int64_t rest = matrix, from = 0, to = 0;
    for (int e = d - 1; e >= 0; e--) {
      from += rest % a->shape[e] * a->strides[e];
      to += rest % a->shape[e] * out->strides[e];
      rest /= a->shape[e];
    }
    gather(j.w, (const char *)lm__data(a) + from * lm_dtype_size(a->dtype), a->dtype, n, length,
           a->strides[wide ? d : d + 1], a->strides[wide ? d + 1 : d]);
    status = decompose(&j, sigma);
    float *result = (float *)lm__data(out) + to;
    for (int64_t i = 0; i < n && status == LM_OK; i++)
      result[i * out->strides[d]] = (float)sigma[i];
  }
  lm__storage_release(scratch);
  return status;
}
