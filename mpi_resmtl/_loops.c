/* The loops of loops_in_numpy.py, to the same bits: every sum runs in agent order, one term after the other, and the
   compiler may neither reorder nor contract (setup.py). Arguments are checked: a wrong type or shape raises TypeError
   or ValueError, a place outside an array IndexError. */

#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <numpy/arrayobject.h>

#if FLT_EVAL_METHOD != 0
#error "sums in wider registers than those of double have other bits"
#endif

#define SMALLEST 1e-290
#define EQUAL_WEIGHTS 1e-9
#define TWO_PI 6.283185307179586
/* To a number this large, small ones are added as whole numbers. */
#define ROUNDING 6755399441055744.0
/* Coefficients of fdlibm (Sun Microsystems 1993) for logarithm, sine and cosine. */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define LOG_1 6.666666666666735130e-01
#define LOG_2 3.999999999940941908e-01
#define LOG_3 2.857142874366239149e-01
#define LOG_4 2.222219843214978396e-01
#define LOG_5 1.818357216161805012e-01
#define LOG_6 1.531383769920937332e-01
#define LOG_7 1.479819860511658591e-01
#define SIN_1 -1.66666666666666324348e-01
#define SIN_2 8.33333333332248946124e-03
#define SIN_3 -1.98412698298579493134e-04
#define SIN_4 2.75573137070700676789e-06
#define SIN_5 -2.50507602534068634195e-08
#define SIN_6 1.58969099521155010221e-10
#define COS_1 4.16666666666666019037e-02
#define COS_2 -1.38888888888741095749e-03
#define COS_3 2.48015872894767294178e-05
#define COS_4 -2.75573143513906633035e-07
#define COS_5 2.08757232129817482790e-09
#define COS_6 -1.13596475577881948265e-11

typedef npy_intp place;
typedef unsigned __int128 wide;

/* The data of an array of the wanted type and dimensions, C-contiguous; NULL with an exception if it is not. */
static void *array(PyObject *object, int type, int dimensions, const char *name)
{
    PyArrayObject *found = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_TYPE(found) == type && PyArray_NDIM(found) == dimensions &&
        PyArray_ISCARRAY_RO(found))
        return PyArray_DATA(found);
    PyErr_Format(PyExc_TypeError, "%s must be a C-contiguous array of %s with %d dimensions", name,
                 type == NPY_DOUBLE  ? "float64"
                 : type == NPY_FLOAT ? "float32"
                 : type == NPY_INTP  ? "intp"
                                     : "uint64",
                 dimensions);
    return NULL;
}

/* Likewise of one that is written to. */
static double *writable(PyObject *object, int dimensions, const char *name)
{
    double *data = array(object, NPY_DOUBLE, dimensions, name);
    if (data && !PyArray_ISWRITEABLE((PyArrayObject *)object)) {
        PyErr_Format(PyExc_ValueError, "%s is read-only", name);
        return NULL;
    }
    return data;
}

/* The type of an array of float32 or float64, which may be something else yet. */
static int width_of(PyObject *object)
{
    return PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_FLOAT ? NPY_FLOAT : NPY_DOUBLE;
}

#define FLOATS(object, dimensions) ((const double *)array(object, NPY_DOUBLE, dimensions, #object))
#define WRITABLE(object, dimensions) writable(object, dimensions, #object)
#define PLACES(object) ((const place *)array(object, NPY_INTP, 1, #object))
#define SIZE(object, axis) PyArray_DIM((PyArrayObject *)(object), axis)

static int arguments(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
    return 0;
}

static PyObject *fail(PyObject *result, PyObject *exception, const char *message)
{
    Py_XDECREF(result);
    PyErr_SetString(exception, message);
    return NULL;
}

static PyObject *new_array(int dimensions, place rows, place columns)
{
    place shape[2] = {rows, columns};
    return PyArray_SimpleNew(dimensions, shape, NPY_DOUBLE);
}

/* The edge after neighbourhood k of n. */
static inline place end_of(const place *start, place k, place n, place edges)
{
    return k + 1 < n ? start[k + 1] : edges;
}

/* Whether n neighbourhoods follow one another and take in all edges. */
static int cover(const place *start, place n, place edges)
{
    if (n == 0 || start[0] != 0)
        return n == 0 && edges == 0;
    for (place k = 0; k < n; k++)
        if (end_of(start, k, n, edges) < start[k])
            return 0;
    return 1;
}

static const char *const OUTSIDE = "a place is outside its array";
static const char *const UNEQUAL = "lengths do not agree";

/* philox(key, counter, counters) */
static PyObject *philox(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 3))
        return NULL;
    PyObject *key = given[0];
    const npy_uint64 *k = array(key, NPY_UINT64, 1, "key");
    if (!k)
        return NULL;
    npy_uint64 first = PyLong_AsUnsignedLongLong(given[1]);
    place counters = PyErr_Occurred() ? -1 : PyLong_AsSsize_t(given[2]), size = 4 * counters;
    if (PyErr_Occurred())
        return NULL;
    if (SIZE(key, 0) != 2 || counters < 0)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *words = PyArray_SimpleNew(1, &size, NPY_UINT64);
    if (!words)
        return NULL;
    npy_uint64 *to = PyArray_DATA((PyArrayObject *)words);
    for (place i = 0; i < counters; i++) {
        npy_uint64 a = first + 1 + (npy_uint64)i, b = 0, c = 0, d = 0, k0 = k[0], k1 = k[1];
        for (int round = 0; round < 10; round++) {
            wide one = (wide)0xD2E7470EE14C6C93u * a, other = (wide)0xCA5A826395121157u * c;
            a = (npy_uint64)(other >> 64) ^ b ^ k0;
            b = (npy_uint64)other;
            c = (npy_uint64)(one >> 64) ^ d ^ k1;
            d = (npy_uint64)one;
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        *to++ = a;
        *to++ = b;
        *to++ = c;
        *to++ = d;
    }
    return words;
}

