/* Mutates JPEGs and decodes boxes of them: jpeg_crop_fuzz MUTATIONS SEED FILE... (built and run by test_jpeg_crop.py)

Every answer must be "no" or the pixels that libjpeg finds when it decodes all of it and goes on at every warning. The
bytes end where a page without access begins, and so does the output; what libjpeg takes is counted. Prints the counts,
and aborts at the first fault, after writing the bytes to "fault.jpg".
*/
#define WITHOUT_PYTHON
#define LINKED_STATICALLY
#include "../../imagenet_pipeline/records/jpeg_crop.c"

#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_BYTES (1 << 17)
#define MOST_PIXELS (1 << 18)
/* libjpeg's own tables, and for each column the sample rows between transform, upsampling and colours. */
#define FIXED_BYTES (96 << 10)
#define BYTES_A_COLUMN 160

static size_t held, peak;
static uint64_t state;

void *__real_malloc(size_t);
void __real_free(void *);

void *__wrap_malloc(size_t size)
{
    void *memory = __real_malloc(size);
    held += malloc_usable_size(memory);
    peak = held > peak ? held : peak;
    return memory;
}

void __wrap_free(void *memory)
{
    held -= memory ? malloc_usable_size(memory) : 0;
    __real_free(memory);
}

static unsigned chance(unsigned below)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (unsigned)((state * 0x2545F4914F6CDD1D) >> 33) % below;
}

/* Memory whose last byte lies before a page that nobody may touch; the end of `bytes` of it. */
static unsigned char *fenced(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    unsigned char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE))
        abort();
    return start + whole;
}

/* Move codes of one Huffman table from one length to another: too many of them, none, or other long ones. */
static void lengthen(unsigned char *data, size_t size)
{
    size_t tables[16], found = 0, place;
    for (place = 0; place + 40 < size && found < 16; place++)
        if (data[place] == 0xFF && data[place + 1] == 0xC4)
            tables[found++] = place + 5;
    if (!found)
        return;
    unsigned char *lengths = data + tables[chance((unsigned)found)];
    unsigned from = chance(16), count = chance(1 + lengths[from]);
    lengths[from] -= (unsigned char)count;
    lengths[chance(16)] += (unsigned char)count;
}

static size_t mutate(unsigned char *data, size_t size)
{
    static const unsigned char telling[] = {0x00, 0xFF, 0xD9, 0xDA, 0xC4, 0xD0, 0x11, 0x22, 0x01, 0x7F, 0x80};
    for (unsigned change = 1 + chance(4); change; change--) {
        size_t place = chance(2) ? chance((unsigned)size) : chance((unsigned)(size < 700 ? size : 700));
        size_t part = 1 + chance(chance(4) ? 4 : 200), left = size - place;
        part = part < left ? part : left;
        switch (chance(8)) {
        case 0: data[place] ^= (unsigned char)(1 << chance(8)); break;
        case 1: data[place] = (unsigned char)chance(256); break;
        case 2: data[place] = telling[chance(sizeof telling)]; break;
        case 3: memset(data + place, (int)telling[chance(2)], part); break;
        case 4: memmove(data + place, data + place + part, left - part), size -= part; break;
        case 5: memmove(data + place, data + chance((unsigned)(size - part + 1)), part); break;
        case 6: size = chance(8) ? size : place + 1; break;
        case 7: lengthen(data, size); break;
        }
        if (size < 4)
            break;
    }
    return size ? size : 1;
}

static void go_on(j_common_ptr decoder, int level)
{
    (void)decoder, (void)level;
}

