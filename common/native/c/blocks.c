/* What a look-up in the KV cache does for each of its blocks, for a whole request in one call: docs/kv_cache.md.
 *
 * Beside each function stands one of Python that does the same and passes the same tests; where this library is missing,
 * that one runs: `place` in client/kvcache/placement.py, `BlockRows` in storage/core/block_rows.py, `BlockTable.locate`
 * and `read_rows` in storage/engine/cache_blocks.py. For little-endian machines: numbers lie as requests carry them.
 *
 * In a server `rows` are a client's, and may say anything; their number was compared with their length in bytes. `found`
 * is private memory of the server. `memory` may be shared with the client: it is written and never read.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define API __attribute__((visibility("default")))
#define ABI 1 /* as in common/native/__init__.py */

#define KEY_BYTES_MIN 8
#define KEY_BYTES_MAX 64
#define NONE 0xFFFFFFFFu /* no slot */
#define ODD 0x9E3779B97F4A7C15u
#define FREQUENCY_MAX 3
#define STRIPES 4u /* block files of a size class */
#define SHIFT_MIN 12u
#define SHIFT_MAX 26u
#define JOINED_MAX 64 /* blocks read by one system call */
#define WINDOW 256    /* and at most so many rows apart */

#define CHUNK_NOT_FOUND 1205 /* common/errors.py */
#define TOO_LARGE 1007
#define SLOW 0xFFFFFFFFu /* the status of a block that must be waited for */

struct row { /* CACHE_BLOCK of proto/storage_wire.py */
    uint64_t index;
    uint32_t chain_id, chain_version, room, key_length;
    uint8_t key[KEY_BYTES_MAX];
};

struct place { /* who is asked about one of a namespace's chains */
    uint32_t chain_id, version, node;
};

struct found { /* what `locate` says; size 0: it is not here */
    uint32_t size, crc, shift, block;
};

struct result { /* CACHE_RESULT: what `read` makes of it, in its place */
    uint32_t status, length, crc, offset;
};

struct index { /* the arrays of a BlockTable, by slot but for `places` */
    const uint32_t *places;
    const uint64_t *index;
    const uint32_t *space, *expires, *size, *crc, *block;
    const uint8_t *shift, *key_length, *keys;
    uint8_t *frequency;
    uint64_t places_mask, slots, key_bytes;
};

struct tally { /* of one `read` */
    uint64_t end, hits, hit_bytes, slow;
};

API uint32_t ffs_abi(void) { return ABI; }

static uint64_t mixed(uint64_t x) {
    x ^= x >> 29;
    x *= 0xC2B2AE3D27D4EB4Fu;
    return x ^ x >> 32;
}

static uint64_t hash_of(const uint8_t *key, uint32_t length) { /* padded with zeros to words */
    uint64_t h = length * ODD;
    for (uint32_t at = 0; at < length; at += 8) {
        uint64_t word;
        memcpy(&word, key + at, 8);
        h = (h ^ word) * ODD;
        h ^= h >> 32;
    }
    return mixed(h);
}