/* The same bits from wider registers, where the processor has them: there is no other difference between the clones. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EACH_PROCESSOR
#endif

static inline npy_uint64 bits_of(double value)
{
    npy_uint64 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double from_bits(npy_uint64 bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define ONE_BITS 0x3FF0000000000000u

/* The 53 upper bits of a word as a number in [0, 1): 52 of them behind a one, and the last where it is set. */
static inline double fraction(npy_uint64 word)
{
    return (from_bits(word >> 12 | ONE_BITS) - 1.0) + from_bits(-(word >> 11 & 1) & 0x3CA0000000000000u);
}

/* sqrt(-2 log(1 - u)) of each word's u */
FOR_EACH_PROCESSOR static void radii(double *restrict radius, const npy_uint64 *restrict word, place size)
{
    for (place i = 0; i < size; i++) {
        npy_uint64 bits = bits_of(1.0 - fraction(word[i])), mantissa = bits & 0xFFFFFFFFFFFFFu;
        npy_uint64 above = (mantissa + 0x95F6400000000u) & (npy_uint64)1 << 52;
        double f = from_bits(mantissa | (above ^ ONE_BITS)) - 1.0;
        double k = from_bits((bits >> 52) + (above >> 52) + 0x4330000000000000u) - 4503599627371519.0;
        double s = f / (2.0 + f), z = s * s, w = z * z, half = 0.5 * f * f;
        double even = w * (LOG_2 + w * (LOG_4 + w * LOG_6));
        double odd = z * (LOG_1 + w * (LOG_3 + w * (LOG_5 + w * LOG_7)));
        double log = k * LN2_HIGH - ((half - (s * (half + (odd + even)) + k * LN2_LOW)) - f);
        radius[i] = sqrt(-2.0 * log);
    }
}

/* Multiply each radius by sine, to `across`, and cosine, in place, of 2 pi times each word's u. */
FOR_EACH_PROCESSOR static void turn(double *restrict along, double *restrict across, const npy_uint64 *restrict word,
                                    place size)
{
    for (place i = 0; i < size; i++) {
        double u = fraction(word[i]), shifted = 4.0 * u + ROUNDING, radius = along[i];
        npy_uint64 quarter = bits_of(shifted), swapped = -(quarter & 1);
        double x = (u - 0.25 * (shifted - ROUNDING)) * TWO_PI, z = x * x;
        double c = COS_1 + z * (COS_2 + z * (COS_3 + z * (COS_4 + z * (COS_5 + z * COS_6))));
        double s = SIN_1 + z * (SIN_2 + z * (SIN_3 + z * (SIN_4 + z * (SIN_5 + z * SIN_6))));
        npy_uint64 cosine = bits_of((1.0 - 0.5 * z) + z * z * c), sine = bits_of(x + x * z * s);
        npy_uint64 differ = (cosine ^ sine) & swapped;
        along[i] = radius * from_bits(cosine ^ differ ^ ((quarter + 1) & 2) << 62);
        across[i] = radius * from_bits(sine ^ differ ^ (quarter & 2) << 62);
    }
}

/* Numbers that are drawn at a time where rows are too short for wide registers. */
#define TOGETHER 256

/* A row's radii are its first `half` words, its turns the others; rows * half <= TOGETHER. */
static void short_rows(double *restrict to, double *restrict work, const npy_uint64 *restrict word, place rows,
                       place half, place used)
{
    double *along = work, *across = work + TOGETHER;
    npy_uint64 *near = (npy_uint64 *)(work + 2 * TOGETHER), *far = near + TOGETHER;
    for (place k = 0, i = 0; k < rows; k++, word += 2 * half)
        for (place j = 0; j < half; j++, i++) {
            near[i] = word[j];
            far[i] = word[half + j];
        }
    radii(along, near, rows * half);
    turn(along, across, far, rows * half);
    for (place k = 0; k < rows; k++, along += half, across += half, to += used) {
        for (place j = 0; j < half; j++)
            to[j] = along[j];
        for (place j = half; j < used; j++)
            to[j] = across[j - half];
    }
}

/* normal(words, used) */
static PyObject *normal(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *words = given[0];
    const npy_uint64 *word = array(words, NPY_UINT64, 2, "words");
    place used = word ? PyLong_AsSsize_t(given[1]) : -1;
    if (PyErr_Occurred())
        return NULL;
    place rows = SIZE(words, 0), half = SIZE(words, 1) / 2;
    if (used < half || used > 2 * half || SIZE(words, 1) % 2)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *drawn = new_array(2, rows, used);
    if (!drawn)
        return NULL;
    double *to = PyArray_DATA((PyArrayObject *)drawn), *work = PyMem_Malloc((half + 4 * TOGETHER) * sizeof(double));
    if (!work) {
        Py_DECREF(drawn);
        return PyErr_NoMemory();
    }
    if (half > TOGETHER / 2)
        for (; rows; rows--, word += 2 * half, to += used) {
            radii(to, word, half);
            turn(to, work, word + half, half);
            memcpy(to + half, work, (used - half) * sizeof(double));
        }
    else if (half)
        for (place some; rows; rows -= some, word += 2 * half * some, to += used * some) {
            some = rows < TOGETHER / half ? rows : TOGETHER / half;
            short_rows(to, work, word, some, half, used);
        }
    PyMem_Free(work);
    return drawn;
}

