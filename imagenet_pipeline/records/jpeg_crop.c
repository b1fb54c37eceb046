/* Decode a box of a JPEG, and nothing below it: the pixels that decoding all of it puts there.

Above the box only the Huffman codes are read, beside it the transform is spared too (libjpeg-turbo's
jpeg_skip_scanlines and jpeg_crop_scanline); jpeg_huffman.h reads the codes where it knows the library. What is not
taken, and any complaint of libjpeg, is answered with "no": the caller then decodes the whole in its own way, so no
pixel depends on whether this was compiled.

libjpeg's jpeg_std_error is left out on purpose: it is the one object of Debian's libjpeg.a (jerror.c.o, for stderr)
that cannot go into a shared library.
*/
#ifndef WITHOUT_PYTHON /* the fuzzer's build: tests/hostile/jpeg_crop_fuzz.c */
#define PY_SSIZE_T_CLEAN
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#endif

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed: other libjpegs lack jpeg_crop_scanline"
#elif LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 is needed: earlier ones upsample 4:4:0 otherwise than simplejpeg's"
#endif

#define CHANNELS 3
/* Versions whose sources were looked at, see jpeg_huffman.h; setup.py says whether the library is the header's. */
#if defined(LINKED_STATICALLY) && defined(__GNUC__) && LIBJPEG_TURBO_VERSION_NUMBER < 3003000
#define READS_CODES
#endif
/* Pixels beside the box whose chroma the box's own pixels are interpolated from. */
#define MARGIN 2
/* Rows at a time: the upsampler hands out two at most. */
#define MOST_ROWS 4
/* Rows that begin at a multiple of 16 or 32 are written past the caches, from which they are copied right away. */
#define OFF_ALIGNMENT 4

struct box {
    JDIMENSION left, top, width, height;
};

struct errors {
    struct jpeg_error_mgr manager;
    jmp_buf complaint;
};

static void give_up(j_common_ptr decoder)
{
    longjmp(((struct errors *)decoder->err)->complaint, 1);
}

/* Below zero are warnings: data is damaged, and libjpeg would go on. */
static void hear(j_common_ptr decoder, int level)
{
    if (level < 0)
        give_up(decoder);
}

static void say_nothing(j_common_ptr decoder)
{
    (void)decoder;
}

static void word_nothing(j_common_ptr decoder, char *buffer)
{
    (void)decoder;
    buffer[0] = 0;
}

static void forget(j_common_ptr decoder)
{
    decoder->err->num_warnings = 0;
    decoder->err->msg_code = 0;
}

#ifdef READS_CODES
#include "jpeg_huffman.h"
#endif

static struct jpeg_error_mgr *stop_at_complaints(struct errors *errors)
{
    memset(&errors->manager, 0, sizeof errors->manager);
    errors->manager.error_exit = give_up;
    errors->manager.emit_message = hear;
    errors->manager.output_message = say_nothing;
    errors->manager.format_message = word_nothing;
    errors->manager.reset_error_mgr = forget;
    return &errors->manager;
}

/* Grey, or luma above chroma in the forms that TurboJPEG knows: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1. */
static int is_usual(j_decompress_ptr decoder)
{
    const jpeg_component_info *parts = decoder->comp_info;
    if (decoder->data_precision != 8 || decoder->progressive_mode || decoder->arith_code)
        return 0;
    if (decoder->comps_in_scan != decoder->num_components)
        return 0;
    if (decoder->num_components == 1)
        return decoder->jpeg_color_space == JCS_GRAYSCALE && parts[0].h_samp_factor == 1 && parts[0].v_samp_factor == 1;
    if (decoder->num_components != CHANNELS)
        return 0;
    for (int chroma = 1; chroma < CHANNELS; chroma++)
        if (parts[chroma].h_samp_factor != 1 || parts[chroma].v_samp_factor != 1)
            return 0;
    int across = parts[0].h_samp_factor, down = parts[0].v_samp_factor;
    return (down == 1 && (across == 1 || across == 2 || across == 4)) || (down == 2 && (across == 1 || across == 2));
}

static int lies_inside(const struct box *box, j_decompress_ptr decoder)
{
    return box->left + box->width <= decoder->image_width && box->top + box->height <= decoder->image_height;
}

/* The columns that are decoded, `from` and `across`: those of the box and MARGIN, widened by libjpeg to its blocks. */
static void narrow(j_decompress_ptr decoder, const struct box *box, JDIMENSION *from, JDIMENSION *across)
{
    JDIMENSION right = box->left + box->width + MARGIN;
    *from = box->left > MARGIN ? box->left - MARGIN : 0;
    if (right > decoder->output_width)
        right = decoder->output_width;
    *across = right - *from;
    if (*across < decoder->output_width)
        jpeg_crop_scanline(decoder, from, across);
}

static void read_rows(j_decompress_ptr decoder, const struct box *box, JDIMENSION from, unsigned char *out)
{
    size_t row_bytes = (size_t)box->width * CHANNELS, start = (size_t)(box->left - from) * CHANNELS;
    JDIMENSION bottom = box->top + box->height;
    JSAMPARRAY rows = decoder->mem->alloc_sarray((j_common_ptr)decoder, JPOOL_IMAGE,
                                                 decoder->output_width * CHANNELS + OFF_ALIGNMENT, MOST_ROWS);
    for (int row = 0; row < MOST_ROWS; row++)
        rows[row] += OFF_ALIGNMENT;
    if (box->top > 0)
        jpeg_skip_scanlines(decoder, box->top);
    while (decoder->output_scanline < bottom) {
        JDIMENSION left_over = bottom - decoder->output_scanline;
        JDIMENSION count = jpeg_read_scanlines(decoder, rows, left_over < MOST_ROWS ? left_over : MOST_ROWS);
        if (count == 0)
            give_up((j_common_ptr)decoder);
        for (JDIMENSION row = 0; row < count; row++, out += row_bytes)
            memcpy(out, rows[row] + start, row_bytes);
    }
}

