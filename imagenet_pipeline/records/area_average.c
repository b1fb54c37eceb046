/* Shrink RGB pixels by averaging over areas: cv2.resize's INTER_AREA, bit for bit, in about a third of its time.

OpenCV takes one channel of one pixel at a time. Here a pixel is a vector, four rows go together, and each number comes
of the same products in the same order, in float32 without fused multiplications; so what it gives is what OpenCV (4.11
to 5.0, modules/imgproc/src/resize.cpp, ResizeArea_Invoker) gives on x86-64, and no pixel depends on whether this was
compiled. Shrinking by whole factors is another sum there, and is left to OpenCV.
*/
#define PY_SSIZE_T_CLEAN
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || !defined(__x86_64__)
#error "written for vectors as GCC and Clang have them, and compared with OpenCV on x86-64 alone"
#endif

#define CHANNELS 3
#define ROWS 4
#define LONGEST_SIDE (1 << 20)
/* float32 has no halves from here on: adding it rounds to the nearest whole number, ties to even. */
#define ROUNDS 12582912.f

/* A loop by itself: in the midst of others GCC 12 forgets that its arrays do not overlap, and takes them one by one. */
#define LOOP __attribute__((noinline)) void

typedef float pixel __attribute__((vector_size(16)));

/* A source pixel of an output pixel, along one axis. */
struct tap {
    Py_ssize_t source;
    float weight;
};

struct axis {
    Py_ssize_t source, size;
    double begin, scale; /* where output begins, and source pixels of an output pixel */
    struct tap *taps;
    Py_ssize_t *from; /* [size + 1]: those of output i are taps[from[i]] up to taps[from[i + 1]] */
};

/* A box in parts of pixels; of no size: the whole image. */
struct part {
    double left, top, width, height;
};

struct room {
    float *lines, *sums, *total; /* [ROWS][line], [ROWS][row], [row] */
    size_t line, row;
};

static void put(struct axis *axis, Py_ssize_t *at, Py_ssize_t source, double weight)
{
    axis->taps[*at].source = source;
    axis->taps[(*at)++].weight = (float)weight;
}

/* As OpenCV's computeResizeAreaTab, to the rounding. At most source + 2 size taps. */
static void weigh(struct axis *axis)
{
    double scale = axis->scale;
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; i < axis->size; i++) {
        double start = axis->begin + (double)i * scale, stop = start + scale, width = fmin(scale, (double)axis->source - start);
        Py_ssize_t first = (Py_ssize_t)ceil(start), last = (Py_ssize_t)floor(stop);
        if (last > axis->source - 1)
            last = axis->source - 1;
        if (first > last)
            first = last;
        axis->from[i] = at;
        if ((double)first - start > 1e-3)
            put(axis, &at, first - 1, ((double)first - start) / width);
        for (Py_ssize_t source = first; source < last; source++)
            put(axis, &at, source, 1.0 / width);
        if (stop - (double)last > 1e-3)
            put(axis, &at, last, fmin(fmin(stop - (double)last, 1.0), width) / width);
    }
    axis->from[axis->size] = at;
}

static LOOP widen(const unsigned char *restrict row, Py_ssize_t count, float *restrict line)
{
    for (Py_ssize_t i = 0; i < count; i++)
        line[i] = row[i];
}

/* Average ROWS source rows along x, fewer at the lower edge. */
static LOOP average_rows(const struct axis *across, const struct room *room, const unsigned char *row,
                         Py_ssize_t stride, Py_ssize_t count)
{
    for (Py_ssize_t r = 0; r < count; r++, row += stride)
        widen(row, CHANNELS * across->source, room->lines + (size_t)r * room->line);
    /* Copies, for what is written could be these as far as the compiler knows. */
    const struct tap *taps = across->taps;
    const float *lines = room->lines;
    const Py_ssize_t *tap_from = across->from, size = across->size;
    size_t line_floats = room->line, row_floats = room->row;
    float *to = room->sums;
    for (Py_ssize_t x = 0; x < size; x++, to += CHANNELS) {
        pixel sums[ROWS] = {{0}}, value;
        for (Py_ssize_t k = tap_from[x], end = tap_from[x + 1]; k < end; k++) {
            const float *from = lines + CHANNELS * taps[k].source;
            for (int r = 0; r < ROWS; r++) {
                memcpy(&value, from + (size_t)r * line_floats, sizeof value);
                sums[r] += value * taps[k].weight;
            }
        }
        /* The fourth number of each is no pixel's, and is written over by the next. */
        for (int r = 0; r < ROWS; r++)
            memcpy(to + (size_t)r * row_floats, &sums[r], sizeof sums[r]);
    }
}

static LOOP multiply(const float *restrict sums, float weight, Py_ssize_t count, float *restrict total)
{
    for (Py_ssize_t i = 0; i < count; i++)
        total[i] = sums[i] * weight;
}

static LOOP multiply_and_add(const float *restrict sums, float weight, Py_ssize_t count, float *restrict total)
{
    for (Py_ssize_t i = 0; i < count; i++)
        total[i] += sums[i] * weight;
}

static LOOP store(const float *restrict total, Py_ssize_t count, unsigned char *restrict out)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        float rounded = total[i] + ROUNDS;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        bits &= 0x1ff;
        out[i] = (unsigned char)(bits > 255 ? 255 : bits);
    }
}