/* Loops over parameters are compiled twice: for P = 2, and for any P. */
#define BY_PARAMETERS(loop, parameters, ...) \
    ((parameters) == 2 ? loop(__VA_ARGS__, 2) : loop(__VA_ARGS__, parameters))

static inline int gather_rows(double *to, const double *from, place rows, const place *at, place edges, place P)
{
    for (place e = 0; e < edges; e++) {
        if ((size_t)at[e] >= (size_t)rows)
            return 0;
        for (place p = 0; p < P; p++)
            to[e * P + p] = from[at[e] * P + p];
    }
    return 1;
}

/* gather(rows, row) */
static PyObject *gather(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *rows = given[0], *row = given[1];
    const double *from = FLOATS(rows, 2);
    const place *at = from ? PLACES(row) : NULL;
    if (!at)
        return NULL;
    place length = SIZE(rows, 0), parameters = SIZE(rows, 1), edges = SIZE(row, 0);
    PyObject *messages = new_array(2, edges, parameters);
    if (!messages)
        return NULL;
    double *to = PyArray_DATA((PyArrayObject *)messages);
    if (!BY_PARAMETERS(gather_rows, parameters, to, from, length, at, edges))
        return fail(messages, PyExc_IndexError, OUTSIDE);
    return messages;
}

static inline int residuals(double *loss, const double *u, place agents, const place *agent, const place *start,
                            place n, const double *m, place edges, place P)
{
    for (place k = 0; k < n; k++) {
        place a = agent[k], end = end_of(start, k, n, edges);
        if ((size_t)a >= (size_t)agents)
            return 0;
        for (place e = start[k]; e < end; e++) {
            double residual = u[P * agents + a];
            for (place p = 0; p < P; p++)
                residual -= u[p * agents + a] * m[e * P + p];
            loss[e] = residual * residual;
        }
    }
    return 1;
}

/* squared_residuals(signal, agent, start, messages) */
static PyObject *squared_residuals(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 4))
        return NULL;
    PyObject *signal = given[0], *agent = given[1], *start = given[2], *messages = given[3];
    const double *u = FLOATS(signal, 2);
    const place *of = u ? PLACES(agent) : NULL;
    const place *begin = of ? PLACES(start) : NULL;
    const double *m = begin ? FLOATS(messages, 2) : NULL;
    if (!m)
        return NULL;
    place parameters = SIZE(messages, 1), agents = SIZE(signal, 1), edges = SIZE(messages, 0), n = SIZE(agent, 0);
    if (SIZE(start, 0) != n || SIZE(signal, 0) != parameters + 1)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    if (!cover(begin, n, edges))
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    PyObject *losses = new_array(1, edges, 0);
    if (!losses)
        return NULL;
    double *loss = PyArray_DATA((PyArrayObject *)losses);
    if (!BY_PARAMETERS(residuals, parameters, loss, u, agents, of, begin, n, m, edges))
        return fail(losses, PyExc_IndexError, OUTSIDE);
    return losses;
}

static inline int distances(double *squared, const double *anchor, place agents, const place *agent,
                            const place *start, place n, const double *m, place edges, place P)
{
    for (place k = 0; k < n; k++) {
        place a = agent[k], end = end_of(start, k, n, edges);
        if ((size_t)a >= (size_t)agents)
            return 0;
        for (place e = start[k]; e < end; e++) {
            double sum = 0.0;
            for (place p = 0; p < P; p++) {
                double difference = m[e * P + p] - anchor[a * P + p];
                sum += difference * difference;
            }
            squared[e] = sum;
        }
    }
    return 1;
}

/* squared_distances(anchor, agent, start, messages) */
static PyObject *squared_distances(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 4))
        return NULL;
    PyObject *anchor = given[0], *agent = given[1], *start = given[2], *messages = given[3];
    const double *a = FLOATS(anchor, 2);
    const place *of = a ? PLACES(agent) : NULL;
    const place *begin = of ? PLACES(start) : NULL;
    const double *m = begin ? FLOATS(messages, 2) : NULL;
    if (!m)
        return NULL;
    place parameters = SIZE(messages, 1), agents = SIZE(anchor, 0), edges = SIZE(messages, 0), n = SIZE(agent, 0);
    if (SIZE(start, 0) != n || SIZE(anchor, 1) != parameters)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    if (!cover(begin, n, edges))
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    PyObject *squared = new_array(1, edges, 0);
    if (!squared)
        return NULL;
    double *to = PyArray_DATA((PyArrayObject *)squared);
    if (!BY_PARAMETERS(distances, parameters, to, a, agents, of, begin, n, m, edges))
        return fail(squared, PyExc_IndexError, OUTSIDE);
    return squared;
}

/* Flags as wide as the values, so that the loops are vectorised. */
static int finite_doubles(const double *value, place size)
{
    npy_int64 good = -1;
    for (place i = 0; i < size; i++)
        good &= -(npy_int64)(fabs(value[i]) <= DBL_MAX);
    return good != 0;
}