/* Decode all of it as an image reader would; 0 where that fails or is too large to compare. Always sets the size. */
static int decode_whole(const unsigned char *data, size_t size, unsigned char *out, JDIMENSION *height, JDIMENSION *width)
{
    struct jpeg_decompress_struct decoder;
    struct errors errors;
    decoder.err = stop_at_complaints(&errors);
    errors.manager.emit_message = go_on;
    *height = *width = 0;
    if (setjmp(errors.complaint)) {
        jpeg_destroy_decompress(&decoder);
        return 0;
    }
    jpeg_create_decompress(&decoder);
    jpeg_mem_src(&decoder, data, size);
    jpeg_read_header(&decoder, TRUE);
    *height = decoder.image_height, *width = decoder.image_width;
    if ((size_t)*height * *width > MOST_PIXELS || decoder.num_components == 4)
        give_up((j_common_ptr)&decoder);
    decoder.out_color_space = JCS_EXT_RGB;
    jpeg_start_decompress(&decoder);
    while (decoder.output_scanline < *height) {
        unsigned char *row = out + (size_t)decoder.output_scanline * *width * CHANNELS;
        jpeg_read_scanlines(&decoder, &row, 1);
    }
    jpeg_destroy_decompress(&decoder);
    return 1;
}

static void fault(const char *what, const unsigned char *data, size_t size, const struct box *box)
{
    FILE *file = fopen("fault.jpg", "wb");
    fprintf(stderr, "%s: box %u %u %u %u\n", what, box->left, box->top, box->width, box->height);
    if (file && fwrite(data, 1, size, file) == size)
        fclose(file);
    abort();
}

static struct box any_box(JDIMENSION height, JDIMENSION width)
{
    struct box box;
    width = width ? width : 1 + chance(JPEG_MAX_DIMENSION), height = height ? height : 1 + chance(JPEG_MAX_DIMENSION);
    box.width = 1 + chance(width < 512 ? width : 512), box.height = 1 + chance(height < 512 ? height : 512);
    box.left = chance(width - box.width + 1), box.top = chance(height - box.height + 1);
    if (!chance(50))
        box.left = chance(JPEG_MAX_DIMENSION), box.top = chance(JPEG_MAX_DIMENSION);
    return box;
}

static int same(const unsigned char *part, const unsigned char *whole, const struct box *box, JDIMENSION width)
{
    for (JDIMENSION row = 0; row < box->height; row++) {
        size_t at = ((size_t)(box->top + row) * width + box->left) * CHANNELS;
        if (memcmp(part + (size_t)row * box->width * CHANNELS, whole + at, (size_t)box->width * CHANNELS))
            return 0;
    }
    return 1;
}

int main(int count, char **words)
{
    static unsigned char mutated[MOST_BYTES], whole[MOST_PIXELS * CHANNELS];
    unsigned char *data_end = fenced(MOST_BYTES), *out_end = fenced(512 * 512 * CHANNELS);
    long mutations = atol(words[1]), decoded = 0, compared = 0;
    size_t most = 0;
    state = strtoull(words[2], NULL, 10) * 0x9E3779B97F4A7C15 + 1;
    for (long mutation = 0; mutation < mutations; mutation++) {
        JDIMENSION height, width;
        FILE *file = fopen(words[3 + mutation % (count - 3)], "rb");
        size_t size = file ? fread(mutated, 1, MOST_BYTES, file) : 0;
        if (!size || fclose(file))
            abort();
        size = mutate(mutated, size);
        const unsigned char *data = memcpy(data_end - size, mutated, size);
        int readable = decode_whole(data, size, whole, &height, &width);
        struct box box = any_box(height, width);
        unsigned char *out = out_end - (size_t)box.width * box.height * CHANNELS;
        peak = held;
        size_t before = held;
        int done = decode_box(data, size, &box, out);
        if (held != before)
            fault("memory kept", data, size, &box);
        if (peak - before > FIXED_BYTES + (size_t)BYTES_A_COLUMN * width)
            fault("more memory than the width promises", data, size, &box);
        if (done && (box.left + box.width > width || box.top + box.height > height))
            fault("a box beyond the image", data, size, &box);
        if (done && readable && !same(out, whole, &box, width))
            fault("other pixels", data, size, &box);
        decoded += done, compared += done && readable;
        most = peak - before > most ? peak - before : most;
    }
    printf("%ld mutations, %ld decoded, %ld compared, %zu bytes at most\n", mutations, decoded, compared, most);
    return 0;
}
