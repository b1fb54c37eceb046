/* Huffman codes of a sequential JPEG, read for jpeg_crop.c in place of libjpeg-turbo's decode_mcu.

It is faster by having few branches: stuffed zeros are taken out before, a stretch at a time, so that bits are refilled
from eight bytes at once, and what a code says is found in one table. Blocks that nobody transforms are passed over by a
table of several coefficients at a time. Whatever is unusual (a code that stands for nothing, a coefficient beyond the
64th, data that ends, a marker other than the next restart) is given up; jpeg_crop.c says what follows from that.

libjpeg is told of it through `decode_mcu`, the second member of its private struct jpeg_entropy_decoder: looked up in
the sources of 2.1.0 to 3.2.0. Only a library that is linked statically is known to be that of the header.
*/
#include <stdint.h>

/* Bits that an entry of the tables is found by. */
#define NEXT_BITS 10
#define PASS_BITS 12
#define LONGEST_CODE 16
/* Bits of a code and the value after it: 16 and 15. */
#define MOST_BITS 31
/* Entries used before bits are refilled without asking: so many seldom need it before, which can be foretold. */
#define STORED_A_REFILL 3
#define PASSED_A_REFILL 2
/* Table numbers of baseline. */
#define TABLES 2
#define COEFFICIENTS 64
/* Bytes that an MCU takes at most, rounded up, with what is read ahead; and those that are held. */
#define MCU_BYTES (D_MAX_BLOCKS_IN_MCU * COEFFICIENTS * (MOST_BITS + 1) / 8 + 64)
#define HELD_BYTES (3 * MCU_BYTES)
/* libjpeg, reading ahead, complains of data that ends without a marker this near to what it needs. */
#define READ_AHEAD 8

/* An entry's parts: bits of code and value, of the code, run of zeros before the value, and 63 less its bits. */
#define ENTRY(code, size, run) (((code) + (size)) | (code) << 8 | (run) << 16 | (63 - (size)) << 24)
#define BITS(entry) ((entry) & 255)
#define CODE(entry) ((entry) >> 8 & 255)
#define RUN(entry) ((entry) >> 16 & 255)
#define SHIFT(entry) ((entry) >> 24)
/* The run of an end of block; in `pass`, added to the coefficients before it. */
#define END 64u
/* The coefficients of an entry of `pass` that holds no code. */
#define NONE 255u

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define INLINE static inline __attribute__((always_inline))

struct codes {
    JHUFF_TBL of; /* what all the rest was made from */
    int made;
    int32_t most[LONGEST_CODE + 1], offset[LONGEST_CODE + 1]; /* for each length its last code, and place less code */
    uint32_t next[1 << NEXT_BITS]; /* 0 where the code is longer */
};

struct ac_codes {
    struct codes codes;
    uint16_t pass[1 << PASS_BITS]; /* bits, and above the eighth the coefficients passed */
};

struct tables {
    struct codes dc[TABLES];
    struct ac_codes ac[TABLES];
};

struct bits {
    uint64_t held; /* the next bit is the highest */
    unsigned count;
    const unsigned char *at;
};

struct block_codes {
    const struct codes *dc;
    const struct ac_codes *ac;
    unsigned *last; /* DC of the component's block before */
};

struct huffman {
    struct bits bits;
    const unsigned char *source, *source_end; /* the bytes of the file that are still to come */
    const unsigned char *end; /* of the bytes in `plain`, and whether there are no more: a marker is at `source` */
    int all;
    struct block_codes blocks[D_MAX_BLOCKS_IN_MCU];
    unsigned last[MAX_COMPS_IN_SCAN];
    JDIMENSION column, first_column, last_column; /* of MCUs: the next one's, and those that are transformed */
    unsigned left, restarts; /* MCUs before the next restart marker, and how many there were */
    unsigned char plain[HELD_BYTES + MCU_BYTES]; /* without stuffed zeros; zeros follow the last */
};

/* The beginning of libjpeg's struct of this name, see above. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
};

/* Where the coefficients in zigzag order lie in a block. */
static const unsigned char NATURAL_ORDER[COEFFICIENTS] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static uint32_t entry_of(unsigned symbol, unsigned length, int is_dc)
{
    unsigned size = symbol & 15, run = is_dc ? 0 : symbol >> 4;
    return ENTRY(length, size, is_dc || size || run == 15 ? run : END);
}