static int finite_singles(const float *value, place size)
{
    npy_int32 good = -1;
    for (place i = 0; i < size; i++)
        good &= -(npy_int32)(fabsf(value[i]) <= FLT_MAX);
    return good != 0;
}

/* all_finite(models) */
static PyObject *all_finite(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 1))
        return NULL;
    PyObject *models = given[0];
    int type = width_of(models);
    const void *value = array(models, type, 2, "models");
    if (!value)
        return NULL;
    place size = PyArray_SIZE((PyArrayObject *)models);
    return PyBool_FromLong(type == NPY_FLOAT ? finite_singles(value, size) : finite_doubles(value, size));
}

/* average_in(held, value, forgetting_factor) */
static PyObject *average_in(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 3))
        return NULL;
    PyObject *held = given[0], *value = given[1];
    double *average = WRITABLE(held, 1);
    const double *v = average ? FLOATS(value, 1) : NULL;
    if (!v)
        return NULL;
    double nu = PyFloat_AsDouble(given[2]);
    if (nu == -1.0 && PyErr_Occurred())
        return NULL;
    place edges = SIZE(held, 0);
    if (SIZE(value, 0) != edges)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    if (!finite_doubles(v, edges))
        Py_RETURN_FALSE;
    double kept = 1.0 - nu;
    for (place e = 0; e < edges; e++)
        average[e] = average[e] * kept + v[e] * nu;
    Py_RETURN_TRUE;
}

/* Divide shares by their sum over each neighbourhood. */
static void divide(double *share, const place *start, place n, place edges)
{
    for (place k = 0; k < n; k++) {
        place end = end_of(start, k, n, edges);
        double total = 0.0;
        for (place e = start[k]; e < end; e++)
            total += share[e];
        for (place e = start[k]; e < end; e++)
            share[e] /= total;
    }
}

/* normalise(share, start) */
static PyObject *normalise(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *share = given[0], *start = given[1];
    const double *from = FLOATS(share, 1);
    const place *begin = from ? PLACES(start) : NULL;
    if (!begin)
        return NULL;
    place edges = SIZE(share, 0), n = SIZE(start, 0);
    if (!cover(begin, n, edges))
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    PyObject *weights = new_array(1, edges, 0);
    if (!weights)
        return NULL;
    double *weight = PyArray_DATA((PyArrayObject *)weights);
    for (place e = 0; e < edges; e++)
        weight[e] = from[e];
    divide(weight, begin, n, edges);
    return weights;
}

/* inverse_weights(held, start, own) */
static PyObject *inverse_weights(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 3))
        return NULL;
    PyObject *held = given[0], *start = given[1], *own = given[2];
    const double *from = FLOATS(held, 1);
    const place *begin = from ? PLACES(start) : NULL;
    const place *oneself = begin && own != Py_None ? PLACES(own) : NULL;
    if (!begin || (!oneself && own != Py_None))
        return NULL;
    place edges = SIZE(held, 0), n = SIZE(start, 0);
    if (oneself && SIZE(own, 0) != n)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    if (!cover(begin, n, edges))
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    PyObject *weights = new_array(1, edges, 0);
    if (!weights)
        return NULL;
    double *weight = PyArray_DATA((PyArrayObject *)weights);
    for (place e = 0; e < edges; e++)
        weight[e] = 1.0 / (from[e] <= SMALLEST ? SMALLEST : from[e]);
    for (place k = 0; oneself && k < n; k++) {
        if ((size_t)oneself[k] >= (size_t)edges)
            return fail(weights, PyExc_IndexError, OUTSIDE);
        double most = from[oneself[k]];
        place end = end_of(begin, k, n, edges);
        for (place e = begin[k]; e < end; e++)
            weight[e] *= from[e] <= most ? 1.0 : 0.0;
    }
    divide(weight, begin, n, edges);
    return weights;
}

/* weighted_sums(weight, messages, start, row, models) */
static PyObject *weighted_sums(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 5))
        return NULL;
    PyObject *weight = given[0], *messages = given[1], *start = given[2], *row = given[3], *models = given[4];
    const double *a = FLOATS(weight, 1);
    const double *m = a ? FLOATS(messages, 2) : NULL;
    const place *begin = m ? PLACES(start) : NULL;
    const place *at = begin ? PLACES(row) : NULL;
    double *model = at ? WRITABLE(models, 2) : NULL;
    if (!model)
        return NULL;
    place parameters = SIZE(messages, 1), edges = SIZE(weight, 0), n = SIZE(row, 0), rows = SIZE(models, 0);
    if (SIZE(messages, 0) != edges || SIZE(start, 0) != n || SIZE(models, 1) != parameters)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    if (!cover(begin, n, edges))
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    for (place k = 0; k < n; k++) {
        place e = begin[k], end = end_of(begin, k, n, edges);
        if ((size_t)at[k] >= (size_t)rows)
            return fail(NULL, PyExc_IndexError, OUTSIDE);
        double *sum = model + at[k] * parameters;
        if (parameters == 2) {
            double x = 0.0, y = 0.0;
            for (; e < end; e++) {
                x += a[e] * m[2 * e];
                y += a[e] * m[2 * e + 1];
            }
            sum[0] = x;
            sum[1] = y;
        } else {
            for (place p = 0; p < parameters; p++)
                sum[p] = 0.0;
            for (; e < end; e++)
                for (place p = 0; p < parameters; p++)
                    sum[p] += a[e] * m[e * parameters + p];
        }
    }
    Py_RETURN_NONE;
}