static void shrink(const struct axis *down, const struct axis *across, const struct room *room,
                   const Py_buffer *image, const Py_buffer *out)
{
    Py_ssize_t first = -ROWS, width = CHANNELS * across->size;
    for (Py_ssize_t y = 0; y < down->size; y++) {
        for (Py_ssize_t k = down->from[y]; k < down->from[y + 1]; k++) {
            Py_ssize_t source = down->taps[k].source;
            float weight = down->taps[k].weight;
            if (source >= first + ROWS) {
                Py_ssize_t left_over = down->source - source;
                first = source;
                average_rows(across, room, (const unsigned char *)image->buf + first * image->strides[0],
                             image->strides[0], left_over < ROWS ? left_over : ROWS);
            }
            const float *sums = room->sums + (size_t)(source - first) * room->row;
            if (k == down->from[y])
                multiply(sums, weight, width, room->total);
            else
                multiply_and_add(sums, weight, width, room->total);
        }
        store(room->total, width, (unsigned char *)out->buf + y * out->strides[0]);
    }
}

/* The axis of a side, 0 or 1; all of it where length is 0, with the scale that OpenCV comes to. */
static struct axis axis_of(const Py_buffer *image, const Py_buffer *out, int side, double begin, double length)
{
    struct axis axis = {image->shape[side], out->shape[side], begin, length / (double)out->shape[side], NULL, NULL};
    if (length == 0)
        axis.scale = 1.0 / ((double)axis.size / (double)axis.source);
    return axis;
}

/* Returns 0 where there is no memory. Needs no lock of Python's. */
static int shrink_into(const Py_buffer *image, const Py_buffer *out, const struct part *part)
{
    struct axis down = axis_of(image, out, 0, part->top, part->height);
    struct axis across = axis_of(image, out, 1, part->left, part->width);
    struct room room = {NULL, NULL, NULL, (size_t)(CHANNELS * across.source) + 4, (size_t)(CHANNELS * across.size) + 4};
    down.taps = malloc(sizeof *down.taps * (size_t)(down.source + 2 * down.size));
    down.from = malloc(sizeof *down.from * (size_t)(down.size + 1));
    across.taps = malloc(sizeof *across.taps * (size_t)(across.source + 2 * across.size));
    across.from = malloc(sizeof *across.from * (size_t)(across.size + 1));
    room.lines = calloc(ROWS * room.line, sizeof(float));
    room.sums = malloc(ROWS * room.row * sizeof(float));
    room.total = malloc(room.row * sizeof(float));
    int has_room = down.taps && down.from && across.taps && across.from && room.lines && room.sums && room.total;
    if (has_room) {
        weigh(&down);
        weigh(&across);
        shrink(&down, &across, &room, image, out);
    }
    free(down.taps);
    free(down.from);
    free(across.taps);
    free(across.from);
    free(room.lines);
    free(room.sums);
    free(room.total);
    return has_room;
}

/* Bytes [height, width, 3] whose rows lie together. */
static int is_rgb(const Py_buffer *pixels)
{
    return pixels->ndim == 3 && pixels->format && !strcmp(pixels->format, "B") && pixels->shape[2] == CHANNELS &&
           pixels->strides[2] == 1 && pixels->strides[1] == CHANNELS;
}

/* 1 where a side of the output is no longer than that part of the image's. */
static int shrinks(Py_ssize_t source, Py_ssize_t size, double begin, double length)
{
    int lies_inside = begin >= 0 && begin + length <= (double)source;
    int is_long_enough = length == 0 ? begin == 0 : length >= (double)size;
    return size >= 1 && size <= source && source <= LONGEST_SIDE && lies_inside && is_long_enough;
}

PyDoc_STRVAR(average_doc, "average(image, out, left=0, top=0, width=0, height=0, /)\n--\n\n"
                          "Average uint8 RGB pixels [height, width, 3], or a box in parts of them, over areas to `out`, "
                          "no side of which is longer.");

static PyObject *average(PyObject *module, PyObject *arguments)
{
    PyObject *image_object, *out_object;
    Py_buffer image, out;
    struct part part = {0, 0, 0, 0};
    int fits, done = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO|dddd:average", &image_object, &out_object, &part.left, &part.top, &part.width,
                          &part.height))
        return NULL;
    if (PyObject_GetBuffer(image_object, &image, PyBUF_STRIDES | PyBUF_FORMAT) < 0)
        return NULL;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&image);
        return NULL;
    }
    fits = is_rgb(&image) && is_rgb(&out) && shrinks(image.shape[0], out.shape[0], part.top, part.height) &&
           shrinks(image.shape[1], out.shape[1], part.left, part.width);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        done = shrink_into(&image, &out, &part);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (done)
        Py_RETURN_NONE;
    if (fits)
        return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, "uint8 [height, width, 3] is needed, and no larger an output");
    return NULL;
}

static PyMethodDef methods[] = {{"average", average, METH_VARARGS, average_doc}, {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "area_average", .m_doc = "Pixels averaged over areas, as OpenCV does it.",
    .m_size = 0, .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit_area_average(void)
{
    return PyModuleDef_Init(&definition);
}