/* Returns 0 where there are more codes than there can be, which libjpeg refuses before. */
static int make_codes(struct codes *codes, const JHUFF_TBL *of, int is_dc)
{
    int32_t code = 0, place = 0;
    uint32_t *entries = codes->next, *end = entries + (1 << NEXT_BITS);
    codes->made = 0;
    codes->of = *of;
    for (unsigned length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
        int32_t count = of->bits[length];
        if (place + count > 256 || code + count >= 1 << length)
            return 0;
        codes->offset[length] = place - code;
        codes->most[length] = count ? code + count - 1 : -1;
        for (code += count; count; count--, place++)
            for (int same = length <= NEXT_BITS ? 1 << (NEXT_BITS - length) : 0; same; same--)
                *entries++ = entry_of(of->huffval[place], length, is_dc);
    }
    memset(entries, 0, (size_t)((char *)end - (char *)entries));
    return codes->made = 1;
}

/* As many coefficients as PASS_BITS hold; of the last the code is enough, its value is passed over. */
static uint16_t pass_of(const struct codes *codes, unsigned start)
{
    unsigned length = 0, coefficients = 0;
    while (length < PASS_BITS) {
        uint32_t entry = codes->next[(start << length & ((1 << PASS_BITS) - 1)) >> (PASS_BITS - NEXT_BITS)];
        if (!entry || length + CODE(entry) > PASS_BITS)
            break;
        if (RUN(entry) == END)
            return (uint16_t)((length + CODE(entry)) | (coefficients + END) << 8);
        if (coefficients + RUN(entry) + 1 >= END)
            break;
        length += BITS(entry), coefficients += RUN(entry) + 1;
    }
    return (uint16_t)(length | (length ? coefficients : NONE) << 8);
}

static int same_codes(const struct codes *codes, const JHUFF_TBL *of)
{
    return codes->made && !memcmp(codes->of.bits, of->bits, sizeof of->bits) &&
           !memcmp(codes->of.huffval, of->huffval, sizeof of->huffval);
}

static int dc_ready(struct codes *codes, const JHUFF_TBL *of)
{
    return of && (same_codes(codes, of) || make_codes(codes, of, 1));
}

static int ac_ready(struct ac_codes *ac, const JHUFF_TBL *of)
{
    if (!of || same_codes(&ac->codes, of))
        return of != NULL;
    if (!make_codes(&ac->codes, of, 0))
        return 0;
    for (unsigned start = 0; start < 1 << PASS_BITS; start++)
        ac->pass[start] = pass_of(&ac->codes, start);
    return 1;
}

/* Have MCU_BYTES or more in `plain` after the next: those of the file, and zeros after the last before a marker. */
static void fetch(struct huffman *huffman)
{
    unsigned char *to = huffman->plain, *full = to + HELD_BYTES;
    size_t kept = (size_t)(huffman->end - huffman->bits.at);
    memmove(to, huffman->bits.at, kept);
    huffman->bits.at = to;
    for (to += kept; !huffman->all && to < full;) {
        const unsigned char *from = huffman->source, *ones;
        size_t left = (size_t)(huffman->source_end - from), room = (size_t)(full - to);
        size_t count = left < room ? left : room;
        ones = memchr(from, 0xFF, count);
        count = ones ? (size_t)(ones - from) : count;
        memcpy(to, from, count);
        to += count, left -= count, huffman->source += count;
        if (ones && left >= 2 && ones[1] == 0) {
            *to++ = 0xFF, huffman->source += 2;
        } else if (ones || left == 0) {
            huffman->all = 1;
            if (left < 2)
                to -= to - huffman->plain < READ_AHEAD ? to - huffman->plain : READ_AHEAD;
        }
    }
    memset(to, 0, MCU_BYTES);
    huffman->end = to;
}