/* step_towards(point, share, models, moved) */
static PyObject *step_towards(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 4))
        return NULL;
    PyObject *point = given[0], *models = given[2], *moved = given[3];
    const double *goal = FLOATS(point, 2);
    const double *from = goal ? FLOATS(models, 2) : NULL;
    double *to = from ? WRITABLE(moved, 2) : NULL;
    double share = to ? PyFloat_AsDouble(given[1]) : 0.0;
    if (!to || (share == -1.0 && PyErr_Occurred()))
        return NULL;
    for (int axis = 0; axis < 2; axis++)
        if (SIZE(point, axis) != SIZE(models, axis) || SIZE(moved, axis) != SIZE(models, axis))
            return fail(NULL, PyExc_ValueError, UNEQUAL);
    place size = PyArray_SIZE((PyArrayObject *)models);
    for (place i = 0; i < size; i++)
        to[i] = (goal[i] - from[i]) * share + from[i];
    Py_RETURN_NONE;
}

/* own_squared_residuals(signal, models) */
static PyObject *own_squared_residuals(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *signal = given[0], *models = given[1];
    const double *u = FLOATS(signal, 3);
    const double *m = u ? FLOATS(models, 3) : NULL;
    if (!m)
        return NULL;
    place length = SIZE(models, 0), agents = SIZE(models, 1), parameters = SIZE(models, 2);
    if (SIZE(signal, 0) < length || SIZE(signal, 1) != parameters + 1 || SIZE(signal, 2) != agents)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *losses = new_array(2, length, agents);
    if (!losses)
        return NULL;
    double *loss = PyArray_DATA((PyArrayObject *)losses);
    for (place i = 0; i < length; i++, u += (parameters + 1) * agents) {
        const double *y = u + parameters * agents;
        for (place k = 0; k < agents; k++, m += parameters) {
            double residual = y[k];
            for (place p = 0; p < parameters; p++)
                residual -= u[p * agents + k] * m[p];
            *loss++ = residual * residual;
        }
    }
    return losses;
}

/* location_risks(models, target, towards, direction_variance, distance_variance, scalar) */
static PyObject *location_risks(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 6))
        return NULL;
    PyObject *models = given[0], *target = given[1], *towards = given[2];
    PyObject *direction_variance = given[3], *distance_variance = given[4];
    const double *m = FLOATS(models, 3);
    const double *w = m ? FLOATS(target, 2) : NULL;
    const double *e = w ? FLOATS(towards, 2) : NULL;
    const double *u = e ? FLOATS(direction_variance, 1) : NULL;
    const double *d = u ? FLOATS(distance_variance, 1) : NULL;
    int scalar = d ? PyObject_IsTrue(given[5]) : -1;
    if (scalar < 0)
        return NULL;
    place length = SIZE(models, 0), agents = SIZE(models, 1);
    if (SIZE(models, 2) != 2 || SIZE(target, 0) != agents || SIZE(target, 1) != 2 || SIZE(towards, 0) != agents ||
        SIZE(towards, 1) != 2 || SIZE(direction_variance, 0) != agents || SIZE(distance_variance, 0) != agents)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *risks = new_array(2, length, agents);
    if (!risks)
        return NULL;
    double *risk = PyArray_DATA((PyArrayObject *)risks);
    for (place i = 0; i < length; i++)
        for (place k = 0; k < agents; k++, m += 2) {
            double x = w[2 * k] - m[0], y = w[2 * k + 1] - m[1];
            double along = x * e[2 * k] + y * e[2 * k + 1];
            double noisy = scalar ? (x + y) * (x + y) : x * x + y * y;
            *risk++ = along * along + u[k] * noisy + d[k];
        }
    return risks;
}

/* own_squared_distances(models, target) */
static PyObject *own_squared_distances(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *models = given[0], *target = given[1];
    const double *m = FLOATS(models, 3);
    const double *w = m ? FLOATS(target, 2) : NULL;
    if (!w)
        return NULL;
    place length = SIZE(models, 0), agents = SIZE(models, 1), parameters = SIZE(models, 2);
    if (SIZE(target, 0) != agents || SIZE(target, 1) != parameters)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *squared = new_array(2, length, agents);
    if (!squared)
        return NULL;
    double *to = PyArray_DATA((PyArrayObject *)squared);
    for (place i = 0; i < length; i++)
        for (place k = 0; k < agents; k++) {
            double sum = 0.0;
            for (place p = 0; p < parameters; p++) {
                double difference = w[k * parameters + p] - *m++;
                sum += difference * difference;
            }
            *to++ = sum;
        }
    return squared;
}

/* location_samples(direction, distance, position) */
static PyObject *location_samples(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 3))
        return NULL;
    PyObject *direction = given[0], *distance = given[1], *position = given[2];
    const double *u = FLOATS(direction, 3);
    const double *d = u ? FLOATS(distance, 2) : NULL;
    const double *x = d ? FLOATS(position, 2) : NULL;
    if (!x)
        return NULL;
    place length = SIZE(direction, 0), agents = SIZE(direction, 2);
    if (SIZE(direction, 1) != 2 || SIZE(distance, 0) != length || SIZE(distance, 1) != agents ||
        SIZE(position, 0) != agents || SIZE(position, 1) != 2)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    place shape[2][3] = {{length, agents, 2}, {length, 3, agents}};
    PyObject *point = PyArray_SimpleNew(3, shape[0], NPY_DOUBLE);
    PyObject *signal = PyArray_SimpleNew(3, shape[1], NPY_DOUBLE);
    if (!point || !signal) {
        Py_XDECREF(point);
        Py_XDECREF(signal);
        return NULL;
    }
    double *q = PyArray_DATA((PyArrayObject *)point), *s = PyArray_DATA((PyArrayObject *)signal);
    for (place i = 0; i < length; i++, u += 2 * agents, d += agents, q += 2 * agents, s += 3 * agents)
        for (place k = 0; k < agents; k++) {
            double along = u[k], across = u[agents + k], px = x[2 * k], py = x[2 * k + 1];
            q[2 * k] = d[k] * along + px;
            q[2 * k + 1] = d[k] * across + py;
            s[k] = along;
            s[agents + k] = across;
            s[2 * agents + k] = px * along + py * across + d[k];
        }
    return Py_BuildValue("NN", point, signal);
}