/* Decode a box, its sides 1 or more and no number beyond JPEG_MAX_DIMENSION, to `out`, height x width x 3 bytes of RGB.
   Returns 0 where it cannot, or does not know how; `out` may then hold part of it. Needs no lock of Python's. */
static int decode_box(const unsigned char *data, size_t size, const struct box *box, unsigned char *out)
{
    struct jpeg_decompress_struct decoder;
    struct errors errors;
    JDIMENSION from, across;
    decoder.err = stop_at_complaints(&errors);
    decoder.mem = NULL;
    if (setjmp(errors.complaint)) {
        jpeg_destroy_decompress(&decoder);
        return 0;
    }
    jpeg_create_decompress(&decoder);
    jpeg_mem_src(&decoder, data, size);
    if (jpeg_read_header(&decoder, TRUE) != JPEG_HEADER_OK || !is_usual(&decoder) || !lies_inside(box, &decoder))
        give_up((j_common_ptr)&decoder);
    decoder.out_color_space = JCS_EXT_RGB;
    decoder.dct_method = JDCT_ISLOW;
    decoder.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&decoder);
    narrow(&decoder, box, &from, &across);
#ifdef READS_CODES
    struct huffman huffman;
    read_codes_here(&decoder, &huffman, from, across);
#endif
    read_rows(&decoder, box, from, out);
    jpeg_destroy_decompress(&decoder);
    return 1;
}

#ifndef WITHOUT_PYTHON
#define TEXT_OF(number) #number
#define VERSION_TEXT(version) TEXT_OF(version)

PyDoc_STRVAR(decode_doc, "decode(data, left, top, width, height, out, /)\n--\n\n"
                         "Decode a box of a JPEG to `out`, height x width x 3 bytes; False where that must be done "
                         "in another way.");

static int within(Py_ssize_t number, Py_ssize_t least)
{
    return least <= number && number <= JPEG_MAX_DIMENSION;
}

static PyObject *decode(PyObject *module, PyObject *arguments)
{
    Py_buffer data, out;
    Py_ssize_t left, top, width, height;
    int done = 0, fits;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*nnnnw*:decode", &data, &left, &top, &width, &height, &out))
        return NULL;
    fits = within(left, 0) && within(top, 0) && within(width, 1) && within(height, 1) &&
           out.len == width * height * CHANNELS;
    if (fits) {
        struct box box = {(JDIMENSION)left, (JDIMENSION)top, (JDIMENSION)width, (JDIMENSION)height};
        Py_BEGIN_ALLOW_THREADS
        done = decode_box(data.buf, (size_t)data.len, &box, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a box of positive sides and a buffer of its size are needed");
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return fits ? PyBool_FromLong(done) : NULL;
}

#define SEGMENT_LIMIT 4096 /* as in jpeg.py */

static int is_frame(unsigned char marker)
{
    return 0xC0 <= marker && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

static int is_segment(unsigned char marker)
{
    return is_frame(marker) || marker == 0xC4 || marker == 0xCC || marker == 0xDB || marker == 0xDD ||
           marker == 0xFE || (0xE0 <= marker && marker <= 0xEF);
}

/* The walk of `read_head` in jpeg.py, which says what it is for: where the frame and the first scan begin, 0 if not. */
static int find_head(const unsigned char *data, size_t size, size_t *frame, size_t *scan)
{
    size_t at = 2;
    *frame = 0;
    if (size < 2 || data[0] != 0xFF || data[1] != 0xD8)
        return 0;
    for (int segments = 0; segments < SEGMENT_LIMIT && at + 4 < size && data[at] == 0xFF; segments++) {
        unsigned char marker = data[at + 1];
        if (marker == 0xDA) {
            *scan = at;
            return *frame && *frame + 10 <= size;
        }
        if (!is_segment(marker) || (is_frame(marker) && *frame))
            return 0;
        if (is_frame(marker))
            *frame = at;
        at += 2 + ((size_t)data[at + 2] << 8 | data[at + 3]);
    }
    return 0;
}

PyDoc_STRVAR(read_head_doc, "read_head(data, /)\n--\n\n"
                            "As `read_head` of imagenet_pipeline.records.jpeg, a tuple or None.");

static PyObject *read_head(PyObject *module, PyObject *argument)
{
    Py_buffer data;
    PyObject *head = NULL;
    size_t frame, scan;
    (void)module;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE))
        return NULL;
    if (find_head(data.buf, (size_t)data.len, &frame, &scan)) {
        const unsigned char *at = (const unsigned char *)data.buf + frame, *bytes = data.buf;
        int sequential = at[1] == 0xC0 || at[1] == 0xC1;
        head = Py_BuildValue("(iiiO)", at[5] << 8 | at[6], at[7] << 8 | at[8], at[9],
                             sequential && bytes[scan + 4] == at[9] ? Py_True : Py_False);
    } else {
        Py_INCREF(Py_None);
        head = Py_None;
    }
    PyBuffer_Release(&data);
    return head;
}

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS, decode_doc},
    {"read_head", read_head, METH_O, read_head_doc},
    {NULL, NULL, 0, NULL},
};

static int add_version(PyObject *module)
{
    return PyModule_AddStringConstant(module, "LIBJPEG_TURBO", VERSION_TEXT(LIBJPEG_TURBO_VERSION));
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_version},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "jpeg_crop", .m_doc = "Boxes of JPEGs, decoded by libjpeg-turbo.",
    .m_size = 0, .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit_jpeg_crop(void)
{
    return PyModuleDef_Init(&definition);
}
#endif