/* 56 bits or more. Below `count` lie bits of the next byte; they are put there again with all of it. */
INLINE void refill(struct bits *bits)
{
    uint64_t bytes;
    memcpy(&bytes, bits->at, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    bits->held |= bytes >> bits->count;
    bits->at += (63 - bits->count) >> 3;
    bits->count |= 56;
}

INLINE void need(struct bits *bits)
{
    if (bits->count < MOST_BITS)
        refill(bits);
}

INLINE void drop(struct bits *bits, unsigned count)
{
    bits->held <<= count;
    bits->count -= count;
}

/* The entry of a code that is longer than NEXT_BITS. */
static uint32_t long_code(j_decompress_ptr decoder, const struct codes *codes, int is_dc, uint64_t held)
{
    for (unsigned length = NEXT_BITS + 1; length <= LONGEST_CODE; length++) {
        int32_t code = (int32_t)(held >> (64 - length));
        if (code <= codes->most[length])
            return entry_of(codes->of.huffval[code + codes->offset[length]], length, is_dc);
    }
    give_up((j_common_ptr)decoder);
    return 0;
}

/* The next code's entry, MOST_BITS or more held; its bits are still there. */
INLINE uint32_t next_entry(j_decompress_ptr decoder, const struct codes *codes, int is_dc, uint64_t held)
{
    uint32_t entry = codes->next[held >> (64 - NEXT_BITS)];
    return LIKELY(entry) ? entry : long_code(decoder, codes, is_dc, held);
}

/* The value after the code that `held` begins with; section F.2.2.1, EXTEND. */
INLINE int value_of(uint32_t entry, uint64_t held)
{
    uint64_t bits = held << CODE(entry), negative = (bits >> 63) - 1;
    return (int)(((bits ^ negative) >> 1 >> SHIFT(entry) ^ negative) - negative);
}

INLINE unsigned read_dc(j_decompress_ptr decoder, const struct codes *codes, struct bits *bits)
{
    uint32_t entry = next_entry(decoder, codes, 1, bits->held);
    unsigned difference = (unsigned)value_of(entry, bits->held);
    drop(bits, BITS(entry));
    return difference;
}

/* One code of AC: the place after its coefficient, COEFFICIENTS after the last; stores it if there is a block. */
INLINE unsigned read_ac(j_decompress_ptr decoder, const struct codes *codes, struct bits *bits, unsigned place,
                        JCOEF *block)
{
    uint32_t entry = next_entry(decoder, codes, 0, bits->held);
    int value = value_of(entry, bits->held);
    drop(bits, BITS(entry));
    place += RUN(entry);
    if (LIKELY(place < COEFFICIENTS)) {
        if (block)
            block[NATURAL_ORDER[place]] = (JCOEF)value;
        return place + 1;
    }
    if (RUN(entry) != END)
        give_up((j_common_ptr)decoder);
    return COEFFICIENTS;
}

INLINE void store_acs(j_decompress_ptr decoder, const struct codes *codes, struct bits *bits, JCOEF *block)
{
    for (unsigned place = 1; place < COEFFICIENTS;) {
        refill(bits);
        for (int more = STORED_A_REFILL; more && place < COEFFICIENTS; more--) {
            need(bits);
            place = read_ac(decoder, codes, bits, place, block);
        }
    }
}

INLINE unsigned pass_some(j_decompress_ptr decoder, const struct ac_codes *ac, struct bits *bits, unsigned place)
{
    unsigned entry = ac->pass[bits->held >> (64 - PASS_BITS)], after = place + (entry >> 8);
    if (LIKELY(after < COEFFICIENTS)) {
        drop(bits, entry & 255);
        return after;
    }
    if (entry >> 8 < END || after >= COEFFICIENTS + END)
        return read_ac(decoder, &ac->codes, bits, place, NULL);
    drop(bits, entry & 255);
    return COEFFICIENTS;
}

INLINE void pass_acs(j_decompress_ptr decoder, const struct ac_codes *ac, struct bits *bits)
{
    for (unsigned place = 1; place < COEFFICIENTS;) {
        refill(bits);
        for (int more = PASSED_A_REFILL; more && place < COEFFICIENTS; more--) {
            need(bits);
            place = pass_some(decoder, ac, bits, place);
        }
    }
}

/* Bits before the marker, or of `plain`; below zero if some were read that are not there. */
static ptrdiff_t bits_left(const struct huffman *huffman)
{
    return (huffman->end - huffman->bits.at) * 8 + (ptrdiff_t)huffman->bits.count;
}

/* Past a restart marker: the one whose turn it is, and nothing but a byte's padding before it. */
static void restart(j_decompress_ptr decoder, struct huffman *huffman)
{
    const unsigned char *at = huffman->source, *end = huffman->source_end;
    while (end - at >= 2 && at[0] == 0xFF && at[1] == 0xFF)
        at++;
    if (!huffman->all || bits_left(huffman) >= 8 || end - at < 2 || at[1] != 0xD0 + huffman->restarts % 8)
        give_up((j_common_ptr)decoder);
    huffman->source = at + 2;
    huffman->restarts++;
    huffman->left = decoder->restart_interval;
    huffman->all = 0;
    huffman->bits = (struct bits){0, 0, huffman->end};
    memset(huffman->last, 0, sizeof huffman->last);
}

static boolean read_mcu(j_decompress_ptr decoder, JBLOCKROW *blocks)
{
    struct huffman *huffman = decoder->client_data;
    int stored = blocks && huffman->first_column <= huffman->column && huffman->column <= huffman->last_column;
    if (decoder->restart_interval && huffman->left == 0)
        restart(decoder, huffman);
    if (!huffman->all && huffman->end - huffman->bits.at < MCU_BYTES)
        fetch(huffman);
    struct bits bits = huffman->bits;
    for (int number = 0; number < decoder->blocks_in_MCU; number++) {
        const struct block_codes *codes = &huffman->blocks[number];
        refill(&bits);
        *codes->last += read_dc(decoder, codes->dc, &bits);
        if (stored) {
            (*blocks[number])[0] = (JCOEF)*codes->last;
            store_acs(decoder, &codes->ac->codes, &bits, *blocks[number]);
        } else {
            pass_acs(decoder, codes->ac, &bits);
        }
    }
    huffman->bits = bits;
    if (bits_left(huffman) < 0)
        give_up((j_common_ptr)decoder);
    huffman->left--;
    huffman->column = huffman->column + 1 < decoder->MCUs_per_row ? huffman->column + 1 : 0;
    return TRUE;
}

/* Tables are kept from one image to the next: most have those of the standard's annex K. */
static struct tables *tables_of_thread(void)
{
    static _Thread_local struct tables tables;
    return &tables;
}

/* Sets the tables of each block of an MCU; 0 where they are not to be had. */
static int choose_tables(j_decompress_ptr decoder, struct huffman *huffman)
{
    struct tables *tables = tables_of_thread();
    for (int number = 0; number < decoder->blocks_in_MCU; number++) {
        int part = decoder->MCU_membership[number];
        int dc = decoder->cur_comp_info[part]->dc_tbl_no, ac = decoder->cur_comp_info[part]->ac_tbl_no;
        if (dc < 0 || dc >= TABLES || ac < 0 || ac >= TABLES)
            return 0;
        if (!dc_ready(&tables->dc[dc], decoder->dc_huff_tbl_ptrs[dc]) ||
            !ac_ready(&tables->ac[ac], decoder->ac_huff_tbl_ptrs[ac]))
            return 0;
        huffman->blocks[number] = (struct block_codes){&tables->dc[dc], &tables->ac[ac], &huffman->last[part]};
    }
    return 1;
}

/* Have the codes read here, if they are those of a sequential image in tables 0 and 1; else libjpeg goes on doing it.
   Called before the first row is read, `from` and `across` being the columns that are transformed. */
static void read_codes_here(j_decompress_ptr decoder, struct huffman *huffman, JDIMENSION from, JDIMENSION across)
{
    JDIMENSION mcu_width = (JDIMENSION)(DCTSIZE * decoder->max_h_samp_factor);
    if (decoder->Ss != 0 || decoder->Se != COEFFICIENTS - 1 || decoder->Ah != 0 || decoder->Al != 0 ||
        decoder->unread_marker != 0 || !choose_tables(decoder, huffman))
        return;
    huffman->source = decoder->src->next_input_byte;
    huffman->source_end = huffman->source + decoder->src->bytes_in_buffer;
    huffman->bits = (struct bits){0, 0, huffman->plain};
    huffman->end = huffman->plain;
    huffman->all = 0;
    memset(huffman->last, 0, sizeof huffman->last);
    huffman->column = 0;
    huffman->first_column = from / mcu_width, huffman->last_column = (from + across - 1) / mcu_width;
    huffman->left = decoder->restart_interval, huffman->restarts = 0;
    decoder->client_data = huffman;
    decoder->entropy->decode_mcu = read_mcu;
}