#define LANES 32
#define BLOCK 4096

#define SQUARES(name, number)                                                                                       \
    static inline void name##_add(number *restrict lane, const number *restrict a, const number *restrict m)        \
    {                                                                                                               \
        for (int i = 0; i < LANES; i++) {                                                                           \
            number difference = m[i] - a[i];                                                                        \
            lane[i] += difference * difference;                                                                     \
        }                                                                                                           \
    }                                                                                                               \
                                                                                                                    \
    FOR_EACH_PROCESSOR static void name(double *restrict squared, const number *a, const number *m, place n, place P) \
    {                                                                                                               \
        for (place l = 0; l < n; l++, m += P) {                                                                     \
            double sum[LANES] = {0.0}, total = 0.0;                                                                 \
            for (place first = 0; first < P; first += BLOCK) {                                                      \
                place p = first, stop = P - first < BLOCK ? P : first + BLOCK;                                      \
                number lane[LANES] = {0}, last[2][LANES] = {{0}};                                                   \
                for (; p + LANES <= stop; p += LANES)                                                               \
                    name##_add(lane, a + p, m + p);                                                                 \
                memcpy(last[0], a + p, (stop - p) * sizeof(number));                                                \
                memcpy(last[1], m + p, (stop - p) * sizeof(number));                                                \
                name##_add(lane, last[0], last[1]);                                                                 \
                for (int i = 0; i < LANES; i++)                                                                     \
                    sum[i] += lane[i];                                                                              \
            }                                                                                                       \
            for (int i = 0; i < LANES; i++)                                                                         \
                total += sum[i];                                                                                    \
            squared[l] = total;                                                                                     \
        }                                                                                                           \
    }

SQUARES(single_squares, float)
SQUARES(double_squares, double)

/* large_squared_distances(anchor, messages) */
static PyObject *large_squared_distances(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 2))
        return NULL;
    PyObject *anchor = given[0], *messages = given[1];
    int type = width_of(messages);
    const char *m = array(messages, type, 3, "messages");
    const char *a = m ? array(anchor, type, 2, "anchor") : NULL;
    if (!a)
        return NULL;
    place agents = SIZE(messages, 0), n = SIZE(messages, 1), parameters = SIZE(messages, 2);
    if (SIZE(anchor, 0) != agents || SIZE(anchor, 1) != parameters)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *squared = new_array(2, agents, n);
    if (!squared)
        return NULL;
    double *to = PyArray_DATA((PyArrayObject *)squared);
    place row = parameters * PyArray_ITEMSIZE((PyArrayObject *)messages);
    for (place k = 0; k < agents; k++, a += row, m += n * row, to += n)
        if (type == NPY_FLOAT)
            single_squares(to, (const float *)a, (const float *)m, n, parameters);
        else
            double_squares(to, (const double *)a, (const double *)m, n, parameters);
    return squared;
}

/* Coordinates whose values are sorted at a time: in the cache, and a whole number of registers. */
#define COLUMNS 64

/* Of rows `one` and `other`, `low` is to have the lesser values in the former, `high` the greater in the latter. */
struct comparator {
    place one, other;
    int low, high;
};

/* Those that bring what sorts to first .. first + kept - 1 of n there, NULL where memory is short. It is Batcher's merge
   exchange (Knuth, The Art of Computer Programming 3, 5.2.2M) without what nobody reads. */
static struct comparator *selection(place n, place first, place kept, place *length)
{
    place bits = 0, size = 0;
    while ((place)1 << bits < n)
        bits++;
    struct comparator *all = PyMem_Malloc((n * bits * (bits + 1) / 2 + 1) * sizeof *all);
    char *read = PyMem_Calloc(n, 1);
    if (!all || !read) {
        PyMem_Free(all);
        PyMem_Free(read);
        return NULL;
    }
    place power = bits ? (place)1 << (bits - 1) : 0;
    for (place p = power; p > 0; p >>= 1)
        for (place d = p, q = power, r = 0; d > 0; d = q - p, q >>= 1, r = p)
            for (place i = 0; i < n - d; i++)
                if ((i & p) == r)
                    all[size++] = (struct comparator){i, i + d, 0, 0};
    memset(read + first, 1, kept);
    struct comparator *needed = all + size;
    for (struct comparator *c = needed; c-- > all;)
        if (read[c->one] || read[c->other]) {
            *--needed = (struct comparator){c->one, c->other, read[c->one], read[c->other]};
            read[c->one] = read[c->other] = 1;
        }
    *length = all + size - needed;
    memmove(all, needed, *length * sizeof *all);
    PyMem_Free(read);
    return all;
}