static int by_value(const void *one, const void *other) {
    const uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The rows of a request for `count` keys, by node, chain and number. `places`: of each of the `chains` of a namespace,
 * with its node, below `nodes`; `nodes` itself where nobody can be asked. `order` is scratch, and then the number of the
 * key of each row; `ends` are where the rows of each node end. Keys are valid, and all numbers below 2**21. */
API void ffs_arrange(const uint8_t (*keys)[KEY_BYTES_MAX], const uint64_t *lengths, const uint32_t *rooms, uint32_t count,
                     const struct place *places, uint32_t chains, uint32_t nodes, struct row *rows, uint64_t *order,
                     uint32_t *ends) {
    const uint64_t mask = (1u << 21) - 1;
    for (uint32_t n = 0; n < count; n++) {
        const uint64_t chain = hash_of(keys[n], (uint32_t)lengths[n]) % chains;
        order[n] = (uint64_t)places[chain].node << 42 | chain << 21 | n;
    }
    qsort(order, count, sizeof(*order), by_value);
    for (uint32_t node = 0, at = 0; node < nodes; node++) {
        while (at < count && order[at] >> 42 <= node)
            at++;
        ends[node] = at;
    }
    for (uint32_t at = 0; at < count; at++) {
        const struct place *place = &places[order[at] >> 21 & mask];
        const uint64_t n = order[at] &= mask;
        const uint32_t length = (uint32_t)lengths[n];
        rows[at] = (struct row){hash_of(keys[n], length), place->chain_id, place->version, rooms[n], length, {0}};
        memcpy(rows[at].key, keys[n], KEY_BYTES_MAX);
    }
}

/* The sum of the rows' rooms, or -1 for a key of a length that none has. `ends[0]` is the number of runs of rows of one
 * chain and version, then come their ends; there is room for `count` + 1. */
API int64_t ffs_split(const struct row *rows, uint32_t count, uint32_t *ends) {
    uint64_t total = 0;
    uint32_t runs = 0;
    for (uint32_t n = 0; n < count; n++) {
        if (rows[n].key_length < KEY_BYTES_MIN || rows[n].key_length > KEY_BYTES_MAX)
            return -1;
        total += rows[n].room;
        if (n + 1 == count || memcmp(&rows[n].chain_id, &rows[n + 1].chain_id, 8))
            ends[++runs] = n + 1;
    }
    ends[0] = runs;
    return (int64_t)total;
}

/* Where the blocks of rows [begin, end) are that are here and not expired; they count as asked for. */
API void ffs_locate(const struct index *in, uint32_t space, const struct row *rows, uint32_t begin, uint32_t end,
                    uint32_t now_unix_s, struct found *found) {
    const uint64_t salt = space * ODD;
    for (uint32_t n = begin; n < end; n++) {
        const struct row *row = &rows[n];
        uint64_t place = (row->index ^ salt) & in->places_mask;
        uint32_t slot;
        found[n] = (struct found){0, 0, 0, 0};
        while ((slot = in->places[place]) < in->slots && (in->index[slot] != row->index || in->space[slot] != space))
            place = (place + 1) & in->places_mask; /* at most half full: it ends */
        if (slot >= in->slots || in->key_length[slot] != row->key_length || row->key_length > in->key_bytes)
            continue;
        if (in->expires[slot] && in->expires[slot] <= now_unix_s)
            continue;
        if (memcmp(in->keys + slot * in->key_bytes, row->key, row->key_length))
            continue;
        if (in->frequency[slot] < FREQUENCY_MAX)
            in->frequency[slot]++;
        found[n] = (struct found){in->size[slot], in->crc[slot], in->shift[slot], in->block[slot]};
    }
}

/* The descriptor of a block's file; -1: there is none. */
static int file_of(const int32_t *fds, uint32_t shift, uint32_t block) {
    return shift < SHIFT_MIN || shift > SHIFT_MAX ? -1 : fds[(shift - SHIFT_MIN) * STRIPES + block % STRIPES];
}

static void note(struct result *result, uint32_t length, struct tally *tally) {
    result->status = 0;
    tally->hits++;
    tally->hit_bytes += length;
}

/* Read what `locate` found for rows [begin, end) into `memory`, one behind the other from `tally->end` on, as far as it
 * is in the page cache: blocks that lie side by side in a file together. What is not there has status SLOW, its bytes in
 * memory are zero, and its place stays its own. Returns -1, with nothing read, where memory ends too soon. */
API int32_t ffs_read(const int32_t *fds, const struct row *rows, uint32_t begin, uint32_t end, struct found *found,
                     uint8_t *memory, uint64_t memory_bytes, struct tally *tally) {
    uint64_t at = tally->end;
    struct iovec parts[JOINED_MAX];
    uint32_t joined[JOINED_MAX];
    uint64_t left[WINDOW / 64];

    for (uint32_t n = begin; n < end; n++)
        if (found[n].size <= rows[n].room && (at += found[n].size) > memory_bytes)
            return -1;
    at = tally->end;
    for (uint32_t first = begin; first < end; first += WINDOW) {
        uint32_t last = end - first < WINDOW ? end : first + WINDOW;
        struct found here[WINDOW]; /* as `results` take their place */
        memcpy(here, &found[first], (last - first) * sizeof(*here));
        memset(left, 0, sizeof(left));
        for (uint32_t n = first; n < last; n++) {
            struct found *f = &here[n - first];
            struct result result = {SLOW, f->size, f->crc, (uint32_t)at};
            if (!f->size || f->size > rows[n].room) {
                result = (struct result){f->size ? TOO_LARGE : CHUNK_NOT_FOUND, 0, 0, 0};
            } else {
                at += f->size;
                left[(n - first) / 64] |= 1ull << (n - first) % 64;
            }
            memcpy(&found[n], &result, sizeof(result));
        }
        struct result *results = (struct result *)found;
        for (uint32_t n = first; n < last; n++) {
            if (!(left[(n - first) / 64] >> (n - first) % 64 & 1))
                continue;
            uint32_t shift = here[n - first].shift, next = here[n - first].block, count = 0;
            uint64_t want = 0;
            const int fd = file_of(fds, shift, next);
            const off_t offset = (off_t)(next / STRIPES) << (shift & 31);
            for (uint32_t m = n; m < last && count < JOINED_MAX; m++) {
                const struct found *f = &here[m - first];
                if (f->block != next || f->shift != shift || !(left[(m - first) / 64] >> (m - first) % 64 & 1))
                    continue;
                left[(m - first) / 64] &= ~(1ull << (m - first) % 64);
                parts[count] = (struct iovec){memory + results[m].offset, f->size};
                joined[count++] = m;
                want += f->size;
                next += STRIPES;
                if (fd < 0 || f->size != 1ull << shift)
                    break; /* the next block does not begin where this one ends */
            }
            if (fd >= 0 && preadv2(fd, parts, (int)count, offset, RWF_NOWAIT) == (ssize_t)want) {
                for (uint32_t k = 0; k < count; k++)
                    note(&results[joined[k]], parts[k].iov_len, tally);
                continue;
            }
            for (uint32_t k = 0; k < count; k++) { /* some of them may be there all the same */
                const struct result *result = &results[joined[k]];
                const off_t where = offset + ((off_t)k << (shift & 31));
                if (count > 1 && fd >= 0 && preadv2(fd, &parts[k], 1, where, RWF_NOWAIT) == (ssize_t)result->length) {
                    note(&results[joined[k]], result->length, tally);
                } else {
                    memset(parts[k].iov_base, 0, parts[k].iov_len);
                    tally->slow++;
                }
            }
        }
    }
    tally->end = at;
    return 0;
}