#define MIDDLE(name, number)                                                                                        \
    static inline void name##_some(number *restrict sum, number *restrict row, const number *restrict m, place n,   \
                                   place P, const struct comparator *c, place length, place first, place kept,      \
                                   place width)                                                                     \
    {                                                                                                               \
        for (place l = 0; l < n; l++)                                                                               \
            memcpy(row + l * COLUMNS, m + l * P, width * sizeof(number));                                           \
        for (; length; length--, c++) {                                                                             \
            number *restrict one = row + c->one * COLUMNS, *restrict other = row + c->other * COLUMNS;              \
            if (c->low && c->high)                                                                                  \
                for (place i = 0; i < width; i++) {                                                                 \
                    number x = one[i], y = other[i];                                                                \
                    one[i] = x < y ? x : y;                                                                         \
                    other[i] = x > y ? x : y;                                                                       \
                }                                                                                                   \
            else if (c->low)                                                                                        \
                for (place i = 0; i < width; i++)                                                                   \
                    one[i] = one[i] < other[i] ? one[i] : other[i];                                                 \
            else                                                                                                    \
                for (place i = 0; i < width; i++)                                                                   \
                    other[i] = one[i] > other[i] ? one[i] : other[i];                                               \
        }                                                                                                           \
        for (place i = 0; i < width; i++)                                                                           \
            sum[i] = 0;                                                                                             \
        for (row += first * COLUMNS; kept; kept--, row += COLUMNS)                                                  \
            for (place i = 0; i < width; i++)                                                                       \
                sum[i] += row[i];                                                                                   \
    }                                                                                                               \
                                                                                                                    \
    FOR_EACH_PROCESSOR static void name(number *sum, number *row, const number *m, place n, place P,                \
                                        const struct comparator *c, place length, place first, place kept)          \
    {                                                                                                               \
        for (place p = 0; p < P; p += COLUMNS)                                                                      \
            if (P - p >= COLUMNS)                                                                                   \
                name##_some(sum + p, row, m + p, n, P, c, length, first, kept, COLUMNS);                            \
            else                                                                                                    \
                name##_some(sum + p, row, m + p, n, P, c, length, first, kept, P - p);                              \
    }

MIDDLE(single_middle, float)
MIDDLE(double_middle, double)

/* middle_sums(messages, first, kept) */
static PyObject *middle_sums(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 3))
        return NULL;
    PyObject *messages = given[0];
    int type = width_of(messages);
    const void *m = array(messages, type, 2, "messages");
    place first = m ? PyLong_AsSsize_t(given[1]) : -1, kept = PyErr_Occurred() ? -1 : PyLong_AsSsize_t(given[2]);
    if (PyErr_Occurred())
        return NULL;
    place n = SIZE(messages, 0), parameters = SIZE(messages, 1), length;
    if (first < 0 || kept < 0 || first > n || kept > n - first)
        return fail(NULL, PyExc_IndexError, OUTSIDE);
    PyObject *sums = PyArray_SimpleNew(1, &parameters, type);
    struct comparator *comparators = selection(n, first, kept, &length);
    void *row = PyMem_Malloc(n * COLUMNS * PyArray_ITEMSIZE((PyArrayObject *)messages));
    if (sums && comparators && row) {
        void *to = PyArray_DATA((PyArrayObject *)sums);
        if (type == NPY_FLOAT)
            single_middle(to, row, m, n, parameters, comparators, length, first, kept);
        else
            double_middle(to, row, m, n, parameters, comparators, length, first, kept);
    } else {
        Py_CLEAR(sums);
        PyErr_NoMemory();
    }
    PyMem_Free(row);
    PyMem_Free(comparators);
    return sums;
}

/* Distances from the point that the weights mean; `turned` becomes their product with G. */
FOR_EACH_PROCESSOR static void distances_from(double *restrict distance, double *restrict turned,
                                              const double *restrict product, const double *restrict weight, place n,
                                              double floor)
{
    for (place j = 0; j < n; j++)
        turned[j] = 0.0;
    for (place l = 0; l < n; l++)
        for (place j = 0; j < n; j++)
            turned[j] += product[l * n + j] * weight[l];
    double square = 0.0;
    for (place j = 0; j < n; j++)
        square += weight[j] * turned[j];
    for (place j = 0; j < n; j++) {
        double squared = (product[j * n + j] - 2.0 * turned[j]) + square;
        distance[j] = sqrt(squared > floor ? squared : floor);
    }
}

/* weiszfeld(product, weight, floor, least, tolerance, most_steps) */
static PyObject *weiszfeld(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 6))
        return NULL;
    PyObject *product = given[0], *weight = given[1];
    const double *G = FLOATS(product, 2);
    const double *w = G ? FLOATS(weight, 1) : NULL;
    double number[3];
    for (int i = 0; w && i < 3; i++)
        number[i] = PyFloat_AsDouble(given[2 + i]);
    place steps = w && !PyErr_Occurred() ? PyLong_AsSsize_t(given[5]) : 0, n = w ? SIZE(weight, 0) : 0;
    if (PyErr_Occurred())
        return NULL;
    if (SIZE(product, 0) != n || SIZE(product, 1) != n)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    double *work = PyMem_Malloc(4 * n * sizeof(double));
    PyObject *weights = new_array(1, n, 0);
    if (!work || !weights) {
        PyMem_Free(work);
        Py_XDECREF(weights);
        return PyErr_NoMemory();
    }
    double floor = number[0], tolerance = number[2], sum = 0.0;
    double *found = PyArray_DATA((PyArrayObject *)weights);
    double *distance = work, *moved = work + n, *turned = work + 2 * n, *before = work + 3 * n;
    memcpy(found, w, n * sizeof(double));
    distances_from(distance, turned, G, found, n, floor);
    for (place l = 0; l < n; l++)
        sum += distance[l];
    int better = sum < number[1];
    for (; better && steps > 0; steps--) {
        double step = 0.0, *other = before;
        before = turned;
        turned = other;
        sum = 0.0;
        for (place l = 0; l < n; l++) {
            moved[l] = 1.0 / distance[l];
            sum += moved[l];
        }
        for (place l = 0; l < n; l++)
            moved[l] /= sum;
        distances_from(distance, turned, G, moved, n, floor);
        for (place l = 0; l < n; l++) {
            step += (moved[l] - found[l]) * (turned[l] - before[l]);
            found[l] = moved[l];
        }
        if (step <= tolerance * tolerance)
            break;
    }
    PyMem_Free(work);
    if (better)
        return weights;
    Py_DECREF(weights);
    Py_RETURN_NONE;
}

struct pull {
    double distance, weight;
};

/* The farthest first, and of equally far the heaviest. */
static int by_distance(const void *one, const void *other)
{
    const struct pull *x = one, *y = other;
    if (x->distance != y->distance)
        return x->distance < y->distance ? 1 : -1;
    return (x->weight < y->weight) - (x->weight > y->weight);
}

static double clipping_radius(struct pull *pull, place n, double byzantine, int squares)
{
    if (!(byzantine > 0.0))
        return INFINITY;
    double gone = 0.0, farthest = 0.0, sum = 0.0;
    double taken = (squares ? byzantine : 2.0 * byzantine) * (1.0 - EQUAL_WEIGHTS);
    qsort(pull, n, sizeof *pull, by_distance);
    for (place l = 0; l < n; gone += pull[l++].weight) {
        if (!(gone >= taken))
            continue;
        if (farthest == 0.0)
            farthest = squares && pull[l].distance < DBL_MIN ? DBL_MIN : pull[l].distance;
        double part = pull[l].distance / farthest;
        sum += pull[l].weight * part * part;
    }
    return squares ? farthest * sqrt(sum / byzantine) : farthest;
}

/* clipped_weights(distance, metropolis, own, b, squares) */
static PyObject *clipped_weights(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    if (!arguments(count, 5))
        return NULL;
    PyObject *distance = given[0], *metropolis = given[1], *own = given[2], *b = given[3];
    const double *d = FLOATS(distance, 2);
    const double *w = d ? FLOATS(metropolis, 2) : NULL;
    const place *oneself = w ? PLACES(own) : NULL;
    const place *most = oneself ? PLACES(b) : NULL;
    int squares = most ? PyObject_IsTrue(given[4]) : -1;
    if (squares < 0)
        return NULL;
    place agents = SIZE(distance, 0), n = SIZE(distance, 1);
    if (SIZE(metropolis, 0) != agents || SIZE(metropolis, 1) != n || SIZE(own, 0) != agents || SIZE(b, 0) != agents)
        return fail(NULL, PyExc_ValueError, UNEQUAL);
    PyObject *weights = new_array(2, agents, n);
    struct pull *pull = PyMem_Malloc(n * sizeof *pull);
    if (!weights || !pull) {
        Py_XDECREF(weights);
        PyMem_Free(pull);
        return PyErr_NoMemory();
    }
    double *weight = PyArray_DATA((PyArrayObject *)weights);
    for (place k = 0; k < agents; k++, d += n, w += n, weight += n) {
        if ((size_t)oneself[k] >= (size_t)n || most[k] > n) {
            PyMem_Free(pull);
            return fail(weights, PyExc_IndexError, OUTSIDE);
        }
        double byzantine = 0.0, radius, sum = 0.0;
        for (place l = 0; l < n; l++)
            pull[l] = (struct pull){0.0, l == oneself[k] ? 0.0 : w[l]};
        qsort(pull, n, sizeof *pull, by_distance);
        for (place l = 0; l < most[k]; l++)
            byzantine += pull[l].weight;
        for (place l = 0; l < n; l++)
            pull[l] = (struct pull){d[l], w[l]};
        radius = clipping_radius(pull, n, byzantine, squares);
        for (place l = 0; l < n; l++) {
            weight[l] = l == oneself[k] ? 0.0 : w[l] * (d[l] > radius ? radius / d[l] : 1.0);
            sum += weight[l];
        }
        weight[oneself[k]] = 1.0 - sum > 0.0 ? 1.0 - sum : 0.0;
    }
    PyMem_Free(pull);
    return weights;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef METHODS[] = {
    METHOD(philox), METHOD(normal), METHOD(all_finite), METHOD(gather),    METHOD(squared_residuals), METHOD(squared_distances),
    METHOD(average_in), METHOD(normalise), METHOD(inverse_weights),   METHOD(weighted_sums),
    METHOD(step_towards), METHOD(own_squared_residuals), METHOD(own_squared_distances), METHOD(location_risks),
    METHOD(location_samples), METHOD(large_squared_distances), METHOD(middle_sums), METHOD(weiszfeld),
    METHOD(clipped_weights), {NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_loops", NULL, -1, METHODS};

PyMODINIT_FUNC PyInit__loops(void)
{
    import_array();
    return PyModule_Create(&MODULE);
}
